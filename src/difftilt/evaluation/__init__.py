"""What a run achieved: numbers, pictures and the page that shows them."""

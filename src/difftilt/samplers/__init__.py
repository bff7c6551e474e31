"""Ways to sample the tilted law without changing weights: one paper, one file."""

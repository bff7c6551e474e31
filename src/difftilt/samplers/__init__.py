"""Ways to sample the tilted distribution without changing weights: one paper, one file."""

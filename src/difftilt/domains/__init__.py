"""One folder per kind of sample: its model, how that is pretrained, and its recipe."""

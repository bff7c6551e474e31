"""Fine-tuning algorithms: one paper, one file."""

"""Complete jobs, each a plain function that reads from top to bottom."""

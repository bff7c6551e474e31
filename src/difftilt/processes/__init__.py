"""Model families as chains."""

"""Sequences as people read them."""

"""Soft values and critics."""

"""Pipelines of diffusers as chains."""

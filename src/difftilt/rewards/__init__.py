"""Rewards for images and, later, molecules and sequences."""

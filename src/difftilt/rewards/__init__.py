"""Rewards of images and of RNA; any callable that scores samples is one, too."""

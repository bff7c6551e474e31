"""Short sequences of which every score was measured."""

"""What stands between a chain and a user's network."""

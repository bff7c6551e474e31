"""Networks, and third-party models as chains."""

"""5' UTRs of 50 letters, and the ribosomes that they attract."""

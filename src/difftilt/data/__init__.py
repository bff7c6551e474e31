"""Real data: landscapes of sequences, 5' UTRs and molecules, and where their files lie."""

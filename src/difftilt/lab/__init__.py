"""The lab in the loop: what was measured, what to measure next, and what came back."""

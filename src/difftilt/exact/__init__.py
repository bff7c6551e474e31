"""Exact optima behind the same interfaces: what algorithms are proven against."""

"""Policies around policies."""

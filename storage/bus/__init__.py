"""Hints between workers."""

"""Revisions of the queue database."""

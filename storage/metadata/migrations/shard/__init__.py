"""Revisions of the shard database."""

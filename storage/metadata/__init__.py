"""Metadata shards, directory and queue: the only SQLAlchemy."""

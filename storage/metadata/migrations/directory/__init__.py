"""Revisions of the directory database."""

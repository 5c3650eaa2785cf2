"""Composition root: builds the object graph; the only place naming concrete classes."""

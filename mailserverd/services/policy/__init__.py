"""Checks at arrival: one file each, in the order of the tuple below."""

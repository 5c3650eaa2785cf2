"""SASL mechanisms: one sans-IO file each."""

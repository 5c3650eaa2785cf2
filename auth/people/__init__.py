"""People: directory, passwords, limits, SASL."""

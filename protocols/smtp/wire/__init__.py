"""SMTP grammar: commands, parameters, addresses, replies."""

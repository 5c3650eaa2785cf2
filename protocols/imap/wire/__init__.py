"""IMAP grammar: bytes to commands, responses to bytes."""

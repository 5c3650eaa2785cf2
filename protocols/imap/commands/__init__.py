"""IMAP base commands: one file each."""

"""IMAP extensions: one file each."""

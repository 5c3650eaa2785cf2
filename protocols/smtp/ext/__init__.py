"""SMTP extensions: one file each."""

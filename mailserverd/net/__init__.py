"""The only Twisted code: listeners, TLS and transport glue."""

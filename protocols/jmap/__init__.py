"""JMAP (RFC 8620, RFC 8621) over HTTP and WebSocket (RFC 8887)."""

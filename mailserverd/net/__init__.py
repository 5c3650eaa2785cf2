"""The only Twisted code: listeners, TLS and transport glue."""

from mailserverd.core.lean_dns import without_doh

without_doh()

"""Mail authentication: SPF, DKIM, DMARC and Authentication-Results."""

from mailserverd.core.lean_dns import without_doh

without_doh()

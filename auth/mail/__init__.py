"""Mail authentication: SPF, DKIM, DMARC and Authentication-Results."""

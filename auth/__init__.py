"""Who is speaking: people (login) and mail (SPF, DKIM, DMARC, ARC)."""

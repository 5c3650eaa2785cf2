"""SMTP: the receiving side on aiosmtpd, and a sans-IO client."""

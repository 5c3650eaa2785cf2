"""Inbox caches."""

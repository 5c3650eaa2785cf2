"""The use cases: async, no wire formats, no SQL, no Twisted."""

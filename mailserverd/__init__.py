"""The daemon: everything that is neither wire, storage nor authentication."""

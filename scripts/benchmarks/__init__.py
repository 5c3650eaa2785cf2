"""Side-by-side measurements: one file per protocol, one client for all servers."""

"""``whoosh:///path``: a Whoosh index per account, in processes of its own.

``client`` is the daemon's side, ``worker`` the other; nothing is imported here, so
that neither carries the other's modules.
"""

"""One owner per database among the processes of a node; the others send it their
units of work (DESIGN decision 8)."""

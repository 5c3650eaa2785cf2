"""What both SQL engines count."""

from __future__ import annotations

from mailserverd.core.metrics import counter, histogram

COMMITS = counter("metadata_commits", "Commits, each one sync", ("database",))
UNITS = counter("metadata_units", "Units of work committed", ("database",))
LOST = counter("metadata_batches_lost", "Batches rolled back as a whole", ("database",))
TRIPS = counter("metadata_round_trips", "Statements sent and waited for", ("database",))
COMMIT_SECONDS = histogram("metadata_commit_seconds", "Time of one commit")

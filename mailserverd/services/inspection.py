"""What ``storage blobs verify`` and ``stats`` say, without hurrying."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mailserverd.services.usage import Pace, Usage, size_of, unless_removed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mailserverd.core.ports import Clock
    from storage.api import Database, SegmentStore
    from storage.metadata.queue import MailQueue

    Progress = Callable[[dict[str, Any]], None]


class Inspection:
    """Looks at every segment; ``rate`` is in octets per second, 0 for any."""

    def __init__(
        self,
        shards: Sequence[Database],
        queue: MailQueue,
        blobs: SegmentStore,
        clock: Clock,
    ) -> None:
        self._usage = Usage(shards, queue, blobs)
        self._blobs = blobs
        self._clock = clock

    async def verify(self, rate: int, progress: Progress) -> dict[str, Any]:
        """Read every segment as it lies, without any database.

        Returns {"segments", "records", "octets", "damage": [{"segment", "offset",
        "end", "why"}, ...]}.
        """
        pace, segments = Pace(rate, self._clock), await self._blobs.segments()
        done: dict[str, Any] = {"segments": 0, "records": 0, "octets": 0, "damage": []}
        for info in segments:
            look = self._blobs.verify_segment(info.segment)
            report = await unless_removed(self._blobs, info.segment, look)
            if report is None:
                continue
            done["segments"] += 1
            done["records"] += report.records
            done["octets"] += report.octets
            done["damage"] += [
                {"segment": report.segment, **one._asdict()} for one in report.damage
            ]
            progress(
                {
                    "segment": done["segments"],
                    "of": len(segments),
                    "records": done["records"],
                    "damage": len(done["damage"]),
                }
            )
            await pace.spend(report.octets)
        return done

    async def stats(self, rate: int, progress: Progress) -> dict[str, Any]:
        """Return what the store holds, and what of it is needed.

        ``live`` and ``garbage`` are octets, as after a run of the collector.
        """
        pace, segments = Pace(rate, self._clock), await self._blobs.segments()
        octets = live = records = needed = 0
        for count, info in enumerate(segments, 1):
            look = self._usage.look(info, pace, foresee=True)
            held = await unless_removed(self._blobs, info.segment, look)
            if held is None:
                continue
            octets += info.octets
            live += min(size_of(held.needed), info.octets)
            records += held.records
            needed += len(held.needed)
            progress({"segment": count, "of": len(segments), "records": records})
        return {
            "segments": len(segments),
            "unsealed": sum(not info.sealed for info in segments),
            "octets": octets,
            "live": live,
            "garbage": octets - live,
            "records": records,
            "live_records": needed,
            "average_record": octets // records if records else 0,
        }

"""Health and figures, on the metrics listener: no authentication, so not public."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from mailserverd.core import metrics
from mailserverd.core.errors import MailError
from mailserverd.core.log import get_logger
from protocols.web import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from protocols.web import Body, Head, Release

log = get_logger("http")
OK = "ok"
PATIENCE = 5.0  # seconds that a readiness check may take
TEXT = (("Content-Type", "text/plain; version=0.0.4; charset=utf-8"),)
JSON = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))


async def _render() -> bytes:
    return metrics.render()


class MetricsSite:
    """``/healthz`` (the loop runs), ``/readyz`` (every check passes), ``/metrics``.

    ``checks`` are named coroutine functions; one that raises, or takes too long,
    makes the daemon not ready (503), which the answer's JSON says by name.  One that
    returns a text has a remark, which is shown.
    ``render`` returns all metrics, of other processes, too; it never raises.
    """

    def __init__(
        self,
        checks: Mapping[str, Callable[[], Awaitable[object]]],
        render: Callable[[], Awaitable[bytes]] = _render,
    ) -> None:
        self._checks = checks
        self._render = render

    def body_limit(self, _head: Head) -> int:
        """No path takes a body."""
        return 0

    def too_large(self, _head: Head) -> Response:
        """Say so."""
        return Response(413, TEXT, b"no path takes a body\n")

    async def admit(self, _head: Head) -> Release | Response:
        """Nothing to decide."""
        return lambda: None

    async def handle(self, head: Head, _body: Body) -> Response:
        """Answer a request; never raises."""
        if head.method not in {"GET", "HEAD"}:
            return Response(405, (("Allow", "GET, HEAD"),))
        match head.path:
            case "/metrics":
                return Response(200, TEXT, await self._render())
            case "/healthz":
                return Response(200, JSON, b'{"status":"ok"}')
            case "/readyz":
                return await self._ready()
            case _:
                return Response(404, TEXT, b"not found\n")

    async def _ready(self) -> Response:
        names = list(self._checks)
        results = await asyncio.gather(*(self._check(name) for name in names))
        ready = all(result.partition(",")[0] == OK for result in results)
        status = OK if ready else "unavailable"
        checks = dict(zip(names, results, strict=True))
        body = orjson.dumps({"status": status, "checks": checks})
        return Response(200 if ready else 503, JSON, body)

    async def _check(self, name: str) -> str:
        try:
            async with asyncio.timeout(PATIENCE):
                remark = await self._checks[name]()
        except TimeoutError:
            return "no answer in time"
        except MailError as error:
            return error.text
        except Exception:
            log.exception("readiness-check-failed", check=name)
            return "failed"
        return f"{OK}, {remark}" if isinstance(remark, str) and remark else OK

"""Processing of a request: its calls in order, their results, their errors.

RFC 8620 section 3: a failed call does not stop the next one, and nothing but the
error's own text reaches the client.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mailserverd.core import metrics
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from protocols.jmap.budget import Share, Site
from protocols.jmap.method import Context, Method
from protocols.jmap.wire import arguments, ijson, references, request
from protocols.jmap.wire.errors import MethodError, RequestError, method_error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from auth.people.authenticate import Principal
    from protocols.jmap.services import Services
    from protocols.jmap.session import Sessions

log = get_logger("jmap")


class Api:
    """Runs requests of any transport against the registered methods."""

    def __init__(
        self, services: Services, sessions: Sessions, methods: Iterable[Method]
    ) -> None:
        self._services = services
        self._sessions = sessions
        self._methods = {method.name: method for method in methods}
        self._limits = services.settings.limits
        self._heavy = asyncio.Semaphore(1)
        self._site = Site(self._limits.max_responses)

    def share(self) -> Share:
        """Return room for one answer; close it when the client has read it."""
        return Share(self._site, self._limits.max_response)

    async def parse(self, data: bytes) -> Any:
        """Parse a document; large ones off the loop.  RequestError when it is none."""
        if len(data) > ijson.BIG:
            return await self._services.offload(ijson.loads, data)
        return ijson.loads(data)

    async def run(
        self, principal: Principal, document: Any, share: Share
    ) -> dict[str, Any]:
        """Run a Request; returns the Response object, encoded with ``ijson.dumps``.

        Raises RequestError when the request as a whole is refused.
        """
        wanted = request.parse(document, self._limits.max_calls_in_request)
        unknown = wanted.using - self._sessions.capabilities
        if unknown:
            names = ", ".join(sorted(unknown))
            raise RequestError("unknownCapability", f"not supported here: {names}")
        context = Context(
            self._services,
            principal,
            dict(wanted.created_ids or {}),
            self._heavy,
            share=share,
        )
        for call in wanted.calls:
            await self._call(context, wanted.using, call)
        response: dict[str, Any] = {
            "methodResponses": [
                (r.name, r.arguments, r.call_id) for r in context.responses
            ],
            "sessionState": self._sessions.state(principal),
        }
        if wanted.created_ids is not None:
            response["createdIds"] = context.created_ids
        return response

    async def _call(
        self, context: Context, using: frozenset[str], call: request.Invocation
    ) -> None:
        pending = [(call.name, call.arguments)]
        while pending:
            name, args = pending.pop(0)
            context.following = []
            result = await self._answer(context, using, name, args)
            context.responses.append(request.Invocation(*result, call.call_id))
            pending += context.following

    async def _answer(
        self, context: Context, using: frozenset[str], name: str, args: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        method = self._methods.get(name)
        if method is None or method.capability not in using:
            return self._refused("unknown", MethodError("unknownMethod"))
        try:
            metrics.REQUESTS.labels("jmap", name).inc()
            found = references.resolve(args, context.responses, context.spend)
            if method.takes is not None:
                found = arguments.parse(method.takes, found)
            return name, await method.run(context, found)
        except MethodError as error:
            return self._refused(name, error)
        except MailError as error:
            if error.kind is Kind.INTERNAL:
                log.exception("method-failed", method=name)
            return self._refused(name, method_error(error))
        except Exception:
            log.exception("method-failed", method=name, user=context.principal.address)
            return self._refused(
                name, MethodError("serverFail", "an internal error; it was logged")
            )

    @staticmethod
    def _refused(name: str, error: MethodError) -> tuple[str, dict[str, Any]]:
        metrics.ERRORS.labels("jmap", error.kind).inc()
        log.debug("method-refused", method=name, kind=error.kind)
        return "error", error.arguments()

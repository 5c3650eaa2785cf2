"""A JMAP server in the process: real services, requests without a socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from mailserverd.services.identities import Identities
from mailserverd.services.search import Search
from mailserverd.services.submission import Submission
from mailserverd.services.submissions import Submissions
from protocols.jmap.services import CORE, MAIL, SUBMISSION, Services, Settings
from protocols.jmap.site import JmapSite
from protocols.web import Body, Head
from storage.cache.memory import MemoryCache
from storage.model import Flags
from tests.lib.mailhost import PASSWORD, mail_host, offload

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Callable

    from mailserverd.core.types import Access
    from protocols.web import Response
    from tests.lib.mailhost import MailHost

ALICE = "alice@example.org"
USING = [CORE, MAIL, SUBMISSION]
ARRIVED = 1_800_000_000


def basic(user: str = ALICE, password: str = PASSWORD) -> str:
    """Return the value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclasses.dataclass(slots=True)
class Jmap:
    """Alice's account over JMAP."""

    host: MailHost
    services: Services
    site: JmapSite
    access: Access
    roles: dict[str, str]  # role -> Mailbox id
    user: str = ALICE

    @property
    def account(self) -> str:
        """The account's id."""
        return f"a{self.access.account}"

    async def http(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> Response:
        """Send one HTTP request; header names with underscores for dashes."""
        given = {"authorization": basic(self.user), "host": "mail.example.org"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        place, _, query = path.partition("?")
        head = Head(method, place, query, given, peer="127.0.0.1", secure=True)
        answer = await self.site.handle(head, Body(body, None, len(body)))
        if answer.done is not None:
            answer.done()
        return answer

    async def post(self, document: Any, **more: Any) -> dict[str, Any]:
        """Send a Request as it stands; returns the Response."""
        answer = await self.http(
            "POST",
            "/jmap/api",
            json.dumps(document | more).encode(),
            content_type="application/json",
        )
        assert answer.status == 200, answer.body
        found: dict[str, Any] = json.loads(answer.body)
        return found

    async def calls(self, *calls: list[Any]) -> list[list[Any]]:
        """Make method calls [name, arguments, id]; the account id is filled in."""
        full = [
            [name, {"accountId": self.account} | args, call_id]
            for name, args, call_id in calls
        ]
        response = await self.post({"using": USING, "methodCalls": full})
        found: list[list[Any]] = response["methodResponses"]
        return found

    async def call(self, name: str, **args: Any) -> dict[str, Any]:
        """Make one call that succeeds; returns the response's arguments."""
        [[answered, result, _], *_] = await self.calls([name, args, "c"])
        assert answered == name, result
        found: dict[str, Any] = result
        return found

    async def fails(self, name: str, **args: Any) -> dict[str, Any]:
        """Make one call that fails; returns the error."""
        [[answered, result, _]] = await self.calls([name, args, "c"])
        assert answered == "error", result
        found: dict[str, Any] = result
        return found

    async def get(self, email_id: str, *properties: str, **args: Any) -> dict[str, Any]:
        """Return one email."""
        result = await self.call(
            "Email/get", ids=[email_id], properties=list(properties) or None, **args
        )
        [found] = result["list"]
        email: dict[str, Any] = found
        return email

    async def add(
        self, raw: bytes | str, role: str = "inbox", at: int = ARRIVED, **flags: Any
    ) -> str:
        """Put a message into a mailbox; returns its Email id."""
        octets = raw if isinstance(raw, bytes) else raw.replace("\n", "\r\n").encode()
        box = int(self.roles[role][1:])
        added = await self.host.receive.store_message(
            self.access, octets, (box,), Flags(**flags), at
        )
        return f"e{added.email_id}"

    async def upload(self, data: bytes, media_type: str = "text/plain") -> str:
        """Upload; returns the blob id."""
        answer = await self.http(
            "POST", f"/jmap/upload/{self.account}", data, content_type=media_type
        )
        assert answer.status == 201, answer.body
        found: str = json.loads(answer.body)["blobId"]
        return found

    async def draft(self, **properties: Any) -> dict[str, Any]:
        """Create a draft; returns what the server set."""
        given = {"mailboxIds": {self.roles["drafts"]: True}} | properties
        result = await self.call("Email/set", create={"k": given})
        assert result["created"], result["notCreated"]
        created: dict[str, Any] = result["created"]["k"]
        return created

    async def refused(self, **properties: Any) -> dict[str, Any]:
        """Try to create a draft; returns the SetError."""
        given = {"mailboxIds": {self.roles["drafts"]: True}} | properties
        result = await self.call("Email/set", create={"k": given})
        assert result["created"] is None, result
        error: dict[str, Any] = result["notCreated"]["k"]
        return error


class NoIndex:
    """An index that is down: texts are looked at one by one."""

    async def search(self, *_: object) -> Any:
        """Fail as an engine does."""
        raise MailError(Kind.UNAVAILABLE, "no index here")


def services_of(host: MailHost, settings: Settings | None = None) -> Services:
    """Return what JMAP needs, from a mail host."""
    return Services(
        search=Search(host.shards, NoIndex(), host.messages, offload),
        mailboxes=host.mailboxes,
        messages=host.messages,
        identities=Identities(host.shards, host.changes),
        submissions=Submissions(host.shards, host.changes),
        receive=host.receive,
        submission=Submission(host.receive),
        authenticator=host.authenticator,
        directory=host.directory,
        changes=host.changes,
        offload=offload,
        clock=host.clock,
        cache=MemoryCache(),
        settings=settings or Settings(hostname="mx.example.org"),
    )


@contextlib.asynccontextmanager
async def jmap(
    path: pathlib.Path, settings: Settings | None = None, **how: Any
) -> AsyncIterator[Jmap]:
    """Open a mail host with alice@ and bob@, and speak JMAP as Alice."""
    async with mail_host(path, **how) as host:
        services = services_of(host, settings)
        access = await host.account(ALICE)
        listed = await host.mailboxes.list(access)
        roles = {box.role: f"m{box.mailbox_id}" for box in listed.mailboxes if box.role}
        yield Jmap(host, services, JmapSite(services), access, roles)


def with_jmap(**how: Any) -> Callable[[Any], Callable[[pathlib.Path], None]]:
    """Make a test of a coroutine function that takes a Jmap."""

    def decorate(test: Any) -> Callable[[pathlib.Path], None]:
        @functools.wraps(test)
        def run(tmp_path: pathlib.Path) -> None:
            async def whole() -> None:
                async with jmap(tmp_path, **how) as client:
                    await test(client)

            asyncio.run(whole())

        del run.__wrapped__  # pytest would take its parameters for fixtures
        return run

    return decorate


def message(subject: str = "Hello", **fields: str) -> str:
    """Return a small message; fields by name with underscores for dashes."""
    given = {"From": "Bob <bob@example.net>", "To": ALICE, "Subject": subject}
    given |= {name.replace("_", "-"): value for name, value in fields.items()}
    body = given.pop("body", "Some text.\n")
    return "".join(f"{name}: {value}\n" for name, value in given.items()) + "\n" + body

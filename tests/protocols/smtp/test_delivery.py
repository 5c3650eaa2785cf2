"""Delivering to servers that are polite, limited, broken or hostile."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller

from mailserverd.core.types import BodyType, Envelope, Recipient
from mailserverd.net.smtp_out import TcpConnector
from mailserverd.services.relay import HostFailed, Outbound, Said, TlsFailed
from mailserverd.services.routes import Host
from protocols.smtp.delivery import SmtpConversation, SmtpDialer, Timeouts
from tests.lib.sink import CLOSE, SILENT, Sink
from tests.lib.smtpsite import server_context

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Awaitable, Callable

MESSAGE = b"Subject: hi\r\n\r\n.dot\r\n..\r\nend\r\n"
FAST = Timeouts(connect=5, greeting=1, command=1, data=1, block=5, end=1)
ALL = ("PIPELINING", "8BITMIME", "SIZE 1000000", "SMTPUTF8", "DSN")


def outbound(
    *to: str | Recipient, message: bytes = MESSAGE, pieces: int = 1000, **how: Any
) -> Outbound:
    """Return a message from s@ to the recipients, read in pieces."""

    async def content() -> AsyncIterator[bytes]:
        for start in range(0, len(message), pieces):
            yield message[start : start + pieces]

    recipients = tuple(r if isinstance(r, Recipient) else Recipient(r) for r in to)
    eight_bit = not message.isascii()
    body = BodyType.EIGHT_BIT if eight_bit else BodyType.SEVEN_BIT
    envelope = Envelope("s@example.org", recipients, body=body, **how)
    return Outbound(envelope, len(message), eight_bit, content)


async def dial(sink: Sink, *, tls: bool = True) -> SmtpConversation:
    dialer = SmtpDialer(TcpConnector(), "mx.example.org", FAST)
    sink.dialers.append(dialer)
    return await dialer.dial(Host("sink.example", sink.host, sink.port), tls=tls)


def run(sink: Sink, steps: Callable[[Sink], Awaitable[None]]) -> None:
    async def main() -> None:
        async with sink:
            await steps(sink)
            for dialer in sink.dialers:
                await dialer.close()

    asyncio.run(main())


def codes(said: tuple[Said, ...]) -> list[int]:
    return [one.code for one in said]


@pytest.mark.parametrize("features", [ALL, ("SIZE",), ()])
@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_the_message_arrives_as_it_was(features: tuple[str, ...], pieces: int) -> None:
    async def steps(sink: Sink) -> None:
        conversation = await dial(sink)
        for _ in range(3):  # over one connection
            message = outbound("a@example.com", "b@example.com", pieces=pieces)
            said = await conversation.deliver(message)
            assert codes(said) == [250, 250]
        conversation.close()
        stuffed = MESSAGE.replace(b"\n.", b"\n..")
        assert [t.data for t in sink.taken] == [stuffed] * 3
        assert sink.connections == 1
        assert "RSET" not in sink.commands

    run(Sink(*features), steps)


def test_a_message_without_final_line_end_gets_one() -> None:
    async def steps(sink: Sink) -> None:
        conversation = await dial(sink)
        await conversation.deliver(outbound("a@example.com", message=b"A: b\r\n\r\nx"))
        assert sink.taken[0].data == b"A: b\r\n\r\nx\r\n"
        conversation.close()

    run(Sink(*ALL), steps)


def test_aiosmtpd_takes_it(tmp_path: pathlib.Path) -> None:
    class Handler:
        async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
            got.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
            return "250 2.0.0 kept"

    got: list[Any] = []
    context = server_context(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(
        Handler(), hostname="127.0.0.1", port=port, tls_context=context
    )

    async def steps() -> None:
        host = Host("peer.example", "127.0.0.1", port)
        dialer = SmtpDialer(TcpConnector(), "mx.example.org", FAST)
        conversation = await dialer.dial(host, tls=True)
        assert conversation.tls.startswith("TLSv1.3 ")
        said = await conversation.deliver(outbound("a@example.com"))
        assert said == (Said(250, "2.0.0", "kept", "peer.example"),)
        conversation.close()
        await dialer.close()

    controller.start()
    try:
        asyncio.run(steps())
    finally:
        controller.stop()
    assert got == [("s@example.org", ["a@example.com"], MESSAGE)]


def test_a_group_goes_out_at_once_where_it_may() -> None:
    async def steps(sink: Sink) -> None:
        # No RCPT is answered before DATA was read: without pipelining this ends in
        # a time-out.
        conversation = await dial(sink)
        said = await conversation.deliver(outbound("a@example.com", "b@example.com"))
        assert codes(said) == [250, 550]
        assert sink.taken[0].rcpt == ["RCPT TO:<a@example.com>"]
        conversation.close()

    run(Sink(*ALL, answers={"RCPT": ["250 ok", "550 5.1.1 no"]}), steps)


@pytest.mark.parametrize("features", [("PIPELINING",), ()])
@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"MAIL": "550 5.7.1 no"}, [550, 550]),
        ({"MAIL": "451 later"}, [451, 451]),
        ({"RCPT": ["250 ok", "450 4.2.0 busy"]}, [250, 450]),
        ({"RCPT": "550 5.1.1 no"}, [550, 550]),
        ({"RCPT": "550 5.1.1 no", "DATA": "354 go"}, [550, 550]),
        ({"DATA": "451 4.3.0 full"}, [451, 451]),
        ({"RCPT": ["250 ok", "550 no"], "DATA": "554 no"}, [554, 550]),
        ({".": "554 5.6.0 spam"}, [554, 554]),
        ({".": "452 4.3.1 full"}, [452, 452]),
        ({".": CLOSE}, [451, 451]),
        ({"RCPT": ["250 ok", "421 4.3.2 bye"]}, [451, 421]),
        ({"MAIL": "421 4.3.2 bye"}, [421, 421]),
    ],
)
def test_what_is_said_of_whom(
    features: tuple[str, ...], answers: dict[str, Any], expected: list[int]
) -> None:
    async def steps(sink: Sink) -> None:
        conversation = await dial(sink)
        said = await conversation.deliver(outbound("a@example.com", "b@example.com"))
        assert codes(said) == expected
        if conversation.usable:  # and the connection is fit for another message
            sink.answers.clear()
            said = await conversation.deliver(outbound("c@example.com"))
            assert codes(said) == [250]
            assert sink.taken[-1].rcpt == ["RCPT TO:<c@example.com>"]
        conversation.close()

    copied = {k: list(v) if isinstance(v, list) else v for k, v in answers.items()}
    run(Sink(*features, answers=copied), steps)


def test_recipients_put_off_get_a_transaction_of_their_own() -> None:
    async def steps(sink: Sink) -> None:
        sink.answers["RCPT"] = ["250 ok", "250 ok", "452 4.5.3 too many", "250 ok"]
        conversation = await dial(sink)
        to = ["a@example.com", "b@example.com", "c@example.com"]
        said = await conversation.deliver(outbound(*to))
        assert codes(said) == [250, 250, 250]
        assert [len(t.rcpt) for t in sink.taken] == [2, 1]
        conversation.close()

    run(Sink(*ALL), steps)


def test_parameters_only_where_they_are_understood() -> None:
    recipient = Recipient("a@example.com", ("SUCCESS", "DELAY"), "rfc822;a+40b")

    async def steps(sink: Sink) -> None:
        conversation = await dial(sink)
        message = outbound(
            recipient,
            message=b"S: \xc3\xbc\r\n\r\n",
            ret="HDRS",
            envid="x+2B",
            smtputf8=True,
        )
        (said,) = await conversation.deliver(message)
        assert said.dsn
        taken = sink.taken[0]
        assert taken.mail == (
            "MAIL FROM:<s@example.org> SIZE=9 BODY=8BITMIME SMTPUTF8"
            " RET=HDRS ENVID=x+2B"
        )
        assert taken.rcpt == [
            "RCPT TO:<a@example.com> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+40b"
        ]
        conversation.close()

    run(Sink(*ALL), steps)


@pytest.mark.parametrize(
    ("features", "orcpt"),
    [(ALL, "utf-8;ü\\x{2B}@x"), (("DSN",), "utf-8;\\x{FC}\\x{2B}@x")],
)
def test_utf8_in_orcpt_only_where_it_is_understood(
    features: tuple[str, ...], orcpt: str
) -> None:
    """RFC 6533 section 3."""
    recipient = Recipient("a@example.com", orcpt="utf-8;ü\\x{2B}@x")

    async def steps(sink: Sink) -> None:
        conversation = await dial(sink)
        await conversation.deliver(outbound(recipient))
        assert sink.taken[0].rcpt == [f"RCPT TO:<a@example.com> ORCPT={orcpt}"]
        conversation.close()

    run(Sink(*features), steps)


@pytest.mark.parametrize(
    ("features", "how", "status"),
    [
        (("8BITMIME",), {"smtputf8": True}, "5.6.7"),
        (("SMTPUTF8",), {"message": b"\xff\r\n"}, "5.6.3"),
        (("SIZE 10", "8BITMIME"), {}, "5.3.4"),
    ],
)
def test_what_the_server_cannot_take_is_not_sent(
    features: tuple[str, ...], how: dict[str, Any], status: str
) -> None:
    async def steps(sink: Sink) -> None:
        conversation = await dial(sink)
        (said,) = await conversation.deliver(outbound("a@example.com", **how))
        assert said.permanent
        assert said.status == status
        assert not any(line.startswith("MAIL") for line in sink.commands)
        conversation.close()

    run(Sink(*features), steps)


@pytest.mark.parametrize(
    "answers",
    [
        {"": "554 go away"},
        {"": "421 busy"},
        {"": CLOSE},
        {"": SILENT},
        {"": "hello"},
        {"": "220-" + "x" * 5000},
        {"": "\r\n".join(["220-x"] * 500)},
        {"": "220 hi\r\n220 again"},
        {"EHLO": "550 no", "HELO": "550 no"},
        {"EHLO": CLOSE},
    ],
)
def test_a_host_that_does_not_want_us(answers: dict[str, Any]) -> None:
    async def steps(sink: Sink) -> None:
        with pytest.raises(HostFailed) as caught:
            await dial(sink)
        assert not caught.value.said.permanent

    run(Sink(answers=answers), steps)


def test_helo_where_ehlo_is_unknown() -> None:
    async def steps(sink: Sink) -> None:
        conversation = await dial(sink)
        assert codes(await conversation.deliver(outbound("a@example.com"))) == [250]
        assert sink.commands[1] == "HELO mx.example.org"
        conversation.close()

    run(Sink(*ALL, answers={"EHLO": "502 what?"}), steps)


def test_tls_is_taken_where_it_is_offered(tmp_path: pathlib.Path) -> None:
    async def steps(sink: Sink) -> None:
        conversation = await dial(sink)
        await conversation.deliver(outbound("a@example.com"))
        assert sink.taken[0].tls
        assert sink.commands.count("EHLO mx.example.org") == 2
        assert "unverified" in conversation.tls
        conversation.close()
        plain = await dial(sink, tls=False)
        await plain.deliver(outbound("a@example.com"))
        assert not sink.taken[1].tls
        plain.close()

    run(Sink(*ALL, "STARTTLS", context=server_context(tmp_path)), steps)


def test_tls_that_fails_says_so() -> None:
    async def steps(sink: Sink) -> None:
        with pytest.raises(TlsFailed):
            await dial(sink)
        sink.answers["STARTTLS"] = "454 not now"
        conversation = await dial(sink)
        assert codes(await conversation.deliver(outbound("a@example.com"))) == [250]
        conversation.close()

    run(Sink(*ALL, "STARTTLS"), steps)


def test_plain_text_injected_before_tls_is_noticed(tmp_path: pathlib.Path) -> None:
    async def steps(_: Sink) -> None:
        with pytest.raises(HostFailed):
            await dial(_)

    answers: dict[str, Any] = {"STARTTLS": "220 go\r\n250 injected"}
    context = server_context(tmp_path)
    run(Sink(*ALL, "STARTTLS", answers=answers, context=context), steps)


def test_silence_is_limited() -> None:
    async def steps(sink: Sink) -> None:
        conversation = await dial(sink)
        with pytest.raises(HostFailed):
            await conversation.deliver(outbound("a@example.com"))
        assert not conversation.usable
        conversation.close()

    run(Sink(*ALL, answers={"MAIL": SILENT}), steps)


def test_the_reason_for_hanging_up_is_heard() -> None:
    large = b"x" * 998 + b"\r\n"

    async def steps(sink: Sink) -> None:
        conversation = await dial(sink)
        message = outbound("a@example.com", message=large * 20_000, pieces=100_000)
        (said,) = await conversation.deliver(message)
        assert said.code in {552, 451}  # a reset may overtake the reply
        assert sink.taken == []
        conversation.close()

    run(Sink("PIPELINING", answers={"early": "552 5.3.4 too large"}), steps)


def test_nobody_there() -> None:
    async def main() -> None:
        sink = Sink()
        async with sink:
            pass
        with pytest.raises(HostFailed) as caught:
            await dial(sink)
        assert caught.value.said.status == "4.4.1"

    asyncio.run(main())

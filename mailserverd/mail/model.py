"""What parsing a message once yields: everything that reading it later needs.

``mime.parse`` fills a ``ParsedMessage`` from the raw bytes at arrival; storage
keeps it beside the row, so that no read path parses MIME again.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One MIME entity, with byte offsets into the raw message.

    ``section`` is the IMAP part number ("" for the message itself, "1.2" for a
    nested one); multiparts have one too, so that ``BODY[2.MIME]`` works.  For a
    single-part message the root is "" and its body is also section "1".
    Offsets are half-open: the header block is raw[header_start:body_start]
    (blank line included) and the body raw[body_start:body_end].
    """

    section: str
    parent: int  # index of the enclosing part in the table; -1 for the root
    type: str  # lower case: "text"
    subtype: str  # lower case: "plain"
    params: tuple[tuple[str, str], ...]  # names lower case, RFC 2231 decoded
    encoding: str  # lower case content-transfer-encoding, "7bit" when absent
    disposition: str  # lower case, "" when absent
    disposition_params: tuple[tuple[str, str], ...]
    content_id: str  # with angle brackets as it stands, "" when absent
    description: str
    language: tuple[str, ...]
    location: str
    md5: str
    header_start: int
    body_start: int
    body_end: int
    lines: int  # of the body
    envelope: bytes  # IMAP wire; only for message/rfc822 and message/global
    nested: bool  # True for the root of an enclosed message

    @property
    def size(self) -> int:
        """Octets of the body as transferred (still encoded)."""
        return self.body_end - self.body_start

    def param(self, name: str) -> str:
        """Return a Content-Type parameter, or "" when absent."""
        return next((v for k, v in self.params if k == name), "")

    @property
    def filename(self) -> str:
        """The name to save under: disposition first (RFC 2183), then name=."""
        named = next((v for k, v in self.disposition_params if k == "filename"), "")
        return named or self.param("name")


@dataclasses.dataclass(frozen=True, slots=True)
class ParsedMessage:
    """What is stored beside the email row.

    ``envelope`` and ``bodystructure`` are complete IMAP wire values
    (parentheses included, RFC 9051 section 7.5.2), valid syntax for any input.
    ``list_json`` is a JSON object with the JMAP properties that lists show
    (RFC 8621 section 4.1): messageId inReplyTo references sender from to cc bcc
    replyTo subject sentAt hasAttachment preview.
    ``part_table`` encodes ``parts`` (see ``mime.load_parts``).
    """

    size: int
    header_size: int  # octets up to and including the blank line
    envelope: bytes
    bodystructure: bytes
    list_json: bytes
    part_table: bytes
    parts: tuple[Part, ...]
    sent_at: int | None  # seconds since the epoch, from Date
    message_id: str  # without angle brackets, "" when absent
    thread_keys: tuple[bytes, ...]  # normalised ids of this message and its ancestors
    base_subject: str  # RFC 5256 section 2.1
    sort_from: str  # first From: display name or address, folded for sorting
    sort_to: str
    has_attachment: bool
    search_headers: str  # from/to/cc/bcc/subject decoded, one "name: value" a line
    search_text: str  # text of the body parts, decoded; bounded (1 MiB)

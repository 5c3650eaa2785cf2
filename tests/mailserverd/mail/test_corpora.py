"""Real and malformed messages of other parsers' test data, and their structures.

Skipped where ``../shared/corpora`` is absent.
"""

from __future__ import annotations

import email
import json
import pathlib
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.mail import mime
from tests.lib.mail_checks import check_parsed

if TYPE_CHECKING:
    from email.message import Message

    from mailserverd.mail.model import Part

CORPORA = pathlib.Path(__file__).parents[4] / "shared/corpora/mime"
pytestmark = pytest.mark.skipif(
    not CORPORA.is_dir(), reason="the shared corpora are not beside this project"
)

# What we do on purpose, or what the other side's expectation leaves out.
PREFIX = "a delimiter needs its whole boundary alone or before white space"
EMPTY = "they do not list parts without content"
TEXT = "a multipart without parts is text, so that people can read it"
ENCODED = "an encoded message/rfc822 is not walked into: offsets need plain octets"
SPACE = "white space that ends a boundary or its line is ignored"
FIRST = "the first Content-Type counts where a field is repeated"
OUTER = "an outer boundary ends the parts inside it"
INVALID = "a message/rfc822 part stays one even if it holds plain text"
START = "a delimiter starts a line"
HEADER = "lines after the last field are already the body"
XML = "the expected structure is no well-formed XML"

STALWART_DIFFERENCES = {
    "legacy/049": "they leave out the very last octet",
    "malformed/000": EMPTY,
    "malformed/001": PREFIX,
    "malformed/004": PREFIX,
    "malformed/005": PREFIX,
    "malformed/007": PREFIX,
    "malformed/008": OUTER,
    "malformed/009": OUTER,
    "malformed/011": OUTER,
    "malformed/012": OUTER,
    "malformed/016": OUTER,
    "malformed/019": HEADER,
    "malformed/020": FIRST,
    "malformed/021": FIRST,
    "malformed/022": INVALID,
    "rfc/008": ENCODED,
    "thirdparty/005": START,
    "thirdparty/015": OUTER,
}
MIME4J_DIFFERENCES = {
    "2002_06_12_doublebound": XML,
    "twopart": XML,
    "multi-2gifs-base64": ENCODED,
    "bad-newlines-multiple-parts-base64": ENCODED,
    "base64encoded-rfc822message": ENCODED,
    "base64encoded-rfc822message-nested": ENCODED,
    "very-long-boundary": SPACE,
    "very-very-long-boundary": SPACE,
    "weird-boundary": SPACE,
}
CPYTHON_DIFFERENCES = {
    "msg_15.txt": "equal boundaries of nested multiparts nest",
    "msg_17.txt": TEXT,
    "msg_25.txt": TEXT,
    "msg_31.txt": TEXT,
    "msg_37.txt": "every delimiter starts a part, if an empty one",
    "msg_39.txt": "equal boundaries of nested multiparts nest",
    "msg_41.txt": TEXT,
    "msg_42.txt": TEXT,
}
MIKEL_DIFFERENCES = {
    "attachment_message_rfc822_inline_image.eml": TEXT,
    "bad_date_header2.eml": TEXT,
    "empty_in_reply_to.eml": TEXT,
    "missing_body.eml": TEXT,
    "must_supply_encoding.eml": TEXT,
}


def files(pattern: str) -> list[pathlib.Path]:
    return sorted(path for path in CORPORA.glob(pattern) if path.is_file())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("folder", sorted(p.name for p in CORPORA.glob("*")))
def test_every_file_survives(folder: str) -> None:
    """As it is, with CRLF and with LF line ends."""
    found = files(f"{folder}/**/*")
    assert found
    for path in found:
        raw = path.read_bytes()
        lines = raw.replace(b"\r\n", b"\n")
        for variant in {raw, lines, lines.replace(b"\n", b"\r\n")}:
            try:
                check_parsed(variant)
            except Exception as error:
                raise AssertionError(path) from error


def children(parts: tuple[Part, ...], index: int) -> list[int]:
    return [i for i, part in enumerate(parts) if part.parent == index]


# --- Stalwart's mail-parser: structure and offsets ---------------------------------


def stalwart_tree(message: dict[str, Any], index: int = 0) -> object:
    part = message["parts"][index]
    kind, value = next(iter(part["body"].items()))
    inside: list[object] = []
    if kind == "Multipart":
        inside = [stalwart_tree(message, child) for child in value]
    elif kind == "Message":
        inside = [stalwart_tree(value)]
    return (part["offset_body"], part["offset_end"], inside)


def offset_tree(parts: tuple[Part, ...], index: int = 0) -> object:
    inside = [offset_tree(parts, child) for child in children(parts, index)]
    return (parts[index].body_start, parts[index].body_end, inside)


def test_structures_and_offsets_as_stalwart() -> None:
    base = CORPORA / "stalwart-mail-parser/resources/eml"
    differ = set()
    for path in files("stalwart-mail-parser/resources/eml/*/*.json"):
        name = f"{path.parent.name}/{path.name.partition('.')[0]}"
        raw = (base / f"{name}.eml").read_bytes().replace(b"\r\n", b"\n")
        if path.name.endswith(".crlf.json"):
            raw = raw.replace(b"\n", b"\r\n")
        expected = stalwart_tree(json.loads(path.read_bytes()))
        if offset_tree(mime.parse(raw).parts) != expected:
            differ.add(name)
    assert differ == STALWART_DIFFERENCES.keys()


# --- mime4j: structure ---------------------------------------------------------------


def mime4j_tree(element: ET.Element) -> object:
    for child in element:
        if child.tag == "multipart":
            return [mime4j_tree(part) for part in child if part.tag == "body-part"]
        if child.tag == "message":
            return [mime4j_tree(child)]
    return []


def shape(parts: tuple[Part, ...], index: int = 0) -> object:
    return [shape(parts, child) for child in children(parts, index)]


def test_structures_as_mime4j() -> None:
    differ = set()
    for path in files("mime4j/core/**/*.xml"):
        if "_decoded" in path.name:
            continue
        raw = path.with_suffix(".msg").read_bytes()
        try:
            expected = mime4j_tree(ET.parse(path).getroot())
        except ET.ParseError:
            expected = None
        if shape(mime.parse(raw).parts) != expected:
            differ.add(path.stem)
    assert differ == MIME4J_DIFFERENCES.keys()


# --- the standard library's parser: structure and types ------------------------------


def library_tree(message: Message[str, str]) -> object:
    kind = message.get_content_type()
    payload = message.get_payload()
    walked = kind.startswith("multipart/") or kind == "message/rfc822"
    inside = (
        [library_tree(part) for part in payload]
        if walked and isinstance(payload, list)
        else []
    )
    return (kind, inside)


def typed_tree(parts: tuple[Part, ...], index: int = 0) -> object:
    part = parts[index]
    inside = [typed_tree(parts, child) for child in children(parts, index)]
    return (f"{part.type}/{part.subtype}", inside)


@pytest.mark.parametrize(
    ("pattern", "known"),
    [
        ("cpython-test_email/**/*.txt", CPYTHON_DIFFERENCES),
        ("mikel-mail/**/*.eml", MIKEL_DIFFERENCES),
    ],
)
def test_structures_as_the_standard_library(
    pattern: str, known: dict[str, str]
) -> None:
    differ = set()
    for path in files(pattern):
        raw = path.read_bytes()
        expected = library_tree(email.message_from_bytes(raw))
        if typed_tree(mime.parse(raw).parts) != expected:
            differ.add(path.name)
    assert differ == known.keys()

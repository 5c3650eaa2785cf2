"""Charset labels as they come in the wild, decoded without ever failing.

Only names known beforehand reach the codec machinery: a look-up of a foreign
name imports modules and remembers every miss for ever.
"""

from __future__ import annotations

import functools
from encodings.aliases import aliases

# Codecs that are not character sets of mail, or that interpret their input.
_FORBIDDEN = frozenset(
    {
        "base64_codec",
        "bz2_codec",
        "hex_codec",
        "idna",
        "mbcs",
        "oem",
        "punycode",
        "quopri_codec",
        "raw_unicode_escape",
        "rot_13",
        "undefined",
        "unicode_escape",
        "uu_codec",
        "zlib_codec",
    }
)
_CODECS = frozenset(aliases.values()) | {
    "koi8_u",
    "koi8_t",
    "cp720",
    "cp737",
    "cp856",
    "cp874",
    "cp875",
    "cp1006",
    "iso8859_1",
    "utf_8",
    "utf_8_sig",
}
# Labels whose senders mean a superset (as https://encoding.spec.whatwg.org does).
_WILD = {
    "ascii": "us-ascii",
    "us_ascii": "us-ascii",
    "ansi_x3.4_1968": "us-ascii",
    "646": "us-ascii",
    "latin_1": "cp1252",
    "latin1": "cp1252",
    "iso_8859_1": "cp1252",
    "iso8859_1": "cp1252",
    "iso_8859_9": "cp1254",
    "iso8859_9": "cp1254",
    "iso_8859_8_i": "iso8859_8",
    "iso_8859_8_e": "iso8859_8",
    "iso_8859_6_i": "iso8859_6",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "x_gbk": "gb18030",
    "cn_gb": "gb18030",
    "chinesegb": "gb18030",
    "big5": "big5hkscs",
    "cn_big5": "big5hkscs",
    "x_x_big5": "big5hkscs",
    "ks_c_5601_1987": "cp949",
    "ks_c_5601": "cp949",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "shift_jisx0213": "shift_jisx0213",
    "x_sjis": "cp932",
    "sjis": "cp932",
    "iso_2022_jp": "iso2022_jp_ext",
    "iso_2022_jp_ms": "iso2022_jp_ext",
    "tis_620": "cp874",
    "iso_8859_11": "cp874",
    "windows_874": "cp874",
    "x_mac_roman": "mac_roman",
    "x_mac_cyrillic": "mac_cyrillic",
    "x_cp1250": "cp1250",
    "x_cp1251": "cp1251",
    "x_cp1252": "cp1252",
    "unicode_1_1_utf_7": "utf_7",
    "x_unicode_2_0_utf_7": "utf_7",
    "unicode_1_1_utf_8": "utf_8",
    "utf8mb4": "utf_8",
    "utf_8n": "utf_8",
}


@functools.lru_cache(maxsize=256)
def codec_of(charset: str) -> str:
    """Return the codec for a charset label, or "" when it is unknown."""
    name = charset.strip(" \t\r\n\"'").lower()
    if len(name) > 40 or not name.isascii():
        return ""
    name = name.partition("*")[0].replace("-", "_").replace(" ", "_")
    name = _WILD.get(name) or aliases.get(name.replace(".", "_"), name)
    name = _WILD.get(name, name)
    if name == "us-ascii":
        return "ascii"
    return name if name in _CODECS and name not in _FORBIDDEN else ""


def decode_charset(data: bytes, charset: str) -> tuple[str, bool]:
    """Decode ``data``; return the text and whether anything was wrong.

    Wrong is an unknown label, or octets that the charset does not know
    (``isEncodingProblem`` of RFC 8621 section 4.1.4).  The text never holds
    lone surrogates.
    """
    if data.isascii() and charset in {"utf-8", "us-ascii", "UTF-8", "US-ASCII", ""}:
        return data.decode("ascii"), False
    codec = codec_of(charset or "us-ascii")
    if codec in {"", "ascii"}:
        return guess(data), not codec or not data.isascii()
    try:
        text = data.decode(codec)
    except (UnicodeError, ValueError):
        return _without_surrogates(_decode_damaged(data, codec)), True
    if codec == "utf_7":
        text = _without_surrogates(text)
    return text.removeprefix("\ufeff"), False


def _decode_damaged(data: bytes, codec: str) -> str:
    if codec == "cp1252":  # five octets are undefined there, not in latin-1
        return data.decode("latin-1")
    return data.decode(codec, "replace").removeprefix("\ufeff")


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def guess(data: bytes) -> str:
    """Decode unlabelled octets: UTF-8, else what Windows calls Latin-1."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")

"""PatchObject (RFC 8620 section 5.3): which properties change, and to what."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from protocols.jmap.wire.errors import MethodError, SetError
from protocols.jmap.wire.references import unescape

if TYPE_CHECKING:
    from collections.abc import Mapping

Pointer = tuple[str, ...]
MAX_TOKENS = 32


def _invalid(reason: str) -> SetError:
    return SetError("invalidPatch", reason)


def split(patch: Mapping[str, Any]) -> dict[Pointer, Any]:
    """Take the pointers apart and refuse overlapping ones; raises ``invalidPatch``."""
    found: dict[Pointer, Any] = {}
    for name, value in patch.items():
        pointer = _pointer(name)
        if pointer in found:
            raise _invalid(f"{name!r} is patched twice")
        found[pointer] = value
    ordered = sorted(found)
    for before, after in itertools.pairwise(ordered):
        if after[: len(before)] == before:
            raise _invalid(f"{'/'.join(before)!r} is a prefix of {'/'.join(after)!r}")
    return found


def _pointer(name: str) -> Pointer:
    pieces = name.split("/")
    if len(pieces) > MAX_TOKENS:
        raise _invalid("the pointer is too long")
    try:
        return tuple(unescape(piece) for piece in pieces)
    except MethodError as error:
        raise _invalid(error.description) from error


def apply(current: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the top-level properties that the patch touches, with their new values.

    A null at the top stands for the default (the caller knows it); further in, it
    removes the member.  ``current`` is left as it is.
    """
    touched: dict[str, Any] = {}
    for pointer, value in split(patch).items():
        name = pointer[0]
        if len(pointer) == 1:
            touched[name] = value
            continue
        if name not in touched:
            touched[name] = _copy(current.get(name))
        _put(touched[name], pointer[1:], value)
    return touched


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value


def _put(target: Any, pointer: Pointer, value: Any) -> None:
    for token in pointer[:-1]:
        target = _member(target, token)
    if not isinstance(target, dict):
        raise _invalid(f"{pointer[-1]!r} does not point into an object")
    if value is None:
        target.pop(pointer[-1], None)
    else:
        target[pointer[-1]] = value


def _member(target: Any, token: str) -> Any:
    if not isinstance(target, dict) or token not in target:
        raise _invalid(f"there is no member {token!r}")
    return target[token]

"""Patches of emails (RFC 8621 section 4.6): keywords, mailboxes, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from protocols.jmap.wire import patch
from protocols.jmap.wire.arguments import Bad, id_set, keyword, keyword_set
from protocols.jmap.wire.errors import SetError, invalid_properties
from protocols.jmap.wire.ids import is_id
from storage.model import EmailPatch

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclasses.dataclass(slots=True)
class Update:
    """One email's patch, read: mailboxes are still ids as the client gave them."""

    add_keywords: list[str] = dataclasses.field(default_factory=list)
    remove_keywords: list[str] = dataclasses.field(default_factory=list)
    set_keywords: tuple[str, ...] | None = None
    add_mailboxes: list[str] = dataclasses.field(default_factory=list)
    remove_mailboxes: list[str] = dataclasses.field(default_factory=list)
    set_mailboxes: tuple[str, ...] | None = None
    others: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def mailboxes(self) -> set[str]:
        """Every mailbox that the email would come into."""
        return {*self.add_mailboxes, *(self.set_mailboxes or ())}

    def resolve(self, email_id: int, numbers: Mapping[str, int]) -> EmailPatch:
        """Return the patch in storage's terms.

        Mailboxes to leave that do not exist are nothing to leave.
        """
        left = (numbers.get(text) for text in self.remove_mailboxes)
        whole = self.set_mailboxes
        return EmailPatch(
            email_id,
            tuple(self.add_keywords),
            tuple(self.remove_keywords),
            self.set_keywords,
            tuple(numbers[text] for text in self.add_mailboxes),
            tuple(number for number in left if number is not None),
            None if whole is None else tuple(numbers[text] for text in whole),
        )


def read(given: dict[str, Any]) -> Update:
    """Read a PatchObject; ``invalidPatch``, or ``invalidProperties`` with all bad."""
    update = Update()
    wrong: list[str] = []
    for pointer, value in patch.split(given).items():
        name, rest = pointer[0], pointer[1:]
        try:
            if name == "keywords":
                _keywords(update, rest, value)
            elif name == "mailboxIds":
                _mailboxes(update, rest, value)
            elif rest:
                raise SetError("invalidPatch", f"{name} has nothing to patch inside")
            else:
                update.others[name] = value
        except Bad:
            wrong.append("/".join(pointer))
    if wrong:
        raise invalid_properties(wrong)
    return update


def _keywords(update: Update, rest: patch.Pointer, value: Any) -> None:
    match rest, value:
        case (), None:
            update.set_keywords = ()
        case (), _:
            update.set_keywords = keyword_set(value)
        case (word,), True:
            update.add_keywords.append(keyword(word))
        case (word,), None:
            update.remove_keywords.append(keyword(word))
        case (_,), _:
            raise Bad("true or null")
        case _:
            raise SetError("invalidPatch", "a keyword has nothing to patch inside")


def _mailboxes(update: Update, rest: patch.Pointer, value: Any) -> None:
    match rest, value:
        case (), _:
            update.set_mailboxes = id_set(value)
        case (text,), True if is_id(text.removeprefix("#")):
            update.add_mailboxes.append(text)
        case (text,), None:
            update.remove_mailboxes.append(text)
        case (_,), _:
            raise Bad("true or null")
        case _:
            raise SetError("invalidPatch", "a Mailbox id has nothing to patch inside")

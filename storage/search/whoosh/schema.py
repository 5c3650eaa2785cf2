"""How Whoosh 2.7.4 keeps the words of emails.  Imported by the worker alone.

One immutable document per email, no flags: a STORE or COPY never touches the index.
Nothing is scored, since order comes from SQL.  Whoosh supplies segments, deletions,
generations and atomic commits; the words themselves are in ``postings``.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from storage.search.whoosh.postings import WordsReader, WordsWriter
from storage.text import FIELDS, fields_of, words

with warnings.catch_warnings():
    # Whoosh 2.7.4 has invalid escapes in its strings, seen when it is compiled.
    warnings.simplefilter("ignore")
    from whoosh.codec.whoosh3 import W3Codec  # type: ignore[import-untyped]
    from whoosh.fields import STORED, Schema  # type: ignore[import-untyped]
    from whoosh.filedb.filestore import FileStorage  # type: ignore[import-untyped]
    from whoosh.filedb.structfile import StructFile  # type: ignore[import-untyped]
    from whoosh.index import (  # type: ignore[import-untyped]
        EmptyIndexError,
        FileIndex,
    )
    from whoosh.reading import SegmentReader  # type: ignore[import-untyped]
    from whoosh.util.filelock import try_for  # type: ignore[import-untyped]
    from whoosh.writing import SegmentWriter  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "LETTERS",
    "META",
    "SCHEMA",
    "EmailWriter",
    "EmptyIndexError",
    "FileIndex",
    "SyncedStorage",
    "try_for",
]

LAYOUT = 1  # raised when the schema or a format changes: indexes are then rebuilt
META = "meta"  # stored in the reserved document
NO_EMAIL = (1 << 64) - 1  # the "email" of a reserved document
LETTERS = {name: chr(ord("a") + at) for at, name in enumerate(FIELDS)}
SCHEMA = Schema(**{META: STORED()})
_WORDS = ".trm"
_SYNCED = (".seg", ".toc")
_MEMORY_MB = 1  # of Whoosh's own pool, which is not used


class WordsCodec(W3Codec):  # type: ignore[misc]
    """Whoosh's codec with our words file in the place of its terms and postings."""

    length_stats = False  # nothing is scored

    def field_writer(self, storage: Any, segment: Any) -> WordsWriter:
        """Return what writes a new segment's words."""
        return WordsWriter(segment.create_file(storage, _WORDS))

    def terms_reader(self, storage: Any, segment: Any) -> WordsReader:
        """Return what reads a segment's words."""
        length = storage.file_length(segment.make_filename(_WORDS))
        return WordsReader(segment.open_file(storage, _WORDS), length)


class EmailWriter(SegmentWriter):  # type: ignore[misc]
    """Writes one new segment: emails, the watermark, and what is merged into it."""

    fieldwriter: WordsWriter

    def __init__(self, index: Any) -> None:
        super().__init__(index, _lk=False, limitmb=_MEMORY_MB, codec=WordsCodec())
        self._readers: list[Any] = []

    def add_email(self, email: int, headers: str, body: str) -> None:
        """Add the words of a message."""
        fields = fields_of(headers, body)
        found = [(LETTERS[name], words(text)) for name, text in fields.items()]
        self._add(email, found, None)

    def add_reserved(self, meta: str) -> None:
        """Add a document that no search finds."""
        self._add(NO_EMAIL, (), meta)

    def _add(
        self, email: int, fields: Iterable[tuple[str, list[str]]], meta: str | None
    ) -> None:
        self._per_document(meta)
        self.fieldwriter.add_document(email, fields)

    def _per_document(self, meta: str | None) -> None:
        documents = self.perdocwriter
        documents.start_doc(self.docnum)
        if meta is not None:
            documents.add_field(META, self.schema[META], meta, 0)
        documents.finish_doc()
        self.docnum += 1
        self._added = True

    def add_segment(self, segment: Any) -> None:
        """Merge what is not deleted of another segment into this one."""
        reader = SegmentReader(self.storage, self.schema, segment)
        self._readers.append(reader)
        keep = list(reader.all_doc_ids())
        for number in keep:
            self._per_document(reader.stored_fields(number).get(META))
        self.fieldwriter.add_merged(words_of(reader), keep)

    def cancel(self) -> None:
        """Leave the index as it was."""
        self.fieldwriter.abandon()
        super().cancel()

    def _finish(self) -> None:
        super()._finish()
        for reader in self._readers:
            reader.close()


def words_of(reader: Any) -> WordsReader:
    """Return the words file of a segment's reader (Whoosh keeps it to itself)."""
    found: WordsReader = reader._terms
    return found


class SyncedStorage(FileStorage):  # type: ignore[misc]
    """Files that are on the medium before a table of contents names them.

    Whoosh itself never syncs: after a power cut its newest table of contents could
    name segments that hold nothing, and the watermark in them would be believed.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, supports_mmap=False)  # it would copy all into memory

    def create_file(self, name: str, **_: Any) -> Any:
        """Make a file; a segment or table of contents is synced when it is closed."""
        file = open(os.path.join(self.folder, name), "wb")  # noqa: SIM115 - closed by its user
        synced = any(mark in name for mark in _SYNCED)
        return StructFile(file, name=name, onclose=_sync if synced else None)

    def rename_file(self, oldname: str, newname: str, safe: bool = False) -> None:
        """Rename, durably."""
        super().rename_file(oldname, newname, safe)
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _sync(file: Any) -> None:
    file.file.flush()
    os.fsync(file.file.fileno())

"""The indexes on disk: damage, versions, strangers, failures, merging."""

import errno
import gc
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.search.whoosh import index as index_module
from storage.search.whoosh.index import Indexes
from storage.search.whoosh.merging import mergeable
from storage.search.whoosh.schema import SyncedStorage
from storage.text import And, pack, parse

ROOT = pathlib.Path(__file__).parents[4]
ALL = And(())


leaking = pytest.mark.filterwarnings(  # Whoosh leaves files open where it fails
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def notes():
    return []


@pytest.fixture
def indexes(tmp_path, notes):
    made = Indexes(
        str(tmp_path / "search"), lambda event, **facts: notes.append((event, facts))
    )
    yield made
    made.close()
    gc.collect()  # what Whoosh left open is reported here, not in a later test


def mail(number):
    return number, pack(f"subject: mail {number}", f"word{number} common text")


def add(indexes, first, last, removed=(), account=1):
    documents = [mail(number) for number in range(first, last + 1)]
    indexes.update(account, documents, removed, indexes.watermark(account), last)


def ids(indexes, query=ALL, account=1):
    return list(indexes.search(account, query)[0])


def files(tmp_path, account=1):
    place = tmp_path / "search" / str(account)
    return sorted(path for path in place.iterdir() if path.name != "MAIN_WRITELOCK")


# --- damage ---


@leaking
@pytest.mark.parametrize("damage", ["empty", "garbage", "half", "missing", "flipped"])
@pytest.mark.parametrize("kind", [".toc", ".seg"])
def test_what_cannot_be_read_is_put_aside_and_indexed_anew(
    tmp_path, indexes, notes, kind, damage
):
    add(indexes, 1, 300)
    indexes.close()
    (path,) = [path for path in files(tmp_path) if kind in path.name]
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "garbage": os.urandom(len(data)),
                "half": data[: len(data) // 2],
                "flipped": bytes([data[0] ^ 255]) + data[1:-40] + b"\xff" * 40,
            }[damage]
        )
    found, watermark = indexes.search(1, parse("text", "common"))
    assert (list(found), watermark) == ([], 0)
    if kind == ".toc" and damage == "missing":  # as if it had never been
        assert notes == []
    else:
        assert [event for event, _ in notes] == ["index-put-aside"]
        assert (tmp_path / "search" / "1.bad").is_dir()
    add(indexes, 1, 300)
    assert ids(indexes) == list(range(1, 301))


@leaking
def test_an_update_never_lands_in_an_index_made_anew(tmp_path, indexes):
    """Otherwise the watermark would claim what was lost."""
    add(indexes, 1, 50)
    indexes.close()
    for path in files(tmp_path):
        path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(MailError) as caught:
            indexes.update(1, [mail(51)], [], 50, 51)
        assert caught.value.kind is Kind.CONFLICT
    assert indexes.watermark(1) == 0
    add(indexes, 1, 51)
    assert ids(indexes) == list(range(1, 52))


@pytest.mark.parametrize("name", ["analyzer", "layout"])
def test_an_index_of_another_version_is_made_anew(monkeypatch, indexes, notes, name):
    add(indexes, 1, 5)
    current = index_module._VERSIONS
    monkeypatch.setattr(index_module, "_VERSIONS", current | {name: 999})
    with pytest.raises(MailError) as caught:
        indexes.update(1, [], [], 5, 6)
    assert caught.value.kind is Kind.CONFLICT
    indexes.close()
    assert indexes.watermark(1) == 0
    assert notes[0][1]["why"] == "made by another version"
    add(indexes, 1, 6)
    assert indexes.watermark(1) == 6


# --- strangers ---


def test_a_directory_that_others_may_write_is_never_opened(tmp_path, indexes):
    add(indexes, 1, 5)
    for place in (tmp_path / "search" / "1", tmp_path / "search"):
        for mode in (0o770, 0o707):
            place.chmod(mode)
            for call in (
                lambda: indexes.search(1, ALL),
                lambda: indexes.watermark(1),
                lambda: indexes.update(1, [], [], 5, 6),
            ):
                with pytest.raises(MailError) as caught:
                    call()
                assert caught.value.kind is Kind.UNAVAILABLE
        place.chmod(0o700)
    assert ids(indexes) == [1, 2, 3, 4, 5]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_directory_of_somebody_else_is_never_opened(tmp_path, indexes):
    add(indexes, 1, 5)
    os.chown(tmp_path / "search" / "1", 12345, 12345)
    with pytest.raises(MailError, match="somebody else"):
        indexes.search(1, ALL)
    assert (tmp_path / "search" / "1").exists()


def test_directories_are_private(tmp_path, indexes):
    add(indexes, 1, 1)
    for place in (tmp_path / "search", tmp_path / "search" / "1"):
        assert place.stat().st_mode & 0o777 == 0o700


# --- failures ---


@leaking
@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, Kind.STORAGE_FULL), (errno.EMFILE, Kind.UNAVAILABLE)],
)
@pytest.mark.parametrize("call", ["create_file", "rename_file"])
def test_a_commit_that_fails_leaves_the_index_and_gives_the_lock_back(
    monkeypatch, indexes, call, code, kind
):
    add(indexes, 1, 50)

    def fail(*_args, **_options):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(SyncedStorage, call, fail)
        with pytest.raises(MailError) as caught:
            indexes.update(1, [mail(51)], [1], 50, 51)
        assert caught.value.kind is kind
    assert indexes.watermark(1) == 50
    assert ids(indexes) == list(range(1, 51))
    indexes.update(1, [mail(51)], [1], 50, 51)
    assert ids(indexes) == list(range(2, 52))


def test_two_writers_take_turns(tmp_path, monkeypatch, indexes):
    monkeypatch.setattr(index_module, "LOCK_WAIT", 0.05)
    add(indexes, 1, 5)
    index = indexes._index(1)
    with indexes._locked(index):
        with pytest.raises(MailError) as caught:
            indexes.update(1, [mail(6)], [], 5, 6)
        assert caught.value.kind is Kind.UNAVAILABLE
        assert ids(indexes) == [1, 2, 3, 4, 5]
    indexes.update(1, [mail(6)], [], 5, 6)


def test_a_prefix_of_too_many_words_is_refused_not_cut(monkeypatch, indexes):
    monkeypatch.setattr("storage.search.whoosh.leaf.MAX_EXPANSION", 100)
    add(indexes, 1, 120)
    with pytest.raises(MailError) as caught:
        indexes.search(1, parse("text", "wo*"))
    assert caught.value.kind is Kind.LIMIT
    assert len(ids(indexes, parse("text", "word1*"))) == 32


# --- merging ---


def test_merging_keeps_answers_watermark_and_removals(tmp_path, indexes):
    for first in range(1, 400, 20):
        removed = [first - 3] if first > 20 else []
        add(indexes, first, first + 19, removed)
    before = ids(indexes), indexes.watermark(1), ids(indexes, parse("text", "word7*"))
    assert len([p for p in files(tmp_path) if p.suffix == ".seg"]) == 20
    while indexes.merge(1):
        pass
    assert len([p for p in files(tmp_path) if p.suffix == ".seg"]) == 1
    after = ids(indexes), indexes.watermark(1), ids(indexes, parse("text", "word7*"))
    assert after == before
    assert indexes.merge(1) is False
    assert indexes.merge(99) is False
    add(indexes, 401, 420, [400])
    assert ids(indexes) == [n for n in before[0] if n != 400] + list(range(401, 421))


def test_so_many_segments_that_an_update_merges_at_once(tmp_path, monkeypatch, indexes):
    monkeypatch.setattr(index_module, "MERGE_NOW", 10)
    for number in range(1, 41):
        add(indexes, number, number, [number - 5] if number % 7 == 0 else [])
    expected = [n for n in range(1, 41) if (n + 5) % 7]
    expected = sorted({*expected, *(n for n in range(1, 41) if n + 5 > 40)})
    assert ids(indexes) == expected
    assert ids(indexes, parse("text", "word40")) == [40]
    assert len([p for p in files(tmp_path) if p.suffix == ".seg"]) <= 11


class Segment:
    def __init__(self, count, deleted=0):
        self.count, self.deleted = count, deleted

    def doc_count(self):
        return self.count - self.deleted

    def doc_count_all(self):
        return self.count

    def deleted_count(self):
        return self.deleted


def test_segments_of_like_size_are_merged_and_large_ones_left():
    def sizes(*segments):
        return sorted(s.count for s in mergeable(list(segments)))

    small = [Segment(64) for _ in range(8)]
    assert sizes(*small[:7]) == []
    assert sizes(*small) == [64] * 8
    assert sizes(*small, Segment(9000)) == [64] * 8
    assert sizes(*small, Segment(500)) == [64] * 8 + [500]
    assert sizes(Segment(9000), Segment(70, 60)) == [70]
    assert sizes(*(Segment(49_000) for _ in range(20))) == []


def test_a_document_is_copied_about_once_per_doubling():
    segments, copied = [], 0
    for _ in range(2000):
        segments.append(Segment(64))
        chosen = mergeable(segments)
        if chosen:
            total = sum(s.count for s in chosen)
            copied += total
            segments = [s for s in segments if s not in chosen] + [Segment(total)]
        assert len(segments) < 24
    assert copied < 2000 * 64 * 10


# --- durability ---


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_files_are_synced_before_a_table_of_contents_names_them(tmp_path):
    code = (
        "import sys; from storage.search.whoosh.index import Indexes\n"
        "from storage.text import pack\n"
        "i = Indexes(sys.argv[1], print)\n"
        "i.update(1, [(1, pack('subject: x', 'y'))], [], 0, 5)\n"
    )
    trace = tmp_path / "trace"
    calls = "trace=openat,write,fsync,fdatasync,rename,close"
    place = tmp_path / "search"
    subprocess.run(
        [
            *("strace", "-f", "-y", "-e", calls, "-o", str(trace)),
            *(sys.executable, "-c", code, str(place)),
        ],
        check=True,
        cwd=ROOT,
    )
    dirty, renamed = set(), False
    for line in trace.read_text().splitlines():
        path = re.search(r"\d+<([^>]*/MAIN_[^>]*\.seg|[^>]*_MAIN_1\.toc[^>]*)>", line)
        if " write(" in line and path:
            dirty.add(path[1])
        elif " fsync(" in line and path:
            dirty.discard(path[1])
        elif " rename(" in line and "_MAIN_1.toc" in line:
            assert not dirty
            renamed = True
        elif " fsync(" in line and renamed and "/search/1>" in line:
            return
    pytest.fail("the table of contents was not renamed and made durable")


def test_kill_9_loses_no_update_that_was_answered(tmp_path):
    code = (
        "import sys, json; from storage.search.whoosh.index import Indexes\n"
        "from storage.text import pack\n"
        "i = Indexes(sys.argv[1], print); n = i.watermark(1)\n"
        "while True:\n"
        "    i.update(1, [(n + 1, pack('subject: s', f'word{n + 1}'))], [], n, n + 1)\n"
        "    n += 1; print(n, flush=True); n % 9 or i.merge(1)\n"
    )
    place = tmp_path / "search"
    last = 0
    for lines in (3, 11, 25, 40):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, cwd=ROOT
        ) as process:
            for _ in range(lines):
                last = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split(b"\n")[:-1]
        last = int(rest[-1]) if rest else last
        check_all_there(place, last)


def check_all_there(place, least):
    def note(event, **facts):
        pytest.fail(f"{event} {facts}")

    indexes = Indexes(str(place), note)
    found, watermark = indexes.search(1, parse("text", "s"))
    assert watermark >= least
    assert list(found) == list(range(1, watermark + 1))
    indexes.close()

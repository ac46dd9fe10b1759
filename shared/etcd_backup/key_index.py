"""Which objects a backup holds and where: an index of its live keys, and single objects read through it.

bbolt orders etcd's rows by revision, not by key, so finding a key would mean reading everything. `verify`
reads everything anyway: a `KeyCollector` listens to its scan, and `encode_index` writes what it heard as a
blob beside the manifest. With it, listing a prefix or printing one object takes a few small range reads
(`KeyIndex`, `read_object`); without it, `collect` scans the whole chain. The index of a delta holds only what
changed since its parent's, now and then everything, so that it stays as small as the delta is. The format:
docs/reference/backup-format.md.
"""

from __future__ import annotations

import hashlib
import heapq
import secrets
import struct
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import NamedTuple, TypeVar

import msgspec

from shared.errors import IntegrityError
from shared.etcd_backup.archive import Archive, Chain, Cipher, RangeReader
from shared.model import bolt
from shared.model.etcd import KeyValue
from shared.model.etcd_snapshot import KEY_BUCKET, SnapshotReport, SnapshotScan, decode_row, row_key

_T = TypeVar("_T")
_RUN_ROWS = 16384
_CHUNK_ROWS = 512
_ENTRIES = 512  # entries in a frame: some 10 KB stored
_TAIL, _FIELDS = struct.Struct(">2x8s8scII"), struct.Struct(">2xQQcII")
"""What follows the key in a record: end mark, main and sub revision, put or tombstone, page, value bytes."""
MOST_INDEX_BYTES = 8 * 1024 * 1024
"""What a collector may hold for an index: some 400,000 keys; beyond that memory counts more than `get`."""
_FOOTER = struct.Struct(">8s16sQ32s")  # magic, salt, bytes and sha256 of the directory before it
_MAGIC = b"KKKEYS02"
_FIRST_READ = 64 * 1024
_SAME_KIND = {"minions": "nodes", "services/specs": "services", "services/endpoints": "endpoints"}


WHOLE_EVERY = 8
"""Every eighth index of a chain is whole: listing reads at most so many, one on top of the other."""


class Entry(NamedTuple):
    """A live key, the revision of its newest row, and the bytes of its value; `main` 0: not live any more."""

    key: bytes
    main: int
    sub: int
    row_bytes: int


class _Frame(NamedTuple):
    """A frame of the index: its first key, where it is, xxh3_64 of the stored bytes."""

    first: bytes
    offset: int
    length: int
    checksum: int


class _Directory(msgspec.Struct, frozen=True):
    """What stands at the end of an index; `below` is the manifest digest of the index it builds on."""

    manifest_digest: str
    below: str | None
    live_keys: int
    kinds: dict[str, int]
    frames: list[_Frame]


class KeyCollector:
    """A `RowSink` that remembers every key of the pages it is told about, compressed in sorted runs.

    Memory: some 20 bytes for each row, at most `most_bytes` and a run; when that is not enough it
    forgets everything and `is_complete` is False. `live` is asked once the report says which pages count.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        import zstandard

        self._compress = zstandard.ZstdCompressor(level=1).compress
        self._decompress = zstandard.ZstdDecompressor().decompress
        self._most_bytes = most_bytes
        self._held = 0
        self._rows: list[bytes] = []
        self._runs: list[deque[bytes]] = []
        self.is_complete = True

    def __call__(
        self, pgid: int, row_keys: list[bytes], etcd_keys: list[bytes], value_bytes: tuple[int, ...]
    ) -> None:
        """Take the rows of one page."""
        if not self.is_complete:
            return
        add, pack = self._rows.append, _TAIL.pack
        for row, key, size in zip(row_keys, etcd_keys, value_bytes, strict=True):
            escaped = key.replace(b"\x00", b"\x00\xff") if b"\x00" in key else key  # keys still sort as keys
            add(escaped + pack(row[:8], row[9:17], b"t" if len(row) > 17 else b"p", pgid, size))
        if len(self._rows) >= _RUN_ROWS:
            self._seal()

    def live(self, report: SnapshotReport) -> Iterator[Entry]:
        """Every live key in key order, with its newest row. Ask once: it lets go of what it tells."""
        if not self.is_complete:
            raise ValueError("the collector's memory did not suffice; make one without a limit")
        self._seal()
        found: Entry | None = None
        current = b""
        for record in heapq.merge(*map(self._read, self._runs)):
            end = len(record) - _FIELDS.size
            main, sub, mark, page, size = _FIELDS.unpack_from(record, end)
            if not report.is_reached(page):
                continue
            if record[:end] != current:
                if found:
                    yield found
                current = record[:end]
            key = current.replace(b"\x00\xff", b"\x00") if b"\x00" in current else current
            found = Entry(key, main, sub, size) if mark == b"p" else None
        if found:
            yield found

    def _seal(self) -> None:
        self._rows.sort()
        rows, self._rows = iter(self._rows), []
        chunks = iter(lambda: list(islice(rows, _CHUNK_ROWS)), [])
        # Copied: the compressor's own result keeps all the room it might have needed.
        run = deque(bytes(memoryview(self._compress(msgspec.msgpack.encode(chunk)))) for chunk in chunks)
        self._runs.append(run)
        self._held += sum(map(len, run))
        if self._most_bytes is not None and self._held > self._most_bytes:
            self.is_complete = False
            self._runs.clear()

    def _read(self, run: deque[bytes]) -> Iterator[bytes]:
        while run:
            yield from msgspec.msgpack.decode(self._decompress(run.popleft()), type=list[bytes])


@dataclass(frozen=True)
class EncodedIndex:
    """The blob to store and what it counts; `live_keys` is the key count that etcdutl 3.6 prints."""

    data: bytes
    live_keys: int
    kinds: dict[str, int]


def encode_index(
    collector: KeyCollector, report: SnapshotReport, chain: Chain, below: KeyIndex | None = None
) -> EncodedIndex | None:
    """The key index of the newest backup of `chain`, encrypted as that is; None if the collector gave up.

    Given the index of its parent, what that says already is left out.
    """
    import xxhash
    import zstandard

    if not collector.is_complete:
        return None
    compress = zstandard.ZstdCompressor(level=3).compress
    newest, salt = chain.archives[-1], secrets.token_bytes(16)
    cipher = newest.cipher.derive(salt) if newest.cipher else None
    data, frames, kinds = BytesIO(), list[_Frame](), _Kinds()
    entries: Iterator[Entry] = kinds.counting(collector.live(report))
    if below:
        entries = _changes(entries, below.entries())
    while batch := list(islice(entries, _ENTRIES)):
        stored = compress(msgspec.msgpack.encode(batch))
        if cipher:
            stored = cipher.encrypt("keys", len(frames), stored)
        frames.append(_Frame(batch[0].key, data.tell(), len(stored), xxhash.xxh3_64_intdigest(stored)))
        data.write(stored)
    found, count = kinds.found(), kinds.total()
    base = below.manifest_digest if below else None
    directory = _Directory(newest.manifest.digest(), base, count, found, frames)
    stored = compress(msgspec.msgpack.encode(directory))
    if cipher:
        stored = cipher.encrypt("dire", 0, stored)
    data.write(stored + _FOOTER.pack(_MAGIC, salt, len(stored), hashlib.sha256(stored).digest()))
    return EncodedIndex(data.getvalue(), count, found)


class KeyIndex:
    """A stored key index, opened with one range read and used with one for each 512 entries."""

    def __init__(
        self,
        name: str,
        read_range: RangeReader,
        cipher: Cipher | None,
        directory: _Directory,
        below: KeyIndex | None,
    ) -> None:
        self.name = name
        self.manifest_digest = directory.manifest_digest
        self.live_keys = directory.live_keys
        self.kinds = directory.kinds
        self._read_range = read_range
        self._cipher = cipher
        self._below = below
        self._frames = directory.frames
        self._firsts = [frame.first for frame in directory.frames]

    @staticmethod
    def open(
        name: str,
        size: int,
        read_range: RangeReader,
        archive: Archive,
        open_below: Callable[[], KeyIndex | None] = lambda: None,
    ) -> KeyIndex | None:
        """The index blob `name` of `size` bytes; IntegrityError if it is damaged or another backup's.

        None when the index it builds on, which `open_below` opens, is not to be had.
        """
        place = f"key index {name}"
        start = max(0, size - _FIRST_READ)
        tail = read_range(start, size - start)
        if len(tail) != size - start or len(tail) < _FOOTER.size:
            raise _damaged(place, "it is cut short")
        magic, salt, length, digest = _FOOTER.unpack(tail[-_FOOTER.size :])
        if magic != _MAGIC or length > size - _FOOTER.size:
            raise _damaged(place, "it does not end as an index does")
        begin = size - _FOOTER.size - length
        stored = tail[begin - start : -_FOOTER.size] if begin >= start else read_range(begin, length)
        if hashlib.sha256(stored).digest() != digest:
            raise _damaged(place, "the sha256 of its directory differs")
        cipher = archive.cipher.derive(salt) if archive.cipher else None
        if cipher:
            stored = cipher.decrypt("dire", 0, stored, place)
        directory = _decode(stored, _Directory, place)
        if directory.manifest_digest != archive.manifest.digest():
            raise _damaged(place, f"it does not belong to {archive.manifest.name}")
        below = open_below() if directory.below else None
        if (below.manifest_digest if below else None) != directory.below:
            return None
        return KeyIndex(name, read_range, cipher, directory, below)

    def entries(self, prefix: bytes = b"") -> Iterator[Entry]:
        """The live keys that begin with `prefix`, in order."""
        own = self._own(prefix)
        return _overlaid(own, self._below.entries(prefix)) if self._below else own

    def _own(self, prefix: bytes) -> Iterator[Entry]:
        for number in range(max(0, bisect_right(self._firsts, prefix) - 1), len(self._frames)):
            for entry in self._frame(number):
                if entry.key.startswith(prefix):
                    yield entry
                elif entry.key > prefix:
                    return

    def find(self, key: bytes) -> Entry | None:
        """The entry of exactly `key`."""
        entry = next(self.entries(key), None)
        return entry if entry and entry.key == key else None

    def _frame(self, number: int) -> list[Entry]:
        import xxhash

        frame, place = self._frames[number], f"frame {number} of key index {self.name}"
        stored = self._read_range(frame.offset, frame.length)
        if len(stored) != frame.length or xxhash.xxh3_64_intdigest(stored) != frame.checksum:
            raise _damaged(place, "it is not what was stored")
        if self._cipher:
            stored = self._cipher.decrypt("keys", number, stored, place)
        return _decode(stored, list[Entry], place)


def collect(chain: Chain) -> tuple[KeyCollector, SnapshotReport]:
    """The slow way without an index: reads the whole chain. IntegrityError where it is damaged."""
    collector = KeyCollector()
    scan = SnapshotScan(on_rows=collector)
    for piece in chain.stream():
        scan.feed(piece)
    report = scan.finish()
    if report.problems:
        first = report.problems[0]
        raise IntegrityError(f"{chain.manifest.name} is damaged: {first}", place=first.place)
    return collector, report


def read_object(image: bolt.Image, entry: Entry) -> KeyValue:
    """The object of an entry; IntegrityError when the database does not hold it."""
    place = f"row {entry.main}_{entry.sub}"
    value = bolt.Database(image).bucket(KEY_BUCKET).get(row_key(entry.main, entry.sub))
    found = decode_row(value, place) if value is not None else None
    if found is None or found.key != entry.key:
        raise _damaged(place, f"it does not hold {entry.key!r}")
    return found


def _changes(entries: Iterator[Entry], before: Iterator[Entry]) -> Iterator[Entry]:
    """What must be laid over `before` to get `entries`; all three in key order."""
    old = next(before, None)
    for entry in entries:
        while old and old.key < entry.key:
            yield Entry(old.key, 0, 0, 0)
            old = next(before, None)
        if old != entry:
            yield entry
        if old and old.key == entry.key:
            old = next(before, None)
    while old:
        yield Entry(old.key, 0, 0, 0)
        old = next(before, None)


def _overlaid(changes: Iterator[Entry], before: Iterator[Entry]) -> Iterator[Entry]:
    """`before` with `changes` laid over it; all three in key order."""
    old = next(before, None)
    for entry in changes:
        while old and old.key < entry.key:
            yield old
            old = next(before, None)
        if entry.main:
            yield entry
        if old and old.key == entry.key:
            old = next(before, None)
    if old:
        yield old
    yield from before


def kind_of(key: bytes) -> str:
    """The resource of an API server's key: `pods`, `apps.example.com/widgets`; `other` for foreign keys."""
    parts = key.decode(errors="replace").split("/")
    if len(parts) < 4 or parts[0]:
        return "other"
    kind = f"{parts[2]}/{parts[3]}" if "." in parts[2] or parts[2] == "services" else parts[2]
    return _SAME_KIND.get(kind, kind)


def count_kinds(entries: Iterable[Entry]) -> dict[str, int]:
    """Live keys for each kind; fast when they come in key order."""
    kinds = _Kinds()
    deque(kinds.counting(entries), maxlen=0)
    return kinds.found()


class _Kinds:
    """Counts keys by kind. In key order the kind seldom changes, so most keys cost one comparison."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._kind = "other"
        self._prefix = b""

    def counting(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The same entries, counted as they pass by."""
        for entry in entries:
            if not self._prefix or not entry.key.startswith(self._prefix):
                self._kind = kind_of(entry.key)
                parts = entry.key.split(b"/", 4)
                self._prefix = b"/".join(parts[:4]) + b"/" if len(parts) > 4 else b""
            self._counts[self._kind] += 1
            yield entry

    def total(self) -> int:
        return self._counts.total()

    def found(self) -> dict[str, int]:
        return dict(sorted(self._counts.items()))


def _decode(stored: bytes, kind: type[_T], place: str) -> _T:
    import zstandard

    try:
        raw = zstandard.ZstdDecompressor().decompress(stored, max_output_size=64 * 1024 * 1024)
        return msgspec.msgpack.decode(raw, type=kind)
    except (zstandard.ZstdError, msgspec.MsgspecError) as error:
        raise _damaged(place, f"it cannot be read ({error})") from error


def _damaged(place: str, problem: str) -> IntegrityError:
    return IntegrityError(f"{place}: {problem}; verify the backup again to renew its index", place=place)

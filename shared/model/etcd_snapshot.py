"""An etcd snapshot proven in one pass: bytes, page graph, revision, and the hashes etcd itself would compute.

`SnapshotScan` takes the file in order, in any chunking; `read_revisions` and `newest_rows` answer what can be
known from a few pages of an `Image`. Called by `verify`, `restore` and the drill. Nothing here judges:
`SnapshotReport` lists what is wrong, with places.

Which pages belong to the tree is known only at the end, because free pages keep stale content. So every page
that carries its own number is taken as a candidate, its CRC32C contribution is computed as it passes by, and
those of the pages the tree reaches are combined in tree order: CRCs are linear, the CRC of A+B is that of A,
shifted by the length of B, xor that of B. Memory: some 40 bytes for each leaf and 5 for each page.

What etcd does is in server/storage/mvcc (kvstore.go: restore, hash.go) and etcdutl/snapshot, etcd 3.4 to 3.6.
"""

from __future__ import annotations

import hashlib
import operator
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

from shared.errors import IntegrityError
from shared.model import bolt
from shared.model.backup import Revisions
from shared.model.etcd import KeyValue

TRAILER_BYTES = 32
KEY_BUCKET, META_BUCKET = b"key", b"meta"
FINISHED, SCHEDULED = b"finishedCompactRev", b"scheduledCompactRev"
WINDOW_BYTES = 512 * 1024
"""Bytes looked at together; more only while a page with overflow is incomplete."""
MOST_OVERFLOW_BYTES = 48 * 1024 * 1024
"""A page longer than this is refused: etcd advises at most 10 MiB a request; a leaf holds two or three."""
MOST_PROBLEMS = 20
MOST_NEWEST_ROWS = 1_000_000
"""Keys written since the last compaction that fit into memory, at some 170 bytes each."""
_MOST_BUCKET_BYTES = 16 * 1024 * 1024  # root pages, stale ones too, kept until the true one is known
_MOST_OVERLAP = 64
"""Stale pages may overlap live ones, but no crafted file may keep a scan busy for ever: when all pages with
their overflow add up to so many times the file, the rest are refused. Real files do not reach twice."""
_MOST_LEVELS = 64
_ROW_KEY_BYTES = 17  # main revision, "_", sub revision; a tombstone's has a "t" behind it

_LEAF = struct.Struct("<IIHH17s17s")
"""crc, bytes, rows, overflow pages, first and last row key (without a tombstone's mark)."""
_ELEMENT = struct.Struct("<IIII")  # of a leaf: flags, position, bytes of key and value
_SEGMENT = struct.Struct("<IIQ")
"""crc and bytes of consecutive rows, and the compact revision from which HashKV omits them (0: never)."""
_ROW_KEY = struct.Struct(">QcQ")
_ONES = 0xFFFFFFFF
_ZEROS = bytes(64 * 1024)

Record = tuple[int, int, int, int, bytes, bytes]  # as _LEAF
Header = tuple[int, int, int, int]  # page, flags, elements, overflow
RowSink = Callable[[int, list[bytes], list[bytes], tuple[int, ...]], None]
"""Told each leaf with rows of bucket `key`: page number, row keys, etcd keys, bytes of the values."""


class Sha256(Protocol):
    """A sha256 under way, as `hashlib.sha256()`; one that works in another thread saves time."""

    def update(self, data: memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a snapshot, and where."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True)
class NewestRows:
    """For each etcd key written after revision `after`: its newest row. Keyed by xxh3_64 of the etcd key.

    What HashKV must know to leave out rows that are superseded but not compacted away yet.
    """

    after: int
    rows: dict[int, int]


def read_revisions(image: bolt.Image) -> Revisions:
    """Revision and compaction state from a few pages: the tree's right-most path, and bucket `meta`."""
    database = bolt.Database(image)
    buckets = database.buckets()
    if KEY_BUCKET not in buckets or META_BUCKET not in buckets:
        raise bolt.damaged("the root bucket", "bucket 'key' or 'meta' is missing; this is no etcd database")
    last = buckets[KEY_BUCKET].last()
    marks = dict(buckets[META_BUCKET].items())
    return _revisions(row_revision(last[0])[0] if last else 0, marks)


def newest_rows(image: bolt.Image, after: int, most: int = MOST_NEWEST_ROWS) -> NewestRows | None:
    """The newest row of every key written after revision `after`, which should be the finished compaction's.

    Reads the leaves of those rows only. None when nothing was ever compacted (then no row is left out, and
    every row would have to be read), or when there are more than `most` keys.
    """
    import xxhash

    if after == 0:
        return None
    rows: dict[int, int] = {}
    start = _ROW_KEY.pack(after + 1, b"_", 0)
    for key, value in bolt.Database(image).bucket(KEY_BUCKET).items(start):
        rows[xxhash.xxh3_64_intdigest(etcd_key(value, f"row {key.hex()}"))] = pack_row(key)
        if len(rows) > most:
            return None
    return NewestRows(after, rows)


def row_revision(key: bytes) -> tuple[int, int, bool]:
    """(main, sub, is tombstone) of a row key of bucket `key`; IntegrityError if it is none."""
    if len(key) not in (17, 18) or key[8:9] != b"_" or (len(key) == 18 and key[17:] != b"t"):
        raise bolt.damaged(f"row {key[:32].hex()}", "its key is not a revision")
    main, _, sub = _ROW_KEY.unpack_from(key)
    return main, sub, len(key) > _ROW_KEY_BYTES


def row_key(main: int, sub: int) -> bytes:
    """The row key of a put."""
    return _ROW_KEY.pack(main, b"_", sub)


def decode_row(value: bytes, place: str) -> KeyValue:
    """A row's value (mvccpb.KeyValue) in full; IntegrityError at `place` if it is none."""
    numbers, texts, at = {2: 0, 3: 0, 4: 0, 6: 0}, {1: b"", 5: b""}, 0
    while at < len(value):
        tag, at = _varint(value, at, place)
        field_number, number_or_length = tag >> 3, _varint(value, at, place)
        at = number_or_length[1]
        if tag & 7 == 0 and field_number in numbers:
            numbers[field_number] = number_or_length[0]
        elif tag & 7 == 2 and field_number in texts and at + number_or_length[0] <= len(value):
            texts[field_number] = value[at : at + number_or_length[0]]
            at += number_or_length[0]
        else:
            raise bolt.damaged(place, "its value is not an etcd key-value")
    return KeyValue(
        key=texts[1],
        value=texts[5],
        create_revision=numbers[2],
        mod_revision=numbers[3],
        version=numbers[4],
        lease=numbers[6],
    )


def _varint(data: bytes, at: int, place: str) -> tuple[int, int]:
    """A protobuf varint: its value and where it ends."""
    number = shift = 0
    for byte in data[at : at + 10]:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at + shift // 7
    raise bolt.damaged(place, "its value is not an etcd key-value")


def pack_row(key: bytes) -> int:
    """A row key as one integer that orders as the rows do."""
    main, sub, is_tombstone = row_revision(key)
    return main << 65 | sub << 1 | is_tombstone


def etcd_key(value: bytes, place: str) -> bytes:
    """The etcd key in a row's value (field 1 of mvccpb.KeyValue, always written first)."""
    if value[:1] == b"\x0a":
        length, start = _varint(value, 1, place)
        if start + length <= len(value):
            return value[start : start + length]
    raise bolt.damaged(place, "its value is not an etcd key-value")


@dataclass
class SnapshotReport:
    """What one pass over a snapshot has shown. `problems` is empty for a sound one.

    `status_hash` and `total_rows` are what `etcdutl snapshot status` of etcd 3.5 prints as hash and totalKey;
    `revisions.last_row_revision` is what it prints as revision.
    """

    size_bytes: int
    page_size: int
    page_count: int
    sha256: str
    trailer_matches: bool
    problems: list[Problem]
    revisions: Revisions
    status_hash: int
    total_rows: int
    bucket_rows: dict[str, int]
    reached_pages: int
    _pages: _Pages = field(repr=False)
    _key_leaves: array[int] = field(repr=False)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def is_reached(self, pgid: int) -> bool:
        """Whether the tree reaches page `pgid` as a page of its own (not as another's overflow).

        Rows of an inline bucket, as a database with hardly anything in it has, are reported under the number
        behind the last page.
        """
        return pgid >= self.page_count or self._pages.reached[pgid] == _HEAD

    def hash_kv(self, compact_revision: int) -> int | None:
        """HashKV at this file's revision, as a member with that compact revision computes it.

        None when this pass cannot know: the member's compact revision is below the file's (it lags: ask
        again), or rows are superseded and the pass was made without `NewestRows`.
        """
        pages, finished = self._pages, self.revisions.compact_revision
        newest, drops = pages.newest, compact_revision > 0
        if compact_revision < finished or (drops and (newest is None or newest.after > finished)):
            return None
        drops = drops and any(map(pages.has_kept_rows, self._key_leaves))
        crc = pages.extend(0, KEY_BUCKET)
        for slot in self._key_leaves:
            if drops and slot in pages.segments:
                for part, length, dropped_from in _SEGMENT.iter_unpack(pages.segments[slot]):
                    if not 0 < dropped_from <= compact_revision:
                        crc = pages.combine(crc, part, length)
            else:
                part, length, *_ = _LEAF.unpack_from(pages.leaves, slot * _LEAF.size)
                crc = pages.combine(crc, part, length)
        return crc


class SnapshotScan:
    """Feed the file in order, etcd's trailer included, then `finish`; damage is reported, not raised.

    `newest` makes HashKV exact where rows are superseded but not compacted, as in any Kubernetes cluster.
    `on_rows` is told every leaf, stale ones too: ask the report's `is_reached` afterwards.
    `sha256` replaces hashlib's.
    """

    def __init__(
        self,
        *,
        newest: NewestRows | None = None,
        on_rows: RowSink | None = None,
        sha256: Sha256 | None = None,
    ) -> None:
        self._pages = _Pages(newest, on_rows)
        self._sha256: Sha256 = sha256 or hashlib.sha256()
        self._size = 0
        self._parts: list[bytes] = []
        self._held = 0
        self._needed = WINDOW_BYTES
        self._page_size = 0
        self._first = 0  # number of the first page held
        self._metas: list[bolt.Meta] = []
        self._problems: list[Problem] = []

    def feed(self, data: bytes) -> None:
        """The next bytes of the file."""
        self._parts.append(data)
        self._held += len(data)
        if self._held >= self._needed + TRAILER_BYTES:
            self._advance(at_end=False)

    def finish(self) -> SnapshotReport:
        """The report, after the last byte."""
        self._advance(at_end=True)
        trailer = b"".join(self._parts)
        matches = self._sha256.digest() == trailer
        if not matches:
            self._problems.append(
                Problem("the sha256 at the file's end", "it does not match the bytes before it")
            )
        walk = _Walk(self._pages, self._metas, self._page_size, self._size, self._problems)
        walk.run()
        return SnapshotReport(
            size_bytes=self._size,
            page_size=self._page_size,
            page_count=self._pages.count,
            sha256=self._sha256.digest().hex(),
            trailer_matches=matches,
            problems=self._problems,
            revisions=walk.revisions(),
            status_hash=walk.status_hash,
            total_rows=sum(walk.bucket_rows.values()),
            bucket_rows=walk.bucket_rows,
            reached_pages=self._pages.count - self._pages.reached.count(0),
            _pages=self._pages,
            _key_leaves=walk.key_leaves,
        )

    def _advance(self, *, at_end: bool) -> None:
        """Look at the whole pages held, and let go of all that are done with."""
        buffer = b"".join(self._parts)
        size = self._page_size = self._page_size or bolt.guess_page_size(buffer)
        usable = max(0, len(buffer) - TRAILER_BYTES)
        count = usable // size
        if at_end and usable % size:
            self._problems.append(Problem("the file's end", f"its length is no multiple of {size} bytes"))
        known = self._pages.count - self._first
        self._hash(memoryview(buffer)[known * size : usable if at_end else count * size])
        self._pages.grow(count - known)
        done = self._candidates(buffer, count, at_end=at_end)
        kept = buffer[usable:] if at_end else buffer[done * size :]
        self._parts, self._held, self._first = [kept], len(kept), self._first + done

    def _hash(self, data: memoryview) -> None:
        self._sha256.update(data)
        self._size += len(data)

    def _candidates(self, buffer: bytes, count: int, *, at_end: bool) -> int:
        """Take each page among the first `count` that carries its own number; returns how many are done."""
        size, first, pages = self._page_size, self._first, self._pages
        numbers = memoryview(buffer)[: count * size].cast("Q")[:: size // 8].tolist()
        self._needed = WINDOW_BYTES
        for index in [index for index, number in enumerate(numbers) if number == first + index]:
            pgid, start = first + index, index * size
            header = bolt.HEADER.unpack_from(buffer, start)
            _, flags, _, overflow = header
            if flags == bolt.META and pgid < 2:
                self._meta(buffer[start : start + size], pgid)
            if flags not in (bolt.LEAF, bolt.BRANCH):
                continue
            end = start + (1 + overflow) * size
            if (1 + overflow) * size > MOST_OVERFLOW_BYTES:
                pages.reject(pgid, f"its {overflow} overflow pages are too many")
            elif end > count * size and not at_end:
                self._needed = max(WINDOW_BYTES, end - start)
                return index
            elif end > count * size:
                pages.reject(pgid, f"its {overflow} overflow pages reach beyond the file's end")
            elif flags == bolt.LEAF:
                pages.add_leaf(buffer, start, end, header)
            else:
                pages.add_branch(buffer[start:end], header)
        return count

    def _meta(self, page: bytes, pgid: int) -> None:
        try:
            self._metas.append(bolt.parse_meta(page, pgid))
        except IntegrityError as error:
            self._problems.append(Problem(error.place, str(error)))


_HEAD, _OVERFLOW = 1, 2


class _Pages:
    """What is remembered of every candidate page, compactly."""

    def __init__(self, newest: NewestRows | None, on_rows: RowSink | None) -> None:
        import google_crc32c
        import xxhash
        import zstandard

        if google_crc32c.implementation == "python":
            raise RuntimeError("google-crc32c has no C extension here; install a wheel that has one")
        if sys.byteorder != "little":
            raise RuntimeError("bbolt files are read on little-endian machines only")
        self.newest = newest
        self.on_rows = on_rows
        self.extend: Callable[[int, bytes], int] = google_crc32c.extend
        self.xxh3: Callable[[bytes], int] = xxhash.xxh3_64_intdigest
        self._compress = zstandard.ZstdCompressor(level=1).compress
        self._decompress = zstandard.ZstdDecompressor().decompress
        self.slots = array("I")  # for each page: 1 + its leaf record, or 0
        self.leaves = bytearray()
        self.branches: dict[int, tuple[int, bytes]] = {}  # overflow, compressed page
        self.other_keys: dict[int, tuple[bytes, bytes]] = {}  # slot: first and last key that are no revisions
        self.segments: dict[int, bytes] = {}  # slot of a leaf with rows HashKV may leave out
        self.marks: dict[int, dict[bytes, bytes]] = {}
        self.bucket_leaves: dict[
            int, list[tuple[bytes, bytes]]
        ] = {}  # page: (name, bucket header and inline page)
        self.bad: dict[int, str] = {}
        self.reached = bytearray()
        self._bucket_bytes = 0
        self._looked_at = 0

    @property
    def count(self) -> int:
        """Pages seen so far."""
        return len(self.slots)

    def grow(self, pages: int) -> None:
        """Room for so many more pages."""
        self.slots.frombytes(bytes(4 * pages))
        self.reached += bytes(pages)

    def combine(self, crc: int, other: int, length: int) -> int:
        """The CRC32C of A+B from that of A, that of B, and the length of B."""
        crc ^= _ONES
        while length > len(_ZEROS):
            crc = self.extend(crc, _ZEROS)
            length -= len(_ZEROS)
        return self.extend(crc, _ZEROS[:length]) ^ _ONES ^ other

    def record(self, slot: int) -> Record:
        """What is known of the leaf in `slot`, with its true bounds where they are no revisions."""
        record: Record = _LEAF.unpack_from(self.leaves, slot * _LEAF.size)
        return record if slot not in self.other_keys else (*record[:4], *self.other_keys[slot])

    def has_kept_rows(self, slot: int) -> bool:
        """Whether a leaf has a row that no compaction would drop."""
        if slot in self.segments:
            return any(not dropped for _, _, dropped in _SEGMENT.iter_unpack(self.segments[slot]))
        return bool(_LEAF.unpack_from(self.leaves, slot * _LEAF.size)[2])

    def add_branch(self, data: bytes, header: Header) -> None:
        """Keep the page, compressed, until the walk needs it; most are small and few are stale."""
        # Copied: the compressor's own result keeps all the room it might have needed.
        self.branches[header[0]] = header[3], bytes(memoryview(self._compress(data)))

    def children(self, pgid: int) -> list[tuple[bytes, int]]:
        """(first key, page) of each child of a branch; IntegrityError if it is damaged."""
        data = self._decompress(self.branches[pgid][1])
        return bolt.parse_page(data, f"page {pgid}", pgid).children()

    def add_leaf(self, buffer: bytes, start: int, end: int, header: Header) -> None:
        """Check a leaf by itself and keep its CRC32C, bounds and what HashKV may leave out.

        In a leaf, keys and values lie one behind the other, so one CRC call covers all its rows.
        """
        pgid, _, count, overflow = header
        table = start + bolt.HEADER_BYTES
        data = at = table + bolt.ELEMENT_BYTES * count
        self._looked_at += 1 + overflow
        if data > end or self._looked_at > _MOST_OVERLAP * len(self.slots):
            self.reject(pgid, f"{count} elements do not fit" if data > end else "too many pages overlap it")
            return
        flags, first, key = 0, b"", b""
        for flag, position, key_bytes, value_bytes in _ELEMENT.iter_unpack(buffer[table:data]):
            previous, key = key, buffer[at : at + key_bytes]
            if table + position != at or key <= previous:
                self.reject(pgid, "its rows do not lie one behind the other in ascending order")
                return
            first = first or key
            flags |= flag
            table += bolt.ELEMENT_BYTES
            at += key_bytes + value_bytes
        if at > end:
            self.reject(pgid, "its rows do not fit")
            return
        slot = self._append(header, self.extend(0, buffer[data:at]), at - data, (first, key))
        if flags:
            self._keep_buckets(_rows(buffer, start, header, slot))
        elif slot in self.other_keys:
            self._keep_marks(_rows(buffer, start, header, slot))
        elif self.newest or self.on_rows:
            self._look_at_rows(_rows(buffer, start, header, slot))

    def reject(self, pgid: int, message: str) -> None:
        """Note what is wrong with a candidate: a problem if the tree reaches it."""
        self.bad[pgid] = message
        self.slots[pgid] = 0

    def _append(self, header: Header, crc: int, length: int, bounds: tuple[bytes, bytes]) -> int:
        """Add the record of a leaf; returns its slot."""
        pgid, _, rows, overflow = header
        first, last = bounds
        slot = len(self.leaves) // _LEAF.size
        self.slots[pgid] = slot + 1
        self.leaves += _LEAF.pack(crc, length, rows, overflow, first, last)
        if not (17 <= len(first) <= 18 and 17 <= len(last) <= 18 and first[8] == last[8] == 0x5F):
            self.other_keys[slot] = bounds
        return slot

    def _keep_buckets(self, rows: _Rows) -> None:
        buckets = list(zip(rows.keys, rows.values(), strict=True))
        self._bucket_bytes += sum(len(name) + len(value) for name, value in buckets)
        if self._bucket_bytes > _MOST_BUCKET_BYTES:
            self.reject(rows.pgid, "there are too many pages with buckets")
        elif any(flag != bolt.BUCKET_ELEMENT for flag in rows.flags):
            self.reject(rows.pgid, "buckets and rows are mixed in it")
        else:
            self.bucket_leaves[rows.pgid] = buckets

    def _keep_marks(self, rows: _Rows) -> None:
        """The compaction revisions, where bucket `meta` is large enough to have a page."""
        if FINISHED in rows.keys or SCHEDULED in rows.keys:
            self.marks[rows.slot] = {
                key: value
                for key, value in zip(rows.keys, rows.values(), strict=True)
                if key in (FINISHED, SCHEDULED)
            }

    def _look_at_rows(self, rows: _Rows) -> None:
        """Tell the sink about the rows, and find those that HashKV may leave out."""
        try:
            etcd_keys = rows.etcd_keys()
        except IntegrityError as error:
            self.reject(rows.pgid, str(error))
            return
        if self.on_rows:
            self.on_rows(rows.pgid, rows.keys, etcd_keys, rows.value_bytes)
        if self.newest:
            newest = list(map(self.newest.rows.get, map(self.xxh3, etcd_keys)))
            if any(newest) or 18 in map(len, rows.keys):
                self._segment(rows, newest)

    def _segment(self, rows: _Rows, newest: list[int | None]) -> None:
        """CRCs of the rows of a leaf one by one, rows that are never left out taken together."""
        packed, kept_from, stop = b"", rows.starts[0], rows.starts[0]
        for key, newer, at, length in zip(rows.keys, newest, rows.starts, rows.value_bytes, strict=True):
            stop = at + len(key) + length
            if len(key) > _ROW_KEY_BYTES or (newer is not None and newer != pack_row(key)):
                packed += self._run(rows.buffer[kept_from:at], 0)
                packed += self._run(rows.buffer[at:stop], int.from_bytes(key[:8], "big"))
                kept_from = stop
        self.segments[rows.slot] = packed + self._run(rows.buffer[kept_from:stop], 0)

    def _run(self, rows: bytes, dropped_from: int) -> bytes:
        return _SEGMENT.pack(self.extend(0, rows), len(rows), dropped_from) if rows else b""


class _Rows(NamedTuple):
    """The rows of one leaf: `starts` are where each lies in `buffer`."""

    pgid: int
    slot: int
    buffer: bytes
    keys: list[bytes]
    starts: list[int]
    value_bytes: tuple[int, ...]
    flags: tuple[int, ...]

    def values(self) -> Iterator[bytes]:
        """The value of each row."""
        for key, at, length in zip(self.keys, self.starts, self.value_bytes, strict=True):
            yield self.buffer[at + len(key) : at + len(key) + length]

    def etcd_keys(self) -> list[bytes]:
        """The etcd key of each row; IntegrityError when there is none or a row's own key is no revision."""
        buffer, found = self.buffer, []
        for key, start, length in zip(self.keys, self.starts, self.value_bytes, strict=True):
            at = start + len(key)
            if 17 <= len(key) <= 18 and length > 2 and buffer[at] == 0x0A and buffer[at + 1] < 0x80:
                end = at + 2 + buffer[at + 1]
                if end <= at + length:
                    found.append(buffer[at + 2 : end])
                    continue
            row_revision(key)
            found.append(etcd_key(buffer[at : at + length], f"page {self.pgid}"))
        return found


def _rows(buffer: bytes, start: int, header: Header, slot: int) -> _Rows:
    """The rows of a leaf that was found sound."""
    pgid, _, count, _ = header
    table = start + bolt.HEADER_BYTES
    elements = struct.unpack_from(f"<{4 * count}I", buffer, table)
    key_bytes, value_bytes = elements[2::4], elements[3::4]
    starts = list(map(operator.add, elements[1::4], range(table, table + 16 * count, 16)))
    keys = [buffer[at : at + length] for at, length in zip(starts, key_bytes, strict=True)]
    return _Rows(pgid, slot, buffer, keys, starts, value_bytes, elements[0::4])


class _Walk:
    """The tree, once all pages are known: which are reached, in which order, and what that adds up to."""

    def __init__(
        self, pages: _Pages, metas: list[bolt.Meta], page_size: int, size: int, problems: list[Problem]
    ) -> None:
        self._pages = pages
        self._metas = metas
        self._page_size = page_size
        self._size = size
        self._problems = problems
        self._marks: dict[bytes, bytes] = {}
        self._last_row = b""
        self.status_hash = 0
        self.bucket_rows: dict[str, int] = {}
        self.key_leaves = array("I")

    def run(self) -> None:
        """Walk all buckets; problems are noted, and what lies behind them is left out."""
        meta = self._check_metas()
        if meta is None:
            return
        buckets = [
            row
            for pgid, _, _ in list(self._leaves(meta.root, "the root bucket"))
            for row in self._bucket_rows_of(pgid)
        ]
        for name in (KEY_BUCKET, META_BUCKET):
            if name not in dict(buckets):
                self._note(
                    "the root bucket", f"bucket '{name.decode()}' is missing; this is no etcd database"
                )
        for name, value in buckets:
            self._bucket(name, value)

    def revisions(self) -> Revisions:
        """What etcd would open the file with."""
        try:
            return _revisions(int.from_bytes(self._last_row[:8], "big"), self._marks)
        except IntegrityError as error:
            self._note(error.place, str(error))
            return _revisions(int.from_bytes(self._last_row[:8], "big"), {})

    def _note(self, place: str, message: str) -> None:
        if len(self._problems) < MOST_PROBLEMS:
            self._problems.append(Problem(place, message))

    def _check_metas(self) -> bolt.Meta | None:
        """bbolt writes both meta pages of a snapshot alike but for the transaction id."""
        if len(self._metas) != 2:
            self._note("the meta pages", f"{len(self._metas)} of 2 are sound")
        if not self._metas:
            return None
        meta = max(self._metas, key=lambda candidate: candidate.txid)
        if any((other.root, other.high_water) != (meta.root, meta.high_water) for other in self._metas):
            self._note("the meta pages", "they disagree, as in no snapshot")
        if meta.page_size != self._page_size:
            self._note("the meta pages", f"they state pages of {meta.page_size} bytes, not {self._page_size}")
            return None
        if meta.high_water * meta.page_size != self._size:
            expected = meta.high_water * meta.page_size
            self._note("the file's end", f"it has {self._size} bytes; its meta page says {expected}")
        return meta

    def _bucket_rows_of(self, pgid: int) -> list[tuple[bytes, bytes]]:
        if pgid not in self._pages.bucket_leaves:
            self._note(f"page {pgid}", "it belongs to the root but holds no buckets")
        return self._pages.bucket_leaves.get(pgid, [])

    def _bucket(self, name: bytes, value: bytes) -> None:
        text = name.decode(errors="replace")
        self.status_hash = self._pages.extend(self.status_hash, name)
        if len(value) < bolt.BUCKET_HEADER_BYTES:
            self._note(f"bucket {text}", "its header is cut short")
            return
        root = int.from_bytes(value[:8], "little")
        try:
            self.bucket_rows[text] = self._tree(name, root) if root else self._inline(name, value)
        except IntegrityError as error:
            self._note(error.place, str(error))

    def _inline(self, name: bytes, value: bytes) -> int:
        """A small bucket stored in its parent's value."""
        data = value[bolt.BUCKET_HEADER_BYTES :]
        place = f"inline page of bucket {name.decode(errors='replace')}"
        if len(data) < bolt.HEADER_BYTES:
            raise bolt.damaged(place, "it is cut short")
        page = bolt.parse_page(data, place, 0)
        if not page.is_leaf:
            raise bolt.damaged(place, "it is not a leaf")
        rows = [page.item(index)[:2] for index in range(page.count)]
        if any(a[0] >= b[0] for a, b in pairwise(rows)):
            raise bolt.damaged(place, "its keys are not in ascending order")
        for row in rows:
            self.status_hash = self._pages.extend(self.status_hash, b"".join(row))
        if name == META_BUCKET:
            self._marks = dict(rows)
        if name == KEY_BUCKET and rows:
            self._inline_key_rows(page, rows)
        return len(rows)

    def _inline_key_rows(self, page: bolt.Page, rows: list[tuple[bytes, bytes]]) -> None:
        """A database with hardly anything in it: treat the inline page as a leaf without a number."""
        start, count = bolt.HEADER_BYTES + bolt.ELEMENT_BYTES * page.count, page.count
        data = page.data[:start] + b"".join(map(b"".join, rows))
        self._pages.grow(1)
        number = self._pages.count - 1
        self._pages.add_leaf(data, 0, len(data), (number, bolt.LEAF, count, 0))
        slot = self._pages.slots.pop() - 1
        self._pages.reached.pop()
        if number in self._pages.bad or slot in self._pages.other_keys:
            raise bolt.damaged(page.place, self._pages.bad.get(number, "its keys are not revisions"))
        self.key_leaves.append(slot)
        self._last_row = rows[-1][0]

    def _tree(self, name: bytes, root: int) -> int:
        """A bucket with pages of its own; returns its rows."""
        crc = length = rows = 0
        is_key, combine = name == KEY_BUCKET, self._pages.combine
        for pgid, slot, record in self._leaves(root, f"bucket {name.decode(errors='replace')}"):
            crc = combine(crc, record[0], record[1])
            length += record[1]
            rows += record[2]
            if is_key:
                self.key_leaves.append(slot)
                self._last_row = record[5] or self._last_row
            elif slot in self._pages.marks and name == META_BUCKET:
                self._marks |= self._pages.marks[slot]
            if slot in self._pages.other_keys:
                self._check_other(name, pgid, slot)
        self.status_hash = combine(self.status_hash, crc, length)
        return rows

    def _check_other(self, name: bytes, pgid: int, slot: int) -> None:
        """A leaf whose keys are no revisions may not be in bucket `key`, and nowhere may it hold buckets."""
        if pgid in self._pages.bucket_leaves:
            self._note(f"page {pgid}", "it holds buckets within a bucket, which etcd never makes")
        elif name == KEY_BUCKET and self._pages.record(slot)[2]:
            self._note(f"page {pgid}", "its keys are not revisions")

    def _leaves(self, root: int, what: str) -> Iterator[tuple[int, int, Record]]:
        """(page, slot, record) of the sound leaves below `root`, in key order."""
        slots, reached, record_of = self._pages.slots, self._pages.reached, self._pages.record
        stack: list[tuple[int, bytes, int]] = [(root, b"", 0)]
        previous = b""
        while stack:
            pgid, low, level = stack.pop()
            slot = slots[pgid] - 1 if 2 <= pgid < len(slots) else -1
            if slot < 0 or reached[pgid]:
                stack += self._claim_branch(pgid, low, level, what)
                continue
            record = record_of(slot)
            _, _, rows, overflow, first, last = record
            if overflow and not self._claim_overflow(pgid, overflow):
                self._note(f"page {pgid}", f"what follows it belongs to something else within {what}")
            reached[pgid] = _HEAD
            if low != first or previous >= low:
                self._check_order(pgid, (previous, low, first), rows, what if level else "")
            previous = last
            yield pgid, slot, record

    def _check_order(self, pgid: int, keys: tuple[bytes, bytes, bytes], rows: int, what: str) -> None:
        """The exact check behind the quick one. The root of a bucket may be empty, and promises no key."""
        previous, low, first = keys
        if not rows and what:
            self._note(f"page {pgid}", f"this leaf of {what} is empty")
        elif low[:_ROW_KEY_BYTES] > first or (what and previous >= (low or first)):
            self._note(f"page {pgid}", f"its keys are out of order within {what}")

    def _claim_branch(self, pgid: int, low: bytes, level: int, what: str) -> list[tuple[int, bytes, int]]:
        """Mark a branch as reached; its children, last first. What is no page of the tree gets a note."""
        problem, children = self._problem(pgid, level, what), []
        if not problem:
            self._pages.reached[pgid] = _HEAD
            try:
                children = self._pages.children(pgid)
            except IntegrityError as error:
                problem = str(error)
            if any(a[0] >= b[0] for a, b in pairwise(children)) or (children and children[0][0] < low):
                problem = f"the keys of this branch of {what} are not in order"
        if problem:
            self._note(f"page {pgid}", problem)
            return []
        return [(child, key, level + 1) for key, child in reversed(children)]

    def _problem(self, pgid: int, level: int, what: str) -> str:
        """Why a page cannot be the branch that the tree refers to; empty when it can."""
        pages = self._pages
        if not 2 <= pgid < pages.count:
            return f"{what} refers to it, but the file has {pages.count} pages"
        if pgid in pages.bad:
            return pages.bad[pgid]
        if not pages.slots[pgid] and pgid not in pages.branches:
            return f"{what} refers to it, but it is no branch or leaf of that number"
        if level >= _MOST_LEVELS:
            return f"{what} is deeper than {_MOST_LEVELS} levels"
        overflow = 0 if pages.slots[pgid] else pages.branches[pgid][0]
        if pages.slots[pgid] or pages.reached[pgid] or not self._claim_overflow(pgid, overflow):
            return f"{what} refers to it, but something else does too"
        return ""

    def _claim_overflow(self, pgid: int, overflow: int) -> bool:
        """Mark the pages behind `pgid` as its own; False when one of them is somebody else's."""
        reached = self._pages.reached
        if reached.count(0, pgid + 1, pgid + 1 + overflow) != overflow:
            return False
        reached[pgid + 1 : pgid + 1 + overflow] = bytes([_OVERFLOW]) * overflow
        return True


def _revisions(last_row: int, marks: dict[bytes, bytes]) -> Revisions:
    """As etcd opens the file: the last row alone can be too low, because a compaction may have deleted it.

    An empty etcd starts at revision 1.
    """
    finished = row_revision(marks[FINISHED])[0] if FINISHED in marks else 0
    scheduled = row_revision(marks[SCHEDULED])[0] if SCHEDULED in marks else 0
    return Revisions(
        revision=max(1, last_row, finished, scheduled),
        last_row_revision=last_row,
        compact_revision=finished,
        scheduled_compact_revision=max(finished, scheduled),
    )

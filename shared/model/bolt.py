"""The bbolt file format, read only: pages, meta pages, buckets, and a B+tree walk by random access.

Works on an `Image`, anything that hands out pages by number. Trusts nothing it reads: every structural error
is an IntegrityError that names the page, and no input makes a walk visit more pages than the file has. The
layout is that of go.etcd.io/bbolt, version 2 of the file format, little endian (as on every platform etcd
supports).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from shared.errors import IntegrityError

BRANCH, LEAF, META, FREELIST = 0x01, 0x02, 0x04, 0x10
BUCKET_ELEMENT = 0x01
HEADER_BYTES = 16
ELEMENT_BYTES = 16
BUCKET_HEADER_BYTES = 16
NO_FREELIST = 2**64 - 1
"""etcd does not store its freelist: pages the tree does not reach are simply free."""
DEFAULT_PAGE_SIZE = 4096

HEADER = struct.Struct("<QHHI")  # page id, flags, count, overflow
META_BODY = struct.Struct("<IIIIQQQQQQ")
_MAGIC, _VERSION = 0xED0CDAED, 2
_CHECKED_META_BYTES = 56
_MOST_LEVELS = 64


class Image(Protocol):
    """A bbolt file as pages."""

    @property
    def page_size(self) -> int: ...
    @property
    def page_count(self) -> int: ...
    def read(self, pgid: int, count: int) -> bytes:
        """Exactly `count` pages from `pgid` on; IntegrityError beyond the end."""


@dataclass(frozen=True)
class Meta:
    """One meta page. `high_water` is the number of pages in use, so the file is `high_water * page_size`
    long.
    """

    page_size: int
    root: int
    freelist: int
    high_water: int
    txid: int


@dataclass(frozen=True)
class BytesImage:
    """A whole file in memory."""

    data: bytes
    page_size: int

    @property
    def page_count(self) -> int:
        """Whole pages in `data`."""
        return len(self.data) // self.page_size

    def read(self, pgid: int, count: int) -> bytes:
        """See Image."""
        if pgid < 0 or count < 0 or pgid + count > self.page_count:
            raise damaged(f"page {pgid}", f"{count} pages from there on are beyond the file's end")
        return self.data[pgid * self.page_size : (pgid + count) * self.page_size]


def damaged(place: str, problem: str) -> IntegrityError:
    """The error for a structural problem at `place`."""
    return IntegrityError(f"the database is damaged at {place}: {problem}", place=place)


def fnv1a64(data: bytes) -> int:
    """FNV-1a, 64 bits: the checksum of a meta page."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def guess_page_size(start: bytes) -> int:
    """The page size the first meta page states, or 4096 when it cannot be read there."""
    if len(start) < HEADER_BYTES + META_BODY.size:
        return DEFAULT_PAGE_SIZE
    magic, _, size, *_ = META_BODY.unpack_from(start, HEADER_BYTES)
    return size if magic == _MAGIC and is_page_size(size) else DEFAULT_PAGE_SIZE


def is_page_size(size: int) -> bool:
    """Whether a bbolt file may have pages of `size` bytes."""
    return 512 <= size <= 65536 and size & (size - 1) == 0


def parse_meta(page: bytes, pgid: int) -> Meta:
    """The meta page `pgid` (0 or 1); IntegrityError if it is none or its checksum differs."""
    place = f"meta page {pgid}"
    if len(page) < HEADER_BYTES + META_BODY.size:
        raise damaged(place, "it is cut short")
    number, flags, _, _ = HEADER.unpack_from(page)
    body = META_BODY.unpack_from(page, HEADER_BYTES)
    magic, version, page_size, _, root, _, freelist, high_water, txid, checksum = body
    if number != pgid or flags != META or magic != _MAGIC or version != _VERSION:
        raise damaged(place, "it is not a bbolt meta page of version 2")
    if checksum != fnv1a64(page[HEADER_BYTES : HEADER_BYTES + _CHECKED_META_BYTES]):
        raise damaged(place, "its checksum differs")
    if not is_page_size(page_size):
        raise damaged(place, f"a page size of {page_size} is not possible")
    return Meta(page_size, root, freelist, high_water, txid)


def choose_meta(image: Image) -> Meta:
    """The valid meta page with the higher transaction id; IntegrityError when neither is valid."""
    found, first_error = [], None
    for pgid in (0, 1):
        try:
            found.append(parse_meta(image.read(pgid, 1), pgid))
        except IntegrityError as error:
            first_error = first_error or error
    if not found:
        assert first_error is not None
        raise first_error
    meta = max(found, key=lambda candidate: candidate.txid)
    if meta.page_size != image.page_size:
        raise damaged("meta page 0", f"it states pages of {meta.page_size} bytes, not {image.page_size}")
    return meta


@dataclass(frozen=True)
class Page:
    """A branch or leaf page with its overflow, bounds of its element table checked."""

    place: str
    flags: int
    count: int
    data: bytes

    @property
    def is_leaf(self) -> bool:
        """Leaf, else branch."""
        return self.flags == LEAF

    def child(self, index: int) -> tuple[bytes, int]:
        """Branch element: (first key, page number)."""
        at = HEADER_BYTES + ELEMENT_BYTES * index
        pos, ksize, pgid = struct.unpack_from("<IIQ", self.data, at)
        return self._slice(at + pos, ksize), pgid

    def children(self) -> list[tuple[bytes, int]]:
        """All branch elements: (first key, page number)."""
        words = struct.unpack_from(f"<{4 * self.count}I", self.data, HEADER_BYTES)
        places = range(HEADER_BYTES, HEADER_BYTES + ELEMENT_BYTES * self.count, ELEMENT_BYTES)
        sizes, data = words[1::4], self.data
        keys = [
            data[at + pos : at + pos + size] for at, pos, size in zip(places, words[0::4], sizes, strict=True)
        ]
        if sum(map(len, keys)) != sum(sizes):
            raise damaged(self.place, "an element lies outside of its page")
        pages = [low | high << 32 for low, high in zip(words[2::4], words[3::4], strict=True)]
        return list(zip(keys, pages, strict=True))

    def item(self, index: int) -> tuple[bytes, bytes, bool]:
        """Leaf element: (key, value, whether the value is a bucket)."""
        at = HEADER_BYTES + ELEMENT_BYTES * index
        flags, pos, ksize, vsize = struct.unpack_from("<IIII", self.data, at)
        pair = self._slice(at + pos, ksize + vsize)
        return pair[:ksize], pair[ksize:], bool(flags & BUCKET_ELEMENT)

    def _slice(self, start: int, length: int) -> bytes:
        if start + length > len(self.data):
            raise damaged(self.place, "an element lies outside of its page")
        return self.data[start : start + length]


def parse_page(data: bytes, place: str, pgid: int) -> Page:
    """A branch or leaf page from its bytes, overflow included."""
    number, flags, count, _ = HEADER.unpack_from(data)
    if number != pgid:
        raise damaged(place, f"it says it is page {number}")
    if flags not in (BRANCH, LEAF):
        raise damaged(place, f"flags {flags:#x} where a branch or leaf should be")
    if HEADER_BYTES + ELEMENT_BYTES * count > len(data):
        raise damaged(place, f"{count} elements do not fit into it")
    if flags == BRANCH and not count:
        raise damaged(place, "a branch without children")
    return Page(place, flags, count, data)


class Bucket:
    """The rows of one bucket, by key order. A bucket small enough is stored inline, in its parent's value."""

    def __init__(self, database: Database, name: bytes, root: int, inline: bytes) -> None:
        self.name = name
        self._database = database
        self._root = root
        self._inline = inline

    def items(self, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key, value) from the first key at or after `start` on; nested buckets are errors here, etcd has
        none.
        """
        for key, value, is_bucket in self.rows(start):
            if is_bucket:
                raise damaged(f"bucket {self.name!r}", f"key {key!r} is a bucket of its own")
            yield key, value

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        found = next(self.items(key), None)
        return found[1] if found and found[0] == key else None

    def last(self) -> tuple[bytes, bytes] | None:
        """The last row; None in an empty bucket."""
        page = self._top()
        for _ in range(_MOST_LEVELS):
            if page.is_leaf:
                return page.item(page.count - 1)[:2] if page.count else None
            page = self._database.page(page.child(page.count - 1)[1])
        raise damaged(page.place, f"the tree is deeper than {_MOST_LEVELS} levels")

    def leaves(self, start: bytes = b"") -> Iterator[Page]:
        """Leaf pages in key order, from the one where `start` belongs on."""
        budget = _Budget(self._database.image.page_count)
        yield from self._walk(self._top(), start, 0, budget)

    def rows(self, start: bytes = b"") -> Iterator[tuple[bytes, bytes, bool]]:
        """As `items`, and whether each value is a nested bucket."""
        previous: bytes | None = None
        for leaf in self.leaves(start):
            for index in range(leaf.count):
                row = leaf.item(index)
                if previous is not None and row[0] <= previous:
                    raise damaged(leaf.place, "its keys are not in ascending order")
                previous = row[0]
                if row[0] >= start:
                    yield row

    def _top(self) -> Page:
        if self._root:
            return self._database.page(self._root)
        place = f"inline page of bucket {self.name!r}"
        if len(self._inline) < HEADER_BYTES:
            raise damaged(place, "it is cut short")
        page = parse_page(self._inline, place, 0)
        if not page.is_leaf:
            raise damaged(place, "it is not a leaf")
        return page

    def _walk(self, page: Page, start: bytes, level: int, budget: _Budget) -> Iterator[Page]:
        budget.spend(page.place)
        if level > _MOST_LEVELS:
            raise damaged(page.place, f"the tree is deeper than {_MOST_LEVELS} levels")
        if page.is_leaf:
            yield page
            return
        children = page.children()
        first = max(0, bisect_right([key for key, _ in children], start) - 1)
        for _, pgid in children[first:]:
            yield from self._walk(self._database.page(pgid), start, level + 1, budget)


class Database:
    """A bbolt file: its meta page and the buckets at its root."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.meta = choose_meta(image)
        if self.meta.high_water != image.page_count:
            raise damaged(
                "the file's end", f"{self.meta.high_water} pages in use, {image.page_count} in the file"
            )

    def page(self, pgid: int) -> Page:
        """The branch or leaf page `pgid` with its overflow."""
        place = f"page {pgid}"
        if not 2 <= pgid < self.meta.high_water:
            raise damaged(place, f"it lies outside of the {self.meta.high_water} pages in use")
        data = self.image.read(pgid, 1)
        overflow = HEADER.unpack_from(data)[3]
        if overflow:
            if pgid + overflow >= self.meta.high_water:
                raise damaged(place, f"its {overflow} overflow pages reach beyond the file's end")
            data = self.image.read(pgid, 1 + overflow)
        return parse_page(data, place, pgid)

    def buckets(self) -> dict[bytes, Bucket]:
        """Top-level buckets by name, in name order."""
        rows = Bucket(self, b"", self.meta.root, b"").rows()
        return {name: self._bucket(name, value, is_bucket) for name, value, is_bucket in rows}

    def bucket(self, name: bytes) -> Bucket:
        """The bucket `name`; IntegrityError when there is none."""
        buckets = self.buckets()
        if name not in buckets:
            raise damaged("the root bucket", f"bucket '{name.decode(errors='replace')}' is missing")
        return buckets[name]

    def _bucket(self, name: bytes, value: bytes, is_bucket: bool) -> Bucket:
        if not is_bucket or len(value) < BUCKET_HEADER_BYTES:
            raise damaged("the root bucket", f"{name!r} is not a bucket")
        root = int.from_bytes(value[:8], "little")
        return Bucket(self, name, root, value[BUCKET_HEADER_BYTES:])


class _Budget:
    """How many pages a walk may still visit: a tree that is one visits each page at most once."""

    def __init__(self, pages: int) -> None:
        self._left = pages + 1  # and an inline page

    def spend(self, place: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise damaged(place, "the tree visits more pages than the file has; it loops")

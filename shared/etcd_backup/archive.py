"""The data blob of a backup: pages of the database in compressed, optionally encrypted frames.

Writes (`ArchiveWriter`) what etcd streams, as a full or as the pages that differ from the parent's; reads one
data blob (`Archive`) or a full with its deltas (`Chain`) through a range reader, at random or in file order.
Knows nothing of stores and networks: `transfer`, `verify` and `restore` bring those. The format is specified
in docs/reference/backup-format.md.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
import sys
import threading
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from shared.errors import IntegrityError
from shared.model.backup import ArchiveSummary, DatabaseSummary, Kind, Manifest, Section
from shared.model.bolt import guess_page_size

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from zstandard import ZstdDecompressor

RangeReader = Callable[[int, int], bytes]
"""`(offset, length)` to exactly those bytes of a blob; called from several threads."""

FRAME_BYTES = 256 * 1024
"""Raw bytes in a frame: any page is one small request away, at about 3 % of the compression ratio."""
CODEC = "zstd-1"
ALGORITHM = "AES-256-GCM"
FULL_LEVEL, DELTA_LEVEL = 1, 3
"""zstd levels: a delta is a few per cent of the database and can afford twice the CPU for 4 % fewer bytes."""
TRAILER_BYTES = 32
_TAG_BYTES = 16
_INDEX_ENTRY = struct.Struct("<IQ")  # stored length, xxh3_64 of the stored bytes
_DIGEST_BYTES = 8
_NOWHERE = 255
_THREAD = threading.local()
READ_BYTES = 1536 * 1024
"""Stored bytes in one range read when reading in order; all deltas of a chain share as much between them."""
_GROUP_FRAMES = 4  # decoded at once: 1 MiB
_GROUPS_AHEAD = 2
_MAX_ARCHIVES = 254  # a byte for each page says which archive holds it


class Cipher:
    """AES-256-GCM with a key used for one backup only, so that part and number make every nonce unique.

    The associated data bind each part to its run and place: a part moved elsewhere does not open.
    """

    def __init__(self, run: str, data_key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if len(data_key) != 32:
            raise ValueError("a data key has 32 bytes")
        self._aead: AESGCM = AESGCM(data_key)
        self._data_key = data_key
        self._run = run

    def derive(self, salt: bytes) -> Cipher:
        """A cipher with a key of its own, for what is written later and perhaps again, as a key index is."""
        key = hmac.digest(self._data_key, b"kubekeeper/backup/v1/" + salt, "sha256")
        return Cipher(self._run, key)

    def encrypt(self, part: str, number: int, data: bytes) -> bytes:
        """The ciphertext with its 16-byte tag. `part` is four ASCII letters."""
        return self._aead.encrypt(_nonce(part, number), data, self._bound(part, number))

    def decrypt(self, part: str, number: int, data: bytes, place: str) -> bytes:
        """The clear text; IntegrityError at `place` when the key is wrong or the bytes are not this part."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(_nonce(part, number), data, self._bound(part, number))
        except InvalidTag:
            raise IntegrityError(
                f"{place} cannot be decrypted: the key is wrong or the bytes were exchanged", place=place
            ) from None

    def _bound(self, part: str, number: int) -> bytes:
        return f"kubekeeper/backup/v1/{self._run}/{part}/{number}".encode()


def _nonce(part: str, number: int) -> bytes:
    return part.encode("ascii") + number.to_bytes(8, "big")


@dataclass(frozen=True)
class PageTable:
    """One 8-byte digest (xxh3_64, little endian, seeded) for each page of a database, in page order."""

    page_size: int
    page_count: int
    seed: int
    digests: bytes


@dataclass(frozen=True)
class ArchiveResult:
    """What `ArchiveWriter.finish` leaves: the last bytes to upload, and the facts for the manifest."""

    tail: list[bytes]
    archive: ArchiveSummary
    database: DatabaseSummary
    table: PageTable


class ArchiveWriter:
    """Turns etcd's stream into the bytes of a data blob.

    `parent` makes a delta against that page table (`Chain.page_table()` of the parent); without it a full.
    `data_key` (32 random bytes, never used for another run) encrypts. Feed the stream in any chunking,
    trailer included, and upload what comes back, in order. `feed` waits when compression falls behind, so
    memory stays bounded: some 2 MiB, and 8 bytes for each page.
    """

    def __init__(
        self, run: str, *, parent: PageTable | None = None, data_key: bytes | None = None, workers: int = 2
    ) -> None:
        import xxhash
        import zstandard

        self._xxh3 = xxhash.xxh3_64_intdigest
        self._xxh3_digest = xxhash.xxh3_64_digest
        self._compressor = zstandard.ZstdCompressor
        self._parent = parent
        self._seed = parent.seed if parent else secrets.randbits(63)
        self._level = DELTA_LEVEL if parent else FULL_LEVEL
        self._cipher = Cipher(run, data_key) if data_key else None
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="frame")
        self._local = threading.local()
        self._waiting: deque[Future[tuple[bytes, int]]] = deque()
        self._most_waiting = 2 * workers
        self._buffer = bytearray()
        self._packed = bytearray()
        self._sha256 = hashlib.sha256()
        self._page_size = 0
        self._unit = 0
        self._page_count = 0
        self._digests = bytearray()
        self._changed = array("I")
        self._index = bytearray()
        self._frames = 0
        self._offset = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; returns stored bytes that became ready (often none)."""
        self._buffer += data
        if not self._unit and not self._know_page_size():
            return []
        ready: list[bytes] = []
        while len(self._buffer) >= self._unit + TRAILER_BYTES:
            ready += self._take(self._unit)
        return ready

    def finish(self) -> ArchiveResult:
        """After the last byte: the rest to upload. IntegrityError if the stream is not what etcd sent."""
        if len(self._buffer) < TRAILER_BYTES or not (self._unit or self._know_page_size(at_end=True)):
            raise _stream_error("it ended before the first page")
        rest = len(self._buffer) - TRAILER_BYTES
        if rest % self._page_size:
            raise _stream_error("it ended within a page")
        tail = self._take(rest) if rest else []
        if self._sha256.digest() != self._buffer:
            raise _stream_error("etcd's sha256 at its end does not match the bytes received")
        if self._packed:
            self._submit(bytes(self._packed))
        tail += self._drain(0)
        self.close()
        return self._seal(tail)

    def close(self) -> None:
        """End the worker threads; call it also when the stream failed. Safe to call twice."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _know_page_size(self, *, at_end: bool = False) -> bool:
        if len(self._buffer) < 4096 and not at_end:
            return False
        self._page_size = guess_page_size(bytes(self._buffer[:4096]))
        self._unit = max(1, FRAME_BYTES // self._page_size) * self._page_size
        if self._parent and self._parent.page_size != self._page_size:
            raise _stream_error(
                f"its pages have {self._page_size} bytes, the parent's {self._parent.page_size}; take a full"
            )
        return True

    def _take(self, length: int) -> list[bytes]:
        raw = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        self._sha256.update(raw)
        size, seed, digest = self._page_size, self._seed, self._xxh3_digest
        view = memoryview(raw)
        digests = b"".join([digest(view[at : at + size], seed) for at in range(0, length, size)])
        if self._parent is None:
            self._submit(raw)
        else:
            self._pack(view, digests)
        self._digests += digests
        self._page_count += length // size
        return self._drain(self._most_waiting)

    def _pack(self, raw: memoryview, digests: bytes) -> None:
        """Keep the pages whose digest differs from the parent's; submit full frames of them."""
        assert self._parent is not None
        first, size = self._page_count, self._page_size
        known = self._parent.digests[_DIGEST_BYTES * first : _DIGEST_BYTES * first + len(digests)]
        if known == digests:
            return
        for number in range(len(raw) // size):
            at = _DIGEST_BYTES * number
            if known[at : at + _DIGEST_BYTES] != digests[at : at + _DIGEST_BYTES]:
                self._changed.append(first + number)
                self._packed += raw[number * size : (number + 1) * size]
                if len(self._packed) == self._unit:
                    self._submit(bytes(self._packed))
                    self._packed.clear()

    def _submit(self, raw: bytes) -> None:
        self._waiting.append(self._pool.submit(self._encode, self._frames, raw))
        self._frames += 1

    def _encode(self, number: int, raw: bytes) -> tuple[bytes, int]:
        if not hasattr(self._local, "compressor"):
            self._local.compressor = self._compressor(level=self._level)
        stored: bytes = self._local.compressor.compress(raw)
        # Copied: the compressor's own result keeps all the room it might have needed.
        stored = self._cipher.encrypt("fram", number, stored) if self._cipher else bytes(memoryview(stored))
        return stored, self._xxh3(stored)

    def _drain(self, leave: int) -> list[bytes]:
        """Frames in order: all that are done, and more until at most `leave` are under way."""
        ready = []
        while self._waiting and (len(self._waiting) > leave or self._waiting[0].done()):
            stored, checksum = self._waiting.popleft().result()
            self._index += _INDEX_ENTRY.pack(len(stored), checksum)
            self._offset += len(stored)
            ready.append(stored)
        return ready

    def _seal(self, tail: list[bytes]) -> ArchiveResult:
        digests = bytes(self._digests)
        self._digests.clear()
        table = digests
        if self._parent is not None:
            picked = [digests[_DIGEST_BYTES * n : _DIGEST_BYTES * (n + 1)] for n in self._changed]
            table = _little_endian(self._changed).tobytes() + b"".join(picked)
        if self._cipher:
            table = self._cipher.encrypt("tabl", 0, table)
        index = bytes(self._index)
        stored_pages = self._page_count if self._parent is None else len(self._changed)
        archive = ArchiveSummary(
            stored_bytes=self._offset + len(index) + len(table),
            frame_pages=self._unit // self._page_size,
            frame_count=self._frames,
            stored_pages=stored_pages,
            codec=CODEC,
            digest_seed=self._seed,
            index=_section(self._offset, index),
            page_table=_section(self._offset + len(index), table),
        )
        database = DatabaseSummary(
            size_bytes=self._page_count * self._page_size,
            page_size=self._page_size,
            page_count=self._page_count,
            sha256=self._sha256.hexdigest(),
        )
        pages = PageTable(self._page_size, self._page_count, self._seed, digests)
        return ArchiveResult([*tail, index, table], archive, database, pages)


@dataclass
class Archive:
    """One data blob, opened: index and page table read and checked.

    `page_ids` lists the pages a delta stores, ascending; None for a full, which stores all. `requests` and
    `bytes_read` count what was asked of the store so far.
    """

    manifest: Manifest
    read_range: RangeReader
    cipher: Cipher | None
    lengths: array[int] = field(repr=False)
    checksums: array[int] = field(repr=False)
    offsets: array[int] = field(repr=False)
    page_ids: array[int] | None = field(repr=False)
    requests: int = 0
    bytes_read: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @staticmethod
    def open(manifest: Manifest, read_range: RangeReader, data_key: bytes | None = None) -> Archive:
        """Reads index and page table (one range read); IntegrityError names the place."""
        _check_summary(manifest)
        cipher = Cipher(manifest.run, data_key) if manifest.encryption and data_key else None
        if manifest.encryption and not cipher:
            place = f"manifest {manifest.name}"
            raise IntegrityError(
                f"{manifest.data} is encrypted and no key was given; unwrap its data key", place=place
            )
        empty: array[int] = array("Q")
        archive = Archive(manifest, read_range, cipher, empty, empty, empty, None)
        archive._read_tail()
        return archive

    @property
    def frame_count(self) -> int:
        """Frames of this blob."""
        return self.manifest.archive.frame_count

    def read_frames(self, first: int, count: int) -> list[bytes]:
        """`count` decoded frames from `first` on, with one range read; IntegrityError names the frame."""
        return self.decode_frames(first, count, self.read_stored(first, count), first)

    def read_stored(self, first: int, count: int) -> bytes:
        """`count` frames from `first` on as they are stored, with one range read."""
        start = self.offsets[first]
        return self._read(
            start, self.offsets[first + count] - start, f"frame {first} of {self.manifest.data}"
        )

    def decode_frames(self, first: int, count: int, stored: bytes, stored_first: int) -> list[bytes]:
        """`count` frames from `first` on, out of what `read_stored` gave from frame `stored_first` on."""
        view, start = memoryview(stored), self.offsets[stored_first]
        return [
            self._decode(n, view[self.offsets[n] - start : self.offsets[n + 1] - start])
            for n in range(first, first + count)
        ]

    def describe_frame(self, number: int) -> str:
        """`frame 17 of prod/…/x.pages (pages 1088 to 1151)`: a place a person can look at."""
        per = self.manifest.archive.frame_pages
        first, last = number * per, min((number + 1) * per, self.manifest.archive.stored_pages) - 1
        if self.page_ids is not None:
            first, last = self.page_ids[first], self.page_ids[last]
        return f"frame {number} of {self.manifest.data} (pages {first} to {last})"

    def _decode(self, number: int, stored: memoryview) -> bytes:
        import xxhash
        import zstandard

        place = self.describe_frame(number)
        if xxhash.xxh3_64_intdigest(stored) != self.checksums[number]:
            raise IntegrityError(f"{place} is not what was stored: its checksum differs", place=place)
        frame = bytes(stored)
        if self.cipher:
            frame = self.cipher.decrypt("fram", number, frame, place)
        expected = self._raw_bytes(number)
        try:
            if zstandard.frame_content_size(frame) != expected:
                raise IntegrityError(f"{place} does not hold the {expected} bytes it should", place=place)
            raw: bytes = _decompressor().decompress(frame)
        except zstandard.ZstdError as error:
            raise IntegrityError(f"{place} cannot be decompressed: {error}", place=place) from error
        if len(raw) != expected:
            raise IntegrityError(f"{place} does not hold the {expected} bytes it should", place=place)
        return raw

    def _raw_bytes(self, number: int) -> int:
        summary = self.manifest.archive
        pages = min(summary.frame_pages, summary.stored_pages - number * summary.frame_pages)
        return pages * self.manifest.database.page_size

    def _read(self, offset: int, length: int, place: str) -> bytes:
        data = self.read_range(offset, length)
        with self._counting:  # several threads read
            self.requests += 1
            self.bytes_read += len(data)
        if len(data) != length:
            raise IntegrityError(
                f"{place}: the blob ended early, {len(data)} of {length} bytes at offset {offset}",
                place=place,
            )
        return data

    def _read_tail(self) -> None:
        summary, name = self.manifest.archive, self.manifest.data
        index_place = f"index of {name}"
        tail = self._read(summary.index.offset, summary.stored_bytes - summary.index.offset, index_place)
        index, table = tail[: summary.index.length], tail[summary.index.length :]
        if hashlib.sha256(index).hexdigest() != summary.index.sha256:
            raise IntegrityError(
                f"{index_place} is not what was stored: its sha256 differs from the manifest's",
                place=index_place,
            )
        entries = list(_INDEX_ENTRY.iter_unpack(index))
        self.lengths = array("Q", [length for length, _ in entries])
        self.checksums = array("Q", [checksum for _, checksum in entries])
        self.offsets = array("Q", [0, *accumulate(self.lengths)])
        if self.offsets[-1] != summary.index.offset:
            raise IntegrityError(f"{index_place}: its frames do not fill the blob", place=index_place)
        self._check_table(self._table(table))

    def _table(self, stored: bytes) -> bytes:
        place = f"page table of {self.manifest.data}"
        if hashlib.sha256(stored).hexdigest() != self.manifest.archive.page_table.sha256:
            raise IntegrityError(
                f"{place} is not what was stored: its sha256 differs from the manifest's", place=place
            )
        return self.cipher.decrypt("tabl", 0, stored, place) if self.cipher else stored

    def _check_table(self, table: bytes) -> None:
        if self.manifest.kind is Kind.FULL:
            return
        ids = array("I")
        ids.frombytes(table[: 4 * self.manifest.archive.stored_pages])
        self.page_ids = _little_endian(ids)
        ascending = all(map(int.__lt__, self.page_ids, self.page_ids[1:]))
        if not ascending or (ids and self.page_ids[-1] >= self.manifest.database.page_count):
            place = f"page table of {self.manifest.data}"
            raise IntegrityError(f"{place}: its page numbers are not in order", place=place)

    def read_digests(self) -> bytes:
        """The digests of the stored pages, 8 bytes each: read again, since only the next delta needs them."""
        where = self.manifest.archive.page_table
        stored = self._read(where.offset, where.length, f"page table of {self.manifest.data}")
        return self._table(stored)[4 * len(self.page_ids or ()) :]


class Chain:
    """A full and its deltas, oldest first, as the one database they stand for.

    Holds a byte for each page, or five where there are deltas. Use `Chain.open`.
    """

    def __init__(self, archives: Sequence[Archive], source: bytearray, position: Sequence[int]) -> None:
        self.archives = tuple(archives)
        self.manifest = archives[-1].manifest
        self._source = source
        self._position = position

    @staticmethod
    def open(archives: Sequence[Archive]) -> Chain:
        """Checks that each delta's parent is the archive before it; IntegrityError otherwise."""
        check_links([archive.manifest for archive in archives])
        full = archives[0]
        count = full.manifest.database.page_count
        source = bytearray(count)
        if len(archives) == 1:
            return Chain(archives, source, range(count))
        position = array("I", range(count))
        for number, archive in enumerate(archives[1:], start=1):
            _apply(archive, number, source, position)
        return Chain(archives, source, position)

    @property
    def requests(self) -> int:
        """Range reads asked of the store so far."""
        return sum(archive.requests for archive in self.archives)

    @property
    def bytes_read(self) -> int:
        """Bytes read from the store so far."""
        return sum(archive.bytes_read for archive in self.archives)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all data blobs of the chain."""
        return sum(archive.manifest.archive.stored_bytes for archive in self.archives)

    def page_table(self) -> PageTable:
        """The page table of the newest backup, read from the store: what the next delta is compared with."""
        database, size = self.manifest.database, _DIGEST_BYTES
        digests = bytearray(self.archives[0].read_digests())
        for archive in self.archives[1:]:
            count = archive.manifest.database.page_count
            digests = digests[: count * size].ljust(count * size, b"\0")
            stored = archive.read_digests()
            for at, pgid in enumerate(archive.page_ids or ()):
                digests[pgid * size : (pgid + 1) * size] = stored[at * size : (at + 1) * size]
        seed = self.manifest.archive.digest_seed
        return PageTable(database.page_size, database.page_count, seed, bytes(digests))

    def image(self, cached_frames: int = 16) -> ChainImage:
        """Random access by page number (a `shared.model.bolt.Image`)."""
        return ChainImage(self, cached_frames)

    def pieces(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Where `count` pages from `first` on are stored: runs of (archive, position in it, pages).

        No run crosses a frame.
        """
        source, position, end = self._source, self._position, first + count
        while first < end:
            archive, start = source[first], position[first]
            per = self.archives[archive].manifest.archive.frame_pages
            most = min(end - first, per - start % per)
            length = 1
            while (
                length < most
                and source[first + length] == archive
                and position[first + length] == start + length
            ):
                length += 1
            yield archive, start, length
            first += length

    def stream(self, workers: int = 3) -> Iterator[bytes]:
        """The database bytes in file order, then etcd's 32-byte sha256: exactly what etcd sent.

        Reads ahead in `workers` threads; frames that newer ones replace entirely are not read. Memory: about
        15 MiB, and one or two frames for each delta. The caller checks the sha256 (it scans the bytes
        anyway).
        """
        pools = _Pools(workers)
        try:
            yield from self._groups([*self._cursors(pools)])
            yield bytes.fromhex(self.manifest.database.sha256)
        finally:
            pools.close()

    def _cursors(self, pools: _Pools) -> Iterator[_Cursor]:
        for number, archive in enumerate(self.archives):
            frames = self._needed_frames(number)
            if number == 0:
                yield _Cursor(archive, frames, pools, READ_BYTES)
            else:
                yield _Cursor(archive, frames, pools, READ_BYTES // (len(self.archives) - 1))

    def _needed_frames(self, number: int) -> array[int]:
        archive, source = self.archives[number], self._source
        per, count = archive.manifest.archive.frame_pages, self.manifest.database.page_count
        if archive.page_ids is None:
            last = min(count, archive.manifest.archive.stored_pages)
            return array("I", [at // per for at in range(0, last, per) if number in source[at : at + per]])
        used = {
            at // per for at, pgid in enumerate(archive.page_ids) if pgid < count and source[pgid] == number
        }
        return array("I", sorted(used))

    def _groups(self, cursors: list[_Cursor]) -> Iterator[bytes]:
        per = self.archives[0].manifest.archive.frame_pages
        size, count = self.manifest.database.page_size, self.manifest.database.page_count
        for first in range(0, count, per):
            pages = min(per, count - first)
            runs = list(self.pieces(first, pages)) if any(self._source[first : first + pages]) else []
            if not runs:  # untouched since the full
                yield cursors[0].frame(first // per)[: pages * size]
                continue
            parts = []
            for archive, start, length in runs:
                frame = cursors[archive].frame(start // cursors[archive].frame_pages)
                at = start % cursors[archive].frame_pages * size
                parts.append(frame[at : at + length * size])
            yield b"".join(parts)


class ChainImage:
    """Pages of a chain by range requests, with a small cache of decoded frames."""

    def __init__(self, chain: Chain, cached_frames: int) -> None:
        self.page_size = chain.manifest.database.page_size
        self.page_count = chain.manifest.database.page_count
        self._chain = chain
        self._most = cached_frames
        self._frames: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def read(self, pgid: int, count: int) -> bytes:
        """`count` pages from `pgid` on; IntegrityError when out of range or damaged."""
        if pgid < 0 or count < 0 or pgid + count > self.page_count:
            place = f"page {pgid}"
            raise IntegrityError(
                f"{place}: {count} pages from there on are beyond the file's end", place=place
            )
        parts = []
        for archive, start, length in self._chain.pieces(pgid, count):
            per = self._chain.archives[archive].manifest.archive.frame_pages
            at = start % per * self.page_size
            parts.append(self._frame(archive, start // per)[at : at + length * self.page_size])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _frame(self, archive: int, number: int) -> bytes:
        key = (archive, number)
        if key not in self._frames:
            self._frames[key] = self._chain.archives[archive].read_frames(number, 1)[0]
            if len(self._frames) > self._most:
                self._frames.popitem(last=False)
        self._frames.move_to_end(key)
        return self._frames[key]


class _Cursor:
    """The listed frames of one archive in order: read in large ranges, decoded a few at a time.

    Large ranges because requests cost; few at a time because decoded frames are several times larger.
    """

    def __init__(self, archive: Archive, frames: array[int], pools: _Pools, read_bytes: int) -> None:
        self.frame_pages = archive.manifest.archive.frame_pages
        self._archive = archive
        self._groups = self._decoded(_batches(frames, archive.lengths, read_bytes), pools)
        self._first = 0
        self._frames: list[bytes] = []

    def frame(self, number: int) -> bytes:
        """The decoded frame `number`, which must not lie before the last one asked for."""
        while number >= self._first + len(self._frames):
            self._frames = []  # let go of the old group before waiting for the next
            self._first, self._frames = next(self._groups)
        return self._frames[number - self._first]

    def _decoded(
        self, batches: Iterator[tuple[int, int]], pools: _Pools
    ) -> Iterator[tuple[int, list[bytes]]]:
        decoding: deque[tuple[int, Future[list[bytes]]]] = deque()
        for first, count, stored in self._read(batches, pools.read):
            for start in range(first, first + count, _GROUP_FRAMES):
                size = min(_GROUP_FRAMES, first + count - start)
                decode = self._archive.decode_frames
                decoding.append((start, pools.decode.submit(decode, start, size, stored, first)))
                if len(decoding) > _GROUPS_AHEAD:
                    number, group = decoding.popleft()
                    yield number, group.result()
        for number, group in decoding:
            yield number, group.result()

    def _read(
        self, batches: Iterator[tuple[int, int]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, int, bytes]]:
        """Each batch as it is stored; the one after it is being read meanwhile."""
        ahead: tuple[int, int, Future[bytes]] | None = None
        for batch in batches:
            current, ahead = ahead, (*batch, pool.submit(self._archive.read_stored, *batch))
            if current:
                yield current[0], current[1], current[2].result()
        if ahead:
            yield ahead[0], ahead[1], ahead[2].result()


class _Pools:
    """Threads that read from the store, and threads that decode; closing waits for them."""

    def __init__(self, workers: int) -> None:
        self.read = ThreadPoolExecutor(workers, thread_name_prefix="read")
        self.decode = ThreadPoolExecutor(2, thread_name_prefix="decode")

    def close(self) -> None:
        """Ends both."""
        self.read.shutdown(wait=True, cancel_futures=True)
        self.decode.shutdown(wait=True, cancel_futures=True)


def _batches(frames: Iterable[int], lengths: array[int], read_bytes: int) -> Iterator[tuple[int, int]]:
    """Runs of consecutive frames, (first, count), of at most `read_bytes` as stored, or of one frame."""
    first, count, stored = -1, 0, 0
    for number in frames:
        follows = number == first + count and stored + lengths[number] <= read_bytes
        if count and not follows:
            yield first, count
            count = 0
        if not count:
            first, stored = number, 0
        count += 1
        stored += lengths[number]
    if count:
        yield first, count


def check_links(manifests: Sequence[Manifest]) -> None:
    """A full, then deltas each naming the one before it by name and digest; IntegrityError otherwise."""
    if not manifests or manifests[0].kind is not Kind.FULL:
        name = manifests[0].name if manifests else "none"
        raise IntegrityError(
            f"the chain begins with '{name}', which is not a full backup", place=f"manifest {name}"
        )
    if len(manifests) > _MAX_ARCHIVES:
        raise IntegrityError(
            f"the chain has more than {_MAX_ARCHIVES} backups", place=f"manifest {manifests[-1].name}"
        )
    for parent, child in pairwise(manifests):
        ref, place = child.parent, f"parent of {child.name}"
        if ref is None or (ref.name, ref.digest) != (parent.name, parent.digest()):
            raise IntegrityError(
                f"'{parent.name}' is not the parent that '{child.name}' was made against", place=place
            )
        same = parent.database.page_size == child.database.page_size
        if not same or parent.archive.digest_seed != child.archive.digest_seed:
            raise IntegrityError(f"'{child.name}' and its parent differ in page size or seed", place=place)


def _apply(archive: Archive, number: int, source: bytearray, position: array[int]) -> None:
    """Lay a delta over what is below it."""
    count, ids = archive.manifest.database.page_count, archive.page_ids or ()
    del source[count:], position[count:]
    grown = max(0, count - len(source))
    place = f"page table of {archive.manifest.data}"
    if grown > len(ids):
        raise IntegrityError(f"{place}: {grown} pages are new, but it stores {len(ids)}", place=place)
    source += bytes([_NOWHERE]) * grown
    position.frombytes(bytes(4 * grown))
    for at, pgid in enumerate(ids):
        source[pgid] = number
        position[pgid] = at
    missing = source.find(_NOWHERE)
    if missing >= 0:
        raise IntegrityError(f"{place}: page {missing} is stored nowhere in the chain", place=place)


def _decompressor() -> ZstdDecompressor:
    """This thread's; making one for each frame would cost more than small frames do."""
    if not hasattr(_THREAD, "decompressor"):
        import zstandard

        _THREAD.decompressor = zstandard.ZstdDecompressor()
    found: ZstdDecompressor = _THREAD.decompressor
    return found


def _check_summary(manifest: Manifest) -> None:
    """The manifest's own figures fit together, so that nothing below divides, seeks or allocates wildly."""
    summary, database = manifest.archive, manifest.database
    pages = summary.stored_pages
    full = manifest.kind is Kind.FULL
    table = pages * (_DIGEST_BYTES if full else _DIGEST_BYTES + 4)
    table += _TAG_BYTES if manifest.encryption else 0
    index_end = summary.index.offset + summary.index.length
    fits = (
        summary.codec == CODEC
        and database.size_bytes == database.page_count * database.page_size
        and (pages == database.page_count if full else pages <= database.page_count)
        and summary.frame_count == -(-pages // summary.frame_pages)
        and summary.index.length == summary.frame_count * _INDEX_ENTRY.size
        and summary.page_table.offset == index_end
        and summary.page_table.length == table
        and summary.stored_bytes == index_end + table
        and (manifest.encryption is None or manifest.encryption.algorithm == ALGORITHM)
    )
    if not fits:
        place = f"manifest {manifest.name}"
        raise IntegrityError(f"{place}: its figures do not fit together; use another backup", place=place)


def _section(offset: int, data: bytes) -> Section:
    return Section(offset=offset, length=len(data), sha256=hashlib.sha256(data).hexdigest())


def _little_endian(values: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return values
    swapped = array(values.typecode, values)
    swapped.byteswap()
    return swapped


def _stream_error(problem: str) -> IntegrityError:
    return IntegrityError(f"the snapshot stream is damaged: {problem}; nothing was committed", place="stream")

"""The data blob of a backup: pages of the database in compressed, optionally encrypted frames, and how to
read it.

Writes (`ArchiveWriter`) what etcd streams, as a full or as the pages that differ from the parent's; reads one
data blob (`Archive`) or a full with its deltas (`Chain`) through a range reader, at random or in file order.
Knows nothing of stores, networks or manifests' whereabouts: `transfer`, `verify` and `restore` bring those.
The format is specified in docs/reference/backup-format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from shared.model.backup import ArchiveSummary, DatabaseSummary, Manifest

RangeReader = Callable[[int, int], bytes]
"""`(offset, length)` to exactly those bytes of the data blob; called from several threads."""


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
    `data_key` (32 bytes) encrypts. Feed the stream in any chunking, trailer included, and upload what comes
    back, in order.
    """

    def __init__(
        self, run: str, *, parent: PageTable | None = None, data_key: bytes | None = None, workers: int = 2
    ) -> None:
        raise NotImplementedError

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; returns stored bytes that became ready (often none)."""
        raise NotImplementedError

    def finish(self) -> ArchiveResult:
        """After the last byte: the rest to upload. IntegrityError if etcd's sha256 trailer does not match."""
        raise NotImplementedError

    def close(self) -> None:
        """End the worker threads; call it also when the stream failed. Safe to call twice."""
        raise NotImplementedError


class Archive:
    """One data blob, opened: index and page table read and checked."""

    manifest: Manifest

    @staticmethod
    def open(manifest: Manifest, read_range: RangeReader, data_key: bytes | None = None) -> Archive:
        """Reads index and page table (two range reads); IntegrityError names the place."""
        raise NotImplementedError


class Chain:
    """A full and its deltas, oldest first, as the one database they stand for."""

    @staticmethod
    def open(archives: Sequence[Archive]) -> Chain:
        """Checks that each delta's parent is the archive before it; IntegrityError otherwise."""
        raise NotImplementedError

    def page_table(self) -> PageTable:
        """The page table of the newest backup: what the next delta is compared with."""
        raise NotImplementedError

    def image(self, cached_frames: int = 16) -> ChainImage:
        """Random access by page number (a `shared.model.bolt.Image`)."""
        raise NotImplementedError

    def stream(self, read_ahead: int = 3) -> Iterator[bytes]:
        """The database bytes in file order, then etcd's 32-byte sha256: exactly what etcd sent."""
        raise NotImplementedError


class ChainImage:
    """Pages of a chain by range requests, with a small cache of decoded frames."""

    page_size: int
    page_count: int

    def read(self, pgid: int, count: int) -> bytes:
        """`count` pages from `pgid` on; IntegrityError when out of range or damaged."""
        raise NotImplementedError

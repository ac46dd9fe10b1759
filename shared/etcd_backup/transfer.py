"""Moves one snapshot from an etcd member to staged blocks of a data blob, without a temporary file.

    reader thread: etcd -> bounded queue -> caller's thread: ArchiveWriter -> 2 MiB blocks -> upload threads

The member holds a read transaction open until its last byte is taken, so the reader waits for nothing but the
queue, and how long it had to wait there is reported. Memory is bounded by the queue, the frames being
compressed and the blocks under way. Staged blocks are invisible and expire by themselves; committing them is
the caller's business (`backup`), because that is an effect.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from shared.etcd_backup.archive import ArchiveWriter
from shared.model.backup import ArchiveSummary, DatabaseSummary

BLOCK_BYTES = 2 * 1024 * 1024
"""One request of the store: few requests, and little to keep. 50,000 blocks make 100 GB the largest blob."""
UPLOADS_UNDER_WAY = 3
BATCH_BYTES = 512 * 1024
"""etcd sends 32 KiB messages; handing over each of them would cost more than compressing it."""
QUEUED_BATCHES = 8


class BlockStore(Protocol):
    """Where blocks go (shared.clients.blob.BlobStore, or nothing at all in a benchmark)."""

    def stage_block(self, name: str, block_id: str, data: bytes) -> None:
        """Uploads one block; called from several threads."""


@dataclass(frozen=True)
class Staged:
    """A snapshot whose blocks are all staged under `name`, in order, and not committed.

    Seconds: `first_byte` until etcd began to send, `stream` until it had sent everything (its read
    transaction was held that long), `reader_waited` the part of it during which this side was not ready for
    more, `upload` until the last block was stored.
    """

    name: str
    block_ids: tuple[str, ...]
    archive: ArchiveSummary
    database: DatabaseSummary
    first_byte_seconds: float
    stream_seconds: float
    reader_waited_seconds: float
    upload_seconds: float

    @property
    def stored_bytes(self) -> int:
        """Size of the blob once committed."""
        return self.archive.stored_bytes


def stage(stream: Iterable[bytes], writer: ArchiveWriter, store: BlockStore, name: str, run: str) -> Staged:
    """Upload everything `stream` yields as staged blocks of blob `name`.

    Raises what the stream (UnavailableError), the archive (IntegrityError) or the store (ApiError) raises;
    nothing is committed then, and the stream is closed. `run` makes the block ids unique to this attempt.
    """
    reader = _Reader(stream)
    blocks = _Blocks(store, name, run)
    try:
        for batch in reader:
            for part in writer.feed(batch):
                blocks.add(part)
        archive, database = _finish(writer, blocks)
        ids = blocks.finish()
    finally:
        reader.close()
        writer.close()
        blocks.close()
    return Staged(
        name=name,
        block_ids=ids,
        archive=archive,
        database=database,
        first_byte_seconds=reader.first_byte_seconds,
        stream_seconds=reader.seconds,
        reader_waited_seconds=reader.waited_seconds,
        upload_seconds=time.monotonic() - reader.started,
    )


def _finish(writer: ArchiveWriter, blocks: _Blocks) -> tuple[ArchiveSummary, DatabaseSummary]:
    """Upload what is left and forget it: the page table of a large database is worth megabytes."""
    result = writer.finish()
    for part in result.tail:
        blocks.add(part)
    return result.archive, result.database


class _Reader:
    """Takes the stream in a thread of its own; iterate for its batches, raises the stream's own error."""

    def __init__(self, stream: Iterable[bytes]) -> None:
        self.started = time.monotonic()
        self.first_byte_seconds = 0.0
        self.seconds = 0.0
        self.waited_seconds = 0.0
        self._stream = stream
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(QUEUED_BATCHES)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="etcd-snapshot-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[bytes]:
        while (batch := self._queue.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch

    def close(self) -> None:
        """End the stream if it has not ended; the member lets go of its read transaction."""
        self._closed.set()
        close = getattr(self._stream, "close", None)
        if close is not None and self._thread.is_alive():
            with suppress(ValueError):  # a plain generator that is just running cannot be closed from here
                close()
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._queue.get_nowait()
            self._thread.join(0.02)

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            for batch in self._batches():
                self._put(batch)
                if self._closed.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 - handed over, raised in the consumer
            end = error
        self.seconds = time.monotonic() - self.started
        self._queue.put(end)

    def _batches(self) -> Iterator[bytes]:
        parts: list[bytes] = []
        size = 0
        for message in self._stream:
            if not self.first_byte_seconds:
                self.first_byte_seconds = time.monotonic() - self.started
            parts.append(message)
            size += len(message)
            if size >= BATCH_BYTES:
                yield b"".join(parts)
                parts.clear()
                size = 0
        if parts:
            yield b"".join(parts)

    def _put(self, batch: bytes) -> None:
        try:
            self._queue.put_nowait(batch)
        except queue.Full:
            asked = time.monotonic()
            self._queue.put(batch)
            self.waited_seconds += time.monotonic() - asked


class _Blocks:
    """Cuts what it is given into blocks and stages them, a few at a time."""

    def __init__(self, store: BlockStore, name: str, run: str) -> None:
        self._store, self._name, self._run = store, name, run
        self._pool = ThreadPoolExecutor(UPLOADS_UNDER_WAY, thread_name_prefix="upload")
        self._under_way: deque[Future[None]] = deque()
        self._parts: list[bytes] = []
        self._size = 0
        self._ids: list[str] = []

    def add(self, part: bytes) -> None:
        """Take the next bytes; waits while enough blocks are under way, and raises what one of them met."""
        for start in range(0, len(part), BLOCK_BYTES):
            piece = part if len(part) <= BLOCK_BYTES else part[start : start + BLOCK_BYTES]
            self._parts.append(piece)
            self._size += len(piece)
            if self._size >= BLOCK_BYTES:
                self._send()

    def finish(self) -> tuple[str, ...]:
        """Stage what is left and wait for all; the block ids in order."""
        if self._parts:
            self._send()
        while self._under_way:
            self._under_way.popleft().result()
        return tuple(self._ids)

    def close(self) -> None:
        """End the threads; blocks not sent yet are given up."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _send(self) -> None:
        while self._under_way and (len(self._under_way) >= UPLOADS_UNDER_WAY or self._under_way[0].done()):
            self._under_way.popleft().result()
        # Unique to the run: with the same ids in two runs, a commit could pick up blocks of the other one.
        block_id = f"{self._run}-{len(self._ids):06d}"
        self._ids.append(block_id)
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self._under_way.append(self._pool.submit(self._store.stage_block, self._name, block_id, data))

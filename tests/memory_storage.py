"""A storage account in memory, on the simulated clock: blobs, leases, queues and tables as clients see them.

For sweeps of thousands of schedules, where a real Azurite would take hours; everything else about storage is
tested on Azurite. `Account` is what is stored; the other three speak for one process, which a test can let
die: then nothing of it comes through any more.
"""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from shared.clients.blob import TOMBSTONE, Blob, BlobInfo
from shared.clients.queue import Message
from shared.clients.table import Row
from shared.errors import ConflictError, NotFoundError

Touch = Callable[[str], None]
"""Called with a word about each request, before it is worked on and after it was."""


@dataclass
class _Blob:
    data: bytes
    etag: str
    metadata: dict[str, str]
    modified: datetime
    lease: tuple[str, datetime] | None = None


@dataclass
class _Message:
    id: str
    text: str
    inserted: datetime
    visible: datetime
    dequeued: int = 0
    receipt: str = ""


@dataclass
class Account:
    """Everything stored. `now` is the simulated clock."""

    now: Callable[[], datetime]
    containers: dict[str, dict[str, _Blob]] = field(default_factory=dict)
    queues: dict[str, list[_Message]] = field(default_factory=dict)
    tables: dict[str, dict[tuple[str, str], tuple[dict[str, Any], str]]] = field(default_factory=dict)
    serial: Iterator[int] = field(default_factory=itertools.count)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def etag(self) -> str:
        return f"0x{next(self.serial):X}"


class MemoryBlobs:
    """One container, as `shared.clients.blob.BlobStore`."""

    def __init__(self, account: Account, name: str, touch: Touch) -> None:
        self._account = account
        self.name = name
        self._touch = touch

    def _do(self, word: str, work: Callable[[dict[str, _Blob]], Any], *, create: bool = False) -> Any:
        self._touch(f"blob {word}")
        with self._account.lock:
            if self.name not in self._account.containers and not create:
                raise NotFoundError("no container", status=404, code="ContainerNotFound")
            done = work(self._account.containers.setdefault(self.name, {}))
        self._touch(f"blob {word} done")
        return done

    def ensure(self) -> None:
        self._do("ensure", lambda _: None, create=True)

    def read(self, name: str) -> Blob:
        def work(blobs: dict[str, _Blob]) -> Blob:
            found = _there(blobs, name)
            if TOMBSTONE in found.metadata:
                raise NotFoundError("sealed", status=404, code="BlobNotFound")
            return Blob(found.data, found.etag, dict(found.metadata))

        return self._do(f"read {name}", work)

    def properties(self, name: str) -> BlobInfo:
        return self._do(f"properties {name}", lambda blobs: _info(name, _there(blobs, name)))

    def create(self, name: str, data: bytes, metadata: Mapping[str, str] | None = None) -> str:
        def work(blobs: dict[str, _Blob]) -> str:
            if name in blobs:
                raise ConflictError("taken", status=409, code="BlobAlreadyExists")
            blobs[name] = _Blob(data, self._account.etag(), dict(metadata or {}), self._account.now())
            return blobs[name].etag

        return self._do(f"create {name}", work)

    def commit_blocks(
        self, name: str, block_ids: Sequence[str], metadata: Mapping[str, str] | None = None
    ) -> str:
        assert not block_ids, "only tombstones are written this way here"
        return self.create(name, b"", metadata)

    def replace(self, name: str, data: bytes, etag: str, metadata: Mapping[str, str] | None = None) -> str:
        def work(blobs: dict[str, _Blob]) -> str:
            found = _matching(blobs, name, etag)
            found.data, found.etag, found.metadata = data, self._account.etag(), dict(metadata or {})
            return found.etag

        return self._do(f"replace {name}", work)

    def delete(self, name: str, etag: str | None = None) -> None:
        def work(blobs: dict[str, _Blob]) -> None:
            _matching(blobs, name, etag)
            del blobs[name]

        self._do(f"delete {name}", work)

    def list(self, prefix: str = "", *, tombstones: bool = False) -> Iterator[BlobInfo]:
        def work(blobs: dict[str, _Blob]) -> list[BlobInfo]:
            return [
                _info(name, blob)
                for name, blob in sorted(blobs.items())
                if name.startswith(prefix) and (TOMBSTONE in blob.metadata) == tombstones
            ]

        yield from self._do(f"list {prefix}", work)

    def acquire_lease(self, name: str, lease_id: str, seconds: int) -> None:
        def work(blobs: dict[str, _Blob]) -> None:
            found, now = _there(blobs, name), self._account.now()
            if found.lease and found.lease[0] != lease_id and found.lease[1] > now:
                raise ConflictError("leased", status=409, code="LeaseAlreadyPresent")
            found.lease = (lease_id, now + timedelta(seconds=seconds))

        self._do(f"lease {name}", work)

    def renew_lease(self, name: str, lease_id: str) -> None:
        def work(blobs: dict[str, _Blob]) -> None:
            found = _there(blobs, name)
            if not found.lease or found.lease[0] != lease_id:
                raise ConflictError("lost", status=409, code="LeaseIdMismatchWithLeaseOperation")
            found.lease = (lease_id, self._account.now() + timedelta(seconds=30))

        self._do(f"renew {name}", work)

    def release_lease(self, name: str, lease_id: str) -> None:
        def work(blobs: dict[str, _Blob]) -> None:
            found = _there(blobs, name)
            if not found.lease or found.lease[0] != lease_id:
                raise ConflictError("lost", status=409, code="LeaseIdMismatchWithLeaseOperation")
            found.lease = None

        self._do(f"release {name}", work)


class MemoryQueue:
    """One queue, as `shared.clients.queue.Queue`."""

    def __init__(self, account: Account, name: str, touch: Touch) -> None:
        self._account = account
        self.name = name
        self._touch = touch

    def ensure(self) -> None:
        self._account.queues.setdefault(self.name, [])

    def send(self, text: str, delay: timedelta = timedelta(0)) -> str:
        self._touch(f"queue send {self.name}")
        with self._account.lock:
            now = self._account.now()
            message = _Message(uuid.uuid4().hex, text, now, now + delay)
            self._account.queues.setdefault(self.name, []).append(message)
        self._touch(f"queue send {self.name} done")
        return message.id

    def receive(self, invisible: timedelta, count: int = 32) -> tuple[Message, ...]:
        with self._account.lock:
            now = self._account.now()
            found = [m for m in self._account.queues.get(self.name, []) if m.visible <= now][:count]
            for message in found:
                message.visible, message.receipt = now + invisible, uuid.uuid4().hex
                message.dequeued += 1
            return tuple(
                Message(
                    id=m.id,
                    text=m.text,
                    dequeue_count=m.dequeued,
                    inserted_at=m.inserted.replace(microsecond=0),
                    receipt=m.receipt,
                )
                for m in found
            )

    def peek(self, count: int = 32) -> tuple[Message, ...]:
        return tuple(
            Message(id=m.id, text=m.text, dequeue_count=m.dequeued, inserted_at=m.inserted, receipt="")
            for m in self._account.queues.get(self.name, [])[:count]
        )

    def put_back(self, message: Message) -> None:
        for stored in self._account.queues.get(self.name, []):
            if stored.receipt == message.receipt:
                stored.visible = self._account.now()

    def delete(self, message: Message) -> None:
        queue = self._account.queues[self.name]
        queue[:] = [stored for stored in queue if stored.receipt != message.receipt]

    def next_visible(self) -> datetime | None:
        """When the next message can be taken; None when there is none at all."""
        return min((m.visible for m in self._account.queues.get(self.name, [])), default=None)


class MemoryTable:
    """One table, as `shared.clients.table.Table`; queries give all rows of a partition."""

    def __init__(self, account: Account, name: str, touch: Touch) -> None:
        self._rows = account.tables.setdefault(name, {})
        self._account = account
        self.name = name
        self._touch = touch

    def insert(self, entity: dict[str, Any]) -> str:
        if _key(entity) in self._rows:
            raise ConflictError("taken", status=409, code="EntityAlreadyExists")
        self.put(entity)
        return self._rows[_key(entity)][1]

    def put(self, entity: dict[str, Any]) -> None:
        self._touch("table put")
        self._rows[_key(entity)] = (dict(entity), self._account.etag())

    def read(self, partition: str, row: str) -> Row:
        self._touch("table read")
        if (partition, row) not in self._rows:
            raise NotFoundError("no row", status=404, code="ResourceNotFound")
        return Row(*self._rows[partition, row])

    def delete(self, partition: str, row: str) -> None:
        self._rows.pop((partition, row), None)

    def query(
        self, condition: str = "", parameters: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        values = {str(value) for value in (parameters or {}).values()}
        found = [row for key, (row, _) in sorted(self._rows.items()) if not condition or key[0] in values]
        yield from found[:limit]


def _key(entity: Mapping[str, Any]) -> tuple[str, str]:
    return entity["PartitionKey"], entity["RowKey"]


def _there(blobs: Mapping[str, _Blob], name: str) -> _Blob:
    if name not in blobs:
        raise NotFoundError("no blob", status=404, code="BlobNotFound")
    return blobs[name]


def _matching(blobs: Mapping[str, _Blob], name: str, etag: str | None) -> _Blob:
    found = _there(blobs, name)
    if etag is not None and found.etag != etag:
        raise ConflictError("changed", status=412, code="ConditionNotMet")
    return found


def _info(name: str, blob: _Blob) -> BlobInfo:
    return BlobInfo(
        name=name,
        size=len(blob.data),
        etag=blob.etag,
        last_modified=blob.modified,
        metadata=dict(blob.metadata),
    )

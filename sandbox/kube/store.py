"""Where the stand-in keeps objects: encoded, with the few fields that selectors look at, and their history.

One revision counts all writes, as etcd's does. Each kind remembers its latest events, so that watches can
begin in the past and pages of one list show one moment. Decides nothing about what a write may do: see
`sandbox.kube.rules`. Threads may share a store; its lock is `lock`, held by whoever reads in order to write.
"""

from __future__ import annotations

import bisect
import gc
import heapq
import itertools
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import msgspec

from sandbox.kube.errors import expired
from sandbox.kube.kinds import KINDS, Kind
from sandbox.kube.selectors import Matches, selectable_fields

Document: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str]
"""(namespace or "", name)."""
EVENTS_KEPT = 20_000
_ENCODE = msgspec.json.Encoder().encode
_DECODE = msgspec.json.Decoder(Document).decode


class Record(NamedTuple):
    """One version of one object. `data` is its JSON without kind and apiVersion."""

    key: Key
    revision: int
    data: bytes
    labels: dict[str, str]
    fields: dict[str, str]

    def decode(self) -> Document:
        """A fresh copy, for its owner to change."""
        return _DECODE(self.data)


class Change(NamedTuple):
    """One event: of a creation `old` is None, of a deletion `new` is (and `data` its last words)."""

    revision: int
    old: Record | None
    new: Record | None
    data: bytes


class Selection(NamedTuple):
    """Which objects of a kind a request is about."""

    namespace: str = ""
    labels: Matches | None = None
    fields: Matches | None = None
    names: Matches | None = None
    """Asked of `metadata.name` and `metadata.namespace`."""

    def has(self, record: Record | None) -> bool:
        if record is None or (self.namespace and record.key[0] != self.namespace):
            return False
        if self.labels is not None and not self.labels(record.labels):
            return False
        if self.fields is not None and not self.fields(record.fields):
            return False
        if self.names is None:
            return True
        return self.names({"metadata.namespace": record.key[0], "metadata.name": record.key[1]})


class Page(NamedTuple):
    """Part of a list: `next_key` is where what follows begins, `rest` how many objects that are at most."""

    records: list[Record]
    revision: int
    next_key: Key | None
    rest: int


class _Shelf:
    """The objects of one kind, in the order of their keys, and their latest changes."""

    def __init__(self) -> None:
        self.records: dict[Key, Record] = {}
        self.keys: list[Key] = []
        self.changes: list[Change] = []
        self.forgotten = 0
        """Changes up to this revision are no longer known."""


class Store:
    """All objects of a cluster."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.revision = 1
        self._shelves: dict[Kind, _Shelf] = {kind: _Shelf() for kind in KINDS}
        self._listeners: dict[Kind, list[Callable[[], None]]] = defaultdict(list)

    # Reading

    def get(self, kind: Kind, key: Key) -> Record | None:
        return self._shelves[kind].records.get(key)

    def count(self, kind: Kind) -> int:
        return len(self._shelves[kind].records)

    def select(self, kind: Kind, selection: Selection | None = None) -> Iterator[Record]:
        """In the order of their keys; take the lock, or nothing may be written meanwhile."""
        shelf = self._shelves[kind]
        selection = selection or Selection()
        for key in self._keys(shelf, selection.namespace):
            record = shelf.records[key]
            if selection.has(record):
                yield record

    def page(
        self, kind: Kind, selection: Selection, *, limit: int = 0, start: Key | None = None, revision: int = 0
    ) -> Page:
        """As of `revision` (0: now), from key `start` on; `expired` when that is forgotten."""
        with self.lock:
            shelf = self._shelves[kind]
            at = revision or self.revision
            if then := self._undone(shelf, at):
                past = self._past(shelf, selection, then, start)
                records = list(past if not limit else itertools.islice(past, limit + 1))
                return _cut(records, at, limit, len(shelf.records))
            keys = self._keys(shelf, selection.namespace, start)
            records = []
            for number, key in enumerate(keys):
                record = shelf.records[key]
                if selection.has(record):
                    if limit and len(records) == limit:
                        return Page(records, at, key, len(keys) - number)
                    records.append(record)
            return Page(records, at, None, 0)

    @staticmethod
    def _undone(shelf: _Shelf, revision: int) -> dict[Key, Record | None]:
        """What was there, at that revision, of everything that has changed since; `expired` if forgotten."""
        if revision < shelf.forgotten:
            raise expired(revision, shelf.forgotten)
        then: dict[Key, Record | None] = {}
        for change in reversed(shelf.changes):
            if change.revision <= revision:
                break
            touched = change.new or change.old
            assert touched is not None
            then[touched.key] = change.old
        return then

    def _past(
        self, shelf: _Shelf, selection: Selection, then: dict[Key, Record | None], start: Key | None
    ) -> Iterator[Record]:
        """In the order of their keys, only as far as anyone asks."""
        now = self._keys(shelf, selection.namespace, start)
        gone = sorted(key for key in then if key not in shelf.records and (start is None or key >= start))
        for key in heapq.merge(now, gone):
            record = then[key] if key in then else shelf.records[key]
            if record is not None and selection.has(record):
                yield record

    @staticmethod
    def _keys(shelf: _Shelf, namespace: str, start: Key | None = None) -> list[Key]:
        first = max(start or ("", ""), (namespace, ""))
        low = bisect.bisect_left(shelf.keys, first)
        if not namespace:
            return shelf.keys[low:]
        return shelf.keys[low : bisect.bisect_left(shelf.keys, (namespace + "\0", ""))]

    # Writing

    def write(self, kind: Kind, document: Document) -> Record:
        """Stores an object under the next revision, which it is told; new or not."""
        with self.lock:
            shelf = self._shelves[kind]
            self.revision += 1
            metadata = document["metadata"]
            metadata["resourceVersion"] = str(self.revision)
            key = (metadata.get("namespace", ""), metadata["name"])
            old = shelf.records.get(key)
            record = _record(kind, key, self.revision, document)
            shelf.records[key] = record
            if old is None:
                bisect.insort(shelf.keys, key)
            self._changed(kind, Change(self.revision, old, record, record.data))
            return record

    def load(self, kind: Kind, documents: Iterable[Document]) -> int:
        """Many new objects at once, complete as they are but for their versions; how many. Their creation is
        not remembered: watches of what was before are refused, as after a restart.
        """
        with self.lock:
            shelf = self._shelves[kind]
            is_collecting = gc.isenabled()
            gc.disable()  # nothing here is garbage, and looking for it again and again takes most of the time
            before = len(shelf.records)
            try:
                for document in documents:
                    self.revision += 1
                    metadata = document["metadata"]
                    metadata["resourceVersion"] = str(self.revision)
                    key = (metadata.get("namespace", ""), metadata["name"])
                    shelf.records[key] = _record(kind, key, self.revision, document)
            finally:
                if is_collecting:
                    gc.enable()
                shelf.keys = sorted(shelf.records)
                shelf.changes.clear()
                shelf.forgotten = self.revision
            for listener in self._listeners[kind]:
                listener()
            return len(shelf.records) - before

    def remove(self, kind: Kind, key: Key) -> bytes:
        """Deletes an object; its last words, which carry the revision of the deletion."""
        with self.lock:
            shelf = self._shelves[kind]
            old = shelf.records.pop(key)
            del shelf.keys[bisect.bisect_left(shelf.keys, key)]
            self.revision += 1
            last = old.decode()
            last["metadata"]["resourceVersion"] = str(self.revision)
            data = _ENCODE(last)
            self._changed(kind, Change(self.revision, old, None, data))
            return data

    def _changed(self, kind: Kind, change: Change) -> None:
        shelf = self._shelves[kind]
        shelf.changes.append(change)
        if len(shelf.changes) > 2 * EVENTS_KEPT:
            shelf.forgotten = shelf.changes[-EVENTS_KEPT - 1].revision
            del shelf.changes[:-EVENTS_KEPT]
        for listener in self._listeners[kind]:
            listener()

    # Watching

    def changes(self, kind: Kind, since: int) -> list[Change]:
        """What happened after that revision, oldest first; `expired` when it is forgotten."""
        with self.lock:
            shelf = self._shelves[kind]
            if since < shelf.forgotten:
                raise expired(since, shelf.forgotten)
            return shelf.changes[bisect.bisect_right(shelf.changes, since, key=lambda c: c.revision) :]

    def listen(self, kind: Kind, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls back after each change of the kind, with the lock held; returns how to stop that."""
        self._listeners[kind].append(listener)
        return lambda: self._listeners[kind].remove(listener)

    def forget(self) -> None:
        """Drops all history: watches of the past are refused from now on."""
        with self.lock:
            for shelf in self._shelves.values():
                shelf.changes.clear()
                shelf.forgotten = self.revision


def _cut(records: list[Record], at: int, limit: int, all_there_are: int) -> Page:
    if not limit or len(records) <= limit:
        return Page(records, at, None, 0)
    return Page(records[:limit], at, records[limit].key, max(1, all_there_are - limit))


def _record(kind: Kind, key: Key, revision: int, document: Document) -> Record:
    stored = {name: value for name, value in document.items() if name not in ("kind", "apiVersion")}
    # The same few words stand in thousands of objects: keep each once.
    labels = _shared(document["metadata"].get("labels") or {})
    fields = _shared(selectable_fields(kind, document))
    # Copied, as the encoder's own bytes leave the unused end of its buffer behind: a third of the memory.
    data = bytes(memoryview(_ENCODE(stored)))
    return Record((sys.intern(key[0]), key[1]), revision, data, labels, fields)


_SHARED: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
_SHARED_AT_MOST = 100_000


def _shared(words: dict[str, str]) -> dict[str, str]:
    """The same dictionary for the same content; nobody changes it."""
    content = tuple(words.items())
    found = _SHARED.get(content)
    if found is None:
        found = {sys.intern(name): sys.intern(value) for name, value in words.items()}
        if len(_SHARED) < _SHARED_AT_MOST:
            _SHARED[tuple(found.items())] = found
    return found

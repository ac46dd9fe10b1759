"""The journal: what was done, refused, settled or failed, newest first, in one table.

One row per entry, partition `<cluster>|<automation>`, row key an inverted time, so that the newest comes
first without sorting. Besides: the summary of each automation's last pass, the last tick of each timer, the
sizes of node pools over time, and why a message failed (found again by the message's own text, because a
poison queue gives it a new id).
Called by `shared.record`, the runtime, the health page and the CLI; decides nothing.
"""

from __future__ import annotations

import hashlib
import heapq
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec

from shared.clients.table import Entity, Table
from shared.errors import NotFoundError

TABLE = "kubekeeperjournal"

MAX_TEXT = 30_000
"""Characters of one property: the service allows 32 Ki UTF-16 units."""

_END_OF_TIME = 10**17
"""Microseconds; row keys count down from here (until the year 5138)."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One line of the journal. `kind`: Outcome, Settled or Failed; `action`: an ActionKind or empty."""

    at: datetime
    cluster: str
    automation: str
    kind: str
    message: str
    status: str = ""
    action: str = ""
    target: str = ""
    reason: str = ""
    operation_id: str = ""
    evidence: tuple[str, ...] = ()
    data: dict[str, Any] = {}


class Summary(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What an automation last saw, did and left alone on one cluster. `alarms`: when each was last raised."""

    at: datetime
    cluster: str
    automation: str
    digest: str = ""
    actions: tuple[dict[str, Any], ...] = ()
    left_alone: tuple[dict[str, Any], ...] = ()
    alarms: dict[str, datetime] = {}


class PoolSize(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One node pool at one time. `nodes`: what Azure has or makes; `ready`: Ready nodes in the cluster."""

    pool: str
    nodes: int
    ready: int
    min: int
    max: int


class Sizes(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The node pools of a cluster from `at` on, and how many pods waited for a node then."""

    at: datetime
    pools: tuple[PoolSize, ...]
    waiting_pods: int = 0

    def is_same(self, other: Sizes) -> bool:
        """Whether nothing but the time differs."""
        return (self.pools, self.waiting_pods) == (other.pools, other.waiting_pods)


class Failure(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Why a message could not be processed, and how often it was tried."""

    queue: str
    reason: str
    attempts: int
    first_at: datetime
    last_at: datetime


class Journal:
    """The journal of one function app."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def add(self, entry: Entry) -> None:
        """Append an entry."""
        row = f"{_newest_first(entry.at)}-{uuid.uuid4().hex[:8]}"
        self._table.insert(
            {"PartitionKey": f"{entry.cluster}|{entry.automation}", "RowKey": row, "entry": _packed(entry)}
            | ({"operationId": entry.operation_id} if entry.operation_id else {})
        )

    def entries(self, pairs: Sequence[tuple[str, str]], limit: int = 50) -> list[Entry]:
        """The newest entries of these (cluster, automation) pairs, newest first."""
        streams = [self._stream(cluster, automation, limit) for cluster, automation in pairs]
        return list(islice(heapq.merge(*streams, key=lambda entry: entry.at, reverse=True), limit))

    def of_operation(self, operation_id: str) -> list[Entry]:
        """Every entry an operation caused, newest first; reads the whole table, so for people only."""
        found = self._table.query("operationId eq @id", {"id": operation_id})
        return sorted((_entry(row) for row in found), key=lambda entry: entry.at, reverse=True)

    def summary(self, cluster: str, automation: str) -> Summary | None:
        """The last pass of one pair; None before the first."""
        try:
            row = self._table.read("summary", f"{cluster}|{automation}").entity
        except NotFoundError:
            return None
        return msgspec.json.decode(row["summary"], type=Summary)

    def summaries(self) -> list[Summary]:
        """The last pass of every pair, by cluster and automation."""
        found = self._table.query("PartitionKey eq 'summary'")
        return [msgspec.json.decode(row["summary"], type=Summary) for row in found]

    def put_summary(self, summary: Summary) -> None:
        """Replace the summary of a pair."""
        key = f"{summary.cluster}|{summary.automation}"
        text = msgspec.json.encode(summary).decode()
        if len(text) > MAX_TEXT:
            # Thousands of candidates left alone: the first hundred and a count are what people read.
            kept = summary.left_alone[:100]
            more = {"subject": "", "reason": "More", "message": f"and {len(summary.left_alone) - 100} more"}
            actions = summary.actions[:100]
            summary = msgspec.structs.replace(summary, left_alone=(*kept, more), actions=actions)
            text = msgspec.json.encode(summary).decode()
        self._table.put({"PartitionKey": "summary", "RowKey": key, "summary": text})

    def note_sizes(self, cluster: str, sizes: Sizes) -> None:
        """Note the sizes of a cluster's node pools, unless they are what was noted last."""
        partition = f"sizes|{cluster}"
        last = next(self._table.query("PartitionKey eq @partition", {"partition": partition}, 1), None)
        if last is not None and _sizes(last).is_same(sizes):
            return
        text = msgspec.json.encode(sizes).decode()
        self._table.put({"PartitionKey": partition, "RowKey": _newest_first(sizes.at), "sizes": text})

    def sizes(self, cluster: str, since: datetime) -> list[Sizes]:
        """How a cluster's node pools changed, oldest first, beginning with how they were at `since`."""
        keys = {"partition": f"sizes|{cluster}", "since": _newest_first(since)}
        later = self._table.query("PartitionKey eq @partition and RowKey lt @since", keys)
        before = self._table.query("PartitionKey eq @partition and RowKey ge @since", keys, 1)
        return [_sizes(row) for row in (*later, *before)][::-1]

    def tick(self, automation: str, at: datetime, clusters: int) -> None:
        """Note that a timer has fired and for how many clusters."""
        self._table.put({"PartitionKey": "tick", "RowKey": automation, "at": at, "clusters": clusters})

    def ticks(self) -> dict[str, datetime]:
        """When each automation's timer last fired."""
        return {str(row["RowKey"]): _utc(row["at"]) for row in self._table.query("PartitionKey eq 'tick'")}

    def heard(self, cluster: str, at: datetime) -> None:
        """Note that a cluster's forwarder has said something."""
        self._table.put({"PartitionKey": "heard", "RowKey": cluster, "at": at})

    def last_heard(self) -> dict[str, datetime]:
        """When each cluster's forwarder last said something."""
        found = self._table.query("PartitionKey eq 'heard'")
        return {str(row["RowKey"]): _utc(row["at"]) for row in found}

    def failed(self, queue: str, text: bytes, reason: str, attempts: int, at: datetime) -> bool:
        """Note why a message failed; True the first time this text fails."""
        partition, row = f"failure|{queue}", text_digest(text)
        try:
            first = _utc(self._table.read(partition, row).entity["firstAt"])
            is_new = False
        except NotFoundError:
            first, is_new = at, True
        self._table.put(
            {
                "PartitionKey": partition,
                "RowKey": row,
                "reason": reason[:MAX_TEXT],
                "attempts": attempts,
                "firstAt": first,
                "lastAt": at,
            }
        )
        return is_new

    def failures(self, queue: str) -> dict[str, Failure]:
        """Why messages of a queue failed, by digest of their text."""
        found = self._table.query("PartitionKey eq @partition", {"partition": f"failure|{queue}"})
        return {
            str(row["RowKey"]): Failure(
                queue=queue,
                reason=str(row["reason"]),
                attempts=int(row["attempts"]),
                first_at=_utc(row["firstAt"]),
                last_at=_utc(row["lastAt"]),
            )
            for row in found
        }

    def forget_failure(self, queue: str, text: bytes) -> None:
        """Drop the reason of a message that has succeeded or was thrown away."""
        self._table.delete(f"failure|{queue}", text_digest(text))

    def ignored(self, source: str, kind: str, reason: str, at: datetime) -> None:
        """Note an event that nobody here wants: one row per type, so that a flood of them stays one row."""
        # A key holds no slash, backslash, hash or question mark, and types come from outside: the digest is
        # safe.
        row = hashlib.sha256(kind.encode()).hexdigest()[:32]
        self._table.put(
            {
                "PartitionKey": f"ignored|{source}",
                "RowKey": row,
                "type": kind[:300],
                "reason": reason[:MAX_TEXT],
                "lastAt": at,
            }
        )

    def _stream(self, cluster: str, automation: str, limit: int) -> Iterator[Entry]:
        parameters = {"partition": f"{cluster}|{automation}"}
        rows = self._table.query("PartitionKey eq @partition", parameters, limit)
        return (_entry(row) for row in rows)


def _newest_first(at: datetime) -> str:
    """A row key that sorts before those of earlier times."""
    return f"{_END_OF_TIME - round(at.timestamp() * 1_000_000):017d}"


def text_digest(text: bytes) -> str:
    """Names a message by what it says."""
    return hashlib.sha256(text).hexdigest()[:32]


def _packed(entry: Entry) -> str:
    text = msgspec.json.encode(entry).decode()
    if len(text) <= MAX_TEXT:
        return text
    small = msgspec.structs.replace(
        entry,
        message=entry.message[:2000],
        evidence=tuple(line[:300] for line in entry.evidence[:20]),
        data={"truncated": f"{len(text)} characters were too many for the journal"},
    )
    return msgspec.json.encode(small).decode()


def _entry(row: Entity) -> Entry:
    return msgspec.json.decode(row["entry"], type=Entry)


def _sizes(row: Entity) -> Sizes:
    return msgspec.json.decode(row["sizes"], type=Sizes)


def _utc(value: datetime) -> datetime:
    return datetime.fromtimestamp(value.timestamp(), UTC)

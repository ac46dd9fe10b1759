"""What asks for an operation, and what became of it: one table row per id.

The row is what makes an id run once: it is inserted if absent, and everything after that happens under the
claim of (cluster, automation). `keeper run --wait` reads it. Owns the table `kubekeeperoperations`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from shared.clients.table import Entity, Table
from shared.errors import ConflictError, NotFoundError
from shared.model.plan import Outcome, canonical_json
from shared.runtime.message import ClusterName

TABLE = "kubekeeperoperations"
_PARTITION = "operation"
_MAX_TEXT = 30_000

OperationId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class OperationMessage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What to do once. The same `id` runs once; without one, the message is its own identity."""

    id: OperationId | None = None
    operation: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    cluster: ClusterName
    parameters: dict[str, Any] = {}

    def encode(self) -> str:
        """The message text."""
        return msgspec.json.encode(self).decode()


class OperationState(enum.StrEnum):
    """Where an operation is."""

    ACCEPTED = "Accepted"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class OperationRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One operation. `message`: how it ended, or the last error; `is_final`: it will not run again."""

    id: str
    operation: str
    cluster: str
    parameters: dict[str, Any]
    state: OperationState
    is_final: bool
    accepted_at: datetime
    updated_at: datetime
    attempts: int = 0
    progress: str = ""
    message: str = ""
    outcomes: tuple[dict[str, Any], ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.state in (OperationState.SUCCEEDED, OperationState.FAILED)


class OperationRecords:
    """The table of operations."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def accept(self, operation_id: str, message: OperationMessage, now: datetime) -> OperationRecord:
        """The record of this id, made now unless there is one already (which may be of another message)."""
        record = OperationRecord(
            id=operation_id,
            operation=message.operation,
            cluster=message.cluster,
            parameters=message.parameters,
            state=OperationState.ACCEPTED,
            is_final=False,
            accepted_at=now,
            updated_at=now,
        )
        try:
            self._table.insert(_row(record))
        except ConflictError:
            return self.read(operation_id) or record
        return record

    def read(self, operation_id: str) -> OperationRecord | None:
        """The record of an id; None when no message with it has arrived."""
        try:
            return _record(self._table.read(_PARTITION, operation_id).entity)
        except NotFoundError:
            return None

    def recent(self, since: datetime) -> list[OperationRecord]:
        """Operations accepted since then, newest first."""
        found = self._table.query("acceptedAt ge @since", {"since": since})
        records = [_record(row) for row in found]
        return sorted(records, key=lambda record: record.accepted_at, reverse=True)

    def running(self, record: OperationRecord, now: datetime) -> OperationRecord:
        """Note that an attempt begins."""
        return self._put(
            record, state=OperationState.RUNNING, attempts=record.attempts + 1, updated_at=now, progress=""
        )

    def note(self, record: OperationRecord, now: datetime, *, progress: str = "", message: str = "") -> None:
        """Note how far it is, or why it has to try again."""
        self._put(record, updated_at=now, progress=progress, message=message)

    def finish(
        self,
        record: OperationRecord,
        state: OperationState,
        now: datetime,
        *,
        message: str,
        outcomes: Sequence[Outcome] = (),
        is_final: bool = True,
    ) -> OperationRecord:
        """Note how it ended; a failure that is not final runs again when its message comes again."""
        return self._put(
            record,
            state=state,
            is_final=is_final,
            updated_at=now,
            progress="",
            message=message,
            outcomes=tuple(msgspec.to_builtins(outcome) for outcome in outcomes),
        )

    def _put(self, record: OperationRecord, **changes: Any) -> OperationRecord:
        changed = msgspec.structs.replace(record, **changes)
        self._table.put(_row(changed))
        return changed


def same_request(record: OperationRecord, message: OperationMessage) -> bool:
    """Whether the message asks for what the record's id was first used for."""
    return (record.operation, record.cluster, canonical_json(record.parameters)) == (
        message.operation,
        message.cluster,
        canonical_json(message.parameters),
    )


def _row(record: OperationRecord) -> Entity:
    text = msgspec.json.encode(record).decode()
    if len(text) > _MAX_TEXT:
        # A property holds 32 Ki characters. The journal has one row per outcome; here the plain lines are
        # enough.
        short = tuple({"status": o["status"], "message": str(o["message"])[:200]} for o in record.outcomes)
        small = msgspec.structs.replace(record, outcomes=short[:100], message=record.message[:2000])
        text = msgspec.json.encode(small).decode()
    return {
        "PartitionKey": _PARTITION,
        "RowKey": record.id,
        "state": str(record.state),
        "acceptedAt": record.accepted_at,
        "record": text,
    }


def _record(row: Entity) -> OperationRecord:
    record = msgspec.json.decode(row["record"], type=OperationRecord)
    return msgspec.structs.replace(record, updated_at=record.updated_at.astimezone(UTC))

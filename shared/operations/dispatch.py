"""From a message on queue `operations` to an outcome: each id once, resumed after a crash, never dropped.

An operation that meets a held claim goes back to the end of the queue with a delay, and so does one that has
begun what takes minutes (NotYetError). A failure that another
attempt may mend is raised, so that the platform delivers again; after the last attempt the operation is
Failed and its message poisoned, from where it can be replayed. Called by the queue function; `submit` and
`get_operation` by the CLI.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.errors import LostLeaseError, MessageError, NotYetError, RunFailedError
from shared.log import log_event, redact
from shared.model.plan import Outcome, Status
from shared.operations.catalogue import Operation, Parameters, automation_of, find, read_parameters
from shared.record import is_final, record_operation, record_outcomes, record_settled
from shared.runtime import automation as automations
from shared.runtime.message import Received, decode, event_id
from shared.runtime.nudge import send
from shared.runtime.operation import OperationMessage, OperationRecord, OperationState, same_request
from shared.trace import span
from shared.work import failures_kept, looking_again

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.runtime.claim import Claim
    from shared.settings import Cluster

QUEUE = "operations"

HELD_DELAY = timedelta(seconds=15)
"""How long an operation waits before it asks for a held claim again."""

_PROGRESS_SECONDS = 1.0

log = logging.getLogger(__name__)


def submit(
    clients: Clients,
    operation: str,
    cluster: str,
    parameters: dict[str, Any],
    operation_id: str | None = None,
) -> str:
    """Ask for an operation, returning its id.

    MessageError when operation or parameters are wrong, SettingsError for an unknown cluster; nothing is
    sent then.
    """
    read_parameters(find(operation), parameters)
    clients.settings().cluster(cluster)
    identity = operation_id or str(uuid.uuid4())
    message = OperationMessage(id=identity, operation=operation, cluster=cluster, parameters=parameters)
    decode(message.encode().encode(), OperationMessage)  # what the other end would refuse is refused here
    send(clients, QUEUE, message.encode())
    return identity


def get_operation(clients: Clients, operation_id: str) -> OperationRecord | None:
    """How far an operation is and how it ended; None until its message was taken off the queue."""
    return clients.operations.read(operation_id)


def work_off(clients: Clients, received: Received) -> None:
    """Process one message of the queue; raises whatever the platform should deliver again."""
    with failures_kept(clients, QUEUE, received):
        message = decode(received.body, OperationMessage)
        identity = message.id or _identity(received)
        record = clients.operations.accept(identity, message, clients.now())
        if not same_request(record, message):
            raise MessageError(
                f"operation id '{identity}' was already used for another request; choose a new id"
            )
        if record.is_over and record.is_final:
            log_event(log, "OperationAlreadyOver", operation=identity, state=record.state)
            return
        is_last = received.dequeue_count >= clients.max_dequeue_count
        _attempt(clients, record, message, is_last=is_last)


def _identity(received: Received) -> str:
    """Of a message without an id: the event that brought it, else the message itself."""
    event = event_id(received.body)
    if not event:
        return f"message-{received.id}"
    # Anybody chooses the id of an event, and not every text can be a key.
    return f"event-{hashlib.sha256(event.encode()).hexdigest()[:32]}"


def _attempt(clients: Clients, record: OperationRecord, message: OperationMessage, *, is_last: bool) -> None:
    try:
        operation = find(message.operation)
        parameters = read_parameters(operation, message.parameters)
        cluster = clients.settings().cluster(message.cluster)
        automation = automations.find(automation_of(operation, parameters))
    except Exception as error:
        _fail(clients, record, error)
        raise
    claim = clients.claims.acquire(cluster.name, automation.name)
    if claim is None:
        _wait_for_claim(clients, record, message, automation.name)
        return
    parts = {"cluster": cluster.name, "automation": automation.name, "operation": record.id}
    with (
        span(f"operation {operation.name}", **parts),
        looking_again(clients, automation, cluster, claim),
        claim,
    ):
        _run(clients, operation, parameters, cluster, claim, operation_id=record.id, is_last=is_last)


def _run(
    clients: Clients,
    operation: Operation,
    parameters: Parameters,
    cluster: Cluster,
    claim: Claim,
    *,
    operation_id: str,
    is_last: bool,
) -> None:
    # Read again now that nobody else can be at it: another worker may have finished it meanwhile.
    record = clients.operations.read(operation_id)
    if record is None or (record.is_over and record.is_final):
        return
    now = clients.now()
    record_settled(clients, claim, now)
    record = clients.operations.running(record, now)
    claim.run_id = hashlib.sha256(operation_id.encode()).hexdigest()[:8]
    claim.progress = _Progress(clients, record)
    try:
        handler = automations.load(operation.handler)
        outcomes: list[Outcome] = handler(cluster, parameters, clients, claim, now)
    except LostLeaseError:
        raise  # the new holder, or the next delivery, goes on with it
    except NotYetError as unfinished:
        _come_again(clients, claim, record, unfinished)
        return
    except Exception as error:
        if is_last:
            _fail(clients, record, error)
        else:
            clients.operations.note(record, clients.now(), message=_line(error))
        raise
    _conclude(clients, claim, record, outcomes, is_last=is_last)


def _conclude(
    clients: Clients, claim: Claim, record: OperationRecord, outcomes: Sequence[Outcome], *, is_last: bool
) -> None:
    now = clients.now()
    record_outcomes(clients, claim.cluster, claim.automation, outcomes, operation_id=record.id, now=now)
    failed = [outcome for outcome in outcomes if outcome.status is Status.FAILED]
    line = redact("; ".join(outcome.message for outcome in failed or outcomes)) or f"{record.operation}: done"
    may_mend = any(not is_final(outcome) for outcome in failed)
    if may_mend and not is_last:
        clients.operations.note(record, now, message=line)
        raise RunFailedError(f"operation '{record.id}' ({record.operation}): {line}")
    state = OperationState.FAILED if failed else OperationState.SUCCEEDED
    record_operation(clients, claim, record, state, line)
    clients.operations.finish(record, state, now, message=line, outcomes=outcomes, is_final=not may_mend)
    if may_mend:
        raise RunFailedError(f"operation '{record.id}' ({record.operation}): {line}")


def _wait_for_claim(
    clients: Clients, record: OperationRecord, message: OperationMessage, automation: str
) -> None:
    clients.operations.note(record, clients.now(), progress=f"waiting for another run of {automation}")
    again = msgspec.structs.replace(message, id=record.id)
    send(clients, QUEUE, again.encode(), HELD_DELAY)
    log_event(log, "OperationWaits", operation=record.id, cluster=message.cluster, automation=automation)


def _come_again(clients: Clients, claim: Claim, record: OperationRecord, unfinished: NotYetError) -> None:
    """Nobody waits for what takes minutes: the operation stays Running, and a new message goes on with it."""
    if outcomes := unfinished.outcomes:
        now = clients.now()
        record_outcomes(clients, claim.cluster, claim.automation, outcomes, operation_id=record.id, now=now)
    clients.operations.note(record, clients.now(), progress=_line(unfinished))
    again = OperationMessage(
        id=record.id, operation=record.operation, cluster=record.cluster, parameters=record.parameters
    )
    send(clients, QUEUE, again.encode(), timedelta(seconds=unfinished.seconds))
    log_event(log, "OperationGoesOn", operation=record.id, cluster=record.cluster, progress=_line(unfinished))


def _fail(clients: Clients, record: OperationRecord, error: Exception) -> None:
    clients.operations.finish(
        record, OperationState.FAILED, clients.now(), message=_line(error), is_final=False
    )


def _line(error: Exception) -> str:
    return redact(" ".join(str(error).split()) or type(error).__name__)


class _Progress:
    """Writes an operation's progress into its record, at most once a second."""

    def __init__(self, clients: Clients, record: OperationRecord) -> None:
        self._clients = clients
        self._record = record
        self._written_at = 0.0

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._written_at < _PROGRESS_SECONDS:
            return
        self._written_at = time.monotonic()
        self._clients.operations.note(self._record, self._clients.now(), progress=redact(line)[:500])

"""Outcomes to the journal, to outgoing events and to the log; then raises if anything failed.

`record` ends every reconcile, `record_outcomes` every operation. An action becomes the event
`Kubekeeper.<Automation>.<Past tense>` (failed ones `...Failed`); an outcome may name its own by
`data["event"]`, and say by `data["final"] = True` that delivering again would not help. A candidate left
alone with reason `ObjectiveMissed` becomes `Kubekeeper.<Automation>.Missed`. Publishing is never allowed to
hide an outcome.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.errors import RunFailedError
from shared.log import log_event, redact
from shared.model.plan import Action, ActionKind, LeftAlone, Outcome, Plan, Status
from shared.runtime.automation import AUTOMATIONS
from shared.runtime.journal import Entry, Summary

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.clients.eventgrid import Event
    from shared.runtime.claim import Claim
    from shared.runtime.message import Received
    from shared.runtime.operation import OperationRecord, OperationState

MISSED = "ObjectiveMissed"
REMIND_AFTER = timedelta(hours=1)
"""A missed objective is an event when it begins, then once in this long: one per tick would be ignored."""

VERBS = {
    ActionKind.SCALE_UP: "ScaledUp",
    ActionKind.SCALE_DOWN: "ScaledDown",
    ActionKind.DELETE_INSTANCE: "InstanceDeleted",
    ActionKind.BACKUP: "BackedUp",
    ActionKind.VERIFY: "Verified",
    ActionKind.PRUNE: "Pruned",
    ActionKind.POWER_OFF_VM: "PoweredOff",
    ActionKind.TAINT_NODE: "NodeTainted",
    ActionKind.UNTAINT_NODE: "NodeUntainted",
    ActionKind.DELETE_VOLUME_ATTACHMENT: "VolumeAttachmentDeleted",
    ActionKind.REMOVE_FINALIZER: "FinalizerRemoved",
    ActionKind.DETACH_DISK: "Detached",
    ActionKind.FORCE_DETACH_DISK: "ForceDetached",
    ActionKind.REAPPLY_VM: "Reapplied",
    ActionKind.BREAK_LEASE: "LeaseBroken",
    ActionKind.PUT_GATEWAY: "GatewayPut",
    ActionKind.UPDATE_INGRESS_STATUS: "StatusUpdated",
    ActionKind.RESTORE_DRILL: "Drilled",
    ActionKind.HEALTH_CHECK: "HealthChecked",
    ActionKind.DEFRAGMENT: "Defragmented",
    ActionKind.CORDON: "Cordoned",
    ActionKind.UNCORDON: "Uncordoned",
    ActionKind.DRAIN: "Drained",
    ActionKind.REPLACE_NODE: "NodeReplaced",
    ActionKind.REIMAGE: "NodeReimaged",
    ActionKind.ROLLING_UPGRADE: "PoolUpgraded",
}

log = logging.getLogger(__name__)


def record(clients: Clients, plan: Plan, outcomes: Sequence[Outcome]) -> None:
    """Record one pass: what was done and what was left alone; RunFailedError when an action failed."""
    previous = clients.journal.summary(plan.cluster, plan.automation)
    alarms, events = _alarms(plan, previous)
    _journal(clients, plan.cluster, plan.automation, outcomes, plan.now)
    clients.journal.put_summary(
        Summary(
            at=plan.now,
            cluster=plan.cluster,
            automation=plan.automation,
            digest=plan.document()["digest"],
            actions=tuple(_action_line(outcome) for outcome in outcomes),
            left_alone=tuple(msgspec.to_builtins(left) for left in plan.left_alone),
            alarms=alarms,
        )
    )
    _publish(clients, plan.cluster, plan.automation, [*events, *_events(plan.automation, outcomes)], plan.now)
    _raise_if_failed(plan.automation, plan.cluster, outcomes)


def record_outcomes(
    clients: Clients,
    cluster: str,
    automation: str,
    outcomes: Sequence[Outcome],
    *,
    operation_id: str,
    now: datetime,
) -> None:
    """Record what an operation did; does not raise: the operation's own state says how it ended."""
    _journal(clients, cluster, automation, outcomes, now, operation_id=operation_id)
    events = _events(automation, outcomes, operation_id)
    _publish(clients, cluster, automation, events, now)


def record_settled(clients: Clients, claim: Claim, now: datetime) -> None:
    """Journal what became of the writes that an earlier run announced and never finished."""
    for settled in claim.settled:
        intent = settled.intent
        done = "was carried out" if settled.happened else "was never carried out and is now impossible"
        message = f"an interrupted run's {intent.effect} of '{intent.container}/{intent.name}' {done}"
        _log_entry(
            clients,
            Entry(
                at=now,
                cluster=claim.cluster,
                automation=claim.automation,
                kind="Settled",
                status="Succeeded" if settled.happened else "Skipped",
                target=intent.name,
                reason="InterruptedRun",
                message=message,
            ),
        )


def record_paused(clients: Clients, claim: Claim, now: datetime) -> None:
    """The pass that an operator's pause allows: none."""
    assert claim.paused is not None
    why = f": {claim.paused.reason}" if claim.paused.reason else ""
    left = LeftAlone(
        subject=claim.cluster,
        reason="Paused",
        message=f"paused by an operator since {claim.paused.at:%Y-%m-%dT%H:%M:%SZ}{why}; resume to go on",
    )
    plan = Plan(automation=claim.automation, cluster=claim.cluster, now=now, left_alone=(left,))
    record(clients, plan, [])


def record_operation(
    clients: Clients, claim: Claim, record: OperationRecord, state: OperationState, line: str
) -> None:
    """Journal how an operation ended."""
    _log_entry(
        clients,
        Entry(
            at=clients.now(),
            cluster=claim.cluster,
            automation=claim.automation,
            kind="Operation",
            status=str(state),
            target=record.operation,
            message=line,
            operation_id=record.id,
            data={"parameters": record.parameters, "attempts": record.attempts},
        ),
    )


def record_poisoned(clients: Clients, queue: str, message: Received, reason: str) -> None:
    """A message failed for good: an entry and an event, besides the poison queue it goes to."""
    cluster, automation = _addressed(queue, message.body)
    now = clients.now()
    _log_entry(
        clients,
        Entry(
            at=now,
            cluster=cluster,
            automation=automation,
            kind="Failed",
            status=Status.FAILED,
            target=f"{queue}-poison",
            reason="MessagePoisoned",
            message=f"after {message.dequeue_count} attempts: {reason}",
            data={"messageId": message.id},
        ),
    )
    data = {"reason": reason, "queue": f"{queue}-poison", "messageId": message.id}
    _publish(clients, cluster, automation, [("MessagePoisoned", cluster, data)], now)


def is_final(outcome: Outcome) -> bool:
    """Whether delivering the message again cannot make this failure better (a bad backup stays bad)."""
    return outcome.data.get("final") is True


def _raise_if_failed(automation: str, cluster: str, outcomes: Sequence[Outcome]) -> None:
    failed = [o for o in outcomes if o.status is Status.FAILED and not is_final(o)]
    if failed:
        first = failed[0]
        raise RunFailedError(
            f"{automation} of cluster '{cluster}': {len(failed)} of {len(outcomes)} actions failed, "
            f"first {first.action.kind} of '{first.action.target}': {first.message}"
        )


def _journal(
    clients: Clients,
    cluster: str,
    automation: str,
    outcomes: Sequence[Outcome],
    now: datetime,
    *,
    operation_id: str = "",
) -> None:
    for number, outcome in enumerate(outcomes):
        action = outcome.action
        _log_entry(
            clients,
            Entry(
                at=now + timedelta(microseconds=number),  # the journal sorts by time; keep their order
                cluster=cluster,
                automation=automation,
                kind="Outcome",
                status=outcome.status,
                action=action.kind,
                target=action.target,
                reason=action.reason,
                message=redact(outcome.message),
                operation_id=operation_id,
                evidence=action.evidence,
                data=outcome.data,
            ),
        )


def _log_entry(clients: Clients, entry: Entry) -> None:
    level = {Status.FAILED: logging.ERROR, Status.SKIPPED: logging.WARNING}.get(
        Status(entry.status or Status.SUCCEEDED), logging.INFO
    )
    log_event(
        log,
        entry.action or entry.kind,
        level=level,
        status=entry.status,
        cluster=entry.cluster,
        automation=entry.automation,
        target=entry.target,
        reason=entry.reason,
        operation=entry.operation_id,
        message=entry.message,
    )
    clients.journal.add(entry)


def _action_line(outcome: Outcome) -> dict[str, Any]:
    return {
        "kind": outcome.action.kind,
        "target": outcome.action.target,
        "reason": outcome.action.reason,
        "status": outcome.status,
        "message": redact(outcome.message),
    }


_EventParts = tuple[str, str, dict[str, Any]]


def _events(automation: str, outcomes: Sequence[Outcome], operation_id: str = "") -> list[_EventParts]:
    return [
        (_verb(outcome), outcome.action.target, _event_data(outcome, operation_id))
        for outcome in outcomes
        if outcome.status is not Status.SKIPPED
    ]


def _verb(outcome: Outcome) -> str:
    own = outcome.data.get("event")
    if isinstance(own, str) and own:
        return own
    return f"{outcome.action.kind}Failed" if outcome.status is Status.FAILED else VERBS[outcome.action.kind]


def _event_data(outcome: Outcome, operation_id: str) -> dict[str, Any]:
    action: Action = outcome.action
    data: dict[str, Any] = {
        "reason": action.reason,
        "message": redact(outcome.message),
        "evidence": list(action.evidence),
        "facts": {key: value for key, value in outcome.data.items() if key not in ("event", "final")},
    }
    return data | ({"operationId": operation_id} if operation_id else {})


def _alarms(plan: Plan, previous: Summary | None) -> tuple[dict[str, datetime], list[_EventParts]]:
    """When each missed objective was last an event, and those that are one now."""
    known = previous.alarms if previous else {}
    raised: dict[str, datetime] = {}
    events: list[_EventParts] = []
    for left in plan.left_alone:
        if left.reason != MISSED:
            continue
        last = known.get(left.subject)
        is_due = last is None or plan.now - last >= REMIND_AFTER
        raised[left.subject] = plan.now if is_due or last is None else last
        if is_due:
            events.append(("Missed", left.subject, {"reason": left.reason, "message": left.message}))
    return raised, events


def _publish(
    clients: Clients, cluster: str, automation: str, parts: Sequence[_EventParts], now: datetime
) -> None:
    try:
        topic = clients.events
        if topic is None or not parts:
            return
        topic.publish([_event(cluster, automation, *part, now=now) for part in parts])
    except Exception as error:  # noqa: BLE001 - the outcome is journalled; nothing about the topic may hide it
        _log_entry(
            clients,
            Entry(
                at=now,
                cluster=cluster,
                automation=automation,
                kind="Failed",
                status=Status.FAILED,
                reason="EventsNotPublished",
                message=redact(f"{', '.join(part[0] for part in parts)}: {error or type(error).__name__}"),
            ),
        )


def _event(
    cluster: str, automation: str, verb: str, subject: str, data: dict[str, Any], *, now: datetime
) -> Event:
    from shared.clients.eventgrid import Event

    known = AUTOMATIONS.get(automation)
    return Event(
        id=str(uuid.uuid4()),
        type=f"Kubekeeper.{known.title if known else 'Runtime'}.{verb}",
        source=f"/kubekeeper/{cluster}",
        subject=subject,
        time=now,
        data=data,
    )


def _addressed(queue: str, body: bytes) -> tuple[str, str]:
    """(cluster, automation) a message was for, as far as it can be read."""
    from shared.errors import MessageError
    from shared.runtime.message import decode

    try:
        document = decode(body, dict[str, Any])
    except MessageError:
        document = {}
    cluster = document.get("cluster")
    automation = document.get("automation", queue)
    return (
        cluster if isinstance(cluster, str) and cluster.replace("-", "").isalnum() else "-",
        automation if automation in AUTOMATIONS else queue,
    )

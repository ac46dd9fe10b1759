"""What of a fleet waits for a person, in the order in which to look at it; pure.

On the status page and in its document. Each finding says what to do; `keeper doctor` looks at what cannot be
seen from here: credentials, roles, reachability.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from shared.record import MISSED

if TYPE_CHECKING:
    from shared.status.collect import ClusterStatus, PageDocument, Row

SILENT_TICKS = 3
"""A timer that missed so many ticks in a row is dead; one may be late, or fall into a restart."""
LATE_TICK = timedelta(minutes=30)
"""Where the timer's schedule is not known, so long a silence says the same."""
JITTER = timedelta(minutes=1)
RECENT = timedelta(days=1)
"""A failed operation of yesterday has been looked at, or will not be."""
WAITS = {"ApprovalRequired": "", "FenceIsAllowed": "not approved"}
"""Reasons of what waits for somebody's yes, and how their lines then end."""


class Attention(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One finding. `level`: bad or warn; `place`: the id of the part of the page that shows more."""

    level: str
    subject: str
    message: str
    place: str


def is_silent(schedule: str, last_tick: datetime, now: datetime) -> bool:
    """Whether a timer has missed SILENT_TICKS; `schedule` is NCRONTAB, or empty where it is not known."""
    from itertools import islice

    from cronsim import CronSim, CronSimError

    fields = schedule.upper().split()
    try:
        ticks = islice(CronSim(" ".join(["0"] * (6 - len(fields)) + fields), last_tick), SILENT_TICKS)
        *_, missed = ticks
    except (CronSimError, ValueError):
        return now - last_tick > LATE_TICK
    return now > missed + JITTER


def attention(document: PageDocument) -> tuple[Attention, ...]:
    """Everything that waits, the bad first."""
    found = [
        *(one for cluster in document.clusters for one in _of_cluster(cluster, document.now)),
        *_of_messages(document),
        *_of_operations(document),
    ]
    return tuple(sorted(found, key=lambda one: one.level != "bad"))


def _of_cluster(cluster: ClusterStatus, now: datetime) -> Iterator[Attention]:
    for row in cluster.automations:
        place = f"{cluster.name}-{row.automation}"
        for level, message in (*_of_timer(row, now), *_of_plan(row)):
            yield Attention(
                level=level, subject=f"{row.automation} of {cluster.name}", message=message, place=place
            )
    if any(row.automation == "etcd-backup" and row.last_pass for row in cluster.automations):
        yield from _of_backups(cluster)
    if cluster.quarantined:
        yield Attention(
            level="warn",
            subject=f"ingress-sync of {cluster.name}",
            message=f"{_many(len(cluster.quarantined), 'object is', 'objects are')} left out of the gateway; "
            "each says below what to change",
            place=f"{cluster.name}-ingress-sync",
        )


def _of_timer(row: Row, now: datetime) -> Iterator[tuple[str, str]]:
    if row.state == "paused":
        yield "warn", f"paused{': ' + row.pause_reason if row.pause_reason else ''}; keeper run resume"
    elif row.last_pass is None:
        yield "warn", "has never run; when its timer has fired and this stays, see: keeper doctor"
    if row.last_tick is not None and row.is_silent:
        minutes = (now - row.last_tick) // timedelta(minutes=1)
        yield "bad", f"its timer has not fired for {minutes} minutes; restart the app, see: keeper doctor"


def _of_plan(row: Row) -> Iterator[tuple[str, str]]:
    if row.summary is None:
        return
    failed = [action for action in row.summary.actions if action["status"] == "Failed"]
    if failed:
        first = failed[0]
        many = _many(len(failed), "action", "actions")
        yield "bad", f"{many} of the last pass failed; {first['kind']} {first['target']}: {first['message']}"
    for left in row.summary.left_alone:
        if left["reason"] == MISSED:
            yield "bad", str(left["message"])
        elif left["reason"] in WAITS and left["message"].endswith(WAITS[left["reason"]]):
            yield "warn", f"waits for approval: {left['message']}"


def _of_backups(cluster: ClusterStatus) -> Iterator[Attention]:
    place, subject = f"{cluster.name}-etcd-backup", f"etcd-backup of {cluster.name}"
    if not any(backup.verdict == "verified" for backup in cluster.backups):
        message = "there is no verified backup; take one: keeper run backup --wait"
        yield Attention(level="bad", subject=subject, message=message, place=place)
    bad = sum(backup.verdict == "bad" for backup in cluster.backups)
    if bad:
        message = f"{_many(bad, 'backup', 'backups')} failed verification; see: keeper backup list"
        yield Attention(level="bad", subject=subject, message=message, place=place)


def _of_messages(document: PageDocument) -> Iterator[Attention]:
    queues: Iterable[str] = dict.fromkeys(message.queue for message in document.poison)
    for queue in queues:
        count = sum(message.queue == queue for message in document.poison)
        many = _many(count, "message", "messages")
        yield Attention(
            level="bad",
            subject=f"queue {queue}",
            message=f"{many} failed for good; keeper poison list, then replay or drop",
            place="poison",
        )


def _of_operations(document: PageDocument) -> Iterator[Attention]:
    for operation in document.operations:
        if operation.state == "Failed" and document.now - operation.updated_at < RECENT:
            yield Attention(
                level="warn",
                subject=f"{operation.operation} of {operation.cluster}",
                message=operation.message,
                place="operations",
            )


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"

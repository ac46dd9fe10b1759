"""Which backups may go; a pure function of the listing, the policy and the time.

Kept is the newest backup of each of the last N hours, days, ISO weeks and months that have one, a proven
one rather than one that is not, and whatever any kept delta needs. Whatever the counts say, these are never
pruned: the last proven backup and everything after it, what is immutable, what is younger than an hour, and
everything while nothing is proven. Pruned come children before parents, so that a run that stops half-way
leaves no delta without its parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import msgspec

from shared.etcd_backup.lineage import Lineage
from shared.etcd_backup.policy import Retention
from shared.model.backup import BackupRecord
from shared.model.plan import utc

MINIMUM_AGE = timedelta(hours=1)
"""Younger ones may still be read back, or be the parent of a backup under way."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One backup that stays, with the first reason found."""

    record: BackupRecord
    reason: str
    message: str


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """One backup that may go."""

    record: BackupRecord
    reason: str
    message: str


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Every backup, in exactly one of the two; `pruned` in the order to delete them."""

    kept: tuple[Kept, ...]
    pruned: tuple[Pruned, ...]


def select(records: Iterable[BackupRecord], retention: Retention, now: datetime) -> Selection:
    """Divide the backups of one cluster."""
    lineage = Lineage(records)
    kept: dict[str, Kept] = {}

    def keep(record: BackupRecord, reason: str, message: str) -> None:
        kept.setdefault(record.name, Kept(record=record, reason=reason, message=message))

    _keep_protected(lineage, now, keep)
    for reason, count, bucket_of in _slots(retention):
        for bucket, record in _newest_per_bucket(lineage, now, bucket_of)[:count]:
            keep(record, reason, f"the newest of {bucket}")
    for name in list(kept):
        for ancestor in lineage.ancestors(kept[name].record):
            keep(ancestor, "NeededByDelta", f"{name} is built on it")
    pruned = [_prune(record, lineage) for record in reversed(lineage.records) if record.name not in kept]
    return Selection(
        kept=tuple(kept[r.name] for r in lineage.records if r.name in kept),
        pruned=tuple(_children_first(pruned, lineage)),
    )


def _keep_protected(lineage: Lineage, now: datetime, keep: Callable[[BackupRecord, str, str], None]) -> None:
    proven = lineage.newest_proven(until=now)
    for record in lineage.records:
        if record.immutable_until and record.immutable_until > now:
            keep(
                record, "Immutable", f"it is immutable until {utc(record.immutable_until):%Y-%m-%d %H:%M} UTC"
            )
        if proven is None:
            keep(record, "NothingVerified", "no backup is verified, so nothing is pruned")
        elif record.name == proven.name:
            keep(record, "LastVerified", "it is the newest verified backup")
        elif record.started_at >= proven.started_at:
            keep(record, "NewerThanVerified", f"it is newer than the newest verified backup {proven.name}")
        if now - record.started_at < MINIMUM_AGE:
            keep(record, "TooNew", "it is younger than an hour")


def _slots(retention: Retention) -> tuple[tuple[str, int, Callable[[datetime], str]], ...]:
    return (
        ("Hourly", retention.hourly, lambda t: f"the hour {t:%Y-%m-%d %H}"),
        ("Daily", retention.daily, lambda t: f"the day {t:%Y-%m-%d}"),
        ("Weekly", retention.weekly, lambda t: f"the week {t:%G-W%V}"),
        ("Monthly", retention.monthly, lambda t: f"the month {t:%Y-%m}"),
    )


def _newest_per_bucket(
    lineage: Lineage, now: datetime, bucket_of: Callable[[datetime], str]
) -> list[tuple[str, BackupRecord]]:
    """(bucket, its best backup), newest bucket first.

    Backups that cannot be restored, or that a wrong clock dated into the future, fill no place.
    """
    best: dict[str, BackupRecord] = {}
    for record in reversed(lineage.records):
        if record.started_at > now or not lineage.is_restorable(record):
            continue
        bucket = bucket_of(record.started_at.astimezone(UTC))
        if bucket not in best or (lineage.is_proven(record) and not lineage.is_proven(best[bucket])):
            best[bucket] = record
    return list(best.items())


def _prune(record: BackupRecord, lineage: Lineage) -> Pruned:
    problem = lineage.problem(record)
    if problem:
        return Pruned(
            record=record, reason=problem[0], message=f"{problem[1]}, and a later backup is verified"
        )
    return Pruned(record=record, reason="Retention", message="no hour, day, week or month needs it any more")


def _children_first(pruned: list[Pruned], lineage: Lineage) -> list[Pruned]:
    """By depth first: clocks may have made a delta look older than its parent."""
    return sorted(pruned, key=lambda p: -len(lineage.ancestors(p.record)))

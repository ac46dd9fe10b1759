"""Observations, members and backups for tests of etcd backup decisions; one sensible default each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from shared.etcd_backup.observation import EndpointReading, Observation
from shared.model.backup import BackupRecord, Kind, VerdictState
from shared.model.etcd import Member, MemberStatus

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def member_id(number: int) -> int:
    return 0xA0 + number


def endpoint(number: int) -> str:
    return f"https://10.0.0.{4 + number}:2379"


def reading(
    number: int, *, leader: int = 0, latency_ms: int = 3, skew_ms: int | None = 0, **status: Any
) -> EndpointReading:
    """Member `number` answers; `leader` is the number of the one it believes leads, -1 for none."""
    fields: dict[str, Any] = {
        "member_id": member_id(number),
        "cluster_id": 0xC1,
        "version": "3.5.16",
        "revision": 1000,
        "leader": member_id(leader) if leader >= 0 else 0,
        "raft_term": 4,
        "raft_index": 9000,
        "raft_applied_index": 9000,
        "db_size": 40 << 20,
        "db_size_in_use": 30 << 20,
    }
    return EndpointReading(
        endpoint=endpoint(number),
        read_at=NOW,
        latency_ms=latency_ms,
        clock_skew_ms=skew_ms,
        status=MemberStatus(**fields | status),
    )


def unreachable(number: int, reason: str = "ConnectionRefused") -> EndpointReading:
    return EndpointReading(
        endpoint=endpoint(number),
        read_at=NOW,
        error=f"etcd {endpoint(number)}: connection refused",
        reason=reason,
    )


def member(number: int, *, is_learner: bool = False) -> Member:
    return Member(
        id=member_id(number), name=f"m{number}", client_urls=(endpoint(number),), is_learner=is_learner
    )


def alarm(number: int, kind: str) -> str:
    """An alarm as a member's status repeats it."""
    return f"memberID:{member_id(number)} alarm:{kind} "


def observation(*readings: EndpointReading, **fields: Any) -> Observation:
    """Three healthy members led by the first, and no backups, unless told otherwise."""
    readings = readings or (reading(0), reading(1), reading(2))
    count = len(readings)
    learners = {r.status.member_id for r in readings if r.status and r.status.is_learner}
    members = tuple(member(n, is_learner=member_id(n) in learners) for n in range(count))
    return Observation(**{"cluster": "prod", "now": NOW, "endpoints": readings, "members": members} | fields)


def record(
    number: int,
    *,
    age: timedelta | None = None,
    parent: BackupRecord | None = None,
    verdict: VerdictState | None = VerdictState.VERIFIED,
    now: datetime = NOW,
    **fields: Any,
) -> BackupRecord:
    """Backup `number`, by default `number` hours old; a delta when it has a parent."""
    started = now - (age if age is not None else number * HOUR)
    kind = Kind.DELTA if parent else Kind.FULL
    name = f"prod/{started:%Y/%m/%d}/{1000 + number}-{kind}-r{number:04d}.json"
    defaults: dict[str, Any] = {
        "name": name,
        "cluster": "prod",
        "kind": kind,
        "run": f"r{number:04d}",
        "revision": 10_000 - number,
        "started_at": started,
        "data": name.replace(".json", ".pages"),
        "digest": f"{number:064x}",
        "parent": parent.name if parent else None,
        "member_id": f"{member_id(1):016x}",
        "chain_length": parent.chain_length + 1 if parent else 0,
        "verdict": verdict,
        "verdict_at": started + timedelta(minutes=2) if verdict else None,
        "verdict_reason": verdict.value.title() if verdict else None,
    }
    return BackupRecord(**defaults | fields)

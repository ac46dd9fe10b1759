"""etcd's health and its defragmentation, one member at a time; the operations `etcd-health` and
`etcd-defrag`.

`assess` and `next_target` are pure: an observation in, findings or the next member out. `defragment` acts:
followers first, the leader last, never while a member is down or an alarm forbids it; it looks again
between members and stops at the first failure. Called by `shared.etcd_backup.operations`.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from shared.errors import ApiError
from shared.etcd_backup.observation import EndpointReading, Observation
from shared.etcd_backup.observe import Etcd, observe_etcd
from shared.model.etcd import MemberStatus, format_id
from shared.settings import Cluster

DEFAULT_QUOTA_BYTES = 2 << 30
"""etcd's own default; before 3.6 a member does not tell what it was started with."""

SLOW = timedelta(seconds=1)
"""A Status call that takes longer says that the member or the way to it is in trouble."""

CLOCK_SKEW = timedelta(seconds=2)
"""Leases and certificates bear a second or two."""

SETTLE_TIMEOUT = timedelta(seconds=60)
"""Time for a member to be a healthy part of the cluster again after its defragmentation."""

_QUOTA_WARNING, _QUOTA_CRITICAL = 0.8, 0.95
_FRAGMENTED_BYTES, _FRAGMENTED_SHARE = 100 << 20, 0.5
_MAX_LAG = 5000


class Severity(enum.StrEnum):
    """What a finding asks for: nothing yet, attention, or action now."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class HealthFinding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One thing to know, with what to do."""

    severity: Severity
    subject: str
    reason: str
    message: str


class MemberHealth(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One endpoint's line of the report; sizes in bytes, `quota` 0 where the member does not tell it."""

    endpoint: str
    name: str = ""
    member_id: str = ""
    role: str = "unreachable"
    version: str = ""
    lag: int = 0
    db_size: int = 0
    db_size_in_use: int = 0
    quota: int = 0
    latency_ms: int = 0
    clock_skew_ms: int | None = None
    error: str = ""


class HealthReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The state of one etcd cluster. `healthy`: nothing critical was found."""

    cluster: str
    now: datetime
    healthy: bool
    voters: int
    answering_voters: int
    leader: str
    members: tuple[MemberHealth, ...]
    findings: tuple[HealthFinding, ...]


def check(cluster: Cluster, etcd: Etcd, now: datetime) -> HealthReport:
    """Ask every member and assess the answers; unreachable members are findings, not errors."""
    return assess(observe_etcd(cluster, etcd, now=now))


def assess(observation: Observation) -> HealthReport:
    """Pure: what the observation says about the cluster's health, the worst first."""
    findings = sorted(_findings(observation), key=lambda f: list(Severity)[::-1].index(f.severity))
    voters, answering = _voters(observation)
    leaders = {status.leader for status in observation.statuses} - {0}
    return HealthReport(
        cluster=observation.cluster,
        now=observation.now,
        healthy=not any(finding.severity is Severity.CRITICAL for finding in findings),
        voters=len(voters),
        answering_voters=len(answering),
        leader=format_id(next(iter(leaders))) if len(leaders) == 1 else "",
        members=tuple(_line(observation, reading) for reading in observation.endpoints),
        findings=tuple(findings),
    )


def _findings(observation: Observation) -> Iterator[HealthFinding]:
    yield from _quorum(observation)
    yield from _leader(observation)
    for alarm in observation.alarms:
        remedy = {
            "NOSPACE": "writes are refused; compact, run etcd-defrag, then `etcdctl alarm disarm`",
            "CORRUPT": "its data differs from the others'; remove the member and add it anew",
        }.get(alarm.alarm, "look at etcd's documentation of this alarm")
        subject = _name(observation, alarm.member_id)
        yield _finding(Severity.CRITICAL, subject, "Alarm", f"it has the alarm {alarm.alarm}: {remedy}")
    for reading in observation.endpoints:
        if reading.status is None:
            reason = reading.reason or "Unreachable"
            yield _finding(Severity.WARNING, reading.endpoint, reason, reading.error)
        else:
            yield from _member(observation, reading, reading.status)
    versions = sorted({status.version for status in observation.statuses})
    if len(versions) > 1:
        text = f"members run different versions ({', '.join(versions)}); finish the upgrade"
        yield _finding(Severity.INFO, observation.cluster, "MixedVersions", text)


def _quorum(observation: Observation) -> Iterator[HealthFinding]:
    voters, answering = _voters(observation)
    needed = len(voters) // 2 + 1
    if not voters:
        text = f"the member list cannot be read: {observation.members_error or 'nobody answers'}"
        yield _finding(Severity.CRITICAL, observation.cluster, "NoMembers", text)
    elif len(answering) < needed:
        text = f"{len(answering)} of {len(voters)} voters answer, {needed} are needed; start the others"
        yield _finding(Severity.CRITICAL, observation.cluster, "NoQuorum", text)
    elif len(answering) == needed and len(answering) < len(voters):
        text = f"{len(answering)} of {len(voters)} voters answer; one more lost stops the cluster"
        yield _finding(Severity.WARNING, observation.cluster, "QuorumAtRisk", text)


def _leader(observation: Observation) -> Iterator[HealthFinding]:
    views = {status.leader for status in observation.statuses}
    if not observation.statuses:
        return
    if views == {0}:
        text = "no member knows a leader, so nothing can be written; check that most members reach each other"
        yield _finding(Severity.CRITICAL, observation.cluster, "NoLeader", text)
    elif len(views) > 1:
        told = ", ".join("none" if view == 0 else format_id(view) for view in sorted(views))
        text = (
            f"members name different leaders ({told}); an election may be under way, or a member is cut off"
        )
        yield _finding(Severity.WARNING, observation.cluster, "LeaderDisputed", text)


def _member(
    observation: Observation, reading: EndpointReading, status: MemberStatus
) -> Iterator[HealthFinding]:
    subject = _name(observation, status.member_id)
    lag = observation.highest_index - status.raft_applied_index
    if lag > _MAX_LAG:
        text = f"it is {lag} raft entries behind; look at its disk and network"
        yield _finding(Severity.WARNING, subject, "RaftLag", text)
    yield from _size(subject, status)
    if reading.latency_ms > SLOW / timedelta(milliseconds=1):
        text = f"it took {reading.latency_ms} ms to answer; look at its disk and network"
        yield _finding(Severity.WARNING, subject, "Slow", text)
    skew = reading.clock_skew_ms
    if skew is not None and abs(skew) > CLOCK_SKEW / timedelta(milliseconds=1):
        text = f"its clock is {abs(skew) / 1000:.0f} s {'ahead of' if skew > 0 else 'behind'} ours; check NTP"
        yield _finding(Severity.WARNING, subject, "ClockSkew", text)


def _size(subject: str, status: MemberStatus) -> Iterator[HealthFinding]:
    quota = status.db_size_quota or DEFAULT_QUOTA_BYTES
    share = status.db_size / quota
    if share >= _QUOTA_WARNING:
        # An assumed quota must not cry wolf: clusters with larger ones would be critical for ever.
        is_known = status.db_size_quota > 0
        severity = Severity.CRITICAL if share >= _QUOTA_CRITICAL and is_known else Severity.WARNING
        which = "its quota" if is_known else "etcd's default quota (before 3.6 its own is not known)"
        text = (
            f"its database fills {share:.0%} of {which}, {_mib(quota)}; compact and defragment, or raise it"
        )
        yield _finding(severity, subject, "QuotaNear", text)
    free = status.db_size - status.db_size_in_use
    if free >= _FRAGMENTED_BYTES and free >= _FRAGMENTED_SHARE * status.db_size:
        text = f"{_mib(free)} of its {_mib(status.db_size)} are unused; etcd-defrag gives them back"
        yield _finding(Severity.INFO, subject, "Fragmented", text)


def _line(observation: Observation, reading: EndpointReading) -> MemberHealth:
    status = reading.status
    if status is None:
        return MemberHealth(endpoint=reading.endpoint, latency_ms=reading.latency_ms, error=reading.error)
    return MemberHealth(
        endpoint=reading.endpoint,
        name=observation.name_of(status.member_id),
        member_id=format_id(status.member_id),
        role=_role(status),
        version=status.version,
        lag=observation.highest_index - status.raft_applied_index,
        db_size=status.db_size,
        db_size_in_use=status.db_size_in_use,
        quota=status.db_size_quota,
        latency_ms=reading.latency_ms,
        clock_skew_ms=reading.clock_skew_ms,
    )


# Defragmentation


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The member to defragment next."""

    endpoint: str
    member_id: int
    subject: str
    role: str
    db_size: int


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why no member may be defragmented now."""

    reason: str
    message: str


class Defragmented(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One member done; bytes of its database file before and after."""

    member: str
    role: str
    before_bytes: int
    after_bytes: int
    seconds: float


class DefragReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was done. `stopped` says why not every member was reached; empty when all were."""

    done: tuple[Defragmented, ...]
    stopped_reason: str = ""
    stopped: str = ""


class DefragEtcd(Etcd, Protocol):
    """What defragmenting needs of `shared.clients.etcd.EtcdClient`."""

    def defragment(self, endpoint: str) -> None: ...


def next_target(observation: Observation, done: frozenset[int]) -> Target | Refusal | None:
    """Pure: the member to defragment next, why none may be, or None when all are done.

    Learners and followers come before the leader, whoever leads by now. NOSPACE does not forbid it, it is
    the cure.
    """
    refusal = next(_objections(observation), None)
    if refusal:
        return refusal
    left: dict[int, Target] = {}
    for reading in observation.endpoints:
        status = reading.status
        if status and status.member_id not in done:
            left.setdefault(
                status.member_id,
                Target(
                    endpoint=reading.endpoint,
                    member_id=status.member_id,
                    subject=_name(observation, status.member_id),
                    role=_role(status),
                    db_size=status.db_size,
                ),
            )
    return min(left.values(), key=lambda target: (target.role == "leader", target.member_id), default=None)


def _objections(observation: Observation) -> Iterator[Refusal]:
    if not observation.members:
        yield Refusal(
            reason="NoMembers", message=f"the member list cannot be read: {observation.members_error}"
        )
    reached = {status.member_id for status in observation.statuses}
    for reading in observation.endpoints:
        if reading.status is None:
            yield Refusal(reason="MemberDown", message=f"a member is down: {reading.error}")
    for member in observation.members:
        if member.id not in reached:
            text = f"{_name(observation, member.id)} is reached by no endpoint; every member must answer"
            yield Refusal(reason="MemberDown", message=text)
    leaders = {status.leader for status in observation.statuses}
    if len(leaders) != 1 or 0 in leaders:
        yield Refusal(
            reason="NoLeader", message="the members do not agree on a leader; wait for the election"
        )
    for alarm in observation.alarms:
        if alarm.alarm != "NOSPACE":
            text = f"{_name(observation, alarm.member_id)} has the alarm {alarm.alarm}; resolve it first"
            yield Refusal(reason="Alarm", message=text)
    for status in observation.statuses:
        lag = observation.highest_index - status.raft_applied_index
        if lag > _MAX_LAG:
            text = (
                f"{_name(observation, status.member_id)} is {lag} raft entries behind; let it catch up first"
            )
            yield Refusal(reason="RaftLag", message=text)


def defragment(
    cluster: Cluster,
    etcd: DefragEtcd,
    *,
    now: Callable[[], datetime],
    ensure: Callable[[], None] = lambda: None,
    progress: Callable[[str], None] = lambda _text: None,
    settle_timeout: timedelta = SETTLE_TIMEOUT,
    skip: frozenset[int] = frozenset(),
) -> DefragReport:
    """Defragment every member in turn, but those in `skip` (member ids).

    `ensure` is called before each (the claim must still be held).

    A failure is in the report, not raised; what `ensure` raises goes through.
    """
    done: dict[int, Defragmented] = {}
    while True:
        target = _settled_target(
            cluster, etcd, now, skip | frozenset(done), settle_timeout if done else timedelta(0)
        )
        if target is None:
            return DefragReport(done=tuple(done.values()))
        if isinstance(target, Refusal):
            return DefragReport(
                done=tuple(done.values()), stopped_reason=target.reason, stopped=target.message
            )
        ensure()
        progress(f"defragmenting {target.subject}, a {target.role}, {_mib(target.db_size)}")
        try:
            done[target.member_id] = _defragment_one(etcd, target)
        except ApiError as error:
            return DefragReport(
                done=tuple(done.values()), stopped_reason=error.code or "Failed", stopped=str(error)
            )


def _settled_target(
    cluster: Cluster,
    etcd: DefragEtcd,
    now: Callable[[], datetime],
    done: frozenset[int],
    settle_timeout: timedelta,
) -> Target | Refusal | None:
    """The next target, once the cluster is well again; the refusal when it does not recover."""
    deadline = time.monotonic() + settle_timeout.total_seconds()
    while True:
        target = next_target(observe_etcd(cluster, etcd, now=now()), done)
        if not isinstance(target, Refusal) or time.monotonic() >= deadline:
            return target
        time.sleep(0.5)


def _defragment_one(etcd: DefragEtcd, target: Target) -> Defragmented:
    began = time.monotonic()
    etcd.defragment(target.endpoint)
    seconds = time.monotonic() - began
    after = etcd.status(target.endpoint).db_size
    return Defragmented(
        member=target.subject,
        role=target.role,
        before_bytes=target.db_size,
        after_bytes=after,
        seconds=round(seconds, 3),
    )


# Parts


def _voters(observation: Observation) -> tuple[set[int], set[int]]:
    """Ids of all voters of the member list, and of those that answer."""
    voters = {member.id for member in observation.members if not member.is_learner}
    return voters, voters & {status.member_id for status in observation.statuses}


def _role(status: MemberStatus) -> str:
    return "learner" if status.is_learner else "leader" if status.is_leader else "follower"


def _name(observation: Observation, member_id: int) -> str:
    return f"member {observation.name_of(member_id) or 'unnamed'} ({format_id(member_id)})"


def _finding(severity: Severity, subject: str, reason: str, message: str) -> HealthFinding:
    return HealthFinding(severity=severity, subject=subject, reason=reason, message=message)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"

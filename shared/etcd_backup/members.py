"""Which member to take a snapshot from; pure, and every member not chosen is explained.

A learner first (it serves no clients and has no vote to lose), then the follower least behind, the leader
last. Among equals the member of the parent backup, because pages of one member's file do not match
another's. Never a member that cannot be reached, has an alarm, lags too far, or is cut off from a leader
that others see.
"""

from __future__ import annotations

import msgspec

from shared.etcd_backup.observation import EndpointReading, Observation
from shared.model.etcd import MemberStatus, format_id, supports_learner_snapshot
from shared.model.plan import LeftAlone

_CLOSE = 1000
"""Raft entries within which members count as equally far: about a second of a very busy cluster. Readings
are not taken at one instant, and changing the member costs a full backup.
"""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A member that may serve the snapshot. `lag` is raft entries behind the highest index seen anywhere."""

    endpoint: str
    member_id: int
    name: str
    version: str
    role: str
    lag: int

    @property
    def subject(self) -> str:
        """How plans and messages name it."""
        return _subject(self.name, self.member_id, self.endpoint)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The ranking: the first is the one to ask, the others are alternates in order."""

    ranked: tuple[Candidate, ...]
    reason: str
    message: str
    left_alone: tuple[LeftAlone, ...]

    @property
    def chosen(self) -> Candidate | None:
        """The best candidate, if there is any."""
        return self.ranked[0] if self.ranked else None


def choose(observation: Observation, max_raft_lag: int, prefer: int | None = None) -> Choice:
    """Rank the members; `prefer` is the member id of the parent backup, when a delta is wanted."""
    clusters = sorted({status.cluster_id for status in observation.statuses})
    if len(clusters) > 1:
        ids = ", ".join(map(format_id, clusters))
        return Choice(
            ranked=(),
            reason="EndpointsOfDifferentClusters",
            message=f"the endpoints belong to different etcd clusters ({ids}); correct etcd.endpoints",
            left_alone=(),
        )
    candidates: dict[int, Candidate] = {}
    left_alone: list[LeftAlone] = []
    for reading in observation.endpoints:
        refusal = _refusal(observation, reading, max_raft_lag, set(candidates))
        if refusal:
            left_alone.append(refusal)
        else:
            candidate = _candidate(observation, reading)
            candidates[candidate.member_id] = candidate
    left_alone += _without_endpoint(observation)
    ranked = sorted(candidates.values(), key=lambda candidate: _rank(candidate, prefer))
    if not ranked:
        reason, message = "NoEligibleMember", "no member can serve a snapshot"
        return Choice(ranked=(), reason=reason, message=message, left_alone=tuple(left_alone))
    left_alone += [_passed_over(candidate, ranked[0], prefer) for candidate in ranked[1:]]
    reason, message = _why(ranked[0], ranked, prefer)
    return Choice(ranked=tuple(ranked), reason=reason, message=message, left_alone=tuple(left_alone))


_ROLES = ("learner", "follower", "leader")


def _rank(candidate: Candidate, prefer: int | None) -> tuple[int, int, bool, int, int]:
    far = candidate.lag if candidate.lag > _CLOSE else 0
    role = _ROLES.index(candidate.role)
    return (role, far, candidate.member_id != prefer, candidate.lag, candidate.member_id)


def _candidate(observation: Observation, reading: EndpointReading) -> Candidate:
    status = reading.status
    assert status is not None
    role = "learner" if status.is_learner else "leader" if status.is_leader else "follower"
    return Candidate(
        endpoint=reading.endpoint,
        member_id=status.member_id,
        name=observation.name_of(status.member_id),
        version=status.version,
        role=role,
        lag=_lag(observation, status),
    )


def _refusal(
    observation: Observation, reading: EndpointReading, max_raft_lag: int, seen: set[int]
) -> LeftAlone | None:
    status = reading.status
    if status is None:
        return LeftAlone(
            subject=reading.endpoint, reason=reading.reason or "Unreachable", message=reading.error
        )
    found = _objection(observation, status, max_raft_lag)
    if status.member_id in seen:
        found = ("SameMember", f"{reading.endpoint} leads to a member that another endpoint names already")
    if found is None:
        return None
    subject = _subject(observation.name_of(status.member_id), status.member_id, reading.endpoint)
    return LeftAlone(subject=subject, reason=found[0], message=found[1])


def _objection(observation: Observation, status: MemberStatus, max_raft_lag: int) -> tuple[str, str] | None:
    """(reason, message) against a member that answers."""
    alarms = sorted({a.alarm for a in observation.alarms if a.member_id == status.member_id})
    if alarms:
        return "Alarm", f"it has the alarm {' and '.join(alarms)}"
    if status.is_learner and not supports_learner_snapshot(status.version):
        return (
            "LearnerTooOld",
            f"a learner of version {status.version} serves no snapshot; 3.4.28 and 3.5.0 do",
        )
    if status.leader == 0 and any(other.leader for other in observation.statuses):
        return "NoLeader", "it knows no leader while others do: it is cut off and may be behind"
    lag = _lag(observation, status)
    if lag > max_raft_lag:
        return "RaftLag", f"it is {lag} raft entries behind, more than maxRaftLag {max_raft_lag}"
    return None


def _lag(observation: Observation, status: MemberStatus) -> int:
    return observation.highest_index - status.raft_applied_index


def _without_endpoint(observation: Observation) -> list[LeftAlone]:
    """Members of the list that no configured endpoint leads to (unless that endpoint failed: it is told
    already).
    """
    reached = {status.member_id for status in observation.statuses}
    failed = {reading.endpoint for reading in observation.endpoints if reading.status is None}
    return [
        LeftAlone(
            subject=_subject(member.name, member.id, ""),
            reason="NotStarted" if not member.name else "NoEndpoint",
            message="it has never started" if not member.name else "no configured endpoint leads to it",
        )
        for member in observation.members
        if member.id not in reached and not failed.intersection(member.client_urls)
    ]


def _why(chosen: Candidate, ranked: list[Candidate], prefer: int | None) -> tuple[str, str]:
    behind = f"{chosen.lag} raft entries behind"
    peers = [c for c in ranked if c.role == chosen.role]
    if chosen.role == "learner":
        return "Learner", f"{chosen.subject} is a learner: it has no clients and no vote, and is {behind}"
    if chosen.role == "leader":
        return "OnlyLeader", f"{chosen.subject} leads, and no other member can serve"
    if chosen.member_id == prefer and len(peers) > 1:
        return "SameMember", f"{chosen.subject} is a follower, {behind}, and the source of the parent backup"
    return "LeastLag", f"{chosen.subject} is the follower least behind ({behind})"


def _passed_over(candidate: Candidate, chosen: Candidate, prefer: int | None) -> LeftAlone:
    if candidate.role != chosen.role:
        reason = "Leader" if candidate.role == "leader" else "Follower"
        message = f"it is a {candidate.role}; {chosen.subject} is a {chosen.role}"
    elif chosen.member_id == prefer and candidate.lag <= _CLOSE:
        reason, message = (
            "OtherMember",
            f"{chosen.subject} is close enough and the source of the parent backup",
        )
    else:
        reason = "MoreLag" if candidate.lag > chosen.lag else "EquallyGood"
        message = f"it is {candidate.lag} raft entries behind, {chosen.subject} {chosen.lag}"
    return LeftAlone(subject=candidate.subject, reason=reason, message=message)


def _subject(name: str, member_id: int, endpoint: str) -> str:
    place = f" at {endpoint}" if endpoint else ""
    return f"member {name or 'unnamed'} ({format_id(member_id)}){place}"

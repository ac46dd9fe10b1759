"""What to do about the backups of one cluster: pure, (Observation, EtcdBackupPolicy, now) -> Plan.

Level-triggered: asked often, it looks at what there is and says what is missing. A backup is due when the
schedule has come since the newest one; a backup never read back is to be verified; retention says what may
go. The dead man's alarm, `ObjectiveMissed`, stands in `leftAlone` under the cluster whenever no proven
backup is young enough, also while paused and also when backups are taken but never proven. Called by
`reconcile` and `keeper plan`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import msgspec

from shared.etcd_backup import members, retention
from shared.etcd_backup.lineage import Lineage
from shared.etcd_backup.observation import AUTOMATION, Observation
from shared.etcd_backup.policy import EtcdBackupPolicy
from shared.etcd_backup.schedule import last_tick, next_tick
from shared.model.backup import BackupRecord, Kind, VerdictState, orphan_time
from shared.model.duration import format_duration, parse_duration
from shared.model.etcd import format_id, parse_id
from shared.model.plan import Action, ActionKind, LeftAlone, Plan, utc

ATTEMPTS_PER_TICK = 3
"""Bad backups of one tick after which only the next tick brings another try."""

ASK_AGAIN_FOR = timedelta(minutes=10)
"""Kubernetes compacts every five minutes, and a compacted revision can no longer be witnessed."""

FROM_THE_FUTURE = timedelta(minutes=5)
"""A backup dated further ahead than clocks differ; it must neither silence the alarm nor the schedule."""


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """Why a backup is to be taken."""

    reason: str
    message: str


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """Full or delta, on which parent, and why."""

    kind: Kind
    parent: BackupRecord | None
    reason: str
    message: str


def decide(observation: Observation, policy: EtcdBackupPolicy, now: datetime) -> Plan:
    """The plan; empty of actions when nothing is due. SettingsError when a schedule cannot be read."""
    now = utc(now)
    if not policy.enabled:
        return _plan(
            observation, now, (), (_cluster(observation, "Disabled", "etcdBackup.enabled is false"),)
        )
    usable, strange = _split_future(observation, now)
    lineage = Lineage(usable)
    alarm = _objective(observation, lineage, policy, now)
    if observation.state.get("paused"):
        paused = _cluster(observation, "Paused", "an operator paused it; `keeper run resume` ends that")
        return _plan(observation, now, (), (*alarm, paused))
    taken, not_taken = _backup(observation, lineage, policy, now)
    verified = tuple(_verifications(observation, lineage, now))
    pruned, kept = _prune(usable, policy, now)
    swept, ignored = _sweep(observation, now)
    actions = (*taken, *verified, *pruned, *swept)
    return _plan(observation, now, actions, (*alarm, *not_taken, *kept, *strange, *ignored))


def decide_requested(observation: Observation, policy: EtcdBackupPolicy, now: datetime, reason: str) -> Plan:
    """The plan of a one-off backup: taken whatever the schedule says, full or delta as ever; nothing else."""
    now = utc(now)
    usable, _ = _split_future(observation, now)
    due = Due(reason="Requested", message=reason)
    actions, left_alone = _take(observation, Lineage(usable), policy, now, due)
    return _plan(observation, now, actions, left_alone)


# Backup


def _backup(
    observation: Observation, lineage: Lineage, policy: EtcdBackupPolicy, now: datetime
) -> tuple[tuple[Action, ...], tuple[LeftAlone, ...]]:
    due = _due(lineage, policy, now)
    if isinstance(due, Due):
        return _take(observation, lineage, policy, now, due)
    return (), (_cluster(observation, *due),)


def _due(lineage: Lineage, policy: EtcdBackupPolicy, now: datetime) -> Due | tuple[str, str]:
    """Why one is due, or (reason, message) why not."""
    tick, following = last_tick(policy.schedule, now), next_tick(policy.schedule, now)
    upcoming = f"next due {following:%Y-%m-%d %H:%M} UTC"
    if not lineage.records:
        return Due(reason="FirstBackup", message="there is no backup yet")
    since = [record for record in lineage.records if record.started_at >= tick]
    bad = [record for record in since if record.verdict is VerdictState.BAD]
    if not since:
        newest = lineage.records[-1]
        text = f"scheduled for {tick:%Y-%m-%d %H:%M} UTC; the newest backup began {_time(newest.started_at)}"
        return Due(reason="Scheduled", message=text)
    if len(bad) < len(since):
        return "NotDue", f"the newest backup began {_time(since[-1].started_at)}; {upcoming}"
    if len(bad) < ATTEMPTS_PER_TICK:
        return Due(reason="LastIsBad", message=f"the backup of {_time(bad[-1].started_at)} is bad")
    return (
        "RepeatedlyBad",
        f"{len(bad)} backups since {tick:%H:%M} UTC are bad; look at the verdicts; {upcoming}",
    )


def _take(
    observation: Observation, lineage: Lineage, policy: EtcdBackupPolicy, now: datetime, due: Due
) -> tuple[tuple[Action, ...], tuple[LeftAlone, ...]]:
    basis = choose_basis(lineage, policy, now)
    prefer = parse_id(basis.parent.member_id) if basis.parent else None
    choice = members.choose(observation, policy.max_raft_lag, prefer)
    source = choice.chosen
    if source is None:
        blocked = _cluster(
            observation, choice.reason, f"{choice.message}, though a backup is due: {due.message}"
        )
        return (), (blocked, *choice.left_alone)
    if basis.parent and prefer is not None and source.member_id != prefer:
        text = f"the parent came from member {format_id(prefer)}, whose pages do not match {source.subject}'s"
        basis = Basis(kind=Kind.FULL, parent=None, reason="OtherMember", message=text)
    parent = basis.parent
    action = Action(
        kind=ActionKind.BACKUP,
        target=observation.cluster,
        reason=due.reason,
        message=f"take a {basis.kind} backup from {source.subject}: {due.message}",
        parameters={
            "kind": basis.kind.value,
            "kindReason": basis.reason,
            "parent": parent.name if parent else None,
            "parentDigest": parent.digest if parent else None,
            "memberId": format_id(source.member_id),
            "memberName": source.name,
            "endpoint": source.endpoint,
            "isLearner": source.role == "learner",
            "chosenBecause": choice.reason,
            "alternates": [candidate.endpoint for candidate in choice.ranked[1:]],
        },
        evidence=(due.message, f"{basis.kind}: {basis.message}", f"source: {choice.message}"),
        preconditions=(
            f"{source.endpoint} still answers as member {format_id(source.member_id)} without an alarm",
            *((f"{parent.name} is still there with digest {parent.digest[:12]}",) if parent else ()),
        ),
    )
    return (action,), choice.left_alone


def choose_basis(lineage: Lineage, policy: EtcdBackupPolicy, now: datetime) -> Basis:
    """A delta on the newest backup unless anything speaks for a full."""
    newest = lineage.records[-1] if lineage.records else None
    if newest is None:
        return _full("FirstBackup", "there is no backup to build on")
    objection = next(_objections(newest, lineage, policy, now), None)
    if objection:
        return _full(*objection)
    length = len(lineage.ancestors(newest))
    message = f"{newest.name} is whole and {length} deltas from its full"
    return Basis(kind=Kind.DELTA, parent=newest, reason="ParentUsable", message=message)


def _objections(
    newest: BackupRecord, lineage: Lineage, policy: EtcdBackupPolicy, now: datetime
) -> Iterator[tuple[str, str]]:
    """(reason, message) of everything against a delta on `newest`, the strongest first."""
    if policy.max_chain == 0:
        yield "IncrementalsOff", "etcdBackup.maxChain is 0"
    if problem := lineage.problem(newest):
        reason = (
            "ParentBad"
            if problem[0] == "Bad"
            else "ParentMissing"
            if problem[0] == "DataMissing"
            else problem[0]
        )
        yield reason, f"{newest.name} cannot be built on: {problem[1]}"
    root, length = lineage.full_of(newest), len(lineage.ancestors(newest))
    if root and now - root.started_at >= parse_duration(policy.full_every):
        yield "FullDue", f"the last full began {_time(root.started_at)}; fullEvery is {policy.full_every}"
    if length >= policy.max_chain:
        yield "ChainFull", f"{length} deltas follow the last full; maxChain is {policy.max_chain}"
    if newest.encrypted != (policy.encryption is not None):
        yield "EncryptionChanged", f"encryption is {'on' if policy.encryption else 'off'} now"


def _full(reason: str, message: str) -> Basis:
    return Basis(kind=Kind.FULL, parent=None, reason=reason, message=message)


# Verify


def _verifications(observation: Observation, lineage: Lineage, now: datetime) -> Iterator[Action]:
    """Backups never read back, and the newest again while its revision can still be witnessed; newest
    first.
    """
    for record in reversed(lineage.records):
        if not record.data_present:
            continue
        if record.verdict is None:
            yield _verify(record, "NeverVerified", "it was never read back")
        elif _can_ask_again(record, lineage, now):
            why = record.verdict_reason or "unknown"
            yield _verify(record, "AskAgain", f"it is unverified ({why}) and members may answer now")


def _can_ask_again(record: BackupRecord, lineage: Lineage, now: datetime) -> bool:
    is_newest = record.name == lineage.records[-1].name
    is_rested = record.verdict_at is not None and now - record.verdict_at >= timedelta(minutes=1)
    is_young = now - record.started_at < ASK_AGAIN_FOR
    return record.verdict is VerdictState.UNVERIFIED and is_newest and is_rested and is_young


def _verify(record: BackupRecord, reason: str, message: str) -> Action:
    return Action(
        kind=ActionKind.VERIFY,
        target=record.name,
        reason=reason,
        message=f"read {record.name} back and ask the members for its hash: {message}",
        parameters={"backup": record.name, "revision": record.revision},
        evidence=(f"verdict: {record.verdict.value if record.verdict else 'none'}",),
        preconditions=(f"{record.name} still has digest {record.digest[:12]}",),
    )


# Prune


def _prune(
    records: tuple[BackupRecord, ...], policy: EtcdBackupPolicy, now: datetime
) -> tuple[tuple[Action, ...], tuple[LeftAlone, ...]]:
    selection = retention.select(records, policy.retention, now)
    actions = tuple(
        Action(
            kind=ActionKind.PRUNE,
            target=pruned.record.name,
            reason=pruned.reason,
            message=f"delete the {pruned.record.kind} of {_time(pruned.record.started_at)}: {pruned.message}",
            parameters={"backup": pruned.record.name, "blobs": list(pruned.record.blob_names)},
            evidence=(f"{len(selection.kept)} of {len(records)} backups are kept",),
            preconditions=("no remaining backup is built on it", "it is not immutable"),
        )
        for pruned in selection.pruned
    )
    left_alone = tuple(
        LeftAlone(subject=kept.record.name, reason=kept.reason, message=kept.message)
        for kept in selection.kept
    )
    return actions, left_alone


def _sweep(observation: Observation, now: datetime) -> tuple[tuple[Action, ...], tuple[LeftAlone, ...]]:
    """Blobs that crashed runs left without a manifest; what is not named as ours is never touched."""
    actions, left_alone = [], []
    for name in observation.orphans:
        written = orphan_time(name)
        if written is None:
            message = "it is not named like a part of a backup; remove it by hand if nobody needs it"
            left_alone.append(LeftAlone(subject=name, reason="NotABackup", message=message))
        elif now - written < retention.MINIMUM_AGE:
            message = "it belongs to no backup, but its run may be young"
            left_alone.append(LeftAlone(subject=name, reason="TooNew", message=message))
        else:
            actions.append(_sweep_one(name))
    return tuple(actions), tuple(left_alone)


def _sweep_one(name: str) -> Action:
    return Action(
        kind=ActionKind.PRUNE,
        target=name,
        reason="Orphan",
        message=f"delete {name}: its run ended before the manifest was written",
        parameters={"backup": None, "blobs": [name]},
        evidence=("no manifest refers to it",),
        preconditions=("no manifest refers to it", "it is not immutable"),
    )


# Objective


def _objective(
    observation: Observation, lineage: Lineage, policy: EtcdBackupPolicy, now: datetime
) -> tuple[LeftAlone, ...]:
    """The dead man's alarm, or nothing. A cluster first seen less than the objective ago is given that
    time.
    """
    objective = parse_duration(policy.objective)
    proven = lineage.newest_proven(until=now + FROM_THE_FUTURE)
    if proven and now - proven.started_at <= objective:
        return ()
    first_seen = _first_seen(observation)
    if not lineage.records and first_seen and now - first_seen <= objective:
        return ()
    limit = f"etcdBackup.objective is {policy.objective}"
    if proven is None:
        text = f"no backup is verified, of {len(lineage.records)}; {limit}"
    else:
        age = format_duration(now - proven.started_at)
        text = f"the newest verified backup, {proven.name}, is {age} old; {limit}"
    later = [r for r in lineage.records if proven is None or r.started_at > proven.started_at]
    if later:
        text += f"; {len(later)} later are not verified, the last {_state(later[-1])}"
    return (_cluster(observation, "ObjectiveMissed", text),)


def _state(record: BackupRecord) -> str:
    if record.verdict is None:
        return "was never read back"
    return f"is {record.verdict.value} ({record.verdict_reason or 'unknown'})"


def _first_seen(observation: Observation) -> datetime | None:
    text = observation.state.get("firstSeenAt")
    return msgspec.convert(text, datetime) if text else None


# Parts


def _split_future(
    observation: Observation, now: datetime
) -> tuple[tuple[BackupRecord, ...], tuple[LeftAlone, ...]]:
    own = [record for record in observation.backups if record.cluster == observation.cluster]
    future = [record for record in own if record.started_at > now + FROM_THE_FUTURE]
    message = "it is dated into the future; check the clock of whoever took it"
    left_alone = tuple(LeftAlone(subject=r.name, reason="FromTheFuture", message=message) for r in future)
    return tuple(r for r in own if r not in future), left_alone


def _plan(
    observation: Observation, now: datetime, actions: tuple[Action, ...], left_alone: tuple[LeftAlone, ...]
) -> Plan:
    return Plan(
        automation=AUTOMATION, cluster=observation.cluster, now=now, actions=actions, left_alone=left_alone
    )


def _cluster(observation: Observation, reason: str, message: str) -> LeftAlone:
    return LeftAlone(subject=observation.cluster, reason=reason, message=message)


def _time(value: datetime) -> str:
    return f"{utc(value):%Y-%m-%d %H:%M:%S} UTC"

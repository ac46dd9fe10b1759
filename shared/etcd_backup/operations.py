"""One-off operations on etcd and its backups: `backup`, `verify-backup`, `restore-drill`, `etcd-health`,
`etcd-defrag`.

Called by the dispatcher under the claim on (cluster, etcd-backup); each may be delivered twice, or resumed
after a crash. `claim.run_id` marks what an attempt wrote: a backup is taken once for each operation.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from shared.errors import NotFoundError
from shared.etcd_backup.act import Place, act, verification_of
from shared.etcd_backup.decide import decide_requested
from shared.etcd_backup.drill import drill
from shared.etcd_backup.health import Severity, check, defragment
from shared.etcd_backup.observe import observe
from shared.etcd_backup.reconcile import note_first_look, open_place
from shared.model.backup import BackupRecord, read_listing
from shared.model.etcd import format_id
from shared.model.plan import Action, ActionKind, Outcome, Plan, Status
from shared.model.wording import byte_size

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.operations.catalogue import (
        BackupParameters,
        DefragParameters,
        Parameters,
        StoredBackupParameters,
    )
    from shared.runtime.claim import Claim
    from shared.settings import Cluster

AUTOMATION = "etcd-backup"


def backup(
    cluster: Cluster, parameters: BackupParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """Take and prove a backup now; a resumed operation only does what is still missing."""
    with open_place(cluster, clients, claim) as place:
        note_first_look(claim, now)
        observation = observe(cluster, place.etcd, place.store, state=claim.state, now=now)
        taken = [record for record in observation.backups if record.run.startswith(claim.run_id)]
        if taken:
            return _resumed(taken[-1], place, now)
        policy = msgspec.structs.replace(place.policy, max_chain=0) if parameters.full else place.policy
        plan = decide_requested(observation, policy, now, parameters.reason or "requested by an operation")
        return act(plan, place) or [_not_taken(plan)]


def verify_backup(
    cluster: Cluster, parameters: StoredBackupParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """Read one stored backup back, the newest by default."""
    with open_place(cluster, clients, claim) as place:
        record = _stored(place, parameters.backup)
        action = verification_of(record.name, "Requested", "requested by an operation")
        return act(_plan(place, now, action), place)


def restore_drill(
    cluster: Cluster, parameters: StoredBackupParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """Restore one stored backup into a throw-away etcd and compare; the newest by default."""
    with open_place(cluster, clients, claim) as place:
        return drill(place, _stored(place, parameters.backup), now)


def etcd_health(
    cluster: Cluster, _parameters: Parameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """Quorum, leader, lag, sizes, alarms; failed (for good) when something critical was found."""
    with open_place(cluster, clients, claim) as place:
        report = check(cluster, place.etcd, now)
    worst = [f for f in report.findings if f.severity is not Severity.INFO]
    lines = "; ".join(f"{f.subject}: {f.message}" for f in worst) or "nothing to report"
    message = f"{report.answering_voters} of {report.voters} voters answer; {lines}"
    data: dict[str, Any] = {"report": msgspec.to_builtins(report), "final": True}
    data["event"] = "HealthChecked" if report.healthy else "Unhealthy"
    status = Status.SUCCEEDED if report.healthy else Status.FAILED
    return [
        Outcome(
            action=_action(ActionKind.HEALTH_CHECK, cluster.name), status=status, message=message, data=data
        )
    ]


def etcd_defrag(
    cluster: Cluster, parameters: DefragParameters, clients: Clients, claim: Claim, _now: datetime
) -> list[Outcome]:
    """Defragment one member after the other, the leader last; stops at the first that does not recover."""
    with open_place(cluster, clients, claim) as place:
        report = defragment(
            cluster,
            place.etcd,
            now=clients.now,
            ensure=claim.ensure,
            progress=claim.progress,
            skip=_others(place, parameters.member) if parameters.member else frozenset(),
        )
    parts = [f"{d.member}: {byte_size(d.before_bytes)} to {byte_size(d.after_bytes)}" for d in report.done]
    parts += [f"stopped: {report.stopped}"] if report.stopped else []
    data = {
        "report": msgspec.to_builtins(report),
        "event": "DefragStopped" if report.stopped else "Defragmented",
    }
    status = Status.FAILED if report.stopped else Status.SUCCEEDED
    message = "; ".join(parts) or "no member to defragment"
    return [
        Outcome(
            action=_action(ActionKind.DEFRAGMENT, cluster.name), status=status, message=message, data=data
        )
    ]


def _resumed(record: BackupRecord, place: Place, now: datetime) -> list[Outcome]:
    """What is left to do when an earlier attempt of the same operation has taken the backup already."""
    action = _action(ActionKind.BACKUP, place.cluster)
    message = f"{record.name} was taken by an earlier attempt of this operation"
    done = Outcome(
        action=action,
        status=Status.SUCCEEDED,
        message=message,
        data={"backup": record.name, "event": "BackedUp"},
    )
    if record.verdict is not None:
        return [done]
    checking = verification_of(record.name, "Interrupted", "an earlier attempt did not come to that")
    return [done, *act(_plan(place, now, checking), place)]


def _not_taken(plan: Plan) -> Outcome:
    """The failed outcome of a backup that cannot be taken now, with every reason."""
    why = "; ".join(f"{left.subject}: {left.message}" for left in plan.left_alone) or "nobody can serve it"
    return Outcome(action=_action(ActionKind.BACKUP, plan.cluster), status=Status.FAILED, message=why)


def _stored(place: Place, name: str | None) -> BackupRecord:
    """The backup called `name`, or the newest; NotFoundError when there is none."""
    records = read_listing(place.store.list(f"{place.cluster}/")).records
    found = [record for record in records if name in {None, record.name, record.run}]
    if not found:
        wanted = f"backup '{name}'" if name else "backup"
        raise NotFoundError(
            f"'{place.cluster}' has no {wanted} in container '{place.store.name}'; see: keeper backup list"
        )
    return found[-1]


def _others(place: Place, member: str) -> frozenset[int]:
    """Ids of all members but the one with that name or id; NotFoundError when there is no such member."""
    members = place.etcd.members()
    if not any(member in {one.name, format_id(one.id)} for one in members):
        names = ", ".join(sorted(one.name for one in members))
        raise NotFoundError(f"etcd of '{place.cluster}' has no member '{member}'; there are: {names}")
    return frozenset(one.id for one in members if member not in {one.name, format_id(one.id)})


def _action(kind: ActionKind, cluster: str) -> Action:
    return Action(kind=kind, target=cluster, reason="Requested", message=f"{kind} of {cluster}, as requested")


def _plan(place: Place, now: datetime, *actions: Action) -> Plan:
    return Plan(automation=AUTOMATION, cluster=place.cluster, now=now, actions=actions)

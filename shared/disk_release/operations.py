"""One-off operations on disks: `release-disk`, and `approve` for a policy that wants a person.

Called by the dispatcher under the claim on (cluster, disk-release). A release takes minutes: the operation
does one pass, as the timer would, and comes again until the disk is free or it is clear that it will not be.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from shared.disk_release import state as states
from shared.disk_release.cases import disk_fact, machine_name
from shared.disk_release.decide import verdicts
from shared.disk_release.observation import AUTOMATION, Observation
from shared.disk_release.reconcile import Pass, follow_up, go, open_place
from shared.disk_release.verdict import Kind, Verdict
from shared.errors import MessageError, NotYetError
from shared.model.disk import is_disk_id, key
from shared.model.plan import Action, ActionKind, Outcome, Status
from shared.record import record

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.disk_release.act import Place
    from shared.operations.catalogue import ApproveParameters, ReleaseDiskParameters
    from shared.runtime.claim import Claim
    from shared.settings import Cluster

APPROVAL = timedelta(hours=1)
"""An approval is for what the operator sees now, not for the next time."""
AGAIN_SECONDS = 15.0
JUST_NOW = timedelta(hours=1)
"""A disk that was freed this recently was freed for whoever asks."""


def release_disk(
    cluster: Cluster, parameters: ReleaseDiskParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """Free one disk, by the rules that hold for all; with `approve` its VM may be powered off for that."""
    place = open_place(cluster, clients, claim)
    try:
        disk = resolve(place, parameters.disk)
    except MessageError as error:  # asking again would not mend it
        return [_ended(parameters.disk, Status.FAILED, str(error), place, clients, reason="BadDiskId")]
    done = _pass(place, clients, now, disk)
    if parameters.approve and _approve_node_of(done.observation, disk, place, now):
        done = _pass(place, clients, now, disk)
    return [_answer(done, disk, place, clients)]


def approve(
    cluster: Cluster, parameters: ApproveParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """Allow the fence of a node's VM for an hour, and go on with it at once."""
    place = open_place(cluster, clients, claim)
    node = parameters.subject
    if place.kube.find(f"/api/v1/nodes/{node}") is None:
        raise MessageError(f"cluster '{cluster.name}' has no node '{node}'; see: kubectl get nodes")
    place.memory.save(states.approve(place.memory.state, node, now + APPROVAL))
    return _pass(place, clients, now, "").outcomes


def resolve(place: Place, wanted: str) -> str:
    """The resource id of a disk, given itself or the name of its PersistentVolume."""
    if wanted.startswith("/"):
        if not is_disk_id(wanted):
            raise MessageError(
                f"'{wanted}' is not the resource id of a managed disk; expected "
                "/subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.Compute/disks/NAME"
            )
        return wanted
    volume = place.kube.find(f"/api/v1/persistentvolumes/{wanted}")
    if volume is None:
        raise MessageError(
            f"cluster '{place.cluster.name}' has no PersistentVolume '{wanted}'; see: kubectl get pv"
        )
    spec = volume.get("spec") or {}
    handle = (spec.get("csi") or {}).get("volumeHandle") or (spec.get("azureDisk") or {}).get("diskURI", "")
    if not is_disk_id(str(handle)):
        raise MessageError(f"PersistentVolume '{wanted}' is not an Azure disk; nothing to release")
    return str(handle)


def _pass(place: Place, clients: Clients, now: datetime, disk: str) -> Pass:
    done = go(place, now, (disk,) if disk else ())
    follow_up(place, clients, done)
    record(clients, done.plan, done.outcomes)
    return done


def _approve_node_of(observation: Observation, disk: str, place: Place, now: datetime) -> bool:
    """Approve the fence of the VM that holds the disk; False when it has no node, or is approved already."""
    found = [v.node for v in _verdicts(observation, disk, place) if v.step is ActionKind.POWER_OFF_VM]
    state = place.memory.state
    if not found or state.approved.get(found[0], now) > now:
        return False
    place.memory.save(states.approve(state, found[0], now + APPROVAL))
    return True


def _verdicts(observation: Observation, disk: str, place: Place) -> Iterator[Verdict]:
    for verdict in verdicts(observation, place.policy, place.now()):
        if key(verdict.disk) == key(disk):
            yield verdict


def _answer(done: Pass, disk: str, place: Place, clients: Clients) -> Outcome:
    """How the operation ends; NotYetError while something is under way."""
    name = disk.rpartition("/")[2]
    fact = disk_fact(done.observation, disk)
    if fact.is_absent:
        message = f"there is no disk '{name}' in Azure ({fact.why}); check its id"
        return _ended(disk, Status.FAILED, message, place, clients, reason="DiskGone")
    if fact.value is None:
        return _unreadable(disk, fact.why, place, clients)
    actions = [outcome for outcome in done.outcomes if _is_about(outcome, disk)]
    failed = [outcome for outcome in actions if outcome.status is Status.FAILED]
    found = list(_verdicts(done.observation, disk, place))
    acted = [v for v in found if v.step is not None]
    if acted and not place.policy.dry_run:
        refusal = next((left for left in done.plan.left_alone if left.subject == acted[0].subject), None)
        if refusal is None:
            said = failed or actions
            raise NotYetError(said[0].message if said else acted[0].message, seconds=AGAIN_SECONDS)
        return _ended(disk, Status.FAILED, refusal.message, place, clients, reason=refusal.reason)
    waiting = next((verdict for verdict in found if verdict.kind is Kind.WAIT), None)
    if waiting is not None:
        raise NotYetError(f"{name}: {waiting.text}", seconds=AGAIN_SECONDS)
    if found:
        said_ = found[0]
        return _ended(disk, Status.FAILED, f"{name}: {said_.text}", place, clients, reason=said_.reason)
    return _at_rest(done.observation, disk, place, clients)


def _unreadable(disk: str, why: str, place: Place, clients: Clients) -> Outcome:
    """What Azure refuses to say is not "gone"; asked again, unless it is a role that is missing."""
    message = f"disk {disk.rpartition('/')[2]} cannot be read ({why}), so nothing is known and nothing done"
    if not why.startswith(("401", "403", "400", "404")):
        raise NotYetError(f"{message}; it is asked again", seconds=30)
    return _ended(disk, Status.FAILED, message, place, clients, reason="Unknown")


def _at_rest(observation: Observation, disk: str, place: Place, clients: Clients) -> Outcome:
    """Nothing is wrong with the disk: free, freed just now, or in use."""
    name, found = disk.rpartition("/")[2], disk_fact(observation, disk).value
    assert found is not None
    since = place.now() - JUST_NOW
    freed = next((d for d in place.memory.state.done if d.disk == key(disk) and d.at > since), None)
    if freed is not None:
        message = f"disk {name} is free of VM {machine_name(freed.vm)} since {freed.at:%H:%M:%S} UTC"
        return _ended(disk, Status.SUCCEEDED, message, place, clients, reason="Released")
    if not found.owners:
        message = f"disk {name} is attached to no VM; there is nothing to release"
        return _ended(disk, Status.SUCCEEDED, message, place, clients, reason="Free")
    where = ", ".join(map(machine_name, found.owners))
    if found.os_type:
        message = f"disk {name} is the operating-system disk of {where}; those are never touched"
        return _ended(disk, Status.FAILED, message, place, clients, reason="OsDisk")
    if not any(key(owner) in observation.node_of_machine for owner in found.owners):
        message = f"disk {name} is attached to {where}, which is no node of this cluster; not touched"
        return _ended(disk, Status.FAILED, message, place, clients, reason="ForeignDisk")
    message = f"disk {name} is attached to {where}, where it belongs; a disk in use is never released"
    return _ended(disk, Status.FAILED, message, place, clients, reason="InUse")


def _is_about(outcome: Outcome, disk: str) -> bool:
    return any(key(d["id"]) == key(disk) for d in outcome.action.parameters.get("disks", ()))


def _ended(
    disk: str, status: Status, message: str, place: Place, clients: Clients, *, reason: str
) -> Outcome:
    action = Action(kind=ActionKind.DETACH_DISK, target=disk, reason=reason, message=f"release {disk}")
    event = "ReleaseRefused" if status is Status.FAILED else "ReleaseConfirmed"
    data: dict[str, Any] = {"event": event, "final": True, "proofs": proofs_of(disk, place, clients)}
    return Outcome(action=action, status=status, message=message, data=data)


def proofs_of(disk: str, place: Place, clients: Clients) -> list[str]:
    """Ids of the evidence behind what was done about a disk lately, oldest first."""
    since = place.now() - JUST_NOW
    found = []
    for entry in clients.journal.entries([(place.cluster.name, AUTOMATION)], limit=200):
        is_about = any(key(known) == key(disk) for known in entry.data.get("disks", ()))
        if entry.at > since and is_about and entry.data.get("evidence"):
            found.append(str(entry.data["evidence"]))
    return list(dict.fromkeys(reversed(found)))

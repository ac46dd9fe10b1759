"""Carries out a plan about disks, one action after the other: look again, prove, announce, write.

Just before a write everything it rests on is read anew and put to the same rules that decided. The proof is
stored first, then (for Azure) the intent in the claim's state document, then the request leaves: a run that
dies anywhere leaves no change without proof, and no request that the next run would not know of. A machine
never has two writes at a time. A failed action becomes a failed outcome and never hides another. Called by
`reconcile` and the operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.disk_release import settle, writes
from shared.disk_release.observation import Observation
from shared.disk_release.observe import World, look_again, raw
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.proof import prove
from shared.disk_release.rules import broken
from shared.disk_release.state import (
    CONFLICT,
    FORBIDDEN,
    NOT_FOUND,
    ArmWrite,
    ReleaseState,
    WriteState,
    accepted,
    announce,
    ended,
    open_release,
    read_state,
    tainted,
    untainted,
)
from shared.errors import (
    ApiError,
    AutomationError,
    ConflictError,
    ForbiddenError,
    LostLeaseError,
    NotFoundError,
    ThrottledError,
    UnavailableError,
    UnsafePlanError,
)
from shared.model.disk import is_machine_id
from shared.model.plan import Action, ActionKind, Outcome, Plan, Status
from shared.runtime.evidence import store_evidence

if TYPE_CHECKING:
    from shared.clients.arm import Arm, Begun
    from shared.clients.blob import BlobStore, PageBlob
    from shared.clients.kube import KubeClient
    from shared.runtime.claim import Claim
    from shared.settings import Cluster

ARM_WRITES = frozenset(
    {
        ActionKind.POWER_OFF_VM,
        ActionKind.DETACH_DISK,
        ActionKind.FORCE_DETACH_DISK,
        ActionKind.REAPPLY_VM,
    }
)
NEEDS_DISKS = frozenset(
    {
        ActionKind.DETACH_DISK,
        ActionKind.FORCE_DETACH_DISK,
        ActionKind.DELETE_VOLUME_ATTACHMENT,
        ActionKind.REMOVE_FINALIZER,
    }
)
REVERSIBLE = frozenset({ActionKind.POWER_OFF_VM, ActionKind.TAINT_NODE})
"""These take no disk away by themselves: a read of the same pass will do."""
RECENT = timedelta(seconds=3)

BEGUN_EVENTS: Mapping[ActionKind, str] = {
    ActionKind.POWER_OFF_VM: "FenceBegun",
    ActionKind.DETACH_DISK: "DetachBegun",
    ActionKind.FORCE_DETACH_DISK: "ForceDetachBegun",
    ActionKind.REAPPLY_VM: "ReapplyBegun",
}
"""Such a write is only begun here; how it ended is an event of its own."""


@dataclass
class Memory:
    """The automation's part of the claim's state document: changed here, stored at once."""

    claim: Claim
    state: ReleaseState

    @staticmethod
    def of(claim: Claim) -> Memory:
        return Memory(claim, read_state(claim.state))

    def save(self, state: ReleaseState) -> None:
        """LostLeaseError when the claim is no longer ours: then nothing may be written any more."""
        if state != self.state:
            self.claim.save(state.document())
            self.state = state


@dataclass(frozen=True)
class Place:
    """Where a plan is carried out. `now` is the clock."""

    cluster: Cluster
    policy: DiskReleasePolicy
    kube: KubeClient
    azure: Arm
    evidence: BlobStore
    claim: Claim
    memory: Memory
    now: Callable[[], datetime]
    page_blob: Callable[[str], PageBlob]

    @property
    def world(self) -> World:
        return World(self.kube, self.azure, self.now, self.page_blob)


class _Declined(Exception):  # noqa: N818 - not an error: an action whose precondition no longer holds
    pass


def act(plan: Plan, observation: Observation, place: Place) -> list[Outcome]:
    """What became of each action, in order. LostLeaseError ends everything at once; so does what is a bug."""
    return [_guarded(action, observation, place) for action in plan.actions]


def _guarded(action: Action, observation: Observation, place: Place) -> Outcome:
    try:
        return _carry_out(action, observation, place)
    except _Declined as declined:
        return Outcome(action=action, status=Status.SKIPPED, message=str(declined))
    except LostLeaseError:
        raise
    except ConflictError as error:
        # Somebody was faster, and the next look sees what they did.
        return Outcome(action=action, status=Status.SKIPPED, message=str(error))
    except AutomationError as error:
        return Outcome(action=action, status=Status.FAILED, message=str(error))


def _carry_out(action: Action, observation: Observation, place: Place) -> Outcome:
    fresh = _last_look(action, observation, place)
    now = place.now()
    objections = broken(action, fresh, place.policy, now)
    if objections:
        raise _Declined(f"not done, since by now {'; '.join(f'{o.rule}: {o.detail}' for o in objections)}")
    proof = store_evidence(place.claim, place.evidence, prove(action, fresh, place.policy, now))
    if action.kind in ARM_WRITES:
        return _write_azure(action, place, proof)
    if action.kind is ActionKind.BREAK_LEASE:
        return _break_lease(action, place, proof)
    return _write_kubernetes(action, fresh, place, proof)


def _last_look(action: Action, observation: Observation, place: Place) -> Observation:
    """Everything about the action's node again; and its machine and disks, unless that was just now."""
    wanted, now = action.parameters, place.now()
    needs_machine = action.kind is not ActionKind.UNTAINT_NODE and is_machine_id(wanted.get("vm", ""))
    ids = [wanted["vm"]] if needs_machine else []
    ids += disk_ids(action) if action.kind in NEEDS_DISKS else []
    ids += [wanted["blob"]] if action.kind is ActionKind.BREAK_LEASE else []
    if action.kind in REVERSIBLE:
        ids = [resource_id for resource_id in ids if not _is_recent(observation, resource_id, now)]
    state = place.memory.state.document()
    return look_again(observation, place.world, node=wanted.get("node", ""), ids=ids, state=state)


def _is_recent(observation: Observation, resource_id: str, now: datetime) -> bool:
    facts = observation.machine(resource_id), observation.disk(resource_id)
    return any(fact.read_at is not None and now - fact.read_at <= RECENT for fact in facts)


def disk_ids(action: Action) -> list[str]:
    """Resource ids of the action's disks, in their order."""
    return [disk["id"] for disk in action.parameters.get("disks", ())]


# Azure


def _write_azure(action: Action, place: Place, proof: str) -> Outcome:
    """Announce, send, note what was answered. A lost answer leaves it announced: the next pass finds out."""
    vm = action.parameters["vm"]
    state, write = announce(place.memory.state, action, place.now())
    place.memory.save(state)
    place.claim.ensure()
    try:
        begun = _send(action, place)
    except UnavailableError as error:
        message = f"{action.message}: no answer ({error}); whether it began is looked for"
        return _outcome(action, Status.FAILED, message, proof)
    except (ApiError, UnsafePlanError) as error:
        _refused(write, error, vm, place)
        return _outcome(action, Status.FAILED, str(error), proof, final=True)
    place.memory.save(accepted(place.memory.state, vm, write.id, begun.status_url))
    if begun.is_done:
        place.memory.save(ended(place.memory.state, vm, write.id, WriteState.SUCCEEDED, place.now()))
    return _outcome(action, Status.SUCCEEDED, action.message, proof, event=BEGUN_EVENTS[action.kind])


def _refused(write: ArmWrite, error: AutomationError, vm: str, place: Place) -> None:
    """Azure did not take the request."""
    release = place.memory.state.release_of(vm)
    assert release is not None, "it was announced"
    message = str(error)
    state = settle.failed(
        place.memory.state, release, write, place.now(), code=_code_of(error), message=message
    )
    place.memory.save(state)


def _code_of(error: AutomationError) -> str:
    """Azure's own, but for refusals that are told apart by their kind."""
    code = getattr(error, "code", None) or type(error).__name__
    match error:
        case ThrottledError():
            return "Throttled"
        case ForbiddenError():
            return FORBIDDEN
        case NotFoundError():
            return NOT_FOUND
        # A VM in failed state answers 409 too, and will until it is repaired or its disks are forced off.
        case ConflictError() if code != "OperationNotAllowed":
            return CONFLICT
    return code


def _send(action: Action, place: Place) -> Begun:
    vm = action.parameters["vm"]
    if action.kind is ActionKind.POWER_OFF_VM:
        return writes.power_off(place.azure, vm, deallocate=place.policy.fence_with == "deallocate")
    if action.kind is ActionKind.REAPPLY_VM:
        return writes.reapply(place.azure, vm)
    force = action.kind is ActionKind.FORCE_DETACH_DISK
    return writes.detach_disks(place.azure, vm, disk_ids(action), force=force)


def _break_lease(action: Action, place: Place, proof: str) -> Outcome:
    """Snapshot first; both on the version that was decided on: what changed meanwhile is left alone."""
    blob = place.page_blob(action.parameters["blob"])
    etag = action.parameters["etag"]
    place.claim.ensure()
    snapshot = blob.snapshot(etag)
    blob.break_lease(etag)
    outcome = _outcome(action, Status.SUCCEEDED, f"{action.message}; snapshot {snapshot}", proof)
    return msgspec.structs.replace(outcome, data=outcome.data | {"snapshot": snapshot})


# Kubernetes


def _write_kubernetes(action: Action, fresh: Observation, place: Place, proof: str) -> Outcome:
    wanted = action.parameters
    if action.kind in (ActionKind.TAINT_NODE, ActionKind.UNTAINT_NODE):
        node = raw(fresh, "nodes", wanted["node"])
        assert node is not None, "the rules of taints ask for the node"
        if action.kind is ActionKind.TAINT_NODE:
            _taint(action, node, place, proof)
        else:
            writes.untaint_node(place.kube, node)
            place.memory.save(untainted(place.memory.state, wanted.get("vm", "")))
    elif action.kind is ActionKind.DELETE_VOLUME_ATTACHMENT:
        writes.delete_attachment(place.kube, wanted["attachment"], wanted["attachmentUid"])
    elif action.kind is ActionKind.REMOVE_FINALIZER:
        attachment = raw(fresh, "volumeattachments", wanted["attachment"])
        assert attachment is not None, "the rules of finalizers ask for the attachment"
        writes.remove_finalizer(place.kube, attachment)
    else:
        raise _Declined(f"{action.kind} is left to people; its message says how")
    return _outcome(action, Status.SUCCEEDED, action.message, proof)


def _taint(action: Action, node: dict[str, Any], place: Place, proof: str) -> None:
    """The release is remembered first: a taint that nobody remembers would be taken for a forgotten one."""
    place.memory.save(open_release(place.memory.state, action, place.now()))
    writes.taint_node(place.kube, node, proof, place.now())
    place.memory.save(tainted(place.memory.state, action.parameters["vm"], place.now()))


def _outcome(
    action: Action, status: Status, message: str, proof: str, *, event: str = "", final: bool = False
) -> Outcome:
    data: dict[str, Any] = {"evidence": proof, "vm": action.parameters.get("vm", "")}
    data |= {"disks": disk_ids(action)} if disk_ids(action) else {}
    data |= {"event": event} if event else {}
    data |= {"final": True} if final else {}
    return Outcome(action=action, status=status, message=message, data=data)

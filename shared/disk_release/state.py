"""What the automation remembers between passes: releases in flight, fences, first sightings; pure.

Lives in the claim's state document (`claim.state`), as JSON of `ReleaseState`. Every change is a function
here that returns a new value, so that `act`, the model checker and the simulator change it alike. A write to
Resource Manager is announced (`announce`) and saved BEFORE its request leaves, then `accepted` or `refused`,
then `ended`. A run that dies in between leaves it announced: the next finds out from what Azure shows.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec

from shared.model.disk import key
from shared.model.plan import Action, ActionKind

REQUEST_TIMEOUT = timedelta(seconds=60)
"""A request not accepted by then never will be: the client gives up sooner and Azure does not queue."""

FORBIDDEN = "Forbidden"
"""Code of a write that Azure refused for want of a role: nothing was tried."""

NOT_FOUND = "NotFound"
"""Code of a write that Azure refused as it did not find the VM: the next reads tell whether that is so."""

CONFLICT = "Conflict"
"""Code of a write that Azure refused because of something else that is under way."""

FORGET_AFTER = timedelta(hours=6)
"""Sightings not renewed, and notes on what is over, are dropped after this."""


class WriteState(enum.StrEnum):
    """Where one write to Resource Manager stands."""

    ANNOUNCED = "Announced"
    """Stored; the request may or may not have left."""
    RUNNING = "Running"
    """Accepted; `status_url` tells how it goes."""
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    """Refused, failed, cancelled, preempted or overdue."""


class ArmWrite(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One write on one VM. `id` is unique in the cluster; `disks` are resource ids."""

    id: str
    kind: ActionKind
    at: datetime
    deadline: datetime
    state: WriteState = WriteState.ANNOUNCED
    disks: tuple[str, ...] = ()
    status_url: str = ""
    ended_at: datetime | None = None
    code: str = ""
    message: str = ""

    @property
    def is_open(self) -> bool:
        return self.state in (WriteState.ANNOUNCED, WriteState.RUNNING)


class Release(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The release of all disks of one VM, from the first action until nothing is left to do.

    `epoch` numbers releases in the cluster. `vm_id`, `node_uid` and the disks' unique ids are those decided
    on: what has the same name and another identity is somebody else's.
    """

    vm: str
    vm_id: str
    epoch: int
    begun_at: datetime
    reason: str
    node: str = ""
    node_uid: str = ""
    disks: dict[str, str] = {}
    """Unique id of each disk by its resource id, lower case."""
    writes: tuple[ArmWrite, ...] = ()
    tainted_at: datetime | None = None

    def last(self, *kinds: ActionKind) -> ArmWrite | None:
        """The newest write of these kinds."""
        return next((write for write in reversed(self.writes) if write.kind in kinds), None)

    @property
    def open_write(self) -> ArmWrite | None:
        """The one write that is not over; a VM never has two."""
        return next((write for write in self.writes if write.is_open), None)


class Fence(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A VM that was powered off, for the limits."""

    vm: str
    node: str
    at: datetime
    pool: str = ""
    zone: str = ""


class Done(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A disk that was seen free of the VM it was released from."""

    disk: str
    vm: str
    epoch: int
    at: datetime


class Sighting(msgspec.Struct, frozen=True, rename="camel"):
    """Since when, and when last, something was seen without a sign of the contrary in between."""

    first: datetime
    last: datetime


class ReleaseState(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The whole document. Releases are keyed by the VM's resource id, lower case; approvals by node name."""

    epoch: int = 0
    releases: dict[str, Release] = {}
    fences: tuple[Fence, ...] = ()
    done: tuple[Done, ...] = ()
    seen: dict[str, Sighting] = {}
    approved: dict[str, datetime] = {}
    """Until when a node may be fenced, by its name; the operation `approve` writes it."""

    def release_of(self, vm: str) -> Release | None:
        return self.releases.get(key(vm))

    def seen_for(self, what: str, at: datetime) -> timedelta | None:
        """How long it had been seen at that time; None when never."""
        sighting = self.seen.get(what)
        return None if sighting is None else at - sighting.first

    def document(self) -> dict[str, Any]:
        """For `claim.save`."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document


def read_state(document: Mapping[str, Any]) -> ReleaseState:
    """From `claim.state`; others' keys are passed over. msgspec.ValidationError if it is broken."""
    return msgspec.convert(dict(document), ReleaseState)


# Names of sightings


def absent(resource_id: str) -> str:
    """The resource answered 404."""
    return f"absent:{key(resource_id)}"


def unowned(disk: str, vm: str) -> str:
    """The disk did not name the VM as its owner."""
    return f"unowned:{key(disk)}@{key(vm)}"


def unknown(resource_id: str) -> str:
    """Azure did not say how the resource is."""
    return f"unknown:{key(resource_id)}"


def unclaimed(attachment: str) -> str:
    """A node that is Ready had the disk attached, and no pod there used it."""
    return f"unclaimed:{attachment}"


def updating(vm: str) -> str:
    """The VM was being changed, or was neither on nor off, as far as Azure knew."""
    return f"updating:{key(vm)}"


def off(vm: str) -> str:
    """The VM was stopped or deallocated."""
    return f"off:{key(vm)}"


def started(vm: str) -> str:
    """The VM, once off, was on again."""
    return f"started:{key(vm)}"


def gone_node(name: str) -> str:
    """Attachments name a node that has no Node object; or, by its resource id, a VM has none."""
    return f"gone-node:{name}"


def out_of_service(node: str) -> str:
    """The node carried the out-of-service taint."""
    return f"out-of-service:{node}"


# Changes


def see(state: ReleaseState, what: Mapping[str, datetime], not_so: frozenset[str]) -> ReleaseState:
    """Note what was seen, at which time; forget what was seen not to be so."""
    seen = {name: sighting for name, sighting in state.seen.items() if name not in not_so}
    for name, at in what.items():
        known = seen.get(name)
        seen[name] = Sighting(known.first if known else at, max(at, known.last) if known else at)
    return msgspec.structs.replace(state, seen=seen)


def announce(state: ReleaseState, action: Action, now: datetime) -> tuple[ReleaseState, ArmWrite]:
    """Store that a write is about to leave. Opens the release of the VM if the action begins one.

    The action's parameters carry everything: `vm`, `vmId`, `node`, `nodeUid`, `disks`, `epoch`, `pool`,
    `zone`, `deadlineSeconds`.
    """
    release = state.release_of(action.parameters["vm"]) or _opened(action, now)
    number = len(release.writes) + 1
    write = ArmWrite(
        id=f"{release.epoch}.{number}",
        kind=action.kind,
        at=now,
        deadline=now + timedelta(seconds=action.parameters["deadlineSeconds"]),
        disks=tuple(disk["id"] for disk in action.parameters.get("disks", ())),
    )
    release = msgspec.structs.replace(
        release, writes=(*release.writes, write), disks=release.disks | _unique_ids(action)
    )
    state = _with(state, release)
    if action.kind is ActionKind.POWER_OFF_VM:
        state = msgspec.structs.replace(state, fences=(*state.fences, _fence(action, now)))
    return state, write


def open_release(state: ReleaseState, action: Action, now: datetime) -> ReleaseState:
    """The release of the VM, if the action begins one; for actions on Kubernetes only (`TaintNode`)."""
    release = state.release_of(action.parameters["vm"]) or _opened(action, now)
    release = msgspec.structs.replace(release, disks=release.disks | _unique_ids(action))
    return _with(state, release)


def _opened(action: Action, now: datetime) -> Release:
    wanted = action.parameters
    return Release(
        vm=wanted["vm"],
        vm_id=wanted["vmId"],
        epoch=wanted["epoch"],
        begun_at=now,
        reason=action.reason,
        node=wanted.get("node", ""),
        node_uid=wanted.get("nodeUid", ""),
    )


def _unique_ids(action: Action) -> dict[str, str]:
    return {key(disk["id"]): disk["uniqueId"] for disk in action.parameters.get("disks", ())}


def _fence(action: Action, now: datetime) -> Fence:
    wanted = action.parameters
    return Fence(vm=key(wanted["vm"]), node=wanted["node"], at=now, pool=wanted["pool"], zone=wanted["zone"])


def accepted(state: ReleaseState, vm: str, write_id: str, status_url: str) -> ReleaseState:
    """Resource Manager took the request."""
    return _changed(state, vm, write_id, state=WriteState.RUNNING, status_url=status_url)


def ended(
    state: ReleaseState,
    vm: str,
    write_id: str,
    outcome: WriteState,
    at: datetime,
    *,
    code: str = "",
    message: str = "",
) -> ReleaseState:
    """The write is over, well or not; also for a request that was refused, and one given up as overdue."""
    return _changed(state, vm, write_id, state=outcome, ended_at=at, code=code, message=message[:400])


def tainted(state: ReleaseState, vm: str, at: datetime) -> ReleaseState:
    """Our taint is on the node of the VM."""
    release = state.release_of(vm)
    assert release is not None
    return _with(state, msgspec.structs.replace(release, tainted_at=release.tainted_at or at))


def untainted(state: ReleaseState, vm: str) -> ReleaseState:
    """Our taint was taken from the node of the VM; the release, if any, has no taint to follow."""
    release = state.release_of(vm)
    return state if release is None else _with(state, msgspec.structs.replace(release, tainted_at=None))


def closed(state: ReleaseState, vm: str) -> ReleaseState:
    """Nothing is left to do for the VM."""
    releases = {name: release for name, release in state.releases.items() if name != key(vm)}
    return msgspec.structs.replace(state, releases=releases)


def freed(state: ReleaseState, disk: str, vm: str, epoch: int, at: datetime) -> ReleaseState:
    """The disk was seen free."""
    done = Done(disk=key(disk), vm=key(vm), epoch=epoch, at=at)
    return msgspec.structs.replace(state, done=(*state.done, done))


def approve(state: ReleaseState, node: str, until: datetime) -> ReleaseState:
    """An operator allows the fence of a node's VM until then."""
    return msgspec.structs.replace(state, approved=state.approved | {node: until})


def forget(state: ReleaseState, now: datetime, fence_window: timedelta) -> ReleaseState:
    """Drop what no rule can ask for any more."""
    return msgspec.structs.replace(
        state,
        seen={name: s for name, s in state.seen.items() if now - s.last < FORGET_AFTER},
        fences=tuple(f for f in state.fences if now - f.at < max(fence_window, FORGET_AFTER)),
        done=tuple(d for d in state.done if now - d.at < FORGET_AFTER),
        approved={node: until for node, until in state.approved.items() if until > now},
    )


def _with(state: ReleaseState, release: Release) -> ReleaseState:
    return msgspec.structs.replace(
        state,
        epoch=max(state.epoch, release.epoch),
        releases=state.releases | {key(release.vm): release},
    )


def _changed(known: ReleaseState, vm: str, write_id: str, **changes: Any) -> ReleaseState:
    release = known.release_of(vm)
    assert release is not None
    writes = tuple(
        msgspec.structs.replace(write, **changes) if write.id == write_id else write
        for write in release.writes
    )
    return _with(known, msgspec.structs.replace(release, writes=writes))

"""What became of writes to Azure that were begun earlier, judged by what the machine itself shows; pure.

The machine is asked anyway, so an operation is asked only where its machine leaves open how it went. A write
whose announcement was stored and whose answer was never noted (the run died in between) is adopted when its
effect or its progress is visible, and given up when nothing is visible after any request would have arrived.
Called by `reconcile` before deciding.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from shared.disk_release.observation import Fact, Observation
from shared.disk_release.state import (
    CONFLICT,
    NOT_FOUND,
    REQUEST_TIMEOUT,
    ArmWrite,
    Release,
    ReleaseState,
    WriteState,
    accepted,
    closed,
    ended,
)
from shared.model.disk import Machine
from shared.model.plan import ActionKind

IN_TRANSITION = frozenset({"Updating", "Creating", "Deleting", "Migrating"})
NEVER_TAKEN_UP = frozenset({"NeverArrived", "Throttled", CONFLICT, "AnotherOperationInProgress", NOT_FOUND})
"""Of requests that have changed nothing: not there, too many, one at a time, or no such VM."""
DETACHES = frozenset({ActionKind.DETACH_DISK, ActionKind.FORCE_DETACH_DISK})


class Standing(enum.StrEnum):
    """How a write stands."""

    OPEN = "Open"
    """Under way, or not known: wait."""
    ADOPT = "Adopt"
    """Announced, and by what Azure shows it left: under way."""
    ASK = "Ask"
    """The machine has come to rest without the effect: only the operation can say why."""
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class Judgement:
    """How one write stands, and in a word why it failed."""

    release: Release
    write: ArmWrite
    standing: Standing
    code: str = ""
    message: str = ""


def judge_all(observation: Observation, now: datetime) -> Iterator[Judgement]:
    """One for each write that is not over."""
    for release in observation.state.releases.values():
        write = release.open_write
        if write is not None:
            yield judge(release, write, observation.machine(release.vm), now)


def judge(release: Release, write: ArmWrite, machine: Fact[Machine], now: datetime) -> Judgement:
    """By a read of the machine; one that Azure refused says nothing."""
    if machine.is_unknown:
        return Judgement(release, write, Standing.OPEN)
    found = machine.value
    if found is None or found.vm_id != release.vm_id:
        return Judgement(release, write, Standing.FAILED, "MachineGone", "the machine is not there any more")
    is_moving = found.provisioning in IN_TRANSITION
    if has_effect(write, found) and not is_moving:
        return Judgement(release, write, Standing.SUCCEEDED)
    if now >= write.deadline:
        late = f"not over by {write.deadline:%H:%M:%S} UTC"
        return Judgement(release, write, Standing.FAILED, "Overdue", late)
    if is_moving:
        is_new = write.state is WriteState.ANNOUNCED
        return Judgement(release, write, Standing.ADOPT if is_new else Standing.OPEN)
    return _at_rest(release, write, now)


def _at_rest(release: Release, write: ArmWrite, now: datetime) -> Judgement:
    """The machine has come to rest and does not show the effect: too early, too late, or gone wrong."""
    if write.state is WriteState.ANNOUNCED:
        if now - write.at < REQUEST_TIMEOUT:
            return Judgement(release, write, Standing.OPEN)
        return Judgement(
            release, write, Standing.FAILED, "NeverArrived", "Azure shows no sign of the request"
        )
    if write.status_url:
        return Judgement(release, write, Standing.ASK)
    return Judgement(release, write, Standing.FAILED, "NoEffect", "it has ended and changed nothing")


def has_effect(write: ArmWrite, machine: Machine) -> bool:
    """Whether the machine shows what the write was for."""
    if write.kind is ActionKind.POWER_OFF_VM:
        return machine.is_off
    if write.kind in DETACHES:
        return not any(machine.entry(disk) for disk in write.disks)
    return machine.provisioning == "Succeeded"


def note(state: ReleaseState, judged: Judgement, now: datetime) -> ReleaseState:
    """The state with what was found."""
    vm, write = judged.release.vm, judged.write.id
    if judged.standing is Standing.ADOPT:
        return accepted(state, vm, write, judged.write.status_url)
    if judged.standing is Standing.SUCCEEDED:
        return ended(state, vm, write, WriteState.SUCCEEDED, now)
    if judged.standing is Standing.FAILED:
        return failed(state, judged.release, judged.write, now, code=judged.code, message=judged.message)
    return state


def failed(
    state: ReleaseState, release: Release, write: ArmWrite, now: datetime, *, code: str, message: str
) -> ReleaseState:
    """The write has failed. One that Azure never took up was no try: its release ends, and what is still
    stuck begins anew. So force is never used for want of an answer, and a fence is tried again, as often as
    the policy's window allows, when the missing role is there.
    """
    is_refused_fence = write.kind is ActionKind.POWER_OFF_VM and write.state is WriteState.ANNOUNCED
    if is_refused_fence or (write.kind in DETACHES and code in NEVER_TAKEN_UP):
        return closed(state, release.vm)
    return ended(state, release.vm, write.id, WriteState.FAILED, now, code=code, message=message)

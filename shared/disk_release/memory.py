"""What a look adds to what is remembered: first sightings, writes that are over, disks that are free; pure.

`remember` is called by `decide` (so that a plan from a file is the whole truth) and by `reconcile`, which
saves it. Doing it twice with the same observation changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from shared.disk_release import state as states
from shared.disk_release.cases import Case, cases, disk_fact
from shared.disk_release.observation import Fact, Observation
from shared.disk_release.rules import AT_REST, MOVING_POWER, UNKNOWN_POWER
from shared.disk_release.settle import Standing, judge_all, note
from shared.disk_release.state import FORBIDDEN, Release, ReleaseState, WriteState
from shared.model.disk import Attachment, Disk, Machine, key
from shared.model.plan import ActionKind

Seen = tuple[str, datetime, bool]


def remember(observation: Observation, now: datetime) -> ReleaseState:
    """The state after this look."""
    state = observation.state
    for judged in judge_all(observation, now):
        if judged.standing is not Standing.ASK:
            state = note(state, judged, now)
    found = list(_sightings(observation))
    state = states.see(
        state,
        {name: at for name, at, is_so in found if is_so},
        frozenset(name for name, _, is_so in found if not is_so),
    )
    for release in list(state.releases.values()):
        state = _follow(state, release, replace(observation, state=state), now)
    return states.forget(state, now, observation.policy.limits.fence_window)


def _sightings(observation: Observation) -> Iterator[Seen]:
    """(what, when, whether it is so); what is unknown is not mentioned."""
    for vm, machine in observation.machines.items():
        if machine.read_at is None or machine.is_unknown:
            continue
        yield states.absent(vm), machine.read_at, machine.is_absent
        is_off = machine.value is not None and machine.value.is_off
        was_off = states.off(vm) in observation.state.seen or states.started(vm) in observation.state.seen
        yield states.off(vm), machine.read_at, is_off
        yield states.started(vm), machine.read_at, was_off and not is_off and machine.value is not None
        yield states.updating(vm), machine.read_at, machine.value is not None and _is_moving(machine.value)
    facts: dict[str, Fact[Machine] | Fact[Disk]] = {**observation.machines, **observation.disks}
    for resource_id, fact in facts.items():
        if fact.read_at is not None:
            yield states.unknown(resource_id), fact.read_at, fact.is_unknown
    yield from _of_cases(observation)
    for name in observation.attachments_of_node:
        yield states.gone_node(name), observation.now, name not in observation.nodes
    for node in observation.nodes.values():
        if node.out_of_service or states.out_of_service(node.name) in observation.state.seen:
            yield states.out_of_service(node.name), observation.now, node.out_of_service is not None


def _is_moving(machine: Machine) -> bool:
    return machine.provisioning not in AT_REST or machine.power in MOVING_POWER | UNKNOWN_POWER


def _of_cases(observation: Observation) -> Iterator[Seen]:
    for case in cases(observation):
        if case.disk.value is not None and case.disk.read_at is not None:
            is_free = not case.is_owned and (bool(case.vm) or not case.disk.value.owners)
            yield states.unowned(case.disk_id, case.vm), case.disk.read_at, is_free
        is_nodeless = bool(case.vm) and key(case.vm) not in observation.node_of_machine
        if is_nodeless or states.gone_node(key(case.vm)) in observation.state.seen:
            yield states.gone_node(key(case.vm)), observation.now, is_nodeless
        if case.attachment is not None:
            is_unclaimed = _is_unclaimed(case, case.attachment)
            yield states.unclaimed(case.attachment.name), observation.now, is_unclaimed


def _is_unclaimed(case: Case, attachment: Attachment) -> bool:
    is_alive = case.node is not None and case.node.is_ready
    return is_alive and attachment.attached and not attachment.is_deleting and not case.pods_here


def _follow(state: ReleaseState, release: Release, observation: Observation, now: datetime) -> ReleaseState:
    """Note which disks are free; close the release when nothing is left to do."""
    noted = {done.disk for done in state.done if done.vm == key(release.vm) and done.epoch == release.epoch}
    held = {key(case.disk_id) for case in cases(observation) if _is_attached(case, release)}
    for disk in sorted(set(release.disks) - noted - held):
        if _is_free(disk, release, observation):
            state = states.freed(state, disk, release.vm, release.epoch, now)
            noted.add(disk)
    is_over = _is_over(release, noted, observation, now) or _is_due_again(release, observation, now)
    return states.closed(state, release.vm) if is_over else state


def _is_free(disk: str, release: Release, observation: Observation) -> bool:
    fact = disk_fact(observation, disk)
    if fact.is_absent:
        return True
    return fact.value is not None and fact.read_at is not None and not fact.value.is_owned_by(release.vm)


def _is_attached(case: Case, release: Release) -> bool:
    """Whether a VolumeAttachment still pairs the disk with the node of the release."""
    return case.attachment is not None and bool(release.node) and case.node_name == release.node


def _is_over(release: Release, free: set[str], observation: Observation, now: datetime) -> bool:
    if release.open_write is not None:
        return False
    machine, node = observation.machine(release.vm), observation.nodes.get(release.node)
    if node is not None and node.our_taint is not None:
        return False  # the taint goes first
    if machine.is_absent:
        return not observation.attachments_of_node.get(release.node)
    if machine.value is not None and machine.value.vm_id != release.vm_id:
        return True
    if set(release.disks) <= free:
        return True
    is_back = machine.value is not None and not machine.value.is_off and node is not None and node.is_ready
    return is_back and not _failed_lately(release, observation, now)


def _is_due_again(release: Release, observation: Observation, now: datetime) -> bool:
    """A fence failed, or a role is missing, people were told, and the window for fences is over: it may work
    now.
    """
    last = release.writes[-1] if release.writes else None
    if last is None or last.state is not WriteState.FAILED:
        return False
    if last.kind is not ActionKind.POWER_OFF_VM and last.code != FORBIDDEN:
        return False
    return now - (last.ended_at or last.at) >= observation.policy.limits.fence_window


def _failed_lately(release: Release, observation: Observation, now: datetime) -> bool:
    """A detach or a repair that did not help is not tried again at once, in a new release."""
    last = release.last(ActionKind.DETACH_DISK, ActionKind.FORCE_DETACH_DISK, ActionKind.REAPPLY_VM)
    pause = observation.policy.limits.zombie_age
    return last is not None and now - (last.ended_at or last.at) < pause

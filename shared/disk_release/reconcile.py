"""Stuck disks of one cluster, the whole story: observe, settle what was begun, decide, act, record.

Called for every nudge by the runtime, under the claim on (cluster, disk-release). A pass takes seconds; what
Azure takes minutes for is begun, remembered, and looked for by a follow-up. Dry run is the same, less `act`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.disk_release import settle
from shared.disk_release.act import Memory, Place, act
from shared.disk_release.cases import machine_name
from shared.disk_release.decide import decide, verdicts
from shared.disk_release.memory import remember
from shared.disk_release.observation import AUTOMATION, Observation, read
from shared.disk_release.observe import World, observe
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.settle import Judgement, Standing, judge_all
from shared.disk_release.state import Done, Release, ReleaseState
from shared.disk_release.tell import tell_cluster
from shared.errors import ApiError, MessageError, NotFoundError
from shared.model.plan import Action, ActionKind, Outcome, Plan, Status
from shared.record import record
from shared.runtime.claim import CONTAINER
from shared.runtime.message import Nudge
from shared.runtime.nudge import send_nudge

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.runtime.claim import Claim
    from shared.settings import Cluster

FOLLOW_FENCE = timedelta(seconds=20)
"""Powering off without shutdown takes about 10 s; looked at sooner, it is looked at twice. Azure's own event
that the action has ended is a reason to look as well."""
FOLLOW_WRITE = timedelta(seconds=30)
"""Detaching takes 30 to 120 s."""
FOLLOW_TAINT = timedelta(seconds=70)
"""The pods go within 20 s, and the disk driver then takes its 30 to 120 s."""
SOON = timedelta(seconds=5)
TICK = timedelta(seconds=60)
"""What is due later than that is found by the timer."""


def reconcile(cluster: Cluster, clients: Clients, claim: Claim, now: datetime) -> list[Outcome]:
    """One pass; RunFailedError at the end when an action failed that another try may mend."""
    place = open_place(cluster, clients, claim)
    done = go(place, now)
    follow_up(place, clients, done)
    record(clients, done.plan, done.outcomes)
    return done.outcomes


def look(cluster: Cluster, clients: Clients, state: dict[str, Any], now: datetime) -> Observation:
    """Observe only; for `keeper plan` and `keeper snapshot`."""
    world = World(clients.kube(cluster), clients.arm, clients.now, clients.page_blob)
    return observe(cluster, world, state=state, now=now)


@dataclass(frozen=True)
class Pass:
    """What one pass saw, planned and did."""

    observation: Observation
    plan: Plan
    outcomes: list[Outcome]


def go(place: Place, now: datetime, asked_for: Sequence[str] = ()) -> Pass:
    """Everything but recording; `asked_for` are disks that are looked at in any case."""
    before = place.memory.state
    state = before.document()
    observation = observe(place.cluster, place.world, state=state, now=now, asked_for=asked_for)
    judged = settle_writes(observation, place)
    observation = with_judgements(observation, judged, place.now())
    after = remember(observation, now)
    place.memory.save(after)
    plan = decide(observation, place.policy, now)
    outcomes = [*map(of_write, judged), *freed_disks(before, after)]
    if not place.policy.dry_run:
        outcomes += act(plan, observation, place)
    tell_cluster(place.kube, observation, outcomes, place.now())
    return Pass(observation, plan, outcomes)


def open_place(cluster: Cluster, clients: Clients, claim: Claim) -> Place:
    """Everything a pass reaches."""
    return Place(
        cluster=cluster,
        policy=cluster.disk_release or DiskReleasePolicy(),
        kube=clients.kube(cluster),
        azure=clients.arm,
        evidence=clients.blobs(CONTAINER),
        claim=claim,
        memory=Memory.of(claim),
        now=clients.now,
        page_blob=clients.page_blob,
    )


# What was begun before


def settle_writes(observation: Observation, place: Place) -> list[Judgement]:
    """Which writes are over, and how. Only those operations are asked whose machine came to rest without the
    effect.
    """
    found = []
    for judged in judge_all(observation, place.now()):
        known = ask(judged, place) if judged.standing is Standing.ASK else judged
        if known.standing in (Standing.SUCCEEDED, Standing.FAILED):
            found.append(known)
    return found


def with_judgements(observation: Observation, judged: Sequence[Judgement], now: datetime) -> Observation:
    """The observation with what was judged in its state, so that a plan from its file is the same."""
    state = observation.state
    for one in judged:
        state = settle.note(state, one, now)
    if state == observation.state:
        return observation
    assert observation.snapshot is not None
    return read(msgspec.structs.replace(observation.snapshot, state=state.document()))


def ask(judged: Judgement, place: Place) -> Judgement:
    """How the operation itself stands. An address that is not Resource Manager's is never asked."""
    try:
        progress = place.azure.poll(judged.write.status_url)
    except MessageError as error:
        return _failed(judged, "ForeignAddress", str(error))
    except NotFoundError as error:
        return _failed(judged, "Forgotten", str(error))
    except ApiError:
        return judged  # nothing is known: it stays open until its deadline
    if progress.state in ("Failed", "Canceled"):
        return _failed(judged, progress.code or progress.state, progress.message)
    # Succeeded, and the machine was read just before: the next look will show it.
    return judged


def _failed(judged: Judgement, code: str, message: str) -> Judgement:
    return Judgement(judged.release, judged.write, Standing.FAILED, code, message)


ENDED: dict[ActionKind, tuple[str, str]] = {
    ActionKind.POWER_OFF_VM: ("PoweredOff", "is off"),
    ActionKind.DETACH_DISK: ("Detached", "has let its disks go"),
    ActionKind.FORCE_DETACH_DISK: ("ForceDetached", "has let its disks go, by force"),
    ActionKind.REAPPLY_VM: ("Reapplied", "is repaired"),
}


def of_write(judged: Judgement) -> Outcome:
    """The outcome of a write that is over."""
    release, kind = judged.release, judged.write.kind
    event, text = ENDED[kind]
    name = machine_name(release.vm)
    is_bad = judged.standing is Standing.FAILED
    why = f"{judged.code}, {judged.message}".strip(", ")
    message = f"{kind} of {name} failed: {why}" if is_bad else f"VM {name} {text}"
    data: dict[str, Any] = {"vm": release.vm, "event": f"{kind}Failed" if is_bad else event, "final": True}
    return Outcome(
        action=_action(kind, release, release.vm, tuple(release.disks), message),
        status=Status.FAILED if is_bad else Status.SUCCEEDED,
        message=message,
        data=data,
    )


def freed_disks(before: ReleaseState, after: ReleaseState) -> list[Outcome]:
    """An outcome for each disk that was first seen free in this look."""
    return [_of_disk(done, before) for done in after.done if done not in before.done]


def _of_disk(done: Done, before: ReleaseState) -> Outcome:
    release = before.releases[done.vm]
    disk, vm = done.disk.rpartition("/")[2], machine_name(release.vm)
    seconds = round((done.at - release.begun_at).total_seconds())
    message = f"disk {disk} is free of VM {vm}, {seconds} s after its release began ({release.reason})"
    return Outcome(
        action=_action(ActionKind.DETACH_DISK, release, done.disk, (done.disk,), message),
        status=Status.SUCCEEDED,
        message=message,
        data={"event": "Released", "vm": release.vm, "seconds": seconds},
    )


def _action(kind: ActionKind, release: Release, target: str, disks: Sequence[str], message: str) -> Action:
    parameters = {
        "vm": release.vm,
        "vmId": release.vm_id,
        "node": release.node,
        "disks": [{"id": disk, "uniqueId": release.disks.get(disk, "")} for disk in disks],
        "epoch": release.epoch,
    }
    return Action(kind=kind, target=target, reason=release.reason, message=message, parameters=parameters)


# What comes next


def follow_up(place: Place, clients: Clients, done: Pass) -> None:
    """Look again when something that was begun should be over, or something that is waited for is due."""
    now = place.now()
    due = [*_of_releases(place.memory.state, now), *_of_waits(done.observation, place, now)]
    if not due:
        return
    seconds = math.ceil((max(min(due), now + SOON) - now).total_seconds())
    cluster, begun = place.cluster.name, place.claim.begun
    nudge = Nudge(cluster=cluster, automation=AUTOMATION, reason="FollowUp", after=begun)
    send_nudge(clients, nudge, timedelta(seconds=seconds))


def _of_releases(state: ReleaseState, now: datetime) -> Iterator[datetime]:
    """When each release should have got further."""
    for release in state.releases.values():
        write = release.open_write
        if write is not None:
            is_fence = write.kind is ActionKind.POWER_OFF_VM
            expected = write.at + (FOLLOW_FENCE if is_fence else FOLLOW_WRITE)
        else:
            expected = (release.tainted_at or now) + FOLLOW_TAINT
        yield expected if expected > now else now + FOLLOW_WRITE


def _of_waits(observation: Observation, place: Place, now: datetime) -> Iterator[datetime]:
    """Deadlines of what is waited for, and the second look that proves an absence."""
    gap = place.policy.limits.absence_gap
    for name, sighting in place.memory.state.seen.items():
        if name.startswith(("absent:", "unowned:")) and now < sighting.first + gap:
            yield sighting.first + gap
    for verdict in verdicts(observation, place.policy, now):
        if verdict.deadline is not None and now < verdict.deadline < now + TICK:
            yield verdict.deadline

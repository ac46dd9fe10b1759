"""The preconditions of every write, each a named predicate; pure.

`decide` proposes an action only when all rules of its kind hold, `act` asks the same rules again with fresh
reads just before the write, the checker of proofs asks them a third time with what was stored, and the
mutation test takes each away in turn. A rule answers yes, no, or unknown, and unknown is no.

Which rules belong to which write stands in `REQUIRED`. Some writes have several grounds: a disk is detached
because the VM is off (`fenced`), or because its node is alive and nothing there uses it (`idle`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from shared.disk_release import state as states
from shared.disk_release.cases import Case, tainted_since
from shared.disk_release.observation import Fact, Observation
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.state import FORBIDDEN, Release, WriteState
from shared.model.disk import (
    ATTACHER_FINALIZER,
    CREATED_FOR_VOLUME,
    DISK_DRIVER,
    Attachment,
    Blob,
    Disk,
    Machine,
    Node,
    key,
)
from shared.model.plan import Action, ActionKind

HEARTBEAT = timedelta(seconds=40)
"""Duration of a node's lease: a kubelet not heard of for longer is not known to live."""

AT_REST = frozenset({"Succeeded", "Failed"})
MOVING_POWER = frozenset({"starting", "stopping", "deallocating"})
"""A VM may also stay so at rest: when its start or stop has failed half-way."""
UNKNOWN_POWER = frozenset({"", "unknown"})
FREE_TO_DETACH = frozenset({"Attached", "Reserved", "Unattached"})


class Ground(enum.StrEnum):
    """Why a disk may be detached, or an attachment deleted."""

    FENCED = "fenced"
    IDLE = "idle"
    GONE = "gone"
    """The VM is."""
    FREE = "free"
    """The disk is, and the node is gone."""
    LOST = "lost"
    """The PersistentVolume is, or the VM is off and the controllers did not let it go in their turn."""


@dataclass(frozen=True)
class Finding:
    """What a rule found: `holds` is None when a fact it needs is unknown. `detail` is one short fact."""

    rule: str
    holds: bool | None
    detail: str

    @property
    def is_fine(self) -> bool:
        return self.holds is True


Answer = tuple[bool | None, str]


@dataclass(frozen=True)
class Scene:
    """An action and the world it is about to change, as the rules see it."""

    action: Action
    observation: Observation
    policy: DiskReleasePolicy
    now: datetime

    def text(self, name: str) -> str:
        return str(self.action.parameters.get(name) or "")

    @property
    def vm(self) -> str:
        return self.text("vm")

    @cached_property
    def machine(self) -> Fact[Machine]:
        return self.observation.machine(self.vm)

    @cached_property
    def node(self) -> Node | None:
        return self.observation.nodes.get(self.text("node"))

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """One for each disk of the action."""
        return tuple(
            Case(
                disk_id=disk["id"],
                vm=self.vm,
                node_name=self.text("node"),
                attachment=None,
                observation=self.observation,
            )
            for disk in self.action.parameters.get("disks", ())
        )

    @cached_property
    def disks(self) -> tuple[Fact[Disk], ...]:
        return tuple(case.disk for case in self.cases)

    @cached_property
    def attachment(self) -> Attachment | None:
        name = self.text("attachment")
        return next((a for a in self.observation.attachments if a.name == name), None)

    @property
    def release(self) -> Release | None:
        return self.observation.state.release_of(self.vm)

    @property
    def blob(self) -> Fact[Blob]:
        return self.observation.blob(self.text("blob"))


@dataclass(frozen=True)
class Rule:
    """`text` says what must hold; `invariants` which of I1 to I21 and L1 to L5 it serves."""

    name: str
    text: str
    invariants: tuple[str, ...]
    ask: Callable[[Scene], Answer]


RULES: dict[str, Rule] = {}


def rule(text: str, *invariants: str) -> Callable[[Callable[[Scene], Answer]], Callable[[Scene], Answer]]:
    """Register a predicate under its name in CamelCase."""

    def registered(ask: Callable[[Scene], Answer]) -> Callable[[Scene], Answer]:
        name = "".join(part.capitalize() for part in ask.__name__.split("_"))
        RULES[name] = Rule(name, text, invariants, ask)
        return ask

    return registered


# Identity and freshness


@rule("the VM's vmId is the one decided on", "I3", "I5", "I6")
def vm_is_the_same(scene: Scene) -> Answer:
    machine = scene.machine
    if machine.value is None:
        return (False if machine.is_absent else None), f"the VM is not known: {machine.why}"
    wanted, found = scene.text("vmId"), machine.value.vm_id
    return bool(wanted) and found == wanted, f"vmId {found}"


@rule("the node's uid is the one decided on, and its providerID names the VM", "I3")
def node_is_the_same(scene: Scene) -> Answer:
    node = scene.node
    if node is None:
        return False, f"there is no node {scene.text('node')}"
    is_same = node.uid == scene.text("nodeUid") and key(node.machine) == key(scene.vm)
    return is_same, f"node {node.name} has uid {node.uid}"


@rule("each disk's unique id is the one decided on", "I3", "I6")
def disks_are_the_same(scene: Scene) -> Answer:
    wanted = {key(d["id"]): d["uniqueId"] for d in scene.action.parameters.get("disks", ())}
    for case in scene.cases:
        if case.disk.value is None:
            return (False if case.disk.is_absent else None), f"{case.name}: not known: {case.disk.why}"
        if case.disk.value.unique_id != wanted[key(case.disk_id)]:
            return False, f"{case.name}: another disk has that name now"
    return bool(wanted), f"{len(wanted)} disks with their unique ids"


@rule("the VolumeAttachment's uid is the one decided on", "I3")
def attachment_is_the_same(scene: Scene) -> Answer:
    found = scene.attachment
    if found is None:
        return False, f"there is no VolumeAttachment {scene.text('attachment')}"
    return found.uid == scene.text("attachmentUid"), f"VolumeAttachment uid {found.uid}"


@rule("the VM was read on its own, no longer ago than `freshness`", "I4")
def vm_read_is_fresh(scene: Scene) -> Answer:
    return _fresh(scene, scene.machine, "the VM")


@rule("each disk was read on its own, no longer ago than `freshness`", "I4")
def disk_reads_are_fresh(scene: Scene) -> Answer:
    answers = [_fresh(scene, case.disk, case.name) for case in scene.cases]
    return next((a for a in answers if a[0] is not True), (True, "disks were read just now"))


@rule("Kubernetes was read no longer ago than `freshness`", "I4")
def cluster_read_is_fresh(scene: Scene) -> Answer:
    age = scene.now - scene.observation.now
    return age <= scene.policy.limits.freshness, f"Kubernetes was read {_seconds(age)} ago"


@rule("the VM was read after its fence began", "I4")
def read_after_fence(scene: Scene) -> Answer:
    fence = scene.release.last(ActionKind.POWER_OFF_VM) if scene.release else None
    if fence is None:
        return True, "nobody here fenced it"
    at = scene.machine.read_at
    return at is not None and at > fence.at, f"fenced at {fence.at:%H:%M:%S}"


def _fresh(scene: Scene, fact: Fact[Machine] | Fact[Disk], name: str) -> Answer:
    if fact.read_at is None:
        return None, f"{name} was not read on its own"
    age = scene.now - fact.read_at
    return age <= scene.policy.limits.freshness, f"{name} was read {_seconds(age)} ago"


# The node and its VM


@rule("the node is not Ready", "I9")
def node_is_not_ready(scene: Scene) -> Answer:
    node = scene.node
    if node is None:
        return None, "there is no Node"
    return not node.is_ready, f"node {node.name}: Ready={node.ready}"


@rule(
    "the node has been NotReady, its lease not renewed, and its VM not just started, for the pool's grace",
    "I7",
)
def node_is_silent(scene: Scene) -> Answer:
    node = scene.node
    if node is None:
        return None, "there is no Node"
    silence = silent_for(node, scene.observation, scene.now)
    grace = scene.policy.grace_of(node.pool)
    return (
        silence is not None and silence >= grace,
        f"silent for {_seconds(silence)}, grace {_seconds(grace)}",
    )


def silent_for(node: Node, observation: Observation, now: datetime) -> timedelta | None:
    """How long a node has been both NotReady and not heard of; None while it is Ready or nothing is known.
    Of a VM that was off and has been started, it counts from then: it is to have its time to boot.
    """
    if node.is_ready or node.ready_since is None or node.renewed_at is None:
        return None
    started = observation.state.seen.get(states.started(node.machine))
    return now - max(node.ready_since, node.renewed_at, *([started.first] if started else ()))


@rule("the VM runs", "I7")
def vm_is_running(scene: Scene) -> Answer:
    machine = scene.machine.value
    if machine is None or machine.power in UNKNOWN_POWER:
        return None, "its power state is not known"
    return machine.power == "running", f"VM {machine.power}"


@rule("the VM is stopped or deallocated, and not hibernated", "I1", "I2", "I9")
def vm_is_off(scene: Scene) -> Answer:
    machine = scene.machine.value
    if machine is None or machine.power in UNKNOWN_POWER:
        return None, "its power state is not known"
    return machine.is_off, f"VM {machine.power}{', hibernated' if machine.is_hibernated else ''}"


@rule("nobody changes the VM: its state is at rest, and no write of ours is open", "I13", "I14")
def nobody_writes_the_vm(scene: Scene) -> Answer:
    machine = scene.machine.value
    if machine is None:
        return None, "the VM is not known"
    write = scene.release.open_write if scene.release else None
    if write is not None:
        return False, f"{write.kind} of {write.at:%H:%M:%S} is not over"
    return machine.provisioning in AT_REST, f"provisioningState {machine.provisioning}"


@rule("nothing changes the VM but the detach of ours that is overdue", "I13")
def only_our_detach_is_under_way(scene: Scene) -> Answer:
    machine, release = scene.machine.value, scene.release
    if machine is None:
        return None, "the VM is not known"
    if release is not None and release.open_write is not None:
        return False, f"{release.open_write.kind} is not over"
    if machine.provisioning in AT_REST:
        return True, f"provisioningState {machine.provisioning}"
    last = release.last(ActionKind.DETACH_DISK) if release else None
    ours = {key(disk) for disk in last.disks} if last else set()
    going = {entry.key for entry in machine.data_disks if entry.to_be_detached}
    is_ours = machine.provisioning == "Updating" and bool(going) and going <= ours
    return is_ours, f"provisioningState {machine.provisioning}{', by our detach' if is_ours else ''}"


# Limits


@rule("the policy, or an operator, allows the fence", "I8")
def fence_is_allowed(scene: Scene) -> Answer:
    if scene.policy.fence != "approve":
        return scene.policy.fence == "allowed", f"diskRelease.fence is {scene.policy.fence}"
    until = scene.observation.state.approved.get(scene.text("node"))
    return until is not None and until > scene.now, "approved" if until else "not approved"


@rule("at most `fencesPerWindow` fences in the window, and `maxFencedPercent` of a pool and of a zone", "I17")
def fences_are_within_limits(scene: Scene) -> Answer:
    policy, now = scene.policy, scene.now
    window = now - policy.limits.fence_window
    fences = [f for f in scene.observation.state.fences if f.at > window]
    if len(fences) >= policy.fences_per_window:
        return False, f"{len(fences)} fences since {window:%H:%M:%S}"
    for label, value in (("pool", scene.text("pool")), ("zone", scene.text("zone"))):
        nodes = [n for n in scene.observation.nodes.values() if getattr(n, label) == value]
        # The same VM again is no further one.
        fenced = {f.vm for f in fences if getattr(f, label) == value} - {key(scene.vm)}
        if fenced and (len(fenced) + 1) * 100 > policy.max_fenced_percent * len(nodes):
            return False, f"{len(fenced)} of {len(nodes)} nodes of {label} '{value}' were fenced"
    return True, f"{len(fences)} fences in the window"


@rule("no more than `freezeAbovePercent` of the nodes are NotReady", "I17")
def cluster_is_not_frozen(scene: Scene) -> Answer:
    if scene.release is not None and scene.release.last(ActionKind.POWER_OFF_VM):
        return True, "the VM was fenced already; what was begun is finished"
    silent, total = not_ready(scene.observation)
    is_frozen = silent * 100 > scene.policy.freeze_above_percent * total
    return not is_frozen, f"{silent} of {total} nodes are NotReady"


def not_ready(observation: Observation) -> tuple[int, int]:
    """(NotReady, all) nodes; a node whose VM is known to be off is no sign of a partition."""
    nodes = [node for node in observation.nodes.values() if not node.is_shut_down]
    return sum(not node.is_ready for node in nodes), len(nodes)


@rule("no pod on the node carries an excluded label", "I8")
def nothing_is_excluded(scene: Scene) -> Answer:
    for pod in scene.observation.pods:
        if pod.node == scene.text("node") and not pod.is_over:
            label = next((text for text in scene.policy.exclude if has_label(pod.labels, text)), None)
            if label:
                return False, f"pod {pod.title} carries {label}"
    return True, "no excluded pod"


def has_label(labels: Mapping[str, str], text: str) -> bool:
    """`key` or `key=value`."""
    name, separator, value = text.partition("=")
    return name in labels and (not separator or labels[name] == value)


@rule("an unfinished pod wants one of the disks", "I7")
def somebody_waits(scene: Scene) -> Answer:
    waiting = [pod.title for case in scene.cases for pod in case.pods]
    return bool(waiting), f"wanted by {', '.join(dict.fromkeys(waiting)) or 'nobody'}"


@rule("none of the disks was released from this VM within `releaseWindow`", "L2")
def not_released_lately(scene: Scene) -> Answer:
    since = scene.now - scene.policy.limits.release_window
    lately = {(d.disk, d.vm) for d in scene.observation.state.done if d.at > since}
    again = [case.name for case in scene.cases if (key(case.disk_id), key(scene.vm)) in lately]
    return not again, f"released before: {', '.join(again) or 'none'}"


# The disks


@rule("each disk is a data disk of the VM, and none its operating-system disk", "I8", "I15")
def disks_are_data_disks(scene: Scene) -> Answer:
    machine = scene.machine.value
    if machine is None:
        return None, "the VM is not known"
    for case in scene.cases:
        disk = case.disk.value
        if disk is None or disk.os_type or key(case.disk_id) == key(machine.os_disk):
            return False, f"{case.name}: not a data disk"
        if machine.entry(case.disk_id) is None or not disk.is_owned_by(scene.vm):
            return False, f"{case.name}: not attached there"
    return bool(scene.cases), f"{len(scene.cases)} data disks of the VM"


@rule("each disk belongs to one VM at a time, or `sharedDisks` is on", "I11")
def disks_are_not_shared(scene: Scene) -> Answer:
    shared = [case.name for case in scene.cases if case.disk.value is None or case.disk.value.is_shared]
    return not shared or scene.policy.shared_disks, f"shared: {', '.join(shared) or 'none'}"


@rule("each disk is this cluster's: a PersistentVolume or its tag names it, or `untaggedDisks` is on", "I12")
def disks_are_ours(scene: Scene) -> Answer:
    strange = [case.name for case in scene.cases if not is_ours(case)]
    return not strange or scene.policy.untagged_disks, f"foreign: {', '.join(strange) or 'none'}"


def is_ours(case: Case) -> bool:
    """A PersistentVolume of the cluster names the disk, or the disk one that an attachment here names."""
    if case.volumes:
        return True
    disk = case.disk.value
    tag = disk.tags.get(CREATED_FOR_VOLUME, "") if disk else ""
    return bool(tag) and any(
        attachment.volume == tag and attachment.driver == DISK_DRIVER
        for attachment in case.observation.attachments
    )


@rule("no disk is frozen or has an active SAS", "I18")
def disks_are_free_to_detach(scene: Scene) -> Answer:
    for case in scene.cases:
        disk = case.disk.value
        if disk is None:
            return None, f"{case.name}: not known: {case.disk.why}"
        if disk.state not in FREE_TO_DETACH:
            return False, f"{case.name}: diskState {disk.state}"
    return True, "no disk is frozen or exported"


@rule("no unfinished pod on the node uses one of the disks", "I1")
def no_pod_uses_them(scene: Scene) -> Answer:
    pods = [pod.title for case in scene.cases for pod in case.pods_here]
    return not pods, f"used on the node by {', '.join(pods) or 'no pod'}"


@rule("the node reports none of the disks in use or attached", "I1", "I16")
def node_does_not_use_them(scene: Scene) -> Answer:
    used = [case.name for case in scene.cases if case.is_in_use or case.is_reported_attached]
    return not used, f"reported by the node: {', '.join(used) or 'none'}"


@rule("no VolumeAttachment that is not being deleted pairs a disk with the node", "I1")
def nothing_attaches_them(scene: Scene) -> Answer:
    found = [a.name for a in attachments_of(scene) if not a.is_deleting]
    return not found, f"VolumeAttachments: {', '.join(found) or 'none'}"


def attachments_of(scene: Scene) -> Iterator[Attachment]:
    """VolumeAttachments of the disks on the node, also those whose PersistentVolume is gone."""
    names = {volume.name for case in scene.cases for volume in case.volumes}
    names |= {c.disk.value.tags.get(CREATED_FOR_VOLUME, "") for c in scene.cases if c.disk.value}
    for attachment in scene.observation.attachments_of_node.get(scene.text("node"), ()):
        if attachment.volume in names:
            yield attachment


@rule("the node is Ready and its kubelet was heard within 40 s", "I1")
def node_is_alive(scene: Scene) -> Answer:
    node = scene.node
    if node is None or node.renewed_at is None:
        return None, "its kubelet was not heard"
    age = scene.now - node.renewed_at
    return node.is_ready and age <= HEARTBEAT, f"Ready={node.ready}, heard {_seconds(age)} ago"


@rule("each disk's owner last changed longer ago than `zombieAge`, and so long nothing knew why", "I7")
def attachment_is_old(scene: Scene) -> Answer:
    limit = scene.policy.limits.zombie_age
    for case in scene.cases:
        disk = case.disk.value
        if disk is None or disk.owner_changed_at is None:
            return None, f"{case.name}: nobody knows since when"
        if scene.now - disk.owner_changed_at < limit:
            return False, f"{case.name}: its owner changed {_seconds(scene.now - disk.owner_changed_at)} ago"
    return True, f"attached for more than {_seconds(limit)}"


@rule("the cluster's own controllers have had `detachAfter` since the taint", "I7")
def kubernetes_had_its_turn(scene: Scene) -> Answer:
    if scene.node is None:
        return True, "there is no Node to taint"
    tainted_at = tainted_since(scene.node, scene.observation)
    if tainted_at is None:
        return False, "the node is not tainted"
    waited, limit = scene.now - tainted_at, scene.policy.limits.detach_after
    return waited >= limit, f"tainted {_seconds(waited)} ago, turn {_seconds(limit)}"


@rule("a plain detach of the disks failed or took longer than `detachTimeout`, and `force` is on", "I2", "I8")
def plain_detach_failed(scene: Scene) -> Answer:
    if not scene.policy.force:
        return False, "diskRelease.force is off"
    if scene.release is None:
        return False, "no plain detach was tried"
    failed = [
        write
        for write in scene.release.writes
        if write.kind is ActionKind.DETACH_DISK
        and write.state is WriteState.FAILED
        and write.code != FORBIDDEN  # nothing was tried
    ]
    tried = {key(disk) for write in failed for disk in write.disks}
    missing = [case.name for case in scene.cases if key(case.disk_id) not in tried]
    return not missing, f"plain detach {failed[-1].code if failed else 'was not tried'}"


@rule("nothing was tried with force before in this release", "I14")
def force_is_the_first(scene: Scene) -> Answer:
    before = scene.release.last(ActionKind.FORCE_DETACH_DISK) if scene.release else None
    return before is None, "first force" if before is None else f"forced at {before.at:%H:%M:%S}"


@rule("at most one plain detach of each disk in a release", "I14")
def detach_is_the_first(scene: Scene) -> Answer:
    writes = scene.release.writes if scene.release else ()
    tried = {key(d) for w in writes if w.kind is ActionKind.DETACH_DISK for d in w.disks}
    again = [case.name for case in scene.cases if key(case.disk_id) in tried]
    return not again, f"tried before: {', '.join(again) or 'none'}"


@rule("at most two fences of the VM in a release", "I14")
def fence_is_not_repeated(scene: Scene) -> Answer:
    writes = scene.release.writes if scene.release else ()
    fences = [w for w in writes if w.kind is ActionKind.POWER_OFF_VM]
    return len(fences) < 2, f"{len(fences)} fences before"


# Taints


@rule("the node has no out-of-service taint yet", "I9")
def node_is_not_tainted(scene: Scene) -> Answer:
    taint = scene.node.out_of_service if scene.node else None
    return taint is None, "tainted already" if taint else "no out-of-service taint"


@rule("the taint is ours", "I9")
def taint_is_ours(scene: Scene) -> Answer:
    taint = scene.node.our_taint if scene.node else None
    return taint is not None, "ours" if taint else "no taint of ours"


@rule(
    "the taint has no purpose left: the node is Ready, has no attachments, or its VM is not off", "I9", "L4"
)
def taint_must_go(scene: Scene) -> Answer:
    node = scene.node
    if node is None:
        return False, "there is no Node"
    reason = why_untaint(node, scene.observation, scene.policy, scene.now)
    return bool(reason), reason or "still needed"


def why_untaint(node: Node, observation: Observation, policy: DiskReleasePolicy, now: datetime) -> str:
    """Why our taint has to go from a node; "" while it is needed."""
    release = observation.state.release_of(node.machine)
    machine = observation.machine(node.machine)
    taint = node.our_taint
    if node.is_ready:
        return "the node is Ready"
    if machine.value is not None and not machine.value.is_off:
        return f"the VM is {machine.value.power or 'in an unknown state'}"
    if release is not None and machine.value is not None and machine.value.vm_id != release.vm_id:
        return "another VM has the name"
    if not observation.attachments_of_node.get(node.name):
        return "no VolumeAttachment names the node"
    since = release.tainted_at if release else (taint.added_at if taint else None)
    if release is None and (since is None or now - since >= policy.limits.taint_max):
        return f"older than {_seconds(policy.limits.taint_max)} without a release that needs it"
    return ""


# VolumeAttachments


@rule("the VM is gone: two reads `absenceGap` apart found nothing", "I5")
def vm_is_gone(scene: Scene) -> Answer:
    return gone(scene.observation, scene.vm, scene.policy)


def gone(observation: Observation, vm: str, policy: DiskReleasePolicy) -> Answer:
    """Whether absence is proven; None after one read."""
    machine = observation.machine(vm)
    if not machine.is_absent or machine.read_at is None:
        return (None if machine.is_unknown else False), f"the VM: {machine.why or 'exists'}"
    waited = observation.state.seen_for(states.absent(vm), machine.read_at)
    if waited is None or waited < policy.limits.absence_gap:
        return None, f"the VM was not found, so far for {_seconds(waited)}"
    return True, f"the VM was not found ({machine.why}) for {_seconds(waited)}"


@rule("the attachment's node has no Node object", "I1")
def node_is_missing(scene: Scene) -> Answer:
    return scene.node is None, f"there is {'no ' if scene.node is None else ''}node {scene.text('node')}"


@rule("no VM owns the disk under this name", "I10")
def disk_is_unowned(scene: Scene) -> Answer:
    for case in scene.cases:
        if case.disk.value is None or case.disk.read_at is None:
            return None, f"{case.name}: not known: {case.disk.why}"
        if case.disk.value.is_owned_by(scene.vm) or (not scene.vm and case.disk.value.owners):
            return False, f"{case.name}: still managedBy {', '.join(case.disk.value.owners)}"
    return bool(scene.cases), "managedBy is another VM or nothing"


@rule("two reads `absenceGap` apart found the disk not owned by the VM", "I10")
def disk_was_unowned_before(scene: Scene) -> Answer:
    for case in scene.cases:
        at = case.disk.read_at
        waited = scene.observation.state.seen_for(states.unowned(case.disk_id, scene.vm), at) if at else None
        if waited is None or waited < scene.policy.limits.absence_gap:
            return None, f"{case.name}: found free for {_seconds(waited)}"
    return bool(scene.cases), "found free twice"


@rule("the VM is gone for certain, is off, or its node is alive and nothing there uses the disk", "I1", "I5")
def node_cannot_use_them(scene: Scene) -> Answer:
    """For the attachment of a volume that is lost: deleting it must not take a disk from a live mount."""
    is_gone, why = gone(scene.observation, scene.vm, scene.policy)
    if is_gone or (scene.machine.value is not None and scene.machine.value.is_off):
        return True, why
    answers = [node_is_alive(scene), node_does_not_use_them(scene)]
    return next((a for a in answers if a[0] is not True), (True, "idle on a live node"))


@rule("the VolumeAttachment is being deleted", "I10")
def attachment_is_deleting(scene: Scene) -> Answer:
    found = scene.attachment
    return found is not None and found.is_deleting, "being deleted" if found and found.is_deleting else "not"


@rule("the VolumeAttachment is not being deleted yet", "L2")
def attachment_is_not_deleting(scene: Scene) -> Answer:
    found = scene.attachment
    return found is not None and not found.is_deleting, "not being deleted"


@rule("the attacher can never finish: the PersistentVolume or the CSINode is missing", "I10")
def attacher_cannot_act(scene: Scene) -> Answer:
    found = scene.attachment
    if found is None or ATTACHER_FINALIZER not in found.finalizers:
        return False, "no finalizer of the attacher"
    reason = why_attacher_cannot(found, scene.observation)
    return bool(reason), reason or "the attacher can act"


def why_attacher_cannot(attachment: Attachment, observation: Observation) -> str:
    if attachment.volume not in observation.volumes:
        return f"PersistentVolume {attachment.volume} is missing"
    csi = observation.csi_nodes.get(attachment.node)
    if csi is None or attachment.driver not in csi.drivers:
        return f"CSINode of {attachment.node} is missing"
    return ""


@rule("the policy allows removing finalizers", "I8")
def finalizers_may_be_removed(scene: Scene) -> Answer:
    return scene.policy.remove_finalizers, f"diskRelease.removeFinalizers is {scene.policy.remove_finalizers}"


# Repair and leases


@rule("the VM is in failed state, and `repair` is on", "I8")
def repair_is_allowed(scene: Scene) -> Answer:
    machine = scene.machine.value
    is_failed = machine is not None and machine.provisioning == "Failed"
    return (
        is_failed and scene.policy.repair,
        f"diskRelease.repair is {'on' if scene.policy.repair else 'off'}",
    )


@rule("no disk that the repaired VM would let go is in use on its node", "I1")
def repair_takes_nothing_in_use(scene: Scene) -> Answer:
    """A VM in failed state is all that keeps a detach from being carried out that was asked for too early."""
    used = [case.name for case in let_go(scene) if case.is_in_use or case.pods_here]
    return not used, f"in use: {', '.join(used) or 'none'}"


def let_go(scene: Scene) -> Iterator[Case]:
    """The disks of the action, and those that the VM's own list says are to be detached."""
    yield from scene.cases
    machine = scene.machine.value
    for entry in machine.data_disks if machine else ():
        if entry.to_be_detached:
            yield Case(
                disk_id=entry.disk,
                vm=scene.vm,
                node_name=scene.text("node"),
                attachment=None,
                observation=scene.observation,
            )


@rule("every disk that Kubernetes holds attached there is in the VM's list", "I16")
def repair_frees_no_lun(scene: Scene) -> Answer:
    """A repaired VM takes disks again, the first of them at the lowest free LUN. If that was the LUN of one
    that was taken behind the cluster's back, what still mounts that disk would write to the new one.
    """
    taken = taken_underneath(scene)
    return not taken, f"taken from it underneath: {', '.join(taken) or 'none'}"


def taken_underneath(scene: Scene) -> list[str]:
    """VolumeAttachments that say attached, of disks that are not in the VM's list."""
    machine, volumes = scene.machine.value, scene.observation.volumes
    found = []
    for attachment in scene.observation.attachments_of_node.get(scene.text("node"), ()):
        volume = volumes.get(attachment.volume)
        is_ours = attachment.attached and attachment.driver == DISK_DRIVER
        if is_ours and volume and machine and machine.entry(volume.handle) is None:
            found.append(attachment.name)
    return found


@rule("the VM was not reapplied before in this release", "I14")
def repair_is_the_first(scene: Scene) -> Answer:
    before = scene.release.last(ActionKind.REAPPLY_VM) if scene.release else None
    return before is None, "first repair" if before is None else f"reapplied at {before.at:%H:%M:%S}"


@rule("`breakLeases` is on", "I8")
def leases_may_be_broken(scene: Scene) -> Answer:
    return (
        scene.policy.break_leases,
        f"diskRelease.breakLeases is {'on' if scene.policy.break_leases else 'off'}",
    )


@rule("the blob is the version decided on, and its lease is held", "I20")
def blob_is_the_same(scene: Scene) -> Answer:
    blob = scene.blob.value
    if blob is None:
        return None, f"the blob: {scene.blob.why}"
    return blob.etag == scene.text("etag") and blob.lease == "leased", f"etag {blob.etag}, {blob.lease}"


@rule("the owner is gone for certain, or off and does not list the blob; no VM lists it", "I20")
def blob_is_in_no_list(scene: Scene) -> Answer:
    for fact in scene.observation.machines.values():
        if fact.value is not None and fact.value.entry(scene.text("blob")):
            return False, f"{fact.value.id.rpartition('/')[2]} lists it"
    is_gone, why = gone(scene.observation, scene.vm, scene.policy)
    if is_gone:
        return True, why
    machine = scene.machine.value
    return (machine.is_off if machine else None), f"its owner: {machine.power if machine else why}"


# Which write needs which

_VM = ("VmIsTheSame", "VmReadIsFresh", "ClusterReadIsFresh")
_DISKS = ("DisksAreDataDisks", "DisksAreNotShared", "DisksAreOurs", "DisksAreFreeToDetach")
_DETACH = (*_VM, "DisksAreTheSame", "DiskReadsAreFresh", *_DISKS, "NoPodUsesThem", "NothingAttachesThem")

REQUIRED: dict[tuple[ActionKind, str], tuple[str, ...]] = {
    (ActionKind.POWER_OFF_VM, ""): (
        *_VM,
        "NodeIsTheSame",
        "NodeIsSilent",
        "VmIsRunning",
        "NobodyWritesTheVm",
        "FenceIsAllowed",
        "FencesAreWithinLimits",
        "ClusterIsNotFrozen",
        "NothingIsExcluded",
        "SomebodyWaits",
        "NotReleasedLately",
        "FenceIsNotRepeated",
        *_DISKS,
    ),
    (ActionKind.TAINT_NODE, ""): (
        *_VM,
        "NodeIsTheSame",
        "NodeIsNotReady",
        "NodeIsNotTainted",
        "VmIsOff",
        "ReadAfterFence",
        "ClusterIsNotFrozen",
        "NothingIsExcluded",
        "SomebodyWaits",
        "DisksAreNotShared",
        "DisksAreFreeToDetach",
    ),
    (ActionKind.TAINT_NODE, Ground.GONE): (
        "ClusterReadIsFresh",
        "VmReadIsFresh",
        "VmIsGone",
        "NodeIsTheSame",
        "NodeIsNotReady",
        "NodeIsNotTainted",
        "ClusterIsNotFrozen",
        "NothingIsExcluded",
        "SomebodyWaits",
    ),
    (ActionKind.UNTAINT_NODE, ""): ("TaintIsOurs", "TaintMustGo", "ClusterReadIsFresh"),
    (ActionKind.DETACH_DISK, Ground.FENCED): (
        *_DETACH,
        "NobodyWritesTheVm",
        "VmIsOff",
        "ReadAfterFence",
        "KubernetesHadItsTurn",
        "DetachIsTheFirst",
    ),
    (ActionKind.DETACH_DISK, Ground.IDLE): (
        *_DETACH,
        "NobodyWritesTheVm",
        "VmIsRunning",
        "NodeIsTheSame",
        "NodeIsAlive",
        "NodeDoesNotUseThem",
        "AttachmentIsOld",
        "ClusterIsNotFrozen",
        "NotReleasedLately",
        "DetachIsTheFirst",
    ),
    (ActionKind.FORCE_DETACH_DISK, ""): (
        *_DETACH,
        "OnlyOurDetachIsUnderWay",
        "VmIsOff",
        "ReadAfterFence",
        "PlainDetachFailed",
        "ForceIsTheFirst",
    ),
    (ActionKind.DELETE_VOLUME_ATTACHMENT, Ground.GONE): (
        "AttachmentIsTheSame",
        "AttachmentIsNotDeleting",
        "VmIsGone",
        "DiskIsUnowned",
        "DiskReadsAreFresh",
        "ClusterReadIsFresh",
    ),
    (ActionKind.DELETE_VOLUME_ATTACHMENT, Ground.FREE): (
        "AttachmentIsTheSame",
        "AttachmentIsNotDeleting",
        "NodeIsMissing",
        "DiskIsUnowned",
        "DiskWasUnownedBefore",
        "DiskReadsAreFresh",
        "ClusterReadIsFresh",
    ),
    (ActionKind.DELETE_VOLUME_ATTACHMENT, Ground.LOST): (
        "AttachmentIsTheSame",
        "AttachmentIsNotDeleting",
        "NodeCannotUseThem",
        "NoPodUsesThem",
        "DisksAreNotShared",
        "ClusterReadIsFresh",
        "VmReadIsFresh",
    ),
    (ActionKind.REMOVE_FINALIZER, ""): (
        "AttachmentIsTheSame",
        "AttachmentIsDeleting",
        "AttacherCannotAct",
        "DiskIsUnowned",
        "DiskWasUnownedBefore",
        "DiskReadsAreFresh",
        "ClusterReadIsFresh",
        "FinalizersMayBeRemoved",
    ),
    (ActionKind.REAPPLY_VM, ""): (
        *_VM,
        "NobodyWritesTheVm",
        "RepairIsAllowed",
        "RepairIsTheFirst",
        "RepairTakesNothingInUse",
        "RepairFreesNoLun",
        "ClusterIsNotFrozen",
    ),
    (ActionKind.BREAK_LEASE, ""): (
        "LeasesMayBeBroken",
        "BlobIsTheSame",
        "BlobIsInNoList",
        "ClusterReadIsFresh",
    ),
}


def required(action: Action) -> tuple[Rule, ...]:
    """The rules of an action; KeyError for a kind (or ground) that this automation does not have."""
    return tuple(RULES[name] for name in REQUIRED[(action.kind, str(action.parameters.get("ground", "")))])


def check(
    action: Action, observation: Observation, policy: DiskReleasePolicy, now: datetime
) -> tuple[Finding, ...]:
    """What every rule of the action finds, in order; to be carried out, all have to be fine."""
    scene = Scene(action, observation, policy, now)
    return tuple(Finding(rule.name, *rule.ask(scene)) for rule in required(action))


def broken(
    action: Action, observation: Observation, policy: DiskReleasePolicy, now: datetime
) -> tuple[Finding, ...]:
    """The rules that do not hold; empty when the action may be carried out now."""
    return tuple(f for f in check(action, observation, policy, now) if not f.is_fine)


def _seconds(value: timedelta | None) -> str:
    return "no time" if value is None else f"{round(value.total_seconds())} s"

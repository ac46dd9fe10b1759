"""What must never happen (I1 to I21), and what must happen in the end (L1 to L5); pure.

A trace is what was really done to a world that is really known: every write with the world as it truly was at
that moment, which only a model, a simulator or the local Azure can tell. The rules of `rules.py` look at
evidence and are what the app follows; the invariants look at the truth and are what tests hold it to.
Called by the model checker, the random worlds, the mutation test and the demo; `violations` asks them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from shared.disk_release import state as states
from shared.disk_release.cases import Case, tainted_since
from shared.disk_release.decide import decide, verdicts
from shared.disk_release.memory import remember
from shared.disk_release.observation import Observation
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.proof import read_certificate, verify
from shared.disk_release.rules import (
    AT_REST,
    FREE_TO_DETACH,
    HEARTBEAT,
    Ground,
    Scene,
    attachments_of,
    has_label,
    is_ours,
    let_go,
    not_ready,
    silent_for,
    taken_underneath,
    why_attacher_cannot,
)
from shared.disk_release.state import WriteState
from shared.disk_release.verdict import Kind
from shared.errors import MessageError
from shared.model.disk import OUT_OF_SERVICE, Machine, key
from shared.model.plan import Action, ActionKind, Plan

DETACHES = frozenset({ActionKind.DETACH_DISK, ActionKind.FORCE_DETACH_DISK})
ARM_WRITES = DETACHES | {ActionKind.POWER_OFF_VM, ActionKind.REAPPLY_VM}
ON_ATTACHMENTS = frozenset({ActionKind.DELETE_VOLUME_ATTACHMENT, ActionKind.REMOVE_FINALIZER})
VERBS = (
    ARM_WRITES
    | ON_ATTACHMENTS
    | {
        ActionKind.TAINT_NODE,
        ActionKind.UNTAINT_NODE,
        ActionKind.BREAK_LEASE,
    }
)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One write at the moment it took effect.

    `seen` is the evidence it was checked on, with the state document as it was before; `truth` the world as
    it was, every fact known; `after` the world just after, where that is known. `run` numbers function
    instances. `announced` says that the intent was stored before the request left.
    """

    at: datetime
    action: Action
    seen: Observation
    truth: Observation
    policy: DiskReleasePolicy
    after: Observation | None = None
    certificate: bytes | None = None
    run: int = 0
    announced: bool = True

    @property
    def scene(self) -> Scene:
        """The action in the true world."""
        return Scene(self.action, self.truth, self.policy, self.at)

    @property
    def evidence(self) -> Scene:
        return Scene(self.action, self.seen, self.policy, self.at)

    @property
    def kind(self) -> ActionKind:
        return self.action.kind

    @property
    def ground(self) -> str:
        return str(self.action.parameters.get("ground", ""))

    @property
    def machine(self) -> Machine | None:
        return self.scene.machine.value

    @property
    def title(self) -> str:
        return f"{self.kind} {self.action.target.rpartition('/')[2]} at {self.at:%H:%M:%S}"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A whole story. `corruptions` are those of the hidden truth; `looks` what was observed and decided;
    `polled` the URLs that were asked with credentials, `arm_host` the only one they may have; `end` the
    world as it was left. `bound` is how long a release may take.
    """

    moments: tuple[Moment, ...] = ()
    corruptions: tuple[str, ...] = ()
    looks: tuple[tuple[Observation, Plan], ...] = ()
    polled: tuple[str, ...] = ()
    arm_host: str = "management.azure.com"
    end: Observation | None = None
    bound: timedelta = timedelta(minutes=15)
    begun: Mapping[str, datetime] = field(default_factory=dict)


Invariant = Callable[[Trace], Iterator[str]]
INVARIANTS: dict[str, Invariant] = {}


def invariant(name: str) -> Callable[[Invariant], Invariant]:
    """Register a predicate that yields one line for each violation."""

    def registered(check: Invariant) -> Invariant:
        INVARIANTS[name] = check
        return check

    return registered


def each(name: str, *kinds: ActionKind) -> Callable[[Callable[[Moment], str]], Callable[[Moment], str]]:
    """Register a predicate on single writes; it says what is wrong, "" if nothing is."""

    def registered(check: Callable[[Moment], str]) -> Callable[[Moment], str]:
        def over(trace: Trace) -> Iterator[str]:
            for moment in trace.moments:
                wrong = check(moment) if moment.kind in (kinds or VERBS) else ""
                if wrong:
                    yield f"{moment.title}: {wrong}"

        INVARIANTS[name] = over
        return check

    return registered


def violations(trace: Trace) -> list[str]:
    """Every violation, `I9: TaintNode a at 10:00:00: the node is Ready`; empty when all is well."""
    return [f"{name}: {wrong}" for name, check in INVARIANTS.items() for wrong in check(trace)]


@invariant("Corruption")
def no_corruption(trace: Trace) -> Iterator[str]:
    """A disk taken from a running machine that has it mounted, or a LUN reused under such a mount."""
    yield from trace.corruptions


# Safety


@each("I1", *DETACHES, ActionKind.REAPPLY_VM)
def fenced(moment: Moment) -> str:
    machine = moment.machine
    if moment.kind is ActionKind.REAPPLY_VM:
        used = [case.name for case in let_go(moment.scene) if case.is_in_use or case.pods_here]
        return f"it would let go what is in use: {', '.join(used)}" if used else ""
    if machine is None or machine.is_off:
        return _used_there(moment)
    return "the VM is on" if moment.ground != Ground.IDLE else _alive_and_idle(moment)


def _used_there(moment: Moment) -> str:
    pods = [pod.title for case in moment.scene.cases for pod in case.pods_here]
    if pods:
        return f"{', '.join(pods)} would mount it when the VM starts"
    wanted = any(not attachment.is_deleting for attachment in attachments_of(moment.scene))
    return "the next pod there would mount it without asking Azure" if wanted else ""


def _alive_and_idle(moment: Moment) -> str:
    scene, node = moment.scene, moment.scene.node
    if node is None or not node.is_ready or node.renewed_at is None:
        return "the VM is on, and its node not Ready"
    if moment.at - node.renewed_at > HEARTBEAT:
        return "the VM is on, and its kubelet was not heard"
    if any(case.is_in_use or case.is_reported_attached for case in scene.cases):
        return "the node uses the disk"
    if any(case.pods_here for case in scene.cases):
        return "a pod on the node uses the disk"
    if any(not attachment.is_deleting for attachment in attachments_of(scene)):
        return "a VolumeAttachment wants it there"
    return ""


@each("I2", ActionKind.FORCE_DETACH_DISK)
def force_comes_last(moment: Moment) -> str:
    if moment.machine is not None and not moment.machine.is_off:
        return "force on a machine that is on"
    release = moment.seen.state.release_of(moment.scene.vm)
    writes = release.writes if release else ()
    failed = [w for w in writes if w.kind is ActionKind.DETACH_DISK and w.state is WriteState.FAILED]
    tried = {key(disk) for write in failed for disk in write.disks}
    return "" if {key(c.disk_id) for c in moment.scene.cases} <= tried else "no plain detach failed before"


@each("I3")
def identity(moment: Moment) -> str:
    scene, wanted = moment.scene, moment.action.parameters
    needs_vm = moment.kind in ARM_WRITES or moment.kind is ActionKind.TAINT_NODE
    if (
        needs_vm
        and moment.ground != Ground.GONE
        and (moment.machine is None or moment.machine.vm_id != wanted["vmId"])
    ):
        return "another VM, or none, has the name"
    by_node = moment.kind in (ActionKind.POWER_OFF_VM, ActionKind.TAINT_NODE) or moment.ground == Ground.IDLE
    if by_node and moment.kind not in ON_ATTACHMENTS:
        node = scene.node
        if node is None or node.uid != wanted["nodeUid"] or key(node.machine) != key(scene.vm):
            return "another node, or none, has the name"
    if moment.kind in DETACHES:
        ids = {key(d["id"]): d["uniqueId"] for d in wanted["disks"]}
        if any(c.disk.value is None or c.disk.value.unique_id != ids[key(c.disk_id)] for c in scene.cases):
            return "another disk, or none, has the name"
    if moment.kind in ON_ATTACHMENTS:
        found = scene.attachment
        if found is None or found.uid != wanted["attachmentUid"]:
            return "another VolumeAttachment, or none, has the name"
    return ""


@each("I4")
def fresh(moment: Moment) -> str:
    limit, seen = moment.policy.limits.freshness, moment.evidence
    if moment.at - moment.seen.now > limit:
        return "Kubernetes was read too long ago"
    asks_vm = (
        moment.kind in ARM_WRITES or moment.kind is ActionKind.TAINT_NODE or moment.ground == Ground.LOST
    )
    read_at = seen.machine.read_at
    if asks_vm and (read_at is None or moment.at - read_at > limit):
        return "the VM was read too long ago"
    asks_disks = moment.kind in DETACHES or moment.kind is ActionKind.REMOVE_FINALIZER
    asks_disks = asks_disks or (moment.kind in ON_ATTACHMENTS and moment.ground in (Ground.GONE, Ground.FREE))
    if asks_disks and any(d.read_at is None or moment.at - d.read_at > limit for d in seen.disks):
        return "a disk was read too long ago, or in a list"
    fence = seen.release.last(ActionKind.POWER_OFF_VM) if seen.release else None
    is_off_needed = moment.kind is ActionKind.TAINT_NODE or moment.ground == Ground.FENCED
    is_off_needed = is_off_needed or moment.kind is ActionKind.FORCE_DETACH_DISK
    if is_off_needed and fence is not None and (read_at is None or read_at <= fence.at):
        return "the VM was read before its fence"
    return ""


@each("I5", ActionKind.DELETE_VOLUME_ATTACHMENT, ActionKind.TAINT_NODE)
def absence(moment: Moment) -> str:
    if moment.ground != Ground.GONE:
        return ""
    if not moment.scene.machine.is_absent:
        return "the VM exists"
    at = moment.evidence.machine.read_at
    waited = moment.seen.state.seen_for(states.absent(moment.scene.vm), at) if at else None
    is_proven = waited is not None and waited >= moment.policy.limits.absence_gap
    return "" if is_proven else "it was found gone only once"


@each("I6")
def nothing_unknown(moment: Moment) -> str:
    seen = moment.evidence
    asks_vm = (
        moment.kind in ARM_WRITES or moment.kind is ActionKind.TAINT_NODE or moment.ground == Ground.GONE
    )
    if asks_vm and seen.machine.is_unknown:
        return f"the VM is unknown: {seen.machine.why}"
    if moment.kind in DETACHES and any(disk.is_unknown for disk in seen.disks):
        return "a disk is unknown"
    return ""


@each("I7", *DETACHES, ActionKind.POWER_OFF_VM, ActionKind.TAINT_NODE)
def precedence(moment: Moment) -> str:
    scene, node, limits = moment.scene, moment.scene.node, moment.policy.limits
    if moment.kind is ActionKind.POWER_OFF_VM:
        if moment.machine is not None and moment.machine.power != "running":
            return "the VM does not run"
        silence = silent_for(node, moment.truth, moment.at) if node else None
        if silence is None or node is None or silence < moment.policy.grace_of(node.pool):
            return "the node's grace is not over"
    if moment.kind in (ActionKind.POWER_OFF_VM, ActionKind.TAINT_NODE):
        return "" if any(case.pods for case in scene.cases) else "nobody wants the disks"
    if moment.ground == Ground.IDLE:
        ages = [c.disk.value.owner_changed_at for c in scene.cases if c.disk.value]
        young = any(at is None or moment.at - at < limits.zombie_age for at in ages)
        return "an attach may be under way" if young else ""
    since = tainted_since(node, moment.seen) if node and moment.ground == Ground.FENCED else None
    if moment.ground == Ground.FENCED and node and (since is None or moment.at - since < limits.detach_after):
        return "the cluster's controllers had no turn"
    return ""


@each("I8")
def verbs(moment: Moment) -> str:
    policy, scene = moment.policy, moment.scene
    if moment.kind not in VERBS:
        return "not a verb of this automation"
    takes_disks = moment.kind in DETACHES or moment.kind is ActionKind.POWER_OFF_VM
    if (
        takes_disks
        and moment.machine is not None
        and any(
            case.disk.value is not None
            and (case.disk.value.os_type or key(moment.machine.os_disk) == key(case.disk_id))
            for case in scene.cases
        )
    ):
        return "an operating-system disk"
    allowed = {
        ActionKind.FORCE_DETACH_DISK: policy.force,
        ActionKind.REMOVE_FINALIZER: policy.remove_finalizers,
        ActionKind.REAPPLY_VM: policy.repair,
        ActionKind.BREAK_LEASE: policy.break_leases,
        ActionKind.POWER_OFF_VM: _may_fence(moment),
    }
    if not allowed.get(moment.kind, True):
        return "the policy does not allow it"
    begins = moment.kind in (ActionKind.POWER_OFF_VM, ActionKind.TAINT_NODE)
    here = [p for p in moment.truth.pods if p.node == moment.action.parameters["node"] and not p.is_over]
    if begins and any(has_label(pod.labels, text) for pod in here for text in policy.exclude):
        return "an excluded pod runs there"
    is_failed = moment.machine is not None and moment.machine.provisioning == "Failed"
    return "the VM is not in failed state" if moment.kind is ActionKind.REAPPLY_VM and not is_failed else ""


def _may_fence(moment: Moment) -> bool:
    if moment.policy.fence != "approve":
        return moment.policy.fence == "allowed"
    until = moment.seen.state.approved.get(str(moment.action.parameters["node"]))
    return until is not None and until > moment.at


@each("I9", ActionKind.TAINT_NODE, ActionKind.UNTAINT_NODE)
def taint(moment: Moment) -> str:
    node, machine = moment.scene.node, moment.machine
    if node is None:
        return "there is no node"
    if moment.kind is ActionKind.TAINT_NODE:
        if node.out_of_service is not None:
            return "tainted already"
        if node.is_ready:
            return "the node is Ready"
        is_gone = moment.ground == Ground.GONE and moment.scene.machine.is_absent
        return "" if is_gone or (machine is not None and machine.is_off) else "the VM is not off"
    if node.our_taint is None:
        return "the taint is not ours"
    return "" if _may_untaint(moment) else "the taint is still needed"


def _may_untaint(moment: Moment) -> bool:
    """I9, and beyond its letter: at once when the VM is seen to be on again."""
    node, machine = moment.scene.node, moment.machine
    assert node is not None
    release = moment.seen.state.release_of(moment.scene.vm)
    if node.is_ready or not moment.truth.attachments_of_node.get(node.name):
        return True
    if machine is not None and (not machine.is_off or (release and machine.vm_id != release.vm_id)):
        return True
    taint = node.our_taint
    since = taint.added_at if taint else None
    return release is None and (since is None or moment.at - since >= moment.policy.limits.taint_max)


@each("I10", ActionKind.REMOVE_FINALIZER, ActionKind.DELETE_VOLUME_ATTACHMENT)
def finalizer(moment: Moment) -> str:
    scene = moment.scene
    held = [
        c for c in scene.cases if c.disk.value is None or c.is_owned or (not c.vm and c.disk.value.owners)
    ]
    if moment.ground != Ground.LOST and held:
        return "the disk still names the VM"
    if moment.kind is ActionKind.REMOVE_FINALIZER:
        found = scene.attachment
        if found is None or not found.is_deleting:
            return "it is not being deleted"
        if not why_attacher_cannot(found, moment.truth):
            return "the attacher can act"
    if moment.kind is ActionKind.REMOVE_FINALIZER or moment.ground == Ground.FREE:
        return _not_twice(moment)
    return _lost_in_use(moment) if moment.ground == Ground.LOST else ""


def _not_twice(moment: Moment) -> str:
    for case in moment.evidence.cases:
        at = case.disk.read_at
        waited = moment.seen.state.seen_for(states.unowned(case.disk_id, case.vm), at) if at else None
        if waited is None or waited < moment.policy.limits.absence_gap:
            return "the disk was found free only once"
    if moment.ground == Ground.FREE and moment.scene.node is not None:
        return "the node is there"
    return ""


def _lost_in_use(moment: Moment) -> str:
    """An attachment whose volume or node is lost goes only if nothing mounts the disk."""
    machine = moment.machine
    if any(case.pods_here for case in moment.scene.cases):
        return "a pod on the node uses the disk"
    if machine is None or machine.is_off:
        return ""
    node = moment.scene.node
    is_alive = node is not None and node.is_ready and node.renewed_at is not None
    is_alive = is_alive and moment.at - node.renewed_at <= HEARTBEAT  # type: ignore[union-attr, operator]
    used = any(case.is_in_use or case.is_reported_attached for case in moment.scene.cases)
    return "" if is_alive and not used else "the VM is on and may use it"


@each("I11")
def shared_disks(moment: Moment) -> str:
    """Whoever is gone for certain may be forgotten; nobody else may be touched."""
    takes_part = moment.kind in DETACHES or moment.ground == Ground.LOST
    takes_part = takes_part or moment.kind in (ActionKind.POWER_OFF_VM, ActionKind.TAINT_NODE)
    takes_part = takes_part and moment.ground != Ground.GONE
    shared = [c.name for c in moment.scene.cases if c.disk.value is not None and c.disk.value.is_shared]
    if takes_part and shared and not moment.policy.shared_disks:
        return f"{', '.join(shared)} may belong to several VMs"
    return ""


@each("I12", *DETACHES, ActionKind.POWER_OFF_VM)
def foreign_disks(moment: Moment) -> str:
    foreign = [case.name for case in moment.scene.cases if not is_ours(case)]
    return f"{', '.join(foreign)} is not ours" if foreign and not moment.policy.untagged_disks else ""


@invariant("I13")
def exclusive(trace: Trace) -> Iterator[str]:
    newest = 0
    for moment in trace.moments:
        if moment.kind not in ARM_WRITES:
            continue
        if moment.run < newest:
            yield f"{moment.title}: by instance {moment.run}, after {newest} had begun"
        newest = max(newest, moment.run)
        machine, release = moment.machine, moment.seen.state.release_of(moment.scene.vm)
        if release is not None and release.open_write is not None:
            yield f"{moment.title}: {release.open_write.kind} is not over"
        if machine is not None and machine.provisioning not in AT_REST and not _own_detach(moment, machine):
            yield f"{moment.title}: somebody else changes the VM"


def _own_detach(moment: Moment, machine: Machine) -> bool:
    if moment.kind is not ActionKind.FORCE_DETACH_DISK or machine.provisioning != "Updating":
        return False
    going = {entry.key for entry in machine.data_disks if entry.to_be_detached}
    release = moment.seen.state.release_of(moment.scene.vm)
    last = release.last(ActionKind.DETACH_DISK) if release else None
    return bool(going) and last is not None and going <= {key(disk) for disk in last.disks}


@invariant("I14")
def crash_safe(trace: Trace) -> Iterator[str]:
    """At most one write of a kind on a (disk, VM) in a release; two fences, as the first may have failed."""
    posts: Counter[tuple[str, str, str, int]] = Counter()
    for moment in trace.moments:
        if moment.kind not in ARM_WRITES:
            continue
        if not moment.announced:
            yield f"{moment.title}: its intent was not stored"
        epoch = int(moment.action.parameters["epoch"])
        allowed = 2 if moment.kind is ActionKind.POWER_OFF_VM else 1
        before = moment.seen.state.release_of(moment.scene.vm)
        for case in moment.scene.cases:
            name = (moment.kind.value, key(case.disk_id), key(moment.scene.vm), epoch)
            posts[name] += 1
            noted = _noted(moment, case.disk_id) if before else 0
            if max(posts[name], noted + 1) > allowed:
                yield f"{moment.title}: {case.name} again in epoch {epoch}"


def _noted(moment: Moment, disk: str) -> int:
    """Writes of this kind on the disk that the state document already has."""
    release = moment.seen.state.release_of(moment.scene.vm)
    writes = release.writes if release else ()
    return sum(w.kind is moment.kind and key(disk) in map(key, w.disks) for w in writes)


@each("I15", *DETACHES)
def minimal(moment: Moment) -> str:
    machine = moment.machine
    approved = {key(case.disk_id) for case in moment.scene.cases}
    if machine is None:
        return ""
    if not approved <= {entry.key for entry in machine.data_disks}:
        return "a disk that is not in the VM's list"
    after = moment.after.machine(moment.scene.vm).value if moment.after else None
    if after is None:
        return ""
    kept = {entry.key for entry in machine.data_disks} - approved
    left = {entry.key for entry in after.data_disks if not entry.to_be_detached}
    return "" if kept <= left | {e.key for e in after.data_disks} else "it took more disks than approved"


@each("I16", ActionKind.DETACH_DISK, ActionKind.REAPPLY_VM)
def luns(moment: Moment) -> str:
    """Under a VM that goes on running nobody else may have the LUN, and none that is mounted becomes free."""
    machine, scene = moment.machine, moment.scene
    if machine is None or machine.is_off:
        return ""
    if moment.kind is ActionKind.REAPPLY_VM:
        taken = taken_underneath(scene)
        return f"the LUN of {', '.join(taken)} would be given to the next disk" if taken else ""
    mine = {entry.lun for case in scene.cases if (entry := machine.entry(case.disk_id))}
    own = {attachment.name for attachment in attachments_of(scene)}
    others = moment.truth.attachments_of_node.get(str(moment.action.parameters["node"]), ())
    aliased = [a.name for a in others if a.attached and a.lun in mine and a.name not in own]
    return f"{', '.join(aliased)} has the same LUN" if aliased else ""


@invariant("I17")
def blast(trace: Trace) -> Iterator[str]:
    for moment in trace.moments:
        if moment.kind is ActionKind.POWER_OFF_VM:
            yield from _too_many(moment)
        release = moment.seen.state.release_of(moment.scene.vm)
        is_begun = release is not None and release.last(ActionKind.POWER_OFF_VM) is not None
        begins = moment.kind in (ActionKind.POWER_OFF_VM, ActionKind.TAINT_NODE, ActionKind.REAPPLY_VM)
        begins = begins or (moment.kind is ActionKind.DETACH_DISK and moment.ground == Ground.IDLE)
        silent, total = not_ready(moment.truth)
        if begins and not is_begun and silent * 100 > moment.policy.freeze_above_percent * total:
            yield f"{moment.title}: {silent} of {total} nodes are NotReady"


def _too_many(moment: Moment) -> Iterator[str]:
    since = moment.at - moment.policy.limits.fence_window
    fences = [f for f in moment.seen.state.fences if f.at > since]
    if len(fences) >= moment.policy.fences_per_window:
        yield f"{moment.title}: {len(fences)} fences before it in the window"
    for label in ("pool", "zone"):
        mine = str(moment.action.parameters[label])
        nodes = sum(getattr(node, label) == mine for node in moment.truth.nodes.values())
        others = {f.vm for f in fences if getattr(f, label) == mine} - {key(moment.scene.vm)}
        if others and (len(others) + 1) * 100 > moment.policy.max_fenced_percent * nodes:
            yield f"{moment.title}: too many of {label} '{mine}'"


@each("I18", *DETACHES, ActionKind.POWER_OFF_VM, ActionKind.TAINT_NODE)
def frozen(moment: Moment) -> str:
    if moment.ground == Ground.GONE:
        return ""  # nothing runs, and Azure has let the disk go by itself
    if moment.machine is not None and moment.machine.is_hibernated:
        return "the VM hibernates"
    busy = [c.name for c in moment.scene.cases if c.disk.value and c.disk.value.state not in FREE_TO_DETACH]
    return f"{', '.join(busy)} is frozen or exported" if busy else ""


@invariant("I19")
def no_token_elsewhere(trace: Trace) -> Iterator[str]:
    for url in trace.polled:
        if (urlsplit(url).hostname or "").lower() != trace.arm_host.lower():
            yield f"credentials went to {urlsplit(url).hostname}"


@each("I20", ActionKind.BREAK_LEASE)
def vhd_lease(moment: Moment) -> str:
    scene, uri = moment.scene, str(moment.action.parameters.get("blob", ""))
    blob = moment.truth.blob(uri).value
    if blob is None or blob.etag != moment.action.parameters.get("etag") or blob.lease != "leased":
        return "another version of the blob, or no lease"
    if any(fact.value is not None and fact.value.entry(uri) for fact in moment.truth.machines.values()):
        return "a VM lists it"
    machine = moment.machine
    return "" if machine is None or machine.is_off else f"its owner {scene.vm.rpartition('/')[2]} is on"


@invariant("I21")
def explained(trace: Trace) -> Iterator[str]:
    for moment in trace.moments:
        if moment.certificate is None:
            continue
        try:
            check = verify(read_certificate(moment.certificate))
        except MessageError as error:
            yield f"{moment.title}: {error}"
            continue
        for wrong in check.contradictions:
            yield f"{moment.title}: {wrong}"
    for observation, plan in trace.looks:
        again = decide(observation, observation.policy, plan.now)
        if again.document()["digest"] != plan.document()["digest"]:
            yield f"the plan of {plan.now:%H:%M:%S} is another one when decided again"


# Liveness


@invariant("L1")
def released_in_time(trace: Trace) -> Iterator[str]:
    """`begun` says since when a disk is to be released from a VM: `{"DISK@VM": time}`, ids lower case."""
    if trace.end is None:
        return
    for pair, at in trace.begun.items():
        disk_id, _, vm = pair.partition("@")
        disk = trace.end.disk(disk_id).value
        is_held = disk is not None and disk.is_owned_by(vm)
        if is_held and trace.end.now - at > trace.bound:
            yield f"{disk_id.rpartition('/')[2]} is still on {vm.rpartition('/')[2]} after {trace.bound}"


@invariant("L2")
def not_twice(trace: Trace) -> Iterator[str]:
    """A release that was begun and did not free the disk, so that its owner has not changed, is none."""
    last: dict[tuple[str, str, str], tuple[int, datetime]] = {}
    for moment in trace.moments:
        begins = moment.kind is ActionKind.POWER_OFF_VM or moment.ground == Ground.IDLE
        if moment.kind is ActionKind.DELETE_VOLUME_ATTACHMENT and moment.scene.attachment is not None:
            if moment.scene.attachment.is_deleting:
                yield f"{moment.title}: it is being deleted already"
            continue
        if not begins:
            continue
        epoch, window = int(moment.action.parameters["epoch"]), moment.policy.limits.release_window
        noted = {(d.disk, d.vm): d.at for d in moment.seen.state.done if moment.at - d.at < window}
        for case in moment.scene.cases:
            pair = (key(case.disk_id), key(moment.scene.vm))
            mine = (*pair, str(moment.action.parameters["vmId"]))  # a new machine of that name is another one
            before = last.get(mine)
            is_again = before is not None and before[0] != epoch and moment.at - before[1] < window
            if pair in noted or (is_again and before and _has_changed_hands(case, before[1])):
                yield f"{moment.title}: {case.name} was released a short time ago"
            last[mine] = (epoch, moment.at)


def _has_changed_hands(case: Case, since: datetime) -> bool:
    changed = case.disk.value.owner_changed_at if case.disk.value else None
    return changed is None or changed > since


@invariant("L3")
def nothing_stays_open(trace: Trace) -> Iterator[str]:
    """A write that is overdue has been adopted or given up at the next look."""
    if trace.end is None:
        return
    state = remember(trace.end, trace.end.now)
    for release in state.releases.values():
        write = release.open_write
        vm = trace.end.machine(release.vm)
        if write is not None and trace.end.now > write.deadline and not vm.is_unknown:
            yield f"{write.kind} of {write.at:%H:%M:%S} is open though overdue"


@invariant("L4")
def taints_go(trace: Trace) -> Iterator[str]:
    if trace.end is None:
        return
    for node in trace.end.nodes.values():
        ours = node.our_taint
        if ours is None or ours.key != OUT_OF_SERVICE or ours.added_at is None:
            continue
        is_old = trace.end.now - ours.added_at > trace.bound
        if is_old and trace.end.state.release_of(node.machine) is None:
            yield f"node {node.name} still has our taint of {ours.added_at:%H:%M:%S}"


@invariant("L5")
def waits_end(trace: Trace) -> Iterator[str]:
    for observation, plan in trace.looks:
        for verdict in verdicts(observation, observation.policy, plan.now):
            if verdict.kind is Kind.WAIT and (verdict.deadline is None or verdict.deadline <= plan.now):
                yield f"{verdict.subject}: waits ({verdict.reason}) without a deadline ahead"

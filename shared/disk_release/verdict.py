"""The verdict on one pair of a disk and a VM: which situation it is in, and what follows; pure.

Situations are numbered as in docs/disk-release.md (S1 to S22). Every verdict says what would change it. What
is proposed here is only carried out if all rules of the write hold (`shared.disk_release.rules`); this module
knows the situations, the rules know what is safe.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

import msgspec

from shared.disk_release import state as states
from shared.disk_release.cases import Case, is_suspect, machine_name, tainted_since
from shared.disk_release.observation import Fact
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.rules import (
    AT_REST,
    FREE_TO_DETACH,
    MOVING_POWER,
    UNKNOWN_POWER,
    Ground,
    gone,
    is_ours,
    silent_for,
    why_attacher_cannot,
)
from shared.disk_release.state import ArmWrite, Release, WriteState
from shared.model.disk import (
    Attachment,
    Disk,
    Machine,
    Node,
    is_disk_id,
    is_machine_id,
    is_uniform_instance,
    key,
)
from shared.model.plan import ActionKind

LINGER = timedelta(minutes=5)
"""A disk names its machine for about 42 s after that is gone; longer than this is a case for people."""


class Kind(enum.StrEnum):
    """What is to be done about a pair."""

    WAIT = "Wait"
    NUDGE = "Nudge"
    FENCE_AND_RELEASE = "FenceAndRelease"
    RELEASE = "Release"
    REPAIR_VM = "RepairVM"
    REPORT = "Report"


class Verdict(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """On one (disk, VM). `step` is the write it proposes, on `ground`; a Wait has a `deadline`, at which the
    pair is looked at again in any case.
    """

    subject: str
    disk: str
    vm: str
    node: str
    kind: Kind
    situation: str
    reason: str
    message: str
    changes: str = ""
    """What would change the verdict, in words."""
    deadline: datetime | None = None
    step: ActionKind | None = None
    ground: str = ""
    attachment: str = ""
    evidence: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line for people: verdict, why, and what would change it."""
        until = f" until {self.deadline:%H:%M:%S} UTC" if self.deadline else ""
        changes = f"; {self.changes}" if self.changes else ""
        return f"{self.kind}{until} ({self.situation}): {self.message}{changes}"


def judge(case: Case, policy: DiskReleasePolicy, now: datetime) -> Verdict | None:
    """The verdict; None for a pair that is as it should be."""
    look = _Look(case, policy, now)
    if look.is_healthy:
        return None
    for question in QUESTIONS:
        answer = question(look)
        if answer is not None:
            return answer.verdict
    return None


@dataclass(frozen=True)
class _Answer:
    """A verdict, or None for: nothing to say, and ask no further."""

    verdict: Verdict | None


NOTHING = _Answer(None)


@dataclass(frozen=True)
class _Look:
    """A case, with the words to answer in."""

    case: Case
    policy: DiskReleasePolicy
    now: datetime

    @property
    def node(self) -> Node | None:
        return self.case.node

    @property
    def attachment(self) -> Attachment | None:
        return self.case.attachment

    @property
    def machine(self) -> Machine:
        """For questions asked when it is known to be there."""
        assert self.case.machine.value is not None
        return self.case.machine.value

    @property
    def disk(self) -> Disk:
        assert self.case.disk.value is not None
        return self.case.disk.value

    @property
    def release(self) -> Release | None:
        return self.case.observation.state.release_of(self.case.vm)

    @property
    def is_healthy(self) -> bool:
        """Nothing to look into; a disk that was read and is not where it should be always is."""
        case = self.case
        if is_suspect(case, self.now):
            return False
        is_missing = case.disk.value is not None and case.disk.read_at is not None and not case.is_owned
        return not (is_missing and case.attachment and case.attachment.attached)

    @cached_property
    def vm_name(self) -> str:
        return machine_name(self.case.vm) or "its VM"

    def wait(self, situation: str, reason: str, message: str, until: datetime, changes: str = "") -> _Answer:
        """Wait for it; once the deadline is past, the same thing is a report."""
        if until <= self.now:
            return self.report(situation, reason, f"{message}; overdue since {until:%H:%M:%S} UTC", changes)
        return self._say(Kind.WAIT, situation, reason, message, changes, deadline=until)

    def report(self, situation: str, reason: str, message: str, changes: str = "") -> _Answer:
        return self._say(Kind.REPORT, situation, reason, message, changes)

    def act(  # noqa: PLR0917 - reads as a sentence: verdict (situation) because, so do this
        self, kind: Kind, situation: str, reason: str, message: str, step: ActionKind, ground: str = ""
    ) -> _Answer:
        return self._say(kind, situation, reason, message, "", step=step, ground=ground)

    def _say(
        self,
        kind: Kind,
        situation: str,
        reason: str,
        message: str,
        changes: str,
        *,
        deadline: datetime | None = None,
        step: ActionKind | None = None,
        ground: str = "",
    ) -> _Answer:
        case = self.case
        return _Answer(
            Verdict(
                subject=case.name,
                disk=case.disk_id,
                vm=case.vm,
                node=case.node_name,
                kind=kind,
                situation=situation,
                reason=reason,
                message=message,
                changes=changes,
                deadline=deadline,
                step=step,
                ground=ground,
                attachment=case.attachment.name if case.attachment else "",
                evidence=tuple(evidence(case, self.now)),
            )
        )

    def since(self, name: str) -> datetime:
        """Since when something has been seen; now, if it is seen for the first time."""
        sighting = self.case.observation.state.seen.get(name)
        return sighting.first if sighting else self.now

    def due(self, name: str) -> datetime:
        """Until when Kubernetes or Azure has to have changed what has been seen."""
        return self.since(name) + self.policy.limits.kubernetes_deadline


def evidence(case: Case, now: datetime) -> list[str]:
    """What is known of the pair, one short fact each."""
    found = []
    node, attachment = case.node, case.attachment
    if node is not None:
        heard = f", heard {_ago(node.renewed_at, now)}" if node.renewed_at else ""
        found.append(f"node {node.name}: Ready={node.ready} since {_ago(node.ready_since, now)}{heard}")
    elif case.node_name:
        found.append(f"node {case.node_name}: no such Node")
    if attachment is not None:
        doing = (
            "deleting" if attachment.is_deleting else "attached" if attachment.attached else "not attached"
        )
        found.append(f"VolumeAttachment {attachment.name}: {doing}")
    if case.vm:
        found.append(f"VM {machine_name(case.vm)}: {_of_machine(case.machine)}")
    if case.disk_id:
        found.append(f"disk {case.disk_id.rpartition('/')[2]}: {_of_disk(case.disk)}")
    pods = [f"{pod.title} ({'terminating' if pod.deleting_since else pod.phase})" for pod in case.pods]
    return [*found, f"pods: {', '.join(pods) or 'none'}"]


def _of_machine(fact: Fact[Machine]) -> str:
    if fact.value is None:
        return fact.why
    return f"{fact.value.power or 'power not read'}, {fact.value.provisioning}, vmId {fact.value.vm_id}"


def _of_disk(fact: Fact[Disk]) -> str:
    if fact.value is None:
        return fact.why
    return f"{fact.value.state}, managedBy {', '.join(map(machine_name, fact.value.owners)) or 'nothing'}"


def _ago(at: datetime | None, now: datetime) -> str:
    return "never" if at is None else f"{round((now - at).total_seconds())} s ago"


# What the ids say


def _ids(look: _Look) -> _Answer | None:
    case = look.case
    if not case.disk_id:
        return _lost_volume(look)
    if case.disk_id.startswith("https://"):
        return _unmanaged(look)
    if not is_disk_id(case.disk_id):
        return look.report("S20", "BadDiskId", f"'{case.disk_id}' is not the resource id of a disk")
    if not case.vm and case.node is not None:
        message = f"providerID '{case.node.provider_id}' of node {case.node.name} is not that of an Azure VM"
        return look.report("S4", "BadProviderId", message)
    if case.vm and not is_machine_id(case.vm):
        return look.report("S4", "BadMachineId", f"'{case.vm}' is not the resource id of a VM")
    return None


def _lost_volume(look: _Look) -> _Answer:
    name = look.attachment.volume if look.attachment else "?"
    message = f"PersistentVolume {name} is gone, and no disk is tagged as made for it"
    return look.report(
        "S10", "VolumeLost", message, "a disk with that tag, or the volume restored, would tell"
    )


def _unmanaged(look: _Look) -> _Answer | None:
    blob = look.case.observation.blob(look.case.disk_id)
    name = look.case.disk_id.rpartition("/")[2]
    if blob.value is None:
        message = f"unmanaged disk {name} ({blob.why}); its blob tells who holds its lease"
        return look.report("S16", "UnmanagedDisk", message)
    if blob.value.lease != "leased":
        return NOTHING
    message = f"unmanaged disk {name} is leased for a machine that may be gone"
    return look.act(Kind.RELEASE, "S16", "LeaseLeft", message, ActionKind.BREAK_LEASE)


# What cannot be known, and what is never touched


def _kubernetes_has_its_turn(look: _Look) -> _Answer | None:
    """The VM was found off, its node tainted, and nobody needs to ask Azure again before the turn is over."""
    release = look.release
    if release is None or release.tainted_at is None or look.case.machine.read_at is not None:
        return None
    until = release.tainted_at + look.policy.limits.detach_after
    message = "the cluster's own controllers are about to detach it"
    return look.wait("S2", "KubernetesDetaches", message, until, "the disk being free would end it")


def _unknown(look: _Look) -> _Answer | None:
    case = look.case
    facts = (("disk", case.disk_id, case.disk), (f"VM {look.vm_name}", case.vm, case.machine))
    for name, resource_id, fact in facts:
        if not fact.is_unknown or not resource_id:
            continue
        if fact.why.startswith(("401", "403")):
            message = f"{name} may not be read ({fact.why}); its state is unknown"
            return look.report("-", "Forbidden", message, "the role of docs/disk-release.md would tell")
        message = f"the state of {name} is unknown ({fact.why})"
        until = look.due(states.unknown(resource_id))
        return look.wait("-", "Unknown", message, until, "an answer would tell")
    return None


def _missing(look: _Look) -> _Answer | None:
    if not look.case.disk.is_absent:
        return None
    return look.report("S10", "DiskGone", "the disk does not exist any more; its volume's data is lost")


def _untouchable(look: _Look) -> _Answer | None:
    case, disk, machine = look.case, look.disk, look.case.machine.value
    if disk.os_type or (machine is not None and key(machine.os_disk) == disk.key):
        return look.report("-", "OsDisk", "it is an operating-system disk; those are never touched")
    if disk.is_shared and not look.policy.shared_disks:
        message = f"maxShares is {disk.max_shares}; reservations on it are the application's"
        return look.report(
            "S13", "SharedDisk", message, "diskRelease.sharedDisks allows the dead member only"
        )
    if not is_ours(case) and not look.policy.untagged_disks:
        message = "no PersistentVolume and no tag of this cluster names it"
        return look.report("-", "ForeignDisk", message, "diskRelease.untaggedDisks would allow it")
    if machine is not None and machine.is_hibernated:
        return look.report("S2", "Hibernated", "the VM hibernates and will go on where it was")
    if disk.state not in FREE_TO_DETACH:
        message = f"diskState is {disk.state}: a backup or an export uses it"
        return look.report("S18", "DiskBusy", message, "the end of the export frees it")
    return None


# The VM is gone


def _gone(look: _Look) -> _Answer | None:
    case = look.case
    if not case.vm:
        return _node_gone(look)
    if not case.machine.is_absent:
        return None
    is_proven, why = gone(case.observation, case.vm, look.policy)
    if not is_proven:
        until = look.since(states.absent(case.vm)) + look.policy.limits.absence_gap
        until = max(until, look.now + timedelta(seconds=1))
        return look.wait("S3", "AbsenceNotProven", why, until, "a second read that finds nothing proves it")
    if _keeps_pods(look):
        message = f"VM {look.vm_name} is gone, and its node keeps its pods"
        return look.act(Kind.RELEASE, "S3", "NodeOfNoMachine", message, ActionKind.TAINT_NODE, Ground.GONE)
    if case.is_owned:
        until = look.since(states.absent(case.vm)) + LINGER
        message = f"VM {look.vm_name} is gone and the disk still names it"
        return look.wait("S3", "OwnerLingers", message, until, "the disk naming nothing would change it")
    return _free_disk(look, Ground.GONE, f"VM {look.vm_name} is gone")


def _keeps_pods(look: _Look) -> bool:
    """Whether pods stay bound to the node of a VM that is gone. By itself that ends when the cloud provider
    deletes the Node, out of a cache that is up to ten minutes old.
    """
    node = look.node
    return node is not None and not node.is_ready and not node.out_of_service and bool(look.case.pods_here)


def _node_gone(look: _Look) -> _Answer:
    """No Node, and the disk does not say whose it is."""
    if look.disk.owners:
        message = f"node {look.case.node_name} is gone, and the disk is attached to another VM"
        return look.report("S17", "AttachedElsewhere", message)
    return _free_disk(look, Ground.FREE, f"node {look.case.node_name} is gone, the disk is free")


def _free_disk(look: _Look, ground: Ground, what: str) -> _Answer:
    """Nothing holds the disk but a VolumeAttachment."""
    attachment = look.attachment
    if attachment is None:
        return NOTHING
    if attachment.is_deleting:
        return _leaving(look, attachment)
    message = f"{what}; only VolumeAttachment {attachment.name} is left"
    return look.act(Kind.NUDGE, "S3", "AttachmentLeft", message, ActionKind.DELETE_VOLUME_ATTACHMENT, ground)


def _leaving(look: _Look, attachment: Attachment) -> _Answer:
    """A VolumeAttachment under deletion whose disk is free."""
    why = why_attacher_cannot(attachment, look.case.observation)
    if why:
        situation = "S10" if "PersistentVolume" in why else "S3"
        message = f"the attacher can never finish: {why}"
        return look.act(Kind.NUDGE, situation, "FinalizerLeft", message, ActionKind.REMOVE_FINALIZER)
    until = (attachment.deleting_since or look.now) + look.policy.limits.kubernetes_deadline
    error = f": {attachment.detach_error}" if attachment.detach_error else ""
    return look.wait("S3", "AttacherFinishes", f"the attacher is about to finish{error}", until)


# The disk is not where the attachment says


def _unowned(look: _Look) -> _Answer | None:
    if look.case.is_owned or look.case.disk.read_at is None:
        return None
    if look.attachment is None:
        return NOTHING
    if look.attachment.is_deleting:
        return _leaving(look, look.attachment)
    return _not_there(look, look.attachment)


def _not_there(look: _Look, attachment: Attachment) -> _Answer | None:
    if look.disk.owners:
        message = f"the disk is attached to {', '.join(map(machine_name, look.disk.owners))} instead"
        return look.report("S17", "AttachedElsewhere", message, "detach it there, or delete the pods here")
    if not attachment.attached:
        return _attaching(look, attachment)
    if look.machine.is_off:
        return None
    return look.report(
        "S6",
        "DetachedUnderneath",
        f"the disk was taken from {look.vm_name} while Kubernetes holds it attached; a mount there is stale",
        f"kubectl cordon {look.case.node_name}; delete its pods, then VolumeAttachment {attachment.name}; "
        "attach nothing to that VM before",
    )


ATTACH_ERRORS = (
    ("exceed max volume count", "S15", "SlotsFull", "the VM has no slot left for a disk"),
    ("maximum number of data disks", "S15", "SlotsFull", "the VM has no slot left for a disk"),
    ("not in the same zone", "S14", "ZoneMismatch", "disk and VM are in different zones; use ZRS, or copy"),
    ("volume node affinity", "S14", "ZoneMismatch", "disk and VM are in different zones; use ZRS, or copy"),
    ("active sas", "S18", "DiskBusy", "an export of the disk is active"),
    ("leasealreadypresent", "S16", "LeaseHeld", "the blob of the disk is leased to another VM"),
    ("acquirediskleasefailed", "S16", "LeaseHeld", "the blob of the disk is leased to another VM"),
    ("failed state", "S7", "VmFailed", "the VM is in failed state; reapply it"),
    ("already attached", "S5", "AttachedElsewhere", "another VM holds the disk"),
)
"""What an attach error says, in the order it is looked for."""


def _attaching(look: _Look, attachment: Attachment) -> _Answer:
    text = attachment.attach_error.lower()
    for part, situation, reason, meaning in ATTACH_ERRORS:
        if part in text:
            return look.report(situation, reason, f"{meaning}: {attachment.attach_error}")
    until = (attachment.created_at or look.now) + look.policy.limits.kubernetes_deadline
    error = f": {attachment.attach_error}" if text else ""
    return look.wait("S19", "Attaching", f"the attacher is about to attach{error}", until)


# The VM is there and has the disk


def _identity(look: _Look) -> _Answer | None:
    release = look.release
    if release is None or release.vm_id == look.machine.vm_id:
        return None
    message = f"another VM has the name {look.vm_name} now; the release of the old one ends"
    return look.report("S4", "AnotherMachine", message)


def _open_write(look: _Look) -> _Answer | None:
    write = look.release.open_write if look.release else None
    if write is None or (write.kind is ActionKind.POWER_OFF_VM and look.machine.is_off):
        return None
    message = f"{write.kind}, begun {_ago(write.at, look.now)}, is not over"
    return look.wait("S8", "WriteUnderWay", message, write.deadline, "its end would change it")


def _power_moves(look: _Look) -> _Answer | None:
    power, until = look.machine.power, look.due(states.updating(look.case.vm))
    if power in MOVING_POWER:
        return look.wait("S2", "PowerMoves", f"VM {look.vm_name} is {power}: neither on nor off", until)
    if power in UNKNOWN_POWER:
        message = f"Azure does not know whether VM {look.vm_name} runs"
        return look.wait("S21", "PowerUnknown", message, until)
    return None


def _off(look: _Look) -> _Answer | None:
    if not look.machine.is_off:
        return None
    node = look.node
    if node is None:
        return _off_without_node(look)
    if node.is_ready:
        message = f"VM {look.vm_name} is {look.machine.power} and its node not yet NotReady"
        until = look.due(states.off(look.case.vm))
        return look.wait("S2", "NodeNotYetSilent", message, until)
    since = tainted_since(node, look.case.observation)
    if since is None:
        return _off_untainted(look)
    until = since + look.policy.limits.detach_after
    if look.now < until:
        message = "the cluster's own controllers are about to detach it"
        return look.wait("S2", "KubernetesDetaches", message, until, "the disk being free would end it")
    return _detach(look)


def _off_untainted(look: _Look) -> _Answer:
    if not look.case.pods:
        return look.report("S2", "NobodyWaits", "the VM is off and no pod wants the disk")
    message = f"VM {look.vm_name} is {look.machine.power}: nothing runs there"
    return look.act(Kind.RELEASE, "S2", "VmIsOff", message, ActionKind.TAINT_NODE)


def _off_without_node(look: _Look) -> _Answer:
    attachment = look.attachment
    if attachment is not None and not attachment.is_deleting:
        message = f"VM {look.vm_name} is {look.machine.power}, and its Node is gone"
        step = ActionKind.DELETE_VOLUME_ATTACHMENT
        return look.act(Kind.RELEASE, "S2", "NodeIsGone", message, step, Ground.LOST)
    if attachment is not None:
        until = (attachment.deleting_since or look.now) + look.policy.limits.detach_after
        if look.now < until:
            return look.wait("S2", "KubernetesDetaches", "the attacher is about to detach it", until)
    return _detach(look)


def _detach(look: _Look) -> _Answer:
    """Off, and Kubernetes had its turn: a plain detach, then force, then people."""
    attachment = look.attachment
    if attachment is not None and not attachment.is_deleting:
        # Else a pod could use it again, without anybody asking Azure, once the VM is started. Of a disk that
        # somebody took by hand, it is all that keeps it from other nodes.
        message = f"the attachment outlives the taint; VM {look.vm_name} is {look.machine.power}"
        step = ActionKind.DELETE_VOLUME_ATTACHMENT
        return look.act(Kind.RELEASE, "S2", "AttachmentStays", message, step, Ground.LOST)
    if not look.case.is_owned:
        return NOTHING if attachment is None else _leaving(look, attachment)
    plain, forced = _last(look, ActionKind.DETACH_DISK), _last(look, ActionKind.FORCE_DETACH_DISK)
    if forced is not None:
        message = f"neither a plain nor a forced detach took it from {look.vm_name}: {forced.message}"
        return look.report(
            "S8", "DetachFailed", message, "ask Azure support; the VM is off, so nothing writes"
        )
    if plain is None:
        if look.machine.provisioning not in AT_REST:
            return _in_transition(look)
        message = f"the attachment outlives the taint; VM {look.vm_name} is {look.machine.power}"
        return look.act(
            Kind.RELEASE, "S2", "AttachmentOutlives", message, ActionKind.DETACH_DISK, Ground.FENCED
        )
    message = f"a plain detach {plain.code or 'failed'}; VM {look.vm_name} is {look.machine.power}"
    return look.act(Kind.RELEASE, "S8", "PlainDetachFailed", message, ActionKind.FORCE_DETACH_DISK)


def _last(look: _Look, kind: ActionKind) -> ArmWrite | None:
    """The newest write of that kind that names the disk."""
    writes = look.release.writes if look.release else ()
    mine = key(look.case.disk_id)
    return next((w for w in reversed(writes) if w.kind is kind and mine in map(key, w.disks)), None)


def _in_transition(look: _Look) -> _Answer:
    entry = look.machine.entry(look.case.disk_id)
    doing = "detaching it" if entry is not None and entry.to_be_detached else "changing its VM"
    until = look.since(states.updating(look.case.vm)) + look.policy.limits.detach_timeout
    message = f"Azure is {doing} (provisioningState {look.machine.provisioning})"
    return look.wait("S8", "InTransition", message, until, "the end of that operation would change it")


def _silent(look: _Look) -> _Answer | None:
    """The VM runs and its node says nothing."""
    node = look.node
    if node is not None and node.is_ready:
        return None
    if node is None:
        message = f"the Node of running VM {look.vm_name} is gone; what it mounts may be in use"
        name = look.case.node_name or key(look.case.vm)
        until = look.due(states.gone_node(name))
        return look.wait(
            "S1", "NodeGoneVmRuns", message, until, "power the VM off, or let its kubelet register"
        )
    silence, grace = silent_for(node, look.case.observation, look.now), look.policy.grace_of(node.pool)
    if silence is None or silence < grace:
        until = look.now + (grace - (silence or timedelta(0)))
        return look.wait("S1", "NodeSilent", f"node {node.name} is NotReady; grace is not over", until)
    if not look.case.pods:
        return look.report("S1", "NobodyWaits", f"node {node.name} is dead and no pod wants the disk")
    fences = [w for w in (look.release.writes if look.release else ()) if w.kind is ActionKind.POWER_OFF_VM]
    if len(fences) > 1 and fences[-1].state is WriteState.FAILED:
        message = f"VM {look.vm_name} could not be powered off: {fences[-1].code} {fences[-1].message}"
        return look.report("S1", "FenceFailed", message.strip(), "power it off by hand")
    message = f"node {node.name} is dead and VM {look.vm_name} runs: it may still write"
    return look.act(Kind.FENCE_AND_RELEASE, "S1", "NodeIsDead", message, ActionKind.POWER_OFF_VM)


def _transition(look: _Look) -> _Answer | None:
    return None if look.machine.provisioning in AT_REST else _in_transition(look)


def _alive(look: _Look) -> _Answer:
    """The VM runs and its node is Ready."""
    attachment = look.attachment
    if attachment is None:
        return _zombie(look)
    if attachment.volume not in look.case.observation.volumes:
        return _lost(look, attachment)
    if attachment.is_deleting:
        return _deleting(look, attachment)
    if not attachment.attached:
        return _attaching(look, attachment)
    return NOTHING if look.case.pods_here else _unclaimed(look, attachment)


def _repair(look: _Look, situation: str) -> _Answer:
    message = f"VM {look.vm_name} is in failed state and takes no change of disks: {look.machine.failure}"
    message = message.rstrip(": ")
    if is_uniform_instance(look.case.vm):
        advice = "drain the node and have the instance replaced: Azure cannot reapply one of a uniform set"
        return look.report(situation, "VmFailed", message, advice)
    if look.policy.repair and not (look.release and look.release.last(ActionKind.REAPPLY_VM)):
        return look.act(Kind.REPAIR_VM, situation, "VmFailed", message, ActionKind.REAPPLY_VM)
    command = f"az vm reapply --ids {look.case.vm}, or set diskRelease.repair"
    return look.report(situation, "VmFailed", message, command)


def _zombie(look: _Look) -> _Answer:
    case = look.case
    if case.pods_here:
        return NOTHING
    if case.is_in_use or case.is_reported_attached:
        message = f"no VolumeAttachment, and node {case.node_name} still reports it"
        return look.report(
            "S19", "StaleReport", message, "restart its kubelet or the attach/detach controller"
        )
    young = _young_zombie(look)
    if young is not None:
        return young
    if look.machine.provisioning == "Failed":
        return _repair(look, "S7")
    tried = _last(look, ActionKind.DETACH_DISK)
    if tried is not None:
        return look.report(
            "S5", "DetachFailed", f"a plain detach failed: {tried.code} {tried.message}".strip()
        )
    message = f"attached to {look.vm_name}, and nothing in Kubernetes knows why"
    return look.act(Kind.RELEASE, "S5", "Zombie", message, ActionKind.DETACH_DISK, Ground.IDLE)


def _young_zombie(look: _Look) -> _Answer | None:
    changed = look.disk.owner_changed_at
    if changed is None:
        message = "attached, nothing in Kubernetes says why, and the disk does not say since when"
        return look.report("S5", "ZombieOfNoAge", message, "detach it by hand")
    until = changed + look.policy.limits.zombie_age
    if look.now < until:
        message = "attached, and nothing in Kubernetes says why; an attach may be under way"
        return look.wait("S5", "YoungZombie", message, until)
    return None


def _lost(look: _Look, attachment: Attachment) -> _Answer:
    if look.case.is_in_use:
        message = f"PersistentVolume {attachment.volume} is gone, and the node still uses the disk"
        return look.report("S10", "VolumeLostInUse", message, f"drain node {look.case.node_name}")
    if attachment.is_deleting:
        return _zombie(look)
    message = f"PersistentVolume {attachment.volume} is gone; the attacher can never detach"
    step = ActionKind.DELETE_VOLUME_ATTACHMENT
    return look.act(Kind.NUDGE, "S10", "VolumeLost", message, step, Ground.LOST)


def _deleting(look: _Look, attachment: Attachment) -> _Answer:
    if look.machine.provisioning == "Failed":
        return _repair(look, "S7")
    until = (attachment.deleting_since or look.now) + look.policy.limits.kubernetes_deadline
    error = f": {attachment.detach_error}" if attachment.detach_error else ""
    return look.wait("S8", "Detaching", f"the attacher is detaching it{error}", until)


def _unclaimed(look: _Look, attachment: Attachment) -> _Answer:
    """Attached, and no pod of the node uses it."""
    until = look.due(states.unclaimed(attachment.name))
    if look.case.is_in_use:
        message = f"its pod is gone, and node {look.case.node_name} still has it mounted"
        advice = "restart the disk driver's pod on that node; if that does not help, drain it and fence"
        return look.wait("S9", "UnmountStuck", message, until, advice)
    message = "no pod of the node uses it; the attach/detach controller is about to let it go"
    return look.wait("S22", "KubernetesDetaches", message, until)


QUESTIONS: tuple[Callable[[_Look], _Answer | None], ...] = (
    _ids,
    _kubernetes_has_its_turn,
    _unknown,
    _missing,
    _untouchable,
    _gone,
    _unowned,
    _identity,
    _open_write,
    _power_moves,
    _off,
    _silent,
    _transition,
    _alive,
)
"""In this order; the first that has something to say decides."""

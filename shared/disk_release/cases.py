"""The pairs of a disk and a VM that an observation shows, each with all that is known about it; pure.

A pair comes from a VolumeAttachment, from a disk that names its owner, or from a VM that lists the disk. Also
says which VMs and disks have to be read one by one before anything can be decided (`needs`): none while
nothing is stuck. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from shared.disk_release import state as states
from shared.disk_release.observation import Fact, Known, Observation
from shared.disk_release.policy import DiskReleasePolicy
from shared.model.disk import (
    CREATED_FOR_VOLUME,
    DISK_DRIVER,
    Attachment,
    Disk,
    Machine,
    Node,
    Pod,
    Volume,
    is_disk_id,
    is_machine_id,
    key,
)

PATIENCE = timedelta(seconds=60)
"""How long attaching or detaching may take before anybody looks at Azure: a detach takes 30 to 120 s."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One disk and one VM. `disk_id` is "" when the attachment's volume is gone and no disk says it was its;
    `vm` is "" when neither the node nor the disk tells.
    """

    disk_id: str
    vm: str
    node_name: str
    attachment: Attachment | None
    observation: Observation

    @property
    def name(self) -> str:
        """How it stands in plans: `DISK on VM`, by their last names."""
        disk = self.disk_id.rpartition("/")[2] or (self.attachment.volume if self.attachment else "?")
        return f"{disk} on {machine_name(self.vm) or self.node_name or '?'}"

    @cached_property
    def disk(self) -> Fact[Disk]:
        return disk_fact(self.observation, self.disk_id)

    @cached_property
    def machine(self) -> Fact[Machine]:
        return self.observation.machine(self.vm)

    @cached_property
    def node(self) -> Node | None:
        return self.observation.nodes.get(self.node_name)

    @cached_property
    def volumes(self) -> tuple[Volume, ...]:
        """PersistentVolumes of the disk."""
        return self.observation.volumes_of_disk.get(key(self.disk_id), ()) if self.disk_id else ()

    @cached_property
    def pods(self) -> tuple[Pod, ...]:
        """Unfinished pods that use the disk, anywhere."""
        found = [p for v in self.volumes for p in self.observation.pods_of_volume.get(v.name, ())]
        return tuple(pod for pod in found if not pod.is_over)

    @cached_property
    def pods_here(self) -> tuple[Pod, ...]:
        return tuple(pod for pod in self.pods if pod.node == self.node_name)

    @cached_property
    def pods_elsewhere(self) -> tuple[Pod, ...]:
        return tuple(pod for pod in self.pods if pod.node != self.node_name)

    @property
    def is_in_use(self) -> bool:
        """Whether the node says that it uses the disk, or the cluster that it is attached there."""
        node = self.node
        if node is None:
            return False
        return any(name.lower().endswith(f"^{key(self.disk_id)}") for name in node.volumes_in_use)

    @property
    def is_reported_attached(self) -> bool:
        """Whether the node's status lists it as attached. Of a volume that is gone that says nothing: the
        attach/detach controller puts it back whenever a detach fails, as it then always does.
        """
        node = self.node
        if node is None or not self.volumes:
            return False
        return any(name.lower().endswith(f"^{key(self.disk_id)}") for name in node.volumes_attached)

    @property
    def is_owned(self) -> bool:
        """Whether the disk is known to name this VM as an owner."""
        return self.disk.value is not None and bool(self.vm) and self.disk.value.is_owned_by(self.vm)


def machine_name(vm: str) -> str:
    """A VM's name in plans; an instance of a scale set as SET/NUMBER."""
    parts = vm.split("/")
    return f"{parts[-3]}/{parts[-1]}" if len(parts) > 10 else parts[-1]


def disk_fact(observation: Observation, disk_id: str) -> Fact[Disk]:
    """The single read of a disk, or what a list said of it: marked as such, and no ground for a write."""
    found = observation.disk(disk_id)
    listed = observation.census.get(key(disk_id))
    if found.read_at is None and listed is not None:
        return Fact(Known.KNOWN, None, listed, why="only listed")
    return found


def cases(observation: Observation) -> list[Case]:
    """Every pair, ordered by name. Pairs on ids that are malformed are there too, to be reported."""
    found: dict[tuple[str, str, str], Case] = {}
    for attachment in observation.attachments:
        if attachment.driver == DISK_DRIVER:
            case = _of_attachment(observation, attachment)
            found[(key(case.disk_id), key(case.vm), attachment.name)] = case
    known = {(disk, vm) for disk, vm, _ in found}
    for disk_id, vm in _held(observation):
        if (key(disk_id), key(vm)) not in known:
            known.add((key(disk_id), key(vm)))
            node = observation.node_of_machine.get(key(vm))
            found[(key(disk_id), key(vm), "")] = Case(
                disk_id=disk_id,
                vm=vm,
                node_name=node.name if node else "",
                attachment=None,
                observation=observation,
            )
    return [found[name] for name in sorted(found)]


def _of_attachment(observation: Observation, attachment: Attachment) -> Case:
    volume = observation.volumes.get(attachment.volume)
    disk_id = volume.handle if volume else _disk_of_lost_volume(observation, attachment.volume)
    return Case(
        disk_id=disk_id,
        vm=_machine_of(observation, attachment.node, disk_id),
        node_name=attachment.node,
        attachment=attachment,
        observation=observation,
    )


def _disk_of_lost_volume(observation: Observation, volume: str) -> str:
    """The disk whose tag says that it was created for that PersistentVolume."""
    known = [fact.value for fact in observation.disks.values() if fact.value]
    found = [d for d in (*known, *observation.census.values()) if d.tags.get(CREATED_FOR_VOLUME) == volume]
    return found[0].id if found else ""


def _machine_of(observation: Observation, node_name: str, disk_id: str) -> str:
    """The VM of a node; of a node that is gone, what a release in flight or the disk itself remembers."""
    node = observation.nodes.get(node_name)
    if node is not None:
        return node.machine
    for release in observation.state.releases.values():
        if release.node == node_name:
            return release.vm
    disk = disk_fact(observation, disk_id).value if disk_id else None
    owners = disk.owners if disk else ()
    strangers = [vm for vm in owners if key(vm) not in observation.node_of_machine]
    return strangers[0] if len(strangers) == 1 else ""


def _held(observation: Observation) -> Iterator[tuple[str, str]]:
    """(disk, VM) by what Azure says, without operating-system disks."""
    singles = {name: fact.value for name, fact in observation.disks.items() if fact.value}
    for name, disk in {**observation.census, **singles}.items():
        if observation.disk(name).is_absent:
            continue
        for owner in disk.owners if not disk.os_type else ():
            if key(owner) in observation.node_of_machine or observation.state.release_of(owner):
                yield disk.id, owner
    for fact in observation.machines.values():
        if fact.value is None:
            continue
        for entry in fact.value.data_disks:
            if entry.disk:
                yield entry.disk, fact.value.id


# What has to be read


@dataclass(frozen=True)
class Needs:
    """Resource ids to read one by one, in order; blobs are addresses of unmanaged disks."""

    machines: tuple[str, ...] = ()
    disks: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()


def needs(observation: Observation, policy: DiskReleasePolicy, now: datetime) -> Needs:
    """What a look at Kubernetes (and lists of disks, if any) asks to know of Azure before deciding.

    Ask again after reading: a disk may name a VM that nobody had thought of.
    """
    machines: dict[str, str] = {}
    disks: dict[str, str] = {}
    for case in cases(observation):
        if not is_suspect(case, now):
            continue
        if is_machine_id(case.vm):
            machines.setdefault(key(case.vm), case.vm)
        if is_disk_id(case.disk_id) and _needs_disk(case, policy, now):
            disks.setdefault(key(case.disk_id), case.disk_id)
    for release in observation.state.releases.values():
        machines.setdefault(key(release.vm), release.vm)
    blobs = {key(c.disk_id): c.disk_id for c in cases(observation) if c.disk_id.startswith("https://")}
    return Needs(tuple(machines.values()), tuple(disks.values()), tuple(blobs.values()))


def is_suspect(case: Case, now: datetime) -> bool:
    """Whether a pair is anything but healthy or settling, by Kubernetes and lists alone."""
    node, attachment = case.node, case.attachment
    if case.observation.state.release_of(case.vm) or node is None or not node.is_ready:
        return True
    if attachment is None:
        return not case.pods_here
    if attachment.is_deleting:
        return now - (attachment.deleting_since or now) > PATIENCE or bool(attachment.detach_error)
    if attachment.volume not in case.observation.volumes:
        return True
    listed = case.observation.census.get(key(case.disk_id))
    if attachment.attached and listed is not None and not listed.is_owned_by(case.vm):
        return True
    is_late = now - (attachment.created_at or now) > PATIENCE
    return is_late and (not attachment.attached or not case.pods_here)


def _needs_disk(case: Case, policy: DiskReleasePolicy, now: datetime) -> bool:
    """Not while the VM has to be fenced first and a list already tells about the disk: one call for all."""
    node = case.node
    if key(case.disk_id) not in case.observation.census or node is None or node.is_ready:
        return True
    if case.machine.is_absent or not case.observation.census[key(case.disk_id)].is_owned_by(case.vm):
        return True
    tainted_at = tainted_since(node, case.observation)
    if tainted_at is None:
        return False
    return case.attachment is None or now - tainted_at >= policy.limits.detach_after


def tainted_since(node: Node, observation: Observation) -> datetime | None:
    """When the node was taken out of service, by us or by the cloud provider; None if it was not."""
    release, taint = observation.state.release_of(node.machine), node.out_of_service
    if taint is None:
        return None
    if release is not None and release.tainted_at is not None:
        return release.tainted_at
    sighting = observation.state.seen.get(states.out_of_service(node.name))
    return taint.added_at or (sighting.first if sighting else None)

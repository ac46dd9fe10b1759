"""What one look at a cluster's disks found, as one frozen value, and as the contract's snapshot file.

`observe` makes the snapshot, `read` turns it into an Observation, `decide` reads that. Every answer of
Azure is a `Fact` of three kinds: known, absent (a 404 with a code that means it), or unknown (401, 403, 429,
5xx, a time-out, never asked). Unknown is never "gone". The lists under `kubernetes` are `nodes`, `leases`,
`pods`, `persistentvolumes`, `persistentvolumeclaims`, `volumeattachments`, `csinodes`, `storageclasses`,
`events`. The readings under `azure` are single VMs (with `properties.instanceView`, or that as a reading of
its own), single disks, page blobs, and lists of disks (body `{"value": [...]}`), which are good for a census
and carry no write.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec

from shared.disk_release import reading
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.state import ReleaseState, read_state
from shared.errors import MessageError
from shared.model import snapshot as snapshots
from shared.model.disk import (
    Attachment,
    Blob,
    Claim,
    CsiNode,
    Disk,
    Event,
    Machine,
    Node,
    Pod,
    StorageClass,
    Volume,
    key,
)
from shared.model.snapshot import AzureReading, Snapshot

AUTOMATION = "disk-release"

PROVES_ABSENCE = frozenset({"ResourceNotFound", "NotFound", "BlobNotFound"})
"""Codes of a 404 that mean this very thing is not there. ParentResourceNotFound and ResourceGroupNotFound can
come from a wrong id, SubscriptionNotFound from missing access; InstanceNotFound and others are not listed."""

T = TypeVar("T")


class Known(enum.StrEnum):
    """What is known of a thing."""

    KNOWN = "Known"
    ABSENT = "Absent"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Fact(Generic[T]):
    """What one read found. `value` is there iff known; `why` says in words why it is not."""

    state: Known
    read_at: datetime | None = None
    value: T | None = None
    why: str = ""

    @property
    def is_absent(self) -> bool:
        return self.state is Known.ABSENT

    @property
    def is_unknown(self) -> bool:
        return self.state is Known.UNKNOWN


NOT_READ: Fact[Any] = Fact(Known.UNKNOWN, why="not read")


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One cluster, once. `now` is when Kubernetes was read; each fact of Azure has its own time.

    `machines`, `disks` and `blobs` are keyed by resource id (address), lower case; `census` holds disks that
    only a list showed. `snapshot` is what it was made of; None in tests that build observations directly.
    """

    cluster: str
    now: datetime
    cluster_entry: Mapping[str, Any] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    pods: tuple[Pod, ...] = ()
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    claims: Mapping[tuple[str, str], Claim] = field(default_factory=dict)
    attachments: tuple[Attachment, ...] = ()
    csi_nodes: Mapping[str, CsiNode] = field(default_factory=dict)
    classes: Mapping[str, StorageClass] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    machines: Mapping[str, Fact[Machine]] = field(default_factory=dict)
    disks: Mapping[str, Fact[Disk]] = field(default_factory=dict)
    blobs: Mapping[str, Fact[Blob]] = field(default_factory=dict)
    census: Mapping[str, Disk] = field(default_factory=dict)
    state: ReleaseState = field(default_factory=ReleaseState)
    snapshot: Snapshot | None = None

    @property
    def policy(self) -> DiskReleasePolicy:
        """The policy in the cluster's entry of the configuration; defaults where it says nothing."""
        return msgspec.convert(self.cluster_entry.get("diskRelease") or {}, DiskReleasePolicy)

    def machine(self, resource_id: str) -> Fact[Machine]:
        return self.machines.get(key(resource_id), NOT_READ)

    def disk(self, resource_id: str) -> Fact[Disk]:
        return self.disks.get(key(resource_id), NOT_READ)

    def blob(self, uri: str) -> Fact[Blob]:
        return self.blobs.get(key(uri), NOT_READ)

    @cached_property
    def node_of_machine(self) -> Mapping[str, Node]:
        """Nodes by their VM's resource id, lower case."""
        return {key(node.machine): node for node in self.nodes.values() if node.machine}

    @cached_property
    def volumes_of_disk(self) -> Mapping[str, tuple[Volume, ...]]:
        """PersistentVolumes by their disk's handle, lower case."""
        found: dict[str, tuple[Volume, ...]] = {}
        for volume in self.volumes.values():
            if volume.handle:
                found[key(volume.handle)] = (*found.get(key(volume.handle), ()), volume)
        return found

    @cached_property
    def pods_of_volume(self) -> Mapping[str, tuple[Pod, ...]]:
        """Pods by the PersistentVolume their claims are bound to, by its name."""
        found: dict[str, tuple[Pod, ...]] = {}
        for pod in self.pods:
            for name in pod.claims:
                claim = self.claims.get((pod.namespace, name))
                if claim is not None and claim.volume:
                    found[claim.volume] = (*found.get(claim.volume, ()), pod)
        return found

    @cached_property
    def attachments_of_node(self) -> Mapping[str, tuple[Attachment, ...]]:
        found: dict[str, tuple[Attachment, ...]] = {}
        for attachment in self.attachments:
            found[attachment.node] = (*found.get(attachment.node, ()), attachment)
        return found


def read(snapshot: Snapshot) -> Observation:
    """The observation in a snapshot; MessageError names the object that is not what an API would answer."""
    items = snapshot.items
    leases = reading.leases(items("leases"))
    nodes = [reading.node(item, leases) for item in reading.objects(items("nodes"))]
    volumes = [reading.volume(item) for item in reading.objects(items("persistentvolumes"))]
    claims = [reading.claim(item) for item in reading.objects(items("persistentvolumeclaims"))]
    return Observation(
        cluster=snapshot.cluster_name,
        now=snapshot.now,
        cluster_entry=snapshot.cluster,
        nodes={node.name: node for node in nodes},
        pods=tuple(reading.pod(item) for item in reading.objects(items("pods"))),
        volumes={volume.name: volume for volume in volumes},
        claims={(claim.namespace, claim.name): claim for claim in claims},
        attachments=tuple(reading.attachment(item) for item in reading.objects(items("volumeattachments"))),
        csi_nodes={c.name: c for c in map(reading.csi_node, reading.objects(items("csinodes")))},
        classes={c.name: c for c in map(reading.storage_class, reading.objects(items("storageclasses")))},
        events=tuple(reading.event(item) for item in reading.objects(items("events"))),
        state=read_state(snapshot.state),
        snapshot=snapshot,
        **_azure(snapshot),
    )


def _azure(snapshot: Snapshot) -> dict[str, Any]:
    machines: dict[str, Fact[Machine]] = {}
    disks: dict[str, Fact[Disk]] = {}
    blobs: dict[str, Fact[Blob]] = {}
    census: dict[str, Disk] = {}
    for answer in snapshot.azure:
        kind = reading.kind_of(answer.id)
        if kind == reading.MACHINE:
            machines[key(answer.id)] = _machine(answer, snapshot.reading(f"{answer.id}/instanceView"))
        elif kind == reading.DISK:
            disks[key(answer.id)] = fact(answer, reading.disk)
        elif kind == reading.BLOB:
            blobs[key(answer.id)] = fact(answer, reading.blob)
        elif answer.status == 200 and answer.body is not None and isinstance(answer.body.get("value"), list):
            found = [reading.disk(item) for item in answer.body["value"] if reading.is_disk(item)]
            census |= {disk.key: disk for disk in found}
    return {"machines": machines, "disks": disks, "blobs": blobs, "census": census}


def fact(answer: AzureReading, parse: Any) -> Fact[Any]:
    """One answer as a fact of three kinds."""
    if answer.status == 200 and answer.body is not None:
        return Fact(Known.KNOWN, answer.read_at, parse({"id": answer.id} | answer.body))
    if answer.status == 404 and answer.code in PROVES_ABSENCE:
        return Fact(Known.ABSENT, answer.read_at, why=f"404 {answer.code}")
    return Fact(Known.UNKNOWN, answer.read_at, why=f"{answer.status} {answer.code}".strip())


def _machine(answer: AzureReading, view: AzureReading | None) -> Fact[Machine]:
    found: Fact[Machine] = fact(answer, reading.machine)
    if found.value is None or found.value.power or view is None:
        return found
    if view.status != 200 or view.body is None:
        return Fact(Known.UNKNOWN, view.read_at, why=f"instance view: {view.status} {view.code}".strip())
    value = reading.with_view(found.value, view.body)
    return Fact(Known.KNOWN, min(answer.read_at, view.read_at), value)


def save(observation: Observation) -> bytes:
    """The snapshot file; deciding from it gives the same plan, byte for byte."""
    assert observation.snapshot is not None, "an observation that was not read from a snapshot has no file"
    return snapshots.save(observation.snapshot)


def load(data: bytes, source: str) -> Observation:
    """The observation in a snapshot file; MessageError names `source` and what is wrong."""
    snapshot = snapshots.load(data, source, AUTOMATION)
    try:
        observation = read(snapshot)
        observation.policy  # noqa: B018  a wrong policy is refused here, with the file's name
    except msgspec.MsgspecError as error:
        raise MessageError(f"{source}: {error}; see docs/reference/snapshot-file.md") from error
    except MessageError as error:
        raise MessageError(f"{source}: {error}; see docs/reference/snapshot-file.md") from error
    return observation

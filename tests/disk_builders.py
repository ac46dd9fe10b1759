"""Worlds for tests of the disk release: one sensible default, changed one thing at a time.

`Scene()` is a cluster of four nodes; pod `db-0` runs on node `a` with disk `d1`, and all is well. Methods
change it and return it: `Scene().silent("a").build()`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from shared.disk_release import state as states
from shared.disk_release.observation import Fact, Known, Observation
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.state import ArmWrite, Release, ReleaseState, Sighting, WriteState
from shared.model.disk import (
    ATTACHER_FINALIZER,
    DISK_DRIVER,
    OUT_OF_SERVICE,
    OWNER_ANNOTATION,
    Attachment,
    Blob,
    Claim,
    CsiNode,
    DataDisk,
    Disk,
    Event,
    Machine,
    Node,
    Pod,
    Readiness,
    StorageClass,
    Taint,
    Volume,
    key,
)
from shared.model.plan import ActionKind

NOW = datetime(2026, 11, 23, 10, 0, 0, tzinfo=UTC)
GROUP = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/nodes/providers/Microsoft.Compute"
POLICY = DiskReleasePolicy(fence="allowed", fences_per_window=3)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def vm(name: str) -> str:
    return f"{GROUP}/virtualMachines/{name}"


def disk(name: str) -> str:
    return f"{GROUP}/disks/{name}"


@dataclass
class Scene:
    """A world under construction; ages are in seconds before NOW."""

    nodes: dict[str, Node] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    attachments: dict[str, Attachment] = field(default_factory=dict)
    csi_nodes: dict[str, CsiNode] = field(default_factory=dict)
    classes: dict[str, StorageClass] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    machines: dict[str, Fact[Machine]] = field(default_factory=dict)
    disks: dict[str, Fact[Disk]] = field(default_factory=dict)
    blobs: dict[str, Fact[Blob]] = field(default_factory=dict)
    census: dict[str, Disk] = field(default_factory=dict)
    state: ReleaseState = field(default_factory=ReleaseState)
    read_at: datetime = NOW
    policy: DiskReleasePolicy = POLICY

    def __post_init__(self) -> None:
        if not self.nodes:
            for name in "abcd":
                self.node(name)
            self.volume("d1", node="a")

    # Building blocks

    def node(self, name: str, **changes: Any) -> Scene:
        known = self.nodes.get(name) or Node(
            name=name,
            uid=f"node-{name}",
            version="7",
            ready_since=ago(90000),
            renewed_at=ago(5),
            created_at=ago(90000),
            provider_id=f"azure://{vm(name)}",
            labels={"agentpool": "agents", "topology.kubernetes.io/zone": "westeurope-1"},
        )
        self.nodes[name] = msgspec.structs.replace(known, **changes)
        self.csi_nodes.setdefault(name, CsiNode(name=name, drivers={DISK_DRIVER: 8}))
        if key(vm(name)) not in self.machines:
            self.machine(name)
        return self

    def machine(self, name: str, *, read: float = 0, **changes: Any) -> Scene:
        found = self.machines.get(key(vm(name)))
        known = (found.value if found else None) or Machine(
            id=vm(name), vm_id=f"vm-{name}", power="running", os_disk=disk(f"os-{name}")
        )
        value = msgspec.structs.replace(known, **changes)
        self.machines[key(vm(name))] = Fact(Known.KNOWN, ago(read), value)
        return self

    def disk(self, name: str, *, read: float = 0, **changes: Any) -> Scene:
        found = self.disks.get(key(disk(name)))
        known = (found.value if found else None) or Disk(
            id=disk(name),
            unique_id=f"unique-{name}",
            owner_changed_at=ago(90000),
            sku="Premium_LRS",
            size_gib=64,
        )
        self.disks[key(disk(name))] = Fact(Known.KNOWN, ago(read), msgspec.structs.replace(known, **changes))
        return self

    def attach(self, name: str, node: str, **changes: Any) -> Scene:
        """The disk is in the VM's list and says so itself."""
        found = self.machines[key(vm(node))].value
        if found is None:
            return self.disk(name, managed_by=vm(node), state="Attached")
        entry = DataDisk(disk=disk(name), lun=len(found.data_disks))
        self.machine(node, data_disks=(*found.data_disks, entry))
        return self.disk(name, **({"managed_by": vm(node), "state": "Attached"} | changes))

    def detach(self, name: str, node: str) -> Scene:
        found = self.machines[key(vm(node))].value
        if found is not None:
            kept = tuple(e for e in found.data_disks if e.key != key(disk(name)))
            self.machine(node, data_disks=kept)
        return self.disk(name, managed_by="", state="Unattached", owner_changed_at=ago(0))

    def volume(self, name: str, *, node: str, pod: str = "db-0") -> Scene:
        """A volume on that disk, with its claim, attachment and pod, all on the node."""
        self.attach(name, node)
        self.volumes[name] = Volume(
            name=f"pv-{name}",
            uid=f"pv-{name}",
            driver=DISK_DRIVER,
            handle=disk(name),
            claim_namespace="data",
            claim_name=f"claim-{name}",
            claim_uid=f"claim-{name}",
        )
        self.claims[name] = Claim(
            namespace="data", name=f"claim-{name}", uid=f"claim-{name}", volume=f"pv-{name}"
        )
        self.attachments[name] = Attachment(
            name=f"va-{name}",
            uid=f"va-{name}",
            version="9",
            node=node,
            volume=f"pv-{name}",
            attached=True,
            created_at=ago(90000),
            finalizers=(ATTACHER_FINALIZER,),
        )
        self.pods[pod] = Pod(
            namespace="data", name=pod, uid=pod, node=node, claims=(f"claim-{name}",), owner="StatefulSet/db"
        )
        used = frozenset({self.volumes[name].unique_name})
        return self.node(node, volumes_in_use=used, volumes_attached=used)

    def change(self, group: str, name: str, **changes: Any) -> Scene:
        """Change one object: `change("attachments", "d1", attached=False)`."""
        objects = getattr(self, group)
        objects[name] = msgspec.structs.replace(objects[name], **changes)
        return self

    # What happens

    def silent(self, name: str, seconds: float = 600) -> Scene:
        return self.node(
            name, ready=Readiness.UNKNOWN, ready_since=ago(seconds), renewed_at=ago(seconds + 45)
        )

    def off(self, name: str, power: str = "stopped") -> Scene:
        return self.machine(name, power=power)

    def absent(
        self, name: str, *, read: float = 0, since: float | None = None, code: str = "ResourceNotFound"
    ) -> Scene:
        self.machines[key(vm(name))] = Fact(Known.ABSENT, ago(read), why=f"404 {code}")
        return self if since is None else self.seen(states.absent(vm(name)), since)

    def unknown(self, name: str, why: str = "503 ServiceUnavailable") -> Scene:
        self.machines[key(vm(name))] = Fact(Known.UNKNOWN, ago(0), why=why)
        return self

    def unknown_disk(self, name: str, why: str = "503 ServiceUnavailable") -> Scene:
        self.disks[key(disk(name))] = Fact(Known.UNKNOWN, ago(0), why=why)
        return self

    def gone_node(self, name: str) -> Scene:
        self.nodes.pop(name, None)
        self.csi_nodes.pop(name, None)
        return self

    def no_pod(self, name: str = "db-0") -> Scene:
        self.pods.pop(name, None)
        return self

    def no_attachment(self, name: str = "d1") -> Scene:
        self.attachments.pop(name, None)
        return self

    def unused(self, node: str = "a") -> Scene:
        return self.node(node, volumes_in_use=frozenset(), volumes_attached=frozenset())

    def deleting(self, name: str = "d1", seconds: float = 120, **changes: Any) -> Scene:
        return self.change("attachments", name, deleting_since=ago(seconds), **changes)

    def taint(self, name: str, *, ours: bool = True, age: float = 10) -> Scene:
        node = self.nodes[name]
        taint = Taint(OUT_OF_SERVICE, "NoExecute", "nodeshutdown", ago(age))
        notes = node.annotations | ({OWNER_ANNOTATION: "ev-1"} if ours else {})
        return self.node(name, taints=(*node.taints, taint), annotations=notes)

    def seen(self, what: str, since: float, last: float = 0) -> Scene:
        known = self.state.seen | {what: Sighting(ago(since), ago(last))}
        self.state = msgspec.structs.replace(self.state, seen=known)
        return self

    def releasing(
        self, name: str, *writes: ArmWrite, tainted: float | None = None, disks: str = "d1"
    ) -> Scene:
        """A release of the VM is under way."""
        release = Release(
            vm=vm(name),
            vm_id=f"vm-{name}",
            epoch=1,
            begun_at=ago(300),
            reason="NodeIsDead",
            node=name,
            node_uid=f"node-{name}",
            disks={key(disk(d)): f"unique-{d}" for d in disks.split()},
            writes=writes,
            tainted_at=None if tainted is None else ago(tainted),
        )
        self.state = msgspec.structs.replace(self.state, epoch=1, releases={key(vm(name)): release})
        return self

    def build(self) -> Observation:
        return Observation(
            cluster="prod",
            now=self.read_at,
            cluster_entry={"name": "prod", "diskRelease": msgspec.to_builtins(self.policy)},
            nodes={node.name: node for node in self.nodes.values()},
            pods=tuple(self.pods.values()),
            volumes={volume.name: volume for volume in self.volumes.values()},
            claims={(claim.namespace, claim.name): claim for claim in self.claims.values()},
            attachments=tuple(self.attachments.values()),
            csi_nodes=dict(self.csi_nodes),
            classes=dict(self.classes),
            events=tuple(self.events),
            machines=dict(self.machines),
            disks=dict(self.disks),
            blobs=dict(self.blobs),
            census=dict(self.census),
            state=self.state,
        )


def write(
    kind: ActionKind,
    state: WriteState,
    *,
    at: float = 200,
    due: float = -60,
    disks: str = "d1",
    code: str = "",
) -> ArmWrite:
    """A write of a release; `due` is the deadline, in seconds before NOW (negative: ahead)."""
    ended = None if state in (WriteState.ANNOUNCED, WriteState.RUNNING) else ago(1)
    return ArmWrite(
        id=f"1.{kind.value}",
        kind=kind,
        at=ago(at),
        deadline=ago(due),
        state=state,
        disks=tuple(disk(d) for d in disks.split()),
        status_url="https://management.azure.com/subscriptions/s/providers/operations/1",
        ended_at=ended,
        code=code,
    )

"""Disks, who holds them, and what Kubernetes believes about that: flat, frozen values; no I/O.

Azure's side: `Disk`, `Machine` (a VM or an instance of a scale set), `DataDisk`. Kubernetes' side: `Node`,
`Pod`, `Volume`, `Claim`, `Attachment`, `CsiNode`, `StorageClass`, `Event`. Resource ids are kept as they were
written and compared by `key`, without regard to case (migrated volumes differ in case from what Azure
answers). Called by `shared.disk_release`.
"""

from __future__ import annotations

import enum
from datetime import datetime
from functools import lru_cache

import msgspec

from shared.errors import SettingsError
from shared.model.resource_id import ResourceId, parse_resource_id

DISK_DRIVER = "disk.csi.azure.com"
FILE_DRIVER = "file.csi.azure.com"
IN_TREE_DISK = "kubernetes.io/azure-disk"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
SHUTDOWN = "node.cloudprovider.kubernetes.io/shutdown"
OWNER_ANNOTATION = "kubekeeper.io/out-of-service"
"""On a node whose out-of-service taint is ours."""
ATTACHER_FINALIZER = "external-attacher/disk-csi-azure-com"
CREATED_FOR_VOLUME = "kubernetes.io-created-for-pv-name"
PROVIDER_PREFIX = "azure://"

FENCED_POWER = frozenset({"stopped", "deallocated"})
MACHINE_TYPES = frozenset(
    {"microsoft.compute/virtualmachines", "microsoft.compute/virtualmachinescalesets/virtualmachines"}
)
DISK_TYPE = "microsoft.compute/disks"


@lru_cache(maxsize=65536)
def key(resource_id: str) -> str:
    """Equal for equal resources, however they were written."""
    return resource_id.strip().rstrip("/").lower()


def machine_of_provider_id(provider_id: str) -> str:
    """The resource id behind a node's `providerID`; "" when it is not that of an Azure VM."""
    found = provider_id.removeprefix(PROVIDER_PREFIX)
    return found if found != provider_id and is_machine_id(found) else ""


@lru_cache(maxsize=16384)
def is_machine_id(text: str) -> bool:
    parsed = _parsed(text)
    return parsed is not None and parsed.type.lower() in MACHINE_TYPES


def is_uniform_instance(machine: str) -> bool:
    """Whether a machine's id is that of an instance of a uniform scale set."""
    return "/virtualmachinescalesets/" in key(machine)


@lru_cache(maxsize=65536)
def is_disk_id(text: str) -> bool:
    parsed = _parsed(text)
    return parsed is not None and parsed.type.lower() == DISK_TYPE


def _parsed(text: str) -> ResourceId | None:
    try:
        return parse_resource_id(text)
    except SettingsError:
        return None


# Azure


class DataDisk(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a machine's list; `disk` is a managed disk's resource id or a blob's address."""

    disk: str
    lun: int
    caching: str = "None"
    to_be_detached: bool = False
    detach_option: str = ""
    delete_option: str = "Detach"

    @property
    def key(self) -> str:
        return key(self.disk)


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A VM, single, flexible or an instance of a uniform scale set, with its power state.

    `power` is the word behind `PowerState/`: running, starting, stopping, stopped, deallocating, deallocated,
    unknown; "" when no instance view was read. `computer_name` is what its node is called.
    """

    id: str
    vm_id: str
    power: str = ""
    provisioning: str = "Succeeded"
    is_hibernated: bool = False
    computer_name: str = ""
    os_disk: str = ""
    data_disks: tuple[DataDisk, ...] = ()
    zones: tuple[str, ...] = ()
    etag: str = ""
    failure: str = ""

    @property
    def key(self) -> str:
        return key(self.id)

    @property
    def is_off(self) -> bool:
        """Stopped or deallocated, for certain and not on the way there; a hibernated one will wake up."""
        return self.power in FENCED_POWER and not self.is_hibernated

    def entry(self, disk: str) -> DataDisk | None:
        """The entry of that disk in its list."""
        wanted = key(disk)
        return next((entry for entry in self.data_disks if entry.key == wanted), None)


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A managed disk. `managed_by` names the first owner, `owners` all of them (shared disks have several).

    `unique_id` tells a disk from a later one of the same name; `owner_changed_at` is when an owner came or
    went.
    """

    id: str
    unique_id: str = ""
    managed_by: str = ""
    managed_by_extended: tuple[str, ...] = ()
    state: str = "Unattached"
    max_shares: int = 1
    owner_changed_at: datetime | None = None
    created_at: datetime | None = None
    os_type: str = ""
    tags: dict[str, str] = {}
    zones: tuple[str, ...] = ()
    sku: str = ""
    size_gib: int = 0

    @property
    def key(self) -> str:
        return key(self.id)

    @property
    def owners(self) -> tuple[str, ...]:
        found = self.managed_by_extended or ((self.managed_by,) if self.managed_by else ())
        return tuple(found)

    def is_owned_by(self, machine: str) -> bool:
        wanted = key(machine)
        return any(key(owner) == wanted for owner in self.owners)

    @property
    def is_shared(self) -> bool:
        return self.max_shares > 1


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """The page blob of an unmanaged disk: its lease, and the machine that its metadata names."""

    uri: str
    etag: str = ""
    lease: str = ""
    owner: str = ""
    snapshot: str = ""
    """When it was last snapshotted by us, as the service names snapshots; "" if never."""


# Kubernetes


class Readiness(enum.StrEnum):
    """A node's condition Ready; `UNKNOWN` is what the node lifecycle controller writes of a silent node."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Taint(msgspec.Struct, frozen=True):
    key: str
    effect: str
    value: str = ""
    added_at: datetime | None = None


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A Node. `ready_since` is the last change of condition Ready, `renewed_at` the last sign of life (its
    lease, or the heartbeat of Ready when it has none). `volumes_*` are names as
    `kubernetes.io/csi/DRIVER^HANDLE`.
    """

    name: str
    uid: str = ""
    version: str = ""
    ready: Readiness = Readiness.TRUE
    ready_since: datetime | None = None
    renewed_at: datetime | None = None
    created_at: datetime | None = None
    provider_id: str = ""
    is_unschedulable: bool = False
    taints: tuple[Taint, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    volumes_in_use: frozenset[str] = frozenset()
    volumes_attached: frozenset[str] = frozenset()

    @property
    def is_ready(self) -> bool:
        return self.ready is Readiness.TRUE

    @property
    def machine(self) -> str:
        """Resource id of its VM; "" when `providerID` is not one of Azure's."""
        return machine_of_provider_id(self.provider_id)

    @property
    def pool(self) -> str:
        return self.labels.get("kubernetes.azure.com/agentpool") or self.labels.get("agentpool", "")

    @property
    def zone(self) -> str:
        return self.labels.get("topology.kubernetes.io/zone", "")

    @property
    def out_of_service(self) -> Taint | None:
        return next((taint for taint in self.taints if taint.key == OUT_OF_SERVICE), None)

    @property
    def our_taint(self) -> Taint | None:
        """The out-of-service taint, if Kubekeeper put it there; the cloud provider puts its own."""
        return self.out_of_service if OWNER_ANNOTATION in self.annotations else None

    @property
    def is_shut_down(self) -> bool:
        """Whether the cloud provider says that its VM is off."""
        return any(taint.key == SHUTDOWN for taint in self.taints)


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """A Pod as far as volumes go. `claims` are names of PersistentVolumeClaims in its namespace."""

    namespace: str
    name: str
    uid: str = ""
    version: str = ""
    node: str = ""
    phase: str = "Running"
    claims: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    owner: str = ""
    """`StatefulSet/db`; "" for a bare pod."""
    created_at: datetime | None = None
    deleting_since: datetime | None = None
    unschedulable: str = ""
    """Message of condition PodScheduled while that is False."""

    @property
    def title(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def is_over(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A PersistentVolume; `handle` is the disk's resource id, in whatever case, or the share's handle."""

    name: str
    uid: str = ""
    driver: str = ""
    handle: str = ""
    phase: str = "Bound"
    claim_namespace: str = ""
    claim_name: str = ""
    claim_uid: str = ""
    storage_class: str = ""
    access_modes: tuple[str, ...] = ()
    reclaim_policy: str = "Delete"
    mount_options: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    attributes: dict[str, str] = {}

    @property
    def unique_name(self) -> str:
        """How a node's status names it."""
        return f"kubernetes.io/csi/{self.driver}^{self.handle}"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A PersistentVolumeClaim; `storage_class` is None when it names none (the default class applies)."""

    namespace: str
    name: str
    uid: str = ""
    phase: str = "Bound"
    volume: str = ""
    storage_class: str | None = None
    access_modes: tuple[str, ...] = ()
    created_at: datetime | None = None

    @property
    def title(self) -> str:
        return f"{self.namespace}/{self.name}"


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A VolumeAttachment. `volume` names a PersistentVolume; `lun` is that of attachmentMetadata."""

    name: str
    uid: str = ""
    version: str = ""
    driver: str = DISK_DRIVER
    node: str = ""
    volume: str = ""
    attached: bool = False
    deleting_since: datetime | None = None
    created_at: datetime | None = None
    finalizers: tuple[str, ...] = ()
    lun: int | None = None
    attach_error: str = ""
    detach_error: str = ""

    @property
    def is_deleting(self) -> bool:
        return self.deleting_since is not None


class CsiNode(msgspec.Struct, frozen=True, kw_only=True):
    """Drivers of a node with how many volumes each may attach; None when the driver sets no limit."""

    name: str
    drivers: dict[str, int | None] = {}


class StorageClass(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    provisioner: str
    parameters: dict[str, str] = {}
    mount_options: tuple[str, ...] = ()
    waits_for_consumer: bool = False
    zones: tuple[str, ...] = ()
    is_default: bool = False


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The newest of a series of Events on one object."""

    kind: str
    name: str
    reason: str
    message: str
    namespace: str = ""
    at: datetime | None = None

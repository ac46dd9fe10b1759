"""Every operation there is, the shape of its parameters, and who carries it out.

The names are a public contract. Handlers are `module:function` with `(cluster, parameters, clients, claim,
now) -> list[Outcome]`, imported when first used; `parameters` is an instance of the operation's own type.
Called by the dispatcher, the CLI and the generator of docs/reference/operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from shared.errors import MessageError
from shared.model.duration import Duration
from shared.runtime.automation import AUTOMATIONS
from shared.runtime.message import AutomationName

Text = Annotated[str, msgspec.Meta(max_length=500)]
BackupName = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class Parameters(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base of all; by itself: no parameters."""


class BackupParameters(Parameters, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Take a backup now, whatever the schedule says."""

    full: bool = False
    """Take a full backup even where an incremental would do."""
    reason: Text = ""
    """Why, for the journal; for example the upgrade that follows."""


class StoredBackupParameters(
    Parameters, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """Which stored backup."""

    backup: BackupName | None = None
    """Manifest name as `keeper backup list` prints it; the newest by default."""


class DefragParameters(Parameters, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Which member."""

    member: Text | None = None
    """Name of one member; all of them, one after the other, by default."""


class AutomationParameters(Parameters, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Which automation of the cluster."""

    automation: AutomationName = "etcd-backup"


class PauseParameters(
    AutomationParameters, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """Which automation of the cluster, and why."""

    reason: Text = ""


class ApproveParameters(Parameters, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What is approved: it is said where something waits for it, in `keeper plan` and the status page."""

    automation: AutomationName
    """Which automation of the cluster waits."""
    subject: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    """What waits: for ingress-sync the plan's `documentDigest`, for disk-release the node."""


class ReleaseDiskParameters(
    Parameters, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """Which disk, and whether its VM may be powered off for it."""

    disk: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    """Resource id of the managed disk, or the name of its PersistentVolume."""
    approve: bool = False
    """Approve the fence of the VM that holds it, where the policy asks for that."""


class SyncIngressParameters(
    Parameters, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """Compile and write now, without waiting for quiet or for a retry's time."""

    forget_refusals: bool = False
    """Also try again what Azure has refused, although it has not changed since."""


NodeName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]


class ScaleParameters(Parameters, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Which pool, how many nodes, for how long."""

    pool: Annotated[str, msgspec.Meta(min_length=1, max_length=260)]
    """Name of the node pool."""
    count: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Nodes it shall have, within its limits; without it the pool follows demand again."""
    expires: Duration | None = None
    """For so long; without it until another `scale`."""
    reason: Text = ""
    """Why, for the journal."""


class NodeParameters(Parameters, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Which node."""

    node: NodeName
    """Name of the Node object."""


class DrainParameters(NodeParameters, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Which node, and how patiently."""

    timeout: Duration = "15m"
    """The drain has failed when pods are left after this long; the node stays cordoned."""
    grace_seconds: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Longest grace period of a pod; its own when absent."""


class UpgradeParameters(Parameters, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Which pool, to what, and how carefully. With neither image nor version: its model as it stands."""

    pool: Annotated[str, msgspec.Meta(min_length=1, max_length=260)]
    """Name of the node pool."""
    image: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    """Scale and availability sets: `publisher:offer:sku:version` (not `latest`) or an image's id."""
    version: Annotated[str, msgspec.Meta(max_length=50)] = ""
    """AKS pools: the Kubernetes version; without it the newest node image of the version they have."""
    surge: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    """New machines at once beyond the pool's size, within its maximum; AKS pools have their own setting."""
    reimage: bool = False
    """Uniform scale sets: make machines anew in place, one at a time, instead of replacing them; the pool has
    one node less meanwhile, and data disks of the model stay.
    """
    timeout: Duration | None = None
    """Longest drain of one node; the policy's `scaleDown.drainTimeout` when absent."""
    backup: bool = True
    """Take an etcd backup first, where the cluster has backups."""
    discard_local_data: bool = False
    """Go on although data on local volumes, or on data disks of the model, is lost with its machine."""


@dataclass(frozen=True)
class Operation:
    """One entry of the catalogue."""

    name: str
    summary: str
    automation: str
    """Whose claim it runs under, unless a parameter `automation` says another."""
    handler: str
    parameters: type[Parameters] = Parameters
    patience: str = "30m"
    """How long somebody who waits for it may well have to; a duration."""


_AUTOSCALING = "shared.autoscaling.operations"
_ETCD = "shared.etcd_backup.operations"
_NODES = "shared.nodes.operations"
_INGRESS = "shared.ingress_sync.operations"
_DISKS = "shared.disk_release.operations"
_OWN = "shared.operations.handlers"

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(
            "scale",
            "Set the size of a node pool, or let it follow demand again.",
            "autoscaling",
            f"{_AUTOSCALING}:scale",
            ScaleParameters,
        ),
        Operation("backup", "Take an etcd backup now.", "etcd-backup", f"{_ETCD}:backup", BackupParameters),
        Operation(
            "verify-backup",
            "Read a stored backup back and prove it.",
            "etcd-backup",
            f"{_ETCD}:verify_backup",
            StoredBackupParameters,
        ),
        Operation(
            "restore-drill",
            "Restore a stored backup into a throw-away etcd and measure how long it takes.",
            "etcd-backup",
            f"{_ETCD}:restore_drill",
            StoredBackupParameters,
        ),
        Operation(
            "release-disk",
            "Free a disk held by a dead or wrong VM.",
            "disk-release",
            f"{_DISKS}:release_disk",
            ReleaseDiskParameters,
        ),
        Operation(
            "sync-ingress",
            "Compile and put the gateway's configuration.",
            "ingress-sync",
            f"{_INGRESS}:sync_ingress",
            SyncIngressParameters,
        ),
        Operation("cordon", "Mark a node unschedulable.", "autoscaling", f"{_NODES}:cordon", NodeParameters),
        Operation(
            "uncordon", "Mark a node schedulable.", "autoscaling", f"{_NODES}:uncordon", NodeParameters
        ),
        Operation("drain", "Evict the pods of a node.", "autoscaling", f"{_NODES}:drain", DrainParameters),
        Operation(
            "replace-node",
            "Replace a node by a new one of its pool: add, drain, delete.",
            "autoscaling",
            f"{_AUTOSCALING}:replace_node",
            NodeParameters,
            patience="2h",
        ),
        Operation(
            "rolling-upgrade",
            "Replace the nodes of a pool one after the other by ones of a new image or version.",
            "autoscaling",
            "shared.autoscaling.upgrade:rolling_upgrade",
            UpgradeParameters,
            patience="24h",
        ),
        Operation(
            "etcd-health",
            "Check quorum, leader, lag, database size and alarms of etcd.",
            "etcd-backup",
            f"{_ETCD}:etcd_health",
        ),
        Operation(
            "etcd-defrag",
            "Defragment etcd, one member at a time.",
            "etcd-backup",
            f"{_ETCD}:etcd_defrag",
            DefragParameters,
        ),
        Operation(
            "reconcile",
            "Run one pass of an automation now.",
            "etcd-backup",
            f"{_OWN}:reconcile",
            AutomationParameters,
        ),
        Operation(
            "approve",
            "Approve what waits for an operator.",
            "ingress-sync",
            f"{_OWN}:approve",
            ApproveParameters,
        ),
        Operation(
            "pause",
            "Let an automation rest on a cluster; one-off operations still run.",
            "etcd-backup",
            f"{_OWN}:pause",
            PauseParameters,
        ),
        Operation("resume", "End a pause.", "etcd-backup", f"{_OWN}:resume", AutomationParameters),
    )
}


def find(name: str) -> Operation:
    """The operation of that name; MessageError names the ones there are."""
    operation = OPERATIONS.get(name)
    if operation is None:
        raise MessageError(f"unknown operation '{name}'; there are: {', '.join(sorted(OPERATIONS))}")
    return operation


def read_parameters(operation: Operation, given: dict[str, Any]) -> Parameters:
    """The parameters as the operation's own type; MessageError says which one is wrong."""
    try:
        parameters = msgspec.convert(given, operation.parameters)
    except msgspec.ValidationError as error:
        known = ", ".join(field.encode_name for field in msgspec.structs.fields(operation.parameters))
        raise MessageError(
            f"parameters of operation '{operation.name}': {error}; it takes {known or 'none'}"
        ) from error
    automation = automation_of(operation, parameters)
    if automation not in AUTOMATIONS:
        raise MessageError(f"unknown automation '{automation}'; there are: {', '.join(sorted(AUTOMATIONS))}")
    return parameters


def automation_of(operation: Operation, parameters: Parameters) -> str:
    """The automation whose claim the operation runs under."""
    return getattr(parameters, "automation", operation.automation)

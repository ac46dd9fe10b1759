"""Every operation there is, the shape of its parameters, and who carries it out.

The names are a public contract; those without a handler are not built yet and are
refused with one line. Handlers are `module:function` with `(cluster, parameters, clients, claim, now)
-> list[Outcome]`, imported when first used; `parameters` is an instance of the operation's own type. Called
by the dispatcher, the CLI and the generator of docs/reference/operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from shared.errors import MessageError
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


@dataclass(frozen=True)
class Operation:
    """One entry of the catalogue."""

    name: str
    summary: str
    automation: str
    """Whose claim it runs under, unless a parameter `automation` says another."""
    handler: str | None = None
    parameters: type[Parameters] = Parameters

    @property
    def is_built(self) -> bool:
        """Whether it can be carried out."""
        return self.handler is not None


_ETCD = "shared.etcd_backup.operations"
_OWN = "shared.operations.handlers"

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("scale", "Set the size of a node pool.", "autoscaling"),
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
        Operation("release-disk", "Free a disk held by a dead or wrong VM.", "disk-release"),
        Operation("sync-ingress", "Compile and put the gateway's configuration.", "ingress-sync"),
        Operation("cordon", "Mark a node unschedulable.", "autoscaling"),
        Operation("uncordon", "Mark a node schedulable.", "autoscaling"),
        Operation("drain", "Evict the pods of a node.", "autoscaling"),
        Operation("replace-node", "Replace a node by a new one.", "autoscaling"),
        Operation("rolling-upgrade", "Replace the nodes of a pool one after the other.", "autoscaling"),
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
        Operation("approve", "Approve a plan that waits for it.", "autoscaling"),
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
    """The operation of that name, built; MessageError names the ones there are."""
    operation = OPERATIONS.get(name)
    if operation is None:
        raise MessageError(f"unknown operation '{name}'; there are: {', '.join(sorted(OPERATIONS))}")
    if not operation.is_built:
        built = ", ".join(sorted(o.name for o in OPERATIONS.values() if o.is_built))
        raise MessageError(
            f"operation '{name}' is not built yet; use: {built}"
        )
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

"""Which automations there are, and what nudges them; one table for triggers and CLI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

from shared.errors import MessageError, SettingsError

if TYPE_CHECKING:
    from datetime import datetime

    from shared.bootstrap import Clients
    from shared.model.plan import Outcome
    from shared.runtime.claim import Claim
    from shared.settings import Cluster, Settings

    Reconcile = Callable[[Cluster, Clients, Claim, datetime], list[Outcome]]


def in_scope(cluster: Cluster, resource_id: str) -> bool:
    """Whether a resource (lower case) is one of the cluster's: in its groups, or its managed cluster."""
    scope = cluster.azure
    if scope is None:
        return False
    groups = [f"/subscriptions/{scope.subscription}/resourcegroups/{name}" for name in scope.resource_groups]
    if scope.managed_cluster:
        groups.append(scope.managed_cluster)
    return any(f"{resource_id}/".startswith(f"{place.lower()}/") for place in groups)


@dataclass(frozen=True)
class Automation:
    """One automation. Its name is also that of its queue, and of its entry in plans and the journal."""

    name: str
    title: str
    """As in event types: `Kubekeeper.<title>.<what happened>`."""
    package: str
    """Where its story is told; by convention it has `reconcile`, `observation` and `decide`."""
    reconcile: str
    """`module:function`, imported when first needed."""
    is_configured: Callable[[Cluster], bool] = lambda _cluster: False
    events: frozenset[str] = frozenset()
    """Types of incoming events that are a reason to look."""
    operations: frozenset[str] = frozenset()
    """Operations of Azure Resource Manager that are one, as its events name them."""
    is_about: Callable[[Cluster, str], bool] = in_scope
    """Whether what happens to that resource (lower case) is this automation's business in the cluster."""
    settle: timedelta | None = None
    """Passes may begin closer together than the app setting KUBEKEEPER_SETTLE says: this far apart."""


def _is_gateway(cluster: Cluster, resource_id: str) -> bool:
    return cluster.ingress_sync is not None and cluster.ingress_sync.gateway.lower() == resource_id


_MACHINE_HEALTH = frozenset(
    {
        "Microsoft.ResourceNotifications.HealthResources.AvailabilityStatusChanged",
        "Microsoft.ResourceNotifications.HealthResources.ResourceAnnotated",
    }
)
_MACHINES_GO = frozenset(
    {
        "Microsoft.Compute/virtualMachines/write",
        "Microsoft.Compute/virtualMachines/delete",
        "Microsoft.Compute/virtualMachines/deallocate/action",
        "Microsoft.Compute/virtualMachines/start/action",
        "Microsoft.Compute/virtualMachineScaleSets/delete",
        "Microsoft.Compute/virtualMachineScaleSets/delete/action",
        "Microsoft.Compute/virtualMachineScaleSets/deallocate/action",
        "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/delete",
        "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/deallocate/action",
    }
)
"""Capacity comes or goes, and with it whoever holds a disk."""

AUTOMATIONS = {
    automation.name: automation
    for automation in (
        Automation(
            name="autoscaling",
            title="Autoscaling",
            package="shared.autoscaling",
            reconcile="shared.autoscaling.reconcile:reconcile",
            is_configured=lambda cluster: cluster.autoscaling is not None and cluster.autoscaling.enabled,
            events=_MACHINE_HEALTH
            | {
                "Kubekeeper.Cluster.PodUnschedulable",
                "Microsoft.ContainerService.NodePoolRollingStarted",
                "Microsoft.ContainerService.NodePoolRollingSucceeded",
                "Microsoft.ContainerService.NodePoolRollingFailed",
            },
            operations=_MACHINES_GO
            | {
                "Microsoft.Compute/virtualMachineScaleSets/write",
                "Microsoft.ContainerService/managedClusters/agentPools/write",
                "Microsoft.ContainerService/managedClusters/agentPools/delete",
            },
        ),
        Automation(
            name="etcd-backup",
            title="EtcdBackup",
            package="shared.etcd_backup",
            reconcile="shared.etcd_backup.reconcile:reconcile",
            is_configured=lambda cluster: (
                cluster.etcd is not None and cluster.etcd_backup is not None and cluster.etcd_backup.enabled
            ),
            events=frozenset({"Kubekeeper.Cluster.EtcdUnhealthy"}),
        ),
        Automation(
            name="disk-release",
            title="DiskRelease",
            package="shared.disk_release",
            reconcile="shared.disk_release.reconcile:reconcile",
            is_configured=lambda cluster: cluster.disk_release is not None and cluster.disk_release.enabled,
            events=_MACHINE_HEALTH
            | {"Kubekeeper.Cluster.VolumeAttachFailed", "Kubekeeper.Cluster.NodeNotReady"},
            operations=_MACHINES_GO
            | {
                "Microsoft.Compute/virtualMachines/powerOff/action",
                "Microsoft.Compute/virtualMachineScaleSets/powerOff/action",
                "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/write",
                "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/powerOff/action",
                "Microsoft.Compute/disks/write",
                "Microsoft.Compute/disks/delete",
            },
        ),
        Automation(
            name="ingress-sync",
            title="IngressSync",
            package="shared.ingress_sync",
            reconcile="shared.ingress_sync.reconcile:reconcile",
            is_configured=lambda cluster: cluster.ingress_sync is not None and cluster.ingress_sync.enabled,
            # It gathers bursts itself (`ingressSync.quiet`), by looking again after so long.
            settle=timedelta(seconds=1),
            events=frozenset({"Kubekeeper.Cluster.IngressChanged", "Kubekeeper.Cluster.EndpointsChanged"}),
            operations=frozenset(
                {
                    "Microsoft.Network/applicationGateways/write",
                    "Microsoft.Network/applicationGateways/delete",
                    "Microsoft.Network/applicationGateways/start/action",
                    "Microsoft.Network/applicationGateways/stop/action",
                }
            ),
            is_about=_is_gateway,
        ),
    )
}


FORWARDER = "Kubekeeper.Cluster."
"""How the types of the forwarder's events begin."""
FORWARDED = frozenset(
    kind.removeprefix(FORWARDER)
    for automation in AUTOMATIONS.values()
    for kind in automation.events
    if kind.startswith(FORWARDER)
)
"""Reasons of nudges that came from a forwarder, whichever way."""


def schedule_setting(automation: str) -> str:
    """The app setting with the NCRONTAB schedule of an automation's timer."""
    return f"KUBEKEEPER_{automation.upper().replace('-', '_')}_SCHEDULE"


def find(name: str) -> Automation:
    """The automation of that name; MessageError names the ones there are."""
    automation = AUTOMATIONS.get(name)
    if automation is None:
        raise MessageError(f"unknown automation '{name}'; there are: {', '.join(sorted(AUTOMATIONS))}")
    return automation


def configured(automation: Automation, settings: Settings) -> tuple[Cluster, ...]:
    """The clusters an automation looks after."""
    return tuple(cluster for cluster in settings.clusters if automation.is_configured(cluster))


def require_configured(automation: Automation, cluster: Cluster) -> None:
    """SettingsError when the cluster's configuration does not ask for this automation."""
    if not automation.is_configured(cluster):
        raise SettingsError(
            f"cluster '{cluster.name}' is not configured for {automation.name}; add it to the configuration"
        )


def load(path: str) -> Any:
    """The function behind `module:function`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)

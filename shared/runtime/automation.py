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
    settle: timedelta | None = None
    """Passes may begin closer together than the app setting KUBEKEEPER_SETTLE says: this far apart."""


AUTOMATIONS = {
    automation.name: automation
    for automation in (
        Automation(
            name="autoscaling",
            title="Autoscaling",
            package="shared.autoscaling",
            reconcile="shared.autoscaling.reconcile:reconcile",
            is_configured=lambda cluster: cluster.autoscaling is not None and cluster.autoscaling.enabled,
            events=frozenset({"Kubekeeper.Cluster.PodUnschedulable"}),
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
            events=frozenset(
                {"Kubekeeper.Cluster.VolumeAttachFailed", "Kubekeeper.Cluster.NodeNotReady"},
            ),
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
        ),
    )
}


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

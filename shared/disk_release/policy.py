"""The limits an operator may set for releasing disks of one cluster; pure values with defaults.

Every field is a key under `diskRelease` in kubekeeper.yaml (camelCase). Durations are strings (`60s`), parsed
by `shared.model.duration`; `Limits` has them as `timedelta`.
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from typing import Annotated, Literal

import msgspec

from shared.model.duration import Duration, parse_duration

Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]

FencePermission = Literal["allowed", "approve", "never"]
FenceMethod = Literal["powerOff", "deallocate"]


PRICES_PER_GIB_MONTH = {
    "Standard_LRS": 0.04,
    "StandardSSD_LRS": 0.075,
    "StandardSSD_ZRS": 0.11,
    "Premium_LRS": 0.13,
    "Premium_ZRS": 0.2,
    "PremiumV2_LRS": 0.08,
    "UltraSSD_LRS": 0.12,
}


class DiskReleasePolicy(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """What an operator decides about releasing disks of one cluster."""

    enabled: bool = True
    """`false` stops everything here for this cluster; to rest for a while, use the operation `pause`."""
    dry_run: bool = False
    """Plans are made, recorded and shown, and nothing is carried out."""
    fence: FencePermission = "approve"
    """Whether a VM that runs while its node is dead may be powered off: `allowed` at any time, `approve` only
    after the operation `approve` for that node, or `never`. VMs already off need no permission."""
    fence_with: FenceMethod = "powerOff"
    """How to fence. `deallocate` gives up the machine's place, and is safe too."""
    grace: Duration = "60s"
    """A node must have been NotReady, and its lease not renewed, for this long before its VM is fenced."""
    grace_of_pools: dict[str, Duration] = {}
    """Grace by name of node pool (label `agentpool`), instead of `grace`."""
    exclude: tuple[str, ...] = ()
    """Labels, `key=value` or `key`: pods that carry one, and the VMs they run on, are left alone."""
    fences_per_window: Annotated[int, msgspec.Meta(ge=0)] = 2
    """VMs fenced within `fenceWindow` at most; more than that looks like a mistake."""
    fence_window: Duration = "15m"
    """See `fencesPerWindow`."""
    max_fenced_percent: Percent = 50
    """Of the nodes of one pool, and of one zone, at most this many are fenced within `fenceWindow`; one may
    always be."""
    freeze_above_percent: Percent = 50
    """When more than this many of the nodes are NotReady, nothing new is begun: from here that looks like a
    partition, not like dead machines."""
    absence_gap: Duration = "30s"
    """A VM is gone only when two reads at least this far apart found nothing."""
    freshness: Duration = "15s"
    """Evidence older than this carries no write."""
    fence_timeout: Duration = "2m"
    """A fence not confirmed within this is reported."""
    detach_after: Duration = "90s"
    """How long after the taint the cluster's own controllers have before Kubekeeper detaches itself."""
    detach_timeout: Duration = "4m"
    """How long a plain detach, anybody's, has before it counts as failed (the disk driver waits as long)."""
    force: bool = True
    """Use ForceDetach after a fence and a plain detach that failed or exceeded `detachTimeout`."""
    kubernetes_deadline: Duration = "8m"
    """How long Kubernetes may take for what it does by itself (its unmount timeout is 6 minutes)."""
    zombie_age: Duration = "10m"
    """An attachment that nothing in Kubernetes knows is detached when its owner changed this long ago."""
    taint_max: Duration = "30m"
    """The taint goes at the latest after this when nothing in flight owns it."""
    release_window: Duration = "10m"
    """The same disk is not released twice within this."""
    repair: bool = False
    """Reapply a VM in failed state whose data disks cannot be written."""
    shared_disks: bool = False
    """Release the dead member of a shared disk (maxShares above 1); reservations are the application's."""
    untagged_disks: bool = False
    """Release disks that no PersistentVolume and no tag of this cluster names."""
    remove_finalizers: bool = True
    """Remove the attacher's finalizer where it can never do so itself, under proof."""
    break_leases: bool = False
    """Unmanaged disks: break the lease of a blob whose machine is gone, after a snapshot of it."""
    prices_per_gib_month: dict[str, float] = msgspec.field(default_factory=PRICES_PER_GIB_MONTH.copy)
    """What a GiB of a disk costs for a month, by SKU; for the report on disks nobody claims. List prices are
    rough and differ by region: set your own."""

    @property
    def limits(self) -> Limits:
        """The durations, parsed."""
        return _limits(
            self.grace,
            self.fence_window,
            self.absence_gap,
            self.freshness,
            self.fence_timeout,
            self.detach_after,
            self.detach_timeout,
            self.kubernetes_deadline,
            self.zombie_age,
            self.taint_max,
            self.release_window,
        )

    def grace_of(self, pool: str) -> timedelta:
        """How long a node of that pool must have been NotReady."""
        return parse_duration(self.grace_of_pools.get(pool, self.grace))


class Limits(msgspec.Struct, frozen=True):
    """The policy's durations as `timedelta`; names as in the policy."""

    grace: timedelta
    fence_window: timedelta
    absence_gap: timedelta
    freshness: timedelta
    fence_timeout: timedelta
    detach_after: timedelta
    detach_timeout: timedelta
    kubernetes_deadline: timedelta
    zombie_age: timedelta
    taint_max: timedelta
    release_window: timedelta


@lru_cache(maxsize=64)
def _limits(*durations: str) -> Limits:
    return Limits(*(parse_duration(duration) for duration in durations))

"""The limits an operator may set for autoscaling of one cluster; pure values with defaults.

Every field is a key under `autoscaling` in kubekeeper.yaml (camelCase). Durations are strings (`10m`),
quantities are strings as in Kubernetes (`500m`, `1Gi`). A pool is taken over by naming it under `pools` or
by cluster-autoscaler's tags `min` and `max` on its scale set or machines; what stands under `pools` wins.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from shared.model.duration import Duration

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Price = Annotated[float, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(min_length=1)]
Strategy = Literal["priority", "price", "least-waste", "least-nodes"]


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What every part of the policy is: camelCase keys, no unknown ones."""


class Taint(_Part, frozen=True, kw_only=True):
    """A taint that nodes of a pool will carry."""

    key: Name
    """The taint's key."""
    value: str = ""
    """Its value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    """What it does to pods that do not tolerate it."""


class Toleration(_Part, frozen=True, kw_only=True):
    """A toleration of spare capacity, as in a pod."""

    key: str = ""
    """The taint's key; empty with `Exists` tolerates every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Whether the value matters."""
    value: str = ""
    """The taint's value."""
    effect: str = ""
    """The taint's effect; empty means any."""


class PoolPolicy(_Part, frozen=True, kw_only=True):
    """One node pool. Without a value here a limit comes from the pool's tags, then from `poolDefaults`."""

    name: Name
    """The pool as Azure calls it: scale set, AKS agent pool, or the `poolName` tag of machines."""
    min: Count | None = None
    """Never fewer nodes than this; 0 lets the pool go to nothing."""
    max: Count | None = None
    """Never more nodes than this."""
    priority: int = 0
    """Under the strategy `priority`: pools with higher numbers are used first."""
    price_per_hour: Price | None = None
    """Cost of one node per hour, in any one currency; overrides `prices`."""
    labels: dict[str, str] = {}
    """Labels its nodes will have, when there is no node to copy and no tag says so."""
    taints: tuple[Taint, ...] = ()
    """Taints its nodes will have, likewise."""
    resources: dict[str, str] = {}
    """Allocatable resources of its nodes that neither a live node nor the size tells, such as
    `example.com/fpga: "2"`.
    """
    max_pods: Positive | None = None
    """Pods a node holds; needed for pools at zero whose size cannot be seen (30 with Azure CNI, 110 with
    kubenet).
    """
    whole: bool = False
    """The pool is used as a whole: its size is 0 or `max`, nothing between."""
    scale_down: bool = True
    """`false`: nodes of this pool are never removed."""
    utilization_threshold: Fraction | None = None
    """Overrides `scaleDown.utilizationThreshold` for this pool."""
    unneeded_time: Duration | None = None
    """Overrides `scaleDown.unneededTime` for this pool."""
    provision_timeout: Duration | None = None
    """Overrides `scaleUp.provisionTimeout` for this pool, for sizes that boot slowly."""
    custom_data: str = ""
    """`file:/path` or `setting:NAME` of the cloud-init of its machines, base64. Only for machines in
    availability sets, whose own Azure does not tell: without it a new machine boots but never joins.
    """


class PoolDefaults(_Part, frozen=True, kw_only=True):
    """Limits of a pool that states none."""

    min: Count = 0
    """Fewest nodes."""
    max: Count = 100
    """Most nodes."""


class Backoff(_Part, frozen=True, kw_only=True):
    """How long a pool rests after Azure refused it. A second refusal in a row doubles the time."""

    stock_out: Duration = "10m"
    """Azure has no such machines now (AllocationFailed, SkuNotAvailable, ZonalAllocationFailed)."""
    quota: Duration = "15m"
    """The subscription's quota is used up although usages said otherwise."""
    throttled: Duration = "1m"
    """Too many requests, when Azure does not say for how long; nothing is wrong with the pool."""
    other: Duration = "5m"
    """Any other failure."""
    longest: Duration = "1h"
    """Doubling ends here."""


class ScaleUpPolicy(_Part, frozen=True, kw_only=True):
    """When and where nodes are added."""

    enabled: bool = True
    """`false` keeps pods pending; they are still explained."""
    strategy: tuple[Strategy, ...] = ("priority", "price", "least-waste")
    """What decides between pools, the first that tells them apart; prices count when they are known for
    every pool in question.
    """
    balance: bool = False
    """Spread new nodes over pools that differ in name and zone only."""
    spot_fallback: bool = True
    """A spot pool without capacity is replaced at once by an on-demand pool that fits."""
    min_priority: int = -10
    """Pods of lower priority never cause new nodes: they use what is spare."""
    pod_age: Duration = "0s"
    """A pod waits this long before it causes a new node."""
    max_per_run: Positive = 1000
    """New nodes of one run."""
    max_per_hour: Positive = 2000
    """New nodes within any hour, failed ones included: what a mistake can cost."""
    provision_timeout: Duration = "15m"
    """An instance that is no Ready node after this long has failed and is replaced."""
    backoff: Backoff = Backoff()
    """Rest of a pool after a failure."""


class ConsolidationPolicy(_Part, frozen=True, kw_only=True):
    """Replace nodes by cheaper or fewer ones although their pods have no other home yet."""

    enabled: bool = False
    """Off by default: it moves pods that run well."""
    min_saving: Fraction = 0.2
    """Part of the replaced nodes' cost that must be saved; below it nothing moves."""


class ScaleDownPolicy(_Part, frozen=True, kw_only=True):
    """When nodes are removed. A node goes only if every pod on it has another home in simulation."""

    enabled: bool = True
    """`false` never removes a node that works."""
    utilization_threshold: Fraction = 0.5
    """A node is a candidate when requests use less than this part of its cpu and of its memory; DaemonSet
    pods do not count. Nodes with GPUs are judged by their GPUs alone.
    """
    unneeded_time: Duration = "10m"
    """For so long it must have been a candidate without interruption."""
    unready_time: Duration = "20m"
    """A node that is NotReady for so long is removed."""
    delay_after_add: Duration = "10m"
    """Nothing is removed for so long after nodes were added to the cluster."""
    delay_after_failure: Duration = "3m"
    """Nothing is removed for so long after a removal failed."""
    max_per_run: Positive = 10
    """Nodes removed in one run that must be drained; empty ones do not count."""
    max_empty_per_run: Positive = 100
    """Empty nodes removed in one run."""
    max_per_hour: Positive = 500
    """Nodes removed within any hour: what a mistake can cost."""
    skip_system_pods: bool = True
    """Keep nodes with pods of kube-system that are neither of a DaemonSet nor covered by a budget."""
    skip_local_storage: bool = True
    """Keep nodes with pods that use emptyDir or hostPath and are not marked safe to evict."""
    skip_unmanaged_pods: bool = True
    """Keep nodes with pods that nothing would create again."""
    drain_timeout: Duration = "15m"
    """A drain that takes longer is given up: the node is uncordoned."""
    max_grace_period: Duration = "10m"
    """Pods get their own grace period, but no longer than this."""
    consolidation: ConsolidationPolicy = ConsolidationPolicy()
    """Replacing nodes by cheaper ones."""


class Headroom(_Part, frozen=True, kw_only=True):
    """Spare capacity, planned as virtual pods that give way to real ones."""

    name: Name
    """Shown in plans."""
    count: Positive = 1
    """How many such places."""
    requests: dict[str, str] = msgspec.field(default_factory=lambda: {"cpu": "1", "memory": "1Gi"})
    """What one place holds."""
    node_selector: dict[str, str] = {}
    """Labels of nodes that may hold it."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints it passes."""
    priority: int = -1
    """Among pods: lower ones are planned last. Below `scaleUp.minPriority` it adds no nodes."""


class Schedule(_Part, frozen=True, kw_only=True):
    """A minimum size of a pool during windows of time."""

    name: Name
    """Shown in plans."""
    pool: Name
    """The pool, by name."""
    start: Name
    """Cron, five fields, in `timeZone`: when a window opens."""
    duration: Duration
    """How long a window stays open."""
    time_zone: str = "UTC"
    """IANA name, such as `Europe/Berlin`; daylight saving time is respected."""
    min_nodes: Count
    """At least so many nodes while a window is open; never above the pool's `max`."""


class MetricRule(_Part, frozen=True, kw_only=True):
    """So many nodes as a measured value asks for: ceil(value / targetPerNode), as HPA does for pods.

    `query` by source: prometheus, a PromQL instant query; metrics-server, `cpu` (cores) or `memory` (bytes),
    summed over the pool's nodes; azure-monitor, the metric's name on `resource`; queue, the queue's name in
    the storage account `resource` (its resource id), value = messages.
    """

    name: Name
    """Identifies the rule in state, snapshots and plans."""
    source: Literal["prometheus", "metrics-server", "azure-monitor", "queue"]
    """Where the value comes from."""
    query: Name
    """What is asked there."""
    endpoint: str = ""
    """prometheus only: base URL, `https://...`."""
    resource: str = ""
    """azure-monitor and queue only: Azure resource id."""
    aggregation: Literal["Average", "Maximum", "Minimum", "Total", "Count"] = "Average"
    """azure-monitor only."""
    pool: Name
    """The pool that follows."""
    target_per_node: Annotated[float, msgspec.Meta(gt=0)]
    """The value one node is to carry."""
    tolerance: Fraction = 0.1
    """Differences from the target smaller than this part change nothing."""
    scale_up_window: Duration = "0s"
    """The smallest wish within this time counts when growing."""
    scale_down_window: Duration = "5m"
    """The largest wish within this time counts when shrinking."""
    stale_after: Duration = "5m"
    """An older reading is not believed: the last wish stands until it leaves the window."""
    min_nodes: Count = 0
    """Never asks for fewer."""
    max_nodes: Positive | None = None
    """Never asks for more."""


class QuotaPolicy(_Part, frozen=True, kw_only=True):
    """What is known about the subscription's limits before asking for machines."""

    enabled: bool = True
    """`false` ignores usages and asks anyway."""
    reserve_vcpus: Count = 0
    """vCPUs of every quota left to others."""


class AutoscalingPolicy(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """What an operator decides about the agents of one cluster."""

    enabled: bool = True
    """`false` stops everything here for this cluster; to rest for a while, use the operation `pause`."""
    discover: bool = True
    """Take over pools that carry cluster-autoscaler's tags `min` and `max`, and AKS pools; `false`: only
    those under `pools`.
    """
    pools: tuple[PoolPolicy, ...] = ()
    """Pools by name, with what differs from their tags."""
    pool_defaults: PoolDefaults = PoolDefaults()
    """Limits of pools that state none."""
    scale_up: ScaleUpPolicy = ScaleUpPolicy()
    """Adding nodes."""
    scale_down: ScaleDownPolicy = ScaleDownPolicy()
    """Removing nodes."""
    max_nodes: Positive = 5000
    """Nodes of the whole cluster, the unmanaged ones included."""
    max_cpu: str = ""
    """Cores of the whole cluster, a quantity; no limit when empty."""
    max_memory: str = ""
    """Memory of the whole cluster, a quantity; no limit when empty."""
    freeze_not_ready_fraction: Fraction = 0.45
    """When a larger part of the nodes is NotReady, nothing is added or removed: it looks like a partition."""
    freeze_not_ready_count: Count = 3
    """... unless they are at most so many."""
    headroom: tuple[Headroom, ...] = ()
    """Spare capacity."""
    schedules: tuple[Schedule, ...] = ()
    """Minimum sizes at certain times."""
    metrics: tuple[MetricRule, ...] = ()
    """Pools that follow a measured value."""
    quota: QuotaPolicy = QuotaPolicy()
    """Limits of the subscription."""
    prices: dict[str, Price] = {}
    """Cost per hour by size, `Standard_D4s_v5: 0.192`, spot as `Standard_D4s_v5/spot`; overrides retail
    prices.
    """
    retail_prices: bool = False
    """Read Azure's public retail prices for the sizes in use."""

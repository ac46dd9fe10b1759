"""What a pool's next node will be like, and which nodes are a pool's; pure.

A template is copied from a live node of the pool. For a pool without one it is made from the size: nominal
memory less what the hypervisor keeps, less what AKS reserves for the kubelet and the system (the formula is
published and generous, so it serves clusters of other makers too; capacity is never taken as allocatable).
Labels, taints and resources of tags and policy come on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise

import msgspec

from shared.autoscaling.board import ENDLESS
from shared.autoscaling.facts import Facts, Pool, PoolKind, Size
from shared.model.node import HOSTNAME, REGION, ZONE, Node, Taint
from shared.model.pod import PodShape

DISK_ZONE = "topology.disk.csi.azure.com/zone"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
AGENT_POOL_LABELS = ("kubernetes.azure.com/agentpool", "agentpool")
DISK_DRIVER = "disk.csi.azure.com"

PASSING_TAINTS = frozenset(
    {
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
        "node.kubernetes.io/unschedulable",
        "node.kubernetes.io/memory-pressure",
        "node.kubernetes.io/disk-pressure",
        "node.kubernetes.io/pid-pressure",
        "node.kubernetes.io/network-unavailable",
        "node.kubernetes.io/out-of-service",
        "node.cloudprovider.kubernetes.io/uninitialized",
        "node.cloudprovider.kubernetes.io/shutdown",
        "kubekeeper.io/to-be-deleted",
        "ToBeDeletedByClusterAutoscaler",
        "DeletionCandidateOfClusterAutoscaler",
    }
)
"""Taints that tell of a node's moment, not of its pool."""

VOLUMES = "attachable-volumes/"
"""Begins the name of the resource that counts a driver's volumes on a node."""

GIB, MIB = 1 << 30, 1 << 20
HYPERVISOR = 0.075
"""Part of the nominal memory that a machine does not see (Azure/karpenter-provider-azure, its options)."""
EVICTION = 100 * MIB
RESERVED_MILLICORES = ((1, 60), (2, 100), (4, 140), (8, 180), (16, 260), (32, 420), (64, 740))
"""AKS, "Resource reservations": by the number of cores."""
USUAL_PODS = 110
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """A pool's next node, but for its zone. `node.allocatable` is what is free once the DaemonSets run.

    `trouble`: why nothing can be said about it; then there is no use in the pool.
    """

    node: Node
    zones: tuple[str, ...] = ()
    """Values of the zone label that a new node may have; empty when it has none."""
    trouble: str = ""


def machine_of(provider_id: str) -> str:
    """The resource id in a Node's providerID, lower case; empty for a node of another provider."""
    scheme, _, rest = provider_id.partition("://")
    return rest.lower() if scheme == "azure" else ""


def pool_nodes(pools: Sequence[Pool], nodes: Iterable[Node]) -> dict[str, list[Node]]:
    """Nodes of each pool, by the pool's id, in the order of the nodes."""
    owners = {machine.id: pool.id for pool in pools for machine in pool.machines}
    by_name = {pool.name: pool.id for pool in pools if pool.kind is PoolKind.AGENT_POOL}
    sets = {pool.id for pool in pools if pool.kind is PoolKind.SCALE_SET}
    found: dict[str, list[Node]] = {pool.id: [] for pool in pools}
    for node in nodes:
        owner = _labelled(node, by_name) if by_name else None
        if owner is None:
            machine = machine_of(node.provider_id)
            parent = machine.rpartition("/virtualmachines/")[0]
            owner = owners.get(machine) or (parent if parent in sets else None)
        if owner:
            found[owner].append(node)
    return found


def _labelled(node: Node, by_name: Mapping[str, str]) -> str | None:
    """The agent pool that the node's labels name."""
    labels = node.labels
    return next((by_name[v] for k in AGENT_POOL_LABELS if (v := labels.get(k, "")) in by_name), None)


def template_of(
    pool: Pool, own: Sequence[Node], facts: Facts, daemons: Iterable[PodShape], usual_pods: int
) -> Template:
    """What the pool's next node will be like; `usual_pods` is how many pods a node of this cluster holds."""
    size = facts.size(pool)
    model = _model(own, pool)
    if model is None and (size is None or not size.vcpus):
        node = Node(name=f"new node of {pool.name}")
        what = f"no node to copy, and size '{pool.size or 'unknown'}' is not in Azure's list"
        return Template(node=node, trouble=f"it is not known what its nodes are like: {what}")
    node = _copied(model, pool) if model else _made(pool, size, usual_pods)  # type: ignore[arg-type]
    free = dict(node.allocatable)
    for shape in daemons:
        if _runs_on(shape, node):
            free["pods"] = free.get("pods", 0) - 1
            for name, amount in shape.spec.requests.items():
                free[name] = free.get(name, 0) - amount
    return Template(node=msgspec.structs.replace(node, allocatable=free), zones=_zones(pool, size, model))


def in_zone(template: Template, zone: str) -> Node:
    """The template as a node of that zone."""
    if not zone:
        return template.node
    labels = {**template.node.labels, ZONE: zone}
    if DISK_ZONE in labels or DISK_DRIVER in template.node.volume_limits:
        labels[DISK_ZONE] = zone if "-" in zone else ""  # a fault domain is no zone to a disk
    return msgspec.structs.replace(template.node, labels=labels)


def free_of(node: Node, resources: Iterable[str]) -> Mapping[str, int]:
    """What an empty node has; of `resources`, volumes of drivers without a known limit are not limited."""
    limits = node.volume_limits
    volumes = {
        name: limits.get(name.removeprefix(VOLUMES), ENDLESS)
        for name in resources
        if name.startswith(VOLUMES)
    }
    return {**node.allocatable, **volumes} if volumes else node.allocatable


def _model(own: Sequence[Node], pool: Pool) -> Node | None:
    """The youngest node of the pool that works and is of its present size."""
    fit = [
        node
        for node in own
        if node.is_ready
        and not node.is_going
        and node.allocatable.get("cpu")
        and node.labels.get(INSTANCE_TYPE, pool.size).lower() in (pool.size.lower(), "")
    ]
    return max(fit, key=lambda node: (node.created_at or _LONG_AGO, node.name), default=None)


def _copied(model: Node, pool: Pool) -> Node:
    own = {HOSTNAME, ZONE, DISK_ZONE}
    labels = {key: value for key, value in model.labels.items() if key not in own}
    if DISK_ZONE in model.labels:
        labels[DISK_ZONE] = ""
    taints = [taint for taint in model.taints if taint.key not in PASSING_TAINTS]
    return Node(
        name=f"new node of {pool.name}",
        labels={**labels, **pool.labels},
        taints=tuple(dict.fromkeys((*taints, *pool.taints))),
        allocatable={**model.allocatable, **pool.resources},
        volume_limits=model.volume_limits,
    )


def _made(pool: Pool, size: Size, usual_pods: int) -> Node:
    pods = pool.max_pods or usual_pods
    allocatable = {
        "cpu": max(0, size.vcpus * 1000 - reserved_millicores(size.vcpus)),
        "memory": allocatable_memory(size.memory_gib, pods),
        "pods": pods,
        "ephemeral-storage": int((pool.os_disk_gib or 30) * GIB * 0.85),
    }
    if size.gpus:
        allocatable["nvidia.com/gpu"] = size.gpus
    labels = {
        "kubernetes.io/os": pool.os or "linux",
        "kubernetes.io/arch": "arm64" if size.architecture.lower() == "arm64" else "amd64",
        INSTANCE_TYPE: pool.size,
        REGION: pool.location,
        DISK_ZONE: "",
    }
    return Node(
        name=f"new node of {pool.name}",
        labels={**labels, **pool.labels},
        taints=pool.taints,
        allocatable={**allocatable, **pool.resources},
        volume_limits={DISK_DRIVER: size.max_data_disks} if size.max_data_disks else {},
    )


def reserved_millicores(cores: int) -> int:
    """What AKS reserves of so many cores; between the steps of its table, in proportion."""
    if cores >= RESERVED_MILLICORES[-1][0]:
        return RESERVED_MILLICORES[-1][1]
    for (low, less), (high, more) in pairwise(RESERVED_MILLICORES):
        if cores <= low:
            return less
        if cores < high:
            return less + (more - less) * (cores - low) // (high - low)
    return RESERVED_MILLICORES[-1][1]


def allocatable_memory(nominal_gib: float, pods: int) -> int:
    """Bytes that pods may ask for: AKS 1.29 and later reserve 20 MiB for each pod and 50 MiB, at most a
    quarter, and 100 MiB below which the kubelet evicts.
    """
    seen = int(nominal_gib * GIB * (1 - HYPERVISOR))
    return max(0, seen - min((20 * pods + 50) * MIB, int(nominal_gib * GIB) // 4) - EVICTION)


def _zones(pool: Pool, size: Size | None, model: Node | None) -> tuple[str, ...]:
    """Values of the zone label, as Azure's cloud provider writes them: `westeurope-1`."""
    closed = set(size.restricted_zones) if size else set()
    open_zones = [zone for zone in pool.zones if zone not in closed]
    if open_zones:
        return tuple(f"{pool.location}-{zone}" if zone.isdigit() else zone for zone in sorted(open_zones))
    if pool.zones:
        return ()
    return (model.zone,) if model and model.zone else ("0",)


def _runs_on(shape: PodShape, node: Node) -> bool:
    """Whether a DaemonSet puts a pod on such a node."""
    labels, spec = node.labels, shape.spec
    if any(labels.get(key) != value for key, value in spec.node_selector):
        return False
    if spec.node_terms is not None and not any(term.matches(labels, node.name) for term in spec.node_terms):
        return False
    return all(_passes(spec.tolerations, taint) for taint in node.taints)


def _passes(tolerations: Iterable[object], taint: Taint) -> bool:
    return not taint.repels or any(one.tolerates(taint) for one in tolerations)  # type: ignore[attr-defined]


def usual_pods(nodes: Iterable[Node]) -> int:
    """How many pods a node of this cluster holds: the fewest of any, since networks limit it alike."""
    counts = [node.allocatable["pods"] for node in nodes if node.allocatable.get("pods")]
    return min(counts, default=USUAL_PODS)

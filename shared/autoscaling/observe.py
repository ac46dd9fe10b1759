"""Looks at a cluster's demand and its pools: clients in, one Observation out.

Two depths, so that an idle tick is cheap. A `glance` asks for pods without a node and nothing else. Only when
one waits, or removal of nodes is to be considered, everything is read: all pods page by page (folded, never
held), nodes, what predicates need, and of Azure what `azure` finds worth asking. Called by `reconcile`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from shared.autoscaling.azure import NOW, Ages, AzureReader, failures
from shared.autoscaling.facts import Pool, PoolKind
from shared.autoscaling.metrics import measure
from shared.autoscaling.observation import LISTS, ONLY_PENDING, Collector, Observation
from shared.autoscaling.policy import AutoscalingPolicy
from shared.errors import ConflictError, SettingsError, UnavailableError
from shared.model.node import Node

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.clients.kube import KubeClient
    from shared.model.snapshot import MetricReading
    from shared.settings import Cluster

Document = dict[str, Any]

NODE_PAGE = 200
"""A node is 13 KB: pages of them stay small."""
AGENT_POOL_LABELS = ("kubernetes.azure.com/agentpool", "agentpool")
CACHED = "azure"
"""Key in the state under which readings of Azure are remembered."""
LISTING_ATTEMPTS = 3


class _Meta(msgspec.Struct, frozen=True, gc=False):
    uid: str = ""
    deleted_at: str | None = msgspec.field(default=None, name="deletionTimestamp")


class _Gated(msgspec.Struct, frozen=True, gc=False):
    gates: tuple[msgspec.Raw, ...] | None = msgspec.field(default=None, name="schedulingGates")


class _Phase(msgspec.Struct, frozen=True, gc=False):
    phase: str = ""


class _WaitingPod(msgspec.Struct, frozen=True, gc=False):
    metadata: _Meta
    spec: _Gated = _Gated()
    status: _Phase = _Phase()


class _WaitingPods(msgspec.Struct, frozen=True, gc=False):
    items: tuple[_WaitingPod, ...] | None = None


@dataclass(frozen=True)
class Place:
    """What observing and acting need of one cluster."""

    cluster: Cluster
    policy: AutoscalingPolicy
    clients: Clients
    kube: KubeClient
    now: datetime


def place_of(cluster: Cluster, clients: Clients, now: datetime) -> Place:
    """SettingsError when the configuration lacks what autoscaling needs."""
    if cluster.azure is None:
        raise SettingsError(f"cluster '{cluster.name}' has no 'azure' in the configuration; add its place")
    policy = cluster.autoscaling or AutoscalingPolicy()
    return Place(cluster, policy, clients, clients.kube(cluster), now)


def glance(kube: KubeClient) -> frozenset[str]:
    """Uids of pods that wait for a node and may have one; one small request."""
    waiting: set[str] = set()
    for body in kube.pages(LISTS["pods"], fieldSelector=ONLY_PENDING):
        for pod in msgspec.json.decode(body, type=_WaitingPods).items or ():
            is_over = pod.status.phase in ("Succeeded", "Failed") or pod.metadata.deleted_at is not None
            if not is_over and not pod.spec.gates:
                waiting.add(pod.metadata.uid)
    return frozenset(waiting)


def observe(place: Place, state: Mapping[str, Any], ages: Ages, *, keep: bool = False) -> Observation:
    """Everything `decide` reads. `state` is not changed but for its remembered readings of Azure.

    With `keep` raw objects are held for a snapshot file. ApiError when Kubernetes cannot be read; what Azure
    does not answer stands in the observation as such.
    """
    collector = _collect(place.kube, keep=keep)
    nodes = collector.nodes
    reader = _azure(place, state, whole=keep)
    pools = reader.pools(ages)
    reader.machines(pools, counting(nodes), ages)
    reader.limits(pools, ages)
    return collector.finish(
        cluster=place.cluster.name,
        now=place.now,
        cluster_entry=entry_of(place.cluster),
        azure=reader.readings.values(),
        metrics=_metrics(place, pools, nodes),
        state={name: value for name, value in state.items() if name != CACHED},
    )


def pools_and_nodes(place: Place, state: Mapping[str, Any]) -> tuple[tuple[Pool, ...], tuple[Node, ...]]:
    """The pools as Azure has them now and the cluster's nodes, and nothing else.

    ApiError when Kubernetes or one of Azure's lists cannot be read: a pool that is not seen is not gone.
    """
    collector = _collect(place.kube, keep=False, plurals=("nodes",))
    reader = _azure(place, state, whole=False)
    pools = reader.pools(NOW)
    if failed := failures(reader.readings.values()):
        what, code = failed[0].id.partition("?")[0], failed[0].code
        raise UnavailableError(f"Azure does not answer for {what}: {code}; see the roles if that stays so")
    return pools, tuple(collector.nodes)


def entry_of(cluster: Cluster) -> Document:
    """The cluster's entry of the configuration as plain JSON; it names secrets but holds none."""
    built: Document = msgspec.to_builtins(cluster)
    return built


def is_node_of(pool: Pool, node: Node) -> bool:
    """Whether the node's machine belongs to the pool."""
    machine = machine_of(node.provider_id)
    if pool.kind is PoolKind.AGENT_POOL and any(
        node.labels.get(label) == pool.name for label in AGENT_POOL_LABELS
    ):
        return True
    return machine.startswith(f"{pool.id}/") or any(machine == one.id for one in pool.machines)


def machine_of(provider_id: str) -> str:
    """The resource id in a Node's providerID, lower case; empty for a node of another provider."""
    scheme, _, rest = provider_id.partition("://")
    return rest.lower() if scheme == "azure" else ""


def counting(nodes: Sequence[Node]) -> Callable[[Pool], int]:
    """How many nodes a pool has."""

    def count(pool: Pool) -> int:
        return sum(1 for node in nodes if is_node_of(pool, node))

    return count


# How


def _azure(place: Place, state: Mapping[str, Any], *, whole: bool) -> AzureReader:
    return AzureReader(
        place.clients.arm,
        _scope(place.cluster),
        place.policy,
        state.get(CACHED, {}),
        place.now,
        models=_models(state),
        whole=whole,
    )


def _collect(kube: KubeClient, *, keep: bool, plurals: Iterable[str] = tuple(LISTS)) -> Collector:
    """These lists; begun again when the API server forgets a list's moment between two pages."""
    for attempt in range(LISTING_ATTEMPTS):
        collector = Collector(keep=keep)
        try:
            for plural in plurals:
                path = LISTS[plural]
                pages = kube.pages(path, limit=NODE_PAGE) if plural == "nodes" else kube.pages(path)
                for page in pages:
                    collector.add(plural, page)
        except ConflictError:
            if attempt == LISTING_ATTEMPTS - 1:
                raise
            continue
        return collector
    raise AssertionError("unreachable: the last attempt returns or raises")


def _models(state: Mapping[str, Any]) -> dict[str, Document]:
    """Bodies of the machines that are remembered, by the id of their availability set."""
    notes = (state.get("pools") or {}).items()
    return {pool: note["model"]["machine"] for pool, note in notes if note.get("model")}


def _metrics(place: Place, pools: tuple[Pool, ...], nodes: Sequence[Node]) -> list[MetricReading]:
    def nodes_of(name: str) -> set[str]:
        pool = next((pool for pool in pools if pool.name.lower() == name.lower()), None)
        return {node.name for node in nodes if is_node_of(pool, node)} if pool else set()

    return [measure(rule, place.clients, place.kube, nodes_of, place.now) for rule in place.policy.metrics]


def _scope(cluster: Cluster) -> Any:
    assert cluster.azure is not None, "place_of has checked it"
    return cluster.azure

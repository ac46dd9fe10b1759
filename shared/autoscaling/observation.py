"""What one look at a cluster's pods, nodes and node pools found, as one value, and as a snapshot file.

`observe` gives a `Collector` every page it reads; pods are folded into sums per node and their pages dropped,
so that 150,000 pods need a few megabytes. `decide` reads the resulting Observation. Loaded from a snapshot
file it decides the same plan, byte for byte; only an observation collected with `keep=True` can be saved,
since the file holds raw objects.

What to read is in LISTS (Kubernetes) and in `shared.autoscaling.facts` (Azure). When nothing waits, the pods
may be listed with the field selector `spec.nodeName=` alone: `is_complete` is False then, and decide neither
packs existing nodes nor removes any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from shared.autoscaling.policy import AutoscalingPolicy
from shared.errors import MessageError
from shared.model import snapshot as files
from shared.model.node import (
    LabelSelector,
    Node,
    NodeSelectorTerm,
    RawMeta,
    RawNode,
    node_of,
    node_selector_terms,
    selector_of,
)
from shared.model.plan import utc
from shared.model.pod import Load, PendingPod, PodFold, PodShape, collector_off, daemon_shape
from shared.model.snapshot import AzureReading, MetricReading, Snapshot

AUTOMATION = "autoscaling"

LISTS = {
    "pods": "/api/v1/pods",
    "nodes": "/api/v1/nodes",
    "namespaces": "/api/v1/namespaces",
    "persistentvolumes": "/api/v1/persistentvolumes",
    "persistentvolumeclaims": "/api/v1/persistentvolumeclaims",
    "storageclasses": "/apis/storage.k8s.io/v1/storageclasses",
    "csinodes": "/apis/storage.k8s.io/v1/csinodes",
    "daemonsets": "/apis/apps/v1/daemonsets",
    "poddisruptionbudgets": "/apis/policy/v1/poddisruptionbudgets",
}
"""What is read of Kubernetes: the key in the snapshot file and the path of the list."""

ONLY_PENDING = "spec.nodeName="
"""Field selector of the cheap list of pods; stands in the list's metadata when that was all that was read."""

Document = dict[str, Any]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A PersistentVolumeClaim: the volume it is bound to, or the class that will make one."""

    volume: str = ""
    storage_class: str = ""
    selected_node: str = ""
    is_going: bool = False


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A PersistentVolume: where it can be used, and the CSI driver that attaches it."""

    terms: tuple[NodeSelectorTerm, ...] | None = None
    driver: str = ""
    handle: str = ""


class StorageClass(msgspec.Struct, frozen=True, kw_only=True):
    """`topologies`: where its volumes may be made, None for anywhere."""

    waits: bool = False
    provisioner: str = ""
    topologies: tuple[NodeSelectorTerm, ...] | None = None
    is_default: bool = False


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A PodDisruptionBudget. `allowed`: evictions it permits now."""

    namespace: str
    name: str
    selector: LabelSelector | None
    allowed: int = 0


class Kubernetes(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster, folded. `loads` by node name; claims by (namespace, name); shapes by index."""

    nodes: tuple[Node, ...] = ()
    shapes: tuple[PodShape, ...] = ()
    loads: dict[str, Load] = {}
    pending: tuple[PendingPod, ...] = ()
    daemons: tuple[PodShape, ...] = ()
    budgets: tuple[Budget, ...] = ()
    claims: dict[tuple[str, str], Claim] = {}
    volumes: dict[str, Volume] = {}
    classes: dict[str, StorageClass] = {}
    namespaces: dict[str, dict[str, str]] = {}
    is_complete: bool = True


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One cluster, once. `cluster_entry` is its entry of the configuration as plain JSON, without secrets.

    Keys of `state` that decide reads (all may be absent; times are RFC 3339):

        paused            true while an operator wants rest
        unneededSince     {node: time}         from Decision.memory
        shortSince        {pool id: time}      from Decision.memory: capacity without machines
        wishes            {metric rule: [[time, nodes], ...]}   from Decision.memory
        replacing         {node: time}         from Decision.memory: consolidation, until when it stands
        pools             {pool id: {"backoff": {"until", "reason", "failures", "zone", "message"}}}
                          reason: StockOut | Quota | Throttled | Failed
        additions         [{"pool", "count", "at"}]    capacity asked for, the last hour
        removals          [{"pool", "count", "at"}]    machines deleted, the last hour
        removalFailedAt   time of the last drain or deletion that was given up
        draining          {node: {...}}        nodes on their way out
        manual            {pool name: {"size", "until" (absent: until changed)}}
        rolls             {run: {"pool", "ended"}}     operations that replace a pool's machines

    Ids of pools are lower case.
    """

    cluster: str
    now: datetime
    cluster_entry: Document = {}
    kubernetes: Kubernetes = Kubernetes()
    azure: tuple[AzureReading, ...] = ()
    metrics: tuple[MetricReading, ...] = ()
    state: Document = {}
    kept: dict[str, Document] | None = None

    @property
    def policy(self) -> AutoscalingPolicy:
        """The policy in the cluster's entry of the configuration; defaults where it says nothing."""
        return msgspec.convert(self.cluster_entry.get("autoscaling") or {}, AutoscalingPolicy)


class Collector:
    """Takes list pages as they come and drops them; `keep` holds them for a snapshot file."""

    def __init__(self, *, keep: bool = False) -> None:
        self._pods = PodFold()
        self._nodes: list[Node] = []
        self._limits: dict[str, dict[str, int]] = {}
        self._rest: dict[str, list[Document]] = {}
        self._kept: dict[str, Document] | None = {} if keep else None

    @property
    def pending(self) -> int:
        """Pods without a node so far."""
        return len(self._pods.pending)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Nodes so far."""
        return tuple(self._nodes)

    def add(self, plural: str, page: bytes, *, field_selector: str = "") -> None:
        """One page of a list of LISTS; `field_selector` is what the list was asked with.

        msgspec.MsgspecError when it is no such list.
        """
        if plural == "pods":
            self._pods.add(page)
            self._pods.field_selector = self._pods.field_selector or field_selector
        elif plural == "nodes":
            with collector_off():
                self._nodes += [node_of(raw) for raw in _NODES.decode(page).items or ()]
        else:
            self._rest.setdefault(plural, []).extend(_page(plural, page))
        if self._kept is not None:
            self._keep(plural, page, field_selector)

    def finish(
        self,
        *,
        cluster: str,
        now: datetime,
        cluster_entry: Document,
        azure: Iterable[AzureReading] = (),
        metrics: Iterable[MetricReading] = (),
        state: Document | None = None,
    ) -> Observation:
        """The observation; the collector is used up."""
        return Observation(
            cluster=cluster,
            now=utc(now),
            cluster_entry=cluster_entry,
            kubernetes=self._kubernetes(),
            azure=tuple(azure),
            metrics=tuple(metrics),
            state=state or {},
            kept=self._kept,
        )

    def _kubernetes(self) -> Kubernetes:
        limits = {one["name"]: one["limits"] for one in self._rest.get("csinodes", ())}
        nodes = [
            msgspec.structs.replace(node, volume_limits=limits[node.name]) if limits.get(node.name) else node
            for node in self._nodes
        ]
        rest = self._rest
        return Kubernetes(
            nodes=tuple(sorted(nodes, key=lambda node: node.name)),
            shapes=tuple(self._pods.shapes),
            loads=self._pods.loads,
            pending=tuple(self._pods.pending),
            daemons=tuple(one["shape"] for one in rest.get("daemonsets", ())),
            budgets=tuple(one["budget"] for one in rest.get("poddisruptionbudgets", ())),
            claims={one["key"]: one["claim"] for one in rest.get("persistentvolumeclaims", ())},
            volumes={one["name"]: one["volume"] for one in rest.get("persistentvolumes", ())},
            classes={one["name"]: one["class"] for one in rest.get("storageclasses", ())},
            namespaces={one["name"]: one["labels"] for one in rest.get("namespaces", ())},
            is_complete=self._pods.field_selector == "",
        )

    def _keep(self, plural: str, page: bytes, field_selector: str) -> None:
        assert self._kept is not None
        document = msgspec.json.decode(page)
        known = self._kept.get(plural)
        if known is not None:
            known["items"] = [*known["items"], *(document.get("items") or ())]
            return
        metadata = {k: v for k, v in (document.get("metadata") or {}).items() if k != "continue"}
        metadata |= {"fieldSelector": field_selector} if field_selector else {}
        self._kept[plural] = {**document, "metadata": metadata, "items": list(document.get("items") or ())}


# The lists that are small


class _NodePage(msgspec.Struct, gc=False):
    items: list[RawNode] | None = None


_NODES = msgspec.json.Decoder(_NodePage)


def _page(plural: str, page: bytes) -> list[Document]:
    parse = _PARSERS.get(plural)
    if parse is None:
        return []
    return [parse(item) for item in msgspec.json.decode(page).get("items") or ()]


def _meta(item: Mapping[str, Any]) -> RawMeta:
    return msgspec.convert(item["metadata"], RawMeta)


def _namespace(item: Document) -> Document:
    meta = _meta(item)
    # The API server sets this label; documents by hand may not have it.
    return {"name": meta.name, "labels": {"kubernetes.io/metadata.name": meta.name, **(meta.labels or {})}}


def _volume(item: Document) -> Document:
    spec = item.get("spec") or {}
    csi = spec.get("csi") or {}
    disk = spec.get("azureDisk") or {}
    required = (spec.get("nodeAffinity") or {}).get("required")
    volume = Volume(
        terms=node_selector_terms(required),
        driver=csi.get("driver") or ("disk.csi.azure.com" if disk else ""),
        handle=csi.get("volumeHandle") or disk.get("diskURI") or "",
    )
    return {"name": _meta(item).name, "volume": volume}


def _claim(item: Document) -> Document:
    meta, spec = _meta(item), item.get("spec") or {}
    annotations = meta.annotations or {}
    claim = Claim(
        volume=spec.get("volumeName") or "",
        storage_class=spec.get("storageClassName") or "",
        selected_node=annotations.get("volume.kubernetes.io/selected-node", ""),
        is_going=meta.deleted_at is not None,
    )
    return {"key": (meta.namespace, meta.name), "claim": claim}


def _storage_class(item: Document) -> Document:
    meta = _meta(item)
    topologies = item.get("allowedTopologies")
    found = StorageClass(
        waits=item.get("volumeBindingMode") == "WaitForFirstConsumer",
        provisioner=item.get("provisioner") or "",
        topologies=node_selector_terms({"nodeSelectorTerms": [_topology(one) for one in topologies]})
        if topologies
        else None,
        is_default=(meta.annotations or {}).get("storageclass.kubernetes.io/is-default-class") == "true",
    )
    return {"name": meta.name, "class": found}


def _topology(term: Document) -> Document:
    expressions = term.get("matchLabelExpressions") or ()
    return {"matchExpressions": [{**one, "operator": "In"} for one in expressions]}


def _csi_node(item: Document) -> Document:
    drivers = (item.get("spec") or {}).get("drivers") or ()
    counts = {one["name"]: (one.get("allocatable") or {}).get("count") for one in drivers}
    return {"name": _meta(item).name, "limits": {n: c for n, c in counts.items() if c is not None}}


def _daemon_set(item: Document) -> Document:
    meta = _meta(item)
    return {"shape": daemon_shape(meta.namespace, item["spec"]["template"], meta.name)}


def _budget(item: Document) -> Document:
    meta = _meta(item)
    budget = Budget(
        namespace=meta.namespace,
        name=meta.name,
        selector=selector_of((item.get("spec") or {}).get("selector")),
        allowed=(item.get("status") or {}).get("disruptionsAllowed") or 0,
    )
    return {"budget": budget}


_PARSERS = {
    "namespaces": _namespace,
    "persistentvolumes": _volume,
    "persistentvolumeclaims": _claim,
    "storageclasses": _storage_class,
    "csinodes": _csi_node,
    "daemonsets": _daemon_set,
    "poddisruptionbudgets": _budget,
}


# The snapshot file


def save(observation: Observation) -> bytes:
    """The snapshot file; ValueError for an observation whose raw objects were not kept."""
    if observation.kept is None:
        raise ValueError("only an observation collected with keep=True can be saved")
    return files.save(
        Snapshot(
            automation=AUTOMATION,
            now=observation.now,
            cluster=observation.cluster_entry | {"name": observation.cluster},
            kubernetes=observation.kept,
            azure=observation.azure,
            metrics=observation.metrics,
            state=observation.state,
        )
    )


def load(data: bytes, source: str) -> Observation:
    """The observation in a snapshot file; MessageError names `source` and what is wrong there."""
    snapshot = files.load(data, source, AUTOMATION)
    try:
        observation = from_snapshot(snapshot)
        observation.policy  # noqa: B018  a wrong policy is refused here, with the file's name
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError, AttributeError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else error
        raise MessageError(f"{source}: {detail}; see docs/reference/snapshot-file.md") from error
    return observation


def from_snapshot(snapshot: Snapshot) -> Observation:
    """The observation, keeping the raw objects."""
    collector = Collector(keep=True)
    for plural in LISTS:
        if plural in snapshot.kubernetes:
            collector.add(plural, msgspec.json.encode(snapshot.kubernetes[plural]))
    return collector.finish(
        cluster=snapshot.cluster_name,
        now=snapshot.now,
        cluster_entry=snapshot.cluster,
        azure=snapshot.azure,
        metrics=snapshot.metrics,
        state=snapshot.state,
    )

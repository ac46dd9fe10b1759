"""Pods as a planner needs them: the few things that decide where a pod may run, shared by all alike.

Pods of one workload are alike, so everything but a pod's name is interned: `PodSpec` is what it asks of a
node, `PodShape` adds namespace, labels and owner. `PodFold` takes raw bodies of list pages, adds them to sums
per node and keeps names of pending pods only; raw JSON is parsed once for each distinct shape.

Not modelled: dynamic resource allocation, in-place resizes that are under way (the larger of spec and status
counts for the scheduler; here the spec does), volumes of in-tree drivers other than through their claims.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from shared.model.node import (
    LabelSelector,
    NodeSelectorTerm,
    Taint,
    node_selector_terms,
    selector_of,
)
from shared.model.quantity import Quantity, amounts

HostPort = tuple[str, str, int]
"""(host IP, protocol, port)"""

_EMPTY = msgspec.Raw()


# What is asked of a node


class Toleration(msgspec.Struct, frozen=True):
    """A toleration; an empty effect means any, an empty key with Exists any taint."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def tolerates(self, taint: Taint) -> bool:
        """As the scheduler sees it, `Lt` and `Gt` on numbers included."""
        if self.effect and self.effect != taint.effect:
            return False
        if self.key and self.key != taint.key:
            return False
        if self.operator == "Exists":
            return True
        if not self.key:
            return False
        if self.operator in ("Lt", "Gt"):
            return self._compares(taint.value)
        return self.value == taint.value

    def _compares(self, found: str) -> bool:
        try:
            left, right = int(found), int(self.value)
        except ValueError:
            return False
        return left < right if self.operator == "Lt" else left > right


class PodTerm(msgspec.Struct, frozen=True):
    """A required term of pod affinity or anti-affinity. `selector` None matches no pod.

    `namespaces` empty and `namespace_selector` None mean the pod's own namespace.
    """

    topology_key: str
    selector: LabelSelector | None
    namespaces: tuple[str, ...] = ()
    namespace_selector: LabelSelector | None = None
    match_keys: tuple[str, ...] = ()
    mismatch_keys: tuple[str, ...] = ()


class Spread(msgspec.Struct, frozen=True):
    """A topology spread constraint with DoNotSchedule."""

    topology_key: str
    max_skew: int
    selector: LabelSelector | None
    min_domains: int = 1
    honors_affinity: bool = True
    honors_taints: bool = False
    match_keys: tuple[str, ...] = ()


class PodSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the pods of one kind ask of a node. `requests`: cpu in millicores, the rest in whole units, no
    zeros; the effective request of init containers, sidecars, overhead and pod-level resources.

    `claims`: names of PersistentVolumeClaims in the pod's namespace; `csi`: drivers of inline volumes.
    """

    requests: dict[str, int] = {}
    node_selector: tuple[tuple[str, str], ...] = ()
    node_terms: tuple[NodeSelectorTerm, ...] | None = None
    tolerations: tuple[Toleration, ...] = ()
    host_ports: tuple[HostPort, ...] = ()
    affinity: tuple[PodTerm, ...] = ()
    anti_affinity: tuple[PodTerm, ...] = ()
    spread: tuple[Spread, ...] = ()
    claims: tuple[str, ...] = ()
    has_local_storage: bool = False

    @property
    def is_social(self) -> bool:
        """Whether other pods decide where it may go."""
        return bool(self.affinity or self.anti_affinity or self.spread)

    @property
    def needs_others(self) -> bool:
        """Whether pods that are placed later may open a place for it."""
        return bool(self.affinity or self.spread)

    @property
    def needs_domains(self) -> bool:
        """Whether there must be several domains, be they empty."""
        return any(spread.min_domains > 1 for spread in self.spread)


class Owner(msgspec.Struct, frozen=True):
    """The controlling owner; an empty kind when there is none."""

    kind: str = ""
    name: str = ""


class PodShape(msgspec.Struct, frozen=True, kw_only=True):
    """Pods that are alike. `spec_key` is equal for equal specs; `safe_to_evict` is the annotation's value,
    None when absent; `group` names an all-or-nothing group; `is_going`: they are being deleted.
    """

    namespace: str
    labels: dict[str, str]
    spec: PodSpec
    spec_key: int
    owner: Owner = Owner()
    priority: int = 0
    safe_to_evict: bool | None = None
    group: str = ""
    is_going: bool = False
    is_mirror: bool = False
    grace_seconds: int = 30

    @property
    def is_daemon(self) -> bool:
        """Whether it belongs to a node rather than to a workload: it needs no other home."""
        return self.is_mirror or self.owner.kind in ("DaemonSet", "Node")


class PendingPod(msgspec.Struct, frozen=True, gc=False):
    """A pod without a node: `subject` is `namespace/name`, `shape` its index in the fold; `is_gated`: it
    waits for a scheduling gate.
    """

    subject: str
    uid: str
    shape: int
    created_at: str = ""
    nominated: str = ""
    is_gated: bool = False

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return self.subject.partition("/")[0]

    @property
    def name(self) -> str:
        """Its name."""
        return self.subject.partition("/")[2]


class Load(msgspec.Struct):
    """What is on one node: sums of requests (`pods` counts them) and how many pods of each shape.

    `names` holds one pod's name of each shape, so that people can be told about it; `ending` is when the
    first of those that are being deleted has to be gone, as Kubernetes writes times, empty without one.
    """

    used: dict[str, int] = {}
    shapes: dict[int, int] = {}
    names: dict[int, str] = {}
    ending: str = ""


# The raw objects, decoded no further than needed; Raw parts are parsed once per shape


class _Annotations(msgspec.Struct, gc=False):
    safe: str | None = msgspec.field(default=None, name="cluster-autoscaler.kubernetes.io/safe-to-evict")
    mirror: str | None = msgspec.field(default=None, name="kubernetes.io/config.mirror")
    group: str = msgspec.field(default="", name="kubekeeper.io/pod-group")

    def parts(self) -> tuple[str | None, str | None, str] | None:
        """What tells pods apart; None when there is nothing of interest."""
        if self.safe is None and self.mirror is None and not self.group:
            return None
        return self.safe, self.mirror, self.group


class _OwnerReference(msgspec.Struct, gc=False):
    kind: str
    name: str
    controller: bool = False


class _Meta(msgspec.Struct, gc=False):
    name: str
    namespace: str = "default"
    uid: str = ""
    labels: msgspec.Raw = _EMPTY
    annotations: _Annotations | None = None
    owners: list[_OwnerReference] | None = msgspec.field(default=None, name="ownerReferences")
    created_at: str = msgspec.field(default="", name="creationTimestamp")
    deleted_at: str | None = msgspec.field(default=None, name="deletionTimestamp")


class _Container(msgspec.Struct, gc=False):
    resources: msgspec.Raw = _EMPTY
    ports: msgspec.Raw = _EMPTY
    restart_policy: str = msgspec.field(default="", name="restartPolicy")


class _Claim(msgspec.Struct, gc=False):
    name: str = msgspec.field(default="", name="claimName")


class _EmptyDir(msgspec.Struct, gc=False):
    medium: str = ""


class _Volume(msgspec.Struct, gc=False):
    name: str = ""
    claim: _Claim | None = msgspec.field(default=None, name="persistentVolumeClaim")
    ephemeral: msgspec.Raw = _EMPTY
    empty_dir: _EmptyDir | None = msgspec.field(default=None, name="emptyDir")
    host_path: msgspec.Raw = msgspec.field(default=_EMPTY, name="hostPath")


class _Spec(msgspec.Struct, gc=False):
    containers: list[_Container]
    init_containers: list[_Container] | None = msgspec.field(default=None, name="initContainers")
    node_name: str = msgspec.field(default="", name="nodeName")
    node_selector: msgspec.Raw = msgspec.field(default=_EMPTY, name="nodeSelector")
    affinity: msgspec.Raw = _EMPTY
    tolerations: msgspec.Raw = _EMPTY
    spread: msgspec.Raw = msgspec.field(default=_EMPTY, name="topologySpreadConstraints")
    overhead: msgspec.Raw = _EMPTY
    resources: msgspec.Raw = _EMPTY
    volumes: list[_Volume] | None = None
    gates: msgspec.Raw = msgspec.field(default=_EMPTY, name="schedulingGates")
    priority: int = 0
    host_network: bool = msgspec.field(default=False, name="hostNetwork")
    grace_seconds: int | None = msgspec.field(default=30, name="terminationGracePeriodSeconds")

    def parts(self) -> list[msgspec.Raw | bytes]:
        """Everything that tells specs apart, as it came."""
        found: list[msgspec.Raw | bytes] = [
            self.node_selector,
            self.affinity,
            self.tolerations,
            self.spread,
            self.overhead,
            self.resources,
            b"host" if self.host_network else b"",
        ]
        for container in self.containers:
            found += (container.resources, container.ports)
        for container in self.init_containers or ():
            found += (container.resources, container.restart_policy.encode(), b"init")
        return found


class _Status(msgspec.Struct, gc=False):
    phase: str = "Pending"
    nominated: str = msgspec.field(default="", name="nominatedNodeName")


class _Pod(msgspec.Struct, gc=False):
    metadata: _Meta
    spec: _Spec
    status: _Status = msgspec.field(default_factory=_Status)


class _ListMeta(msgspec.Struct, gc=False):
    proceed: str = msgspec.field(default="", name="continue")
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    field_selector: str = msgspec.field(default="", name="fieldSelector")


class _PodPage(msgspec.Struct, gc=False):
    items: list[_Pod] | None = None
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)


_PAGE = msgspec.json.Decoder(_PodPage)
_ANY = msgspec.json.Decoder()


def _parse(raw: msgspec.Raw) -> Any:
    return None if raw is _EMPTY else _ANY.decode(raw)


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection while many objects without cycles are made; it would look at each of them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class PodFold:
    """Pages of pods, folded. Give it every page once, in any order."""

    def __init__(self) -> None:
        self.shapes: list[PodShape] = []
        self.loads: dict[str, Load] = {}
        self.pending: list[PendingPod] = []
        self.field_selector = ""
        self._shape_at: dict[tuple[Any, ...], int] = {}
        self._specs: dict[tuple[Any, ...], tuple[int, PodSpec]] = {}
        self._totals: list[tuple[tuple[str, int], ...]] = []
        self._times: dict[str, str] = {}
        """Times of creation: many pods are made in the same second, and one text is enough for them."""

    def add(self, body: bytes) -> None:
        """One page: a PodList as JSON. msgspec.MsgspecError when it is none."""
        with collector_off():
            page = _PAGE.decode(body)
            self.field_selector = self.field_selector or page.metadata.field_selector
            for pod in page.items or ():
                if pod.status.phase not in _OVER:
                    self._add(pod)

    def _add(self, pod: _Pod) -> None:
        meta, node = pod.metadata, pod.spec.node_name
        if node:
            self._place(node, self._shape(pod), meta.name)
            if meta.deleted_at:
                load = self.loads[node]
                load.ending = min(load.ending or meta.deleted_at, meta.deleted_at)
        elif meta.deleted_at is None:
            gated = pod.spec.gates is not _EMPTY and len(bytes(pod.spec.gates)) > len("null")
            nominated = pod.status.nominated
            subject = f"{meta.namespace}/{meta.name}"
            created_at = self._times.setdefault(meta.created_at, meta.created_at)
            self.pending.append(PendingPod(subject, meta.uid, self._shape(pod), created_at, nominated, gated))

    def _place(self, node: str, shape: int, name: str) -> None:
        load = self.loads.get(node)
        if load is None:
            load = self.loads[node] = Load({}, {}, {})
        used, shapes = load.used, load.shapes
        for resource, amount in self._totals[shape]:
            if resource in used:
                used[resource] += amount
            else:
                used[resource] = amount
        if shape in shapes:
            shapes[shape] += 1
        else:
            shapes[shape] = 1
            load.names[shape] = name

    def _shape(self, pod: _Pod) -> int:
        meta, spec = pod.metadata, pod.spec
        noted = meta.annotations
        key = (
            meta.namespace,
            # NUL cannot stand in JSON, so it separates what is joined.
            b"\0".join([meta.labels, *spec.parts()]),
            _controller(meta.owners) if meta.owners else None,
            noted.parts() if noted else None,
            meta.deleted_at is None,
            spec.priority,
            _claims(spec.volumes, meta.name) if spec.volumes else None,
        )
        index = self._shape_at.get(key)
        if index is None:
            index = self._shape_at[key] = self._new_shape(pod)
        return index

    def _new_shape(self, pod: _Pod) -> int:
        number, spec = self._spec(pod)
        meta = pod.metadata
        noted = meta.annotations or _Annotations()
        owner = _controller(meta.owners or ())
        shape = PodShape(
            namespace=meta.namespace,
            labels=_parse(meta.labels) or {},
            spec=spec,
            spec_key=number,
            owner=Owner(*owner) if owner else Owner(),
            priority=pod.spec.priority,
            safe_to_evict=None if noted.safe is None else noted.safe == "true",
            group=noted.group,
            is_going=meta.deleted_at is not None,
            is_mirror=noted.mirror is not None,
            grace_seconds=30 if pod.spec.grace_seconds is None else pod.spec.grace_seconds,
        )
        self.shapes.append(shape)
        self._totals.append((*spec.requests.items(), ("pods", 1)))
        return len(self.shapes) - 1

    def _spec(self, pod: _Pod) -> tuple[int, PodSpec]:
        volumes = _claims(pod.spec.volumes or (), pod.metadata.name)
        key = (b"\0".join(pod.spec.parts()), volumes)
        known = self._specs.get(key)
        if known is None:
            known = self._specs[key] = (len(self._specs), _parse_spec(pod))
        return known


_OVER = frozenset(("Succeeded", "Failed"))


def _controller(owners: Sequence[_OwnerReference]) -> tuple[str, str] | None:
    for owner in owners:
        if owner.controller:
            return owner.kind, owner.name
    return None


_LOCAL = ""
"""Stands among the claims for a volume on the node itself; no claim has an empty name."""


def _claims(volumes: Sequence[_Volume], pod_name: str) -> tuple[str, ...] | None:
    """Names of claims, and `_LOCAL` for emptyDir on disk and hostPath; None when there are neither."""
    found = None
    for volume in volumes:
        if volume.claim is not None:
            found = (*(found or ()), volume.claim.name)
        elif volume.ephemeral is not _EMPTY:
            found = (*(found or ()), f"{pod_name}-{volume.name}")
        elif volume.host_path is not _EMPTY or (volume.empty_dir and volume.empty_dir.medium != "Memory"):
            found = (*(found or ()), _LOCAL)
    return found


# Parsing, once for each distinct spec


def _parse_spec(pod: _Pod) -> PodSpec:
    spec = pod.spec
    affinity = _parse(spec.affinity) or {}
    node_affinity = affinity.get("nodeAffinity") or {}
    selector = _parse(spec.node_selector) or {}
    volumes = _claims(spec.volumes or (), pod.metadata.name) or ()
    return PodSpec(
        requests=effective_requests(pod.spec),
        node_selector=tuple(sorted(selector.items())),
        node_terms=node_selector_terms(node_affinity.get(_REQUIRED)),
        tolerations=tuple(_tolerations(_parse(spec.tolerations) or ())),
        host_ports=tuple(_host_ports(spec)),
        affinity=tuple(_terms(affinity.get("podAffinity"))),
        anti_affinity=tuple(_terms(affinity.get("podAntiAffinity"))),
        spread=tuple(_spreads(_parse(spec.spread) or ())),
        claims=tuple(name for name in volumes if name != _LOCAL),
        has_local_storage=_LOCAL in volumes,
    )


_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def effective_requests(spec: _Spec) -> dict[str, int]:
    """What the scheduler reserves for a pod (component-helpers' PodRequests): containers and sidecars
    together, or the greediest init container with the sidecars before it, whichever is more; pod-level
    resources replace that; overhead comes on top.
    """
    total: dict[str, int] = {}
    for container in spec.containers:
        _add(total, _requests(container.resources))
    sidecars: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in spec.init_containers or ():
        wanted = _requests(container.resources)
        if container.restart_policy == "Always":
            _add(total, wanted)
            _add(sidecars, wanted)
            wanted = dict(sidecars)
        else:
            _add(wanted, sidecars)
        _raise(peak, wanted)
    _raise(total, peak)
    total.update(
        {
            name: amount
            for name, amount in _requests(spec.resources).items()
            if name in ("cpu", "memory") or name.startswith("hugepages-")
        }
    )
    _add(total, amounts(_parse(spec.overhead)))
    return {name: amount for name, amount in total.items() if amount}


def _requests(raw: msgspec.Raw) -> dict[str, int]:
    found: Mapping[str, Any] = _parse(raw) or {}
    requests: Mapping[str, Quantity] = found.get("requests") or {}
    limits: Mapping[str, Quantity] = found.get("limits") or {}
    # The API server fills in requests from limits; documents by hand may not have seen it.
    return amounts({**limits, **requests})


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, 0) + amount


def _raise(total: dict[str, int], least: Mapping[str, int]) -> None:
    for name, amount in least.items():
        total[name] = max(total.get(name, 0), amount)


def _host_ports(spec: _Spec) -> Iterator[HostPort]:
    for container in spec.containers:
        for port in _parse(container.ports) or ():
            number = port.get("hostPort") or (port.get("containerPort", 0) if spec.host_network else 0)
            if number:
                yield port.get("hostIP") or "0.0.0.0", port.get("protocol") or "TCP", number  # noqa: S104


def _tolerations(raw: Any) -> Iterator[Toleration]:
    for one in raw:
        yield Toleration(
            one.get("key") or "",
            one.get("operator") or "Equal",
            one.get("value") or "",
            one.get("effect") or "",
        )


def _terms(raw: Mapping[str, Any] | None) -> Iterator[PodTerm]:
    for term in (raw or {}).get(_REQUIRED) or ():
        yield PodTerm(
            topology_key=term["topologyKey"],
            selector=selector_of(term.get("labelSelector")),
            namespaces=tuple(term.get("namespaces") or ()),
            namespace_selector=selector_of(term.get("namespaceSelector")),
            match_keys=tuple(term.get("matchLabelKeys") or ()),
            mismatch_keys=tuple(term.get("mismatchLabelKeys") or ()),
        )


def _spreads(raw: Any) -> Iterator[Spread]:
    for one in raw:
        if one.get("whenUnsatisfiable", "DoNotSchedule") != "DoNotSchedule":
            continue
        yield Spread(
            topology_key=one["topologyKey"],
            max_skew=one["maxSkew"],
            selector=selector_of(one.get("labelSelector")),
            min_domains=one.get("minDomains") or 1,
            honors_affinity=one.get("nodeAffinityPolicy", "Honor") != "Ignore",
            honors_taints=one.get("nodeTaintsPolicy", "Ignore") == "Honor",
            match_keys=tuple(one.get("matchLabelKeys") or ()),
        )


_POD = msgspec.json.Decoder(_Pod)


def daemon_shape(namespace: str, template: Mapping[str, Any], name: str) -> PodShape:
    """The shape of the pods of a DaemonSet, from its pod template."""
    fold = PodFold()
    metadata = {**(template.get("metadata") or {}), "name": name, "namespace": namespace}
    pod = _POD.decode(msgspec.json.encode({"metadata": metadata, "spec": template["spec"]}))
    shape = fold.shapes[fold._shape(pod)]
    return msgspec.structs.replace(shape, owner=Owner("DaemonSet", name))


__all__ = [
    "HostPort",
    "Load",
    "Owner",
    "PendingPod",
    "PodFold",
    "PodShape",
    "PodSpec",
    "PodTerm",
    "Spread",
    "Toleration",
    "collector_off",
    "daemon_shape",
    "effective_requests",
]

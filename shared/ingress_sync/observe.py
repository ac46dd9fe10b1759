"""Reads what a decision about a cluster's ingress rests on, once: Kubernetes first, then the gateway.

Only what the Ingress objects of our classes refer to is kept: their Services, the EndpointSlices of these,
the TLS Secrets they name (as facts, never as data), and one pod for each Service, for its probes. A pod's
probes never change, so pods that are known from an earlier pass are not read again: an idle pass makes seven
requests and one for each Secret. Called by `reconcile` and `keeper snapshot`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from shared.errors import NotFoundError
from shared.ingress_sync.certificates import facts
from shared.ingress_sync.observation import Kubernetes, Observation, read_objects
from shared.ingress_sync.policy import IngressSyncPolicy
from shared.ingress_sync.routes import unpack_routes
from shared.model.gateway import inside, parts
from shared.model.ingress import EndpointSlice, Ingress, IngressClass, Metadata, Pod, PodSpec, PodStatus
from shared.model.plan import utc
from shared.model.snapshot import AzureReading
from shared.settings import Cluster

if TYPE_CHECKING:
    from shared.clients.arm import Arm
    from shared.clients.kube import KubeClient

CORE, NETWORKING = "/api/v1", "/apis/networking.k8s.io/v1"
SLICES = "/apis/discovery.k8s.io/v1"
PROHIBITED = "/apis/appgw.ingress.k8s.io/v1/azureingressprohibitedtargets"
REWRITES = "/apis/appgw.ingress.azure.io/v1beta1/azureapplicationgatewayrewrites"

CLASS_ANNOTATION = "kubernetes.io/ingress.class"
DEFAULT_CLASS_ANNOTATION = "ingressclass.kubernetes.io/is-default-class"
REWRITE_ANNOTATION = "appgw.ingress.kubernetes.io/rewrite-rule-set-custom-resource"
SERVICE_LABEL = "kubernetes.io/service-name"
READINESS_GATE = "kubekeeper.io/gateway-ready"

NAMESPACED_UP_TO = 3
"""With Ingress objects in no more namespaces than this, their Services are listed by namespace."""
SINGLY_UP_TO = 10
"""More pods of one namespace than this are read as a list."""
PODS_KNOWN_MOST = 20_000

_PODS: dict[str, Pod] = {}
"""Pods by uid, less what can change about them; may be lost."""


def observe(
    cluster: Cluster,
    kube: KubeClient,
    arm: Arm,
    *,
    state: Mapping[str, Any],
    now: datetime,
    health: AzureReading | None = None,
) -> Observation:
    """One look; ApiError when something that is needed does not answer. `health` is the gateway's own word on
    its backends, where it was asked.
    """
    policy = cluster.ingress_sync
    assert policy is not None
    kubernetes = read_kubernetes(kube, policy, last_good=str(state.get("routes") or ""))
    azure = read_azure(arm, policy.gateway, now)
    return Observation(
        cluster=cluster.name,
        now=utc(now),
        cluster_entry=msgspec.json.decode(msgspec.json.encode(cluster)),
        kubernetes=kubernetes,
        azure=azure + ((health,) if health else ()),
        state=dict(state),
    )


# Azure


def read_azure(arm: Arm, gateway_id: str, now: datetime) -> tuple[AzureReading, ...]:
    """The gateway, and the public addresses of its frontends."""
    gateway = _reading(arm, gateway_id, now)
    found = [gateway]
    for frontend in parts(gateway.body or {}, "frontendIPConfigurations"):
        public = (inside(frontend).get("publicIPAddress") or {}).get("id")
        if public:
            found.append(_reading(arm, public, now))
    return tuple(found)


def _reading(arm: Arm, resource_id: str, now: datetime) -> AzureReading:
    """What Azure answers; that there is nothing is an answer too."""
    try:
        answer = arm.get(resource_id)
    except NotFoundError as error:
        return AzureReading(id=resource_id, status=404, read_at=utc(now), code=error.code or "")
    return AzureReading(
        id=resource_id, status=answer.status, read_at=utc(answer.read_at), body=answer.document
    )


# Kubernetes


def read_kubernetes(kube: KubeClient, policy: IngressSyncPolicy, *, last_good: str = "") -> Kubernetes:
    """The objects behind the Ingress objects of our classes, and behind their last good routes (packed)."""
    pages = {
        "ingresses": _pages(kube, f"{NETWORKING}/ingresses"),
        "ingressclasses": _pages(kube, f"{NETWORKING}/ingressclasses"),
        "azureingressprohibitedtargets": _optional(kube, PROHIBITED),
    }
    first = read_objects(pages)
    ours = tuple(found for found in first.ingresses if is_ours(found, first.ingressclasses, policy))
    if any(REWRITE_ANNOTATION in (found.metadata.annotations or {}) for found in ours):
        pages["azureapplicationgatewayrewrites"] = _optional(kube, REWRITES)
    services = _services_of(ours) | _services_behind(last_good, {found.key for found in ours})
    pages["services"], pages["endpointslices"] = _by_namespace(kube, services)
    pages["secrets"] = [_list(_secrets(kube, ours))]
    if policy.backend == "nodePorts":
        pages["nodes"] = _pages(kube, f"{CORE}/nodes")
    kubernetes = _only(read_objects(pages), services)
    pods = _pods(kube, kubernetes.endpointslices, is_whole=policy.readiness_gate)
    return msgspec.structs.replace(kubernetes, pods=pods)


def is_ours(ingress: Ingress, classes: Iterable[IngressClass], policy: IngressSyncPolicy) -> bool:
    """Whether an Ingress may be ours, by class and namespace: what its references are read for."""
    namespace = ingress.metadata.namespace
    if namespace in policy.excluded_namespaces or (policy.namespaces and namespace not in policy.namespaces):
        return False
    legacy = (ingress.metadata.annotations or {}).get(CLASS_ANNOTATION)
    if legacy is not None:
        return legacy == policy.legacy_class
    ours = [one for one in classes if one.spec.controller == policy.controller]
    if ingress.spec.ingress_class_name is not None:
        return any(one.metadata.name == ingress.spec.ingress_class_name for one in ours)
    return any((one.metadata.annotations or {}).get(DEFAULT_CLASS_ANNOTATION) == "true" for one in ours)


def _pages(kube: KubeClient, path: str) -> list[bytes]:
    return list(kube.pages(path))


def _optional(kube: KubeClient, path: str) -> list[bytes]:
    """The objects of a custom resource that may not be installed."""
    try:
        return _pages(kube, path)
    except NotFoundError:
        return []


def _list(items: Iterable[Any]) -> bytes:
    return msgspec.json.encode({"items": list(items)})


def _services_of(ingresses: Iterable[Ingress]) -> frozenset[tuple[str, str]]:
    """(namespace, name) of every Service that routes lead to."""
    found = set()
    for one in ingresses:
        backends = [one.spec.default_backend]
        for rule in one.spec.rules or ():
            backends += [path.backend for path in (rule.http.paths if rule.http else None) or ()]
        found |= {(one.metadata.namespace, b.service.name) for b in backends if b and b.service}
    return frozenset(found)


def _services_behind(routes: str, owners: Set[str]) -> frozenset[tuple[str, str]]:
    """Those that the last good routes of these objects lead to: they may have to stand in for new ones."""
    found = set()
    for owner, route in unpack_routes(routes).items():
        backends = [rule.backend for site in route.sites for rule in site.rules if owner in owners]
        found |= {backend.service.rpartition(":")[0] for backend in backends}
    return frozenset((namespace, name) for namespace, _, name in (one.partition("/") for one in found))


def _by_namespace(kube: KubeClient, services: Iterable[tuple[str, str]]) -> tuple[list[bytes], list[bytes]]:
    """Pages of Services and of EndpointSlices, of few namespaces or of all."""
    namespaces = sorted({namespace for namespace, _ in services})
    if not namespaces:
        return [], []
    below = [f"/namespaces/{namespace}" for namespace in namespaces]
    where = below if len(below) <= NAMESPACED_UP_TO else [""]
    return (
        [page for place in where for page in _pages(kube, f"{CORE}{place}/services")],
        [page for place in where for page in _pages(kube, f"{SLICES}{place}/endpointslices")],
    )


def _only(kubernetes: Kubernetes, services: frozenset[tuple[str, str]]) -> Kubernetes:
    """Without the Services, and slices of Services, that nothing routes to."""
    kept = (one for one in kubernetes.services if (one.metadata.namespace, one.metadata.name) in services)
    slices = (one for one in kubernetes.endpointslices if _service_of(one) in services)
    return msgspec.structs.replace(kubernetes, services=tuple(kept), endpointslices=tuple(slices))


def _service_of(one: EndpointSlice) -> tuple[str, str]:
    return one.metadata.namespace, (one.metadata.labels or {}).get(SERVICE_LABEL, "")


def _secrets(kube: KubeClient, ingresses: Iterable[Ingress]) -> Iterator[dict[str, Any]]:
    """Facts of the TLS Secrets that are named, as they stand in a snapshot; those that are missing are not
    there.
    """
    named = sorted(
        {(one.metadata.namespace, tls.secret_name) for one in ingresses for tls in one.spec.tls or ()}
    )
    wanted = [f"{CORE}/namespaces/{namespace}/secrets/{name}" for namespace, name in named if name]
    for secret in _each(kube.find, wanted):
        if secret is not None:
            metadata = secret["metadata"]
            about = {name: metadata.get(name, "") for name in ("name", "namespace", "uid")}
            kind = str(secret.get("type") or "")
            yield {"metadata": about, "type": kind, "kubekeeper": msgspec.to_builtins(facts(secret))}


def _each(read: Any, paths: list[str]) -> list[Any]:
    """What is at each path, read side by side when there are many."""
    if len(paths) < 4:
        return [read(path) for path in paths]
    with ThreadPoolExecutor(8, thread_name_prefix="ingress-observe") as pool:
        return list(pool.map(read, paths))


# Pods


def _pods(kube: KubeClient, slices: Iterable[EndpointSlice], *, is_whole: bool) -> tuple[Pod, ...]:
    """One pod for each Service, less what can change about it; or all of them as they are."""
    wanted = _all_pods(slices) if is_whole else _representatives(slices)
    known = {} if is_whole else {uid: _PODS[uid] for uid in wanted if uid in _PODS}
    missing: dict[str, set[str]] = {}
    for uid, (namespace, name) in wanted.items():
        if uid not in known:
            missing.setdefault(namespace, set()).add(name)
    for namespace, names in sorted(missing.items()):
        known |= {pod.metadata.uid: pod for pod in _read_pods(kube, namespace, names)}
    if not is_whole:
        known = {uid: _lasting(pod) for uid, pod in known.items()}
        if len(_PODS) > PODS_KNOWN_MOST:
            _PODS.clear()
        _PODS.update(known)
    found = (known[uid] for uid in wanted if uid in known)
    return tuple(sorted(found, key=lambda pod: (pod.metadata.namespace, pod.metadata.name)))


def _read_pods(kube: KubeClient, namespace: str, names: set[str]) -> Iterator[Pod]:
    path = f"{CORE}/namespaces/{namespace}/pods"
    if len(names) <= SINGLY_UP_TO:
        for document in _each(kube.find, [f"{path}/{name}" for name in sorted(names)]):
            if document is not None:
                yield msgspec.convert(document, Pod)
        return
    for page in kube.pages(path):
        for pod in read_objects({"pods": [page]}).pods:
            if pod.metadata.name in names:
                yield pod


def _representatives(slices: Iterable[EndpointSlice]) -> dict[str, tuple[str, str]]:
    """uid to (namespace, name) of the pod that speaks for each Service: the first by name, of the ready ones
    if there are any. So it is the same pod as long as it lives, whatever the order of the slices.
    """
    best: dict[tuple[str, str], tuple[bool, str, str]] = {}
    for one in slices:
        for uid, name, is_ready in _targets(one):
            candidate = (not is_ready, name, uid)
            best[_service_of(one)] = min(best.get(_service_of(one), candidate), candidate)
    return {uid: (namespace, name) for (namespace, _), (_, name, uid) in best.items()}


def _all_pods(slices: Iterable[EndpointSlice]) -> dict[str, tuple[str, str]]:
    return {uid: (one.metadata.namespace, name) for one in slices for uid, name, _ in _targets(one)}


def _targets(one: EndpointSlice) -> Iterator[tuple[str, str, bool]]:
    """(uid, name, ready) of the pods in a slice."""
    for endpoint in one.endpoints or ():
        target = endpoint.target_ref
        if target and target.kind == "Pod" and target.uid:
            is_ready = endpoint.conditions is None or endpoint.conditions.ready is not False
            yield target.uid, target.name, is_ready


def _lasting(pod: Pod) -> Pod:
    """What does not change as long as the pod lives."""
    metadata = pod.metadata
    return Pod(
        metadata=Metadata(
            name=metadata.name,
            namespace=metadata.namespace,
            uid=metadata.uid,
            creation_timestamp=metadata.creation_timestamp,
            labels=metadata.labels,
        ),
        spec=PodSpec(containers=pod.spec.containers, readiness_gates=pod.spec.readiness_gates),
        status=PodStatus(),
    )

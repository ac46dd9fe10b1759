"""What serves behind a Service: the pool, the port and the pods' probe.

A pool is known by a key that outlives its addresses: `namespace/service`, `namespace/service:port` where the
endpoints of one service listen on different ports, "nodes" for node ports, "" for the pool without targets.
Services with the same selector share one. Pure; called by the front end (`resolve`) and by `compile`
(`addresses`).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from shared.ingress_sync.observation import Kubernetes
from shared.ingress_sync.policy import IngressSyncPolicy
from shared.ingress_sync.routes import Probe
from shared.model.ingress import (
    Container,
    ContainerProbe,
    Endpoint,
    EndpointSlice,
    IngressNode,
    IngressServiceBackend,
    Pod,
    Service,
    ServicePort,
)

SERVICE_LABEL = "kubernetes.io/service-name"
READINESS_GATE = "kubekeeper.io/gateway-ready"
EMPTY = ""
NODES = "nodes"
MAX_THRESHOLD = 20
MAX_PORT = 65_535

Note = tuple[str, str]
"""(reason, message)."""


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend of an Ingress leads to. `service` is `namespace/name:port` as the object has it."""

    pool: str
    port: int
    service: str
    probe: Probe | None = None
    """That of the pods; None when they have none."""
    notes: tuple[Note, ...] = ()
    is_mixed: bool = False
    """Its endpoints listen on several ports, of which one is used."""


class Backends:
    """The services of a cluster. `healthy` and `unhealthy` are what the gateway says of addresses."""

    def __init__(
        self,
        kubernetes: Kubernetes,
        policy: IngressSyncPolicy,
        healthy: frozenset[str] = frozenset(),
        unhealthy: frozenset[str] = frozenset(),
    ) -> None:
        self._policy = policy
        self._healthy, self._unhealthy = healthy, unhealthy
        self._services = {_key(s.metadata.namespace, s.metadata.name): s for s in kubernetes.services}
        self._slices: dict[str, list[EndpointSlice]] = {}
        for one in kubernetes.endpointslices:
            name = (one.metadata.labels or {}).get(SERVICE_LABEL)
            if name:
                self._slices.setdefault(_key(one.metadata.namespace, name), []).append(one)
        self._pods = {(pod.metadata.namespace, pod.metadata.name): pod for pod in kubernetes.pods}
        self._nodes = kubernetes.nodes
        self._canonical = self._shared_pools()
        self._resolved: dict[tuple[str, IngressServiceBackend], Resolved] = {}
        self._addresses: dict[str, tuple[str, ...]] = {}

    def resolve(self, namespace: str, backend: IngressServiceBackend) -> Resolved:
        """Where a backend leads. A service that is missing yields the empty pool, so that others go on."""
        known = self._resolved.get((namespace, backend))
        if known is None:
            known = self._resolved[namespace, backend] = self._resolve(namespace, backend)
        return known

    def addresses(self, pool: str) -> tuple[str, ...]:
        """The targets of a pool, sorted; IP addresses, or host names for an ExternalName."""
        known = self._addresses.get(pool)
        if known is None:
            known = self._addresses[pool] = tuple(sorted(set(self._find(pool))))
        return known

    # Ports

    def _resolve(self, namespace: str, backend: IngressServiceBackend) -> Resolved:
        key = _key(namespace, backend.name)
        wanted = backend.port.name or backend.port.number
        label = f"{key}:{wanted}"
        service = self._services.get(key)
        if service is None:
            note = ("ServiceNotFound", f"there is no Service {key}; create it or correct the name")
            return Resolved(pool=EMPTY, port=_usable(backend.port.number), service=label, notes=(note,))
        port, notes = _service_port(service, backend)
        if service.spec.type == "ExternalName":
            return self._external(key, label, service, port, backend)
        if self._policy.backend == "nodePorts":
            return self._node_port(key, label, service, port, notes)
        if port is None:
            return Resolved(pool=EMPTY, port=_usable(backend.port.number), service=label, notes=notes)
        return self._pod_port(key, label, service, port, notes)

    def _external(
        self,
        key: str,
        label: str,
        service: Service,
        port: ServicePort | None,
        backend: IngressServiceBackend,
    ) -> Resolved:
        target = port.target_port if port else 0
        number = target if isinstance(target, int) and target else port.port if port else backend.port.number
        return Resolved(
            pool=key if service.spec.external_name else EMPTY, port=_usable(number), service=label
        )

    def _node_port(
        self, key: str, label: str, service: Service, port: ServicePort | None, notes: tuple[Note, ...]
    ) -> Resolved:
        if port is None or not port.node_port:
            message = f"Service {key} has no node port for it; make it a NodePort service"
            return Resolved(pool=EMPTY, port=80, service=label, notes=(*notes, ("NoNodePort", message)))
        is_local = service.spec.external_traffic_policy == "Local"
        pool = f"{NODES}:{key}" if is_local else NODES
        return Resolved(pool=pool, port=port.node_port, service=label, notes=notes)

    def _pod_port(
        self, key: str, label: str, service: Service, port: ServicePort, notes: tuple[Note, ...]
    ) -> Resolved:
        numbers = self._port_numbers(key, port)
        if not numbers:
            number = self._expected_port(key, port)
            return Resolved(
                pool=self._canonical.get(key, key),
                port=number,
                service=label,
                probe=self._probe(key, number),
                notes=notes,
            )
        number, is_mixed = min(numbers), len(numbers) > 1
        if is_mixed:
            others = ", ".join(map(str, sorted(numbers)[1:]))
            text = (
                f"endpoints of Service {key} listen on several ports; {number} is used, {others} get nothing"
            )
            notes = (*notes, ("MixedTargetPorts", text))
        pool = f"{key}:{number}" if is_mixed else self._canonical.get(key, key)
        return Resolved(
            pool=pool,
            port=number,
            service=label,
            probe=self._probe(key, number),
            notes=notes,
            is_mixed=is_mixed,
        )

    def _port_numbers(self, key: str, port: ServicePort) -> set[int]:
        """The numbers that endpoints listen on for a service's port; those with usable endpoints, if any."""
        found: set[int] = set()
        usable: set[int] = set()
        for one in self._slices.get(key, ()):
            number = _number_in(one, port.name)
            if number and one.endpoints:
                found.add(number)
                if any(_is_ready(endpoint) for endpoint in one.endpoints):
                    usable.add(number)
        return usable or found

    def _expected_port(self, key: str, port: ServicePort) -> int:
        """Without endpoints: the target port, a named one as slices or the service's own port have it."""
        if isinstance(port.target_port, int) and port.target_port:
            return _usable(port.target_port)
        for one in self._slices.get(key, ()):
            number = _number_in(one, port.name)
            if number:
                return number
        return _usable(port.port)

    def _shared_pools(self) -> dict[str, str]:
        """Services that select the same pods, to the first of them by name."""
        first: dict[tuple[object, ...], str] = {}
        shared: dict[str, str] = {}
        for key in sorted(self._services):
            service = self._services[key]
            if service.spec.selector and service.spec.type != "ExternalName":
                selector = tuple(sorted(service.spec.selector.items()))
                same = (service.metadata.namespace, selector, service.spec.publish_not_ready_addresses)
                # A service whose slices have not come yet must not empty another's pool.
                if key in self._slices:
                    shared[key] = first.setdefault(same, key)
        return shared

    # Addresses

    def _find(self, pool: str) -> Iterable[str]:
        if pool == EMPTY:
            return ()
        if pool == NODES:
            return (address for node in self._nodes if (address := _node_address(node)))
        if pool.startswith(f"{NODES}:"):
            return self._nodes_of(pool.removeprefix(f"{NODES}:"))
        key, _, port = pool.partition(":")
        service = self._services.get(key)
        if service is not None and service.spec.type == "ExternalName":
            return (service.spec.external_name.rstrip(".").lower(),)
        return self._endpoints(key, int(port) if port else 0)

    def _nodes_of(self, key: str) -> Iterable[str]:
        """Nodes with a ready endpoint, for externalTrafficPolicy: Local."""
        names = {
            endpoint.node_name
            for one in self._slices.get(key, ())
            for endpoint in one.endpoints or ()
            if _is_ready(endpoint)
        }
        return (
            address
            for node in self._nodes
            if node.metadata.name in names and (address := _node_address(node))
        )

    def _endpoints(self, key: str, port: int) -> Iterable[str]:
        """Ready endpoints; those that terminate and still serve only while nothing else answers."""
        slices = [one for one in self._slices.get(key, ()) if _has_port(one, port)]
        if any(one.address_type != "IPv6" for one in slices):
            slices = [one for one in slices if one.address_type != "IPv6"]
        ready: list[str] = []
        leaving: list[str] = []
        for one in slices:
            for endpoint in one.endpoints or ():
                conditions = endpoint.conditions
                if conditions is None or (conditions.ready is not False and not conditions.terminating):
                    ready += endpoint.addresses[:1]
                elif _is_leaving(endpoint):
                    leaving += endpoint.addresses[:1]
                elif not conditions.terminating and self._is_awaited(one, endpoint):
                    ready += endpoint.addresses[:1]
        return ready + leaving if self._nobody_answers(ready) else ready

    def _is_awaited(self, one: EndpointSlice, endpoint: Endpoint) -> bool:
        """Not ready, and to be sent requests all the same: as AGIC does, or since the pod is not ready only
        as long as the gateway does not say so.
        """
        if self._policy.compatibility.not_ready_endpoints:
            return True
        target = endpoint.target_ref
        if not self._policy.readiness_gate or target is None:
            return False
        pod = self._pods.get((one.metadata.namespace, target.name))
        return pod is not None and waits_for_gateway(pod)

    def _nobody_answers(self, ready: list[str]) -> bool:
        """No endpoint is ready, or the gateway itself, where it was asked, says that none is healthy."""
        return not ready or (bool(self._unhealthy) and self._unhealthy.issuperset(ready))

    # Probes

    def _probe(self, key: str, port: int) -> Probe | None:
        """That of the oldest pod behind the service, so that it changes once in a rollout."""
        pods = sorted(self._pods_of(key), key=_age)
        for pod in pods:
            container = _container_with(pod, port)
            found = container and (container.readiness_probe or container.liveness_probe)
            if container and container.readiness_probe and not container.readiness_probe.http_get:
                found = container.liveness_probe
            if container and found and found.http_get:
                return _as_probe(found, container)
        return None

    def _pods_of(self, key: str) -> Iterable[Pod]:
        """The pods that slices refer to. A service without any has none, whatever pods have its port."""
        for one in self._slices.get(key, ()):
            namespace = one.metadata.namespace
            for endpoint in one.endpoints or ():
                target = endpoint.target_ref
                if target is not None and target.kind == "Pod":
                    pod = self._pods.get((namespace, target.name))
                    if pod is not None:
                        yield pod


def waits_for_gateway(pod: Pod) -> bool:
    """Whether a pod is ready but for the gate that the gateway's health opens."""
    gates = {gate.condition_type for gate in pod.spec.readiness_gates or ()}
    true = {condition.type for condition in pod.status.conditions or () if condition.status == "True"}
    needed = (gates - {READINESS_GATE}) | {"ContainersReady"}
    return READINESS_GATE in gates and needed <= true and pod.metadata.deletion_timestamp is None


def _key(namespace: str, name: str) -> str:
    return f"{namespace}/{name}"


def _usable(port: int) -> int:
    """A backend port: the number as it is where that is possible, else 80."""
    return port if 0 < port <= MAX_PORT else 80


def _service_port(
    service: Service, backend: IngressServiceBackend
) -> tuple[ServicePort | None, tuple[Note, ...]]:
    """The port by number or name, else, as AGIC does, by its target."""
    ports = [port for port in service.spec.ports or () if port.protocol in ("TCP", "")]
    name, number = backend.port.name, backend.port.number
    for port in ports:
        if (name and port.name == name) or (not name and port.port == number):
            return port, ()
    wanted = name or str(number)
    key = _key(service.metadata.namespace, service.metadata.name)
    for port in ports:
        if str(port.target_port) == wanted and wanted != "0":
            text = f"Service {key} has no port {wanted}, but a target port; write {port.name or port.port}"
            return port, (("PortByTarget", text),)
    there = ", ".join(f"{port.port}" + (f" ({port.name})" if port.name else "") for port in ports) or "none"
    return None, (("PortNotFound", f"Service {key} has no TCP port {wanted}; it has: {there}"),)


def _number_in(one: EndpointSlice, name: str) -> int:
    for port in one.ports or ():
        if (port.name or "") == name and (port.protocol or "TCP") == "TCP":
            return port.port or 0
    return 0


def _has_port(one: EndpointSlice, number: int) -> bool:
    return not number or any(port.port == number for port in one.ports or ())


def _is_ready(endpoint: Endpoint) -> bool:
    conditions = endpoint.conditions
    return conditions is None or (conditions.ready is not False and not conditions.terminating)


def _is_leaving(endpoint: Endpoint) -> bool:
    """Terminating, and still serving."""
    conditions = endpoint.conditions
    if conditions is None or not conditions.terminating:
        return False
    return bool(conditions.serving if conditions.serving is not None else conditions.ready)


def _node_address(node: IngressNode) -> str:
    is_ready = any(c.type == "Ready" and c.status == "True" for c in node.status.conditions or ())
    internal = (
        a.address for a in node.status.addresses or () if a.type == "InternalIP" and ":" not in a.address
    )
    return next(internal, "") if is_ready else ""


def _age(pod: Pod) -> tuple[bool, str, str]:
    metadata = pod.metadata
    born = metadata.creation_timestamp
    return metadata.deletion_timestamp is not None, born.isoformat() if born else "", metadata.name


def _container_with(pod: Pod, port: int) -> Container | None:
    for container in pod.spec.containers:
        if any(one.container_port == port for one in container.ports or ()):
            return container
    return None


def _as_probe(found: ContainerProbe, container: Container) -> Probe | None:
    get = found.http_get
    assert get is not None
    port = get.port if isinstance(get.port, int) else _named_port(container, get.port)
    header = next((h.value for h in get.http_headers or () if h.name.lower() == "host"), "")
    return Probe(
        protocol="Https" if get.scheme.upper() == "HTTPS" else "Http",
        host=(get.host or header).strip().lower(),
        path=_probe_path(get.path),
        port=port if 0 < port <= MAX_PORT else 0,
        interval=_within(found.period_seconds, 10),
        timeout=_within(found.timeout_seconds, 1),
        threshold=min(_within(found.failure_threshold, 3), MAX_THRESHOLD),
    )


def _named_port(container: Container, name: str) -> int:
    return next((one.container_port for one in container.ports or () if one.name == name), 0)


def _probe_path(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def _within(value: int | None, default: int) -> int:
    return default if value is None or value < 1 else min(value, 86_400)

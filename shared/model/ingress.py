"""The Kubernetes objects behind an ingress, as frozen values with only the fields that routing needs.

Names and shapes are those of the API, so that an object encodes back to what the API would answer, less the
rest. Decoded straight from a list's bytes with `decode_list`: an object that does not fit its type becomes a
`Malformed` entry and never hides its neighbours. No I/O; called by `shared.ingress_sync`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

import msgspec


class KubeStruct(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, gc=False):
    """Base of all: frozen, camelCase, defaults left out when encoded, unknown fields ignored."""


class Metadata(KubeStruct, frozen=True):
    """The part of ObjectMeta that matters here."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


# Ingress


class ServiceBackendPort(KubeStruct, frozen=True):
    name: str = ""
    number: int = 0


class IngressServiceBackend(KubeStruct, frozen=True):
    name: str
    port: ServiceBackendPort = ServiceBackendPort()


class IngressBackend(KubeStruct, frozen=True):
    """A service, or (not supported here) any resource."""

    service: IngressServiceBackend | None = None
    resource: dict[str, Any] | None = None


class IngressPath(KubeStruct, frozen=True):
    backend: IngressBackend
    path: str = ""
    path_type: str = ""


class HttpIngressRule(KubeStruct, frozen=True):
    paths: tuple[IngressPath, ...] | None = ()


class IngressRule(KubeStruct, frozen=True):
    host: str = ""
    http: HttpIngressRule | None = None


class IngressTls(KubeStruct, frozen=True):
    hosts: tuple[str, ...] | None = ()
    secret_name: str = ""


class IngressSpec(KubeStruct, frozen=True):
    ingress_class_name: str | None = None
    default_backend: IngressBackend | None = None
    tls: tuple[IngressTls, ...] | None = ()
    rules: tuple[IngressRule, ...] | None = ()


class LoadBalancerIngress(KubeStruct, frozen=True):
    ip: str = ""
    hostname: str = ""
    ports: tuple[dict[str, Any], ...] | None = ()


class LoadBalancerStatus(KubeStruct, frozen=True):
    ingress: tuple[LoadBalancerIngress, ...] | None = ()


class IngressStatus(KubeStruct, frozen=True):
    load_balancer: LoadBalancerStatus = LoadBalancerStatus()


class Ingress(KubeStruct, frozen=True):
    """networking.k8s.io/v1 Ingress."""

    metadata: Metadata
    spec: IngressSpec = IngressSpec()
    status: IngressStatus = IngressStatus()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"


class IngressClassSpec(KubeStruct, frozen=True):
    controller: str = ""


class IngressClass(KubeStruct, frozen=True):
    """networking.k8s.io/v1 IngressClass."""

    metadata: Metadata
    spec: IngressClassSpec = IngressClassSpec()


# Services and what serves behind them


class ServicePort(KubeStruct, frozen=True):
    port: int
    name: str = ""
    protocol: str = "TCP"
    target_port: int | str = 0
    node_port: int = 0


class ServiceSpec(KubeStruct, frozen=True):
    type: str = "ClusterIP"
    ports: tuple[ServicePort, ...] | None = ()
    selector: dict[str, str] | None = None
    external_name: str = ""
    publish_not_ready_addresses: bool = False
    external_traffic_policy: str = ""


class Service(KubeStruct, frozen=True):
    """v1 Service."""

    metadata: Metadata
    spec: ServiceSpec = ServiceSpec()


class EndpointConditions(KubeStruct, frozen=True):
    """None counts as true for `ready` and as `ready` for `serving`, as the API says."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class TargetRef(KubeStruct, frozen=True):
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class Endpoint(KubeStruct, frozen=True):
    addresses: tuple[str, ...] = ()
    conditions: EndpointConditions | None = None
    target_ref: TargetRef | None = None
    node_name: str | None = None


class EndpointPort(KubeStruct, frozen=True):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointSlice(KubeStruct, frozen=True):
    """discovery.k8s.io/v1 EndpointSlice; its service is named by the label kubernetes.io/service-name."""

    metadata: Metadata
    address_type: str = "IPv4"
    endpoints: tuple[Endpoint, ...] | None = ()
    ports: tuple[EndpointPort, ...] | None = ()


class HttpHeader(KubeStruct, frozen=True):
    name: str = ""
    value: str = ""


class HttpGet(KubeStruct, frozen=True):
    port: int | str = 0
    path: str = ""
    host: str = ""
    scheme: str = "HTTP"
    http_headers: tuple[HttpHeader, ...] | None = ()


class ContainerProbe(KubeStruct, frozen=True):
    http_get: HttpGet | None = None
    period_seconds: int | None = None
    timeout_seconds: int | None = None
    failure_threshold: int | None = None


class ContainerPort(KubeStruct, frozen=True):
    container_port: int = 0
    name: str = ""
    protocol: str = "TCP"


class Container(KubeStruct, frozen=True):
    name: str = ""
    ports: tuple[ContainerPort, ...] | None = ()
    readiness_probe: ContainerProbe | None = None
    liveness_probe: ContainerProbe | None = None


class ReadinessGate(KubeStruct, frozen=True):
    condition_type: str = ""


class PodSpec(KubeStruct, frozen=True):
    containers: tuple[Container, ...] = ()
    readiness_gates: tuple[ReadinessGate, ...] | None = ()
    node_name: str = ""


class PodCondition(KubeStruct, frozen=True):
    type: str
    status: str = ""


class PodStatus(KubeStruct, frozen=True):
    pod_ip: str = msgspec.field(default="", name="podIP")
    phase: str = ""
    conditions: tuple[PodCondition, ...] | None = ()


class Pod(KubeStruct, frozen=True):
    """v1 Pod: probes, named ports, labels, readiness gates."""

    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class NodeAddress(KubeStruct, frozen=True):
    type: str
    address: str


class NodeCondition(KubeStruct, frozen=True):
    type: str
    status: str = ""


class NodeStatus(KubeStruct, frozen=True):
    addresses: tuple[NodeAddress, ...] | None = ()
    conditions: tuple[NodeCondition, ...] | None = ()


class IngressNode(KubeStruct, frozen=True):
    """v1 Node, only for node ports: addresses and whether it is Ready."""

    metadata: Metadata
    status: NodeStatus = NodeStatus()


# Secrets, without their contents


class CertificateFacts(KubeStruct, frozen=True):
    """What may be said of a TLS Secret. `problem` is one sentence that says what to change; "" when usable.

    `digest` changes with certificate or key and with nothing else.
    """

    digest: str = ""
    not_after: datetime | None = None
    dns_names: tuple[str, ...] = ()
    subject: str = ""
    problem: str = ""


class TlsSecret(KubeStruct, frozen=True):
    """v1 Secret with its data replaced by `kubekeeper`, the facts; its data is never here."""

    metadata: Metadata
    type: str = ""
    kubekeeper: CertificateFacts = CertificateFacts()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"


# Custom resources that AGIC defines


class HeaderAction(KubeStruct, frozen=True):
    action_type: str = "set"
    header_name: str = ""
    header_value: str = ""


class UrlConfiguration(KubeStruct, frozen=True):
    modified_path: str = ""
    modified_query_string: str = ""
    reroute: bool = False


class RewriteActions(KubeStruct, frozen=True):
    request_header_configurations: tuple[HeaderAction, ...] | None = ()
    response_header_configurations: tuple[HeaderAction, ...] | None = ()
    url_configuration: UrlConfiguration | None = None


class RewriteCondition(KubeStruct, frozen=True):
    variable: str = ""
    pattern: str = ""
    ignore_case: bool = False
    negate: bool = False


class RewriteRule(KubeStruct, frozen=True):
    name: str
    rule_sequence: int = 100
    conditions: tuple[RewriteCondition, ...] | None = ()
    actions: RewriteActions = RewriteActions()


class RewriteSpec(KubeStruct, frozen=True):
    rewrite_rules: tuple[RewriteRule, ...] | None = ()


class Rewrite(KubeStruct, frozen=True):
    """appgw.ingress.azure.io/v1beta1 AzureApplicationGatewayRewrite."""

    metadata: Metadata
    spec: RewriteSpec = RewriteSpec()


class ProhibitedSpec(KubeStruct, frozen=True):
    hostname: str = ""
    paths: tuple[str, ...] | None = ()


class ProhibitedTarget(KubeStruct, frozen=True):
    """appgw.ingress.k8s.io/v1 AzureIngressProhibitedTarget: hosts and paths that are not ours to route."""

    metadata: Metadata
    spec: ProhibitedSpec = ProhibitedSpec()


# Decoding


class Malformed(KubeStruct, frozen=True):
    """An object that is not what its type says; `raw` is it as it came, so that a snapshot keeps it."""

    kind: str
    namespace: str
    name: str
    problem: str
    raw: dict[str, Any] = {}


class _RawList(msgspec.Struct):
    items: list[msgspec.Raw] | None = None


class _Named(msgspec.Struct):
    metadata: dict[str, Any] = {}


ObjectT = TypeVar("ObjectT", bound=KubeStruct)


def decode_list(body: bytes, kind: type[ObjectT]) -> tuple[tuple[ObjectT, ...], tuple[Malformed, ...]]:
    """The objects of a list's JSON, and those that do not fit; MsgspecError when it is no list at all."""
    raws = msgspec.json.decode(body, type=_RawList).items or []
    decoder = msgspec.json.Decoder(tuple[kind, ...])  # type: ignore[valid-type]
    try:
        return decoder.decode(b"[" + b",".join(bytes(raw) for raw in raws) + b"]"), ()
    except msgspec.ValidationError:
        return _one_by_one(raws, kind)


def _one_by_one(
    raws: list[msgspec.Raw], kind: type[ObjectT]
) -> tuple[tuple[ObjectT, ...], tuple[Malformed, ...]]:
    found: list[ObjectT] = []
    malformed: list[Malformed] = []
    for raw in raws:
        try:
            found.append(msgspec.json.decode(raw, type=kind))
        except msgspec.ValidationError as error:
            malformed.append(_malformed(kind.__name__, msgspec.json.decode(raw), str(error)))
    return tuple(found), tuple(malformed)


def _malformed(kind: str, document: Any, problem: str) -> Malformed:
    raw = document if isinstance(document, dict) else {"value": document}
    metadata = raw.get("metadata")
    named = metadata if isinstance(metadata, dict) else {}
    return Malformed(
        kind=kind,
        namespace=str(named.get("namespace") or ""),
        name=str(named.get("name") or ""),
        problem=problem,
        raw=raw,
    )

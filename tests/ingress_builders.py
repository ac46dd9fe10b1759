"""Ingress objects, what is behind them, and a gateway, with one sensible default each; a `Bench` to sync."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from sandbox.arm.gateway import new_gateway
from sandbox.arm.gateway_rules import check
from shared.ingress_sync.compiled import Compiled
from shared.ingress_sync.decide import decide_compiled
from shared.ingress_sync.gateway_routing import Answer, GatewayRouting
from shared.ingress_sync.observation import KINDS, Observation, read_objects
from shared.ingress_sync.ownership import every_part
from shared.ingress_sync.state import PartRecord, State, write_state
from shared.ingress_sync.validate import validate
from shared.model.gateway import COLLECTIONS, inside, part_digest, part_key, parts
from shared.model.plan import ActionKind, Plan
from shared.model.snapshot import AzureReading

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
GROUP = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/g/providers/Microsoft.Network"
GATEWAY = f"{GROUP}/applicationGateways/gw"
PUBLIC = f"{GROUP}/publicIPAddresses/ip"
WAF = f"{GROUP}/applicationGatewayWebApplicationFirewallPolicies/waf"
AGIC = "appgw.ingress.kubernetes.io/"
CLASS = {"metadata": {"name": "azure"}, "spec": {"controller": "azure/application-gateway"}}
Document = dict[str, Any]


def path(
    path: str | None = "/",
    service: str = "web",
    port: int | str = 80,
    kind: str | None = "Prefix",
) -> Document:
    number = {"number": port} if isinstance(port, int) else {"name": port}
    made: Document = {"backend": {"service": {"name": service, "port": number}}}
    if path is not None:
        made["path"] = path
    if kind is not None:
        made["pathType"] = kind
    return made


def rule(host: str = "", *paths: Document) -> Document:
    made: Document = {"http": {"paths": list(paths) or [path()]}}
    return {"host": host, **made} if host else made


def ingress(
    name: str = "web",
    *rules: Document,
    namespace: str = "shop",
    tls: list[Document] | None = None,
    default: Document | None = None,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> Document:
    """`annotations` without AGIC's prefix get it; `default` is a path's backend."""
    full = {key if "/" in key else AGIC + key: value for key, value in (annotations or {}).items()}
    body: Document = {"ingressClassName": "azure", **spec}
    if rules:
        body["rules"] = list(rules)
    if tls:
        body["tls"] = tls
    if default:
        body["defaultBackend"] = default["backend"]
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}", "annotations": full}
    return {"metadata": metadata, "spec": body}


def service(
    name: str = "web", *ports: Document, namespace: str = "shop", selector: Any = None, **spec: Any
) -> Document:
    body = {"ports": list(ports) or [{"port": 80, "targetPort": 9876}], **spec}
    if selector is not None:
        body["selector"] = selector
    return {"metadata": {"name": name, "namespace": namespace}, "spec": body}


def endpoint(address: str, pod: str = "", **conditions: bool) -> Document:
    made: Document = {"addresses": [address], "conditions": {"ready": True, **conditions}}
    if pod:
        made["targetRef"] = {"kind": "Pod", "name": pod, "namespace": "shop"}
    return made


def slice_of(
    service: str = "web",
    *endpoints: Document | str,
    port: int = 9876,
    port_name: str = "",
    namespace: str = "shop",
    suffix: str = "1",
) -> Document:
    return {
        "metadata": {
            "name": f"{service}-{suffix}",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "endpoints": [endpoint(one) if isinstance(one, str) else one for one in endpoints],
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
    }


def app(name: str = "web", *addresses: str, namespace: str = "shop", port: int = 9876) -> dict[str, Document]:
    """A service on port 80 and what serves behind it."""
    return {
        "services": service(name, {"port": 80, "targetPort": port}, namespace=namespace),
        "endpointslices": slice_of(name, *(addresses or ("10.9.8.7",)), port=port, namespace=namespace),
    }


def secret(name: str = "tls", digest: str = "d1", namespace: str = "shop", **facts: Any) -> Document:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/tls",
        "kubekeeper": {"digest": digest, **facts},
    }


def pod(name: str, probe: Document | None = None, *, port: int = 9876, **container: Any) -> Document:
    body: Document = {"name": "main", "ports": [{"name": "http", "containerPort": port}], **container}
    if probe is not None:
        body["readinessProbe"] = probe
    return {
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": "2026-11-01T00:00:00Z"},
        "spec": {"containers": [body]},
    }


def gateway(*, private: bool = False, default: bool = False, **collections: list[Document]) -> Document:
    """A running gateway. `default`: with the listener, rule and pool that a portal makes; `collections` are
    further parts of others, as {"name", "properties"}.
    """
    properties = new_gateway(GATEWAY, PUBLIC)
    if not default:
        for collection in ("httpListeners", "requestRoutingRules", "frontendPorts", "backendAddressPools"):
            properties[collection] = []
        properties["backendHttpSettingsCollection"] = []
    if private:
        inner = {"privateIPAddress": "10.0.0.4", "subnet": {"id": f"{GROUP}/virtualNetworks/v/subnets/s"}}
        properties["frontendIPConfigurations"].append({"name": "private", "properties": inner})
    for collection, found in collections.items():
        properties[collection] = [*properties.get(collection, []), *copy.deepcopy(found)]
    properties |= {"provisioningState": "Succeeded", "operationalState": "Running", "resourceGuid": "x"}
    return with_ids(
        {"id": GATEWAY, "name": "gw", "etag": 'W/"1"', "location": "here", "properties": properties}
    )


def with_ids(document: Document) -> Document:
    """Ids and etags in every part, as Resource Manager answers them."""
    for collection in COLLECTIONS:
        for part in document["properties"].get(collection) or []:
            part.setdefault("id", f"{GATEWAY}/{collection}/{part['name']}")
            part.setdefault("etag", document["etag"])
    return document


def ref(collection: str, name: str) -> Document:
    return {"id": f"{GATEWAY}/{collection}/{name}"}


class Bench:
    """A cluster and a gateway; `sync` decides and, as Azure would, takes the document."""

    def __init__(self, *objects: Any, gateway: Document | None = None, **policy: Any) -> None:
        self.objects: dict[str, list[Document]] = {"ingressclasses": [CLASS]}
        self.policy = {"gateway": GATEWAY, **policy}
        self.gateway = gateway if gateway is not None else globals()["gateway"]()
        self.state = State()
        self.now = NOW
        self.extra: list[AzureReading] = []
        self.puts = 0
        self.add(*objects)

    def add(self, *objects: Any) -> Bench:
        """Ingress objects, (services, slices) of `app`, or {plural: object}."""
        for one in objects:
            if "spec" in one and "metadata" in one:
                self.objects.setdefault("ingresses", []).append(one)
                continue
            for plural, found in one.items():
                assert plural in KINDS, plural
                self.objects.setdefault(plural, []).extend(found if isinstance(found, list) else [found])
        return self

    def replace(self, plural: str, *objects: Document) -> None:
        """Objects of the same name are replaced."""
        keys = {(o["metadata"]["namespace"], o["metadata"]["name"]) for o in objects}
        kept = [
            one
            for one in self.objects.get(plural, [])
            if (one["metadata"]["namespace"], one["metadata"]["name"]) not in keys
        ]
        self.objects[plural] = kept + list(objects)

    def remove(self, plural: str, name: str) -> None:
        self.objects[plural] = [one for one in self.objects[plural] if one["metadata"]["name"] != name]

    def observe(self) -> Observation:
        pages = {plural: [json.dumps({"items": found}).encode()] for plural, found in self.objects.items()}
        public = AzureReading(
            id=PUBLIC, status=200, read_at=self.now, body={"properties": {"ipAddress": "20.1.2.3"}}
        )
        return Observation(
            cluster="prod",
            now=self.now,
            cluster_entry={"name": "prod", "ingressSync": self.policy},
            kubernetes=read_objects(pages),
            azure=(
                AzureReading(id=GATEWAY, status=200, read_at=self.now, body=self.gateway),
                public,
                *self.extra,
            ),
            state=write_state(self.state),
        )

    def decide(self) -> tuple[Compiled, Plan]:
        observation = self.observe()
        return decide_compiled(observation, observation.policy, self.now)

    def sync(self) -> Compiled:
        """One round; what is planned to be written is checked as Azure does, and becomes the gateway."""
        compiled, plan = self.decide()
        if any(action.kind is ActionKind.PUT_GATEWAY for action in plan.actions):
            self.take(compiled)
        return compiled

    def take(self, compiled: Compiled) -> None:
        accept(compiled)
        self.puts += 1
        document = copy.deepcopy(compiled.document)
        document["etag"] = f'W/"{self.puts + 1}"'
        for certificate in parts(document, "sslCertificates"):
            if certificate["name"] in {upload.name for upload in compiled.uploads}:
                certificate["properties"]["publicCertData"] = "public"
        for collection, part in every_part(document):
            if part_key(collection, part["name"]) in compiled.parts:
                part["etag"] = document["etag"]
                part["properties"]["provisioningState"] = "Succeeded"
        self.gateway = document
        live = {part_key(c, p["name"]): part_digest(c, p) for c, p in every_part(document)}
        records = {key: PartRecord(sent=sent, live=live[key]) for key, sent in compiled.parts.items()}
        self.state = msgspec.structs.replace(self.state, parts=records, routes=compiled.routes)

    # Looking

    def get(self, host: str, path: str = "/", *, port: int = 80, frontend: str = "public") -> Answer:
        """What the gateway answers; https where the listener is."""
        routing = GatewayRouting(self.gateway)
        listener = routing.listener(frontend, port, host)
        return listener.matcher.answer(path) if listener else Answer()

    def parts(self, collection: str) -> list[Document]:
        """Our parts of a collection, their properties with the name."""
        found = [p for p in parts(self.gateway, collection) if p["name"].startswith("kk_prod_")]
        return [{"name": one["name"], **one["properties"]} for one in found]

    def hosts(self) -> set[str]:
        found: set[str] = set()
        for listener in self.parts("httpListeners"):
            found |= set(listener.get("hostNames") or [listener.get("hostName", "")])
        return found


def accept(compiled: Compiled) -> None:
    """What Azure (as the local one knows it) and our own rules say of a document."""
    problems = validate(compiled.document, set(compiled.parts), [one.name for one in compiled.uploads])
    assert problems == []
    document = copy.deepcopy(compiled.document)
    uploads = {upload.name for upload in compiled.uploads}
    for certificate in parts(document, "sslCertificates"):
        if certificate["name"] in uploads:
            certificate["properties"] = {"data": "pfx"}
    check(document)
    ids = {part["id"].lower() for _, part in every_part(document)}
    for _, part in every_part(document):
        for field, value in inside(part).items():
            if isinstance(value, dict) and str(value.get("id", "")).startswith(GATEWAY + "/"):
                assert value["id"].lower() in ids, (part["name"], field)


def later(**delta: float) -> datetime:
    return NOW + timedelta(**delta)

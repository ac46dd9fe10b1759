"""Application Gateways: one large document each, written as a whole.

A PUT is checked (`gateway_rules`), stored at once and takes effect when its operation ends; a later PUT
cancels an earlier one. `hidden["serving"]` is the document that traffic meets. Secrets of certificates are
kept and never answered; a PUT without them keeps them.

Settings (`core.settings`): `gateway_if_match` (default True: If-Match is honoured, which nobody outside has
verified), `gateway_updating_seconds` (after which provisioningState says Succeeded although the operation is
still running, as seen in azure-cli#32961; default None: it says Updating to the end).
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from sandbox.arm.compute.machines import missing_reference
from sandbox.arm.core import Answer, ArmError, Call, Core, Limit, ResourceType, merged
from sandbox.arm.gateway_rules import COLLECTIONS, check, parts, references
from sandbox.arm.state import Document, Operation, Resource
from shared.errors import SettingsError
from shared.model.resource_id import ResourceId, parse_resource_id

GATEWAYS = "Microsoft.Network/applicationGateways"
NETWORK_VERSIONS = frozenset(
    {"2021-03-01", "2023-11-01", "2024-05-01", "2024-10-01", "2025-01-01", "2025-05-01", "2026-03-01"}
)
# MicrosoftDocs: 1,000 writes and 10,000 reads in 5 minutes.
NETWORK_READS = Limit("Microsoft.Network/Reads5Min", 10_000, 10_000 / 300)
NETWORK_WRITES = Limit("Microsoft.Network/Writes5Min", 1_000, 1_000 / 300, "RetryableError")
SUPERSEDED = {
    "code": "CanceledAndSupersededDueToAnotherOperation",
    "message": "Operation was canceled and superseded by another operation.",
}
STATELESS = frozenset({"redirectConfigurations"})  # no provisioningState
TYPELESS = frozenset({"rewriteRuleSets"})
SECRETS = ("data", "password")


class Gateways(ResourceType):
    """The gateways."""

    name = GATEWAYS
    api_versions = NETWORK_VERSIONS
    tracked = True

    def __init__(self) -> None:
        super().__init__()
        self.actions = {
            "start": self.start,
            "stop": self.stop,
            "backendhealth": self.backend_health,
        }

    def limits(self, call: Call) -> tuple[Limit, ...]:
        return (NETWORK_READS if call.method == "GET" else NETWORK_WRITES,)

    def get(self, call: Call) -> Answer:
        gateway = call.existing()
        return Answer(200, self.render(gateway), {"ETag": weak(gateway)})

    def render(self, resource: Resource) -> Document:
        """With the gateway's etag and state in every part, as the service shows them."""
        document = {**super().render(resource), "etag": weak(resource)}
        state = document["properties"]["provisioningState"]
        properties = dict(document["properties"])
        for collection in COLLECTIONS:
            if collection in properties:
                properties[collection] = [
                    _shown(part, collection, weak(resource), state) for part in properties[collection]
                ]
        return {**document, "properties": properties}

    def put(self, call: Call) -> Answer:
        existing = call.state.find(call.id)
        if call.core.settings.get("gateway_if_match", True):
            call.check_if_match(existing, 412, "PreconditionFailedEtagMismatch")
        if existing is not None and existing.body["properties"]["provisioningState"] == "Deleting":
            message = f"The application gateway {call.id.name} is being deleted."
            raise ArmError(409, "AnotherOperationInProgress", message)
        document = call.document
        if not document.get("location"):
            raise ArmError(400, "LocationRequired", "The location property is required for this definition.")
        body, secrets = normalised(call, existing)
        check({**body, "id": str(call.id)})
        check_references(call, body)
        _add_back_references(body)
        old = existing.hidden if existing else {"serving": None, "stopped": False}
        call.state.store(call.id, body, {**old, "secrets": secrets})
        return self._begin(call, {"do": "serve"}, 200 if existing else 201)

    def patch(self, call: Call) -> Answer:
        """Tags only, at once."""
        existing = call.existing()
        body = {**existing.body, "tags": call.document.get("tags") or {}}
        return Answer(200, self.render(call.state.store(call.id, body)))

    def delete(self, call: Call) -> Answer:
        gateway = call.state.find(call.id)
        if gateway is None:
            return Answer(204)
        body = merged(gateway.body, {"properties": {"provisioningState": "Deleting"}})
        call.state.store(call.id, body)
        return self._begin(call, {"delete": True}, 202)

    def start(self, call: Call) -> Answer:
        return self._operate(call, "Starting", "Running")

    def stop(self, call: Call) -> Answer:
        return self._operate(call, "Stopping", "Stopped")

    def backend_health(self, call: Call) -> Answer:
        """What probes say of the servers behind the rules in force."""
        gateway = call.existing()
        if gateway.body["properties"]["operationalState"] != "Running":
            message = f"The application gateway {call.id.name} is not running."
            raise ArmError(400, "ApplicationGatewayBackendHealthGatewayNotRunning", message)
        health = _health(call.core, gateway)
        _, headers = call.core.begin(
            call, {}, location=gateway.body["location"], result=health, on_running="concurrent"
        )
        call.core.settle()
        return Answer(202, None, headers)

    def finish(self, core: Core, operation: Operation) -> None:
        effect, gateway = operation.effect, core.state.find(operation.resource)
        if gateway is None or not effect:
            return
        where = parse_resource_id(gateway.id)
        if effect.get("delete"):
            core.state.remove(where)
            return
        properties: Document = {"provisioningState": "Succeeded"}
        hidden = dict(gateway.hidden)
        if effect["do"] == "serve":
            hidden["serving"] = gateway.body
            properties["operationalState"] = "Stopped" if hidden["stopped"] else "Running"
        if effect["do"] == "operate":
            properties["operationalState"] = effect["to"]
            hidden["stopped"] = effect["to"] == "Stopped"
            if not hidden["stopped"]:  # instances come up anew, with what is stored
                hidden["serving"] = gateway.body
        # The same etag: only writes of callers make a new version.
        store_silently(core, where, merged(gateway.body, {"properties": properties}), hidden)

    def fail(self, core: Core, operation: Operation) -> None:
        gateway = core.state.find(operation.resource)
        if gateway is not None and operation.effect:
            body = merged(gateway.body, {"properties": {"provisioningState": "Failed"}})
            store_silently(core, parse_resource_id(gateway.id), body, gateway.hidden)

    def _operate(self, call: Call, meanwhile: str, after: str) -> Answer:
        gateway = call.existing()
        properties = {"operationalState": meanwhile, "provisioningState": "Updating"}
        call.state.store(call.id, merged(gateway.body, {"properties": properties}))
        return self._begin(call, {"do": "operate", "to": after}, 202)

    def _begin(self, call: Call, effect: Document, status: int) -> Answer:
        location, shown = call.existing().body["location"], call.core.settings.get("gateway_updating_seconds")
        _, headers = call.core.begin(
            call, effect, location=location, on_running="supersede", superseded=SUPERSEDED
        )
        if shown is not None:
            call.core.schedule(call.id, {"do": "show"}, verb="show", seconds=shown, visible=False)
        call.core.settle()
        found = call.state.find(call.id)
        if status == 202 or found is None:
            return Answer(202, None, headers)
        headers.pop("Location")
        return Answer(status, self.render(found), headers)


# --- documents ---


def weak(resource: Resource) -> str:
    return f"W/{resource.etag}"


def store_silently(core: Core, where: ResourceId, body: Document, hidden: Document) -> None:
    """Store with the old etag."""
    etag = core.state.resources[where.key].etag
    core.state.store(where, body, hidden).etag = etag


def normalised(call: Call, existing: Resource | None) -> tuple[Document, Document]:
    """The body to store, ids of all parts rewritten and secrets taken out; and the secrets by certificate."""
    document = copy.deepcopy(call.document)
    properties: Document = document.get("properties") or {}
    gateway_id = existing.id if existing else str(call.id)
    old = existing.hidden.get("secrets", {}) if existing else {}
    for collection in COLLECTIONS:
        _check_names(gateway_id, collection, properties.get(collection) or [])
        properties[collection] = [
            _part(part, f"{gateway_id}/{collection}") for part in properties.get(collection) or []
        ]
    for path_map in properties["urlPathMaps"]:
        rules = path_map["properties"].get("pathRules") or []
        _check_names(path_map["id"], "pathRules", rules)
        path_map["properties"]["pathRules"] = [_part(rule, f"{path_map['id']}/pathRules") for rule in rules]
    secrets = {}
    for certificate in properties["sslCertificates"]:
        name, inside = certificate["name"], certificate["properties"]
        given = {field: inside.pop(field) for field in SECRETS if inside.get(field)}
        kept = given or old.get(name, {})
        if kept:
            secrets[name] = kept
            inside["publicCertData"] = inside.get("publicCertData") or f"public part of {name}"
    was = existing.body["properties"] if existing else {}
    fixed = {
        "provisioningState": "Updating",
        "operationalState": was.get("operationalState", "Stopped"),
        "resourceGuid": was.get("resourceGuid") or call.state.new_id(),
    }
    body = {"location": document["location"], "tags": document.get("tags") or {}}
    body |= {name: document[name] for name in ("zones", "identity") if document.get(name)}
    return {**body, "properties": {**properties, **fixed}}, secrets


def new_gateway(gateway_id: str, public_address: str) -> Document:
    """The properties of the smallest gateway that Azure accepts."""

    def ref(collection: str, name: str) -> Document:
        return {"id": f"{gateway_id}/{collection}/{name}"}

    def part(name: str, **inside: Any) -> list[Document]:
        return [{"name": name, "properties": inside}]

    subnet = gateway_id.partition("/applicationGateways/")[0] + "/virtualNetworks/vnet/subnets/gateway"
    return {
        "sku": {"name": "Standard_v2", "tier": "Standard_v2", "capacity": 2},
        "gatewayIPConfigurations": part("subnet", subnet={"id": subnet}),
        "frontendIPConfigurations": part("public", publicIPAddress={"id": public_address}),
        "frontendPorts": part("port80", port=80),
        "backendAddressPools": part("default", backendAddresses=[]),
        "backendHttpSettingsCollection": part("default", port=80, protocol="Http", requestTimeout=30),
        "httpListeners": part(
            "default",
            protocol="Http",
            frontendIPConfiguration=ref("frontendIPConfigurations", "public"),
            frontendPort=ref("frontendPorts", "port80"),
        ),
        "requestRoutingRules": part(
            "default",
            ruleType="Basic",
            priority=20_000,
            httpListener=ref("httpListeners", "default"),
            backendAddressPool=ref("backendAddressPools", "default"),
            backendHttpSettings=ref("backendHttpSettingsCollection", "default"),
        ),
    }


def _part(part: Document, where: str) -> Document:
    inside = {name: v for name, v in (part.get("properties") or {}).items() if name != "provisioningState"}
    kind = "Microsoft.Network/applicationGateways/" + "/".join(where.split("/")[9::2])
    return {"name": part["name"], "id": f"{where}/{part['name']}", "type": kind, "properties": inside}


def _check_names(owner: str, collection: str, found: list[Document]) -> None:
    names = Counter(str(part.get("name") or "").lower() for part in found)
    if names[""]:
        detail = {"code": "MissingResourceName", "message": f"{owner}/{collection} has a part without name."}
        raise ArmError(400, "InvalidRequestFormat", "Cannot parse the request.", details=[detail])
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice:
        message = f"Resource {owner} has two child resources with the same name ({twice}) in {collection}."
        detail = {"code": "DuplicateResourceName", "message": message}
        raise ArmError(400, "InvalidRequestFormat", "Cannot parse the request.", details=[detail])


def check_references(call: Call, body: Document) -> None:
    """Parts refer to parts that are there, and to resources that exist (as far as they are modelled)."""
    own = {part["id"].lower() for collection in COLLECTIONS for part in parts(body, collection)}
    own |= {
        rule["id"].lower() for part in parts(body, "urlPathMaps") for rule in part["properties"]["pathRules"]
    }
    for collection in COLLECTIONS:
        for part in parts(body, collection):
            for wanted in _wanted(part, collection):
                if wanted.lower() not in own and _is_missing(call.core, wanted):
                    raise missing_reference(wanted, part["id"])
    policy = (body["properties"].get("firewallPolicy") or {}).get("id")
    if policy and _is_missing(call.core, policy):
        raise missing_reference(policy, call.id)


def _wanted(part: Document, collection: str) -> list[str]:
    inside = part["properties"]
    if collection == "redirectConfigurations":
        inside = {name: v for name, v in inside.items() if name not in BACK_REFERENCES}
    return list(references(inside))


def _is_missing(core: Core, wanted: str) -> bool:
    try:
        target = parse_resource_id(wanted)
    except SettingsError:
        return True
    if target.type.lower().startswith(GATEWAYS.lower() + "/"):
        return True
    return target.type.lower() in core.types and core.state.find(target) is None


BACK_REFERENCES = ("requestRoutingRules", "urlPathMaps", "pathRules")


def _add_back_references(body: Document) -> None:
    """Redirects say who uses them."""
    users: dict[str, dict[str, list[Document]]] = {}

    def note(part: Document, field: str, kind: str) -> None:
        wanted = ((part.get("properties") or {}).get(field) or {}).get("id")
        if wanted:
            users.setdefault(wanted.lower(), {}).setdefault(kind, []).append({"id": part["id"]})

    for rule in parts(body, "requestRoutingRules"):
        note(rule, "redirectConfiguration", "requestRoutingRules")
    for path_map in parts(body, "urlPathMaps"):
        note(path_map, "defaultRedirectConfiguration", "urlPathMaps")
        for rule in path_map["properties"]["pathRules"]:
            note(rule, "redirectConfiguration", "pathRules")
    for redirect in parts(body, "redirectConfigurations"):
        kept = {name: v for name, v in redirect["properties"].items() if name not in BACK_REFERENCES}
        redirect["properties"] = {**kept, **users.get(redirect["id"].lower(), {})}


def _shown(part: Document, collection: str, etag: str, state: str) -> Document:
    inside = part["properties"]
    if collection == "urlPathMaps":
        rules = [_shown(rule, "pathRules", etag, state) for rule in inside.get("pathRules") or []]
        inside = {**inside, "pathRules": rules}
    if collection not in STATELESS:
        inside = {**inside, "provisioningState": state}
    shown = {**part, "etag": etag, "properties": inside}
    return {n: v for n, v in shown.items() if n != "type"} if collection in TYPELESS else shown


def _health(core: Core, gateway: Resource) -> Document:
    """Pools with the settings they are used with."""
    serving = gateway.hidden["serving"] or gateway.body
    addresses = {part["id"].lower(): part["properties"] for part in parts(serving, "backendAddressPools")}
    names = {part["id"].lower(): part["id"] for name in COLLECTIONS for part in parts(serving, name)}
    used: dict[str, list[str]] = {}
    rules: list[tuple[Any, Any]] = []
    for rule in parts(serving, "requestRoutingRules"):
        inside = rule["properties"]
        rules.append((inside.get("backendAddressPool"), inside.get("backendHttpSettings")))
    for path_map in parts(serving, "urlPathMaps"):
        inside = path_map["properties"]
        rules.append((inside.get("defaultBackendAddressPool"), inside.get("defaultBackendHttpSettings")))
        for rule in inside["pathRules"]:
            below = rule["properties"]
            rules.append((below.get("backendAddressPool"), below.get("backendHttpSettings")))
    for pool, settings in rules:
        if pool and settings and settings["id"].lower() not in used.setdefault(pool["id"].lower(), []):
            used[pool["id"].lower()].append(settings["id"].lower())
    pools = []
    for pool_id, settings_ids in used.items():
        targets = addresses[pool_id].get("backendAddresses") or []
        servers = [_server(core, target.get("ipAddress") or target.get("fqdn")) for target in targets]
        collection = [
            {"backendHttpSettings": {"id": names[found]}, "servers": servers} for found in settings_ids
        ]
        pools.append(
            {"backendAddressPool": {"id": names[pool_id]}, "backendHttpSettingsCollection": collection}
        )
    return {"backendAddressPools": pools}


def _server(core: Core, address: str) -> Document:
    why = core.state.truth.unhealthy_backends.get(address)
    health = {"health": "Unhealthy" if why else "Healthy"}
    return {"address": address, **health, "healthProbeLog": why or "Success. Received 200 status code"}

"""Microsoft.Network: interfaces, public addresses, firewall policies; gateways are in `gateway`."""

from __future__ import annotations

from sandbox.arm.compute.machines import missing_reference
from sandbox.arm.core import Answer, ArmError, Call, Core, Limit, ResourceType, merged
from sandbox.arm.gateway import NETWORK_READS, NETWORK_VERSIONS, NETWORK_WRITES, SUPERSEDED, Gateways, weak
from sandbox.arm.state import Document, Resource
from shared.model.resource_id import parse_resource_id

INTERFACES = "Microsoft.Network/networkInterfaces"
ADDRESSES = "Microsoft.Network/publicIPAddresses"
POLICIES = "Microsoft.Network/applicationGatewayWebApplicationFirewallPolicies"


def types() -> list[ResourceType]:
    """What Microsoft.Network adds to the core."""
    return [Interfaces(), PublicAddresses(), FirewallPolicies(), Gateways()]


class NetworkType(ResourceType):
    """What the small ones share: written as a whole, etags with If-Match, tags by PATCH."""

    api_versions = NETWORK_VERSIONS
    tracked = True

    def limits(self, call: Call) -> tuple[Limit, ...]:
        return (NETWORK_READS if call.method == "GET" else NETWORK_WRITES,)

    def get(self, call: Call) -> Answer:
        found = call.existing()
        return Answer(200, self.render(found), {"ETag": weak(found)})

    def render(self, resource: Resource) -> Document:
        return {**super().render(resource), "etag": weak(resource)}

    def put(self, call: Call) -> Answer:
        existing, document = call.state.find(call.id), call.document
        call.check_if_match(existing, 412, "PreconditionFailedEtagMismatch")
        if not document.get("location"):
            raise ArmError(400, "LocationRequired", "The location property is required for this definition.")
        was = existing.body["properties"] if existing else {}
        body = {"location": document["location"], "tags": document.get("tags") or {}}
        body |= {name: document[name] for name in ("sku", "zones") if document.get(name)}
        properties = self.properties(call, was)
        guid = was.get("resourceGuid") or call.state.new_id()
        body["properties"] = {**properties, "resourceGuid": guid, "provisioningState": "Updating"}
        if "resourceGuid" in self.unshown:
            del body["properties"]["resourceGuid"]
        stored = call.state.store(call.id, body)
        self.connect(call.core, stored)
        effect = {"merge": {"properties": {"provisioningState": "Succeeded"}}}
        _, headers = call.core.begin(
            call, effect, location=body["location"], on_running="supersede", superseded=SUPERSEDED
        )
        call.core.settle()
        headers.pop("Location")
        return Answer(200 if existing else 201, self.render(call.existing()), headers)

    unshown: frozenset[str] = frozenset()

    def patch(self, call: Call) -> Answer:
        body = {**call.existing().body, "tags": call.document.get("tags") or {}}
        return Answer(200, self.render(call.state.store(call.id, body)))

    def delete(self, call: Call) -> Answer:
        found = call.state.find(call.id)
        if found is None:
            return Answer(204)
        self.refuse_if_used(call, found)
        _, headers = call.core.begin(call, {"delete": True}, location=found.body["location"])
        call.core.settle()
        return Answer(202, None, headers)

    def properties(self, call: Call, was: Document) -> Document:
        return dict(call.properties)

    def connect(self, core: Core, resource: Resource) -> None:
        """Let others know of it."""

    def refuse_if_used(self, call: Call, found: Resource) -> None:
        """ArmError while another resource needs it."""


class Interfaces(NetworkType):
    """Network interfaces: private addresses, and the machine that has each."""

    name = INTERFACES

    def properties(self, call: Call, was: Document) -> Document:
        wanted = dict(call.properties)
        configurations = wanted.get("ipConfigurations") or []
        if not configurations:
            message = f"The network interface {call.id} needs at least one IP configuration."
            raise ArmError(400, "NetworkInterfaceMustHaveIpConfiguration", message)
        old = {part["name"]: part["properties"] for part in was.get("ipConfigurations") or []}
        wanted["ipConfigurations"] = [self._configuration(call, part, old) for part in configurations]
        wanted.pop("virtualMachine", None)
        kept = {name: was[name] for name in ("virtualMachine", "macAddress") if was.get(name)}
        return {"macAddress": "00-0D-3A-00-00-01", "enableIPForwarding": False, **wanted, **kept}

    def _configuration(self, call: Call, part: Document, old: dict[str, Document]) -> Document:
        inside = dict(part.get("properties") or {})
        public = (inside.get("publicIPAddress") or {}).get("id")
        if public and call.state.find(public) is None:
            raise missing_reference(public, call.id)
        address = old.get(part["name"], {}).get("privateIPAddress") or _address(call.state.serial)
        inside = {
            "privateIPAllocationMethod": "Dynamic",
            "primary": True,
            "privateIPAddress": address,
            **inside,
        }
        inside["provisioningState"] = "Succeeded"
        where = f"{call.id}/ipConfigurations/{part['name']}"
        return {"name": part["name"], "id": where, "properties": inside}

    def connect(self, core: Core, resource: Resource) -> None:
        for part in resource.body["properties"]["ipConfigurations"]:
            public = core.state.find((part["properties"].get("publicIPAddress") or {}).get("id") or "")
            if public is not None:
                used = merged(public.body, {"properties": {"ipConfiguration": {"id": part["id"]}}})
                core.state.store(parse_resource_id(public.id), used)

    def refuse_if_used(self, call: Call, found: Resource) -> None:
        user = (found.body["properties"].get("virtualMachine") or {}).get("id")
        if user:
            message = (
                f"Network Interface {found.id} is used by existing resource {user}. In order to delete the "
                "network interface, it must be dissociated from the resource."
            )
            raise ArmError(400, "NicInUse", message)


class PublicAddresses(NetworkType):
    """Public IP addresses."""

    name = ADDRESSES

    def properties(self, call: Call, was: Document) -> Document:
        serial = call.state.serial
        address = (
            was.get("ipAddress") or f"20.{serial // 62_500 % 250}.{serial // 250 % 250}.{serial % 250 + 1}"
        )
        kept = {name: was[name] for name in ("ipConfiguration",) if was.get(name)}
        fixed = {"publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4", "ipAddress": address}
        return {**fixed, "idleTimeoutInMinutes": 4, **call.properties, **kept}

    def refuse_if_used(self, call: Call, found: Resource) -> None:
        user = (found.body["properties"].get("ipConfiguration") or {}).get("id")
        if user and call.state.find(user.rpartition("/ipConfigurations/")[0]) is not None:
            message = (
                f"Public IP address {found.id} can not be deleted since it is still allocated to {user}."
            )
            raise ArmError(400, "PublicIPAddressCannotBeDeleted", message)


class FirewallPolicies(NetworkType):
    """Web application firewall policies, so that references to them can be right or wrong."""

    name = POLICIES
    unshown = frozenset({"resourceGuid"})

    def properties(self, call: Call, was: Document) -> Document:
        rules = {"managedRuleSets": [{"ruleSetType": "OWASP", "ruleSetVersion": "3.2"}]}
        return {"managedRules": rules, "resourceState": "Enabled", **call.properties}


def _address(serial: int) -> str:
    return f"10.{224 + serial // 62_500 % 16}.{serial // 250 % 250}.{serial % 250 + 4}"

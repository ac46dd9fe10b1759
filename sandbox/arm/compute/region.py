"""Availability sets, sizes on offer, and usage against quota: what a region has to say."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox.arm.capacity import Size
from sandbox.arm.compute.disks import MACHINE_VERSIONS
from sandbox.arm.compute.quota import AVAILABILITY_SETS, TITLES, VIRTUAL_MACHINES, usage
from sandbox.arm.core import Answer, ArmError, Call, ResourceType, method_not_allowed, page
from sandbox.arm.state import Document, Resource

SKU_VERSIONS = frozenset({"2019-04-01", "2021-07-01"})
REGIONS = ("westeurope", "northeurope")


class AvailabilitySets(ResourceType):
    """Sets that spread single machines over fault domains."""

    name = AVAILABILITY_SETS
    api_versions = MACHINE_VERSIONS
    tracked = True

    def get(self, call: Call) -> Answer:
        return Answer(200, self._with_members(call, call.existing()))

    def put(self, call: Call) -> Answer:
        existing, document = call.state.find(call.id), call.document
        if not document.get("location"):
            raise ArmError(400, "LocationRequired", "The location property is required for this definition.")
        counts = {"platformUpdateDomainCount": 5, "platformFaultDomainCount": 2}
        properties = {n: v for n, v in call.properties.items() if n not in ("virtualMachines", "statuses")}
        body = {"location": document["location"], "tags": document.get("tags") or {}}
        body |= {"sku": document.get("sku") or {"name": "Classic"}}
        old = existing.body["properties"] if existing else {}
        call.state.store(call.id, {**body, "properties": {**counts, **old, **properties}})
        return self.get(call)

    def patch(self, call: Call) -> Answer:
        existing = call.existing()
        call.state.store(call.id, {**existing.body, "tags": call.document.get("tags") or {}})
        return self.get(call)

    def delete(self, call: Call) -> Answer:
        if call.state.find(call.id) is None:
            return Answer(204)
        members = self._members(call, str(call.id))
        if members:
            message = (
                f"Availability Set '{call.id.name}' cannot be deleted. It is in use by {members[0]['id']}."
            )
            raise ArmError(409, "OperationNotAllowed", message)
        call.state.remove(call.id)
        return Answer(200)

    def list(self, call: Call, scope: str) -> Answer:
        return page(call, [self._with_members(call, found) for found in call.state.of_type(self.name, scope)])

    def _with_members(self, call: Call, found: Resource) -> Document:
        properties = {**found.body["properties"], "virtualMachines": self._members(call, found.id)}
        return {**self.render(found), "properties": properties}

    def _members(self, call: Call, set_id: str) -> Sequence[Document]:
        found = []
        for machine in call.state.of_type(VIRTUAL_MACHINES):
            wanted = (machine.body["properties"].get("availabilitySet") or {}).get("id", "")
            if wanted.lower() == set_id.lower():
                found.append({"id": machine.id})
        return found


class Skus(ResourceType):
    """`GET .../skus`: every size in every region; `$filter=location eq 'x'`."""

    name = "Microsoft.Compute/skus"
    api_versions = SKU_VERSIONS

    def get(self, call: Call) -> Answer:
        raise method_not_allowed(call)

    def list(self, call: Call, scope: str) -> Answer:
        asked = call.query.get("$filter", "")
        regions = [region for region in REGIONS if not asked or f"'{region}'" in asked.lower()]
        sizes = call.state.capacity.sizes
        return page(call, [_sku(size, region) for region in regions for size in sizes])


class Usages(ResourceType):
    """`GET .../locations/{location}/usages`: quota and what is used of it."""

    name = "Microsoft.Compute/locations/usages"
    api_versions = MACHINE_VERSIONS

    def get(self, call: Call) -> Answer:
        raise method_not_allowed(call)

    def list(self, call: Call, scope: str) -> Answer:
        used = usage(call.state, call.id.names[0].lower())
        found = []
        for name, value in used.items():
            title = TITLES.get(name, f"{name} vCPUs")
            limit = call.state.capacity.limit(name)
            document = {"unit": "Count", "currentValue": value, "limit": limit}
            found.append({**document, "name": {"value": name, "localizedValue": title}})
        return page(call, found)


def _sku(size: Size, region: str) -> Document:
    capabilities = {
        "vCPUs": size.vcpus,
        "MemoryGB": f"{size.memory_gib:g}",
        "MaxDataDiskCount": size.max_data_disks,
        "CpuArchitectureType": size.architecture,
        "PremiumIO": True,
        "LowPriorityCapable": True,
        "GPUs": size.gpus,
    }
    restrictions = []
    if size.restricted:
        info = {"locations": [region]}
        restrictions.append({"type": "Location", "values": [region], "restrictionInfo": info})
    if size.restricted_zones:
        info = {"locations": [region], "zones": size.restricted_zones}
        restrictions.append({"type": "Zone", "values": [region], "restrictionInfo": info})
    return {
        "resourceType": "virtualMachines",
        "name": size.name,
        "tier": "Standard",
        "size": size.name.removeprefix("Standard_"),
        "family": size.family,
        "locations": [region],
        "locationInfo": [{"location": region, "zones": size.zones, "zoneDetails": []}],
        "capabilities": [
            {"name": name, "value": str(value)} for name, value in capabilities.items() if value != 0
        ],
        "restrictions": [
            {**restriction, "reasonCode": "NotAvailableForSubscription"} for restriction in restrictions
        ],
    }

"""Which sizes there are, and what the quota of a region says to more machines.

Stopped and deallocated machines count like running ones, as Azure's documentation says.
"""

from __future__ import annotations

from collections import Counter

from sandbox.arm.capacity import Size
from sandbox.arm.core import ArmError, Core
from sandbox.arm.state import Resource, State

VIRTUAL_MACHINES = "Microsoft.Compute/virtualMachines"
SCALE_SETS = "Microsoft.Compute/virtualMachineScaleSets"
INSTANCES = f"{SCALE_SETS}/virtualMachines"
AVAILABILITY_SETS = "Microsoft.Compute/availabilitySets"
TITLES = {
    "availabilitySets": "Availability Sets",
    "cores": "Total Regional vCPUs",
    "virtualMachines": "Virtual Machines",
    "virtualMachineScaleSets": "Virtual Machine Scale Sets",
    "lowPriorityCores": "Total Regional Spot vCPUs",
}


def size_of(machine: Resource) -> str:
    size = (machine.body.get("sku") or {}).get("name")
    return str(size or machine.body["properties"].get("hardwareProfile", {}).get("vmSize", ""))


def is_spot(machine: Resource) -> bool:
    return bool(machine.body["properties"].get("priority") in ("Spot", "Low") or machine.hidden.get("spot"))


def usage(state: State, location: str) -> Counter[str]:
    """What is used now in a region, by usage name; families of all known sizes are there, with 0."""
    used = Counter(dict.fromkeys(TITLES, 0) | {size.family: 0 for size in state.capacity.sizes})
    for kind in (VIRTUAL_MACHINES, INSTANCES):
        for machine in state.of_type(kind):
            size = state.capacity.size(size_of(machine))
            if machine.body["location"] != location or size is None:
                continue
            used["virtualMachines"] += 1
            if is_spot(machine):
                used["lowPriorityCores"] += size.vcpus
            else:
                used["cores"] += size.vcpus
                used[size.family] += size.vcpus
    for name, kind in (("virtualMachineScaleSets", SCALE_SETS), ("availabilitySets", AVAILABILITY_SETS)):
        used[name] += sum(1 for found in state.of_type(kind) if found.body["location"] == location)
    return used


def check_quota(core: Core, location: str, size: Size, count: int, *, spot: bool) -> None:
    """409 OperationNotAllowed when `count` more machines would exceed a limit; the text names all figures."""
    if count <= 0:
        return
    used = usage(core.state, location)
    cores = ("lowPriorityCores",) if spot else ("cores", size.family)
    for name, wanted in (*((name, size.vcpus * count) for name in cores), ("virtualMachines", count)):
        limit = core.state.capacity.limit(name)
        if used[name] + wanted > limit:
            message = (
                f"Operation could not be completed as it results in exceeding approved {name} Cores quota. "
                f"Additional details - Deployment Model: Resource Manager, Location: {location}, Current "
                f"Limit: {limit}, Current Usage: {used[name]}, Additional Required: {wanted}, (Minimum) New "
                f"Limit Required: {used[name] + wanted}."
            )
            raise ArmError(409, "OperationNotAllowed", message)


def check_size(core: Core, name: str | None, zones: list[str] | None) -> Size:
    """The size, if it is offered in all of these zones; 400 or 409 SkuNotAvailable otherwise."""
    size = core.state.capacity.size(name or "")
    if size is None:
        message = f"The value {name} provided for the VM size is not valid."
        raise ArmError(400, "InvalidParameter", message, target="vmSize")
    offered = [zone for zone in size.zones if zone not in size.restricted_zones]
    if size.restricted or any(zone not in offered for zone in zones or []):
        message = f"The requested VM size '{size.name}' is currently not available in the location or zones."
        raise ArmError(409, "SkuNotAvailable", message, target="vmSize")
    return size

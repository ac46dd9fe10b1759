"""What is kept of Azure's answers between passes: the fields that planning reads, and nothing else.

A scale set is several kilobytes and a subscription's sizes are megabytes; the state document is read and
written in every pass. What is kept has the shape of the answer, so `facts` reads both alike. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Document = dict[str, Any]
_Shape = Mapping[str, Any]
"""Names to keep: True for all of it, a mapping for parts of it; of a list, parts of each entry."""

_OS_DISK: _Shape = {"osDisk": {"osType": True, "diskSizeGB": True}}
_SCALE_SET: _Shape = {
    "id": True,
    "name": True,
    "location": True,
    "tags": True,
    "sku": True,
    "zones": True,
    "etag": True,
    "properties": {
        "orchestrationMode": True,
        "provisioningState": True,
        "virtualMachineProfile": {"priority": True, "storageProfile": _OS_DISK},
    },
}
_MACHINE: _Shape = {
    "id": True,
    "name": True,
    "instanceId": True,
    "location": True,
    "tags": {"poolName": True, "min": True, "max": True},
    "zones": True,
    "properties": {
        "provisioningState": True,
        "timeCreated": True,
        "priority": True,
        "hardwareProfile": {"vmSize": True},
        "storageProfile": _OS_DISK,
        "osProfile": {"computerName": True},
        "instanceView": {"statuses": {"code": True, "message": True}},
        "virtualMachineScaleSet": True,
        "availabilitySet": True,
    },
}
_AVAILABILITY_SET: _Shape = {
    "id": True,
    "name": True,
    "location": True,
    "tags": True,
    "properties": {"virtualMachines": True},
}
_CLUSTER: _Shape = {"id": True, "name": True, "location": True}
_AGENT_POOL_PROPERTIES = (
    *("count", "vmSize", "mode", "osType", "type", "eTag", "provisioningState", "powerState", "maxPods"),
    *("availabilityZones", "scaleSetPriority", "nodeLabels", "nodeTaints", "tags", "osDiskSizeGB"),
    *("enableAutoScaling", "minCount", "maxCount", "virtualMachinesProfile", "scaleDownMode"),
)
_AGENT_POOL: _Shape = {
    "id": True,
    "name": True,
    "properties": dict.fromkeys(_AGENT_POOL_PROPERTIES, True),
}
_POOL_MACHINE: _Shape = {"id": True, "name": True, "zones": True, "properties": {"resourceId": True}}
_CAPABILITIES = frozenset(
    {"vCPUs", "vCPUsAvailable", "MemoryGB", "GPUs", "MaxDataDiskCount", "CpuArchitectureType"}
    | {"MaxResourceVolumeMB"}
)
_PRICE: _Shape = dict.fromkeys(
    ("armSkuName", "skuName", "productName", "retailPrice", "type", "currencyCode"), True
)

_BY_END: Mapping[str, _Shape] = {
    "virtualmachinescalesets": _SCALE_SET,
    "virtualmachines": _MACHINE,
    "availabilitysets": _AVAILABILITY_SET,
    "agentpools": _AGENT_POOL,
    "machines": _POOL_MACHINE,
}


def slim(key: str, body: Document) -> Document:
    """The body of the reading `key` (a path with its query) without what nobody reads."""
    end = key.partition("?")[0].rstrip("/").rpartition("/")[2].lower()
    if "Items" in body:
        return {"Items": [_part(item, _PRICE) for item in body["Items"]]}
    if end == "skus":
        return {**body, "value": [_sku(item) for item in body["value"]]}
    if "value" not in body:
        return dict(_part(body, _CLUSTER))
    keep: Callable[[Any], Any] = lambda item: _part(item, _BY_END[end]) if end in _BY_END else item  # noqa: E731
    return {**body, "value": [keep(item) for item in body["value"]]}


def _sku(item: Document) -> Document:
    capabilities = [one for one in item.get("capabilities") or () if one.get("name") in _CAPABILITIES]
    names = ("resourceType", "name", "family", "locations", "locationInfo", "restrictions")
    return {**{name: item[name] for name in names if name in item}, "capabilities": capabilities}


def _part(value: Any, shape: Any) -> Any:
    if shape is True or value is None:
        return value
    if isinstance(value, list):
        return [_part(one, shape) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: _part(value[name], below) for name, below in shape.items() if name in value}

"""Node pools, sizes, quota and prices, out of raw Azure readings and the policy; pure.

Read by decide and by whoever observes or acts. What should be read (lists merged to `{"value": [...]}`):

    scale sets          .../Microsoft.Compute/virtualMachineScaleSets       (list of a group, or single sets)
    uniform instances   .../virtualMachineScaleSets/NAME/virtualMachines    ($expand=instanceView)
    machines            .../Microsoft.Compute/virtualMachines               (list of a group: flexible, sets)
    availability sets   .../Microsoft.Compute/availabilitySets              (list of a group)
    agent pools         .../managedClusters/NAME/agentPools
    their machines      .../agentPools/NAME/machines
    sizes               /subscriptions/S/providers/Microsoft.Compute/skus
    quota               /subscriptions/S/providers/Microsoft.Compute/locations/L/usages
    prices              https://prices.azure.com/api/retail/prices?...      ({"Items": [...]})

A reading that failed is no fact: a pool whose machines could not be listed has `machines_known` False, and
nobody deletes anything there.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from shared.autoscaling.policy import AutoscalingPolicy, PoolPolicy
from shared.autoscaling.pools.driver import Machine, MachineDocument, MachineState
from shared.model.node import Taint
from shared.model.quantity import amounts
from shared.model.snapshot import AzureReading

Document = dict[str, Any]

_NODE_TEMPLATE = "k8s.io_cluster-autoscaler_node-template_"
_SPOT = ("spot", "low")


class PoolKind(enum.StrEnum):
    """How a pool grows."""

    SCALE_SET = "ScaleSet"
    FLEXIBLE_SCALE_SET = "FlexibleScaleSet"
    AVAILABILITY_SET = "AvailabilitySet"
    AGENT_POOL = "AgentPool"


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """One node pool as Azure has it and as the operator wants it. `id` is lower case.

    `capacity` counts machines that are there or on their way; `labels`, `taints` and `resources` are what the
    tags, AKS or the policy say about its nodes. `hands_off`: why it must not be changed.
    """

    id: str
    name: str
    kind: PoolKind
    location: str = ""
    size: str = ""
    capacity: int = 0
    etag: str = ""
    state: str = ""
    read_at: datetime | None = None
    min: int = 0
    max: int = 0
    zones: tuple[str, ...] = ()
    is_spot: bool = False
    os: str = "linux"
    labels: dict[str, str] = {}
    taints: tuple[Taint, ...] = ()
    resources: dict[str, int] = {}
    max_pods: int | None = None
    os_disk_gib: int | None = None
    machines: tuple[Machine, ...] = ()
    machines_known: bool = True
    hands_off: str = ""
    policy: PoolPolicy = PoolPolicy(name="-")


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """One size of machine in one location."""

    name: str
    family: str = ""
    vcpus: int = 0
    memory_gib: float = 0
    gpus: int = 0
    max_data_disks: int = 0
    architecture: str = "x64"
    temp_disk_mib: int = 0
    zones: tuple[str, ...] = ()
    restricted: bool = False
    restricted_zones: tuple[str, ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """One quota of a location: `name` as Azure calls it (a family, `cores`, `lowPriorityCores`...)."""

    name: str
    used: int
    limit: int


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything Azure said. Sizes by (location, size), usages by (location, name), all keys lower case;
    prices by (size lower case, is spot), per hour.
    """

    pools: tuple[Pool, ...] = ()
    sizes: dict[tuple[str, str], Size] = {}
    usages: dict[tuple[str, str], Usage] = {}
    prices: dict[tuple[str, bool], float] = {}

    def size(self, pool: Pool) -> Size | None:
        """The size of a pool's machines, when it is known."""
        return self.sizes.get((pool.location.lower(), pool.size.lower()))


def read_facts(readings: Iterable[AzureReading], policy: AutoscalingPolicy) -> Facts:
    """Facts from all readings that were answered."""
    readings = tuple(readings)
    return Facts(
        pools=tuple(_Pools(readings, policy).build()),
        sizes={
            (location.lower(), size.name.lower()): size
            for item in _items(readings, "/skus")
            if item.get("resourceType") == "virtualMachines"
            for location, size in _sizes(item)
        },
        usages=dict(_usages(readings)),
        prices=_prices(readings, policy),
    )


# Readings


def _answered(readings: Iterable[AzureReading]) -> Iterator[tuple[str, AzureReading, Document]]:
    for reading in readings:
        if reading.status == 200 and reading.body is not None:
            yield reading.id.split("?")[0].rstrip("/").lower(), reading, reading.body


def _items(readings: Iterable[AzureReading], suffix: str) -> Iterator[Document]:
    for key, _, body in _answered(readings):
        if key.endswith(suffix):
            yield from body.get("value") or ()


def _type_of(resource_id: str) -> str:
    """`microsoft.compute/virtualmachines`, of an id in lower case; empty for other ids."""
    _, _, rest = resource_id.rpartition("/providers/")
    parts = rest.split("/")
    return "/".join((parts[0], *parts[1::2])) if len(parts) >= 3 else ""


class _Pools:
    """Sorts readings by type and puts pools together."""

    def __init__(self, readings: tuple[AzureReading, ...], policy: AutoscalingPolicy) -> None:
        self._policy = policy
        self._wanted = {one.name.lower(): one for one in policy.pools}
        self._found: dict[str, dict[str, tuple[Document, datetime]]] = {}
        self._lists: set[str] = set()
        for key, reading, body in _answered(readings):
            if isinstance(body.get("value"), list):
                self._lists.add(key)
                for item in body["value"]:
                    self._note(item, reading.read_at)
            elif body.get("id"):
                self._note(body, reading.read_at)
        self._machines = self._all_machines()

    def _note(self, item: Document, read_at: datetime) -> None:
        key = str(item.get("id") or "").lower()
        self._found.setdefault(_type_of(key), {})[key] = (item, read_at)

    def build(self) -> Iterator[Pool]:
        """Pools in the order of their ids; an AKS scale set is its agent pool's."""
        builders = (
            ("microsoft.containerservice/managedclusters/agentpools", self._agent_pool),
            ("microsoft.compute/virtualmachinescalesets", self._scale_set),
            ("microsoft.compute/availabilitysets", self._availability_set),
        )
        for kind, builder in builders:
            for key, (item, read_at) in sorted(self._found.get(kind, {}).items()):
                pool = builder(key, item, read_at)
                if pool is not None:
                    yield pool

    # Machines

    def _all_machines(self) -> dict[str, MachineDocument]:
        kinds = (
            "microsoft.compute/virtualmachines",
            "microsoft.compute/virtualmachinescalesets/virtualmachines",
        )
        return {
            key: msgspec.convert(item, MachineDocument)
            for kind in kinds
            for key, (item, _) in self._found.get(kind, {}).items()
        }

    def _belonging(self, pool_id: str, kind: str) -> tuple[Machine, ...]:
        """Machines that name the set, and instances under it."""
        found = []
        for key, one in self._machines.items():
            reference = getattr(one.properties, kind)
            if key.startswith(f"{pool_id}/"):
                found.append(one.machine(one.instance_id or one.name))
            elif reference is not None and reference.id.lower() == pool_id:
                found.append(one.machine(one.name or key.rpartition("/")[2]))
        return tuple(sorted(found, key=lambda machine: machine.id))

    # Kinds

    def _scale_set(self, key: str, item: Document, read_at: datetime) -> Pool | None:
        tags = item.get("tags") or {}
        if any(name.lower() == "aks-managed-poolname" for name in tags):
            return None
        properties = item.get("properties") or {}
        flexible = properties.get("orchestrationMode") == "Flexible"
        name = str(item.get("name") or key.rpartition("/")[2])
        wanted = self._takes(name, tags)
        if wanted is None:
            return None
        profile = properties.get("virtualMachineProfile") or {}
        group = key.rpartition("/providers/")[0]
        listed = (
            f"{group}/providers/microsoft.compute/virtualmachines" if flexible else f"{key}/virtualmachines"
        )
        sku = item.get("sku") or {}
        return _tagged(
            tags,
            self._limits(wanted, tags),
            id=key,
            name=name,
            kind=PoolKind.FLEXIBLE_SCALE_SET if flexible else PoolKind.SCALE_SET,
            location=item.get("location") or "",
            size=sku.get("name") or "",
            capacity=int(sku.get("capacity") or 0),
            etag=item.get("etag") or "",
            state=properties.get("provisioningState") or "",
            read_at=read_at,
            zones=tuple(item.get("zones") or ()),
            is_spot=str(profile.get("priority") or "").lower() in _SPOT,
            os=_os_of(profile),
            os_disk_gib=_os_disk(profile),
            machines=self._belonging(key, "virtual_machine_scale_set"),
            machines_known=listed in self._lists,
            policy=wanted,
        )

    def _availability_set(self, key: str, item: Document, read_at: datetime) -> Pool | None:
        machines = self._belonging(key, "availability_set")
        document = self._first_document(machines)
        tags = {**(item.get("tags") or {}), **(document.get("tags") or {})}
        name = str(tags.get("poolName") or item.get("name") or key.rpartition("/")[2])
        wanted = self._takes(name, tags) or self._takes(str(item.get("name") or name), tags)
        if wanted is None:
            return None
        properties = document.get("properties") or {}
        members = (item.get("properties") or {}).get("virtualMachines") or ()
        group = key.rpartition("/providers/")[0]
        return _tagged(
            tags,
            self._limits(wanted, tags),
            id=key,
            name=name,
            kind=PoolKind.AVAILABILITY_SET,
            location=item.get("location") or "",
            size=(properties.get("hardwareProfile") or {}).get("vmSize") or tags.get("vmSize") or "",
            capacity=max(len(machines), len(members)),
            state="Succeeded",
            read_at=read_at,
            is_spot=str(properties.get("priority") or "").lower() in _SPOT,
            os=_os_of(properties),
            os_disk_gib=_os_disk(properties),
            machines=machines,
            machines_known=f"{group}/providers/microsoft.compute/virtualmachines" in self._lists,
            policy=wanted,
        )

    def _first_document(self, machines: tuple[Machine, ...]) -> Document:
        if not machines:
            return {}
        return self._found["microsoft.compute/virtualmachines"][machines[0].id][0]

    def _agent_pool(self, key: str, item: Document, read_at: datetime) -> Pool | None:
        name = str(item.get("name") or key.rpartition("/")[2])
        properties = item.get("properties") or {}
        tags = properties.get("tags") or {}
        wanted = self._wanted.get(name.lower()) or (PoolPolicy(name=name) if self._policy.discover else None)
        if wanted is None:
            return None
        location, system = self._location_of(key), properties.get("mode") == "System"
        labels = {
            "kubernetes.azure.com/agentpool": name,
            "agentpool": name,
            "kubernetes.azure.com/mode": str(properties.get("mode") or "User").lower(),
            **(properties.get("nodeLabels") or {}),
        }
        machines = f"{key}/machines"
        pool = _tagged(
            tags,
            self._limits(wanted, tags, properties),
            id=key,
            name=name,
            kind=PoolKind.AGENT_POOL,
            location=location,
            size=properties.get("vmSize") or _first_vm_size(properties),
            capacity=int(properties.get("count") or 0),
            etag=properties.get("eTag") or item.get("eTag") or "",
            state=properties.get("provisioningState") or "",
            read_at=read_at,
            zones=tuple(properties.get("availabilityZones") or ()),
            is_spot=str(properties.get("scaleSetPriority") or "").lower() in _SPOT,
            os=str(properties.get("osType") or "linux").lower(),
            max_pods=properties.get("maxPods"),
            os_disk_gib=properties.get("osDiskSizeGB") or None,
            machines=self._pool_machines(machines),
            machines_known=machines in self._lists,
            hands_off=_hands_off(properties),
            policy=wanted,
        )
        taints = tuple(filter(None, map(parse_taint, properties.get("nodeTaints") or ())))
        spot = (Taint("kubernetes.azure.com/scalesetpriority", "spot"),) if pool.is_spot else ()
        return msgspec.structs.replace(
            pool,
            labels={**labels, **({"kubernetes.azure.com/scalesetpriority": "spot"} if spot else {})}
            | pool.labels,
            taints=tuple(dict.fromkeys((*taints, *spot, *pool.taints))),
            min=max(pool.min, 1) if system else pool.min,
        )

    def _location_of(self, pool_id: str) -> str:
        cluster = pool_id.rpartition("/agentpools/")[0]
        found = self._found.get("microsoft.containerservice/managedclusters", {}).get(cluster)
        if found:
            return str(found[0].get("location") or "")
        locations = {str(one.get("location")) for one, _ in self._sets() if one.get("location")}
        return locations.pop() if len(locations) == 1 else ""

    def _sets(self) -> Iterable[tuple[Document, datetime]]:
        return self._found.get("microsoft.compute/virtualmachinescalesets", {}).values()

    def _pool_machines(self, listed: str) -> tuple[Machine, ...]:
        """AKS's machines, with the states of the virtual machines behind them where those were listed."""
        found = []
        kind = "microsoft.containerservice/managedclusters/agentpools/machines"
        for key, (item, _) in sorted(self._found.get(kind, {}).items()):
            if not key.startswith(f"{listed}/"):
                continue
            properties = item.get("properties") or {}
            name, behind = str(item.get("name") or ""), str(properties.get("resourceId") or "").lower()
            known = self._machines.get(behind)
            machine = known.machine(name) if known else None
            found.append(
                Machine(
                    id=behind,
                    instance=name,
                    computer_name=name.lower(),
                    state=machine.state if machine else MachineState.CREATING,
                    zone=(item.get("zones") or [machine.zone if machine else ""])[0],
                    created_at=machine.created_at if machine else None,
                    code=machine.code if machine else "",
                    message=machine.message if machine else "",
                )
            )
        return tuple(found)

    # Limits

    def _takes(self, name: str, tags: Mapping[str, str]) -> PoolPolicy | None:
        """The pool's policy, when it is named there or its tags ask for autoscaling."""
        known = self._wanted.get(name.lower())
        if known:
            return known
        if self._policy.discover and {"min", "max"} <= {tag.lower() for tag in tags}:
            return PoolPolicy(name=name)
        return None

    def _limits(
        self, wanted: PoolPolicy, tags: Mapping[str, str], aks: Mapping[str, Any] | None = None
    ) -> tuple[int, int]:
        """(min, max): the policy's, else the tags', else AKS's own, else the default."""
        said = {tag.lower(): value for tag, value in tags.items()}
        aks = aks or {}
        defaults = self._policy.pool_defaults
        least = _first(wanted.min, _number(said.get("min")), aks.get("minCount"), defaults.min)
        most = _first(wanted.max, _number(said.get("max")), aks.get("maxCount"), defaults.max)
        return least, max(least, most)


def _first(*candidates: int | None) -> int:
    return next(one for one in candidates if one is not None)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None


def _first_vm_size(properties: Mapping[str, Any]) -> str:
    manual = ((properties.get("virtualMachinesProfile") or {}).get("scale") or {}).get("manual") or [{}]
    return str(manual[0].get("size") or (manual[0].get("sizes") or [""])[0])


def _hands_off(properties: Mapping[str, Any]) -> str:
    if properties.get("enableAutoScaling"):
        return "AKS's own autoscaler is on for this pool; switch it off, or leave the pool to it"
    if (properties.get("powerState") or {}).get("code") not in (None, "Running"):
        return "the pool or its cluster is stopped"
    return ""


def _os_of(profile: Mapping[str, Any]) -> str:
    disk = (profile.get("storageProfile") or {}).get("osDisk") or {}
    return str(disk.get("osType") or "linux").lower()


def _os_disk(profile: Mapping[str, Any]) -> int | None:
    disk = (profile.get("storageProfile") or {}).get("osDisk") or {}
    return disk.get("diskSizeGB")


def _tagged(tags: Mapping[str, str], limits: tuple[int, int], *, policy: PoolPolicy, **facts: Any) -> Pool:
    """A pool with what cluster-autoscaler's tags and the policy say about its nodes."""
    labels = dict(_template(tags, "label_"))
    resources = amounts(dict(_template(tags, "resources_")))
    taints = [taint for key, value in _template(tags, "taint_") if (taint := parse_taint(f"{key}={value}"))]
    taints += [Taint(one.key, one.value, one.effect) for one in policy.taints]
    facts.setdefault("max_pods", None)
    return Pool(
        **{**facts, "max_pods": policy.max_pods or facts["max_pods"]},
        min=limits[0],
        max=limits[1],
        labels={**labels, **policy.labels},
        taints=tuple(dict.fromkeys(taints)),
        resources={**resources, **amounts(policy.resources)},
        policy=policy,
    )


def _template(tags: Mapping[str, str], kind: str) -> Iterator[tuple[str, str]]:
    """Tags cannot hold slashes: cluster-autoscaler writes `_` for them, and `~2` for an underscore."""
    prefix = _NODE_TEMPLATE + kind
    for tag, value in sorted(tags.items()):
        if tag.startswith(prefix):
            yield tag.removeprefix(prefix).replace("_", "/").replace("~2", "_"), value


_TAINT = re.compile(r"(?P<key>[^=:]+)(=(?P<value>[^:]*))?:(?P<effect>NoSchedule|PreferNoSchedule|NoExecute)")


def parse_taint(text: str) -> Taint | None:
    """`key=value:NoSchedule`; None for anything else."""
    match = _TAINT.fullmatch(text)
    return Taint(match["key"], match["value"] or "", match["effect"]) if match else None


# Sizes, quota, prices


def _sizes(item: Document) -> Iterator[tuple[str, Size]]:
    """One for each location of a SKU."""
    has = {one["name"]: one.get("value") for one in item.get("capabilities") or ()}
    number: Callable[[str], float] = lambda name: float(has.get(name) or 0)  # noqa: E731
    for location in item.get("locations") or ():
        info = [
            one
            for one in item.get("locationInfo") or ()
            if str(one.get("location") or "").lower() == location.lower()
        ]
        restrictions = item.get("restrictions") or ()
        closed = [zone for one in restrictions if one.get("type") == "Zone" for zone in _zones_of(one)]
        yield (
            location,
            Size(
                name=item["name"],
                family=item.get("family") or "",
                vcpus=int(has.get("vCPUsAvailable") or has.get("vCPUs") or 0),
                memory_gib=number("MemoryGB"),
                gpus=int(number("GPUs")),
                max_data_disks=int(number("MaxDataDiskCount")),
                architecture=str(has.get("CpuArchitectureType") or "x64"),
                temp_disk_mib=int(number("MaxResourceVolumeMB")),
                zones=tuple(sorted({zone for one in info for zone in one.get("zones") or ()})),
                restricted=any(one.get("type") == "Location" for one in restrictions),
                restricted_zones=tuple(sorted(set(closed))),
            ),
        )


def _zones_of(restriction: Mapping[str, Any]) -> Iterable[str]:
    return (restriction.get("restrictionInfo") or {}).get("zones") or ()


def _usages(readings: Iterable[AzureReading]) -> Iterator[tuple[tuple[str, str], Usage]]:
    for key, _, body in _answered(readings):
        match = re.search(r"/locations/([^/]+)/usages$", key)
        for item in (body.get("value") or ()) if match else ():
            name = str((item.get("name") or {}).get("value") or "")
            usage = Usage(
                name=name, used=int(item.get("currentValue") or 0), limit=int(item.get("limit") or 0)
            )
            yield ((match[1] if match else ""), name.lower()), usage


def _prices(readings: Iterable[AzureReading], policy: AutoscalingPolicy) -> dict[tuple[str, bool], float]:
    found: dict[tuple[str, bool], float] = {}
    for key, _, body in _answered(readings):
        for item in (body.get("Items") or ()) if key.startswith("https://prices.azure.com") else ():
            if _is_plain_hour(item):
                spot = "spot" in str(item.get("skuName") or "").lower()
                found[str(item.get("armSkuName") or "").lower(), spot] = float(item["retailPrice"])
    for name, price in policy.prices.items():
        size, _, kind = name.partition("/")
        found[size.lower(), kind.lower() == "spot"] = price
    return found


def _is_plain_hour(item: Mapping[str, Any]) -> bool:
    """Pay as you go, Linux, by the hour."""
    name = str(item.get("skuName") or "")
    return (
        item.get("type", "Consumption") == "Consumption"
        and "Windows" not in str(item.get("productName") or "")
        and "Low Priority" not in name
        and item.get("retailPrice") is not None
    )

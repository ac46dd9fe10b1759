"""Virtual machines of the local Azure become nodes of a cluster: what really happens to them drives kubelets.

A machine that boots joins after a while, with the labels, taints and resources of its pool and size; one that
stops or crashes falls silent, whatever Azure says; one that is deleted takes its kubelet along and leaves its
Node behind, as in a real cluster without a cloud controller manager. Which machines belong to the cluster is
said by `Pool`s; machines come and go in them by any way that Azure has. Used by `sandbox.scenario` and
`python -m sandbox up`, on kubelets in simulated time and on `sandbox.node_agent` alike.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from sandbox.arm import LocalArm
from sandbox.arm.capacity import Size
from sandbox.arm.compute.quota import size_of
from sandbox.arm.containerservice import POOLS
from sandbox.arm.state import Document, Resource
from shared.model.resource_id import ResourceId, parse_resource_id

BOOT_DELAY = timedelta(seconds=40)
"""From a machine that runs to a node that is Ready; quoted for plain Ubuntu images, not measured."""
MEMORY_OVERHEAD = 0.025
"""What firmware and kernel keep of a size's memory: a 16 GiB machine shows 15.6 GiB."""
SPOT = "kubernetes.azure.com/scalesetpriority"


class Agents(Protocol):
    """The kubelets: `sandbox.kube.kubelets` or `sandbox.node_agent`."""

    def has(self, name: str) -> bool: ...
    def join(
        self,
        name: str,
        *,
        zone: str = ...,
        labels: Mapping[str, str] | None = ...,
        capacity: Mapping[str, str] | None = ...,
        taints: Sequence[Document] = ...,
        provider_id: str = ...,
        allocatable: Mapping[str, str] | None = ...,
    ) -> object: ...
    def adopt(self, name: str) -> None: ...
    def leave(self, name: str) -> None: ...
    def silence(self, name: str) -> None: ...
    def wake(self, name: str) -> None: ...


class Registry(Protocol):
    """What of the cluster's objects matters here."""

    def has_node(self, name: str) -> bool: ...
    def furnish(self, name: str, provider_id: str, max_data_disks: int) -> None:
        """The node has joined or come back: make its CSINode, and let its Node name this machine."""


@dataclass
class Pool:
    """Machines that are nodes of the cluster, and what their nodes say of themselves.

    `resource` is the id of a scale set, an availability set, a single machine, or an AKS cluster (all of its
    pools, with the labels and taints that they say).
    """

    resource: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Document] = ()
    max_pods: int = 110

    def has(self, machine: Resource) -> bool:
        wanted, properties = self.resource.lower(), machine.body["properties"]
        named = [(properties.get(name) or {}).get("id", "") for name in ("availabilitySet", SCALE_SET)]
        above = [machine.id.lower(), *(str(name).lower() for name in named)]
        return any(known == wanted or known.startswith(wanted + "/") for known in above)


SCALE_SET = "virtualMachineScaleSet"


@dataclass
class Member:
    """A machine of the fleet and its node; `boots` is the boot that the node is from."""

    node: str
    machine: str
    vm_id: str
    boots: int = 0
    ready_at: datetime | None = None
    """When this boot is through."""
    is_up: bool = False
    """Its kubelet has joined, and lives as far as is known here."""


class Fleet:
    """Keeps the kubelets in line with the machines. `boot_delay` may be changed at any time."""

    def __init__(
        self, arm: LocalArm, agents: Agents, registry: Registry, *, boot_delay: timedelta = BOOT_DELAY
    ) -> None:
        self.boot_delay = boot_delay
        self.pools: list[Pool] = []
        self.members: dict[str, Member] = {}
        """By vmId, also those that have gone."""
        self._arm = arm
        self._agents = agents
        self._registry = registry
        self._dirty: set[str] = set()
        self._lock = threading.RLock()
        arm.core.listen(self._note)

    def enrol(self, pool: Pool) -> None:
        """What runs in the pool now is a node at once; what boots later takes its time."""
        self.pools.append(pool)
        with self._lock:
            for vm_id, machine in list(self._arm.truth.machines.items()):
                if machine.running and self._resource(vm_id) is not None:
                    self._look_at(vm_id, timedelta(0))

    def machine_of(self, node: str) -> str:
        """The id of the node's machine; LookupError when it never had one."""
        found = [member for member in self.members.values() if member.node == node]
        if not found:
            raise LookupError(f"no machine is known for node {node!r}")
        return found[-1].machine

    def node_of(self, machine: str) -> str:
        """By resource id or vmId."""
        for vm_id, member in reversed(self.members.items()):
            if machine in (vm_id, member.machine) or machine.lower() == member.machine.lower():
                return member.node
        raise LookupError(f"{machine} is not a node")

    def _note(self, vm_id: str) -> None:
        # In the middle of a change, with Azure's lock held: only leave word for later, at the same moment.
        if vm_id not in self._dirty:
            self._dirty.add(vm_id)
            self._arm.core.clock.at(self._arm.core.clock.now(), self.follow)

    def follow(self) -> None:
        """Bring the nodes in line with what has happened to machines; the clock does this."""
        with self._lock:
            while self._dirty:
                self._look_at(min(self._dirty), self.boot_delay)

    def _look_at(self, vm_id: str, delay: timedelta) -> None:
        self._dirty.discard(vm_id)
        machine, resource = self._arm.truth.machines.get(vm_id), self._resource(vm_id)
        member = self.members.get(vm_id)
        if machine is None or resource is None:
            if member is not None:
                self._leave(member)
        elif not machine.running or not machine.kubelet_alive:
            if member is not None:
                self._silence(member)
        elif member is None or member.boots != machine.boots:
            self._boot(vm_id, resource, machine.boots, delay)
        elif not member.is_up and member.ready_at and member.ready_at <= self._arm.core.clock.now():
            self._join(vm_id, machine.boots)

    def _boot(self, vm_id: str, resource: Resource, boots: int, delay: timedelta) -> None:
        if self._pool_of(resource) is None:
            return
        member = self.members.get(vm_id)
        if member is None:
            name = str(resource.body["properties"]["osProfile"]["computerName"]).lower()
            member = self.members[vm_id] = Member(name, resource.id, vm_id)
        self._silence(member)
        member.boots, member.ready_at = boots, self._arm.core.clock.now() + delay
        if delay:
            self._arm.core.clock.at(member.ready_at, lambda: self._booted(vm_id, boots))
        else:
            self._join(vm_id, boots)

    def _booted(self, vm_id: str, boots: int) -> None:
        with self._lock:
            machine = self._arm.truth.machines.get(vm_id)
            if machine is not None and machine.boots == boots and machine.kubelet_alive:
                self._join(vm_id, boots)

    def _join(self, vm_id: str, boots: int) -> None:
        resource, member = self._resource(vm_id), self.members[vm_id]
        if resource is None or member.boots != boots:
            return
        name = member.node
        provider_id = provider_id_of(resource.id)
        if self._registry.has_node(name):
            if not self._agents.has(name):
                self._agents.adopt(name)
            self._registry.furnish(name, provider_id, self._disks(resource))
            self._agents.wake(name)
        else:
            if self._agents.has(name):
                self._agents.leave(name)
            self._agents.join(name, **self._options(resource), provider_id=provider_id)
            self._registry.furnish(name, provider_id, self._disks(resource))
        member.is_up = True

    def _silence(self, member: Member) -> None:
        if member.is_up:
            member.is_up = False
            self._agents.silence(member.node)

    def _leave(self, member: Member) -> None:
        member.is_up = False
        heirs = [m for m in self.members.values() if m.node == member.node and m is not member and m.is_up]
        if not heirs and self._agents.has(member.node):
            self._agents.leave(member.node)

    # --- what a machine's node looks like ---

    def _resource(self, vm_id: str) -> Resource | None:
        machine = self._arm.core.state.truth.machines.get(vm_id)
        resource = self._arm.core.state.find(machine.id) if machine is not None else None
        is_same = resource is not None and resource.body["properties"].get("vmId") == vm_id
        return resource if is_same else None

    def _size(self, resource: Resource) -> Size | None:
        return self._arm.core.state.capacity.size(size_of(resource))

    def _disks(self, resource: Resource) -> int:
        size = self._size(resource)
        return size.max_data_disks if size else 16

    def _pool_of(self, resource: Resource) -> Pool | None:
        for pool in self.pools:
            if pool.has(resource):
                return pool
            if self._is_in_cluster(resource, pool):
                return self._aks_pool(resource, pool)
        return None

    def _is_in_cluster(self, resource: Resource, pool: Pool) -> bool:
        cluster = self._arm.core.state.find(pool.resource)
        group = (cluster.body["properties"].get("nodeResourceGroup") or "") if cluster else ""
        return bool(group) and parse_resource_id(resource.id).group.lower() == group.lower()

    def _options(self, resource: Resource) -> dict[str, Any]:
        pool = self._pool_of(resource)
        assert pool is not None
        size = self._size(resource)
        labels, zone = place_labels(resource), zone_of(resource)
        architecture = {"x64": "amd64", "Arm64": "arm64"}[size.architecture] if size else "amd64"
        labels |= {"kubernetes.io/arch": architecture, **pool.labels}
        capacity = capacity_of(size, pool.max_pods) if size else {"pods": str(pool.max_pods)}
        allocatable = allocatable_of(size, pool.max_pods) if size else {}
        return {
            "zone": zone,
            "labels": labels,
            "capacity": capacity,
            "taints": list(pool.taints),
            "allocatable": allocatable,
        }

    def _aks_pool(self, resource: Resource, cluster: Pool) -> Pool:
        name = (resource.body.get("tags") or {}).get("aks-managed-poolName", "")
        where = parse_resource_id(cluster.resource).child("agentPools", name)
        found = self._arm.core.state.find(where) or Resource(id=str(where), body={}, etag="")
        assert where.type == POOLS
        return aks_pool(name, found.body.get("properties") or {})


def aks_pool(name: str, properties: Document) -> Pool:
    """Labels and taints that AKS gives the nodes of an agent pool."""
    labels = {
        "agentpool": name,
        "kubernetes.azure.com/agentpool": name,
        "kubernetes.azure.com/mode": str(properties.get("mode", "User")).lower(),
        **(properties.get("nodeLabels") or {}),
    }
    taints = [parse_taint(text) for text in properties.get("nodeTaints") or ()]
    if properties.get("scaleSetPriority") == "Spot":
        labels[SPOT] = "spot"
        if not any(taint["key"] == SPOT for taint in taints):
            taints.append({"key": SPOT, "value": "spot", "effect": "NoSchedule"})
    return Pool("", labels, taints, int(properties.get("maxPods") or 110))


def parse_taint(text: str) -> Document:
    """`key=value:Effect`, as agent pools and kubelets write it."""
    pair, _, effect = text.rpartition(":")
    key, _, value = pair.partition("=")
    return {"key": key, "effect": effect, **({"value": value} if value else {})}


def zone_of(resource: Resource) -> str:
    """`westeurope-1`; empty for machines without a zone."""
    zones = resource.body.get("zones") or []
    return f"{resource.body['location']}-{zones[0]}" if zones else ""


def place_labels(resource: Resource) -> dict[str, str]:
    """Size and place, as cloud-provider-azure labels nodes: a fault domain stands for the zone of those that
    have none.
    """
    region, zone = resource.body["location"], zone_of(resource)
    size = size_of(resource)
    return {
        "node.kubernetes.io/instance-type": size,
        "beta.kubernetes.io/instance-type": size,
        "topology.kubernetes.io/region": region,
        "topology.kubernetes.io/zone": zone or str(resource.hidden.get("domain", 0) % 3),
        "topology.disk.csi.azure.com/zone": zone,
    }


def provider_id_of(machine: str) -> str:
    """`azure:///subscriptions/...`, with the resource group in lower case, as cloud-provider-azure does."""
    found = parse_resource_id(machine)
    group = found.group.lower()
    lowered = ResourceId(found.subscription, group, found.namespace, found.types, found.names)
    return f"azure://{lowered}"


def capacity_of(size: Size, max_pods: int) -> dict[str, str]:
    """What a kubelet on such a machine sees."""
    memory = int(size.memory_gib * 1024 * 1024 * (1 - MEMORY_OVERHEAD))
    gpus = {"nvidia.com/gpu": str(size.gpus)} if size.gpus else {}
    return {"cpu": str(size.vcpus), "memory": f"{memory}Ki", "pods": str(max_pods), **gpus}


def allocatable_of(size: Size, max_pods: int) -> dict[str, str]:
    """What AKS leaves for pods: https://learn.microsoft.com/azure/aks/node-resource-reservations (1.29)."""
    steps = {1: 60, 2: 100, 4: 140, 8: 180, 16: 260, 32: 420, 64: 740}
    reserved = steps[max(known for known in steps if known <= max(1, size.vcpus))]
    memory = int(size.memory_gib * 1024 * 1024 * (1 - MEMORY_OVERHEAD))
    kept = min((20 * max_pods + 50) * 1024, int(size.memory_gib * 1024 * 1024 * 0.25)) + 100 * 1024
    return {"cpu": f"{size.vcpus * 1000 - reserved}m", "memory": f"{memory - kept}Ki"}


def names_of(members: Iterable[Member]) -> list[str]:
    """In their order, without the doubles of machines that were replaced."""
    return list(dict.fromkeys(member.node for member in members))

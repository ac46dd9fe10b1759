"""A local Azure Resource Manager over real HTTP, for the unmodified azure-mgmt SDKs.

    with LocalArm() as arm:
        account = arm.add_storage_account("backups")
        client = StorageManagementClient(arm.credential(), arm.subscription, base_url=arm.url, ...)

`core` is what all providers share, `storage`, `compute`, `network` and `containerservice` are the providers,
`capacity` is what a region can give, `truth` what is really so and never answered. What is and is not
modelled stands in docs/reference/local-azure.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from starlette.applications import Starlette
from starlette.routing import Route

from sandbox.arm import compute, containerservice, network, storage
from sandbox.arm.capacity import Capacity
from sandbox.arm.compute.machines import change, create_machine, delete_machine, switch
from sandbox.arm.core import Core, Latencies, ResourceType
from sandbox.arm.gateway import new_gateway
from sandbox.arm.state import State
from sandbox.arm.truth import Corruption, Truth
from sandbox.asgi import Fault, Recorder, Server, on
from sandbox.clock import Clock
from sandbox.identity import Credential, Directory
from shared.model.resource_id import ResourceId, parse_resource_id

SUBSCRIPTION = "30000000-0000-4000-8000-000000000003"
GROUP = "kubekeeper"
LOCATION = "westeurope"
SIZE = "Standard_D4s_v5"
METHODS = ["GET", "HEAD", "PUT", "PATCH", "POST", "DELETE"]


QUOTED = Latencies(
    {
        "virtualMachines/put": 40.0,
        "virtualMachines/attachDetachDataDisks": 45.0,
        "virtualMachines/forceDetach": 10.0,
        "virtualMachines/powerOff": 30.0,
        "virtualMachines/powerOffNow": 10.0,
        "virtualMachines/start": 30.0,
        "virtualMachines/restart": 40.0,
        "virtualMachines/deallocate": 60.0,
        "virtualMachines/reapply": 30.0,
        "virtualMachines/delete": 45.0,
        "virtualMachineScaleSets/put": 75.0,
        "virtualMachineScaleSets/patch": 75.0,
        "virtualMachineScaleSets/deleteInstances": 90.0,
        "agentPools/put": 120.0,
        "agentPools/deleteMachines": 120.0,
        "applicationGateways/put": 25.0,
        "disks/put": 3.0,
    }
)
"""Medians in seconds as people report them; quoted, not measured. `arm.core.latencies = QUOTED`."""


def types() -> list[ResourceType]:
    """Of all providers."""
    return [*storage.types(), *compute.types(), *network.types(), *containerservice.types()]


class LocalArm:
    """A running service with one subscription and resource group; `core.state` may be read and changed."""

    subscription = SUBSCRIPTION
    group = GROUP

    def __init__(self, clock: Clock | None = None, directory: Directory | None = None) -> None:
        self.directory = directory or Directory()
        self.core = Core(clock or Clock(), self.directory, types())
        self.core.add_group(SUBSCRIPTION, GROUP)
        self.recorder = Recorder(
            Starlette(routes=[Route("/{path:path}", self.core.__call__, methods=METHODS)])
        )
        self._server = Server(self.recorder)

    @property
    def url(self) -> str:
        return self._server.url

    def credential(self) -> Credential:
        return self.directory.credential()

    def fault(self, fault: Fault) -> None:
        """Something to go wrong with requests to come; see `sandbox.asgi.Fault`."""
        self.recorder.faults.append(fault)

    # --- the world, made without requests ---

    @property
    def capacity(self) -> Capacity:
        """Sizes, quota, and shortages to be scripted."""
        return self.core.state.capacity

    @property
    def truth(self) -> Truth:
        """What is really so; settled first, so that it is up to date."""
        self.core.settle()
        return self.core.state.truth

    @property
    def corruptions(self) -> list[Corruption]:
        return self.truth.corruptions

    def id_of(self, kind: str, *names: str, group: str = GROUP) -> str:
        """`id_of("Microsoft.Compute/virtualMachines", "a")`; nested types take a name for each part."""
        namespace, *types = kind.split("/")
        return str(ResourceId(SUBSCRIPTION, group, namespace, tuple(types), names))

    def put(self, resource_id: str, body: dict[str, Any]) -> str:
        """What a PUT would make, at once, unrecorded, without limits or scripted faults; returns the id."""
        self.core.do("PUT", resource_id, body)
        return resource_id

    def add_disk(
        self,
        name: str,
        *,
        size_gb: int = 10,
        zone: str = "",
        shares: int = 1,
        sku: str = "Premium_LRS",
        tagged: Mapping[str, str] | None = None,
        **tags: str,
    ) -> str:
        """An empty Premium SSD, unattached; `tagged` are tags whose names are no names in Python."""
        properties: dict[str, Any] = {"creationData": {"createOption": "Empty"}, "diskSizeGB": size_gb}
        properties |= {"maxShares": shares} if shares > 1 else {}
        body: dict[str, Any] = {"location": LOCATION, "sku": {"name": sku}}
        body["tags"] = {**tags, **(tagged or {})}
        body |= {"zones": [zone]} if zone else {}
        return self.put(self.id_of("Microsoft.Compute/disks", name), {**body, "properties": properties})

    def add_vm(
        self, name: str, *, size: str = SIZE, zone: str = "", disks: Iterable[str] = (), **properties: Any
    ) -> str:
        """A running machine with these disks at LUN 0 and up."""
        data = [
            {"lun": lun, "createOption": "Attach", "managedDisk": {"id": disk}}
            for lun, disk in enumerate(disks)
        ]
        body: dict[str, Any] = {"location": LOCATION} | ({"zones": [zone]} if zone else {})
        body["properties"] = {
            "hardwareProfile": {"vmSize": size},
            "storageProfile": {"dataDisks": data},
            **properties,
        }
        return self.put(self.id_of("Microsoft.Compute/virtualMachines", name), body)

    def add_scale_set(
        self,
        name: str,
        capacity: int,
        *,
        size: str = SIZE,
        zones: Iterable[str] = (),
        flexible: bool = False,
        group: str = GROUP,
        tags: dict[str, str] | None = None,
        **properties: Any,
    ) -> str:
        """A set with that many running instances."""
        body: dict[str, Any] = {"location": LOCATION, "sku": {"name": size, "capacity": capacity}}
        body |= {"zones": list(zones)} if zones else {}
        mode = "Flexible" if flexible else "Uniform"
        profile = {"virtualMachineProfile": {"osProfile": {"computerNamePrefix": name}}}
        body |= {"tags": tags or {}, "properties": {"orchestrationMode": mode, **profile, **properties}}
        return self.put(self.id_of("Microsoft.Compute/virtualMachineScaleSets", name, group=group), body)

    def add_nic(self, name: str) -> str:
        subnet = self.id_of("Microsoft.Network/virtualNetworks/subnets", "vnet", "nodes")
        configuration = {"name": "ipconfig1", "properties": {"subnet": {"id": subnet}}}
        body = {"location": LOCATION, "properties": {"ipConfigurations": [configuration]}}
        return self.put(self.id_of("Microsoft.Network/networkInterfaces", name), body)

    def add_gateway(self, name: str, **changes: Any) -> str:
        """A running gateway with a public address and one rule, as it is made before anyone manages it;
        `changes` replace whole properties.
        """
        gateway = self.id_of("Microsoft.Network/applicationGateways", name)
        public = self.put(
            self.id_of("Microsoft.Network/publicIPAddresses", f"{name}-ip"),
            {"location": LOCATION, "sku": {"name": "Standard"}},
        )
        body = {"location": LOCATION, "properties": new_gateway(gateway, public) | changes}
        return self.put(gateway, body)

    def add_cluster(self, name: str, **pools: int) -> str:
        """An AKS cluster with pools of that many nodes: `add_cluster("prod", system=2, agents=3)`; the first
        is the system pool. More about a pool: `put` its id.
        """
        cluster = self.put(self.id_of(containerservice.CLUSTERS, name), {"location": LOCATION})
        for number, (pool, count) in enumerate(pools.items()):
            mode = "User" if number else "System"
            properties = {"count": count, "vmSize": SIZE, "mode": mode, "availabilityZones": ["1", "2", "3"]}
            self.put(f"{cluster}/agentPools/{pool}", {"properties": properties})
        return cluster

    def attach(self, machine: str, disk: str, lun: int) -> None:
        body = {"dataDisksToAttach": [{"diskId": disk, "lun": lun}]}
        self.core.do("POST", machine, body, "attachDetachDataDisks")

    def detach(self, machine: str, disk: str) -> None:
        body = {"dataDisksToDetach": [{"diskId": disk}]}
        self.core.do("POST", machine, body, "attachDetachDataDisks")

    def replace_vm(self, machine: str) -> str:
        """Delete the machine and make another of the same name, size and place, running, without its data
        disks; returns the new vmId.
        """
        with self.core.lock:
            old = self.core.state.resources[machine.lower()]
            where = parse_resource_id(old.id)
            for operation in self.core.running_on(where):
                self.core.supersede(operation)
            delete_machine(self.core, old.id)
            wanted = {k: v for k, v in old.body["properties"].items() if k not in ("storageProfile", "vmId")}
            new = create_machine(
                self.core, where, {**old.body, "properties": wanted}, old.body.get("zones") or []
            )
            self.core.state.store(where, {**old.body, **new.body}, {**old.hidden, "attaching": []})
            switch(self.core, old.id, "running")
            body = change(self.core, old.id, {"provisioningState": "Succeeded"}).body
            return str(body["properties"]["vmId"])

    def lose_disk(self, disk: str) -> None:
        """The disk is gone although a machine lists it."""
        self.core.state.remove(parse_resource_id(disk))

    def changing(self, work: Callable[[], object], method: str, path: str, *, after: bool = False) -> None:
        """Do `work` just before (or just after) the next matching request is worked on."""
        done = {"after": work} if after else {"before": work}
        self.fault(Fault(on(method, path), **done))  # type: ignore[arg-type]

    def add_storage_account(self, name: str, **properties: object) -> str:
        """An account as `az storage account create` leaves it, with these properties besides; returns its
        id.
        """
        return storage.add_account(self.core, SUBSCRIPTION, GROUP, name, properties)

    def reset(self) -> None:
        """As new, no resources but the group, no faults, nothing recorded, nothing denied; time goes on."""
        with self.core.lock:
            self.core.reset()
            self.core.add_group(SUBSCRIPTION, GROUP)
            self.recorder.requests.clear()
            self.recorder.faults.clear()

    def dump(self) -> bytes:
        return self.core.state.dump()

    def load(self, data: bytes) -> None:
        self.core.state = State.load(data)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

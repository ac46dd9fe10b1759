"""Microsoft.ContainerService: AKS clusters (read, started, stopped), their agent pools, upgrades, machines.

A pool of type VirtualMachineScaleSets has a scale set in the node resource group, one of type VirtualMachines
has single machines there; both are resources of `compute`, so a change of either is seen in both. Quota and
allocation are compute's; what fails there fails the pool's operation.

An upgrade takes its time for each machine, one after the other: each is made anew in place, which here is a
boot. What AKS does in the cluster meanwhile (surge nodes, cordon, drain) is not modelled. What is offered
stands in `core.settings`: `aks_versions`, in order, and `aks_node_image`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sandbox.arm.compute.machines import change, create_machine, switch
from sandbox.arm.compute.quota import SCALE_SETS, VIRTUAL_MACHINES, check_quota, check_size
from sandbox.arm.compute.scalesets import Scaling, finish_scaling, members
from sandbox.arm.core import Answer, ArmError, Call, Core, ResourceType, merged, page
from sandbox.arm.state import Document, Operation, Resource, State
from shared.model.resource_id import ResourceId, parse_resource_id

CLUSTERS = "Microsoft.ContainerService/managedClusters"
POOLS = f"{CLUSTERS}/agentPools"
MACHINES = f"{POOLS}/machines"
PROFILES = f"{POOLS}/upgradeProfiles"
VERSIONS = frozenset({"2024-09-01", "2025-01-01", "2025-05-01", "2025-10-01", "2026-01-01", "2026-08-01"})
MAX_NODES = 1000
KUBERNETES = "1.34.1"
OFFERED = ("1.33.5", KUBERNETES, "1.34.2", "1.35.0")
NODE_IMAGE = "AKSUbuntu-2404gen2containerd-202611.01.0"
READ_ONLY = frozenset(
    {"provisioningState", "powerState", "eTag", "currentOrchestratorVersion", "nodeImageVersion", "status"}
    | {"virtualMachineNodesStatus"}
)
UNCHANGEABLE = ("vmSize", "osType", "type", "availabilityZones", "osDiskType", "vnetSubnetID")


def types() -> list[ResourceType]:
    """What Microsoft.ContainerService adds to the core."""
    return [Clusters(), Pools(), PoolMachines(), UpgradeProfiles()]


def node_group(cluster: Resource) -> str:
    return str(cluster.body["properties"]["nodeResourceGroup"])


def pools_of(state: State, cluster: Resource) -> list[Resource]:
    return list(state.of_type(POOLS, cluster.id))


def scale_set_of(state: State, pool: Resource) -> Resource | None:
    return state.find(pool.hidden.get("scale_set") or "")


def nodes_of(state: State, pool: Resource) -> list[Resource]:
    """The machines of a pool, in the order they were made."""
    scale_set = scale_set_of(state, pool)
    if scale_set is not None:
        return members(state, scale_set)
    found = [state.find(machine) for machine in pool.hidden.get("machines", [])]
    return [machine for machine in found if machine is not None]


def machine_name(machine: Resource) -> str:
    """What AKS calls a machine: the computer name, which is the node's name too."""
    return str(machine.body["properties"]["osProfile"]["computerName"])


def is_off(machine: Resource) -> bool:
    return machine.hidden.get("power") in ("deallocated", "deallocating")


def _is_going(machine: Resource) -> bool:
    return bool(machine.body["properties"]["provisioningState"] == "Deleting")


class Clusters(ResourceType):
    """The clusters: read, tags, start and stop. They are made by `LocalArm.add_cluster`, or by a PUT here."""

    name = CLUSTERS
    api_versions = VERSIONS
    tracked = True

    def __init__(self) -> None:
        super().__init__()
        self.actions = {"start": self.start, "stop": self.stop}

    def get(self, call: Call) -> Answer:
        return Answer(200, self._with_pools(call, call.existing()))

    def list(self, call: Call, scope: str) -> Answer:
        return page(call, [self._with_pools(call, found) for found in call.state.of_type(self.name, scope)])

    def render(self, resource: Resource) -> Document:
        return {**super().render(resource), "eTag": resource.etag.strip('"')}

    def put(self, call: Call) -> Answer:
        """A new cluster without pools; changes of one are not modelled."""
        document, name = call.document, call.id.name
        if call.state.find(call.id) is not None:
            raise ArmError(
                405, "MethodNotAllowed", "Changing a cluster is not modelled here; use agentPools."
            )
        location = document.get("location") or "westeurope"
        group = call.properties.get("nodeResourceGroup") or f"MC_{call.id.group}_{name}_{location}"
        properties = {
            "dnsPrefix": name,
            "kubernetesVersion": KUBERNETES,
            "enableRBAC": True,
            "networkProfile": {"networkPlugin": "azure", "networkPluginMode": "overlay"},
            **call.properties,
            "nodeResourceGroup": group,
            "currentKubernetesVersion": KUBERNETES,
            "fqdn": f"{name}.hcp.{location}.azmk8s.io",
            "maxAgentPools": 100,
            "powerState": {"code": "Running"},
            "provisioningState": "Creating",
        }
        properties.pop("agentPoolProfiles", None)
        call.core.add_group(call.id.subscription, group, location)
        call.state.store(
            call.id,
            {"location": location, "tags": document.get("tags") or {}, "properties": properties}
            | {"sku": {"name": "Base", "tier": "Standard"}, "identity": {"type": "SystemAssigned"}},
        )
        effect = {"merge": {"properties": {"provisioningState": "Succeeded"}}}
        _, headers = call.core.begin(call, effect, location=location)
        call.core.settle()
        headers.pop("Location")
        return Answer(201, self._with_pools(call, call.existing()), headers)

    def patch(self, call: Call) -> Answer:
        existing = call.existing()
        call.check_if_match(existing)
        call.state.store(call.id, {**existing.body, "tags": call.document.get("tags") or {}})
        return Answer(200, self._with_pools(call, call.existing()))

    def start(self, call: Call) -> Answer:
        return self._switch(call, "Starting", "Running", "running")

    def stop(self, call: Call) -> Answer:
        return self._switch(call, "Stopping", "Stopped", "deallocated")

    def finish(self, core: Core, operation: Operation) -> None:
        effect, cluster = operation.effect, core.state.find(operation.resource)
        if "power" not in effect or cluster is None:
            super().finish(core, operation)
            return
        properties = {"provisioningState": "Succeeded", "powerState": {"code": effect["code"]}}
        core.state.store(parse_resource_id(cluster.id), merged(cluster.body, {"properties": properties}))
        for pool in pools_of(core.state, cluster):
            for machine in nodes_of(core.state, pool):
                switch(core, machine.id, effect["power"])
            body = merged(pool.body, {"properties": {"powerState": {"code": effect["code"]}}})
            core.state.store(parse_resource_id(pool.id), body)

    def _switch(self, call: Call, meanwhile: str, code: str, power: str) -> Answer:
        cluster = call.existing()
        refuse_busy(call, cluster)
        body = merged(cluster.body, {"properties": {"provisioningState": meanwhile}})
        call.state.store(call.id, body)
        effect = {"power": power, "code": code}
        _, headers = call.core.begin(call, effect, location=cluster.body["location"])
        call.core.settle()
        return Answer(202, None, headers)

    def _with_pools(self, call: Call, cluster: Resource) -> Document:
        document = self.render(cluster)
        profiles = []
        for pool in call.state.of_type(POOLS, cluster.id):
            profile = {"name": parse_resource_id(pool.id).name, **Pools().render(pool)["properties"]}
            profiles.append(profile)
        return {**document, "properties": {**document["properties"], "agentPoolProfiles": profiles}}


class Pools(ResourceType):
    """Agent pools: PUT is a whole document; count, limits, mode, taints, labels, scaleDownMode."""

    name = POOLS
    api_versions = VERSIONS

    def __init__(self) -> None:
        super().__init__()
        self.actions = {
            "deletemachines": self.delete_machines,
            "abort": self.abort,
            "upgradenodeimageversion": self.upgrade_image,
        }

    def get(self, call: Call) -> Answer:
        pool = call.existing()
        return Answer(200, self.render(pool), {"ETag": pool.etag})

    def render(self, resource: Resource) -> Document:
        document = super().render(resource)
        return {**document, "properties": {**document["properties"], "eTag": resource.etag.strip('"')}}

    def not_found(self, resource_id: ResourceId) -> ArmError:
        message = f"Agent pool '{resource_id.name}' was not found."
        return ArmError(404, "NotFound", message)

    def put(self, call: Call) -> Answer:
        existing, cluster = call.state.find(call.id), _cluster(call)
        call.check_if_match(existing, 412, "EtagMismatch")
        refuse_busy(call, cluster)
        if cluster.body["properties"]["powerState"]["code"] != "Running":
            raise ArmError(409, "OperationNotAllowed", "The cluster is stopped.")
        wanted = {n: v for n, v in call.properties.items() if n not in READ_ONLY and v is not None}
        was = existing.body["properties"] if existing else {}
        properties = self._merged(call, wanted, was, location=cluster.body["location"])
        if existing and properties["orchestratorVersion"] != was["currentOrchestratorVersion"]:
            version = properties["orchestratorVersion"]
            _check_version(call.core, cluster, was["currentOrchestratorVersion"], version)
            return self._upgrade(call, cluster, merged(existing.body, {"properties": properties}), version)
        hidden = dict(existing.hidden) if existing else {}
        body = {"properties": {**properties, "provisioningState": "Scaling" if existing else "Creating"}}
        pool = call.state.store(call.id, body, hidden)
        try:
            return self._scale(call, cluster, pool, existing is None)
        except ArmError:
            self._undo(call, existing)
            raise

    def delete(self, call: Call) -> Answer:
        pool, cluster = call.state.find(call.id), _cluster(call)
        if pool is None:
            return Answer(204)
        call.check_if_match(pool, 412, "EtagMismatch")
        refuse_busy(call, cluster)
        system = [p for p in pools_of(call.state, cluster) if p.body["properties"]["mode"] == "System"]
        if system == [pool]:
            raise ArmError(400, "OperationNotAllowed", "There has to be at least one system agent pool.")
        gone = [machine.id for machine in nodes_of(call.state, pool)]
        body = merged(pool.body, {"properties": {"provisioningState": "Deleting"}})
        call.state.store(call.id, body)
        return self._begin(call, cluster, {"gone": gone, "delete": True}, 202)

    def delete_machines(self, call: Call) -> Answer:
        """Exactly these machines go, and the count falls with them."""
        pool, cluster = call.existing(), _cluster(call)
        refuse_busy(call, cluster)
        names = call.document.get("machineNames") or []
        there = {machine_name(machine): machine for machine in nodes_of(call.state, pool)}
        unknown = [name for name in names if name not in there]
        if unknown or not names:
            message = f"Machine(s) {', '.join(unknown) or 'none'} not found in agent pool '{call.id.name}'."
            raise ArmError(400, "InvalidParameter", message, target="machineNames")
        properties = pool.body["properties"]
        count = properties["count"] - len(set(names))
        if count < 1 and properties["mode"] == "System":
            raise ArmError(400, "InvalidParameter", "A system agent pool needs at least one node.")
        for name in set(names):
            change(call.core, there[name], {"provisioningState": "Deleting"})
        body = merged(pool.body, {"properties": {"provisioningState": "DeletingMachines", "count": count}})
        call.state.store(call.id, body)
        self._shrink_set(call.core, pool, len(set(names)))
        return self._begin(call, cluster, {"gone": [there[name].id for name in set(names)]}, 202)

    def upgrade_image(self, call: Call) -> Answer:
        """Every machine anew, of the newest image of the version they have."""
        pool, cluster = call.existing(), _cluster(call)
        refuse_busy(call, cluster)
        if pool.body["properties"]["nodeImageVersion"] == _newest_image(call.core):
            return Answer(200, self.render(pool))
        return self._upgrade(call, cluster, pool.body, "")

    def _upgrade(self, call: Call, cluster: Resource, body: Document, version: str) -> Answer:
        """Machine by machine; without a version the pool keeps its own."""
        core = call.core
        state = "Upgrading" if version else "UpgradingNodeImageVersion"
        pool = core.state.store(call.id, merged(body, {"properties": {"provisioningState": state}}))
        machines = [machine.id for machine in nodes_of(core.state, pool) if not _is_going(machine)]
        each = core.operation_seconds
        settled = {"nodeImageVersion": _newest_image(core)}
        settled |= {"currentOrchestratorVersion": version} if version else {}
        operation, headers = core.begin(
            call,
            {"do": "pool", "settled": settled},
            location=cluster.body["location"],
            seconds=each * len(machines),
        )
        for number, machine in enumerate(machines, start=1):
            effect = {"anew": machine, "of": operation.id}
            core.schedule(call.id, effect, verb="reimage", seconds=each * number, visible=False)
        core.settle()
        found = self.render(call.existing())
        if version:
            headers.pop("Location")
        return Answer(200 if version else 202, found, headers)

    def abort(self, call: Call) -> Answer:
        """The operation that runs ends as Canceled; what it had not done stays undone."""
        pool = call.existing()
        running = call.core.running_on(call.id)
        if not running:
            return Answer(204)
        for operation in running:
            error = {"code": "OperationAborted", "message": "The operation was aborted."}
            call.core.supersede(operation, error)
        body = merged(pool.body, {"properties": {"provisioningState": "Canceled"}})
        call.state.store(call.id, body)
        _, headers = call.core.begin(call, {}, location=_cluster(call).body["location"])
        call.core.settle()
        return Answer(202, None, headers)

    # --- when operations end ---

    def finish(self, core: Core, operation: Operation) -> None:
        effect, pool = operation.effect, core.state.find(operation.resource)
        if pool is None or not effect:
            return
        if "anew" in effect:
            upgrade = core.state.operations[effect["of"]]
            is_on = upgrade.running or upgrade.status == "Succeeded"
            if is_on and core.state.find(effect["anew"]) is not None:
                switch(core, effect["anew"], "running")
            return
        finish_scaling(core, effect.get("made", []), effect.get("gone", []))
        for machine_id in effect.get("stop", []):
            if core.state.find(machine_id) is not None:
                switch(core, machine_id, "deallocated")
                change(core, machine_id, {"provisioningState": "Succeeded"})
        for machine_id in effect.get("start", []):
            if core.state.find(machine_id) is not None:
                switch(core, machine_id, "running")
                change(core, machine_id, {"provisioningState": "Succeeded"})
        if effect.get("delete"):
            if (scale_set := scale_set_of(core.state, pool)) is not None:
                core.state.remove(parse_resource_id(scale_set.id))
            core.state.remove(parse_resource_id(pool.id))
            return
        if (scale_set := scale_set_of(core.state, pool)) is not None:
            change(core, scale_set, {"provisioningState": "Succeeded"})
        settled = effect.get("settled", {})
        self._settled(core, pool, {"provisioningState": "Succeeded", "status": None, **settled})

    def fail(self, core: Core, operation: Operation) -> None:
        pool = core.state.find(operation.resource)
        if pool is None:
            return
        status = {"provisioningError": operation.error} if operation.error else None
        self._settled(core, pool, {"provisioningState": "Failed", "status": status})

    def _settled(self, core: Core, pool: Resource, properties: Document) -> None:
        found = core.state.find(pool.id) or pool
        machines = [m for m in nodes_of(core.state, found) if m.id.lower() in core.state.resources]
        hidden = dict(found.hidden)
        if "machines" in hidden:
            hidden["machines"] = [machine.id for machine in machines]
            properties |= {"virtualMachineNodesStatus": _by_size(machines)}
        body = merged(found.body, {"properties": properties})
        core.state.store(parse_resource_id(found.id), body, hidden)

    # --- what a PUT means ---

    def _merged(self, call: Call, wanted: Document, was: Document, *, location: str) -> Document:
        """The checked properties; ArmError 400 InvalidParameter for what AKS refuses."""
        defaults = {
            "type": "VirtualMachineScaleSets",
            "mode": "User",
            "osType": "Linux",
            "osSKU": "Ubuntu",
            "osDiskSizeGB": 128,
            "osDiskType": "Managed",
            "maxPods": 110,
            "scaleDownMode": "Delete",
            "enableAutoScaling": False,
            "orchestratorVersion": KUBERNETES,
            "currentOrchestratorVersion": KUBERNETES,
            "nodeImageVersion": _newest_image(call.core),
            "powerState": {"code": "Running"},
        }
        kept = {
            name: was[name] for name in ("type", "vmSize", "availabilityZones", *READ_ONLY) if name in was
        }
        properties: Document = {**defaults, **kept, **wanted}
        for name in UNCHANGEABLE:
            if was and name in was and properties.get(name) != was[name]:
                message = f"Changing property 'properties.{name}' is not allowed."
                raise _wrong(name, message, "PropertyChangeNotAllowed")
        manual = _manual(properties)
        if properties["type"] == "VirtualMachines":
            properties["count"] = sum(count for _, count in manual)
        else:
            check_size(call.core, properties.get("vmSize"), properties.get("availabilityZones"))
        for size, _ in manual:
            check_size(call.core, size, properties.get("availabilityZones"))
        _check_counts(properties, was)
        return properties

    def _scale(self, call: Call, cluster: Resource, pool: Resource, new: bool) -> Answer:
        if pool.body["properties"]["type"] == "VirtualMachines":
            effect, error = self._scale_machines(call, cluster, pool)
        else:
            effect, error = self._scale_set(call, cluster, pool, new)
        return self._begin(call, cluster, effect, 201 if new else 200, error)

    def _scale_set(
        self, call: Call, cluster: Resource, pool: Resource, new: bool
    ) -> tuple[Document, Document | None]:
        core, properties = call.core, pool.body["properties"]
        if new:
            pool = self._make_set(call, cluster, pool)
        scale_set = scale_set_of(core.state, pool)
        assert scale_set is not None
        there = [machine for machine in nodes_of(core.state, pool) if not _is_going(machine)]
        on = [machine for machine in there if not is_off(machine)]
        effect: Document = {}
        count = properties["count"]
        if properties["scaleDownMode"] == "Deallocate" and count < len(on):
            effect["stop"] = [machine.id for machine in reversed(on)][: len(on) - count]
            for machine_id in effect["stop"]:
                change(core, machine_id, power="deallocating", before="running")
            return effect, None
        effect["start"] = [machine.id for machine in there if is_off(machine)][: max(0, count - len(on))]
        for machine_id in effect["start"]:
            change(core, machine_id, power="starting", before="deallocated")
        off = len(there) - len(on) - len(effect["start"])
        scaling = Scaling(core, scale_set)
        scaling.to(count + off)
        body = {**scaling.set.body, "sku": {**scaling.set.body["sku"], "capacity": count + off}}
        core.state.store(parse_resource_id(scale_set.id), body)
        return {**effect, **scaling.effect}, scaling.error

    def _make_set(self, call: Call, cluster: Resource, pool: Resource) -> Resource:
        """The scale set of a new pool, empty."""
        core, properties, name = call.core, pool.body["properties"], call.id.name
        number = str(int(core.state.new_id()[:8], 16))[:8].zfill(8)
        prefix = f"aks-{name}-{number}-vmss"
        where = _compute(call, cluster, SCALE_SETS, prefix)
        profile: Document = {"osProfile": {"computerNamePrefix": prefix}}
        if properties.get("scaleSetPriority") == "Spot":
            profile["priority"] = "Spot"
        tags = {"aks-managed-poolName": name, "aks-managed-orchestrator": f"Kubernetes:{KUBERNETES}"}
        body: Document = {
            "location": cluster.body["location"],
            "tags": {**(properties.get("tags") or {}), **tags},
            "sku": {"name": properties["vmSize"], "tier": "Standard", "capacity": 0},
        }
        zones = properties.get("availabilityZones")
        body |= {"zones": zones} if zones else {}
        body["properties"] = {"orchestrationMode": "Uniform", "virtualMachineProfile": profile}
        core.do("PUT", where, body)
        return core.state.store(call.id, pool.body, {**pool.hidden, "scale_set": str(where)})

    def _scale_machines(
        self, call: Call, cluster: Resource, pool: Resource
    ) -> tuple[Document, Document | None]:
        core, properties = call.core, pool.body["properties"]
        there = [machine for machine in nodes_of(core.state, pool) if not _is_going(machine)]
        wanted = dict(_manual(properties))
        made: list[str] = []
        gone: list[str] = []
        error = None
        number = pool.hidden.get("next", 0)
        for size, count in wanted.items():
            grows = count - sum(1 for machine in there if _size(machine) == size)
            spot = properties.get("scaleSetPriority") == "Spot"
            check_quota(core, cluster.body["location"], check_size(core, size, None), grows, spot=spot)
        for size in {*wanted, *(_size(machine) for machine in there)}:
            same = [machine for machine in there if _size(machine) == size]
            for machine in reversed(same[wanted.get(size, 0) :]):
                change(core, machine, {"provisioningState": "Deleting"})
                gone.append(machine.id)
            for _ in range(wanted.get(size, 0) - len(same)):
                machine_id, code = self._make_machine(call, cluster, pool, size, number)
                number += 1
                made.append(machine_id)
                error = {"code": code, "message": f"Allocation failed for {size}."} if code else error
        machines = [machine.id for machine in there] + made
        core.state.store(call.id, pool.body, {**pool.hidden, "next": number, "machines": machines})
        return {"made": made, "gone": gone}, error

    def _make_machine(
        self, call: Call, cluster: Resource, pool: Resource, size: str, number: int
    ) -> tuple[str, str | None]:
        core, zones = call.core, pool.body["properties"].get("availabilityZones") or []
        zone = [zones[number % len(zones)]] if zones else []
        code = core.state.capacity.refusal(size, zone[0] if zone else "")
        name = f"aks-{call.id.name}-{call.state.new_id()[:8]}-vm{number}"
        where = _compute(call, cluster, VIRTUAL_MACHINES, name)
        body: Document = {"location": cluster.body["location"], **({"zones": zone} if zone else {})}
        body["tags"] = {"aks-managed-poolName": call.id.name}
        os_disk = {"osDisk": {"deleteOption": "Delete"}}
        body["properties"] = {"hardwareProfile": {"vmSize": size}, "storageProfile": os_disk}
        machine = create_machine(core, where, body, zone)
        change(core, machine, None, refused=code, number=number)
        return machine.id, code

    def _shrink_set(self, core: Core, pool: Resource, by: int) -> None:
        scale_set = scale_set_of(core.state, pool)
        if scale_set is not None:
            sku = {**scale_set.body["sku"], "capacity": scale_set.body["sku"]["capacity"] - by}
            core.state.store(parse_resource_id(scale_set.id), {**scale_set.body, "sku": sku})

    def _undo(self, call: Call, existing: Resource | None) -> None:
        pool = call.state.find(call.id)
        if existing is not None:
            call.state.store(call.id, existing.body, existing.hidden)
        elif pool is not None:
            if (scale_set := scale_set_of(call.state, pool)) is not None:
                call.state.remove(parse_resource_id(scale_set.id))
            call.state.remove(call.id)

    def _begin(
        self, call: Call, cluster: Resource, effect: Document, status: int, error: Document | None = None
    ) -> Answer:
        operation, headers = call.core.begin(
            call, {"do": "pool", **effect}, location=cluster.body["location"]
        )
        if error and operation.ending is None:
            operation.ending = {"status": "Failed", "error": error, "applied": True}
        call.core.settle()
        pool = call.state.find(call.id)
        if status == 202 or pool is None:
            return Answer(202, None, headers)
        headers.pop("Location")
        return Answer(status, self.render(pool), headers)


class PoolMachines(ResourceType):
    """The machines of a pool, as AKS names them. Read only."""

    name = MACHINES
    api_versions = VERSIONS

    def get(self, call: Call) -> Answer:
        for machine in self._machines(call):
            if machine_name(machine) == call.id.name:
                return Answer(200, self._shown(call.id.parent, machine))
        raise ArmError(404, "NotFound", f"Machine '{call.id.name}' was not found.")

    def list(self, call: Call, scope: str) -> Answer:
        return page(call, [self._shown(call.id.parent, machine) for machine in self._machines(call)])

    def _machines(self, call: Call) -> Iterable[Resource]:
        assert call.id.parent is not None
        pool = call.state.find(call.id.parent)
        if pool is None:
            raise Pools().not_found(call.id.parent)
        return nodes_of(call.state, pool)

    def _shown(self, pool: ResourceId | None, machine: Resource) -> Document:
        assert pool is not None
        number = machine.hidden.get("number", 0)
        address = {"family": "IPv4", "ip": f"10.224.{number // 250}.{number % 250 + 4}"}
        properties = {"resourceId": machine.id, "network": {"ipAddresses": [address]}}
        name = machine_name(machine)
        document = {"id": str(pool.child("machines", name)), "name": name, "type": self.name}
        zones = machine.body.get("zones")
        return {**document, "properties": properties, **({"zones": zones} if zones else {})}


class UpgradeProfiles(ResourceType):
    """What a pool could be upgraded to: one profile, `default`. Read only."""

    name = PROFILES
    api_versions = VERSIONS
    always_exists = True

    def get(self, call: Call) -> Answer:
        cluster, pool = _cluster(call), call.state.find(str(call.id.parent))
        if pool is None or call.id.name != "default":
            raise self.not_found(call.id)
        known = pool.body["properties"]["currentOrchestratorVersion"]
        offered = [one for one in _offered(call.core, cluster) if _rank(one) > _rank(known)]
        properties = {
            "kubernetesVersion": known,
            "osType": pool.body["properties"]["osType"],
            "upgrades": [{"kubernetesVersion": one} for one in offered],
            "latestNodeImageVersion": _newest_image(call.core),
        }
        document = {"id": str(call.id), "name": "default", "type": self.name, "properties": properties}
        return Answer(200, document)


def _newest_image(core: Core) -> str:
    return str(core.settings.get("aks_node_image", NODE_IMAGE))


def _offered(core: Core, cluster: Resource) -> list[str]:
    """Versions up to the control plane's own."""
    control_plane = cluster.body["properties"]["currentKubernetesVersion"]
    return [one for one in core.settings.get("aks_versions", OFFERED) if _rank(one) <= _rank(control_plane)]


def _rank(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _check_version(core: Core, cluster: Resource, known: str, wanted: str) -> None:
    """ArmError for a version that is unknown, newer than the control plane's, or older than the pool's."""
    control_plane = cluster.body["properties"]["currentKubernetesVersion"]
    if wanted not in core.settings.get("aks_versions", OFFERED):
        message = f"Version {wanted} is not supported in this region."
        raise _wrong("orchestratorVersion", message, "AgentPoolK8sVersionNotSupported")
    if _rank(wanted) > _rank(control_plane):
        message = f"Node pool version {wanted} and control plane version {control_plane} are incompatible."
        raise _wrong("orchestratorVersion", message, "NodePoolMcVersionIncompatible")
    if _rank(wanted) < _rank(known):
        message = f"Upgrading agent pool from {known} to {wanted} is not allowed."
        raise _wrong("orchestratorVersion", message, "AgentPoolUpgradeVersionNotAllowed")


def refuse_busy(call: Call, cluster: Resource) -> None:
    """One operation on a cluster at a time, its pools included."""
    where = parse_resource_id(cluster.id)
    own = [where, *(parse_resource_id(pool.id) for pool in pools_of(call.state, cluster))]
    for resource_id in own:
        for running in call.core.running_on(resource_id):
            message = (
                f"Operation is not allowed because there's an in progress {running.verb} operation on "
                f"{resource_id.names[-1]}. Please wait for it to finish before starting a new operation."
            )
            raise ArmError(409, "OperationNotAllowed", message)


def _cluster(call: Call) -> Resource:
    where = parse_resource_id(str(call.id))
    while where.parent is not None:
        where = where.parent
    cluster = call.state.find(where)
    assert cluster is not None, "the core has checked the parents"
    return cluster


def _compute(call: Call, cluster: Resource, kind: str, name: str) -> ResourceId:
    """A resource in the node resource group."""
    namespace, of_type = kind.split("/")
    return ResourceId(call.id.subscription, node_group(cluster), namespace, (of_type,), (name,))


def _check_counts(properties: Document, was: Document) -> None:
    count = properties.setdefault("count", was.get("count", 1))
    system = properties["mode"] == "System"
    fewest = 1 if system else 0
    if not isinstance(count, int) or not fewest <= count <= MAX_NODES:
        raise _wrong("count", f"The agent pool's count must be {fewest} to {MAX_NODES}.")
    low, high = properties.get("minCount"), properties.get("maxCount")
    if not properties["enableAutoScaling"]:
        if low is not None or high is not None:
            raise _wrong("minCount", "minCount and maxCount need enableAutoScaling.")
        return
    if not isinstance(low, int) or not isinstance(high, int) or not low <= high:
        raise _wrong("minCount", "With enableAutoScaling, minCount and maxCount are needed.")
    if not low <= count <= high:
        raise _wrong("count", f"count {count} is not within minCount {low} and maxCount {high}.")


def _manual(properties: Document) -> list[tuple[str, int]]:
    if properties["type"] != "VirtualMachines":
        return []
    scale = (properties.get("virtualMachinesProfile") or {}).get("scale") or {}
    found = [(entry["size"], entry["count"]) for entry in scale.get("manual") or []]
    if not found:
        raise _wrong("virtualMachinesProfile", "A pool of type VirtualMachines needs a manual scale profile.")
    return found


def _size(machine: Resource) -> str:
    return str(machine.body["properties"]["hardwareProfile"]["vmSize"])


def _by_size(machines: list[Resource]) -> list[Any]:
    sizes = sorted({_size(machine) for machine in machines})
    return [{"size": size, "count": sum(1 for m in machines if _size(m) == size)} for size in sizes]


def _wrong(name: str, message: str, code: str = "InvalidParameter") -> ArmError:
    return ArmError(400, code, message, target=f"properties.{name}")

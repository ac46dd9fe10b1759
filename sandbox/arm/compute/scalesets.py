"""Virtual machine scale sets, uniform and flexible, and their instances.

A uniform instance is a part of its set (`.../virtualMachines/7`), its number never used again. A flexible one
is an ordinary virtual machine that names its set; the set's own list shows it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from sandbox.arm.capacity import Size
from sandbox.arm.compute.disks import MACHINE_VERSIONS
from sandbox.arm.compute.machines import (
    Machines,
    apply_disks,
    change,
    create_machine,
    delete_machine,
    instance_view,
    switch,
)
from sandbox.arm.compute.quota import INSTANCES, SCALE_SETS, VIRTUAL_MACHINES, check_quota, check_size
from sandbox.arm.core import (
    Answer,
    ArmError,
    Call,
    Core,
    Limit,
    ResourceType,
    merged,
    page,
)
from sandbox.arm.state import Document, Operation, Resource, State
from shared.model.resource_id import ResourceId, parse_resource_id

MAX_CAPACITY = 1000
BUSY = "The request failed due to conflict with a concurrent request."
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
# In force since 2018: https://learn.microsoft.com/azure/virtual-machines/compute-throttling-limits
COSTLY_READS = (
    Limit("Microsoft.Compute/HighCostGetVMScaleSet3Min", 190, 190 / 180, "OperationNotAllowed"),
    Limit("Microsoft.Compute/HighCostGetVMScaleSet30Min", 900, 900 / 1800, "OperationNotAllowed"),
)


# --- reading a set ---


def is_flexible(scale_set: Resource) -> bool:
    return bool(scale_set.body["properties"].get("orchestrationMode") == "Flexible")


def members(state: State, scale_set: Resource) -> list[Resource]:
    """Its instances, in the order they were made."""
    if not is_flexible(scale_set):
        found: Iterable[Resource] = state.of_type(INSTANCES, scale_set.id)
    else:
        key = scale_set.id.lower()
        found = (
            machine
            for machine in state.of_type(VIRTUAL_MACHINES)
            if (machine.body["properties"].get("virtualMachineScaleSet") or {}).get("id", "").lower() == key
        )
    return sorted(found, key=lambda machine: machine.hidden.get("number", 1 << 30))


def instance_id(machine: Resource) -> str:
    return str(machine.body.get("instanceId") or parse_resource_id(machine.id).name)


# --- growing and shrinking ---


class Scaling:
    """One change of capacity: what it adds and takes away, and the error it will end with."""

    def __init__(self, core: Core, scale_set: Resource) -> None:
        self.core, self.set = core, scale_set
        self.made: list[str] = []
        self.gone: list[str] = []
        self.error: Document | None = None

    @property
    def effect(self) -> Document:
        return {"do": "scale", "made": self.made, "gone": self.gone}

    def to(self, capacity: int) -> None:
        """ArmError when quota or size forbid it; nothing is done then."""
        there = [m for m in members(self.core.state, self.set) if not _is_going(m)]
        if capacity > len(there):
            self._grow(there, capacity - len(there))
        for machine in self._victims(there)[: max(0, len(there) - capacity)]:
            self.remove(machine)

    def remove(self, machine: Resource) -> None:
        change(self.core, machine, {"provisioningState": "Deleting"})
        self.gone.append(machine.id)

    def _grow(self, there: list[Resource], count: int) -> None:
        body = self.set.body
        zones = body.get("zones") or []
        size = check_size(self.core, body["sku"]["name"], zones)
        profile = body["properties"].get("virtualMachineProfile") or {}
        spot = profile.get("priority") in ("Spot", "Low")
        check_quota(self.core, body["location"], size, count, spot=spot)
        if size and self._refused_at_once(size, zones):
            message = f"The requested size '{size.name}' is currently not available in the location."
            raise ArmError(409, "SkuNotAvailable", message)
        spread = Counter(dict.fromkeys(zones or [""], 0))
        spread.update(zone for m in there for zone in (m.body.get("zones") or [""]) if zone in spread)
        number = self.set.hidden.get("next", 0)
        for new in range(number, number + count):
            zone, code = self._allocate(size, spread)
            spread[zone] += 1
            self._make(new, zone, code, spot)
        self.set = self.core.state.store(
            parse_resource_id(self.set.id), self.set.body, {**self.set.hidden, "next": number + count}
        )

    def _refused_at_once(self, size: Size, zones: list[str]) -> bool:
        shortages = self.core.state.capacity.shortages
        hits = [s for s in shortages if s.code == "SkuNotAvailable" and not s.left]
        return any(all(s.hits(size.name, zone) for zone in zones or [""]) for s in hits)

    def _allocate(self, size: Size, spread: Counter[str]) -> tuple[str, str | None]:
        """The zone for one more machine; with strict balance only the emptiest will do."""
        ordered = sorted(spread, key=lambda zone: (spread[zone], zone))
        if self.set.body["properties"].get("zoneBalance"):
            ordered = ordered[:1]
        code = None
        for zone in ordered:
            code = self.core.state.capacity.refusal(size.name, zone)
            if code is None:
                return zone, None
        self.error = {"code": code, "message": f"Allocation failed for size {size.name} in this region."}
        return ordered[0], code

    def _make(self, number: int, zone: str, code: str | None, spot: bool) -> None:
        state, scale_set = self.core.state, parse_resource_id(self.set.id)
        profile = dict(self.set.body["properties"].get("virtualMachineProfile") or {})
        flexible = is_flexible(self.set)
        suffix = state.new_id()[:8]
        at = (
            ResourceId(
                scale_set.subscription,
                scale_set.group,
                scale_set.namespace,
                ("virtualMachines",),
                (f"{scale_set.name}_{suffix}",),
            )
            if flexible
            else scale_set.child("virtualMachines", str(number))
        )
        prefix = (profile.get("osProfile") or {}).get("computerNamePrefix") or scale_set.name
        storage = {n: v for n, v in (profile.get("storageProfile") or {}).items() if n != "dataDisks"}
        storage["osDisk"] = {"deleteOption": "Delete", **(storage.get("osDisk") or {})}
        properties: Document = {"osProfile": {"computerName": prefix + base36(number)}}
        properties |= {"storageProfile": storage}
        if flexible:
            properties |= {"hardwareProfile": {"vmSize": self.set.body["sku"]["name"]}}
            properties |= {"virtualMachineScaleSet": {"id": self.set.id}}
            properties |= {"priority": profile["priority"]} if profile.get("priority") else {}
        document = {"location": self.set.body["location"], "tags": self.set.body.get("tags") or {}}
        zones = [zone] if zone else []
        document |= {"zones": zones} if zones else {}
        machine = create_machine(self.core, at, {**document, "properties": properties}, zones)
        if not flexible:
            body = {
                **machine.body,
                "instanceId": str(number),
                "sku": dict(self.set.body["sku"], capacity=None),
            }
            body["sku"] = {name: v for name, v in body["sku"].items() if v is not None}
            machine = state.store(at, body)
        hidden = {"number": number, "model": self.set.hidden["model"], "refused": code, "spot": spot}
        change(self.core, machine, None, **hidden)
        self.made.append(machine.id)

    def _victims(self, there: list[Resource]) -> list[Resource]:
        """Who goes first: the zone with most, in it the newest (Default and NewestVM) or the oldest."""
        rules = (self.set.body["properties"].get("scaleInPolicy") or {}).get("rules") or ["Default"]
        policy = "protectionPolicy"
        free = [
            machine
            for machine in there
            if not (machine.body["properties"].get(policy) or {}).get("protectFromScaleIn")
        ]
        oldest_first = "OldestVM" in rules
        ordered = sorted(free, key=lambda m: m.hidden.get("number", 1 << 30), reverse=not oldest_first)
        victims: list[Resource] = []
        while ordered:
            crowd = Counter(zone for m in ordered for zone in m.body.get("zones") or [""])
            fullest = max(crowd.values())
            victim = next(m for m in ordered if crowd[(m.body.get("zones") or [""])[0]] == fullest)
            victims.append(victim)
            ordered.remove(victim)
        return victims


def _is_going(machine: Resource) -> bool:
    return bool(machine.body["properties"]["provisioningState"] == "Deleting")


def base36(number: int) -> str:
    """Six characters, as in computer names of instances: 000000, 00000a."""
    text = ""
    for _ in range(6):
        number, digit = divmod(number, 36)
        text = DIGITS[digit] + text
    return text


def finish_scaling(core: Core, made: Iterable[str], gone: Iterable[str]) -> None:
    """New machines run, except those that were refused, which stay as Failed until they are deleted."""
    for machine_id in made:
        machine = core.state.find(machine_id)
        if machine is None or _is_going(machine):
            continue
        code = machine.hidden.get("refused")
        if code:
            failure = {"code": code, "message": "Allocation failed."}
            change(core, machine, {"provisioningState": "Failed"}, failure=failure)
        else:
            change(core, machine, {"provisioningState": "Succeeded"})
            switch(core, machine_id, "running")
    for machine_id in gone:
        delete_machine(core, machine_id)


# --- the types ---


class ScaleSets(ResourceType):
    """The sets. PUT and PATCH change capacity, model, tags; a later one takes over from an earlier one."""

    name = SCALE_SETS
    api_versions = MACHINE_VERSIONS
    tracked = True

    def __init__(self) -> None:
        super().__init__()
        self.actions = {
            "delete": self.delete_instances,
            "start": self.power,
            "poweroff": self.power,
            "deallocate": self.power,
            "restart": self.power,
            "reimage": self.power,
            "reimageall": self.power,
            "redeploy": self.power,
            "reapply": self.reapply,
            "manualupgrade": self.upgrade,
        }
        self.views = {"instanceview": self.view}

    def render(self, resource: Resource) -> Document:
        return {**super().render(resource), "etag": resource.etag}

    def put(self, call: Call) -> Answer:
        existing = call.state.find(call.id)
        call.check_if_match(existing)
        if existing is not None:
            return self._update(call, existing)
        document = call.document
        if not document.get("location"):
            raise ArmError(400, "LocationRequired", "The location property is required for this definition.")
        properties = {
            "orchestrationMode": "Uniform",
            "overprovision": False,
            "upgradePolicy": {"mode": "Manual"},
            "platformFaultDomainCount": 1,
            "singlePlacementGroup": False,
            **call.properties,
            "uniqueId": call.state.new_id(),
            "timeCreated": call.state.at,
            "provisioningState": "Creating",
        }
        body = {
            "location": document["location"],
            "tags": document.get("tags") or {},
            "properties": properties,
        }
        body |= {name: document[name] for name in ("zones", "identity") if document.get(name)}
        capacity = _capacity(document.get("sku"))
        check_size(call.core, document["sku"].get("name"), document.get("zones"))
        body["sku"] = {"tier": "Standard", **document["sku"], "capacity": capacity}
        scale_set = call.state.store(call.id, body, {"next": 0, "model": 1})
        scaling = Scaling(call.core, scale_set)
        try:
            scaling.to(capacity)
        except ArmError:
            call.state.remove(call.id)
            raise
        return self._begin(call, scaling, 201)

    def patch(self, call: Call) -> Answer:
        existing = call.existing()
        call.check_if_match(existing)
        return self._update(call, existing)

    def delete(self, call: Call) -> Answer:
        scale_set = call.state.find(call.id)
        if scale_set is None:
            return Answer(204)
        scaling = Scaling(call.core, scale_set)
        for machine in members(call.state, scale_set):
            scaling.remove(machine)
        change(call.core, scale_set, {"provisioningState": "Deleting"})
        effect = {**scaling.effect, "delete": True}
        _, headers = call.core.begin(
            call, effect, location=scale_set.body["location"], on_running="supersede"
        )
        call.core.settle()
        return Answer(202, None, headers)

    def delete_instances(self, call: Call) -> Answer:
        """Several deletions may run side by side; capacity falls at once."""
        scale_set, scaling = call.existing(), Scaling(call.core, call.existing())
        for machine in self._asked(call, scale_set):
            if not _is_going(machine):
                scaling.remove(machine)
        self._set_capacity(call.core, scale_set, scale_set.body["sku"]["capacity"] - len(scaling.gone))
        forced = call.query.get("forcedeletion", "").lower() == "true"
        return self._side_by_side(
            call, scaling.effect, "forceDeleteInstances" if forced else "deleteInstances"
        )

    def power(self, call: Call) -> Answer:
        meanwhile, power = {
            "start": ("starting", "running"),
            "poweroff": ("stopping", "stopped"),
            "deallocate": ("deallocating", "deallocated"),
        }.get(call.action, ("running", "running"))
        ids = []
        for machine in self._asked(call, call.existing(), everyone=True):
            before = machine.hidden.get("power")
            moving = {"power": power if before == power else meanwhile, "before": before}
            change(call.core, machine, {"provisioningState": "Updating"}, **moving)
            ids.append(machine.id)
        return self._side_by_side(call, {"do": "power", "power": power, "machines": ids}, call.action)

    def reapply(self, call: Call) -> Answer:
        return self._side_by_side(call, {"do": "power", "machines": []}, "reapply")

    def upgrade(self, call: Call) -> Answer:
        """Bring instances to the latest model; they are restarted."""
        ids = [machine.id for machine in self._asked(call, call.existing())]
        effect = {"do": "power", "power": "running", "machines": ids, "upgrade": True}
        return self._side_by_side(call, effect, "manualupgrade")

    def view(self, call: Call) -> Answer:
        scale_set = call.existing()
        counts: Counter[str] = Counter()
        for machine in members(call.state, scale_set):
            counts.update(status["code"] for status in instance_view(machine)["statuses"])
        state = scale_set.body["properties"]["provisioningState"].lower()
        status = {"code": f"ProvisioningState/{state}", "level": "Info"}
        summary = [{"code": code, "count": count} for code, count in sorted(counts.items())]
        shown = {"virtualMachine": {"statusesSummary": summary}, "statuses": [status]}
        return Answer(200, shown)

    def finish(self, core: Core, operation: Operation) -> None:
        effect, set_id = operation.effect, operation.resource
        if effect["do"] == "scale":
            finish_scaling(core, effect["made"], effect["gone"])
        for machine_id in effect.get("machines", []):
            machine = core.state.find(machine_id)
            if machine is None or _is_going(machine):
                continue
            apply_disks(core, machine_id)
            switch(core, machine_id, effect["power"])
            self._updated(core, set_id, machine_id, is_upgrade=bool(effect.get("upgrade")))
        if effect.get("delete"):
            core.state.remove(parse_resource_id(set_id))
        elif core.state.find(set_id) is not None and effect["do"] == "scale":
            change(core, set_id, {"provisioningState": "Succeeded"})

    def _updated(self, core: Core, set_id: str, machine_id: str, *, is_upgrade: bool) -> None:
        properties: Document = {"provisioningState": "Succeeded"}
        if not is_upgrade:
            change(core, machine_id, properties)
            return
        scale_set = core.state.resources[set_id.lower()]
        profile = scale_set.body["properties"].get("virtualMachineProfile") or {}
        image = (profile.get("storageProfile") or {}).get("imageReference")
        properties |= {"storageProfile": {"imageReference": image}} if image else {}
        change(core, machine_id, properties, model=scale_set.hidden["model"])

    def fail(self, core: Core, operation: Operation) -> None:
        """Deletions that did not happen leave Failed instances; so do power changes."""
        effect = operation.effect
        if not (operation.ending or {}).get("applied"):
            for machine_id in (*effect.get("made", []), *effect.get("gone", []), *effect.get("machines", [])):
                machine = core.state.find(machine_id)
                if machine is not None:
                    before = machine.hidden.get("before", machine.hidden.get("power"))
                    change(
                        core, machine, {"provisioningState": "Failed"}, failure=operation.error, power=before
                    )
        super().fail(core, operation)

    def _asked(self, call: Call, scale_set: Resource, *, everyone: bool = False) -> list[Resource]:
        """The instances named in the body; `*` is all. Without a body all, where that is allowed."""
        asked: Any = (call.body or {}).get("instanceIds") if isinstance(call.body or {}, dict) else None
        there = {instance_id(machine).lower(): machine for machine in members(call.state, scale_set)}
        if asked == ["*"] or (everyone and not asked):
            return list(there.values())
        if not isinstance(asked, list) or not asked:
            raise ArmError(400, "InvalidParameter", "Required parameter 'instanceIds' is missing (null).")
        unknown = [wanted for wanted in asked if str(wanted).lower() not in there]
        if unknown:
            message = (
                f"The provided instanceId {unknown[0]} is not an active Virtual Machine Scale Set VM "
                "instanceId."
            )
            raise ArmError(400, "InvalidParameter", message, target="instanceIds")
        return [there[str(wanted).lower()] for wanted in asked]

    def _update(self, call: Call, existing: Resource) -> Answer:
        document = call.document
        if existing.body["properties"]["provisioningState"] == "Deleting":
            raise ArmError(409, "OperationNotAllowed", f"The scale set '{call.id.name}' is being deleted.")
        asked = {n: v for n, v in (document.get("properties") or {}).items() if n not in FIXED}
        mode = (document.get("properties") or {}).get("orchestrationMode")
        if mode not in (None, existing.body["properties"]["orchestrationMode"]):
            message = "Changing property 'orchestrationMode' is not allowed."
            raise ArmError(409, "PropertyChangeNotAllowed", message, target="orchestrationMode")
        sku = {n: v for n, v in (document.get("sku") or {}).items() if v is not None}
        capacity = _capacity({**existing.body["sku"], **sku})
        body = merged(existing.body, {"sku": sku, "properties": {**asked, "provisioningState": "Updating"}})
        body |= {n: document[n] for n in ("tags", "zones") if document.get(n) is not None}
        hidden = dict(existing.hidden)
        if _model(body) != _model(existing.body):
            hidden["model"] += 1
        scaling = Scaling(call.core, call.state.store(call.id, body, hidden))
        try:
            scaling.to(capacity)
        except ArmError:
            call.state.store(call.id, existing.body, existing.hidden)
            raise
        return self._begin(call, scaling, 200)

    def _begin(self, call: Call, scaling: Scaling, status: int) -> Answer:
        effect = scaling.effect
        for running in call.core.running_on(call.id):
            if running.verb in ("put", "patch"):
                call.core.supersede(running)
                effect["made"] += running.effect["made"]
                effect["gone"] += running.effect["gone"]
        location = call.existing().body["location"]
        operation, headers = call.core.begin(call, effect, location=location, on_running="concurrent")
        if scaling.error and operation.ending is None:
            operation.ending = {"status": "Failed", "error": scaling.error, "applied": True}
        headers.pop("Location")
        call.core.settle()
        found = call.existing()
        return Answer(status, self.render(found), {**headers, "ETag": found.etag})

    def _side_by_side(self, call: Call, effect: Document, verb: str) -> Answer:
        location = call.existing().body["location"]
        _, headers = call.core.begin(call, effect, location=location, on_running="concurrent", verb=verb)
        call.core.settle()
        return Answer(202, None, headers)

    def _set_capacity(self, core: Core, scale_set: Resource, capacity: int) -> None:
        sku = {**scale_set.body["sku"], "capacity": capacity}
        core.state.store(parse_resource_id(scale_set.id), {**scale_set.body, "sku": sku})


FIXED = frozenset({"provisioningState", "uniqueId", "timeCreated", "orchestrationMode"})


def _model(body: Document) -> tuple[Any, Any]:
    return body["properties"].get("virtualMachineProfile"), body["sku"].get("name")


def _capacity(sku: Document | None) -> int:
    capacity = (sku or {}).get("capacity", 0)
    if not isinstance(capacity, int) or not 0 <= capacity <= MAX_CAPACITY:
        raise ArmError(
            400, "InvalidParameter", f"sku.capacity must be 0 to {MAX_CAPACITY}.", target="sku.capacity"
        )
    return capacity


class Instances(Machines):
    """Instances of uniform sets; of flexible ones, a view of the machines."""

    name = INSTANCES

    def limits(self, call: Call) -> Iterable[Limit]:
        return COSTLY_READS if call.method == "GET" and not call.id.name else ()

    def not_found(self, resource_id: ResourceId) -> ArmError:
        return ArmError(404, "NotFound", "The entity was not found in this Azure location.")

    def get(self, call: Call) -> Answer:
        machine = call.existing()
        return Answer(200, self._shown(call, self._set(call), machine), {"ETag": machine.etag})

    def list(self, call: Call, scope: str) -> Answer:
        scale_set = self._set(call)
        found = [self._shown(call, scale_set, machine) for machine in members(call.state, scale_set)]
        return page(call, found)

    def put(self, call: Call) -> Answer:
        """Data disks, tags and protection of one instance."""
        machine, document = call.existing(), call.document
        call.check_if_match(machine)
        wanted = (call.properties.get("storageProfile") or {}).get("dataDisks")
        protection = call.properties.get("protectionPolicy")
        body = {**machine.body, "tags": document.get("tags") or machine.body["tags"]}
        if protection is not None:
            body = merged(body, {"properties": {"protectionPolicy": protection}})
        machine = call.state.store(call.id, body)
        if wanted is not None:
            answer = self.write_disks(call, machine, wanted)
        else:
            change(call.core, machine, {"provisioningState": "Updating"})
            answer = self._begin(call, {"do": "apply"})
        answer.headers.pop("Location")
        return Answer(200, self._shown(call, self._set(call), call.existing()), answer.headers)

    def delete(self, call: Call) -> Answer:
        machine = call.state.find(call.id)
        if machine is None:
            return Answer(204)
        change(call.core, machine, {"provisioningState": "Deleting"})
        scale_set = self._set(call)
        sku = {**scale_set.body["sku"], "capacity": scale_set.body["sku"]["capacity"] - 1}
        call.state.store(parse_resource_id(scale_set.id), {**scale_set.body, "sku": sku})
        return self._begin(call, {"do": "delete"}, verb="delete")

    def refuse_concurrent(self, call: Call, forced: bool) -> None:
        if not forced and call.core.running_on(call.id):
            raise ArmError(409, "Conflict", BUSY)

    def _set(self, call: Call) -> Resource:
        assert call.id.parent is not None
        scale_set = call.state.find(call.id.parent)
        if scale_set is None:
            raise ScaleSets().not_found(call.id.parent)
        return scale_set

    def _shown(self, call: Call, scale_set: Resource, machine: Resource) -> Document:
        document = self.shown(call, machine)
        properties = {n: v for n, v in document["properties"].items() if n in INSTANCE_PROPERTIES}
        name = f"{parse_resource_id(scale_set.id).name}_{instance_id(machine)}"
        if is_flexible(scale_set):
            properties["virtualMachineResourceId"] = machine.id
            name = instance_id(machine)
            document["id"] = f"{scale_set.id}/virtualMachines/{name}"
        properties["latestModelApplied"] = machine.hidden.get("model") == scale_set.hidden["model"]
        properties["modelDefinitionApplied"] = "VirtualMachineScaleSet"
        document |= {"name": name, "type": self.name, "instanceId": instance_id(machine)}
        return {**document, "properties": properties}


INSTANCE_PROPERTIES = frozenset(
    {"vmId", "instanceView", "hardwareProfile", "storageProfile", "osProfile", "networkProfile"}
    | {"provisioningState", "protectionPolicy", "timeCreated"}
)

"""What every virtual machine does, alone or in a scale set: power, data disks, instance view.

Writes change the *goal* (the document) at once; what really happens follows when the operation ends. A later
write takes over whatever an earlier one left undone: so a detach whose operation was preempted or lost still
happens with the next write that ends well.
"""

from __future__ import annotations

from typing import Any

from sandbox.arm.compute import disks
from sandbox.arm.compute.disks import MACHINE_VERSIONS
from sandbox.arm.compute.quota import VIRTUAL_MACHINES, check_quota, check_size, is_spot, size_of
from sandbox.arm.core import PREEMPTED, Answer, ArmError, Call, Core, ResourceType, invalid, merged, page
from sandbox.arm.state import Document, Operation, Resource
from shared.model.resource_id import ResourceId, parse_resource_id

POWERED_OFF = frozenset({"stopped", "deallocated"})
POWER = ("power", "hibernated", "from")
"""What says in an operation's effect how the power changes."""
FORCED = {"code": "DataDisksForceDetached", "message": "A forced detach of data disks preempted this."}
FAULT_DOMAINS = 3
DISK_NOT_FOUND = "DiskNotFound"


# --- reading a machine ---


def data_disks(machine: Resource) -> list[Document]:
    found: list[Document] = machine.body["properties"].get("storageProfile", {}).get("dataDisks") or []
    return found


def disk_id_of(entry: Document) -> str:
    """The id of a managed disk, the address of an unmanaged one; "" when it is neither."""
    managed = (entry.get("managedDisk") or {}).get("id")
    return str(managed or (entry.get("vhd") or {}).get("uri") or "")


def disk_key(entry: Document) -> str:
    return (disk_id_of(entry) or entry.get("name") or "").lower()


def managed_disks_of(machine: Resource) -> list[str]:
    os_disk = machine.body["properties"].get("storageProfile", {}).get("osDisk") or {}
    found = [disk_id_of(entry) for entry in (os_disk, *data_disks(machine))]
    return [disk for disk in found if disk.startswith("/")]


def change(
    core: Core, machine: Resource | str, properties: Document | None = None, **hidden: Any
) -> Resource:
    """Merge into the properties and the hidden part; returns the new version."""
    found = core.state.find(machine.id if isinstance(machine, Resource) else machine)
    assert found is not None
    body = merged(found.body, {"properties": properties}) if properties else found.body
    return core.state.store(parse_resource_id(found.id), body, {**found.hidden, **hidden})


# --- what happens when operations end ---


def switch(core: Core, machine_id: str, power: str, *, hibernated: bool = False, boot: bool = True) -> None:
    """The machine is running, stopped or deallocated from now on, and really so."""
    machine = change(core, machine_id, power=power, hibernated=hibernated)
    vm_id = machine.body["properties"]["vmId"]
    if power == "running" and boot:
        core.state.truth.started(vm_id)
    if power in POWERED_OFF:
        core.state.truth.stopped(vm_id)
    for disk in managed_disks_of(machine):
        disks.refresh(core, disk)


def apply_disks(core: Core, machine_id: str) -> None:
    """Detach what is to be detached, then attach what is new: the list becomes the truth."""
    machine = core.state.find(machine_id)
    assert machine is not None
    vm_id, at = machine.body["properties"]["vmId"], core.state.at
    pending = machine.hidden.get("attaching") or []
    kept = []
    for entry in data_disks(machine):
        disk = disk_id_of(entry)
        if not entry.get("toBeDetached"):
            kept.append({name: v for name, v in entry.items() if name != "detachOption"})
            continue
        forced = entry.get("detachOption") == "ForceDetach"
        core.state.truth.detached(vm_id, disk, at, forced=forced)
        disks.release(core, disk, machine.id)
    for entry in kept:
        if disk_key(entry) in pending:
            disks.own(core, disk_id_of(entry), machine.id)
            core.state.truth.attached(vm_id, disk_id_of(entry), entry["lun"], at)
    change(core, machine, {"storageProfile": {"dataDisks": kept}}, attaching=[])


def delete_machine(core: Core, machine_id: str) -> None:
    """The machine goes, with the disks and interfaces whose `deleteOption` says so; others stay behind."""
    machine = core.state.find(machine_id)
    if machine is None:
        return
    core.state.truth.stopped(machine.body["properties"]["vmId"])
    profile = machine.body["properties"].get("storageProfile", {})
    linger = core.settings.get("disk_linger_seconds", 0.0)
    core.state.remove(parse_resource_id(machine.id))
    for entry in ([profile["osDisk"]] if profile.get("osDisk") else []) + data_disks(machine):
        disk = disk_id_of(entry)
        if not disk.startswith("/"):
            continue
        if linger and entry.get("deleteOption") != "Delete":
            disks.linger(core, disk, machine.id, linger)
            continue
        disks.release(core, disk, machine.id)
        if entry.get("deleteOption") == "Delete":
            core.state.remove(parse_resource_id(disk))
    for reference in machine.body["properties"].get("networkProfile", {}).get("networkInterfaces") or []:
        _leave_interface(core, reference)


def _leave_interface(core: Core, reference: Document) -> None:
    interface = core.state.find(reference.get("id") or "")
    if interface is None:
        return
    if (reference.get("properties") or {}).get("deleteOption") == "Delete":
        core.state.remove(parse_resource_id(interface.id))
    else:
        body = merged(interface.body, {"properties": {"virtualMachine": None}})
        core.state.store(parse_resource_id(interface.id), body)


# --- data disks, as asked for ---


class DiskPlan:
    """The list of data disks that a write asks for, checked against what is there."""

    def __init__(self, core: Core, machine_id: str, zones: list[str], size: str, old: list[Document]) -> None:
        self.core, self.machine, self.zones, self.size = core, machine_id, zones, size
        self.old = {disk_key(entry): entry for entry in old}
        self.entries: list[Document] = []
        self.new: list[str] = []
        self.forced = False

    def take(self, wanted: list[Document]) -> None:
        """A whole list: what it leaves out is detached. ArmError when any entry is wrong; nothing is done
        then.
        """
        listed = {disk_key(entry) for entry in wanted}
        left_out = [{**entry, "toBeDetached": True} for key, entry in self.old.items() if key not in listed]
        for entry in (*wanted, *left_out):
            self._take(entry)
        self._check()
        for entry in self.entries:
            if disk_key(entry) in self.new:
                disk = self.core.state.find(disk_id_of(entry))
                if disk is not None:
                    disks.claim(self.core, disk, self.machine)

    def _take(self, entry: Document) -> None:
        known = self.old.get(disk_key(entry))
        if known is None:
            self._attach(entry)
            return
        if known.get("toBeDetached") and not entry.get("toBeDetached"):
            raise disks.being_detached(entry.get("name") or disk_key(entry), self.machine)
        if entry.get("lun", known["lun"]) != known["lun"]:
            raise ArmError(
                409, "PropertyChangeNotAllowed", "Changing property 'dataDisk.lun' is not allowed."
            )
        self.forced = self.forced or entry.get("detachOption") == "ForceDetach"
        self.entries.append(merged(known, entry))

    def _attach(self, entry: Document) -> None:
        if entry.get("toBeDetached"):
            message = f"The disk '{disk_key(entry)}' is not attached to this VM."
            raise ArmError(400, "InvalidParameter", message, target="dataDisk.toBeDetached")
        if not isinstance(entry.get("lun"), int) or not 0 <= entry["lun"] <= 63:
            raise ArmError(400, "InvalidParameter", "dataDisk.lun must be 0 to 63.", target="dataDisk.lun")
        entry = {"caching": "None", "deleteOption": "Detach", "toBeDetached": False, **entry}
        disk_id = disk_id_of(entry)
        if entry.get("createOption") == "Empty" and not disk_id:
            entry = self._create(entry)
        elif disk_id.startswith("/"):
            disk = self.core.state.find(disk_id)
            disks.check_attachable(disk, disk_id, self.machine, self.zones)
            assert disk is not None
            body = disk.body
            entry = {"name": parse_resource_id(disk.id).name, **entry}
            entry |= {"createOption": "Attach", "diskSizeGB": body["properties"]["diskSizeGB"]}
            entry["managedDisk"] = {"storageAccountType": body["sku"]["name"], **entry["managedDisk"]}
        elif disk_id:
            self._lease(entry, disk_id)
        else:
            raise ArmError(
                400,
                "InvalidParameter",
                "Required parameter 'dataDisk.managedDisk.id' is missing (null).",
                target="dataDisk.managedDisk.id",
            )
        self.new.append(disk_key(entry))
        self.entries.append(entry)

    def _create(self, entry: Document) -> Document:
        at = parse_resource_id(self.machine)
        name = entry.get("name") or f"{at.name}_disk{entry['lun']}"
        disk_id = ResourceId(at.subscription, at.group, "Microsoft.Compute", ("disks",), (name,))
        machine = self.core.state.find(self.machine)
        document = {"location": machine.body["location"] if machine else "westeurope"}
        document |= {"zones": self.zones} if self.zones else {}
        sku = (entry.get("managedDisk") or {}).get("storageAccountType", "Premium_LRS")
        creation = {"creationData": {"createOption": "Empty"}, "diskSizeGB": entry.get("diskSizeGB") or 32}
        self.core.do("PUT", disk_id, {**document, "sku": {"name": sku}, "properties": creation})
        return {**entry, "name": name, "managedDisk": {"id": str(disk_id), "storageAccountType": sku}}

    def _lease(self, entry: Document, uri: str) -> None:
        """An unmanaged disk is a blob; its infinite lease belongs to one machine."""
        for machine in self.core.state.of_type(VIRTUAL_MACHINES):
            if any(disk_id_of(known).lower() == uri.lower() for known in data_disks(machine)):
                message = (
                    f"Failed to acquire lease while creating disk '{entry.get('name')}' using blob with URI "
                    f"{uri}. Blob is already in use."
                )
                raise ArmError(409, "AcquireDiskLeaseFailed", message)

    def _check(self) -> None:
        staying = [entry for entry in self.entries if not entry.get("toBeDetached")]
        luns = [entry["lun"] for entry in staying]
        if len(set(luns)) != len(luns):
            raise ArmError(
                400, "InvalidParameter", "Two data disks have the same LUN.", target="dataDisk.lun"
            )
        size = self.core.state.capacity.size(self.size)
        if size is not None and len(staying) > size.max_data_disks:
            message = (
                "The maximum number of data disks allowed to be attached to a VM of this size is "
                f"{size.max_data_disks}."
            )
            raise ArmError(409, "OperationNotAllowed", message, target="dataDisks")


def missing_disk(core: Core, machine: Resource) -> Document | None:
    """A managed disk in the list that is gone fails every write of its machine, later."""
    for entry in data_disks(machine):
        disk = disk_id_of(entry)
        if disk.startswith("/") and not entry.get("toBeDetached") and core.state.find(disk) is None:
            return {"code": DISK_NOT_FOUND, "message": f"Disk {disk} is not found."}
    return None


# --- the types ---


class Machines(ResourceType):
    """What virtual machines and scale-set instances share."""

    api_versions = MACHINE_VERSIONS

    def __init__(self) -> None:
        super().__init__()
        self.actions = {
            "poweroff": self.power_off,
            "deallocate": self.deallocate,
            "start": self.start,
            "restart": self.restart,
            "redeploy": self.restart,
            "reimage": self.restart,
            "reimageall": self.restart,
            "reapply": self.reapply,
            "simulateeviction": self.evict,
            "attachdetachdatadisks": self.attach_detach,
        }
        self.views = {"instanceview": self.view}

    # reading

    def get(self, call: Call) -> Answer:
        machine = call.existing()
        return Answer(200, self.shown(call, machine), {"ETag": machine.etag})

    def shown(self, call: Call, machine: Resource) -> Document:
        """The document, with the instance view where `$expand` asks for it."""
        document = self.render(machine)
        if call.query.get("$expand", "").lower() == "instanceview":
            properties = {**document["properties"], "instanceView": instance_view(machine)}
            document = {**document, "properties": properties}
        return document

    def render(self, resource: Resource) -> Document:
        return {**super().render(resource), "etag": resource.etag}

    def view(self, call: Call) -> Answer:
        return Answer(200, instance_view(call.existing()))

    # power

    def power_off(self, call: Call) -> Answer:
        skip = call.query.get("skipshutdown", "").lower() == "true"
        return self._power(call, "stopping", "stopped", "powerOffNow" if skip else "powerOff")

    def deallocate(self, call: Call) -> Answer:
        hibernate = call.query.get("hibernate", "").lower() == "true"
        able = call.existing().body["properties"].get("additionalCapabilities") or {}
        if hibernate and not able.get("hibernationEnabled"):
            message = "The Hibernate-Deallocate operation cannot be performed on a VM without hibernation."
            raise ArmError(409, "OperationNotAllowed", message)
        verb = "hibernate" if hibernate else "deallocate"
        return self._power(call, "deallocating", "deallocated", verb, hibernated=hibernate)

    def start(self, call: Call) -> Answer:
        machine = call.existing()
        error = None
        if machine.hidden.get("power") == "deallocated":
            zone = next(iter(machine.body.get("zones") or []), "")
            code = call.state.capacity.refusal(size_of(machine), zone)
            error = {"code": code, "message": f"Allocation failed for {size_of(machine)}."} if code else None
        return self._power(call, "starting", "running", "start", error=error)

    def restart(self, call: Call) -> Answer:
        if call.existing().hidden.get("power") in POWERED_OFF:
            raise ArmError(409, "OperationNotAllowed", f"The VM '{call.id.name}' is not running.")
        return self._power(call, "running", "running", call.action)

    def evict(self, call: Call) -> Answer:
        """As when Azure wants the capacity of a spot machine back: within half a minute."""
        machine = call.existing()
        if not is_spot(machine):
            raise ArmError(409, "OperationNotAllowed", "Only Azure Spot VMs can be evicted.")
        effect = {"do": "power", "power": "deallocated"}
        call.core.schedule(call.id, effect, verb="evict", seconds=30, visible=False)
        return Answer(204)

    def _power(
        self,
        call: Call,
        meanwhile: str,
        power: str,
        verb: str,
        *,
        hibernated: bool = False,
        error: Document | None = None,
    ) -> Answer:
        machine = call.existing()
        refuse_if_deleting(machine)
        before = machine.hidden.get("power", "")
        is_moving = before in ("starting", "stopping", "deallocating")
        before = machine.hidden.get("before", before) if is_moving else before
        # Nothing to do is done without a transition, but with an operation all the same.
        if machine.hidden.get("power") == power and meanwhile != power and not hibernated:
            meanwhile = power
        change(call.core, machine, {"provisioningState": "Updating"}, power=meanwhile, before=before)
        effect = {"do": "power", "power": power, "hibernated": hibernated, "from": before}
        return self._begin(call, effect, verb=verb, error=error)

    # disks

    def reapply(self, call: Call) -> Answer:
        refuse_if_deleting(call.existing())
        change(call.core, call.existing(), {"provisioningState": "Updating"})
        return self._begin(call, {"do": "apply"})

    def attach_detach(self, call: Call) -> Answer:
        machine, document = call.existing(), call.document
        wanted = {disk_key(entry): dict(entry) for entry in data_disks(machine)}
        for asked in document.get("dataDisksToDetach") or []:
            key = str(asked.get("diskId", "")).lower()
            if key not in wanted:
                message = f"The disk '{asked.get('diskId')}' is not attached to VM '{call.id.name}'."
                raise ArmError(400, "InvalidParameter", message, target="dataDisksToDetach")
            wanted[key]["toBeDetached"] = True
            if asked.get("detachOption"):
                wanted[key]["detachOption"] = asked["detachOption"]
        entries = list(wanted.values())
        for asked in document.get("dataDisksToAttach") or []:
            key = str(asked.get("diskId", "")).lower()
            if key in wanted and wanted[key].get("toBeDetached"):
                raise disks.being_detached(key, str(call.id))
            lun = asked.get("lun", _free_lun(entries))
            if key in wanted:
                if lun == wanted[key]["lun"]:
                    continue
                message = f"Disk '{asked.get('diskId')}' is already attached to VM '{call.id.name}'."
                raise ArmError(409, "ConflictingUserInput", message)
            extra = {name: asked[name] for name in ("caching", "deleteOption") if name in asked}
            entry = {"lun": lun, "createOption": "Attach", "managedDisk": {"id": asked.get("diskId")}}
            entries.append({**entry, **extra})
        if not document.get("dataDisksToDetach") and not document.get("dataDisksToAttach"):
            raise invalid("Nothing to attach or detach.", "InvalidParameter")
        return self.write_disks(call, machine, entries)

    def write_disks(self, call: Call, machine: Resource, wanted: list[Document]) -> Answer:
        """Only the data disks change; 202 and the storage profile as result."""
        forced = any(entry.get("detachOption") == "ForceDetach" for entry in wanted)
        refuse_disk_writes(machine, forced)
        self.refuse_concurrent(call, forced)
        plan = self.plan(call, machine, wanted)
        change(
            call.core,
            machine,
            {"storageProfile": {"dataDisks": plan.entries}, "provisioningState": "Updating"},
            attaching=[*(machine.hidden.get("attaching") or []), *plan.new],
        )
        effect = {"do": "apply", "result": "storageProfile"}
        return self._begin(call, effect, forced=forced)

    def plan(self, call: Call, machine: Resource, wanted: list[Document]) -> DiskPlan:
        zones = machine.body.get("zones") or []
        plan = DiskPlan(call.core, machine.id, zones, size_of(machine), data_disks(machine))
        plan.take(wanted)
        return plan

    def refuse_concurrent(self, call: Call, forced: bool) -> None:
        """Some machines let a later write of disks preempt the earlier one, others refuse it."""

    # operations

    def _begin(
        self,
        call: Call,
        effect: Document,
        *,
        verb: str = "",
        error: Document | None = None,
        forced: bool = False,
        answer: int = 202,
    ) -> Answer:
        """Accept the work, superseding what is running on this machine and doing what that leaves undone."""
        machine = call.existing()
        for running in call.core.running_on(call.id):
            left = {name: running.effect[name] for name in POWER if name in running.effect}
            effect = {**left, **effect}
        if effect["do"] != "delete":
            error = error or missing_disk(call.core, machine)
        verb = verb or ("forceDetach" if forced else call.action or call.method.lower())
        operation, headers = call.core.begin(
            call,
            effect,
            location=machine.body["location"],
            on_running="supersede",
            verb=verb,
            superseded=FORCED if forced else PREEMPTED,
        )
        if error and operation.ending is None:
            operation.ending = {"status": "Failed", "error": error, "applied": False}
        call.core.settle()
        found = call.state.find(call.id)
        if answer == 202 or found is None:
            return Answer(202, None, headers)
        headers.pop("Location")
        return Answer(answer, self.render(found), {**headers, "ETag": found.etag})

    def finish(self, core: Core, operation: Operation) -> None:
        effect, machine_id = operation.effect, operation.resource
        if core.state.find(machine_id) is None:
            return
        if effect["do"] == "delete":
            delete_machine(core, machine_id)
            self.deleted(core, machine_id)
            return
        apply_disks(core, machine_id)
        if effect.get("power"):
            switch(core, machine_id, effect["power"], hibernated=effect.get("hibernated", False))
        machine = change(core, machine_id, {"provisioningState": "Succeeded"}, failure=None)
        if effect.get("result"):
            operation.result = machine.body["properties"][effect["result"]]

    def fail(self, core: Core, operation: Operation) -> None:
        machine = core.state.find(operation.resource)
        if machine is None:
            return
        before = operation.effect.get("from")
        power = before if before and before != "unknown" else machine.hidden.get("power")
        applied = (operation.ending or {}).get("applied")
        power = machine.hidden.get("power") if applied else power
        error = operation.error or {"code": "", "message": ""}
        change(core, machine, {"provisioningState": "Failed"}, failure=error, power=power)

    def deleted(self, core: Core, machine_id: str) -> None:
        """Called after a machine went."""


class VirtualMachines(Machines):
    """Single machines; also those of flexible scale sets."""

    name = VIRTUAL_MACHINES
    tracked = True

    def put(self, call: Call) -> Answer:
        existing = call.state.find(call.id)
        call.check_if_match(existing)
        if existing is not None:
            return self._update(call, existing, 200)
        document = call.document
        if not document.get("location"):
            raise ArmError(400, "LocationRequired", "The location property is required for this definition.")
        return self._create(call, document)

    def patch(self, call: Call) -> Answer:
        existing = call.existing()
        call.check_if_match(existing)
        return self._update(call, existing, 200)

    def delete(self, call: Call) -> Answer:
        machine = call.state.find(call.id)
        if machine is None:
            return Answer(204)
        self._leave_set(call, machine)
        change(call.core, machine, {"provisioningState": "Deleting"})
        forced = call.query.get("forcedeletion", "").lower() == "true"
        return self._begin(call, {"do": "delete"}, verb="forceDelete" if forced else "delete")

    def _leave_set(self, call: Call, machine: Resource) -> None:
        """A flexible set is smaller by one."""
        wanted = (machine.body["properties"].get("virtualMachineScaleSet") or {}).get("id", "")
        scale_set = call.state.find(wanted)
        if scale_set is not None and machine.body["properties"]["provisioningState"] != "Deleting":
            sku = {**scale_set.body["sku"], "capacity": scale_set.body["sku"].get("capacity", 1) - 1}
            call.state.store(parse_resource_id(scale_set.id), {**scale_set.body, "sku": sku})

    def list(self, call: Call, scope: str) -> Answer:
        asked = call.query.get("$filter", "")
        found = []
        for machine in call.state.of_type(self.name, scope):
            scale_set = (machine.body["properties"].get("virtualMachineScaleSet") or {}).get("id", "")
            if not asked or (scale_set and scale_set.lower() in asked.lower()):
                found.append(self.shown(call, machine))
        return page(call, found)

    def _create(self, call: Call, document: Document) -> Answer:
        properties = call.properties
        size = check_size(
            call.core, (properties.get("hardwareProfile") or {}).get("vmSize"), document.get("zones")
        )
        spot = properties.get("priority") in ("Spot", "Low")
        check_quota(call.core, document["location"], size, 1, spot=spot)
        zones = list(document.get("zones") or [])
        refusal = call.state.capacity.refusal(size.name, zones[0] if zones else "")
        error = None
        if refusal == "SkuNotAvailable":
            raise ArmError(409, refusal, f"The requested VM size '{size.name}' is currently not available.")
        if refusal:
            error = {"code": refusal, "message": f"Allocation failed for {size.name}."}
        self._check_references(call, properties)
        machine = create_machine(call.core, call.id, document, zones)
        effect = {"do": "power", "power": "running", "from": "unknown"}
        wanted = (properties.get("storageProfile") or {}).get("dataDisks") or []
        if wanted:
            try:
                plan = self.plan(call, machine, wanted)
            except ArmError:
                delete_machine(call.core, machine.id)
                raise
            change(call.core, machine, {"storageProfile": {"dataDisks": plan.entries}}, attaching=plan.new)
        return self._begin(call, effect, error=error, answer=201)

    def _check_references(self, call: Call, properties: Document) -> None:
        """Interfaces and availability set must exist; an interface has one machine."""
        references = [*(properties.get("networkProfile") or {}).get("networkInterfaces", [])]
        for reference in references:
            interface = call.state.find(reference.get("id") or "")
            if interface is None:
                raise missing_reference(reference.get("id"), call.id)
            user = (interface.body["properties"].get("virtualMachine") or {}).get("id")
            if user:
                message = f"Network Interface {interface.id} is used by existing resource {user}."
                raise ArmError(400, "NicInUse", message)
        for name in ("availabilitySet", "virtualMachineScaleSet"):
            wanted = (properties.get(name) or {}).get("id")
            if wanted and call.state.find(wanted) is None:
                raise missing_reference(wanted, call.id)

    def _update(self, call: Call, existing: Resource, status: int) -> Answer:
        refuse_if_deleting(existing)
        document = call.document
        wanted = ((document.get("properties") or {}).get("storageProfile") or {}).get("dataDisks")
        properties = {n: v for n, v in (document.get("properties") or {}).items() if n not in READ_ONLY}
        if "storageProfile" in properties:
            profile = {n: v for n, v in (properties["storageProfile"] or {}).items() if n != "dataDisks"}
            properties["storageProfile"] = profile
        forced, attaching = False, list(existing.hidden.get("attaching") or [])
        if wanted is not None:
            forced = any(entry.get("detachOption") == "ForceDetach" for entry in wanted)
            if [disk_key(e) for e in wanted] != [disk_key(e) for e in data_disks(existing)]:
                refuse_disk_writes(existing, forced)
            plan = self.plan(call, existing, wanted)
            attaching = [*attaching, *plan.new]
            properties.setdefault("storageProfile", {})["dataDisks"] = plan.entries
        body = merged(existing.body, {"properties": {**properties, "provisioningState": "Updating"}})
        body |= {n: document[n] for n in ("tags", "identity") if document.get(n) is not None}
        call.state.store(call.id, body, {**existing.hidden, "attaching": attaching})
        return self._begin(call, {"do": "apply"}, forced=forced, answer=status)


READ_ONLY = frozenset({"provisioningState", "vmId", "timeCreated", "instanceView", "virtualMachineScaleSet"})


def create_machine(core: Core, machine_id: ResourceId, document: Document, zones: list[str]) -> Resource:
    """Store a new machine, its OS disk and its place on its interfaces; nothing runs yet."""
    wanted = dict(document.get("properties") or {})
    vm_id = core.state.new_id()
    profile = dict(wanted.get("storageProfile") or {})
    profile["dataDisks"] = []
    profile["osDisk"] = os_disk(core, machine_id, profile.get("osDisk") or {}, document["location"], zones)
    properties = {
        "hardwareProfile": {},
        "osProfile": {"computerName": machine_id.name},
        **{
            name: value
            for name, value in wanted.items()
            if name not in READ_ONLY - {"virtualMachineScaleSet"}
        },
        "storageProfile": profile,
        "vmId": vm_id,
        "timeCreated": core.state.at,
        "provisioningState": "Creating",
    }
    body = {"location": document["location"], "tags": document.get("tags") or {}, "properties": properties}
    body |= {name: document[name] for name in ("zones", "identity", "plan") if document.get(name)}
    machine = core.state.store(machine_id, body, {"power": "unknown", "domain": core.state.serial})
    core.state.truth.created(machine.id, vm_id)
    for reference in (wanted.get("networkProfile") or {}).get("networkInterfaces") or []:
        interface = core.state.find(reference.get("id") or "")
        if interface is not None:
            used = merged(interface.body, {"properties": {"virtualMachine": {"id": machine.id}}})
            core.state.store(parse_resource_id(interface.id), used)
    return machine


def os_disk(
    core: Core, machine_id: ResourceId, wanted: Document, location: str, zones: list[str]
) -> Document:
    """The OS disk as answered; a managed one also becomes a resource, unless it is ephemeral."""
    entry: Document = {
        "osType": "Linux",
        "createOption": "FromImage",
        "caching": "ReadOnly",
        "diskSizeGB": 128,
    }
    entry |= {"deleteOption": "Detach", **wanted}
    if entry.get("vhd"):
        return entry
    name = entry.get("name") or f"{machine_id.names[0]}_{machine_id.name}_OsDisk_1_{core.state.new_id()[:8]}"
    disk_id = ResourceId(machine_id.subscription, machine_id.group, "Microsoft.Compute", ("disks",), (name,))
    sku = (entry.get("managedDisk") or {}).get("storageAccountType", "Premium_LRS")
    entry |= {"name": name, "managedDisk": {"storageAccountType": sku, "id": str(disk_id)}}
    if entry.get("diffDiskSettings"):
        return entry
    document = {"location": location, "sku": {"name": sku}, **({"zones": zones} if zones else {})}
    creation = {"createOption": "FromImage"}
    document["properties"] = {
        "creationData": creation,
        "diskSizeGB": entry["diskSizeGB"],
        "osType": entry["osType"],
    }
    body = merged(disks.new_disk(core, document), {"properties": {"provisioningState": "Succeeded"}})
    core.state.store(disk_id, body, {})
    disks.own(core, str(disk_id), str(machine_id))
    return entry


def instance_view(machine: Resource) -> Document:
    """Power and provisioning as codes, as Azure shows them."""
    properties, hidden = machine.body["properties"], machine.hidden
    power, state = hidden.get("power", "unknown"), properties["provisioningState"]
    up = power == "running"
    failure = hidden.get("failure") or {}
    provisioning: Document = {
        "code": f"ProvisioningState/{state.lower()}" + (f"/{failure['code']}" if failure.get("code") else ""),
        "level": "Error" if state == "Failed" else "Info",
        "displayStatus": f"Provisioning {state.lower()}",
    }
    provisioning |= {"message": failure["message"]} if failure.get("message") else {}
    statuses = [provisioning]
    if power != "unknown":
        statuses.append({"code": f"PowerState/{power}", "level": "Info", "displayStatus": f"VM {power}"})
    if hidden.get("hibernated"):
        hibernated = {"code": "HibernationState/Hibernated", "level": "Info", "displayStatus": "Hibernated"}
        statuses.append(hibernated)
    attached = [properties.get("storageProfile", {}).get("osDisk") or {}, *data_disks(machine)]
    agent = {
        "code": f"ProvisioningState/{'succeeded' if up else 'Unavailable'}",
        "level": "Info" if up else "Warning",
    }
    done = {"code": "ProvisioningState/succeeded", "level": "Info", "displayStatus": "Provisioning succeeded"}
    return {
        "platformFaultDomain": hidden.get("domain", 0) % FAULT_DOMAINS,
        "computerName": (properties.get("osProfile") or {}).get("computerName", ""),
        "vmAgent": {
            "vmAgentVersion": "2.14",
            "statuses": [{**agent, "displayStatus": "Ready" if up else "Not Ready"}],
        },
        "disks": [{"name": entry["name"], "statuses": [done]} for entry in attached if entry.get("name")],
        "statuses": statuses,
    }


# --- refusals ---


def refuse_if_deleting(machine: Resource) -> None:
    if machine.body["properties"]["provisioningState"] == "Deleting":
        message = f"The VM '{parse_resource_id(machine.id).name}' is being deleted."
        raise ArmError(409, "OperationNotAllowed", message)


def refuse_disk_writes(machine: Resource, forced: bool) -> None:
    """A machine in failed state refuses disks until it is repaired (empty PATCH, reapply); force passes, and
    a failure that a missing disk causes is repaired by detaching that disk.
    """
    refuse_if_deleting(machine)
    name = parse_resource_id(machine.id).name
    code = (machine.hidden.get("failure") or {}).get("code")
    failed = machine.body["properties"]["provisioningState"] == "Failed" and code != DISK_NOT_FOUND
    if failed and not forced:
        message = f"Disk operations are not allowed since the VM '{name}' is in failed state."
        raise ArmError(409, "OperationNotAllowed", message)
    if machine.hidden.get("hibernated"):
        raise ArmError(409, "OperationNotAllowed", f"The VM '{name}' is hibernated.")


def missing_reference(wanted: object, user: ResourceId | str) -> ArmError:
    message = (
        f"Resource {wanted} referenced by resource {user} was not found. Please make sure that the "
        "referenced resource exists, and that both resources are in the same region."
    )
    return ArmError(400, "InvalidResourceReference", message)


def _free_lun(entries: list[Document]) -> int:
    taken = {entry["lun"] for entry in entries}
    return next(lun for lun in range(65) if lun not in taken)

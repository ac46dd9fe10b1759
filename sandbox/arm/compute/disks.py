"""Managed disks and snapshots: what a disk says about its owners, and who may take it.

An owner is a virtual machine or scale-set instance, by resource id. Between the moment a write is accepted
and the moment the disk is attached, the disk says nothing (there is no state "Attaching": kubernetes#82714);
only the hidden claim keeps others away.
"""

from __future__ import annotations

from typing import Any

from sandbox.arm.core import Answer, ArmError, Call, Core, ResourceType, invalid, merged
from sandbox.arm.state import Document, Operation, Resource
from shared.model.resource_id import parse_resource_id

DISKS = "Microsoft.Compute/disks"
SNAPSHOTS = "Microsoft.Compute/snapshots"
# Since machines name their etag and detach single disks; older ones are refused, as a test of pinning.
MACHINE_VERSIONS = frozenset(
    {"2024-07-01", "2024-11-01", "2025-04-01", "2025-11-01", "2026-03-01", "2026-04-01"}
)
DISK_VERSIONS = frozenset({"2023-10-02", "2024-03-02", "2025-01-02", "2026-03-02"})
CREATE_OPTIONS = frozenset(
    {"Empty", "Copy", "FromImage", "Import", "Upload", "Restore", "UploadPreparedSecure", "CopyStart"}
)
SAS_STATES = frozenset({"ActiveSAS", "ActiveSASFrozen", "ReadyToUpload", "ActiveUpload"})


# --- owners ---


def owners_of(disk: Resource) -> list[str]:
    """Resource ids of the machines that have it."""
    body = disk.body
    return list(body.get("managedByExtended") or ([body["managedBy"]] if body.get("managedBy") else []))


def claims_on(disk: Resource) -> list[str]:
    """Owners, and machines that are about to be; lower case."""
    return [owner.lower() for owner in owners_of(disk)] + list(disk.hidden.get("claims", []))


def claim(core: Core, disk: Resource, machine: str) -> None:
    hidden = {**disk.hidden, "claims": [*disk.hidden.get("claims", []), machine.lower()]}
    core.state.store(parse_resource_id(disk.id), disk.body, hidden)


def own(core: Core, disk_id: str, machine: str) -> None:
    """The disk belongs to the machine from now on."""
    disk = core.state.find(disk_id)
    if disk is None:
        return
    owners = [owner for owner in owners_of(disk) if owner.lower() != machine.lower()] + [machine]
    _set_owners(core, disk, owners, machine)


def release(core: Core, disk_id: str, machine: str) -> None:
    """The machine has it no longer."""
    disk = core.state.find(disk_id)
    if disk is not None:
        owners = [owner for owner in owners_of(disk) if owner.lower() != machine.lower()]
        _set_owners(core, disk, owners, machine)


def _set_owners(core: Core, disk: Resource, owners: list[str], about: str) -> None:
    shared = disk.body["properties"].get("maxShares", 1) > 1
    body = {name: v for name, v in disk.body.items() if name not in ("managedBy", "managedByExtended")}
    properties: Document = {"LastOwnershipUpdateTime": core.state.at}
    if owners:
        body["managedBy"] = owners[0]
        body |= {"managedByExtended": owners} if shared else {}
    if shared:
        properties["shareInfo"] = [{"vmUri": owner} for owner in owners]
    hidden = {**disk.hidden, "claims": [c for c in disk.hidden.get("claims", []) if c != about.lower()]}
    body = merged(body, {"properties": properties})
    core.state.store(parse_resource_id(disk.id), body, hidden)
    refresh(core, disk.id)


def refresh(core: Core, disk_id: str) -> None:
    """Let `diskState` say what follows from owners, their power and access by SAS."""
    disk = core.state.find(disk_id)
    if disk is None:
        return
    machines = [core.state.find(owner) for owner in owners_of(disk)]
    powers = {machine.hidden.get("power") for machine in machines if machine}
    frozen = any(machine.hidden.get("hibernated") for machine in machines if machine)
    if disk.hidden.get("sas"):
        state = "ActiveSASFrozen" if frozen else "ActiveSAS"
    elif not owners_of(disk):
        state = "Unattached"
    elif frozen:
        state = "Frozen"
    else:
        state = "Reserved" if powers == {"deallocated"} else "Attached"
    if disk.body["properties"].get("diskState") != state:
        body = merged(disk.body, {"properties": {"diskState": state}})
        core.state.store(parse_resource_id(disk.id), body)


def check_attachable(disk: Resource | None, disk_id: str, machine: str, zones: list[str]) -> None:
    """ArmError when the machine cannot have this disk."""
    if disk is None:
        raise ArmError(404, "ResourceNotFound", f"The disk '{disk_id}' was not found.", target="dataDisk")
    name = parse_resource_id(disk.id).name
    properties = disk.body["properties"]
    others = [claimed for claimed in claims_on(disk) if claimed != machine.lower()]
    if disk.hidden.get("releasing"):
        raise being_detached(name, machine)
    if properties["diskState"] in SAS_STATES:
        message = f"Disk '{name}' cannot be attached as it has an active shared access signature."
        raise ArmError(409, "Conflict", message)
    if len(others) >= properties.get("maxShares", 1):
        message = f"Disk '{disk.id}' cannot be attached as the disk is already owned by VM '{others[0]}'."
        raise ArmError(409, "ConflictingUserInput", message)
    disk_zones = disk.body.get("zones") or []
    regional = "ZRS" in disk.body.get("sku", {}).get("name", "")
    if not regional and sorted(disk_zones) != sorted(zones) and (disk_zones or zones):
        message = f"Disk {disk.id} cannot be attached to the VM because it is not in the same zone as the VM."
        raise ArmError(400, "BadRequest", message)


def being_detached(name: str, machine: str) -> ArmError:
    vm = parse_resource_id(machine).name
    message = (
        f"Cannot attach data disk '{name}' to VM '{vm}' because the disk is currently being detached or the "
        "last detach operation failed. Please wait until the disk is completely detached and then try again."
    )
    return ArmError(409, "AttachDiskWhileBeingDetached", message)


# --- the resources ---


class Disks(ResourceType):
    """Managed disks."""

    name = DISKS
    api_versions = DISK_VERSIONS
    tracked = True

    def __init__(self) -> None:
        super().__init__()
        self.actions = {"begingetaccess": self.grant, "endgetaccess": self.revoke}

    def get(self, call: Call) -> Answer:
        return Answer(200, self.render(call.existing()))

    def put(self, call: Call) -> Answer:
        existing = call.state.find(call.id)
        if existing is not None:
            return self._change(call, existing)
        document = call.document
        if not document.get("location"):
            raise ArmError(400, "LocationRequired", "The location property is required for this definition.")
        call.state.store(call.id, new_disk(call.core, document), {})
        return _begun(self, call, {"merge": {"properties": {"provisioningState": "Succeeded"}}})

    def patch(self, call: Call) -> Answer:
        return self._change(call, call.existing())

    def delete(self, call: Call) -> Answer:
        disk = call.state.find(call.id)
        if disk is None:
            return Answer(204)
        if claims_on(disk):
            message = f"Disk {call.id.name} is attached to VM {claims_on(disk)[0]}."
            raise ArmError(409, "OperationNotAllowed", message)
        if disk.hidden.get("sas"):
            raise ArmError(409, "OperationNotAllowed", f"Disk {call.id.name} has an active access URI.")
        _, headers = call.core.begin(call, {"delete": True}, location=disk.body["location"])
        call.core.settle()
        return Answer(202, None, headers)

    def grant(self, call: Call) -> Answer:
        """A SAS for export; the real service refuses it for a disk of a running machine."""
        disk = call.existing()
        if disk.body["properties"]["diskState"] == "Attached":
            raise ArmError(409, "OperationNotAllowed", f"Disk {call.id.name} is attached to a running VM.")
        call.state.store(call.id, disk.body, {**disk.hidden, "sas": True})
        refresh(call.core, disk.id)
        sas = f"https://md-local.blob.storage.azure.net/{disk.body['properties']['uniqueId']}/abcd?sig=x"
        _, headers = call.core.begin(
            call, {}, location=disk.body["location"], result={"accessSAS": sas}, on_running="concurrent"
        )
        call.core.settle()
        return Answer(202, None, headers)

    def revoke(self, call: Call) -> Answer:
        disk = call.existing()
        call.state.store(call.id, disk.body, {**disk.hidden, "sas": False})
        refresh(call.core, disk.id)
        _, headers = call.core.begin(call, {}, location=disk.body["location"], on_running="concurrent")
        call.core.settle()
        return Answer(202, None, headers)

    def finish(self, core: Core, operation: Operation) -> None:
        if machine := operation.effect.get("release"):
            if not _lists(core.state.find(machine), operation.resource):  # a new one of the same name may
                release(core, operation.resource, machine)
        else:
            super().finish(core, operation)

    def _change(self, call: Call, disk: Resource) -> Answer:
        document, old = call.document, disk.body["properties"]
        wanted = {name: v for name, v in (document.get("properties") or {}).items() if name in CHANGEABLE}
        if wanted.get("diskSizeGB", old["diskSizeGB"]) < old["diskSizeGB"]:
            raise invalid("A disk cannot be made smaller.", "ResizeDiskError")
        if wanted.get("maxShares", old.get("maxShares", 1)) != old.get("maxShares", 1) and claims_on(disk):
            raise ArmError(409, "OperationNotAllowed", "maxShares changes only while the disk is unattached.")
        kept = {name: document[name] for name in ("sku",) if document.get(name)}
        body = merged(disk.body, {**kept, "properties": {**wanted, "provisioningState": "Updating"}})
        body |= {"tags": document["tags"]} if document.get("tags") is not None else {}
        call.state.store(call.id, body)
        return _begun(self, call, {"merge": {"properties": {"provisioningState": "Succeeded"}}})


def _lists(machine: Resource | None, disk_id: str) -> bool:
    profile = machine.body["properties"].get("storageProfile", {}) if machine else {}
    ids = [(entry.get("managedDisk") or {}).get("id", "") for entry in profile.get("dataDisks") or []]
    return disk_id.lower() in [found.lower() for found in ids]


CHANGEABLE = frozenset(
    {"diskSizeGB", "maxShares", "tier", "diskIOPSReadWrite", "diskMBpsReadWrite", "networkAccessPolicy"}
    | {"publicNetworkAccess", "burstingEnabled", "availabilityPolicy"}
)


class Snapshots(ResourceType):
    """Snapshots of disks: made at once, kept, deleted."""

    name = SNAPSHOTS
    api_versions = DISK_VERSIONS
    tracked = True

    def put(self, call: Call) -> Answer:
        document, creation = call.document, call.properties.get("creationData") or {}
        source = call.state.find(creation.get("sourceResourceId") or "")
        if creation.get("createOption") not in ("Copy", "CopyStart") or source is None:
            raise ArmError(
                404, "ResourceNotFound", "The source of the snapshot was not found.", target="creationData"
            )
        old = source.body["properties"]
        creation = {**creation, "sourceUniqueId": old["uniqueId"]}
        size = {name: old[name] for name in ("diskSizeGB", "diskSizeBytes")}
        properties = {
            "incremental": False,
            **call.properties,
            **size,
            "creationData": creation,
            "timeCreated": call.state.at,
            "uniqueId": call.state.new_id(),
            "diskState": "Unattached",
            "provisioningState": "Creating",
        }
        body = {"location": document.get("location"), "tags": document.get("tags") or {}}
        call.state.store(call.id, {**body, "sku": {"name": "Standard_LRS"}, "properties": properties})
        return _begun(self, call, {"merge": {"properties": {"provisioningState": "Succeeded"}}})

    def delete(self, call: Call) -> Answer:
        snapshot = call.state.find(call.id)
        if snapshot is None:
            return Answer(204)
        _, headers = call.core.begin(call, {"delete": True}, location=snapshot.body["location"])
        call.core.settle()
        return Answer(202, None, headers)


def new_disk(core: Core, document: Document) -> Document:
    """The body of a disk as created from this request."""
    wanted = document.get("properties") or {}
    creation = wanted.get("creationData") or {}
    if creation.get("createOption") not in CREATE_OPTIONS:
        raise ArmError(
            400,
            "InvalidParameter",
            "Required parameter 'creationData.createOption' is missing or wrong.",
            target="creationData",
        )
    source = core.state.find(creation.get("sourceResourceId") or "")
    if creation["createOption"] in ("Copy", "CopyStart") and source is None:
        raise ArmError(
            404, "ResourceNotFound", "The source of the disk was not found.", target="creationData"
        )
    size = wanted.get("diskSizeGB") or (source.body["properties"]["diskSizeGB"] if source else 0)
    if not isinstance(size, int) or not 1 <= size <= 65_536:
        raise ArmError(400, "InvalidParameter", "diskSizeGB must be 1 to 65536.", target="diskSizeGB")
    sku = {"name": "Standard_LRS", **(document.get("sku") or {})}
    body: dict[str, Any] = {"location": document["location"], "tags": document.get("tags") or {}}
    body["sku"] = {**sku, "tier": sku["name"].split("_")[0]}
    body |= {"zones": document["zones"]} if document.get("zones") else {}
    body["properties"] = {
        **wanted,
        "diskSizeGB": size,
        "diskSizeBytes": size << 30,
        "uniqueId": core.state.new_id(),
        "timeCreated": core.state.at,
        "diskState": "ReadyToUpload" if creation["createOption"] == "Upload" else "Unattached",
        "provisioningState": "Updating",
    }
    return body


def linger(core: Core, disk_id: str, machine: str, seconds: float) -> None:
    """Release the disk only after a while, as after the deletion of its machine."""
    if core.state.find(disk_id) is not None:
        core.schedule(
            parse_resource_id(disk_id), {"release": machine}, verb="release", seconds=seconds, visible=False
        )


def _begun(kind: ResourceType, call: Call, effect: Document) -> Answer:
    """202 with the document, as the disk API answers."""
    location = call.existing().body["location"]
    _, headers = call.core.begin(call, effect, location=location, on_running="supersede")
    call.core.settle()
    return Answer(202, kind.render(call.existing()), headers)

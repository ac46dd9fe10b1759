"""Virtual machines of an availability set, as acs-engine and aks-engine made them.

There is no capacity to set: growing creates a network interface and a machine for each new node, cloned from
one of the set's machines (or, at zero, from the model remembered of the last one), with the next free numbers
of the set's naming scheme. What Azure never answers (custom data, protected settings of extensions) comes
from the configuration. Deleting a machine leaves its interface, OS disk and public address behind; they are
named before, so that they can be deleted after.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from shared.autoscaling.pools.driver import (
    Announce,
    Document,
    Fresh,
    Machine,
    MachineDocument,
    is_image,
    read_machines,
)
from shared.autoscaling.pools.scale_set import EXPAND
from shared.errors import ApiError, ConflictError, NotFoundError, UnsafePlanError
from shared.model.resource_id import parse_resource_id

if TYPE_CHECKING:
    from shared.clients.arm import Arm, Begun

_NUMBERED = re.compile(r"^(?P<prefix>.*?)(?P<number>\d+)$")
_VM = ("hardwareProfile", "availabilitySet", "licenseType", "priority", "evictionPolicy", "billingProfile")
_VM_DEEP = ("diagnosticsProfile", "securityProfile", "additionalCapabilities", "scheduledEventsProfile")
_OS_DISK = ("osType", "caching", "diskSizeGB", "diffDiskSettings", "writeAcceleratorEnabled")
_OS_PROFILE = ("adminUsername", "linuxConfiguration", "windowsConfiguration", "secrets")
_NIC = ("enableAcceleratedNetworking", "enableIPForwarding", "networkSecurityGroup", "dnsSettings")
_IP = ("subnet", "primary", "privateIPAddressVersion", "loadBalancerBackendAddressPools")
_IP_MORE = ("applicationGatewayBackendAddressPools", "applicationSecurityGroups")


class Model(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a new machine of a set is made like; stored, so that a set at zero can grow again.

    `machine` and `interface` are bodies for PUT without names; the templates hold `{n}` for the number.
    """

    machine: Document
    interface: Document
    machine_name: str
    interface_name: str
    interface_group: str
    next_number: int = 0


class AvailabilitySet:
    """The machines of one set. `model` is what is remembered of it, `custom_data` base64, as Azure has it,
    `image` the imageReference of new machines where it is another than that of the newest.
    """

    deletes_singly = True

    def __init__(
        self, model: Model | None = None, custom_data: str = "", image: Document | None = None
    ) -> None:
        self.model = model
        self._custom_data = custom_data
        self._image = image

    def read(self, arm: Arm, pool_id: str) -> Fresh:
        """One GET of the set, which names its machines."""
        answer = arm.get(pool_id)
        members = (answer.document.get("properties") or {}).get("virtualMachines") or []
        document = {**answer.document, "members": sorted(str(one["id"]).lower() for one in members)}
        return Fresh(id=pool_id, capacity=len(members), etag="", state="Succeeded", document=document)

    def machines(self, arm: Arm, pool_id: str) -> tuple[Machine, ...]:
        """Machines of the set's group that name the set."""
        found = _documents(arm, pool_id)
        return tuple(one.machine(parse_resource_id(one.id).name) for one in found)

    def outdated(self, arm: Arm, pool_id: str, since: datetime) -> frozenset[str]:
        """Machines of another image than the wanted one; without one, those made before `since`."""

        def is_outdated(one: MachineDocument) -> bool:
            if self._image is None:
                return one.properties.time_created is None or one.properties.time_created < since
            profile = one.properties.storage_profile
            return not is_image(profile.image_reference if profile else None, self._image)

        return frozenset(
            parse_resource_id(one.id).name for one in _documents(arm, pool_id) if is_outdated(one)
        )

    def remember(self, arm: Arm, pool_id: str, fresh: Fresh) -> Model | None:
        """The model of the set's machines as they are now, or as they last were."""
        members: list[str] = fresh.document["members"]
        if not members:
            return self.model
        newest = max(members, key=_number)
        machine = arm.get(newest).document
        references = _interfaces(machine)
        if not references:
            raise UnsafePlanError(f"machine '{_name(newest)}' has no network interface to copy")
        interface = arm.get(references[0]).document
        self.model = make_model(machine, interface, fresh.document["members"], self.model)
        return self.model

    def grow(self, arm: Arm, fresh: Fresh, to: int, announce: Announce) -> tuple[Begun, ...]:
        """An interface and a machine for each; all their ids are announced before the first is made.

        There is no etag to rely on: names that were never used before take its place.
        """
        again = self.read(arm, fresh.id)
        if again.document["members"] != fresh.document["members"]:
            raise ConflictError("the availability set has other machines now; looking again", code="Changed")
        model = self.remember(arm, fresh.id, fresh)
        if model is None:
            raise UnsafePlanError(
                "the availability set is empty and nothing is remembered of its machines; start one by hand"
            )
        numbers = range(model.next_number, model.next_number + to - fresh.capacity)
        self.model = msgspec.structs.replace(model, next_number=numbers.stop)
        wanted = [self._wanted(fresh.id, model, number) for number in numbers]
        announce([resource for interface, _, machine, _ in wanted for resource in (interface, machine)])
        begun: list[Begun] = []
        for interface, interface_body, machine, machine_body in wanted:
            try:
                arm.put(interface, interface_body)
                begun.append(arm.put(machine, machine_body))
            except ApiError:
                if not begun:
                    raise
                break  # fewer than wished; the next wish meets the refusal first
        return tuple(begun)

    def belongings(self, arm: Arm, machines: Sequence[Machine]) -> tuple[str, ...]:
        """Interfaces, OS disks and public addresses of these machines; a machine that is gone has none."""
        found: list[str] = []
        for machine in machines:
            try:
                document = arm.get(machine.id).document
            except NotFoundError:
                continue
            interfaces = _interfaces(document)
            found += interfaces
            disk = ((document["properties"].get("storageProfile") or {}).get("osDisk") or {}).get(
                "managedDisk"
            )
            found += [disk["id"]] if disk and disk.get("id") else []
            for interface in interfaces:
                found += _public_addresses(arm, interface)
        return tuple(dict.fromkeys(found))

    def delete(self, arm: Arm, pool_id: str, machines: Sequence[Machine]) -> tuple[Begun, ...]:
        """DELETE of each machine."""
        begun: list[Begun] = []
        for machine in machines:
            try:
                begun.append(arm.delete(machine.id))
            except NotFoundError:
                continue
        return tuple(begun)

    def _wanted(self, set_id: str, model: Model, number: int) -> tuple[str, Document, str, Document]:
        name = model.machine_name.format(n=number)
        group = set_id.rpartition("/providers/")[0]
        machine = f"{group}/providers/Microsoft.Compute/virtualMachines/{name}"
        interface = (
            f"{model.interface_group}/providers/Microsoft.Network/networkInterfaces/"
            f"{model.interface_name.format(n=number)}"
        )
        properties = {**model.machine["properties"]}
        properties["osProfile"] = {**properties.get("osProfile", {}), "computerName": name}
        if self._image:
            properties["storageProfile"] = {**properties["storageProfile"], "imageReference": self._image}
        if self._custom_data:
            properties["osProfile"]["customData"] = self._custom_data
        reference = {"id": interface, "properties": {"primary": True, "deleteOption": "Delete"}}
        properties["networkProfile"] = {"networkInterfaces": [reference]}
        return interface, model.interface, machine, {**model.machine, "properties": properties}


def _documents(arm: Arm, pool_id: str) -> list[MachineDocument]:
    group = pool_id.rpartition("/providers/")[0]
    found = read_machines(arm.pages(f"{group}/providers/Microsoft.Compute/virtualMachines", **EXPAND))
    return [
        one
        for one in found
        if (owner := one.properties.availability_set) and owner.id.lower() == pool_id.lower()
    ]


def make_model(
    machine: Document, interface: Document, members: Sequence[str], known: Model | None = None
) -> Model:
    """What to make new machines like, from one machine and its interface as Azure answers them."""
    name, interface_name = str(machine["name"]), str(interface["name"])
    found = _NUMBERED.match(name)
    if found is None:
        raise UnsafePlanError(f"the name of machine '{name}' ends in no number, so there is no next one")
    number = found["number"]
    width = f":0{len(number)}d" if len(number) > 1 and number[0] == "0" else ""
    template = f"{_escape(found['prefix'])}{{n{width}}}"
    used = max((_number(one) for one in members), default=int(number))
    return Model(
        machine=_clean_machine(machine),
        interface=_clean_interface(interface),
        machine_name=template,
        interface_name=_interface_template(interface_name, name, number, template),
        interface_group=str(interface["id"]).rpartition("/providers/")[0],
        next_number=max(used + 1, known.next_number if known else 0),
    )


def _interface_template(interface: str, machine: str, number: str, template: str) -> str:
    """`k8s-pool-1234-nic-0` or `<machine>-nic` with the number taken out."""
    if machine.lower() in interface.lower():
        start = interface.lower().index(machine.lower())
        return _escape(interface[:start]) + template + _escape(interface[start + len(machine) :])
    if interface.endswith(number):
        return _escape(interface[: -len(number)]) + "{n}"
    return template + "-nic"


def _clean_machine(document: Document) -> Document:
    properties = document["properties"]
    profile = properties.get("storageProfile") or {}
    disk = profile.get("osDisk") or {}
    kind = (disk.get("managedDisk") or {}).get("storageAccountType")
    os_disk = {**_only(disk, _OS_DISK), "createOption": "FromImage", "deleteOption": "Delete"}
    os_disk |= {"managedDisk": {"storageAccountType": kind}} if kind else {}
    storage: Document = {"osDisk": os_disk, "dataDisks": [_empty(one) for one in _own_disks(profile)]}
    storage |= {"imageReference": _image(profile["imageReference"])} if profile.get("imageReference") else {}
    wanted = {**_only(properties, (*_VM, *_VM_DEEP)), "storageProfile": storage}
    wanted["osProfile"] = _only(properties.get("osProfile") or {}, _OS_PROFILE)
    body: Document = {**_only(document, ("location", "tags", "zones", "plan")), "properties": wanted}
    if identity := document.get("identity"):
        users: Document = {user: {} for user in identity.get("userAssignedIdentities") or {}}
        body["identity"] = {"type": identity["type"], **({"userAssignedIdentities": users} if users else {})}
    return body


def _clean_interface(document: Document) -> Document:
    properties = document["properties"]
    wanted = _only(properties, _NIC)
    wanted["ipConfigurations"] = [
        {
            "name": part["name"],
            "properties": {
                **_only(part["properties"], (*_IP, *_IP_MORE)),
                "privateIPAllocationMethod": "Dynamic",
            },
        }
        for part in properties.get("ipConfigurations") or []
    ]
    return {**_only(document, ("location", "tags")), "properties": wanted}


def _own_disks(profile: Document) -> list[Document]:
    """Data disks that were made with the machine; those of volumes were attached later."""
    return [one for one in profile.get("dataDisks") or [] if one.get("createOption") == "Empty"]


def _empty(disk: Document) -> Document:
    kind = (disk.get("managedDisk") or {}).get("storageAccountType")
    managed = {"managedDisk": {"storageAccountType": kind}} if kind else {}
    return {
        **_only(disk, ("lun", "caching", "diskSizeGB")),
        "createOption": "Empty",
        "deleteOption": "Delete",
        **managed,
    }


def _image(reference: Document) -> Document:
    """Without what Azure only answers."""
    return {name: value for name, value in reference.items() if name != "exactVersion"}


def _interfaces(machine: Document) -> list[str]:
    profile = (machine.get("properties") or {}).get("networkProfile") or {}
    return [str(one["id"]) for one in profile.get("networkInterfaces") or [] if one.get("id")]


def _public_addresses(arm: Arm, interface: str) -> list[str]:
    try:
        document = arm.get(interface).document
    except NotFoundError:
        return []
    parts = (document.get("properties") or {}).get("ipConfigurations") or []
    found = [((part.get("properties") or {}).get("publicIPAddress") or {}).get("id") for part in parts]
    return [str(one) for one in found if one]


def _only(document: Mapping[str, Any], names: Sequence[str]) -> Document:
    return {name: document[name] for name in names if document.get(name) is not None}


def _number(machine: str) -> int:
    found = _NUMBERED.match(_name(machine))
    return int(found["number"]) if found else -1


def _name(machine: str) -> str:
    return machine.rpartition("/")[2]


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")

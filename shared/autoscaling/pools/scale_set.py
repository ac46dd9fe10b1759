"""Virtual machine scale sets, uniform and flexible: capacity by PATCH over the version read.

Capacity is the set's own figure and counts machines on their way. Only `sku.capacity` is sent, so nothing
else of the set can be changed by mistake, and secrets that Azure does not answer need not be known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared.autoscaling.pools.driver import Announce, Document, Fresh, Machine, read_machines
from shared.model.resource_id import parse_resource_id

if TYPE_CHECKING:
    from shared.clients.arm import Arm, Begun

EXPAND = {"$expand": "instanceView"}


class UniformScaleSet:
    """Instances are parts of the set; their number is what deletion takes."""

    deletes_singly = False

    def read(self, arm: Arm, pool_id: str) -> Fresh:
        """One GET of the set."""
        answer = arm.get(pool_id)
        document = answer.document
        return Fresh(
            id=pool_id,
            capacity=int((document.get("sku") or {}).get("capacity") or 0),
            etag=answer.etag,
            state=str((document.get("properties") or {}).get("provisioningState") or ""),
            document=document,
        )

    def grow(self, arm: Arm, fresh: Fresh, to: int, announce: Announce) -> tuple[Begun, ...]:
        """PATCH of the capacity with If-Match."""
        known = fresh.document.get("sku") or {}
        sku = {name: known[name] for name in ("name", "tier") if name in known}
        return (arm.patch(fresh.id, {"sku": {**sku, "capacity": to}}, if_match=fresh.etag),)

    def machines(self, arm: Arm, pool_id: str) -> tuple[Machine, ...]:
        """The instances with their views, in pages."""
        found = read_machines(arm.pages(f"{pool_id}/virtualMachines", **EXPAND))
        return tuple(one.machine(one.instance_id) for one in found)

    def belongings(self, arm: Arm, machines: Sequence[Machine]) -> tuple[str, ...]:
        """Disks and interfaces of the set's model go with their instance."""
        return ()

    def delete(self, arm: Arm, pool_id: str, machines: Sequence[Machine]) -> tuple[Begun, ...]:
        """POST .../delete with exactly these instances."""
        return (arm.post(pool_id, "delete", {"instanceIds": [machine.instance for machine in machines]}),)

    def outdated(self, arm: Arm, pool_id: str) -> frozenset[str]:
        """Instances that are not of the set's latest model; both kinds of set say so in their own list."""
        found = read_machines(arm.pages(f"{pool_id}/virtualMachines"))
        return frozenset(
            one.instance_id or one.name for one in found if one.properties.latest_model_applied is False
        )

    def make_anew(self, arm: Arm, pool_id: str, instance: str, *, is_model: bool) -> Begun:
        """POST .../manualupgrade, to the set's latest model, or .../reimage, which makes the OS disk anew."""
        return arm.post(pool_id, "manualupgrade" if is_model else "reimage", {"instanceIds": [instance]})

    def set_image(self, arm: Arm, fresh: Fresh, image: Document) -> Begun:
        """PATCH of the model's image with If-Match; machines that are there stay as they are."""
        profile = {"storageProfile": {"imageReference": image}}
        body = {"properties": {"virtualMachineProfile": profile}}
        return arm.patch(fresh.id, body, if_match=fresh.etag)


class FlexibleScaleSet(UniformScaleSet):
    """Instances are ordinary machines that name their set; their own id is what a Node's providerID says."""

    def machines(self, arm: Arm, pool_id: str) -> tuple[Machine, ...]:
        """Machines of the set's group that name the set; the set's own list has no states."""
        group = pool_id.rpartition("/providers/")[0]
        found = read_machines(arm.pages(f"{group}/providers/Microsoft.Compute/virtualMachines", **EXPAND))
        return tuple(
            one.machine(parse_resource_id(one.id).name)
            for one in found
            if (owner := one.properties.virtual_machine_scale_set) and owner.id.lower() == pool_id.lower()
        )

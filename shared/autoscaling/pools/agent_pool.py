"""AKS agent pools, through Microsoft.ContainerService alone: AKS puts back what is changed behind its back.

The pool's document is sent back whole with another count, over the version read. A pool whose own AKS
autoscaler is on is left to it. AKS does one thing at a time on a cluster: ConflictError while it is busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from shared.autoscaling.pools.driver import (
    Announce,
    Document,
    Fresh,
    Machine,
    MachineState,
    read_machines,
)
from shared.autoscaling.pools.scale_set import EXPAND
from shared.errors import UnsafePlanError

if TYPE_CHECKING:
    from shared.clients.arm import Arm, Begun

READ_ONLY = frozenset(
    {"provisioningState", "eTag", "currentOrchestratorVersion", "nodeImageVersion", "status", "powerState"}
    | {"virtualMachineNodesStatus"}
)
"""Properties that AKS answers and does not take."""


class _MachineProperties(msgspec.Struct, frozen=True, rename="camel"):
    resource_id: str = ""


class _PoolMachine(msgspec.Struct, frozen=True):
    name: str
    zones: tuple[str, ...] | None = None
    properties: _MachineProperties = _MachineProperties()


class _Offer(msgspec.Struct, frozen=True, rename="camel"):
    kubernetes_version: str = ""


class Upgrades(msgspec.Struct, frozen=True, rename="camel"):
    """Of an agent pool: its version, those it may have next, the newest node image."""

    kubernetes_version: str = ""
    upgrades: tuple[_Offer, ...] = ()
    latest_node_image_version: str = ""


class _Profile(msgspec.Struct, frozen=True):
    properties: Upgrades = Upgrades()


class _Page(msgspec.Struct, frozen=True):
    value: tuple[_PoolMachine, ...] = ()


class AgentPool:
    """A pool of type VirtualMachineScaleSets or VirtualMachines."""

    deletes_singly = False

    def read(self, arm: Arm, pool_id: str) -> Fresh:
        """One GET of the pool."""
        document = arm.get(pool_id).document
        properties = document.get("properties") or {}
        return Fresh(
            id=pool_id,
            capacity=int(properties.get("count") or 0),
            etag=str(properties.get("eTag") or ""),
            state=str(properties.get("provisioningState") or ""),
            document=document,
            hands_off=_hands_off(properties),
        )

    def grow(self, arm: Arm, fresh: Fresh, to: int, announce: Announce) -> tuple[Begun, ...]:
        """PUT of the whole pool with If-Match."""
        if fresh.hands_off:
            raise UnsafePlanError(fresh.hands_off)
        properties = {n: v for n, v in fresh.document["properties"].items() if n not in READ_ONLY}
        return (arm.put(fresh.id, {"properties": _sized(properties, to)}, if_match=fresh.etag),)

    def upgrades(self, arm: Arm, pool_id: str) -> Upgrades:
        """What AKS offers for the pool now."""
        return msgspec.convert(arm.get(f"{pool_id}/upgradeProfiles/default").document, _Profile).properties

    def upgrade(self, arm: Arm, fresh: Fresh, version: str) -> Begun:
        """PUT of the whole pool with another Kubernetes version; AKS replaces its machines, one after another
        or as the pool's upgradeSettings say.
        """
        known = fresh.document["properties"]
        properties = {n: v for n, v in known.items() if n not in READ_ONLY} | {"orchestratorVersion": version}
        return arm.put(fresh.id, {"properties": properties}, if_match=fresh.etag)

    def upgrade_image(self, arm: Arm, pool_id: str) -> Begun:
        """POST .../upgradeNodeImageVersion: the newest node image of the version the pool has."""
        return arm.post(pool_id, "upgradeNodeImageVersion")

    def abort(self, arm: Arm, pool_id: str) -> Begun:
        """POST .../abort: what AKS is doing to the pool ends as Canceled, where it is."""
        return arm.post(pool_id, "abort")

    def machines(self, arm: Arm, pool_id: str) -> tuple[Machine, ...]:
        """AKS's own names, with the states of the virtual machines behind them."""
        found = [
            one
            for body in arm.pages(f"{pool_id}/machines")
            for one in msgspec.json.decode(body, type=_Page).value
        ]
        states = _states(arm, {one.properties.resource_id for one in found})
        return tuple(_machine(one, states) for one in found)

    def belongings(self, arm: Arm, machines: Sequence[Machine]) -> tuple[str, ...]:
        """AKS cleans up after its machines."""
        return ()

    def delete(self, arm: Arm, pool_id: str, machines: Sequence[Machine]) -> tuple[Begun, ...]:
        """POST .../deleteMachines with exactly these machines."""
        names = [machine.instance for machine in machines]
        return (arm.post(pool_id, "deleteMachines", {"machineNames": names}),)


def _hands_off(properties: Document) -> str:
    if properties.get("enableAutoScaling"):
        return "AKS's own autoscaler is on for this pool; switch it off, or leave the pool to it"
    if (properties.get("powerState") or {}).get("code") not in (None, "Running"):
        return "the pool or its cluster is stopped"
    return ""


def _sized(properties: Document, to: int) -> Document:
    """The properties with another count; pools of single machines count by size, the first one grows."""
    manual = ((properties.get("virtualMachinesProfile") or {}).get("scale") or {}).get("manual")
    if not manual:
        return {**properties, "count": to}
    first, *others = manual
    grown = {**first, "count": to - sum(int(one["count"]) for one in others)}
    profile: dict[str, Any] = {**properties["virtualMachinesProfile"], "scale": {"manual": [grown, *others]}}
    return {**properties, "count": to, "virtualMachinesProfile": profile}


def _states(arm: Arm, machines: set[str]) -> dict[str, Machine]:
    """By resource id, lower case: one list for each scale set or group that holds some of them."""
    lists = {one.rpartition("/virtualMachines/")[0] + "/virtualMachines" for one in machines if one}
    return {
        one.id.lower(): one.machine(one.name)
        for where in sorted(lists)
        for one in read_machines(arm.pages(where, **EXPAND))
    }


def _machine(one: _PoolMachine, states: dict[str, Machine]) -> Machine:
    key = one.properties.resource_id.lower()
    known = states.get(key)
    return Machine(
        id=key,
        instance=one.name,
        computer_name=one.name.lower(),
        state=known.state if known else MachineState.CREATING,
        zone=(one.zones or ("",))[0] or (known.zone if known else ""),
        created_at=known.created_at if known else None,
        code=known.code if known else "",
        message=known.message if known else "",
    )

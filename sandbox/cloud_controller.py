"""Plays the node life cycle of cloud-provider-azure: Node objects of machines that are gone, or shut down.

Every 5 seconds each node that is not Ready is looked up in Azure: without a machine its Node is deleted; with
one that is stopped it gets the shutdown taint and beside it the out-of-service taint, which go when it is
Ready again. Azure is seen through a cache, at most 600 s old for instances of scale sets and 60 s for single
machines (`pkg/provider/azure.go`): that delay is what one waits for in real clusters. `enabled` and the ages
may be changed at any time. Labels, addresses and routes are not modelled: `sandbox.fleet` sets them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sandbox.arm import LocalArm
from sandbox.kube import kinds, rules
from sandbox.kube.controllers import Dirty, every
from sandbox.kube.lifecycle import OUT_OF_SERVICE, node_taints
from sandbox.kube.objects import Objects, is_true
from sandbox.kube.store import Document

PERIOD = timedelta(seconds=5)
SHUTDOWN = "node.cloudprovider.kubernetes.io/shutdown"
SINGLE_CACHE = timedelta(seconds=60)
SCALE_SET_CACHE = timedelta(seconds=600)
BY = "cloud-node-lifecycle-controller"
_PREFIX = "azure://"


@dataclass(frozen=True)
class _Seen:
    """A machine as it was at `at`; without a power state it did not exist."""

    at: datetime
    power: str
    provisioning: str

    @property
    def is_down(self) -> bool:
        return self.provisioning == "Succeeded" and self.power in ("stopped", "deallocated", "deallocating")


class CloudController:
    """One controller of the local Kubernetes (see `LocalKubernetes.add_controller`)."""

    def __init__(self, objects: Objects, arm: LocalArm) -> None:
        self.enabled = True
        self.marks_out_of_service = True
        """As cloud-provider-azure does by itself."""
        self.single_cache, self.scale_set_cache = SINGLE_CACHE, SCALE_SET_CACHE
        self._objects = objects
        self._arm = arm
        self._seen: dict[str, _Seen] = {}
        every(objects, PERIOD, self._monitor)

    def sync(self, dirty: Dirty) -> None:
        """It only looks now and then."""

    def _monitor(self) -> None:
        if not self.enabled:
            return
        for node in self._objects.all(kinds.NODES):
            provider_id = node["spec"].get("providerID") or ""
            if not provider_id.startswith(_PREFIX):
                continue
            seen = self._look(provider_id.removeprefix(_PREFIX))
            if is_true(node, "Ready"):
                self._set_taints(node, shutdown=False)
            elif not seen.power:
                message = f"Deleting node {node['metadata']['name']} because it does not exist in the cloud"
                self._objects.tell(kinds.NODES, node, "DeletingNode", message, by=BY)
                self._objects.delete(kinds.NODES, node)
            else:
                self._set_taints(node, shutdown=seen.is_down)

    def _look(self, machine: str) -> _Seen:
        """Through the cache; nodes that are Ready are looked up too, by other loops of the controller."""
        now, key = self._objects.now(), machine.lower()
        lifetime = self.scale_set_cache if "/virtualmachinescalesets/" in key else self.single_cache
        known = self._seen.get(key)
        if known is None or now - known.at >= lifetime:
            with self._arm.core.lock:
                self._arm.core.settle()
                found = self._arm.core.state.find(machine)
            power = found.hidden.get("power", "unknown") if found else ""
            state = found.body["properties"].get("provisioningState", "") if found else ""
            known = self._seen[key] = _Seen(now, power, state)
        return known

    def _set_taints(self, node: Document, *, shutdown: bool) -> None:
        ours = {SHUTDOWN: "NoSchedule"}
        ours |= {OUT_OF_SERVICE: "NoExecute"} if self.marks_out_of_service else {}
        have = node_taints(node)
        if shutdown == any(taint["key"] == SHUTDOWN for taint in have):
            return
        taints = [taint for taint in have if taint["key"] not in ours]
        if shutdown:
            now = rules.timestamp(self._objects.now())
            extra = {OUT_OF_SERVICE: {"value": "nodeshutdown"}}
            for key, effect in ours.items():
                taints.append({"key": key, "effect": effect, "timeAdded": now, **extra.get(key, {})})
        spec = {name: value for name, value in node["spec"].items() if name != "taints"}
        self._objects.change(kinds.NODES, node, spec={**spec, **({"taints": taints} if taints else {})})

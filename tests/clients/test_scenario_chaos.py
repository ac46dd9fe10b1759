"""Whatever happens to machines, in whatever order: in the end nodes, pods and disks are as they are."""

from __future__ import annotations

from random import Random

import pytest

from sandbox.arm.core import ArmError, Latencies
from sandbox.kube import kinds
from sandbox.scenario import PodView, World

pytestmark = pytest.mark.no_cover

STEPS = 40
SETTLED_SECONDS = 2400
"""Backoff of attachers (300 s), forced detaches (360 s), caches (600 s), one after another."""


class Chaos:
    """Does one thing after another, and remembers for whoever reads a failure."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.chance = world, Random(seed)
        self.set = world.add_scale_set("agents", 3, zones=["1", "2"])
        self.flexible = world.add_scale_set("flex", 2, flexible=True)
        self.cluster = world.add_cluster("prod", system=2)
        world.add_nodes("a", "b")
        world.add_storage_class()
        world.add_deployment("web", replicas=8)
        world.add_stateful_set("db", replicas=3, storage_class="managed-csi", podManagementPolicy="Parallel")
        world.arm.core.latencies = Latencies({"": 30.0}, seed=seed)
        self.done: list[str] = []

    def step(self) -> None:
        deeds = (
            self.crash,
            self.kill,
            self.revive,
            self.stop,
            self.start,
            self.delete,
            self.restart,
            self.resize,
            self.delete_pod,
            self.replace,
        )
        deed = self.chance.choice(deeds)
        name = self.chance.choice(self.machines())
        self.done.append(f"{self.world.seconds:g} {deed.__name__} {name}")
        try:
            deed(name)
        except (ArmError, AssertionError) as refused:
            self.done[-1] += f": {refused}"
        self.world.advance(self.chance.choice((1, 10, 60, 200)))

    def machines(self) -> list[str]:
        members = self.world.fleet.members.values()
        resources = self.world.arm.core.state.resources
        return sorted({m.node for m in members if m.machine.lower() in resources}) or ["a"]

    def crash(self, name: str) -> None:
        self.world.crash(name)

    def kill(self, name: str) -> None:
        self.world.kill_kubelet(name)

    def revive(self, name: str) -> None:
        self.world.revive_kubelet(name)

    def stop(self, name: str) -> None:
        self.world.stop_machine(name, deallocate=self.chance.random() < 0.5, at_once=False)

    def start(self, name: str) -> None:
        self.world.start_machine(name, at_once=False)

    def delete(self, name: str) -> None:
        self.world.delete_machine(name, at_once=False)

    def restart(self, name: str) -> None:
        self.world.arm.core.do("POST", self.world.machine(name), None, "restart", at_once=False)

    def resize(self, _: str) -> None:
        self.world.resize(self.chance.choice((self.set, self.flexible)), self.chance.randrange(2, 5))

    def delete_pod(self, _: str) -> None:
        pods = self.world.pods()
        if pods:
            self.world.delete_pod(self.chance.choice(pods).name, grace=self.chance.choice((None, 0)))

    def replace(self, name: str) -> None:
        """Not where disks are attached: the VolumeAttachments would name the new machine for ever."""
        machine = self.world.machine(name)
        is_single = "/virtualMachineScaleSets/" not in machine and not name.startswith("flex")
        if is_single and name not in {node for _, node, _ in self.world.attachments()}:
            self.world.arm.replace_vm(machine)

    def heal(self) -> None:
        """All machines that Azure has run, and all kubelets live."""
        for machine in list(self.world.arm.truth.machines.values()):
            resource = self.world.arm.core.state.find(machine.id)
            if resource is None or resource.body["properties"].get("vmId") != machine.vm_id:
                continue
            if not machine.running:
                self.world.arm.core.do("POST", resource.id, None, "start")
                if not machine.running:  # Azure thought that it ran all the time
                    self.world.arm.core.do("POST", resource.id, None, "powerOff")
                    self.world.arm.core.do("POST", resource.id, None, "start")
            self.world.arm.truth.revive_kubelet(machine.vm_id)


@pytest.mark.parametrize("seed", range(12))
def test_in_the_end_nodes_pods_and_disks_are_as_the_machines_are(seed: int) -> None:
    with World(serve=False) as world:
        chaos = Chaos(world, seed)
        world.advance(30)
        for _ in range(STEPS):
            chaos.step()
        world.advance(300)
        chaos.heal()
        world.advance(SETTLED_SECONDS)
        story = "\n".join([*chaos.done, world.describe()])
        running = {
            str(found.body["properties"]["osProfile"]["computerName"]).lower()
            for machine in world.arm.truth.machines.values()
            if machine.running and (found := world.arm.core.state.find(machine.id)) is not None
        }
        assert set(world.nodes(ready=True)) == running, story
        assert world.nodes(ready=False) == [], story
        assert sum(pod.is_running for pod in world.pods("web")) == 8, story
        databases = world.pods("db")
        homeless = [pod for pod in databases if not pod.is_running and is_homeless(pod)]
        for pod in databases:
            if pod in homeless:
                continue
            assert pod.is_running, story
            claim = next(
                c for c in world.kubernetes.objects(CLAIMS) if c["metadata"]["name"] == f"data-{pod.name}"
            )
            volume = next(
                v
                for v in world.kubernetes.objects(VOLUMES)
                if v["metadata"]["name"] == claim["spec"]["volumeName"]
            )
            disk = volume["spec"]["csi"]["volumeHandle"]
            assert world.owner(disk) == pod.node, story
            assert world.arm.truth.mounted_on(disk) == [world.machine(pod.node).lower()], story
        assert all(not damage.kubelet_alive for damage in world.corruptions), story
        assert homeless or len(databases) == 3, story
        assert len(world.attachments()) == len(databases) - len(homeless), story


def is_homeless(pod: PodView) -> bool:
    """No machine is left in the zone of its disk."""
    conditions = pod.document["status"].get("conditions") or ()
    return any("didn't match PersistentVolume's node affinity" in c.get("message", "") for c in conditions)


CLAIMS, VOLUMES = kinds.named("persistentvolumeclaims"), kinds.named("persistentvolumes")

"""The stand-in's controllers and kubelets on a clock that stands still: hours of a cluster in a moment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from sandbox.clock import Clock
from sandbox.kube import LocalKubernetes, kinds, volumes, workloads
from sandbox.kube.kubelets import Kubelets
from sandbox.kube.quantities import quantity
from sandbox.kube.store import Document

START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
DRIVER = "disk.csi.azure.com"
OUT_OF_SERVICE = {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}


class World:
    """A cluster without HTTP on a standing clock, and which disk is attached where."""

    def __init__(self) -> None:
        self.kubernetes = LocalKubernetes(Clock(START))
        self.kubernetes.run_controllers()
        self.kubelets: Kubelets = self.kubernetes.run_kubelets()
        self.disks: dict[str, str] = {}
        self.kubernetes.run_driver(DRIVER, attach=self.attach, detach=self.detach)

    def attach(self, disk: str, node: str) -> None:
        if self.disks.get(disk, node) != node:
            raise RuntimeError(f"{disk} is attached to {self.disks[disk]}")
        self.disks[disk] = node

    def detach(self, disk: str, node: str) -> None:
        assert self.disks.pop(disk) == node

    def advance(self, seconds: float) -> None:
        self.kubernetes.clock.advance(seconds)

    def pods(self) -> dict[str, Document]:
        return {pod["metadata"]["name"]: pod for pod in self.kubernetes.objects(kinds.PODS)}

    def where(self) -> list[tuple[str, str, bool]]:
        """Node, phase, and whether it is on its way out, of each pod."""
        return sorted(
            (
                pod["spec"].get("nodeName", ""),
                pod["status"]["phase"],
                "deletionTimestamp" in pod["metadata"],
            )
            for pod in self.pods().values()
        )

    def node(self, name: str) -> Document:
        return next(n for n in self.kubernetes.objects(kinds.NODES) if n["metadata"]["name"] == name)

    def taint(self, name: str, taint: Document) -> None:
        node = self.node(name)
        taints = [*node["spec"].get("taints", []), taint]
        self.kubernetes.store.write(kinds.NODES, {**node, "spec": {**node["spec"], "taints": taints}})


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.kubernetes.stop()


def template(**spec: object) -> Document:
    container = {"name": "main", "image": "example.org/main"}
    return {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container], **spec}}


def deploy(world: World, replicas: int, **spec: object) -> None:
    selector = {"matchLabels": {"app": "web"}}
    document = {"metadata": {"name": "web", "namespace": "default"}}
    document["spec"] = {"replicas": replicas, "selector": selector, "template": template(**spec)}
    world.kubernetes.put(workloads.DEPLOYMENTS, document)


def stateful(world: World) -> None:
    """One pod with a disk, wherever it fits."""
    modes = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    csi = {"driver": DRIVER, "volumeHandle": "disk-0"}
    volume = {"metadata": {"name": "pv"}, "spec": {**modes, "capacity": {"storage": "1Gi"}, "csi": csi}}
    world.kubernetes.put(volumes.VOLUMES, volume)
    claim = {"metadata": {"name": "data"}}
    claim["spec"] = {**modes, "resources": {"requests": {"storage": "1Gi"}}}
    document = {"metadata": {"name": "db", "namespace": "default"}}
    document["spec"] = {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}}
    document["spec"] |= {"template": template(), "volumeClaimTemplates": [claim]}
    world.kubernetes.put(workloads.STATEFUL_SETS, document)


def test_a_dead_nodes_pods_are_replaced_after_grace_and_toleration(world: World) -> None:
    for name in "abc":
        world.kubelets.join(name, zone=f"zone-{name}")
    deploy(world, 3)
    world.advance(1)
    assert world.where() == [("a", "Running", False), ("b", "Running", False), ("c", "Running", False)]
    world.kubelets.silence("b")
    world.advance(45)
    assert "taints" not in world.node("b")["spec"]
    world.advance(20)
    assert {taint["effect"] for taint in world.node("b")["spec"]["taints"]} == {"NoSchedule", "NoExecute"}
    assert len(world.pods()) == 3
    world.advance(300)
    assert world.where() == [
        ("a", "Running", False),
        ("a", "Running", False),
        ("b", "Running", True),
        ("c", "Running", False),
    ]
    world.kubelets.wake("b")
    world.advance(1)
    assert len(world.pods()) == 3
    assert "taints" not in world.node("b")["spec"]


def test_when_no_node_is_heard_nobody_is_evicted(world: World) -> None:
    for name in "ab":
        world.kubelets.join(name)
    deploy(world, 2)
    world.advance(1)
    for name in "ab":
        world.kubelets.silence(name)
    world.advance(1000)
    assert world.where() == [("a", "Running", False), ("b", "Running", False)]
    effects = {taint["effect"] for name in "ab" for taint in world.node(name)["spec"]["taints"]}
    assert effects == {"NoSchedule"}


def test_pods_of_a_deleted_node_are_collected_after_a_quarantine(world: World) -> None:
    for name in "ab":
        world.kubelets.join(name)
    deploy(world, 2)
    world.advance(1)
    world.kubelets.leave("b")
    world.kubernetes.store.remove(kinds.NODES, ("", "b"))
    world.advance(30)
    assert ("b", "Running", False) in world.where()
    world.advance(50)
    assert world.where() == [("a", "Running", False)] * 2


def test_a_disk_of_a_dead_node_is_freed_six_minutes_after_its_pod(world: World) -> None:
    for name in "ab":
        world.kubelets.join(name)
    stateful(world)
    world.advance(1)
    assert (world.disks, world.where()) == ({"disk-0": "a"}, [("a", "Running", False)])
    assert world.kubelets.in_use("a") == {volumes.volume_name(DRIVER, "disk-0")}
    world.kubelets.silence("a")
    world.advance(600)
    assert (world.disks, world.where()) == ({"disk-0": "a"}, [("a", "Running", True)])
    world.kubernetes.store.remove(kinds.PODS, ("default", "db-0"))  # forced by an operator
    world.advance(350)
    assert (world.disks, world.where()) == ({"disk-0": "a"}, [("b", "Pending", False)])
    world.advance(20)
    assert (world.disks, world.where()) == ({"disk-0": "b"}, [("b", "Running", False)])


def test_out_of_service_frees_the_disk_within_the_collectors_period(world: World) -> None:
    for name in "ab":
        world.kubelets.join(name)
    stateful(world)
    world.advance(1)
    world.kubelets.silence("a")
    world.advance(100)
    world.taint("a", OUT_OF_SERVICE)
    world.advance(21)
    assert (world.disks, world.where()) == ({"disk-0": "b"}, [("b", "Running", False)])


def test_daemons_follow_the_nodes(world: World) -> None:
    document = {"metadata": {"name": "agent", "namespace": "kube-system"}}
    document["spec"] = {"selector": {"matchLabels": {"app": "web"}}, "template": template()}
    world.kubernetes.put(workloads.DAEMON_SETS, document)
    world.kubelets.join("a")
    world.kubelets.join("b", taints=[{"key": "gpu", "effect": "NoSchedule"}])
    world.advance(1)
    assert world.where() == [("a", "Running", False)]
    world.kubelets.join("c")
    world.advance(1)
    assert world.where() == [("a", "Running", False), ("c", "Running", False)]
    (found,) = world.kubernetes.objects(workloads.DAEMON_SETS)
    assert found["status"]["numberReady"] == found["status"]["desiredNumberScheduled"] == 2


def test_a_deployment_rolls_to_its_new_template(world: World) -> None:
    world.kubelets.join("a")
    deploy(world, 4)
    world.advance(1)
    before = set(world.pods())
    (found,) = world.kubernetes.objects(workloads.DEPLOYMENTS)
    found["spec"]["template"]["spec"]["containers"][0]["image"] = "example.org/main:2"
    world.kubernetes.store.write(workloads.DEPLOYMENTS, found)
    world.advance(1)
    images = [pod["spec"]["containers"][0]["image"] for pod in world.pods().values()]
    assert images == ["example.org/main:2"] * 4
    assert not before & set(world.pods())


def test_required_spread_leaves_pods_waiting(world: World) -> None:
    world.kubelets.join("a", zone="one")
    world.kubelets.join("b", zone="two", capacity={"pods": "1"})
    constraint = {
        "maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
    deploy(world, 4, topologySpreadConstraints=[constraint])
    world.advance(1)
    assert sorted(node for node, _, _ in world.where()) == ["", "a", "a", "b"]
    (event,) = [
        event for event in world.kubernetes.objects(kinds.EVENTS) if event["reason"] == "FailedScheduling"
    ]
    assert event["message"].startswith(
        "0/2 nodes are available: 1 Too many pods, 1 node(s) didn't match pod topology spread constraints."
    )


def test_pods_that_shun_each_other_wait_for_a_node(world: World) -> None:
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    world.kubelets.join("a")
    deploy(world, 2, affinity=affinity)
    world.advance(1)
    assert world.where() == [("", "Pending", False), ("a", "Running", False)]
    world.kubelets.join("b")
    world.advance(1)
    assert world.where() == [("a", "Running", False), ("b", "Running", False)]


def test_containers_take_their_time() -> None:
    kubernetes = LocalKubernetes(Clock(START))
    try:
        kubernetes.run_controllers()
        second = timedelta(seconds=1)
        kubernetes.run_kubelets(start_delay=5 * second, stop_delay=7 * second).join("a")
        pod = {"metadata": {"name": "p", "namespace": "default"}, "spec": template()["spec"]}
        kubernetes.put(kinds.PODS, pod)
        kubernetes.clock.advance(4)
        assert kubernetes.objects(kinds.PODS)[0]["status"]["phase"] == "Pending"
        kubernetes.clock.advance(2)
        (found,) = kubernetes.objects(kinds.PODS)
        assert found["status"]["phase"] == "Running"
        with kubernetes.store.lock:
            kubernetes.api.delete(kinds.PODS, found, {})
        kubernetes.clock.advance(6)
        assert kubernetes.objects(kinds.PODS)
        kubernetes.clock.advance(2)
        assert kubernetes.objects(kinds.PODS) == []
    finally:
        kubernetes.stop()


def test_a_thousand_seconds_pass_in_less_than_two(world: World) -> None:
    for number in range(20):
        world.kubelets.join(f"n{number:02}", zone=f"zone-{number % 3}")
    deploy(world, 60)
    stateful(world)
    began = time.process_time()
    world.advance(100)
    world.kubelets.silence("n03")
    world.advance(900)
    took = time.process_time() - began
    assert sum(1 for _, phase, _ in world.where() if phase == "Running") >= 61
    assert took < 2, f"{took:.2f} s"


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", 0.5), ("16Gi", 16 * 1024**3), ("12Ki", 12 * 1024), ("1.5k", 1500), ("1e3", 1000), ("0", 0)],
)
def test_quantities_are_read_exactly(text: str, value: float) -> None:
    assert quantity(text) == value

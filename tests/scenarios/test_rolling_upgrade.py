"""Operation `rolling-upgrade` in the local world: every kind of pool, what it refuses, where it stops."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from scenarios.autoscaling_app import App

from sandbox.arm.compute.machines import data_disks
from sandbox.arm.containerservice import POOLS
from sandbox.arm.core import Answer, Call, Ending, merged
from sandbox.etcd import EtcdCluster
from sandbox.scenario import World
from shared.model.resource_id import parse_resource_id
from shared.runtime.operation import OperationRecord, OperationState
from tests.scenarios.autoscaling_world import SIZE

pytestmark = pytest.mark.azurite

OLD = {"publisher": "contoso", "offer": "nodes", "sku": "1-33", "version": "1.0.0"}
NEW = "contoso:nodes:1-34:2.0.0"
TAGS = {"min": "1", "max": "6"}


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.arm.core.operation_seconds = 60
        yield world


@pytest.fixture
def start(world: World, storage: str, tmp_path: Path) -> Callable[..., App]:
    """The app over the pools that the test has made."""

    def start(**policy: Any) -> App:
        scale_down = {"unneededTime": "2m", "delayAfterAdd": "1m"}
        return App(world, storage, tmp_path, scaleDown=scale_down, **policy)

    return start


def add_set(world: World, count: int = 3, *, flexible: bool = False, most: int = 6, **properties: Any) -> str:
    profile = {
        "osProfile": {"computerNamePrefix": "agents"},
        "storageProfile": {"imageReference": OLD, **properties.pop("storageProfile", {})},
    }
    tags = TAGS | {"max": str(most)}
    return world.add_scale_set(
        "agents", count, size=SIZE, tags=tags, flexible=flexible, virtualMachineProfile=profile, **properties
    )


def images(world: World) -> list[str]:
    """Of the machines behind the nodes, in the order of their names."""
    found = []
    for node in sorted(world.nodes()):
        machine = world.arm.core.state.find(world.machine(node))
        reference = machine.body["properties"]["storageProfile"].get("imageReference") or {}
        found.append(f"{reference.get('sku')} {reference.get('version')}")
    return found


def upgrade(app: App, **options: Any) -> OperationRecord:
    """`rolling-upgrade` of pool `agents` to NEW, followed to its end."""
    defaults = {"pool": "agents", "image": NEW, "every": 15}
    return app.operate("rolling-upgrade", 3600, **{**defaults, **options})


def running(world: World, name: str = "web") -> int:
    return sum(pod.is_running for pod in world.pods(name))


@pytest.mark.parametrize("flexible", [False, True])
def test_a_scale_set_gets_a_new_image_and_never_has_fewer_nodes(
    world: World, start: Callable[..., App], flexible: bool
) -> None:
    add_set(world, count=2, flexible=flexible)
    app = start()
    world.add_deployment("web", replicas=6, cpu="300m")
    world.advance(10)
    old, fewest = sorted(world.nodes()), []

    def count() -> None:
        fewest.append(sum(world.node(name).is_ready for name in world.nodes()))

    record = upgrade(app, each=count)
    assert record.state is OperationState.SUCCEEDED, record.message
    assert record.message == "agents: 2 machines replaced, all 2 are of the latest model"
    assert images(world) == ["1-34 2.0.0"] * 2
    assert not set(old) & set(world.nodes())
    assert min(fewest) >= 2
    assert running(world) == 6
    journal = app.journal()
    assert journal.count("drained and deleted") == 2, journal


def test_machines_are_reimaged_in_place_one_at_a_time(world: World, start: Callable[..., App]) -> None:
    disks = {"dataDisks": [{"lun": 0, "createOption": "Empty", "diskSizeGB": 64}]}
    add_set(world, count=2, storageProfile=disks)
    app = start()
    world.add_deployment("web", replicas=4, cpu="300m")
    world.advance(10)
    truth, counts = world.arm.truth, []
    old = {name: truth.machine(world.machine(name)).boots for name in world.nodes()}

    def count() -> None:
        counts.append(sum(world.node(name).is_ready for name in world.nodes()))

    record = upgrade(app, reimage=True, each=count)
    assert record.state is OperationState.SUCCEEDED, record.message
    assert record.message == "agents: 2 machines made anew, all 2 are of the latest model"
    assert set(world.nodes()) == set(old)
    assert images(world) == ["1-34 2.0.0"] * 2
    assert all(truth.machine(world.machine(name)).boots == boots + 2 for name, boots in old.items())
    assert not any(world.node(name).document["spec"].get("unschedulable") for name in old)
    assert min(counts) >= 1
    assert running(world) == 4


@pytest.mark.no_cover
def test_nothing_is_reimaged_while_a_volume_is_attached(world: World, start: Callable[..., App]) -> None:
    add_set(world, count=2)
    app = start()
    world.add_stateful_set("db", replicas=1)
    world.until(lambda: world.pods("db") and world.pods("db")[0].is_running, within=300)
    actions = world.arm.core.types["microsoft.compute/virtualmachinescalesets"].actions
    held: list[int] = []

    def watched(call: Call) -> Answer:
        (instance,) = call.document["instanceIds"]
        machine = call.state.find(call.id.child("virtualMachines", instance))
        assert machine is not None
        held.append(len(data_disks(machine)))
        return reimage(call)

    reimage, actions["reimage"] = actions["reimage"], watched
    record = upgrade(app, reimage=True)
    assert record.state is OperationState.SUCCEEDED, record.message
    assert held == [0, 0]
    world.until(lambda: world.pods("db")[0].is_running, within=600)
    assert world.corruptions == []


def test_an_availability_set_gets_machines_of_a_new_image(world: World, start: Callable[..., App]) -> None:
    where = "Microsoft.Compute/availabilitySets"
    found = world.arm.put(
        world.arm.id_of(where, "as"), {"location": "westeurope", "sku": {"name": "Aligned"}}
    )
    for number in range(2):
        name = f"k8s-agents-{number}"
        interface = {"networkInterfaces": [{"id": world.arm.add_nic(f"{name}-nic")}]}
        storage = {"imageReference": OLD, "osDisk": {"osType": "Linux"}}
        world.arm.add_vm(
            name, size=SIZE, availabilitySet={"id": found}, networkProfile=interface, storageProfile=storage
        )
    world.enrol(found)
    app = start(pools=[{"name": "as", "min": 1, "max": 5}])
    record = upgrade(app, pool="as")
    assert record.state is OperationState.SUCCEEDED, record.message
    assert sorted(world.nodes()) == ["k8s-agents-2", "k8s-agents-3"]
    assert images(world) == ["1-34 2.0.0"] * 2
    again = upgrade(app, pool="as")
    assert again.message == "as: 0 machines replaced, all 2 are of the latest model"


@pytest.mark.no_cover
def test_a_pool_at_its_maximum_does_with_one_node_less(world: World, start: Callable[..., App]) -> None:
    add_set(world, count=2, most=2)
    counts: list[int] = []
    record = upgrade(start(), each=lambda: counts.append(len(world.nodes())))
    assert record.state is OperationState.SUCCEEDED, record.message
    assert images(world) == ["1-34 2.0.0"] * 2
    assert (min(counts), max(counts)) == (1, 2)


@pytest.mark.no_cover
def test_a_budget_that_refuses_stops_it_and_it_goes_on_when_sent_again(
    world: World, start: Callable[..., App]
) -> None:
    add_set(world, count=2)
    app = start()
    world.add_deployment("web", replicas=6, cpu="300m")
    world.advance(10)
    app.add_budget("web", maxUnavailable=0)
    old = set(world.nodes())
    record = upgrade(app, timeout="3m")
    assert record.state is OperationState.FAILED
    assert "a PodDisruptionBudget does not allow it now" in record.message, record.message
    assert old < set(world.nodes()), "none of the old ones is gone"
    assert not any(world.node(name).document["spec"].get("unschedulable") for name in old)
    assert running(world) == 6
    app.world.client().delete("/apis/policy/v1/namespaces/default/poddisruptionbudgets/web")
    again = upgrade(app)
    assert again.state is OperationState.SUCCEEDED, again.message
    assert set(images(world)) == {"1-34 2.0.0"}
    assert running(world) == 6


@pytest.mark.no_cover
def test_a_new_node_that_falls_ill_stops_it(world: World, start: Callable[..., App]) -> None:
    add_set(world, count=2)
    app = start(scaleUp={"provisionTimeout": "4m"})
    old = set(world.nodes())

    def kill_the_first_new_one() -> None:
        for name in set(world.nodes()) - old:
            if world.node(name).is_ready:
                world.arm.truth.kill_kubelet(world.machine(name))

    record = upgrade(app, each=kill_the_first_new_one)
    assert record.state is OperationState.FAILED
    assert "is NotReady since" in record.message, record.message
    assert len(old & set(world.nodes())) >= 1, "at most one had gone by then"


@pytest.mark.parametrize(
    "set_up, parameters, words",
    [
        ({"upgradePolicy": {"mode": "Automatic"}}, {"image": NEW}, "its upgradePolicy is Automatic"),
        ({}, {"image": "contoso:nodes:1-34:latest"}, "name the version"),
        ({}, {"image": "ubuntu"}, "expected publisher:offer:sku:version"),
        ({}, {"version": "1.34.2"}, "comes with its image"),
        ({"flexible": True}, {"reimage": True}, "reimage is for uniform scale sets"),
        ({}, {"pool": "nobody"}, "has no autoscaled pool 'nobody'; there are: agents"),
        (
            {"storageProfile": {"dataDisks": [{"lun": 0, "createOption": "Empty", "diskSizeGB": 64}]}},
            {"image": NEW},
            "its model has data disks",
        ),
    ],
)
def test_what_cannot_end_well_is_refused_before_anything_is_touched(
    world: World, start: Callable[..., App], set_up: dict[str, Any], parameters: dict[str, Any], words: str
) -> None:
    add_set(world, **set_up)
    app = start()
    before = len(world.arm.recorder.requests)
    record = upgrade(app, **{"image": "", **parameters})
    assert (record.state, record.attempts) == (OperationState.FAILED, 1)
    assert words in record.message, record.message
    assert all(one.method == "GET" for one in world.arm.recorder.requests[before:])


def test_unhealthy_kept_and_holding_nodes_are_named(world: World, start: Callable[..., App]) -> None:
    add_set(world)
    app, node = start(), sorted(world.nodes())[0]
    world.advance(1000)  # the machines have had their time to boot
    volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "scratch"}}
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]
    spec = {"local": {"path": "/mnt/fast"}, "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}
    spec |= {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}
    world.client().create("/api/v1/persistentvolumes", {**volume, "spec": spec})
    refused = upgrade(app)
    assert "PersistentVolume scratch is on a disk of one of its nodes" in refused.message, refused.message
    keep = {"metadata": {"annotations": {"cluster-autoscaler.kubernetes.io/scale-down-disabled": "true"}}}
    world.client().patch(f"/api/v1/nodes/{node}", keep)
    assert f"node {node} carries the annotation" in upgrade(app).message
    world.crash(node)
    world.advance(120)
    assert f"node {node} is NotReady" in upgrade(app).message


@pytest.fixture
def aks(world: World, start: Callable[..., App]) -> App:
    """An AKS cluster whose control plane is ahead of its pools."""
    managed = world.add_cluster("aks", system=1, agents=2)
    found = world.arm.core.state.find(managed)
    assert found is not None
    body = merged(found.body, {"properties": {"currentKubernetesVersion": "1.35.0"}})
    world.arm.core.state.store(parse_resource_id(managed), body)
    world.advance(10)
    return start(managedCluster=managed, scaleUp={"provisionTimeout": "3m"})


def pool(world: World) -> dict[str, Any]:
    """Properties of pool `agents`."""
    (found,) = [one for one in world.arm.core.state.of_type(POOLS) if one.id.endswith("/agents")]
    return dict(found.body["properties"])


def agents(world: World) -> list[str]:
    return sorted(name for name in world.nodes() if "agents" in name)


def test_aks_is_asked_for_a_version_and_watched(aks: App, world: World) -> None:
    refused = upgrade(aks, image="", version="1.36.0")
    assert "AKS does not offer 1.36.0 for it: it has 1.34.1, there are: 1.34.2, 1.35.0" in refused.message
    assert "an AKS pool takes version=" in upgrade(aks).message
    assert "its own upgradeSettings" in upgrade(aks, image="", version="1.35.0", surge=2).message
    seen: set[str] = set()

    def progress() -> None:
        seen.update(one.progress for one in aks.clients.operations.recent(world.now - timedelta(days=1)))

    record = upgrade(aks, image="", version="1.35.0", each=progress)
    assert record.state is OperationState.SUCCEEDED, record.message
    assert record.message == "agents: AKS has upgraded it to 1.35.0"
    assert pool(world)["currentOrchestratorVersion"] == "1.35.0"
    assert "agents: AKS is at it (Upgrading), 1 of 2 nodes done" in seen, seen
    puts = [
        one
        for one in world.arm.recorder.requests
        if one.method == "PUT" and "/agentpools/" in one.path.lower()
    ]
    assert len(puts) == 1


def test_aks_is_asked_for_the_newest_node_image_and_once_is_enough(aks: App, world: World) -> None:
    world.arm.core.settings["aks_node_image"] = "AKSUbuntu-2404gen2containerd-202612.01.0"
    record = upgrade(aks, image="")
    assert record.state is OperationState.SUCCEEDED, record.message
    assert pool(world)["nodeImageVersion"] == "AKSUbuntu-2404gen2containerd-202612.01.0"
    assert upgrade(aks, image="").state is OperationState.SUCCEEDED
    assert world.arm.recorder.count("POST", "upgradeNodeImageVersion") == 1


def test_what_aks_could_not_drain_is_said_with_its_own_words(aks: App, world: World) -> None:
    error = {"code": "PodDrainFailure", "message": "Drain node failed: too many pods cannot be evicted"}
    world.arm.core.endings.append(Ending(on="agentPools/put", **error))
    record = upgrade(aks, image="", version="1.35.0")
    assert record.state is OperationState.FAILED
    assert "AKS gave up: PodDrainFailure Drain node failed" in record.message, record.message


def test_aks_is_told_to_stop_at_a_node_that_stays_away(aks: App, world: World) -> None:
    world.arm.core.operation_seconds = 300
    truth = world.arm.truth
    old = {name: truth.machine(world.machine(name)).boots for name in agents(world)}

    def kill_the_first_new_one() -> None:
        for name, boots in old.items():
            machine = truth.machine(world.machine(name))
            if machine.boots > boots and machine.kubelet_alive:
                truth.kill_kubelet(world.machine(name))

    record = upgrade(aks, image="", version="1.35.0", each=kill_the_first_new_one, every=30)
    assert record.state is OperationState.FAILED
    assert "AKS was told to stop, 0 of 2 nodes done" in record.message, record.message
    assert pool(world)["provisioningState"] == "Canceled"


def test_an_etcd_backup_comes_first_and_nothing_is_touched_without(
    world: World, start: Callable[..., App]
) -> None:
    add_set(world, count=1)
    with EtcdCluster.start() as etcd:
        policy = {"container": f"backups-{uuid.uuid4().hex[:10]}"}
        app = start(cluster={"etcd": {"endpoints": list(etcd.endpoints)}, "etcdBackup": policy})
        etcd.kill(0)
        before = len(world.arm.recorder.requests)
        refused = upgrade(app)
        assert refused.state is OperationState.FAILED
        assert "the etcd backup before it failed: " in refused.message, refused.message
        assert all(one.method == "GET" for one in world.arm.recorder.requests[before:])
        etcd.restart(0)
        record = upgrade(app)
        assert record.state is OperationState.SUCCEEDED, record.message
        backups = [one for one in app.clients.operations.recent(world.started) if one.operation == "backup"]
        assert [one.state for one in backups] == [OperationState.SUCCEEDED, OperationState.FAILED]
        assert backups[0].updated_at < record.updated_at
        assert images(world) == ["1-34 2.0.0"]

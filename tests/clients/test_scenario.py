"""Azure and a cluster on one clock: what happens to machines happens to nodes, pods and disks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from azure.mgmt.compute import ComputeManagementClient
from local_arm import connect

from sandbox.arm.core import Ending, Latencies
from sandbox.arm.state import Resource
from sandbox.arm.truth import DETACHED_WHILE_MOUNTED, WRONG_DISK_MOUNTED
from sandbox.kube import kinds
from sandbox.kube.metrics import NODE_METRICS, POD_METRICS, Usage
from sandbox.kube.volumes import CLAIMS
from sandbox.scenario import World, disk_name

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service:NoExecute"
SHUTDOWN = "node.cloudprovider.kubernetes.io/shutdown:NoSchedule"


@pytest.fixture
def world() -> Iterator[World]:
    with World(serve=False) as made:
        yield made


# --- machines and nodes ---


def test_machines_of_every_kind_are_nodes(world: World) -> None:
    world.add_node("single")
    world.add_availability_set("avset", "member")
    world.add_scale_set("uniform", 1, zones=["1"])
    world.add_scale_set("flex", 1, flexible=True)
    world.add_cluster("prod", system=1)
    world.advance()
    nodes = world.nodes(ready=True)
    assert len(nodes) == 5
    providers = {name: world.node(name).document["spec"]["providerID"] for name in nodes}
    assert all(text.startswith("azure:///subscriptions/") for text in providers.values())
    assert providers["uniform000000"].endswith("/virtualMachineScaleSets/uniform/virtualMachines/0")
    assert "/virtualMachines/flex_" in providers["flex000000"]
    (aks,) = [name for name in nodes if name.startswith("aks-system-")]
    assert world.node(aks).labels["kubernetes.azure.com/agentpool"] == "system"
    assert "/resourcegroups/mc_kubekeeper_prod_westeurope/" in providers[aks].lower()


def test_a_node_has_what_its_size_and_pool_give(world: World) -> None:
    taint = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
    options = {"size": "Standard_NC4as_T4_v3", "zones": ["2"], "labels": {"pool": "gpu"}, "taints": [taint]}
    world.add_scale_set("gpu", 1, **options)
    world.advance()
    node = world.node("gpu000000")
    assert node.taints == ["gpu:NoSchedule"]
    assert node.allocatable == {
        "cpu": "3860m",
        "memory": "26219724Ki",
        "pods": "110",
        "nvidia.com/gpu": "1",
        "ephemeral-storage": "100Gi",
    }
    assert node.document["status"]["capacity"]["memory"] == "28626124Ki"
    expected = {
        "pool": "gpu",
        "node.kubernetes.io/instance-type": "Standard_NC4as_T4_v3",
        "topology.kubernetes.io/zone": "westeurope-2",
        "topology.kubernetes.io/region": "westeurope",
    }
    assert expected.items() <= node.labels.items()


def test_a_set_that_grows_gets_nodes_when_they_have_booted(world: World) -> None:
    agents = world.add_scale_set("agents", 1, labels={"pool": "agents"})
    world.add_deployment("web", replicas=3, cpu="3")
    world.advance(10)
    assert [pod.phase for pod in world.pods("web")].count("Running") == 1
    world.arm.core.latencies = Latencies({"patch": 60.0}, spread=0.0)
    world.resize(agents, 3)
    world.advance(99)
    assert world.nodes() == ["agents000000"]
    took = world.until(lambda: all(pod.is_running for pod in world.pods("web")), within=10)
    assert took <= 5
    assert world.node("agents000002").labels["pool"] == "agents"


def test_new_pools_of_an_aks_cluster_bring_their_labels_and_taints(world: World) -> None:
    cluster = world.add_cluster("prod", system=1)
    properties = {"count": 1, "vmSize": "Standard_D2s_v5", "scaleSetPriority": "Spot", "maxPods": 30}
    properties |= {"nodeLabels": {"team": "a"}, "nodeTaints": ["dedicated=a:NoExecute"]}
    world.arm.put(f"{cluster}/agentPools/spot", {"properties": properties})
    world.advance(60)
    (name,) = [name for name in world.nodes() if "spot" in name]
    node = world.node(name)
    assert node.taints == ["dedicated:NoExecute", "kubernetes.azure.com/scalesetpriority:NoSchedule"]
    assert (node.labels["team"], node.labels["agentpool"], node.allocatable["pods"]) == ("a", "spot", "30")


def test_a_crashed_machine_falls_silent_while_azure_says_running(world: World) -> None:
    world.add_nodes("a", "b", "c")
    world.add_deployment("web", replicas=3)
    world.advance(10)
    world.crash("b")
    took = world.until(lambda: not world.node("b").is_ready, within=60)
    assert 45 <= took <= 60
    view = world.arm.core.do("GET", world.machine("b"), None).body["properties"]
    assert view["provisioningState"] == "Succeeded"
    world.advance(400)
    assert sum(pod.is_running for pod in world.pods("web")) == 3
    assert world.nodes() == ["a", "b", "c"], "Azure says it runs, so nobody deletes the node"


def test_a_stopped_machine_returns_after_its_boot(world: World) -> None:
    world.add_nodes("a", "b")
    world.advance(1)
    world.stop_machine("b")
    world.advance(120)
    assert not world.node("b").is_ready
    world.start_machine("b")
    world.advance(39)
    assert not world.node("b").is_ready
    world.advance(2)
    assert world.node("b").is_ready
    assert world.node("b").taints == []


def test_a_quick_restart_is_not_noticed_by_pods(world: World) -> None:
    world.add_nodes("a")
    (disk,) = world.add_stateful_set("db")
    world.advance(10)
    world.arm.core.do("POST", world.machine("a"), None, "restart")
    world.advance(60)
    assert world.pod("db-0").is_running
    assert world.arm.truth.mounted_on(disk) == [world.machine("a").lower()]


def test_a_replaced_machine_takes_over_the_name_as_another_one(world: World) -> None:
    world.add_nodes("a", "b")
    world.advance(1)
    uid = world.node("b").document["metadata"]["uid"]
    world.arm.replace_vm(world.machine("b"))
    world.advance(60)
    assert world.node("b").is_ready
    assert world.node("b").document["metadata"]["uid"] == uid
    assert len(world.fleet.members) == 3


# --- the cloud controller ---


def test_the_node_of_a_deleted_machine_goes_when_the_cache_is_old(world: World) -> None:
    world.add_nodes("a", "b")
    world.add_scale_set("agents", 1)
    world.advance(10)
    world.delete_machine("b")
    world.delete_machine("agents000000")
    single = world.until(lambda: "b" not in world.nodes(), within=700)
    pooled = world.until(lambda: "agents000000" not in world.nodes(), within=700)
    assert 50 <= single <= 125
    assert 500 <= single + pooled <= 660


def test_without_cloud_controller_the_node_stays(world: World) -> None:
    world.cloud.enabled = False
    world.add_nodes("a", "b")
    world.advance(1)
    world.delete_machine("b")
    world.advance(1000)
    assert world.nodes() == ["a", "b"]


def test_a_stopped_machine_is_marked_and_its_disk_freed(world: World) -> None:
    world.add_nodes("a", "b")
    (disk,) = world.add_stateful_set("db")
    world.advance(10)
    was = world.pod("db-0").node
    world.stop_machine(was)
    took = world.until(lambda: world.pod("db-0").is_running and world.pod("db-0").node != was, within=500)
    assert {SHUTDOWN, OUT_OF_SERVICE} <= set(world.node(was).taints)
    assert 50 < took < 200
    assert world.owner(disk) == world.pod("db-0").node
    world.start_machine(was)
    world.advance(60)
    assert world.node(was).taints == []
    assert world.corruptions == []


# --- disks ---


def test_a_pods_disk_is_attached_through_azure_and_mounted(world: World) -> None:
    world.add_nodes("a")
    disks = world.add_stateful_set("db", replicas=3)
    world.arm.core.latencies = Latencies({"attachDetach": 20.0}, spread=0.0)
    assert world.until(lambda: all(pod.is_running for pod in world.pods("db")), within=200) < 90
    assert world.attachments() == [(f"pv-db-{number}", "a", True) for number in range(3)]
    machine = world.arm.core.do("GET", world.machine("a")).body["properties"]["storageProfile"]
    assert [(d["name"], d["lun"]) for d in machine["dataDisks"]] == [
        (disk_name(d), i) for i, d in enumerate(disks)
    ]
    assert world.arm.truth.mounted_on(disks[0]) == [world.machine("a").lower()]


def test_disks_of_one_node_are_asked_for_in_one_write(world: World) -> None:
    world.add_nodes("a")
    world.arm.core.latencies = Latencies({"attachDetach": 20.0}, spread=0.0)
    for number in range(4):
        disk = world.arm.add_disk(f"d{number}")
        world.add_volume(f"pv{number}", disk, claim=f"c{number}")
        world.add_claim(f"c{number}")
        world.add_pod(f"p{number}", claims=[f"c{number}"])
    assert world.until(lambda: all(pod.is_running for pod in world.pods()), within=60) < 30
    writes = [
        work for work in world.arm.core.state.operations.values() if work.verb == "attachdetachdatadisks"
    ]
    assert len(writes) == 1


def test_a_moved_pods_disk_leaves_before_it_arrives(world: World) -> None:
    world.add_nodes("a", "b")
    (disk,) = world.add_stateful_set("db")
    world.arm.core.latencies = Latencies({"attachDetach": 20.0}, spread=0.0)
    world.until(lambda: world.pod("db-0").is_running, within=60)
    was = world.pod("db-0").node
    world.cordon(was)
    world.delete_pod("db-0")
    world.until(lambda: world.pod("db-0").is_running and world.pod("db-0").node != was, within=120)
    assert world.owner(disk) == world.pod("db-0").node
    assert world.corruptions == []


def test_a_failed_attachment_is_told_and_tried_again(world: World) -> None:
    world.add_nodes("a")
    world.arm.core.endings.append(Ending("attachDetach", code="InternalExecutionError"))
    world.add_stateful_set("db")
    world.until(lambda: world.pod("db-0").is_running or world.events("FailedAttachVolume"), within=60)
    assert "InternalExecutionError" in world.events("FailedAttachVolume")[0]
    # The machine is in failed state now and refuses disks until somebody repairs it.
    world.arm.core.do("POST", world.machine("a"), None, "reapply")
    world.until(lambda: world.pod("db-0").is_running, within=60)


def test_detaching_under_a_live_writer_is_written_down(world: World) -> None:
    world.add_nodes("a")
    (disk,) = world.add_stateful_set("db")
    world.advance(10)
    world.kill_kubelet("a")
    world.arm.detach(world.machine("a"), disk)
    assert [(c.kind, c.kubelet_alive) for c in world.corruptions] == [(DETACHED_WHILE_MOUNTED, False)]


def test_a_kubelet_mounts_what_it_finds_at_the_lun_it_was_told(world: World) -> None:
    """As azuredisk-csi-driver does, so that a stale attachment puts one pod's data into another's hands."""
    world.add_nodes("a")
    (disk,) = world.add_stateful_set("db")
    world.advance(10)
    machine, other = world.machine("a"), world.arm.add_disk("other")
    world.stop_machine("a")
    world.arm.detach(machine, disk)
    world.arm.attach(machine, other, 0)
    world.cloud.enabled = False
    world.start_machine("a")
    world.advance(60)
    assert [(c.kind, disk_name(c.disk), disk_name(c.mounted_disk)) for c in world.corruptions] == [
        (WRONG_DISK_MOUNTED, "other", "db-0")
    ]


def test_a_disk_that_is_not_there_leaves_its_pod_unready(world: World) -> None:
    world.add_nodes("a")
    (disk,) = world.add_stateful_set("db")
    world.advance(10)
    world.stop_machine("a")
    world.arm.detach(world.machine("a"), disk)
    world.start_machine("a")
    world.advance(60)
    assert not world.pod("db-0").is_ready
    assert "could not find disk lun 0" in world.events("FailedMount")[0]
    assert world.corruptions == []


def test_the_driver_forces_what_takes_four_minutes(world: World) -> None:
    """As the real one does, which is what damages a disk under a kubelet that only seems dead."""
    world.add_nodes("a", "b")
    (disk,) = world.add_stateful_set("db")
    world.advance(10)
    was = world.pod("db-0").node
    world.kill_kubelet(was)
    world.advance(120)
    world.arm.core.latencies = Latencies({"attachDetach": 3000.0, "forceDetach": 10.0}, spread=0.0)
    world.delete_pod("db-0", grace=0)
    world.advance(360 + 250 + 30)
    assert world.owner(disk) == ""
    assert [(c.forced, c.kubelet_alive) for c in world.corruptions] == [(True, False)]


def test_a_zombie_is_taken_from_where_nobody_claims_it(world: World) -> None:
    world.add_nodes("a", "b")
    disk = world.arm.add_disk("d")
    world.arm.attach(world.machine("b"), disk, 0)
    world.add_volume("pv", disk, claim="c")
    world.add_claim("c")
    world.add_pod("p", claims=["c"], nodeName="a")
    world.until(lambda: world.pod("p").is_running, within=60)
    assert world.owner(disk) == "a"


def test_a_disk_is_made_where_its_pod_will_be_and_goes_with_its_claim(world: World) -> None:
    world.add_scale_set("agents", 3, zones=["1", "2", "3"])
    world.add_storage_class()
    world.add_stateful_set("db", replicas=3, storage_class="managed-csi")
    world.until(lambda: len(world.pods("db")) == 3 and all(p.is_running for p in world.pods("db")), within=60)
    disks = {r.body["tags"]["kubernetes.io-created-for-pvc-name"]: r for r in made_disks(world)}
    assert sorted(disks) == ["data-db-0", "data-db-1", "data-db-2"]
    for pod in world.pods("db"):
        zone = world.node(pod.node).labels["topology.kubernetes.io/zone"]
        assert disks[f"data-{pod.name}"].body["zones"] == [zone.removeprefix("westeurope-")]
    world.scale("db", 0)
    world.advance(30)
    for number in range(3):
        world.kubernetes.remove(CLAIMS, f"data-db-{number}", "default")
    world.advance(30)
    assert made_disks(world) == []


def test_a_pod_whose_disk_is_in_a_full_zone_waits_for_a_node_there(world: World) -> None:
    agents = world.add_scale_set("agents", 2, zones=["1", "2"])
    world.add_storage_class()
    world.add_stateful_set("db", storage_class="managed-csi", cpu="3")
    world.until(lambda: world.pod("db-0").is_running, within=60)
    was = world.pod("db-0").node
    world.cordon(was)
    world.delete_pod("db-0")
    world.advance(60)
    (said,) = world.events("FailedScheduling")
    assert "1 node(s) were unschedulable" in said
    assert "1 node(s) didn't match PersistentVolume's node affinity" in said
    world.resize(agents, 4)
    world.until(lambda: world.pod("db-0").is_running, within=120)
    label = "topology.kubernetes.io/zone"
    assert world.node(world.pod("db-0").node).labels[label] == world.node(was).labels[label]


def made_disks(world: World) -> list[Resource]:
    disks = world.arm.core.state.of_type("Microsoft.Compute/disks")
    return [disk for disk in disks if "k8s-azure-created-by" in (disk.body.get("tags") or {})]


def test_a_size_takes_only_so_many_disks_and_the_scheduler_knows(world: World) -> None:
    world.add_node("a", size="Standard_D2s_v5")
    for number in range(5):
        disk = world.arm.add_disk(f"d{number}")
        world.add_volume(f"pv{number}", disk, claim=f"c{number}")
        world.add_claim(f"c{number}")
        world.add_pod(f"p{number}", claims=[f"c{number}"])
    world.advance(60)
    assert sum(bool(pod.node) for pod in world.pods()) == 4
    assert any("1 node(s) exceed max volume count" in said for said in world.events("FailedScheduling"))


def test_an_attachment_that_fails_is_tried_later_and_later_and_at_once_when_touched(world: World) -> None:
    world.add_node("a", zone="1")
    world.add_volume("pv", world.arm.add_disk("e"), claim="c")  # without zone: Azure will not have it there
    world.add_claim("c")
    world.add_pod("p", claims=["c"])
    world.advance(1000)
    assert "not in the same zone" in world.events("FailedAttachVolume")[0]
    (attachment,) = world.kubernetes.objects(kinds.ATTACHMENTS)
    was = attachment["status"]["attachError"]["time"]
    world.advance(60)
    assert world.kubernetes.objects(kinds.ATTACHMENTS)[0]["status"]["attachError"]["time"] == was
    client_side = {**attachment, "metadata": {**attachment["metadata"], "annotations": {"touched": "yes"}}}
    world.kubernetes.store.write(kinds.ATTACHMENTS, client_side)
    world.advance(10)
    assert world.kubernetes.objects(kinds.ATTACHMENTS)[0]["status"]["attachError"]["time"] > was


# --- metrics ---


def test_metrics_tell_what_is_used(world: World) -> None:
    metrics = world.run_metrics()
    world.add_nodes("a", "b")
    world.add_deployment("web", replicas=2, cpu="500m", memory="1Gi")
    metrics.usage["web"] = Usage(cpu="250m", memory="3Gi")
    world.advance(31)
    found = world.kubernetes.objects(POD_METRICS)
    assert [m["containers"][0]["usage"] for m in found] == [{"cpu": "250000000n", "memory": "3145728Ki"}] * 2
    nodes = {m["metadata"]["name"]: m for m in world.kubernetes.objects(NODE_METRICS)}
    assert nodes["a"]["usage"] == {"cpu": "350000000n", "memory": "3670016Ki"}
    assert nodes["a"]["timestamp"] == "2026-11-23T10:00:30Z"
    world.crash("b")
    world.advance(90)
    assert [m["metadata"]["name"] for m in world.kubernetes.objects(NODE_METRICS)] == ["a"]
    assert len(world.kubernetes.objects(POD_METRICS)) == 1


# --- time and the outside ---


def test_what_is_asked_for_later_happens_then(world: World) -> None:
    world.add_nodes("a")
    world.at(30, world.crash, "a")
    world.advance(29)
    assert world.arm.truth.is_running(world.machine("a"))
    world.advance(2)
    assert not world.arm.truth.is_running(world.machine("a"))


def test_what_does_not_come_true_is_described(world: World) -> None:
    world.add_nodes("a")
    with pytest.raises(AssertionError, match=r"not within 5 s: b joins\nafter 5 s:\n  node a: Ready"):
        world.until(lambda: "b" in world.nodes(), within=5, saying="b joins")


def test_product_code_sees_both_sides_over_http() -> None:
    with World() as world, connect(world.arm, ComputeManagementClient) as compute:
        world.add_nodes("a", "b")
        world.advance(1)
        world.arm.core.operation_seconds = 60
        poller = compute.virtual_machines.begin_power_off(world.arm.group, "b")
        with world.time_passing(rate=1000):
            poller.result()
        world.advance(60)
        client = world.client()
        nodes, _ = client.list("/api/v1/nodes")
        ready = {n["metadata"]["name"]: n["status"]["conditions"] for n in nodes}
        ready = {name: {c["type"]: c["status"] for c in found}["Ready"] for name, found in ready.items()}
        assert ready == {"a": "True", "b": "Unknown"}
        assert world.arm.recorder.count("POST", "powerOff") == 1
        environ = world.environ()
        assert environ["KUBEKEEPER_ARM_ENDPOINT"] == world.arm.url


def test_a_thousand_seconds_of_a_whole_world_take_less_than_two(world: World) -> None:
    world.arm.core.latencies = Latencies({"": 30.0})
    agents = world.add_scale_set("agents", 10, zones=["1", "2", "3"])
    world.add_nodes("a", "b", "c")
    world.add_deployment("web", replicas=40)
    world.add_stateful_set("db", replicas=3)
    began = time.process_time()
    world.advance(100)
    world.crash(world.pod("db-0").node)
    world.at(60, world.resize, agents, 14)
    world.at(200, world.delete_machine, "agents000004")
    world.at(400, world.stop_machine, "b")
    world.advance(900)
    took = time.process_time() - began
    assert world.seconds == 1000
    assert sum(pod.is_running for pod in world.pods("web")) == 40
    assert took < 2, f"{took:.2f} s"

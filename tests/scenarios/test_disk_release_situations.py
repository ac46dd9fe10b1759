"""The situations of docs/disk-release.md, one after the other, over the whole local world in simulated time.

Each ends with the right verdict or the disk free, and with nothing corrupted by the oracle that sees what
really happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from disk_release_world import OUT_OF_SERVICE, Keeper

from sandbox.arm import QUOTED
from sandbox.arm.core import Ending
from sandbox.asgi import Fault, on
from sandbox.disk_provisioner import CLASSES
from sandbox.kube.kinds import ATTACHMENTS
from sandbox.kube.volumes import VOLUMES
from sandbox.scenario import World
from shared.disk_release import act, rules

DETACH = "attachDetachDataDisks"


@pytest.fixture
def world() -> Iterator[World]:
    """Three nodes and a database with one disk, an hour old."""
    with World(serve=False) as world:
        world.cloud.marks_out_of_service = False
        world.arm.core.latencies = QUOTED
        world.add_nodes("a", "b", "c")
        world.add_stateful_set("db")
        world.advance(120)
        yield world


@pytest.fixture
def keep(world: World, tmp_path: Path) -> Iterator[Any]:
    """Start the app beside the world, with what stands under `diskRelease`; it never breaks an invariant."""
    apps = []

    def begin(**policy: Any) -> Keeper:
        apps.append(Keeper(world, tmp_path, **policy))
        return apps[-1]

    yield begin
    assert [line for app in apps for line in app.broken_invariants()] == []


def disk_of(world: World, name: str = "db-0") -> str:
    return world.arm.id_of("Microsoft.Compute/disks", name)


def _not_found(machine: str, times: int = 1) -> Fault:
    """Azure says of a machine that it is not there, although it is."""
    body = {"error": {"code": "ResourceNotFound", "message": "It was not found."}}
    return Fault(on("GET", f"/virtualMachines/{machine}"), status=404, body=body, times=times)


def runs_elsewhere(world: World, was: str) -> bool:
    """Whether the database runs on another node than it did."""
    pod = next(iter(world.pods("db")), None)
    return pod is not None and pod.is_running and pod.node != was


def test_s1_a_stateful_set_fails_over_from_a_dead_kubelet(world: World, keep: Any) -> None:
    app, dead = keep(), world.pod("db-0").node
    world.kill_kubelet(dead)
    app.until(lambda: not world.node(dead).is_ready, within=60)
    app.nudge()
    app.until(lambda: runs_elsewhere(world, dead), within=300)
    app.until(lambda: app.events("Released"), within=60)
    app.run(120)
    assert world.corruptions == []
    assert [r.path.rpartition("/")[2] for r in app.writes()] == ["powerOff"]
    assert app.writes()[0].query["skipShutdown"] == "true"
    assert app.events() == ["FenceBegun", "PoweredOff", "NodeTainted", "Released", "NodeUntainted"]
    assert OUT_OF_SERVICE not in world.node(dead).taints
    assert app.state["done"][0]["disk"] == disk_of(world).lower()
    assert app.failures == app.poisoned == []


def test_s1_a_pod_that_a_dead_node_keeps_is_reported_though_its_disk_is_elsewhere(
    world: World, keep: Any
) -> None:
    app, dead = keep(fence="never"), world.pod("db-0").node
    world.kill_kubelet(dead)
    world.until(lambda: world.pod("db-0").is_going, within=600)
    world.arm.detach(world.machine(dead), disk_of(world))
    for attachment in world.kubernetes.objects(ATTACHMENTS):
        world.kubernetes.remove(ATTACHMENTS, attachment["metadata"]["name"], "")
    app.run(120)
    assert app.left_alone() == {"pod default/db-0": "PodKept"} and app.writes() == []
    world.delete_pod("db-0", grace=0)
    app.until(lambda: runs_elsewhere(world, dead), within=120)
    assert app.own_corruptions() == []


def test_s1_a_machine_that_was_started_again_has_its_time_to_boot(world: World, keep: Any) -> None:
    app, dead = keep(grace="60s", detachAfter="30s"), world.pod("db-0").node
    _stop_driver(world)
    world.kill_kubelet(dead)
    app.until(lambda: app.events("PoweredOff"), within=300)
    world.fleet.boot_delay = timedelta(minutes=30)
    world.start_machine(dead)
    app.until(lambda: app.events("NodeUntainted"), within=120)
    assert app.left_alone()[f"db-0 on {dead}"] == "NodeSilent" and len(app.writes()) == 1
    app.run(15)
    assert len(app.writes()) == 1
    app.until(lambda: len(app.writes()) == 2, within=120)  # it stays silent, and is fenced again
    app.until(lambda: world.owner(disk_of(world)) != dead, within=300)
    assert world.corruptions == []


# Other kinds of machines


@pytest.mark.parametrize("kind", ["availability set", "uniform", "flexible"])
def test_s1_on_every_kind_of_machine(tmp_path: Path, kind: str) -> None:
    with World(serve=False) as world:
        world.cloud.marks_out_of_service = False
        world.arm.core.latencies = QUOTED
        if kind == "availability set":
            world.add_availability_set("as", "a", "b", "c")
        else:
            world.add_scale_set("agents", 3, flexible=kind == "flexible")
        world.add_stateful_set("db")
        world.advance(120)
        app, dead = Keeper(world, tmp_path), world.pod("db-0").node
        world.kill_kubelet(dead)
        app.until(lambda: runs_elsewhere(world, dead), within=400)
        app.until(lambda: app.events("Released"), within=120)
        assert world.corruptions == [] and app.failures == []
        assert [r.path.rpartition("/")[2] for r in app.writes()] == ["powerOff"]


# S2: the machine is off


@pytest.mark.parametrize("deallocate", [False, True], ids=["stopped", "deallocated"])
def test_s2_a_machine_that_is_off_is_not_fenced_but_released(
    world: World, keep: Any, deallocate: bool
) -> None:
    app, dead = keep(fence="never"), world.pod("db-0").node
    world.stop_machine(dead, deallocate=deallocate)
    app.until(lambda: not world.node(dead).is_ready, within=60)
    app.nudge()
    seconds = app.until(lambda: OUT_OF_SERVICE in world.node(dead).taints, within=60)
    assert seconds < 10
    app.until(lambda: runs_elsewhere(world, dead), within=200)
    app.run(120)
    assert world.corruptions == []
    assert app.writes() == []
    assert app.events() == ["NodeTainted", "Released", "NodeUntainted"]


def test_s2_a_machine_that_comes_back_meanwhile_gets_its_service_back(world: World, keep: Any) -> None:
    app, dead = keep(), world.pod("db-0").node
    world.stop_machine(dead)
    app.until(lambda: OUT_OF_SERVICE in world.node(dead).taints, within=180)
    world.start_machine(dead)
    app.until(lambda: world.node(dead).is_ready, within=120)
    app.until(lambda: OUT_OF_SERVICE not in world.node(dead).taints, within=120)
    app.until(lambda: world.pod("db-0").is_running, within=300)
    app.run(600)
    assert world.corruptions == [] and world.pod("db-0").is_running
    assert app.state.get("releases", {}) == {}


def test_s2_a_machine_on_its_way_down_is_waited_for(world: World, keep: Any) -> None:
    app, dead = keep(), world.pod("db-0").node
    world.kill_kubelet(dead)
    world.stop_machine(dead, deallocate=True, at_once=False)
    app.until(lambda: runs_elsewhere(world, dead), within=500)
    assert world.corruptions == [] and app.writes() == []


@pytest.mark.parametrize(
    ("status", "code"),
    [(429, "TooManyRequests"), (409, "AttachDiskWhileBeingDetached"), (404, "ResourceNotFound")],
)
def test_s2_a_detach_that_azure_refused_for_the_moment_is_asked_for_again(
    world: World, keep: Any, status: int, code: str
) -> None:
    app, dead = keep(detachAfter="30s", force=False), world.pod("db-0").node
    _stop_driver(world)
    world.arm.fault(Fault(on("POST", DETACH), status=status, body={"error": {"code": code, "message": "no"}}))
    world.stop_machine(dead)
    app.until(lambda: any(r.path.endswith(DETACH) for r in app.asked), within=400)
    app.until(lambda: world.owner(disk_of(world)) != dead, within=300)
    assert [r.path.rpartition("/")[2] for r in app.writes()] == [DETACH]
    assert world.corruptions == []


def test_s2_a_machine_that_stays_half_way_down_is_reported_in_the_end(world: World, keep: Any) -> None:
    app, dead = keep(), world.pod("db-0").node
    world.kill_kubelet(dead)
    _let_power_be(world, dead, "deallocating")  # and no operation is under way
    app.run(300)
    assert app.left_alone()[f"db-0 on {dead}"] == "PowerMoves"
    app.run(600)
    (line,) = (left["message"] for left in app.left() if left["reason"] == "PowerMoves")
    assert line.startswith("Report (S2)") and "is deallocating: neither on nor off; overdue since" in line


def test_a_fence_whose_answer_was_lost_and_that_failed_is_tried_once_more_in_its_release(
    world: World, keep: Any
) -> None:
    app, dead = keep(), world.pod("db-0").node
    world.arm.core.endings.append(Ending(on="powerOff"))
    world.arm.fault(Fault(on("POST", "powerOff"), lose_answer=True))
    world.kill_kubelet(dead)
    app.until(lambda: runs_elsewhere(world, dead), within=900)
    assert {moment.action.parameters["epoch"] for moment in app.witness.moments} == {1}
    assert world.corruptions == []


def test_a_fence_that_is_never_allowed_is_reported(world: World, keep: Any) -> None:
    app, dead = keep(fence="never"), world.pod("db-0").node
    world.kill_kubelet(dead)
    app.run(600)
    assert app.left_alone()[f"db-0 on {dead}"] == "FenceIsAllowed"
    assert app.writes() == [] and world.node(dead).taints and OUT_OF_SERVICE not in world.node(dead).taints


def test_a_fence_waits_for_approval_and_then_goes_on(world: World, keep: Any) -> None:
    app, dead = keep(fence="approve"), world.pod("db-0").node
    world.kill_kubelet(dead)
    app.run(300)
    assert app.writes() == []
    identity = app.operate("approve", automation="disk-release", subject=dead)
    app.until(lambda: runs_elsewhere(world, dead), within=300)
    assert app.clients().operations.read(identity).state == "Succeeded"
    assert world.corruptions == []


def test_dry_run_plans_and_does_nothing(world: World, keep: Any) -> None:
    app, dead = keep(dryRun=True), world.pod("db-0").node
    world.kill_kubelet(dead)
    app.run(400)
    assert app.writes() == [] and app.events() == []
    assert OUT_OF_SERVICE not in world.node(dead).taints


# S3: the machine is gone


def test_s3_a_deleted_machine_leaves_no_attachment_behind(world: World, keep: Any) -> None:
    app, gone = keep(), world.pod("db-0").node
    world.kill_kubelet(gone)
    app.run(5)
    world.delete_machine(gone)
    began = world.seconds
    app.until(lambda: runs_elsewhere(world, gone), within=600)
    assert world.corruptions == [] and app.writes() == []
    assert world.seconds - began < 300


def test_s3_the_node_of_a_machine_that_is_gone_does_not_keep_its_pods(world: World, keep: Any) -> None:
    world.cloud.enabled = False
    app, gone = keep(), world.pod("db-0").node
    world.kill_kubelet(gone)
    app.run(5)
    world.delete_machine(gone)
    seconds = app.until(lambda: runs_elsewhere(world, gone), within=400)
    app.run(200)
    assert seconds < 240 and world.corruptions == [] and app.writes() == []
    assert app.events() == ["NodeTainted", "Released", "NodeUntainted"]


def test_s3_a_taint_that_kubernetes_refused_is_tried_again(world: World, keep: Any) -> None:
    """Its release has begun, and the disk is free: the machine is read again all the same."""
    world.cloud.enabled = False
    app, gone = keep(), world.pod("db-0").node
    body = {"kind": "Status", "status": "Failure", "reason": "TooManyRequests", "code": 429}
    world.kubernetes.faults.append(Fault(on("PATCH", f"/nodes/{gone}"), status=429, body=body, times=5))
    world.kill_kubelet(gone)
    app.run(5)
    world.delete_machine(gone)
    app.until(lambda: runs_elsewhere(world, gone), within=900)
    assert world.corruptions == [] and app.writes() == []


def test_a_fence_that_failed_is_tried_again_in_the_next_window(world: World, keep: Any) -> None:
    app, dead = keep(), world.pod("db-0").node
    world.arm.core.endings.append(Ending(on="powerOff", times=2))
    world.kill_kubelet(dead)
    app.run(600)
    assert app.left_alone()[f"db-0 on {dead}"] == "FenceFailed" and len(app.writes()) == 2
    app.until(lambda: runs_elsewhere(world, dead), within=1200)
    assert world.corruptions == [] and len(app.writes()) == 3


def test_s3_a_404_once_proves_nothing(world: World, keep: Any) -> None:
    app, dead = keep(fence="never"), world.pod("db-0").node
    world.kill_kubelet(dead)
    app.until(lambda: not world.node(dead).is_ready, within=60)
    world.arm.fault(_not_found(dead))
    app.nudge()
    app.run(20)
    assert [a for a in world.attachments() if a[1] == dead]
    app.run(200)
    assert [a for a in world.attachments() if a[1] == dead]
    assert app.events() == []


# S4: another machine has the name


def test_s4_a_machine_of_the_same_name_is_another_one(world: World, keep: Any) -> None:
    app, dead = keep(grace="0s"), world.pod("db-0").node
    world.kill_kubelet(dead)
    app.until(lambda: app.events("FenceBegun"), within=120)
    world.arm.replace_vm(world.machine(dead))
    app.run(900)
    assert app.left_alone() == {f"db-0 on {dead}": "DetachedUnderneath"}
    assert len(app.writes()) == 1 and not app.state.get("releases")
    assert world.corruptions == []


# S5 to S18


def test_s5_a_zombie_attachment_is_detached_when_it_is_old(world: World, keep: Any) -> None:
    app = keep()
    disk = world.arm.add_disk("left", **{"kubernetes.io-created-for-pv-name": "pv-left"})
    world.add_volume("pv-left", disk)
    world.arm.attach(world.machine("c"), disk, 7)
    app.run(300)
    assert world.owner(disk) == "c" and app.writes() == []  # an attach may be under way
    app.until(lambda: not world.owner(disk), within=900)
    app.run(120)
    assert [r.json for r in app.writes()] == [{"dataDisksToDetach": [{"diskId": disk}]}]
    assert app.events() == ["DetachBegun", "Detached", "Released"]
    assert world.corruptions == [] and world.pod("db-0").is_running


def test_s5_a_strange_disk_is_left_where_it_is(world: World, keep: Any) -> None:
    app = keep()
    disk = world.arm.add_disk("strange")
    world.arm.attach(world.machine("c"), disk, 7)
    app.run(1500)
    assert world.owner(disk) == "c" and app.writes() == []
    assert app.left_alone()["strange on c"] == "ForeignDisk"


def test_s6_a_disk_taken_from_under_a_mount_is_reported(world: World, keep: Any) -> None:
    app, node = keep(), world.pod("db-0").node
    world.arm.detach(world.machine(node), disk_of(world))
    app.run(200)
    assert app.left_alone()[f"db-0 on {node}"] == "DetachedUnderneath"
    assert app.writes() == []


@pytest.mark.parametrize("repair", [False, True])
def test_s7_a_machine_in_failed_state_is_repaired_where_that_is_allowed(
    world: World, keep: Any, repair: bool
) -> None:
    app, node = keep(repair=repair), world.pod("db-0").node
    world.disks.forces = False
    _fail(world, node)
    world.cordon(node)
    world.delete_pod("db-0")
    app.run(300)
    if repair:
        app.until(lambda: runs_elsewhere(world, node), within=900)
        assert [r.path.rpartition("/")[2] for r in app.writes()] == ["reapply"]
        assert "Reapplied" in app.events()
    else:
        assert app.left_alone()[f"db-0 on {node}"] == "VmFailed"
        assert app.writes() == []
    assert world.corruptions == []


def _fail(world: World, node: str) -> None:
    """A write on the machine fails, as an extension would, and leaves it in failed state."""
    world.arm.core.endings.append(Ending(on="virtualMachines/patch", code="VMExtensionProvisioningError"))
    world.arm.core.do("PATCH", world.machine(node), {"tags": {"x": "y"}}, at_once=False)
    world.advance(200)


def test_s8_a_detach_that_hangs_is_forced_after_the_fence_and_a_plain_try(world: World, keep: Any) -> None:
    app, dead = keep(), world.pod("db-0").node
    world.disks.forces = False
    # The driver's own detach fails again and again; so does the first of ours.
    world.arm.core.endings.append(Ending(on="virtualMachines/" + DETACH, times=50, code="DetachFailed"))
    world.kill_kubelet(dead)
    app.until(lambda: app.events("ForceDetachBegun"), within=1500)
    world.arm.core.endings.clear()
    app.until(lambda: runs_elsewhere(world, dead), within=300)
    sent = [r.path.rpartition("/")[2] for r in app.writes()]
    assert sent[0] == "powerOff" and sent.count(DETACH) <= 2
    assert world.corruptions == []


def test_s9_a_disk_that_its_kubelet_never_unmounts_is_reported(world: World, keep: Any) -> None:
    app, node = keep(), world.pod("db-0").node
    world.kubelets._forget = lambda *_: None  # type: ignore[method-assign]
    world.cordon(node)
    world.delete_pod("db-0", grace=0)
    app.run(900)
    assert app.left_alone()[f"db-0 on {node}"] == "UnmountStuck" and app.writes() == []
    assert any(left["message"].startswith("Report (S9)") for left in app.left())


def test_s10_an_attachment_whose_volume_is_gone_is_let_go(world: World, keep: Any) -> None:
    app = keep()
    tag = {"kubernetes.io-created-for-pv-name": "pv-db-0"}
    world.arm.core.do("PATCH", disk_of(world), {"tags": tag})
    world.scale("db", 0)
    world.kubernetes.remove(VOLUMES, "pv-db-0", "")
    app.run(1500)
    assert world.attachments() == []
    assert world.owner(disk_of(world)) == ""
    assert world.corruptions == []


def test_s13_a_shared_disk_is_reported(world: World, keep: Any, tmp_path: Path) -> None:
    disk = world.arm.add_disk("shared", shares=2)
    world.add_volume("pv-shared", disk, claim="shared")
    world.add_claim("shared")
    world.add_pod("one", claims=["shared"])
    world.advance(120)
    app, dead = keep(), world.pod("one").node
    world.kill_kubelet(dead)
    app.run(400)
    assert app.left_alone()[f"shared on {dead}"] == "SharedDisk"
    identity = app.operate("release-disk", disk="pv-shared")
    app.run(5)
    record = app.clients().operations.read(identity)
    assert record.state == "Failed" and "maxShares is 2" in record.message and "\n" not in record.message


def test_s18_a_disk_with_an_active_export_is_reported(world: World, keep: Any) -> None:
    app, dead = keep(), world.pod("db-0").node
    world.stop_machine(dead, deallocate=True)
    world.arm.core.do("POST", disk_of(world), {"access": "Read", "durationInSeconds": 60}, "beginGetAccess")
    app.run(300)
    assert app.left_alone()[f"db-0 on {dead}"] == "DiskBusy"
    assert app.events() == []


def _let_power_be(world: World, node: str, power: str) -> None:
    resource = world.arm.core.state.find(world.machine(node))
    assert resource is not None
    resource.hidden["power"] = power


def _let_want(world: World, disk: str, **volume: Any) -> None:
    """A pod wants that disk on node c, by a volume that says nothing about zones."""
    world.add_volume("pv-wanted", disk, claim="wanted")
    found = next(v for v in world.kubernetes.objects(VOLUMES) if v["metadata"]["name"] == "pv-wanted")
    spec = {name: value for name, value in found["spec"].items() if name != "nodeAffinity"}
    world.kubernetes.put(VOLUMES, {"metadata": found["metadata"], "spec": spec | volume})
    world.add_claim("wanted")
    world.add_pod("wants", claims=["wanted"], nodeSelector={"kubernetes.io/hostname": "c"})


def test_s14_a_disk_of_another_zone_is_reported(world: World, keep: Any) -> None:
    app = keep()
    _let_want(world, world.arm.add_disk("far", zone="1"))
    app.run(300)
    assert app.left_alone()["far on c"] == "ZoneMismatch" and app.writes() == []


def test_s15_a_machine_without_a_slot_left_is_reported(world: World, keep: Any) -> None:
    app = keep()
    for number in range(8):  # all that its size has; the cluster knows of none
        world.arm.attach(world.machine("c"), world.arm.add_disk(f"own-{number}"), 20 + number)
    _let_want(world, world.arm.add_disk("ninth"))
    app.run(300)
    assert app.left_alone()["ninth on c"] == "SlotsFull" and app.writes() == []


def test_s19_a_disk_that_the_driver_never_attaches_is_reported(world: World, keep: Any) -> None:
    app = keep()
    _stop_driver(world)
    _let_want(world, world.arm.add_disk("late"))
    app.run(900)
    assert app.left_alone()["late on c"] == "Attaching" and app.writes() == []
    assert any(left["message"].startswith("Report (S19)") for left in app.left())


def test_s20_a_volume_that_names_no_disk_is_reported(world: World, keep: Any) -> None:
    app = keep()
    handle = "/subscriptions/x/nonsense"
    csi = {"driver": "disk.csi.azure.com", "volumeHandle": handle, "fsType": "ext4"}
    _let_want(world, world.arm.add_disk("right"), csi=csi)
    app.run(300)
    assert app.left_alone()["nonsense on c"] == "BadDiskId" and app.writes() == []
    assert app.failures == []


def test_s21_a_machine_of_which_azure_does_not_know_whether_it_runs_is_never_fenced(
    world: World, keep: Any
) -> None:
    app, dead = keep(), world.pod("db-0").node
    world.kill_kubelet(dead)
    _let_power_be(world, dead, "unknown")
    app.run(900)
    assert app.left_alone()[f"db-0 on {dead}"] == "PowerUnknown" and app.writes() == []
    assert any("overdue since" in left["message"] for left in app.left())


def test_s17_two_nodes_that_hold_each_others_disks_both_let_go(world: World, keep: Any) -> None:
    """Crossed wishes: neither attach can go first; the driver takes no disk from another machine here."""
    for name, holder in (("left", "b"), ("right", "c")):
        disk = world.arm.add_disk(name)
        world.add_volume(f"pv-{name}", disk, claim=name)
        world.add_claim(name)
        world.arm.attach(world.machine(holder), disk, 7)
    world.disks.is_spoken_for = lambda *_: True
    app = keep()
    for name, node in (("left", "c"), ("right", "b")):
        for other in {"a", "b", "c"} - {node}:
            world.cordon(other)
        world.add_pod(name, claims=[name])
        app.run(5)
        for other in {"a", "b", "c"} - {node}:
            world.cordon(other, off=True)
    app.run(200)
    assert app.left_alone()["left on c"] == app.left_alone()["right on b"] == "AttachedElsewhere"
    app.until(lambda: world.pod("left").is_running and world.pod("right").is_running, within=1200)
    assert [r.path.rpartition("/")[2] for r in app.writes()] == [DETACH, DETACH]
    assert world.corruptions == []


def test_what_is_wrong_with_storage_besides_is_said_in_words(world: World, keep: Any) -> None:
    world.arm.add_disk("old", **{"kubernetes.io-created-for-pv-name": "pv-old"})
    world.add_claim("waiting", storage_class="gold")
    files = {"metadata": {"name": "files"}, "provisioner": "file.csi.azure.com", "parameters": {}}
    world.kubernetes.put(CLASSES, files)
    world.add_volume("pv-once", world.arm.add_disk("once"), claim="once")
    once = next(v for v in world.kubernetes.objects(VOLUMES) if v["metadata"]["name"] == "pv-once")
    world.kubernetes.api.update(VOLUMES, once, {**once, "status": {"phase": "Released"}}, "status")
    app = keep()
    app.run(70)
    assert app.left_alone() == {
        "disk old": "DiskUnclaimed",
        "pvc default/waiting": "ClassMissing",
        "pv pv-once": "VolumeReleased",
        "storageclass files": "ShareWorldWritable",
    }


def test_without_the_rules_the_witness_sees_invariants_broken(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "broken", lambda *_: ())
    monkeypatch.setattr(act, "broken", lambda *_: ())
    app = Keeper(world, tmp_path, fence="never")
    world.cut_off("a", "b")
    app.run(200)
    assert {line.split(":")[0] for line in app.broken_invariants()} >= {"I8", "I17"}


# Limits


def test_when_half_the_cluster_is_silent_nothing_is_begun(world: World, keep: Any) -> None:
    app = keep()
    world.cut_off("a", "b")
    app.run(900)
    assert app.writes() == []
    assert "ClusterIsNotFrozen" in app.left_alone().values()
    world.revive_kubelet("a", "b")
    app.run(200)
    assert world.corruptions == [] and world.pod("db-0").is_running


def test_no_more_machines_are_fenced_than_the_window_allows(world: World, keep: Any) -> None:
    world.add_nodes(*(f"n{number}" for number in range(9)))
    world.add_stateful_set("web", 6)
    world.advance(200)
    app = keep(fencesPerWindow=1)
    busy = sorted({pod.node for pod in (*world.pods("web"), *world.pods("db"))})[:3]
    world.kill_kubelet(*busy)
    app.run(600)
    assert [r.path.rpartition("/")[2] for r in app.writes()] == ["powerOff"]
    assert "FencesAreWithinLimits" in app.left_alone().values()
    assert world.corruptions == []


def test_excluded_pods_keep_their_machine(world: World, keep: Any) -> None:
    app, dead = keep(exclude=["app=db"]), world.pod("db-0").node
    world.kill_kubelet(dead)
    app.run(400)
    assert app.left_alone()[f"db-0 on {dead}"] == "NothingIsExcluded" and app.writes() == []


def test_a_dead_node_without_disks_is_none_of_our_business(world: World, keep: Any) -> None:
    app = keep()
    idle = next(node for node in "abc" if node != world.pod("db-0").node)
    world.kill_kubelet(idle)
    app.run(400)
    assert app.writes() == [] and app.left_alone() == {} and app.reads(idle) == 0


def test_all_disks_of_a_dead_machine_go_in_one_call(world: World, keep: Any) -> None:
    for other in ("a", "c"):
        world.cordon(other)
    world.add_stateful_set("more", 3)
    world.advance(200)
    for other in ("a", "c"):
        world.cordon(other, off=True)
    app = keep()
    _stop_driver(world)
    world.kill_kubelet("b")
    app.until(lambda: any(r.path.endswith(DETACH) for r in app.writes()), within=600)
    sent = next(r for r in app.writes() if r.path.endswith(DETACH))
    assert len(sent.json["dataDisksToDetach"]) >= 3
    app.run(300)
    assert [r.path.rpartition("/")[2] for r in app.writes()] == ["powerOff", DETACH]
    assert world.corruptions == [] and len(app.events("Released")) >= 3


def _stop_driver(world: World) -> None:
    """The disk driver's controller is down: it never detaches anything."""
    world.disks.detach = _never  # type: ignore[method-assign]
    world.disks._go_on = _never  # type: ignore[method-assign]


def _never(*_: object) -> None:
    raise RuntimeError("the driver's controller is down")

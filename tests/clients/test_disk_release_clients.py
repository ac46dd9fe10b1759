"""What looking, writing and asking cost and say, over the stand-ins: requests counted, conditions, refusals.

Bad answers are never read as "gone", and bad input is refused in one line.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobServiceClient
from disk_release_world import CLUSTER, Keeper

from sandbox.arm import QUOTED
from sandbox.arm.core import Latencies
from sandbox.asgi import Fault, on
from sandbox.disk_driver import DRIVER
from sandbox.kube import kinds
from sandbox.kube.volumes import VOLUMES
from sandbox.scenario import World
from shared.clients.blob import PageBlob, page_blob
from shared.disk_release import writes
from shared.disk_release.observation import load, save
from shared.disk_release.observe import World as Sides
from shared.disk_release.observe import look_again, observe
from shared.disk_release.proof import read_certificate, verify
from shared.errors import ConflictError, SettingsError, UnsafePlanError
from shared.runtime.claim import CONTAINER

DISKS = "Microsoft.Compute/disks"


@pytest.fixture
def world() -> Iterator[World]:
    with World(serve=False) as world:
        world.cloud.marks_out_of_service = False
        world.arm.core.latencies = QUOTED
        world.add_nodes("a", "b", "c")
        world.add_stateful_set("db")
        world.advance(120)
        yield world


@pytest.fixture
def keep(world: World, tmp_path: Path) -> Callable[..., Keeper]:
    return lambda **policy: Keeper(world, tmp_path, **policy)


def look(app: Keeper) -> Any:
    sides = Sides(app.kube, app.arm, lambda: app.world.now)
    return observe(app.settings.clusters[0], sides, state={}, now=app.world.now)


# What it costs


def test_a_sweep_over_a_thousand_nodes_with_nothing_stuck_asks_for_no_machine(tmp_path: Path) -> None:
    with World(serve=False) as world:
        world.add_scale_set("agents", 1000)
        world.add_stateful_set("db", 20)
        world.advance(15)
        app = Keeper(world, tmp_path)
        asked = len(world.kubernetes.requests)
        app.nudge()
        app.deliver()
        # Pages of one list of disks, and of lists of Kubernetes.
        assert {r.path.rpartition("/")[2] for r in app.asked} == {"disks"} and len(app.asked) == 2
        assert len(world.kubernetes.requests) - asked <= 16
        assert app.left_alone() == {} and app.failures == []


def test_a_release_takes_three_reads_and_one_write(world: World, keep: Callable[..., Keeper]) -> None:
    world.arm.core.latencies = Latencies(QUOTED.medians, spread=0.0)
    app, dead = keep(grace="0s"), world.pod("db-0").node
    world.kill_kubelet(dead)
    app.until(lambda: not world.node(dead).is_ready, within=60)
    app.asked.clear()
    app.nudge()
    app.until(lambda: app.events("Released"), within=300)
    app.run(60)
    counted = Counter(r.method for r in app.asked if not r.path.endswith("/disks"))
    assert counted == {"GET": 3, "POST": 1}, "\n".join(map(str, app.asked))


# What is kept of a look


def test_a_look_is_a_snapshot_file_that_decides_the_same(world: World, keep: Callable[..., Keeper]) -> None:
    from shared.disk_release.decide import decide

    app, dead = keep(), world.pod("db-0").node
    world.kill_kubelet(dead)
    world.advance(120)
    seen = look(app)
    again = load(save(seen), "file")
    assert save(again) == save(seen)
    plans = [decide(o, o.policy, o.now).document() for o in (seen, again)]
    assert plans[0] == plans[1] and plans[0]["actions"]


def test_what_is_kept_says_nothing_about_users_and_environments(
    world: World, keep: Callable[..., Keeper]
) -> None:
    secret = {"containers": [{"name": "x", "image": "y", "env": [{"name": "PASSWORD", "value": "hunter2"}]}]}
    world.kubernetes.put(
        kinds.PODS, {"metadata": {"name": "p", "namespace": "default"}, "spec": {**secret, "nodeName": "a"}}
    )
    world.kill_kubelet(world.pod("db-0").node)
    world.advance(60)
    text = save(look(keep()))
    assert b"hunter2" not in text and b"osDisk" in text and b"networkProfile" not in text


def test_looking_again_sees_what_has_changed_meanwhile(world: World, keep: Callable[..., Keeper]) -> None:
    app, dead = keep(), world.pod("db-0").node
    world.kill_kubelet(dead)
    world.advance(60)
    seen = look(app)
    world.stop_machine(dead)
    world.advance(5)
    sides = Sides(app.kube, app.arm, lambda: world.now)
    again = look_again(seen, sides, node=dead, ids=[world.machine(dead)], state={})
    assert seen.machine(world.machine(dead)).value.power == "running"
    assert again.machine(world.machine(dead)).value.power == "stopped"
    assert again.machine(world.machine(dead)).read_at > seen.machine(world.machine(dead)).read_at


# Bad answers


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_an_answer_that_is_none_is_never_read_as_gone(
    world: World, keep: Callable[..., Keeper], status: int
) -> None:
    app, dead = keep(), world.pod("db-0").node
    body = {"error": {"code": "Trouble", "message": "no"}}
    world.arm.fault(Fault(on("GET", f"/virtualMachines/{dead}"), status=status, body=body, times=1000))
    world.kill_kubelet(dead)
    app.run(400)
    assert app.writes() == [] and app.events() == []
    assert app.left_alone()[f"db-0 on {dead}"] == ("Forbidden" if status in (401, 403) else "Unknown")
    assert [a for a in world.attachments() if a[1] == dead]


@pytest.mark.parametrize("code", ["SubscriptionNotFound", "ResourceGroupNotFound", "InstanceNotFound"])
def test_a_404_that_may_mean_something_else_proves_nothing(
    world: World, keep: Callable[..., Keeper], code: str
) -> None:
    app, dead = keep(), world.pod("db-0").node
    body = {"error": {"code": code, "message": "no"}}
    world.arm.fault(Fault(on("GET", f"/virtualMachines/{dead}"), status=404, body=body, times=1000))
    world.kill_kubelet(dead)
    app.run(400)
    assert app.writes() == [] and app.events() == []
    assert app.left_alone()[f"db-0 on {dead}"] == "Unknown"


def test_no_token_goes_to_a_strange_address_in_the_state(world: World, keep: Callable[..., Keeper]) -> None:
    app, dead = keep(grace="0s"), world.pod("db-0").node
    world.kill_kubelet(dead)
    app.until(app.writes, within=120)
    blob = app.account.containers[CONTAINER][f"{CLUSTER}/disk-release.json"]
    document = json.loads(blob.data)
    (release,) = document["automation"]["releases"].values()
    release["writes"][0]["statusUrl"] = "https://evil.example/subscriptions/x/operations/1"
    blob.data = json.dumps(document).encode()
    world.arm.core.supersede(world.arm.core.running_on(_parsed(world.machine(dead)))[0])
    world.arm.core.do("POST", world.machine(dead), None, "start")
    world.kill_kubelet(dead)
    app.run(60)
    assert any("evil.example" in entry.message for entry in app.journal())
    assert world.corruptions == []


def _parsed(resource_id: str) -> Any:
    from shared.model.resource_id import parse_resource_id

    return parse_resource_id(resource_id)


# Conditions of writes


def test_a_taint_is_refused_when_the_node_changed_since(world: World, keep: Callable[..., Keeper]) -> None:
    app = keep()
    node = app.kube.read("/api/v1/nodes/a")
    app.kube.patch("/api/v1/nodes/a", {"metadata": {"labels": {"x": "y"}}})
    with pytest.raises(ConflictError):
        writes.taint_node(app.kube, node, "ev-1", world.now)
    fresh = app.kube.read("/api/v1/nodes/a")
    writes.taint_node(app.kube, fresh, "ev-1", world.now)
    tainted = app.kube.read("/api/v1/nodes/a")
    assert [t["key"] for t in tainted["spec"]["taints"]] == ["node.kubernetes.io/out-of-service"]
    writes.untaint_node(app.kube, tainted)
    bare = app.kube.read("/api/v1/nodes/a")
    assert not bare["spec"].get("taints") and not (bare["metadata"].get("annotations") or {}).get(
        "kubekeeper.io/out-of-service"
    )


def test_an_attachment_of_another_uid_is_not_deleted(world: World, keep: Callable[..., Keeper]) -> None:
    app = keep()
    (found,) = world.kubernetes.objects(kinds.ATTACHMENTS)
    with pytest.raises(ConflictError):
        writes.delete_attachment(app.kube, found["metadata"]["name"], "another")
    assert len(world.kubernetes.objects(kinds.ATTACHMENTS)) == 1


def test_an_instance_of_a_uniform_set_is_not_reapplied(keep: Callable[..., Keeper]) -> None:
    instance = (
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/x"
        "/virtualMachines/1"
    )
    with pytest.raises(UnsafePlanError, match="uniform scale set"):
        writes.reapply(keep().arm, instance)


# Unmanaged disks


@pytest.mark.azurite
def test_the_lease_of_a_blob_whose_machine_is_gone_is_broken_after_a_snapshot(
    world: World, keep: Callable[..., Keeper], storage: str
) -> None:
    app, disk = keep(breakLeases=True), unmanaged_disk(world, storage, "a")
    app.page_blobs[VHD] = disk
    app.run(120)
    assert disk.properties()["leaseState"] == "leased" and app.events() == []  # its machine is there
    world.kill_kubelet("a")
    world.delete_machine("a")
    app.until(lambda: app.events("LeaseBroken"), within=300)
    assert disk.properties()["leaseState"] == "broken"
    (done,) = [entry for entry in app.journal() if entry.action == "BreakLease"]
    assert done.data["snapshot"] in done.message and done.data["evidence"]


@pytest.mark.azurite
def test_a_blob_that_was_written_meanwhile_keeps_its_lease(storage: str, world: World) -> None:
    disk = unmanaged_disk(world, storage, "a")
    with pytest.raises(ConflictError):
        disk.snapshot("0xOLD")
    with pytest.raises(ConflictError):
        disk.break_lease("0xOLD")
    assert disk.properties()["leaseState"] == "leased"


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/vhds/a.vhd",
        "http://account.blob.core.windows.net/vhds/a.vhd",
        "https://account.blob.core.windows.net/vhds/a.vhd?sig=x",
        "https://account.blob.core.windows.net.evil.example/vhds/a.vhd",
        "https://account.blob.core.windows.net:444/vhds/a.vhd",
    ],
)
def test_no_token_goes_to_a_strange_address_of_a_disk(url: str) -> None:
    with pytest.raises(SettingsError, match="is not a blob of an Azure storage account"):
        page_blob(url, {})


VHD = "https://account.blob.core.windows.net/vhds/data.vhd"


def unmanaged_disk(world: World, storage: str, node: str) -> PageBlob:
    """A page blob with a lease that never ends, and a volume and an attachment that name it."""
    service = BlobServiceClient.from_connection_string(storage)
    container = service.get_container_client(f"vhds-{uuid.uuid4().hex[:8]}")
    container.create_container()
    blob = container.get_blob_client("data.vhd")
    blob.create_page_blob(512, metadata={"MicrosoftAzureCompute_VMName": node})
    blob.acquire_lease(-1)
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "azureDisk": {"diskURI": VHD, "diskName": "data", "kind": "Dedicated"},
    }
    world.kubernetes.put(VOLUMES, {"metadata": {"name": "pv-vhd"}, "spec": spec})
    attachment = {
        "metadata": {"name": "vhd-attachment"},
        "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": "pv-vhd"}},
        "status": {"attached": True},
    }
    world.kubernetes.put(kinds.ATTACHMENTS, attachment)
    return PageBlob(VHD, blob)


# Proofs


def test_every_change_has_a_proof_that_an_independent_check_confirms(
    world: World, keep: Callable[..., Keeper]
) -> None:
    app, dead = keep(grace="0s"), world.pod("db-0").node
    world.kill_kubelet(dead)
    app.until(lambda: app.events("NodeUntainted"), within=400)
    proofs = {
        e.data["evidence"]: e.action
        for e in app.journal()
        if e.status == "Succeeded" and "evidence" in e.data
    }
    assert sorted(proofs.values()) == ["PowerOffVM", "TaintNode", "UntaintNode"]
    store = app.clients().blobs(CONTAINER)
    for identity in proofs:
        certificate = read_certificate(store.read(f"evidence/{CLUSTER}/disk-release/{identity}.json").data)
        assert verify(certificate).is_sound, verify(certificate)
    told = world.events(about="db-0") + world.events(about=dead) + world.events(about="pv-db-0")
    for identity in proofs:
        assert any(identity in line for line in told)


# Operations


@pytest.mark.parametrize(
    ("disk", "line"),
    [
        ("/subscriptions/x", "'/subscriptions/x' is not the resource id of a managed disk; expected /sub"),
        ("pv-nowhere", "cluster 'prod' has no PersistentVolume 'pv-nowhere'; see: kubectl get pv"),
        ("DISK:nowhere", "there is no disk 'nowhere' in Azure (404 ResourceNotFound); check its id"),
        ("DISK:os", "disk os is the operating-system disk of a; those are never touched"),
        ("DISK:strange", "disk strange is attached to z, which is no node of this cluster; not touched"),
        ("DISK:free", "disk free is attached to no VM; there is nothing to release"),
        ("pv-db-0", "disk db-0 is attached to {node}, where it belongs; a disk in use is never released"),
    ],
)
def test_a_release_that_cannot_be_is_refused_in_one_line(
    world: World, keep: Callable[..., Keeper], disk: str, line: str
) -> None:
    world.arm.add_vm("z", disks=[world.arm.add_disk("strange")])
    world.arm.add_disk("free")
    if disk == "DISK:os":
        machine = world.arm.core.state.find(world.machine("a"))
        disk = machine.body["properties"]["storageProfile"]["osDisk"]["managedDisk"]["id"]
        line = line.replace("disk os", f"disk {disk.rpartition('/')[2]}")
    elif disk.startswith("DISK:"):
        disk = world.arm.id_of(DISKS, disk.removeprefix("DISK:"))
    app = keep()
    identity = app.operate("release-disk", disk=disk)
    app.run(5)
    record = app.clients().operations.read(identity)
    assert record.is_over and "\n" not in record.message
    assert record.message.startswith(line.format(node=world.pod("db-0").node)), record.message
    assert app.writes() == [] and app.poisoned == []


def test_a_disk_that_may_not_be_read_is_not_gone(world: World, keep: Callable[..., Keeper]) -> None:
    world.arm.core.denied.append("Microsoft.Compute/disks/read")
    app = keep()
    identity = app.operate("release-disk", disk=world.arm.id_of(DISKS, "db-0"))
    app.run(5)
    record = app.clients().operations.read(identity)
    assert record.state == "Failed" and "cannot be read (403 AuthorizationFailed)" in record.message


def test_a_disk_is_released_on_request_with_approval(world: World, keep: Callable[..., Keeper]) -> None:
    app, dead = keep(fence="approve"), world.pod("db-0").node
    world.kill_kubelet(dead)
    app.run(200)
    assert app.writes() == []
    identity = app.operate("release-disk", disk="pv-db-0", approve=True)
    app.run(5)
    app.until(lambda: app.clients().operations.read(identity).is_over, within=600)
    record = app.clients().operations.read(identity)
    assert record.state == "Succeeded" and record.message.startswith(f"disk db-0 is free of VM {dead} since")
    assert len(record.outcomes[0]["data"]["proofs"]) == 2  # of the fence and of the taint
    assert world.corruptions == []


def test_an_approval_names_a_node_that_exists(keep: Callable[..., Keeper]) -> None:
    app = keep()
    identity = app.operate("approve", automation="disk-release", subject="nowhere")
    app.run(200)
    message = app.clients().operations.read(identity).message
    assert message == "cluster 'prod' has no node 'nowhere'; see: kubectl get nodes"

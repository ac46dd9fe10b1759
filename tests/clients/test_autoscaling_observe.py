"""Looking: what is asked of Kubernetes and Azure, what is remembered, and what a saved look says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from sandbox.asgi import Fault, on
from sandbox.scenario import World
from shared.autoscaling import observation as files
from shared.autoscaling.azure import BUSY, NOW, QUIET, AzureReader, forget_pools
from shared.autoscaling.events import Notice, tell, write_status
from shared.autoscaling.facts import PoolKind, read_facts
from shared.autoscaling.observe import glance, observe, place_of
from shared.autoscaling.slim import slim
from shared.errors import ForbiddenError
from shared.model.snapshot import AzureReading
from tests.clients.test_autoscaling_pools import add_availability_set
from tests.scenarios.autoscaling_world import SIZE, App

TAGS = {"min": "1", "max": "9"}


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def reads(world: World, path: str = "") -> int:
    return world.arm.recorder.count("GET", path)


def place(app: App) -> Any:
    return place_of(app.cluster, app.clients, app.world.now)


def test_a_glance_counts_pods_that_wait_and_may_have_a_node(world: World) -> None:
    app = App(world)
    world.add_pod("waits", cpu="1")
    world.add_pod("gated", cpu="1", schedulingGates=[{"name": "later"}])
    world.add_pod("going", cpu="1")
    world.delete_pod("going", grace=0)
    world.advance(1)
    before = len(world.kubernetes.requests)
    waiting = glance(app.clients.kube(app.cluster))
    assert waiting == {world.pod("waits").document["metadata"]["uid"]}
    assert len(world.kubernetes.requests) == before + 1


def test_uniform_sets_that_are_complete_cost_one_list(world: World) -> None:
    world.add_scale_set("a", 2, size=SIZE, tags=TAGS)
    world.add_scale_set("b", 1, size=SIZE, tags=TAGS)
    app = App(world)
    state: dict[str, Any] = {"azure": {}}
    observe(place(app), state, BUSY)
    assert reads(world, "virtualMachineScaleSets") == 1
    assert world.arm.recorder.of("GET", "virtualMachineScaleSets")[0].path.endswith("virtualMachineScaleSets")
    before = reads(world)
    observe(place(app), state, QUIET)
    assert reads(world) == before, "everything is remembered"


def test_machines_are_listed_where_size_and_nodes_differ(world: World) -> None:
    world.add_scale_set("a", 2, size=SIZE, tags=TAGS)
    whole = world.add_scale_set("b", 2, size=SIZE, tags=TAGS)
    world.delete_node(next(name for name in world.nodes() if name.startswith("a")))
    app = App(world)
    found = observe(place(app), {"azure": {}}, NOW)
    pools = {pool.name: pool for pool in read_facts(found.azure, place(app).policy).pools}
    assert (pools["a"].machines_known, pools["b"].machines_known) == (True, False)
    assert len(pools["a"].machines) == 2
    assert reads(world, f"{whole}/virtualMachines") == 0


def test_a_failed_reading_is_no_fact_and_not_remembered(world: World) -> None:
    world.add_scale_set("a", 2, size=SIZE, tags=TAGS)
    app = App(world)
    state: dict[str, Any] = {"azure": {}}
    world.arm.core.throttle(60, "GET", "virtualMachineScaleSets")
    found = observe(place(app), state, BUSY)
    failed = [one for one in found.azure if one.status != 200]
    assert [one.status for one in failed] == [429]
    assert read_facts(found.azure, place(app).policy).pools == ()
    assert not any("virtualMachineScaleSets" in key for key in state["azure"])
    world.advance(61)
    assert len(read_facts(observe(place(app), state, BUSY).azure, place(app).policy).pools) == 1


def test_a_saved_look_reads_the_same(world: World) -> None:
    world.add_scale_set("a", 2, size=SIZE, tags=TAGS)
    world.add_deployment("web", replicas=3, cpu="300m")
    world.advance(5)
    app = App(world)
    found = observe(place(app), {"azure": {}, "manual": {"a": {"size": 3}}}, NOW, keep=True)
    again = files.load(files.save(found), "test")
    assert again.kubernetes == found.kubernetes
    assert again.azure == found.azure
    assert again.state == {"manual": {"a": {"size": 3}}}
    assert msgspec.json.decode(files.save(found))["kubernetes"]["nodes"]["kind"] == "NodeList"


def test_a_list_whose_moment_is_forgotten_is_read_again(world: World) -> None:
    app = App(world)
    expired = {"kind": "Status", "reason": "Expired", "message": "too old", "code": 410}
    world.kubernetes.faults.append(Fault(on("GET", "/api/v1/pods"), status=410, body=expired))
    observe(place(app), {"azure": {}}, NOW)
    assert sum(one.path == "/api/v1/pods" for one in world.kubernetes.requests) == 2


@pytest.mark.parametrize("kind", ["uniform", "flexible", "set", "aks"])
def test_what_is_remembered_says_the_same_of_pools_as_what_was_answered(world: World, kind: str) -> None:
    more: dict[str, Any] = {}
    if kind == "set":
        world.enrol(add_availability_set(world.arm, 2))
    elif kind == "aks":
        more = {"managedCluster": world.add_cluster("prod", system=1, agents=2)}
    else:
        world.add_scale_set("a", 2, size=SIZE, tags=TAGS, flexible=kind == "flexible", zones=("1", "2"))
    app = App(world, **more)
    whole = observe(place(app), {"azure": {}}, NOW, keep=True)
    small = [
        msgspec.structs.replace(one, body=slim(one.id, one.body or {})) if one.status == 200 else one
        for one in whole.azure
    ]
    policy = place(app).policy
    facts = read_facts(small, policy)
    assert facts == read_facts(whole.azure, policy)
    assert facts.pools
    assert all(facts.size(pool) for pool in facts.pools)
    assert len(msgspec.json.encode(small)) < len(msgspec.json.encode(list(whole.azure)))


def test_an_empty_set_is_described_by_what_is_remembered_of_it(world: World) -> None:
    pool = add_availability_set(world.arm, 0)
    app = App(world)
    machine = {"tags": {"poolName": "agentpool1"}, "properties": {"hardwareProfile": {"vmSize": SIZE}}}
    state = {"azure": {}, "pools": {pool.lower(): {"model": {"machine": machine}}}}
    found = observe(place(app), state, NOW)
    (known,) = read_facts(found.azure, place(app).policy).pools
    assert (known.name, known.size, known.kind) == ("agentpool1", SIZE, PoolKind.AVAILABILITY_SET)


def test_sizes_are_read_again_for_a_new_size_only(world: World) -> None:
    world.add_scale_set("a", 1, size=SIZE, tags=TAGS)
    app = App(world)
    state: dict[str, Any] = {"azure": {}}
    observe(place(app), state, BUSY)
    observe(place(app), state, BUSY)
    assert reads(world, "/skus") == 1
    world.add_scale_set("b", 1, size="Standard_F8s_v2", tags=TAGS)
    forget_pools(state["azure"])
    observe(place(app), state, BUSY)
    assert reads(world, "/skus") == 2
    kept = next(body for key, body in state["azure"].items() if "/skus" in key)
    assert sorted(one["name"] for one in kept["body"]["value"]) == [SIZE, "Standard_F8s_v2"]


def test_pools_of_a_group_that_is_forbidden_say_so(world: World) -> None:
    app = App(world)
    world.arm.core.denied.append("Microsoft.Compute/virtualMachineScaleSets/read")
    reader = AzureReader(app.clients.arm, app.cluster.azure, place(app).policy, {}, world.now)  # type: ignore[arg-type]
    assert reader.pools(NOW) == ()
    codes = {one.code for one in reader.readings.values() if one.status == 403}
    assert codes == {"AuthorizationFailed"}
    assert isinstance(next(iter(reader.readings.values())), AzureReading)


# Telling


def notice(message: str, **more: Any) -> Notice:
    known = {"kind": "Pod", "namespace": "default", "name": "web", "uid": "u1", "reason": "NotTriggerScaleUp"}
    return Notice(**{**known, **more, "message": message})


def test_an_event_is_written_once_until_there_is_something_else_to_say(world: World) -> None:
    kube = App(world).clients.kube(App(world).cluster)
    said = tell(kube, [notice("needs 3 more cores")], {}, world.now)
    said = tell(kube, [notice("needs 2 more cores")], said, world.now)
    assert len(world.events()) == 1, "figures alone are nothing new"
    world.advance(1)
    said = tell(kube, [notice("no pool has a GPU")], said, world.now)
    assert world.events() == ["NotTriggerScaleUp: needs 3 more cores", "NotTriggerScaleUp: no pool has a GPU"]
    assert tell(kube, [], said, world.now) == {}, "objects that are gone are forgotten"


def test_an_event_in_a_namespace_that_is_gone_is_nobodys_loss(world: World) -> None:
    kube = App(world).clients.kube(App(world).cluster)
    refusal = {"kind": "Status", "reason": "NotFound", "message": "no namespace", "code": 404}
    world.kubernetes.faults.append(Fault(on("POST", "/events"), status=404, body=refusal))
    tell(kube, [notice("x")], {}, world.now)
    refusal = {"kind": "Status", "reason": "Forbidden", "message": "no", "code": 403}
    world.kubernetes.faults.append(Fault(on("POST", "/events"), status=403, body=refusal))
    with pytest.raises(ForbiddenError):
        tell(kube, [notice("x", namespace="", kind="Node")], {}, world.now)


def test_the_status_is_written_when_it_changes(world: World) -> None:
    kube = App(world).clients.kube(App(world).cluster)
    digest = write_status(kube, {"pools": 1}, "", world.now)
    before = len(world.kubernetes.requests)
    assert write_status(kube, {"pools": 1}, digest, world.now) == digest
    assert len(world.kubernetes.requests) == before
    assert write_status(kube, {"pools": 2}, digest, world.now) != digest
    found = world.client().get("/api/v1/namespaces/kube-system/configmaps/kubekeeper-status")
    assert msgspec.json.decode(found["data"]["autoscaling"]) == {"pools": 2}

"""Acting, step by step, over the local Azure and Kubernetes in simulated time; plans are the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from sandbox.arm.capacity import Shortage
from sandbox.arm.core import Ending
from sandbox.asgi import Fault, on
from sandbox.scenario import World
from shared.model.plan import Action, ActionKind, Outcome, Status
from tests.clients.test_autoscaling_pools import add_availability_set
from tests.scenarios.autoscaling_world import SIZE, App, Crash

TAGS = {"min": "0", "max": "100"}


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.arm.core.operation_seconds = 60
        yield world


def add_pool(world: World, name: str = "agents", capacity: int = 2, **options: Any) -> str:
    return world.add_scale_set(name, capacity, size=SIZE, tags=TAGS, **options)


def up(pool: str, was: int, to: int) -> Action:
    return Action(
        kind=ActionKind.SCALE_UP,
        target=pool.rpartition("/")[2],
        reason="PendingPods",
        message="grow",
        parameters={"pool": pool.lower(), "from": was, "to": to},
    )


def down(pool: str, *nodes: str, machines: tuple[str, ...] = ()) -> Action:
    return Action(
        kind=ActionKind.SCALE_DOWN if nodes else ActionKind.DELETE_INSTANCE,
        target=pool.rpartition("/")[2],
        reason="Unneeded" if nodes else "Failed",
        message="nothing needs it",
        parameters={"pool": pool.lower(), "nodes": list(nodes), "machines": list(machines)},
    )


def nodes_of(world: World, prefix: str = "agents") -> list[str]:
    return sorted(name for name in world.nodes() if name.startswith(prefix))


def follow(app: App, seconds: float, every: float = 15) -> list[Outcome]:
    found: list[Outcome] = []
    for _ in range(int(seconds / every)):
        app.world.advance(every)
        found += app.follow()
    return found


# Growing


def test_capacity_is_asked_for_once_and_followed_to_its_end(world: World) -> None:
    pool, app = add_pool(world), App(world)
    (outcome,) = app.carry_out(up(pool, 2, 5))
    assert outcome.status is Status.SUCCEEDED
    assert app.state["growths"][pool.lower()]["to"] == 5
    assert [one["count"] for one in app.state["additions"]] == [3]
    outcomes = follow(app, 120)
    assert [one.data["event"] for one in outcomes] == ["ScaleUpEnded"]
    assert "growths" not in app.state
    assert len(nodes_of(world)) == 5
    assert world.arm.recorder.count("PATCH") == 1


def test_a_stale_reading_of_48_against_86_leads_to_nothing(world: World) -> None:
    pool, app = add_pool(world, capacity=86), App(world)
    (outcome,) = app.carry_out(up(pool, 48, 53))
    assert outcome.status is Status.SKIPPED
    assert (
        "planned for with 48 machines and has 86" in outcome.message
        or "86 machines by now" in outcome.message
    )
    assert app.writes() == []


def test_a_capacity_below_what_runs_is_never_built_upon(world: World) -> None:
    """kubernetes/autoscaler#9452: the API briefly says 0. What runs is counted instead."""
    pool, app = add_pool(world, capacity=3), App(world)
    say_capacity(world, pool, 0)
    (outcome,) = app.carry_out(up(pool, 0, 3))
    assert outcome.status is Status.SKIPPED, outcome.message
    (outcome,) = app.carry_out(up(pool, 0, 4))
    assert outcome.status is Status.SUCCEEDED, outcome.message
    world.advance(90)
    assert app.capacity(pool) == 4


def test_a_capacity_that_nothing_confirms_leads_to_nothing(world: World) -> None:
    pool, app = add_pool(world, capacity=3), App(world)
    say_capacity(world, pool, 0)
    listed = Fault(on("GET", f"{pool}/virtualMachines"), status=200, body={"value": []}, times=9)
    world.arm.fault(listed)
    (outcome,) = app.carry_out(up(pool, 0, 1))
    assert outcome.status is Status.SKIPPED
    assert "not believed" in outcome.message
    assert app.writes() == []


def say_capacity(world: World, pool: str, capacity: int) -> None:
    found = world.arm.core.state.find(pool)
    body = {**found.body, "sku": {**found.body["sku"], "capacity": capacity}}
    world.arm.core.state.store(_id(pool), body)


def _id(pool: str) -> Any:
    from shared.model.resource_id import parse_resource_id

    return parse_resource_id(pool)


def test_a_change_between_the_fresh_read_and_the_write_is_not_overwritten(world: World) -> None:
    pool, app = add_pool(world), App(world)
    world.arm.changing(lambda: world.resize(pool, 9), "PATCH", "virtualMachineScaleSets")
    (outcome,) = app.carry_out(up(pool, 2, 5))
    assert outcome.status is Status.SKIPPED
    world.advance(90)
    assert app.capacity(pool) == 9
    assert "pools" not in app.state, "nothing is wrong with the pool"


@pytest.mark.parametrize("code", ["throttled", "unavailable"])
def test_a_fresh_read_that_fails_never_leads_to_a_write(world: World, code: str) -> None:
    pool, app = add_pool(world), App(world)
    if code == "throttled":
        body = {"error": {"code": "TooManyRequests", "message": "slow down"}}
        fault = Fault(on("GET", pool), status=429, body=body, headers={"Retry-After": "77"}, times=9, skip=0)
    else:
        fault = Fault(on("GET", pool), lose_answer=True, times=9)
    work = app.carry_out  # observed before the fault
    observed = up(pool, 2, 5)
    world.arm.recorder.faults.append(fault)
    fault.matches = lambda method, path: method == "GET" and path.lower() == pool.lower()
    (outcome,) = work(observed)
    assert outcome.status is Status.SKIPPED
    assert app.writes() == []
    assert "growths" not in app.state


def test_a_failed_first_pool_still_scales_the_second(world: World) -> None:
    first, second, app = add_pool(world, "dear"), add_pool(world, "cheap"), App(world)
    world.arm.fault(Fault(on("PATCH", first), status=500, body={"error": {"code": "X", "message": "no"}}))
    world.arm.core.denied.append("Microsoft.Compute/nothing")
    outcomes = app.carry_out(up(first, 2, 3), up(second, 2, 4))
    assert [one.status for one in outcomes] == [Status.SKIPPED, Status.SUCCEEDED]
    world.advance(90)
    assert app.capacity(second) == 4


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda world: world.arm.capacity.quota.update(cores=4), "Quota"),
        (lambda world: world.arm.capacity.shortages.append(Shortage(code="SkuNotAvailable")), "StockOut"),
        (lambda world: world.arm.core.throttle(120, "PATCH"), "Throttled"),
    ],
)
def test_a_refusal_rests_the_pool_by_its_kind(world: World, break_it: Any, reason: str) -> None:
    pool, app = add_pool(world), App(world)
    break_it(world)
    (outcome,) = app.carry_out(up(pool, 2, 5))
    assert outcome.status is Status.FAILED
    assert outcome.data["final"] is True, "delivering again would not help; the next pass chooses anew"
    assert app.state["pools"][pool.lower()]["backoff"]["reason"] == reason
    assert "growths" not in app.state
    assert "additions" not in app.state
    world.advance(90)
    assert app.capacity(pool) == 2


def test_an_allocation_that_fails_later_rests_the_pool(world: World) -> None:
    pool, app = add_pool(world), App(world)
    world.arm.capacity.shortages.append(Shortage(code="ZonalAllocationFailed"))
    app.carry_out(up(pool, 2, 4))
    (outcome,) = follow(app, 90)
    assert outcome.status is Status.FAILED
    backoff = app.state["pools"][pool.lower()]["backoff"]
    assert (backoff["reason"], backoff["failures"]) == ("StockOut", 1)


def test_failures_in_a_row_double_the_rest_and_success_ends_it(world: World) -> None:
    pool, app = add_pool(world), App(world)
    world.arm.capacity.quota["cores"] = 4
    ends = []
    for _ in range(3):
        app.carry_out(up(pool, 2, 5))
        ends.append(app.state["pools"][pool.lower()]["backoff"]["until"])
    assert [end[11:16] for end in ends] == ["10:15", "10:30", "11:00"]
    world.arm.capacity.quota["cores"] = 400
    app.carry_out(up(pool, 2, 3))
    follow(app, 90)
    assert "pools" not in app.state


def test_a_lost_answer_is_found_out_by_looking(world: World) -> None:
    pool, app = add_pool(world), App(world)
    world.arm.fault(Fault(on("PATCH", pool), lose_answer=True))
    (outcome,) = app.carry_out(up(pool, 2, 5))
    assert outcome.status is Status.SKIPPED
    assert pool.lower() in app.state["growths"]
    (found,) = app.follow()
    assert "it was carried out" in found.message
    assert world.arm.recorder.count("PATCH") == 1


def test_a_request_that_never_arrived_is_given_up(world: World) -> None:
    pool, app = add_pool(world), App(world)
    broken = Fault(on("PATCH", pool), status=503, body={"error": {"code": "ServerBusy", "message": "later"}})
    world.arm.fault(broken)
    app.carry_out(up(pool, 2, 5))
    (found,) = app.follow()
    assert "not carried out" in found.message
    assert "growths" not in app.state
    (outcome,) = app.carry_out(up(pool, 2, 5))
    assert outcome.status is Status.SUCCEEDED


def test_a_preempted_operation_is_no_failure_of_the_pool(world: World) -> None:
    pool, app = add_pool(world), App(world)
    app.carry_out(up(pool, 2, 4))
    world.resize(pool, 6)
    outcomes = follow(app, 90)
    assert [one.status for one in outcomes] == [Status.SUCCEEDED]
    assert "took over" in outcomes[0].message
    assert "pools" not in app.state


# Removing


def test_a_node_is_drained_and_exactly_its_machine_deleted(world: World) -> None:
    pool, app = add_pool(world, capacity=3), App(world)
    world.add_deployment("web", replicas=6, cpu="100m")
    world.advance(10)
    victim = nodes_of(world)[1]
    kept = [name for name in nodes_of(world) if name != victim]
    app.carry_out(down(pool, victim))
    assert world.node(victim).document["spec"]["unschedulable"] is True
    assert "kubekeeper.io/to-be-deleted:NoSchedule" in world.node(victim).taints
    outcomes = follow(app, 180)
    assert outcomes[-1].data["event"] == "ScaledDown"
    assert nodes_of(world) == kept
    assert app.capacity(pool) == 2
    assert all(pod.is_running for pod in world.pods("web"))
    assert len(world.pods("web")) == 6
    assert app.broken == []
    assert "draining" not in app.state


def test_a_budget_is_respected_until_it_allows(world: World) -> None:
    pool, app = add_pool(world, capacity=3), App(world)
    world.add_deployment("web", replicas=3, cpu="1500m")
    app.budget("web", minAvailable=3)
    world.advance(10)
    victim = nodes_of(world)[0]
    app.carry_out(down(pool, victim))
    follow(app, 120)
    assert victim in world.nodes()
    assert "DisruptionBudget" in app.state["draining"][victim]["message"]
    assert "DELETE" not in "".join(app.writes())
    assert app.writes() == []


def test_a_drain_that_takes_too_long_is_given_up_cleanly(world: World) -> None:
    pool = add_pool(world, capacity=3)
    app = App(world, scaleDown={"drainTimeout": "2m"})
    world.add_deployment("web", replicas=3, cpu="1500m")
    app.budget("web", minAvailable=3)
    world.advance(10)
    victim = nodes_of(world)[0]
    app.carry_out(down(pool, victim))
    outcomes = follow(app, 150)
    assert [one.data["event"] for one in outcomes] == ["ScaleDownGivenUp"]
    assert outcomes[0].data["final"] is True
    assert not world.node(victim).document["spec"].get("unschedulable")
    assert world.node(victim).taints == []
    assert app.state["removalFailedAt"]
    assert app.writes() == []


@pytest.mark.parametrize("objection", ["uncordon", "annotation"])
def test_an_objection_during_the_drain_ends_it(world: World, objection: str) -> None:
    pool, app = add_pool(world, capacity=3), App(world)
    world.add_deployment("web", replicas=3, cpu="1500m")
    app.budget("web", minAvailable=3)
    world.advance(10)
    victim = nodes_of(world)[0]
    app.carry_out(down(pool, victim))
    if objection == "uncordon":
        world.cordon(victim, off=True)
    else:
        change = {
            "metadata": {"annotations": {"cluster-autoscaler.kubernetes.io/scale-down-disabled": "true"}}
        }
        app.clients.kube(app.cluster).patch(f"/api/v1/nodes/{victim}", change)
    outcomes = follow(app, 15)
    assert [one.data["event"] for one in outcomes] == ["ScaleDownGivenUp"]
    world.advance(5)
    assert world.node(victim).taints == []
    assert app.writes() == []


def test_one_batch_never_passes_below_the_minimum(world: World) -> None:
    world.arm.core.operation_seconds = 5
    pool = world.add_scale_set("agents", 4, size=SIZE, tags={"min": "3", "max": "9"})
    app = App(world)
    outcomes = app.carry_out(down(pool, *nodes_of(world)))
    outcomes += follow(app, 120)
    assert app.capacity(pool) == 3
    assert len(nodes_of(world)) == 3
    given_up = [one for one in outcomes if one.data.get("event") == "ScaleDownGivenUp"]
    assert len(given_up) == 3
    assert not any(world.node(name).document["spec"].get("unschedulable") for name in nodes_of(world))


def test_a_deletion_whose_answer_is_lost_is_not_repeated_in_vain(world: World) -> None:
    pool, app = add_pool(world, capacity=3), App(world)
    world.arm.fault(Fault(on("POST", "/delete"), lose_answer=True))
    victim = nodes_of(world)[0]
    app.carry_out(down(pool, victim))
    outcomes = follow(app, 180)
    assert outcomes[-1].data["event"] == "ScaledDown"
    assert world.arm.recorder.count("POST", "/delete") == 1
    assert app.capacity(pool) == 2


def test_a_deletion_that_fails_later_is_asked_for_again(world: World) -> None:
    pool, app = add_pool(world, capacity=3), App(world)
    world.arm.core.endings.append(Ending("virtualMachineScaleSets/deleteInstances"))
    victim = nodes_of(world)[0]
    app.carry_out(down(pool, victim))
    follow(app, 300)
    assert world.arm.recorder.count("POST", "/delete") == 2
    assert victim not in world.nodes()
    assert "draining" not in app.state


def test_a_machine_that_never_became_a_node_is_deleted(world: World) -> None:
    pool, app = add_pool(world), App(world)
    world.arm.capacity.shortages.append(Shortage(code="AllocationFailed", times=1))
    app.carry_out(up(pool, 2, 3))
    follow(app, 90)
    (failed,) = [
        one
        for one in app.work().driver("ScaleSet", pool, "agents").machines(app.clients.arm, pool)
        if one.state == "Failed"
    ]
    app.carry_out(down(pool, machines=(failed.id,)))
    outcomes = follow(app, 120)
    assert outcomes[-1].action.kind is ActionKind.DELETE_INSTANCE
    assert app.capacity(pool) == 2
    assert world.arm.core.state.find(pool).body["sku"]["capacity"] == 2


def test_a_lost_node_goes_although_its_pods_cannot_be_confirmed_gone(world: World) -> None:
    pool, app = add_pool(world, capacity=3), App(world)
    world.add_deployment("web", replicas=3, cpu="1500m")
    world.advance(10)
    victim = nodes_of(world)[0]
    world.crash(victim)
    world.advance(400)
    app.carry_out(down(pool, victim))
    follow(app, 180)
    assert victim not in world.nodes()
    assert app.broken == []
    assert len([pod for pod in world.pods("web") if pod.is_running]) >= 2


# Availability sets: what a machine leaves behind


def leftovers(world: World) -> list[str]:
    state = world.arm.core.state
    found = [
        one.id.rpartition("/")[2]
        for kind in ("Microsoft.Network/networkInterfaces", "Microsoft.Network/publicIPAddresses")
        for one in state.of_type(kind)
    ]
    found += [one.id.rpartition("/")[2] for one in state.of_type("Microsoft.Compute/disks")]
    return sorted(found)


def test_a_machine_of_a_set_goes_with_all_it_had(world: World) -> None:
    pool = add_availability_set(world.arm, 3)
    world.enrol(pool)
    app, before = App(world), leftovers(world)
    victim = "k8s-agentpool1-16334397-1"
    app.carry_out(down(pool, victim))
    follow(app, 300)
    gone = set(before) - set(leftovers(world))
    assert {name.partition("_")[0] for name in gone} == {
        "k8s-agentpool1-16334397-nic-1",
        "k8s-agentpool1-16334397-ip-1",
        "virtualMachines",
    } or len(gone) == 3
    assert "cleanups" not in app.state
    assert victim not in world.nodes()


def test_a_deletion_that_is_refused_for_one_machine_of_a_set_is_not_taken_for_all(world: World) -> None:
    pool = add_availability_set(world.arm, 3)
    world.enrol(pool)
    app, before = App(world), leftovers(world)
    refusal = {"error": {"code": "Conflict", "message": "conflict with another request"}}
    world.arm.fault(Fault(on("DELETE", "/virtualMachines/"), status=409, body=refusal, skip=1))
    victims = [f"k8s-agentpool1-16334397-{number}" for number in (1, 2)]
    app.carry_out(down(pool, *victims))
    assert [one["phase"] for one in app.state["draining"].values() if one.get("phase")] == ["Deleting"]
    follow(app, 600)
    assert nodes_of(world, "k8s-") == ["k8s-agentpool1-16334397-0"]
    assert len(before) - len(leftovers(world)) == 6
    assert app.broken == []


def test_a_machine_that_is_being_deleted_already_is_followed_and_not_given_up(world: World) -> None:
    pool = world.add_scale_set("agents", 2, size=SIZE, tags={"min": "1", "max": "9"})
    app = App(world)
    victim = nodes_of(world)[0]
    machine = world.machine(victim)
    world.arm.core.do("DELETE", machine, at_once=False)
    outcomes = app.carry_out(down(pool, victim))
    outcomes += follow(app, 180)
    assert [one.data["event"] for one in outcomes] == ["ScaleDownBegun", "ScaledDown"]
    assert world.arm.recorder.count("POST", "/delete") == 0
    assert len(nodes_of(world)) == 1


def test_an_interface_that_cannot_be_deleted_is_cleaned_up_by_a_later_run(world: World) -> None:
    pool = add_availability_set(world.arm, 2)
    world.enrol(pool)
    app, before = App(world), leftovers(world)
    refusal = {"error": {"code": "InternalServerError", "message": "try again"}}
    world.arm.fault(Fault(on("DELETE", "/networkInterfaces/"), status=500, body=refusal, times=3))
    app.carry_out(down(pool, "k8s-agentpool1-16334397-1"))
    follow(app, 150)
    assert len(app.state["cleanups"]) >= 1, "the interface stands in the ledger"
    follow(app, 300)
    assert "cleanups" not in app.state
    assert len(before) - len(leftovers(world)) == 3


@pytest.mark.parametrize("step", range(1, 60, 3))
def test_whatever_step_a_worker_dies_at_nothing_leaks(world: World, step: int) -> None:
    pool = add_availability_set(world.arm, 2)
    world.enrol(pool)
    app, before = App(world), leftovers(world)
    first = app.steps
    app.crash_at = lambda n: ("before" if step % 2 else "after") if n == first + step else ""
    action = down(pool, "k8s-agentpool1-16334397-1")
    with suppress(Crash):
        app.carry_out(action)
    for _ in range(30):
        world.advance(15)
        try:
            app.follow()
        except Crash:
            continue
    others = [name for name in before if "-1_" not in name and not name.endswith("-1")]
    if "k8s-agentpool1-16334397-1" not in world.nodes():
        assert leftovers(world) == others
    else:
        assert leftovers(world) == before
        assert not world.node("k8s-agentpool1-16334397-1").document["spec"].get("unschedulable")
    assert "draining" not in app.state
    assert "cleanups" not in app.state
    assert app.broken == []


def test_a_set_grows_and_its_machines_become_nodes(world: World) -> None:
    pool = add_availability_set(world.arm, 1)
    world.enrol(pool)
    app = App(world)
    (outcome,) = app.carry_out(up(pool, 1, 3))
    assert outcome.status is Status.SUCCEEDED, outcome.message
    follow(app, 180)
    assert nodes_of(world, "k8s-") == [f"k8s-agentpool1-16334397-{n}" for n in range(3)]
    assert app.state["pools"][pool.lower()]["model"]["nextNumber"] == 3


def test_a_list_that_lags_behind_new_machines_of_a_set_is_not_built_upon(world: World) -> None:
    pool = add_availability_set(world.arm, 1)
    world.enrol(pool)
    app = App(world)
    world.advance(60)
    app.carry_out(up(pool, 1, 3))
    world.advance(90)
    app.follow()
    world.arm.core.read_stale(100, "availabilitySets", times=4)
    (outcome,) = app.carry_out(up(pool, 1, 3))
    assert outcome.status is Status.SKIPPED
    assert "does not list k8s-agentpool1-16334397-1 yet" in outcome.message
    assert world.arm.recorder.count("PUT", "/virtualMachines/") == 2


def test_an_interface_made_for_a_machine_that_never_came_is_deleted(world: World) -> None:
    pool = add_availability_set(world.arm, 1)
    world.enrol(pool)
    app, before = App(world), leftovers(world)
    refusal = {"error": {"code": "SkuNotAvailable", "message": "none left"}}
    world.arm.fault(Fault(on("PUT", "/virtualMachines/"), status=409, body=refusal))
    (outcome,) = app.carry_out(up(pool, 1, 2))
    assert outcome.data["reason"] == "StockOut"
    follow(app, 300)
    assert leftovers(world) == before
    assert "cleanups" not in app.state


# Economy


def test_watching_an_operation_costs_one_read_a_look(world: World) -> None:
    pool, app = add_pool(world), App(world)
    app.carry_out(up(pool, 2, 5))
    before = app.reads()
    app.follow()
    assert app.reads() == before, "asked a moment ago"
    world.advance(20)
    app.follow()
    assert app.reads() == before + 1

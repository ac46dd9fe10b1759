"""Worked scenarios with the app's own plans, over every kind of node pool, in simulated time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandbox.arm.capacity import Shortage
from sandbox.asgi import Fault, on
from sandbox.scenario import World
from tests.clients.test_autoscaling_pools import add_availability_set
from tests.scenarios.autoscaling_world import SIZE, App

TAGS = {"min": "0", "max": "20"}
QUICK = {"scaleDown": {"unneededTime": "2m", "delayAfterAdd": "1m"}}
Make = Callable[[World], tuple[str, dict[str, Any]]]


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.arm.core.operation_seconds = 60
        yield world


def uniform(world: World) -> tuple[str, dict[str, Any]]:
    world.add_scale_set("agents", 1, size=SIZE, tags=TAGS)
    return "agents", {}


def flexible(world: World) -> tuple[str, dict[str, Any]]:
    world.add_scale_set("agents", 1, size=SIZE, tags=TAGS, flexible=True)
    return "agents", {}


def availability_set(world: World) -> tuple[str, dict[str, Any]]:
    world.enrol(add_availability_set(world.arm, 1))
    return "k8s-agentpool1", {}


def aks(world: World) -> tuple[str, dict[str, Any]]:
    cluster = world.add_cluster("prod", system=1, agents=1)
    limits = [{"name": "system", "min": 1, "max": 1}, {"name": "agents", "min": 0, "max": 20}]
    return "aks-agents", {"managedCluster": cluster, "pools": limits}


def nodes(world: World, prefix: str) -> list[str]:
    return sorted(name for name in world.nodes() if name.startswith(prefix))


def burst(world: World, app: App, replicas: int, **pod: Any) -> None:
    world.add_deployment("web", replicas=replicas, **{"cpu": "1500m", **pod})
    world.advance(1)
    app.nudge()


@pytest.mark.parametrize("make", [uniform, flexible, availability_set, aks])
def test_every_kind_of_pool_grows_and_shrinks_with_its_pods(make: Make, world: World) -> None:
    prefix, more = make(world)
    app = App(world, **QUICK, **more)
    app.run(90)
    burst(world, app, 4 if make is not aks else 10)
    app.until(lambda: all(pod.is_running for pod in world.pods("web")), within=600)
    most = len(nodes(world, prefix))
    assert most >= 3
    world.scale("web", 1)
    app.until(lambda: len(nodes(world, prefix)) <= 1, within=2400)
    app.until(lambda: all(pod.is_running for pod in world.pods("web")), within=60)
    assert app.broken == []
    app.run(300)
    for part in ("growths", "draining", "cleanups"):
        assert not app.state.get(part), app.describe()


@pytest.mark.parametrize("make", [uniform, flexible, availability_set, aks])
def test_every_kind_of_pool_scales_from_zero(make: Make, world: World) -> None:
    prefix, more = make(world)
    app = App(world, **QUICK, **more)
    app.run(90)
    app.until(lambda: not nodes(world, prefix), within=1800)
    app.run(300)
    burst(world, app, 2)
    app.until(lambda: sum(pod.is_running for pod in world.pods("web")) == 2, within=600)
    assert app.broken == []


def test_a_stock_out_found_later_makes_the_next_pool_be_asked_within_a_minute(world: World) -> None:
    """S29, kubernetes/autoscaler#8323: 15 minutes there."""
    first = world.add_scale_set("first", 1, size="Standard_D2s_v5", tags=TAGS)
    second = world.add_scale_set("second", 1, size="Standard_F8s_v2", tags=TAGS)
    app = App(world, prices={"Standard_D2s_v5": 0.1, "Standard_F8s_v2": 0.4})
    app.run(90)
    world.arm.capacity.shortages.append(Shortage(code="ZonalAllocationFailed", size="Standard_D2s_v5"))
    burst(world, app, 20, cpu="900m")
    assert world.arm.recorder.count("PATCH", first) == 1, app.describe()
    began = world.seconds
    app.until(lambda: world.arm.recorder.count("PATCH", second), within=180)
    assert world.seconds - began <= 60 + 60, "the operation takes a minute to fail"
    app.until(lambda: all(pod.is_running for pod in world.pods("web")), within=600)
    app.until(lambda: app.capacity(first) == 1, within=600)
    assert app.broken == []


def test_a_pool_that_somebody_grew_meanwhile_is_planned_for_anew(world: World) -> None:
    """S28, kubernetes/autoscaler#7432: 48 remembered, 86 there."""
    pool = world.add_scale_set("agents", 4, size=SIZE, tags={"min": "0", "max": "100"})
    app = App(world)
    app.run(90)
    world.arm.changing(lambda: world.resize(pool, 9), "GET", pool)
    burst(world, app, 12)
    app.until(lambda: all(pod.is_running for pod in world.pods("web")), within=600)
    assert app.capacity(pool) <= 13
    assert app.broken == []


def test_an_event_leads_to_the_request_in_seconds(world: World) -> None:
    world.add_scale_set("agents", 1, size=SIZE, tags=TAGS)
    app = App(world)
    app.run(95)
    began = world.seconds
    burst(world, app, 4)
    app.until(lambda: world.arm.recorder.count("PATCH"), within=20)
    assert world.seconds - began <= 12, "at most the settling time of the pass before"


def test_instances_that_never_become_nodes_are_replaced(world: World) -> None:
    pool = world.add_scale_set("agents", 1, size=SIZE, tags=TAGS)
    app = App(world, scaleUp={"provisionTimeout": "5m"})
    app.run(90)
    world.arm.capacity.shortages.append(Shortage(code="AllocationFailed", times=1))
    burst(world, app, 3)
    app.until(lambda: all(pod.is_running for pod in world.pods("web")), within=1500)
    app.until(lambda: not _failed(world, pool), within=900)
    assert app.broken == []


def _failed(world: World, pool: str) -> list[str]:
    state = world.arm.core.state
    return [
        one.id
        for one in state.of_type("Microsoft.Compute/virtualMachineScaleSets/virtualMachines", pool)
        if one.body["properties"]["provisioningState"] == "Failed"
    ]


def test_azure_that_cannot_be_read_stops_growth_and_breaks_nothing(world: World) -> None:
    pool = world.add_scale_set("agents", 1, size=SIZE, tags=TAGS)
    app = App(world)
    app.run(90)
    world.arm.core.throttle(300, "GET")
    burst(world, app, 4)
    app.run(200)
    assert app.writes() == []
    app.until(lambda: app.capacity(pool) > 1, within=400)
    app.until(lambda: all(pod.is_running for pod in world.pods("web")), within=600)


def test_a_cluster_that_takes_no_events_is_scaled_all_the_same(world: World) -> None:
    pool = world.add_scale_set("agents", 1, size=SIZE, tags=TAGS)
    app = App(world)
    forbidden = {"kind": "Status", "reason": "Forbidden", "message": "no", "code": 403}
    for path in ("/events", "/configmaps"):
        world.kubernetes.faults.append(Fault(on("write", path), status=403, body=forbidden, times=10_000))
    burst(world, app, 4)
    app.until(lambda: all(pod.is_running for pod in world.pods("web")), within=600)
    assert app.capacity(pool) == 4

"""The app as it runs: bursts, sizes, single nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenarios.autoscaling_app import App

from sandbox.scenario import World
from shared.runtime.nudge import fan_out
from shared.runtime.operation import OperationState
from tests.scenarios.autoscaling_world import SIZE

pytestmark = pytest.mark.azurite


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.arm.core.operation_seconds = 60
        yield world


@pytest.fixture
def app(world: World, storage: str, tmp_path: Path) -> App:
    world.add_scale_set("agents", 2, size=SIZE, tags={"min": "2", "max": "6"})
    return App(world, storage, tmp_path, scaleDown={"unneededTime": "2m", "delayAfterAdd": "1m"})


def agents(world: World) -> list[str]:
    return sorted(name for name in world.nodes() if name.startswith("agents"))


def test_a_burst_comes_and_goes_and_all_of_it_is_on_record(app: App, world: World) -> None:
    app.run(70)
    world.add_deployment("web", replicas=10, cpu="600m")
    world.advance(1)
    fan_out(app.clients, "autoscaling", "PodUnschedulable")
    before = world.seconds
    app.until(lambda: world.arm.recorder.count("PATCH"), within=20)
    assert world.seconds - before <= 15, "seconds, not a tick"
    app.until(lambda: sum(pod.is_running for pod in world.pods("web")) == 10, within=300)
    assert len(agents(world)) == 4
    assert any("agents 2 -> 4" in one for one in world.events("TriggeredScaleUp")), world.events()
    world.scale("web", 2)
    app.until(lambda: len(agents(world)) == 2, within=1200)
    assert all(pod.is_running for pod in world.pods("web"))
    text = app.journal()
    for words in ("2 more machines asked for, 2 to 4", "drained and deleted"):
        assert words in text
    status = world.client().get("/api/v1/namespaces/kube-system/configmaps/kubekeeper-status")
    assert json.loads(status["data"]["autoscaling"])["pools"]["agents"]["max"] == 6


def test_scale_sets_a_size_until_it_expires(app: App, world: World) -> None:
    record = app.operate("scale", pool="agents", count=4, expires="20m", reason="a load test")
    assert record.state is OperationState.SUCCEEDED, record.message
    app.until(lambda: len(agents(world)) == 4, within=300)
    app.run(600)
    assert len(agents(world)) == 4, "nothing needs them, and they stay"
    app.until(lambda: len(agents(world)) == 2, within=2400)


def test_scale_beyond_the_limits_is_refused_with_the_limits(app: App) -> None:
    record = app.operate("scale", pool="agents", count=7)
    assert record.state is OperationState.FAILED
    assert "2 to 6" in record.message


def test_scale_of_an_unknown_pool_names_the_pools(app: App) -> None:
    record = app.operate("scale", pool="nothing", count=3)
    assert record.state is OperationState.FAILED
    assert "there are: agents" in record.message


def test_cordon_and_uncordon(app: App, world: World) -> None:
    node = agents(world)[0]
    assert app.operate("cordon", node=node).state is OperationState.SUCCEEDED
    assert world.node(node).document["spec"]["unschedulable"] is True
    assert app.operate("uncordon", node=node).state is OperationState.SUCCEEDED
    assert not world.node(node).document["spec"].get("unschedulable")


def test_an_unknown_node_fails_once_and_for_good(app: App) -> None:
    for operation in ("cordon", "uncordon", "drain", "replace-node"):
        record = app.operate(operation, node="nobody")
        assert (record.state, record.attempts) == (OperationState.FAILED, 1), record.message
        assert "there is no node 'nobody'" in record.message


def test_drain_takes_its_time_and_holds_no_worker(app: App, world: World) -> None:
    world.add_deployment("web", replicas=4, cpu="300m")
    world.advance(10)
    app.add_budget("web", minAvailable=3)
    node = agents(world)[0]
    record = app.operate("drain", node=node, timeout="10m")
    assert record.state is OperationState.SUCCEEDED, record.message
    assert record.attempts > 1
    assert world.pods("web", node=node) == []
    assert world.node(node).document["spec"]["unschedulable"] is True


def test_a_drain_that_cannot_end_fails_and_says_which_budget(app: App, world: World) -> None:
    world.add_deployment("web", replicas=4, cpu="300m")
    world.advance(10)
    app.add_budget("web", maxUnavailable=0)
    record = app.operate("drain", node=agents(world)[0], timeout="2m")
    assert record.state is OperationState.FAILED
    assert "DisruptionBudget" in record.message
    assert "stays cordoned" in record.message


def test_replace_node_adds_one_before_it_takes_one(app: App, world: World) -> None:
    world.add_deployment("web", replicas=4, cpu="300m")
    world.advance(10)
    old = agents(world)
    record = app.operate("replace-node", node=old[0])
    assert record.state is OperationState.SUCCEEDED, record.message
    assert old[0] not in agents(world)
    assert old[1] in agents(world)
    assert len(agents(world)) == 2
    assert len([pod for pod in world.pods("web") if pod.is_running]) == 4

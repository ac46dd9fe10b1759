"""What looking costs: requests to Azure and Kubernetes over simulated time, counted as they arrive.

The baseline is what cluster-autoscaler's Azure provider would read by its published rules for the same time
and pools: every 60 s a list of scale sets and one of machines, and each pool's instances every 300 s
(`cloudprovider/azure`: refresh interval, vmss-vms-cache-ttl); re-lists after changes are left out, in its
favour. KUBEKEEPER_SWEEP=full makes the two hours a whole day; `-s` shows the figures.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from sandbox.scenario import World
from tests.scenarios.autoscaling_world import SIZE, WholeApp

pytestmark = pytest.mark.no_cover

IS_SWEEP = os.environ.get("KUBEKEEPER_SWEEP") == "full"
HOURS = 24 if IS_SWEEP else 2
POOLS = 10
NODES = 1000 if IS_SWEEP else 100
"""Of the large cluster."""


@pytest.fixture
def world() -> Iterator[World]:
    with World(serve=False) as world:
        world.arm.core.operation_seconds = 75
        yield world


def baseline_reads(hours: float) -> int:
    return round(hours * 60 * 2 + POOLS * hours * 12)


def add_pools(world: World, capacity: int) -> None:
    for number in range(POOLS):
        tags = {"min": "1", "max": "20"}
        labels = {"team": f"t{number}"}
        extra = {"k8s.io_cluster-autoscaler_node-template_label_team": f"t{number}"}
        world.add_scale_set(f"pool{number}", capacity, size=SIZE, tags={**tags, **extra}, labels=labels)


def test_an_idle_tick_asks_one_question_and_azure_none(world: World) -> None:
    add_pools(world, 1)
    app = WholeApp(world)
    app.run(600)
    kube, azure = len(world.kubernetes.requests), app.reads()
    looks = 0
    for _ in range(20):
        before = len(world.kubernetes.requests)
        app.run(60)
        asked = world.kubernetes.requests[before:]
        if len(asked) == 1:
            assert asked[0].query["fieldSelector"] == "spec.nodeName="
        else:
            looks += 1
    assert looks <= 20 / 2.5 + 1, "everything is read only when removal is considered"
    assert app.reads() - azure <= 20 / 10 * 2 + 2
    assert app.writes() == []
    assert len(world.kubernetes.requests) > kube


def test_a_large_idle_cluster_is_asked_no_more_than_a_small_one() -> None:
    assert idle_ticks(NODES) == idle_ticks(2)


def idle_ticks(nodes: int) -> list[list[str]]:
    """What each of five ticks asks of Kubernetes and Azure, without those that look at everything."""
    with World(serve=False) as world:
        world.add_scale_set("agents", nodes, size=SIZE, tags={"min": str(nodes), "max": "2000"})
        app = WholeApp(world)
        app.run(180)
        found = []
        while len(found) < 5:
            kube, azure = len(world.kubernetes.requests), len(world.arm.recorder.requests)
            app.run(60)
            asked = [
                f"{one.path}?{one.query.get('fieldSelector')}" for one in world.kubernetes.requests[kube:]
            ]
            if asked[1:2] != ["/api/v1/pods?None"]:
                found.append(asked + [str(one) for one in world.arm.recorder.requests[azure:]])
        return found


def test_nothing_is_written_when_nothing_changes(world: World) -> None:
    add_pools(world, 1)
    app = WholeApp(world)
    world.add_deployment("web", replicas=10, cpu="200m")
    app.run(600)
    writes = [one for one in world.kubernetes.requests if one.method != "GET"]
    app.run(1800)
    later = [one for one in world.kubernetes.requests if one.method != "GET"]
    assert app.writes() == []
    assert later == writes, "not even the status is written again"


def test_reads_over_a_day_are_a_fifth_of_cluster_autoscalers(world: World) -> None:
    """Teams come and go all day: a new size for one of them every ten minutes or so."""
    add_pools(world, 1)
    app, source = WholeApp(world), random.Random(7)
    for team in range(POOLS):
        world.add_deployment(f"app{team}", replicas=1, cpu="600m", nodeSelector={"team": f"t{team}"})
    changes = 0
    while world.seconds < HOURS * 3600:
        app.run(source.uniform(300, 900))
        world.scale(f"app{source.randrange(POOLS)}", source.randint(1, 12))
        world.advance(1)
        app.deliver(1, "PodUnschedulable")
        changes += 1
    ours, theirs = app.reads(), baseline_reads(HOURS)
    reads = [one.path for one in world.arm.recorder.requests if one.method == "GET"]
    by_path = Counter("operation" if "/operations/" in one else one.rpartition("/")[2] for one in reads)
    grown = len([one for one in app.writes() if one.startswith("PATCH")])
    print(f"{HOURS} h, {changes} changes, {grown} growths: {ours} reads of Azure against {theirs}; {by_path}")
    assert grown > HOURS, "there was something to do"
    assert ours * 5 <= theirs

"""A rolling upgrade whose worker dies at any step: it is taken up, and nothing is lost, doubled or undrained.

Each course is one upgrade of two nodes with pods and a budget; at one request (to Azure, Kubernetes or the
storage account; before it was worked on, or after) the process dies. A few of the steps are tried for each
kind of pool; KUBEKEEPER_SWEEP=NUMBER tries so many, KUBEKEEPER_SWEEP=full every one.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from sandbox.arm.containerservice import POOLS
from sandbox.arm.core import merged
from sandbox.scenario import World
from shared.model.resource_id import parse_resource_id
from shared.operations.dispatch import get_operation, submit
from shared.runtime.operation import OperationRecord
from tests.clients.test_autoscaling_pools import add_availability_set
from tests.scenarios.autoscaling_world import SIZE, WholeApp

pytestmark = pytest.mark.no_cover

SWEEP = os.environ.get("KUBEKEEPER_SWEEP", "")
DEATHS = {"": 4, "full": 1_000_000}.get(SWEEP) or int(SWEEP)
"""Of each kind of pool, at steps that are equally far apart."""
NEW = "contoso:nodes:1-34:2.0.0"
REPLICAS, SIZE_OF_POOL = 4, 2
LIMIT_SECONDS = 7200


class Course:
    """One upgrade of pool `agents` from its begin to its end."""

    def __init__(self, world: World, pool: str, parameters: dict[str, object], managed: str = "") -> None:
        world.arm.core.operation_seconds = 40
        self.world, self.pool = world, pool
        azure = {"managedCluster": managed} if managed else {}
        pools = [{"name": "agents", "min": 1, "max": 4}]
        self.app = WholeApp(world, pools=pools, scaleDown={"unneededTime": "2m"}, **azure)
        world.add_deployment("web", replicas=REPLICAS, cpu="300m")
        world.advance(15)
        self.app.budget("web", minAvailable=REPLICAS - 1)
        self.parameters = {"pool": "agents", **parameters}
        self.fewest = self.most = len(self.nodes())

    def nodes(self) -> list[str]:
        return [name for name in self.world.nodes() if "agents" in name and self.world.node(name).is_ready]

    def run(self, death: int | None = None) -> OperationRecord:
        app = self.app
        app.next_death = lambda: None if death is None or app.crashes else max(0, death - app.steps)
        began = self.world.seconds
        submit(app.clients, "rolling-upgrade", "prod", dict(self.parameters), "upgrade")
        while True:
            app.run(10)
            self.fewest = min(self.fewest, len(self.nodes()))
            self.most = max(self.most, len(self.nodes()))
            record = get_operation(app.clients, "upgrade")
            if record is not None and record.is_over:
                return record
            assert self.world.seconds - began < LIMIT_SECONDS, app.describe()

    def check(self, record: OperationRecord) -> None:
        assert record.state == "Succeeded", f"{record.message}\n{self.app.describe()}"
        assert self.app.broken == [], self.app.describe()
        assert len(self.nodes()) == SIZE_OF_POOL, self.app.describe()
        self.app.until(lambda: sum(pod.is_running for pod in self.world.pods("web")) == REPLICAS, 120)
        assert not any(self.world.node(n).document["spec"].get("unschedulable") for n in self.nodes())


def uniform(world: World) -> Course:
    return scale_set(world, flexible=False)


def flexible(world: World) -> Course:
    return scale_set(world, flexible=True)


def reimage(world: World) -> Course:
    return scale_set(world, flexible=False, reimage=True)


def scale_set(world: World, *, flexible: bool, **parameters: object) -> Course:
    found = world.add_scale_set("agents", SIZE_OF_POOL, size=SIZE, flexible=flexible)
    return Course(world, found, {"image": NEW, **parameters})


def availability_set(world: World) -> Course:
    found = add_availability_set(world.arm, SIZE_OF_POOL, "agents")
    world.enrol(found)
    return Course(world, found, {"image": NEW})


def replaced(course: Course, old: list[str]) -> None:
    """Every machine is another, the pool never had fewer, nor more than one beyond its size."""
    assert not set(course.nodes()) & set(old)
    assert course.fewest == SIZE_OF_POOL
    assert course.most <= SIZE_OF_POOL + 1


def made_anew(course: Course, old: list[str]) -> None:
    """The same nodes on other images; one at a time was away."""
    assert set(course.nodes()) == set(old)
    assert course.fewest >= SIZE_OF_POOL - 1
    machines = [course.world.arm.core.state.find(course.world.machine(name)) for name in old]
    profiles = [one.body["properties"]["storageProfile"] for one in machines if one]
    assert [one["imageReference"]["version"] for one in profiles] == ["2.0.0"] * SIZE_OF_POOL


def aks(world: World) -> Course:
    managed = world.add_cluster("aks", system=1, agents=SIZE_OF_POOL)
    found = world.arm.core.state.find(managed)
    assert found is not None
    body = merged(found.body, {"properties": {"currentKubernetesVersion": "1.35.0"}})
    world.arm.core.state.store(parse_resource_id(managed), body)
    return Course(world, managed, {"version": "1.35.0"}, managed)


def upgraded(course: Course, old: list[str]) -> None:
    """The same nodes, at the new version, asked for once unless nobody could know."""
    (pool,) = [one for one in course.world.arm.core.state.of_type(POOLS) if one.id.endswith("/agents")]
    assert pool.body["properties"]["currentOrchestratorVersion"] == "1.35.0"
    assert set(course.nodes()) == set(old)


KINDS: dict[str, tuple[Callable[[World], Course], Callable[[Course, list[str]], None]]] = {
    "uniform": (uniform, replaced),
    "flexible": (flexible, replaced),
    "reimage": (reimage, made_anew),
    "availability-set": (availability_set, replaced),
    "aks": (aks, upgraded),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_upgrade_whose_worker_dies_at_any_step_ends_as_if_it_had_not(kind: str) -> None:
    make, judge = KINDS[kind]
    with World() as world:
        course = make(world)
        old, before = course.nodes(), course.app.steps
        course.check(course.run())
        judge(course, old)
        steps = course.app.steps
    deaths = range(before, steps, max(1, (steps - before) // DEATHS))
    for death in deaths:
        with World() as world:
            course = make(world)
            old = course.nodes()
            record = course.run(death)
            assert course.app.crashes == 1, death
            course.check(record)
            judge(course, old)
    print(f"{kind}: {len(deaths)} deaths among {steps - before} steps")


def test_an_azure_that_is_out_of_reach_for_a_while_is_waited_for() -> None:
    with World() as world:
        course = uniform(world)
        old = course.nodes()
        for at in (100, 400, 700):
            world.at(at, lambda: world.arm.core.throttle(200))
        record = course.run()
        course.check(record)
        replaced(course, old)

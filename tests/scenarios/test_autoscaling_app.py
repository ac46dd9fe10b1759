"""The app as it runs: timer, queues, claim, journal and operations on a real Azurite, time simulated.

Only the queue's delays are on the simulated clock; everything else that is stored is stored in Azurite.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sandbox.scenario import World
from shared.bootstrap import Clients
from shared.errors import RunFailedError
from shared.operations import dispatch
from shared.operations.dispatch import get_operation, submit
from shared.runtime.message import Received
from shared.runtime.nudge import fan_out
from shared.runtime.operation import OperationRecord, OperationState
from shared.work import work_off
from tests.scenarios.autoscaling_world import SIZE

pytestmark = pytest.mark.azurite

QUEUES = {
    "autoscaling": work_off,
    dispatch.QUEUE: lambda clients, _, message: dispatch.work_off(clients, message),
}


class SimulatedQueue:
    def __init__(self, app: App, name: str) -> None:
        self._app, self._name = app, name

    def send(self, text: str, delay: timedelta = timedelta(0)) -> str:
        self._app.put(self._name, text, delay.total_seconds())
        return "id"

    def ensure(self) -> None:
        pass


class SimulatedClients(Clients):
    def __init__(self, app: App, environ: dict[str, str]) -> None:
        super().__init__(environ, app.world.arm.credential())
        self._app = app

    def now(self) -> datetime:
        return self._app.world.now

    def queue(self, name: str) -> Any:
        return SimulatedQueue(self._app, name)


class App:
    def __init__(self, world: World, storage: str, directory: Path, **policy: Any) -> None:
        self.world, self.name = world, f"c{uuid.uuid4().hex[:10]}"
        arm, kubernetes = world.arm, world.kubernetes
        token = kubernetes.api.tokens.issue("kubekeeper", ("system:masters",))
        azure = {"subscription": arm.subscription, "resourceGroups": [arm.group], "location": "westeurope"}
        connection = {"server": kubernetes.server, "ca": f"file:{kubernetes.directory / 'ca.pem'}"}
        entry = {"name": self.name, "kubernetes": {**connection, "token": "setting:KUBE_TOKEN"}}
        configuration = directory / "kubekeeper.yaml"
        configuration.write_text(json.dumps({"clusters": [{**entry, "azure": azure, "autoscaling": policy}]}))
        self.environ = {
            **world.environ(),
            "AzureWebJobsStorage": storage,
            "KUBEKEEPER_CONFIG": str(configuration),
            "KUBE_TOKEN": token,
        }
        self.clients = SimulatedClients(self, self.environ)
        self._due: list[tuple[float, int, str, str, int]] = []
        self._order = itertools.count()
        world._cleanup.callback(self.close)

    def close(self) -> None:
        self.clients.kube(self.clients.settings().clusters[0]).close()
        self.clients.arm._client.close()

    def put(self, queue: str, text: str, delay: float, attempt: int = 1) -> None:
        due = (self.world.seconds + delay, next(self._order), queue, text, attempt)
        heapq.heappush(self._due, due)

    def run(self, seconds: float, tick: float = 60.0) -> None:
        end, ticks = self.world.seconds + seconds, self.world.seconds - self.world.seconds % tick + tick
        while True:
            due = self._due[0][0] if self._due else math.inf
            if min(due, ticks) > end:
                break
            self.world.advance(max(0.0, min(due, ticks) - self.world.seconds))
            if ticks < due:
                ticks += tick
                fan_out(self.clients, "autoscaling", "Timer")
                continue
            _, _, queue, text, attempt = heapq.heappop(self._due)
            self._deliver(queue, text, attempt)
        self.world.advance(max(0.0, end - self.world.seconds))

    def _deliver(self, queue: str, text: str, attempt: int) -> None:
        message = Received(
            id=uuid.uuid4().hex, body=text.encode(), dequeue_count=attempt, inserted_at=self.world.now
        )
        try:
            QUEUES[queue](self.clients, queue, message)
        except RunFailedError:
            if attempt < 5:
                self.put(queue, text, 30.0, attempt + 1)

    def operate(self, operation: str, within: float = 1800, **parameters: Any) -> OperationRecord:
        """Send an operation and let time go by until it is over."""
        identity = submit(self.clients, operation, self.name, parameters)
        began = self.world.seconds
        while True:
            record = get_operation(self.clients, identity)
            if record is not None and record.is_over:
                return record
            assert self.world.seconds - began < within, record
            self.run(5)

    def until(self, condition: Any, within: float) -> float:
        began = self.world.seconds
        while not condition():
            assert self.world.seconds - began < within, self.world.describe() + self.journal()
            self.run(2)
        return self.world.seconds - began

    def journal(self) -> str:
        entries = list(self.clients.journal.entries([(self.name, "autoscaling")]))
        return "\n".join(f"  {one.status} {one.action} {one.target}: {one.message}" for one in entries)


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


def add_budget(app: App, **spec: object) -> None:
    """Through the API, so that the disruption controller sees it."""
    document = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"}}
    where = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    selector = {"matchLabels": {"app": "web"}}
    app.world.client().create(where, {**document, "spec": {"selector": selector, **spec}})


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
    add_budget(app, minAvailable=3)
    node = agents(world)[0]
    record = app.operate("drain", node=node, timeout="10m")
    assert record.state is OperationState.SUCCEEDED, record.message
    assert record.attempts > 1
    assert world.pods("web", node=node) == []
    assert world.node(node).document["spec"]["unschedulable"] is True


def test_a_drain_that_cannot_end_fails_and_says_which_budget(app: App, world: World) -> None:
    world.add_deployment("web", replicas=4, cpu="300m")
    world.advance(10)
    add_budget(app, maxUnavailable=0)
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

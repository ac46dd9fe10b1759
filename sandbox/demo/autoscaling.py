"""The chapter on autoscaling: a burst of pods, a pool without stock, nodes arriving, the load gone, nodes
drained and deleted, all in simulated time against a local Azure and a local Kubernetes.

The app's own passes run over real HTTP, with claims and journal in a real Azurite. Only time is not real: it
is moved by hand, and the queue's delays are on the same clock.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from sandbox.arm.capacity import Shortage
from sandbox.azurite import Azurite
from sandbox.demo.screen import Screen
from sandbox.demo.world import NotInTimeError
from sandbox.scenario import World
from shared.bootstrap import Clients
from shared.runtime.message import Received
from shared.runtime.nudge import fan_out
from shared.work import work_off

TITLE = "Autoscaling: from pending pods to nodes and back"
STEPS = 6
CLUSTER = "demo"
AUTOMATION = "autoscaling"
POLICY = {
    "prices": {"Standard_D4s_v5": 0.19, "Standard_D8s_v5": 0.39},
    "scaleDown": {"unneededTime": "8m", "delayAfterAdd": "5m"},
}
WEB = 30
"""Pods of the burst, nearly a core each: 12 fit on what there is, 18 do not."""
DEAR_ENOUGH = 3
"""More of the dear nodes than that are a waste: each holds 8 of the pods."""


def show(screen: Screen) -> None:
    """All steps, in the order an operator would meet them."""
    with Stage(screen) as stage:
        with screen.step("A cluster with two node pools, a cheap one and a dear one"):
            _quiet(stage)
        with screen.step("A burst of pods, and the cheap size is out of stock"):
            _burst(stage)
        with screen.step("Nodes arrive, pods run"):
            _arrive(stage)
        with screen.step("What a team needs to know: why its pod waits"):
            _explain(stage)
        with screen.step("The load is gone: nodes are drained and deleted"):
            _shrink(stage)
        with screen.step("What it cost to look, and what is on record"):
            _record(stage)


class Stage:
    """A cluster, an Azure and one function app, on one simulated clock."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self._cleanup = ExitStack()
        self._due: list[tuple[float, int, str]] = []
        self._order = itertools.count()

    def __enter__(self) -> Self:
        enter = self._cleanup.enter_context
        self.screen.progress("starting Azurite, an Azure and a Kubernetes")
        azurite = enter(Azurite())
        directory = Path(enter(TemporaryDirectory(prefix="keeper-")))
        self.world = enter(World())
        self.world.arm.core.operation_seconds = 60
        self.cheap = self._pool("cheap", 1, "Standard_D4s_v5")
        self.dear = self._pool("dear", 1, "Standard_D8s_v5")
        self.clients = _Clients(self, self._environ(azurite.connection_string, directory))
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _pool(self, name: str, count: int, size: str) -> str:
        tags = {"min": "1", "max": "10"}
        return self.world.add_scale_set(name, count, size=size, tags=tags, zones=("1", "2", "3"))

    def _environ(self, storage: str, directory: Path) -> dict[str, str]:
        kubernetes, arm = self.world.kubernetes, self.world.arm
        token = kubernetes.api.tokens.issue("kubekeeper", ("system:masters",))
        cluster = {
            "name": CLUSTER,
            "kubernetes": {
                "server": kubernetes.server,
                "ca": f"file:{kubernetes.directory / 'ca.pem'}",
                "token": "setting:DEMO_TOKEN",
            },
            "azure": {
                "subscription": arm.subscription,
                "resourceGroups": [arm.group],
                "location": "westeurope",
            },
            "autoscaling": POLICY,
        }
        configuration = directory / "kubekeeper.yaml"
        configuration.write_text(json.dumps({"clusters": [cluster]}))
        stored = {"AzureWebJobsStorage": storage, "KUBEKEEPER_CONFIG": str(configuration)}
        return {**self.world.environ(), **stored, "DEMO_TOKEN": token}

    # Time

    def put(self, text: str, delay: float) -> None:
        """A message that becomes visible after so many simulated seconds."""
        heapq.heappush(self._due, (self.world.seconds + delay, next(self._order), text))

    def run(self, seconds: float) -> None:
        """Let time go by: the timer ticks each minute, messages are delivered when they become visible."""
        end, tick = self.world.seconds + seconds, self.world.seconds - self.world.seconds % 60 + 60
        while True:
            due = self._due[0][0] if self._due else math.inf
            if min(due, tick) > end:
                break
            self.world.advance(max(0.0, min(due, tick) - self.world.seconds))
            if tick < due:
                tick += 60
                fan_out(self.clients, AUTOMATION, "Timer")
                continue
            _, _, text = heapq.heappop(self._due)
            message = Received(id="demo", body=text.encode(), inserted_at=self.world.now)
            work_off(self.clients, AUTOMATION, message)
        self.world.advance(max(0.0, end - self.world.seconds))

    def wait(self, what: str, look: Callable[[], object], within: float) -> float:
        """Simulated seconds until `look` gives something; NotInTimeError names `what` otherwise."""
        began = self.world.seconds
        while not look():
            if self.world.seconds - began > within:
                raise NotInTimeError(f"no {what} within {within:.0f} s\n{self.world.describe()}")
            self.screen.progress(f"waiting for {what} ({self.world.seconds - began:.0f} simulated seconds)")
            self.run(1)
        return self.world.seconds - began

    # What can be seen

    def running(self, app: str = "web") -> int:
        return sum(pod.is_running for pod in self.world.pods(app))

    def nodes(self, pool: str) -> list[str]:
        return sorted(name for name in self.world.nodes() if name.startswith(pool))

    def asked(self, method: str, path: str = "") -> int:
        return self.world.arm.recorder.count(method, path)

    def journal(self) -> list[str]:
        """What was done, the oldest first."""
        entries = list(self.clients.journal.entries([(CLUSTER, AUTOMATION)]))
        return [f"{one.status}: {one.message}" for one in reversed(entries) if one.kind == "Outcome"]


class _Clients(Clients):
    """The app's own clients, with the stage's clock and queue."""

    def __init__(self, stage: Stage, environ: dict[str, str]) -> None:
        super().__init__(environ, stage.world.arm.credential())
        self._stage = stage

    def now(self) -> datetime:
        return self._stage.world.now

    def queue(self, name: str) -> Any:
        return _Queue(self._stage)


class _Queue:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def send(self, text: str, delay: timedelta = timedelta(0)) -> str:
        self._stage.put(text, delay.total_seconds())
        return "simulated"


def _quiet(stage: Stage) -> None:
    stage.run(180)
    screen = stage.screen
    screen.say("pool cheap: Standard_D4s_v5, 1 of at most 10 nodes; pool dear: Standard_D8s_v5, 1 of 10")
    ticks = [_questions(stage) for _ in range(3)]
    screen.check(
        "nothing waits: a tick asks Kubernetes for pods without a node, and Azure nothing",
        holds=(1, 0) in ticks,
        otherwise=f"{ticks}",
    )


def _questions(stage: Stage) -> tuple[int, int]:
    """What one tick asks Kubernetes and Azure; every other one looks for nodes that nobody needs."""
    azure, asked = len(stage.world.arm.recorder.requests), len(stage.world.kubernetes.requests)
    stage.run(60)
    return len(stage.world.kubernetes.requests) - asked, len(stage.world.arm.recorder.requests) - azure


def _burst(stage: Stage) -> None:
    screen, world = stage.screen, stage.world
    world.arm.capacity.shortages.append(Shortage(code="ZonalAllocationFailed", size="Standard_D4s_v5"))
    world.add_deployment("web", replicas=WEB, cpu="900m", memory="1Gi")
    world.advance(1)
    screen.say(f"{WEB} pods of 900m; Azure has no Standard_D4s_v5 left, and says so only after a minute")
    fan_out(stage.clients, AUTOMATION, "PodUnschedulable")
    took = stage.wait("request for capacity", lambda: stage.asked("PATCH"), within=30)
    screen.check(f"the event led to the request after {took:.0f} simulated s", holds=took <= 15)
    failed = stage.wait(
        "failure of the first pool", lambda: any("StockOut" in one for one in stage.journal()), within=180
    )
    second = stage.wait("request in the second pool", lambda: stage.asked("PATCH", "/dear"), within=90)
    screen.say(f"the allocation failed and was noticed {failed:.0f} s after the request")
    later = f"{second:.0f} simulated s later" if second else "in the same pass"
    screen.check(f"another pool was asked {later}", holds=second <= 60)
    screen.note("stock-out", f"another pool was asked {later}")


def _arrive(stage: Stage) -> None:
    screen, world = stage.screen, stage.world
    took = stage.wait("running pods", lambda: stage.running() == WEB, within=600)
    screen.say(
        f"all {WEB} pods run {took:.0f} simulated s later, {world.seconds:.0f} s of simulated time in all"
    )
    for line in stage.journal()[-6:]:
        screen.say(line)
    events = world.events("TriggeredScaleUp")
    screen.check("pods say so: TriggeredScaleUp", holds=bool(events))
    for line in events[:2]:
        screen.say(line)
    dear = len(stage.nodes("dear"))
    screen.check(
        "no more nodes than needed", holds=dear <= 1 + DEAR_ENOUGH, otherwise=f"{dear} in the dear pool"
    )
    screen.note("burst", f"{WEB} pods running, {len(world.nodes())} nodes")


def _explain(stage: Stage) -> None:
    screen, world = stage.screen, stage.world
    world.add_pod("giant", cpu="64", memory="1Gi")
    world.advance(1)
    fan_out(stage.clients, AUTOMATION, "PodUnschedulable")
    stage.wait("explanation", lambda: world.events("NotTriggerScaleUp", about="giant"), within=60)
    (line, *_) = world.events("NotTriggerScaleUp", about="giant")
    screen.say(line)
    screen.check("a pod that no node can hold says which pool comes closest, and why not", holds=bool(line))
    world.delete_pod("giant", grace=0)


def _shrink(stage: Stage) -> None:
    screen, world = stage.screen, stage.world
    gone = _Deleted(stage)
    world.scale("web", 2)
    took = stage.wait("smaller pools", lambda: len(world.nodes()) <= 2, within=1800)
    screen.say(
        f"{WEB - 2} of {WEB} pods are gone; {took:.0f} simulated s later {len(world.nodes())} nodes are left"
    )
    screen.check("the two pods that are left run", holds=stage.running() == 2)
    screen.check(
        "each node was cordoned and empty before its machine was deleted", holds=gone.with_pods == []
    )
    screen.check(
        "no pool is below its minimum", holds=bool(stage.nodes("dear")) and bool(stage.nodes("cheap"))
    )
    screen.note("load gone", f"{len(world.nodes())} nodes left, every one drained before it was deleted")


class _Deleted:
    """Watches deletions: pods that had not been asked to leave when their machine went."""

    def __init__(self, stage: Stage) -> None:
        from sandbox.asgi import Fault, on

        self._world = stage.world
        self.with_pods: list[str] = []
        watch = Fault(on("POST", "/delete"), times=1_000_000, before=self._look)
        stage.world.arm.fault(watch)

    def _look(self) -> None:
        leaving: Sequence[str] = [
            name
            for name in self._world.nodes()
            if any("to-be-deleted" in taint for taint in self._world.node(name).taints)
        ]
        self.with_pods += [
            f"{pod.name} on {node}"
            for node in leaving
            for pod in self._world.pods(node=node)
            if not pod.is_going
        ]


def _record(stage: Stage) -> None:
    screen, world = stage.screen, stage.world
    requests = world.arm.recorder.requests
    reads = sum(one.method == "GET" for one in requests)
    screen.say(f"{world.seconds:.0f} simulated s, {reads} reads and {len(requests) - reads} writes of Azure")
    status = world.client().get("/api/v1/namespaces/kube-system/configmaps/kubekeeper-status")
    pools = json.loads(status["data"]["autoscaling"])["pools"]
    screen.check("ConfigMap kubekeeper-status tells how the pools are", holds=set(pools) == {"cheap", "dear"})
    for line in stage.journal()[-4:]:
        screen.say(line)
    screen.check(
        "the journal has every step", holds=any("drained and deleted" in one for one in stage.journal())
    )

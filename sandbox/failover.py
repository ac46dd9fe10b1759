"""How long a database takes to run again when its node fails, by several ways, on one simulated clock.

    with Azurite() as azurite:
        course = run(FAILURES["kubelet"], "Kubekeeper", Kubekeeper(azurite.connection_string))
        course.seconds["running"]

The same three nodes of a scale set, the same StatefulSet with one disk, the same Azure with the medians that
people report (`sandbox.arm.QUOTED`, without spread: **quoted, not measured**), the same controllers; only who
helps differs. Used by the demo and `make bench`.
"""

from __future__ import annotations

import heapq
import itertools
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sandbox.arm import QUOTED
from sandbox.arm.core import Latencies
from sandbox.kube import kinds
from sandbox.kube.lifecycle import OUT_OF_SERVICE, node_taints
from sandbox.scenario import World
from sandbox.witness import Witness, WitnessedClients, lists_of
from shared.bootstrap import Clients
from shared.model.resource_id import parse_resource_id
from shared.runtime.message import Nudge, Received
from shared.runtime.nudge import fan_out, send_nudge
from shared.work import work_off

AUTOMATION = "disk-release"
BEFORE = 300.0
"""Seconds of peace before the failure: half the age that the provider's cache of scale sets may have."""
GIVE_UP = 3600.0
STEP = 1.0
UNHEALTHY = 300.0
"""node-healthcheck's default: how long a node must have been NotReady."""
BY_HAND = 350.0
"""When a person who waits for the pod to leave sees that it does not, and deletes it with --force."""


class Helper:
    """Who does something about it; by itself nobody, so that Kubernetes and the disk driver are alone."""

    longest_pass = 0.0

    def broken(self, world: World) -> Sequence[str]:
        """Invariants that it broke."""
        return ()

    def look(self, stage: Stage) -> None:
        """Called once a simulated second."""

    def close(self) -> None:
        """Called when it is over."""


@dataclass
class Stage:
    """One run: the world, the node that fails, and what has been reached after how many seconds."""

    world: World
    disk: str
    dead: str
    began: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def since(self) -> float:
        """Seconds since the failure."""
        return self.world.seconds - self.began

    @property
    def machine(self) -> str:
        return self.world.machine(self.dead)

    def mark(self, what: str) -> None:
        self.seconds.setdefault(what, self.since)

    def look(self) -> None:
        """Note what has become true."""
        pods = self.world.pods("db")
        if self.dead not in self.world.nodes(ready=True):
            self.mark("notReady")
        if not self.world.arm.truth.is_running(self.machine):
            self.mark("fenced")
        if not any(pod.node == self.dead for pod in pods):
            self.mark("podGone")
        if self.world.owner(self.disk) != self.dead and self._is_let_go():
            self.mark("diskFree")
        if any(pod.is_running and pod.node != self.dead for pod in pods):
            self.mark("running")

    def _is_let_go(self) -> bool:
        with self.world.arm.core.lock:
            found = self.world.arm.core.state.find(self.disk)
        return found is None or found.body.get("managedBy", "").lower() != self.machine.lower()


@dataclass(frozen=True)
class Course:
    """How it went: seconds from the failure to each mark (absent when it was never reached)."""

    failure: str
    way: str
    seconds: Mapping[str, float]
    corruptions: int
    detach_seconds: float
    """Azure's own part: how long the detach took."""
    writes: int = 0
    """Of the helper, to Azure."""
    longest_pass: float = 0.0
    """Real seconds that the longest pass of the app took."""
    broken: Sequence[str] = ()
    """Invariants of disk release that the app broke."""

    @property
    def running(self) -> float | None:
        return self.seconds.get("running")


@dataclass(frozen=True)
class Failure:
    """What happens to the node."""

    title: str
    happen: Callable[[World, str], None]


def _kubelet(world: World, node: str) -> None:
    world.kill_kubelet(node)


def _stopped(world: World, node: str) -> None:
    world.stop_machine(node)


def _deleted(world: World, node: str) -> None:
    world.kill_kubelet(node)
    world.delete_machine(node)


FAILURES = {
    "kubelet": Failure("kubelet dead, VM runs", _kubelet),
    "stopped": Failure("VM stopped", _stopped),
    "deleted": Failure("VM deleted", _deleted),
}


class Impatient(Helper):
    """A person deletes the stuck pod with --force."""

    def look(self, stage: Stage) -> None:
        if stage.since >= BY_HAND and any(pod.node == stage.dead for pod in stage.world.pods("db")):
            stage.mark("firstWrite")
            stage.world.delete_pod("db-0", grace=0)


class HealthCheck(Helper):
    """node-healthcheck with fence agents: power off after five minutes of NotReady, then the taint."""

    def __init__(self) -> None:
        self._has_fenced = False

    def look(self, stage: Stage) -> None:
        silent = stage.since - stage.seconds.get("notReady", stage.since)
        if silent < UNHEALTHY:
            return
        if not self._has_fenced:
            self._has_fenced = True
            stage.mark("firstWrite")
            stage.world.arm.core.do("POST", stage.machine, None, "powerOff", at_once=False)
        elif "fenced" in stage.seconds:
            _take_out_of_service(stage.world, stage.dead)


def _take_out_of_service(world: World, name: str) -> None:
    with world.kubernetes.store.lock:
        node = world.node(name).document
        if any(taint["key"] == OUT_OF_SERVICE for taint in node_taints(node)):
            return
        taint = {"key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute"}
        spec = {**node["spec"], "taints": [*node_taints(node), taint]}
        world.kubernetes.api.update(kinds.NODES, node, {**node, "spec": spec})


class Kubekeeper(Helper):
    """The app's own passes, by timer, the forwarder's nudge and follow-ups, over real HTTP."""

    def __init__(self, storage: str, **policy: Any) -> None:
        self._storage = storage
        # Each run begins at the same simulated time: what an earlier one remembers must not be found.
        self.cluster = f"demo-{uuid.uuid4().hex[:8]}"
        self._policy = {"fence": "allowed", **policy}
        self._due: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._directory = TemporaryDirectory(prefix="keeper-")
        self._tick = 0.0
        self._is_told = False
        self.longest_pass = 0.0
        self.nudged_at = 0.0
        self.clients: Clients
        self.witness: Witness

    def close(self) -> None:
        self._directory.cleanup()

    def broken(self, world: World) -> Sequence[str]:
        return self.witness.violations(map(str, world.corruptions))

    def look(self, stage: Stage) -> None:
        if not hasattr(self, "clients"):
            self.clients = _Clients(self, stage.world, self._environ(stage.world))
        world = stage.world
        if world.seconds >= self._tick:
            self._tick = world.seconds - world.seconds % 60 + 60
            fan_out(self.clients, AUTOMATION, "Timer")
        if "notReady" in stage.seconds and not self._is_told:
            self._is_told, self.nudged_at = True, stage.since
            send_nudge(
                self.clients, Nudge(cluster=self.cluster, automation=AUTOMATION, reason="NodeNotReady")
            )
        self._deliver(stage)

    def _deliver(self, stage: Stage) -> None:
        while self._due and self._due[0][0] <= stage.world.seconds:
            _, number, text = heapq.heappop(self._due)
            received = Received(id=str(number), body=text.encode(), inserted_at=stage.world.now)
            self.witness.process()
            began = time.monotonic()
            work_off(self.clients, AUTOMATION, received)
            self.longest_pass = max(self.longest_pass, time.monotonic() - began)
            if "notReady" in stage.seconds and self._asked(stage):
                stage.mark("firstRequest")
            if stage.world.arm.recorder.of("POST"):
                stage.mark("firstWrite")

    def _asked(self, stage: Stage) -> bool:
        """Whether Azure was asked about the machine."""
        return bool(stage.world.arm.recorder.of("GET", stage.machine))

    def put(self, world: World, text: str, delay: timedelta) -> None:
        """A message that becomes visible after so many simulated seconds."""
        heapq.heappush(self._due, (world.seconds + delay.total_seconds(), next(self._order), text))

    def _environ(self, world: World) -> dict[str, str]:
        kubernetes = world.kubernetes
        entry = {
            "name": self.cluster,
            "kubernetes": {
                "server": kubernetes.server,
                "ca": f"file:{kubernetes.directory / 'ca.pem'}",
                "token": "setting:DEMO_TOKEN",
            },
            "azure": {
                "subscription": world.arm.subscription,
                "resourceGroups": [world.arm.group],
                "location": "westeurope",
            },
            "diskRelease": self._policy,
        }
        path = Path(self._directory.name) / "kubekeeper.yaml"
        path.write_text(json.dumps({"clusters": [entry]}))
        token = kubernetes.api.tokens.issue("kubekeeper", ("system:masters",))
        own = {"AzureWebJobsStorage": self._storage, "KUBEKEEPER_CONFIG": str(path), "DEMO_TOKEN": token}
        return {**world.environ(), **own}


class _Clients(WitnessedClients):
    """The app's own clients, on the simulated clock and queue."""

    def __init__(self, app: Kubekeeper, world: World, environ: dict[str, str]) -> None:
        super().__init__(environ, world.arm.credential())
        self._app, self._world = app, world
        self.witness = app.witness = Witness(
            world.arm,
            lists_of(world.kubernetes),
            self.now,
            lambda: self.claims.state(app.cluster, AUTOMATION).automation,
        )

    def now(self) -> datetime:
        return self._world.now

    def queue(self, name: str) -> Any:
        return _Queue(self._app, self._world)


class _Queue:
    def __init__(self, app: Kubekeeper, world: World) -> None:
        self._app, self._world = app, world

    def send(self, text: str, delay: timedelta = timedelta(0)) -> str:
        self._app.put(self._world, text, delay)
        return "simulated"


def new_world(*, cloud_taints: bool, cloud: bool = True) -> World:
    """A scale set of three nodes and a database with one disk; not started."""
    world = World(cloud_controller=cloud)
    world.cloud.marks_out_of_service = cloud_taints
    world.arm.core.latencies = Latencies(QUOTED.medians, spread=0.0)
    world.add_scale_set("agents", 3)
    world.add_stateful_set("db")
    return world


def run(
    failure: Failure, way: str, helper: Helper, *, cloud_taints: bool = False, limit: float = GIVE_UP
) -> Course:
    """One course, from five minutes of peace to the database running again, or to `limit` seconds."""
    with new_world(cloud_taints=cloud_taints) as world:
        world.advance(BEFORE)
        disk = world.arm.id_of("Microsoft.Compute/disks", "db-0")
        stage = Stage(world, disk, world.pod("db-0").node)
        helper.look(stage)
        world.arm.recorder.requests.clear()
        stage.began = world.seconds
        failure.happen(world, stage.dead)
        while "running" not in stage.seconds and stage.since < limit:
            world.advance(STEP)
            stage.look()
            helper.look(stage)
        return Course(
            failure=failure.title,
            way=way,
            seconds=stage.seconds,
            corruptions=len(world.corruptions),
            detach_seconds=detach_seconds(world, stage),
            writes=sum(request.method != "GET" for request in world.arm.recorder.requests),
            longest_pass=helper.longest_pass,
            broken=helper.broken(world),
        )


def detach_seconds(world: World, stage: Stage) -> float:
    """How long Azure took for the last detach on the node's machine."""
    found = 0.0
    machine = parse_resource_id(stage.machine).key
    for operation in world.arm.core.state.operations.values():
        if operation.resource.lower() == machine and "etach" in operation.verb and operation.ended:
            began, ended = map(datetime.fromisoformat, (operation.started, operation.ended))
            if began.timestamp() >= world.started.timestamp() + stage.began:
                found = (ended - began).total_seconds()
    return found


def compare(storage: str, progress: Callable[[str], None] = lambda _line: None) -> list[Course]:
    """Every failure by every way that has something to say about it."""
    found = []
    for name, way, helper, options in _courses(storage):
        progress(f"{FAILURES[name].title}: {way}")
        found.append(run(FAILURES[name], way, helper, **options))
        helper.close()
    return found


VANILLA, PROVIDER, HEALTH_CHECK = "vanilla Kubernetes", "cloud provider's taint", "node-healthcheck defaults"
BY_FORCE, OURS, EAGER = "pod deleted by force, by hand", "Kubekeeper", "Kubekeeper, grace 0s"


def _courses(storage: str) -> list[tuple[str, str, Helper, dict[str, Any]]]:
    taints = {"cloud_taints": True}
    return [
        ("kubelet", VANILLA, Helper(), {}),
        ("kubelet", PROVIDER, Helper(), taints),
        ("kubelet", BY_FORCE, Impatient(), {}),
        ("kubelet", HEALTH_CHECK, HealthCheck(), {}),
        ("kubelet", OURS, Kubekeeper(storage), {}),
        ("kubelet", EAGER, Kubekeeper(storage, grace="0s"), {}),
        ("stopped", VANILLA, Helper(), {}),
        ("stopped", PROVIDER, Helper(), taints),
        ("stopped", HEALTH_CHECK, HealthCheck(), {}),
        ("stopped", OURS, Kubekeeper(storage), {}),
        ("deleted", VANILLA, Helper(), {}),
        ("deleted", OURS, Kubekeeper(storage), {}),
    ]


COLUMNS = ("failure", "who helps", "fenced", "disk free", "of that Azure", "runs again", "corruptions")


def rows(courses: list[Course]) -> list[tuple[str, ...]]:
    """The table, in seconds from the failure; `of that Azure` is Azure's own detach."""
    return [
        (
            course.failure,
            course.way,
            _seconds(course.seconds.get("fenced")),
            _seconds(course.seconds.get("diskFree")),
            _seconds(course.detach_seconds or None),
            _seconds(course.running, otherwise=f"not within {GIVE_UP:.0f}"),
            str(course.corruptions),
        )
        for course in courses
    ]


def _seconds(value: float | None, otherwise: str = "-") -> str:
    return otherwise if value is None else f"{value:.0f}"

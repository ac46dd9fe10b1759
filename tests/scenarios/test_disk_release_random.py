"""Random worlds: seeded schedules of everything that can go wrong, then peace, then the oracle's questions.

Every schedule lets machines and kubelets die, come back, be stopped, started, deleted and replaced, disks be
taken or attached by others, Azure refuse, fail, lose answers and lag, Kubernetes refuse, and the app's own
processes die at any request, while messages come late and twice. Afterwards: nothing corrupted where the app
had a hand in it, no disk taken or taint set that should not have been, no effective write twice for one
release, and every disk that could be freed is free.

32 worlds in `make test`, 10,000 with KUBEKEEPER_SWEEP=full, others with KUBEKEEPER_SWEEP=FIRST-LAST.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from disk_release_world import OUT_OF_SERVICE, TICK, Keeper

from sandbox.arm import QUOTED
from sandbox.arm.core import ArmError, Ending
from sandbox.arm.state import Resource
from sandbox.arm.truth import _LISTENERS
from sandbox.asgi import Fault, on
from sandbox.scenario import World, disk_name
from shared.disk_release.cases import machine_name
from shared.model.disk import OWNER_ANNOTATION

pytestmark = pytest.mark.no_cover

TROUBLE, PEACE = 900.0, 2100.0
"""Seconds of trouble, and of the peace in which everything that can be freed has to be."""
REST, STILL = 180.0, 960.0
"""Nothing more is expected of a world in which nothing has changed for so long: where all is well, three
ticks of the timer; where something is left, longer than any deadline of the policy and of the cluster."""
STEP = 5.0
LEFT_TO_PEOPLE = frozenset(
    {
        "DetachFailed",
        "VmFailed",
        "RepairTakesNothingInUse",
        "RepairFreesNoLun",
        "ClusterIsNotFrozen",
        "PowerMoves",
    }
)
"""Why a disk that nothing asked for may stay where it is."""
MACHINES = "/providers/Microsoft.Compute/virtualMachine"


def seeds() -> range:
    """Which schedules this run looks at."""
    wanted = os.environ.get("KUBEKEEPER_SWEEP", "")
    if wanted == "full":
        return range(10_000)
    if "-" in wanted:
        first, last = wanted.split("-")
        return range(int(first), int(last))
    return range(32)


@dataclass
class Story:
    """One world, made and troubled by its seed alone."""

    seed: int
    directory: Path
    log: list[str] = field(default_factory=list)
    volumes: set[str] = field(default_factory=set)
    """Of disks that were attached behind the cluster's back."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.world = World(serve=False, cloud_controller=self.random.random() < 0.6)
        self.world.cloud.marks_out_of_service = self.random.random() < 0.5
        self.world.arm.core.latencies = QUOTED
        self.world.disks.forces = self.random.random() < 0.5
        self.nodes = self._nodes()
        self.replicas = self.random.randint(1, 3)
        self.world.add_stateful_set("db", self.replicas)
        self.world.advance(150)
        self.policy = self._policy()
        self.app = Keeper(self.world, self.directory, **self.policy)
        self.deadly = self.random.random() < 0.5
        self.app.next_death = self._next_death

    def _nodes(self) -> list[str]:
        count, kind = self.random.randint(3, 5), self.random.choice(["single", "uniform", "flexible"])
        if kind == "single":
            names = [f"n{number}" for number in range(count)]
            self.world.add_nodes(*names)
            return names
        self.world.add_scale_set("agents", count, flexible=kind == "flexible")
        return self.world.nodes()

    def _policy(self) -> dict[str, Any]:
        choose = self.random.choice
        return {
            "grace": choose(["0s", "20s", "60s"]),
            "fence": choose(["allowed", "allowed", "allowed", "never"]),
            "fenceWith": choose(["powerOff", "powerOff", "deallocate"]),
            "force": choose([True, True, False]),
            "repair": choose([True, False]),
            "fencesPerWindow": choose([2, 5]),
            "freezeAbovePercent": choose([50, 70]),
            "detachAfter": choose(["30s", "90s"]),
        }

    def _next_death(self) -> int | None:
        return self.random.randint(0, 60) if self.deadly and self.random.random() < 0.25 else None

    # Trouble

    def trouble(self) -> None:
        """A quarter of an hour in which things happen every half minute or so."""
        end = self.world.seconds + TROUBLE
        while self.world.seconds < end:
            self.app.run(self.random.uniform(5, 60), step=STEP)
            happens = self.random.choice(EVENTS)
            node = self.random.choice(self.nodes)
            try:
                happens(self, node)
            except (LookupError, ArmError, AssertionError, KeyError) as error:
                self.log.append(
                    f"{self.world.seconds:g} {happens.__name__} {node}: not possible ({error})"[:120]
                )
            else:
                self.log.append(f"{self.world.seconds:g} {happens.__name__} {node}")
            if self.random.random() < 0.5:
                self.app.nudge("NodeNotReady")
            if self.random.random() < 0.2:
                self.app.nudge("Twice")

    def peace(self) -> None:
        """Nothing breaks any more; what is broken stays so. Over as soon as nothing is left to happen."""
        self.deadly = False
        self.world.arm.core.endings.clear()
        self.world.arm.core.stale.clear()
        self.world.arm.core._closed.clear()
        self.world.arm.recorder.faults.clear()
        self.world.kubernetes.faults.clear()
        self.app.poisoned.clear()
        begun = changed = self.world.seconds
        looks: tuple[Any, ...] = ()
        while self.world.seconds < begun + PEACE:
            if looks != (looks := self.looks()):
                changed = self.world.seconds
            if self.world.seconds - changed >= (REST if self.is_well() else STILL):
                return
            self.app.run(TICK, step=2 * STEP)

    def looks(self) -> tuple[Any, ...]:
        """What would change if anything happened."""
        pods = [(pod.name, pod.node, pod.phase, pod.is_running) for pod in self.world.pods()]
        nodes = [(name, self.world.node(name).is_ready) for name in self.world.nodes()]
        left = sorted(self.app.left_alone().items())
        return pods, nodes, self.world.attachments(), self.held(), left, self.app.state.get("releases")

    def held(self) -> list[tuple[str, str]]:
        """(disk, machine) of data disks, by what Azure says."""
        core = self.world.arm.core
        with core.lock:
            core.settle()
            disks = list(core.state.of_type("Microsoft.Compute/disks"))
        owned = [(disk_name(disk.id), disk.body["managedBy"]) for disk in disks if disk.body.get("managedBy")]
        return sorted((name, owner) for name, owner in owned if name.startswith(("db-", "left-")))

    def is_well(self) -> bool:
        """All pods run where their disks are, no other disk is held anywhere, and nothing is under way."""
        pods = [pod for pod in self.world.pods("db") if pod.is_running]
        wanted = {(f"pv-{pod.name}", pod.node, True) for pod in pods}
        is_running = len(pods) == self.replicas and set(self.world.attachments()) == wanted
        if not is_running or self.app.state.get("releases"):
            return False
        return not (self.left_tainted() or self.zombies() or self.waits())

    def end(self) -> None:
        """Nothing keeps it in memory: there may be thousands after it."""
        self.world.stop()
        _LISTENERS.clear()

    # Questions

    def wrongs(self) -> list[str]:
        """Everything that must not be so."""
        found = [*self.app.violations, *self.app.broken_invariants()]
        found += [f"not released: {disk}" for disk in (*self.stuck(), *self.zombies())]
        found += [f"waits for ever: {line}" for line in self.waits()]
        found += [f"poisoned: {line}" for line in self.app.poisoned]
        found += [f"left tainted: {name}" for name in self.left_tainted()]
        return found

    def waits(self) -> list[str]:
        """What is still waited for though nothing has happened for longer than any deadline."""
        left = self.app.left()
        return [f"{one['subject']}: {one['message']}" for one in left if one["message"].startswith("Wait")]

    def left_tainted(self) -> list[str]:
        """Nodes that carry our taint without need: alive, or without any attachment."""
        held = {node for _, node, _ in self.world.attachments()}
        found = []
        for name in self.world.nodes():
            node = self.world.node(name)
            is_ours = OWNER_ANNOTATION in (node.document["metadata"].get("annotations") or {})
            has_release = name in {r.get("node") for r in self.app.state.get("releases", {}).values()}
            if has_release and not node.is_ready:
                continue
            if is_ours and OUT_OF_SERVICE in node.taints and (node.is_ready or name not in held):
                found.append(name)
        return found

    def stuck(self) -> list[str]:
        """Disks that a dead machine holds, that somebody waits for, and that nothing forbids to free."""
        core, truth = self.world.arm.core, self.world.arm.truth
        found = []
        for number in range(self.replicas):
            disk = core.state.find(self.world.arm.id_of("Microsoft.Compute/disks", f"db-{number}"))
            if disk is None or disk.body["properties"]["diskState"] not in ("Attached", "Reserved"):
                continue
            holder = core.state.find(disk.body["managedBy"])
            pod = next((p for p in self.world.pods("db") if p.name == f"db-{number}"), None)
            if holder is None or pod is None or pod.is_running:
                continue
            if not self._has_node(holder):
                continue  # reported: without its Node nobody can tell what a running machine mounts
            machine = truth.machines[holder.body["properties"]["vmId"]]
            if not machine.running and self._is_ours_to_free(holder):
                found.append(f"db-{number} held by {holder.id.rpartition('/')[2]}")
        return found

    def zombies(self) -> list[str]:
        """Disks of the cluster that a machine with a living node holds, and that nothing there asked for."""
        ready, reasons = self.world.nodes(ready=True), self.app.left_alone()
        found = []
        for disk, machine in self.held():
            if not disk.startswith("left-") or f"pv-{disk}" not in self.volumes:
                continue
            with contextlib.suppress(LookupError):
                pair = f"{disk} on {machine_name(machine)}"
                if self.world.fleet.node_of(machine) in ready and reasons.get(pair) not in LEFT_TO_PEOPLE:
                    found.append(pair)
        return found

    def _has_node(self, holder: Resource) -> bool:
        try:
            return self.world.fleet.node_of(holder.id) in self.world.nodes()
        except LookupError:
            return False

    def _is_ours_to_free(self, holder: Resource) -> bool:
        """Azure knows that the machine is off (or it may be fenced), and the cluster is not frozen."""
        reasons = set(self.app.left_alone().values())
        if not self.policy["force"] and reasons & {"PlainDetachFailed"}:
            return False  # the policy leaves it to people
        if reasons & {"ClusterIsNotFrozen", "FencesAreWithinLimits", "PowerMoves"}:
            return False
        if self.world.nodes(ready=True) == []:
            return False
        is_known_off = holder.hidden.get("power") in ("stopped", "deallocated")
        return is_known_off or self.policy["fence"] == "allowed"

    def figures(self) -> dict[str, int]:
        """What there was to see, for the sum over all worlds."""
        return {
            "random worlds": 1,
            "deaths of the app": self.app.deaths,
            "disks released": len(self.app.events("Released")),
            "fences": len(self.app.events("PoweredOff")),
            "detaches": len(self.app.events("Detached")) + len(self.app.events("ForceDetached")),
            "releasable disks not released": len(self.stuck()) + len(self.zombies()),
            "corruptions by the app": len(self.app.own_corruptions()),
            "by others": len(self.world.corruptions) - len(self.app.own_corruptions()),
        }

    def describe(self) -> str:
        return "\n".join([f"seed {self.seed}", *self.log, self.app.describe()])


# What happens


def kill_kubelet(story: Story, node: str) -> None:
    story.world.kill_kubelet(node)


def revive_kubelet(story: Story, node: str) -> None:
    story.world.revive_kubelet(node)


def crash(story: Story, node: str) -> None:
    story.world.crash(node)


def stop(story: Story, node: str) -> None:
    deallocate = story.random.random() < 0.5
    story.world.stop_machine(node, deallocate=deallocate, at_once=story.random.random() < 0.5)


def start(story: Story, node: str) -> None:
    story.world.start_machine(node, at_once=story.random.random() < 0.5)


def restart(story: Story, node: str) -> None:
    story.world.arm.core.do("POST", story.world.machine(node), None, "restart", at_once=False)


def delete_machine(story: Story, node: str) -> None:
    if len(story.world.nodes(ready=True)) > 2:
        story.world.delete_machine(node, at_once=story.random.random() < 0.5)


def replace_machine(story: Story, node: str) -> None:
    if "virtualMachineScaleSets" not in story.world.machine(node):
        story.world.arm.replace_vm(story.world.machine(node))


def delete_node(story: Story, node: str) -> None:
    if not story.world.node(node).is_ready:
        story.world.delete_node(node)


def delete_pod(story: Story, node: str) -> None:
    for pod in story.world.pods("db", node=node):
        story.world.delete_pod(pod.name)


def cordon(story: Story, node: str) -> None:
    if len(story.world.nodes(ready=True)) > 2:
        story.world.cordon(node)


def attach_somewhere(story: Story, node: str) -> None:
    """Somebody attaches a free disk of the cluster, and nothing in Kubernetes knows of it."""
    name = f"left-{len(story.log)}"
    disk = story.world.arm.add_disk(name, **{"kubernetes.io-created-for-pv-name": f"pv-{name}"})
    if story.random.random() < 0.7:  # else it is none of the cluster's
        story.world.add_volume(f"pv-{name}", disk)
        story.volumes.add(f"pv-{name}")
    story.world.arm.attach(story.world.machine(node), disk, 20 + len(story.log) % 8)


def stop_driver(story: Story, node: str) -> None:
    """The disk driver's controller is down for some minutes: nothing is attached or detached by it."""
    driver = story.world.disks

    def refuse(*_: object) -> None:
        raise RuntimeError("the driver's controller is down")

    def mend() -> None:
        driver.__dict__.pop("_go_on", None)

    driver.__dict__["_go_on"] = refuse
    story.world.at(story.random.uniform(60, 400), mend)


def touch_machine(story: Story, node: str) -> None:
    """Somebody else writes the machine: tags, an extension; it may fail and leave it Failed."""
    if story.random.random() < 0.3:
        story.world.arm.core.endings.append(Ending(on="virtualMachines/patch", code="VMExtensionError"))
    story.world.arm.core.do("PATCH", story.world.machine(node), {"tags": {"by": "others"}}, at_once=False)


def fail_writes(story: Story, node: str) -> None:
    """Operations to come end badly, some with the work done."""
    verb = story.random.choice(["powerOff", "attachDetachDataDisks", "deallocate", "virtualMachines/"])
    status = story.random.choice(["Failed", "Canceled"])
    story.world.arm.core.endings.append(
        Ending(on=verb, status=status, applied=story.random.random() < 0.3, times=story.random.randint(1, 2))
    )


def refuse_requests(story: Story, node: str) -> None:
    """Azure answers some requests with an error, or not at all."""
    method = story.random.choice(["GET", "POST", "*"])
    if story.random.random() < 0.4:
        fault = Fault(on(method, MACHINES), lose_answer=True, times=story.random.randint(1, 3))
    else:
        status = story.random.choice([403, 404, 409, 429, 500, 503])
        code = {404: "ResourceNotFound", 403: "AuthorizationFailed"}.get(status, "Trouble")
        body = {"error": {"code": code, "message": "no"}}
        # Absence is believed after two reads half a minute apart; a service that lies longer deletes Nodes.
        times = 1 if status == 404 else story.random.randint(1, 4)
        fault = Fault(on(method, MACHINES), status=status, body=body, times=times)
    story.world.arm.fault(fault)


def read_the_past(story: Story, node: str) -> None:
    """Reads lag behind by up to what evidence may be old."""
    story.world.arm.core.read_stale(story.random.uniform(1, 10), MACHINES, times=2)


def kubernetes_refuses(story: Story, node: str) -> None:
    status = story.random.choice([409, 429, 500])
    method = story.random.choice(["PATCH", "GET", "DELETE"])
    body = {"kind": "Status", "status": "Failure", "reason": "Trouble", "code": status}
    story.world.kubernetes.faults.append(
        Fault(on(method, "/"), status=status, body=body, times=story.random.randint(1, 3))
    )


EVENTS: list[Callable[[Story, str], None]] = [
    *([kill_kubelet] * 4),
    *([crash] * 3),
    *([stop] * 3),
    *([start] * 3),
    *([revive_kubelet] * 2),
    *([fail_writes] * 2),
    *([stop_driver] * 2),
    *([refuse_requests] * 2),
    restart,
    delete_machine,
    replace_machine,
    delete_node,
    delete_pod,
    cordon,
    attach_somewhere,
    touch_machine,
    read_the_past,
    kubernetes_refuses,
]


@pytest.fixture(scope="module")
def tally() -> Counter[str]:
    """Figures of all worlds so far."""
    return Counter()


@pytest.mark.parametrize("first", seeds()[::16])
def test_random_worlds_end_well(first: int, tmp_path: Path, tally: Counter[str]) -> None:
    for seed in range(first, min(first + 16, seeds().stop)):
        story = Story(seed, tmp_path)
        try:
            story.trouble()
            story.peace()
            wrongs = story.wrongs()
            tally.update(story.figures())
            assert wrongs == [], story.describe()
        finally:
            story.end()


def test_there_was_something_to_see(tally: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the sums; worlds in which nothing is ever released would prove nothing."""
    with capsys.disabled():
        print("\n" + ", ".join(f"{count:,} {what}" for what, count in tally.items()))

    assert all(tally[what] for what in ("deaths of the app", "disks released", "fences", "detaches"))

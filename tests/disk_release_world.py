"""A world for scenarios of the disk release: all of `sandbox.scenario`, and the app's own runtime on it.

`Keeper` runs what the app would run, in simulated time: the timer every minute, nudges and follow-ups from
the queue, operations, each delivered to a process of its own that a test may let die at any request. Storage
is in memory here; Azure and Kubernetes are the stand-ins, reached by the product's own clients.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from in_process import arm_client, kube_client
from ingress_sync_world import Crash, Process, _Counted
from memory_storage import Account, MemoryBlobs, MemoryQueue, MemoryTable

from sandbox.arm import LocalArm
from sandbox.arm.truth import Corruption, Machine
from sandbox.asgi import Recorded
from sandbox.kube import kinds
from sandbox.scenario import World, disk_name
from sandbox.witness import Witness, lists_of
from shared import work
from shared.bootstrap import Clients
from shared.disk_release import observe
from shared.disk_release.policy import DiskReleasePolicy
from shared.errors import AutomationError
from shared.operations import dispatch
from shared.runtime.message import Nudge, Received
from shared.runtime.nudge import fan_out, send_nudge
from shared.settings import Settings, load_settings

AUTOMATION = "disk-release"
CLUSTER = "prod"
TICK = 60.0
"""Seconds between two ticks of the timer."""
MAX_DEQUEUE_COUNT = 5
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service:NoExecute"
EVENTS = kinds.named("events")


class Serial:
    """As a pool of threads, in the caller's own: one order of requests for each seed, and deaths at each."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, work: Callable[..., Any], *items: Any) -> Iterator[Any]:
        return iter([work(*item) for item in zip(*items, strict=True)])


observe.ThreadPoolExecutor = Serial  # type: ignore[misc,assignment]


class WorldClients(Clients):
    """What one process of the app reaches, until it dies."""

    def __init__(self, keeper: Keeper, process: Process) -> None:
        super().__init__(keeper.environ)
        self.keeper, self.process = keeper, process

    def now(self) -> datetime:
        return self.keeper.world.now

    def settings(self) -> Settings:
        return self.keeper.settings

    def blobs(self, container: str) -> Any:
        return self.keeper.witness.store(MemoryBlobs(self.keeper.account, container, self.process.touch))

    def queue(self, name: str) -> Any:
        return MemoryQueue(self.keeper.account, name, self.process.touch)

    def table(self, name: str) -> Any:
        return MemoryTable(self.keeper.account, name, self.process.touch)

    def kube(self, cluster: Any) -> Any:
        return _Counted(Watched(self.keeper.witnessed_kube, self.keeper), "kube", self.process)

    def page_blob(self, url: str) -> Any:
        return self.keeper.page_blobs[url]

    @property
    def arm(self) -> Any:  # type: ignore[override]
        return _Counted(Watched(self.keeper.witnessed_arm, self.keeper), "arm", self.process)

    @property
    def events(self) -> Any:  # type: ignore[override]
        return self

    def publish(self, events: list[Any]) -> None:
        """As a topic."""
        self.keeper.published += events


@dataclass
class Hand:
    """The app has done something by which a disk may leave a machine; `disk` is "" for all of them."""

    vm_id: str
    disk: str
    since: datetime
    until: datetime


LASTING = timedelta(minutes=10)
"""How long after a write what it has set going may take."""
UNSEEN = ("the VM does not run", "the VM is not off", "somebody else changes the VM")


class Watched:
    """A client whose writes the oracle looks at when they arrive, with eyes that the app has not."""

    def __init__(self, inner: Any, keeper: Keeper) -> None:
        self._inner, self._keeper = inner, keeper

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def post(self, resource_id: str, action: str, body: Any = None, **query: str) -> Any:
        if action == "attachDetachDataDisks":
            for disk in body["dataDisksToDetach"]:
                self._keeper.check_detach(resource_id, disk["diskId"], forced="detachOption" in disk)
        begun = self._inner.post(resource_id, action, body, **query)
        self._keeper.note_post(resource_id, action, body)
        return begun

    def patch(self, path: str, change: Any, *arguments: Any) -> Any:
        name = path.rpartition("/")[2]
        if path.startswith("/api/v1/nodes/"):
            taints = (change.get("spec") or {}).get("taints") or ()
            if any(f"{taint['key']}:{taint['effect']}" == OUT_OF_SERVICE for taint in taints):
                self._keeper.check_taint(name)
            else:
                self._keeper.end_taint(name)
        elif "/volumeattachments/" in path:
            self._keeper.note_attachment(name)
        return self._inner.patch(path, change, *arguments)

    def delete(self, path: str, **options: Any) -> Any:
        if "/volumeattachments/" in path:
            self._keeper.note_attachment(path.rpartition("/")[2])
        return self._inner.delete(path, **options)


class Keeper:
    """The app beside a world. `policy` is what stands under `diskRelease` in the configuration."""

    def __init__(self, world: World, directory: Path, **policy: Any) -> None:
        self.world = world
        self.account = Account(lambda: world.now)
        self.kube = kube_client(world.kubernetes)
        self.arm = arm_client(world.arm, lambda: world.now)
        self.witness = Witness(world.arm, lists_of(world.kubernetes), lambda: world.now, lambda: self.state)
        self.witnessed_kube = self.witness.client(self.kube)
        self.witnessed_arm = self.witness.client(self.arm)
        self.published: list[Any] = []
        self.page_blobs: dict[str, Any] = {}
        """Unmanaged disks by their address."""
        self.failures: list[str] = []
        self.poisoned: list[str] = []
        self.deaths = 0
        self.dead, self.disk = "", ""
        """The node and the disk that a test is about."""
        self.next_death: Callable[[], int | None] = lambda: None
        """At which request the next process dies; None for not at all."""
        self.violations: list[str] = []
        """What the oracle has seen the app do that it must never do."""
        self.posts: dict[tuple[int, str, str], int] = {}
        """Accepted writes by (epoch of the release, machine, `plain DISK`, `force DISK` or an action)."""
        self.hands: list[Hand] = []
        """Where the app had a hand in what happens, and for how long."""
        self._next_tick = world.now + timedelta(seconds=TICK)
        path = directory / "kubekeeper.yaml"
        entry = {
            "name": CLUSTER,
            "kubernetes": {"server": "http://127.0.0.1:2", "token": "setting:TOKEN"},
            "azure": {
                "subscription": LocalArm.subscription,
                "resourceGroups": [LocalArm.group],
                "location": "westeurope",
            },
            "diskRelease": {"fence": "allowed", **policy},
        }
        path.write_text(json.dumps({"clusters": [entry]}))
        self.environ = {"KUBEKEEPER_CONFIG": str(path), "TOKEN": "-"}
        self.settings = load_settings(self.environ)

    # Running

    def clients(self, dies_at: int | None = None) -> WorldClients:
        """A new process."""
        return WorldClients(self, Process(dies_at))

    def nudge(self, reason: str = "NodeNotReady") -> None:
        """As an event of the cluster would."""
        send_nudge(self.clients(), Nudge(cluster=CLUSTER, automation=AUTOMATION, reason=reason))

    def operate(self, operation: str, **parameters: Any) -> str:
        """As `keeper run` would; returns the operation's id."""
        return dispatch.submit(self.clients(), operation, CLUSTER, parameters)

    def deliver(self) -> int:
        """Work off what is visible now; one that fails or dies comes again in 30 s."""
        done = 0
        for queue in (AUTOMATION, dispatch.QUEUE):
            source = MemoryQueue(self.account, queue, lambda _: None)
            for message in source.receive(timedelta(seconds=30), 1):
                received = Received(
                    id=message.id,
                    body=message.text.encode(),
                    dequeue_count=message.dequeue_count,
                    inserted_at=message.inserted_at,
                )
                if self._handle(queue, received):
                    source.delete(message)
                elif message.dequeue_count >= MAX_DEQUEUE_COUNT:
                    source.delete(message)
                    self.poisoned.append(self.failures[-1] if self.failures else message.text)
                done += 1
        return done

    def _handle(self, queue: str, received: Received) -> bool:
        clients = self.clients(self.next_death())
        self.witness.process()
        try:
            if queue == dispatch.QUEUE:
                dispatch.work_off(clients, received)
            else:
                work.work_off(clients, queue, received)
        except Crash:
            self.deaths += 1
            return False
        except AutomationError as error:
            self.failures.append(str(error))
            return False
        return True

    def step(self, seconds: float = 1.0) -> None:
        """The timer if it is due, whatever is in the queue, then time."""
        if self.world.now >= self._next_tick:
            self._next_tick += timedelta(seconds=TICK)
            fan_out(self.clients(), AUTOMATION, "Timer")
        while self.deliver():
            pass
        self.world.advance(seconds)

    def run(self, seconds: float, *, step: float = 1.0) -> None:
        end = self.world.now + timedelta(seconds=seconds)
        while self.world.now < end:
            self.step(step)

    def until(self, condition: Callable[[], object], within: float, *, step: float = 1.0) -> float:
        """Seconds until the condition holds; AssertionError with the state of things when it does not."""
        began = self.world.now
        while not condition():
            if (self.world.now - began).total_seconds() >= within:
                raise AssertionError(f"not within {within:g} s\n{self.describe()}")
            self.step(step)
        return (self.world.now - began).total_seconds()

    # The oracle

    def check_detach(self, machine: str, disk: str, *, forced: bool) -> None:
        """A disk that is mounted on a running machine is never taken; by force only from one that is off."""
        found = self._really(machine)
        if found is None:
            return
        self._hand(found.vm_id, disk.lower())
        if found.running and disk.lower() in found.mounts:
            self.violations.append(f"{self.world.seconds:g} s: {disk_name(disk)} taken while mounted")
        if found.running and forced:
            self.violations.append(f"{self.world.seconds:g} s: {disk_name(disk)} forced off a running VM")

    def check_taint(self, node: str) -> None:
        """Out of service is a node whose machine really does not run, or did not when Azure was asked."""
        with contextlib.suppress(LookupError):
            machine = self.world.machine(node)
            found = self._really(machine)
            if found is None:
                return
            self._hand(found.vm_id, "", timedelta(days=1))
            if found.running and not self._was_told_the_past(machine, self.world.now):
                self.violations.append(f"{self.world.seconds:g} s: running node {node} taken out of service")

    def note_post(self, machine: str, action: str, body: Any) -> None:
        """Count what Azure has accepted: within one release nothing is asked for twice."""
        found = self._really(machine)
        if found is not None and action == "reapply":
            self._hand(found.vm_id, "")
        release = self.state.get("releases", {}).get(machine.lower()) or {}
        detached = (body or {}).get("dataDisksToDetach", ())
        whats = [
            f"{'force' if 'detachOption' in disk else 'plain'} {disk['diskId'].lower()}" for disk in detached
        ]
        for what in whats or [action]:
            name = (int(release.get("epoch", 0)), machine.lower(), what)
            self.posts[name] = self.posts.get(name, 0) + 1
            if self.posts[name] > (1 if whats else 2):
                self.violations.append(f"{self.world.seconds:g} s: {what} of {machine} a second time")

    def _really(self, machine: str) -> Machine | None:
        resource = self.world.arm.core.state.find(machine)
        vm_id = resource.body["properties"]["vmId"] if resource else ""
        return self.world.arm.truth.machines.get(vm_id)

    def end_taint(self, node: str) -> None:
        """Out of service no longer; what was begun meanwhile goes on for a while, if anything was."""
        attachments = self.world.kubernetes.objects(kinds.ATTACHMENTS)
        is_left = any(found["spec"]["nodeName"] == node for found in attachments)
        until = self.world.now + (LASTING if is_left else timedelta(0))
        with contextlib.suppress(LookupError):
            found = self._really(self.world.machine(node))
            for hand in self.hands:
                if found is not None and hand.vm_id == found.vm_id and not hand.disk:
                    hand.until = min(hand.until, until)

    def note_attachment(self, name: str) -> None:
        """A VolumeAttachment is deleted, or let go."""
        for found in self.world.kubernetes.objects(kinds.ATTACHMENTS):
            if found["metadata"]["name"] == name:
                with contextlib.suppress(LookupError):
                    machine = self._really(self.world.machine(found["spec"]["nodeName"]))
                    if machine is not None:
                        self._hand(machine.vm_id, self.world.disk_of(found))

    def _hand(self, vm_id: str, disk: str, lasting: timedelta = LASTING) -> None:
        self.hands.append(Hand(vm_id, disk, self.world.now, self.world.now + lasting))

    def broken_invariants(self) -> list[str]:
        """Of I1 to I21 and L1 to L5, over all that the app did; and disks it had a hand in corrupting.

        Where Azure answered out of the past, no evidence can show what others have begun meanwhile. A write
        beside theirs, which Azure itself keeps apart, is excused then, and so are a fence of a machine that
        is going down already and a taint for one that has begun to boot; nothing else is.
        """
        misled = {
            moment.title
            for moment in self.witness.moments
            if self._was_told_the_past(moment.action.parameters["vm"], moment.at)
        }
        found = self.witness.violations(str(found) for found in self.own_corruptions())
        return [line for line in found if not (line.endswith(UNSEEN) and line.split(": ")[1] in misled)]

    def _was_told_the_past(self, machine: str, at: datetime) -> bool:
        """Of the machine that it wrote to, as lately as evidence may be."""
        oldest = at - DiskReleasePolicy().limits.freshness
        pasts = self.world.arm.core.pasts
        return any(path == machine.lower() and oldest <= when <= at for when, path in pasts)

    def own_corruptions(self) -> list[Corruption]:
        """Damage in which the app had a hand; the rest is others' own."""
        return [found for found in self.world.corruptions if self._had_a_hand(found)]

    def _had_a_hand(self, found: Corruption) -> bool:
        at = datetime.fromisoformat(found.at)
        return any(
            hand.vm_id == found.vm_id and hand.disk in ("", found.disk) and hand.since <= at <= hand.until
            for hand in self.hands
        )

    # What can be seen

    @property
    def state(self) -> dict[str, Any]:
        """The automation's own state document."""
        return self.clients().claims.state(CLUSTER, AUTOMATION).automation

    @property
    def asked(self) -> list[Recorded]:
        """Requests to Azure, those of the stand-in's own driver not among them."""
        return self.world.arm.recorder.requests

    def writes(self) -> list[Recorded]:
        """Requests that change something in Azure, accepted ones."""
        return [r for r in self.asked if r.method != "GET" and r.status < 400]

    def reads(self, name: str) -> int:
        """Single reads of one machine or disk, polls not among them."""
        return sum(1 for r in self.asked if r.method == "GET" and r.path.lower().endswith(f"/{name.lower()}"))

    def left_alone(self) -> dict[str, str]:
        """Reasons of the last pass by subject."""
        return {left["subject"]: left["reason"] for left in self.left()}

    def left(self) -> Sequence[Any]:
        """All that the last pass left alone: subject, reason, message."""
        summary = self.clients().journal.summary(CLUSTER, AUTOMATION)
        return summary.left_alone if summary else ()

    def journal(self) -> list[Any]:
        return list(reversed(self.clients().journal.entries([(CLUSTER, AUTOMATION)], limit=500)))

    def events(self, reason: str = "") -> list[str]:
        """Types of outgoing events, without what they all begin with."""
        found = [event.type.removeprefix("Kubekeeper.DiskRelease.") for event in self.published]
        return [kind for kind in found if reason in ("", kind)]

    def describe(self) -> str:
        lines = [self.world.describe(), "  journal:"]
        lines += [
            f"    {e.at:%H:%M:%S} {e.status} {e.action or e.kind} {e.target}: {e.message}"
            for e in self.journal()[-25:]
        ]
        lines += [f"    left alone {subject}: {reason}" for subject, reason in self.left_alone().items()]
        lines += [
            f"  failures: {self.failures[-5:]}",
            f"  state: {json.dumps(self.state, default=str)[:1500]}",
        ]
        return "\n".join(lines)

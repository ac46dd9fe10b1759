"""A cluster that is autoscaled in simulated time: the product's own pass over Azure and Kubernetes.

Both are `sandbox.scenario`'s. `App` speaks real HTTP to them, and leaves the storage account out: claim,
journal and queue are kept in memory (the real ones: test_autoscaling_app); what is saved is JSON, and a pass
that died finds what it had saved. `WholeApp` is the app's whole runtime over a storage account in memory,
without sockets, so that thousands of schedules fit into minutes. Oracles watch every write as it arrives:
what was in the pool, and what ran on the machines.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import msgspec
from in_process import arm_client, kube_client
from ingress_sync_world import Crash as Died
from ingress_sync_world import Process, _Counted
from memory_storage import Account, MemoryBlobs, MemoryQueue, MemoryTable

from sandbox.arm.compute.scalesets import members
from sandbox.kube import kinds
from sandbox.scenario import World
from shared.autoscaling.act import act
from shared.autoscaling.azure import NOW
from shared.autoscaling.facts import read_facts
from shared.autoscaling.growth import follow_growths
from shared.autoscaling.observe import observe, place_of
from shared.autoscaling.removal import follow_removals
from shared.autoscaling.work import Work, begin_work
from shared.bootstrap import Clients
from shared.clients.arm import Arm
from shared.clients.kube import KubeClient
from shared.clients.queue import Message
from shared.errors import ApiError, AutomationError, ConflictError, RunFailedError
from shared.model.plan import Action, Outcome, Plan
from shared.operations import dispatch
from shared.runtime.message import Nudge, Received
from shared.runtime.nudge import send_nudge
from shared.settings import Cluster, Settings
from shared.work import work_off

SIZE = "Standard_D2s_v5"
TICK = 60.0
SETTLE = 10.0
REDELIVERY = 30.0
TABLES = "in memory"


class Crash(BaseException):
    """The worker process dies."""


class MemoryClaim:
    """The automation's state document without a storage account."""

    cluster, automation, run_id = "prod", "autoscaling", "run"

    def __init__(self, app: App) -> None:
        self._app = app

    @property
    def state(self) -> dict[str, Any]:
        return self._app.state

    @property
    def begun(self) -> int:
        return self._app.passes

    def save(self, state: dict[str, Any]) -> None:
        text = msgspec.json.encode(state)
        self._app.around("save", lambda: self._app.store(json.loads(text)))

    def ensure(self) -> None:
        pass


class MemoryJournal:
    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.last: Any = None

    def add(self, entry: Any) -> None:
        self.entries.append(entry)

    def put_summary(self, summary: Any) -> None:
        self.last = summary

    def summary(self, *_: str) -> Any:
        return self.last

    def note_sizes(self, *_: Any) -> None:
        """Charts are no matter of these tests."""


class HeapQueue:
    def __init__(self, app: App) -> None:
        self._app = app

    def send(self, text: str, delay: timedelta = timedelta(0)) -> str:
        nudge = msgspec.json.decode(text, type=Nudge)
        self._app.deliver(delay.total_seconds(), nudge.reason)
        return "id"


class SimClients(Clients):
    """The product's clients, with the world's clock."""

    def __init__(self, app: App) -> None:
        super().__init__(app.environ, app.world.arm.credential())
        self._app = app
        self.journal = MemoryJournal()  # type: ignore[assignment]
        self.events = None

    def now(self) -> datetime:
        return self._app.world.now

    def queue(self, name: str) -> Any:
        return HeapQueue(self._app)


class App:
    """One function app over `world`. `steps` counts requests and saves; `crash_at` ends the worker at one."""

    def __init__(self, world: World, **policy: Any) -> None:
        self.world = world
        self.environ = self.environment()
        self.cluster = self.configured(policy)
        self.clients = self.connect()
        self.state: dict[str, Any] = {}
        self.passes = 0
        self.steps = 0
        self.crash_at: Callable[[int], str] = lambda _: ""
        self.crashes = 0
        self.outcomes: list[Outcome] = []
        self.failures: list[Exception] = []
        self.broken: list[str] = []
        """Promises that did not hold, as the oracles saw it."""
        self._due: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._last_pass = -math.inf
        self.limits: dict[str, int] = {}
        """Most machines that each pool may ever hold, by its id."""
        self._instrument()
        world._cleanup.callback(self.close)

    def close(self) -> None:
        """Idle connections would be waited for when the servers stop."""
        self.clients.kube(self.cluster).close()
        self.clients.arm._client.close()

    # Set-up

    def environment(self) -> dict[str, str]:
        token = self.world.kubernetes.api.tokens.issue("kubekeeper", ("system:masters",))
        return {**self.world.environ(), "KUBE_TOKEN": str(token)}

    def connect(self) -> Any:
        """The clients of the app's passes."""
        return SimClients(self)

    def configured(self, policy: dict[str, Any]) -> Cluster:
        arm = self.world.arm
        azure = {"subscription": arm.subscription, "resourceGroups": [arm.group], "location": "westeurope"}
        managed = policy.pop("managedCluster", None)
        azure |= {"managedCluster": managed} if managed else {}
        ca = f"file:{self.world.kubernetes.directory / 'ca.pem'}"
        connection = {"server": self.world.kubernetes.server, "ca": ca, "token": "setting:KUBE_TOKEN"}
        entry = {"name": "prod", "kubernetes": connection, "azure": azure, "autoscaling": policy}
        return msgspec.convert(entry, Cluster)

    def _instrument(self) -> None:
        """Every request and save is a step at which the worker may die, before it or after."""
        app = self
        arm, kube = self.clients.arm, self.clients.kube(self.cluster)

        def counted(send: Callable[..., Any], name: str) -> Callable[..., Any]:
            def sending(*args: Any, **options: Any) -> Any:
                def work() -> Any:
                    return app.judged(send, *args, **options) if name == "arm" else send(*args, **options)

                return app.around(f"{name} {args[0]} {args[1]}", work)

            return sending

        assert isinstance(arm, Arm) and isinstance(kube, KubeClient)
        arm._send = counted(arm._send, "arm")  # type: ignore[method-assign]
        kube._send = counted(kube._send, "kube")  # type: ignore[method-assign]

    def around(self, _what: str, work: Callable[[], Any]) -> Any:
        self.steps += 1
        how = self.crash_at(self.steps)
        if how == "before":
            self.crashes += 1
            raise Crash
        answer = work()
        if how == "after":
            self.crashes += 1
            raise Crash
        return answer

    def store(self, state: dict[str, Any]) -> None:
        self.state = state

    def budget(self, name: str, **spec: Any) -> None:
        """A PodDisruptionBudget through the API, so that the disruption controller sees it."""
        selector = {"matchLabels": {"app": name}}
        document = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}}
        where = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
        self.clients.kube(self.cluster).create(where, {**document, "spec": {"selector": selector, **spec}})

    # Time

    def deliver(self, after: float, reason: str = "Test") -> None:
        """A nudge that becomes visible after so many seconds."""
        heapq.heappush(self._due, (self.world.seconds + after, next(self._order), reason))

    def nudge(self) -> None:
        """Now, and at once."""
        self.deliver(0.0)
        self.run(0.0)

    def run(self, seconds: float, *, tick: float = TICK) -> None:
        """Let time go by; the timer ticks, nudges are delivered, passes are made."""
        end = self.world.seconds + seconds
        ticks = self.world.seconds - self.world.seconds % tick + tick
        while True:
            due = self._due[0][0] if self._due else math.inf
            upcoming = min(due, ticks)
            if upcoming > end:
                break
            self.world.advance(max(0.0, upcoming - self.world.seconds))
            if ticks <= due:
                ticks += tick
                self._pass()
                continue
            heapq.heappop(self._due)
            wait = self._last_pass + SETTLE - self.world.seconds
            if wait > 0:
                if not any(at <= self.world.seconds + wait for at, _, _ in self._due):
                    self.deliver(wait)
                continue
            self._pass()
        self.world.advance(max(0.0, end - self.world.seconds))

    def until(self, condition: Callable[[], object], within: float) -> float:
        """As World.until, with passes; returns the seconds it took."""
        began = self.world.seconds
        while not condition():
            if self.world.seconds - began >= within:
                raise AssertionError(f"not within {within:g} s\n{self.describe()}")
            self.run(1.0)
        return self.world.seconds - began

    def _pass(self) -> None:
        from shared.autoscaling.reconcile import reconcile

        self.passes += 1
        self._last_pass = self.world.seconds
        try:
            self.outcomes += reconcile(
                self.cluster,
                self.clients,
                MemoryClaim(self),  # type: ignore[arg-type]
                self.world.now,
            )
        except Crash:
            self.deliver(REDELIVERY)
        except (RunFailedError, ApiError) as error:
            self.failures.append(error)
            self.deliver(REDELIVERY)
        self.check_pools()

    # One pass by hand: what was begun goes on, then a plan of the test's own is carried out

    def work(self) -> Work:
        self.passes += 1
        return begin_work(place_of(self.cluster, self.clients, self.world.now), MemoryClaim(self))  # type: ignore[arg-type]

    def follow(self) -> list[Outcome]:
        work = self.work()
        return follow_growths(work) + follow_removals(work)

    def carry_out(self, *actions: Action) -> list[Outcome]:
        work = self.work()
        work.remembered  # noqa: B018  made, so that what is read is kept
        observation = observe(work.place, work.state, NOW)
        pools = {pool.id: pool for pool in read_facts(observation.azure, work.place.policy).pools}
        nodes = {node.name: node for node in observation.kubernetes.nodes}
        plan = Plan(automation="autoscaling", cluster="prod", now=self.world.now, actions=actions)
        return act(plan, work, pools, nodes)

    # Oracles

    def judged(self, send: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Send a request, noting the promises it breaks; one refused for its version breaks none."""
        found = list(self._judge(args[0], args[1], args[3] if len(args) > 3 else None))
        try:
            answer = send(*args, **options)
        except ConflictError:
            raise
        except ApiError:
            self.broken += found
            raise
        self.broken += found
        return answer

    def _judge(self, method: str, url: str, body: Any) -> Iterator[str]:
        """What a request that is about to leave would break."""
        path = urlsplit(url).path
        body = json.loads(body) if isinstance(body, bytes) else (body or {})
        if method in ("PATCH", "PUT") and "/virtualmachinescalesets/" in path.lower():
            yield from self._no_shrink(path, (body.get("sku") or {}).get("capacity"))
        if method == "POST" and path.lower().endswith("/delete"):
            pool = path.rpartition("/")[0]
            yield from self._all_left([f"{pool}/virtualMachines/{one}" for one in body["instanceIds"]], pool)
        if method == "DELETE" and "/virtualmachines/" in path.lower():
            yield from self._all_left([path], "")

    def _no_shrink(self, pool: str, capacity: int | None) -> Iterator[str]:
        with self.world.arm.core.lock:
            self.world.arm.core.settle()
            found = self.world.arm.core.state.find(pool)
            there = found.body["sku"]["capacity"] if found else 0
        if capacity is not None and capacity < there:
            yield f"{pool}: capacity {capacity} asked for where there are {there}"

    def _all_left(self, machines: list[str], pool: str) -> Iterator[str]:
        flexible = [one for one in machines if self.world.arm.core.state.find(one) is None]
        group = pool.rpartition("/virtualMachineScaleSets/")[0]
        machines = machines + [f"{group}/virtualMachines/{one.rpartition('/')[2]}" for one in flexible]
        if left := self.unevicted(machines):
            yield f"deleted with pods on them: {', '.join(left)}"

    def check_pools(self) -> None:
        """No pool ever holds more machines than it was given leave for."""
        for pool, most in self.limits.items():
            if (found := self.capacity(pool)) > most:
                self.broken.append(f"{pool.rpartition('/')[2]} has {found} machines, {most} are enough")

    def capacity(self, pool: str) -> int:
        """Machines of a scale set that are there or on their way, without failed and going ones."""
        with self.world.arm.core.lock:
            self.world.arm.core.settle()
            found = self.world.arm.core.state.find(pool)
            assert found is not None
            states = [
                machine.body["properties"]["provisioningState"]
                for machine in members(self.world.arm.core.state, found)
            ]
        return sum(1 for state in states if state not in ("Deleting", "Failed"))

    def unevicted(self, machines: list[str]) -> list[str]:
        """Pods that would die with these machines without having been asked to leave."""
        wanted = {f"azure://{one}".lower() for one in machines}
        nodes = {
            node["metadata"]["name"]
            for node in self.world.kubernetes.objects(kinds.NODES)
            if str(node["spec"].get("providerID", "")).lower() in wanted
        }
        return [
            f"{pod['metadata']['name']} on {pod['spec']['nodeName']}"
            for pod in self.world.kubernetes.objects(kinds.PODS)
            if pod["spec"].get("nodeName") in nodes
            and pod["status"].get("phase") not in ("Succeeded", "Failed")
            and "deletionTimestamp" not in pod["metadata"]
            and not any(o["kind"] == "DaemonSet" for o in pod["metadata"].get("ownerReferences") or ())
        ]

    def describe(self) -> str:
        lines = [self.world.describe(), "state: " + json.dumps(_shown(self.state), indent=1)]
        lines += [f"  {o.status} {o.action.kind} {o.action.target}: {o.message}" for o in self.outcomes[-12:]]
        last = self.clients.journal.last  # type: ignore[attr-defined]
        if last is not None:
            lines += [f"  left {one['subject']}: {one['reason']} {one['message']}" for one in last.left_alone]
        return "\n".join([*lines, *map(str, self.failures[-3:])])

    def reads(self) -> int:
        """Requests to Azure that change nothing, so far."""
        return sum(1 for one in self.world.arm.recorder.requests if one.method == "GET")

    def writes(self) -> list[str]:
        """Requests to Azure that change something, so far."""
        return [str(one) for one in self.world.arm.recorder.requests if one.method != "GET"]


def _shown(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name not in ("azure", "told")}


# The whole runtime, without sockets: for sweeps


class ProcessClients(Clients):
    """What one worker process reaches, until it dies. Storage is in memory, the claims are the real ones."""

    def __init__(self, app: WholeApp, process: Process) -> None:
        super().__init__(app.environ, app.world.arm.credential())
        self.app, self.process = app, process

    def now(self) -> datetime:
        return self.app.world.now

    def settings(self) -> Settings:
        return Settings(clusters=(self.app.cluster,))

    def blobs(self, container: str) -> Any:
        return MemoryBlobs(self.app.account, container, self.process.touch)

    def queue(self, name: str) -> Any:
        return MemoryQueue(self.app.account, name, self.process.touch)

    def table(self, name: str) -> Any:
        return MemoryTable(self.app.account, name, self.process.touch)

    def kube(self, cluster: Any) -> Any:
        return _Counted(self.app.kube, "kube", self.process)

    @property
    def arm(self) -> Any:  # type: ignore[override]
        return _Counted(self.app.arm, "arm", self.process)

    @property
    def events(self) -> Any:  # type: ignore[override]
        return None


HANDLERS: dict[str, Callable[[Clients, Received], None]] = {
    "autoscaling": lambda clients, received: work_off(clients, "autoscaling", received),
    dispatch.QUEUE: dispatch.work_off,
}


class WholeApp(App):
    """Timer, queue, claims and passes as the app has them; each delivery is a process of its own, that dies
    at the request that `next_death` says.
    """

    def __init__(self, world: World, **policy: Any) -> None:
        self.account = Account(lambda: world.now)
        self.kube = kube_client(world.kubernetes)
        self.arm = arm_client(world.arm, lambda: world.now)
        self.next_death: Callable[[], int | None] = lambda: None
        self._next_tick = TICK
        super().__init__(world, **policy)

    def environment(self) -> dict[str, str]:
        return {"KUBE_TOKEN": "-"}

    def connect(self) -> Any:
        return ProcessClients(self, Process())

    def close(self) -> None:
        pass

    def _instrument(self) -> None:
        send = self.arm._send

        def sending(*args: Any, **options: Any) -> Any:
            return self.judged(send, *args, **options)

        self.arm._send = sending  # type: ignore[method-assign]

    @property
    def state(self) -> dict[str, Any]:
        """The automation's part of the state document in the store."""
        return self.clients.claims.state("prod", "autoscaling").automation

    @state.setter
    def state(self, _: dict[str, Any]) -> None:
        pass

    def deliver(self, after: float, reason: str = "Test") -> None:
        nudge = Nudge(cluster="prod", automation="autoscaling", reason=reason)
        send_nudge(self.clients, nudge, timedelta(seconds=after))

    def run(self, seconds: float, *, tick: float = TICK) -> None:
        """Ticks and messages, in the order in which they become visible."""
        end = self.world.seconds + seconds
        queues = [MemoryQueue(self.account, name, lambda _: None) for name in HANDLERS]
        for queue in queues:
            queue.ensure()
        while True:
            visible, queue = min(
                ((queue.next_visible(), queue) for queue in queues),
                key=lambda one: one[0].timestamp() if one[0] else math.inf,
            )
            due = (visible - self.world.started).total_seconds() if visible else math.inf
            upcoming = min(due, self._next_tick)
            if upcoming > end:
                break
            self.world.advance(max(0.0, upcoming - self.world.seconds))
            if self._next_tick <= due:
                self._next_tick += tick
                self.deliver(0.0, "Timer")
                continue
            for message in queue.receive(timedelta(seconds=REDELIVERY), 1):
                if self._handle(queue.name, message):
                    queue.delete(message)
        self.world.advance(max(0.0, end - self.world.seconds))

    def _handle(self, queue: str, message: Message) -> bool:
        """Whether the message is done with; as on the platform, five failures are the last."""
        received = Received(
            id=message.id,
            body=message.text.encode(),
            dequeue_count=min(message.dequeue_count, 5),
            inserted_at=message.inserted_at,
        )
        self.passes += 1
        process = Process(self.next_death())
        try:
            HANDLERS[queue](ProcessClients(self, process), received)
        except Died:
            self.crashes += 1
            return False
        except AutomationError as error:
            self.failures.append(error)
            return message.dequeue_count >= 5
        finally:
            self.steps += len(process.requests)
            self.check_pools()
        return True

    def describe(self) -> str:
        entries = reversed(self.clients.journal.entries([("prod", "autoscaling")], limit=30))
        lines = [self.world.describe(), "state: " + json.dumps(_shown(self.state), indent=1)]
        lines += [f"  {one.at:%H:%M:%S} {one.status} {one.target}: {one.message}" for one in entries]
        return "\n".join([*lines, *map(str, self.failures[-3:])])

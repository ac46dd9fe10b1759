"""An hour of a busy cluster with all that goes wrong between it and the forwarder, in accelerated time.

The forwarder is the real one, over real TLS connections to the local Kubernetes; its clock runs SPEED times
as fast as the machine's. Connections are cut, the API server is away, its history is forgotten (410), nothing
can be sent for a while. Every trouble that is made must be heard of: by a message of its kind, sent after it
began, at the latest with the resync after the road was free again.

`KUBEKEEPER_SWEEP=full` takes an hour (three minutes of the machine's time); otherwise it is a part of one.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import random
import time
import tracemalloc
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from forwarder_world import (
    INGRESSES,
    SERVICES,
    SLICES,
    Gate,
    Kept,
    Running,
    attach_event,
    attachment,
    endpoint_slice,
    ingress,
    node,
    pod,
    rewrite,
    service,
    until,
)

from sandbox.kube import LocalKubernetes
from sandbox.kube.kinds import ATTACHMENTS, EVENTS, NODES, PODS, Kind
from shared.errors import UnavailableError
from shared.forwarder.clock import Clock
from shared.forwarder.gather import Message, Pace

pytestmark = pytest.mark.no_cover

SPEED = 20.0
FULL = os.environ.get("KUBEKEEPER_SWEEP") == "full"
HOUR = 3600.0
LENGTH = HOUR if FULL else 480.0
RESYNC = 120.0
PACE = Pace(quiet=1, longest=5, gap=10)
NODE_COUNT, SERVICE_COUNT = 100, 60
CHANGES_PER_SECOND = 3.0
SLACK = 60.0
"""Three seconds of the machine's time, which others use as well."""


@dataclass
class Trouble:
    """Something that somebody must hear of."""

    event: str
    subject: str
    at: float
    heard_after: float | None = None


@dataclass
class Cluster:
    """A cluster that is never still; remembers each trouble it makes."""

    kubernetes: LocalKubernetes
    clock: Clock
    draw: random.Random
    troubles: list[Trouble] = field(default_factory=list)
    changes: int = 0
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _old: deque[tuple[float, Kind, str, str]] = field(default_factory=deque)
    """What goes again, oldest first: so the cluster stays as large as it is."""

    def fill(self) -> None:
        for number in range(NODE_COUNT):
            self.kubernetes.put(NODES, node(f"n-{number}"))
            self.kubernetes.put(ATTACHMENTS, attachment(f"va-{number}"))
        for number in range(SERVICE_COUNT):
            self.kubernetes.put(SERVICES, service(f"s-{number}"))
            self.kubernetes.put(SLICES, endpoint_slice(f"s-{number}", ("10.0.0.1",)))
        for number in range(SERVICE_COUNT // 2):
            self.kubernetes.put(INGRESSES, ingress(f"i-{number}", f"s-{number}"))

    def change(self) -> None:
        """Something happens."""
        self.changes += 1
        what = self.draw.choices(
            (
                self.pod_comes,
                self.pod_waits,
                self.something_goes,
                self.report,
                self.break_node,
                self.endpoints,
                self.apply_ingress,
                self.fail_to_attach,
                self.attach_error,
            ),
            (30, 3, 10, 20, 1, 20, 1, 1, 1),
        )[0]
        what()

    def made(self, kind: Kind, name: str, namespace: str = "") -> None:
        self._old.append((self.clock.now(), kind, name, namespace))

    def something_goes(self) -> None:
        # Never so soon that a resync could not see it.
        while self._old and self._old[0][0] < self.clock.now() - 1.5 * RESYNC:
            _, kind, name, namespace = self._old.popleft()
            self.kubernetes.remove(kind, name, namespace, grace=0)

    def say(self, event: str, subject: str) -> None:
        self.troubles.append(Trouble(event, subject, self.clock.now()))

    def pod_comes(self) -> None:
        name = f"p-{next(self._numbers)}"
        self.kubernetes.put(PODS, pod(name))
        bound = pod(name)
        bound["spec"]["nodeName"] = "n-1"
        bound["status"]["phase"] = "Running"
        rewrite(self.kubernetes, PODS, bound)
        self.made(PODS, name, "default")

    def pod_waits(self) -> None:
        name = f"w-{next(self._numbers)}"
        self.say("PodUnschedulable", f"default/{name}")
        self.kubernetes.put(PODS, pod(name, unschedulable=True))
        self.made(PODS, name, "default")

    def report(self) -> None:
        rewrite(self.kubernetes, NODES, node(f"n-{self.draw.randrange(NODE_COUNT)}"))

    def break_node(self) -> None:
        name = f"new-{next(self._numbers)}"
        self.kubernetes.put(NODES, node(name))
        self.made(NODES, name)
        self.say("NodeNotReady", name)
        rewrite(self.kubernetes, NODES, node(name, "Unknown"))

    def endpoints(self) -> None:
        number = self.draw.randrange(SERVICE_COUNT)
        if number < SERVICE_COUNT // 2:
            self.say("EndpointsChanged", f"default/s-{number}")
        address = f"10.0.{self.changes % 250}.{self.changes // 250}"
        rewrite(self.kubernetes, SLICES, endpoint_slice(f"s-{number}", (address,)))

    def apply_ingress(self) -> None:
        number = self.draw.randrange(SERVICE_COUNT // 2)
        self.say("IngressChanged", f"default/i-{number}")
        rewrite(self.kubernetes, INGRESSES, ingress(f"i-{number}", f"s-{number}", note=str(self.changes)))

    def fail_to_attach(self) -> None:
        self.say("VolumeAttachFailed", "default/db-0")
        name = f"e-{next(self._numbers)}"
        self.kubernetes.put(EVENTS, attach_event(name))
        self.made(EVENTS, name, "default")

    def attach_error(self) -> None:
        name = f"va-{self.draw.randrange(NODE_COUNT)}"
        self.say("VolumeAttachFailed", name)
        rewrite(
            self.kubernetes, ATTACHMENTS, attachment(name, attached=False, attach_error=f"e{self.changes}")
        )


@dataclass
class Road:
    """What goes wrong between the cluster and the forwarder, and between that and its destination."""

    gate: Gate
    kept: Kept
    kubernetes: LocalKubernetes
    clock: Clock
    draw: random.Random
    happened: dict[str, int] = field(default_factory=dict)
    outages: list[tuple[float, float]] = field(default_factory=list)
    """From when to when nothing came through, or nothing could be sent."""

    def disturb(self) -> None:
        what = self.draw.choice((self.cut, self.cut, self.restart, self.forget, self.refuse))
        self.happened[what.__name__] = self.happened.get(what.__name__, 0) + 1
        what()

    def cut(self) -> None:
        self._outage(0)
        self.gate.cut()

    def restart(self) -> None:
        self.gate.close()
        self._outage(self.draw.uniform(5, 40))

    def forget(self) -> None:
        """Cut, and by the time they are back, history is gone."""
        self.gate.close()
        self._outage(self.draw.uniform(1, 5))
        self.kubernetes.store.forget()

    def refuse(self) -> None:
        self.kept.error = UnavailableError("no answer from the topic")
        self._outage(self.draw.uniform(5, 40))

    def settle(self, now: float) -> None:
        """End what has lasted long enough."""
        if now >= self.outages[-1][1]:
            if self.gate.is_open is False:
                self.kubernetes.store.forget() if self.draw.random() < 0.3 else None
            self.gate.open()
            self.kept.error = None

    def _outage(self, seconds: float) -> None:
        now = self.clock.now()
        self.outages.append((now, now + seconds))

    def free_after(self, at: float) -> float:
        """When the road was free again for what happened then."""
        end = at
        for begin, until_then in self.outages:
            # How long a follower or the courier rests before it tries again: no longer than the outage was.
            if begin <= end + PACE.gap + PACE.longest and until_then >= at - 1:
                end = max(end, until_then + min(until_then - begin, 60) + 2)
        return end


@pytest.mark.slow
def test_no_trouble_goes_unheard_and_memory_stays_flat(capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(20261126)
    clock = Clock(SPEED)
    kept = Heard(clock)
    with LocalKubernetes() as kubernetes:
        cluster = Cluster(kubernetes, clock, draw)
        cluster.fill()
        port = int(kubernetes.server.rpartition(":")[2])
        with (
            Gate(port) as gate,
            Running(
                kubernetes, kept, port=gate.port, clock=clock, pace=PACE, resync=RESYNC, etcd_interval=30.0
            ) as running,
        ):
            running.ready()
            until(lambda: kept.of("IngressChanged"))
            road = Road(gate, kept, kubernetes, clock, draw)
            sizes = drive(cluster, road, clock)
            gate.open()
            kept.error = None
            running.ready()
            until(lambda: unheard(cluster, kept) == [], "everything to be heard", 60)
            waited = running.forwarder.mind.waiting(clock.now())[0]
            figures = judge(cluster, road, kept)
            lists = {
                cause: int(running.value("lists_total", cause=cause))
                for cause in ("Start", "Expired", "Resync")
            }
            with capsys.disabled():
                print(
                    f"\nforwarder soak: {LENGTH / 60:.0f} min at {SPEED:.0f}x, {cluster.changes} changes, "
                    f"{len(cluster.troubles)} troubles, disturbances {road.happened}; "
                    f"{len(kept.messages)} messages, lists "
                    f"{lists}, "
                    f"breaks {running.value('breaks_total'):.0f}; {figures}; "
                    f"traced KiB {[size // 1024 for size in sizes]}"
                )
            assert set(road.happened) == {"cut", "restart", "forget", "refuse"} or not FULL
            assert running.value("lists_total", cause="Expired") > 0
            assert waited <= 6
    # The second half against the end of the first, when the cluster was as large as it stays.
    assert max(sizes[5:]) < 1.25 * max(sizes[3:5]) + 32 * 1024


class Heard(Kept):
    """Keeps copies, so that the test keeps none of the forwarder's memory alive, and when each came."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.at: list[float] = []

    def send(self, messages: list[Message]) -> object:
        failed = super().send([_copy(message) for message in messages])
        if not failed:
            self.at += [self._clock.now()] * len(messages)
        return failed


def _copy(message: Message) -> Message:
    subjects = [subject.encode().decode() for subject in message.subjects]
    return dataclasses.replace(message, whys=[*message.whys], subjects=subjects)


def drive(cluster: Cluster, road: Road, clock: Clock) -> list[int]:
    """Churn and disturbances for LENGTH; the forwarder's memory ten times on the way."""
    began = clock.now()
    next_change, next_disturbance = began, began + 15
    sizes: list[int] = []
    tracemalloc.start()
    # Times that this test keeps come from the clock, log lines stay with pytest: neither is its own.
    theirs = ("*/shared/forwarder/clock.py", "*/shared/log.py")
    filters = [tracemalloc.Filter(True, "*/shared/*"), *(tracemalloc.Filter(False, one) for one in theirs)]
    try:
        while (now := clock.now()) < began + LENGTH:
            while next_change <= now:
                cluster.change()
                next_change += cluster.draw.expovariate(CHANGES_PER_SECOND)
            if now >= next_disturbance:
                road.disturb()
                next_disturbance = now + cluster.draw.uniform(20, 90)
            if road.outages:
                road.settle(now)
            if len(sizes) < 10 * (now - began) / LENGTH:
                gc.collect()
                traced = tracemalloc.take_snapshot().filter_traces(filters)
                sizes.append(sum(one.size for one in traced.statistics("filename")))
            time.sleep(0.005)
    finally:
        tracemalloc.stop()
    return sizes


def unheard(cluster: Cluster, kept: Heard) -> list[Trouble]:
    """Troubles for whose event no message has been sent since; fills in when the first one was."""
    found = []
    times: dict[str, list[float]] = {}
    for message, at in zip(list(kept.messages), list(kept.at), strict=False):
        times.setdefault(message.event, []).append((message.last_at, at))
    for trouble in cluster.troubles:
        if trouble.heard_after is None:
            heard = [at for last_at, at in times.get(trouble.event, ()) if last_at >= trouble.at]
            trouble.heard_after = min(heard) - trouble.at if heard else None
        if trouble.heard_after is None:
            found.append(trouble)
    return found


def judge(cluster: Cluster, road: Road, kept: Heard) -> str:
    """What it took to be heard; fails for what was later than gap and outages explain and a resync covers."""
    prompt = PACE.longest + PACE.gap + SLACK
    late = [
        one for one in cluster.troubles if one.at + (one.heard_after or 0) > road.free_after(one.at) + prompt
    ]
    by_resync = [
        one for one in late if (one.heard_after or 0) <= RESYNC + road.free_after(one.at) - one.at + prompt
    ]
    assert [one for one in late if one not in by_resync] == []
    delays = sorted(one.heard_after or 0.0 for one in cluster.troubles)
    named = {subject for message in kept.messages for subject in message.subjects}
    return (
        f"heard after p50 {delays[len(delays) // 2]:.1f} s, p99 {delays[len(delays) * 99 // 100]:.1f} s, "
        f"longest {delays[-1]:.1f} s (outages included); only by resync {len(by_resync)}; unheard 0; "
        f"{len(named)} objects named"
    )

"""Autoscaling: folding pods against the official client's typed list, and how long deciding takes.

All in this process, CPU seconds, medians. Pods are synthetic: 5 KB each as kubelets and controllers leave
them; requests vary, so that there are as many distinct shapes as a figure's name says.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from bench.figure import Figure, at_most, fewer
from shared.autoscaling.observation import Collector, Observation
from shared.model.snapshot import AzureReading

Emit = Callable[[Figure], None]
NOW = datetime(2026, 11, 25, 10, tzinfo=UTC)
BASE = "/subscriptions/s/resourcegroups/g/providers/microsoft.compute/virtualmachinescalesets"
PAGE = 500
ROUNDS = 5
PENDING = 50_000
DECISIONS = (
    (
        *(200, 0.1),
        "5,000 nodes, 1,700 new ones, 12,000 placements and 50,000 lines of the plan are Python objects "
        "of 0.5 to 15 us each; no step takes pods times nodes",
    ),
    (
        *(1_000, 0.3),
        "the same objects as with 200 shapes are two thirds of it, 3,700 searches for room the rest",
    ),
    (
        *(10_000, 1.0),
        "every shape has 5 pods and is looked at by itself: 29,000 searches for room are a third of it",
    ),
)
"""Shapes, the goal in seconds, and why a decision takes longer where it does."""
WHY_FOLD = (
    "three quarters of the fold are msgspec reading the JSON; what the typed client takes, and so the ratio, "
    "differs by half from run to run"
)
FOLD_PODS = 150_000
TYPED_PODS = 1_000
CA_NODES = 2_595
"""kubernetes/autoscaler#6667."""
ZONES = ("1", "2", "3")
POOLS = ((4, 16), (8, 32), (16, 64), (8, 64), (16, 128), (4, 8))
"""Cores and GiB of the pools' sizes."""


def run(wants: Callable[[str], bool], emit: Emit) -> None:
    """The figures that are wanted."""
    if wants("autoscaling-fold"):
        for figure in _fold():
            emit(figure)
    for shapes, limit, why in DECISIONS:
        name = f"autoscaling-decide-{shapes}-shapes"
        if wants(name):
            emit(_decide(name, shapes, limit).explained(why))
    if wants("autoscaling-ca-benchmark"):
        emit(_ca_benchmark())
    if wants("autoscaling-mix"):
        for figure in _mix():
            emit(figure)


# Synthetic clusters


def pod(number: int, *, node: str = "", cpu: int = 100, memory: int = 128, app: int = 0) -> dict[str, Any]:
    """A pod of about 5 KB."""
    padding = {f"annotation-{one}.example.com/key": "x" * 120 for one in range(12)}
    document: dict[str, Any] = {
        "metadata": {
            "name": f"app-{app}-{number:06d}",
            "namespace": f"team-{app % 20}",
            "uid": f"uid-{number}",
            "labels": {"app": f"app-{app}"},
            "annotations": padding,
            "creationTimestamp": "2026-11-25T09:00:00Z",
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": f"app-{app}",
                    "controller": True,
                    "uid": "o",
                }
            ],
        },
        "spec": {
            "containers": [
                {
                    "name": "main",
                    "image": "registry.example.com/team/app:1.2.3",
                    "env": [{"name": f"VARIABLE_{one}", "value": "v" * 40} for one in range(25)],
                    "resources": {"requests": {"cpu": f"{cpu}m", "memory": f"{memory}Mi"}},
                }
            ]
        },
        "status": {
            "phase": "Running" if node else "Pending",
            "conditions": [{"type": "Ready", "status": "True"}] * 4,
        },
    }
    if node:
        document["spec"]["nodeName"] = node
    return document


def node(pool: int, number: int) -> dict[str, Any]:
    """A ready node of a pool."""
    cores, gib = POOLS[pool]
    name = f"pool{pool}-{number:05d}"
    return {
        "metadata": {
            "name": name,
            "uid": name,
            "creationTimestamp": "2026-11-20T09:00:00Z",
            "labels": {
                "kubernetes.io/hostname": name,
                "topology.kubernetes.io/zone": f"westeurope-{ZONES[number % 3]}",
                "node.kubernetes.io/instance-type": f"size{pool}",
            },
        },
        "spec": {"providerID": f"azure://{BASE}/pool{pool}/virtualMachines/{number}"},
        "status": {
            "allocatable": {"cpu": f"{cores * 1000 - 140}m", "memory": f"{gib - 2}Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-20T09:01:00Z"}],
        },
    }


def pages(items: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """List bodies of 500 items."""
    page: list[dict[str, Any]] = []
    for item in items:
        page.append(item)
        if len(page) == PAGE:
            yield msgspec.json.encode({"kind": "List", "metadata": {}, "items": page})
            page = []
    if page:
        yield msgspec.json.encode({"kind": "List", "metadata": {}, "items": page})


def observation(nodes: int, bound: int, pending: int, shapes: int) -> Observation:
    """Nodes full but for a tenth, and pending pods in that many shapes."""
    draw = random.Random(7)
    collector = Collector()
    counts = [nodes // len(POOLS)] * len(POOLS)
    names = [(pool, f"pool{pool}-{one:05d}") for pool, count in enumerate(counts) for one in range(count)]
    for page in pages(node(pool, int(name[-5:])) for pool, name in names):
        collector.add("nodes", page)

    def running() -> Iterator[dict[str, Any]]:
        each = bound // len(names) if names else 0
        for number, (pool, name) in enumerate(names):
            cores, gib = POOLS[pool]
            for one in range(each):
                share = {"cpu": cores * 900 // each, "memory": (gib - 3) * 1024 * 9 // 10 // each}
                yield pod(number * each + one, node=name, app=one % 50, **share)

    def waiting() -> Iterator[dict[str, Any]]:
        sizes = [(draw.randrange(20, 500), draw.randrange(32, 1024)) for _ in range(shapes)]
        for number in range(pending):
            cpu, memory = sizes[number % shapes]
            yield pod(1_000_000 + number, cpu=cpu, memory=memory, app=number % shapes)

    for source in (running(), waiting()):
        for page in pages(source):
            collector.add("pods", page)
    sets = [scale_set(pool, counts[pool], {"min": "0", "max": "50000"}) for pool in range(len(POOLS))]
    return finished(collector, sets)


def scale_set(pool: int, capacity: int, tags: dict[str, str]) -> dict[str, Any]:
    """A pool as Azure answers."""
    return {
        "id": f"{BASE}/pool{pool}",
        "name": f"pool{pool}",
        "location": "westeurope",
        "zones": list(ZONES),
        "tags": tags,
        "sku": {"name": f"size{pool}", "capacity": capacity},
        "properties": {"orchestrationMode": "Uniform", "provisioningState": "Succeeded"},
    }


def finished(collector: Collector, sets: list[dict[str, Any]]) -> Observation:
    """What was collected, with these pools, sizes and prices, and no limits."""
    skus = [
        {
            "resourceType": "virtualMachines",
            "name": f"size{pool}",
            "locations": ["westeurope"],
            "capabilities": [{"name": "vCPUs", "value": str(c)}, {"name": "MemoryGB", "value": str(g)}],
        }
        for pool, (c, g) in enumerate(POOLS)
    ]
    prices = {f"size{pool}": round(c * 0.04 + g * 0.005, 4) for pool, (c, g) in enumerate(POOLS)}
    policy = {
        "prices": prices,
        "maxNodes": 100_000,
        "scaleUp": {"maxPerRun": 100_000, "maxPerHour": 100_000},
        "scaleDown": {"enabled": False},
    }
    readings = [
        AzureReading(id=BASE, status=200, read_at=NOW, body={"value": sets}),
        AzureReading(
            id="/subscriptions/s/providers/Microsoft.Compute/skus",
            status=200,
            read_at=NOW,
            body={"value": skus},
        ),
    ]
    entry = {"name": "bench", "autoscaling": policy}
    return collector.finish(cluster="bench", now=NOW, cluster_entry=entry, azure=readings)


# Figures


def _fold() -> Iterator[Figure]:
    """Fold 150,000 pods, made page by page so that only the fold's own memory counts; and the typed list."""
    mine, peak, theirs = _child("fold"), _child("peak"), _child("typed")
    note = f"{FOLD_PODS:,} pods in pages of {PAGE}; the typed list of {TYPED_PODS:,} by kubernetes.client"
    yield at_most("autoscaling-fold", mine, "ms CPU per 1,000 pods", 10, note=note)
    yield at_most("autoscaling-fold-memory", peak, "MB above an idle process", 128, note=note)
    yield fewer(
        "autoscaling-fold-vs-typed",
        mine,
        "ms CPU per 1,000 pods",
        "kubernetes.client typed V1PodList",
        theirs,
        at_least=100,
        note=note,
    ).explained(WHY_FOLD)


def _child(what: str) -> float:
    """In a process of its own, so that memory and collector start from nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.autoscaling", what], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _measure(what: str) -> float:
    before = _peak_kib()  # making the page counts as well
    body = next(pages(pod(n, node=f"node-{n % 5000}", cpu=100 + n % 40, app=n % 200) for n in range(PAGE)))
    if what == "typed":
        return _typed(body)
    collector, spent = Collector(), 0.0
    for _ in range(FOLD_PODS // PAGE):
        began = time.process_time()
        collector.add("pods", body)
        spent += time.process_time() - began
    if what == "peak":
        return (_peak_kib() - before) / 1024
    return spent * 1e6 / FOLD_PODS


def _peak_kib() -> int:
    """Of this program alone: ru_maxrss begins with the peak of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0])


def _typed(body: bytes) -> float:
    from kubernetes.client import ApiClient

    class Answer:
        data = body.decode()

    client = ApiClient()
    seconds = []
    for _ in range(TYPED_PODS // PAGE):
        began = time.process_time()
        client.deserialize(Answer.data, "V1PodList", "application/json")
        seconds.append(time.process_time() - began)
    return statistics.median(seconds) * 1e6 / PAGE


def _decide(name: str, shapes: int, limit: float) -> Figure:
    from shared.autoscaling.decide import decide

    seen = observation(4_998, 150_000, PENDING, shapes)
    seconds = []
    planned = left = 0
    for _ in range(ROUNDS):
        began = time.process_time()
        plan = decide(seen, seen.policy, NOW)
        seconds.append(time.process_time() - began)
        planned = sum(one.parameters["to"] - one.parameters["from"] for one in plan.actions)
        left = sum(one.reason not in ("NewNode", "FitsExistingNode") for one in plan.left_alone)
    note = f"4,998 nodes, 150,000 pods, {PENDING:,} pending; {planned} new nodes, {left} left without one"
    return at_most(name, statistics.median(seconds), "s CPU", limit, note=note)


def _ca_benchmark() -> Figure:
    """The input of cluster-autoscaler's benchmark of its estimator: 51,000 pods in two shapes, one pool."""
    from shared.autoscaling.decide import decide

    resources = {"cpu": "1000m", "memory": "5000Mi", "pods": "100"}
    prefix = "k8s.io_cluster-autoscaler_node-template_resources_"
    tags = {"min": "0", "max": "3000"} | {prefix + name: amount for name, amount in resources.items()}
    collector = Collector()
    small = (pod(number, cpu=50, memory=100) for number in range(50_000))
    large = (pod(50_000 + number, cpu=95, memory=190, app=1) for number in range(1_000))
    for page in pages(chain(small, large)):
        collector.add("pods", page)
    seen = finished(collector, [scale_set(0, 0, tags)])
    began = time.process_time()
    plan = decide(seen, seen.policy, NOW)
    seconds = time.process_time() - began
    nodes = sum(one.parameters["to"] for one in plan.actions)
    left = sum(one.reason != "NewNode" for one in plan.left_alone)
    gap = plan.actions[0].evidence[-1]
    return Figure(
        name="autoscaling-ca-benchmark",
        value=nodes,
        unit="nodes",
        baseline="cluster-autoscaler's estimator on the same input",
        baseline_value=CA_NODES,
        ratio=round(CA_NODES / nodes, 4),
        goal=">= 1x",
        met=nodes <= CA_NODES and not left,
        note=f"{gap}; {left} pods left, {seconds:.3f} s CPU for the whole plan",
    )


def _mix() -> Iterator[Figure]:
    """5,000 pods in 600 shapes on nothing: cost against first fit decreasing over all sizes."""
    from shared.autoscaling.decide import consider

    seen = observation(0, 0, 5_000, 600)
    plan = consider(seen, seen.policy, NOW).plan
    prices = seen.policy.prices
    ours = sum(prices[f"size{one.target[4:]}"] * one.parameters["to"] for one in plan.actions)
    theirs = reference_cost(seen)
    yield Figure(
        name="autoscaling-mix-cost",
        value=round(ours, 2),
        unit="per hour",
        baseline="first fit decreasing, best single size for each node",
        baseline_value=round(theirs, 2),
        ratio=round(theirs / ours, 3),
        goal=">= 1x",
        met=ours <= theirs * 1.0000001,
        note=plan.actions[0].evidence[-1],
    )


def reference_cost(seen: Observation) -> float:
    """First fit decreasing over all sizes: each new node is the size that costs least for what it takes of
    the pods that are left, in order.
    """
    shapes = seen.kubernetes.shapes
    left = sorted(
        (
            (s.requests.get("cpu", 0), s.requests.get("memory", 0))
            for s in (shapes[p.shape].spec for p in seen.kubernetes.pending)
        ),
        key=lambda one: -max(one[0] / 16_000, one[1] / (128 << 30)),
    )
    total = 0.0
    prices = seen.policy.prices
    while left:
        best: tuple[float, int, list[int]] | None = None
        for pool, (cores, gib) in enumerate(POOLS):
            cpu, memory = cores * 1000 - 260, int((gib * 0.925 - 3) * (1 << 30))
            taken: list[int] = []
            for at, (wants_cpu, wants_memory) in enumerate(left):
                if wants_cpu <= cpu and wants_memory <= memory and len(taken) < 110:
                    cpu, memory = cpu - wants_cpu, memory - wants_memory
                    taken.append(at)
            if taken:
                weight = sum(left[at][0] / 1000 * 0.04 + left[at][1] / (1 << 30) * 0.005 for at in taken)
                score = prices[f"size{pool}"] / weight
                if best is None or score < best[0]:
                    best = (score, pool, taken)
        assert best is not None
        gone = set(best[2])
        left = [one for at, one in enumerate(left) if at not in gone]
        total += prices[f"size{best[1]}"]
    return total


if __name__ == "__main__":
    print(_measure(sys.argv[1]))

"""What the forwarder costs: memory, CPU and delay of its own process beside a busy cluster.

The cluster is the local Kubernetes with objects as large as real ones: 1,000 nodes, 30,000 pods. What goes on
in it, by `Size.rates`, is what such a cluster does while a little is wrong: kubelets report every five
minutes, pods live for an hour, one in twenty finds no node at first. The process is that of the image: its
files and its packages, nothing else. The topic is a local one; the way to it is the real one, with workload
identity. `KUBEKEEPER_SWEEP=short` takes a smaller cluster and less time, for the tests.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.figure import Figure, at_most
from sandbox.eventgrid import LocalTopic, WorkloadIdentity
from sandbox.forwarder_image import lay_out
from sandbox.kube import LocalKubernetes, kinds
from sandbox.kube.kinds import ATTACHMENTS, NODES, PODS, Kind
from sandbox.kube.store import Document
from sandbox.ports import free_ports

RESIDENT_LIMIT_MB = 64
CPU_LIMIT_PERCENT = 1.0
DELAY_LIMIT_SECONDS = 2.0
POD_LIFE_SECONDS = 3600
NODE_REPORT_SECONDS = 300
PODS_PER_SERVICE = 20
SERVICES_PER_INGRESS = 5
GAP_SECONDS = 10.0
DEADLINE_SECONDS = 120.0
FIGURES = ("forwarder-resident", "forwarder-cpu", "forwarder-delay")

SERVICES, SECRETS = kinds.named("services"), kinds.named("secrets")
INGRESSES = kinds.named("ingresses", "networking.k8s.io")
SLICES = kinds.named("endpointslices", "discovery.k8s.io")


@dataclass(frozen=True)
class Size:
    """Of the cluster, and for how long it is looked at."""

    nodes: int
    pods: int
    warm_seconds: float
    seconds: float
    probes: int

    @property
    def services(self) -> int:
        return self.pods // PODS_PER_SERVICE

    @property
    def ingresses(self) -> int:
        return self.services // SERVICES_PER_INGRESS // 2  # half of the services are internal

    @property
    def rates(self) -> Mapping[str, float]:
        """Changes per second, by method of Churn."""
        pods = self.pods / POD_LIFE_SECONDS
        return {
            "report": self.nodes / NODE_REPORT_SECONDS,
            "replace_pod": pods,
            "change_endpoints": 2 * pods,  # each pod comes and goes
            "attach_volume": pods / 10,
            "change_service": 0.1,
            "change_ingress": 0.05,
            "renew_secret": 0.05,
        }


FULL = Size(nodes=1_000, pods=30_000, warm_seconds=15, seconds=120, probes=3)
SHORT = Size(nodes=200, pods=3_000, warm_seconds=2, seconds=8, probes=1)


@dataclass(frozen=True)
class Cost:
    """What was seen of the forwarder's process."""

    listed_mb: float
    peak_mb: float
    cpu_percent: float
    delays: list[float]
    lines_per_second: float
    changes_per_second: float
    messages_per_second: float


def run(wants: Callable[[str], bool], emit: Callable[[Figure], None]) -> None:
    """The figures that are wanted; all come of one run."""
    if not any(wants(name) for name in FIGURES):
        return
    size = SHORT if os.environ.get("KUBEKEEPER_SWEEP") == "short" else FULL
    print(f"bench: a forwarder beside {size.nodes} nodes and {size.pods} pods", file=sys.stderr)
    for figure in figures(size, measure(size)):
        if wants(figure.name):
            emit(figure)


def figures(size: Size, cost: Cost) -> list[Figure]:
    """What was measured, against its limits."""
    note = (
        f"{size.nodes} nodes, {size.pods} pods; per second {cost.changes_per_second:.0f} changes, "
        f"{cost.lines_per_second:.0f} lines read, {cost.messages_per_second:.2f} events sent"
    )
    listed = f"{cost.listed_mb:.1f} MB when everything had been listed"
    delays = ", ".join(f"{delay:.2f}" for delay in cost.delays)
    return [
        at_most("forwarder-resident", cost.peak_mb, "MB", RESIDENT_LIMIT_MB, note=f"{note}; {listed}"),
        at_most("forwarder-cpu", cost.cpu_percent, "% of a core", CPU_LIMIT_PERCENT, note=note),
        at_most(
            "forwarder-delay",
            statistics.median(cost.delays),
            "s",
            DELAY_LIMIT_SECONDS,
            note=f"from a pod's condition to the event at the topic, 1 s of it waiting for more: {delays}",
        ),
    ]


def measure(size: Size) -> Cost:
    """One forwarder in a process of its own beside a busy cluster."""
    with tempfile.TemporaryDirectory(prefix="kubekeeper-bench-") as name, LocalKubernetes() as kubernetes:
        folder = Path(name)
        churn = Churn(kubernetes, size)
        churn.fill()
        with (
            LocalTopic(WorkloadIdentity(folder)) as topic,
            _process(kubernetes, topic, folder) as (process, port),
            churn.running(),
        ):
            _until(lambda: topic.events, "the first event")
            time.sleep(size.warm_seconds)
            return _observe(process, port, churn, topic, size)


def _observe(process: psutil.Process, port: int, churn: Churn, topic: LocalTopic, size: Size) -> Cost:
    listed = process.memory_info().rss
    before, began = process.cpu_times(), time.monotonic()
    lines, changes, events = _lines(port), churn.changes, len(topic.events)
    time.sleep(size.seconds)
    after, elapsed = process.cpu_times(), time.monotonic() - began
    used = after.user + after.system - before.user - before.system
    return Cost(
        listed_mb=listed / 1e6,
        peak_mb=_peak_bytes(process.pid) / 1e6,
        cpu_percent=100 * used / elapsed,
        lines_per_second=(_lines(port) - lines) / elapsed,
        changes_per_second=(churn.changes - changes) / elapsed,
        messages_per_second=(len(topic.events) - events) / elapsed,
        delays=[_delay(churn, topic, number) for number in range(size.probes)],
    )


def _peak_bytes(pid: int) -> int:
    """The most memory it has ever had, its start and its first lists included."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found, "Linux says it"
    return int(found[1]) * 1024


def _delay(churn: Churn, topic: LocalTopic, number: int) -> float:
    """Seconds from a pod that finds no node to the event, when there was none for a while."""
    churn.is_calm = True
    time.sleep(GAP_SECONDS + 2)
    name = f"probe-{number}"
    churn.kubernetes.put(PODS, unschedulable(name))
    began = time.monotonic()
    _until(lambda: any(f"default/{name}" in event["data"]["objects"] for event in topic.events[-20:]), name)
    return time.monotonic() - began


@contextmanager
def _process(
    kubernetes: LocalKubernetes, topic: LocalTopic, folder: Path
) -> Iterator[tuple[psutil.Process, int]]:
    (port,) = free_ports(1)
    token = folder / "service-account-token"
    token.write_text(kubernetes.api.tokens.issue("forwarder", ("system:masters",)))
    image = lay_out(folder)
    environ = {
        **image.environ,
        "KUBEKEEPER_CLUSTER": "bench",
        "KUBEKEEPER_SECRET_NAMESPACES": "*",
        "KUBEKEEPER_KUBERNETES_SERVER": kubernetes.server,
        "KUBEKEEPER_KUBERNETES_CA": str(kubernetes.directory / "ca.pem"),
        "KUBEKEEPER_KUBERNETES_TOKEN": str(token),
        "KUBEKEEPER_PORT": str(port),
        **topic.environ,
    }
    log = folder / "forwarder.log"
    with log.open("wb") as file:
        process = subprocess.Popen(image.command, cwd=folder, env=environ, stderr=file)
    try:
        _until(lambda: process.poll() is not None or _is_ready(port), "the forwarder to be ready")
        if process.poll() is not None:
            raise RuntimeError(f"the forwarder ended: {log.read_text()[-2000:]}")
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _lines(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(r"^\w+_lines_total\{.*\} (\S+)$", text, re.MULTILINE))


def _until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"bench: waited in vain for {what}")
        time.sleep(0.01)


class Churn:
    """Fills a cluster and keeps it busy, behind the API's back: what is measured is who reads it."""

    def __init__(self, kubernetes: LocalKubernetes, size: Size) -> None:
        self.kubernetes = kubernetes
        self.changes = 0
        self.is_calm = False
        """No pod is without a node."""
        self._size = size
        self._random = random.Random(7)
        self._numbers = itertools.count(size.pods)
        self._oldest = itertools.count()
        self._stopped = threading.Event()

    def fill(self) -> None:
        """The cluster as it is before anybody looks."""
        size, put = self._size, self.kubernetes.put
        for number in range(size.nodes):
            put(NODES, node(number))
        for number in range(size.pods):
            put(PODS, pod(number, f"node-{number % size.nodes}"))
        for number in range(size.services):
            put(SERVICES, service(number))
            put(SLICES, endpoint_slice(number))
        for number in range(size.ingresses):
            put(INGRESSES, ingress(number))
            put(SECRETS, secret(f"cert-{number}"))
        for number in range(size.nodes // 2):
            put(ATTACHMENTS, attachment(number))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Changes happen by the rates until the block ends."""
        thread = threading.Thread(target=self._run, name="churn", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    def _run(self) -> None:
        rates = self._size.rates
        due = {name: time.monotonic() + self._random.expovariate(rate) for name, rate in rates.items()}
        while not self._stopped.is_set():
            name = min(due, key=lambda one: due[one])
            if self._stopped.wait(max(0.0, due[name] - time.monotonic())):
                return
            getattr(self, name)()
            due[name] += self._random.expovariate(rates[name])

    def report(self) -> None:
        """A kubelet writes its node's status."""
        self._touch(NODES, "", f"node-{self._random.randrange(self._size.nodes)}")

    def replace_pod(self) -> None:
        """The oldest pod goes; another is created, scheduled and started."""
        self.kubernetes.remove(PODS, f"pod-{next(self._oldest)}", "default", grace=0)
        number = next(self._numbers)
        if self._random.random() < 0.05 and not self.is_calm:
            self._change(PODS, unschedulable(f"pod-{number}"))
        else:
            self._change(PODS, pod(number))
        self._change(PODS, pod(number, f"node-{number % self._size.nodes}"))

    def change_endpoints(self) -> None:
        """A pod has become ready, or has gone."""
        number = self._random.randrange(self._size.services)
        self._touch(SLICES, "default", f"service-{number}-slice", generation=True)

    def attach_volume(self) -> None:
        """A volume is attached."""
        document = attachment(self._random.randrange(self._size.nodes // 2), attached=False)
        self._change(ATTACHMENTS, document)
        document["status"] = {"attached": True}
        self._change(ATTACHMENTS, document)

    def change_service(self) -> None:
        """A Service is applied anew."""
        self._change(SERVICES, service(self._random.randrange(self._size.services)))

    def change_ingress(self) -> None:
        """An Ingress is applied anew."""
        self._change(INGRESSES, ingress(self._random.randrange(self._size.ingresses)))

    def renew_secret(self) -> None:
        """A certificate is renewed."""
        self._change(SECRETS, secret(f"cert-{self._random.randrange(self._size.ingresses)}"))

    def _change(self, kind: Kind, document: Document) -> None:
        self.kubernetes.put(kind, document)
        self.changes += 1

    def _touch(self, kind: Kind, namespace: str, name: str, *, generation: bool = False) -> None:
        store = self.kubernetes.store
        with store.lock:
            record = store.get(kind, (namespace, name))
            assert record is not None, name
            document = record.decode()
            document["metadata"]["generation"] = document["metadata"].get("generation", 1) + generation
            store.write(kind, document)
        self.changes += 1


# Objects, as large as real ones are


def node(number: int) -> Document:
    """About 13 KB, most of it the images that the node holds."""
    images = [
        {
            "names": [
                f"registry.example.com/team-{one}/app@sha256:{one:064x}",
                f"registry.example.com/team-{one}/app:v1.{one}",
            ],
            "sizeBytes": 123_456_789 + one,
        }
        for one in range(50)
    ]
    conditions = [
        {"type": kind, "status": status, "reason": f"Kubelet{kind}", "message": f"kubelet says {kind}"}
        | {"lastHeartbeatTime": "2026-11-23T10:00:00Z", "lastTransitionTime": "2026-11-20T10:00:00Z"}
        for kind, status in (
            ("MemoryPressure", "False"),
            ("DiskPressure", "False"),
            ("PIDPressure", "False"),
            ("Ready", "True"),
        )
    ]
    return {
        "metadata": {
            "name": f"node-{number}",
            "labels": {f"example.com/label-{one}": f"value-{one}" for one in range(30)},
        },
        "spec": {"providerID": f"azure:///subscriptions/s/resourceGroups/g/virtualMachines/vm-{number}"},
        "status": {"conditions": conditions, "images": images},
    }


def pod(number: int, node: str = "") -> Document:
    """About 5 KB; Running on a node, Pending without one."""
    containers = [
        {
            "name": f"container-{one}",
            "image": f"registry.example.com/team/app-{one}:v1",
            "env": [{"name": f"VARIABLE_{at}", "value": "x" * 40} for at in range(25)],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        }
        for one in range(2)
    ]
    spec: Document = {"containers": containers} | ({"nodeName": node} if node else {})
    annotations = {f"example.com/annotation-{one}": "y" * 60 for one in range(10)}
    return {
        "metadata": {"name": f"pod-{number}", "namespace": "default", "annotations": annotations},
        "spec": spec,
        "status": {"phase": "Running" if node else "Pending"},
    }


def unschedulable(name: str) -> Document:
    """A pod that has found no node."""
    document = pod(0)
    document["metadata"]["name"] = name
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/9 nodes"}
    document["status"]["conditions"] = [condition]
    return document


def service(number: int) -> Document:
    """A Service."""
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    return {
        "metadata": {"name": f"service-{number}", "namespace": "default"},
        "spec": {"ports": ports, "selector": {"app": f"app-{number}"}},
    }


def endpoint_slice(number: int) -> Document:
    """The pods of a Service, about 6 KB."""
    endpoints = [
        {
            "addresses": [f"10.{number % 250}.{number // 250}.{one}"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": f"node-{one}",
            "targetRef": {"kind": "Pod", "namespace": "default", "name": f"pod-{one}", "uid": f"{one:036}"},
        }
        for one in range(PODS_PER_SERVICE)
    ]
    labels = {"kubernetes.io/service-name": f"service-{number}"}
    return {
        "metadata": {"name": f"service-{number}-slice", "namespace": "default", "labels": labels},
        "addressType": "IPv4",
        "endpoints": endpoints,
    }


def ingress(number: int) -> Document:
    """An Ingress for a few Services."""
    paths = [
        {
            "path": f"/{one}",
            "pathType": "Prefix",
            "backend": {"service": {"name": f"service-{number * SERVICES_PER_INGRESS + one}"}},
        }
        for one in range(SERVICES_PER_INGRESS)
    ]
    return {
        "metadata": {"name": f"ingress-{number}", "namespace": "default", "annotations": {"note": "z" * 200}},
        "spec": {
            "rules": [{"host": f"host-{number}.example.com", "http": {"paths": paths}}],
            "tls": [{"secretName": f"cert-{number}"}],
        },
    }


def secret(name: str) -> Document:
    """A TLS Secret."""
    return {
        "metadata": {"name": name, "namespace": "default"},
        "type": "kubernetes.io/tls",
        "data": {"tls.crt": "c" * 3000, "tls.key": "k" * 2000},
    }


def attachment(number: int, *, attached: bool = True) -> Document:
    """A VolumeAttachment."""
    return {
        "metadata": {"name": f"csi-{number}"},
        "spec": {
            "attacher": "disk.csi.azure.com",
            "nodeName": f"node-{number}",
            "source": {"persistentVolumeName": f"pvc-{number}"},
        },
        "status": {"attached": attached},
    }

"""Plays the kubelet for nodes that are only objects: joins them, keeps their heartbeats, runs and ends pods.

    with NodeAgent(kubernetes.client()) as agent:
        agent.join("node-a", zone="westeurope-1")
        agent.silence("node-a")      # what a dead kubelet looks like; the pods' processes go on, unseen

One agent serves thousands of nodes: one watch of bound pods, one small PATCH for each node and heartbeat,
nothing kept but the few fields it acts on. It speaks to any API server, real or stand-in. What a healthy node
or a running pod looks like is decided by the plain functions at the end, which know no clock and no client.

Volumes: a pod with CSI volumes that attach is not started before its node's status says they are attached,
and the node's `volumesInUse` lists them from before the attachment until the pod is gone, as kubelets do.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Self

import msgspec
import urllib3

from sandbox.kube_client import JSON_PATCH, STRATEGIC_PATCH, Document, KubeClient, KubeError, Watch

HEARTBEAT = timedelta(seconds=10)
"""The kubelet's own: leases last 40 s and are renewed every quarter of that."""
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
WORKERS = 8
# Without it, the attach/detach controller leaves a node to its kubelet.
CONTROLLER_ATTACHES = {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}
logger = logging.getLogger(__name__)
GONE = (404, 409, 410)
"""The object went away, or its uid is another's by now: nothing left to do for this pod."""


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None


class _Claim(msgspec.Struct, frozen=True, rename="camel"):
    claim_name: str = ""


class _Volume(msgspec.Struct, frozen=True, rename="camel"):
    persistent_volume_claim: _Claim | None = None


class _Container(msgspec.Struct, frozen=True):
    name: str
    image: str = ""


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    node_name: str = ""
    containers: tuple[_Container, ...] | None = None  # null in a bookmark
    volumes: tuple[_Volume, ...] = ()


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    phase: str = "Pending"


class Pod(msgspec.Struct, frozen=True):
    """What the agent reads of a pod."""

    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.metadata.namespace}/pods/{self.metadata.name}"

    @property
    def claims(self) -> tuple[str, ...]:
        """Names of the PersistentVolumeClaims it mounts."""
        found = (volume.persistent_volume_claim for volume in self.spec.volumes)
        return tuple(claim.claim_name for claim in found if claim is not None)


class _Event(msgspec.Struct, frozen=True):
    """`object`: a pod, or of an ERROR the Status, whose `status` is a text."""

    type: str
    object: msgspec.Raw


class _ListMetadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str
    continuation: str = msgspec.field(name="continue", default="")


class _PodList(msgspec.Struct, frozen=True):
    metadata: _ListMetadata
    items: tuple[Pod, ...] = ()


_EVENT = msgspec.json.Decoder(_Event)
_POD = msgspec.json.Decoder(Pod)
_PODS = msgspec.json.Decoder(_PodList)


@dataclass
class _Node:
    """What the agent keeps of a node."""

    name: str
    uid: str
    address: str
    is_silent: bool = False
    pods: dict[str, Pod] = field(default_factory=dict)
    volumes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Unique volume names by pod key."""
    has_reported_volumes: bool = False
    addresses: dict[str, str] = field(default_factory=dict)
    """By pod uid."""


class NodeAgent:
    """The kubelets of the nodes that `join`ed; a context manager around its threads.

    `heartbeat` is the time between two renewals of a node's lease. `start_delay` and `stop_delay` are how
    long containers take to start and to end (never longer than the pod's grace period).
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        heartbeat: timedelta = HEARTBEAT,
        start_delay: timedelta = timedelta(0),
        stop_delay: timedelta = timedelta(0),
    ) -> None:
        self._client = client
        self._heartbeat = heartbeat.total_seconds()
        self._start_delay = start_delay.total_seconds()
        self._stop_delay = stop_delay.total_seconds()
        self._nodes: dict[str, _Node] = {}
        self._refusals: Counter[str] = Counter()
        self._addresses = itertools.count(1)
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="node-agent")
        self._watch: Watch | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        loops = (self._follow_pods, "pods"), (self._run_due, "due"), (self._send_heartbeats, "heartbeats")
        for target, name in loops:
            thread = threading.Thread(target=target, name=f"node-agent-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the threads; the nodes stay as they are and fall silent. May be called twice."""
        self._stopping.set()
        with self._wake:
            self._wake.notify_all()
        if self._watch is not None:
            self._watch.close()
        for thread in self._threads:
            thread.join(10)
        self._workers.shutdown(cancel_futures=True)

    @property
    def refusals(self) -> Mapping[str, int]:
        """Answers that a kubelet would not expect, counted; empty when all went well."""
        return dict(self._refusals)

    # Nodes

    def join(
        self,
        name: str,
        *,
        zone: str = "",
        labels: Mapping[str, str] | None = None,
        capacity: Mapping[str, str] | None = None,
        taints: Sequence[Document] = (),
        provider_id: str = "",
        allocatable: Mapping[str, str] | None = None,
    ) -> Document:
        """Registers a node that is Ready, as a kubelet does; the Node object. A name that exists is adopted.

        `capacity` is merged over 4 CPUs, 16 GiB, 110 pods; `allocatable` over the outcome.
        """
        node = new_node(
            name,
            now=datetime.now(UTC),
            address=self._address(),
            zone=zone,
            labels=labels or {},
            capacity=capacity or {},
            taints=taints,
            provider_id=provider_id,
        )
        node["status"]["allocatable"] = {**node["status"]["capacity"], **(allocatable or {})}
        try:
            created = self._client.create("/api/v1/nodes", node)
        except KubeError as error:
            if error.status != 409:
                raise
            created = self._client.patch(f"/api/v1/nodes/{name}/status", {"status": node["status"]})
        known = _Node(name, created["metadata"]["uid"], node["status"]["addresses"][0]["address"])
        self._renew(known)
        with self._lock:
            self._nodes[name] = known
        self._adopt_pods(known)
        return created

    def join_many(self, names: Iterable[str], **options: str) -> None:
        """As `join`, several at a time."""
        for joined in [self._workers.submit(self.join, name, **options) for name in names]:  # type: ignore[arg-type]
            joined.result()

    def has(self, name: str) -> bool:
        """Whether a kubelet of that name has joined and not left, silent or not."""
        return name in self._nodes

    def adopt(self, name: str) -> None:
        """A new kubelet takes over the Node that another one has left behind, and is `wake`d as that one."""
        node = self._client.get(f"/api/v1/nodes/{name}")
        address = node["status"]["addresses"][0]["address"]
        known = _Node(name, node["metadata"]["uid"], address, is_silent=True)
        with self._lock:
            self._nodes[name] = known
        self._adopt_pods(known)

    def leave(self, name: str) -> None:
        """Forgets the node; its objects stay, as they do when a VM is deleted."""
        with self._lock:
            self._nodes.pop(name, None)

    def silence(self, name: str) -> None:
        """The kubelet dies or is cut off: no heartbeat, no pod starts or ends, until `wake`."""
        self._nodes[name].is_silent = True

    def wake(self, name: str) -> None:
        """The kubelet is back: heartbeat at once, Ready again, and its pods catch up."""
        node = self._nodes[name]
        node.is_silent = False
        self._renew(node)
        conditions = node_conditions(datetime.now(UTC))
        self._client.patch(
            f"/api/v1/nodes/{name}/status", {"status": {"conditions": conditions}}, STRATEGIC_PATCH
        )
        if node.has_reported_volumes:
            self._report_volumes(node)
        with self._lock:
            pods = list(node.pods.values())
        for pod in pods:
            self._handle(node, pod)
            if pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None:
                # The node lifecycle controller has called it not ready meanwhile.
                self._submit(partial(self.set_ready, *pod.key.split("/"), ready=True))

    def set_ready(self, namespace: str, name: str, *, ready: bool) -> None:
        """Whether the pod's readiness probe succeeds."""
        conditions = pod_conditions(datetime.now(UTC), ready=ready)
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        self._client.patch(path, {"status": {"conditions": conditions}}, STRATEGIC_PATCH)

    # Heartbeats

    def _send_heartbeats(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            with self._lock:
                awake = [node for node in self._nodes.values() if not node.is_silent]
            # In a few slices rather than at once, so that the API server sees a steady trickle.
            slices = max(1, min(10, len(awake) // 50))
            for number in range(slices):
                for sent in [self._submit(self._beat, node) for node in awake[number::slices]]:
                    if sent is not None:
                        sent.result()
                self._stopping.wait(began + self._heartbeat * (number + 1) / slices - time.monotonic())

    def _beat(self, node: _Node) -> None:
        if not node.is_silent:
            self._renew(node)

    def _renew(self, node: _Node) -> None:
        spec = {
            "holderIdentity": node.name,
            "leaseDurationSeconds": 40,
            "renewTime": _microseconds(datetime.now(UTC)),
        }
        try:
            self._client.patch(f"{LEASES}/{node.name}", {"spec": spec})
        except KubeError as error:
            if error.status != 404:
                raise
            owner = {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}
            metadata = {"name": node.name, "ownerReferences": [owner]}
            self._client.create(LEASES, {"metadata": metadata, "spec": spec})

    # Pods

    def _follow_pods(self) -> None:
        version = ""
        while not self._stopping.is_set():
            try:
                version = self._watch_pods(version or self._list_pods())
            except KubeError as error:
                if error.status != 410:
                    self._note(error)
                version = ""
            except (urllib3.exceptions.HTTPError, OSError) as error:
                logger.info("node agent: the watch of pods broke: %s", error)
                self._stopping.wait(0.5)

    def _list_pods(self) -> str:
        token = ""
        while True:
            query: dict[str, str | int] = {"fieldSelector": "spec.nodeName!=", "limit": 1000}
            answer = self._client.send(
                "GET", "/api/v1/pods", query=query | ({"continue": token} if token else {})
            )
            if answer.status >= 400:
                raise KubeError(msgspec.json.decode(answer.data))
            page = _PODS.decode(answer.data)
            for pod in page.items:
                self._seen("MODIFIED", pod)
            token = page.metadata.continuation
            if not token:
                return page.metadata.resource_version

    def _watch_pods(self, version: str) -> str:
        query = {"fieldSelector": "spec.nodeName!=", "allowWatchBookmarks": True, "timeoutSeconds": 300}
        with self._client.watch("/api/v1/pods", resourceVersion=version, **query) as watch:  # type: ignore[arg-type]
            self._watch = watch
            for line in watch:
                event = _EVENT.decode(line)
                if event.type == "ERROR":
                    raise KubeError(msgspec.json.decode(event.object))
                pod = _POD.decode(event.object)
                version = pod.metadata.resource_version
                if event.type != "BOOKMARK":
                    self._seen(event.type, pod)
        return version

    def _seen(self, kind: str, pod: Pod) -> None:
        with self._lock:
            node = self._nodes.get(pod.spec.node_name)
            if node is None:
                return
            if kind == "DELETED":
                node.pods.pop(pod.key, None)
                node.addresses.pop(pod.metadata.uid, None)
            else:
                node.pods[pod.key] = pod
        if kind == "DELETED":
            self._release_volumes(node, pod)
        elif not node.is_silent:
            self._handle(node, pod)

    def _adopt_pods(self, node: _Node) -> None:
        """Pods that were bound before this agent knew the node: of a daemon set, or after a restart."""
        items, _ = self._client.list("/api/v1/pods", fieldSelector=f"spec.nodeName={node.name}")
        for item in items:
            self._seen("ADDED", msgspec.convert(item, Pod))

    def _handle(self, node: _Node, pod: Pod) -> None:
        if pod.metadata.deletion_timestamp is not None:
            grace = pod.metadata.deletion_grace_period_seconds or 0
            self._later(min(self._stop_delay, grace), lambda: self._finish(node, pod))
        elif pod.status.phase == "Pending":
            self._later(self._start_delay, lambda: self._start(node, pod))

    def _start(self, node: _Node, pod: Pod) -> None:
        current = node.pods.get(pod.key)
        if node.is_silent or current is None or current.metadata.uid != pod.metadata.uid:
            return
        if current.metadata.deletion_timestamp is not None:
            return
        if current.status.phase != "Pending":
            return
        if pod.claims and not self._has_volumes(node, pod):
            self._later(0.2, lambda: self._start(node, pod))
            return
        with self._lock:
            address = node.addresses.get(pod.metadata.uid) or self._address()
            node.addresses[pod.metadata.uid] = address
        status = running_status(pod, datetime.now(UTC), host=node.address, address=address)
        # The uid makes the write conditional: a pod of the same name on another node is left alone.
        change = {"metadata": {"uid": pod.metadata.uid}, "status": status}
        self._client.patch(f"{pod.path}/status", change, STRATEGIC_PATCH)

    def _finish(self, node: _Node, pod: Pod) -> None:
        if node.is_silent:
            return
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.metadata.uid}}
        self._client.delete(pod.path, options)

    # Volumes

    def _has_volumes(self, node: _Node, pod: Pod) -> bool:
        """Whether all of the pod's volumes are attached; reports them as in use while it waits."""
        names = node.volumes.get(pod.key)
        if names is None:
            names = self._volume_names(pod)
            if names is None:
                return False
            node.volumes[pod.key] = names
            self._report_volumes(node)
        if not names:
            return True
        status = self._client.get(f"/api/v1/nodes/{node.name}")["status"]
        attached = {volume["name"] for volume in status.get("volumesAttached", [])}
        return attached.issuperset(names)

    def _volume_names(self, pod: Pod) -> tuple[str, ...] | None:
        """Unique names of the volumes that attach; None while a claim is unbound."""
        names = []
        for claim in pod.claims:
            path = f"/api/v1/namespaces/{pod.metadata.namespace}/persistentvolumeclaims/{claim}"
            found = self._client.find(path)
            volume = found["spec"].get("volumeName") if found else None
            if not volume or not found or found.get("status", {}).get("phase") != "Bound":
                return None
            csi = self._client.get(f"/api/v1/persistentvolumes/{volume}")["spec"].get("csi")
            if csi is not None and self._attaches(csi["driver"]):
                names.append(volume_name(csi["driver"], csi["volumeHandle"]))
        return tuple(names)

    def _attaches(self, driver: str) -> bool:
        found = self._client.find(f"/apis/storage.k8s.io/v1/csidrivers/{driver}")
        return found is None or bool(found["spec"].get("attachRequired", True))

    def _release_volumes(self, node: _Node, pod: Pod) -> None:
        if node.volumes.pop(pod.key, ()) and not node.is_silent:
            self._later(0, lambda: self._report_volumes(node))

    def _report_volumes(self, node: _Node) -> None:
        in_use = sorted({name for names in list(node.volumes.values()) for name in names})
        change = [{"op": "add", "path": "/status/volumesInUse", "value": in_use}]
        node.has_reported_volumes = True
        self._client.patch(f"/api/v1/nodes/{node.name}/status", change, JSON_PATCH)

    # Work to be done at a time

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        if seconds <= 0:
            self._submit(work)
            return
        with self._wake:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), work))
            self._wake.notify()

    def _run_due(self) -> None:
        while not self._stopping.is_set():
            with self._wake:
                while self._due and self._due[0][0] <= time.monotonic():
                    self._submit(heapq.heappop(self._due)[2])
                self._wake.wait(self._due[0][0] - time.monotonic() if self._due else None)

    def _submit(self, work: Callable[..., None], *arguments: object) -> Future[None] | None:
        """Begins the work, unless the agent is ending."""
        if not self._stopping.is_set():
            with suppress(RuntimeError):  # the pool has been shut down since
                return self._workers.submit(self._attempt, work, *arguments)
        return None

    def _attempt(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except KubeError as error:
            # A patch that names the uid of a pod that has been replaced is told that the uid cannot change.
            if error.status not in GONE and "metadata.uid" not in error.message:
                self._note(error)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            # The API server is away; a kubelet tries again a little later.
            logger.info("node agent: %s", error)
            self._later(0.5, lambda: work(*arguments))

    def _note(self, error: KubeError) -> None:
        self._refusals[str(error)] += 1
        logger.warning("node agent: %s", error)

    def _address(self) -> str:
        number = next(self._addresses)
        return f"10.{1 + (number >> 16) % 250}.{(number >> 8) & 255}.{number & 255}"


# What things look like


def new_node(
    name: str,
    *,
    now: datetime,
    address: str,
    zone: str = "",
    labels: Mapping[str, str] | None = None,
    capacity: Mapping[str, str] | None = None,
    taints: Sequence[Document] = (),
    provider_id: str = "",
) -> Document:
    """A Node as a kubelet registers it, Ready."""
    resources = {
        "cpu": "4",
        "memory": "16Gi",
        "ephemeral-storage": "100Gi",
        "pods": "110",
        **(capacity or {}),
    }
    labelled = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        **({"topology.kubernetes.io/zone": zone, "topology.kubernetes.io/region": "local"} if zone else {}),
        **(labels or {}),
    }
    spec: Document = {"taints": list(taints)} if taints else {}
    if provider_id:
        spec["providerID"] = provider_id
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labelled, "annotations": dict(CONTROLLER_ATTACHES)},
        "spec": spec,
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "capacity": resources,
            "allocatable": resources,
            "conditions": node_conditions(now),
            "nodeInfo": dict.fromkeys(
                ("machineID", "systemUUID", "bootID", "kernelVersion", "osImage"), "sandbox"
            )
            | {
                "architecture": "amd64",
                "operatingSystem": "linux",
                "containerRuntimeVersion": "sandbox://1",
                "kubeletVersion": "v1.36.0",
                "kubeProxyVersion": "",
            },
        },
    }


def node_conditions(now: datetime) -> list[Document]:
    """The four conditions of a healthy kubelet."""
    healthy = (
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    )
    times = {"lastHeartbeatTime": _seconds(now), "lastTransitionTime": _seconds(now)}
    return [
        {"type": kind, "status": status, "reason": reason, "message": message, **times}
        for kind, status, reason, message in healthy
    ]


def running_status(pod: Pod, now: datetime, *, host: str, address: str) -> Document:
    """PodStatus of a pod whose containers all run and are ready."""
    return {
        "phase": "Running",
        "startTime": _seconds(now),
        "hostIP": host,
        "hostIPs": [{"ip": host}],
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": pod_conditions(now, ready=True),
        "containerStatuses": [
            {
                "name": container.name,
                "image": container.image,
                "imageID": f"sandbox://{container.image}",
                "containerID": f"sandbox://{pod.metadata.uid}/{container.name}",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": _seconds(now)}},
            }
            for container in pod.spec.containers or ()
        ],
    }


def pod_conditions(now: datetime, *, ready: bool) -> list[Document]:
    """The conditions a kubelet sets."""
    status = "True" if ready else "False"
    states = {"PodReadyToStartContainers": "True", "Initialized": "True"} | {
        "ContainersReady": status,
        "Ready": status,
    }
    return [
        {"type": kind, "status": value, "lastTransitionTime": _seconds(now)} for kind, value in states.items()
    ]


def volume_name(driver: str, handle: str) -> str:
    """How a node's status names a CSI volume."""
    return f"kubernetes.io/csi/{driver}^{handle}"


def _seconds(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _microseconds(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

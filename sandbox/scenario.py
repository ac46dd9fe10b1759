"""The whole world for a test: Azure and a cluster on one clock, told as a story in plain Python.

    with World() as world:
        world.add_nodes("a", "b", "c")                  # single machines, already nodes
        agents = world.add_scale_set("agents", 2)       # or uniform, flexible, AKS: add_cluster
        world.add_deployment("web", replicas=6)
        world.add_stateful_set("db", replicas=1)        # one pod, one disk, one claim
        world.advance(10)
        assert world.pod("db-0").is_running

        world.crash("b")                                # the machine dies; Azure says "running"
        world.until(lambda: not world.node("b").is_ready, within=60)
        world.at(30, world.arm.replace_vm, world.machine("b"))   # in 30 s somebody replaces it
        world.advance(600)
        assert world.corruptions == []                  # what nobody but a test can see

Nothing moves but within `advance` and `until`, and then all of it does, in one thread and one order: Azure's
operations end, machines boot and become nodes (`sandbox.fleet`), kubelets start pods, controllers and
scheduler react, disks are attached through Azure (`sandbox.disk_driver`), the cloud controller deletes Nodes
(`sandbox.cloud_controller`; `world.cloud.enabled = False` for a cluster without). A minute of it takes
milliseconds.

Product code runs against the real HTTP of both sides, in the test's own thread between two advances:
`world.environ()` are its settings, `world.kubeconfig` and `world.client()` lead to the cluster,
`world.arm.url` and `world.arm.credential()` to Azure. Give it `world.now` for the time. Where it waits for
Azure itself, `with world.time_passing(): poller.result()`.

`world.arm` scripts Azure (faults, `core.latencies`, `core.endings`, `core.throttle`, `core.read_stale`,
`capacity`), `world.kubernetes` the cluster (`faults`, `requests`, `put`); what both have been asked is in
`world.arm.recorder` and `world.kubernetes.requests`. Disks, machines and sets made later by product code, or
through `world.arm`, behave alike; `enrol` says which of them are nodes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from sandbox.arm import SIZE, LocalArm
from sandbox.arm.compute.machines import data_disks, disk_id_of
from sandbox.arm.truth import Corruption
from sandbox.clock import Clock
from sandbox.cloud_controller import CloudController
from sandbox.disk_driver import DRIVER, DiskDriver, lun_of
from sandbox.disk_provisioner import CLASSES, ZONE_LABEL, DiskProvisioner, disk_tags, storage_class
from sandbox.fleet import BOOT_DELAY, Fleet, Pool, names_of
from sandbox.identity import ManagedIdentity
from sandbox.kube import LocalKubernetes, kinds
from sandbox.kube.metrics import MetricsServer
from sandbox.kube.objects import Objects, is_going, is_true
from sandbox.kube.store import Document
from sandbox.kube.volumes import CLAIMS, VOLUMES
from sandbox.kube.workloads import DAEMON_SETS, DEPLOYMENTS, STATEFUL_SETS
from sandbox.kube_client import KubeClient
from shared.model.resource_id import parse_resource_id

START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
STEP_SECONDS = 1.0
CSI_NODES = kinds.named("csinodes", "storage.k8s.io")
SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class NodeView:
    """A Node as it is now; `document` is all of it."""

    document: Document

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def is_ready(self) -> bool:
        return is_true(self.document, "Ready")

    @property
    def taints(self) -> list[str]:
        """`key:Effect`, sorted."""
        return sorted(f"{t['key']}:{t['effect']}" for t in self.document["spec"].get("taints") or ())

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.document["metadata"].get("labels") or {})

    @property
    def allocatable(self) -> dict[str, str]:
        return dict(self.document["status"]["allocatable"])


@dataclass(frozen=True)
class PodView:
    """A Pod as it is now; `document` is all of it."""

    document: Document

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def node(self) -> str:
        """Empty while it is not bound."""
        return str(self.document["spec"].get("nodeName") or "")

    @property
    def phase(self) -> str:
        return str(self.document["status"].get("phase", ""))

    @property
    def is_ready(self) -> bool:
        return is_true(self.document, "Ready")

    @property
    def is_going(self) -> bool:
        return is_going(self.document)

    @property
    def is_running(self) -> bool:
        """Running, ready, and not about to go."""
        return self.phase == "Running" and self.is_ready and not self.is_going


class World:
    """Azure and one cluster. `serve=False` leaves HTTP out; a running clock lets time go by itself."""

    cloud: CloudController
    """The cloud controller manager; `enabled` and the ages of its caches may be changed."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        serve: bool = True,
        boot_delay: timedelta = BOOT_DELAY,
        start_delay: timedelta = SECOND,
        stop_delay: timedelta = SECOND,
        cloud_controller: bool = True,
    ) -> None:
        self.clock = clock or Clock(START)
        self.started = self.clock.now()
        self.arm = LocalArm(self.clock)
        self.kubernetes = LocalKubernetes(self.clock)
        self.kubernetes.run_controllers()
        self.kubelets = self.kubernetes.run_kubelets(
            start_delay=start_delay, stop_delay=stop_delay, mount=self._mount, unmount=self._unmount
        )
        self.fleet = Fleet(self.arm, self.kubelets, self, boot_delay=boot_delay)
        self.disks = DiskDriver(self.arm, self.fleet.machine_of, self._is_spoken_for)
        self.kubernetes.run_driver(DRIVER, attach=self.disks.attach, detach=self.disks.detach)
        self.kubernetes.add_controller(lambda objects: DiskProvisioner(objects, self.arm))
        self.kubernetes.add_controller(self._make_cloud_controller)
        self.cloud.enabled = cloud_controller
        self._identity: ManagedIdentity | None = None
        self._serves = serve
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._cleanup.callback(self.kubernetes.stop)
        if self._serves:
            self._cleanup.enter_context(self.arm)
            self.kubernetes.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def at_end(self, work: Callable[[], object]) -> None:
        """Do `work()` when the world is stopped, before anything of it is gone."""
        self._cleanup.callback(work)

    def stop(self) -> None:
        """Safe to call twice."""
        self._cleanup.close()
        self.kubernetes.stop()

    # --- time ---

    @property
    def now(self) -> datetime:
        return self.clock.now()

    @property
    def seconds(self) -> float:
        """Since the world began."""
        return (self.now - self.started).total_seconds()

    def advance(self, seconds: float = 0.0) -> None:
        """Let that much time go by; all that comes due is done, and has come to rest."""
        self.clock.advance(seconds)

    def at(self, seconds: float, work: Callable[..., object], *arguments: object) -> None:
        """Do `work(*arguments)` when that much more time has gone by."""

        def done() -> None:
            work(*arguments)

        self.clock.at(self.now + timedelta(seconds=seconds), done)

    def until(
        self, condition: Callable[[], object], within: float, *, every: float = STEP_SECONDS, saying: str = ""
    ) -> float:
        """Let time go by until the condition holds, looked at `every` so many seconds; returns how long that
        took. AssertionError with the state of things when it does not hold in time.
        """
        began = self.seconds
        self.advance(0)
        while not condition():
            if self.seconds - began >= within:
                raise AssertionError(f"not within {within:g} s{saying and f': {saying}'}\n{self.describe()}")
            self.advance(min(every, began + within - self.seconds))
        return self.seconds - began

    @contextlib.contextmanager
    def time_passing(self, rate: float = 100.0) -> Iterator[None]:
        """Inside the block time goes by, `rate` times as fast as outside: for code that waits by itself."""
        stopping, failures = threading.Event(), list[Exception]()

        def run() -> None:
            last = time.monotonic()
            while not stopping.wait(0.005):
                current = time.monotonic()
                try:
                    self.advance((current - last) * rate)
                except Exception as error:  # noqa: BLE001 - raised again where somebody hears it
                    failures.append(error)
                    return
                last = current

        thread = threading.Thread(target=run, name="time passing", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()
        if failures:
            raise failures[0]

    # --- reaching it over HTTP ---

    def client(self, user: str = "admin", groups: tuple[str, ...] = ("system:masters",)) -> KubeClient:
        return self.kubernetes.client(user, groups)

    @property
    def kubeconfig(self) -> Path:
        """Of an administrator."""
        return self.kubernetes.kubeconfig()

    def environ(self) -> dict[str, str]:
        """Settings that lead product code here: Resource Manager, an identity it accepts, the cluster."""
        assert self._serves, "this world is not served over HTTP"
        if self._identity is None:
            self._identity = self._cleanup.enter_context(ManagedIdentity(self.arm.directory))
        return {
            "KUBEKEEPER_ARM_ENDPOINT": self.arm.url,
            "KUBECONFIG": str(self.kubeconfig),
            "AZURE_SUBSCRIPTION_ID": self.arm.subscription,
            **self._identity.environ,
        }

    # --- machines and nodes ---

    def add_node(
        self,
        name: str,
        *,
        size: str = SIZE,
        zone: str = "",
        availability_set: str = "",
        labels: Mapping[str, str] | None = None,
        taints: Sequence[Document] = (),
        **properties: Any,
    ) -> str:
        """A single machine that is a node already; returns its id. `availability_set` is a set's id."""
        extra = {"availabilitySet": {"id": availability_set}} if availability_set else {}
        machine = self.arm.add_vm(name, size=size, zone=zone, **extra, **properties)
        self.enrol(machine, labels=labels, taints=taints)
        return machine

    def add_nodes(self, *names: str, **options: Any) -> None:
        """Alike but for their names; options as of `add_node`."""
        for name in names:
            self.add_node(name, **options)

    def add_availability_set(
        self, name: str, *nodes: str, labels: Mapping[str, str] | None = None, size: str = SIZE
    ) -> str:
        """A set with these machines; whatever machine is made in it later becomes a node too."""
        body = {"location": "westeurope", "sku": {"name": "Aligned"}}
        found = self.arm.put(self.arm.id_of("Microsoft.Compute/availabilitySets", name), body)
        for node in nodes:
            self.arm.add_vm(node, size=size, availabilitySet={"id": found})
        self.enrol(found, labels=labels)
        return found

    def add_scale_set(
        self,
        name: str,
        capacity: int,
        *,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[Document] = (),
        max_pods: int = 110,
        **options: Any,
    ) -> str:
        """A node pool; options as of `LocalArm.add_scale_set`: `size`, `zones`, `flexible`..."""
        scale_set = self.arm.add_scale_set(name, capacity, **options)
        self.enrol(scale_set, labels=labels, taints=taints, max_pods=max_pods)
        return scale_set

    def add_cluster(self, name: str, **pools: int) -> str:
        """An AKS cluster with pools of that many nodes, all of them nodes of this one cluster, those of pools
        to come as well; the first is the system pool.
        """
        cluster = self.arm.add_cluster(name, **pools)
        self.enrol(cluster)
        return cluster

    def enrol(
        self,
        resource: str,
        *,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[Document] = (),
        max_pods: int = 110,
    ) -> None:
        """From now on the machines in this scale set, availability set or AKS cluster, or this machine, are
        nodes: those that run at once, later ones when they have booted.
        """
        self.fleet.enrol(Pool(resource, dict(labels or {}), list(taints), max_pods))

    def machine(self, node: str) -> str:
        """The id of the node's machine."""
        return self.fleet.machine_of(node)

    def run_metrics(self) -> MetricsServer:
        """metrics.k8s.io is kept up to date from now on; call it once. Without it, its lists are empty."""
        made: list[MetricsServer] = []

        def make(objects: Objects) -> MetricsServer:
            made.append(MetricsServer(objects, self.kubernetes.put))
            return made[0]

        self.kubernetes.add_controller(make)
        return made[0]

    # --- what happens to machines, as opposed to what anyone asks Azure for ---

    def crash(self, *nodes: str) -> None:
        """The machines die, as with their host: Azure goes on saying "running"."""
        for node in nodes:
            with self.arm.core.lock:
                self.arm.truth.crash(self.machine(node))

    def kill_kubelet(self, *nodes: str) -> None:
        """The kubelets die or are cut off; machines and containers go on, and write to their disks."""
        for node in nodes:
            with self.arm.core.lock:
                self.arm.truth.kill_kubelet(self.machine(node))

    cut_off = kill_kubelet
    """A partition looks the same from everywhere."""

    def revive_kubelet(self, *nodes: str) -> None:
        """They live again, on machines that run."""
        for node in nodes:
            with self.arm.core.lock:
                self.arm.truth.revive_kubelet(self.machine(node))

    def stop_machine(self, node: str, *, deallocate: bool = False, at_once: bool = True) -> None:
        """What an operator does in the portal; not at once, it takes as long as Azure takes."""
        action = "deallocate" if deallocate else "powerOff"
        self.arm.core.do("POST", self.machine(node), None, action, at_once=at_once)

    def start_machine(self, node: str, *, at_once: bool = True) -> None:
        """It runs again; its node is back after the boot delay."""
        self.arm.core.do("POST", self.machine(node), None, "start", at_once=at_once)

    def delete_machine(self, node: str, *, at_once: bool = True) -> None:
        """The machine goes; its Node stays until the cloud controller has noticed."""
        self.arm.core.do("DELETE", self.machine(node), at_once=at_once)

    def resize(self, scale_set: str, capacity: int, *, at_once: bool = False) -> None:
        """Somebody else changes the capacity of a set."""
        self.arm.core.do("PATCH", scale_set, {"sku": {"capacity": capacity}}, at_once=at_once)

    # --- workloads and disks ---

    def add_deployment(self, name: str, replicas: int = 1, **pod: Any) -> None:
        """Pods with label `app`: its name; `pod` as of `pod_template`."""
        self._workload(DEPLOYMENTS, name, {"replicas": replicas}, pod)

    def add_daemon_set(self, name: str, **pod: Any) -> None:
        """One pod on each node; `pod` as of `pod_template`."""
        self._workload(DAEMON_SETS, name, {}, pod)

    def add_stateful_set(
        self,
        name: str,
        replicas: int = 1,
        *,
        size_gb: int = 10,
        zone: str = "",
        sku: str = "Premium_LRS",
        storage_class: str = "",
        **pod: Any,
    ) -> list[str]:
        """Pods with a disk of their own each, claims `data-NAME-0`... The disks are made beforehand; these
        are their ids; with a `storage_class`, when they are needed.
        """
        found = []
        for number in range(replicas if not storage_class else 0):
            tags = disk_tags(f"pv-{name}-{number}", f"data-{name}-{number}", "default")
            disk = self.arm.add_disk(f"{name}-{number}", size_gb=size_gb, zone=zone, sku=sku, tagged=tags)
            self.add_volume(f"pv-{name}-{number}", disk, claim=f"data-{name}-{number}")
            found.append(disk)
        template = {"metadata": {"name": "data"}, "spec": _claim_spec(size_gb, storage_class)}
        self._workload(STATEFUL_SETS, name, {"replicas": replicas, "volumeClaimTemplates": [template]}, pod)
        return found

    def add_volume(self, name: str, disk: str, *, claim: str = "", namespace: str = "default") -> None:
        """A PersistentVolume for a managed disk, set aside for that claim."""
        with self.arm.core.lock:
            found = self.arm.core.state.find(disk)
            assert found is not None, f"there is no disk {disk}"
        size = found.body["properties"]["diskSizeGB"]
        csi = {"driver": DRIVER, "volumeHandle": disk, "fsType": "ext4"}
        spec: Document = {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "csi": csi}
        spec |= {"capacity": {"storage": f"{size}Gi"}, "persistentVolumeReclaimPolicy": "Retain"}
        if claim:
            spec["claimRef"] = {"kind": "PersistentVolumeClaim", "namespace": namespace, "name": claim}
        if zones := found.body.get("zones"):
            values = [f"{found.body['location']}-{zone}" for zone in zones]
            term = {"key": ZONE_LABEL, "operator": "In", "values": values}
            spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}}
        self.kubernetes.put(VOLUMES, {"metadata": {"name": name}, "spec": spec})

    def add_storage_class(self, name: str = "managed-csi", **options: Any) -> None:
        """A class whose disks are made for the first pod that needs them; options as of `storage_class`."""
        self.kubernetes.put(CLASSES, storage_class(name, **options))

    def add_claim(
        self, name: str, *, size_gb: int = 10, namespace: str = "default", storage_class: str = ""
    ) -> None:
        """A claim that takes the volume set aside for it, or any that fits, or is given one by its class."""
        metadata = {"name": name, "namespace": namespace}
        self.kubernetes.put(CLAIMS, {"metadata": metadata, "spec": _claim_spec(size_gb, storage_class)})

    def add_pod(self, name: str, *, namespace: str = "default", **pod: Any) -> None:
        """One pod that nobody replaces; `pod` as of `pod_template`."""
        template = pod_template(name, **pod)
        metadata = {**template["metadata"], "name": name, "namespace": namespace}
        self.kubernetes.put(kinds.PODS, {"metadata": metadata, "spec": template["spec"]})

    def add_budget(self, app: str, **spec: Any) -> None:
        """A PodDisruptionBudget for the pods of a workload: `minAvailable=2` or `maxUnavailable=1`."""
        selector = {"matchLabels": {"app": app}}
        document = {"metadata": {"name": app, "namespace": "default"}, "spec": {"selector": selector, **spec}}
        self.kubernetes.put(kinds.BUDGETS, document)

    def scale(self, name: str, replicas: int) -> None:
        """Changes the replicas of a deployment or stateful set."""
        with self.kubernetes.store.lock:
            for kind in (DEPLOYMENTS, STATEFUL_SETS):
                record = self.kubernetes.store.get(kind, ("default", name))
                if record is not None:
                    old = record.decode()
                    new = {**old, "spec": {**old["spec"], "replicas": replicas}}
                    self.kubernetes.api.update(kind, old, new)
                    return
        raise LookupError(f"there is no workload {name}")

    def delete_pod(self, name: str, *, namespace: str = "default", grace: int | None = None) -> None:
        """As `kubectl delete pod`; with `grace=0` as with `--force`."""
        self.kubernetes.remove(kinds.PODS, name, namespace, grace=grace)

    def cordon(self, name: str, *, off: bool = False) -> None:
        """As `kubectl cordon`, or `uncordon`."""
        with self.kubernetes.store.lock:
            old = self.node(name).document
            spec = {**old["spec"], "unschedulable": not off}
            self.kubernetes.api.update(kinds.NODES, old, {**old, "spec": spec})

    def delete_node(self, name: str) -> None:
        """The Node object, not the machine."""
        self.kubernetes.remove(kinds.NODES, name)

    def _workload(self, kind: kinds.Kind, name: str, spec: Document, pod: Mapping[str, Any]) -> None:
        template = pod_template(name, **pod)
        selector = {"matchLabels": {"app": name}}
        document = {"metadata": {"name": name, "namespace": "default"}}
        self.kubernetes.put(kind, {**document, "spec": {**spec, "selector": selector, "template": template}})

    # --- what can be seen ---

    def node(self, name: str) -> NodeView:
        """LookupError when there is no such Node."""
        record = self.kubernetes.store.get(kinds.NODES, ("", name))
        if record is None:
            raise LookupError(f"there is no node {name}\n{self.describe()}")
        return NodeView(record.decode())

    def nodes(self, *, ready: bool | None = None) -> list[str]:
        """Names; with `ready` only those that are, or are not."""
        views = [NodeView(document) for document in self.kubernetes.objects(kinds.NODES)]
        return [view.name for view in views if ready is None or view.is_ready == ready]

    def pod(self, name: str, namespace: str = "default") -> PodView:
        """LookupError when there is no such pod."""
        record = self.kubernetes.store.get(kinds.PODS, (namespace, name))
        if record is None:
            raise LookupError(f"there is no pod {namespace}/{name}\n{self.describe()}")
        return PodView(record.decode())

    def pods(self, app: str = "", *, node: str = "") -> list[PodView]:
        """Of that workload, on that node, or all."""
        found = [PodView(document) for document in self.kubernetes.objects(kinds.PODS)]
        wanted = ((pod, (pod.document["metadata"].get("labels") or {}).get("app")) for pod in found)
        return [pod for pod, label in wanted if app in ("", label) and node in ("", pod.node)]

    def attachments(self) -> list[tuple[str, str, bool]]:
        """(volume, node, attached) of each VolumeAttachment."""
        return sorted(
            (
                str(found["spec"]["source"]["persistentVolumeName"]),
                str(found["spec"]["nodeName"]),
                bool(found.get("status", {}).get("attached")),
            )
            for found in self.kubernetes.objects(kinds.ATTACHMENTS)
        )

    def owner(self, disk: str) -> str:
        """The node whose machine has the disk, by what Azure says; the machine's id when that is no node;
        empty for none.
        """
        with self.arm.core.lock:
            self.arm.core.settle()
            found = self.arm.core.state.find(disk)
        machine = str((found.body.get("managedBy") or "") if found else "")
        try:
            return self.fleet.node_of(machine) if machine else ""
        except LookupError:
            return machine

    def events(self, reason: str = "", about: str = "") -> list[str]:
        """`Reason: message` of the Events, in the order of their time."""
        found = sorted(
            self.kubernetes.objects(kinds.EVENTS), key=lambda event: event.get("lastTimestamp") or ""
        )
        return [
            f"{event['reason']}: {event['message']}"
            for event in found
            if reason in ("", event["reason"]) and about in ("", event["involvedObject"]["name"])
        ]

    @property
    def corruptions(self) -> list[Corruption]:
        """The damage done so far: disks torn from under live writers, LUNs reused under a mount."""
        return self.arm.corruptions

    def describe(self) -> str:
        """The world in a few lines, for messages of failed tests."""
        lines = [f"after {self.seconds:g} s:"]
        for document in self.kubernetes.objects(kinds.NODES):
            node = NodeView(document)
            lines.append(
                f"  node {node.name}: {'Ready' if node.is_ready else 'NotReady'} {node.taints or ''}"
            )
        gone = [name for name in names_of(self.fleet.members.values()) if name not in self.nodes()]
        lines += [f"  machine {name}: no node" for name in gone]
        for pod in self.pods():
            going = " going" if pod.is_going else ""
            lines.append(f"  pod {pod.name}: {pod.phase}{going} on {pod.node or 'no node'}")
        lines += [f"  attachment {pv} to {node}: {is_on}" for pv, node, is_on in self.attachments()]
        lines += [f"  corruption: {corruption}" for corruption in self.corruptions]
        return "\n".join(lines)

    # --- what the fleet asks for ---

    def has_node(self, name: str) -> bool:
        return self.kubernetes.store.get(kinds.NODES, ("", name)) is not None

    def furnish(self, name: str, provider_id: str, max_data_disks: int) -> None:
        """The CSINode, and the provider id of a machine that took another one's place."""
        with self.kubernetes.store.lock:
            node = self._objects.get(kinds.NODES, name)
            assert node is not None
            if node["spec"].get("providerID") != provider_id:
                # The API server lets nobody change it: https://github.com/kubernetes/kubernetes/issues/78960
                self.kubernetes.store.write(
                    kinds.NODES, {**node, "spec": {**node["spec"], "providerID": provider_id}}
                )
            driver: Document = {
                "name": DRIVER,
                "nodeID": name,
                "topologyKeys": ["topology.disk.csi.azure.com/zone"],
            }
            driver |= {"allocatable": {"count": max_data_disks}}
            owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
            self.kubernetes.put(
                CSI_NODES,
                {"metadata": {"name": name, "ownerReferences": [owner]}, "spec": {"drivers": [driver]}},
            )

    # --- how ---

    def _make_cloud_controller(self, objects: Objects) -> CloudController:
        self._objects = objects
        self.cloud = CloudController(objects, self.arm)
        return self.cloud

    def _mount(self, disk: str, node: str) -> None:
        """The kubelet mounts what it finds at the LUN it was told, whatever that is."""
        lun = self._told_lun(disk, node)
        with self.arm.core.lock:
            machine_id = self.machine(node)
            truth, resource = self.arm.truth, self.arm.core.state.find(machine_id)
            machine = truth.machine(machine_id)
            if machine.mounts.get(disk.lower()) == lun:
                return
            listed = data_disks(resource) if resource is not None else []
            found = [disk_id_of(entry) for entry in listed if entry["lun"] == lun]
            if resource is None or not found or lun_of(resource, found[0]) is None:
                raise RuntimeError(f"could not find disk lun {lun}")
            if not machine.running or not machine.kubelet_alive:
                raise RuntimeError("nobody is there to mount")
            if found[0].lower() == disk.lower():
                truth.mount(machine.vm_id, disk, lun)
            else:
                truth.mount_instead(machine.vm_id, found[0], lun, disk, self.arm.core.state.at)

    def _unmount(self, disk: str, node: str) -> None:
        with self.arm.core.lock, contextlib.suppress(KeyError, LookupError):
            machine = self.machine(node)
            lun = self.arm.truth.machine(machine).mounts.get(disk.lower())
            if lun is None:  # perhaps another one was mounted in its place
                lun = self._told_lun(disk, node)
            self.arm.truth.unmount_lun(machine, lun)

    def _told_lun(self, disk: str, node: str) -> int:
        for attachment in self._objects.all(kinds.ATTACHMENTS):
            if attachment["spec"]["nodeName"] == node and self.disk_of(attachment) == disk.lower():
                told = attachment["status"].get("attachmentMetadata") or {}
                if "LUN" in told:
                    return int(told["LUN"])
        raise LookupError(f"nobody has said at which LUN {disk} is on {node}")

    def disk_of(self, attachment: Document) -> str:
        """The disk that a VolumeAttachment is about, lower case; "" when its PersistentVolume is gone."""
        name = attachment["spec"]["source"].get("persistentVolumeName") or ""
        volume = self._objects.get(VOLUMES, name)
        return str(volume["spec"]["csi"]["volumeHandle"]).lower() if volume is not None else ""

    def _is_spoken_for(self, disk: str, machine: str) -> bool:
        try:
            node = self.fleet.node_of(machine)
        except LookupError:
            return False
        for attachment in self._objects.all(kinds.ATTACHMENTS):
            if attachment["spec"]["nodeName"] == node and self.disk_of(attachment) == disk.lower():
                return True
        return False


def pod_template(
    app: str,
    *,
    cpu: str = "",
    memory: str = "",
    requests: Mapping[str, str] | None = None,
    claims: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> Document:
    """A pod with one container; `claims` are mounted, `spec` goes into the pod's spec as it is."""
    wanted = {"cpu": cpu, "memory": memory, **(requests or {})}
    resources = {"requests": {name: value for name, value in wanted.items() if value}}
    container = {"name": "main", "image": f"example.org/{app}:1", "resources": resources}
    volumes = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims]
    metadata: Document = {"labels": {"app": app, **(labels or {})}}
    metadata |= {"annotations": dict(annotations)} if annotations else {}
    extra = {"volumes": volumes} if volumes else {}
    return {"metadata": metadata, "spec": {"containers": [container], **extra, **spec}}


def _claim_spec(size_gb: int, storage_class: str) -> Document:
    resources = {"requests": {"storage": f"{size_gb}Gi"}}
    return {"accessModes": ["ReadWriteOnce"], "storageClassName": storage_class, "resources": resources}


def disk_name(disk: str) -> str:
    """The last part of its id."""
    return parse_resource_id(disk).name

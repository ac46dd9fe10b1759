"""The planner against the real kube-scheduler, on generated clusters.

For each cluster: what there is and exactly the planned nodes are made as objects, then the pods. Every pod
that the plan promised a place must be bound, every pod it left must stay unschedulable. The scheduler places
one pod at a time by its own scores and never moves one, so a tight plan needs to be followed: pods become
schedulable in the plan's order, each with the planned node as status.nominatedNodeName, which the scheduler
tries first and takes only if its own filters agree.

25 clusters; KUBEKEEPER_SWEEP=full runs 1,000, KUBEKEEPER_SWEEP=NUMBER so many, KUBEKEEPER_SEED is the first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from cluster_generator import NAMESPACES, OVERHEAD, PRIORITIES, RUNTIME, csi_node, generate, volume
from planning import NOW, Case

from sandbox.controlplane import AssetsMissingError, ControlPlane, find_assets
from sandbox.kube_client import KubeClient, KubeError
from shared.autoscaling.board import Group, Row
from shared.autoscaling.decide import pack
from shared.autoscaling.explain import explain
from shared.autoscaling.facts import read_facts
from shared.autoscaling.pack import rank
from shared.autoscaling.scene import Scene, set_scene
from shared.autoscaling.templates import free_of
from shared.model.node import HOSTNAME, Node
from shared.model.plan import LeftAlone
from shared.model.pod import PendingPod

try:
    find_assets()
except AssetsMissingError as missing:
    pytestmark = [pytest.mark.e2e, pytest.mark.skip(reason=str(missing))]
else:
    pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SWEEP = os.environ.get("KUBEKEEPER_SWEEP", "")
CLUSTERS = {"": 25, "full": 1000}.get(SWEEP) or int(SWEEP)
FIRST = int(os.environ.get("KUBEKEEPER_SEED", "1"))
PROMISED = ("NewNode", "NodeOnItsWay", "FitsExistingNode")
PATIENCE_SECONDS = 12.0
"""For all pods of a cluster to be bound or refused; the scheduler tries again within a second or two."""
CORE, STORAGE = "/api/v1", "/apis/storage.k8s.io/v1"
GATE = "kubekeeper.io/agreement"
SELECTED = "volume.kubernetes.io/selected-node"
Document = dict[str, Any]


# What the plan says


@dataclass
class Promise:
    """The plan of a case: pods with the node each is to have, pods that are left, nodes still to be made."""

    scene: Scene
    names: dict[int, str] = field(default_factory=dict)
    """Names of all rows."""
    places: list[tuple[str, str]] = field(default_factory=list)
    """(pod, node), in the order in which they were placed."""
    left: dict[str, LeftAlone] = field(default_factory=dict)


def planned(case: Case) -> Scene:
    observation = case.observation()
    policy = observation.policy
    scene = set_scene(observation, policy, read_facts(observation.azure, policy), NOW)
    pack(scene)
    return scene


def promise_of(case: Case, seed: int) -> Promise:
    scene = planned(case)
    promise = Promise(scene)
    for row, node in enumerate(scene.board.nodes):
        is_there = row < len(scene.kubernetes.nodes)
        promise.names[row] = node.name if is_there else f"c{seed}-new-{row}"
    queues: dict[int, Iterator[PendingPod]] = {key: iter(pods) for key, pods in scene.pods.items()}
    for placement in scene.board.placements:
        for _ in range(placement.count):
            pod = next(queues[placement.group.key])
            promise.places.append((pod.subject, promise.names[placement.row]))
    said = {one.subject: one for one in explain(scene)}
    promise.left = {subject: one for subject, one in said.items() if one.reason not in PROMISED}
    assert {one for one, _ in promise.places} == {s for s, one in said.items() if one.reason in PROMISED}
    return promise


def new_rows(scene: Scene) -> list[int]:
    """Rows of planned nodes and of those on their way."""
    return [*scene.coming, *(row for offer in scene.offers for row in offer.rows)]


def spare_nodes(case: Case, scene: Scene) -> list[str]:
    """Planned nodes without which the planner's board places just as many pods, one look for each pool."""
    placed: dict[int, int] = {}
    for one in scene.board.placements:
        placed[one.group.key] = placed.get(one.group.key, 0) + one.count
    found = []
    for offer in scene.offers:
        if not offer.rows:
            continue
        kept = [r for other in scene.offers for r in other.rows if r != offer.rows[-1]]
        if fits_on(case, [scene.board.nodes[row] for row in kept], placed):
            found.append(offer.pool.name)
    return found


def fits_on(case: Case, nodes: Iterable[Node], placed: dict[int, int]) -> bool:
    observation = case.observation()
    scene = set_scene(observation, observation.policy, read_facts(observation.azure, observation.policy), NOW)
    for node in nodes:
        scene.board.add_row(Row(node, free_of(node, scene.board.free), {}))
    groups: list[Group] = rank(scene.groups, scene.offers)
    scene.packer.settle(groups)
    return all(g.count - scene.packer.remaining[g.key] >= placed.get(g.key, 0) for g in groups)


# The same cluster as objects


class Cluster:
    """One generated cluster on the API server."""

    def __init__(self, client: KubeClient, workers: ThreadPoolExecutor, case: Case, promise: Promise) -> None:
        self.client, self.workers, self.case, self.promise = client, workers, case, promise

    def make(self) -> None:
        """Everything but the pods that wait, then these, gated."""
        more, scene = self.case.more, self.promise.scene
        self._all(f"{CORE}/persistentvolumes", more["persistentvolumes"])
        self._claims(more["persistentvolumeclaims"])
        self._all(f"{STORAGE}/storageclasses", more["storageclasses"])
        self._all(f"{STORAGE}/csinodes", more["csinodes"])
        self._all(f"{CORE}/nodes", [_as_object(node) for node in self.case.nodes])
        for row in new_rows(scene):
            node, name = scene.board.nodes[row], self.promise.names[row]
            self.client.create(f"{STORAGE}/csinodes", csi_node(name, node.volume_limits))
            self.client.create(f"{CORE}/nodes", node_document(node, name))
        self._pods(pod for pod in self.case.pods if "nodeName" in pod["spec"])
        self._pods(pod for pod in self.case.pods if "nodeName" not in pod["spec"])

    def release(self) -> None:
        """Pods one after the other: those with a place in the plan's order, then those without."""
        for subject, node in self.promise.places:
            path = _path(subject)
            self.client.patch(f"{path}/status", {"status": {"nominatedNodeName": node}})
            self.client.patch(path, {"spec": {"schedulingGates": None}})
        self._settled({subject for subject, _ in self.promise.places})
        for subject in self.promise.left:
            self.client.patch(_path(subject), {"spec": {"schedulingGates": None}})
        self._settled(set(self.promise.left) | {subject for subject, _ in self.promise.places})

    def differences(self) -> list[str]:
        """Pods that are bound although left, not although promised, or that the scheduler never judged."""
        pods = self._read()
        found = []
        for subject, node in self.promise.places:
            if not pods[subject]["spec"].get("nodeName"):
                found.append(f"{subject} promised {node}: {_refusal(pods[subject])}")
        for subject, left in self.promise.left.items():
            if at := pods[subject]["spec"].get("nodeName"):
                found.append(f"{subject} left ({left.reason}: {left.message}) is on {at}")
            elif not _refusal(pods[subject]):
                found.append(f"{subject} left ({left.reason}) was not judged within {PATIENCE_SECONDS:.0f} s")
        return found

    def remove(self) -> None:
        """All of it."""
        now = {"gracePeriodSeconds": 0}
        for namespace in NAMESPACES:
            self.client.delete(f"{CORE}/namespaces/{namespace}/pods", now)
            self.client.delete(f"{CORE}/namespaces/{namespace}/persistentvolumeclaims", now)
        for path in ("persistentvolumes", "nodes"):
            self.client.delete(f"{CORE}/{path}", now)
        for path in ("storageclasses", "csinodes"):
            self.client.delete(f"{STORAGE}/{path}", now)

    def _settled(self, subjects: set[str]) -> None:
        """Wait until each of them is bound or refused, and nothing changes any more."""
        deadline, before = time.monotonic() + PATIENCE_SECONDS, -1
        while time.monotonic() < deadline:
            pods = self._read()
            waits = [s for s in subjects if not pods[s]["spec"].get("nodeName")]
            open_ones = [s for s in waits if s not in self.promise.left or not _refusal(pods[s])]
            if not open_ones and len(waits) == before:
                return
            before = len(waits) if not open_ones else -1
            if not self._provision():
                time.sleep(0.05)

    def _provision(self) -> int:
        """Make the volumes of claims for which the scheduler has chosen a node, as a CSI driver does."""
        if not any(c["spec"].get("storageClassName") for c in self.case.more["persistentvolumeclaims"]):
            return 0
        claims, _ = self.client.list(f"{CORE}/persistentvolumeclaims")
        made = 0
        for claim in claims:
            meta, spec = claim["metadata"], claim["spec"]
            if spec.get("volumeName") or SELECTED not in (meta.get("annotations") or {}):
                continue
            name = f"made-{meta['name']}"
            disk = volume(name, meta["namespace"], meta["name"], [])
            disk["spec"]["claimRef"]["uid"] = meta["uid"]
            self.client.create(f"{CORE}/persistentvolumes", disk)
            meta["annotations"]["pv.kubernetes.io/bind-completed"] = "yes"
            path = f"{CORE}/namespaces/{meta['namespace']}/persistentvolumeclaims/{meta['name']}"
            self.client.replace(path, {**claim, "spec": {**spec, "volumeName": name}})
            made += 1
        return made

    def _claims(self, claims: Iterable[Document]) -> None:
        for namespace in NAMESPACES:
            own = [claim for claim in claims if claim["metadata"]["namespace"] == namespace]
            self._all(f"{CORE}/namespaces/{namespace}/persistentvolumeclaims", own)

    def _pods(self, pods: Iterable[Document]) -> None:
        def create(pod: Document) -> Document:
            path = f"{CORE}/namespaces/{pod['metadata']['namespace']}/pods"
            gates = {} if "nodeName" in pod["spec"] else {"schedulingGates": [{"name": GATE}]}
            made = {**pod, "spec": {"automountServiceAccountToken": False, **pod["spec"], **gates}}
            return self.client.create(path, _as_object(made))

        list(self.workers.map(create, pods))

    def _all(self, path: str, documents: Iterable[Document]) -> None:
        list(self.workers.map(lambda one: self.client.create(path, one), documents))

    def _read(self) -> dict[str, Document]:
        items, _ = self.client.list(f"{CORE}/pods", fieldSelector="metadata.namespace!=kube-system")
        return {f"{one['metadata']['namespace']}/{one['metadata']['name']}": one for one in items}


def node_document(node: Node, name: str) -> Document:
    """A planned node as it registers."""
    allocatable = {k: f"{v}m" if k == "cpu" else str(v) for k, v in node.allocatable.items()}
    taints = [{"key": one.key, "value": one.value, "effect": one.effect} for one in node.taints]
    ready = {"type": "Ready", "status": "True"}
    return {
        "metadata": {"name": name, "labels": {**node.labels, HOSTNAME: name}},
        "spec": {"taints": taints},
        "status": {"allocatable": allocatable, "capacity": allocatable, "conditions": [ready]},
    }


def _as_object(document: Document) -> Document:
    """Without what only a server writes."""
    own = ("uid", "creationTimestamp", "ownerReferences")
    return {**document, "metadata": {k: v for k, v in document["metadata"].items() if k not in own}}


def _path(subject: str) -> str:
    namespace, _, name = subject.partition("/")
    return f"{CORE}/namespaces/{namespace}/pods/{name}"


def _refusal(pod: Document) -> str:
    for one in pod["status"].get("conditions") or ():
        if one["type"] == "PodScheduled" and one["reason"] == "Unschedulable":
            return str(one["message"])
    return ""


# The run


@pytest.fixture(scope="module")
def client() -> Iterator[KubeClient]:
    arguments = (
        "--disable-admission-plugins=ServiceAccount,StorageObjectInUseProtection,TaintNodesByCondition",
        "--delete-collection-workers=8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOGC", "400")  # one cluster after another leaves much garbage
        plane = ControlPlane.start(controllers=False, apiserver_arguments=arguments)
    with plane:
        client = plane.client()
        until(lambda: client.find(f"{CORE}/namespaces/default") is not None)
        for name, labels in NAMESPACES.items():
            try:
                client.create(f"{CORE}/namespaces", {"metadata": {"name": name, "labels": labels}})
            except KubeError as error:
                if error.reason != "AlreadyExists":
                    raise
        for name, value in PRIORITIES.items():
            document = {"metadata": {"name": name}, "value": value, "preemptionPolicy": "Never"}
            client.create("/apis/scheduling.k8s.io/v1/priorityclasses", document)
        runtime = {"metadata": {"name": RUNTIME}, "handler": RUNTIME, "overhead": {"podFixed": OVERHEAD}}
        client.create("/apis/node.k8s.io/v1/runtimeclasses", runtime)
        yield client


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def agree(client: KubeClient, workers: ThreadPoolExecutor, seed: int) -> tuple[Promise, list[str]]:
    """What the plan of that cluster promised, and where the scheduler saw it differently."""
    case = generate(seed)
    promise = promise_of(case, seed)
    cluster = Cluster(client, workers, case, promise)
    try:
        cluster.make()
        cluster.release()
        found = cluster.differences()
    finally:
        cluster.remove()
    spare = spare_nodes(case, promise.scene)
    return promise, found + [f"a planned node of pool {name} is not needed" for name in spare]


def test_the_scheduler_does_what_the_plan_promised(client: KubeClient) -> None:
    pods = nodes = 0
    differences: dict[int, list[str]] = {}
    with ThreadPoolExecutor(4) as workers:
        for seed in range(FIRST, FIRST + CLUSTERS):
            promise, found = agree(client, workers, seed)
            pods += len(promise.places) + len(promise.left)
            nodes += sum(offer.planned for offer in promise.scene.offers)
            if found:
                differences[seed] = found
                print(f"cluster {seed}:", *found[:5], sep="\n  ")
    share = 100 * (1 - len(differences) / CLUSTERS)
    print(f"{CLUSTERS} clusters, {pods} pods, {nodes} planned nodes: agreement on {share:.1f} % of clusters")
    assert not differences

"""The planner against the real kube-scheduler, on generated clusters.

For each cluster: what there is is made as objects, and the pods that wait; once the scheduler has done what
it can, exactly the planned nodes, and the real DaemonSet controller adds its pods to them. Every pod that the
plan promised a place must be bound then, every pod it left must stay unschedulable. Two ways:

* by itself, every fifth cluster: pods are bound as the scheduler's own scores say. It places one pod at a
  time and never moves one, so a plan that is tight, or whose pods depend on each other, may be missed by a
  perfect scheduler. Where this way does as promised, that is agreement; its share is printed.
* following the plan: otherwise, pods become schedulable in the plan's order, each with the planned node as
  status.nominatedNodeName, which the scheduler tries first and takes only if its own filters agree. Here
  every cluster must do as promised.

In clusters from 1,001 on some pods are gated, and some of those that run are being deleted. From 2,001 on,
some of these give way to pods for which the scheduler has chosen their node: such a pod must stay
unschedulable, nobody else may have its room, and once the others are gone it must be bound.

24 clusters, 4 of each such kind; KUBEKEEPER_SWEEP=full runs 1,000, KUBEKEEPER_SWEEP=NUMBER so many, and
KUBEKEEPER_SEED is the first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from cluster_generator import (
    DISK_ZONE,
    NAMESPACES,
    OVERHEAD,
    PRIORITIES,
    RUNTIME,
    WITH_MORE,
    WITH_NOMINATED,
    csi_node,
    generate,
    volume,
)
from plan_replay import in_order, planned, spare_nodes
from planning import Case

from sandbox.controlplane import AssetsMissingError, ControlPlane, find_assets
from sandbox.kube_client import KubeClient, KubeError
from shared.autoscaling.decide import use_spare
from shared.autoscaling.explain import explain
from shared.autoscaling.scene import Scene
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
FIRST = int(os.environ.get("KUBEKEEPER_SEED", "1"))
SEEDS: Sequence[int] = range(FIRST, FIRST + (1000 if SWEEP == "full" else int(SWEEP or 0)))
if not SWEEP:
    SEEDS = (*range(1, 17), *(first + at for first in (WITH_MORE, WITH_NOMINATED) for at in range(4)))
PROMISED = ("NewNode", "NodeOnItsWay", "FitsExistingNode")
MAKING_ROOM = "RoomIsBeingMade"
PATIENCE_SECONDS = 12.0
"""Without one more pod bound, or volume made; the scheduler tries again within a second or two."""
BY_ITSELF_EVERY = 5
QUIET_SECONDS = 1.5
"""Without a change, the scheduler by itself has done what it can: it tries pods again after a second."""
CORE, APPS, STORAGE = "/api/v1", "/apis/apps/v1", "/apis/storage.k8s.io/v1"
CONTROLLERS = "--controllers=daemonset-controller,serviceaccount-controller"
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
    """(pod, node), in the order in which they are placed."""
    before: int = 0
    """So many of them need no planned node to be there."""
    chosen: int = 0
    """For so many, the first ones, the scheduler has chosen the node already."""
    cleared: list[tuple[str, str]] = field(default_factory=list)
    """(pod, node): the scheduler has chosen the node for it, and it waits for others to end there."""
    left: dict[str, LeftAlone] = field(default_factory=dict)


def promise_of(case: Case, seed: int) -> Promise:
    scene = planned(case)
    use_spare(scene)
    promise = Promise(scene)
    for row, node in enumerate(scene.board.nodes):
        is_there = row < len(scene.kubernetes.nodes)
        promise.names[row] = node.name if is_there else f"c{seed}-new-{row}"
    for pod, reason, _ in scene.waiting:
        if reason in (MAKING_ROOM, *PROMISED):
            places = promise.cleared if reason == MAKING_ROOM else promise.places
            places.append((pod.subject, pod.nominated))
    promise.chosen = len(promise.places)
    queues: dict[int, Iterator[PendingPod]] = {key: iter(pods) for key, pods in scene.pods.items()}
    before, after = in_order(case, scene)
    for placement in (*before, *after):
        pod = next(queues[placement.group.key])
        promise.places.append((pod.subject, promise.names[placement.row]))
    promise.before = len(promise.places) - len(after)
    said = {one.subject: one for one in explain(scene)}
    left = {subject: one for subject, one in said.items() if one.reason not in PROMISED}
    promise.left = {subject: one for subject, one in left.items() if one.reason != MAKING_ROOM}
    assert {one for one, _ in promise.places} == {s for s, one in said.items() if one.reason in PROMISED}
    return promise


def new_rows(scene: Scene) -> list[int]:
    """Rows of planned nodes."""
    return sorted(row for offer in scene.offers for row in offer.rows)


# The same cluster as objects


class Cluster:
    """One generated cluster on the API server."""

    def __init__(self, client: KubeClient, workers: ThreadPoolExecutor, case: Case, promise: Promise) -> None:
        self.client, self.workers, self.case, self.promise = client, workers, case, promise
        self.waiting = {**promise.left, **dict(promise.cleared)}
        self.gates = {_subject(pod): pod["spec"].get("schedulingGates") for pod in case.pods}

    def make(self) -> None:
        """Everything that is there, and nodes on their way; but for the pods that wait."""
        more, coming = self.case.more, self.promise.scene.coming
        self._all(f"{CORE}/persistentvolumes", more["persistentvolumes"])
        self._in_namespaces(CORE, "persistentvolumeclaims")
        self._all(f"{STORAGE}/storageclasses", more["storageclasses"])
        if more["persistentvolumeclaims"]:
            self._all(f"{STORAGE}/csinodes", more["csinodes"])
        self._all(f"{CORE}/nodes", [_as_object(node) for node in self.case.nodes])
        self._pods(pod for pod in self.case.pods if "nodeName" in pod["spec"])
        for pod in self.case.pods:
            if "deletionTimestamp" in pod["metadata"]:  # no kubelet will end it
                self.client.delete(_path(_subject(pod)), {"gracePeriodSeconds": 3600})
        self._in_namespaces(APPS, "daemonsets")
        self._join(coming)

    def _join(self, rows: Iterable[int]) -> None:
        """These nodes register; they are open to pods once those of DaemonSets are there."""
        new = [(self.promise.names[row], self.promise.scene.board.nodes[row]) for row in rows]
        if self.case.more["persistentvolumeclaims"]:
            self._all(f"{STORAGE}/csinodes", [csi_node(name, one.volume_limits) for name, one in new])
        has_daemons = bool(self.case.more["daemonsets"])
        nodes = [self._registered(name, one, unschedulable=has_daemons) for name, one in new]
        self._all(f"{CORE}/nodes", nodes)
        if has_daemons:
            until(self._daemons_run)
            opened = {"spec": {"unschedulable": None}}
            list(self.workers.map(lambda one: self.client.patch(f"{CORE}/nodes/{one[0]}", opened), new))

    def let_go(self) -> list[str]:
        """By itself: all pods that wait, then the planned nodes; what differs from the promise."""
        self._pods(pod for pod in self.case.pods if "nodeName" not in pod["spec"])
        everyone = set(self.promise.left) | {subject for subject, _ in self.promise.places}
        self.settle(everyone, 0.3)
        self._join(new_rows(self.promise.scene))
        self.settle(everyone, QUIET_SECONDS)
        return self.too_many() + self.missing()

    def lead(self) -> list[str]:
        """Following the plan: pods whose node the scheduler has chosen, those that fit what is there, planned
        nodes, the other pods with a place in the plan's order, those without; what differs from the promise.
        """
        self._pods((pod for pod in self.case.pods if "nodeName" not in pod["spec"]), gated=True)
        places, at = self.promise.places, self.promise.before
        nominated = [*places[: self.promise.chosen], *self.promise.cleared]
        self._release(nominated)
        self.settle({subject for subject, _ in nominated})
        self._release(places[self.promise.chosen : at])
        self.settle({subject for subject, _ in places[:at]})
        self._join(new_rows(self.promise.scene))
        self._release(places[at:])
        self.settle({subject for subject, _ in places})
        for subject in self.promise.left:
            self._open(subject)
        self.settle(set(self.promise.left) | {subject for subject, _ in places})
        found = self.too_many()
        self._clear()
        return found + self.missing()

    def _clear(self) -> None:
        """Those that give way end: pods that wait for their room get it, and others those as company."""
        nodes = {node for _, node in self.promise.cleared}
        for pod in self.case.pods:
            if "deletionTimestamp" in pod["metadata"] and _node_of(pod) in nodes:
                self.client.delete(_path(_subject(pod)), {"gracePeriodSeconds": 0})
        self.waiting = {}
        self.settle({subject for subject, _ in (*self.promise.places, *self.promise.cleared)})

    def _release(self, places: Iterable[tuple[str, str]]) -> None:
        for subject, node in places:
            self.client.patch(f"{_path(subject)}/status", {"status": {"nominatedNodeName": node}})
            self._open(subject)

    def _open(self, subject: str) -> None:
        """Without the gate of this test; gates of its own stay."""
        self.client.patch(_path(subject), {"spec": {"schedulingGates": self.gates.get(subject)}})

    def settle(self, subjects: set[str], quiet_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until it is as promised for each of them; or all are bound or refused, and nothing has changed
        for so long.
        """
        moved = changed = time.monotonic()
        before: dict[str, str] = {}
        while time.monotonic() - moved < PATIENCE_SECONDS:
            pods = self._read()
            waits = {s: _refusal(pods[s]) for s in subjects if not pods[s]["spec"].get("nodeName")}
            made = self._provision()
            if waits.keys() != before.keys() or made:
                moved = time.monotonic()
            if waits != before or made:
                before, changed = waits, time.monotonic()
            elif all(waits.values()) and (
                waits.keys() <= self.waiting.keys() or time.monotonic() - changed > quiet_seconds
            ):
                return
            time.sleep(0 if made else 0.05)

    def missing(self) -> list[str]:
        """Pods that are not bound although promised a place."""
        pods = self._read()
        places = (*self.promise.places, *self.promise.cleared)
        return [
            f"{one} promised {node}: {_refusal(pods[one])}" for one, node in places if not _node_of(pods[one])
        ]

    def too_many(self) -> list[str]:
        """Pods that are bound although left, or that the scheduler never judged."""
        pods = self._read()
        found = []
        for subject, left in self.promise.left.items():
            if at := _node_of(pods[subject]):
                found.append(f"{subject} left ({left.reason}: {left.message}) is on {at}")
            elif not _refusal(pods[subject]):
                found.append(f"{subject} left ({left.reason}) was not judged within {PATIENCE_SECONDS:.0f} s")
        for subject, _ in self.promise.cleared:
            if _node_of(pods[subject]):
                found.append(f"{subject} is bound before others gave way")
        return found

    def remove(self) -> None:
        """All of it."""
        now = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
        self.client.delete(f"{APPS}/namespaces/default/daemonsets", now)
        for namespace in NAMESPACES:
            self.client.delete(f"{CORE}/namespaces/{namespace}/pods", now)
            self.client.delete(f"{CORE}/namespaces/{namespace}/persistentvolumeclaims", now)
        for path in ("persistentvolumes", "nodes"):
            self.client.delete(f"{CORE}/{path}", now)
        for path in ("storageclasses", "csinodes"):
            self.client.delete(f"{STORAGE}/{path}", now)
        while self.case.more["daemonsets"] and self._read():
            # Their controller may have made one more before it saw that the DaemonSet is gone.
            self.client.delete(f"{CORE}/namespaces/default/pods", now)
            time.sleep(0.1)

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
            node = self.client.get(f"{CORE}/nodes/{meta['annotations'][SELECTED]}")
            zone = node["metadata"]["labels"][DISK_ZONE]
            disk = volume(name, meta["namespace"], meta["name"], [zone])
            disk["spec"]["claimRef"]["uid"] = meta["uid"]
            self.client.create(f"{CORE}/persistentvolumes", disk)
            meta["annotations"]["pv.kubernetes.io/bind-completed"] = "yes"
            path = f"{CORE}/namespaces/{meta['namespace']}/persistentvolumeclaims/{meta['name']}"
            self.client.replace(path, {**claim, "spec": {**spec, "volumeName": name}})
            made += 1
        return made

    def _registered(self, name: str, node: Node, *, unschedulable: bool) -> Document:
        """A planned node with what the pool's nodes have in truth: DaemonSets have taken nothing yet."""
        allocatable = self.case.pools[node.labels["pool"]]["allocatable"]
        taints = [{"key": one.key, "value": one.value, "effect": one.effect} for one in node.taints]
        ready = {"type": "Ready", "status": "True"}
        return {
            "metadata": {"name": name, "labels": {**node.labels, HOSTNAME: name}},
            "spec": {"taints": taints, "unschedulable": unschedulable},
            "status": {"allocatable": allocatable, "capacity": allocatable, "conditions": [ready]},
        }

    def _in_namespaces(self, api: str, plural: str) -> None:
        for namespace in NAMESPACES:
            own = [one for one in self.case.more[plural] if one["metadata"]["namespace"] == namespace]
            self._all(f"{api}/namespaces/{namespace}/{plural}", own)

    def _daemons_run(self) -> bool:
        """Whether each DaemonSet has a pod on every node where its controller wants one, all bound."""
        sets = [one["status"] for one in self.client.list(f"{APPS}/daemonsets")[0]]
        pods, _ = self.client.list(f"{CORE}/pods", labelSelector="daemon")
        bound = sum(bool(pod["spec"].get("nodeName")) for pod in pods)
        return all(one.get("observedGeneration") for one in sets) and bound == len(pods) == sum(
            one["desiredNumberScheduled"] for one in sets
        )

    def _pods(self, pods: Iterable[Document], *, gated: bool = False) -> None:
        def create(pod: Document) -> Document:
            path = f"{CORE}/namespaces/{pod['metadata']['namespace']}/pods"
            own = pod["spec"].get("schedulingGates", [])
            gates = {"schedulingGates": [*own, {"name": GATE}] if gated else own}
            made = {**pod, "spec": {"automountServiceAccountToken": False, **pod["spec"], **gates}}
            return self.client.create(path, _as_object(made))

        list(self.workers.map(create, pods))

    def _all(self, path: str, documents: Iterable[Document]) -> None:
        list(self.workers.map(lambda one: self.client.create(path, one), documents))

    def _read(self) -> dict[str, Document]:
        items, _ = self.client.list(f"{CORE}/pods", fieldSelector="metadata.namespace!=kube-system")
        return {_subject(one): one for one in items}


def _as_object(document: Document) -> Document:
    """Without what only a server writes."""
    own = ("uid", "creationTimestamp", "deletionTimestamp", "ownerReferences")
    return {**document, "metadata": {k: v for k, v in document["metadata"].items() if k not in own}}


def _subject(pod: Document) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _node_of(pod: Document) -> str:
    return str(pod["spec"].get("nodeName", ""))


def _path(subject: str) -> str:
    namespace, _, name = subject.partition("/")
    return f"{CORE}/namespaces/{namespace}/pods/{name}"


def _refusal(pod: Document) -> str:
    for one in pod["status"].get("conditions") or ():
        is_gated = one["reason"] == "SchedulingGated" and "schedulingGates" in pod["spec"]
        if one["type"] == "PodScheduled" and (one["reason"] == "Unschedulable" or is_gated):
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
        plane = ControlPlane.start(
            apiserver_arguments=arguments,
            controller_arguments=(CONTROLLERS,),
            scheduler_options={"podMaxBackoffSeconds": 1},
        )
    with plane:
        client = plane.client()
        until(lambda: client.find(f"{CORE}/namespaces/default") is not None)
        for name, labels in NAMESPACES.items():
            try:
                client.create(f"{CORE}/namespaces", {"metadata": {"name": name, "labels": labels}})
            except KubeError as error:
                if error.reason != "AlreadyExists":
                    raise
        # A plan never counts on one pod giving way to another, not even to one without a class.
        for name, value in {**PRIORITIES, "ordinary": 0}.items():
            document: Document = {"metadata": {"name": name}, "value": value, "preemptionPolicy": "Never"}
            document["globalDefault"] = name == "ordinary"
            client.create("/apis/scheduling.k8s.io/v1/priorityclasses", document)
        runtime = {"metadata": {"name": RUNTIME}, "handler": RUNTIME, "overhead": {"podFixed": OVERHEAD}}
        client.create("/apis/node.k8s.io/v1/runtimeclasses", runtime)
        yield client


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass
class Verdict:
    """What the scheduler made of one plan."""

    promise: Promise
    missed_by_itself: int | None
    """Pods that were promised a place and got none when the scheduler chose by itself; None: not asked."""
    differences: list[str]


def agree(client: KubeClient, workers: ThreadPoolExecutor, seed: int) -> Verdict:
    case = generate(seed)
    promise = promise_of(case, seed)
    cluster = Cluster(client, workers, case, promise)
    found: list[str] = []
    missed = None
    is_asked = seed % BY_ITSELF_EVERY == 0 and not promise.cleared
    for way in (cluster.let_go, cluster.lead) if is_asked else (cluster.lead,):
        try:
            cluster.make()
            found = way()
        finally:
            cluster.remove()
        if way == cluster.let_go:
            missed = sum(" promised " in one for one in found)
        if not found:
            break
    spare = [f"a planned node of pool {name} is not needed" for name, _ in spare_nodes(case, promise.scene)]
    return Verdict(promise, missed, found + spare)


def test_the_scheduler_does_what_the_plan_promised(client: KubeClient) -> None:
    verdicts: dict[int, Verdict] = {}
    with ThreadPoolExecutor(4) as workers:
        for seed in SEEDS:
            verdict = verdicts[seed] = agree(client, workers, seed)
            if verdict.differences:
                print(f"cluster {seed}:", *verdict.differences[:5], sep="\n  ", flush=True)
            if len(verdicts) % 25 == 0:
                report(verdicts.values())
    report(verdicts.values())
    assert not [seed for seed, verdict in verdicts.items() if verdict.differences]


def report(verdicts: Collection[Verdict]) -> None:
    """One line on what there has been so far."""
    promised = sum(len(one.promise.places) for one in verdicts)
    later = sum(len(one.promise.cleared) for one in verdicts)
    left = sum(len(one.promise.left) for one in verdicts)
    nodes = sum(offer.planned for one in verdicts for offer in one.promise.scene.offers)
    agreed = sum(not one.differences for one in verdicts)
    print(
        f"{len(verdicts)} clusters, {promised} pods promised, {later} once others give way, {left} left,",
        f"{nodes} planned nodes: agreement on {100 * agreed / len(verdicts):.1f} % of clusters",
    )
    asked = [one for one in verdicts if one.missed_by_itself is not None]
    whole = sum(not one.missed_by_itself for one in asked)
    pods = sum(len(one.promise.places) for one in asked)
    bound = pods - sum(one.missed_by_itself or 0 for one in asked)
    print(
        f"the scheduler by itself bound every promised pod of {whole} clusters of {len(asked)},",
        f"{100 * bound / max(1, pods):.1f} % of {pods} promised pods",
        flush=True,
    )

"""Cordon, drain and uncordon over HTTP, on a cluster that lives in simulated time."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sandbox.asgi import Fault, on
from sandbox.clock import Clock
from sandbox.kube import LocalKubernetes, kinds
from sandbox.kube.kubelets import Kubelets
from shared.clients.kube import KubeClient
from shared.errors import ConflictError, NotFoundError, UnavailableError
from shared.nodes.cordon import CORDONED_BY, cordon, uncordon
from shared.nodes.drain import drain_step

TAINT = {"key": "kubekeeper.io/to-be-deleted", "effect": "NoSchedule"}


class Cluster:
    def __init__(self, kubernetes: LocalKubernetes) -> None:
        self.kubernetes = kubernetes
        kubernetes.run_controllers()
        self.kubelets: Kubelets = kubernetes.run_kubelets(stop_delay=timedelta(seconds=20))
        token = kubernetes.api.tokens.issue("admin", ("system:masters",))
        context = ssl.create_default_context(cafile=str(kubernetes.directory / "ca.pem"))
        self.kube = KubeClient(kubernetes.server, context, lambda: f"Bearer {token}")

    def advance(self, seconds: float) -> None:
        self.kubernetes.clock.advance(seconds)

    def node(self, name: str) -> dict[str, Any]:
        return self.kube.read(f"/api/v1/nodes/{name}")

    def deploy(self, name: str, replicas: int, **spec: Any) -> None:
        labels = {"app": name}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [container()], **spec}}
        document = {"metadata": {"name": name, "namespace": "default"}}
        document["spec"] = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
        self.kubernetes.put(kinds.named("deployments", "apps"), document)
        self.advance(30)

    def budget(self, name: str, minimum: int) -> None:
        spec = {"minAvailable": minimum, "selector": {"matchLabels": {"app": name}}}
        document = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}}
        where = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
        self.kube.create(where, {**document, "spec": spec})
        self.advance(1)

    def where(self) -> list[str]:
        return sorted(pod["spec"].get("nodeName", "") for pod in self.kubernetes.objects(kinds.PODS))


def container() -> dict[str, Any]:
    return {"name": "main", "image": "x", "resources": {"requests": {"cpu": "100m"}}}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with LocalKubernetes(Clock(datetime(2026, 11, 23, 10, tzinfo=UTC))) as kubernetes:
        cluster = Cluster(kubernetes)
        cluster.kubelets.join("a")
        cluster.advance(1)
        yield cluster


def test_cordoning_twice_changes_once(cluster: Cluster) -> None:
    assert cordon(cluster.kube, "a", by="autoscaling", taint=TAINT)
    assert not cordon(cluster.kube, "a", by="autoscaling", taint=TAINT)
    node = cluster.node("a")
    assert node["spec"]["unschedulable"] is True
    assert TAINT["key"] in {taint["key"] for taint in node["spec"]["taints"]}


def test_uncordon_leaves_a_cordon_of_an_operator(cluster: Cluster) -> None:
    cluster.kube.patch("/api/v1/nodes/a", {"spec": {"unschedulable": True}})
    assert cordon(cluster.kube, "a", by="autoscaling", taint=TAINT)
    assert uncordon(cluster.kube, "a", by="autoscaling", taint_key=TAINT["key"])
    node = cluster.node("a")
    assert node["spec"]["unschedulable"] is True
    assert TAINT["key"] not in {taint["key"] for taint in node["spec"].get("taints") or ()}


def test_uncordon_undoes_our_own_cordon_completely(cluster: Cluster) -> None:
    cordon(cluster.kube, "a", by="autoscaling", taint=TAINT)
    assert uncordon(cluster.kube, "a", by="autoscaling", taint_key=TAINT["key"])
    node = cluster.node("a")
    assert not node["spec"].get("unschedulable")
    assert CORDONED_BY not in (node["metadata"].get("annotations") or {})


def test_another_node_of_the_same_name_is_not_touched(cluster: Cluster) -> None:
    with pytest.raises(NotFoundError):
        cordon(cluster.kube, "a", by="autoscaling", uid="another")
    assert not uncordon(cluster.kube, "gone", by="autoscaling")


def test_a_cordon_that_loses_the_race_is_tried_on_the_newer_version(cluster: Cluster) -> None:
    def somebody_writes() -> None:
        with cluster.kubernetes.store.lock:
            (record,) = [n for n in cluster.kubernetes.objects(kinds.NODES) if n["metadata"]["name"] == "a"]
            record["metadata"].setdefault("labels", {})["touched"] = "yes"
            cluster.kubernetes.store.write(kinds.NODES, record)

    cluster.kubernetes.faults.append(Fault(on("PATCH", "/nodes/a"), before=somebody_writes))
    assert cordon(cluster.kube, "a", by="autoscaling")
    assert cluster.node("a")["metadata"]["labels"]["touched"] == "yes"


def test_drain_moves_pods_as_their_budget_allows(cluster: Cluster) -> None:
    cluster.deploy("web", 3)
    cluster.budget("web", 2)
    cluster.kubelets.join("b")
    cordon(cluster.kube, "a", by="drain")
    first = drain_step(cluster.kube, "a")
    assert (len(first.evicted), len(first.refused)) == (1, 2)
    assert "PodDisruptionBudget" in next(iter(first.refused.values()))
    for _ in range(10):
        cluster.advance(30)
        if drain_step(cluster.kube, "a").is_empty:
            break
    assert drain_step(cluster.kube, "a").is_empty
    assert cluster.where() == ["b", "b", "b"]


def test_pods_of_daemon_sets_and_finished_pods_stay(cluster: Cluster) -> None:
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": True}
    for name, extra, status in (
        ("daemon", {"ownerReferences": [owner]}, "Running"),
        ("mirror", {"annotations": {"kubernetes.io/config.mirror": "x"}}, "Running"),
        ("done", {}, "Succeeded"),
    ):
        metadata = {"name": name, "namespace": "default", **extra}
        spec = {"nodeName": "a", "containers": [container()]}
        document = {"metadata": metadata, "spec": spec, "status": {"phase": status}}
        cluster.kubernetes.put(kinds.PODS, document)
    assert drain_step(cluster.kube, "a").is_empty


def test_a_terminating_pod_is_waited_for(cluster: Cluster) -> None:
    cluster.deploy("web", 1)
    cordon(cluster.kube, "a", by="drain")
    assert len(drain_step(cluster.kube, "a").evicted) == 1
    again = drain_step(cluster.kube, "a")
    assert len(again.terminating) == 1
    assert not again.is_empty


def test_an_api_server_that_is_busy_postpones_the_rest(cluster: Cluster) -> None:
    cluster.deploy("web", 3)
    busy = {"kind": "Status", "reason": "TooManyRequests", "message": "wait", "code": 429}
    cluster.kubernetes.faults.append(Fault(on("POST", "/eviction"), status=429, body=busy, skip=1))
    step = drain_step(cluster.kube, "a")
    assert (len(step.evicted), step.postponed) == (1, 2)


def test_an_api_server_that_does_not_answer_ends_the_step(cluster: Cluster) -> None:
    cluster.deploy("web", 2)
    cluster.kubernetes.faults.append(Fault(on("POST", "/eviction"), lose_answer=True))
    with pytest.raises(UnavailableError):
        drain_step(cluster.kube, "a")


def test_a_node_that_changes_all_the_time_is_given_up(cluster: Cluster) -> None:
    conflict = {"kind": "Status", "reason": "Conflict", "message": "newer", "code": 409}
    cluster.kubernetes.faults.append(Fault(on("PATCH", "/nodes/a"), status=409, body=conflict, times=9))
    with pytest.raises(ConflictError):
        cordon(cluster.kube, "a", by="autoscaling")

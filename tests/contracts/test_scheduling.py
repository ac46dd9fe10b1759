"""What the scheduler says about pods that fit nowhere: the words that autoscaling reads."""

from __future__ import annotations

import pytest
from contracts.target import PODS, Target, eventually, phases, pod

from sandbox.kube_client import Document


@pytest.fixture
def only_nodes(target: Target, nodes):
    """As `nodes`, and there are no others."""
    target.client.request("DELETE", "/api/v1/nodes")
    return nodes


def unschedulable(target: Target, namespace: str, **spec: object) -> str:
    """What the scheduler says to such a pod, in its condition and in its event alike."""
    path = PODS.format(namespace)
    target.client.create(path, pod("a", **spec))

    def refused() -> Document | None:
        conditions = target.client.get(f"{path}/a")["status"].get("conditions", [])
        return next((c for c in conditions if c["type"] == "PodScheduled"), None)

    scheduled = eventually(refused)
    assert (scheduled["status"], scheduled["reason"]) == ("False", "Unschedulable")
    events = f"/api/v1/namespaces/{namespace}/events"
    selector = {"fieldSelector": "involvedObject.name=a,reason=FailedScheduling"}
    found = eventually(lambda: target.client.get(events, **selector)["items"])
    assert ("Warning", scheduled["message"]) in [(event["type"], event["message"]) for event in found]
    return scheduled["message"]


def test_a_pod_too_large_for_every_node(target: Target, namespace: str, only_nodes) -> None:
    only_nodes(2, capacity={"cpu": "2"})
    said = unschedulable(target, namespace, requests={"cpu": "3"})
    assert said == (
        "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, "
        "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    )


def test_a_pod_that_selects_no_node(target: Target, namespace: str, only_nodes) -> None:
    only_nodes(1)
    said = unschedulable(target, namespace, nodeSelector={"pool": "none"})
    assert said.startswith("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.")


def test_a_pod_that_tolerates_no_taint(target: Target, namespace: str, only_nodes) -> None:
    (name,) = only_nodes(1)
    taint = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
    target.client.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": [taint]}})
    said = unschedulable(target, namespace)
    assert said.startswith("0/1 nodes are available: 1 node(s) had untolerated taint(s).")


def test_a_pod_beside_cordoned_nodes(target: Target, namespace: str, only_nodes) -> None:
    first, _ = only_nodes(2, capacity={"cpu": "2"})
    target.client.patch(f"/api/v1/nodes/{first}", {"spec": {"unschedulable": True}})
    said = unschedulable(target, namespace, requests={"cpu": "3"})
    assert said.startswith("0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.")


def test_a_pod_and_no_nodes(target: Target, namespace: str, only_nodes) -> None:
    said = unschedulable(target, namespace)
    assert said == "no nodes available to schedule pods"


def test_a_scheduled_pod_says_where_to(target: Target, namespace: str, only_nodes) -> None:
    (name,) = only_nodes(1)
    target.client.create(PODS.format(namespace), pod("a"))
    eventually(lambda: phases(target, namespace) == ["Running"])
    events = f"/api/v1/namespaces/{namespace}/events"
    (event,) = eventually(lambda: target.client.get(events, fieldSelector="reason=Scheduled")["items"])
    assert (event["type"], event["message"]) == ("Normal", f"Successfully assigned {namespace}/a to {name}")


def test_a_pod_is_scheduled_when_a_node_joins(target: Target, namespace: str, only_nodes) -> None:
    unschedulable(target, namespace)
    only_nodes(1)
    eventually(lambda: phases(target, namespace) == ["Running"])

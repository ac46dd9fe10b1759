"""How pods end: grace periods, eviction, disruption budgets; how they are bound."""

from __future__ import annotations

from datetime import datetime

import pytest
from contracts.target import PODS, Target, deployment, eventually, phases, pod, refusal

from sandbox.kube_client import STRATEGIC_PATCH, Document

GONE_NODE = "a-node-without-kubelet"
BUDGETS = "/apis/policy/v1/namespaces/{}/poddisruptionbudgets"


@pytest.fixture
def pods(namespace: str) -> str:
    return PODS.format(namespace)


def evict(target: Target, path: str, options: Document | None = None) -> Document:
    name = path.rpartition("/")[2]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    return target.client.create(
        f"{path}/eviction", eviction | ({"deleteOptions": options} if options else {})
    )


def budget(target: Target, namespace: str, name: str = "web", **spec: object) -> Document:
    """A PodDisruptionBudget of the pods labelled app=web that has been counted."""
    document = {"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": "web"}}, **spec}}
    path = BUDGETS.format(namespace)
    target.client.create(path, document)

    def counted() -> Document | None:
        found = target.client.get(f"{path}/{name}")
        is_counted = found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
        return found if is_counted else None

    return eventually(counted)


def running(target: Target, namespace: str, count: int) -> list[str]:
    """Paths of so many running pods of a Deployment `web`, in an empty namespace."""
    target.client.create(f"/apis/apps/v1/namespaces/{namespace}/deployments", deployment("web", count))
    eventually(lambda: phases(target, namespace) == ["Running"] * count)
    path = PODS.format(namespace)
    return [f"{path}/{item['metadata']['name']}" for item in target.client.get(path)["items"]]


def ready_pods(target: Target, namespace: str, *names: str) -> list[str]:
    """Paths of such pods, labelled app=web, that run and are ready on a node without kubelet."""
    path = PODS.format(namespace)
    for name in names:
        target.client.create(path, pod(name, nodeName=GONE_NODE, labels={"app": "web"}))
        set_ready(target, f"{path}/{name}", "True")
    return [f"{path}/{name}" for name in names]


def set_ready(target: Target, path: str, status: str) -> None:
    conditions = [{"type": "Ready", "status": status}]
    change = {"status": {"phase": "Running", "conditions": conditions}}
    target.client.patch(f"{path}/status", change, STRATEGIC_PATCH)


def disruptions_allowed(target: Target, namespace: str) -> int:
    return target.client.get(f"{BUDGETS.format(namespace)}/web")["status"]["disruptionsAllowed"]


def test_an_unbound_pod_goes_at_once(target: Target, pods: str) -> None:
    target.client.create(pods, pod("a", schedulerName="nobody"))
    answer = target.client.delete(f"{pods}/a")
    assert answer["kind"] == "Pod"
    assert target.client.find(f"{pods}/a") is None


def test_a_bound_pod_is_given_its_grace_period(target: Target, pods: str) -> None:
    target.client.create(pods, pod("a", nodeName=GONE_NODE, terminationGracePeriodSeconds=45))
    metadata = target.client.delete(f"{pods}/a")["metadata"]
    assert metadata["deletionGracePeriodSeconds"] == 45
    ends, began = (
        datetime.fromisoformat(metadata[name]) for name in ("deletionTimestamp", "creationTimestamp")
    )
    assert 44 <= (ends - began).total_seconds() <= 50
    assert target.client.get(f"{pods}/a")["metadata"]["deletionTimestamp"] == metadata["deletionTimestamp"]


def test_a_grace_period_can_be_shortened_but_not_extended(target: Target, pods: str) -> None:
    target.client.create(pods, pod("a", nodeName=GONE_NODE))
    for asked, given in ((None, 30), (5, 5), (50, 5)):
        options = None if asked is None else {"gracePeriodSeconds": asked}
        answer = target.client.delete(f"{pods}/a", options)
        assert answer["metadata"]["deletionGracePeriodSeconds"] == given
    target.client.delete(f"{pods}/a", {"gracePeriodSeconds": 0})
    assert target.client.find(f"{pods}/a") is None


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_pod_needs_no_grace(target: Target, pods: str, phase: str) -> None:
    target.client.create(pods, pod("a", nodeName=GONE_NODE))
    target.client.patch(f"{pods}/a/status", {"status": {"phase": phase}})
    target.client.delete(f"{pods}/a")
    assert target.client.find(f"{pods}/a") is None


def test_a_pods_finalizer_outlives_its_grace_period(target: Target, pods: str) -> None:
    document = pod("a", nodeName=GONE_NODE)
    document["metadata"]["finalizers"] = ["example.org/held"]
    target.client.create(pods, document)
    target.client.delete(f"{pods}/a", {"gracePeriodSeconds": 0})
    assert target.client.get(f"{pods}/a")["metadata"]["deletionTimestamp"]
    target.client.patch(f"{pods}/a", {"metadata": {"finalizers": None}})
    assert target.client.find(f"{pods}/a") is None


def test_a_deletion_can_insist_on_the_uid(target: Target, pods: str) -> None:
    first = target.client.create(pods, pod("a", schedulerName="nobody"))["metadata"]["uid"]
    target.client.delete(f"{pods}/a")
    target.client.create(pods, pod("a", schedulerName="nobody"))
    error = refusal(target.client.delete, f"{pods}/a", {"preconditions": {"uid": first}})
    assert (error.status, error.reason) == (409, "Conflict")
    assert target.client.find(f"{pods}/a")


def test_a_pod_is_bound_once(target: Target, pods: str) -> None:
    target.client.create(pods, pod("a", schedulerName="nobody"))
    binding = {"metadata": {"name": "a"}, "target": {"kind": "Node", "name": GONE_NODE}}
    answer = target.client.create(f"{pods}/a/binding", binding)
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    bound = target.client.get(f"{pods}/a")
    assert bound["spec"]["nodeName"] == GONE_NODE
    assert [(c["type"], c["status"]) for c in bound["status"]["conditions"]] == [("PodScheduled", "True")]
    error = refusal(target.client.create, f"{pods}/a/binding", binding)
    assert (error.status, error.reason) == (409, "Conflict")
    assert error.message.endswith(f'pod a is already assigned to node "{GONE_NODE}"')


def test_a_pods_node_cannot_be_changed(target: Target, pods: str) -> None:
    target.client.create(pods, pod("a", nodeName=GONE_NODE))
    error = refusal(target.client.patch, f"{pods}/a", {"spec": {"nodeName": "other"}})
    assert (error.status, error.reason) == (422, "Invalid")
    assert "pod updates may not change fields other than" in error.message


def test_eviction_without_budget_is_a_graceful_deletion(target: Target, pods: str) -> None:
    target.client.create(pods, pod("a", nodeName=GONE_NODE))
    answer = evict(target, f"{pods}/a", {"gracePeriodSeconds": 7})
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    evicted = target.client.get(f"{pods}/a")
    assert evicted["metadata"]["deletionGracePeriodSeconds"] == 7
    (target_condition,) = [c for c in evicted["status"]["conditions"] if c["type"] == "DisruptionTarget"]
    assert (target_condition["status"], target_condition["reason"]) == ("True", "EvictionByEvictionAPI")


def test_evicting_what_is_not_there_is_not_found(target: Target, pods: str) -> None:
    error = refusal(evict, target, f"{pods}/a")
    assert (error.status, error.reason) == (404, "NotFound")


def test_eviction_can_insist_on_the_uid(target: Target, pods: str) -> None:
    target.client.create(pods, pod("a", nodeName=GONE_NODE))
    error = refusal(evict, target, f"{pods}/a", {"preconditions": {"uid": "0000"}})
    assert (error.status, error.reason) == (409, "Conflict")


def test_a_spent_budget_refuses_eviction(target: Target, namespace: str) -> None:
    first, _ = ready_pods(target, namespace, "a", "b")
    counted = budget(target, namespace, minAvailable=2)
    assert counted["status"]["disruptionsAllowed"] == 0
    error = refusal(evict, target, first)
    assert (error.status, error.reason) == (429, "TooManyRequests")
    assert error.message == "Cannot evict pod as it would violate the pod's disruption budget."
    (cause,) = error.document["details"]["causes"]
    assert cause == {
        "reason": "DisruptionBudget",
        "message": "The disruption budget web needs 2 healthy pods and has 2 currently",
    }
    assert phases(target, namespace) == ["Running", "Running"]


def test_a_budget_is_spent_eviction_by_eviction(target: Target, namespace: str) -> None:
    first, second, _ = ready_pods(target, namespace, "a", "b", "c")
    assert budget(target, namespace, minAvailable=2)["status"]["disruptionsAllowed"] == 1
    evict(target, first)
    assert refusal(evict, target, second).status == 429
    evict(target, first)  # of one that is on its way out, it is no further disruption
    assert disruptions_allowed(target, namespace) == 0
    assert phases(target, namespace) == ["Terminating", "Running", "Running"]


def test_a_budget_counts_ready_pods_only(target: Target, namespace: str) -> None:
    first, *_ = ready_pods(target, namespace, "a", "b", "c")
    assert budget(target, namespace, minAvailable=1)["status"]["disruptionsAllowed"] == 2
    set_ready(target, first, "False")
    eventually(lambda: disruptions_allowed(target, namespace) == 1)
    set_ready(target, first, "True")
    eventually(lambda: disruptions_allowed(target, namespace) == 2)


def test_two_budgets_for_one_pod_are_an_error(target: Target, namespace: str) -> None:
    (only,) = ready_pods(target, namespace, "a")
    for name in ("web", "web-too"):
        budget(target, namespace, name, minAvailable=0)
    error = refusal(evict, target, only)
    assert error.status == 500
    assert error.message == (
        "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
    )


@pytest.mark.parametrize(("policy", "status"), [("IfHealthyBudget", 429), ("AlwaysAllow", None)])
def test_an_unready_pod_of_a_spent_budget(
    target: Target, namespace: str, policy: str, status: int | None
) -> None:
    first, _ = ready_pods(target, namespace, "a", "b")
    set_ready(target, first, "False")
    budget(target, namespace, minAvailable=2, unhealthyPodEvictionPolicy=policy)
    if status is None:
        evict(target, first)
        assert phases(target, namespace) == ["Terminating", "Running"]
    else:
        assert refusal(evict, target, first).status == status


def test_a_pending_pod_needs_no_budget(target: Target, namespace: str) -> None:
    document = pod("a", nodeName=GONE_NODE, labels={"app": "web"})
    target.client.create(PODS.format(namespace), document)
    budget(target, namespace, minAvailable=1)
    evict(target, f"{PODS.format(namespace)}/a")
    assert phases(target, namespace) == ["Terminating"]


def test_a_budget_recovers_when_the_replacement_is_ready(target: Target, namespace: str, nodes) -> None:
    nodes(2)
    first, *_ = running(target, namespace, 2)
    budget(target, namespace, minAvailable="50%")
    assert disruptions_allowed(target, namespace) == 1
    evict(target, first)
    eventually(lambda: target.client.find(first) is None)
    eventually(lambda: disruptions_allowed(target, namespace) == 1)

"""What the stand-in of Kubernetes has beyond the real one: faults, a clock, a record of requests."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import urllib3

from sandbox.asgi import Fault, on
from sandbox.clock import Clock
from sandbox.kube import LocalKubernetes, kinds
from sandbox.kube_client import APPLY_PATCH, KubeClient, KubeError
from sandbox.node_agent import NodeAgent

NODES = "/api/v1/nodes"
START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


@pytest.fixture
def kubernetes() -> Iterator[LocalKubernetes]:
    with LocalKubernetes(Clock(START)) as running:
        yield running


@pytest.fixture
def client(kubernetes: LocalKubernetes) -> KubeClient:
    return kubernetes.client()


def test_time_is_the_tests(kubernetes: LocalKubernetes, client: KubeClient) -> None:
    kubernetes.put(kinds.PODS, {"metadata": {"name": "a", "namespace": "default"}, "spec": {"nodeName": "n"}})
    kubernetes.clock.advance(3600)
    deleted = client.delete("/api/v1/namespaces/default/pods/a", {"gracePeriodSeconds": 60})["metadata"]
    assert deleted["creationTimestamp"] == "2026-11-23T10:00:00Z"
    assert deleted["deletionTimestamp"] == "2026-11-23T11:01:00Z"


def test_the_node_agent_is_told_that_history_is_forgotten(
    kubernetes: LocalKubernetes, client: KubeClient
) -> None:
    old = client.get("/api/v1/pods")["metadata"]["resourceVersion"]
    for name in "ab":
        pod = {"metadata": {"name": name, "namespace": "default"}, "spec": {"nodeName": "n"}}
        kubernetes.put(kinds.PODS, pod)
    kubernetes.store.forget()
    with pytest.raises(KubeError) as caught:
        NodeAgent(client)._watch_pods(old)
    assert caught.value.status == 410


def test_the_nth_write_can_fail(kubernetes: LocalKubernetes, client: KubeClient) -> None:
    refusal = {"kind": "Status", "code": 429, "reason": "TooManyRequests", "message": "slow down"}
    kubernetes.faults.append(Fault(on("write", NODES), 429, refusal, {"Retry-After": "1"}, skip=1))
    client.create(NODES, {"metadata": {"name": "a"}})
    with pytest.raises(KubeError, match="slow down"):
        client.create(NODES, {"metadata": {"name": "b"}})
    client.create(NODES, {"metadata": {"name": "b"}})


def test_an_answer_can_be_lost_after_the_work(kubernetes: LocalKubernetes, client: KubeClient) -> None:
    kubernetes.faults.append(Fault(on("POST", NODES), lose_answer=True))
    with pytest.raises(urllib3.exceptions.HTTPError):
        client.create(NODES, {"metadata": {"name": "a"}})
    assert client.find(f"{NODES}/a")
    assert [request.status for request in kubernetes.requests if request.method == "POST"] == [0]


def test_the_world_can_change_between_a_read_and_a_write(
    kubernetes: LocalKubernetes, client: KubeClient
) -> None:
    read = client.create(NODES, {"metadata": {"name": "a"}})

    def meanwhile() -> None:
        record = kubernetes.store.get(kinds.NODES, ("", "a"))
        assert record is not None
        kubernetes.store.write(kinds.NODES, record.decode() | {"spec": {"unschedulable": True}})

    kubernetes.faults.append(Fault(on("PUT", NODES), before=meanwhile))
    with pytest.raises(KubeError, match="the object has been modified"):
        client.replace(f"{NODES}/a", read)


def test_requests_are_recorded_without_secrets(kubernetes: LocalKubernetes, client: KubeClient) -> None:
    client.get(NODES, labelSelector="a=b")
    (request,) = kubernetes.requests
    assert (request.method, request.path, request.status) == ("GET", NODES, 200)
    assert request.query == {"labelSelector": "a=b"}
    assert "authorization" not in request.headers


def test_without_a_known_token_nothing_is_told(kubernetes: LocalKubernetes) -> None:
    stranger = KubeClient(kubernetes.server, ca=kubernetes.directory / "ca.pem", token="guess")
    with stranger, pytest.raises(KubeError) as refused:
        stranger.get(NODES)
    assert (refused.value.status, refused.value.reason) == (401, "Unauthorized")


def test_pages_of_a_forgotten_moment_are_gone(kubernetes: LocalKubernetes, client: KubeClient) -> None:
    for name in "abc":
        client.create(NODES, {"metadata": {"name": name}})
    token = client.get(NODES, limit=1)["metadata"]["continue"]
    client.create(NODES, {"metadata": {"name": "d"}})
    kubernetes.store.forget()
    with pytest.raises(KubeError) as refused:
        client.get(NODES, limit=1, **{"continue": token})
    assert (refused.value.status, refused.value.reason) == (410, "Expired")


def test_a_role_can_be_taken_away_and_given_back(kubernetes: LocalKubernetes, client: KubeClient) -> None:
    refusal = kubernetes.forbid("write", "/nodes")
    assert client.get(NODES)["items"] == []
    for _ in range(2):
        with pytest.raises(KubeError) as refused:
            client.create(NODES, {"metadata": {"name": "a"}})
        assert (refused.value.status, refused.value.reason) == (403, "Forbidden")
    refusal.times = 0
    client.create(NODES, {"metadata": {"name": "a"}})


def test_a_quiet_watch_is_told_how_far_it_is(
    kubernetes: LocalKubernetes, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.kube.api.BOOKMARK_SECONDS", 0.05)
    kubernetes.put(kinds.NODES, {"metadata": {"name": "a"}})
    version = client.get(NODES)["metadata"]["resourceVersion"]
    kubernetes.put(kinds.SERVICE_ACCOUNTS, {"metadata": {"name": "x", "namespace": "default"}})
    options = {"resourceVersion": version, "timeoutSeconds": 5, "allowWatchBookmarks": True}
    with client.watch(NODES, **options) as watch:
        kind, bookmark = next(iter(watch.events()))
    assert kind == "BOOKMARK"
    assert int(bookmark["metadata"]["resourceVersion"]) > int(version)


def test_applying_from_the_server_side_creates_and_merges(client: KubeClient) -> None:
    path = "/api/v1/namespaces/default/configmaps/a"
    document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}}
    client.patch(path, document, APPLY_PATCH)
    client.patch(path, {**document, "data": {"y": "2"}}, APPLY_PATCH)
    assert client.get(path)["data"] == {"x": "1", "y": "2"}, "who owns which field is not modelled"


def test_two_stand_side_by_side_and_leave_nothing(kubernetes: LocalKubernetes, client: KubeClient) -> None:
    with LocalKubernetes() as other:
        other.client().create(NODES, {"metadata": {"name": "only-here"}})
        assert client.find(f"{NODES}/only-here") is None
    assert not other.directory.exists()

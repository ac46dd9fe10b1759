"""The product's Kubernetes client against the local Kubernetes, over TLS."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from sandbox.kube import LocalKubernetes
from shared.clients.kube import DISRUPTION_BUDGET, KubeClient, kube_client
from shared.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    SettingsError,
    ThrottledError,
    UnavailableError,
)
from shared.settings import KubernetesConnection

PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture(scope="module")
def kubernetes() -> Iterator[LocalKubernetes]:
    with LocalKubernetes() as running:
        yield running


@pytest.fixture
def client(kubernetes: LocalKubernetes) -> Iterator[KubeClient]:
    connection = KubernetesConnection(kubeconfig=f"file:{kubernetes.kubeconfig()}")
    client = kube_client(connection, {})
    yield client
    client.close()


def pod(name: str, **labels: str) -> dict[str, object]:
    spec = {"containers": [{"name": "main", "image": "none"}]}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec}


def test_objects_are_created_read_changed_and_deleted(client: KubeClient) -> None:
    made = client.create(PODS, pod("one"))
    assert client.find(f"{PODS}/one") == made
    changed = client.patch(f"{PODS}/one", {"metadata": {"labels": {"a": "b"}}})
    assert changed["metadata"]["labels"] == {"a": "b"}
    client.delete(f"{PODS}/one", uid=made["metadata"]["uid"])
    assert client.find(f"{PODS}/one") is None
    with pytest.raises(NotFoundError, match="NotFound"):
        client.delete(f"{PODS}/one")


def test_a_change_of_an_older_version_is_a_conflict(client: KubeClient) -> None:
    made = client.create(PODS, pod("two"))
    client.patch(f"{PODS}/two", {"metadata": {"labels": {"a": "b"}}})
    with pytest.raises(ConflictError):
        client.patch(f"{PODS}/two", {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}})
    with pytest.raises(ConflictError):
        client.replace(f"{PODS}/two", made)
    with pytest.raises(ConflictError):
        client.delete(f"{PODS}/two", uid="another")


def test_pages_of_a_list_add_up(client: KubeClient) -> None:
    for number in range(7):
        client.create(PODS, pod(f"page-{number}", app="pages"))
    pages = [msgspec.json.decode(page) for page in client.pages(PODS, limit=3, labelSelector="app=pages")]
    assert [len(page["items"]) for page in pages] == [3, 3, 1]
    assert len({item["metadata"]["name"] for page in pages for item in page["items"]}) == 7


def test_an_eviction_that_a_budget_refuses_says_so(client: KubeClient, kubernetes: LocalKubernetes) -> None:
    made = client.create(PODS, pod("kept", app="kept"))
    client.patch(
        f"{PODS}/kept",
        {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}},
    )
    admin = kubernetes.client()
    node = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "kept"}, "target": {"name": "n"}}
    admin.create(f"{PODS}/kept/binding", node)
    ready = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    admin.patch(f"{PODS}/kept/status", ready)
    budget = {
        "metadata": {"name": "kept"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}},
    }
    client.create("/apis/policy/v1/namespaces/default/poddisruptionbudgets", budget)
    with pytest.raises(ThrottledError) as refused:
        client.evict("default", "kept", uid=made["metadata"]["uid"])
    assert refused.value.code == DISRUPTION_BUDGET


def test_an_identity_without_a_role_is_told_what_to_do(kubernetes: LocalKubernetes) -> None:
    path = kubernetes.kubeconfig("nobody", ())
    client = kube_client(KubernetesConnection(kubeconfig=f"file:{path}"), {})
    with pytest.raises(ForbiddenError, match="bind the role"):
        client.get("/api/v1/nodes")


def test_a_token_is_read_again_for_each_request(kubernetes: LocalKubernetes) -> None:
    environ = {"TOKEN": "wrong"}
    connection = KubernetesConnection(
        server=kubernetes.server, ca=f"file:{kubernetes.directory / 'ca.pem'}", token="setting:TOKEN"
    )
    client = kube_client(connection, environ)
    with pytest.raises(ForbiddenError, match="does not know this identity"):
        client.get("/api/v1/nodes")
    environ["TOKEN"] = kubernetes.api.tokens.issue("admin", ("system:masters",))
    assert client.read("/api/v1/nodes")["kind"] == "NodeList"


def test_a_server_that_is_not_trusted_or_not_there_is_unavailable(kubernetes: LocalKubernetes) -> None:
    for server in (kubernetes.server, "http://127.0.0.1:9"):
        client = kube_client(KubernetesConnection(server=server, token="setting:T"), {"T": "secret"})
        with pytest.raises(UnavailableError, match="no answer from Kubernetes") as error:
            client.get("/api/v1/nodes")
        assert "secret" not in str(error.value)


@pytest.mark.parametrize("text", ["", "nonsense: [", "clusters: []", "a: b", "just text"])
def test_a_broken_kubeconfig_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SettingsError, match="try it with kubectl"):
        kube_client(KubernetesConnection(kubeconfig="setting:K"), {"K": text})


def test_wrong_certificates_are_refused_without_showing_them() -> None:
    connection = KubernetesConnection(server="https://127.0.0.1:1", ca="setting:CA", token="setting:T")
    with pytest.raises(SettingsError, match=r"kubernetes\.ca"):
        kube_client(connection, {"CA": "secret", "T": "t"})

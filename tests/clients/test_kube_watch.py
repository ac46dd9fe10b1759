"""Watches of the product's Kubernetes client against the local Kubernetes, over TLS."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice

import msgspec
import pytest
from relay import Relay

from sandbox.asgi import Fault, on
from sandbox.kube import LocalKubernetes
from sandbox.kube.kinds import PODS as POD_KIND
from shared.clients.kube import KubeClient, kube_client
from shared.errors import ApiError, ConflictError, ForbiddenError, UnavailableError
from shared.settings import KubernetesConnection

PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture(scope="module")
def kubernetes() -> Iterator[LocalKubernetes]:
    with LocalKubernetes() as running:
        yield running


def connect(kubernetes: LocalKubernetes, port: int | None = None, *groups: str) -> KubeClient:
    server = kubernetes.server if port is None else f"https://127.0.0.1:{port}"
    token = kubernetes.api.tokens.issue("admin" if not groups else groups[0], groups or ("system:masters",))
    connection = KubernetesConnection(
        server=server, ca=f"file:{kubernetes.directory / 'ca.pem'}", token="setting:T"
    )
    return kube_client(connection, {"T": token})


@pytest.fixture
def client(kubernetes: LocalKubernetes) -> Iterator[KubeClient]:
    client = connect(kubernetes)
    yield client
    client.close()


def put_pod(kubernetes: LocalKubernetes, name: str, **more: object) -> None:
    spec = {"containers": [{"name": "main", "image": "none"}]} | more
    kubernetes.put(POD_KIND, {"metadata": {"name": name, "namespace": "default"}, "spec": spec})


def version(client: KubeClient) -> str:
    return client.read(PODS)["metadata"]["resourceVersion"]


def read(lines: Iterator[bytes], count: int) -> list[tuple[str, str]]:
    lines = [msgspec.json.decode(line) for line in islice(lines, count)]
    return [(line["type"], line["object"]["metadata"]["name"]) for line in lines]


def test_lines_come_one_by_one_from_the_version_on(client: KubeClient, kubernetes: LocalKubernetes) -> None:
    put_pod(kubernetes, "before")
    since = version(client)
    put_pod(kubernetes, "after")
    with client.watch(PODS, since, seconds=30) as watch:
        lines = iter(watch)
        assert read(lines, 1) == [("ADDED", "after")]
        kubernetes.remove(POD_KIND, "after", "default", grace=0)
        assert ("DELETED", "after") in read(lines, 2)


def test_a_watch_ends_after_its_seconds(client: KubeClient) -> None:
    with client.watch(PODS, version(client), seconds=1) as watch:
        assert {msgspec.json.decode(line)["type"] for line in watch} <= {"BOOKMARK"}


def test_a_selector_hides_what_does_not_match(client: KubeClient, kubernetes: LocalKubernetes) -> None:
    since = version(client)
    put_pod(kubernetes, "bound", nodeName="n")
    put_pod(kubernetes, "waiting")
    query = {"fieldSelector": "status.phase=Pending,spec.nodeName="}
    with client.watch(PODS, since, query, seconds=30) as watch:
        assert read(iter(watch), 1) == [("ADDED", "waiting")]


def test_a_large_object_is_one_line(client: KubeClient, kubernetes: LocalKubernetes) -> None:
    since = version(client)
    annotations = {f"note-{number}": "x" * 10_000 for number in range(60)}
    document = {
        "metadata": {"name": "large", "namespace": "default", "annotations": annotations},
        "spec": {"containers": [{"name": "main", "image": "none"}]},
    }
    kubernetes.put(POD_KIND, document)
    with client.watch(PODS, since, seconds=30) as watch:
        line = next(iter(watch))
    assert msgspec.json.decode(line)["object"]["metadata"]["annotations"] == annotations


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    client: KubeClient, kubernetes: LocalKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.clients.kube.MAX_LINE_BYTES", 1000)
    since = version(client)
    annotations = {"note": "x" * 300_000}
    kubernetes.put(
        POD_KIND, {"metadata": {"name": "huge", "namespace": "default", "annotations": annotations}}
    )
    with (
        client.watch(PODS, since, seconds=30) as watch,
        pytest.raises(ApiError, match="a line of more than 1000 bytes"),
    ):
        list(watch)


def test_a_version_that_is_forgotten_is_a_conflict(client: KubeClient, kubernetes: LocalKubernetes) -> None:
    since = version(client)
    put_pod(kubernetes, "forgotten")
    kubernetes.store.forget()
    with client.watch(PODS, since, seconds=30) as watch, pytest.raises(ConflictError, match="410") as error:
        list(watch)
    assert error.value.code == "Expired"


def test_an_identity_without_a_role_may_not_watch(kubernetes: LocalKubernetes) -> None:
    client = connect(kubernetes, None, "nobody")
    with pytest.raises(ForbiddenError, match="bind the role"):
        client.watch(PODS, "1", seconds=30)
    client.close()


def test_a_refusal_before_the_first_line_is_the_error_it_says(
    client: KubeClient, kubernetes: LocalKubernetes
) -> None:
    kubernetes.faults.append(Fault(on("GET", PODS), status=503, body={"message": "etcd is away"}))
    with pytest.raises(UnavailableError, match="etcd is away"):
        client.watch(PODS, "1", seconds=30)


def test_metadata_is_all_that_comes_where_it_is_all_that_is_asked(
    client: KubeClient, kubernetes: LocalKubernetes
) -> None:
    (page,) = client.metadata_pages(PODS)
    assert all(set(item) == {"kind", "apiVersion", "metadata"} for item in msgspec.json.decode(page)["items"])
    since = version(client)
    put_pod(kubernetes, "bare")
    with client.watch(PODS, since, seconds=30, metadata_only=True) as watch:
        found = msgspec.json.decode(next(iter(watch)))["object"]
    assert set(found) == {"kind", "apiVersion", "metadata"}
    assert found["kind"] == "PartialObjectMetadata"


def test_a_close_from_another_thread_ends_the_wait(client: KubeClient) -> None:
    watch = client.watch(PODS, version(client), seconds=60)
    closer = threading.Timer(0.2, watch.close)
    closer.start()
    began = time.monotonic()
    assert list(watch) == []
    assert time.monotonic() - began < 20
    watch.close()
    closer.join()


def test_a_connection_that_is_cut_is_unavailable(kubernetes: LocalKubernetes) -> None:
    port = int(kubernetes.server.rpartition(":")[2])
    with Relay(port, 1_000_000, then="end") as relay:
        client = connect(kubernetes, relay.port)
        watch = client.watch(PODS, version(client), seconds=60)
        threading.Timer(0.2, relay.__exit__, (None, None, None)).start()
        with pytest.raises(UnavailableError, match="broke off"):
            list(watch)
        watch.close()
        client.close()


def test_a_connection_on_which_nothing_is_heard_is_dead(client: KubeClient) -> None:
    with (
        client.watch(PODS, version(client), seconds=60, silence=0.3) as watch,
        pytest.raises(UnavailableError, match="broke off"),
    ):
        list(watch)


def test_a_slow_reader_gets_every_line_or_an_error(client: KubeClient, kubernetes: LocalKubernetes) -> None:
    """Nothing is queued on our side: the server waits, or says that the reader fell too far behind."""
    since = version(client)
    names = [f"many-{number}" for number in range(300)]
    with client.watch(PODS, since, seconds=60) as watch:
        for name in names:
            put_pod(kubernetes, name, padding="x" * 10_000)
        time.sleep(0.2)
        assert [name for _, name in read(iter(watch), len(names))] == names


def test_a_reader_that_lingers_reads_at_once_what_came_meanwhile(
    client: KubeClient, kubernetes: LocalKubernetes
) -> None:
    since = version(client)
    with client.watch(PODS, since, seconds=60, linger=0.3) as watch:
        lines = iter(watch)
        later = threading.Timer(1.0, put_pod, (kubernetes, "first"))  # a line that had to be waited for
        later.start()
        assert read(lines, 1) == [("ADDED", "first")]
        began = time.monotonic()
        later.join()
        names = [f"next-{number}" for number in range(50)]
        for name in names:
            put_pod(kubernetes, name)
        assert [name for _, name in read(lines, 50)] == names
        assert time.monotonic() - began >= 0.3


def test_a_lingering_reader_is_woken_by_a_close(client: KubeClient, kubernetes: LocalKubernetes) -> None:
    since = version(client)
    with client.watch(PODS, since, seconds=60, linger=60) as watch:
        put_pod(kubernetes, "last")
        lines = iter(watch)
        next(lines)
        closer = threading.Timer(0.2, watch.close)
        closer.start()
        assert list(lines) == []
        closer.join()

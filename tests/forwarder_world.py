"""What a forwarder needs around it: a topic that keeps what it gets, a road that can be cut, and objects."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from sandbox.kube import LocalKubernetes, kinds
from sandbox.kube.store import Document
from shared.clients.kube import KubeClient, kube_client
from shared.errors import ApiError
from shared.forwarder.clock import Clock
from shared.forwarder.deliver import Destination, destination
from shared.forwarder.gather import Message, Pace
from shared.forwarder.run import Forwarder
from shared.forwarder.settings import ForwarderSettings
from shared.runtime.automation import AUTOMATIONS
from shared.settings import KubernetesConnection

SERVICES = kinds.named("services")
INGRESSES = kinds.named("ingresses", "networking.k8s.io")
SLICES = kinds.named("endpointslices", "discovery.k8s.io")
SECRETS = kinds.named("secrets")

DEADLINE_SECONDS = 90.0
"""For what takes milliseconds on an idle machine."""


def until(condition: Callable[[], Any], what: str = "", seconds: float = DEADLINE_SECONDS) -> Any:
    """The first true answer; the test fails when none comes in time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what or condition}"
        time.sleep(0.005)
    return found


class Gate:
    """A TCP road to the API server: `cut` breaks what is on it, `close` lets nothing through until `open`."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.is_open = True
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="gate", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False
        self.cut()

    def cut(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self.is_open:
                client.close()
                continue
            server = socket.create_connection(self._target)
            with self._lock:
                self._pairs.append((client, server))
            if not self.is_open:  # closed meanwhile
                self.cut()
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        source.close()


class Kept:
    """A destination in memory, for what is not about sending; may be told to refuse."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.error: ApiError | None = None

    def send(self, messages: list[Message]) -> Mapping[str, ApiError]:
        if self.error is not None:
            return {message.event: self.error for message in messages}
        self.messages += messages
        return {}

    def of(self, event: str) -> list[Message]:
        return [message for message in list(self.messages) if message.event == event]


def settings(kubernetes: LocalKubernetes, **more: Any) -> ForwarderSettings:
    """Quick ones, for one test."""
    values: dict[str, Any] = {
        "cluster": "prod",
        "kubernetes": KubernetesConnection(
            server=kubernetes.server, ca=f"file:{kubernetes.directory / 'ca.pem'}", token="setting:T"
        ),
        "automations": tuple(AUTOMATIONS),
        "secret_namespaces": ("*",),
        "by_queue": False,
        "pace": Pace(quiet=0.05, longest=0.2, gap=0.1),
        "resync": 3600.0,
        "etcd_interval": 0.0,
        "port": 0,
    }
    return ForwarderSettings(**(values | more))


def process_environ(kubernetes: LocalKubernetes, folder: Path, **more: str) -> dict[str, str]:
    """What a forwarder in a process of its own is told; `folder` takes its token."""
    token = folder / "service-account-token"
    token.write_text(kubernetes.api.tokens.issue("admin", ("system:masters",)))
    return {
        "KUBEKEEPER_CLUSTER": "prod",
        "KUBEKEEPER_KUBERNETES_SERVER": kubernetes.server,
        "KUBEKEEPER_KUBERNETES_CA": str(kubernetes.directory / "ca.pem"),
        "KUBEKEEPER_KUBERNETES_TOKEN": str(token),
        "KUBEKEEPER_PORT": "0",
    } | more


def client_of(
    kubernetes: LocalKubernetes, port: int | None = None, user: str = "", groups: tuple[str, ...] = ()
) -> KubeClient:
    """The product's client, as administrator unless a user is named; by way of `port` where one is given."""
    token = kubernetes.api.tokens.issue(user or "admin", groups if user else ("system:masters",))
    connection = settings(kubernetes).kubernetes
    if port is not None:
        connection = KubernetesConnection(
            server=f"https://127.0.0.1:{port}", ca=connection.ca, token=connection.token
        )
    return kube_client(connection, {"T": token})


class Running:
    """A forwarder in this process; a context manager."""

    def __init__(
        self,
        kubernetes: LocalKubernetes,
        where: Destination | Mapping[str, str],
        *,
        port: int | None = None,
        client: KubeClient | None = None,
        clock: Clock | None = None,
        **more: Any,
    ) -> None:
        self.settings = settings(kubernetes, **more)
        self.client = client or client_of(kubernetes, port)
        if isinstance(where, Mapping):
            where = destination(self.settings, where, "test")
        self.forwarder = Forwarder(self.settings, self.client, where, clock)

    def __enter__(self) -> Self:
        self.forwarder.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.forwarder.end()
        self.client.close()

    def ready(self) -> Self:
        until(lambda: self.forwarder.is_ready, "the forwarder to be ready")
        return self

    def caught_up(self, kubernetes: LocalKubernetes) -> None:
        """Wait until every follower has seen what there is to see."""
        revision = kubernetes.store.revision
        for follower in self.forwarder.followers:
            until(lambda follower=follower: int(follower.version or 0) >= revision, follower.source.name)

    def value(self, name: str, **labels: str) -> float:
        return self.forwarder.metrics.value(name, **labels)


def rewrite(kubernetes: LocalKubernetes, kind: kinds.Kind, document: Document) -> None:
    """The object becomes that and stays the same one: `put` makes another of that name."""
    with kubernetes.store.lock:
        metadata = document["metadata"]
        record = kubernetes.store.get(kind, (metadata.get("namespace", ""), metadata["name"]))
        assert record is not None
        old = record.decode()
        kept = {**old["metadata"], **metadata}
        if kind.has_generation and set(document) - {"metadata", "status"}:
            kept["generation"] = old["metadata"].get("generation", 1) + 1
        kubernetes.store.write(kind, {**old, **document, "metadata": kept})


# Objects


def pod(
    name: str, namespace: str = "default", *, unschedulable: bool = False, ready: bool = True
) -> Document:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    if unschedulable:
        conditions = [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"}
        ]
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "main", "image": "none"}]},
        "status": {"phase": "Pending", "conditions": conditions},
    }


def node(name: str, ready: str = "True") -> Document:
    return {"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}


def attach_event(name: str, count: int = 1, reason: str = "FailedAttachVolume") -> Document:
    about = {"kind": "Pod", "namespace": "default", "name": "db-0"}
    return {
        "metadata": {"name": name, "namespace": "default"},
        "reason": reason,
        "count": count,
        "involvedObject": about,
    }


def attachment(
    name: str, *, attached: bool = True, attach_error: str = "", detach_error: str = ""
) -> Document:
    status: Document = {"attached": attached}
    if attach_error:
        status["attachError"] = {"message": attach_error, "time": "2026-11-23T10:00:00Z"}
    if detach_error:
        status["detachError"] = {"message": detach_error, "time": "2026-11-23T10:00:00Z"}
    return {
        "metadata": {"name": name},
        "spec": {"attacher": "disk.csi.azure.com", "nodeName": "n", "source": {"persistentVolumeName": "pv"}},
        "status": status,
    }


def ingress(
    name: str, service: str, *, secret: str = "", namespace: str = "default", **notes: str
) -> Document:
    spec: Document = {
        "rules": [{"http": {"paths": [{"path": "/", "backend": {"service": {"name": service}}}]}}]
    }
    if secret:
        spec["tls"] = [{"secretName": secret}]
    return {"metadata": {"name": name, "namespace": namespace, "annotations": notes}, "spec": spec}


def service(name: str, port: int = 80, namespace: str = "default") -> Document:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"ports": [{"port": port}]}}


def endpoint_slice(service: str, addresses: tuple[str, ...], number: int = 0) -> Document:
    labels = {"kubernetes.io/service-name": service}
    return {
        "metadata": {"name": f"{service}-{number}", "namespace": "default", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
    }


def secret(name: str, value: str) -> Document:
    return {
        "metadata": {"name": name, "namespace": "default"},
        "type": "kubernetes.io/tls",
        "data": {"tls.crt": value, "tls.key": value},
    }

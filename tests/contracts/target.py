"""What a contract needs of the thing it is checked on, and the objects the contracts are about."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from sandbox.controlplane import ControlPlane
from sandbox.kube import LocalKubernetes
from sandbox.kube_client import Document, KubeClient, KubeError
from sandbox.node_agent import NodeAgent

T = TypeVar("T")
PODS = "/api/v1/namespaces/{}/pods"


class Target(Protocol):
    """A Kubernetes to check a contract on."""

    name: str
    client: KubeClient
    agent: NodeAgent

    def client_of(self, user: str, *groups: str) -> KubeClient:
        """A client that is not an administrator."""

    def kubeconfig(self) -> Path:
        """An administrator's."""

    def forget_history(self) -> None:
        """From now on, watches of what is past are refused with 410."""


class RealTarget:
    """The real control plane with the sandbox's node agent."""

    name = "real"

    def __init__(self, plane: ControlPlane, agent: NodeAgent) -> None:
        self.plane = plane
        self.agent = agent
        self.client = plane.client()

    def client_of(self, user: str, *groups: str) -> KubeClient:
        return self.plane.client(user, groups)

    def kubeconfig(self) -> Path:
        return self.plane.kubeconfig()

    def forget_history(self) -> None:
        # The API server's memory of past events begins anew with it.
        self.plane.kill("kube-apiserver")
        self.plane.restart("kube-apiserver")


class StandIn:
    """The stand-in with its controllers and the sandbox's node agent."""

    name = "stand-in"

    def __init__(self, kubernetes: LocalKubernetes, agent: NodeAgent) -> None:
        self.kubernetes = kubernetes
        self.agent = agent
        self.client = kubernetes.client()

    def client_of(self, user: str, *groups: str) -> KubeClient:
        return self.kubernetes.client(user, groups)

    def kubeconfig(self) -> Path:
        return self.kubernetes.kubeconfig()

    def forget_history(self) -> None:
        self.kubernetes.store.forget()


def eventually(look: Callable[[], T], *, seconds: float = 30) -> T:
    """What `look` returns once that is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def refusal(call: Callable[..., object], *arguments: object, **options: object) -> KubeError:
    """The error that a call ends with; it must end with one."""
    try:
        answer = call(*arguments, **options)
    except KubeError as error:
        return error
    raise AssertionError(f"not refused: {answer}")


def pod(name: str, **spec: object) -> Document:
    """A pod of one container."""
    labels = spec.pop("labels", {})
    requests = spec.pop("requests", {})
    container = {"name": "main", "image": "example.org/main", "resources": {"requests": requests}}
    metadata = {"name": name, "labels": labels}
    return {"metadata": metadata, "spec": {"containers": [container], **spec}}


def deployment(name: str, replicas: int, **spec: object) -> Document:
    """A Deployment of such pods, labelled app=NAME."""
    labels = {"app": name}
    template = pod("", labels=labels, **spec)
    del template["metadata"]["name"]
    return {
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def bare_node(name: str, **labels: str) -> Document:
    """A Node object that nobody keeps alive."""
    return {"metadata": {"name": name, "labels": labels}, "spec": {}}


def attachment(name: str, *, node: str = "nowhere", volume: str = "nothing") -> Document:
    """A VolumeAttachment."""
    return {
        "metadata": {"name": name},
        "spec": {
            "attacher": "other.example.org",
            "nodeName": node,
            "source": {"persistentVolumeName": volume},
        },
    }


def phases(target: Target, namespace: str, **query: str) -> list[str]:
    """Of the namespace's pods; `Terminating` for those on their way out."""
    pods, _ = target.client.list(PODS.format(namespace), **query)
    return [
        "Terminating" if pod["metadata"].get("deletionTimestamp") else pod["status"]["phase"] for pod in pods
    ]


def taints(target: Target, node: str) -> list[str]:
    """`key:effect` of a node's taints, sorted."""
    found = target.client.get(f"/api/v1/nodes/{node}")["spec"].get("taints", [])
    return sorted(f"{taint['key']}:{taint['effect']}" for taint in found)


def condition(document: Document, kind: str) -> Document:
    """One condition of an object's status."""
    return next(c for c in document["status"]["conditions"] if c["type"] == kind)

"""The manifests of infra/ on the real control plane: it takes them, the forwarder runs there with nothing but
its roles, and every right that no role names is refused, verb by verb.

The app's automations run under their roles in the other modules of this folder.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from manifests import FORWARDER, KUBERNETES, Document, edited, rights_of, role
from roles import AUTOMATIONS, EVERYBODY, allowed, client_with, connection_of_app, kubectl, served

from sandbox.controlplane import AssetsMissingError, ControlPlane, find_assets
from sandbox.eventgrid import LocalTopic, WorkloadIdentity
from sandbox.forwarder_image import lay_out
from sandbox.kube_client import KubeError
from sandbox.node_agent import NodeAgent
from sandbox.ports import free_ports

try:
    find_assets()
except AssetsMissingError as missing:
    pytestmark = [pytest.mark.e2e, pytest.mark.skip(reason=str(missing))]
else:
    pytestmark = pytest.mark.e2e

NAMESPACE, NAME = "kubekeeper", "kubekeeper-forwarder"
PREFIX = "Kubekeeper.Cluster."


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane.start() as plane, NodeAgent(plane.client()) as agent:
        agent.join("node-a")
        yield plane


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def pod_of(plane: ControlPlane) -> Document:
    """The forwarder's pod, which the node agent says is running."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    selector = f"app.kubernetes.io/name={NAME}"

    def running() -> list[Document]:
        found = plane.client().get(path, labelSelector=selector)["items"]
        return [pod for pod in found if pod["status"].get("phase") == "Running"]

    return until(running, "the forwarder's pod")[0]


def environ_of(plane: ControlPlane, pod: Document) -> dict[str, str]:
    """What its kubelet would put into the container's environment, Secrets aside."""
    (container,) = pod["spec"]["containers"]
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            name = source["configMapRef"]["name"]
            found |= plane.client().get(f"/api/v1/namespaces/{NAMESPACE}/configmaps/{name}")["data"]
    return found | {variable["name"]: variable["value"] for variable in container.get("env", ())}


@contextmanager
def forwarder(plane: ControlPlane, folder: Path, environ: dict[str, str]) -> Iterator[str]:
    """The image's files, run with an account's token that the API server made; the address of its pages."""
    image = lay_out(folder)
    token = folder / "service-account-token"
    token.write_text(kubectl(plane, "-n", NAMESPACE, "create", "token", NAME).strip())
    host, _, server_port = plane.server.removeprefix("https://").partition(":")
    (port,) = free_ports(1)
    here = {
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": server_port,
        "KUBEKEEPER_KUBERNETES_CA": str(plane.directory / "ca.pem"),
        "KUBEKEEPER_KUBERNETES_TOKEN": str(token),
        "KUBEKEEPER_ETCD_INTERVAL": "1s",
        "KUBEKEEPER_PORT": str(port),
    }
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            image.command, env={**image.environ, **environ, **here}, stderr=file, cwd=folder
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: is_ready(address) or process.poll() is not None, f"a forwarder that is ready: {log}")
        assert process.poll() is None, log.read_text()
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    assert "Forbidden" not in log.read_text()


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_the_forwarder_tells_of_a_real_cluster_with_nothing_but_its_roles(
    plane: ControlPlane, tmp_path: Path
) -> None:
    identity = WorkloadIdentity(tmp_path)
    words = {"REGISTRY": "registry", "=CLUSTER": "=prod", "CLIENT-ID": identity.client_id}
    with LocalTopic(identity) as topic:
        overlay = edited(
            FORWARDER / "event-grid", tmp_path, words | {"TOPIC-ENDPOINT": topic.url}, tls_secrets=True
        )
        kubectl(plane, "apply", "-k", overlay)
        pod = pod_of(plane)
        # What the webhook of workload identity looks for; what it then injects, `topic.environ` has.
        account = plane.client().get(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{NAME}")
        assert account["metadata"]["annotations"]["azure.workload.identity/client-id"] == identity.client_id
        assert pod["metadata"]["labels"]["azure.workload.identity/use"] == "true"
        assert pod["spec"]["serviceAccountName"] == NAME
        with forwarder(plane, tmp_path, {**topic.environ, **environ_of(plane, pod)}) as address:
            make_trouble(plane)
            for kind in ("PodUnschedulable", "NodeNotReady", "VolumeAttachFailed", "EndpointsChanged"):
                (event, *_) = until(lambda kind=kind: topic.of(PREFIX + kind), kind)
                assert event["data"]["cluster"] == "prod"
            reasons = {"IngressChanged", "SecretChanged", "ServiceChanged"}
            until(lambda: reasons <= whys(topic, "IngressChanged"), str(reasons))
            probe(address, pod)
            plane.kill("etcd")
            try:
                until(lambda: topic.of(PREFIX + "EtcdUnhealthy"), "etcd to be missed")
            finally:
                plane.restart("etcd")


def whys(topic: LocalTopic, kind: str) -> set[str]:
    return {why for event in topic.of(PREFIX + kind) for why in event["data"]["reasons"]}


def make_trouble(plane: ControlPlane) -> None:
    """A bit of everything, in the namespace `default`."""
    kube = plane.client()
    here = "/api/v1/namespaces/default"
    container = {"name": "main", "image": "example.org/m"}
    unschedulable = {
        "metadata": {"name": "big"},
        "spec": {"containers": [container], "nodeSelector": {"no": "node"}},
    }
    kube.create(f"{here}/pods", unschedulable)
    kube.create("/api/v1/nodes", {"metadata": {"name": "silent"}})
    about = {"kind": "Pod", "namespace": "default", "name": "db-0"}
    attach = {"metadata": {"name": "db-0.1"}, "reason": "FailedAttachVolume", "involvedObject": about}
    kube.create(f"{here}/events", attach)
    pair = {"tls.crt": "", "tls.key": ""}
    secret = {"metadata": {"name": "cert"}, "type": "kubernetes.io/tls", "data": pair}
    kube.create(f"{here}/secrets", secret)
    service = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}
    kube.create(f"{here}/services", service)
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    rules = [{"http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}]
    ingress = {"metadata": {"name": "web"}, "spec": {"rules": rules, "tls": [{"secretName": "cert"}]}}
    kube.create("/apis/networking.k8s.io/v1/namespaces/default/ingresses", ingress)
    time.sleep(2)  # from now on the forwarder knows what the Ingress refers to
    kube.patch(f"{here}/secrets/cert", {"metadata": {"annotations": {"renewed": "yes"}}})
    kube.patch(f"{here}/services/web", {"spec": {"ports": [{"port": 81}]}})
    kube.create(
        f"{here}/pods",
        {"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {"containers": [container]}},
    )


def probe(address: str, pod: Document) -> None:
    """As the kubelet does, by what the pod says."""
    (container,) = pod["spec"]["containers"]
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        with urllib.request.urlopen(address + container[name]["httpGet"]["path"], timeout=10) as answer:
            assert answer.status == 200, name


@pytest.mark.parametrize("overlay", ["event-grid-key", "queues"])
def test_the_api_server_takes_the_other_ways_to_send(
    plane: ControlPlane, overlay: str, tmp_path: Path
) -> None:
    kubectl(plane, "apply", "-k", edited(FORWARDER / overlay, tmp_path, {"REGISTRY": "registry"}))
    kubectl(plane, "apply", "--dry-run=server", "-k", KUBERNETES / "entra")


def test_pods_that_are_not_restricted_are_refused_beside_the_forwarder(plane: ControlPlane) -> None:
    kubectl(plane, "apply", "-f", FORWARDER / "base/namespace.yaml")
    spec = {"containers": [{"name": "main", "image": "example.org/m"}]}
    with pytest.raises(KubeError, match="violates PodSecurity"):
        plane.client().create(
            f"/api/v1/namespaces/{NAMESPACE}/pods", {"metadata": {"name": "p"}, "spec": spec}
        )


def test_everything_else_is_forbidden_to_the_forwarder(plane: ControlPlane, tmp_path: Path) -> None:
    kubectl(plane, "apply", "-k", edited(FORWARDER / "event-grid", tmp_path, {}, tls_secrets=True))
    token = kubectl(plane, "-n", NAMESPACE, "create", "token", NAME).strip()
    named = rights_of(role(FORWARDER / "base/role.yaml")) | rights_of(
        role(FORWARDER / "tls-secrets/role.yaml")
    )
    with client_with(plane, token) as client:
        assert client.send("GET", "/readyz/etcd").status == 200
        for path in ("/metrics", "/logs", "/debug/pprof/", "/livez/etcd", "/configz"):
            assert client.send("GET", path).status == 403, path
        assert allowed(client) == (named - {("", "/readyz/etcd", "get")}) | EVERYBODY


@pytest.mark.parametrize("automation", AUTOMATIONS)
def test_everything_else_is_forbidden_to_the_app(plane: ControlPlane, automation: str) -> None:
    connection = connection_of_app(plane, automation)
    named = rights_of(role(KUBERNETES / f"roles/{automation}.yaml"))
    token = Path(connection["token"].removeprefix("file:")).read_text()
    with client_with(plane, token) as client:
        # Roles of other tests are forgotten in a moment, not at once.
        until(
            lambda: rules(client) == named | EVERYBODY,
            json.dumps(sorted(rules(client) ^ (named | EVERYBODY))),
        )
        here = served(client)
        # Custom resources that are not installed here are in the rules, and cannot be tried.
        assert allowed(client) == {right for right in named if right[:2] in here} | EVERYBODY


def rules(client: Any) -> set[tuple[str, str, str]]:
    """What the API server itself says that this identity may do."""
    question = {"spec": {"namespace": "default"}}
    status = client.create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", question)["status"]
    assert not status.get("incomplete")
    return rights_of({"rules": status["resourceRules"]})

"""Ingress sync on the real control plane, under its role and no more: classes, status, slices made by the
real controllers.

The gateway is the local Resource Manager's, storage is Azurite; pods are patched Ready by the node agent.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from roles import connection_of_app

from sandbox.arm import LocalArm
from sandbox.certificates import Authority
from sandbox.controlplane import AssetsMissingError, ControlPlane, find_assets
from sandbox.kube_client import KubeClient, KubeError
from sandbox.node_agent import NodeAgent
from shared.bootstrap import Clients
from shared.ingress_sync.status import publish_address, publish_note
from shared.runtime.automation import find
from shared.work import one_pass

try:
    find_assets()
except AssetsMissingError as missing:
    pytestmark = [pytest.mark.e2e, pytest.mark.azurite, pytest.mark.skip(reason=str(missing))]
else:
    pytestmark = [pytest.mark.e2e, pytest.mark.azurite]

CLUSTER, AUTOMATION = "e2e", "ingress-sync"
INGRESSES = "/apis/networking.k8s.io/v1/namespaces/default/ingresses"
CLASSES = "/apis/networking.k8s.io/v1/ingressclasses"
Document = dict[str, Any]


class Live:
    """The app's own pass over a real cluster, as often as a test wants."""

    def __init__(self, plane: ControlPlane, agent: NodeAgent, arm: LocalArm, clients: Clients) -> None:
        self.plane, self.agent, self.arm, self.clients = plane, agent, arm, clients
        self.gateway = arm.id_of("Microsoft.Network/applicationGateways", "gw")
        self.kube: KubeClient = plane.client()

    def pass_once(self) -> None:
        claim = self.clients.claims.acquire(CLUSTER, AUTOMATION, self.clients.now())
        assert claim is not None
        with claim:
            one_pass(self.clients, find(AUTOMATION), self.clients.settings().cluster(CLUSTER), claim)

    def until(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        """Passes until something holds."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not within {seconds} s; pools {self.targets()}"
            self.pass_once()
            time.sleep(0.2)

    def parts(self, collection: str) -> list[Document]:
        body = self.arm.core.state.resources[self.gateway.lower()].hidden["serving"]
        return [one for one in body["properties"][collection] if one["name"].startswith("kk_")]

    def targets(self) -> set[str]:
        """Every address behind the gateway that traffic meets."""
        pools = self.parts("backendAddressPools")
        return {to["ipAddress"] for pool in pools for to in pool["properties"].get("backendAddresses") or []}

    def hosts(self) -> set[str]:
        found = set()
        for listener in self.parts("httpListeners"):
            inside = listener["properties"]
            found |= set(inside.get("hostNames") or [inside.get("hostName", "")])
        return found

    def pods(self, app: str) -> list[Document]:
        return self.kube.get("/api/v1/namespaces/default/pods", labelSelector=f"app={app}")["items"]

    def addresses(self, app: str) -> set[str]:
        return {pod["status"]["podIP"] for pod in self.pods(app) if pod["status"].get("podIP")}

    def deploy(self, app: str, replicas: int) -> None:
        labels = {"app": app}
        template = {
            "metadata": {"labels": labels},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [
                    {"name": "main", "image": "example.org/m", "ports": [{"containerPort": 8080}]}
                ],
            },
        }
        spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
        self.kube.create(
            "/apis/apps/v1/namespaces/default/deployments", {"metadata": {"name": app}, "spec": spec}
        )
        ports = [{"port": 80, "targetPort": 8080}]
        service = {"metadata": {"name": app}, "spec": {"selector": labels, "ports": ports}}
        self.kube.create("/api/v1/namespaces/default/services", service)

    def ingress(
        self, name: str, host: str, app: str, class_name: str | None = "azure", **spec: Any
    ) -> Document:
        backend = {"service": {"name": app, "port": {"number": 80}}}
        rule = {"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
        body: Document = {"rules": [rule], **spec}
        body |= {"ingressClassName": class_name} if class_name else {}
        return self.kube.create(INGRESSES, {"metadata": {"name": name}, "spec": body})


@pytest.fixture(scope="module")
def live(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    directory = tmp_path_factory.mktemp("ingress")
    with ControlPlane.start() as plane, LocalArm() as arm, NodeAgent(plane.client()) as agent:
        agent.join("node-a")
        arm.core.operation_seconds = 0.3
        arm.core.polling_seconds = 1
        gateway = arm.add_gateway("gw")
        clients = Clients(_settings(plane, arm, gateway, storage, directory), arm.credential())
        for name, controller in (("azure", "azure/application-gateway"), ("other", "example.org/other")):
            plane.client().create(CLASSES, {"metadata": {"name": name}, "spec": {"controller": controller}})
        yield Live(plane, agent, arm, clients)


def _settings(
    plane: ControlPlane, arm: LocalArm, gateway: str, storage: str, directory: Path
) -> dict[str, str]:
    path = directory / "kubekeeper.yaml"
    path.write_text(
        f"clusters:\n- name: {CLUSTER}\n  kubernetes: {json.dumps(connection_of_app(plane, AUTOMATION))}\n"
        f"  azure: {{subscription: {arm.subscription}, resourceGroups: [{arm.group}],"
        " location: westeurope}\n"
        f"  ingressSync: {{gateway: '{gateway}', quiet: 1s, poolInterval: 1s}}\n"
    )
    return {
        "AzureWebJobsStorage": storage,
        "KUBEKEEPER_CONFIG": str(path),
        "KUBEKEEPER_ARM_ENDPOINT": arm.url,
    }


def test_a_deployment_behind_an_ingress_is_served_and_follows_its_pods(live: Live) -> None:
    live.deploy("web", 3)
    live.ingress("web", "web.example", "web")
    live.until(lambda: len(live.targets()) == 3)
    assert live.targets() == live.addresses("web") and "web.example" in live.hosts()
    live.until(lambda: bool(live.kube.get(f"{INGRESSES}/web")["status"]["loadBalancer"].get("ingress")))
    status = live.kube.get(f"{INGRESSES}/web")["status"]["loadBalancer"]["ingress"]
    assert len(status) == 1 and status[0]["ip"].startswith("20.")
    live.kube.patch("/apis/apps/v1/namespaces/default/deployments/web/scale", {"spec": {"replicas": 1}})
    live.until(lambda: len(live.targets()) == 1 and live.targets() <= live.addresses("web"))


def test_a_pod_that_is_not_ready_gets_no_requests(live: Live) -> None:
    live.deploy("shy", 2)
    live.ingress("shy", "shy.example", "shy")
    live.until(lambda: live.addresses("shy") <= live.targets() and len(live.addresses("shy")) == 2)
    pod = live.pods("shy")[0]
    address = pod["status"]["podIP"]
    live.agent.set_ready("default", pod["metadata"]["name"], ready=False)
    live.until(lambda: address not in live.targets())
    live.agent.set_ready("default", pod["metadata"]["name"], ready=True)
    live.until(lambda: address in live.targets())


def test_only_ingress_objects_of_our_classes_are_ours(live: Live) -> None:
    live.deploy("picky", 1)
    live.ingress("theirs", "theirs.example", "picky", class_name="other")
    live.ingress("classless", "classless.example", "picky", class_name=None)
    live.ingress("ours", "ours.example", "picky")
    live.until(lambda: "ours.example" in live.hosts())
    assert not {"theirs.example", "classless.example"} & live.hosts()
    change = {"metadata": {"annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}}
    live.kube.patch(f"{CLASSES}/azure", change)
    live.until(lambda: "classless.example" in live.hosts())
    assert "theirs.example" not in live.hosts()
    live.kube.patch(f"{CLASSES}/azure", {"metadata": {"annotations": None}})
    live.until(lambda: "classless.example" not in live.hosts())


def test_tls_from_a_secret_and_a_bad_secret_is_said_on_the_object(live: Live) -> None:
    issued = Authority().issue("safe", names=("safe.example",))
    data = {"tls.crt": issued.certificate, "tls.key": issued.key}
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in data.items()}
    secret = {"metadata": {"name": "safe"}, "type": "kubernetes.io/tls", "data": encoded}
    live.kube.create("/api/v1/namespaces/default/secrets", secret)
    live.deploy("safe", 1)
    live.ingress("safe", "safe.example", "safe", tls=[{"hosts": ["safe.example"], "secretName": "safe"}])
    live.ingress("bad", "bad.example", "safe", tls=[{"hosts": ["bad.example"], "secretName": "missing"}])
    live.until(lambda: "safe.example" in live.hosts())
    listeners = [one["properties"] for one in live.parts("httpListeners")]
    assert any(one["protocol"] == "Https" for one in listeners) and live.parts("sslCertificates")
    events = live.kube.get("/api/v1/namespaces/default/events", fieldSelector="involvedObject.name=bad")[
        "items"
    ]
    assert any("missing" in event["message"] and event["type"] == "Warning" for event in events)


def test_a_status_or_note_for_an_object_of_another_uid_is_not_written(live: Live) -> None:
    made = live.ingress("again", "again.example", "web", class_name="other")
    kube = live.clients.kube(live.clients.settings().cluster(CLUSTER))
    assert publish_address(kube, "default", "again", made["metadata"]["uid"], [{"ip": "192.0.2.1"}])
    stranger = "11111111-1111-4111-8111-111111111111"
    assert not publish_address(kube, "default", "again", stranger, [{"ip": "192.0.2.2"}])
    assert not publish_note(kube, "default", "again", stranger, "x")
    assert publish_note(kube, "default", "again", made["metadata"]["uid"], "said")
    found = live.kube.get(f"{INGRESSES}/again")
    assert found["status"]["loadBalancer"]["ingress"] == [{"ip": "192.0.2.1"}]
    assert found["metadata"]["annotations"] == {"kubekeeper.io/ingress-sync": "said"}
    assert publish_address(kube, "default", "again", made["metadata"]["uid"], [])
    assert publish_note(kube, "default", "again", made["metadata"]["uid"], "")
    found = live.kube.get(f"{INGRESSES}/again")
    assert not found["status"]["loadBalancer"].get("ingress") and not found["metadata"].get("annotations")
    live.kube.delete(f"{INGRESSES}/again")
    assert not publish_note(kube, "default", "again", made["metadata"]["uid"], "x")


def test_the_api_server_refuses_what_the_worked_cases_call_a_port_of_70000(live: Live) -> None:
    with pytest.raises(KubeError, match="70000"):
        live.kube.create(
            INGRESSES,
            {
                "metadata": {"name": "w3"},
                "spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 70000}}}},
            },
        )

"""What the forwarder's roles allow is what it asks the API server for, no less and no more."""

from __future__ import annotations

from forwarder_world import Kept, Running, client_of, until
from manifests import FORWARDER, Document, Rights, rights_of, role
from rights import kube_right

from sandbox.kube import LocalKubernetes
from shared.forwarder.clock import Clock

ACCOUNT = {"kind": "ServiceAccount", "namespace": "kubekeeper", "name": "kubekeeper-forwarder"}
USER = "system:serviceaccount:kubekeeper:kubekeeper-forwarder"
GROUP = "rbac.authorization.k8s.io"
BASE, SECRETS = role(FORWARDER / "base/role.yaml"), role(FORWARDER / "tls-secrets/role.yaml")


def asked_for(kubernetes: LocalKubernetes) -> Rights:
    found: Rights = set()
    for request in kubernetes.requests:
        right = kube_right(request.method, request.path + ("?watch=1" if request.query.get("watch") else ""))
        if right is None:
            found.add(("", request.path, request.method.lower()))
        else:
            group, resource, verb = right.split()
            found.add(("" if group == "-" else group, resource, verb))
    return found


def bind(kubernetes: LocalKubernetes, role: Document, namespace: str = "") -> None:
    reference = {"apiGroup": GROUP, "kind": "ClusterRole", "name": role["metadata"]["name"]}
    kind, where = ("rolebindings", f"/namespaces/{namespace}") if namespace else ("clusterrolebindings", "")
    kubernetes.client().create(f"/apis/{GROUP}/v1/clusterroles", role)
    binding = {"metadata": {"name": role["metadata"]["name"]}, "roleRef": reference, "subjects": [ACCOUNT]}
    kubernetes.client().create(f"/apis/{GROUP}/v1{where}/{kind}", binding)


def run(kubernetes: LocalKubernetes, *namespaces: str) -> Rights:
    """What a forwarder that sees everything has asked for until it had watched for a while."""
    client = client_of(kubernetes, user=USER)
    kubernetes.requests.clear()
    with Running(
        kubernetes,
        Kept(),
        client=client,
        clock=Clock(speed=60),
        etcd_interval=10.0,
        resync=60.0,
        secret_namespaces=namespaces,
    ) as running:
        running.ready()
        until(lambda: running.value("lists_total", cause="Resync") >= len(running.forwarder.followers))
        until(lambda: any(request.path.startswith("/readyz") for request in list(kubernetes.requests)))
        assert running.value("breaks_total", error="Forbidden") == 0
    return asked_for(kubernetes)


def test_the_role_is_what_the_forwarder_asks_for() -> None:
    with LocalKubernetes() as kubernetes:
        bind(kubernetes, BASE)
        assert run(kubernetes) == rights_of(BASE)


def test_secrets_take_a_role_of_their_own() -> None:
    with LocalKubernetes() as kubernetes:
        bind(kubernetes, BASE)
        bind(kubernetes, SECRETS)
        assert run(kubernetes, "*") == rights_of(BASE) | rights_of(SECRETS)


def test_secrets_of_single_namespaces_take_a_binding_in_each() -> None:
    with LocalKubernetes() as kubernetes:
        kubernetes.client().create("/api/v1/namespaces", {"metadata": {"name": "shop"}})
        bind(kubernetes, BASE)
        bind(kubernetes, SECRETS, "shop")
        assert run(kubernetes, "shop") == rights_of(BASE) | rights_of(SECRETS)

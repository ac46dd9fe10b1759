"""Observing: what is read for an ingress, what is not, and that no key gets into an observation."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ingress_sync_world import (
    CLUSTER,
    INGRESSES,
    SECRETS,
    SERVICES,
    SLICES,
    IngressWorld,
    Servers,
    ingress,
    service,
    slice_of,
)

from sandbox.certificates import Authority
from sandbox.kube import kinds
from shared.errors import ForbiddenError
from shared.ingress_sync import observe as observing
from shared.ingress_sync.observation import Observation, load, save
from shared.ingress_sync.observe import observe

AUTHORITY = Authority()


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture
def world(servers: Servers, tmp_path: Path) -> IngressWorld:
    observing._PODS.clear()
    return IngressWorld(servers, tmp_path)


def look(world: IngressWorld, **more: Any) -> Observation:
    cluster = world.process().settings().cluster(CLUSTER)
    return observe(cluster, world.kube, world.arm_client, state={}, now=world.clock.now(), **more)


def tls_secret(name: str, host: str, namespace: str = "shop") -> tuple[dict[str, Any], str]:
    issued = AUTHORITY.issue(host, names=(host,))
    data = {"tls.crt": issued.certificate, "tls.key": issued.key}
    encoded = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
    metadata = {"name": name, "namespace": namespace}
    return {"metadata": metadata, "type": "kubernetes.io/tls", "data": encoded}, encoded["tls.key"]


def pod(name: str, app: str, address: str, path: str = "/healthz") -> dict[str, Any]:
    container = {"name": "main", "image": "m", "readinessProbe": {"httpGet": {"port": 8080, "path": path}}}
    metadata = {"name": name, "namespace": "shop", "labels": {"app": app}}
    return {"metadata": metadata, "spec": {"containers": [container]}, "status": {"podIP": address}}


def slice_with_pods(world: IngressWorld, app: str, *names: str) -> dict[str, Any]:
    """A slice whose endpoints lead to these pods; `-name` is not ready."""
    found = slice_of(app, *(("10.1.0.9", "unready" if n.startswith("-") else "ready") for n in names))
    pods = {one["metadata"]["name"]: one for one in world.kubernetes.objects(kinds.PODS, "shop")}
    for endpoint, name in zip(found["endpoints"], names, strict=True):
        about = pods[name.lstrip("-")]["metadata"]
        endpoint["targetRef"] = {
            "kind": "Pod",
            "namespace": "shop",
            "name": about["name"],
            "uid": about["uid"],
        }
    return found


def test_only_what_our_ingress_objects_refer_to_is_kept(world: IngressWorld) -> None:
    world.app("web", "web.example")
    world.app("other", "other.example", class_name="nginx")
    world.apply(SERVICES, service("unused"))
    world.apply(SLICES, slice_of("unused", "10.9.9.9"))
    found = look(world).kubernetes
    assert [one.metadata.name for one in found.ingresses] == ["other", "web"]
    assert [one.metadata.name for one in found.services] == ["web"]
    assert [one.metadata.name for one in found.endpointslices] == ["web-slice"]


def test_services_of_last_good_routes_are_read_too(world: IngressWorld) -> None:
    from shared.ingress_sync.routes import Backend, Match, PathRule, Route, Settings, Site, pack_routes

    world.app("web", "web.example")
    for name in ("before", "gone"):
        world.apply(SERVICES, service(name))

    def route(owner: str, name: str) -> Route:
        backend = Backend(pool="p", settings=Settings(port=80), service=f"shop/{name}:80")
        rule = PathRule(path="/", match=Match.PREFIX, backend=backend)
        return Route(owner=owner, sites=(Site(hosts=("web.example",), rules=(rule,)),))

    cluster = world.process().settings().cluster(CLUSTER)
    state = {"routes": pack_routes([route("shop/web", "before"), route("shop/deleted", "gone")])}
    found = observe(cluster, world.kube, world.arm_client, state=state, now=world.clock.now())
    assert [one.metadata.name for one in found.kubernetes.services] == ["before", "web"]


def test_secrets_are_read_by_name_and_only_their_facts_are_kept(world: IngressWorld) -> None:
    secret, key = tls_secret("tls", "web.example")
    world.apply(SECRETS, secret)
    world.apply(SECRETS, tls_secret("unrelated", "x.example")[0])
    world.app("web", "web.example", tls={"web.example": "tls"})
    world.app("theirs", "t.example", tls={"t.example": "unrelated"}, class_name="nginx")
    world.app("missing", "m.example", tls={"m.example": "nowhere"})
    world.kubernetes.requests.clear()
    found = look(world)
    (facts,) = found.kubernetes.secrets
    assert (facts.key, facts.kubekeeper.dns_names) == ("shop/tls", ("web.example",))
    asked = [one.path for one in world.kubernetes.requests if "/secrets" in one.path]
    assert asked == ["/api/v1/namespaces/shop/secrets/nowhere", "/api/v1/namespaces/shop/secrets/tls"]
    saved = save(found).decode()
    assert key not in saved and key[:60] not in saved and "tls.key" not in saved
    assert save(load(saved.encode(), "file")) == saved.encode()


def test_an_idle_pass_makes_seven_requests_and_one_for_each_secret(world: IngressWorld) -> None:
    world.apply(SECRETS, tls_secret("tls", "web.example")[0])
    for number in range(5):
        world.kubernetes.put(kinds.PODS, pod(f"web-{number}", "web", f"10.1.0.{number}"))
    world.app("web", "web.example", tls={"web.example": "tls"})
    world.apply(SLICES, slice_with_pods(world, "web", *(f"web-{n}" for n in range(5))))
    first = look(world)
    world.kubernetes.requests.clear()
    world.arm.recorder.requests.clear()
    again = look(world)
    assert again.inputs_digest == first.inputs_digest
    assert len(world.kubernetes.requests) == 6 and len(world.arm.recorder.requests) == 2
    assert not [one for one in world.kubernetes.requests if "/pods" in one.path]


def test_the_pod_that_speaks_for_a_service_stays_the_same_while_others_come_and_go(
    world: IngressWorld,
) -> None:
    """AGIC defect 5: the probe came from the first pod in map order and flapped during rollouts."""
    for name in ("web-b", "web-c", "web-a"):
        world.kubernetes.put(kinds.PODS, pod(name, "web", "10.1.0.1"))
    world.app("web", "web.example")
    for names, speaks in (
        (("web-c", "web-b"), "web-b"),
        (("web-b", "web-c"), "web-b"),
        (("-web-a", "web-c", "web-b"), "web-b"),
        (("web-c", "-web-b"), "web-c"),
        (("-web-c", "-web-b"), "web-b"),
    ):
        world.apply(SLICES, slice_with_pods(world, "web", *names))
        (found,) = look(world).kubernetes.pods
        assert found.metadata.name == speaks, names
    assert found.spec.containers[0].readiness_probe is not None


def test_what_changes_about_a_pod_does_not_change_the_inputs(world: IngressWorld) -> None:
    world.kubernetes.put(kinds.PODS, pod("web-a", "web", "10.1.0.1"))
    world.app("web", "web.example")
    world.apply(SLICES, slice_with_pods(world, "web", "web-a"))
    before = look(world).inputs_digest
    path = "/api/v1/namespaces/shop/pods/web-a/status"
    world.kube.patch(
        path, {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    )
    observing._PODS.clear()
    assert look(world).inputs_digest == before


def test_many_missing_pods_are_read_as_one_list(world: IngressWorld) -> None:
    for number in range(12):
        name = f"app{number:02d}"
        world.kubernetes.put(kinds.PODS, pod(f"{name}-x", name, "10.1.0.1"))
        world.app(name, f"{name}.example")
        world.apply(SLICES, slice_with_pods(world, name, f"{name}-x"))
    world.kubernetes.requests.clear()
    assert len(look(world).kubernetes.pods) == 12
    assert [one.path for one in world.kubernetes.requests if "/pods" in one.path] == [
        "/api/v1/namespaces/shop/pods"
    ]


def test_ingress_objects_without_references_need_no_services(world: IngressWorld) -> None:
    world.app("theirs", "t.example", class_name="nginx")
    world.kubernetes.requests.clear()
    assert look(world).kubernetes.services == ()
    assert not [one for one in world.kubernetes.requests if "services" in one.path]


def test_more_than_three_namespaces_are_listed_at_once(world: IngressWorld) -> None:
    for number in range(4):
        name = f"ns{number}"
        world.kubernetes.put(kinds.NAMESPACES, {"metadata": {"name": name}})
        world.apply(SERVICES, service("web", namespace=name))
        world.apply(INGRESSES, ingress("web", f"{name}.example", namespace=name))
    world.kubernetes.requests.clear()
    assert len(look(world).kubernetes.services) == 4
    asked = [one.path for one in world.kubernetes.requests if "/services" in one.path]
    assert asked == ["/api/v1/services"]


def test_a_gateway_that_is_not_there_is_an_answer(world: IngressWorld) -> None:
    world.arm.core.do("DELETE", world.gateway)
    found = look(world)
    assert found.gateway is None
    reading = found.reading(world.gateway)
    assert reading is not None and (reading.status, reading.code) == (404, "ResourceNotFound")


def test_a_gateway_that_may_not_be_read_is_an_error(world: IngressWorld) -> None:
    world.arm.core.denied.append("Microsoft.Network/applicationGateways/read")
    with pytest.raises(ForbiddenError, match="AuthorizationFailed"):
        look(world)


def test_addresses_of_the_frontends_are_known(world: IngressWorld) -> None:
    assert look(world).addresses["public"].startswith("20.")


def test_nodes_are_read_for_node_ports_only(servers: Servers, tmp_path: Path) -> None:
    world = IngressWorld(servers, tmp_path, policy="backend: nodePorts")
    world.kubernetes.put(kinds.NODES, {"metadata": {"name": "node-a"}})
    world.app("web", "web.example")
    assert [node.metadata.name for node in look(world).kubernetes.nodes] == ["node-a"]


def test_rewrites_are_read_where_an_ingress_names_one_and_may_not_be_installed(world: IngressWorld) -> None:
    world.app("web", "web.example")
    world.kubernetes.requests.clear()
    look(world)
    name = "appgw.ingress.kubernetes.io/rewrite-rule-set-custom-resource"
    assert not [one for one in world.kubernetes.requests if "rewrites" in one.path]
    world.app("web", "web.example", annotations={name: "headers"})
    assert look(world).kubernetes.azureapplicationgatewayrewrites == ()
    assert [one.status for one in world.kubernetes.requests if "rewrites" in one.path] == [404]

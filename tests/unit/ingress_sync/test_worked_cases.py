"""The worked cases W1 to W14 of what AGIC does, and where we differ on purpose."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ingress_builders import (
    AGIC,
    Bench,
    app,
    endpoint,
    gateway,
    ingress,
    path,
    pod,
    rule,
    secret,
    service,
    slice_of,
)

from shared.ingress_sync.decide import decide_compiled
from shared.ingress_sync.prohibited import covers_path
from shared.model.gateway import parts
from shared.model.plan import ActionKind

HOST = "bye.com"
EXACT, PREFIX, WRITTEN = "Exact", "Prefix", "ImplementationSpecific"


def patterns(bench: Bench) -> set[str]:
    maps = [one for part in bench.parts("urlPathMaps") for one in part["pathRules"]]
    return {pattern for one in maps for pattern in one["properties"]["paths"]}


def reasons(bench: Bench, owner: str) -> set[str]:
    return {left.reason for left in bench.decide()[1].left_alone if left.subject == owner}


def test_w1_path_types() -> None:
    paths = [
        path("/p0", kind=PREFIX),
        path("/p1*", kind=PREFIX),
        path("/e2", kind=EXACT),
        path("/e3*", kind=EXACT),
        path("/i4", kind=WRITTEN),
        path("/i5*", kind=WRITTEN),
        path("/n6", kind=None),
        path("/n7*", kind=None),
        path("/*", kind=PREFIX),
    ]
    bench = Bench(app(), ingress("web", rule(HOST, *paths)))
    bench.sync()
    assert patterns(bench) == {"/p0", "/p0/*", "/p1*", "/e2", "/e3", "/i4", "/i5*", "/n6", "/n7*"}
    assert bench.get(HOST, "/anything").targets == ("10.9.8.7",)


def test_w2_a_named_target_port_with_several_numbers_is_the_smallest_with_a_warning() -> None:
    named = service("web", {"port": 443, "targetPort": "https", "name": "https"})
    slices = [
        slice_of("web", f"10.0.0.{number}", port=port, port_name="https", suffix=str(number))
        for number, port in enumerate([5000, 80, 81, 4999, 75], 1)
    ]
    bench = Bench(
        {"services": named, "endpointslices": slices}, ingress("web", rule(HOST, path("/", port=443)))
    )
    bench.sync()
    assert bench.get(HOST).port == 75 and bench.get(HOST).targets == ("10.0.0.5",)
    assert "MixedTargetPorts" in reasons(bench, "shop/web")


def test_w3_broken_backends_leave_the_others_intact() -> None:
    broken = ingress("broken", default=path("/", "missing-service", 8080))
    odd = ingress("odd", rule("odd.com", path("/", "web", 70_000)))
    bench = Bench(app(), broken, odd, ingress("web", rule(HOST)))
    bench.sync()
    settings = {(one["port"], one["protocol"]) for one in bench.parts("backendHttpSettingsCollection")}
    assert settings == {(8080, "Http"), (80, "Http"), (9876, "Http")}
    assert bench.get("elsewhere.com").targets == () and bench.get("elsewhere.com").port == 8080
    assert bench.get("odd.com").port == 80 and bench.get(HOST).targets == ("10.9.8.7",)
    assert reasons(bench, "shop/broken") >= {"ServiceNotFound"}
    assert reasons(bench, "shop/odd") >= {"PortNotFound"}


def probed(probe: dict[str, Any], **annotations: str) -> Bench:
    ports = [{"name": "main", "containerPort": 9876}, {"name": "health", "containerPort": 9090}]
    behind = {
        "services": service(),
        "endpointslices": slice_of("web", endpoint("10.9.8.7", pod="web-1")),
        "pods": pod("web-1", probe, ports=ports),
    }
    bench = Bench(behind, ingress("web", rule(HOST), annotations=annotations))
    bench.sync()
    return bench


READINESS = {
    "httpGet": {"host": HOST, "path": "/healthz", "port": "health"},
    "periodSeconds": 20,
    "timeoutSeconds": 5,
    "failureThreshold": 3,
}


def test_w4_the_pods_readiness_probe_is_the_gateways() -> None:
    (probe,) = probed(READINESS).parts("probes")
    assert (probe["protocol"], probe["host"], probe["path"], probe["port"]) == (
        "Http",
        HOST,
        "/healthz",
        9090,
    )
    assert (probe["interval"], probe["timeout"], probe["unhealthyThreshold"]) == (20, 5, 3)


def test_w5_annotations_override_the_pods_probe() -> None:
    said = {
        "hostname": "probe.com",
        "port": "8080",
        "path": "/healthz2",
        "status-codes": "200-399,401",
        "interval": "15",
        "timeout": "10",
        "unhealthy-threshold": "3",
    }
    (probe,) = probed(READINESS, **{f"health-probe-{key}": value for key, value in said.items()}).parts(
        "probes"
    )
    assert (probe["host"], probe["port"], probe["path"]) == ("probe.com", 8080, "/healthz2")
    assert (probe["interval"], probe["timeout"], probe["unhealthyThreshold"]) == (15, 10, 3)
    assert probe["match"]["statusCodes"] == ["200-399", "401"]


def test_w6_a_threshold_above_twenty_becomes_twenty() -> None:
    (probe,) = probed(READINESS | {"failureThreshold": 25}).parts("probes")
    assert probe["unhealthyThreshold"] == 20


@pytest.mark.parametrize(("said", "port"), [("777", 777), ("64999", 64_999), ("65000", 80), ("0", 80)])
def test_w7_the_frontend_port_can_be_overridden_within_its_range(said: str, port: int) -> None:
    bench = Bench(app(), ingress("web", rule(HOST), annotations={"override-frontend-port": said}))
    bench.sync()
    assert [one["port"] for one in bench.parts("frontendPorts")] == [port]
    assert ("InvalidAnnotation" in reasons(bench, "shop/web")) == (port == 80)


def test_w7_https_falls_back_to_443() -> None:
    web = ingress(
        "web", rule(HOST), tls=[{"secretName": "tls"}], annotations={"override-frontend-port": "65000"}
    )
    bench = Bench(app(), {"secrets": secret()}, web)
    bench.sync()
    assert [one["port"] for one in bench.parts("frontendPorts")] == [443]


def test_w8_of_two_that_ask_for_the_same_paths_the_first_by_name_has_them() -> None:
    paths = (path("/api1"), path("/api2"))
    mine = [path("/api1", "other"), path("/api2", "other")]
    bench = Bench(
        app(), app("other", "10.0.0.9"), ingress("a", rule(HOST, *paths)), ingress("b", rule(HOST, *mine))
    )
    bench.sync()
    assert bench.get(HOST, "/api1").targets == bench.get(HOST, "/api2/x").targets == ("10.9.8.7",)
    (one,) = bench.parts("urlPathMaps")
    assert sum(len(line["properties"]["paths"]) for line in one["pathRules"]) == 4, "each with all below it"
    assert "PathTaken" in reasons(bench, "shop/b") and "PathTaken" not in reasons(bench, "shop/a")


@pytest.mark.parametrize(("private", "reason"), [("true", "NoPrivateIP"), ("false", "NoPublicIP")])
def test_w9_without_the_frontend_the_object_is_left_out(private: str, reason: str) -> None:
    live = gateway(private=private == "false")
    if private == "false":
        live["properties"]["frontendIPConfigurations"] = live["properties"]["frontendIPConfigurations"][1:]
    web = ingress("web", rule(HOST), annotations={"use-private-ip": private})
    fine = ingress("fine", rule("a.com"), annotations={"use-private-ip": str(private == "false").lower()})
    bench = Bench(app(), web, fine, gateway=live)
    bench.sync()
    assert bench.hosts() == {"a.com"} and reason in reasons(bench, "shop/web")


def prohibited(host: str, *paths: str) -> dict[str, Any]:
    spec = {"hostname": host, "paths": list(paths)}
    return {"azureingressprohibitedtargets": {"metadata": {"name": "p", "namespace": "x"}, "spec": spec}}


def test_w10_prohibited_paths_are_not_added_and_rules_of_others_survive() -> None:
    theirs = gateway(default=True)
    before = copy.deepcopy(theirs)
    web = ingress("web", rule(HOST, path("/foo"), path("/fox")))
    bench = Bench(app(), prohibited(HOST, "/fox", "/bar"), web, gateway=theirs)
    bench.sync()
    assert patterns(bench) == {"/foo", "/foo/*"}
    for collection in ("httpListeners", "requestRoutingRules"):
        assert parts(before, collection)[0] in parts(bench.gateway, collection)


@pytest.mark.parametrize(
    ("denied", "path", "expected"),
    [
        ("/x/*", "/x", True),
        ("/x/*", "/X", True),
        ("/x/*", "/x/", True),
        ("/x/*", "/blah", False),
        ("/a/b/*", "/A/B/1/*", True),
        ("/a/b/1/*", "/a/b/*", False),
        ("/", "/", True),
        ("/", "/x", False),
        ("*", "/x", True),
        ("/*", "/x", True),
        ("/*", "", True),
    ],
)
def test_w11_what_a_prohibited_path_covers(denied: str, path: str, expected: bool) -> None:
    assert covers_path(denied, path) is expected


def test_w12_fifty_objects_without_host_on_fifty_ports() -> None:
    objects = [
        ingress(f"i{number}", rule(), annotations={"override-frontend-port": str(8000 + number)})
        for number in range(50)
    ]
    bench = Bench(app(), *objects)
    bench.sync()
    priorities = [one["priority"] for one in bench.parts("requestRoutingRules")]
    assert len(priorities) == len(set(priorities)) == 50 and max(priorities) <= 20_000


def test_w13_what_says_nothing_about_routing_is_not_compared() -> None:
    redirecting = ingress(
        "web", rule(HOST), tls=[{"secretName": "tls"}], annotations={"ssl-redirect": "true"}
    )
    bench = Bench(app(), {"secrets": secret()}, redirecting)
    bench.sync()
    bench.gateway["etag"], bench.gateway["Tags"] = "other", {"a": "b"}
    bench.gateway["properties"]["ResourceGuid"] = "other"
    for collection in ("redirectConfigurations", "httpListeners", "urlPathMaps", "requestRoutingRules"):
        for part in parts(bench.gateway, collection):
            part["etag"], part["properties"]["ProvisioningState"] = "other", "Updating"
            if collection == "redirectConfigurations":
                part["properties"]["requestRoutingRules"] = [{"id": "x"}]
                part["properties"]["pathRules"] = [{"id": "y"}]
    assert not [a for a in bench.decide()[1].actions if a.kind is ActionKind.PUT_GATEWAY]
    parts(bench.gateway, "httpListeners")[0]["properties"]["hostName"] = "changed.com"
    (action,) = [a for a in bench.decide()[1].actions if a.kind is ActionKind.PUT_GATEWAY]
    assert list(action.parameters["changes"]) == ["httpListeners"], "drift shows, and nothing else"


def test_w14_both_frontends() -> None:
    public = ingress("pub", rule("pub.example", path("/*")), tls=[{"secretName": "tls"}])
    private = ingress("priv", rule("", path("/*")), annotations={"use-private-ip": "true"})
    bench = Bench(app(), {"secrets": secret()}, public, private, gateway=gateway(private=True))
    bench.sync()
    found = {
        (one["protocol"], one["frontendIPConfiguration"]["id"].rpartition("/")[2], one.get("hostName"))
        for one in bench.parts("httpListeners")
    }
    assert found == {("Https", "public", "pub.example"), ("Http", "private", None)}
    assert bench.get("anything", frontend="private").targets == ("10.9.8.7",)


def test_every_worked_case_prints_its_prefix_annotations_in_full() -> None:
    observation = Bench(app(), ingress("web", rule(HOST), annotations={"typo": "1"})).observe()
    plan = decide_compiled(observation, observation.policy, observation.now)[1]
    assert any(f"{AGIC}typo" in left.message for left in plan.left_alone)

"""The scenarios of kubernetes-sigs/ingress-controller-conformance, each passed or a declared deviation."""

from __future__ import annotations

from typing import Any

import pytest
from ingress_builders import Bench, app, gateway, ingress, path, rule, secret, service

from shared.ingress_sync.gateway_routing import GatewayRouting
from shared.ingress_sync.proof import DEVIATIONS
from shared.model.plan import ActionKind

SERVICES = [
    "foo-exact",
    "foo-prefix",
    "aaa-slash-bbb-prefix",
    "aaa-prefix",
    "aaa-slash-bbb-slash-prefix",
    "foo-slash-exact",
    "wildcard-foo-com",
    "foo-bar-com",
    "echo-service",
]


def behind() -> list[dict[str, Any]]:
    found = []
    for number, name in enumerate(SERVICES):
        one = app(name, f"10.0.0.{number}", port=8080)
        one["services"] = service(name, {"port": 8080, "name": "http", "targetPort": 8080})
        one["endpointslices"]["ports"] = [{"name": "http", "port": 8080}]
        found.append(one)
    return found


def served_by(bench: Bench, host: str, at: str, *, port: int = 80) -> str:
    """The service that answers; "" when nobody does (404 or 502)."""
    targets = bench.get(host, at, port=port).targets
    return SERVICES[int(targets[0].rpartition(".")[2])] if targets else ""


def deviations(bench: Bench, name: str) -> set[str]:
    return set(bench.decide()[0].deviations.get(f"shop/{name}", ()))


PATH_RULES = ingress(
    "path-rules",
    rule("exact-path-rules", path("/foo", "foo-exact", 8080, "Exact")),
    rule(
        "prefix-path-rules",
        path("/foo", "foo-prefix", 8080),
        path("/aaa/bbb", "aaa-slash-bbb-prefix", 8080),
        path("/aaa", "aaa-prefix", 8080),
    ),
    rule(
        "mixed-path-rules",
        path("/foo", "foo-prefix", 8080),
        path("/foo", "foo-exact", 8080, "Exact"),
    ),
    rule(
        "trailing-slash-path-rules",
        path("/aaa/bbb/", "aaa-slash-bbb-slash-prefix", 8080),
        path("/foo/", "foo-slash-exact", 8080, "Exact"),
    ),
)


@pytest.mark.parametrize(
    ("host", "at", "expected"),
    [
        ("exact-path-rules", "/foo", "foo-exact"),
        ("exact-path-rules", "/foo/", ""),
        ("exact-path-rules", "/bar", ""),
        ("prefix-path-rules", "/foo", "foo-prefix"),
        ("prefix-path-rules", "/foo/", "foo-prefix"),
        ("prefix-path-rules", "/aaa/bbb", "aaa-slash-bbb-prefix"),
        ("prefix-path-rules", "/aaa/bbb/ccc", "aaa-slash-bbb-prefix"),
        ("prefix-path-rules", "/aaa/ccc", "aaa-prefix"),
        ("prefix-path-rules", "/aaaccc", ""),
        ("mixed-path-rules", "/foo", "foo-exact"),
        ("trailing-slash-path-rules", "/aaa/bbb", "aaa-slash-bbb-slash-prefix"),
        ("trailing-slash-path-rules", "/aaa/bbb/", "aaa-slash-bbb-slash-prefix"),
        ("trailing-slash-path-rules", "/foo", ""),
        ("trailing-slash-path-rules", "/foo/", "foo-slash-exact"),
    ],
)
def test_path_rules(host: str, at: str, expected: str) -> None:
    bench = Bench(*behind(), PATH_RULES)
    bench.sync()
    assert served_by(bench, host, at) == expected
    assert "UnmatchedIs502" in deviations(bench, "path-rules"), "404 is asked for, 502 is what there is"


@pytest.mark.parametrize(
    ("host", "expected"), [("exact-path-rules", "foo-exact"), ("prefix-path-rules", "foo-prefix")]
)
def test_path_rules_are_case_sensitive_is_declared_not_to_hold(host: str, expected: str) -> None:
    bench = Bench(*behind(), PATH_RULES)
    bench.sync()
    assert served_by(bench, host, "/FOO") == expected
    assert "CaseInsensitivePaths" in deviations(bench, "path-rules")


def host_rules(**policy: Any) -> Bench:
    rules = (
        rule("*.foo.com", path("/", "wildcard-foo-com", 8080)),
        rule("foo.bar.com", path("/", "foo-bar-com", "http")),
    )
    tls = [{"hosts": ["foo.bar.com"], "secretName": "conformance-tls"}]
    objects = ingress("host-rules", *rules, tls=tls)
    bench = Bench(*behind(), {"secrets": secret("conformance-tls")}, objects, **policy)
    bench.sync()
    return bench


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("foo.bar.com", 443, "foo-bar-com"),
        ("foo.bar.com", 80, "foo-bar-com"),
        ("subdomain.bar.com", 80, ""),
        ("bar.foo.com", 80, "wildcard-foo-com"),
        ("foo.com", 80, ""),
    ],
)
def test_host_rules(host: str, port: int, expected: str) -> None:
    assert served_by(host_rules(httpBesideHttps=True), host, "/", port=port) == expected


def test_the_certificate_is_the_hosts() -> None:
    bench = host_rules()
    listener = GatewayRouting(bench.gateway).listener("public", 443, "foo.bar.com")
    (certificate,) = bench.parts("sslCertificates")
    assert listener is not None and listener.certificate.endswith(certificate["name"])


def test_http_of_a_host_with_certificate_is_declared_where_it_is_not_served() -> None:
    bench = host_rules()
    assert served_by(bench, "foo.bar.com", "/") == ""
    assert "HttpsOnly" in deviations(bench, "host-rules")


def test_a_wildcard_takes_more_than_one_label_is_declared() -> None:
    bench = host_rules()
    assert served_by(bench, "baz.bar.foo.com", "/") == "wildcard-foo-com"
    assert "WildcardDepth" in deviations(bench, "host-rules")


@pytest.mark.parametrize("host", ["my-host", "some-host", "x"])
@pytest.mark.parametrize("at", ["/", "/sub-path", "/resource"])
def test_default_backend(host: str, at: str) -> None:
    bench = Bench(*behind(), ingress("default-backend", default=path("/", "echo-service", 8080)))
    bench.sync()
    assert served_by(bench, host, at) == "echo-service"


def test_load_balancing_uses_all_pods() -> None:
    pods = [f"10.1.0.{number}" for number in range(10)]
    one = app("echo-service", *pods, port=8080)
    one["services"] = service("echo-service", {"port": 8080, "targetPort": 8080})
    bench = Bench(one, ingress("load-balancing", default=path("/", "echo-service", 8080)))
    bench.sync()
    assert set(bench.get("load-balancing").targets) == set(pods)


def test_an_unknown_class_is_not_served_and_has_no_address() -> None:
    other = ingress("test", rule("ingress-class"), ingressClassName="some-invalid-class-name")
    bench = Bench(app(), other, gateway=gateway(default=True))
    compiled, plan = bench.decide()
    assert plan.actions == () and compiled.served == {}
    assert not [a for a in plan.actions if a.kind is ActionKind.UPDATE_INGRESS_STATUS]


def test_every_deviation_that_an_object_is_told_is_declared() -> None:
    named = {name for names in host_rules().decide()[0].deviations.values() for name in names}
    assert named and named <= DEVIATIONS.keys()

"""Mistakes in a document that the proof and the validator must see: each rule broken on purpose."""

from __future__ import annotations

import copy
import random
from typing import Any

import msgspec
import pytest
from ingress_builders import Bench, app, gateway, ingress, path, ref, rule, secret

from shared.ingress_sync.compiled import Compiled
from shared.ingress_sync.proof import prove
from shared.ingress_sync.validate import validate
from shared.model.gateway import inside, parts

TLS = [{"hosts": ["s.com"], "secretName": "tls"}]


def world() -> tuple[Bench, Compiled]:
    """Two services on several hosts, with a wildcard, TLS, a redirect, and somebody else's listener."""
    bench = Bench(
        app(),
        app("api", "10.0.0.2"),
        {"secrets": [secret(), secret("other", "d2")]},
        ingress("a", rule("a.com", path("/foo"), path("/foo/bar", "api"), path("/foo", "api", kind="Exact"))),
        ingress("w", rule("*.a.com", path("/", "api"))),
        ingress("s", rule("s.com", path("/x")), tls=TLS, annotations={"ssl-redirect": "true"}),
        ingress("t", rule("t.com"), tls=[{"hosts": ["t.com"], "secretName": "other"}]),
        ingress("n", rule("", path("/n", "api"))),
        gateway=gateway(**THEIRS),
    )
    compiled = bench.decide()[0]
    assert prove(bench.observe(), compiled).undeclared == ()
    return bench, compiled


THEIRS: Any = {
    "frontendPorts": [{"name": "p", "properties": {"port": 80}}],
    "backendAddressPools": [{"name": "p", "properties": {"backendAddresses": [{"ipAddress": "9.9.9.9"}]}}],
    "backendHttpSettingsCollection": [
        {"name": "s", "properties": {"port": 80, "protocol": "Http", "requestTimeout": 5}}
    ],
    "httpListeners": [
        {
            "name": "l",
            "properties": {
                "frontendIPConfiguration": ref("frontendIPConfigurations", "public"),
                "frontendPort": ref("frontendPorts", "p"),
                "protocol": "Http",
                "hostName": "their.a.com",
            },
        }
    ],
    "requestRoutingRules": [
        {
            "name": "r",
            "properties": {
                "ruleType": "Basic",
                "priority": 9_000,
                "httpListener": ref("httpListeners", "l"),
                "backendAddressPool": ref("backendAddressPools", "p"),
                "backendHttpSettings": ref("backendHttpSettingsCollection", "s"),
            },
        }
    ],
}


def ours(document: dict[str, Any], collection: str, text: str = "") -> dict[str, Any]:
    return next(
        one["properties"]
        for one in parts(document, collection)
        if one["name"].startswith("kk_prod_") and text in one["name"]
    )


def swap_paths(document: dict[str, Any]) -> None:
    ours(document, "urlPathMaps", "80-a-com")["pathRules"].reverse()


def drop_star(document: dict[str, Any]) -> None:
    for line in ours(document, "urlPathMaps", "80-a-com")["pathRules"]:
        line["properties"]["paths"] = [p for p in line["properties"]["paths"] if p != "/foo/*"] or ["/zz"]


def loosen(document: dict[str, Any]) -> None:
    for line in ours(document, "urlPathMaps", "80-a-com")["pathRules"]:
        line["properties"]["paths"] = [p.replace("/foo/*", "/foo*") for p in line["properties"]["paths"]]


def wrong_pool(document: dict[str, Any]) -> None:
    rule = ours(document, "urlPathMaps", "443-s-com")["pathRules"][0]["properties"]
    api = next(one["id"] for one in parts(document, "backendAddressPools") if "api" in one["name"])
    rule["backendAddressPool"] = {"id": api}


def wildcard_first(document: dict[str, Any]) -> None:
    ours(document, "requestRoutingRules", "wild-a-com")["priority"] = 1


def any_first(document: dict[str, Any]) -> None:
    ours(document, "requestRoutingRules", "80-any")["priority"] = 1


def wrong_certificate(document: dict[str, Any]) -> None:
    first, second = (
        ours(document, "httpListeners", "443-s-com"),
        ours(document, "httpListeners", "443-t-com"),
    )
    first["sslCertificate"], second["sslCertificate"] = second["sslCertificate"], first["sslCertificate"]


def missing_target(document: dict[str, Any]) -> None:
    ours(document, "backendAddressPools", "web")["backendAddresses"] = []


def wrong_port(document: dict[str, Any]) -> None:
    for settings in parts(document, "backendHttpSettingsCollection"):
        inside(settings)["port"] = 1234


def wrong_redirect(document: dict[str, Any]) -> None:
    ours(document, "redirectConfigurations")["targetUrl"] = "https://elsewhere.com"


def pathless_redirect(document: dict[str, Any]) -> None:
    ours(document, "redirectConfigurations")["includePath"] = False


def default_leaks(document: dict[str, Any]) -> None:
    found = ours(document, "urlPathMaps", "80-a-com")
    line = found["pathRules"][0]["properties"]
    found["defaultBackendAddressPool"] = line["backendAddressPool"]


def wrong_host(document: dict[str, Any]) -> None:
    ours(document, "httpListeners", "80-a-com")["hostName"] = "b.com"


def no_listener(document: dict[str, Any]) -> None:
    document["properties"]["requestRoutingRules"] = [
        one for one in parts(document, "requestRoutingRules") if "80-a-com" not in one["name"]
    ]


@pytest.mark.parametrize(
    "mistake",
    [
        swap_paths,
        drop_star,
        loosen,
        wrong_pool,
        wildcard_first,
        any_first,
        wrong_certificate,
        missing_target,
        wrong_port,
        wrong_redirect,
        pathless_redirect,
        default_leaks,
        wrong_host,
        no_listener,
    ],
)
def test_a_mistake_in_routing_is_seen(mistake: Any) -> None:
    bench, compiled = world()
    document = copy.deepcopy(compiled.document)
    mistake(document)
    assert document != compiled.document
    proof = prove(bench.observe(), msgspec.structs.replace(compiled, document=document))
    assert proof.undeclared, "the proof has to fail"


def test_taking_the_requests_of_others_is_seen() -> None:
    """A document that puts our wildcard before their exact host."""
    bench, compiled = world()
    document = copy.deepcopy(compiled.document)
    ours(document, "requestRoutingRules", "wild-a-com")["priority"] = 8_999
    undeclared = prove(bench.observe(), msgspec.structs.replace(compiled, document=document)).undeclared
    assert {one.host for one in undeclared} >= {"their.a.com"}


def test_random_damage_to_path_maps_is_seen() -> None:
    """Patterns moved, dropped or sent elsewhere at random: what changes an answer fails the proof."""
    bench, compiled = world()
    seen = 0
    for seed in range(60):
        rng = random.Random(seed)
        document = copy.deepcopy(compiled.document)
        lines = ours(document, "urlPathMaps", "80-a-com")["pathRules"]
        targets = [line["properties"]["backendAddressPool"] for line in lines]
        line = rng.choice(lines)["properties"]
        if rng.random() < 0.5:
            line["backendAddressPool"] = rng.choice(targets)
        else:
            line["paths"] = line["paths"][1:] or ["/other"]
        if document != compiled.document:
            seen += bool(
                prove(bench.observe(), msgspec.structs.replace(compiled, document=document)).undeclared
            )
    assert seen >= 30


# The validator


def break_reference(document: dict[str, Any]) -> None:
    ours(document, "requestRoutingRules")["httpListener"] = {"id": document["id"] + "/httpListeners/gone"}


def same_priority(document: dict[str, Any]) -> None:
    ours(document, "requestRoutingRules")["priority"] = 9_000


def too_many_hosts(document: dict[str, Any]) -> None:
    found = ours(document, "httpListeners", "80-a-com")
    found["hostNames"] = [f"h{number}.com" for number in range(6)]
    del found["hostName"]


def two_listeners(document: dict[str, Any]) -> None:
    ours(document, "httpListeners", "80-a-com")["hostName"] = "s.com"


def root_path(document: dict[str, Any]) -> None:
    ours(document, "urlPathMaps")["pathRules"][0]["properties"]["paths"] = ["/"]


def double_path(document: dict[str, Any]) -> None:
    line = ours(document, "urlPathMaps")["pathRules"][0]["properties"]
    line["paths"] = [*line["paths"], line["paths"][0].upper()]


def threshold(document: dict[str, Any]) -> None:
    ours(document, "probes")["unhealthyThreshold"] = 21


def bare_certificate(document: dict[str, Any]) -> None:
    parts(document, "sslCertificates").append(
        {"name": "kk_prod_cert_new", "id": "x", "properties": {}},
    )


def bad_name(document: dict[str, Any]) -> None:
    part = next(one for one in parts(document, "probes") if one["name"].startswith("kk_"))
    part["name"] = part["name"] + "-" * 80


def redirect_to_many(document: dict[str, Any]) -> None:
    redirect = ours(document, "redirectConfigurations")
    del redirect["targetUrl"]
    target = next(one for one in parts(document, "httpListeners") if "wild" in one["name"])
    redirect["targetListener"] = {"id": target["id"]}


def half_a_target(document: dict[str, Any]) -> None:
    del ours(document, "urlPathMaps")["pathRules"][0]["properties"]["backendHttpSettings"]


def too_many_ports(document: dict[str, Any]) -> None:
    document["properties"]["frontendPorts"] += [
        {"name": f"x{number}", "id": f"x{number}", "properties": {"port": 20_000 + number}}
        for number in range(100)
    ]


@pytest.mark.parametrize(
    "mistake",
    [
        break_reference,
        same_priority,
        too_many_hosts,
        two_listeners,
        root_path,
        double_path,
        threshold,
        bare_certificate,
        bad_name,
        redirect_to_many,
        half_a_target,
        too_many_ports,
    ],
)
def test_what_azure_would_refuse_is_seen_before(mistake: Any) -> None:
    _, compiled = world()
    uploads = [upload.name for upload in compiled.uploads]
    assert validate(compiled.document, set(compiled.parts), uploads) == []
    document = copy.deepcopy(compiled.document)
    mistake(document)
    keys = set(compiled.parts) | {
        f"{collection}/{one['name'].lower()}"
        for collection in ("sslCertificates", "probes")
        for one in parts(document, collection)
    }
    assert validate(document, keys, uploads)

"""The sixteen known defects of AGIC, each with the test that it is not ours."""

from __future__ import annotations

from typing import Any

import msgspec
from ingress_builders import (
    Bench,
    app,
    endpoint,
    gateway,
    ingress,
    later,
    path,
    pod,
    rule,
    secret,
    service,
    slice_of,
)

from shared.model.gateway import parts
from shared.model.plan import ActionKind

HOST = "a.com"
TLS = [{"secretName": "tls"}]


def test_01_a_rewrite_that_deletes_a_header_deletes_it() -> None:
    headers = [
        {"actionType": "delete", "headerName": "X-Secret", "headerValue": "kept-by-agic"},
        {"actionType": "set", "headerName": "X-New", "headerValue": "1"},
    ]
    rewrite = {
        "metadata": {"name": "clean", "namespace": "shop"},
        "spec": {"rewriteRules": [{"name": "r", "actions": {"requestHeaderConfigurations": headers}}]},
    }
    web = ingress("web", rule(HOST), annotations={"rewrite-rule-set-custom-resource": "clean"})
    bench = Bench(app(), {"azureapplicationgatewayrewrites": rewrite}, web)
    bench.sync()
    (found,) = bench.parts("rewriteRuleSets")
    sent = found["rewriteRules"][0]["actionSet"]["requestHeaderConfigurations"]
    assert sent == [
        {"headerName": "X-Secret", "headerValue": ""},
        {"headerName": "X-New", "headerValue": "1"},
    ]


def test_02_a_default_backend_alone_keeps_its_port_and_annotations() -> None:
    web = ingress("web", default=path("/"), annotations={"request-timeout": "77"})
    bench = Bench(app(), web)
    bench.sync()
    (settings,) = bench.parts("backendHttpSettingsCollection")
    assert (settings["port"], settings["requestTimeout"]) == (9876, 77)
    assert bench.get("whatever.com", "/deep/path").targets == ("10.9.8.7",)


def test_03_ssl_redirect_follows_an_overridden_port() -> None:
    said = {"ssl-redirect": "true", "override-frontend-port": "8443"}
    bench = Bench(app(), {"secrets": secret()}, ingress("web", rule(HOST), tls=TLS, annotations=said))
    bench.sync()
    assert bench.get(HOST, port=8443).targets == ("10.9.8.7",)
    assert bench.get(HOST, port=80).location == "Permanent https://a.com:8443{path}"


def test_04_a_service_without_selector_takes_no_strangers_probe() -> None:
    stranger = pod("stranger", {"httpGet": {"path": "/stranger", "port": 9876}})
    bench = Bench(app(), {"pods": stranger}, ingress("web", rule(HOST)))
    bench.sync()
    (probe,) = bench.parts("probes")
    assert probe["path"] == "/"


def test_05_the_probe_is_the_oldest_pods_whatever_the_order() -> None:
    old = pod("z-old", {"httpGet": {"path": "/old", "port": 9876}})
    new = pod("a-new", {"httpGet": {"path": "/new", "port": 9876}})
    new["metadata"]["creationTimestamp"] = "2026-11-20T00:00:00Z"
    both = [endpoint("10.0.0.1", pod="a-new"), endpoint("10.0.0.2", pod="z-old")]
    for order in (both, both[::-1]):
        behind = {"services": service(), "endpointslices": slice_of("web", *order), "pods": [new, old]}
        bench = Bench(behind, ingress("web", rule(HOST)))
        bench.sync()
        assert [one["path"] for one in bench.parts("probes")] == ["/old"]


def test_06_every_slice_of_a_service_counts() -> None:
    slices = [slice_of("web", f"10.0.0.{number}", suffix=str(number)) for number in range(1, 4)]
    bench = Bench({"services": service(), "endpointslices": slices}, ingress("web", rule(HOST)))
    bench.sync()
    assert bench.get(HOST).targets == ("10.0.0.1", "10.0.0.2", "10.0.0.3")


def test_07_what_is_left_out_is_decided_anew_each_time() -> None:
    bench = Bench(app(), ingress("web", rule(HOST), tls=TLS), gateway=gateway(default=True))
    bench.sync()
    assert bench.hosts() == set()
    bench.add({"secrets": secret()})
    bench.sync()
    assert bench.hosts() == {HOST}
    bench.objects["secrets"] = []
    bench.add(ingress("late", rule("late.com"), tls=[{"secretName": "gone"}]))
    bench.sync()
    assert {q.owner for q in bench.decide()[0].quarantined} == {"shop/web", "shop/late"}


def test_08_extended_hosts_of_several_rules_are_not_repeated() -> None:
    said = {"hostname-extension": "x.net,y.net"}
    web = ingress("web", rule(HOST, path("/a")), rule("b.com", path("/b")), annotations=said)
    bench = Bench(app(), web)
    bench.sync()
    hosts = [h for one in bench.parts("httpListeners") for h in one.get("hostNames") or [one["hostName"]]]
    assert sorted(hosts) == ["a.com", "b.com", "x.net", "y.net"]
    assert bench.get("x.net", "/a").targets == bench.get("x.net", "/b").targets == ("10.9.8.7",)


def test_09_an_exact_host_is_asked_before_every_wildcard() -> None:
    names = [f"h{number}.x.com" for number in range(30)]
    objects = [ingress(f"i{number}", rule(name)) for number, name in enumerate(names)]
    bench = Bench(
        app(),
        app("wild", "10.0.0.99"),
        app("deep", "10.0.0.98"),
        *objects,
        ingress("any", rule("", path("/", "deep"))),
        ingress("wild", rule("*.x.com", path("/", "wild"))),
        ingress("deep", rule("*.h1.x.com", path("/", "deep"))),
    )
    bench.sync()
    assert all(bench.get(name).targets == ("10.9.8.7",) for name in names)
    assert bench.get("other.x.com").targets == ("10.0.0.99",)
    assert bench.get("y.h1.x.com").targets == bench.get("z.org").targets == ("10.0.0.98",)


def test_10_a_certificate_that_nothing_uses_goes_after_its_time() -> None:
    bench = Bench(app(), {"secrets": secret(digest="old")}, ingress("web", rule(HOST), tls=TLS))
    bench.sync()
    (old,) = bench.parts("sslCertificates")
    bench.replace("secrets", secret(digest="new"))
    compiled = bench.sync()
    assert len(bench.parts("sslCertificates")) == 2 and compiled.unused_certificates == (old["name"],)
    unused = {old["name"]: bench.now}
    bench.state = msgspec.structs.replace(bench.state, unused_certificates=unused)
    bench.now = later(hours=25)
    bench.sync()
    assert old["name"] not in {one["name"] for one in bench.parts("sslCertificates")}
    assert len(bench.parts("sslCertificates")) == 1


def test_11_properties_nobody_has_heard_of_are_kept() -> None:
    live = gateway(default=True)
    live["properties"]["inventedIn2030"] = {"deep": [1, {"x": None}]}
    live["inventedToo"] = ["y"]
    parts(live, "backendAddressPools")[0]["properties"]["inventedThree"] = {"z": 1}
    bench = Bench(app(), ingress("web", rule(HOST)), gateway=live)
    bench.sync()
    assert bench.gateway["properties"]["inventedIn2030"] == {"deep": [1, {"x": None}]}
    assert bench.gateway["inventedToo"] == ["y"]
    assert parts(bench.gateway, "backendAddressPools")[0]["properties"]["inventedThree"] == {"z": 1}


def statuses(bench: Bench) -> list[dict[str, Any]]:
    plan = bench.decide()[1]
    return [a.parameters for a in plan.actions if a.kind is ActionKind.UPDATE_INGRESS_STATUS]


def test_12_an_address_is_published_only_when_the_routes_are_there() -> None:
    bench = Bench(app(), ingress("web", rule(HOST)))
    assert statuses(bench) == []
    bench.sync()
    (status,) = statuses(bench)
    assert status["loadBalancer"] == [{"ip": "20.1.2.3"}]


def test_13_a_change_that_was_not_written_is_planned_again() -> None:
    bench = Bench(app(), ingress("web", rule(HOST)))
    for _ in range(3):
        assert [a for a in bench.decide()[1].actions if a.kind is ActionKind.PUT_GATEWAY]
    bench.sync()
    assert not [a for a in bench.decide()[1].actions if a.kind is ActionKind.PUT_GATEWAY]


def test_14_what_is_invalid_is_never_in_a_document() -> None:
    bad = [
        ingress("cert", rule("b.com"), annotations={"appgw-ssl-certificate": "gone"}),
        ingress("profile", rule("c.com"), annotations={"appgw-ssl-profile": "gone"}),
        ingress("roots", rule("d.com"), annotations={"appgw-trusted-root-certificate": "gone"}),
        ingress("redirect", rule("e.com"), annotations={"ssl-redirect": "true"}),
        ingress("path", rule("f.com", path("/a*b"))),
        ingress("waf", rule("g.com"), annotations={"waf-policy-for-path": "mine"}),
    ]
    bench = Bench(app(), *bad, ingress("web", rule(HOST)))
    compiled = bench.sync()
    assert bench.hosts() == {HOST}
    assert {one.owner: one.reason for one in compiled.quarantined} == {
        "shop/cert": "NoCertificate",
        "shop/profile": "NoSSLProfile",
        "shop/roots": "NoTrustedRootCertificate",
        "shop/redirect": "RedirectWithNoTLS",
        "shop/path": "InvalidPath",
        "shop/waf": "InvalidAnnotation",
    }


def test_15_probe_annotations_are_kept_within_what_azure_takes() -> None:
    said = {"health-probe-unhealthy-threshold": "21", "health-probe-interval": "0"}
    bench = Bench(app(), ingress("web", rule(HOST), annotations=said))
    bench.sync()
    (probe,) = bench.parts("probes")
    assert (probe["unhealthyThreshold"], probe["interval"]) == (3, 30)
    assert len([one for one in bench.decide()[0].warnings if one.reason == "InvalidAnnotation"]) == 2


def test_16_no_host_beyond_the_fifth_vanishes() -> None:
    hosts = [f"h{number}.net" for number in range(12)]
    bench = Bench(app(), ingress("web", rule(HOST), annotations={"hostname-extension": ",".join(hosts)}))
    bench.sync()
    assert bench.hosts() == {HOST, *hosts}
    assert max(len(one.get("hostNames") or [1]) for one in bench.parts("httpListeners")) == 5
    assert all(bench.get(host).targets == ("10.9.8.7",) for host in hosts)

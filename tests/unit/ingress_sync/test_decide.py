"""What is decided: quarantine and last good routes, status, approval, certificates, limits."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from ingress_builders import (
    GATEWAY,
    NOW,
    WAF,
    Bench,
    app,
    endpoint,
    gateway,
    ingress,
    later,
    path,
    ref,
    rule,
    secret,
    service,
    slice_of,
)
from ingress_generator import behind, ingresses

from shared.errors import MessageError
from shared.ingress_sync.compiled import Change
from shared.ingress_sync.decide import decide
from shared.ingress_sync.observation import load, save
from shared.ingress_sync.routes import pack_routes, unpack_routes
from shared.ingress_sync.state import Bisection, Refused
from shared.model.gateway import parts
from shared.model.plan import ActionKind, canonical_json
from shared.model.snapshot import AzureReading

TLS = [{"secretName": "tls"}]


def puts(bench: Bench) -> list[Any]:
    return [a for a in bench.decide()[1].actions if a.kind is ActionKind.PUT_GATEWAY]


def statuses(bench: Bench) -> dict[str, Any]:
    actions = bench.decide()[1].actions
    return {a.target: a.parameters for a in actions if a.kind is ActionKind.UPDATE_INGRESS_STATUS}


def left_alone(bench: Bench) -> set[tuple[str, str]]:
    return {(left.subject, left.reason) for left in bench.decide()[1].left_alone}


# Quarantine


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"annotations": {"appgw-ssl-certificate": "gone"}}, "NoCertificate"),
        ({"tls": [{"secretName": "gone"}]}, "SecretNotFound"),
        ({"annotations": {"use-private-ip": "true"}}, "NoPrivateIP"),
        ({"annotations": {"waf-policy-for-path": "x"}}, "InvalidAnnotation"),
    ],
)
def test_a_broken_object_keeps_its_last_good_routes_and_the_others_go_on(
    broken: dict[str, Any], reason: str
) -> None:
    bench = Bench(app(), ingress("web", rule("old.com")), ingress("fine", rule("fine.com")))
    bench.sync()
    bench.replace("ingresses", ingress("web", rule("new.com"), **broken))
    bench.add(app("api", "10.0.0.2"), ingress("more", rule("more.com", path("/", "api"))))
    compiled = bench.sync()
    assert bench.hosts() == {"old.com", "fine.com", "more.com"}
    (out,) = compiled.quarantined
    assert (out.owner, out.reason, out.kept_last_good) == ("shop/web", reason, True)
    bench.replace("endpointslices", slice_of("web", "10.7.7.7"))
    bench.sync()
    assert bench.get("old.com").targets == ("10.7.7.7",), "last good routes follow the pods"
    bench.replace("ingresses", ingress("web", rule("good.com")))
    bench.sync()
    assert bench.hosts() == {"good.com", "fine.com", "more.com"}


def test_a_secret_that_goes_leaves_its_listener_served_by_the_certificate_on_the_gateway() -> None:
    bench = Bench(app(), {"secrets": secret()}, ingress("web", rule("a.com"), tls=TLS))
    bench.sync()
    bench.objects["secrets"] = []
    compiled = bench.sync()
    assert bench.puts == 1 and compiled.quarantined[0].kept_last_good
    assert bench.get("a.com", port=443).targets == ("10.9.8.7",)


def test_what_azure_refused_stays_out_until_it_changes_or_its_time_comes() -> None:
    bench = Bench(app(), ingress("web", rule("a.com")), ingress("fine", rule("fine.com")))
    digest = bench.decide()[0].route_digests["shop/web"]
    refused = Refused(
        reason="RefusedByAzure",
        message="Azure said no to it, at length",
        digest=digest,
        since=NOW,
        retry_at=later(hours=1),
    )
    bench.state = msgspec.structs.replace(bench.state, refused={"shop/web": refused})
    bench.sync()
    assert bench.hosts() == {"fine.com"} and ("shop/web", "RefusedByAzure") in left_alone(bench)
    bench.now = later(hours=2)
    bench.sync()
    assert bench.hosts() == {"a.com", "fine.com"}
    bench.now = NOW
    bench.replace("ingresses", ingress("web", rule("b.com")))
    bench.sync()
    assert bench.hosts() == {"b.com", "fine.com"}, "a changed object is another one"


def test_while_the_guilty_are_searched_only_the_first_group_is_tried() -> None:
    objects = [ingress(f"i{number}", rule(f"h{number}.com")) for number in range(4)]
    bench = Bench(app(), *objects)
    search = Bisection(groups=(("shop/i0",), ("shop/i1", "shop/i2")), good=("shop/i3",))
    bench.state = msgspec.structs.replace(bench.state, bisection=search)
    bench.sync()
    assert bench.hosts() == {"h0.com", "h3.com"}


def test_the_parts_that_an_error_may_name_lead_to_their_objects() -> None:
    bench = Bench(app(), ingress("a", rule("a.com")), ingress("b", rule("b.com", path("/b"))))
    compiled = bench.sync()
    owners = {key.partition("/")[0]: found for key, found in compiled.part_owners.items() if "b-com" in key}
    assert owners == {
        name: ("shop/b",)
        for name in ("httpListeners", "urlPathMaps", "requestRoutingRules", "probes")
        if name in owners
    }
    assert {"httpListeners", "urlPathMaps", "requestRoutingRules"} <= owners.keys()
    (pool,) = [key for key in compiled.part_owners if "pool_shop-web" in key]
    assert compiled.part_owners[pool] == ("shop/a", "shop/b")


def test_a_port_with_another_protocol_is_refused_to_the_later_object_only() -> None:
    said = {"override-frontend-port": "8443"}
    bench = Bench(
        app(),
        {"secrets": secret()},
        ingress("a", rule("a.com"), tls=TLS, annotations=said),
        ingress("b", rule("b.com"), annotations=said),
    )
    bench.sync()
    assert bench.hosts() == {"a.com"} and ("shop/b", "PortProtocolConflict") in left_alone(bench)


def test_client_certificates_that_another_object_would_not_ask_for_are_not_gone_without() -> None:
    profile = {"name": "mtls", "properties": {}}
    bench = Bench(
        app(),
        {"secrets": secret()},
        ingress("a", rule("a.com"), tls=TLS),
        ingress("b", rule("a.com", path("/b")), tls=TLS, annotations={"appgw-ssl-profile": "mtls"}),
        gateway=gateway(sslProfiles=[profile]),
    )
    bench.sync()
    assert ("shop/b", "ListenerConflict") in left_alone(bench)
    bench.replace(
        "ingresses", ingress("a", rule("a.com"), tls=TLS, annotations={"appgw-ssl-profile": "MTLS"})
    )
    bench.replace(
        "ingresses",
        ingress("b", rule("a.com", path("/b")), tls=TLS, annotations={"appgw-ssl-profile": "MTLS"}),
    )
    bench.sync()
    (listener,) = bench.parts("httpListeners")
    assert listener["sslProfile"]["id"].endswith("/mtls") and not bench.decide()[0].quarantined


def test_deviations_that_the_policy_refuses_quarantine_the_object() -> None:
    bench = Bench(
        app(),
        ingress("wild", rule("*.a.com")),
        ingress("web", rule("b.com")),
        refuseDeviations=["WildcardDepth"],
    )
    bench.sync()
    assert bench.hosts() == {"b.com"} and ("shop/wild", "DeviationRefused") in left_alone(bench)


def test_an_object_that_is_no_ingress_is_told_and_the_others_go_on() -> None:
    broken = ingress("broken", rule("x.com"))
    broken["spec"]["rules"] = "none"
    bench = Bench(app(), broken, ingress("web", rule("a.com")))
    compiled = bench.sync()
    (out,) = compiled.quarantined
    assert (out.owner, out.reason) == ("shop/broken", "Malformed") and "spec.rules" in out.message
    assert bench.hosts() == {"a.com"}


# Status


def test_an_address_is_given_and_taken_away_again() -> None:
    bench = Bench(app(), ingress("web", rule("a.com", path("/x"))))
    bench.sync()
    found = statuses(bench)["shop/web"]
    assert found["loadBalancer"] == [{"ip": "20.1.2.3"}] and found["uid"] == "uid-shop-web"
    assert found["note"] == "deviations: CaseInsensitivePaths, UnmatchedIs502"
    served = bench.objects["ingresses"][0]
    served["status"] = {"loadBalancer": {"ingress": [{"ip": "20.1.2.3"}]}}
    served["metadata"]["annotations"]["kubekeeper.io/ingress-sync"] = found["note"]
    assert statuses(bench) == {}
    bench.state = type(bench.state)(parts=bench.state.parts)
    served["spec"]["tls"] = [{"secretName": "gone"}]
    bench.sync()
    found = statuses(bench)["shop/web"]
    assert found["loadBalancer"] == [] and found["note"].startswith("SecretNotFound: ")


def test_the_private_frontends_address_is_published_for_who_listens_there() -> None:
    web = ingress("web", rule("a.com"), annotations={"use-private-ip": "true"})
    bench = Bench(app(), web, gateway=gateway(private=True))
    bench.sync()
    assert statuses(bench)["shop/web"]["loadBalancer"] == [{"ip": "10.0.0.4"}]


def test_an_object_that_is_not_ours_any_more_loses_our_address_only() -> None:
    bench = Bench(app(), ingress("web", rule("a.com")), ingress("b", rule("b.com")))
    bench.sync()
    web = bench.objects["ingresses"][0]
    web["metadata"]["annotations"]["kubekeeper.io/ingress-sync"] = "x"
    web["spec"]["ingressClassName"] = "nginx"
    web["status"] = {"loadBalancer": {"ingress": [{"ip": "20.1.2.3"}]}}
    assert statuses(bench)["shop/web"]["loadBalancer"] == []
    web["status"] = {"loadBalancer": {"ingress": [{"ip": "7.7.7.7"}]}}
    assert statuses(bench)["shop/web"]["loadBalancer"] == [{"ip": "7.7.7.7"}]


def test_no_status_is_written_where_the_policy_says_so() -> None:
    bench = Bench(app(), ingress("web", rule("a.com")), status=False)
    bench.sync()
    assert statuses(bench) == {}


# The gateway


@pytest.mark.parametrize("state", ["Stopped"])
def test_a_stopped_gateway_is_never_written(state: str) -> None:
    bench = Bench(app(), ingress("web", rule("a.com")))
    bench.gateway["properties"]["operationalState"] = state
    assert puts(bench) == [] and (GATEWAY, "GatewayStopped") in left_alone(bench)


def test_without_a_gateway_nothing_is_planned() -> None:
    bench = Bench(app(), ingress("web", rule("a.com")))
    observation = bench.observe()
    gone = AzureReading(id=GATEWAY, status=404, code="ResourceNotFound", read_at=NOW)
    observation = msgspec.structs.replace(observation, azure=(gone,))
    plan = decide(observation, observation.policy, NOW)
    assert plan.actions == () and "404 ResourceNotFound" in plan.left_alone[0].message


def test_a_policy_that_is_off_plans_nothing() -> None:
    bench = Bench(app(), ingress("web", rule("a.com")), enabled=False)
    assert bench.decide()[1].actions == () and ("prod", "Disabled") in left_alone(bench)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("endpoint", Change.POOLS),
        ("timeout", Change.SETTINGS),
        ("path", Change.SETTINGS),
        ("host", Change.LISTENERS),
        ("removed", Change.INTERRUPTING),
        ("certificate", Change.INTERRUPTING),
    ],
)
def test_a_change_is_graded_by_what_it_does_to_connections(change: str, expected: Change) -> None:
    first = ingress("web", rule("a.com", path("/a")), tls=TLS)
    bench = Bench(app(), app("api", "10.0.0.2"), {"secrets": secret()}, first, ingress("b", rule("b.com")))
    bench.sync()
    if change == "endpoint":
        bench.replace("endpointslices", slice_of("web", "10.9.8.7", "10.9.8.8"))
    elif change == "timeout":
        first["metadata"]["annotations"]["appgw.ingress.kubernetes.io/request-timeout"] = "99"
    elif change == "path":
        first["spec"]["rules"][0]["http"]["paths"].append(path("/b", "api"))
    elif change == "host":
        bench.add(ingress("c", rule("c.com", path("/", "api"))))
    elif change == "removed":
        bench.remove("ingresses", "b")
    else:
        bench.replace("secrets", secret(digest="d2"))
    compiled, plan = bench.decide()
    assert compiled.change is expected, compiled.changes
    (put,) = [a for a in plan.actions if a.kind is ActionKind.PUT_GATEWAY]
    assert put.parameters["change"] == expected.name
    assert bool(put.parameters["interruptions"]) == (expected is Change.INTERRUPTING)


def test_a_rollout_changes_pools_and_nothing_else() -> None:
    bench = Bench(app("web", "10.0.0.1", "10.0.0.2"), ingress("web", rule("a.com", path("/x"))))
    bench.sync()
    old = endpoint("10.0.0.1", ready=False, serving=True, terminating=True)
    for endpoints, expected in (
        ([old, endpoint("10.0.0.2"), endpoint("10.0.0.3", ready=False)], ("10.0.0.2",)),
        ([old, endpoint("10.0.0.3")], ("10.0.0.3",)),
        ([old], ("10.0.0.1",)),
        ([endpoint("10.0.0.1", ready=False, serving=False, terminating=True)], ()),
        ([endpoint("10.0.0.3"), endpoint("10.0.0.4")], ("10.0.0.3", "10.0.0.4")),
    ):
        bench.replace("endpointslices", slice_of("web", *endpoints))
        assert bench.decide()[0].change is Change.POOLS
        bench.sync()
        assert bench.get("a.com", "/x").targets == expected


def test_endpoints_that_the_gateway_finds_unhealthy_do_not_replace_those_that_leave() -> None:
    old = endpoint("10.0.0.1", ready=False, serving=True, terminating=True)
    bench = Bench(
        {"services": service(), "endpointslices": slice_of("web", old, "10.0.0.3")},
        ingress("web", rule("a.com")),
    )
    servers = [{"address": "10.0.0.3", "health": "Unhealthy"}, {"address": "10.0.0.1", "health": "Healthy"}]
    used = {"backendHttpSettingsCollection": [{"servers": servers}]}
    health = AzureReading(
        id=f"{GATEWAY}/backendHealth", status=200, read_at=NOW, body={"backendAddressPools": [used]}
    )
    bench.extra = [health]
    bench.sync()
    assert bench.get("a.com").targets == ("10.0.0.1", "10.0.0.3")
    servers[0]["health"] = "Healthy"
    bench.sync()
    assert bench.get("a.com").targets == ("10.0.0.3",)


# Approval


@pytest.mark.parametrize(
    ("approval", "waits"),
    [
        ({}, False),
        ({"listenerRemoval": True}, True),
        ({"certificateChange": True}, False),
        ({"routes": 1}, True),
        ({"routes": 9}, False),
    ],
)
def test_a_risky_change_waits_for_approval_of_just_that_change(approval: dict[str, Any], waits: bool) -> None:
    bench = Bench(app(), *[ingress(f"i{number}", rule(f"h{number}.com")) for number in range(3)])
    bench.sync()
    bench.policy["approval"] = approval
    for number in range(2):
        bench.remove("ingresses", f"i{number}")
    compiled = bench.decide()[0]
    assert (not puts(bench)) is waits
    if waits:
        assert (GATEWAY, "ApprovalRequired") in left_alone(bench)
        bench.state = msgspec.structs.replace(bench.state, approved="0" * 32)
        assert not puts(bench)
        bench.state = msgspec.structs.replace(bench.state, approved=compiled.approval)
        bench.replace("endpointslices", slice_of("web", "10.1.1.1"))
        assert puts(bench), "endpoints that come and go do not undo an approval"


# Certificates


def test_a_certificate_is_renewed_without_a_gap_and_a_warning_comes_before_it_expires() -> None:
    soon = later(days=10).isoformat()
    bench = Bench(app(), {"secrets": secret(notAfter=soon)}, ingress("web", rule("a.com"), tls=TLS))
    compiled = bench.sync()
    (warning,) = compiled.warnings
    assert (
        warning.reason == "CertificateExpires" and "Secret shop/tls expires on 2026-12-03" in warning.message
    )
    bench.replace("secrets", secret(digest="new", notAfter=later(days=90).isoformat()))
    compiled = bench.sync()
    assert [upload.digest for upload in compiled.uploads] == ["new"] and not compiled.warnings
    assert len(bench.parts("sslCertificates")) == 2


def test_no_key_and_no_data_is_in_what_is_planned_or_recorded() -> None:
    bench = Bench(app(), {"secrets": secret()}, ingress("web", rule("a.com"), tls=TLS))
    observation = bench.observe()
    text = save(observation) + canonical_json(decide(observation, observation.policy, NOW).document())
    assert b"tls.key" not in text and b'"password"' not in text
    assert b'"data"' not in text


def test_a_certificate_of_a_key_vault_is_referred_to_and_never_uploaded() -> None:
    said = {"ingress-sync.kubekeeper.io/key-vault-secret-id": "https://v-1.vault.azure.net/secrets/web"}
    bench = Bench(app(), ingress("web", rule("a.com"), annotations=said | {"ssl-redirect": "true"}))
    assert [(one.owner, one.reason) for one in bench.sync().quarantined] == [("shop/web", "NoIdentity")]
    bench.gateway["identity"] = {"type": "UserAssigned"}
    assert bench.sync().uploads == ()
    (certificate,) = bench.parts("sslCertificates")
    assert certificate["keyVaultSecretId"] == "https://v-1.vault.azure.net/secrets/web"
    assert bench.get("a.com", port=443).targets == ("10.9.8.7",)
    assert bench.get("a.com").location == "Permanent https://a.com{path}"


# Limits


def test_beyond_a_limit_those_that_are_served_stay_and_the_rest_is_told() -> None:
    apps = [app(f"s{number}", f"10.0.{number}.1") for number in range(130)]
    objects = [
        ingress(f"i{number:03d}", rule(f"h{number}.com", path("/", f"s{number}"))) for number in range(130)
    ]
    bench = Bench(*apps, *objects[30:])
    assert bench.sync().quarantined == ()
    bench.objects["ingresses"] = objects
    compiled = bench.sync()
    assert {one.reason for one in compiled.quarantined} == {"GatewayFull"}
    assert {one.owner for one in compiled.quarantined} == {f"shop/i{number:03d}" for number in range(30)}
    assert bench.hosts() == {f"h{number}.com" for number in range(30, 130)}
    room = {one.name: one for one in compiled.head_room}
    assert (room["backendAddressPools"].used, room["backendAddressPools"].limit) == (100, 100)


def test_hosts_that_are_routed_alike_share_listeners_and_services_with_the_same_pods_share_pools() -> None:
    selector = {"app": "web"}
    bench = Bench(*[ingress(f"i{n:03d}", rule(f"h{n}.com", path("/", f"s{n % 10}"))) for n in range(300)])
    for number in range(10):
        bench.add({"services": service(f"s{number}", selector=selector)})
        bench.add({"endpointslices": slice_of(f"s{number}", "10.0.0.1")})
    bench.sync()
    assert len(bench.parts("backendAddressPools")) == 1
    assert len(bench.parts("httpListeners")) == 60, "300 hosts, of which 100 would fit otherwise"


def test_more_than_a_hundred_path_rules_of_a_host_leave_out_the_last() -> None:
    apps = [app(f"s{number}", f"10.0.{number}.1") for number in range(90)]
    many = [path(f"/p{number}", f"s{number % 90}", kind="Exact") for number in range(60)]
    more = [path(f"/q{number}", f"s{number + 30}", kind="Exact") for number in range(60)]
    bench = Bench(*apps, ingress("a", rule("a.com", *many)), ingress("b", rule("a.com", *more)))
    compiled = bench.sync()
    assert compiled.quarantined == ()
    (one,) = bench.parts("urlPathMaps")
    assert len(one["pathRules"]) == 90, "paths with the same target share a rule"


def test_more_targets_than_a_pool_takes_are_told() -> None:
    addresses = [f"10.{n // 250}.{n % 250}.1" for n in range(1_300)]
    bench = Bench(app("web", *addresses), ingress("web", rule("a.com")))
    compiled = bench.sync()
    assert len(bench.get("a.com").targets) == 1_200
    assert [one.reason for one in compiled.warnings] == ["TooManyTargets"]


# The same again


def test_the_same_objects_in_any_order_give_the_same_document() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        found = [*behind(rng), *ingresses(rng, 6)]
        first = Bench(*found, gateway=gateway(private=True)).decide()[0]
        rng.shuffle(found)
        second = Bench(*found, gateway=gateway(private=True)).decide()[0]
        assert canonical_json(first) == canonical_json(second), seed


def test_a_snapshot_file_gives_the_same_plan_byte_for_byte() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        bench = Bench(*behind(rng), *ingresses(rng, 6), gateway=gateway(private=True, default=True))
        bench.sync()
        bench.add(ingress("late", rule("late.com")))
        observation = bench.observe()
        again = load(save(observation), "x")
        assert save(again) == save(observation)
        assert again.inputs_digest == observation.inputs_digest
        plans = [decide(one, one.policy, NOW).document() for one in (observation, again)]
        assert canonical_json(plans[0]) == canonical_json(plans[1])


def test_a_broken_snapshot_is_refused_with_its_name() -> None:
    bench = Bench(app(), ingress("web", rule("a.com")))
    document = json.loads(save(bench.observe()))
    document["cluster"]["ingressSync"]["gateway"] = "nonsense"
    with pytest.raises(MessageError, match=r"file\.json"):
        load(json.dumps(document).encode(), "file.json")


def test_routes_survive_the_state_document() -> None:
    bench = Bench(app(), {"secrets": secret()}, ingress("web", rule("a.com"), tls=TLS))
    routes = unpack_routes(bench.sync().routes)
    assert unpack_routes(pack_routes(routes.values())) == routes and unpack_routes("") == {}


def test_adding_a_host_leaves_the_other_listeners_alone() -> None:
    bench = Bench(app(), *[ingress(f"i{n}", rule(f"h{n}.com")) for n in range(5)])
    bench.sync()
    before = copy.deepcopy(bench.parts("httpListeners"))
    bench.add(ingress("a", rule("a0.com")))
    bench.sync()
    after = bench.parts("httpListeners")
    assert [one for one in before if one not in after] == [] and len(after) == 2


# Everything else that is compiled


def test_the_listener_has_profile_policy_and_error_pages() -> None:
    said = {
        "appgw-ssl-profile": "mtls",
        "waf-policy-for-path": WAF,
        "ingress-sync.kubekeeper.io/error-page-502": "https://pages.net/502.html",
    }
    bench = Bench(
        app(),
        {"secrets": secret()},
        ingress("web", rule("a.com", path("/"), path("/x")), tls=TLS, annotations=said),
        gateway=gateway(sslProfiles=[{"name": "mtls", "properties": {}}]),
    )
    bench.sync()
    (listener,) = bench.parts("httpListeners")
    assert listener["sslProfile"] == ref("sslProfiles", "mtls") and listener["firewallPolicy"] == {"id": WAF}
    assert listener["customErrorConfigurations"] == [
        {"statusCode": "HttpStatus502", "customErrorPageUrl": "https://pages.net/502.html"}
    ]
    (path_map,) = bench.parts("urlPathMaps")
    assert path_map["pathRules"][0]["properties"]["firewallPolicy"] == {"id": WAF}


def test_settings_are_as_the_annotations_say() -> None:
    said = {
        "backend-protocol": "HTTPS",
        "backend-hostname": "inner.net",
        "backend-path-prefix": "/v1/",
        "cookie-based-affinity": "true",
        "cookie-based-affinity-distinct-name": "true",
        "connection-draining": "true",
        "connection-draining-timeout": "90",
        "request-timeout": "300",
    }
    bench = Bench(app(), ingress("web", rule("a.com"), annotations=said))
    bench.sync()
    (found,) = bench.parts("backendHttpSettingsCollection")
    probe = found.pop("probe")
    for unsaid in ("name", "provisioningState"):
        found.pop(unsaid)
    assert found == {
        "port": 9876,
        "protocol": "Https",
        "hostName": "inner.net",
        "path": "/v1/",
        "cookieBasedAffinity": "Enabled",
        "affinityCookieName": "appgw-affinity-" + hashlib.md5(b"shop-web").hexdigest(),
        "connectionDraining": {"enabled": True, "drainTimeoutInSec": 90},
        "requestTimeout": 300,
        "pickHostNameFromBackendAddress": False,
    }
    (sent,) = [one for one in bench.parts("probes") if probe["id"].endswith(one["name"])]
    assert (sent["protocol"], sent["host"], sent["path"]) == ("Https", "inner.net", "/v1/")


def test_node_ports_share_one_pool_of_ready_nodes() -> None:
    nodes = [
        {
            "metadata": {"name": f"n{number}"},
            "status": {
                "addresses": [{"type": "InternalIP", "address": f"10.5.0.{number}"}],
                "conditions": [{"type": "Ready", "status": "True" if number else "False"}],
            },
        }
        for number in range(3)
    ]
    services = [
        service(f"s{number}", {"port": 80, "nodePort": 30_000 + number}, type="NodePort")
        for number in range(2)
    ]
    bench = Bench(
        {"nodes": nodes, "services": services},
        *[ingress(f"i{number}", rule(f"h{number}.com", path("/", f"s{number}"))) for number in range(2)],
        backend="nodePorts",
    )
    bench.sync()
    assert bench.get("h1.com").targets == ("10.5.0.1", "10.5.0.2") and bench.get("h1.com").port == 30_001
    assert len(bench.parts("backendAddressPools")) == 1


def test_an_external_name_is_a_target_by_name() -> None:
    external = service("out", {"port": 8443}, type="ExternalName", externalName="out.example.net.")
    bench = Bench({"services": external}, ingress("web", rule("a.com", path("/", "out", 8443))))
    bench.sync()
    assert bench.get("a.com").targets == ("out.example.net",) and bench.get("a.com").port == 8443


@pytest.mark.parametrize(
    ("change", "is_ours"),
    [
        ({}, True),
        ({"ingressClassName": "nginx"}, False),
        ({"ingressClassName": None}, False),
        ({"ingressClassName": None, "default": True}, True),
        ({"legacy": "azure/application-gateway"}, True),
        ({"legacy": "nginx"}, False),
        ({"namespace": "kube-system"}, False),
        ({"deleted": True}, False),
    ],
)
def test_which_objects_are_ours(change: dict[str, Any], is_ours: bool) -> None:
    web = ingress("web", rule("a.com"), namespace=change.get("namespace", "shop"))
    web["spec"]["ingressClassName"] = change.get("ingressClassName", "azure")
    if "legacy" in change:
        web["metadata"]["annotations"]["kubernetes.io/ingress.class"] = change["legacy"]
    if "deleted" in change:
        web["metadata"]["deletionTimestamp"] = "2026-11-23T09:00:00Z"
    bench = Bench(app(), web, gateway=gateway(default=True))
    if "default" in change:
        said = {"ingressclass.kubernetes.io/is-default-class": "true"}
        bench.objects["ingressclasses"] = [
            {
                "metadata": {"name": "azure", "annotations": said},
                "spec": {"controller": "azure/application-gateway"},
            }
        ]
    bench.sync()
    assert (bench.hosts() == {"a.com"}) is is_ours


def test_compatibility_settings_bring_agics_ways_back() -> None:
    half = slice_of("web", endpoint("10.0.0.1", ready=False), "10.0.0.2")
    bench = Bench(
        {"services": service(), "endpointslices": half},
        ingress("web", rule("a.com", path("/foo"))),
        compatibility={"prefixWithinSegment": True, "notReadyEndpoints": True},
    )
    bench.sync()
    assert bench.get("a.com", "/foobar").targets == ("10.0.0.1", "10.0.0.2")
    del bench.policy["compatibility"]
    bench.sync()
    assert bench.get("a.com", "/foobar").targets == () and bench.get("a.com", "/foo").targets == ("10.0.0.2",)


def test_what_is_left_of_time_is_no_part_of_a_decision_that_does_not_depend_on_it() -> None:
    bench = Bench(app(), ingress("web", rule("a.com")))
    bench.sync()
    bench.now = NOW + timedelta(days=400)
    assert not puts(bench)


def test_a_redirect_of_all_hosts_leads_to_the_listener_of_all_hosts() -> None:
    bench = Bench(
        app(), {"secrets": secret()}, ingress("web", rule(""), tls=TLS, annotations={"ssl-redirect": "1"})
    )
    bench.sync()
    assert bench.get("x.com").location == "Permanent https://{host}{path}"
    (redirect,) = bench.parts("redirectConfigurations")
    assert redirect["targetListener"]["id"].rpartition("/")[2] in {
        part["name"] for part in parts(bench.gateway, "httpListeners")
    }

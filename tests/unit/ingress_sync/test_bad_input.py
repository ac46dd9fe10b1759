"""Every field of an Ingress and every annotation, fuzzed: no crash, nothing invalid sent, always a reason."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from ingress_builders import AGIC, Bench, accept, app, gateway, ingress, path, pod, rule, secret
from ingress_generator import behind

from shared.ingress_sync.annotations import TABLE
from shared.ingress_sync.prohibited import Prohibited
from shared.model.plan import ActionKind

DOCUMENTS = 20_000 if os.environ.get("KUBEKEEPER_SWEEP") == "full" else 1_000
PER_SYNC = 10
STRANGE: list[Any] = [
    None, "", " ", "\x00", "*", "**", "*.", ".", "-", "/", "//", "/*", "?", "#", "../..", "a" * 300, "é.com",
    "xn--e1afmkfd.com", "A.COM", "a..com", "*.*.com", "a.*.com", "host:80", "0", "-1", "1e3", "00080", "٣",
    "99999999999999999999", "true", "TRUE", "yes", "1", "t", "${jndi:x}", "' or 1", "\u202e", "\n", 0, -1, 1,
    80, 65_535, 65_536, 70_000, 2**31, 2**63, 2**80, 1.5, True, False, [], {}, [None], [[]], {"a": None},
    ["x"], {"name": "web"}, {"service": {}}, "/a%2fb", "/a b", "/a*b", "/a*", "/é", "/" + "x" * 2_000,
    "https://x/y.html", "200-399,401", "200-", "399-200", "999", "a,b,c", ",", "a.com,b.com", "Exact",
]  # fmt: skip


def whole() -> dict[str, Any]:
    """An object with every field."""
    said = {annotation.key: "1" for annotation in TABLE}
    made = ingress(
        "fuzzed",
        rule("f.com", path("/a"), path("/b", "api", 80, "Exact")),
        rule("*.f.com", path("/c", "web", "http", "ImplementationSpecific")),
        tls=[{"hosts": ["f.com"], "secretName": "cert0"}],
        default=path("/"),
        annotations=said,
    )
    made["status"] = {"loadBalancer": {"ingress": [{"ip": "1.2.3.4", "ports": [{"port": 80}]}]}}
    made["metadata"] |= {"generation": 1, "labels": {"a": "b"}, "resourceVersion": "1"}
    made["metadata"]["creationTimestamp"] = "2026-11-01T00:00:00Z"
    return made


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value below."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*at, key)
        yield from places(below, (*at, key))


def fuzzed(rng: random.Random, number: int) -> dict[str, Any]:
    """The object with one to three fields replaced, removed or doubled, under a name of its own."""
    made = whole()
    kept = rng.sample(sorted(made["metadata"]["annotations"]), rng.choice([0, 1, 2, 4]))
    made["metadata"]["annotations"] = {key: rng.choice([*map(str, STRANGE), "true"]) for key in kept}
    for _ in range(rng.choice([1, 1, 2, 3])):
        where = rng.choice(list(places(made)))
        holder = made
        for key in where[:-1]:
            holder = holder[key]
        action = rng.random()
        if action < 0.75:
            holder[where[-1]] = copy.deepcopy(rng.choice(STRANGE))
        elif action < 0.9:
            del holder[where[-1]]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[where[-1]]))
        else:
            holder[f"{where[-1]}X"] = copy.deepcopy(holder[where[-1]])
    if isinstance(made.get("metadata"), dict) and rng.random() < 0.9:
        made["metadata"] |= {"name": f"f{number}", "namespace": "shop"}
    return made


@pytest.mark.no_cover
@pytest.mark.parametrize("block", range(10))
def test_fuzzed_objects_never_crash_nor_spoil_the_others(block: int) -> None:
    certificate = {"name": "theirs", "properties": {"publicCertData": "x"}}
    for seed in range(block * DOCUMENTS // 10 // PER_SYNC, (block + 1) * DOCUMENTS // 10 // PER_SYNC):
        rng = random.Random(seed)
        objects = [fuzzed(rng, number) for number in range(PER_SYNC)]
        bench = Bench(
            *behind(rng),
            app("good", "10.9.9.9"),
            gateway=gateway(private=True, default=True, sslCertificates=[certificate]),
        )
        bench.objects["ingresses"] = [*objects, ingress("good", rule("good.org", path("/", "good")))]
        compiled, plan = bench.decide()
        reasons = {left.reason for left in plan.left_alone}
        assert not reasons & {"NotProven", "Unsafe", "Invalid", "ProofFailed"}, (seed, plan.left_alone)
        assert any(action.kind is ActionKind.PUT_GATEWAY for action in plan.actions), seed
        accept(compiled)
        bench.take(compiled)
        assert bench.get("good.org").targets == ("10.9.9.9",), seed
        for out in compiled.quarantined:
            assert out.reason and len(out.message) > 20 and "\n" not in out.reason, (seed, out)


@pytest.mark.parametrize("annotation", TABLE, ids=lambda one: one.name)
def test_each_annotation_takes_or_refuses_every_strange_value(annotation: Any) -> None:
    for value in map(str, STRANGE):
        web = ingress("web", rule("a.com"), annotations={annotation.key: value})
        bench = Bench(app(), web, ingress("good", rule("good.org")), gateway=gateway(default=True))
        compiled = bench.sync()
        assert "good.org" in bench.hosts(), value
        if "shop/web" not in compiled.served:
            assert [one.owner for one in compiled.quarantined] == ["shop/web"], value


OTHER_KINDS: dict[str, Any] = {
    "services": app()["services"],
    "endpointslices": app()["endpointslices"],
    "secrets": secret(),
    "pods": pod("web-1", {"httpGet": {"path": "/x", "port": "http"}}),
    "ingressclasses": {"metadata": {"name": "z"}, "spec": {"controller": "azure/application-gateway"}},
    "azureapplicationgatewayrewrites": {
        "metadata": {"name": "r", "namespace": "shop"},
        "spec": {"rewriteRules": [{"name": "r", "conditions": [{"variable": "v", "pattern": "p"}]}]},
    },
    "azureingressprohibitedtargets": {"metadata": {"name": "p"}, "spec": {"hostname": "x", "paths": ["/a"]}},
    "nodes": {
        "metadata": {"name": "n"},
        "status": {"addresses": [{"type": "InternalIP", "address": "1.1.1.1"}]},
    },
}


@pytest.mark.no_cover
@pytest.mark.parametrize("plural", sorted(OTHER_KINDS))
def test_every_field_of_what_is_behind_may_be_strange(plural: str) -> None:
    said = {"rewrite-rule-set-custom-resource": "r"}
    for where in places(OTHER_KINDS[plural]):
        for value in STRANGE[:: 1 if DOCUMENTS > 2_000 else 11]:
            strange = copy.deepcopy(OTHER_KINDS[plural])
            holder = strange
            for key in where[:-1]:
                holder = holder[key]
            holder[where[-1]] = value
            bench = Bench(app("good", "10.9.9.9"), gateway=gateway(default=True))
            bench.add(
                *[{name: one} for name, one in OTHER_KINDS.items() if name != plural], {plural: strange}
            )
            tls = [{"secretName": "tls"}]
            bench.add(ingress("web", rule("a.com"), tls=tls, annotations=said))
            bench.add(ingress("good", rule("good.org", path("/", "good"))))
            bench.sync()
            denied = Prohibited(bench.observe().kubernetes.azureingressprohibitedtargets)
            if not denied.covers(
                "good.org", "/"
            ):  # an empty one prohibits everything, as AGIC's default does
                assert bench.get("good.org").targets == ("10.9.9.9",), (where, value)


def test_an_unknown_annotation_is_told_with_its_full_name() -> None:
    bench = Bench(app(), ingress("web", rule("a.com"), annotations={"ssl-redirct": "true"}))
    (warning,) = bench.sync().warnings
    assert warning.reason == "InvalidAnnotation" and f"{AGIC}ssl-redirct" in warning.message

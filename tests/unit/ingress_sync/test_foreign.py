"""What others have on the gateway stays as it is, byte for byte, whatever we do beside it."""

from __future__ import annotations

import copy
import os
import random
from typing import Any

import msgspec
import pytest
from ingress_builders import GATEWAY, WAF, Bench, accept, app, gateway, ingress, ref, rule
from ingress_generator import behind, ingresses

from shared.errors import UnsafePlanError
from shared.ingress_sync.ownership import assert_foreign_untouched, own_keys
from shared.ingress_sync.policy import IngressSyncPolicy
from shared.ingress_sync.state import PartRecord
from shared.model.gateway import COLLECTIONS, part_key, parts
from shared.model.plan import ActionKind

GATEWAYS = 2_000 if os.environ.get("KUBEKEEPER_SWEEP") == "full" else 200
Document = dict[str, Any]


class Foreign:
    """A random gateway: parts of others in every collection, which refer to each other."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.found: dict[str, list[Document]] = {}
        for collection in COLLECTIONS:
            make = getattr(self, f"_{collection}", self._anything)
            if collection in ("frontendIPConfigurations", "gatewayIPConfigurations"):
                continue
            for number in range(rng.randrange(0, 4)):
                self._add(collection, number, make)

    def _add(self, collection: str, number: int, make: Any) -> None:
        prefix = self.rng.choice(["theirs", "kk_prod_", "kk_other_", "Fl-"])
        properties = make(number)
        if properties is not None:
            extra = {"unknownToUs": self.rng.choice([None, [], {"a": [1, {"b": None}]}, "x"])}
            part = {"name": f"{prefix}{collection}{number}", "properties": properties | extra}
            part["id"] = f"{GATEWAY}/{collection}/{part['name']}"
            self.found.setdefault(collection, []).append(part)

    def any(self, collection: str) -> Document | None:
        there = self.found.get(collection)
        return {"id": self.rng.choice(there)["id"]} if there else None

    def _anything(self, number: int) -> Document:
        return {"value": number, "reference": self.any("sslCertificates") or self.any("frontendPorts")}

    def _sslCertificates(self, number: int) -> Document:  # noqa: N802
        return self.rng.choice([{"publicCertData": "x"}, {"keyVaultSecretId": f"https://v/{number}"}])

    def _frontendPorts(self, number: int) -> Document:  # noqa: N802
        return {"port": self.rng.choice([80, 443, 8080, 9000]) if number == 0 else 10_000 + number}

    def _backendAddressPools(self, number: int) -> Document:  # noqa: N802
        return {"backendAddresses": [{"fqdn": f"h{number}.net"}, {"ipAddress": f"9.9.9.{number}", "x": 1}]}

    def _backendHttpSettingsCollection(self, number: int) -> Document:  # noqa: N802
        return {"port": 81 + number, "protocol": "Http", "requestTimeout": 7, "probe": self.any("probes")}

    def _probes(self, _number: int) -> Document:
        base = {"host": "p.net", "path": "/", "interval": 9, "timeout": 9, "unhealthyThreshold": 2}
        return base | {"protocol": "Http"}

    def _httpListeners(self, number: int) -> Document | None:  # noqa: N802
        port = self.any("frontendPorts")
        if port is None:
            return None
        hosts = [f"t{number}.their.net", "a.com", "*.a.com", "x.y.a.com", ""]
        taken = {
            (one["properties"]["frontendPort"]["id"], (one["properties"].get("hostNames") or [""])[0])
            for one in self.found.get("httpListeners", [])
        }
        host = self.rng.choice(hosts)
        if (port["id"], host) in taken:
            return None
        base: Document = {
            "frontendIPConfiguration": ref("frontendIPConfigurations", "public"),
            "frontendPort": port,
            "protocol": "Http",
        }
        return base | ({"hostNames": [host], "hostName": None} if host else {})

    def _redirectConfigurations(self, _number: int) -> Document | None:  # noqa: N802
        return {"redirectType": "Found", "targetUrl": "https://their.net", "pathRules": [{"id": "x"}]}

    def _urlPathMaps(self, _number: int) -> Document | None:  # noqa: N802
        target = self._target()
        if target is None:
            return None
        inner = {"paths": ["/their/*"], **target}
        rule = {"name": "r", "properties": inner}
        default = {f"default{name[0].upper()}{name[1:]}": value for name, value in target.items()}
        return {**default, "pathRules": [rule]}

    def _requestRoutingRules(self, number: int) -> Document | None:  # noqa: N802
        used = {one["properties"]["httpListener"]["id"] for one in self.found.get("requestRoutingRules", [])}
        free = [one for one in self.found.get("httpListeners", []) if one["id"] not in used]
        target = self._target()
        if not free or target is None:
            return None
        taken = {one["properties"]["priority"] for one in self.found.get("requestRoutingRules", [])}
        priority = self.rng.choice([4, 14, 1_500, 12_000, 18_100, 19_999]) - number
        if priority in taken:
            return None
        return {"ruleType": "Basic", "priority": priority, "httpListener": {"id": free[0]["id"]}, **target}

    def _target(self) -> Document | None:
        pool, settings = self.any("backendAddressPools"), self.any("backendHttpSettingsCollection")
        if pool is None or settings is None:
            return None
        return {"backendAddressPool": pool, "backendHttpSettings": settings}


def random_gateway(rng: random.Random) -> Document:
    live = gateway(private=rng.random() < 0.5, **Foreign(rng).found)
    live["properties"]["firewallPolicy"] = {"id": WAF}
    live["properties"]["odd"] = rng.choice([None, {"z": 1, "a": [None]}, []])
    live["tags"] = {"owner": "them"}
    return live


def foreign_bytes(document: Document, ours: frozenset[str]) -> bytes:
    """Everything that is not ours, in its order, to the byte."""
    found = {key: value for key, value in document.items() if key not in ("properties", "etag")}
    for name, value in document["properties"].items():
        if name not in COLLECTIONS:
            found["." + name] = value
            continue
        theirs = [part for part in value if part_key(name, part["name"]) not in ours]
        if theirs:
            found["." + name] = theirs
    return msgspec.json.encode(found)


@pytest.mark.no_cover
@pytest.mark.parametrize("block", range(10))
def test_parts_of_others_in_every_collection_stay_byte_identical(block: int) -> None:
    written = 0
    for seed in range(block * GATEWAYS // 10, (block + 1) * GATEWAYS // 10):
        rng = random.Random(seed)
        live = random_gateway(rng)
        before = foreign_bytes(live, frozenset())
        bench = Bench(*behind(rng), *ingresses(rng, rng.choice([1, 3, 6])), gateway=live)
        for step in range(3):
            compiled, plan = bench.decide()
            reasons = {left.reason for left in plan.left_alone}
            assert not reasons & {"Unsafe", "NotProven", "Invalid"}, (seed, plan.left_alone)
            if any(action.kind is ActionKind.PUT_GATEWAY for action in plan.actions):
                ours = frozenset(compiled.parts)
                assert foreign_bytes(compiled.document, ours) == before, seed
                bench.take(compiled)
                written += 1
            ingress_objects = bench.objects["ingresses"]
            bench.objects["ingresses"] = [] if step == 1 else ingress_objects[: len(ingress_objects) // 2]
        assert foreign_bytes(bench.gateway, frozenset(bench.state.parts)) == before
    assert written > GATEWAYS // 20


# What is ours


def test_a_part_with_our_prefix_that_is_not_on_record_is_somebody_elses() -> None:
    pool = {"name": "kk_prod_pool_x", "properties": {"backendAddresses": []}}
    live = gateway(default=True, backendAddressPools=[pool])
    bench = Bench(app(), ingress("web", rule("a.com")), gateway=live)
    bench.sync()
    assert "kk_prod_pool_x" in {part["name"] for part in parts(bench.gateway, "backendAddressPools")}


def test_with_a_lost_record_nothing_is_touched_until_an_operator_says_adopt() -> None:
    bench = Bench(app(), ingress("web", rule("a.com")), gateway=gateway(default=True))
    bench.sync()
    before = copy.deepcopy(bench.gateway)
    bench.state = type(bench.state)()
    bench.replace("endpointslices", *[one for one in app("web", "10.7.7.7").values() if "endpoints" in one])
    compiled = bench.sync()
    assert bench.gateway == before and {one.reason for one in compiled.quarantined} == {"ListenerTaken"}
    bench.policy["adopt"] = True
    bench.sync()
    assert bench.get("a.com").targets == ("10.7.7.7",)


def test_the_portals_default_listener_is_in_the_way_until_it_is_given_to_us() -> None:
    bench = Bench(app(), ingress("web", rule("")), gateway=gateway(default=True))
    assert {one.reason for one in bench.sync().quarantined} == {"ListenerTaken"}
    bench.policy["takeOver"] = ["httpListeners/default", "requestRoutingRules/default"]
    bench.sync()
    assert bench.get("any.com").targets == ("10.9.8.7",)
    assert parts(bench.gateway, "backendAddressPools")[0]["name"] == "default"


def test_two_clusters_share_a_gateway_and_its_port() -> None:
    bench = Bench(app(), ingress("web", rule("a.com")))
    bench.sync()
    other = Bench(app("web", "10.200.0.1"), ingress("web", rule("b.com")), gateway=bench.gateway)
    other.policy["prefix"] = "kk_second"
    other.sync()
    bench.gateway = other.gateway
    assert bench.get("a.com").targets == ("10.9.8.7",) and bench.get("b.com").targets == ("10.200.0.1",)
    assert not [a for a in bench.decide()[1].actions if a.kind is ActionKind.PUT_GATEWAY]
    other.remove("ingresses", "web")
    other.sync()
    bench.gateway = other.gateway
    assert bench.get("a.com").targets == ("10.9.8.7",) and bench.get("b.com").targets == ()


def test_a_part_of_ours_that_others_refer_to_stays_when_we_need_it_no_more() -> None:
    bench = Bench(app(), ingress("web", rule("a.com")), gateway=gateway(default=True))
    bench.sync()
    (pool,) = [one["name"] for one in bench.parts("backendAddressPools")]
    rules = parts(bench.gateway, "requestRoutingRules")
    next(one for one in rules if one["name"] == "default")["properties"]["backendAddressPool"] = ref(
        "backendAddressPools", pool
    )
    bench.remove("ingresses", "web")
    compiled = bench.sync()
    assert [one["name"] for one in bench.parts("backendAddressPools")] == [pool]
    assert bench.parts("httpListeners") == []
    assert {one.reason for one in compiled.warnings} == {"HeldByOthers"}
    assert not [a for a in bench.decide()[1].actions if a.kind is ActionKind.PUT_GATEWAY]


def test_when_everything_of_ours_goes_from_a_gateway_of_our_own_a_listener_stays() -> None:
    bench = Bench(app(), ingress("web", rule("a.com")))
    bench.sync()
    bench.remove("ingresses", "web")
    accept(bench.sync())
    assert len(parts(bench.gateway, "requestRoutingRules")) == 1, "Azure refuses a gateway without rules"


def test_priorities_go_around_those_of_others() -> None:
    theirs = [
        {"name": "exact", "properties": listener("b.a.com")},
        {"name": "wild", "properties": listener("*.net")},
    ]
    rules = [
        {"name": "exact", "properties": routed("exact", 15_000)},
        {"name": "wild", "properties": routed("wild", 500)},
    ]
    port = {"name": "p", "properties": {"port": 80}}
    live = gateway(httpListeners=theirs, requestRoutingRules=rules, frontendPorts=[port], **BEHIND)
    bench = Bench(app(), ingress("web", rule("*.a.com")), ingress("net", rule("x.net")), gateway=live)
    bench.sync()
    by_name = {one["name"]: one["priority"] for one in bench.parts("requestRoutingRules")}
    wild = next(value for name, value in by_name.items() if "wild" in name)
    exact = next(value for name, value in by_name.items() if "x-net" in name)
    assert wild > 15_000 and exact < 500
    assert bench.get("b.a.com").targets == bench.get("other.net").targets == ("9.9.9.9",)
    assert bench.get("c.a.com").targets == bench.get("x.net").targets == ("10.9.8.7",)


def test_where_no_priority_fits_the_object_is_left_out() -> None:
    theirs = [{"name": "wild", "properties": listener("*.net")}]
    rules = [{"name": "wild", "properties": routed("wild", 1)}]
    port = {"name": "p", "properties": {"port": 80}}
    live = gateway(httpListeners=theirs, requestRoutingRules=rules, frontendPorts=[port], **BEHIND)
    bench = Bench(app(), ingress("net", rule("x.net")), ingress("web", rule("a.com")), gateway=live)
    assert [(one.owner, one.reason) for one in bench.sync().quarantined] == [("shop/net", "NoPriorityLeft")]
    assert bench.hosts() == {"a.com"}


POOL = {"name": "p", "properties": {"backendAddresses": [{"ipAddress": "9.9.9.9"}]}}
SETTINGS = {"name": "s", "properties": {"port": 80, "protocol": "Http", "requestTimeout": 5}}
BEHIND: Any = {"backendAddressPools": [POOL], "backendHttpSettingsCollection": [SETTINGS]}


def listener(host: str) -> Document:
    base = {"frontendIPConfiguration": ref("frontendIPConfigurations", "public"), "protocol": "Http"}
    return base | {"frontendPort": ref("frontendPorts", "p"), "hostNames": [host]}


def routed(name: str, priority: int) -> Document:
    return {
        "ruleType": "Basic",
        "priority": priority,
        "httpListener": ref("httpListeners", name),
        "backendAddressPool": ref("backendAddressPools", "p"),
        "backendHttpSettings": ref("backendHttpSettingsCollection", "s"),
    }


# The check itself


@pytest.mark.parametrize("what", ["changed", "dropped", "added", "reordered", "beside", "tags"])
def test_the_check_before_a_write_sees_every_change_of_others(what: str) -> None:
    two = [{"name": f"t{n}", "properties": {"backendAddresses": []}} for n in range(2)]
    before = gateway(default=True, backendAddressPools=two)
    after = copy.deepcopy(before)
    pools = after["properties"]["backendAddressPools"]
    if what == "changed":
        pools[1]["properties"]["backendAddresses"] = None
    elif what == "dropped":
        del pools[1]
    elif what == "added":
        pools.append(copy.deepcopy(pools[1]))
    elif what == "reordered":
        pools[1], pools[2] = pools[2], pools[1]
    elif what == "beside":
        after["properties"]["sku"] = {"name": "other"}
    else:
        after["tags"] = {"a": "b"}
    assert_foreign_untouched(before, copy.deepcopy(before), frozenset())
    with pytest.raises(UnsafePlanError):
        assert_foreign_untouched(before, after, frozenset())
    if what in ("changed", "dropped"):
        key = part_key("backendAddressPools", before["properties"]["backendAddressPools"][1]["name"])
        assert_foreign_untouched(before, after, frozenset({key}))


def test_only_prefix_and_record_together_make_a_part_ours() -> None:
    live = gateway(backendAddressPools=[POOL, {"name": "kk_prod_a", "properties": {}},
                                        {"name": "kk_prod_b", "properties": {}}])  # fmt: skip
    record = {part_key("backendAddressPools", name): PartRecord(sent="x") for name in ("kk_prod_a", "p")}
    policy = IngressSyncPolicy(gateway=GATEWAY)
    assert own_keys(live, "kk_prod_", record, policy) == {"backendAddressPools/kk_prod_a"}

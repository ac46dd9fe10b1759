"""Every predicate by itself: a pod that fits, and one that is like it but for one thing and does not.

The real kube-scheduler judges all of them mixed, in tests/e2e/test_scheduler_agreement.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from cluster_generator import csi_node, volume
from plan_replay import planned
from planning import LOCATION, Case, pod_document, stamp

ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
DISK_ZONE = "topology.disk.csi.azure.com/zone"
DRIVER = "disk.csi.azure.com"
GPU = "nvidia.com/gpu"
HERE, THERE = f"{LOCATION}-1", f"{LOCATION}-2"
Ask = dict[str, Any]


def required(*terms: Ask) -> Ask:
    return {"requiredDuringSchedulingIgnoredDuringExecution": list(terms)}


def node_affinity(*terms: Ask) -> Ask:
    rule = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    return {"affinity": {"nodeAffinity": rule}}


def label(key: str, operator: str, *values: str) -> Ask:
    return node_affinity({"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]})


def names(operator: str, *values: str) -> Ask:
    fields = [{"key": "metadata.name", "operator": operator, "values": list(values)}]
    return node_affinity({"matchFields": fields})


def tolerates(**toleration: str) -> Ask:
    return {"tolerations": [toleration]}


def taint(effect: str = "NoSchedule", value: str = "web") -> Ask:
    return {"key": "dedicated", "value": value, "effect": effect}


def container(**requests: str) -> Ask:
    return {"name": "more", "resources": {"requests": requests}}


def sidecar(**requests: str) -> Ask:
    return {**container(**requests), "restartPolicy": "Always"}


def port(number: int, protocol: str = "TCP", address: str = "") -> Ask:
    ports = [{"containerPort": 80, "hostPort": number, "protocol": protocol, "hostIP": address}]
    return {"containers": [{"name": "main", "ports": ports}]}


def near(key: str, app: str, **more: Any) -> Ask:
    term = {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}, **more}
    return {"affinity": {"podAffinity": required(term)}}


def far(key: str, app: str, **more: Any) -> Ask:
    term = {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}, **more}
    return {"affinity": {"podAntiAffinity": required(term)}}


def spread(key: str, skew: int = 1, **more: Any) -> Ask:
    constraint = {
        "topologyKey": key,
        "maxSkew": skew,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
        **more,
    }
    return {"labels": {"app": "web"}, "topologySpreadConstraints": [constraint]}


def claims(*names: str) -> Ask:
    return {"volumes": [{"name": one, "persistentVolumeClaim": {"claimName": one}} for one in names]}


def cluster(*others: Ask, node: Ask | None = None, elsewhere: Sequence[Ask] = ()) -> Case:
    """Node n1 in zone 1 with the pods `others`, and for each of `elsewhere` a node n2, n3, ... in zone 2 that
    has no room left and a pod like that; no pool may grow.
    """
    size = {"cpu": "4", "memory": "8Gi", "ephemeral-storage": "20Gi", "pods": "3", GPU: "1"}
    case = Case().pool("a", size, max=0, zones=("1", "2"), labels={"tier": "gold", "rank": "5"})
    disk = {DISK_ZONE: HERE}
    case.node("a", "n1", zone=HERE, labels=disk, **(node or {}))
    for number, ask in enumerate(others):
        case.pods.append(pod_document(f"there-{number}", node="n1", **ask))
    for number, ask in enumerate(elsewhere):
        name = case.node("a", f"n{number + 2}", zone=THERE)
        case.pods.append(pod_document(f"far-{number}", node=name, **ask))
        case.on(name, 2, "filler")
    case.more = {
        "csinodes": [csi_node("n1", {DRIVER: 2})],
        "namespaces": [{"metadata": {"name": "other", "labels": {"team": "b"}}}],
        "persistentvolumes": [
            *(volume(f"pv-here-{n}", "default", f"here-{n}", [HERE]) for n in range(3)),
            volume("pv-there", "default", "there", [THERE]),
            volume("pv-anywhere", "default", "anywhere", []),
        ],
        "persistentvolumeclaims": [
            *(claim(f"here-{n}", volumeName=f"pv-here-{n}") for n in range(3)),
            claim("there", volumeName="pv-there"),
            claim("anywhere", volumeName="pv-anywhere"),
            *(claim(one, storageClassName=one) for one in ("waits", "waits-here", "waits-there", "at-once")),
            selected(claim("waits-n2", storageClassName="waits"), "n2"),
        ],
        "storageclasses": [
            *(storage_class(name, zones) for name, zones in CLASSES.items()),
            {**storage_class("at-once", ()), "volumeBindingMode": "Immediate"},
        ],
    }
    return case


CLASSES: dict[str, tuple[str, ...]] = {"waits": (), "waits-here": (HERE,), "waits-there": (THERE,)}


def claim(name: str, **spec: str) -> Ask:
    return {"metadata": {"name": name, "namespace": "default"}, "spec": spec}


def selected(claim: Ask, node: str) -> Ask:
    claim["metadata"]["annotations"] = {"volume.kubernetes.io/selected-node": node}
    return claim


def storage_class(name: str, zones: tuple[str, ...]) -> Ask:
    where = [{"matchLabelExpressions": [{"key": DISK_ZONE, "values": list(zones)}]}]
    found = {"metadata": {"name": name}, "provisioner": DRIVER, "volumeBindingMode": "WaitForFirstConsumer"}
    return {**found, "allowedTopologies": where} if zones else found


def fits(case: Case, ask: Ask) -> bool:
    """Whether a pod that asks for this is to go to n1."""
    case.pods.append(pod_document("judged", **ask))
    said = case.decide().left("judged")
    assert said.reason != "FitsExistingNode" or "node n1 " in said.message
    return said.reason == "FitsExistingNode"


BIG = {"requests": {"cpu": "3"}}
FULL = [{"requests": {"cpu": "1m"}}] * 3
WEB, OTHER = {"labels": {"app": "web"}}, {"labels": {"app": "web"}, "namespace": "other"}
BLUE, GREEN = {"app": "web", "rev": "blue"}, {"app": "web", "rev": "green"}
ABSENT, TIERED = {"key": "absent", "operator": "Exists"}, {"key": "tier", "operator": "Exists"}
GOLD = {"nodeSelector": {"tier": "gold"}}
"""Of pods that could not be on a node of another tier."""

ONE_NODE: dict[str, tuple[Ask, Ask]] = {
    "cpu": ({"requests": {"cpu": "4"}}, {"requests": {"cpu": "4001m"}}),
    "memory": ({"requests": {"memory": "8Gi"}}, {"requests": {"memory": "8193Mi"}}),
    "ephemeral storage": (
        {"requests": {"ephemeral-storage": "20Gi"}},
        {"requests": {"ephemeral-storage": "21Gi"}},
    ),
    "extended resource": ({"requests": {GPU: "1"}}, {"requests": {GPU: "2"}}),
    "extended resource that no node has": (
        {"requests": {"example.com/fpga": "0"}},
        {"requests": {"example.com/fpga": "1"}},
    ),
    "several containers": (
        {"containers": [container(cpu="2"), container(cpu="2")]},
        {"containers": [container(cpu="2"), container(cpu="2001m")]},
    ),
    "init containers run one by one": (
        {**BIG, "initContainers": [container(cpu="4"), container(cpu="4")]},
        {**BIG, "initContainers": [container(cpu="4"), container(cpu="4001m")]},
    ),
    "sidecars run beside the containers": (
        {**BIG, "initContainers": [sidecar(cpu="1")]},
        {**BIG, "initContainers": [sidecar(cpu="1001m")]},
    ),
    "sidecars run beside init containers after them": (
        {"initContainers": [container(cpu="3"), sidecar(cpu="2")]},
        {"initContainers": [sidecar(cpu="2"), container(cpu="3")]},
    ),
    "overhead": ({**BIG, "overhead": {"cpu": "1"}}, {**BIG, "overhead": {"cpu": "1001m"}}),
    "overhead of an init container": (
        {"initContainers": [container(cpu="3")], "overhead": {"cpu": "1"}},
        {"initContainers": [container(cpu="3500m")], "overhead": {"cpu": "1"}},
    ),
    "pod-level resources": (
        {"requests": {"cpu": "1"}, "resources": {"requests": {"cpu": "4"}}},
        {"requests": {"cpu": "1"}, "resources": {"requests": {"cpu": "4001m"}}},
    ),
    "node selector": ({"nodeSelector": {"tier": "gold"}}, {"nodeSelector": {"tier": "silver"}}),
    "node affinity: In": (label("tier", "In", "silver", "gold"), label("tier", "In", "silver")),
    "node affinity: NotIn": (label("tier", "NotIn", "silver"), label("tier", "NotIn", "gold")),
    "node affinity: Exists": (label("tier", "Exists"), label("absent", "Exists")),
    "node affinity: DoesNotExist": (label("absent", "DoesNotExist"), label("tier", "DoesNotExist")),
    "node affinity: Gt": (label("rank", "Gt", "4"), label("rank", "Gt", "5")),
    "node affinity: Lt": (label("rank", "Lt", "6"), label("rank", "Lt", "5")),
    "node affinity: matchFields": (names("In", "n1"), names("In", "n2")),
    "node affinity: matchFields NotIn": (names("NotIn", "n2"), names("NotIn", "n1")),
    "node affinity: one term of several": (
        node_affinity({"matchExpressions": [ABSENT]}, {"matchExpressions": [TIERED]}),
        node_affinity({"matchExpressions": [ABSENT, TIERED]}),
    ),
    "the node for which a volume is being made": (claims("waits"), claims("waits-n2")),
    "zone of a bound volume": (claims("here-0"), claims("there")),
    "topologies of a storage class that waits": (claims("waits-here"), claims("waits-there")),
    "a class that makes volumes at once": (claims("waits"), claims("at-once")),
    "a claim that is not there": (claims("anywhere"), claims("absent")),
    "volumes that a node can attach": (claims("here-0", "here-1"), claims("here-0", "here-1", "here-2")),
}


@pytest.mark.parametrize("name", ONE_NODE)
def test_what_the_pod_alone_asks_for(name: str) -> None:
    good, bad = ONE_NODE[name]
    assert fits(cluster(), good)
    assert not fits(cluster(), bad)


TAINTS: dict[str, tuple[Ask, Ask, Ask]] = {
    "no toleration": (taint("PreferNoSchedule"), taint(), {}),
    "NoExecute": (taint("PreferNoSchedule"), taint("NoExecute"), {}),
    "Equal": (taint(), taint(value="db"), tolerates(key="dedicated", value="web")),
    "effect": (taint(), taint("NoExecute"), tolerates(key="dedicated", value="web", effect="NoSchedule")),
    "Exists": (
        taint(value="db"),
        {"key": "x", "effect": "NoSchedule"},
        tolerates(key="dedicated", operator="Exists"),
    ),
    "Gt": (taint(value="6"), taint(value="5"), tolerates(key="dedicated", operator="Gt", value="5")),
    "Lt": (taint(value="4"), taint(value="5"), tolerates(key="dedicated", operator="Lt", value="5")),
}


@pytest.mark.parametrize("name", TAINTS)
def test_taints_and_tolerations(name: str) -> None:
    good, bad, ask = TAINTS[name]
    assert fits(cluster(node={"taints": [good]}), ask)
    assert not fits(cluster(node={"taints": [bad]}), ask)


def test_any_taint_is_tolerated_by_exists_without_a_key() -> None:
    node = {"taints": [taint(), taint("NoExecute", "db")]}
    assert fits(cluster(node=node), tolerates(operator="Exists"))
    assert not fits(cluster(node=node), tolerates(operator="Exists", effect="NoSchedule"))


def test_a_cordoned_node_takes_only_who_tolerates_that() -> None:
    node = {"unschedulable": True}
    key = "node.kubernetes.io/unschedulable"
    assert fits(cluster(node=node), tolerates(key=key, operator="Exists"))
    assert not fits(cluster(node=node), {})


Others = Sequence[Ask]
ON_THE_NODE: dict[str, tuple[Others, Others, Ask]] = {
    "requests of pods that are there": (
        [BIG],
        [BIG, {"requests": {"cpu": "1m"}}],
        {"requests": {"cpu": "1"}},
    ),
    "number of pods": (FULL[:2], FULL, {}),
    "a port of the host": ([port(80)], [port(8080)], port(8080)),
    "a port and its protocol": ([port(80, "UDP")], [port(80)], port(80)),
    "a port and its address": (
        [port(80, address="10.0.0.1")],
        [port(80, address="10.0.0.2")],
        port(80, address="10.0.0.2"),
    ),
    "a port on all addresses": ([port(80, address="10.0.0.1")], [port(80)], port(80, address="10.0.0.2")),
    "a port against one on all addresses": ([port(81)], [port(80, address="10.0.0.1")], port(80)),
    "a volume that is attached already is attached once": (
        [claims("here-0", "here-1")],
        [claims("anywhere", "here-1")],
        claims("here-0", "here-1"),
    ),
    "volumes attached already": ([claims("here-0")], [claims("here-0", "here-1")], claims("here-2")),
    "anti-affinity": ([{"labels": {"app": "db"}}], [WEB], far(HOST, "web")),
    "anti-affinity of a pod that is there": ([far(HOST, "db")], [far(HOST, "web")], WEB),
    "anti-affinity in a namespace": ([OTHER], [WEB], far(HOST, "web")),
    "anti-affinity, namespaces": ([WEB], [OTHER], far(HOST, "web", namespaces=["other"])),
    "anti-affinity, namespaceSelector": (
        [WEB],
        [OTHER],
        far(HOST, "web", namespaceSelector={"matchLabels": {"team": "b"}}),
    ),
    "anti-affinity, every namespace": ([], [OTHER], far(HOST, "web", namespaceSelector={})),
    "anti-affinity, matchLabelKeys": (
        [{"labels": GREEN}],
        [{"labels": BLUE}],
        {"labels": BLUE, **far(HOST, "web", matchLabelKeys=["rev"])},
    ),
    "anti-affinity, mismatchLabelKeys": (
        [{"labels": BLUE}],
        [{"labels": GREEN}],
        {"labels": BLUE, **far(HOST, "web", mismatchLabelKeys=["rev"])},
    ),
    "affinity": ([WEB], [], near(HOST, "web")),
    "affinity, matchLabelKeys": (
        [{"labels": BLUE}],
        [{"labels": GREEN}],
        {"labels": {**BLUE, "app": "db"}, **near(HOST, "web", matchLabelKeys=["rev"])},
    ),
}


@pytest.mark.parametrize("name", ON_THE_NODE)
def test_what_pods_on_the_node_leave(name: str) -> None:
    good, bad, ask = ON_THE_NODE[name]
    assert fits(cluster(*good), ask)
    assert not fits(cluster(*bad), ask)


def test_the_first_of_pods_that_want_to_be_together_may_go_anywhere() -> None:
    assert fits(cluster(), {**WEB, **near(ZONE, "web")})
    assert not fits(cluster(elsewhere=[WEB]), {**WEB, **near(ZONE, "web")})


def test_affinity_and_anti_affinity_go_by_their_topology() -> None:
    def case(zone: str) -> Case:
        made = cluster(elsewhere=[WEB])
        made.nodes[1]["metadata"]["labels"][ZONE] = zone
        return made

    assert fits(case(THERE), far(ZONE, "web"))
    assert not fits(case(HERE), far(ZONE, "web"))
    assert fits(case(HERE), near(ZONE, "web"))
    assert not fits(case(THERE), near(ZONE, "web"))


# n1 in zone 1 may take a web pod unless zone 2 has fewer of them and could take it as far as can be seen
SPREADS: dict[str, tuple[tuple[Others, Others], tuple[Others, Others], Ask]] = {
    "maxSkew": (([], [{}]), ([WEB], [{}]), spread(ZONE)),
    "maxSkew of 2": (([WEB], [{}]), ([WEB, WEB], [{}]), spread(ZONE, 2)),
    "the other domain has as many": (([WEB], [WEB]), ([WEB, WEB], [WEB]), spread(ZONE)),
    "pods that are being deleted": (([{**WEB, "going": True}], [{}]), ([WEB], [{}]), spread(ZONE)),
    "hosts": (([], [{}]), ([WEB], [{}]), spread(HOST)),
    "minDomains, reached": (([WEB], [WEB]), ([WEB, WEB], [WEB]), spread(ZONE, minDomains=2)),
    "minDomains, not reached": (([], [WEB]), ([WEB], [WEB]), spread(ZONE, minDomains=3)),
    "matchLabelKeys": (
        ([{"labels": GREEN}], [{}]),
        ([{"labels": BLUE}], [{}]),
        {**spread(ZONE, matchLabelKeys=["rev"]), "labels": BLUE},
    ),
}


@pytest.mark.parametrize("name", SPREADS)
def test_spread(name: str) -> None:
    good, bad, ask = SPREADS[name]
    assert fits(going(cluster(*good[0], elsewhere=good[1])), ask)
    assert not fits(going(cluster(*bad[0], elsewhere=bad[1])), ask)


def going(case: Case) -> Case:
    """Pods with `going` in their spec are being deleted."""
    for pod in case.pods:
        if pod["spec"].pop("going", False):
            pod["metadata"]["deletionTimestamp"] = pod["metadata"]["creationTimestamp"]
    return case


def test_spread_counts_nodes_that_the_pod_could_not_have_only_if_told_to() -> None:
    def case() -> Case:
        made = cluster(WEB, elsewhere=[{}])
        made.nodes[1]["metadata"]["labels"]["tier"] = "silver"
        return made

    assert fits(case(), GOLD | spread(ZONE))
    assert not fits(case(), GOLD | spread(ZONE, nodeAffinityPolicy="Ignore"))


def test_spread_counts_nodes_with_taints_unless_told_not_to() -> None:
    def case() -> Case:
        made = cluster(WEB, elsewhere=[{}])
        made.nodes[1]["spec"]["taints"] = [taint()]
        return made

    assert fits(case(), spread(ZONE, nodeTaintsPolicy="Honor"))
    assert not fits(case(), spread(ZONE))


def test_spread_that_is_only_preferred_keeps_nobody_away() -> None:
    assert fits(cluster(WEB, elsewhere=[{}]), spread(ZONE, whenUnsatisfiable="ScheduleAnyway"))
    assert not fits(cluster(WEB, elsewhere=[{}]), spread(ZONE))


def test_a_node_without_the_label_is_in_no_domain() -> None:
    for ask, good in (
        (spread(ZONE), False),
        ({**WEB, **near(ZONE, "web")}, False),
        ({**WEB, **far(ZONE, "web")}, True),
    ):
        case = cluster()
        del case.nodes[0]["metadata"]["labels"][ZONE]
        assert fits(case, ask) is good


# Which pods ask for a node at all


def growing(**policy: Any) -> Case:
    return Case(policy=policy).pool("a", {"cpu": "1", "memory": "2Gi", "pods": "10"})


def test_a_gated_pod_asks_for_nothing() -> None:
    case = growing().pending(1, schedulingGates=[{"name": "wait"}]).pending(1, "free", schedulingGates=[])
    result = case.decide()
    assert (result.left("web-0").reason, result.left("free-0").reason) == ("Gated", "NewNode")


def test_a_pod_that_is_being_deleted_asks_for_nothing_and_holds_its_place() -> None:
    case = cluster({**BIG, "going": True})
    case.pods.append(pod_document("waits", requests={"cpu": "1"}, going=True))
    result = going(case).pending(1, requests={"cpu": "2"}).decide()
    assert "default/waits" not in {one.subject for one in result.decision.plan.left_alone}
    assert result.left("web-0").reason != "FitsExistingNode"


def test_pods_that_have_ended_hold_nothing() -> None:
    case = cluster(BIG)
    case.pods[0]["status"]["phase"] = "Succeeded"
    assert fits(case, {"requests": {"cpu": "4"}})


def test_room_that_a_pod_is_nominated_for_is_its_own() -> None:
    case = growing()
    case.node("a", "n1")
    case.pending(1, "web", requests={"cpu": "900m"}).pending(1, "db", requests={"cpu": "500m"})
    case.pods[-1]["status"]["nominatedNodeName"] = "n1"
    result = case.decide()
    assert (result.left("db-0").reason, result.left("web-0").reason) == ("FitsExistingNode", "NewNode")


def giving_way(seconds_left: float = 20, **victim: Any) -> Case:
    """Node n1 with a large pod that is being deleted for one of priority 9, and the pool may grow."""
    case = Case().pool("a", {"cpu": "1", "memory": "2Gi", "pods": "10"}, capacity=1)
    case.node("a", "n1")
    case.on("n1", 1, "low", requests={"cpu": "900m"}, **victim)
    case.pods[-1]["metadata"]["deletionTimestamp"] = stamp(timedelta(seconds=-seconds_left))
    case.pending(1, "high", requests={"cpu": "500m"}, priority=9)
    case.pods[-1]["status"]["nominatedNodeName"] = "n1"
    return case


def test_no_node_is_ordered_for_a_pod_that_others_give_way_to() -> None:
    result = giving_way().decide()
    assert (result.new, result.left("high-0").reason) == ({}, "RoomIsBeingMade")
    assert "node n1 for it, where 1 pod of a lower priority will end" in result.left("high-0").message


def test_room_that_others_make_is_for_nobody_else() -> None:
    result = giving_way().pending(1, "web", requests={"cpu": "300m"}).decide()
    assert (result.new, result.left("web-0").reason) == ({"a": 1}, "NewNode")


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (lambda: giving_way(-300), "it does not end"),
        (lambda: giving_way(priority=9), "its priority is no lower"),
        (lambda: giving_way().on("n1", 1, "stays", requests={"cpu": "100m"}, priority=10), ""),
        (lambda: giving_way().on("n1", 1, "stays", requests={"cpu": "600m"}), "others stay"),
    ],
)
def test_a_node_is_ordered_when_nobody_makes_enough_room(case: Callable[[], Case], why: str) -> None:
    result = case().decide()
    assert (result.left("high-0").reason == "NewNode") is bool(why)


def test_a_node_that_is_being_cleared_for_a_pod_stays() -> None:
    case = giving_way()
    case.policy["scaleDown"] = {"unneededTime": "0s", "utilizationThreshold": 1}
    result = case.decide()
    assert (result.removed, result.left("n1").reason) == ([], "WillBeUsed")
    assert "default/high-0" in result.left("n1").message


def test_pods_of_low_priority_use_what_is_spare_and_make_nothing_grow() -> None:
    case = growing(scaleUp={"minPriority": 0}).pending(1, "low", requests={"cpu": "600m"}, priority=-1)
    result = case.decide()
    assert (result.new, result.left("low-0").reason) == ({}, "LowPriority")
    case.node("a", "n1")
    assert case.decide().left("low-0").reason == "FitsExistingNode"


def test_a_new_node_has_room_for_pods_of_low_priority_too() -> None:
    case = growing(scaleUp={"minPriority": 0}).pending(3, "low", requests={"cpu": "400m"}, priority=-1)
    result = case.pending(1, "high", requests={"cpu": "600m"}).decide()
    assert (result.new, result.reasons("default/low")) == ({"a": 1}, {"NewNode": 1, "LowPriority": 2})


def test_the_higher_priority_gets_the_room_there_is() -> None:
    case = growing()
    case.node("a", "n1")
    case.pending(1, "low", requests={"cpu": "900m"}).pending(1, "high", requests={"cpu": "500m"}, priority=9)
    result = case.decide()
    assert (result.left("high-0").reason, result.left("low-0").reason) == ("FitsExistingNode", "NewNode")


# Pods that others open a place for


def test_a_pod_waits_for_its_company_though_that_is_smaller() -> None:
    case = growing().pending(1, "big", requests={"cpu": "600m"}, **near(HOST, "web"))
    result = case.pending(1, requests={"cpu": "300m"}, labels={"app": "web"}).decide()
    assert (result.new, result.reasons("default/")) == ({"a": 1}, {"NewNode": 2})


def test_a_pod_waits_for_its_company_on_nodes_there_are() -> None:
    case = cluster()
    case.pending(1, "big", requests={"cpu": "2"}, **near(HOST, "web"))
    result = case.pending(1, requests={"cpu": "1"}, labels={"app": "web"}).decide()
    assert result.reasons("default/") == {"FitsExistingNode": 2}


def test_a_spread_over_zones_takes_from_every_zones_pool() -> None:
    case = Case(policy={"scaleUp": {"strategy": ["price"]}})
    for zone, price in (("1", 0.1), ("2", 0.2), ("3", 0.3)):
        case.pool(f"z{zone}", {"cpu": "1", "pods": "1"}, size=1, zones=(zone,), pricePerHour=price)
    result = case.pending(5, requests={"cpu": "900m"}, **spread(ZONE)).decide()
    assert result.new == {"z1": 2, "z2": 2, "z3": 1}


def test_pods_are_spread_over_nodes_that_others_need_too() -> None:
    case = growing().pending(3, requests={"cpu": "100m"}, priority=9, **spread(HOST))
    scene = planned(case.pending(2, "db", requests={"cpu": "900m"}))
    web = [placement.row for placement in scene.board.placements if placement.group.priority == 9]
    assert (len(scene.offers[0].rows), sorted(web)) == (3, [0, 1, 2])


def test_pods_that_share_a_claim_are_in_the_zone_where_the_first_has_its_volume_made() -> None:
    case = cluster(node={"unschedulable": True}).pool("b", {"cpu": "1"}, zones=("1", "2"))
    for number in range(2):
        case.pods.append(pod_document(f"web-{number}", requests={"cpu": "900m"}, **claims("waits")))
    assert case.decide().new == {"b": 3}  # as Azure takes the zones in turn


# What is known of a node that is not there yet


@pytest.mark.parametrize(("runs_there", "new"), [({}, 2), ({"nodeSelector": {"gpu": "yes"}}, 1)])
def test_daemon_sets_take_their_part_of_a_new_node(runs_there: Ask, new: int) -> None:
    case = growing()
    spec = {**pod_document("log", requests={"cpu": "100m"}, **runs_there)["spec"]}
    template = {"metadata": {"labels": {"app": "log"}}, "spec": spec}
    case.more["daemonsets"] = [
        {"metadata": {"name": "log", "namespace": "default"}, "spec": {"template": template}}
    ]
    assert case.pending(2, requests={"cpu": "500m"}).decide().new == {"a": new}


def test_a_new_node_has_the_pools_labels_and_taints() -> None:
    dedicated = taint()
    case = Case().pool("a", {"cpu": "1"}, labels={"tier": "gold"}, taints=(dedicated,))
    case.pending(1, "good", nodeSelector={"tier": "gold"}, tolerations=[{"operator": "Exists"}])
    case.pending(1, "afraid", nodeSelector={"tier": "gold"})
    case.pending(1, "picky", nodeSelector={"tier": "silver"}, tolerations=[{"operator": "Exists"}])
    result = case.decide()
    found = [result.left(f"{name}-0").reason for name in ("good", "afraid", "picky")]
    assert found == ["NewNode", "NotTolerated", "NotSelected"]


def test_no_new_node_has_a_name_that_is_asked_for() -> None:
    case = Case().pool("a", {"cpu": "1"})
    case.pending(1, "named", **names("In", "n7")).pending(1, "unnamed", **names("NotIn", "n7"))
    result = case.decide()
    assert (result.left("named-0").reason, result.left("unnamed-0").reason) == ("NotSelected", "NewNode")


def test_a_new_node_is_in_a_zone_where_the_volume_is() -> None:
    case = cluster(node={"unschedulable": True})
    case.pool("b", {"cpu": "4"}, zones=("2",))
    case.pods += [pod_document("here", **claims("here-0")), pod_document("there", **claims("there"))]
    result = case.decide()
    assert result.new == {"b": 1}
    assert (result.left("there").reason, result.left("here").reason) == ("NewNode", "MaxSizeReached")

"""Worked scenarios of node autoscaling, S1 to S32: what cluster-autoscaler's and Karpenter's own tests
expect, and what their users' issues ask for. Those about acting are in tests/scenarios/test_autoscaling_*.py.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from planning import LOCATION, NOW, SETS, Case, pod_document, stamp

from shared.autoscaling.decide import decide
from shared.model.snapshot import AzureReading

SPREAD_ZONE = "topology.kubernetes.io/zone"
HOST = "kubernetes.io/hostname"


def spread(key: str, skew: int, labels: dict[str, str], **more: Any) -> dict[str, Any]:
    return {
        "topologyKey": key,
        "maxSkew": skew,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels},
        **more,
    }


def anti(key: str, labels: dict[str, str]) -> dict[str, Any]:
    term = {"topologyKey": key, "labelSelector": {"matchLabels": labels}}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def requests(cpu: str, memory: str = "", **more: str) -> dict[str, str]:
    return {"cpu": cpu, **({"memory": memory} if memory else {}), **more}


def test_s1_five_nodes_for_ten_pods_two_to_a_node() -> None:
    case = Case().pool("a", requests("1000m", "2000Mi"), size=1)
    assert case.pending(10, requests=requests("350m", "1000Mi")).decide().new == {"a": 5}


def test_s2_host_ports_take_a_node_each() -> None:
    case = Case().pool("a", requests("1000m", "5000Mi"), size=1)
    assert case.pending(8, requests=requests("200m", "1000Mi"), ports=[5555]).decide().new == {"a": 8}


def test_s3_the_big_pods_come_first_when_nodes_run_out() -> None:
    case = Case().pool("a", requests("1000m", "5000Mi"), size=1, max=6)
    case.pending(10, "small", requests=requests("50m", "1000Mi"))
    result = case.pending(10, "big", requests=requests("500m", "1000Mi")).decide()
    assert result.new == {"a": 5}
    assert result.reasons("default/big") == {"NewNode": 10}


def test_s4_a_zone_spread_that_one_zone_cannot_satisfy_grows_by_one_only() -> None:
    case = Case().pool("a", requests("1000m", "2000Mi"), zones=("1",))
    case.pool("b", requests("1000m", "2000Mi"), size=1, max=1, zones=("2",))
    labels = {"app": "web"}
    case.pending(
        8,
        requests=requests("20m", "100Mi"),
        labels=labels,
        topologySpreadConstraints=[spread(SPREAD_ZONE, 2, labels)],
    )
    result = case.decide()
    assert result.new == {"a": 1}
    assert result.reasons("default/web") == {"NewNode": 2, "MaxSizeReached": 6}


@pytest.mark.no_cover
def test_s5_cluster_autoscalers_benchmark_needs_no_more_than_its_2595_nodes() -> None:
    case = Case().pool("a", requests("1000m", "5000Mi", pods="100"), max=3000)
    case.policy["scaleUp"] = {"maxPerRun": 5000, "maxPerHour": 5000}
    case.pending(50_000, "small", requests=requests("50m", "100Mi"))
    result = case.pending(1_000, "big", requests=requests("95m", "190Mi")).decide()
    assert result.new["a"] <= 2595
    assert set(result.reasons("default/")) == {"NewNode"}


def test_s6_each_pod_gets_the_pool_that_it_fits() -> None:
    case = Case().pool("p1", {"cpu": "100m", "memory": "1000"}).pool("p2", {"cpu": "1000m", "memory": "100"})
    case.pending(1, "a", requests={"cpu": "900m"}).pending(1, "b", requests={"cpu": "2000m"})
    result = case.pending(1, "c", requests={"memory": "200"}).decide()
    assert result.new == {"p1": 1, "p2": 1}
    assert result.left("b-0").reason == "TooLarge"


def test_s7_the_clusters_memory_limit_stops_growth() -> None:
    case = Case(policy={"maxMemory": "1300Mi"}).pool("p1", requests("2000m", "100Mi"), size=1)
    case.pool("p2", requests("4000m", "1000Mi"), size=1)
    result = case.pending(3, requests=requests("2000m", "100Mi")).decide()
    assert result.new == {"p1": 2}
    assert result.reasons("default/web") == {"NewNode": 2, "ClusterLimit": 1}


def test_s8_the_clusters_core_limit_is_named() -> None:
    case = Case(policy={"maxCpu": "7"}).pool("a", requests("2000m", "4Gi"), size=3)
    result = case.pending(2, requests=requests("2000m")).decide()
    assert result.new == {}
    assert "maxCpu is 7" in result.left("web-0").message


@pytest.mark.parametrize(("strategy", "new"), [("least-waste", {"one": 3}), ("least-nodes", {"four": 1})])
def test_s9_the_policy_chooses_between_gpu_pools(strategy: str, new: dict[str, int]) -> None:
    case = Case(policy={"scaleUp": {"strategy": [strategy]}})
    for name, count in (("one", 1), ("two", 2), ("four", 4)):
        gpus = {"nvidia.com/gpu": str(count)}
        case.pool(name, {"cpu": f"{count}", "memory": f"{count}Gi", **gpus})
    pods = {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "1"}
    assert case.pending(3, requests=pods).decide().new == new


def test_s10_a_pool_that_is_used_as_a_whole_goes_from_nothing_to_all() -> None:
    def case(**policy: Any) -> Case:
        made = Case(policy=policy).pool("a", requests("1000m", "2Gi"), max=5 if not policy else 3, whole=True)
        made.pool("other", requests("1000m", "2Gi"), size=1, max=1)
        return made.pending(1, requests=requests("1000m"))

    assert case().decide().new == {"a": 5}
    assert case(maxCpu="3").decide().new == {}


@pytest.mark.parametrize(
    ("ask", "sizes"),
    [(1, [2, 3, 5, 5]), (2, [3, 3, 5, 5]), (4, [4, 4, 5, 5]), (10, [6, 6, 6, 6])],
)
def test_s11_similar_pools_are_balanced(ask: int, sizes: list[int]) -> None:
    case = Case(policy={"scaleUp": {"balance": True}})
    before = {"a": 1, "b": 3, "c": 5, "d": 5}
    for name, size in before.items():
        case.pool(name, requests("1000m", "2Gi"), size=size, max=10)
    new = case.pending(ask, requests=requests("1000m")).decide().new
    assert sorted(size + new.get(name, 0) for name, size in before.items()) == sizes


def test_s12_balancing_respects_each_pools_limit() -> None:
    case = Case(policy={"scaleUp": {"balance": True}})
    for name, most in (("a", 10), ("b", 2), ("c", 10)):
        case.pool(name, requests("1000m", "2Gi"), size=1, max=most)
    assert case.pending(5, requests=requests("1000m")).decide().new == {"a": 2, "b": 1, "c": 2}


def test_s13_nodes_that_are_on_their_way_are_counted() -> None:
    case = Case().pool("a", requests("1000m", "2Gi"), size=1, capacity=5)
    result = case.pending(1, requests=requests("550m")).decide()
    assert result.new == {}
    assert result.left("web-0").reason == "NodeOnItsWay"


@pytest.mark.parametrize(("minutes", "new"), [(5, {}), (20, {"a": 2})])
def test_s14_capacity_that_never_came_is_no_longer_counted_after_the_provision_time(
    minutes: int, new: dict[str, int]
) -> None:
    case = Case().pool("a", requests("1000m", "2Gi"), size=1, capacity=3)
    case.machines["a"] = [{"id": f"{SETS}/a/virtualMachines/0", "instanceId": "0"}]
    case.state = {"shortSince": {f"{SETS}/a": stamp(timedelta(minutes=minutes))}}
    assert case.pending(2, requests=requests("1000m")).decide().new == new


def unneeded(case: Case) -> Case:
    """Everything has been unneeded for an hour."""
    case.state["unneededSince"] = {one["metadata"]["name"]: stamp(timedelta(hours=1)) for one in case.nodes}
    case.policy.setdefault("scaleDown", {}).setdefault("utilizationThreshold", 1.0)
    return case


KEEP = {"cluster-autoscaler.kubernetes.io/scale-down-disabled": "true"}


@pytest.mark.parametrize(("target", "removed"), [("2000m", ["n1", "n2"]), ("500m", [])])
def test_s15_s16_nodes_go_when_all_their_pods_have_another_home(target: str, removed: list[str]) -> None:
    case = Case().pool("a", requests("1100m", "4Gi")).pool("b", requests(target, "4Gi"))
    for name in ("n1", "n2"):
        case.node("a", name)
        case.on(name, 2, requests=requests("500m"))
    case.node("b", "n3", annotations=KEEP)
    assert unneeded(case).decide().removed == removed


def test_s17_an_empty_node_that_an_evicted_pod_will_need_stays() -> None:
    case = Case().pool("a", requests("1000m", "4Gi"))
    case.node("a", "n1")
    case.node("a", "n2", is_full=True)
    case.state["draining"] = {"n2": {"pool": f"{SETS}/a"}}
    result = unneeded(case).pending(1, requests=requests("500m")).decide()
    assert result.removed == []
    assert result.left("n1").reason == "WillBeUsed"


@pytest.mark.no_cover
def test_s18_of_2000_nodes_at_40_per_cent_exactly_1200_go() -> None:
    case = Case().pool("a", requests("1000m", "64Gi", pods="200"), max=3000)
    case.policy["scaleDown"] = {"maxPerRun": 5000, "maxPerHour": 5000}
    for _ in range(2000):
        case.on(case.node("a"), 40, requests=requests("10m"))
    assert len(unneeded(case).decide().removed) == 1200


def test_s19_spread_over_zones_that_the_pool_does_not_have_leaves_pods_waiting() -> None:
    labels = {"app": "web"}
    case = Case().pool("a", requests("2000m", "4Gi"), zones=("1", "2"))
    case.pool("c", requests("2000m", "4Gi"), max=1, zones=("3",))
    node = case.node("c")
    case.on(node, 1, requests=requests("1100m"), labels=labels)
    result = case.pending(
        6,
        requests=requests("1100m"),
        labels=labels,
        topologySpreadConstraints=[spread(SPREAD_ZONE, 1, labels)],
    ).decide()
    assert result.new == {"a": 4}
    assert result.reasons("default/web")["NewNode"] == 4


def test_s20_min_domains_that_are_not_there_leave_one_pod_waiting() -> None:
    labels = {"app": "web"}
    case = Case().pool("a", requests("1000m", "4Gi"), zones=("1", "2"))
    constraint = spread(SPREAD_ZONE, 1, labels, minDomains=3)
    result = case.pending(
        3, requests=requests("900m"), labels=labels, topologySpreadConstraints=[constraint]
    ).decide()
    assert result.new == {"a": 2}
    assert result.reasons("default/web")["NewNode"] == 2


def test_s21_two_apps_spread_over_hosts_share_two_nodes() -> None:
    case = Case().pool("a", requests("4000m", "8Gi"), size=1)
    for app in ("x", "y"):
        labels = {"app": app}
        case.pending(
            2,
            app,
            requests=requests("500m"),
            labels=labels,
            topologySpreadConstraints=[spread(HOST, 1, labels)],
        )
    assert case.decide().new == {"a": 2}


def test_s22_zone_anti_affinity_takes_a_node_in_each_zone_at_once() -> None:
    labels = {"app": "web"}
    case = Case().pool("a", requests("4000m", "8Gi"), zones=("1", "2", "3"))
    case.pending(3, requests=requests("100m"), labels=labels, affinity=anti(SPREAD_ZONE, labels))
    assert case.decide().new == {"a": 3}


@pytest.mark.parametrize("small", [0, 20])
def test_s23_small_pods_fill_what_big_ones_leave(small: int) -> None:
    case = Case().pool("a", requests("8000m", "4Gi"))
    case.pending(40, "big", requests=requests("100m", "1800M"))
    assert case.pending(small, "small", requests=requests("100m", "400M")).decide().new == {"a": 20}


def test_s24_an_init_container_and_the_main_one_are_not_added() -> None:
    case = Case().pool("a", requests("2000m", "4Gi"))
    init = {"name": "init", "resources": {"requests": {"cpu": "2"}}}
    assert case.pending(1, requests=requests("1"), initContainers=[init]).decide().new == {"a": 1}


def test_s25_limits_of_volumes_count_on_a_node_on_its_way_too() -> None:
    case = Case().pool("a", requests("16000m", "64Gi"), size=1, capacity=2)
    driver = "disk.csi.azure.com"
    case.more["csinodes"] = [
        {"metadata": {"name": "a-000"}, "spec": {"drivers": [{"name": driver, "allocatable": {"count": 10}}]}}
    ]
    case.more["storageclasses"] = [
        {"metadata": {"name": "disk"}, "provisioner": driver, "volumeBindingMode": "WaitForFirstConsumer"}
    ]
    case.more["persistentvolumeclaims"] = []
    for number in range(6):
        names = [f"claim-{number}-{one}" for one in "ab"]
        case.more["persistentvolumeclaims"] += [
            {"metadata": {"name": name, "namespace": "default"}, "spec": {"storageClassName": "disk"}}
            for name in names
        ]
        volumes = [{"name": n, "persistentVolumeClaim": {"claimName": n}} for n in names]
        case.pods.append(pod_document(f"web-{number}", requests=requests("100m"), volumes=volumes))
    result = case.decide()
    assert result.new == {"a": 1}
    assert result.reasons("default/web") == {"NodeOnItsWay": 5, "NewNode": 1}


def test_s26_a_pod_larger_than_every_size_is_told_so() -> None:
    result = Case().pool("a", requests("4000m", "8Gi")).pending(1, requests=requests("64")).decide()
    assert result.new == {}
    assert (result.left("web-0").reason, "asks for 64" in result.left("web-0").message) == ("TooLarge", True)


def test_s27_pods_that_come_while_nodes_boot_get_only_what_is_missing() -> None:
    case = Case().pool("a", requests("4000m", "64Gi", pods="30"), max=2000, capacity=700)
    case.policy["scaleUp"] = {"maxPerRun": 5000, "maxPerHour": 5000}
    assert case.pending(30_000, requests=requests("10m")).decide().new == {"a": 300}


def test_s28_a_capacity_that_azure_raised_meanwhile_is_grown_from_there() -> None:
    case = Case().pool("a", requests("1000m", "2Gi"), size=86, capacity=86)
    (action,) = case.pending(5, requests=requests("1000m")).decide().decision.plan.actions
    assert (action.parameters["from"], action.parameters["to"]) == (86, 91)


def test_s29_a_pool_that_was_out_of_stock_is_passed_over() -> None:
    case = Case(policy={"prices": {"size-a": 0.1, "size-b": 0.2}})
    case.pool("a", requests("1000m", "2Gi")).pool("b", requests("1000m", "2Gi"))
    until = f"{NOW + timedelta(minutes=5):%Y-%m-%dT%H:%M:%SZ}"
    case.state = {"pools": {f"{SETS}/a": {"backoff": {"until": until, "reason": "StockOut", "failures": 1}}}}
    assert case.pending(1, requests=requests("1000m")).decide().new == {"b": 1}


def test_s30_a_gpu_pool_at_zero_gets_its_gpus_from_the_size() -> None:
    case = Case().pool("a", requests("1000m", "2Gi"))
    name = {"name": "gpu", "min": 0, "max": 5}
    case.policy["pools"].append(name)
    case.sets.append(
        {
            "id": f"{SETS}/gpu",
            "name": "gpu",
            "location": LOCATION,
            "sku": {"name": "Standard_NC6", "capacity": 0},
            "properties": {"orchestrationMode": "Uniform"},
        }
    )
    (skus,) = [one for one in case.azure if one.id.endswith("/skus")]
    assert skus.body is not None
    skus.body["value"].append(
        {
            "resourceType": "virtualMachines",
            "name": "Standard_NC6",
            "locations": [LOCATION],
            "capabilities": [
                {"name": "vCPUs", "value": "6"},
                {"name": "MemoryGB", "value": "56"},
                {"name": "GPUs", "value": "1"},
            ],
        }
    )
    assert case.pending(2, requests={"cpu": "1", "nvidia.com/gpu": "1"}).decide().new == {"gpu": 2}


def test_s32_fractions_are_exact() -> None:
    case = Case().pool("a", {"cpu": "1.5", "memory": "0.5Gi"})
    assert case.pending(1, requests={"cpu": "1500m", "memory": "512Mi"}).decide().new == {"a": 1}
    assert case.pending(1, "more", requests={"cpu": "1501m"}).decide().left("more-0").reason == "TooLarge"


def test_an_answer_that_failed_is_no_fact() -> None:
    case = Case().pool("a", requests("1000m", "2Gi"))
    observation = case.pending(1, requests=requests("500m")).observation()
    refused = AzureReading(id=SETS, status=429, read_at=NOW, code="TooManyRequests")
    blind = msgspec.structs.replace(observation, azure=(refused,))
    plan = decide(blind, blind.policy, NOW)
    assert plan.actions == ()
    assert [one.reason for one in plan.left_alone] == ["NoPool"]

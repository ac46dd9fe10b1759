"""How good plans are: against the best there is, found by trying everything, and against plain ways."""

from __future__ import annotations

import os
import random
import re
from itertools import product

import pytest
from cluster_generator import generate
from plan_replay import planned, spare_nodes
from planning import Case

from shared.autoscaling.policy import AutoscalingPolicy
from shared.model.plan import ActionKind

SIZES = {"small": (2, 4, 0.10), "wide": (4, 8, 0.19), "tall": (2, 16, 0.16), "large": (8, 32, 0.42)}
"""Cores, GiB and price of each pool."""


def priced(**policy: object) -> Case:
    case = Case(policy=dict(policy))
    for name, (cores, gib, price) in SIZES.items():
        case.pool(name, {"cpu": f"{cores}", "memory": f"{gib}Gi"}, pricePerHour=price, max=50)
    return case


def cost_of(new: dict[str, int]) -> float:
    return sum(SIZES[name][2] * count for name, count in new.items())


def claimed(case: Case) -> tuple[float, float]:
    """(cost, what the plan says it is above the optimum at most, as a fraction)."""
    result = case.decide()
    action = next(one for one in result.decision.plan.actions if one.kind is ActionKind.SCALE_UP)
    line = next(one for one in action.evidence if re.match(r"\d+ new node", one))
    found = re.search(r"at most (\d+) % above", line)
    assert found or "no plan can do with less" in line, line
    return cost_of(result.new), int(found[1]) / 100 if found else 0.0


def packs(pods: list[tuple[int, int]], nodes: list[tuple[int, int]]) -> bool:
    """Whether the pods fit on the nodes, by trying every way."""
    if not pods:
        return True
    (cpu, memory), rest = pods[0], pods[1:]
    tried = set()
    for at, (free_cpu, free_memory) in enumerate(nodes):
        if free_cpu < cpu or free_memory < memory or (free_cpu, free_memory) in tried:
            continue
        tried.add((free_cpu, free_memory))
        left = [*nodes[:at], (free_cpu - cpu, free_memory - memory), *nodes[at + 1 :]]
        if packs(rest, left):
            return True
    return False


def cheapest(pods: list[tuple[int, int]]) -> float:
    """The least cost of nodes that hold the pods."""
    hardest_first = sorted(pods, reverse=True)
    fleets = sorted(product(range(4), range(3), range(3), range(2)), key=_cost)
    for counts in fleets:
        nodes = [
            (cores * 1000, gib * 1024)
            for (cores, gib, _), count in zip(SIZES.values(), counts, strict=True)
            for _ in range(count)
        ]
        enough = sum(n[0] for n in nodes) >= sum(p[0] for p in pods)
        if enough and packs(hardest_first, nodes):
            return _cost(counts)
    raise AssertionError("none of the fleets is large enough")


def _cost(counts: tuple[int, ...]) -> float:
    return sum(price * count for (_, _, price), count in zip(SIZES.values(), counts, strict=True))


@pytest.mark.parametrize("seed", range(25))
def test_what_a_plan_says_about_the_optimum_is_true(seed: int) -> None:
    draw = random.Random(seed)
    pods = [
        (draw.choice((500, 900, 1500)), draw.choice((512, 1500, 3000))) for _ in range(draw.randint(2, 6))
    ]
    case = priced()
    for number, (cpu, memory) in enumerate(pods):
        case.pending(1, f"p{number}", requests={"cpu": f"{cpu}m", "memory": f"{memory}Mi"})
    cost, above = claimed(case)
    best = cheapest(pods)
    assert cost >= best - 1e-9
    assert cost <= best * (1 + above) + 1e-9, (cost, best, above)


def test_room_on_nodes_there_are_is_part_of_the_optimum() -> None:
    """Another way to fill the existing node might have spared the new one: no more is claimed."""
    case = Case().pool("a", {"cpu": "4", "memory": "16Gi"}, capacity=1, max=5)
    case.node("a")
    case.pending(1, "big", requests={"cpu": "3"}).pending(3, "small", requests={"cpu": "1200m"})
    action = case.decide().decision.plan.actions[0]
    assert not any("no plan can do with less" in line and "2 new" in line for line in action.evidence)


def test_mixed_sizes_are_used_where_they_are_cheaper() -> None:
    case = priced().pending(40, "cpu", requests={"cpu": "1000m", "memory": "1Gi"})
    case.pending(10, "memory", requests={"cpu": "200m", "memory": "7Gi"})
    cost, above = claimed(case)
    single = 8 * SIZES["large"][2]  # what one size for all takes
    assert cost < single
    assert above <= 0.25


def test_a_preferred_pool_is_used_first_though_it_costs_more() -> None:
    case = Case()
    case.pool("dear", {"cpu": "4", "memory": "16Gi"}, pricePerHour=0.5, priority=10, max=2)
    case.pool("cheap", {"cpu": "4", "memory": "16Gi"}, pricePerHour=0.1, max=10)
    result = case.pending(12, requests={"cpu": "1"}).decide()
    assert result.new == {"dear": 2, "cheap": 1}


def test_more_nodes_of_a_preferred_pool_are_no_aim_in_themselves() -> None:
    case = Case()
    case.pool("a", {"cpu": "4", "memory": "16Gi"}, pricePerHour=0.2, priority=10, max=20)
    case.pool("b", {"cpu": "4", "memory": "8Gi"}, pricePerHour=0.2, priority=10, max=20)
    result = case.pending(8, requests={"cpu": "1", "memory": "3Gi"}).decide()
    assert sum(result.new.values()) == 2


def test_prices_are_not_needed() -> None:
    assert AutoscalingPolicy().prices == {}
    case = (
        Case()
        .pool("a", {"cpu": "2", "memory": "8Gi"}, max=5)
        .pool("b", {"cpu": "4", "memory": "16Gi"}, max=5)
    )
    assert sum(case.pending(6, requests={"cpu": "1"}).decide().new.values()) <= 3


# No planned node can be spared


CLUSTERS = 1000 if os.environ.get("KUBEKEEPER_SWEEP") == "full" else 12
ORDERS = 10
"""Ways to place the pods again without a node."""


@pytest.mark.no_cover
def test_no_planned_node_can_be_spared() -> None:
    """The planner and this test draw different orders; a plan may miss one in a hundred times."""
    misses = {seed: found for seed in range(1, CLUSTERS + 1) if (found := _spare_of(seed))}
    in_order = [seed for seed, found in misses.items() if any(order == 0 for _, order in found)]
    print(f"{CLUSTERS} plans: {len(in_order)} could do with a node less in the plain order, {len(misses)} in")
    print(f"one of {ORDERS} orders: {misses}")
    assert not in_order
    assert len(misses) <= CLUSTERS / 50


def _spare_of(seed: int) -> list[tuple[str, int]]:
    case = generate(seed)
    return list(spare_nodes(case, planned(case), orders=ORDERS, seed=seed))

"""Replacing nodes by cheaper ones: only as an option, only for enough, and the new node comes first."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from planning import NOW, Case

PRICES = {"size-dear": 1.0, "size-cheap": 0.4}


def case(**consolidation: Any) -> Case:
    policy = {"consolidation": {"enabled": True, **consolidation}, "utilizationThreshold": 0.1}
    made = Case(policy={"prices": PRICES, "scaleDown": policy})
    made.pool("dear", {"cpu": "8", "memory": "32Gi"}).pool("cheap", {"cpu": "4", "memory": "16Gi"})
    return made


def test_a_dear_node_is_replaced_by_a_cheaper_one_that_holds_its_pods() -> None:
    made = case()
    made.on(made.node("dear", "old"), 3, requests={"cpu": "1"})
    result = made.decide()
    assert result.new == {"cheap": 1}
    (action,) = result.decision.plan.actions
    assert (action.reason, action.parameters["replaces"]) == ("Consolidation", ["old"])
    assert list(result.decision.memory["replacing"]) == ["old"]


def test_a_node_whose_pods_fit_elsewhere_needs_no_new_one() -> None:
    made = case()
    for name in ("one", "two"):
        made.on(made.node("cheap", name), 1, requests={"cpu": "1800m"})
    result = made.decide()
    assert result.new == {}
    (name,) = result.decision.memory["replacing"]
    made.state["replacing"] = result.decision.memory["replacing"]
    assert made.decide().removed == [name]


def test_two_half_empty_nodes_become_one() -> None:
    made = case()
    made.pool("big", {"cpu": "16", "memory": "64Gi"}, pricePerHour=1.2)
    for name in ("one", "two"):
        made.on(made.node("dear", name), 1, requests={"cpu": "4500m"})
    result = made.decide()
    assert result.new == {"big": 1}
    assert sorted(result.decision.memory["replacing"]) == ["one", "two"]


def test_a_saving_below_the_minimum_moves_nothing() -> None:
    made = case(minSaving=0.7)
    made.on(made.node("dear", "old"), 3, requests={"cpu": "1"})
    assert made.decide().decision.plan.actions == ()


def test_it_is_off_unless_asked_for() -> None:
    made = case(enabled=False)
    made.on(made.node("dear", "old"), 3, requests={"cpu": "1"})
    assert made.decide().decision.plan.actions == ()


def test_pods_that_must_not_be_moved_keep_their_node() -> None:
    made = case()
    made.on(made.node("dear", "old"), 3, requests={"cpu": "1"}, owner="")
    assert made.decide().decision.plan.actions == ()


def test_once_the_new_node_is_there_the_old_one_goes_and_the_new_one_stays() -> None:
    made = case()
    made.on(made.node("dear", "old"), 3, requests={"cpu": "1"})
    made.node("cheap", "new")
    made.state["replacing"] = {"old": f"{NOW + timedelta(minutes=9):%Y-%m-%dT%H:%M:%SZ}"}
    made.state["additions"] = [
        {"pool": "p", "count": 1, "at": f"{NOW - timedelta(minutes=2):%Y-%m-%dT%H:%M:%SZ}"}
    ]
    result = made.decide()
    assert result.removed == ["old"]
    assert result.left("new").reason == "WillBeUsed"


def test_a_replacement_that_took_too_long_is_thought_of_anew() -> None:
    made = case()
    made.on(made.node("dear", "old"), 3, requests={"cpu": "1"})
    made.node("cheap", "new", annotations={"cluster-autoscaler.kubernetes.io/scale-down-disabled": "true"})
    made.state["replacing"] = {"old": f"{NOW - timedelta(minutes=1):%Y-%m-%dT%H:%M:%SZ}"}
    result = made.decide()
    assert result.removed == []
    assert result.decision.memory["replacing"]["old"] > f"{NOW:%Y-%m-%dT%H:%M:%SZ}", "thought of anew"

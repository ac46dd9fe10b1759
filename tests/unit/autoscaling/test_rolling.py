"""Replacing a pool's machines: which step is next, and that no order of events takes too many away."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from planning import SETS, Case, stamp

from shared.autoscaling.rolling import Course, Do, Member, next_step

NOW = datetime(2026, 11, 26, 3, 0, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=3)


def member(name: str, **known: Any) -> Member:
    """A new machine whose node is well."""
    return Member(
        **{"machine": f"/{name}", "name": name, "node": name, "is_ready": True, "born": LONG_AGO, **known}
    )


def old(name: str, **known: Any) -> Member:
    return member(name, is_old=True, **known)


def booting(name: str, minutes: int = 2, **known: Any) -> Member:
    return member(name, node="", is_ready=False, born=NOW - timedelta(minutes=minutes), **known)


def unready(name: str, minutes: float = 10, **known: Any) -> Member:
    return member(name, is_ready=False, unready_since=NOW - timedelta(minutes=minutes), **known)


def leaving(name: str, **known: Any) -> Member:
    return old(name, is_leaving=True, **known)


def step(members: list[Member], *, capacity: int = -1, is_growing: bool = False, **course: Any) -> Any:
    wanted = Course(**{"size": 3, "most": 10, **course})
    found = len(members) if capacity < 0 else capacity
    return next_step(members, wanted, capacity=found, is_growing=is_growing, now=NOW)


@pytest.mark.parametrize(
    "members, course, do, what",
    [
        ([old("a"), old("b"), old("c")], {}, Do.GROW, 4),
        ([old("a"), old("b"), old("c")], {"surge": 2}, Do.GROW, 5),
        ([old("a"), old("b"), old("c")], {"surge": 9}, Do.GROW, 6),
        ([old("a"), old("b"), old("c")], {"surge": 9, "most": 5}, Do.GROW, 5),
        ([member("a"), member("b"), old("c")], {"surge": 2}, Do.GROW, 4),
        ([old("a"), old("b"), old("c"), booting("d")], {}, Do.WAIT, "d is not Ready yet"),
        ([old("a"), old("b"), old("c"), member("d")], {}, Do.REMOVE, ["a"]),
        ([old("a"), old("b"), old("c"), member("d"), member("e")], {"surge": 2}, Do.REMOVE, ["a", "b"]),
        ([leaving("a"), old("b"), old("c"), member("d")], {}, Do.WAIT, "a is being drained"),
        ([old("b"), old("c"), member("d")], {}, Do.GROW, 4),
        ([old("c"), member("d"), member("e"), member("f")], {}, Do.REMOVE, ["c"]),
        ([member("d"), member("e"), member("f")], {}, Do.DONE, None),
        ([], {"size": 0}, Do.DONE, None),
        # A pool at its maximum: one goes first, and its place is filled before the next goes.
        ([old("a"), old("b"), old("c")], {"most": 3}, Do.REMOVE, ["a"]),
        ([leaving("a"), old("b"), old("c")], {"most": 3}, Do.WAIT, "a is being drained"),
        ([old("b"), old("c")], {"most": 3}, Do.GROW, 3),
        ([old("b"), old("c"), booting("d")], {"most": 3}, Do.WAIT, "d is not Ready yet"),
        ([member("d"), member("e")], {"most": 3}, Do.GROW, 3),
        ([member("d"), member("e"), booting("f")], {"most": 3}, Do.WAIT, "f is not Ready yet"),
    ],
)  # fmt: skip
def test_the_next_step(members: list[Member], course: dict[str, Any], do: Do, what: Any) -> None:
    found = step(members, **course)
    assert found.do is do, found
    if do is Do.GROW:
        assert found.to == what
    elif do is Do.REMOVE:
        assert [one.name for one in found.members] == what
    elif what:
        assert what in found.message


@pytest.mark.parametrize(
    "sick, words",
    [
        (unready("x"), "node x is NotReady since 02:50:00 UTC"),
        (old("x", is_ready=False, unready_since=NOW - timedelta(minutes=10)), "node x is NotReady"),
        (booting("x", minutes=16), "machine x is no node after 15 minutes"),
        (booting("x", minutes=1, failure="AllocationFailed"), "machine x has failed: AllocationFailed"),
    ],
)
def test_the_first_unhealthy_machine_ends_it_before_anything_else(sick: Member, words: str) -> None:
    found = step([old("a"), old("b"), member("c"), member("d"), sick])
    assert (found.do, words in found.message) == (Do.STOP, True), found


def test_what_is_not_ready_for_a_moment_or_is_still_booting_is_waited_for() -> None:
    for wait in (unready("b", minutes=0.5, is_old=True), booting("b", minutes=14)):
        assert step([old("a"), wait, old("c"), member("d")]).do is Do.WAIT


def test_what_is_on_its_way_out_may_be_unhealthy() -> None:
    gone = leaving("a", is_ready=False, unready_since=NOW - timedelta(minutes=5))
    assert step([gone, old("b"), old("c"), member("d")]).do is Do.WAIT


def test_growth_under_way_and_machines_that_are_not_listed_yet_are_not_asked_for_again() -> None:
    everyone = [old("a"), old("b"), old("c")]
    assert step(everyone, is_growing=True).do is Do.WAIT
    assert step(everyone, capacity=4).do is Do.WAIT


def test_one_dead_node_is_replaced_among_others_that_are_dead_too() -> None:
    dead = unready("a", is_old=True)
    lenient = {"is_strict": False, "size": 4}
    assert step([dead, unready("b"), member("c"), member("d")], **lenient).to == 5
    found = step([dead, unready("b"), member("c"), member("d"), member("e")], **lenient)
    assert [one.name for one in found.members] == ["a"]


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_between_two_looks_there_are_enough_and_it_ends(seed: int) -> None:
    """Machines come when they like, lists lag, and looks are repeated."""
    draw = random.Random(seed)
    size, surge = draw.randrange(1, 9), draw.randrange(1, 5)
    course = Course(size=size, most=size + draw.randrange(4), surge=surge)
    pool, number = {f"o{one}": old(f"o{one}") for one in range(size)}, 0
    least = size if course.room else size - 1
    for _ in range(2000):
        unseen = [name for name, one in pool.items() if not one.is_ready and draw.random() < 0.3]
        seen = [one for name, one in pool.items() if name not in unseen]
        found = next_step(seen, course, capacity=len(pool), is_growing=draw.random() < 0.2, now=NOW)
        assert found.do is not Do.STOP, found
        if found.do is Do.DONE and not unseen:
            assert not any(one.is_old for one in pool.values()) and len(pool) == size
            return
        for _ in range(found.to - len(pool) if found.do is Do.GROW else 0):
            number += 1
            pool[f"n{number}"] = booting(f"n{number}")
        for one in found.members:
            pool[one.name] = msgspec.structs.replace(one, is_leaving=True)
        assert len(pool) <= size + course.room
        for name, one in list(pool.items()):
            if one.is_leaving and draw.random() < 0.3:
                del pool[name]
            elif not one.is_ready and draw.random() < 0.3:
                pool[name] = msgspec.structs.replace(one, is_ready=True, node=name)
        assert sum(one.is_ready and not one.is_leaving for one in pool.values()) >= least
    raise AssertionError("it never ended")


@pytest.mark.parametrize(
    ("seen_minutes_ago", "ended", "removed"),
    [(1, "", []), (20, "", ["new"]), (1, "all are of the latest model", ["new"])],
)
def test_a_pool_that_is_being_rolled_loses_no_node_to_scale_down(
    seen_minutes_ago: int, ended: str, removed: list[str]
) -> None:
    """The new node is empty until the old one is drained; an operation that died holds nothing for long."""
    case = Case().pool("agents", {"cpu": "2000m", "memory": "4Gi", "pods": "110"})
    case.node("agents", "new")
    case.state["unneededSince"] = {"new": stamp(timedelta(hours=1))}
    seen = stamp(timedelta(minutes=seen_minutes_ago))
    case.state["rolls"] = {"run": {"pool": f"{SETS}/agents", "seenAt": seen, "ended": ended}}
    result = case.decide()
    assert result.removed == removed
    assert removed or result.left("new").reason == "PoolIsRolling"

"""The invariants find what they are named for; what single writes break is in `test_rules`."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from disk_builders import NOW, POLICY, Scene, ago, disk, vm, write

from shared.disk_release import invariants
from shared.disk_release.decide import decide, verdicts
from shared.disk_release.invariants import INVARIANTS, Moment, Trace, violations
from shared.disk_release.state import Done, WriteState
from shared.model.disk import key
from shared.model.plan import ActionKind, Plan
from tests.unit.disk_release.test_decide import FENCED, dead, stopped, tainted, zombie
from tests.unit.disk_release.test_rules import action_of, looked_at


def moment(scene: Scene, kind: ActionKind, **changes: Any) -> Moment:
    seen = looked_at(scene)
    return replace(
        Moment(at=NOW, action=action_of(scene, kind), seen=seen, truth=seen, policy=POLICY), **changes
    )


def names(trace: Trace) -> set[str]:
    return {line.split(":")[0] for line in violations(trace)}


def test_all_of_them_are_there() -> None:
    expected = {f"I{n}" for n in range(1, 22)} | {f"L{n}" for n in range(1, 6)} | {"Corruption"}

    assert set(INVARIANTS) == expected
    assert violations(Trace()) == []


def test_damage_of_the_hidden_truth_is_a_violation() -> None:
    assert names(Trace(corruptions=("d1 on a",))) == {"Corruption"}


def test_an_older_instance_must_not_write_after_a_newer_one() -> None:
    newer = moment(dead(), ActionKind.POWER_OFF_VM, run=2)
    older = moment(zombie(), ActionKind.DETACH_DISK, run=1)

    assert names(Trace(moments=(newer, older))) >= {"I13"}
    assert "I13" not in names(Trace(moments=(older, newer)))


def test_a_write_must_be_announced_and_made_once() -> None:
    one = moment(zombie(), ActionKind.DETACH_DISK)

    assert names(Trace(moments=(replace(one, announced=False),))) == {"I14"}
    assert names(Trace(moments=(one, one))) == {"I14"}
    assert names(Trace(moments=(one,))) == set()


def test_a_detach_must_take_nothing_else() -> None:
    scene = tainted().attach("d2", "a")
    one = moment(scene, ActionKind.DETACH_DISK)
    right, wrong = scene.detach("d1", "a").build(), scene.detach("d2", "a").build()

    assert names(Trace(moments=(replace(one, after=right),))) == set()
    assert names(Trace(moments=(replace(one, after=wrong),))) == {"I15"}


def test_a_lun_must_not_be_shared_on_a_vm_that_goes_on() -> None:
    scene = zombie()
    action = action_of(scene, ActionKind.DETACH_DISK)
    scene.volume("d2", node="a", pod="db-1").change("attachments", "d2", lun=0)
    seen = looked_at(scene)

    trace = Trace(moments=(Moment(at=NOW, action=action, seen=seen, truth=seen, policy=POLICY),))

    assert "I16" in names(trace)


def test_credentials_go_to_the_configured_host_only() -> None:
    good, bad = "https://management.azure.com/op/1", "https://management.azure.com.example.org/op/1"

    assert names(Trace(polled=(good,))) == set()
    assert names(Trace(polled=(good, bad))) == {"I19"}


def test_a_plan_that_is_another_when_decided_again_is_found_out() -> None:
    observation = dead().build()
    other = Plan(automation="disk-release", cluster="prod", now=NOW)

    assert names(Trace(looks=((observation, other),))) == {"I21"}
    plan = decide(observation, POLICY, NOW)
    assert names(Trace(looks=((observation, plan),))) == set()


def test_a_release_that_takes_too_long() -> None:
    begun = {f"{key(disk('d1'))}@{key(vm('a'))}": ago(3600)}

    assert names(Trace(end=stopped().build(), begun=begun)) == {"L1"}
    assert names(Trace(end=stopped().detach("d1", "a").build(), begun=begun)) == set()
    assert names(Trace(end=stopped().build(), begun=begun, bound=timedelta(hours=2))) == set()


def test_the_same_disk_released_twice_within_the_window() -> None:
    one = moment(zombie(), ActionKind.DETACH_DISK, at=ago(1))
    parameters = one.action.parameters | {"epoch": 9}
    came_back = looked_at(zombie().disk("d1", owner_changed_at=NOW))
    again = replace(
        one, at=NOW, action=msgspec.structs.replace(one.action, parameters=parameters), truth=came_back
    )

    assert "L2" in names(Trace(moments=(one, again)))
    assert "L2" not in names(Trace(moments=(one, replace(again, truth=one.truth))))  # it never was free
    noted = msgspec.structs.replace(
        one.seen.state, done=(Done(disk=key(disk("d1")), vm=key(vm("a")), epoch=1, at=ago(60)),)
    )
    assert names(Trace(moments=(replace(one, seen=replace(one.seen, state=noted)),))) == {"L2"}


def test_an_overdue_write_is_settled_by_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    overdue = write(ActionKind.POWER_OFF_VM, WriteState.RUNNING, at=900, due=600)
    trace = Trace(end=dead().releasing("a", overdue).build())

    assert names(trace) == set()
    monkeypatch.setattr(invariants, "remember", lambda observation, now: observation.state)
    assert names(trace) == {"L3"}


def test_a_taint_of_ours_that_stays() -> None:
    end = stopped().taint("a", age=7200)

    assert names(Trace(end=end.build())) == {"L4"}
    assert names(Trace(end=end.releasing("a", FENCED, tainted=7200).build())) == set()


def test_the_waits_of_every_look_have_their_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    observation = Scene().silent("a", 20).build()
    trace = Trace(looks=((observation, decide(observation, POLICY, NOW)),))

    assert names(trace) == set()
    found = [msgspec.structs.replace(v, deadline=None) for v in verdicts(observation, POLICY, NOW)]
    monkeypatch.setattr(invariants, "verdicts", lambda *_: found)
    assert names(trace) == {"L5"}

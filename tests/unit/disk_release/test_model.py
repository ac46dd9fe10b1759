"""The whole of a small world: no interleaving with an adversary corrupts a disk or breaks an invariant.

`make test` explores a slice. KUBEKEEPER_SWEEP=full explores everything that one stroke of bad luck can lead
to, and of what two can lead to (millions of states) the first 400,000, breadth first. The numbers of states
are printed. See `model` for the world, its adversary and what is assumed.
"""

from __future__ import annotations

import os
import random
from functools import cache

import pytest

from shared.disk_release import rules
from shared.model.plan import ActionKind
from tests.unit.disk_release import model
from tests.unit.disk_release.model import (
    ATTACHED,
    ORDERS,
    Checker,
    Order,
    World,
    attachment,
    canonical,
    late_starts,
    settles,
    start,
    swapped_disks,
    swapped_slots,
)

pytestmark = pytest.mark.no_cover

FULL = os.environ.get("KUBEKEEPER_SWEEP") == "full"
SLICE = 400_000 if FULL else 10_000
FENCED_DETACH = ORDERS.index((ActionKind.DETACH_DISK, "fenced"))


@cache  # not a fixture: those are traced whatever the mark says
def explored() -> Checker:
    checker = Checker(faults=2 if FULL else 1, limit=SLICE)
    checker.explore()
    return checker


def test_no_interleaving_corrupts_a_disk_or_breaks_an_invariant(capsys: pytest.CaptureFixture[str]) -> None:
    checker = explored()
    said(checker, "a slice, breadth first", capsys)

    assert checker.found == [], "\n".join(checker.story(canonical(checker.found[0][1])))
    assert len(checker.parents) >= SLICE


def said(checker: Checker, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(
            f"\n{len(checker.parents)} states after at most {checker.faults} faults ({what};"
            " names do not matter)"
        )


@pytest.mark.skipif(not FULL, reason="KUBEKEEPER_SWEEP=full explores it all")
def test_no_single_fault_corrupts_a_disk_or_keeps_it(capsys: pytest.CaptureFixture[str]) -> None:
    checker = Checker(faults=1)
    checker.explore()
    said(checker, "every state", capsys)
    quiet = Checker(faults=0)
    worlds = {world._replace(faults=0) for world in checker.parents}

    assert checker.found == []
    assert [line for world in worlds if (line := settles(quiet, world))] == []


def test_from_every_state_on_all_comes_to_a_good_end_once_there_are_no_more_faults() -> None:
    """Both pods run where their disk is mounted, or it is reported why not; and no taint of ours stays."""
    checker = Checker(faults=0)
    worlds = {world._replace(faults=0) for world in explored().parents}
    bad = [line for world in worlds if (line := settles(checker, world))]

    assert bad == []
    assert checker.found == []


def test_a_pod_that_a_dead_node_keeps_without_its_disk_is_reported() -> None:
    """Two faults lead there: a VM is stopped, its disk released, the pod comes back, its kubelet dies."""
    world = model.put(start(0), 0, alive=0, ready=0, silent=1, viu=0, mounts=0)
    world = world._replace(owners=(-1, 1), going=1, attachments=((0, 0), (0, ATTACHED)))
    checker = Checker(faults=0)

    assert settles(checker, world) == ""
    assert checker.is_reported(world, 0) and not checker.is_reported(world, 1)


@pytest.mark.parametrize("name", late_starts(1))
def test_nothing_goes_wrong_late_in_a_story(name: str) -> None:
    """Deep into a release, in a world small enough: the adversary gets at one VM and one disk only."""
    checker = Checker(faults=2 if FULL else 1, limit=300_000 if FULL else 1_200, hit=1, symmetric=False)
    checker.explore(late_starts(checker.faults)[name])

    assert checker.found == []


# The reduction by symmetry


def test_names_do_not_matter_to_what_can_happen() -> None:
    """What follows from a world under other names is what follows from it, under other names."""
    checker = Checker(faults=1, limit=1_500)
    checker.explore()
    for world in random.Random(5).sample(sorted(checker.parents), 150):
        followers = {canonical(after) for _, after in checker.steps(world)}
        for renamed in (swapped_slots(world), swapped_disks(world), swapped_disks(swapped_slots(world))):
            assert {canonical(after) for _, after in checker.steps(renamed)} == followers


def test_the_smallest_of_equal_worlds_is_one_and_the_same() -> None:
    checker = Checker(faults=1, limit=600, symmetric=False)
    checker.explore()
    for world in checker.parents:
        both = swapped_disks(swapped_slots(world))
        names = {canonical(w) for w in (world, swapped_slots(world), swapped_disks(world), both)}
        assert len(names) == 1
        assert swapped_slots(swapped_slots(world)) == world
        assert swapped_disks(swapped_disks(world)) == world


def test_the_reduced_world_has_the_same_states_as_the_whole() -> None:
    whole, reduced = Checker(faults=0, symmetric=False), Checker(faults=0)
    beginning = late_starts(0)["plain detach failed"]
    whole.explore(beginning)
    reduced.explore(beginning)

    assert {canonical(world) for world in whole.parents} == set(reduced.parents)


# Would it find anything?


@pytest.mark.parametrize(
    ("rule", "beginning", "invariant"),
    [
        ("VmIsOff", "fenced", "I9"),
        ("VmIsGone", "gone", "I5"),
        ("VmIsRunning", "dead", "I7"),
        ("NodeIsSilent", "start", "I7"),
        ("NodeIsAlive", "zombie", "I1"),
        ("NodeIsNotTainted", "off", "I9"),
        ("NobodyWritesTheVm", "dead", "I13"),
        ("DisksAreDataDisks", "tainted", "I15"),
        ("AttachmentIsNotDeleting", "gone", "L2"),
    ],
)
def test_without_a_rule_the_explorer_finds_the_violation(rule: str, beginning: str, invariant: str) -> None:
    beginnings = late_starts(2) | {"start": start(2)}
    checker = Checker(
        faults=2, without=frozenset({rule}), limit=8_000, until=f"{invariant}:", hit=1, symmetric=False
    )
    checker.explore(beginnings[beginning])

    assert invariant in {line.split(":")[0] for line, _ in checker.found}


def stale_detach(world: World) -> World:
    """The decision to detach was made when it was right, and is carried out now."""
    return world._replace(orders=(Order(FENCED_DETACH, 0, model.FIRST, 1),))


@pytest.mark.parametrize(
    ("without", "beginning"),
    [
        ({"NothingAttachesThem"}, "tainted, attachment stays"),
        ({"VmIsOff", "NoPodUsesThem", "NothingAttachesThem", "KubernetesHadItsTurn"}, "dead"),
        ({"NodeIsAlive", "NodeDoesNotUseThem", "NoPodUsesThem", "NothingAttachesThem"}, "zombie"),
    ],
    ids=["a VM that is started again", "a VM that was never fenced", "a pod that came back"],
)
def test_without_a_defence_the_hidden_truth_shows_a_corrupted_disk(without: set[str], beginning: str) -> None:
    """The first of these is how the explorer found that a detach must not run beside a live attachment."""
    world = late_starts(2)[beginning]
    world = world if beginning == "zombie" else stale_detach(world)
    checker = Checker(
        faults=2, without=frozenset(without), limit=60_000, until="corruption", hit=1, symmetric=False
    )
    checker.explore(world)

    assert any("corruption" in line for line, _ in checker.found)


@pytest.mark.parametrize(("missing", "beginning"), [("A1", "zombie"), ("A2", "fenced")])
def test_what_is_assumed_is_needed(missing: str, beginning: str) -> None:
    """Without it even the right rules cannot save the disk: so it stands in the model's list."""
    checker = Checker(
        faults=2,
        assumptions=frozenset({"A1", "A2"} - {missing}),
        limit=60_000,
        until="corruption",
        hit=1,
        symmetric=False,
    )
    checker.explore(late_starts(2)[beginning])

    assert any("corruption" in line for line, _ in checker.found)


def test_every_kind_of_write_on_vms_and_attachments_of_the_model_exists() -> None:
    assert set(ORDERS) <= {(kind, str(ground)) for kind, ground in rules.REQUIRED}
    assert attachment(start(0), 0, 1, ATTACHED).attachments[0] == (ATTACHED, ATTACHED)

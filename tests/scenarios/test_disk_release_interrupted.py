"""A process that dies at any request it makes, in the middle of a release: the end is the same, and nothing
is written twice with effect.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from disk_release_world import Keeper

from sandbox.arm import QUOTED
from sandbox.arm.compute.machines import data_disks, disk_id_of
from sandbox.arm.state import Resource
from sandbox.asgi import Fault, on
from sandbox.scenario import World

pytestmark = pytest.mark.no_cover

IS_FULL = os.environ.get("KUBEKEEPER_SWEEP") == "full"
REQUESTS = 70
"""More than a pass makes; every third request by default, a different third for each pass."""
PASSES = ("fence", "taint", "detach", "end")


class Deaths:
    """The process of pass number `which` of those that act dies at request `at`."""

    def __init__(self, app: Keeper, which: str, at: int) -> None:
        self._app, self._which, self._at = app, which, at
        self.is_over = False
        app.next_death = self

    def __call__(self) -> int | None:
        if self.is_over or self._stage() != self._which:
            return None
        self.is_over = True
        return self._at

    def _stage(self) -> str:
        releases = self._app.state.get("releases") or {}
        release = next(iter(releases.values()), None)
        if release is None:
            return "fence" if not self._app.world.node(self._app.dead).is_ready else ""
        if "taintedAt" not in release:
            return "taint"
        return "end" if self._app.world.owner(self._app.disk) == "" else "detach"


@pytest.mark.parametrize("stage", PASSES)
def test_a_death_at_any_request_changes_nothing_but_the_time(stage: str, tmp_path: Path) -> None:
    offset, every = (0, 1) if IS_FULL else (PASSES.index(stage), 4)
    died = sum(_die(stage, at, tmp_path) for at in range(offset, REQUESTS, every))
    assert died > 5


def _die(stage: str, at: int, directory: Path) -> int:
    """One release with one death; how many there really were."""
    with World(serve=False) as world:
        app = dying_world(world, directory, fencesPerWindow=3, maxFencedPercent=100)
        deaths = Deaths(app, stage, at)
        app.until(lambda: moved(world), 900)
        app.until(lambda: is_closed(app), 900)
        assert deaths.is_over, "that stage was never reached"
        assert app.violations == app.broken_invariants() == [] == world.corruptions, app.describe()
        sent = [r.path.rpartition("/")[2] for r in app.writes()]
        assert sent.count("powerOff") == 1 and sent.count("attachDetachDataDisks") <= 1, app.describe()
        return app.deaths


def moved(world: World) -> bool:
    """Whether the database runs, and not where it was."""
    pod = next(iter(world.pods("db")), None)
    return pod is not None and pod.is_running and world.node(pod.node).is_ready


def is_closed(app: Keeper) -> bool:
    return not app.state.get("releases")


def dying_world(world: World, directory: Path, **policy: Any) -> Keeper:
    """A dead kubelet whose disk the driver's controller, being down, never detaches: every stage is ours."""
    world.cloud.marks_out_of_service = False
    world.arm.core.latencies = QUOTED
    world.add_nodes("a", "b", "c")
    world.add_stateful_set("db")
    world.advance(60)
    app = Keeper(world, directory, grace="0s", detachAfter="30s", **policy)
    app.dead, app.disk = world.pod("db-0").node, world.arm.id_of("Microsoft.Compute/disks", "db-0")
    _stop_detaching(world)
    world.kill_kubelet(app.dead)
    return app


def _stop_detaching(world: World) -> None:
    """The driver cannot detach; it lets go of what is free."""
    detach = world.disks._detach

    def refuse(disk: str, machine: Resource) -> None:
        if any(disk_id_of(entry).lower() == disk.lower() for entry in data_disks(machine)):
            raise RuntimeError("the driver may not write machines")
        detach(disk, machine)

    world.disks.__dict__["_detach"] = refuse


@pytest.mark.parametrize("action", ["powerOff", "attachDetachDataDisks"])
def test_a_lost_answer_is_looked_for_and_not_asked_again(action: str, tmp_path: Path) -> None:
    with World(serve=False) as world:
        app = dying_world(world, tmp_path)
        world.arm.fault(Fault(on("POST", action), lose_answer=True))
        app.until(lambda: moved(world), 900)
        assert [r.path.rpartition("/")[2] for r in app.asked if r.method == "POST"].count(action) == 1
        assert app.violations == app.broken_invariants() == [] == world.corruptions


def test_every_message_twice_does_everything_once(tmp_path: Path) -> None:
    with World(serve=False) as world:
        app = dying_world(world, tmp_path)
        for _ in range(400):
            app.nudge("Again")
            app.nudge("AndAgain")
            app.step(2.0)
        assert moved(world)
        assert [r.path.rpartition("/")[2] for r in app.writes()] == ["powerOff", "attachDetachDataDisks"]
        assert app.violations == app.broken_invariants() == app.poisoned == [] == world.corruptions

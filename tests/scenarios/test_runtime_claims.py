"""Two workers never both act: killed, expired and paused holders, with real processes on a real Azurite.

All of them wait for the same lease time (15 s is the least the service offers), so they wait together.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from scenarios import runtime_world as world

from sandbox.azurite import Azurite
from shared.bootstrap import Clients
from shared.clients.blob import TOMBSTONE
from shared.errors import LostLeaseError, NotFoundError
from shared.runtime.claim import Claim, State
from shared.runtime.message import Nudge, Received
from shared.runtime.nudge import send_nudge
from shared.work import work_off

pytestmark = [pytest.mark.azurite, pytest.mark.slow]

FROZEN = ("create", "commit", "delete", "save", "ensure")
CLUSTERS = [*FROZEN, "killed", "burst", "busy", "broken", "many", "kept", "late", "stuck"]


@dataclass
class Scene:
    clients: Clients
    settings: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]]
    trace: Path
    kept: Claim | None = None

    def start(self, name: str, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        """A worker, which is killed at the end if it still runs."""
        self.processes[name] = world.start_worker(self.settings, *arguments, **more)
        return self.processes[name]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Five holders frozen between check and write, one killed in its pass, and their leases run out."""
    directory = tmp_path_factory.mktemp("claims")
    with Azurite() as azurite:
        settings = world.environ(azurite.connection_string, directory, CLUSTERS)
        clients = Clients(settings)
        clients.blobs(world.EFFECTS).ensure()
        restore = world.install_probe()
        scene = Scene(clients, settings, {}, directory / "trace")
        try:
            _start_holders(scene, directory)
            scene.kept = clients.claims.acquire("kept", world.AUTOMATION)
            time.sleep(15.5)  # the one wait for all leases
            yield scene
        finally:
            for process in scene.processes.values():
                if process.poll() is None:
                    process.kill()
                process.wait()
            restore()


def _start_holders(scene: Scene, directory: Path) -> None:
    for what in FROZEN:
        scene.start(what, "stop-at", what, what)
    hold = directory / "hold"
    hold.touch()
    world.wish(scene.clients, "killed", "first")
    send_nudge(scene.clients, Nudge(cluster="killed", automation=world.AUTOMATION, reason="Test"))
    killed = scene.start(
        "killed", "once", world.AUTOMATION, PROBE_HOLD=str(hold), PROBE_TRACE=str(scene.trace)
    )
    for what in FROZEN:
        _until(lambda what=what: _is_stopped(scene.processes[what].pid), f"{what} to freeze")
    _until(lambda: _has_lines(scene.trace), "the pass to begin")
    killed.kill()  # kill -9 in the middle of its pass
    killed.wait()
    for cluster in (*FROZEN, "killed"):
        assert scene.clients.claims.acquire(cluster, world.AUTOMATION) is None, "the lease still stands"


def _until(condition: Callable[[], Any], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.02)


def _has_lines(trace: Path) -> bool:
    return trace.exists() and trace.stat().st_size > 0  # it is made a moment before it is written


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _take_over(scene: Scene, cluster: str) -> Claim:
    claim = scene.clients.claims.acquire(cluster, world.AUTOMATION)
    assert claim is not None, "the lease has run out, so the claim is free"
    assert claim.epoch == 2
    return claim


def _wake(scene: Scene, what: str) -> int:
    os.kill(scene.processes[what].pid, signal.SIGCONT)
    return scene.processes[what].wait(240)


def test_a_paused_holder_that_wakes_up_late_does_not_create_its_blob(scene: Scene) -> None:
    store = scene.clients.blobs(world.EFFECTS)
    with _take_over(scene, "create") as claim:
        assert [(s.intent.name, s.happened) for s in claim.settled] == [("create/late", False)]
        claim.create_blob(store, "create/new", b"new")
        assert _wake(scene, "create") == world.LOST
    assert [info.name for info in store.list("create/")] == ["create/new"]
    assert store.properties("create/late").metadata[TOMBSTONE] == "2"


def test_a_paused_holder_that_wakes_up_late_does_not_commit_its_blocks(scene: Scene) -> None:
    store = scene.clients.blobs(world.EFFECTS)
    with _take_over(scene, "commit"):
        assert _wake(scene, "commit") == world.LOST
    assert list(store.list("commit/")) == []
    assert "commit/late" not in store.list_uncommitted("commit/")


def test_a_deletion_announced_by_a_paused_holder_is_carried_out_before_anything_new(scene: Scene) -> None:
    """Else it could strike later, when the new holder already builds on the blob."""
    store = scene.clients.blobs(world.EFFECTS)
    with _take_over(scene, "delete"):
        with pytest.raises(NotFoundError):
            store.properties("delete/doomed")
        later = store.create("delete/doomed", b"of the new holder")
        assert _wake(scene, "delete") == world.LOST
        assert store.properties("delete/doomed").etag == later


def test_a_paused_holder_that_wakes_up_late_does_not_save_its_state(scene: Scene) -> None:
    with _take_over(scene, "save") as claim:
        claim.save({"new": True})
        assert _wake(scene, "save") == world.LOST
    assert scene.clients.claims.state("save", world.AUTOMATION).automation == {"new": True}


def test_a_paused_holder_notices_at_its_next_check(scene: Scene) -> None:
    with _take_over(scene, "ensure"):
        assert _wake(scene, "ensure") == world.LOST


def test_a_holder_killed_in_its_pass_is_replaced_after_its_lease_and_the_work_done_once(scene: Scene) -> None:
    send_nudge(scene.clients, Nudge(cluster="killed", automation=world.AUTOMATION, reason="Tick"))
    worker = scene.start("second", "once", world.AUTOMATION, PROBE_TRACE=str(scene.trace))
    assert worker.wait(240) == 0
    assert len(world.effects(scene.clients, "killed")) == 1
    assert scene.clients.claims.state("killed", world.AUTOMATION).epoch == 2
    words = [line.split()[1:4:2] for line in scene.trace.read_text().splitlines()]
    first, second = str(scene.processes["killed"].pid), str(worker.pid)
    assert words == [[first, "begin"], [second, "begin"], [second, "end"]]


def test_a_holder_that_is_only_busy_keeps_its_claim_beyond_the_lease_time(scene: Scene) -> None:
    assert scene.kept is not None
    assert scene.clients.claims.acquire("kept", world.AUTOMATION) is None
    with scene.kept as claim:
        claim.ensure()
        claim.create_blob(scene.clients.blobs(world.EFFECTS), "kept/blob", b"")
    assert scene.clients.claims.state("kept", world.AUTOMATION).intents == ()


def test_a_run_that_never_ends_does_not_hold_on_for_ever(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = scene.clients.claims.acquire("stuck", world.AUTOMATION)
    assert claim is not None
    monkeypatch.setattr("shared.runtime.claim.MAX_HOLD", timedelta(0))
    claim._renewed_at -= 15
    with pytest.raises(LostLeaseError, match="it was held for more than"):
        claim.ensure()


def test_a_lease_broken_by_hand_stops_its_holder(scene: Scene) -> None:
    claim = scene.clients.claims.acquire("broken", world.AUTOMATION)
    assert claim is not None
    store = scene.clients.blobs("kubekeeper")
    store.break_lease(f"broken/{world.AUTOMATION}.lease")
    other = scene.clients.claims.acquire("broken", world.AUTOMATION)
    assert other is not None
    with other:
        with pytest.raises(LostLeaseError, match="lost the claim on etcd-backup of cluster 'broken'"):
            claim.ensure()
        with pytest.raises(LostLeaseError):
            claim.create_blob(scene.clients.blobs(world.EFFECTS), "broken/late", b"")
    assert world.effects(scene.clients, "broken") == []


def test_500_nudges_during_a_pass_cause_exactly_one_more(scene: Scene, tmp_path: Path) -> None:
    hold, trace = tmp_path / "hold", tmp_path / "trace"
    hold.touch()
    world.wish(scene.clients, "busy", "first")
    more = {"PROBE_HOLD": str(hold), "PROBE_TRACE": str(trace)}
    nudge = Nudge(cluster="busy", automation=world.AUTOMATION, reason="Test")
    send_nudge(scene.clients, nudge)
    first = scene.start("first", "drain", **more)
    _until(lambda: _has_lines(trace), "the pass to begin")
    _send_many(scene.clients, nudge, 500)
    others = [scene.start(f"other {number}", "drain", **more) for number in range(2)]
    _until(lambda: scene.clients.queue(world.AUTOMATION).count() <= 1, "the burst to be taken off")
    hold.unlink()
    assert [process.wait(240) for process in (first, *others)] == [0, 0, 0]
    assert [line.split()[3] for line in trace.read_text().splitlines()] == ["begin", "end"] * 2
    assert len(world.effects(scene.clients, "busy")) == 1
    state = scene.clients.claims.state("busy", world.AUTOMATION)
    assert (state.begun, state.ended) == (2, 2)
    assert not scene.clients.claims.is_dirty("busy", world.AUTOMATION, 2)
    assert scene.clients.queue(world.AUTOMATION).count() == 0


def test_200_nudges_that_lie_in_the_queue_cause_at_most_two_passes(scene: Scene, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    nudge = Nudge(cluster="burst", automation=world.AUTOMATION, reason="Test")
    _send_many(scene.clients, nudge, 200)
    workers = [scene.start(f"burst {number}", "drain", PROBE_TRACE=str(trace)) for number in range(2)]
    assert [process.wait(240) for process in workers] == [0, 0]
    lines = [line.split()[3] for line in trace.read_text().splitlines()]
    assert lines in (["begin", "end"], ["begin", "end"] * 2)
    assert scene.clients.queue(world.AUTOMATION).count() == 0


def test_a_nudge_whose_pass_another_worker_has_just_made_causes_none(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of that pass lies between this worker's look and its claim."""
    nudge = Nudge(cluster="late", automation=world.AUTOMATION, reason="Test", after=0)
    look = scene.clients.claims.state
    message = Received(id="1", body=nudge.encode().encode(), dequeue_count=1, inserted_at=None)

    def looks_too_early(cluster: str, automation: str) -> State:
        state = look(cluster, automation)
        monkeypatch.undo()
        work_off(Clients(scene.settings), world.AUTOMATION, message)
        return state

    monkeypatch.setattr(scene.clients.claims, "state", looks_too_early)
    work_off(scene.clients, world.AUTOMATION, message)
    state = look("late", world.AUTOMATION)
    assert (state.begun, state.ended, state.epoch) == (1, 1, 2)


def test_of_many_processes_that_want_the_claim_at_once_one_gets_it_and_epochs_only_grow(scene: Scene) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def attempt(_number: int) -> tuple[float, float, int] | None:
        claim = Clients(scene.settings).claims.acquire("many", world.AUTOMATION)
        if claim is None:
            return None
        with claim:
            began = time.monotonic()
            time.sleep(0.3)
            return began, time.monotonic(), claim.epoch

    with ThreadPoolExecutor(8) as pool:
        held = sorted(filter(None, pool.map(attempt, range(8))))
    assert [epoch for _, _, epoch in held] == list(range(1, len(held) + 1))
    assert all(end <= begin for (_, end, _), (begin, _, _) in pairwise(held)), "two held it at once"


def _send_many(clients: Clients, nudge: Nudge, count: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    queue = clients.queue(nudge.automation)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: queue.send(nudge.encode()), range(count)))

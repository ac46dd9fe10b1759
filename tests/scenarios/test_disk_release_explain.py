"""`keeper plan`, `snapshot` and `explain` for disks, over real HTTP and a real Azurite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper import Keeper

from sandbox.failover import AUTOMATION, BEFORE, FAILURES, Kubekeeper, Stage, new_world
from shared.clients.blob import blob_store
from shared.disk_release.proof import read_certificate
from shared.runtime.claim import CONTAINER
from shared.runtime.evidence import blob_name, evidence_id

pytestmark = pytest.mark.azurite


@pytest.fixture(scope="module")
def stage(storage: str) -> Iterator[tuple[Stage, Kubekeeper]]:
    """A node that has died, its machine fenced, its disk moved."""
    with new_world(cloud_taints=False) as world:
        world.advance(BEFORE)
        disk = world.arm.id_of("Microsoft.Compute/disks", "db-0")
        stage, app = Stage(world, disk, world.pod("db-0").node), Kubekeeper(storage, grace="0s")
        stage.began = world.seconds
        FAILURES["kubelet"].happen(world, stage.dead)
        while "running" not in stage.seconds:
            world.advance(1)
            stage.look()
            app.look(stage)
        yield stage, app
        app.close()


@pytest.fixture
def keeper(stage: tuple[Stage, Kubekeeper], capsys: pytest.CaptureFixture[str]) -> Keeper:
    return Keeper(stage[1].clients.environ, capsys)


@pytest.fixture
def proof(stage: tuple[Stage, Kubekeeper]) -> str:
    """The id of the fence's."""
    app = stage[1]
    entries = app.clients.journal.entries([(app.cluster, AUTOMATION)])
    return next(e.data["evidence"] for e in entries if e.data.get("event") == "FenceBegun")


def test_a_proof_is_shown_and_checked_again(keeper: Keeper, proof: str) -> None:
    printed = keeper("explain", proof)
    assert printed.code == 0 and printed.err == ""
    assert "verdict FenceAndRelease (S1)" in printed.out and "checked again: sound" in printed.out
    assert keeper("explain", proof, "--json").document["kind"] == "certificate/v1"


def test_a_proof_that_does_not_hold_is_said_and_exits_1(
    stage: tuple[Stage, Kubekeeper], keeper: Keeper, proof: str
) -> None:
    cluster, environ = stage[1].cluster, stage[1].clients.environ
    store = blob_store(environ, CONTAINER)
    document = json.loads(store.read(blob_name(cluster, AUTOMATION, proof)).data)
    document["facts"]["azure"][0]["machine"]["power"] = "stopped"
    forged = json.dumps(document).encode()
    store.create(blob_name(cluster, AUTOMATION, evidence_id(forged)), forged)
    printed = keeper("explain", evidence_id(forged))
    assert printed.code == 2 and "was changed" in printed.err

    document["digest"] = _digest(document)
    forged = json.dumps(document).encode()
    store.create(blob_name(cluster, AUTOMATION, evidence_id(forged)), forged)
    assert read_certificate(forged).action.kind == "PowerOffVM"
    printed = keeper("explain", evidence_id(forged))
    assert printed.code == 1 and "checked again: NOT SOUND" in printed.out


def _digest(document: dict[str, object]) -> str:
    import hashlib

    from shared.model.plan import canonical_json

    return hashlib.sha256(canonical_json(document | {"digest": ""})).hexdigest()


def test_a_proof_that_is_not_there_is_one_line(keeper: Keeper) -> None:
    printed = keeper("explain", "ev-nothing")
    assert printed.code == 2
    assert (
        printed.err == "keeper: there is no evidence 'ev-nothing'; ids stand in the journal and in events\n"
    )


def test_a_plan_from_a_snapshot_is_the_plan(
    stage: tuple[Stage, Kubekeeper], keeper: Keeper, tmp_path: Path
) -> None:
    file = tmp_path / "disks.json"
    assert keeper("snapshot", "disk-release", "-o", str(file)).code == 0
    plans = [keeper("plan", "disk-release", "--from", str(file), "--json").document for _ in range(2)]
    assert plans[0] == plans[1] and plans[0]["automation"] == "disk-release"
    assert stage[1].clients.environ["DEMO_TOKEN"] not in file.read_text()


def test_the_courses_of_a_dead_node_are_as_the_table_says() -> None:
    from sandbox.failover import HealthCheck, Helper, Impatient, run

    dead = FAILURES["kubelet"]
    assert run(dead, "nobody", Helper(), limit=900).running is None
    by_force = run(dead, "by force", Impatient())
    assert by_force.corruptions == 1 and by_force.running and by_force.running > 600
    checked = run(dead, "health check", HealthCheck())
    assert checked.corruptions == 0 and checked.running and 400 < checked.running < 600

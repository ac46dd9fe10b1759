"""Backups of a real etcd on a real Azurite: taken, proven, built upon, found bad, thinned out."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import timedelta

import msgspec
import pytest
from scenarios.etcd_backup_world import World, only, statuses, story

from sandbox.etcd import EtcdCluster
from sandbox.kubedata import Loaded
from shared.errors import NotFoundError, SettingsError
from shared.etcd_backup import operations
from shared.etcd_backup.act import act
from shared.etcd_backup.chain import open_chain, read_manifest
from shared.etcd_backup.policy import Encryption, EtcdBackupPolicy, Retention
from shared.model.backup import Kind, VerdictState
from shared.model.plan import Action, ActionKind, Plan, Status
from shared.operations.catalogue import (
    BackupParameters,
    DefragParameters,
    Parameters,
    StoredBackupParameters,
)

pytestmark = [pytest.mark.azurite, pytest.mark.etcd]

MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    """One member with Kubernetes-like data, history compacted once as the API server does."""
    with EtcdCluster.start(extra=["--unsafe-no-fsync"]) as cluster:
        loaded = cluster.seed(8_000_000)
        cluster.client().compact(loaded.revision)
        cluster.loaded = loaded  # type: ignore[attr-defined]
        yield cluster


@pytest.fixture
def world(storage: str, etcd: EtcdCluster) -> World:
    return World(storage, etcd.connection(), etcd.environ)


def loaded_of(etcd: EtcdCluster) -> Loaded:
    return etcd.loaded  # type: ignore[attr-defined, no-any-return]


def test_the_first_pass_takes_a_full_that_the_member_confirms(world: World, etcd: EtcdCluster) -> None:
    outcomes = world.reconcile()
    assert statuses(outcomes) == [("Backup", "Succeeded"), ("Verify", "Succeeded")]
    (record,) = world.records()
    assert (record.kind, record.verdict) == (Kind.FULL, VerdictState.VERIFIED)
    assert record.revision == etcd.status(0).revision
    manifest = read_manifest(world.store, record.name)
    assert manifest.source.member_name == etcd.members[0].name
    assert manifest.timings.stream_seconds > 0
    data = only(outcomes, ActionKind.VERIFY).data
    assert data["hashKv"] == etcd.client().hash_kv(etcd.endpoints[0]).hash


def test_nothing_is_done_when_nothing_is_due(world: World) -> None:
    world.policy = EtcdBackupPolicy(schedule="0 0 1 1 *", container=world.container)
    assert len(world.reconcile()) == 2
    assert world.reconcile() == []


def test_a_delta_holds_what_changed_and_rebuilds_to_the_bytes_etcd_sent(
    world: World, etcd: EtcdCluster
) -> None:
    world.reconcile()
    etcd.churn(loaded_of(etcd), 2)
    outcomes = world.reconcile(2 * MINUTE)
    assert statuses(outcomes) == [("Backup", "Succeeded"), ("Verify", "Succeeded")]
    full, delta = world.records()
    assert (delta.kind, delta.parent, delta.verdict) == (Kind.DELTA, full.name, VerdictState.VERIFIED)
    assert delta.stored_bytes * 5 < full.stored_bytes
    chain = open_chain(world.store, delta.name)
    assert sum(len(piece) for piece in chain.stream()) == delta.database_bytes + 32


def test_a_flipped_bit_is_found_and_the_next_backup_stands_alone(world: World, etcd: EtcdCluster) -> None:
    world.reconcile()
    (record,) = world.records()
    world.corrupt(record.data, offset=1000)
    for name in record.verdict_names:
        world.store.delete(name)
    outcomes = world.reconcile(2 * MINUTE)
    backup, just_taken, found = outcomes
    assert backup.data["kind"] == "full"
    assert "a full was taken instead" in backup.message
    assert just_taken.status is Status.SUCCEEDED
    assert found.status is Status.FAILED
    assert "frame 0" in found.data["place"]
    assert found.data["final"] is True
    states = [r.verdict for r in world.records()]
    assert states == [VerdictState.BAD, VerdictState.VERIFIED]


def test_what_retention_lets_go_is_deleted_with_all_its_blobs(world: World, etcd: EtcdCluster) -> None:
    world.policy = msgspec.structs.replace(
        world.policy,
        max_chain=0,
        retention=Retention(hourly=1, daily=0, weekly=0, monthly=0),
    )
    world.reconcile()
    world.reconcile(timedelta(hours=3))
    world.reconcile(timedelta(hours=3))
    outcomes = world.reconcile(timedelta(hours=3))
    pruned = [o for o in outcomes if o.action.kind is ActionKind.PRUNE]
    assert pruned
    assert {o.status for o in pruned} == {Status.SUCCEEDED}
    left = world.records()
    names = world.blob_names()
    for outcome in pruned:
        assert outcome.action.target not in [record.name for record in left]
        assert not [name for name in names if name.startswith(outcome.action.target.removesuffix(".json"))]
    assert {name for record in left for name in record.blob_names} == set(names)


def test_a_parent_that_got_a_child_meanwhile_is_not_pruned(world: World, etcd: EtcdCluster) -> None:
    world.reconcile()
    etcd.churn(loaded_of(etcd), 1, generation=2)
    world.reconcile(2 * MINUTE)
    full, delta = world.records()
    stale = Action(
        kind=ActionKind.PRUNE,
        target=full.name,
        reason="Expired",
        message="-",
        parameters={"backup": full.name, "blobs": list(full.blob_names)},
    )
    with world.claim() as claim, story.open_place(world.cluster, world.clients, claim) as place:
        plan = Plan(automation="etcd-backup", cluster=world.name, now=world.clients.now(), actions=(stale,))
        (outcome,) = act(plan, place)
    assert outcome.status is Status.SKIPPED
    assert delta.name in outcome.message
    assert len(world.records()) == 2


def test_an_encrypted_chain_is_proven_and_useless_without_its_key(world: World, etcd: EtcdCluster) -> None:
    world.environ["BACKUP_KEY"] = base64.b64encode(bytes(range(32))).decode()
    world.policy = msgspec.structs.replace(world.policy, encryption=Encryption(key_file="setting:BACKUP_KEY"))
    world.reconcile()
    etcd.churn(loaded_of(etcd), 1, generation=3)
    world.reconcile(2 * MINUTE)
    full, delta = world.records()
    assert [full.verdict, delta.verdict] == [VerdictState.VERIFIED] * 2
    assert (delta.kind, delta.encrypted) == (Kind.DELTA, True)
    secret = b"/registry/pods/"
    assert all(secret not in world.store.read(name).data for name in world.blob_names())
    with pytest.raises(SettingsError, match="key"):
        open_chain(world.store, delta.name, None, world.environ)


def test_without_a_verified_backup_the_objective_is_missed(world: World) -> None:
    world.policy = msgspec.structs.replace(world.policy, schedule="0 0 1 1 *")
    world.reconcile()
    (record,) = world.records()
    world.reconcile(9 * MINUTE)
    assert "ObjectiveMissed" not in left_alone(world)
    world.reconcile(2 * MINUTE)
    assert "ObjectiveMissed" in left_alone(world)
    assert record.name in left_alone(world)["ObjectiveMissed"]


def left_alone(world: World) -> dict[str, str]:
    summary = world.clients.journal.summary(world.name, "etcd-backup")
    assert summary is not None
    return {left["reason"]: left["message"] for left in summary.left_alone}


def test_history_compacted_since_is_no_reason_to_doubt_a_proven_backup(
    world: World, etcd: EtcdCluster
) -> None:
    world.reconcile()
    (record,) = world.records()
    etcd.churn(loaded_of(etcd), 1, generation=4)
    etcd.client().compact(etcd.status(0).revision)
    outcomes = world.operate(operations.verify_backup, StoredBackupParameters(), "0f0f0f0f")
    verify = only(outcomes, ActionKind.VERIFY)
    assert (verify.data["state"], verify.data["reason"]) == ("verified", "ProvenBefore")
    for name in world.records()[0].verdict_names:
        world.store.delete(name)
    world.clients.forward(MINUTE)
    outcomes = world.operate(operations.verify_backup, StoredBackupParameters(backup=record.run))
    verify = only(outcomes, ActionKind.VERIFY)
    assert (verify.data["state"], verify.data["reason"]) == ("unverified", "NoWitness")


def test_rows_superseded_but_not_compacted_are_left_out_as_the_members_do(
    world: World, etcd: EtcdCluster
) -> None:
    """HashKV drops superseded rows below the compaction: the second half of the data is churned after it."""
    etcd.churn(loaded_of(etcd), 1, generation=50)
    etcd.client().compact(etcd.status(0).revision)
    etcd.churn(loaded_of(etcd), 10, generation=5)
    data = only(world.reconcile(), ActionKind.VERIFY).data
    assert (data["state"], data["reason"]) == ("verified", "MembersAgree")


def test_an_operation_resumed_after_its_backup_was_taken_only_proves_it(world: World) -> None:
    first = world.operate(operations.backup, BackupParameters(reason="upgrade"), "abad1dea")
    assert statuses(first) == [("Backup", "Succeeded"), ("Verify", "Succeeded")]
    again = world.operate(operations.backup, BackupParameters(reason="upgrade"), "abad1dea")
    assert statuses(again) == [("Backup", "Succeeded")]
    (record,) = world.records()
    for name in record.verdict_names:
        world.store.delete(name)
    resumed = world.operate(operations.backup, BackupParameters(reason="upgrade"), "abad1dea")
    assert statuses(resumed) == [("Backup", "Succeeded"), ("Verify", "Succeeded")]
    assert len(world.records()) == 1


def test_a_drill_serves_the_backup_from_a_real_etcd_and_measures_the_time(
    world: World, etcd: EtcdCluster
) -> None:
    world.environ["PATH"] = str(etcd.tools.etcd.parent)
    world.reconcile()
    (drilled,) = world.operate(operations.restore_drill, StoredBackupParameters())
    assert drilled.status is Status.SUCCEEDED, drilled.message
    assert drilled.data["how"] == "etcd"
    assert drilled.data["kinds"]["pods"] > 0
    assert drilled.data["hashKv"] == etcd.client().hash_kv(etcd.endpoints[0]).hash
    assert drilled.data["recoverySeconds"] > 0
    state = world.clients.claims.state(world.name, "etcd-backup").automation
    assert state["drill"]["recoverySeconds"] == drilled.data["recoverySeconds"]


def test_without_an_etcd_binary_the_drill_is_the_structural_proof_and_says_so(world: World) -> None:
    world.environ["PATH"] = "/nowhere"
    world.reconcile()
    (drilled,) = world.operate(operations.restore_drill, StoredBackupParameters())
    assert (drilled.status, drilled.data["how"]) == (Status.SUCCEEDED, "structure")
    assert "no etcd binary" in drilled.message


def test_a_drill_of_a_damaged_backup_fails_and_names_the_place(world: World, etcd: EtcdCluster) -> None:
    world.environ["PATH"] = str(etcd.tools.etcd.parent)
    world.reconcile()
    world.corrupt(world.records()[0].data, offset=50_000)
    (drilled,) = world.operate(operations.restore_drill, StoredBackupParameters())
    assert drilled.status is Status.FAILED
    assert "frame 0" in drilled.message


def test_the_schedule_of_drills_runs_one(world: World, etcd: EtcdCluster) -> None:
    world.environ["PATH"] = "/nowhere"
    world.policy = msgspec.structs.replace(world.policy, drill_schedule="0 * * * *")
    assert only(world.reconcile(), ActionKind.BACKUP)
    drilled = only(world.reconcile(2 * MINUTE), ActionKind.RESTORE_DRILL)
    assert drilled.status is Status.SUCCEEDED
    kinds = {o.action.kind for o in world.reconcile(2 * MINUTE)}
    assert ActionKind.RESTORE_DRILL not in kinds
    assert ActionKind.RESTORE_DRILL in {o.action.kind for o in world.reconcile(timedelta(hours=1))}


def test_health_and_defragmentation_run_as_operations(world: World, etcd: EtcdCluster) -> None:
    (health,) = world.operate(operations.etcd_health, Parameters())
    assert (health.status, health.data["report"]["voters"]) == (Status.SUCCEEDED, 1)
    (defrag,) = world.operate(operations.etcd_defrag, DefragParameters(member=etcd.members[0].name))
    assert defrag.status is Status.SUCCEEDED
    assert len(defrag.data["report"]["done"]) == 1
    with pytest.raises(NotFoundError, match="there are: m0"):
        world.operate(operations.etcd_defrag, DefragParameters(member="m9"))

"""Backups of a real etcd on a real Azurite: taken, proven, built upon, found bad, thinned out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from scenarios.etcd_backup_world import World, only, statuses

from sandbox.etcd import EtcdCluster
from sandbox.kubedata import Loaded
from shared.etcd_backup.chain import open_chain, read_manifest
from shared.etcd_backup.policy import EtcdBackupPolicy
from shared.model.backup import Kind, VerdictState
from shared.model.plan import ActionKind, Status

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

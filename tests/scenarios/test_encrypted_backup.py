"""Encrypted backups end to end: real etcd, real Azurite, and the keys in a local Key Vault or a file."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from datetime import timedelta

import msgspec
import pytest
from scenarios.etcd_backup_world import World, only, statuses

from sandbox.etcd import EtcdCluster
from sandbox.identity import ManagedIdentity
from sandbox.keyvault import LocalKeyVault
from shared.errors import ForbiddenError, RunFailedError, SettingsError
from shared.etcd_backup.chain import open_chain, read_manifest
from shared.etcd_backup.policy import Encryption, EtcdBackupPolicy
from shared.etcd_backup.verify import verify_stored
from shared.model.backup import Kind, VerdictState
from shared.model.plan import ActionKind, Status

pytestmark = [pytest.mark.azurite, pytest.mark.etcd]

MINUTE = timedelta(minutes=1)
MARKER = b"a-secret-nobody-may-find-in-the-store"


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    with EtcdCluster.start() as cluster:
        loaded = cluster.seed(1_000_000)
        client = cluster.client()
        client.put(b"/registry/secrets/prod/token", MARKER)
        client.compact(loaded.revision)
        yield cluster


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalKeyVault]:
    """A vault, and the app's managed identity in the environment, as App Service gives it."""
    from shared.clients import keyvault

    with LocalKeyVault() as running, ManagedIdentity(running.directory) as identity:
        for name, value in identity.environ.items():
            monkeypatch.setenv(name, value)
        keyvault._client_of.cache_clear()
        yield running
    keyvault._client_of.cache_clear()


def world_with(storage: str, etcd: EtcdCluster, encryption: Encryption, **environ: str) -> World:
    policy = EtcdBackupPolicy(schedule="* * * * *", objective="10m", encryption=encryption)
    identity = {"AzureWebJobsStorage__credential": "managedidentity"}
    return World(storage, etcd.connection(), {**etcd.environ, **identity, **environ}, policy)


def encrypt_with(world: World, encryption: Encryption) -> None:
    world.policy = msgspec.structs.replace(world.policy, encryption=encryption)


def test_backups_under_a_key_vault_key_are_proven_and_hold_nothing_readable(
    storage: str, etcd: EtcdCluster, vault: LocalKeyVault
) -> None:
    key_id = vault.create_key("backups")
    world = world_with(storage, etcd, Encryption(key_vault_key=key_id))
    assert statuses(world.reconcile()) == [("Backup", "Succeeded"), ("Verify", "Succeeded")]
    etcd.client().put(b"/registry/configmaps/prod/changed", b"x")
    world.reconcile(MINUTE)
    first, second = sorted(world.records(), key=lambda record: record.started_at)
    assert (first.kind, second.kind) == (Kind.FULL, Kind.DELTA)
    assert {first.verdict, second.verdict} == {VerdictState.VERIFIED}
    manifests = [read_manifest(world.store, record.name) for record in (first, second)]
    assert {m.encryption.key.key_id for m in manifests if m.encryption} == {key_id}
    assert len({m.encryption.key.wrapped for m in manifests if m.encryption}) == 2
    for name in world.blob_names():
        assert MARKER not in world.store.read(name).data
    chain = open_chain(world.store, second.name, world.policy.encryption, world.environ)
    assert MARKER in b"".join(chain.stream())


def test_without_its_key_a_backup_is_not_bad_but_closed_and_the_key_is_named(
    storage: str, etcd: EtcdCluster, vault: LocalKeyVault
) -> None:
    key_id = vault.create_key("lost")
    world = world_with(storage, etcd, Encryption(key_vault_key=key_id))
    world.reconcile()
    (record,) = world.records()
    vault.delete("lost")
    with pytest.raises(ForbiddenError, match=f"{key_id}.*cannot be opened by anybody"):
        verify_stored(
            world.store,
            record.name,
            None,
            world.clients.now(),
            encryption=world.policy.encryption,
            environ=world.environ,
        )
    with pytest.raises(RunFailedError, match=r"Backup of .*KeyNotFound"):
        world.reconcile(MINUTE)
    assert [r.verdict for r in world.records()] == [VerdictState.VERIFIED]
    vault.recover("lost")
    assert ("Backup", "Succeeded") in statuses(world.reconcile(MINUTE))


def test_a_key_that_was_replaced_leads_to_a_full_not_to_no_backups(
    storage: str, etcd: EtcdCluster, vault: LocalKeyVault
) -> None:
    world = world_with(storage, etcd, Encryption(key_vault_key=vault.create_key("old")))
    world.reconcile()
    encrypt_with(world, Encryption(key_vault_key=vault.create_key("new")))
    taken = only(world.reconcile(MINUTE), ActionKind.BACKUP)
    assert taken.status is Status.SUCCEEDED
    newest = max(world.records(), key=lambda record: record.started_at)
    assert (newest.kind, newest.verdict) == (Kind.FULL, VerdictState.VERIFIED)


def test_a_rotated_key_goes_on_with_deltas(storage: str, etcd: EtcdCluster, vault: LocalKeyVault) -> None:
    versionless = vault.create_key("rotated").rsplit("/", 1)[0]
    world = world_with(storage, etcd, Encryption(key_vault_key=versionless))
    world.reconcile()
    vault.create_key("rotated")
    etcd.client().put(b"/registry/configmaps/prod/changed", b"y")
    world.reconcile(MINUTE)
    kinds = [(r.kind, r.verdict) for r in sorted(world.records(), key=lambda record: record.started_at)]
    assert kinds == [(Kind.FULL, VerdictState.VERIFIED), (Kind.DELTA, VerdictState.VERIFIED)]


def test_a_vault_that_refuses_stops_the_backup_before_anything_is_stored_in_the_clear(
    storage: str, etcd: EtcdCluster, vault: LocalKeyVault
) -> None:
    world = world_with(storage, etcd, Encryption(key_vault_key=vault.create_key("refused")))
    vault.permissions.discard("wrapKey")
    with pytest.raises(RunFailedError, match="Key Vault Crypto Service Encryption User"):
        world.reconcile()
    assert world.blob_names() == []


def test_a_local_key_protects_too_and_the_wrong_one_is_named(storage: str, etcd: EtcdCluster) -> None:
    encryption = Encryption(key_file="setting:BACKUP_KEY")
    key = base64.b64encode(os.urandom(32)).decode()
    world = world_with(storage, etcd, encryption, BACKUP_KEY=key)
    world.reconcile()
    (record,) = world.records()
    assert record.verdict is VerdictState.VERIFIED
    manifest = read_manifest(world.store, record.name)
    assert manifest.encryption is not None
    other = {"BACKUP_KEY": base64.b64encode(os.urandom(32)).decode()}
    with pytest.raises(SettingsError, match=manifest.encryption.key.key_id):
        open_chain(world.store, record.name, encryption, other)

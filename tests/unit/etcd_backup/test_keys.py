"""Data keys of backups: wrapped by a local key or by a key of the local Key Vault, and what happens without
it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sandbox.keyvault import LocalKeyVault
from shared.clients.keyvault import KeyVault
from shared.errors import ApiError, IntegrityError, SettingsError
from shared.etcd_backup.keys import local_key_id, new_data_key, unwrap
from shared.etcd_backup.policy import Encryption
from shared.model.backup import WrappedKey


def key_text() -> str:
    return base64.b64encode(os.urandom(32)).decode()


@pytest.fixture(scope="module")
def vault() -> Iterator[LocalKeyVault]:
    with LocalKeyVault() as running:
        yield running


LOCAL = Encryption(key_file="setting:BACKUP_KEY")


def test_each_backup_has_its_own_data_key() -> None:
    environ = {"BACKUP_KEY": key_text()}
    keys = {new_data_key(LOCAL, environ)[0] for _ in range(50)}
    assert len(keys) == 50
    assert {len(key) for key in keys} == {32}


def test_a_key_file_wraps_and_unwraps(tmp_path: Path) -> None:
    file = tmp_path / "backup.key"
    file.write_text(key_text() + "\n")
    encryption = Encryption(key_file=f"file:{file}")
    data_key, wrapped = new_data_key(encryption, {})
    assert wrapped.algorithm == "A256KW"
    assert unwrap(wrapped, encryption, {}) == data_key


def test_the_recorded_key_id_tells_keys_apart_and_not_what_they_are() -> None:
    text = key_text()
    _, wrapped = new_data_key(LOCAL, {"BACKUP_KEY": text})
    assert wrapped.key_id == local_key_id(base64.b64decode(text))
    assert wrapped.key_id.startswith("local:")
    assert local_key_id(bytes(32)) != local_key_id(bytes(31) + b"\1")


def test_a_rotated_local_key_still_opens_old_backups() -> None:
    old = key_text()
    data_key, wrapped = new_data_key(LOCAL, {"BACKUP_KEY": old})
    rotated = {"BACKUP_KEY": f"{key_text()}\n{old}\n"}
    assert unwrap(wrapped, LOCAL, rotated) == data_key
    assert new_data_key(LOCAL, rotated)[1].key_id != wrapped.key_id


def test_the_wrong_local_key_is_an_error_that_names_the_key_needed() -> None:
    _, wrapped = new_data_key(LOCAL, {"BACKUP_KEY": key_text()})
    with pytest.raises(SettingsError, match=f"only be opened with the key {wrapped.key_id}"):
        unwrap(wrapped, LOCAL, {"BACKUP_KEY": key_text()})


def test_a_backup_whose_key_is_not_configured_names_the_key_needed() -> None:
    _, wrapped = new_data_key(LOCAL, {"BACKUP_KEY": key_text()})
    with pytest.raises(SettingsError, match=wrapped.key_id):
        unwrap(wrapped, None, {})


@pytest.mark.parametrize("place", range(0, 40, 7))
def test_a_damaged_wrapped_key_is_never_a_data_key(place: int) -> None:
    environ = {"BACKUP_KEY": key_text()}
    _, wrapped = new_data_key(LOCAL, environ)
    flipped = bytearray(base64.b64decode(wrapped.wrapped))
    flipped[place] ^= 1
    damaged = msgspec.structs.replace(wrapped, wrapped=base64.b64encode(flipped).decode())
    with pytest.raises(IntegrityError, match="manifest is damaged"):
        unwrap(damaged, LOCAL, environ)


@pytest.mark.parametrize("text", ["", "###", "AAAA"])
def test_a_wrapped_key_of_the_wrong_shape_is_damage(text: str) -> None:
    environ = {"BACKUP_KEY": key_text()}
    _, wrapped = new_data_key(LOCAL, environ)
    with pytest.raises(IntegrityError):
        unwrap(msgspec.structs.replace(wrapped, wrapped=text), LOCAL, environ)


def test_an_unknown_algorithm_is_not_guessed_at() -> None:
    with pytest.raises(IntegrityError, match="unknown key wrapping 'none'"):
        unwrap(WrappedKey(algorithm="none", key_id="x", wrapped=""), LOCAL, {"BACKUP_KEY": key_text()})


@pytest.mark.parametrize("text", ["", "\n", "not base64 at all", base64.b64encode(bytes(16)).decode()])
def test_a_local_key_that_is_none_says_how_to_make_one_and_does_not_repeat_it(text: str) -> None:
    with pytest.raises(SettingsError, match="openssl rand -base64 32") as caught:
        new_data_key(LOCAL, {"BACKUP_KEY": text})
    assert not text.strip() or text not in str(caught.value)


@pytest.mark.parametrize(
    "encryption", [Encryption(), Encryption(key_file="file:x", key_vault_key="https://x")]
)
def test_encryption_needs_exactly_one_key(encryption: Encryption) -> None:
    with pytest.raises(SettingsError, match="exactly one of keyVaultKey and keyFile"):
        new_data_key(encryption, {})


def test_a_key_vault_key_wraps_and_unwraps(vault: LocalKeyVault) -> None:
    client = KeyVault(vault.credential())
    key_id = vault.create_key("backups")
    encryption = Encryption(key_vault_key=key_id)
    data_key, wrapped = new_data_key(encryption, {}, key_vault=client)
    assert (wrapped.algorithm, wrapped.key_id) == ("RSA-OAEP-256", key_id)
    assert unwrap(wrapped, encryption, {}, key_vault=client) == data_key


def test_a_rotated_key_vault_key_still_opens_old_backups(vault: LocalKeyVault) -> None:
    client = KeyVault(vault.credential())
    data_key, wrapped = new_data_key(
        Encryption(key_vault_key=vault.create_key("rotated")), {}, key_vault=client
    )
    now = Encryption(key_vault_key=vault.create_key("rotated"))
    assert unwrap(wrapped, now, {}, key_vault=client) == data_key


def test_a_manifest_cannot_send_our_token_to_another_vault_or_key(vault: LocalKeyVault) -> None:
    client = KeyVault(vault.credential())
    encryption = Encryption(key_vault_key=vault.create_key("ours"))
    _, wrapped = new_data_key(encryption, {}, key_vault=client)
    calls = vault.recorder.count()
    version = "0" * 32
    for foreign in (
        f"https://attacker.vault.azure.net/keys/ours/{version}",
        f"{vault.url}/keys/theirs/{version}",
    ):
        with pytest.raises(SettingsError, match="configuration names"):
            unwrap(msgspec.structs.replace(wrapped, key_id=foreign), encryption, {}, key_vault=client)
    assert vault.recorder.count() == calls


def test_a_wrong_key_version_is_refused_by_the_vault_and_named(vault: LocalKeyVault) -> None:
    client = KeyVault(vault.credential())
    _, wrapped = new_data_key(Encryption(key_vault_key=vault.create_key("two")), {}, key_vault=client)
    other = vault.create_key("two")
    with pytest.raises(ApiError, match=other):
        unwrap(
            msgspec.structs.replace(wrapped, key_id=other),
            Encryption(key_vault_key=other),
            {},
            key_vault=client,
        )

"""The Key Vault client against the local Key Vault: real RSA, real HTTP, the errors of the real service."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from azure.identity import CredentialUnavailableError

from sandbox.asgi import Fault, on
from sandbox.identity import ManagedIdentity
from sandbox.keyvault import LocalKeyVault
from shared.clients.keyvault import KeyVault, parse_key_id, scope
from shared.errors import (
    ApiError,
    ForbiddenError,
    NotFoundError,
    SettingsError,
    ThrottledError,
    UnavailableError,
)

DATA_KEY = bytes(range(32))


@pytest.fixture(scope="module")
def vault() -> Iterator[LocalKeyVault]:
    with LocalKeyVault() as running:
        yield running


@pytest.fixture
def client(vault: LocalKeyVault) -> Iterator[KeyVault]:
    yield KeyVault(vault.credential())
    vault.permissions |= {"get", "wrapKey", "unwrapKey"}
    vault.recorder.faults.clear()


def test_a_wrapped_key_comes_back_and_is_never_the_key_itself(vault: LocalKeyVault, client: KeyVault) -> None:
    key_id = vault.create_key("backups")
    kid, wrapped = client.wrap(key_id, DATA_KEY)
    assert kid == key_id
    assert len(wrapped) == 256
    assert DATA_KEY not in wrapped
    assert client.unwrap(kid, wrapped) == DATA_KEY


def test_without_a_version_the_current_one_wraps_and_is_named(vault: LocalKeyVault, client: KeyVault) -> None:
    old = vault.create_key("rotated")
    versionless = old.rsplit("/", 1)[0]
    old_kid, old_wrapped = client.wrap(versionless, DATA_KEY)
    new = vault.create_key("rotated")
    new_kid, _ = client.wrap(versionless, DATA_KEY)
    assert (old_kid, new_kid) == (old, new)
    assert client.unwrap(old_kid, old_wrapped) == DATA_KEY


def test_another_version_of_the_key_does_not_open_it(vault: LocalKeyVault, client: KeyVault) -> None:
    _, wrapped = client.wrap(vault.create_key("versions"), DATA_KEY)
    with pytest.raises(ApiError, match="BadParameter"):
        client.unwrap(vault.create_key("versions"), wrapped)


def test_a_disabled_key_is_refused_with_what_to_do(vault: LocalKeyVault, client: KeyVault) -> None:
    key_id = vault.create_key("disabled")
    vault.disable(key_id)
    with pytest.raises(ForbiddenError, match=rf"{key_id}: KeyDisabled .*enable the key again") as caught:
        client.wrap(key_id, DATA_KEY)
    assert (caught.value.status, caught.value.code) == (403, "KeyDisabled")


def test_a_deleted_key_is_not_found_and_opens_again_when_recovered(
    vault: LocalKeyVault, client: KeyVault
) -> None:
    key_id = vault.create_key("deleted")
    kid, wrapped = client.wrap(key_id, DATA_KEY)
    vault.delete("deleted")
    with pytest.raises(NotFoundError, match="az keyvault key recover"):
        client.unwrap(kid, wrapped)
    vault.recover("deleted")
    assert client.unwrap(kid, wrapped) == DATA_KEY


def test_a_missing_role_is_named(vault: LocalKeyVault, client: KeyVault) -> None:
    key_id = vault.create_key("roles")
    vault.permissions.discard("wrapKey")
    with pytest.raises(ForbiddenError, match="Key Vault Crypto Service Encryption User"):
        client.wrap(key_id, DATA_KEY)


def test_a_refused_token_is_forbidden_and_the_challenge_is_the_vaults(vault: LocalKeyVault) -> None:
    class Expired:
        def get_token(self, *_scopes: str, **_options: object) -> object:
            return vault.directory.issue("https://vault.azure.net", lifetime_seconds=-1)

    with pytest.raises(ForbiddenError, match="token has expired"):
        KeyVault(Expired()).wrap(vault.create_key("expired"), DATA_KEY)


def test_a_token_for_another_audience_is_refused(vault: LocalKeyVault) -> None:
    class Wrong:
        def get_token(self, *_scopes: str, **_options: object) -> object:
            return vault.directory.issue("https://management.azure.com")

    with pytest.raises(ForbiddenError, match=r"the token is for https://management\.azure\.com"):
        KeyVault(Wrong()).wrap(vault.create_key("audience"), DATA_KEY)


def test_throttling_is_waited_out_a_little(vault: LocalKeyVault, client: KeyVault) -> None:
    key_id = vault.create_key("busy")
    before = vault.recorder.count("POST", "busy")
    vault.throttle(times=2)
    kid, wrapped = client.wrap(key_id, DATA_KEY)
    assert vault.recorder.count("POST", "busy") - before == 3
    assert client.unwrap(kid, wrapped) == DATA_KEY


def test_throttling_that_goes_on_says_when_to_come_back(vault: LocalKeyVault, client: KeyVault) -> None:
    key_id = vault.create_key("busier")
    vault.throttle(times=9)
    with pytest.raises(ThrottledError) as caught:
        client.wrap(key_id, DATA_KEY)
    assert caught.value.retry_after_seconds == 0
    assert caught.value.status == 429


def test_a_lost_answer_is_asked_for_again(vault: LocalKeyVault, client: KeyVault) -> None:
    key_id = vault.create_key("lossy")
    _, wrapped = client.wrap(key_id, DATA_KEY)
    vault.recorder.faults.append(Fault(on("POST", "unwrapkey"), lose_answer=True, times=9))
    with pytest.raises(UnavailableError, match="no answer from Key Vault"):
        client.unwrap(key_id, wrapped)


def test_an_answer_that_is_not_key_vaults_is_not_believed(vault: LocalKeyVault, client: KeyVault) -> None:
    key_id = vault.create_key("proxy")
    vault.fail(200, {"hello": "captive portal"})
    with pytest.raises(UnavailableError, match="not Key Vault's"):
        client.wrap(key_id, DATA_KEY)


def test_an_answer_without_a_reason_is_still_one_line(vault: LocalKeyVault, client: KeyVault) -> None:
    key_id = vault.create_key("gateway")
    vault.fail(502, "<html>bad gateway</html>", times=9)
    with pytest.raises(UnavailableError, match=r"HTTP error \(502\); Key Vault is in trouble"):
        client.wrap(key_id, DATA_KEY)


def test_a_process_without_an_identity_is_told_how_to_get_one(vault: LocalKeyVault) -> None:
    class Nobody:
        def get_token(self, *_scopes: str, **_options: object) -> object:
            raise CredentialUnavailableError("no managed identity endpoint found")

    with pytest.raises(ForbiddenError, match="no usable Azure identity; give the app a managed identity"):
        KeyVault(Nobody()).wrap(vault.create_key("nobody"), DATA_KEY)


def test_nobody_listens(vault: LocalKeyVault) -> None:
    with pytest.raises(UnavailableError, match="check its address"):
        KeyVault(vault.credential()).wrap(f"http://127.0.0.1:9/keys/backups/{'0' * 32}", DATA_KEY)


def test_the_apps_own_identity_is_used_in_another_process(vault: LocalKeyVault) -> None:
    key_id = vault.create_key("identity")
    script = (
        "import os, sys; from shared.clients.keyvault import key_vault; vault = key_vault(os.environ);"
        "kid, wrapped = vault.wrap(sys.argv[1], bytes(32)); assert vault.unwrap(kid, wrapped) == bytes(32)"
    )
    with ManagedIdentity(vault.directory) as identity:
        environ = {
            **os.environ,
            **identity.environ,
            "AzureWebJobsStorage__credential": "managedidentity",
        }
        subprocess.run([sys.executable, "-c", script, key_id], env=environ, check=True, timeout=60)
        assert identity.recorder.requests[0].query["resource"] == "https://vault.azure.net"


@pytest.mark.parametrize(
    "key_id",
    [
        "backups",
        "https://example.com/keys/backups",
        "https://vault.azure.net.example.com/keys/backups",
        "http://prod.vault.azure.net/keys/backups",
        "https://prod.vault.azure.net/secrets/backups",
        "https://prod.vault.azure.net/keys/backups/latest",
        "https://user@prod.vault.azure.net/keys/backups",
        "https://prod.vault.azure.net/keys/back.ups",
        "https://prod.vault.azure.net/keys/backups?x=1",
        "http://192.168.0.1/keys/backups",
        "https://prod.vault.azure.net:99999/keys/backups",
        "https://[prod.vault.azure.net/keys/backups",
        "http://me@127.0.0.1/keys/backups",
    ],
)
def test_our_token_goes_to_key_vaults_only(key_id: str) -> None:
    with pytest.raises(SettingsError, match="not a Key Vault key identifier"):
        parse_key_id(key_id)


@pytest.mark.parametrize(
    ("vault_url", "expected"),
    [
        ("https://prod.vault.azure.net", "https://vault.azure.net/.default"),
        ("https://prod.vault.usgovcloudapi.net", "https://vault.usgovcloudapi.net/.default"),
        ("https://prod.managedhsm.azure.net", "https://managedhsm.azure.net/.default"),
    ],
)
def test_the_token_is_good_for_the_vaults_cloud(vault_url: str, expected: str) -> None:
    assert scope(vault_url) == expected

"""Key Vault keys: wrap and unwrap a data key with an RSA key that never leaves the vault.

The only code that speaks to Key Vault: two REST calls over azure-core, no further SDK. The algorithm is
RSA-OAEP-256. Errors are those of `shared.errors`, naming the key and what to do. The identity needs the
role *Key Vault Crypto Service Encryption User* on the key (access policies: the key permissions Wrap Key
and Unwrap Key).
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from shared.clients.azure import RETRY, TIMEOUTS, bearer_token_policy, is_loopback, translated
from shared.errors import SettingsError, UnavailableError

if TYPE_CHECKING:
    from azure.core import PipelineClient
    from azure.core.credentials import TokenCredential

API_VERSION = "7.4"  # old enough for every cloud; the two calls have not changed since
ALGORITHM = "RSA-OAEP-256"
VAULT_DOMAINS = (
    "vault.azure.net",
    "vault.azure.cn",
    "vault.usgovcloudapi.net",
    "managedhsm.azure.net",
    "managedhsm.azure.cn",
    "managedhsm.usgovcloudapi.net",
)
"""Where our token may be sent. It is asked for the domain of the vault, so no other service accepts it."""

_ROLE = "give the app's identity the role 'Key Vault Crypto Service Encryption User' on the key"
_REMEDIES = {
    "401": "the identity belongs to another tenant than the vault, or its token was refused",
    "403": _ROLE,
    "404": "check the name of the key; a deleted one can come back with `az keyvault key recover`",
    "KeyDisabled": "enable the key again in the vault",
    "ForbiddenByFirewall": "let the app's network through the vault's firewall",
    "ForbiddenByConnection": "let the app reach the vault through its private endpoint",
}
_BY_OPERATION = {
    "wrapkey": {"BadParameter": "the key must be an RSA key that allows wrapKey"},
    "unwrapkey": {"BadParameter": "this version of the key did not wrap it, or the manifest is damaged"},
}
_NAME = re.compile(r"[0-9a-zA-Z-]{1,127}")
_VERSION = re.compile(r"[0-9a-f]{32}")


class KeyId(msgspec.Struct, frozen=True):
    """A key identifier in parts: `vault` is scheme and host, `version` is empty for "the current one"."""

    vault: str
    name: str
    version: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.vault, "keys", self.name, self.version) if part)


def parse_key_id(text: str) -> KeyId:
    """`https://VAULT.vault.azure.net/keys/NAME[/VERSION]`; SettingsError for anything else, also for other
    hosts.

    http is accepted on loopback addresses only (the local world).
    """
    wrong = SettingsError(
        f"'{text}' is not a Key Vault key identifier; "
        "expected https://VAULT.vault.azure.net/keys/NAME or the same with /VERSION"
    )
    try:
        url = urlsplit(text)
        loopback = is_loopback(text)
    except ValueError as error:  # "https://[" and the like
        raise wrong from error
    parts = url.path.strip("/").split("/")
    vault, _, domain = url.netloc.lower().partition(".")
    trusted = (url.scheme == "https" and _NAME.fullmatch(vault) and domain in VAULT_DOMAINS) or (
        url.scheme in ("http", "https") and loopback and "@" not in url.netloc
    )
    shaped = (
        len(parts) in (2, 3)
        and parts[0] == "keys"
        and _NAME.fullmatch(parts[1])
        and all(_VERSION.fullmatch(version) for version in parts[2:])
        and not url.query
        and not url.fragment
    )
    if not trusted or not shaped:
        raise wrong
    return KeyId(f"{url.scheme}://{url.netloc.lower()}", parts[1], parts[2] if len(parts) == 3 else "")


class KeyVault:
    """Wraps and unwraps with keys of any vault the credential may use. Methods may be called from several
    threads.
    """

    def __init__(self, credential: TokenCredential) -> None:
        self._credential = credential
        self._clients: dict[str, PipelineClient[Any, Any]] = {}

    def wrap(self, key_id: str, data_key: bytes) -> tuple[str, bytes]:
        """The identifier of the key version that wrapped, and the ciphertext.

        Without a version in `key_id` the vault takes the current one: so keys rotate by themselves, and
        what is recorded always names the version. NotFoundError, ForbiddenError, ThrottledError,
        UnavailableError.
        """
        return self._call(parse_key_id(key_id), "wrapkey", data_key)

    def unwrap(self, key_id: str, ciphertext: bytes) -> bytes:
        """The data key. `key_id` must be the one `wrap` returned: another version cannot open it.

        ApiError with code `BadParameter` when the ciphertext was not made by this key version.
        """
        return self._call(parse_key_id(key_id), "unwrapkey", ciphertext)[1]

    def _call(self, key: KeyId, operation: str, value: bytes) -> tuple[str, bytes]:
        from azure.core.rest import HttpRequest

        request = HttpRequest(
            "POST",
            # The empty segment of a missing version is part of the address (REST reference, "Wrap Key").
            f"{key.vault}/keys/{key.name}/{key.version}/{operation}",
            params={"api-version": API_VERSION},
            json={"alg": ALGORITHM, "value": _base64url(value)},
        )
        what = f"{operation.removesuffix('key')} a data key with {key}"
        with translated(what, service="Key Vault", remedies=_REMEDIES | _BY_OPERATION[operation]):
            response = self._client(key.vault).send_request(request)
            response.raise_for_status()
        return _answer(response.content, key)

    def _client(self, vault: str) -> PipelineClient[Any, Any]:
        return self._clients.get(vault) or self._clients.setdefault(vault, self._connect(vault))

    def _connect(self, vault: str) -> PipelineClient[Any, Any]:
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import HeadersPolicy, RequestIdPolicy, RetryPolicy

        policies = [
            RequestIdPolicy(),
            HeadersPolicy({"Accept": "application/json"}),
            RetryPolicy(**RETRY),
            bearer_token_policy(self._credential, scope(vault)),
        ]
        return PipelineClient(vault, policies=policies, **TIMEOUTS)


def key_vault(environ: Mapping[str, str]) -> KeyVault:
    """A client with the app's identity: the one its storage settings name, else the usual chain of
    azure-identity.

    The same client again for the same identity: reading one chain back may unwrap thirty keys with one token.
    """
    from shared.clients.storage import CONNECTION

    names = (f"{CONNECTION}__credential", f"{CONNECTION}__clientId")
    return _client_of(tuple((name, environ[name]) for name in names if name in environ))


@functools.cache
def _client_of(identity: tuple[tuple[str, str], ...]) -> KeyVault:
    from shared.clients.storage import credential

    return KeyVault(credential(dict(identity)))


def scope(vault: str) -> str:
    """What the token is asked for: the vault's domain without the vault's own name."""
    host = urlsplit(vault).hostname or ""
    domain = VAULT_DOMAINS[0] if is_loopback(vault) else host.partition(".")[2]
    return f"https://{domain}/.default"


class _KeyOperationResult(msgspec.Struct):
    kid: str
    value: str


def _answer(body: bytes, key: KeyId) -> tuple[str, bytes]:
    try:
        result = msgspec.json.decode(body, type=_KeyOperationResult)
        value = base64.urlsafe_b64decode(result.value + "=" * (-len(result.value) % 4))
        kid = str(parse_key_id(result.kid))
    except (msgspec.DecodeError, binascii.Error, ValueError, SettingsError) as error:
        raise UnavailableError(
            f"the answer of {key.vault} is not Key Vault's; check the address in the key"
        ) from error
    return kid, value


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

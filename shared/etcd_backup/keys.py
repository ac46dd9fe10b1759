"""The data key of an encrypted backup: made new for each backup, and stored only wrapped by a key the
operator holds.

The wrapping key is a Key Vault RSA key (it never leaves the vault: the vault wraps and unwraps) or a local
key file. **Losing the wrapping key loses every backup it wrapped; there is no back door.** Called by the
writers and readers of backups; encrypting the frames is the archive's business.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shared.errors import ForbiddenError, IntegrityError, NotFoundError, SettingsError
from shared.etcd_backup.policy import Encryption
from shared.model.backup import WrappedKey
from shared.secret import resolve_secret

if TYPE_CHECKING:
    from shared.clients.keyvault import KeyVault

RSA_OAEP_256 = "RSA-OAEP-256"
"""Wrapped by a Key Vault key; the name Key Vault and JOSE give it."""
A256KW = "A256KW"
"""Wrapped by a local key as in RFC 3394; its JOSE name."""
DATA_KEY_BYTES = 32  # AES-256

_FINGERPRINT_LABEL = b"kubekeeper local key id v1"


def new_data_key(
    encryption: Encryption, environ: Mapping[str, str] = os.environ, *, key_vault: KeyVault | None = None
) -> tuple[bytes, WrappedKey]:
    """A fresh random 32-byte key for one backup, and the same wrapped for its manifest.

    `key_vault` defaults to a client with the app's identity. SettingsError when the policy names no key or
    two, or the local key is unusable; ApiError types when Key Vault refuses: then nothing may be backed up
    unencrypted instead.
    """
    data_key = os.urandom(DATA_KEY_BYTES)
    if vault_key := _key_vault_key(encryption):
        with _key_must_exist():
            key_id, ciphertext = _vault(environ, key_vault).wrap(vault_key, data_key)
        return data_key, _wrapped(RSA_OAEP_256, key_id, ciphertext)
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap

    key = local_keys(encryption, environ)[0]
    return data_key, _wrapped(A256KW, local_key_id(key), aes_key_wrap(key, data_key))


def unwrap(
    wrapped: WrappedKey,
    encryption: Encryption | None,
    environ: Mapping[str, str] = os.environ,
    *,
    key_vault: KeyVault | None = None,
) -> bytes:
    """The 32-byte data key of a stored backup.

    SettingsError, naming the key id the backup needs, when the configuration has no key or another one;
    IntegrityError when the right key does not open it (the manifest is damaged); ApiError types from Key
    Vault (key deleted, disabled, role missing).
    """
    if wrapped.algorithm == RSA_OAEP_256:
        data_key = _unwrap_by_key_vault(wrapped, encryption, environ, key_vault)
    elif wrapped.algorithm == A256KW:
        data_key = _unwrap_by_local_key(wrapped, encryption, environ)
    else:
        raise IntegrityError(
            f"unknown key wrapping '{wrapped.algorithm}'; the manifest is damaged or from a newer version",
            place="manifest encryption.algorithm",
        )
    if len(data_key) != DATA_KEY_BYTES:
        raise _damaged(wrapped)
    return data_key


def local_keys(encryption: Encryption, environ: Mapping[str, str] = os.environ) -> list[bytes]:
    """The keys in the local key file, one per line: the first wraps new backups, all of them open old ones.

    So a key is rotated by putting the new one above the old one. SettingsError names the line that is no key.
    """
    reference = encryption.key_file or ""
    lines = [line.strip() for line in resolve_secret(reference, environ).splitlines()]
    keys = [_local_key(line, f"{reference}, line {number}") for number, line in enumerate(lines, 1) if line]
    if not keys:
        raise SettingsError(f"'{reference}' holds no key; make one with: openssl rand -base64 32")
    return keys


def local_key_id(key: bytes) -> str:
    """`local:` and 16 hexadecimal digits; one-way, so it may be printed and stored."""
    import hashlib
    import hmac

    return "local:" + hmac.new(key, _FINGERPRINT_LABEL, hashlib.sha256).hexdigest()[:16]


def _key_vault_key(encryption: Encryption) -> str | None:
    if (encryption.key_vault_key is None) == (encryption.key_file is None):
        raise SettingsError("etcdBackup.encryption needs exactly one of keyVaultKey and keyFile")
    return encryption.key_vault_key


def _local_key(text: str, place: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != DATA_KEY_BYTES:
        # The text itself is a secret, or most of one: it is not quoted, and not chained.
        raise SettingsError(
            f"'{place}' is not a base64 key of 32 bytes; make one with: openssl rand -base64 32"
        )
    return key


def _unwrap_by_local_key(
    wrapped: WrappedKey, encryption: Encryption | None, environ: Mapping[str, str]
) -> bytes:
    from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

    if encryption is None or encryption.key_file is None:
        raise _needs(wrapped, "configure etcdBackup.encryption.keyFile with that key")
    keys = {local_key_id(key): key for key in local_keys(encryption, environ)}
    if wrapped.key_id not in keys:
        have = ", ".join(keys)
        raise _needs(wrapped, f"'{encryption.key_file}' holds {have}; add the old key as a further line")
    try:
        return aes_key_unwrap(keys[wrapped.key_id], _ciphertext(wrapped))
    except (InvalidUnwrap, ValueError) as error:
        raise _damaged(wrapped) from error


def _unwrap_by_key_vault(
    wrapped: WrappedKey, encryption: Encryption | None, environ: Mapping[str, str], key_vault: KeyVault | None
) -> bytes:
    from shared.clients.keyvault import parse_key_id

    if encryption is None or encryption.key_vault_key is None:
        raise _needs(wrapped, "configure etcdBackup.encryption.keyVaultKey with that key")
    configured, needed = parse_key_id(encryption.key_vault_key), parse_key_id(wrapped.key_id)
    # A manifest is data from the store: it may choose the version of the key, never where our token is sent.
    if (configured.vault, configured.name) != (needed.vault, needed.name):
        raise _needs(wrapped, f"the configuration names {encryption.key_vault_key}")
    with _key_must_exist():
        return _vault(environ, key_vault).unwrap(wrapped.key_id, _ciphertext(wrapped))


@contextmanager
def _key_must_exist() -> Iterator[None]:
    """To readers NotFoundError means that a backup is gone; a key that is gone is something else."""
    try:
        yield
    except NotFoundError as error:
        raise ForbiddenError(
            f"{error}; without this key the backups that it wrapped cannot be opened by anybody",
            status=error.status,
            code=error.code,
            request_id=error.request_id,
        ) from error


def _vault(environ: Mapping[str, str], given: KeyVault | None) -> KeyVault:
    from shared.clients.keyvault import key_vault

    return given or key_vault(environ)


def _wrapped(algorithm: str, key_id: str, ciphertext: bytes) -> WrappedKey:
    return WrappedKey(algorithm=algorithm, key_id=key_id, wrapped=base64.b64encode(ciphertext).decode())


def _ciphertext(wrapped: WrappedKey) -> bytes:
    try:
        return base64.b64decode(wrapped.wrapped, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _damaged(wrapped) from error


def _needs(wrapped: WrappedKey, remedy: str) -> SettingsError:
    return SettingsError(f"this backup can only be opened with the key {wrapped.key_id}; {remedy}")


def _damaged(wrapped: WrappedKey) -> IntegrityError:
    return IntegrityError(
        f"the key {wrapped.key_id} does not open the data key of this backup; the manifest is damaged",
        place="manifest encryption.wrapped",
    )

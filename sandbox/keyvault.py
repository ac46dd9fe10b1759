"""A local Key Vault: real RSA keys behind the addresses, errors and authentication challenge of the real
service.

Models key versions, wrapkey, unwrapkey and reading a public key (RSA-OAEP-256, RSA-OAEP), disabled and
deleted keys, permissions and throttling. Does not model secrets, certificates, HSM keys, rotation policies
or backup of keys.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.asgi import Fault, Recorder, Server, on
from sandbox.identity import KEY_VAULT, TENANT, Credential, Directory

API_VERSIONS = frozenset({"7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "2025-07-01"})
HASHES = {"RSA-OAEP-256": hashes.SHA256, "RSA-OAEP": hashes.SHA1}
OPERATIONS = frozenset({"get", "wrapKey", "unwrapKey"})


@dataclass
class KeyVersion:
    """One version of a key: the RSA key, and whether it may be used."""

    private: rsa.RSAPrivateKey
    enabled: bool = True
    created: int = field(default_factory=lambda: int(time.time()))


class ServiceError(Exception):
    """Becomes an answer in Key Vault's error format; `inner` is the code that says why."""

    def __init__(self, status: int, code: str, message: str, inner: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.inner = status, code, message, inner

    def answer(self) -> JSONResponse:
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.inner:
            error["innererror"] = {"code": self.inner}
        return JSONResponse({"error": error}, self.status)


class LocalKeyVault:
    """`with LocalKeyVault() as vault: key_id = vault.create_key("backups")`.

    Its identity may do everything until `permissions` is made smaller. Clients use `vault.credential()`, or
    `sandbox.identity.ManagedIdentity(vault.directory)` from other processes.
    """

    def __init__(self, directory: Directory | None = None) -> None:
        self.directory = directory or Directory()
        self.permissions = set(OPERATIONS)
        self._keys: dict[str, dict[str, KeyVersion]] = {}
        self._deleted: dict[str, dict[str, KeyVersion]] = {}
        routes = [
            Route("/keys/{name}/{version:path}", self._handle(self._operate), methods=["POST"]),
            Route("/keys/{name}", self._handle(self._get), methods=["GET"]),
            Route("/keys/{name}/{version}", self._handle(self._get), methods=["GET"]),
        ]
        self.recorder = Recorder(Starlette(routes=routes))
        self._server = Server(self.recorder)

    @property
    def url(self) -> str:
        return self._server.url

    def credential(self) -> Credential:
        return self.directory.credential()

    def create_key(self, name: str, bits: int = 2048) -> str:
        """A new key, or a new version of an existing one; returns its identifier with the version."""
        version = secrets.token_hex(16)
        private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        self._keys.setdefault(name, {})[version] = KeyVersion(private)
        return self._id(name, version)

    def disable(self, key_id: str) -> None:
        name, version = key_id.rsplit("/", 2)[1:]
        self._keys[name][version].enabled = False

    def delete(self, name: str) -> None:
        """Soft-deletes all versions of the key; `recover` brings them back."""
        self._deleted[name] = self._keys.pop(name)

    def recover(self, name: str) -> None:
        self._keys[name] = self._deleted.pop(name)

    def throttle(self, times: int, retry_after_seconds: int = 0) -> None:
        """The next `times` requests are answered with 429."""
        error = {
            "code": "Throttled",
            "message": "Request was not processed because too many requests were received",
        }
        self.fail(429, {"error": error}, times=times, headers={"Retry-After": str(retry_after_seconds)})

    def fail(self, status: int, body: Any, times: int = 1, headers: dict[str, str] | None = None) -> None:
        """The next `times` requests are answered so, without being worked on."""
        self.recorder.faults.append(Fault(on(), status=status, body=body, times=times, headers=headers or {}))

    def _handle(
        self, work: Callable[[Request, Any], dict[str, Any]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            refusal = self.directory.refusal(request.headers.get("authorization"), KEY_VAULT)
            if refusal:
                return _unauthorized(refusal)
            try:
                _check_api_version(request)
                body = await request.json() if request.method == "POST" else None
                return JSONResponse(await run_in_threadpool(work, request, body))
            except ServiceError as error:
                return error.answer()

        return endpoint

    def _get(self, request: Request, _body: Any) -> dict[str, Any]:
        self._permit("get")
        name, version, key = self._find(request.path_params["name"], request.path_params.get("version", ""))
        numbers = key.private.public_key().public_numbers()
        jwk = {
            "kid": self._id(name, version),
            "kty": "RSA",
            "key_ops": sorted(OPERATIONS - {"get"}),
            "n": _base64url(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")),
            "e": _base64url(numbers.e.to_bytes(3, "big")),
        }
        return {
            "key": jwk,
            "attributes": {"enabled": key.enabled, "created": key.created, "updated": key.created},
        }

    def _operate(self, request: Request, body: Any) -> dict[str, Any]:
        version, _, operation = request.path_params["version"].rpartition("/")
        work = {"wrapkey": ("wrapKey", _wrap), "unwrapkey": ("unwrapKey", _unwrap)}.get(operation)
        if work is None:
            raise ServiceError(404, "BadParameter", f"the operation {operation} does not exist")
        permission, convert = work
        self._permit(permission)
        name, version, key = self._find(request.path_params["name"], version)
        if not key.enabled:
            raise ServiceError(
                403, "Forbidden", f"Operation {permission} is not allowed on a disabled key.", "KeyDisabled"
            )
        if (
            not isinstance(body, dict)
            or body.get("alg") not in HASHES
            or not isinstance(body.get("value"), str)
        ):
            raise ServiceError(400, "BadParameter", "alg and value are needed")
        value = base64.urlsafe_b64decode(body["value"] + "=" * (-len(body["value"]) % 4))
        hash_type = HASHES[body["alg"]]
        oaep = padding.OAEP(mgf=padding.MGF1(hash_type()), algorithm=hash_type(), label=None)
        return {"kid": self._id(name, version), "value": _base64url(convert(key.private, value, oaep))}

    def _permit(self, permission: str) -> None:
        if permission not in self.permissions:
            action = {"get": "read", "wrapKey": "wrap/action", "unwrapKey": "unwrap/action"}[permission]
            raise ServiceError(
                403,
                "Forbidden",
                f"Caller is not authorized to perform action 'Microsoft.KeyVault/vaults/keys/{action}'",
                "ForbiddenByRbac",
            )

    def _find(self, name: str, version: str) -> tuple[str, str, KeyVersion]:
        versions = self._keys.get(name, {})
        if not version and versions:
            version = list(versions)[-1]
        if version not in versions:
            key = f"{name}/{version}" if version else name
            raise ServiceError(
                404, "KeyNotFound", f"A key with (name/id) {key} was not found in this key vault."
            )
        return name, version, versions[version]

    def _id(self, name: str, version: str) -> str:
        return f"{self.url}/keys/{name}/{version}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()


def _wrap(private: rsa.RSAPrivateKey, value: bytes, oaep: padding.OAEP) -> bytes:
    try:
        return private.public_key().encrypt(value, oaep)
    except ValueError as error:
        raise ServiceError(400, "BadParameter", "the value is too long for the key") from error


def _unwrap(private: rsa.RSAPrivateKey, value: bytes, oaep: padding.OAEP) -> bytes:
    try:
        return private.decrypt(value, oaep)
    except ValueError as error:
        raise ServiceError(400, "BadParameter", "The parameter is incorrect.") from error


def _unauthorized(refusal: str) -> JSONResponse:
    error = {"code": "Unauthorized", "message": f"[TokenValidation] {refusal}"}
    challenge = f'Bearer authorization="https://login.microsoftonline.com/{TENANT}", resource="{KEY_VAULT}"'
    return JSONResponse({"error": error}, 401, headers={"WWW-Authenticate": challenge})


def _check_api_version(request: Request) -> None:
    version = request.query_params.get("api-version")
    if version not in API_VERSIONS:
        raise ServiceError(400, "BadParameter", f"The specified version ({version}) is not recognized.")


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

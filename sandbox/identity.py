"""The local Entra ID: tokens for one audience each, and the managed identity endpoint of an App Service.

With `ManagedIdentity(...).environ` in its environment, an unmodified azure-identity in any process gets its
tokens here. Tokens are signed, name their audience and expire, so that the stand-ins can refuse what Azure
would refuse.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from azure.core.credentials import AccessToken
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sandbox.asgi import Recorder, Server

TENANT = "10000000-0000-4000-8000-000000000001"
KEY_VAULT = "https://vault.azure.net"
RESOURCE_MANAGER = "https://management.azure.com"
LIFETIME_SECONDS = 86_400


@dataclass(frozen=True)
class Directory:
    """Issues and checks tokens. `principal` is whom they name (object id of the app's identity)."""

    principal: str = "20000000-0000-4000-8000-000000000002"
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def issue(self, audience: str, lifetime_seconds: int = LIFETIME_SECONDS) -> AccessToken:
        """A token for `audience`; a negative lifetime makes one that has expired."""
        expires = int(time.time()) + lifetime_seconds
        claims = {"aud": audience.rstrip("/"), "exp": expires, "oid": self.principal, "tid": TENANT}
        head = f"{_text({'alg': 'HS256', 'typ': 'JWT'})}.{_text(claims)}"
        return AccessToken(f"{head}.{self._signature(head)}", expires)

    def refusal(self, authorization: str | None, audience: str) -> str | None:
        """Why the Authorization header is not good for `audience`; None when it is."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or token.count(".") != 2:
            return "a bearer token is missing"
        head, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature, self._signature(head)):
            return "the token's signature is wrong"
        claims = json.loads(base64.urlsafe_b64decode(head.partition(".")[2] + "=="))
        if claims["aud"] != audience:
            return f"the token is for {claims['aud']}"
        return "the token has expired" if claims["exp"] <= time.time() else None

    def credential(self) -> Credential:
        """A TokenCredential of the azure SDKs for use within this process."""
        return Credential(self)

    def _signature(self, head: str) -> str:
        return _base64url(hmac.new(self.secret, head.encode(), hashlib.sha256).digest())


@dataclass(frozen=True)
class Credential:
    """What `Directory.credential` returns."""

    directory: Directory

    def get_token(self, *scopes: str, **_options: Any) -> AccessToken:
        return self.directory.issue(scopes[0].removesuffix("/.default"))


class ManagedIdentity:
    """`with ManagedIdentity(directory) as identity:` then put `identity.environ` into a process's
    environment.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._header = secrets.token_hex(16)
        self.recorder = Recorder(Starlette(routes=[Route("/msi/token", self._token)]))
        self._server = Server(self.recorder)

    @property
    def environ(self) -> dict[str, str]:
        """The two variables an App Service sets for its apps."""
        return {"IDENTITY_ENDPOINT": f"{self._server.url}/msi/token", "IDENTITY_HEADER": self._header}

    def _token(self, request: Request) -> JSONResponse:
        if request.headers.get("x-identity-header") != self._header:
            return JSONResponse({"statusCode": 400, "message": "wrong X-IDENTITY-HEADER"}, 400)
        resource = request.query_params.get("resource")
        if not resource or request.query_params.get("api-version") != "2019-08-01":
            return JSONResponse({"statusCode": 400, "message": "resource and api-version 2019-08-01"}, 400)
        token = self._directory.issue(resource)
        return JSONResponse(
            {
                "access_token": token.token,
                "expires_on": str(token.expires_on),
                "resource": resource,
                "token_type": "Bearer",
                "client_id": self._directory.principal,
            }
        )

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()


def _text(value: object) -> str:
    return _base64url(json.dumps(value, separators=(",", ":")).encode())


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

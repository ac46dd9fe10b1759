"""The product's own clients over the stand-ins' applications, without sockets between them.

For sweeps of thousands of worlds: what a client sends is what it would send, what comes back is what would
come back, and only TCP and TLS are left out. A stand-in does nothing that waits, so that its coroutine runs
from begin to end in the caller's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import urllib3
from azure.core.pipeline import policies
from azure.core.pipeline.transport import HttpTransport
from azure.core.rest._http_response_impl import HttpResponseImpl
from azure.mgmt.core import ARMPipelineClient
from requests.structures import CaseInsensitiveDict

from sandbox.arm import LocalArm
from sandbox.kube import LocalKubernetes, access
from shared.clients.arm import Arm
from shared.clients.azure import bearer_token_policy
from shared.clients.kube import KubeClient

ARM = "http://127.0.0.1:1"
KUBERNETES = "http://127.0.0.1:2"
SCOPE = "https://management.azure.com/.default"


@dataclass
class Response:
    """What an application answered, as urllib3 would show it."""

    status: int
    headers: CaseInsensitiveDict
    data: bytes


def call(app: Any, method: str, url: str, headers: dict[str, str], body: bytes | None) -> Response:
    """One request to an ASGI application; ConnectionError when it drops the connection instead."""
    parts = urlsplit(url)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": parts.scheme,
        "path": parts.path,
        "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(),
        "root_path": "",
        "headers": [(k.lower().encode(), str(v).encode()) for k, v in headers.items()],
        "server": (parts.hostname, parts.port),
        "client": ("127.0.0.1", 0),
    }
    cycle = _Cycle(body or b"")
    _run(app(scope, cycle.receive, cycle.send))
    if cycle.is_dropped or not cycle.sent:
        raise ConnectionError("the answer was lost")
    start = cycle.sent[0]
    answered = {name.decode(): value.decode() for name, value in start.get("headers", ())}
    data = b"".join(m.get("body", b"") for m in cycle.sent[1:])
    return Response(start["status"], CaseInsensitiveDict(answered), data)


class _Cycle:
    """One request, with the transport that stand-ins abort when an answer is to be lost."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.sent: list[Any] = []
        self.is_dropped = False
        self.transport = self

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def abort(self) -> None:
        self.is_dropped = True


def _run(work: Coroutine[Any, Any, Any]) -> None:
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise AssertionError("the stand-in waits for something; use it over HTTP")


class _Pool:
    """As the client's own pool of connections."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def request(self, method: str, url: str, *, body: bytes | None, headers: dict[str, str]) -> Response:
        try:
            return call(self._app, method, url, headers, body)
        except ConnectionError as error:
            raise urllib3.exceptions.ProtocolError(str(error)) from error

    def clear(self) -> None:
        pass


def kube_client(kubernetes: LocalKubernetes) -> KubeClient:
    """An administrator's."""
    token = kubernetes.api.tokens.issue("admin", (access.ADMINISTRATORS,))
    client = KubeClient(KUBERNETES, None, lambda: f"Bearer {token}")
    client._pool = _Pool(kubernetes.api)
    return client


class _Transport(HttpTransport):  # type: ignore[type-arg]
    def __init__(self, app: Any) -> None:
        self._app = app

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def sleep(self, _seconds: float) -> None:
        """Time stands still here."""

    def send(self, request: Any, **_: Any) -> Any:
        from azure.core.exceptions import ServiceResponseError

        content = request.content if hasattr(request, "content") else request.body
        data = content.encode() if isinstance(content, str) else content
        try:
            found = call(self._app, request.method, request.url, dict(request.headers), data)
        except ConnectionError as error:
            raise ServiceResponseError(str(error)) from error
        response = HttpResponseImpl(
            request=request,
            internal_response=None,
            status_code=found.status,
            reason="",
            content_type=found.headers.get("content-type"),
            headers=found.headers,
            stream_download_generator=lambda **_: iter(()),
        )
        response._content = found.data
        return response


def arm_client(arm: LocalArm, now: Callable[[], datetime]) -> Arm:
    """As `shared.clients.arm.arm` builds it, but for the way to the other side."""
    pipeline = [
        policies.RequestIdPolicy(),
        policies.RetryPolicy(),
        bearer_token_policy(arm.credential(), SCOPE),
    ]
    client: Any = ARMPipelineClient(base_url=ARM, policies=pipeline, transport=_Transport(arm.recorder))
    return Arm(client, ARM, now)

"""Serves an ASGI application on a free loopback port, records each request and lets tests break answers.

The ground that the local Azure stands on (`sandbox.arm`, `sandbox.keyvault`, `sandbox.identity`). The wire
is real: clients connect over TCP, so time-outs, lost answers and retries are the clients' own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

START_SECONDS = 15


@dataclass(frozen=True)
class Recorded:
    """One request as it arrived, and the status it was answered with (0: the answer was lost)."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    status: int

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None

    def __str__(self) -> str:
        return f"{self.method} {self.path} -> {self.status or 'lost'}"


@dataclass
class Fault:
    """What to do to matching requests: answer with `status` instead of working, delay, or lose the answer.

    `skip` lets that many matching requests pass first, `times` says how many are hit. With `lose_answer`
    the work is done and the connection then dropped; `before` is called just before the work and `after` just
    after it, and both may change the world: after a read means between that read and a later write.
    """

    matches: Callable[[str, str], bool]
    status: int | None = None
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    skip: int = 0
    times: int = 1
    delay_seconds: float = 0.0
    lose_answer: bool = False
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None

    def hits(self, method: str, path: str) -> bool:
        if self.times <= 0 or not self.matches(method, path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


def on(method: str = "*", path: str = "") -> Callable[[str, str], bool]:
    """Matches requests by verb (`*` any, `write` any but GET and HEAD) and a part of the path (any case)."""

    def matches(actual_method: str, actual_path: str) -> bool:
        verb = method in ("*", actual_method)
        verb = verb or (method == "write" and actual_method not in ("GET", "HEAD"))
        return verb and path.lower() in actual_path.lower()

    return matches


class Recorder:
    """ASGI middleware around a stand-in: `requests` in order of arrival, and the faults still to come."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.requests: list[Recorded] = []
        self.faults: list[Fault] = []

    def count(self, method: str = "*", path: str = "") -> int:
        return len(self.of(method, path))

    def of(self, method: str = "*", path: str = "") -> list[Recorded]:
        matches = on(method, path)
        return [request for request in self.requests if matches(request.method, request.path)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await _read(receive)
        fault = next((f for f in self.faults if f.hits(scope["method"], scope["path"])), None)
        answer = await self._answer(scope, body, fault)
        lost = fault is not None and fault.lose_answer
        self.requests.append(_recorded(scope, body, 0 if lost else _status(answer)))
        if lost:
            _drop_connection(send)
            return
        for message in answer:
            await send(message)

    async def _answer(self, scope: Scope, body: bytes, fault: Fault | None) -> list[Message]:
        if fault is not None:
            if fault.delay_seconds:
                await asyncio.sleep(fault.delay_seconds)
            if fault.before:
                fault.before()
            if fault.status is not None:
                return _messages(fault.status, fault.body, fault.headers)
        sent: list[Message] = []

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def keep(message: Message) -> None:
            sent.append(message)

        await self._app(scope, replay, keep)
        if fault is not None and fault.after:
            fault.after()
        return sent


class QuickServer(uvicorn.Server):
    """uvicorn looks ten times a second whether it should end; tests that start and stop hundreds of servers
    would wait for that longer than for anything else.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = asyncio.Event()

    def end(self) -> None:
        """From any thread, at any time."""
        self.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._told.set)

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        counter = 0
        while not await self.on_tick(counter):
            counter += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), 0.1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listening in sockets or ():
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        deadline = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        while self.server_state.tasks and time.monotonic() < deadline:
            await asyncio.sleep(0.002)
        for task in self.server_state.tasks:
            task.cancel()
        await asyncio.sleep(0)


class Server:
    """`with Server(app) as server: server.url`; stops with the block. One thread, one free port.

    With files of a certificate and its key, it speaks TLS.
    """

    def __init__(self, app: ASGIApp, certificate: tuple[str, str] | None = None) -> None:
        config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", ws="none")
        if certificate is not None:
            config.ssl_certfile, config.ssl_keyfile = certificate
        self._scheme = "https" if certificate is not None else "http"
        # A client may hold an idle connection for ever; stopping does not wait for it.
        config.timeout_graceful_shutdown = 1
        self._server = QuickServer(config)
        self._thread: threading.Thread | None = None
        self.url = ""

    def start(self) -> Self:
        # With the protocol left at 0 asyncio does not switch Nagle off: each answer would then take 40 ms.
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.bind(("127.0.0.1", 0))
        self.url = f"{self._scheme}://127.0.0.1:{listening.getsockname()[1]}"
        self._thread = threading.Thread(
            target=self._serve, args=(listening,), name=f"asgi {self.url}", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError(f"the stand-in at {self.url} did not start")
            time.sleep(0.005)
        return self

    def _serve(self, listening: socket.socket) -> None:
        with listening:
            self._server.run(sockets=[listening])

    def stop(self) -> None:
        """Safe to call twice."""
        self._server.end()
        if self._thread is not None:
            self._thread.join(START_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return body


def _recorded(scope: Scope, body: bytes, status: int) -> Recorded:
    query = parse_qs(scope["query_string"].decode(), keep_blank_values=True)
    return Recorded(
        method=scope["method"],
        path=scope["path"],
        query={name: values[-1] for name, values in query.items()},
        headers={name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]},
        body=body,
        status=status,
    )


def _status(answer: list[Message]) -> int:
    return int(answer[0]["status"]) if answer else 0


def _messages(status: int, body: Any, headers: Mapping[str, str]) -> list[Message]:
    content = b"" if body is None else json.dumps(body).encode()
    lines = {"content-type": "application/json", "content-length": str(len(content)), **headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in lines.items()]
    return [
        {"type": "http.response.start", "status": status, "headers": raw},
        {"type": "http.response.body", "body": content},
    ]


def _drop_connection(send: Send) -> None:
    # ASGI has no word for this; uvicorn's request cycle is the object `send` is bound to, and holds the
    # transport.
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    assert transport is not None, "a lost answer needs uvicorn's own send"
    transport.abort()

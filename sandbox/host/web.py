"""The host's HTTP side: the app's routes with their keys, the Event Grid webhook, the admin API."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from sandbox.host.configuration import ConfigurationError, Function
from sandbox.host.timers import utc_now
from sandbox.host.workers import InvocationError, Workers

log = logging.getLogger("host.http")
HTTP_CUT_SECONDS = 230  # the platform's load balancer gives up on an answer after this
ALL_METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
TEMPLATE = re.compile(r"\{(\*?)([A-Za-z_][A-Za-z0-9_]*)\}")


class Keys(msgspec.Struct, frozen=True):
    """What callers must show: `?code=` or `x-functions-key`. The master key opens everything."""

    master: str = msgspec.field(default_factory=lambda: secrets.token_urlsafe(24))
    function: str = msgspec.field(default_factory=lambda: secrets.token_urlsafe(24))
    eventgrid: str = msgspec.field(default_factory=lambda: secrets.token_urlsafe(24))

    def opens(self, request: Request, *accepted: str) -> bool:
        shown = request.query_params.get("code") or request.headers.get("x-functions-key") or ""
        return any(hmac.compare_digest(shown.encode(), key.encode()) for key in (*accepted, self.master))


def route_path(function: Function, prefix: str) -> str:
    """The function's route as Starlette writes it; ConfigurationError when it is not a plain one."""
    template = (function.trigger.get("route") or function.name).strip("/")
    path = TEMPLATE.sub(lambda match: f"{{{match[2]}{':path' if match[1] else ''}}}", template)
    if re.search(r"[?{}:]", TEMPLATE.sub("", template)):
        raise ConfigurationError(
            f"function {function.name}: the local host does not know the route {template!r}"
        )
    return "/" + "/".join(part for part in (prefix.strip("/"), path) if part)


class Web:
    """Everything that is reached over HTTP."""

    def __init__(self, functions: Sequence[Function], workers: Workers, prefix: str, keys: Keys) -> None:
        self._functions = {function.name.lower(): function for function in functions}
        self._workers = workers
        self._keys = keys
        self._prefix = prefix

    def application(self) -> Starlette:
        routes = [
            Route("/", self._landing),
            Route("/admin/host/status", self._status),
            Route("/admin/functions", self._list),
            Route("/admin/functions/{name}", self._run_now, methods=["POST"]),
            Route("/runtime/webhooks/eventgrid", self._eventgrid, methods=["POST"]),
        ]
        routes += [self._route(one) for one in self._functions.values() if one.kind == "http"]
        return Starlette(routes=routes)

    async def _landing(self, _: Request) -> Response:
        return PlainTextResponse("The local Functions host is running.\n")

    async def _status(self, request: Request) -> Response:
        if not self._keys.opens(request):
            return Response(status_code=401)
        return JSONResponse(
            {"state": "Running", "processes": self._workers.process_ids, "running": self._workers.load}
        )

    async def _list(self, request: Request) -> Response:
        if not self._keys.opens(request):
            return Response(status_code=401)
        return JSONResponse(
            [{"name": one.name, "config": {"bindings": one.bindings}} for one in self._functions.values()]
        )

    async def _run_now(self, request: Request) -> Response:
        """`POST /admin/functions/NAME` with `{"input": "..."}`: 202, and the run goes its own way."""
        if not self._keys.opens(request):
            return Response(status_code=401)
        function = self._functions.get(request.path_params["name"].lower())
        if function is None:
            return Response(status_code=404)
        try:
            given = json.loads(await request.body())
            payload = given.get("input") or ""
        except (ValueError, AttributeError):
            return Response(status_code=400)
        kind, value, metadata = manual_input(function, payload)
        await run_in_threadpool(self._workers.submit, function.name, kind, value, metadata)
        return Response(status_code=202)

    async def _eventgrid(self, request: Request) -> Response:
        if not self._keys.opens(request, self._keys.eventgrid):
            return Response(status_code=401)
        name = request.query_params.get("functionName", "")
        function = self._functions.get(name.lower())
        if function is None or function.kind != "eventGrid":
            return PlainTextResponse(f"cannot find function: '{name}'", 404)
        try:
            document = json.loads(await request.body())
            return await self._receive(function, request.headers.get("aeg-event-type", ""), document)
        except ValueError:
            return Response(status_code=400)

    async def _receive(self, function: Function, event_type: str, document: Any) -> Response:
        events = document if isinstance(document, list) else [document]
        match event_type.lower():
            case "subscriptionvalidation":
                return JSONResponse({"validationResponse": validation_code(events[0])})
            case "notification":
                return await self._notify(function, events)
            case "unsubscribe":
                return Response(status_code=202)
        raise ValueError(f"{event_type!r} is no aeg-event-type")

    async def _notify(self, function: Function, events: Sequence[Any]) -> Response:
        """All events of the array at once; one failure and the whole array is sent again."""
        runs = [self._call(function.name, "json", json.dumps(event)) for event in events]
        results = await asyncio.gather(*runs, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        return PlainTextResponse(str(failures[0]), 500) if failures else Response(status_code=202)

    async def _call(self, name: str, kind: str, value: Any) -> dict[str, Any] | None:
        future: Future[dict[str, Any] | None]
        future = await run_in_threadpool(self._workers.submit, name, kind, value)
        return await asyncio.wrap_future(future)

    def _route(self, function: Function) -> Route:
        level = (function.trigger.get("authLevel") or "function").lower()
        accepted = [self._keys.function] if level == "function" else []

        async def endpoint(request: Request) -> Response:
            if level != "anonymous" and not self._keys.opens(request, *accepted):
                return Response(status_code=401)
            payload = {
                "method": request.method,
                "url": str(request.url),
                "headers": dict(request.headers),
                "query": dict(request.query_params),
                "params": {name: str(value) for name, value in request.path_params.items()},
                "body": await request.body(),
            }
            try:
                async with asyncio.timeout(HTTP_CUT_SECONDS):
                    return _answer(await self._call(function.name, "http", payload))
            except InvocationError:
                return Response(status_code=500)
            except TimeoutError:
                return Response(status_code=504)

        path = route_path(function, self._prefix)
        methods = function.trigger.get("methods") or ALL_METHODS
        return _OnlyMethods(path, endpoint, methods=[str(method).upper() for method in methods])


class _OnlyMethods(Route):
    """The platform answers 404, not 405, when only the method does not fit."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return (Match.NONE, {}) if match == Match.PARTIAL else (match, child)


def _answer(result: dict[str, Any] | None) -> Response:
    if result is None:
        return Response(status_code=204)
    return Response(result["body"], result["status"], result["headers"])


def validation_code(event: Mapping[str, Any]) -> str:
    """The code of the handshake; in CloudEvents form `data` is JSON inside a string."""
    data = event.get("data", {})
    data = json.loads(data) if isinstance(data, str) else data
    code: str = data["validationCode"]
    return code


def manual_input(function: Function, payload: str) -> tuple[str, Any, dict[str, Any]]:
    """What the admin API makes of `input` for each kind of trigger."""
    match function.kind:
        case "timer":
            return "json", json.dumps({"Schedule": {}, "ScheduleStatus": None, "IsPastDue": False}), {}
        case "queue":
            now = utc_now().isoformat()
            times = dict.fromkeys(("InsertionTime", "ExpirationTime", "NextVisibleTime"), now)
            return "string", payload, {"Id": "manual", "DequeueCount": 1, "PopReceipt": "manual", **times}
        case "eventGrid":
            return "json", payload, {}
    request = {
        "method": "POST",
        "url": f"/admin/functions/{function.name}",
        "headers": {},
        "query": {},
        "params": {},
    }
    return "http", {**request, "body": payload.encode()}, {}

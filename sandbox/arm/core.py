"""The part of Azure Resource Manager that all resource types share.

Routing by provider and type, authentication, authorization, api-version checks, the order in which the real
service finds fault (token, api-version, permission, subscription, group, parent, resource), etags,
long-running operations and how they end, throttling, reads that lag, paging, the list of all resources. A
provider (such as `sandbox.arm.storage`) adds `ResourceType`s and nothing else.
"""

from __future__ import annotations

import json
import math
import random
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.arm.state import Document, Operation, Resource, State
from sandbox.asgi import on
from sandbox.clock import Clock
from sandbox.identity import RESOURCE_MANAGER, TENANT, Directory
from shared.model.resource_id import ResourceId, parse_resource_id

API_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")
PREEMPTED = {
    "code": "OperationPreempted",
    "message": "Operation execution has been preempted by a more recent operation.",
}
FILTER_TERM = re.compile(r"(\w+) eq '([^']*)'")
RESOURCE_FIELDS = ("id", "name", "type", "location", "tags", "sku", "kind", "managedBy", "zones", "identity")
VERB_ACTIONS = {"GET": "read", "HEAD": "read", "PUT": "write", "PATCH": "write", "DELETE": "delete"}


class ArmError(Exception):
    """Becomes an answer in Resource Manager's error format."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        *,
        target: str | None = None,
        details: Iterable[Document] = (),
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})
        self.target, self.details = target, list(details)

    @property
    def body(self) -> Document:
        error: Document = {"code": self.code, "message": self.message}
        error |= {"target": self.target} if self.target else {}
        error |= {"details": self.details} if self.details else {}
        return {"error": error}


@dataclass
class Answer:
    """A status, a JSON document (None for no body) and headers."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One authenticated, authorized request for a known type. In a list the last name of `id` is empty."""

    core: Core
    method: str
    id: ResourceId
    type: ResourceType
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    api_version: str
    base_url: str
    path: str
    action: str = ""
    """The action or view asked for, lower case."""
    past: State | None = None
    """What a read sees that lags behind."""

    @property
    def state(self) -> State:
        return self.past or self.core.state

    @property
    def now(self) -> datetime:
        return self.core.clock.now()

    @property
    def properties(self) -> Document:
        """The `properties` of the request body; ArmError 400 when there are none."""
        properties = self.document.get("properties", {})
        if not isinstance(properties, dict):
            raise invalid("properties must be an object")
        return properties

    @property
    def document(self) -> Document:
        if not isinstance(self.body, dict):
            raise invalid("The request content was invalid and could not be deserialized.")
        return self.body

    def existing(self) -> Resource:
        """The addressed resource, or the 404 of its type."""
        resource = self.state.find(self.id)
        if resource is None:
            raise self.type.not_found(self.id)
        return resource

    def check_if_match(
        self, resource: Resource | None, status: int = 412, code: str = "PreconditionFailed"
    ) -> None:
        """412 when the caller saw another version, or wants a new one (`If-None-Match: *`) of what exists."""
        expected, unwanted = self.headers.get("if-match", ""), self.headers.get("if-none-match", "")
        found = _bare(resource.etag) if resource else ""
        differs = bool(expected) and (not found or _bare(expected) not in ("*", found))
        if differs or (unwanted and found and _bare(unwanted) in ("*", found)):
            message = "The condition specified using HTTP conditional header(s) is not met."
            raise ArmError(status, code, message)


class ResourceType:
    """How one type behaves; the defaults store what was written. Providers override what differs.

    `name` is the full type, such as `Microsoft.Storage/storageAccounts`. `actions` maps the last segment of
    a POST (lower case) to its work, `views` that of a GET (`instanceView`). `tracked` types have a location
    and tags, and stand in the list of all resources.
    """

    name: str
    api_versions: frozenset[str]
    always_exists = False
    """A part that is there whenever its parent is (blobServices/default)."""
    tracked = False

    def __init__(self) -> None:
        self.actions: dict[str, Callable[[Call], Answer]] = {}
        self.views: dict[str, Callable[[Call], Answer]] = {}

    def limits(self, call: Call) -> Iterable[Limit]:
        """The provider's own limits that count this call, besides those of the subscription."""
        return ()

    def get(self, call: Call) -> Answer:
        resource = call.existing()
        return Answer(200, self.render(resource), {"ETag": resource.etag})

    def put(self, call: Call) -> Answer:
        raise method_not_allowed(call)

    def patch(self, call: Call) -> Answer:
        raise method_not_allowed(call)

    def delete(self, call: Call) -> Answer:
        raise method_not_allowed(call)

    def list(self, call: Call, scope: str) -> Answer:
        return page(call, [self.render(resource) for resource in call.state.of_type(self.name, scope)])

    def render(self, resource: Resource) -> Document:
        """The document as answered."""
        resource_id = parse_resource_id(resource.id)
        return {"id": resource.id, "name": resource_id.name, "type": resource_id.type, **resource.body}

    def not_found(self, resource_id: ResourceId) -> ArmError:
        what = f"{resource_id.type}/{resource_id.name}"
        message = f"The Resource '{what}' under resource group '{resource_id.group}' was not found."
        return ArmError(404, "ResourceNotFound", message)

    def finish(self, core: Core, operation: Operation) -> None:
        """Apply the effect of an operation that succeeded: `{"merge": {...}}` into the body, or `{"delete":
        true}`.
        """
        resource_id, state = parse_resource_id(operation.resource), core.state
        if operation.effect.get("delete"):
            state.remove(resource_id)
        resource = state.find(resource_id)
        if resource and "merge" in operation.effect:
            state.store(resource_id, merged(resource.body, operation.effect["merge"]))

    def fail(self, core: Core, operation: Operation) -> None:
        """What an operation that failed or was cancelled leaves behind: `provisioningState` Failed."""
        resource = core.state.find(operation.resource)
        if resource and "provisioningState" in resource.body.get("properties", {}):
            body = merged(resource.body, {"properties": {"provisioningState": "Failed"}})
            core.state.store(parse_resource_id(resource.id), body)


@dataclass(frozen=True)
class Limit:
    """Of a resource provider: `capacity` calls at once, refilled by `per_second`; `code` is its 429's."""

    name: str
    capacity: float
    per_second: float
    code: str = "TooManyRequests"


@dataclass
class Bucket:
    """ARM's token bucket: `capacity` calls at once, refilled by `per_second`."""

    capacity: float
    per_second: float
    level: float = -1.0
    at: datetime | None = None

    def take(self, now: datetime) -> float | None:
        """None when the call may pass, else seconds to wait."""
        gained = (now - self.at).total_seconds() * self.per_second if self.at else self.capacity
        self.level, self.at = min(self.capacity, max(self.level, 0.0) + gained), now
        if self.level < 1:
            return (1 - self.level) / self.per_second
        self.level -= 1
        return None


@dataclass
class Ending:
    """How operations to come end, other than well: `status` Failed or Canceled with `code` (None: Canceled
    without a reason, as Azure sometimes answers), or Succeeded after `seconds`.

    `on` is a part of `type/verb` in any case: "virtualMachines/attachDetachDataDisks", "agentPools/put". The
    work is done nevertheless when `applied`. `skip` lets that many pass first, `times` says how many are hit.
    """

    on: str = ""
    status: str = "Failed"
    code: str | None = "InternalExecutionError"
    message: str = "An internal execution error occurred."
    applied: bool = False
    seconds: float | None = None
    skip: int = 0
    times: int = 1

    def hits(self, kind: str) -> bool:
        if self.times <= 0 or self.on.lower() not in kind.lower():
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True

    @property
    def document(self) -> Document:
        error = {"code": self.code, "message": self.message} if self.code else None
        return {"status": self.status, "error": error, "applied": self.applied}


@dataclass(frozen=True)
class Latencies:
    """Seconds that operations take: log-normal around a median for each kind (`type/verb`, or a part of it;
    the longest that fits counts), the same in every run with the same seed.
    """

    medians: Mapping[str, float]
    seed: int = 0
    spread: float = 0.35
    """Of the logarithm: 0.35 puts 90 % of all between 0.56 and 1.8 medians."""

    def draw(self, kind: str, operation: str) -> float:
        fitting = [part for part in self.medians if part.lower() in kind.lower()]
        median = self.medians[max(fitting, key=len)] if fitting else 0.0
        source = random.Random(f"{self.seed} {operation}")
        return median * math.exp(source.gauss(0.0, self.spread))


@dataclass
class Stale:
    """Reads that match answer as the world was `seconds` ago, `times` times."""

    matches: Callable[[str, str], bool]
    seconds: float
    times: float = math.inf


class Core:
    """The service without its HTTP: `handle` turns a request into an answer, or raises ArmError."""

    def __init__(self, clock: Clock, directory: Directory, types: Iterable[ResourceType]) -> None:
        self.clock = clock
        self.directory = directory
        self.types = {known.name.lower(): known for known in types}
        self.truth_listeners: list[Callable[[str], None]] = []
        """Told of machines by vmId, whatever state is put in place; see `Truth.listen`."""
        self.lock = threading.RLock()
        """Held while a request is worked on; hold it to read or change several things at once."""
        self.reset()

    def reset(self) -> None:
        """Nothing there, nothing scripted."""
        self.state = State()
        self.denied: list[str] = []
        """Prefixes of actions that the identity lacks, such as `Microsoft.Storage/storageAccounts/write`."""
        self.unregistered: list[str] = []
        """Resource providers, in lower case, that the subscription is not registered for."""
        self.operation_seconds: float = 0.0
        """How long a long-running operation takes on the clock."""
        self.latencies: Latencies | None = None
        """How long operations take, instead of `operation_seconds`."""
        self.endings: list[Ending] = []
        """How operations to come end."""
        self.running_words: tuple[str, ...] = ("InProgress",)
        """What a running operation is called, from its begin to its end: `("Accepted", "Running")`."""
        self.polling_seconds = 0
        """Retry-After of a running operation, 0 for none; Azure says 15 or so."""
        self.page_size = 1000
        self.lag_seconds = 0.0
        """How far every read lags behind the writes."""
        self.stale: list[Stale] = []
        self.pasts: list[tuple[datetime, str]] = []
        """When, and of which path in lower case, a read of `stale` was answered out of the past."""
        self._closed: list[tuple[Callable[[str, str], bool], datetime]] = []
        self.settings: dict[str, Any] = {}
        """Of the providers; their modules say which."""
        self.limit_requests()

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        for listener in self.truth_listeners:
            state.truth.listen(listener)
        state.at = _text(self.clock.now())
        self._running = {key: work for key, work in state.operations.items() if work.running}
        for operation in self._running.values():
            self.clock.at(datetime.fromisoformat(operation.ends), self.settle)

    def limit_requests(self, **buckets: tuple[float, float]) -> None:
        """Full buckets as documented (each subscription and region), or as given: `reads=(capacity, per
        second)`.
        """
        self.buckets: dict[str, Bucket] = {}
        self._closed.clear()
        self.bucket_sizes = {
            "reads": (250.0, 25.0),
            "writes": (200.0, 10.0),
            "deletes": (200.0, 10.0),
            **buckets,
        }

    def throttle(self, seconds: float, method: str = "*", path: str = "") -> None:
        """Refuse matching requests (see `sandbox.asgi.on`) with 429 until the clock has moved that far."""
        self._closed.append((on(method, path), self.clock.now() + timedelta(seconds=seconds)))

    def listen(self, listener: Callable[[str], None]) -> None:
        """Tell of every machine that boots, stops or goes; see `Truth.listen`."""
        self.truth_listeners.append(listener)
        self.state.truth.listen(listener)

    def read_stale(self, seconds: float, path: str = "", times: float = math.inf) -> None:
        """Let matching reads answer what was true `seconds` ago."""
        self.stale.append(Stale(on("GET", path), seconds, times))

    # --- requests ---

    async def __call__(self, request: Request) -> Response:
        headers = {"x-ms-request-id": str(uuid.uuid4()), "x-ms-correlation-request-id": str(uuid.uuid4())}
        body = await request.body()
        with self.lock:
            try:
                answer = self.handle(request, body, headers)
            except ArmError as error:
                answer = Answer(error.status, error.body, error.headers)
        headers |= answer.headers
        if answer.body is None:
            return Response(status_code=answer.status, headers=headers)
        return JSONResponse(answer.body, answer.status, headers=headers)

    def handle(self, request: Request, body: bytes, sent: dict[str, str]) -> Answer:
        """The answer to one request; nothing in here waits. Headers of every answer are added to `sent`."""
        method, path = request.method, request.url.path
        base_url = str(request.base_url).rstrip("/")
        query = {name.lower(): value for name, value in request.query_params.items()}
        headers = {name.lower(): value for name, value in request.headers.items()}
        self._authenticate(headers)
        self.settle()
        parts = path.strip("/").split("/")
        if len(parts) < 2 or parts[0].lower() != "subscriptions":
            raise ArmError(404, "InvalidRequestUri", f"The request URI '{path}' is not modelled here.")
        api_version = self._api_version(query)
        self._throttle(parts[1], method, path, sent)
        if operation := self._operation_of(parts):
            return self._poll(operation, parts, base_url, query)
        if parts[-1].lower() == "resources" and len(parts) in (3, 5):
            return self._resources(method, parts, query, base_url, path)
        if (own := self._own(method, parts, body)) is not None:
            return own
        target, action, scope = self._route(parts, method)
        resource_type = self._type(target.type, api_version)
        self._authorize(method, target, action)
        self._check_subscription(target.subscription)
        call = Call(
            self,
            method,
            target,
            resource_type,
            query,
            headers,
            _json(body),
            api_version,
            base_url,
            path,
            action or "",
            self._past(method, path),
        )
        self._limit(call, sent)
        if scope is not None:
            if target.group:
                self._check_parents(method, target)
            return resource_type.list(call, scope)
        self._check_parents(method, target)
        if action is not None:
            return (resource_type.views if method == "GET" else resource_type.actions)[action](call)
        work = {"GET": resource_type.get, "PUT": resource_type.put}
        work |= {"PATCH": resource_type.patch, "DELETE": resource_type.delete}
        if method not in work:
            raise method_not_allowed(call)
        return work[method](call)

    def _past(self, method: str, path: str) -> State | None:
        """What this request sees; None for the present."""
        if method != "GET":
            return None
        seconds = self.lag_seconds
        for stale in self.stale:
            if stale.times > 0 and stale.matches(method, path):
                stale.times -= 1
                seconds = max(seconds, stale.seconds)
                self.pasts.append((self.clock.now(), path.lower()))
        return self.state.as_of(_text(self.clock.now() - timedelta(seconds=seconds))) if seconds else None

    def _route(self, parts: list[str], method: str) -> tuple[ResourceId, str | None, str | None]:
        """The resource addressed, the action on it, and for a list the scope it covers."""
        in_group = len(parts) > 3 and parts[2].lower() == "resourcegroups"
        group, rest = (parts[3], parts[4:]) if in_group else ("", parts[2:])
        if len(rest) < 3 or rest[0].lower() != "providers":
            raise ArmError(404, "InvalidRequestUri", "The request URI is not modelled here.")
        namespace, tail = rest[1], rest[2:]
        types, names = tuple(tail[::2]), tuple(tail[1::2])
        if method == "POST" and len(types) == len(names) + 1:
            target = ResourceId(parts[1], group, namespace, types[:-1], names)
            known = self.types.get(target.type.lower())
            action = types[-1].lower()
            if known is None or action not in known.actions:
                raise ArmError(404, "InvalidResourceType", f"The action '{types[-1]}' is not modelled here.")
            return target, action, None
        if method == "GET" and len(types) == len(names) + 1 and names:
            known = self.types.get("/".join((namespace, *types[:-1])).lower())
            if known and types[-1].lower() in known.views:
                return (
                    ResourceId(parts[1], group, namespace, types[:-1], names),
                    types[-1].lower(),
                    None,
                )
        if len(types) == len(names) + 1:
            scope = "/" + "/".join(parts[:-1] if len(types) > 1 else parts[: 4 if in_group else 2])
            return ResourceId(parts[1], group, namespace, types, (*names, "")), None, scope
        return ResourceId(parts[1], group, namespace, types, names), None, None

    def _authenticate(self, headers: Mapping[str, str]) -> None:
        refusal = self.directory.refusal(headers.get("authorization"), RESOURCE_MANAGER)
        if refusal:
            authority = f"https://login.microsoftonline.com/{TENANT}"
            challenge = f'Bearer authorization_uri="{authority}", error="invalid_token"'
            raise ArmError(
                401,
                "AuthenticationFailed",
                f"Authentication failed: {refusal}.",
                {"WWW-Authenticate": challenge},
            )

    def _api_version(self, query: Mapping[str, str]) -> str:
        version = query.get("api-version", "")
        if not version:
            raise ArmError(
                400,
                "MissingApiVersionParameter",
                "The api-version query parameter (?api-version=) is required for all requests.",
            )
        if not API_VERSION.fullmatch(version):
            raise ArmError(400, "InvalidApiVersionParameter", f"The api-version '{version}' is invalid.")
        return version

    def _type(self, name: str, api_version: str) -> ResourceType:
        known = self.types.get(name.lower())
        if known is None:
            raise ArmError(404, "InvalidResourceType", f"The resource type '{name}' is not modelled here.")
        if api_version not in known.api_versions:
            raise ArmError(
                400,
                "NoRegisteredProviderFound",
                f"No registered resource provider found for API version '{api_version}' for type "
                f"'{known.name}'. The supported api-versions are '{', '.join(sorted(known.api_versions))}'.",
            )
        return known

    def _authorize(self, method: str, target: ResourceId, action: str | None) -> None:
        wanted = f"{target.type}/{VERB_ACTIONS.get(method, 'read')}"
        if action:
            wanted = f"{target.type}/{action}/{'read' if method == 'GET' else 'action'}"
        if any(wanted.lower().startswith(denied.lower()) for denied in self.denied):
            who = f"The client '{self.directory.principal}' with object id '{self.directory.principal}'"
            what = f"does not have authorization to perform action '{wanted}' over scope '{target}'"
            raise ArmError(403, "AuthorizationFailed", f"{who} {what} or the scope is invalid.")

    def _check_subscription(self, subscription: str) -> None:
        if subscription.lower() not in self.state.subscriptions:
            raise ArmError(
                404, "SubscriptionNotFound", f"The subscription '{subscription}' could not be found."
            )

    def _check_parents(self, method: str, target: ResourceId) -> None:
        if not target.group:
            return
        if group_key(target.subscription, target.group) not in self.state.groups:
            raise ArmError(
                404, "ResourceGroupNotFound", f"Resource group '{target.group}' could not be found."
            )
        parent = target.parent
        while parent is not None:
            known = self.types.get(parent.type.lower())
            if known and not known.always_exists and parent.key not in self.state.resources:
                raise known.not_found(parent) if method == "GET" else parent_not_found(target)
            parent = parent.parent

    def _throttle(self, subscription: str, method: str, path: str, sent: dict[str, str]) -> None:
        now = self.clock.now()
        for matches, until in self._closed:
            if now < until and matches(method, path):
                raise _throttled("TooManyRequests", "The request is being throttled.", until - now)
        kind = {"GET": "reads", "HEAD": "reads", "DELETE": "deletes"}.get(method, "writes")
        bucket = self.buckets.setdefault(f"{subscription}/{kind}".lower(), Bucket(*self.bucket_sizes[kind]))
        wait = bucket.take(now)
        sent[f"x-ms-ratelimit-remaining-subscription-{kind}"] = str(int(bucket.level))
        if wait is not None:
            message = f"Number of {kind} requests for subscription '{subscription}' exceeded the limit."
            raise _throttled("SubscriptionRequestsThrottled", message, timedelta(seconds=wait))

    def _limit(self, call: Call, sent: dict[str, str]) -> None:
        left = []
        for limit in call.type.limits(call):
            key = f"{call.id.subscription}/{limit.name}".lower()
            bucket = self.buckets.setdefault(key, Bucket(limit.capacity, limit.per_second))
            wait = bucket.take(self.clock.now())
            left.append(f"{limit.name};{int(bucket.level)}")
            sent["x-ms-ratelimit-remaining-resource"] = ",".join(left)
            if wait is not None:
                message = f"Too many requests have been received for this subscription: {limit.name}."
                raise _throttled(limit.code, message, timedelta(seconds=wait))

    # --- the list of all resources ---

    def _resources(
        self, method: str, parts: list[str], query: Mapping[str, str], base_url: str, path: str
    ) -> Answer:
        """Tracked resources of the subscription or group: `$filter` by resourceType, tagName and tagValue."""
        self._check_subscription(parts[1])
        if len(parts) == 5 and group_key(parts[1], parts[3]) not in self.state.groups:
            raise ArmError(404, "ResourceGroupNotFound", f"Resource group '{parts[3]}' could not be found.")
        state = self._past(method, path) or self.state
        scope = "/" + "/".join(parts[:-1])
        asked = dict(FILTER_TERM.findall(query.get("$filter", "")))
        found = []
        for known in self.types.values():
            wanted = asked.get("resourceType", known.name).lower() == known.name.lower()
            for resource in state.of_type(known.name, scope) if known.tracked and wanted else ():
                shown = known.render(resource)
                if _has_tag(shown.get("tags") or {}, asked):
                    found.append({name: shown[name] for name in RESOURCE_FIELDS if shown.get(name)})
        return page_of(found, min(int(query.get("$top", 1000)), self.page_size), query, base_url + path)

    # --- resource groups ---

    def add_group(self, subscription: str, group: str, location: str = "westeurope") -> str:
        """Make sure subscription and resource group exist; returns the group's id."""
        if subscription.lower() not in self.state.subscriptions:
            self.state.subscriptions.append(subscription.lower())
        group_id = f"/subscriptions/{subscription}/resourceGroups/{group}"
        document = {
            "id": group_id,
            "name": group,
            "type": "Microsoft.Resources/resourceGroups",
            "location": location,
        }
        self.state.groups[group_key(subscription, group)] = document
        return group_id

    def _own(self, method: str, parts: list[str], body: bytes) -> Answer | None:
        """What Resource Manager knows by itself: resource groups, what the caller may do there, providers."""
        kind = parts[2].lower() if len(parts) > 2 else ""
        if kind == "providers" and len(parts) == 4 and method == "GET":
            return self._provider(parts[3])
        is_of_group = len(parts) in (3, 4) or parts[5:] == ["Microsoft.Authorization", "permissions"]
        return self._group(method, parts, body) if kind == "resourcegroups" and is_of_group else None

    def _provider(self, namespace: str) -> Answer:
        """A resource provider as a subscription has it; `unregistered` names those it has not."""
        kinds = [
            kind for kind in self.types.values() if kind.name.lower().startswith(f"{namespace.lower()}/")
        ]
        types = [
            {"resourceType": kind.name.partition("/")[2], "apiVersions": sorted(kind.api_versions)}
            for kind in kinds
        ]
        state = "NotRegistered" if namespace.lower() in self.unregistered else "Registered"
        return Answer(200, {"namespace": namespace, "registrationState": state, "resourceTypes": types})

    def _permissions(self) -> Answer:
        """What the caller may do, as one role that gives all but what is denied."""
        denied = [f"{prefix}*" for prefix in self.denied]
        role = {"actions": ["*"], "notActions": denied, "dataActions": [], "notDataActions": []}
        return Answer(200, {"value": [role]})

    def _group(self, method: str, parts: list[str], body: bytes) -> Answer:
        self._check_subscription(parts[1])
        if len(parts) == 3:
            prefix = group_key(parts[1], "")
            return Answer(
                200, {"value": [g for key, g in self.state.groups.items() if key.startswith(prefix)]}
            )
        if method == "PUT":
            location = (_json(body) or {}).get("location", "westeurope")
            self.add_group(parts[1], parts[3], location)
        group = self.state.groups.get(group_key(parts[1], parts[3]))
        if group is None:
            raise ArmError(404, "ResourceGroupNotFound", f"Resource group '{parts[3]}' could not be found.")
        return Answer(200, group) if len(parts) == 4 else self._permissions()

    # --- long-running operations ---

    def begin(
        self,
        call: Call,
        effect: Document,
        *,
        location: str,
        on_running: str = "refuse",
        superseded: Document = PREEMPTED,
        result: Any = None,
        verb: str = "",
        seconds: float | None = None,
    ) -> tuple[Operation, dict[str, str]]:
        """Accept work that takes its time; returns it and the headers that tell where to ask.

        When other work is running on the same resource: `refuse` with 409, `supersede` it, which then ends
        as Canceled with the error given (where Azure lets a later write win), or be `concurrent`.
        """
        for running in self.running_on(call.id) if on_running != "concurrent" else ():
            if not running.effect:
                continue  # it only looks at the resource
            if on_running == "refuse":
                message = "Another operation on this resource is in progress."
                raise ArmError(409, "AnotherOperationInProgress", message)
            self._end(running, "Canceled", superseded)
        verb = verb or call.action or call.method.lower()
        operation = self.schedule(
            call.id, effect, verb=verb, location=location, result=result, seconds=seconds
        )
        return operation, self._operation_headers(operation, call.base_url, call.api_version)

    def schedule(
        self,
        resource_id: ResourceId,
        effect: Document,
        *,
        verb: str,
        location: str = "",
        seconds: float | None = None,
        result: Any = None,
        visible: bool = True,
    ) -> Operation:
        """Begin work without a request, such as what the service does by itself."""
        now, kind = self.clock.now(), f"{resource_id.type}/{verb}"
        operation = Operation(
            id=self.state.new_id(),
            resource=str(resource_id),
            subscription=resource_id.subscription,
            namespace=resource_id.namespace,
            location=location,
            started=_text(now),
            ends="",
            verb=verb,
            visible=visible,
            effect=effect,
            result=result,
        )
        if seconds is None:
            seconds = self.operation_seconds
            seconds = self.latencies.draw(kind, operation.id) if self.latencies else seconds
        ending = next((ending for ending in self.endings if ending.hits(kind)), None) if visible else None
        if ending is not None:
            operation.ending = ending.document
            seconds = seconds if ending.seconds is None else ending.seconds
        ends = now + timedelta(seconds=seconds)
        operation.ends = _text(ends)
        self.state.operations[operation.id] = operation
        self._running[operation.id] = operation
        self.clock.at(ends, self.settle)
        return operation

    def running_on(self, resource_id: ResourceId) -> list[Operation]:
        """Visible operations on exactly this resource that have not ended."""
        running = self._running.values()
        return [work for work in running if work.visible and work.resource.lower() == resource_id.key]

    def supersede(self, operation: Operation, error: Document = PREEMPTED) -> None:
        """A later write takes over what this one was doing."""
        self._end(operation, "Canceled", error)

    def do(
        self,
        method: str,
        resource_id: ResourceId | str,
        body: Any = None,
        action: str = "",
        *,
        at_once: bool = True,
    ) -> Answer:
        """A request without HTTP, limits and recording: what the service does itself, or somebody else.

        With `at_once` its operation has ended, and well, when this returns; else it takes the time it takes.
        """
        if isinstance(resource_id, str):
            resource_id = parse_resource_id(resource_id)
        known = self.types[resource_id.type.lower()]
        with self.lock:
            kept = self.operation_seconds, self.latencies, self.endings
            if at_once:
                self.operation_seconds, self.latencies, self.endings = 0.0, None, []
            try:
                self.settle()
                version = max(known.api_versions)
                call = Call(self, method, resource_id, known, {}, {}, body, version, "", "", action.lower())
                work = known.actions[action.lower()] if action else getattr(known, method.lower())
                answer: Answer = work(call)
                self.settle()
            finally:
                self.operation_seconds, self.latencies, self.endings = kept
        return answer

    def settle(self) -> None:
        """End every operation whose time has come, in the order of their ends."""
        with self.lock:
            now = _text(self.clock.now())
            while due := [work for work in self._running.values() if work.ends <= now]:
                operation = min(due, key=lambda work: work.ends)
                self.state.at = operation.ends
                self._settle(operation)
            self.state.at = now

    def _settle(self, operation: Operation) -> None:
        ending = operation.ending or {"status": "Succeeded", "error": None, "applied": True}
        kind = self.types[parse_resource_id(operation.resource).type.lower()]
        self._end(operation, ending["status"], ending["error"])
        if ending["status"] == "Succeeded" or ending["applied"]:
            kind.finish(self, operation)
        if operation.status != "Succeeded":
            kind.fail(self, operation)

    def _end(self, operation: Operation, status: str, error: Document | None = None) -> None:
        operation.status, operation.error = status, error
        operation.ended = self.state.at or operation.ends
        self._running.pop(operation.id, None)

    def _operation_headers(self, operation: Operation, base_url: str, api_version: str) -> dict[str, str]:
        where = (
            f"{base_url}/subscriptions/{operation.subscription}/providers/{operation.namespace}"
            f"/locations/{operation.location}"
        )
        query = urlencode({"api-version": api_version})
        return {
            "Azure-AsyncOperation": f"{where}/operations/{operation.id}?{query}",
            "Location": f"{where}/operationresults/{operation.id}?{query}",
            **self._retry_after(),
        }

    def _retry_after(self) -> dict[str, str]:
        return {"Retry-After": str(self.polling_seconds)} if self.polling_seconds else {}

    def _operation_of(self, parts: list[str]) -> Operation | None:
        if len(parts) != 8 or parts[6].lower() not in ("operations", "operationresults"):
            return None
        operation = self.state.operations.get(parts[7])
        if operation is None or not operation.visible:
            raise ArmError(404, "OperationNotFound", f"The operation '{parts[7]}' could not be found.")
        return operation

    def _poll(
        self, operation: Operation, parts: list[str], base_url: str, query: Mapping[str, str]
    ) -> Answer:
        if parts[6].lower() == "operations":
            return self._poll_status(operation, parts)
        if operation.running:
            return Answer(202, None, self._operation_headers(operation, base_url, query["api-version"]))
        if operation.status == "Canceled":
            # HTTP says 200 here although nothing was done: only the body tells (cloud-provider-azure#1356).
            return Answer(200, {"status": "Canceled", "error": operation.error or {}})
        if operation.error:
            raise ArmError(409, operation.error["code"], operation.error["message"])
        if operation.result is not None:
            return Answer(200, operation.result)
        resource_id = parse_resource_id(operation.resource)
        resource = self.state.find(resource_id)
        if resource is None or operation.verb not in ("put", "patch"):
            return Answer(204)
        return Answer(200, self.types[resource_id.type.lower()].render(resource))

    def _poll_status(self, operation: Operation, parts: list[str]) -> Answer:
        status = operation.status
        if operation.running:
            began, ends = (
                datetime.fromisoformat(text).timestamp() for text in (operation.started, operation.ends)
            )
            share = (self.clock.now().timestamp() - began) / max(ends - began, 1e-6)
            words = self.running_words
            status = words[min(len(words) - 1, int(share * len(words)))]
        document: Document = {"id": "/" + "/".join(parts), "name": operation.id, "status": status}
        document |= {"startTime": operation.started}
        document |= {"endTime": operation.ended} if operation.ended else {}
        document |= {"error": operation.error} if operation.error else {}
        if operation.status == "Succeeded" and operation.result is not None:
            document["properties"] = {"output": operation.result}
        return Answer(200, document, self._retry_after() if operation.running else {})


# --- what providers use ---


def invalid(message: str, code: str = "InvalidRequestContent") -> ArmError:
    return ArmError(400, code, message)


def method_not_allowed(call: Call) -> ArmError:
    return ArmError(405, "MethodNotAllowed", f"'{call.method}' is not modelled for '{call.type.name}'.")


def parent_not_found(target: ResourceId) -> ArmError:
    return ArmError(
        404,
        "ParentResourceNotFound",
        f"Failed to perform the operation on '{target.type}' as its parent resource does not exist.",
    )


def group_key(subscription: str, group: str) -> str:
    return f"{subscription}/{group}".lower()


def merged(old: Document, new: Document) -> Document:
    """JSON merge (RFC 7396): objects merge, null removes, everything else replaces. `old` is left as it
    was.
    """
    result = dict(old)
    for name, value in new.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            below = result.get(name)
            result[name] = merged(below if isinstance(below, dict) else {}, value)
        else:
            result[name] = value
    return result


def page(call: Call, items: list[Document], default_size: int = 1000) -> Answer:
    """One page of a list; `nextLink` leads to the next."""
    size = min(int(call.query.get("$maxpagesize", default_size)), default_size, call.core.page_size)
    return page_of(items, size, call.query, call.base_url + call.path)


def page_of(items: list[Document], size: int, query: Mapping[str, str], url: str) -> Answer:
    start = int(query.get("$skiptoken", 0))
    document: Document = {"value": items[start : start + size]}
    if start + size < len(items):
        rest = {name: value for name, value in query.items() if name != "$skiptoken"}
        document["nextLink"] = f"{url}?{urlencode({**rest, '$skiptoken': start + size})}"
    return Answer(200, document)


def _throttled(code: str, message: str, wait: timedelta) -> ArmError:
    return ArmError(429, code, message, {"Retry-After": str(math.ceil(wait.total_seconds()) or 1)})


def _has_tag(tags: Document, asked: Mapping[str, str]) -> bool:
    name, value = asked.get("tagName"), asked.get("tagValue")
    lower = {known.lower(): tags[known] for known in tags}
    return name is None or (name.lower() in lower and value in (None, lower[name.lower()]))


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _text(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds always, so that texts compare as times do."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _json(body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError as error:
        raise invalid("The request content was invalid and could not be deserialized.") from error

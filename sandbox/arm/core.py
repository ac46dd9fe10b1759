"""The part of Azure Resource Manager that all resource types share.

Routing by provider and type, authentication, authorization, api-version checks, the order in which the real
service finds fault (token, api-version, permission, subscription, group, parent, resource), etags,
long-running operations, throttling, paging. A provider (`sandbox.arm.storage` and those to come) adds
`ResourceType`s and nothing else.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.arm.state import Document, Operation, Resource, State
from sandbox.clock import Clock
from sandbox.identity import RESOURCE_MANAGER, TENANT, Directory
from shared.model.resource_id import ResourceId, parse_resource_id

API_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")
VERB_ACTIONS = {"GET": "read", "HEAD": "read", "PUT": "write", "PATCH": "write", "DELETE": "delete"}


class ArmError(Exception):
    """Becomes an answer in Resource Manager's error format."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})

    @property
    def body(self) -> Document:
        return {"error": {"code": self.code, "message": self.message}}


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

    @property
    def state(self) -> State:
        return self.core.state

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

    def check_if_match(self, resource: Resource | None) -> None:
        """412 when the caller saw another version."""
        expected = self.headers.get("if-match")
        if (
            expected
            and expected != "*"
            and (resource is None or expected.strip('"') != resource.etag.strip('"'))
        ):
            raise ArmError(
                412,
                "PreconditionFailed",
                "The condition specified using HTTP conditional header(s) is not met.",
            )


class ResourceType:
    """How one type behaves; the defaults store what was written. Providers override what differs.

    `name` is the full type, such as `Microsoft.Storage/storageAccounts`. `actions` maps the last segment of
    a POST (lower case) to its work.
    """

    name: str
    api_versions: frozenset[str]
    always_exists = False
    """A part that is there whenever its parent is (blobServices/default)."""

    def __init__(self) -> None:
        self.actions: dict[str, Callable[[Call], Answer]] = {}

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

    def finish(self, operation: Operation, state: State, now: datetime) -> None:
        """Apply the effect of an operation that succeeded: `{"merge": {...}}` into the body, or `{"delete":
        true}`.
        """
        resource_id = parse_resource_id(operation.resource)
        if operation.effect.get("delete"):
            state.remove(resource_id)
        resource = state.find(resource_id)
        if resource and "merge" in operation.effect:
            state.store(resource_id, merged(resource.body, operation.effect["merge"]))


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


class Core:
    """The service without its HTTP: `handle` turns a request into an answer, or raises ArmError."""

    def __init__(self, clock: Clock, directory: Directory, types: Iterable[ResourceType]) -> None:
        self.clock = clock
        self.directory = directory
        self.types = {known.name.lower(): known for known in types}
        self.state = State()
        self.denied: list[str] = []
        """Prefixes of actions that the identity lacks, such as `Microsoft.Storage/storageAccounts/write`."""
        self.operation_seconds: float = 0.0
        """How long a long-running operation takes on the clock."""
        self.failing_operations: list[Document] = []
        """Errors, `{"code", "message"}`, with which the next operations fail after they were accepted."""
        self.polling_seconds = 0
        """Retry-After of a running operation, 0 for none; Azure says 15 or so."""
        self.limit_requests()

    def limit_requests(self, **buckets: tuple[float, float]) -> None:
        """Full buckets as documented (each subscription and region), or as given: `reads=(capacity, per
        second)`.
        """
        self.buckets: dict[str, Bucket] = {}
        self.bucket_sizes = {
            "reads": (250.0, 25.0),
            "writes": (200.0, 10.0),
            "deletes": (200.0, 10.0),
            **buckets,
        }

    # --- requests ---

    async def __call__(self, request: Request) -> Response:
        headers = {"x-ms-request-id": str(uuid.uuid4()), "x-ms-correlation-request-id": str(uuid.uuid4())}
        try:
            answer = self.handle(request, await request.body())
        except ArmError as error:
            answer = Answer(error.status, error.body, error.headers)
        headers |= answer.headers
        if answer.body is None:
            return Response(status_code=answer.status, headers=headers)
        return JSONResponse(answer.body, answer.status, headers=headers)

    def handle(self, request: Request, body: bytes) -> Answer:
        """The answer to one request; nothing in here waits."""
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
        self._throttle(parts[1], method)
        if operation := self._operation_of(parts):
            return self._poll(operation, parts, base_url, query)
        if len(parts) <= 4 and len(parts) > 2 and parts[2].lower() == "resourcegroups":
            return self._group(method, parts, body)
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
        )
        if scope is not None:
            if target.group:
                self._check_parents(method, target)
            return resource_type.list(call, scope)
        self._check_parents(method, target)
        if action is not None:
            return resource_type.actions[action](call)
        work = {"GET": resource_type.get, "PUT": resource_type.put}
        work |= {"PATCH": resource_type.patch, "DELETE": resource_type.delete}
        if method not in work:
            raise method_not_allowed(call)
        return work[method](call)

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
        wanted = (
            f"{target.type}/{action}/action"
            if action
            else f"{target.type}/{VERB_ACTIONS.get(method, 'read')}"
        )
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

    def _throttle(self, subscription: str, method: str) -> None:
        kind = {"GET": "reads", "HEAD": "reads", "DELETE": "deletes"}.get(method, "writes")
        bucket = self.buckets.setdefault(f"{subscription}/{kind}".lower(), Bucket(*self.bucket_sizes[kind]))
        wait = bucket.take(self.clock.now())
        if wait is not None:
            raise ArmError(
                429,
                "SubscriptionRequestsThrottled",
                f"Number of {kind} requests for subscription '{subscription}' exceeded the limit.",
                {"Retry-After": str(int(wait) + 1), f"x-ms-ratelimit-remaining-subscription-{kind}": "0"},
            )

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
        return Answer(200, group)

    # --- long-running operations ---

    def begin(
        self, call: Call, effect: Document, *, location: str, supersede: bool = False
    ) -> tuple[Operation, dict[str, str]]:
        """Accept work that ends after `operation_seconds`; returns it and the headers that tell where to ask.

        With `supersede` a running operation on the same resource ends as Canceled (OperationPreempted), as
        where Azure lets a later write win; otherwise a second one is refused with 409.
        """
        for running in self.state.operations.values():
            if running.resource.lower() == call.id.key and running.status == "InProgress":
                if not supersede:
                    raise ArmError(
                        409,
                        "AnotherOperationInProgress",
                        "Another operation on this resource is in progress.",
                    )
                self._end(
                    running,
                    "Canceled",
                    {"code": "OperationPreempted", "message": "A later write preempted it."},
                )
        now = self.clock.now()
        operation = Operation(
            id=str(uuid.uuid4()),
            resource=str(call.id),
            subscription=call.id.subscription,
            namespace=call.id.namespace,
            location=location,
            started=now.isoformat(),
            ends=(now + timedelta(seconds=self.operation_seconds)).isoformat(),
            effect=effect,
        )
        self.state.operations[operation.id] = operation
        return operation, self._operation_headers(operation, call.base_url, call.api_version)

    def settle(self) -> None:
        """End every operation whose time has come."""
        now = self.clock.now()
        for operation in self.state.operations.values():
            if operation.status == "InProgress" and datetime.fromisoformat(operation.ends) <= now:
                if self.failing_operations:
                    self._end(operation, "Failed", self.failing_operations.pop(0))
                    continue
                self._end(operation, "Succeeded")
                self.types[parse_resource_id(operation.resource).type.lower()].finish(
                    operation, self.state, now
                )

    def _end(self, operation: Operation, status: str, error: Document | None = None) -> None:
        operation.status, operation.error, operation.ended = status, error, self.clock.now().isoformat()

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
        if operation is None:
            raise ArmError(404, "OperationNotFound", f"The operation '{parts[7]}' could not be found.")
        return operation

    def _poll(
        self, operation: Operation, parts: list[str], base_url: str, query: Mapping[str, str]
    ) -> Answer:
        running = operation.status == "InProgress"
        if parts[6].lower() == "operations":
            document: Document = {
                "id": "/" + "/".join(parts),
                "name": operation.id,
                "status": operation.status,
            }
            document |= {"startTime": operation.started}
            document |= {"endTime": operation.ended} if operation.ended else {}
            document |= {"error": operation.error} if operation.error else {}
            return Answer(200, document, self._retry_after() if running else {})
        if running:
            return Answer(202, None, self._operation_headers(operation, base_url, query["api-version"]))
        if operation.error:
            raise ArmError(409, operation.error["code"], operation.error["message"])
        resource_id = parse_resource_id(operation.resource)
        resource = self.state.find(resource_id)
        if resource is None or operation.effect.get("delete"):
            return Answer(204)
        return Answer(200, self.types[resource_id.type.lower()].render(resource))


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
    size = min(int(call.query.get("$maxpagesize", default_size)), default_size)
    start = int(call.query.get("$skiptoken", 0))
    document: Document = {"value": items[start : start + size]}
    if start + size < len(items):
        path = str(call.id).rstrip("/") if call.id.group else _subscription_path(call.id)
        rest = {name: value for name, value in call.query.items() if name != "$skiptoken"}
        document["nextLink"] = f"{call.base_url}{path}?{urlencode({**rest, '$skiptoken': start + size})}"
    return Answer(200, document)


def _subscription_path(target: ResourceId) -> str:
    return f"/subscriptions/{target.subscription}/providers/{target.namespace}/{target.types[0]}"


def _json(body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError as error:
        raise invalid("The request content was invalid and could not be deserialized.") from error

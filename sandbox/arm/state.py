"""What the local Resource Manager holds: resources, long-running operations, capacity and the hidden truth,
as plain data that can be saved, compared, and seen as it was some seconds ago.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec

from sandbox.arm.capacity import Capacity
from sandbox.arm.truth import Truth
from shared.model.resource_id import ResourceId, parse_resource_id

Document = dict[str, Any]
KEPT_VERSIONS = 32  # of each resource, for reads that lag behind


class Resource(msgspec.Struct, kw_only=True):
    """One resource. `body` holds everything but id, name, type and etag; `hidden` is never answered."""

    id: str
    body: Document
    etag: str
    hidden: Document = msgspec.field(default_factory=dict)


class Operation(msgspec.Struct, kw_only=True):
    """A long-running operation; times are ISO 8601, `effect` is applied to the resource when it has
    succeeded, `result` is what `Location` then answers instead of the resource. Without `visible` it is the
    service's own work, which no caller can ask about.
    """

    id: str
    resource: str
    subscription: str
    namespace: str
    location: str
    started: str
    ends: str
    verb: str = ""
    visible: bool = True
    status: str = "InProgress"
    effect: Document = msgspec.field(default_factory=dict)
    error: Document | None = None
    ended: str | None = None
    result: Any = None
    ending: Document | None = None
    """How it is going to end, when something other than success has been asked for."""

    @property
    def running(self) -> bool:
        return self.status == "InProgress"


class Saved(msgspec.Struct, kw_only=True):
    """The file format of `State.dump`."""

    subscriptions: list[str]
    groups: dict[str, Document]
    resources: dict[str, Resource]
    operations: dict[str, Operation]
    capacity: Capacity
    truth: Truth
    serial: int


class State:
    """Everything, keyed without regard to case. Ids and etags made here are the same in every run."""

    def __init__(self) -> None:
        self.subscriptions: list[str] = []
        self.groups: dict[str, Document] = {}
        self.resources: dict[str, Resource] = {}
        self.operations: dict[str, Operation] = {}
        self.capacity = Capacity()
        self.truth = Truth()
        self.serial = 0
        self.at = ""
        """The time that changes are made at, as the core says; ISO 8601, UTC, microseconds."""
        self._types: dict[str, dict[str, None]] = {}
        self._past: dict[str, list[tuple[str, Resource | None]]] = {}

    # --- resources ---

    def find(self, resource_id: ResourceId | str) -> Resource | None:
        key = resource_id.lower() if isinstance(resource_id, str) else resource_id.key
        return self.resources.get(key)

    def store(self, resource_id: ResourceId, body: Document, hidden: Document | None = None) -> Resource:
        """Write the resource with a new etag; its id keeps the spelling it was created with. `hidden` stays
        as it is unless given.
        """
        known = self.find(resource_id)
        resource = Resource(id=known.id if known else str(resource_id), body=body, etag=self.new_etag())
        resource.hidden = hidden if hidden is not None else known.hidden if known else {}
        self._set(resource_id.key, resource)
        return resource

    def remove(self, resource_id: ResourceId) -> None:
        """The resource and all its parts."""
        kind, prefix = resource_id.type.lower() + "/", resource_id.key + "/"
        parts = [keys for name, keys in self._types.items() if name.startswith(kind)]
        for key in [key for keys in parts for key in keys if key.startswith(prefix)]:
            self._set(key, None)
        if resource_id.key in self.resources:
            self._set(resource_id.key, None)

    def of_type(self, resource_type: str, scope: str = "") -> Iterator[Resource]:
        """Resources of exactly this type under `scope` (an id prefix), by id."""
        prefix = scope.lower().rstrip("/") + "/" if scope else ""
        for key in sorted(self._types.get(resource_type.lower(), ())):
            if key.startswith(prefix):
                yield self.resources[key]

    def _set(self, key: str, resource: Resource | None) -> None:
        old = self.resources.get(key)
        past = self._past.setdefault(key, [])
        past.append((self.at, old))
        del past[:-KEPT_VERSIONS]
        if resource is not None:
            self.resources[key] = resource
            self._types.setdefault(_type_of(key), {})[key] = None
        elif old is not None:
            del self.resources[key]
            del self._types[_type_of(key)][key]

    def as_of(self, at: str) -> State:
        """A view with the resources as they were at that time; everything else is as it is."""
        view = State()
        view.subscriptions, view.groups, view.operations = self.subscriptions, self.groups, self.operations
        view.capacity, view.truth, view.at = self.capacity, self.truth, at
        view.resources = dict(self.resources)
        for key, changes in self._past.items():
            before = next((old for when, old in changes if when > at), view)
            if isinstance(before, Resource):
                view.resources[key] = before
            elif before is None:
                view.resources.pop(key, None)
        view._index()
        return view

    def _index(self) -> None:
        self._types = {}
        for key in self.resources:
            self._types.setdefault(_type_of(key), {})[key] = None

    # --- names nobody chose ---

    def new_id(self) -> str:
        """A UUID."""
        self.serial += 1
        return str(uuid.UUID(bytes=hashlib.sha256(f"id {self.serial}".encode()).digest()[:16], version=4))

    def new_etag(self) -> str:
        self.serial += 1
        return f'"0x{hashlib.sha256(f"etag {self.serial}".encode()).hexdigest()[:16].upper()}"'

    # --- files ---

    def dump(self) -> bytes:
        return msgspec.json.encode(
            Saved(
                subscriptions=self.subscriptions,
                groups=self.groups,
                resources=self.resources,
                operations=self.operations,
                capacity=self.capacity,
                truth=self.truth,
                serial=self.serial,
            )
        )

    @staticmethod
    def load(data: bytes) -> State:
        saved = msgspec.json.decode(data, type=Saved)
        state = State()
        for field in saved.__struct_fields__:
            setattr(state, field, getattr(saved, field))
        state._index()
        return state


def _type_of(key: str) -> str:
    return parse_resource_id(key).type.lower()

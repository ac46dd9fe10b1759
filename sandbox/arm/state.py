"""What the local Resource Manager holds: resources and long-running operations, as plain data that can be
saved.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import msgspec

from shared.model.resource_id import ResourceId, parse_resource_id

Document = dict[str, Any]


class Resource(msgspec.Struct, kw_only=True):
    """One resource. `body` holds everything but id, name, type and etag; `hidden` is never answered."""

    id: str
    body: Document
    etag: str
    hidden: Document = msgspec.field(default_factory=dict)


class Operation(msgspec.Struct, kw_only=True):
    """A long-running operation; times are ISO 8601, `effect` is applied to the resource when it has
    succeeded.
    """

    id: str
    resource: str
    subscription: str
    namespace: str
    location: str
    started: str
    ends: str
    status: str = "InProgress"
    effect: Document = msgspec.field(default_factory=dict)
    error: Document | None = None
    ended: str | None = None


class State(msgspec.Struct, kw_only=True):
    """Everything, keyed without regard to case."""

    subscriptions: list[str] = msgspec.field(default_factory=list)
    groups: dict[str, Document] = msgspec.field(default_factory=dict)
    resources: dict[str, Resource] = msgspec.field(default_factory=dict)
    operations: dict[str, Operation] = msgspec.field(default_factory=dict)

    def find(self, resource_id: ResourceId) -> Resource | None:
        return self.resources.get(resource_id.key)

    def store(self, resource_id: ResourceId, body: Document) -> Resource:
        """Write the resource with a new etag; its id keeps the spelling it was created with."""
        known = self.find(resource_id)
        resource = Resource(id=known.id if known else str(resource_id), body=body, etag=new_etag())
        resource.hidden = known.hidden if known else {}
        self.resources[resource_id.key] = resource
        return resource

    def remove(self, resource_id: ResourceId) -> None:
        """The resource and all its parts."""
        prefix = resource_id.key + "/"
        for key in [key for key in self.resources if key == resource_id.key or key.startswith(prefix)]:
            del self.resources[key]

    def of_type(self, resource_type: str, scope: str = "") -> Iterator[Resource]:
        """Resources of exactly this type under `scope` (an id prefix), by id."""
        for key in sorted(self.resources):
            resource = self.resources[key]
            under = not scope or key.startswith(scope.lower().rstrip("/") + "/")
            if under and parse_resource_id(resource.id).type.lower() == resource_type.lower():
                yield resource

    def dump(self) -> bytes:
        return msgspec.json.encode(self)

    @staticmethod
    def load(data: bytes) -> State:
        return msgspec.json.decode(data, type=State)


def new_etag() -> str:
    return f'"0x{secrets.token_hex(8).upper()}"'

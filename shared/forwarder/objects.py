"""The few fields of Kubernetes objects that the forwarder reads, as msgspec takes them out of a watch line.

Everything else of a line is skipped without being built: that is what keeps it under one percent of a core.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

ThingT = TypeVar("ThingT")


class _Lean(msgspec.Struct, frozen=True, rename="camel"):
    """Kubernetes writes camelCase; unknown fields are skipped."""


class Metadata(_Lean, frozen=True):
    """Of any object."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None


class Condition(_Lean, frozen=True):
    """Of a pod or a node."""

    type: str
    status: str
    reason: str = ""


class _Conditions(_Lean, frozen=True):
    conditions: list[Condition] | None = None


class Conditioned(_Lean, frozen=True):
    """A pod or a node."""

    metadata: Metadata
    status: _Conditions = _Conditions()

    def condition(self, kind: str) -> Condition | None:
        return next((found for found in self.status.conditions or () if found.type == kind), None)


class _Series(_Lean, frozen=True):
    count: int = 0


class Involved(_Lean, frozen=True):
    """What an Event is about."""

    kind: str = ""
    namespace: str = ""
    name: str = ""


class Event(_Lean, frozen=True):
    """An Event of core/v1; how often it was seen stands in one of two places."""

    metadata: Metadata
    involved_object: Involved = Involved()
    reason: str = ""
    count: int | None = None
    series: _Series | None = None


class _VolumeError(_Lean, frozen=True):
    message: str = ""


class _AttachmentStatus(_Lean, frozen=True):
    attached: bool = False
    attach_error: _VolumeError | None = None
    detach_error: _VolumeError | None = None


class Attachment(_Lean, frozen=True):
    """A VolumeAttachment."""

    metadata: Metadata
    status: _AttachmentStatus = _AttachmentStatus()


class _Annotated(_Lean, frozen=True):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    annotations: msgspec.Raw = msgspec.Raw(b"")


class Specified(_Lean, frozen=True):
    """An Ingress or a Service: `spec` stays raw, it is only compared."""

    metadata: _Annotated
    spec: msgspec.Raw = msgspec.Raw(b"{}")


class _ServiceName(_Lean, frozen=True):
    name: str = ""


class _Backend(_Lean, frozen=True):
    service: _ServiceName | None = None


class _Path(_Lean, frozen=True):
    backend: _Backend = _Backend()


class _Http(_Lean, frozen=True):
    paths: list[_Path] | None = None


class _Rule(_Lean, frozen=True):
    http: _Http | None = None


class _Tls(_Lean, frozen=True):
    secret_name: str = ""


class IngressSpec(_Lean, frozen=True):
    """What an Ingress refers to."""

    default_backend: _Backend | None = None
    rules: list[_Rule] | None = None
    tls: list[_Tls] | None = None

    @property
    def services(self) -> set[str]:
        """Names of its backends' Services."""
        backends = [path.backend for rule in self.rules or () if rule.http for path in rule.http.paths or ()]
        if self.default_backend:
            backends.append(self.default_backend)
        return {backend.service.name for backend in backends if backend.service}

    @property
    def secrets(self) -> set[str]:
        """Names of its TLS Secrets."""
        return {tls.secret_name for tls in self.tls or () if tls.secret_name}


class _SliceLabels(msgspec.Struct, frozen=True):
    service: str = msgspec.field(default="", name="kubernetes.io/service-name")


class _SliceMetadata(_Lean, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: _SliceLabels = _SliceLabels()


class Slice(_Lean, frozen=True):
    """An EndpointSlice, by its metadata alone: its generation counts changes of endpoints."""

    metadata: _SliceMetadata


class Bare(_Lean, frozen=True):
    """Metadata alone: a Secret, whose content is never asked for."""

    metadata: Metadata


class Line(msgspec.Struct, Generic[ThingT], frozen=True):
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: ThingT


class _ListMetadata(_Lean, frozen=True):
    resource_version: str = ""


class Page(msgspec.Struct, Generic[ThingT], frozen=True):
    """One page of a list."""

    metadata: _ListMetadata
    items: list[ThingT] | None = None

"""Kubernetes Events on the objects an automation has acted on, as controllers write them.

The name of an event follows from what it is about and a key of the caller's, so that saying the same again,
after a crash or a second delivery, says it once. Called by `act` of the automations; decides nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol

import msgspec

from shared.errors import ApiError, ConflictError

COMPONENT = "kubekeeper"
MAX_MESSAGE = 1024
"""Characters that the API server accepts in a message."""


class ObjectRef(msgspec.Struct, frozen=True, kw_only=True):
    """Which object an event is about. `namespace` is empty for objects of the cluster."""

    api_version: str
    kind: str
    name: str
    uid: str
    namespace: str = ""
    resource_version: str = ""


class Creator(Protocol):
    """What is needed of `shared.clients.kube.KubeClient`."""

    def create(self, path: str, document: dict[str, Any]) -> dict[str, Any]: ...


def reference(kind: str, document: dict[str, Any], api_version: str = "v1") -> ObjectRef:
    """The reference to an object as the API returned it."""
    metadata = document["metadata"]
    return ObjectRef(
        api_version=document.get("apiVersion") or api_version,
        kind=kind,
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        namespace=metadata.get("namespace", ""),
        resource_version=metadata.get("resourceVersion", ""),
    )


def tell(
    kube: Creator,
    about: Iterable[ObjectRef],
    *,
    reason: str,
    message: str,
    key: str,
    now: datetime,
    is_warning: bool = False,
) -> list[str]:
    """One event on each object; returns a line for each that could not be written.

    An event is for people and never a reason to fail: what was done is done, and stands in the journal.
    """
    problems = []
    for one in about:
        document = _event(one, reason, message, key, now, is_warning=is_warning)
        try:
            kube.create(f"/api/v1/namespaces/{document['metadata']['namespace']}/events", document)
        except ConflictError:
            continue  # said before
        except ApiError as error:
            problems.append(f"no event on {one.kind} {one.name}: {error}")
    return problems


def _event(
    about: ObjectRef, reason: str, message: str, key: str, now: datetime, *, is_warning: bool
) -> dict[str, Any]:
    mark = hashlib.sha256(f"{about.kind} {about.uid} {reason} {key}".encode()).hexdigest()[:16]
    at = f"{now:%Y-%m-%dT%H:%M:%SZ}"
    involved = {"apiVersion": about.api_version, "kind": about.kind, "name": about.name}
    involved |= {"uid": about.uid} if about.uid else {}
    involved |= {"namespace": about.namespace} if about.namespace else {}
    involved |= {"resourceVersion": about.resource_version} if about.resource_version else {}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        # Events of objects without a namespace stand in `default`, where kubectl looks for them.
        "metadata": {"name": f"{about.name[:220]}.{mark}", "namespace": about.namespace or "default"},
        "involvedObject": involved,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "type": "Warning" if is_warning else "Normal",
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": "",
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }

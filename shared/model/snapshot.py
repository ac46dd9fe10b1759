"""The snapshot file: one observation as raw API objects, so that anyone can read, edit or build one by hand.

    {"kubekeeper": "snapshot/v1", "automation": "...", "now": "...", "cluster": {...},
     "kubernetes": {"pods": {PodList}, ...}, "azure": [{"id", "status", "readAt", "body"}, ...],
     "metrics": [...], "state": {...}}

A public contract: docs/reference/snapshot-file.md. What the objects mean is each automation's to say.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from shared.errors import MessageError
from shared.model.plan import canonical_json, utc

Document = dict[str, Any]


class AzureReading(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What Resource Manager answered for one id, and when. `code` is ARM's word for a refusal.

    An instance view is the body of the id with `/instanceView` appended.
    """

    id: str
    status: int
    read_at: datetime
    body: Document | None = None
    code: str = ""


class MetricReading(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One number from a source of metrics, or why there is none."""

    source: str
    query: str
    read_at: datetime
    value: float | None = None
    error: str = ""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the world. `cluster` is the cluster's entry of the configuration as plain JSON, without
    secrets; `kubernetes` maps a plural name to a list object; what is absent is empty.
    """

    automation: str
    now: datetime
    cluster: Document
    kubernetes: dict[str, Document] = {}
    azure: tuple[AzureReading, ...] = ()
    metrics: tuple[MetricReading, ...] = ()
    state: Document = {}
    kubekeeper: Literal["snapshot/v1"] = "snapshot/v1"

    @property
    def cluster_name(self) -> str:
        """The cluster's name in the configuration."""
        return str(self.cluster["name"])

    def items(self, plural: str) -> list[Document]:
        """The objects of a list, as they came; empty when it is absent."""
        return list(self.kubernetes.get(plural, {}).get("items") or ())

    def reading(self, resource_id: str) -> AzureReading | None:
        """The answer for an id, compared as Azure does, without regard to case."""
        key = resource_id.lower()
        return next((reading for reading in self.azure if reading.id.lower() == key), None)


def save(snapshot: Snapshot) -> bytes:
    """The file: JSON, sorted keys, indented."""
    return msgspec.json.format(canonical_json(snapshot), indent=2) + b"\n"


def load(data: bytes, source: str, automation: str) -> Snapshot:
    """The snapshot in a file; MessageError names `source`, the key and what is expected there."""
    try:
        snapshot = msgspec.json.decode(data, type=Snapshot)
        if snapshot.automation != automation:
            raise MessageError(f"{source}: recorded for {snapshot.automation}, not for {automation}")
        msgspec.convert(snapshot.cluster.get("name"), str)
        return msgspec.structs.replace(snapshot, now=utc(snapshot.now))
    except (msgspec.MsgspecError, ValueError) as error:
        raise MessageError(f"{source}: {error}; see docs/reference/snapshot-file.md") from error

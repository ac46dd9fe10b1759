"""Nodes as a planner needs them, and selectors of labels; built from raw Kubernetes objects.

Called by the automations that look at nodes. What a pod asks of a node is in `shared.model.pod`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from shared.model.quantity import Quantity, amounts

HOSTNAME = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"
REGION = "topology.kubernetes.io/region"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"


class Taint(msgspec.Struct, frozen=True):
    """A taint; only NoSchedule and NoExecute keep pods away."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"

    @property
    def repels(self) -> bool:
        """Whether a pod must tolerate it to be scheduled."""
        return self.effect != "PreferNoSchedule"


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One Node object. `allocatable`: cpu in millicores, the rest in whole units.

    `ready_since`: when the condition Ready last changed. `volume_limits`: volumes a CSI driver can attach
    here, by driver (from the CSINode).
    """

    name: str
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    taints: tuple[Taint, ...] = ()
    allocatable: dict[str, int] = {}
    unschedulable: bool = False
    is_ready: bool = True
    ready_since: datetime | None = None
    created_at: datetime | None = None
    is_going: bool = False
    provider_id: str = ""
    volume_limits: dict[str, int] = {}

    @property
    def zone(self) -> str:
        """The value of the zone label, or an empty string."""
        return self.labels.get(ZONE, "")


class RawMeta(msgspec.Struct, gc=False):
    """Metadata of objects that are few."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    created_at: datetime | None = msgspec.field(default=None, name="creationTimestamp")
    deleted_at: str | None = msgspec.field(default=None, name="deletionTimestamp")


class _Condition(msgspec.Struct, gc=False):
    type: str
    status: str = ""
    changed_at: datetime | None = msgspec.field(default=None, name="lastTransitionTime")


class _Spec(msgspec.Struct, gc=False):
    taints: tuple[Taint, ...] | None = None
    unschedulable: bool = False
    provider_id: str = msgspec.field(default="", name="providerID")


class _Status(msgspec.Struct, gc=False):
    allocatable: dict[str, Quantity] | None = None
    conditions: tuple[_Condition, ...] | None = None


class RawNode(msgspec.Struct, gc=False):
    """The part of a Node object that is decoded."""

    metadata: RawMeta
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


def node_of(raw: RawNode) -> Node:
    """The node; without a Ready condition it counts as not ready."""
    meta = raw.metadata
    ready = next((c for c in raw.status.conditions or () if c.type == "Ready"), None)
    return Node(
        name=meta.name,
        uid=meta.uid,
        resource_version=meta.resource_version,
        labels=meta.labels or {},
        annotations=meta.annotations or {},
        taints=raw.spec.taints or (),
        allocatable=amounts(raw.status.allocatable),
        unschedulable=raw.spec.unschedulable,
        is_ready=ready is not None and ready.status == "True",
        ready_since=ready.changed_at if ready else None,
        created_at=meta.created_at,
        is_going=meta.deleted_at is not None,
        provider_id=raw.spec.provider_id,
    )


# Selectors


class Requirement(msgspec.Struct, frozen=True):
    """One expression of a label or node selector."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """As apimachinery's labels.Requirement and node affinity: In, NotIn, Exists, DoesNotExist, Gt, Lt."""
        found = labels.get(self.key)
        if self.operator == "In":
            return found is not None and found in self.values
        if self.operator == "NotIn":
            return found is None or found not in self.values
        if self.operator == "Exists":
            return found is not None
        if self.operator == "DoesNotExist":
            return found is None
        return found is not None and self._compares(found)

    def _compares(self, found: str) -> bool:
        try:
            left, right = int(found), int(self.values[0])
        except (ValueError, IndexError):
            return False
        return left > right if self.operator == "Gt" else left < right


class LabelSelector(msgspec.Struct, frozen=True):
    """A metav1.LabelSelector as requirements that all must hold; empty matches everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether all hold."""
        return all(requirement.holds(labels) for requirement in self.requirements)

    @property
    def keys(self) -> frozenset[str]:
        """Label keys that it looks at."""
        return frozenset(requirement.key for requirement in self.requirements)


def selector_of(raw: Mapping[str, Any] | None) -> LabelSelector | None:
    """None, which matches nothing, for an absent selector."""
    if raw is None:
        return None
    pairs = sorted((raw.get("matchLabels") or {}).items())
    found = [Requirement(key, "In", (value,)) for key, value in pairs]
    found += [requirement_of(expression) for expression in raw.get("matchExpressions") or ()]
    return LabelSelector(tuple(found))


def requirement_of(raw: Mapping[str, Any]) -> Requirement:
    """One entry of matchExpressions or matchFields."""
    return Requirement(raw["key"], raw["operator"], tuple(raw.get("values") or ()))


class NodeSelectorTerm(msgspec.Struct, frozen=True):
    """Expressions over labels and fields that all must hold; an empty term matches no node."""

    expressions: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str], name: str) -> bool:
        """Of a node with these labels and this name."""
        if not self.expressions and not self.fields:
            return False
        named = {"metadata.name": name}
        return all(e.holds(labels) for e in self.expressions) and all(f.holds(named) for f in self.fields)


def node_selector_terms(raw: Mapping[str, Any] | None) -> tuple[NodeSelectorTerm, ...] | None:
    """Terms of a NodeSelector, of which one must match; None when there is no NodeSelector."""
    if raw is None:
        return None
    return tuple(
        NodeSelectorTerm(
            tuple(requirement_of(e) for e in term.get("matchExpressions") or ()),
            tuple(requirement_of(f) for f in term.get("matchFields") or ()),
        )
        for term in raw.get("nodeSelectorTerms") or ()
    )

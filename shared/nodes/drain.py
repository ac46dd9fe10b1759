"""Drain, one step at a time: what is still on a node, and the evictions asked for now.

A step never waits. It evicts what may be evicted, says what a PodDisruptionBudget refused and what is still
terminating, and is repeated by its caller until `is_empty` or the caller's patience is over. Pods are only
ever evicted, never deleted. What stays on a node by design: mirror pods of the kubelet, pods of DaemonSets,
and pods that have run to their end. Called by the autoscaler's scale-down and the operation `drain`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from shared.errors import ConflictError, NotFoundError, ThrottledError, UnavailableError

if TYPE_CHECKING:
    from shared.clients.kube import KubeClient

BUDGET = "DisruptionBudget"
"""`code` of the error when a PodDisruptionBudget refuses an eviction."""

MIRROR = "kubernetes.io/config.mirror"
EVICTIONS_PER_STEP = 60
"""Most evictions of one node in one step: a run is seconds long, and budgets are asked again next time."""


class _Owner(msgspec.Struct, frozen=True, kw_only=True):
    kind: str = ""
    controller: bool = False


class _Metadata(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    annotations: dict[str, str] | None = None
    owner_references: tuple[_Owner, ...] | None = None
    deletion_timestamp: str | None = None


class _Spec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    node_name: str = ""
    termination_grace_period_seconds: int | None = None


class _Status(msgspec.Struct, frozen=True, kw_only=True):
    phase: str = ""


class PodOnNode(msgspec.Struct, frozen=True, kw_only=True):
    """What a drain needs to know of a pod."""

    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()

    @property
    def subject(self) -> str:
        """`namespace/name`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def controller(self) -> str:
        """Kind of the controller that would make the pod anew; empty when nobody would."""
        owners = self.metadata.owner_references or ()
        return next((owner.kind for owner in owners if owner.controller), "")

    @property
    def is_terminating(self) -> bool:
        return self.metadata.deletion_timestamp is not None

    @property
    def stays(self) -> bool:
        """Whether the pod belongs to the node, or has ended: it goes with the node."""
        is_mirror = MIRROR in (self.metadata.annotations or {})
        return is_mirror or self.controller == "DaemonSet" or self.status.phase in ("Succeeded", "Failed")


class _PodList(msgspec.Struct, frozen=True, kw_only=True):
    items: tuple[PodOnNode, ...] | None = None


@dataclass(frozen=True)
class Step:
    """What one step found and did; subjects are `namespace/name`."""

    evicted: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    """Pod -> why its eviction was refused, one line."""
    terminating: tuple[str, ...] = ()
    postponed: int = 0
    """Pods not asked yet in this step."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left on the node that has to leave it."""
        return not (self.evicted or self.refused or self.terminating or self.postponed)

    @property
    def left(self) -> int:
        """Pods that are still there."""
        return len(self.evicted) + len(self.refused) + len(self.terminating) + self.postponed


def pods_to_move(kube: KubeClient, node: str) -> tuple[PodOnNode, ...]:
    """Pods on the node that have to leave it before it may go, also those already terminating."""
    found: list[PodOnNode] = []
    for body in kube.pages("/api/v1/pods", fieldSelector=f"spec.nodeName={node}"):
        found += msgspec.json.decode(body, type=_PodList).items or ()
    return tuple(pod for pod in found if not pod.stays)


def drain_step(kube: KubeClient, node: str, *, longest_grace_seconds: int | None = None) -> Step:
    """Evict what is on the node, once each; ApiError when the pods cannot even be listed.

    A pod has the grace period it asks for, but no longer than `longest_grace_seconds`.
    """
    pods = pods_to_move(kube, node)
    terminating = tuple(pod.subject for pod in pods if pod.is_terminating)
    waiting = [pod for pod in pods if not pod.is_terminating]
    evicted: list[str] = []
    refused: dict[str, str] = {}
    for number, pod in enumerate(waiting[:EVICTIONS_PER_STEP]):
        try:
            reason = _evict(kube, pod, longest_grace_seconds)
        except ThrottledError:  # the API server itself has enough; ask for the rest next time
            postponed = len(waiting) - number
            return Step(tuple(evicted), refused, terminating, postponed)
        if reason is None:
            evicted.append(pod.subject)
        else:
            refused[pod.subject] = reason
    return Step(tuple(evicted), refused, terminating, max(0, len(waiting) - EVICTIONS_PER_STEP))


def _evict(kube: KubeClient, pod: PodOnNode, longest: int | None) -> str | None:
    """None when the pod is going; else why not. ThrottledError when it was not the budget that refused."""
    metadata, own = pod.metadata, pod.spec.termination_grace_period_seconds
    grace = longest if longest is not None and own is not None and own > longest else None
    try:
        kube.evict(metadata.namespace, metadata.name, uid=metadata.uid, grace_seconds=grace)
    except NotFoundError:
        return None
    except ConflictError as error:
        return f"it changed meanwhile: {error}"
    except ThrottledError as error:
        if error.code != BUDGET:
            raise
        return f"a PodDisruptionBudget does not allow it now: {error}"
    except UnavailableError as error:
        if error.status is None:
            raise  # nobody answers at all; asking for the next pod would only wait as long again
        return str(error)  # such as 500 when more than one budget covers the pod
    return None

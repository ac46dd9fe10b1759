"""A plan: what an automation would do, why, and what it leaves alone; the document every automation prints.

Called by every `decide` (builds it), `act` (carries it out), the journal and `keeper plan` (print it). The
document's shape is a public contract: docs/reference/etcd-backup-plan.md.
"""

from __future__ import annotations

import enum
import hashlib
from datetime import UTC, datetime
from typing import Any

import msgspec


class ActionKind(enum.StrEnum):
    """The closed list of things Kubekeeper may do to a cluster, a store or Azure."""

    SCALE_UP = "ScaleUp"
    SCALE_DOWN = "ScaleDown"
    DELETE_INSTANCE = "DeleteInstance"
    BACKUP = "Backup"
    VERIFY = "Verify"
    PRUNE = "Prune"
    POWER_OFF_VM = "PowerOffVM"
    TAINT_NODE = "TaintNode"
    UNTAINT_NODE = "UntaintNode"
    DELETE_VOLUME_ATTACHMENT = "DeleteVolumeAttachment"
    REMOVE_FINALIZER = "RemoveFinalizer"
    DETACH_DISK = "DetachDisk"
    FORCE_DETACH_DISK = "ForceDetachDisk"
    REAPPLY_VM = "ReapplyVM"
    BREAK_LEASE = "BreakLease"
    PUT_GATEWAY = "PutGateway"
    UPDATE_INGRESS_STATUS = "UpdateIngressStatus"
    # One-off operations only, in outcomes and the journal; no plan holds them.
    RESTORE_DRILL = "RestoreDrill"
    HEALTH_CHECK = "HealthCheck"
    DEFRAGMENT = "Defragment"
    CORDON = "Cordon"
    UNCORDON = "Uncordon"
    DRAIN = "Drain"
    REPLACE_NODE = "ReplaceNode"
    REIMAGE = "Reimage"
    ROLLING_UPGRADE = "RollingUpgrade"


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do, with the evidence it rests on and what must still hold just before the write.

    `reason` is CamelCase as in Kubernetes Events; `message` one sentence for people; `evidence` and
    `preconditions` one short fact each.
    """

    kind: ActionKind
    target: str
    reason: str
    message: str
    parameters: dict[str, Any] = {}
    evidence: tuple[str, ...] = ()
    preconditions: tuple[str, ...] = ()


class LeftAlone(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One candidate that was considered and not acted on, with the reason."""

    subject: str
    reason: str
    message: str


class Plan(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What to do now, in order. An empty `actions` is an ordinary plan."""

    automation: str
    cluster: str
    now: datetime
    actions: tuple[Action, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()

    def document(self) -> dict[str, Any]:
        """The public JSON document as built-in types, with `digest` over the canonical JSON of the rest."""
        body: dict[str, Any] = msgspec.to_builtins(self)
        return body | {"digest": hashlib.sha256(canonical_json(body)).hexdigest()}


class Status(enum.StrEnum):
    """How an action ended."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SKIPPED = "Skipped"  # a precondition no longer held, or dry run


class Outcome(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What became of one action; `message` is one line, `data` small facts worth keeping (never a secret)."""

    action: Action
    status: Status
    message: str
    data: dict[str, Any] = {}


def canonical_json(value: Any) -> bytes:
    """The one byte string of a JSON-able value: sorted keys, no spaces, UTF-8, RFC 3339 times."""
    return msgspec.json.encode(value, order="sorted")


def utc(value: datetime) -> datetime:
    """The same instant in UTC with whole seconds, as plans and documents print it; naive input is refused."""
    if value.tzinfo is None:
        raise ValueError("a time without a zone cannot be placed; pass an aware datetime")
    return value.astimezone(UTC).replace(microsecond=0)

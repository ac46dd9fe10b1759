"""What the autoscaler has begun and not finished, as it stands in the automation's state document.

Everything Azure is asked for stands here before the request leaves, so that a crash at any point is taken up
by the next pass: growths (capacity asked for), removals (nodes on their way out), cleanups (interfaces, disks
and addresses that a deleted machine leaves behind) and rolls (operations that replace machines). Also what
pools rest from (`pools.*.backoff`) and what the limits per hour count (`additions`, `removals`). Which keys
`decide` reads of it is said by `observation.Observation`. Pure; `act`, `removal` and `replacing` change it
and save it through the claim.
"""

from __future__ import annotations

import enum
from datetime import datetime, timedelta
from typing import Any

import msgspec

from shared.autoscaling.policy import Backoff as BackoffPolicy
from shared.errors import ApiError, ThrottledError
from shared.model.duration import parse_duration
from shared.model.plan import utc

HOUR = timedelta(hours=1)
GROWTH_PATIENCE = timedelta(minutes=30)
"""An operation that has not ended by then is no longer asked about; its machines are judged by themselves."""
LONGEST_LAG = timedelta(minutes=10)
"""Reads of Azure are believed to be at most this late."""
ROLL_LOST = timedelta(minutes=15)
"""An operation looks every few seconds; one that has not for so long failed without saying so."""


class Phase(enum.StrEnum):
    """How far a removal is."""

    DRAINING = "Draining"
    DELETING = "Deleting"
    REIMAGING = "Reimaging"
    UNDOING = "Undoing"


class BackoffReason(enum.StrEnum):
    """Why a pool rests."""

    STOCK_OUT = "StockOut"
    QUOTA = "Quota"
    THROTTLED = "Throttled"
    FAILED = "Failed"


class _Entry(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    pass


class Growth(_Entry):
    """Capacity asked for. Without `status_urls` nobody knows whether the request arrived: look at the pool.

    `announced` are single resources (interfaces and machines) that may have been made for it.
    """

    pool: str
    name: str
    kind: str
    was: int
    to: int
    at: datetime
    status_urls: list[str] = []
    announced: list[str] = []
    asked_at: datetime | None = None
    """When an operation was last asked about."""
    reason: str = ""


class Removal(_Entry):
    """A machine on its way out, with its node if it has one; with `reimage` it is made anew and stays."""

    pool: str
    name: str
    kind: str
    machine: str
    """Resource id, lower case, as Node.spec.providerID says it."""
    at: datetime
    deadline: datetime
    node: str = ""
    uid: str = ""
    phase: Phase = Phase.DRAINING
    computer_name: str = ""
    """What its node would be called, for a machine that has none."""
    cordoned: bool = False
    drained: bool = False
    """Whether nothing was left on it when this pass looked."""
    evicted: int = 0
    is_lost: bool = False
    """The kubelet is dead: pods that were told to go count as gone, since nobody can confirm it."""
    floor: int = 0
    """The pool never goes below this."""
    status_urls: list[str] = []
    deleting_since: datetime | None = None
    asked_at: datetime | None = None
    reimage: bool = False
    stage: str = ""
    """Of what is made anew: `model`, `image`, `boot`."""
    reason: str = ""
    message: str = ""

    @property
    def key(self) -> str:
        """The node's name, or the machine's where no node is known."""
        return self.node or self.machine


class Roll(_Entry):
    """An operation that replaces machines of a pool, by its run: one machine, or all of an earlier model."""

    pool: str
    name: str
    at: datetime
    seen_at: datetime
    """When the operation last looked; one that was not seen for long is over."""
    size: int
    surge: int = 1
    node: str = ""
    machine: str = ""
    """The one machine to replace; empty for all that are not of the pool's latest model."""
    image: str = ""
    """Availability sets: what new machines are made from, for as long as this stands."""
    reimage: bool = False
    """Machines are made anew in place."""
    timeout: str = ""
    """Longest drain; the policy's when empty."""
    old: int = 0
    """Machines that were to be replaced when it last looked."""
    ready: int = 0
    """Machines of the pool that were Ready nodes then."""
    of: int = 0
    """Machines that were to be replaced when it began."""
    moved_at: datetime | None = None
    """When anything last changed for the better."""
    asked: dict[str, str] = {}
    """Nodes whose removal was begun, and what it waited for when it was last looked at."""
    is_backed_up: bool = False
    sent_at: datetime | None = None
    """When an etcd backup, or an upgrade by AKS, was last asked for."""
    target: str = ""
    """AKS pools: the Kubernetes version or node image it shall have."""
    version: str = ""
    """AKS pools: the same, when it is a version."""
    etag: str = ""
    """Of the pool, when an upgrade by AKS was asked for."""
    ended: str = ""
    """How it ended, for an operation that is delivered once more; empty while it goes on."""
    is_failed: bool = False


class Cleanup(_Entry):
    """A resource that a deleted machine has left behind.

    `is_sure`: the machine is known to be gone; otherwise it may be there after all, and need the resource.
    """

    id: str
    machine: str
    at: datetime
    is_sure: bool = False
    seen_at: datetime | None = None
    """When the machine was there after all, where that is not sure."""
    accepted_at: datetime | None = None
    """When Azure took the deletion; from then on it is only looked at."""
    asked_at: datetime | None = None
    attempts: int = 0
    message: str = ""


class Rest(_Entry):
    """Of a pool that Azure refused, as `decide` reads it."""

    until: datetime
    reason: BackoffReason
    failures: int
    zone: str = ""
    message: str = ""


class Change(_Entry):
    """So many machines were asked for, or deleted."""

    pool: str
    count: int
    at: datetime


class PoolNote(_Entry):
    """What is kept of one pool."""

    backoff: Rest | None = None
    model: dict[str, Any] | None = None
    """Availability sets: what new machines are made like (pools.availability_set.Model)."""
    made: dict[str, datetime] = {}
    """Availability sets: machines that Azure took the creation of, lower case, and when. A list that lags
    does not have them, and there is no etag that would tell.
    """


class Ledger(_Entry):
    """The whole of it."""

    growths: dict[str, Growth] = {}
    draining: dict[str, Removal] = {}
    cleanups: dict[str, Cleanup] = {}
    pools: dict[str, PoolNote] = {}
    additions: list[Change] = []
    removals: list[Change] = []
    rolls: dict[str, Roll] = {}
    removal_failed_at: datetime | None = None

    def document(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state document with this ledger in it; empty parts are left out."""
        self.pools = {
            pool: note for pool, note in self.pools.items() if note.backoff or note.model or note.made
        }
        kept = {name: value for name, value in state.items() if name not in KEYS}
        own: dict[str, Any] = msgspec.to_builtins(self)
        return kept | {name: value for name, value in own.items() if value not in (None, {}, [])}

    @property
    def is_busy(self) -> bool:
        """Whether anything has been begun and not finished."""
        return bool(self.growths or self.draining or self.cleanups)

    def forget_old(self, now: datetime) -> None:
        """Drop what no limit counts any more, and rests that are long over."""
        self.additions = [change for change in self.additions if now - change.at < HOUR]
        self.removals = [change for change in self.removals if now - change.at < HOUR]
        self.rolls = {run: roll for run, roll in self.rolls.items() if now - roll.seen_at < HOUR}
        for note in self.pools.values():
            note.made = {one: at for one, at in note.made.items() if now - at < LONGEST_LAG}
            if note.backoff and now - note.backoff.until > HOUR:
                note.backoff = None

    def note(self, pool: str) -> PoolNote:
        """What is kept of the pool, made if there is nothing yet."""
        return self.pools.setdefault(pool, PoolNote())

    def rest(self, pool: str, failure: Failure, policy: BackoffPolicy, now: datetime) -> Rest:
        """Let the pool rest; a failure in a row doubles the time."""
        note = self.note(pool)
        failures = (note.backoff.failures if note.backoff else 0) + 1
        pause = failure.wait or _pause(failure.reason, policy) * 2 ** min(failures - 1, 10)
        note.backoff = Rest(
            until=utc(now) + min(pause, parse_duration(policy.longest)),
            reason=failure.reason,
            failures=failures,
            zone=failure.zone,
            message=failure.message[:500],
        )
        return note.backoff


KEYS = frozenset(field.encode_name for field in msgspec.structs.fields(Ledger))


def read_ledger(state: dict[str, Any]) -> Ledger:
    """The ledger in a state document; an empty one when there is none."""
    return msgspec.convert({name: value for name, value in state.items() if name in KEYS}, Ledger)


# Failures


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why Azure did not give what was asked. `wait`: for so long, because it said so itself."""

    reason: BackoffReason
    message: str
    code: str = ""
    zone: str = ""
    wait: timedelta | None = None


_STOCK_OUT = ("allocationfailed", "overconstrained", "skunotavailable", "allocationrequest", "notavailable")
_QUOTA_CODES = ("quotaexceeded", "limitexceeded", "limitreached", "subnetisfull", "insufficientsubnet")
_BUSY = ("operationnotallowed", "conflict", "anotheroperationinprogress", "retryableerror", "changed")


def failure_of(error: ApiError) -> Failure:
    """What a refusal means for the pool."""
    if isinstance(error, ThrottledError):
        wait = timedelta(seconds=max(1.0, error.retry_after_seconds))
        return Failure(reason=BackoffReason.THROTTLED, code=error.code or "", message=str(error), wait=wait)
    return failure_by_code(error.code or "", str(error))


def failure_by_code(code: str, message: str, zone: str = "") -> Failure:
    """By Azure's error code, and its text where one code means several things."""
    lower = code.lower()
    reason = BackoffReason.FAILED
    if any(word in lower for word in _STOCK_OUT):
        reason = BackoffReason.STOCK_OUT
    elif any(word in lower for word in _QUOTA_CODES) or "quota" in message.lower():
        reason = BackoffReason.QUOTA
    elif lower in ("toomanyrequests", "throttled", "subscriptionrequeststhrottled"):
        reason = BackoffReason.THROTTLED
    return Failure(reason=reason, code=code, message=" ".join(message.split()), zone=zone)


def is_busy(error: ApiError) -> bool:
    """Whether the pool was only occupied or had changed: nothing is wrong with it, look again soon."""
    if error.status not in (409, 412) and (error.code or "").lower() != "changed":
        return False
    if error.status == 412:
        return True
    words = str(error).lower()
    if "quota" in words:
        return False
    progress = "in progress" in words or "being deleted" in words or "conflict" in words
    return (error.code or "").lower() in _BUSY and (
        progress or (error.code or "").lower() != "operationnotallowed"
    )


def _pause(reason: BackoffReason, policy: BackoffPolicy) -> timedelta:
    text = {
        BackoffReason.STOCK_OUT: policy.stock_out,
        BackoffReason.QUOTA: policy.quota,
        BackoffReason.THROTTLED: policy.throttled,
        BackoffReason.FAILED: policy.other,
    }[reason]
    return parse_duration(text)

"""One write of the gateway's document, from its announcement to its end, over as many passes as that takes.

    announced -> sent -> running -> ended well     the record of our parts is what the gateway has
                    |       |-----> ended badly    the error names an object, or the last good returns
                    |-> refused, or met another    nothing happened; the next pass looks again
                    '-> no answer                  nobody knows; found out by reading, see `_unknown`

A write stands in the state document (`State.put`) before it leaves and until its end is known, and as long as
it stands there, no other is sent. So there is never a second one of ours under way, whenever a worker dies.
Nothing here waits: each step ends with a time to look again. What to write is decided elsewhere; called by
`act` and `reconcile`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.errors import (
    ApiError,
    ConflictError,
    ForbiddenError,
    IntegrityError,
    MessageError,
    NotFoundError,
    ThrottledError,
    UnavailableError,
)
from shared.ingress_sync.observation import provisioning_state
from shared.ingress_sync.state import DocumentRef, PartRecord, PutInFlight, State, read_state, write_state
from shared.model.duration import parse_duration
from shared.model.gateway import COLLECTIONS, Document, part_digest, part_key, parts
from shared.model.plan import canonical_json

if TYPE_CHECKING:
    from shared.clients.arm import Answer, Arm
    from shared.clients.blob import BlobStore
    from shared.ingress_sync.policy import IngressSyncPolicy
    from shared.runtime.claim import Claim

ARRIVAL = timedelta(seconds=60)
"""A request without an answer that has not changed the gateway within this time will not do so any more: it
is the longest that a connection may be silent."""

BLIND = timedelta(minutes=3)
"""How long a write whose status address was lost counts as running at least: `provisioningState` says
Succeeded long before the end (Azure/azure-cli#32961), and most writes take less than 90 s."""

LOOK_AGAIN = timedelta(seconds=10)
AFTER_CONFLICT = timedelta(seconds=5)

SUPERSEDED = frozenset({"canceledandsupersededduetoanotheroperation", "operationpreempted"})


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Azure refused a document, at once or at the end of its operation; `message` may name a part by id."""

    code: str
    message: str
    owners: tuple[str, ...] = ()
    """Objects whose routes the document had changed."""
    is_late: bool = False
    """At the end of the operation: the gateway may be in state Failed."""
    is_rollback: bool = False
    """What was refused was the last good document itself."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at a write found. `again`: when to look next, None at the end of it.

    `event` is the past-tense verb of what happened, "" when nothing did.
    """

    message: str = ""
    event: str = ""
    is_failure: bool = False
    again: timedelta | None = None
    refusal: Refusal | None = None
    is_under_way: bool = False


@dataclass(frozen=True)
class Desk:
    """Where a write is made: the gateway, the state document, the store of last good documents."""

    policy: IngressSyncPolicy
    arm: Arm
    claim: Claim
    store: BlobStore
    now: Callable[[], datetime]
    _read: dict[int, tuple[dict[str, Any], State]] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """The typed state document as it stands."""
        document = self.claim.state
        known = self._read.get(0)
        if known is None or known[0] is not document:
            known = self._read[0] = (document, read_state(document))
        return known[1]

    def save(self, **changes: Any) -> None:
        """Change fields of the state document; LostLeaseError when it is not ours any more."""
        self.claim.save(write_state(msgspec.structs.replace(self.state, **changes)))


# Sending


def send(desk: Desk, body: bytes, put: PutInFlight) -> Step:
    """Announce a write and send it; `put` says all that is to be known about it, `body` is the request."""
    desk.save(put=put)
    try:
        begun = desk.arm.put(desk.policy.gateway, body, if_match=put.etag)
    except UnavailableError as error:
        return Step(message=f"{error}; it will be looked up", again=LOOK_AGAIN, is_under_way=True)
    except ApiError as error:
        return _not_taken(desk, put, error)
    deadline = desk.now() + parse_duration(desk.policy.put_deadline)
    running = msgspec.structs.replace(put, status_url=begun.status_url, deadline=deadline)
    if begun.is_done:
        return _asking(desk, lambda: _finished(desk, running))
    desk.save(put=running, last_put_at=desk.now())
    return Step(again=timedelta(seconds=begun.retry_after_seconds), event="WriteBegun", is_under_way=True)


def _not_taken(desk: Desk, put: PutInFlight, error: ApiError) -> Step:
    """Azure answered, and did nothing."""
    if isinstance(error, ConflictError):
        desk.save(put=None)
        return Step(message=f"{error}; it is read and compiled again", again=AFTER_CONFLICT)
    if isinstance(error, ThrottledError):
        desk.save(put=None)
        wait = timedelta(seconds=max(1.0, error.retry_after_seconds))
        return Step(message=str(error), again=wait)
    if isinstance(error, ForbiddenError | NotFoundError):
        desk.save(put=None)
        return Step(message=str(error), event="WriteFailed", is_failure=True)
    refusal = Refusal(code=error.code or "", message=str(error), owners=put.owners)
    desk.save(put=None)
    return Step(message=str(error), event="WriteRefused", refusal=refusal)


# Following


def follow(desk: Desk) -> Step:
    """How the announced write stands; call it only while there is one."""
    put = desk.state.put
    assert put is not None
    return _asking(desk, lambda: _follow(desk, put))


def _asking(desk: Desk, look: Callable[[], Step]) -> Step:
    """A step that reads; without an answer, nothing has become of the write yet."""
    try:
        return look()
    except NotFoundError as error:
        desk.save(put=None)
        return Step(message=str(error), event="WriteLost")
    except (UnavailableError, ThrottledError) as error:
        return Step(message=str(error), again=LOOK_AGAIN, is_under_way=True)


def _follow(desk: Desk, put: PutInFlight) -> Step:
    if not put.status_url:
        return _unknown(desk, put)
    try:
        progress = desk.arm.poll(put.status_url)
    except (NotFoundError, MessageError):
        return _unknown(desk, put)  # forgotten, as operations are after days, or no address for our token
    if progress.state == "InProgress":
        return _waiting(desk, put, timedelta(seconds=progress.retry_after_seconds))
    if progress.state == "Succeeded":
        return _finished(desk, put)
    if progress.state == "Canceled" or progress.code.lower() in SUPERSEDED:
        return _superseded(desk, put)
    return _ended_badly(desk, put, progress.code, progress.message)


def _waiting(desk: Desk, put: PutInFlight, again: timedelta) -> Step:
    late = desk.now() - put.deadline
    if late < timedelta(0):
        return Step(again=again, is_under_way=True)
    # Azure alone can end it; a second write beside it would only cancel it and begin anew.
    message = f"the write of {put.announced_at:%H:%M} UTC still runs after {desk.policy.put_deadline}"
    return Step(message=message, event="WriteOverdue", again=timedelta(minutes=5), is_under_way=True)


def _finished(desk: Desk, put: PutInFlight) -> Step:
    """Read back: the record of our parts becomes what the gateway now has."""
    answer = desk.arm.get(desk.policy.gateway)
    found, missing = read_back(answer.document, desk.state.parts, put.parts)
    if missing:
        return _overwritten(desk, found, missing)
    message = f"the gateway serves {len(found)} parts of ours"
    if put.is_rollback:  # what failed before it is still to be tried again, and waits for that
        desk.save(put=None, parts=found, routes=put.routes, last_put_at=put.announced_at, unconfirmed=False)
        return Step(message=f"back to the last good document: {message}", event="RolledBack")
    good = keep_document(desk, answer.document, found, put)
    desk.save(
        put=None,
        parts=found,
        routes=put.routes,
        last_good=good,
        unconfirmed=False,
        last_put_at=put.announced_at,
        failures=0,
        retry_at=None,
        approved="",
    )
    forget_documents(desk, good)
    return Step(message=message, event="GatewayPut")


def _overwritten(desk: Desk, found: dict[str, PartRecord], missing: list[str]) -> Step:
    """Somebody's document, read before ours was written, has taken its place; twice in a row, we wait."""
    failures = desk.state.failures + 1
    retry_at = desk.now() + backoff(desk.policy, failures - 1) if failures > 1 else None
    desk.save(put=None, parts=found, failures=failures, retry_at=retry_at)
    message = f"somebody else has written since: {len(missing)} changes of ours are gone, first {missing[0]}"
    return Step(message=message, event="WriteOverwritten", again=AFTER_CONFLICT)


def backoff(policy: IngressSyncPolicy, failures: int) -> timedelta:
    """How long to wait after so many failed writes in a row."""
    doubled: timedelta = parse_duration(policy.retry) * 2.0 ** min(max(failures - 1, 0), 16)
    return min(parse_duration(policy.longest_retry), doubled)


def _superseded(desk: Desk, put: PutInFlight) -> Step:
    """Who superseded us read the gateway before or after our write; either way the next look tells."""
    desk.save(put=None, parts=both_records(desk.state.parts, put.parts), unconfirmed=True)
    said = "another writer's operation took its place; read and compiled again"
    return Step(message=said, event="WriteSuperseded", again=AFTER_CONFLICT)


def _ended_badly(desk: Desk, put: PutInFlight, code: str, message: str) -> Step:
    refusal = Refusal(
        code=code, message=message, owners=put.owners, is_late=True, is_rollback=put.is_rollback
    )
    desk.save(put=None, parts=both_records(desk.state.parts, put.parts), unconfirmed=True)
    said = f"Azure ended the write with {code or 'no reason'}: {message or 'nothing more is said'}"
    return Step(message=said, event="WriteFailed", refusal=refusal)


def _unknown(desk: Desk, put: PutInFlight) -> Step:
    """No answer came, or the worker died: whether it arrived is read off the gateway."""
    answer = desk.arm.get(desk.policy.gateway)
    age = desk.now() - put.announced_at
    if answer.etag == put.etag:
        if age < ARRIVAL:
            return Step(again=min(LOOK_AGAIN, ARRIVAL - age), is_under_way=True)
        desk.save(put=None)
        return Step(message="the write without an answer never arrived", event="WriteLost")
    return _arrived(desk, put, answer, age)


def _arrived(desk: Desk, put: PutInFlight, answer: Answer, age: timedelta) -> Step:
    """The gateway was written since, by us or by somebody else."""
    state = provisioning_state(answer.document)
    if state == "Updating" or (state == "Succeeded" and age < BLIND):
        return Step(again=LOOK_AGAIN, is_under_way=True)
    if state == "Failed":
        return _ended_badly(desk, put, "Failed", "the gateway's provisioningState is Failed")
    if not read_back(answer.document, desk.state.parts, put.parts)[1]:
        return _finished(desk, put)
    desk.save(put=None, parts=both_records(desk.state.parts, put.parts))
    return Step(message="another writer came first; read and compiled again", event="WriteLost")


# Records


def live_digests(document: Document) -> dict[str, str]:
    """`collection/name` (lower-case name) of every part to the digest of what is compared of it."""
    return {
        part_key(collection, str(part.get("name"))): part_digest(collection, part)
        for collection in COLLECTIONS
        for part in parts(document, collection)
    }


def read_back(
    document: Document, was: Mapping[str, PartRecord], sent: Mapping[str, PartRecord]
) -> tuple[dict[str, PartRecord], list[str]]:
    """What of `sent` the gateway has: the record as it is now, and the keys of changes that are not there.

    A part that was changed and yet looks as it did before was not written, or was written over; one that
    was to go and is there still is ours still.
    """
    live = live_digests(document)
    found: dict[str, PartRecord] = {}
    missing: list[str] = []
    for key, record in sent.items():
        old, now = was.get(key), live.get(key, "")
        is_old = old is not None and old.sent != record.sent and bool(old.live) and old.live == now
        if old is not None and is_old:
            found[key] = old
        elif now:
            found[key] = PartRecord(sent=record.sent, live=now)
        if is_old or not now:
            missing.append(key)
    for key, record in was.items():
        if key not in sent and key in live:
            found[key] = record
            missing.append(key)
    return found, sorted(missing)


def both_records(was: Mapping[str, PartRecord], sent: Mapping[str, PartRecord]) -> dict[str, PartRecord]:
    """What may be ours when nobody knows which of two documents the gateway has."""
    return dict(was) | {key: record for key, record in sent.items() if key not in was}


# Documents to go back to


def keep_document(
    desk: Desk, document: Document, record: Mapping[str, PartRecord], put: PutInFlight
) -> DocumentRef:
    """Store our parts of an accepted document as the last good one.

    The name has the epoch in it: a later holder seals the name that a dead one had announced, for ever.
    """
    own = {
        collection: [part for part in parts(document, collection) if _key(collection, part) in record]
        for collection in COLLECTIONS
    }
    good = Good(own={c: p for c, p in own.items() if p}, parts=dict(record), routes=put.routes)
    name = f"{_good_prefix(desk)}{desk.claim.epoch:012d}-{put.document_digest}"
    try:
        desk.claim.create_blob(desk.store, name, zlib.compress(canonical_json(good), 6))
    except ConflictError:
        desk.claim.ensure()  # this holder has stored the same document before
    return DocumentRef(name=name, digest=put.document_digest, at=desk.now())


def forget_documents(desk: Desk, keep: DocumentRef) -> None:
    """Delete all stored documents but one, which the state must name already."""
    before = [(i.name, i.etag) for i in desk.store.list(_good_prefix(desk)) if i.name != keep.name]
    if before:
        desk.claim.delete_blobs(desk.store, before)


def _good_prefix(desk: Desk) -> str:
    return f"{desk.claim.cluster}/ingress-sync.good-"


class Good(msgspec.Struct, frozen=True, kw_only=True):
    """Our parts of the last good document by collection, their record, and the packed routes behind them."""

    own: dict[str, list[dict[str, Any]]] = {}
    parts: dict[str, PartRecord] = {}
    routes: str = ""


def last_good(desk: Desk) -> Good | None:
    """The stored document; None when there is none (yet, or any more)."""
    reference = desk.state.last_good
    if reference is None:
        return None
    try:
        data = desk.store.read(reference.name).data
        return msgspec.json.decode(zlib.decompress(data), type=Good)
    except NotFoundError:
        return None
    except (zlib.error, msgspec.DecodeError) as error:
        raise IntegrityError(
            f"the last good document '{reference.name}' cannot be read; delete the blob", place=reference.name
        ) from error


def with_own(live: Document, record: Mapping[str, PartRecord], own: Mapping[str, list[Any]]) -> Document:
    """The live document with our parts, as recorded, replaced by others; the parts of others stay as they
    are, in their places.
    """
    properties = dict(live["properties"])
    for collection in COLLECTIONS:
        kept = [part for part in parts(live, collection) if _key(collection, part) not in record]
        new = [*kept, *own.get(collection, ())]
        if new or collection in properties:
            properties[collection] = new
    return {**live, "properties": properties}


def _key(collection: str, part: Mapping[str, Any]) -> str:
    return part_key(collection, str(part.get("name")))

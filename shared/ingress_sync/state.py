"""What the automation remembers between passes, as the typed form of its state document (`claim.state`).

Everything here may be lost but `parts`: without the record of what was made, nothing on the gateway can be
proven to be ours, and `ingressSync.adopt` is needed once. Written by `act` only; `put` is saved before a
request leaves. No secrets, ever.
"""

from __future__ import annotations

import base64
import zlib
from datetime import datetime
from typing import Any

import msgspec


class StateStruct(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base: camelCase, defaults left out; unknown keys are ignored, so that an older worker reads on."""


class PartRecord(StateStruct, frozen=True):
    """One part of ours. `sent` is the digest of what was compiled, `live` of what Azure answered for it
    (`shared.model.gateway.part_digest`); "" until it was read back.
    """

    sent: str
    live: str = ""


class DocumentRef(StateStruct, frozen=True):
    """Where a document that the gateway accepted is kept (a blob), for going back to it."""

    name: str
    digest: str
    at: datetime


class Refused(StateStruct, frozen=True):
    """An object that Azure refused. It stays out while its compiled form has `digest`, until `retry_at`."""

    reason: str
    message: str
    digest: str
    since: datetime
    retry_at: datetime | None = None


class Bisection(StateStruct, frozen=True):
    """A search for the objects that make Azure refuse a document (`classify.bisect`).

    `good` are cleared, `bad` found guilty; `groups` are still to be tried, the first one next.
    """

    groups: tuple[tuple[str, ...], ...] = ()
    good: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    message: str = ""


class PutInFlight(StateStruct, frozen=True):
    """A write that was announced, and perhaps sent. `status_url` is "" until an answer came.

    `parts` is the record as it will be when the write succeeds; `owners` are the objects (`namespace/name`)
    whose routes it changes; `routes` the packed last good routes after success.
    """

    id: str
    document_digest: str
    change: str
    etag: str
    announced_at: datetime
    deadline: datetime
    parts: dict[str, PartRecord] = {}
    owners: tuple[str, ...] = ()
    routes: str = ""
    inputs: str = ""
    status_url: str = ""
    is_rollback: bool = False


class HealthAsked(StateStruct, frozen=True):
    """The gateway was asked for the health of its backends; the answer takes some seconds."""

    status_url: str
    at: datetime


class Settled(StateStruct, frozen=True):
    """The last pass that found nothing to do, so that the next can see it by digests alone.

    `inputs` is `Observation.inputs_digest`, `gateway` `Observation.gateway_digest`; from `until` on time
    itself may change the answer. `left_alone` is what that pass said.
    """

    inputs: str
    gateway: str
    until: datetime | None = None
    left_alone: tuple[dict[str, str], ...] = ()


class State(StateStruct, frozen=True):
    """The whole document. `parts` maps `collection/name` (lower-case name) to its record."""

    parts: dict[str, PartRecord] = {}
    routes: str = ""
    """The last good routes by object, packed with `pack_routes`."""
    unused_certificates: dict[str, datetime] = {}
    """Names of certificates of ours that nothing uses, and since when."""
    refused: dict[str, Refused] = {}
    """By object, `namespace/name`."""
    bisection: Bisection | None = None
    put: PutInFlight | None = None
    unconfirmed: bool = False
    """The last write was cut short: the gateway shows its document, and may not serve it."""
    last_good: DocumentRef | None = None
    settled: Settled | None = None
    last_put_at: datetime | None = None
    change_seen_at: datetime | None = None
    """Since when a change waits to be written; None when none does."""
    change_inputs: str = ""
    """`inputs_digest` when the change was last looked at, and `change_moved_at` when that last differed."""
    change_moved_at: datetime | None = None
    failures: int = 0
    """Failed writes in a row."""
    retry_at: datetime | None = None
    health: HealthAsked | None = None
    """Asked only while pods wait for their readiness gate."""
    told: tuple[str, ...] = ()
    """Digests of what was said about objects in Events, so that it is said once."""
    approved: str = ""
    """Digest of a compiled document (`parameters.documentDigest`) that an operator has approved."""


def read_state(document: dict[str, Any]) -> State:
    """The typed form; a value of the wrong type raises msgspec.ValidationError."""
    return msgspec.convert(document, State)


def write_state(state: State) -> dict[str, Any]:
    """The document to save."""
    found: dict[str, Any] = msgspec.to_builtins(state)
    return found


def pack(data: bytes) -> str:
    """Bytes as short text: a thousand routes take some 40 KB."""
    return base64.b64encode(zlib.compress(data, 1)).decode()


def unpack(text: str) -> bytes:
    """The bytes behind `pack`."""
    return zlib.decompress(base64.b64decode(text))

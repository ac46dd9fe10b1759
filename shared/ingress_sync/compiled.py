"""What compiling yields, as frozen values: the document to write and everything there is to say about it.

Made by `compile.compile_gateway`; read by `proof`, `decide`, `explain` and `act`.
"""

from __future__ import annotations

import enum
from hashlib import sha256
from typing import Any

import msgspec

from shared.ingress_sync.routes import Route


class Change(enum.IntEnum):
    """What writing a document would do to traffic; higher is more."""

    NONE = 0
    POOLS = 1  # only targets of pools: routing as it was
    SETTINGS = 2  # settings, probes, rules, certificates added; no listener goes
    LISTENERS = 3  # a listener is added or changed
    INTERRUPTING = 4  # a listener goes, or its port, frontend, protocol or certificate changes


class Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One thing to tell about one object (`kind`, `namespace/name`); `message` says what to change."""

    owner: str
    reason: str
    message: str
    kind: str = "Ingress"


class Quarantined(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An object that is left out; `kept_last_good` when its last good routes stand in for it."""

    owner: str
    reason: str
    message: str
    kept_last_good: bool = False


class Upload(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A certificate that the document holds without data; `act` reads the Secret and puts the PFX there.

    The Secret's certificate must still have `digest`.
    """

    name: str
    namespace: str
    secret: str
    digest: str


class HeadRoom(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How much of a limit is used, by everyone and by us."""

    name: str
    used: int
    own: int
    limit: int


class Compiled(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The result. `document` is the body of the PUT; parts that need no change are those that were read.

    `parts` maps `collection/name` to the digest of each part of ours (what `PartRecord.sent` becomes).
    `served` maps each object to the listeners that carry its routes; `deviations` to the names of declared
    deviations that concern it; `route_digests` to the digest of its compiled form. `routes` is the packed
    last good routes once this document is accepted; `decide` packs them. `digest` names the document.
    """

    document: dict[str, Any]
    digest: str
    approval: str = ""
    """Digest of the change without the contents of pools: what an operator approves."""
    parts: dict[str, str] = {}
    uploads: tuple[Upload, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    warnings: tuple[Finding, ...] = ()
    deviations: dict[str, tuple[str, ...]] = {}
    served: dict[str, tuple[str, ...]] = {}
    frontends: dict[str, str] = {}
    """Each served object's frontend, `public` or `private`."""
    wanted: dict[str, Route] = {}
    """What each object asks for, served or not."""
    admitted: tuple[Route, ...] = ()
    """What is served, by object: last good routes where they stand in."""
    part_owners: dict[str, tuple[str, ...]] = {}
    """Key of each part of ours (`collection/name`) to the objects it is there for."""
    changed_owners: tuple[str, ...] = ()
    unused_certificates: tuple[str, ...] = ()
    head_room: tuple[HeadRoom, ...] = ()
    change: Change = Change.NONE
    changes: dict[str, dict[str, list[str]]] = {}
    interruptions: tuple[str, ...] = ()
    """One sentence for each listener whose connections the change ends."""
    removals: tuple[str, ...] = ()
    """Listeners that go or lose a host."""
    certificate_changes: tuple[str, ...] = ()
    """Listeners that get another certificate."""
    routes: str = ""

    @property
    def route_digests(self) -> dict[str, str]:
        """The digest of each object's compiled form, by which a refusal of Azure remembers it."""
        return {owner: route_digest(route) for owner, route in self.wanted.items()}


def route_digest(route: Route) -> str:
    """Equal for equal routes."""
    return sha256(msgspec.json.encode(route)).hexdigest()[:32]

"""The document to write: the live one with our parts replaced, and what that changes.

Parts of others are the very values that were read, in their places. A part of ours that needs no change is
the value that was read too. One that nothing needs any more goes, unless a part of somebody else refers to
it, or it is a certificate that is kept for a while.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import msgspec

from shared.ingress_sync.ownership import is_as_compiled
from shared.ingress_sync.state import PartRecord
from shared.model.gateway import COLLECTIONS, Document, Part, digest_of, inside, part_key, parts


class Merged(msgspec.Struct, kw_only=True):
    """`sent` are the digests of our parts; `changes` maps a collection to names added, changed, removed."""

    document: Document
    sent: dict[str, str]
    changes: dict[str, dict[str, list[str]]]
    held: list[str]
    """Keys of parts of ours that only others need."""


def merge(
    live: Document,
    wanted: Mapping[str, Mapping[str, Part]],
    own: Set[str],
    record: Mapping[str, PartRecord],
    kept: Set[str],
) -> Merged:
    """`kept` are lower-cased ids of parts of ours that must stay although nothing of ours needs them."""
    merger = _Merger(record)
    properties = dict(live.get("properties") or {})
    for collection in COLLECTIONS:
        before = parts(live, collection)
        after = merger.collection(collection, before, wanted.get(collection, {}), own, kept)
        if collection in merger.changes:
            properties[collection] = after
    return Merged(
        document={**live, "properties": properties},
        sent=merger.sent,
        changes=merger.changes,
        held=merger.held,
    )


class _Merger:
    def __init__(self, record: Mapping[str, PartRecord]) -> None:
        self.record = record
        self.sent: dict[str, str] = {}
        self.changes: dict[str, dict[str, list[str]]] = {}
        self.held: list[str] = []

    def collection(
        self,
        collection: str,
        before: list[Part],
        wanted: Mapping[str, Part],
        own: Set[str],
        kept: Set[str],
    ) -> list[Part]:
        after: list[Part] = []
        left = dict(wanted)
        for part in before:
            name = str(part.get("name"))
            key = part_key(collection, name)
            if key not in own:
                after.append(part)
            elif name.lower() in left:
                after.append(self._ours(collection, key, part, left.pop(name.lower())))
            elif str(part.get("id")).lower() in kept:
                self.sent[key] = self.record[key].sent if key in self.record else sent_digest(part)
                self.held.append(key)
                after.append(part)
            else:
                self._note(collection, "removed", name)
        for name in sorted(left):
            self.sent[part_key(collection, name)] = sent_digest(left[name])
            self._note(collection, "added", name)
            after.append(left[name])
        return after

    def _ours(self, collection: str, key: str, live: Part, wanted: Part) -> Part:
        sent = self.sent[key] = sent_digest(wanted)
        if is_as_compiled(collection, live, wanted, self.record.get(key), sent):
            return live
        if collection == "sslCertificates":
            return live  # its name says what is in it
        self._note(collection, "changed", str(live.get("name")))
        return wanted

    def _note(self, collection: str, what: str, name: str) -> None:
        self.changes.setdefault(collection, {}).setdefault(what, []).append(name)


def sent_digest(part: Part) -> str:
    """The digest of a part as it is compiled."""
    return digest_of(inside(part))

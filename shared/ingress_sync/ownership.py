"""Whose a part of the gateway is, and the promise that the parts of others stay as they are.

A part is ours when its name has our prefix *and* the record says that we made it; or when an operator gave
it to us (`takeOver`, `adopt`). Everything else belongs to somebody else and is carried through byte by byte.
Pure; called by `compile` and, just before every write, by `act`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from shared.errors import UnsafePlanError
from shared.ingress_sync.policy import IngressSyncPolicy
from shared.ingress_sync.state import PartRecord
from shared.model.gateway import COLLECTIONS, Document, Part, part_content, part_digest, part_key, parts
from shared.model.plan import canonical_json


def own_keys(
    live: Document, prefix: str, record: Mapping[str, PartRecord], policy: IngressSyncPolicy
) -> frozenset[str]:
    """Keys (`collection/name`) of the parts of a live document that are ours."""
    given = tuple(pattern.lower() for pattern in policy.take_over)
    found = set()
    for collection, part in every_part(live):
        name = str(part.get("name")).lower()
        key = part_key(collection, name)
        has_prefix = name.startswith(prefix)
        is_recorded = has_prefix and key in record
        if is_recorded or (policy.adopt and has_prefix) or is_given(key, given):
            found.add(key)
    return frozenset(found)


def every_part(document: Document) -> Iterator[tuple[str, Part]]:
    """(collection, part) of all named parts, in the order of plans."""
    for collection in COLLECTIONS:
        for part in parts(document, collection):
            yield collection, part


def is_given(key: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns (lower case, `*` at the end) names the part."""
    lower = key.lower()
    return any(
        lower.startswith(pattern[:-1]) if pattern.endswith("*") else lower == pattern for pattern in patterns
    )


def is_as_compiled(collection: str, live: Part, wanted: Part, record: PartRecord | None, sent: str) -> bool:
    """Whether a part of ours needs no change. `sent` is the digest of what is wanted.

    Azure fills in defaults, so what it answered for this very content last time is the same content.
    """
    if record is not None and record.sent == sent and record.live:
        return record.live == part_digest(collection, live)
    return _covers(
        part_content(collection, live)["properties"], part_content(collection, wanted)["properties"]
    )


def _covers(live: Any, wanted: Any) -> bool:
    """Whether everything that is wanted is there, and what is there beside it is only false or zero."""
    if isinstance(live, dict) and isinstance(wanted, dict):
        extra = (live[name] for name in live.keys() - wanted.keys())
        return all(name in live and _covers(live[name], below) for name, below in wanted.items()) and not any(
            extra
        )
    if isinstance(live, list) and isinstance(wanted, list):
        return len(live) == len(wanted) and all(map(_covers, live, wanted))
    return bool(live == wanted)


def assert_foreign_untouched(before: Document, after: Document, own: Set[str]) -> None:
    """UnsafePlanError unless everything of `before` that is not in `own` is in `after`, byte for byte and in
    the same order. `own` are keys of parts (`own_keys`).
    """
    for what, was, is_now in _beside(before, after):
        if canonical_json(was) != canonical_json(is_now):
            raise UnsafePlanError(f"the document would change '{what}' of the gateway, which is not ours")
    for collection in COLLECTIONS:
        theirs = [part for part in parts(before, collection) if _key(collection, part) not in own]
        wanted = {_key(collection, part) for part in theirs}
        kept = [part for part in parts(after, collection) if _key(collection, part) in wanted]
        if len(kept) != len(theirs):
            raise UnsafePlanError(f"the document would add or drop parts of others in {collection}")
        for was, is_now in zip(theirs, kept, strict=True):
            if was is not is_now and _bytes(was) != _bytes(is_now):
                key = _key(collection, was)
                raise UnsafePlanError(f"the document would change '{key}' of the gateway, which is not ours")


def _bytes(part: Part) -> bytes:
    return canonical_json(part)


def _beside(before: Document, after: Document) -> Iterator[tuple[str, Any, Any]]:
    """Everything beside the collections of parts, in both documents."""
    for key in sorted(before.keys() | after.keys()):
        if key != "properties":
            yield key, before.get(key), after.get(key)
    was, now = before.get("properties") or {}, after.get("properties") or {}
    for key in sorted(was.keys() | now.keys()):
        if key not in COLLECTIONS:
            yield f"properties.{key}", was.get(key), now.get(key)


def _key(collection: str, part: Part) -> str:
    return part_key(collection, str(part.get("name")))

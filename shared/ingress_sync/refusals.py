"""What follows from Azure's refusal of a document: which object is to blame, and what is tried next.

Pure. A refusal that names a part by its id is that of the object the part was made for. One that names
nobody, or a part of several objects, is searched for by halves: of all objects whose routes the refused
document had changed, half are written and the rest held back as they were last good; what is accepted is
cleared, what is refused is halved again, and a single object that is refused is guilty. With n objects and k
guilty ones that takes about 2 k log2(n) writes, each of which leaves the others served.

An operation that fails late and names nobody is more likely Azure's own trouble: it is tried again, later and
later, before anybody is suspected. Called by `reconcile`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import msgspec

from shared.ingress_sync.policy import IngressSyncPolicy
from shared.ingress_sync.state import Bisection, Refused, State
from shared.ingress_sync.write import Refusal, backoff
from shared.model.duration import parse_duration
from shared.model.gateway import part_key

REASON = "RefusedByAzure"
TRY_AGAIN = timedelta(hours=6)
"""What was refused may be tried again after so long: limits, policies and vaults change."""
LATE_TRIES = 3
"""So often a document may fail late, without a name, before somebody is to blame."""

_PART = re.compile(r"/applicationGateways/[^/\s]+/(?P<collection>\w+)/(?P<name>[^/\s'\"),;]+)", re.IGNORECASE)


def named_parts(message: str) -> tuple[str, ...]:
    """Keys of the parts that a message names by their ids, in its order."""
    found = (part_key(match["collection"], match["name"].rstrip(".")) for match in _PART.finditer(message))
    return tuple(dict.fromkeys(found))


def blamed(refusal: Refusal, owners: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Who made the part that the refusal names; of several, those whose routes had changed. May be empty."""
    folded = {key.lower(): tuple(found) for key, found in owners.items()}
    for key in named_parts(refusal.message):
        found = folded.get(key.lower(), ())
        changed = tuple(owner for owner in found if owner in refusal.owners)
        if found:
            return changed or found
    return ()


def settle(
    state: State,
    refusal: Refusal,
    suspects: tuple[str, ...],
    *,
    digests: Mapping[str, str],
    policy: IngressSyncPolicy,
    now: datetime,
) -> State:
    """The state after a refusal. `suspects` are those it names, `digests` of every object's compiled form."""
    if state.bisection is not None and state.bisection.groups:
        group = state.bisection.groups[0]
        suspects = tuple(owner for owner in group if owner in suspects) or group
    is_trouble = refusal.is_late and not suspects and state.failures + 1 < LATE_TRIES
    suspects = suspects or refusal.owners
    if is_trouble or not suspects:
        failures = state.failures + 1
        return msgspec.structs.replace(state, failures=failures, retry_at=now + backoff(policy, failures))
    if len(suspects) == 1:
        again = parse_duration(policy.longest_retry) if refusal.is_late else TRY_AGAIN
        return _guilty(state, suspects[0], refusal, digests, now=now, again=again)
    return msgspec.structs.replace(state, bisection=_halved(state.bisection, suspects, refusal))


def accepted(state: State) -> State:
    """The state after a write was accepted: what was tried is cleared."""
    search = state.bisection
    if search is None:
        return state
    if not search.groups:
        return msgspec.structs.replace(state, bisection=None)
    first, *rest = search.groups
    left = msgspec.structs.replace(search, good=search.good + first, groups=tuple(rest))
    return msgspec.structs.replace(state, bisection=left if rest else None)


def _guilty(
    state: State,
    owner: str,
    refusal: Refusal,
    digests: Mapping[str, str],
    *,
    now: datetime,
    again: timedelta,
) -> State:
    refused = Refused(
        reason=REASON,
        message=_sentence(refusal),
        digest=digests.get(owner, ""),
        since=now,
        retry_at=now + again,
    )
    search = state.bisection
    if search is not None:
        groups = tuple(left for group in search.groups if (left := tuple(o for o in group if o != owner)))
        search = msgspec.structs.replace(search, groups=groups, bad=(*search.bad, owner)) if groups else None
    return msgspec.structs.replace(state, refused=state.refused | {owner: refused}, bisection=search)


def _halved(search: Bisection | None, suspects: tuple[str, ...], refusal: Refusal) -> Bisection:
    ordered = tuple(sorted(set(suspects)))
    middle = (len(ordered) + 1) // 2
    halves = (ordered[:middle], ordered[middle:])
    if search is None:
        return Bisection(groups=halves, message=_sentence(refusal))
    left = tuple(owner for owner in search.groups[0] if owner not in suspects)
    rest = ((left,) if left else ()) + search.groups[1:]
    return msgspec.structs.replace(search, groups=(*halves, *rest), message=_sentence(refusal))


def _sentence(refusal: Refusal) -> str:
    said = " ".join(refusal.message.split()) or "no reason was given"
    return f"Azure refused what was made of it ({refusal.code or 'no code'}): {said}"[:900]

"""Carries out a plan for etcd backups: takes, verifies and prunes, one action after the other.

Each action's preconditions are checked again by fresh reads, and each effect goes through the claim: a holder
that lost it writes nothing. A failed action becomes a failed outcome and never hides another. Called by
`reconcile` and the operations.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from shared.clients.blob import BlobInfo, BlobStore
from shared.clients.etcd import EtcdClient
from shared.errors import (
    ApiError,
    AutomationError,
    IntegrityError,
    LostLeaseError,
    NotFoundError,
    UnavailableError,
)
from shared.etcd_backup.backup import Order, Taken, Taker
from shared.etcd_backup.policy import EtcdBackupPolicy
from shared.etcd_backup.verify import Proof, Reason, store_index, store_verdict, verify, verify_stored
from shared.model.backup import Listing, Source, VerdictState, read_listing
from shared.model.etcd import format_id
from shared.model.plan import Action, ActionKind, Outcome, Plan, Status
from shared.model.wording import byte_size, counted
from shared.runtime.claim import Claim
from shared.settings import EtcdConnection


@dataclass(frozen=True)
class Place:
    """Where a plan is carried out. `now` is the clock."""

    cluster: str
    policy: EtcdBackupPolicy
    store: BlobStore
    etcd: EtcdClient
    connection: EtcdConnection
    claim: Claim
    environ: Mapping[str, str]
    now: Callable[[], datetime]


class _Declined(Exception):  # noqa: N818 - not an error: an action whose precondition no longer holds
    pass


def act(plan: Plan, place: Place) -> list[Outcome]:
    """What became of each action, in order; a backup yields a second outcome, of its verification.

    LostLeaseError ends everything at once; so does what is a bug. All else is in the outcomes.
    """
    return [outcome for action in plan.actions for outcome in _carry_out(action, place)]


def verdict_outcomes(action: Action, proof: Proof) -> list[Outcome]:
    """The outcome of a verification, and a second one when members contradict each other."""
    verdict = proof.verdict
    facts: dict[str, Any] = {
        "state": verdict.state.value,
        "reason": verdict.reason,
        "place": verdict.place,
        "statusHash": verdict.status_hash,
        "totalRows": verdict.total_rows,
        "hashKv": verdict.hash_kv,
        "members": [w.member_id for w in verdict.witnesses if w.agrees],
        "seconds": verdict.seconds,
        "readBytes": verdict.read_bytes,
    }
    message = f"{verdict.backup} is {verdict.state}: {verdict.message}"
    if verdict.state is VerdictState.BAD:
        found = facts | {"event": "FoundBad", "final": True}
        outcomes = [Outcome(action=action, status=Status.FAILED, message=message, data=found)]
    else:
        if verdict.state is VerdictState.UNVERIFIED:
            facts |= {"event": "Unverified"}
        outcomes = [Outcome(action=action, status=Status.SUCCEEDED, message=message, data=facts)]
    if verdict.members_diverged:
        outcomes.append(_diverged(action, proof))
    return outcomes


def _diverged(action: Action, proof: Proof) -> Outcome:
    hashes = {w.member_id: w.hash for w in proof.verdict.witnesses if w.hash is not None}
    alarm = msgspec.structs.replace(
        action,
        reason=Reason.MEMBERS_DIVERGE,
        message="members of this cluster hold different data at the same revision",
    )
    return Outcome(
        action=alarm,
        status=Status.FAILED,
        message=f"{alarm.message}; find the wrong one, remove it and add it anew",
        data={"event": "MembersDiverged", "final": True, "hashes": hashes},
    )


def _carry_out(action: Action, place: Place) -> list[Outcome]:
    carry_out = {ActionKind.BACKUP: _backup, ActionKind.VERIFY: _verify, ActionKind.PRUNE: _prune}[
        action.kind
    ]
    return _guarded(action, lambda: list(carry_out(action, place)))


def _guarded(action: Action, work: Callable[[], list[Outcome]]) -> list[Outcome]:
    try:
        return work()
    except _Declined as declined:
        return [Outcome(action=action, status=Status.SKIPPED, message=str(declined))]
    except LostLeaseError:
        raise
    except AutomationError as error:
        return [Outcome(action=action, status=Status.FAILED, message=str(error))]


# Backup


def _backup(action: Action, place: Place) -> Iterator[Outcome]:
    taken, failures = _take(action, place)
    manifest = taken.manifest
    notes = (*failures, *taken.notes)
    size, stored = manifest.database.size_bytes, manifest.archive.stored_bytes
    held = manifest.timings.stream_seconds
    message = (
        f"{manifest.kind} backup of revision {manifest.revisions.revision} from {manifest.source.endpoint}: "
        f"{byte_size(stored)} stored of {byte_size(size)}, read transaction held {held:.1f} s"
    )
    yield Outcome(
        action=action,
        status=Status.SUCCEEDED,
        message="; ".join((message, *notes)),
        data={
            "backup": manifest.name,
            "kind": manifest.kind.value,
            "revision": manifest.revisions.revision,
            "databaseBytes": size,
            "storedBytes": stored,
            "readTransactionSeconds": held,
            "readerWaitedSeconds": round(taken.reader_waited.total_seconds(), 3),
            "uploadSeconds": manifest.timings.upload_seconds,
            "member": manifest.source.member_id,
        },
    )
    place.claim.progress(f"stored {manifest.name}, {byte_size(stored)}; reading it back")
    checking = verification_of(manifest.name, "JustTaken", "it was just taken")
    yield from _guarded(checking, lambda: _prove(checking, taken, place))


def _prove(action: Action, taken: Taken, place: Place) -> list[Outcome]:
    proof = verify(taken.chain, taken.asked, place.now())
    return _settle(action, proof, place)


def _settle(action: Action, proof: Proof, place: Place) -> list[Outcome]:
    """Store what was found; the key index is a convenience, and failing at it does not spoil the proof."""
    verdict = proof.verdict
    store_verdict(place.claim, place.store, verdict)
    place.claim.progress(f"{verdict.backup} is {verdict.state}; indexing its keys")
    outcomes = verdict_outcomes(action, proof)
    try:
        if proof.chain:
            store_index(place.claim, place.store, proof.chain, verdict)
    except (ApiError, IntegrityError) as error:
        first = outcomes[0]
        note = f"{first.message}; no key index was made: {error}"
        outcomes[0] = msgspec.structs.replace(first, message=note)
    return outcomes


def verification_of(backup: str, reason: str, why: str) -> Action:
    """The action of reading one backup back."""
    return Action(
        kind=ActionKind.VERIFY,
        target=backup,
        reason=reason,
        message=f"read {backup} back and ask the members for its hash: {why}",
        parameters={"backup": backup},
    )


def _take(action: Action, place: Place) -> tuple[Taken, list[str]]:
    """From the chosen member, or from an alternate when its stream fails; with what went wrong before."""
    wanted = action.parameters
    taker = Taker(
        place.store, place.etcd, place.claim, policy=place.policy, environ=place.environ, now=place.now
    )
    failures: list[str] = []
    last: UnavailableError | None = None
    for endpoint in (wanted["endpoint"], *wanted.get("alternates", ())):
        is_chosen = endpoint == wanted["endpoint"]
        try:
            source = _source(place, endpoint, wanted["chosenBecause"] if is_chosen else "Alternate")
            # Pages of one member's file do not match another's: only the chosen one continues the chain.
            continues = is_chosen and source.member_id == wanted["memberId"]
            order = Order(
                cluster=place.cluster,
                run=place.claim.run_id + secrets.token_hex(4),
                source=source,
                parent=wanted["parent"] if continues else None,
                parent_digest=wanted["parentDigest"] if continues else None,
            )
            place.claim.progress(f"streaming from {endpoint}")
            return taker.take(order), failures
        except UnavailableError as error:
            last = error
            failures.append(str(error))
    assert last is not None
    raise last


def _source(place: Place, endpoint: str, why: str) -> Source:
    """The member behind `endpoint` as it is now; UnavailableError when it cannot serve any more."""
    status = place.etcd.status(endpoint)
    alarms = {alarm.alarm for alarm in status.alarms() if alarm.member_id == status.member_id}
    if alarms:
        raise UnavailableError(
            f"etcd {endpoint}: it has the alarm {' and '.join(sorted(alarms))} now", code="Alarm"
        )
    names = {member.id: member.name for member in place.etcd.members()}
    return Source(
        member_id=format_id(status.member_id),
        member_name=names.get(status.member_id, ""),
        endpoint=endpoint,
        etcd_version=status.version,
        is_learner=status.is_learner,
        raft_applied_index=status.raft_applied_index,
        chosen_because=why,
    )


# Verify


def _verify(action: Action, place: Place) -> Iterator[Outcome]:
    name = action.parameters["backup"]
    place.claim.progress(f"reading {name} back")
    try:
        proof = verify_stored(
            place.store,
            name,
            place.etcd,
            place.now(),
            encryption=place.policy.encryption,
            environ=place.environ,
        )
        outcomes = _settle(action, proof, place)
    except NotFoundError as error:
        raise _Declined(f"{name} is gone; nothing to verify") from error
    yield from outcomes


# Prune


def _prune(action: Action, place: Place) -> Iterator[Outcome]:
    """A backup with all its blobs, manifest first; or one blob that belongs to no backup."""
    blobs = {blob.name: blob for blob in place.store.list(f"{place.cluster}/")}
    listing = read_listing(blobs.values())
    name = action.parameters["backup"]
    if name is None:
        names = [orphan for orphan in action.parameters["blobs"] if orphan in listing.orphans]
    else:
        names = [blob for blob in _blobs_of(name, listing) if blob in blobs]
    if not names:
        raise _Declined(f"{action.target} is gone or in use by now")
    for blob in names:
        _check_mutable(blobs[blob], place.now())
    place.claim.delete_blobs(place.store, [(blob, blobs[blob].etag) for blob in names])
    freed = sum(blobs[blob].size for blob in names)
    yield Outcome(
        action=action,
        status=Status.SUCCEEDED,
        message=f"deleted {action.target}: {counted(len(names), 'blob')}, {byte_size(freed)}",
        data={"freedBytes": freed, "blobs": len(names)},
    )


def _blobs_of(name: str, listing: Listing) -> tuple[str, ...]:
    """What to delete with a backup; declines when another has come to need it since the plan was made."""
    child = next((record.name for record in listing.records if record.parent == name), None)
    if child:
        raise _Declined(f"{name} is kept: {child} is built on it")
    return next((record.blob_names for record in listing.records if record.name == name), ())


def _check_mutable(blob: BlobInfo, now: datetime) -> None:
    if blob.legal_hold or (blob.immutable_until and blob.immutable_until > now):
        raise _Declined(f"{blob.name} is immutable and is kept")

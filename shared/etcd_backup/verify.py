"""Proves a stored backup by reading it back through the store: bytes, structure, revision, hashes, witnesses.

One streaming pass over the chain computes all of it (`shared.model.etcd_snapshot`); the members' own HashKV
at the same revision is asked meanwhile. The result is a `Verdict`: *verified*, *unverified* (why) or *bad*
(where). Called by `act` and the CLI; the only effect is the verdict blob, through the claim.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from shared.clients.blob import BlobStore
from shared.clients.etcd import EtcdClient
from shared.errors import ApiError, ConflictError, IntegrityError
from shared.etcd_backup.archive import Chain
from shared.etcd_backup.chain import open_chain, open_key_index
from shared.etcd_backup.key_index import MOST_INDEX_BYTES, WHOLE_EVERY, KeyCollector, encode_index
from shared.etcd_backup.memory import give_back
from shared.etcd_backup.policy import Encryption
from shared.model.backup import Manifest, Verdict, VerdictState, Witness, key_index_name, verdict_name
from shared.model.etcd import HashKV, format_id
from shared.model.etcd_snapshot import (
    NewestRows,
    RowSink,
    SnapshotReport,
    SnapshotScan,
    newest_rows,
)
from shared.runtime.claim import Claim

MOST_INDEX_ROWS = 450_000
"""Beyond that a key index is sure not to fit into `MOST_INDEX_BYTES`, and looking is spared."""
FOLLOW_SECONDS = 15.0
"""How long to wait for a voter that has not reached the backup's revision yet."""
_ASK_AGAIN_SECONDS = 0.5


class Reason(StrEnum):
    """Why a verdict is what it is."""

    MEMBERS_AGREE = "MembersAgree"
    PROVEN_BEFORE = "ProvenBefore"
    NO_WITNESS = "NoWitness"
    MEMBERS_DIVERGE = "MembersDiverge"
    NO_MEMBER_AGREES = "NoMemberAgrees"
    DAMAGED = "Damaged"
    NOT_WHAT_WAS_STORED = "NotWhatWasStored"


Answer = HashKV | ApiError
"""A member's hash, or why there is none."""


@dataclass(frozen=True)
class Asked:
    """A member that is being asked for its HashKV at `revision`."""

    endpoint: str
    revision: int
    answer: Future[Answer]


@dataclass(frozen=True)
class Proof:
    """A verdict, and the chain it is about when that could be opened."""

    verdict: Verdict
    chain: Chain | None = None


def ask_members(etcd: EtcdClient, revision: int) -> tuple[Asked, ...]:
    """Ask every configured endpoint for HashKV at `revision`, all at once; does not wait for the answers.

    Ask before etcd compacts beyond the revision: after that nobody can answer.
    """
    pool = ThreadPoolExecutor(len(etcd.endpoints), thread_name_prefix="witness")
    asked = tuple(
        Asked(endpoint, revision, pool.submit(_ask, etcd, endpoint, revision)) for endpoint in etcd.endpoints
    )
    pool.shutdown(wait=False)
    return asked


def _ask(etcd: EtcdClient, endpoint: str, revision: int) -> Answer:
    """The member's answer; waits for one that has not come to the revision yet."""
    deadline = time.monotonic() + FOLLOW_SECONDS
    while True:
        try:
            return etcd.hash_kv(endpoint, revision)
        except ApiError as error:
            if error.code == "Compacted":
                return _ask_newest(etcd, endpoint, revision) or error
            if error.code != "FutureRevision" or time.monotonic() > deadline:
                return error
        time.sleep(_ASK_AGAIN_SECONDS)


def _ask_newest(etcd: EtcdClient, endpoint: str, revision: int) -> HashKV | None:
    """The hash at the newest revision, if that is still ours.

    Before 3.5.16 etcd calls the compacted revision itself compacted, but answers for the newest one. A member
    that has compacted at our revision has reached it, so its newest cannot be an older one.
    """
    with suppress(ApiError):
        newest = etcd.hash_kv(endpoint)
        if newest.revision == newest.compact_revision == revision:
            return newest
    return None


class _Sha256:
    """sha256 in a thread of its own: hashing takes as long as looking at the pages, and needs no lock."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._pending: Future[None] | None = None

    def update(self, data: memoryview, /) -> None:
        """Hash `data`, which must stay as it is; waits for what was given before."""
        if self._pending:
            self._pending.result()
        self._pending = self._pool.submit(self._sha256.update, data)

    def digest(self) -> bytes:
        """The digest of all that was given; ends the thread."""
        self._pool.shutdown(wait=True)
        return self._sha256.digest()


def read_back(chain: Chain, *, on_rows: RowSink | None = None) -> SnapshotReport:
    """One pass over the stored chain; raises IntegrityError where a frame cannot even be read."""
    give_back()
    scan = SnapshotScan(newest=newest_of(chain), on_rows=on_rows, sha256=_Sha256())
    for piece in chain.stream():
        scan.feed(piece)
    return scan.finish()


def verify(
    chain: Chain,
    asked: Sequence[Asked],
    at: datetime,
    earlier: Iterable[Verdict] = (),
) -> Proof:
    """The verdict on the newest backup of `chain`, given at `at`.

    `earlier` are its older verdicts: a proof by members stays one as long as the bytes are the same. ApiError
    when the store cannot be read; damage is a verdict, not an error.
    """
    began, before = time.monotonic(), chain.bytes_read
    manifest = chain.manifest
    try:
        report = read_back(chain)
    except IntegrityError as error:
        return Proof(damaged(manifest, error, at, seconds=time.monotonic() - began))
    witnesses, members = _witnesses(report, asked)
    state, reason, message, place = _judge(manifest, report, members)
    hash_kv, compact = _own_hash(report, members)
    if state is VerdictState.UNVERIFIED and (proven := _proven(manifest, report, earlier)):
        state, reason = VerdictState.VERIFIED, Reason.PROVEN_BEFORE
        message = f"the same bytes as {proven.at:%Y-%m-%d %H:%M:%S}, when members agreed with them"
        witnesses, hash_kv, compact = proven.witnesses, proven.hash_kv, proven.hash_kv_compact_revision
    verdict = Verdict(
        backup=manifest.name,
        manifest_digest=manifest.digest(),
        state=state,
        reason=reason,
        message=message,
        at=at,
        place=place,
        sha256=report.sha256,
        status_hash=report.status_hash,
        total_rows=report.total_rows,
        hash_kv=hash_kv,
        hash_kv_compact_revision=compact,
        witnesses=witnesses,
        members_diverged=_has_diverged(members),
        seconds=round(time.monotonic() - began, 3),
        read_bytes=chain.bytes_read - before,
    )
    return Proof(verdict, chain)


def verify_stored(
    store: BlobStore,
    name: str,
    etcd: EtcdClient | None,
    at: datetime,
    *,
    encryption: Encryption | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Proof:
    """`verify` of the backup whose manifest is `name`, from what the store has; `etcd` None asks nobody.

    NotFoundError when there is no such backup; a chain that cannot be opened is a bad backup, not an error.
    """
    began = time.monotonic()
    try:
        chain = open_chain(store, name, encryption, environ)
    except IntegrityError as error:
        return Proof(_unreadable(store, name, error, at, seconds=time.monotonic() - began))
    asked = ask_members(etcd, chain.manifest.revisions.revision) if etcd else ()
    return verify(chain, asked, at, earlier_verdicts(store, name))


def store_verdict(claim: Claim, store: BlobStore, verdict: Verdict) -> None:
    """Write the verdict beside its manifest, through the claim."""
    claim.create_blob(store, verdict_name(verdict.backup, verdict.at), verdict.to_json(), verdict.metadata())


def store_index(claim: Claim, store: BlobStore, chain: Chain, verdict: Verdict) -> bool:
    """Write the key index of a sound backup beside it, through the claim; whether there is one now.

    A pass of its own, after the verdict: a backup should be proven as early as possible, and finding single
    objects in it can wait. Databases whose index would not fit into memory get none; reading works without.
    """
    if verdict.state is VerdictState.BAD or not 0 < (verdict.total_rows or 0) <= MOST_INDEX_ROWS:
        return False
    name = key_index_name(verdict.backup)
    if any(store.list(name)):  # made by an earlier verification
        return True
    collector = KeyCollector(MOST_INDEX_BYTES)
    report = read_back(chain, on_rows=collector)
    builds_on_parent = chain.manifest.chain_length % WHOLE_EVERY
    below = open_key_index(store, chain.archives[:-1]) if builds_on_parent else None
    index = encode_index(collector, report, chain, below)
    if index is None:
        return False
    with suppress(ConflictError):  # made meanwhile
        claim.create_blob(store, name, index.data)
    return True


def earlier_verdicts(store: BlobStore, manifest: str) -> list[Verdict]:
    """The stored verdicts on a backup, newest first; damaged ones count for nothing and are left out."""
    prefix = f"{manifest.removesuffix('.json')}.verdict-"
    found = []
    for blob in sorted(store.list(prefix), key=lambda blob: blob.name, reverse=True):
        with suppress(IntegrityError):
            found.append(Verdict.from_json(store.read(blob.name).data, blob.name))
    return found


def damaged(manifest: Manifest, error: IntegrityError, at: datetime, *, seconds: float = 0.0) -> Verdict:
    """The verdict on a backup that cannot be read to its end."""
    return _bad(manifest.name, manifest.digest(), error, at, seconds)


def _unreadable(store: BlobStore, name: str, error: IntegrityError, at: datetime, seconds: float) -> Verdict:
    digest = store.properties(name).metadata.get("digest", "")
    return _bad(name, digest, error, at, seconds)


def _bad(name: str, digest: str, error: IntegrityError, at: datetime, seconds: float) -> Verdict:
    return Verdict(
        backup=name,
        manifest_digest=digest,
        state=VerdictState.BAD,
        reason=Reason.DAMAGED,
        message=str(error),
        place=error.place,
        at=at,
        seconds=round(seconds, 3),
    )


def newest_of(chain: Chain) -> NewestRows | None:
    """What HashKV needs to know of superseded rows; None when damage hides it, which the scan will name."""
    with suppress(IntegrityError):
        return newest_rows(chain.image(), chain.manifest.revisions.compact_revision)
    return None


def _witnesses(report: SnapshotReport, asked: Sequence[Asked]) -> tuple[tuple[Witness, ...], list[Witness]]:
    """What everybody answered, and those among them that gave a hash. Learners are no witnesses."""
    found = []
    for one in asked:
        answer = one.answer.result()
        if isinstance(answer, HashKV):
            own = report.hash_kv(answer.compact_revision) if report.is_sound else None
            found.append(
                Witness(
                    member_id=format_id(answer.member_id),
                    endpoint=one.endpoint,
                    revision=one.revision,
                    hash=answer.hash,
                    compact_revision=answer.compact_revision,
                    agrees=None if own is None else own == answer.hash,
                )
            )
        elif answer.code != "NotOnLearner":
            found.append(
                Witness(member_id="", endpoint=one.endpoint, revision=one.revision, error=str(answer))
            )
    # Several endpoints may lead to one member; it has one voice.
    unique = {witness.member_id: witness for witness in found if witness.hash is not None}
    return tuple(found), list(unique.values())


def _judge(
    manifest: Manifest, report: SnapshotReport, members: Sequence[Witness]
) -> tuple[VerdictState, Reason, str, str | None]:
    if report.problems:
        first = report.problems[0]
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        return VerdictState.BAD, Reason.DAMAGED, f"{first}{more}", first.place
    if found := difference(manifest, report):
        return VerdictState.BAD, Reason.NOT_WHAT_WAS_STORED, found, f"manifest {manifest.name}"
    agree = [w for w in members if w.agrees]
    disagree = [w for w in members if w.agrees is False]
    if agree and len(agree) > len(disagree):
        state, reason = VerdictState.VERIFIED, Reason.MEMBERS_AGREE
        message = f"{len(agree)} of {len(members)} members that answered have the same HashKV"
    elif agree or _has_diverged(members):
        state, reason = VerdictState.UNVERIFIED, Reason.MEMBERS_DIVERGE
        message = f"members differ from each other: {_hashes(members)}"
    elif disagree:
        state, reason = VerdictState.BAD, Reason.NO_MEMBER_AGREES
        message = f"the file is sound, but no member has its HashKV: {_hashes(members)}"
    else:
        state, reason = VerdictState.UNVERIFIED, Reason.NO_WITNESS
        message = "bytes and structure are sound, but no member could confirm the content at this revision"
    if _has_diverged(members) and reason is Reason.MEMBERS_AGREE:
        message += f"; the others differ: {_hashes(disagree)}"
    return state, reason, message, None


def difference(manifest: Manifest, report: SnapshotReport) -> str | None:
    """What a sound file has otherwise than its manifest says; None when nothing."""
    database = manifest.database
    for what, stored, found in (
        ("sha256", database.sha256, report.sha256),
        ("size", database.size_bytes, report.size_bytes),
        ("revisions", manifest.revisions, report.revisions),
    ):
        if stored != found:
            return f"the manifest says {what} {stored}, the file has {found}"
    return None


def _has_diverged(members: Sequence[Witness]) -> bool:
    """Whether members contradict each other: same revision, same compaction, different content."""
    if len({w.agrees for w in members if w.agrees is not None}) > 1:
        return True
    by_compaction: dict[int | None, set[int | None]] = {}
    for witness in members:
        by_compaction.setdefault(witness.compact_revision, set()).add(witness.hash)
    return any(len(hashes) > 1 for hashes in by_compaction.values())


def _hashes(members: Sequence[Witness]) -> str:
    return ", ".join(
        f"{w.member_id} {w.hash} (compacted at {w.compact_revision})" for w in members if w.hash is not None
    )


def _own_hash(report: SnapshotReport, members: Sequence[Witness]) -> tuple[int | None, int | None]:
    """This file's HashKV as the first comparable member computes it, else at its own compaction."""
    if not report.is_sound:
        return None, None
    compact = next(
        (w.compact_revision for w in members if w.agrees and w.compact_revision is not None),
        report.revisions.compact_revision,
    )
    value = report.hash_kv(compact)
    return value, compact if value is not None else None


def _proven(manifest: Manifest, report: SnapshotReport, earlier: Iterable[Verdict]) -> Verdict | None:
    digest = manifest.digest()
    for verdict in earlier:
        is_same = verdict.manifest_digest == digest and verdict.sha256 == report.sha256
        if is_same and verdict.state is VerdictState.VERIFIED:
            return verdict
    return None

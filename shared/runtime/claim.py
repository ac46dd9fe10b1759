"""One writer per (cluster, automation): a blob lease, an epoch that only grows, and announced writes.

Owns container `kubekeeper`: for each (cluster, automation) a lease blob, a state document and dirty marks.
A lease alone does not stop a holder that was paused and wakes up late. So

* every new holder raises the epoch in the state document, which is only ever replaced as it was read
  (If-Match): an older holder can no longer save or announce anything;
* every effect is announced in that document first, as an *intent*. The new holder settles what older
  holders left open: where a blob was to be created and is not there, it puts a tombstone, so that the late
  If-None-Match: * fails; where a blob was to be deleted, it deletes it (if still the same version).

Hence at most one effective write per intent, whenever and wherever its writer stops. Decides nothing about
what to write; called by `shared.work` (acquire, release) and by each automation's `act` (create,
commit, delete).
"""

from __future__ import annotations

import enum
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

import msgspec

from shared.clients.blob import TOMBSTONE, BlobStore
from shared.errors import ApiError, ConflictError, LostLeaseError, NotFoundError, RunFailedError

CONTAINER = "kubekeeper"
INTENT = "kubekeeper_intent"
"""Metadata key on every blob an intent announced; tells one's own write from somebody else's."""

LEASE = timedelta(seconds=30)
"""Long enough to survive a slow request, short enough for a quick takeover."""

SHORTEST_LEASE, LONGEST_LEASE = timedelta(seconds=15), timedelta(seconds=60)
"""What the service allows."""

MAX_HOLD = timedelta(hours=1)
"""No run is renewed beyond this, above every functionTimeout: a stuck one must not hold on for ever."""

log = logging.getLogger(__name__)


class Effect(enum.StrEnum):
    """What an intent announces."""

    CREATE = "create"
    DELETE = "delete"


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """One announced write; open as long as it stands in the state document."""

    id: str
    epoch: int
    effect: Effect
    container: str
    name: str
    at: datetime
    etag: str = ""


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an intent that an older holder left open; `happened` when its write took effect."""

    intent: Intent
    happened: bool


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's wish that the automation rest on this cluster."""

    at: datetime
    reason: str = ""


class State(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The state document. `automation` is the automation's own part.

    Passes are numbered: `begun` is the last that began (at `passing_since`), `ended` the last that ended well
    (and began at `passed_at`).
    """

    epoch: int = 0
    holder: str = ""
    begun: int = 0
    passing_since: datetime | None = None
    ended: int = 0
    passed_at: datetime | None = None
    paused: Pause | None = None
    intents: tuple[Intent, ...] = ()
    automation: dict[str, Any] = {}


class Claims:
    """All claims of the fleet. `blobs` gives the store of a container by name."""

    def __init__(self, blobs: Callable[[str], BlobStore], lease: timedelta = LEASE) -> None:
        self._blobs = blobs
        self._store = blobs(CONTAINER)
        self._lease = lease

    def acquire(
        self,
        cluster: str,
        automation: str,
        passing_since: datetime | None = None,
        is_due: Callable[[State], bool] = lambda _state: True,
    ) -> Claim | None:
        """The claim, or None while somebody else holds it; raises ApiError when the store cannot be used.

        With `passing_since` a pass begins at once, in the same write, if it `is_due` by the state that the
        holder before has left. Raises the epoch and settles what older holders left open before it returns.
        """
        lease_id = str(uuid.uuid4())
        started = time.monotonic()
        if not self._acquire_lease(f"{cluster}/{automation}.lease", lease_id):
            return None
        claim = Claim(self._blobs, cluster, automation, lease_id, self._lease, leased_at=started)
        try:
            claim._begin(passing_since, is_due)
        except BaseException:
            claim.abandon()
            raise
        return claim

    def state(self, cluster: str, automation: str) -> State:
        """The state document as it stands, for looking only; a new one when there is none."""
        try:
            return _decode(self._store.read(_state_name(cluster, automation)).data)
        except NotFoundError:
            return State()

    def mark_dirty(self, cluster: str, automation: str, begun: int) -> bool:
        """Ask for another pass after number `begun`, the last seen to begin; True when the mark is new.

        Whoever finds the mark made already has seen the same number, so any later pass sees its reason too.
        """
        try:
            self._store.create(_mark_name(cluster, automation, begun), b"")
        except ConflictError:
            return False
        except NotFoundError:
            self._store.ensure()
            return self.mark_dirty(cluster, automation, begun)
        return True

    def is_dirty(self, cluster: str, automation: str, begun: int) -> bool:
        """Whether somebody asked for another pass after number `begun`."""
        try:
            self._store.properties(_mark_name(cluster, automation, begun))
        except NotFoundError:
            return False
        return True

    def clear_marks(self, cluster: str, automation: str, begun: int) -> None:
        """Forget what was asked for before pass number `begun`: it is about to see whatever it was about."""
        for info in self._store.list(f"{cluster}/{automation}.dirty-"):
            if info.name < _mark_name(cluster, automation, begun):
                with suppress(NotFoundError):
                    self._store.delete(info.name)

    def _acquire_lease(self, name: str, lease_id: str) -> bool:
        seconds = round(self._lease.total_seconds())
        try:
            self._store.acquire_lease(name, lease_id, seconds)
        except ConflictError:
            return False
        except NotFoundError as error:
            if error.code == "ContainerNotFound":
                self._store.ensure()
            with suppress(ConflictError):
                self._store.create(name, b"")
            return self._acquire_lease(name, lease_id)
        return True


class Claim:
    """The right to act on one (cluster, automation); a context manager that gives it back.

    A thread renews the lease while the run is busy; `ensure` is the check to make before anything that
    cannot be announced. All methods raise LostLeaseError once somebody else holds the claim; then write
    nothing more.
    """

    def __init__(
        self,
        blobs: Callable[[str], BlobStore],
        cluster: str,
        automation: str,
        lease_id: str,
        lease: timedelta,
        *,
        leased_at: float,
    ) -> None:
        self.cluster = cluster
        self.automation = automation
        self.settled: tuple[Settled, ...] = ()
        """What older holders had left open, and what became of it."""
        self.run_id = uuid.uuid4().hex[:8]
        """Names this run in what it writes; the same at every attempt of one operation, so that a resumed one
        finds what it had already written."""
        self.progress: Callable[[str], None] = lambda _line: None
        """Tell whoever waits for the operation how far it is, one line; does nothing outside operations."""
        self._blobs = blobs
        self._store = blobs(CONTAINER)
        self._lease_name = f"{cluster}/{automation}.lease"
        self._lease_id = lease_id
        self._lease_seconds = lease.total_seconds()
        self._acquired_at = leased_at
        self._renewed_at = leased_at
        self._document = State()
        self._etag = ""
        self._saved = self._document
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._lost = False
        self._is_numbered = False
        self._resolved: set[str] = set()

    @property
    def epoch(self) -> int:
        """This holder's number; greater than that of every holder before."""
        return self._document.epoch

    @property
    def state(self) -> dict[str, Any]:
        """The automation's own part of the state document; change it through `save`."""
        return self._document.automation

    @property
    def paused(self) -> Pause | None:
        """The operator's pause, if there is one."""
        return self._document.paused

    @property
    def is_passing(self) -> bool:
        """Whether a pass began as the claim was acquired, and nobody has asked for its number yet."""
        return self._is_numbered

    @property
    def begun(self) -> int:
        """The number of the last pass that began."""
        return self._document.begun

    @property
    def passed_at(self) -> datetime | None:
        """When the last pass that ended well began."""
        return self._document.passed_at

    def save(self, state: dict[str, Any]) -> None:
        """Replace the automation's own part of the state document."""
        self._write(msgspec.structs.replace(self._document, automation=state))

    def pause(self, pause: Pause | None) -> None:
        """Set or end the operator's pause."""
        self._write(msgspec.structs.replace(self._document, paused=pause))

    def begin_pass(self, now: datetime) -> datetime:
        """Number a new pass, returning when it began; `acquire(passing_since)` has numbered the first."""
        if self._is_numbered and self._document.passing_since:
            self._is_numbered = False
            return self._document.passing_since
        began = self._document.begun + 1
        self._write(msgspec.structs.replace(self._document, begun=began, passing_since=now))
        return now

    def end_pass(self) -> None:
        """Note that the pass has ended well; stored with the next write or the release."""
        with self._lock:
            document = self._document
            self._document = msgspec.structs.replace(
                document, ended=document.begun, passed_at=document.passing_since
            )

    def ensure(self) -> None:
        """Raise LostLeaseError unless the claim is still ours: lease renewed if due, epoch unchanged."""
        with self._lock:
            self._keep()
            try:
                etag = self._store.properties(self._state_name).etag
            except NotFoundError as error:
                raise self._lose("its state document is gone") from error
            if etag != self._etag:
                raise self._lose("its state document was written by another worker")

    def create_blob(
        self, store: BlobStore, name: str, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> str:
        """Write a new blob, returning its etag: announced, at most once, never after the claim was lost.

        ConflictError when somebody else's blob has the name.
        """
        (intent,) = self._announce(Effect.CREATE, store, [(name, "")])
        try:
            etag = store.create(name, data, {**(metadata or {}), INTENT: intent.id})
        except ConflictError as error:
            etag = self._own(store, intent, error)
        self._resolve(intent)
        return etag

    def commit_blocks(
        self,
        store: BlobStore,
        name: str,
        block_ids: Sequence[str],
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Make staged blocks a new blob, returning its etag; otherwise as `create_blob`."""
        (intent,) = self._announce(Effect.CREATE, store, [(name, "")])
        try:
            etag = store.commit_blocks(name, block_ids, {**(metadata or {}), INTENT: intent.id})
        except ConflictError as error:
            etag = self._own(store, intent, error)
        self._resolve(intent)
        return etag

    def delete_blobs(self, store: BlobStore, versions: Sequence[tuple[str, str]]) -> None:
        """Delete blobs (name, etag) in this order, announced together; one that is already gone is fine.

        ConflictError when one has changed since, or is immutable; those before it are deleted.
        """
        intents = self._announce(Effect.DELETE, store, versions)
        for intent in intents:
            try:
                with suppress(NotFoundError):
                    store.delete(intent.name, intent.etag)
            except ConflictError:
                self._resolve(*intents)
                self.ensure()  # a newer holder may have carried it out, and built on the name since
                raise
            self._resolve(intent)

    def release(self) -> None:
        """Store what is not stored yet and give the claim back; LostLeaseError if it is not ours any more.

        Only now are intents that are done with forgotten: until the run is recorded, a crash must leave their
        trace for the next holder.
        """
        self._stop.set()
        with self._lock:
            if self._lost:
                return
            left = tuple(i for i in self._document.intents if i.id not in self._resolved)
            document = msgspec.structs.replace(self._document, intents=left)
            if document != self._saved:
                self._write(document)
            with suppress(ConflictError, NotFoundError):
                self._store.release_lease(self._lease_name, self._lease_id)

    def abandon(self) -> None:
        """Give only the lease back, without hiding the failure; the next holder settles the rest."""
        self._stop.set()
        try:
            self._store.release_lease(self._lease_name, self._lease_id)
        except ApiError as error:
            log.warning("LeaseNotReleased cluster=%s error=%s", self.cluster, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or kind is RunFailedError:  # the latter comes after everything has been recorded
            self.release()
        else:
            self.abandon()

    @property
    def _state_name(self) -> str:
        return _state_name(self.cluster, self.automation)

    def _begin(self, passing_since: datetime | None, is_due: Callable[[State], bool]) -> None:
        self._raise_epoch(passing_since, is_due)
        older = [intent for intent in self._document.intents if intent.epoch < self.epoch]
        self.settled = tuple(self._settle(intent) for intent in older)
        self._resolve(*older)
        threading.Thread(target=self._renew_while_held, name=f"lease-{self.cluster}", daemon=True).start()

    def _raise_epoch(self, passing_since: datetime | None, is_due: Callable[[State], bool]) -> None:
        # An older holder may be saving at this very moment; its write is the last one it gets through.
        for _ in range(10):
            try:
                blob = self._store.read(self._state_name)
                document, self._etag = _decode(blob.data), blob.etag
            except NotFoundError:
                document = State()
                with suppress(ConflictError):
                    self._store.create(self._state_name, _encode(document))
                continue
            holder = f"{socket.gethostname()}:{os.getpid()}:{self._lease_id}"
            raised = msgspec.structs.replace(document, epoch=document.epoch + 1, holder=holder)
            self._is_numbered = passing_since is not None and is_due(document)
            if self._is_numbered:
                raised = msgspec.structs.replace(raised, begun=raised.begun + 1, passing_since=passing_since)
            with suppress(LostLeaseError):
                self._write(raised)
                return
            self._lost = False
        raise self._lose("its state document keeps changing")

    def _settle(self, intent: Intent) -> Settled:
        store = self._blobs(intent.container)
        if intent.effect is Effect.DELETE:
            # Carried out rather than called off: the decision stood, and a late delete then finds nothing.
            with suppress(NotFoundError, ConflictError):
                store.delete(intent.name, intent.etag)
            return Settled(intent=intent, happened=True)
        try:
            self._seal(store, intent.name)
        except ConflictError:
            written = store.properties(intent.name).metadata.get(INTENT) == intent.id
            return Settled(intent=intent, happened=written)
        return Settled(intent=intent, happened=False)

    def _seal(self, store: BlobStore, name: str) -> None:
        # An empty block list rather than an empty blob: it also throws away the blocks a late writer has
        # staged (and Azurite refuses If-None-Match: * for an empty blob while there are some).
        tombstone = {TOMBSTONE: str(self.epoch)}
        try:
            store.commit_blocks(name, [], tombstone)
        except NotFoundError:
            store.ensure()
            store.commit_blocks(name, [], tombstone)

    def _announce(
        self, effect: Effect, store: BlobStore, versions: Sequence[tuple[str, str]]
    ) -> tuple[Intent, ...]:
        """Stand in the state document before the effect leaves; also proves that the epoch is ours."""
        with self._lock:
            self._keep()
            now = datetime.now(UTC)
            known = {
                (i.effect, i.container, i.name): i
                for i in self._document.intents
                if i.id not in self._resolved
            }
            intents = tuple(
                known.get((effect, store.name, name))
                or Intent(
                    id=uuid.uuid4().hex,
                    epoch=self.epoch,
                    effect=effect,
                    container=store.name,
                    name=name,
                    at=now,
                    etag=etag,
                )
                for name, etag in versions
            )
            kept = tuple(i for i in self._document.intents if i not in intents)
            self._write(msgspec.structs.replace(self._document, intents=kept + intents))
            return intents

    def _own(self, store: BlobStore, intent: Intent, conflict: ConflictError) -> str:
        """The etag of our own write whose first answer was lost; otherwise the reason it can never happen."""
        info = store.properties(intent.name)
        if TOMBSTONE in info.metadata:
            raise self._lose(f"blob '{intent.name}' was sealed by a newer holder")
        if info.metadata.get(INTENT) != intent.id:
            self._resolve(intent)
            raise conflict
        return info.etag

    def _resolve(self, *intents: Intent) -> None:
        # In memory only, until the release: after a crash before that, the next holder finds the blob in
        # place, comes to the same conclusion, and records it.
        with self._lock:
            self._resolved.update(intent.id for intent in intents)

    def _write(self, document: State) -> None:
        with self._lock:
            data = _encode(document)
            try:
                self._etag = self._store.replace(self._state_name, data, self._etag)
            except (ConflictError, NotFoundError) as error:
                # The first answer may have been lost and the request repeated: then what stands there is
                # ours.
                self._etag = self._etag_if_ours(data, error)
            self._document = self._saved = document

    def _etag_if_ours(self, data: bytes, error: ApiError) -> str:
        with suppress(NotFoundError):
            blob = self._store.read(self._state_name)
            if blob.data == data:
                return blob.etag
        raise self._lose("its state document was written by another worker") from error

    def _keep(self) -> None:
        if self._lost:
            raise self._lose("another worker has taken over")
        if time.monotonic() - self._renewed_at > self._lease_seconds / 3:
            self._renew()

    def _renew(self) -> None:
        asked = time.monotonic()
        if asked - self._acquired_at > MAX_HOLD.total_seconds():
            raise self._lose(f"it was held for more than {MAX_HOLD}")
        try:
            self._store.renew_lease(self._lease_name, self._lease_id)
        except (ConflictError, NotFoundError) as error:
            raise self._lose("its lease was taken or broken") from error
        self._renewed_at = asked

    def _renew_while_held(self) -> None:
        while not self._stop.wait(self._lease_seconds / 6):
            try:
                with self._lock:
                    if self._stop.is_set():
                        return
                    self._keep()
            except LostLeaseError:
                return
            except ApiError as error:  # the next turn tries again; the lease outlives a few failures
                log.warning("LeaseNotRenewed cluster=%s error=%s", self.cluster, error)

    def _lose(self, why: str) -> LostLeaseError:
        self._lost = True
        return LostLeaseError(
            f"lost the claim on {self.automation} of cluster '{self.cluster}': {why}; this run stops"
        )


def _mark_name(cluster: str, automation: str, begun: int) -> str:
    return f"{cluster}/{automation}.dirty-{begun:012d}"


def _state_name(cluster: str, automation: str) -> str:
    return f"{cluster}/{automation}.json"


def _encode(state: State) -> bytes:
    return msgspec.json.encode(state)


def _decode(data: bytes) -> State:
    return msgspec.json.decode(data, type=State)

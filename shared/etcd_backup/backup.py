"""Takes one backup: etcd's stream into a committed data blob, its exact revision, its manifest.

The order makes every crash harmless: data blob first, manifest last, each announced through the claim. A data
blob without a manifest is not a backup; `act` sweeps it. Called by `act`; proving what was stored is
`verify`'s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec

import shared
from shared.clients.blob import BlobStore
from shared.clients.etcd import EtcdClient
from shared.errors import ForbiddenError, IntegrityError, NotFoundError, SettingsError
from shared.etcd_backup import keys
from shared.etcd_backup.archive import Archive, ArchiveWriter, Chain
from shared.etcd_backup.chain import open_archive, open_archives, read_manifests
from shared.etcd_backup.memory import give_back
from shared.etcd_backup.policy import EtcdBackupPolicy
from shared.etcd_backup.transfer import Staged, stage
from shared.etcd_backup.verify import Asked, ask_members
from shared.model.backup import (
    EncryptionSummary,
    Kind,
    Manifest,
    ParentRef,
    Revisions,
    Source,
    Timings,
    bump_revision_advice,
    data_name,
)
from shared.model.duration import parse_duration
from shared.model.etcd_snapshot import read_revisions
from shared.runtime.claim import Claim

_STREAM = "stream"  # the place an archive names when not the stored bytes are at fault but what etcd sent
_UNKNOWN = Revisions(revision=0, last_row_revision=0, compact_revision=0, scheduled_compact_revision=0)


@dataclass(frozen=True)
class Order:
    """A backup to take. `parent` is the manifest a delta builds on, None for a full."""

    cluster: str
    run: str
    """Names this attempt: data blob, block ids and manifest carry it."""
    source: Source
    parent: str | None = None
    parent_digest: str | None = None
    """What the parent's manifest must still be; None takes it as it is."""


@dataclass(frozen=True)
class Taken:
    """A committed backup: its chain as stored, the members asked for their HashKV, and notes for people."""

    manifest: Manifest
    chain: Chain
    asked: tuple[Asked, ...]
    reader_waited: timedelta
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Parent:
    """What a delta builds on: the open chain below, its newest manifest, and the table to compare with."""

    archives: list[Archive]
    manifest: Manifest
    chain: Chain


class Taker:
    """What taking backups of one cluster needs; `now` is the clock for the manifest's times."""

    def __init__(
        self,
        store: BlobStore,
        etcd: EtcdClient,
        claim: Claim,
        *,
        policy: EtcdBackupPolicy,
        environ: Mapping[str, str] = os.environ,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store, self._etcd, self._claim = store, etcd, claim
        self._policy, self._environ, self._now = policy, environ, now

    def take(self, order: Order) -> Taken:
        """One backup, committed but not yet proven; a full where the parent turns out to be unreadable.

        Raises UnavailableError (the stream; nothing is stored), IntegrityError (what arrived is not what etcd
        sent, or what was stored cannot be read back), other ApiErrors of store and etcd, LostLeaseError.
        """
        give_back()
        parent, notes = self._open_parent(order)
        if parent is None:
            return self._take(order, None, notes)
        try:
            return self._take(order, parent, notes)
        except IntegrityError as error:
            if error.place == _STREAM:
                raise
            return self._take(replace(order, run=order.run + "f"), None, (_instead(error),))

    def _take(self, order: Order, parent: _Parent | None, notes: tuple[str, ...]) -> Taken:
        started = self._now()
        self._claim.ensure()
        data_key, encryption = self._data_key()
        staged, storage_version = self._stage(order, started, parent, data_key)
        committing = time.monotonic()
        self._claim.commit_blocks(self._store, staged.name, staged.block_ids, {"run": order.run})
        source = msgspec.structs.replace(order.source, storage_version=storage_version or None)
        manifest = _manifest(order, source, staged, started=started, parent=parent, encryption=encryption)
        chain = self._open(manifest, parent, data_key)
        manifest = _with_revisions(
            manifest,
            read_revisions(chain.image(cached_frames=4)),
            committed_at=self._now(),
            upload_seconds=staged.upload_seconds + time.monotonic() - committing,
        )
        asked = ask_members(self._etcd, manifest.revisions.revision)
        self._claim.create_blob(self._store, manifest.name, manifest.to_json(), manifest.metadata())
        return Taken(
            manifest=manifest,
            chain=_with_manifest(chain, manifest),
            asked=asked,
            reader_waited=timedelta(seconds=staged.reader_waited_seconds),
            notes=notes,
        )

    def _open_parent(self, order: Order) -> tuple[_Parent | None, tuple[str, ...]]:
        if order.parent is None:
            return None, ()
        try:
            manifests = read_manifests(self._store, order.parent)
            _check_unchanged(manifests[-1], order)
            archives = open_archives(self._store, manifests, self._policy.encryption, self._environ)
            return _Parent(archives, manifests[-1], Chain.open(archives)), ()
        except (IntegrityError, NotFoundError, SettingsError, ForbiddenError) as error:
            # The latter two: the key that wrapped the parent was replaced or switched off. A full needs only
            # the key that is configured now.
            return None, (_instead(error),)

    def _data_key(self) -> tuple[bytes | None, EncryptionSummary | None]:
        if self._policy.encryption is None:
            return None, None
        from shared.etcd_backup.archive import ALGORITHM

        data_key, wrapped = keys.new_data_key(self._policy.encryption, self._environ)
        return data_key, EncryptionSummary(algorithm=ALGORITHM, key=wrapped)

    def _stage(
        self, order: Order, started: datetime, parent: _Parent | None, data_key: bytes | None
    ) -> tuple[Staged, str]:
        writer = ArchiveWriter(
            order.run, parent=parent.chain.page_table() if parent else None, data_key=data_key
        )
        with self._etcd.snapshot(
            order.source.endpoint,
            stall_timeout=parse_duration(self._policy.stall_timeout),
            total_timeout=parse_duration(self._policy.total_timeout),
        ) as stream:
            name = data_name(order.cluster, started, order.run)
            staged = stage(stream, writer, self._store, name, order.run)
        return staged, stream.storage_version

    def _open(self, manifest: Manifest, parent: _Parent | None, data_key: bytes | None) -> Chain:
        below = parent.archives if parent else []
        return Chain.open([*below, open_archive(self._store, manifest, data_key=data_key)])


def _manifest(
    order: Order,
    source: Source,
    staged: Staged,
    *,
    started: datetime,
    parent: _Parent | None,
    encryption: EncryptionSummary | None,
) -> Manifest:
    """Everything but the revisions, which are read from the stored file."""
    return Manifest(
        kubekeeper_version=shared.__version__,
        cluster=order.cluster,
        run=order.run,
        kind=Kind.DELTA if parent else Kind.FULL,
        data=staged.name,
        database=staged.database,
        revisions=_UNKNOWN,
        archive=staged.archive,
        source=source,
        timings=Timings(
            started_at=started,
            committed_at=started,
            first_byte_seconds=round(staged.first_byte_seconds, 3),
            stream_seconds=round(staged.stream_seconds, 3),
            upload_seconds=0.0,
        ),
        bump_revision=0,
        chain_length=parent.manifest.chain_length + 1 if parent else 0,
        parent=ParentRef(name=parent.manifest.name, digest=parent.manifest.digest()) if parent else None,
        encryption=encryption,
    )


def _with_revisions(
    manifest: Manifest, revisions: Revisions, *, committed_at: datetime, upload_seconds: float
) -> Manifest:
    timings = msgspec.structs.replace(
        manifest.timings, committed_at=committed_at, upload_seconds=round(upload_seconds, 3)
    )
    bump = bump_revision_advice(revisions.revision)
    return msgspec.structs.replace(manifest, revisions=revisions, bump_revision=bump, timings=timings)


def _instead(error: Exception) -> str:
    return f"a full was taken instead of a delta, because the parent cannot be read: {error}"


def _check_unchanged(parent: Manifest, order: Order) -> None:
    if order.parent_digest not in {None, parent.digest()}:
        raise IntegrityError(
            f"'{parent.name}' has changed since the plan was made", place=f"manifest {parent.name}"
        )


def _with_manifest(chain: Chain, manifest: Manifest) -> Chain:
    chain.archives[-1].manifest = manifest
    chain.manifest = manifest
    return chain

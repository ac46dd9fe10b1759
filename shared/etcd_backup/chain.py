"""Opens stored backups: manifests, data keys and data blobs, a full with the deltas on top, oldest first.

The one way to a stored database for everybody who reads one: `backup` (a delta's parent, the exact revision),
`verify`, `restore`, the drill and `keeper backup get`. Reads only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from shared.clients.blob import BlobStore
from shared.errors import IntegrityError, NotFoundError
from shared.etcd_backup import keys
from shared.etcd_backup.archive import Archive, Chain, RangeReader
from shared.etcd_backup.key_index import KeyIndex
from shared.etcd_backup.policy import Encryption
from shared.model.backup import Manifest, key_index_name

MOST_LINKS = 254
"""Longer chains are never written; a manifest that leads further leads in a circle."""


def read_manifest(store: BlobStore, name: str) -> Manifest:
    """The manifest called `name`; NotFoundError when there is none, IntegrityError when it is damaged."""
    return Manifest.from_json(store.read(name).data, name)


def read_manifests(store: BlobStore, name: str) -> list[Manifest]:
    """The manifests from the full to the one called `name`.

    NotFoundError when `name` itself does not exist; IntegrityError when something it builds on is missing,
    damaged or not what it was made against.
    """
    found = [read_manifest(store, name)]
    while (parent := found[0].parent) is not None:
        if len(found) >= MOST_LINKS:
            raise _broken(name, parent.name, "leads in a circle")
        try:
            manifest = read_manifest(store, parent.name)
        except NotFoundError as error:
            raise _broken(name, parent.name, "is missing") from error
        if manifest.digest() != parent.digest:
            raise _broken(name, parent.name, "is not the one it was made against")
        found.insert(0, manifest)
    return found


def open_archive(
    store: BlobStore,
    manifest: Manifest,
    encryption: Encryption | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    data_key: bytes | None = None,
) -> Archive:
    """One data blob; its data key is unwrapped unless it is given.

    SettingsError when the key is not configured, IntegrityError when the blob is missing or damaged.
    """
    if data_key is None and manifest.encryption:
        data_key = keys.unwrap(manifest.encryption.key, encryption, environ)
    return Archive.open(manifest, _range_reader(store, manifest.data), data_key)


def open_chain(
    store: BlobStore, name: str, encryption: Encryption | None = None, environ: Mapping[str, str] = os.environ
) -> Chain:
    """The database of the backup whose manifest is `name`; errors: `read_manifests`, `open_archive`."""
    return Chain.open(open_archives(store, read_manifests(store, name), encryption, environ))


def open_archives(
    store: BlobStore,
    manifests: Sequence[Manifest],
    encryption: Encryption | None = None,
    environ: Mapping[str, str] = os.environ,
) -> list[Archive]:
    """The data blobs of a chain, oldest first."""
    return [open_archive(store, manifest, encryption, environ) for manifest in manifests]


def open_key_index(store: BlobStore, archives: Sequence[Archive]) -> KeyIndex | None:
    """The key index of the last of `archives`, with those it builds on; None when one of them is missing."""
    if not archives:
        return None
    *below, newest = archives
    name = key_index_name(newest.manifest.name)
    try:
        size = store.properties(name).size
    except NotFoundError:
        return None
    return KeyIndex.open(name, size, _range_reader(store, name), newest, lambda: open_key_index(store, below))


def _range_reader(store: BlobStore, name: str) -> RangeReader:
    def read(offset: int, length: int) -> bytes:
        try:
            return store.read_range(name, offset, length)
        except NotFoundError as error:
            raise IntegrityError(
                f"the data blob '{name}' is missing; use another backup", place=f"data blob {name}"
            ) from error

    return read


def _broken(name: str, parent: str, problem: str) -> IntegrityError:
    return IntegrityError(
        f"'{name}' cannot be read: '{parent}', which it builds on, {problem}; use another backup",
        place=f"manifest {parent}",
    )

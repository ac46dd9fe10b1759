"""Blobs of one container: conditional writes, block uploads, listings and leases.

The only code that speaks to Blob Storage. Every write is conditional: a blob is created only where none is,
replaced only as it was read. Errors are those of `shared.errors`: NotFoundError, ConflictError (409/412),
ForbiddenError, ThrottledError, UnavailableError. Used by the runtime and by etcd backups.

A *tombstone* is an empty blob that a newer holder of the cluster put where an older holder had announced a
write, so that the late write fails (see `shared.runtime.claim`). It reads as absent and is not listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from shared.clients.storage import CONNECTION, RETRIES, TIMEOUTS, connect, credential, translated
from shared.errors import ApiError, ConflictError, NotFoundError, SettingsError

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, BlobServiceClient, ContainerClient

TOMBSTONE = "kubekeeper_tombstone"
"""Metadata key of a tombstone; its value is the epoch of the holder that put it."""

_RANGE_REQUEST_BYTES = 64 * 1024 * 1024  # one GET per read: the SDK would cut larger ones into 4 MiB requests


class Blob(msgspec.Struct, frozen=True):
    """The content of a blob, with the version it had."""

    data: bytes
    etag: str
    metadata: dict[str, str]


class BlobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a listing. `immutable_until` is set by a version-level immutability policy."""

    name: str
    size: int
    etag: str
    last_modified: datetime
    metadata: dict[str, str]
    immutable_until: datetime | None = None
    legal_hold: bool = False


class BlobStore:
    """One container. Methods may be called from several threads."""

    def __init__(self, container: ContainerClient) -> None:
        self._container = container
        self.name: str = container.container_name

    def ensure(self) -> None:
        """Create the container unless it exists (private)."""
        try:
            with translated(f"create container '{self.name}'"):
                self._container.create_container()
        except ConflictError as error:
            if error.code != "ContainerAlreadyExists":
                raise

    def exists(self) -> bool:
        """Whether the container exists."""
        try:
            with translated(f"read the properties of container '{self.name}'"):
                self._container.get_container_properties()
        except NotFoundError:
            return False
        return True

    # whole blobs

    def read(self, name: str) -> Blob:
        """The whole blob; NotFoundError also for a tombstone."""
        with translated(f"read blob '{name}' in container '{self.name}'"):
            stream = self._blob(name).download_blob()
            blob = Blob(
                stream.readall(), _bare(stream.properties.etag), dict(stream.properties.metadata or {})
            )
        if TOMBSTONE in blob.metadata:
            raise NotFoundError(f"blob '{name}' in container '{self.name}' is sealed: it was never written")
        return blob

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` in one request; fewer or none where the blob ends."""
        if not length:
            return b""
        try:
            with translated(f"read blob '{name}' in container '{self.name}'"):
                return self._blob(name).download_blob(offset=offset, length=length).readall()
        except ValueError:  # the SDK on an empty blob in Azurite, which answers without Content-Range
            if self.properties(name).size:
                raise
            return b""
        except ApiError as error:
            if error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""
            raise

    def properties(self, name: str) -> BlobInfo:
        """Size, etag and metadata of one blob, tombstones included (one HEAD request)."""
        with translated(f"read the properties of blob '{name}' in container '{self.name}'"):
            return _info(self._blob(name).get_blob_properties())

    def create(self, name: str, data: bytes, metadata: Mapping[str, str] | None = None) -> str:
        """Write a new blob, returning its etag; ConflictError when the name is taken (If-None-Match: *).

        A ConflictError can also be the echo of this very call, when its first answer was lost and the request
        was sent again; `Claim.create_blob` tells the two apart.
        """
        with translated(f"create blob '{name}' in container '{self.name}'"):
            done = self._blob(name).upload_blob(data, overwrite=False, metadata=_sendable(metadata))
        return _bare(done["etag"])

    def replace(self, name: str, data: bytes, etag: str, metadata: Mapping[str, str] | None = None) -> str:
        """Overwrite a blob that still has `etag`, returning the new one; ConflictError when it changed."""
        from azure.core import MatchConditions

        with translated(f"replace blob '{name}' in container '{self.name}'"):
            done = self._blob(name).upload_blob(
                data,
                overwrite=True,
                etag=_quoted(etag),
                match_condition=MatchConditions.IfNotModified,
                metadata=_sendable(metadata),
            )
        return _bare(done["etag"])

    def delete(self, name: str, etag: str | None = None) -> None:
        """Delete a blob (if it still has `etag`).

        NotFoundError when there is none, ConflictError when it changed or is immutable.
        """
        from azure.core import MatchConditions

        with translated(f"delete blob '{name}' in container '{self.name}'"):
            if etag is None:
                self._blob(name).delete_blob()
            else:
                self._blob(name).delete_blob(
                    etag=_quoted(etag), match_condition=MatchConditions.IfNotModified
                )

    def list(self, prefix: str = "", *, tombstones: bool = False) -> Iterator[BlobInfo]:
        """Committed blobs under `prefix` in name order, with metadata.

        Tombstones only when asked for, and then alone. One request per 5000 blobs, sent while iterating.
        """
        pages = self._container.list_blobs(
            name_starts_with=prefix or None, include=["metadata", "immutabilitypolicy", "legalhold"]
        )
        with translated(f"list container '{self.name}'"):
            for item in pages:
                if (TOMBSTONE in (item.metadata or {})) == tombstones:
                    yield _info(item)

    # block blobs written piece by piece

    def stage_block(self, name: str, block_id: str, data: bytes) -> None:
        """Upload one block: invisible until committed, so not an effect. Ids of one blob have equal length.

        The SDK base64-encodes the id itself; passing an encoded one would encode it twice.
        """
        with translated(f"upload a block of blob '{name}' in container '{self.name}'"):
            self._blob(name).stage_block(block_id, data, length=len(data))

    def commit_blocks(
        self, name: str, block_ids: Sequence[str], metadata: Mapping[str, str] | None = None
    ) -> str:
        """Make the staged blocks a new blob, returning its etag; ConflictError when the name is taken.

        Only uncommitted blocks count: the SDK's default state, Latest, would also match blocks of an older
        blob of that name.
        """
        from azure.core import MatchConditions
        from azure.storage.blob import BlobBlock, BlockState

        blocks = [BlobBlock(block_id, state=BlockState.UNCOMMITTED) for block_id in block_ids]
        with translated(f"commit blob '{name}' in container '{self.name}'"):
            done = self._blob(name).commit_block_list(
                blocks, metadata=_sendable(metadata), match_condition=MatchConditions.IfMissing
            )
        return _bare(str(done["etag"]))

    def list_uncommitted(self, prefix: str = "") -> tuple[str, ...]:
        """Names that have staged blocks but were never committed, in name order.

        The difference of two listings, the committed one last, so that a blob committed in between is
        not reported: the entry of an uncommitted blob carries no reliable mark of its own.
        """
        start = prefix or None
        with translated(f"list container '{self.name}'"):
            pages = self._container.list_blobs(name_starts_with=start, include=["uncommittedblobs"])
            every = [item.name for item in pages]
            committed = {item.name for item in self._container.list_blobs(name_starts_with=start)}
        return tuple(name for name in every if name not in committed)

    def discard_uncommitted(self, name: str) -> None:
        """Drop the staged blocks of a blob that was never committed; its writer cannot commit them any more.

        Staged blocks cannot be deleted as such: committing an empty list drops them, then the empty blob
        goes. ConflictError when the blob was committed meanwhile.
        """
        etag = self.commit_blocks(name, [])
        self.delete(name, etag)

    # leases

    def acquire_lease(self, name: str, lease_id: str, seconds: int) -> None:
        """Lease the blob for 15 to 60 seconds under an id of the caller's (a UUID).

        ConflictError while somebody else holds it, NotFoundError when there is no such blob. Asking again
        under the same id succeeds, so a lost answer does no harm.
        """
        from azure.storage.blob import BlobLeaseClient

        with translated(f"lease blob '{name}' in container '{self.name}'"):
            BlobLeaseClient(self._blob(name), lease_id=lease_id).acquire(lease_duration=seconds)

    def renew_lease(self, name: str, lease_id: str) -> None:
        """Start the lease's time again; ConflictError when it was broken or taken since."""
        from azure.storage.blob import BlobLeaseClient

        with translated(f"renew the lease of blob '{name}' in container '{self.name}'"):
            BlobLeaseClient(self._blob(name), lease_id=lease_id).renew()

    def release_lease(self, name: str, lease_id: str) -> None:
        """Give the lease back; ConflictError when it is no longer ours."""
        from azure.storage.blob import BlobLeaseClient

        with translated(f"release the lease of blob '{name}' in container '{self.name}'"):
            BlobLeaseClient(self._blob(name), lease_id=lease_id).release()

    def break_lease(self, name: str) -> None:
        """End whatever lease there is at once; ConflictError when there is none. For operators and tests."""
        from azure.storage.blob import BlobLeaseClient

        with translated(f"break the lease of blob '{name}' in container '{self.name}'"):
            BlobLeaseClient(self._blob(name)).break_lease(lease_break_period=0)

    def _blob(self, name: str) -> BlobClient:
        return self._container.get_blob_client(name)


def blob_service(environ: Mapping[str, str], connection: str = CONNECTION) -> BlobServiceClient:
    """A client of the account's blob service; keep one per process, it holds the HTTP connections."""
    from azure.storage.blob import BlobServiceClient

    return connect(
        environ,
        "blob",
        BlobServiceClient.from_connection_string,
        BlobServiceClient,
        options={"max_single_get_size": _RANGE_REQUEST_BYTES, **_options()},
        connection=connection,
    )


def blob_store(environ: Mapping[str, str], container: str, connection: str = CONNECTION) -> BlobStore:
    """The container's store, from app settings; sends nothing. SettingsError when none are set."""
    return BlobStore(blob_service(environ, connection).get_container_client(container))


def read_blob_url(url: str, environ: Mapping[str, str], connection: str = CONNECTION) -> bytes:
    """The blob behind a URL: with its SAS token, with the app's own account, or with the app's identity.

    SettingsError when the URL names no blob. The query, which may be a SAS token, is never shown.
    """
    from azure.storage.blob import BlobClient

    bare, _, token = url.partition("?")
    try:
        there = BlobClient.from_blob_url(bare)
    except ValueError:
        there = None
    if there is None or not there.blob_name:
        raise SettingsError(
            f"'{bare}' names no blob; expected https://ACCOUNT.blob.core.windows.net/CONTAINER/BLOB"
        )
    if not token and environ.get(connection):
        ours = blob_service(environ, connection)
        if (there.primary_hostname, there.account_name) == (ours.primary_hostname, ours.account_name):
            return BlobStore(ours.get_container_client(there.container_name)).read(there.blob_name).data
    access = None if token else credential(environ, connection)
    with translated(f"read blob '{bare}'"):
        return BlobClient.from_blob_url(url, credential=access, **_options()).download_blob().readall()


PAGE_BLOB_HOSTS = (".blob.core.windows.net", ".blob.core.usgovcloudapi.net", ".blob.core.chinacloudapi.cn")
"""The only hosts that our token is shown to for an address that stands in a cluster's objects."""


class PageBlob:
    """An unmanaged disk: a blob of somebody's account, found by its address, whose lease is its machine's."""

    def __init__(self, url: str, client: BlobClient) -> None:
        self.url = url
        self._client = client

    def properties(self) -> dict[str, Any]:
        """`etag`, `leaseState` and `metadata` as built-in types; NotFoundError when there is no such blob."""
        with translated(f"read the properties of disk '{self.url}'"):
            found = self._client.get_blob_properties()
        return {
            "etag": _bare(found.etag),
            "leaseState": str(found.lease.state),
            "metadata": dict(found.metadata or {}),
        }

    def snapshot(self, etag: str) -> str:
        """Snapshot the blob as it was seen, returning the snapshot's name; ConflictError when it changed."""
        from azure.core import MatchConditions

        with translated(f"snapshot disk '{self.url}'"):
            done = self._client.create_snapshot(
                etag=_quoted(etag), match_condition=MatchConditions.IfNotModified
            )
        return str(done["snapshot"])

    def break_lease(self, etag: str) -> None:
        """End the lease at once, of the blob as it was seen; ConflictError when it changed or has none."""
        from azure.core import MatchConditions
        from azure.storage.blob import BlobLeaseClient

        with translated(f"break the lease of disk '{self.url}'"):
            BlobLeaseClient(self._client).break_lease(
                lease_break_period=0, etag=_quoted(etag), match_condition=MatchConditions.IfNotModified
            )


def page_blob(url: str, environ: Mapping[str, str], connection: str = CONNECTION) -> PageBlob:
    """The unmanaged disk at an address, with the app's identity; sends nothing.

    SettingsError for an address that is not one of Azure's own blob services, or carries a query.
    """
    from urllib.parse import urlsplit

    from azure.storage.blob import BlobClient

    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if parts.scheme != "https" or not host.endswith(PAGE_BLOB_HOSTS) or parts.query or parts.port:
        raise SettingsError(f"'{url[:200]}' is not a blob of an Azure storage account; it is not asked")
    return PageBlob(
        url, BlobClient.from_blob_url(url, credential=credential(environ, connection), **_options())
    )


def _options() -> dict[str, Any]:
    from azure.storage.blob import LinearRetry

    retry = LinearRetry(backoff=1, retry_total=RETRIES, random_jitter_range=1)
    return {"retry_policy": retry, **TIMEOUTS}


def _info(item: Any) -> BlobInfo:
    return BlobInfo(
        name=item.name,
        size=item.size or 0,
        etag=_bare(item.etag or ""),
        last_modified=item.last_modified,
        metadata=dict(item.metadata or {}),
        immutable_until=getattr(item.immutability_policy, "expiry_time", None),
        legal_hold=bool(item.has_legal_hold),
    )


def _bare(etag: str) -> str:
    # Listings print etags without quotes, headers with them; one form everywhere makes them comparable.
    return etag.strip('"')


def _quoted(etag: str) -> str:
    return f'"{etag}"'


def _sendable(metadata: Mapping[str, str] | None) -> dict[str, str] | None:
    return dict(metadata) if metadata else None

"""Blob Storage as the product uses it, on a real Azurite."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.clients.blob import TOMBSTONE, BlobStore, blob_store
from shared.errors import (
    ApiError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    SettingsError,
    UnavailableError,
)

pytestmark = pytest.mark.azurite


@pytest.fixture
def store(storage: str) -> BlobStore:
    store = blob_store({"AzureWebJobsStorage": storage}, f"blobs-{uuid.uuid4().hex[:12]}")
    store.ensure()
    return store


def test_a_created_blob_reads_back_with_its_metadata_and_etag(store: BlobStore) -> None:
    etag = store.create("a/b.json", b"content", {"kind": "full"})
    blob = store.read("a/b.json")
    assert (blob.data, blob.etag, blob.metadata) == (b"content", etag, {"kind": "full"})
    info = store.properties("a/b.json")
    assert (info.size, info.etag, info.metadata) == (7, etag, {"kind": "full"})


def test_ensuring_a_container_twice_is_fine_and_a_missing_one_is_said(store: BlobStore, storage: str) -> None:
    store.ensure()
    assert store.exists()
    missing = blob_store({"AzureWebJobsStorage": storage}, "nowhere")
    assert not missing.exists()
    with pytest.raises(NotFoundError, match=r"create blob 'x' in container 'nowhere': ContainerNotFound"):
        missing.create("x", b"")


def test_of_many_creators_of_one_name_exactly_one_wins(store: BlobStore) -> None:
    def create(number: int) -> bool:
        try:
            store.create("one", str(number).encode())
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(16))) == 1


def test_a_blob_is_replaced_and_deleted_only_as_it_was_read(store: BlobStore) -> None:
    first = store.create("doc", b"1")
    second = store.replace("doc", b"2", first)
    with pytest.raises(ConflictError):
        store.replace("doc", b"3", first)
    with pytest.raises(ConflictError):
        store.delete("doc", first)
    assert store.read("doc").data == b"2"
    store.delete("doc", second)
    with pytest.raises(NotFoundError):
        store.read("doc")
    with pytest.raises(NotFoundError):
        store.delete("doc")
    with pytest.raises(ConflictError):
        store.replace("doc", b"4", second)


def test_a_range_behind_the_end_is_empty_and_over_the_end_is_cut(store: BlobStore) -> None:
    store.create("range", bytes(range(100)))
    assert store.read_range("range", 90, 5) == bytes(range(90, 95))
    assert store.read_range("range", 95, 50) == bytes(range(95, 100))
    assert store.read_range("range", 100, 10) == b""
    with pytest.raises(NotFoundError):
        store.read_range("absent", 0, 1)


def test_blocks_become_visible_only_when_committed(store: BlobStore) -> None:
    store.stage_block("big", "run1-0000", b"a" * 10)
    store.stage_block("big", "run1-0001", b"b" * 10)
    assert [info.name for info in store.list()] == []
    assert store.list_uncommitted() == ("big",)
    store.commit_blocks("big", ["run1-0000", "run1-0001"], {"run": "1"})
    assert store.list_uncommitted() == ()
    assert [(i.name, i.size, i.metadata) for i in store.list()] == [("big", 20, {"run": "1"})]


def test_a_committed_blob_is_not_committed_over(store: BlobStore) -> None:
    store.stage_block("big", "run1-0000", b"a")
    store.commit_blocks("big", ["run1-0000"])
    store.stage_block("big", "run2-0000", b"b")
    with pytest.raises(ConflictError):
        store.commit_blocks("big", ["run2-0000"])
    assert store.read("big").data == b"a"


def test_blocks_of_an_older_blob_of_the_name_are_not_picked_up(store: BlobStore) -> None:
    """The SDK's default block state would commit this."""
    store.stage_block("big", "0000", b"old")
    store.commit_blocks("big", ["0000"])
    store.delete("big")
    with pytest.raises(ApiError, match="InvalidBlockList"):
        store.commit_blocks("big", ["0000"])


def test_discarded_blocks_cannot_be_committed_by_their_late_writer(store: BlobStore) -> None:
    store.stage_block("orphan", "run1-0000", b"a")
    store.discard_uncommitted("orphan")
    assert store.list_uncommitted() == ()
    with pytest.raises(ApiError, match="InvalidBlockList"):
        store.commit_blocks("orphan", ["run1-0000"])
    assert list(store.list()) == []


def test_a_listing_is_in_name_order_under_its_prefix(store: BlobStore) -> None:
    for name in ("b/2", "a/1", "b/1", "c"):
        store.create(name, b"")
    assert [info.name for info in store.list("b/")] == ["b/1", "b/2"]
    assert [info.name for info in store.list()] == ["a/1", "b/1", "b/2", "c"]
    assert all(i.immutable_until is None and not i.legal_hold for i in store.list())


def test_a_tombstone_reads_as_absent_blocks_its_name_and_is_listed_only_on_request(store: BlobStore) -> None:
    store.create("sealed", b"", {TOMBSTONE: "7"})
    with pytest.raises(NotFoundError):
        store.read("sealed")
    with pytest.raises(ConflictError):
        store.create("sealed", b"late")
    store.stage_block("sealed", "0", b"late")
    with pytest.raises(ConflictError):
        store.commit_blocks("sealed", ["0"])
    assert list(store.list()) == []
    assert [info.name for info in store.list(tombstones=True)] == ["sealed"]


def test_a_lease_is_exclusive_and_reentrant_under_its_own_id(store: BlobStore) -> None:
    store.create("lease", b"")
    mine, theirs = str(uuid.uuid4()), str(uuid.uuid4())
    store.acquire_lease("lease", mine, 15)
    store.acquire_lease("lease", mine, 15)
    with pytest.raises(ConflictError) as held:
        store.acquire_lease("lease", theirs, 15)
    assert held.value.code == "LeaseAlreadyPresent"
    store.renew_lease("lease", mine)
    store.break_lease("lease")
    store.acquire_lease("lease", theirs, 15)
    with pytest.raises(ConflictError):
        store.renew_lease("lease", mine)
    with pytest.raises(ConflictError):
        store.release_lease("lease", mine)
    store.release_lease("lease", theirs)


def test_a_store_that_cannot_be_reached_is_one_line_without_the_key() -> None:
    text = (
        "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey=c2VjcmV0LWtleQ==;"
        "BlobEndpoint=http://127.0.0.1:9/devstoreaccount1"
    )
    with pytest.raises(UnavailableError) as raised:
        blob_store({"AzureWebJobsStorage": text}, "any").read("x")
    assert "check its address" in str(raised.value)
    assert "c2VjcmV0" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_wrong_key_is_forbidden_and_says_what_to_check(storage: str) -> None:
    parts = dict(part.split("=", 1) for part in storage.split(";") if part)
    parts["AccountKey"] = "d3Jvbmc="
    text = ";".join(f"{key}={value}" for key, value in parts.items())
    with pytest.raises(ForbiddenError, match="check the connection string"):
        blob_store({"AzureWebJobsStorage": text}, "any").read("x")


@pytest.mark.parametrize("environ", [{}, {"AzureWebJobsStorage": "AccountKey=hunter2hunter2"}])
def test_a_missing_or_malformed_connection_is_a_settings_error(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="AzureWebJobsStorage") as raised:
        blob_store(environ, "any")
    assert "hunter2" not in str(raised.value)


def test_an_identity_connection_names_the_account_s_host() -> None:
    store = blob_store(
        {"AzureWebJobsStorage__accountName": "fleet", "AzureWebJobsStorage__credential": "managedidentity"},
        "kubekeeper",
    )
    assert store._container.url == "https://fleet.blob.core.windows.net/kubekeeper"

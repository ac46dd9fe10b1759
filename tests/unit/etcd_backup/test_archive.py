"""Data blobs: what is written is what is read, as a full, as a delta, by range and in order."""

from __future__ import annotations

import hashlib
import os
import random

import pytest
from captured import Captured, Shelf, Stored

from shared.errors import IntegrityError
from shared.etcd_backup.archive import FRAME_BYTES, Archive, ArchiveWriter, Chain
from shared.model import bolt
from shared.model.backup import Kind, ParentRef
from shared.model.etcd_snapshot import read_revisions

pytestmark = pytest.mark.etcd
ORDER = ["written", "deleted", "compacted", "churned"]


def _store_chain(shelf: Shelf, snapshots: dict[str, Captured], names: list[str]) -> list[Stored]:
    stored: list[Stored] = []
    for name in names:
        stored.append(shelf.store(snapshots[name].data, stored[-1] if stored else None))
    return stored


def test_a_full_is_rebuilt_to_the_byte(shelf: Shelf, snapshots: dict[str, Captured]) -> None:
    for captured in snapshots.values():
        assert b"".join(shelf.chain(shelf.store(captured.data)).stream()) == captured.data


def test_every_link_of_a_chain_is_rebuilt_to_the_byte(shelf: Shelf, snapshots: dict[str, Captured]) -> None:
    stored = _store_chain(shelf, snapshots, ORDER)

    for length, name in enumerate(ORDER, start=1):
        chain = shelf.chain(*stored[:length])
        assert b"".join(chain.stream()) == snapshots[name].data
        assert chain.page_table() == stored[length - 1].table


def test_a_delta_stores_only_the_pages_that_changed(shelf: Shelf, snapshots: dict[str, Captured]) -> None:
    full, delta = _store_chain(shelf, snapshots, ["compacted", "churned"])
    old, new = snapshots["compacted"].data[:-32], snapshots["churned"].data[:-32]
    changed = [at // 4096 for at in range(0, len(new), 4096) if new[at : at + 4096] != old[at : at + 4096]]

    assert list(shelf.open(delta.manifest).page_ids or ()) == changed
    assert delta.manifest.archive.stored_pages == len(changed) < full.manifest.archive.stored_pages


def test_the_same_snapshot_again_is_an_empty_delta(shelf: Shelf, snapshots: dict[str, Captured]) -> None:
    data = snapshots["written"].data
    full = shelf.store(data)
    delta = shelf.store(data, full)

    assert delta.manifest.archive.stored_pages == delta.manifest.archive.frame_count == 0
    assert len(delta.blob) <= 16
    assert b"".join(shelf.chain(full, delta).stream()) == data


def test_a_database_that_shrinks_and_grows_again_is_rebuilt(
    shelf: Shelf, snapshots: dict[str, Captured]
) -> None:
    names = ["written", "defragmented", "empty", "churned", "empty", "written"]
    assert len({len(snapshots[name].data) for name in names}) > 2
    stored = _store_chain(shelf, snapshots, names)

    for length, name in enumerate(names, start=1):
        assert b"".join(shelf.chain(*stored[:length]).stream()) == snapshots[name].data


def test_a_long_chain_is_rebuilt(snapshots: dict[str, Captured]) -> None:
    shelf, rng = Shelf(), random.Random(3)
    data = bytearray(snapshots["written"].data[:-32])
    stored: list[Stored] = []
    for _ in range(40):
        for _ in range(5):
            page = rng.randrange(2, len(data) // 4096)
            data[page * 4096 + 3000 : page * 4096 + 3008] = rng.randbytes(8)
        full = bytes(data) + hashlib.sha256(data).digest()
        stored.append(shelf.store(full, stored[-1] if stored else None))

    assert b"".join(shelf.chain(*stored).stream()) == full


@pytest.mark.parametrize("chunk", [1000, 4096, 32 * 1024, 1 << 22])
def test_the_chunking_of_the_stream_does_not_matter(snapshots: dict[str, Captured], chunk: int) -> None:
    shelf = Shelf()
    stored = shelf.store(snapshots["written"].data, chunk=chunk)

    assert b"".join(shelf.chain(stored).stream()) == snapshots["written"].data


def test_pages_are_read_at_random_from_any_archive_of_the_chain(
    shelf: Shelf, snapshots: dict[str, Captured]
) -> None:
    chain = shelf.chain(*_store_chain(shelf, snapshots, ORDER))
    image, data, rng = chain.image(cached_frames=2), snapshots[ORDER[-1]].data, random.Random(5)

    for _ in range(300):
        first = rng.randrange(image.page_count)
        count = rng.randrange(1, min(200, image.page_count - first) + 1)
        assert image.read(first, count) == data[first * 4096 : (first + count) * 4096]
    with pytest.raises(IntegrityError):
        image.read(image.page_count - 1, 2)


def test_the_revision_is_found_with_a_few_range_reads(shelf: Shelf, snapshots: dict[str, Captured]) -> None:
    chain = shelf.chain(*_store_chain(shelf, snapshots, ORDER))
    before = chain.requests

    assert read_revisions(chain.image()) == chain.manifest.revisions
    assert chain.requests - before <= 6


def test_frames_that_newer_ones_replace_are_not_read(snapshots: dict[str, Captured]) -> None:
    shelf = Shelf()
    rng = random.Random(1)
    pages = rng.randbytes(4096 * 64 * 6)
    old = snapshots["written"].data[: 4096 * 2] + pages
    new = old[: 4096 * 64] + rng.randbytes(4096 * 64 * 3) + old[4096 * 64 * 4 :]
    table = None
    blobs, manifests = [], []
    for data in (old, new):
        writer = ArchiveWriter("run1", parent=table)
        out = writer.feed(data + hashlib.sha256(data).digest())
        result = writer.finish()
        table = result.table
        blobs.append(b"".join([*out, *result.tail]))
        manifests.append(result)
    assert manifests[1].archive.stored_pages == 64 * 3
    template = shelf.store(snapshots["written"].data).manifest
    full = _manifest(template, manifests[0], None)
    delta = _manifest(template, manifests[1], full)
    chain = Chain.open(
        [
            Archive.open(manifest, lambda o, n, blob=blob: blob[o : o + n])
            for manifest, blob in zip((full, delta), blobs, strict=True)
        ]
    )
    before = chain.archives[0].bytes_read

    assert b"".join(chain.stream())[:-32] == new
    assert chain.archives[0].bytes_read - before < len(blobs[0]) * 0.6


def _manifest(template, result, parent):
    import msgspec

    return msgspec.structs.replace(
        template,
        kind=Kind.DELTA if parent else Kind.FULL,
        run="run1",
        archive=result.archive,
        database=result.database,
        parent=ParentRef(name=parent.name, digest=parent.digest()) if parent else None,
    )


def test_frames_compress_and_pages_can_be_reached_alone(snapshots: dict[str, Captured]) -> None:
    shelf = Shelf()
    stored = shelf.store(snapshots["written"].data)
    archive = shelf.open(stored.manifest)

    assert len(stored.blob) < len(snapshots["written"].data) / 2
    assert archive.read_frames(1, 1)[0] == snapshots["written"].data[FRAME_BYTES : 2 * FRAME_BYTES]
    assert archive.requests == 2


def test_encrypted_backups_show_nothing_of_what_they_hold(snapshots: dict[str, Captured]) -> None:
    clear, secret = Shelf(), Shelf(os.urandom(32))
    data = snapshots["written"].data
    digests = clear.store(data).table.digests
    stored = secret.store(data)

    assert digests[:8] not in stored.blob
    assert stored.table.digests[:64] not in stored.blob
    assert stored.blob != secret.store(data).blob


def test_without_the_key_an_encrypted_backup_says_so(snapshots: dict[str, Captured]) -> None:
    shelf = Shelf(bytes(32))
    stored = shelf.store(snapshots["empty"].data)
    with pytest.raises(IntegrityError, match="no key was given"):
        Archive.open(stored.manifest, lambda offset, length: stored.blob[offset : offset + length])
    with pytest.raises(IntegrityError, match="key is wrong"):
        shelf.open(stored.manifest, os.urandom(32))


@pytest.mark.parametrize("kept", [0, 10, 32, 4096, 9000, -1, -33])
def test_a_stream_that_ends_early_is_not_finished(snapshots: dict[str, Captured], kept: int) -> None:
    writer = ArchiveWriter("run1")
    writer.feed(snapshots["written"].data[:kept])
    with pytest.raises(IntegrityError) as caught:
        writer.finish()
    writer.close()
    assert caught.value.place == "stream"


def test_a_stream_with_a_flipped_bit_is_not_finished(snapshots: dict[str, Captured]) -> None:
    data = bytearray(snapshots["written"].data)
    data[123_456] ^= 8
    writer = ArchiveWriter("run1")
    writer.feed(bytes(data))
    with pytest.raises(IntegrityError, match="sha256"):
        writer.finish()


def test_a_delta_on_the_wrong_parent_is_refused(shelf: Shelf, snapshots: dict[str, Captured]) -> None:
    first, second, third = _store_chain(shelf, snapshots, ["written", "deleted", "compacted"])
    with pytest.raises(IntegrityError) as caught:
        shelf.chain(first, third)
    assert caught.value.place == f"parent of {third.manifest.name}"
    with pytest.raises(IntegrityError, match="not a full"):
        shelf.chain(second, third)


def test_a_manifest_of_impossible_size_is_refused_before_memory_is_taken(
    snapshots: dict[str, Captured],
) -> None:
    import msgspec

    shelf = Shelf()
    full, delta = _store_chain(shelf, snapshots, ["small", "small, changed"])
    for stored in (full, delta):
        pages = 2**50
        database = msgspec.structs.replace(
            stored.manifest.database, page_count=pages, size_bytes=pages * 4096
        )
        archive = stored.manifest.archive
        if stored is full:
            table = msgspec.structs.replace(archive.page_table, length=8 * pages)
            archive = msgspec.structs.replace(
                archive,
                stored_pages=pages,
                frame_count=pages // 64,
                index=msgspec.structs.replace(archive.index, length=12 * (pages // 64)),
                page_table=table,
            )
        manifest = msgspec.structs.replace(stored.manifest, database=database, archive=archive)
        with pytest.raises(IntegrityError):
            links = (
                [shelf.open(manifest)]
                if stored is full
                else [shelf.open(full.manifest), shelf.open(manifest)]
            )
            Chain.open(links)


def test_only_the_given_range_reader_is_used_and_from_several_threads(
    snapshots: dict[str, Captured],
) -> None:
    shelf = Shelf()
    stored = shelf.store(snapshots["written"].data)
    asked: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return stored.blob[offset : offset + length]

    chain = Chain.open([Archive.open(stored.manifest, read)])
    assert b"".join(chain.stream()) == snapshots["written"].data
    assert chain.bytes_read == sum(length for _, length in asked) == len(stored.blob)
    assert chain.requests == len(asked)


def test_a_reader_that_gives_up_midway_leaves_no_thread_behind(snapshots: dict[str, Captured]) -> None:
    import threading

    shelf = Shelf()
    chain = shelf.chain(shelf.store(snapshots["written"].data))
    before = threading.active_count()
    stream = chain.stream()
    next(stream)
    stream.close()

    assert threading.active_count() == before


def test_other_page_sizes_work() -> None:
    rng = random.Random(2)
    for size in (1024, 16384, 65536):
        meta = bytearray(size * 9)
        meta[16:28] = bolt.META_BODY.pack(0xED0CDAED, 2, size, 0, 3, 0, 0, 9, 1, 0)[:12]
        meta[size * 2 :] = rng.randbytes(size * 7)
        data = bytes(meta)
        writer = ArchiveWriter("run1")
        out = writer.feed(data + hashlib.sha256(data).digest())
        result = writer.finish()

        assert result.database.page_size == size
        assert result.archive.frame_pages == FRAME_BYTES // size
        assert len(b"".join([*out, *result.tail])) == result.archive.stored_bytes

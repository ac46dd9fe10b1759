"""Reading bbolt files by random access, sound and hostile."""

from __future__ import annotations

import random

import pytest
from captured import Captured
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import IntegrityError
from shared.model import bolt
from shared.model.etcd_snapshot import read_revisions

pytestmark = pytest.mark.etcd


def test_fnv1a_has_its_published_values() -> None:
    assert bolt.fnv1a64(b"") == 0xCBF29CE484222325
    assert bolt.fnv1a64(b"a") == 0xAF63DC4C8601EC8C
    assert bolt.fnv1a64(b"foobar") == 0x85944171F73967E8


def test_the_meta_page_with_the_higher_transaction_counts(snapshots: dict[str, Captured]) -> None:
    image = snapshots["written"].image
    metas = [bolt.parse_meta(image.read(pgid, 1), pgid) for pgid in (0, 1)]

    assert bolt.choose_meta(image) == max(metas, key=lambda meta: meta.txid)
    assert metas[0].high_water == image.page_count


def test_one_damaged_meta_page_is_survived_and_two_are_not(snapshots: dict[str, Captured]) -> None:
    data = bytearray(snapshots["written"].data[:-32])
    data[16 + 20] ^= 1
    assert bolt.choose_meta(bolt.BytesImage(bytes(data), 4096)).high_water == len(data) // 4096
    data[4096 + 16 + 20] ^= 1
    with pytest.raises(IntegrityError, match="meta page 0"):
        bolt.choose_meta(bolt.BytesImage(bytes(data), 4096))


def test_buckets_are_etcds(snapshots: dict[str, Captured]) -> None:
    names = list(bolt.Database(snapshots["written"].image).buckets())

    assert {b"key", b"meta", b"members", b"lease", b"cluster"} <= set(names)
    assert names == sorted(names)


def test_seek_starts_at_the_first_row_not_before(snapshots: dict[str, Captured]) -> None:
    bucket = bolt.Database(snapshots["churned"].image).bucket(b"key")
    rows = list(bucket.items())
    keys = [key for key, _ in rows]

    assert keys == sorted(keys)
    for index in (0, 1, len(rows) // 2, len(rows) - 1):
        assert next(bucket.items(keys[index])) == rows[index]
        following = next(bucket.items(keys[index] + b"\x00"), None)
        assert following == (rows[index + 1] if index + 1 < len(rows) else None)
    assert bucket.get(keys[7]) == rows[7][1]
    assert bucket.get(b"\x00" * 17) is None
    assert bucket.last() == rows[-1]


def test_large_values_on_overflow_pages_are_read_whole(snapshots: dict[str, Captured]) -> None:
    values = [value for _, value in bolt.Database(snapshots["written"].image).bucket(b"key").items()]

    assert any(bytes(range(256)) * 5600 in value for value in values)


def test_an_inline_bucket_is_read(snapshots: dict[str, Captured]) -> None:
    meta = dict(bolt.Database(snapshots["compacted"].image).bucket(b"meta").items())

    assert b"consistent_index" in meta
    assert b"finishedCompactRev" in meta


def test_an_empty_bucket_has_no_last_row(snapshots: dict[str, Captured]) -> None:
    assert bolt.Database(snapshots["empty"].image).bucket(b"key").last() is None


def test_a_missing_bucket_and_a_page_beyond_the_end_are_named(snapshots: dict[str, Captured]) -> None:
    database = bolt.Database(snapshots["written"].image)
    with pytest.raises(IntegrityError, match="'nothing' is missing"):
        database.bucket(b"nothing")
    with pytest.raises(IntegrityError) as caught:
        database.page(10**6)
    assert caught.value.place == "page 1000000"


def test_page_sizes_are_guessed_only_from_a_meta_page(snapshots: dict[str, Captured]) -> None:
    assert bolt.guess_page_size(snapshots["written"].data) == 4096
    assert bolt.guess_page_size(b"") == 4096
    assert bolt.guess_page_size(bytes(4096)) == 4096


def _read_everything(image: bolt.Image) -> None:
    database = bolt.Database(image)
    for bucket in database.buckets().values():
        for _ in bucket.items():
            pass
        bucket.last()
    read_revisions(image)


def test_random_damage_never_crashes_or_loops(snapshots: dict[str, Captured]) -> None:
    rng = random.Random(7)
    original = snapshots["empty"].data[:-32]
    sound = 0
    for _ in range(1500):
        data = bytearray(original)
        for _ in range(rng.choice((1, 1, 4, 40))):
            page = rng.randrange(len(data) // 4096)
            at = page * 4096 + rng.choice((rng.randrange(160), rng.randrange(4096)))
            data[at] = rng.choice((0, 0xFF, data[at] ^ (1 << rng.randrange(8)), rng.randrange(256)))
        try:
            _read_everything(bolt.BytesImage(bytes(data), 4096))
            sound += 1
        except IntegrityError as error:
            assert error.place
    assert 0 < sound < 1500


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=20_000))
def test_arbitrary_bytes_are_refused_with_a_place(data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        _read_everything(bolt.BytesImage(data, 4096))
    assert caught.value.place


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=16, max_size=400), st.sampled_from([bolt.BRANCH, bolt.LEAF]), st.integers(0, 40))
def test_a_page_of_arbitrary_elements_never_reads_outside_of_itself(
    body: bytes, flags: int, count: int
) -> None:
    data = bolt.HEADER.pack(3, flags, count, 0) + body
    try:
        page = bolt.parse_page(data, "page 3", 3)
        for index in range(page.count):
            found = page.item(index) if page.is_leaf else page.child(index)
            assert len(found[0]) <= len(data)
        if not page.is_leaf:
            assert page.children() == [page.child(index) for index in range(page.count)]
    except IntegrityError as error:
        assert error.place == "page 3"

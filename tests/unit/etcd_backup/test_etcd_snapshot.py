"""What one pass over a snapshot says, against what etcd itself says about the same data."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from captured import Captured, etcdutl_status, scan, scan_with_newest, snapshot

from sandbox.etcd import EtcdCluster
from shared.errors import IntegrityError
from shared.etcd_backup.key_index import KeyCollector
from shared.model import bolt
from shared.model.etcd_snapshot import (
    NewestRows,
    decode_row,
    etcd_key,
    newest_rows,
    pack_row,
    read_revisions,
    row_revision,
)

pytestmark = pytest.mark.etcd

MOMENTS = [
    "empty",
    "written",
    "deleted",
    "compacted",
    "churned",
    "compacted at a tombstone",
    "defragmented",
]


@pytest.fixture(params=MOMENTS)
def moment(request: pytest.FixtureRequest, snapshots: dict[str, Captured]) -> Captured:
    return snapshots[request.param]


def test_a_sound_snapshot_has_no_problems(moment: Captured) -> None:
    report = scan(moment.data)

    assert report.problems == []
    assert report.trailer_matches
    assert report.sha256 == hashlib.sha256(moment.data[:-32]).hexdigest()


def test_hash_keys_revision_and_size_are_those_etcdutl_prints(moment: Captured) -> None:
    report = scan(moment.data)

    assert moment.status == {
        "hash": report.status_hash,
        "revision": report.revisions.last_row_revision,
        "totalKey": report.total_rows,
        "totalSize": report.size_bytes,
    }


def test_hash_kv_is_the_one_the_member_computes(moment: Captured) -> None:
    report = scan_with_newest(moment)

    assert report.revisions.revision == moment.hash_kv.revision
    assert report.revisions.compact_revision == max(0, moment.hash_kv.compact_revision)
    assert report.hash_kv(moment.hash_kv.compact_revision) == moment.hash_kv.hash


def test_the_same_revisions_are_found_by_random_access(moment: Captured) -> None:
    assert read_revisions(moment.image) == scan(moment.data).revisions


@pytest.mark.parametrize("chunk", [512, 4096, 32 * 1024, 10_000_000])
def test_the_chunking_of_the_stream_does_not_matter(snapshots: dict[str, Captured], chunk: int) -> None:
    captured = snapshots["churned"]
    whole = scan(captured.data)

    assert scan(captured.data, chunk=chunk).status_hash == whole.status_hash
    assert scan(captured.data, chunk=chunk).problems == []


def test_hash_kv_is_known_for_a_member_that_compacted_meanwhile(
    snapshot_etcd: EtcdCluster, snapshots: dict[str, Captured]
) -> None:
    with snapshot_etcd.client() as client:
        endpoint = snapshot_etcd.endpoints[0]
        for number in range(40):
            client.put(b"/registry/leases/node-2", b"renewed %d" % number)
        client.delete(b"/registry/pods/team/pod-0011")
        revision = client.hash_kv(endpoint).revision
        data = snapshot(client, endpoint)
        client.compact(revision - 10)
        live = client.hash_kv(endpoint, revision)
    captured = replace(snapshots["churned"], data=data)
    report = scan_with_newest(captured)

    assert live.compact_revision > report.revisions.compact_revision
    assert report.hash_kv(live.compact_revision) == live.hash


def test_hash_kv_is_not_guessed_for_a_member_that_lags(snapshots: dict[str, Captured]) -> None:
    report = scan_with_newest(snapshots["churned"])

    assert report.hash_kv(report.revisions.compact_revision - 1) is None
    assert report.hash_kv(0) is None


def test_hash_kv_is_not_guessed_without_knowing_the_newest_rows(snapshots: dict[str, Captured]) -> None:
    report = scan(snapshots["churned"].data)

    assert report.hash_kv(report.revisions.compact_revision) is None


def test_nothing_is_read_when_nothing_was_compacted(snapshots: dict[str, Captured]) -> None:
    assert newest_rows(snapshots["written"].image, 0) is None


def test_too_many_keys_since_the_compaction_are_not_kept(snapshots: dict[str, Captured]) -> None:
    revisions = read_revisions(snapshots["churned"].image)

    assert newest_rows(snapshots["churned"].image, revisions.compact_revision, most=3) is None


def test_live_keys_are_those_etcd_lists(snapshot_etcd: EtcdCluster) -> None:
    with snapshot_etcd.client() as client:
        data = snapshot(client, snapshot_etcd.endpoints[0])
        listed = client.range(b"\x00", b"\x00")
    collector = KeyCollector()
    report = scan(data, on_rows=collector)

    assert [(e.key, e.main) for e in collector.live(report)] == [
        (kv.key, kv.mod_revision) for kv in listed.kvs
    ]


def test_a_flipped_value_byte_is_caught_where_etcdutl_sees_nothing(
    snapshot_etcd: EtcdCluster, snapshots: dict[str, Captured], tmp_path
) -> None:
    data = bytearray(snapshots["written"].data)
    at = data.index(bytes(range(256)) * 4) + 100
    data[at] ^= 1
    path = tmp_path / "flipped.db"
    path.write_bytes(data)
    report = scan(bytes(data))

    assert etcdutl_status(snapshot_etcd, path).returncode == 0
    assert [problem.place for problem in report.problems] == ["the sha256 at the file's end"]


@pytest.mark.parametrize("cut", [1, 31, 32, 4096, 4096 + 32, 40_000])
def test_a_file_that_ends_early_is_caught(snapshots: dict[str, Captured], cut: int) -> None:
    assert not scan(snapshots["written"].data[:-cut]).is_sound


def test_garbage_has_problems_and_no_crash() -> None:
    for data in (b"", b"x", bytes(32), bytes(100_000), b"\xff" * 50_000):
        assert not scan(data).is_sound


def _with_trailer(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def _pages(captured: Captured) -> bytearray:
    return bytearray(captured.data[:-32])


def _pages_of_kind(captured: Captured, flags: int) -> list[int]:
    """Reached pages of bucket `key`."""
    database = bolt.Database(captured.image)
    found = [database.meta.root]
    stack = [int.from_bytes({n: v for n, v, _ in _root_rows(database)}[b"key"][:8], "little")]
    while stack:
        pgid = stack.pop()
        page = database.page(pgid)
        found.append(pgid)
        if not page.is_leaf:
            stack += [child for _, child in page.children()]
    return [p for p in found[1:] if database.page(p).flags == flags]


def _root_rows(database: bolt.Database) -> list[tuple[bytes, bytes, bool]]:
    page = database.page(database.meta.root)
    return [page.item(index) for index in range(page.count)]


def test_a_page_with_a_wrong_number_is_named(snapshots: dict[str, Captured]) -> None:
    captured = snapshots["written"]
    leaf = _pages_of_kind(captured, bolt.LEAF)[3]
    data = _pages(captured)
    data[leaf * 4096] ^= 0x40

    assert f"page {leaf}" in [p.place for p in scan(_with_trailer(bytes(data))).problems]


def test_a_page_that_is_referred_to_twice_is_named(snapshots: dict[str, Captured]) -> None:
    captured = snapshots["written"]
    branch = _pages_of_kind(captured, bolt.BRANCH)[0]
    data = _pages(captured)
    first, second = branch * 4096 + 16 + 8, branch * 4096 + 32 + 8
    data[second : second + 8] = data[first : first + 8]
    problems = scan(_with_trailer(bytes(data))).problems

    assert any("something else does too" in problem.message for problem in problems)


def test_a_branch_that_leads_back_to_itself_ends(snapshots: dict[str, Captured]) -> None:
    captured = snapshots["written"]
    branch = _pages_of_kind(captured, bolt.BRANCH)[0]
    data = _pages(captured)
    for element in range(3):
        at = branch * 4096 + 16 + 16 * element + 8
        data[at : at + 8] = branch.to_bytes(8, "little")
    looped = _with_trailer(bytes(data))

    assert not scan(looped).is_sound
    with pytest.raises(IntegrityError):
        list(bolt.Database(bolt.BytesImage(looped[:-32], 4096)).bucket(b"key").items())


def test_swapped_leaves_are_out_of_order(snapshots: dict[str, Captured]) -> None:
    captured = snapshots["written"]
    branch = _pages_of_kind(captured, bolt.BRANCH)[0]
    data = _pages(captured)
    one, two = branch * 4096 + 16 + 8, branch * 4096 + 32 + 8
    data[one : one + 8], data[two : two + 8] = data[two : two + 8], data[one : one + 8]

    assert any("order" in p.message for p in scan(_with_trailer(bytes(data))).problems)


def test_a_missing_key_bucket_is_no_etcd_database(snapshots: dict[str, Captured]) -> None:
    captured = snapshots["written"]
    root = bolt.Database(captured.image).meta.root
    data = _pages(captured)
    at = data.index(b"key", root * 4096)
    data[at : at + 3] = b"kez"

    problems = scan(_with_trailer(bytes(data))).problems
    assert any("bucket 'key' is missing" in problem.message for problem in problems)


def test_a_damaged_meta_page_is_named_and_the_other_still_used(snapshots: dict[str, Captured]) -> None:
    data = _pages(snapshots["written"])
    data[4096 + 40] ^= 1
    report = scan(_with_trailer(bytes(data)))

    assert "meta page 1" in [problem.place for problem in report.problems]
    assert report.total_rows > 0


def test_row_keys_are_read_and_refused() -> None:
    assert row_revision(bytes.fromhex("00000000000000055f0000000000000001")) == (5, 1, False)
    assert row_revision(bytes.fromhex("00000000000000055f000000000000000174")) == (5, 1, True)
    for bad in (b"", b"short", bytes(17), bytes.fromhex("00000000000000055f000000000000000178")):
        with pytest.raises(IntegrityError):
            row_revision(bad)


def test_packed_rows_order_as_rows_do() -> None:
    keys = [bytes.fromhex(f"{m:016x}5f{s:016x}") + t for m in (1, 2) for s in (0, 1) for t in (b"", b"t")]

    assert sorted(keys) == keys
    assert sorted(map(pack_row, keys)) == list(map(pack_row, keys))


def test_etcd_keys_and_values_are_decoded_and_garbage_is_refused() -> None:
    value = b"\x0a\x03abc\x10\x05\x18\x07\x20\x02\x2a\x04data\x30\x09"
    found = decode_row(value, "here")

    assert etcd_key(value, "here") == b"abc"
    assert (found.key, found.value, found.create_revision, found.mod_revision) == (b"abc", b"data", 5, 7)
    assert (found.version, found.lease) == (2, 9)
    for bad in (
        b"",
        b"\x0a",
        b"\x0a\x09abc",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x08\x01",
    ):
        with pytest.raises(IntegrityError) as caught:
            etcd_key(bad, "here")
        assert caught.value.place == "here"


def test_newest_rows_of_another_window_are_not_used(snapshots: dict[str, Captured]) -> None:
    captured = snapshots["churned"]
    report = scan(captured.data, newest=NewestRows(10**6, {}))

    assert report.hash_kv(report.revisions.compact_revision) is None

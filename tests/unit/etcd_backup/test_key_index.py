"""Single objects out of a backup, through the index and without it."""

from __future__ import annotations

import hashlib

import pytest
from captured import Captured, Shelf, Stored, scan

from shared.errors import IntegrityError
from shared.etcd_backup.archive import Chain
from shared.etcd_backup.key_index import KeyCollector, KeyIndex, collect, encode_index, kind_of, read_object
from shared.model import bolt
from shared.model.etcd_snapshot import decode_row, row_revision

pytestmark = pytest.mark.etcd


def _chain(shelf: Shelf, snapshots: dict[str, Captured]) -> Chain:
    stored: list[Stored] = []
    for name in ("written", "churned"):
        stored.append(shelf.store(snapshots[name].data, stored[-1] if stored else None))
    return shelf.chain(*stored)


def _live(captured: Captured) -> dict[bytes, tuple[int, bytes]]:
    """Live keys the plain way: every row in order, tombstones remove."""
    found: dict[bytes, tuple[int, bytes]] = {}
    for key, value in bolt.Database(captured.image).bucket(b"key").items():
        main, _, is_tombstone = row_revision(key)
        row = decode_row(value, "")
        if is_tombstone:
            found.pop(row.key, None)
        else:
            found[row.key] = main, row.value
    return dict(sorted(found.items()))


def _index(chain: Chain, data: bytes, asked: list[int] | None = None) -> KeyIndex:
    def read(offset: int, length: int) -> bytes:
        if asked is not None:
            asked.append(length)
        return data[offset : offset + length]

    index = KeyIndex.open("x.keys", len(data), read, chain.archives[-1])
    assert index is not None
    return index


def test_every_live_key_and_its_object_is_found(shelf: Shelf, snapshots: dict[str, Captured]) -> None:
    chain = _chain(shelf, snapshots)
    encoded = encode_index(*collect(chain), chain)
    index, image, live = _index(chain, encoded.data), chain.image(), _live(snapshots["churned"])
    entries = list(index.entries())

    assert {entry.key: entry.main for entry in entries} == {key: main for key, (main, _) in live.items()}
    assert [entry.key for entry in entries] == list(live)
    assert index.live_keys == encoded.live_keys == len(live)
    for entry in entries:
        found = read_object(image, entry)
        assert (found.key, found.value) == (entry.key, live[entry.key][1])


def test_a_deltas_index_holds_what_changed_and_lists_everything(
    shelf: Shelf, snapshots: dict[str, Captured]
) -> None:
    chain = _chain(shelf, snapshots)
    full = Chain.open(chain.archives[:1])
    whole = encode_index(*collect(full), full)
    below = _index(full, whole.data)
    changes = encode_index(*collect(chain), chain, below)
    live = _live(snapshots["churned"])

    def read(offset: int, length: int) -> bytes:
        return changes.data[offset : offset + length]

    index = KeyIndex.open("y.keys", len(changes.data), read, chain.archives[-1], lambda: below)
    assert index is not None
    assert {entry.key: entry.main for entry in index.entries()} == {
        key: main for key, (main, _) in live.items()
    }
    assert [entry.key for entry in index.entries()] == list(live)
    prefix = b"/registry/pods/"
    assert [e.key for e in index.entries(prefix)] == [key for key in live if key.startswith(prefix)]
    gone = next(key for key in _live(snapshots["written"]) if key not in live)
    assert index.find(gone) is None
    assert (changes.live_keys, changes.kinds) == (len(live), encode_index(*collect(chain), chain).kinds)
    assert len(changes.data) < len(whole.data)
    assert KeyIndex.open("y.keys", len(changes.data), read, chain.archives[-1]) is None


def test_a_prefix_lists_exactly_its_keys(shelf: Shelf, snapshots: dict[str, Captured]) -> None:
    chain = _chain(shelf, snapshots)
    index, live = _index(chain, encode_index(*collect(chain), chain).data), _live(snapshots["churned"])

    for prefix in (b"", b"/registry/pods/", b"/registry/pods/team/pod-01", b"odd", b"odd\x00", b"zzz", b"/"):
        assert [e.key for e in index.entries(prefix)] == [key for key in live if key.startswith(prefix)]
    assert index.find(b"odd") is not None
    assert index.find(b"od") is None


def test_one_object_costs_a_few_small_reads(snapshots: dict[str, Captured]) -> None:
    shelf, asked = Shelf(), list[int]()
    chain = _chain(shelf, snapshots)
    index = _index(chain, encode_index(*collect(chain), chain).data, asked)
    before, requests = chain.bytes_read, chain.requests
    entry = index.find(b"/registry/pods/team/pod-0100")
    assert entry is not None
    read_object(chain.image(), entry)

    assert len(asked) == 2
    assert chain.requests - requests <= 6
    assert chain.bytes_read - before < chain.stored_bytes / 2


def test_kinds_are_counted_as_an_operator_names_them(snapshots: dict[str, Captured]) -> None:
    shelf = Shelf()
    chain = _chain(shelf, snapshots)

    kinds = encode_index(*collect(chain), chain).kinds

    assert kinds["configmaps"] == 60
    assert kinds["events"] == 40
    assert kinds["example.com/widgets"] == 1
    assert kinds["other"] == 2
    assert kind_of(b"/registry/minions/node-1") == "nodes"
    assert kind_of(b"/registry/services/specs/a/b") == "services"
    assert kind_of(b"/registry/services/endpoints/a/b") == "endpoints"
    assert kind_of(b"/kubernetes.io/pods/a/b") == "pods"
    assert kind_of(b"\xff/x/y/z") == "other"


def test_an_encrypted_backups_index_shows_no_key(snapshots: dict[str, Captured]) -> None:
    shelf = Shelf(bytes(32))
    chain = _chain(shelf, snapshots)
    first, second = (encode_index(*collect(chain), chain).data for _ in range(2))

    assert b"pods" not in first
    assert first != second  # written twice, never twice with one key


def test_every_flipped_byte_of_an_index_is_caught(shelf: Shelf, snapshots: dict[str, Captured]) -> None:
    chain = _chain(shelf, snapshots)
    data = encode_index(*collect(chain), chain).data
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 0x10
        if len(data) - 56 <= at < len(data) - 40 and chain.archives[-1].cipher is None:
            continue  # the salt, which only an encrypted index uses
        with pytest.raises(IntegrityError) as caught:
            list(_index(chain, bytes(changed)).entries())
        assert "x.keys" in caught.value.place
    for cut in (1, 64, len(data)):
        with pytest.raises(IntegrityError):
            list(_index(chain, data[:-cut]).entries())


def test_the_index_of_another_backup_is_refused(snapshots: dict[str, Captured]) -> None:
    shelf = Shelf()
    chain, other = _chain(shelf, snapshots), _chain(shelf, snapshots)
    with pytest.raises(IntegrityError, match="does not belong"):
        _index(other, encode_index(*collect(chain), chain).data)


def test_collecting_from_a_damaged_database_names_the_place(snapshots: dict[str, Captured]) -> None:
    shelf, captured = Shelf(), snapshots["written"]
    leaf = next(bolt.Database(captured.image).bucket(b"key").leaves()).place
    damaged = bytearray(captured.data[:-32])
    damaged[int(leaf.removeprefix("page ")) * 4096 + 16] ^= 1
    chain = shelf.chain(shelf.store(bytes(damaged) + hashlib.sha256(damaged).digest()))
    with pytest.raises(IntegrityError) as caught:
        collect(chain)
    assert caught.value.place == leaf


def test_an_index_that_would_take_too_much_memory_is_not_made(snapshots: dict[str, Captured]) -> None:
    collector = KeyCollector(most_bytes=100)
    chain = _chain(Shelf(), snapshots)
    report = scan(b"".join(chain.stream()), on_rows=collector)
    collector._seal()

    assert not collector.is_complete
    assert encode_index(collector, report, chain) is None
    with pytest.raises(ValueError, match="without a limit"):
        list(collector.live(report))


def test_an_empty_etcd_has_an_empty_index(snapshots: dict[str, Captured]) -> None:
    shelf = Shelf()
    chain = shelf.chain(shelf.store(snapshots["empty"].data))
    encoded = encode_index(*collect(chain), chain)

    assert encoded.live_keys == 0
    assert list(_index(chain, encoded.data).entries()) == []


def test_many_rows_are_merged_from_sorted_runs(snapshots: dict[str, Captured]) -> None:
    import shared.etcd_backup.key_index as module

    collector = KeyCollector()
    chain = _chain(Shelf(), snapshots)
    full, report = collect(chain)
    expected = list(full.live(report))
    original, module._RUN_ROWS = module._RUN_ROWS, 50
    try:
        again, report = collect(chain)
        assert len(again._runs) > 3
        assert list(again.live(report)) == expected
    finally:
        module._RUN_ROWS = original
    assert list(collector.live(report)) == []

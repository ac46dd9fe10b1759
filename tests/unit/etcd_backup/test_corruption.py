"""Whatever happens to stored bytes, it is caught and its place is named: thousands of seeded random cases.

Each case damages one backup of a chain in one way, then reads the newest backup back as `verify` does. A case
that is not caught, or caught without a place, fails. Beside it: flips given to `etcdutl snapshot status` too.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from captured import Captured, Shelf, Stored, etcdutl_status, scan

from sandbox.etcd import EtcdCluster
from shared.errors import IntegrityError
from shared.etcd_backup import archive as archive_module
from shared.etcd_backup.archive import Archive, Chain
from shared.model import bolt
from shared.model.backup import Manifest
from shared.model.etcd_snapshot import SnapshotScan, newest_rows

pytestmark = pytest.mark.etcd

CASES_PER_SETTING = 1250  # of each of: full, chain; clear, encrypted
ETCDUTL_FLIPS = 150
LINKS = ["small", "small, changed", "small, changed again"]


@dataclass
class Store:
    """What a container holds: blobs by name, among them the chain, and another chain to mix up with."""

    blobs: dict[str, bytes]
    chain: list[Manifest]
    others: list[Stored]
    key: bytes | None

    @property
    def newest(self) -> str:
        return self.chain[-1].name


def build(snapshots: dict[str, Captured], links: list[str], key: bytes | None) -> Store:
    shelf = Shelf(key)
    chains: list[list[Stored]] = []
    for _ in range(2):
        stored: list[Stored] = []
        for name in links:
            stored.append(shelf.store(snapshots[name].data, stored[-1] if stored else None))
        chains.append(stored)
    blobs = dict(shelf.blobs)
    for one in [*chains[0], *chains[1]]:
        blobs[one.manifest.name] = one.manifest.to_json()
    return Store(blobs, [one.manifest for one in chains[0]], chains[1], key)


def prove(store: Store, blobs: dict[str, bytes], key: bytes | None) -> None:
    """Read the newest backup back; IntegrityError when anything is wrong with it."""
    manifests: list[Manifest] = []
    name: str | None = store.newest
    while name is not None:
        if name not in blobs:
            raise IntegrityError(f"manifest '{name}' is missing", place=f"manifest {name}")
        manifests.insert(0, Manifest.from_json(blobs[name], name))
        parent = manifests[0].parent
        name = parent.name if parent else None
    archives = []
    for manifest in manifests:
        if manifest.data not in blobs:
            raise IntegrityError(f"'{manifest.data}' is missing", place=f"data blob {manifest.data}")
        data = blobs[manifest.data]
        archives.append(Archive.open(manifest, lambda o, n, data=data: data[o : o + n], key))
    chain = Chain.open(archives)
    newest = newest_rows(chain.image(), chain.manifest.revisions.compact_revision)
    scanning = SnapshotScan(newest=newest)
    for piece in chain.stream(workers=1):
        scanning.feed(piece)
    report = scanning.finish()
    if report.problems:
        raise IntegrityError(str(report.problems[0]), place=report.problems[0].place)
    if (report.sha256, report.revisions) != (manifest.database.sha256, manifest.revisions):
        raise IntegrityError("not what the manifest says", place=f"manifest {manifest.name}")


Damage = Callable[[random.Random, Store, dict[str, bytes]], bytes | None]
"""Changes `blobs`; returns another key to read with, if that is the damage."""


def _link(rng: random.Random, store: Store) -> int:
    return rng.randrange(len(store.chain))


def flip_bit_in_data(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    _flip(rng, blobs, store.chain[_link(rng, store)].data)


def flip_bit_in_index_or_table(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    manifest = store.chain[_link(rng, store)]
    _flip(rng, blobs, manifest.data, manifest.archive.index.offset)


def flip_bit_in_manifest(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    _flip(rng, blobs, store.chain[_link(rng, store)].name)


def _flip(rng: random.Random, blobs: dict[str, bytes], name: str, start: int = 0) -> None:
    data = bytearray(blobs[name])
    data[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
    blobs[name] = bytes(data)


def truncate(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    manifest = store.chain[_link(rng, store)]
    name = rng.choice((manifest.data, manifest.data, manifest.name))
    blobs[name] = blobs[name][: rng.randrange(len(blobs[name]))]


def swap_blocks(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    name = store.chain[0].data
    data = bytearray(blobs[name])
    size = min(rng.choice((512, 4096, 16384)), len(data) // 3)
    one, two = sorted(rng.sample(range(0, len(data) - size, size), 2))
    data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]
    blobs[name] = bytes(data)


def swap_frames(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    """Two whole frames change places, and the others stay where the index says if the lengths allow."""
    manifest = store.chain[0]
    archive = Archive.open(manifest, lambda o, n: blobs[manifest.data][o : o + n], store.key)
    frames = [
        blobs[manifest.data][archive.offsets[n] : archive.offsets[n + 1]] for n in range(archive.frame_count)
    ]
    one, two = rng.sample(range(len(frames)), 2)
    frames[one], frames[two] = frames[two], frames[one]
    blobs[manifest.data] = b"".join(frames) + blobs[manifest.data][manifest.archive.index.offset :]


def stale_block(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    """A block of another run of the same database."""
    link = _link(rng, store)
    ours, theirs = store.chain[link].data, store.others[link].blob
    size = min(4096, len(theirs), len(blobs[ours]))
    at = rng.randrange(0, min(len(theirs), len(blobs[ours])) - size + 1)
    blobs[ours] = blobs[ours][:at] + theirs[at : at + size] + blobs[ours][at + size :]


def whole_blob_of_another_run(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    link = _link(rng, store)
    blobs[store.chain[link].data] = store.others[link].blob


def zero_a_range(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    name = store.chain[_link(rng, store)].data
    at = rng.randrange(len(blobs[name]))
    size = min(rng.choice((1, 100, 4096)), len(blobs[name]) - at)
    blobs[name] = blobs[name][:at] + bytes(size) + blobs[name][at + size :]


def insert_or_delete(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    name = store.chain[_link(rng, store)].data
    at = rng.randrange(len(blobs[name]))
    cut = rng.choice((0, 1, 17))
    blobs[name] = blobs[name][:at] + rng.randbytes(0 if cut else 9) + blobs[name][at + cut :]


def missing_manifest(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    del blobs[store.chain[_link(rng, store)].name]


def missing_data(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    del blobs[store.chain[_link(rng, store)].data]


def another_manifest(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    """The manifest of another run of the same database under this one's name."""
    link = _link(rng, store)
    blobs[store.chain[link].name] = store.others[link].manifest.to_json()


def wrong_parent(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> None:
    """The parent is replaced by an equal backup of another run, manifest and data together."""
    import msgspec

    link = rng.randrange(len(store.chain) - 1) if len(store.chain) > 1 else 0
    ours, theirs = store.chain[link], store.others[link]
    moved = msgspec.structs.replace(theirs.manifest, run=ours.run, data=ours.data)
    blobs[ours.name] = moved.to_json()
    blobs[ours.data] = theirs.blob


def wrong_key(rng: random.Random, store: Store, blobs: dict[str, bytes]) -> bytes:
    key = bytearray(store.key or bytes(32))
    key[rng.randrange(32)] ^= 1 << rng.randrange(8)
    return bytes(key)


ALWAYS: list[Damage] = [
    *[flip_bit_in_data] * 8,
    *[flip_bit_in_index_or_table] * 3,
    *[flip_bit_in_manifest] * 3,
    *[truncate] * 3,
    swap_blocks,
    swap_frames,
    stale_block,
    whole_blob_of_another_run,
    zero_a_range,
    insert_or_delete,
    missing_manifest,
    missing_data,
    another_manifest,
]
"""How often each kind of damage is drawn; `wrong_parent` needs a chain and `wrong_key` a key."""


@pytest.mark.no_cover
@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["clear", "encrypted"])
@pytest.mark.parametrize("links", [LINKS[:1], LINKS], ids=["full", "chain"])
def test_every_damage_is_caught_and_its_place_named(
    snapshots: dict[str, Captured],
    links: list[str],
    key: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(archive_module, "FRAME_BYTES", 32 * 1024)
    store = build(snapshots, links, key)
    prove(store, store.blobs, key)  # it is sound before anything is done to it
    damages = ALWAYS + ([wrong_parent] if len(links) > 1 else []) + ([wrong_key] * 2 if key else [])
    rng = random.Random(f"{len(links)}/{key!r}")
    kinds, places, cases = Counter[str](), Counter[str](), 0
    while cases < CASES_PER_SETTING:
        damage, blobs = rng.choice(damages), dict(store.blobs)
        other_key = damage(rng, store, blobs)
        if blobs == store.blobs and other_key is None:
            continue  # the same bytes again: no damage
        cases += 1
        with pytest.raises(IntegrityError) as caught:
            prove(store, blobs, other_key or key)
        assert caught.value.place, f"{damage.__name__} was caught without a place: {caught.value}"
        kinds[damage.__name__] += 1
        places[caught.value.place.split(" of ")[0].split(" ")[0]] += 1
    with capsys.disabled():
        print(f"\n  {cases} of {cases} caught; damage {dict(kinds)}; places {dict(places)}")


def test_flips_in_the_database_itself_beside_etcdutl(
    snapshot_etcd: EtcdCluster, snapshots: dict[str, Captured], tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, data = random.Random(11), snapshots["small"].data
    path, ours, theirs = tmp_path / "flipped.db", 0, 0
    for _ in range(ETCDUTL_FLIPS):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        ours += not scan(bytes(flipped)).is_sound
        theirs += etcdutl_status(snapshot_etcd, path).returncode != 0
    with capsys.disabled():
        print(f"\n  of {ETCDUTL_FLIPS} flips: Kubekeeper caught {ours}, etcdutl snapshot status {theirs}")

    assert ours == ETCDUTL_FLIPS
    assert theirs < ETCDUTL_FLIPS


@pytest.mark.no_cover
def test_structural_damage_under_a_valid_sha256_never_crashes_a_scan(snapshots: dict[str, Captured]) -> None:
    """Somebody who can compute a sha256 can still not make a scan crash, loop or take for ever."""
    import hashlib

    rng = random.Random(13)
    original = snapshots["small, changed"].data[:-32]
    sound = 0
    for _ in range(400):
        data = bytearray(original)
        for _ in range(rng.choice((1, 2, 8, 60))):
            page = rng.randrange(len(data) // 4096)
            at = page * 4096 + rng.choice((rng.randrange(16), rng.randrange(160), rng.randrange(4096)))
            data[at] = rng.choice((0, 1, 0xFF, data[at] ^ (1 << rng.randrange(8))))
        crafted = bytes(data) + hashlib.sha256(data).digest()
        report = scan(crafted)
        sound += report.is_sound
        assert all(problem.place and problem.message for problem in report.problems)
        report.hash_kv(0)
        if report.is_sound:  # then random access must agree that it is one
            list(bolt.Database(bolt.BytesImage(bytes(data), 4096)).bucket(b"key").items())
    assert 0 < sound < 400


def test_random_keys_never_open_a_backup(snapshots: dict[str, Captured]) -> None:
    shelf = Shelf(os.urandom(32))
    stored = shelf.store(snapshots["empty"].data)
    for _ in range(200):
        with pytest.raises(IntegrityError) as caught:
            shelf.open(stored.manifest, os.urandom(32))
        assert caught.value.place == f"page table of {stored.manifest.data}"

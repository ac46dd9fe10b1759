"""Snapshots of a real etcd at telling moments, what etcd says about each, and backups of them in memory."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sandbox.etcd import EtcdCluster
from shared.clients.etcd import EtcdClient
from shared.etcd_backup.archive import Archive, ArchiveWriter, Chain, PageTable
from shared.model import bolt
from shared.model.backup import (
    EncryptionSummary,
    Kind,
    Manifest,
    ParentRef,
    Source,
    Timings,
    WrappedKey,
    bump_revision_advice,
    data_name,
)
from shared.model.etcd import HashKV
from shared.model.etcd_snapshot import SnapshotReport, SnapshotScan, newest_rows, read_revisions

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Captured:
    """One snapshot: its bytes with etcd's trailer, the live HashKV, and etcdutl's status of the file."""

    name: str
    data: bytes
    hash_kv: HashKV
    status: dict[str, int]

    @property
    def image(self) -> bolt.BytesImage:
        return bolt.BytesImage(self.data[:-32], bolt.guess_page_size(self.data[:4096]))


def snapshot(client: EtcdClient, endpoint: str) -> bytes:
    """All a member streams."""
    minute = timedelta(minutes=1)
    with client.snapshot(endpoint, stall_timeout=minute, total_timeout=minute) as stream:
        return b"".join(stream)


def scan(data: bytes, *, chunk: int = 100_000, **options: object) -> SnapshotReport:
    """One pass over a whole file, in chunks of an odd size."""
    scanning = SnapshotScan(**options)
    for start in range(0, len(data), chunk):
        scanning.feed(data[start : start + chunk])
    return scanning.finish()


def scan_with_newest(captured: Captured) -> SnapshotReport:
    """As `verify` does it."""
    revisions = read_revisions(captured.image)
    return scan(captured.data, newest=newest_rows(captured.image, revisions.compact_revision))


def etcdutl_status(cluster: EtcdCluster, path: Path) -> subprocess.CompletedProcess[str]:
    """`etcdutl snapshot status` of a file."""
    return subprocess.run(
        [str(cluster.tools.etcdutl), "snapshot", "status", str(path), "--write-out", "json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def capture(cluster: EtcdCluster, directory: Path) -> dict[str, Captured]:
    """Drives one etcd through its life and takes a snapshot after each step."""
    found: dict[str, Captured] = {}
    with cluster.client(timeout=timedelta(seconds=30)) as client:
        endpoint = cluster.endpoints[0]

        def take(name: str) -> None:
            data = snapshot(client, endpoint)
            path = directory / f"{name}.db"
            path.write_bytes(data)
            status = json.loads(etcdutl_status(cluster, path).stdout)
            found[name] = Captured(name, data, client.hash_kv(endpoint), status)

        take("empty")
        for number in range(180):
            client.put(b"/registry/pods/team/pod-%04d" % number, b"%d" % number * 500)
        take("small")
        for number in range(0, 180, 20):
            client.put(b"/registry/pods/team/pod-%04d" % number, b"%d changed" % number * 100)
        client.delete(b"/registry/pods/team/pod-0033")
        take("small, changed")
        client.put(b"/registry/pods/team/pod-0001", b"again")
        take("small, changed again")
        _write(client)
        take("written")
        _rewrite_and_delete(client)
        take("deleted")
        client.compact(client.put(b"/registry/leases/before", b"x"))
        take("compacted")
        _rewrite_and_delete(client)
        take("churned")
        client.delete(b"/registry/pods/team/pod-0007")
        client.compact(client.hash_kv(endpoint).revision)
        take("compacted at a tombstone")
        client.put(b"/registry/pods/team/pod-0007", b"again")
        client.defragment(endpoint)
        take("defragmented")
    return found


def _write(client: EtcdClient) -> None:
    lease = client.grant_lease(timedelta(hours=1))
    for number in range(300):
        client.put(b"/registry/pods/team/pod-%04d" % number, bytes([number % 251]) * (50 + 9 * number))
    for number in range(40):
        client.put(b"/registry/events/team/event-%02d" % number, b"e" * 300, lease=lease)
    client.put_all_begin([(b"/registry/configmaps/a/%02d" % n, b"c" * 700) for n in range(60)]).result()
    client.put(b"/registry/secrets/team/large", bytes(range(256)) * 5600)  # 1.4 MiB: overflow pages
    client.put(b"/registry/example.com/widgets/team/" + b"w" * 200, b"{}")  # a key of more than 127 bytes
    client.put(b"odd\x00key", b"1")
    client.put(b"odd", b"2")


def _rewrite_and_delete(client: EtcdClient) -> None:
    for number in range(0, 300, 3):
        client.put(b"/registry/pods/team/pod-%04d" % number, b"second version %d" % number)
    for number in range(1, 300, 30):
        client.delete(b"/registry/pods/team/pod-%04d" % number)
    for _ in range(50):
        client.put(b"/registry/leases/node-1", b"renewed")


@dataclass(frozen=True)
class Stored:
    """A backup in memory."""

    manifest: Manifest
    blob: bytes
    table: PageTable


@dataclass
class Shelf:
    """Where backups are kept by data blob name; `key` encrypts all of them."""

    key: bytes | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    count: int = 0

    def store(self, data: bytes, parent: Stored | None = None, *, chunk: int = 32 * 1024) -> Stored:
        """Back up `data`, as a delta when there is a parent."""
        self.count += 1
        run = f"run{self.count:04d}"
        writer = ArchiveWriter(run, parent=parent.table if parent else None, data_key=self.key)
        out = []
        for start in range(0, len(data), chunk):
            out += writer.feed(data[start : start + chunk])
        result = writer.finish()
        started = NOON + timedelta(minutes=self.count)
        revisions = read_revisions(bolt.BytesImage(data[:-32], result.database.page_size))
        wrapped = WrappedKey(algorithm="none", key_id="test", wrapped="")
        manifest = Manifest(
            kubekeeper_version="0",
            cluster="prod",
            run=run,
            kind=Kind.DELTA if parent else Kind.FULL,
            data=data_name("prod", started, run),
            database=result.database,
            revisions=revisions,
            archive=result.archive,
            source=Source(
                member_id="1", member_name="m", endpoint="e", etcd_version="3.5.1", is_learner=False
            ),
            timings=Timings(
                started_at=started,
                committed_at=started,
                first_byte_seconds=0.1,
                stream_seconds=1.0,
                upload_seconds=1.5,
            ),
            bump_revision=bump_revision_advice(revisions.revision),
            chain_length=parent.manifest.chain_length + 1 if parent else 0,
            parent=ParentRef(name=parent.manifest.name, digest=parent.manifest.digest()) if parent else None,
            encryption=EncryptionSummary(algorithm="AES-256-GCM", key=wrapped) if self.key else None,
        )
        blob = b"".join([*out, *result.tail])
        self.blobs[manifest.data] = blob
        return Stored(manifest, blob, result.table)

    def open(self, manifest: Manifest, key: bytes | None = None) -> Archive:
        def read(offset: int, length: int) -> bytes:
            return self.blobs[manifest.data][offset : offset + length]

        return Archive.open(manifest, read, key or self.key)

    def chain(self, *stored: Stored) -> Chain:
        return Chain.open([self.open(one.manifest) for one in stored])

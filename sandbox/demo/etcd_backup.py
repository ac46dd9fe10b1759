"""The chapter on etcd backups: taken, made small, restored, proven equal, damaged, caught, pruned."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from sandbox.demo.screen import Screen
from sandbox.demo.world import CLUSTER, World
from sandbox.etcd import EtcdCluster
from sandbox.tools import etcd as newest_etcd
from shared.bootstrap import Clients
from shared.errors import NotFoundError
from shared.model.backup import BackupRecord, Kind, VerdictState, read_listing
from shared.model.etcd import HashKV
from shared.model.wording import byte_size
from shared.runtime.automation import find
from shared.runtime.journal import Entry
from shared.work import one_pass

TITLE = "Etcd backups: taken, made small, restored, proven equal, damaged, caught, pruned"
STEPS = 9
AUTOMATION = "etcd-backup"
CONTAINER = "etcd-backups"
FLIPPED_AT = 0.41  # somewhere inside the stored pages


def show(screen: Screen, megabytes: int = 200) -> None:
    """All steps, in the order an operator would meet them."""
    with World(screen) as world:
        _show(world, megabytes)


def _show(world: World, megabytes: int) -> None:
    screen = world.screen
    with screen.step("A local world: Azurite, three etcd members with mTLS, the Functions host"):
        world.start()
        world.fill(megabytes)
        _show_world(world)
    with screen.step("The timer fires: a first, full backup"):
        full = _timer_backup(world)
    with screen.step("Two per cent of the objects change; the next one is incremental"):
        delta = _incremental(world, full)
    with screen.step("A one-off backup, asked for by a queue message"):
        one_off = _one_off(world)
    with screen.step("Back to a fresh etcd: is it equal?"):
        _restore(world, delta)
    with screen.step("One object, straight from the stored backup"):
        _get(world, one_off)
    with screen.step("One bit of the stored backup is flipped"):
        _flip(world, one_off)
    with screen.step("A day later: nothing builds on damage, and retention tidies up"):
        _a_day_later(world, one_off)
    with screen.step("What was done, and why"):
        _journal(world)


def _show_world(world: World) -> None:
    leader = world.etcd.status(world.etcd.leader())
    world.screen.say(
        f"etcd {leader.version}, 3 members, {leader.db_size / 1e6:.0f} MB of database, "
        f"{world.loaded.count:,} objects as Kubernetes stores them"
    )
    world.screen.say(
        f"{world.loaded.written_bytes / 1e6:.0f} MB written at {world.loaded.mb_per_second:.0f} MB/s"
    )


def _timer_backup(world: World) -> BackupRecord:
    screen = world.screen
    world.host.run_function("etcd_backup_timer")
    record = world.wait("first verified backup", lambda: _verified(world, after=None))
    screen.check(
        "the timer led to one full backup", holds=len(_records(world)) == 1 and record.kind is Kind.FULL
    )
    _show_backup(world, record)
    screen.check(
        "it was read back from the store and is verified: sha256, page graph, HashKV of the members",
        holds=record.verdict is VerdictState.VERIFIED,
        otherwise=f"{record.verdict} {record.verdict_reason}",
    )
    outcome = _outcome(world, record)
    held = outcome.data["readTransactionSeconds"]
    screen.say(f"etcd's read transaction was held for {held:.1f} s")
    speed = record.database_bytes / 1e6 / max(held, 0.001)
    screen.note("full backup", f"{_sizes(record)}, streamed at {speed:.0f} MB/s, verified")
    return record


def _incremental(world: World, full: BackupRecord) -> BackupRecord:
    screen = world.screen
    screen.progress("changing objects")
    world.churn(2, generation=1)
    _wait_for_next_minute(world, full)
    world.host.run_function("etcd_backup_timer")
    record = world.wait("verified incremental", lambda: _verified(world, after=full))
    _show_backup(world, record)
    screen.check(
        "the timer led to an incremental backup on top of the full one",
        holds=record.kind is Kind.DELTA and record.parent == full.name,
        otherwise=f"{record.kind} on {record.parent}",
    )
    times = _uploaded(world, full) / _uploaded(world, record)
    screen.check(
        f"all its blobs together are {times:.0f} times smaller than those of the full", holds=times > 5
    )
    screen.note("incremental", f"{_sizes(record)}, verified; uploaded {times:.0f} times less than the full")
    return record


def _one_off(world: World) -> BackupRecord:
    before = _records(world)[-1]
    world.churn(0.5, generation=2)
    ran = world.keeper("run", "backup", "--cluster", CLUSTER, "--wait")
    world.screen.check("the operation was sent, followed and succeeded", holds=ran.code == 0)
    record = world.wait("one-off backup", lambda: _verified(world, after=before))
    world.screen.check("it is there and verified", holds=record.verdict is VerdictState.VERIFIED)
    world.screen.note("one-off backup", f"{_sizes(record)}, by queue message")
    return record


def _restore(world: World, backup: BackupRecord) -> None:
    screen = world.screen
    target = world.directory / "restored"
    ran = world.keeper(
        *(
            "backup",
            "restore",
            backup.run,
            "--cluster",
            CLUSTER,
            "--data-dir",
            str(target),
            "--no-bump",
        )
    )
    screen.check("a data directory was written", holds=ran.code == 0 and target.exists())
    if not target.exists():
        return
    source = _hash_kv(world.etcd, backup.revision)
    screen.progress("starting an etcd on the restored data")
    with EtcdCluster.start(data_dirs=[target], tools=newest_etcd()) as restored:
        copy = _hash_kv(restored, backup.revision)
    screen.say(f"HashKV at revision {backup.revision}: source {source.hash}, restored {copy.hash}")
    screen.check("the restored etcd is equal to the source at that revision", holds=source.hash == copy.hash)
    screen.note("restored", f"revision {backup.revision}, HashKV {copy.hash} as in the source")


def _get(world: World, backup: BackupRecord) -> None:
    screen = world.screen
    with world.etcd.client() as client:
        key = next(
            kv.key
            for kv in client.range(
                b"/registry/pods/", b"/registry/pods0", limit=1, revision=backup.revision
            ).kvs
        )
        live = client.range(key, revision=backup.revision).kvs[0].value
    name = key.decode()
    world.keeper("backup", "get", f"{CLUSTER}/{backup.run}", name)
    stored = world.keeper_bytes("backup", "get", f"{CLUSTER}/{backup.run}", name, "--raw")
    screen.check("the object read by range requests is the one etcd holds", holds=stored == live)


def _flip(world: World, backup: BackupRecord) -> None:
    """Damage the stored data as a bad disk would: one bit, same length."""
    screen = world.screen
    blob = world.clients.blobs(CONTAINER)
    stored = blob.read(backup.data)
    position = int(len(stored.data) * FLIPPED_AT)
    damaged = bytearray(stored.data)
    damaged[position] ^= 0x10
    blob.replace(backup.data, bytes(damaged), stored.etag, stored.metadata)
    screen.say(f"bit 4 of byte {position:,} of {len(damaged):,} in {backup.data}")
    ran = world.keeper("backup", "verify", backup.run, "--cluster", CLUSTER)
    screen.check(
        "verification says bad, names the frame, exits 1", holds=ran.code == 1 and "frame" in ran.output
    )
    ran = world.keeper(
        "run", "verify-backup", "--cluster", CLUSTER, "--set", f"backup={backup.name}", "--wait"
    )
    record = next(r for r in _records(world) if r.name == backup.name)
    screen.check(
        "its verdict is on record", holds=record.verdict is VerdictState.BAD, otherwise=str(record.verdict)
    )
    screen.note("bit flip", "caught, with its place; exit code 1")


def _a_day_later(world: World, bad: BackupRecord) -> None:
    """Two passes of the app's own code with tomorrow's clock, which no host can be given."""
    screen = world.screen
    before = _records(world)
    for ahead in (timedelta(hours=24), timedelta(hours=24, minutes=5)):
        screen.progress(f"looking at the cluster {ahead} from now")
        _pass_at(world, ahead)
    left = _records(world)
    new = [record for record in left if record not in before]
    screen.check(
        "the next backup does not build on the bad one: it is a full, and verified",
        holds=bool(new) and new[0].kind is Kind.FULL and new[0].verdict is VerdictState.VERIFIED,
        otherwise=", ".join(f"{record.kind} {record.verdict}" for record in new),
    )
    gone = {record.name for record in before} - {record.name for record in left}
    names = {record.name for record in left}
    screen.check("what retention no longer wants is gone, the bad one too", holds=bad.name in gone)
    whole = all(record.parent is None or record.parent in names for record in left)
    verified = any(record.verdict is VerdictState.VERIFIED for record in left)
    screen.check("no kept incremental lost its parent; a verified backup is left", holds=whole and verified)
    world.keeper("backup", "list", "--cluster", CLUSTER)
    screen.note(
        "retention", f"{len(gone)} of {len(before) + len(new)} backups pruned, the rest whole and verified"
    )


def _pass_at(world: World, ahead: timedelta) -> None:
    """One pass as the queue function makes it, `ahead` of now."""

    class Ahead(Clients):
        def now(self) -> datetime:
            return datetime.now(UTC) + ahead

    clients = Ahead(world.environ)
    claim = world.wait(
        "claim", lambda: clients.claims.acquire(CLUSTER, AUTOMATION, clients.now()), seconds=40
    )
    with claim:
        one_pass(clients, find(AUTOMATION), clients.settings().cluster(CLUSTER), claim)


def _journal(world: World) -> None:
    world.keeper("status", "--cluster", CLUSTER)
    ran = world.keeper("status", "--cluster", CLUSTER, "--json", show=False)
    document = json.loads(ran.output)
    world.screen.check("the journal tells what each automation did and left alone", holds=bool(document))
    poison = world.keeper("poison", "list", "--json", show=False)
    messages = json.loads(poison.output).get("messages")
    world.screen.check(
        "no message failed for good", holds=poison.code == 0 and not messages, otherwise=poison.output
    )


def _records(world: World) -> tuple[BackupRecord, ...]:
    try:
        return read_listing(world.clients.blobs(CONTAINER).list(f"{CLUSTER}/")).records
    except NotFoundError:
        return ()


def _uploaded(world: World, record: BackupRecord) -> int:
    """Bytes of everything stored for a backup: data, manifest, verdict, key index."""
    blobs = world.clients.blobs(CONTAINER)

    def look() -> int | None:
        one = next(r for r in _records(world) if r.name == record.name)
        return sum(blobs.properties(name).size for name in one.blob_names) if one.key_index else None

    return world.wait("key index", look)


def _verified(world: World, *, after: BackupRecord | None) -> BackupRecord | None:
    """The newest backup once it has a verdict, if it is younger than `after`."""
    newest = next(iter(_records(world)[-1:]), None)
    if newest is None or newest.verdict is None or (after and newest.started_at <= after.started_at):
        return None
    return newest


def _wait_for_next_minute(world: World, last: BackupRecord) -> None:
    """The demo's schedule is every minute: the next backup is due in the minute after the last one began."""
    due = last.started_at.replace(second=0, microsecond=0) + timedelta(minutes=1)

    def is_due() -> bool | None:
        return True if datetime.now(UTC) >= due else None

    world.wait(f"{due:%H:%M}, when the schedule wants the next", is_due, 90)


def _outcome(world: World, record: BackupRecord) -> Entry:
    """What the journal says of a backup."""

    def look() -> Entry | None:
        for entry in world.clients.journal.entries([(CLUSTER, AUTOMATION)]):
            if entry.action == "Backup" and entry.data.get("backup") == record.name:
                return entry
        return None

    return world.wait("journal entry", look)


def _hash_kv(cluster: EtcdCluster, revision: int) -> HashKV:
    with cluster.client() as client:
        return client.hash_kv(client.endpoints[0], revision)


def _show_backup(world: World, record: BackupRecord) -> None:
    world.screen.say(f"{record.kind} of revision {record.revision}: {_sizes(record)}")
    world.screen.say(record.name)
    for fact in _outcome(world, record).evidence:
        world.screen.say(f"because {fact}")


def _sizes(record: BackupRecord) -> str:
    return f"{byte_size(record.stored_bytes)} stored of {byte_size(record.database_bytes)}"

"""A backup interrupted anywhere: by death after each write, a lost claim, a stalled or shortened stream."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import msgspec
import pytest
from scenarios import etcd_backup_world
from scenarios.etcd_backup_world import World, only, statuses

from sandbox.etcd import EtcdCluster
from shared.errors import LostLeaseError, RunFailedError
from shared.etcd_backup.policy import EtcdBackupPolicy
from shared.model.backup import VerdictState
from shared.model.plan import ActionKind, Status
from shared.settings import EtcdConnection

pytestmark = [pytest.mark.azurite, pytest.mark.etcd, pytest.mark.no_cover]

MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    """Two followers to choose from."""
    with EtcdCluster.start(members=3, extra=["--unsafe-no-fsync"]) as cluster:
        cluster.seed(12_000_000)
        yield cluster


@pytest.fixture
def world(storage: str, etcd: EtcdCluster) -> World:
    return World(storage, etcd.connection(), etcd.environ)


@pytest.mark.slow
def test_death_after_any_write_is_followed_by_one_whole_backup(storage: str, etcd: EtcdCluster) -> None:
    """Each process dies right after its n-th write to the store; the next run sees that and finishes."""
    worlds = [World(storage, etcd.connection(), etcd.environ) for _ in range(24)]
    done = subprocess.run(
        [sys.executable, etcd_backup_world.__file__],
        input="".join(f"{world.encode()}\n" for world in worlds),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    *seen, last = done.stdout.splitlines()
    assert last == "", "the pass has more writes than this test tries"
    assert {"stage_block", "commit_blocks", "create", "replace"} <= set(seen)
    for step, (world, write) in enumerate(zip(worlds, seen, strict=False), 1):
        take_over(world)
        before = len(world.records()) if world.store.exists() else 0
        world.reconcile(2 * MINUTE)
        records = world.records()
        assert len(records) == before + 1 <= 2, (step, write)
        assert {r.verdict for r in records} == {VerdictState.VERIFIED}, (step, write)


def take_over(world: World) -> None:
    """As if the lease of the dead worker had run out."""
    from shared.errors import ConflictError, NotFoundError

    try:
        world.clients.blobs("kubekeeper").break_lease(f"{world.name}/etcd-backup.lease")
    except (ConflictError, NotFoundError):
        return  # it died before it had one, or after it gave it back


def test_whoever_lost_the_claim_during_the_upload_writes_no_manifest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared.clients.blob import BlobStore

    upload = BlobStore.stage_block
    taken = threading.Event()

    def upload_slowly(store: BlobStore, name: str, block_id: str, data: bytes) -> None:
        upload(store, name, block_id, data)
        if not taken.is_set():
            taken.set()
            take_over(world)
            with world.claim():
                pass  # another worker was here

    monkeypatch.setattr(BlobStore, "stage_block", upload_slowly)
    with pytest.raises(LostLeaseError):
        world.reconcile()
    assert world.records() == ()
    assert world.blob_names() == []


def test_an_orphan_of_a_crashed_run_is_swept_when_it_is_old(world: World) -> None:
    world.reconcile()
    (record,) = world.records()
    for name in (record.name, *record.verdict_names, *filter(None, [record.key_index])):
        world.store.delete(name)
    assert world.blob_names() == [record.data]
    world.policy = msgspec.structs.replace(world.policy, max_chain=0)
    world.reconcile(2 * MINUTE)
    assert record.data in world.blob_names()
    outcomes = world.reconcile(timedelta(hours=2))
    assert only(outcomes, ActionKind.PRUNE).action.target == record.data
    assert record.data not in world.blob_names()


class Interrupting:
    """A TCP proxy before a member that stops forwarding, or hangs up, after so many bytes of a snapshot."""

    def __init__(self, target: str, limit: int, *, hang_up: bool) -> None:
        self._host, port = target.removeprefix("http://").split(":")
        self._port, self._limit, self._hang_up = int(port), limit, hang_up
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closing = threading.Event()
        self._sockets: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        for one in (self._listener, *self._sockets):
            one.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((self._host, self._port))
            self._sockets += [client, server]
            threading.Thread(target=self._pump, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, self._limit), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                passed += len(data)
                if limit is not None and passed > limit:
                    if self._hang_up:
                        sink.shutdown(socket.SHUT_RDWR)
                        return
                    self._closing.wait(60)
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def interrupting(etcd: EtcdCluster) -> Iterator[Callable[..., Interrupting]]:
    made: list[Interrupting] = []

    def make(target: str, **how: bool) -> Interrupting:
        made.append(Interrupting(target, 2_000_000, **how))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("hang_up", "said"),
    [(False, "no progress for 2s"), (True, "the stream broke")],
    ids=["stalls", "ends early"],
)
def test_a_stream_that_is_interrupted_leaves_an_outcome_and_nothing_else(
    storage: str, etcd: EtcdCluster, interrupting: Callable[..., Interrupting], hang_up: bool, said: str
) -> None:
    proxy = interrupting(etcd.endpoints[0], hang_up=hang_up)
    policy = EtcdBackupPolicy(schedule="* * * * *", stall_timeout="30s" if hang_up else "2s")
    world = World(storage, EtcdConnection(endpoints=(proxy.url,)), policy=policy)
    with pytest.raises(RunFailedError, match=said):
        world.reconcile()
    assert world.blob_names() == []
    entries = world.clients.journal.entries([(world.name, "etcd-backup")])
    assert [(entry.action, entry.status) for entry in entries] == [("Backup", "Failed")]


def test_after_an_interrupted_stream_the_next_best_member_serves_a_full(
    storage: str, etcd: EtcdCluster, interrupting: Callable[..., Interrupting]
) -> None:
    first, second = etcd.followers()
    chosen = min(first, second, key=lambda index: etcd.status(index).member_id)
    proxy = interrupting(etcd.endpoints[chosen], hang_up=True)
    others = [url for url in etcd.endpoints if url != etcd.endpoints[chosen]]
    world = World(storage, EtcdConnection(endpoints=(proxy.url, *others)))
    outcomes = world.reconcile()
    assert statuses(outcomes) == [("Backup", "Succeeded"), ("Verify", "Succeeded")]
    backup = outcomes[0]
    assert "the stream broke" in backup.message
    assert backup.data["kind"] == "full"
    assert only(outcomes, ActionKind.VERIFY).data["state"] == "verified"


def test_a_member_that_is_down_cannot_witness_but_the_others_do(storage: str, etcd: EtcdCluster) -> None:
    down = etcd.followers()[0]
    etcd.kill(down)
    try:
        world = World(storage, etcd.connection())
        outcomes = world.reconcile()
    finally:
        etcd.restart(down)
    verify = only(outcomes, ActionKind.VERIFY)
    assert (verify.status, verify.data["state"]) == (Status.SUCCEEDED, "verified")
    assert len(verify.data["members"]) == 2


def test_a_member_with_other_data_is_an_alarm_of_its_own(storage: str) -> None:
    """Two etcds of one member each hold different data at the same revision, as a diverged cluster does."""
    with EtcdCluster.start() as one, EtcdCluster.start() as other:
        for number in range(5):
            one.client().put(b"/registry/a/%d" % number, b"same")
            other.client().put(b"/registry/a/%d" % number, b"same" if number else b"different")
        world = World(storage, one.connection())
        with (
            world.claim() as claim,
            etcd_backup_world.story.open_place(world.cluster, world.clients, claim) as place,
        ):
            from shared.clients.etcd import EtcdClient
            from shared.etcd_backup.act import verdict_outcomes, verification_of
            from shared.etcd_backup.backup import Order, Taker
            from shared.etcd_backup.verify import ask_members, verify
            from shared.model.backup import Source

            source = Source(
                member_id="1",
                member_name="m0",
                endpoint=one.endpoints[0],
                etcd_version="3.5.1",
                is_learner=False,
            )
            taker = Taker(place.store, place.etcd, claim, policy=world.policy, environ=world.environ)
            taken = taker.take(Order(world.name, "00ff", source))
            both = EtcdConnection(endpoints=(*one.endpoints, *other.endpoints))
            with EtcdClient(both) as everybody:
                asked = ask_members(everybody, taken.manifest.revisions.revision)
                proof = verify(taken.chain, asked, world.clients.now())
            outcomes = verdict_outcomes(verification_of(taken.manifest.name, "Test", "-"), proof)
    assert proof.verdict.members_diverged
    assert proof.verdict.state is VerdictState.UNVERIFIED
    assert [o.data["event"] for o in outcomes] == ["Unverified", "MembersDiverged"]

"""The etcd client against real etcd: reading, writing, authentication and snapshots that go right."""

from __future__ import annotations

import hashlib
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from sandbox.etcd import EtcdCluster
from shared.clients.etcd import EtcdClient, prefix_end
from shared.errors import ApiError, SettingsError
from shared.settings import EtcdConnection

pytestmark = pytest.mark.etcd

SECOND = timedelta(seconds=1)
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def secured() -> Iterator[EtcdCluster]:
    """Three members and a learner with mTLS and authentication, holding some data."""
    with EtcdCluster.start(members=3, tls=True, auth=True) as cluster:
        cluster.seed(2_000_000)
        cluster.add_learner()
        yield cluster


@pytest.fixture
def single() -> Iterator[EtcdCluster]:
    with EtcdCluster.start() as cluster:
        yield cluster


def take(client: EtcdClient, endpoint: str) -> bytes:
    return b"".join(client.snapshot(endpoint, stall_timeout=10 * SECOND, total_timeout=60 * SECOND))


def test_every_member_serves_a_snapshot_that_its_own_digest_proves(secured: EtcdCluster) -> None:
    client = secured.client()
    for endpoint in secured.endpoints:
        data = take(client, endpoint)
        assert len(data) % 512 == 32
        assert hashlib.sha256(data[:-32]).digest() == data[-32:]
        assert len(data) - 32 <= client.status(endpoint).db_size


def test_a_snapshot_has_the_content_that_etcdctl_saves(single: EtcdCluster) -> None:
    single.seed(1_000_000)
    ours, theirs = single.root / "ours.db", single.root / "theirs.db"
    time.sleep(0.3)  # etcd writes its buffer out every 100 ms; then the content stands still
    single.etcdctl("snapshot", "save", str(theirs))
    ours.write_bytes(take(single.client(), single.endpoints[0]))
    assert snapshot_status(single, ours) == snapshot_status(single, theirs)


def snapshot_status(cluster: EtcdCluster, file: Path) -> str:
    """Hash, revision, keys and size, as etcd's own tool tells them."""
    tool = cluster.tools.etcdutl or cluster.tools.etcdctl
    command = [tool, "snapshot", "status", file]
    environ = cluster.etcdctl_environ()
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout


def test_the_stream_counts_what_it_received(single: EtcdCluster) -> None:
    client = single.client()
    began = time.monotonic()
    stream = client.snapshot(single.endpoints[0], stall_timeout=30 * SECOND, total_timeout=60 * SECOND)
    size = sum(map(len, stream))
    assert (stream.received_bytes, stream.remaining_bytes) == (size, 0)
    assert timedelta(0) < stream.held < timedelta(seconds=time.monotonic() - began)


def test_closing_early_makes_the_member_let_go(single: EtcdCluster) -> None:
    single.seed(20_000_000)
    client = single.client()
    with client.snapshot(single.endpoints[0], stall_timeout=30 * SECOND, total_timeout=60 * SECOND) as stream:
        next(stream)
        assert _handled_snapshots(single) == 0
    deadline = time.monotonic() + 30
    while _handled_snapshots(single) == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _handled_snapshots(single) == 1


def _handled_snapshots(cluster: EtcdCluster) -> int:
    """How many Snapshot calls etcd says it has ended, however they ended."""
    with urllib.request.urlopen(f"{cluster.endpoints[0]}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = [li for li in lines if li.startswith("grpc_server_handled_total") and '"Snapshot"' in li]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in found)


def test_status_tells_members_apart(secured: EtcdCluster) -> None:
    client = secured.client()
    statuses = [client.status(endpoint) for endpoint in secured.endpoints]
    assert {s.member_id for s in statuses} == {m.id for m in client.members()}
    assert [s.is_learner for s in statuses] == [False, False, False, True]
    assert sum(s.is_leader for s in statuses) == 1
    assert len({s.cluster_id for s in statuses}) == 1
    assert all(s.db_size >= s.db_size_in_use > 1_000_000 for s in statuses)


def test_voters_agree_on_hash_kv_and_a_learner_refuses_it(secured: EtcdCluster) -> None:
    client = secured.client()
    revision = client.put(b"/marker", b"1")
    deadline = time.monotonic() + 30
    while min(client.status(endpoint).revision for endpoint in secured.endpoints) < revision:
        assert time.monotonic() < deadline, "the slowest member never applied it"
        time.sleep(0.02)
    pending = [client.hash_kv_begin(endpoint, revision) for endpoint in secured.endpoints]
    answers = [p.result() for p in pending[:3]]
    assert len({(a.hash, a.revision, a.compact_revision) for a in answers}) == 1
    assert {a.compact_revision for a in answers} == {0}
    with pytest.raises(ApiError, match="a learner does not serve this call") as caught:
        pending[3].result()
    assert caught.value.code == "NotOnLearner"


def test_hash_kv_names_compacted_and_future_revisions(single: EtcdCluster) -> None:
    client, endpoint = single.client(), single.endpoints[0]
    for number in range(10):
        client.put(b"/key", b"%d" % number)
    client.compact(8)
    with pytest.raises(ApiError) as compacted:
        client.hash_kv(endpoint, 5)
    with pytest.raises(ApiError) as future:
        client.hash_kv(endpoint, 1000)
    assert (compacted.value.code, future.value.code) == ("Compacted", "FutureRevision")
    assert client.hash_kv(endpoint, 9).compact_revision == 8


def test_keys_are_written_read_and_deleted(single: EtcdCluster) -> None:
    client = single.client()
    lease = client.grant_lease(timedelta(minutes=5))
    first = client.put(b"/a/1", b"one")
    client.put_all_begin([(b"/a/2", b"two"), (b"/a/3", b"three")], lease=lease).result()
    assert client.create(b"/a/4", b"four")
    assert not client.create(b"/a/4", b"again")
    found = client.range(b"/a/", prefix_end(b"/a/"), limit=3)
    assert [kv.value for kv in found.kvs] == [b"one", b"two", b"three"]
    assert (found.count, found.more, found.revision) == (4, True, first + 2)
    assert [kv.lease for kv in found.kvs] == [0, lease, lease]
    assert client.delete(b"/a/", prefix_end(b"/a/")) == 4
    assert client.get(b"/a/1") is None
    old = client.range(b"/a/1", revision=first)
    assert old.kvs[0].value == b"one"


def test_the_end_of_a_prefix_is_the_next_string_of_its_length() -> None:
    assert prefix_end(b"/registry/") == b"/registry0"
    assert prefix_end(b"a\xff") == b"b"
    assert prefix_end(b"\xff") == b"\0"
    assert prefix_end(b"") == b"\0"


def test_a_dead_first_endpoint_does_not_hide_the_others() -> None:
    with EtcdCluster.start(members=3) as cluster:
        client = cluster.client(timeout=20 * SECOND)
        cluster.kill(0)
        assert len(client.members()) == 3
        cluster.wait_ready()
        client.put(b"/key", b"value")
        with pytest.raises(ApiError, match="connection refused"):
            client.status(cluster.endpoints[0])
        cluster.restart(0)
        assert client.status(cluster.endpoints[0]).member_id


def test_a_new_token_is_fetched_when_the_old_one_is_forgotten() -> None:
    with EtcdCluster.start(auth=True) as cluster:
        client, endpoint = cluster.client(), cluster.endpoints[0]
        client.put(b"/key", b"value")
        cluster.kill(0)
        cluster.restart(0)  # simple tokens live in etcd's memory
        assert client.get(b"/key") is not None
        cluster.kill(0)
        cluster.restart(0)
        assert len(take(client, endpoint)) > 32


def test_a_password_is_not_needed_where_authentication_is_off(single: EtcdCluster) -> None:
    connection = EtcdConnection(endpoints=single.endpoints, user="root", password="setting:PASSWORD")
    with EtcdClient(connection, {"PASSWORD": "any"}) as client:
        assert client.put(b"/key", b"value") == 2


def test_nospace_is_seen_in_the_status_and_refuses_writes() -> None:
    with EtcdCluster.start(quota_bytes=8 << 20) as cluster:
        cluster.fill_quota()
        client, endpoint = cluster.client(), cluster.endpoints[0]
        status = client.status(endpoint)
        assert [a.alarm for a in status.alarms()] == ["NOSPACE"]
        assert status.alarms() == client.alarms()
        with pytest.raises(ApiError) as caught:
            client.put(b"/key", b"value")
        assert caught.value.code == "NoSpace"
        assert len(take(client, endpoint)) > 1 << 20


def test_defragment_shrinks_the_file_and_the_leader_can_be_moved() -> None:
    with EtcdCluster.start(members=3) as cluster:
        client = cluster.client()
        cluster.seed(4_000_000)
        client.delete(b"\0", b"\0")
        client.compact(client.status(cluster.endpoints[0]).revision)
        follower, leader = cluster.followers()[0], cluster.leader()
        before = client.status(cluster.endpoints[follower])
        client.defragment(cluster.endpoints[follower])
        after = client.status(cluster.endpoints[follower])
        assert after.db_size < before.db_size / 4
        client.move_leader(cluster.endpoints[leader], after.member_id)
        cluster.wait_ready()
        assert cluster.leader() == follower


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("10.0.0.4:2379", "is not a URL; write it like https://10.0.0.4:2379"),
        ("tcp://10.0.0.4:2379", "is not a URL"),
        ("https://10.0.0.4:http", "has no valid port"),
    ],
)
def test_an_endpoint_that_cannot_be_one_is_refused_at_once(endpoint: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        EtcdClient(EtcdConnection(endpoints=(endpoint,)), {})


def test_an_unknown_endpoint_is_not_contacted(single: EtcdCluster) -> None:
    with pytest.raises(SettingsError, match="is not a configured etcd endpoint"):
        single.client().status("http://127.0.0.1:1")


def test_the_generated_messages_are_those_of_the_proto_file(tmp_path: Path) -> None:
    from grpc_tools import protoc

    from shared.clients import etcd_api_pb2

    source, target = "shared/clients/etcd_api.proto", tmp_path / "descriptors"
    assert (
        protoc.main(["protoc", f"-I{CHECKOUT}", f"--descriptor_set_out={target}", str(CHECKOUT / source)])
        == 0
    )
    expected = FileDescriptorSet.FromString(target.read_bytes()).file[0]
    actual = FileDescriptorProto()
    etcd_api_pb2.DESCRIPTOR.CopyToProto(actual)
    expected.ClearField("source_code_info")
    for (
        message
    ) in expected.message_type:  # protoc derives JSON names, the generated module does not carry them
        _drop_json_names(message)
    assert actual == expected


def _drop_json_names(message: DescriptorProto) -> None:
    for part in message.field:
        part.ClearField("json_name")
    for nested in message.nested_type:
        _drop_json_names(nested)

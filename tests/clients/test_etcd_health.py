"""Observing, health and defragmentation against real etcd: members down, paused, moved and full."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from sandbox.etcd import EtcdCluster
from shared.clients.blob import blob_store
from shared.clients.etcd import EtcdClient
from shared.errors import ApiError, LostLeaseError
from shared.etcd_backup.decide import decide
from shared.etcd_backup.health import check, defragment
from shared.etcd_backup.observation import load, save
from shared.etcd_backup.observe import observe, observe_etcd
from shared.settings import Cluster

pytestmark = pytest.mark.etcd


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def three() -> Iterator[EtcdCluster]:
    with EtcdCluster.start(members=3, tls=True) as cluster:
        yield cluster


def entry(cluster: EtcdCluster) -> Cluster:
    return Cluster(name="prod", etcd=cluster.connection())


def fragment(cluster: EtcdCluster) -> None:
    cluster.seed(3_000_000)
    with EtcdClient(cluster.connection(), cluster.environ) as client:
        client.delete(b"\0", b"\0")
        client.compact(client.status(cluster.endpoints[0]).revision)


@pytest.mark.parametrize("members", [1, 3, 5])
def test_every_size_of_cluster_is_observed_and_a_follower_chosen_where_there_is_one(members: int) -> None:
    with EtcdCluster.start(members=members) as cluster, cluster.client() as client:
        seen = observe_etcd(entry(cluster), client, now=now())
        leader = cluster.endpoints[cluster.leader()]
    assert len(seen.statuses) == len(seen.members) == members
    action = decide(seen, seen.policy, seen.now).actions[0]
    assert (action.parameters["endpoint"] == leader) is (members == 1)
    assert {reading.clock_skew_ms for reading in seen.endpoints} == {0}


@pytest.mark.azurite
def test_an_observation_reads_the_listing_and_survives_its_file(three: EtcdCluster, storage: str) -> None:
    store = blob_store({"AzureWebJobsStorage": storage}, f"observe-{uuid.uuid4().hex[:8]}")
    with three.client() as client:
        with pytest.raises(ApiError):  # without the store nothing can be decided
            observe(entry(three), client, store, state={}, now=now())
        store.ensure()
        metadata = {
            "format": "backup/v1",
            "started": "20261123T100000Z",
            "data": "prod/2026/11/23/100000-r.pages",
        }
        store.create("prod/2026/11/23/7-full-r.json", b"{}", metadata)
        store.create("prod/2026/11/23/100000-r.pages", b"")
        store.create("prod/2026/11/22/090000-x.pages", b"")
        store.create("other/2026/11/23/7-full-r.json", b"{}", metadata)
        seen = observe(entry(three), client, store, state={"a": 1}, now=now())
    assert [record.name for record in seen.backups] == ["prod/2026/11/23/7-full-r.json"]
    assert seen.orphans == ("prod/2026/11/22/090000-x.pages",)
    again = load(save(seen), "file")
    assert again == seen
    assert decide(again, again.policy, seen.now).document() == decide(seen, seen.policy, seen.now).document()


def test_a_paused_member_delays_nobody_and_is_explained(three: EtcdCluster) -> None:
    follower = three.followers()[0]
    with three.client(timeout=timedelta(seconds=3)) as client:
        three.pause(follower)
        try:
            report = check(entry(three), client, now())
        finally:
            three.resume(follower)
    three.wait_ready()
    assert (report.voters, report.answering_voters, report.healthy) == (3, 2, True)
    assert {f.reason for f in report.findings} == {"QuorumAtRisk", "NoAnswer"}
    assert all(m.latency_ms < 3000 for m in report.members if not m.error)


def test_a_lost_quorum_is_critical_and_a_backup_is_still_planned() -> None:
    with EtcdCluster.start(members=3) as cluster:
        client = cluster.client(timeout=timedelta(seconds=3))
        survivor = cluster.followers()[0]
        for index in {0, 1, 2} - {survivor}:
            cluster.kill(index)
        deadline = now() + timedelta(seconds=60)
        while cluster.status(survivor).leader and now() < deadline:
            time.sleep(0.05)
        report = check(entry(cluster), client, now())
        assert not report.healthy
        assert {"NoQuorum", "NoLeader", "ConnectionRefused"} == {f.reason for f in report.findings}
        seen = observe_etcd(entry(cluster), client, now=now())
    action = decide(seen, seen.policy, seen.now).actions[0]
    assert action.parameters["endpoint"] == cluster.endpoints[survivor]


def test_defragmentation_goes_round_and_leaves_the_leader_to_the_end(three: EtcdCluster) -> None:
    fragment(three)
    leader = three.leader()
    asked: list[int] = []
    told: list[str] = []
    with three.client() as client:
        report = defragment(
            entry(three), client, now=now, ensure=lambda: asked.append(1), progress=told.append
        )
    assert (report.stopped, len(report.done), len(asked), len(told)) == ("", 3, 3, 3)
    assert [d.role for d in report.done] == ["follower", "follower", "leader"]
    assert f"m{leader} " in report.done[-1].member
    assert all(d.after_bytes < d.before_bytes / 4 for d in report.done)


def test_defragmentation_does_not_begin_while_a_member_is_down() -> None:
    with EtcdCluster.start(members=3) as cluster:
        fragment(cluster)
        cluster.kill(cluster.followers()[0])
        with cluster.client() as client:
            report = defragment(entry(cluster), client, now=now)
    assert report.done == ()
    assert report.stopped_reason == "MemberDown"
    assert "connection refused" in report.stopped


def test_defragmentation_stops_when_a_member_fails_on_the_way() -> None:
    with EtcdCluster.start(members=3) as cluster:
        fragment(cluster)
        followers = cluster.followers()

        class DiesAfterTheFirst(EtcdClient):
            def defragment(self, endpoint: str, timeout: timedelta = timedelta(seconds=5)) -> None:
                super().defragment(endpoint, timeout)
                cluster.kill(next(i for i in followers if cluster.endpoints[i] != endpoint))

        with DiesAfterTheFirst(cluster.connection(), cluster.environ) as client:
            report = defragment(entry(cluster), client, now=now, settle_timeout=timedelta(seconds=1))
        assert len(report.done) == 1
        assert report.stopped_reason == "MemberDown"


def test_a_lost_claim_stops_defragmentation_before_the_next_member(three: EtcdCluster) -> None:
    def lost() -> None:
        raise LostLeaseError("another worker holds the cluster now")

    with three.client() as client, pytest.raises(LostLeaseError):
        defragment(entry(three), client, now=now, ensure=lost)


def test_nospace_is_reported_and_cured_by_defragmentation() -> None:
    with EtcdCluster.start(quota_bytes=8 << 20) as cluster:
        cluster.fill_quota()
        client = cluster.client()
        report = check(entry(cluster), client, now())
        assert not report.healthy
        assert "NOSPACE: writes are refused" in report.findings[0].message
        client.delete(b"\0", b"\0")
        client.compact(client.status(cluster.endpoints[0]).revision)
        assert len(defragment(entry(cluster), client, now=now).done) == 1
        cluster.etcdctl("alarm", "disarm")
        client.put(b"/key", b"value")
        assert check(entry(cluster), client, now()).healthy

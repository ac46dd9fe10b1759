"""Outcomes reach the journal, the summary and the event topic, whatever happens to one of them."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shared.bootstrap import Clients
from shared.errors import RunFailedError
from shared.model.plan import Action, ActionKind, LeftAlone, Outcome, Plan, Status
from shared.record import VERBS, record, record_outcomes
from shared.runtime.journal import Entry, PoolSize, Sizes, Summary

pytestmark = pytest.mark.azurite

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


class Topic:
    """A stand-in for an Event Grid topic: takes what is published, or refuses it."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        topic = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                topic.headers.append({key.lower(): value for key, value in self.headers.items()})
                if topic.status == 200 and self.path.startswith("/api/events"):
                    topic.events += json.loads(body)
                self.send_response(topic.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def topic() -> Iterator[Topic]:
    topic = Topic()
    thread = threading.Thread(target=topic.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield topic
    topic.server.shutdown()
    topic.server.server_close()
    thread.join()


@pytest.fixture
def clients(storage: str, topic: Topic) -> Clients:
    return Clients(
        {
            "AzureWebJobsStorage": storage,
            "KUBEKEEPER_EVENTS_ENDPOINT": topic.url,
            "KUBEKEEPER_EVENTS_KEY": "topic-key",
        }
    )


@pytest.fixture
def cluster() -> str:
    return f"c-{uuid.uuid4().hex[:10]}"


def _outcome(kind: ActionKind, status: Status = Status.SUCCEEDED, **data: Any) -> Outcome:
    action = Action(kind=kind, target=f"{kind}-target", reason="Due", message="-", evidence=("a fact",))
    return Outcome(action=action, status=status, message=f"{kind} done, key AccountKey=c2VjcmV0;", data=data)


def _plan(cluster: str, now: datetime = NOW, *, missed: bool = False) -> Plan:
    left = [LeftAlone(subject="b1", reason="Kept", message="newest of its hour")]
    if missed:
        left.append(LeftAlone(subject=cluster, reason="ObjectiveMissed", message="no verified backup for 2h"))
    return Plan(automation="etcd-backup", cluster=cluster, now=now, left_alone=tuple(left))


def test_every_outcome_is_journalled_and_published_and_the_pass_summed_up(
    clients: Clients, topic: Topic, cluster: str
) -> None:
    outcomes = [_outcome(ActionKind.BACKUP, revision=7), _outcome(ActionKind.PRUNE, Status.SKIPPED)]
    record(clients, _plan(cluster), outcomes)
    entries = clients.journal.entries([(cluster, "etcd-backup")])
    assert [(e.action, e.status, e.evidence) for e in entries] == [
        ("Prune", "Skipped", ("a fact",)),
        ("Backup", "Succeeded", ("a fact",)),
    ]
    summary = clients.journal.summary(cluster, "etcd-backup")
    assert summary is not None
    assert [action["kind"] for action in summary.actions] == ["Backup", "Prune"]
    assert [left["reason"] for left in summary.left_alone] == ["Kept"]
    assert summary.digest == _plan(cluster).document()["digest"]
    (event,) = topic.events
    assert (event["type"], event["specversion"]) == ("Kubekeeper.EtcdBackup.BackedUp", "1.0")
    assert (event["source"], event["subject"]) == (f"/kubekeeper/{cluster}", "Backup-target")
    assert event["data"]["facts"] == {"revision": 7}
    assert topic.headers[0]["aeg-sas-key"] == "topic-key"
    assert "c2VjcmV0" not in json.dumps(
        [*topic.events, entries[0].message, entries[1].message, summary.actions]
    )


def test_a_failed_action_is_raised_last_when_everything_is_recorded(
    clients: Clients, topic: Topic, cluster: str
) -> None:
    outcomes = [_outcome(ActionKind.BACKUP, Status.FAILED), _outcome(ActionKind.VERIFY)]
    with pytest.raises(RunFailedError, match="1 of 2 actions failed, first Backup of 'Backup-target'"):
        record(clients, _plan(cluster), outcomes)
    assert len(clients.journal.entries([(cluster, "etcd-backup")])) == 2
    assert [event["type"].rpartition(".")[2] for event in topic.events] == ["BackupFailed", "Verified"]


def test_a_failure_that_is_an_answer_is_not_raised(clients: Clients, topic: Topic, cluster: str) -> None:
    record(
        clients, _plan(cluster), [_outcome(ActionKind.VERIFY, Status.FAILED, final=True, event="Corrupted")]
    )
    assert [event["type"] for event in topic.events] == ["Kubekeeper.EtcdBackup.Corrupted"]
    assert topic.events[0]["data"]["facts"] == {}


def test_a_missed_objective_is_an_event_when_it_begins_then_every_hour_until_it_is_met(
    clients: Clients, topic: Topic, cluster: str
) -> None:
    minutes = [0, 1, 30, 61, 62, 70, 71]
    missed = [True, True, True, True, True, False, True]
    counts = []
    for minute, is_missed in zip(minutes, missed, strict=True):
        record(clients, _plan(cluster, NOW + timedelta(minutes=minute), missed=is_missed), [])
        counts.append(len(topic.events))
    assert counts == [1, 1, 1, 2, 2, 2, 3]
    assert {event["type"] for event in topic.events} == {"Kubekeeper.EtcdBackup.Missed"}
    assert topic.events[0]["subject"] == cluster


def test_a_topic_that_refuses_hides_no_outcome(clients: Clients, topic: Topic, cluster: str) -> None:
    topic.status = 401
    record(clients, _plan(cluster), [_outcome(ActionKind.BACKUP)])
    entries = clients.journal.entries([(cluster, "etcd-backup")])
    assert {(e.kind, e.status, e.reason) for e in entries} == {
        ("Outcome", "Succeeded", "Due"),
        ("Failed", "Failed", "EventsNotPublished"),
    }
    assert not any("topic-key" in e.message for e in entries)


def test_without_a_topic_outcomes_are_only_journalled(storage: str, cluster: str) -> None:
    clients = Clients({"AzureWebJobsStorage": storage})
    record_outcomes(
        clients, cluster, "etcd-backup", [_outcome(ActionKind.BACKUP)], operation_id="op-1", now=NOW
    )
    (entry,) = clients.journal.entries([(cluster, "etcd-backup")])
    assert entry.operation_id == "op-1"


def test_a_topic_address_that_is_nonsense_hides_no_outcome(storage: str, cluster: str) -> None:
    clients = Clients(
        {"AzureWebJobsStorage": storage, "KUBEKEEPER_EVENTS_ENDPOINT": "\\", "KUBEKEEPER_EVENTS_KEY": "k"}
    )
    record(clients, _plan(cluster), [_outcome(ActionKind.BACKUP)])
    reasons = {entry.reason for entry in clients.journal.entries([(cluster, "etcd-backup")])}
    assert reasons == {"Due", "EventsNotPublished"}


def test_every_kind_of_action_has_its_event() -> None:
    assert set(VERBS) == set(ActionKind)


def test_the_journal_is_read_newest_first_over_several_clusters(clients: Clients, cluster: str) -> None:
    for minute in range(6):
        clients.journal.add(
            Entry(
                at=NOW + timedelta(minutes=minute),
                cluster=f"{cluster}-{minute % 2}",
                automation="etcd-backup",
                kind="Outcome",
                message=str(minute),
            )
        )
    pairs = [(f"{cluster}-0", "etcd-backup"), (f"{cluster}-1", "etcd-backup")]
    assert [entry.message for entry in clients.journal.entries(pairs, 4)] == ["5", "4", "3", "2"]


def test_what_is_too_long_for_a_row_is_cut_not_lost(clients: Clients, cluster: str) -> None:
    entry = Entry(
        at=NOW,
        cluster=cluster,
        automation="etcd-backup",
        kind="Outcome",
        message="m" * 40_000,
        data={"page": "x" * 40_000},
    )
    clients.journal.add(entry)
    (found,) = clients.journal.entries([(cluster, "etcd-backup")])
    assert found.message == "m" * 2000
    assert "too many" in found.data["truncated"]
    left = tuple({"subject": f"b{n}", "reason": "Kept", "message": "m" * 50} for n in range(1000))
    clients.journal.put_summary(Summary(at=NOW, cluster=cluster, automation="etcd-backup", left_alone=left))
    summary = clients.journal.summary(cluster, "etcd-backup")
    assert summary is not None
    assert summary.left_alone[-1]["message"] == "and 900 more"


def test_the_reason_of_a_failing_message_is_kept_once_with_its_attempts(clients: Clients) -> None:
    queue, text = f"q-{uuid.uuid4().hex[:8]}", b"garbage"
    assert clients.journal.failed(queue, text, "first", 1, NOW)
    assert not clients.journal.failed(queue, text, "second", 2, NOW + timedelta(minutes=1))
    (failure,) = clients.journal.failures(queue).values()
    assert (failure.reason, failure.attempts, failure.first_at) == ("second", 2, NOW)
    clients.journal.forget_failure(queue, text)
    assert clients.journal.failures(queue) == {}


def test_sizes_of_pools_are_noted_when_they_change_and_read_from_a_time_on(storage: str) -> None:
    journal, cluster = Clients({"AzureWebJobsStorage": storage}).journal, f"c-{uuid.uuid4().hex[:8]}"

    def sizes(minute: int, nodes: int, waiting: int = 0) -> Sizes:
        pools = (PoolSize(pool="agents", nodes=nodes, ready=nodes, min=0, max=9),)
        return Sizes(at=NOW + timedelta(minutes=minute), pools=pools, waiting_pods=waiting)

    for one in (sizes(0, 2), sizes(1, 2), sizes(2, 2, waiting=4), sizes(3, 3), sizes(4, 3), sizes(5, 2)):
        journal.note_sizes(cluster, one)
    changes = [sizes(0, 2), sizes(2, 2, waiting=4), sizes(3, 3), sizes(5, 2)]
    assert journal.sizes(cluster, NOW - timedelta(days=1)) == changes
    assert journal.sizes(cluster, NOW + timedelta(minutes=4)) == changes[2:], "as it was then, and since"
    assert journal.sizes("another", NOW) == []

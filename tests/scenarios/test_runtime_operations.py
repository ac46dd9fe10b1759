"""One-off operations: each id once, resumed, never dropped, progress and outcome readable."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scenarios import runtime_world as world

from sandbox.azurite import Azurite
from shared import work
from shared.bootstrap import Clients
from shared.errors import MessageError, RunFailedError, SettingsError, UnavailableError
from shared.model.plan import Action, ActionKind, Outcome, Status
from shared.operations import catalogue, dispatch, schema
from shared.operations.dispatch import get_operation, submit
from shared.runtime.event import Incoming, accept
from shared.runtime.message import Nudge, Received
from shared.runtime.operation import OperationMessage, OperationState

pytestmark = pytest.mark.azurite

CLUSTERS = ["prod", "once", "twice", "held", "flaky", "bad", "paused", "dirty", "slow"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    restore = world.install_probe()
    with Azurite() as azurite:
        yield world.environ(azurite.connection_string, tmp_path_factory.mktemp("operations"), CLUSTERS)
    restore()


@pytest.fixture
def clients(settings: dict[str, str]) -> Clients:
    clients = Clients(settings)
    clients.queue(dispatch.QUEUE).ensure()
    clients.queue(world.AUTOMATION).ensure()
    return clients


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., list[Outcome]]], None]:
    """Lets a test say what operation `backup` does."""

    def use(function: Callable[..., list[Outcome]]) -> None:
        module = ModuleType("handler_of_a_test")
        module.handle = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        operation = dataclasses.replace(catalogue.OPERATIONS["backup"], handler="handler_of_a_test:handle")
        monkeypatch.setitem(catalogue.OPERATIONS, "backup", operation)

    return use


def _message(
    cluster: str, identity: str | None = None, operation: str = "backup", **parameters: Any
) -> bytes:
    message = OperationMessage(id=identity, operation=operation, cluster=cluster, parameters=parameters)
    return message.encode().encode()


def _deliver(clients: Clients, body: bytes, attempt: int = 1, message_id: str | None = None) -> None:
    dispatch.work_off(clients, Received(id=message_id or uuid.uuid4().hex, body=body, dequeue_count=attempt))


def _outcome(status: Status, message: str, **data: Any) -> list[Outcome]:
    action = Action(kind=ActionKind.VERIFY, target="x", reason="Requested", message="-")
    return [Outcome(action=action, status=status, message=message, data=data)]


def test_the_same_id_runs_once_however_often_it_comes(clients: Clients) -> None:
    for _ in range(3):
        _deliver(clients, _message("once", "once-1"))
    assert len(world.effects(clients, "once")) == 1
    record = get_operation(clients, "once-1")
    assert record is not None
    assert (record.state, record.attempts) == (OperationState.SUCCEEDED, 1)
    assert [outcome["status"] for outcome in record.outcomes] == ["Succeeded"]
    assert [entry.kind for entry in clients.journal.of_operation("once-1")] == ["Operation", "Outcome"]


def test_a_message_without_id_is_its_own_identity(clients: Clients) -> None:
    for attempt in (1, 2):
        _deliver(clients, _message("twice"), attempt, "same-message")
    assert len(world.effects(clients, "twice")) == 1
    _deliver(clients, _message("twice"))
    assert len(world.effects(clients, "twice")) == 2


def test_workers_that_get_the_same_id_at_once_run_it_once(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "HELD_DELAY", timedelta(seconds=1))

    def deliver(_number: int) -> None:
        _deliver(Clients(settings), _message("slow", "slow-1"))

    clients = Clients(settings)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(deliver, range(4)))
    while clients.queue(dispatch.QUEUE).count():  # those that met the claim held have queued up again
        for message in clients.queue(dispatch.QUEUE).receive(timedelta(seconds=30)):
            world.handle(clients, dispatch.QUEUE, message)
            clients.queue(dispatch.QUEUE).delete(message)
        time.sleep(0.1)
    assert len(world.effects(clients, "slow")) == 1


def test_an_id_used_for_another_request_is_refused(clients: Clients) -> None:
    _deliver(clients, _message("once", "mine", "pause"))
    with pytest.raises(MessageError, match="'mine' was already used for another request; choose a new id"):
        _deliver(clients, _message("once", "mine", "resume"))


def test_an_operation_that_meets_a_held_claim_waits_in_the_queue(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "HELD_DELAY", timedelta(seconds=1))
    claim = clients.claims.acquire("held", world.AUTOMATION)
    assert claim is not None
    with claim:
        _deliver(clients, _message("held"), message_id="without-id")
        record = get_operation(clients, "message-without-id")
        assert record is not None
        assert record.state is OperationState.ACCEPTED
        assert record.progress == "waiting for another run of etcd-backup"
        assert world.effects(clients, "held") == []
    assert clients.queue(dispatch.QUEUE).peek() == ()
    deadline = time.monotonic() + 60
    while not (waiting := clients.queue(dispatch.QUEUE).receive(timedelta(seconds=30))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert json.loads(waiting[0].text)["id"] == "message-without-id", "it stays the same operation"
    world.handle(clients, dispatch.QUEUE, waiting[0])
    clients.queue(dispatch.QUEUE).delete(waiting[0])
    assert len(world.effects(clients, "held")) == 1


def test_a_failure_that_may_mend_is_delivered_again_until_it_succeeds(clients: Clients, handler) -> None:
    def fails(*_: Any) -> list[Outcome]:
        raise UnavailableError("no answer from etcd; password=hunter2")

    handler(fails)
    with pytest.raises(UnavailableError):
        _deliver(clients, _message("flaky", "flaky-1"))
    record = get_operation(clients, "flaky-1")
    assert record is not None
    assert (record.state, record.message) == (
        OperationState.RUNNING,
        "no answer from etcd; password=[redacted]",
    )
    with pytest.raises(UnavailableError):
        _deliver(clients, _message("flaky", "flaky-1"), clients.max_dequeue_count)
    record = get_operation(clients, "flaky-1")
    assert record is not None
    assert (record.state, record.attempts) == (OperationState.FAILED, 2)
    handler(lambda *_: _outcome(Status.SUCCEEDED, "at last"))
    _deliver(clients, _message("flaky", "flaky-1"))  # replayed from the poison queue
    record = get_operation(clients, "flaky-1")
    assert record is not None
    assert (record.state, record.message, record.attempts) == (OperationState.SUCCEEDED, "at last", 3)


def test_a_bad_answer_is_an_answer_and_is_not_asked_again(clients: Clients, handler) -> None:
    handler(lambda *_: _outcome(Status.FAILED, "frame 17 is damaged", final=True))
    _deliver(clients, _message("bad", "bad-1"))
    record = get_operation(clients, "bad-1")
    assert record is not None
    assert (record.state, record.is_final, record.message) == (
        OperationState.FAILED,
        True,
        "frame 17 is damaged",
    )
    handler(lambda *_: pytest.fail("it must not run again"))
    _deliver(clients, _message("bad", "bad-1"))


def test_failed_outcomes_are_raised_so_that_the_platform_delivers_again(clients: Clients, handler) -> None:
    handler(lambda *_: _outcome(Status.FAILED, "etcd did not answer"))
    with pytest.raises(RunFailedError, match=r"operation 'bad-2' \(backup\): etcd did not answer"):
        _deliver(clients, _message("bad", "bad-2"))


def test_progress_is_readable_while_it_runs(clients: Clients, handler) -> None:
    seen = []

    def reports(_cluster: Any, _parameters: Any, _clients: Any, claim: Any, _now: Any) -> list[Outcome]:
        claim.progress("12 of 200 MB")
        record = get_operation(clients, "progress-1")
        assert record is not None
        seen.append((record.state, record.progress))
        return _outcome(Status.SUCCEEDED, "done")

    handler(reports)
    _deliver(clients, _message("prod", "progress-1"))
    assert seen == [(OperationState.RUNNING, "12 of 200 MB")]


def test_a_paused_automation_leaves_the_cluster_alone_until_resumed(clients: Clients) -> None:
    world.wish(clients, "paused", "first")
    _deliver(clients, _message("paused", "p-1", "pause", reason="node upgrade"))
    _deliver(clients, _message("paused", "p-2", "reconcile"))
    assert world.effects(clients, "paused") == []
    summary = clients.journal.summary("paused", world.AUTOMATION)
    assert summary is not None
    assert summary.left_alone[0]["reason"] == "Paused"
    assert "node upgrade; resume to go on" in summary.left_alone[0]["message"]
    _deliver(clients, _message("paused", "p-3", "resume"))
    _deliver(clients, _message("paused", "p-4", "reconcile"))
    assert len(world.effects(clients, "paused")) == 1


def test_a_nudge_that_met_a_running_operation_is_answered_after_it(clients: Clients, handler) -> None:
    def nudged_meanwhile(*_: Any) -> list[Outcome]:
        nudge = Nudge(cluster="dirty", automation=world.AUTOMATION)
        work.work_off(
            Clients(clients.environ), world.AUTOMATION, Received(id="n", body=nudge.encode().encode())
        )
        return _outcome(Status.SUCCEEDED, "done")

    handler(nudged_meanwhile)
    world.wish(clients, "dirty", "first")
    _deliver(clients, _message("dirty", "dirty-1"))
    assert world.effects(clients, "dirty") == []
    assert world.deliver(clients, world.AUTOMATION) == 1, "the follow-up"
    assert len(world.effects(clients, "dirty")) == 1


@pytest.mark.parametrize(
    ("operation", "cluster", "parameters", "said"),
    [
        ("make-coffee", "prod", {}, "unknown operation 'make-coffee'; there are: approve, backup,"),
        ("rolling-upgrade", "prod", {}, "missing required field `pool`; it takes pool, image, version"),
        ("backup", "nowhere", {}, "unknown cluster 'nowhere'; the configuration has: prod,"),
        ("backup", "prod", {"speed": 9}, "unknown field `speed`; it takes full, reason"),
        ("verify-backup", "prod", {"backup": 5}, "Expected `str | null`, got `int` - at `$.backup`"),
        ("etcd-health", "prod", {"deep": True}, "it takes none"),
        ("pause", "prod", {"automation": "gardening"}, "unknown automation 'gardening'"),
    ],
)
def test_a_request_that_cannot_work_is_refused_in_one_line(
    clients: Clients, operation: str, cluster: str, parameters: dict[str, Any], said: str
) -> None:
    identity = uuid.uuid4().hex
    with pytest.raises((MessageError, SettingsError)) as raised:
        _deliver(clients, _message(cluster, identity, operation, **parameters))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    record = get_operation(clients, identity)
    assert record is not None
    assert (record.state, record.message) == (OperationState.FAILED, str(raised.value))


@pytest.mark.parametrize(
    ("kind", "data", "nudges"),
    [
        ("Kubekeeper.Cluster.EtcdUnhealthy", {"cluster": "prod"}, 1),
        ("Kubekeeper.Cluster.EtcdUnhealthy", {"cluster": "nowhere"}, 0),
        ("Kubekeeper.Cluster.EtcdUnhealthy", {"cluster": 7}, 0),
        ("Kubekeeper.Cluster.EtcdUnhealthy", {}, 0),
        ("Kubekeeper.Cluster.NodeNotReady", {"cluster": "prod"}, 0),
        ("Microsoft.Resources.ResourceWriteSuccess", {"cluster": "prod"}, 0),
        ("", {}, 0),
    ],
)
def test_an_event_becomes_nudges_for_those_who_react_to_it(
    clients: Clients, kind: str, data: dict[str, Any], nudges: int
) -> None:
    event = Incoming(id="1", type=kind, subject="s", data=data)
    assert accept(clients, event) == nudges
    sent = clients.queue(world.AUTOMATION).receive(timedelta(seconds=30))
    for message in sent:
        clients.queue(world.AUTOMATION).delete(message)
    assert len(sent) == nudges


def test_submitting_checks_before_it_sends(clients: Clients) -> None:
    for operation, cluster in (("backup", "nowhere"), ("make-coffee", "prod"), ("scale", "prod")):
        with pytest.raises((MessageError, SettingsError)):
            submit(clients, operation, cluster, {})
    with pytest.raises(MessageError):
        submit(clients, "backup", "prod", {}, operation_id="not/a/key")
    assert clients.queue(dispatch.QUEUE).count() == 0
    identity = submit(clients, "backup", "prod", {"reason": "before the upgrade"})
    assert world.deliver(clients, dispatch.QUEUE) == 1
    record = get_operation(clients, identity)
    assert record is not None
    assert record.is_over


def test_the_catalogue_knows_every_operation_of_the_contract() -> None:
    assert set(catalogue.OPERATIONS) == {
        *("scale", "backup", "verify-backup", "restore-drill", "release-disk", "sync-ingress", "cordon"),
        *("uncordon", "drain", "replace-node", "rolling-upgrade", "etcd-health", "etcd-defrag"),
        *("reconcile", "approve", "pause", "resume"),
    }


def test_the_published_schemas_say_what_the_app_accepts() -> None:
    directory = Path(world.ROOT) / "docs" / "reference" / "operations"
    committed = {path.name: path.read_bytes() for path in directory.glob("*.schema.json")}
    assert committed == schema.documents(), "run python -m shared.operations.schema docs/reference/operations"

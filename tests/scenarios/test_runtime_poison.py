"""Nothing is dropped: what fails for good reaches the poison queue with its reason, and can be sent again.

The app's own triggers in a local Functions host, on an Azurite of their own; only the host's patience is
shortened.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from scenarios import runtime_world as world

from sandbox.azurite import Azurite
from sandbox.host.process import HostProcess
from shared.bootstrap import Clients
from shared.operations.dispatch import QUEUE
from shared.runtime import poison
from shared.runtime.message import Nudge
from shared.runtime.operation import OperationMessage, OperationState

pytestmark = [pytest.mark.azurite, pytest.mark.slow]

GARBAGE = ("}" + "?" * 62 + "{") * 1022  # almost 64 KiB, with the XML around it
GHOST = OperationMessage(id="ghost-1", operation="pause", cluster="ghost", parameters={"reason": "test"})


@dataclass
class Scene:
    clients: Clients
    host: HostProcess
    directory: Path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("poison")
    _app(directory)
    with Azurite() as azurite:
        settings = world.environ(
            azurite.connection_string,
            directory,
            ["prod"],
            KUBEKEEPER_AUTOSCALING_SCHEDULE="0 0 0 1 1 *",
            KUBEKEEPER_DISK_RELEASE_SCHEDULE="0 0 0 1 1 *",
            KUBEKEEPER_ETCD_BACKUP_SCHEDULE="0 0 0 1 1 *",
            KUBEKEEPER_INGRESS_SYNC_SCHEDULE="0 0 0 1 1 *",
        )
        with HostProcess(directory, settings, log=directory / "log") as host:
            clients = Clients(settings)
            for name in (QUEUE, world.AUTOMATION):
                clients.queue(name).ensure()
            clients.queue(QUEUE).send(GARBAGE)
            clients.queue(QUEUE).send(GHOST.encode())
            clients.queue(QUEUE).send('{"operation": "make-coffee", "cluster": "prod"}')
            clients.queue(QUEUE).send('{"operation": "rolling-upgrade", "cluster": "prod"}')
            clients.queue(world.AUTOMATION).send(
                Nudge(cluster="nowhere", automation=world.AUTOMATION).encode()
            )
            _until(lambda: len(poison.messages(clients)) == 5, "five messages to be poisoned")
            yield Scene(clients, host, directory)


def _app(directory: Path) -> None:
    for name in ("function_app.py", "functions", "shared"):
        (directory / name).symlink_to(world.ROOT / name)
    shutil.copy(world.ROOT / "local.settings.example.json", directory)
    host = json.loads((world.ROOT / "host.json").read_text())
    host["extensions"]["queues"] |= {"visibilityTimeout": "00:00:00", "maxPollingInterval": "00:00:01"}
    (directory / "host.json").write_text(json.dumps(host))


def _until(condition: Callable[[], Any], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.1)


def _by_text(scene: Scene, part: str) -> poison.PoisonMessage:
    (found,) = [message for message in poison.messages(scene.clients) if part in message.text]
    return found


def test_each_poisoned_message_is_kept_as_it_was_with_its_reason(scene: Scene) -> None:
    garbage = _by_text(scene, "}?")
    assert garbage.text == GARBAGE
    assert garbage.queue == QUEUE
    assert "neither a JSON object nor one in base64" in garbage.reason
    assert garbage.attempts == scene.clients.max_dequeue_count
    assert "unknown operation 'make-coffee'" in _by_text(scene, "make-coffee").reason
    assert "missing required field `pool`" in _by_text(scene, "rolling-upgrade").reason
    assert "unknown cluster 'nowhere'" in _by_text(scene, "nowhere").reason


def test_what_was_poisoned_is_in_the_journal_once(scene: Scene) -> None:
    entries = scene.clients.journal.entries([("ghost", QUEUE)])
    assert [(entry.kind, entry.reason) for entry in entries] == [("Failed", "MessagePoisoned")]
    assert "after 5 attempts: unknown cluster 'ghost'" in entries[0].message
    (unreadable,) = scene.clients.journal.entries([("-", QUEUE)])
    assert unreadable.target == "operations-poison"


def test_an_operation_that_always_failed_is_replayed_and_then_succeeds(scene: Scene) -> None:
    failed = scene.clients.operations.read("ghost-1")
    assert failed is not None
    assert failed.state is OperationState.FAILED
    assert "unknown cluster 'ghost'" in failed.message
    message = _by_text(scene, "ghost-1")
    world.environ("", scene.directory, ["prod", "ghost"])  # the configuration is mended
    assert poison.replay(scene.clients, QUEUE, {message.id}) == 1
    _until(lambda: _state(scene, "ghost-1") is OperationState.SUCCEEDED, "the replayed operation")
    assert "ghost-1" not in {m.text for m in poison.messages(scene.clients)}
    assert scene.clients.claims.state("ghost", world.AUTOMATION).paused is not None


def test_dropping_takes_only_the_messages_named(scene: Scene) -> None:
    before = {message.id for message in poison.messages(scene.clients, QUEUE)}
    garbage = _by_text(scene, "}?")
    assert poison.drop(scene.clients, QUEUE, {garbage.id}) == 1
    left = poison.messages(scene.clients, QUEUE)
    assert {message.id for message in left} == before - {garbage.id}
    assert all(message.reason for message in left)


def test_health_tells_anybody_that_the_app_can_work(scene: Scene) -> None:
    answer = scene.host.get("/api/health")
    assert answer.status == 200
    assert answer.json()["status"] == "ok"
    assert "prod" not in answer.body.decode()


def test_a_tick_is_visible_in_health_and_nudges_every_cluster(scene: Scene) -> None:
    asked = datetime.now(UTC).replace(microsecond=0)
    assert scene.host.run_function("etcd_backup_timer").status == 202
    _until(lambda: "etcd-backup" in scene.host.get("/api/health").json()["lastTicks"], "the tick")
    at = datetime.fromisoformat(scene.host.get("/api/health").json()["lastTicks"]["etcd-backup"])
    assert at >= asked


def test_reconcile_by_request_needs_the_key_and_says_what_is_wrong(scene: Scene) -> None:
    key = scene.host.keys.function
    assert scene.host.post("/api/reconcile/prod/etcd-backup").status == 401
    assert scene.host.post("/api/reconcile/prod/etcd-backup", key=key).status == 202
    answer = scene.host.post("/api/reconcile/nowhere/etcd-backup", key=key)
    assert (answer.status, "unknown cluster 'nowhere'" in answer.json()["error"]) == (404, True)
    answer = scene.host.post("/api/reconcile/prod/autoscaling", key=key)
    assert (answer.status, "not configured for autoscaling" in answer.json()["error"]) == (404, True)


@pytest.mark.parametrize("schema", ["EventGrid", "CloudEvents"])
def test_an_event_of_either_schema_is_taken(scene: Scene, schema: str) -> None:
    kind, data = "Kubekeeper.Cluster.EtcdUnhealthy", {"cluster": "prod"}
    event: Any = [
        {
            "id": "1",
            "topic": "t",
            "subject": "s",
            "eventType": kind,
            "eventTime": "2026-11-23T10:00:00Z",
            "dataVersion": "1",
            "data": data,
        }
    ]
    if schema == "CloudEvents":
        event = {"specversion": "1.0", "id": "1", "source": "/x", "type": kind, "data": data}
    assert scene.host.send_events("cluster_event", event).status in (200, 202)


def test_an_event_nobody_wants_is_noted_and_let_go(scene: Scene) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/x", "type": "Contoso.Coffee.Ready", "data": "?"}
    assert scene.host.send_events("cluster_event", event).status in (200, 202)
    rows = list(scene.clients.table("kubekeeperjournal").query("PartitionKey eq 'ignored|event'"))
    assert [row["reason"] for row in rows] == [
        "no automation reacts to events of type 'Contoso.Coffee.Ready'"
    ]


def _state(scene: Scene, identity: str) -> OperationState | None:
    record = scene.clients.operations.read(identity)
    return record.state if record else None

"""Whatever arrives in a queue or from Event Grid: accepted, or refused with a reason and found again.

The code behind the functions runs over storage in memory, which has room for tens of thousands of messages;
the host is played as it is: five deliveries, then the poison queue. What a real host does with messages that
fail is shown in test_runtime_poison.py. KUBEKEEPER_SWEEP=full runs 50,000 payloads instead of 1,500.
"""

from __future__ import annotations

import json
import os
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from azure.functions import meta
from azure.functions.eventgrid import EventGridEventInConverter
from memory_storage import Account, MemoryBlobs, MemoryQueue, MemoryTable

from shared.bootstrap import Clients
from shared.errors import AutomationError
from shared.operations import dispatch
from shared.operations.catalogue import OPERATIONS
from shared.runtime import poison
from shared.runtime.automation import AUTOMATIONS
from shared.runtime.event import accept, incoming
from shared.runtime.message import Received
from shared.work import work_off

pytestmark = pytest.mark.no_cover

PAYLOADS = 50_000 if os.environ.get("KUBEKEEPER_SWEEP") == "full" else 1_500
NOW = datetime(2026, 11, 25, 10, tzinfo=UTC)
# A cluster that no automation looks after: what is accepted is recorded, and changes nothing anywhere.
CONFIGURATION = """\
clusters:
  - name: prod
    etcd: {endpoints: ["http://127.0.0.1:9"]}
"""
WORDS = [
    "prod",
    "nope",
    "",
    "../x",
    "a" * 300,
    "ä\u0000\u2028",
    "1",
    "Timer",
    "etcd-backup",
    "autoscaling",
    "</script>",
]
KEYS = [
    *("id", "operation", "cluster", "parameters", "automation", "reason", "after", "specversion"),
    *("eventType", "type", "data", "data_base64", "pool", "count", "subject", "source", "dataVersion"),
]
RIGHT = ["agents", "autoscaling", "10m", "1.35.0", "contoso:nodes:1-35:1.0.0", 2, True]
EVENT_TYPES = sorted({kind for automation in AUTOMATIONS.values() for kind in automation.events})


class MemoryClients(Clients):
    def __init__(self, path: Path) -> None:
        path.write_text(CONFIGURATION)
        super().__init__({"KUBEKEEPER_CONFIG": str(path)})
        self.account = Account(lambda: NOW)

    def now(self) -> datetime:
        return NOW

    def blobs(self, container: str) -> Any:
        return MemoryBlobs(self.account, container, lambda _: None)

    def queue(self, name: str) -> Any:
        return MemoryQueue(self.account, name, lambda _: None)

    def table(self, name: str) -> Any:
        return MemoryTable(self.account, name, lambda _: None)


@pytest.fixture
def clients(tmp_path: Path) -> MemoryClients:
    return MemoryClients(tmp_path / "kubekeeper.yaml")


def value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return draw.choice([None, True, -1, 0, 2**70, 1.5, 1e308])
    if kind < 5:
        return draw.choice([*WORDS, *OPERATIONS, *EVENT_TYPES])
    if kind == 5:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return document(draw, depth + 1)


def document(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    return {draw.choice(KEYS): value(draw, depth) for _ in range(draw.randrange(6))}


def parameters(draw: random.Random, name: str) -> dict[str, Any]:
    """Most of the operation's own, many of them as they should be, now and then one that it has not."""
    fields = msgspec.structs.fields(OPERATIONS[name].parameters)
    made = {
        field.encode_name: draw.choice([*RIGHT, value(draw)])
        for field in fields
        if field.required or draw.random() < 0.5
    }
    return made | (document(draw) if draw.random() < 0.1 else {})


def operation(draw: random.Random) -> dict[str, Any]:
    """Nearly right: what a person's script gets wrong."""
    name = draw.choice([*OPERATIONS, "scael"])
    made: dict[str, Any] = {"operation": name, "cluster": draw.choice(["prod", "nope"])}
    if name in OPERATIONS and draw.random() < 0.7:
        made["parameters"] = parameters(draw, name)
    made |= document(draw) if draw.random() < 0.4 else {}
    return {"specversion": "1.0", "id": "e", "data": made} if draw.random() < 0.2 else made


def body(draw: random.Random) -> bytes:
    kind = draw.randrange(5)
    if kind == 0:
        return draw.randbytes(draw.randrange(200))
    text = json.dumps(operation(draw) if kind > 2 else document(draw)).encode()
    if kind == 1 and text:  # cut or flipped on the way
        at = draw.randrange(len(text))
        return text[:at] if draw.random() < 0.5 else text[:at] + draw.randbytes(1) + text[at + 1 :]
    return text


def deliver(clients: MemoryClients, queue: str, content: bytes, number: int) -> str:
    """As the host: until it succeeds, or into the poison queue; returns the last refusal."""
    refusal = ""
    for attempt in range(1, clients.max_dequeue_count + 1):
        received = Received(id=f"m-{number}", body=content, dequeue_count=attempt, inserted_at=NOW)
        try:
            if queue == dispatch.QUEUE:
                dispatch.work_off(clients, received)
            else:
                work_off(clients, queue, received)
        except AutomationError as error:
            refusal = str(error)
        else:
            return ""
    clients.queue(queue + poison.SUFFIX).send(content.decode("latin-1"))
    return refusal


@pytest.mark.parametrize("queue", [dispatch.QUEUE, *AUTOMATIONS])
def test_a_message_is_accepted_or_refused_in_one_line_and_kept(clients: MemoryClients, queue: str) -> None:
    draw = random.Random(f"fuzz {queue}")
    refused: dict[bytes, str] = {}
    accepted = 0
    for number in range(PAYLOADS // (len(AUTOMATIONS) + 1)):
        content = body(draw)
        refusal = deliver(clients, queue, content, number)
        accepted += not refusal
        if refusal:
            refused[content] = refusal
            assert "\n" not in refusal
            assert len(refusal) < 700, refusal
    assert refused
    reasons = {failure.reason for failure in clients.journal.failures(queue).values()}
    assert {" ".join(refusal.split()) for refusal in refused.values()} == reasons
    kept = {message.text.encode("latin-1") for message in clients.queue(queue + poison.SUFFIX).peek(10**6)}
    assert kept == set(refused)
    print(f"{queue}: {accepted} accepted, {PAYLOADS // (len(AUTOMATIONS) + 1) - accepted} refused")


def test_an_event_is_taken_whatever_it_holds_and_only_hints_come_of_it(clients: MemoryClients) -> None:
    draw = random.Random("fuzz events")
    for number in range(PAYLOADS // 3):
        made = document(draw) | {"id": str(number), "data": value(draw)}
        if draw.random() < 0.5:
            made |= {"specversion": "1.0", "source": "s", "type": draw.choice([*EVENT_TYPES, "Odd"])}
        else:
            made |= {"eventType": draw.choice([*EVENT_TYPES, "Odd"]), "subject": "s", "topic": "t"}
            made |= {"eventTime": "2026-11-25T10:00:00Z", "dataVersion": "1"}
            made.pop("specversion", None)
        event = EventGridEventInConverter.decode(meta.Datum(json.dumps(made), "json"), trigger_metadata=None)
        assert accept(clients, incoming(event)) == 0  # no automation is configured
    assert not any(clients.account.queues.values())

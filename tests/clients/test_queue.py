"""Queue Storage as the product uses it, on a real Azurite."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from shared.clients.queue import MAX_TEXT_BYTES, Queue, queue_names, queue_service
from shared.errors import ConflictError, MessageError, NotFoundError, SettingsError

pytestmark = pytest.mark.azurite


@pytest.fixture
def queue(storage: str) -> Queue:
    service = queue_service({"AzureWebJobsStorage": storage})
    queue = Queue(service.get_queue_client(f"queue-{uuid.uuid4().hex[:12]}"))
    queue.ensure()
    return queue


def test_text_travels_as_it_is(queue: Queue) -> None:
    queue.ensure()
    text = '{"a": "<&> ü \\n", "b": 1}'
    identity = queue.send(text)
    (seen,) = queue.peek()
    assert (seen.id, seen.text, seen.receipt, seen.dequeue_count) == (identity, text, "", 0)
    assert abs(seen.inserted_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_received_message_is_hidden_until_it_is_put_back(queue: Queue) -> None:
    queue.send("x")
    (taken,) = queue.receive(timedelta(seconds=60))
    assert queue.receive(timedelta(seconds=60)) == ()
    assert queue.count() == 1
    queue.put_back(taken)
    queue.put_back(taken)  # no longer ours: nothing happens
    (again,) = queue.receive(timedelta(seconds=60))
    assert again.dequeue_count == 2
    queue.delete(again)
    assert queue.count() == 0


def test_a_delayed_message_is_not_visible_yet(queue: Queue) -> None:
    queue.send("later", timedelta(seconds=60))
    assert queue.peek() == ()
    assert queue.count() == 1


def test_a_stale_receipt_deletes_nothing(queue: Queue) -> None:
    queue.send("x")
    (first,) = queue.receive(timedelta(seconds=60))
    queue.put_back(first)
    queue.receive(timedelta(seconds=60))
    with pytest.raises(ConflictError, match="delete a message"):
        queue.delete(first)
    assert queue.count() == 1


def test_a_text_that_cannot_be_stored_is_refused_before_it_is_sent(queue: Queue) -> None:
    with pytest.raises(MessageError, match=r"65538 bytes does not fit"):
        queue.send("ü" * (MAX_TEXT_BYTES // 2 + 1))


def test_a_missing_queue_and_a_missing_account_are_said(storage: str) -> None:
    service = queue_service({"AzureWebJobsStorage": storage})
    missing = Queue(service.get_queue_client("nowhere-to-be-seen"))
    with pytest.raises(NotFoundError, match="send to queue 'nowhere-to-be-seen'"):
        missing.send("x")
    with pytest.raises(SettingsError, match="no storage account is configured"):
        queue_service({})


def test_queues_are_listed_by_name(queue: Queue, storage: str) -> None:
    assert queue.name in queue_names(queue_service({"AzureWebJobsStorage": storage}))

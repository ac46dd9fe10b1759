"""Storage queues: send, look, take, put back, delete. The text travels as it is, without base64.

The only code that speaks to Queue Storage. The Functions host takes messages off the work queues itself
(`messageEncoding: none` in host.json, so that plain and base64 bodies both reach the app); this client sends
nudges and follow-ups, and reads poison queues. Errors are those of `shared.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.clients.storage import CONNECTION, RETRIES, TIMEOUTS, connect, translated
from shared.errors import ApiError, ConflictError, MessageError, NotFoundError

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.storage.queue import QueueClient, QueueServiceClient

MAX_TEXT_BYTES = 64 * 1024
"""The service's limit on the stored text of one message."""

MAX_DELAY = timedelta(days=7)
"""The service's limit on the visibility delay."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message as seen in a queue; `receipt` is empty when it was only looked at."""

    id: str
    text: str
    dequeue_count: int
    inserted_at: datetime
    receipt: str = ""


class Queue:
    """One queue. Methods may be called from several threads."""

    def __init__(self, client: QueueClient) -> None:
        self._client = client
        self.name: str = client.queue_name

    def ensure(self) -> None:
        """Create the queue unless it exists."""
        try:
            with translated(f"create queue '{self.name}'"):
                self._client.create_queue()
        except ApiError as error:
            # The service answers 204 when it is there already; some versions of the SDK raise then.
            if error.code != "QueueAlreadyExists":
                raise

    def send(self, text: str, delay: timedelta = timedelta(0)) -> str:
        """Add a message that becomes visible after `delay`, returning its id; it never expires.

        NotFoundError when there is no such queue; MessageError when the text is too long to be stored.
        """
        size = len(text.encode())
        if size > MAX_TEXT_BYTES:
            raise MessageError(
                f"a message of {size} bytes does not fit into queue '{self.name}' ({MAX_TEXT_BYTES})"
            )
        seconds = max(0, round(min(delay, MAX_DELAY).total_seconds()))
        with translated(f"send to queue '{self.name}'"):
            return str(self._client.send_message(text, visibility_timeout=seconds, time_to_live=-1).id)

    def peek(self, count: int = 32) -> tuple[Message, ...]:
        """Up to 32 visible messages from the front, left where and as they are."""
        with translated(f"look into queue '{self.name}'"):
            return tuple(_message(item) for item in self._client.peek_messages(max_messages=count))

    def receive(self, invisible: timedelta, count: int = 32) -> tuple[Message, ...]:
        """Up to 32 messages from the front, hidden from others for `invisible` (1 s to 7 days)."""
        seconds = round(invisible.total_seconds())
        with translated(f"receive from queue '{self.name}'"):
            pages = self._client.receive_messages(
                max_messages=count, messages_per_page=count, visibility_timeout=seconds
            )
            return tuple(_message(item) for item in pages)

    def put_back(self, message: Message) -> None:
        """Make a received message visible at once; nothing happens if it is no longer ours."""
        try:
            with translated(f"put a message back into queue '{self.name}'"):
                self._client.update_message(message.id, message.receipt, visibility_timeout=0)
        except (NotFoundError, ConflictError):
            return

    def delete(self, message: Message) -> None:
        """Delete a received message; ConflictError when another has it now, NotFoundError when it is gone."""
        with translated(f"delete a message from queue '{self.name}'"):
            self._client.delete_message(message.id, message.receipt)

    def count(self) -> int:
        """About how many messages there are, hidden ones included."""
        with translated(f"count the messages of queue '{self.name}'"):
            return int(self._client.get_queue_properties().approximate_message_count or 0)


def queue_service(environ: Mapping[str, str], connection: str = CONNECTION) -> QueueServiceClient:
    """A client of the account's queue service; keep one per process, it holds the HTTP connections."""
    from azure.storage.queue import LinearRetry, QueueServiceClient

    retry = LinearRetry(backoff=1, retry_total=RETRIES, random_jitter_range=1)
    options: dict[str, Any] = {"retry_policy": retry, **TIMEOUTS}
    return connect(
        environ,
        "queue",
        QueueServiceClient.from_connection_string,
        QueueServiceClient,
        options=options,
        connection=connection,
    )


def queue_of_account(account: str, name: str, credential: TokenCredential) -> Queue:
    """A queue of another account than the app's own, as `credential` sees it."""
    from azure.storage.queue import QueueServiceClient

    options: dict[str, Any] = {"retry_total": RETRIES, **TIMEOUTS}
    service = QueueServiceClient(f"https://{account}.queue.core.windows.net", credential, **options)
    return Queue(service.get_queue_client(name))


def queue_names(service: QueueServiceClient) -> tuple[str, ...]:
    """Names of all queues of the account, in order."""
    with translated("list the queues"):
        return tuple(sorted(str(item.name) for item in service.list_queues()))


def _message(item: Any) -> Message:
    return Message(
        id=item.id,
        text=item.content,
        dequeue_count=item.dequeue_count or 0,
        inserted_at=item.inserted_on,
        receipt=item.pop_receipt or "",
    )

"""Queue triggers: batches, invisibility renewed while a function runs, dequeue counts and poison queues.

The rules are those of QueueListener and QueueProcessor in Azure/azure-sdk-for-net (WebJobs extension for
queues). A message is deleted on success, visible again after `visibilityTimeout` on failure, and copied to
`<queue>-poison` when its last allowed attempt failed. A host that dies leaves its messages invisible for the
rest of their ten minutes.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from sandbox.host.configuration import Function, Queues
from sandbox.host.workers import InvocationError, Workers

log = logging.getLogger("host.queue")
INVISIBLE = timedelta(minutes=10)
FIRST_POLL_SECONDS = 0.1
POISON = "-poison"


class QueueListener:
    """Runs one queue function."""

    def __init__(
        self,
        function: Function,
        workers: Workers,
        storage: str,
        settings: Queues,
        invisible: timedelta = INVISIBLE,
    ) -> None:
        from azure.storage.queue import QueueServiceClient

        self.function = function
        self.queue = function.trigger["queueName"]
        self._workers = workers
        self._settings = settings
        self._invisible = int(invisible.total_seconds())
        service = QueueServiceClient.from_connection_string(storage, retry_total=1)
        self._client = service.get_queue_client(self.queue)
        poison = None if self.queue.endswith(POISON) else self.queue + POISON
        self._poison_client = service.get_queue_client(poison) if poison else None
        most = settings.batch_size + settings.new_batch_threshold
        self._threads = ThreadPoolExecutor(most, thread_name_prefix=f"queue {self.queue}")
        self._changed = threading.Condition()
        self._running = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll, name=f"queue {self.queue}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Take no more messages; wait for running calls until `deadline` (monotonic)."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
            while self._running and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _poll(self) -> None:
        from azure.core.exceptions import AzureError, ResourceNotFoundError

        pause = FIRST_POLL_SECONDS
        longest = self._settings.max_polling_interval.total_seconds()
        while self._has_room():
            messages: list[Any] = []
            try:
                messages = self._receive()
            except ResourceNotFoundError:
                pass  # nobody has created the queue yet: that is no work, not an error
            except AzureError as error:
                log.error("queue %s cannot be read: %s", self.queue, error)
            for message in messages:
                with self._changed:
                    self._running += 1
                self._threads.submit(self._process, message)
            if messages:
                pause = FIRST_POLL_SECONDS
            elif self._stopping.wait(pause):
                return
            else:
                pause = min(longest, pause * random.uniform(1.6, 2.4))

    def _has_room(self) -> bool:
        with self._changed:
            while self._running > self._settings.new_batch_threshold and not self._stopping.is_set():
                self._changed.wait()
        return not self._stopping.is_set()

    def _receive(self) -> list[Any]:
        size = self._settings.batch_size
        pages = self._client.receive_messages(
            messages_per_page=size, max_messages=size, visibility_timeout=self._invisible
        )
        return list(pages)

    def _process(self, message: Any) -> None:
        try:
            _Delivery(self, message).run()
        except Exception:
            log.exception("message %s of queue %s", message.id, self.queue)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()


class _Delivery:
    """One message on its way through the function, and out of the queue or back into it."""

    def __init__(self, listener: QueueListener, message: Any) -> None:
        self._listener = listener
        self._client = listener._client
        self._message = message
        self._receipt = message.pop_receipt
        self._lock = threading.Lock()
        self._done = threading.Event()

    def run(self) -> None:
        settings = self._listener._settings
        if self._message.dequeue_count > settings.max_dequeue_count:
            return self._to_poison("its last attempt never finished")
        payload = self._payload()
        if payload is None:
            return self._to_poison("it is not base64, as host.json says messages are")
        renewal = threading.Thread(target=self._renew, name="queue renewal", daemon=True)
        renewal.start()
        try:
            self._invoke(payload)
        except InvocationError as error:
            self._done.set()
            if self._message.dequeue_count >= settings.max_dequeue_count:
                return self._to_poison(str(error))
            return self._release(settings.visibility_timeout)
        finally:
            self._done.set()
        return self._delete()

    def _payload(self) -> str | bytes | None:
        text: str = self._message.content
        if self._listener._settings.encoding == "none":
            return text
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            return None
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw

    def _invoke(self, payload: str | bytes) -> None:
        message = self._message
        metadata = {
            "Id": message.id,
            "DequeueCount": message.dequeue_count,
            "PopReceipt": self._receipt,
            "InsertionTime": message.inserted_on.isoformat(),
            "ExpirationTime": message.expires_on.isoformat(),
            "NextVisibleTime": message.next_visible_on.isoformat(),
        }
        kind = "string" if isinstance(payload, str) else "bytes"
        self._listener._workers.submit(self._listener.function.name, kind, payload, metadata).result()

    def _renew(self) -> None:
        from azure.core.exceptions import AzureError

        while not self._done.wait(self._listener._invisible / 2):
            try:
                self._update(self._listener._invisible)
            except AzureError as error:
                log.error("message %s may be delivered again: %s", self._message.id, error)
                return

    def _update(self, seconds: int) -> None:
        with self._lock:
            updated = self._client.update_message(
                self._message.id, self._receipt, visibility_timeout=seconds, content=self._message.content
            )
            self._receipt = updated.pop_receipt

    def _release(self, delay: timedelta) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            self._update(int(delay.total_seconds()))
        except ResourceNotFoundError:
            log.warning("message %s has been taken by somebody else meanwhile", self._message.id)

    def _delete(self) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            with self._lock:
                self._client.delete_message(self._message.id, self._receipt)
        except ResourceNotFoundError:
            log.warning("message %s has been taken by somebody else meanwhile", self._message.id)

    def _to_poison(self, why: str) -> None:
        from azure.core.exceptions import ResourceExistsError

        poison = self._listener._poison_client
        log.error("Message %s of queue %s is poison: %s", self._message.id, self._listener.queue, why)
        if poison is None:
            return  # a poison queue has no poison queue: its messages stay until they expire
        with contextlib.suppress(ResourceExistsError):
            poison.create_queue()
        poison.send_message(self._message.content, time_to_live=-1)
        self._delete()

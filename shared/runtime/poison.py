"""Messages that failed for good: look at them with the reason, send them again, or drop them.

The host moves a message to `<queue>-poison` after its last attempt. A poison queue has no consumer, so
reading it means taking its messages for a few seconds and putting them back. Called by `keeper poison`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from shared.clients.queue import Message, Queue, queue_names
from shared.errors import NotFoundError
from shared.runtime.journal import text_digest
from shared.runtime.nudge import send

if TYPE_CHECKING:
    from shared.bootstrap import Clients

SUFFIX = "-poison"

_INVISIBLE = timedelta(seconds=30)
_PEEK_LIMIT = 32


class PoisonMessage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One message that failed for good; `queue` is where it came from, `reason` may be empty."""

    id: str
    queue: str
    text: str
    inserted_at: datetime
    reason: str
    attempts: int


def queues(clients: Clients) -> tuple[str, ...]:
    """The work queues that have a poison queue, empty or not."""
    return tuple(
        name.removesuffix(SUFFIX) for name in queue_names(clients.queue_service) if name.endswith(SUFFIX)
    )


def messages(clients: Clients, queue: str | None = None) -> list[PoisonMessage]:
    """All poison messages (of one work queue), oldest first; moves none of them."""
    found: list[PoisonMessage] = []
    for name in [queue] if queue else queues(clients):
        try:
            poison = clients.queue(name + SUFFIX)
            if poison.count() <= _PEEK_LIMIT:
                seen = list(poison.peek())
            else:
                seen = _take_all(poison)
                _put_back(poison, seen)
        except NotFoundError:
            continue
        reasons = clients.journal.failures(name)
        for message in seen:
            failure = reasons.get(text_digest(message.text.encode()))
            found.append(
                PoisonMessage(
                    id=message.id,
                    queue=name,
                    text=message.text,
                    inserted_at=message.inserted_at,
                    reason=failure.reason if failure else "",
                    attempts=failure.attempts if failure else 0,
                )
            )
    return sorted(found, key=lambda message: message.inserted_at)


def replay(clients: Clients, queue: str, ids: Collection[str] | None = None) -> int:
    """Send messages (all, or these) of a poison queue to its work queue again, returning how many.

    Sent before deleted: a crash in between leaves a second copy, which is what every message may have anyway.
    """

    def again(message: Message) -> None:
        clients.journal.forget_failure(queue, message.text.encode())
        send(clients, queue, message.text)

    return _each(clients, queue, ids, again)


def drop(clients: Clients, queue: str, ids: Collection[str] | None = None) -> int:
    """Delete messages (all, or these) of a poison queue for ever, returning how many."""
    return _each(
        clients, queue, ids, lambda message: clients.journal.forget_failure(queue, message.text.encode())
    )


def _each(
    clients: Clients, queue: str, ids: Collection[str] | None, handle: Callable[[Message], None]
) -> int:
    poison = clients.queue(queue + SUFFIX)
    try:
        taken = _take_all(poison)
    except NotFoundError:
        return 0
    wanted = [message for message in taken if ids is None or message.id in ids]
    _put_back(poison, [message for message in taken if message not in wanted])
    for done, message in enumerate(wanted):
        try:
            handle(message)
            poison.delete(message)
        except Exception:
            _put_back(poison, wanted[done:])
            raise
    return len(wanted)


def _take_all(poison: Queue) -> list[Message]:
    taken: list[Message] = []
    while batch := poison.receive(_INVISIBLE):
        taken += batch
    return taken


def _put_back(poison: Queue, taken: Collection[Message]) -> None:
    for message in taken:
        poison.put_back(message)

"""A queue message of the Functions library as the runtime's own value."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import azure.functions as func

if TYPE_CHECKING:
    from shared.runtime.message import Received


def received(message: func.QueueMessage) -> Received:
    """The message with its times in UTC: the library hands over naive ones on some versions."""
    from shared.runtime.message import Received

    inserted: datetime | None = getattr(message, "insertion_time", None)
    if inserted is not None and inserted.tzinfo is None:
        inserted = inserted.replace(tzinfo=UTC)
    return Received(
        id=message.id or "",
        body=message.get_body(),
        dequeue_count=getattr(message, "dequeue_count", None) or 1,
        inserted_at=inserted,
    )

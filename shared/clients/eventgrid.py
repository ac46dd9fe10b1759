"""Publishes CloudEvents 1.0 to an Event Grid topic, or to nothing when none is configured.

Settings: `KUBEKEEPER_EVENTS_ENDPOINT` (the topic's address) and `KUBEKEEPER_EVENTS_KEY` (an access key;
without one the app's identity is used, which needs the role EventGrid Data Sender). Errors are those of
`shared.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from shared.clients.storage import TIMEOUTS, credential, translated

if TYPE_CHECKING:
    from azure.eventgrid import EventGridPublisherClient

ENDPOINT = "KUBEKEEPER_EVENTS_ENDPOINT"
KEY = "KUBEKEEPER_EVENTS_KEY"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One outgoing event. `id` makes a repeated publication recognisable to its readers."""

    id: str
    type: str
    source: str
    subject: str
    time: datetime
    data: dict[str, Any]


class Topic:
    """Where events go."""

    def __init__(self, client: EventGridPublisherClient) -> None:
        self._client = client

    def publish(self, events: Sequence[Event]) -> None:
        """Send all events in one request; ApiError when the topic does not take them."""
        from azure.core.messaging import CloudEvent

        with translated("publish to the Event Grid topic"):
            self._client.send(
                [
                    CloudEvent(
                        id=event.id,
                        type=event.type,
                        source=event.source,
                        subject=event.subject,
                        time=event.time,
                        data=event.data,
                    )
                    for event in events
                ]
            )


def event_topic(environ: Mapping[str, str]) -> Topic | None:
    """The configured topic; None when there is none."""
    endpoint = environ.get(ENDPOINT)
    if not endpoint:
        return None
    from azure.core.credentials import AzureKeyCredential
    from azure.eventgrid import EventGridPublisherClient

    key = environ.get(KEY)
    secret = AzureKeyCredential(key) if key else credential(environ)
    # The client library adds the path only to endpoints it knows; a topic's is always this.
    address = (
        endpoint if endpoint.rstrip("/").endswith("/api/events") else endpoint.rstrip("/") + "/api/events"
    )
    options: dict[str, Any] = {"retry_total": 2, **TIMEOUTS}
    return Topic(EventGridPublisherClient(address, secret, **options))

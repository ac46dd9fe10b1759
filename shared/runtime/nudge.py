"""Sends nudges: to one automation of one cluster, or to all clusters an automation looks after."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from shared.errors import NotFoundError
from shared.log import log_event
from shared.runtime import automation as automations
from shared.runtime.message import Nudge
from shared.trace import traceparent

if TYPE_CHECKING:
    from shared.bootstrap import Clients

log = logging.getLogger(__name__)


def send_nudge(clients: Clients, nudge: Nudge, delay: timedelta = timedelta(0)) -> None:
    """Put a nudge on its automation's queue, which is created by whoever misses it first."""
    traced = msgspec.structs.replace(nudge, traceparent=nudge.traceparent or traceparent())
    send(clients, nudge.automation, traced.encode(), delay)


def send(clients: Clients, queue_name: str, text: str, delay: timedelta = timedelta(0)) -> None:
    """Put a message on a queue, creating the queue if it is missing."""
    queue = clients.queue(queue_name)
    try:
        queue.send(text, delay)
    except NotFoundError:
        queue.ensure()
        queue.send(text, delay)


def fan_out(clients: Clients, name: str, reason: str) -> int:
    """Nudge every cluster an automation looks after, returning how many; called by its timer."""
    automation = automations.find(name)
    clusters = automations.configured(automation, clients.settings())
    for cluster in clusters:
        send_nudge(clients, Nudge(cluster=cluster.name, automation=name, reason=reason))
    clients.journal.tick(name, clients.now(), len(clusters))
    log_event(log, "Tick", automation=name, clusters=len(clusters), reason=reason)
    return len(clusters)

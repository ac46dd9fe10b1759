"""Incoming Event Grid events: either schema to one value, and that to nudges.

An event is only ever a hint, so what it says beyond its type and cluster is not read. One that nobody here
wants is written down and let go: refusing it would make Event Grid send it again for a day.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec

from shared.log import log_event
from shared.runtime.automation import AUTOMATIONS
from shared.runtime.message import Nudge
from shared.runtime.nudge import send_nudge

if TYPE_CHECKING:
    from shared.bootstrap import Clients

log = logging.getLogger(__name__)


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of an event, whichever schema it came in; `data` is empty when it is no object."""

    id: str
    type: str
    subject: str
    data: dict[str, Any]


def incoming(event: Any) -> Incoming:
    """An azure-functions EventGridEvent or CloudEvent as one value; never fails on strange content."""
    kind = getattr(event, "event_type", None) or getattr(event, "type", None)
    return Incoming(
        id=str(getattr(event, "id", None) or ""),
        type=str(kind or ""),
        subject=str(getattr(event, "subject", None) or ""),
        data=_data(event),
    )


def accept(clients: Clients, event: Incoming) -> int:
    """Nudge whatever the event is a reason to look at, returning how many nudges were sent.

    Raises only when the queue or the configuration cannot be read: then Event Grid shall send it again.
    """
    nudges, why_not = _nudges(clients, event)
    if why_not:
        log_event(
            log, "EventIgnored", level=logging.WARNING, type=event.type[:200], id=event.id, reason=why_not
        )
        clients.journal.ignored("event", event.type, why_not, clients.now())
    for nudge in nudges:
        send_nudge(clients, nudge)
        log_event(log, "Event", type=event.type, cluster=nudge.cluster, automation=nudge.automation)
    return len(nudges)


def _nudges(clients: Clients, event: Incoming) -> tuple[list[Nudge], str]:
    """The nudges an event is worth, or the reason that it is worth none."""
    wanted = [automation for automation in AUTOMATIONS.values() if event.type in automation.events]
    if not wanted:
        return [], f"no automation reacts to events of type '{event.type[:200]}'"
    name = event.data.get("cluster")
    if not isinstance(name, str):
        return [], "its data has no 'cluster'"
    cluster = next((known for known in clients.settings().clusters if known.name == name), None)
    if cluster is None:
        return [], f"unknown cluster '{name[:100]}'"
    ready = [automation for automation in wanted if automation.is_configured(cluster)]
    if not ready:
        names = ", ".join(automation.name for automation in wanted)
        return [], f"{names} is not configured for cluster '{name}'"
    reason = event.type.rpartition(".")[2][:200]
    return [Nudge(cluster=name, automation=automation.name, reason=reason) for automation in ready], ""


def _data(event: Any) -> dict[str, Any]:
    try:
        data = event.get_json()
    except Exception:  # a foreign object's own parser: whatever it raises, there is no data
        log.debug("event without JSON data", exc_info=True)
        return {}
    if isinstance(data, str | bytes):
        # In CloudEvents form data may be JSON inside a string.
        try:
            data = msgspec.json.decode(data)
        except msgspec.DecodeError:
            return {}
    return data if isinstance(data, dict) else {}

"""Incoming Event Grid events: either schema to one value, and that to nudges of the clusters concerned.

Which automation wants what is said by the table in `shared.runtime.automation`; docs/reference/events.md
shows it. The forwarder's events name their cluster; Azure's name a resource, and the cluster is the one whose
`azure` holds it. An event is only ever a hint, so nothing more of it is read. One that nobody here wants is
written down and let go: refusing it would make Event Grid send it again for a day.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from shared.log import log_event
from shared.runtime.automation import AUTOMATIONS, FORWARDER
from shared.runtime.message import Nudge
from shared.runtime.nudge import send_nudge
from shared.trace import span, trace_id

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.runtime.automation import Automation
    from shared.settings import Cluster, Settings

log = logging.getLogger(__name__)

HEALTH = "Microsoft.ResourceNotifications.HealthResources."
ARM_EVENTS = frozenset(
    f"Microsoft.Resources.Resource{what}{outcome}"
    for what in ("Write", "Delete", "Action")
    for outcome in ("Success", "Failure", "Cancel")
)
"""A failed or cancelled operation has changed things too, or shows that a plan did not come true."""
NOTED = {
    "Microsoft.ContainerService.NewKubernetesVersionAvailable": (
        "nothing is upgraded by itself; send the operation rolling-upgrade when it suits"
    ),
    "Microsoft.ContainerService.ClusterSupportEnding": (
        "support of the cluster's version ends soon; upgrade it, then its pools by rolling-upgrade"
    ),
    "Microsoft.ContainerService.ClusterSupportEnded": (
        "support of the cluster's version has ended; upgrade it, then its pools by rolling-upgrade"
    ),
}
"""Events for people: written down with what to do."""
_HEALTH_PART = "/providers/microsoft.resourcehealth/"


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of an event, whichever schema it came in; `data` is empty when it is no object."""

    id: str
    type: str
    subject: str
    data: dict[str, Any]
    source: str = ""
    """Topic or source: for Azure's own events the resource they come from."""


def incoming(event: Any) -> Incoming:
    """An azure-functions EventGridEvent or CloudEvent as one value; never fails on strange content."""
    kind = getattr(event, "event_type", None) or getattr(event, "type", None)
    return Incoming(
        id=str(getattr(event, "id", None) or ""),
        type=str(kind or ""),
        subject=str(getattr(event, "subject", None) or ""),
        data=_data(event),
        source=str(getattr(event, "source", None) or getattr(event, "topic", None) or ""),
    )


def accept(clients: Clients, event: Incoming) -> int:
    """Nudge whatever the event is a reason to look at, returning how many nudges were sent.

    Raises only when the queue or the configuration cannot be read: then Event Grid shall send it again.
    """
    nudges, why_not = nudges_for(clients.settings, event)
    if why_not:
        # Of a whole subscription's events most are somebody else's.
        level = logging.INFO if event.type.startswith("Microsoft.") else logging.WARNING
        log_event(log, "EventIgnored", level=level, type=event.type[:200], id=event.id, reason=why_not)
        clients.journal.ignored("event", event.type, why_not, clients.now())
    if nudges:
        with span(f"event {nudges[0].reason}", type=event.type, id=event.id):
            for nudge in nudges:
                send_nudge(clients, nudge)
                log_event(
                    log,
                    "Event",
                    type=event.type,
                    cluster=nudge.cluster,
                    automation=nudge.automation,
                    trace=trace_id(),
                )
    return len(nudges)


def nudges_for(settings: Callable[[], Settings], event: Incoming) -> tuple[list[Nudge], str]:
    """The nudges an event is worth, or why it is worth none; the configuration is read only if needed."""
    if event.type in NOTED:
        return [], NOTED[event.type]
    operation = _operation(event)
    if event.type in ARM_EVENTS:
        wanted = [one for one in AUTOMATIONS.values() if operation in _lower(one.operations)]
        if not wanted:
            return [], f"no automation reacts to the operation '{operation[:200]}'"
    else:
        wanted = [one for one in AUTOMATIONS.values() if event.type in one.events]
        if not wanted:
            return [], f"no automation reacts to events of type '{event.type[:200]}'"
    if event.type.startswith(FORWARDER):
        return _of_cluster(settings(), wanted, event)
    return _of_resource(settings(), wanted, event)


def _of_cluster(settings: Settings, wanted: list[Automation], event: Incoming) -> tuple[list[Nudge], str]:
    name = event.data.get("cluster")
    if not isinstance(name, str):
        return [], "its data has no 'cluster'"
    cluster = next((known for known in settings.clusters if known.name == name), None)
    if cluster is None:
        return [], f"unknown cluster '{name[:100]}'"
    ready = [automation for automation in wanted if automation.is_configured(cluster)]
    if not ready:
        names = ", ".join(automation.name for automation in wanted)
        return [], f"{names} is not configured for cluster '{name}'"
    return [_nudge(cluster, automation, event) for automation in ready], ""


def _of_resource(settings: Settings, wanted: list[Automation], event: Incoming) -> tuple[list[Nudge], str]:
    """Nudges of every cluster that the resource belongs to: a shared gateway or group has several."""
    resource_id = resource_of(event)
    if not resource_id.startswith("/subscriptions/"):
        return [], "it names no Azure resource"
    nudges = [
        _nudge(cluster, automation, event)
        for cluster in settings.clusters
        for automation in wanted
        if automation.is_configured(cluster) and automation.is_about(cluster, resource_id)
    ]
    if nudges:
        return nudges, ""
    names = ", ".join(automation.name for automation in wanted)
    return [], f"no cluster with {names} holds '{resource_id[:300]}'"


def resource_of(event: Incoming) -> str:
    """The resource that an event of Azure is about, lower case; "" where it names none."""
    if event.type in ARM_EVENTS:
        found = event.data.get("resourceUri") or event.subject
    elif event.type.startswith(HEALTH):
        # The event's own resource is a part of the machine: .../providers/Microsoft.ResourceHealth/...
        target = _inside(event.data, "resourceInfo", "properties").get("targetResourceId")
        found = target or event.subject
    else:
        found = event.source
    return found.lower().partition(_HEALTH_PART)[0].rstrip("/") if isinstance(found, str) else ""


def _operation(event: Incoming) -> str:
    found = event.data.get("operationName")
    return found.lower() if isinstance(found, str) else ""


def _nudge(cluster: Cluster, automation: Automation, event: Incoming) -> Nudge:
    reason = event.type.rpartition(".")[2]
    if event.type in ARM_EVENTS:
        reason = f"{reason} {event.data['operationName']}"
    return Nudge(cluster=cluster.name, automation=automation.name, reason=reason[:200])


def _inside(data: Any, *path: str) -> dict[str, Any]:
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


@functools.cache
def _lower(names: frozenset[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in names)


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

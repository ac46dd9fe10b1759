"""What the HTTP triggers answer: whether the app can work, and the nudge by request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared import __version__
from shared.errors import ApiError, AutomationError, MessageError, NotFoundError, SettingsError
from shared.model.plan import utc
from shared.runtime import automation as automations
from shared.runtime.message import Nudge
from shared.runtime.nudge import send_nudge
from shared.trace import span

if TYPE_CHECKING:
    from shared.bootstrap import Clients


def report(clients: Clients) -> tuple[int, dict[str, object]]:
    """(HTTP status, document). Reads the configuration (kept for a minute) and one table partition."""
    configuration, storage = "ok", "ok"
    ticks: dict[str, str] = {}
    try:
        clients.settings()
    except AutomationError:
        # The reason may name clusters and files, and anybody may ask here.
        configuration = "invalid; see `keeper doctor`"
    try:
        ticks = {name: f"{utc(at):%Y-%m-%dT%H:%M:%SZ}" for name, at in clients.journal.ticks().items()}
    except (ApiError, SettingsError):
        storage = "unreachable; see `keeper doctor`"
    is_well = (configuration, storage) == ("ok", "ok")
    return 200 if is_well else 503, {
        "status": "ok" if is_well else "degraded",
        "version": __version__,
        "configuration": configuration,
        "storage": storage,
        "lastTicks": ticks,
    }


def nudge_by_request(clients: Clients, cluster: str, automation: str) -> tuple[int, dict[str, object]]:
    """(HTTP status, document): 202 enqueued, 404 no such cluster or automation, 503 no storage."""
    try:
        built = automations.find(automation)
        automations.require_configured(built, clients.settings().cluster(cluster))
        with span(f"request {automation}", cluster=cluster):
            send_nudge(clients, Nudge(cluster=cluster, automation=automation, reason="Request"))
    except (MessageError, SettingsError, NotFoundError) as error:
        return 404, {"error": str(error)}
    except ApiError as error:
        return 503, {"error": str(error)}
    return 202, {"queued": True, "cluster": cluster, "automation": automation}

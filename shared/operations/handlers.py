"""The operations every automation has: run a pass now, approve, pause, resume."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from shared.errors import MessageError
from shared.runtime import automation as automations
from shared.runtime.claim import Pause
from shared.work import one_pass

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.model.plan import Outcome
    from shared.operations.catalogue import ApproveParameters, AutomationParameters, PauseParameters
    from shared.runtime.claim import Claim
    from shared.settings import Cluster


def reconcile(
    cluster: Cluster, parameters: AutomationParameters, clients: Clients, claim: Claim, _now: datetime
) -> list[Outcome]:
    """One pass now; it records its own outcomes, so none are returned."""
    automation = automations.find(parameters.automation)
    automations.require_configured(automation, cluster)
    one_pass(clients, automation, cluster, claim)
    return []


def approve(
    cluster: Cluster, parameters: ApproveParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """Approve what waits: each automation's own `operations.approve` knows what that is."""
    automation = automations.find(parameters.automation)
    automations.require_configured(automation, cluster)
    try:
        own = automations.load(f"{automation.package}.operations:approve")
    except AttributeError:
        raise MessageError(f"nothing of {automation.name} ever waits for approval") from None
    outcomes: list[Outcome] = own(cluster, parameters, clients, claim, now)
    return outcomes


def pause(
    _cluster: Cluster, parameters: PauseParameters, _clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """Let the automation rest; pausing again only changes the reason."""
    began = claim.paused.at if claim.paused else now
    claim.pause(Pause(at=began, reason=parameters.reason))
    return []


def resume(
    _cluster: Cluster, _parameters: AutomationParameters, _clients: Clients, claim: Claim, _now: datetime
) -> list[Outcome]:
    """End the pause; nothing happens when there is none."""
    if claim.paused:
        claim.pause(None)
    return []

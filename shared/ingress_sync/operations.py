"""One-off operations on a cluster's ingress: `sync-ingress`, and what `approve` means here.

Called by the dispatcher under the claim on (cluster, ingress-sync); each may be delivered twice, or resumed
after a crash.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from shared.ingress_sync.observation import AUTOMATION
from shared.ingress_sync.reconcile import open_place, sync
from shared.model.plan import Action, ActionKind, Outcome, Status
from shared.runtime.message import Nudge
from shared.runtime.nudge import send_nudge

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.operations.catalogue import ApproveParameters, SyncIngressParameters
    from shared.runtime.claim import Claim
    from shared.settings import Cluster


def sync_ingress(
    cluster: Cluster, parameters: SyncIngressParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """Compile and write now. The write ends later, by follow-ups; its end stands in the journal."""
    if parameters.forget_refusals:
        open_place(cluster, clients, claim).desk.save(refused={}, bisection=None, failures=0, retry_at=None)
    plan, outcomes = sync(cluster, clients, claim, now, hurry=True)
    if outcomes:
        return outcomes
    said = "; ".join(f"{left.subject}: {left.message}" for left in plan.left_alone[:5])
    message = said or "the gateway is as the Ingress objects want it"
    return [_outcome(cluster, "InSync", message, {"event": "Synced"})]


def approve(
    cluster: Cluster, parameters: ApproveParameters, clients: Clients, claim: Claim, _now: datetime
) -> list[Outcome]:
    """Let the document with that digest be written, whatever it removes; any other still waits."""
    open_place(cluster, clients, claim).desk.save(approved=parameters.subject, settled=None)
    nudge = Nudge(cluster=cluster.name, automation=AUTOMATION, reason="Approved", after=claim.begun)
    send_nudge(clients, nudge, timedelta(0))
    message = f"the document {parameters.subject} may be written"
    return [_outcome(cluster, "Approved", message, {"event": "Approved", "digest": parameters.subject})]


def _outcome(cluster: Cluster, reason: str, message: str, data: dict[str, Any]) -> Outcome:
    policy = cluster.ingress_sync
    target = policy.gateway if policy else cluster.name
    action = Action(kind=ActionKind.PUT_GATEWAY, target=target, reason=reason, message=message)
    return Outcome(action=action, status=Status.SUCCEEDED, message=message, data=data)

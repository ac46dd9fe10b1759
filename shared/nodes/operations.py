"""One-off operations on single nodes: `cordon`, `uncordon`, `drain`.

Called by the dispatcher under the claim on (cluster, autoscaling); each may be delivered twice. A drain takes
minutes: each delivery makes one step and comes again, until the node is empty or the time is over. A node
whose drain was given up stays cordoned: an operator asked for it, and decides.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from shared.errors import NotYetError
from shared.model.duration import parse_duration
from shared.model.plan import Action, ActionKind, Outcome, Status
from shared.model.wording import counted
from shared.nodes.cordon import cordon as cordon_node
from shared.nodes.cordon import path_of
from shared.nodes.cordon import uncordon as uncordon_node
from shared.nodes.drain import Step, drain_step

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.clients.kube import KubeClient
    from shared.operations.catalogue import DrainParameters, NodeParameters
    from shared.runtime.claim import Claim
    from shared.settings import Cluster

BY = "operation"
"""Who cordoned, in the node's annotation."""
STEP_SECONDS = 15.0
STARTED = "operations"
"""In the automation's state: when drains were begun, by the operation's run id."""


def cordon(
    cluster: Cluster, parameters: NodeParameters, clients: Clients, _claim: Claim, _now: datetime
) -> list[Outcome]:
    """Mark the node unschedulable; its pods stay."""
    kube = clients.kube(cluster)
    if missing := _missing(kube, ActionKind.CORDON, parameters.node):
        return missing
    changed = cordon_node(kube, parameters.node, by=BY)
    message = f"{parameters.node} is cordoned" + ("" if changed else "; it was before")
    return [_outcome(ActionKind.CORDON, parameters.node, message)]


def uncordon(
    cluster: Cluster, parameters: NodeParameters, clients: Clients, claim: Claim, _now: datetime
) -> list[Outcome]:
    """Mark the node schedulable, whoever cordoned it; a removal that is under way notices and gives up."""
    kube = clients.kube(cluster)
    if missing := _missing(kube, ActionKind.UNCORDON, parameters.node):
        return missing
    changed = uncordon_node(kube, parameters.node, taint_key="kubekeeper.io/to-be-deleted")
    message = f"{parameters.node} is uncordoned" + ("" if changed else "; it was not cordoned")
    return [_outcome(ActionKind.UNCORDON, parameters.node, message)]


def drain(
    cluster: Cluster, parameters: DrainParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """Cordon, then evict as budgets allow, step by step; failed for good when the time is over."""
    kube = clients.kube(cluster)
    if missing := _missing(kube, ActionKind.DRAIN, parameters.node):
        return missing
    started = _started(claim, now)
    cordon_node(kube, parameters.node, by=BY)
    step = drain_step(kube, parameters.node, longest_grace_seconds=parameters.grace_seconds)
    if step.is_empty:
        _forget(claim)
        return [_outcome(ActionKind.DRAIN, parameters.node, f"{parameters.node} is drained and cordoned")]
    line = f"{parameters.node}: {_what_is_left(step)}"
    if now - started < parse_duration(parameters.timeout):
        raise NotYetError(line, seconds=STEP_SECONDS)
    _forget(claim)
    message = f"{line} after {parameters.timeout}; the node stays cordoned"
    failed = _outcome(ActionKind.DRAIN, parameters.node, message)
    return [msgspec.structs.replace(failed, status=Status.FAILED, data={"left": step.left, "final": True})]


def _what_is_left(step: Step) -> str:
    refused = next((f"; {pod}: {why}" for pod, why in step.refused.items()), "")
    leaving = len(step.terminating) + len(step.evicted)
    return f"{counted(step.left, 'pod')} left, {leaving} of them leaving{refused}"


def _started(claim: Claim, now: datetime) -> datetime:
    """When this operation began; noted by its first delivery."""
    known: dict[str, str] = claim.state.get(STARTED) or {}
    if claim.run_id in known:
        return msgspec.convert(known[claim.run_id], datetime)
    young = {run: at for run, at in known.items() if now - msgspec.convert(at, datetime) < timedelta(days=1)}
    claim.save(claim.state | {STARTED: young | {claim.run_id: f"{now:%Y-%m-%dT%H:%M:%SZ}"}})
    return now


def _forget(claim: Claim) -> None:
    known = {run: at for run, at in (claim.state.get(STARTED) or {}).items() if run != claim.run_id}
    kept = {name: value for name, value in claim.state.items() if name != STARTED}
    claim.save(kept | ({STARTED: known} if known else {}))


def _missing(kube: KubeClient, kind: ActionKind, name: str) -> list[Outcome]:
    """Failed for good when there is no such node; nothing when there is."""
    if kube.find(path_of(name)) is not None:
        return []
    failed = _outcome(kind, name, f"there is no node '{name}' in the cluster; see: kubectl get nodes")
    return [msgspec.structs.replace(failed, status=Status.FAILED, data={"final": True})]


def _outcome(kind: ActionKind, node: str, message: str) -> Outcome:
    action = Action(kind=kind, target=node, reason="Requested", message=f"{kind} of {node}, as requested")
    return Outcome(action=action, status=Status.SUCCEEDED, message=message)

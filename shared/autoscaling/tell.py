"""Tells the cluster what was planned and done: Events on pods and nodes, and the status ConfigMap.

Telling never changes what is done. An API server that takes no Events is a finding in the log, and the next
pass tells what is still to be told. Called by `reconcile`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shared.autoscaling.events import NORMAL, WARNING, Notice, tell, write_status
from shared.autoscaling.observation import Observation
from shared.autoscaling.observe import machine_of
from shared.autoscaling.work import Work
from shared.errors import ApiError
from shared.log import log_event
from shared.model.plan import LeftAlone, Outcome, Plan, Status
from shared.model.pod import PendingPod

TOLD, SHOWN = "told", "shown"
"""In the state: what was last said of each object, and the digest of the status that was last written."""

HELPED = "NewNode"
"""Reason of pods that a planned node is for."""
SILENT = frozenset(
    {"FitsExistingNode", "NodeOnItsWay", "RoomIsBeingMade", "TooYoung", "Gated", "BelongsToNode"}
)
"""Reasons about which there is nothing to tell."""
EXPLAINED = 50
"""Pods explained in the status; the journal and `keeper status` have all."""

log = logging.getLogger(__name__)


def tell_cluster(work: Work, observation: Observation, plan: Plan, outcomes: Sequence[Outcome]) -> None:
    """Write what is new; remembers in the state what has been said."""
    notices = [*_of_pods(observation, plan, outcomes), *_of_nodes(observation, outcomes)]
    try:
        work.state[TOLD] = tell(work.kube, notices, work.state.get(TOLD) or {}, work.now)
        status = _status(work, observation, plan)
        work.state[SHOWN] = write_status(work.kube, status, work.state.get(SHOWN, ""), work.now)
    except ApiError as error:
        log_event(
            log,
            "ClusterNotTold",
            level=logging.WARNING,
            cluster=observation.cluster,
            code=error.code or "",
            message=str(error),
        )


def _of_pods(observation: Observation, plan: Plan, outcomes: Sequence[Outcome]) -> Iterator[Notice]:
    by_subject = {pod.subject: pod for pod in observation.kubernetes.pending}
    grown = _grown(outcomes)
    for left in plan.left_alone:
        pod = by_subject.get(left.subject)
        if pod is None or left.reason in SILENT:
            continue
        if left.reason != HELPED:
            yield _pod_notice(pod, "NotTriggerScaleUp", f"{left.message} ({left.reason})", WARNING)
        elif sizes := grown.get(left.message.rpartition("pool ")[2]):
            yield _pod_notice(pod, "TriggeredScaleUp", f"{left.message} ({sizes})", NORMAL)


def _pod_notice(pod: PendingPod, reason: str, message: str, kind: str) -> Notice:
    return Notice(
        kind="Pod",
        namespace=pod.namespace,
        name=pod.name,
        uid=pod.uid,
        reason=reason,
        message=message,
        type=kind,
    )


def _grown(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """`2 -> 5`, by the name of each pool that was grown."""
    return {
        one.action.target: f"{one.action.target} {one.data['from']} -> {one.data['to']}"
        for one in outcomes
        if one.status is Status.SUCCEEDED and one.data.get("event") == "ScaledUp"
    }


def _of_nodes(observation: Observation, outcomes: Iterable[Outcome]) -> Iterator[Notice]:
    nodes = {node.name: node for node in observation.kubernetes.nodes}
    machines = {machine_of(node.provider_id): node for node in observation.kubernetes.nodes}
    for outcome in outcomes:
        if outcome.data.get("event") == "ScaleDownBegun":
            for name in outcome.data.get("nodes", ()):
                node = nodes.get(name) or machines.get(name)
                if node is not None:
                    message = outcome.action.message
                    yield Notice(
                        kind="Node", name=node.name, uid=node.uid, reason="ScaleDown", message=message
                    )
        if outcome.data.get("event") == "ScaleDownGivenUp" and (node := nodes.get(outcome.action.target)):
            yield Notice(
                kind="Node",
                name=node.name,
                uid=node.uid,
                reason="ScaleDownFailed",
                message=outcome.message,
                type=WARNING,
            )


def _status(work: Work, observation: Observation, plan: Plan) -> dict[str, Any]:
    """What the ConfigMap says; without times that change in every pass, so that it is rarely written."""
    from shared.autoscaling.facts import read_facts

    ledger, pools = work.ledger, read_facts(observation.azure, work.place.policy).pools
    return {
        "cluster": observation.cluster,
        "pools": {
            pool.name: {
                "kind": str(pool.kind),
                "size": pool.size,
                "capacity": pool.capacity,
                "min": pool.min,
                "max": pool.max,
                **_resting(work, pool.id),
                **({"handsOff": pool.hands_off} if pool.hands_off else {}),
            }
            for pool in pools
        },
        "pendingPods": len(observation.kubernetes.pending),
        "growing": {one.name: f"{one.was} -> {one.to}" for one in ledger.growths.values()},
        "leaving": {key: one.message or str(one.phase) for key, one in sorted(ledger.draining.items())},
        "toCleanUp": sorted(one.id.rpartition("/")[2] for one in ledger.cleanups.values()),
        "explained": [_line(left) for left in plan.left_alone[:EXPLAINED]],
    }


def _resting(work: Work, pool: str) -> dict[str, Any]:
    note = work.ledger.pools.get(pool)
    if note is None or note.backoff is None or note.backoff.until <= work.now:
        return {}
    rest = note.backoff
    return {"restsUntil": f"{rest.until:%Y-%m-%dT%H:%M:%SZ}", "because": f"{rest.reason}: {rest.message}"}


def _line(left: LeftAlone) -> str:
    return f"{left.subject}: {left.reason}: {left.message}"

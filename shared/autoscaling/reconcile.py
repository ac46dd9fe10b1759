"""Autoscaling of one cluster, the whole story: go on with what was begun, observe, decide, act, record.

Called for every nudge by the runtime, under the claim on (cluster, autoscaling). A pass is seconds long:
nothing is waited for. What is in flight is followed by nudges with a delay; a pass in which nobody waits for
a node and nothing is in flight asks Kubernetes one question and Azure none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.autoscaling.act import act
from shared.autoscaling.azure import BUSY, NOW, PATIENT, QUIET, Ages, forget_old
from shared.autoscaling.decide import consider
from shared.autoscaling.facts import Pool, read_facts
from shared.autoscaling.growth import follow_growths
from shared.autoscaling.observation import AUTOMATION, Observation
from shared.autoscaling.observe import Place, counting, glance, observe, place_of
from shared.autoscaling.policy import AutoscalingPolicy
from shared.autoscaling.removal import follow_removals
from shared.autoscaling.tell import tell_cluster
from shared.autoscaling.work import LOOKED_AT, Work, begin_work
from shared.errors import ApiError
from shared.model.duration import parse_duration
from shared.model.plan import LeftAlone, Outcome, Plan
from shared.model.wording import counted
from shared.record import record
from shared.runtime.journal import PoolSize, Sizes
from shared.runtime.message import Nudge
from shared.runtime.nudge import send_nudge

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.runtime.claim import Claim
    from shared.settings import Cluster

ANSWERS = (200, 404)
LOOKED_FOR = "lookedFor"
"""In the state: for which waiting pods everything was last read."""

SHORTEST_LOOK, LONGEST_LOOK = timedelta(minutes=1), timedelta(minutes=5)
"""Bounds of how often nodes are looked at for removal, a quarter of `unneededTime`."""
AGAIN = timedelta(seconds=55)
"""Pods that wait although everything was read are looked at again after so long, by the next tick."""


def reconcile(cluster: Cluster, clients: Clients, claim: Claim, now: datetime) -> list[Outcome]:
    """One pass; RunFailedError at the end when an action failed that another try may mend."""
    work = begin_work(place_of(cluster, clients, now), claim)
    outcomes = follow_growths(work) + follow_removals(work)
    try:
        plan, done = _look_if_due(work)
    except ApiError as error:
        # What was done before must not be lost with it; delivered again, the pass looks again.
        follow_up(work, clients)
        record(clients, _unreadable(work, error), outcomes)
        raise
    follow_up(work, clients)
    record(clients, plan, [*outcomes, *done])
    return [*outcomes, *done]


def look(cluster: Cluster, clients: Clients, state: dict[str, Any], now: datetime) -> Observation:
    """Observe only, everything fresh and with raw objects kept; for `keeper plan` and `keeper snapshot`."""
    return observe(place_of(cluster, clients, now), dict(state), NOW, keep=True)


def _look_if_due(work: Work) -> tuple[Plan, list[Outcome]]:
    waiting = glance(work.kube)
    if is_look_due(work, waiting):
        return look_and_act(work, waiting)
    return _nothing_to_do(work, len(waiting)), []


def look_and_act(work: Work, waiting: frozenset[str]) -> tuple[Plan, list[Outcome]]:
    """Read everything, decide, act, tell the cluster; the state is saved."""
    place = work.place
    state = work.ledger.document(work.state)
    observation = observe(place, state, _ages(work, waiting))
    decision = consider(observation, place.policy, place.now)
    plan = decision.plan
    work.state |= decision.memory
    pools = pools_of(observation, place.policy)
    work.learn_models(pools.values())
    _note_sizes(place, observation, pools.values())
    _note_look(work, waiting)
    work.save()
    nodes = {node.name: node for node in observation.kubernetes.nodes}
    outcomes = act(plan, work, pools, nodes)
    tell_cluster(work, observation, plan, outcomes)
    work.save()
    return plan, outcomes


def _note_sizes(place: Place, observation: Observation, pools: Iterable[Pool]) -> None:
    """For the charts of the status page; not when Azure left a question open, as no pool is then no zero."""
    if any(reading.status not in ANSWERS for reading in observation.azure):
        return
    ready = counting([node for node in observation.kubernetes.nodes if node.is_ready])
    seen = [
        PoolSize(pool=one.name, nodes=one.capacity, ready=ready(one), min=one.min, max=one.max)
        for one in pools
    ]
    waiting = len(observation.kubernetes.pending)
    place.clients.journal.note_sizes(
        place.cluster.name, Sizes(at=place.now, pools=tuple(seen), waiting_pods=waiting)
    )


def pools_of(observation: Observation, policy: AutoscalingPolicy) -> dict[str, Pool]:
    """By id, lower case."""
    return {pool.id: pool for pool in read_facts(observation.azure, policy).pools}


def is_look_due(work: Work, waiting: frozenset[str]) -> bool:
    """Whether everything is to be read: somebody new waits, or it is time."""
    looked_at = work.state.get(LOOKED_AT)
    if not looked_at:
        return True
    age = work.now - msgspec.convert(looked_at, datetime)
    if waiting and (_digest(waiting) != work.state.get(LOOKED_FOR) or age >= AGAIN):
        return True
    return age >= (AGAIN if _has_other_demand(work) else _removal_period(work.place.policy))


def _has_other_demand(work: Work) -> bool:
    """Whether something else than pods asks for nodes."""
    policy = work.place.policy
    return bool(policy.metrics or policy.schedules or policy.headroom or work.state.get("manual"))


def _removal_period(policy: AutoscalingPolicy) -> timedelta:
    quarter = parse_duration(policy.scale_down.unneeded_time) / 4
    return min(max(quarter, SHORTEST_LOOK), LONGEST_LOOK)


def _ages(work: Work, waiting: frozenset[str]) -> Ages:
    """Sizes of pools are read anew for somebody new, and while something is under way."""
    if work.ledger.growths or work.ledger.draining or not work.state.get(LOOKED_AT):
        return BUSY
    if not waiting:
        return QUIET
    return PATIENT if _digest(waiting) == work.state.get(LOOKED_FOR) else BUSY


def _note_look(work: Work, waiting: frozenset[str]) -> None:
    work.state[LOOKED_AT] = f"{work.now:%Y-%m-%dT%H:%M:%SZ}"
    work.state[LOOKED_FOR] = _digest(waiting)
    work.state.setdefault("firstSeenAt", work.state[LOOKED_AT])
    forget_old(work.remembered, work.now)


def _digest(waiting: frozenset[str]) -> str:
    return hashlib.sha256("\n".join(sorted(waiting)).encode()).hexdigest()[:16]


def _nothing_to_do(work: Work, waiting: int) -> Plan:
    if waiting:
        message = (
            f"{counted(waiting, 'pod')} waiting for nodes that were planned; looked at again within a minute"
        )
        return _empty_plan(work, "NothingNew", message)
    return _empty_plan(work, "NothingPending", "no pod waits for a node")


def _unreadable(work: Work, error: ApiError) -> Plan:
    return _empty_plan(work, "NotObserved", f"the cluster could not be read, so nothing was planned: {error}")


def _empty_plan(work: Work, reason: str, message: str) -> Plan:
    left = LeftAlone(subject=work.place.cluster.name, reason=reason, message=message)
    return Plan(automation=AUTOMATION, cluster=work.place.cluster.name, now=work.now, left_alone=(left,))


def follow_up(work: Work, clients: Clients) -> None:
    """Whatever is in flight is looked at again, at the earliest time anybody asked for."""
    if not work.waits:
        return
    wait = max(timedelta(seconds=1), min(work.waits))
    nudge = Nudge(
        cluster=work.place.cluster.name, automation=AUTOMATION, reason="FollowUp", after=work.claim.begun
    )
    send_nudge(clients, nudge, wait)


__all__ = ["Place", "follow_up", "is_look_due", "look", "look_and_act", "pools_of", "reconcile"]

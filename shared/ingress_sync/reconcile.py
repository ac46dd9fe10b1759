"""The ingress of one cluster, the whole story: observe, decide, act, record.

Called for every nudge by the runtime, under the claim on (cluster, ingress-sync). A write of the gateway
takes longer than a pass may: a pass that finds one under way asks how it stands and sends itself a follow-up.
A pass that finds everything as the last one left it compares two digests and is done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.errors import SettingsError
from shared.ingress_sync import refusals, write
from shared.ingress_sync.act import Place, act, put_last_good
from shared.ingress_sync.decide import decide_compiled
from shared.ingress_sync.health import fulfil_gates, with_health
from shared.ingress_sync.observation import AUTOMATION, Observation
from shared.ingress_sync.observe import observe
from shared.ingress_sync.policy import IngressSyncPolicy
from shared.ingress_sync.state import Settled, State, write_state
from shared.ingress_sync.write import Desk, Refusal, Step
from shared.model.duration import parse_duration
from shared.model.plan import Action, ActionKind, LeftAlone, Outcome, Plan, Status, utc
from shared.record import record
from shared.runtime.claim import CONTAINER
from shared.runtime.message import Nudge
from shared.runtime.nudge import send_nudge

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.ingress_sync.compiled import Compiled
    from shared.runtime.claim import Claim
    from shared.settings import Cluster

AT_ONCE = timedelta(seconds=1)
LONGEST_REST = timedelta(hours=1)
"""However idle, everything is compiled and proven again after so long."""


def reconcile(cluster: Cluster, clients: Clients, claim: Claim, now: datetime) -> list[Outcome]:
    """One pass; RunFailedError at the end when an action failed, so that the platform delivers again."""
    plan, outcomes = sync(cluster, clients, claim, now)
    record(clients, plan, outcomes)
    return outcomes


def look(cluster: Cluster, clients: Clients, state: dict[str, Any], now: datetime) -> Observation:
    """Observe without acting; for `keeper plan` and `keeper snapshot`."""
    return observe(cluster, clients.kube(cluster), clients.arm, state=state, now=now)


def sync(
    cluster: Cluster, clients: Clients, claim: Claim, now: datetime, *, hurry: bool = False
) -> tuple[Plan, list[Outcome]]:
    """One pass without recording it. `hurry`: a change does not wait to be gathered, paced or retried."""
    run = Pass(
        cluster=cluster, clients=clients, place=open_place(cluster, clients, claim), now=now, hurry=hurry
    )
    plan = run.go()
    if run.again is not None:
        seconds = math.ceil(run.again.total_seconds())
        nudge = Nudge(cluster=cluster.name, automation=AUTOMATION, reason="FollowUp", after=claim.begun)
        send_nudge(clients, nudge, timedelta(seconds=seconds))
    return plan, run.outcomes


def open_place(cluster: Cluster, clients: Clients, claim: Claim) -> Place:
    """Everything a pass reaches; SettingsError when the cluster has no gateway in the configuration."""
    policy = cluster.ingress_sync
    if policy is None:
        raise SettingsError(
            f"cluster '{cluster.name}' has no 'ingressSync' in the configuration; add its gateway"
        )
    store = clients.blobs(CONTAINER)
    desk = Desk(policy=policy, arm=clients.arm, claim=claim, store=store, now=clients.now)
    return Place(cluster=cluster.name, desk=desk, kube=clients.kube(cluster))


@dataclass
class Pass:
    """One pass; `again` is when to look next, the earliest of what was asked for."""

    cluster: Cluster
    clients: Clients
    place: Place
    now: datetime
    hurry: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    again: timedelta | None = None

    def go(self) -> Plan:
        """The story; returns the plan to be recorded."""
        refusal = None
        if self._desk.state.put is not None:
            step = self._note(write.follow(self._desk))
            refusal = step.refusal
            if step.is_under_way:
                return self._left("WriteUnderWay", step.message or "a write of the gateway is under way")
            if step.event == "GatewayPut":
                self._save(refusals.accepted(self._desk.state))
        observation = look(self.cluster, self.clients, self.place.desk.claim.state, self.now)
        observation, again = with_health(observation, self._desk)
        self._look_again(again)
        if refusal is None and not self.hurry and is_settled(observation, self.now):
            return self._idle(observation)
        compiled, plan = decide_compiled(observation, self._desk.policy, self.now)
        if refusal is not None:
            self._answer(refusal, compiled)
            return plan
        return self._act(plan, compiled, observation)

    @property
    def _desk(self) -> Desk:
        return self.place.desk

    def _act(self, plan: Plan, compiled: Compiled, observation: Observation) -> Plan:
        self._note_unused(compiled)
        self.outcomes += fulfil_gates(observation, self.place.kube)
        done = act(plan, compiled, observation, self.place, now=self.now, hurry=self.hurry)
        self.outcomes += done.outcomes
        self._look_again(done.again)
        if done.refusal is not None:
            self._answer(done.refusal, compiled)
        if done.is_at_rest:
            self._rest(plan, compiled, observation)
        return msgspec.structs.replace(plan, left_alone=(*plan.left_alone, *done.left_alone))

    def _note_unused(self, compiled: Compiled) -> None:
        """Since when certificates of ours are not used: they are kept for a while."""
        known = self._desk.state.unused_certificates
        unused = {name: known.get(name, self.now) for name in compiled.unused_certificates}
        if unused != known:
            self._desk.save(unused_certificates=unused)

    def _answer(self, refusal: Refusal, compiled: Compiled) -> None:
        """Blame somebody, or search; and after a late refusal, go back to what was last good."""
        desk = self._desk
        suspects = refusals.blamed(refusal, compiled.part_owners)
        state = refusals.settle(
            desk.state, refusal, suspects, digests=compiled.route_digests, policy=desk.policy, now=self.now
        )
        self._save(state)
        self._look_again(AT_ONCE)
        if refusal.is_late and not refusal.is_rollback:
            self._note(put_last_good(self.place))

    def _note(self, step: Step) -> Step:
        """Remember what a step asks for and says."""
        self._look_again(step.again)
        if step.event:
            action = Action(
                kind=ActionKind.PUT_GATEWAY,
                target=self._desk.policy.gateway,
                reason=step.event,
                message=step.message or "the write of the gateway goes on",
            )
            status = Status.FAILED if step.is_failure else Status.SUCCEEDED
            data = {"event": step.event}
            self.outcomes.append(Outcome(action=action, status=status, message=action.message, data=data))
        return step

    def _look_again(self, after: timedelta | None) -> None:
        if after is not None:
            self.again = after if self.again is None else min(self.again, after)

    def _save(self, state: State) -> None:
        self._desk.claim.save(write_state(state))

    # Rest

    def _rest(self, plan: Plan, compiled: Compiled, observation: Observation) -> None:
        """Nothing is to be done: the next pass can see that by digests."""
        left = tuple(msgspec.to_builtins(one) for one in plan.left_alone)
        settled = Settled(
            inputs=observation.inputs_digest,
            gateway=observation.gateway_digest,
            until=min([self.now + LONGEST_REST, *_times(self._desk.state, self._desk.policy)]),
            left_alone=left[:100],
        )
        self._desk.save(settled=settled)

    def _idle(self, observation: Observation) -> Plan:
        settled = self._desk.state.settled
        assert settled is not None
        left = tuple(LeftAlone(**entry) for entry in settled.left_alone)
        return Plan(automation=AUTOMATION, cluster=observation.cluster, now=observation.now, left_alone=left)

    def _left(self, reason: str, message: str) -> Plan:
        left = LeftAlone(subject=self._desk.policy.gateway, reason=reason, message=message)
        return Plan(automation=AUTOMATION, cluster=self.cluster.name, now=utc(self.now), left_alone=(left,))


def _times(state: State, policy: IngressSyncPolicy) -> list[datetime]:
    """When time by itself gives something to do."""
    grace = parse_duration(policy.certificate_grace)
    retries = [one.retry_at for one in state.refused.values() if one.retry_at is not None]
    return retries + [since + grace for since in state.unused_certificates.values()]


def is_settled(observation: Observation, now: datetime) -> bool:
    """Whether everything is as the last pass left it, which found nothing to do."""
    settled = observation.record.settled
    if (
        settled is None
        or observation.record.unconfirmed
        or (settled.until is not None and now >= settled.until)
    ):
        return False
    return (settled.inputs, settled.gateway) == (observation.inputs_digest, observation.gateway_digest)

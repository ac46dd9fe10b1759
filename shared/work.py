"""From a nudge to a pass: at most one at a time per (cluster, automation), at most two for any burst.

The rules, in order:

* A nudge is *satisfied* by any pass that began after it was sent; it is dropped.
* Within the settling time after a pass began, a nudge marks the pair dirty, and whoever makes the mark sends
  one follow-up that becomes visible when the time is over.
* A nudge that meets a held claim is satisfied by the running pass, or else marks the pair dirty, tries the
  claim once more if the mark is new, and leaves.
* The holder goes round once more when it is marked and the settling time is over, and looks again after
  letting go: whoever marked in between was told that the holder would see it.

A mark carries the number of the last pass that had begun when its maker looked. Everybody who relies on it
looked before the next pass began, so any later pass answers it, whatever the clocks say.

A crash anywhere leaves the message in its queue, and the next delivery or tick does it all again. Called by
the queue functions; knows nothing about what an automation does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from shared.log import log_event, redact
from shared.record import record_paused, record_poisoned, record_settled
from shared.runtime import automation as automations
from shared.runtime.message import Nudge, Received, decode
from shared.runtime.nudge import send_nudge
from shared.trace import span, trace_id

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.runtime.automation import Automation
    from shared.runtime.claim import Claim, State
    from shared.settings import Cluster

SETTLE = timedelta(seconds=10)
"""Passes of one pair begin at least this far apart, unless somebody waits for an operation."""

SKEW = timedelta(seconds=2)
"""Queue times have whole seconds and another clock than ours: this much earlier is certainly before."""

PASSES_PER_RUN = 2

log = logging.getLogger(__name__)


def work_off(clients: Clients, name: str, message: Received) -> None:
    """Process one message of an automation's queue; raises whatever the platform should deliver again."""
    with failures_kept(clients, name, message):
        nudge = decode(message.body, Nudge)
        automation = automations.find(nudge.automation)
        cluster = clients.settings().cluster(nudge.cluster)
        automations.require_configured(automation, cluster)
        parts = {"cluster": cluster.name, "automation": automation.name, "reason": nudge.reason}
        with span(f"pass {automation.name}", parent=nudge.traceparent, **parts):
            result = answer(clients, automation, cluster, nudge, message.inserted_at)
            # Once for each pass tells that the forwarder lives; the nudges of a burst cost no write each.
            if nudge.reason in automations.FORWARDED and result.startswith("passed"):
                clients.journal.heard(cluster.name, clients.now())
            log_event(
                log,
                "Nudge",
                cluster=cluster.name,
                automation=automation.name,
                reason=nudge.reason,
                result=result,
                trace=trace_id(),
            )


def answer(
    clients: Clients, automation: Automation, cluster: Cluster, nudge: Nudge, sent_at: datetime | None
) -> str:
    """Do what a nudge asks, by the rules above; returns which of them applied."""
    claims, pair = clients.claims, (cluster.name, automation.name)
    settle = settling_time(clients, automation)

    def is_due(state: State) -> bool:
        is_satisfied = _is_satisfied(nudge, sent_at, state.ended, state.passed_at)
        return not is_satisfied and _time_left(state.passed_at, settle, clients.now()) is None

    state = claims.state(*pair)
    if _is_satisfied(nudge, sent_at, state.ended, state.passed_at):
        return "satisfied"
    wait = _time_left(state.passed_at, settle, clients.now())
    if wait:
        # A follow-up that comes too early by this worker's clock is sent again: the mark is its to answer.
        if claims.mark_dirty(*pair, state.begun) or nudge.after is not None:
            _follow_up(clients, automation, cluster, state.begun, wait)
        return "settling"
    claim = claims.acquire(*pair, clients.now(), is_due)
    if claim is None:
        state = claims.state(*pair)
        if _is_satisfied(nudge, sent_at, state.begun, state.passing_since):
            return "satisfied"  # by the running pass; should that fail, its own message comes again
        if claims.mark_dirty(*pair, state.begun):
            # The holder may have looked for the mark just before it was made.
            claim = claims.acquire(*pair, clients.now(), is_due)
    if claim is None:
        return "held"
    with looking_again(clients, automation, cluster, claim), claim:
        if claim.is_passing:
            return f"passed {_go_round(clients, automation, cluster, claim, settle)}"
        record_settled(clients, claim, clients.now())
    # Between the look and the claim another worker has made a whole pass: the rules begin anew.
    return answer(clients, automation, cluster, nudge, sent_at)


def settling_time(clients: Clients, automation: Automation) -> timedelta:
    """How far apart passes of an automation begin at least."""
    settle = clients.duration("KUBEKEEPER_SETTLE", SETTLE)
    return settle if automation.settle is None else min(settle, automation.settle)


def one_pass(clients: Clients, automation: Automation, cluster: Cluster, claim: Claim) -> None:
    """One pass of an automation over a cluster, or the note that an operator paused it."""
    began = claim.begin_pass(clients.now())
    clients.claims.clear_marks(cluster.name, automation.name, claim.begun)
    record_settled(clients, claim, began)
    if claim.paused:
        record_paused(clients, claim, began)
    else:
        reconcile = automations.load(automation.reconcile)
        reconcile(cluster, clients, claim, began)
    claim.end_pass()


@contextmanager
def looking_again(clients: Clients, automation: Automation, cluster: Cluster, claim: Claim) -> Iterator[None]:
    """After the claim is let go, however that came: a follow-up if the pair was marked dirty meanwhile."""
    try:
        yield
    finally:
        if clients.claims.is_dirty(cluster.name, automation.name, claim.begun):
            settle = settling_time(clients, automation)
            wait = _time_left(claim.passed_at, settle, clients.now())
            _follow_up(clients, automation, cluster, claim.begun, wait or timedelta(0))


@contextmanager
def failures_kept(clients: Clients, queue: str, message: Received) -> Iterator[None]:
    """Write down why a message fails before the platform takes it back, and forget it when it succeeds."""
    try:
        yield
    except Exception as error:
        _keep_failure(clients, queue, message, error)
        raise
    if message.dequeue_count > 1:
        clients.journal.forget_failure(queue, message.body)


def _go_round(
    clients: Clients, automation: Automation, cluster: Cluster, claim: Claim, settle: timedelta
) -> int:
    for passes in range(1, PASSES_PER_RUN + 1):
        one_pass(clients, automation, cluster, claim)
        settling = _time_left(claim.passed_at, settle, clients.now())
        if settling or not clients.claims.is_dirty(cluster.name, automation.name, claim.begun):
            return passes
    return PASSES_PER_RUN


def _follow_up(
    clients: Clients, automation: Automation, cluster: Cluster, begun: int, wait: timedelta
) -> None:
    nudge = Nudge(cluster=cluster.name, automation=automation.name, reason="FollowUp", after=begun)
    send_nudge(clients, nudge, timedelta(seconds=math.ceil(wait.total_seconds())))


def _is_satisfied(nudge: Nudge, sent_at: datetime | None, number: int, began: datetime | None) -> bool:
    """Whether pass `number`, begun then, began after the nudge was sent: by number, or else by time."""
    if nudge.after is not None:
        return number > nudge.after
    return began is not None and sent_at is not None and sent_at < began - SKEW


def _time_left(passed_at: datetime | None, settle: timedelta, now: datetime) -> timedelta | None:
    """What is left of the settling time; None when it is over, or began in the future by a wrong clock."""
    if passed_at is None or not timedelta(0) <= now - passed_at < settle:
        return None
    return settle - (now - passed_at)


def _keep_failure(clients: Clients, queue: str, message: Received, error: Exception) -> None:
    reason = redact(" ".join(str(error).split()) or type(error).__name__)
    attempts = message.dequeue_count
    log_event(log, "MessageFailed", level=logging.ERROR, queue=queue, attempt=attempts, reason=reason)
    try:
        clients.journal.failed(queue, message.body, reason, attempts, clients.now())
        if attempts >= clients.max_dequeue_count:
            record_poisoned(clients, queue, message, reason)
    except Exception:
        # Whatever is wrong with the journal must not replace the reason the message failed for.
        log.exception("FailureNotJournalled queue=%s", queue)

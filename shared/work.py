"""From a nudge to a pass: at most one at a time per (cluster, automation), at most two for any burst.

The rules, in order:

* A nudge is *satisfied* by any pass that began after it was sent; it is dropped.
* Within the settling time after a pass began, a nudge marks the pair dirty, and whoever makes the mark
  sends one follow-up that becomes visible when the time is over.
* A nudge that meets a held claim marks the pair dirty, tries the claim once more, and leaves.
* The holder clears the mark before it looks, goes round once more when it is back and the settling time is
  over, and looks again after letting go: whoever marked in between was told that the holder would see it.

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

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.runtime.automation import Automation
    from shared.runtime.claim import Claim
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
        result = answer(clients, automation, cluster, nudge, message.inserted_at)
        log_event(
            log,
            "Nudge",
            cluster=cluster.name,
            automation=automation.name,
            reason=nudge.reason,
            result=result,
        )


def answer(
    clients: Clients, automation: Automation, cluster: Cluster, nudge: Nudge, sent_at: datetime | None
) -> str:
    """Do what a nudge asks, by the rules above; returns which of them applied."""
    claims = clients.claims
    settle = clients.duration("KUBEKEEPER_SETTLE", SETTLE)
    passed_at = claims.state(cluster.name, automation.name).passed_at
    if passed_at and sent_at and sent_at < passed_at - SKEW:
        return "satisfied"
    wait = _time_left(passed_at, settle, clients.now())
    if wait and not nudge.follow_up:
        if claims.mark_dirty(cluster.name, automation.name):
            _follow_up(clients, automation, cluster, wait)
        return "settling"
    claim = claims.acquire(cluster.name, automation.name)
    if claim is None:
        claims.mark_dirty(cluster.name, automation.name)
        claim = claims.acquire(cluster.name, automation.name)
    if claim is None:
        return "held"
    with claim:
        passes = _go_round(clients, automation, cluster, claim, settle)
        passed_at = claim.passed_at
    if claims.is_dirty(cluster.name, automation.name):
        wait = _time_left(passed_at, settle, clients.now())
        _follow_up(clients, automation, cluster, wait or timedelta(0))
    return f"passed {passes}"


def one_pass(clients: Clients, automation: Automation, cluster: Cluster, claim: Claim) -> None:
    """One pass of an automation over a cluster, or the note that an operator paused it."""
    began = clients.now()
    clients.claims.clear_dirty(cluster.name, automation.name)
    record_settled(clients, claim, began)
    if claim.paused:
        record_paused(clients, claim, began)
    else:
        reconcile = automations.load(automation.reconcile or "")
        reconcile(cluster, clients, claim, began)
    claim.mark_passed(began)


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
        if settling or not clients.claims.is_dirty(cluster.name, automation.name):
            return passes
    return PASSES_PER_RUN


def _follow_up(clients: Clients, automation: Automation, cluster: Cluster, wait: timedelta) -> None:
    nudge = Nudge(cluster=cluster.name, automation=automation.name, reason="Dirty", follow_up=True)
    send_nudge(clients, nudge, timedelta(seconds=math.ceil(wait.total_seconds())))


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

"""When a change that is due may be written: pure, (State, policy, now) -> how long to wait, and why.

A burst of changes becomes one write: it waits until nothing has changed for `quiet`, but not longer than
`longestWait`. A change of pools alone comes with every rollout and keeps `poolInterval` to the write before.
After failed writes it waits for `retryAt`. Called by `reconcile`, which looks again when the time is over.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from shared.ingress_sync.compiled import Change
from shared.ingress_sync.policy import IngressSyncPolicy
from shared.ingress_sync.state import State
from shared.model.duration import parse_duration

NOTHING = timedelta(0)
GRAIN = timedelta(seconds=0.75)
"""Queues know whole seconds, and a message comes up to one early: a rest of the quiet time below this is not
waited for, since another round would take longer."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How long the change has to wait, and since when it is known; `state` remembers the latter."""

    wait: timedelta
    reason: str
    message: str
    state: State


def pace(
    state: State,
    policy: IngressSyncPolicy,
    now: datetime,
    *,
    inputs: str,
    change: Change,
    hurry: bool = False,
) -> Pace:
    """What holds the change back the longest; a wait of 0 when nothing does. `inputs` is the digest of what
    it was compiled from.
    """
    seen_at = state.change_seen_at or now
    has_moved = state.change_seen_at is None or state.change_inputs != inputs
    moved_at = now if has_moved else state.change_moved_at or now
    noted = msgspec.structs.replace(
        state, change_seen_at=seen_at, change_moved_at=moved_at, change_inputs=inputs
    )
    reasons = [] if hurry else list(_reasons(noted, policy, now, change))
    wait, reason, message = max(reasons, default=(NOTHING, "", ""))
    return Pace(
        wait=max(wait, NOTHING), reason=reason if wait > NOTHING else "", message=message, state=noted
    )


def _reasons(
    state: State, policy: IngressSyncPolicy, now: datetime, change: Change
) -> list[tuple[timedelta, str, str]]:
    assert state.change_seen_at is not None
    assert state.change_moved_at is not None
    quiet_at = state.change_moved_at + parse_duration(policy.quiet)
    longest_at = state.change_seen_at + parse_duration(policy.longest_wait)
    text = f"until nothing has changed for {policy.quiet}, or {policy.longest_wait} have passed"
    gathering = min(quiet_at, longest_at) - now
    found = [(gathering, "Gathering", f"changes are gathered {text}")] if gathering >= GRAIN else []
    if change is Change.POOLS and state.last_put_at is not None:
        free_at = state.last_put_at + parse_duration(policy.pool_interval)
        text = (
            f"only pools change; such writes are {policy.pool_interval} apart, since each may cut WebSockets"
        )
        found.append((free_at - now, "PoolsPaced", text))
    if state.retry_at is not None:
        text = f"{state.failures} writes have failed in a row; tried again at {state.retry_at:%H:%M:%S} UTC"
        found.append((state.retry_at - now, "RetryLater", text))
    return found

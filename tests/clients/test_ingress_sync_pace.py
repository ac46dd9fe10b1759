"""When a change may be written: gathered, paced, put off after failures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from shared.ingress_sync.compiled import Change
from shared.ingress_sync.pace import Pace, pace
from shared.ingress_sync.policy import IngressSyncPolicy
from shared.ingress_sync.state import State

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
POLICY = IngressSyncPolicy(
    gateway="/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationGateways/gw"
)


def at(
    seconds: float, state: State, *, inputs: str = "a", change: Change = Change.LISTENERS, hurry: bool = False
) -> Pace:
    now = NOW + timedelta(seconds=seconds)
    return pace(state, POLICY, now, inputs=inputs, change=change, hurry=hurry)


def test_a_single_change_is_written_after_the_quiet_time() -> None:
    first = at(0, State())
    assert (first.reason, first.wait) == ("Gathering", timedelta(seconds=2))
    assert at(1, first.state).wait == timedelta(seconds=1)
    assert (at(2, first.state).reason, at(2, first.state).wait) == ("", timedelta(0))


def test_a_change_that_moves_waits_for_quiet_but_not_for_ever() -> None:
    state = State()
    for second in range(0, 10, 2):
        found = at(second, state, inputs=f"i{second}")
        assert found.reason == "Gathering", second
        state = found.state
    assert at(10, state, inputs="i10").reason == ""


def test_pools_alone_keep_their_distance_to_the_write_before() -> None:
    state = State(last_put_at=NOW - timedelta(seconds=10), change_seen_at=NOW, change_moved_at=NOW)
    state = at(0, state, inputs="").state
    assert at(5, state, inputs="").wait == timedelta(0)
    found = at(5, state, inputs="", change=Change.POOLS)
    assert (found.reason, found.wait) == ("PoolsPaced", timedelta(seconds=15))
    assert at(21, state, inputs="", change=Change.POOLS).wait == timedelta(0)


def test_after_failures_it_waits_for_its_time() -> None:
    state = at(0, State(failures=2, retry_at=NOW + timedelta(minutes=2))).state
    found = at(30, state)
    assert (found.reason, found.wait) == ("RetryLater", timedelta(seconds=90))
    assert "2 writes have failed" in found.message
    assert at(120, state).reason == ""


def test_an_operator_in_a_hurry_waits_for_nothing() -> None:
    state = State(failures=2, retry_at=NOW + timedelta(minutes=2), last_put_at=NOW)
    assert at(0, state, change=Change.POOLS, hurry=True).wait == timedelta(0)

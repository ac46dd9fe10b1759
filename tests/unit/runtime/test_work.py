"""When a nudge is already answered, and how long it has to wait: pure rules over numbers and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from shared.runtime.message import Nudge
from shared.work import SKEW, _is_satisfied, _time_left

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
SETTLE = timedelta(seconds=10)


def _nudge(after: int | None = None) -> Nudge:
    return Nudge(cluster="prod", automation="etcd-backup", after=after)


@pytest.mark.parametrize(
    ("sent", "began", "expected"),
    [
        (NOW - timedelta(minutes=1), NOW, True),
        (NOW - SKEW - timedelta(milliseconds=1), NOW, True),
        (NOW - SKEW, NOW, False),  # it may have been sent after: the clocks are not that exact
        (NOW, NOW, False),
        (NOW + timedelta(minutes=1), NOW, False),
        (None, NOW, False),
        (NOW, None, False),
    ],
)
def test_a_nudge_is_answered_by_a_pass_that_began_clearly_after_it_was_sent(sent, began, expected) -> None:
    assert _is_satisfied(_nudge(), sent, 5, began) is expected


@pytest.mark.parametrize(
    ("after", "number", "expected"), [(4, 5, True), (5, 5, False), (6, 5, False), (0, 1, True)]
)
def test_a_follow_up_is_answered_by_any_later_pass_whatever_the_clocks_say(after, number, expected) -> None:
    for sent in (NOW - timedelta(hours=1), NOW + timedelta(hours=1), None):
        assert _is_satisfied(_nudge(after), sent, number, NOW) is expected


@pytest.mark.parametrize(
    ("began", "left"),
    [
        (None, None),
        (NOW, SETTLE),
        (NOW - timedelta(seconds=4), timedelta(seconds=6)),
        (NOW - SETTLE, None),
        (NOW - timedelta(days=1), None),
        (NOW + timedelta(hours=1), None),  # a wrong clock elsewhere must not stop us for an hour
    ],
)
def test_the_settling_time_counts_from_the_last_pass(began, left) -> None:
    assert _time_left(began, SETTLE, NOW) == left

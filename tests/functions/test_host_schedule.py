"""NCRONTAB and the schedule monitor, against the platform's rules; no clock, no storage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sandbox.host.schedule import NEVER, Ncrontab, ScheduleStatus, after_run, first_status, is_past_due


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "after", "then"),
    [
        ("0 */5 * * * *", "2026-11-23T10:00:00", "2026-11-23T10:05:00"),
        ("*/5 * * * *", "2026-11-23T10:00:01", "2026-11-23T10:05:00"),
        ("30 0 3 * * *", "2026-11-23T10:00:00", "2026-11-24T03:00:30"),
        ("0 30 9 * Jan Mon", "2026-11-23T10:00:00", "2027-01-04T09:30:00"),
        ("0 0 0 29 2 *", "2026-11-23T10:00:00", "2028-02-29T00:00:00"),
        ("0 0 0 13 * 5", "2026-11-23T10:00:00", "2027-08-13T00:00:00"),  # both day and weekday, unlike cron
        ("0 5/20 * * * 1-5", "2026-11-20T23:46:00", "2026-11-23T00:05:00"),
    ],
)
def test_the_next_occurrence(expression: str, after: str, then: str) -> None:
    assert Ncrontab(expression).next(at(after)) == at(then)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * *",
        "0 0 0 * * * *",
        "60 * * * * *",
        "0 0 0 L * *",
        "0 0 0 * * 5#2",
        "0 0 0 * * 7",
        "@daily",
        "0 0 0 30 2 *",
    ],
)
def test_what_is_not_ncrontab_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="is not an NCRONTAB expression"):
        Ncrontab(expression)


def test_a_new_timer_waits_for_its_next_occurrence() -> None:
    schedule, now = Ncrontab("0 0 * * * *"), at("2026-11-23T10:20:00")
    status = first_status(schedule, now)
    assert (status.last, status.next) == (NEVER, at("2026-11-23T11:00:00"))
    assert is_past_due(schedule, status, now + timedelta(minutes=1)) == (status, False)
    assert is_past_due(schedule, status, at("2026-11-23T11:00:01")) == (status, True)


def test_many_missed_occurrences_are_one_past_due_run() -> None:
    schedule = Ncrontab("0 0 * * * *")
    status = after_run(schedule, None, at("2026-11-23T02:00:00"), False)
    now = at("2026-11-23T09:30:00")
    assert is_past_due(schedule, status, now) == (status, True)
    assert after_run(schedule, status, now, True).next == at("2026-11-23T10:00:00")


def test_a_changed_schedule_starts_anew_instead_of_firing() -> None:
    status = after_run(Ncrontab("0 0 * * * *"), None, at("2026-11-23T02:00:00"), False)
    now = at("2026-11-23T09:30:00")
    changed, missed = is_past_due(Ncrontab("0 45 * * * *"), status, now)
    assert not missed
    assert changed == ScheduleStatus(NEVER, at("2026-11-23T09:45:00"), now)


def test_a_timer_that_fires_early_does_not_fire_again_at_its_due_time() -> None:
    schedule = Ncrontab("0 0 * * * *")
    status = first_status(schedule, at("2026-11-23T10:20:00"))
    early = at("2026-11-23T10:59:59") + timedelta(milliseconds=990)
    assert after_run(schedule, status, early, False).next == at("2026-11-23T12:00:00")


@pytest.mark.parametrize(
    ("expression", "monitored"), [("*/30 * * * * *", False), ("0,10 0 * * * *", False), ("0 * * * * *", True)]
)
def test_schedules_under_a_minute_have_no_monitor(expression: str, monitored: bool) -> None:
    assert Ncrontab(expression).is_monitored(at("2026-11-23T10:20:00")) is monitored

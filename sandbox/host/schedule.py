"""NCRONTAB schedules and the schedule monitor of timer triggers; pure, the time is always an argument.

The rules are those of TimerListener and ScheduleMonitor in Azure/azure-webjobs-sdk-extensions.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import msgspec
from cronsim import CronSim, CronSimError

MONITORED_FROM = timedelta(minutes=1)
# NCRONTAB is second minute hour day month weekday; it has neither Sunday as 7 nor last, nearest or n-th days.
FIELD = re.compile(r"[0-9A-Z*/,\-]+\Z")
WEEKDAY_SEVEN = re.compile(r"(?<![/0-9])7(?![0-9])")
NEVER = datetime.min.replace(tzinfo=UTC)


class Ncrontab:
    """A schedule in UTC; ValueError when the expression is not one the platform takes."""

    def __init__(self, expression: str) -> None:
        fields = expression.upper().split()
        if len(fields) == 5:
            fields.insert(0, "0")
        names = re.compile(r"SUN|MON|TUE|WED|THU|FRI|SAT|JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC")
        plain = len(fields) == 6 and all(
            FIELD.match(field) and not re.search("[A-Z]", names.sub("", field)) for field in fields
        )
        if not plain or WEEKDAY_SEVEN.search(fields[5]):
            raise ValueError(
                f"{expression!r} is not an NCRONTAB expression (second minute hour day month weekday)"
            )
        self.expression = " ".join(fields)
        try:
            self.next(datetime.now(UTC))
        except (CronSimError, StopIteration) as error:
            raise ValueError(
                f"{expression!r} is not an NCRONTAB expression: {error or 'it never comes'}"
            ) from None

    def next(self, after: datetime) -> datetime:
        """The first occurrence later than `after`."""
        simulation = CronSim(self.expression, after)
        simulation.day_and = True  # NCRONTAB wants day and weekday both to match; cron takes either
        return next(simulation)

    def is_monitored(self, now: datetime) -> bool:
        """Whether the platform keeps its status: not when two occurrences are less than a minute apart."""
        earlier = self.next(now)
        for _ in range(10):
            later = self.next(earlier)
            if later - earlier < MONITORED_FROM:
                return False
            earlier = later
        return True


class ScheduleStatus(msgspec.Struct, frozen=True, rename="pascal"):
    """The blob the platform keeps per timer function. `last` is year 1 before the first run."""

    last: datetime
    next: datetime
    last_updated: datetime


def first_status(schedule: Ncrontab, now: datetime) -> ScheduleStatus:
    """Nothing has run yet (or the schedule has changed): wait for the next occurrence, fire nothing."""
    return ScheduleStatus(NEVER, schedule.next(now), now)


def is_past_due(schedule: Ncrontab, status: ScheduleStatus, now: datetime) -> tuple[ScheduleStatus, bool]:
    """On start: the status to go on with, and whether one run was missed (one, however many were).

    A status that another schedule wrote is replaced, and nothing counts as missed.
    """
    since = status.last_updated if status.last == NEVER else status.last
    if status.next != schedule.next(since):
        return first_status(schedule, now), False
    return status, now > status.next


def after_run(
    schedule: Ncrontab, status: ScheduleStatus | None, invoked: datetime, past_due: bool
) -> ScheduleStatus:
    """What is recorded after a run, success or not. A timer that fired early counts from its due time."""
    if status and not past_due and status.next > invoked:
        invoked = status.next
    return ScheduleStatus(invoked, schedule.next(invoked), invoked)

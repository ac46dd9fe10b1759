"""When a cron schedule last came and next comes; pure, UTC, minutes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from shared.errors import SettingsError


def last_tick(schedule: str, now: datetime) -> datetime:
    """The latest time at or before `now` that the schedule names; SettingsError for what is no schedule."""
    start = now.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    return _tick(schedule, start, reverse=True)


def next_tick(schedule: str, now: datetime) -> datetime:
    """The first time after `now`."""
    return _tick(schedule, now.astimezone(UTC), reverse=False)


def is_due(schedule: str, last: datetime | None, now: datetime) -> bool:
    """Whether the schedule has come since `last`; at once when there was none."""
    return last is None or last_tick(schedule, now) > last


def _tick(schedule: str, start: datetime, *, reverse: bool) -> datetime:
    from cronsim import CronSim, CronSimError

    problem = "five fields are needed"
    if len(schedule.split()) == 5:  # CronSim takes six, with seconds, too
        try:
            return next(CronSim(schedule, start, reverse=reverse))
        except CronSimError as error:
            problem = str(error)
        except StopIteration:
            problem = "it never comes"
    raise SettingsError(
        f"'{schedule}' is not a schedule ({problem}); write five cron fields like '0 * * * *'"
    )

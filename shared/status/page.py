"""The status page: one HTML document, readable without JavaScript, by keyboard and by a screen reader.

`render` is pure: the same document gives the same page. Charts are inline SVG with the same numbers in a
table below; nothing is loaded from anywhere. Called by the function behind `GET /api/status`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.model.backup import VerdictState
from shared.model.duration import format_duration

if TYPE_CHECKING:
    from jinja2 import Environment

    from shared.model.backup import BackupRecord
    from shared.runtime.journal import Entry
    from shared.status.collect import ClusterStatus, PageDocument

CALENDAR_WEEKS = 5
CHART_WIDTH, CHART_HEIGHT = 640, 120
SHOWN_ENTRIES = 50


class Point(msgspec.Struct, frozen=True):
    """The size of a pool from `at` on."""

    at: datetime
    size: int


class Line(msgspec.Struct, frozen=True):
    """One pool's sizes over time, and the points of its line in the chart."""

    pool: str
    points: tuple[Point, ...]
    path: str


class Day(msgspec.Struct, frozen=True):
    """One square of the calendar. `state`: none, verified, unverified or bad; `words` says it in full."""

    day: date
    state: str
    words: str


def render(document: PageDocument) -> str:
    """The page as text; it is UTF-8 HTML."""
    return _environment().get_template("status.html.j2").render(page=document, now=document.now)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("shared.status"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ago": ago, "moment": moment, "megabytes": megabytes}
    environment.globals |= {
        "calendar": calendar,
        "pool_lines": pool_lines,
        "newest_proven": newest_proven,
        "of_automation": of_automation,
        "quarantined": quarantined,
        "shown": SHOWN_ENTRIES,
        "chart": (CHART_WIDTH, CHART_HEIGHT),
    }
    return environment


def ago(at: datetime | None, now: datetime) -> str:
    """`5m ago`, in its largest unit; `never` for None."""
    if at is None:
        return "never"
    passed = max(timedelta(0), now - at)
    for unit in (timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)):
        if passed >= unit:
            return f"{format_duration(passed // unit * unit)} ago"
    return f"{format_duration(passed)} ago"


def moment(at: datetime) -> str:
    """A time as it stands in tables, UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def megabytes(count: int) -> str:
    """Bytes as MB with one decimal."""
    return f"{count / 1e6:.1f} MB"


def newest_proven(backups: Sequence[BackupRecord]) -> BackupRecord | None:
    """The newest backup that was verified."""
    proven = [backup for backup in backups if backup.verdict is VerdictState.VERIFIED]
    return proven[-1] if proven else None


def of_automation(entries: Iterable[Entry], automation: str) -> list[Entry]:
    """The journal's outcomes of one automation, newest first."""
    return [entry for entry in entries if entry.automation == automation and entry.kind == "Outcome"]


def quarantined(cluster: ClusterStatus) -> list[dict[str, Any]]:
    """What the last pass of ingress sync left out, with reasons."""
    summaries = (row.summary for row in cluster.automations if row.automation == "ingress-sync")
    return [left for summary in summaries if summary for left in summary.left_alone]


def calendar(backups: Sequence[BackupRecord], now: datetime) -> list[list[Day]]:
    """The last weeks, Monday to Sunday, oldest first; days to come are left out."""
    today = now.astimezone(UTC).date()
    monday = today - timedelta(days=today.weekday(), weeks=CALENDAR_WEEKS - 1)
    weeks = [[monday + timedelta(days=7 * week + day) for day in range(7)] for week in range(CALENDAR_WEEKS)]
    by_day: dict[date, list[BackupRecord]] = {}
    for backup in backups:
        by_day.setdefault(backup.started_at.astimezone(UTC).date(), []).append(backup)
    return [[_day(day, by_day.get(day, [])) for day in week if day <= today] for week in weeks]


def _day(day: date, backups: list[BackupRecord]) -> Day:
    counts = {
        "bad": sum(b.verdict is VerdictState.BAD for b in backups),
        "verified": sum(b.verdict is VerdictState.VERIFIED for b in backups),
    }
    counts["unverified"] = len(backups) - sum(counts.values())
    state = next((name for name, count in counts.items() if count), "none")
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no backup"
    return Day(day, state, f"{day:%A, %d %B}: {said}")


def pool_lines(entries: Iterable[Entry], now: datetime) -> list[Line]:
    """Each pool's size from its first change in the journal until now; pools without a change have no line.

    All lines share one scale: the width is the time, the height the largest size of any.
    """
    points: dict[str, list[Point]] = {}
    for entry in sorted(entries, key=lambda entry: entry.at):
        line = points.setdefault(str(entry.data.get("pool", "")).rpartition("/")[2], [])
        size = _size_after(entry, line[-1].size if line else None)
        if size is not None:
            line.append(Point(entry.at, size))
    points = {pool: line for pool, line in points.items() if line}
    if not points:
        return []
    times = [point.at for line in points.values() for point in line]
    top = max(point.size for line in points.values() for point in line)
    span = (min(times), max(now, *times))
    return [
        Line(pool, tuple(line), " ".join(_path(line, span, top))) for pool, line in sorted(points.items())
    ]


def _size_after(entry: Entry, before: int | None) -> int | None:
    """A pool's size after what an outcome of autoscaling says was done; None when it says nothing of it."""
    if entry.automation != "autoscaling" or entry.status != "Succeeded":
        return None
    event, to = entry.data.get("event", ""), entry.data.get("to")
    if event == "ScaledUp" and isinstance(to, int):
        return to
    is_gone = entry.action in ("ScaleDown", "DeleteInstance") and not event
    return before - 1 if is_gone and before else None


def _path(line: Sequence[Point], span: tuple[datetime, datetime], top: int) -> Iterator[str]:
    """Points of a staircase: a size holds until the next change."""
    seconds = max((span[1] - span[0]).total_seconds(), 1.0)
    previous: float | None = None
    for point in line:
        x = (point.at - span[0]).total_seconds() / seconds * CHART_WIDTH
        y = CHART_HEIGHT - point.size / max(top, 1) * (CHART_HEIGHT - 10)
        if previous is not None:
            yield f"{x:.0f},{previous:.0f}"
        yield f"{x:.0f},{y:.0f}"
        previous = y
    if previous is not None:
        yield f"{CHART_WIDTH},{previous:.0f}"

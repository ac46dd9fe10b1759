"""What the status page draws: node pools over time as staircases, backups as a calendar; pure geometry.

Paths are in a box of WIDTH by HEIGHT that the page stretches to whatever room there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from shared.model.backup import VerdictState
from shared.model.wording import counted

if TYPE_CHECKING:
    from shared.model.backup import BackupRecord
    from shared.runtime.journal import Sizes

WIDTH, HEIGHT = 1000, 100
HEAD_ROOM = 6
"""Above the highest step, so that its line is seen whole."""
CALENDAR_WEEKS = 5
DATED = timedelta(hours=20)
"""Charts that are longer say the day with the time."""


class Steps(msgspec.Struct, frozen=True):
    """Something counted over time. `line` and `area` are SVG path data; `now`, `least`, `most` the counts."""

    line: str
    area: str
    now: int
    least: int
    most: int


class PoolChart(msgspec.Struct, frozen=True, kw_only=True):
    """One node pool: machines in Azure (`nodes`) and Ready nodes in the cluster, on one scale up to `top`."""

    pool: str
    nodes: Steps
    ready: Steps
    min: int
    max: int
    top: int
    words: str


class Charts(msgspec.Struct, frozen=True, kw_only=True):
    """All pools of a cluster over the same time, whose beginning, middle and end are `times`."""

    pools: tuple[PoolChart, ...]
    waiting: Steps
    times: tuple[str, str, str]


class Day(msgspec.Struct, frozen=True):
    """One day of the calendar. `state`: none, verified, unverified or bad; `words` says it in full."""

    day: date
    state: str
    words: str


def pool_charts(sizes: Sequence[Sizes], begin: datetime, now: datetime) -> Charts | None:
    """From `begin`, or the first look if that was later; None without one. `sizes` are oldest first."""
    if not sizes:
        return None
    begin = max(begin, sizes[0].at)
    scale = _Scale(begin, max(now, sizes[-1].at, begin + timedelta(minutes=1)))
    names = [one.pool for one in sizes[-1].pools]
    return Charts(
        pools=tuple(_pool(name, sizes, scale) for name in names),
        waiting=_steps(_series(sizes, lambda one: one.waiting_pods), scale),
        times=scale.times(),
    )


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


class _Scale:
    """Times to places in the box, from 0 to WIDTH."""

    def __init__(self, begin: datetime, end: datetime) -> None:
        self.begin, self.end = begin, end

    def x(self, at: datetime) -> int:
        seconds = (max(at, self.begin) - self.begin).total_seconds()
        return round(seconds / (self.end - self.begin).total_seconds() * WIDTH)

    def times(self) -> tuple[str, str, str]:
        form = "%a %H:%M" if self.end - self.begin > DATED else "%H:%M"
        middle = self.begin + (self.end - self.begin) / 2
        first, between, last = (f"{at.astimezone(UTC):{form}}" for at in (self.begin, middle, self.end))
        return first, between, last


_Series = list[tuple[datetime, int]]


def _series(sizes: Sequence[Sizes], count: Callable[[Sizes], int]) -> _Series:
    return [(one.at, count(one)) for one in sizes]


def _pool(name: str, sizes: Sequence[Sizes], scale: _Scale) -> PoolChart:
    def field(which: str) -> Callable[[Sizes], int]:
        return lambda one: next((getattr(pool, which) for pool in one.pools if pool.pool == name), 0)

    machines, ready = _series(sizes, field("nodes")), _series(sizes, field("ready"))
    top = max(count for _, count in (*machines, *ready))
    latest = next(pool for pool in sizes[-1].pools if pool.pool == name)
    nodes = _steps(machines, scale, top)
    words = (
        f"Pool {name}: {counted(nodes.now, 'node')} now, {latest.ready} ready; "
        f"between {nodes.least} and {nodes.most} since {scale.times()[0]}"
    )
    return PoolChart(
        pool=name,
        nodes=nodes,
        ready=_steps(ready, scale, top),
        min=latest.min,
        max=latest.max,
        top=top,
        words=words,
    )


def _steps(series: _Series, scale: _Scale, top: int | None = None) -> Steps:
    counts = [count for _, count in series]
    most = max(counts)
    points = " L".join(_staircase(series, scale, max(most if top is None else top, 1)))
    line = f"M{points}"
    return Steps(line, f"{line} L{WIDTH},{HEIGHT} L0,{HEIGHT} Z", counts[-1], min(counts), most)


def _staircase(series: _Series, scale: _Scale, top: int) -> Iterator[str]:
    """A count holds until the next one."""
    level: float | None = None
    for at, count in series:
        x = scale.x(at)
        if level is not None:
            yield f"{x},{level:.0f}"
        level = HEIGHT - count / top * (HEIGHT - HEAD_ROOM)
        yield f"{x},{level:.0f}"
    yield f"{WIDTH},{level:.0f}"

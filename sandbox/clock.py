"""The time of the local world: real, or standing still until a test moves it."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta


class Clock:
    """`Clock()` runs with the machine; `Clock(start)` stands at `start`. Both can be moved forward.

    Work can be left for a time to come. `advance` does it in order, and while a piece of it is done, `now`
    is its time. With a running clock, what has come due is done by the next `advance`, also of 0 seconds.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._start = start
        self._offset = timedelta()
        self._due: list[tuple[datetime, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._advancing = threading.RLock()

    def now(self) -> datetime:
        return (self._start or datetime.now(UTC)) + self._offset

    @property
    def is_running(self) -> bool:
        """Whether it goes on by itself."""
        return self._start is None

    def at(self, when: datetime, work: Callable[[], None]) -> None:
        """Do `work` when time has moved to `when`; at the next `advance` if that is past."""
        with self._lock:
            heapq.heappush(self._due, (when, next(self._order), work))

    def advance(self, seconds: float) -> None:
        """Time only goes forward."""
        assert seconds >= 0
        with self._advancing:
            end = self.now() + timedelta(seconds=seconds)
            while (due := self._next(end)) is not None:
                when, _, work = due
                self._offset += max(timedelta(), when - self.now())
                work()
            self._offset += max(timedelta(), end - self.now())

    def _next(self, end: datetime) -> tuple[datetime, int, Callable[[], None]] | None:
        # Work is done without this lock, since it may hold others whose holders leave work here.
        with self._lock:
            return heapq.heappop(self._due) if self._due and self._due[0][0] <= end else None

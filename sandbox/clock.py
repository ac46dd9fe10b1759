"""The time of the local world: real, or standing still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class Clock:
    """`Clock()` runs with the machine; `Clock(start)` stands at `start`. Both can be moved forward."""

    def __init__(self, start: datetime | None = None) -> None:
        self._start = start
        self._offset = timedelta()

    def now(self) -> datetime:
        return (self._start or datetime.now(UTC)) + self._offset

    def advance(self, seconds: float) -> None:
        """Time only goes forward."""
        assert seconds >= 0
        self._offset += timedelta(seconds=seconds)

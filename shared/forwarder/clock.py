"""The clock of a forwarder's threads: steady seconds, and waiting that a test can make faster."""

from __future__ import annotations

import threading
import time


class Clock:
    """`speed` seconds pass here in each second of the machine: 1 but in tests."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic() * self.speed

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for the event, so long at most; whether it came."""
        return event.wait(max(0.0, seconds) / self.speed)

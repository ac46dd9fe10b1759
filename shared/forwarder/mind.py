"""What the forwarder's threads share: what is known, what is to be said, and the one lock around both.

Everything done under the lock takes microseconds, so a watch never waits for the network of another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from shared.forwarder.decide import (
    INGRESSES,
    Etcd,
    Known,
    Reason,
    References,
    Source,
    references_of,
)
from shared.forwarder.gather import Message, Outbox, Pace
from shared.forwarder.metrics import Counter, Metrics


class Mind:
    """State of one forwarder. `now` is seconds of the clock that all callers share."""

    def __init__(self, sources: Iterable[Source], pace: Pace, metrics: Metrics) -> None:
        self.metrics = metrics
        self.wake = threading.Event()
        """Set when there is something new to send."""
        self._known = {source.name: Known(source) for source in sources}
        self._etcd = Etcd()
        self._references = References()
        self._outbox = Outbox(pace)
        self._counters: dict[tuple[str, str], tuple[Counter, Counter]] = {}
        self._lock = threading.Lock()

    def begin_list(self, source: Source) -> None:
        """See `Known.begin_list`."""
        with self._lock:
            self._known[source.name].begin_list()

    def listed(self, source: Source, thing: Any, now: float) -> None:
        """One object of a list."""
        with self._lock:
            self._take(self._known[source.name].listed(thing, self._references, now), now)

    def end_list(self, source: Source, now: float) -> None:
        """The list is complete."""
        with self._lock:
            known = self._known[source.name]
            for reason in known.end_list(self._references):
                self._take(reason, now)
            if known.overflowed:
                self.metrics.count("overflows_total", known.overflowed, source=source.name)
            self._refer(source)

    def changed(self, source: Source, kind: str, thing: Any, now: float) -> None:
        """One line of a watch."""
        with self._lock:
            known = self._known[source.name]
            overflowed = known.overflowed
            reason = known.changed(kind, thing, self._references, now)
            if known.overflowed > overflowed:
                self.metrics.count("overflows_total", source=source.name)
            if reason is not None:
                self._refer(source)
                self._take(reason, now)

    def unreadable(self, source: Source, now: float) -> None:
        """Something came that could not be read: what it means is not known, so somebody shall look."""
        with self._lock:
            self.metrics.count("unreadable_total", source=source.name)
            self._take(Reason(source.event, "Unreadable", source.name), now)

    def etcd_checked(self, is_well: bool, said: str, now: float) -> None:
        """What the API server says of etcd."""
        with self._lock:
            self._take(self._etcd.checked(is_well, said), now)

    def look_around(self, now: float) -> None:
        """What has become a reason by the passing of time."""
        with self._lock:
            for known in self._known.values():
                for reason in list(known.lingering(now)):
                    self._take(reason, now)

    def say_again(self, now: float) -> None:
        """What is still wrong, in case nobody heard it the first time."""
        with self._lock:
            for known in self._known.values():
                self._take(known.trouble(), now)
            self._take(self._etcd.trouble(), now)

    def take_due(self, now: float) -> list[Message]:
        """See `Outbox`."""
        with self._lock:
            return self._outbox.take_due(now)

    def take_all(self) -> list[Message]:
        """See `Outbox`."""
        with self._lock:
            return self._outbox.take_all()

    def put_back(self, message: Message, not_before: float) -> None:
        """See `Outbox`."""
        with self._lock:
            self._outbox.put_back(message, not_before)

    def next_due(self) -> float | None:
        """See `Outbox`."""
        with self._lock:
            return self._outbox.next_due()

    def sizes(self) -> dict[str, int]:
        """Objects kept in mind, by source."""
        with self._lock:
            return {name: len(known) for name, known in self._known.items()}

    def waiting(self, now: float) -> tuple[int, float]:
        """Messages that wait, and for how long the oldest of their reasons has."""
        with self._lock:
            oldest = self._outbox.oldest()
            return len(self._outbox), 0.0 if oldest is None else max(0.0, now - oldest)

    def _refer(self, source: Source) -> None:
        if source.name == INGRESSES.name:
            self._references = references_of(self._known[source.name].states)

    def _take(self, reason: Reason | None, now: float) -> None:
        if reason is None:
            return
        counters = self._counters.get((reason.event, reason.why))
        if counters is None:
            found = self.metrics.counter("reasons_total", event=reason.event, why=reason.why)
            gathered = self.metrics.counter("gathered_total", event=reason.event)
            counters = self._counters[reason.event, reason.why] = found, gathered
        counters[0].value += 1
        if self._outbox.add(reason, now):
            counters[1].value += 1
        else:
            self.wake.set()

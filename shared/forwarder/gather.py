"""Gathers reasons into few messages: pure, time is an argument (seconds of any steady clock).

A message for each event type at most: memory is bounded by that, however many reasons come and however long
nothing can be sent. The first reason waits until it has been quiet, but never longer than `longest`; then
nothing of that type is sent for `gap`, since the app would only mark itself to look once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.forwarder.decide import Reason

MOST_SUBJECTS = 10
"""Objects named in a message; `count` says how many reasons there were."""
MOST_WHYS = 10


@dataclass(frozen=True)
class Pace:
    """How messages are spaced, in seconds."""

    quiet: float = 1.0
    longest: float = 5.0
    gap: float = 10.0
    gaps: Mapping[str, float] = field(default_factory=dict)
    """Other gaps, by event."""

    def gap_of(self, event: str) -> float:
        return self.gaps.get(event, self.gap)


@dataclass(slots=True)
class Message:
    """All reasons for one event type since the last one was sent. Its owner alone changes it: the outbox
    while it waits, then whoever took it.
    """

    event: str
    whys: list[str]
    subjects: list[str]
    count: int
    first_at: float
    last_at: float

    def add(self, whys: list[str], subjects: list[str], count: int, at: float) -> None:
        """More reasons; of words that are new, only so many are kept."""
        self.count += count
        self.last_at = max(self.last_at, at)
        _add(self.whys, whys, MOST_WHYS)
        _add(self.subjects, subjects, MOST_SUBJECTS)


class Outbox:
    """What is still to be said."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._waiting: dict[str, Message] = {}
        self._not_before: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, reason: Reason, now: float) -> bool:
        """Take a reason; whether it joined others that wait."""
        waiting = self._waiting.get(reason.event)
        if waiting is None:
            self._waiting[reason.event] = Message(reason.event, [reason.why], [reason.subject], 1, now, now)
            return False
        waiting.add([reason.why], [reason.subject], 1, now)
        return True

    def take_due(self, now: float) -> list[Message]:
        """The messages to send now. What cannot be sent comes back by `put_back`."""
        due = [message for message in self._waiting.values() if self._due_at(message) <= now]
        for message in due:
            del self._waiting[message.event]
            self._not_before[message.event] = now + self._pace.gap_of(message.event)
        return due

    def take_all(self) -> list[Message]:
        """All messages, due or not."""
        waiting, self._waiting = list(self._waiting.values()), {}
        return waiting

    def put_back(self, message: Message, not_before: float) -> None:
        """A message that could not be sent joins what has come since, and waits until `not_before`."""
        self._not_before[message.event] = not_before
        newer = self._waiting.get(message.event)
        if newer is not None:
            message.add(newer.whys, newer.subjects, newer.count, newer.last_at)
        self._waiting[message.event] = message

    def next_due(self) -> float | None:
        """When something will be due; None when nothing waits."""
        return min((self._due_at(message) for message in self._waiting.values()), default=None)

    def oldest(self) -> float | None:
        """Since when the oldest reason waits."""
        return min((message.first_at for message in self._waiting.values()), default=None)

    def _due_at(self, message: Message) -> float:
        settled = min(message.last_at + self._pace.quiet, message.first_at + self._pace.longest)
        return max(settled, self._not_before.get(message.event, settled))


def _add(words: list[str], more: list[str], most: int) -> None:
    for word in more:
        if len(words) >= most:
            return
        if word not in words:
            words.append(word)

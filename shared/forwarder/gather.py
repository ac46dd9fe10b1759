"""Gathers reasons into few messages: pure, time is an argument (seconds of any steady clock).

A message for each event type at most: memory is bounded by that, however many reasons come and however long
nothing can be sent. The first reason waits until it has been quiet, but never longer than `longest`; then
nothing of that type is sent for `gap`, since the app would only mark itself to look once more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Message:
    """All reasons for one event type since the last one was sent."""

    event: str
    whys: tuple[str, ...]
    subjects: tuple[str, ...]
    count: int
    first_at: float
    last_at: float


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
            self._waiting[reason.event] = Message(reason.event, (reason.why,), (reason.subject,), 1, now, now)
            return False
        self._waiting[reason.event] = replace(
            waiting,
            whys=_with(waiting.whys, reason.why, MOST_WHYS),
            subjects=_with(waiting.subjects, reason.subject, MOST_SUBJECTS),
            count=waiting.count + 1,
            last_at=now,
        )
        return True

    def take_due(self, now: float) -> list[Message]:
        """The messages to send now. What cannot be sent comes back by `put_back`."""
        due = [message for message in self._waiting.values() if self._due_at(message) <= now]
        for message in due:
            del self._waiting[message.event]
            self._not_before[message.event] = now + self._pace.gap
        return due

    def take_all(self) -> list[Message]:
        """All messages, due or not."""
        waiting, self._waiting = list(self._waiting.values()), {}
        return waiting

    def put_back(self, message: Message, not_before: float) -> None:
        """A message that could not be sent joins what has come since, and waits until `not_before`."""
        self._not_before[message.event] = not_before
        newer = self._waiting.get(message.event)
        if newer is None:
            self._waiting[message.event] = message
            return
        whys, subjects = message.whys, message.subjects
        for why in newer.whys:
            whys = _with(whys, why, MOST_WHYS)
        for subject in newer.subjects:
            subjects = _with(subjects, subject, MOST_SUBJECTS)
        self._waiting[message.event] = replace(
            newer,
            whys=whys,
            subjects=subjects,
            count=message.count + newer.count,
            first_at=message.first_at,
        )

    def next_due(self) -> float | None:
        """When something will be due; None when nothing waits."""
        return min((self._due_at(message) for message in self._waiting.values()), default=None)

    def oldest(self) -> float | None:
        """Since when the oldest reason waits."""
        return min((message.first_at for message in self._waiting.values()), default=None)

    def _due_at(self, message: Message) -> float:
        settled = min(message.last_at + self._pace.quiet, message.first_at + self._pace.longest)
        return max(settled, self._not_before.get(message.event, settled))


def _with(words: tuple[str, ...], word: str, most: int) -> tuple[str, ...]:
    return words if word in words or len(words) >= most else (*words, word)

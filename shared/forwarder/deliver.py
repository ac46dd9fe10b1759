"""Sends messages: as CloudEvents to an Event Grid topic, or as nudges to the automations' own queues.

What cannot be sent goes back, joins what comes meanwhile, and is tried again after a growing pause: for ever,
since a hint that is never heard costs only latency, and one that is dropped in silence costs trust.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from shared.clients.eventgrid import Event, event_topic
from shared.clients.queue import Queue, queue_service
from shared.errors import ApiError, NotFoundError, ThrottledError
from shared.forwarder.clock import Clock
from shared.forwarder.gather import Message
from shared.forwarder.mind import Mind
from shared.forwarder.settings import PREFIX, ForwarderSettings
from shared.log import log_event
from shared.runtime.automation import AUTOMATIONS
from shared.runtime.message import Nudge

if TYPE_CHECKING:
    from shared.clients.eventgrid import Topic

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
IDLE_SECONDS = 5.0
"""How long the courier sleeps when nothing waits; a reason wakes it."""


class Destination(Protocol):
    """Where messages go."""

    def send(self, messages: Sequence[Message]) -> Mapping[str, ApiError]:
        """Send all; the errors of those that were not sent, by event."""


class TopicDestination:
    """An Event Grid topic. `name` makes the events' ids unique among processes."""

    def __init__(
        self, topic: Topic, cluster: str, name: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._topic = topic
        self._cluster = cluster
        self._name = name
        self._now = now
        self._sent = 0

    def send(self, messages: Sequence[Message]) -> Mapping[str, ApiError]:
        try:
            self._topic.publish([self._event(message) for message in messages])
        except ApiError as error:
            return {message.event: error for message in messages}
        return {}

    def _event(self, message: Message) -> Event:
        self._sent += 1
        data: dict[str, Any] = {
            "cluster": self._cluster,
            "reason": message.whys[0],
            "reasons": message.whys,
            "objects": message.subjects,
            "count": message.count,
        }
        return Event(
            id=f"{self._name}-{self._sent}",
            type=PREFIX + message.event,
            source=f"/kubekeeper/clusters/{self._cluster}",
            subject=message.subjects[0],
            time=self._now(),
            data=data,
        )


class QueueDestination:
    """The queues of the automations that want an event; each is created by whoever misses it first."""

    def __init__(self, queues: Mapping[str, Queue], cluster: str) -> None:
        self._queues = queues
        self._cluster = cluster

    def send(self, messages: Sequence[Message]) -> Mapping[str, ApiError]:
        failed: dict[str, ApiError] = {}
        for message in messages:
            for name, queue in self._queues.items():
                if PREFIX + message.event in AUTOMATIONS[name].events:
                    nudge = Nudge(cluster=self._cluster, automation=name, reason=message.event)
                    try:
                        _send(queue, nudge.encode())
                    except ApiError as error:
                        failed[message.event] = error
        return failed


def destination(settings: ForwarderSettings, environ: Mapping[str, str], name: str) -> Destination:
    """What the settings ask for."""
    if not settings.by_queue:
        topic = event_topic(environ)
        assert topic is not None, "read_settings has seen the endpoint"
        return TopicDestination(topic, settings.cluster, name)
    service = queue_service(environ)
    queues = {name: Queue(service.get_queue_client(name)) for name in settings.automations}
    return QueueDestination(queues, settings.cluster)


class Courier:
    """Carries what is due; a thread of its own, since a topic may take its time."""

    def __init__(self, mind: Mind, where: Destination, clock: Clock) -> None:
        self._mind = mind
        self._where = where
        self._clock = clock
        self._failures = 0
        self._rests_until = 0.0
        self._stopped = False

    def run(self) -> None:
        """Until `stop`. What is no ApiError is a bug, and ends the process."""
        while not self._stopped:
            self._mind.wake.clear()
            self._clock.wait(self._mind.wake, self.step())

    def stop(self) -> None:
        """From any thread."""
        self._stopped = True
        self._mind.wake.set()

    def step(self) -> float:
        """Send what is due; how many seconds until something may be."""
        now = self._clock.now()
        if now < self._rests_until:
            return self._rests_until - now
        if due := self._mind.take_due(now):
            self._deliver(due)
        next_due = self._mind.next_due()
        if next_due is None:
            return IDLE_SECONDS
        return max(0.0, max(next_due, self._rests_until) - self._clock.now())

    def flush(self) -> None:
        """One attempt to send all that waits, before the end."""
        if waiting := self._mind.take_all():
            self._deliver(waiting)

    def _deliver(self, due: list[Message]) -> None:
        failed = self._where.send(due)
        self._failures = self._failures + 1 if failed else 0
        pause = self._pause(failed.values())
        # When nothing at all goes through, all wait together, so that all go with the first that does.
        is_closed = len(failed) == len(due)
        if is_closed:
            self._rests_until = self._clock.now() + pause
        for message in due:
            error = failed.get(message.event)
            if error is None:
                self._sent(message)
            else:
                self._mind.put_back(message, self._clock.now() + (0.0 if is_closed else pause))
                self._failed(message, error, pause)

    def _pause(self, errors: Iterable[ApiError]) -> float:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(max(self._failures - 1, 0), 10))
        asked = [error.retry_after_seconds for error in errors if isinstance(error, ThrottledError)]
        return max(pause, min(max(asked, default=0.0), LONGEST_PAUSE))

    def _sent(self, message: Message) -> None:
        metrics = self._mind.metrics
        metrics.count("messages_total", event=message.event)
        metrics.count("reasons_sent_total", message.count, event=message.event)
        log_event(
            log,
            "Sent",
            event=message.event,
            reasons=",".join(message.whys),
            count=message.count,
            objects=",".join(message.subjects),
        )

    def _failed(self, message: Message, error: ApiError, pause: float) -> None:
        self._mind.metrics.count(
            "send_failures_total", event=message.event, error=error.code or type(error).__name__
        )
        level = logging.ERROR if self._failures == 1 else logging.WARNING
        log_event(log, "NotSent", level=level, event=message.event, error=error, again=f"{pause:.0f}s")


def _send(queue: Queue, text: str) -> None:
    try:
        queue.send(text, timedelta(0))
    except NotFoundError:
        queue.ensure()
        queue.send(text, timedelta(0))

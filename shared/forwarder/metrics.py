"""Counts what the forwarder sees and does, as Prometheus text: nothing is lost without one of them rising."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

PREFIX = "kubekeeper_forwarder_"

COUNTERS: Mapping[str, str] = {
    "lines_total": "Lines of watches read, by source.",
    "lists_total": "Lists of a whole source, by cause: Start, Resync, Expired (410), Unreadable.",
    "breaks_total": "Requests to the API server that failed or broke off, by source and error.",
    "unreadable_total": "Lines and objects that did not fit what Kubernetes promises, by source.",
    "overflows_total": "Objects beyond what is kept in mind, by source; each of their changes is a reason.",
    "reasons_total": "Reasons found, by event and why.",
    "gathered_total": "Reasons that joined a message which waited already, by event.",
    "messages_total": "Messages sent, by event.",
    "reasons_sent_total": "Reasons that were in the messages sent, by event.",
    "send_failures_total": "Messages not sent, which wait for the next attempt, by event and error.",
}
GAUGES: Mapping[str, str] = {
    "source_synced": "1 while the source has been listed and is watched, by source.",
    "objects": "Objects kept in mind, by source.",
    "waiting_messages": "Messages that wait, at most one for each event.",
    "oldest_wait_seconds": "For how long the oldest reason waits.",
    "resident_bytes": "Memory of this process.",
    "cpu_seconds": "CPU time of this process.",
}

Labels = tuple[tuple[str, str], ...]


class Counter:
    """One series, for what counts it often: whoever holds it is alone, or holds a lock."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Metrics:
    """Counters that threads may share; gauges are asked for when they are read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, Labels], Counter] = {}

    def counter(self, name: str, **labels: str) -> Counter:
        """The counter of COUNTERS with those labels."""
        assert name in COUNTERS, name
        key = (name, tuple(sorted(labels.items())))
        with self._lock:
            return self._counts.setdefault(key, Counter())

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter; from any thread."""
        counter = self.counter(name, **labels)
        with self._lock:
            counter.value += amount

    def value(self, name: str, **labels: str) -> float:
        """The sum over all series that have those labels."""
        wanted = set(labels.items())
        with self._lock:
            return sum(
                counter.value
                for (known, at), counter in self._counts.items()
                if known == name and wanted <= set(at)
            )

    def text(self, gauges: Callable[[], Mapping[tuple[str, Labels], float]]) -> str:
        """Everything in the text format of Prometheus."""
        with self._lock:
            values = {key: counter.value for key, counter in self._counts.items()}
        values |= gauges()
        lines: list[str] = []
        for kind, names in (("counter", COUNTERS), ("gauge", GAUGES)):
            for name, about in names.items():
                lines += [f"# HELP {PREFIX}{name} {about}", f"# TYPE {PREFIX}{name} {kind}"]
                lines += [
                    _line(name, labels, value)
                    for (known, labels), value in sorted(values.items())
                    if known == name
                ]
        return "\n".join(lines) + "\n"


def _line(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{PREFIX}{name}{{{inside}}} {value:g}" if inside else f"{PREFIX}{name} {value:g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

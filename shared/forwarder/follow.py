"""Follows one source: list, watch, and again, through whatever the API server and the network do.

* A watch that ends or breaks is taken up where it ended.
* 410 (that moment is forgotten), and every `resync` seconds: everything is listed again and compared.
* A reader slower than the changes is cut off by the API server, and then meets 410: nothing is queued here.

Each follower is a thread; a break costs it a growing pause. Called by `run`.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import Any

import msgspec

from shared.clients.kube import KubeClient, Watch
from shared.errors import ApiError, ConflictError, UnavailableError
from shared.forwarder.clock import Clock
from shared.forwarder.decide import Source
from shared.forwarder.mind import Mind
from shared.forwarder.objects import Line, Page
from shared.log import log_event

log = logging.getLogger(__name__)

WATCH_SECONDS = 300
"""How long one watch is asked for."""
LINGER_SECONDS = 0.5
"""A busy source is read twice a second; a line after silence is read at once."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0
AT_ONCE_SECONDS = 1.0
"""A watch that ends sooner, without a line, counts as broken: asking again at once would be a storm."""


class Follower:
    """One source of one cluster."""

    def __init__(self, source: Source, client: KubeClient, mind: Mind, clock: Clock, resync: float) -> None:
        self.source = source
        self.is_synced = False
        """Whether what is known is what there is, as far as can be told."""
        self.version = ""
        """resourceVersion up to which everything has been seen."""
        self._client = client
        self._mind = mind
        self._clock = clock
        self._resync = resync
        self._cause = "Start"
        self._list_again_at = 0.0
        self._failures = 0
        self._lines = mind.metrics.counter("lines_total", source=source.name)
        self._stop = threading.Event()
        self._watch: Watch | None = None
        self._line: msgspec.json.Decoder[Line[Any]] = msgspec.json.Decoder(Line[source.shape])  # type: ignore[name-defined]
        self._thing: msgspec.json.Decoder[Any] = msgspec.json.Decoder(source.shape)

    def run(self) -> None:
        """Until `stop`. What is no ApiError is a bug, and ends the process."""
        while not self._stop.is_set():
            try:
                if self._cause:
                    self._list()
                self._follow()
            except ApiError as error:
                self._broke(error)
                self._clock.wait(self._stop, self._pause())

    def stop(self) -> None:
        """From any thread; `run` ends soon after."""
        self._stop.set()
        if self._watch is not None:
            self._watch.close()

    def _list(self) -> None:
        source, mind = self.source, self._mind
        mind.metrics.count("lists_total", source=source.name, cause=self._cause)
        pages = self._client.metadata_pages if source.metadata_only else self._client.pages
        mind.begin_list(source)
        version = ""
        for body in pages(source.path, limit=source.page, **source.query):
            page = _decode_page(source, body)
            version = page.metadata.resource_version
            for item in page.items or ():
                self._listed(item)
        mind.end_list(source, self._clock.now())
        self.version = version
        log_event(log, "Listed", source=source.name, cause=self._cause, version=version)
        self._cause = ""
        # Not all sources at once, for ever after.
        self._list_again_at = self._clock.now() + self._resync * random.uniform(0.8, 1.0)  # noqa: S311
        self.is_synced = True

    def _listed(self, item: msgspec.Raw) -> None:
        try:
            thing = self._thing.decode(item)
        except msgspec.MsgspecError as error:
            self._unreadable(error)
            return
        self._mind.listed(self.source, thing, self._clock.now())

    def _follow(self) -> None:
        """Watch until it is time to list again."""
        while not self._stop.is_set():
            left = self._list_again_at - self._clock.now()
            if left <= 0:
                self._cause = "Resync"
                return
            seconds = max(1, round(min(left, WATCH_SECONDS) / self._clock.speed))
            if not self._read(seconds) and not self._stop.is_set():
                raise UnavailableError(f"the watch of {self.source.path} ended at once", code="EndedAtOnce")

    def _read(self, seconds: int) -> bool:
        """One watch to its end; False when that came sooner than it should, without a line."""
        began, lines, source = self._clock.now(), 0, self.source
        with self._client.watch(
            source.path,
            self.version,
            source.query,
            seconds=seconds,
            linger=LINGER_SECONDS / self._clock.speed,
            metadata_only=source.metadata_only,
        ) as watch:
            self._watch = watch
            if self._stop.is_set():  # it was set before there was a watch to close
                return True
            self.is_synced = True
            for line in watch:
                lines += 1
                self._take(line)
        return lines > 0 or (self._clock.now() - began) / self._clock.speed >= AT_ONCE_SECONDS

    def _take(self, line: bytes) -> None:
        self._lines.value += 1
        try:
            change = self._line.decode(line)
        except msgspec.MsgspecError as error:
            self._unreadable(error)
            return
        self._failures = 0
        if change.type != "BOOKMARK":
            self._mind.changed(self.source, change.type, change.object, self._clock.now())
        self.version = change.object.metadata.resource_version

    def _unreadable(self, error: Exception) -> None:
        log_event(log, "Unreadable", level=logging.WARNING, source=self.source.name, error=error)
        self._mind.unreadable(self.source, self._clock.now())

    def _broke(self, error: ApiError) -> None:
        if self._stop.is_set():
            return
        if isinstance(error, ConflictError):
            self._cause = "Expired"
        elif not isinstance(error, UnavailableError) and not self._cause:
            # Whatever it is, taking the watch up where it ended might meet it again for ever.
            self._cause = "Unreadable"
        self.is_synced = False
        self._failures += 1
        kind = type(error).__name__
        self._mind.metrics.count("breaks_total", source=self.source.name, error=error.code or kind)
        # The first of a row is said aloud; the rest are in the metrics.
        level = logging.WARNING if self._failures == 1 else logging.DEBUG
        log_event(
            log, "SourceBroke", level=level, source=self.source.name, error=error, attempt=self._failures
        )

    def _pause(self) -> float:
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311


def _decode_page(source: Source, body: bytes) -> Page[msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=Page[msgspec.Raw])
    except msgspec.MsgspecError as error:
        raise ApiError(f"the list of {source.path} is no list ({error})", code="NoList") from error

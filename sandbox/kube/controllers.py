"""The controllers of the stand-in, run whenever something has changed, on the cluster's clock.

On a clock that stands still all of it happens within `clock.advance`, in one thread and in one order: the
same scenario has the same course each time, but for generated names, which follow Python's `random`. With
the machine's clock, `Background` moves it along.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Protocol, TypeAlias

from sandbox.clock import Clock
from sandbox.kube.errors import RefusalError
from sandbox.kube.kinds import KINDS, Kind
from sandbox.kube.objects import Objects
from sandbox.kube.store import Key, Store

Dirty: TypeAlias = dict[Kind, set[Key]]
"""What has changed since a controller was asked last."""
ROUNDS = 1000
BREATH_SECONDS = 0.02
logger = logging.getLogger(__name__)


class Controller(Protocol):
    """Brings what it looks after in line with what there is."""

    def sync(self, dirty: Dirty) -> None:
        """Called with the store's lock held, after each change, its own ones too."""


class Controllers:
    """Asks controllers in turn until none has anything left to change."""

    def __init__(
        self, store: Store, clock: Clock, objects: Objects, controllers: Sequence[Controller]
    ) -> None:
        self._store = store
        self._clock = clock
        self._objects = objects
        self._controllers = list(controllers)
        self._seen: int | None = None
        self._touched: set[Kind] = set()
        """Of which something has changed since: most of the time one or two of all there are."""
        self._is_due = False
        self.wake = threading.Event()
        """Set when something has changed."""
        with store.lock:
            for kind in KINDS:
                store.listen(kind, partial(self._changed, kind))
                self._changed(kind)

    def add(self, controller: Controller) -> None:
        """One more, asked after the others; it looks for itself at what there already is."""
        self._controllers.append(controller)

    def _changed(self, kind: Kind) -> None:
        self._touched.add(kind)
        if not self._is_due:
            self._is_due = True
            self._clock.at(self._clock.now(), self._settle)
            self.wake.set()

    def _settle(self) -> None:
        with self._store.lock:
            try:
                for _ in range(ROUNDS):
                    dirty = self._dirty()
                    if not dirty:
                        return
                    for controller in self._controllers:
                        controller.sync(dirty)
            finally:
                self._is_due = False
        raise RuntimeError(f"controllers go on without end; last about {dirty}")

    def _dirty(self) -> Dirty:
        found: Dirty = {}
        since, self._seen = self._seen, self._store.revision
        touched, self._touched = self._touched, set()
        for kind in KINDS:
            if since is not None and kind not in touched:
                continue
            if since is None:
                keys = {record.key for record in self._store.select(kind)}
            else:
                keys = self._keys_changed(kind, since)
            if keys:
                found[kind] = keys
                for key in keys:
                    self._objects.forget(kind, key)
        return found

    def _keys_changed(self, kind: Kind, since: int) -> set[Key]:
        try:
            changes = self._store.changes(kind, since)
        except RefusalError:  # the history was dropped meanwhile
            return {record.key for record in self._store.select(kind)}
        touched = (change.new or change.old for change in changes)
        return {record.key for record in touched if record is not None}


class Background:
    """Moves a clock that runs by itself: does what has come due, in one thread."""

    def __init__(self, clock: Clock, controllers: Controllers) -> None:
        self._clock = clock
        self._controllers = controllers
        self.failures: list[Exception] = []
        """What controllers have failed with; tests expect none."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubernetes controllers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """May be called twice."""
        self._stopping.set()
        self._controllers.wake.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._controllers.wake.wait(BREATH_SECONDS)
            self._controllers.wake.clear()
            try:
                self._clock.advance(0)
            except Exception as error:  # one controller's mistake must not end all of them
                self.failures.append(error)
                logger.exception("a controller of the local Kubernetes failed")


def every(objects: Objects, period: timedelta, work: Callable[[], object]) -> None:
    """Does `work()` again and again, first after one period."""

    def tick() -> None:
        work()
        objects.later(period.total_seconds(), tick)

    objects.later(period.total_seconds(), tick)

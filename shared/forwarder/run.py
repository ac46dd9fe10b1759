"""One running forwarder: its threads, what they share, its pages, its beginning and end."""

from __future__ import annotations

import logging
import os
import resource
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared.clients.kube import KubeClient
from shared.errors import ApiError, UnavailableError
from shared.forwarder.clock import Clock
from shared.forwarder.decide import ETCD_UNHEALTHY, sources
from shared.forwarder.deliver import Courier, Destination
from shared.forwarder.follow import Follower
from shared.forwarder.metrics import Labels, Metrics
from shared.forwarder.mind import Mind
from shared.forwarder.serve import PageServer, document
from shared.forwarder.settings import ForwarderSettings
from shared.log import log_event

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""How often time itself is looked at: volumes that linger, etcd, the resync."""
ETCD_PATH = "/readyz/etcd"
STOP_SECONDS = 5.0


class Forwarder:
    """Watches one cluster and sends what is a reason to look. `run` blocks until `stop`, or until a thread
    has died of a bug.
    """

    def __init__(
        self,
        settings: ForwarderSettings,
        client: KubeClient,
        where: Destination,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.metrics = Metrics()
        self._settings = settings
        self._client = client
        watched = sources(settings.events, settings.secret_namespaces)
        self.mind = Mind(watched, settings.pace, self.metrics)
        self.followers = [
            Follower(source, client, self.mind, self.clock, settings.resync) for source in watched
        ]
        self._courier = Courier(self.mind, where, self.clock)
        self._stop = threading.Event()
        self._died: list[str] = []
        self._threads: list[threading.Thread] = []
        self._pages = PageServer(
            settings.port, {"/metrics": self._metrics, "/healthz": self._health, "/readyz": self._readiness}
        )

    @property
    def port(self) -> int:
        """Where its pages are served."""
        return self._pages.port

    @property
    def is_ready(self) -> bool:
        """Whether every source has been listed and is watched."""
        return all(follower.is_synced for follower in self.followers)

    def start(self) -> None:
        """Begin, in threads of its own."""
        self._pages.start()
        parts: list[tuple[str, Callable[[], None]]] = [("courier", self._courier.run), ("looker", self._look)]
        parts += [(follower.source.name, follower.run) for follower in self.followers]
        for name, work in parts:
            thread = threading.Thread(target=self._work, args=(name, work), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def run(self) -> bool:
        """Start and wait; whether it ended because it was asked to."""
        self.start()
        self._stop.wait()
        self.end()
        return not self._died

    def stop(self) -> None:
        """Ask it to end; safe in a signal handler."""
        self._stop.set()

    def end(self) -> None:
        """Stop everything, and say what waits; should that fail, the app's next tick sees it."""
        self._stop.set()
        for follower in self.followers:
            follower.stop()
        self._courier.stop()
        for thread in self._threads:
            thread.join(STOP_SECONDS)
        self._courier.flush()
        self._pages.stop()
        log_event(log, "Stopped", waiting=self.mind.waiting(self.clock.now())[0])

    def _work(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            # A bug. Going on without one thread would be blindness that nobody sees.
            log.exception("Died part=%s", name)
            self._died.append(name)
            self._stop.set()
            raise

    def _look(self) -> None:
        settings, clock = self._settings, self.clock
        say_at = clock.now() + settings.resync
        etcd_at = (
            clock.now() if settings.etcd_interval and ETCD_UNHEALTHY in settings.events else float("inf")
        )
        while not clock.wait(self._stop, LOOK_SECONDS):
            now = clock.now()
            self.mind.look_around(now)
            if now >= say_at:
                self.mind.say_again(now)
                say_at = now + settings.resync
            if now >= etcd_at:
                self._ask_for_etcd()
                etcd_at = now + settings.etcd_interval

    def _ask_for_etcd(self) -> None:
        """An API server that does not answer says nothing about etcd; one that answers 500 does."""
        try:
            self._client.get(ETCD_PATH)
        except UnavailableError as error:
            if error.status is None:
                return
            self.mind.etcd_checked(is_well=False, said="etcd", now=self.clock.now())
        except ApiError as error:
            self.metrics.count("breaks_total", source="readyz", error=error.code or type(error).__name__)
        else:
            self.mind.etcd_checked(is_well=True, said="", now=self.clock.now())

    # Pages

    def _metrics(self) -> tuple[int, str, bytes]:
        return 200, "text/plain; version=0.0.4; charset=utf-8", self.metrics.text(self._gauges).encode()

    def _gauges(self) -> Mapping[tuple[str, Labels], float]:
        waiting, oldest = self.mind.waiting(self.clock.now())
        times = os.times()
        gauges: dict[tuple[str, Labels], float] = {
            ("waiting_messages", ()): waiting,
            ("oldest_wait_seconds", ()): oldest,
            ("resident_bytes", ()): resident_bytes(),
            ("cpu_seconds", ()): times.user + times.system,
        }
        for name, size in self.mind.sizes().items():
            gauges["objects", (("source", name),)] = size
        for follower in self.followers:
            gauges["source_synced", (("source", follower.source.name),)] = float(follower.is_synced)
        return gauges

    def _health(self) -> tuple[int, str, bytes]:
        return document(503 if self._died else 200, self._state() | {"died": self._died})

    def _readiness(self) -> tuple[int, str, bytes]:
        return document(200 if self.is_ready and not self._died else 503, self._state())

    def _state(self) -> dict[str, Any]:
        waiting, oldest = self.mind.waiting(self.clock.now())
        return {
            "cluster": self._settings.cluster,
            "sources": {follower.source.name: follower.is_synced for follower in self.followers},
            "waiting": waiting,
            "oldestWaitSeconds": round(oldest, 1),
        }


def resident_bytes() -> int:
    """Memory of this process; its peak where the system does not tell the present."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()

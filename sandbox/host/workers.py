"""The host's side of the worker processes: starts them, hands out invocations, ends them when a function
overruns.

A worker that dies takes every invocation in it along, and is replaced: callers get `InvocationError`, as the
platform's listeners do, and their triggers decide what that means.
"""

from __future__ import annotations

import itertools
import logging
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sandbox.host.configuration import ConfigurationError, Function

log = logging.getLogger("host.worker")
START_SECONDS = 120
RESTART_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)


class InvocationError(Exception):
    """The function raised, overran functionTimeout, or its worker died; one line saying which."""


class _Running:
    """One invocation that has been sent to a worker."""

    def __init__(self, function: str, timeout: timedelta | None) -> None:
        self.id = str(uuid.uuid4())
        self.function = function
        self.began = time.monotonic()
        self.deadline = self.began + timeout.total_seconds() if timeout else None
        self.answer: Future[dict[str, Any] | None] = Future()


class Worker:
    """One worker process at a time, replaced whenever it ends."""

    def __init__(self, directory: Path, settings: Mapping[str, str], timeout: timedelta | None) -> None:
        self.functions: list[Function] = []
        self._directory = directory
        self._settings = dict(settings)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._connection: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the process, wait for the app's functions; ConfigurationError when it cannot be loaded."""
        self._launch()
        self._thread = threading.Thread(target=self._serve, name="worker", daemon=True)
        self._thread.start()

    @property
    def process_id(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def load(self) -> int:
        return len(self._running)

    def submit(
        self, function: str, kind: str, value: Any, metadata: Mapping[str, Any]
    ) -> Future[dict[str, Any] | None]:
        """Begin an invocation; the future holds the answer or InvocationError."""
        running = _Running(function, self._timeout)
        while self._ready.wait(START_SECONDS) and not self._stopping.is_set():
            with self._lock:
                if self._ready.is_set():  # else the process has just ended: wait for the next
                    self._begin(running, kind, value, metadata)
                    return running.answer
        running.answer.set_exception(InvocationError(f"{function}: no worker is running"))
        return running.answer

    def _begin(self, running: _Running, kind: str, value: Any, metadata: Mapping[str, Any]) -> None:
        assert self._connection is not None
        log.info("Executing %s (Id=%s)", running.function, running.id)
        try:
            self._connection.send((running.id, running.function, kind, value, dict(metadata)))
            self._running[running.id] = running
        except OSError:
            running.answer.set_exception(InvocationError(f"{running.function}: the worker process ended"))

    def stop(self) -> None:
        """End the process and everything in it."""
        self._stopping.set()
        self._end_process()
        if self._thread:
            self._thread.join(5)

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sandbox.host.worker", str(theirs.fileno()), str(self._directory)],
                env=self._settings,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),  # what a function prints goes where the host logs
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parent.parent.parent,
            )
        connection = Connection(ours.detach())
        try:
            said: tuple[Any, ...] = (
                connection.recv() if connection.poll(START_SECONDS) else ("unloadable", "no answer", "")
            )
        except (EOFError, OSError):
            said = ("unloadable", "the worker process ended while it started", "")
        if said[0] != "functions":
            connection.close()
            self._process.kill()
            self._process.wait()
            raise ConfigurationError(
                f"the app cannot be loaded, none of its functions runs: {said[1]}\n{said[2]}"
            )
        self.functions = [Function(name, tuple(bindings)) for name, bindings in said[1]]
        self._connection = connection
        self._ready.set()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self._read_answers()
            self._fail_everything("the worker process ended")
            self._end_process()
            if not self._stopping.is_set():
                log.error("The worker process ended; starting another")
                self._relaunch()

    def _relaunch(self) -> None:
        for pause in itertools.chain(RESTART_SECONDS, itertools.repeat(RESTART_SECONDS[-1])):
            if self._stopping.wait(pause):
                break
            try:
                self._launch()
                break
            except ConfigurationError as error:
                log.error("%s", error)

    def _read_answers(self) -> None:
        connection = self._connection
        assert connection is not None
        try:
            while not self._stopping.is_set():
                if connection.poll(0.05):
                    self._finish(*connection.recv())
                if overdue := self._overdue():
                    log.error("Timeout of %s exceeded by %s; ending its worker", self._timeout, overdue)
                    return
        except (EOFError, OSError):
            return

    def _overdue(self) -> str | None:
        now = time.monotonic()
        with self._lock:
            for running in self._running.values():
                if running.deadline and now > running.deadline:
                    return running.function
        return None

    def _finish(self, outcome: str, invocation_id: str, answer: Any, trace: str = "") -> None:
        with self._lock:
            running = self._running.pop(invocation_id)
        took = int((time.monotonic() - running.began) * 1000)
        if outcome == "succeeded":
            log.info("Executed %s (Succeeded, Id=%s, Duration=%dms)", running.function, running.id, took)
            running.answer.set_result(answer)
        else:
            log.error(
                "Executed %s (Failed, Id=%s, Duration=%dms)\n%s", running.function, running.id, took, trace
            )
            running.answer.set_exception(InvocationError(f"{running.function}: {answer}"))

    def _fail_everything(self, why: str) -> None:
        with self._lock:
            self._ready.clear()
            lost, self._running = list(self._running.values()), {}
        for running in lost:
            log.error("Executed %s (Failed, Id=%s): %s", running.function, running.id, why)
            running.answer.set_exception(InvocationError(f"{running.function}: {why}"))

    def _end_process(self) -> None:
        process, connection = self._process, self._connection
        if connection is not None:
            connection.close()  # a worker without its host ends itself
        if process is None:
            return
        if not self._stopping.is_set():
            process.kill()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Workers:
    """FUNCTIONS_WORKER_PROCESS_COUNT workers; an invocation goes to the least busy."""

    def __init__(self, directory: Path, settings: Mapping[str, str], timeout: timedelta | None) -> None:
        count = int(settings.get("FUNCTIONS_WORKER_PROCESS_COUNT", "1"))
        self._workers = [Worker(directory, settings, timeout) for _ in range(count)]

    def start(self) -> list[Function]:
        """Start them all and return what the app declares."""
        for worker in self._workers:
            worker.start()
        return self._workers[0].functions

    def submit(
        self, function: str, kind: str, value: Any, metadata: Mapping[str, Any] | None = None
    ) -> Future[dict[str, Any] | None]:
        worker = min(self._workers, key=lambda one: one.load)
        return worker.submit(function, kind, value, metadata or {})

    @property
    def process_ids(self) -> list[int]:
        return [worker.process_id for worker in self._workers if worker.process_id]

    @property
    def load(self) -> int:
        """Invocations that are running."""
        return sum(worker.load for worker in self._workers)

    def stop(self) -> None:
        for worker in self._workers:
            worker.stop()

"""A local host as a process of its own, for tests and the demo: started, talked to, paused, killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from email.message import Message
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self

from sandbox.host.run import KEY_SETTINGS
from sandbox.host.web import Keys
from sandbox.tools import CHECKOUT

LISTENING = re.compile(r"Listening on (http://\S+)")
START_SECONDS = 120


class Answer(NamedTuple):
    """An HTTP answer; header names are lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})

    def json(self) -> Any:
        return json.loads(self.body)


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class HostProcess:
    """`with HostProcess(directory, settings) as host:`; settings are the app's, `AzureWebJobsStorage` among
    them.

    The developer's own local.settings.json is not read. Standard error goes to `log` (a file) or is
    discarded.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, str],
        *,
        arguments: Sequence[str] = (),
        log: Path | None = None,
    ) -> None:
        self.keys = Keys()
        self.url = ""
        self._directory = directory
        keys = {name: getattr(self.keys, field) for field, name in KEY_SETTINGS.items()}
        self._environ = {**os.environ, **settings, **keys, "PYTHONPATH": str(CHECKOUT)}
        self._arguments = list(arguments)
        self._log = log
        self._lines: list[str] = []
        self._listening = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start and wait until the triggers run; RuntimeError with the host's last words when they do not."""
        command = [
            sys.executable,
            "-m",
            "sandbox",
            "host",
            "--port",
            "0",
            "--directory",
            str(self._directory),
        ]
        command += ["--settings", str(self._directory / "local.settings.example.json"), *self._arguments]
        with open(self._log or os.devnull, "a") as log:  # noqa: PTH123  /dev/null is no path of ours
            self._process = subprocess.Popen(
                command,
                env=self._environ,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # host and workers are one group: they are killed and paused together
            )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        if not self._listening.wait(START_SECONDS) or not self.url:
            self.stop()
            said = self._log.read_text()[-2000:] if self._log else "give a log file to see why"
            raise RuntimeError(f"the local host did not start: {' / '.join(self._lines[-3:])} {said}")
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self._lines.append(line.rstrip())
                if match := LISTENING.search(line):
                    self.url = match[1]
                    self._listening.set()
        self._listening.set()

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    def worker_process_ids(self) -> list[int]:
        """The worker processes of the moment; one that is killed is replaced."""
        processes: list[int] = self.get("/admin/host/status", key=self.keys.master).json()["processes"]
        return processes

    def running(self) -> int:
        """How many invocations are running now."""
        count: int = self.get("/admin/host/status", key=self.keys.master).json()["running"]
        return count

    def kill(self) -> None:
        """kill -9 host and workers, as when an instance is lost."""
        self._signal(signal.SIGKILL)
        self._wait()

    def pause(self) -> None:
        """Freeze host and workers, as when an instance stalls."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def interrupt(self) -> int | None:
        """Ctrl-C: the whole group gets SIGINT; returns the exit code."""
        self._signal(signal.SIGINT)
        return self._wait()

    def stop(self) -> int | None:
        """End it as the platform does (SIGTERM, grace, end) and return its exit code; safe to call twice."""
        if self._process is None:
            return None
        self._signal(signal.SIGCONT)
        self._process.send_signal(signal.SIGTERM)
        return self._wait()

    def _wait(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def run_function(self, name: str, given: str = "") -> Answer:
        """`POST /admin/functions/NAME`: start a function now, whatever its trigger; 202."""
        return self.post(f"/admin/functions/{name}", {"input": given}, key=self.keys.master)

    def send_events(self, name: str, events: Any, kind: str = "Notification") -> Answer:
        """Deliver events to an Event Grid function as Event Grid does."""
        path = f"/runtime/webhooks/eventgrid?functionName={name}"
        return self.post(path, events, key=self.keys.eventgrid, headers={"aeg-event-type": kind})

    def get(self, path: str, *, key: str | None = None) -> Answer:
        return self._request("GET", path, None, key, {})

    def post(
        self,
        path: str,
        document: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """POST JSON (or bytes as they are)."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self._request("POST", path, body, key, headers or {})

    def _request(
        self, method: str, path: str, body: bytes | None, key: str | None, headers: Mapping[str, str]
    ) -> Answer:
        headers = {"content-type": "application/json", **headers, **({"x-functions-key": key} if key else {})}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=240) as response:
                return Answer(response.status, response.read(), _lower(response.headers))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read(), _lower(error.headers))

    def wait_idle(self, within: float = 60) -> None:
        """Wait until no invocation runs; TimeoutError after `within` seconds."""
        until = time.monotonic() + within
        while self.running():
            if time.monotonic() > until:
                raise TimeoutError(f"functions were still running after {within:g} s")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

"""Puts the host together and runs it until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import uvicorn

from sandbox.azurite import Azurite
from sandbox.host import configuration
from sandbox.host.configuration import ConfigurationError, Function, HostJson
from sandbox.host.queues import INVISIBLE, QueueListener
from sandbox.host.timers import TimerListener
from sandbox.host.web import Keys, Web, route_path
from sandbox.host.workers import Workers

log = logging.getLogger("host")
LEASE = timedelta(seconds=60)
GRACE = timedelta(seconds=10)
KEY_SETTINGS = {
    "master": "SANDBOX_MASTER_KEY",
    "function": "SANDBOX_FUNCTION_KEY",
    "eventgrid": "SANDBOX_EVENTGRID_KEY",
}


class Host:
    """One host process: its workers, its listeners, its web server."""

    def __init__(self, directory: Path, settings: dict[str, str], options: argparse.Namespace) -> None:
        self._settings = settings
        self._options = options
        self._host_json: HostJson = configuration.read_host_json(directory)
        self._workers = Workers(directory, settings, self._host_json.function_timeout)
        keys = {field: settings[name] for field, name in KEY_SETTINGS.items() if settings.get(name)}
        self.keys = Keys(**keys)
        self.functions: list[Function] = []
        self._listeners: list[TimerListener | QueueListener] = []

    def start(self) -> None:
        """Load the app and start every trigger that is in order; the others are named in the log."""
        for function in self._workers.start():
            try:
                checked = configuration.check(function, self._settings)
                if checked.kind == "http":
                    route_path(checked, self._host_json.route_prefix)
                self.functions.append(checked)
            except ConfigurationError as error:
                log.error("The function %s is in error: %s", function.name, error)
        for function in self.functions:
            if configuration.is_disabled(function, self._settings):
                log.info("Function %s is disabled", function.name)
            elif listener := self._listener(function):
                self._listeners.append(listener)
        for listener in self._listeners:
            listener.start()

    def _listener(self, function: Function) -> TimerListener | QueueListener | None:
        storage = configuration.connection_string(function.trigger.get("connection"), self._settings)
        match function.kind:
            case "timer":
                host_id = self._settings.get("AzureFunctionsWebHost__hostid", "kubekeeper")
                return TimerListener(function, self._workers, storage, host_id, self._options.timer_lease)
            case "queue":
                return QueueListener(
                    function, self._workers, storage, self._host_json.queues, self._options.invisible
                )
        return None

    def serve(self, listening: socket.socket) -> None:
        """Answer HTTP until a signal comes."""
        web = Web(self.functions, self._workers, self._host_json.route_prefix, self.keys)
        server = uvicorn.Server(
            uvicorn.Config(
                web.application(), log_level="warning", lifespan="off", timeout_graceful_shutdown=5
            )
        )
        server.run(sockets=[listening])

    def stop(self) -> None:
        """Take no more work, let running functions finish within the grace, end the workers."""
        deadline = time.monotonic() + self._options.grace.total_seconds()
        stopping = [threading.Thread(target=listener.stop, args=(deadline,)) for listener in self._listeners]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        self._workers.stop()


def seconds(text: str) -> timedelta:
    return timedelta(seconds=float(text))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox host", description="Run the app's triggers locally."
    )
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="the app (default: here)")
    parser.add_argument(
        "--settings", type=Path, help="app settings file (default: local.settings.json, or its example)"
    )
    parser.add_argument("--port", type=int, default=7071, help="0 takes a free one (default: 7071)")
    parser.add_argument(
        "--timer-lease", type=seconds, default=LEASE, help="seconds (default: 60, at least 15)"
    )
    parser.add_argument(
        "--invisible", type=seconds, default=INVISIBLE, help="seconds a message is held (default: 600)"
    )
    parser.add_argument(
        "--grace", type=seconds, default=GRACE, help="seconds running functions get to end (default: 10)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Exit 0 after a signal, 2 when the configuration is wrong."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", stream=sys.stderr)
    logging.getLogger("azure").setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    with ExitStack() as cleanup:
        try:
            return _run(options, cleanup.enter_context, cleanup.callback)
        except ConfigurationError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 0


def _run(options: argparse.Namespace, enter: Callable[[Any], Any], at_end: Callable[..., Any]) -> int:
    directory = options.directory.resolve()
    settings = configuration.read_settings(directory, options.settings, os.environ)
    if settings.get("AzureWebJobsStorage", "UseDevelopmentStorage=true") == "UseDevelopmentStorage=true":
        settings["AzureWebJobsStorage"] = enter(Azurite()).connection_string
        print(f"Azurite (in memory): {settings['AzureWebJobsStorage']}", flush=True)
    listening = enter(socket.create_server(("127.0.0.1", options.port)))
    host = Host(directory, settings, options)
    at_end(host.stop)
    host.start()
    _print_endpoints(host, f"http://127.0.0.1:{listening.getsockname()[1]}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            number, lambda *_: None
        )  # the web server takes them now, and hands them on when it has ended
    host.serve(listening)
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _print_endpoints(host: Host, url: str) -> None:
    print(f"master key {host.keys.master}   function key {host.keys.function}", flush=True)
    for function in host.functions:
        match function.kind:
            case "timer":
                where = f"timer     {function.trigger['schedule']}"
            case "queue":
                where = f"queue     {function.trigger['queueName']}"
            case "eventGrid":
                path = f"runtime/webhooks/eventgrid?functionName={function.name}&code={host.keys.eventgrid}"
                where = f"eventgrid {url}/{path}"
            case _:
                where = f"http      {url}{route_path(function, host._host_json.route_prefix)}"
        print(f"  {function.name:28} {where}", flush=True)
    print(f"Listening on {url}", flush=True)

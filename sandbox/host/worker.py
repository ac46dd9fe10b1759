"""The worker process: loads the app, says what it declares, runs invocations. `python -m sandbox.host.worker
FD DIR`.

It speaks with the host over one socket, in the roles that the platform's Python worker has towards its host:
index (refusing what the worker refuses), then invoke, synchronous functions in a thread pool, asynchronous
ones on one loop. The objects a function receives are built by the converters of the installed
azure-functions. When the host is gone the process ends at once, whatever it was doing: so does the
platform's.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import os
import signal
import sys
import threading
import traceback
import typing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import azure.functions as azf
from azure.functions import meta

CONVERTERS: Any = meta.get_binding_registry()  # type: ignore[no-untyped-call]


class FunctionLoadError(Exception):
    """The app cannot be indexed: no function of it runs."""


class Context(azf.Context):
    """What a function declaring `context` receives."""

    def __init__(self, invocation_id: str, function_name: str, directory: str) -> None:
        self._invocation_id = invocation_id
        self._function_name = function_name
        self._directory = directory
        self._local = threading.local()
        self._local.invocation_id = invocation_id

    @property
    def invocation_id(self) -> str:
        return self._invocation_id

    @property
    def thread_local_storage(self) -> Any:
        return self._local

    @property
    def function_name(self) -> str:
        return self._function_name

    @property
    def function_directory(self) -> str:
        return self._directory

    @property
    def trace_context(self) -> Any:
        return None

    @property
    def retry_context(self) -> Any:
        return None


class Indexed(typing.NamedTuple):
    """A function ready to be called."""

    name: str
    call: Callable[..., Any]
    bindings: list[dict[str, Any]]
    trigger: dict[str, Any]
    wants_context: bool

    @property
    def has_return(self) -> bool:
        return any(binding["name"] == "$return" for binding in self.bindings)


def index(directory: str) -> dict[str, Indexed]:
    """Load function_app.py, check it as the platform's worker does; FunctionLoadError or the import's own."""
    sys.path.insert(0, directory)
    module = importlib.import_module(Path(os.environ.get("PYTHON_SCRIPT_FILE_NAME", "function_app.py")).stem)
    return {one.name: one for one in (_check(function) for function in _the_app(module).get_functions())}


def _the_app(module: ModuleType) -> Any:
    apps = {id(value): value for value in vars(module).values() if isinstance(value, azf.FunctionRegister)}
    if len(apps) != 1:
        raise FunctionLoadError(
            f"{module.__name__} defines {len(apps)} top level function apps, it needs one"
        )
    return next(iter(apps.values()))


def _check(function: Any) -> Indexed:
    name, call = function.get_function_name(), function.get_user_function()
    bindings = [json.loads(raw) for raw in function.get_raw_bindings()]
    bound = {binding["name"] for binding in bindings} - {"$return"}
    parameters = set(inspect.signature(call).parameters)
    wants_context = "context" in parameters - bound
    parameters -= {"context"} - bound
    if parameters != bound:
        raise FunctionLoadError(
            f"{name}: parameters {sorted(parameters)} and bindings {sorted(bound)} do not match"
        )
    annotations = typing.get_type_hints(call)
    for binding in bindings:
        _check_annotation(name, binding, annotations.get(binding["name"]))
    trigger = next(binding for binding in bindings if binding["type"].endswith("Trigger"))
    return Indexed(name, call, bindings, trigger, wants_context)


def _check_annotation(name: str, binding: dict[str, Any], annotation: Any) -> None:
    if annotation is None or binding["name"] == "$return" or annotation in (str, bytes):
        return
    if not isinstance(annotation, type):
        raise FunctionLoadError(
            f"{name}: {binding['name']} has the invalid non-type annotation {annotation!r}"
        )
    converter = CONVERTERS.get(binding["type"])
    if converter is not None and not converter.check_input_type_annotation(annotation):
        raise FunctionLoadError(
            f"{name}: the binding type {binding['type']} of {binding['name']} and its annotation "
            f"{annotation.__name__} do not match"
        )


class Worker:
    """Answers the host's invocations until the host goes."""

    def __init__(self, connection: Connection, directory: str) -> None:
        self._connection = connection
        self._directory = directory
        self._sending = threading.Lock()
        count = os.environ.get("PYTHON_THREADPOOL_THREAD_COUNT")
        self._threads = ThreadPoolExecutor(int(count) if count else None, thread_name_prefix="function")
        self._loop = asyncio.new_event_loop()
        self._functions: dict[str, Indexed] = {}

    def run(self) -> int:
        try:
            self._functions = index(self._directory)
        except Exception as error:  # noqa: BLE001  whatever the app raised while loading is the host's to show
            self._send(("unloadable", f"{type(error).__name__}: {error}", traceback.format_exc()))
            return 1
        threading.Thread(target=self._loop.run_forever, name="async-functions", daemon=True).start()
        self._send(("functions", [(one.name, one.bindings) for one in self._functions.values()]))
        while True:
            try:
                request = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)  # threads may still be running: they must not outlive the host
            self._begin(*request)

    def _begin(self, invocation_id: str, name: str, kind: str, value: Any, metadata: dict[str, Any]) -> None:
        function = self._functions[name]
        if inspect.iscoroutinefunction(function.call):
            asyncio.run_coroutine_threadsafe(
                self._run_async(invocation_id, function, kind, value, metadata), self._loop
            )
        else:
            self._threads.submit(self._run_sync, invocation_id, function, kind, value, metadata)

    def _run_sync(
        self, invocation_id: str, function: Indexed, kind: str, value: Any, metadata: dict[str, Any]
    ) -> None:
        try:
            arguments = self._arguments(invocation_id, function, kind, value, metadata)
            answer = encode(function, function.call(**arguments))
        except BaseException as error:  # noqa: BLE001  a function's failure is an answer, not the worker's end
            self._send(("failed", invocation_id, f"{type(error).__name__}: {error}", traceback.format_exc()))
        else:
            self._send(("succeeded", invocation_id, answer))

    async def _run_async(
        self, invocation_id: str, function: Indexed, kind: str, value: Any, metadata: dict[str, Any]
    ) -> None:
        try:
            arguments = self._arguments(invocation_id, function, kind, value, metadata)
            answer = encode(function, await function.call(**arguments))
        except BaseException as error:  # noqa: BLE001  as above
            self._send(("failed", invocation_id, f"{type(error).__name__}: {error}", traceback.format_exc()))
        else:
            self._send(("succeeded", invocation_id, answer))

    def _arguments(
        self, invocation_id: str, function: Indexed, kind: str, value: Any, metadata: dict[str, Any]
    ) -> dict[str, Any]:
        arguments = {function.trigger["name"]: decode(function.trigger["type"], kind, value, metadata)}
        if function.wants_context:
            arguments["context"] = Context(invocation_id, function.name, self._directory)
        return arguments

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            try:
                self._connection.send(message)
            except OSError:
                os._exit(0)  # the host is gone


def decode(binding: str, kind: str, value: Any, metadata: dict[str, Any]) -> Any:
    """The trigger's payload as the object that the installed azure-functions hands to a function."""
    if kind == "http":
        value = {
            "method": meta.Datum(value["method"], "string"),
            "url": meta.Datum(value["url"], "string"),
            "headers": {name: meta.Datum(text, "string") for name, text in value["headers"].items()},
            "query": {name: meta.Datum(text, "string") for name, text in value["query"].items()},
            "params": {name: meta.Datum(text, "string") for name, text in value["params"].items()},
            "body": meta.Datum(value["body"], "bytes"),
        }
    described = {
        name: meta.Datum(item, "int" if isinstance(item, int) else "string")
        for name, item in metadata.items()
    }
    converter = CONVERTERS.get(binding)
    return converter.decode(meta.Datum(value, kind), trigger_metadata=described)


def encode(function: Indexed, result: Any) -> dict[str, Any] | None:
    """An HTTP answer as plain values; None for everything else, which may not return anything."""
    if result is None:
        return None
    if not function.has_return:
        raise RuntimeError(f"function {function.name!r} without a $return binding returned a non-None value")
    converter = CONVERTERS.get("http")
    datum = converter.encode(result, expected_type=None)
    if datum.type == "string":
        return {
            "status": 200,
            "headers": {"content-type": "text/plain; charset=utf-8"},
            "body": datum.value.encode(),
        }
    return {
        "status": int(datum.value["status_code"].value),
        "headers": {name: text.value for name, text in datum.value["headers"].items()},
        "body": datum.value["body"].value,
    }


def main() -> int:
    descriptor, directory = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the host too, which ends us in its own time
    os.chdir(directory)
    logging.basicConfig(
        level=logging.INFO, format="    %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("azure").setLevel(logging.WARNING)
    return Worker(Connection(int(descriptor)), directory).run()


if __name__ == "__main__":
    sys.exit(main())

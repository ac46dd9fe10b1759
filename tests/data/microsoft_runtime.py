"""Runs the app under azure-functions-runtime, as the platform's proxy worker does: index, then invoke.

`python microsoft_runtime.py APP_DIRECTORY` reads invocations from standard input, a JSON array of [function
name, kind of data, value, trigger metadata], and prints {"functions": [...], "answers": [...]} or
{"failure": "..."}.

The runtime is handed the protocol's message classes by the proxy, which is not published as a package; the
plain objects below have the fields and the one method (WhichOneof) that it uses.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import azure_functions_runtime as runtime


class Message(SimpleNamespace):
    """Any message of the protocol. Fields not set are None, as those of a protobuf are empty."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "TypedData":  # the runtime tries whether it was given a module
            raise AttributeError(name)
        return None

    def WhichOneof(self, _: str) -> str | None:  # noqa: N802  the name is protobuf's
        return next(iter(vars(self)), None)


class BindingInfo(Message):
    undefined = None
    out = 1
    inout = 2


class StatusResult(Message):
    Failure = 0
    Success = 1


class Protos:
    """The module of message classes: the two with constants, and a plain message for every other name."""

    BindingInfo = BindingInfo
    StatusResult = StatusResult

    def __getattr__(self, _: str) -> type[Message]:
        return Message


def typed(kind: str, value: Any) -> Message:
    if kind != "http":
        return Message(**{kind: value})
    http = Message(**{**value, "body": Message(bytes=value["body"].encode())})
    return Message(http=http)


async def main() -> dict[str, Any]:
    directory, invocations = sys.argv[1], json.load(sys.stdin)
    os.chdir(directory)
    sys.path.insert(0, directory)
    properties = {"host": "127.0.0.1", "protos": Protos()}
    init = Message(capabilities={}, function_app_directory=directory)
    started = await runtime.worker_init_request(
        Message(request=Message(worker_init_request=init), properties=properties)
    )
    if started.result.status != StatusResult.Success:
        return {"failure": started.result.exception.message}
    runtime.start_threadpool_executor()
    indexed = (await runtime.functions_metadata_request(Message())).function_metadata_results
    functions = {one.name: one for one in indexed}
    answers = [await invoke(functions[name], *rest) for name, *rest in invocations]
    runtime.stop_threadpool_executor()
    return {"functions": sorted(functions), "answers": answers}


async def invoke(function: Any, kind: str, value: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    trigger = next(json.loads(raw) for raw in function.raw_bindings if "Trigger" in raw)
    request = Message(
        invocation_id="1",
        function_id=function.function_id,
        input_data=[_Parameter(trigger["name"], typed(kind, value))],
        trigger_metadata={name: Message(string=text) for name, text in metadata.items()},
        trace_context=Message(),
        retry_context=Message(),
    )
    response = await runtime.invocation_request(Message(request=Message(invocation_request=request)))
    answer: dict[str, Any] = {"succeeded": response.result.status == StatusResult.Success}
    if not answer["succeeded"]:
        answer["error"] = response.result.exception.message
    if response.return_value is not None:
        http = response.return_value.http
        answer |= {"status": int(http.status_code), "body": http.body.bytes.decode()}
    return answer


class _Parameter:
    """A ParameterBinding."""

    def __init__(self, name: str, data: Message) -> None:
        self.name = name
        self.data = data

    def WhichOneof(self, _: str) -> str:  # noqa: N802  the name is protobuf's
        return "data"


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))

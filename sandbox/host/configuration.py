"""What the host is told: host.json, app settings, and the functions that the app declares."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from sandbox.host.schedule import Ncrontab

SETTING = re.compile(r"%([^%]+)%")
QUEUE_NAME = re.compile(r"[a-z0-9](?!.*--)[a-z0-9-]{1,61}[a-z0-9]\Z")
TIME_SPAN = re.compile(r"(?:(\d+)\.)?(\d{1,2}):(\d{2}):(\d{2})\Z")
MAX_BATCH_SIZE = 32


class ConfigurationError(Exception):
    """host.json, a setting or a binding the platform would refuse; one line saying which and why."""


class Queues(msgspec.Struct, frozen=True):
    """`extensions.queues`; the defaults are the platform's."""

    encoding: Literal["none", "base64"] = "base64"
    max_polling_interval: timedelta = timedelta(minutes=1)
    visibility_timeout: timedelta = timedelta()
    batch_size: int = 16
    new_batch_threshold: int = 8
    max_dequeue_count: int = 5


class HostJson(msgspec.Struct, frozen=True):
    """The parts of host.json that change what a function sees."""

    function_timeout: timedelta | None = timedelta(minutes=30)
    route_prefix: str = "api"
    queues: Queues = Queues()


def time_span(text: str) -> timedelta:
    """`hh:mm:ss` or `d.hh:mm:ss`."""
    match = TIME_SPAN.match(text)
    if not match:
        raise ConfigurationError(f"host.json: {text!r} is not a time span hh:mm:ss")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def read_host_json(directory: Path) -> HostJson:
    """host.json of the app in `directory`."""
    try:
        document = json.loads((directory / "host.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"host.json of {directory} cannot be read: {error}") from None
    if document.get("version") != "2.0":
        raise ConfigurationError('host.json: "version" must be "2.0"')
    extensions = document.get("extensions", {})
    timeout = document.get("functionTimeout", "00:30:00")
    return HostJson(
        function_timeout=None if timeout == "-1" else time_span(timeout),
        route_prefix=extensions.get("http", {}).get("routePrefix", "api"),
        queues=_queues(extensions.get("queues", {})),
    )


def _queues(section: Mapping[str, Any]) -> Queues:
    encoding = section.get("messageEncoding", "base64").lower()
    batch_size = section.get("batchSize", 16)
    if encoding not in ("none", "base64") or not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ConfigurationError("host.json: queues: messageEncoding is none or base64, batchSize 1 to 32")
    return Queues(
        encoding=encoding,
        max_polling_interval=time_span(section.get("maxPollingInterval", "00:01:00")),
        visibility_timeout=time_span(section.get("visibilityTimeout", "00:00:00")),
        batch_size=batch_size,
        new_batch_threshold=section.get("newBatchThreshold", batch_size // 2),
        max_dequeue_count=section.get("maxDequeueCount", 5),
    )


def read_settings(directory: Path, file: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """App settings: those of `file`, overridden by the environment, as `func start` does.

    Without a file: local.settings.json of the app, or its example where a developer has not made one yet.
    """
    candidates = [directory / "local.settings.json", directory / "local.settings.example.json"]
    path = file or next((path for path in candidates if path.exists()), None)
    try:
        values = json.loads(path.read_text())["Values"] if path and path.exists() else {}
    except (KeyError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    return {**values, **environ}


class Function(msgspec.Struct, frozen=True):
    """A function as the worker has indexed it: its name and raw bindings, settings not yet resolved."""

    name: str
    bindings: tuple[dict[str, Any], ...]

    @property
    def trigger(self) -> dict[str, Any]:
        return next(binding for binding in self.bindings if binding["type"].endswith("Trigger"))

    @property
    def kind(self) -> str:
        trigger: str = self.trigger["type"]
        return trigger.removesuffix("Trigger")


def resolve(text: str, settings: Mapping[str, str]) -> str:
    """Replace every %SETTING%; ConfigurationError names the one that is not set."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in settings:
            raise ConfigurationError(f"{match[0]} does not resolve: set the app setting {match[1]}")
        return settings[match[1]]

    return SETTING.sub(value, text)


def check(function: Function, settings: Mapping[str, str]) -> Function:
    """The function with its settings resolved; ConfigurationError when the platform would not start it.

    The worker indexes such a function without complaint: bad schedules, queue names and unset settings are
    the host's to find.
    """
    triggers = [binding for binding in function.bindings if binding["type"].endswith("Trigger")]
    if len(triggers) != 1:
        raise ConfigurationError(f"function {function.name} has {len(triggers)} triggers, it needs one")
    resolved = tuple(
        {key: resolve(value, settings) if isinstance(value, str) else value for key, value in binding.items()}
        for binding in function.bindings
    )
    for binding in resolved:
        _check_binding(function.name, binding, settings)
    return Function(function.name, resolved)


def _check_binding(name: str, binding: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    match binding["type"]:
        case "timerTrigger":
            try:
                Ncrontab(binding["schedule"])
            except ValueError as error:
                raise ConfigurationError(f"function {name}: {error}") from None
        case "queueTrigger":
            if not QUEUE_NAME.match(binding["queueName"]):
                raise ConfigurationError(f"function {name}: {binding['queueName']!r} is no legal queue name")
            connection_string(binding.get("connection"), settings)
        case "httpTrigger" | "eventGridTrigger" | "http":
            pass
        case other:
            raise ConfigurationError(f"function {name}: the local host has no {other} binding")


def connection_string(name: str | None, settings: Mapping[str, str]) -> str:
    """The storage connection a binding names; AzureWebJobsStorage when it names none."""
    name = name or "AzureWebJobsStorage"
    for key in (name, f"AzureWebJobs{name}"):
        if settings.get(key):
            return settings[key]
    raise ConfigurationError(f"the connection {name} is not set: set the app setting {name}")


def is_disabled(function: Function, settings: Mapping[str, str]) -> bool:
    """`AzureWebJobs.NAME.Disabled` is true or 1."""
    return settings.get(f"AzureWebJobs.{function.name}.Disabled", "").lower() in ("true", "1")

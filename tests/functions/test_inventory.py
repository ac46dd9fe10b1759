"""What the app declares, checked for everything that only the platform's host would find wrong."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from app_functions import FUNCTIONS

from sandbox.host import configuration
from sandbox.host.configuration import ConfigurationError, Function
from sandbox.host.schedule import Ncrontab
from sandbox.host.web import route_path
from sandbox.tools import CHECKOUT
from shared.runtime.automation import AUTOMATIONS

HOST_JSON = configuration.read_host_json(CHECKOUT)
EXAMPLE = json.loads((CHECKOUT / "local.settings.example.json").read_text())["Values"]
# Every function there is. One that is missing here is new: say what triggers it in docs/reference, too.
TRIGGERS = {
    "autoscaling_timer": ("timer", "%KUBEKEEPER_AUTOSCALING_SCHEDULE%"),
    "autoscaling_work": ("queue", "autoscaling"),
    "cluster_event": ("eventGrid", None),
    "disk_release_timer": ("timer", "%KUBEKEEPER_DISK_RELEASE_SCHEDULE%"),
    "disk_release_work": ("queue", "disk-release"),
    "etcd_backup_timer": ("timer", "%KUBEKEEPER_ETCD_BACKUP_SCHEDULE%"),
    "etcd_backup_work": ("queue", "etcd-backup"),
    "health": ("http", "/api/health"),
    "ingress_sync_timer": ("timer", "%KUBEKEEPER_INGRESS_SYNC_SCHEDULE%"),
    "ingress_sync_work": ("queue", "ingress-sync"),
    "operations_work": ("queue", "operations"),
    "metrics": ("http", "/api/metrics"),
    "status": ("http", "/api/status"),
    "reconcile": ("http", "/api/reconcile/{cluster}/{automation}"),
}


def test_the_app_declares_exactly_these_functions() -> None:
    declared = {
        name: (
            function.kind,
            route_path(function, HOST_JSON.route_prefix)
            if function.kind == "http"
            else function.trigger.get("schedule") or function.trigger.get("queueName"),
        )
        for name, function in FUNCTIONS.items()
    }
    assert declared == TRIGGERS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_host_would_start_it_with_the_example_settings(name: str) -> None:
    configuration.check(FUNCTIONS[name], EXAMPLE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_setting_it_names_is_in_the_example(name: str) -> None:
    named = configuration.SETTING.findall(json.dumps(FUNCTIONS[name].bindings))
    assert set(named) <= set(EXAMPLE)


@pytest.mark.parametrize("name", [name for name, function in FUNCTIONS.items() if function.kind == "timer"])
def test_a_timer_is_monitored_never_runs_at_start_up_and_takes_its_schedule_from_a_setting(name: str) -> None:
    trigger = FUNCTIONS[name].trigger
    assert configuration.SETTING.fullmatch(trigger["schedule"])
    assert not trigger.get("runOnStartup")
    assert trigger.get("useMonitor", True)
    schedule = Ncrontab(configuration.resolve(trigger["schedule"], EXAMPLE))
    assert schedule.is_monitored(datetime.now(UTC))


def test_every_built_automation_has_a_queue_of_its_name_and_a_timer() -> None:
    queues = {f.trigger["queueName"] for f in FUNCTIONS.values() if f.kind == "queue"}
    timers = {name for name, function in FUNCTIONS.items() if function.kind == "timer"}
    assert queues == {*AUTOMATIONS, "operations"}
    assert timers == {f"{name.replace('-', '_')}_timer" for name in AUTOMATIONS}


def test_no_queue_feeds_two_functions() -> None:
    queues = [function.trigger["queueName"] for function in FUNCTIONS.values() if function.kind == "queue"]
    assert len(queues) == len(set(queues))


def test_only_health_is_open_to_anybody() -> None:
    levels = {
        name: function.trigger.get("authLevel", "FUNCTION").upper()
        for name, function in FUNCTIONS.items()
        if function.kind == "http"
    }
    assert [name for name, level in levels.items() if level == "ANONYMOUS"] == ["health"]


def test_host_json_gives_failed_messages_time_and_runs_an_end() -> None:
    document = json.loads((CHECKOUT / "host.json").read_text())
    queues = HOST_JSON.queues
    assert document["extensionBundle"]["version"] == "[4.*, 5.0.0)"
    assert document["telemetryMode"] == "OpenTelemetry"
    assert "functionTimeout" in document
    assert queues.encoding == "none"
    assert queues.visibility_timeout > timedelta()
    assert queues.batch_size + queues.new_batch_threshold <= 4
    assert queues.max_dequeue_count == 5


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            Function("f", ({"type": "timerTrigger", "name": "t", "schedule": "%NOT_SET%"},)),
            "set the app setting NOT_SET",
        ),
        (
            Function("f", ({"type": "timerTrigger", "name": "t", "schedule": "* * *"},)),
            "not an NCRONTAB expression",
        ),
        (Function("f", ({"type": "queueTrigger", "name": "m", "queueName": "a--b"},)), "no legal queue name"),
        (
            Function(
                "f", ({"type": "queueTrigger", "name": "m", "queueName": "abc", "connection": "Other"},)
            ),
            "set the app setting Other",
        ),
        (Function("f", ({"type": "blobTrigger", "name": "b"},)), "no blobTrigger binding"),
        (Function("f", ()), "0 triggers"),
    ],
)
def test_what_the_host_would_not_start_is_said(function: Function, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        configuration.check(function, {"AzureWebJobsStorage": "set"})

"""The inventory of triggers and settings, and what importing the app costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from app_functions import FUNCTIONS

from shared.runtime.automation import AUTOMATIONS

ROOT = Path(__file__).resolve().parents[2]

TRIGGERS = {
    "cluster_event": ("eventGridTrigger", {}),
    "etcd_backup_timer": (
        "timerTrigger",
        {"schedule": "%KUBEKEEPER_ETCD_BACKUP_SCHEDULE%", "runOnStartup": False},
    ),
    "etcd_backup_work": ("queueTrigger", {"queueName": "etcd-backup", "connection": "AzureWebJobsStorage"}),
    "health": ("httpTrigger", {"route": "health", "methods": ["GET"], "authLevel": "anonymous"}),
    "operations_work": ("queueTrigger", {"queueName": "operations", "connection": "AzureWebJobsStorage"}),
    "reconcile": (
        "httpTrigger",
        {"route": "reconcile/{cluster}/{automation}", "methods": ["POST"], "authLevel": "function"},
    ),
}


def _bindings() -> dict[str, dict]:
    return {name: function.trigger for name, function in FUNCTIONS.items()}


def test_the_app_has_exactly_these_triggers() -> None:
    bindings = _bindings()
    assert set(bindings) == set(TRIGGERS)
    for name, (kind, facts) in TRIGGERS.items():
        assert bindings[name]["type"] == kind
        actual = {key: bindings[name][key] for key in facts}
        assert _lower(actual) == _lower(facts), name


def _lower(facts: dict) -> dict:
    # The library's versions differ in how they spell methods and levels.
    return {key: str(value).lower() for key, value in facts.items()}


def test_every_built_automation_has_a_queue_of_its_name_and_a_timer() -> None:
    bindings = _bindings()
    queues = {b["queueName"] for b in bindings.values() if b["type"] == "queueTrigger"}
    built = {name for name, automation in AUTOMATIONS.items() if automation.reconcile}
    assert queues == built | {"operations"}
    timers = {name for name, b in bindings.items() if b["type"] == "timerTrigger"}
    assert timers == {f"{name.replace('-', '_')}_timer" for name in built}


def test_every_setting_a_trigger_refers_to_is_in_the_sample_settings() -> None:
    sample = json.loads((ROOT / "local.settings.example.json").read_text())["Values"]
    named = set(re.findall(r"%([^%]+)%", json.dumps(_bindings())))
    assert named <= set(sample)


def test_queue_messages_reach_the_app_plain_or_base64() -> None:
    """With the host's default, base64, a plain message goes to poison without the app ever seeing it."""
    host = json.loads((ROOT / "host.json").read_text())
    assert host["extensions"]["queues"]["messageEncoding"] == "none"


def test_importing_the_app_costs_at_most_50_ms_beyond_the_functions_library() -> None:
    code = (
        "import time, azure.functions; start = time.process_time(); import function_app;"
        "print((time.process_time() - start) * 1000)"
    )
    run = lambda: float(  # noqa: E731
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
        ).stdout
    )
    assert min(run() for _ in range(3)) <= 50


def test_importing_the_app_loads_no_sdk() -> None:
    code = "import function_app, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert loaded & {"azure.storage", "azure.core", "azure.identity", "grpc", "yaml", "kubernetes"} == set()

"""The app under Microsoft's own runtime package, azure-functions-runtime, which needs Python 3.13."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_functions import FUNCTIONS
from azure.storage.queue import QueueServiceClient

from sandbox import tools
from shared.bootstrap import Clients
from shared.operations.dispatch import get_operation
from shared.runtime.operation import OperationState

DRIVER = Path(__file__).parent.parent / "data" / "microsoft_runtime.py"
CONFIGURATION = """
clusters:
  - name: {name}
    etcd: {{endpoints: ["http://127.0.0.1:1"]}}
    etcdBackup: {{}}
"""

Run = Callable[..., dict[str, Any]]


def _interpreter() -> str:
    candidates = [Path(sys.executable), *tools.CHECKOUT.glob(".venv-3.1[3-9]/bin/python")]
    for candidate in candidates:
        found = subprocess.run(
            [candidate, "-c", "import azure_functions_runtime"], capture_output=True, check=False
        )
        if found.returncode == 0:
            return str(candidate)
    pytest.skip(
        "no Python 3.13 with azure-functions-runtime: not shown that the app runs under Microsoft's runtime. "
        "With a Python 3.13 on this machine, `make test` sets it up"
    )


@pytest.fixture(scope="module")
def run() -> Run:
    """Index the app in a directory and carry out invocations; returns the driver's document."""
    interpreter = _interpreter()

    def run(directory: Path, *invocations: list[Any], **settings: str) -> dict[str, Any]:
        done = subprocess.run(
            [interpreter, str(DRIVER), str(directory)],
            input=json.dumps(invocations),
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return document

    return run


@pytest.mark.azurite
def test_the_app_indexes_and_its_timer_queue_and_http_functions_do_their_work(
    run: Run, storage: str, tmp_path: Path
) -> None:
    cluster = f"c-{uuid.uuid4().hex[:10]}"
    configuration = tmp_path / "kubekeeper.yaml"
    configuration.write_text(CONFIGURATION.format(name=cluster))
    settings = {"AzureWebJobsStorage": storage, "KUBEKEEPER_CONFIG": str(configuration)}
    operation = str(uuid.uuid4())
    pause = {
        "id": operation,
        "operation": "pause",
        "cluster": cluster,
        "parameters": {"automation": "etcd-backup"},
    }
    document = run(
        tools.CHECKOUT,
        ["etcd_backup_timer", "json", json.dumps({"IsPastDue": True}), {}],
        ["operations_work", "string", json.dumps(pause), {"Id": "1", "DequeueCount": "1", "PopReceipt": "p"}],
        ["operations_work", "string", "garbage", {"Id": "2", "DequeueCount": "1", "PopReceipt": "p"}],
        [
            "health",
            "http",
            {"method": "GET", "url": "/", "headers": {}, "query": {}, "params": {}, "body": ""},
            {},
        ],
        **settings,
    )
    timer, queued, garbage, health = document["answers"]
    assert timer == {"succeeded": True}
    queue = QueueServiceClient.from_connection_string(storage).get_queue_client("etcd-backup")
    nudges = [message.content for message in queue.peek_messages(max_messages=32)]
    assert any(cluster in nudge for nudge in nudges)
    assert queued == {"succeeded": True}
    record = get_operation(Clients({**os.environ, **settings}), operation)
    assert record is not None
    assert record.state == OperationState.SUCCEEDED
    assert not garbage["succeeded"]
    assert "MessageError" in garbage["error"]
    assert (health["status"], json.loads(health["body"])["storage"]) == (200, "ok")


def test_events_of_both_schemas_are_taken_under_the_newer_library(
    run: Run, storage: str, tmp_path: Path
) -> None:
    configuration = tmp_path / "kubekeeper.yaml"
    configuration.write_text(CONFIGURATION.format(name="events"))
    data = {"cluster": "events"}
    grid = {
        "id": "1",
        "topic": "t",
        "subject": "s",
        "eventType": "Kubekeeper.Cluster.EtcdUnhealthy",
        "data": data,
    }
    cloud = {
        "specversion": "1.0",
        "id": "2",
        "source": "s",
        "type": "Kubekeeper.Cluster.EtcdUnhealthy",
        "data": data,
    }
    document = run(
        tools.CHECKOUT,
        [
            "cluster_event",
            "json",
            json.dumps({**grid, "eventTime": "2026-11-23T10:00:00Z", "dataVersion": "1"}),
            {},
        ],
        ["cluster_event", "json", json.dumps(cloud), {}],
        AzureWebJobsStorage=storage,
        KUBEKEEPER_CONFIG=str(configuration),
    )
    assert document["answers"] == [{"succeeded": True}, {"succeeded": True}]


def test_it_lists_the_same_functions_as_the_local_host(run: Run) -> None:
    assert run(tools.CHECKOUT)["functions"] == sorted(FUNCTIONS)


def test_it_refuses_what_the_local_host_refuses(run: Run, tmp_path: Path) -> None:
    (tmp_path / "function_app.py").write_text(
        "import azure.functions as func\napp = func.FunctionApp()\n"
        "@app.queue_trigger(arg_name='m', queue_name='q', connection='')\n"
        "def one(m: func.QueueMessage | None) -> None: ..."
    )
    assert "invalid non-type annotation" in run(tmp_path)["failure"]

"""The real app on the local host and real Azurite: every kind of trigger once, by its own decorators."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from azure.core.exceptions import ResourceExistsError
from azure.storage.queue import QueueServiceClient
from prometheus_client.parser import text_string_to_metric_families

from sandbox.host.process import HostProcess
from sandbox.tools import CHECKOUT
from shared.bootstrap import Clients
from shared.operations.dispatch import get_operation
from shared.status.metrics import CONTENT_TYPE

pytestmark = pytest.mark.azurite
CONFIGURATION = """
clusters:
  - name: {name}
    etcd: {{endpoints: ["http://127.0.0.1:1"]}}
    etcdBackup: {{}}
"""


class Running(NamedTuple):
    host: HostProcess
    cluster: str
    settings: dict[str, str]
    log: Path


@pytest.fixture(scope="module")
def running(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("app")
    cluster = f"c-{uuid.uuid4().hex[:10]}"
    (directory / "kubekeeper.yaml").write_text(CONFIGURATION.format(name=cluster))
    settings = {
        "AzureWebJobsStorage": storage,
        "AzureFunctionsWebHost__hostid": cluster,
        "KUBEKEEPER_CONFIG": str(directory / "kubekeeper.yaml"),
        "KUBEKEEPER_AUTOSCALING_SCHEDULE": "0 0 3 1 1 *",
        "KUBEKEEPER_DISK_RELEASE_SCHEDULE": "0 0 3 1 1 *",
        "KUBEKEEPER_ETCD_BACKUP_SCHEDULE": "0 0 3 1 1 *",
        "KUBEKEEPER_INGRESS_SYNC_SCHEDULE": "0 0 3 1 1 *",
        "AzureWebJobs.etcd_backup_work.Disabled": "true",  # its nudges stay on the queue, to be seen there
    }
    log = directory / "log"
    with HostProcess(CHECKOUT, settings, log=log) as host:
        yield Running(host, cluster, settings, log)


def nudges(running: Running) -> list[str]:
    service = QueueServiceClient.from_connection_string(running.settings["AzureWebJobsStorage"])
    messages = service.get_queue_client("etcd-backup").peek_messages(max_messages=32)
    return [message.content for message in messages if running.cluster in message.content]


def test_no_function_is_in_error(running: Running) -> None:
    assert "is in error" not in running.log.read_text()


def test_health_answers_anybody(running: Running) -> None:
    answer = running.host.get("/api/health")
    assert (answer.status, answer.json()["status"]) == (200, "ok")


def test_a_nudge_by_http_needs_the_key(running: Running) -> None:
    path = f"/api/reconcile/{running.cluster}/etcd-backup"
    assert running.host.post(path).status == 401
    assert running.host.post(path, key=running.host.keys.function).status == 202
    assert any("Request" in nudge for nudge in nudges(running))


def test_the_timer_nudges_the_cluster(running: Running) -> None:
    assert running.host.run_function("etcd_backup_timer").status == 202
    running.host.wait_idle()
    assert any("Timer" in nudge for nudge in nudges(running))


@pytest.mark.parametrize("schema", ["eventgrid", "cloudevents"])
def test_an_event_is_accepted_in_either_schema(running: Running, schema: str) -> None:
    kind, data = "Kubekeeper.Cluster.EtcdUnhealthy", {"cluster": running.cluster}
    if schema == "eventgrid":
        event = {"id": "1", "topic": "t", "subject": "s", "eventType": kind, "data": data, "dataVersion": "1"}
        event["eventTime"] = "2026-11-23T10:00:00Z"
    else:
        event = {"specversion": "1.0", "id": "1", "source": "s", "type": kind, "data": data}
    before = len(nudges(running))
    assert running.host.send_events("cluster_event", [event]).status == 202
    assert len(nudges(running)) == before + 1


def test_an_operation_sent_as_a_queue_message_is_carried_out(running: Running) -> None:
    service = QueueServiceClient.from_connection_string(running.settings["AzureWebJobsStorage"])
    queue = service.get_queue_client("operations")
    with contextlib.suppress(ResourceExistsError):
        queue.create_queue()
    identity = str(uuid.uuid4())
    queue.send_message(json.dumps({"id": identity, "operation": "pause", "cluster": running.cluster}))
    until = time.monotonic() + 90
    clients = Clients({**os.environ, **running.settings})
    while (record := get_operation(clients, identity)) is None or not record.is_over:
        assert time.monotonic() < until, running.log.read_text()[-2000:]
        time.sleep(0.1)
    assert record.state == "Succeeded"


def test_the_status_page_needs_the_key_and_shows_what_was_asked_for(running: Running) -> None:
    assert running.host.get("/api/status").status == 401
    key = running.host.keys.function
    page = running.host.get("/api/status", key=key)
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert running.cluster in page.body.decode()
    document = running.host.get("/api/status?format=json", key=key).json()
    (cluster,) = document["clusters"]
    assert [row["automation"] for row in cluster["automations"]] == ["etcd-backup"]
    assert "pause" in [operation["operation"] for operation in document["operations"]]


def test_the_page_asks_again_only_where_its_address_says_so(running: Running) -> None:
    key = running.host.keys.function
    headers = [
        running.host.get(f"/api/status{ask}", key=key).headers for ask in ("", "?refresh=10", "?refresh=1")
    ]
    assert [one.get("refresh") for one in headers] == [None, "10", "5"]
    assert "refresh" not in running.host.get("/api/status?refresh=x", key=key).headers


def test_metrics_need_the_key_and_are_prometheus_text(running: Running) -> None:
    assert running.host.get("/api/metrics").status == 401
    answer = running.host.get("/api/metrics", key=running.host.keys.function)
    assert (answer.status, answer.headers["content-type"]) == (200, CONTENT_TYPE)
    names = {family.name for family in text_string_to_metric_families(answer.body.decode())}
    assert "kubekeeper_paused" in names

"""What one event causes is one trace, and it leaves the worker: by OTLP, and as Application Insights has it.

The app's own triggers run in the local host on real queues; both receivers are HTTP servers of this test.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox import tools
from sandbox.host.process import HostProcess
from sandbox.up import options_of
from sandbox.whole_world import StandInCluster, WholeWorld
from shared.runtime.automation import AUTOMATIONS, schedule_setting

pytestmark = pytest.mark.azurite
PATIENCE_SECONDS = 60
WRITE = "write 'agentpools/local/agents'"


class Seen(NamedTuple):
    trace: str
    id: str
    parent: str


class Receiver:
    """Takes spans in both protocols; by span name, the newest."""

    def __init__(self) -> None:
        self.by_otlp: dict[str, Seen] = {}
        self.by_insights: dict[str, Seen] = {}
        self.services: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = receiver.take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, path: str, body: bytes) -> bytes:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.services |= {
                    one.value.string_value
                    for one in resource.resource.attributes
                    if one.key == "service.name"
                }
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    parts = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                    self.by_otlp[span.name] = Seen(*parts)
            return b""
        assert path.endswith("/track"), path
        items = [json.loads(line) for line in body.splitlines()] if body[:1] != b"[" else json.loads(body)
        for item in items:
            tags, data = item["tags"], item["data"]["baseData"]
            assert item["data"]["baseType"] in ("RemoteDependencyData", "RequestData"), "spans alone are sent"
            parts = (tags["ai.operation.id"], data.get("id", ""), tags.get("ai.operation.parentId", ""))
            self.by_insights[data.get("name", "")] = Seen(*parts)
        return json.dumps({"itemsReceived": len(items), "itemsAccepted": len(items), "errors": []}).encode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_one_trace_reaches_from_the_event_to_the_write_in_azure(receiver: Receiver, tmp_path: Path) -> None:
    with WholeWorld(tmp_path, options_of()) as world:
        for start in world.steps():
            start()
        assert isinstance(world.cluster, StandInCluster)
        world.cluster.add_deployment("web", replicas=4, cpu="3")  # three nodes take one each
        settings = {
            **world.environ,
            **{schedule_setting(automation): "0 0 0 1 1 *" for automation in AUTOMATIONS},
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "APPLICATIONINSIGHTS_CONNECTION_STRING": (
                f"InstrumentationKey=11111111-2222-3333-4444-555555555555;IngestionEndpoint={receiver.url}/"
            ),
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        log = tmp_path / "host.log"
        with HostProcess(tools.CHECKOUT, settings, log=log) as host:
            event = {
                "specversion": "1.0",
                "id": "1",
                "source": "/test",
                "type": "Kubekeeper.Cluster.PodUnschedulable",
                "data": {"cluster": "local"},
            }
            assert host.send_events("cluster_event", [event]).status == 202
            until = time.monotonic() + PATIENCE_SECONDS
            wanted = {"event PodUnschedulable", "pass autoscaling", WRITE}
            while not all(wanted <= spans.keys() for spans in (receiver.by_otlp, receiver.by_insights)):
                names = (sorted(receiver.by_otlp), sorted(receiver.by_insights))
                assert time.monotonic() < until, f"{names}\n{log.read_text()[-3000:]}"
                time.sleep(0.05)
    for spans in (receiver.by_otlp, receiver.by_insights):
        event_span, made, write = spans["event PodUnschedulable"], spans["pass autoscaling"], spans[WRITE]
        assert {event_span.trace, made.trace, write.trace} == {event_span.trace}
        assert (made.parent, write.parent) == (event_span.id, made.id)
    assert receiver.by_otlp["pass autoscaling"] == receiver.by_insights["pass autoscaling"]
    assert receiver.services == {"kubekeeper"}
    assert f"trace={receiver.by_otlp['pass autoscaling'].trace}" in log.read_text()

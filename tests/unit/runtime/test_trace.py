"""One trace from the event to the write: what is sent carries it, what is received goes on with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sandbox.arm import LocalArm
from shared.clients.arm import arm
from shared.clients.spans import LateExporter
from shared.errors import MessageError
from shared.runtime.message import Nudge, decode
from shared.runtime.nudge import send_nudge
from shared.trace import span, traceparent

NUDGE = Nudge(cluster="prod", automation="autoscaling", reason="PodUnschedulable")


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield kept
    provider.shutdown()


class Sending:
    """Clients with one queue that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def queue(self, _: str) -> Any:
        return self

    def send(self, text: str, _: Any) -> None:
        self.sent.append(text)


def test_event_nudge_pass_and_write_are_one_trace(exporter: InMemorySpanExporter) -> None:
    clients = Sending()
    with span("event PodUnschedulable"):
        send_nudge(clients, NUDGE)  # type: ignore[arg-type]
    (text,) = clients.sent
    nudge = decode(text.encode(), Nudge)
    with LocalArm() as azure:
        scale_set = azure.add_scale_set("agents", 1)
        client = arm({"KUBEKEEPER_ARM_ENDPOINT": azure.url}, credential=azure.credential())
        with span("pass autoscaling", parent=nudge.traceparent, cluster=nudge.cluster):
            client.patch(scale_set, {"sku": {"capacity": 2}})
    spans: dict[str, ReadableSpan] = {one.name: one for one in exporter.get_finished_spans()}
    event, made = spans["event PodUnschedulable"], spans["pass autoscaling"]
    write = spans["change 'virtualMachineScaleSets/agents'"]
    assert len({one.context.trace_id for one in (event, made, write) if one.context}) == 1
    assert made.parent and event.context and made.parent.span_id == event.context.span_id
    assert write.parent and made.context and write.parent.span_id == made.context.span_id
    assert made.attributes == {"kubekeeper.cluster": "prod"}


def test_a_failure_is_on_its_span_without_secrets_or_stack(exporter: InMemorySpanExporter) -> None:
    with pytest.raises(MessageError), span("pass autoscaling"):
        raise MessageError("cannot use 'AccountKey=c2VjcmV0c2VjcmV0;'")
    (made,) = exporter.get_finished_spans()
    assert made.status.status_code is trace.StatusCode.ERROR
    assert made.status.description == "MessageError: cannot use 'AccountKey=[redacted];'"
    assert made.events == ()


def test_an_exporter_is_made_when_spans_leave_and_one_that_cannot_be_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = []

    def make() -> InMemorySpanExporter:
        asked.append(1)
        raise ValueError("no such address")

    late = LateExporter("A_SETTING", make)
    assert asked == []
    assert [late.export([]) for _ in range(3)] == [SpanExportResult.FAILURE] * 3
    assert asked == [1]
    assert [record.getMessage() for record in caplog.records] == [
        'SpansNotSent setting=A_SETTING reason="no such address"'
    ]


def test_without_an_sdk_nothing_is_recorded_and_the_message_stays_as_it_was() -> None:
    with span("nothing"):
        assert traceparent() == ""
    clients = Sending()
    send_nudge(clients, NUDGE)  # type: ignore[arg-type]
    assert clients.sent == [NUDGE.encode()]


@pytest.mark.parametrize("text", ["x", "00-0-0-0", "00-" + "g" * 32 + "-" + "0" * 16 + "-01"])
def test_what_is_no_traceparent_is_refused(text: str) -> None:
    body = f'{{"cluster": "prod", "automation": "autoscaling", "traceparent": "{text}"}}'
    with pytest.raises(MessageError, match="traceparent"):
        decode(body.encode(), Nudge)

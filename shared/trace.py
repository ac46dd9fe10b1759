"""One trace for each nudge, from the event that caused it to the last write in Azure.

Speaks OpenTelemetry's API only: without an SDK in the process nothing is recorded and nothing costs. Where
spans go is `shared.clients.spans`'s. Between functions the trace travels in the nudge, as W3C `traceparent`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.log import redact

INSIGHTS = "APPLICATIONINSIGHTS_CONNECTION_STRING"
COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"
DESTINATIONS = (INSIGHTS, COLLECTOR)
"""App settings that say where spans go, the platform's own; without either there are none."""


@contextmanager
def span(name: str, *, parent: str = "", **attributes: str) -> Iterator[None]:
    """A span around a block, below `parent` (a traceparent) or the current one; an exception is on it."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    named = {f"kubekeeper.{key}": value for key, value in attributes.items() if value}
    with trace.get_tracer("kubekeeper").start_as_current_span(
        name, context=context, attributes=named, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except Exception as error:
            # Not recorded as it is: its text and stack could hold what a log line may not.
            current.set_status(trace.StatusCode.ERROR, redact(f"{type(error).__name__}: {error}"))
            raise


def traceparent() -> str:
    """Of the current span; empty when nobody traces."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """Of the current span, as log lines name it; empty when nobody traces."""
    return traceparent()[3:35]

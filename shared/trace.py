"""One trace for each nudge, from the event that caused it to the last write in Azure.

Speaks OpenTelemetry's API only: without an SDK in the process nothing is recorded and nothing costs. On the
platform the worker's own mode (PYTHON_ENABLE_OPENTELEMETRY, with azure-monitor-opentelemetry among the
requirements) brings one. Between functions the trace travels in the nudge, as W3C `traceparent`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def span(name: str, *, parent: str = "", **attributes: str) -> Iterator[None]:
    """A span around a block, below `parent` (a traceparent) or the current one; an exception is on it."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    named = {f"kubekeeper.{key}": value for key, value in attributes.items() if value}
    with trace.get_tracer("kubekeeper").start_as_current_span(name, context=context, attributes=named):
        yield


def traceparent() -> str:
    """Of the current span; empty when nobody traces."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")

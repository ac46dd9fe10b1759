"""Sends spans where the platform's host sends its own: Application Insights, an OTLP endpoint, or both.

The app settings are the host's (`"telemetryMode": "OpenTelemetry"` in host.json), so one place says it for
host and app. The worker's own switches are not used: with PYTHON_ENABLE_OPENTELEMETRY the host no longer
passes on what the app logs, and PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY loads Microsoft's distribution
before the first function is found (docs/decisions/0009-traces.md). Called by the bootstrap, once per worker.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from shared.log import log_event
from shared.trace import COLLECTOR, INSIGHTS

SPANS_ALONE = (
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL",
    "APPLICATIONINSIGHTS_SDKSTATS_DISABLED",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED",
    "APPLICATIONINSIGHTS_OPENTELEMETRY_RESOURCE_METRIC_DISABLED",
)
"""What else Microsoft's exporter would send or ask for, to others too: its own use, and remote switches."""

log = logging.getLogger(__name__)


def send_spans(environ: Mapping[str, str]) -> None:
    """From now on every span of this process, in batches; nothing where a provider is in place already."""
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    name = environ.get("OTEL_SERVICE_NAME") or environ.get("WEBSITE_SITE_NAME") or "kubekeeper"
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    for setting, make in EXPORTERS.items():
        if environ.get(setting):
            provider.add_span_processor(BatchSpanProcessor(LateExporter(setting, make)))
    trace.set_tracer_provider(provider)


class LateExporter(SpanExporter):
    """Made when the first spans leave, by the thread that sends them: its imports take 0.1 to 0.3 s of CPU,
    which no nudge shall wait for. One that cannot be made says so once.
    """

    def __init__(self, setting: str, make: Callable[[], SpanExporter]) -> None:
        self._setting, self._make = setting, make
        self._made: SpanExporter | None = None
        self._is_broken = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._made is None and not self._is_broken:
            try:
                self._made = self._make()
            except Exception as error:  # noqa: BLE001  a wrong setting costs the traces and nothing else
                self._is_broken = True
                log_event(log, "SpansNotSent", level=logging.ERROR, setting=self._setting, reason=str(error))
        return SpanExportResult.FAILURE if self._made is None else self._made.export(spans)

    def shutdown(self) -> None:
        if self._made is not None:
            self._made.shutdown()


def _to_collector() -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _to_application_insights() -> SpanExporter:
    for setting in SPANS_ALONE:
        os.environ.setdefault(setting, "true")
    from azure.monitor.opentelemetry.exporter import AzureMonitorTraceExporter

    # Sign-in follows APPLICATIONINSIGHTS_AUTHENTICATION_STRING, as the host's.
    return AzureMonitorTraceExporter(disable_offline_storage=True)


EXPORTERS: dict[str, Callable[[], SpanExporter]] = {
    INSIGHTS: _to_application_insights,
    COLLECTOR: _to_collector,
}

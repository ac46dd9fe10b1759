"""`GET /api/metrics`: the state of the fleet as Prometheus text, for scraping and alert rules.

Gauges of what is stored, not counters of one process: functions run in many workers that come and go, and
none of them knows what the others did. Called by the function behind the route; pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from shared.model.backup import VerdictState
from shared.status.page import newest_proven

if TYPE_CHECKING:
    from datetime import datetime

    from prometheus_client.core import GaugeMetricFamily

    from shared.status.collect import ClusterStatus, PageDocument, Row

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PAIR = ("cluster", "automation")
LATELY = timedelta(hours=1)
TOO_MANY = "(429)"
"""How errors of Azure say it: code and HTTP status."""


def render(document: PageDocument) -> bytes:
    """The exposition text, sorted as the document is."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(document))
    return generate_latest(registry)


class _Collector:
    def __init__(self, document: PageDocument) -> None:
        self._document = document

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What prometheus_client asks a collector."""
        rows = [row for cluster in self._document.clusters for row in cluster.automations]
        yield from _passes(rows, self._document.now)
        yield _actions(rows)
        yield _left_alone(rows)
        yield from _backups(self._document.clusters, self._document.now)
        yield _quarantined(self._document.clusters)
        yield _throttled(self._document)
        yield _operations(self._document)
        yield _poison(self._document)


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"kubekeeper_{name}", meaning, labels=labels)


def _passes(rows: list[Row], now: datetime) -> Iterator[GaugeMetricFamily]:
    age = _gauge("last_pass_age_seconds", "Since the last pass that ended well began.", *PAIR)
    tick = _gauge("last_tick_age_seconds", "Since the timer last fired.", *PAIR)
    silent = _gauge("silent", "1 when the timer has missed three ticks in a row.", *PAIR)
    paused = _gauge("paused", "1 while an operator lets the automation rest.", *PAIR)
    for row in rows:
        labels = [row.cluster, row.automation]
        if row.last_pass:
            age.add_metric(labels, (now - row.last_pass).total_seconds())
        if row.last_tick:
            tick.add_metric(labels, (now - row.last_tick).total_seconds())
            silent.add_metric(labels, row.is_silent)
        paused.add_metric(labels, row.state == "paused")
    yield from (age, tick, silent, paused)


def _throttled(document: PageDocument) -> GaugeMetricFamily:
    gauge = _gauge("throttled", "What Azure's throttling stopped or delayed within the last hour.", *PAIR)
    for cluster in document.clusters:
        for row in cluster.automations:
            said = [
                entry.message
                for entry in cluster.journal
                if entry.automation == row.automation and document.now - entry.at < LATELY
            ]
            said += [str(left["message"]) for left in (row.summary.left_alone if row.summary else ())]
            gauge.add_metric([cluster.name, row.automation], sum(TOO_MANY in text for text in said))
    return gauge


def _quarantined(clusters: tuple[ClusterStatus, ...]) -> GaugeMetricFamily:
    gauge = _gauge("quarantined", "Ingress objects that are left out of the gateway.", "cluster")
    for cluster in clusters:
        if cluster.gateway is not None:
            gauge.add_metric([cluster.name], len(cluster.quarantined))
    return gauge


def _actions(rows: list[Row]) -> GaugeMetricFamily:
    gauge = _gauge(
        "last_plan_actions", "Actions of the last pass, by kind and outcome.", *PAIR, "kind", "status"
    )
    for row in rows:
        actions = row.summary.actions if row.summary else ()
        counts = Counter((str(action["kind"]), str(action["status"])) for action in actions)
        for (kind, status), count in sorted(counts.items()):
            gauge.add_metric([row.cluster, row.automation, kind, status], count)
    return gauge


def _left_alone(rows: list[Row]) -> GaugeMetricFamily:
    gauge = _gauge(
        "last_plan_left_alone", "Candidates of the last pass left alone, by reason.", *PAIR, "reason"
    )
    for row in rows:
        left = row.summary.left_alone if row.summary else ()
        for reason, count in sorted(Counter(str(one["reason"]) for one in left).items()):
            gauge.add_metric([row.cluster, row.automation, reason], count)
    return gauge


def _backups(clusters: tuple[ClusterStatus, ...], now: datetime) -> Iterator[GaugeMetricFamily]:
    age = _gauge("backup_verified_age_seconds", "Since the newest verified backup began.", "cluster")
    kept = _gauge("backups", "Backups that are kept, by what reading them back said.", "cluster", "verdict")
    for cluster in clusters:
        if not any(row.automation == "etcd-backup" for row in cluster.automations):
            continue
        if proven := newest_proven(cluster.backups):
            age.add_metric([cluster.name], (now - proven.started_at).total_seconds())
        verdicts = Counter(backup.verdict or "none" for backup in cluster.backups)
        for verdict in (*VerdictState, "none"):
            kept.add_metric([cluster.name, str(verdict)], verdicts[verdict])
    yield from (age, kept)


def _operations(document: PageDocument) -> GaugeMetricFamily:
    gauge = _gauge("operations", "Operations of the last week.", "cluster", "operation", "state")
    counts = Counter((o.cluster, o.operation, str(o.state)) for o in document.operations)
    for labels, count in sorted(counts.items()):
        gauge.add_metric(labels, count)
    return gauge


def _poison(document: PageDocument) -> GaugeMetricFamily:
    gauge = _gauge("poison_messages", "Messages that failed for good and wait for a person.", "queue")
    for queue, count in sorted(Counter(message.queue for message in document.poison).items()):
        gauge.add_metric([queue], count)
    return gauge

"""Reads the values that metric rules follow: Prometheus, metrics-server, Azure Monitor, storage queues.

One number for each rule, with the time it is from. A source that does not answer costs its rule this reading
and nothing else: the reading then says why, and `decide` lets the last wish stand. Called by `observe`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from shared.autoscaling.policy import MetricRule
from shared.errors import ApiError, SettingsError
from shared.model.quantity import Quantity, parse_quantity
from shared.model.resource_id import parse_resource_id
from shared.model.snapshot import MetricReading

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.clients.kube import KubeClient

NODE_METRICS = "/apis/metrics.k8s.io/v1beta1/nodes"
MANAGED_PROMETHEUS = ".prometheus.monitor.azure.com"
PROMETHEUS_SCOPE = "https://prometheus.monitor.azure.com/.default"
LOOK_BACK = timedelta(minutes=10)
"""Azure Monitor's newest values are minutes late; the last one there counts, with its own time."""

NodesOfPool = Callable[[str], Collection[str]]
"""Names of a pool's nodes."""


class _Result(msgspec.Struct, frozen=True, rename="camel"):
    result_type: str = ""
    result: Any = None


class _Answer(msgspec.Struct, frozen=True):
    status: str = ""
    error: str = ""
    data: _Result = _Result()


class _Name(msgspec.Struct, frozen=True):
    name: str = ""


class _NodeUsage(msgspec.Struct, frozen=True):
    metadata: _Name = _Name()
    usage: dict[str, Quantity] = {}
    timestamp: datetime | None = None


class _NodeUsages(msgspec.Struct, frozen=True):
    items: tuple[_NodeUsage, ...] = ()


class _Series(msgspec.Struct, frozen=True):
    data: tuple[dict[str, Any], ...] = ()


class _Metric(msgspec.Struct, frozen=True):
    timeseries: tuple[_Series, ...] = ()


class _Metrics(msgspec.Struct, frozen=True):
    value: tuple[_Metric, ...] = ()


def measure(
    rule: MetricRule, clients: Clients, kube: KubeClient, nodes_of_pool: NodesOfPool, now: datetime
) -> MetricReading:
    """The rule's value, or a reading that says in one line why there is none."""
    try:
        value, at = _read(rule, clients, kube, nodes_of_pool, now)
    except (ApiError, SettingsError, msgspec.MsgspecError, ValueError) as error:
        return MetricReading(source=rule.source, query=rule.query, read_at=now, error=str(error))
    return MetricReading(source=rule.source, query=rule.query, read_at=at, value=value)


def _read(
    rule: MetricRule, clients: Clients, kube: KubeClient, nodes_of_pool: NodesOfPool, now: datetime
) -> tuple[float, datetime]:
    if rule.source == "prometheus":
        return _prometheus(rule, clients, now)
    if rule.source == "metrics-server":
        return _metrics_server(rule, kube, nodes_of_pool(rule.pool), now)
    if rule.source == "azure-monitor":
        return _azure_monitor(rule, clients, now)
    return float(_queue_length(rule, clients)), now


def _prometheus(rule: MetricRule, clients: Clients, now: datetime) -> tuple[float, datetime]:
    from shared.clients.web import get

    host = urlsplit(rule.endpoint).hostname or ""
    is_managed = host.endswith(MANAGED_PROMETHEUS) and rule.endpoint.startswith("https:")
    token = clients.credential.get_token(PROMETHEUS_SCOPE).token if is_managed else ""
    fields = {"query": rule.query, "time": f"{now.timestamp():.3f}"}
    body = get(rule.endpoint.rstrip("/") + "/api/v1/query", fields, service="Prometheus", token=token)
    return _sample(msgspec.json.decode(body, type=_Answer))


def _sample(answer: _Answer) -> tuple[float, datetime]:
    """The one sample of an instant query; ValueError when there is none, or there are several."""
    if answer.status != "success":
        raise ValueError(f"Prometheus refused the query: {answer.error or answer.status}")
    found = answer.data.result
    if answer.data.result_type != "scalar":
        if not found:
            raise ValueError("the query gives no sample now")
        if len(found) > 1:
            raise ValueError(f"the query gives {len(found)} series; aggregate them, for example by sum()")
        found = found[0]["value"]
    value = float(found[1])
    if not math.isfinite(value):
        raise ValueError(f"the query gives {found[1]}")
    return value, datetime.fromtimestamp(float(found[0]), UTC)


def _metrics_server(
    rule: MetricRule, kube: KubeClient, nodes: Collection[str], now: datetime
) -> tuple[float, datetime]:
    if rule.query not in ("cpu", "memory"):
        raise SettingsError(f"metric rule '{rule.name}': metrics-server knows 'cpu' and 'memory'")
    found = msgspec.json.decode(kube.get(NODE_METRICS), type=_NodeUsages).items
    ours = [one for one in found if one.metadata.name in nodes]
    if nodes and not ours:
        raise ValueError("metrics-server knows none of the pool's nodes")
    value = sum((parse_quantity(one.usage.get(rule.query, "0")) for one in ours), start=parse_quantity("0"))
    return float(value), min((one.timestamp for one in ours if one.timestamp), default=now)


def _azure_monitor(rule: MetricRule, clients: Clients, now: datetime) -> tuple[float, datetime]:
    span = f"{now - LOOK_BACK:%Y-%m-%dT%H:%M:%SZ}/{now:%Y-%m-%dT%H:%M:%SZ}"
    answer = clients.arm.get(
        f"{rule.resource}/providers/Microsoft.Insights/metrics",
        metricnames=rule.query,
        aggregation=rule.aggregation,
        interval="PT1M",
        timespan=span,
    )
    metrics = msgspec.json.decode(answer.body, type=_Metrics).value
    points = [point for metric in metrics for series in metric.timeseries for point in series.data]
    name = rule.aggregation.lower()
    known = [point for point in points if point.get(name) is not None]
    if not known:
        minutes = LOOK_BACK // timedelta(minutes=1)
        raise ValueError(f"Azure Monitor has no value of '{rule.query}' for the last {minutes} minutes")
    newest = max(known, key=lambda point: str(point["timeStamp"]))
    return float(newest[name]), msgspec.convert(newest["timeStamp"], datetime)


def _queue_length(rule: MetricRule, clients: Clients) -> int:
    """Messages, also those that somebody works on; without `resource` in the app's own account."""
    if not rule.resource:
        return clients.queue(rule.query).count()
    from shared.clients.queue import queue_of_account

    account = parse_resource_id(rule.resource).name
    return queue_of_account(account, rule.query, clients.credential).count()

"""What metric rules follow, read over HTTP: Prometheus, metrics-server, Azure Monitor, queues; and prices."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.asgi import Fault, Server, on
from sandbox.scenario import World
from shared.autoscaling.metrics import measure
from shared.autoscaling.policy import MetricRule
from shared.autoscaling.prices import retail_prices
from shared.bootstrap import Clients
from shared.errors import ApiError, UnavailableError
from shared.model.snapshot import MetricReading
from tests.scenarios.autoscaling_world import App


@pytest.fixture
def app() -> Iterator[App]:
    with World() as world:
        yield App(world)


class Prometheus:
    """Answers every query with what it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status, self.result, self.kind = 200, [{"metric": {}, "value": [1795860000.5, "12.5"]}], "vector"
        routes = [Route("/api/v1/query", self.answer)]
        self.server = Server(Starlette(routes=routes))

    async def answer(self, request: Request) -> Response:
        self.asked.append(request.query_params["query"])
        data = {"resultType": self.kind, "result": self.result}
        return JSONResponse({"status": "success", "data": data}, self.status)


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    found = Prometheus()
    with found.server:
        yield found


def rule(source: str, query: str, **more: Any) -> MetricRule:
    return MetricRule(name="r", source=source, query=query, pool="agents", target_per_node=10, **more)  # type: ignore[arg-type]


def read(app: App, wanted: MetricRule, *nodes: str) -> MetricReading:
    kube = app.clients.kube(app.cluster)
    return measure(wanted, app.clients, kube, lambda _: nodes, app.world.now)


def test_an_instant_query_gives_its_sample_and_time(app: App, prometheus: Prometheus) -> None:
    reading = read(app, rule("prometheus", "sum(up)", endpoint=prometheus.server.url))
    assert (reading.value, reading.error) == (12.5, "")
    assert reading.read_at == datetime.fromtimestamp(1795860000.5, UTC)
    assert prometheus.asked == ["sum(up)"]


@pytest.mark.parametrize(
    ("result", "error"),
    [
        ([], "no sample"),
        ([{"value": [1, "1"]}, {"value": [1, "2"]}], "aggregate"),
        ([{"value": [1, "NaN"]}], "NaN"),
    ],
)
def test_a_query_without_one_sample_is_no_value(
    app: App, prometheus: Prometheus, result: list[Any], error: str
) -> None:
    prometheus.result = result
    reading = read(app, rule("prometheus", "up", endpoint=prometheus.server.url))
    assert reading.value is None
    assert error in reading.error


def test_a_prometheus_that_fails_or_is_away_costs_only_the_reading(app: App, prometheus: Prometheus) -> None:
    prometheus.status = 503
    assert "503" in read(app, rule("prometheus", "up", endpoint=prometheus.server.url)).error
    assert "no answer" in read(app, rule("prometheus", "up", endpoint="http://127.0.0.1:9")).error
    assert "no http" in read(app, rule("prometheus", "up", endpoint="ftp://x")).error


def test_metrics_server_counts_the_pools_own_nodes(app: App) -> None:
    items = [
        {
            "metadata": {"name": name},
            "timestamp": "2026-11-23T09:59:30Z",
            "usage": {"cpu": cpu, "memory": "1Gi"},
        }
        for name, cpu in (("a", "1500m"), ("b", "250000000n"), ("other", "9"))
    ]
    body = {"kind": "NodeMetricsList", "items": items}
    app.world.kubernetes.faults.append(Fault(on("GET", "metrics.k8s.io"), status=200, body=body, times=2))
    assert read(app, rule("metrics-server", "cpu"), "a", "b").value == 1.75
    reading = read(app, rule("metrics-server", "memory"), "a", "b")
    assert reading.value == 2 * 1024**3
    assert reading.read_at == datetime(2026, 11, 23, 9, 59, 30, tzinfo=UTC)
    assert "knows" in read(app, rule("metrics-server", "disk"), "a").error


def test_azure_monitor_gives_its_newest_value(app: App) -> None:
    points = [
        {"timeStamp": "2026-11-23T09:57:00Z", "average": 3.0},
        {"timeStamp": "2026-11-23T09:58:00Z", "average": 7.0},
        {"timeStamp": "2026-11-23T09:59:00Z"},
    ]
    body = {"value": [{"timeseries": [{"data": points}]}]}
    app.world.arm.fault(Fault(on("GET", "microsoft.insights/metrics"), status=200, body=body))
    resource = app.world.arm.id_of("Microsoft.ServiceBus/namespaces", "bus")
    reading = read(app, rule("azure-monitor", "ActiveMessages", resource=resource))
    assert reading.value == 7.0
    assert reading.read_at == datetime(2026, 11, 23, 9, 58, tzinfo=UTC)
    (request,) = app.world.arm.recorder.of("GET", "microsoft.insights")
    assert request.query["metricnames"] == "ActiveMessages"


def test_azure_monitor_without_access_says_so(app: App) -> None:
    body = {"error": {"code": "AuthorizationFailed", "message": "no"}}
    app.world.arm.fault(Fault(on("GET", "microsoft.insights/metrics"), status=403, body=body))
    reading = read(app, rule("azure-monitor", "Messages", resource=app.world.arm.id_of("A.B/c", "d")))
    assert reading.value is None
    assert "AuthorizationFailed" in reading.error


def test_a_queue_of_the_apps_account_gives_its_length(app: App, storage: str) -> None:
    clients = Clients({"AzureWebJobsStorage": storage})
    queue = clients.queue("autoscaling-metric")
    queue.ensure()
    for number in range(3):
        queue.send(f"work {number}")
    kube = app.clients.kube(app.cluster)
    reading = measure(rule("queue", "autoscaling-metric"), clients, kube, lambda _: (), app.world.now)
    assert reading.value == 3
    gone = measure(rule("queue", "there-is-none"), clients, kube, lambda _: (), app.world.now)
    assert gone.value is None
    assert "there-is-none" in gone.error


class Prices:
    def __init__(self) -> None:
        self.filters: list[str] = []
        self.status = 200
        self.server = Server(
            Starlette(routes=[Route("/prices", self.answer), Route("/prices/next", self.more)])
        )

    async def answer(self, request: Request) -> Response:
        self.filters.append(request.query_params["$filter"])
        more = f"{self.server.url}/prices/next"
        return JSONResponse({"Items": [{"armSkuName": "A"}], "NextPageLink": more}, self.status)

    async def more(self, _: Request) -> Response:
        return JSONResponse({"Items": [{"armSkuName": "B"}], "NextPageLink": "http://elsewhere.example/x"})


def test_retail_prices_are_read_page_by_page_and_from_nowhere_else() -> None:
    prices = Prices()
    with prices.server as server:
        key, fetch = retail_prices("westeurope", ["Standard_D2s_v5", "x' or 1"], f"{server.url}/prices")
        assert [item["armSkuName"] for item in fetch()["Items"]] == ["A", "B"]
        assert prices.filters == [
            "serviceName eq 'Virtual Machines' and armRegionName eq 'westeurope' and "
            "(armSkuName eq 'Standard_D2s_v5' or armSkuName eq 'xor1')"
        ]
        assert key.startswith("https://prices.azure.com/")
        prices.status = 500
        with pytest.raises(ApiError):
            fetch()
    with pytest.raises(UnavailableError):
        retail_prices("westeurope", ["A"], "http://127.0.0.1:9/prices")[1]()

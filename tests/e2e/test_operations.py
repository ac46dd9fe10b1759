"""Drain and rolling upgrade on the real control plane, under the role of autoscaling and no more: its
eviction API, scheduler and controllers take part.

Machines are the local Azure's, kubelets are played, storage is Azurite. A message that shall come again comes
at once, not after its delay: nothing else is hurried.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from live_cluster import LiveCluster
from roles import connection_of_app

from sandbox.controlplane import AssetsMissingError, ControlPlane, find_assets
from sandbox.fleet import Pool
from shared.bootstrap import Clients
from shared.operations import dispatch
from shared.runtime.message import Received
from shared.runtime.operation import OperationMessage, OperationRecord, OperationState

try:
    find_assets()
except AssetsMissingError as missing:
    pytestmark = [pytest.mark.e2e, pytest.mark.azurite, pytest.mark.skip(reason=str(missing))]
else:
    pytestmark = [pytest.mark.e2e, pytest.mark.azurite]

SIZE = "Standard_D2s_v5"
OLD = {"publisher": "contoso", "offer": "nodes", "sku": "1-35", "version": "1.0.0"}
NEW = "contoso:nodes:1-36:2.0.0"
BUDGETS = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
REPLICAS = 4


class Live(LiveCluster):
    """A cluster with a scale set of two nodes and a Deployment on it."""

    def __init__(self, plane: ControlPlane, stack: ExitStack) -> None:
        super().__init__(plane, stack)
        profile = {"osProfile": {"computerNamePrefix": "agents"}, "storageProfile": {"imageReference": OLD}}
        self.scale_set = self.arm.add_scale_set(
            "agents", 2, size=SIZE, tags={"min": "2", "max": "4"}, virtualMachineProfile=profile
        )
        self.fleet.enrol(Pool(self.scale_set))
        self.until(lambda: len(self.ready()) == 2, "two nodes")
        labels = {"app": "web"}
        container = {"name": "main", "image": "example.org/web:1", "resources": {"requests": {"cpu": "300m"}}}
        spec = {"terminationGracePeriodSeconds": 1, "containers": [container]}
        template = {"metadata": {"labels": labels}, "spec": spec}
        body = {"replicas": REPLICAS, "selector": {"matchLabels": labels}, "template": template}
        where = "/apis/apps/v1/namespaces/default/deployments"
        self.kube.create(where, {"metadata": {"name": "web"}, "spec": body})
        self.until(lambda: self.available() == REPLICAS, "web running")

    def ready(self) -> list[str]:
        names = [node["metadata"]["name"] for node in self.list("/api/v1/nodes")]
        return sorted(name for name in names if self.is_ready(name))

    def available(self) -> int:
        """Pods that are Ready and not on their way out, as the disruption controller counts them."""
        return sum(
            any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or ())
            for pod in self.list("/api/v1/namespaces/default/pods")
            if "deletionTimestamp" not in pod["metadata"]
        )

    def hosts(self) -> set[str]:
        """Nodes with pods."""
        pods = self.list("/api/v1/namespaces/default/pods")
        return {pod["spec"]["nodeName"] for pod in pods if pod["spec"].get("nodeName")}

    def budget(self, least: int) -> None:
        """At least so many of web; in force when the disruption controller has seen it."""
        if self.kube.find(f"{BUDGETS}/web"):
            self.kube.delete(f"{BUDGETS}/web")
        spec = {"minAvailable": least, "selector": {"matchLabels": {"app": "web"}}}
        self.kube.create(BUDGETS, {"metadata": {"name": "web"}, "spec": spec})

        def is_seen() -> bool:
            status = (self.kube.find(f"{BUDGETS}/web") or {}).get("status") or {}
            return status.get("expectedPods") == REPLICAS and status.get("desiredHealthy") == least

        self.until(is_seen, "budget in force")

    def images(self) -> set[str]:
        """Skus of what the machines were made from."""
        machines = [self.arm.core.state.find(self.fleet.machine_of(node)) for node in self.ready()]
        return {one.body["properties"]["storageProfile"]["imageReference"]["sku"] for one in machines if one}


class App:
    """The app, and operations sent to it."""

    def __init__(self, live: Live, storage: str, directory: Path) -> None:
        self.live, self.name = live, f"e2e-{uuid.uuid4().hex[:8]}"
        azure = {"subscription": live.arm.subscription, "resourceGroups": [live.arm.group]}
        entry = {"name": self.name, "kubernetes": connection_of_app(live.plane, "autoscaling")}
        entry |= {"azure": {**azure, "location": "westeurope"}, "autoscaling": {}}
        path = directory / "kubekeeper.yaml"
        path.write_text(json.dumps({"clusters": [entry]}))
        environ = {"AzureWebJobsStorage": storage, "KUBEKEEPER_CONFIG": str(path)}
        self.clients = Clients(environ | {"KUBEKEEPER_ARM_ENDPOINT": live.arm.url}, live.arm.credential())

    def operate(self, operation: str, watch: Callable[[], object], **parameters: Any) -> OperationRecord:
        """Carry it out to its end; `watch` is called all the time."""
        identity = uuid.uuid4().hex
        message = OperationMessage(
            id=identity, operation=operation, cluster=self.name, parameters=parameters
        ).encode()
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            dispatch.work_off(
                self.clients, Received(id=uuid.uuid4().hex, body=message.encode(), dequeue_count=1)
            )
            record = self.clients.operations.read(identity)
            assert record is not None
            if record.is_over:
                return record
            for _ in range(10):
                watch()
                time.sleep(0.05)
        raise AssertionError(f"{record}\n{self.live.describe()}")


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with ExitStack() as stack:
        yield Live(stack.enter_context(ControlPlane.start()), stack)


@pytest.fixture
def app(live: Live, storage: str, tmp_path: Path) -> App:
    return App(live, storage, tmp_path)


def test_a_drain_goes_as_the_budget_allows_or_says_what_forbids_it(live: Live, app: App) -> None:
    node, other = live.ready()
    live.budget(REPLICAS)
    refused = app.operate("drain", live.available, node=node, timeout="3s")
    assert refused.state is OperationState.FAILED
    assert "a PodDisruptionBudget does not allow it now" in refused.message, refused.message
    assert live.available() == REPLICAS
    live.budget(REPLICAS - 1)
    seen: list[int] = []
    drained = app.operate("drain", lambda: seen.append(live.available()), node=node, timeout="2m")
    assert drained.state is OperationState.SUCCEEDED, drained.message
    assert min(seen, default=REPLICAS) >= REPLICAS - 1
    assert live.hosts() == {other}
    app.operate("uncordon", live.available, node=node)
    live.until(lambda: live.available() == REPLICAS, "web running")


def test_a_rolling_upgrade_stops_at_a_budget_and_goes_on_when_it_is_loosened(live: Live, app: App) -> None:
    before, hosts = live.ready(), live.hosts()
    live.budget(REPLICAS)
    stopped = app.operate("rolling-upgrade", live.available, pool="agents", image=NEW, timeout="5s")
    assert stopped.state is OperationState.FAILED
    assert "a PodDisruptionBudget does not allow it now" in stopped.message, stopped.message
    assert live.hosts() == hosts <= set(live.ready()), "no node with pods was given up for it"
    assert not any("to-be-deleted" in taint for node in hosts for taint in live.taints(node))
    assert live.available() == REPLICAS
    live.budget(REPLICAS - 1)
    seen: list[tuple[int, int]] = []
    done = app.operate(
        "rolling-upgrade",
        lambda: seen.append((live.available(), len(live.ready()))),
        pool="agents",
        image=NEW,
    )
    assert done.state is OperationState.SUCCEEDED, done.message
    assert live.images() == {"1-36"}
    assert not set(before) & set(live.ready())
    assert min(pods for pods, _ in seen) >= REPLICAS - 1
    assert min(nodes for _, nodes in seen) >= 2
    live.until(lambda: live.available() == REPLICAS, "web running")

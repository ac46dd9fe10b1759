"""Autoscaling on the real control plane, under its role and no more: a scale set follows a Deployment up and
down again; pods are evicted as a disruption budget allows, by the real scheduler and controllers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from live_cluster import App, LiveCluster

from sandbox.controlplane import AssetsMissingError, ControlPlane, find_assets
from sandbox.fleet import Pool
from sandbox.kube_client import Document

try:
    find_assets()
except AssetsMissingError as missing:
    pytestmark = [pytest.mark.e2e, pytest.mark.azurite, pytest.mark.skip(reason=str(missing))]
else:
    pytestmark = [pytest.mark.e2e, pytest.mark.azurite]

SIZE = "Standard_D2s_v5"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
BUDGETS = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
SOON = {"unneededTime": "1s", "delayAfterAdd": "1s", "utilizationThreshold": 0.9}


@pytest.fixture
def live() -> Iterator[LiveCluster]:
    with ExitStack() as stack:
        yield LiveCluster(stack.enter_context(ControlPlane.start()), stack)


def deploy(live: LiveCluster, name: str, replicas: int, cpu: str) -> None:
    labels = {"app": name}
    container = {"name": "main", "image": "example.org/m", "resources": {"requests": {"cpu": cpu}}}
    pod = {"terminationGracePeriodSeconds": 1, "containers": [container]}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    live.kube.create(DEPLOYMENTS, {"metadata": {"name": name}, "spec": spec})


def running(live: LiveCluster) -> list[Document]:
    pods = live.list("/api/v1/namespaces/default/pods")
    return [
        pod
        for pod in pods
        if pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")
    ]


def test_a_scale_set_follows_deployments_up_and_down(live: LiveCluster, storage: str, tmp_path: Path) -> None:
    pool = live.arm.add_scale_set("agents", 1, size=SIZE, tags={"min": "1", "max": "3"})
    live.fleet.enrol(Pool(pool))
    app = App(live, "autoscaling", {"autoscaling": {"scaleDown": SOON}}, storage, tmp_path)
    deploy(live, "big", 1, "1.5")
    live.until(lambda: len(running(live)) == 1, "a pod on the first node")
    deploy(live, "web", 2, "300m")
    budget = {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}
    live.kube.create(BUDGETS, {"metadata": {"name": "web"}, "spec": budget})
    live.until(lambda: len(running(live)) == 3, "room for the third pod", 120, app.tick)
    assert len(live.list("/api/v1/nodes")) == 2
    # Now each node has one pod of `web`, and one node is enough.
    live.kube.delete(f"{DEPLOYMENTS}/big")
    live.until(lambda: len(live.list("/api/v1/nodes")) == 1, "one node", 300, app.tick)
    live.until(lambda: len(running(live)) == 2, "both pods on it", 60, app.tick)
    assert app.did() == ["ScaleUp", "ScaleUp", "ScaleDown", "ScaleDown"]  # each begun, and over
    assert app.failed() == []

"""The real control plane as a tool: starts, can be reached, stands beside another, leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sandbox.controlplane import AssetsMissingError, ControlPlane, find_assets
from sandbox.kube_client import Document, KubeClient, KubeError
from sandbox.node_agent import LEASES, NodeAgent

try:
    find_assets()
except AssetsMissingError as missing:
    pytestmark = [pytest.mark.e2e, pytest.mark.skip(reason=str(missing))]
else:
    pytestmark = pytest.mark.e2e

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane.start() as plane:
        yield plane


def kubectl(plane: ControlPlane, *arguments: str, kubeconfig: Path | None = None) -> str:
    command = [plane.kubectl, "--kubeconfig", kubeconfig or plane.kubeconfig(), *arguments]
    home = {"HOME": str(plane.directory), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_server_and_kubectl_are_of_the_version_that_was_built(plane: ControlPlane) -> None:
    version = plane.client().get("/version")
    assert version["gitVersion"] == f"v{plane.assets.resolve().name}"
    assert (version["major"], version["minor"]) == tuple(version["gitVersion"][1:].split(".")[:2])
    assert f"Server Version: {version['gitVersion']}" in kubectl(plane, "version")


def test_kubectl_works_with_nodes_and_pods(plane: ControlPlane, tmp_path: Path) -> None:
    manifest = tmp_path / "web.yaml"
    manifest.write_text(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n"
        "  replicas: 2\n  selector: {matchLabels: {app: web}}\n  template:\n"
        "    metadata: {labels: {app: web}}\n    spec: {containers: [{name: main, image: example.org/m}]}\n"
    )
    with NodeAgent(plane.client()) as agent:
        agent.join("node-a")
        agent.join("node-b")
        assert kubectl(plane, "apply", "-f", str(manifest)) == "deployment.apps/web created\n"
        kubectl(plane, "rollout", "status", "deployment/web", "--timeout=30s")
        nodes = kubectl(plane, "get", "nodes", "--no-headers").splitlines()
        assert [line.split()[:2] for line in nodes] == [["node-a", "Ready"], ["node-b", "Ready"]]
        assert "node/node-a drained" in kubectl(plane, "drain", "node-a", "--timeout=30s")
        kubectl(plane, "rollout", "status", "deployment/web", "--timeout=30s")
        where = kubectl(plane, "get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}")
        assert where.split() == ["node-b", "node-b"]
        assert "Unschedulable:      true" in kubectl(plane, "describe", "node", "node-a")
        assert agent.refusals == {}


def test_a_kubeconfig_of_another_user_is_bound_by_roles(plane: ControlPlane) -> None:
    reader = plane.client("reader", ("readers",))
    with pytest.raises(KubeError, match='User "reader" cannot list resource "pods"'):
        reader.get("/api/v1/pods")
    group = "rbac.authorization.k8s.io"
    binding = {
        "metadata": {"name": "readers"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": group, "kind": "Group", "name": "readers"}],
    }
    plane.client().create(f"/apis/{group}/v1/clusterrolebindings", binding)
    kubectl(plane, "get", "pods", "-A", kubeconfig=plane.kubeconfig("reader", ("readers",)))


def test_two_control_planes_know_nothing_of_each_other(plane: ControlPlane) -> None:
    name = {"metadata": {"name": "only-here"}}
    with ControlPlane.start(scheduler=False, controllers=False) as other:
        other.client().create("/api/v1/namespaces", name)
        assert plane.client().find("/api/v1/namespaces/only-here") is None
        assert other.server != plane.server
        processes = [psutil.Process(component.process.pid) for component in other.components.values()]
        assert len(processes) == 2 and other.directory.exists()
    assert not any(process.is_running() for process in processes) and not other.directory.exists()
    assert plane.client().get("/api/v1/namespaces/default")


def test_ctrl_c_leaves_nothing_behind() -> None:
    command = [sys.executable, "-m", "sandbox.controlplane"]
    started = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    kubeconfig = Path(started.stdout.readline().strip())
    assert kubeconfig.name.endswith(".kubeconfig") and kubeconfig.exists()
    children = psutil.Process(started.pid).children()
    assert len(children) == 4
    started.send_signal(signal.SIGINT)
    assert started.wait(20) == 0
    started.stdout.close()
    assert not psutil.wait_procs(children, 5)[1]
    assert not kubeconfig.parent.exists()


def test_a_control_plane_starts_in_a_few_seconds() -> None:
    began = time.monotonic()
    with ControlPlane.start():
        seconds = time.monotonic() - began
    # 4 s on two idle cores; the machine may be busy.
    assert seconds < 30, f"{seconds:.1f} s"


def test_hundreds_of_nodes_stay_ready(plane: ControlPlane) -> None:
    client = plane.client()
    with NodeAgent(client) as agent:
        names = [f"many-{number:03}" for number in range(300)]
        agent.join_many(names, zone="zone-a")
        deadline = time.monotonic() + 60  # a heartbeat is 10 s; the machine may be busy
        while not renewed(client).issuperset(names):
            assert time.monotonic() < deadline
            time.sleep(1)
        nodes = client.get("/api/v1/nodes", labelSelector="topology.kubernetes.io/zone=zone-a")["items"]
        assert [node["metadata"]["name"] for node in nodes if not node["spec"].get("taints")] == names
        assert agent.refusals == {}


def renewed(client: KubeClient) -> set[str]:
    """Nodes whose lease has been written again."""
    leases = client.get(LEASES)["items"]
    return {lease["metadata"]["name"] for lease in leases if is_renewed(lease)}


def is_renewed(lease: Document) -> bool:
    """Whether it was written again after the second in which it was created."""
    created = lease["metadata"]["creationTimestamp"].replace("Z", ".999999Z")
    return lease["spec"]["renewTime"] > created

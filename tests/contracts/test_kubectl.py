"""The real kubectl, as operators use it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contracts.conftest import REAL
from contracts.target import Target, eventually, phases, taints

from sandbox.controlplane import find_assets
from sandbox.node_agent import NodeAgent

pytestmark = [
    pytest.mark.e2e,  # the binary comes with those of the control plane
    pytest.mark.parametrize("target", ["stand-in", REAL], indirect=True),
]

MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec: {{nodeName: {node}, containers: [{{name: main, image: "example.org/web:{tag}"}}]}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings}}
data: {{tag: "{tag}"}}
"""


@pytest.fixture
def kubectl(target: Target, namespace: str, tmp_path: Path) -> Callable[..., str]:
    kubeconfig = target.kubeconfig()

    def run(*arguments: str, fails: bool = False, stdin: str = "") -> str:
        command = [find_assets() / "kubectl", "--kubeconfig", kubeconfig, "-n", namespace, *arguments]
        environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=environ, input=stdin
        )
        assert (done.returncode != 0) is fails, done.stderr
        return done.stderr if fails else done.stdout

    return run


@pytest.fixture
def node(target: Target, unique: str) -> Iterator[str]:
    """A node with a kubelet of its own, on both targets."""
    name = f"{unique}-k"
    with NodeAgent(target.client) as agent:
        agent.join(name)
        eventually(lambda: not taints(target, name))
        yield name
    if target.client.find(f"/api/v1/nodes/{name}"):
        target.client.delete(f"/api/v1/nodes/{name}")


def test_apply_creates_changes_and_leaves_alone(kubectl, node: str, target: Target, namespace: str) -> None:
    first, second = MANIFEST.format(node=node, tag="1"), MANIFEST.format(node=node, tag="2")
    assert kubectl("apply", "-f", "-", stdin=first) == "pod/web created\nconfigmap/settings created\n"
    eventually(lambda: phases(target, namespace) == ["Running"])
    assert kubectl("apply", "-f", "-", stdin=second) == "pod/web configured\nconfigmap/settings configured\n"
    assert kubectl("apply", "-f", "-", stdin=second) == "pod/web unchanged\nconfigmap/settings unchanged\n"
    assert kubectl("get", "configmap", "settings", "-o", "jsonpath={.data.tag}") == "2"
    image = kubectl("get", "pod", "web", "-o", "jsonpath={.spec.containers[0].image}")
    assert image == "example.org/web:2"


def test_get_prints_what_operators_look_for(kubectl, node: str, target: Target, namespace: str) -> None:
    (row,) = [line.split() for line in kubectl("get", "nodes").splitlines() if line.startswith(node)]
    assert row[:3] == [node, "Ready", "<none>"]
    kubectl("apply", "-f", "-", stdin=MANIFEST.format(node=node, tag="1"))
    eventually(lambda: phases(target, namespace) == ["Running"])
    head, row = (line.split() for line in kubectl("get", "pods").splitlines())
    assert head == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert row[:4] == ["web", "1/1", "Running", "0"]
    assert kubectl("get", "pods", "-o", "wide").splitlines()[1].split()[6] == node
    watched = kubectl("get", "pods", "--watch", "--request-timeout=1s")
    assert watched.splitlines()[1].split()[:3] == ["web", "1/1", "Running"]
    assert "not found" in kubectl("get", "pod", "nothing", fails=True)


def test_describe_tells_of_a_node_and_its_pods(kubectl, node: str, target: Target, namespace: str) -> None:
    kubectl("apply", "-f", "-", stdin=MANIFEST.format(node=node, tag="1"))
    eventually(lambda: phases(target, namespace) == ["Running"])
    told = kubectl("describe", "node", node)
    assert "KubeletReady" in told and f"HolderIdentity:  {node}" in told
    assert any(line.split()[:2] == [namespace, "web"] for line in told.splitlines())
    assert "Status:           Running" in kubectl("describe", "pod", "web")


def test_cordon_and_drain_empty_a_node(kubectl, node: str, target: Target, namespace: str) -> None:
    kubectl("apply", "-f", "-", stdin=MANIFEST.format(node=node, tag="1"))
    eventually(lambda: phases(target, namespace) == ["Running"])
    assert kubectl("cordon", node) == f"node/{node} cordoned\n"
    eventually(lambda: "Ready,SchedulingDisabled" in kubectl("get", "node", node))
    assert "cannot delete" in kubectl("drain", node, fails=True)  # nothing would bring the pod back
    drained = kubectl("drain", node, "--force", "--timeout=20s")
    assert "pod/web evicted" in drained and f"node/{node} drained" in drained
    assert phases(target, namespace) == []
    assert kubectl("uncordon", node) == f"node/{node} uncordoned\n"


def test_taints_labels_and_deletion(kubectl, node: str, target: Target) -> None:
    assert kubectl("taint", "node", node, "gpu=yes:NoSchedule") == f"node/{node} tainted\n"
    assert taints(target, node) == ["gpu:NoSchedule"]
    assert kubectl("taint", "node", node, "gpu-") == f"node/{node} untainted\n"
    assert kubectl("label", "node", node, "tier=front") == f"node/{node} labeled\n"
    assert kubectl("get", "nodes", "-l", "tier=front", "-o", "name") == f"node/{node}\n"
    assert kubectl("delete", "node", node) == f'node "{node}" deleted\n'

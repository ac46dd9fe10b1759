"""A real cluster whose machines are the local Azure's, for the tests on the real control plane.

Kubelets are played (sandbox.fleet, node_agent); API server, scheduler and controllers are the real ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

from sandbox.arm import LocalArm
from sandbox.clock import Clock
from sandbox.controlplane import ControlPlane
from sandbox.fleet import Fleet
from sandbox.kube_client import Document
from sandbox.node_agent import NodeAgent

BREATH = 0.1


class LiveCluster:
    """The cluster, its Azure and its kubelets; everything ends with `stack`."""

    def __init__(self, plane: ControlPlane, stack: ExitStack) -> None:
        self.plane, self.kube = plane, plane.client()
        self.arm = LocalArm(Clock())
        stack.enter_context(self.arm)
        self.arm.core.operation_seconds = 1.0
        self.agent = stack.enter_context(NodeAgent(plane.client(), heartbeat=timedelta(seconds=2)))
        self.fleet = Fleet(self.arm, self.agent, self, boot_delay=timedelta(seconds=1))
        self._stopping = threading.Event()
        ticking = threading.Thread(target=self._tick, daemon=True)
        ticking.start()
        stack.callback(ticking.join)
        stack.callback(self._stopping.set)

    def _tick(self) -> None:
        while not self._stopping.wait(0.02):
            self.arm.core.clock.advance(0)

    def has_node(self, name: str) -> bool:
        return self.kube.find(f"/api/v1/nodes/{name}") is not None

    def furnish(self, name: str, provider_id: str, max_data_disks: int) -> None:
        """Nothing but the node; see `sandbox.fleet.Registry`."""

    def is_ready(self, node: str) -> bool:
        found = self.kube.find(f"/api/v1/nodes/{node}")
        conditions = (found or {}).get("status", {}).get("conditions") or ()
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def taints(self, node: str) -> list[str]:
        found = self.kube.find(f"/api/v1/nodes/{node}") or {"spec": {}}
        return [taint["key"].rpartition("/")[2] for taint in found["spec"].get("taints") or ()]

    def until(
        self,
        holds: Callable[[], Any],
        what: str,
        seconds: float = 60,
        each: Callable[[], object] = lambda: None,
    ) -> float:
        began = time.monotonic()
        while not holds():
            each()
            assert time.monotonic() - began < seconds, f"{what}: not within {seconds} s\n{self.describe()}"
            time.sleep(BREATH)
        return time.monotonic() - began

    def describe(self) -> str:
        nodes = {
            n["metadata"]["name"]: self.taints(n["metadata"]["name"]) for n in self.list("/api/v1/nodes")
        }
        pods = [
            (
                p["metadata"]["name"],
                p["spec"].get("nodeName"),
                p["status"].get("phase"),
                "deletionTimestamp" in p["metadata"],
            )
            for p in self.list("/api/v1/namespaces/default/pods")
        ]
        return f"nodes {nodes}\npods {pods}"

    def list(self, path: str) -> list[Document]:
        return self.kube.list(path)[0]

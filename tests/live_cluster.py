"""A real cluster whose machines are the local Azure's, for the tests on the real control plane; and the app's
own passes over it, with nothing but the role of one automation.

Kubelets are played (sandbox.fleet, node_agent); API server, scheduler and controllers are the real ones.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from roles import connection_of_app

from sandbox.arm import LocalArm
from sandbox.clock import Clock
from sandbox.controlplane import ControlPlane
from sandbox.fleet import Fleet
from sandbox.kube_client import Document
from sandbox.node_agent import NodeAgent
from shared.bootstrap import Clients
from shared.runtime.automation import find
from shared.work import one_pass

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


class App:
    """The app's own pass, as its timer and follow-ups would make it every second or so."""

    def __init__(
        self,
        live: LiveCluster,
        automation: str,
        policy: Document,
        storage: str,
        directory: Path,
        *,
        kind: type[Clients] = Clients,
    ) -> None:
        entry = {
            "name": f"e2e-{uuid.uuid4().hex[:8]}",
            "kubernetes": connection_of_app(live.plane, automation),
            "azure": {
                "subscription": live.arm.subscription,
                "resourceGroups": [live.arm.group],
                "location": "westeurope",
            },
        } | policy
        path = directory / "kubekeeper.yaml"
        path.write_text(json.dumps({"clusters": [entry]}))
        environ = {
            "AzureWebJobsStorage": storage,
            "KUBEKEEPER_CONFIG": str(path),
            "KUBEKEEPER_ARM_ENDPOINT": live.arm.url,
        }
        self.clients = kind(environ, live.arm.credential())
        self.cluster = self.clients.settings().clusters[0]
        self.automation = automation
        self._next = 0.0

    def tick(self) -> None:
        """A pass every second."""
        if time.monotonic() < self._next:
            return
        self.look()
        self._next = time.monotonic() + 1.0

    def look(self) -> None:
        """One pass."""
        claim = self.clients.claims.acquire(self.cluster.name, self.automation, self.clients.now())
        assert claim is not None
        with claim:
            one_pass(self.clients, find(self.automation), self.cluster, claim)

    def did(self) -> list[str]:
        """Actions that succeeded, in order."""
        return self._actions("Succeeded")

    def failed(self) -> list[str]:
        """Those that did not."""
        return self._actions("Failed")

    def _actions(self, status: str) -> list[str]:
        entries = self.clients.journal.entries([(self.cluster.name, self.automation)], limit=100)
        return [e.action for e in reversed(entries) if e.status == status and e.action]

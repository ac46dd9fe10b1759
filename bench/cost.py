"""What a cluster costs: executions, storage requests and calls, counted on the local world.

    python -m bench.cost > docs/reference/cost.json

Runs the app with all automations on one cluster for a quarter of an hour of real time: nothing happens, then
one thing after the other. `tests/unit/test_cost.py` makes the tables of docs/cost.md of these counts.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from sandbox.azurite import Azurite
from sandbox.up import options_of
from sandbox.whole_world import GATEWAY, WholeWorld
from shared.operations.dispatch import QUEUE
from shared.runtime.automation import AUTOMATIONS

WARM_UP = 80.0
IDLE = 240.0
EVENT = 130.0
EXECUTED = re.compile(r"Executed (\w+) \(\w+, Id=[^,]+, Duration=(\d+)ms")
REQUEST = re.compile(r'"(GET|HEAD|PUT|POST|DELETE|MERGE|PATCH) /\w+/?(\S*) HTTP')


class Measured(WholeWorld):
    """The whole world with every automation on, whose storage keeps a log."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, options_of(etcd=True, host=True, nodes=3))
        self._azurite = Azurite(access_log=directory / "azurite.log")

    def _configure(self) -> None:
        super()._configure()
        path = self.directory / "kubekeeper.yaml"
        document = msgspec.json.decode(path.read_bytes())
        gateway = self.cluster.arm.id_of("Microsoft.Network/applicationGateways", GATEWAY)
        document["clusters"][0] |= {
            "autoscaling": {},
            "diskRelease": {"fence": "allowed"},
            "ingressSync": {"gateway": gateway, "adopt": True},
        }
        path.write_bytes(msgspec.json.encode(document))

    def _start_host(self) -> None:
        """With the queues that infra/modules/storage.bicep makes: an absent one would be asked for, too."""
        from azure.core.exceptions import ResourceExistsError
        from azure.storage.queue import QueueServiceClient

        with QueueServiceClient.from_connection_string(self._azurite.connection_string) as service:
            for name in (QUEUE, *AUTOMATIONS):
                with suppress(ResourceExistsError):
                    service.create_queue(name)
        super()._start_host()

    def counts(self) -> Counter[str]:
        """Everything so far, by name."""
        found: Counter[str] = Counter()
        for name, took in EXECUTED.findall((self.directory / "host.log").read_text()):
            found[f"executions.{name}"] += 1
            found["seconds"] += max(1, -(-int(took) // 1000))
        for method, target in REQUEST.findall((self.directory / "azurite.log").read_text()):
            found[f"storage.{_operation(method, target)}"] += 1
        found["calls.azure"] = len(self.cluster.arm.recorder.requests)
        found["calls.kubernetes"] = len(self.cluster.kubernetes.requests)  # type: ignore[attr-defined]
        return found

    def back_up(self) -> None:
        from azure.storage.queue import QueueClient

        queue = QueueClient.from_connection_string(self._azurite.connection_string, QUEUE)
        with queue:
            queue.send_message('{"operation": "backup", "cluster": "local"}')

    def need_a_node(self) -> None:
        self.cluster.add_deployment("web", replicas=20, cpu="3")  # type: ignore[attr-defined]

    @property
    def has_grown(self) -> bool:
        return all(pod.is_running for pod in self.cluster.pods("web"))  # type: ignore[attr-defined]

    def add_ingress(self) -> None:
        kube = self.cluster.client()  # type: ignore[attr-defined]
        group = "/apis/networking.k8s.io/v1"
        port = {"port": 80, "targetPort": 8080}
        service = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [port]}}
        kube.create("/api/v1/namespaces/default/services", service)
        spec = {"controller": "azure/application-gateway"}
        kube.create(f"{group}/ingressclasses", {"metadata": {"name": "gateway"}, "spec": spec})
        backend = {"service": {"name": "web", "port": {"number": 80}}}
        path = {"path": "/", "pathType": "Prefix", "backend": backend}
        rule = {"host": "web.example", "http": {"paths": [path]}}
        ingress = {"metadata": {"name": "web"}, "spec": {"ingressClassName": "gateway", "rules": [rule]}}
        kube.create(f"{group}/namespaces/default/ingresses", ingress)


def _operation(method: str, target: str) -> str:
    """The line of the price list that a request stands on."""
    path, _, query = target.partition("?")
    if "/messages" in path or path.endswith(("-poison", "operations")):
        return "queue"
    if "(" in path or path.startswith(("Tables", "$batch", "kubekeeperjournal", "kubekeeperoperations")):
        return "table"
    if path.count("/") == 0 and method in ("GET", "HEAD") and "comp=list" not in query and not query:
        return "queue"
    if "comp=list" in query:
        return "blob-list"
    if method == "PUT" and "comp=lease" not in query:
        return "blob-write"
    return "blob-delete" if method == "DELETE" else "blob-other"


def main() -> int:
    """Measure for about 15 minutes and print the counts as JSON; progress on stderr."""
    report: dict[str, Any] = {"measured": datetime.now(UTC).strftime("%Y-%m-%d"), "per": {}}
    with (
        tempfile.TemporaryDirectory(prefix="kubekeeper-cost-") as directory,
        Measured(Path(directory)) as world,
    ):
        for start in world.steps():
            start()
        events = {"backup": world.back_up, "scale-up": world.need_a_node, "ingress-change": world.add_ingress}
        _wait("warming up", WARM_UP)
        before = world.counts()
        _wait("idle", IDLE)
        idle = world.counts() - before
        report["per"]["minute"] = {name: round(n * 60 / IDLE, 2) for name, n in sorted(idle.items())}
        for name, happen in events.items():
            before, began = world.counts(), time.monotonic()
            happen()
            _wait(name, EVENT)
            while name == "scale-up" and not world.has_grown:
                _wait("for the nodes", 20)
            more, seconds = world.counts() - before, time.monotonic() - began
            extra = {one: round(n - idle[one] * seconds / IDLE, 1) for one, n in sorted(more.items())}
            # Durations vary by more than one thing adds: no execution is charged for less than a second.
            executions = sum(n for one, n in extra.items() if one.startswith("executions."))
            extra["seconds"] = max(extra["seconds"], executions)
            report["per"][name] = {one: n for one, n in extra.items() if n >= 1}
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n")
    return 0


def _wait(what: str, seconds: float) -> None:
    sys.stderr.write(f"{what}: {seconds:.0f} s\n")
    time.sleep(seconds)


if __name__ == "__main__":
    sys.exit(main())

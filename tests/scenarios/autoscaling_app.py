"""The app as it runs: timer, queues, claim, journal and operations on a real Azurite, time simulated.

Only the queue's delays are on the simulated clock; everything else that is stored is stored in Azurite.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sandbox.scenario import World
from shared.bootstrap import Clients
from shared.errors import AutomationError
from shared.operations import dispatch
from shared.operations.dispatch import get_operation, submit
from shared.runtime.message import Received
from shared.runtime.nudge import fan_out
from shared.runtime.operation import OperationRecord
from shared.work import work_off


class SimulatedQueue:
    def __init__(self, app: App, name: str) -> None:
        self._app, self._name = app, name

    def send(self, text: str, delay: timedelta = timedelta(0)) -> str:
        self._app.put(self._name, text, delay.total_seconds())
        return "id"

    def ensure(self) -> None:
        pass


class SimulatedClients(Clients):
    def __init__(self, app: App, environ: dict[str, str]) -> None:
        super().__init__(environ, app.world.arm.credential())
        self._app = app

    def now(self) -> datetime:
        return self._app.world.now

    def queue(self, name: str) -> Any:
        return SimulatedQueue(self._app, name)


class App:
    """`cluster`: what else stands in the cluster's entry of the configuration; `policy`: autoscaling's."""

    def __init__(
        self,
        world: World,
        storage: str,
        directory: Path,
        cluster: dict[str, Any] | None = None,
        **policy: Any,
    ) -> None:
        self.world, self.name = world, f"c{uuid.uuid4().hex[:10]}"
        arm, kubernetes = world.arm, world.kubernetes
        token = kubernetes.api.tokens.issue("kubekeeper", ("system:masters",))
        managed = policy.pop("managedCluster", None)
        azure = {"subscription": arm.subscription, "resourceGroups": [arm.group], "location": "westeurope"}
        azure |= {"managedCluster": managed} if managed else {}
        connection = {"server": kubernetes.server, "ca": f"file:{kubernetes.directory / 'ca.pem'}"}
        entry = {"name": self.name, "kubernetes": {**connection, "token": "setting:KUBE_TOKEN"}}
        entry |= cluster or {}
        configuration = directory / "kubekeeper.yaml"
        configuration.write_text(json.dumps({"clusters": [{**entry, "azure": azure, "autoscaling": policy}]}))
        self.environ = {
            **world.environ(),
            "AzureWebJobsStorage": storage,
            "KUBEKEEPER_CONFIG": str(configuration),
            "KUBE_TOKEN": token,
        }
        self.clients = SimulatedClients(self, self.environ)
        self._due: list[tuple[float, int, str, str, int]] = []
        self._order = itertools.count()
        world._cleanup.callback(self.close)

    def close(self) -> None:
        self.clients.kube(self.clients.settings().clusters[0]).close()
        self.clients.arm._client.close()

    def put(self, queue: str, text: str, delay: float, attempt: int = 1) -> None:
        due = (self.world.seconds + delay, next(self._order), queue, text, attempt)
        heapq.heappush(self._due, due)

    def run(self, seconds: float, tick: float = 60.0) -> None:
        end, ticks = self.world.seconds + seconds, self.world.seconds - self.world.seconds % tick + tick
        while True:
            due = self._due[0][0] if self._due else math.inf
            if min(due, ticks) > end:
                break
            self.world.advance(max(0.0, min(due, ticks) - self.world.seconds))
            if ticks < due:
                ticks += tick
                fan_out(self.clients, "autoscaling", "Timer")
                continue
            _, _, queue, text, attempt = heapq.heappop(self._due)
            self._deliver(queue, text, attempt)
        self.world.advance(max(0.0, end - self.world.seconds))

    def _deliver(self, queue: str, text: str, attempt: int) -> None:
        message = Received(
            id=uuid.uuid4().hex, body=text.encode(), dequeue_count=attempt, inserted_at=self.world.now
        )
        try:
            if queue == dispatch.QUEUE:
                dispatch.work_off(self.clients, message)
            else:
                work_off(self.clients, queue, message)
        except AutomationError:
            if attempt < 5:
                self.put(queue, text, 30.0, attempt + 1)

    def operate(
        self,
        operation: str,
        within: float = 1800,
        *,
        each: Callable[[], None] = lambda: None,
        every: float = 5,
        **parameters: Any,
    ) -> OperationRecord:
        """Send an operation and let time go by until it is over; `each` is called `every` so many seconds."""
        identity = submit(self.clients, operation, self.name, parameters)
        began = self.world.seconds
        while True:
            each()
            record = get_operation(self.clients, identity)
            if record is not None and record.is_over:
                return record
            assert self.world.seconds - began < within, record
            self.run(every)

    def until(self, condition: Any, within: float) -> float:
        began = self.world.seconds
        while not condition():
            assert self.world.seconds - began < within, self.world.describe() + self.journal()
            self.run(2)
        return self.world.seconds - began

    def add_budget(self, name: str, **spec: object) -> None:
        """A PodDisruptionBudget through the API, so that the disruption controller sees it."""
        document = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}}
        where = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
        selector = {"matchLabels": {"app": name}}
        self.world.client().create(where, {**document, "spec": {"selector": selector, **spec}})

    def journal(self) -> str:
        entries = list(self.clients.journal.entries([(self.name, "autoscaling")]))
        return "\n".join(f"  {one.status} {one.action} {one.target}: {one.message}" for one in entries)

"""Random schedules of faults, deaths, duplicates and bursts: what must hold whatever happens.

Each seed is one story of half a simulated hour: a burst of pods, growth over pools of several kinds
while Azure fails in every way it can and workers die at any step, the load gone, nodes drained and deleted;
then the faults end and everything must be as if nothing had happened. `KUBEKEEPER_SWEEP=full` runs 2,000.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from sandbox.arm.capacity import Shortage
from sandbox.arm.core import Ending
from sandbox.asgi import Fault, on
from sandbox.kube import kinds
from sandbox.scenario import World
from tests.clients.test_autoscaling_pools import add_availability_set
from tests.scenarios.autoscaling_world import SIZE, WholeApp

pytestmark = pytest.mark.no_cover

SCHEDULES = 2000 if os.environ.get("KUBEKEEPER_SWEEP") == "full" else 30
PER_WORKER = 10
"""Schedules of one test case: small enough to be told apart, big enough not to be drowned in reports."""
PODS_PER_NODE = 3
POLICY = {
    "scaleDown": {
        "unneededTime": "2m",
        "delayAfterAdd": "1m",
        "delayAfterFailure": "1m",
        "drainTimeout": "5m",
    },
    "scaleUp": {"backoff": {"stockOut": "2m", "quota": "2m", "other": "1m", "longest": "5m"}},
}
SERVER_ERROR = {"error": {"code": "InternalServerError", "message": "try again"}}
KUBE_ERROR = {"kind": "Status", "reason": "InternalError", "message": "try again", "code": 500}


class Story:
    """One seed."""

    def __init__(self, seed: int, world: World) -> None:
        self.seed, self.world, self.random = seed, world, random.Random(seed)
        world.arm.core.operation_seconds = self.random.choice([5.0, 45.0, 90.0])
        self.pools = [self._pool(name) for name in ("alpha", "beta")]
        self.app = WholeApp(world, **POLICY)
        self.first, more = self.random.randint(2, 12), self.random.randint(0, 8)
        self.pods = self.first + more
        self.before = self.leftovers()
        self.most = len(world.nodes()) + -(-self.pods // PODS_PER_NODE)

    def _pool(self, name: str) -> str:
        kind = self.random.choice(["uniform", "flexible", "set"])
        count = self.random.randint(0 if kind != "set" else 1, 2)
        tags = {"min": str(self.random.randint(0, count)), "max": "8"}
        if kind == "set":
            pool = add_availability_set(self.world.arm, count, name)
            self.world.enrol(pool)
            return pool
        return self.world.add_scale_set(name, count, size=SIZE, tags=tags, flexible=kind == "flexible")

    # What goes wrong

    def trouble(self) -> None:
        """A few faults at random times of the next quarter of an hour."""
        for _ in range(self.random.randint(1, 6)):
            self.world.at(self.random.uniform(0, 900), self.random.choice(self._troubles()))
        for _ in range(self.random.randint(0, 4)):
            self.app.deliver(self.random.uniform(0, 900), "Duplicate")
        chance = self.random.choice([0.0, 0.2, 0.5])
        self.app.next_death = lambda: self.random.randint(0, 200) if self.random.random() < chance else None

    def _troubles(self) -> list[Callable[[], object]]:
        core, arm, pick = self.world.arm.core, self.world.arm, self.random
        verb = pick.choice(["PATCH", "PUT", "POST", "DELETE"])
        codes = ["AllocationFailed", "ZonalAllocationFailed", "SkuNotAvailable"]
        operation = pick.choice(["patch", "put", "deleteInstances", "delete"])
        times = pick.randint(1, 3)
        return [
            lambda: arm.fault(Fault(on(verb), lose_answer=True, times=times)),
            lambda: arm.fault(Fault(on(verb), status=503, body=SERVER_ERROR, times=times)),
            lambda: arm.fault(Fault(on("GET"), status=500, body=SERVER_ERROR, times=times * 3)),
            lambda: core.throttle(pick.uniform(10, 120)),
            lambda: core.throttle(pick.uniform(10, 120), "GET"),
            lambda: core.endings.append(Ending(operation, applied=pick.random() < 0.5, times=times)),
            lambda: core.endings.append(Ending(operation, status="Canceled", code=None)),
            lambda: core.read_stale(pick.uniform(20, 90), times=6),
            lambda: core.read_stale(pick.uniform(60, 240), times=20),
            lambda: arm.capacity.shortages.append(Shortage(code=pick.choice(codes), times=times)),
            lambda: self.world.kubernetes.faults.append(
                Fault(on(pick.choice(["PATCH", "POST", "GET"])), status=500, body=KUBE_ERROR, times=times)
            ),
            lambda: self.world.kubernetes.faults.append(
                Fault(on(pick.choice(["PATCH", "POST", "GET"])), lose_answer=True, times=times)
            ),
        ]

    def heal(self) -> None:
        core = self.world.arm.core
        self.world.arm.recorder.faults.clear()
        self.world.kubernetes.faults.clear()
        self.world.arm.capacity.shortages.clear()
        core.endings.clear()
        core.stale.clear()
        core._closed.clear()
        self.app.next_death = lambda: None

    # What must hold

    def tell(self) -> None:
        world, app = self.world, self.app
        if self.random.random() < 0.5:
            app.budget("web", maxUnavailable=self.random.randint(1, 2))
        self.trouble()
        world.add_deployment("web", replicas=self.first, cpu="600m")
        world.at(self.random.uniform(20, 250), world.scale, "web", self.pods)
        app.deliver(0)
        self.run(400)
        world.scale("web", self.random.randint(0, self.pods // 2))
        self.run(500)
        self.heal()
        self.run(900)
        self.check_end()

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds / 20)):
            self.app.run(20)
            self.check()

    def check(self) -> None:
        assert self.app.broken == [], self.told()
        there = self.machines()
        assert there <= self.most, f"{there} machines where {self.most} are enough; {self.told()}"

    def machines(self, *, all_of_them: bool = False) -> int:
        """Those that work or are on their way."""
        state = self.world.arm.core.state
        kinds_of = (
            "Microsoft.Compute/virtualMachines",
            "Microsoft.Compute/virtualMachineScaleSets/virtualMachines",
        )
        with self.world.arm.core.lock:
            self.world.arm.core.settle()
            found = [one for kind in kinds_of for one in state.of_type(kind)]
        states = [one.body["properties"]["provisioningState"] for one in found]
        return sum(1 for one in states if all_of_them or one not in ("Failed", "Deleting"))

    def check_end(self) -> None:
        state = self.app.state
        assert all(pod.is_running for pod in self.world.pods("web")), self.told()
        for part in ("growths", "draining", "cleanups"):
            assert not state.get(part), f"{part}: {self.told()}"
        for node in self.world.kubernetes.objects(kinds.NODES):
            assert not node["spec"].get("unschedulable"), self.told()
        assert self.orphans() == [], self.told()
        assert self.machines(all_of_them=True) == len(self.world.nodes()), self.told()

    def orphans(self) -> list[str]:
        """What no machine has any more, and was not there before without one."""
        state = self.world.arm.core.state
        interfaces = [
            one.id
            for one in state.of_type("Microsoft.Network/networkInterfaces")
            if not (one.body["properties"].get("virtualMachine") or {}).get("id")
        ]
        disks = [one.id for one in state.of_type("Microsoft.Compute/disks") if not one.body.get("managedBy")]
        used = {
            (part["properties"].get("publicIPAddress") or {}).get("id", "").lower()
            for one in state.of_type("Microsoft.Network/networkInterfaces")
            for part in one.body["properties"]["ipConfigurations"]
        }
        addresses = [
            one.id
            for one in state.of_type("Microsoft.Network/publicIPAddresses")
            if one.id.lower() not in used
        ]
        return [one.rpartition("/")[2] for one in (*interfaces, *disks, *addresses)]

    def leftovers(self) -> list[str]:
        return self.orphans()

    def told(self) -> str:
        return f"seed {self.seed}, {self.app.crashes} deaths\n{self.app.describe()}"


@pytest.mark.parametrize("first", range(0, SCHEDULES, PER_WORKER))
def test_whatever_happens_nothing_is_overdone_lost_or_leaked(first: int) -> None:
    for seed in range(first, first + PER_WORKER):
        with World(serve=False) as world:
            Story(seed, world).tell()

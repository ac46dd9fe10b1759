"""Random schedules of changes, faults, other writers and crashes: nobody is harmed, all ends converged.

Every schedule follows from its seed. `KUBEKEEPER_SWEEP=full` runs 2,000, and crashes at every request. The
clients are the product's own; in random schedules only the sockets are left out (`in_process`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ingress_sync_world import INGRESSES, IngressWorld, Servers, hosts, targets

from sandbox.arm.core import Ending
from sandbox.asgi import Fault, on

pytestmark = pytest.mark.no_cover

IS_FULL = os.environ.get("KUBEKEEPER_SWEEP") == "full"
SEEDS = 2000 if IS_FULL else 80
BATCHES = 8
GATEWAY, OPERATION = "/applicationGateways/", "/operations/"
APPS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture(scope="module")
def quick() -> Iterator[Servers]:
    with Servers(sockets=False) as servers:
        yield servers


class Schedule:
    """One seed: what users, other writers and bad luck do, and what must have come of it at the end."""

    def __init__(self, world: IngressWorld, seed: int) -> None:
        self.world, self.random = world, random.Random(seed)
        self.wanted: dict[str, tuple[set[str], set[str]]] = {}
        self.tags, self.by = 0, ""
        self.stopped = False
        self.story: list[str] = []
        core = world.arm.core
        core.operation_seconds = self.random.choice((0.5, 8.0, 25.0, 70.0))
        core.settings["gateway_if_match"] = self.random.random() < 0.8
        core.settings["gateway_updating_seconds"] = self.random.choice((None, None, 2.0))

    def run(self) -> None:
        for _ in range(self.random.randint(6, 14)):
            self._one_event()
            self._time_passes()
        self._calm()
        self._check()

    def _one_event(self) -> None:
        events = [self._change] * 5 + [self._endpoints] * 3 + [self._remove, self._fault, self._fault]
        events += [self._foreign, self._foreign, self._ending, self._switch, self._crash, self._crash]
        event = self.random.choice(events)
        self.story.append(f"{self.world.clock.now():%H:%M:%S} {event.__name__}")
        event()

    def _time_passes(self) -> None:
        self.world.run(
            self.random.choice((0.5, 2.0, 6.0, 30.0, 90.0)), step=self.random.choice((0.5, 2.0, 5.0))
        )

    # Users

    def _change(self) -> None:
        name = self.random.choice(APPS)
        chosen = {f"{name}{n}.example" for n in self.random.sample(range(4), self.random.randint(1, 3))}
        addresses = self._addresses()
        self.world.app(name, *sorted(chosen), addresses=tuple(sorted(addresses)))
        self.wanted[name] = (chosen, addresses)
        self.world.nudge()

    def _endpoints(self) -> None:
        if not self.wanted:
            return
        name = self.random.choice(sorted(self.wanted))
        addresses = self._addresses()
        self.world.endpoints(name, *sorted(addresses))
        self.wanted[name] = (self.wanted[name][0], addresses)
        self.world.nudge("EndpointsChanged")

    def _addresses(self) -> set[str]:
        return {f"10.{self.random.randint(1, 9)}.0.{self.random.randint(1, 250)}" for _ in range(3)}

    def _remove(self) -> None:
        if self.wanted:
            name = self.random.choice(sorted(self.wanted))
            del self.wanted[name]
            self.world.delete(INGRESSES, name)
            self.world.nudge()

    # Bad luck

    def _fault(self) -> None:
        number, again = self.random.randint(1, 3), self.random.randint(0, 2)
        error = {"error": {"code": "Trouble", "message": "trouble"}}
        fault = self.random.choice(
            (
                Fault(on("PUT", GATEWAY), status=412, body=error, times=number),
                Fault(on("PUT", GATEWAY), status=409, body=error, times=number),
                Fault(on("PUT", GATEWAY), status=429, body=error, headers={"Retry-After": "7"}, times=number),
                Fault(on("PUT", GATEWAY), status=503, body=error, times=number),
                Fault(on("PUT", GATEWAY), lose_answer=True),
                Fault(on("PUT", GATEWAY), lose_answer=True, skip=again),
                Fault(on("GET", GATEWAY), status=503, body=error, skip=again, times=number),
                Fault(on("GET", GATEWAY), lose_answer=True, skip=again),
                Fault(on("GET", OPERATION), status=503, body=error, times=number),
                Fault(on("GET", OPERATION), status=404, body=error, times=number),
                Fault(on("GET", OPERATION), lose_answer=True, times=number),
            )
        )
        self.world.arm.fault(fault)

    def _ending(self) -> None:
        superseded = "CanceledAndSupersededDueToAnotherOperation"
        ending = self.random.choice(
            (
                Ending(on="applicationGateways/put"),
                Ending(on="applicationGateways/put", applied=True),
                Ending(on="applicationGateways/put", status="Canceled", code=superseded),
                Ending(on="applicationGateways/put", status="Canceled", code=None),
                Ending(on="applicationGateways/put", status="Succeeded", code=None, seconds=150.0),
            )
        )
        self.world.arm.core.endings.append(ending)

    def _crash(self) -> None:
        """Whatever is done next dies at some request of its own."""
        self.world.nudge("Timer")
        self.world.deliver(dies_at=self.random.randint(0, 60))

    # Others

    def _foreign(self) -> None:
        self.tags += 1
        number, is_in_between = self.tags, self.random.random() < 0.3

        def change(document: dict[str, Any]) -> None:
            document["tags"] = {"by": f"terraform {number}"}
            pool = {
                "name": f"kk_other-{number}",
                "properties": {"backendAddresses": [{"ipAddress": "192.0.2.1"}]},
            }
            document["properties"]["backendAddressPools"].append(pool)

        def write() -> None:
            self.by = f"terraform {number}" if self.world.foreign(change) else self.by

        if is_in_between and self.world.arm.core.settings["gateway_if_match"]:
            self.world.arm.changing(write, "PUT", GATEWAY)
        else:
            write()

    def _switch(self) -> None:
        self.stopped = not self.stopped
        self.world.arm.core.do("POST", self.world.gateway, None, "stop" if self.stopped else "start")

    # The end

    def _calm(self) -> None:
        core = self.world.arm.core
        self.world.arm.recorder.faults.clear()
        core.endings.clear()
        if self.stopped:
            self._switch()
        for pause in (60, 1900, 7 * 3600, 60):  # what was refused is tried again after 30 min or 6 h
            self.world.nudge("Timer")
            self.world.settle(3 * 3600)
            self.world.advance(pause)

    def _check(self) -> None:
        world = self.world
        assert world.violations == [], self.story
        assert hosts(world.serving) == {host for chosen, _ in self.wanted.values() for host in chosen}, (
            self.story
        )
        assert targets(world.serving) == {a for _, found in self.wanted.values() for a in found}, self.story
        assert world.state.get("put") is None
        before = len(world.puts)
        world.nudge("Timer")
        world.settle()
        assert len(world.puts) == before, "a pass over a world at rest wrote again"
        assert world.document["tags"].get("by", "") == self.by


@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_schedules_harm_nobody_and_end_converged(quick: Servers, tmp_path: Path, batch: int) -> None:
    for seed in range(batch, SEEDS, BATCHES):
        world = IngressWorld(quick, tmp_path)
        try:
            Schedule(world, seed).run()
        except BaseException as error:
            error.add_note(f"seed {seed}; failures {world.failures[-3:]}; poisoned {world.poisoned[-3:]}")
            raise
        finally:
            world.close()


def test_a_crash_at_any_request_is_followed_by_the_same_end(servers: Servers, tmp_path: Path) -> None:
    """A worker dies at its n-th request, before or after it is worked on; another carries on."""
    step, died = 0, True
    while died:
        world = IngressWorld(servers, tmp_path)
        world.app("web", "web.example", addresses=("10.1.0.1",))
        world.nudge()
        world.deliver()
        world.advance(3)
        world.deliver(dies_at=step)
        died = world.died
        world.settle()
        assert world.violations == [], step
        assert (hosts(world.serving), targets(world.serving)) == ({"web.example"}, {"10.1.0.1"}), step
        assert len(world.puts) == 1, f"step {step}: {len(world.puts)} writes"
        step += 1 if IS_FULL else 3
    assert step > 40, "the crashes missed their aim"

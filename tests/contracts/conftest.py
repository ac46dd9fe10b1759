"""One suite, two targets: the stand-in of `sandbox.kube`, and the real control plane where there is one.

What these tests say is what the automations rely on. Where the targets differ, the stand-in is wrong.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from contracts.report import Outcomes
from contracts.target import RealTarget, StandIn, Target, eventually, taints

from sandbox.controlplane import AssetsMissingError, ControlPlane, find_assets
from sandbox.kube import LocalKubernetes
from sandbox.node_agent import NodeAgent

NODE_GRACE_PERIOD = timedelta(seconds=6)
STAND_IN_PERIODS = {
    "node_grace_period": timedelta(seconds=3),
    "gc_period": timedelta(seconds=2),
    "eviction_interval": timedelta(seconds=1),
}
OUTCOMES = pytest.StashKey[Outcomes]()
REAL = pytest.param("real", marks=pytest.mark.e2e)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without its binaries, the real control plane is skipped, with a line that says how to get them."""
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    for item in here:
        item.add_marker("contract")
    try:
        find_assets()
    except AssetsMissingError as missing:
        for item in here:
            if item.get_closest_marker("e2e"):
                item.add_marker(pytest.mark.skip(reason=str(missing)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes which contracts hold on which target."""
    report = yield
    parameters = (
        item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    )
    if "target" in parameters and (report.when == "call" or report.failed):
        item.session.stash.setdefault(OUTCOMES, Outcomes()).add(
            item.path.stem, item.originalname, parameters["target"], is_passed=report.passed
        )
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Writes the list of contracts where CONTRACTS_REPORT says, if all of them were tried and hold."""
    page, outcomes = os.environ.get("CONTRACTS_REPORT"), session.stash.get(OUTCOMES, None)
    if page and outcomes is not None and exitstatus == pytest.ExitCode.OK and outcomes.is_complete:
        Path(page).parent.mkdir(exist_ok=True)
        Path(page).write_text(outcomes.page(find_assets().resolve().name))


@pytest.fixture(scope="session")
def real() -> Iterator[RealTarget]:
    """The real control plane, once for the whole run."""
    with (
        ControlPlane.start(node_grace_period=NODE_GRACE_PERIOD) as plane,
        NodeAgent(plane.client(), heartbeat=timedelta(seconds=1)) as agent,
    ):
        yield RealTarget(plane, agent)
        assert agent.refusals == {}


@pytest.fixture(scope="session")
def stand_in() -> Iterator[StandIn]:
    """The stand-in, once for the whole run."""
    with LocalKubernetes() as kubernetes:
        kubernetes.run_controllers(**STAND_IN_PERIODS)
        with NodeAgent(kubernetes.client(), heartbeat=timedelta(seconds=1)) as agent:
            yield StandIn(kubernetes, agent)
            assert agent.refusals == {}
        assert kubernetes.controller_failures == []


@pytest.fixture(params=["stand-in", REAL])
def target(request: pytest.FixtureRequest) -> Target:
    """Each target in turn."""
    return request.getfixturevalue(request.param.replace("-", "_"))


_numbers = itertools.count(1)


@pytest.fixture
def unique() -> str:
    """A name nobody else has, for what has no namespace."""
    return f"t{next(_numbers)}"


@pytest.fixture
def namespace(target: Target, unique: str) -> Iterator[str]:
    """An empty namespace in which pods can be created. What is in it is forced away afterwards."""
    name = f"contract-{unique}"
    target.client.create("/api/v1/namespaces", {"metadata": {"name": name}})
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    eventually(lambda: target.client.find(account))
    yield name
    for group in ("apis/apps/v1", "apis/policy/v1", "api/v1"):
        for resource in (
            "deployments",
            "statefulsets",
            "poddisruptionbudgets",
            "pods",
            "persistentvolumeclaims",
        ):
            with suppress(Exception):
                target.client.request(
                    "DELETE", f"/{group}/namespaces/{name}/{resource}", body={"gracePeriodSeconds": 0}
                )


@pytest.fixture
def nodes(target: Target, unique: str) -> Iterator[Callable[..., list[str]]]:
    """Makes so many nodes, Ready and schedulable, in zones a, b, c in turn; their names. Gone afterwards."""
    made: list[str] = []

    def make(count: int, **options: object) -> list[str]:
        names = [f"{unique}-{letter}" for letter in "abcdefgh"[:count]]
        for name, zone in zip(names, itertools.cycle(("zone-a", "zone-b", "zone-c")), strict=False):
            target.agent.join(name, **{"zone": zone, "labels": {"pool": unique}, **options})
            made.append(name)
        eventually(lambda: all(not taints(target, name) for name in names))
        return names

    yield make
    for name in made:
        target.agent.leave(name)
        with suppress(Exception):
            target.client.delete(f"/api/v1/nodes/{name}")

"""Every kind of node pool through its driver, against the local Resource Manager over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from sandbox.arm import LOCATION, LocalArm
from sandbox.arm.capacity import Shortage
from sandbox.asgi import Fault, on
from sandbox.clock import Clock
from shared.autoscaling.pools.agent_pool import AgentPool
from shared.autoscaling.pools.availability_set import AvailabilitySet
from shared.autoscaling.pools.driver import Driver, Fresh, MachineState
from shared.autoscaling.pools.scale_set import FlexibleScaleSet, UniformScaleSet
from shared.clients.arm import Arm
from shared.clients.arm import arm as arm_client
from shared.errors import ApiError, ConflictError, UnsafePlanError

SIZE = "Standard_D2s_v5"
Make = Callable[[LocalArm, int], tuple[Driver, str]]


def uniform(arm: LocalArm, count: int) -> tuple[Driver, str]:
    return UniformScaleSet(), arm.add_scale_set("agents", count, size=SIZE, zones=("1", "2", "3"))


def flexible(arm: LocalArm, count: int) -> tuple[Driver, str]:
    arm.add_scale_set("others", 2, size=SIZE, flexible=True)
    return FlexibleScaleSet(), arm.add_scale_set("agents", count, size=SIZE, flexible=True)


def aks(arm: LocalArm, count: int) -> tuple[Driver, str]:
    return AgentPool(), arm.add_cluster("prod", system=1, agents=count) + "/agentPools/agents"


def availability_set(arm: LocalArm, count: int) -> tuple[Driver, str]:
    return AvailabilitySet(), add_availability_set(arm, count)


def add_availability_set(arm: LocalArm, count: int, pool: str = "agentpool1") -> str:
    """As aks-engine leaves one: names, tags, an interface and a public address for each machine."""
    set_id = arm.put(
        arm.id_of("Microsoft.Compute/availabilitySets", f"{pool}-availabilitySet-16334397"),
        {"location": LOCATION, "sku": {"name": "Aligned"}, "tags": {"min": "0", "max": "10"}},
    )
    for number in range(count):
        add_machine(arm, set_id, number, pool)
    return set_id


def add_machine(arm: LocalArm, set_id: str, number: int, pool: str = "agentpool1") -> str:
    name = f"k8s-{pool}-16334397"
    public = arm.put(
        arm.id_of("Microsoft.Network/publicIPAddresses", f"{name}-ip-{number}"),
        {"location": LOCATION, "sku": {"name": "Standard"}},
    )
    subnet = arm.id_of("Microsoft.Network/virtualNetworks/subnets", "vnet", "nodes")
    part = {
        "name": "ipconfig1",
        "properties": {"subnet": {"id": subnet}, "primary": True, "publicIPAddress": {"id": public}},
    }
    nic = arm.put(
        arm.id_of("Microsoft.Network/networkInterfaces", f"{name}-nic-{number}"),
        {"location": LOCATION, "properties": {"ipConfigurations": [part], "enableIPForwarding": True}},
    )
    body: dict[str, Any] = {
        "location": LOCATION,
        "tags": {"poolName": pool, "orchestrator": "Kubernetes:1.34"},
    }
    body["properties"] = {
        "hardwareProfile": {"vmSize": SIZE},
        "availabilitySet": {"id": set_id},
        "osProfile": {"computerName": f"{name}-{number}", "adminUsername": "azureuser"},
        "storageProfile": {"imageReference": {"publisher": "p", "offer": "o", "sku": "s", "version": "1"}},
        "networkProfile": {"networkInterfaces": [{"id": nic, "properties": {"primary": True}}]},
    }
    return arm.put(arm.id_of("Microsoft.Compute/virtualMachines", f"{name}-{number}"), body)


KINDS = [uniform, flexible, aks, availability_set]


@pytest.fixture
def local() -> Iterator[LocalArm]:
    with LocalArm(Clock(datetime(2026, 11, 23, 10, tzinfo=UTC))) as arm:
        arm.core.operation_seconds = 60
        yield arm


@pytest.fixture
def arm(local: LocalArm) -> Arm:
    return arm_client(
        {"KUBEKEEPER_ARM_ENDPOINT": local.url}, credential=local.credential(), now=local.core.clock.now
    )


def quiet(_: Sequence[str]) -> None:
    pass


@pytest.mark.parametrize("make", KINDS)
def test_grows_by_exactly_what_was_asked(make: Make, local: LocalArm, arm: Arm) -> None:
    driver, pool = make(local, 2)
    fresh = driver.read(arm, pool)
    assert fresh.capacity == 2
    begun = driver.grow(arm, fresh, 5, quiet)
    assert all(arm.poll(one.status_url).state == "InProgress" for one in begun)
    assert driver.read(arm, pool).capacity == 5
    assert sorted(one.state for one in driver.machines(arm, pool)) == ["Creating"] * 3 + ["Running"] * 2
    local.core.clock.advance(90)
    assert all(arm.poll(one.status_url).state == "Succeeded" for one in begun)
    assert {one.state for one in driver.machines(arm, pool)} == {MachineState.RUNNING}


@pytest.mark.parametrize("make", KINDS)
def test_growth_from_an_older_reading_is_refused(make: Make, local: LocalArm, arm: Arm) -> None:
    driver, pool = make(local, 2)
    old = driver.read(arm, pool)
    begun = driver.grow(arm, driver.read(arm, pool), 4, quiet)
    local.core.clock.advance(90)
    assert begun
    with pytest.raises(ConflictError):
        driver.grow(arm, old, 3, quiet)
    assert driver.read(arm, pool).capacity == 4


@pytest.mark.parametrize("make", KINDS)
def test_exactly_the_named_machines_are_deleted(make: Make, local: LocalArm, arm: Arm) -> None:
    driver, pool = make(local, 4)
    before = driver.machines(arm, pool)
    victims = (before[1], before[2])
    begun = driver.delete(arm, pool, victims)
    local.core.clock.advance(90)
    assert all(arm.poll(one.status_url).state == "Succeeded" for one in begun)
    assert {one.id for one in driver.machines(arm, pool)} == {before[0].id, before[3].id}
    assert driver.read(arm, pool).capacity == 2


@pytest.mark.parametrize("make", [uniform, flexible, aks])
def test_a_machine_that_could_not_be_allocated_says_why(make: Make, local: LocalArm, arm: Arm) -> None:
    driver, pool = make(local, 1)
    local.capacity.shortages.append(Shortage(code="ZonalAllocationFailed", left=1))
    (begun,) = driver.grow(arm, driver.read(arm, pool), 3, quiet)
    local.core.clock.advance(90)
    assert arm.poll(begun.status_url).code == "ZonalAllocationFailed"
    (failed,) = [one for one in driver.machines(arm, pool) if one.state is MachineState.FAILED]
    assert failed.code == "ZonalAllocationFailed"


@pytest.mark.parametrize("make", KINDS)
def test_quota_refuses_at_once(make: Make, local: LocalArm, arm: Arm) -> None:
    driver, pool = make(local, 1)
    local.capacity.quota["cores"] = 2
    with pytest.raises(ConflictError, match="quota"):
        driver.grow(arm, driver.read(arm, pool), 9, quiet)
    assert driver.read(arm, pool).capacity == 1


def test_aks_pools_with_their_own_autoscaler_are_left_alone(local: LocalArm, arm: Arm) -> None:
    driver, pool = aks(local, 2)
    limits = {
        "count": 2,
        "enableAutoScaling": True,
        "minCount": 1,
        "maxCount": 5,
        "vmSize": "Standard_D4s_v5",
    }
    local.put(pool, {"properties": {**limits, "availabilityZones": ["1", "2", "3"]}})
    fresh = driver.read(arm, pool)
    assert "autoscaler" in fresh.hands_off
    with pytest.raises(UnsafePlanError):
        driver.grow(arm, fresh, 3, quiet)


# Availability sets: what the others have the platform for


def grown(local: LocalArm, arm: Arm, driver: AvailabilitySet, pool: str, to: int) -> Fresh:
    driver.grow(arm, driver.read(arm, pool), to, quiet)
    local.core.clock.advance(120)
    return driver.read(arm, pool)


def test_new_machines_of_a_set_continue_its_naming_scheme(local: LocalArm, arm: Arm) -> None:
    driver, pool = AvailabilitySet(), add_availability_set(local, 2)
    announced: list[str] = []
    driver.grow(arm, driver.read(arm, pool), 3, announced.extend)
    assert [one.rpartition("/")[2] for one in announced] == [
        "k8s-agentpool1-16334397-nic-2",
        "k8s-agentpool1-16334397-2",
    ]
    local.core.clock.advance(120)
    machine = arm.get(announced[1]).document
    assert machine["properties"]["osProfile"]["computerName"] == "k8s-agentpool1-16334397-2"
    assert machine["tags"]["poolName"] == "agentpool1"
    assert machine["properties"]["storageProfile"]["imageReference"]["publisher"] == "p"
    interface = arm.get(announced[0]).document
    assert interface["properties"]["virtualMachine"]["id"].lower() == announced[1].lower()
    assert interface["properties"]["enableIPForwarding"] is True
    assert "publicIPAddress" not in interface["properties"]["ipConfigurations"][0]["properties"]


def test_a_set_at_zero_grows_from_what_is_remembered(local: LocalArm, arm: Arm) -> None:
    driver, pool = AvailabilitySet(custom_data="I2Nsb3VkLWNvbmZpZw=="), add_availability_set(local, 1)
    model = driver.remember(arm, pool, driver.read(arm, pool))
    (only,) = driver.machines(arm, pool)
    driver.delete(arm, pool, [only])
    local.core.clock.advance(120)
    assert driver.read(arm, pool).capacity == 0
    later = AvailabilitySet(model, "I2Nsb3VkLWNvbmZpZw==")
    assert grown(local, arm, later, pool, 2).capacity == 2
    names = sorted(one.computer_name for one in later.machines(arm, pool))
    assert names == ["k8s-agentpool1-16334397-1", "k8s-agentpool1-16334397-2"], "a name is never used again"


def test_an_empty_set_of_which_nothing_is_known_does_not_grow(local: LocalArm, arm: Arm) -> None:
    driver, pool = AvailabilitySet(), add_availability_set(local, 0)
    with pytest.raises(UnsafePlanError, match="nothing is remembered"):
        driver.grow(arm, driver.read(arm, pool), 1, quiet)


def test_what_a_machine_leaves_behind_is_named_before_it_goes(local: LocalArm, arm: Arm) -> None:
    driver, pool = AvailabilitySet(), add_availability_set(local, 2)
    machines = driver.machines(arm, pool)[:1]
    names = [one.rpartition("/")[2] for one in driver.belongings(arm, machines)]
    assert names[0] == "k8s-agentpool1-16334397-nic-0"
    assert "OsDisk" in names[1]
    assert names[2] == "k8s-agentpool1-16334397-ip-0"


def test_a_lost_answer_raises_and_the_machine_can_be_found(local: LocalArm, arm: Arm) -> None:
    driver, pool = AvailabilitySet(), add_availability_set(local, 1)
    local.fault(Fault(on("PUT", "virtualMachines"), lose_answer=True))
    announced: list[str] = []
    with pytest.raises(ApiError):
        driver.grow(arm, driver.read(arm, pool), 2, announced.extend)
    assert announced[1].lower() in driver.read(arm, pool).document["members"]

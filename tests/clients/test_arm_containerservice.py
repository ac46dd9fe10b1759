"""AKS clusters, agent pools and machines of the local Resource Manager, driven by the unmodified
azure-mgmt-containerservice.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.containerservice import ContainerServiceClient
from local_arm import code_of, connect, unknown_fields

from sandbox.arm import LocalArm
from sandbox.arm.capacity import Shortage
from sandbox.arm.core import Ending, merged
from sandbox.clock import Clock
from shared.model.resource_id import parse_resource_id

pytestmark = pytest.mark.no_cover

GROUP = LocalArm.group
NODES = f"MC_{GROUP}_prod_westeurope"


@pytest.fixture(scope="module")
def running() -> Iterator[LocalArm]:
    with LocalArm(Clock(datetime(2026, 11, 23, tzinfo=UTC))) as arm:
        yield arm


@pytest.fixture
def arm(running: LocalArm) -> LocalArm:
    running.reset()
    running.add_cluster("prod", system=1, agents=3)
    return running


@pytest.fixture(scope="module")
def client(running: LocalArm) -> Iterator[ContainerServiceClient]:
    with connect(running, ContainerServiceClient) as client:
        yield client


@pytest.fixture(scope="module")
def compute(running: LocalArm) -> Iterator[ComputeManagementClient]:
    with connect(running, ComputeManagementClient) as client:
        yield client


def put(client: ContainerServiceClient, name: str = "agents", **changes: Any) -> Any:
    """Write the pool as it was read, with these properties changed."""
    try:
        body = client.agent_pools.get(GROUP, "prod", name).as_dict()
    except ResourceNotFoundError:
        body = {"properties": {"vmSize": "Standard_D4s_v5"}}
    options = changes.pop("options", {})
    body["properties"] |= changes
    return client.agent_pools.begin_create_or_update(GROUP, "prod", name, body, **options)


def machines(client: ContainerServiceClient, name: str = "agents") -> list[str]:
    return [machine.name for machine in client.machines.list(GROUP, "prod", name)]


def powers(compute: ComputeManagementClient, client: ContainerServiceClient) -> list[str]:
    machine = next(iter(client.machines.list(GROUP, "prod", "agents")))
    scale_set = machine.properties.resource_id.split("/")[8]
    found = compute.virtual_machine_scale_set_vms.list(NODES, scale_set, expand="instanceView")
    return [vm.instance_view.statuses[1].code.removeprefix("PowerState/") for vm in found]


def test_a_cluster_shows_its_pools_and_their_scale_sets(
    arm: LocalArm, client: ContainerServiceClient, compute: ComputeManagementClient
) -> None:
    cluster = client.managed_clusters.get(GROUP, "prod")
    assert cluster.node_resource_group == NODES
    assert [(p.name, p.count, p.mode) for p in cluster.agent_pool_profiles] == [
        ("agents", 3, "User"),
        ("system", 1, "System"),
    ]
    sets = {s.tags["aks-managed-poolName"]: s for s in compute.virtual_machine_scale_sets.list(NODES)}
    assert sets["agents"].sku.capacity == 3
    machine = next(iter(client.machines.list(GROUP, "prod", "agents")))
    assert machine.properties.resource_id == f"{sets['agents'].id}/virtualMachines/0"
    assert machine.name == f"{sets['agents'].name}000000"
    assert client.machines.get(GROUP, "prod", "agents", machine.name).as_dict() == machine.as_dict()
    assert [found.name for found in client.managed_clusters.list()] == ["prod"]


def test_every_answer_has_only_fields_the_sdk_knows(arm: LocalArm, client: ContainerServiceClient) -> None:
    scale = {"manual": [{"size": "Standard_D4s_v5", "count": 2}]}
    put(client, "vms", type="VirtualMachines", virtualMachinesProfile={"scale": scale}).result()
    arm.core.endings.append(Ending(on="agentPools/put"))
    with pytest.raises(HttpResponseError):
        put(client, count=4).result()
    answers = [
        *client.managed_clusters.list(),
        *client.agent_pools.list(GROUP, "prod"),
        *client.machines.list(GROUP, "prod", "agents"),
        *client.machines.list(GROUP, "prod", "vms"),
    ]
    assert [problem for answer in answers for problem in unknown_fields(answer, type(answer).__name__)] == []


def test_a_pool_is_made_scaled_and_deleted(arm: LocalArm, client: ContainerServiceClient) -> None:
    arm.core.operation_seconds = 90
    poller = put(client, "extra", count=2, mode="User", nodeTaints=["a=b:NoSchedule"], nodeLabels={"x": "y"})
    assert client.agent_pools.get(GROUP, "prod", "extra").provisioning_state == "Creating"
    arm.core.clock.advance(90)
    made = poller.result()
    assert (made.provisioning_state, made.count, made.node_taints) == ("Succeeded", 2, ["a=b:NoSchedule"])
    poller = put(client, "extra", count=4)
    assert client.agent_pools.get(GROUP, "prod", "extra").provisioning_state == "Scaling"
    arm.core.clock.advance(90)
    assert poller.result().count == 4
    assert len(machines(client, "extra")) == 4
    arm.core.operation_seconds = 0
    put(client, "extra", count=1).result()
    assert len(machines(client, "extra")) == 1
    client.agent_pools.begin_delete(GROUP, "prod", "extra").result()
    with pytest.raises(ResourceNotFoundError):
        client.agent_pools.get(GROUP, "prod", "extra")
    assert {pool.name for pool in client.agent_pools.list(GROUP, "prod")} == {"agents", "system"}


@pytest.mark.parametrize(
    ("pool", "changes", "code"),
    [
        ("system", {"count": 0}, "InvalidParameter"),
        ("agents", {"count": 1001}, "InvalidParameter"),
        ("agents", {"enableAutoScaling": True, "minCount": 4, "maxCount": 6}, "InvalidParameter"),
        ("agents", {"enableAutoScaling": True, "minCount": 1}, "InvalidParameter"),
        ("agents", {"minCount": 1, "maxCount": 5}, "InvalidParameter"),
        ("agents", {"vmSize": "Standard_E4s_v5"}, "PropertyChangeNotAllowed"),
        ("new", {"vmSize": "Standard_Nothing"}, "InvalidParameter"),
    ],
)
def test_what_aks_refuses_changes_nothing(
    arm: LocalArm, client: ContainerServiceClient, pool: str, changes: dict[str, Any], code: str
) -> None:
    before = [found.as_dict() for found in client.agent_pools.list(GROUP, "prod")]
    with pytest.raises(HttpResponseError) as caught:
        put(client, pool, **changes)
    assert code_of(caught.value) == (400, code)
    after = [found.as_dict() for found in client.agent_pools.list(GROUP, "prod")]
    for found in (*before, *after):
        del found["properties"]["eTag"]
    assert before == after


def test_autoscaling_has_limits(arm: LocalArm, client: ContainerServiceClient) -> None:
    pool = put(client, enableAutoScaling=True, minCount=2, maxCount=5).result()
    assert (pool.enable_auto_scaling, pool.min_count, pool.max_count, pool.count) == (True, 2, 5, 3)


def test_a_pool_is_written_conditionally(arm: LocalArm, client: ContainerServiceClient) -> None:
    stale = client.agent_pools.get(GROUP, "prod", "agents")
    put(client, count=4).result()
    match = {"etag": stale.e_tag, "match_condition": MatchConditions.IfNotModified}
    with pytest.raises(HttpResponseError) as caught:
        put(client, count=5, options=match)
    assert caught.value.status_code == 412
    match["etag"] = client.agent_pools.get(GROUP, "prod", "agents").e_tag
    assert put(client, count=5, options=match).result().count == 5


def test_a_cluster_does_one_thing_at_a_time(arm: LocalArm, client: ContainerServiceClient) -> None:
    arm.core.operation_seconds = 60
    poller = put(client, count=4)
    for refused in (
        lambda: put(client, "system", count=2),
        lambda: client.agent_pools.begin_delete_machines(
            GROUP, "prod", "agents", {"machineNames": machines(client)[:1]}
        ),
        lambda: client.managed_clusters.begin_stop(GROUP, "prod"),
    ):
        with pytest.raises(ResourceExistsError, match="in progress") as caught:
            refused()
        assert code_of(caught.value) == (409, "OperationNotAllowed")
    arm.core.clock.advance(60)
    assert poller.result().count == 4


def test_chosen_machines_are_deleted(arm: LocalArm, client: ContainerServiceClient) -> None:
    names = machines(client)
    client.agent_pools.begin_delete_machines(GROUP, "prod", "agents", {"machineNames": [names[1]]}).result()
    assert machines(client) == [names[0], names[2]]
    assert client.agent_pools.get(GROUP, "prod", "agents").count == 2
    with pytest.raises(HttpResponseError, match="not found") as caught:
        client.agent_pools.begin_delete_machines(GROUP, "prod", "agents", {"machineNames": [names[1]]})
    assert code_of(caught.value) == (400, "InvalidParameter")


def test_scaling_down_may_deallocate_and_scaling_up_starts_again(
    arm: LocalArm, client: ContainerServiceClient, compute: ComputeManagementClient
) -> None:
    put(client, scaleDownMode="Deallocate").result()
    put(client, count=1).result()
    assert powers(compute, client) == ["running", "deallocated", "deallocated"]
    assert client.agent_pools.get(GROUP, "prod", "agents").count == 1
    put(client, count=4).result()
    assert powers(compute, client) == ["running"] * 4


def test_quota_refuses_a_pool_at_once(arm: LocalArm, client: ContainerServiceClient) -> None:
    arm.capacity.quota["cores"] = 20
    with pytest.raises(ResourceExistsError, match="Current Usage: 16"):
        put(client, count=5)
    pool = client.agent_pools.get(GROUP, "prod", "agents")
    assert (pool.count, pool.provisioning_state) == (3, "Succeeded")


def test_an_allocation_that_fails_leaves_a_failed_pool(arm: LocalArm, client: ContainerServiceClient) -> None:
    arm.capacity.shortages.append(Shortage(code="AllocationFailed", left=1))
    with pytest.raises(HttpResponseError, match="AllocationFailed"):
        put(client, count=5).result()
    pool = client.agent_pools.get(GROUP, "prod", "agents")
    assert (pool.provisioning_state, pool.count) == ("Failed", 5)
    assert pool.status.provisioning_error.code == "AllocationFailed"
    arm.capacity.shortages.clear()
    assert put(client, count=4).result().provisioning_state == "Succeeded"


def test_a_pool_of_single_machines_mixes_sizes(
    arm: LocalArm, client: ContainerServiceClient, compute: ComputeManagementClient
) -> None:
    def profile(**sizes: int) -> dict[str, Any]:
        entries = [{"size": f"Standard_{size}_v5", "count": count} for size, count in sizes.items()]
        return {"scale": {"manual": entries}}

    pool = put(client, "vms", type="VirtualMachines", virtualMachinesProfile=profile(D4s=2, E4s=1)).result()
    assert pool.count == 3
    sizes = [vm.hardware_profile.vm_size for vm in compute.virtual_machines.list(NODES)]
    assert sorted(sizes) == ["Standard_D4s_v5", "Standard_D4s_v5", "Standard_E4s_v5"]
    put(client, "vms", virtualMachinesProfile=profile(D4s=1, E4s=2)).result()
    status = client.agent_pools.get(GROUP, "prod", "vms").virtual_machine_nodes_status
    assert {nodes.size: nodes.count for nodes in status} == {"Standard_D4s_v5": 1, "Standard_E4s_v5": 2}
    name = machines(client, "vms")[0]
    client.agent_pools.begin_delete_machines(GROUP, "prod", "vms", {"machineNames": [name]}).result()
    assert (len(machines(client, "vms")), len(list(compute.virtual_machines.list(NODES)))) == (2, 2)


def test_a_running_operation_can_be_aborted(arm: LocalArm, client: ContainerServiceClient) -> None:
    arm.core.operation_seconds = 60
    poller = put(client, count=6)
    client.agent_pools.begin_abort_latest_operation(GROUP, "prod", "agents", polling=False)
    with pytest.raises(HttpResponseError, match="OperationAborted"):
        poller.result()
    assert client.agent_pools.get(GROUP, "prod", "agents").provisioning_state == "Canceled"


def test_a_stopped_cluster_runs_nothing(
    arm: LocalArm, client: ContainerServiceClient, compute: ComputeManagementClient
) -> None:
    client.managed_clusters.begin_stop(GROUP, "prod").result()
    assert client.managed_clusters.get(GROUP, "prod").power_state.code == "Stopped"
    assert powers(compute, client) == ["deallocated"] * 3
    with pytest.raises(ResourceExistsError, match="stopped"):
        put(client, count=4)
    client.managed_clusters.begin_start(GROUP, "prod").result()
    assert powers(compute, client) == ["running"] * 3


def test_the_last_system_pool_stays(arm: LocalArm, client: ContainerServiceClient) -> None:
    with pytest.raises(HttpResponseError, match="system agent pool"):
        client.agent_pools.begin_delete(GROUP, "prod", "system")


def test_a_scale_set_changed_behind_akss_back_is_seen(
    arm: LocalArm, client: ContainerServiceClient, compute: ComputeManagementClient
) -> None:
    (scale_set,) = (s for s in compute.virtual_machine_scale_sets.list(NODES) if "agents" in s.name)
    ids = {"instanceIds": ["0"]}
    compute.virtual_machine_scale_sets.begin_delete_instances(NODES, scale_set.name, ids).result()
    assert client.agent_pools.get(GROUP, "prod", "agents").count == 3
    assert len(machines(client)) == 2
    put(client).result()
    assert len(machines(client)) == 3


def test_machines_may_be_listed_as_they_were(arm: LocalArm, client: ContainerServiceClient) -> None:
    arm.core.clock.advance(60)
    put(client, count=1).result()
    arm.core.read_stale(30, "agentPools/agents", times=2)
    assert (client.agent_pools.get(GROUP, "prod", "agents").count, len(machines(client))) == (3, 3)
    assert (client.agent_pools.get(GROUP, "prod", "agents").count, len(machines(client))) == (1, 1)


def test_a_pool_is_upgraded_machine_by_machine_to_a_version_that_is_offered(
    arm: LocalArm, client: ContainerServiceClient
) -> None:
    answer = client.agent_pools.get_upgrade_profile(GROUP, "prod", "agents")
    assert unknown_fields(answer, "AgentPoolUpgradeProfile") == []
    profile = client.agent_pools.get_upgrade_profile(GROUP, "prod", "agents").properties
    assert profile.kubernetes_version == "1.34.1"
    assert [one.kubernetes_version for one in profile.upgrades or []] == [], "the control plane comes first"
    for version, code in (
        ("1.34.2", "NodePoolMcVersionIncompatible"),
        ("1.33.5", "AgentPoolUpgradeVersionNotAllowed"),
        ("9.9.9", "AgentPoolK8sVersionNotSupported"),
    ):
        with pytest.raises(HttpResponseError) as raised:
            put(client, orchestratorVersion=version)
        assert code_of(raised.value) == (400, code)
    set_control_plane(arm, "1.34.2")
    profile = client.agent_pools.get_upgrade_profile(GROUP, "prod", "agents").properties
    assert [one.kubernetes_version for one in profile.upgrades or []] == ["1.34.2"]
    boots = [machine.boots for machine in arm.truth.machines.values()]
    arm.core.operation_seconds = 30
    poller = put(client, orchestratorVersion="1.34.2")
    clock = arm.core.clock
    assert isinstance(clock, Clock)
    clock.advance(45)
    pool = client.agent_pools.get(GROUP, "prod", "agents").properties
    assert (pool.provisioning_state, pool.current_orchestrator_version) == ("Upgrading", "1.34.1")
    again = [machine.boots for machine in arm.truth.machines.values()]
    assert sum(again) - sum(boots) == 1, "one of three is through"
    clock.advance(60)
    assert poller.result().properties.current_orchestrator_version == "1.34.2"
    assert sum(machine.boots for machine in arm.truth.machines.values()) - sum(boots) == 3


def test_an_upgrade_that_is_aborted_leaves_the_rest_as_it_was(
    arm: LocalArm, client: ContainerServiceClient
) -> None:
    arm.core.settings["aks_node_image"] = "AKSUbuntu-2404gen2containerd-202612.01.0"
    arm.core.operation_seconds = 30
    boots = sum(machine.boots for machine in arm.truth.machines.values())
    client.agent_pools.begin_upgrade_node_image_version(GROUP, "prod", "agents", polling=False)
    clock = arm.core.clock
    assert isinstance(clock, Clock)
    clock.advance(45)
    pool = client.agent_pools.get(GROUP, "prod", "agents").properties
    assert pool.provisioning_state == "UpgradingNodeImageVersion"
    arm.core.operation_seconds = 0
    client.agent_pools.begin_abort_latest_operation(GROUP, "prod", "agents", polling=False)
    clock.advance(120)
    pool = client.agent_pools.get(GROUP, "prod", "agents").properties
    assert pool.provisioning_state == "Canceled"
    assert pool.node_image_version == "AKSUbuntu-2404gen2containerd-202611.01.0"
    assert sum(machine.boots for machine in arm.truth.machines.values()) - boots == 1


def set_control_plane(arm: LocalArm, version: str) -> None:
    """As after an upgrade of the control plane alone, which is not modelled."""
    where = parse_resource_id(arm.id_of("Microsoft.ContainerService/managedClusters", "prod"))
    found = arm.core.state.find(where)
    assert found is not None
    body = merged(found.body, {"properties": {"currentKubernetesVersion": version}})
    arm.core.state.store(where, body)

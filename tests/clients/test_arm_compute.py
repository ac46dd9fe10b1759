"""Virtual machines, disks and scale sets of the local Resource Manager, driven by the unmodified
azure-mgmt-compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from threading import Thread

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.compute import models as m
from local_arm import code_of, connect, unknown_fields

from sandbox.arm import QUOTED, LocalArm
from sandbox.arm.capacity import Shortage
from sandbox.arm.compute.disks import claims_on, owners_of
from sandbox.arm.compute.machines import data_disks, disk_id_of
from sandbox.arm.compute.scalesets import members
from sandbox.arm.core import ArmError, Ending, Latencies
from sandbox.asgi import Fault, on
from sandbox.clock import Clock

pytestmark = pytest.mark.no_cover

GROUP = LocalArm.group
FORCE = {"detachOption": "ForceDetach"}


@pytest.fixture(scope="module")
def running() -> Iterator[LocalArm]:
    with LocalArm(Clock(datetime(2026, 11, 23, tzinfo=UTC))) as arm:
        yield arm


@pytest.fixture
def arm(running: LocalArm) -> LocalArm:
    running.reset()
    return running


@pytest.fixture(scope="module")
def client(running: LocalArm) -> Iterator[ComputeManagementClient]:
    with connect(running, ComputeManagementClient) as client:
        yield client


def power_of(client: ComputeManagementClient, name: str) -> str:
    codes = [status.code for status in client.virtual_machines.instance_view(GROUP, name).statuses]
    return next((code.split("/")[1] for code in codes if code.startswith("PowerState/")), "none")


def luns(client: ComputeManagementClient, name: str) -> dict[str, int]:
    machine = client.virtual_machines.get(GROUP, name)
    return {disk.name: disk.lun for disk in machine.storage_profile.data_disks}


def detach(client: ComputeManagementClient, name: str, *disks: str, **extra: str):
    asked = [{"diskId": disk, **extra} for disk in disks]
    return client.virtual_machines.begin_attach_detach_data_disks(GROUP, name, {"dataDisksToDetach": asked})


def attach(client: ComputeManagementClient, name: str, disk: str, lun: int):
    body = {"dataDisksToAttach": [{"diskId": disk, "lun": lun}]}
    return client.virtual_machines.begin_attach_detach_data_disks(GROUP, name, body)


def new_vm(size: str = "Standard_D4s_v5", **changes: object) -> m.VirtualMachine:
    image = m.ImageReference(publisher="Canonical", offer="ubuntu", sku="24", version="latest")
    properties = m.VirtualMachineProperties(
        hardware_profile=m.HardwareProfile(vm_size=size),
        storage_profile=m.StorageProfile(image_reference=image),
        os_profile=m.OSProfile(computer_name="a", admin_username="x"),
    )
    return m.VirtualMachine(location="westeurope", properties=properties, **changes)


# --- machines ---


def test_a_machine_lives_its_life(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.core.operation_seconds = 30
    poller = client.virtual_machines.begin_create_or_update(GROUP, "a", new_vm(zones=["1"]))
    made = client.virtual_machines.get(GROUP, "a", expand="instanceView")
    assert (made.provisioning_state, made.instance_view.statuses[0].code) == (
        "Creating",
        "ProvisioningState/creating",
    )
    assert not arm.truth.is_running(made.id)
    arm.core.clock.advance(30)
    assert poller.result().provisioning_state == "Succeeded"
    assert power_of(client, "a") == "running"
    assert arm.truth.is_running(made.id)

    for begin, meanwhile, after in (
        (client.virtual_machines.begin_power_off, "stopping", "stopped"),
        (client.virtual_machines.begin_start, "starting", "running"),
        (client.virtual_machines.begin_deallocate, "deallocating", "deallocated"),
    ):
        poller = begin(GROUP, "a")
        assert power_of(client, "a") == meanwhile
        assert client.virtual_machines.get(GROUP, "a").provisioning_state == "Updating"
        arm.core.clock.advance(30)
        poller.result()
        assert power_of(client, "a") == after
        assert arm.truth.is_running(made.id) == (after == "running")

    poller = client.virtual_machines.begin_delete(GROUP, "a")
    assert client.virtual_machines.get(GROUP, "a").provisioning_state == "Deleting"
    arm.core.clock.advance(30)
    poller.result()
    with pytest.raises(ResourceNotFoundError) as caught:
        client.virtual_machines.get(GROUP, "a")
    assert code_of(caught.value) == (404, "ResourceNotFound")
    client.virtual_machines.begin_delete(GROUP, "a").result()


def test_every_answer_has_only_fields_the_sdk_knows(arm: LocalArm, client: ComputeManagementClient) -> None:
    shared = arm.add_disk("shared", shares=2)
    arm.add_vm("a", disks=[arm.add_disk("d"), shared])
    arm.add_vm("b", disks=[shared])
    arm.add_scale_set("pool", 2, zones=["1", "2"])
    arm.add_scale_set("flex", 1, flexible=True)
    snapshot = {"location": "westeurope"}
    snapshot["properties"] = {"creationData": {"createOption": "Copy", "sourceResourceId": shared}}
    arm.put(arm.id_of("Microsoft.Compute/snapshots", "s"), snapshot)
    arm.put(arm.id_of("Microsoft.Compute/availabilitySets", "as"), {"location": "westeurope"})
    arm.capacity.sizes[0].restricted_zones = ["1"]
    arm.capacity.sizes[1].restricted = True
    answers = [
        *client.virtual_machines.list(GROUP),
        *client.virtual_machines.list_all(expand="instanceView"),
        client.virtual_machines.instance_view(GROUP, "a"),
        *client.disks.list(),
        *client.disks.list_by_resource_group(GROUP),
        client.snapshots.get(GROUP, "s"),
        *client.virtual_machine_scale_sets.list(GROUP),
        client.virtual_machine_scale_sets.get_instance_view(GROUP, "pool"),
        *client.virtual_machine_scale_set_vms.list(GROUP, "pool", expand="instanceView"),
        *client.virtual_machine_scale_set_vms.list(GROUP, "flex", expand="instanceView"),
        client.virtual_machine_scale_set_vms.get_instance_view(GROUP, "pool", "0"),
        client.availability_sets.get(GROUP, "as"),
        *client.resource_skus.list(filter="location eq 'westeurope'"),
        *client.usage.list("westeurope"),
        detach(client, "a", shared).result(),
    ]
    assert len(answers) > 40
    assert [problem for answer in answers for problem in unknown_fields(answer, type(answer).__name__)] == []


def test_what_a_list_shows_is_what_a_get_shows(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.add_scale_set("pool", 3, zones=["1", "2", "3"])
    arm.add_vm("a")
    assert [vm.as_dict() for vm in client.virtual_machines.list_all()] == [
        client.virtual_machines.get(GROUP, "a").as_dict()
    ]
    for instance in client.virtual_machine_scale_set_vms.list(GROUP, "pool", expand="instanceView"):
        single = client.virtual_machine_scale_set_vms.get(
            GROUP, "pool", instance.instance_id, expand="instanceView"
        )
        assert instance.as_dict() == single.as_dict()


def test_a_machine_with_an_interface_that_does_not_exist_is_refused(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    wanted = new_vm()
    wanted.network_profile = m.NetworkProfile(
        network_interfaces=[
            m.NetworkInterfaceReference(id=arm.id_of("Microsoft.Network/networkInterfaces", "n"))
        ]
    )
    with pytest.raises(HttpResponseError) as caught:
        client.virtual_machines.begin_create_or_update(GROUP, "a", wanted)
    assert code_of(caught.value) == (400, "InvalidResourceReference")


def test_a_machine_started_again_is_another_boot_of_the_same_machine(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    disk = arm.add_disk("d")
    vm = arm.add_vm("a", disks=[disk])
    vm_id = client.virtual_machines.get(GROUP, "a").vm_id
    arm.truth.mount(vm, disk, 0)
    client.virtual_machines.begin_restart(GROUP, "a").result()
    assert arm.truth.mounted_on(disk) == []
    assert (arm.truth.machine(vm).boots, client.virtual_machines.get(GROUP, "a").vm_id) == (2, vm_id)


def test_a_machine_of_the_same_name_is_not_the_same_machine(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    disk = arm.add_disk("d")
    arm.add_vm("a", disks=[disk])
    seen = client.virtual_machines.get(GROUP, "a")
    new_id = arm.replace_vm(seen.id)
    found = client.virtual_machines.get(GROUP, "a")
    assert (found.id, found.vm_id) == (seen.id, new_id)
    assert found.vm_id != seen.vm_id
    assert (luns(client, "a"), client.disks.get(GROUP, "d").managed_by) == ({}, None)
    with pytest.raises(HttpResponseError) as caught:
        client.virtual_machines.begin_update(
            GROUP, "a", {"tags": {}}, etag=seen.etag, match_condition=MatchConditions.IfNotModified
        )
    assert caught.value.status_code == 412


def test_hibernated_machines_freeze_their_disks(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.add_vm("a", disks=[arm.add_disk("d")])
    with pytest.raises(ResourceExistsError) as caught:
        client.virtual_machines.begin_deallocate(GROUP, "a", hibernate=True)
    assert code_of(caught.value) == (409, "OperationNotAllowed")
    arm.add_vm("b", disks=[arm.add_disk("e")], additionalCapabilities={"hibernationEnabled": True})
    client.virtual_machines.begin_deallocate(GROUP, "b", hibernate=True).result()
    codes = [s.code for s in client.virtual_machines.instance_view(GROUP, "b").statuses]
    assert {"PowerState/deallocated", "HibernationState/Hibernated"} <= set(codes)
    assert client.disks.get(GROUP, "e").disk_state == "Frozen"
    with pytest.raises(ResourceExistsError):
        detach(client, "b", client.disks.get(GROUP, "e").id)


@pytest.mark.parametrize(
    ("power", "state"), [("begin_power_off", "Attached"), ("begin_deallocate", "Reserved")]
)
def test_the_state_of_a_disk_follows_the_power_of_its_machine(
    arm: LocalArm, client: ComputeManagementClient, power: str, state: str
) -> None:
    arm.add_vm("a", disks=[arm.add_disk("d")])
    getattr(client.virtual_machines, power)(GROUP, "a").result()
    assert client.disks.get(GROUP, "d").disk_state == state
    client.virtual_machines.begin_start(GROUP, "a").result()
    assert client.disks.get(GROUP, "d").disk_state == "Attached"


def test_skipping_the_shutdown_is_another_operation(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.core.latencies = Latencies({"powerOff": 60.0, "powerOffNow": 5.0}, spread=0.0)
    arm.add_vm("a")
    arm.add_vm("b")
    client.virtual_machines.begin_power_off(GROUP, "a")
    client.virtual_machines.begin_power_off(GROUP, "b", skip_shutdown=True)
    arm.core.clock.advance(5)
    assert (power_of(client, "a"), power_of(client, "b")) == ("stopping", "stopped")


def test_a_spot_machine_is_evicted_within_half_a_minute(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    vm = arm.add_vm("a", priority="Spot")
    client.virtual_machines.simulate_eviction(GROUP, "a")
    assert power_of(client, "a") == "running"
    arm.core.clock.advance(30)
    assert (power_of(client, "a"), arm.truth.is_running(vm)) == ("deallocated", False)


# --- data disks ---


def test_detaching_takes_its_time_and_the_disk_says_so_only_at_the_end(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    disk = arm.add_disk("d")
    vm = arm.add_vm("a", disks=[disk])
    before = client.disks.get(GROUP, "d").last_ownership_update_time
    arm.core.operation_seconds = 60
    poller = detach(client, "a", disk)
    (entry,) = client.virtual_machines.get(GROUP, "a").storage_profile.data_disks
    assert (entry.to_be_detached, client.disks.get(GROUP, "d").managed_by) == (True, vm)
    arm.core.clock.advance(60)
    assert poller.result().data_disks == []
    freed = client.disks.get(GROUP, "d")
    assert (freed.managed_by, freed.disk_state) == (None, "Unattached")
    assert (freed.last_ownership_update_time - before).total_seconds() == 60


def test_while_a_disk_is_being_attached_it_looks_unattached_and_yet_nobody_else_gets_it(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    disk = arm.add_disk("d")
    arm.add_vm("a")
    arm.add_vm("b")
    arm.core.operation_seconds = 60
    attach(client, "a", disk, 3)
    seen = client.disks.get(GROUP, "d")
    assert (seen.managed_by, seen.disk_state) == (None, "Unattached")
    with pytest.raises(ResourceExistsError) as caught:
        attach(client, "b", disk, 0)
    assert code_of(caught.value) == (409, "ConflictingUserInput")
    arm.core.clock.advance(60)
    assert client.disks.get(GROUP, "d").managed_by.endswith("/a")
    assert luns(client, "a") == {"d": 3}


def test_a_disk_that_is_being_detached_cannot_be_attached(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    disk = arm.add_disk("d")
    arm.add_vm("a", disks=[disk])
    arm.core.operation_seconds = 60
    detach(client, "a", disk)
    with pytest.raises(ResourceExistsError) as caught:
        attach(client, "a", disk, 0)
    assert code_of(caught.value) == (409, "AttachDiskWhileBeingDetached")


@pytest.mark.parametrize(
    ("prepare", "status", "code"),
    [
        (lambda arm: arm.add_vm("b", disks=[arm.add_disk("d")]), 409, "ConflictingUserInput"),
        (lambda arm: arm.add_disk("d", zone="2"), 400, "BadRequest"),
        (lambda arm: None, 404, "ResourceNotFound"),
        (lambda arm: arm.core.do("POST", arm.add_disk("d"), {}, "beginGetAccess"), 409, "Conflict"),
        (
            lambda arm: arm.attach(arm.id_of(VM, "a"), arm.add_disk("x"), 1) or arm.add_disk("d"),
            400,
            "InvalidParameter",
        ),
    ],
    ids=["owned by another", "other zone", "no such disk", "exported", "LUN taken"],
)
def test_a_disk_is_refused_with_azures_code(
    arm: LocalArm, client: ComputeManagementClient, prepare: object, status: int, code: str
) -> None:
    arm.add_vm("a")
    prepare(arm)  # type: ignore[operator]
    with pytest.raises(HttpResponseError) as caught:
        attach(client, "a", arm.id_of("Microsoft.Compute/disks", "d"), 1)
    assert code_of(caught.value) == (status, code)
    assert "d" not in luns(client, "a")


VM = "Microsoft.Compute/virtualMachines"


def test_a_size_takes_only_so_many_disks(arm: LocalArm, client: ComputeManagementClient) -> None:
    disks = [arm.add_disk(f"d{number}") for number in range(5)]
    arm.add_vm("a", size="Standard_D2s_v5", disks=disks[:4])
    with pytest.raises(ResourceExistsError, match="maximum number of data disks") as caught:
        attach(client, "a", disks[4], 9)
    assert code_of(caught.value) == (409, "OperationNotAllowed")
    with pytest.raises(ResourceExistsError, match="attached to VM"):
        client.disks.begin_delete(GROUP, "d0")


def test_a_stale_list_of_disks_detaches_what_it_does_not_name(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    vm = arm.add_vm("a", disks=[arm.add_disk("d")])
    stale = client.virtual_machines.get(GROUP, "a")
    arm.attach(vm, arm.add_disk("e"), 1)
    profile = m.StorageProfile(data_disks=stale.storage_profile.data_disks)
    update = m.VirtualMachineUpdate(properties=m.VirtualMachineProperties(storage_profile=profile))
    with pytest.raises(HttpResponseError) as caught:
        client.virtual_machines.begin_update(
            GROUP, "a", update, etag=stale.etag, match_condition=MatchConditions.IfNotModified
        )
    assert caught.value.status_code == 412
    client.virtual_machines.begin_update(GROUP, "a", update).result()
    assert (luns(client, "a"), client.disks.get(GROUP, "e").managed_by) == ({"d": 0}, None)


def test_one_wrong_disk_in_a_list_refuses_the_whole_list(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    arm.add_vm("a", disks=[arm.add_disk("d")])
    arm.add_vm("b", disks=[arm.add_disk("theirs")])
    machine = client.virtual_machines.get(GROUP, "a")
    for lun, name in ((1, "fresh"), (2, "theirs")):
        disk_id = arm.id_of("Microsoft.Compute/disks", name)
        entry = m.DataDisk(lun=lun, create_option="Attach", managed_disk=m.ManagedDiskParameters(id=disk_id))
        machine.storage_profile.data_disks.append(entry)
    arm.add_disk("fresh")
    with pytest.raises(ResourceExistsError):
        client.virtual_machines.begin_create_or_update(GROUP, "a", machine)
    assert luns(client, "a") == {"d": 0}
    attach(client, "a", arm.id_of("Microsoft.Compute/disks", "fresh"), 5).result()


def test_to_be_detached_in_a_list_detaches_and_forcing_preempts(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    arm.add_vm("a", disks=[arm.add_disk("d"), arm.add_disk("e")])
    arm.core.latencies = Latencies({"forceDetach": 5.0, "attachDetach": 300.0}, spread=0.0)
    first = detach(client, "a", arm.id_of("Microsoft.Compute/disks", "d"))
    arm.core.clock.advance(240)
    machine = client.virtual_machines.get(GROUP, "a")
    machine.storage_profile.data_disks[0].detach_option = "ForceDetach"
    second = client.virtual_machines.begin_create_or_update(GROUP, "a", machine)
    arm.core.clock.advance(5)
    second.result()
    assert luns(client, "a") == {"e": 1}
    with pytest.raises(HttpResponseError, match="DataDisksForceDetached"):
        first.result()


def test_a_later_write_preempts_an_earlier_one_and_finishes_its_work(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    disk = arm.add_disk("d")
    arm.add_vm("a", disks=[disk])
    arm.core.operation_seconds = 60
    first = detach(client, "a", disk)
    second = client.virtual_machines.begin_power_off(GROUP, "a")
    with pytest.raises(HttpResponseError, match="OperationPreempted"):
        first.result()
    arm.core.clock.advance(60)
    second.result()
    assert (luns(client, "a"), power_of(client, "a")) == ({}, "stopped")


@pytest.mark.parametrize(("code", "power"), [("", "deallocated"), ("VMExtensionError", "running")])
def test_a_write_that_preempts_a_deallocation_leaves_no_machine_half_way(
    arm: LocalArm, client: ComputeManagementClient, code: str, power: str
) -> None:
    disk = arm.add_disk("d")
    arm.add_vm("a", disks=[disk])
    arm.core.operation_seconds = 60
    client.virtual_machines.begin_deallocate(GROUP, "a")
    assert power_of(client, "a") == "deallocating"
    if code:
        arm.core.endings.append(Ending(on="virtualMachines/attachDetachDataDisks", code=code))
    detach(client, "a", disk)
    arm.core.clock.advance(60)
    assert power_of(client, "a") == power


def test_a_failed_detach_leaves_a_failed_machine_that_refuses_disks_until_repaired(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    disk = arm.add_disk("d")
    arm.add_vm("a", disks=[disk])
    arm.core.endings.append(Ending(on="virtualMachines/attachDetachDataDisks", code="VMExtensionError"))
    with pytest.raises(HttpResponseError, match="VMExtensionError"):
        detach(client, "a", disk).result()
    machine = client.virtual_machines.get(GROUP, "a", expand="instanceView")
    assert machine.provisioning_state == "Failed"
    assert machine.storage_profile.data_disks[0].to_be_detached
    assert machine.instance_view.statuses[0].code == "ProvisioningState/failed/VMExtensionError"
    assert power_of(client, "a") == "running"
    with pytest.raises(ResourceExistsError, match="failed state"):
        detach(client, "a", disk)
    client.virtual_machines.begin_update(GROUP, "a", {}).result()
    assert client.virtual_machines.get(GROUP, "a").provisioning_state == "Succeeded"
    assert luns(client, "a") == {}


def test_reapply_repairs_a_failed_machine(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.add_vm("a")
    arm.core.endings.append(Ending(on="virtualMachines/start", applied=True))
    with pytest.raises(HttpResponseError):
        client.virtual_machines.begin_start(GROUP, "a").result()
    client.virtual_machines.begin_reapply(GROUP, "a").result()
    assert client.virtual_machines.get(GROUP, "a").provisioning_state == "Succeeded"


def test_a_missing_disk_poisons_every_write_until_it_is_detached_too(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    lost, fine = arm.add_disk("lost"), arm.add_disk("fine")
    arm.add_vm("a", disks=[lost, fine])
    arm.lose_disk(lost)
    with pytest.raises(HttpResponseError, match="DiskNotFound"):
        detach(client, "a", fine).result()
    with pytest.raises(HttpResponseError, match="DiskNotFound"):
        client.virtual_machines.begin_reapply(GROUP, "a").result()
    detach(client, "a", fine, lost).result()
    assert client.virtual_machines.get(GROUP, "a").provisioning_state == "Succeeded"
    assert luns(client, "a") == {}


def test_a_shared_disk_names_all_its_machines(arm: LocalArm, client: ComputeManagementClient) -> None:
    disk = arm.add_disk("d", shares=2)
    a, b = arm.add_vm("a", disks=[disk]), arm.add_vm("b", disks=[disk])
    found = client.disks.get(GROUP, "d")
    assert found.managed_by_extended == [a, b]
    assert [info.vm_uri for info in found.share_info] == [a, b]
    arm.add_vm("c")
    with pytest.raises(ResourceExistsError):
        attach(client, "c", disk, 0)
    detach(client, "a", disk).result()
    attach(client, "c", disk, 0).result()
    assert client.disks.get(GROUP, "d").managed_by_extended == [b, arm.id_of(VM, "c")]


def test_an_unmanaged_disk_is_a_blob_leased_by_one_machine(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    vhd = m.VirtualHardDisk(uri="https://acc.blob.core.windows.net/vhds/d.vhd")
    disk = m.DataDisk(lun=0, name="d", create_option="Attach", vhd=vhd)
    for name in ("a", "b"):
        wanted = new_vm()
        wanted.storage_profile.os_disk = m.OSDisk(
            create_option="Attach",
            vhd=m.VirtualHardDisk(uri=f"https://acc.blob.core.windows.net/vhds/{name}.vhd"),
        )
        client.virtual_machines.begin_create_or_update(GROUP, name, wanted).result()
    machine = client.virtual_machines.get(GROUP, "a")
    machine.storage_profile.data_disks = [disk]
    client.virtual_machines.begin_create_or_update(GROUP, "a", machine).result()
    assert luns(client, "a") == {"d": 0}
    machine = client.virtual_machines.get(GROUP, "b")
    machine.storage_profile.data_disks = [disk]
    with pytest.raises(ResourceExistsError) as caught:
        client.virtual_machines.begin_create_or_update(GROUP, "b", machine)
    assert code_of(caught.value) == (409, "AcquireDiskLeaseFailed")
    assert list(client.disks.list()) == []


def test_disks_outlive_their_machine_unless_told_otherwise_and_may_linger(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    arm.core.settings["disk_linger_seconds"] = 42
    vm = arm.add_vm("a", disks=[arm.add_disk("kept"), arm.add_disk("gone")])
    machine = client.virtual_machines.get(GROUP, "a")
    machine.storage_profile.data_disks[1].delete_option = "Delete"
    client.virtual_machines.begin_create_or_update(GROUP, "a", machine).result()
    client.virtual_machines.begin_delete(GROUP, "a").result()
    assert {disk.name for disk in client.disks.list() if not disk.os_type} == {"kept"}
    assert client.disks.get(GROUP, "kept").managed_by == vm
    arm.core.clock.advance(42)
    assert client.disks.get(GROUP, "kept").managed_by is None


# --- the hidden truth ---


def test_detaching_under_a_mount_is_recorded_as_corruption(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    disk = arm.add_disk("d")
    vm = arm.add_vm("a", disks=[disk])
    arm.truth.mount(vm, disk, 0)
    detach(client, "a", disk).result()
    (corruption,) = arm.corruptions
    assert (corruption.kind, corruption.disk, corruption.lun) == ("DetachedWhileMounted", disk.lower(), 0)
    other = arm.add_disk("e")
    attach(client, "a", other, 0).result()
    assert (arm.corruptions[1].kind, arm.corruptions[1].mounted_disk) == ("LunReusedUnderMount", disk.lower())


def test_what_is_unmounted_or_powered_off_first_is_not_corrupted(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    disks = [arm.add_disk(name) for name in "de"]
    vm = arm.add_vm("a", disks=disks)
    for lun, disk in enumerate(disks):
        arm.truth.mount(vm, disk, lun)
    arm.truth.unmount(vm, disks[0])
    detach(client, "a", disks[0]).result()
    arm.truth.kill_kubelet(vm)
    client.virtual_machines.begin_power_off(GROUP, "a", skip_shutdown=True).result()
    detach(client, "a", disks[1]).result()
    assert arm.corruptions == []
    client.virtual_machines.begin_start(GROUP, "a").result()
    assert arm.truth.machine(vm).kubelet_alive


def test_a_dead_kubelet_does_not_make_a_running_machine_harmless(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    disk = arm.add_disk("d")
    vm = arm.add_vm("a", disks=[disk])
    arm.truth.mount(vm, disk, 0)
    arm.truth.kill_kubelet(vm)
    detach(client, "a", disk, **FORCE).result()
    assert [(c.kubelet_alive, c.forced) for c in arm.corruptions] == [(False, True)]


def test_azure_may_believe_that_a_dead_machine_runs(arm: LocalArm, client: ComputeManagementClient) -> None:
    vm = arm.add_vm("a")
    arm.truth.crash(vm)
    assert (power_of(client, "a"), arm.truth.is_running(vm)) == ("running", False)


# --- scale sets ---


def pool(client: ComputeManagementClient, name: str = "pool") -> dict[str, str]:
    found = client.virtual_machine_scale_set_vms.list(GROUP, name)
    return {vm.instance_id: vm.provisioning_state for vm in found}


def set_capacity(client: ComputeManagementClient, capacity: int, **options: object):
    sku = {"name": "Standard_D4s_v5", "capacity": capacity}
    body = {"location": "westeurope", "sku": sku}
    return client.virtual_machine_scale_sets.begin_create_or_update(GROUP, "pool", body, **options)


def test_a_set_grows_and_shrinks_and_spreads_over_zones(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    arm.add_scale_set("pool", 2, zones=["1", "2", "3"])
    arm.core.operation_seconds = 90
    poller = set_capacity(client, 5)
    assert client.virtual_machine_scale_sets.get(GROUP, "pool").sku.capacity == 5
    assert list(pool(client).values()) == ["Succeeded"] * 2 + ["Creating"] * 3
    arm.core.clock.advance(90)
    assert poller.result().provisioning_state == "Succeeded"
    zones = [vm.zones[0] for vm in client.virtual_machine_scale_set_vms.list(GROUP, "pool")]
    assert sorted(zones) == ["1", "1", "2", "2", "3"]
    summary = client.virtual_machine_scale_sets.get_instance_view(GROUP, "pool").virtual_machine
    assert {s.code: s.count for s in summary.statuses_summary}["PowerState/running"] == 5

    set_capacity(client, 3)
    assert list(pool(client).values()).count("Deleting") == 2
    arm.core.clock.advance(90)
    kept = list(client.virtual_machine_scale_set_vms.list(GROUP, "pool"))
    assert sorted(vm.zones[0] for vm in kept) == ["1", "2", "3"]


def test_capacity_is_written_conditionally(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.add_scale_set("pool", 1)
    seen = client.virtual_machine_scale_sets.get(GROUP, "pool")
    set_capacity(client, 2).result()
    with pytest.raises(HttpResponseError) as caught:
        set_capacity(client, 3, etag=seen.etag, match_condition=MatchConditions.IfNotModified)
    assert caught.value.status_code == 412
    seen = client.virtual_machine_scale_sets.get(GROUP, "pool")
    set_capacity(client, 3, etag=seen.etag, match_condition=MatchConditions.IfNotModified).result()
    assert len(pool(client)) == 3


def test_a_second_write_of_capacity_takes_over_from_the_first(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    arm.add_scale_set("pool", 1)
    arm.core.operation_seconds = 60
    first, second = set_capacity(client, 3), set_capacity(client, 4)
    with pytest.raises(HttpResponseError, match="OperationPreempted"):
        first.result()
    arm.core.clock.advance(60)
    second.result()
    assert list(pool(client).values()) == ["Succeeded"] * 4


def test_chosen_instances_are_deleted_side_by_side_and_numbers_never_come_back(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    arm.add_scale_set("pool", 4)
    arm.core.operation_seconds = 60
    pollers = [
        client.virtual_machine_scale_sets.begin_delete_instances(GROUP, "pool", {"instanceIds": ids})
        for ids in (["1"], ["3"])
    ]
    assert client.virtual_machine_scale_sets.get(GROUP, "pool").sku.capacity == 2
    assert pool(client) == {"0": "Succeeded", "1": "Deleting", "2": "Succeeded", "3": "Deleting"}
    arm.core.clock.advance(60)
    for poller in pollers:
        poller.result()
    arm.core.operation_seconds = 0
    set_capacity(client, 3).result()
    assert list(pool(client)) == ["0", "2", "4"]
    with pytest.raises(HttpResponseError, match="not an active") as caught:
        client.virtual_machine_scale_sets.begin_delete_instances(GROUP, "pool", {"instanceIds": ["1"]})
    assert code_of(caught.value) == (400, "InvalidParameter")
    with pytest.raises(ResourceNotFoundError) as caught:
        client.virtual_machine_scale_set_vms.get(GROUP, "pool", "1")
    assert code_of(caught.value) == (404, "NotFound")


def test_instances_have_power_and_disks_of_their_own(arm: LocalArm, client: ComputeManagementClient) -> None:
    disk = arm.add_disk("d")
    arm.add_scale_set("pool", 2)
    vms = client.virtual_machine_scale_set_vms
    body = {"dataDisksToAttach": [{"diskId": disk, "lun": 0}]}
    assert vms.begin_attach_detach_data_disks(GROUP, "pool", "1", body).result().data_disks[0].name == "d"
    assert client.disks.get(GROUP, "d").managed_by.endswith("virtualMachineScaleSets/pool/virtualMachines/1")
    arm.core.operation_seconds = 60
    detach = {"dataDisksToDetach": [{"diskId": disk}]}
    vms.begin_attach_detach_data_disks(GROUP, "pool", "1", detach)
    with pytest.raises(ResourceExistsError) as caught:
        vms.begin_attach_detach_data_disks(GROUP, "pool", "1", detach)
    assert code_of(caught.value) == (409, "Conflict")
    arm.core.clock.advance(60)
    vms.begin_power_off(GROUP, "pool", "1", skip_shutdown=True)
    arm.core.clock.advance(60)
    codes = [status.code for status in vms.get_instance_view(GROUP, "pool", "1").statuses]
    assert codes == ["ProvisioningState/succeeded", "PowerState/stopped"]
    machine = vms.get(GROUP, "pool", "1")
    machine.storage_profile.data_disks = [
        m.DataDisk(lun=4, create_option="Attach", managed_disk=m.ManagedDiskParameters(id=disk))
    ]
    vms.begin_update(GROUP, "pool", "1", machine)
    arm.core.clock.advance(60)
    assert vms.get(GROUP, "pool", "1").storage_profile.data_disks[0].lun == 4


def test_instances_of_a_flexible_set_are_machines(arm: LocalArm, client: ComputeManagementClient) -> None:
    flex = arm.add_scale_set("flex", 3, flexible=True)
    machines = list(client.virtual_machines.list(GROUP, filter=f"'virtualMachineScaleSet/id' eq '{flex}'"))
    assert [vm.virtual_machine_scale_set.id for vm in machines] == [flex] * 3
    shown = list(client.virtual_machine_scale_set_vms.list(GROUP, "flex"))
    assert {vm.instance_id for vm in shown} == {vm.name for vm in machines}
    client.virtual_machines.begin_delete(GROUP, machines[0].name).result()
    assert client.virtual_machine_scale_sets.get(GROUP, "flex").sku.capacity == 2
    assert len(pool(client, "flex")) == 2


def test_a_new_model_is_applied_by_an_upgrade(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.add_scale_set("pool", 2)
    patch = {"properties": {"virtualMachineProfile": {"userData": "bmV3"}}}
    client.virtual_machine_scale_sets.begin_update(GROUP, "pool", patch).result()
    client.virtual_machine_scale_sets.begin_update_instances(GROUP, "pool", {"instanceIds": ["1"]}).result()
    found = client.virtual_machine_scale_set_vms.list(GROUP, "pool")
    assert [vm.latest_model_applied for vm in found] == [False, True]


def test_a_protected_instance_is_not_scaled_in(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.add_scale_set("pool", 3)
    protected = {"location": "westeurope", "properties": {"protectionPolicy": {"protectFromScaleIn": True}}}
    client.virtual_machine_scale_set_vms.begin_update(GROUP, "pool", "2", protected).result()
    set_capacity(client, 1).result()
    assert list(pool(client)) == ["2"]


# --- what can be had ---


def test_quota_refuses_at_once_and_names_its_figures(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.capacity.quota["standardDSv5Family"] = 10
    arm.add_scale_set("pool", 2)
    used = {usage.name.value: (usage.current_value, usage.limit) for usage in client.usage.list("westeurope")}
    assert used["standardDSv5Family"] == (8, 10)
    assert used["cores"][0] == 8
    with pytest.raises(
        ResourceExistsError, match="Current Limit: 10, Current Usage: 8, Additional Required: 4"
    ) as c:
        set_capacity(client, 3)
    assert code_of(c.value) == (409, "OperationNotAllowed")
    assert client.virtual_machine_scale_sets.get(GROUP, "pool").sku.capacity == 2
    with pytest.raises(ResourceExistsError):
        client.virtual_machines.begin_create_or_update(GROUP, "a", new_vm())
    client.virtual_machines.begin_create_or_update(GROUP, "b", new_vm("Standard_E4s_v5")).result()


def test_spot_has_its_own_quota(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.capacity.quota |= {"lowPriorityCores": 4, "cores": 0}
    arm.add_vm("a", priority="Spot")
    with pytest.raises(ResourceExistsError, match="lowPriorityCores"):
        client.virtual_machines.begin_create_or_update(GROUP, "b", _spot())


def _spot() -> m.VirtualMachine:
    wanted = new_vm()
    wanted.priority = "Spot"
    return wanted


def test_an_allocation_may_fail_after_it_was_accepted(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.capacity.shortages.append(Shortage(code="ZonalAllocationFailed", zone="1"))
    poller = client.virtual_machines.begin_create_or_update(GROUP, "a", new_vm(zones=["1"]))
    with pytest.raises(HttpResponseError, match="ZonalAllocationFailed"):
        poller.result()
    failed = client.virtual_machines.get(GROUP, "a", expand="instanceView")
    assert failed.provisioning_state == "Failed"
    assert [s.code for s in failed.instance_view.statuses] == [
        "ProvisioningState/failed/ZonalAllocationFailed"
    ]
    client.virtual_machines.begin_create_or_update(GROUP, "b", new_vm(zones=["2"])).result()


def test_a_size_may_be_unavailable_at_once(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.capacity.shortages.append(Shortage(code="SkuNotAvailable", size="Standard_D4s_v5"))
    with pytest.raises(ResourceExistsError) as caught:
        client.virtual_machines.begin_create_or_update(GROUP, "a", new_vm())
    assert code_of(caught.value) == (409, "SkuNotAvailable")
    arm.capacity.size("Standard_E4s_v5").restricted_zones = ["1"]
    with pytest.raises(ResourceExistsError) as caught:
        client.virtual_machines.begin_create_or_update(GROUP, "a", new_vm("Standard_E4s_v5", zones=["1"]))
    assert code_of(caught.value) == (409, "SkuNotAvailable")
    sku = next(s for s in client.resource_skus.list() if s.name == "Standard_E4s_v5")
    assert (sku.restrictions[0].restriction_info.zones, sku.restrictions[0].reason_code) == (
        ["1"],
        "NotAvailableForSubscription",
    )
    assert {c.name: c.value for c in sku.capabilities}["vCPUs"] == "4"


def test_a_set_gets_what_is_left_and_its_operation_fails(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    arm.add_scale_set("pool", 1)
    arm.capacity.shortages.append(Shortage(code="AllocationFailed", left=2))
    with pytest.raises(HttpResponseError, match="AllocationFailed"):
        set_capacity(client, 5).result()
    assert list(pool(client).values()) == ["Succeeded"] * 3 + ["Failed"] * 2
    found = client.virtual_machine_scale_sets.get(GROUP, "pool")
    assert (found.sku.capacity, found.provisioning_state) == (5, "Failed")
    failed = [key for key, state in pool(client).items() if state == "Failed"]
    client.virtual_machine_scale_sets.begin_delete_instances(GROUP, "pool", {"instanceIds": failed}).result()
    assert client.virtual_machine_scale_sets.get(GROUP, "pool").sku.capacity == 3


def test_a_set_turns_to_another_zone_unless_it_must_stay_balanced(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    arm.capacity.shortages.append(Shortage(code="ZonalAllocationFailed", zone="1"))
    arm.add_scale_set("pool", 4, zones=["1", "2"])
    assert {vm.zones[0] for vm in client.virtual_machine_scale_set_vms.list(GROUP, "pool")} == {"2"}
    arm.add_scale_set("strict", 2, zones=["1", "2"], zoneBalance=True)
    assert sorted(pool(client, "strict").values()) == ["Failed", "Succeeded"]


# --- the core, where compute needs it ---


def test_reads_may_lag_behind_writes(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.add_scale_set("pool", 1)
    arm.core.clock.advance(60)
    set_capacity(client, 4).result()
    arm.core.read_stale(30, "virtualMachineScaleSets/pool")
    assert client.virtual_machine_scale_sets.get(GROUP, "pool").sku.capacity == 1
    assert len(pool(client)) == 1
    arm.core.clock.advance(31)
    assert client.virtual_machine_scale_sets.get(GROUP, "pool").sku.capacity == 4
    client.virtual_machine_scale_sets.begin_delete(GROUP, "pool").result()
    assert client.virtual_machine_scale_sets.get(GROUP, "pool").sku.capacity == 4
    arm.core.clock.advance(31)
    with pytest.raises(ResourceNotFoundError):
        client.virtual_machine_scale_sets.get(GROUP, "pool")


def test_a_write_is_never_stale(arm: LocalArm, client: ComputeManagementClient) -> None:
    disk = arm.add_disk("d")
    arm.add_vm("a")
    arm.core.clock.advance(60)
    arm.core.lag_seconds = 30
    attach(client, "a", disk, 0).result()
    assert client.disks.get(GROUP, "d").managed_by is None
    arm.core.do(
        "POST", arm.id_of(VM, "a"), {"dataDisksToDetach": [{"diskId": disk}]}, "attachDetachDataDisks"
    )


def test_the_machine_changes_between_a_read_and_a_write(
    arm: LocalArm, client: ComputeManagementClient
) -> None:
    disk = arm.add_disk("d")
    vm = arm.add_vm("a", disks=[disk])
    arm.changing(lambda: arm.replace_vm(vm), "GET", "virtualMachines/a", after=True)
    seen = client.virtual_machines.get(GROUP, "a")
    with pytest.raises(HttpResponseError, match="not attached"):
        detach(client, "a", disk)
    assert client.virtual_machines.get(GROUP, "a").vm_id != seen.vm_id


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (Ending(status="Canceled", code="OperationPreempted"), "OperationPreempted"),
        (Ending(status="Canceled", code=None), "Canceled"),
        (Ending(code="InternalExecutionError"), "InternalExecutionError"),
    ],
    ids=["preempted", "cancelled without a code", "failed"],
)
def test_an_operation_ends_badly_although_every_answer_is_200(
    arm: LocalArm, client: ComputeManagementClient, ending: Ending, message: str
) -> None:
    arm.add_vm("a")
    arm.core.endings.append(Ending(**{**vars(ending), "on": "virtualMachines/deallocate"}))
    with pytest.raises(HttpResponseError, match=message):
        client.virtual_machines.begin_deallocate(GROUP, "a").result()
    assert {request.status for request in arm.recorder.of("GET", "/operations/")} == {200}
    assert power_of(client, "a") == "running"


def test_running_operations_have_several_names(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.add_vm("a")
    arm.core.operation_seconds, arm.core.running_words = 20, ("Accepted", "Running")
    poller = client.virtual_machines.begin_deallocate(GROUP, "a", polling=False)
    url = poller._polling_method._initial_response.http_response.headers["Azure-AsyncOperation"]
    words = []
    for _ in range(3):
        words.append(client._client.send_request(_get(url)).json()["status"])
        arm.core.clock.advance(10)
    assert words == ["Accepted", "Running", "Succeeded"]


def _get(url: str):
    from azure.core.rest import HttpRequest

    return HttpRequest("GET", url)


def test_costly_lists_have_a_limit_of_their_own(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.add_scale_set("pool", 1)
    pool(client)
    assert "HighCostGetVMScaleSet3Min;188" in _remaining(client)
    arm.core.throttle(120, "GET", "virtualMachineScaleSets/pool/virtualMachines")
    with pytest.raises(HttpResponseError) as caught:
        pool(client)
    assert (caught.value.status_code, caught.value.response.headers["Retry-After"]) == (429, "120")
    arm.core.clock.advance(120)
    pool(client)


def _remaining(client: ComputeManagementClient) -> str:
    seen: list[str] = []
    listed = client.virtual_machine_scale_set_vms.list(
        GROUP,
        "pool",
        raw_response_hook=lambda r: seen.append(r.http_response.headers["x-ms-ratelimit-remaining-resource"]),
    )
    list(listed)
    return seen[0]


def test_every_answer_says_how_many_calls_are_left(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.add_vm("a")
    left = []
    for _ in range(2):
        client.virtual_machines.get(
            GROUP,
            "a",
            raw_response_hook=lambda r: left.append(
                int(r.http_response.headers["x-ms-ratelimit-remaining-subscription-reads"])
            ),
        )
    assert left[1] == left[0] - 1


def test_latencies_are_the_same_in_every_run(arm: LocalArm) -> None:
    table = Latencies({"deallocate": 40.0, "virtualMachines/deallocate": 60.0}, seed=7)
    drawn = [table.draw("Microsoft.Compute/virtualMachines/deallocate", str(n)) for n in range(200)]
    assert drawn == [table.draw("Microsoft.Compute/virtualMachines/deallocate", str(n)) for n in range(200)]
    assert 50 < sorted(drawn)[100] < 70
    assert table.draw("Microsoft.Compute/disks/put", "1") == 0


def test_lists_of_instances_come_in_pages(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.add_scale_set("pool", 7)
    arm.core.page_size = 3
    listed = client.virtual_machine_scale_set_vms.list(GROUP, "pool", expand="instanceView")
    pages = [list(page) for page in listed.by_page()]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert all(vm.instance_view for page in pages for vm in page)


def test_time_moves_hidden_truth_without_any_request(arm: LocalArm, client: ComputeManagementClient) -> None:
    vm = arm.add_vm("a")
    arm.core.operation_seconds = 25
    client.virtual_machines.begin_power_off(GROUP, "a")
    seen = []
    arm.core.clock.at(arm.core.clock.now(), lambda: None)
    for _ in range(3):
        arm.core.clock.advance(10)
        seen.append(arm.core.state.truth.is_running(vm))
    assert seen == [True, True, False]


def test_time_may_move_while_requests_are_worked_on(arm: LocalArm, client: ComputeManagementClient) -> None:
    vm = arm.add_vm("a")
    arm.core.operation_seconds = 5

    def calls() -> None:
        for _ in range(25):
            client.virtual_machines.begin_restart(GROUP, "a", polling=False)

    caller = Thread(target=calls, daemon=True)
    caller.start()
    while caller.is_alive():
        arm.core.clock.advance(1)
    arm.core.clock.advance(5)
    assert client.virtual_machines.get(GROUP, "a").provisioning_state == "Succeeded"
    assert arm.truth.machine(vm).boots > 1


def test_a_lost_answer_does_not_lose_the_work(arm: LocalArm, client: ComputeManagementClient) -> None:
    vm = arm.add_vm("a")
    arm.fault(Fault(on("POST", "powerOff"), lose_answer=True))
    with pytest.raises(Exception, match=r"Connection|aborted|closed"):
        client.virtual_machines.begin_power_off(GROUP, "a")
    assert not arm.truth.is_running(vm)


def test_the_whole_world_can_be_saved_and_loaded(arm: LocalArm, client: ComputeManagementClient) -> None:
    disk = arm.add_disk("d")
    vm = arm.add_vm("a", disks=[disk])
    arm.truth.mount(vm, disk, 0)
    arm.capacity.quota["cores"] = 99
    arm.core.operation_seconds = 60
    detach(client, "a", disk)
    saved = arm.dump()
    arm.reset()
    arm.load(saved)
    assert (arm.dump(), arm.capacity.quota, arm.truth.mounted_on(disk)) == (
        saved,
        {"cores": 99},
        [vm.lower()],
    )
    arm.core.clock.advance(60)
    assert client.disks.get(GROUP, "d").managed_by is None
    assert len(arm.corruptions) == 1


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_disks_and_machines_agree_in_the_end(seed: int) -> None:
    """Random writes, power changes, deletions and failures, overlapping in time."""
    random = Random(seed)
    arm = LocalArm(Clock(datetime(2026, 11, 23, tzinfo=UTC)))
    arm.core.latencies = replace(QUOTED, seed=seed)
    arm.core.settings["disk_linger_seconds"] = 42
    disks = [arm.add_disk(f"d{number}", shares=2 if number == 0 else 1) for number in range(5)]
    machines = [arm.add_vm(f"m{number}") for number in range(3)]
    scale_set = arm.add_scale_set("pool", 2)
    machines += [f"{scale_set}/virtualMachines/{number}" for number in range(2)]
    refused = done = 0
    for _ in range(400):
        machine, disk = random.choice(machines), random.choice(disks)
        force = {"detachOption": "ForceDetach"} if random.random() < 0.3 else {}
        attach = {"dataDisksToAttach": [{"diskId": disk, "lun": random.randrange(3)}]}
        detach = {"dataDisksToDetach": [{"diskId": disk, **force}]}
        action, body = random.choice(
            [("attachDetachDataDisks", attach), ("attachDetachDataDisks", detach)] * 3
            + [("powerOff", None), ("deallocate", None), ("start", None), ("reapply", None)]
        )
        if random.random() < 0.1:
            status = random.choice(["Failed", "Canceled"])
            arm.core.endings.append(Ending(status=status, applied=random.random() < 0.5))
        try:
            if random.random() < 0.03 and "scaleSets" not in machine:
                arm.replace_vm(machine)
            else:
                arm.core.do("POST", machine, body, action, at_once=False)
            done += 1
        except ArmError as error:
            assert error.code in EXPECTED, error
            refused += 1
        arm.core.clock.advance(random.choice([0, 0, 5, 30, 120]))
    arm.core.clock.advance(10_000)
    arm.core.endings.clear()
    for machine in machines:
        arm.core.do("POST", machine, None, "reapply")
    arm.core.clock.advance(10_000)
    state = arm.core.state
    owned = {(d, owner) for d in disks for owner in owners_of(state.resources[d.lower()])}
    listed = {(disk_id_of(e), m) for m in machines for e in data_disks(state.resources[m.lower()])}
    assert owned == listed
    assert listed
    assert [claims_on(state.resources[d.lower()]) for d in disks] == [
        [owner.lower() for owner in owners_of(state.resources[d.lower()])] for d in disks
    ]
    assert done > 100
    assert refused > 20
    assert not [work for work in state.operations.values() if work.running]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_a_set_settles(seed: int) -> None:
    """Random capacities, deletions, shortages and failures, overlapping in time."""
    random = Random(seed)
    arm = LocalArm(Clock(datetime(2026, 11, 23, tzinfo=UTC)))
    arm.core.latencies = replace(QUOTED, seed=seed)
    scale_set = arm.add_scale_set("pool", 3, zones=["1", "2", "3"])
    arm.capacity.quota["cores"] = 4 * 20
    state = arm.core.state
    for _ in range(150):
        there = [vm.body["instanceId"] for vm in members(state, state.resources[scale_set.lower()])]
        if random.random() < 0.1:
            arm.capacity.shortages.append(Shortage(code="ZonalAllocationFailed", zone="1", times=2))
        if random.random() < 0.1:
            arm.core.endings.append(Ending(status=random.choice(["Failed", "Canceled"])))
        try:
            if there and random.random() < 0.4:
                chosen = random.sample(there, min(2, len(there)))
                arm.core.do("POST", scale_set, {"instanceIds": chosen}, "delete", at_once=False)
            else:
                sku = {"sku": {"capacity": random.randrange(25)}}
                arm.core.do("PATCH", scale_set, sku, at_once=False)
        except ArmError as error:
            assert error.code == "OperationNotAllowed", error
        arm.core.clock.advance(random.choice([0, 0, 30, 200]))
    arm.core.clock.advance(10_000)
    arm.core.endings.clear()
    arm.capacity.shortages.clear()
    failed = [
        vm.body["instanceId"]
        for vm in members(state, state.resources[scale_set.lower()])
        if vm.body["properties"]["provisioningState"] == "Failed"
    ]
    if failed:
        arm.core.do("POST", scale_set, {"instanceIds": failed}, "delete")
    arm.core.do("PATCH", scale_set, {"sku": {"capacity": 7}})
    there = members(state, state.resources[scale_set.lower()])
    assert [vm.body["properties"]["provisioningState"] for vm in there] == ["Succeeded"] * 7
    assert {vm.hidden["power"] for vm in there} == {"running"}
    assert {m.id for m in arm.truth.machines.values() if m.running} == {vm.id.lower() for vm in there}
    assert len(list(state.of_type("Microsoft.Compute/disks"))) == 7


EXPECTED = {
    "AttachDiskWhileBeingDetached",
    "ConflictingUserInput",
    "Conflict",
    "InvalidParameter",
    "OperationNotAllowed",
}


def test_old_versions_of_the_api_are_refused(arm: LocalArm, client: ComputeManagementClient) -> None:
    with pytest.raises(HttpResponseError) as caught:
        client.virtual_machines.get(GROUP, "a", api_version="2019-07-01")
    assert code_of(caught.value) == (400, "NoRegisteredProviderFound")


def test_all_resources_are_listed_together(arm: LocalArm, client: ComputeManagementClient) -> None:
    arm.add_vm("a", disks=[arm.add_disk("d", owner="x")])
    arm.add_scale_set("pool", 2)
    arm.add_storage_account("backups")

    def listed(path: str, query: str = "") -> list[dict]:
        url = f"{arm.url}/subscriptions/{arm.subscription}{path}/resources?api-version=2021-04-01{query}"
        return client._client.send_request(_get(url)).json()["value"]

    kinds = {(r["type"], r["name"]) for r in listed("")}
    assert {
        ("Microsoft.Compute/virtualMachines", "a"),
        ("Microsoft.Compute/disks", "d"),
        ("Microsoft.Compute/virtualMachineScaleSets", "pool"),
        ("Microsoft.Storage/storageAccounts", "backups"),
    } <= kinds
    assert all(r["location"] == "westeurope" for r in listed(f"/resourceGroups/{GROUP}"))
    disks = "&$filter=resourceType eq 'Microsoft.Compute/disks'"
    assert {r["type"] for r in listed("", disks)} == {"Microsoft.Compute/disks"}
    assert [r["name"] for r in listed("", "&$filter=tagName eq 'owner' and tagValue eq 'x'")] == ["d"]
    assert next(r for r in listed("", disks) if r["name"] == "d")["managedBy"].endswith("/a")

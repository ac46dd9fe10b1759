"""From raw API objects to facts of three kinds, and through a file to the same plan."""

from __future__ import annotations

import json
from typing import Any

import pytest
from disk_builders import disk, vm

from shared.disk_release.cases import needs
from shared.disk_release.decide import decide
from shared.disk_release.observation import Known, Observation, load, save
from shared.errors import MessageError
from shared.model.disk import Readiness
from shared.model.plan import ActionKind, canonical_json

T0 = "2026-11-23T10:00:00Z"
BEFORE = "2026-11-23T09:50:00Z"


def node(name: str, ready: str = "True", renewed: str = "2026-11-23T09:59:55Z") -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "labels": {"agentpool": "p"},
        },
        "spec": {"providerID": f"azure://{vm(name)}"},
        "status": {
            "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": BEFORE, "lastHeartbeatTime": renewed}
            ]
        },
    }


def snapshot(**changes: Any) -> dict[str, Any]:
    """A dead node whose VM runs, as the APIs say it."""
    machine = {
        "properties": {
            "vmId": "0a1b",
            "provisioningState": "Succeeded",
            "storageProfile": {"osDisk": {}, "dataDisks": [{"lun": 0, "managedDisk": {"id": disk("d1")}}]},
        }
    }
    view = {"statuses": [{"code": "ProvisioningState/succeeded"}, {"code": "PowerState/running"}]}
    document: dict[str, Any] = {
        "kubekeeper": "snapshot/v1",
        "automation": "disk-release",
        "now": T0,
        "cluster": {"name": "prod", "diskRelease": {"fence": "allowed"}},
        "kubernetes": {
            "nodes": {"items": [node("a", "Unknown", BEFORE), node("b"), node("c")]},
            "leases": {
                "items": [
                    {
                        "metadata": {"name": "a", "namespace": "kube-node-lease"},
                        "spec": {"renewTime": "2026-11-23T09:49:00.000000Z"},
                    }
                ]
            },
            "pods": {
                "items": [
                    {
                        "metadata": {"name": "db-0", "namespace": "data", "uid": "p"},
                        "spec": {
                            "nodeName": "a",
                            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}],
                        },
                        "status": {"phase": "Running"},
                    }
                ]
            },
            "persistentvolumes": {
                "items": [
                    {
                        "metadata": {"name": "pv"},
                        "spec": {"csi": {"driver": "disk.csi.azure.com", "volumeHandle": disk("D1").upper()}},
                    }
                ]
            },
            "persistentvolumeclaims": {
                "items": [{"metadata": {"name": "c", "namespace": "data"}, "spec": {"volumeName": "pv"}}]
            },
            "volumeattachments": {
                "items": [
                    {
                        "metadata": {"name": "va", "uid": "u"},
                        "spec": {
                            "attacher": "disk.csi.azure.com",
                            "nodeName": "a",
                            "source": {"persistentVolumeName": "pv"},
                        },
                        "status": {"attached": True},
                    }
                ]
            },
        },
        "azure": [
            {"id": vm("a"), "status": 200, "readAt": T0, "body": machine},
            {"id": vm("a") + "/instanceView", "status": 200, "readAt": T0, "body": view},
            {
                "id": disk("d1"),
                "status": 200,
                "readAt": T0,
                "body": {"managedBy": vm("a"), "properties": {"diskState": "Attached", "uniqueId": "x"}},
            },
        ],
    }
    return document | changes


def read(document: dict[str, Any]) -> Observation:
    return load(canonical_json(document), "snapshot.json")


def with_azure(status: int, code: str = "", number: int = 0) -> dict[str, Any]:
    document = snapshot()
    document["azure"][number] |= {"status": status, "code": code}
    if status != 200:
        document["azure"][number].pop("body", None)
    return document


def test_a_dead_node_from_raw_objects_is_fenced() -> None:
    observation = read(snapshot())
    plan = decide(observation, observation.policy, observation.now)

    assert [(a.kind, a.target) for a in plan.actions] == [(ActionKind.POWER_OFF_VM, vm("a"))]


def test_deciding_from_the_file_gives_the_same_plan_byte_for_byte() -> None:
    first = read(snapshot())
    second = load(save(first), "again.json")

    assert save(first) == save(second)
    assert canonical_json(decide(first, first.policy, first.now).document()) == canonical_json(
        decide(second, second.policy, second.now).document()
    )


def test_an_instance_view_may_stand_in_the_body() -> None:
    document = snapshot()
    view = document["azure"].pop(1)["body"]
    document["azure"][0]["body"]["properties"]["instanceView"] = view

    assert read(document).machine(vm("a")).value.power == "running"


@pytest.mark.parametrize(
    ("status", "code", "state"),
    [
        (404, "ResourceNotFound", Known.ABSENT),
        (404, "NotFound", Known.ABSENT),
        (404, "ResourceGroupNotFound", Known.UNKNOWN),
        (404, "ParentResourceNotFound", Known.UNKNOWN),
        (404, "SubscriptionNotFound", Known.UNKNOWN),
        (404, "", Known.UNKNOWN),
        (400, "InvalidParameter", Known.UNKNOWN),
        (401, "InvalidAuthenticationToken", Known.UNKNOWN),
        (403, "AuthorizationFailed", Known.UNKNOWN),
        (409, "Conflict", Known.UNKNOWN),
        (429, "TooManyRequests", Known.UNKNOWN),
        (500, "InternalServerError", Known.UNKNOWN),
        (503, "", Known.UNKNOWN),
        (0, "", Known.UNKNOWN),
    ],
)
@pytest.mark.parametrize("number", [0, 2])
def test_only_a_404_of_a_known_code_means_absent(status: int, code: str, state: Known, number: int) -> None:
    observation = read(with_azure(status, code, number))
    fact = observation.machine(vm("a")) if number == 0 else observation.disk(disk("d1"))

    assert fact.state is state
    assert decide(observation, observation.policy, observation.now).actions == ()


@pytest.mark.parametrize(
    ("status", "code"), [(404, "ResourceNotFound"), (403, "AuthorizationFailed"), (503, "")]
)
def test_a_vm_whose_instance_view_is_not_known_is_not_known(status: int, code: str) -> None:
    observation = read(with_azure(status, code, 1))

    assert observation.machine(vm("a")).is_unknown
    assert decide(observation, observation.policy, observation.now).actions == ()


def test_what_was_never_read_is_unknown() -> None:
    assert read(snapshot(azure=[])).machine(vm("a")).is_unknown


def test_the_lease_counts_before_the_heartbeat() -> None:
    assert read(snapshot()).nodes["a"].renewed_at.minute == 49
    assert read(snapshot()).nodes["a"].ready is Readiness.UNKNOWN


def test_lists_that_are_absent_are_empty() -> None:
    observation = read(snapshot(kubernetes={}, azure=[]))

    assert decide(observation, observation.policy, observation.now).left_alone == ()


@pytest.mark.parametrize(
    "break_it",
    [
        lambda d: d["kubernetes"]["nodes"]["items"].append("x"),
        lambda d: d["kubernetes"]["nodes"]["items"].append({"metadata": {}}),
        lambda d: d["kubernetes"]["nodes"]["items"][0]["status"]["conditions"].insert(0, "x"),
        lambda d: d["kubernetes"]["nodes"]["items"][0]["status"]["conditions"][0].update(status="Maybe"),
        lambda d: d["kubernetes"]["volumeattachments"]["items"][0].pop("spec"),
        lambda d: d["kubernetes"]["leases"]["items"][0]["spec"].update(renewTime="yesterday"),
        lambda d: d["azure"][0]["body"].update(properties="x"),
        lambda d: d["azure"][2]["body"]["properties"].update(maxShares="many"),
        lambda d: d["cluster"]["diskRelease"].update(fence="sometimes"),
        lambda d: d["cluster"]["diskRelease"].update(unknown=1),
        lambda d: d.update(state={"epoch": "x"}),
        lambda d: d.update(automation="autoscaling"),
        lambda d: d["cluster"].pop("name"),
    ],
)
def test_a_broken_snapshot_is_refused_in_one_line(break_it: Any) -> None:
    document = json.loads(canonical_json(snapshot()))
    break_it(document)

    with pytest.raises(MessageError, match=r"snapshot\.json") as caught:
        read(document)

    assert "\n" not in str(caught.value)


def test_nothing_stuck_needs_no_read_of_azure() -> None:
    document = snapshot(azure=[])
    document["kubernetes"]["nodes"]["items"][0] = node("a")
    document["kubernetes"]["leases"] = {"items": []}
    observation = read(document)

    wanted = needs(observation, observation.policy, observation.now)

    assert (wanted.machines, wanted.disks) == ((), ())


def test_a_dead_node_needs_its_vm_and_its_disk() -> None:
    observation = read(snapshot(azure=[]))

    wanted = needs(observation, observation.policy, observation.now)

    assert wanted.machines == (vm("a"),)
    assert [d.lower() for d in wanted.disks] == [disk("d1").lower()]

"""Deciding about the disks of a large cluster: 1,000 nodes with five disks each, from raw objects to a plan.

CPU seconds of one thread, medians of several rounds, since the machine may be busy. The single reads of Azure
that a look asks for are counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from bench.figure import Figure, at_most, fewer
from shared.disk_release.cases import needs
from shared.disk_release.decide import decide
from shared.disk_release.observation import AUTOMATION, Observation, read
from shared.disk_release.proof import prove, read_certificate, verify
from shared.model.snapshot import AzureReading, Snapshot

GROUP = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/nodes/providers/Microsoft.Compute"
NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
HEARD, LONG_AGO = "2026-11-23T09:59:55Z", "2026-11-23T09:50:00Z"
NODES, DISKS, ROUNDS = 1_000, 5, 5
Emit = Callable[[Figure], None]
Document = dict[str, Any]


def run(wants: Callable[[str], bool], emit: Emit) -> None:
    """Every figure of the disk release that is wanted."""
    for name, measure in FIGURES.items():
        if wants(name):
            emit(measure())


def _quiet() -> Figure:
    snapshot = cluster()
    seconds = _timed(lambda: _decide(read(snapshot)))
    return at_most("disk-release-sweep", seconds, "s", 3.0, note="1,000 nodes, 5,000 disks, nothing stuck")


def _reads() -> Figure:
    """Single reads of machines and disks that one dead node asks for; none while nothing is stuck."""
    assert _wanted(cluster()) == 0
    note = "one dead node of 1,000; 0 while nothing is stuck; its disks stand in one list"
    return fewer(
        "disk-release-reads",
        _wanted(cluster("node-7")),
        "reads",
        "a read of each VM",
        NODES,
        at_least=300,
        note=note,
    )


def _wanted(snapshot: Snapshot) -> int:
    observation = read(snapshot)
    wanted = needs(observation, observation.policy, NOW)
    return len(wanted.machines) + len(wanted.disks)


def _dead() -> Figure:
    """From the snapshot to a plan with its rules asked: what stands between a look and the fence."""
    snapshot = cluster(dead="node-7")
    seconds = _timed(lambda: _decide(read(snapshot), actions=1))
    return at_most("disk-release-decision", seconds, "s", 3.0, note="one dead node of 1,000")


def _certificate() -> Figure:
    observation = read(cluster(dead="node-7"))
    action = decide(observation, observation.policy, NOW).actions[0]

    def certify() -> None:
        assert verify(read_certificate(prove(action, observation, observation.policy, NOW))).is_sound

    return at_most("disk-release-certificate", _timed(certify), "s", 0.2, note="made, read and checked again")


FIGURES: dict[str, Callable[[], Figure]] = {
    "disk-release-sweep": _quiet,
    "disk-release-reads": _reads,
    "disk-release-decision": _dead,
    "disk-release-certificate": _certificate,
}


def _timed(work: Callable[[], None]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return statistics.median(seconds)


def _decide(observation: Observation, actions: int = 0) -> None:
    plan = decide(observation, observation.policy, NOW)
    assert len(plan.actions) == actions, plan.left_alone[:3]


def cluster(dead: str = "") -> Snapshot:
    """All well, or one node dead while its VM runs."""
    names = [f"node-{number}" for number in range(NODES)]
    pairs = [(name, f"{name}-disk-{number}") for name in names for number in range(DISKS)]
    return Snapshot(
        automation=AUTOMATION,
        now=NOW,
        cluster={"name": "large", "diskRelease": {"fence": "allowed"}},
        kubernetes={
            "nodes": {"items": [_node(name, is_dead=name == dead) for name in names]},
            "pods": {"items": [_pod(node, disk) for node, disk in pairs]},
            "persistentvolumes": {"items": [_volume(disk) for _, disk in pairs]},
            "persistentvolumeclaims": {"items": [_claim(disk) for _, disk in pairs]},
            "volumeattachments": {"items": [_attachment(node, disk) for node, disk in pairs]},
        },
        azure=(
            AzureReading(
                id=f"{GROUP}/disks",
                status=200,
                read_at=NOW,
                body={"value": [_disk(node, disk) for node, disk in pairs]},
            ),
            *((_machine(dead),) if dead else ()),
        ),
    )


def _node(name: str, *, is_dead: bool) -> Document:
    heard = LONG_AGO if is_dead else HEARD
    ready = {"type": "Ready", "status": "Unknown" if is_dead else "True"}
    return {
        "metadata": {"name": name, "uid": name, "labels": {"agentpool": "agents"}},
        "spec": {"providerID": f"azure://{GROUP}/virtualMachines/{name}"},
        "status": {"conditions": [ready | {"lastTransitionTime": LONG_AGO, "lastHeartbeatTime": heard}]},
    }


def _pod(node: str, disk: str) -> Document:
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": disk}}
    return {
        "metadata": {"name": disk, "namespace": "data", "uid": disk},
        "spec": {"nodeName": node, "volumes": [claim]},
        "status": {"phase": "Running"},
    }


def _volume(disk: str) -> Document:
    csi = {"driver": "disk.csi.azure.com", "volumeHandle": f"{GROUP}/disks/{disk}"}
    return {"metadata": {"name": f"pv-{disk}"}, "spec": {"csi": csi}, "status": {"phase": "Bound"}}


def _claim(disk: str) -> Document:
    return {
        "metadata": {"name": disk, "namespace": "data"},
        "spec": {"volumeName": f"pv-{disk}"},
        "status": {"phase": "Bound"},
    }


def _attachment(node: str, disk: str) -> Document:
    source = {"persistentVolumeName": f"pv-{disk}"}
    return {
        "metadata": {"name": f"va-{disk}", "uid": disk, "creationTimestamp": LONG_AGO},
        "spec": {"attacher": "disk.csi.azure.com", "nodeName": node, "source": source},
        "status": {"attached": True},
    }


def _disk(node: str, disk: str) -> Document:
    properties = {"diskState": "Attached", "uniqueId": disk, "LastOwnershipUpdateTime": LONG_AGO}
    owner = f"{GROUP}/virtualMachines/{node}"
    return {"id": f"{GROUP}/disks/{disk}", "managedBy": owner, "properties": properties}


def _machine(node: str) -> AzureReading:
    disks = [
        {"lun": number, "managedDisk": {"id": f"{GROUP}/disks/{node}-disk-{number}"}}
        for number in range(DISKS)
    ]
    properties = {
        "vmId": node,
        "provisioningState": "Succeeded",
        "storageProfile": {"dataDisks": disks},
        "instanceView": {"statuses": [{"code": "PowerState/running"}]},
    }
    return AzureReading(
        id=f"{GROUP}/virtualMachines/{node}", status=200, read_at=NOW, body={"properties": properties}
    )

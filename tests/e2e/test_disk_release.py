"""Disk release on the real control plane, under its role and no more: the real attach/detach controller, pod
GC, taint eviction, StatefulSet controller and scheduler take part.

Machines and disks are the local Azure's, kubelets and the disk driver are played (sandbox.fleet, node_agent,
disk_driver, attacher), storage is Azurite. Periods of the control plane are shortened where its flags allow
that; pod GC's 20 s and its 40 s of quarantine are what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from live_cluster import App, LiveCluster

from sandbox.attacher import Attacher
from sandbox.controlplane import AssetsMissingError, ControlPlane, find_assets
from sandbox.disk_driver import DRIVER, DiskDriver, lun_of, waiting
from sandbox.fleet import Pool
from sandbox.kube_client import Document, KubeError
from sandbox.witness import PLURALS, Witness, WitnessedClients

try:
    find_assets()
except AssetsMissingError as missing:
    pytestmark = [pytest.mark.e2e, pytest.mark.azurite, pytest.mark.skip(reason=str(missing))]
else:
    pytestmark = [pytest.mark.e2e, pytest.mark.azurite]

GRACE = timedelta(seconds=8)
ATTACHMENTS = "/apis/storage.k8s.io/v1/volumeattachments"


class Live(LiveCluster):
    """A real cluster of three machines of the local Azure, and the app's passes over it."""

    def __init__(self, plane: ControlPlane, stack: ExitStack) -> None:
        super().__init__(plane, stack)
        driver = DiskDriver(self.arm, self.fleet.machine_of)
        self.kube.create(
            "/apis/storage.k8s.io/v1/csidrivers",
            {"metadata": {"name": DRIVER}, "spec": {"attachRequired": True}},
        )
        attach, detach = waiting(driver.attach), waiting(driver.detach)
        stack.enter_context(Attacher(plane.client(), attach=attach, detach=detach, driver=DRIVER))

    def furnish(self, name: str, provider_id: str, max_data_disks: int) -> None:
        driver = {
            "name": DRIVER,
            "nodeID": name,
            "topologyKeys": [],
            "allocatable": {"count": max_data_disks},
        }
        document: Document = {"metadata": {"name": name}, "spec": {"drivers": [driver]}}
        try:
            self.kube.create("/apis/storage.k8s.io/v1/csinodes", document)
        except KubeError as error:
            if error.status != 409:
                raise

    # What tests do

    def add_node(self, name: str) -> None:
        self.fleet.enrol(Pool(self.arm.add_vm(name)))
        self.until(lambda: self.is_ready(name), "node ready")

    def add_database(self, name: str) -> str:
        """A StatefulSet of one pod with one disk, running; the disk's id."""
        disk = self.arm.add_disk(name)
        csi = {"driver": DRIVER, "volumeHandle": disk, "fsType": "ext4"}
        spec: Document = {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "csi": csi}
        claim = {"namespace": "default", "name": f"data-{name}-0"}
        spec |= {
            "capacity": {"storage": "10Gi"},
            "claimRef": claim,
            "persistentVolumeReclaimPolicy": "Retain",
        }
        self.kube.create("/api/v1/persistentvolumes", {"metadata": {"name": f"pv-{name}"}, "spec": spec})
        template = {
            "metadata": {"name": "data"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "",
                "resources": {"requests": {"storage": "10Gi"}},
            },
        }
        pod = {
            "metadata": {"labels": {"app": name}},
            "spec": {
                "terminationGracePeriodSeconds": 5,
                "containers": [
                    {
                        "name": "main",
                        "image": "example.org/db:1",
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    }
                ],
            },
        }
        body = {
            "metadata": {"name": name},
            "spec": {
                "serviceName": name,
                "replicas": 1,
                "selector": {"matchLabels": {"app": name}},
                "template": pod,
                "volumeClaimTemplates": [template],
            },
        }
        self.kube.create("/apis/apps/v1/namespaces/default/statefulsets", body)
        self.until(lambda: self.where(name), f"{name} running", 90)
        self.mount(name, disk)
        return disk

    def mount(self, name: str, disk: str) -> None:
        """What the kubelet would have mounted, for the oracle."""
        with self.arm.core.lock:
            machine = self.fleet.machine_of(self.where(name))
            resource = self.arm.core.state.find(machine)
            assert resource is not None
            lun = lun_of(resource, disk)
            assert lun is not None
            self.arm.truth.mount(machine, disk, lun)

    def where(self, name: str) -> str:
        """The node on which the pod runs, or "" while it does not."""
        pod = self.kube.find(f"/api/v1/namespaces/default/pods/{name}-0")
        if pod is None or pod["status"].get("phase") != "Running" or pod["metadata"].get("deletionTimestamp"):
            return ""
        return str(pod["spec"]["nodeName"])

    def describe(self) -> str:
        held = [
            (a["spec"]["nodeName"], a["status"], "deletionTimestamp" in a["metadata"])
            for a in self.list(ATTACHMENTS)
        ]
        return f"{super().describe()}\nattachments {held}"

    def every(self, plural: str) -> list[Document]:
        """For the witness."""
        group = PLURALS[plural]
        return self.list(f"/apis/{group}/v1/{plural}" if group else f"/api/v1/{plural}")


class Witnessed(App):
    """The app, and a witness of all it does."""

    clients: WitnessedClients

    def __init__(self, live: Live, storage: str, directory: Path) -> None:
        policy = {"fence": "allowed", "grace": "3s", "absenceGap": "5s", "freezeAbovePercent": 70}
        super().__init__(
            live, "disk-release", {"diskRelease": policy}, storage, directory, kind=WitnessedClients
        )
        self.witness = self.clients.witness = Witness(live.arm, live.every, self.clients.now, self.state)

    def look(self) -> None:
        self.witness.process()
        super().look()

    def state(self) -> Mapping[str, Any]:
        return self.clients.claims.state(self.cluster.name, self.automation).automation


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with ExitStack() as stack:
        plane = stack.enter_context(ControlPlane.start(node_grace_period=GRACE))
        found = Live(plane, stack)
        for name in ("a", "b", "c", "d", "e", "f"):
            found.add_node(name)
        yield found


@pytest.fixture
def app(live: Live, storage: str, tmp_path: Path) -> Iterator[App]:
    """The app beside the cluster; all that it did kept the invariants."""
    app = Witnessed(live, storage, tmp_path)
    yield app
    assert app.witness.moments
    assert app.witness.violations(map(str, live.arm.corruptions)) == []


def test_a_stateful_set_leaves_a_dead_node_whose_machine_runs(live: Live, app: App) -> None:
    disk = live.add_database("orders")
    dead = live.where("orders")
    app.tick()
    assert app.did() == []
    live.arm.truth.kill_kubelet(live.fleet.machine_of(dead))
    live.until(lambda: not live.is_ready(dead), "NotReady", 60)
    seconds = live.until(lambda: live.where("orders") not in ("", dead), "orders moved", 150, app.tick)
    live.until(lambda: "UntaintNode" in app.did(), "untainted", 60, app.tick)
    assert live.arm.corruptions == []
    assert not live.arm.truth.is_running(live.fleet.machine_of(dead))
    assert app.did()[:3] == ["PowerOffVM", "PowerOffVM", "TaintNode"]  # begun, over, and what follows
    assert "out-of-service" not in live.taints(dead)
    owner = live.arm.core.state.find(disk).body["managedBy"]
    assert live.fleet.node_of(owner) == live.where("orders")
    assert seconds < 60


def test_a_machine_that_was_stopped_gives_its_disk_back(live: Live, app: App) -> None:
    live.add_database("bills")
    dead = live.where("bills")
    live.arm.core.do("POST", live.fleet.machine_of(dead), None, "powerOff")
    live.until(lambda: not live.is_ready(dead), "NotReady", 60)
    seconds = live.until(lambda: live.where("bills") not in ("", dead), "bills moved", 150, app.tick)
    assert "PowerOffVM" not in app.did() and app.did()[0] == "TaintNode"
    assert live.arm.corruptions == [] and seconds < 60


def test_the_node_of_a_machine_that_is_gone_does_not_keep_its_pods(live: Live, app: App) -> None:
    """Without a cloud provider's controller nobody deletes the Node, and nothing would ever move."""
    live.add_database("users")
    gone = live.where("users")
    machine = live.fleet.machine_of(gone)
    live.arm.truth.kill_kubelet(machine)
    live.arm.core.do("DELETE", machine)
    live.until(lambda: not live.is_ready(gone), "NotReady", 60)
    live.until(lambda: live.where("users") not in ("", gone), "users moved", 200, app.tick)
    live.until(lambda: "UntaintNode" in app.did(), "untainted", 60, app.tick)
    assert app.did()[0] == "TaintNode" and live.has_node(gone)
    assert live.arm.corruptions == []


def test_a_machine_and_its_node_that_are_gone_leave_no_attachment(live: Live, app: App) -> None:
    live.add_database("stock")
    gone = live.where("stock")
    machine = live.fleet.machine_of(gone)
    live.arm.truth.kill_kubelet(machine)
    live.arm.core.do("DELETE", machine)
    live.kube.delete(f"/api/v1/nodes/{gone}")
    live.until(lambda: live.where("stock") not in ("", gone), "stock moved", 300, app.tick)
    # By itself the attach/detach controller waits six minutes for an unmount that never comes.
    assert "DeleteVolumeAttachment" in app.did()
    live.until(
        lambda: not [a for a in live.list(ATTACHMENTS) if a["spec"]["nodeName"] == gone],
        "no attachment left",
        60,
        app.tick,
    )
    assert live.arm.corruptions == []

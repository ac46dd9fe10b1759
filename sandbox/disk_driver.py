"""Plays the Azure disk CSI driver on the local Resource Manager: attaches and detaches nodes' data disks.

    driver = DiskDriver(arm, machine_of=fleet.machine_of)
    kubernetes.run_driver(DRIVER, attach=driver.attach, detach=driver.detach)

As the real one does: requests for one machine are gathered for a second and sent as one, only one write per
machine at a time; LUNs are chosen here, the lowest that is free; what is attached elsewhere without a
VolumeAttachment that says so is taken from there first; a machine that is gone has nothing attached; a detach
that fails or takes longer than four minutes is forced, whoever has the disk mounted (azuredisk-csi-driver,
`--force-detach-backoff`). Its own calls are not recorded and not throttled; scripted endings and latencies of
operations do count for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sandbox.arm import LocalArm
from sandbox.arm.compute.machines import data_disks, disk_id_of
from sandbox.arm.core import ArmError
from sandbox.arm.state import Document, Operation, Resource
from sandbox.kube.kubelets import Act, NotYet
from shared.model.resource_id import parse_resource_id

DRIVER = "disk.csi.azure.com"
BATCH = timedelta(seconds=1)
FORCE_AFTER = timedelta(seconds=240)
BREATH_SECONDS = 0.05
ATTACH, DETACH, FORCE = "attach", "detach", "force"


@dataclass
class _Job:
    """What is being done about one disk on one machine."""

    what: str
    since: datetime
    operation: str = ""
    """Empty while it waits to be sent."""
    error: str = ""


@dataclass
class DiskDriver:
    """`attach` and `detach` are for a `Driver` of the local Kubernetes: called again until they are done."""

    arm: LocalArm
    machine_of: Callable[[str], str]
    """The id of a node's machine; LookupError when nobody knows."""
    is_spoken_for: Callable[[str, str], bool] = lambda disk, machine: False
    """Whether a VolumeAttachment says that this disk belongs to that machine."""
    forces: bool = True
    batch: timedelta = BATCH
    _jobs: dict[tuple[str, str], _Job] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def attach(self, disk: str, node: str) -> Mapping[str, str] | None:
        """The LUN, for the kubelet."""
        with self._lock, self.arm.core.lock:
            machine_id = self.machine_of(node)
            machine = self._machine(machine_id)
            if machine is None:
                raise LookupError(f"failed to get azure instance id for node {node!r}: instance not found")
            lun = lun_of(machine, disk)
            if lun is not None:
                self._jobs.pop((machine.id.lower(), disk.lower()), None)
                return {"LUN": str(lun)}
            self._take_from_others(disk, machine.id)
            self._go_on(machine.id, disk, ATTACH)
        raise AssertionError("an attached disk has a LUN")

    def detach(self, disk: str, node: str) -> Mapping[str, str] | None:
        with self._lock, self.arm.core.lock:
            try:
                machine = self._machine(self.machine_of(node))
            except LookupError:
                return None
            if machine is not None:
                self._detach(disk, machine)
        return None

    def _detach(self, disk: str, machine: Resource) -> None:
        key = (machine.id.lower(), disk.lower())
        if _entry(machine, disk) is None:
            self._jobs.pop(key, None)
            return
        job = self._jobs.get(key)
        waited = self.arm.core.clock.now() - job.since if job else timedelta(0)
        if job and self.forces and job.what == DETACH and (job.error or waited >= FORCE_AFTER):
            self._jobs.pop(key)
            self._go_on(machine.id, disk, FORCE)
        self._go_on(machine.id, disk, job.what if job and job.what == FORCE else DETACH)

    def _take_from_others(self, disk: str, wanted_on: str) -> None:
        found = self.arm.core.state.find(disk)
        owner = self._machine((found.body.get("managedBy") or "") if found else "")
        if found is None or owner is None or owner.id.lower() == wanted_on.lower():
            return
        if found.body["properties"].get("maxShares", 1) > 1:
            return
        if self.is_spoken_for(disk, owner.id):
            raise RuntimeError(f"disk({disk}) already attached to node({owner.id}), could not be attached")
        self._detach(disk, owner)

    def _go_on(self, machine: str, disk: str, what: str) -> None:
        """Raises NotYet, or what the last attempt has failed with; the next call is a new attempt."""
        key = (machine.lower(), disk.lower())
        job = self._jobs.get(key)
        now = self.arm.core.clock.now()
        if job is None or job.what != what:
            self._jobs[key] = _Job(what, now)
            self.arm.core.clock.at(now + self.batch, lambda: self._send(machine))
            raise NotYet(self.batch.total_seconds())
        operation = self.arm.core.state.operations.get(job.operation)
        if operation is not None and operation.running:
            raise NotYet(self._left(operation))
        if job.operation or job.error:
            error = operation.error if operation is not None else None
            said = job.error or (f"{error['code']}: {error['message']}" if error else "")
            if what == DETACH and self.forces:
                job.error, job.operation = said or "Canceled", ""
            else:
                del self._jobs[key]
            raise RuntimeError(said or "the operation has ended, and nothing has changed")
        raise NotYet(BREATH_SECONDS)

    def _left(self, operation: Operation) -> float:
        left = datetime.fromisoformat(operation.ends) - self.arm.core.clock.now()
        return max(BREATH_SECONDS, min(left, FORCE_AFTER).total_seconds())

    def _send(self, machine_id: str) -> None:
        """All that waits for this machine, in one write, unless another write is under way there."""
        with self._lock, self.arm.core.lock:
            waiting = {
                disk: job
                for (machine, disk), job in self._jobs.items()
                if machine == machine_id.lower() and not job.operation and not job.error
            }
            found = self._machine(machine_id)
            if not waiting:
                return
            busy = self.arm.core.running_on(parse_resource_id(machine_id)) if found is not None else []
            if busy and not any(job.what == FORCE for job in waiting.values()):
                ends = self.arm.core.clock.now() + timedelta(seconds=min(map(self._left, busy)))
                self.arm.core.clock.at(ends, lambda: self._send(machine_id))
                return
            try:
                if found is None:
                    raise ArmError(404, "ResourceNotFound", f"{machine_id} was not found.")  # noqa: TRY301
                started = self._write(found, waiting)
            except ArmError as error:
                for job in waiting.values():
                    job.error = str(error)
            else:
                for job in waiting.values():
                    job.operation = started

    def _write(self, machine: Resource, jobs: Mapping[str, _Job]) -> str:
        body: Document = {"dataDisksToAttach": [], "dataDisksToDetach": []}
        taken = {entry["lun"] for entry in data_disks(machine)}
        for disk, job in sorted(jobs.items()):
            if job.what == ATTACH:
                lun = next(lun for lun in range(65) if lun not in taken)
                taken.add(lun)
                found = self.arm.core.state.find(disk)
                body["dataDisksToAttach"].append({"diskId": found.id if found else disk, "lun": lun})
            elif _entry(machine, disk) is not None:
                option = {"detachOption": "ForceDetach"} if job.what == FORCE else {}
                body["dataDisksToDetach"].append({"diskId": disk, **option})
        if not any(body.values()):
            return ""
        answer = self.arm.core.do("POST", machine.id, body, "attachDetachDataDisks", at_once=False)
        return answer.headers["Azure-AsyncOperation"].partition("/operations/")[2].partition("?")[0]

    def _machine(self, machine: str) -> Resource | None:
        found = self.arm.core.state.find(machine)
        return found if found is not None and "storageProfile" in found.body["properties"] else None


def _entry(machine: Resource, disk: str) -> Document | None:
    entries = data_disks(machine)
    return next((entry for entry in entries if disk_id_of(entry).lower() == disk.lower()), None)


def lun_of(machine: Resource, disk: str) -> int | None:
    """Where the machine really has the disk; None when it has not, not yet, or not much longer."""
    entry = _entry(machine, disk)
    if entry is None or entry.get("toBeDetached") or disk.lower() in (machine.hidden.get("attaching") or ()):
        return None
    return int(entry["lun"])


def waiting(act: Act) -> Act:
    """The same, for callers in real time that want an answer: it blocks instead of raising NotYet."""

    def wait(disk: str, node: str) -> Mapping[str, str] | None:
        while True:
            try:
                return act(disk, node)
            except NotYet as later:
                time.sleep(min(later.seconds, 1.0))

    return wait

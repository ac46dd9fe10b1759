"""What is really so, and never visible over HTTP: which machines run, which kubelets live, what is mounted.

Azure's answers describe a goal and may be late or wrong; damage happens in reality. Tests and the sandbox's
node agents set and read it here, and the oracle writes down every *corruption*: a disk taken from a running
machine that has it mounted, a LUN given to another disk under such a mount, a disk mounted in the place of
another (the disk driver finds disks by LUN, so two pods would then share one file system).
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import msgspec

DETACHED_WHILE_MOUNTED = "DetachedWhileMounted"
LUN_REUSED_UNDER_MOUNT = "LunReusedUnderMount"
WRONG_DISK_MOUNTED = "WrongDiskMounted"


class Corruption(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of damage. `at` is ISO 8601; ids are lower case; `kubelet_alive` tells how it could happen: a
    live kubelet would have unmounted first, a dead one cannot, while its containers go on writing.
    """

    at: str
    kind: str
    machine: str
    vm_id: str
    disk: str
    lun: int
    kubelet_alive: bool
    forced: bool = False
    mounted_disk: str = ""
    """The disk that the machine believes to be at `lun`, when that is another one than `disk`."""


class Machine(msgspec.Struct, kw_only=True):
    """One virtual machine as it really is; `mounts` maps disk ids (lower case) to the LUN used."""

    id: str
    vm_id: str
    running: bool = False
    kubelet_alive: bool = False
    boots: int = 0
    mounts: dict[str, int] = msgspec.field(default_factory=dict)


class Truth(msgspec.Struct, kw_only=True, weakref=True, eq=False):
    """All machines by vmId, and the damage done. Ids are compared without regard to case."""

    machines: dict[str, Machine] = msgspec.field(default_factory=dict)
    corruptions: list[Corruption] = msgspec.field(default_factory=list)
    unhealthy_backends: dict[str, str] = msgspec.field(default_factory=dict)
    """Addresses behind gateways that do not answer their probe, and why."""

    def listen(self, listener: Callable[[str], None]) -> None:
        """Calls back with the vmId whenever a machine boots, stops, goes, or its kubelet dies or lives again;
        in the middle of that change, so that the listener may only make a note of it.
        """
        _LISTENERS.setdefault(self, []).append(listener)

    def _changed(self, vm_id: str) -> None:
        for listener in _LISTENERS.get(self, ()):
            listener(vm_id)

    # --- what tests and node agents do ---

    def machine(self, machine: str) -> Machine:
        """By resource id (the newest of that name) or vmId; KeyError when there never was one."""
        if machine in self.machines:
            return self.machines[machine]
        found = [known for known in self.machines.values() if known.id == machine.lower()]
        if not found:
            raise KeyError(f"there is no machine {machine}")
        return found[-1]

    def is_running(self, machine: str) -> bool:
        return self.machine(machine).running

    def mount(self, machine: str, disk: str, lun: int) -> None:
        """The kubelet mounts the disk that it sees at `lun`."""
        found = self.machine(machine)
        assert found.running and found.kubelet_alive, f"nobody can mount on {machine}"
        found.mounts[disk.lower()] = lun

    def mount_instead(self, machine: str, found: str, lun: int, wanted: str, at: str) -> None:
        """The kubelet mounts what it finds at the LUN it was told, and it is not what it wants."""
        self.mount(machine, found, lun)
        self._record(self.machine(machine), WRONG_DISK_MOUNTED, found, lun, at, mounted_disk=wanted.lower())

    def unmount(self, machine: str, disk: str) -> None:
        self.machine(machine).mounts.pop(disk.lower(), None)

    def unmount_lun(self, machine: str, lun: int) -> None:
        """Whatever the kubelet has mounted from there."""
        found = self.machine(machine)
        found.mounts = {disk: at for disk, at in found.mounts.items() if at != lun}

    def mounted_on(self, disk: str) -> list[str]:
        """Resource ids of the running machines that have the disk mounted."""
        return [m.id for m in self.machines.values() if m.running and disk.lower() in m.mounts]

    def kill_kubelet(self, machine: str) -> None:
        """The machine and its containers go on."""
        found = self.machine(machine)
        found.kubelet_alive = False
        self._changed(found.vm_id)

    def revive_kubelet(self, machine: str) -> None:
        found = self.machine(machine)
        found.kubelet_alive = found.running
        self._changed(found.vm_id)

    def crash(self, machine: str) -> None:
        """The machine dies, as with its host; Azure does not know."""
        self.stopped(self.machine(machine).vm_id)

    # --- what the local Azure does ---

    def created(self, machine: str, vm_id: str) -> None:
        self.machines[vm_id] = Machine(id=machine.lower(), vm_id=vm_id)

    def started(self, vm_id: str) -> None:
        """Booted, or booted again: memory is fresh, so nothing is mounted."""
        if (machine := self.machines.get(vm_id)) is not None:
            machine.running = machine.kubelet_alive = True
            machine.boots += 1
            machine.mounts.clear()
            self._changed(vm_id)

    def stopped(self, vm_id: str) -> None:
        if (machine := self.machines.get(vm_id)) is not None:
            machine.running = machine.kubelet_alive = False
            machine.mounts.clear()
            self._changed(vm_id)

    def detached(self, vm_id: str, disk: str, at: str, *, forced: bool = False) -> None:
        """The disk leaves the machine. A mount in a running machine stays, and is stale from here on."""
        machine = self.machines.get(vm_id)
        if machine is None or not machine.running or disk.lower() not in machine.mounts:
            return
        lun = machine.mounts[disk.lower()]
        self._record(machine, DETACHED_WHILE_MOUNTED, disk, lun, at, forced=forced)

    def attached(self, vm_id: str, disk: str, lun: int, at: str) -> None:
        machine = self.machines.get(vm_id)
        if machine is None or not machine.running:
            return
        for mounted, mounted_lun in machine.mounts.items():
            if mounted_lun == lun and mounted != disk.lower():
                self._record(machine, LUN_REUSED_UNDER_MOUNT, disk, lun, at, mounted_disk=mounted)

    def _record(
        self,
        machine: Machine,
        kind: str,
        disk: str,
        lun: int,
        at: str,
        *,
        forced: bool = False,
        mounted_disk: str = "",
    ) -> None:
        self.corruptions.append(
            Corruption(
                at=at,
                kind=kind,
                machine=machine.id,
                vm_id=machine.vm_id,
                disk=disk.lower(),
                lun=lun,
                kubelet_alive=machine.kubelet_alive,
                forced=forced,
                mounted_disk=mounted_disk,
            )
        )


# Beside the structure and not in it, since that is what gets saved.
_LISTENERS: WeakKeyDictionary[Truth, list[Callable[[str], None]]] = WeakKeyDictionary()

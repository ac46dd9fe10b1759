"""What a region can give: sizes of virtual machines with their zones and restrictions, quota, and shortages
that a test writes.

Plain data inside the state. Figures are those of the public size tables; quota starts out ample.
"""

from __future__ import annotations

import copy

import msgspec

ZONES = ("1", "2", "3")


class Size(msgspec.Struct, kw_only=True):
    """One size of virtual machine, the same in every region; `zones` empty means it is regional only."""

    name: str
    family: str
    vcpus: int
    memory_gib: float
    max_data_disks: int
    gpus: int = 0
    architecture: str = "x64"
    zones: list[str] = msgspec.field(default_factory=lambda: list(ZONES))
    restricted: bool = False
    """Not offered to this subscription in any zone."""
    restricted_zones: list[str] = msgspec.field(default_factory=list)


DEFAULT_QUOTA = 100_000
CATALOGUE = (
    Size(name="Standard_B2ms", family="standardBSFamily", vcpus=2, memory_gib=8.0, max_data_disks=4),
    Size(name="Standard_D2s_v5", family="standardDSv5Family", vcpus=2, memory_gib=8.0, max_data_disks=4),
    Size(name="Standard_D4s_v5", family="standardDSv5Family", vcpus=4, memory_gib=16.0, max_data_disks=8),
    Size(name="Standard_D8s_v5", family="standardDSv5Family", vcpus=8, memory_gib=32.0, max_data_disks=16),
    Size(name="Standard_D16s_v5", family="standardDSv5Family", vcpus=16, memory_gib=64.0, max_data_disks=32),
    Size(name="Standard_E4s_v5", family="standardESv5Family", vcpus=4, memory_gib=32.0, max_data_disks=8),
    Size(name="Standard_E8s_v5", family="standardESv5Family", vcpus=8, memory_gib=64.0, max_data_disks=16),
    Size(name="Standard_F8s_v2", family="standardFSv2Family", vcpus=8, memory_gib=16.0, max_data_disks=16),
    Size(
        name="Standard_D4ps_v5",
        family="standardDPSv5Family",
        vcpus=4,
        memory_gib=16.0,
        max_data_disks=8,
        architecture="Arm64",
    ),
    Size(
        name="Standard_NC4as_T4_v3",
        family="Standard NCASv3_T4 Family",
        vcpus=4,
        memory_gib=28.0,
        max_data_disks=8,
        gpus=1,
        zones=["1", "2"],
    ),
    Size(
        name="Standard_NC64as_T4_v3",
        family="Standard NCASv3_T4 Family",
        vcpus=64,
        memory_gib=440.0,
        max_data_disks=32,
        gpus=4,
        zones=["1", "2"],
    ),
)


class Shortage(msgspec.Struct, kw_only=True):
    """Allocations that match are refused with `code` once `left` more machines were given. Empty fields
    match everything; `zone` "-" matches machines without a zone. `times` allocations are refused, None: all.

    Codes Azure uses: ZonalAllocationFailed, AllocationFailed, OverconstrainedAllocationRequest,
    OverconstrainedZonalAllocationRequest (while the operation runs) and SkuNotAvailable (at once).
    """

    code: str
    size: str = ""
    zone: str = ""
    left: int = 0
    times: int | None = None

    def hits(self, size: str, zone: str) -> bool:
        fits = self.size.lower() in ("", size.lower()) and self.zone in ("", zone or "-")
        return fits and (self.times is None or self.times > 0)


class Capacity(msgspec.Struct, kw_only=True):
    """Of the whole subscription, alike in every region."""

    sizes: list[Size] = msgspec.field(default_factory=lambda: copy.deepcopy(list(CATALOGUE)))
    quota: dict[str, int] = msgspec.field(default_factory=dict)
    """Limit by usage name: `cores`, `virtualMachines`, `lowPriorityCores`, or a family such as
    `standardDSv5Family`. What is not named has `DEFAULT_QUOTA`.
    """
    shortages: list[Shortage] = msgspec.field(default_factory=list)

    def size(self, name: str) -> Size | None:
        return next((size for size in self.sizes if size.name.lower() == name.lower()), None)

    def limit(self, name: str) -> int:
        by_name = {known.lower(): limit for known, limit in self.quota.items()}
        return by_name.get(name.lower(), DEFAULT_QUOTA)

    def refusal(self, size: str, zone: str) -> str | None:
        """The code with which one more machine is refused now; each call counts as one allocation."""
        for shortage in self.shortages:
            if shortage.hits(size, zone):
                if shortage.left > 0:
                    shortage.left -= 1
                    continue
                if shortage.times is not None:
                    shortage.times -= 1
                return shortage.code
        return None

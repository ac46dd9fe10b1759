"""Microsoft.Compute: virtual machines, scale sets, disks, and what a region has to give.

`disks` has managed disks and who owns them, `machines` what every virtual machine does (power, disks, views),
`scalesets` sets and their instances, `region` availability sets and sizes, `quota` what may be had.
"""

from __future__ import annotations

from sandbox.arm.compute.disks import Disks, Snapshots
from sandbox.arm.compute.machines import VirtualMachines
from sandbox.arm.compute.region import AvailabilitySets, Skus, Usages
from sandbox.arm.compute.scalesets import Instances, ScaleSets
from sandbox.arm.core import ResourceType


def types() -> list[ResourceType]:
    """What Microsoft.Compute adds to the core."""
    return [
        VirtualMachines(),
        ScaleSets(),
        Instances(),
        Disks(),
        Snapshots(),
        AvailabilitySets(),
        Skus(),
        Usages(),
    ]

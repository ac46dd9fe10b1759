"""The one contract of all kinds of node pools: read one fresh, grow it, list its machines, delete some.

A driver turns these into requests to Resource Manager and nothing more: whether growing is wise was
decided before, and what is announced, recorded or retried is `act`'s. Every write is begun, never waited for.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from shared.clients.arm import Arm, Begun

Document = dict[str, Any]


class MachineState(enum.StrEnum):
    """What Azure says of a machine, for our purposes."""

    CREATING = "Creating"
    RUNNING = "Running"
    STOPPED = "Stopped"
    FAILED = "Failed"
    DELETING = "Deleting"


@dataclass(frozen=True)
class Machine:
    """One virtual machine of a pool. `id` is what Node.spec.providerID names, lower case, without scheme."""

    id: str
    instance: str
    """What the pool's own API calls it: instance id, VM name or AKS machine name."""
    computer_name: str
    state: MachineState
    zone: str = ""
    created_at: datetime | None = None
    code: str = ""
    """Why it failed."""
    message: str = ""


@dataclass(frozen=True)
class Fresh:
    """A pool as it was read just now. `capacity` counts machines that are there or on their way."""

    id: str
    capacity: int
    etag: str
    state: str
    """provisioningState of the pool: Succeeded, Updating, Scaling, Failed ..."""
    document: Document = field(repr=False, default_factory=dict)
    hands_off: str = ""
    """Why nobody but its owner may change it now; empty otherwise."""


Announce = Callable[[Sequence[str]], None]
"""Called with the ids of single resources just before they are asked for; stores them, or raises."""


def read_image(text: str) -> Document:
    """An imageReference from `publisher:offer:sku:version` or an image's resource id.

    ValueError, one line, for anything else, and for an image without its version: machines of `latest` cannot
    be told apart from those that were made of an earlier `latest`.
    """
    parts = text.split(":")
    if len(parts) == 4 and all(parts):
        if parts[3].lower() == "latest":
            raise ValueError(f"image '{text}': name the version; what is 'latest' looks the same as what was")
        return dict(zip(("publisher", "offer", "sku", "version"), parts, strict=True))
    lower = text.lower()
    if "/images/" not in lower or not lower.startswith(tuple(_IMAGES)):
        raise ValueError(f"image '{text}': expected publisher:offer:sku:version or the image's resource id")
    if "/galleries/" in lower and "/versions/" not in lower:
        raise ValueError(f"image '{text}': name the version (.../versions/1.2.3) of a gallery's image")
    return {next(name for start, name in _IMAGES.items() if lower.startswith(start)): text}


_IMAGES = {
    "/subscriptions/": "id",
    "/sharedgalleries/": "sharedGalleryImageId",
    "/communitygalleries/": "communityGalleryImageId",
}


def is_image(reference: Document | None, wanted: Document) -> bool:
    """Whether an imageReference, as Azure answers it, is the wanted one."""
    found = reference or {}
    return all(str(found.get(name) or "").lower() == value.lower() for name, value in wanted.items())


class Driver(Protocol):
    """What each kind of pool can do. Ids are resource ids; errors are those of `shared.errors`."""

    deletes_singly: bool
    """Whether machines are deleted by a request each, so that one may be refused and another not."""

    def read(self, arm: Arm, pool_id: str) -> Fresh:
        """The pool, by one request."""

    def grow(self, arm: Arm, fresh: Fresh, to: int, announce: Announce) -> tuple[Begun, ...]:
        """Ask for `to` machines, only if the pool is still as `fresh` says (ConflictError otherwise)."""

    def machines(self, arm: Arm, pool_id: str) -> tuple[Machine, ...]:
        """All machines of the pool with their states; the costly read."""

    def belongings(self, arm: Arm, machines: Sequence[Machine]) -> tuple[str, ...]:
        """Resources that stay behind when these machines are deleted, in the order they can be deleted."""

    def delete(self, arm: Arm, pool_id: str, machines: Sequence[Machine]) -> tuple[Begun, ...]:
        """Delete exactly these machines; the capacity falls with them. One that is gone already is fine."""


class _Status(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _View(msgspec.Struct, frozen=True):
    statuses: tuple[_Status, ...] = ()


class _Reference(msgspec.Struct, frozen=True):
    id: str = ""


class _StorageProfile(msgspec.Struct, frozen=True, rename="camel"):
    image_reference: Document | None = None


class _OsProfile(msgspec.Struct, frozen=True, rename="camel"):
    computer_name: str = ""


class MachineProperties(msgspec.Struct, frozen=True, rename="camel"):
    """Of a virtual machine or a scale-set instance, as both answer it."""

    provisioning_state: str = ""
    os_profile: _OsProfile | None = None
    instance_view: _View | None = None
    time_created: datetime | None = None
    virtual_machine_scale_set: _Reference | None = None
    availability_set: _Reference | None = None
    storage_profile: _StorageProfile | None = None
    latest_model_applied: bool | None = None
    """Of instances in the list of their set."""


class MachineDocument(msgspec.Struct, frozen=True, rename="camel"):
    """One machine as Resource Manager answers it, the few fields that matter."""

    id: str
    name: str = ""
    instance_id: str = ""
    zones: tuple[str, ...] | None = None
    tags: dict[str, str] | None = None
    properties: MachineProperties = MachineProperties()

    @property
    def computer_name(self) -> str:
        profile = self.properties.os_profile
        return (profile.computer_name if profile else "") or self.name

    def machine(self, instance: str) -> Machine:
        """As a pool's machine."""
        state, code, message = self._state()
        return Machine(
            id=self.id.lower(),
            instance=instance,
            computer_name=self.computer_name.lower(),
            state=state,
            zone=(self.zones or ("",))[0],
            created_at=self.properties.time_created,
            code=code,
            message=message,
        )

    def _state(self) -> tuple[MachineState, str, str]:
        statuses = self.properties.instance_view.statuses if self.properties.instance_view else ()
        provisioning = self.properties.provisioning_state.lower()
        if provisioning == "deleting":
            return MachineState.DELETING, "", ""
        if provisioning == "failed":
            return (MachineState.FAILED, *_failure(statuses))
        if provisioning in ("creating", "updating") and not _has_power(statuses, "running"):
            return MachineState.CREATING, "", ""
        if any(_has_power(statuses, power) for power in ("deallocated", "deallocating", "stopped")):
            return MachineState.STOPPED, "", ""
        return MachineState.RUNNING, "", ""


class _MachinePage(msgspec.Struct, frozen=True):
    value: tuple[MachineDocument, ...] = ()


def read_machines(pages: Iterable[bytes]) -> list[MachineDocument]:
    """All machines on these pages of a list."""
    return [one for body in pages for one in msgspec.json.decode(body, type=_MachinePage).value]


def _failure(statuses: Sequence[_Status]) -> tuple[str, str]:
    """Code and message behind `ProvisioningState/failed/CODE`."""
    for status in statuses:
        parts = status.code.split("/")
        if parts[0].lower() == "provisioningstate" and len(parts) > 1 and parts[1].lower() == "failed":
            return (parts[2] if len(parts) > 2 else "ProvisioningFailed"), status.message
    return "ProvisioningFailed", ""


def _has_power(statuses: Sequence[_Status], power: str) -> bool:
    return any(status.code.lower() == f"powerstate/{power}" for status in statuses)

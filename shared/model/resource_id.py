"""Azure resource identifiers: parsed, compared without regard to case (as Azure does), and printed as they
were.
"""

from __future__ import annotations

import msgspec

from shared.errors import SettingsError


class ResourceId(msgspec.Struct, frozen=True):
    """`/subscriptions/S/resourceGroups/G/providers/NAMESPACE/TYPE/NAME[/SUBTYPE/SUBNAME ...]`.

    `types` and `names` go in step: ("storageAccounts", "blobServices"), ("backups", "default").
    """

    subscription: str
    group: str
    namespace: str
    types: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def type(self) -> str:
        """`Microsoft.Storage/storageAccounts/blobServices`."""
        return "/".join((self.namespace, *self.types))

    @property
    def name(self) -> str:
        """The last name."""
        return self.names[-1]

    @property
    def key(self) -> str:
        """Equal for equal resources, however they were written."""
        return str(self).lower()

    @property
    def parent(self) -> ResourceId | None:
        """The resource this one is a part of; None for a resource of the group itself."""
        if len(self.types) == 1:
            return None
        return msgspec.structs.replace(self, types=self.types[:-1], names=self.names[:-1])

    def child(self, child_type: str, name: str) -> ResourceId:
        return msgspec.structs.replace(self, types=(*self.types, child_type), names=(*self.names, name))

    def __str__(self) -> str:
        pairs = [part for pair in zip(self.types, self.names, strict=True) for part in pair]
        return "/".join(
            (
                "/subscriptions",
                self.subscription,
                "resourceGroups",
                self.group,
                "providers",
                self.namespace,
                *pairs,
            )
        )


def parse_resource_id(text: str) -> ResourceId:
    """The parts of a resource id in a resource group; SettingsError for anything else."""
    parts = text.strip("/").split("/")
    fixed = [part.lower() for part in (parts[0:1] + parts[2:3] + parts[4:5])]
    if (
        fixed != ["subscriptions", "resourcegroups", "providers"]
        or len(parts) < 8
        or len(parts) % 2
        or "" in parts
        or not text.startswith("/")
    ):
        raise SettingsError(
            f"'{text}' is not an Azure resource id; expected "
            "/subscriptions/ID/resourceGroups/GROUP/providers/NAMESPACE/TYPE/NAME"
        )
    return ResourceId(parts[1], parts[3], parts[5], tuple(parts[6::2]), tuple(parts[7::2]))

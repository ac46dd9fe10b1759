"""The message that asks for an operation: `{"id", "operation", "cluster", "parameters"}`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from shared.runtime.message import ClusterName

OperationId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class OperationMessage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What to do once. The same `id` runs once; without one, the message is its own identity."""

    id: OperationId | None = None
    operation: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    cluster: ClusterName
    parameters: dict[str, Any] = {}

    def encode(self) -> str:
        """The message text."""
        return msgspec.json.encode(self).decode()

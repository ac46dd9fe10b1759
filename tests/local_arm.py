"""What tests of the local Resource Manager share: clients as the SDKs make them, and what they check."""

from __future__ import annotations

from typing import Any, TypeVar

from azure.core.exceptions import HttpResponseError

from sandbox.arm import LocalArm
from shared.clients.azure import bearer_token_policy

SCOPE = "https://management.azure.com/.default"
Client = TypeVar("Client")


def connect(arm: LocalArm, client: type[Client], **options: Any) -> Client:
    """An unmodified management client that speaks to `arm`, polls fast and does not retry."""
    return client(
        arm.credential(),
        arm.subscription,
        base_url=arm.url,
        authentication_policy=bearer_token_policy(arm.credential(), SCOPE),
        **{"polling_interval": 0.01, "retry_total": 0, **options},
    )


def code_of(error: HttpResponseError) -> tuple[int | None, str]:
    assert error.error is not None
    return error.status_code, error.error.code


def unknown_fields(value: object, path: str = "") -> list[str]:
    """Names in an answer that the SDK's model does not know: a sign that the stand-in made them up."""
    found: list[str] = []
    if isinstance(value, list):
        for item in value:
            found += unknown_fields(item, path)
    fields = getattr(type(value), "_attr_to_rest_field", None)
    if fields is not None:
        known = {field._rest_name: name for name, field in fields.items()}
        for name in value.keys():  # noqa: SIM118 - a model, not a dict
            if name not in known:
                found.append(f"{path}.{name}")
            else:
                found += unknown_fields(getattr(value, known[name]), f"{path}.{name}")
    return found

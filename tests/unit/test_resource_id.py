"""Azure resource ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import SettingsError
from shared.model.resource_id import ResourceId, parse_resource_id

CONTAINER = (
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage"
    "/storageAccounts/backups/blobServices/default/containers/etcd"
)

segment = st.text(
    st.characters(exclude_characters="/", exclude_categories=["C", "Z"]), min_size=1, max_size=8
)
ids = st.integers(1, 4).flatmap(
    lambda depth: st.builds(
        ResourceId,
        segment,
        segment,
        segment,
        st.tuples(*[segment] * depth),
        st.tuples(*[segment] * depth),
    )
)


def test_parts_type_name_and_parent() -> None:
    parsed = parse_resource_id(CONTAINER)
    assert (parsed.subscription, parsed.group, parsed.namespace) == ("s", "g", "Microsoft.Storage")
    assert parsed.type == "Microsoft.Storage/storageAccounts/blobServices/containers"
    assert parsed.name == "etcd"
    assert str(parsed.parent) == CONTAINER.rsplit("/", 2)[0]
    account = parse_resource_id(CONTAINER.split("/blobServices", maxsplit=1)[0])
    assert account.parent is None
    assert account.child("blobServices", "default") == parsed.parent


def test_spelling_does_not_make_another_resource() -> None:
    assert parse_resource_id(CONTAINER.upper()).key == parse_resource_id(CONTAINER).key


@given(ids)
def test_what_is_printed_parses_to_the_same(resource_id: ResourceId) -> None:
    assert parse_resource_id(str(resource_id)) == resource_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "backups",
        "/subscriptions/s/resourceGroups/g",
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts",
        "/subscriptions/s/resourceGroups//providers/Microsoft.Storage/storageAccounts/a",
        "/subscriptions/s/groups/g/providers/Microsoft.Storage/storageAccounts/a",
        CONTAINER.removeprefix("/"),
    ],
)
def test_anything_else_is_refused_with_the_expected_form(text: str) -> None:
    with pytest.raises(SettingsError, match="is not an Azure resource id; expected /subscriptions/"):
        parse_resource_id(text)

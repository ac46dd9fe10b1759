"""Table Storage as the product uses it, on a real Azurite."""

from __future__ import annotations

import uuid

import pytest

from shared.clients.table import Table, table_service
from shared.errors import ConflictError, NotFoundError, UnavailableError

pytestmark = pytest.mark.azurite


@pytest.fixture
def table(storage: str) -> Table:
    service = table_service({"AzureWebJobsStorage": storage})
    return Table(service.get_table_client(f"t{uuid.uuid4().hex[:12]}"))


def _row(key: str, **values: object) -> dict[str, object]:
    return {"PartitionKey": "p", "RowKey": key, **values}


def test_a_missing_table_reads_as_empty_and_is_made_by_the_first_write(table: Table) -> None:
    assert list(table.query()) == []
    assert list(table.query("PartitionKey eq 'p'")) == []
    with pytest.raises(NotFoundError):
        table.read("p", "1")
    table.insert(_row("1", text="a"))
    table.ensure()
    assert table.read("p", "1").entity["text"] == "a"


def test_a_key_is_inserted_once_and_replaced_only_as_it_was_read(table: Table) -> None:
    table.insert(_row("1", text="a"))
    with pytest.raises(ConflictError):
        table.insert(_row("1", text="b"))
    read = table.read("p", "1")
    table.replace(_row("1", text="c"), read.etag)
    with pytest.raises(ConflictError):
        table.replace(_row("1", text="d"), read.etag)
    table.put(_row("1", other="e"))
    assert "text" not in table.read("p", "1").entity


def test_rows_come_in_key_order_up_to_the_limit_and_values_cannot_break_out_of_a_condition(
    table: Table,
) -> None:
    for key in ("3", "1", "2"):
        table.put(_row(key, owner="o'neill"))
    assert [row["RowKey"] for row in table.query(limit=2)] == ["1", "2"]
    assert len(list(table.query("owner eq @who", {"who": "o'neill"}))) == 3
    assert list(table.query("owner eq @who", {"who": "' or '' eq '"})) == []


def test_deleting_what_is_not_there_is_fine(table: Table) -> None:
    table.put(_row("1"))
    table.delete("p", "1")
    table.delete("p", "1")
    assert list(table.query()) == []


def test_an_account_that_does_not_answer_is_one_line() -> None:
    text = (
        "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey=c2VjcmV0LWtleQ==;"
        "TableEndpoint=http://127.0.0.1:9/devstoreaccount1"
    )
    service = table_service({"AzureWebJobsStorage": text})
    with pytest.raises(UnavailableError, match="check its address"):
        list(Table(service.get_table_client("any")).query())

"""Storage tables: insert, read, replace under an etag, query. One table each.

The only code that speaks to Table Storage. Rows are flat dictionaries of strings, numbers, booleans and aware
datetimes with `PartitionKey` and `RowKey`. A missing table is created by the first write and reads as empty.
Errors are those of `shared.errors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from shared.clients.storage import CONNECTION, TIMEOUTS, connect, translated
from shared.errors import NotFoundError

if TYPE_CHECKING:
    from azure.data.tables import TableClient, TableServiceClient

Entity = dict[str, Any]


class Row(msgspec.Struct, frozen=True):
    """A row as read, with the version it had."""

    entity: Entity
    etag: str


class Table:
    """One table. Methods may be called from several threads."""

    def __init__(self, client: TableClient) -> None:
        self._client = client
        self.name: str = client.table_name

    def ensure(self) -> None:
        """Create the table unless it exists."""
        from azure.core.exceptions import ResourceExistsError

        with translated(f"create table '{self.name}'"):
            try:
                self._client.create_table()
            except ResourceExistsError:
                return

    def insert(self, entity: Entity) -> str:
        """Add a row, returning its etag; ConflictError when the key is taken."""
        with translated(f"insert into table '{self.name}'"):
            return str(self._writing(lambda: self._client.create_entity(entity))["etag"])

    def put(self, entity: Entity) -> None:
        """Write a row whatever was there, replacing all of it."""
        from azure.data.tables import UpdateMode

        with translated(f"write to table '{self.name}'"):
            self._writing(lambda: self._client.upsert_entity(entity, mode=UpdateMode.REPLACE))

    def replace(self, entity: Entity, etag: str) -> str:
        """Replace a row that still has `etag`, returning the new one; ConflictError when it has changed."""
        from azure.core import MatchConditions
        from azure.data.tables import UpdateMode

        with translated(f"replace a row of table '{self.name}'"):
            done = self._client.update_entity(
                entity, mode=UpdateMode.REPLACE, etag=etag, match_condition=MatchConditions.IfNotModified
            )
        return str(done["etag"])

    def read(self, partition: str, row: str) -> Row:
        """One row; NotFoundError when there is none."""
        with translated(f"read a row of table '{self.name}'"):
            entity = self._client.get_entity(partition, row)
        return Row(dict(entity), str(entity.metadata["etag"]))

    def delete(self, partition: str, row: str) -> None:
        """Delete a row; nothing happens when there is none."""
        with translated(f"delete a row of table '{self.name}'"):
            self._client.delete_entity(partition, row)

    def query(
        self, condition: str = "", parameters: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> Iterator[Entity]:
        """Rows that meet an OData condition, in key order; `@name` in it stands for `parameters["name"]`."""
        page = min(limit, 1000) if limit else 1000
        try:
            with translated(f"query table '{self.name}'"):
                rows = (
                    self._client.query_entities(
                        condition, parameters=dict(parameters or {}), results_per_page=page
                    )
                    if condition
                    else self._client.list_entities(results_per_page=page)
                )
                yield from (dict(row) for row in islice(rows, limit))
        except NotFoundError:
            return

    def _writing(self, write: Any) -> Any:
        # The table is made by whoever misses it first, not by a request before every write.
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return write()
        except ResourceNotFoundError:
            self.ensure()
            return write()


def table_service(environ: Mapping[str, str], connection: str = CONNECTION) -> TableServiceClient:
    """A client of the account's table service; keep one per process, it holds the HTTP connections."""
    from azure.data.tables import TableServiceClient

    options: dict[str, Any] = {"retry_total": 3, "retry_backoff_factor": 0.5, **TIMEOUTS}
    return connect(
        environ,
        "table",
        TableServiceClient.from_connection_string,
        lambda url, **rest: TableServiceClient(endpoint=url, **rest),
        options=options,
        connection=connection,
    )

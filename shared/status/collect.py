"""The state of the fleet, read once: what every automation last saw, did and left alone.

`collect` is what `keeper status` prints, `collect_page` what the status page shows besides: what was done
lately, backups, operations, and messages that failed for good. Reads only; asks neither Kubernetes nor Azure,
so it answers while they do not.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from shared import __version__
from shared.errors import NotFoundError
from shared.model.backup import BackupRecord, read_listing
from shared.model.plan import utc
from shared.runtime import poison
from shared.runtime.automation import AUTOMATIONS
from shared.runtime.journal import Entry, Summary
from shared.runtime.operation import OperationRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.bootstrap import Clients
    from shared.settings import Cluster

LATELY = timedelta(days=7)
"""How far back the page looks for operations."""
ENTRIES = 200
"""Journal entries of one cluster on the page."""


class Row(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One (cluster, automation). `state`: idle, due to run again (`dirty`), `paused` or `never ran`."""

    cluster: str
    automation: str
    state: str
    last_pass: datetime | None = None
    last_tick: datetime | None = None
    pause_reason: str = ""
    summary: Summary | None = None


class StatusDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The document of `keeper status --json`; `poison` counts messages by queue, empty queues left out."""

    now: datetime
    rows: tuple[Row, ...]
    poison: dict[str, int]


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One cluster: its automations, its backups oldest first, its journal newest first."""

    name: str
    automations: tuple[Row, ...]
    backups: tuple[BackupRecord, ...] = ()
    journal: tuple[Entry, ...] = ()


class PageDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The document of `GET /api/status`; operations newest first."""

    now: datetime
    version: str
    clusters: tuple[ClusterStatus, ...]
    operations: tuple[OperationRecord, ...] = ()
    poison: tuple[poison.PoisonMessage, ...] = ()


def collect(clients: Clients, clusters: Sequence[Cluster]) -> StatusDocument:
    """Ask journal, state documents and poison queues; ApiError when the storage account does not answer."""
    ticks = clients.journal.ticks()
    rows = [row for cluster in clusters for row in _rows(clients, cluster, ticks)]
    counts = {queue: clients.queue(queue + poison.SUFFIX).count() for queue in poison.queues(clients)}
    failed = {queue: count for queue, count in counts.items() if count}
    return StatusDocument(now=utc(clients.now()), rows=tuple(rows), poison=failed)


def collect_page(clients: Clients) -> PageDocument:
    """Everything the page shows, of all clusters; ApiError when the storage account does not answer."""
    now, ticks = utc(clients.now()), clients.journal.ticks()
    return PageDocument(
        now=now,
        version=__version__,
        clusters=tuple(_cluster(clients, cluster, ticks) for cluster in clients.settings().clusters),
        operations=tuple(clients.operations.recent(now - LATELY)),
        poison=tuple(poison.messages(clients)),
    )


def _cluster(clients: Clients, cluster: Cluster, ticks: dict[str, datetime]) -> ClusterStatus:
    rows = _rows(clients, cluster, ticks)
    pairs = [(cluster.name, row.automation) for row in rows]
    return ClusterStatus(
        name=cluster.name,
        automations=tuple(rows),
        backups=_backups(clients, cluster),
        journal=tuple(clients.journal.entries(pairs, ENTRIES)),
    )


def _backups(clients: Clients, cluster: Cluster) -> tuple[BackupRecord, ...]:
    if cluster.etcd_backup is None:
        return ()
    store = clients.blobs(cluster.etcd_backup.container)
    try:
        return read_listing(store.list(f"{cluster.name}/")).records
    except NotFoundError:  # no pass has made the container yet
        return ()


def _rows(clients: Clients, cluster: Cluster, ticks: dict[str, datetime]) -> list[Row]:
    return [
        _row(clients, cluster.name, automation.name, ticks.get(automation.name))
        for automation in AUTOMATIONS.values()
        if automation.is_configured(cluster)
    ]


def _row(clients: Clients, cluster: str, automation: str, last_tick: datetime | None) -> Row:
    state = clients.claims.state(cluster, automation)
    if state.paused:
        word = "paused"
    elif state.passed_at is None:
        word = "never ran"
    else:
        word = "dirty" if clients.claims.is_dirty(cluster, automation, state.begun) else "idle"
    return Row(
        cluster=cluster,
        automation=automation,
        state=word,
        last_pass=state.passed_at,
        last_tick=last_tick,
        pause_reason=state.paused.reason if state.paused else "",
        summary=clients.journal.summary(cluster, automation),
    )

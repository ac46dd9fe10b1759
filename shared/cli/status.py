"""What every automation last saw, did and left alone, gathered for `keeper status`; reads only."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from shared.model.plan import utc
from shared.runtime.automation import AUTOMATIONS
from shared.runtime.journal import Summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.bootstrap import Clients
    from shared.settings import Cluster


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


def collect(clients: Clients, clusters: Sequence[Cluster]) -> StatusDocument:
    """Ask journal, state documents and poison queues; ApiError when the storage account does not answer."""
    from shared.runtime import poison

    ticks = clients.journal.ticks()
    rows = [
        _row(clients, cluster.name, automation.name, ticks.get(automation.name))
        for cluster in clusters
        for automation in AUTOMATIONS.values()
        if automation.is_configured(cluster)
    ]
    counts = {queue: clients.queue(queue + poison.SUFFIX).count() for queue in poison.queues(clients)}
    failed = {queue: count for queue, count in counts.items() if count}
    return StatusDocument(now=utc(clients.now()), rows=tuple(rows), poison=failed)


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

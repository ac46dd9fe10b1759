"""The state of the fleet, read once: what every automation last saw, did and left alone.

`collect` is what `keeper status` prints, `collect_page` what the status page shows besides: what was done
lately, sizes of pools, backups, disks, routes, operations, and messages that failed for good. Reads only;
asks neither Kubernetes nor Azure, so it answers while they do not.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared import __version__
from shared.errors import NotFoundError
from shared.model.backup import BackupRecord, read_listing
from shared.model.plan import utc
from shared.runtime import poison
from shared.runtime.automation import AUTOMATIONS, schedule_setting
from shared.runtime.journal import Entry, Sizes, Summary
from shared.runtime.operation import OperationRecord
from shared.status.attention import Attention, attention, is_silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shared.bootstrap import Clients
    from shared.settings import Cluster

LATELY = timedelta(days=7)
"""How far back the page looks for operations and sizes of pools."""
ENTRIES = 200
"""Journal entries of one cluster on the page."""
LAST_GOOD = "its last good version is served"
"""How ingress sync ends the line on an object that is out while what it was before is still there."""


class Row(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One (cluster, automation). `state`: idle, due to run again (`dirty`), `paused` or `never ran`."""

    cluster: str
    automation: str
    state: str
    last_pass: datetime | None = None
    last_tick: datetime | None = None
    is_silent: bool = False
    """Its timer has missed several ticks in a row."""
    pause_reason: str = ""
    summary: Summary | None = None


class StatusDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The document of `keeper status --json`; `poison` counts messages by queue, empty queues left out."""

    now: datetime
    rows: tuple[Row, ...]
    poison: dict[str, int]


class HeldDisk(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A disk that is being freed of a machine. `step`: the write that was last sent and where it stands."""

    disk: str
    vm: str
    node: str
    since: datetime
    reason: str
    step: str = ""


class GatewayRoute(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One path of one host that a gateway serves. `host` "" is any; `owner` and `service` are
    `namespace/name`.
    """

    owner: str
    host: str
    path: str
    service: str
    has_tls: bool


class Gateway(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What ingress sync remembers of its gateway. `writing_since`: a write is under way since then."""

    routes: tuple[GatewayRoute, ...] = ()
    written_at: datetime | None = None
    writing_since: datetime | None = None


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One cluster: its automations, its backups and sizes oldest first, its journal newest first."""

    name: str
    automations: tuple[Row, ...]
    backups: tuple[BackupRecord, ...] = ()
    sizes: tuple[Sizes, ...] = ()
    held: tuple[HeldDisk, ...] = ()
    gateway: Gateway | None = None
    quarantined: tuple[dict[str, Any], ...] = ()
    """Objects that the last pass of ingress sync left out of the gateway, with reasons."""
    journal: tuple[Entry, ...] = ()


class PageDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The document of `GET /api/status`; operations newest first."""

    now: datetime
    version: str
    clusters: tuple[ClusterStatus, ...]
    operations: tuple[OperationRecord, ...] = ()
    poison: tuple[poison.PoisonMessage, ...] = ()
    attention: tuple[Attention, ...] = ()


def collect(clients: Clients, clusters: Sequence[Cluster]) -> StatusDocument:
    """Ask journal, state documents and poison queues; ApiError when the storage account does not answer."""
    ticks = clients.journal.ticks()
    rows = [row for cluster in clusters for row in rows_of(clients, cluster, ticks)]
    counts = {queue: clients.queue(queue + poison.SUFFIX).count() for queue in poison.queues(clients)}
    failed = {queue: count for queue, count in counts.items() if count}
    return StatusDocument(now=utc(clients.now()), rows=tuple(rows), poison=failed)


def collect_page(clients: Clients) -> PageDocument:
    """Everything the page shows, of all clusters; ApiError when the storage account does not answer."""
    now, ticks = utc(clients.now()), clients.journal.ticks()
    document = PageDocument(
        now=now,
        version=__version__,
        clusters=tuple(_cluster(clients, cluster, ticks, now) for cluster in clients.settings().clusters),
        operations=tuple(clients.operations.recent(now - LATELY)),
        poison=tuple(poison.messages(clients)),
    )
    return msgspec.structs.replace(document, attention=attention(document))


def _cluster(clients: Clients, cluster: Cluster, ticks: dict[str, datetime], now: datetime) -> ClusterStatus:
    rows = rows_of(clients, cluster, ticks)
    pairs, gateway = [(cluster.name, row.automation) for row in rows], gateway_of(clients, cluster)
    return ClusterStatus(
        name=cluster.name,
        automations=tuple(rows),
        backups=_backups(clients, cluster),
        sizes=tuple(clients.journal.sizes(cluster.name, now - LATELY)) if cluster.autoscaling else (),
        held=held_disks(clients, cluster),
        gateway=gateway,
        quarantined=tuple(quarantined_objects(rows, gateway)) if gateway else (),
        journal=tuple(clients.journal.entries(pairs, ENTRIES)),
    )


def held_disks(clients: Clients, cluster: Cluster) -> tuple[HeldDisk, ...]:
    """Disks of the releases under way that nobody has seen free yet."""
    if cluster.disk_release is None:
        return ()
    from shared.disk_release.cases import machine_name
    from shared.disk_release.state import read_state

    state = read_state(clients.claims.state(cluster.name, "disk-release").automation)
    free = {(done.vm, done.disk, done.epoch) for done in state.done}
    return tuple(
        HeldDisk(
            disk=disk.rpartition("/")[2],
            vm=machine_name(release.vm),
            node=release.node,
            since=release.begun_at,
            reason=release.reason,
            step=f"{release.writes[-1].kind} {release.writes[-1].state}" if release.writes else "",
        )
        for vm, release in state.releases.items()
        for disk in release.disks
        if (vm, disk, release.epoch) not in free
    )


def gateway_of(clients: Clients, cluster: Cluster) -> Gateway | None:
    """The routes that were last written, from the automation's own memory."""
    if cluster.ingress_sync is None:
        return None
    from shared.ingress_sync.routes import unpack_routes
    from shared.ingress_sync.state import read_state

    state = read_state(clients.claims.state(cluster.name, "ingress-sync").automation)
    return Gateway(
        routes=tuple(
            GatewayRoute(
                owner=route.owner,
                host=host,
                path=rule.path or "/",
                service=rule.backend.service,
                has_tls=site.tls is not None,
            )
            for route in unpack_routes(state.routes).values()
            for site in route.sites
            for host in site.hosts
            for rule in site.rules
        ),
        written_at=state.last_put_at,
        writing_since=state.put.announced_at if state.put else None,
    )


def quarantined_objects(rows: Sequence[Row], gateway: Gateway) -> Iterator[dict[str, Any]]:
    served = {route.owner for route in gateway.routes}
    for row in rows:
        if row.automation != "ingress-sync" or row.summary is None:
            continue
        for left in row.summary.left_alone:
            # What is said of a served object is a warning, unless its last good version stands in for it.
            is_out = left["subject"] not in served or left["message"].endswith(LAST_GOOD)
            if _is_object(left["subject"]) and is_out:
                yield left


def _is_object(subject: str) -> bool:
    """Whether it is `namespace/name`, and no resource id or name of a cluster."""
    return subject.count("/") == 1 and not subject.startswith("/")


def _backups(clients: Clients, cluster: Cluster) -> tuple[BackupRecord, ...]:
    if cluster.etcd_backup is None:
        return ()
    store = clients.blobs(cluster.etcd_backup.container)
    try:
        return read_listing(store.list(f"{cluster.name}/")).records
    except NotFoundError:  # no pass has made the container yet
        return ()


def rows_of(clients: Clients, cluster: Cluster, ticks: dict[str, datetime]) -> list[Row]:
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
        is_silent=last_tick is not None
        and is_silent(clients.environ.get(schedule_setting(automation), ""), last_tick, clients.now()),
        pause_reason=state.paused.reason if state.paused else "",
        summary=clients.journal.summary(cluster, automation),
    )

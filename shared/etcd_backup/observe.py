"""Reads everything a decision about etcd backups needs, once: members and their status, and the listing of
backups.

Members are asked at the same time, each in a thread of its own, so that one that hangs delays nobody; what
cannot be reached is part of the observation, with its error. A store that cannot be listed is an error:
without it nothing can be decided. Called by `reconcile`, `keeper snapshot` and the operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from shared.errors import ApiError
from shared.etcd_backup.observation import EndpointReading, Observation
from shared.model.backup import ListedBlob, Listing, read_listing
from shared.model.etcd import Member, MemberStatus
from shared.model.plan import utc
from shared.settings import Cluster


class Etcd(Protocol):
    """What observing needs of `shared.clients.etcd.EtcdClient`."""

    @property
    def endpoints(self) -> tuple[str, ...]: ...
    def status(self, endpoint: str) -> MemberStatus: ...
    def members(self) -> tuple[Member, ...]: ...
    def clock(self, endpoint: str) -> datetime | None: ...


class Store(Protocol):
    """What observing needs of `shared.clients.blob.BlobStore`."""

    def list(self, prefix: str = "") -> Iterable[ListedBlob]: ...


def observe(
    cluster: Cluster, etcd: Etcd, store: Store, *, state: dict[str, Any], now: datetime
) -> Observation:
    """One look at the cluster's etcd and its backups; ApiError when the backups cannot be listed."""
    listing = read_listing(store.list(f"{cluster.name}/"))
    return observe_etcd(cluster, etcd, now=now, listing=listing, state=state)


def observe_etcd(
    cluster: Cluster,
    etcd: Etcd,
    *,
    now: datetime,
    listing: Listing | None = None,
    state: dict[str, Any] | None = None,
) -> Observation:
    """The same without the store, for health and defragmentation."""
    with ThreadPoolExecutor(len(etcd.endpoints) + 1, thread_name_prefix="etcd-observe") as pool:
        asked = pool.submit(_members, etcd)
        endpoints = tuple(pool.map(lambda endpoint: read_endpoint(etcd, endpoint), etcd.endpoints))
        members, members_error = asked.result()
    return Observation(
        cluster=cluster.name,
        now=utc(now),
        cluster_entry=msgspec.json.decode(msgspec.json.encode(cluster)),
        endpoints=endpoints,
        members=members,
        members_error=members_error,
        backups=listing.records if listing else (),
        orphans=listing.orphans if listing else (),
        state=state or {},
    )


def read_endpoint(etcd: Etcd, endpoint: str) -> EndpointReading:
    """One member's status, or why there is none."""
    read_at = utc(datetime.now(UTC))
    began = time.monotonic()
    try:
        status = etcd.status(endpoint)
    except ApiError as error:
        return EndpointReading(
            endpoint=endpoint,
            read_at=read_at,
            latency_ms=_milliseconds(began),
            error=str(error),
            reason=error.code or "Unreachable",
        )
    latency_ms = _milliseconds(began)
    skew = _clock_skew(lambda: etcd.clock(endpoint))
    return EndpointReading(
        endpoint=endpoint, read_at=read_at, latency_ms=latency_ms, clock_skew_ms=skew, status=status
    )


def _members(etcd: Etcd) -> tuple[tuple[Member, ...], str]:
    """Sorted by id: etcd lists them in no fixed order."""
    try:
        return tuple(sorted(etcd.members(), key=lambda member: member.id)), ""
    except ApiError as error:
        return (), str(error)


def _clock_skew(read: Callable[[], datetime | None]) -> int | None:
    """Milliseconds the member is ahead; it tells whole seconds, so anything within one of them counts as
    none.
    """
    before = datetime.now(UTC)
    theirs = read()
    after = datetime.now(UTC)
    if theirs is None:
        return None
    early, late = (theirs - after).total_seconds(), (theirs - before).total_seconds() + 1
    ahead = early if early > 0 else late if late < 0 else 0
    return round(ahead * 1000)


def _milliseconds(began: float) -> int:
    return round((time.monotonic() - began) * 1000)

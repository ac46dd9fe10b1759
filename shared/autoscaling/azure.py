"""Reads what planning needs of Azure with as few requests as possible, and remembers it in the state.

Lists of pools are one request each; machines of a pool are listed only where its size and its nodes differ;
sizes are read once a day, quota and prices only when somebody waits. A remembered reading is good for
planning: before anything is written the pool is read again (`act`). A reading that fails is answered as that,
and not remembered: what is not known is never taken for nothing. Called by `observe`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.autoscaling.facts import Pool, PoolKind, read_facts
from shared.autoscaling.policy import AutoscalingPolicy
from shared.autoscaling.prices import retail_prices
from shared.autoscaling.slim import slim
from shared.errors import ApiError
from shared.model.plan import utc
from shared.model.snapshot import AzureReading

if TYPE_CHECKING:
    from shared.clients.arm import Arm
    from shared.settings import AzureScope

Document = dict[str, Any]
Remembered = dict[str, Document]

COMPUTE = "providers/Microsoft.Compute"
EXPAND = {"$expand": "instanceView"}
ONE_DAY, ONE_HOUR = timedelta(days=1), timedelta(hours=1)
QUIET_POOLS = timedelta(minutes=10)
"""While nobody waits, sizes of pools are believed for so long."""
BUSY_POOLS = timedelta(seconds=20)
"""While pods wait, or capacity was asked for."""
QUIET_MACHINES, BUSY_MACHINES = timedelta(minutes=5), timedelta(seconds=45)
REMEMBERED_ITEMS = 300
"""Longer lists are read again rather than carried along in a state that every pass writes."""
USAGES = timedelta(minutes=5)


class Ages(msgspec.Struct, frozen=True, kw_only=True):
    """How old a remembered reading may be."""

    pools: timedelta = QUIET_POOLS
    machines: timedelta = QUIET_MACHINES
    usages: timedelta = ONE_DAY


QUIET = Ages()
PATIENT = Ages(pools=timedelta(minutes=5), machines=QUIET_MACHINES, usages=timedelta(minutes=15))
"""Pods wait that were planned for before, and nothing is under way."""
BUSY = Ages(pools=BUSY_POOLS, machines=BUSY_MACHINES, usages=USAGES)
NOW = Ages(pools=timedelta(0), machines=timedelta(0), usages=timedelta(0))

NodesOfPool = Callable[[Pool], int]
"""How many nodes a pool has in the cluster."""


class AzureReader:
    """One look at a cluster's part of Azure. `remembered` is changed: it goes back into the state.

    `models`: bodies of machines by the id of the availability set they were of; a set at zero gets the tags
    that its last machine had. With `whole`, documents are kept as they came, for a snapshot file.
    """

    def __init__(
        self,
        arm: Arm,
        scope: AzureScope,
        policy: AutoscalingPolicy,
        remembered: Remembered,
        now: datetime,
        *,
        models: Mapping[str, Document] | None = None,
        whole: bool = False,
    ) -> None:
        self._models = models or {}
        self._arm, self._scope, self._policy = arm, scope, policy
        self._remembered, self._now, self._whole = remembered, now, whole
        self.readings: dict[str, AzureReading] = {}

    def pools(self, ages: Ages) -> tuple[Pool, ...]:
        """Every pool that is taken over, with as much of its machines as is read without asking more."""
        if self._scope.managed_cluster:
            cluster = self._scope.managed_cluster
            self._one(cluster, ONE_DAY)
            self._list(f"{cluster}/agentPools", ages.pools)
        for group in self._groups():
            self._list(f"{group}/{COMPUTE}/virtualMachineScaleSets", self._sets_age(group, ages))
            self._availability_sets(group, ages)
        for group in self._groups():
            if any(_needs_machines(pool) and pool.id.startswith(group.lower()) for pool in self._pools()):
                self._list(f"{group}/{COMPUTE}/virtualMachines", ages.pools, EXPAND)
        return self._pools()

    def machines(self, pools: Iterable[Pool], nodes: NodesOfPool, ages: Ages) -> None:
        """Instances of the pools whose size and nodes differ; the costly read."""
        for pool in pools:
            if pool.kind is PoolKind.SCALE_SET and nodes(pool) != pool.capacity:
                self._list(f"{pool.id}/virtualMachines", ages.machines, EXPAND)
            if pool.kind is PoolKind.AGENT_POOL and nodes(pool) != pool.capacity:
                self._agent_machines(pool, ages)

    def limits(self, pools: Iterable[Pool], ages: Ages) -> None:
        """Sizes of the pools, and for whoever is about to ask for more: quota and prices."""
        wanted = {(pool.location.lower(), pool.size.lower()) for pool in pools if pool.size}
        locations = sorted({location for location, _ in wanted} - {""})
        subscription = f"/subscriptions/{self._scope.subscription}/{COMPUTE}"
        sizes = {size for _, size in wanted}
        for location in locations:
            known = self._known_sizes(location)
            age = ONE_DAY if {size for where, size in wanted if where == location} <= known else timedelta(0)
            self._list(f"{subscription}/skus", age, _in(location), sizes=sizes)
            if self._policy.quota.enabled and ages.usages < ONE_DAY:
                self._list(f"{subscription}/locations/{location}/usages", ages.usages)
            if self._policy.retail_prices:
                self._prices(location, sizes)

    def _availability_sets(self, group: str, ages: Ages) -> None:
        reading = self._list(f"{group}/{COMPUTE}/availabilitySets", self._availability_age(group, ages))
        items = (reading.body or {}).get("value") or ()
        if any(str(item.get("id")).lower() in self._models for item in items):
            told = [self._with_model(item) for item in items]
            self.readings[reading.id] = msgspec.structs.replace(reading, body={"value": told})

    def _with_model(self, item: Document) -> Document:
        """An empty set says nothing of its machines: what is remembered of the last one does."""
        model = self._models.get(str(item.get("id")).lower())
        if model is None or (item.get("properties") or {}).get("virtualMachines"):
            return item
        size = (model.get("properties") or {}).get("hardwareProfile", {}).get("vmSize")
        remembered = {**(model.get("tags") or {}), **({"vmSize": size} if size else {})}
        return {**item, "tags": {**remembered, **(item.get("tags") or {})}}

    # Which

    def _groups(self) -> list[str]:
        prefix = f"/subscriptions/{self._scope.subscription}/resourceGroups"
        return [f"{prefix}/{group}" for group in self._scope.resource_groups]

    def _pools(self) -> tuple[Pool, ...]:
        return read_facts(self.readings.values(), self._policy).pools

    def _sets_age(self, group: str, ages: Ages) -> timedelta:
        """Scale sets behind AKS pools are not ours to look at; others beside them are rare."""
        return max(ages.pools, ONE_HOUR) if self._scope.managed_cluster and ages.pools else ages.pools

    def _availability_age(self, group: str, ages: Ages) -> timedelta:
        known = self._remembered.get(_key(f"{group}/{COMPUTE}/availabilitySets", {}))
        is_empty = known is not None and not (known.get("body") or {}).get("value")
        return max(ages.pools, ONE_HOUR) if is_empty and ages.pools else ages.pools

    def _agent_machines(self, pool: Pool, ages: Ages) -> None:
        """AKS's names, then the states of the virtual machines behind them."""
        reading = self._list(f"{pool.id}/machines", ages.machines)
        found = (reading.body or {}).get("value") or ()
        behind = {str((one.get("properties") or {}).get("resourceId") or "") for one in found}
        where = {one.rpartition("/virtualMachines/")[0] for one in behind if "/virtualMachines/" in one}
        for above in sorted(where):
            self._list(f"{above}/virtualMachines", ages.machines, EXPAND)

    def _known_sizes(self, location: str) -> set[str]:
        path = f"/subscriptions/{self._scope.subscription}/{COMPUTE}/skus"
        key = _key(path, _in(location))
        body = (self._remembered.get(key) or {}).get("body") or {}
        return {str(one).lower() for one in body.get("asked") or ()}

    # How

    def _one(self, resource_id: str, age: timedelta) -> AzureReading:
        def read() -> Document:
            return self._arm.get(resource_id).document

        return self._remember(_key(resource_id, {}), age, read)

    def _list(
        self, path: str, age: timedelta, query: Mapping[str, str] = {}, *, sizes: set[str] | None = None
    ) -> AzureReading:
        def read() -> Document:
            pages = [msgspec.json.decode(body) for body in self._arm.pages(path, **query)]
            value = [item for page in pages for item in page.get("value") or ()]
            if sizes is None:
                return {"value": value}
            named = [item for item in value if str(item.get("name") or "").lower() in sizes]
            return {"value": named, "asked": sorted(sizes)}

        return self._remember(_key(path, query), age, read)

    def _prices(self, location: str, sizes: set[str]) -> None:
        key, read = retail_prices(location, sizes)
        self._remember(key, ONE_DAY, read)

    def _remember(self, key: str, age: timedelta, read: Callable[[], Document]) -> AzureReading:
        if key in self.readings:
            return self.readings[key]
        known = self._remembered.get(key)
        if known is not None and (reading := _reading(key, known)) and self._now - reading.read_at < age:
            self.readings[key] = reading
            return reading
        try:
            body = read()
            reading = AzureReading(id=key, status=200, read_at=utc(self._now), body=body)
        except ApiError as error:
            reading = AzureReading(
                id=key, status=error.status or 0, read_at=utc(self._now), code=error.code or "NoAnswer"
            )
            self._remembered.pop(key, None)
        else:
            small = slim(key, body)
            if len(body.get("value") or ()) <= REMEMBERED_ITEMS:
                self._remembered[key] = {"readAt": f"{self._now:%Y-%m-%dT%H:%M:%SZ}", "body": small}
            reading = reading if self._whole else msgspec.structs.replace(reading, body=small)
        self.readings[key] = reading
        return reading


def forget_pools(remembered: Remembered) -> None:
    """Drop everything that a change of capacity makes wrong; sizes, quota and prices stay."""
    for key in [key for key in remembered if not _is_lasting(key)]:
        del remembered[key]


def forget_old(remembered: Remembered, now: datetime) -> None:
    """Drop what is too old to be used again."""
    for key in list(remembered):
        age = now - msgspec.convert(remembered[key]["readAt"], datetime)
        if age > (2 * ONE_DAY if _is_lasting(key) else 2 * ONE_HOUR):
            del remembered[key]


def failures(readings: Iterable[AzureReading]) -> tuple[AzureReading, ...]:
    """Readings that brought no facts."""
    return tuple(reading for reading in readings if reading.status != 200)


def _needs_machines(pool: Pool) -> bool:
    """Pools whose nodes cannot be told by the machine's id alone."""
    return pool.kind in (PoolKind.FLEXIBLE_SCALE_SET, PoolKind.AVAILABILITY_SET)


def _in(location: str) -> Mapping[str, str]:
    return {"$filter": f"location eq '{location}'"}


def _is_lasting(key: str) -> bool:
    return "/skus" in key or key.endswith("/usages") or key.startswith("https:")


def _reading(key: str, known: Mapping[str, Any]) -> AzureReading:
    return AzureReading(
        id=key, status=200, read_at=msgspec.convert(known["readAt"], datetime), body=known["body"]
    )


def _key(path: str, query: Mapping[str, str]) -> str:
    return path + (f"?{'&'.join(f'{name}={value}' for name, value in query.items())}" if query else "")

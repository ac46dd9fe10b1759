"""One pass at work: the ledger that is saved before each request, and the drivers of the pools.

What `growth` and `removal` share. Every change of the ledger that Azure will see is saved through the claim
first: a holder that lost it can no longer announce anything, and so asks for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.autoscaling.azure import Remembered, forget_pools
from shared.autoscaling.facts import Pool, PoolKind
from shared.autoscaling.ledger import Ledger, read_ledger
from shared.autoscaling.observe import CACHED, Place
from shared.autoscaling.pools.agent_pool import AgentPool
from shared.autoscaling.pools.availability_set import AvailabilitySet, Model
from shared.autoscaling.pools.driver import Driver, read_image
from shared.autoscaling.pools.scale_set import FlexibleScaleSet, UniformScaleSet
from shared.errors import ApiError, UnsafePlanError
from shared.log import log_event
from shared.secret import resolve_secret

if TYPE_CHECKING:
    from shared.clients.arm import Arm
    from shared.clients.kube import KubeClient
    from shared.runtime.claim import Claim

LOOKED_AT = "lookedAt"
"""In the state: when everything was last read."""
FIRST_POLL, NEXT_POLL, LONGEST_POLL = (timedelta(seconds=seconds) for seconds in (15, 20, 30))

log = logging.getLogger(__name__)


@dataclass
class Work:
    """A pass over one cluster. `state` is the document as read, `ledger` its part that is changed here."""

    place: Place
    claim: Claim
    state: dict[str, Any]
    ledger: Ledger
    waits: list[timedelta] = field(default_factory=list)
    """When somebody should look again, from now."""

    @property
    def arm(self) -> Arm:
        return self.place.clients.arm

    @property
    def kube(self) -> KubeClient:
        return self.place.kube

    @property
    def now(self) -> datetime:
        return self.place.now

    @property
    def remembered(self) -> Remembered:
        """Readings of Azure; changed in place."""
        found: Remembered = self.state.setdefault(CACHED, {})
        return found

    def save(self) -> None:
        """Store everything; LostLeaseError when somebody else has the claim by now."""
        self.claim.save(self.ledger.document(self.state))

    def look_again(self, wait: timedelta) -> None:
        """Somebody should, after so long."""
        self.waits.append(wait)

    def look_at_everything(self) -> None:
        """What was last planned with does not hold any more: the next look reads all, whoever waits."""
        self.state.pop(LOOKED_AT, None)

    def pools_changed(self) -> None:
        """What is remembered of pools is wrong from now on."""
        forget_pools(self.remembered)

    def driver(self, kind: str, pool_id: str, name: str) -> Driver:
        """The driver of a pool; SettingsError when its custom data cannot be read."""
        if kind == PoolKind.SCALE_SET:
            return UniformScaleSet()
        if kind == PoolKind.FLEXIBLE_SCALE_SET:
            return FlexibleScaleSet()
        if kind == PoolKind.AGENT_POOL:
            return AgentPool()
        known = self.ledger.note(pool_id).model
        model = msgspec.convert(known, Model) if known else None
        rolls = self.ledger.rolls.values()
        image = next((roll.image for roll in rolls if roll.pool == pool_id and not roll.ended), "")
        return AvailabilitySet(model, self._custom_data(name), read_image(image) if image else None)

    def driver_of(self, pool: Pool) -> Driver:
        """As `driver`."""
        return self.driver(pool.kind, pool.id, pool.name)

    def remember_model(self, pool_id: str, driver: Driver) -> None:
        """Keep what new machines of an availability set are made like."""
        if isinstance(driver, AvailabilitySet) and driver.model is not None:
            self.ledger.note(pool_id).model = msgspec.to_builtins(driver.model)

    def learn_models(self, pools: Iterable[Pool]) -> None:
        """Remember what machines of availability sets are made like, while there are any; once for each."""
        for pool in pools:
            if (
                pool.kind is PoolKind.AVAILABILITY_SET
                and pool.machines
                and not self.ledger.note(pool.id).model
            ):
                self.learn_model(pool.id, self.driver_of(pool))

    def learn_model(self, pool_id: str, driver: Driver) -> None:
        """Read it anew from a machine that is there; what cannot be read now is read another time."""
        if not isinstance(driver, AvailabilitySet):
            return
        try:
            driver.remember(self.arm, pool_id, driver.read(self.arm, pool_id))
        except (ApiError, UnsafePlanError) as error:
            log_event(log, "ModelNotRead", level=logging.WARNING, pool=pool_id, message=str(error))
        self.remember_model(pool_id, driver)

    def _custom_data(self, name: str) -> str:
        wanted = next((one for one in self.place.policy.pools if one.name.lower() == name.lower()), None)
        if wanted is None or not wanted.custom_data:
            return ""
        return resolve_secret(wanted.custom_data, self.place.clients.environ).strip()


def begin_work(place: Place, claim: Claim) -> Work:
    """A pass's work on the state as it stands."""
    state = msgspec.json.decode(msgspec.json.encode(claim.state))
    work = Work(place, claim, state, read_ledger(state))
    work.ledger.forget_old(place.now)
    return work


def poll_due(began: datetime, asked_at: datetime | None, now: datetime) -> timedelta:
    """How long until an operation should be asked about; nothing or less: now."""
    if asked_at is None:
        return began + FIRST_POLL - now
    pause = NEXT_POLL if asked_at - began < timedelta(minutes=1) else LONGEST_POLL
    return asked_at + pause - now

"""Growing a pool: asked for once, over the version just read, and followed until it has ended.

What can go wrong, and what is done about it:

* The pool is not as it was planned for (a stale reading, somebody else): nothing is asked; the next pass
  plans anew. A capacity below what runs is never believed, and never written.
* The answer is lost, or the run dies: the growth stands in the ledger without an address to ask. The next
  pass looks at the pool. A late request can no longer do harm: it was conditional on the pool's old version,
  or on names that were not used yet.
* Azure refuses, now or when the operation ends: the pool rests, for a time that depends on why, and the same
  or the next pass chooses another.

Called by `act` and `reconcile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from shared.autoscaling.facts import Pool
from shared.autoscaling.ledger import (
    GROWTH_PATIENCE,
    Change,
    Cleanup,
    Failure,
    Growth,
    failure_by_code,
    failure_of,
    is_busy,
)
from shared.autoscaling.pools.driver import Driver, Fresh, MachineState
from shared.autoscaling.work import Work, poll_due
from shared.clients.arm import Progress
from shared.errors import ApiError, NotFoundError, ThrottledError, UnavailableError, UnsafePlanError
from shared.model.plan import Action, ActionKind, Outcome, Status
from shared.model.wording import counted

BUSY_WAIT = timedelta(seconds=15)
"""A pool that was occupied, or is not what was planned for, is looked at again after so long."""
SUPERSEDED = frozenset({"operationpreempted", "canceledandsupersededduetoanotheroperation"})


class Declined(Exception):  # noqa: N818 - not an error: a precondition no longer holds
    """Why an action was not carried out; nothing was written."""


@dataclass(frozen=True)
class Wish:
    """`to` machines in a pool that had `was` when it was planned; `seen` of its nodes are in the cluster."""

    action: Action
    pool: Pool
    was: int
    to: int
    seen: int


# Asking


def begin_growth(work: Work, wish: Wish) -> Outcome:
    """Ask Azure for it. An outcome in every case but LostLeaseError; failures rest the pool."""
    action, pool = wish.action, wish.pool
    driver = work.driver_of(pool)
    try:
        fresh = _checked(work, driver, wish)
        if fresh.capacity < wish.seen:
            _check_machines(work, driver, wish, fresh)
    except Declined as declined:
        work.look_at_everything()
        work.pools_changed()
        work.look_again(BUSY_WAIT)
        return Outcome(action=action, status=Status.SKIPPED, message=str(declined))
    except UnsafePlanError as error:
        return Outcome(action=action, status=Status.SKIPPED, message=str(error))
    except ApiError as error:
        return _unread(work, action, pool, error)
    return _ask(work, wish, driver, fresh)


def _checked(work: Work, driver: Driver, wish: Wish) -> Fresh:
    pool, was, to = wish.pool, wish.was, wish.to
    fresh = driver.read(work.arm, pool.id)
    if fresh.hands_off:
        raise UnsafePlanError(f"{pool.name}: {fresh.hands_off}")
    if fresh.capacity >= to:
        raise Declined(f"{pool.name} has {counted(fresh.capacity, 'machine')} by now, {to} were wanted")
    if fresh.capacity != was:
        raise Declined(
            f"{pool.name} was planned for with {counted(was, 'machine')} and has {fresh.capacity}; "
            "planning anew"
        )
    if unseen := _unseen(work, pool.id, fresh):
        raise Declined(f"Azure does not list {unseen} yet, which was made minutes ago; that is not believed")
    if to > pool.max:
        raise UnsafePlanError(f"{pool.name} may have {counted(pool.max, 'machine')}, {to} were wanted")
    return fresh


def _unseen(work: Work, pool_id: str, fresh: Fresh) -> str:
    """A machine that was made and is not in the answer; empty for pools that have etags instead."""
    note = work.ledger.pools.get(pool_id)
    members = fresh.document.get("members", ())
    return next((one.rpartition("/")[2] for one in (note.made if note else ()) if one not in members), "")


def _note_made(work: Work, growth: Growth, count: int) -> None:
    """Machines whose creation was taken; the first ones of those announced."""
    machines = growth.announced[1::2][:count]
    work.ledger.note(growth.pool).made |= {one.lower(): work.now for one in machines}


def _forget_made(work: Work, growth: Growth) -> None:
    """What became of them is not known: the pool's own list says it."""
    made, ours = work.ledger.note(growth.pool).made, {one.lower() for one in growth.announced}
    work.ledger.note(growth.pool).made = {one: at for one, at in made.items() if one not in ours}


def _check_machines(work: Work, driver: Driver, wish: Wish, fresh: Fresh) -> None:
    """The pool's capacity is below what runs (an answer that is wrong, or a deletion that failed and was
    counted): it may be written if the list of machines says that the wish is more than there are.
    """
    pool = wish.pool
    machines = [one for one in driver.machines(work.arm, pool.id) if one.state is not MachineState.DELETING]
    if len(machines) < wish.seen:
        raise Declined(
            f"Azure says {pool.name} has {counted(fresh.capacity, 'machine')} while {wish.seen} of its nodes "
            "are in the cluster; that is not believed"
        )
    if len(machines) >= wish.to:
        raise Declined(f"{pool.name} has {counted(len(machines), 'machine')} by now, {wish.to} were wanted")


def _ask(work: Work, wish: Wish, driver: Driver, fresh: Fresh) -> Outcome:
    action, pool, to = wish.action, wish.pool, wish.to
    growth = Growth(
        pool=pool.id,
        name=pool.name,
        kind=pool.kind,
        was=fresh.capacity,
        to=to,
        at=work.now,
        reason=action.reason,
    )
    kept = work.ledger.growths.get(pool.id)
    change = Change(pool=pool.id, count=to - fresh.capacity, at=work.now)
    work.ledger.growths[pool.id] = growth
    work.ledger.additions.append(change)
    work.pools_changed()
    work.save()

    def announce(resources: Sequence[str]) -> None:
        growth.announced = list(resources)
        work.remember_model(pool.id, driver)
        work.save()

    try:
        begun = driver.grow(work.arm, fresh, to, announce)
    except UnavailableError as error:
        work.look_again(BUSY_WAIT)
        message = f"{pool.name}: it is not known whether Azure got the request; looking again: {error}"
        return Outcome(action=action, status=Status.SKIPPED, message=message)
    except (ApiError, UnsafePlanError) as error:
        work.ledger.additions.remove(change)
        _undo(work, growth, kept)
        return _refused(work, action, pool, error)
    work.remember_model(pool.id, driver)
    _note_made(work, growth, len(begun))
    growth.status_urls = [one.status_url for one in begun if one.status_url]
    work.save()
    work.look_again(poll_due(growth.at, None, work.now))
    message = (
        f"{pool.name}: {counted(to - fresh.capacity, 'more machine')} asked for, {fresh.capacity} to {to}"
    )
    data = {"pool": pool.id, "from": fresh.capacity, "to": to, "event": "ScaledUp"}
    return Outcome(action=action, status=Status.SUCCEEDED, message=message, data=data)


def _undo(work: Work, growth: Growth, kept: Growth | None) -> None:
    """The growth was refused: what ran before it goes on; what was made for it goes away."""
    _sweep(work, growth)
    if kept is not None:
        work.ledger.growths[growth.pool] = kept
    else:
        work.ledger.growths.pop(growth.pool, None)


def _unread(work: Work, action: Action, pool: Pool, error: ApiError) -> Outcome:
    """The pool could not be read just before: then nothing is written."""
    if isinstance(error, ThrottledError | UnavailableError):
        wait = error.retry_after_seconds if isinstance(error, ThrottledError) else BUSY_WAIT.total_seconds()
        work.look_again(timedelta(seconds=wait))
        message = f"{pool.name} cannot be read now, so nothing was asked for: {error}"
        if isinstance(error, ThrottledError):
            work.ledger.rest(pool.id, failure_of(error), work.place.policy.scale_up.backoff, work.now)
            work.save()
        return Outcome(action=action, status=Status.SKIPPED, message=message)
    return _refused(work, action, pool, error)


def _refused(work: Work, action: Action, pool: Pool, error: ApiError | UnsafePlanError) -> Outcome:
    """Busy pools are looked at again; others rest, and the next pass chooses without them."""
    work.look_at_everything()
    work.look_again(BUSY_WAIT)
    if isinstance(error, UnsafePlanError) or is_busy(error):
        work.save()
        return Outcome(action=action, status=Status.SKIPPED, message=f"{pool.name}: {error}")
    return _rested(work, action, pool.id, pool.name, failure_of(error))


def _rested(work: Work, action: Action, pool: str, name: str, failure: Failure) -> Outcome:
    rest = work.ledger.rest(pool, failure, work.place.policy.scale_up.backoff, work.now)
    work.look_at_everything()
    work.save()
    work.look_again(timedelta(seconds=1))
    until = f"{rest.until:%H:%M:%S} UTC"
    message = f"{name} rests until {until} ({failure.reason}): {failure.message}"
    data: dict[str, Any] = {"pool": pool, "reason": str(failure.reason), "code": failure.code}
    data |= {"until": until} | {"event": "ScaleUpFailed", "final": True}
    return Outcome(action=action, status=Status.FAILED, message=message, data=data)


# Following


def follow_growths(work: Work) -> list[Outcome]:
    """Ask how the operations stand that were begun; outcomes of those that ended."""
    outcomes: list[Outcome] = []
    for growth in list(work.ledger.growths.values()):
        try:
            outcomes += _follow(work, growth)
        except (ThrottledError, UnavailableError) as error:
            wait = getattr(error, "retry_after_seconds", 0.0)
            work.look_again(max(BUSY_WAIT, timedelta(seconds=wait)))
    return outcomes


def _follow(work: Work, growth: Growth) -> list[Outcome]:
    if not growth.status_urls:
        return [_look_for(work, growth)]
    if (wait := poll_due(growth.at, growth.asked_at, work.now)) > timedelta(0):
        work.look_again(wait)
        return []
    growth.asked_at = work.now
    progress = [_progress(work, url) for url in growth.status_urls]
    failed = [one for one in progress if one.state in ("Failed", "Canceled")]
    if all(one.state != "InProgress" for one in progress):
        return [_ended(work, growth, failed)]
    if work.now - growth.at > GROWTH_PATIENCE:
        return [_finish(work, growth, "its operation has not ended; its machines are judged by themselves")]
    work.look_again(poll_due(growth.at, growth.asked_at, work.now))
    work.save()
    return []


def _progress(work: Work, url: str) -> Progress:
    try:
        return work.arm.poll(url)
    except NotFoundError:
        return Progress(state="Succeeded", message="the operation is forgotten")


def _ended(work: Work, growth: Growth, failed: list[Progress]) -> Outcome:
    others = [one for one in failed if one.code.lower() not in SUPERSEDED]
    work.pools_changed()
    if failed or len(growth.status_urls) < len(growth.announced) // 2:
        _sweep(work, growth)
    if failed:
        _forget_made(work, growth)
    if failed and not others:
        return _finish(work, growth, "a later change of the pool took over from it")
    if not failed:
        work.ledger.note(growth.pool).backoff = None
        return _finish(work, growth, f"{counted(growth.to - growth.was, 'more machine')} made")
    del work.ledger.growths[growth.pool]
    first = others[0]
    failure = failure_by_code(first.code, first.message or first.code or "the operation was cancelled")
    return _rested(work, _action(growth), growth.pool, growth.name, failure)


def _look_for(work: Work, growth: Growth) -> Outcome:
    """Nobody knows whether the request arrived: the pool tells."""
    driver = work.driver(growth.kind, growth.pool, growth.name)
    try:
        fresh = driver.read(work.arm, growth.pool)
    except NotFoundError:
        return _finish(work, growth, "the pool is gone")
    work.pools_changed()
    _sweep(work, growth)
    if fresh.capacity >= growth.to:
        return _finish(work, growth, f"it was carried out: the pool has {counted(fresh.capacity, 'machine')}")
    work.look_at_everything()
    return _finish(work, growth, f"it was not carried out: the pool has {counted(fresh.capacity, 'machine')}")


def _finish(work: Work, growth: Growth, why: str) -> Outcome:
    del work.ledger.growths[growth.pool]
    work.save()
    message = f"{growth.name} from {growth.was} to {growth.to}: {why}"
    data = {"pool": growth.pool, "event": "ScaleUpEnded"}
    return Outcome(action=_action(growth), status=Status.SUCCEEDED, message=message, data=data)


def _action(growth: Growth) -> Action:
    """What the outcome of an earlier pass's request is about."""
    return Action(
        kind=ActionKind.SCALE_UP,
        target=growth.name,
        reason=growth.reason or "Begun",
        message=f"grow {growth.name} from {growth.was} to {growth.to}, asked at {growth.at:%H:%M:%S} UTC",
        parameters={"pool": growth.pool, "from": growth.was, "to": growth.to},
    )


def _sweep(work: Work, growth: Growth) -> None:
    """Interfaces that were made for machines which never came are left to `removal` to delete."""
    pairs = zip(growth.announced[::2], growth.announced[1::2], strict=False)
    for interface, machine in pairs:
        work.ledger.cleanups.setdefault(
            interface.lower(), Cleanup(id=interface, machine=machine.lower(), at=work.now)
        )

"""Taking a node away: cordon, drain, check again, delete exactly its machine, clean up after it.

A state machine of many short passes, kept in the ledger:

    Draining  -> Deleting   every pod has left, and the checks hold
              -> Undoing    a refusal, too late, or somebody objects
    Deleting  -> done       the machine is gone
              -> Draining   it is not, and nobody knows why: looked at from the start
    Undoing   -> done       the node is uncordoned and everything is as before

A machine that is made anew instead (`reimage`) goes from Draining to Reimaging, and from there to Undoing.

A deletion is announced before it is asked for, together with what the machine will leave behind (availability
sets: interface, OS disk, public address); that stands in the ledger until it is gone too, whatever happens in
between. Called by `act` and `replacing` (begin) and `reconcile` (goes on).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from shared.autoscaling.facts import Pool
from shared.autoscaling.growth import BUSY_WAIT, Declined
from shared.autoscaling.ledger import LONGEST_LAG, Change, Cleanup, Phase, Removal
from shared.autoscaling.observe import machine_of
from shared.autoscaling.pools.driver import Driver, Machine, MachineState
from shared.autoscaling.reimage import make_anew
from shared.autoscaling.work import Work, poll_due
from shared.errors import ApiError, NotFoundError, ThrottledError, UnavailableError, UnsafePlanError
from shared.model.duration import parse_duration
from shared.model.plan import Action, ActionKind, Outcome, Status
from shared.model.wording import counted
from shared.nodes.cordon import cordon, path_of, uncordon
from shared.nodes.drain import Step, drain_step

BY = "autoscaling"
"""Who cordoned, in the node's annotation."""
TAINT_KEY = "kubekeeper.io/to-be-deleted"
TAINT = {"key": TAINT_KEY, "effect": "NoSchedule"}
KEEP = "cluster-autoscaler.kubernetes.io/scale-down-disabled"
"""Annotation of nodes that are never removed."""

DRAIN_WAIT = timedelta(seconds=15)
DELETE_PATIENCE = timedelta(minutes=30)
"""A machine that cannot be deleted for so long is given up, and told about."""
CLEAN_AGAIN = timedelta(seconds=20)
CLEAN_SLOWLY = timedelta(minutes=10)
DELETE_AGAIN = timedelta(minutes=3)
"""A deletion that was taken and has not happened is asked for again after so long."""
CLEAN_QUICKLY_FOR = timedelta(minutes=30)


# Beginning


def begin_removal(work: Work, action: Action, pool: Pool, removals: Sequence[Removal]) -> list[Outcome]:
    """Note the nodes (or machines without a node) that are to go; the work is done by `follow_removals`."""
    fresh = [one for one in removals if one.key not in work.ledger.draining]
    for removal in fresh:
        work.ledger.draining[removal.key] = removal
    if not fresh:
        return []
    work.save()
    names = ", ".join(_short(one) for one in fresh)
    message = f"{pool.name}: {names} to be removed: {action.message}"
    data = {"pool": pool.id, "nodes": [one.key for one in fresh], "event": "ScaleDownBegun"}
    return [Outcome(action=action, status=Status.SUCCEEDED, message=message, data=data)]


def new_removal(
    work: Work, pool: Pool, machine: str, reason: str, *, timeout: str = "", **known: Any
) -> Removal:
    """Of a machine of the pool; `timeout`: another than the policy's for its drain; `known` are further
    fields.
    """
    patience = parse_duration(timeout or work.place.policy.scale_down.drain_timeout)
    return Removal(
        **{"floor": pool.min} | known,
        pool=pool.id,
        name=pool.name,
        kind=pool.kind,
        machine=machine.lower(),
        at=work.now,
        deadline=work.now + patience,
        reason=reason,
    )


def call_off(work: Work, removal: Removal, why: str) -> list[Outcome]:
    """Undo a removal whose machine is not being deleted yet; nothing otherwise."""
    return [_give_up(work, removal, why)] if removal.phase is Phase.DRAINING else []


# Going on


def follow_removals(work: Work) -> list[Outcome]:
    """One step of every removal and cleanup; outcomes of those that ended."""
    outcomes: list[Outcome] = []
    for removal in list(work.ledger.draining.values()):
        if removal.phase is Phase.DRAINING:
            outcomes += _step(work, removal)
        elif removal.phase is Phase.UNDOING:
            outcomes += _undo(work, removal)
        if removal.reimage and (removal.phase is Phase.REIMAGING or removal.drained):
            outcomes += _make_anew(work, removal)
    for pool in sorted({one.pool for one in work.ledger.draining.values() if not one.reimage}):
        outcomes += _delete_drained(work, pool)
    outcomes += follow_cleanups(work)
    if work.ledger.draining:
        work.save()
    return outcomes


def _step(work: Work, removal: Removal) -> list[Outcome]:
    """One look at what is to be drained. Nobody answers: tried again; somebody refuses: given up."""
    removal.drained = False
    try:
        _drain(work, removal)
    except (ThrottledError, UnavailableError) as error:
        removal.message = str(error)[:300]
        _wait_for(work, error)
        if work.now >= removal.deadline:
            return [_give_up(work, removal, f"it took too long: {error}")]
    except (Declined, ApiError) as error:
        return [_give_up(work, removal, str(error))]
    return []


def _make_anew(work: Work, removal: Removal) -> list[Outcome]:
    """The machine stays: when it is through, its node takes pods again."""
    try:
        if not make_anew(work, removal):
            return []
    except (ThrottledError, UnavailableError) as error:
        removal.message = str(error)[:300]
        _wait_for(work, error)
        return []
    except (Declined, ApiError) as error:
        return [_give_up(work, removal, str(error))]
    removal.phase, removal.drained = Phase.UNDOING, False
    work.pools_changed()
    work.save()
    _undo(work, removal)
    message = f"{_short(removal)} of {removal.name}: drained and made anew"
    return [_outcome(removal, Status.SUCCEEDED, message)]


# Draining


def _drain(work: Work, removal: Removal) -> None:
    """Sets `drained` when the machine may go; Declined when it must stay."""
    if not removal.node:
        _check_is_no_node(work, removal)
        removal.drained = True
        return
    if not _keep_cordoned(work, removal):
        removal.drained = True
        return
    longest = parse_duration(work.place.policy.scale_down.max_grace_period)
    step = drain_step(work.kube, removal.node, longest_grace_seconds=round(longest.total_seconds()))
    removal.evicted += len(step.evicted)
    only_terminating = not (step.evicted or step.refused or step.postponed)
    removal.drained = step.is_empty or (removal.is_lost and only_terminating)
    removal.message = "" if removal.drained else _what_is_left(step)
    if removal.drained:
        return
    if work.now >= removal.deadline:
        minutes = (work.now - removal.at) // timedelta(minutes=1)
        raise Declined(f"{counted(step.left, 'pod')} left after {minutes} minutes: {removal.message}")
    work.look_again(DRAIN_WAIT)


def _what_is_left(step: Step) -> str:
    return next(
        (f"{pod}: {why}" for pod, why in step.refused.items()), f"{counted(step.left, 'pod')} leaving"
    )


def _check_is_no_node(work: Work, removal: Removal) -> None:
    node = work.kube.find(path_of(removal.computer_name)) if removal.computer_name else None
    if node is not None and machine_of(str(node["spec"].get("providerID") or "")) == removal.machine:
        raise Declined("it has become a node after all")


def _keep_cordoned(work: Work, removal: Removal) -> bool:
    """Cordon once, and notice whoever objects; False when the node is gone and its machine may follow."""
    node = work.kube.find(path_of(removal.node))
    if node is None:
        return False
    is_same = not removal.uid or node["metadata"].get("uid") == removal.uid
    if not is_same or machine_of(str(node["spec"].get("providerID") or "")) != removal.machine:
        raise Declined("a node of that name is another one now")
    if str((node["metadata"].get("annotations") or {}).get(KEEP, "")).lower() == "true":
        raise Declined(f"annotation {KEEP} stands on the node now")
    if removal.cordoned and not node["spec"].get("unschedulable"):
        raise Declined("somebody uncordoned the node")
    if not removal.cordoned:
        cordon(work.kube, removal.node, by=BY, uid=removal.uid, taint=TAINT)
        removal.cordoned = True
        work.save()
    return True


def _give_up(work: Work, removal: Removal, why: str) -> Outcome:
    """Nothing is removed for a while; the node is uncordoned, now or by the next pass."""
    removal.phase, removal.drained, removal.message = Phase.UNDOING, False, why[:300]
    work.ledger.removal_failed_at = work.now
    work.save()
    _undo(work, removal)
    message = f"{_short(removal)} of {removal.name} stays: {why}"
    return _outcome(removal, Status.FAILED, message, event="ScaleDownGivenUp", final=True)


def _undo(work: Work, removal: Removal) -> list[Outcome]:
    try:
        if removal.node:
            uncordon(work.kube, removal.node, by=BY, uid=removal.uid, taint_key=TAINT_KEY)
    except ApiError as error:
        removal.message = f"to be uncordoned: {error}"[:300]
        work.look_again(BUSY_WAIT)
        return []
    work.ledger.draining.pop(removal.key, None)
    work.save()
    return []


# Deleting


def _delete_drained(work: Work, pool: str) -> list[Outcome]:
    """Delete the pool's machines whose pods have all left, in one request; follow those asked for."""
    ours = [one for one in work.ledger.draining.values() if one.pool == pool and not one.reimage]
    ready = [one for one in ours if one.phase is Phase.DRAINING and one.drained]
    going = [one for one in ours if one.phase is Phase.DELETING]
    outcomes = _follow_deletion(work, going) if going else []
    if not ready:
        return outcomes
    driver = work.driver(ready[0].kind, pool, ready[0].name)
    try:
        return outcomes + _delete(work, driver, pool, ready)
    except (ThrottledError, UnavailableError) as error:
        _wait_for(work, error)
        return outcomes
    except (ApiError, UnsafePlanError, Declined) as error:
        return outcomes + [_give_up(work, one, str(error)) for one in ready if one.phase is Phase.DRAINING]


def _delete(work: Work, driver: Driver, pool: str, ready: list[Removal]) -> list[Outcome]:
    machines = {one.id: one for one in driver.machines(work.arm, pool)}
    outcomes = _gone_already(work, [one for one in ready if one.machine not in machines])
    there = _not_taken(work, [one for one in ready if one.machine in machines], machines)
    allowed = _above_floor(there, machines)
    outcomes += [
        _give_up(work, one, f"{one.name} would have fewer than {counted(one.floor, 'node')}")
        for one in there
        if one not in allowed
    ]
    if not allowed:
        return outcomes
    if len(allowed) == len(machines):
        work.learn_model(pool, driver)  # of the last ones, so that the pool can grow again
    batches = [[one] for one in allowed] if driver.deletes_singly else [allowed]
    for batch in batches:
        outcomes += _ask_to_delete(work, driver, batch, [machines[one.machine] for one in batch])
    return outcomes


def _ask_to_delete(
    work: Work, driver: Driver, removals: list[Removal], victims: list[Machine]
) -> list[Outcome]:
    """One request, announced before it leaves."""
    _announce(work, driver, victims, removals)
    try:
        begun = driver.delete(work.arm, removals[0].pool, victims)
    except (UnavailableError, ThrottledError) as error:
        _wait_for(work, error)  # perhaps it was taken: the next pass finds out
        return []
    except ApiError as error:
        return _not_deleted(work, removals, error)
    for removal in removals:
        removal.status_urls = [one.status_url for one in begun if one.status_url]
    work.save()
    work.look_again(poll_due(work.now, None, work.now))
    return []


def _gone_already(work: Work, missing: list[Removal]) -> list[Outcome]:
    """Azure does not list these machines. While a kubelet says otherwise, Azure's list is not believed."""
    outcomes: list[Outcome] = []
    for removal in missing:
        if removal.node and _is_ready(work.kube.find(path_of(removal.node))):
            removal.message = "Azure does not list its machine, and its kubelet is well"
            work.look_again(BUSY_WAIT)
            if work.now >= removal.deadline:
                outcomes.append(_give_up(work, removal, removal.message))
            continue
        outcomes.append(_done(work, removal, "it was gone already"))
    return outcomes


def _is_ready(node: Mapping[str, Any] | None) -> bool:
    conditions = ((node or {}).get("status") or {}).get("conditions") or ()
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def _not_taken(work: Work, ready: list[Removal], machines: Mapping[str, Machine]) -> list[Removal]:
    """Those that Azure is not deleting already: an earlier request of ours was taken, and is followed."""
    taken = [one for one in ready if machines[one.machine].state is MachineState.DELETING]
    for removal in taken:
        removal.phase, removal.status_urls = Phase.DELETING, []
        removal.deleting_since = removal.asked_at = work.now
        work.look_again(BUSY_WAIT)
    return [one for one in ready if one not in taken]


def _above_floor(there: list[Removal], machines: Mapping[str, Machine]) -> list[Removal]:
    """Those that may go without the pool falling below its minimum, by what Azure says now. Machines that
    failed and nodes that are lost hold nothing: they go in any case, and are replaced.
    """
    broken = [one for one in there if not one.node or one.is_lost]
    others = [one for one in there if one not in broken]
    going = sum(1 for one in machines.values() if one.state is MachineState.DELETING)
    room = len(machines) - going - len(broken) - max((one.floor for one in others), default=0)
    return broken + others[: max(0, room)]


def _announce(work: Work, driver: Driver, victims: list[Machine], removals: list[Removal]) -> None:
    """Write down what will be left behind and that the deletion is about to be asked for, in one save."""
    for victim, removal in zip(victims, removals, strict=True):
        for resource in driver.belongings(work.arm, [victim]):
            entry = Cleanup(id=resource, machine=victim.id, at=work.now)
            work.ledger.cleanups.setdefault(resource.lower(), entry)
        removal.phase = Phase.DELETING
        removal.deleting_since, removal.asked_at, removal.status_urls = work.now, None, []
        removal.deadline = max(removal.deadline, removal.at + DELETE_PATIENCE)
    work.ledger.removals.append(Change(pool=removals[0].pool, count=len(removals), at=work.now))
    work.pools_changed()
    work.save()


def _not_deleted(work: Work, removals: list[Removal], error: ApiError) -> list[Outcome]:
    """Azure refused at once, so nothing was taken: tried again while it is only busy."""
    machines = {one.machine for one in removals}
    for key in [k for k, entry in work.ledger.cleanups.items() if entry.machine in machines]:
        del work.ledger.cleanups[key]
    del work.ledger.removals[-1]
    for removal in removals:
        removal.phase, removal.message = Phase.DRAINING, str(error)[:300]
    if error.status in (409, 412) and all(removal.deadline > work.now for removal in removals):
        work.save()
        work.look_again(BUSY_WAIT)
        return []
    return [_give_up(work, removal, str(error)) for removal in removals]


def _follow_deletion(work: Work, going: list[Removal]) -> list[Outcome]:
    began = min(one.deleting_since or one.at for one in going)
    asked = max((one.asked_at for one in going if one.asked_at), default=None)
    if (wait := poll_due(began, asked, work.now)) > timedelta(0):
        work.look_again(wait)
        return []
    try:
        return _ask_about(work, going)
    except (ThrottledError, UnavailableError) as error:
        _wait_for(work, error)
        return []


def _ask_about(work: Work, going: list[Removal]) -> list[Outcome]:
    """Whether the operations are over; where that is unknown, or they failed, whether the machines are."""
    for removal in going:
        removal.asked_at = work.now
    states = {url: _state(work, url) for url in {url for one in going for url in one.status_urls}}
    running = [one for one in going if any(states[url] == "InProgress" for url in one.status_urls)]
    ended = [one for one in going if one not in running]
    well = [
        one for one in ended if one.status_urls and all(states[url] == "Succeeded" for url in one.status_urls)
    ]
    outcomes = [_done(work, one, "drained and deleted") for one in well]
    if running:
        work.look_again(BUSY_WAIT)
    return outcomes + _look_for(work, [one for one in ended if one not in well])


def _state(work: Work, url: str) -> str:
    try:
        return work.arm.poll(url).state
    except NotFoundError:
        return "Unknown"


def _look_for(work: Work, unknown: list[Removal]) -> list[Outcome]:
    """A machine that is still there is drained and deleted anew, for a while."""
    if not unknown:
        return []
    first = unknown[0]
    driver = work.driver(first.kind, first.pool, first.name)
    machines = {one.id: one for one in driver.machines(work.arm, first.pool)}
    outcomes = _gone_already(work, [one for one in unknown if one.machine not in machines])
    for removal in unknown:
        machine = machines.get(removal.machine)
        if machine is None:
            continue
        work.look_again(BUSY_WAIT)
        if work.now >= removal.deadline:
            outcomes.append(_give_up(work, removal, "Azure does not delete its machine"))
        elif machine.state is not MachineState.DELETING:
            removal.phase, removal.message = Phase.DRAINING, "its deletion did not happen; asked for again"
    return outcomes


def _done(work: Work, removal: Removal, how: str) -> Outcome:
    """The machine is gone: so is its Node, whoever deletes it first."""
    work.ledger.draining.pop(removal.key, None)
    work.ledger.note(removal.pool).made.pop(removal.machine, None)
    for entry in work.ledger.cleanups.values():
        entry.is_sure = entry.is_sure or entry.machine == removal.machine
    work.pools_changed()
    if removal.node:
        _delete_node(work, removal)
    work.save()
    return _outcome(
        removal, Status.SUCCEEDED, f"{_short(removal)} of {removal.name}: {how}", event="ScaledDown"
    )


def _delete_node(work: Work, removal: Removal) -> None:
    """Where no cloud controller does it: the Node of exactly this machine."""
    try:
        node = work.kube.find(path_of(removal.node))
        if node and machine_of(str(node["spec"].get("providerID") or "")) == removal.machine:
            work.kube.delete(path_of(removal.node), uid=node["metadata"]["uid"])
    except ApiError:
        return  # the cloud controller, or the next removal of a node that is NotReady, takes care of it


# Cleaning up


def follow_cleanups(work: Work) -> list[Outcome]:
    """Delete what deleted machines left behind; one that is refused is tried again until it succeeds."""
    outcomes: list[Outcome] = []
    busy = {one.machine for one in work.ledger.draining.values()}
    for key, entry in list(work.ledger.cleanups.items()):
        is_slow = entry.seen_at is not None or work.now - entry.at > CLEAN_QUICKLY_FOR
        pause = CLEAN_SLOWLY if is_slow else CLEAN_AGAIN
        if entry.machine in busy:
            continue
        if entry.asked_at and work.now - entry.asked_at < pause:
            work.look_again(pause - (work.now - entry.asked_at))
            continue
        try:
            outcomes += _clean(work, key, entry)
        except ApiError as error:
            entry.message = str(error)[:300]
            work.look_again(CLEAN_AGAIN)
    if work.ledger.cleanups or outcomes:
        work.save()
    return outcomes


def _clean(work: Work, key: str, entry: Cleanup) -> list[Outcome]:
    entry.asked_at, entry.attempts = work.now, entry.attempts + 1
    if not entry.is_sure and _exists(work, entry.machine):
        if work.now - entry.at > LONGEST_LAG:
            del work.ledger.cleanups[key]  # the machine needs it
        else:
            entry.seen_at = work.now
            work.look_again(CLEAN_SLOWLY)
        return []
    if not _is_gone(work, entry):
        work.look_again(CLEAN_AGAIN)
        return []
    del work.ledger.cleanups[key]
    name = entry.id.rpartition("/")[2]
    action = Action(
        kind=ActionKind.DELETE_INSTANCE,
        target=name,
        reason="LeftBehind",
        message=f"delete {name}, which a deleted machine left behind",
        parameters={"id": entry.id},
    )
    message = f"{name} is gone, after {entry.attempts} requests"
    return [Outcome(action=action, status=Status.SUCCEEDED, message=message, data={"event": "CleanedUp"})]


def _is_gone(work: Work, entry: Cleanup) -> bool:
    """Ask for its deletion; once that is taken only look, for a while."""
    entry.message = ""
    if entry.accepted_at and work.now - entry.accepted_at < DELETE_AGAIN:
        return not _exists(work, entry.id)
    try:
        begun = work.arm.delete(entry.id)
    except NotFoundError:
        return True
    entry.accepted_at = work.now
    return begun.status == 204


def _exists(work: Work, resource: str) -> bool:
    try:
        work.arm.get(resource)
    except NotFoundError:
        return False
    return True


# Parts


def _wait_for(work: Work, error: ApiError) -> None:
    """Look again when whoever is in trouble has had time."""
    seconds = error.retry_after_seconds if isinstance(error, ThrottledError) else 0.0
    work.look_again(max(BUSY_WAIT, timedelta(seconds=seconds)))


def _short(removal: Removal) -> str:
    return removal.node or removal.computer_name or removal.machine.rpartition("/")[2]


def _outcome(
    removal: Removal, status: Status, message: str, *, event: str = "", final: bool = False
) -> Outcome:
    kind = ActionKind.SCALE_DOWN if removal.node else ActionKind.DELETE_INSTANCE
    kind = ActionKind.REIMAGE if removal.reimage else kind
    action = Action(
        kind=kind,
        target=_short(removal),
        reason=removal.reason or "Requested",
        message=f"{'make anew' if removal.reimage else 'remove'} {_short(removal)} of {removal.name}",
        parameters={"pool": removal.pool, "machine": removal.machine},
    )
    data: dict[str, Any] = {"pool": removal.pool, "evicted": removal.evicted}
    data |= ({"event": event} if event else {}) | ({"final": True} if final else {})
    return Outcome(action=action, status=status, message=message, data=data)

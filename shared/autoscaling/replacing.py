"""Carries out what `rolling` decides: grows the pool, has machines drained and deleted, looks again.

Growth and removal are those of an ordinary pass (`growth`, `removal`), with all their checks; what stands
between two looks is the ledger's `rolls`, and while an entry stands there no ordinary pass removes nodes of
the pool. Called by the operations `replace-node` and `rolling-upgrade`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from shared.autoscaling.facts import Pool
from shared.autoscaling.growth import Declined, Wish, begin_growth, follow_growths
from shared.autoscaling.ledger import ROLL_LOST, BackoffReason, Phase, Roll
from shared.autoscaling.observe import is_node_of, machine_of, pools_and_nodes
from shared.autoscaling.pools.driver import Machine, MachineState
from shared.autoscaling.reconcile import follow_up
from shared.autoscaling.removal import begin_removal, call_off, follow_removals, new_removal
from shared.autoscaling.rolling import Course, Do, Member, Step, next_step
from shared.autoscaling.work import Work
from shared.errors import NotYetError, ThrottledError, UnavailableError
from shared.model.duration import format_duration, parse_duration
from shared.model.node import Node
from shared.model.plan import Action, ActionKind, Outcome, Status
from shared.model.wording import counted

if TYPE_CHECKING:
    from shared.bootstrap import Clients

LOOK_SECONDS = 20.0
"""How soon an operation looks again."""
PATIENCE = timedelta(minutes=45)
"""A roll in which nothing has changed for so long has failed; what it began goes on by itself."""


@dataclass
class Sight:
    """A pool as it is now; `members` are its machines, without those that somebody else deletes."""

    pool: Pool
    members: list[Member]
    nodes: dict[str, Node] = field(default_factory=dict)
    """By machine."""


# Of the operations


def carry_out(
    work: Work, clients: Clients, kind: ActionKind, target: str, proceed: Callable[[], str]
) -> list[Outcome]:
    """One delivery of an operation: what was begun goes on, then `proceed`, which returns the last word, or
    raises Declined when it has to stop, and NotYetError when there is more to come.
    """
    known = work.ledger.rolls.get(work.claim.run_id)
    if known is not None and known.ended:
        return [requested(kind, target, known.ended, failed=known.is_failed)]
    done = follow_growths(work) + follow_removals(work)
    try:
        last = requested(kind, target, proceed())
    except NotYetError as unfinished:
        unfinished.outcomes = [*done, *unfinished.outcomes]
        raise
    except (ThrottledError, UnavailableError) as error:
        if known is None or work.now - (known.moved_at or known.at) > PATIENCE:
            raise
        wait = max(LOOK_SECONDS, getattr(error, "retry_after_seconds", 0.0))
        raise NotYetError(f"{target}: {error}", seconds=wait, outcomes=done) from error
    except Declined as declined:
        last = requested(kind, target, f"{target}: {declined}", failed=True)
        done += _call_off(work, str(declined))
    _note_end(work, last)
    follow_up(work, clients)
    if done and work.claim.run_id in work.ledger.rolls:
        # The journal has these first; the next delivery says the last word, and nothing else.
        raise NotYetError(last.message, seconds=1, outcomes=done)
    return [*done, last]


def requested(kind: ActionKind, target: str, message: str, *, failed: bool = False) -> Outcome:
    """What became of an operation; a failure is final, and not tried again by itself."""
    action = Action(kind=kind, target=target, reason="Requested", message=f"{kind} of {target}, as requested")
    data = {"final": True} if failed else {}
    status = Status.FAILED if failed else Status.SUCCEEDED
    return Outcome(action=action, status=status, message=message, data=data)


def pool_named(name: str, pools: Mapping[str, Pool], cluster: str) -> Pool:
    """Declined when no pool of that name is autoscaled."""
    found = next((pool for pool in pools.values() if pool.name.lower() == name.lower()), None)
    if found is None:
        names = ", ".join(sorted(pool.name for pool in pools.values())) or "none"
        raise Declined(f"cluster '{cluster}' has no autoscaled pool '{name}'; there are: {names}")
    return found


def begin_roll(work: Work, run: str, pool: Pool, **known: Any) -> Roll:
    """Note that machines of the pool are being replaced; it keeps the size it has now. Saved by whoever
    begins. Declined for a pool that is being rolled already.
    """
    others = [one for one in work.ledger.rolls.values() if one.pool == pool.id and not one.ended]
    if any(work.now - one.seen_at < ROLL_LOST for one in others):
        raise Declined(f"another operation is replacing machines of {pool.name}; wait for it")
    for lost in others:
        lost.ended, lost.is_failed = "another operation took its place", True
    draining = [one for one in work.ledger.draining.values() if one.pool == pool.id]
    going = sum(1 for one in draining if one.phase is Phase.DRAINING)
    size = pool.capacity - going
    roll = Roll(pool=pool.id, name=pool.name, at=work.now, seen_at=work.now, size=size, **known)
    work.ledger.rolls[run] = roll
    return roll


def _call_off(work: Work, why: str) -> list[Outcome]:
    """Nothing more is begun; nodes that are being drained stay, machines that are being deleted go."""
    roll = work.ledger.rolls.get(work.claim.run_id)
    outcomes: list[Outcome] = []
    for removal in list(work.ledger.draining.values()):
        if roll and (removal.node or removal.computer_name) in roll.asked:
            outcomes += call_off(work, removal, why)
    return outcomes


def _note_end(work: Work, last: Outcome) -> None:
    """Should the worker die now, the next delivery says the same."""
    roll = work.ledger.rolls.get(work.claim.run_id)
    if roll is not None:
        roll.ended, roll.is_failed = last.message, last.status is Status.FAILED
    work.save()


# Looking


def look_at_pools(work: Work) -> tuple[dict[str, Pool], tuple[Node, ...]]:
    """Every pool that is autoscaled here, by its id, and every node."""
    pools, nodes = pools_and_nodes(work.place, work.ledger.document(work.state))
    return {pool.id: pool for pool in pools}, nodes


def look_at(work: Work, pool: Pool, nodes: Sequence[Node], is_old: Callable[[Machine], bool]) -> Sight:
    """The pool's machines, with their nodes; `is_old` says which are to be replaced."""
    by_machine = {machine_of(node.provider_id): node for node in nodes if not node.is_going}
    leaving = {one.machine for one in work.ledger.draining.values()}
    machines = work.driver_of(pool).machines(work.arm, pool.id)
    # A stopped machine without a node is one that AKS keeps for later (scaleDownMode Deallocate).
    absent = {one.id for one in machines if one.state is MachineState.STOPPED} - by_machine.keys()
    absent |= {one.id for one in machines if one.state is MachineState.DELETING} - leaving
    there = [one for one in machines if one.id not in absent]
    members = [
        _member(one, by_machine.get(one.id), is_old=is_old(one), is_leaving=one.id in leaving)
        for one in there
    ]
    return Sight(pool, members + _vanishing(work, pool, machines), by_machine)


def _vanishing(work: Work, pool: Pool, listed: Sequence[Machine]) -> list[Member]:
    """Machines that Azure lists no more, whose removal still has to end, with their Node."""
    names = {one.id for one in listed}
    return [
        Member(machine=one.machine, name=one.computer_name, node=one.node, uid=one.uid, is_leaving=True)
        for one in work.ledger.draining.values()
        if one.pool == pool.id and one.machine not in names
    ]


def _member(machine: Machine, node: Node | None, *, is_old: bool, is_leaving: bool) -> Member:
    failure = f"{machine.code} {machine.message}".strip() if machine.state is MachineState.FAILED else ""
    return Member(
        machine=machine.id,
        name=machine.computer_name or machine.instance,
        node=node.name if node else "",
        uid=node.uid if node else "",
        is_old=is_old,
        is_ready=node is not None and node.is_ready,
        is_leaving=is_leaving,
        born=machine.created_at or (node.created_at if node else None),
        unready_since=node.ready_since if node and not node.is_ready else None,
        failure=failure,
    )


# Going on


def course_of(work: Work, roll: Roll, pool: Pool) -> Course:
    """What holds throughout."""
    boot = parse_duration(pool.policy.provision_timeout or work.place.policy.scale_up.provision_timeout)
    most = roll.size if roll.reimage else max(pool.max, roll.size)
    return Course(size=roll.size, most=most, surge=roll.surge, boot=boot, is_strict=not roll.machine)


def go_on(work: Work, run: str, sight: Sight) -> None:
    """One step of the roll; returns when it is done. Declined when it has to stop, NotYetError when there is
    more to come.
    """
    roll, pool = work.ledger.rolls[run], sight.pool
    course = course_of(work, roll, pool)
    # A list of machines that lags still has those whose nodes we saw go.
    sight.members = [one for one in sight.members if one.node or one.is_leaving or one.name not in roll.asked]
    _note_asked(work, roll)
    if given_up := _given_up(roll, sight):
        raise Declined(given_up)
    growing = pool.id in work.ledger.growths
    step = next_step(sight.members, course, capacity=pool.capacity, is_growing=growing, now=work.now)
    _note_progress(work, roll, sight)
    if step.do is Do.DONE:
        return
    if step.do is Do.STOP:
        raise Declined(step.message)
    patience = _patience(work, roll)
    if work.now - (roll.moved_at or roll.at) > patience:
        line = step.message or "Azure makes no new machines"
        raise Declined(f"nothing has changed for {format_duration(patience)}: {line}")
    line, outcomes = _take(work, roll, sight, step)
    work.save()
    raise NotYetError(f"{progress_of(roll)}; {line}", seconds=LOOK_SECONDS, outcomes=outcomes)


def wait_for(work: Work, roll: Roll, line: str, patience: timedelta = PATIENCE) -> NoReturn:
    """Come again; Declined when nothing has moved for so long."""
    if work.now - (roll.moved_at or roll.at) > patience:
        raise Declined(f"nothing has changed for {format_duration(patience)}: {line}")
    roll.seen_at = work.now
    work.save()
    raise NotYetError(f"{roll.name}: {line}", seconds=LOOK_SECONDS)


def progress_of(roll: Roll) -> str:
    """`agents: 2 of 6 nodes done`."""
    return f"{roll.name}: {done_of(roll)}"


def done_of(roll: Roll) -> str:
    """`2 of 6 nodes done`."""
    return f"{max(0, roll.of - roll.old)} of {counted(roll.of, 'node')} done"


def _take(work: Work, roll: Roll, sight: Sight, step: Step) -> tuple[str, list[Outcome]]:
    """Carry out one step: what to say of it, and what came of it."""
    if step.do is Do.GROW:
        return _grow(work, sight, step.to)
    if step.do is Do.REMOVE:
        return _remove(work, roll, sight, step.members)
    refused = next((why for node, why in roll.asked.items() if why and node in work.ledger.draining), "")
    return f"{step.message}{f': {refused}' if refused else ''}", []


def _grow(work: Work, sight: Sight, to: int) -> tuple[str, list[Outcome]]:
    pool = sight.pool
    rest = work.ledger.note(pool.id).backoff
    if rest is not None and rest.until > work.now:
        if rest.reason is not BackoffReason.THROTTLED:
            raise Declined(
                f"no new machine: {pool.name} rests until {rest.until:%H:%M:%S} UTC: {rest.message}"
            )
        return f"Azure asks to wait until {rest.until:%H:%M:%S} UTC", []
    action = Action(
        kind=ActionKind.SCALE_UP,
        target=pool.name,
        reason="Requested",
        message=f"{to - pool.capacity} more in {pool.name}, to replace others",
        parameters={"pool": pool.id, "from": pool.capacity, "to": to},
    )
    seen = sum(1 for node in sight.nodes.values() if is_node_of(pool, node))
    begun = begin_growth(work, Wish(action=action, pool=pool, was=pool.capacity, to=to, seen=seen))
    if begun.status is Status.FAILED:
        raise Declined(f"no new machine: {begun.message}")
    return begun.message, [begun] if begun.status is Status.SUCCEEDED else []


def _remove(work: Work, roll: Roll, sight: Sight, members: Sequence[Member]) -> tuple[str, list[Outcome]]:
    pool = sight.pool
    names = [one.node or one.name for one in members]
    roll.asked |= dict.fromkeys(names, "")
    removals = [
        new_removal(
            work,
            pool,
            one.machine,
            "Requested",
            timeout=roll.timeout,
            floor=min(pool.min, roll.size - (0 if course_of(work, roll, pool).room else 1)),
            node=one.node,
            uid=one.uid,
            computer_name=one.name,
            reimage=roll.reimage,
            is_lost=not one.is_ready,
        )
        for one in members
    ]
    action = Action(
        kind=ActionKind.SCALE_DOWN,
        target=pool.name,
        reason="Requested",
        message="being replaced",
        parameters={"pool": pool.id, "nodes": names},
    )
    outcomes = begin_removal(work, action, pool, removals) + follow_removals(work)
    _note_asked(work, roll)
    return f"{', '.join(names)} is being drained", outcomes


def _note_asked(work: Work, roll: Roll) -> None:
    """What the removals that were begun wait for; those that are over keep their last word."""
    for removal in work.ledger.draining.values():
        name = removal.node or removal.computer_name
        if name in roll.asked:
            roll.asked[name] = removal.message


def _given_up(roll: Roll, sight: Sight) -> str:
    """A node whose removal was begun, is not under way any more, and which is still there."""
    for one in sight.members:
        if one.is_old and one.node in roll.asked and not one.is_leaving:
            why = roll.asked[one.node]
            return (
                f"{one.node} stays, its removal was given up{f': {why}' if why else '; the journal says why'}"
            )
    return ""


def _note_progress(work: Work, roll: Roll, sight: Sight) -> None:
    before = roll.old, roll.ready
    roll.old = sum(one.is_old for one in sight.members)
    roll.ready = sum(one.is_ready for one in sight.members)
    roll.of = max(roll.of, roll.old)
    roll.seen_at = work.now
    if roll.moved_at is None or (roll.old, roll.ready) != before:
        roll.moved_at = work.now


def _patience(work: Work, roll: Roll) -> timedelta:
    """A drain may take its own time."""
    return PATIENCE + parse_duration(roll.timeout or work.place.policy.scale_down.drain_timeout)

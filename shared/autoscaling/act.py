"""Carries out a plan: growth is asked for, removals are begun; both go on in later passes.

Scale-ups come first: pods are waiting for them. One that fails never keeps another from being asked for. What
a pool looks like is read again just before (`growth`, `removal`); here actions find their pool and their
machines. Called by `reconcile` and the operations.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.autoscaling.facts import Pool
from shared.autoscaling.growth import Wish, begin_growth
from shared.autoscaling.ledger import Removal
from shared.autoscaling.observe import is_node_of, machine_of
from shared.autoscaling.removal import begin_removal, follow_removals, new_removal
from shared.autoscaling.work import Work
from shared.errors import ApiError
from shared.model.node import Node
from shared.model.plan import Action, ActionKind, Outcome, Plan, Status

GROWING = frozenset({ActionKind.SCALE_UP})
"""What is carried out first."""


def act(plan: Plan, work: Work, pools: Mapping[str, Pool], nodes: Mapping[str, Node]) -> list[Outcome]:
    """What became of each action; `pools` by id in lower case, `nodes` by name, both as planned with.

    LostLeaseError ends everything at once; so does what is a bug. All else is in the outcomes.
    """
    ordered = sorted(plan.actions, key=lambda action: action.kind not in GROWING)
    outcomes = [outcome for action in ordered for outcome in _carry_out(action, work, pools, nodes)]
    if any(action.kind not in GROWING for action in plan.actions):
        outcomes += follow_removals(work)
    return outcomes


def _carry_out(
    action: Action, work: Work, pools: Mapping[str, Pool], nodes: Mapping[str, Node]
) -> list[Outcome]:
    pool = pools.get(str(action.parameters.get("pool", "")).lower())
    if pool is None:
        message = f"pool '{action.target}' is not there any more"
        return [Outcome(action=action, status=Status.SKIPPED, message=message)]
    try:
        if action.kind is ActionKind.SCALE_UP:
            return [_grow(action, work, pool, nodes)]
        return begin_removal(work, action, pool, _removals(action, work, pool, nodes))
    except ApiError as error:
        return [Outcome(action=action, status=Status.FAILED, message=str(error))]


def _grow(action: Action, work: Work, pool: Pool, nodes: Mapping[str, Node]) -> Outcome:
    seen = sum(1 for node in nodes.values() if not node.is_going and is_node_of(pool, node))
    was, to = int(action.parameters["from"]), int(action.parameters["to"])
    return begin_growth(work, Wish(action=action, pool=pool, was=was, to=to, seen=seen))


def _removals(action: Action, work: Work, pool: Pool, nodes: Mapping[str, Node]) -> list[Removal]:
    """One for each node or machine that the action names."""
    found = [_of_node(action, work, pool, nodes[name]) for name in named(action, "nodes") if name in nodes]
    known = {removal.machine for removal in found}
    by_machine = {machine_of(node.provider_id): node for node in nodes.values()}
    for machine in (one.lower() for one in named(action, "machines")):
        if machine in known:
            continue
        node = by_machine.get(machine)
        found.append(_of_node(action, work, pool, node) if node else _of_machine(action, work, pool, machine))
    return found


def named(action: Action, name: str) -> list[str]:
    """A list of texts among the action's parameters; empty when it is absent."""
    return [str(one) for one in action.parameters.get(name) or ()]


def _of_node(action: Action, work: Work, pool: Pool, node: Node) -> Removal:
    return new_removal(
        work,
        pool,
        machine_of(node.provider_id),
        action.reason,
        node=node.name,
        uid=node.uid,
        is_lost=not node.is_ready,
    )


def _of_machine(action: Action, work: Work, pool: Pool, machine: str) -> Removal:
    known = next((one for one in pool.machines if one.id == machine), None)
    name = known.computer_name if known else ""
    return new_removal(work, pool, machine, action.reason, computer_name=name)

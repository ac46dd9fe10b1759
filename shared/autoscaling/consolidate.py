"""Replaces nodes by a cheaper one, or by none: a dear node by a cheaper, two half-empty ones by one. Pure; an
option.

The new node comes first; what it is to replace is remembered, and leaves by the ordinary way once every pod
has another home. Only where prices are known, and only when `minSaving` of the nodes' cost is saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations

from shared.autoscaling.board import Group
from shared.autoscaling.facts import Pool
from shared.autoscaling.pack import Offer
from shared.autoscaling.scale_down import Budgets, is_kept, moving_of, utilization
from shared.autoscaling.scene import Scene
from shared.model.duration import parse_duration
from shared.model.node import Node
from shared.model.plan import Action, ActionKind
from shared.model.wording import counted

EMPTIEST = 12
"""Nodes of which pairs are tried: pairs grow with the square."""
TIME_TO_EMPTY = timedelta(minutes=30)
"""On top of the time a node may take to come: after that a replacement is given up."""


@dataclass(frozen=True)
class Replacement:
    """Nodes to go, and the pool that one new node is taken from, None when there is room without one. Costs
    are per hour.
    """

    nodes: tuple[Node, ...]
    offer: Offer | None
    before: float
    after: float


def find(scene: Scene) -> Replacement | None:
    """The replacement that saves most, or None."""
    policy = scene.policy.scale_down.consolidation
    prices = {offer.pool.id: offer.price for offer in scene.offers}
    budgets = Budgets(scene)
    candidates = [
        (pool, node, moving)
        for pool, node in _nodes(scene)
        if prices[pool.id] is not None and (moving := _movable(scene, pool, node, budgets)) is not None
    ]
    best: Replacement | None = None
    for chosen in _choices(scene, candidates):
        before = sum(prices[pool.id] or 0.0 for pool, _, _ in chosen)
        if len(chosen) == 1 and _fits(scene, chosen, None):
            return Replacement((chosen[0][1],), None, before, 0.0)
        for offer in sorted(scene.offers, key=lambda one: (one.price or 0.0, one.pool.id)):
            if offer.price is None or offer.blocker() or offer.whole:
                continue
            if offer.price > before * (1 - policy.min_saving):
                break
            if best and before - offer.price <= best.before - best.after:
                break
            if _fits(scene, chosen, offer):
                best = Replacement(tuple(node for _, node, _ in chosen), offer, before, offer.price)
                break
    return best


def action_of(scene: Scene, found: Replacement) -> Action | None:
    """Ask for the new node, if one is needed."""
    if found.offer is None:
        return None
    pool, names = found.offer.pool, [node.name for node in found.nodes]
    target = max(pool.capacity, scene.size(pool)) + 1
    saved = 1 - found.after / found.before
    return Action(
        kind=ActionKind.SCALE_UP,
        target=pool.name,
        reason="Consolidation",
        message=f"one node of pool {pool.name} instead of {' and '.join(names)}: {saved:.0%} cheaper",
        parameters={"pool": pool.id, "from": pool.capacity, "to": target, "replaces": names},
        evidence=(f"{found.before:g} per hour now, {found.after:g} then", "every pod on them fits"),
        preconditions=(f"the pool still has {counted(pool.capacity, 'machine')}",),
    )


def note_of(scene: Scene, found: Replacement) -> dict[str, str]:
    """What is to be replaced, and until when that stands."""
    wait = parse_duration(scene.policy.scale_up.provision_timeout) + TIME_TO_EMPTY
    return {node.name: f"{scene.now + wait:%Y-%m-%dT%H:%M:%SZ}" for node in found.nodes}


Candidate = tuple[Pool, Node, list[tuple[Group, int]]]


def _nodes(scene: Scene) -> Iterator[tuple[Pool, Node]]:
    for pool in scene.facts.pools:
        if not pool.hands_off and scene.size(pool) > max(pool.min, scene.floors[pool.id].size):
            yield from (
                (pool, node) for node in scene.by_pool[pool.id] if node.is_ready and not node.is_going
            )


def _movable(scene: Scene, pool: Pool, node: Node, budgets: Budgets) -> list[tuple[Group, int]] | None:
    if is_kept(scene, pool, node):
        return None
    moving, problem = moving_of(scene, node)
    return None if problem or not moving or budgets.blocked(moving) else moving


def _choices(scene: Scene, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, ...]]:
    """Single nodes, then pairs of the emptiest."""
    ordered = sorted(candidates, key=lambda one: (utilization(scene, one[1]), one[1].name))
    yield from ((one,) for one in ordered)
    yield from combinations(ordered[:EMPTIEST], 2)


def _fits(scene: Scene, chosen: Sequence[Candidate], offer: Offer | None) -> bool:
    """Whether all their pods fit on the other nodes, and one new one; the board is left as it was."""
    board, packer = scene.board, scene.packer
    rows = [scene.row_of[node.name] for _, node, _ in chosen]
    mark, kept = board.mark(), [(offer, offer.planned)] if offer else []
    lifted = [
        (group, row, count)
        for (_, _, moving), row in zip(chosen, rows, strict=True)
        for group, count in moving
    ]
    for group, row, count in lifted:
        board.lift(group, row, count)
    if offer:
        packer.open_node(offer)
    gone = sum(1 << row for row in rows) | sum(1 << row for row in scene.coming)
    fits = True
    for group, _, count in lifted:
        packer.remaining[group.key] = count
        packer.settle_on(group, board.open_to(group) & ~gone)
        fits = fits and not packer.remaining[group.key]
    packer.undo(mark, kept)
    for group, row, count in lifted:
        board.lift(group, row, -count)
    return fits

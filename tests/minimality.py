"""Whether a plan could do with a node less: the board asked again, without one planned node."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from planning import NOW, Case

from shared.autoscaling.board import Row
from shared.autoscaling.decide import pack
from shared.autoscaling.facts import read_facts
from shared.autoscaling.pack import Offer, rank
from shared.autoscaling.scene import Scene, set_scene
from shared.autoscaling.templates import free_of


def planned(case: Case) -> Scene:
    """The scene once pods have been placed and nodes planned; pods below the cut-off come later."""
    scene = _empty(case)
    pack(scene)
    return scene


def spare_nodes(case: Case, scene: Scene, *, orders: int = 1, seed: int = 0) -> Iterator[tuple[str, int]]:
    """(pool, number of the order): planned nodes without which just as many pods of each kind are placed.

    Of each pool the last one, because Azure chooses the zones. Order 0 is the plain one, hardest pods first;
    the others are drawn, and are not those that the planner tries itself.
    """
    placed: Counter[int] = Counter()
    for one in scene.board.placements:
        if one.group.priority >= scene.policy.scale_up.min_priority:
            placed[one.group.key] += one.count
    for offer in scene.offers:
        for order in range(orders if offer.rows else 0):
            if _fits_without(
                case, scene, offer, placed, random.Random(1000 * seed + order) if order else None
            ):
                yield offer.pool.name, order


def _fits_without(
    case: Case, scene: Scene, offer: Offer, placed: Counter[int], draw: random.Random | None
) -> bool:
    again = _empty(case)
    rows = [row for other in scene.offers for row in other.rows if row != offer.rows[-1]]
    groups = rank(again.groups, again.offers)
    if draw:
        draw.shuffle(groups)
        draw.shuffle(rows)
    for row in rows:
        node = scene.board.nodes[row]
        again.board.add_row(Row(node, free_of(node, again.board.free)))
    again.packer.settle(groups)
    return all(one.count - again.packer.remaining[one.key] >= placed[one.key] for one in groups)


def _empty(case: Case) -> Scene:
    observation = case.observation()
    return set_scene(observation, observation.policy, read_facts(observation.azure, observation.policy), NOW)

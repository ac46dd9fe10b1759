"""A plan, placed again on an empty board: could it do with a node less, and in which order can it be done?"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from planning import NOW, Case

from shared.autoscaling.board import Board, Group, Placement, Row
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


def in_order(case: Case, scene: Scene) -> tuple[list[Placement], list[Placement]]:
    """What is placed before any planned node is there, and what is after, in an order in which each pod may
    go to its node when its turn comes: a plan promises that all of it holds together, not in which order.
    """
    again = _empty(case)
    board, groups = again.board, {group.key: group for group in again.groups}
    nominated = len(board.placements)  # these have their place from the start
    planned = sorted(row for offer in scene.offers for row in offer.rows)
    single = [
        one
        for many in scene.board.placements[nominated:]
        for one in [Placement(many.group, many.row, 1)] * many.count
    ]
    first = next((at for at, one in enumerate(single) if one.row in planned), len(single))
    for one in single[:first]:
        board.place(groups[one.group.key], one.row, 1)
    rows = {row: row for row in range(len(board.nodes))}
    for row in planned:
        node = scene.board.nodes[row]
        rows[row] = board.add_row(Row(node, free_of(node, board.free), {}))
    waiting, done = single[first:], []
    while waiting:
        possible = (one for one in waiting if _may_place(board, groups[one.group.key], rows[one.row]))
        turn = next(possible, waiting[0])
        board.place(groups[turn.group.key], rows[turn.row], 1)
        waiting.remove(turn)
        done.append(turn)
    return single[:first], done


def _may_place(board: Board, group: Group, row: int) -> bool:
    return bool(board.company(group).allowed(1 << row))


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

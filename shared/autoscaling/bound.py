"""How good a plan is: what the best of all plans must cost at least, by a bound that is never wrong.

What new nodes must hold, resource by resource, is what all placed pods ask for less all the room there is on
nodes that could take any of them. Prices are spread over resources so that no pool's node is worth more than
it costs (a feasible solution of the dual linear program); what must be held, at these prices, is then a lower
bound. A few ways to spread are tried and the best counts. Pure; called by `decide`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from shared.autoscaling.board import ENDLESS, Board, Group, Placement
from shared.autoscaling.pack import Offer
from shared.autoscaling.templates import free_of

Weights = Mapping[str, float]
STEPS = 8
"""Ways to divide the price of a node between its cpu and its memory."""
ROUNDING = 1e-9
"""So much less is no saving but floating point."""


def quality(board: Board, offers: Sequence[Offer], existing: int) -> str:
    """One line about the planned nodes of all offers; rows below `existing` are there or on their way."""
    used = [offer for offer in offers if offer.rows]
    usable = [offer for offer in offers if offer.rows or not offer.closed]
    planned = sum(offer.planned for offer in used)
    nodes = "1 new node" if planned == 1 else f"{planned} new nodes"
    if all(offer.price for offer in usable):
        cost = sum((offer.price or 0.0) * offer.planned for offer in used)
        least = least_cost(board, usable, existing, [offer.price or 0.0 for offer in usable])
        shown = f"{nodes} cost {cost:.4g} per hour"
    else:
        cost = float(planned)
        least = float(math.ceil(least_cost(board, usable, existing, [1.0] * len(usable)) - ROUNDING))
        shown = f"{nodes} in all"
    if cost <= least * (1 + ROUNDING):
        return f"{shown}: no plan can do with less"
    if least <= 0:
        return f"{shown}; how many the best plan would need is not known: nodes there are have room too"
    return f"{shown}, at most {math.ceil(100 * (cost / least - 1))} % above the optimum"


def least_cost(board: Board, offers: Sequence[Offer], existing: int, costs: Sequence[float]) -> float:
    """No choice of nodes of these offers that holds what is placed costs less; sizes that are kept whatever
    pods need cost what they cost.
    """
    need = _demand(board)
    need.subtract(_room(board, existing))
    kept = 0.0
    for offer, cost in zip(offers, costs, strict=True):
        kept += offer.floor * cost
        for name, amount in _holds(offer).items():
            need[name] -= offer.floor * amount
    return kept + _value(need, worth(need, offers, costs))


def worth(need: Mapping[str, int], offers: Sequence[Offer], costs: Sequence[float]) -> Weights:
    """Prices by resource at which no node of these offers is worth more than it costs, and the need most."""
    held = [_holds(offer) for offer in offers]
    choices = [_scaled(weights, held, costs) for weights in _spreads(need, held)]
    return max(choices, key=lambda prices: _value(need, prices), default={})


def _value(need: Mapping[str, int], prices: Weights) -> float:
    return max(0.0, sum(need.get(name, 0) * price for name, price in prices.items()))


def _scaled(weights: Weights, held: Sequence[Mapping[str, int]], costs: Sequence[float]) -> Weights:
    """The weights as prices: as high as the cheapest node for what it holds permits."""
    rates = [
        cost / value
        for node, cost in zip(held, costs, strict=True)
        if (value := sum(weight * node.get(name, 0) for name, weight in weights.items())) > 0
    ]
    rate = min(rates, default=0.0)
    return {name: weight * rate for name, weight in weights.items()}


def _spreads(need: Mapping[str, int], held: Sequence[Mapping[str, int]]) -> Iterator[Weights]:
    """Each resource by itself, and cpu with memory in several proportions."""
    most = {name: max((node.get(name, 0) for node in held), default=0) for name in need}
    wanted = [name for name, amount in need.items() if amount > 0 and 0 < most[name] < ENDLESS]
    for name in wanted:
        yield {name: 1.0 / most[name]}
    if "cpu" in wanted and "memory" in wanted:
        for step in range(1, STEPS):
            share = step / STEPS
            yield {"cpu": share / most["cpu"], "memory": (1 - share) / most["memory"]}


def _holds(offer: Offer) -> dict[str, int]:
    return {name: max(0, amount) for name, amount in free_of(offer.template.node, ()).items()}


def _demand(board: Board) -> Counter[str]:
    """What all placed pods ask for, wherever they were placed."""
    return _asked(board.placements)


def _asked(placements: Iterable[Placement]) -> Counter[str]:
    """Sums of requests, first by group, since there are fewer groups than placements."""
    groups: dict[int, Group] = {}
    counts: Counter[int] = Counter()
    for placement in placements:
        groups[placement.group.key] = placement.group
        counts[placement.group.key] += placement.count
    found: Counter[str] = Counter()
    for key, count in counts.items():
        found["pods"] += count
        for name, amount in groups[key].requests.items():
            found[name] += amount * count
    return found


def _room(board: Board, existing: int) -> Counter[str]:
    """What is free, before anything was placed, on nodes that take any of the placed pods."""
    rows = {placement.row for placement in board.placements if placement.row < existing}
    found = _asked(one for one in board.placements if one.row < existing)
    rows |= _others(board, {p.group.key: p.group for p in board.placements}.values(), existing, rows)
    for name, amounts in board.free.items():
        found[name] += sum(max(0, amounts[row]) for row in rows)
    return found


def _others(board: Board, groups: Iterable[Group], existing: int, known: Iterable[int]) -> set[int]:
    """Existing rows without placed pods on which one would fit."""
    left = (1 << existing) - 1
    for row in known:
        left &= ~(1 << row)
    found: set[int] = set()
    for group in groups:
        for row in list(board.fitting(group, board.open_to(group) & left)):
            found.add(row)
            left &= ~(1 << row)
    return found

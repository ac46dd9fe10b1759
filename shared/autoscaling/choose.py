"""Which pool a new node is taken from: the operator's order of strategies, and ways to try. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from shared.autoscaling.board import Group
from shared.autoscaling.pack import UNPRICED, Choice, Offer, Packer
from shared.autoscaling.policy import AutoscalingPolicy

Measure = Callable[[Offer, Group, int], float]
"""Less is better: an offer, for the group and so many of its pods."""


def ways(policy: AutoscalingPolicy, offers: Sequence[Offer]) -> list[Choice]:
    """Ways to choose, all of them within the operator's strategies, the plainest first.

    They differ in how they count a node that is filled in part: by its share, or whole. Which is better
    depends on what else will fill it, so both are tried.
    """
    usable = [offer for offer in offers if not offer.closed]
    if len(usable) < 2:
        return [_choice(policy, _share)]
    return [_choice(policy, measure) for measure in (_share, _whole)]


def prices_decide(policy: AutoscalingPolicy, offers: Sequence[Offer]) -> bool:
    """Whether nothing but an order of pools comes before their prices, and all prices are known."""
    usable = [offer for offer in offers if not offer.closed]
    others = [name for name in policy.scale_up.strategy if name != "priority"]
    fallback = policy.scale_up.spot_fallback or not any(offer.pool.is_spot for offer in offers)
    return others[:1] == ["price"] and fallback and all(offer.price is not None for offer in usable)


def _choice(policy: AutoscalingPolicy, price: Measure) -> Choice:
    measures = {"priority": _rank, "price": price, "least-waste": _waste, "least-nodes": _nodes}

    def choose(packer: Packer, group: Group, usable: Sequence[Offer]) -> Offer | None:
        count = packer.remaining[group.key]
        candidates = [offer for offer in usable if packer.takes(offer, group)]
        if not policy.scale_up.spot_fallback and _waits_for_spot(packer, group):
            candidates = [offer for offer in candidates if offer.pool.is_spot]
        unpriced = any(offer.price is None for offer in candidates)
        for name in policy.scale_up.strategy:
            if name == "price" and unpriced:
                continue
            if len(candidates) > 1:
                candidates = _least(candidates, [measures[name](one, group, count) for one in candidates])
        if policy.scale_up.balance:
            candidates = _least(candidates, [offer.size + offer.planned for offer in candidates])
        return min(candidates, key=lambda offer: offer.pool.id, default=None)

    return choose


def _least(offers: Sequence[Offer], values: Sequence[float]) -> list[Offer]:
    """Those with the least value."""
    least = min(values, default=0.0)
    return [offer for offer, value in zip(offers, values, strict=True) if value == least]


def _waits_for_spot(packer: Packer, group: Group) -> bool:
    """Whether a spot pool would take the group and has to rest now."""
    return any(
        offer.pool.is_spot and offer.closed == "BackedOff" and packer.takes(offer, group)
        for offer in packer.offers
    )


def _rank(offer: Offer, _group: Group, _count: int) -> float:
    return -offer.priority


def _nodes(offer: Offer, group: Group, count: int) -> float:
    """Nodes that the group by itself takes."""
    return math.ceil(count / per_node(offer, group))


def per_node(offer: Offer, group: Group) -> int:
    """Pods of the group that an empty node of the pool holds by resources; at least 1, as it suits."""
    free = offer.template.node.allocatable
    counts = [free.get(name, 0) // amount for name, amount in group.requests.items() if name in free]
    return max(1, min([*counts, free.get("pods", 1)]))


def _share(offer: Offer, group: Group, _count: int) -> float:
    """Cost of the part of a node that one pod takes: the rest will be used by others."""
    free = offer.template.node.allocatable
    part = max((a / free[name] for name, a in group.requests.items() if free.get(name)), default=0.0)
    return cost_of(offer) * max(part, 1 / max(free.get("pods", 1), 1))


def _whole(offer: Offer, group: Group, count: int) -> float:
    """Cost of as many whole nodes as the group by itself takes."""
    return cost_of(offer) * _nodes(offer, group, count)


def _waste(offer: Offer, group: Group, count: int) -> float:
    """Part of cpu and memory of the last node opened that the group leaves unused."""
    held = min(count, per_node(offer, group))
    free = offer.template.node.allocatable
    unused = [1 - held * group.requests.get(n, 0) / free[n] for n in ("cpu", "memory") if free.get(n)]
    extra = sum(1 for name in free if name.endswith("/gpu") and name not in group.requests)
    return round(sum(unused) + extra, 9)


def cost_of(offer: Offer) -> float:
    """Of one node."""
    return UNPRICED if offer.price is None else offer.price


def total_cost(offers: Sequence[Offer]) -> float:
    """Of all planned nodes."""
    return sum(cost_of(offer) * offer.planned for offer in offers)

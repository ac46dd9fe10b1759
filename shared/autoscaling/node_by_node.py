"""Another way to pack: node by node, each time the node that is worth most for what it costs.

Packing group by group settles for one size where a mixture of sizes would be cheaper. Here every pool in turn
is filled, on paper, with the pods that wait, the hardest first; the node whose pods are worth most for its
price is planned, as often as there are pods to fill it in the same way. What a pod is worth comes from the
lower bound: prices of cpu, memory and so on at which no node is worth more than it costs.

Only where prices decide, and for pods that no other pod keeps from a node; the others come afterwards, group
by group. Pure; called by `decide`, which keeps the better of the two results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shared.autoscaling.board import Group
from shared.autoscaling.bound import worth
from shared.autoscaling.pack import Offer, Packer, may_go
from shared.autoscaling.templates import free_of

MOST_GROUPS = 1_000
"""Beyond that it takes longer than it saves."""

Filling = list[tuple[Group, int]]


@dataclass(frozen=True)
class _Candidate:
    """One more node of a pool, and what would be on it."""

    offer: Offer
    filling: Filling
    value: float
    """Worth of its pods for each unit of its price; at most about 1."""


def suits(packer: Packer, groups: Sequence[Group]) -> bool:
    """Whether it is worth trying: not too many shapes, prices of all pools, pools need no balance."""
    usable = [offer for offer in packer.offers if not offer.closed]
    return (
        len(usable) > 1
        and not packer.chooses_each
        and len(groups) <= MOST_GROUPS
        and all(offer.price and not offer.whole for offer in usable)
    )


def grow(packer: Packer, groups: Sequence[Group]) -> None:
    """Plan nodes until no pool may grow or no pod is left that can be handled here."""
    filler = _Filler(packer, groups)
    while True:
        candidate = filler.best()
        if candidate is None:
            return
        filler.plan(candidate)


class _Taker(NamedTuple):
    """A group as it is looked at again and again."""

    group: Group
    cpu: int
    memory: int
    others: tuple[tuple[str, int], ...]
    value: float


class _Filler:
    def __init__(self, packer: Packer, groups: Sequence[Group]) -> None:
        self.packer = packer
        self.groups = [
            group
            for group in groups
            if packer.remaining[group.key]
            and not group.is_careful
            and not group.trouble
            and not packer.board.guarding(group.shape)
        ]
        offers = [offer for offer in packer.offers if offer.blocker() is None]
        self.value = worth(self._demand(), offers, [offer.price or 0.0 for offer in offers])
        self.takers = {offer.pool.id: self._takes(offer) for offer in offers}
        self.groups.reverse()  # the highest priority last, where it is cheap to take away
        self.known: dict[str, _Candidate] = {}

    def _takes(self, offer: Offer) -> list[_Taker]:
        """Groups that may go to the pool's nodes in whatever zone they come."""
        nodes = offer.variants()
        return [
            self._taker(group)
            for group in self.groups
            if self.packer.suits(offer, group) and all(may_go(group, node) for node in nodes)
        ]

    def _taker(self, group: Group) -> _Taker:
        value = self.value.get("pods", 0.0)
        value += sum(amount * self.value.get(name, 0.0) for name, amount in group.requests.items())
        others = tuple((n, a) for n, a in group.requests.items() if n not in ("cpu", "memory"))
        return _Taker(group, group.requests.get("cpu", 0), group.requests.get("memory", 0), others, value)

    def _demand(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for group in self.groups:
            count = self.packer.remaining[group.key]
            found["pods"] += count
            for name, amount in group.requests.items():
                found[name] += amount * count
        return found

    def best(self) -> _Candidate | None:
        """Of the pools whose nodes take a pod of the highest priority that waits; preferred pools first."""
        top = self._top()
        found = []
        for offer in self.packer.offers:
            if offer.blocker() is not None:
                continue
            candidate = self._candidate(offer)
            if candidate.filling and any(group.priority == top for group, _ in candidate.filling):
                found.append(candidate)
        return max(found, key=lambda one: (one.offer.priority, one.value, one.offer.pool.id), default=None)

    def _top(self) -> int | None:
        """The highest priority that waits; groups come in the order of their priority."""
        left = self.packer.remaining
        while self.groups and not left[self.groups[-1].key]:
            self.groups.pop()
        return self.groups[-1].priority if self.groups else None

    def _candidate(self, offer: Offer) -> _Candidate:
        """As known, for as long as there are pods for it: what else waits would not be taken anyway."""
        left, known = self.packer.remaining, self.known.get(offer.pool.id)
        if known is None or any(left[group.key] < count for group, count in known.filling):
            takers = [taker for taker in self.takers[offer.pool.id] if left[taker.group.key]]
            self.takers[offer.pool.id] = takers
            known = self.known[offer.pool.id] = self._fill(offer, takers)
        return known

    def _fill(self, offer: Offer, takers: list[_Taker]) -> _Candidate:
        free = dict(free_of(offer.template.node, self.value.keys()))
        filling: Filling = []
        total = 0.0
        left = self.packer.remaining
        cpu, memory, pods = free.get("cpu", 0), free.get("memory", 0), free["pods"]
        for taker in takers:
            if taker.cpu > cpu or taker.memory > memory:
                continue
            group = taker.group
            count = min(left[group.key], pods)
            if taker.cpu:
                count = min(count, cpu // taker.cpu)
            if taker.memory:
                count = min(count, memory // taker.memory)
            for name, amount in taker.others:
                count = min(count, free.get(name, 0) // amount)
            if count <= 0:
                continue
            filling.append((group, count))
            total += count * taker.value
            cpu, memory, pods = cpu - count * taker.cpu, memory - count * taker.memory, pods - count
            for name, amount in taker.others:
                free[name] -= amount * count
            if not pods:
                break
        return _Candidate(offer, filling, total / (offer.price or 1.0))

    def plan(self, candidate: _Candidate) -> None:
        """The node, as often as there are pods for it."""
        offer, left = candidate.offer, self.packer.remaining
        times = min(left[group.key] // count for group, count in candidate.filling)
        for _ in range(max(1, times)):
            if offer.blocker() is not None:
                return
            row = self.packer.open_node(offer)
            for group, count in candidate.filling:
                self.packer.board.place(group, row, count)
                left[group.key] -= count

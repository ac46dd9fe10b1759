"""Puts pods on nodes, and plans new nodes for those that fit nowhere: one plan over all pools at once.

First every group of pods goes where it fits already: on nodes there are, on nodes that are coming. What is
left is packed onto new nodes, the hardest pods first (first fit decreasing): on a new node that is planned
already, or else on one more of the pool that `choose` names. The whole is tried with several ways to choose
and the best result is kept; then nodes whose pods fit elsewhere after all are dropped. Pure; called by
`decide`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

import msgspec

from shared.autoscaling.board import Board, Company, Group, Row, selects, tolerates
from shared.autoscaling.facts import Pool
from shared.autoscaling.templates import Template, free_of, in_zone
from shared.model.node import HOSTNAME, Node

_T = TypeVar("_T")
UNPRICED = 1.0
"""Cost of a node where no price is known: then nodes are counted."""

ROUNDS = 10
"""Nodes planned for pods that were too many somewhere make others too many: so often at most."""
ORDERS = 40
"""In so many orders all pods are placed again to see whether a node can be spared."""
PODS_PLACED_AGAIN = 10_000
"""In these orders together, for one node; beyond that the time matters more than one node does."""


@dataclass
class Offer:
    """A pool as something to take new nodes from. `left`: so many more at most, for the reason `limit`.

    `draws` are shared limits (quotas, cluster totals) with what one node takes of each.
    """

    pool: Pool
    template: Template
    left: int
    limit: str = ""
    price: float | None = None
    priority: int = 0
    size: int = 0
    zones: Counter[str] = field(default_factory=Counter)
    """Nodes so far by zone, to guess where Azure will put the next."""
    draws: list[tuple[Shared, int]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """Rows of planned nodes, oldest first."""
    floor: int = 0
    """So many are planned whatever pods need."""
    kept_zones: list[str] = field(default_factory=list)
    """Of the planned nodes, in their order."""
    whole: bool = False
    """All of it or nothing: the first node takes the rest with it."""
    closed: str = ""
    """Why it must not be used now; empty when it may."""
    detail: str = ""
    _number: int = 0
    _by_zone: dict[str, Node] = field(default_factory=dict)

    @property
    def planned(self) -> int:
        """New nodes so far."""
        return len(self.rows)

    def blocker(self) -> tuple[str, str] | None:
        """(reason, message) of what keeps it from growing by one more node."""
        if self.closed:
            return self.closed, self.detail
        if self.planned >= self.left:
            return self.limit, self.detail
        nodes = self.left if self.whole and not self.rows else 1
        for shared, amount in self.draws:
            if shared.left < amount * nodes:
                return shared.reason, shared.message
        return None

    def variants(self) -> list[Node]:
        """An empty node in each of the zones."""
        return [self._in(zone) for zone in self.template.zones or ("",)]

    def _in(self, zone: str) -> Node:
        found = self._by_zone.get(zone)
        if found is None:
            found = self._by_zone[zone] = in_zone(self.template, zone)
        return found

    def next_node(self) -> Node:
        """The next new node: in the zone that has fewest, as Azure balances."""
        zone = ""
        if self.template.zones:
            zone = min(self.template.zones, key=lambda one: (self.zones[one], one))
        node = self._in(zone)
        self._number += 1
        name = f"{node.name} ({self._number})"
        return msgspec.structs.replace(node, name=name, labels={**node.labels, HOSTNAME: name})


@dataclass
class Shared:
    """A limit that several pools draw on."""

    left: float
    reason: str
    message: str


Choice = Callable[["Packer", Group, Sequence[Offer]], Offer | None]


class _Start(NamedTuple):
    """How things were before any pod was placed: mark of the board, planned nodes of each offer, the pods."""

    mark: tuple[int, int]
    kept: list[tuple[Offer, int]]
    groups: list[Group]


class Packer:
    """One board with offers; `open_node` and `fill` change both."""

    def __init__(self, board: Board, offers: Sequence[Offer], *, chooses_each: bool = False) -> None:
        self.board = board
        self.offers = offers
        self.chooses_each = chooses_each
        """Whether each node is chosen by itself, because choices depend on the nodes chosen so far."""
        self.remaining: dict[int, int] = {}
        self._takes: dict[tuple[str, int], bool] = {}
        self._planned = 0
        self._start = _Start(board.mark(), [], [])

    # Where there is room already

    def settle(self, groups: Iterable[Group]) -> None:
        """Put as many of each group as fit on the rows there are."""
        groups = list(groups)
        self._start = _Start(self.board.mark(), [(offer, offer.planned) for offer in self.offers], groups)
        self._settle(groups)

    def _settle(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self.remaining[group.key] = group.count
            self._fill(group, self.board.open_to(group))
        self.settle_rest(group for group in groups if group.spec.needs_others)

    def settle_rest(self, groups: Iterable[Group]) -> None:
        """Put what is left of these where it fits by now: pods placed after them may be the company that they
        asked for, or level a spread.
        """
        waiting = [group for group in groups if self.remaining.setdefault(group.key, group.count)]
        while sum(self._fill(group, self.board.open_to(group)) for group in waiting):
            waiting = [group for group in waiting if self.remaining[group.key]]

    def fits_on(self, group: Group, row: int) -> bool:
        """Whether one pod of the group may go to the row now."""
        among = self.board.open_to(group) & (1 << row)
        return not group.trouble and self._place_for_one(group, self.board.company(group), among) is not None

    def settle_on(self, group: Group, among: int) -> None:
        """Put what is left of the group on these rows."""
        self._fill(group, among)

    def _fill(self, group: Group, among: int) -> int:
        """Place what is left of the group on these rows; returns how many were placed."""
        wanted = 0 if group.trouble else self.remaining[group.key]
        if not wanted or not among:
            return 0
        place = self._one_by_one if self._is_careful(group) else self.board.fill
        placed = place(group, among, wanted)
        self.remaining[group.key] -= placed
        return placed

    def _is_careful(self, group: Group) -> bool:
        return group.is_careful or bool(self.board.guarding(group.shape))

    def _one_by_one(self, group: Group, among: int, wanted: int) -> int:
        company = self.board.company(group)
        placed = 0
        while placed < wanted:
            row = self._place_for_one(group, company, among)
            if row is None:
                break
            self.board.place(group, row, 1)
            placed += 1
        return placed

    def _place_for_one(self, group: Group, company: Company, among: int) -> int | None:
        allowed = company.allowed(among)
        if group.spec.host_ports:
            allowed &= ~self.board.ports_taken(group.spec.host_ports)
        for rows in (company.preferred(allowed), allowed):
            fitting = self.board.fitting(group, rows)
            found = next((row for row in fitting if self.board.can_attach(group, row)), None)
            if found is not None:
                return found
        return None

    # New nodes

    def grow(self, groups: Sequence[Group], choose: Choice) -> None:
        """Open nodes until nothing more can be placed; groups are in the order of their hardness.

        Those that need others are tried again for as long as others are placed.
        """
        waiting = [group for group in groups if not group.trouble]
        placed = -1
        while placed != len(self.board.placements):
            placed = len(self.board.placements)
            for group in waiting:
                if self.remaining[group.key]:
                    self._grow_for(group, choose)
            waiting = [g for g in waiting if self.remaining[g.key] and g.spec.needs_others]
            self.settle_rest(waiting)

    def _grow_for(self, group: Group, choose: Choice) -> None:
        self._fill(group, self.board.open_to(group) & self._planned)
        refused: list[str] = []
        while self.remaining[group.key]:
            usable = self.usable(group)
            offer = choose(self, group, [one for one in usable if one.pool.id not in refused])
            if offer is None:
                return
            if self._open_for(offer, group):
                refused.clear()
            else:  # other pods allow none there now; a pool in another zone may do
                refused.append(offer.pool.id)

    def level(self, groups: Sequence[Group], choose: Choice) -> None:
        """Place pods again that are where they may not be with all nodes that are planned by now: a node is a
        domain to spread over once it is there, so pods placed before it was planned may be too many.
        """
        for _ in range(ROUNDS):
            moved = [group for group in groups if group.spec.needs_others and self._take_excess(group)]
            if not moved:
                return
            self.settle_rest(moved)
            self.grow(moved, choose)

    def _take_excess(self, group: Group) -> bool:
        """Take pods of the group away from where they may not be; whether there were any. Those that fit
        before any node was planned do not wait for one.
        """
        company, placements = self.board.company(group), self.board.placements
        later = next(
            (at for at, one in enumerate(placements) if self._planned >> one.row & 1), len(placements)
        )
        excess = []
        for at in range(len(placements) - 1, later - 1, -1):
            one = placements[at]
            if one.group is group and not company.permits(one.row):
                self.board.lift(group, one.row, one.count)
                self.remaining[group.key] += one.count
                excess.append(at)
        for at in excess:
            del placements[at]
        return bool(excess)

    def usable(self, group: Group) -> list[Offer]:
        """Offers that may grow and whose nodes take a pod of the group by itself."""
        return [offer for offer in self.offers if offer.blocker() is None and self.suits(offer, group)]

    def takes(self, offer: Offer, group: Group) -> bool:
        """Whether labels, taints and volumes let a pod of the group onto a node of the pool in some zone."""
        key = (offer.pool.id, group.key)
        if key not in self._takes:
            self._takes[key] = any(may_go(group, node) for node in offer.variants())
        return self._takes[key]

    def suits(self, offer: Offer, group: Group) -> bool:
        """Whether an empty node of the pool, in any of its zones, takes one pod of the group by resources."""
        free = free_of(offer.template.node, group.requests)
        if free.get("pods", 0) < 1:
            return False
        return all(free.get(name, 0) >= amount for name, amount in group.requests.items())

    def _open_for(self, offer: Offer, group: Group) -> bool:
        """Open nodes of the pool until one takes a pod of the group: at most one in each of its zones."""
        mark, opened = self.board.mark(), len(offer.rows)
        for _ in range(max(1, len(offer.template.zones))):
            if offer.blocker() is not None:
                break
            row = self.open_node(offer)
            if self._fill(group, self.board.open_to(group) & (1 << row)):
                self._repeat(offer, group)
                return True
        self.undo(mark, [(offer, opened)])
        return False

    def _repeat(self, offer: Offer, group: Group) -> None:
        """More of the same, for as long as each new node is filled by this group alone: choosing again would
        choose the same.
        """
        if self.chooses_each or self._is_careful(group):
            return
        if not all(may_go(group, node) for node in offer.variants()):
            return
        each = self.board.placements[-1].count
        if self.board.room(group, offer.rows[-1]):
            return
        while self.remaining[group.key] >= each and offer.blocker() is None:
            row = self.open_node(offer)
            self.board.place(group, row, each)
            self.remaining[group.key] -= each

    def open_node(self, offer: Offer) -> int:
        """One more planned node; its row."""
        node = offer.next_node()
        row = self.board.add_row(Row(node, free_of(node, self.board.free)))
        offer.rows.append(row)
        offer.kept_zones.append(node.zone)
        offer.zones[node.zone] += 1
        self._planned |= 1 << row
        for shared, amount in offer.draws:
            shared.left -= amount
        return row

    def undo(self, mark: tuple[int, int], kept: Iterable[tuple[Offer, int]]) -> None:
        """Back to the mark; `kept`: how many planned nodes each offer had then."""
        for placement in self.board.undo_to(mark):
            self.remaining[placement.group.key] += placement.count
        for offer, planned in kept:
            while offer.planned > planned:
                self.forget_last(offer)

    def forget_last(self, offer: Offer) -> None:
        """The pool's last planned node is not needed."""
        row = offer.rows.pop()
        offer.zones[offer.kept_zones.pop()] -= 1
        self._planned &= ~(1 << row)
        for shared, amount in offer.draws:
            shared.left += amount

    # Less is better

    def drop_spare(self, groups: Sequence[Group]) -> None:
        """Take away planned nodes whose pods fit elsewhere; of each pool the last, since Azure has its own
        mind about the zone of the one before. Pods of other groups than these may lose their place.
        """
        ways: list[Callable[[Offer], bool]] = [partial(self._place_again, groups)]
        if not any(group.spec.affinity or group.spec.needs_domains for group in groups):
            ways.insert(0, self._drop_last)  # else a pod may need what is there, be it an empty domain
        for drop in ways:
            for offer in self.offers:
                while offer.planned > offer.floor and not offer.whole and drop(offer):
                    pass

    def _place_again(self, groups: Sequence[Group], offer: Offer) -> bool:
        """Place all pods without the pool's last planned node, in one order after the other; if more are left
        in each of them, everything is as before.
        """
        start, last = self._start, offer.rows[-1]
        tries = min(ORDERS, PODS_PLACED_AGAIN // max(1, sum(group.count for group in start.groups)))
        if not tries or not self._is_room_without(last):
            return False
        left, placements = dict(self.remaining), self.board.placements[start.mark[0] :]
        rows = ((row, at) for at, one in enumerate(self.offers) for row in one.rows)
        planned = sorted((row, at) for row, at in rows if row >= start.mark[1])
        fewer = [at for row, at in planned if row != last]
        for order, nodes in islice(_orders(start.groups, fewer), tries):
            self.undo(start.mark, start.kept)
            for at in nodes:
                self.open_node(self.offers[at])
            self._settle(order)
            if all(self.remaining[group.key] <= left[group.key] for group in groups):
                return True
        self.undo(start.mark, start.kept)
        again = {row: self.open_node(self.offers[at]) for row, at in planned}
        for one in placements:
            self.board.place(one.group, again.get(one.row, one.row), one.count)
        self.remaining = left
        return False

    def _is_room_without(self, row: int) -> bool:
        """Whether there is as much free elsewhere as is used on this row."""
        for name in ("cpu", "memory", "pods"):
            free = self.board.free.get(name)
            if free is None:
                continue
            used = self.board.nodes[row].allocatable.get(name, 0) - free[row]
            if sum(amount for amount in free if amount > 0) - max(0, free[row]) < used:
                return False
        return True

    def _drop_last(self, offer: Offer) -> bool:
        row = offer.rows[-1]
        held = [placement for placement in self.board.placements if placement.row == row]
        self.board.placements = [one for one in self.board.placements if one.row != row]
        for placement in held:
            self.board.lift(placement.group, row, placement.count)
            self.remaining[placement.group.key] += placement.count
        mark = self.board.mark()
        for group in {placement.group.key: placement.group for placement in held}.values():
            self._fill(group, self.board.open_to(group) & ~(1 << row))
        if not any(self.remaining[placement.group.key] for placement in held):
            self.board.close(row)
            self.forget_last(offer)
            return True
        for placement in self.board.undo_to(mark):
            self.remaining[placement.group.key] += placement.count
        for placement in held:
            self.board.place(placement.group, row, placement.count)
            self.remaining[placement.group.key] -= placement.count
        return False


def _orders(groups: Sequence[Group], nodes: Sequence[int]) -> Iterator[tuple[Sequence[Group], Sequence[int]]]:
    """Groups and nodes as they come, then in other orders, the same ones every time, without end."""
    yield groups, nodes
    yield groups, sorted(nodes)
    for name in ("cpu", "memory"):
        yield sorted(groups, key=lambda group: -group.requests.get(name, 0)), nodes
    step = 1
    while True:
        step = step * STRIDE % PRIME
        yield _shuffled(groups, step), _shuffled(nodes, step)


def _shuffled(items: Sequence[_T], step: int) -> list[_T]:
    """In an order that looks like chance and is the same every time."""
    return [items[at] for at in sorted(range(len(items)), key=lambda at: pow(at + step, 5, PRIME))]


PRIME, STRIDE = 1_000_003, 48_271


def may_go(group: Group, node: Node) -> bool:
    """By labels, taints and volumes."""
    return tolerates(group.spec, node) and selects(group.spec, node) and in_place(group, node)


def in_place(group: Group, node: Node) -> bool:
    """Whether the group's volumes can be used there."""
    return all(any(term.matches(node.labels, node.name) for term in terms) for terms in group.terms)


def rank(groups: Iterable[Group], offers: Sequence[Offer]) -> list[Group]:
    """Hardest first: by priority, then by how much of the largest node a pod takes."""
    most: dict[str, int] = {}
    for offer in offers:
        for name, amount in offer.template.node.allocatable.items():
            most[name] = max(most.get(name, 0), amount)

    def weight(group: Group) -> float:
        shares = [amount / most[name] for name, amount in group.requests.items() if most.get(name)]
        rare = any(name not in ("cpu", "memory", "ephemeral-storage") for name in group.requests)
        return max(shares, default=0.0) + (10 if rare else 0)

    return sorted(groups, key=lambda one: (-one.priority, -weight(one), one.is_careful, one.key))

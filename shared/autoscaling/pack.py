"""Puts pods on nodes, and plans new nodes for those that fit nowhere: one plan over all pools at once.

First every group of pods goes where it fits already: on nodes there are, on nodes that are coming. What is
left is packed onto new nodes, the hardest pods first (first fit decreasing): on a new node that is planned
already, or else on one more of the pool that `choose` names. The whole is tried with several ways to choose
and the best result is kept; then nodes whose pods fit elsewhere after all are dropped. Pure; called by
`decide`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from shared.autoscaling.board import Board, Company, Group, Row, selects, tolerates
from shared.autoscaling.facts import Pool
from shared.autoscaling.templates import Template, free_of, in_zone
from shared.model.node import HOSTNAME, Node

UNPRICED = 1.0
"""Cost of a node where no price is known: then nodes are counted."""


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

    # Where there is room already

    def settle(self, groups: Iterable[Group]) -> None:
        """Put as many of each group as fit on the rows there are."""
        for group in groups:
            self.remaining[group.key] = group.count
            self._fill(group, self.board.open_to(group))

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
            found = next(self.board.fitting(group, rows), None)
            if found is not None:
                return found
        return None

    # New nodes

    def grow(self, groups: Sequence[Group], choose: Choice) -> None:
        """Open nodes until nothing more can be placed; groups are in the order of their hardness."""
        for group in groups:
            if not self.remaining[group.key] or group.trouble:
                continue
            self._fill(group, self.board.open_to(group) & self._planned)
            while self.remaining[group.key]:
                offer = choose(self, group, self.usable(group))
                if offer is None or not self._open_for(offer, group):
                    break

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
        row = self.board.add_row(Row(node, free_of(node, self.board.free), {}))
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
        mind about the zone of the one before.
        """
        if any(spread.min_domains > 1 for group in groups for spread in group.spec.spread):
            return  # a node may be needed for the domain it makes
        for offer in self.offers:
            while offer.planned > offer.floor and not offer.whole and self._drop_last(offer):
                pass

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

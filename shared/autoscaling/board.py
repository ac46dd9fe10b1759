"""A cluster to try things on: nodes as rows, what is free on them, and which of them a pod may go to.

The predicates are kube-scheduler's (1.36): resources and pod count, node selector and affinity, taints, host
ports, volumes, topology spread, pod affinity and anti-affinity both ways. Sets of rows are bits of Python
integers, so that a question about thousands of nodes costs a few machine words; pods are handled by groups
that are alike. Rows are never reordered: existing nodes, then those on their way, then planned ones.

Mutable, unlike everything else here, and used inside one decision only: `place` and `take_back` are inverse,
`mark` and `undo_to` bracket an attempt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from shared.model.node import (
    HOSTNAME,
    UNSCHEDULABLE,
    LabelSelector,
    Node,
    NodeSelectorTerm,
    Requirement,
    Taint,
)
from shared.model.pod import HostPort, PodShape, PodSpec, PodTerm, Spread

ENDLESS = 1 << 62
"""Free amount of something that is not limited."""

LEVELS = 256
"""Steps of the index of free amounts: more find fewer rows in vain and cost more memory."""
SHELF = 16
"""Levels of that index that are also known together: about the square root, so that few are put together."""


ClaimName = tuple[str, str]
"""(namespace, name) of a PersistentVolumeClaim."""


class Row(NamedTuple):
    """What a node starts with: the node, amounts it has and amounts in use by resource, pods by shape."""

    node: Node
    has: Mapping[str, int]
    used: Mapping[str, int] = {}
    shapes: Mapping[int, int] = {}
    closed: bool = False


class Group(msgspec.Struct):
    """Pending pods that are alike to every predicate. `count` of them are to be placed.

    `shape` is its index on the board; `terms` are node selector terms of its volumes, each set of which must
    be met; `trouble` is why none can be placed at all. `shared_volumes` are (resource, claim) that other pods
    use too: a node attaches each once, so they are not among the requests. `together`: claims of which the
    first pod decides where the volume is made, and in which domain of which key the others must be.
    """

    key: int
    shape: int
    spec: PodSpec
    requests: dict[str, int]
    count: int
    priority: int = 0
    terms: tuple[tuple[NodeSelectorTerm, ...], ...] = ()
    trouble: str = ""
    bundle: str = ""
    shared_volumes: tuple[tuple[str, ClaimName], ...] = ()
    together: tuple[tuple[str, ClaimName], ...] = ()

    @property
    def is_careful(self) -> bool:
        """Whether each pod must be placed by itself."""
        return bool(self.spec.is_social or self.spec.host_ports or self.shared_volumes or self.together)


class Rule(NamedTuple):
    """Pods that a counter counts. `ignores_going`: not those being deleted."""

    tests: tuple[PodTest | ClaimTest, ...]
    ignores_going: bool = False

    def counts(self, shape: PodShape) -> bool:
        """Whether this shape's pods count."""
        return not (self.ignores_going and shape.is_going) and all(test.matches(shape) for test in self.tests)


class PodTest(NamedTuple):
    """A selector with its namespaces; None means all."""

    selector: LabelSelector
    namespaces: frozenset[str] | None

    def matches(self, shape: PodShape) -> bool:
        """Whether a pod of the shape is meant."""
        return (self.namespaces is None or shape.namespace in self.namespaces) and self.selector.matches(
            shape.labels
        )


class ClaimTest(NamedTuple):
    """Pods that use a claim."""

    claim: ClaimName

    def matches(self, shape: PodShape) -> bool:
        """Whether a pod of the shape uses it."""
        return shape.namespace == self.claim[0] and self.claim[1] in shape.spec.claims


class Counter:
    """Pods that a rule counts, by domain of one topology key, kept up to date as pods are placed.

    `levels`: rows by the count of their domain; rows outside `eligible` are in none.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.eligible = 0
        self.total = 0
        self.counts: dict[str, int] = {}
        self.levels: dict[int, int] = {}
        self.rows: dict[str, int] = {}

    def admit(self, value: str, bit: int) -> None:
        """A row joins."""
        self.eligible |= bit
        count = self.counts.setdefault(value, 0)
        self.rows[value] = self.rows.get(value, 0) | bit
        self.levels[count] = self.levels.get(count, 0) | bit

    def dismiss(self, value: str, bit: int) -> None:
        """A row without counted pods leaves."""
        count = self.counts[value]
        self.eligible &= ~bit
        self.rows[value] &= ~bit
        self.levels[count] &= ~bit
        if not self.rows[value]:
            del self.rows[value], self.counts[value]

    def add(self, value: str, number: int) -> None:
        """Pods come or, when negative, go."""
        before, rows = self.counts[value], self.rows[value]
        self.counts[value] = after = before + number
        self.total += number
        self.levels[before] &= ~rows
        self.levels[after] = self.levels.get(after, 0) | rows

    def fewest(self) -> int:
        """The count of the emptiest domain; 0 when there is none."""
        return min((count for count, rows in self.levels.items() if rows), default=0)

    def at_most(self, limit: int) -> int:
        """Rows of domains with no more than that."""
        found = 0
        for count, rows in self.levels.items():
            if count <= limit:
                found |= rows
        return found

    def occupied(self) -> int:
        """Rows of domains with any."""
        found = 0
        for count, rows in self.levels.items():
            if count > 0:
                found |= rows
        return found


class Placement(msgspec.Struct, frozen=True, eq=False, gc=False):
    """So many pods of a group on a row."""

    group: Group
    row: int
    count: int


class Board:
    """The rows and everything known about them. `shapes` may grow; their indices are stable."""

    def __init__(self, shapes: Sequence[PodShape], namespaces: Mapping[str, Mapping[str, str]]) -> None:
        self.shapes = list(shapes)
        self.namespaces = namespaces
        self.nodes: list[Node] = []
        self.free: dict[str, list[int]] = {}
        self.on: list[dict[int, int]] = []
        self.open = 0
        self.placements: list[Placement] = []
        self._classes: dict[tuple[object, ...], int] = {}
        self._class_nodes: list[Node] = []
        self._class_masks: list[int] = []
        self._class_of: list[int] = []
        self._label_keys: frozenset[str] = frozenset()
        self._static: dict[int, _Static] = {}
        self._counters: dict[tuple[object, ...], tuple[Rule, Counter, Callable[[int], bool]]] = {}
        self._counting: dict[int, list[Counter]] = {}
        self._guards: dict[tuple[object, ...], tuple[PodTest, Counter]] = {}
        self._guarded_by: dict[int, list[Counter]] = {}
        self._guards_of: set[int] = set()
        self._ports: dict[tuple[str, int], dict[str, int]] = {}
        self._sharing: dict[int, tuple[tuple[str, ClaimName], ...]] = {}
        self._attached: dict[ClaimName, dict[int, int]] = {}
        self._has_company = False
        self._is_watched = False
        self._special: set[int] = set()
        self._where: dict[int, dict[int, int]] = {}
        self._index = _Index({}, ())

    # Building

    def prepare(self, groups: Sequence[Group], rows: Iterable[Row]) -> None:
        """Set the board for these groups; rows first given are looked at first."""
        names = {name for group in groups for name in group.requests}
        names |= {name for group in groups for name, _ in group.shared_volumes}
        self._sharing = {group.shape: group.shared_volumes for group in groups if group.shared_volumes}
        self.free = {name: [] for name in sorted(names | {"pods"})}
        self._label_keys = _label_keys(groups)
        self._has_company = any(group.spec.is_social or group.together for group in groups) or any(
            shape.spec.anti_affinity for shape in self.shapes
        )
        with_ports = {number for number, shape in enumerate(self.shapes) if shape.spec.host_ports}
        self._special = with_ports | self._sharing.keys()
        self._is_watched = self._has_company or bool(with_ports)
        self._index = _Index(self.free, groups)
        for row in rows:
            number = self._append(row)
            if self._has_company:
                for shape, count in row.shapes.items():
                    self._where.setdefault(shape, {})[number] = count
        for shape in [*self._where]:
            self._guard(shape)

    def add_row(self, row: Row) -> int:
        """One more row, the last; its number."""
        number = self._append(row)
        bit = 1 << number
        node = row.node
        for admits, counter in self._eligibility():
            value = node.labels.get(counter.key)
            if value is not None and admits(number):
                counter.admit(value, bit)
        for shape, count in row.shapes.items():
            self._count(shape, number, count)
        return number

    def remove_last(self) -> None:
        """Take the last row away; nothing may be placed on it."""
        number = len(self.nodes) - 1
        bit = 1 << number
        node, shapes = self.nodes[number], self.on[number]
        for shape, count in shapes.items():
            self._count(shape, number, -count)
            self._where.get(shape, {}).pop(number, None)
        for _, counter in self._eligibility():
            value = node.labels.get(counter.key)
            if value is not None and counter.eligible & bit:
                counter.dismiss(value, bit)
        self.nodes.pop()
        self.on.pop()
        self._class_masks[self._class_of.pop()] &= ~bit
        self.open &= ~bit
        for amounts in self.free.values():
            amounts.pop()
        self._index.remove_last()
        for by_address in self._ports.values():
            for address in by_address:
                by_address[address] &= ~bit

    def _append(self, row: Row) -> int:
        number, node = len(self.nodes), row.node
        self.nodes.append(node)
        self.on.append(dict(row.shapes))
        has, used = row.has.get, row.used.get
        for name, amounts in self.free.items():
            amounts.append(has(name, 0) - used(name, 0))
        self._index.stale.add(number)
        key = self._class_key(node)
        at = self._classes.get(key)
        if at is None:
            at = self._classes[key] = len(self._class_nodes)
            self._class_nodes.append(node)
            self._class_masks.append(0)
        bit = 1 << number
        self._class_masks[at] |= bit
        self._class_of.append(at)
        if not row.closed:
            self.open |= bit
        for shape in self._special and self._special & row.shapes.keys():
            self._take_ports(self.shapes[shape].spec.host_ports, bit)
            for _, claim in self._sharing.get(shape, ()):
                self._use(claim, number, row.shapes[shape])
        return number

    def _class_key(self, node: Node) -> tuple[object, ...]:
        get = node.labels.get
        return (*[get(key) for key in self._label_keys], node.taints, node.unschedulable)

    # Static predicates: the node's labels and taints alone

    def static(self, group: Group) -> _Static:
        """Rows that a group may use by labels, taints and volumes."""
        found = self._static.get(group.key)
        if found is None:
            found = self._static[group.key] = _Static(group)
        return found

    def open_to(self, group: Group) -> int:
        """Rows that a group may use by labels, taints and volumes, as a mask."""
        static, mask = self.static(group), 0
        for at, node in enumerate(self._class_nodes):
            if static.admits_class(at, node):
                mask |= self._class_masks[at]
        mask &= self.open
        return static.named(self, mask)

    # Counting pods

    def _eligibility(self) -> Iterator[tuple[Callable[[int], bool], Counter]]:
        for _, counter, admits in self._counters.values():
            yield admits, counter
        for _, counter in self._guards.values():
            yield _always, counter

    def _counter(self, rule: Rule, key: str, name: object, admits: Callable[[int], bool]) -> Counter:
        """The counter of a rule over a key; `name` tells apart which rows count."""
        known = self._counters.get((rule, key, name))
        if known is None:
            known = self._counters[rule, key, name] = (rule, self._build(rule.counts, key, admits), admits)
            self._counting.clear()
        return known[1]

    def _build(self, counts: Callable[[PodShape], bool], key: str, admits: Callable[[int], bool]) -> Counter:
        counter = Counter(key)
        for number, node in enumerate(self.nodes):
            value = node.labels.get(key)
            if value is not None and admits(number):
                counter.admit(value, 1 << number)
        for shape, where in self._where.items():
            if where and counts(self.shapes[shape]):
                for number, count in where.items():
                    if counter.eligible >> number & 1:
                        counter.add(self.nodes[number].labels[key], count)
        return counter

    def _guard(self, shape: int) -> None:
        """Anti-affinity of placed pods of this shape, against those to come."""
        if shape in self._guards_of:
            return
        self._guards_of.add(shape)
        owner = self.shapes[shape]
        for term in owner.spec.anti_affinity:
            test = self.test_of(term, owner)
            key = (test, term.topology_key)
            if test is not None and key not in self._guards:
                self._guards[key] = (test, self._build(self._guards_with(key), term.topology_key, _always))
                self._guarded_by.clear()
                self._counting.clear()

    def _guards_with(self, key: tuple[object, ...]) -> Callable[[PodShape], bool]:
        def has(shape: PodShape) -> bool:
            return any(
                (self.test_of(term, shape), term.topology_key) == key for term in shape.spec.anti_affinity
            )

        return has

    def test_of(self, term: PodTerm, owner: PodShape) -> PodTest | None:
        """Whom a term means; None when nobody."""
        if term.selector is None:
            return None
        selector = merged(term.selector, owner.labels, term.match_keys, term.mismatch_keys)
        if not term.namespaces and term.namespace_selector is None:
            return PodTest(selector, frozenset((owner.namespace,)))
        if term.namespace_selector is not None and not term.namespace_selector.requirements:
            return PodTest(selector, None)
        names = set(term.namespaces)
        if term.namespace_selector is not None:
            chosen = term.namespace_selector
            names |= {name for name, labels in self.namespaces.items() if chosen.matches(labels)}
        return PodTest(selector, frozenset(names))

    def _count(self, shape: int, row: int, number: int) -> None:
        if not self._has_company:
            return
        self._guard(shape)  # before the pods are there: what is made counts those already placed
        where = self._where.setdefault(shape, {})
        where[row] = where.get(row, 0) + number
        counters = self._counting.get(shape)
        if counters is None:
            counters = self._counting[shape] = self._counters_of(shape)
        labels = self.nodes[row].labels
        for counter in counters:
            if counter.eligible >> row & 1:
                counter.add(labels[counter.key], number)

    def _counters_of(self, shape: int) -> list[Counter]:
        known = self.shapes[shape]
        found = [counter for rule, counter, _ in self._counters.values() if rule.counts(known)]
        if known.spec.anti_affinity:
            keys = {(self.test_of(term, known), term.topology_key) for term in known.spec.anti_affinity}
            found += [counter for key, (_, counter) in self._guards.items() if key in keys]
        return found

    # Where a pod may go because of other pods

    def company(self, group: Group) -> Company:
        """Constraints of a group with regard to other pods; asked again for every pod."""
        return Company(self, group)

    def guarding(self, shape: int) -> list[Counter]:
        """Counters of placed pods that do not want this shape near."""
        found = self._guarded_by.get(shape)
        if found is None:
            known = self.shapes[shape]
            found = [counter for test, counter in self._guards.values() if test.matches(known)]
            self._guarded_by[shape] = found
        return found

    def spread_counter(self, group: Group, spread: Spread) -> tuple[Counter, bool]:
        """The counter of a spread constraint, and whether the pod itself counts."""
        shape = self.shapes[group.shape]
        keys = tuple(sorted({one.topology_key for one in group.spec.spread}))
        selector = merged(spread.selector, shape.labels, spread.match_keys) if spread.selector else NOTHING
        rule = Rule((PodTest(selector, frozenset((shape.namespace,))),), ignores_going=True)
        static = self.static(group)
        name = (
            group.spec.node_selector if spread.honors_affinity else None,
            group.spec.node_terms if spread.honors_affinity else None,
            group.spec.tolerations if spread.honors_taints else None,
            keys,
        )
        admits = static.admission(self, spread.honors_affinity, spread.honors_taints, keys)
        return self._counter(rule, spread.topology_key, name, admits), rule.counts(shape)

    def affinity_counters(self, group: Group) -> tuple[list[Counter], bool]:
        """One counter for each term of pod affinity, counting pods that match all of them, and whether the
        pod itself does.
        """
        shape = self.shapes[group.shape]
        tests = [self.test_of(term, shape) for term in group.spec.affinity]
        rule = Rule(tuple(test or NOBODY for test in tests))
        counters = [self._counter(rule, term.topology_key, "any", _always) for term in group.spec.affinity]
        return counters, rule.counts(shape)

    def repelling(self, group: Group) -> list[Counter]:
        """One counter for each term of the group's own anti-affinity."""
        shape = self.shapes[group.shape]
        found = []
        for term in group.spec.anti_affinity:
            test = self.test_of(term, shape)
            if test is not None:
                found.append(self._counter(Rule((test,)), term.topology_key, "any", _always))
        return found

    def claim_counter(self, key: str, claim: ClaimName) -> Counter:
        """Pods that use the claim."""
        return self._counter(Rule((ClaimTest(claim),)), key, "any", _always)

    # Volumes that pods share

    def can_attach(self, group: Group, row: int) -> bool:
        """Whether the volumes that the group shares with others are attached there already, or can be."""
        if not group.shared_volumes:
            return True
        used = self._attached.get
        more = [resource for resource, claim in group.shared_volumes if row not in used(claim, ())]
        return all(self.free[resource][row] >= more.count(resource) for resource in more)

    def _use(self, claim: ClaimName, row: int, count: int) -> int:
        """So many pods more use it there; how many more volumes are attached: 1, 0 or -1."""
        rows = self._attached.setdefault(claim, {})
        before, after = rows.get(row, 0), rows.get(row, 0) + count
        if after:
            rows[row] = after
        else:
            rows.pop(row, None)
        return bool(after) - bool(before)

    # Ports

    def _take_ports(self, ports: Iterable[HostPort], bit: int) -> None:
        for address, protocol, port in ports:
            by_address = self._ports.setdefault((protocol, port), {})
            by_address[address] = by_address.get(address, 0) | bit

    def ports_taken(self, ports: Iterable[HostPort]) -> int:
        """Rows where one of the ports is in use; 0.0.0.0 meets every address."""
        found = 0
        for address, protocol, port in ports:
            for other, rows in self._ports.get((protocol, port), {}).items():
                if address == other or ANY_ADDRESS in (address, other):
                    found |= rows
        return found

    # Room

    def fitting(self, group: Group, among: int) -> Iterator[int]:
        """Rows of `among` with room for at least one pod of the group, lowest first.

        Rows may be filled while this runs; one that is full by the time it would come is left out.
        """
        wanted = [(self.free[name], amount) for name, amount in group.requests.items()]
        wanted.append((self.free["pods"], 1))
        for row in bits(self._index.narrow(among, group.requests)):
            for amounts, amount in wanted:
                if amounts[row] < amount:
                    break
            else:
                yield row

    def fill(self, group: Group, among: int, wanted: int) -> int:
        """Place up to `wanted` pods on these rows, lowest first, by resources alone; how many were placed."""
        pods, left = self.free["pods"], wanted
        asked = [(self.free[name], amount) for name, amount in group.requests.items()]
        for row in bits(self._index.narrow(among, group.requests)):
            count = pods[row] if pods[row] < left else left
            for amounts, amount in asked:
                if amounts[row] < amount * count:
                    count = amounts[row] // amount
            if count <= 0:
                continue
            self.place(group, row, count)
            left -= count
            if not left:
                break
        return wanted - left

    def room(self, group: Group, row: int) -> int:
        """How many pods of the group fit by resources alone."""
        most = self.free["pods"][row]
        for name, amount in group.requests.items():
            most = min(most, self.free[name][row] // amount)
        return max(most, 0)

    def place(self, group: Group, row: int, count: int) -> None:
        """Put pods there; whether they fit was asked before."""
        self._move(group, row, count)
        self.placements.append(Placement(group, row, count))

    def _move(self, group: Group, row: int, count: int) -> None:
        free = self.free
        for name, amount in group.requests.items():
            free[name][row] -= amount * count
        free["pods"][row] -= count
        self._index.stale.add(row)
        for name, claim in group.shared_volumes:
            free[name][row] -= self._use(claim, row, count)
        if self._is_watched:
            self._watch(group, row, count)

    def _watch(self, group: Group, row: int, count: int) -> None:
        """Ports and counters follow the pods."""
        shape, on = group.shape, self.on[row]
        number = on.get(shape, 0) + count
        if number:
            on[shape] = number
        else:
            del on[shape]
        if group.spec.host_ports:
            self._repaint_ports(row)
        if self._has_company:
            self._count(shape, row, count)

    def _repaint_ports(self, row: int) -> None:
        bit = 1 << row
        for by_address in self._ports.values():
            for address in by_address:
                by_address[address] &= ~bit
        for shape in self.on[row]:
            self._take_ports(self.shapes[shape].spec.host_ports, bit)

    def lift(self, group: Group, row: int, count: int) -> None:
        """Take pods that were there from the start off a row, or put them back with a negative count."""
        self._move(group, row, -count)

    def mark(self) -> tuple[int, int]:
        """Where we are; for `undo_to`."""
        return len(self.placements), len(self.nodes)

    def undo_to(self, mark: tuple[int, int]) -> list[Placement]:
        """Take back placements and rows since then; what was taken back, in order."""
        placements, rows = mark
        undone = self.placements[placements:]
        del self.placements[placements:]
        for placement in reversed(undone):
            self._move(placement.group, placement.row, -placement.count)
        while len(self.nodes) > rows:
            self.remove_last()
        return undone

    def close(self, row: int) -> None:
        """Nothing more is placed there; for a planned node that is given up."""
        self.open &= ~(1 << row)


class Company:
    """What other pods say about where a group's next pod may go."""

    def __init__(self, board: Board, group: Group) -> None:
        self._board, self._group = board, group
        spec = group.spec
        self._spreads = [(spread, *board.spread_counter(group, spread)) for spread in spec.spread]
        self._near, self._is_own_company = board.affinity_counters(group) if spec.affinity else ([], False)
        self._far = board.repelling(group)
        self._volumes = [board.claim_counter(key, claim) for key, claim in group.together]

    def allowed(self, among: int) -> int:
        """Rows of `among` that spread, affinity and anti-affinity permit now."""
        for spread, counter, counts_itself in self._spreads:
            among &= counter.at_most(self._limit(spread, counter, counts_itself))
        for counter in (*self._far, *self._board.guarding(self._group.shape)):
            among &= ~counter.occupied()
        return self._together(among)

    def permits(self, row: int) -> bool:
        """Whether a pod of the group that is there may be: spread and affinity hold, itself included."""
        bit = 1 << row
        return all(
            counter.at_most(self._limit(spread, counter, False)) & bit for spread, counter, _ in self._spreads
        ) and all(counter.occupied() & bit for counter in self._near)

    def _limit(self, spread: Spread, counter: Counter, counts_itself: bool) -> int:
        fewest = counter.fewest() if len(counter.counts) >= spread.min_domains else 0
        return spread.max_skew + fewest - int(counts_itself)

    def _together(self, among: int) -> int:
        for counter in self._volumes:
            if counter.total:
                among &= counter.occupied()
        if not self._near:
            return among
        is_first = self._is_own_company and not any(counter.total for counter in self._near)
        for counter in self._near:
            among &= counter.eligible if is_first else counter.occupied()
        return among

    def preferred(self, among: int) -> int:
        """Of these, the rows in the emptiest domains of the first spread constraint; all without one."""
        if not self._spreads:
            return among
        _, counter, _ = self._spreads[0]
        for count in sorted(counter.levels):
            best = among & counter.levels[count]
            if best:
                return best
        return among


ANY_ADDRESS = "0.0.0.0"  # noqa: S104  compared, not bound
NOTHING = LabelSelector((Requirement("", "Exists"),))
"""Matches no pod: no label has an empty key."""
NOBODY = PodTest(NOTHING, frozenset())


def _always(_: int) -> bool:
    return True


def merged(
    selector: LabelSelector,
    labels: Mapping[str, str],
    match: Iterable[str] = (),
    mismatch: Iterable[str] = (),
) -> LabelSelector:
    """The selector with what matchLabelKeys and mismatchLabelKeys add for a pod with these labels."""
    more = [Requirement(key, "In", (labels[key],)) for key in match if key in labels]
    more += [Requirement(key, "NotIn", (labels[key],)) for key in mismatch if key in labels]
    new = tuple(one for one in more if one not in selector.requirements)
    return LabelSelector(selector.requirements + new) if new else selector


def bits(mask: int) -> Iterator[int]:
    """Numbers of the bits that are set, lowest first."""
    while mask:
        rest = mask & (mask - 1)
        yield (mask ^ rest).bit_length() - 1
        mask = rest


# Labels and taints


class _Static:
    """Rows that satisfy node selector, affinity, taints and volumes of one group.

    Checked once for each class of nodes; a group that asks for names is checked for each node of the classes
    that pass otherwise.
    """

    def __init__(self, group: Group) -> None:
        self.spec, self.terms = group.spec, group.terms
        self._classes: dict[int, bool] = {}
        self._names = _asks_for_names(group)
        self._admissions: dict[tuple[object, ...], Callable[[int], bool]] = {}

    def admits_class(self, at: int, node: Node) -> bool:
        """Decide about a class of nodes, once."""
        found = self._classes.get(at)
        if found is None:
            found = tolerates(self.spec, node) and (self._names or self._selects(node))
            self._classes[at] = found
        return found

    def named(self, board: Board, mask: int) -> int:
        """Of these rows, those whose own names are asked for; all where names do not matter."""
        if not self._names:
            return mask
        return sum(1 << row for row in bits(mask) if self._selects(board.nodes[row]))

    def _selects(self, node: Node) -> bool:
        return selects(self.spec, node) and all(
            any(term.matches(node.labels, node.name) for term in terms) for terms in self.terms
        )

    def admission(
        self, board: Board, affinity: bool, taints: bool, keys: tuple[str, ...]
    ) -> Callable[[int], bool]:
        """Whether a row's pods count for a spread constraint with these policies."""
        found = self._admissions.get((affinity, taints, keys))
        if found is not None:
            return found
        spec = self.spec

        def admits(row: int) -> bool:
            node = board.nodes[row]
            return (
                all(key in node.labels for key in keys)
                and (not affinity or selects(spec, node))
                and (not taints or tolerates_taints(spec, node.taints))
            )

        self._admissions[affinity, taints, keys] = admits
        return admits


def selects(spec: PodSpec, node: Node) -> bool:
    """Node selector and required node affinity."""
    labels = node.labels
    if any(labels.get(key) != value for key, value in spec.node_selector):
        return False
    return spec.node_terms is None or any(term.matches(labels, node.name) for term in spec.node_terms)


def tolerates_taints(spec: PodSpec, taints: Iterable[Taint]) -> bool:
    """Whether no taint keeps the pod away."""
    return all(not taint.repels or any(one.tolerates(taint) for one in spec.tolerations) for taint in taints)


_CORDON = Taint(UNSCHEDULABLE)


def tolerates(spec: PodSpec, node: Node) -> bool:
    """Taints, and being cordoned."""
    if node.unschedulable and not any(one.tolerates(_CORDON) for one in spec.tolerations):
        return False
    return not node.taints or tolerates_taints(spec, node.taints)


def _asks_for_names(group: Group) -> bool:
    """Whether names of single nodes matter: matchFields, or the host name label."""
    terms = [*(group.spec.node_terms or ()), *(term for terms in group.terms for term in terms)]
    return any(key == HOSTNAME for key, _ in group.spec.node_selector) or any(
        term.fields or any(e.key == HOSTNAME for e in term.expressions) for term in terms
    )


def _label_keys(groups: Iterable[Group]) -> frozenset[str]:
    """Labels that decide, but for names of single nodes."""
    found: set[str] = set()
    for group in groups:
        found.update(key for key, _ in group.spec.node_selector)
        for term in (*(group.spec.node_terms or ()), *(term for terms in group.terms for term in terms)):
            found.update(expression.key for expression in term.expressions)
    return frozenset(found - {HOSTNAME})


# The index of free amounts


class _Index:
    """Rows by what is free of each resource, in levels; narrows the rows to look at, never hides one with
    room. Rows that changed are noted in `stale` and put where they belong before the next question.
    """

    def __init__(self, free: Mapping[str, list[int]], groups: Sequence[Group]) -> None:
        self.stale: set[int] = set()
        self._levels: dict[str, _Levels] = {}
        for name, amounts in free.items():
            asked = sorted({group.requests.get(name, 0) for group in groups} - {0})
            steps = asked[:: -(-len(asked) // LEVELS)] if asked else [1] if name == "pods" else []
            if steps:
                self._levels[name] = _Levels(amounts, steps)

    def narrow(self, among: int, requests: Mapping[str, int]) -> int:
        """Rows of `among` that may have room for a pod."""
        levels = self._levels
        if self.stale:
            for level in levels.values():
                level.update(self.stale)
            self.stale.clear()
        for name, amount in (("pods", 1), *requests.items()):
            if among and name in levels:
                among &= levels[name].at_least(amount)
        return among

    def remove_last(self) -> None:
        """The last row is gone from the amounts."""
        for level in self._levels.values():
            level.remove_last()


class _Levels:
    """Rows by the level that their amount of one resource reaches; level 0 is too little for any pod."""

    def __init__(self, amounts: list[int], steps: list[int]) -> None:
        self._amounts, self._steps = amounts, steps
        self._at: list[int] = []
        """Level of each row."""
        self._rows = [0] * (len(steps) + 1)
        self._shelves = [0] * (len(steps) // SHELF + 1)

    def update(self, stale: Iterable[int]) -> None:
        """Put rows where they belong by now; rows that are gone are left out."""
        at, rows, shelves, amounts, steps = self._at, self._rows, self._shelves, self._amounts, self._steps
        at += [0] * (len(amounts) - len(at))
        for row in stale:
            if row >= len(amounts):
                continue
            before, after = at[row], bisect_right(steps, amounts[row])
            if before != after:
                at[row], bit = after, 1 << row
                if before:
                    rows[before] ^= bit
                    shelves[before // SHELF] ^= bit
                if after:
                    rows[after] ^= bit
                    shelves[after // SHELF] ^= bit

    def at_least(self, amount: int) -> int:
        """Rows with at least that much, and some with a little less."""
        level = bisect_right(self._steps, amount)
        if not level:
            return -1  # less than anybody asked for when this was made
        whole = -(-level // SHELF)
        found = 0
        for rows in self._rows[level : whole * SHELF]:
            found |= rows
        for rows in self._shelves[whole:]:
            found |= rows
        return found

    def remove_last(self) -> None:
        """The last row is gone from the amounts."""
        last = len(self._amounts)
        if len(self._at) > last:
            level = self._at.pop()
            if level:
                self._rows[level] ^= 1 << last
                self._shelves[level // SHELF] ^= 1 << last

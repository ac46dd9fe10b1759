"""Paths of one host in Kubernetes' precedence, as Application Gateway's path rules in their order.

The gateway takes the first pattern that matches, without regard to case; a pattern may end in `*`. So

* Exact `/a` is `/a`; Prefix `/a` is `/a` and `/a/*`; ImplementationSpecific is what it says;
* patterns without `*` match one path each, and come before every pattern with `*` that is not longer;
* patterns with `*` come in the order of their length, the longest first;
* what matches everything is the default. A path `/` alone is not allowed, so an Exact `/` becomes the
  default, where nothing else is (deviation ExactRoot).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from shared.ingress_sync.routes import Backend, Match


class Target(msgspec.Struct, frozen=True, gc=False):
    """Where requests go: to a backend, or to another address (`redirect`, a URL without path; "" is none).

    `redirect` "listener" leads to the https listener of all hosts.
    """

    backend: Backend | None = None
    redirect: str = ""
    redirect_port: int = 0
    waf_policy: str = ""
    rewrite: str = ""
    rewrite_resource: str = ""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One path that an object asks for. `target` is the number of a `Target` (`cells.Cells.targets`)."""

    path: str
    match: Match
    target: int
    owner: str
    is_default: bool = False


class Loser(msgspec.Struct, frozen=True, gc=False):
    """An entry that another one has taken the place of."""

    entry: Entry
    winner: Entry
    pattern: str


class RuleLine(msgspec.Struct, frozen=True, gc=False):
    """One path rule: patterns in order, one target, and who asked for it."""

    patterns: tuple[str, ...]
    target: int
    owners: tuple[str, ...]


class Table(msgspec.Struct, frozen=True, gc=False):
    """The routing of one host. `default` None: nothing, requests that match no rule get no answer."""

    rules: tuple[RuleLine, ...]
    default: Entry | None
    losers: tuple[Loser, ...] = ()
    deviations: tuple[tuple[str, str], ...] = ()
    """(owner, name)."""

    @property
    def owners(self) -> set[str]:
        """Everybody who has a part in it."""
        found = {owner for rule in self.rules for owner in rule.owners}
        return found | {self.default.owner} if self.default else found


_RANK = {Match.EXACT: 0, Match.PREFIX: 1, Match.WRITTEN: 3}


def rank(entry: Entry) -> int:
    """Who comes first of those with the same pattern; a Prefix with `*`, which only AGIC knows, after one
    without.
    """
    return _RANK[entry.match] + (entry.match is Match.PREFIX and entry.path.endswith("*"))


def patterns_of(entry: Entry, *, within_segment: bool) -> tuple[tuple[str, bool], ...]:
    """(literal, whether `*` follows) of a path that does not match everything."""
    path = entry.path
    if entry.match is Match.EXACT:
        return ((path.rstrip("*"), False),)
    if path.endswith("*"):
        return ((path[:-1], True),)
    if entry.match is Match.WRITTEN:
        return ((path, False),)
    base = path.rstrip("/")
    if within_segment:
        return ((base, True),)
    return (base, False), (base + "/", True)


def tabulate(entries: Iterable[Entry], *, within_segment: bool = False) -> Table:
    """The table of one host from its entries, whose order settles who comes first."""
    builder = _Builder(within_segment)
    for entry in entries:
        builder.add(entry)
    return builder.table()


class _Builder:
    def __init__(self, within_segment: bool) -> None:
        self.within_segment = within_segment
        self.plain: dict[str, tuple[str, Entry]] = {}
        self.starred: dict[str, tuple[str, Entry]] = {}
        self.default: Entry | None = None
        self.root: Entry | None = None
        self.fallback: Entry | None = None
        self.losers: list[Loser] = []
        self.deviations: list[tuple[str, str]] = []

    def add(self, entry: Entry) -> None:
        if entry.is_default:
            self.fallback = self._first(self.fallback, entry, "the default backend")
        elif len(entry.path) < 3 and not entry.path.rstrip("*").strip("/"):
            if entry.match is Match.EXACT:
                self.root = self._first(self.root, entry, "/")
            else:
                self.default = self._better(self.default, entry)
        else:
            for literal, star in patterns_of(entry, within_segment=self.within_segment):
                self._place(self.starred if star else self.plain, literal, entry)

    def _first(self, winner: Entry | None, entry: Entry, pattern: str) -> Entry:
        if winner is None:
            return entry
        self._lose(entry, winner, pattern)
        return winner

    def _better(self, winner: Entry | None, entry: Entry) -> Entry:
        if winner is not None and _RANK[entry.match] < _RANK[winner.match]:
            self._lose(winner, entry, "/")
            return entry
        return self._first(winner, entry, "/")

    def _place(self, places: dict[str, tuple[str, Entry]], literal: str, entry: Entry) -> None:
        folded = literal.lower()
        taken = places.get(folded)
        if taken is None:
            places[folded] = (literal, entry)
            return
        other, winner = taken
        if rank(entry) < rank(winner):
            places[folded] = (literal, entry)
            entry, winner = winner, entry
        if other != literal:
            self.deviations.append((entry.owner, "CaseInsensitivePaths"))
        # An Exact path beside the Prefix of the same is as it should be.
        if other != literal or {entry.match, winner.match} != {Match.EXACT, Match.PREFIX}:
            self._lose(entry, winner, literal)

    def _lose(self, entry: Entry, winner: Entry, pattern: str) -> None:
        if entry.target != winner.target:
            self.losers.append(Loser(entry, winner, pattern))

    def table(self) -> Table:
        default = self.default
        if self.root is not None:
            other = default or self.fallback
            if other is None or other.target != self.root.target:
                self.deviations.append((self.root.owner, "ExactRoot"))
            default = default or self.root if self.fallback is None else default
        default = default or self.fallback
        return Table(
            rules=tuple(self._ordered()),
            default=default,
            losers=tuple(self.losers),
            deviations=tuple(dict.fromkeys(self.deviations)),
        )

    def _ordered(self) -> Iterable[RuleLine]:
        """Longest first; patterns without `*` join a rule of their target that comes early enough."""
        starred = sorted((-len(one[0]), one[1].target, one[0], one[1]) for one in self.starred.values())
        longest: dict[int, int] = {}
        for negative, target, _, _ in starred:
            longest.setdefault(target, -negative)
        joining: dict[int, list[tuple[str, Entry]]] = {}
        ahead: dict[int, list[tuple[str, Entry]]] = {}
        for literal, entry in sorted(self.plain.values(), key=_literal):
            joins = longest.get(entry.target, 0) > len(literal)
            (joining if joins else ahead).setdefault(entry.target, []).append((literal, entry))
        for target in sorted(ahead, key=lambda target: ahead[target][0][0]):
            yield _line(target, ahead[target])
        run: list[tuple[str, Entry]] = []
        for _, target, literal, entry in starred:
            if run and run[-1][1].target != target:
                yield _line(run[-1][1].target, run)
                run = []
            if target in joining:
                run += joining.pop(target)
            run.append((literal + "*", entry))
        if run:
            yield _line(run[0][1].target, run)


def _literal(one: tuple[str, Entry]) -> str:
    return one[0]


def _line(target: int, found: list[tuple[str, Entry]]) -> RuleLine:
    owners = {entry.owner for _, entry in found}
    return RuleLine(
        tuple([pattern for pattern, _ in found]),
        target,
        tuple(owners) if len(owners) == 1 else tuple(sorted(owners)),
    )

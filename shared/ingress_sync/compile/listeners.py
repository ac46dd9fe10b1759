"""Which hosts share a listener, and in which order listeners are asked.

At most five hosts share one, and only hosts whose routing, certificate and everything else is the same. A
host stays with the listener it has on the gateway as long as that fits, so that a change touches few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from shared.ingress_sync.compile.cells import Cell, CellKey
from shared.ingress_sync.compile.foreign import Foreign
from shared.ingress_sync.compile.names import Names, digest
from shared.ingress_sync.compile.paths import Table
from shared.ingress_sync.compiled import Finding
from shared.ingress_sync.routes import Route

MAX_HOSTS = 5
LOWEST = 20_000

CLASS_BASE = {"exact": 1_000, "wildcard": 12_000, "any": 18_000}
"""Where priorities of each class of hosts begin; a rule's name spreads it above its base."""
EXACT_SPREAD, WILDCARD_SPREAD, ANY_SPREAD = 10_000, 150, 1_500
DEEPEST = 39
"""The depth from which on wildcards are not told apart any more."""


class Bundle(msgspec.Struct, kw_only=True):
    """One listener: its hosts (() is any) and their common routing."""

    name: str
    frontend: str
    port: int
    protocol: str
    hosts: tuple[str, ...]
    cell: Cell
    table: Table
    priority: int = 0
    owners: tuple[str, ...] = ()


class _Signature(msgspec.Struct, frozen=True, gc=False):
    frontend: str
    port: int
    protocol: str
    kind: int
    tls: object
    profile: str
    waf: str
    priority: int
    pages: tuple[tuple[str, str], ...]
    rules: tuple[tuple[tuple[str, ...], int], ...]
    default: int | None
    bounds: tuple[int, int]
    odd: str
    """A host whose wildcard may overlap with any other stands alone."""


class _Claims(msgspec.Struct):
    """Which listener of ours has a cell now, who keeps its name, and which names are given away."""

    live: Mapping[CellKey, str]
    by_name: dict[str, _Signature]
    used: set[str]


def depth(host: str) -> int:
    """How specific a host is: -1 any, 1000 exact; of wildcards, more with more labels, and a little less for
    those that only AGIC knows (`?`, or `*` elsewhere than first).
    """
    if not host:
        return -1
    if "*" not in host and "?" not in host:
        return 1000
    return 2 * (host.count(".") + 1) + (not is_odd(host))


def is_odd(host: str) -> bool:
    """Whether a host has a wildcard that Kubernetes does not know."""
    rest = host.removeprefix("*.")
    return "*" in rest or "?" in rest


def bundle(
    cells: Mapping[CellKey, Cell],
    tables: Mapping[CellKey, Table],
    names: Names,
    foreign: Foreign,
    live: Mapping[CellKey, str],
) -> list[Bundle]:
    """The listeners of all cells. `live` says which listener of ours has a cell now."""
    groups: dict[_Signature, list[CellKey]] = {}
    for key, table in tables.items():
        bounds = _bounds((key.host,) if key.host else (), foreign.beside(key.frontend, key.port))
        groups.setdefault(_signature(key, cells[key], table, bounds), []).append(key)
    claims = _Claims(live=live, by_name={}, used=set())
    for signature, keys in groups.items():
        for key in keys:
            if key in live:
                claims.by_name.setdefault(live[key], signature)
    claims.used.update(claims.by_name)
    found: list[Bundle] = []
    for signature, keys in groups.items():
        for name, hosts in _buckets(signature, keys, names, claims).items():
            found.append(_bundle(name, hosts, cells, tables))
    return sorted(found, key=lambda one: one.name)


def _signature(key: CellKey, cell: Cell, table: Table, bounds: tuple[int, int]) -> _Signature:
    first = cell.first
    return _Signature(
        key.frontend,
        key.port,
        key.protocol,
        depth(key.host),
        cell.tls,
        first.ssl_profile if key.protocol == "Https" else "",
        first.waf_policy,
        first.priority,
        first.error_pages,
        tuple((rule.patterns, rule.target) for rule in table.rules),
        table.default.target if table.default else None,
        bounds,
        key.host if is_odd(key.host) else "",
    )


def _buckets(
    signature: _Signature,
    keys: list[CellKey],
    names: Names,
    claims: _Claims,
) -> dict[str, list[CellKey]]:
    buckets: dict[str, list[CellKey]] = {}
    rest: list[CellKey] = []
    for key in keys:
        name = claims.live.get(key, "")
        stays = bool(name) and claims.by_name[name] is signature and len(buckets.get(name, ())) < MAX_HOSTS
        (buckets.setdefault(name, []) if stays else rest).append(key)
    for key in rest:
        room = next((name for name, held in buckets.items() if len(held) < MAX_HOSTS), "")
        name = room or _new_name(key, names, claims.used)
        claims.used.add(name)
        buckets.setdefault(name, []).append(key)
    return buckets


def _new_name(key: CellKey, names: Names, used: set[str]) -> str:
    identity, number = f"{key.frontend}/{key.port}/{key.protocol}/{key.host}", 0
    while True:
        name = names.of("lis", f"{key.port}-{key.host or 'any'}", identity + (f"/{number}" if number else ""))
        if name not in used:
            return name
        number += 1


def _bundle(
    name: str, keys: list[CellKey], cells: Mapping[CellKey, Cell], tables: Mapping[CellKey, Table]
) -> Bundle:
    first = keys[0]
    owners = {owner for key in keys for owner in tables[key].owners} | {cells[first].first.owner}
    return Bundle(
        name=name,
        frontend=first.frontend,
        port=first.port,
        protocol=first.protocol,
        hosts=tuple(sorted(key.host for key in keys if key.host)),
        cell=cells[first],
        table=tables[first],
        owners=tuple(sorted(owners)),
    )


def placeholder(names: Names, foreign: Foreign) -> Bundle:
    """A listener that leads nowhere: a gateway must have one when everything else of ours goes."""
    frontend = "public" if "public" in foreign.frontends else "private"
    port = next(
        port
        for port in (80, *range(8080, 8500))
        if (frontend, port, "") not in foreign.taken
        and foreign.protocols.get((frontend, port), "Http") == "Http"
    )
    return Bundle(
        name=names.of("lis", "80-any", "placeholder"),
        frontend=frontend,
        port=port,
        protocol="Http",
        hosts=(),
        cell=Cell(Route(owner="", frontend=frontend), None),
        table=Table((), None),
        priority=LOWEST,
    )


# Priorities


class NoRoomError(Exception):
    """No priority puts a listener where it has to be among those of others."""

    def __init__(self, bundle_: Bundle, message: str) -> None:
        super().__init__(message)
        self.bundle = bundle_


def prioritise(bundles: list[Bundle], foreign: Foreign) -> list[Finding]:
    """Give each listener its rule's priority: unique, specific hosts first, and around those of others so
    that neither takes the other's requests. NoRoomError when that cannot be.
    """
    used = set(foreign.priorities)
    warnings: list[Finding] = []
    for one in bundles:
        wanted = one.cell.first.priority
        if wanted and wanted not in used:
            one.priority = wanted
            used.add(wanted)
        elif wanted:
            text = f"priority {wanted} is taken; another one is used: choose a free rule-priority"
            warnings.append(Finding(owner=one.cell.first.owner, reason="PriorityTaken", message=text))
    placed: dict[tuple[str, int], list[Bundle]] = {}
    for one in bundles:
        if one.priority:
            placed.setdefault((one.frontend, one.port), []).append(one)
    for one in sorted(
        bundles, key=lambda one: (-depth(one.hosts[0] if one.hosts else ""), one.hosts, one.name)
    ):
        if not one.priority:
            beside = placed.setdefault((one.frontend, one.port), [])
            one.priority = _free(one, foreign, beside, used)
            used.add(one.priority)
            beside.append(one)
    return warnings


def _free(one: Bundle, foreign: Foreign, beside: list[Bundle], used: set[int]) -> int:
    low, high = _range(one)
    # Exact hosts are before all others of ours, but for those that were told their place.
    is_exact = depth(one.hosts[0] if one.hosts else "") == 1000
    ours = [other for other in beside if not is_exact or other.cell.first.priority]
    others = [(other.hosts, other.priority) for other in ours]
    above, below = _bounds(one.hosts, foreign.beside(one.frontend, one.port) + others)
    start = low + int(digest(one.name), 16) % (high - low)
    for first, last in ((low, high), (above + 1, below)):
        last = min(last, below)  # noqa: PLW2901
        first = max(first, above + 1)  # noqa: PLW2901
        found = _probe(max(first, min(start, last - 1)), first, last, used)
        if found:
            return found
    text = (
        f"no priority is free between {above} and {below}, where the listener for "
        f"{', '.join(one.hosts) or 'any host'} has to be among those of others; give their rules more room"
    )
    raise NoRoomError(one, text)


def _probe(start: int, first: int, last: int, used: set[int]) -> int:
    """A free number of [first, last), searched upwards from `start` and round; 0 when there is none."""
    for number in range(start, last):
        if number not in used:
            return number
    for number in range(first, min(start, last)):
        if number not in used:
            return number
    return 0


def _range(one: Bundle) -> tuple[int, int]:
    deep = depth(one.hosts[0] if one.hosts else "")
    if deep < 0:
        return CLASS_BASE["any"], CLASS_BASE["any"] + ANY_SPREAD
    if deep == 1000:
        return CLASS_BASE["exact"], CLASS_BASE["exact"] + EXACT_SPREAD
    base = CLASS_BASE["wildcard"] + (DEEPEST - min(deep, DEEPEST)) * WILDCARD_SPREAD
    return base, base + WILDCARD_SPREAD


def _bounds(ours: tuple[str, ...], others: Iterable[tuple[tuple[str, ...], int]]) -> tuple[int, int]:
    """(after which, before which) the priority has to be, for other listeners (hosts, priority) there."""
    above, below = 0, LOWEST + 1
    for hosts, priority in others:
        side = _side(ours, hosts)
        if side > 0:
            above = max(above, priority)
        elif side < 0:
            below = min(below, priority)
    return above, below


def _side(ours: tuple[str, ...], theirs: tuple[str, ...]) -> int:
    """1 when they have to be asked before us, -1 when after, 0 when it does not matter."""
    for their in theirs or ("",):
        for our in ours or ("",):
            if overlaps(our, their):
                return 1 if depth(their) >= depth(our) else -1
    return 0


def overlaps(one: str, other: str) -> bool:
    """Whether some host may match both; told from the fixed ends of the patterns, so rather too often."""
    if not one or not other:
        return True
    plain_one, plain_other = depth(one) == 1000, depth(other) == 1000
    if plain_one and plain_other:
        return one == other
    tail_one = one.rsplit("*", 1)[-1].rsplit("?", 1)[-1] if not plain_one else one
    tail_other = other.rsplit("*", 1)[-1].rsplit("?", 1)[-1] if not plain_other else other
    return tail_one.endswith(tail_other) or tail_other.endswith(tail_one)

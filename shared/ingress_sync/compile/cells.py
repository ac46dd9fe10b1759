"""What each host gets on each port: routes of all objects put together, conflicts settled.

Objects come by namespace and name, and the first to ask for something has it. A later object that asks for
the same path of a host differently loses that path alone and is told; one that cannot be on a listener
without harm (other protocol on the port, client certificates that would not be asked for, a listener of
somebody else) is left out as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from shared.ingress_sync.compile.foreign import Foreign
from shared.ingress_sync.compile.paths import Entry, Table, Target, tabulate
from shared.ingress_sync.compiled import Finding
from shared.ingress_sync.routes import Backend, PathRule, Route, Site, Tls


class CellKey(msgspec.Struct, frozen=True, gc=False, order=True):
    """One host ("" is any) on one port of one frontend."""

    frontend: str
    port: int
    protocol: str
    host: str


@dataclass(slots=True)
class Cell:
    """Everything about one host on one port. What stands in `first` was asked for by the first object."""

    first: Route
    tls: Tls | None
    entries: list[Entry] = field(default_factory=list)


class ConflictError(Exception):
    """A route that cannot be there beside what is there; turned into a quarantined object by the caller."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Cells:
    """The cells of all routes. `tables` and `probed` are for those who make parts of them."""

    def __init__(self, foreign: Foreign, *, within_segment: bool) -> None:
        self._foreign, self._within_segment = foreign, within_segment
        self.cells: dict[CellKey, Cell] = {}
        self.targets: list[Target] = []
        self.warnings: list[Finding] = []
        self.deviations: dict[str, set[str]] = {}
        self._probed: dict[int, tuple[str, str]] = {}
        self._numbers: dict[Target, int] = {}
        self._by_id: dict[tuple[int, str, str, str], int] = {}
        self._protocols: dict[tuple[str, int], str] = {}

    def add(self, route: Route) -> None:
        """Put a route in; ConflictError, and nothing is changed, when it cannot be there."""
        wanted = [(key, site) for site in route.sites for key in _keys(route, site)]
        protocols: dict[tuple[str, int], str] = {}
        for key, site in wanted:
            self._check(key, route, site, protocols)
        self._protocols |= protocols
        for key, site in wanted:
            self._place(key, route, site)

    def tables(self) -> dict[CellKey, Table]:
        """The routing of each cell; says who lost what."""
        found = {}
        for key in sorted(self.cells):
            table = tabulate(self.cells[key].entries, within_segment=self._within_segment)
            found[key] = table
            for loser in table.losers:
                where = f"{key.host or 'any host'} port {key.port}"
                text = f"path '{loser.pattern}' of {where} belongs to {loser.winner.owner}; change one"
                self._warn(loser.entry.owner, "PathTaken", text)
            for owner, name in table.deviations:
                self.deviations.setdefault(owner, set()).add(name)
        return found

    def _warn(self, owner: str, reason: str, message: str) -> None:
        finding = Finding(owner=owner, reason=reason, message=message)
        if finding not in self.warnings:
            self.warnings.append(finding)

    # Conflicts

    def _check(self, key: CellKey, route: Route, site: Site, protocols: dict[tuple[str, int], str]) -> None:
        place = (key.frontend, key.port)
        there = self._protocols.get(place) or self._foreign.protocols.get(place) or protocols.get(place)
        if there and there != key.protocol:
            text = f"port {key.port} of the {key.frontend} frontend is {there}; choose another port"
            raise ConflictError("PortProtocolConflict", text)
        protocols[place] = key.protocol
        taken = self._foreign.taken.get((key.frontend, key.port, key.host))
        if taken:
            text = (
                f"{key.host or 'any host'} on port {key.port} belongs to the listener '{taken}', which is "
                "not ours; choose another host, remove that listener, or name it in ingressSync.takeOver"
            )
            raise ConflictError("ListenerTaken", text)
        cell = self.cells.get(key)
        if cell is not None and key.protocol == "Https":
            self._check_listener(cell, key, route)

    def _check_listener(self, cell: Cell, key: CellKey, route: Route) -> None:
        if route.ssl_profile and route.ssl_profile != cell.first.ssl_profile:
            text = (
                f"{cell.first.owner} has {key.host or 'any host'} without the SSL profile "
                f"'{route.ssl_profile}'; give both objects the same appgw-ssl-profile"
            )
            raise ConflictError("ListenerConflict", text)

    # Placing

    def _place(self, key: CellKey, route: Route, site: Site) -> None:
        cell = self.cells.get(key)
        tls = site.tls if key.protocol == "Https" else None
        if cell is None:
            cell = self.cells[key] = Cell(route, tls)
        elif cell.first is not route:
            self._compare(cell, key, route, tls)
        is_redirect = key.protocol == "Http" and site.http == "redirect"
        for rule in site.rules:
            number = self._redirect(key, route) if is_redirect else self._number(rule)
            cell.entries.append(Entry(rule.path, rule.match, number, route.owner, is_default=rule.is_default))
            if not is_redirect:
                self._probe(number, rule.path, key.host)

    def _compare(self, cell: Cell, key: CellKey, route: Route, tls: Tls | None) -> None:
        """Say what of a listener another object has settled already."""
        first, where = cell.first, f"{key.host or 'any host'} port {key.port}"
        said = (
            ("certificate", tls != cell.tls),
            ("SSL profile", key.protocol == "Https" and route.ssl_profile != first.ssl_profile),
            ("firewall policy", route.waf_policy not in ("", first.waf_policy)),
            ("priority", bool(route.priority) and route.priority != first.priority),
            ("error pages", bool(route.error_pages) and route.error_pages != first.error_pages),
        )
        for what, differs in said:
            if differs:
                text = f"the {what} of {where} is that of {first.owner}; make them the same"
                self._warn(route.owner, "ListenerShared", text)

    def _redirect(self, key: CellKey, route: Route) -> int:
        port = "" if route.https_port == 443 else f":{route.https_port}"
        url = f"https://{key.host}{port}" if key.host else "listener"
        return self._intern(Target(redirect=url, redirect_port=route.https_port))

    def _number(self, rule: PathRule) -> int:
        # Front ends share equal backends, so that most are known by identity.
        quick = (id(rule.backend), rule.waf_policy, rule.rewrite, rule.rewrite_resource)
        known = self._by_id.get(quick)
        if known is None:
            target = Target(
                backend=rule.backend,
                waf_policy=rule.waf_policy,
                rewrite=rule.rewrite,
                rewrite_resource=rule.rewrite_resource,
            )
            known = self._by_id[quick] = self._intern(target)
        return known

    def _intern(self, target: Target) -> int:
        known = self._numbers.get(target)
        if known is None:
            known = self._numbers[target] = len(self.targets)
            self.targets.append(target)
        return known

    def _probe(self, number: int, path: str, host: str) -> None:
        candidate = ("~" if not host or "*" in host or "?" in host else host, path.rstrip("*") or "/")
        known = self._probed.get(number)
        if known is None or candidate < known:
            self._probed[number] = candidate

    def probed(self) -> dict[Backend, tuple[str, str]]:
        """Host and path for the default probe of each backend: the least of the routes that lead to it. A
        host "~" is none.
        """
        found: dict[Backend, tuple[str, str]] = {}
        for number, candidate in self._probed.items():
            backend = self.targets[number].backend
            if backend is not None:
                found[backend] = min(candidate, found.get(backend, candidate))
        return found


def _keys(route: Route, site: Site) -> Iterator[CellKey]:
    for host in site.hosts:
        if site.tls is not None:
            yield CellKey(route.frontend, route.https_port, "Https", host)
        if site.http != "none":
            yield CellKey(route.frontend, 80 if site.tls else route.http_port, "Http", host)


def owners_of(tables: Mapping[CellKey, Table]) -> set[str]:
    """Everybody who has a part in any of them."""
    return {owner for table in tables.values() for owner in table.owners}

"""A gateway's document in words: the route table before and after, and the room that is left. Pure.

Made from the document alone, so that the table shows what is there and not what was meant. Called by
`decide`.
"""

from __future__ import annotations

from collections.abc import Iterable

from shared.ingress_sync.compiled import HeadRoom
from shared.model.gateway import Document, Part, hosts_of, ids_in, inside, parts, reference


def route_table(document: Document) -> list[str]:
    """What comes in where goes where, by frontend and port in the order in which the gateway asks; parts of
    everyone.
    """
    table = _Table(document)
    rules = [
        (table.place(rule), int(inside(rule).get("priority") or 0), rule)
        for rule in parts(document, "requestRoutingRules")
    ]
    rules.sort(key=lambda one: one[:2])
    return [line for place, _, rule in rules for line in table.lines(rule, place)]


_PLAIN = ("redirectConfiguration", "backendAddressPool", "backendHttpSettings")
_DEFAULT = ("defaultRedirectConfiguration", "defaultBackendAddressPool", "defaultBackendHttpSettings")


class _Table:
    def __init__(self, document: Document) -> None:
        self.by_id = {
            str(part.get("id")).lower(): part
            for collection in (
                "httpListeners",
                "frontendIPConfigurations",
                "frontendPorts",
                "urlPathMaps",
                "backendAddressPools",
                "backendHttpSettingsCollection",
                "redirectConfigurations",
            )
            for part in parts(document, collection)
        }

        self._targets: dict[tuple[str, ...], str] = {}

    def place(self, rule: Part) -> tuple[str, int]:
        listener = self._at(rule, "httpListener")
        frontend = self._at(listener, "frontendIPConfiguration")
        kind = "public" if inside(frontend).get("publicIPAddress") else "private"
        return kind, int(inside(self._at(listener, "frontendPort")).get("port") or 0)

    def lines(self, rule: Part, place: tuple[str, int]) -> Iterable[str]:
        listener, (kind, port) = self._at(rule, "httpListener"), place
        protocol = str(inside(listener).get("protocol")).lower()
        routes = list(self._routes(rule))
        for host in hosts_of(listener) or ("(any host)",):
            before = f"{kind} {protocol}:{port} {host}"
            yield from [before + route for route in routes]

    def _routes(self, rule: Part) -> Iterable[str]:
        """`/path -> target` of each."""
        found = self.by_id.get(reference(rule, "urlPathMap"))
        if found is None:
            yield f"/* -> {self._target(inside(rule), _PLAIN)}"
            return
        properties = inside(found)
        for below in map(inside, properties.get("pathRules") or ()):
            target = self._target(below, _PLAIN)
            for path in below.get("paths") or ():
                yield f"{path} -> {target}"
        yield f"/* -> {self._target(properties, _DEFAULT)}"

    def _target(self, properties: Document, fields: tuple[str, str, str]) -> str:
        key = ids_in(properties, fields)
        known = self._targets.get(key)
        if known is None:
            known = self._targets[key] = self._describe(*(one.lower() for one in key))
        return known

    def _describe(self, redirect_id: str, pool_id: str, settings_id: str) -> str:
        redirect = self.by_id.get(redirect_id)
        if redirect is not None:
            listener = self._at(redirect, "targetListener")
            return f"redirect to {inside(redirect).get('targetUrl') or listener.get('name')}"
        pool, settings = self.by_id.get(pool_id, {}), inside(self.by_id.get(settings_id, {}))
        count = len(inside(pool).get("backendAddresses") or ())
        return f"{pool.get('name')} ({count}) {str(settings.get('protocol')).lower()}:{settings.get('port')}"

    def _at(self, part: Part, field: str) -> Part:
        return self.by_id.get(reference(part, field), {})


def route_changes(before: Document, after: Document) -> tuple[list[str], list[str]]:
    """(lines that come, lines that go), each in the order of its table."""
    was, now = route_table(before), route_table(after)
    known, kept = set(was), set(now)
    return [line for line in now if line not in known], [line for line in was if line not in kept]


def head_room_text(rooms: Iterable[HeadRoom]) -> list[str]:
    """One sentence for each limit that is used at all, the tightest first."""
    ordered = sorted(rooms, key=lambda room: (-(room.used / room.limit), room.name))
    return [
        f"{room.name}: {room.used} of {room.limit} used, {room.own} by this cluster"
        for room in ordered
        if room.used
    ]

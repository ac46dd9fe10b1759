"""What others have on the gateway, as far as our parts must go around it or lean on it."""

from __future__ import annotations

from collections.abc import Set

from shared.model.gateway import (
    COLLECTIONS,
    Document,
    Part,
    hosts_of,
    inside,
    part_key,
    parts,
    reference,
    references,
)


class _Places:
    """Where listeners are."""

    def __init__(self, live: Document) -> None:
        frontends, ports = parts(live, "frontendIPConfigurations"), parts(live, "frontendPorts")
        self._kinds = {str(one.get("id")).lower(): _kind(one) for one in frontends}
        self._numbers = {str(one.get("id")).lower(): _port(one) for one in ports}

    def of(self, listener: Part) -> tuple[str, int]:
        """(frontend, port) of a listener."""
        kind = self._kinds.get(reference(listener, "frontendIPConfiguration"), "")
        return kind, self._numbers.get(reference(listener, "frontendPort"), 0)


class Foreign:
    """The parts of a live document that are not `own` (keys of parts)."""

    def __init__(self, live: Document, own: Set[str]) -> None:
        self.parts: dict[str, list[Part]] = {
            collection: [
                part
                for part in parts(live, collection)
                if part_key(collection, str(part.get("name"))) not in own
            ]
            for collection in COLLECTIONS
        }
        self.frontends = _frontends(live)
        """`public` and `private` to the id of the frontend to use."""
        self.ports = {_port(port): str(port.get("id")) for port in self.parts["frontendPorts"]}
        """Numbers of ports that others have made, to their ids: a number may stand once in a document."""
        self.priorities = {
            int(inside(rule).get("priority") or 0)
            for collection in ("requestRoutingRules", "routingRules")
            for rule in self.parts[collection]
        }
        self.taken: dict[tuple[str, int, str], str] = {}
        """(frontend, port, host) to the name of the listener that has it."""
        self.protocols: dict[tuple[str, int], str] = {}
        """(frontend, port) to the protocol of the listeners there."""
        self.listeners: dict[str, tuple[str, int, tuple[str, ...], int]] = {}
        """Name of each listener to (frontend, port, hosts, priority of its rule)."""
        self._add_listeners(_Places(live))
        self.referred = _referred(live, self.parts)
        """Lower-cased ids that parts of others refer to: what is ours among them has to stay."""

    def _add_listeners(self, places: _Places) -> None:
        priorities = {
            reference(rule, "httpListener"): int(inside(rule).get("priority") or 0)
            for rule in self.parts["requestRoutingRules"]
        }
        for listener in self.parts["httpListeners"]:
            kind, port = places.of(listener)
            hosts, name = hosts_of(listener), str(listener.get("name"))
            priority = priorities.get(str(listener.get("id")).lower(), 0)
            self.protocols[kind, port] = str(inside(listener).get("protocol"))
            self.listeners[name] = (kind, port, hosts, priority)
            for host in hosts or ("",):
                self.taken[kind, port, host] = name
        for listener in self.parts["listeners"]:  # layer 4
            self.protocols[places.of(listener)] = str(inside(listener).get("protocol") or "Tcp")

    def beside(self, frontend: str, port: int) -> list[tuple[tuple[str, ...], int]]:
        """(hosts, priority) of the listeners that others have on a port."""
        return [
            (hosts, priority)
            for kind, number, hosts, priority in self.listeners.values()
            if (kind, number) == (frontend, port) and priority
        ]

    def find(self, collection: str, name: str) -> str:
        """The id of somebody's part by its name, without regard to case; "" when there is none."""
        lower = name.lower()
        return next(
            (
                str(part.get("id"))
                for part in self.parts[collection]
                if str(part.get("name")).lower() == lower
            ),
            "",
        )


def _port(part: Part) -> int:
    return int(inside(part).get("port") or 0)


def _referred(live: Document, theirs: dict[str, list[Part]]) -> set[str]:
    """What parts of others, and the gateway itself, refer to."""
    beside = {n: v for n, v in (live.get("properties") or {}).items() if n not in COLLECTIONS}
    found = {wanted for some in theirs.values() for part in some for wanted in references(inside(part))}
    return found | set(references(beside))


def _kind(frontend: Part) -> str:
    return "public" if inside(frontend).get("publicIPAddress") else "private"


def _frontends(live: Document) -> dict[str, str]:
    found: dict[str, str] = {}
    for frontend in parts(live, "frontendIPConfigurations"):
        found.setdefault(_kind(frontend), str(frontend.get("id")))
    return found

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
        kinds = {str(one.get("id")).lower(): _kind(one) for one in parts(live, "frontendIPConfigurations")}
        numbers = {
            str(port.get("id")).lower(): int(inside(port).get("port") or 0)
            for port in parts(live, "frontendPorts")
        }
        self.ports = {
            int(inside(port).get("port") or 0): str(port.get("id")) for port in self.parts["frontendPorts"]
        }
        """Numbers of ports that others have made, to their ids: a number may stand once in a document."""
        self.taken: dict[tuple[str, int, str], str] = {}
        """(frontend, port, host) to the name of the listener that has it."""
        self.protocols: dict[tuple[str, int], str] = {}
        self.priorities: set[int] = set()
        self.listeners: dict[str, tuple[str, int, tuple[str, ...], int]] = {}
        """Name of each listener to (frontend, port, hosts, priority of its rule)."""
        rules = {
            reference(rule, "httpListener"): int(inside(rule).get("priority") or 0)
            for rule in self.parts["requestRoutingRules"]
        }
        self.priorities = set(rules.values()) | {
            int(inside(rule).get("priority") or 0) for rule in self.parts["routingRules"]
        }
        for listener in self.parts["httpListeners"]:
            kind = kinds.get(reference(listener, "frontendIPConfiguration"), "")
            port = numbers.get(reference(listener, "frontendPort"), 0)
            hosts = hosts_of(listener)
            name = str(listener.get("name"))
            self.protocols[kind, port] = str(inside(listener).get("protocol"))
            priority = rules.get(str(listener.get("id")).lower(), 0)
            self.listeners[name] = (kind, port, hosts, priority)
            for host in hosts or ("",):
                self.taken[kind, port, host] = name
        for listener in self.parts["listeners"]:  # layer 4
            kind = kinds.get(reference(listener, "frontendIPConfiguration"), "")
            port = numbers.get(reference(listener, "frontendPort"), 0)
            self.protocols[kind, port] = str(inside(listener).get("protocol") or "Tcp")
        self.referred = {
            wanted for found in self.parts.values() for part in found for wanted in references(inside(part))
        } | set(references({n: v for n, v in (live.get("properties") or {}).items() if n not in COLLECTIONS}))
        """Lower-cased ids that parts of others refer to: what is ours among them has to stay."""

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


def _kind(frontend: Part) -> str:
    return "public" if inside(frontend).get("publicIPAddress") else "private"


def _frontends(live: Document) -> dict[str, str]:
    found: dict[str, str] = {}
    for frontend in parts(live, "frontendIPConfigurations"):
        found.setdefault(_kind(frontend), str(frontend.get("id")))
    return found

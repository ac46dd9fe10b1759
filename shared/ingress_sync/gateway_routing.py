"""What an Application Gateway does with a request, told from its document alone.

An interpreter of the platform's semantics (v2), independent of the compiler:

* a request comes to one frontend and port; of the listeners there, that whose rule has the smallest priority
  and whose host names match answers it. `*` in a host name stands for anything, dots too; case is ignored;
* a basic rule has one target; of a path map, the first path rule with a pattern that matches, in the order of
  the document, else the map's default. Patterns match without regard to case, `*` at the end is anything;
* a redirect answers with an address, a pool without targets with 502.

Pure; called by `proof` and `explain`.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from shared.model.gateway import Document, Part, hosts_of, ids_in, inside, parts, reference


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What becomes of a request. No `targets` and no `location`: nobody answers (the platform says 502, or
    404 where no listener matches).
    """

    targets: tuple[str, ...] = ()
    port: int = 0
    protocol: str = ""
    host: str = ""
    """Host header towards the backend; "" is that of the request."""
    path: str = ""
    """Prefix that replaces the matched path; "" is none."""
    location: str = ""
    """Where a redirect leads; `{host}` and `{path}` are the request's."""


NOTHING = Answer()


class PathMatcher:
    """The path rules of one map, each pattern found without trying all."""

    def __init__(self, rules: list[tuple[tuple[str, ...], Answer]], default: Answer) -> None:
        self.default = default
        self._plain: dict[str, tuple[int, Answer]] = {}
        self._starred: dict[str, tuple[int, Answer]] = {}
        for order, (patterns, answer) in enumerate(rules):
            for pattern in patterns:
                folded = pattern.lower()
                if folded.endswith("*"):
                    self._starred.setdefault(folded[:-1], (order, answer))
                else:
                    self._plain.setdefault(folded, (order, answer))
        self._lengths = sorted({len(literal) for literal in self._starred})

    def answer(self, path: str) -> Answer:
        """The target of a path (without query)."""
        folded = path.lower()
        best = self._plain.get(folded)
        find, size = self._starred.get, len(folded)
        for length in self._lengths:
            if length > size:
                break
            found = find(folded[:length])
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return self.default if best is None else best[1]


class Listener(msgspec.Struct, frozen=True, gc=False):
    """One listener with its rule."""

    name: str
    priority: int
    protocol: str
    hosts: tuple[str, ...]
    certificate: str
    """Lower-cased id; "" for http."""
    profile: str
    matcher: PathMatcher


class _Port:
    """The listeners of one frontend and port."""

    def __init__(self) -> None:
        self.exact: dict[str, Listener] = {}
        self.patterns: list[tuple[re.Pattern[str] | None, Listener]] = []

    def add(self, listener: Listener) -> None:
        for host in listener.hosts or ("",):
            if host and "*" not in host and "?" not in host:
                known = self.exact.get(host)
                if known is None or listener.priority < known.priority:
                    self.exact[host] = listener
            else:
                self.patterns.append((host_pattern(host) if host else None, listener))

    def sort(self) -> None:
        self.patterns.sort(key=lambda one: one[1].priority)

    def find(self, host: str) -> Listener | None:
        folded = host.lower()
        exact = self.exact.get(folded)
        for pattern, listener in self.patterns:
            if exact is not None and exact.priority < listener.priority:
                break
            if pattern is None or pattern.fullmatch(folded):
                return listener
        return exact


@lru_cache(maxsize=4096)
def host_pattern(host: str) -> re.Pattern[str]:
    """A host name with wildcards as the platform reads it."""
    return re.compile("".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in host.lower()))


_PLAIN = ("backendAddressPool", "backendHttpSettings", "redirectConfiguration")
_DEFAULT = ("defaultBackendAddressPool", "defaultBackendHttpSettings", "defaultRedirectConfiguration")


class GatewayRouting:
    """The routing of one document."""

    def __init__(self, document: Document) -> None:
        self.listeners: dict[tuple[str, int], _Port] = {}
        self._document = document
        self._pools = {
            _id(part): tuple(
                str(to.get("ipAddress") or to.get("fqdn"))
                for to in inside(part).get("backendAddresses") or ()
            )
            for part in parts(document, "backendAddressPools")
        }
        self._settings = {
            _id(part): inside(part) for part in parts(document, "backendHttpSettingsCollection")
        }
        self._frontends = {
            _id(part): "public" if inside(part).get("publicIPAddress") else "private"
            for part in parts(document, "frontendIPConfigurations")
        }
        self._ports = {_id(part): int(inside(part)["port"]) for part in parts(document, "frontendPorts")}
        self._listener_parts = {_id(part): part for part in parts(document, "httpListeners")}
        self._redirects = {_id(part): part for part in parts(document, "redirectConfigurations")}
        self._maps = {_id(part): part for part in parts(document, "urlPathMaps")}
        self._answers: dict[tuple[str, ...], Answer] = {}
        for rule in parts(document, "requestRoutingRules"):
            self._add(rule)
        for port in self.listeners.values():
            port.sort()

    def listener(self, frontend: str, port: int, host: str) -> Listener | None:
        """Who answers requests for a host; None when nobody does."""
        there = self.listeners.get((frontend, port))
        return there.find(host) if there else None

    def answer(self, frontend: str, port: int, protocol: str, host: str, path: str) -> Answer:
        """What becomes of one request."""
        found = self.listener(frontend, port, host)
        if found is None or found.protocol != protocol:
            return NOTHING
        return found.matcher.answer(path)

    def _add(self, rule: Part) -> None:
        listener = self._listener_parts[reference(rule, "httpListener")]
        place = self._place(listener)
        self.listeners.setdefault(place, _Port()).add(
            Listener(
                name=str(listener.get("name")),
                priority=int(inside(rule).get("priority") or 20_001),
                protocol=str(inside(listener).get("protocol")),
                hosts=hosts_of(listener),
                certificate=reference(listener, "sslCertificate"),
                profile=reference(listener, "sslProfile"),
                matcher=self._matcher(rule),
            )
        )

    def _place(self, listener: Part) -> tuple[str, int]:
        return (
            self._frontends[reference(listener, "frontendIPConfiguration")],
            self._ports[reference(listener, "frontendPort")],
        )

    def _matcher(self, rule: Part) -> PathMatcher:
        found = self._maps.get(reference(rule, "urlPathMap"))
        if found is None:
            return PathMatcher([], self._target(inside(rule), _PLAIN))
        properties = inside(found)
        rules = [
            (tuple(below.get("paths") or ()), self._target(below, _PLAIN))
            for below in map(inside, properties.get("pathRules") or ())
        ]
        return PathMatcher(rules, self._target(properties, _DEFAULT))

    def _target(self, properties: Document, fields: tuple[str, str, str]) -> Answer:
        # Rules are many, and what they lead to is little: told apart by ids as they stand.
        key = ids_in(properties, fields)
        known = self._answers.get(key)
        if known is None:
            pool, settings, redirect = (one.lower() for one in key)
            made = self._redirect(self._redirects[redirect]) if redirect else self._forward(pool, settings)
            known = self._answers[key] = made
        return known

    def _forward(self, pool: str, settings: str) -> Answer:
        targets, how = self._pools.get(pool, ()), self._settings.get(settings, {})
        return Answer(
            targets=targets,
            port=int(how.get("port") or 0),
            protocol=str(how.get("protocol")),
            host=str(
                how.get("hostName") or ("{address}" if how.get("pickHostNameFromBackendAddress") else "")
            ),
            path=str(how.get("path") or ""),
        )

    def _redirect(self, part: Part) -> Answer:
        properties = inside(part)
        location = str(properties.get("targetUrl") or "")
        listener = self._listener_parts.get(reference(part, "targetListener"))
        if listener is not None:
            _, port = self._place(listener)
            protocol = str(inside(listener).get("protocol")).lower()
            location = f"{protocol}://{{host}}" + ("" if port in (80, 443) else f":{port}")
        if properties.get("includePath"):
            location += "{path}"
        return Answer(location=f"{properties.get('redirectType')} {location}")


def _id(part: Part) -> str:
    return str(part.get("id")).lower()

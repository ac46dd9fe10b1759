"""What Azure would refuse in a gateway's document, found before it is sent: (document, uploads) -> problems.

One wrong part refuses the whole document, for everyone. References, names, limits, priorities, collisions of
listeners, path rules, ranges of settings and probes. Parts of others were accepted once and are not looked at
but for what they have in common with ours. Pure; called by `decide` before every write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import msgspec

from shared.ingress_sync.compile.limits import (
    ACTIVE,
    PATH_RULES_PER_MAP,
    active_listeners,
    limits_of,
)
from shared.ingress_sync.ownership import every_part
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

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,78}[A-Za-z0-9_])?")
CODES = re.compile(r"\d{3}(-\d{3})?")
MAX_TARGETS, MAX_HOSTS = 1_200, 5


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with which part (`collection/name`)."""

    key: str
    message: str


def validate(document: Document, ours: Set[str], uploads: Iterable[str] = ()) -> list[Problem]:
    """Everything Azure would refuse; `ours` are the keys of our parts, `uploads` names of certificates whose
    data is put in before sending.
    """
    checker = _Checker(document, ours, frozenset(uploads))
    return list(checker.problems())


class _Checker:
    def __init__(self, document: Document, ours: Set[str], uploads: frozenset[str]) -> None:
        self.document, self.ours, self.uploads = document, ours, uploads
        self.ids = {str(part.get("id")).lower(): part for _, part in every_part(document)}
        self.rules = parts(document, "requestRoutingRules")

    def own(self, collection: str) -> Iterator[tuple[str, Part]]:
        for part in parts(self.document, collection):
            key = part_key(collection, str(part.get("name")))
            if key in self.ours:
                yield key, part

    def _is_ours(self, *keys: str) -> bool:
        """Whether one of them is: what others have among themselves was accepted once."""
        return not self.ours.isdisjoint(keys)

    def problems(self) -> Iterator[Problem]:
        yield from self._names()
        yield from self._references()
        yield from self._limits()
        yield from self._ports()
        yield from self._listeners()
        yield from self._certificates()
        yield from self._pools()
        yield from self._settings()
        yield from self._probes()
        yield from self._rules()
        yield from self._maps()
        yield from self._redirects()

    def _names(self) -> Iterator[Problem]:
        for collection in COLLECTIONS:
            seen: set[str] = set()
            for part in parts(self.document, collection):
                name = str(part.get("name"))
                key = part_key(collection, name)
                if key in self.ours and not NAME.fullmatch(name):
                    yield Problem(key, f"'{name}' is no name for a part")
                if name.lower() in seen:
                    yield Problem(key, f"the name '{name}' stands twice in {collection}")
                seen.add(name.lower())

    def _references(self) -> Iterator[Problem]:
        here = str(self.document.get("id") or "").lower() + "/"
        there = set(self.ids)
        for one in parts(self.document, "urlPathMaps"):
            there.update(str(rule.get("id")).lower() for rule in inside(one).get("pathRules") or ())
        for collection, part in every_part(self.document):
            below = inside(part)
            if collection == "redirectConfigurations":
                below = {name: value for name, value in below.items() if name == "targetListener"}
            for wanted in references(below):
                if wanted not in there and (not wanted or wanted.startswith(here)):
                    yield Problem(
                        part_key(collection, str(part.get("name"))),
                        f"it refers to '{wanted}', which is not there",
                    )

    def _limits(self) -> Iterator[Problem]:
        for name, limit in limits_of(self.document).items():
            used = len(active_listeners(self.rules)) if name == ACTIVE else len(parts(self.document, name))
            if used > limit:
                yield Problem(f"{name}/", f"{used} {name}; the limit is {limit}")

    def _ports(self) -> Iterator[Problem]:
        seen: dict[Any, str] = {}
        for part in parts(self.document, "frontendPorts"):
            key, number = part_key("frontendPorts", str(part.get("name"))), inside(part).get("port")
            if key in self.ours and not _in(number, 1, 64_999):
                yield Problem(key, f"the port {number} is not within 1 to 64999")
            if number in seen and self._is_ours(key, seen[number]):
                yield Problem(key, f"the port {number} is that of {seen[number]} too")
            seen[number] = key

    def _listeners(self) -> Iterator[Problem]:
        taken: dict[tuple[str, str, str], str] = {}
        protocols: dict[tuple[str, str], str] = {}
        for part in parts(self.document, "httpListeners"):
            key = part_key("httpListeners", str(part.get("name")))
            properties, hosts = inside(part), hosts_of(part)
            place = reference(part, "frontendIPConfiguration"), reference(part, "frontendPort")
            if key in self.ours:
                yield from self._own_listener(key, properties, hosts, place)
            for host in hosts or ("",):
                other = taken.setdefault((*place, host), key)
                if other != key and self._is_ours(key, other):
                    yield Problem(key, f"host '{host}' on that port is that of {other} too")
            protocol = str(properties.get("protocol"))
            if protocols.setdefault(place, protocol) != protocol and key in self.ours:
                yield Problem(key, "http and https on one port")

    def _own_listener(
        self, key: str, properties: Mapping[str, Any], hosts: tuple[str, ...], place: tuple[str, str]
    ) -> Iterator[Problem]:
        if not all(place):
            yield Problem(key, "a listener needs a frontend and a port")
        if properties.get("hostName") and properties.get("hostNames"):
            yield Problem(key, "hostName and hostNames exclude each other")
        if len(hosts) > MAX_HOSTS:
            yield Problem(key, f"{len(hosts)} hosts; the limit is {MAX_HOSTS}")
        secure = properties.get("protocol") == "Https"
        if secure != bool(properties.get("sslCertificate")):
            yield Problem(key, "an https listener has a certificate, and no other has one")

    def _certificates(self) -> Iterator[Problem]:
        for key, part in self.own("sslCertificates"):
            has_data = any(inside(part).get(name) for name in ("data", "keyVaultSecretId", "publicCertData"))
            if not has_data and part.get("name") not in self.uploads:
                yield Problem(key, "a new certificate needs data or a Key Vault id")

    def _pools(self) -> Iterator[Problem]:
        for key, part in self.own("backendAddressPools"):
            if len(inside(part).get("backendAddresses") or ()) > MAX_TARGETS:
                yield Problem(key, f"a pool takes {MAX_TARGETS} targets")

    def _settings(self) -> Iterator[Problem]:
        for key, part in self.own("backendHttpSettingsCollection"):
            properties = inside(part)
            if not _in(properties.get("port"), 1, 65_535):
                yield Problem(key, "port must be 1 to 65535")
            if not _in(properties.get("requestTimeout"), 1, 86_400):
                yield Problem(key, "requestTimeout must be 1 to 86400")
            draining = properties.get("connectionDraining") or {}
            if draining.get("enabled") and not _in(draining.get("drainTimeoutInSec"), 1, 3_600):
                yield Problem(key, "drainTimeoutInSec must be 1 to 3600")
            picks = bool(properties.get("pickHostNameFromBackendAddress"))
            if picks and properties.get("hostName"):
                yield Problem(key, "hostName and pickHostNameFromBackendAddress exclude each other")
            probe = self.ids.get(reference(part, "probe"))
            wants = probe is not None and inside(probe).get("pickHostNameFromBackendHttpSettings")
            if wants and not picks and not properties.get("hostName"):
                yield Problem(key, "its probe takes the host from settings that have none")

    def _probes(self) -> Iterator[Problem]:
        for key, part in self.own("probes"):
            properties = inside(part)
            for name, high in (("interval", 86_400), ("timeout", 86_400), ("unhealthyThreshold", 20)):
                if not _in(properties.get(name), 1, high):
                    yield Problem(key, f"{name} must be 1 to {high}")
            if bool(properties.get("host")) == bool(properties.get("pickHostNameFromBackendHttpSettings")):
                yield Problem(key, "a probe has a host, or takes that of the settings")
            if not str(properties.get("path") or "").startswith("/"):
                yield Problem(key, "the path must start with '/'")
            codes = (properties.get("match") or {}).get("statusCodes") or ()
            if not all(CODES.fullmatch(str(one)) for one in codes):
                yield Problem(key, "match.statusCodes are codes or ranges")

    def _rules(self) -> Iterator[Problem]:
        priorities: dict[Any, str] = {}
        listeners: dict[str, str] = {}
        for part in self.rules:
            key = part_key("requestRoutingRules", str(part.get("name")))
            priority, listener = inside(part).get("priority"), reference(part, "httpListener")
            if key in self.ours:
                if not _in(priority, 1, 20_000):
                    yield Problem(key, f"the priority {priority} is not within 1 to 20000")
                is_map = inside(part).get("ruleType") == "PathBasedRouting"
                yield from _has_target(key, inside(part), ("urlPathMap",) if is_map else ())
            other = priorities.setdefault(priority, key)
            if priority is not None and other != key and self._is_ours(key, other):
                yield Problem(key, f"the priority {priority} is that of {priorities[priority]} too")
            other = listeners.setdefault(listener, key)
            if other != key and self._is_ours(key, other):
                yield Problem(key, f"the listener is used by {other} too")

    def _maps(self) -> Iterator[Problem]:
        for key, part in self.own("urlPathMaps"):
            properties = inside(part)
            rules = properties.get("pathRules") or ()
            if not 1 <= len(rules) <= PATH_RULES_PER_MAP:
                yield Problem(key, f"{len(rules)} path rules; a map has 1 to {PATH_RULES_PER_MAP}")
            default = {
                name[7].lower() + name[8:]: value
                for name, value in properties.items()
                if name.startswith("default")
            }
            yield from _has_target(key, default, ())
            seen: set[str] = set()
            for rule in rules:
                yield from _has_target(key, inside(rule), ())
                for path in map(str, inside(rule).get("paths") or ("",)):
                    problem, folded = path_problem(path), path.lower()
                    if problem:
                        yield Problem(key, f"path '{path}' {problem}")
                    if folded in seen:
                        yield Problem(key, f"path '{path}' stands twice in the map")
                    seen.add(folded)

    def _redirects(self) -> Iterator[Problem]:
        for key, part in self.own("redirectConfigurations"):
            target = reference(part, "targetListener")
            if bool(target) == bool(inside(part).get("targetUrl")):
                yield Problem(key, "a redirect leads to a listener or to a URL")
            hosts = hosts_of(self.ids[target]) if target in self.ids else ()
            if len(hosts) > 1 or any("*" in host or "?" in host for host in hosts):
                yield Problem(key, "a redirect cannot lead to a listener with several or wildcard hosts")


def path_problem(path: str) -> str:
    """What the platform has against a pattern of a path rule; "" for nothing."""
    if path.strip("/") == "":
        return "has an empty match value"
    if not path.startswith("/"):
        return "must start with '/'"
    if "*" in path[:-1] or "?" in path or "#" in path:
        return "may have '*' only at its end, no '?' and no '#'"
    return ""


def _has_target(key: str, properties: Mapping[str, Any], instead: tuple[str, ...]) -> Iterator[Problem]:
    if any(properties.get(name) for name in instead):
        return
    pool, settings = properties.get("backendAddressPool"), properties.get("backendHttpSettings")
    redirect = properties.get("redirectConfiguration")
    if instead or bool(redirect) == bool(pool or settings) or bool(pool) != bool(settings):
        yield Problem(key, "it needs a pool with settings, or a redirect")


def _in(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

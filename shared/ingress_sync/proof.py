"""The proof that a document routes as the objects say, made before every write.

Witness requests are derived from every rule and its neighbours: hosts in another case, one label deeper and
one shallower; paths at, below, beside and above each prefix, and in another case; hosts and paths that nobody
names. Both interpreters answer each; where they differ, the difference must be one of the declared
deviations of the platform (`DEVIATIONS`), else the document is not written. Requests to the listeners of
others must be answered as before. Pure; called by `decide`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from shared.ingress_sync.compile.listeners import depth
from shared.ingress_sync.compile.names import Names, prefix_of
from shared.ingress_sync.compiled import Compiled
from shared.ingress_sync.expectations import Expectations, Place, expectations
from shared.ingress_sync.gateway_routing import NOTHING, Answer, GatewayRouting, Listener, host_pattern
from shared.ingress_sync.ingress import ours
from shared.ingress_sync.kubernetes_routing import HostRules, KubernetesRouting
from shared.ingress_sync.observation import Observation
from shared.ingress_sync.routes import unpack_routes
from shared.model.gateway import Document, inside, parts

DEVIATIONS = {
    "CaseInsensitivePaths": "Paths are compared without regard to case.",
    "UnmatchedIs502": "A request that no path of its host matches is answered 502 instead of 404.",
    "WildcardDepth": "A wildcard host also takes names with more than one label in its place.",
    "ExactRoot": "An Exact path `/` is read as Prefix `/`; every other path still comes first.",
    "HttpsOnly": "A host with a certificate is not served over http (`httpBesideHttps` changes that).",
    "WildcardRedirect": "Http requests to a wildcard host are not redirected to https.",
    "ExplicitPriority": "A rule-priority comes before the order of hosts.",
    "MixedTargetPorts": "Of endpoints that listen on different ports, those with the smallest are used.",
}
"""Where the gateway differs from Kubernetes: the name in an object's annotation, and what it means."""

UNKNOWN_HOST = "unknown-host.invalid"
UNKNOWN_PATH = "/qqunknown"


class Difference(msgspec.Struct, frozen=True, gc=False):
    """One request that the gateway answers otherwise than promised. `deviation` "" is one undeclared."""

    frontend: str
    port: int
    protocol: str
    host: str
    path: str
    expected: Answer
    actual: Answer
    deviation: str = ""
    owners: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = f"{self.protocol.lower()}://{self.host}:{self.port}{self.path} ({self.frontend})"
        return f"{place} should get {_shown(self.expected)}, and would get {_shown(self.actual)}"


class Proof(msgspec.Struct, frozen=True):
    """How many requests were tried, and where the answers differ; of paths in another case, one for each
    host. `declared_count` counts all.
    """

    requests: int
    declared_count: int = 0
    declared: tuple[Difference, ...] = ()
    undeclared: tuple[Difference, ...] = ()


def prove(observation: Observation, compiled: Compiled) -> Proof:
    """Try every witness on a compiled document."""
    left_out = {one.owner: one.kept_last_good for one in compiled.quarantined}
    last_good = unpack_routes(observation.record.routes) if any(left_out.values()) else {}
    promised = expectations(
        observation,
        ours(observation.kubernetes, observation.policy),
        {owner: last_good[owner] for owner, kept in left_out.items() if kept},
        left_out,
    )
    trial = _Trial(observation, compiled, promised)
    trial.run()
    declared = tuple(one for one in trial.differences if one.deviation)
    undeclared = tuple(one for one in trial.differences if not one.deviation)
    return Proof(
        requests=trial.requests,
        declared=declared,
        undeclared=undeclared,
        declared_count=len(declared) + trial.declared,
    )


class _Trial:
    def __init__(self, observation: Observation, compiled: Compiled, promised: Expectations) -> None:
        self.promised = promised
        self.gateway = GatewayRouting(compiled.document)
        self.before = observation.gateway or {}
        self.after = compiled.document
        self.owners: dict[str, list[str]] = {}
        for owner, names in compiled.served.items():
            for name in names:
                self.owners.setdefault(name, []).append(owner)
        self.names = Names(prefix_of(observation.cluster, observation.policy.prefix))
        self.compiled = compiled
        self.differences: list[Difference] = []
        self.requests = 0
        self.declared = 0
        """Further differences by a declared deviation, which are only counted."""
        self._case_shown: set[int] = set()
        self._agreed: dict[tuple[int, int], bool] = {}

    def run(self) -> None:
        for place, routing in self.promised.places.items():
            for host, rules in routing.hosts.items():
                self._host(place, routing, host, rules)
            if "" not in routing.hosts:
                self._try(place, routing, UNKNOWN_HOST, ("/", UNKNOWN_PATH))
        self._certificates()
        self._others()

    # Our routes

    def _host(self, place: Place, routing: KubernetesRouting, host: str, rules: HostRules) -> None:
        main, neighbours = _hosts(host)
        self._try(place, routing, main, _paths(rules))
        few = (rules.statements[0].path.rstrip("*") or "/", UNKNOWN_PATH)
        for neighbour in neighbours:
            self._try(place, routing, neighbour, few)

    def _try(self, place: Place, routing: KubernetesRouting, host: str, paths: Iterable[str]) -> None:
        frontend, port, protocol = place
        listener = self.gateway.listener(frontend, port, host)
        rules = routing.find(host)
        if self._is_theirs(listener) and (rules is None or host.lower() not in routing.hosts):
            return  # a host of somebody else's, next to one of ours
        answers = listener is not None and listener.protocol == protocol
        answer = listener.matcher.answer if listener is not None and answers else None
        find = rules.find if rules is not None else None
        for path in paths:
            self.requests += 1
            statement = find(path) if find is not None else None
            expected = statement.answer if statement is not None else NOTHING
            actual = answer(path) if answer is not None else NOTHING
            if not self._agree(expected, actual):
                if rules is not None and self._is_case(rules, path, actual):
                    continue
                owners = (statement.owner,) if statement is not None else ()
                self._differ(place, (host, path), expected, actual, owners)

    def _agree(self, expected: Answer, actual: Answer) -> bool:
        # Answers are few and shared, and long to compare: each pair once.
        pair = (id(expected), id(actual))
        known = self._agreed.get(pair)
        if known is None:
            known = self._agreed[pair] = _agree(expected, actual)
        return known

    def _explains(self, rules: HostRules, path: str, actual: Answer, *, root: bool) -> bool:
        """Whether these rules give the answer once case (and, with `root`, Exact `/`) is read as the platform
        reads it.
        """
        found = rules.folded(root=root).find(path.lower())
        return self._agree(found.answer if found else NOTHING, actual)

    def _is_case(self, rules: HostRules, path: str, actual: Answer) -> bool:
        """Whether the difference is the commonest, one example of which is enough for each host."""
        if id(rules) not in self._case_shown or not self._explains(rules, path, actual, root=False):
            self._case_shown.add(id(rules))
            return False
        self.declared += 1
        return True

    def _is_theirs(self, listener: Listener | None) -> bool:
        return listener is not None and listener.name not in self.owners

    def _differ(
        self,
        place: Place,
        request: tuple[str, str],
        expected: Answer,
        actual: Answer,
        owners: tuple[str, ...] = (),
    ) -> None:
        (frontend, port, protocol), (host, path) = place, request
        listener = self.gateway.listener(frontend, port, host)
        if not owners and listener is not None:
            owners = tuple(self.owners.get(listener.name, ()))
        self.differences.append(
            Difference(
                frontend=frontend,
                port=port,
                protocol=protocol,
                host=host,
                path=path,
                expected=expected,
                actual=actual,
                deviation=self._declared(place, host, path, actual),
                owners=owners,
            )
        )

    def _declared(self, place: Place, host: str, path: str, actual: Answer) -> str:
        """The deviation that explains an answer; "" when none does."""
        routing = self.promised.places[place]
        rules, wildcard = routing.find(host), _wildcard_above(routing, host)
        if rules is not None:
            for name, root in (("CaseInsensitivePaths", False), ("ExactRoot", True)):
                if self._explains(rules, path, actual, root=root):
                    return name
        if wildcard is not None and any(
            self._explains(wildcard, path, actual, root=root) for root in (False, True)
        ):
            return "WildcardDepth"
        if place in self.promised.priorities:
            others = (self._explains(one, path, actual, root=True) for one in routing.hosts.values())
            return "ExplicitPriority" if any(others) else ""
        return ""

    def _certificates(self) -> None:
        for (frontend, port, host), tls in self.promised.certificates.items():
            main, _ = _hosts(host)
            listener = self.gateway.listener(frontend, port, main)
            wanted = tls.name.lower() if tls.name else self.names.certificate(tls.key_vault or tls.digest)
            found = listener.certificate.rpartition("/")[2] if listener else ""
            self.requests += 1
            if found != wanted and (frontend, port, "Https") not in self.promised.priorities:
                self._differ(
                    (frontend, port, "Https"),
                    (main, "/"),
                    Answer(location=f"certificate {wanted}"),
                    Answer(location=f"certificate {found or 'none'}"),
                )

    # The routes of others

    def _others(self) -> None:
        """What a listener that is not ours answered before, it answers now."""
        if not any(part for part in parts(self.before, "requestRoutingRules")):
            return
        names = {str(part.get("name")) for part in parts(self.after, "httpListeners")}
        ours_now = {key.partition("/")[2] for key in self.compiled.parts if key.startswith("httpListeners/")}
        old = GatewayRouting(self.before)
        for (frontend, port), hosts in _foreign_hosts(self.after, ours_now).items():
            for host, patterns in hosts.items():
                listener = old.listener(frontend, port, host)
                if listener is None or listener.name.lower() in ours_now or listener.name not in names:
                    continue
                if self._is_more_promised(frontend, port, host, listener):
                    continue
                now = self.gateway.listener(frontend, port, host)
                for path in ("/", UNKNOWN_PATH, *(pattern.rstrip("*") for pattern in patterns)):
                    self._compare(listener, now, host, path)

    def _is_more_promised(self, frontend: str, port: int, host: str, theirs: Listener) -> bool:
        """Whether an object speaks of a host more specifically than the listener that had it before."""
        matching = [
            one for one in theirs.hosts or ("",) if not one or host_pattern(one).fullmatch(host.lower())
        ]
        their_depth = max((depth(one) for one in matching), default=-1)
        return any(
            name is not None and depth(name) > their_depth
            for (kind, number, _), routing in self.promised.places.items()
            if (kind, number) == (frontend, port)
            for name in (routing.match(host), _wildcard_name(routing, host))
        )

    def _compare(self, was: Listener, now: Listener | None, host: str, path: str) -> None:
        self.requests += 1
        before = was.matcher.answer(path)
        after = now.matcher.answer(path) if now else NOTHING
        if now is None or now.name != was.name or before != after:
            owners = tuple(self.owners.get(now.name, ())) if now is not None else ()
            self.differences.append(
                Difference(
                    frontend=f"listener {was.name} of others",
                    port=0,
                    protocol=was.protocol,
                    host=host,
                    path=path,
                    expected=before,
                    actual=after,
                    owners=owners,
                )
            )


def _agree(expected: Answer, actual: Answer) -> bool:
    if not expected.targets and not expected.location:
        return not actual.targets and not actual.location
    if len(expected.targets) > len(actual.targets) > 0:  # a pool takes so many, which is reported
        expected = msgspec.structs.replace(expected, targets=expected.targets[:1200])
    return expected == actual


def _wildcard_name(routing: KubernetesRouting, host: str) -> str | None:
    """The nearest wildcard that Application Gateway would take for a host."""
    labels = host.lower().split(".")
    names = ("*." + ".".join(labels[start:]) for start in range(1, len(labels)))
    return next((name for name in names if name in routing.hosts), None)


def _wildcard_above(routing: KubernetesRouting, host: str) -> HostRules | None:
    name = _wildcard_name(routing, host)
    return None if name is None else routing.hosts[name]


def _hosts(host: str) -> tuple[str, tuple[str, ...]]:
    """A host that a pattern means, and its neighbours."""
    if not host:
        return UNKNOWN_HOST, ()
    plain = host.replace("*", "w").replace("?", "q")
    if host.startswith("*."):
        rest = host[2:].replace("*", "w").replace("?", "q")
        return plain, (plain.upper(), f"a.b.{rest}", rest)
    parent = plain.partition(".")[2]
    return plain, (plain.upper(), f"x.{plain}", *((f"y.{parent}",) if "." in parent else ()))


def _paths(rules: HostRules) -> Iterator[str]:
    """Paths at and around every rule of a host, each once."""
    found = {"/", UNKNOWN_PATH}
    for statement in rules.statements:
        base = statement.path.rstrip("*")
        stem = base.rstrip("/")
        found.add(base or "/")
        found.add(stem + "/")
        found.add(stem + "/zz/y")
        if stem:
            found.add(stem)
            found.add(stem + "zz")
            found.add(stem.swapcase())
            if len(stem) > 2:
                found.add(stem[:-1])
    return iter(found)


def _foreign_hosts(document: Document, ours_now: set[str]) -> dict[tuple[str, int], dict[str, list[str]]]:
    """(frontend, port) to the hosts of listeners of others, with the patterns of their maps."""
    kinds = {
        str(one.get("id")).lower(): "public" if inside(one).get("publicIPAddress") else "private"
        for one in parts(document, "frontendIPConfigurations")
    }
    numbers = {
        str(one.get("id")).lower(): int(inside(one).get("port") or 0)
        for one in parts(document, "frontendPorts")
    }
    found: dict[tuple[str, int], dict[str, list[str]]] = {}
    patterns = _patterns(document)
    for listener in parts(document, "httpListeners"):
        if str(listener.get("name")).lower() in ours_now:
            continue
        properties = inside(listener)
        place = (
            kinds.get(str((properties.get("frontendIPConfiguration") or {}).get("id")).lower(), ""),
            numbers.get(str((properties.get("frontendPort") or {}).get("id")).lower(), 0),
        )
        hosts = properties.get("hostNames") or [properties.get("hostName") or ""]
        for host in hosts:
            main, neighbours = _hosts(str(host).lower())
            for one in (main, *neighbours):
                found.setdefault(place, {})[one] = patterns.get(str(listener.get("id")).lower(), [])
    return found


def _patterns(document: Document) -> Mapping[str, list[str]]:
    """Lower-cased id of each listener to the patterns of its map."""
    maps = {
        str(one.get("id")).lower(): [
            str(path)
            for rule in inside(one).get("pathRules") or ()
            for path in inside(rule).get("paths") or ()
        ]
        for one in parts(document, "urlPathMaps")
    }
    found = {}
    for rule in parts(document, "requestRoutingRules"):
        listener = str((inside(rule).get("httpListener") or {}).get("id")).lower()
        found[listener] = maps.get(str((inside(rule).get("urlPathMap") or {}).get("id")).lower(), [])
    return found


def _shown(answer: Answer) -> str:
    if answer.location:
        return answer.location
    if not answer.targets:
        return "no answer"
    more = f" and {len(answer.targets) - 2} more" if len(answer.targets) > 2 else ""
    return f"{', '.join(answer.targets[:2])}{more} port {answer.port}"

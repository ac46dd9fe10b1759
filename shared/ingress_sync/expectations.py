"""What the objects of a cluster promise, as statements for `kubernetes_routing`, straight from the objects.

Written beside the compiler on purpose, not with it: it looks at Ingress objects, Services and EndpointSlices
anew, so that a mistake in one is seen by the other. Only objects that are served are looked at; for one whose
last good routes stand in, those are what is promised. Pure; called by `proof`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from shared.ingress_sync.annotations import Options, parse
from shared.ingress_sync.backends import waits_for_gateway
from shared.ingress_sync.gateway_routing import Answer
from shared.ingress_sync.kubernetes_routing import HostRules, KubernetesRouting, Statement
from shared.ingress_sync.observation import Observation
from shared.ingress_sync.prohibited import Prohibited
from shared.ingress_sync.routes import PathRule, Route, Site, Tls
from shared.model.ingress import (
    Endpoint,
    EndpointSlice,
    Ingress,
    IngressBackend,
    IngressServiceBackend,
    Service,
    ServicePort,
)

SERVICE_LABEL = "kubernetes.io/service-name"
Place = tuple[str, int, str]
"""(frontend, port, protocol)."""


class Expectations:
    """What is promised at each place; `certificates` by (frontend, port, host), `priorities` the places where
    an object wants one of its own.
    """

    def __init__(self, observation: Observation) -> None:
        self.observation = observation
        self.policy = observation.policy
        self.places: dict[Place, KubernetesRouting] = {}
        self.certificates: dict[tuple[str, int, str], Tls] = {}
        self.priorities: set[Place] = set()
        self._said: dict[Place, dict[str, list[Statement]]] = {}
        self._parsed: dict[frozenset[tuple[str, str]], Options] = {}
        self._view = _View(observation)
        self._prohibited = Prohibited(observation.kubernetes.azureingressprohibitedtargets)
        self._digests = {one.key: one.kubekeeper.digest for one in observation.kubernetes.secrets}

    def close(self) -> None:
        """All objects have been heard."""
        within = self.policy.compatibility.prefix_within_segment
        for place, by_host in self._said.items():
            routing = self.places[place] = KubernetesRouting()
            for host, statements in by_host.items():
                routing.hosts[host] = HostRules(statements, within_segment=within)

    def say(self, place: Place, host: str, statement: Statement) -> None:
        self._said.setdefault(place, {}).setdefault(host, []).append(statement)

    # From an Ingress

    def hear(self, ingress: Ingress) -> None:
        """An Ingress that is served as it stands."""
        options = self._options(ingress)
        private = options.use_private_ip
        if private is None:
            private = self.policy.use_private_ip
        frontend = "private" if private else "public"
        for host, statements in self._hosts(ingress, options).items():
            tls = self._tls(ingress, options, host)
            if tls is None:
                port = 80 if options.ssl_redirect else options.frontend_port or 80
                self._say_all((frontend, port, "Http"), host, statements, options)
                continue
            port = options.frontend_port or 443
            self._say_all((frontend, port, "Https"), host, statements, options)
            self.certificates.setdefault((frontend, port, host), tls)
            if options.ssl_redirect and "*" not in host and "?" not in host:
                answer = _redirect(host, port)
                moved = [msgspec.structs.replace(one, answer=answer) for one in statements]
                self._say_all((frontend, 80, "Http"), host, moved, options)
            elif self.policy.http_beside_https and not options.ssl_redirect and not options.ssl_profile:
                self._say_all((frontend, 80, "Http"), host, statements, options)

    def _options(self, ingress: Ingress) -> Options:
        said = frozenset((ingress.metadata.annotations or {}).items())
        known = self._parsed.get(said)
        if known is None:
            known, _ = parse(dict(said))
            self._parsed[said] = known
        return known

    def _say_all(self, place: Place, host: str, said: Iterable[Statement], options: Options) -> None:
        if options.rule_priority:
            self.priorities.add(place)
        for statement in said:
            self.say(place, host, statement)

    def _hosts(self, ingress: Ingress, options: Options) -> dict[str, list[Statement]]:
        found: dict[str, list[Statement]] = {}
        for rule in ingress.spec.rules or ():
            own = [rule.host.strip().lower().rstrip(".")] if rule.host else []
            hosts = list(dict.fromkeys([*own, *options.hostname_extension])) or [""]
            for host in hosts:
                there = found.setdefault(host, [])
                for path in (rule.http.paths if rule.http else None) or ():
                    if not self._prohibited.covers(host, path.path):
                        kind = path.path_type or "ImplementationSpecific"
                        there.append(self._statement(ingress, path.path, kind, path.backend, options))
        default = ingress.spec.default_backend
        if default is not None:
            said = self._statement(ingress, "/", "Prefix", default, options)
            if not found:
                secured = [h.lower().rstrip(".") for tls in ingress.spec.tls or () for h in tls.hosts or ()]
                found = {host: [] for host in [*options.hostname_extension, *secured, ""]}
            for host, there in found.items():
                if not self._prohibited.covers(host, "/*"):
                    there.append(msgspec.structs.replace(said, is_default=True))
        return {host: said for host, said in found.items() if said}

    def _statement(
        self, ingress: Ingress, path: str, kind: str, backend: IngressBackend, options: Options
    ) -> Statement:
        assert backend.service is not None
        answer = self._view.answer(ingress.metadata.namespace, backend.service, options)
        return Statement(owner=ingress.key, path=path, path_type=kind, answer=answer)

    def _tls(self, ingress: Ingress, options: Options, host: str) -> Tls | None:
        entries = [
            ({h.lower().rstrip(".") for h in tls.hosts or ()}, tls.secret_name)
            for tls in ingress.spec.tls or ()
        ]
        wanted = [host] if host else []
        if "." in host:
            wanted.append("*." + host.split(".", 1)[1])
        for name in wanted:
            for hosts, secret in entries:
                if name in hosts:
                    return self._certificate(ingress, options, secret)
        for hosts, secret in entries:
            if not hosts:
                return self._certificate(ingress, options, secret)
        return _annotated(options) if options.ssl_certificate or options.key_vault_id else None

    def _certificate(self, ingress: Ingress, options: Options, secret: str) -> Tls:
        if not secret:
            return _annotated(options)
        namespace = ingress.metadata.namespace
        digest = self._digests.get(f"{namespace}/{secret}", "")
        return Tls(namespace=namespace, secret=secret, digest=digest)

    # From last good routes

    def recall(self, route: Route) -> None:
        """An object whose last good routes stand in."""
        for site in route.sites:
            for host in site.hosts:
                self._recall(route, site, host)

    def _recall(self, route: Route, site: Site, host: str) -> None:
        said = [self._recalled(route, rule) for rule in site.rules]
        places: list[tuple[Place, list[Statement]]] = []
        if site.tls is None:
            places.append(((route.frontend, route.http_port, "Http"), said))
        else:
            places.append(((route.frontend, route.https_port, "Https"), said))
            self.certificates.setdefault((route.frontend, route.https_port, host), site.tls)
            if site.http == "redirect":
                answer = _redirect(host, route.https_port)
                moved = [msgspec.structs.replace(one, answer=answer) for one in said]
                places.append(((route.frontend, 80, "Http"), moved))
            elif site.http == "serve":
                places.append(((route.frontend, 80, "Http"), said))
        for place, statements in places:
            if route.priority:
                self.priorities.add(place)
            for statement in statements:
                self.say(place, host, statement)

    def _recalled(self, route: Route, rule: PathRule) -> Statement:
        settings = rule.backend.settings
        host = settings.host or ("{address}" if settings.picks_host else "")
        answer = Answer(
            targets=self._view.pool(rule.backend.pool),
            port=settings.port,
            protocol=settings.protocol,
            host=host,
            path=settings.path,
        )
        return Statement(
            owner=route.owner,
            path=rule.path,
            path_type=rule.match.value,
            answer=answer,
            is_default=rule.is_default,
        )


def _annotated(options: Options) -> Tls:
    if options.ssl_certificate:
        return Tls(name=options.ssl_certificate)
    return Tls(key_vault=options.key_vault_id)


def _redirect(host: str, port: int) -> Answer:
    place = (host or "{host}") + ("" if port == 443 else f":{port}")
    return Answer(location=f"Permanent https://{place}{{path}}")


class _View:
    """Services and what serves behind them, read once more."""

    def __init__(self, observation: Observation) -> None:
        kubernetes = observation.kubernetes
        self.policy = observation.policy
        self.unhealthy = observation.unhealthy
        self.services = {(s.metadata.namespace, s.metadata.name): s for s in kubernetes.services}
        self.pods = {(pod.metadata.namespace, pod.metadata.name): pod for pod in kubernetes.pods}
        self.slices: dict[tuple[str, str], list[EndpointSlice]] = {}
        for one in kubernetes.endpointslices:
            name = (one.metadata.labels or {}).get(SERVICE_LABEL, "")
            self.slices.setdefault((one.metadata.namespace, name), []).append(one)
        self.nodes = {
            node.metadata.name: address.address
            for node in kubernetes.nodes
            if any(c.type == "Ready" and c.status == "True" for c in node.status.conditions or ())
            for address in reversed(node.status.addresses or ())
            if address.type == "InternalIP" and ":" not in address.address
        }
        self._known: dict[tuple[str, IngressServiceBackend], tuple[tuple[str, ...], int]] = {}
        self._answers: dict[tuple[str, IngressServiceBackend, int], Answer] = {}

    def answer(self, namespace: str, backend: IngressServiceBackend, options: Options) -> Answer:
        """The very same value for the same backend and options (which live as long as this does)."""
        key = (namespace, backend, id(options))
        known = self._answers.get(key)
        if known is None:
            targets, port = self._where(namespace, backend)
            protocol = options.backend_protocol or ("Https" if port == 443 else "Http")
            picks = bool(options.trusted_roots) and protocol == "Https"
            known = self._answers[key] = Answer(
                targets=targets,
                port=port,
                protocol=protocol,
                host=options.backend_hostname or ("{address}" if picks else ""),
                path=options.backend_path_prefix,
            )
        return known

    def pool(self, key: str) -> tuple[str, ...]:
        """Targets of a pool as a stored route names it."""
        if not key:
            return ()
        if key == "nodes":
            return tuple(sorted(set(self.nodes.values())))
        name, _, port = key.removeprefix("nodes:").partition(":")
        namespace, _, service = name.partition("/")
        found = self.services.get((namespace, service))
        if key.startswith("nodes:"):
            return self._local_nodes((namespace, service))
        if found is not None and found.spec.type == "ExternalName":
            return (found.spec.external_name.rstrip(".").lower(),)
        return self._serving((namespace, service), int(port or 0))

    def _where(self, namespace: str, backend: IngressServiceBackend) -> tuple[tuple[str, ...], int]:
        key = (namespace, backend.name)
        service = self.services.get(key)
        number = backend.port.number if 0 < backend.port.number < 65536 else 80
        if service is None:
            return (), number
        port = _port(service, backend)
        if service.spec.type == "ExternalName":
            if port is not None:
                target = port.target_port
                number = target if isinstance(target, int) and target else port.port
            name = service.spec.external_name.rstrip(".").lower()
            return ((name,) if name else ()), number
        if self.policy.backend == "nodePorts":
            return self._node_targets(key, service, port)
        if port is None:
            return (), number
        return self._pod_targets(key, port)

    def _node_targets(
        self, key: tuple[str, str], service: Service, port: ServicePort | None
    ) -> tuple[tuple[str, ...], int]:
        if port is None or not port.node_port:
            return (), 80
        is_local = service.spec.external_traffic_policy == "Local"
        return (self._local_nodes(key) if is_local else self.pool("nodes")), port.node_port

    def _local_nodes(self, key: tuple[str, str]) -> tuple[str, ...]:
        names = {
            endpoint.node_name
            for one in self.slices.get(key, ())
            for endpoint in one.endpoints or ()
            if _state(endpoint.conditions) == "ready"
        }
        return tuple(sorted({self.nodes[name] for name in names if name in self.nodes}))

    def _pod_targets(self, key: tuple[str, str], port: ServicePort) -> tuple[tuple[str, ...], int]:
        listening: dict[int, bool] = {}
        named = 0
        for one in self.slices.get(key, ()):
            for there in one.ports or ():
                if (there.name or "") == port.name and (there.protocol or "TCP") == "TCP" and there.port:
                    named = named or there.port
                    if one.endpoints:
                        is_ready = any(_state(e.conditions) == "ready" for e in one.endpoints)
                        listening[there.port] = listening.get(there.port, False) or is_ready
                    break
        if not listening:
            target = port.target_port if isinstance(port.target_port, int) else 0
            return self._serving(key, 0), target or named or port.port
        ready = [number for number, is_ready in listening.items() if is_ready] or list(listening)
        return self._serving(key, min(ready) if len(ready) > 1 else 0), min(ready)

    def _waits(self, one: EndpointSlice, endpoint: Endpoint) -> bool:
        """A pod that only waits for the gateway's own word, where that is asked for."""
        if not self.policy.readiness_gate or endpoint.target_ref is None:
            return False
        pod = self.pods.get((one.metadata.namespace, endpoint.target_ref.name))
        return pod is not None and waits_for_gateway(pod)

    def _serving(self, key: tuple[str, str], port: int) -> tuple[str, ...]:
        ready: set[str] = set()
        leaving: set[str] = set()
        slices = self.slices.get(key, ())
        has_v4 = any(
            one.address_type != "IPv6" and (not port or any(p.port == port for p in one.ports or ()))
            for one in slices
        )
        for one in slices:
            if port and not any(there.port == port for there in one.ports or ()):
                continue
            if has_v4 and one.address_type == "IPv6":
                continue
            for endpoint in one.endpoints or ():
                state = _state(endpoint.conditions)
                first = endpoint.addresses[:1]
                if state == "ready":
                    ready.update(first)
                elif state == "leaving":
                    leaving.update(first)
                elif state == "waiting" and (
                    self.policy.compatibility.not_ready_endpoints or self._waits(one, endpoint)
                ):
                    ready.update(first)
        nobody = not ready or (bool(self.unhealthy) and ready <= self.unhealthy)
        return tuple(sorted(ready | leaving if nobody else ready))


def _state(conditions: object) -> str:
    """ready, leaving (terminating and still serving), waiting, or gone."""
    if conditions is None:
        return "ready"
    ready = getattr(conditions, "ready", None)
    serving = getattr(conditions, "serving", None)
    if getattr(conditions, "terminating", None):
        return "leaving" if (ready if serving is None else serving) else "gone"
    return "waiting" if ready is False else "ready"


def _port(service: Service, backend: IngressServiceBackend) -> ServicePort | None:
    ports = [one for one in service.spec.ports or () if one.protocol in ("TCP", "")]
    name, number = backend.port.name, backend.port.number
    direct = [one for one in ports if (one.name == name if name else one.port == number)]
    if direct:
        return direct[0]
    wanted = name or str(number)
    by_target = [one for one in ports if wanted != "0" and str(one.target_port) == wanted]
    return by_target[0] if by_target else None


def expectations(
    observation: Observation,
    ingresses: Iterable[Ingress],
    stand_ins: Mapping[str, Route],
    left_out: Iterable[str],
) -> Expectations:
    """Of all objects by namespace and name. `stand_ins` are the last good routes that are served instead."""
    found = Expectations(observation)
    absent = frozenset(left_out)
    by_key = {ingress.key: ingress for ingress in ingresses}
    for key in sorted(by_key.keys() | stand_ins.keys()):
        if key in stand_ins:
            found.recall(stand_ins[key])
        elif key not in absent:
            found.hear(by_key[key])
    found.close()
    return found

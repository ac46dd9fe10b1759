"""The front end for Ingress objects: (Observation, Backends) -> routes, and what is wrong with objects.

Everything that is particular to Ingress, its classes and AGIC's annotations is known here and nowhere else;
`compile` sees routes only. An object that is wrong in itself, or refers to what is not there, is refused
alone. Pure; called by `decide`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from shared.ingress_sync.annotations import HOST, NOTHING_SAID, Options, Problem, parse
from shared.ingress_sync.backends import Backends, Resolved
from shared.ingress_sync.compiled import Finding, Quarantined
from shared.ingress_sync.observation import Kubernetes, Observation
from shared.ingress_sync.policy import IngressSyncPolicy
from shared.ingress_sync.prohibited import Prohibited
from shared.ingress_sync.routes import Backend, Match, PathRule, Probe, Route, Settings, Site, Tls
from shared.model.gateway import inside, parts
from shared.model.ingress import (
    HttpIngressRule,
    Ingress,
    IngressBackend,
    IngressClass,
    IngressPath,
    IngressServiceBackend,
    Malformed,
    TlsSecret,
)

CLASS_ANNOTATION = "kubernetes.io/ingress.class"
DEFAULT_CLASS_ANNOTATION = "ingressclass.kubernetes.io/is-default-class"
MAX_PATH = 1024
GOOD_PATH = re.compile(r"/[A-Za-z0-9/._~-]{0,1000}\*?")
"""What most paths look like; the others are looked at closely."""
BAD_PATH = re.compile(r"[?#\s\x00-\x1f\x7f]")


class Refusal(Exception):  # noqa: N818 - not an error: the answer for one object, turned into a value here
    """One object cannot be translated."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Translation(msgspec.Struct, kw_only=True):
    """What the objects ask for, in the order that settles conflicts: by namespace and name."""

    routes: list[Route] = []
    refused: list[Quarantined] = []
    warnings: list[Finding] = []
    deviations: dict[str, set[str]] = {}


def translate(observation: Observation, backends: Backends) -> Translation:
    """Routes of all objects that are ours."""
    found = Translation(routes=[], refused=[], warnings=[], deviations={})
    front = _Front(observation, backends, found)
    for ingress in ours(observation.kubernetes, observation.policy):
        front.add(ingress)
    for bad in observation.kubernetes.malformed.get("ingresses", ()):
        if _may_be_ours(bad, observation.policy):
            found.refused.append(_malformed(bad))
    return found


def ours(kubernetes: Kubernetes, policy: IngressSyncPolicy) -> list[Ingress]:
    """The Ingress objects of our classes and namespaces that are not being deleted, by namespace and name."""
    classes = [one for one in kubernetes.ingressclasses if one.spec.controller == policy.controller]
    names = {one.metadata.name for one in classes}
    has_default = any(_is_default(one) for one in classes)
    found = [
        one
        for one in kubernetes.ingresses
        if one.metadata.deletion_timestamp is None
        and _is_watched(one.metadata.namespace, policy)
        and _has_class(one, policy, names, has_default)
    ]
    return sorted(found, key=lambda one: (one.metadata.namespace, one.metadata.name))


def _is_default(one: IngressClass) -> bool:
    return (one.metadata.annotations or {}).get(DEFAULT_CLASS_ANNOTATION) == "true"


def _is_watched(namespace: str, policy: IngressSyncPolicy) -> bool:
    if namespace in policy.excluded_namespaces:
        return False
    return not policy.namespaces or namespace in policy.namespaces


def _has_class(ingress: Ingress, policy: IngressSyncPolicy, names: set[str], has_default: bool) -> bool:
    legacy = (ingress.metadata.annotations or {}).get(CLASS_ANNOTATION)
    if legacy is not None:
        return legacy == policy.legacy_class
    if ingress.spec.ingress_class_name is not None:
        return ingress.spec.ingress_class_name in names
    return has_default


def _may_be_ours(bad: Malformed, policy: IngressSyncPolicy) -> bool:
    return bool(bad.name) and _is_watched(bad.namespace, policy)


def _malformed(bad: Malformed) -> Quarantined:
    message = f"the object is not an Ingress of networking.k8s.io/v1: {bad.problem}"
    return Quarantined(owner=f"{bad.namespace}/{bad.name}", reason="Malformed", message=message)


class _Front:
    def __init__(self, observation: Observation, backends: Backends, found: Translation) -> None:
        self.policy, self.backends, self.found = observation.policy, backends, found
        self.secrets = {one.key: one for one in observation.kubernetes.secrets}
        rewrites = observation.kubernetes.azureapplicationgatewayrewrites
        self.rewrites = {f"{one.metadata.namespace}/{one.metadata.name}" for one in rewrites}
        self.prohibited = Prohibited(observation.kubernetes.azureingressprohibitedtargets)
        self.known: dict[tuple[int, str], Backend] = {}
        self.parsed: dict[frozenset[tuple[str, str]], tuple[Options, tuple[Problem, ...]]] = {}
        self.hosts: dict[str, str] = {}
        self.has_identity = bool((observation.gateway or {}).get("identity"))
        self.there = _names_on(observation.gateway or {})
        self.frontends = _frontends_on(observation.gateway or {})

    def add(self, ingress: Ingress) -> None:
        options, problems = self.options_of(ingress)
        one = _Translator(self, ingress, options)
        try:
            one.report(problems)
            route = one.translate()
        except Refusal as refusal:
            self.found.refused.append(
                Quarantined(owner=ingress.key, reason=refusal.reason, message=str(refusal))
            )
            return
        self.found.routes.append(route)
        self.found.warnings += one.warnings
        if one.deviations:
            self.found.deviations[ingress.key] = one.deviations

    def options_of(self, ingress: Ingress) -> tuple[Options, tuple[Problem, ...]]:
        """What the annotations say; the very same value for the same annotations."""
        annotations = ingress.metadata.annotations
        if not annotations:
            return NOTHING_SAID, ()
        key = frozenset(annotations.items())
        known = self.parsed.get(key)
        if known is None:
            known = self.parsed[key] = parse(annotations)
        return known

    def host(self, host: str) -> str:
        """A host as it is compared; refuses what is none."""
        known = self.hosts.get(host)
        if known is None:
            known = self.hosts[host] = _checked_host(host)
        return known

    def backend(self, options: Options, resolved: Resolved) -> Backend:
        """The very same value for the same options and service, so that others know it by identity."""
        key = (id(options), resolved.service)
        known = self.known.get(key)
        if known is None:
            settings = _settings(self.policy, options, resolved)
            known = Backend(pool=resolved.pool, settings=settings, service=resolved.service)
            self.known[key] = known
        return known

    def require(self, collection: str, names: Iterable[str], what: str) -> None:
        """Refuses when the gateway has no such part."""
        for name in filter(None, names):
            if name.lower() not in self.there.get(collection, ()):
                raise Refusal(
                    "No" + "".join(word[0].upper() + word[1:] for word in what.split()),
                    f"the gateway has no {what} '{name}'; add it there or correct the annotation",
                )


def _names_on(gateway: dict[str, Any]) -> dict[str, set[str]]:
    wanted = ("sslCertificates", "sslProfiles", "trustedRootCertificates", "rewriteRuleSets")
    return {
        collection: {str(part.get("name")).lower() for part in parts(gateway, collection)}
        for collection in wanted
    }


def _frontends_on(gateway: dict[str, Any]) -> set[str]:
    frontends = parts(gateway, "frontendIPConfigurations")
    return {"public" if inside(one).get("publicIPAddress") else "private" for one in frontends}


class _Translator:
    """One object's translation."""

    def __init__(self, front: _Front, ingress: Ingress, options: Options) -> None:
        self.front, self.ingress, self.options = front, ingress, options
        self.namespace = ingress.metadata.namespace
        self.warnings: list[Finding] = []
        self.deviations: set[str] = set()
        self.tls: list[tuple[tuple[str, ...], Tls]] = []
        self.backends: dict[IngressServiceBackend, Backend] = {}

    def warn(self, reason: str, message: str) -> None:
        finding = Finding(owner=self.ingress.key, reason=reason, message=message)
        if finding not in self.warnings:
            self.warnings.append(finding)

    def report(self, problems: Iterable[Problem]) -> None:
        """Warn of wrong annotations, or refuse the object for the first that must not be ignored."""
        for problem in problems:
            if problem.is_fatal:
                raise Refusal("InvalidAnnotation", problem.message)
            self.warn("InvalidAnnotation", problem.message)

    def translate(self) -> Route:
        options = self.options
        frontend = self._frontend()
        if options is not NOTHING_SAID:
            self._check_references()
        self.tls = self._certificates()
        named = options.ssl_certificate or options.key_vault_id
        if options.ssl_redirect and not self.tls and not named:
            message = "ssl-redirect needs a certificate; add spec.tls or the annotation appgw-ssl-certificate"
            raise Refusal("RedirectWithNoTLS", message)
        sites = self._sites()
        return Route(
            owner=self.ingress.key,
            frontend=frontend,
            http_port=80 if options.ssl_redirect else options.frontend_port or 80,
            https_port=options.frontend_port or 443,
            sites=sites,
            ssl_profile=options.ssl_profile,
            waf_policy=options.waf_policy if options.waf_policy and _is_whole(sites) else "",
            priority=options.rule_priority,
            error_pages=_error_pages(options),
        )

    def _frontend(self) -> str:
        said = self.options.use_private_ip
        is_private = self.front.policy.use_private_ip if said is None else said
        kind = "private" if is_private else "public"
        if kind not in self.front.frontends:
            reason = "NoPrivateIP" if is_private else "NoPublicIP"
            change = "'false'" if is_private else "'true'"
            message = f"the gateway has no {kind} frontend; add one, or set use-private-ip to {change}"
            raise Refusal(reason, message)
        return kind

    def _check_references(self) -> None:
        options, front = self.options, self.front
        front.require("sslProfiles", [options.ssl_profile], "SSL profile")
        front.require("trustedRootCertificates", options.trusted_roots, "trusted root certificate")
        front.require("rewriteRuleSets", [options.rewrite_set], "rewrite set")
        if options.rewrite_set and options.rewrite_resource:
            message = "rewrite-rule-set and rewrite-rule-set-custom-resource exclude each other; remove one"
            raise Refusal("TwoRewrites", message)
        if options.rewrite_resource and f"{self.namespace}/{options.rewrite_resource}" not in front.rewrites:
            name = f"{self.namespace}/{options.rewrite_resource}"
            raise Refusal("NoRewrite", f"there is no AzureApplicationGatewayRewrite {name}; create it")

    # TLS

    def _certificates(self) -> list[tuple[tuple[str, ...], Tls]]:
        found = []
        for entry in self.ingress.spec.tls or ():
            hosts = tuple(_checked_host(host) for host in entry.hosts or ())
            if entry.secret_name:
                found.append((hosts, self._certificate(entry.secret_name)))
            elif annotated := self._annotated():
                found.append((hosts, annotated))
            else:
                message = "an entry of spec.tls names no Secret; set its secretName"
                raise Refusal("SecretNotNamed", message)
        return found

    def _certificate(self, name: str) -> Tls:
        secret: TlsSecret | None = self.front.secrets.get(f"{self.namespace}/{name}")
        if secret is None:
            message = f"there is no Secret {self.namespace}/{name} of type kubernetes.io/tls; create it"
            raise Refusal("SecretNotFound", message)
        facts = secret.kubekeeper
        if facts.problem or not facts.digest:
            message = f"Secret {secret.key} cannot be used: {facts.problem or 'nothing is known of it'}"
            raise Refusal("InvalidSecret", message)
        return Tls(namespace=self.namespace, secret=name, digest=facts.digest)

    def _tls_for(self, host: str) -> Tls | None:
        """The certificate of an entry with that very host, with a wildcard for it, or without hosts."""
        if not self.tls:
            return self._annotated()
        wildcard = "*." + host.partition(".")[2]
        for wanted in (host, wildcard):
            for hosts, tls in self.tls:
                if wanted and wanted in hosts:
                    return tls
        for hosts, tls in self.tls:
            if not hosts:
                return tls
        return self._annotated()

    def _annotated(self) -> Tls | None:
        """The certificate that an annotation names; None without one."""
        options = self.options
        if options.ssl_certificate:
            self.front.require("sslCertificates", [options.ssl_certificate], "certificate")
            return Tls(name=options.ssl_certificate)
        if options.key_vault_id and not self.front.has_identity:
            message = "the gateway has no managed identity to read a Key Vault by; assign one"
            raise Refusal("NoIdentity", message)
        return Tls(key_vault=options.key_vault_id) if options.key_vault_id else None

    # Rules

    def _sites(self) -> tuple[Site, ...]:
        by_host: dict[str, list[PathRule]] = {}
        for rule in self.ingress.spec.rules or ():
            hosts = self._hosts(rule.host)
            said = [(path.path, self._path_rule(path)) for path in self._paths(rule.http)]
            for host in hosts:
                there = by_host.setdefault(host, [])
                covers = self.front.prohibited.covers
                there += [made for path, made in said if not covers(host, path)]
        self._add_default(by_host)
        return self._grouped({host: rules for host, rules in by_host.items() if rules})

    def _hosts(self, host: str) -> tuple[str, ...]:
        named = (self.front.host(host),) if host else ()
        extension = self.options.hostname_extension
        return (tuple(dict.fromkeys((*named, *extension))) if extension else named) or ("",)

    def _paths(self, http: HttpIngressRule | None) -> Iterable[IngressPath]:
        return (http.paths if http else None) or ()

    def _path_rule(self, path: IngressPath) -> PathRule:
        match = _match(path)
        return self._rule(_checked_path(path.path, match), match, path.backend)

    def _add_default(self, by_host: dict[str, list[PathRule]]) -> None:
        """The default backend: of every host here, or of all hosts when there are no rules."""
        default = self.ingress.spec.default_backend
        if default is None:
            return
        rule = msgspec.structs.replace(self._rule("/", Match.PREFIX, default), is_default=True)
        if not by_host:
            tls_hosts = [host for hosts, _ in self.tls for host in hosts]
            by_host.update((host, []) for host in (*self.options.hostname_extension, *tls_hosts, ""))
        for host, rules in by_host.items():
            if not self.front.prohibited.covers(host, "/*"):
                rules.append(rule)

    def _rule(self, path: str, match: Match, backend: IngressBackend) -> PathRule:
        if backend.service is None:
            raise Refusal("UnsupportedBackend", f"the backend of path '{path}' is no Service; name a Service")
        made = self.backends.get(backend.service)
        if made is None:
            made = self.backends[backend.service] = self._backend(backend.service)
        options, resource = self.options, self.options.rewrite_resource
        return PathRule(
            path=path,
            match=match,
            backend=made,
            waf_policy=options.waf_policy,
            rewrite=options.rewrite_set,
            rewrite_resource=f"{self.namespace}/{resource}" if resource else "",
        )

    def _backend(self, service: IngressServiceBackend) -> Backend:
        resolved = self.front.backends.resolve(self.namespace, service)
        for reason, message in resolved.notes:
            self.warn(reason, message)
        if resolved.is_mixed:
            self.deviations.add("MixedTargetPorts")
        return self.front.backend(self.options, resolved)

    def _grouped(self, by_host: dict[str, list[PathRule]]) -> tuple[Site, ...]:
        """Hosts with the same rules and certificate together."""
        groups: dict[tuple[tuple[int, ...], Tls | None, str], list[str]] = {}
        for host, rules in by_host.items():
            tls = self._tls_for(host)
            http = "serve" if tls is None else self._http(host)
            # Hosts of one rule hold the very same values, and by identity they are told apart quickly.
            groups.setdefault((tuple(map(id, rules)), tls, http), []).append(host)
        return tuple(
            Site(hosts=tuple(sorted(hosts)), rules=tuple(by_host[hosts[0]]), tls=tls, http=http)
            for (_, tls, http), hosts in groups.items()
        )

    def _http(self, host: str) -> str:
        if not self.options.ssl_redirect:
            # Client certificates that are asked for must not be gone around by http.
            if self.front.policy.http_beside_https and not self.options.ssl_profile:
                return "serve"
            self.deviations.add("HttpsOnly")
            return "none"
        if "*" in host or "?" in host:
            text = f"http requests to '{host}' are not redirected: the platform cannot for a wildcard host"
            self.warn("WildcardRedirect", text)
            self.deviations.add("WildcardRedirect")
            return "none"
        return "redirect"


def _is_whole(sites: tuple[Site, ...]) -> bool:
    """Whether a path takes everything of its host, so that a policy of paths is one of the listener."""
    return any(rule.path in ("", "/", "/*") for site in sites for rule in site.rules)


def _error_pages(options: Options) -> tuple[tuple[str, str], ...]:
    pages = (("403", options.error_page_403), ("502", options.error_page_502))
    return tuple([(code, url) for code, url in pages if url])


def _checked_host(host: str) -> str:
    found = host.strip().lower().rstrip(".")
    rest = found.removeprefix("*.")
    if not found or len(found) > 253 or "*" in rest or "?" in rest or not HOST.fullmatch(rest):
        raise Refusal(
            "InvalidHost", f"the host '{host}' is not a host name; at most its first label may be *"
        )
    return found


_MATCHES = {match.value: match for match in Match}


def _match(path: IngressPath) -> Match:
    if not path.path_type:
        return Match.WRITTEN
    found = _MATCHES.get(path.path_type)
    if found is None:
        known = "Exact, Prefix or ImplementationSpecific"
        raise Refusal("InvalidPathType", f"the pathType '{path.path_type}' is not {known}")
    return found


def _checked_path(path: str, match: Match) -> str:
    if GOOD_PATH.fullmatch(path) or (not path and match is Match.WRITTEN):
        return path
    problem = ""
    if not path.startswith("/"):
        problem = "must start with '/'"
    elif "*" in path[:-1]:
        problem = "may have '*' only at its end"
    elif BAD_PATH.search(path):
        problem = "may have no '?', '#', blank or control character"
    elif len(path) > MAX_PATH:
        problem = f"is longer than {MAX_PATH} characters"
    if problem:
        raise Refusal("InvalidPath", f"the path '{path[:80]}' {problem}; change it")
    return path


def _settings(policy: IngressSyncPolicy, options: Options, resolved: Resolved) -> Settings:
    protocol = options.backend_protocol or ("Https" if resolved.port == 443 else "Http")
    affinity = ""
    if options.affinity:
        affinity = _cookie(resolved.service) if options.affinity_distinct_name else "-"
    picks_host = protocol == "Https" and bool(options.trusted_roots) and not options.backend_hostname
    return Settings(
        port=resolved.port,
        protocol=protocol,
        host=options.backend_hostname,
        picks_host=picks_host,
        path=options.backend_path_prefix,
        affinity=affinity,
        timeout=options.request_timeout,
        draining=_draining(policy, options),
        trusted_roots=options.trusted_roots if protocol == "Https" else (),
        probe=_probe(options, resolved, protocol, picks_host),
    )


def _draining(policy: IngressSyncPolicy, options: Options) -> int:
    if options.connection_draining is None:
        return policy.drain_timeout
    return options.connection_draining_timeout if options.connection_draining else 0


def _cookie(service: str) -> str:
    name = service.partition(":")[0].replace("/", "-", 1)
    return "appgw-affinity-" + hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()


def _probe(options: Options, resolved: Resolved, protocol: str, picks_host: bool) -> Probe:
    """Annotations before the pods' own probe before the default."""
    pods = resolved.probe or Probe(protocol=protocol)
    host = options.probe_hostname or pods.host or options.backend_hostname
    port = options.probe_port or pods.port
    return Probe(
        protocol=options.backend_protocol or pods.protocol,
        host=host,
        picks_host=picks_host and not host,
        path=options.probe_path or pods.path or options.backend_path_prefix,
        port=0 if port == resolved.port else port,
        interval=options.probe_interval or pods.interval,
        timeout=options.probe_timeout or pods.timeout,
        threshold=options.probe_threshold or pods.threshold,
        codes=options.probe_codes,
    )

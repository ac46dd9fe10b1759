"""The parts of a gateway as JSON, from bundles of hosts: each once, whoever needs it, and for whom it is.

Settings and probes have names made of their contents, pools of the service, listeners of their first host,
certificates of what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from shared.ingress_sync.backends import EMPTY, Backends
from shared.ingress_sync.compile.foreign import Foreign
from shared.ingress_sync.compile.listeners import Bundle
from shared.ingress_sync.compile.names import Names, digest
from shared.ingress_sync.compile.paths import RuleLine, Target
from shared.ingress_sync.compiled import Upload
from shared.ingress_sync.routes import Backend, Probe, Settings, Tls
from shared.model.gateway import Part, part_key
from shared.model.ingress import HeaderAction, Rewrite, RewriteRule

MAX_TARGETS = 1_200


class Parts:
    """Collects parts; `found` maps a collection to its parts by name, `owners` a part's key to objects."""

    def __init__(self, gateway_id: str, names: Names, foreign: Foreign, backends: Backends) -> None:
        self.gateway_id, self.names, self.foreign, self.backends = gateway_id, names, foreign, backends
        self.found: dict[str, dict[str, Part]] = {}
        self.owners: dict[str, set[str]] = {}
        self.rule_owners: dict[str, tuple[str, ...]] = {}
        """The same for path rules, whose names are unique in the whole document."""
        self.uploads: dict[str, Upload] = {}
        self.crowded: dict[str, int] = {}
        """Pools with more targets than there may be, and how many they have."""
        self._ids: dict[tuple[str, str], dict[str, str]] = {}
        self._keys: dict[str, str] = {}

    def put(self, collection: str, name: str, properties: dict[str, Any]) -> dict[str, str]:
        """Add a part, unless it is there; returns the reference to it."""
        reference = self._ids.get((collection, name))
        if reference is None:
            where = f"{self.gateway_id}/{collection}/{name}"
            self.found.setdefault(collection, {})[name] = {
                "name": name,
                "id": where,
                "properties": properties,
            }
            reference = self._ids[collection, name] = {"id": where}
            key = self._keys[where] = part_key(collection, name)
            self.owners[key] = set()
        return reference

    def is_there(self, collection: str, name: str) -> dict[str, str] | None:
        """The reference to a part that was added already."""
        return self._ids.get((collection, name))

    def blame(self, reference: dict[str, str], owners: Iterable[str]) -> None:
        """A part is there for these objects."""
        key = self._keys.get(reference["id"])
        if key is not None:
            self.owners[key].update(owners)


class Assembler:
    """Makes the parts of every bundle."""

    def __init__(
        self,
        parts: Parts,
        targets: list[Target],
        probed: dict[Backend, tuple[str, str]],
        rewrites: dict[str, Rewrite],
    ) -> None:
        self.parts, self.targets, self.probed, self.rewrites = parts, targets, probed, rewrites
        self.names = parts.names
        self._listeners: dict[tuple[str, int, str], dict[str, str]] = {}
        self._known: dict[int, dict[str, Any]] = {}

    def assemble(self, bundles: list[Bundle]) -> None:
        """Everything; https listeners first, since redirects refer to them."""
        for one in sorted(bundles, key=lambda one: (one.protocol != "Https", one.name)):
            self._bundle(one)

    def _bundle(self, one: Bundle) -> None:
        listener = self._listener(one)
        self.parts.blame(listener, one.owners)
        if not one.hosts:
            self._listeners[one.frontend, one.port, one.protocol] = listener
        suffix = one.name.removeprefix(self.names.prefix + "lis_")
        properties: dict[str, Any] = {"ruleType": "Basic", "priority": one.priority, "httpListener": listener}
        default = self._default(one)
        if one.table.rules:
            properties["ruleType"] = "PathBasedRouting"
            properties["urlPathMap"] = self._map(one, f"{self.names.prefix}map_{suffix}", default)
        else:
            properties |= default
        rule = self.parts.put("requestRoutingRules", f"{self.names.prefix}rule_{suffix}", properties)
        self.parts.blame(rule, one.owners)

    def _listener(self, one: Bundle) -> dict[str, str]:
        first = one.cell.first
        properties: dict[str, Any] = {
            "frontendIPConfiguration": {"id": self.parts.foreign.frontends[one.frontend]},
            "frontendPort": self._port(one),
            "protocol": one.protocol,
        }
        if len(one.hosts) == 1 and "*" not in one.hosts[0] and "?" not in one.hosts[0]:
            properties["hostName"] = one.hosts[0]
        elif one.hosts:
            properties["hostNames"] = list(one.hosts)
        if one.protocol == "Https":
            properties["requireServerNameIndication"] = bool(one.hosts)
            assert one.cell.tls is not None
            properties["sslCertificate"] = self._certificate(one.cell.tls, one.owners)
            if first.ssl_profile:
                properties["sslProfile"] = {"id": self.parts.foreign.find("sslProfiles", first.ssl_profile)}
        if first.waf_policy:
            properties["firewallPolicy"] = {"id": first.waf_policy}
        if first.error_pages:
            properties["customErrorConfigurations"] = [
                {"statusCode": f"HttpStatus{code}", "customErrorPageUrl": url}
                for code, url in first.error_pages
            ]
        return self.parts.put("httpListeners", one.name, properties)

    def _port(self, one: Bundle) -> dict[str, str]:
        theirs = self.parts.foreign.ports.get(one.port)
        if theirs:
            return {"id": theirs}
        reference = self.parts.put("frontendPorts", self.names.port(one.port), {"port": one.port})
        self.parts.blame(reference, one.owners)
        return reference

    def _certificate(self, tls: Tls, owners: tuple[str, ...]) -> dict[str, str]:
        if tls.name:
            return {"id": self.parts.foreign.find("sslCertificates", tls.name)}
        name = self.names.certificate(tls.key_vault or tls.digest)
        if tls.key_vault:
            reference = self.parts.put("sslCertificates", name, {"keyVaultSecretId": tls.key_vault})
            self.parts.blame(reference, owners)
            return reference
        reference = self.parts.put("sslCertificates", name, {})
        self.parts.uploads[name] = Upload(
            name=name, namespace=tls.namespace, secret=tls.secret, digest=tls.digest
        )
        self.parts.blame(reference, owners)
        return reference

    # Rules

    def _default(self, one: Bundle) -> dict[str, Any]:
        if one.table.default is None:
            return self._nothing()
        found = self._target(one.table.default.target, one)
        for reference in found.values():
            self.parts.blame(reference, (one.table.default.owner,))
        return found

    def _nothing(self) -> dict[str, Any]:
        """Where requests go that match no rule: the platform answers 502."""
        pool = self.parts.put(
            "backendAddressPools", f"{self.names.prefix}pool_none", {"backendAddresses": []}
        )
        settings = {
            "port": 80,
            "protocol": "Http",
            "cookieBasedAffinity": "Disabled",
            "requestTimeout": 30,
        }
        name = f"{self.names.prefix}set_none"
        reference = self.parts.put("backendHttpSettingsCollection", name, settings)
        return {"backendAddressPool": pool, "backendHttpSettings": reference}

    def _map(self, one: Bundle, name: str, default: dict[str, Any]) -> dict[str, str]:
        where = f"{self.parts.gateway_id}/urlPathMaps/{name}"
        properties: dict[str, Any] = {
            f"default{field[0].upper()}{field[1:]}": value for field, value in default.items()
        }
        properties["pathRules"] = [self._path_rule(one, where, line) for line in one.table.rules]
        self._blame_targets(one)
        reference = self.parts.put("urlPathMaps", name, properties)
        self.parts.blame(reference, one.owners)
        return reference

    def _path_rule(self, one: Bundle, where: str, line: RuleLine) -> Part:
        name = f"{self.names.prefix}pr_{digest(where + line.patterns[0], 12)}"
        properties: dict[str, Any] = {"paths": list(line.patterns)}
        properties |= self._target(line.target, one)
        policy = self.targets[line.target].waf_policy
        if policy:
            properties["firewallPolicy"] = {"id": policy}
        self.parts.rule_owners[name] = line.owners
        return {"name": name, "id": f"{where}/pathRules/{name}", "properties": properties}

    def _blame_targets(self, one: Bundle) -> None:
        owners: dict[int, set[str]] = {}
        for line in one.table.rules:
            owners.setdefault(line.target, set()).update(line.owners)
        for number, found in owners.items():
            for reference in self._target(number, one).values():
                self.parts.blame(reference, found)

    def _target(self, number: int, one: Bundle) -> dict[str, Any]:
        target = self.targets[number]
        if target.backend is None:
            found = {"redirectConfiguration": self._redirect(target, one)}
        else:
            known = self._known.get(number)
            if known is None:
                known = self._known[number] = self._backend(target, target.backend)
            found = known
        return found

    def _redirect(self, target: Target, one: Bundle) -> dict[str, str]:
        properties: dict[str, Any] = {
            "redirectType": "Permanent",
            "includePath": True,
            "includeQueryString": True,
        }
        if target.redirect == "listener":
            place = f"{one.frontend}/{target.redirect_port}"
            properties["targetListener"] = self._listeners[one.frontend, target.redirect_port, "Https"]
        else:
            place = target.redirect
            properties["targetUrl"] = target.redirect
        name = self.names.of("redir", place.removeprefix("https://"), place)
        return self.parts.put("redirectConfigurations", name, properties)

    def _backend(self, target: Target, backend: Backend) -> dict[str, Any]:
        found = {
            "backendAddressPool": self._pool(backend),
            "backendHttpSettings": self._settings(backend),
        }
        if target.rewrite:
            found["rewriteRuleSet"] = {"id": self.parts.foreign.find("rewriteRuleSets", target.rewrite)}
        elif target.rewrite_resource:
            found["rewriteRuleSet"] = self._rewrite(target.rewrite_resource)
        return found

    def _pool(self, backend: Backend) -> dict[str, str]:
        if backend.pool == EMPTY:
            return self.parts.put(
                "backendAddressPools", f"{self.names.prefix}pool_none", {"backendAddresses": []}
            )
        name = self.names.of("pool", backend.pool, backend.pool)
        known = self.parts.is_there("backendAddressPools", name)
        if known is not None:
            return known
        addresses = self.parts.backends.addresses(backend.pool)
        if len(addresses) > MAX_TARGETS:
            self.parts.crowded[name] = len(addresses)
        return self.parts.put(
            "backendAddressPools",
            name,
            {
                "backendAddresses": [
                    {"ipAddress": one} if one.replace(".", "").isdigit() else _address(one)
                    for one in addresses[:MAX_TARGETS]
                ]
            },
        )

    def _settings(self, backend: Backend) -> dict[str, str]:
        wanted = backend.settings
        probe = self._probe(self._settled(backend))
        content = msgspec.json.encode((msgspec.structs.replace(wanted, probe=Probe()), probe["id"])).decode()
        name = self.names.of("set", str(wanted.port), content)
        known = self.parts.is_there("backendHttpSettingsCollection", name)
        if known is not None:
            return known
        properties = _settings_properties(wanted) | {"probe": probe}
        roots = [self.parts.foreign.find("trustedRootCertificates", root) for root in wanted.trusted_roots]
        if roots:
            properties["trustedRootCertificates"] = [{"id": root} for root in roots]
        return self.parts.put("backendHttpSettingsCollection", name, properties)

    def _settled(self, backend: Backend) -> Probe:
        """The backend's probe with host and path, where they are left to be found here."""
        probe = backend.settings.probe
        host, path = self.probed.get(backend, ("~", "/"))
        host = "localhost" if host == "~" else host
        return msgspec.structs.replace(
            probe,
            host="" if probe.picks_host else probe.host or host,
            path=probe.path or path,
        )

    def _probe(self, probe: Probe) -> dict[str, str]:
        name = self.names.of("probe", probe.host or "settings", msgspec.json.encode(probe).decode())
        known = self.parts.is_there("probes", name)
        if known is not None:
            return known
        properties: dict[str, Any] = {
            "protocol": probe.protocol,
            "path": probe.path,
            "interval": probe.interval,
            "timeout": probe.timeout,
            "unhealthyThreshold": probe.threshold,
            "pickHostNameFromBackendHttpSettings": probe.picks_host,
        }
        if probe.host:
            properties["host"] = probe.host
        if probe.port:
            properties["port"] = probe.port
        if probe.codes:
            properties["match"] = {"statusCodes": list(probe.codes)}
        return self.parts.put("probes", name, properties)

    def _rewrite(self, key: str) -> dict[str, str]:
        name = self.names.of("rw", key, key)
        known = self.parts.is_there("rewriteRuleSets", name)
        if known is not None:
            return known
        rules = self.rewrites[key].spec.rewrite_rules or ()
        return self.parts.put(
            "rewriteRuleSets", name, {"rewriteRules": [_rewrite_rule(one) for one in rules]}
        )


def _address(one: str) -> dict[str, str]:
    return {"ipAddress": one} if ":" in one else {"fqdn": one}


def _settings_properties(wanted: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {
        "port": wanted.port,
        "protocol": wanted.protocol,
        "cookieBasedAffinity": "Enabled" if wanted.affinity else "Disabled",
        "requestTimeout": wanted.timeout,
        "pickHostNameFromBackendAddress": wanted.picks_host,
    }
    if wanted.affinity not in ("", "-"):
        found["affinityCookieName"] = wanted.affinity
    if wanted.draining:
        found["connectionDraining"] = {"enabled": True, "drainTimeoutInSec": wanted.draining}
    if wanted.host:
        found["hostName"] = wanted.host
    if wanted.path:
        found["path"] = wanted.path
    return found


def _rewrite_rule(rule: RewriteRule) -> dict[str, Any]:
    actions = rule.actions
    made: dict[str, Any] = {
        "requestHeaderConfigurations": [_header(one) for one in actions.request_header_configurations or ()],
        "responseHeaderConfigurations": [
            _header(one) for one in actions.response_header_configurations or ()
        ],
    }
    url = actions.url_configuration
    if url is not None:
        said = {"modifiedPath": url.modified_path, "modifiedQueryString": url.modified_query_string}
        made["urlConfiguration"] = {n: v for n, v in said.items() if v} | {"reroute": url.reroute}
    return {
        "name": rule.name,
        "ruleSequence": rule.rule_sequence,
        "conditions": [
            {
                "variable": one.variable,
                "pattern": one.pattern,
                "ignoreCase": one.ignore_case,
                "negate": one.negate,
            }
            for one in rule.conditions or ()
        ],
        "actionSet": made,
    }


def _header(action: HeaderAction) -> dict[str, str]:
    """A header without a value is deleted."""
    value = "" if action.action_type.lower() == "delete" else action.header_value
    return {"headerName": action.header_name, "headerValue": value}

"""What Application Gateway refuses in a document: names, references, limits, and the rules of each part.

One wrong part refuses the whole document; the answer's message names the part by its resource id. Limits are
those of the public limits page (v2). Codes that start with `ApplicationGateway` follow the service's manner;
which of them were seen in the field and which are assumed stands in docs/reference/local-azure.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

from sandbox.arm.core import ArmError
from sandbox.arm.state import Document

COLLECTIONS = (
    "gatewayIPConfigurations",
    "authenticationCertificates",
    "trustedRootCertificates",
    "trustedClientCertificates",
    "sslCertificates",
    "frontendIPConfigurations",
    "frontendPorts",
    "probes",
    "backendAddressPools",
    "backendHttpSettingsCollection",
    "backendSettingsCollection",
    "httpListeners",
    "listeners",
    "sslProfiles",
    "urlPathMaps",
    "requestRoutingRules",
    "routingRules",
    "rewriteRuleSets",
    "redirectConfigurations",
    "privateLinkConfigurations",
    "loadDistributionPolicies",
)
LIMITS = {
    "frontendPorts": 100,
    "frontendIPConfigurations": 4,
    "backendAddressPools": 100,
    "httpListeners": 200,
    "requestRoutingRules": 400,
    "backendHttpSettingsCollection": 100,
    "sslCertificates": 100,
    "trustedRootCertificates": 100,
    "redirectConfigurations": 100,
    "rewriteRuleSets": 400,
}
OLD_WAF_LIMIT = 40
OLD_WAF_LIMITED = frozenset(
    {"frontendPorts", "httpListeners", "requestRoutingRules", "backendHttpSettingsCollection"}
    | {"sslCertificates", "redirectConfigurations"}
)
MAX_ACTIVE_LISTENERS = 100
MAX_TARGETS = 1200
MAX_HOSTS = 5
MAX_PATH_RULES = 100
PRIORITIES = (1, 20_000)
STATUS_CODES = re.compile(r"\d{3}(-\d{3})?")


def parts(document: Document, collection: str) -> list[Document]:
    found: list[Document] = document["properties"].get(collection) or []
    return found


def check(document: Document) -> None:
    """ArmError for the first thing that is wrong. The ids of all parts are set already."""
    for rule in (_limits, _ports, _listeners, _certificates, _settings, _probes, _routing, _maps, _redirects):
        rule(document)


def references(value: Any) -> Iterator[str]:
    """Every `{"id": ...}` that stands for something else, anywhere below."""
    if isinstance(value, dict):
        for below in value.values():
            if isinstance(below, dict) and set(below) == {"id"} and below["id"]:
                yield below["id"]
            else:
                yield from references(below)
    elif isinstance(value, list):
        for below in value:
            if isinstance(below, dict) and set(below) == {"id"} and below["id"]:
                yield below["id"]
            else:
                yield from references(below)


def refuse(code: str, part: Document | str, message: str) -> NoReturn:
    where = part if isinstance(part, str) else part["id"]
    raise ArmError(400, f"ApplicationGateway{code}", f"{message} Resource: {where}", target=where)


def _of(part: Document, name: str) -> Any:
    return (part.get("properties") or {}).get(name)


def _ref(part: Document, name: str) -> str:
    return str((_of(part, name) or {}).get("id", "")).lower()


def _by_id(document: Document, collection: str) -> dict[str, Document]:
    return {part["id"].lower(): part for part in parts(document, collection)}


def _in(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and low <= value <= high


# --- the rules ---


def _limits(document: Document) -> None:
    firewall = document["properties"].get("webApplicationFirewallConfiguration") or {}
    version = str(firewall.get("ruleSetVersion", "99"))
    old = bool(firewall) and tuple(int(digit) for digit in version.split(".")) <= (3, 1)
    for collection, limit in LIMITS.items():
        most = min(limit, OLD_WAF_LIMIT) if old and collection in OLD_WAF_LIMITED else limit
        if len(parts(document, collection)) > most:
            name = collection[0].upper() + collection[1:]
            refuse(f"{name}LimitReached", document["id"], f"At most {most} {collection} are allowed.")
    redirecting = {
        _ref(rule, "httpListener")
        for rule in parts(document, "requestRoutingRules")
        if _of(rule, "redirectConfiguration")
    }
    active = [part for part in parts(document, "httpListeners") if part["id"].lower() not in redirecting]
    if len(active) > MAX_ACTIVE_LISTENERS:
        refuse("ActiveListenersLimitReached", active[-1], f"At most {MAX_ACTIVE_LISTENERS} are active.")
    for pool in parts(document, "backendAddressPools"):
        if len(_of(pool, "backendAddresses") or []) > MAX_TARGETS:
            refuse("BackendAddressLimitReached", pool, f"At most {MAX_TARGETS} addresses are allowed.")


def _ports(document: Document) -> None:
    seen: dict[int, Document] = {}
    for port in parts(document, "frontendPorts"):
        number = _of(port, "port")
        if not _in(number, 1, 64_999):
            refuse("FrontendPortInvalidPortNumber", port, f"The port {number} is not within 1 to 64999.")
        if number in seen:
            refuse("FrontendPortsUsingSamePortNumber", port, f"The port {number} is used twice.")
        seen[number] = port


def _hosts(listener: Document) -> list[str]:
    one, many = _of(listener, "hostName"), _of(listener, "hostNames") or []
    if one and many:
        refuse("HttpListenerHostNameAndHostNamesBothSpecified", listener, "Give hostName or hostNames.")
    return [one] if one else list(many)


def _listeners(document: Document) -> None:
    seen: dict[tuple[str, str, str], Document] = {}
    for listener in parts(document, "httpListeners"):
        hosts = _hosts(listener)
        if len(hosts) > MAX_HOSTS:
            refuse(
                "HttpListenerHostNamesLimitReached", listener, f"At most {MAX_HOSTS} host names are allowed."
            )
        for name in ("frontendIPConfiguration", "frontendPort"):
            if not _ref(listener, name):
                refuse("HttpListenerMissingReference", listener, f"A listener needs a {name}.")
        secure = _of(listener, "protocol") == "Https"
        if secure and not _of(listener, "sslCertificate"):
            refuse("HttpsListenerMustReferenceSslCert", listener, "An https listener needs a certificate.")
        if not secure and _of(listener, "sslCertificate"):
            refuse("HttpListenerMustNotReferenceSslCert", listener, "An http listener has no certificate.")
        for host in hosts or [""]:
            key = (_ref(listener, "frontendIPConfiguration"), _ref(listener, "frontendPort"), host.lower())
            if key in seen:
                refuse(
                    "HttpListenersUsingSameFrontendPortAndHostName",
                    listener,
                    f"It uses the same frontend IP, port and host name '{host}' as {seen[key]['id']}.",
                )
            seen[key] = listener
    _one_protocol_per_port(document)


def _one_protocol_per_port(document: Document) -> None:
    protocols: dict[tuple[str, str], str] = {}
    for listener in parts(document, "httpListeners"):
        key = (_ref(listener, "frontendIPConfiguration"), _ref(listener, "frontendPort"))
        if protocols.setdefault(key, _of(listener, "protocol")) != _of(listener, "protocol"):
            refuse("HttpListenersUsingSamePortWithDifferentProtocol", listener, "Http and Https on one port.")


def _certificates(document: Document) -> None:
    for certificate in parts(document, "sslCertificates"):
        if not any(_of(certificate, name) for name in ("data", "keyVaultSecretId", "publicCertData")):
            message = "A new certificate needs data or keyVaultSecretId."
            refuse("SslCertificateDataMustBeSpecified", certificate, message)


def _settings(document: Document) -> None:
    for settings in parts(document, "backendHttpSettingsCollection"):
        if not _in(_of(settings, "port"), 1, 65_535):
            refuse("BackendHttpSettingsInvalidPort", settings, "port must be 1 to 65535.")
        if not _in(_of(settings, "requestTimeout") or 30, 1, 86_400):
            refuse("BackendHttpSettingsInvalidRequestTimeout", settings, "requestTimeout must be 1 to 86400.")
        draining = _of(settings, "connectionDraining") or {}
        if draining.get("enabled") and not _in(draining.get("drainTimeoutInSec"), 1, 3600):
            refuse("ConnectionDrainingInvalidTimeout", settings, "drainTimeoutInSec must be 1 to 3600.")
        if _of(settings, "hostName") and _of(settings, "pickHostNameFromBackendAddress"):
            message = "hostName and pickHostNameFromBackendAddress exclude each other."
            refuse("BackendHttpSettingsHostNameFieldConflict", settings, message)


def _probes(document: Document) -> None:
    for probe in parts(document, "probes"):
        for name, high in (("interval", 86_400), ("timeout", 86_400), ("unhealthyThreshold", 20)):
            if not _in(_of(probe, name), 1, high):
                refuse(f"ProbeInvalid{name[0].upper()}{name[1:]}", probe, f"{name} must be 1 to {high}.")
        picks = _of(probe, "pickHostNameFromBackendHttpSettings")
        if bool(_of(probe, "host")) == bool(picks):
            refuse("ProbeHostIsNull", probe, "Give host or pickHostNameFromBackendHttpSettings.")
        if not str(_of(probe, "path") or "").startswith("/"):
            refuse("ProbePathIsInvalid", probe, "path must start with '/'.")
        for codes in (_of(probe, "match") or {}).get("statusCodes") or []:
            if not STATUS_CODES.fullmatch(str(codes)):
                refuse("ProbeInvalidStatusCodes", probe, f"'{codes}' is not a status code or range.")
    _probes_without_host(document)


def _probes_without_host(document: Document) -> None:
    probes = _by_id(document, "probes")
    for settings in parts(document, "backendHttpSettingsCollection"):
        probe = probes.get(_ref(settings, "probe"))
        named = _of(settings, "hostName") or _of(settings, "pickHostNameFromBackendAddress")
        if probe and _of(probe, "pickHostNameFromBackendHttpSettings") and not named:
            message = f"The probe {probe['id']} takes its host from settings that have none."
            refuse("BackendHttpSettingsHostNameMissingForProbe", settings, message)


def _routing(document: Document) -> None:
    priorities: dict[int, Document] = {}
    listeners: dict[str, Document] = {}
    for rule in parts(document, "requestRoutingRules"):
        priority, listener = _of(rule, "priority"), _ref(rule, "httpListener")
        if priority is None:
            refuse("RequestRoutingRulePriorityCannotBeEmpty", rule, "Every rule needs a priority.")
        if not _in(priority, *PRIORITIES):
            refuse("RequestRoutingRuleInvalidPriority", rule, "priority must be 1 to 20000.")
        if priority in priorities:
            message = f"The priority {priority} is that of {priorities[priority]['id']} too."
            refuse("RequestRoutingRulesUsingSamePriority", rule, message)
        priorities[priority] = rule
        if not listener:
            refuse("RequestRoutingRuleMissingListener", rule, "Every rule needs a listener.")
        if listener in listeners:
            message = f"The listener {listener} is used by {listeners[listener]['id']} too."
            refuse("HttpListenerUsedByMultipleRequestRoutingRules", rule, message)
        listeners[listener] = rule
        _target(rule, "backendAddressPool", "backendHttpSettings", "redirectConfiguration")


def _target(part: Document, pool: str, settings: str, redirect: str) -> None:
    """A rule leads to a pool by settings, or to a redirect, or (a path-based one) to a map."""
    if _of(part, "ruleType") == "PathBasedRouting":
        if not _of(part, "urlPathMap"):
            refuse("PathBasedRoutingRuleMustReferenceUrlPathMap", part, "A path-based rule needs a map.")
        return
    if _of(part, "loadDistributionPolicy") or _of(part, "defaultLoadDistributionPolicy"):
        return
    if bool(_of(part, redirect)) == bool(_of(part, pool) or _of(part, settings)):
        refuse("RoutingRuleTargetInvalid", part, f"Give {pool} and {settings}, or {redirect}.")
    if bool(_of(part, pool)) != bool(_of(part, settings)):
        refuse("RoutingRuleTargetInvalid", part, f"{pool} and {settings} go together.")


def _maps(document: Document) -> None:
    users = Counter(_ref(rule, "urlPathMap") for rule in parts(document, "requestRoutingRules"))
    for path_map in parts(document, "urlPathMaps"):
        rules = _of(path_map, "pathRules") or []
        if not rules:
            refuse("UrlPathMapMustHavePathRules", path_map, "A map needs at least one path rule.")
        if len(rules) > MAX_PATH_RULES:
            refuse("PathRulesLimitReached", path_map, f"At most {MAX_PATH_RULES} path rules are allowed.")
        if users[path_map["id"].lower()] > 1:
            refuse("UrlPathMapUsedByMultipleRules", path_map, "A map serves one listener.")
        _target(
            path_map,
            "defaultBackendAddressPool",
            "defaultBackendHttpSettings",
            "defaultRedirectConfiguration",
        )
        seen: set[str] = set()
        for rule in rules:
            _target(rule, "backendAddressPool", "backendHttpSettings", "redirectConfiguration")
            for path in _of(rule, "paths") or [""]:
                _check_path(rule, path)
                if path.lower() in seen:
                    refuse("PathRulesUsingSamePath", rule, f"The path '{path}' appears twice in the map.")
                seen.add(path.lower())


def _check_path(rule: Document, path: str) -> None:
    if path.strip("/") == "":
        message = f"The path '{path}' has an empty match value."
        refuse("PathRulePathShouldHaveNonEmptyMatchValue", rule, message)
    if not path.startswith("/") or "*" in path[:-1] or "?" in path or "#" in path:
        message = (
            f"The path '{path}' must start with '/', and may have '*' only at its end, no '?' and no '#'."
        )
        refuse("PathRulePathIsInvalid", rule, message)


def _redirects(document: Document) -> None:
    listeners = _by_id(document, "httpListeners")
    for redirect in parts(document, "redirectConfigurations"):
        target, url = _ref(redirect, "targetListener"), _of(redirect, "targetUrl")
        if bool(target) == bool(url):
            refuse("RedirectConfigurationTargetInvalid", redirect, "Give targetListener or targetUrl.")
        hosts = _hosts(listeners[target]) if target in listeners else []
        if len(hosts) > 1 or any("*" in host or "?" in host for host in hosts):
            message = "A redirect cannot lead to a listener with several or wildcard host names."
            refuse("RedirectConfigurationTargetListenerHostNames", redirect, message)

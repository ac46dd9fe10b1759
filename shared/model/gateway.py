"""An Application Gateway's document as raw JSON: its collections, references and parts; no I/O.

Never typed further: whatever a typed model dropped would be somebody else's configuration. Values are the
dictionaries that Resource Manager answered; nothing here changes one in place. Called by
`shared.ingress_sync`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from shared.model.plan import canonical_json

Document = dict[str, Any]
Part = dict[str, Any]

COLLECTIONS = (
    "gatewayIPConfigurations",
    "authenticationCertificates",
    "trustedRootCertificates",
    "trustedClientCertificates",
    "sslCertificates",
    "sslProfiles",
    "frontendIPConfigurations",
    "frontendPorts",
    "backendAddressPools",
    "loadDistributionPolicies",
    "backendHttpSettingsCollection",
    "backendSettingsCollection",
    "probes",
    "httpListeners",
    "listeners",
    "redirectConfigurations",
    "rewriteRuleSets",
    "urlPathMaps",
    "requestRoutingRules",
    "routingRules",
    "privateLinkConfigurations",
    "entraJWTValidationConfigs",
)
"""Every collection of named parts, in the order in which plans print them."""

IGNORED = frozenset({"etag", "tags", "provisioningstate", "resourceguid", "location"})
"""Fields that say nothing about routing (W13), at any depth and in any case."""

BACK_REFERENCES = frozenset({"requestroutingrules", "urlpathmaps", "pathrules"})
"""Of redirects: Resource Manager fills them in."""

SECRET_FIELDS = frozenset({"data", "password"})
"""Of certificates: never answered by Resource Manager, never printed."""


def parts(document: Document, collection: str) -> list[Part]:
    """The parts of a collection in their order; empty when it is absent."""
    found = (document.get("properties") or {}).get(collection)
    return found if isinstance(found, list) else []


def inside(part: Part) -> Document:
    """A part's properties."""
    found = part.get("properties")
    return found if isinstance(found, dict) else {}


def reference(part: Part, field: str) -> str:
    """The id that a field of a part refers to, lower-cased; "" without one."""
    target = inside(part).get(field)
    return str(target.get("id") or "").lower() if isinstance(target, dict) else ""


def part_id(gateway_id: str, collection: str, name: str) -> str:
    """The resource id of a part."""
    return f"{gateway_id}/{collection}/{name}"


def part_key(collection: str, name: str) -> str:
    """How records and plans name a part: `collection/name`; names are compared without regard to case."""
    return f"{collection}/{name.lower()}"


def references(value: Any) -> Iterator[str]:
    """Every `{"id": ...}` below a value, lower-cased, except the value's own id."""
    if isinstance(value, dict):
        for below in value.values():
            if isinstance(below, dict):
                if len(below) == 1 and isinstance(below.get("id"), str):
                    yield below["id"].lower()
                else:
                    yield from references(below)
            elif isinstance(below, list):
                yield from references(below)
    elif isinstance(value, list):
        for below in value:
            if isinstance(below, dict) and len(below) == 1 and isinstance(below.get("id"), str):
                yield below["id"].lower()
            else:
                yield from references(below)


def hosts_of(listener: Part) -> tuple[str, ...]:
    """A listener's host names, lower-cased; empty for one that takes any."""
    properties = inside(listener)
    one, many = properties.get("hostName"), properties.get("hostNames")
    if one:
        return (str(one).lower(),)
    return tuple(str(host).lower() for host in many or ())


def normalised(value: Any, *, is_redirect: bool = False) -> Any:
    """What W13 compares: a copy without the ignored fields, ids lower-cased, empty values left out."""
    if isinstance(value, dict):
        kept = {}
        for name, below in value.items():
            lower = name.lower()
            if lower in IGNORED or (is_redirect and lower in BACK_REFERENCES):
                continue
            if below is None or below in ([], {}, ""):
                continue
            if lower == "id" and isinstance(below, str):
                kept[name] = below.lower()
            else:
                kept[name] = normalised(below, is_redirect=is_redirect)
        return kept
    if isinstance(value, list):
        return [normalised(below, is_redirect=is_redirect) for below in value]
    return value


def part_content(collection: str, part: Part) -> Document:
    """A part's name and properties as compared: without ids of itself, type, etag and state."""
    properties = normalised(inside(part), is_redirect=collection == "redirectConfigurations")
    if collection == "urlPathMaps":
        rules = inside(part).get("pathRules") or []
        properties["pathRules"] = [
            {"name": rule.get("name"), "properties": normalised(inside(rule))} for rule in rules
        ]
    return {"name": str(part.get("name")).lower(), "properties": properties}


def digest_of(value: Any) -> str:
    """A short digest of any JSON value, the same for equal values."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:32]


def part_digest(collection: str, part: Part) -> str:
    """The digest of what W13 compares of a part."""
    return digest_of(part_content(collection, part))

"""An Application Gateway's document as raw JSON: its collections, references and parts; no I/O.

Never typed further: whatever a typed model dropped would be somebody else's configuration. Values are the
dictionaries that Resource Manager answered; nothing here changes one in place. Called by
`shared.ingress_sync`.
"""

from __future__ import annotations

import hashlib
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


def ids_in(properties: Document, fields: tuple[str, ...]) -> tuple[str, ...]:
    """The ids that fields of a part's properties refer to, as they stand; "" without one."""
    return tuple([(properties.get(field) or {}).get("id") or "" for field in fields])


def part_id(gateway_id: str, collection: str, name: str) -> str:
    """The resource id of a part."""
    return f"{gateway_id}/{collection}/{name}"


def part_key(collection: str, name: str) -> str:
    """How records and plans name a part: `collection/name`; names are compared without regard to case."""
    return f"{collection}/{name.lower()}"


def references(value: Any) -> list[str]:
    """Every `{"id": ...}` below a value, lower-cased, except the value's own id."""
    found: list[str] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[str]) -> None:
    for below in value.values() if type(value) is dict else value:
        kind = type(below)
        if kind is dict:
            if len(below) == 1 and type(below.get("id")) is str:
                found.append(below["id"].lower())
            else:
                _collect(below, found)
        elif kind is list:
            _collect(below, found)


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
        return _normalised_dict(value, is_redirect)
    if isinstance(value, list):
        return [normalised(below, is_redirect=is_redirect) for below in value]
    return value


def _normalised_dict(value: Document, is_redirect: bool) -> Document:
    # Runs over every part of a gateway on each pass: thousands of small dictionaries.
    kept: Document = {}
    for name, below in value.items():
        meaning = _MEANING.get(name)
        if meaning is None:
            meaning = _meaning(name)
        if meaning == _DROP or (is_redirect and meaning == _DROP_IN_REDIRECT):
            continue
        kind = type(below)
        if kind is str:
            if below:
                kept[name] = below.lower() if meaning == _LOWER else below
        elif kind is dict:
            if len(below) == 1 and type(below.get("id")) is str:
                kept[name] = {"id": below["id"].lower()}
            elif below:
                kept[name] = _normalised_dict(below, is_redirect)
        elif kind is list:
            if below:
                kept[name] = [normalised(one, is_redirect=is_redirect) for one in below]
        elif below is not None:
            kept[name] = below
    return kept


_KEEP, _DROP, _DROP_IN_REDIRECT, _LOWER = range(4)
_MEANING: dict[str, int] = {}


def _meaning(name: str) -> int:
    lower = name.lower()
    found = _KEEP
    if lower in IGNORED:
        found = _DROP
    elif lower in BACK_REFERENCES:
        found = _DROP_IN_REDIRECT
    elif lower == "id":
        found = _LOWER
    if len(_MEANING) < 10_000:  # names come from documents, which anyone may write
        _MEANING[name] = found
    return found


def part_content(collection: str, part: Part) -> Document:
    """A part's name and properties as compared: without ids of itself, type, etag and state."""
    below, long = inside(part), _LONG.get(collection)
    if long is None:
        properties = _normalised_dict(below, collection == "redirectConfigurations")
        return {"name": str(part.get("name")).lower(), "properties": properties}
    properties = _normalised_dict({name: value for name, value in below.items() if name != long}, False)
    if long == "backendAddresses":
        properties[long] = [
            next(iter(one.values())) if len(one) == 1 else normalised(one) for one in below.get(long) or ()
        ]
    else:
        rules = below.get(long) or ()
        properties["pathRules"] = [
            {"name": rule.get("name"), "properties": _normalised_dict(inside(rule), False)} for rule in rules
        ]
    return {"name": str(part.get("name")).lower(), "properties": properties}


_LONG = {"backendAddressPools": "backendAddresses", "urlPathMaps": "pathRules"}
"""Long lists of small things, which are worth a loop of their own."""


def digest_of(value: Any) -> str:
    """A short digest of any JSON value, the same for equal values."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:32]


def part_digest(collection: str, part: Part) -> str:
    """The digest of what W13 compares of a part."""
    return digest_of(part_content(collection, part))

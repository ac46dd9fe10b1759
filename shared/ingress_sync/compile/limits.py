"""The limits of an Application Gateway (v2), how much of them is used, and who has to stay out.

Numbers: MicrosoftDocs/azure-docs includes/application-gateway-limits.md, 2024-06.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from shared.ingress_sync.compiled import HeadRoom
from shared.model.gateway import Document, Part, inside, part_key, parts, reference

LIMITS = {
    "frontendPorts": 100,
    "backendAddressPools": 100,
    "httpListeners": 200,
    "requestRoutingRules": 400,
    "urlPathMaps": 200,
    "backendHttpSettingsCollection": 100,
    "probes": 100,
    "sslCertificates": 100,
    "trustedRootCertificates": 100,
    "redirectConfigurations": 100,
    "rewriteRuleSets": 400,
}
ACTIVE = "activeListeners"
ACTIVE_LISTENERS = 100
PATH_RULES = "pathRules"
PATH_RULES_PER_MAP = 100
OLD_WAF = 40
OLD_WAF_LIMITED = frozenset(
    {
        "frontendPorts",
        "httpListeners",
        "requestRoutingRules",
        "backendHttpSettingsCollection",
        "sslCertificates",
        "redirectConfigurations",
        ACTIVE,
    }
)


def limits_of(live: Document) -> dict[str, int]:
    """The limits of this gateway; an old firewall (CRS 3.1 or older) lowers some."""
    found = LIMITS | {ACTIVE: ACTIVE_LISTENERS}
    if _has_old_firewall(live):
        found |= {name: min(found[name], OLD_WAF) for name in OLD_WAF_LIMITED}
    return found


def _has_old_firewall(live: Document) -> bool:
    firewall = (live.get("properties") or {}).get("webApplicationFirewallConfiguration") or {}
    version = str(firewall.get("ruleSetVersion") or "99")
    numbers = tuple(int(piece) for piece in version.split(".") if piece.isdigit())
    return bool(firewall) and numbers <= (3, 1)


def active_listeners(rules: Iterable[Part]) -> set[str]:
    """Ids of listeners whose rule does more than redirect."""
    return {
        reference(rule, "httpListener") for rule in rules if not inside(rule).get("redirectConfiguration")
    }


def head_room(document: Document, own: Iterable[str]) -> tuple[HeadRoom, ...]:
    """Each limit with what is used of it; `own` are the keys of our parts."""
    ours = frozenset(own)
    found = []
    for name, limit in limits_of(document).items():
        if name == ACTIVE:
            rules = parts(document, "requestRoutingRules")
            our_rules = [r for r in rules if part_key("requestRoutingRules", str(r.get("name"))) in ours]
            used, mine = len(active_listeners(rules)), len(active_listeners(our_rules))
        else:
            there = parts(document, name)
            used = len(there)
            mine = sum(part_key(name, str(part.get("name"))) in ours for part in there)
        found.append(HeadRoom(name=name, used=used, own=mine, limit=limit))
    maps = [len(inside(one).get("pathRules") or ()) for one in parts(document, "urlPathMaps")]
    most = max(maps, default=0)
    found.append(HeadRoom(name=PATH_RULES, used=most, own=most, limit=PATH_RULES_PER_MAP))
    return tuple(found)


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """The limits, and how much of each others use."""

    limits: dict[str, int]
    theirs: dict[str, int]


def too_much(
    found: Mapping[str, Mapping[str, Part]],
    owners: Mapping[str, set[str]],
    rule_owners: Mapping[str, tuple[str, ...]],
    order: list[str],
    room: Room,
) -> dict[str, str]:
    """The objects that do not fit, with the limit each meets; those that come first in `order` stay.

    `found` are our parts; `owners` (by key) and `rule_owners` (of path rules, by name) whom they are for.
    """
    theirs, limits = room.theirs, room.limits
    over = {name for name, limit in limits.items() if theirs.get(name, 0) + _count(found, name) > limit}
    over |= {
        f"{PATH_RULES}/{name}"
        for name, one in found.get("urlPathMaps", {}).items()
        if len(one["properties"]["pathRules"]) > PATH_RULES_PER_MAP
    }
    if not over:
        return {}
    needs = _needs(found, owners, rule_owners)
    used: dict[str, set[str]] = {}
    left_out: dict[str, str] = {}
    for owner in order:
        wanted = [(where, key) for where, key in needs.get(owner, ()) if where in over]
        new: dict[str, set[str]] = {}
        for where, key in wanted:
            if key not in used.get(where, ()):
                new.setdefault(where, set()).add(key)
        full = next((w for w, keys in sorted(new.items()) if _is_over(w, keys, used, theirs, limits)), "")
        if full:
            left_out[owner] = full.partition("/")[0]
            continue
        for where, keys in new.items():
            used.setdefault(where, set()).update(keys)
    return left_out


def _is_over(
    where: str,
    keys: set[str],
    used: Mapping[str, set[str]],
    theirs: Mapping[str, int],
    limits: Mapping[str, int],
) -> bool:
    limit = PATH_RULES_PER_MAP if where.startswith(f"{PATH_RULES}/") else limits[where]
    return theirs.get(where, 0) + len(used.get(where, ())) + len(keys) > limit


def _count(found: Mapping[str, Mapping[str, Part]], name: str) -> int:
    if name == ACTIVE:
        return len(active_listeners(found.get("requestRoutingRules", {}).values()))
    return len(found.get(name, ()))


def _needs(
    found: Mapping[str, Mapping[str, Part]],
    owners: Mapping[str, set[str]],
    rule_owners: Mapping[str, tuple[str, ...]],
) -> dict[str, list[tuple[str, str]]]:
    """Owner to (limit, what it needs of it)."""
    needs: dict[str, list[tuple[str, str]]] = {}
    for name, by_name in found.items():
        for part_name, part in by_name.items():
            for owner in owners.get(part_key(name, part_name), ()):
                needs.setdefault(owner, []).append((name, part_name))
            if name == "requestRoutingRules" and not inside(part).get("redirectConfiguration"):
                for owner in owners.get(part_key(name, part_name), ()):
                    needs.setdefault(owner, []).append((ACTIVE, part_name))
            if name == "urlPathMaps":
                for rule in part["properties"]["pathRules"]:
                    for owner in rule_owners.get(rule["name"], ()):
                        needs.setdefault(owner, []).append((f"{PATH_RULES}/{part_name}", rule["name"]))
    return needs

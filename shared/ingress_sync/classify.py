"""What writing a document would do to traffic, told from the parts that change. Pure; called by `compile`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.ingress_sync.compiled import Change
from shared.model.gateway import Document, Part, hosts_of, inside, normalised, parts, reference

Changes = Mapping[str, Mapping[str, list[str]]]

CUTTING = ("frontendIPConfiguration", "frontendPort", "protocol", "sslCertificate", "sslProfile")
"""Of a listener: a change of one of these cuts its connections."""


def grade(before: Document, after: Document, changes: Changes) -> Change:
    """The worst of what changes."""
    if not changes:
        return Change.NONE
    if interruptions(before, after, changes):
        return Change.INTERRUPTING
    if "httpListeners" in changes:
        return Change.LISTENERS
    pools = changes.get("backendAddressPools", {})
    if set(changes) == {"backendAddressPools"} and set(pools) == {"changed"}:
        return Change.POOLS
    return Change.SETTINGS


def interruptions(before: Document, after: Document, changes: Changes) -> list[str]:
    """One sentence for each listener whose connections end."""
    listeners = changes.get("httpListeners", {})
    found = [f"listener {name} goes" for name in listeners.get("removed", ())]
    found += [f"{host} goes from listener {name}" for name, host in _hosts_that_go(before, after, changes)]
    was, now = _by_name(before), _by_name(after)
    for name in listeners.get("changed", ()):
        old, new = inside(was[name.lower()]), inside(now[name.lower()])
        cut = [field for field in CUTTING if _differs(old.get(field), new.get(field))]
        if cut:
            found.append(f"listener {name} changes its {' and '.join(cut)}")
    return found


def removals(before: Document, after: Document, changes: Changes) -> list[str]:
    """Names of listeners that go, or lose a host."""
    removed = changes.get("httpListeners", {}).get("removed", [])
    return [*removed, *dict.fromkeys(name for name, _ in _hosts_that_go(before, after, changes))]


def _hosts_that_go(before: Document, after: Document, changes: Changes) -> list[tuple[str, str]]:
    """(listener, host) of listeners that stay and have a host less, which no other listener takes over."""
    was, now = _by_name(before), _by_name(after)
    taken = {
        (reference(one, "frontendIPConfiguration"), reference(one, "frontendPort"), host)
        for one in now.values()
        for host in hosts_of(one)
    }
    found = []
    for name in changes.get("httpListeners", {}).get("changed", ()):
        old = was[name.lower()]
        place = reference(old, "frontendIPConfiguration"), reference(old, "frontendPort")
        found += [(name, host) for host in hosts_of(old) if (*place, host) not in taken]
    return found


def certificate_changes(before: Document, after: Document, changes: Changes) -> list[str]:
    """Names of listeners that get another certificate."""
    was, now = _by_name(before), _by_name(after)
    return [
        name
        for name in changes.get("httpListeners", {}).get("changed", ())
        if _differs(
            inside(was[name.lower()]).get("sslCertificate"), inside(now[name.lower()]).get("sslCertificate")
        )
    ]


def _by_name(document: Document) -> dict[str, Part]:
    return {str(part.get("name")).lower(): part for part in parts(document, "httpListeners")}


def _differs(one: Any, other: Any) -> bool:
    return bool(normalised(one) != normalised(other))

"""Compiling: routes of a cluster and a live gateway -> the document to write. Pure and deterministic.

    routes -> cells (one per host and port) -> tables (paths in precedence)
           -> bundles (listeners, priorities) -> parts -> the live document, ours replaced

An object that conflicts, that Azure refused, or for which there is no room is left out alone; its last good
routes stand in for it where they still fit. Called by `decide`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from shared.ingress_sync import classify
from shared.ingress_sync.backends import Backends
from shared.ingress_sync.compile.cells import CellKey, Cells, ConflictError
from shared.ingress_sync.compile.document import Merged, merge
from shared.ingress_sync.compile.foreign import Foreign
from shared.ingress_sync.compile.limits import ACTIVE, Room, active_listeners, head_room, limits_of, too_much
from shared.ingress_sync.compile.listeners import Bundle, NoRoomError, bundle, placeholder, prioritise
from shared.ingress_sync.compile.names import Names, prefix_of
from shared.ingress_sync.compile.parts import MAX_TARGETS, Assembler, Parts
from shared.ingress_sync.compiled import Compiled, Finding, Quarantined, Upload, route_digest
from shared.ingress_sync.ingress import Translation
from shared.ingress_sync.observation import Observation
from shared.ingress_sync.ownership import own_keys
from shared.ingress_sync.routes import Route, Tls, unpack_routes
from shared.model.duration import parse_duration
from shared.model.gateway import (
    COLLECTIONS,
    Document,
    digest_of,
    hosts_of,
    inside,
    part_key,
    parts,
    references,
)
from shared.model.ingress import Rewrite


def compile_gateway(
    observation: Observation, translation: Translation, backends: Backends, now: datetime
) -> Compiled:
    """The document for everything that can be served. The observation must have a gateway."""
    return _Compilation(observation, translation, backends, now).run()


class _Compilation:
    def __init__(
        self, observation: Observation, translation: Translation, backends: Backends, now: datetime
    ) -> None:
        assert observation.gateway is not None
        self.live: Document = observation.gateway
        self.policy, self.state, self.backends, self.now = (
            observation.policy,
            observation.record,
            backends,
            now,
        )
        self.translation = translation
        self.names = Names(prefix_of(observation.cluster, self.policy.prefix))
        self.gateway_id = str(self.live.get("id") or self.policy.gateway)
        self.own = own_keys(self.live, self.names.prefix, self.state.parts, self.policy)
        self.foreign = Foreign(self.live, self.own)
        rewrites = observation.kubernetes.azureapplicationgatewayrewrites
        self.rewrites: dict[str, Rewrite] = {f"{r.metadata.namespace}/{r.metadata.name}": r for r in rewrites}
        self.last_good = unpack_routes(self.state.routes)
        self.wanted = {route.owner: route for route in translation.routes}
        self.quarantined: dict[str, Quarantined] = {}
        self.live_cells = _live_cells(self.live, self.own)

    def run(self) -> Compiled:
        """Admit objects until the rest fits together."""
        for refused in self.translation.refused:
            self._leave_out(refused.owner, refused.reason, refused.message)
        self._hold_back()
        while True:
            cells = self._cells()
            try:
                bundles, warnings = self._bundles(cells)
            except NoRoomError as error:
                self._leave_out_all(error.bundle.owners, "NoPriorityLeft", str(error))
                continue
            made = self._parts(cells, bundles)
            full = self._full(made)
            if not full:
                return self._result(cells, bundles, made, warnings)
            for owner, limit in full.items():
                text = f"the gateway has no room for it: the limit of {limit} is reached; make room there"
                self._leave_out(owner, "GatewayFull", text)

    # Who takes part

    def _hold_back(self) -> None:
        """What Azure refused, and what is not tried in this write while the guilty are searched."""
        for owner, refused in self.state.refused.items():
            is_over = refused.retry_at is not None and self.now >= refused.retry_at
            route = self.wanted.get(owner)
            if route is not None and not is_over and refused.digest in ("", route_digest(route)):
                self._leave_out(owner, refused.reason, refused.message)
        search = self.state.bisection
        for group in search.groups[1:] if search else ():
            for owner in group:
                if owner in self.wanted:
                    text = "held back for a write or two, to find out what Azure refuses"
                    self._leave_out(owner, "HeldBack", text)

    def _leave_out_all(self, owners: Iterable[str], reason: str, message: str) -> None:
        for owner in owners:
            self._leave_out(owner, reason, message)

    def _leave_out(self, owner: str, reason: str, message: str) -> None:
        """Left out; its last good routes stand in, unless it is those that cannot be."""
        stand_in = None
        if owner not in self.quarantined:
            last = self.last_good.get(owner)
            if last is not None and last != self.wanted.get(owner) and self._can_stand_in(last):
                stand_in = last
        known = self.quarantined.get(owner)
        self.quarantined[owner] = Quarantined(
            owner=owner,
            reason=known.reason if known else reason,
            message=known.message if known else message,
            kept_last_good=stand_in is not None,
        )

    def _can_stand_in(self, route: Route) -> bool:
        """Whether everything a last good route refers to is still there."""
        if route.frontend not in self.foreign.frontends:
            return False
        if route.ssl_profile and not self.foreign.find("sslProfiles", route.ssl_profile):
            return False
        return all(self._has_certificate(site.tls) for site in route.sites if site.tls) and all(
            (not rule.rewrite or self.foreign.find("rewriteRuleSets", rule.rewrite))
            and (not rule.rewrite_resource or rule.rewrite_resource in self.rewrites)
            and all(
                self.foreign.find("trustedRootCertificates", root)
                for root in rule.backend.settings.trusted_roots
            )
            for site in route.sites
            for rule in site.rules
        )

    def _has_certificate(self, tls: Tls) -> bool:
        if tls.name:
            return bool(self.foreign.find("sslCertificates", tls.name))
        if tls.key_vault:
            return bool(self.live.get("identity"))
        name = self.names.certificate(tls.digest)
        return any(str(part.get("name")) == name for part in parts(self.live, "sslCertificates"))

    def _taking_part(self) -> list[Route]:
        """Routes by owner, last good ones in place of those that are left out."""
        found = []
        for owner in sorted(self.wanted.keys() | self.quarantined.keys()):
            out = self.quarantined.get(owner)
            if out is None:
                found.append(self.wanted[owner])
            elif out.kept_last_good:
                found.append(self.last_good[owner])
        return found

    # Stages

    def _cells(self) -> Cells:
        while True:
            cells = Cells(self.foreign, within_segment=self.policy.compatibility.prefix_within_segment)
            failed = False
            for route in self._taking_part():
                try:
                    cells.add(route)
                except ConflictError as error:
                    self._leave_out(route.owner, error.reason, str(error))
                    failed = failed or self.quarantined[route.owner].kept_last_good
            if not failed:
                return cells

    def _bundles(self, cells: Cells) -> tuple[list[Bundle], list[Finding]]:
        tables = cells.tables()
        bundles = bundle(cells.cells, tables, self.names, self.foreign, self.live_cells)
        if not bundles and self.own and not self.foreign.parts["requestRoutingRules"]:
            bundles = [placeholder(self.names, self.foreign)]
        return bundles, prioritise(bundles, self.foreign)

    def _parts(self, cells: Cells, bundles: list[Bundle]) -> Parts:
        made = Parts(self.gateway_id, self.names, self.foreign, self.backends)
        Assembler(made, cells.targets, cells.probed(), self.rewrites).assemble(bundles)
        return made

    def _full(self, made: Parts) -> dict[str, str]:
        theirs = {collection: len(found) for collection, found in self.foreign.parts.items()}
        theirs[ACTIVE] = len(active_listeners(self.foreign.parts["requestRoutingRules"]))
        known = self.last_good.keys()
        order = sorted(self.wanted.keys() | self.quarantined.keys(), key=lambda o: (o not in known, o))
        room = Room(limits=limits_of(self.live), theirs=theirs)
        return too_much(made.found, made.owners, made.rule_owners, order, room)

    # The result

    def _result(self, cells: Cells, bundles: list[Bundle], made: Parts, warnings: list[Finding]) -> Compiled:
        unused, kept = self._kept(made)
        merged = merge(self.live, made.found, self.own, self.state.parts, kept)
        routes = self._taking_part()
        before, after = self.live, merged.document
        deviations = self._deviations(cells, bundles)
        return Compiled(
            document=after,
            digest=digest_of([merged.sent, merged.changes]),
            approval=_approval(merged),
            parts=merged.sent,
            uploads=self._uploads(made, merged),
            quarantined=tuple(self.quarantined[owner] for owner in sorted(self.quarantined)),
            warnings=tuple(self._warnings(cells, made, warnings, merged)),
            deviations=deviations,
            served=_served(bundles),
            frontends={route.owner: route.frontend for route in routes},
            wanted=self.wanted,
            admitted=tuple(routes),
            part_owners={key: tuple(sorted(found)) for key, found in made.owners.items()},
            changed_owners=self._changed(routes),
            unused_certificates=unused,
            head_room=head_room(after, merged.sent),
            change=classify.grade(before, after, merged.changes),
            changes=merged.changes,
            interruptions=tuple(classify.interruptions(before, after, merged.changes)),
            removals=tuple(classify.removals(before, after, merged.changes)),
            certificate_changes=tuple(classify.certificate_changes(before, after, merged.changes)),
        )

    def _changed(self, routes: list[Route]) -> tuple[str, ...]:
        now = {route.owner: route for route in routes}
        owners = sorted(now.keys() | self.last_good.keys())
        return tuple(owner for owner in owners if now.get(owner) != self.last_good.get(owner))

    def _kept(self, made: Parts) -> tuple[tuple[str, ...], frozenset[str]]:
        """(certificates nothing uses, lower-cased ids of parts of ours that stay although nothing of ours
        needs them).
        """
        ours = {
            str(part.get("id")).lower(): (collection, part)
            for collection in COLLECTIONS
            for part in parts(self.live, collection)
            if part_key(collection, str(part.get("name"))) in self.own
        }
        unused = self._unused(made)
        waiting = [key for key in self.foreign.referred if key in ours]
        waiting += [
            key
            for key, (collection, part) in ours.items()
            if collection == "sslCertificates" and part.get("name") in unused and self._is_in_grace(part)
        ]
        kept: set[str] = set()
        while waiting:
            key = waiting.pop()
            if key in kept or key not in ours:
                continue
            kept.add(key)
            collection, part = ours[key]
            if str(part.get("name")).lower() not in made.found.get(collection, {}):
                waiting += references(inside(part))
        return unused, frozenset(kept)

    def _unused(self, made: Parts) -> tuple[str, ...]:
        used = made.found.get("sslCertificates", {})
        return tuple(
            str(part.get("name"))
            for part in parts(self.live, "sslCertificates")
            if part_key("sslCertificates", str(part.get("name"))) in self.own
            and str(part.get("name")).lower().startswith(self.names.prefix)
            and part.get("name") not in used
        )

    def _is_in_grace(self, part: Mapping[str, object]) -> bool:
        since = self.state.unused_certificates.get(str(part.get("name")), self.now)
        return self.now < since + parse_duration(self.policy.certificate_grace)

    def _uploads(self, made: Parts, merged: Merged) -> tuple[Upload, ...]:
        added = merged.changes.get("sslCertificates", {}).get("added", ())
        return tuple(made.uploads[name] for name in sorted(added) if name in made.uploads)

    def _warnings(
        self, cells: Cells, made: Parts, warnings: list[Finding], merged: Merged
    ) -> Iterable[Finding]:
        there = self.wanted.keys() - self.quarantined.keys()
        yield from (one for one in self.translation.warnings if one.owner in there)
        yield from cells.warnings
        yield from warnings
        for name, count in made.crowded.items():
            text = f"{count} endpoints are behind it; a pool takes {MAX_TARGETS}, the others get nothing"
            for owner in sorted(made.owners.get(part_key("backendAddressPools", name), ())):
                yield Finding(owner=owner, reason="TooManyTargets", message=text)
        for key in merged.held:
            if not key.startswith("sslCertificates/"):
                text = f"nothing of ours needs {key}, but a part of somebody else refers to it; it stays"
                yield Finding(owner=key, kind="Gateway", reason="HeldByOthers", message=text)

    def _deviations(self, cells: Cells, bundles: list[Bundle]) -> dict[str, tuple[str, ...]]:
        found: dict[str, set[str]] = {o: set(names) for o, names in self.translation.deviations.items()}
        for owner, names in cells.deviations.items():
            found.setdefault(owner, set()).update(names)
        for one in bundles:
            general = set()
            if one.table.rules:
                general.add("CaseInsensitivePaths")
            if one.table.default is None:
                general.add("UnmatchedIs502")
            if any("*" in host or "?" in host for host in one.hosts):
                general.add("WildcardDepth")
            if one.cell.first.priority:
                general.add("ExplicitPriority")
            for owner in one.owners:
                found.setdefault(owner, set()).update(general)
        return {owner: tuple(sorted(names)) for owner, names in sorted(found.items()) if names}


def _live_cells(live: Document, own: frozenset[str]) -> dict[CellKey, str]:
    """Which listener of ours has which host now."""
    kinds = {
        str(one.get("id")).lower(): "public" if inside(one).get("publicIPAddress") else "private"
        for one in parts(live, "frontendIPConfigurations")
    }
    numbers = {
        str(one.get("id")).lower(): int(inside(one).get("port") or 0) for one in parts(live, "frontendPorts")
    }
    found: dict[CellKey, str] = {}
    for listener in parts(live, "httpListeners"):
        name = str(listener.get("name"))
        if part_key("httpListeners", name) not in own or "lis_" not in name:
            continue
        properties = inside(listener)
        frontend = kinds.get(str((properties.get("frontendIPConfiguration") or {}).get("id")).lower(), "")
        port = numbers.get(str((properties.get("frontendPort") or {}).get("id")).lower(), 0)
        for host in hosts_of(listener) or ("",):
            found[CellKey(frontend, port, str(properties.get("protocol")), host)] = name
    return found


def _approval(merged: Merged) -> str:
    """Pools come and go with every rollout; what was approved must not wait for them to stand still."""
    sent = {key: one for key, one in merged.sent.items() if not key.startswith("backendAddressPools/")}
    changes = {name: by_what for name, by_what in merged.changes.items() if name != "backendAddressPools"}
    return digest_of([sent, changes])


def _served(bundles: list[Bundle]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for one in bundles:
        for owner in one.owners:
            found.setdefault(owner, []).append(one.name)
    return {owner: tuple(names) for owner, names in sorted(found.items())}

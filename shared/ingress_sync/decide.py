"""What to do about the ingress of one cluster: pure, (Observation, IngressSyncPolicy, now) -> Plan.

The objects are translated, compiled and compared with the live gateway; nothing differs, nothing is done. A
document is planned to be written only when it is valid by our own rules, leaves the parts of others as they
are, and is proven to route as the objects say; what spoils that is left out alone, and if it cannot be found,
nothing is written. Addresses go into the objects' status once their routes are on the gateway. Called by
`reconcile` and `keeper plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from shared.errors import UnsafePlanError
from shared.ingress_sync import explain
from shared.ingress_sync.backends import Backends
from shared.ingress_sync.compile import compile_gateway
from shared.ingress_sync.compile.names import prefix_of
from shared.ingress_sync.compiled import Change, Compiled, Finding, Quarantined
from shared.ingress_sync.ingress import Translation, ours, translate
from shared.ingress_sync.observation import AUTOMATION, Observation, operational_state
from shared.ingress_sync.ownership import assert_foreign_untouched, own_keys
from shared.ingress_sync.policy import IngressSyncPolicy
from shared.ingress_sync.proof import Proof, prove
from shared.ingress_sync.routes import pack_routes
from shared.ingress_sync.validate import validate
from shared.model.duration import parse_duration
from shared.model.ingress import Ingress
from shared.model.plan import Action, ActionKind, LeftAlone, Plan, utc

NOTE = "kubekeeper.io/ingress-sync"
"""The annotation that says what is wrong with an object, or compiled otherwise than written."""

MAX_NOTE = 1_000
SHOWN_ROUTES, SHOWN_LIMITS = 30, 4
TRIES = 4
"""So often what spoils a document is looked for and left out, before nothing is written."""


def decide(observation: Observation, policy: IngressSyncPolicy, now: datetime) -> Plan:
    """The plan; empty of actions when the gateway and the objects are as they should be."""
    return decide_compiled(observation, policy, now)[1]


def decide_compiled(
    observation: Observation, policy: IngressSyncPolicy, now: datetime
) -> tuple[Compiled, Plan]:
    """The plan, and the document behind it (an empty one when there is no gateway to compile for)."""
    now = utc(now)
    nothing = Compiled(document={}, digest="")
    if not policy.enabled:
        return nothing, _rest(observation, now, "Disabled", "ingressSync.enabled is false")
    if observation.gateway is None:
        reading = observation.reading(policy.gateway)
        said = f"{reading.status} {reading.code}".strip() if reading else "it was not read"
        text = f"the gateway {policy.gateway} cannot be read ({said}); create it or correct the id"
        return nothing, _rest(observation, now, "GatewayNotFound", text)
    compiled, proof, objection = _compile(observation, now)
    same = compiled.change is Change.NONE and not compiled.changed_owners
    compiled = msgspec.structs.replace(
        compiled,
        warnings=(*compiled.warnings, *_expiring(observation, compiled, policy, now)),
        routes=observation.record.routes if same else pack_routes(compiled.admitted),
    )
    actions, left = _put(observation, policy, compiled, proof, objection)
    actions += _statuses(observation, compiled)
    plan = Plan(
        automation=AUTOMATION,
        cluster=observation.cluster,
        now=now,
        actions=tuple(actions),
        left_alone=(*left, *_left_alone(compiled)),
    )
    return compiled, plan


# Compiling what can be proven


def _compile(observation: Observation, now: datetime) -> tuple[Compiled, Proof, str]:
    """The document, its proof, and what speaks against writing it ("" when nothing does)."""
    backends = Backends(
        observation.kubernetes, observation.policy, observation.healthy, observation.unhealthy
    )
    translation = translate(observation, backends)
    for attempt in range(TRIES):
        compiled = compile_gateway(observation, translation, backends, now)
        if compiled.change is Change.NONE:
            return compiled, Proof(0), ""
        proof = prove(observation, compiled)
        spoilers, objection = _objections(observation, compiled, proof)
        can_leave_out = spoilers and attempt < TRIES - 1
        if not can_leave_out:
            break
        translation = _without(translation, spoilers)
    return compiled, proof, objection


def _objections(
    observation: Observation, compiled: Compiled, proof: Proof
) -> tuple[dict[str, tuple[str, str]], str]:
    """(object to (reason, message) of what has to stay out, what speaks against the document)."""
    out = {one.owner for one in compiled.quarantined}
    spoilers: dict[str, tuple[str, str]] = {}
    for owner, names in compiled.deviations.items():
        refused = sorted(set(names) & set(observation.policy.refuse_deviations))
        if refused and owner not in out:
            text = f"it cannot be served as written ({', '.join(refused)}), which refuseDeviations forbids"
            spoilers[owner] = ("DeviationRefused", text)
    if spoilers:
        return spoilers, "objects have deviations that are refused"
    for problem in validate(compiled.document, set(compiled.parts), [u.name for u in compiled.uploads]):
        for owner in compiled.part_owners.get(problem.key, ()):
            spoilers.setdefault(owner, ("Invalid", f"Azure would refuse {problem.key}: {problem.message}"))
        if not spoilers:
            return {}, f"the document would be refused: {problem.key}: {problem.message}"
    for difference in proof.undeclared:
        for owner in difference.owners:
            spoilers.setdefault(owner, ("ProofFailed", str(difference)))
    if spoilers:
        return spoilers, next(iter(spoilers.values()))[1]
    if proof.undeclared:
        return {}, f"the document is not proven: {proof.undeclared[0]}"
    return {}, ""


def _without(translation: Translation, spoilers: Mapping[str, tuple[str, str]]) -> Translation:
    refused = [
        Quarantined(owner=owner, reason=reason, message=message)
        for owner, (reason, message) in sorted(spoilers.items())
    ]
    return Translation(
        routes=[route for route in translation.routes if route.owner not in spoilers],
        refused=translation.refused + refused,
        warnings=translation.warnings,
        deviations={o: names for o, names in translation.deviations.items() if o not in spoilers},
    )


# Writing the gateway


def _put(
    observation: Observation, policy: IngressSyncPolicy, compiled: Compiled, proof: Proof, objection: str
) -> tuple[list[Action], list[LeftAlone]]:
    gateway = observation.gateway
    assert gateway is not None
    if compiled.change is Change.NONE:
        return _again(observation, policy, compiled), []
    if operational_state(gateway) == "Stopped":
        text = "the gateway is stopped; it is written when it runs again"
        return [], [_gateway(policy, "GatewayStopped", text)]
    if objection:
        return [], [_gateway(policy, "NotProven", objection)]
    own = own_keys(gateway, prefix_of(observation.cluster, policy.prefix), observation.record.parts, policy)
    try:
        assert_foreign_untouched(gateway, compiled.document, own)
    except UnsafePlanError as error:
        return [], [_gateway(policy, "Unsafe", str(error))]
    waiting = _needs_approval(policy, compiled)
    if waiting and observation.record.approved != compiled.approval:
        text = f"{'; '.join(waiting)}; to let it happen, run approve with subject {compiled.approval}"
        return [], [_gateway(policy, "ApprovalRequired", text)]
    return [_put_action(observation, policy, compiled, proof)], []


def _again(observation: Observation, policy: IngressSyncPolicy, compiled: Compiled) -> list[Action]:
    """The document as it stands, once more, when the write that brought it was cut short."""
    gateway = observation.gateway or {}
    if not observation.record.unconfirmed or operational_state(gateway) != "Running":
        return []
    text = "the last write was cut short, and nobody knows whether the gateway serves what it shows"
    return [
        Action(
            kind=ActionKind.PUT_GATEWAY,
            target=policy.gateway,
            reason="NotConfirmed",
            message=f"write the gateway again as it is: {text}",
            parameters={"changes": {}, "document": compiled.document, "documentDigest": compiled.digest},
            evidence=(text,),
            preconditions=(f"the gateway still has etag {gateway.get('etag') or 'unknown'}",),
        )
    ]


def _needs_approval(policy: IngressSyncPolicy, compiled: Compiled) -> list[str]:
    wanted, found = policy.approval, []
    if wanted.listener_removal and compiled.removals:
        found.append(f"{len(compiled.removals)} listeners go or lose a host")
    if wanted.certificate_change and compiled.certificate_changes:
        found.append(f"{len(compiled.certificate_changes)} listeners get another certificate")
    if wanted.routes and len(compiled.changed_owners) > wanted.routes:
        found.append(f"{len(compiled.changed_owners)} objects' routes change, more than {wanted.routes}")
    return found


def _put_action(
    observation: Observation, policy: IngressSyncPolicy, compiled: Compiled, proof: Proof
) -> Action:
    gateway = observation.gateway or {}
    come, go = explain.route_changes(gateway, compiled.document)
    counted = ", ".join(
        f"{len(names)} {collection} {what}"
        for collection, by_what in compiled.changes.items()
        for what, names in by_what.items()
    )
    return Action(
        kind=ActionKind.PUT_GATEWAY,
        target=policy.gateway,
        reason=f"{compiled.change.name.title()}Changed",
        message=f"write the gateway: {counted}",
        parameters={
            "changes": compiled.changes,
            "change": compiled.change.name,
            "document": compiled.document,
            "documentDigest": compiled.digest,
            "approvalDigest": compiled.approval,
            "uploads": [msgspec.to_builtins(upload) for upload in compiled.uploads],
            "routes": {"added": come, "removed": go},
            "headRoom": explain.head_room_text(compiled.head_room),
            "interruptions": list(compiled.interruptions),
        },
        evidence=(
            f"{proof.requests} requests are routed as the objects say, {proof.declared_count} of them by a "
            "declared deviation",
            *_shown(come, go),
            *(f"interrupts: {one}" for one in compiled.interruptions),
            *explain.head_room_text(compiled.head_room)[:SHOWN_LIMITS],
        ),
        preconditions=(
            f"the gateway still has etag {gateway.get('etag') or 'unknown'}",
            "it runs, and no operation is running on it",
            "the parts of others are as they were read",
        ),
    )


def _shown(come: list[str], go: list[str]) -> Iterator[str]:
    """The routes that come and go, as far as they fit on a screen; `parameters.routes` has all."""
    for sign, lines in (("+", come), ("-", go)):
        yield from (f"{sign} {line}" for line in lines[:SHOWN_ROUTES])
        if len(lines) > SHOWN_ROUTES:
            yield f"{sign} {len(lines) - SHOWN_ROUTES} more routes"


# The objects' status


def _statuses(observation: Observation, compiled: Compiled) -> list[Action]:
    """Addresses of objects whose routes are on the gateway, and what there is to say about each."""
    if not observation.policy.status:
        return []
    notes = _notes(compiled)
    is_written = compiled.change is Change.NONE
    changing = frozenset(() if is_written else compiled.changed_owners)
    found: list[Action] = []
    mine = {ingress.key: ingress for ingress in ours(observation.kubernetes, observation.policy)}
    for ingress in observation.kubernetes.ingresses:
        if ingress.key in mine:
            if ingress.key not in changing:
                found += _status(observation, compiled, ingress, notes.get(ingress.key, ""))
        elif NOTE in (ingress.metadata.annotations or {}):  # it was ours
            found += _status(observation, compiled, ingress, "")
    return found


def _status(observation: Observation, compiled: Compiled, ingress: Ingress, note: str) -> Iterator[Action]:
    owner, metadata = ingress.key, ingress.metadata
    addresses = observation.addresses
    now = [one.ip or one.hostname for one in ingress.status.load_balancer.ingress or ()]
    wanted = now
    frontend = compiled.frontends.get(owner)
    if owner in compiled.served and frontend:
        address = addresses.get(frontend)
        is_known = bool(now) or not observation.record.unconfirmed
        wanted = [address] if address and is_known else now
    elif set(now) & set(addresses.values()):
        wanted = []
    if now == wanted and (metadata.annotations or {}).get(NOTE, "") == note:
        return
    yield Action(
        kind=ActionKind.UPDATE_INGRESS_STATUS,
        target=owner,
        reason=_status_reason(now, wanted),
        message=f"Ingress {owner}: address {', '.join(wanted) or 'none'}" + (f"; {note}" if note else ""),
        parameters={
            "namespace": metadata.namespace,
            "name": metadata.name,
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
            "loadBalancer": [{"ip": address} for address in wanted],
            "note": note,
        },
        preconditions=(f"it still has uid {metadata.uid}",),
    )


def _status_reason(now: list[str], wanted: list[str]) -> str:
    if now == wanted:
        return "Explained"
    return "AddressPublished" if wanted else "AddressWithdrawn"


def _notes(compiled: Compiled) -> dict[str, str]:
    """What stands in each object's annotation."""
    said: dict[str, list[str]] = {}
    for out in compiled.quarantined:
        if out.reason != "HeldBack":
            kept = "the last good version is served" if out.kept_last_good else "it is not served"
            said.setdefault(out.owner, []).append(f"{out.reason}: {out.message}; {kept}")
    for finding in compiled.warnings:
        if finding.reason != "CertificateExpires":
            said.setdefault(finding.owner, []).append(f"{finding.reason}: {finding.message}")
    for owner, names in compiled.deviations.items():
        said.setdefault(owner, []).append("deviations: " + ", ".join(names))
    return {owner: "; ".join(texts)[:MAX_NOTE] for owner, texts in said.items()}


# Certificates


def _expiring(
    observation: Observation, compiled: Compiled, policy: IngressSyncPolicy, now: datetime
) -> Iterator[Finding]:
    """Certificates of objects that are served and expire soon, or have expired."""
    limit = now + parse_duration(policy.expiry_warning)
    facts = {one.key: one.kubekeeper for one in observation.kubernetes.secrets}
    soon = {key: f for key, f in facts.items() if f.not_after is not None and f.not_after <= limit}
    if not soon:
        return
    for ingress in ours(observation.kubernetes, policy):
        names = {f"{ingress.metadata.namespace}/{tls.secret_name}" for tls in ingress.spec.tls or ()}
        for name in sorted(names & soon.keys()):
            not_after = soon[name].not_after
            assert not_after is not None
            what = "has expired on" if not_after <= now else "expires on"
            text = f"the certificate in Secret {name} {what} {utc(not_after):%Y-%m-%d %H:%M} UTC; renew it"
            if ingress.key in compiled.served:
                yield Finding(owner=ingress.key, reason="CertificateExpires", message=text)


# Parts


def _left_alone(compiled: Compiled) -> Iterable[LeftAlone]:
    for out in compiled.quarantined:
        kept = "; its last good version is served" if out.kept_last_good else ""
        yield LeftAlone(subject=out.owner, reason=out.reason, message=out.message + kept)
    for finding in compiled.warnings:
        yield LeftAlone(subject=finding.owner, reason=finding.reason, message=finding.message)


def _gateway(policy: IngressSyncPolicy, reason: str, message: str) -> LeftAlone:
    return LeftAlone(subject=policy.gateway, reason=reason, message=message)


def _rest(observation: Observation, now: datetime, reason: str, message: str) -> Plan:
    left: Any = (LeftAlone(subject=observation.cluster, reason=reason, message=message),)
    return Plan(automation=AUTOMATION, cluster=observation.cluster, now=now, left_alone=left)

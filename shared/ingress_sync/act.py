"""Carries out a plan for an ingress: writes the gateway and the status of objects, and says what is wrong.

Just before a write the gateway is read again: the document that is sent was made from exactly that version,
every part of others is in it as it was read, and the gateway is neither stopped nor busy. Certificates are
read from their Secrets here, into the request and nowhere else. A failed action becomes a failed outcome and
never hides another. Called by `reconcile` and the operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from shared.errors import AutomationError, LostLeaseError
from shared.ingress_sync import status, write
from shared.ingress_sync.certificates import BadSecretError, facts, pfx
from shared.ingress_sync.compile.names import prefix_of
from shared.ingress_sync.compiled import Finding
from shared.ingress_sync.observation import Observation, operational_state, provisioning_state
from shared.ingress_sync.ownership import assert_foreign_untouched, own_keys
from shared.ingress_sync.pace import pace
from shared.ingress_sync.state import PartRecord, PutInFlight, write_state
from shared.ingress_sync.write import Desk, Refusal, Step
from shared.model.duration import parse_duration
from shared.model.gateway import Document, parts
from shared.model.plan import Action, ActionKind, LeftAlone, Outcome, Plan, Status

if TYPE_CHECKING:
    from shared.clients.kube import KubeClient
    from shared.ingress_sync.compiled import Compiled, Upload

BUSY = timedelta(seconds=10)
"""How soon to look again when somebody else's operation is running on the gateway."""


@dataclass(frozen=True)
class Place:
    """Where a plan is carried out."""

    cluster: str
    desk: Desk
    kube: KubeClient


@dataclass(frozen=True)
class Done:
    """What became of a plan. `again`: when to look next. `is_at_rest`: nothing was to be done."""

    outcomes: list[Outcome]
    again: timedelta | None = None
    refusal: Refusal | None = None
    left_alone: tuple[LeftAlone, ...] = ()
    is_at_rest: bool = False


class _Declined(Exception):  # noqa: N818 - not an error: an action whose precondition no longer holds
    def __init__(self, message: str, again: timedelta = BUSY) -> None:
        super().__init__(message)
        self.again = again


def act(
    plan: Plan, compiled: Compiled, observation: Observation, place: Place, *, now: datetime, hurry: bool
) -> Done:
    """Say what is wrong, write the gateway if it is time, write what has become true into the objects.

    LostLeaseError ends everything at once; all else is in the outcomes.
    """
    outcomes = tell(compiled, observation, place, now)
    putting = [action for action in plan.actions if action.kind is ActionKind.PUT_GATEWAY]
    for action in plan.actions:
        if action.kind is ActionKind.UPDATE_INGRESS_STATUS:
            outcomes.append(guarded(action, lambda: update_status(action, place)))  # noqa: B023 - called at once
    if not putting:
        forget_change(place.desk)
        is_at_rest = not any(outcome.status is Status.FAILED for outcome in outcomes)
        return Done(outcomes, is_at_rest=is_at_rest and not plan.actions)
    pacing = pace(
        place.desk.state,
        place.desk.policy,
        now,
        inputs=observation.inputs_digest,
        change=compiled.change,
        hurry=hurry,
    )
    place.desk.claim.save(write_state(pacing.state))
    if pacing.wait:
        left = LeftAlone(subject=putting[0].target, reason=pacing.reason, message=pacing.message)
        return Done(outcomes, again=pacing.wait, left_alone=(left,))
    outcome, step = _put(putting[0], compiled, observation, place)
    return Done([*outcomes, outcome], again=step.again, refusal=step.refusal)


def _put(action: Action, compiled: Compiled, observation: Observation, place: Place) -> tuple[Outcome, Step]:
    try:
        step = put_gateway(action, compiled, observation, place)
    except LostLeaseError:
        raise
    except AutomationError as error:
        step = Step(message=str(error), event="WriteFailed", is_failure=True)
    status = Status.FAILED if step.is_failure else Status.SUCCEEDED if step.event else Status.SKIPPED
    data = {"event": step.event, "change": compiled.change.name} if step.event else {}
    short = msgspec.structs.replace(action, parameters={"changes": action.parameters.get("changes", {})})
    return Outcome(action=short, status=status, message=step.message or action.message, data=data), step


def forget_change(desk: Desk) -> None:
    """There is nothing to be written any more."""
    if desk.state.change_seen_at is not None:
        desk.save(change_seen_at=None, change_moved_at=None, change_inputs="")


def put_gateway(action: Action, compiled: Compiled, observation: Observation, place: Place) -> Step:
    """Send the compiled document, unless something has changed since it was compiled.

    LostLeaseError ends everything at once; what else goes wrong is in the step.
    """
    try:
        put = _announcement(compiled, observation, place.desk)
        body = _body(compiled, observation, place)
    except _Declined as declined:
        return Step(message=str(declined), again=declined.again)
    return write.send(place.desk, body, put)


def put_last_good(place: Place) -> Step:
    """Go back to the last good document, if there is one; the parts of others stay as they are now."""
    desk = place.desk
    good = write.last_good(desk)
    if good is None:
        return Step()
    live = desk.arm.get(desk.policy.gateway)
    try:
        _check_ready(live.document)
    except _Declined as declined:
        return Step(message=str(declined), again=declined.again)
    document = write.with_own(live.document, desk.state.parts, good.own)
    assert_foreign_untouched(live.document, document, _own(live.document, place))
    put = PutInFlight(
        id=desk.claim.run_id,
        document_digest=desk.state.last_good.digest if desk.state.last_good else "",
        change="ROLLBACK",
        etag=live.etag,
        announced_at=desk.now(),
        deadline=desk.now() + parse_duration(desk.policy.put_deadline),
        parts=good.parts,
        routes=good.routes,
        is_rollback=True,
    )
    return write.send(desk, msgspec.json.encode(document), put)


def _announcement(compiled: Compiled, observation: Observation, desk: Desk) -> PutInFlight:
    known = desk.state.parts
    records = {
        key: known[key] if key in known and known[key].sent == sent else PartRecord(sent=sent)
        for key, sent in compiled.parts.items()
    }
    return PutInFlight(
        id=desk.claim.run_id,
        document_digest=compiled.digest,
        change=compiled.change.name,
        etag=str((observation.gateway or {}).get("etag") or ""),
        announced_at=desk.now(),
        deadline=desk.now() + parse_duration(desk.policy.put_deadline),
        parts=records,
        owners=compiled.changed_owners,
        routes=compiled.routes,
        inputs=observation.inputs_digest,
    )


def _body(compiled: Compiled, observation: Observation, place: Place) -> bytes:
    """The request, checked against a fresh read of the gateway; raises `_Declined` or UnsafePlanError."""
    uploads = {upload.name: _certificate(upload, place.kube) for upload in compiled.uploads}
    desk = place.desk
    fresh, seen = desk.arm.get(desk.policy.gateway), observation.gateway or {}
    _check_ready(fresh.document)
    if (fresh.etag, provisioning_state(fresh.document)) != (seen.get("etag"), provisioning_state(seen)):
        raise _Declined("the gateway has changed since it was read", timedelta(seconds=1))
    assert_foreign_untouched(fresh.document, compiled.document, _own(fresh.document, place))
    return msgspec.json.encode(_with_uploads(compiled.document, uploads))


def _own(live: Document, place: Place) -> frozenset[str]:
    """What of the live gateway may be changed."""
    desk = place.desk
    prefix = prefix_of(place.cluster, desk.policy.prefix)
    return own_keys(live, prefix, desk.state.parts, desk.policy)


def _check_ready(gateway: Document) -> None:
    operational = operational_state(gateway)
    if operational not in ("", "Running"):
        raise _Declined(f"the gateway is {operational}; it is written when it runs", timedelta(minutes=1))
    if provisioning_state(gateway) in ("Updating", "Deleting"):
        raise _Declined("another operation is running on the gateway; writing now would cancel it")


def _certificate(upload: Upload, kube: KubeClient) -> dict[str, str]:
    """Data and password for one certificate, from its Secret as it is now."""
    secret = kube.find(f"/api/v1/namespaces/{upload.namespace}/secrets/{upload.secret}")
    name = f"{upload.namespace}/{upload.secret}"
    if secret is None or facts(secret).digest != upload.digest:
        raise _Declined(f"Secret {name} has changed since it was read", timedelta(seconds=1))
    try:
        made = pfx(secret)
    except BadSecretError as error:
        raise _Declined(f"Secret {name} cannot be used: {error}") from error
    return {"data": made.data, "password": made.password}


def _with_uploads(document: Document, uploads: Mapping[str, dict[str, str]]) -> Document:
    if not uploads:
        return document
    certificates = [
        {**part, "properties": {**part.get("properties", {}), **uploads[part["name"]]}}
        if part["name"] in uploads
        else part
        for part in parts(document, "sslCertificates")
    ]
    return {**document, "properties": {**document["properties"], "sslCertificates": certificates}}


# What users see


def tell(compiled: Compiled, observation: Observation, place: Place, now: datetime) -> list[Outcome]:
    """Events on the objects concerned, and an outcome for each object that is newly left out."""
    desk = place.desk
    search = desk.state.bisection
    suspects = {owner for group in search.groups for owner in group} if search else set()
    findings = [
        Finding(owner=one.owner, reason=one.reason, message=one.message)
        for one in compiled.quarantined
        if one.owner not in suspects  # held back for a write or two, and most of them innocent
    ]
    left_out = frozenset(status.digest_of_finding(one) for one in findings)
    findings += compiled.warnings
    said = {status.digest_of_finding(one): one for one in findings}
    new = [one for digest, one in said.items() if digest not in desk.state.told]
    outcomes = [
        quarantined(one.owner, one.message, one.reason)
        for one in new
        if status.digest_of_finding(one) in left_out
    ]
    problems = status.tell_findings(place.kube, new, observation.kubernetes.ingresses, now)
    if frozenset(said) != frozenset(desk.state.told):
        desk.save(told=tuple(sorted(said)))
    return outcomes + [_not_told(place, problem) for problem in problems]


def quarantined(owner: str, message: str, reason: str) -> Outcome:
    """The outcome, and so the event, of leaving an object out."""
    action = Action(kind=ActionKind.UPDATE_INGRESS_STATUS, target=owner, reason=reason, message=message)
    return Outcome(action=action, status=Status.SUCCEEDED, message=message, data={"event": "Quarantined"})


def _not_told(place: Place, problem: str) -> Outcome:
    action = Action(
        kind=ActionKind.UPDATE_INGRESS_STATUS, target=place.cluster, reason="EventNotWritten", message=problem
    )
    return Outcome(action=action, status=Status.SKIPPED, message=problem)


def update_status(action: Action, place: Place) -> Outcome:
    """Write the address into an Ingress, or take it out again."""
    namespace, _, name = action.target.partition("/")
    wanted = action.parameters
    done = status.publish_address(place.kube, namespace, name, wanted["uid"], wanted["loadBalancer"])
    done = done and status.publish_note(place.kube, namespace, name, wanted["uid"], wanted["note"])
    if not done:
        return Outcome(action=action, status=Status.SKIPPED, message=f"Ingress {action.target} is gone")
    return Outcome(action=action, status=Status.SUCCEEDED, message=action.message)


def guarded(action: Action, work: Callable[[], Outcome]) -> Outcome:
    """The outcome of an action; a failure becomes a failed one, but for a lost claim."""
    try:
        return work()
    except LostLeaseError:
        raise
    except AutomationError as error:
        return Outcome(action=action, status=Status.FAILED, message=str(error))

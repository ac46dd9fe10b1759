"""What is a reason to send what: pure. Objects go in, reasons come out; time is an argument.

For each source the last state of every object is kept, cut down to what matters. A change of that state may
be a reason; a list is compared with what was known, so that nothing that happened while no watch was running
is missed. Sends nothing and reads no clock: `gather` says when, `follow` brings the objects.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from shared.forwarder.objects import (
    Attachment,
    Bare,
    Conditioned,
    Event,
    IngressSpec,
    Slice,
    Specified,
)

POD_UNSCHEDULABLE = "PodUnschedulable"
VOLUME_ATTACH_FAILED = "VolumeAttachFailed"
NODE_NOT_READY = "NodeNotReady"
INGRESS_CHANGED = "IngressChanged"
ENDPOINTS_CHANGED = "EndpointsChanged"
ETCD_UNHEALTHY = "EtcdUnhealthy"
EVENTS = (
    POD_UNSCHEDULABLE,
    VOLUME_ATTACH_FAILED,
    NODE_NOT_READY,
    INGRESS_CHANGED,
    ENDPOINTS_CHANGED,
    ETCD_UNHEALTHY,
)

MOST_KNOWN = 20_000
"""Objects kept in mind per source. Beyond, each event of an unknown one counts as a reason: never fewer."""
PATIENCE_SECONDS = 60.0
"""How long a volume may attach or detach before that is a reason; CSI drivers take about half a minute."""
ETCD_FAILURES = 2
"""Failed checks in a row before etcd counts as unhealthy: one may be a restart of the API server."""

State = Any  # hashable, whatever the source's `look` returns


class Reason(NamedTuple):
    """One reason to send `event`: why, in CamelCase, and about which object."""

    event: str
    why: str
    subject: str


class References(NamedTuple):
    """What the Ingresses refer to, as `namespace/name`."""

    services: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Source:
    """One collection that is watched, and how its objects are judged."""

    name: str
    path: str
    event: str
    """What is sent."""
    shape: type
    """What a line is decoded to."""
    look: Callable[[Any], Hashable]
    """An object to the state that matters; None when it is not worth remembering."""
    judge: Callable[[State | None, State | None, References], str]
    """(before, now; None: not there) to why that is a reason; "" when it is none."""
    subject: Callable[[Any], str]
    is_trouble: Callable[[State], bool] = lambda _state: False
    """Whether an object in that state is worth saying again at each resync."""
    lingers: Callable[[State], str] = lambda _state: ""
    """Why it is a reason that an object stays in that state for PATIENCE_SECONDS."""
    query: Mapping[str, str] = field(default_factory=dict)
    metadata_only: bool = False
    page: int = 100
    """Objects per page of a list: what is in memory at once."""


class Known:
    """The last known state of one source's objects."""

    def __init__(self, source: Source, most: int = MOST_KNOWN) -> None:
        self.source = source
        self.overflowed = 0
        """Objects that found no room since the last list."""
        self._most = most
        self._states: dict[str, State] = {}
        self._fresh: dict[str, State] | None = None
        self._since: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._states)

    @property
    def states(self) -> Mapping[str, State]:
        """By `namespace/name`."""
        return self._states

    def begin_list(self) -> None:
        """What follows is everything there is; a list that was not ended is forgotten."""
        self._fresh = {}
        self.overflowed = 0

    def listed(self, thing: Any, references: References, now: float) -> Reason | None:
        """One object of a list."""
        assert self._fresh is not None, "begin_list comes first"
        key = key_of(thing)
        state = self.source.look(thing)
        why = self.source.judge(self._states.get(key), state, references)
        if state is not None:
            self._keep(self._fresh, key, state)
            self._note_time(key, state, now)
        return self._reason(why, thing)

    def end_list(self, references: References) -> Iterator[Reason]:
        """Reasons in what has gone since it was last seen."""
        before, self._states, self._fresh = self._states, self._fresh or {}, None
        for key, state in before.items():
            if key not in self._states:
                self._since.pop(key, None)
                if why := self.source.judge(state, None, references):
                    yield Reason(self.source.event, why, key)
        if self.overflowed:
            # Whether any of those has changed is not known.
            yield Reason(self.source.event, "TooManyToCompare", self.source.name)

    def changed(self, kind: str, thing: Any, references: References, now: float) -> Reason | None:
        """One line of a watch: ADDED, MODIFIED or DELETED."""
        key = key_of(thing)
        before = self._states.get(key)
        if kind == "DELETED":
            self._states.pop(key, None)
            self._since.pop(key, None)
            # Of one that was not kept, its last words say what it was.
            gone = before if before is not None else self.source.look(thing)
            return self._reason(self.source.judge(gone, None, references) if gone is not None else "", thing)
        state = self.source.look(thing)
        if state == before:
            return None
        if state is None:
            self._states.pop(key, None)
            self._since.pop(key, None)
        else:
            self._keep(self._states, key, state)
            self._note_time(key, state, now)
        return self._reason(self.source.judge(before, state, references), thing)

    def lingering(self, now: float) -> Iterator[Reason]:
        """Objects that have stayed too long in a state in which none should stay; each is said once."""
        for key, since in list(self._since.items()):
            state = self._states.get(key)
            if state is None:
                del self._since[key]
            elif now - since >= PATIENCE_SECONDS:
                self._since[key] = float("inf")
                yield Reason(self.source.event, self.source.lingers(state), key)

    def trouble(self) -> Reason | None:
        """What is still wrong, to be said again."""
        for key, state in self._states.items():
            if self.source.is_trouble(state):
                return Reason(self.source.event, "Resync", key)
        return None

    def _keep(self, states: dict[str, State], key: str, state: State) -> None:
        if len(states) < self._most or key in states:
            states[key] = state
        else:
            self.overflowed += 1

    def _note_time(self, key: str, state: State, now: float) -> None:
        if self.source.lingers(state):
            self._since.setdefault(key, now)
        else:
            self._since.pop(key, None)

    def _reason(self, why: str, thing: Any) -> Reason | None:
        return Reason(self.source.event, why, self.source.subject(thing)) if why else None


class Etcd:
    """What the API server says of its etcd."""

    def __init__(self) -> None:
        self._failures = 0

    def checked(self, is_well: bool, said: str) -> Reason | None:
        """One check; a reason when the second in a row has failed."""
        self._failures = 0 if is_well else self._failures + 1
        return Reason(ETCD_UNHEALTHY, "NotReady", said) if self._failures == ETCD_FAILURES else None

    def trouble(self) -> Reason | None:
        """Still not well."""
        return Reason(ETCD_UNHEALTHY, "Resync", "etcd") if self._failures >= ETCD_FAILURES else None


def references_of(states: Mapping[str, State]) -> References:
    """What the Ingresses refer to, from their states."""
    services: set[str] = set()
    secrets: set[str] = set()
    for _, of_services, of_secrets in states.values():
        services.update(of_services)
        secrets.update(of_secrets)
    return References(frozenset(services), frozenset(secrets))


def key_of(thing: Any) -> str:
    """`namespace/name`, or the name alone; the uid of pods and Events, which come again under one name."""
    metadata = thing.metadata
    if isinstance(thing, Event) or (isinstance(thing, Conditioned) and metadata.namespace):
        return str(metadata.uid)
    return f"{metadata.namespace}/{metadata.name}" if metadata.namespace else str(metadata.name)


# How each source's objects are judged


def _full_name(thing: Any) -> str:
    metadata = thing.metadata
    return f"{metadata.namespace}/{metadata.name}" if metadata.namespace else str(metadata.name)


def _look_at_pod(pod: Conditioned) -> Hashable:
    scheduled = pod.condition("PodScheduled")
    if scheduled is None or scheduled.status != "False" or scheduled.reason != "Unschedulable":
        return None
    return True


def _judge_pod(before: State | None, now: State | None, _: References) -> str:
    return "Unschedulable" if now and not before else ""


def _look_at_ready(thing: Conditioned) -> Hashable:
    """(uid, whether it is Ready): a node that comes again under its name is another one."""
    ready = thing.condition("Ready")
    return thing.metadata.uid, ready is not None and ready.status == "True"


def _is_unready(state: State) -> bool:
    return not state[1]


def _ready(kind: str) -> Callable[[State | None, State | None, References], str]:
    def judge(before: State | None, now: State | None, _: References) -> str:
        if now is None or (before is not None and before[0] != now[0]):
            return f"{kind}Gone"
        return f"{kind}NotReady" if _is_unready(now) and (before is None or before[1]) else ""

    return judge


def _look_at_event(event: Event) -> Hashable:
    return max(event.count or 0, event.series.count if event.series else 0, 1)


def _judge_event(before: State | None, now: State | None, _: References) -> str:
    return "FailedAttachVolume" if now is not None and now != before else ""


def _event_subject(event: Event) -> str:
    about = event.involved_object
    return f"{about.namespace}/{about.name}" if about.namespace else about.name or _full_name(event)


def _look_at_attachment(attachment: Attachment) -> Hashable:
    """(what it is doing, its error): ("", 0) of one that is attached and well."""
    status = attachment.status
    errors = [error.message for error in (status.attach_error, status.detach_error) if error]
    if attachment.metadata.deletion_timestamp:
        return "Detach", hash(tuple(errors)) if errors else 0
    return "" if status.attached else "Attach", hash(tuple(errors)) if errors else 0


def _judge_attachment(before: State | None, now: State | None, _: References) -> str:
    if now is None or not now[1] or (before is not None and before[1] == now[1]):
        return ""
    return f"{now[0] or 'Attach'}Error"


def _look_at_specified(thing: Specified) -> int:
    """A fingerprint of what somebody wrote; what controllers write into the status does not change it."""
    metadata = thing.metadata
    return hash((bytes(thing.spec), bytes(metadata.annotations), metadata.deletion_timestamp is None))


def _look_at_ingress(ingress: Specified) -> Hashable:
    namespace = ingress.metadata.namespace
    try:
        spec = msgspec.json.decode(ingress.spec, type=IngressSpec)
    except msgspec.MsgspecError:
        spec = IngressSpec()  # an Ingress that we do not understand still changes
    services, secrets = (
        tuple(f"{namespace}/{name}" for name in sorted(names)) for names in (spec.services, spec.secrets)
    )
    return _look_at_specified(ingress), services, secrets


def _judge_ingress(before: State | None, now: State | None, _: References) -> str:
    return "" if before == now else "IngressChanged"


def _look_at_service(service: Specified) -> Hashable:
    return _full_name(service), _look_at_specified(service)


def _look_at_secret(secret: Bare) -> Hashable:
    return _full_name(secret), secret.metadata.resource_version


def _look_at_slice(found: Slice) -> Hashable:
    metadata = found.metadata
    # API servers always count; where nobody did, any change of the object counts.
    version = metadata.generation or metadata.resource_version
    return f"{metadata.namespace}/{metadata.labels.service}", metadata.uid, version


def _referred(why: str, to: str) -> Callable[[State | None, State | None, References], str]:
    """Of things that matter only while an Ingress refers to them; their state begins with the name."""

    def judge(before: State | None, now: State | None, references: References) -> str:
        names = {state[0] for state in (before, now) if state is not None}
        return why if before != now and names & getattr(references, to) else ""

    return judge


def _referred_secret(namespace: str) -> Source:
    where = f"/namespaces/{namespace}" if namespace != "*" else ""
    return Source(
        name=f"secrets/{namespace}" if where else "secrets",
        path=f"/api/v1{where}/secrets",
        event=INGRESS_CHANGED,
        shape=Bare,
        look=_look_at_secret,
        judge=_referred("SecretChanged", "secrets"),
        subject=_full_name,
        query={"fieldSelector": "type=kubernetes.io/tls"},
        metadata_only=True,
        page=250,
    )


INGRESSES = Source(
    name="ingresses",
    path="/apis/networking.k8s.io/v1/ingresses",
    event=INGRESS_CHANGED,
    shape=Specified,
    look=_look_at_ingress,
    judge=_judge_ingress,
    subject=_full_name,
)

SOURCES = (
    Source(
        name="pods",
        path="/api/v1/pods",
        event=POD_UNSCHEDULABLE,
        shape=Conditioned,
        look=_look_at_pod,
        judge=_judge_pod,
        subject=_full_name,
        is_trouble=bool,
        # Running pods never come: one that is bound leaves this selection.
        query={"fieldSelector": "status.phase=Pending,spec.nodeName="},
    ),
    Source(
        name="nodes",
        path="/api/v1/nodes",
        event=NODE_NOT_READY,
        shape=Conditioned,
        look=_look_at_ready,
        judge=_ready("Node"),
        subject=_full_name,
        is_trouble=_is_unready,
        page=50,
    ),
    Source(
        name="events",
        path="/api/v1/events",
        event=VOLUME_ATTACH_FAILED,
        shape=Event,
        look=_look_at_event,
        judge=_judge_event,
        subject=_event_subject,
        query={"fieldSelector": "reason=FailedAttachVolume"},
    ),
    Source(
        name="volumeattachments",
        path="/apis/storage.k8s.io/v1/volumeattachments",
        event=VOLUME_ATTACH_FAILED,
        shape=Attachment,
        look=_look_at_attachment,
        judge=_judge_attachment,
        subject=_full_name,
        is_trouble=lambda state: bool(state[1]),
        lingers=lambda state: f"{state[0]}Slow" if state[0] else "",
    ),
    INGRESSES,
    Source(
        name="services",
        path="/api/v1/services",
        event=INGRESS_CHANGED,
        shape=Specified,
        look=_look_at_service,
        judge=_referred("ServiceChanged", "services"),
        subject=_full_name,
    ),
    Source(
        name="endpointslices",
        path="/apis/discovery.k8s.io/v1/endpointslices",
        event=ENDPOINTS_CHANGED,
        shape=Slice,
        look=_look_at_slice,
        judge=_referred("EndpointsChanged", "services"),
        subject=lambda found: f"{found.metadata.namespace}/{found.metadata.labels.service}",
        metadata_only=True,
        page=250,
    ),
    Source(
        name="etcd",
        path="/api/v1/namespaces/kube-system/pods",
        event=ETCD_UNHEALTHY,
        shape=Conditioned,
        look=_look_at_ready,
        judge=_ready("Member"),
        subject=_full_name,
        is_trouble=_is_unready,
        # Static pods of kubeadm; on AKS there is none to be seen.
        query={"labelSelector": "component=etcd"},
    ),
)


def sources(events: frozenset[str], secret_namespaces: tuple[str, ...] = ()) -> tuple[Source, ...]:
    """What to watch for those events; Secrets only in the namespaces named, `*` for all of them."""
    found = tuple(source for source in SOURCES if source.event in events)
    if not events & {INGRESS_CHANGED, ENDPOINTS_CHANGED}:
        return found
    # Endpoints matter only with the Ingresses that lead to them.
    if INGRESSES not in found:
        found = (INGRESSES, *found)
    return found + tuple(_referred_secret(namespace) for namespace in secret_namespaces)

"""Kubernetes Events on the Pod, PersistentVolume and Node that an outcome is about: one sentence, with the id
of the evidence. Called by `reconcile`; an event that cannot be written spoils nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from shared.disk_release.observation import Observation
from shared.log import log_event
from shared.model.disk import key
from shared.model.plan import Outcome, Status
from shared.record import VERBS
from shared.runtime.kube_event import Creator, ObjectRef, tell

log = logging.getLogger(__name__)


def tell_cluster(kube: Creator, observation: Observation, outcomes: Iterable[Outcome], now: datetime) -> None:
    """One event on each object concerned, for everything that was done or has failed."""
    for outcome in outcomes:
        if outcome.status is Status.SKIPPED:
            continue
        proof = outcome.data.get("evidence", "")
        problems = tell(
            kube,
            objects_of(outcome, observation),
            reason=reason_of(outcome),
            message=sentence(outcome),
            key=proof or outcome.message,
            now=now,
            is_warning=outcome.status is Status.FAILED,
        )
        for problem in problems:
            log_event(log, "EventNotWritten", level=logging.WARNING, problem=problem)


def sentence(outcome: Outcome) -> str:
    """What all three objects are told."""
    proof = outcome.data.get("evidence")
    return f"{outcome.message} (keeper explain {proof})" if proof else outcome.message


def reason_of(outcome: Outcome) -> str:
    """The same word as in the outgoing event."""
    own = outcome.data.get("event")
    if isinstance(own, str) and own:
        return own
    kind = outcome.action.kind
    return f"{kind}Failed" if outcome.status is Status.FAILED else VERBS[kind]


def objects_of(outcome: Outcome, observation: Observation) -> Iterator[ObjectRef]:
    """The node, the volumes of the disks, and the pods that use or want them."""
    wanted = outcome.action.parameters
    node = observation.nodes.get(str(wanted.get("node") or ""))
    if node is not None:
        yield ObjectRef(api_version="v1", kind="Node", name=node.name, uid=node.uid)
    for name in _volume_names(wanted, observation):
        volume = observation.volumes.get(name)
        if volume is None:
            continue
        yield ObjectRef(api_version="v1", kind="PersistentVolume", name=volume.name, uid=volume.uid)
        for pod in observation.pods_of_volume.get(name, ()):
            yield ObjectRef(api_version="v1", kind="Pod", name=pod.name, uid=pod.uid, namespace=pod.namespace)


def _volume_names(wanted: dict[str, Any], observation: Observation) -> list[str]:
    found: dict[str, None] = {}
    for disk in wanted.get("disks", ()):
        for volume in observation.volumes_of_disk.get(key(disk["id"]), ()):
            found[volume.name] = None
    for attachment in observation.attachments:
        if attachment.name == wanted.get("attachment"):
            found[attachment.volume] = None
    return list(found)

"""What users of the cluster see: Events on pods and nodes, and the ConfigMap `kubekeeper-status`.

Events are written once for each thing to say, not once for each pass: what was last said of an object is
remembered in the automation's state. Telling never changes what is done: a cluster that takes no Events costs
a note in the outcome's message, nothing else. Called by `reconcile`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from shared.errors import ApiError, ConflictError, NotFoundError
from shared.model.plan import canonical_json

if TYPE_CHECKING:
    from shared.clients.kube import KubeClient

COMPONENT = "kubekeeper"
STATUS_NAME = "kubekeeper-status"
STATUS_PATH = f"/api/v1/namespaces/kube-system/configmaps/{STATUS_NAME}"
EVENTS_PER_PASS = 40
"""Most Events written in one pass; the rest is said in the next ones."""
MESSAGE_LENGTH = 1000
"""Kubernetes takes 1,024 characters."""

NORMAL, WARNING = "Normal", "Warning"


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One Event to be: about a Pod (with its namespace) or a Node."""

    kind: str
    name: str
    reason: str
    message: str
    namespace: str = ""
    uid: str = ""
    type: str = NORMAL

    @property
    def subject(self) -> str:
        """Names the object for good: its uid where it is known."""
        return self.uid or f"{self.kind}/{self.namespace}/{self.name}"

    @property
    def digest(self) -> str:
        """Equal for equal things to say; figures in the message do not make it another."""
        words = "".join(letter for letter in self.message if not letter.isdigit())
        return hashlib.sha256(f"{self.reason} {words}".encode()).hexdigest()[:12]


def tell(
    kube: KubeClient, notices: Iterable[Notice], told: Mapping[str, str], now: datetime
) -> dict[str, str]:
    """Write what was not said before; returns what has been said of the objects at hand, to be remembered.

    ApiError when the API server does not take Events.
    """
    said: dict[str, str] = {}
    written = 0
    for notice in notices:
        if told.get(notice.subject) == notice.digest:
            said[notice.subject] = notice.digest
        elif written < EVENTS_PER_PASS:
            _write(kube, notice, now)
            said[notice.subject] = notice.digest
            written += 1
    return said


def write_status(kube: KubeClient, document: Mapping[str, Any], last_digest: str, now: datetime) -> str:
    """Put the document into the ConfigMap if it has changed; returns its digest, to be remembered."""
    digest = hashlib.sha256(canonical_json(document)).hexdigest()[:16]
    if digest == last_digest:
        return digest
    text = msgspec.json.format(canonical_json(document), indent=2).decode()
    data = {"autoscaling": text, "autoscalingUpdatedAt": f"{now:%Y-%m-%dT%H:%M:%SZ}"}
    body: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": STATUS_NAME}}
    try:
        kube.patch(STATUS_PATH, {"data": data})
    except NotFoundError:
        try:
            kube.create(STATUS_PATH.rpartition("/")[0], {**body, "data": data})
        except ConflictError:  # another automation made it just now
            kube.patch(STATUS_PATH, {"data": data})
    return digest


def _write(kube: KubeClient, notice: Notice, now: datetime) -> None:
    namespace = notice.namespace or "default"
    at = f"{now:%Y-%m-%dT%H:%M:%SZ}"
    involved = {"apiVersion": "v1", "kind": notice.kind, "name": notice.name, "uid": notice.uid}
    involved |= {"namespace": notice.namespace} if notice.namespace else {}
    unique = hashlib.sha256(f"{notice.subject} {notice.digest} {at}".encode()).hexdigest()[:16]
    document = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{notice.name[:200]}.{unique}", "namespace": namespace},
        "involvedObject": {name: value for name, value in involved.items() if value},
        "reason": notice.reason,
        "message": notice.message[:MESSAGE_LENGTH],
        "type": notice.type,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
    try:
        kube.create(f"/api/v1/namespaces/{namespace}/events", document)
    except ConflictError:
        return  # a run that was interrupted has written it
    except ApiError as error:
        if error.status in (403, 404) and notice.namespace:
            return  # the namespace is gone, or being deleted: nobody is left to read it
        raise

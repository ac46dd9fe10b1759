"""What controllers see and write: objects decoded once a version, written under the API's own rules.

All of it happens under the store's lock, which whoever calls holds. Documents that are read are shared:
nobody changes them, new ones are made of their parts.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sandbox.kube import kinds, rules
from sandbox.kube.api import KubeApi
from sandbox.kube.errors import RefusalError
from sandbox.kube.kinds import Kind
from sandbox.kube.selectors import Matches
from sandbox.kube.store import Document, Key, Record, Selection


class Objects:
    """The cluster as one controller after the other sees it."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._store = api.store
        self.lock = api.store.lock
        self._said: dict[tuple[str, str, str], str] = {}
        """The name of the event by whom it is about (uid), reason and message."""
        self._decoded: dict[tuple[Kind, Key], tuple[int, Document]] = {}

    def now(self) -> datetime:
        return self._api.clock.now()

    # Reading

    def get(self, kind: Kind, name: str, namespace: str = "") -> Document | None:
        record = self._store.get(kind, (namespace, name))
        return None if record is None else self._decode(kind, record)

    def all(self, kind: Kind, namespace: str = "", labels: Matches | None = None) -> list[Document]:
        """In the order of their names."""
        selection = Selection(namespace, labels)
        return [self._decode(kind, record) for record in self._store.select(kind, selection)]

    def pods_on(self, node: str) -> list[Document]:
        """The pods that are bound to a node; to none if that is empty."""

        def is_there(fields: Any) -> bool:
            return bool(fields.get("spec.nodeName", "") == node)

        selection = Selection(fields=is_there)
        return [self._decode(kinds.PODS, record) for record in self._store.select(kinds.PODS, selection)]

    def _decode(self, kind: Kind, record: Record) -> Document:
        known = self._decoded.get((kind, record.key))
        if known is None or known[0] != record.revision:
            known = self._decoded[kind, record.key] = (record.revision, record.decode())
        return known[1]

    def forget(self, kind: Kind, key: Key) -> None:
        """Drops what is remembered of an object that has gone."""
        if self._store.get(kind, key) is None:
            self._decoded.pop((kind, key), None)

    # Writing

    def create(self, kind: Kind, document: Document, namespace: str = "") -> Document | None:
        """None when one of that name exists, or its namespace has gone."""
        try:
            return self._api.create(kind, document, namespace)
        except RefusalError as refusal:
            if refusal.status in (404, 409):
                return None
            raise

    def change(self, kind: Kind, old: Document, **fields: object) -> Document:
        """Replaces top-level fields, but for the status; what came of it."""
        return self._api.update(kind, old, {**old, **fields})

    def change_status(self, kind: Kind, old: Document, **fields: object) -> Document:
        """Replaces fields of the status; those that are None go."""
        status = {**(old.get("status") or {}), **fields}
        status = {name: value for name, value in status.items() if value is not None}
        return self._api.update(kind, old, {**old, "status": status}, "status")

    def set_condition(self, kind: Kind, old: Document, name: str, status: str, **more: str) -> Document:
        """One condition of the status; nothing is written when it says the same."""
        known = rules.condition(old, name)
        if (
            known is not None
            and known["status"] == status
            and all(known.get(k) == v for k, v in more.items())
        ):
            return old
        new = rules.with_condition(old, name, status, self.now(), **more)
        return self._api.update(kind, old, new, "status")

    def delete(self, kind: Kind, old: Document, grace: int | None = None) -> None:
        """Begins the deletion of this very object."""
        options: Document = {"preconditions": {"uid": old["metadata"]["uid"]}}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        self._api.delete(kind, old, options)

    def bind(self, pod: Document, node: str) -> None:
        self._api.bind({**pod, "metadata": dict(pod["metadata"])}, node)

    def tell(
        self,
        kind: Kind,
        about: Document,
        reason: str,
        message: str,
        *,
        by: str,
        is_warning: bool = False,
    ) -> None:
        """An event; when it has been said before, that is counted up."""
        metadata = about["metadata"]
        namespace = metadata.get("namespace") or "default"
        regarding = {"kind": kind.kind, "apiVersion": kind.api_version, "name": metadata["name"]}
        regarding |= {"uid": metadata["uid"]}
        if metadata.get("namespace"):
            regarding["namespace"] = namespace
        now = rules.timestamp(self.now())
        saying = (metadata["uid"], reason, message)
        known = self.get(kinds.EVENTS, self._said.get(saying, ""), namespace)
        if known is not None:
            fields = {"count": known.get("count", 1) + 1, "lastTimestamp": now}
            self._api.update(kinds.EVENTS, known, {**known, **fields})
            return
        self._said[saying] = f"{metadata['name']}.{rules.generated_suffix(16)}"
        document = {
            "metadata": {"name": self._said[saying]},
            "involvedObject": regarding,
            "type": "Warning" if is_warning else "Normal",
            "reason": reason,
            "message": message,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": by},
            "reportingComponent": by,
        }
        self.create(kinds.EVENTS, document, namespace)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """Does `work` when that time has gone by, under the lock."""

        def locked() -> None:
            with self._store.lock:
                work()

        self._api.clock.at(self.now() + timedelta(seconds=seconds), locked)


def controller_of(document: Document) -> Document | None:
    """The owner that controls an object."""
    owners = document["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), None)


def is_going(document: Document) -> bool:
    return bool(document["metadata"].get("deletionTimestamp"))


def is_over(pod: Document) -> bool:
    """Its containers have ended for good."""
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def is_true(document: Document, name: str) -> bool:
    """Whether that condition of the status is True."""
    found = rules.condition(document, name)
    return found is not None and found["status"] == "True"


def key_of(document: Document) -> Key:
    metadata = document["metadata"]
    return metadata.get("namespace", ""), metadata["name"]

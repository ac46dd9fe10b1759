"""Plays the external-attacher of a CSI driver: turns VolumeAttachments into attached disks.

The attach/detach controller (the real one, or the stand-in's) creates and deletes VolumeAttachment objects;
this is the sidecar that acts on them: it adds its finalizer, attaches, reports, and on deletion detaches and
lets go. What attaching means is the caller's: a function that raises says no, and its message becomes the
error on the object, to be tried again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

import urllib3

from sandbox.kube_client import Document, KubeClient, KubeError, Watch

ATTACHMENTS = "/apis/storage.k8s.io/v1/volumeattachments"
DRIVER = "disk.csi.azure.com"
RETRY_SECONDS = 1.0

Act = Callable[[str, str], object]
"""Called with (volume handle, node name)."""


class Attacher:
    """A context manager around one thread that follows VolumeAttachments of one driver."""

    def __init__(self, client: KubeClient, *, attach: Act, detach: Act, driver: str = DRIVER) -> None:
        self._client = client
        self._attach = attach
        self._detach = detach
        self._driver = driver
        self._stopping = threading.Event()
        self._watch: Watch | None = None
        self._retries: dict[str, float] = {}
        self._thread = threading.Thread(target=self._follow, name="attacher", daemon=True)

    @property
    def finalizer(self) -> str:
        return "external-attacher/" + self._driver.replace(".", "-")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._watch is not None:
            self._watch.close()
        self._thread.join(10)

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                items, version = self._client.list(ATTACHMENTS)
                for item in items:
                    self._handle(item)
                self._watch_from(version)
            except (KubeError, urllib3.exceptions.HTTPError, OSError):
                self._stopping.wait(RETRY_SECONDS)

    def _watch_from(self, version: str) -> None:
        # Short, so that what failed is tried again by the list that follows.
        with self._client.watch(ATTACHMENTS, resourceVersion=version, timeoutSeconds=5) as watch:
            self._watch = watch
            for kind, item in watch.events():
                if kind == "ERROR":
                    return
                if kind != "DELETED":
                    self._handle(item)

    def _handle(self, attachment: Document) -> None:
        metadata, spec = attachment["metadata"], attachment["spec"]
        if spec["attacher"] != self._driver or self._retries.get(metadata["uid"], 0) > time.monotonic():
            return
        try:
            if metadata.get("deletionTimestamp"):
                self._let_go(attachment)
            elif not attachment.get("status", {}).get("attached"):
                self._take(attachment)
        except KubeError as error:
            if error.status not in (404, 409):
                raise

    def _take(self, attachment: Document) -> None:
        path = f"{ATTACHMENTS}/{attachment['metadata']['name']}"
        finalizers = attachment["metadata"].get("finalizers", [])
        if self.finalizer not in finalizers:
            self._client.patch(path, {"metadata": {"finalizers": [*finalizers, self.finalizer]}})
        error = self._try(self._attach, attachment)
        status = {"attached": True, "attachError": None} if error is None else {"attachError": error}
        self._client.patch(f"{path}/status", {"status": {"attached": False, **status}})

    def _let_go(self, attachment: Document) -> None:
        path = f"{ATTACHMENTS}/{attachment['metadata']['name']}"
        finalizers = attachment["metadata"].get("finalizers", [])
        if self.finalizer not in finalizers:
            return
        error = self._try(self._detach, attachment)
        if error is not None:
            self._client.patch(f"{path}/status", {"status": {"detachError": error}})
            return
        kept = [name for name in finalizers if name != self.finalizer]
        self._client.patch(path, {"metadata": {"finalizers": kept}})

    def _try(self, act: Act, attachment: Document) -> Document | None:
        """What went wrong, as the object's status says it; None when it is done."""
        spec = attachment["spec"]
        volume = self._client.get(f"/api/v1/persistentvolumes/{spec['source']['persistentVolumeName']}")
        try:
            act(volume["spec"]["csi"]["volumeHandle"], spec["nodeName"])
        except Exception as error:  # noqa: BLE001 - whatever the driver says no with is shown on the object
            self._retries[attachment["metadata"]["uid"]] = time.monotonic() + RETRY_SECONDS
            return {"message": str(error), "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        return None

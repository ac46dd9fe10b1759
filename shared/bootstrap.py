"""Builds what a run needs once per worker process: settings, clients, the clock.

Everything is made when first asked for, because importing the SDKs costs more than most runs. Nothing kept
here is state: a new process starts with nothing and loses nothing. Called by the functions, the CLI and
tests.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shared.errors import SettingsError
from shared.log import install_redaction
from shared.model.duration import parse_duration
from shared.trace import DESTINATIONS

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.data.tables import TableServiceClient
    from azure.storage.blob import BlobServiceClient
    from azure.storage.queue import QueueServiceClient

    from shared.clients.arm import Arm
    from shared.clients.blob import BlobStore, PageBlob
    from shared.clients.eventgrid import Topic
    from shared.clients.kube import KubeClient
    from shared.clients.queue import Queue
    from shared.clients.table import Table
    from shared.runtime.claim import Claims
    from shared.runtime.journal import Journal
    from shared.runtime.operation import OperationRecords
    from shared.settings import Cluster, KubernetesConnection, Settings

SETTINGS_TTL_SECONDS = 60
"""How long a worker goes on with a configuration read from a blob; a file is read when it changes."""

HOST_JSON = Path(__file__).resolve().parents[1] / "host.json"


class Clients:
    """What automations and triggers reach the outside with. `environ` holds the app settings; `credential`
    stands in for the app's own Entra identity, where a caller has another.
    """

    def __init__(
        self, environ: Mapping[str, str] = os.environ, credential: TokenCredential | None = None
    ) -> None:
        self.environ = environ
        self._credential = credential
        self._kube: dict[KubernetesConnection, KubeClient] = {}
        self._settings: tuple[int, Settings] | None = None
        self._lock = threading.RLock()

    def now(self) -> datetime:
        """The current time, aware, in UTC; the only clock that automations see."""
        return datetime.now(UTC)

    def settings(self) -> Settings:
        """The configuration, read again when it may have changed; SettingsError says what is wrong."""
        from shared.settings import DEFAULT_CONFIG, load_settings

        with self._lock:
            try:
                version = Path(self.environ.get("KUBEKEEPER_CONFIG") or DEFAULT_CONFIG).stat().st_mtime_ns
            except OSError:  # an address, not a file
                version = int(time.monotonic()) // SETTINGS_TTL_SECONDS
            if self._settings is None or self._settings[0] != version:
                self._settings = (version, load_settings(self.environ))
            return self._settings[1]

    def blobs(self, container: str) -> BlobStore:
        """The store of a container of the app's account."""
        from shared.clients.blob import BlobStore

        return BlobStore(self._blob_service.get_container_client(container))

    def page_blob(self, url: str) -> PageBlob:
        """An unmanaged disk, by its address; SettingsError when that is not one of Azure's."""
        from shared.clients.blob import page_blob

        return page_blob(url, self.environ)

    def queue(self, name: str) -> Queue:
        """A queue of the app's account."""
        from shared.clients.queue import Queue

        return Queue(self.queue_service.get_queue_client(name))

    def table(self, name: str) -> Table:
        """A table of the app's account."""
        from shared.clients.table import Table

        return Table(self._table_service.get_table_client(name))

    def kube(self, cluster: Cluster) -> KubeClient:
        """The cluster's API server; SettingsError when the configuration does not say where it is."""
        from shared.clients.kube import kube_client

        connection = cluster.kubernetes
        if connection is None:
            raise SettingsError(
                f"cluster '{cluster.name}' has no 'kubernetes' in the configuration; add its API server"
            )
        with self._lock:
            if connection not in self._kube:
                self._kube[connection] = kube_client(connection, self.environ, lambda: self.credential)
            return self._kube[connection]

    @cached_property
    def arm(self) -> Arm:
        """Azure Resource Manager, as the app's identity sees it."""
        from shared.clients.arm import arm

        return arm(self.environ, credential=self.credential, now=self.now)

    @cached_property
    def credential(self) -> TokenCredential:
        """The app's Entra identity."""
        from shared.clients.storage import credential

        return self._credential or credential(self.environ)

    @cached_property
    def claims(self) -> Claims:
        """Claims on (cluster, automation)."""
        from shared.runtime.claim import LEASE, LONGEST_LEASE, SHORTEST_LEASE, Claims

        lease = self.duration("KUBEKEEPER_LEASE", LEASE)
        if not SHORTEST_LEASE <= lease <= LONGEST_LEASE:
            raise SettingsError("app setting 'KUBEKEEPER_LEASE' must be from 15s to 60s, as Azure has it")
        return Claims(self.blobs, lease)

    @cached_property
    def journal(self) -> Journal:
        """What was done."""
        from shared.runtime.journal import TABLE, Journal

        return Journal(self.table(TABLE))

    @cached_property
    def operations(self) -> OperationRecords:
        """One-off operations and what became of them."""
        from shared.runtime.operation import TABLE, OperationRecords

        return OperationRecords(self.table(TABLE))

    @cached_property
    def events(self) -> Topic | None:
        """Where outgoing events go; None when no topic is configured."""
        from shared.clients.eventgrid import event_topic

        return event_topic(self.environ)

    @cached_property
    def queue_service(self) -> QueueServiceClient:
        """The account's queues."""
        from shared.clients.queue import queue_service

        return queue_service(self.environ)

    @cached_property
    def max_dequeue_count(self) -> int:
        """How often the host delivers a message before it goes to the poison queue, from host.json."""
        try:
            host: dict[str, Any] = msgspec.json.decode(HOST_JSON.read_bytes())
        except (OSError, msgspec.DecodeError):
            host = {}
        return int(host.get("extensions", {}).get("queues", {}).get("maxDequeueCount", 5))

    def duration(self, setting: str, default: timedelta) -> timedelta:
        """An app setting written like `30s`; SettingsError when it is not a duration."""
        text = self.environ.get(setting)
        if not text:
            return default
        try:
            return parse_duration(text)
        except ValueError as error:
            raise SettingsError(f"app setting '{setting}': {error}") from error

    @cached_property
    def _blob_service(self) -> BlobServiceClient:
        from shared.clients.blob import blob_service

        return blob_service(self.environ)

    @cached_property
    def _table_service(self) -> TableServiceClient:
        from shared.clients.table import table_service

        return table_service(self.environ)


@functools.cache
def clients() -> Clients:
    """This worker's clients, built at the first call."""
    install_redaction()
    if any(os.environ.get(setting) for setting in DESTINATIONS):
        from shared.clients.spans import send_spans

        send_spans(os.environ)
    return Clients()

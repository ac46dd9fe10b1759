"""Timer triggers: one holder among all hosts on a storage account, a status blob per function, no catching
up.

The holder keeps a lease; a host that dies is replaced when its lease has run out. A lease lost while holding
is logged and the timer goes on, so two hosts may tick at once: the platform does the same.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from sandbox.host.configuration import Function
from sandbox.host.schedule import Ncrontab, ScheduleStatus, after_run, first_status, is_past_due
from sandbox.host.workers import InvocationError, Workers

log = logging.getLogger("host.timer")
CONTAINER = "azure-webjobs-hosts"


def utc_now() -> datetime:
    return datetime.now(UTC)


class TimerListener:
    """Runs one timer function."""

    def __init__(
        self, function: Function, workers: Workers, storage: str, host_id: str, lease: timedelta
    ) -> None:
        from azure.storage.blob import BlobServiceClient

        self.function = function
        self.schedule = Ncrontab(function.trigger["schedule"])
        self._workers = workers
        self._container = BlobServiceClient.from_connection_string(storage).get_container_client(CONTAINER)
        name = f"Host.Functions.{function.name}"
        self._lock_blob = self._container.get_blob_client(f"locks/{host_id}/{name}.Listener")
        self._status_blob = self._container.get_blob_client(f"timers/{host_id}/{name}/status")
        self._lease_seconds = int(lease.total_seconds())
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"timer {function.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Stop ticking; wait for a running call until `deadline` (monotonic), then give the lease back."""
        self._stopping.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        lease = self._acquire()
        if lease is None:
            return
        renewal = threading.Thread(target=self._renew, args=(lease,), name="timer lease", daemon=True)
        renewal.start()
        try:
            self._tick()
        finally:
            renewal.join(1)
            self._release(lease)

    def _tick(self) -> None:
        monitored = self.schedule.is_monitored(utc_now())
        status, missed = self._recorded() if monitored else (None, False)
        if missed or self.function.trigger.get("runOnStartup"):
            status = self._invoke(status, missed, monitored)
        while True:
            now = utc_now()
            due = status.next if status else self.schedule.next(now)
            if self._stopping.wait(max(0.0, (due - now).total_seconds())):
                return
            status = self._invoke(status, False, monitored)

    def _recorded(self) -> tuple[ScheduleStatus, bool]:
        now, blob = utc_now(), self._load_status()
        if blob is None:
            status, missed = first_status(self.schedule, now), False
        else:
            status, missed = is_past_due(self.schedule, blob, now)
        if status != blob:
            self._save_status(status)
        return status, missed

    def _invoke(self, status: ScheduleStatus | None, past_due: bool, monitored: bool) -> ScheduleStatus:
        invoked = utc_now()
        payload = {
            "Schedule": {"AdjustForDST": True},
            "ScheduleStatus": msgspec.to_builtins(status) if monitored and status else None,
            "IsPastDue": past_due,
        }
        try:
            self._workers.submit(self.function.name, "json", json.dumps(payload)).result()
        except InvocationError as error:
            log.warning("%s; the next run is the next occurrence", error)
        status = after_run(self.schedule, status, invoked, past_due)
        if monitored:
            self._save_status(status)
        return status

    def _load_status(self) -> ScheduleStatus | None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return msgspec.json.decode(self._status_blob.download_blob().readall(), type=ScheduleStatus)
        except ResourceNotFoundError:
            return None

    def _save_status(self, status: ScheduleStatus) -> None:
        from azure.core.exceptions import AzureError

        try:
            self._status_blob.upload_blob(msgspec.json.encode(status), overwrite=True)
        except AzureError as error:
            log.error("the status of timer %s was not saved: %s", self.function.name, error)

    def _acquire(self) -> Any:
        from azure.core.exceptions import AzureError, ResourceExistsError

        while not self._stopping.is_set():
            try:
                if not self._container.exists():
                    self._create_container()
                with contextlib.suppress(ResourceExistsError):
                    self._lock_blob.upload_blob(b"", overwrite=False)
                return self._lock_blob.acquire_lease(self._lease_seconds)
            except ResourceExistsError:
                log.debug("another host runs timer %s", self.function.name)
            except AzureError as error:
                log.error("timer %s waits for its storage: %s", self.function.name, error)
            self._stopping.wait(self._lease_seconds)
        return None

    def _create_container(self) -> None:
        from azure.core.exceptions import ResourceExistsError

        with contextlib.suppress(ResourceExistsError):  # another timer was faster
            self._container.create_container()

    def _renew(self, lease: Any) -> None:
        from azure.core.exceptions import AzureError

        while not self._stopping.wait(self._lease_seconds / 2):
            try:
                lease.renew()
            except AzureError as error:
                log.error(
                    "timer %s lost its lease, another host may run it too: %s", self.function.name, error
                )
                return

    def _release(self, lease: Any) -> None:
        from azure.core.exceptions import AzureError

        try:
            lease.release()
        except AzureError as error:
            log.debug("lease of timer %s was not released: %s", self.function.name, error)

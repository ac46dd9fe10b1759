"""`keeper` run in this process as its console script would, and a world of one cluster for it to look at."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandbox.azurite import Azurite
from sandbox.etcd import EtcdCluster
from shared.bootstrap import Clients
from shared.cli.main import run
from shared.errors import AutomationError
from shared.operations import dispatch
from shared.runtime import automation as automations
from shared.runtime.message import Received
from shared.settings import EtcdConnection
from shared.work import one_pass, work_off


@dataclass(frozen=True)
class Printed:
    """How one command line ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document it has to be."""
        return json.loads(self.out)


class Keeper:
    """`keeper("backup", "list")` with these app settings and none of the machine's own."""

    def __init__(self, settings: Mapping[str, str], capsys: pytest.CaptureFixture[str]) -> None:
        self._settings = settings
        self._capsys = capsys

    def __call__(self, *arguments: str, **settings: str) -> Printed:
        kept = dict(os.environ)
        self._capsys.readouterr()
        try:
            for name in list(os.environ):
                if name.startswith(("AzureWebJobs", "KUBEKEEPER_", "KEEPER_", "AZURE_")):
                    del os.environ[name]
            os.environ.update({**self._settings, **settings})
            code = run(list(arguments))
        finally:
            os.environ.clear()
            os.environ.update(kept)
            logging.disable(logging.NOTSET)
        printed = self._capsys.readouterr()
        return Printed(code, printed.out, printed.err)


class World:
    """An app of one cluster, its settings, and the part of the Functions host that takes messages."""

    def __init__(self, azurite: Azurite, etcd: EtcdCluster, directory: Path) -> None:
        self.etcd = etcd
        self.directory = directory
        self.config = directory / "kubekeeper.yaml"
        self.settings = {
            "AzureWebJobsStorage": azurite.connection_string,
            "KUBEKEEPER_CONFIG": str(self.config),
            **etcd.environ,
        }
        self.write_config({})

    def write_config(
        self, policy: dict[str, Any], connection: EtcdConnection | None = None, **more: Any
    ) -> None:
        """The configuration of cluster `prod`, with its etcd or another `connection`; `more` beside it."""
        cluster = {
            "name": "prod",
            "etcd": _without_none(msgspec.to_builtins(connection or self.etcd.connection())),
            "etcdBackup": {"schedule": "0 * * * *", **policy},
        }
        self.config.write_text(json.dumps({"clusters": [cluster], **more}))

    def reconcile(self) -> None:
        """One pass of etcd-backup, as a nudge would cause."""
        clients = Clients(self.settings)
        claim = clients.claims.acquire("prod", "etcd-backup")
        assert claim is not None
        with claim:
            one_pass(clients, automations.find("etcd-backup"), clients.settings().cluster("prod"), claim)

    @contextmanager
    def app(self, *queues: str) -> Iterator[None]:
        """The app takes messages off its queues meanwhile, poison queues included, as under the host."""
        stop = threading.Event()
        workers = [
            threading.Thread(target=self._work_off, args=(name, stop)) for name in queues or (dispatch.QUEUE,)
        ]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            stop.set()
            for worker in workers:
                worker.join(60)

    def _work_off(self, name: str, stop: threading.Event) -> None:
        clients = Clients(self.settings)
        queue, poison = clients.queue(name), clients.queue(f"{name}-poison")
        queue.ensure()
        poison.ensure()
        while not stop.wait(0.05):
            for message in queue.receive(timedelta(seconds=30), 1):
                received = Received(
                    id=message.id,
                    body=message.text.encode(),
                    dequeue_count=message.dequeue_count,
                    inserted_at=message.inserted_at,
                )
                try:
                    if name == dispatch.QUEUE:
                        dispatch.work_off(clients, received)
                    else:
                        work_off(clients, name, received)
                except AutomationError:
                    if message.dequeue_count < clients.max_dequeue_count:
                        queue.put_back(message)
                        continue
                    poison.send(message.text)
                queue.delete(message)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value

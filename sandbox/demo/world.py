"""What the demo runs on: Azurite, a three-member etcd full of objects, the local Functions host."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self, TypeVar

from sandbox import tools
from sandbox.azurite import Azurite
from sandbox.demo.screen import Screen
from sandbox.etcd import EtcdCluster
from sandbox.host.process import HostProcess
from sandbox.kubedata import KubeData, Loaded
from shared.bootstrap import Clients

T = TypeVar("T")

CLUSTER = "demo"
CONFIGURATION = """\
clusters:
  - name: {cluster}
    etcd:
      endpoints: [{endpoints}]
      tls: {{ca: "file:{tls}/ca.pem", certificate: "file:{tls}/client.pem", key: "file:{tls}/client.key"}}
    etcdBackup:
      schedule: "* * * * *"      # every minute, so that you need not wait an hour
      objective: 10m
      retention: {{hourly: 1, daily: 0, weekly: 0, monthly: 0}}
      encryption: {{keyFile: "file:{key}"}}
"""


class NotInTimeError(Exception):
    """Something the demo waits for did not happen."""


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    output: str


def run_keeper(screen: Screen, environ: Mapping[str, str], *arguments: str, show: bool = True) -> Ran:
    """Run a `keeper` command as a user would, and show it."""
    if show:
        screen.command(shlex.join(["keeper", *arguments]))
    done = _run(environ, arguments, stderr=subprocess.STDOUT if show else subprocess.DEVNULL)
    output = done.stdout.decode(errors="replace")
    if show:
        screen.output(output)
    return Ran(done.returncode, output)


def _run(
    environ: Mapping[str, str], arguments: tuple[str, ...], stderr: int
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("keeper")), *arguments],
        cwd=tools.CHECKOUT,
        env={**os.environ, **environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        timeout=300,
        check=False,
    )


def wait_for(screen: Screen, what: str, look: Callable[[], T | None], seconds: float, log: Path) -> T:
    """What `look` gives as soon as it gives something; NotInTimeError names `what` and ends with the log."""
    began = time.monotonic()
    while not (found := look()):
        waited = time.monotonic() - began
        if waited > seconds:
            said = log.read_text()[-1500:]
            raise NotInTimeError(f"no {what} within {seconds:.0f} s; the host's log ends:\n{said}")
        screen.progress(f"waiting for {what} ({waited:.0f} s)")
        time.sleep(0.2)
    return found


class World:
    """`with World(screen) as world:`; leaving it ends every process it started."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.data = KubeData(seed=23)
        self._cleanup = ExitStack()
        self.etcd: EtcdCluster
        self.host: HostProcess
        self.clients: Clients
        self.loaded: Loaded
        self.directory: Path
        self.environ: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def start(self) -> None:
        """Azurite, etcd, the configuration and the host, each on free ports."""
        enter, screen = self._cleanup.enter_context, self.screen
        self.directory = Path(enter(TemporaryDirectory(prefix="keeper-")))
        screen.progress("starting Azurite")
        azurite = enter(Azurite())
        screen.progress("starting three etcd members")
        self.etcd = enter(EtcdCluster.start(members=3, tls=True))
        self.environ = self._configure(azurite.connection_string)
        self.clients = Clients(self.environ)
        screen.progress("starting the Functions host")
        self.host = enter(HostProcess(tools.CHECKOUT, self.environ, log=self.directory / "host.log"))

    def _configure(self, connection_string: str) -> dict[str, str]:
        import base64
        import secrets

        key = self.directory / "backup.key"
        key.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
        configuration = self.directory / "kubekeeper.yaml"
        endpoints = ", ".join(self.etcd.endpoints)
        configuration.write_text(
            CONFIGURATION.format(cluster=CLUSTER, endpoints=endpoints, tls=self.etcd.root, key=key)
        )
        return {
            "AzureWebJobsStorage": connection_string,
            "KUBEKEEPER_CONFIG": str(configuration),
            # Once a day: the demo fires the timer itself, to the second.
            "KUBEKEEPER_AUTOSCALING_SCHEDULE": "0 0 0 * * *",
            "KUBEKEEPER_DISK_RELEASE_SCHEDULE": "0 0 0 * * *",
            "KUBEKEEPER_ETCD_BACKUP_SCHEDULE": "0 0 0 * * *",
            "KUBEKEEPER_INGRESS_SYNC_SCHEDULE": "0 0 0 * * *",
            "KUBEKEEPER_SETTLE": "1s",
            # `keeper backup restore` runs the etcdutl it finds there.
            "PATH": os.pathsep.join([str(tools.etcd().etcd.parent), os.environ.get("PATH", "")]),
        }

    def fill(self, megabytes: int) -> None:
        """Load Kubernetes-shaped objects through the leader."""
        total = megabytes * 1_000_000
        with self.etcd.client() as client:
            self.loaded = self.data.load(
                client,
                total,
                endpoint=self.etcd.endpoints[self.etcd.leader()],
                progress=lambda done: self.screen.progress(f"writing objects: {done * 100 // total} %"),
            )

    def churn(self, percent: float, generation: int) -> None:
        """Change, add and delete some of the objects."""
        with self.etcd.client() as client:
            self.data.churn(
                client,
                self.loaded,
                percent,
                generation=generation,
                total_bytes=self.loaded.written_bytes,
                endpoint=self.etcd.endpoints[self.etcd.leader()],
            )

    def keeper(self, *arguments: str, show: bool = True) -> Ran:
        """Run a `keeper` command as a user would, and show it."""
        return run_keeper(self.screen, self.environ, *arguments, show=show)

    def keeper_bytes(self, *arguments: str) -> bytes:
        """What a `keeper` command writes to standard output, to the byte; shows nothing."""
        return _run(self.environ, arguments, stderr=subprocess.DEVNULL).stdout

    def wait(self, what: str, look: Callable[[], T | None], seconds: float = 90) -> T:
        """What `look` gives as soon as it gives something; NotInTimeError names `what` otherwise."""
        return wait_for(self.screen, what, look, seconds, self.directory / "host.log")

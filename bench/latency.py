"""From an event (HTTP in) to the first request to Azure that it causes, for each automation.

Through the app's own triggers in the local Functions host and real queues of Azurite. The clock starts when
the event is posted to the host, as Event Grid does, and stops when the automation's first request arrives: at
the local Resource Manager, or for etcd-backup, which asks Resource Manager nothing, at its container in Blob
Storage. Each event is for a cluster that rests, and finds every queue idle for as long as the host then rests
between two looks into it (`maxPollingInterval` in host.json), which is most of what is measured.
"""

from __future__ import annotations

import socket
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from bench.figure import Figure, at_most
from sandbox import tools
from sandbox.host.process import HostProcess
from sandbox.up import options_of
from sandbox.whole_world import StandInCluster, WholeWorld
from shared.runtime.automation import AUTOMATIONS, schedule_setting

PREFIX = "event-to-azure"
EVENTS = {
    "etcd-backup": "EtcdUnhealthy",
    "autoscaling": "PodUnschedulable",
    "disk-release": "VolumeAttachFailed",
    "ingress-sync": "IngressChanged",
}
SAMPLES = 25
MEDIAN, WORST = 3.0, 6.0
"""Seconds. Half of `maxPollingInterval` is 1 s, and a pass on two cores takes another before it asks."""
PATIENCE = 60.0
CONTAINER = b"/etcd-backups"
Emit = Callable[[Figure], None]


def run(wants: Callable[[str], bool], emit: Emit) -> None:
    """Two figures for each automation that is wanted."""
    wanted = [name for name in EVENTS if any(wants(f"{PREFIX}-{name}-{which}") for which in ("p50", "p99"))]
    if not wanted:
        return
    with _world() as scene:
        seconds = _measure(scene, wanted)
    for name in wanted:
        note = f"{SAMPLES} events, each for a cluster at rest; the host looks into an idle queue every 2 s"
        for which, value, limit in (
            ("p50", statistics.median(seconds[name]), MEDIAN),
            ("p99", statistics.quantiles(seconds[name], n=100, method="inclusive")[-1], WORST),
        ):
            figure = at_most(f"{PREFIX}-{name}-{which}", value, "s", limit, note=note)
            if wants(figure.name):
                emit(figure)


class Scene:
    """The host, and what hears of the first request."""

    def __init__(self, world: WholeWorld, host: HostProcess, tap: Tap) -> None:
        self.host, self._world, self._tap = host, world, tap

    def arm_requests(self) -> int:
        return len(self._world.cluster.arm.recorder.requests)

    def uploads(self) -> int:
        return self._tap.heard

    def seconds(self, automation: str, cluster: str) -> float:
        """From the event to the first request; TimeoutError when none comes."""
        count = self.uploads if automation == "etcd-backup" else self.arm_requests
        kind = f"Kubekeeper.Cluster.{EVENTS[automation]}"
        event = {"specversion": "1.0", "id": str(uuid.uuid4()), "source": "/bench", "type": kind}
        before, began = count(), time.monotonic()
        self.host.send_events("cluster_event", [{**event, "data": {"cluster": cluster}}])
        while count() == before:
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError(f"{automation} asked Azure nothing within {PATIENCE:.0f} s of its event")
            time.sleep(0.002)
        took = time.monotonic() - began
        self.host.wait_idle()
        return took


def _measure(scene: Scene, wanted: list[str]) -> dict[str, list[float]]:
    """One automation after the other, so that each queue rests meanwhile; the first round is thrown away, as
    a worker then imports what it uses.
    """
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    for number in range(SAMPLES + 1):
        for name in wanted:
            took = scene.seconds(name, f"fleet-{number}")
            if number:
                seconds[name].append(took)
        print(f"  {number} of {SAMPLES} events for each automation", file=sys.stderr)
    return seconds


@contextmanager
def _world() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="keeper-") as name:
        directory = Path(name)
        with WholeWorld(directory, options_of(etcd=True)) as world:
            for start in world.steps():
                start()
            assert isinstance(world.cluster, StandInCluster)
            world.cluster.add_pod("too-large", cpu="1000")  # waits for a node that no pool can give
            connection = world.environ["AzureWebJobsStorage"]
            blobs = dict(part.split("=", 1) for part in connection.split(";") if part)["BlobEndpoint"]
            with Tap(urlsplit(blobs).port or 80, CONTAINER) as tap:
                tapped = blobs.replace(f":{urlsplit(blobs).port}", f":{tap.port}")
                settings = {
                    **world.environ,
                    "AzureWebJobsStorage": connection.replace(blobs, tapped),
                    "KUBEKEEPER_CONFIG": str(_fleet(directory, Path(world.environ["KUBEKEEPER_CONFIG"]))),
                    **{schedule_setting(automation): "0 0 0 1 1 *" for automation in AUTOMATIONS},
                }
                with HostProcess(tools.CHECKOUT, settings, log=directory / "host.log") as host:
                    yield Scene(world, host, tap)


def _fleet(directory: Path, single: Path) -> Path:
    """The one cluster under many names: each of them rests until its event comes."""
    (cluster,) = msgspec.json.decode(single.read_bytes())["clusters"]
    path = directory / "fleet.yaml"
    fleet = [{**cluster, "name": f"fleet-{number}"} for number in range(SAMPLES + 1)]
    path.write_bytes(msgspec.json.encode({"clusters": fleet}))
    return path


class Tap:
    """A relay in front of a loopback port that counts in `heard` how often `needle` passed towards it."""

    def __init__(self, port: int, needle: bytes) -> None:
        self.heard = 0
        self._target, self._needle = ("127.0.0.1", port), needle
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = [self._listener]

    def __enter__(self) -> Tap:
        threading.Thread(target=self._accept, name="tap", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open += [client, server]
                threading.Thread(target=self._copy, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._copy, args=(server, client, False), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, listens: bool) -> None:
        with suppress(OSError):
            while data := source.recv(64 * 1024):
                if listens and self._needle in data:
                    self.heard += 1
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

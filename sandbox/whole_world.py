"""What `python -m sandbox up` is made of: each part started in turn, in real time, and told about.

The cluster is an AKS cluster `local` of the local Azure, with the pools `system` and `agents`, whose machines
are its nodes. With `--real`, kube-apiserver, scheduler and controller manager take the stand-in's place; the
cloud controller is then missing, and mounts are not followed, so that corruption goes unnoticed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Protocol, Self

import msgspec

from sandbox import tools
from sandbox.arm import GROUP, LOCATION, QUOTED, LocalArm
from sandbox.attacher import Attacher
from sandbox.azurite import Azurite
from sandbox.clock import Clock
from sandbox.controlplane import ControlPlane
from sandbox.disk_driver import DRIVER, DiskDriver, waiting
from sandbox.etcd import PASSWORD, EtcdCluster
from sandbox.fleet import BOOT_DELAY, Fleet, Pool
from sandbox.host.process import HostProcess
from sandbox.identity import ManagedIdentity
from sandbox.kube_client import Document, KubeError
from sandbox.node_agent import NodeAgent
from sandbox.scenario import World

QUICK_OPERATION_SECONDS = 3.0
QUICK_BOOT = timedelta(seconds=5)
BREATH_SECONDS = 0.02
GATEWAY = "ingress"
SPARE_NODES = 3


class Cluster(Protocol):
    """A world in real time: the stand-in's, or that of the real control plane."""

    arm: LocalArm

    @property
    def server(self) -> str: ...
    @property
    def kubeconfig(self) -> Path: ...
    def enrol(self, resource: str) -> None: ...
    def groups(self) -> list[int]: ...


class StandInCluster(World):
    """`World`, on the machine's own clock."""

    @property
    def server(self) -> str:
        return self.kubernetes.server

    def groups(self) -> list[int]:
        """It is all within this process."""
        return []


class RealCluster:
    """The local Azure beside a real control plane, whose nodes are its machines."""

    def __init__(self, boot_delay: timedelta) -> None:
        self.arm = LocalArm(Clock())
        self._boot_delay = boot_delay
        self._cleanup = contextlib.ExitStack()
        self._stopping = threading.Event()
        self.plane: ControlPlane

    def __enter__(self) -> Self:
        enter = self._cleanup.enter_context
        self.plane = enter(ControlPlane.start())
        self._client = self.plane.client()
        agent = enter(NodeAgent(self._client))
        self._fleet = Fleet(enter(self.arm), agent, self, boot_delay=self._boot_delay)
        driver = DiskDriver(self.arm, self._fleet.machine_of)
        self._client.create(
            "/apis/storage.k8s.io/v1/csidrivers",
            {"metadata": {"name": DRIVER}, "spec": {"attachRequired": True}},
        )
        attach, detach = waiting(driver.attach), waiting(driver.detach)
        enter(Attacher(self._client, attach=attach, detach=detach, driver=DRIVER))
        ticking = threading.Thread(target=self._tick, name="local Azure", daemon=True)
        ticking.start()
        self._cleanup.callback(ticking.join)
        self._cleanup.callback(self._stopping.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _tick(self) -> None:
        while not self._stopping.wait(BREATH_SECONDS):
            self.arm.core.clock.advance(0)

    @property
    def server(self) -> str:
        return self.plane.server

    @property
    def kubeconfig(self) -> Path:
        return self.plane.kubeconfig()

    def enrol(self, resource: str) -> None:
        self._fleet.enrol(Pool(resource))

    def groups(self) -> list[int]:
        return [component.process.pid for component in self.plane.components.values()]

    # --- what the fleet asks for ---

    def has_node(self, name: str) -> bool:
        return self._client.find(f"/api/v1/nodes/{name}") is not None

    def furnish(self, name: str, provider_id: str, max_data_disks: int) -> None:
        driver = {
            "name": DRIVER,
            "nodeID": name,
            "topologyKeys": [],
            "allocatable": {"count": max_data_disks},
        }
        document: Document = {"metadata": {"name": name}, "spec": {"drivers": [driver]}}
        try:
            self._client.create("/apis/storage.k8s.io/v1/csinodes", document)
        except KubeError as error:
            if error.status != 409:
                raise


class WholeWorld:
    """A context manager; `steps` are to be run in order within it."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self.environ: dict[str, str] = {}
        self.cluster: Cluster
        self.gateway = ""
        self._options = options
        self._cleanup = contextlib.ExitStack()
        self._azurite = Azurite()
        self._etcd: EtcdCluster | None = None
        self._host: HostProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def steps(self) -> Iterator[Callable[[], None]]:
        yield self._start_storage
        yield self._start_cluster
        if self._options.etcd:
            yield self._start_etcd
        yield self._configure
        if self._options.host:
            yield self._start_host

    @property
    def host(self) -> HostProcess:
        """The app's own; only with `host` among the options."""
        assert self._host is not None
        return self._host

    def processes(self) -> list[int]:
        """Leaders of process groups that would go on if this process were killed."""
        found = self.cluster.groups() if hasattr(self, "cluster") else []
        return found + ([self._host.process_id] if self._host is not None else [])

    def text(self, seconds: float) -> str:
        """What the user wants to know."""
        name, storage = self._options.name, self._azurite
        lines = [f"The world {name!r} is up, after {seconds:.1f} s:"]
        rows = {
            "Resource Manager": f"{self.cluster.arm.url}  (subscription {self.cluster.arm.subscription})",
            "managed identity": self.environ["IDENTITY_ENDPOINT"],
            "Blob, Queue, Table": f"{storage.blob_url}  {storage.queue_url}  {storage.table_url}",
            "Kubernetes": self.cluster.server,
            "kubeconfig": str(self.cluster.kubeconfig),
            "etcd": ", ".join(self._etcd.endpoints) if self._etcd else "",
            "Functions host": self._host.url if self._host else "",
            "settings for keeper": str(self.directory / "settings.json"),
        }
        lines += [f"  {title:20} {value}" for title, value in rows.items() if value]
        hint = "" if name == "default" else f" --name {name}"
        lines.append(f"\nexport KUBECONFIG={self.cluster.kubeconfig}")
        lines.append(f"End it with: python -m sandbox down{hint}")
        return "\n".join(lines)

    def _start_storage(self) -> None:
        self._cleanup.enter_context(self._azurite)

    def _start_cluster(self) -> None:
        boot = BOOT_DELAY if self._options.quoted else QUICK_BOOT
        if self._options.real:
            cluster: Cluster = self._cleanup.enter_context(RealCluster(boot))
        else:
            stand_in = self._cleanup.enter_context(StandInCluster(clock=Clock(), boot_delay=boot))
            stand_in.run_metrics()
            stand_in.add_storage_class()
            cluster = stand_in
        self.cluster = cluster
        cluster.enrol(cluster.arm.add_cluster("local", system=1, agents=self._options.nodes))
        self.gateway = cluster.arm.add_gateway(GATEWAY)
        cluster.arm.core.operation_seconds = QUICK_OPERATION_SECONDS
        cluster.arm.core.latencies = QUOTED if self._options.quoted else None
        identity = self._cleanup.enter_context(ManagedIdentity(cluster.arm.directory))
        self.environ |= {"KUBEKEEPER_ARM_ENDPOINT": cluster.arm.url, **identity.environ}

    def _start_etcd(self) -> None:
        self._etcd = self._cleanup.enter_context(EtcdCluster.start(tls=True))
        self.environ["ETCD_PASSWORD"] = PASSWORD

    def _configure(self) -> None:
        """The app's configuration and settings, as files; the app's own process gets the same."""
        arm = self.cluster.arm
        cluster: Document = {
            "name": "local",
            "kubernetes": {"kubeconfig": f"file:{self.cluster.kubeconfig}"},
            "azure": {
                "subscription": arm.subscription,
                "resourceGroups": [GROUP, f"MC_{GROUP}_local_{LOCATION}"],
                "location": LOCATION,
                "managedCluster": arm.id_of("Microsoft.ContainerService/managedClusters", "local"),
            },
        }
        if self._etcd is not None:
            tls = {name: f"file:{self._etcd.root / file}" for name, file in CERTIFICATES.items()}
            cluster["etcd"] = {"endpoints": list(self._etcd.endpoints), "tls": tls}
            cluster["etcdBackup"] = {}
        # Never fewer nodes than were asked for, or they would go while somebody looks at them.
        pools = [{"name": "agents", "min": self._options.nodes, "max": self._options.nodes + SPARE_NODES}]
        cluster |= {
            "autoscaling": {"pools": pools},
            "diskRelease": {},
            "ingressSync": {"gateway": self.gateway, "quiet": "1s"},
        }
        path = self.directory / "kubekeeper.yaml"
        path.write_bytes(msgspec.json.encode({"clusters": [cluster]}))  # which is YAML too
        self.environ["AzureWebJobsStorage"] = self._azurite.connection_string
        self.environ["KUBEKEEPER_CONFIG"] = str(path)
        if self._options.etcd:
            place = str(tools.etcd().etcd.parent)
            self.environ["PATH"] = os.pathsep.join([place, os.environ.get("PATH", "")])
        settings = {"IsEncrypted": False, "Values": {**_schedules(), **self.environ}}
        settings["Values"].pop("PATH", None)  # type: ignore[attr-defined]
        file = self.directory / "settings.json"
        file.touch(mode=0o600)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(settings), indent=2))

    def _start_host(self) -> None:
        host = HostProcess(tools.CHECKOUT, self.environ, log=self.directory / "host.log")
        self._host = self._cleanup.enter_context(host)


CERTIFICATES = {"ca": "ca.pem", "certificate": "client.pem", "key": "client.key"}


def _schedules() -> dict[str, str]:
    """What the app's own example of settings says."""
    example = tools.CHECKOUT / "local.settings.example.json"
    values: dict[str, str] = msgspec.json.decode(example.read_bytes())["Values"]
    return values

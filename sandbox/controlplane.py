"""A real Kubernetes control plane without kubelets, as processes that live as long as a `with` block.

    with ControlPlane.start() as kubernetes:
        subprocess.run(["kubectl", "--kubeconfig", kubernetes.kubeconfig(), "get", "nodes"])

etcd, kube-apiserver (TLS with its own authority, RBAC), kube-scheduler and kube-controller-manager come from
the folder that KUBEBUILDER_ASSETS names; `.ci/kubernetes/build` makes one. Nodes are objects that
`sandbox.node_agent` keeps alive. Ports are free ones, so control planes run side by side; leaving the block
ends exactly the processes this one started and removes its directory.
"""

from __future__ import annotations

import atexit
import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import msgspec
import urllib3

from sandbox.certificates import Authority
from sandbox.kube_client import Document, KubeClient, KubeError
from sandbox.ports import free_ports

COMMANDS = ("etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubectl")
ADMINISTRATORS = "system:masters"
START_TIMEOUT_SECONDS = 90.0
NODE_GRACE_PERIOD = timedelta(seconds=50)
"""Kubernetes' own default: a node that has been silent for this long is NotReady."""


class AssetsMissingError(Exception):
    """There is no folder of control plane binaries; the message says how to get one."""


@dataclass
class Component:
    """One process of the control plane; `log` is where it writes."""

    name: str
    log: Path
    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes]


def find_assets() -> Path:
    """The folder named by KUBEBUILDER_ASSETS; AssetsMissingError when it is not set or not complete."""
    named = os.environ.get("KUBEBUILDER_ASSETS", "")
    if not named:
        raise AssetsMissingError("KUBEBUILDER_ASSETS is not set: KUBEBUILDER_ASSETS=$(.ci/kubernetes/build)")
    missing = [command for command in COMMANDS if not (Path(named) / command).exists()]
    if missing:
        raise AssetsMissingError(f"KUBEBUILDER_ASSETS={named} lacks {', '.join(missing)}")
    return Path(named)


class ControlPlane:
    """A running control plane; make one with `start`."""

    def __init__(self, assets: Path, directory: Path, *, owns_directory: bool) -> None:
        self.assets = assets
        self.directory = directory
        self.components: dict[str, Component] = {}
        self.server = ""
        self.etcd_endpoint = ""
        self._owns_directory = owns_directory
        self._authority = Authority("Sandbox Kubernetes CA")
        self._users: dict[tuple[str, tuple[str, ...]], tuple[Path, Path]] = {}
        self._clients: list[KubeClient] = []
        self._write("ca.pem", self._authority.pem)
        atexit.register(self.stop)

    @classmethod
    def start(
        cls,
        assets: Path | None = None,
        *,
        directory: Path | None = None,
        node_grace_period: timedelta = NODE_GRACE_PERIOD,
        scheduler: bool = True,
        controllers: bool = True,
        apiserver_arguments: Sequence[str] = (),
        controller_arguments: Sequence[str] = (),
        scheduler_options: Document | None = None,
    ) -> ControlPlane:
        """A control plane that serves, schedules and reconciles.

        `assets` is the folder of binaries (default: KUBEBUILDER_ASSETS). `directory` is kept afterwards;
        without it a temporary one is used and removed. `node_grace_period` is how long a node may be silent
        before it is NotReady. Further arguments go to the commands as they are, and
        `scheduler_options` into the scheduler's configuration. AssetsMissingError without
        binaries; RuntimeError with the last words of the process that did not start.
        """
        assets = assets or find_assets()
        root = Path(directory) if directory else Path(tempfile.mkdtemp(prefix="kubekeeper-kubernetes-"))
        root.mkdir(parents=True, exist_ok=True)
        plane = cls(assets, root, owns_directory=directory is None)
        try:
            plane._boot(apiserver_arguments)
            plane._wait(plane._is_ready, "kube-apiserver")  # the controllers would not wait for long
            if controllers:
                plane._start_controllers(node_grace_period, controller_arguments)
            if scheduler:
                plane._start_scheduler(scheduler_options or {})
            if controllers:
                plane._wait(plane._has_default_account, "kube-controller-manager")
        except BaseException:
            plane.stop()
            raise
        return plane

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends this control plane's processes and removes what they wrote; may be called twice."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self._end(*self.components.values())
        if self._owns_directory:
            shutil.rmtree(self.directory, ignore_errors=True)
        atexit.unregister(self.stop)

    # Reaching it

    @property
    def kubectl(self) -> Path:
        """The kubectl of the same version."""
        return self.assets / "kubectl"

    def client(self, user: str = "admin", groups: tuple[str, ...] = (ADMINISTRATORS,)) -> KubeClient:
        """A client with that user's certificate; closed with the control plane."""
        certificate, key = self._user(user, groups)
        client = KubeClient(
            self.server, ca=self.directory / "ca.pem", certificate=certificate, key=key, connections=32
        )
        self._clients.append(client)
        return client

    def kubeconfig(self, user: str = "admin", groups: tuple[str, ...] = (ADMINISTRATORS,)) -> Path:
        """A self-contained kubeconfig of that user; what others than administrators may do, RBAC says."""
        certificate, key = self._user(user, groups)
        authority = self.directory / "ca.pem"
        document = kubeconfig_document(
            {"server": self.server, "certificate-authority-data": _data(authority)},
            {"client-certificate-data": _data(certificate), "client-key-data": _data(key)},
            user=user,
        )
        # JSON is YAML, and every reader of a kubeconfig reads YAML.
        return self._write(f"{certificate.stem}.kubeconfig", msgspec.json.encode(document).decode())

    # What can happen to it

    def kill(self, name: str) -> None:
        """Ends a component at once, as a power failure would; named as its command is."""
        self._end(self.components[name])

    def restart(self, name: str) -> None:
        """Starts a killed component again, on its data and port."""
        self._launch(name, *self.components[name].arguments)
        if name in ("etcd", "kube-apiserver"):
            self._wait(self._is_ready, name)

    def pause(self, name: str) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        self.components[name].process.send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self.components[name].process.send_signal(signal.SIGCONT)

    # How

    def _boot(self, apiserver_arguments: Sequence[str]) -> None:
        for attempt in range(3):
            etcd_port, peer_port, secure_port = free_ports(3)
            self.etcd_endpoint = f"http://127.0.0.1:{etcd_port}"
            self.server = f"https://127.0.0.1:{secure_port}"
            self._start_etcd(f"http://127.0.0.1:{peer_port}")
            self._start_apiserver(secure_port, apiserver_arguments)
            try:
                self._wait(self._is_alive, "kube-apiserver")
            except RuntimeError as error:
                # Another process may have taken a port between choosing and using it.
                if attempt == 2 or "address already in use" not in str(error):
                    raise
                self._end(*self.components.values())
                shutil.rmtree(self.directory / "etcd", ignore_errors=True)
            else:
                return

    def _start_etcd(self, peer_url: str) -> None:
        self._launch(
            "etcd",
            *("--data-dir", str(self.directory / "etcd"), "--unsafe-no-fsync", "--log-level", "warn"),
            *("--listen-client-urls", self.etcd_endpoint, "--advertise-client-urls", self.etcd_endpoint),
            *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
            *("--initial-cluster", f"default={peer_url}", "--quota-backend-bytes", str(8 << 30)),
        )

    def _start_apiserver(self, port: int, arguments: Sequence[str]) -> None:
        names = ("localhost", "127.0.0.1", "10.0.0.1", "kubernetes.default.svc")
        serving = self._authority.issue("kube-apiserver", names=names)
        accounts = self._authority.issue("service-accounts", names=())
        for name, issued in (("apiserver", serving), ("accounts", accounts)):
            self._write(f"{name}.pem", issued.certificate)
            self._write(f"{name}.key", issued.key)
        self._launch(
            "kube-apiserver",
            *("--etcd-servers", self.etcd_endpoint),
            *("--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", str(port)),
            *("--cert-dir", self._path("certificates"), "--client-ca-file", self._path("ca.pem")),
            *("--tls-cert-file", self._path("apiserver.pem")),
            *("--tls-private-key-file", self._path("apiserver.key")),
            *("--service-account-issuer", "https://kubernetes.default.svc"),
            *("--service-account-key-file", self._path("accounts.pem")),
            *("--service-account-signing-key-file", self._path("accounts.key")),
            *("--authorization-mode", "Node,RBAC", "--allow-privileged"),
            *("--service-cluster-ip-range", "10.0.0.0/16", "--endpoint-reconciler-type", "none"),
            *arguments,
        )

    def _start_controllers(self, node_grace_period: timedelta, arguments: Sequence[str]) -> None:
        grace = node_grace_period.total_seconds()
        self._launch(
            "kube-controller-manager",
            *("--kubeconfig", str(self.kubeconfig()), "--leader-elect=false", "--secure-port=0"),
            *("--service-account-private-key-file", self._path("accounts.key")),
            *("--root-ca-file", self._path("ca.pem")),
            *("--node-monitor-grace-period", f"{grace}s"),
            # Both at most the defaults, and quick enough for a short grace period to be seen when it ends.
            *("--node-monitor-period", f"{min(5.0, grace / 4)}s", "--node-startup-grace-period", "60s"),
            # The default is a directory of the machine, which would be created.
            *("--flex-volume-plugin-dir", self._path("flexvolume")),
            *("--kube-api-qps", "1000", "--kube-api-burst", "2000"),
            *arguments,
        )

    def _start_scheduler(self, options: Document) -> None:
        configuration: Document = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(self.kubeconfig()), "qps": 1000, "burst": 2000},
            "leaderElection": {"leaderElect": False},
            **options,
        }
        path = self._write("scheduler.json", msgspec.json.encode(configuration).decode())
        self._launch("kube-scheduler", "--config", str(path), "--secure-port=0")

    def _launch(self, name: str, *arguments: str) -> None:
        path = self.directory / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                [str(self.assets / name), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={k: v for k, v in os.environ.items() if not k.startswith("ETCD_")},
                start_new_session=True,  # Ctrl-C reaches whoever started us, who then stops these last
            )
        self.components[name] = Component(name, path, arguments, process)

    @staticmethod
    def _end(*components: Component) -> None:
        for component in components:
            # A graceful end of the API server waits for watches to finish, which they do not.
            component.process.kill()
        for component in components:
            component.process.wait()

    def _is_alive(self) -> bool:
        return self._answers("/livez/ping")

    def _is_ready(self) -> bool:
        return self._answers("/readyz")

    def _answers(self, path: str) -> bool:
        return self._admin().send("GET", path).status == 200

    def _has_default_account(self) -> bool:
        """Until it is there, no pod can be created."""
        return self._admin().find("/api/v1/namespaces/default/serviceaccounts/default") is not None

    def _admin(self) -> KubeClient:
        return self._clients[0] if self._clients else self.client()

    def _wait(self, condition: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            with suppress(KubeError, urllib3.exceptions.HTTPError, OSError):
                if condition():
                    return
            for component in self.components.values():
                if component.process.poll() is not None:
                    raise RuntimeError(f"{component.name} ended while starting: {_tail(component.log)}")
            time.sleep(0.05)
        log = _tail(self.components[name].log)
        raise RuntimeError(f"{name} was not ready in {START_TIMEOUT_SECONDS:.0f} s: {log}")

    def _user(self, user: str, groups: tuple[str, ...]) -> tuple[Path, Path]:
        if (user, groups) not in self._users:
            issued = self._authority.issue(user, names=(), groups=groups)
            name = f"user-{len(self._users)}"
            paths = self._write(f"{name}.pem", issued.certificate), self._write(f"{name}.key", issued.key)
            self._users[user, groups] = paths
        return self._users[user, groups]

    def _path(self, name: str) -> str:
        return str(self.directory / name)

    def _write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(text)
        return path


def kubeconfig_document(cluster: Document, credentials: Document, *, user: str) -> Document:
    """A kubeconfig with one context, `sandbox`."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "sandbox",
        "clusters": [{"name": "sandbox", "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": user}}],
    }


def _data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""


def main(arguments: list[str]) -> int:
    """`python -m sandbox.controlplane`: prints the kubeconfig's path and runs until Ctrl-C."""
    if arguments:
        print("usage: python -m sandbox.controlplane", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ControlPlane.start() as kubernetes:
            print(kubernetes.kubeconfig(), flush=True)
            threading.Event().wait()
    except AssetsMissingError as error:
        print(error, file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

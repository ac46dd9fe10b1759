"""Real etcd clusters on this machine, on free loopback ports, for tests, benchmarks and the demo.

    with EtcdCluster.start(members=3, tls=True, auth=True) as cluster:
        client = cluster.client()

Each member is a real process that can be killed, restarted, paused (SIGSTOP) and resumed. Leaving the
context ends exactly the processes this cluster started and removes its directory. etcd is the newest
`sandbox.tools` finds; etcdctl does the administration the product itself never does (users, learners,
alarms).
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

from sandbox.certificates import Authority
from sandbox.kubedata import KubeData, Loaded
from sandbox.ports import free_ports
from sandbox.tools import Etcd
from sandbox.tools import etcd as newest_etcd
from shared.clients.etcd import EtcdClient
from shared.errors import ApiError
from shared.model.etcd import MemberStatus
from shared.settings import EtcdConnection, EtcdTls

START_TIMEOUT_SECONDS = 60.0
USER, PASSWORD = "root", "sandbox-password"


@dataclass
class EtcdMember:
    """One process of a cluster; `log` is where it writes."""

    name: str
    client_port: int
    peer_port: int
    data_dir: Path
    log: Path
    endpoint: str
    peer_url: str
    arguments: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def db(self) -> Path:
        """The bbolt file."""
        return self.data_dir / "member" / "snap" / "db"

    @property
    def is_running(self) -> bool:
        """Whether the process is there; a paused one is."""
        return self.process is not None and self.process.poll() is None

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the process."""
        import psutil

        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)


class EtcdCluster:
    """A running cluster; make one with `start`. Members are numbered from 0 in the order they joined."""

    def __init__(
        self,
        *,
        tools: Etcd,
        root: Path,
        tls: bool,
        quota_bytes: int,
        extra: Sequence[str],
        owns_root: bool,
        names: tuple[str, ...] = ("localhost", "127.0.0.1"),
    ) -> None:
        self.tools = tools
        self.root = root
        self.members: list[EtcdMember] = []
        self.authority = Authority("Sandbox etcd CA") if tls else None
        self.environ: dict[str, str] = {}
        """App settings that `connection()` refers to."""
        self._has_auth = False
        self._quota_bytes = quota_bytes
        self._extra = list(extra)
        self._owns_root = owns_root
        self._clients: list[EtcdClient] = []
        if self.authority:
            self._write_certificates(names)
        atexit.register(self.stop)

    @classmethod
    def start(
        cls,
        members: int = 1,
        *,
        tls: bool = False,
        auth: bool = False,
        quota_bytes: int = 0,
        tools: Etcd | None = None,
        directory: Path | None = None,
        data_dirs: Sequence[Path] = (),
        extra: Sequence[str] = (),
    ) -> EtcdCluster:
        """A cluster that has a leader. `data_dirs` starts members on existing (restored) data instead of
        empty.

        `directory` is kept afterwards; without it a temporary one is used and removed. `quota_bytes` 0 is
        etcd's default of 2 GiB. `extra` are further arguments of every etcd.
        """
        root = Path(directory) if directory else Path(tempfile.mkdtemp(prefix="kubekeeper-etcd-"))
        root.mkdir(parents=True, exist_ok=True)
        cluster = cls(
            tools=tools or newest_etcd(),
            root=root,
            tls=tls,
            quota_bytes=quota_bytes,
            extra=extra,
            owns_root=directory is None,
        )
        try:
            cluster._boot(len(data_dirs) or members, data_dirs)
            if auth:
                cluster.enable_auth()
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def __enter__(self) -> EtcdCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends this cluster's processes, paused or not, and removes what it wrote; may be called twice."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        for member in self.members:
            _end(member)
        if self._owns_root:
            shutil.rmtree(self.root, ignore_errors=True)
        atexit.unregister(self.stop)

    # Reaching it

    @property
    def endpoints(self) -> tuple[str, ...]:
        """`http(s)://127.0.0.1:PORT` of every member, learners included."""
        return tuple(member.endpoint for member in self.members)

    def connection(self, *endpoints: str) -> EtcdConnection:
        """How the product is told to reach the cluster (or only `endpoints`); secrets are in `environ`."""
        tls = None
        if self.authority:
            tls = EtcdTls(
                ca=f"file:{self.root / 'ca.pem'}",
                certificate=f"file:{self.root / 'client.pem'}",
                key=f"file:{self.root / 'client.key'}",
            )
        return EtcdConnection(
            endpoints=endpoints or self.endpoints,
            tls=tls,
            user=USER if self._has_auth else None,
            password="setting:ETCD_PASSWORD" if self._has_auth else None,
        )

    def client(self, *, timeout: timedelta = timedelta(seconds=5)) -> EtcdClient:
        """A product client of all members; closed with the cluster."""
        client = EtcdClient(self.connection(), self.environ, timeout=timeout)
        self._clients.append(client)
        return client

    def etcdctl(self, *arguments: str, endpoints: Sequence[str] = (), timeout: float = 60.0) -> str:
        """Runs etcdctl against the cluster; its output. RuntimeError with its complaint when it fails."""
        command = self.etcdctl_command(*arguments, endpoints=endpoints)
        done = subprocess.run(
            command, env=self.etcdctl_environ(), capture_output=True, text=True, check=False, timeout=timeout
        )
        if done.returncode:
            raise RuntimeError(f"etcdctl {arguments[0]} failed: {done.stderr.strip()}")
        return done.stdout

    def etcdctl_command(self, *arguments: str, endpoints: Sequence[str] = ()) -> list[str]:
        """The command line, for callers that run it themselves (with `etcdctl_environ`)."""
        command = [str(self.tools.etcdctl), "--endpoints", ",".join(endpoints or self.endpoints)]
        if self.authority:
            files = ("--cacert", "ca.pem"), ("--cert", "client.pem"), ("--key", "client.key")
            command += [part for flag, name in files for part in (flag, str(self.root / name))]
        if self._has_auth:
            command += ["--user", f"{USER}:{PASSWORD}"]
        return [*command, *arguments]

    @staticmethod
    def etcdctl_environ() -> Mapping[str, str]:
        """The environment etcdctl needs; without the caller's ETCDCTL_* settings."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ETCDCTL_", "ETCD_"))}
        return kept | {"ETCDCTL_API": "3"}

    # What can happen to it

    def status(self, index: int) -> MemberStatus:
        """One member's status."""
        with EtcdClient(self.connection(), self.environ) as client:
            return client.status(self.members[index].endpoint)

    def leader(self) -> int:
        """The leader's index, as a running member tells it."""
        statuses = self._statuses()
        ids = {status.member_id: index for index, status in statuses.items()}
        leaders = {status.leader for status in statuses.values()} - {0}
        if len(leaders) != 1:
            raise RuntimeError(f"members do not agree on a leader: {sorted(leaders)}")
        return ids[leaders.pop()]

    def followers(self) -> list[int]:
        """Indexes of running voters that do not lead."""
        statuses = self._statuses()
        return [index for index, status in statuses.items() if not status.is_leader and not status.is_learner]

    def kill(self, index: int) -> None:
        """Ends a member at once, as a power failure would."""
        _end(self.members[index])

    def restart(self, index: int) -> None:
        """Starts a killed member on its data again and waits for it."""
        self._launch(self.members[index])
        self.wait_ready()

    def pause(self, index: int) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        self._signal(index, signal.SIGSTOP)

    def resume(self, index: int) -> None:
        """SIGCONT."""
        self._signal(index, signal.SIGCONT)

    def add_learner(self) -> int:
        """A further member that does not vote, caught up; its index."""
        member = self._new_members(1, ())[0]
        self._wait(partial(self._announce_learner, member), "etcd to accept a new member")
        members = [*self.members, member]
        self._configure(member, _initial_cluster(members), "existing")
        self.members.append(member)
        self._launch(member)
        self.wait_ready()
        return len(self.members) - 1

    def _announce_learner(self, member: EtcdMember) -> bool:
        """Whether etcd accepted it; in the first seconds of its life a cluster calls itself unhealthy."""
        try:
            self.etcdctl("member", "add", member.name, "--learner", f"--peer-urls={member.peer_url}")
        except RuntimeError as error:
            if "unhealthy cluster" in str(error):
                return False
            raise
        return True

    def enable_auth(self) -> None:
        """User `root` with the root role, and authentication on."""
        self.etcdctl("user", "add", f"{USER}:{PASSWORD}")
        self.etcdctl("user", "grant-role", USER, "root")
        self.etcdctl("auth", "enable")
        self._has_auth = True
        self.environ["ETCD_PASSWORD"] = PASSWORD
        self.wait_ready()

    def fill_quota(self) -> None:
        """Writes until etcd raises NOSPACE; start the cluster with a small `quota_bytes` for that."""
        with EtcdClient(self.connection(), self.environ, timeout=timedelta(seconds=30)) as client:
            for number in range(100_000):
                try:
                    client.put(b"/filler/%06d" % number, os.urandom(1 << 20))
                except ApiError as error:
                    if error.code == "NoSpace":
                        break
                    raise
            else:
                raise RuntimeError("the quota was never reached")
        self._wait(lambda: all(s.alarms() for s in self._statuses().values()), "the NOSPACE alarm to be seen")

    def seed(
        self, target_bytes: int, *, seed: int = 1, progress: Callable[[int], None] | None = None
    ) -> Loaded:
        """Fills the cluster with about `target_bytes` of Kubernetes-shaped keys and values."""
        with EtcdClient(self.connection(), self.environ) as client:
            endpoint = self.endpoints[self.leader()]
            return KubeData(seed).load(client, target_bytes, endpoint=endpoint, progress=progress)

    def churn(self, loaded: Loaded, percent: float, *, generation: int = 1, seed: int = 1) -> Loaded:
        """Changes about `percent` of what `seed` loaded; count `generation` up from call to call."""
        with EtcdClient(self.connection(), self.environ) as client:
            endpoint = self.endpoints[self.leader()]
            return KubeData(seed).churn(client, loaded, percent, generation=generation, endpoint=endpoint)

    def wait_ready(self) -> None:
        """Waits until every running member is served by the same leader."""

        def is_ready() -> bool:
            statuses = self._statuses()
            running = [m for m in self.members if m.is_running]
            leaders = {status.leader for status in statuses.values()}
            return len(statuses) == len(running) and len(leaders) == 1 and 0 not in leaders

        self._wait(is_ready, "a leader")

    # How

    def _boot(self, count: int, data_dirs: Sequence[Path]) -> None:
        for attempt in range(3):
            self.members = self._new_members(count, data_dirs)
            for member in self.members:
                self._configure(member, _initial_cluster(self.members), "new")
                self._launch(member)
            try:
                self.wait_ready()
            except RuntimeError:
                # Another process may have taken a port between choosing and using it.
                if attempt == 2 or not any("address already in use" in _tail(m.log) for m in self.members):
                    raise
                for member in self.members:
                    _end(member)
                    if not data_dirs:
                        shutil.rmtree(member.data_dir, ignore_errors=True)
            else:
                return

    def _new_members(self, count: int, data_dirs: Sequence[Path]) -> list[EtcdMember]:
        ports = free_ports(2 * count)
        scheme = "https" if self.authority else "http"
        made = []
        for index in range(count):
            name = f"m{len(self.members) + index}" if not data_dirs else f"m{index}"
            client_port, peer_port = ports[2 * index], ports[2 * index + 1]
            made.append(
                EtcdMember(
                    name=name,
                    client_port=client_port,
                    peer_port=peer_port,
                    data_dir=Path(data_dirs[index]) if data_dirs else self.root / name,
                    log=self.root / f"{name}.log",
                    endpoint=f"{scheme}://127.0.0.1:{client_port}",
                    peer_url=f"http://127.0.0.1:{peer_port}",
                )
            )
        return made

    def _configure(self, member: EtcdMember, initial_cluster: str, state: str) -> None:
        member.arguments = [
            *("--name", member.name, "--data-dir", str(member.data_dir)),
            *("--listen-client-urls", member.endpoint, "--advertise-client-urls", member.endpoint),
            *("--listen-peer-urls", member.peer_url, "--initial-advertise-peer-urls", member.peer_url),
            *("--initial-cluster", initial_cluster, "--initial-cluster-state", state),
            *("--initial-cluster-token", self.root.name, "--quota-backend-bytes", str(self._quota_bytes)),
            "--strict-reconfig-check=false",  # or a new cluster refuses learners for its first five seconds
            *("--unsafe-no-fsync", "--logger", "zap", "--log-level", "warn"),
            *self._extra,
        ]
        if self.authority:
            files = (
                ("--cert-file", "server.pem"),
                ("--key-file", "server.key"),
                ("--trusted-ca-file", "ca.pem"),
            )
            member.arguments += [part for flag, name in files for part in (flag, str(self.root / name))]
            member.arguments.append("--client-cert-auth")

    def _launch(self, member: EtcdMember) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
        with member.log.open("ab") as log:
            member.process = subprocess.Popen(
                [*_ends_with_us(), self.tools.etcd, *member.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
            )

    def _write_certificates(self, names: tuple[str, ...]) -> None:
        assert self.authority
        self.write_secret("ca.pem", self.authority.pem)
        for name, issued in (
            ("server", self.authority.issue("etcd", names=names)),
            # The common name is no etcd user, so with authentication on it is the password that counts.
            ("client", self.authority.issue("kubekeeper", names=())),
        ):
            self.write_secret(f"{name}.pem", issued.certificate)
            self.write_secret(f"{name}.key", issued.key)

    def write_secret(self, name: str, text: str) -> Path:
        """A file in the cluster's directory that only this user can read."""
        path = self.root / name
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    def _signal(self, index: int, number: signal.Signals) -> None:
        process = self.members[index].process
        assert process is not None
        process.send_signal(number)

    def _statuses(self) -> dict[int, MemberStatus]:
        """By index, of those that answer."""
        found = {}
        with EtcdClient(self.connection(), self.environ, timeout=timedelta(seconds=2)) as client:
            asked = {i: client.status_begin(m.endpoint) for i, m in enumerate(self.members) if m.is_running}
            for index, pending in asked.items():
                with suppress(ApiError):
                    found[index] = pending.result()
        return found

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            with suppress(ApiError):
                if condition():
                    return
            dead = [m for m in self.members if m.process and m.process.poll() not in (None, -signal.SIGKILL)]
            if dead:
                raise RuntimeError(
                    f"etcd {dead[0].name} ended while waiting for {what}: {_tail(dead[0].log)}"
                )
            time.sleep(0.05)
        raise RuntimeError(
            f"etcd: waited {START_TIMEOUT_SECONDS:.0f} s for {what}: {_tail(self.members[0].log)}"
        )


def _ends_with_us() -> list[str]:
    """A prefix that has Linux end the program when this process is killed and cannot do it itself.

    Linux watches the starting thread, so only the main thread may use it: it lasts as long as the process.
    """
    setpriv = shutil.which("setpriv")
    if setpriv and sys.platform == "linux" and threading.current_thread() is threading.main_thread():
        return [setpriv, "--pdeathsig", "KILL", "--"]
    return []


def _initial_cluster(members: Sequence[EtcdMember]) -> str:
    return ",".join(f"{m.name}={m.peer_url}" for m in members)


def _end(member: EtcdMember) -> None:
    if member.process is not None:
        if member.process.poll() is None:
            member.process.kill()
        member.process.wait()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""

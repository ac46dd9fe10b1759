"""`python -m sandbox up` and `down`: the whole local world for hands and eyes; nothing is left of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import urllib3

from sandbox import tools
from sandbox.controlplane import AssetsMissingError, find_assets
from sandbox.up import Record, Slot

pytestmark = pytest.mark.azurite
READY_SECONDS = 90 if "PYTEST_XDIST_WORKER" in os.environ else 10
"""What is promised, where nothing else runs on the machine."""


@pytest.fixture
def sandbox(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m sandbox ...` with temporary files of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sandbox", *arguments]
        environ = {**os.environ, "TMPDIR": str(tmp_path)}
        return subprocess.run(
            command, cwd=tools.CHECKOUT, env=environ, capture_output=True, text=True, timeout=120, check=False
        )

    yield run
    run("down", "--all")


@contextmanager
def foreground(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A world in the foreground, ready; killed at the end if it is still there."""
    command = [sys.executable, "-m", "sandbox", "up"]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=tools.CHECKOUT, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert "is up, after" in process.stdout.readline()
            yield process
        finally:
            process.kill()


def left_of(tmp_path: Path) -> list[str]:
    """Files and processes that know of the directory."""
    found = [str(path) for path in tmp_path.iterdir()]
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(tmp_path).encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


def nodes(kubeconfig: str) -> dict[str, str]:
    """Which nodes the cluster of a kubeconfig has, and whether they are Ready."""
    document = msgspec.json.decode(Path(kubeconfig).read_bytes())
    server, token = document["clusters"][0]["cluster"]["server"], document["users"][0]["user"]["token"]
    with urllib3.PoolManager(ca_certs=str(Path(kubeconfig).with_name("ca.pem"))) as pool:
        answer = pool.request("GET", f"{server}/api/v1/nodes", headers={"Authorization": f"Bearer {token}"})
    return {
        node["metadata"]["name"]: next(
            c["status"] for c in node["status"]["conditions"] if c["type"] == "Ready"
        )
        for node in answer.json()["items"]
    }


def told(output: str, title: str) -> str:
    found = re.search(rf"^  {title} +(\S+)", output, re.MULTILINE)
    assert found is not None, output
    return found[1]


def test_two_worlds_stand_side_by_side_and_leave_nothing(sandbox, tmp_path: Path) -> None:
    began = time.monotonic()
    first = sandbox("up", "--detach")
    assert time.monotonic() - began < READY_SECONDS
    second = sandbox("up", "--detach", "--name", "two", "--nodes", "1")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    sizes = []
    for output in (first.stdout, second.stdout):
        found = nodes(told(output, "kubeconfig"))
        assert set(found.values()) == {"True"}
        sizes.append(len(found))
        assert Path(told(output, "settings for keeper")).stat().st_mode & 0o077 == 0
    assert sizes == [3, 2]
    again = sandbox("up", "--name", "two")
    assert again.returncode == 2
    assert again.stderr == "error: the world 'two' is up; end it with: python -m sandbox down --name two\n"
    assert sandbox("down").stdout == "the world 'default' is down\n"
    assert sandbox("down").stdout == "there is no world 'default'\n"
    assert set(nodes(told(second.stdout, "kubeconfig")).values()) == {"True"}
    assert sandbox("down", "--name", "two").returncode == 0
    assert left_of(tmp_path) == []


@pytest.mark.etcd
def test_etcd_and_the_app_come_along(sandbox, tmp_path: Path) -> None:
    began = time.monotonic()
    output = sandbox("up", "--detach", "--etcd", "--host").stdout
    assert time.monotonic() - began < READY_SECONDS
    answer = urllib3.request("GET", told(output, "Functions host") + "/admin/host/status")
    assert answer.status == 401, "it asks for its key"
    assert told(output, "etcd").startswith("https://127.0.0.1:")
    assert sandbox("down").returncode == 0
    assert left_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_the_world_down(sandbox, tmp_path: Path, number: signal.Signals) -> None:
    with foreground(tmp_path) as process:
        process.send_signal(number)
        assert process.wait(90) == 0
    assert left_of(tmp_path) == []


def test_what_a_killed_world_left_is_cleared_away(sandbox, tmp_path: Path) -> None:
    with foreground(tmp_path) as process:
        process.kill()
    assert left_of(tmp_path) != []
    assert sandbox("down").returncode == 0
    assert left_of(tmp_path) == []


def test_a_new_world_clears_away_a_killed_one(sandbox, tmp_path: Path) -> None:
    with foreground(tmp_path) as process:
        process.kill()
    (path,) = tmp_path.glob("kubekeeper-*/default.json")
    old = msgspec.json.decode(path.read_bytes(), type=Record)
    assert sandbox("up", "--detach").returncode == 0
    assert not Path(old.directory).exists()
    sandbox("down")
    assert left_of(tmp_path) == []


@pytest.mark.e2e
@pytest.mark.parametrize("options", [[], ["--real"]])
def test_kubectl_works_on_it(sandbox, tmp_path: Path, options: list[str]) -> None:
    try:
        kubectl = find_assets() / "kubectl"
    except AssetsMissingError as missing:
        pytest.skip(str(missing))
    output = sandbox("up", "--detach", *options).stdout
    command = [str(kubectl), "--kubeconfig", told(output, "kubeconfig"), "get", "nodes"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"HOME": str(tmp_path)})
    shutil.rmtree(tmp_path / ".kube", ignore_errors=True)  # kubectl's own cache
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[1] for row in rows] == ["Ready"] * 3
    assert all(row[0].startswith("aks-") for row in rows)
    assert sandbox("down").returncode == 0
    assert left_of(tmp_path) == []


@pytest.mark.e2e
def test_a_killed_world_with_the_real_control_plane_is_cleared_away(sandbox, tmp_path: Path) -> None:
    try:
        find_assets()
    except AssetsMissingError as missing:
        pytest.skip(str(missing))
    sandbox("up", "--detach", "--real")
    (path,) = tmp_path.glob("kubekeeper-*/default.json")
    os.kill(msgspec.json.decode(path.read_bytes(), type=Record).process, signal.SIGKILL)
    assert any("kube-apiserver" in line for line in left_of(tmp_path))
    assert sandbox("down").returncode == 0
    assert left_of(tmp_path) == []


def test_worlds_that_end_and_begin_at_once_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last that ends takes the directory along, which the next may be about to use."""
    monkeypatch.setattr("sandbox.up.RUNNING", tmp_path / "running")

    def come_and_go(name: str) -> None:
        for _ in range(300):
            Slot.take(name).release()

    with ThreadPoolExecutor() as pool:
        list(pool.map(come_and_go, ["one", "two", "three"]))
    assert list(tmp_path.iterdir()) == []

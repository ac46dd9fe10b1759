"""The forwarder's image: it holds what the forwarder imports, and nothing else; and that is enough to run."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from forwarder_world import pod, process_environ, until

from sandbox.eventgrid import LocalTopic, WorkloadIdentity
from sandbox.forwarder_image import Image, copied, lay_out, packages
from sandbox.kube import LocalKubernetes
from sandbox.kube.kinds import PODS
from sandbox.tools import CHECKOUT

IMPORTED = """
import json, sys
from shared.forwarder.__main__ import main
assert main({}) == 2  # no settings: it says so
from shared.forwarder.deliver import destination
from shared.forwarder.settings import read_settings
where = {"KUBEKEEPER_CLUSTER": "a", "KUBEKEEPER_KUBERNETES_SERVER": "http://127.0.0.1:1"}
endpoint = {"KUBEKEEPER_EVENTS_ENDPOINT": "https://topic"}
key = {"KUBEKEEPER_EVENTS_KEY": "key"}
for to in (endpoint, endpoint | key, {"AzureWebJobsStorage__accountName": "account"}):
    destination(read_settings(where | to), where | to, "name")
print(json.dumps([file for module in sys.modules.values() if (file := getattr(module, "__file__", None))]))
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return lay_out(tmp_path_factory.mktemp("image"))


def test_the_image_holds_what_is_imported_and_nothing_else(image: Image) -> None:
    app, packaged = image.environ["PYTHONPATH"].split(":")
    command = [image.command[0], "-S", "-c", IMPORTED]
    done = subprocess.run(command, env=image.environ, cwd=app, capture_output=True, text=True, check=True)
    files = json.loads(done.stdout)
    imported = {str(Path(file).relative_to(app)) for file in files if file.startswith(f"{app}/")}
    assert imported == {str(source.relative_to(CHECKOUT)) for source, _ in copied()}
    used = {Path(file).relative_to(packaged).parts[0] for file in files if file.startswith(f"{packaged}/")}
    assert used >= {"azure", "msgspec", "msal", "urllib3", "cryptography"}


def test_the_image_is_small_and_has_nothing_of_the_app(image: Image) -> None:
    of_the_app = {"azure-functions", "azure-mgmt-compute", "kubernetes", "grpcio", "azure-storage-blob"}
    assert not of_the_app & set(packages())
    roots = [Path(part) for part in image.environ["PYTHONPATH"].split(":")]
    assert not (roots[0] / "functions").exists()
    size = sum(path.stat().st_size for root in roots for path in root.rglob("*") if path.is_file())
    assert size < 45_000_000, f"{size / 1e6:.0f} MB"


@pytest.mark.parametrize("by", ["identity", "key"])
def test_the_image_runs_with_what_it_has(image: Image, tmp_path: Path, by: str) -> None:
    log = tmp_path / "log"
    identity = WorkloadIdentity(tmp_path) if by == "identity" else None
    with LocalKubernetes() as kubernetes, LocalTopic(identity) as topic, log.open("wb") as file:
        kubernetes.put(PODS, pod("p", unschedulable=True))
        environ = {**image.environ, **process_environ(kubernetes, tmp_path, **topic.environ)}
        process = subprocess.Popen(image.command, env=environ, stderr=file, cwd=tmp_path)
        try:
            until(lambda: topic.events or process.poll() is not None, log.read_text())
            assert topic.of("Kubekeeper.Cluster.PodUnschedulable"), log.read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(90) == 0, log.read_text()

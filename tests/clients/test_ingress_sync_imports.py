"""What a pass imports: the typed models of azure-mgmt-network and of kubernetes are not on the path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PASS = """
import sys
from datetime import UTC, datetime
from azure.core.credentials import AccessToken
import shared.ingress_sync.reconcile
import shared.ingress_sync.operations
from shared.clients.arm import arm
from shared.clients.kube import kube_client
from shared.errors import UnavailableError
from shared.ingress_sync.certificates import facts
from shared.settings import KubernetesConnection

class Nobody:
    def get_token(self, *scopes, **options):
        return AccessToken("x", 2**40)

manager = arm({"KUBEKEEPER_ARM_ENDPOINT": "http://127.0.0.1:9"}, credential=Nobody())
cluster = kube_client(KubernetesConnection(server="http://127.0.0.1:9", entra=True), {}, Nobody)
for ask in (
    lambda: manager.get("/subscriptions/s/providers/Microsoft.Network/applicationGateways/gw"),
    lambda: cluster.get("/api/v1/pods"),
):
    try:
        ask()
    except UnavailableError:
        pass
facts({"data": {}})
HEAVY = ("azure.mgmt.network", "azure.mgmt.compute", "kubernetes")
heavy = [name for name in sys.modules if name.startswith(HEAVY)]
print(",".join(heavy))
"""


def test_a_pass_loads_no_typed_models() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PASS],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == ""

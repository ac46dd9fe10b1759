"""`keeper doctor` on a cluster and its place in Azure: real calls, and every refusal said plainly."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.identity import ClientSecretCredential
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sandbox.arm import LOCATION, LocalArm
from sandbox.asgi import Fault, Server, on
from sandbox.certificates import Authority
from sandbox.identity import TENANT
from sandbox.kube import LocalKubernetes
from shared.bootstrap import Clients
from shared.cli.doctor import examine
from shared.cli.findings import Finding
from shared.cli.rights import INFRA
from shared.cli.session import Session
from shared.clients.arm import API_VERSIONS

CONFIGURATION = """\
clusters:
  - name: prod
    kubernetes: {{kubeconfig: "file:{kubeconfig}"}}
    azure:
      subscription: {subscription}
      resourceGroups: [{group}]
      location: {location}
    diskRelease: {{}}
    ingressSync:
      gateway: {gateway}
"""


@pytest.fixture
def azure() -> Iterator[LocalArm]:
    with LocalArm() as running:
        yield running


@pytest.fixture(scope="module")
def kubernetes() -> Iterator[LocalKubernetes]:
    with LocalKubernetes() as running:
        yield running


def findings(
    azure: LocalArm, kubeconfig: Path, storage: str, tmp_path: Path, *, location: str = LOCATION
) -> dict[str, Finding]:
    here = session_of(azure, tmp_path, storage, kubeconfig, location=location)
    return {finding.subject: finding for finding in examine(here, "prod")}


def said(azure: LocalArm, kubeconfig: Path, storage: str, tmp_path: Path, **settings: str) -> dict[str, str]:
    """Messages by subject and level: of timers there are several."""
    here = session_of(azure, tmp_path, storage, kubeconfig, **settings)
    return {f"{one.subject} {one.level}": one.message for one in examine(here, "prod")}


def session_of(
    azure: LocalArm,
    tmp_path: Path,
    storage: str,
    kubeconfig: Path | str = "/nowhere",
    *,
    location: str = LOCATION,
    **settings: str,
) -> Session:
    path = tmp_path / "kubekeeper.yaml"
    values = {"kubeconfig": kubeconfig, "subscription": azure.subscription, "group": azure.group}
    values["gateway"] = azure.id_of("Microsoft.Network/applicationGateways", "gw")
    path.write_text(CONFIGURATION.format(**values, location=location))
    here = Session(
        {
            "AzureWebJobsStorage": storage,
            "KUBEKEEPER_CONFIG": str(path),
            "KUBEKEEPER_ARM_ENDPOINT": azure.url,
            **settings,
        }
    )
    here.clients.credential = azure.credential()
    return here


def test_a_cluster_that_can_be_worked_with(
    azure: LocalArm, kubernetes: LocalKubernetes, storage: str, tmp_path: Path
) -> None:
    found = findings(azure, kubernetes.kubeconfig(), storage, tmp_path)
    assert found["prod kubernetes"].level == "ok"
    assert found[f"prod azure {azure.group}"] == Finding(
        level="ok", subject=f"prod azure {azure.group}", message=f"can be read, in {LOCATION}"
    )


def test_an_identity_without_roles_is_told_so_on_both_sides(
    azure: LocalArm, kubernetes: LocalKubernetes, storage: str, tmp_path: Path
) -> None:
    refused = {"error": {"code": "AuthorizationFailed", "message": "The client does not have authorization."}}
    azure.fault(Fault(on("GET", "resourceGroups"), status=403, body=refused))
    found = findings(azure, kubernetes.kubeconfig("nobody", ()), storage, tmp_path)
    assert "Forbidden (403)" in found["prod kubernetes"].message
    assert "bind the role" in found["prod kubernetes"].message
    assert "AuthorizationFailed (403)" in found[f"prod azure {azure.group}"].message


def test_rights_that_an_automation_lacks_are_named_with_the_command_that_gives_them(
    azure: LocalArm, kubernetes: LocalKubernetes, storage: str, tmp_path: Path
) -> None:
    azure.core.denied = ["Microsoft.Compute/virtualMachines/powerOff"]
    found = findings(azure, kubernetes.kubeconfig("nobody", ()), storage, tmp_path)
    lacks = found["prod disk-release in azure"]
    assert lacks.level == "problem"
    assert "may not Microsoft.Compute/virtualMachines/powerOff/action in" in lacks.message
    scope = f"/subscriptions/{azure.subscription}/resourceGroups/{azure.group}"
    assert lacks.message.endswith(
        f"az role assignment create --assignee CLIENT-ID --scope {scope} --role "
        f'"$(az role definition list --scope {scope} '
        '--query "[?starts_with(roleName, \'Kubekeeper disk-release (\')].name" --output tsv)"'
    )
    assert "roleName: 'Kubekeeper ${automation} (" in (INFRA / "modules" / "roles.bicep").read_text()
    assert found["prod ingress-sync in azure"].level == "ok"
    inside = found["prod disk-release in kubernetes"]
    assert inside.level == "problem"
    assert "kubectl apply -f infra/kubernetes/roles/disk-release.yaml" in inside.message


def test_an_administrator_may_do_all_that_the_automations_need(
    azure: LocalArm, kubernetes: LocalKubernetes, storage: str, tmp_path: Path
) -> None:
    found = findings(azure, kubernetes.kubeconfig(), storage, tmp_path)
    rights = [one for subject, one in found.items() if subject.endswith((" in azure", " in kubernetes"))]
    assert [one.level for one in rights] == ["ok"] * 4


def test_a_provider_that_is_not_registered_and_an_api_version_that_is_not_offered(
    azure: LocalArm,
    kubernetes: LocalKubernetes,
    storage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    azure.core.unregistered = ["microsoft.network"]
    monkeypatch.setitem(API_VERSIONS, "microsoft.compute/disks", "2031-01-01")
    found = findings(azure, kubernetes.kubeconfig(), storage, tmp_path)
    network, compute = (found[f"prod azure provider Microsoft.{name}"] for name in ("Network", "Compute"))
    assert network.message.endswith("az provider register --namespace Microsoft.Network")
    assert (network.level, compute.level) == ("problem", "problem")
    assert "does not offer API version 2031-01-01" in compute.message


def test_timers_that_are_silent_schedules_that_are_missing_and_a_forwarder_that_was_heard(
    azure: LocalArm, kubernetes: LocalKubernetes, storage: str, tmp_path: Path
) -> None:
    journal = Clients({"AzureWebJobsStorage": storage}).journal
    now = datetime.now(UTC)
    journal.tick("disk-release", now - timedelta(minutes=5), 1)
    journal.tick("ingress-sync", now - timedelta(minutes=5), 1)
    schedules = {
        "KUBEKEEPER_DISK_RELEASE_SCHEDULE": "0 * * * * *",
        "KUBEKEEPER_INGRESS_SYNC_SCHEDULE": "0 */5 * * * *",
    }
    found = said(azure, kubernetes.kubeconfig(), storage, tmp_path, **schedules)
    assert "the timer of disk-release has not fired for 5 minutes" in found["timers problem"]
    assert "ingress-sync fired 5m" in found["timers ok"]
    assert (
        "KUBEKEEPER_AUTOSCALING_SCHEDULE, KUBEKEEPER_ETCD_BACKUP_SCHEDULE not set"
        in found["app settings problem"]
    )
    assert "no event of it has ever arrived" in found["prod forwarder warning"]
    journal.heard("prod", now - timedelta(seconds=80))
    assert "last heard 1m 2" in said(azure, kubernetes.kubeconfig(), storage, tmp_path)["prod forwarder ok"]


@pytest.mark.parametrize(
    ("code", "error", "remedy"),
    [
        ("AADSTS7000215: Invalid client secret provided.", "invalid_client", "the client secret is wrong"),
        (
            "AADSTS700016: Application with identifier 'x' was not found.",
            "unauthorized_client",
            "correct AZURE_CLIENT_ID",
        ),
        ("AADSTS7000222: The provided client secret keys are expired.", "invalid_client", "has expired"),
    ],
)
def test_wrong_credentials_are_said_plainly(
    azure: LocalArm, storage: str, tmp_path: Path, code: str, error: str, remedy: str
) -> None:
    """With azure-identity itself, against an Entra ID that answers as the real one does."""
    options = {"disable_instance_discovery": True}
    with Entra(tmp_path, error, code) as entra:
        options |= {"authority": entra.url, "connection_verify": str(entra.ca)}
        with ClientSecretCredential(TENANT, "client", "secret", **options) as credential:
            here = session_of(azure, tmp_path, storage)
            here.clients.credential = credential
            found = {finding.subject: finding for finding in examine(here, "prod")}
    refused = found[f"prod azure {azure.group}"]
    assert refused.level == "problem"
    assert remedy in refused.message


ONCE = {"connection": "close"}
"""No connection is kept, so that none is left when the server goes."""


class Entra:
    """The two pages of a tenant that azure-identity asks for; the token is always refused."""

    def __init__(self, directory: Path, error: str, description: str) -> None:
        authority = Authority()
        issued = authority.issue("entra", names=["127.0.0.1"])
        self.ca, certificate, key = (directory / name for name in ("entra-ca.pem", "entra.pem", "entra.key"))
        self.ca.write_text(authority.pem)
        certificate.write_text(issued.certificate)
        key.write_text(issued.key)
        refusal = {"error": error, "error_description": description}

        async def discovery(_: Request) -> JSONResponse:
            place = f"{self.url}/{TENANT}"
            pages = {"authorization": "authorize", "token": "token"}
            document = {f"{name}_endpoint": f"{place}/oauth2/v2.0/{page}" for name, page in pages.items()}
            return JSONResponse({"issuer": f"{place}/v2.0", **document}, headers=ONCE)

        async def token(_: Request) -> JSONResponse:
            return JSONResponse(refusal, 401, ONCE)

        routes = [
            Route(f"/{TENANT}/v2.0/.well-known/openid-configuration", discovery),
            Route(f"/{TENANT}/oauth2/v2.0/token", token, methods=["POST"]),
        ]
        self._server = Server(Starlette(routes=routes), (str(certificate), str(key)))

    @property
    def url(self) -> str:
        return self._server.url

    def __enter__(self) -> Entra:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()


def test_another_region_is_a_warning(
    azure: LocalArm, kubernetes: LocalKubernetes, storage: str, tmp_path: Path
) -> None:
    found = findings(azure, kubernetes.kubeconfig(), storage, tmp_path, location="northeurope")
    assert found[f"prod azure {azure.group}"].level == "warning"
    assert "azure.location" in found[f"prod azure {azure.group}"].message

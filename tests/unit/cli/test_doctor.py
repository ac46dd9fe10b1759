"""What `keeper doctor` concludes; that it makes real calls is shown in tests/scenarios/test_keeper.py."""

from datetime import UTC, datetime, timedelta

import pytest
from azure.core.exceptions import ClientAuthenticationError

from sandbox.certificates import Authority
from shared.cli.doctor import longest_gap, validity
from shared.cli.findings import clock_finding, sign_in_hint
from shared.clients.storage import translate
from shared.errors import SettingsError

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)

ENTRA = {
    "AADSTS700016: Application with identifier '1' was not found.": "correct AZURE_CLIENT_ID",
    "AADSTS7000215: Invalid client secret provided.": "the client secret is wrong; set AZURE_CLIENT_SECRET",
    "AADSTS7000222: The provided client secret keys are expired.": "the client secret has expired",
    "AADSTS90002: Tenant 'contoso' not found.": "there is no such tenant; correct AZURE_TENANT_ID",
}


@pytest.mark.parametrize(("said", "told"), ENTRA.items())
def test_wrong_credentials_are_said_plainly(said: str, told: str) -> None:
    refused = ClientAuthenticationError(
        f"DefaultAzureCredential failed:\n\tEnvironmentCredential: {said} Trace ID: x"
    )
    error = translate(refused, "list container 'etcd-backups'")
    error.__cause__ = refused
    assert told in sign_in_hint(error)


def test_other_errors_get_no_such_hint() -> None:
    assert sign_in_hint(SettingsError("AADSTSnothing")) == ""


@pytest.mark.parametrize(
    ("schedule", "hours"),
    [
        ("0 * * * *", 1),
        ("0 3 * * *", 24),
        ("0 8-18 * * *", 14),
        ("0 12 * * 1-5", 72),
        ("*/5 * * * *", 5 / 60),
    ],
)
def test_the_longest_gap_of_a_schedule(schedule: str, hours: float) -> None:
    assert longest_gap(schedule, NOW) == timedelta(hours=hours)


def test_certificates_are_warned_about_before_they_expire() -> None:
    def level(days: int) -> str:
        issued = Authority().issue(
            "x", not_before=NOW - timedelta(days=400), not_after=NOW + timedelta(days=days)
        )
        (finding,) = validity("client certificate", issued.certificate.encode(), NOW)
        return finding.level

    assert [level(90), level(29), level(-1)] == ["ok", "warning", "problem"]
    (finding,) = validity("client certificate", b"no pem", NOW)
    assert finding.message == "is not a PEM certificate; copy it again"


def test_clocks_that_differ_are_warned_about_with_the_direction() -> None:
    assert clock_finding("x", "its", timedelta(seconds=1)).level == "ok"
    assert "its clock is 60 s ahead of ours" in clock_finding("x", "its", timedelta(seconds=60)).message
    assert "its clock is 60 s behind ours" in clock_finding("x", "its", timedelta(seconds=-60)).message

"""The forwarder's environment variables."""

from __future__ import annotations

import pytest

from shared.errors import SettingsError
from shared.forwarder.decide import EVENTS
from shared.forwarder.settings import read_settings

LEAST = {
    "KUBEKEEPER_CLUSTER": "prod",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
    "KUBEKEEPER_EVENTS_ENDPOINT": "https://topic.westeurope-1.eventgrid.azure.net",
}


def test_the_least_that_is_needed_is_the_cluster_and_a_destination() -> None:
    found = read_settings(LEAST)
    assert (found.cluster, found.by_queue, found.secret_namespaces) == ("prod", False, ())
    assert found.events == set(EVENTS)
    assert found.kubernetes.server == "https://10.0.0.1:443"
    assert found.kubernetes.token == "file:/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert (found.pace.quiet, found.pace.longest, found.pace.gap) == (1, 5, 10)
    assert found.pace.gap_of("EndpointsChanged") == 3
    assert (found.resync, found.etcd_interval, found.port) == (600, 30, 8080)


def test_an_address_of_ipv6_is_put_into_brackets() -> None:
    found = read_settings({**LEAST, "KUBERNETES_SERVICE_HOST": "fd00::1"})
    assert found.kubernetes.server == "https://[fd00::1]:443"


@pytest.mark.parametrize("name", ["AzureWebJobsStorage", "AzureWebJobsStorage__accountName"])
def test_without_event_grid_the_queues_are_taken(name: str) -> None:
    environ = {key: value for key, value in LEAST.items() if "ENDPOINT" not in key} | {name: "x"}
    assert read_settings(environ).by_queue


def test_only_the_events_of_the_automations_in_use_are_wanted() -> None:
    found = read_settings({**LEAST, "KUBEKEEPER_AUTOMATIONS": "disk-release, etcd-backup"})
    assert found.events == {"VolumeAttachFailed", "NodeNotReady", "EtcdUnhealthy"}


@pytest.mark.parametrize(
    ("text", "expected"), [("a,b  a", ("a", "b")), ("*", ("*",)), ("a *", ("*",)), ("", ())]
)
def test_namespaces_of_secrets(text: str, expected: tuple[str, ...]) -> None:
    assert read_settings({**LEAST, "KUBEKEEPER_SECRET_NAMESPACES": text}).secret_namespaces == expected


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"KUBEKEEPER_CLUSTER": ""}, "kubekeeper.yaml"),
        ({"KUBEKEEPER_CLUSTER": "Prod"}, "KUBEKEEPER_CLUSTER"),
        ({"KUBERNETES_SERVICE_HOST": ""}, "KUBEKEEPER_KUBERNETES_SERVER"),
        ({"KUBEKEEPER_EVENTS_ENDPOINT": ""}, "AzureWebJobsStorage__accountName"),
        ({"KUBEKEEPER_AUTOMATIONS": "coffee"}, "there are: autoscaling"),
        ({"KUBEKEEPER_SECRET_NAMESPACES": "A_B"}, "'A_B' is no namespace"),
        ({"KUBEKEEPER_SECRET_NAMESPACES": " ".join(f"n{i}" for i in range(30))}, "take '\\*'"),
        ({"KUBEKEEPER_RESYNC": "soon"}, "KUBEKEEPER_RESYNC: 'soon' is not a duration"),
        ({"KUBEKEEPER_PORT": "http"}, "KUBEKEEPER_PORT"),
        ({"KUBEKEEPER_PORT": "99999"}, "KUBEKEEPER_PORT"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        read_settings(LEAST | wrong)

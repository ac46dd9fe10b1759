"""Azure's own events and the forwarder's: which nudges of which clusters, in both schemas of Event Grid."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from azure.functions import meta
from azure.functions.eventgrid import EventGridEventInConverter

from shared.runtime.automation import AUTOMATIONS
from shared.runtime.event import ARM_EVENTS, HEALTH, NOTED, Incoming, incoming, nudges_for
from shared.settings import Settings, parse_settings

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/reference/events.md"
BICEP = ROOT / "infra/modules/subscription-topics.bicep"
BEGIN = "<!-- table: made from shared/runtime by tests/unit/runtime/test_event_sources.py -->\n"
END = "<!-- end of table -->\n"
MOST_FILTER_VALUES = 25
"""Event Grid takes no more values in one advanced filter."""

SUBSCRIPTION = "/subscriptions/00000000-0000-0000-0000-000000000001"
OTHER = "/subscriptions/00000000-0000-0000-0000-000000000002"
NODES = f"{SUBSCRIPTION}/resourceGroups/MC_prod"
GATEWAY = f"{SUBSCRIPTION}/resourceGroups/network/providers/Microsoft.Network/applicationGateways/front"
AKS = f"{SUBSCRIPTION}/resourceGroups/prod/providers/Microsoft.ContainerService/managedClusters/prod"
VM = f"{NODES}/providers/Microsoft.Compute/virtualMachines/agent-0"
SET = f"{NODES}/providers/Microsoft.Compute/virtualMachineScaleSets/agents"
DISK = f"{NODES}/providers/Microsoft.Compute/disks/data"


def settings() -> Settings:
    """`prod` has everything, `shared` the same groups and only disk release, `far` is elsewhere."""

    def cluster(name: str, subscription: str, groups: list[str], **more: Any) -> dict[str, Any]:
        scope = {"subscription": subscription, "resourceGroups": groups, "location": "westeurope"}
        kubernetes = {"server": "https://10.0.0.1", "token": "setting:T"}
        return {"name": name, "kubernetes": kubernetes, "azure": scope} | more

    mine = SUBSCRIPTION.rpartition("/")[2]
    prod = cluster(
        "prod",
        mine,
        ["mc_prod"],
        autoscaling={},
        diskRelease={},
        ingressSync={"gateway": GATEWAY},
    )
    prod["azure"]["managedCluster"] = AKS
    shared = cluster("shared", mine, ["mc_prod"], diskRelease={})
    everything: dict[str, Any] = {"autoscaling": {}, "diskRelease": {}}
    far = cluster("far", OTHER.rpartition("/")[2], ["mc_prod"], **everything)
    return parse_settings(json.dumps({"clusters": [prod, shared, far]}), "test")


def nudged(event: Incoming) -> set[str]:
    found, why_not = nudges_for(settings, event)
    assert bool(found) != bool(why_not)
    return {f"{nudge.cluster}/{nudge.automation}" for nudge in found}


def arm(operation: str, resource: str, what: str = "WriteSuccess") -> dict[str, Any]:
    """As the page of Microsoft.Resources event schemas shows it."""
    data = {
        "authorization": {"scope": resource, "action": operation},
        "resourceProvider": operation.partition("/")[0],
        "resourceUri": resource,
        "operationName": operation,
        "status": "Succeeded",
        "subscriptionId": SUBSCRIPTION.rpartition("/")[2],
    }
    return {"type": f"Microsoft.Resources.Resource{what}", "subject": resource, "data": data}


def health(resource: str, what: str = "AvailabilityStatusChanged") -> dict[str, Any]:
    """As the page of Microsoft.ResourceNotifications.HealthResources event schemas shows it."""
    part = f"{resource}/providers/Microsoft.ResourceHealth/AvailabilityStatuses/current"
    properties = {
        "targetResourceId": resource,
        "targetResourceType": "Microsoft.Compute/virtualMachines",
        "previousAvailabilityState": "Available",
        "availabilityState": "Unavailable",
    }
    info = {"id": part, "name": "current", "properties": properties}
    return {"type": f"{HEALTH}{what}", "subject": part, "data": {"resourceInfo": info}}


def of_pool(what: str) -> dict[str, Any]:
    """As the page of AKS event schemas shows it; the cluster is its source."""
    return {
        "type": f"Microsoft.ContainerService.{what}",
        "source": AKS,
        "subject": "prod",
        "data": {"nodePoolName": "agents"},
    }


def in_both_schemas(event: dict[str, Any]) -> list[Incoming]:
    """The event as the Functions library hands it over, sent as CloudEvent and as Event Grid event."""
    time = "2026-11-23T10:00:00Z"
    source = event.get("source", SUBSCRIPTION)
    cloud = {"specversion": "1.0", "id": "1", "time": time, "source": source} | event
    classic = {
        "id": "1",
        "eventTime": time,
        "dataVersion": "1",
        "topic": source,
        "eventType": event["type"],
        "subject": event["subject"],
        "data": event["data"],
    }
    return [
        incoming(EventGridEventInConverter.decode(meta.Datum(json.dumps(one), "json"), trigger_metadata=None))
        for one in (cloud, classic)
    ]


BOTH_OF_PROD = {"prod/autoscaling", "prod/disk-release", "shared/disk-release"}
CASES = [
    (arm("Microsoft.Compute/virtualMachines/deallocate/action", VM, "ActionSuccess"), BOTH_OF_PROD),
    (arm("Microsoft.Compute/virtualMachines/deallocate/action", VM, "ActionFailure"), BOTH_OF_PROD),
    (arm("Microsoft.Compute/virtualMachines/delete", VM, "DeleteSuccess"), BOTH_OF_PROD),
    (arm("MICROSOFT.COMPUTE/VIRTUALMACHINES/WRITE", VM.upper()), BOTH_OF_PROD),
    (arm("Microsoft.Compute/disks/write", DISK), {"prod/disk-release", "shared/disk-release"}),
    (
        arm("Microsoft.Compute/disks/delete", DISK, "DeleteCancel"),
        {"prod/disk-release", "shared/disk-release"},
    ),
    (arm("Microsoft.Compute/virtualMachineScaleSets/write", SET), {"prod/autoscaling"}),
    (arm("Microsoft.Compute/virtualMachineScaleSets/delete/action", SET, "ActionSuccess"), BOTH_OF_PROD),
    (
        arm("Microsoft.ContainerService/managedClusters/agentPools/write", f"{AKS}/agentPools/a"),
        {"prod/autoscaling"},
    ),
    (arm("Microsoft.Network/applicationGateways/write", GATEWAY), {"prod/ingress-sync"}),
    (
        arm("Microsoft.Network/applicationGateways/stop/action", GATEWAY, "ActionSuccess"),
        {"prod/ingress-sync"},
    ),
    (arm("Microsoft.Network/applicationGateways/write", GATEWAY + "-2"), set()),
    (arm("Microsoft.Network/applicationGateways/write", GATEWAY.replace("network", "MC_prod")), set()),
    (arm("Microsoft.Network/publicIPAddresses/write", f"{NODES}/providers/Microsoft.Network/x/y"), set()),
    (arm("Microsoft.Compute/disks/write", DISK.replace("MC_prod", "MC_prod2")), set()),
    (arm("Microsoft.Compute/disks/write", DISK.replace(SUBSCRIPTION, OTHER)), {"far/disk-release"}),
    (health(VM), BOTH_OF_PROD),
    (health(VM, "ResourceAnnotated"), BOTH_OF_PROD),
    (health(f"{SET}/virtualMachines/3"), BOTH_OF_PROD),
    (of_pool("NodePoolRollingStarted"), {"prod/autoscaling"}),
    (of_pool("NodePoolRollingFailed"), {"prod/autoscaling"}),
    (of_pool("NewKubernetesVersionAvailable"), set()),
    (of_pool("ClusterSupportEnded"), set()),
]


@pytest.mark.parametrize(
    ("event", "expected"), CASES, ids=lambda one: one.get("type") if isinstance(one, dict) else ""
)
def test_an_event_of_azure_nudges_the_clusters_that_hold_the_resource(
    event: dict[str, Any], expected: set[str]
) -> None:
    for one in in_both_schemas(event):
        assert nudged(one) == expected


@pytest.mark.parametrize("automation", AUTOMATIONS.values(), ids=lambda one: one.name)
def test_an_event_of_the_forwarder_nudges_who_reacts_to_it(automation: Any) -> None:
    for kind in automation.events:
        if kind.startswith("Kubekeeper.Cluster."):
            event = {"type": kind, "subject": "x", "data": {"cluster": "prod"}}
            expected = {f"prod/{automation.name}"} if automation.name != "etcd-backup" else set()
            for one in in_both_schemas(event):
                assert nudged(one) == expected


def test_a_health_event_without_its_target_is_found_by_its_subject() -> None:
    event = health(VM)
    event["data"] = {}
    for one in in_both_schemas(event):
        assert nudged(one) == BOTH_OF_PROD


@pytest.mark.parametrize(
    "data", [{}, {"resourceUri": 7}, {"operationName": []}, {"resourceInfo": "x"}, None, "x"]
)
def test_strange_data_of_azure_is_ignored_with_a_reason(data: object) -> None:
    for kind in (
        *ARM_EVENTS,
        f"{HEALTH}ResourceAnnotated",
        "Microsoft.ContainerService.NodePoolRollingFailed",
    ):
        for one in in_both_schemas({"type": kind, "subject": "", "source": "x", "data": data}):
            found, why_not = nudges_for(settings, one)
            assert (found, bool(why_not)) == ([], True)


def test_an_event_for_people_says_what_to_do() -> None:
    (event, _) = in_both_schemas(of_pool("NewKubernetesVersionAvailable"))
    assert "rolling-upgrade" in nudges_for(settings, event)[1]


def test_a_reason_names_the_operation() -> None:
    (event, _) = in_both_schemas(arm("Microsoft.Compute/disks/write", DISK))
    assert {nudge.reason for nudge in nudges_for(settings, event)[0]} == {
        "ResourceWriteSuccess Microsoft.Compute/disks/write"
    }


# What is written about it


def rows() -> list[str]:
    """The table of the page: every event, and what it nudges."""
    lines = ["| event | nudges |", "|---|---|"]
    kinds = sorted({kind for automation in AUTOMATIONS.values() for kind in automation.events} | set(NOTED))
    lines += [f"| `{kind}` | {_wanted('events', kind) or NOTED[kind]} |" for kind in kinds]
    lines += ["", "| operation of Azure Resource Manager | nudges |", "|---|---|"]
    return lines + [f"| `{name}` | {_wanted('operations', name)} |" for name in operations()]


def operations() -> list[str]:
    return sorted({name for automation in AUTOMATIONS.values() for name in automation.operations})


def _wanted(what: str, name: str) -> str:
    return ", ".join(f"`{one.name}`" for one in AUTOMATIONS.values() if name in getattr(one, what))


def with_table(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n".join(rows()) + "\n" + END + rest.partition(END)[2]


def test_the_page_shows_the_table_that_the_code_has() -> None:
    text = PAGE.read_text()
    assert text == with_table(text), f"run `python {Path(__file__).relative_to(ROOT)}`"


def test_the_subscriptions_of_the_templates_ask_for_exactly_the_operations_that_nudge() -> None:
    found = re.search(r"var operations = \[(.*?)\]", BICEP.read_text(), re.DOTALL)
    assert found is not None
    assert sorted(re.findall(r"'([^']+)'", found[1])) == operations()
    assert len(operations()) <= MOST_FILTER_VALUES


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))

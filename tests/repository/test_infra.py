"""The templates under infra/, deployed on paper with every sample: what they ask for, and under which names.

The real Bicep compiler comes from no registry that tests may use. The syntax is checked by the grammar of
tree-sitter, everything else by `bicep`, which evaluates the templates and takes nothing that it does not
know. Types of resources are not checked here: docs/deploying.md says what was checked once, and how.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import bicep
import pytest
import tree_sitter_bicep
import yaml
from bicep import BicepError, Deployment, Resource, Scope, deploy
from tree_sitter import Language, Parser

from sandbox.tools import CHECKOUT
from shared.clients.arm import ENDPOINT_SETTING, ENDPOINTS
from shared.trace import INSIGHTS

INFRA = CHECKOUT / "infra"
TEMPLATES = sorted(INFRA.rglob("*.bicep"))
SAMPLES = sorted(INFRA.rglob("*.bicepparam"))
SUBSCRIPTION = "00000000-0000-0000-0000-00000000000a"
OPERATOR = {"operatorId": "00000000-0000-0000-0000-00000000000b"}
# Azure's rules for names ("Naming rules and restrictions for Azure resources"); the last part of each name.
NAMES = {
    "Microsoft.EventGrid/systemTopics": r"[A-Za-z0-9-]{3,50}",
    "Microsoft.EventGrid/topics": r"[A-Za-z0-9-]{3,50}",
    "Microsoft.Insights/components": r"[\w().-]{1,255}",
    "Microsoft.KeyVault/vaults": r"[A-Za-z](?!.*--)[A-Za-z0-9-]{1,22}[A-Za-z0-9]",
    "Microsoft.ManagedIdentity/userAssignedIdentities": r"[A-Za-z0-9][\w-]{2,127}",
    "Microsoft.Network/privateEndpoints": r"[A-Za-z0-9][\w.-]{0,62}\w",
    "Microsoft.OperationalInsights/workspaces": r"[A-Za-z0-9][A-Za-z0-9-]{2,61}[A-Za-z0-9]",
    "Microsoft.Resources/resourceGroups": r"[\w().-]{0,89}[\w()-]",
    "Microsoft.Storage/storageAccounts": r"[a-z0-9]{3,24}",
    "Microsoft.Storage/storageAccounts/blobServices/containers": r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]",
    "Microsoft.Storage/storageAccounts/queueServices/queues": r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]",
    "Microsoft.Storage/storageAccounts/tableServices/tables": r"[A-Za-z][A-Za-z0-9]{2,62}",
    "Microsoft.Web/serverfarms": r"[A-Za-z0-9-]{1,60}",
    "Microsoft.Web/sites": r"[A-Za-z0-9][A-Za-z0-9-]{0,58}[A-Za-z0-9]",
}


def name(path: Path) -> str:
    return str(path.relative_to(INFRA))


def of(deployment: Deployment, kind: str) -> list[Resource]:
    return [one for one in deployment.resources if one.type == kind]


def events_of_subscription(**more: Any) -> Deployment:
    cluster = (
        f"/subscriptions/{SUBSCRIPTION}/resourceGroups/g/providers/Microsoft.ContainerService/managedClusters"
    )
    parameters = {
        "appId": "/the/app",
        "storageAccountId": "/the/account",
        "identityId": "/the/identity",
        "resourceGroupName": "rg-kubekeeper-prod",
        "managedClusters": [{"id": f"{cluster}/my_cluster", "location": "northeurope"}],
    }
    return Deployment(INFRA / "subscription-events.bicep", parameters | more, Scope(SUBSCRIPTION))


def events_of_topic() -> Deployment:
    names = {
        "functionApp": "app",
        "storageAccount": "account",
        "topic": "topic",
        "identityId": "/the/identity",
    }
    return Deployment(INFRA / "events.bicep", names, Scope(SUBSCRIPTION, "rg"))


def everything() -> list[Deployment]:
    samples = [deploy(path, SUBSCRIPTION) for path in SAMPLES]
    return [*samples, main(**OPERATOR), events_of_subscription(), events_of_topic()]


# --- the language ---


@pytest.mark.parametrize("path", [*TEMPLATES, *SAMPLES], ids=name)
def test_a_file_parses(path: Path) -> None:
    source = path.read_bytes()
    if path.suffix == ".bicepparam":
        # The grammar knows templates only; a file of parameters is `using` and assignments.
        source = re.sub(rb"(?m)^param ", b"var ", re.sub(rb"(?m)^using .*$", b"", source))
    assert not Parser(Language(tree_sitter_bicep.language())).parse(source).root_node.has_error
    bicep.read(path)


@pytest.mark.parametrize("path", SAMPLES, ids=name)
def test_a_sample_deploys_on_paper(path: Path) -> None:
    made = deploy(path, SUBSCRIPTION).resources
    assert {one.type for one in made} >= set(NAMES) - {
        "Microsoft.EventGrid/systemTopics",
        "Microsoft.Network/privateEndpoints",
    }


def test_nothing_is_declared_and_never_used() -> None:
    """Modules, and in each file parameters, variables and types, over all samples."""
    used: dict[Path, set[str]] = {}
    declared: dict[Path, set[str]] = {}
    for top in everything():
        for one in (top, *top.modules):
            used.setdefault(one.path, set()).update(one.used)
            declared[one.path] = {n for n, s in one.declared.items() if s.kind in ("param", "var", "type")}
    assert set(TEMPLATES) == set(declared)
    assert {path.name: names for path in declared if (names := declared[path] - used[path])} == {}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"scopes": [{"resourceGroup": "g", "automations": ["disk-releases"]}]}, "not one of"),
        ({"scopes": [{"resourcegroup": "g", "automations": []}]}, "has no"),
        ({"environmentName": "much-too-long-a-name"}, "maxLength"),
        ({"immutableDays": "30"}, "which is no int"),
        ({"storageSku": "Premium_LRS"}, "allowed"),
        ({"alwaysready": 1}, "has no parameter"),
    ],
)
def test_a_wrong_parameter_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BicepError, match=said):
        main(**wrong)


def main(**parameters: Any) -> Deployment:
    defaults = {"environmentName": "prod", "location": "westeurope"}
    return Deployment(INFRA / "main.bicep", defaults | parameters, Scope(SUBSCRIPTION))


# --- names ---


def test_names_are_what_azure_takes_also_the_longest() -> None:
    for deployment in (*everything(), main(environmentName="abcdefghijkl")):
        for one in deployment.resources:
            if rule := NAMES.get(one.type):
                last = one.name.rpartition("/")[2]
                assert re.fullmatch(rule, last), f"{one.type} {last}"


def test_no_two_resources_are_the_same() -> None:
    for deployment in everything():
        counted = Counter(one.id.lower() for one in deployment.resources if not one.existing)
        assert [one for one, count in counted.items() if count > 1] == []


def test_roles_are_unique_in_a_tenant() -> None:
    """Azure refuses a second role of one name in the tenant, whatever it is assigned to."""
    names = [
        one.body["properties"]["roleName"] for one in of(fleet(), "Microsoft.Authorization/roleDefinitions")
    ]
    assert len(names) == len(set(names)) > 5
    assert max(map(len, names)) <= 128 + len("MC_rg-aks-eu_eu_westeurope")


def fleet() -> Deployment:
    return deploy(INFRA / "samples/fleet.bicepparam", SUBSCRIPTION)


# --- rights ---


def test_a_role_has_the_actions_of_its_automation_and_only_where_it_works() -> None:
    actions = json.loads((INFRA / "actions.json").read_text())
    scope = {"resourceGroup": "g", "subscriptionId": "11111111-1111-1111-1111-111111111111"}
    for automation, wanted in actions.items():
        made = main(scopes=[scope | {"automations": [automation]}])
        roles = of(made, "Microsoft.Authorization/roleDefinitions")
        given = {role.body["properties"]["assignableScopes"][0]: role.body["properties"] for role in roles}
        at_group, at_subscription = Scope(scope["subscriptionId"], "g").id, Scope(scope["subscriptionId"]).id
        assert {where: role["permissions"][0]["actions"] for where, role in given.items()} == {
            at_group: wanted["group"],
            **({at_subscription: wanted["subscription"]} if wanted["subscription"] else {}),
        }
        assert all(one.id.startswith(at_subscription) for one in roles)
        assigned = [
            one.body["properties"]["roleDefinitionId"]
            for one in of(made, "Microsoft.Authorization/roleAssignments")
            if one.id.startswith(at_subscription)
        ]
        assert assigned == [role.id for role in roles]


def test_where_aks_changes_the_machines_autoscaling_only_looks() -> None:
    scopes = [{"resourceGroup": "MC_g", "automations": ["autoscaling-reads"]}]
    roles = of(main(scopes=scopes), "Microsoft.Authorization/roleDefinitions")
    group, subscription = (role.body["properties"]["permissions"][0]["actions"] for role in roles)
    assert "Microsoft.Compute/virtualMachineScaleSets/read" in group
    assert all(action.endswith("/read") for action in group + subscription)


def test_the_automations_a_scope_can_name_are_those_with_actions() -> None:
    (kind,) = [
        one for one in bicep.read(INFRA / "main.bicep") if one.kind == "type" and one.name == "automation"
    ]
    actions = set(json.loads((INFRA / "actions.json").read_text()))
    assert {text for _, text in kind.type[1]} == actions | {"autoscaling-reads"}


def test_every_built_in_role_is_the_one_its_name_says() -> None:
    """Ids from "Azure built-in roles"; in the templates each stands beside its name, or is so called."""
    known = {
        "b7e6dc6d-f1e8-4753-8033-0f276bb0955b": "Storage Blob Data Owner",
        "ba92f5b4-2d11-453d-a403-e96b0029c9fe": "Storage Blob Data Contributor",
        "974c5e8b-45b9-4653-ba55-5f855dd0fb88": "Storage Queue Data Contributor",
        "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3": "Storage Table Data Contributor",
        "4633458b-17de-408a-b874-0445c86b69e6": "Key Vault Secrets User",
        "b86a8fe4-44ce-4948-aee5-eccb2c155cd7": "Key Vault Secrets Officer",
        "e147488a-f6f5-4113-8e2d-b22465e65bf6": "Key Vault Crypto Service Encryption User",
        "3913510d-42f4-4e42-8a64-420c390055eb": "Monitoring Metrics Publisher",
        "d5a91429-5739-47e2-a06b-3470a27159e7": "EventGrid Data Sender",
    }
    found = {}
    for path in TEMPLATES:
        for line in path.read_text().splitlines():
            if match := re.search(r"'([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})'(?: // (.+))?", line):
                found[match[1]] = match[2] or line
    assert set(found) == set(known)
    squeezed = {one: re.sub(r"\W", "", text).lower() for one, text in found.items()}
    assert [one for one, role in known.items() if role.replace(" ", "").lower() not in squeezed[one]] == []


# --- what is safe ---


def test_nothing_takes_a_shared_key_and_secrets_stand_in_no_setting() -> None:
    made = main()
    (account,), (topic,) = (
        of(made, "Microsoft.Storage/storageAccounts"),
        of(made, "Microsoft.EventGrid/topics"),
    )
    assert account.body["properties"]["allowSharedKeyAccess"] is False
    assert account.body["properties"]["allowBlobPublicAccess"] is False
    assert topic.body["properties"]["disableLocalAuth"] is True
    (insights,) = of(made, "Microsoft.Insights/components")
    assert insights.body["properties"]["DisableLocalAuth"] is True
    for one in of(made, "Microsoft.Web/sites/basicPublishingCredentialsPolicies"):
        assert one.body["properties"] == {"allow": False}
    (settings,) = of(made, "Microsoft.Web/sites/config")
    named = settings.body["properties"]
    assert "AzureWebJobsStorage" not in named
    assert {
        key for key in named if re.search("KEY|SECRET|PASSWORD", key.upper().replace("KUBEKEEPER", ""))
    } == set()


def test_an_installation_in_a_network_is_reached_by_private_endpoints_alone() -> None:
    made = main(subnetId="/the/subnet", privateEndpointSubnetId="/the/other")
    endpoints = of(made, "Microsoft.Network/privateEndpoints")
    connections = [
        one.body["properties"]["privateLinkServiceConnections"][0]["properties"] for one in endpoints
    ]
    assert sorted(one["groupIds"][0] for one in connections) == ["blob", "queue", "table", "vault"]
    for kind in ("Microsoft.Storage/storageAccounts", "Microsoft.KeyVault/vaults"):
        (one,) = of(made, kind)
        assert one.body["properties"]["publicNetworkAccess"] == "Disabled"
    (app,) = of(made, "Microsoft.Web/sites")
    assert app.body["properties"]["virtualNetworkSubnetId"] == "/the/subnet"


def test_a_sample_with_private_endpoints_lets_the_app_in() -> None:
    for path in SAMPLES:
        given = {one.name for one in bicep.read(path)}
        assert "privateEndpointSubnetId" not in given or "subnetId" in given, path.name


def test_backups_cannot_be_changed_when_so_many_days_are_asked_for() -> None:
    kind = "Microsoft.Storage/storageAccounts/blobServices/containers/immutabilityPolicies"
    assert of(main(), kind) == []
    (policy,) = of(main(immutableDays=30), kind)
    assert policy.id.endswith("/containers/etcd-backups/immutabilityPolicies/default")
    assert policy.body["properties"]["immutabilityPeriodSinceCreationInDays"] == 30


def test_a_secret_is_a_setting_that_refers_to_the_vault() -> None:
    made = deploy(INFRA / "samples/self-managed.bicepparam", SUBSCRIPTION)
    (settings,), (vault,) = of(made, "Microsoft.Web/sites/config"), of(made, "Microsoft.KeyVault/vaults")
    reference = f"@Microsoft.KeyVault(VaultName={vault.name};SecretName=prod-etcd-key)"
    assert settings.body["properties"]["PROD_ETCD_KEY"] == reference


def test_an_operator_is_given_what_keeper_needs_and_nobody_else_anything() -> None:
    more = of(main(**OPERATOR), "Microsoft.Authorization/roleAssignments")
    theirs = [one for one in more if one.body["properties"]["principalId"] == OPERATOR["operatorId"]]
    assert len(theirs) == 4
    assert len(more) - len(of(main(), "Microsoft.Authorization/roleAssignments")) == 4


def test_undelivered_events_are_kept_and_by_identity_where_event_grid_can() -> None:
    """A global system topic can have no identity (Azure docs: managed identity on a system topic)."""
    subscriptions = [
        one
        for deployment in (events_of_topic(), events_of_subscription())
        for one in deployment.resources
        if one.type.endswith("/eventSubscriptions")
    ]
    assert len(subscriptions) == 4
    regions = {one.id: one.body.get("location") for one in events_of_subscription().resources}
    for one in subscriptions:
        parent = one.id.rpartition("/eventSubscriptions/")[0]
        wanted = (
            "deadLetterDestination" if regions.get(parent) == "global" else "deadLetterWithResourceIdentity"
        )
        assert wanted in one.body["properties"], one.id


# --- it fits the rest of the project ---


def test_the_apps_settings_are_those_the_code_reads() -> None:
    (settings,) = of(main(), "Microsoft.Web/sites/config")
    given = {one for one in settings.body["properties"] if one.startswith("KUBEKEEPER_")}
    page = (CHECKOUT / "docs/configuration.md").read_text()
    documented = set(re.findall(r"^\| `(KUBEKEEPER_\w+)`", page, re.MULTILINE))
    assert given <= documented
    assert {one for one in documented if one.endswith("_SCHEDULE")} <= given


def test_the_host_goes_on_sending_what_the_app_logs() -> None:
    """Told that the worker sends for itself, it would not, and every alert rule asks for a log line."""
    (settings,) = of(main(), "Microsoft.Web/sites/config")
    given = settings.body["properties"]
    assert not {"PYTHON_ENABLE_OPENTELEMETRY", "PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY"} & given.keys()
    assert INSIGHTS in given


@pytest.mark.parametrize("cloud", sorted(ENDPOINTS))
def test_the_app_finds_resource_manager_in_every_cloud(cloud: str) -> None:
    made = Deployment(
        INFRA / "main.bicep", {"environmentName": "prod", "location": "x"}, Scope(SUBSCRIPTION), cloud + "/"
    )
    (settings,) = of(made, "Microsoft.Web/sites/config")
    assert settings.body["properties"][ENDPOINT_SETTING].rstrip("/") in ENDPOINTS


def test_queues_and_tables_are_those_of_the_code() -> None:
    from shared.operations.dispatch import QUEUE
    from shared.runtime import journal, operation
    from shared.runtime.automation import AUTOMATIONS

    made = main()
    queues = [
        one.name.rpartition("/")[2]
        for one in of(made, "Microsoft.Storage/storageAccounts/queueServices/queues")
    ]
    tables = [
        one.name.rpartition("/")[2]
        for one in of(made, "Microsoft.Storage/storageAccounts/tableServices/tables")
    ]
    assert set(queues) == {*AUTOMATIONS, QUEUE}
    assert set(tables) == {journal.TABLE, operation.TABLE}


def test_functions_kept_warm_and_subscribed_to_exist() -> None:
    from app_functions import FUNCTIONS

    (app,) = of(main(alwaysReady=2), "Microsoft.Web/sites")
    warm = app.body["properties"]["functionAppConfig"]["scaleAndConcurrency"]["alwaysReady"]
    assert {one["name"].removeprefix("function:") for one in warm} <= FUNCTIONS.keys()
    assert [one["instanceCount"] for one in warm] == [2] * 3
    (cold,) = of(main(), "Microsoft.Web/sites")
    assert cold.body["properties"]["functionAppConfig"]["scaleAndConcurrency"]["alwaysReady"] == []
    targets = {
        one.body["properties"]["destination"]["properties"]["resourceId"].rpartition("/")[2]
        for deployment in (events_of_topic(), events_of_subscription())
        for one in deployment.resources
        if one.type.endswith("/eventSubscriptions")
    }
    assert targets == {"cluster_event"}


def test_alerts_ask_for_what_the_code_says() -> None:
    sources = "".join(file.read_text() for file in (CHECKOUT / "shared").rglob("*.py"))
    for alert in of(main(), "Microsoft.Insights/scheduledQueryRules"):
        (criterion,) = alert.body["properties"]["criteria"]["allOf"]
        words = re.findall(r'(?:has|startswith) "([^"]+)"', criterion["query"])
        assert words
        # "EtcdBackup.Missed" is put together from the automation and the verb; the other is Azure's own word.
        ours = [word.rpartition(".")[2] for word in words if word != "TooManyRequests"]
        assert [word for word in ours if word not in sources] == []


def test_what_azd_hands_over_is_what_the_templates_have() -> None:
    azure = yaml.safe_load((CHECKOUT / "azure.yaml").read_text())
    outputs = set(main().outputs)
    events = {one.name for one in bicep.read(INFRA / "events.bicep") if one.kind == "param"}
    for hook in azure["hooks"]["postdeploy"].values():
        used = dict(re.findall(r'(\w+)="?\$(?:env:)?([A-Z_]+)', hook["run"]))
        assert set(used) == events
        assert {*used.values(), "AZURE_RESOURCE_GROUP"} <= outputs


def test_json_files_are_json() -> None:
    for path in INFRA.rglob("*.json"):
        json.loads(path.read_text())

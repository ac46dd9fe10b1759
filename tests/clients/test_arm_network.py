"""Gateways, interfaces and addresses of the local Resource Manager, driven by the unmodified
azure-mgmt-network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.mgmt.network import NetworkManagementClient
from azure.mgmt.network import models as m
from local_arm import code_of, connect, unknown_fields

from sandbox.arm import LocalArm
from sandbox.arm.core import Ending
from sandbox.clock import Clock

pytestmark = pytest.mark.no_cover

GROUP = LocalArm.group
Change = Callable[[dict[str, Any]], Any]
WAF = "Microsoft.Network/applicationGatewayWebApplicationFirewallPolicies"
WAF_ID = f"/subscriptions/{LocalArm.subscription}/resourceGroups/{GROUP}/providers/{WAF}/gone"


@pytest.fixture(scope="module")
def running() -> Iterator[LocalArm]:
    with LocalArm(Clock(datetime(2026, 11, 23, tzinfo=UTC))) as arm:
        yield arm


@pytest.fixture
def arm(running: LocalArm) -> LocalArm:
    running.reset()
    return running


@pytest.fixture(scope="module")
def client(running: LocalArm) -> Iterator[NetworkManagementClient]:
    with connect(running, NetworkManagementClient) as client:
        yield client


def raw(client: NetworkManagementClient) -> dict[str, Any]:
    """The gateway as JSON, to be changed and sent back."""
    return client.application_gateways.get(GROUP, "gw").as_dict()


def put(client: NetworkManagementClient, document: dict[str, Any], **options: Any) -> Any:
    return client.application_gateways.begin_create_or_update(GROUP, "gw", document, **options)


def ref(document: dict[str, Any], collection: str, name: str) -> dict[str, str]:
    return {"id": f"{document['id']}/{collection}/{name}"}


def add(document: dict[str, Any], collection: str, name: str, **inside: Any) -> dict[str, Any]:
    part = {"name": name, "properties": inside}
    document["properties"].setdefault(collection, []).append(part)
    return part


def add_site(document: dict[str, Any], name: str, **listener: Any) -> None:
    """A listener for one host with a basic rule to the default pool."""
    inside = {
        "protocol": "Http",
        "hostName": f"{name}.example",
        "frontendIPConfiguration": ref(document, "frontendIPConfigurations", "public"),
        "frontendPort": ref(document, "frontendPorts", "port80"),
        **listener,
    }
    add(document, "httpListeners", name, **{key: value for key, value in inside.items() if value is not None})
    add(
        document,
        "requestRoutingRules",
        name,
        ruleType="Basic",
        priority=len(document["properties"]["requestRoutingRules"]),
        httpListener=ref(document, "httpListeners", name),
        backendAddressPool=ref(document, "backendAddressPools", "default"),
        backendHttpSettings=ref(document, "backendHttpSettingsCollection", "default"),
    )


def add_map(document: dict[str, Any], *paths: str) -> None:
    """Path rules on the default listener's rule."""
    to = {
        "backendAddressPool": ref(document, "backendAddressPools", "default"),
        "backendHttpSettings": ref(document, "backendHttpSettingsCollection", "default"),
    }
    rules = [
        {"name": f"r{number}", "properties": {"paths": [path], **to}} for number, path in enumerate(paths)
    ]
    add(
        document,
        "urlPathMaps",
        "map",
        defaultBackendAddressPool=to["backendAddressPool"],
        defaultBackendHttpSettings=to["backendHttpSettings"],
        pathRules=rules,
    )
    rule = document["properties"]["requestRoutingRules"][0]["properties"]
    for name in to:
        del rule[name]
    rule |= {"ruleType": "PathBasedRouting", "urlPathMap": ref(document, "urlPathMaps", "map")}


def test_a_gateway_lives_its_life(arm: LocalArm, client: NetworkManagementClient) -> None:
    arm.add_gateway("gw")
    made = client.application_gateways.get(GROUP, "gw")
    assert (made.provisioning_state, made.operational_state) == ("Succeeded", "Running")
    assert made.http_listeners[0].id == f"{made.id}/httpListeners/default"
    assert made.http_listeners[0].type == "Microsoft.Network/applicationGateways/httpListeners"
    assert {made.etag} == {part.etag for part in (*made.http_listeners, *made.frontend_ports)}
    assert [gateway.name for gateway in client.application_gateways.list(GROUP)] == ["gw"]
    assert [gateway.name for gateway in client.application_gateways.list_all()] == ["gw"]
    tagged = client.application_gateways.update_tags(GROUP, "gw", m.TagsObject(tags={"a": "b"}))
    assert (tagged.tags, tagged.etag != made.etag) == ({"a": "b"}, True)
    client.application_gateways.begin_stop(GROUP, "gw").result()
    assert client.application_gateways.get(GROUP, "gw").operational_state == "Stopped"
    client.application_gateways.begin_start(GROUP, "gw").result()
    assert client.application_gateways.get(GROUP, "gw").operational_state == "Running"
    client.application_gateways.begin_delete(GROUP, "gw").result()
    with pytest.raises(ResourceNotFoundError):
        client.application_gateways.get(GROUP, "gw")


def full(document: dict[str, Any]) -> dict[str, Any]:
    """A document that uses every kind of part."""
    add(document, "sslCertificates", "cert", data="cGZ4", password="secret")
    add(document, "frontendPorts", "port443", port=443)
    add(document, "trustedRootCertificates", "root", data="cm9vdA==")
    add(document, "rewriteRuleSets", "rewrite", rewriteRules=[])
    add(
        document,
        "probes",
        "probe",
        protocol="Http",
        host="x.example",
        path="/healthz",
        interval=30,
        timeout=30,
        unhealthyThreshold=3,
        match={"statusCodes": ["200-399", "401"]},
    )
    document["properties"]["backendHttpSettingsCollection"][0]["properties"]["probe"] = ref(
        document, "probes", "probe"
    )
    pool = document["properties"]["backendAddressPools"][0]
    pool["properties"]["backendAddresses"] = [{"ipAddress": "10.1.0.4"}, {"fqdn": "b.example"}]
    add_map(document, "/api", "/api/*")
    add_site(
        document,
        "tls",
        protocol="Https",
        hostName=None,
        hostNames=["a.example", "*.b.example"],
        sslCertificate=ref(document, "sslCertificates", "cert"),
        frontendPort=ref(document, "frontendPorts", "port443"),
    )
    add(
        document,
        "redirectConfigurations",
        "redirect",
        redirectType="Permanent",
        targetUrl="https://a.example",
    )
    add_site(document, "old")
    rule = document["properties"]["requestRoutingRules"][-1]["properties"]
    del rule["backendAddressPool"], rule["backendHttpSettings"]
    rule["redirectConfiguration"] = ref(document, "redirectConfigurations", "redirect")
    return document


def test_every_answer_has_only_fields_the_sdk_knows(arm: LocalArm, client: NetworkManagementClient) -> None:
    arm.add_gateway("gw")
    arm.add_nic("nic")
    arm.put(arm.id_of(WAF, "waf"), {"location": "westeurope", "properties": {}})
    answers = [
        put(client, full(raw(client))).result(),
        client.application_gateways.begin_backend_health(GROUP, "gw").result(),
        *client.network_interfaces.list_all(),
        *client.public_ip_addresses.list_all(),
        client.web_application_firewall_policies.get(GROUP, "waf"),
    ]
    assert [problem for answer in answers for problem in unknown_fields(answer, type(answer).__name__)] == []


def test_writing_back_what_was_read_changes_nothing_but_etags(
    arm: LocalArm, client: NetworkManagementClient
) -> None:
    arm.add_gateway("gw")
    first = put(client, full(raw(client))).result().as_dict()
    second = put(client, copy.deepcopy(first)).result().as_dict()

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: bare(inside) for name, inside in value.items() if name != "etag"}
        return [bare(inside) for inside in value] if isinstance(value, list) else value

    assert bare(first) == bare(second)
    redirect = second["properties"]["redirectConfigurations"][0]["properties"]
    assert redirect["requestRoutingRules"] == [ref(second, "requestRoutingRules", "old")]


def test_certificates_are_kept_and_their_secrets_never_shown(
    arm: LocalArm, client: NetworkManagementClient
) -> None:
    arm.add_gateway("gw")
    put(client, full(raw(client))).result()
    document = raw(client)
    certificate = document["properties"]["sslCertificates"][0]["properties"]
    assert certificate["publicCertData"]
    assert not {"data", "password"} & certificate.keys()
    put(client, document).result()
    hidden = arm.core.state.resources[document["id"].lower()].hidden
    assert hidden["secrets"] == {"cert": {"data": "cGZ4", "password": "secret"}}
    add(document, "sslCertificates", "empty")
    with pytest.raises(HttpResponseError) as caught:
        put(client, document)
    assert code_of(caught.value) == (400, "ApplicationGatewaySslCertificateDataMustBeSpecified")


def _change(collection: str, index: int = 0, **inside: Any) -> Change:
    return lambda d: d["properties"][collection][index]["properties"].update(inside)


def _twice(collection: str) -> Change:
    return lambda d: d["properties"][collection].append(copy.deepcopy(d["properties"][collection][0]))


def _many(collection: str, count: int, **inside: Any) -> Change:
    return lambda d: [add(d, collection, f"x{number}", **inside) for number in range(count)]


def _sites(count: int) -> Change:
    return lambda d: [add_site(d, f"s{number}") for number in range(count)]


def _same_priority(document: dict[str, Any]) -> None:
    add_site(document, "other")
    rules = document["properties"]["requestRoutingRules"]
    rules[1]["properties"]["priority"] = rules[0]["properties"]["priority"]


def _redirect_to_wildcard(document: dict[str, Any]) -> None:
    add_site(document, "wild", hostName="*.example")
    target = ref(document, "httpListeners", "wild")
    add(document, "redirectConfigurations", "r", redirectType="Permanent", targetListener=target)


@pytest.mark.parametrize(
    ("change", "code", "where"),
    [
        (_twice("frontendPorts"), "InvalidRequestFormat", ""),
        (
            _change("httpListeners", frontendPort={"id": "/subscriptions/s/x"}),
            "InvalidResourceReference",
            "httpListeners/default",
        ),
        (
            lambda d: _change("httpListeners", frontendPort=ref(d, "frontendPorts", "gone"))(d),
            "InvalidResourceReference",
            "httpListeners/default",
        ),
        (
            lambda d: d["properties"].update(firewallPolicy={"id": WAF_ID}),
            "InvalidResourceReference",
            "gw",
        ),
        (
            lambda d: add(d, "frontendPorts", "again", port=80),
            "ApplicationGatewayFrontendPortsUsingSamePortNumber",
            "frontendPorts/again",
        ),
        (
            lambda d: add_site(d, "same", hostName=None),
            "ApplicationGatewayHttpListenersUsingSameFrontendPortAndHostName",
            "httpListeners/same",
        ),
        (
            lambda d: add_site(d, "many", hostName=None, hostNames=list("abcdef")),
            "ApplicationGatewayHttpListenerHostNamesLimitReached",
            "httpListeners/many",
        ),
        (
            _change("httpListeners", protocol="Https"),
            "ApplicationGatewayHttpsListenerMustReferenceSslCert",
            "httpListeners/default",
        ),
        (
            _change("requestRoutingRules", priority=None),
            "ApplicationGatewayRequestRoutingRulePriorityCannotBeEmpty",
            "requestRoutingRules/default",
        ),
        (
            _change("requestRoutingRules", priority=20_001),
            "ApplicationGatewayRequestRoutingRuleInvalidPriority",
            "requestRoutingRules/default",
        ),
        (
            _same_priority,
            "ApplicationGatewayRequestRoutingRulesUsingSamePriority",
            "requestRoutingRules/other",
        ),
        (
            lambda d: add_map(d, "/ok", "/"),
            "ApplicationGatewayPathRulePathShouldHaveNonEmptyMatchValue",
            "urlPathMaps/map/pathRules/r1",
        ),
        (
            lambda d: add_map(d, "/a*b"),
            "ApplicationGatewayPathRulePathIsInvalid",
            "urlPathMaps/map/pathRules/r0",
        ),
        (
            lambda d: add_map(d, "/a", "/A"),
            "ApplicationGatewayPathRulesUsingSamePath",
            "urlPathMaps/map/pathRules/r1",
        ),
        (
            lambda d: add_map(d, *(f"/{number}" for number in range(101))),
            "ApplicationGatewayPathRulesLimitReached",
            "urlPathMaps/map",
        ),
        (
            lambda d: full(d) and _change("probes", unhealthyThreshold=25)(d),
            "ApplicationGatewayProbeInvalidUnhealthyThreshold",
            "probes/probe",
        ),
        (
            _change("backendHttpSettingsCollection", port=70_000),
            "ApplicationGatewayBackendHttpSettingsInvalidPort",
            "backendHttpSettingsCollection/default",
        ),
        (
            _change(
                "backendHttpSettingsCollection", connectionDraining={"enabled": True, "drainTimeoutInSec": 0}
            ),
            "ApplicationGatewayConnectionDrainingInvalidTimeout",
            "backendHttpSettingsCollection/default",
        ),
        (
            _redirect_to_wildcard,
            "ApplicationGatewayRedirectConfigurationTargetListenerHostNames",
            "redirectConfigurations/r",
        ),
        (
            _many("backendAddressPools", 100, backendAddresses=[]),
            "ApplicationGatewayBackendAddressPoolsLimitReached",
            "gw",
        ),
        (
            _change("backendAddressPools", backendAddresses=[{"ipAddress": "10.0.0.1"}] * 1201),
            "ApplicationGatewayBackendAddressLimitReached",
            "backendAddressPools/default",
        ),
        (_sites(101), "ApplicationGatewayActiveListenersLimitReached", "httpListeners/s100"),
    ],
)
def test_one_wrong_part_refuses_the_whole_document_and_is_named(
    arm: LocalArm, client: NetworkManagementClient, change: Change, code: str, where: str
) -> None:
    arm.add_gateway("gw")
    before = raw(client)
    document = copy.deepcopy(before)
    change(document)
    with pytest.raises(HttpResponseError) as caught:
        put(client, document)
    assert code_of(caught.value) == (400, code)
    assert f"applicationGateways/gw{where and '/' + where}".removesuffix("/gw") in str(caught.value)
    assert raw(client) == before


def test_an_old_firewall_halves_the_limits(arm: LocalArm, client: NetworkManagementClient) -> None:
    arm.add_gateway("gw")
    document = raw(client)
    _sites(50)(document)
    put(client, document).result()
    firewall = {"enabled": True, "firewallMode": "Prevention", "ruleSetType": "OWASP"}
    document["properties"]["webApplicationFirewallConfiguration"] = {**firewall, "ruleSetVersion": "3.1"}
    with pytest.raises(HttpResponseError) as caught:
        put(client, document)
    assert code_of(caught.value) == (400, "ApplicationGatewayHttpListenersLimitReached")


def test_a_second_put_supersedes_the_first(arm: LocalArm, client: NetworkManagementClient) -> None:
    gateway = arm.add_gateway("gw")
    arm.core.operation_seconds = 60
    one, two = raw(client), raw(client)
    one["tags"], two["tags"] = {"by": "one"}, {"by": "two"}
    first = put(client, one)
    assert raw(client)["properties"]["provisioningState"] == "Updating"
    second = put(client, two)
    with pytest.raises(HttpResponseError, match="CanceledAndSupersededDueToAnotherOperation"):
        first.result()
    arm.core.clock.advance(60)
    assert second.result().tags == {"by": "two"}
    assert arm.core.state.resources[gateway.lower()].hidden["serving"]["tags"] == {"by": "two"}


def test_what_is_served_changes_only_when_the_operation_ends_well(
    arm: LocalArm, client: NetworkManagementClient
) -> None:
    gateway = arm.add_gateway("gw")
    document = raw(client)
    add_site(document, "new")
    arm.core.endings.append(Ending(on="applicationGateways/put", code="InternalServerError"))
    with pytest.raises(HttpResponseError, match="InternalServerError"):
        put(client, document).result()
    found = client.application_gateways.get(GROUP, "gw")
    assert (found.provisioning_state, len(found.http_listeners)) == ("Failed", 2)
    serving = arm.core.state.resources[gateway.lower()].hidden["serving"]
    assert [part["name"] for part in serving["properties"]["httpListeners"]] == ["default"]
    put(client, document).result()
    serving = arm.core.state.resources[gateway.lower()].hidden["serving"]
    assert len(serving["properties"]["httpListeners"]) == 2


def test_a_gateway_may_look_finished_while_it_is_still_being_changed(
    arm: LocalArm, client: NetworkManagementClient
) -> None:
    arm.add_gateway("gw")
    arm.core.operation_seconds = 60
    arm.core.settings["gateway_updating_seconds"] = 5
    poller = put(client, raw(client))
    arm.core.clock.advance(5)
    assert raw(client)["properties"]["provisioningState"] == "Succeeded"
    assert not poller.done()
    arm.core.clock.advance(55)
    poller.result()


@pytest.mark.parametrize("honoured", [True, False])
def test_if_match_on_a_gateway_is_a_setting_since_nobody_has_verified_it(
    arm: LocalArm, client: NetworkManagementClient, honoured: bool
) -> None:
    arm.add_gateway("gw")
    arm.core.settings["gateway_if_match"] = honoured
    stale = raw(client)
    put(client, raw(client)).result()
    headers = {"If-Match": stale["etag"]}
    if not honoured:
        put(client, stale, headers=headers).result()
        return
    with pytest.raises(HttpResponseError) as caught:
        put(client, stale, headers=headers)
    assert code_of(caught.value) == (412, "PreconditionFailedEtagMismatch")
    put(client, stale, headers={"If-Match": raw(client)["etag"]}).result()


def test_backends_are_healthy_or_not(arm: LocalArm, client: NetworkManagementClient) -> None:
    arm.add_gateway("gw")
    put(client, full(raw(client))).result()
    arm.truth.unhealthy_backends["b.example"] = "Received invalid status code: 503"
    health = client.application_gateways.begin_backend_health(GROUP, "gw").result()
    (pool,) = health.backend_address_pools
    servers = pool.backend_http_settings_collection[0].servers
    assert [(server.address, server.health) for server in servers] == [
        ("10.1.0.4", "Healthy"),
        ("b.example", "Unhealthy"),
    ]
    arm.core.operation_seconds = 20
    asked = client.application_gateways.begin_backend_health(GROUP, "gw")
    put(client, raw(client))
    arm.core.clock.advance(20)
    assert asked.result().backend_address_pools
    arm.core.operation_seconds = 0
    client.application_gateways.begin_stop(GROUP, "gw").result()
    with pytest.raises(HttpResponseError):
        client.application_gateways.begin_backend_health(GROUP, "gw")


def test_a_gateway_that_starts_serves_what_is_stored_though_the_write_was_cancelled(
    arm: LocalArm, client: NetworkManagementClient
) -> None:
    gateway = arm.add_gateway("gw")
    arm.core.operation_seconds = 20
    document = raw(client)
    add(document, "frontendPorts", "port8080", port=8080)
    put(client, document)
    client.application_gateways.begin_stop(GROUP, "gw")
    arm.core.operation_seconds = 0
    client.application_gateways.begin_start(GROUP, "gw").result()
    serving = arm.core.state.resources[gateway.lower()].hidden["serving"]
    assert {port["properties"]["port"] for port in serving["properties"]["frontendPorts"]} == {80, 8080}


def test_writes_of_the_network_provider_have_a_limit_of_their_own(
    arm: LocalArm, client: NetworkManagementClient
) -> None:
    arm.add_gateway("gw")
    arm.core.limit_requests(writes=(5000, 10))
    subscription = arm.subscription.lower()
    put(client, raw(client)).result()
    arm.core.buckets[f"{subscription}/microsoft.network/writes5min"].level = 0
    with pytest.raises(HttpResponseError) as caught:
        put(client, raw(client))
    assert code_of(caught.value) == (429, "RetryableError")


# --- interfaces and addresses ---


def test_an_interface_has_one_machine_and_goes_with_it_when_told_to(
    arm: LocalArm, client: NetworkManagementClient
) -> None:
    kept, gone = arm.add_nic("kept"), arm.add_nic("gone")
    references = [{"id": kept}, {"id": gone, "properties": {"deleteOption": "Delete"}}]
    vm = arm.add_vm("a", networkProfile={"networkInterfaces": references})
    interface = client.network_interfaces.get(GROUP, "kept")
    assert interface.virtual_machine.id == vm
    assert interface.ip_configurations[0].private_ip_address.startswith("10.")
    with pytest.raises(HttpResponseError) as caught:
        client.network_interfaces.begin_delete(GROUP, "kept")
    assert code_of(caught.value) == (400, "NicInUse")
    arm.core.do("DELETE", vm)
    assert [nic.name for nic in client.network_interfaces.list(GROUP)] == ["kept"]
    client.network_interfaces.begin_delete(GROUP, "kept").result()


def test_an_interface_is_made_and_keeps_its_address(arm: LocalArm, client: NetworkManagementClient) -> None:
    configuration = m.NetworkInterfaceIPConfiguration(
        name="one", properties=m.NetworkInterfaceIPConfigurationPropertiesFormat(primary=True)
    )
    wanted = m.NetworkInterface(
        location="westeurope",
        properties=m.NetworkInterfacePropertiesFormat(ip_configurations=[configuration]),
    )
    made = client.network_interfaces.begin_create_or_update(GROUP, "nic", wanted).result()
    wanted.tags = {"a": "b"}
    again = client.network_interfaces.begin_create_or_update(GROUP, "nic", wanted).result()
    addresses = {nic.ip_configurations[0].private_ip_address for nic in (made, again)}
    assert (len(addresses), again.tags, again.provisioning_state) == (1, {"a": "b"}, "Succeeded")


def test_a_public_address_is_written_conditionally(arm: LocalArm, client: NetworkManagementClient) -> None:
    wanted = m.PublicIPAddress(location="westeurope", sku=m.PublicIPAddressSku(name="Standard"))
    made = client.public_ip_addresses.begin_create_or_update(GROUP, "ip", wanted).result()
    assert made.ip_address.startswith("20.")
    client.public_ip_addresses.update_tags(GROUP, "ip", m.TagsObject(tags={"a": "b"}))
    with pytest.raises(HttpResponseError) as caught:
        client.public_ip_addresses.begin_create_or_update(GROUP, "ip", made, headers={"If-Match": made.etag})
    assert code_of(caught.value) == (412, "PreconditionFailedEtagMismatch")
    client.public_ip_addresses.begin_delete(GROUP, "ip").result()

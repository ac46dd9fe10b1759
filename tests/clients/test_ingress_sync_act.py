"""The last checks before a write: what is not ours is as it was, byte for byte."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from sandbox.arm.gateway import new_gateway
from shared.errors import UnsafePlanError
from shared.ingress_sync.act import check_foreign

GATEWAY = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationGateways/gw"
OWN = {"name": "kk_prod_pool", "properties": {"backendAddresses": [{"ipAddress": "10.0.0.1"}]}}
Change = Callable[[dict[str, Any]], object]


def live() -> dict[str, Any]:
    properties = copy.deepcopy(new_gateway(GATEWAY, "/ip"))
    properties["backendAddressPools"].append(copy.deepcopy(OWN))
    return {"id": GATEWAY, "tags": {"a": "1"}, "location": "westeurope", "properties": properties}


def listener(document: dict[str, Any]) -> dict[str, Any]:
    return document["properties"]["httpListeners"][0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d["tags"].update(b="2"), "'tags'"),
        (lambda d: d.pop("tags"), "'tags'"),
        (lambda d: d["properties"].pop("sku"), "'properties.sku'"),
        (lambda d: d["properties"].update(enableHttp2=True), "'properties.enableHttp2'"),
        (lambda d: d["properties"].pop("httpListeners"), "'httpListeners/default'"),
        (lambda d: listener(d).update(name="Default"), "'httpListeners/default'"),
        (lambda d: listener(d)["properties"].update(protocol="Https"), "'httpListeners/default'"),
        (
            lambda d: d["properties"]["frontendPorts"][0]["properties"].update(port=80.0),
            "'frontendPorts/port80'",
        ),
        (lambda d: listener(d)["properties"].update(newerThanAnyModel=None), "'httpListeners/default'"),
    ],
)
def test_any_change_of_what_is_not_ours_is_refused(change: Change, named: str) -> None:
    wanted = live()
    change(wanted)
    with pytest.raises(UnsafePlanError, match=named):
        check_foreign(live(), wanted, {"backendAddressPools/kk_prod_pool"}, ())


def test_our_own_parts_may_change_come_and_go() -> None:
    for pools in ([], [{**OWN, "properties": {}}], [OWN, {"name": "kk_prod_new", "properties": {}}]):
        wanted = live()
        wanted["properties"]["backendAddressPools"][1:] = pools
        check_foreign(live(), wanted, {"backendAddressPools/kk_prod_pool"}, ())


def test_a_part_with_our_prefix_that_is_not_on_record_is_not_ours() -> None:
    wanted = live()
    wanted["properties"]["backendAddressPools"].pop()
    with pytest.raises(UnsafePlanError, match="kk_prod_pool"):
        check_foreign(live(), wanted, (), ())


@pytest.mark.parametrize("pattern", ["httpListeners/default", "httplisteners/DEF*", "httpListeners/*"])
def test_what_an_operator_gave_away_may_change(pattern: str) -> None:
    wanted = live()
    wanted["properties"]["httpListeners"] = []
    check_foreign(live(), wanted, {"backendAddressPools/kk_prod_pool"}, (pattern,))

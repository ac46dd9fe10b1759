"""One write of the gateway from its announcement to its end, against the local Resource Manager."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ingress_sync_world import AUTOMATION, CLUSTER, IngressWorld, Servers

from sandbox.arm.core import Ending
from sandbox.asgi import Fault, on
from shared.errors import IntegrityError
from shared.ingress_sync.state import DocumentRef, PartRecord, PutInFlight, State
from shared.ingress_sync.write import (
    ARRIVAL,
    BLIND,
    Desk,
    Step,
    backoff,
    follow,
    last_good,
    live_digests,
    read_back,
    send,
    with_own,
)

POOL = "backendAddressPools/kk_prod_pool"
GATEWAYS = "/applicationGateways/"


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture
def world(servers: Servers, tmp_path: Path) -> IngressWorld:
    return IngressWorld(servers, tmp_path)


@pytest.fixture
def desk(world: IngressWorld) -> Iterator[Desk]:
    clients = world.process()
    policy = clients.settings().cluster(CLUSTER).ingress_sync
    assert policy is not None
    claim = clients.claims.acquire(CLUSTER, AUTOMATION)
    assert claim is not None
    store = clients.blobs("kubekeeper")
    with claim:
        yield Desk(policy=policy, arm=world.arm_client, claim=claim, store=store, now=world.clock.now)


def pool(*addresses: str, name: str = "kk_prod_pool") -> dict[str, Any]:
    return {"name": name, "properties": {"backendAddresses": [{"ipAddress": one} for one in addresses]}}


def write(world: IngressWorld, desk: Desk, *pools: dict[str, Any], **changes: Any) -> Step:
    """Put these pools as the parts that are ours."""
    answer = desk.arm.get(world.gateway)
    body = with_own(answer.document, desk.state.parts, {"backendAddressPools": list(pools)})
    sent = live_digests(body)
    parts = {f"backendAddressPools/{one['name']}": one for one in pools}
    put = PutInFlight(
        id="1",
        document_digest=f"d{len(pools)}-{sent.get(POOL, '')[:8]}",
        change="POOLS",
        etag=answer.etag,
        announced_at=world.clock.now(),
        deadline=world.clock.now() + timedelta(minutes=60),
        parts={key: PartRecord(sent=sent[key]) for key in parts},
        owners=("shop/web",),
        routes="routes",
    )
    return send(desk, msgspec.json.encode(body), msgspec.structs.replace(put, **changes))


def to_the_end(world: IngressWorld, desk: Desk, most: int = 60) -> Step:
    """Look again whenever a step says so, until the write has ended."""
    step = follow(desk)
    while step.is_under_way:
        assert step.again is not None and most > 0, step
        world.advance(step.again.total_seconds())
        step, most = follow(desk), most - 1
    return step


def test_a_write_is_announced_before_it_leaves_and_ends_on_record(world: IngressWorld, desk: Desk) -> None:
    seen: list[State] = []
    world.arm.changing(lambda: seen.append(desk.state), "PUT", GATEWAYS)
    step = write(world, desk, pool("10.0.0.1"))
    assert (step.event, step.is_under_way, step.again) == ("WriteBegun", True, timedelta(seconds=10))
    assert seen[0].put is not None and seen[0].put.status_url == ""
    assert desk.state.put is not None and "/operations/" in desk.state.put.status_url
    step = to_the_end(world, desk)
    assert (step.event, step.is_failure, step.again) == ("GatewayPut", False, None)
    state = desk.state
    assert (state.put, state.routes) == (None, "routes")
    assert state.parts[POOL].live == state.parts[POOL].sent == live_digests(world.document)[POOL]
    good = last_good(desk)
    assert good is not None and [one["name"] for one in good.own["backendAddressPools"]] == ["kk_prod_pool"]
    assert world.violations == []


def test_the_next_good_document_takes_the_place_of_the_one_before(world: IngressWorld, desk: Desk) -> None:
    names = []
    for address in ("10.0.0.1", "10.0.0.2"):
        write(world, desk, pool(address))
        to_the_end(world, desk)
        names.append([info.name for info in desk.store.list(f"{CLUSTER}/ingress-sync.good-")])
    assert [len(found) for found in names] == [1, 1] and names[0] != names[1]


@pytest.mark.parametrize(
    ("fault", "event", "again"),
    [
        (Fault(on("PUT", GATEWAYS), status=412, body={"error": {"code": "PreconditionFailed"}}), "", 5),
        (Fault(on("PUT", GATEWAYS), status=409, body={"error": {"code": "AnotherOperation"}}), "", 5),
        (Fault(on("PUT", GATEWAYS), status=429, headers={"Retry-After": "17"}), "", 17),
        (Fault(on("PUT", GATEWAYS), status=403, body={"error": {"code": "No"}}), "WriteFailed", None),
        (Fault(on("PUT", GATEWAYS), status=400, body={"error": {"code": "Bad"}}), "WriteRefused", None),
    ],
    ids=["412", "409", "429", "403", "400"],
)
def test_an_answer_that_says_no_ends_the_write(
    world: IngressWorld, desk: Desk, fault: Fault, event: str, again: int | None
) -> None:
    world.arm.fault(fault)
    step = write(world, desk, pool("10.0.0.1"))
    assert (step.event, step.again and step.again.total_seconds()) == (event, again)
    assert desk.state.put is None and desk.state.parts == {}
    assert (step.refusal is not None) == (fault.status == 400)


def test_a_change_of_somebody_else_in_between_is_never_written_over(world: IngressWorld, desk: Desk) -> None:
    def tag(document: dict[str, Any]) -> None:
        document["tags"] = {"by": "portal"}

    world.arm.core.operation_seconds = 0.0
    world.arm.changing(lambda: world.foreign(tag), "PUT", GATEWAYS)
    step = write(world, desk, pool("10.0.0.1"))
    assert "PreconditionFailedEtagMismatch" in step.message
    assert world.document["tags"] == {"by": "portal"} and world.names("backendAddressPools") == {"default"}


def test_a_lost_answer_is_found_out_by_looking(world: IngressWorld, desk: Desk) -> None:
    world.arm.fault(Fault(on("PUT", GATEWAYS), lose_answer=True))
    step = write(world, desk, pool("10.0.0.1"))
    assert (step.is_under_way, step.event) == (True, "")
    before = world.clock.now()
    step = to_the_end(world, desk)
    assert step.event == "GatewayPut" and desk.state.parts[POOL].live
    assert world.clock.now() - before >= BLIND


def test_a_request_that_never_arrived_is_given_up_after_a_minute(world: IngressWorld, desk: Desk) -> None:
    world.arm.fault(Fault(on("PUT", GATEWAYS), status=503))
    write(world, desk, pool("10.0.0.1"))
    before = world.clock.now()
    step = to_the_end(world, desk)
    assert (step.event, desk.state.put) == ("WriteLost", None)
    assert world.clock.now() - before >= ARRIVAL


def test_another_write_where_ours_never_arrived_is_not_taken_for_ours(
    world: IngressWorld, desk: Desk
) -> None:
    write(world, desk, pool("10.0.0.1"))
    to_the_end(world, desk)
    old = desk.state.parts[POOL]
    world.arm.fault(Fault(on("PUT", GATEWAYS), status=503))
    write(world, desk, pool("10.0.0.2"))
    world.foreign(lambda document: document.update(tags={"by": "portal"}))
    assert to_the_end(world, desk).event == "WriteLost"
    assert desk.state.parts[POOL] == old


def test_a_write_that_was_superseded_is_compiled_again(world: IngressWorld, desk: Desk) -> None:
    write(world, desk, pool("10.0.0.1"))
    world.foreign(lambda document: document.update(tags={"by": "portal"}))
    step = to_the_end(world, desk)
    assert (step.event, step.refusal, desk.state.put) == ("WriteSuperseded", None, None)
    assert POOL in desk.state.parts, "what may be there may be ours"


def test_a_write_that_ends_badly_says_why(world: IngressWorld, desk: Desk) -> None:
    world.arm.core.endings.append(Ending(on="applicationGateways/put", code="Broken", message="it broke"))
    write(world, desk, pool("10.0.0.1"))
    step = to_the_end(world, desk)
    assert step.refusal is not None
    assert (step.event, step.refusal.code, step.refusal.is_late) == ("WriteFailed", "Broken", True)
    assert step.refusal.owners == ("shop/web",)


def test_a_write_without_an_answer_that_ends_badly_is_seen_in_the_gateways_state(
    world: IngressWorld, desk: Desk
) -> None:
    world.arm.core.endings.append(Ending(on="applicationGateways/put"))
    world.arm.fault(Fault(on("PUT", GATEWAYS), lose_answer=True))
    write(world, desk, pool("10.0.0.1"))
    assert to_the_end(world, desk).event == "WriteFailed"


@pytest.mark.parametrize("status", [429, 503])
def test_polling_that_gets_no_answer_goes_on(world: IngressWorld, desk: Desk, status: int) -> None:
    write(world, desk, pool("10.0.0.1"))
    world.arm.fault(Fault(on("GET", "/operations/"), status=status, times=3))
    assert follow(desk).is_under_way
    assert to_the_end(world, desk).event == "GatewayPut"


def test_a_forgotten_operation_is_looked_up_on_the_gateway(world: IngressWorld, desk: Desk) -> None:
    write(world, desk, pool("10.0.0.1"))
    world.advance(30)
    world.arm.fault(Fault(on("GET", "/operations/"), status=404, body={"error": {"code": "Gone"}}, times=99))
    assert to_the_end(world, desk).event == "GatewayPut"


def test_a_status_address_elsewhere_gets_no_token(world: IngressWorld, desk: Desk) -> None:
    write(world, desk, pool("10.0.0.1"))
    put = desk.state.put
    assert put is not None
    desk.save(put=msgspec.structs.replace(put, status_url="https://evil.example/operations/1"))
    assert to_the_end(world, desk).event == "GatewayPut"


def test_a_gateway_that_goes_ends_the_write(world: IngressWorld, desk: Desk) -> None:
    write(world, desk, pool("10.0.0.1"))
    world.advance(30)
    world.arm.core.do("DELETE", world.gateway)
    assert to_the_end(world, desk).event == "WriteLost" and desk.state.put is None


def test_what_was_written_over_is_seen_when_reading_back(world: IngressWorld, desk: Desk) -> None:
    stale = world.document
    for failures in (1, 2):
        write(world, desk, pool("10.0.0.1"))
        world.advance(30)

        def put_back(document: dict[str, Any]) -> None:
            document["properties"] = json.loads(json.dumps(stale["properties"]))

        world.foreign(put_back)
        step = to_the_end(world, desk)
        assert (step.event, desk.state.failures) == ("WriteOverwritten", failures)
        assert (desk.state.retry_at is not None) == (failures == 2), "the second time it waits"


def test_an_overdue_write_is_told_and_never_joined_by_a_second(world: IngressWorld, desk: Desk) -> None:
    world.arm.core.operation_seconds = 7200.0
    write(world, desk, pool("10.0.0.1"))
    world.advance(3700)
    step = follow(desk)
    assert (step.event, step.is_under_way) == ("WriteOverdue", True)
    assert to_the_end(world, desk).event == "GatewayPut"


def test_a_last_good_document_that_is_gone_is_none_and_a_damaged_one_an_error(
    world: IngressWorld, desk: Desk
) -> None:
    assert last_good(desk) is None
    desk.save(last_good=DocumentRef(name="nowhere", digest="", at=world.clock.now()))
    assert last_good(desk) is None
    desk.store.create("damaged", b"no zlib")
    desk.save(last_good=DocumentRef(name="damaged", digest="", at=world.clock.now()))
    with pytest.raises(IntegrityError, match="damaged"):
        last_good(desk)


def test_waits_double_up_to_the_longest(desk: Desk) -> None:
    waits = [backoff(desk.policy, failures).total_seconds() for failures in (0, 1, 2, 3, 6, 99)]
    assert waits == [60, 60, 120, 240, 1800, 1800]


def test_a_part_that_was_to_go_and_is_still_there_stays_on_record() -> None:
    document = {"properties": {"backendAddressPools": [pool("10.0.0.1"), pool(name="kk_prod_new")]}}
    live = live_digests(document)
    was = {POOL: PartRecord(sent=live[POOL], live=live[POOL])}
    found, missing = read_back(document, was, {"backendAddressPools/kk_prod_new": PartRecord(sent="x")})
    assert missing == [POOL] and found[POOL] == was[POOL]
    assert found["backendAddressPools/kk_prod_new"].live == live["backendAddressPools/kk_prod_new"]

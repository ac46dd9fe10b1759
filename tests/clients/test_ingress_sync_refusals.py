"""Whom a refusal is blamed on, and how a search by halves ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from shared.ingress_sync.policy import IngressSyncPolicy
from shared.ingress_sync.refusals import LATE_TRIES, TRY_AGAIN, accepted, blamed, named_parts, settle
from shared.ingress_sync.state import State
from shared.ingress_sync.write import Refusal

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
GATEWAY = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/applicationGateways/gw"
POLICY = IngressSyncPolicy(gateway=GATEWAY)


def refusal(message: str = "no", *owners: str, is_late: bool = False) -> Refusal:
    return Refusal(code="Bad", message=message, owners=owners, is_late=is_late)


def after(state: State, refused: Refusal, *suspects: str) -> State:
    digests = {owner: f"digest of {owner}" for owner in (*refused.owners, *suspects)}
    return settle(state, refused, suspects, digests=digests, policy=POLICY, now=NOW)


@pytest.mark.parametrize(
    ("message", "keys"),
    [
        (f"Resource {GATEWAY}/probes/kk_A. is bad", ("probes/kk_a",)),
        (
            f"'{GATEWAY}/httpListeners/x' uses the port of ({GATEWAY}/httpListeners/y)",
            ("httpListeners/x", "httpListeners/y"),
        ),
        (f"{GATEWAY}/urlPathMaps/m/pathRules/r: bad", ("urlPathMaps/m",)),
        ("nothing is named", ()),
    ],
)
def test_parts_are_found_in_messages(message: str, keys: tuple[str, ...]) -> None:
    assert named_parts(message) == keys


def test_a_part_of_several_objects_is_blamed_on_those_that_changed() -> None:
    owners = {"probes/p": ("shop/a", "shop/b"), "probes/q": ("shop/c",)}
    assert blamed(refusal(f"{GATEWAY}/probes/P", "shop/b"), owners) == ("shop/b",)
    assert blamed(refusal(f"{GATEWAY}/probes/q", "shop/b"), owners) == ("shop/c",)
    assert blamed(refusal(f"{GATEWAY}/probes/foreign", "shop/b"), owners) == ()


def test_a_named_object_is_refused_until_it_changes_or_time_passes() -> None:
    refused = after(State(), refusal("why", "shop/a", "shop/b"), "shop/a").refused
    assert list(refused) == ["shop/a"]
    assert (refused["shop/a"].digest, refused["shop/a"].retry_at) == ("digest of shop/a", NOW + TRY_AGAIN)
    assert "why" in refused["shop/a"].message


def test_a_refusal_that_nothing_of_ours_caused_waits_longer_and_longer() -> None:
    state = State()
    for failures, minutes in ((1, 1), (2, 2), (3, 4)):
        state = after(state, refusal())
        assert (state.failures, state.retry_at) == (failures, NOW + timedelta(minutes=minutes))
        assert not state.refused and state.bisection is None


def test_late_failures_without_a_name_are_trouble_first_and_somebodys_fault_later() -> None:
    state = State()
    for _ in range(LATE_TRIES - 1):
        state = after(state, refusal("internal error", "shop/a", is_late=True))
        assert not state.refused and state.retry_at is not None
    state = after(state, refusal("internal error", "shop/a", is_late=True))
    assert state.refused["shop/a"].retry_at == NOW + timedelta(minutes=30)


def search(everyone: tuple[str, ...], guilty: set[str]) -> tuple[set[str], int]:
    """Whom the search finds, and in how many writes."""
    state, writes = after(State(), refusal("no", *everyone)), 1
    while state.bisection is not None and state.bisection.groups:
        tried = set(state.bisection.groups[0]) | set(state.bisection.good)
        state = after(state, refusal("no", *tried)) if tried & guilty else accepted(state)
        writes += 1
        assert writes < 200
    return set(state.refused), writes


@pytest.mark.parametrize("guilty", [{"o00"}, {"o31"}, {"o07", "o08"}, {"o00", "o15", "o31"}])
def test_halving_finds_exactly_the_guilty(guilty: set[str]) -> None:
    everyone = tuple(f"o{number:02d}" for number in range(32))
    found, writes = search(everyone, guilty)
    assert found == guilty
    assert writes <= 2 + 10 * len(guilty)


def test_a_search_of_one_is_over_at_once() -> None:
    assert search(("shop/a",), {"shop/a"}) == ({"shop/a"}, 1)

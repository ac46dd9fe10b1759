"""Which backups may go: cases by name, and what must hold whatever the backups look like."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from etcd_builders import HOUR, NOW, record
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.etcd_backup.lineage import Lineage
from shared.etcd_backup.policy import Retention
from shared.etcd_backup.retention import MINIMUM_AGE, Selection, select
from shared.model.backup import BackupRecord, Kind, VerdictState

DAY = timedelta(days=1)
NONE = Retention(hourly=0, daily=0, weekly=0, monthly=0)


def keep(**counts: int) -> Retention:
    return msgspec.structs.replace(NONE, **counts)


def reasons(selection: Selection) -> dict[str, str]:
    """By run number, as in `record(number)`."""
    return {kept.record.run[1:].lstrip("0"): kept.reason for kept in selection.kept}


def pruned(selection: Selection) -> list[str]:
    return [p.record.name for p in selection.pruned]


def test_the_newest_of_each_of_the_last_hours_that_have_one_is_kept() -> None:
    records = [record(n, age=n * HOUR / 2) for n in range(2, 9)]  # 09:00, 08:30, 08:00, 07:30 ... 06:00
    selection = select(records, keep(hourly=3), NOW)
    assert reasons(selection) == {"2": "LastVerified", "3": "Hourly", "5": "Hourly"}


def test_days_weeks_and_months_are_kept_side_by_side() -> None:
    # 2026-11-23 is a Monday.
    records = [record(n, age=n * DAY) for n in range(1, 70)]
    selection = select(records, keep(daily=3, weekly=3, monthly=3), NOW)
    assert reasons(selection) == {
        "1": "LastVerified",  # Sunday 22, also the newest of its day, week and month
        "2": "Daily",
        "3": "Daily",
        "8": "Weekly",  # Sunday 15
        "15": "Weekly",  # Sunday 8
        "23": "Monthly",  # 31 October
        "54": "Monthly",  # 30 September
    }


def test_a_place_goes_to_a_verified_backup_rather_than_a_newer_one() -> None:
    unproven = record(30, age=30 * HOUR - 2 * timedelta(minutes=1), verdict=VerdictState.UNVERIFIED)
    proven = record(31, age=30 * HOUR - timedelta(minutes=1))
    newest = record(2)
    selection = select([unproven, proven, newest], keep(hourly=2), NOW)
    assert pruned(selection) == [unproven.name]


def test_a_kept_delta_keeps_its_whole_chain() -> None:
    full = record(40)
    first = record(39, parent=full)
    second = record(38, parent=first)
    newest = record(2)
    selection = select([full, first, second, newest], keep(hourly=2), NOW)
    assert reasons(selection) == {
        "2": "LastVerified",
        "38": "Hourly",
        "39": "NeededByDelta",
        "40": "NeededByDelta",
    }


def test_children_go_before_their_parents() -> None:
    full = record(40)
    first = record(39, parent=full)
    second = record(38, parent=first)
    selection = select([full, first, second, record(2)], NONE, NOW)
    assert pruned(selection) == [second.name, first.name, full.name]


def test_a_bad_backup_fills_no_place_and_goes() -> None:
    bad = record(30, verdict=VerdictState.BAD)
    older = record(31)
    selection = select([bad, older, record(2)], keep(hourly=2), NOW)
    assert [(p.record.name, p.reason) for p in selection.pruned] == [(bad.name, "Bad")]


def test_nothing_goes_while_nothing_is_verified() -> None:
    records = [record(n, verdict=VerdictState.UNVERIFIED) for n in range(1, 100)]
    selection = select(records, NONE, NOW)
    assert selection.pruned == ()
    assert set(reasons(selection).values()) == {"NothingVerified"}


def test_what_follows_the_last_verified_backup_stays() -> None:
    records = [record(50), record(51), record(49, verdict=VerdictState.UNVERIFIED), record(48, verdict=None)]
    selection = select(records, NONE, NOW)
    assert reasons(selection) == {"50": "LastVerified", "49": "NewerThanVerified", "48": "NewerThanVerified"}


def test_immutable_backups_stay_until_their_time_and_their_parents_with_them() -> None:
    full = record(40)
    held = record(39, parent=full, immutable_until=NOW + HOUR)
    over = record(38, immutable_until=NOW - HOUR)
    selection = select([full, held, over, record(2)], NONE, NOW)
    assert reasons(selection) == {"2": "LastVerified", "39": "Immutable", "40": "NeededByDelta"}


def test_what_is_younger_than_an_hour_stays() -> None:
    young = record(3, age=timedelta(minutes=59), verdict=VerdictState.BAD)
    newer = record(2, age=timedelta(minutes=30))
    selection = select([young, newer], NONE, NOW)
    assert reasons(selection)["3"] == "TooNew"


def test_no_backups_are_no_work() -> None:
    assert select([], Retention(), NOW) == Selection(kept=(), pruned=())


@st.composite
def fleets(draw: st.DrawFn) -> list[BackupRecord]:
    """Backups as they may lie in a container: deltas on anything, any verdict, any age."""
    ages = draw(st.lists(st.integers(-10, 100_000), max_size=25))
    records: list[BackupRecord] = []
    for number, minutes in enumerate(ages):
        parent = draw(st.none() | st.sampled_from(records)) if records else None
        one = record(
            number,
            age=timedelta(minutes=minutes),
            parent=parent,
            verdict=draw(st.none() | st.sampled_from(list(VerdictState))),
            data_present=draw(st.integers(0, 9)) > 0,
            immutable_until=draw(st.none() | st.integers(-500, 500).map(lambda h: NOW + h * HOUR)),
        )
        if draw(st.integers(0, 9)) == 0:
            one = msgspec.structs.replace(one, kind=Kind.DELTA, parent="prod/gone.json")
        records.append(one)
    return draw(st.permutations(records))


counts = st.integers(0, 5)
policies = st.builds(Retention, hourly=counts, daily=counts, weekly=counts, monthly=counts)


@pytest.mark.no_cover
@settings(max_examples=150, deadline=None)
@given(fleets(), policies)
def test_what_must_never_go_never_goes(records: list[BackupRecord], policy: Retention) -> None:
    selection = select(records, policy, NOW)
    gone = {p.record.name for p in selection.pruned}
    kept = {k.record.name for k in selection.kept}

    assert len(selection.pruned) + len(selection.kept) == len(records)
    assert gone | kept == {r.name for r in records}
    assert not gone & kept

    lineage = Lineage(records)
    needed = {ancestor.name for r in records if r.name in kept for ancestor in lineage.ancestors(r)}
    assert not gone & needed
    assert not gone & {r.name for r in records if r.immutable_until and r.immutable_until > NOW}
    assert not gone & {r.name for r in records if NOW - r.started_at < MINIMUM_AGE}
    newest = lineage.newest_proven(until=NOW)
    if newest is None:
        assert not gone
    else:
        assert not gone & {newest.name, *(ancestor.name for ancestor in lineage.ancestors(newest))}
        assert not gone & {r.name for r in records if r.started_at > newest.started_at}


@pytest.mark.no_cover
@settings(max_examples=150, deadline=None)
@given(fleets(), policies)
def test_stopping_anywhere_leaves_no_delta_without_its_parent(
    records: list[BackupRecord], policy: Retention
) -> None:
    selection = select(records, policy, NOW)
    left = {r.name: r for r in records}
    whole = {r.name for r in records if Lineage(records).is_restorable(r)}
    for step in selection.pruned:
        del left[step.record.name]
        lineage = Lineage(left.values())
        assert all(lineage.is_restorable(left[name]) for name in whole & set(left))


@pytest.mark.no_cover
@settings(max_examples=150, deadline=None)
@given(fleets(), policies)
def test_a_second_look_finds_nothing_more_to_prune(records: list[BackupRecord], policy: Retention) -> None:
    first = select(records, policy, NOW)
    again = select([k.record for k in first.kept], policy, NOW)
    assert again.pruned == ()


@pytest.mark.no_cover
@settings(max_examples=150, deadline=None)
@given(fleets(), policies)
def test_each_count_is_honoured(records: list[BackupRecord], policy: Retention) -> None:
    """As many of the newest hours as asked for keep a restorable backup, if they had one (days and so on
    alike).
    """
    lineage = Lineage(records)
    kept = {k.record.name for k in select(records, policy, NOW).kept}
    for count, form in (
        (policy.hourly, "%Y-%m-%d %H"),
        (policy.daily, "%Y-%m-%d"),
        (policy.weekly, "%G-W%V"),
        (policy.monthly, "%Y-%m"),
    ):
        buckets: dict[str, list[BackupRecord]] = {}
        for one in records:
            if lineage.is_restorable(one) and one.started_at <= NOW:
                buckets.setdefault(f"{one.started_at:{form}}", []).append(one)
        for bucket in sorted(buckets, reverse=True)[:count]:
            assert any(one.name in kept for one in buckets[bucket])

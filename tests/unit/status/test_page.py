"""The status page as text: what stands in it, and that nothing written in a cluster can break out of it."""

from __future__ import annotations

import re
from datetime import timedelta

from status_builders import NASTY, NOW, backup, fleet, removed, scaled

from shared.model.backup import VerdictState
from shared.status.collect import PageDocument
from shared.status.page import ago, calendar, pool_lines, render


def test_the_same_state_gives_the_same_page() -> None:
    assert render(fleet()) == render(fleet())


def test_every_cluster_automation_operation_and_failed_message_is_there() -> None:
    page = render(fleet())
    for text in (
        "prod",
        "new",
        "disk-release",
        "ingress-sync",
        "6f1c",
        "not valid JSON",
        "3 nodes for 12 pods",
    ):
        assert text in page


def test_names_from_a_cluster_cannot_become_markup() -> None:
    page = render(fleet())
    assert "<script" not in page
    assert NASTY not in page
    assert page.count("&lt;script&gt;") >= 3


def test_nothing_is_loaded_from_anywhere() -> None:
    page = render(fleet())
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "@import" not in page
    assert "url(" not in page


def test_a_fleet_that_never_ran_is_a_page_too() -> None:
    page = render(PageDocument(now=NOW, version="0", clusters=()))
    assert "None within the last week" in page
    assert "Messages that failed" not in page


def test_the_calendar_shows_the_worst_of_each_day() -> None:
    days = {
        day.day: day
        for week in calendar([backup(1), backup(1, VerdictState.BAD), backup(0, None)], NOW)
        for day in week
    }
    yesterday = days[(NOW - timedelta(days=1)).date()]
    assert (yesterday.state, yesterday.words.partition(": ")[2]) == ("bad", "1 bad, 1 verified")
    assert days[NOW.date()].state == "unverified"
    assert days[(NOW - timedelta(days=5)).date()].words.endswith("no backup")
    assert max(days) == NOW.date()


def test_a_pools_line_is_a_staircase_that_holds_until_the_next_change() -> None:
    (line,) = pool_lines([scaled(1, "agents", 4), scaled(2, "agents", 2)], NOW)
    assert (line.pool, [point.size for point in line.points]) == ("agents", [2, 4])
    assert line.path == "0,65 320,65 320,10 640,10"


def test_each_node_that_went_makes_a_pool_one_smaller_once_its_size_is_known() -> None:
    (line,) = pool_lines([removed(4, "a"), scaled(3, "a", 2), removed(2, "a"), removed(1, "a")], NOW)
    assert [point.size for point in line.points] == [2, 1, 0]


def test_ages_are_told_in_their_largest_unit() -> None:
    ages = {59: "59s ago", 60: "1m ago", 3599: "59m ago", 7200: "2h ago", 86400 * 3: "3d ago", -5: "0s ago"}
    assert {s: ago(NOW - timedelta(seconds=s), NOW) for s in ages} == ages
    assert ago(None, NOW) == "never"

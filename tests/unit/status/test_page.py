"""The status page as text: what stands in it, and that nothing written in a cluster can break out of it."""

from __future__ import annotations

import re
from datetime import timedelta

from status_builders import NASTY, NOW, backup, fleet, sizes

from shared.model.backup import VerdictState
from shared.status.charts import calendar, pool_charts
from shared.status.collect import PageDocument
from shared.status.page import ago, render


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
        "Pool agents: 4 nodes now, 4 ready; between 3 and 7 since Sun 12:00",
        "pvc-1",
        "PowerOffVM Running",
        "131 s",
        "https://shop.example",
        "shop/broken",
        "A write is under way",
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


WEEK = timedelta(days=7)


def test_a_pools_line_is_a_staircase_that_holds_until_the_next_change() -> None:
    charts = pool_charts([sizes(2, a=(2, 2)), sizes(1, a=(4, 2))], NOW - WEEK, NOW)
    assert charts is not None
    (chart,) = charts.pools
    assert chart.nodes.line == "M0,53 L500,53 L500,6 L1000,6"
    assert chart.ready.area == "M0,53 L500,53 L500,53 L1000,53 L1000,100 L0,100 Z"
    assert (chart.nodes.now, chart.nodes.least, chart.nodes.most, chart.top) == (4, 2, 4, 4)
    assert charts.times == ("08:00", "09:00", "10:00")


def test_a_chart_begins_at_the_time_asked_for_with_the_size_of_before() -> None:
    charts = pool_charts([sizes(400, a=(2, 2)), sizes(84, a=(4, 4))], NOW - WEEK, NOW)
    assert charts is not None
    assert charts.pools[0].nodes.line == "M0,53 L500,53 L500,6 L1000,6"
    assert charts.times == ("Wed 10:00", "Sat 22:00", "Wed 10:00")


def test_a_pool_that_came_later_was_nothing_before_and_one_that_has_gone_is_not_drawn() -> None:
    charts = pool_charts([sizes(2, a=(2, 2)), sizes(1, b=(1, 1))], NOW - WEEK, NOW)
    assert charts is not None
    (chart,) = charts.pools
    assert (chart.pool, chart.nodes.line) == ("b", "M0,100 L500,100 L500,6 L1000,6")


def test_a_single_look_and_a_pool_at_zero_are_charts_too() -> None:
    charts = pool_charts([sizes(0, a=(0, 0))], NOW - WEEK, NOW)
    assert charts is not None
    assert charts.pools[0].nodes.line == "M0,100 L1000,100"
    assert pool_charts([], NOW - WEEK, NOW) is None


def test_ages_are_told_in_their_largest_unit() -> None:
    ages = {59: "59s ago", 60: "1m ago", 3599: "59m ago", 7200: "2h ago", 86400 * 3: "3d ago", -5: "0s ago"}
    assert {s: ago(NOW - timedelta(seconds=s), NOW) for s in ages} == ages
    assert ago(None, NOW) == "never"

"""What of a fleet waits for a person: each finding from a state that provokes it, none from a healthy one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from status_builders import NOW, backup, fleet, row

from shared.model.backup import VerdictState
from shared.status.attention import attention
from shared.status.collect import ClusterStatus, PageDocument, Row


def waiting(*rows: Row, backups: Any = (), **rest: Any) -> list[tuple[str, str, str]]:
    cluster = ClusterStatus(name="prod", automations=rows, backups=backups, **rest)
    document = PageDocument(now=NOW, version="0", clusters=(cluster,))
    return [(one.level, one.subject, one.message) for one in attention(document)]


def left(reason: str, message: str) -> Row:
    summary = row("disk-release").summary
    lines = ({"subject": "x", "reason": reason, "message": message},)
    return msgspec.structs.replace(
        row("disk-release"), summary=msgspec.structs.replace(summary, left_alone=lines)
    )


def test_a_healthy_cluster_needs_nobody() -> None:
    assert waiting(row("autoscaling"), row("etcd-backup"), backups=(backup(0),)) == []
    assert waiting(left("FenceIsAllowed", "diskRelease.fence is never")) == []


@pytest.mark.parametrize(
    ("seen", "level", "says"),
    [
        (row("autoscaling", "paused"), "warn", "keeper run resume"),
        (Row(cluster="prod", automation="autoscaling", state="never ran"), "warn", "has never run"),
        (
            msgspec.structs.replace(
                row("autoscaling"), last_tick=NOW - timedelta(minutes=31), is_silent=True
            ),
            "bad",
            "its timer has not fired for 31 minutes",
        ),
        (left("ObjectiveMissed", "no backup for 3h"), "bad", "no backup for 3h"),
        (left("ApprovalRequired", "a listener would go"), "warn", "waits for approval: a listener would go"),
        (left("FenceIsAllowed", "not fence: not approved"), "warn", "waits for approval"),
    ],
)
def test_what_an_automation_waits_for(seen: Row, level: str, says: str) -> None:
    (found,) = waiting(seen)
    assert (found[0], found[1]) == (level, f"{seen.automation} of prod")
    assert says in found[2]


def test_an_action_that_failed_is_told_with_its_reason() -> None:
    action = {"kind": "Verify", "target": "b", "reason": "Due", "status": "Failed", "message": "no such key"}
    summary = msgspec.structs.replace(row("autoscaling").summary, actions=(action,))
    (found,) = waiting(msgspec.structs.replace(row("autoscaling"), summary=summary))
    assert found == (
        "bad",
        "autoscaling of prod",
        "1 action of the last pass failed; Verify b: no such key",
    )


def test_backups_that_are_missing_or_bad() -> None:
    (missing,) = waiting(row("etcd-backup"))
    assert missing[2] == "there is no verified backup; take one: keeper run backup --wait"
    (bad,) = waiting(row("etcd-backup"), backups=(backup(1, VerdictState.BAD), backup(0)))
    assert bad[2] == "1 backup failed verification; see: keeper backup list"


def test_the_bad_comes_first_and_every_finding_leads_to_a_place_on_the_page() -> None:
    from shared.status.page import render

    document = fleet()
    levels = [one.level for one in document.attention]
    assert levels == sorted(levels)
    assert "bad" in levels
    assert "warn" in levels
    page = render(document)
    assert all(f'id="{one.place}"' in page for one in document.attention)
    assert f"{len(levels)} things wait for a person" in page

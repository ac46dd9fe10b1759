"""A fleet as the status page sees it: a busy cluster, one that never ran, names that try to break out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from shared.model.backup import BackupRecord, Kind, VerdictState
from shared.runtime.journal import Entry, Summary
from shared.runtime.operation import OperationRecord, OperationState
from shared.runtime.poison import PoisonMessage
from shared.status.collect import ClusterStatus, PageDocument, Row

NOW = datetime(2026, 11, 25, 10, tzinfo=UTC)
NASTY = "</td><script>alert('x')</script>&\"'"


def backup(days_ago: int, verdict: VerdictState | None = VerdictState.VERIFIED) -> BackupRecord:
    at = NOW - timedelta(days=days_ago, hours=1)
    name = f"prod/{at:%Y/%m/%d}/{1000 - days_ago}-full-{days_ago:04d}.json"
    return BackupRecord(
        name=name,
        cluster="prod",
        kind=Kind.FULL,
        run=f"{days_ago:04d}",
        revision=1000 - days_ago,
        started_at=at,
        data=name,
        digest="0" * 64,
        database_bytes=40_000_000,
        stored_bytes=11_000_000,
        verdict=verdict,
    )


def scaled(hours_ago: int, pool: str, size: int) -> Entry:
    return Entry(
        at=NOW - timedelta(hours=hours_ago),
        cluster="prod",
        automation="autoscaling",
        kind="Outcome",
        message=f"pool {pool} has {size} nodes now",
        status="Succeeded",
        action="ScaleUp",
        target=pool,
        reason="PodsPending",
        data={"pool": f"/subscriptions/s/{pool}", "to": size, "event": "ScaledUp"},
    )


def removed(hours_ago: int, pool: str) -> Entry:
    return msgspec.structs.replace(
        scaled(hours_ago, pool, 0), action="ScaleDown", data={"pool": f"/subscriptions/s/{pool}"}
    )


def summary(automation: str, *left: str) -> Summary:
    action = {
        "kind": "ScaleUp",
        "target": "agents",
        "reason": "PodsPending",
        "status": "Succeeded",
        "message": "3 nodes for 12 pods",
    }
    return Summary(
        at=NOW - timedelta(minutes=2),
        cluster="prod",
        automation=automation,
        digest="ab" * 32,
        actions=(action,) if automation == "autoscaling" else (),
        left_alone=tuple({"subject": name, "reason": "Because", "message": NASTY} for name in left),
    )


def row(automation: str, state: str = "idle", *left: str) -> Row:
    return Row(
        cluster="prod",
        automation=automation,
        state=state,
        last_pass=NOW - timedelta(minutes=2),
        last_tick=NOW - timedelta(seconds=30),
        summary=summary(automation, *left),
    )


def fleet() -> PageDocument:
    journal = [scaled(30, "agents", 3), scaled(20, "agents", 7), scaled(8, "gpu", 1), removed(2, "agents")]
    prod = ClusterStatus(
        name="prod",
        automations=(
            row("autoscaling", "idle", "default/web-1"),
            row("disk-release", "paused", NASTY),
            row("etcd-backup"),
            row("ingress-sync", "dirty", "shop/broken"),
        ),
        backups=(backup(20), backup(9), backup(3, VerdictState.BAD), backup(2, None), backup(1), backup(0)),
        journal=tuple(sorted(journal, key=lambda entry: entry.at, reverse=True)),
    )
    fresh = Row(cluster="new", automation="etcd-backup", state="never ran")
    operation = OperationRecord(
        id="6f1c",
        operation="scale",
        cluster="prod",
        parameters={},
        state=OperationState.RUNNING,
        is_final=False,
        accepted_at=NOW - timedelta(minutes=1),
        updated_at=NOW,
        progress=NASTY,
    )
    failed = PoisonMessage(
        id="1",
        queue="operations",
        text="{",
        inserted_at=NOW - timedelta(hours=3),
        reason="the message is not valid JSON",
        attempts=5,
    )
    return PageDocument(
        now=NOW,
        version="0.1.0",
        clusters=(prod, ClusterStatus(name="new", automations=(fresh,))),
        operations=(operation,),
        poison=(failed,),
    )

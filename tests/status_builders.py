"""A fleet as the status page sees it: a busy cluster, one that never ran, names that try to break out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from shared.model.backup import BackupRecord, Kind, VerdictState
from shared.runtime.journal import Entry, PoolSize, Sizes, Summary
from shared.runtime.operation import OperationRecord, OperationState
from shared.runtime.poison import PoisonMessage
from shared.status.attention import attention
from shared.status.collect import ClusterStatus, Gateway, GatewayRoute, HeldDisk, PageDocument, Row

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


def sizes(hours_ago: float, waiting: int = 0, **pools: tuple[int, int]) -> Sizes:
    """Each pool as (nodes, ready)."""
    return Sizes(
        at=NOW - timedelta(hours=hours_ago),
        pools=tuple(
            PoolSize(pool=name, nodes=nodes, ready=ready, min=0, max=10)
            for name, (nodes, ready) in pools.items()
        ),
        waiting_pods=waiting,
    )


def outcome(hours_ago: float, automation: str, action: str, **data: object) -> Entry:
    return Entry(
        at=NOW - timedelta(hours=hours_ago),
        cluster="prod",
        automation=automation,
        kind="Outcome",
        message=f"{action} is done",
        status="Succeeded",
        action=action,
        target="/subscriptions/s/resourceGroups/g/providers/p/t/db-0",
        reason="PodsPending",
        data=dict(data),
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
    journal = (
        outcome(1, "disk-release", "DetachDisk", event="Released", vm="/subscriptions/s/vm-3", seconds=131),
        outcome(8, "autoscaling", "ScaleUp", event="ScaledUp", pool="agents", to=7),
    )
    prod = ClusterStatus(
        name="prod",
        automations=(
            row("autoscaling", "idle", "default/web-1"),
            row("disk-release", "paused", NASTY),
            row("etcd-backup"),
            row("ingress-sync", "dirty", "shop/broken", "shop/web"),
        ),
        backups=(backup(20), backup(9), backup(3, VerdictState.BAD), backup(2, None), backup(1), backup(0)),
        sizes=(
            sizes(70, agents=(3, 3), gpu=(0, 0)),
            sizes(40, waiting=12, agents=(7, 3), gpu=(0, 0)),
            sizes(39.9, agents=(7, 7), gpu=(1, 0)),
            sizes(8, agents=(4, 4), gpu=(1, 1)),
        ),
        held=(
            HeldDisk(
                disk="pvc-1",
                vm="vm-7",
                node="node-7",
                since=NOW - timedelta(minutes=2),
                reason=NASTY,
                step="PowerOffVM Running",
            ),
        ),
        gateway=Gateway(
            routes=(
                GatewayRoute(
                    owner="shop/web", host="shop.example", path="/", service="shop/web:80", has_tls=True
                ),
            ),
            written_at=NOW - timedelta(hours=5),
            writing_since=NOW,
        ),
        quarantined=({"subject": "shop/broken", "reason": "NoSuchService", "message": NASTY},),
        journal=journal,
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
    document = PageDocument(
        now=NOW,
        version="0.1.0",
        clusters=(prod, ClusterStatus(name="new", automations=(fresh,))),
        operations=(operation,),
        poison=(failed,),
    )
    return msgspec.structs.replace(document, attention=attention(document))

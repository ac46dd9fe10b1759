"""What is done about a cluster's backups: tables of cases, and the same plan from a file."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from etcd_builders import HOUR, NOW, member_id, observation, reading, record, unreachable

from shared.errors import MessageError, SettingsError
from shared.etcd_backup.decide import decide, decide_requested
from shared.etcd_backup.observation import Observation, load, save
from shared.etcd_backup.policy import EtcdBackupPolicy
from shared.model.backup import BackupRecord, VerdictState
from shared.model.plan import Action, ActionKind, Plan, canonical_json

POLICY = EtcdBackupPolicy()
MINUTE = timedelta(minutes=1)
VERIFIED, UNVERIFIED, BAD = VerdictState.VERIFIED, VerdictState.UNVERIFIED, VerdictState.BAD


def plan(
    *backups: BackupRecord, now: datetime = NOW, seen: dict[str, Any] | None = None, **policy: Any
) -> Plan:
    policy_value = msgspec.structs.replace(POLICY, **policy)
    return decide(observation(backups=backups, **(seen or {})), policy_value, now)


def actions(decided: Plan, kind: ActionKind) -> list[Action]:
    return [action for action in decided.actions if action.kind is kind]


def backup(decided: Plan) -> Action | None:
    found = actions(decided, ActionKind.BACKUP)
    assert len(found) <= 1
    return found[0] if found else None


def reasons(decided: Plan, subject: str) -> list[str]:
    return [entry.reason for entry in decided.left_alone if entry.subject == subject]


def full(age: timedelta = HOUR, **fields: Any) -> BackupRecord:
    return record(1, age=age, **fields)


# When


@pytest.mark.parametrize(
    ("backups", "now", "expected"),
    [
        pytest.param([], NOW, "FirstBackup", id="none yet"),
        pytest.param([full(HOUR)], NOW, "Scheduled", id="an hour old when the hour strikes"),
        pytest.param([full(HOUR)], NOW - MINUTE, None, id="a minute before the hour"),
        pytest.param([full(timedelta(0))], NOW, None, id="begun this very minute"),
        pytest.param([full(HOUR)], NOW + 40 * MINUTE, "Scheduled", id="late, but not forgotten"),
        pytest.param(
            [full(MINUTE)], NOW, "Scheduled", id="a one-off just before does not count for the tick"
        ),
        pytest.param(
            [full(timedelta(0), verdict=BAD)], NOW + MINUTE, "LastIsBad", id="the one of this tick is bad"
        ),
        pytest.param(
            [full(timedelta(0), verdict=None)], NOW + MINUTE, None, id="not verified yet, but taken"
        ),
    ],
)
def test_a_backup_is_due_when_the_schedule_came_since_the_newest(
    backups: list[BackupRecord], now: datetime, expected: str | None
) -> None:
    action = backup(plan(*backups, now=now))
    assert (action.reason if action else None) == expected


def test_nothing_due_says_when_the_next_is() -> None:
    decided = plan(full(timedelta(0)), now=NOW + MINUTE)
    assert decided.actions == ()
    entry = next(e for e in decided.left_alone if e.subject == "prod")
    assert entry.reason == "NotDue"
    assert "next due 2026-11-23 11:00 UTC" in entry.message


def test_after_three_bad_backups_of_one_tick_the_next_tick_is_awaited() -> None:
    bad = [record(n, age=-n * MINUTE, verdict=BAD) for n in range(3)]
    decided = plan(*bad, now=NOW + 4 * MINUTE)
    assert backup(decided) is None
    assert "RepeatedlyBad" in reasons(decided, "prod")
    assert backup(plan(*bad, now=NOW + HOUR)) is not None


def test_a_schedule_that_is_none_is_an_error() -> None:
    with pytest.raises(SettingsError, match="write five cron fields"):
        plan(full(), schedule="hourly")


def test_a_paused_cluster_rests_but_its_alarm_does_not() -> None:
    decided = plan(full(9 * HOUR), seen={"state": {"paused": {"at": "2026-11-23T09:00:00Z"}}})
    assert decided.actions == ()
    assert reasons(decided, "prod") == ["ObjectiveMissed", "Paused"]


def test_a_disabled_policy_does_nothing_and_says_so() -> None:
    decided = plan(enabled=False)
    assert decided.actions == ()
    assert reasons(decided, "prod") == ["Disabled"]


def test_a_requested_backup_is_taken_whatever_the_schedule_says() -> None:
    seen = observation(backups=(full(timedelta(0)),))
    decided = decide_requested(seen, POLICY, NOW + MINUTE, "operation 4711")
    assert [a.kind for a in decided.actions] == [ActionKind.BACKUP]
    assert decided.actions[0].reason == "Requested"
    assert decided.actions[0].parameters["kind"] == "delta"


# Full or delta


def chain(length: int, **fields: Any) -> list[BackupRecord]:
    """A full and its deltas, the newest an hour old."""
    records = [record(length + 1, age=(length + 1) * HOUR)]
    for number in range(length, 0, -1):
        records.append(record(number, age=number * HOUR, parent=records[-1], **fields))
    return records


def replaced(records: list[BackupRecord], index: int, **changes: Any) -> list[BackupRecord]:
    copy = list(records)
    copy[index] = msgspec.structs.replace(copy[index], **changes)
    return copy


@pytest.mark.parametrize(
    ("backups", "policy", "expected"),
    [
        pytest.param([], {}, ("full", "FirstBackup"), id="nothing to build on"),
        pytest.param(chain(0), {}, ("delta", "ParentUsable"), id="on a full"),
        pytest.param(chain(3), {}, ("delta", "ParentUsable"), id="on a delta"),
        pytest.param(chain(3), {"max_chain": 0}, ("full", "IncrementalsOff"), id="incrementals off"),
        pytest.param(chain(3), {"max_chain": 3}, ("full", "ChainFull"), id="chain long enough"),
        pytest.param(chain(3), {"max_chain": 4}, ("delta", "ParentUsable"), id="room for one more"),
        pytest.param(chain(23), {}, ("full", "FullDue"), id="the full is a day old"),
        pytest.param(
            chain(3), {"full_every": "4h"}, ("full", "FullDue"), id="the full is as old as it may be"
        ),
        pytest.param(
            chain(3), {"full_every": "5h"}, ("delta", "ParentUsable"), id="the full is young enough"
        ),
        pytest.param(replaced(chain(3), 3, verdict=BAD), {}, ("full", "ParentBad"), id="the parent is bad"),
        pytest.param(replaced(chain(3), 1, verdict=BAD), {}, ("full", "ParentBad"), id="an ancestor is bad"),
        pytest.param(chain(3)[1:], {}, ("full", "ParentMissing"), id="the full is gone"),
        pytest.param(
            replaced(chain(3), 0, data_present=False),
            {},
            ("full", "ParentMissing"),
            id="the full lost its data",
        ),
        pytest.param(
            replaced(chain(3), 3, data_present=False),
            {},
            ("full", "ParentMissing"),
            id="the parent lost its data",
        ),
        pytest.param(
            replaced(chain(3), 3, verdict=None),
            {},
            ("delta", "ParentUsable"),
            id="a parent not read back yet",
        ),
        pytest.param(
            replaced(chain(3), 3, encrypted=True),
            {},
            ("full", "EncryptionChanged"),
            id="encryption switched off",
        ),
    ],
)
def test_a_full_is_taken_when_a_delta_cannot_or_should_not_be(
    backups: list[BackupRecord], policy: dict[str, Any], expected: tuple[str, str]
) -> None:
    action = backup(plan(*backups, **policy))
    assert action
    assert (action.parameters["kind"], action.parameters["kindReason"]) == expected
    parent = action.parameters["parent"]
    assert parent == (backups[-1].name if expected[0] == "delta" else None)


def test_a_delta_stays_with_the_parents_member() -> None:
    newest = record(1, member_id=f"{member_id(2):016x}")
    action = backup(plan(newest))
    assert action
    assert action.parameters["memberId"] == f"{member_id(2):x}"
    assert action.parameters["kind"] == "delta"
    assert newest.digest[:12] in action.preconditions[1]


def test_another_member_means_a_full_because_its_pages_differ() -> None:
    readings = (reading(0), unreachable(1), reading(2))
    action = backup(plan(record(1), seen={"endpoints": readings}))
    assert action
    assert (action.parameters["kind"], action.parameters["kindReason"]) == ("full", "OtherMember")
    assert action.parameters["parent"] is None


def test_every_member_not_chosen_is_left_alone_with_its_reason() -> None:
    decided = plan(seen={"endpoints": (reading(0), reading(1), unreachable(2))})
    left = {entry.subject: entry.reason for entry in decided.left_alone}
    assert left == {
        "https://10.0.0.6:2379": "ConnectionRefused",
        "member m0 (a0) at https://10.0.0.4:2379": "Leader",
        "prod": "ObjectiveMissed",
    }
    assert decided.actions[0].parameters["alternates"] == ["https://10.0.0.4:2379"]


def test_no_eligible_member_is_said_and_other_actions_go_on() -> None:
    unread = record(1, verdict=None)
    decided = plan(unread, seen={"endpoints": (unreachable(0), unreachable(1), unreachable(2))})
    assert backup(decided) is None
    assert "NoEligibleMember" in reasons(decided, "prod")
    assert [a.target for a in actions(decided, ActionKind.VERIFY)] == [unread.name]


# Verify


@pytest.mark.parametrize(
    ("backups", "expected"),
    [
        pytest.param([record(1)], [], id="verified"),
        pytest.param([record(1, verdict=BAD)], [], id="bad"),
        pytest.param(
            [record(1, verdict=None), record(2, verdict=None)], ["NeverVerified"] * 2, id="never read"
        ),
        pytest.param([record(1, verdict=UNVERIFIED)], [], id="unverified, and its revision compacted by now"),
        pytest.param(
            [record(1, age=5 * MINUTE, verdict=UNVERIFIED)], ["AskAgain"], id="members may answer now"
        ),
        pytest.param(
            [record(0, age=3 * MINUTE), record(1, age=5 * MINUTE, verdict=UNVERIFIED)],
            [],
            id="not the newest",
        ),
        pytest.param([record(1, verdict=None, data_present=False)], [], id="nothing to read"),
    ],
)
def test_backups_never_read_back_are_verified(backups: list[BackupRecord], expected: list[str]) -> None:
    assert [a.reason for a in actions(plan(*backups), ActionKind.VERIFY)] == expected


def test_the_newest_is_verified_first() -> None:
    first, second = record(1, verdict=None), record(2, verdict=None)
    assert [a.target for a in actions(plan(second, first), ActionKind.VERIFY)] == [first.name, second.name]


# Objective


def missed(decided: Plan) -> str:
    return next((e.message for e in decided.left_alone if e.reason == "ObjectiveMissed"), "")


def test_a_young_verified_backup_is_what_is_asked_for() -> None:
    assert missed(plan(record(1))) == ""
    assert missed(plan(record(2))) == ""  # exactly the objective


def test_the_alarm_is_raised_when_the_newest_verified_backup_is_too_old() -> None:
    assert "is 3h old; etcdBackup.objective is 2h" in missed(plan(record(3)))


def test_the_alarm_is_raised_when_backups_succeed_but_none_is_verified() -> None:
    silent = [record(n, verdict=UNVERIFIED) for n in range(1, 5)]
    assert missed(plan(*silent)).startswith("no backup is verified, of 4")
    assert "the last is unverified (Unverified)" in missed(plan(*silent))
    assert "the last was never read back" in missed(plan(record(1, verdict=None), record(5)))


def test_a_verified_delta_on_a_bad_parent_does_not_count() -> None:
    parent = record(2, verdict=BAD)
    assert missed(plan(record(1, parent=parent), parent)).startswith("no backup is verified")


def test_a_backup_from_the_future_silences_neither_alarm_nor_schedule() -> None:
    strange = record(1, age=-300 * HOUR)
    decided = plan(strange)
    assert missed(decided)
    assert backup(decided)
    assert reasons(decided, strange.name) == ["FromTheFuture"]


def test_a_cluster_just_taken_into_care_is_given_the_time_of_the_objective() -> None:
    assert missed(plan())
    assert missed(plan(seen={"state": {"firstSeenAt": "2026-11-23T07:00:00Z"}}))
    assert not missed(plan(seen={"state": {"firstSeenAt": "2026-11-23T09:00:00Z"}}))


# Prune and orphans


def test_every_backup_is_pruned_or_left_alone_with_a_reason() -> None:
    backups = [record(n) for n in range(1, 200)]
    decided = plan(*backups)
    pruned = {a.target for a in actions(decided, ActionKind.PRUNE)}
    kept = {e.subject for e in decided.left_alone} - {"prod"}
    assert pruned
    assert pruned | {s for s in kept if s.startswith("prod/")} == {b.name for b in backups}
    assert not pruned & kept


def test_pruning_names_every_blob_of_the_backup_manifest_first() -> None:
    backups = [record(n, verdict_names=(f"v{n}",)) for n in (1, 2, 3)]
    nothing = msgspec.structs.replace(POLICY.retention, hourly=0, daily=0, weekly=0, monthly=0)
    pruned = actions(plan(*backups, retention=nothing), ActionKind.PRUNE)
    assert [a.parameters["blobs"] for a in pruned] == [list(b.blob_names) for b in backups[1:]]
    assert pruned[0].parameters["blobs"][0] == backups[1].name


def test_orphans_of_crashed_runs_are_swept_and_foreign_blobs_are_not() -> None:
    old, young = "prod/2026/11/23/080000-abc.pages", "prod/2026/11/23/093000-def.pages"
    verdict = "prod/2026/11/22/7-full-abc.verdict-20261122T100000Z.json"
    foreign = "prod/notes.txt"
    decided = plan(record(1), seen={"orphans": (old, young, verdict, foreign)})
    assert [a.target for a in actions(decided, ActionKind.PRUNE)] == [old, verdict]
    assert reasons(decided, young) == ["TooNew"]
    assert reasons(decided, foreign) == ["NotABackup"]


def test_backups_of_another_cluster_are_none_of_ours() -> None:
    foreign = record(1, cluster="other")
    decided = plan(foreign, record(2))
    assert foreign.name not in {e.subject for e in decided.left_alone}
    assert backup(decided)


# The same from a file


def test_the_plan_from_a_snapshot_file_is_the_same_byte_for_byte() -> None:
    seen = observation(
        reading(0, latency_ms=7),
        unreachable(1),
        reading(2, is_learner=True),
        backups=(*chain(5), record(90, verdict=None), record(0, age=MINUTE, verdict=UNVERIFIED)),
        orphans=("prod/2026/11/20/080000-abc.pages",),
        state={"firstSeenAt": "2026-11-01T00:00:00Z"},
        cluster_entry={"name": "prod", "etcdBackup": {"schedule": "*/10 * * * *", "maxChain": 9}},
    )
    file = save(seen)
    again = load(file, "file")
    assert again == seen
    assert save(again) == file
    first = decide(seen, seen.policy, seen.now).document()
    second = decide(again, again.policy, again.now).document()
    assert canonical_json(first) == canonical_json(second)
    assert first["digest"] == second["digest"]


def test_a_snapshot_file_can_be_written_by_hand() -> None:
    document = {
        "kubekeeper": "snapshot/v1",
        "automation": "etcd-backup",
        "now": "2026-11-23T11:00:00+01:00",
        "cluster": {"name": "prod"},
    }
    seen = load(json.dumps(document).encode(), "file")
    assert seen == Observation(
        cluster="prod", now=datetime(2026, 11, 23, 10, tzinfo=UTC), cluster_entry={"name": "prod"}
    )
    assert reasons(decide(seen, seen.policy, seen.now), "prod") == ["ObjectiveMissed", "NoEligibleMember"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kubekeeper": "snapshot/v9"}, r"my.json: Invalid enum value 'snapshot/v9' - at `\$.kubekeeper`"),
        ({"automation": "disk-release"}, "Invalid enum value 'disk-release'"),
        ({"cluster": {}}, "Expected `str`, got `null`"),
        ({"now": "yesterday"}, "Invalid RFC3339 encoded datetime"),
        ({"now": "2026-11-23T10:00:00"}, "a time without a zone"),
        ({"cluster": {"name": "a", "etcdBackup": {"schedul": "x"}}}, "unknown field `schedul`"),
        ({"etcd": {"backups": [{}]}}, "missing required field `name`"),
    ],
)
def test_a_wrong_snapshot_file_is_refused_with_its_name_and_the_place(
    change: dict[str, Any], message: str
) -> None:
    document = {
        "kubekeeper": "snapshot/v1",
        "automation": "etcd-backup",
        "now": "2026-11-23T10:00:00Z",
        "cluster": {"name": "prod"},
    }
    with pytest.raises(MessageError, match=message) as caught:
        load(json.dumps(document | change).encode(), "my.json")
    assert str(caught.value).startswith("my.json: ")

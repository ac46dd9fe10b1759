"""Which member serves the snapshot, and why the others do not."""

from __future__ import annotations

import pytest
from etcd_builders import alarm, endpoint, member, member_id, observation, reading, unreachable

from shared.etcd_backup.members import Choice, choose
from shared.etcd_backup.observation import EndpointReading
from shared.model.etcd import MemberStatus, supports_learner_snapshot

LIMIT = 5000


def chosen(choice: Choice) -> int | None:
    return choice.chosen.member_id - member_id(0) if choice.chosen else None


def reasons(choice: Choice) -> list[str]:
    return [entry.reason for entry in choice.left_alone]


LEARNER = {"is_learner": True}
BEHIND = {"raft_applied_index": 3000}
A_LITTLE_BEHIND = {"raft_applied_index": 8500}


@pytest.mark.parametrize(
    ("readings", "expected", "reason", "others"),
    [
        pytest.param([reading(0)], 0, "OnlyLeader", [], id="one member"),
        pytest.param(
            [reading(0), reading(1), reading(2)], 1, "LeastLag", ["EquallyGood", "Leader"], id="three"
        ),
        pytest.param(
            [reading(n, leader=4) for n in range(5)],
            0,
            "LeastLag",
            ["EquallyGood", "EquallyGood", "EquallyGood", "Leader"],
            id="five",
        ),
        pytest.param(
            [reading(0), reading(1, **A_LITTLE_BEHIND), reading(2)],
            2,
            "LeastLag",
            ["MoreLag", "Leader"],
            id="the follower with the least lag",
        ),
        pytest.param(
            [reading(0), reading(1), reading(2), reading(3, **LEARNER)],
            3,
            "Learner",
            ["Follower", "Follower", "Leader"],
            id="a learner before any follower",
        ),
        pytest.param(
            [reading(0), reading(1), reading(2, **LEARNER, version="3.4.27")],
            1,
            "LeastLag",
            ["LearnerTooOld", "Leader"],
            id="a learner too old to serve",
        ),
        pytest.param(
            [reading(0), reading(1), reading(2, **LEARNER, **BEHIND)],
            1,
            "LeastLag",
            ["RaftLag", "Leader"],
            id="a learner still catching up",
        ),
        pytest.param(
            [reading(0), reading(1, **BEHIND), unreachable(2)],
            0,
            "OnlyLeader",
            ["RaftLag", "ConnectionRefused"],
            id="only the leader is left",
        ),
        pytest.param(
            [reading(0), reading(1, errors=(alarm(1, "NOSPACE"),)), reading(2)],
            2,
            "LeastLag",
            ["Alarm", "Leader"],
            id="an alarm of its own",
        ),
        pytest.param(
            [reading(0, errors=(alarm(1, "CORRUPT"),)), reading(1), reading(2)],
            2,
            "LeastLag",
            ["Alarm", "Leader"],
            id="an alarm that another member tells",
        ),
        pytest.param(
            [reading(0), reading(1, leader=-1), reading(2)],
            2,
            "LeastLag",
            ["NoLeader", "Leader"],
            id="cut off from the leader",
        ),
        pytest.param(
            [reading(0, leader=-1), reading(1, leader=-1), unreachable(2)],
            0,
            "LeastLag",
            ["ConnectionRefused", "EquallyGood"],
            id="no quorum: the last known state is worth a backup",
        ),
        pytest.param([unreachable(0)], None, "NoEligibleMember", ["ConnectionRefused"], id="nobody answers"),
    ],
)
def test_the_best_member_is_chosen_and_the_others_are_explained(
    readings: list[EndpointReading], expected: int | None, reason: str, others: list[str]
) -> None:
    choice = choose(observation(*readings), LIMIT)
    assert (chosen(choice), choice.reason) == (expected, reason)
    assert reasons(choice) == others
    told = len(choice.left_alone) + (choice.chosen is not None)
    assert told == len(readings)


def test_the_parents_member_is_kept_among_equals_only() -> None:
    three = observation()
    assert chosen(choose(three, LIMIT, prefer=member_id(2))) == 2
    assert choose(three, LIMIT, prefer=member_id(2)).reason == "SameMember"
    assert chosen(choose(three, LIMIT, prefer=member_id(0))) == 1  # it leads now
    with_learner = observation(reading(0), reading(1), reading(2), reading(3, **LEARNER))
    assert chosen(choose(with_learner, LIMIT, prefer=member_id(2))) == 3


@pytest.mark.parametrize(("behind", "expected"), [(0, 2), (900, 2), (1100, 1)])
def test_the_parents_member_may_be_a_little_behind(behind: int, expected: int) -> None:
    busy = observation(reading(0), reading(1), reading(2, raft_applied_index=9000 - behind))
    assert chosen(choose(busy, LIMIT, prefer=member_id(2))) == expected


def test_without_a_parent_the_least_lag_decides_to_the_entry() -> None:
    busy = observation(reading(0), reading(1, raft_applied_index=8999), reading(2))
    assert chosen(choose(busy, LIMIT)) == 2


def test_alternates_are_ranked_behind_the_choice() -> None:
    choice = choose(observation(reading(0), reading(1), reading(2, **LEARNER)), LIMIT)
    assert [c.role for c in choice.ranked] == ["learner", "follower", "leader"]


def test_two_endpoints_of_one_member_count_once() -> None:
    twice = EndpointReading(endpoint="https://lb:2379", read_at=reading(1).read_at, status=reading(1).status)
    choice = choose(observation(reading(0), reading(1), twice), LIMIT)
    assert chosen(choice) == 1
    assert "SameMember" in reasons(choice)


def test_endpoints_of_different_clusters_are_refused_altogether() -> None:
    choice = choose(observation(reading(0), reading(1, cluster_id=0xC2)), LIMIT)
    assert choice.chosen is None
    assert choice.reason == "EndpointsOfDifferentClusters"
    assert "correct etcd.endpoints" in choice.message


def test_members_without_an_endpoint_are_explained() -> None:
    never_started = member(8)
    never_started = type(never_started)(id=never_started.id)
    seen = observation(reading(0), unreachable(1), members=(member(0), member(1), member(7), never_started))
    left_alone = {entry.subject: entry.reason for entry in choose(seen, LIMIT).left_alone}
    assert left_alone == {
        endpoint(1): "ConnectionRefused",
        f"member m7 ({member_id(7):x})": "NoEndpoint",
        f"member unnamed ({member_id(8):x})": "NotStarted",
    }


def test_alarms_are_read_from_the_lines_of_every_etcd_version() -> None:
    status = reading(
        0, errors=("memberID:18 alarm:NOSPACE ", "memberID:19  alarm:CORRUPT", "etcdserver: no leader")
    )
    assert isinstance(status.status, MemberStatus)
    assert [(a.member_id, a.alarm) for a in status.status.alarms()] == [(18, "NOSPACE"), (19, "CORRUPT")]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("3.4.27", False),
        ("3.4.28", True),
        ("3.5.0", True),
        ("3.6.1", True),
        ("3.5.0-rc.1", True),
        ("3.3.27", False),
    ],
)
def test_learners_serve_snapshots_from_3_5_0_and_3_4_28(version: str, expected: bool) -> None:
    assert supports_learner_snapshot(version) is expected

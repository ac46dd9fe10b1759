"""What an observation says about etcd's health, and which member may be defragmented next."""

from __future__ import annotations

import pytest
from etcd_builders import alarm, member, member_id, observation, reading, unreachable

from shared.etcd_backup.health import Refusal, Severity, Target, assess, next_target
from shared.etcd_backup.observation import EndpointReading

GIB = 1 << 30


def found(*readings: EndpointReading) -> dict[str, Severity]:
    return {finding.reason: finding.severity for finding in assess(observation(*readings)).findings}


def test_three_healthy_members_are_healthy_and_described() -> None:
    report = assess(observation())
    assert (report.healthy, report.voters, report.answering_voters, report.findings) == (True, 3, 3, ())
    assert report.leader == f"{member_id(0):x}"
    assert [(m.name, m.role, m.lag) for m in report.members] == [
        ("m0", "leader", 0),
        ("m1", "follower", 0),
        ("m2", "follower", 0),
    ]


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        pytest.param(
            [reading(0), reading(1), unreachable(2)],
            {"QuorumAtRisk": Severity.WARNING, "ConnectionRefused": Severity.WARNING},
            id="one of three down",
        ),
        pytest.param(
            [*(reading(n) for n in range(4)), unreachable(4)],
            {"ConnectionRefused": Severity.WARNING},
            id="one of five down",
        ),
        pytest.param(
            [reading(0, leader=-1), unreachable(1), unreachable(2)],
            {
                "NoQuorum": Severity.CRITICAL,
                "NoLeader": Severity.CRITICAL,
                "ConnectionRefused": Severity.WARNING,
            },
            id="two of three down",
        ),
        pytest.param(
            [reading(0), reading(1), reading(2), reading(3, is_learner=True, raft_applied_index=9000)],
            {},
            id="a learner has no vote",
        ),
        pytest.param(
            [reading(0), reading(1, leader=1), reading(2)],
            {"LeaderDisputed": Severity.WARNING},
            id="two leaders",
        ),
        pytest.param(
            [reading(0), reading(1, raft_applied_index=100), reading(2)],
            {"RaftLag": Severity.WARNING},
            id="a member behind",
        ),
        pytest.param(
            [reading(0, errors=(alarm(1, "NOSPACE"),)), reading(1), reading(2)],
            {"Alarm": Severity.CRITICAL},
            id="an alarm",
        ),
        pytest.param(
            [reading(0, latency_ms=1500), reading(1), reading(2)],
            {"Slow": Severity.WARNING},
            id="a slow member",
        ),
        pytest.param(
            [reading(0, skew_ms=-5000), reading(1), reading(2, skew_ms=None)],
            {"ClockSkew": Severity.WARNING},
            id="a clock behind",
        ),
        pytest.param(
            [reading(0, version="3.5.15"), reading(1), reading(2)],
            {"MixedVersions": Severity.INFO},
            id="half upgraded",
        ),
        pytest.param(
            [reading(0, db_size=int(1.7 * GIB), db_size_in_use=int(1.7 * GIB)), reading(1), reading(2)],
            {"QuotaNear": Severity.WARNING},
            id="near the default quota",
        ),
        pytest.param(
            [reading(0, db_size=3 * GIB, db_size_in_use=3 * GIB), reading(1), reading(2)],
            {"QuotaNear": Severity.WARNING},
            id="beyond the default quota: it must be larger, so no more than a warning",
        ),
        pytest.param(
            [
                reading(0, db_size=3 * GIB, db_size_in_use=3 * GIB, db_size_quota=8 * GIB),
                reading(1),
                reading(2),
            ],
            {},
            id="far from its own quota",
        ),
        pytest.param(
            [
                reading(0, db_size=3 * GIB, db_size_in_use=3 * GIB, db_size_quota=3 * GIB),
                reading(1),
                reading(2),
            ],
            {"QuotaNear": Severity.CRITICAL},
            id="at its own quota",
        ),
        pytest.param(
            [reading(0, db_size=1 * GIB, db_size_in_use=GIB // 4), reading(1), reading(2)],
            {"Fragmented": Severity.INFO},
            id="mostly free pages",
        ),
    ],
)
def test_findings(readings: list[EndpointReading], expected: dict[str, Severity]) -> None:
    assert found(*readings) == expected
    assert assess(observation(*readings)).healthy is (Severity.CRITICAL not in expected.values())


def test_nobody_answering_is_critical_and_says_why() -> None:
    report = assess(
        observation(unreachable(0), members=(), members_error="etcd: connection refused; check it")
    )
    assert not report.healthy
    assert report.findings[0].reason == "NoMembers"
    assert "connection refused" in report.findings[0].message


def test_the_worst_comes_first() -> None:
    report = assess(
        observation(reading(0, version="3.4.1", latency_ms=2000, errors=(alarm(0, "CORRUPT"),)), reading(1))
    )
    assert [f.severity for f in report.findings] == [Severity.CRITICAL, Severity.WARNING, Severity.INFO]


def order(*readings: EndpointReading) -> list[str]:
    done: set[int] = set()
    roles = []
    while isinstance(target := next_target(observation(*readings), frozenset(done)), Target):
        done.add(target.member_id)
        roles.append(target.role)
    assert target is None
    return roles


def test_the_leader_is_defragmented_last() -> None:
    assert order(*(reading(n, leader=2) for n in range(5))) == ["follower"] * 4 + ["leader"]
    assert order(reading(0), reading(1), reading(2, is_learner=True)) == ["follower", "learner", "leader"]
    assert order(reading(0)) == ["leader"]


def test_a_leader_that_changed_in_between_is_still_last() -> None:
    done = frozenset({member_id(0)})
    target = next_target(observation(reading(0, leader=1), reading(1, leader=1), reading(2, leader=1)), done)
    assert isinstance(target, Target)
    assert target.member_id == member_id(2)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        pytest.param(
            observation(reading(0), reading(1), unreachable(2)), "MemberDown", id="a member is down"
        ),
        pytest.param(
            observation(reading(0), reading(1), members=(member(0), member(1), member(2))),
            "MemberDown",
            id="a member no endpoint leads to",
        ),
        pytest.param(observation(reading(0), members=()), "NoMembers", id="the member list is unknown"),
        pytest.param(observation(reading(0, leader=-1)), "NoLeader", id="no leader"),
        pytest.param(observation(reading(0), reading(1, leader=1)), "NoLeader", id="two leaders"),
        pytest.param(observation(reading(0, errors=(alarm(0, "CORRUPT"),))), "Alarm", id="corrupt data"),
        pytest.param(observation(reading(0), reading(1, raft_applied_index=1)), "RaftLag", id="far behind"),
    ],
)
def test_no_member_is_defragmented_when_the_cluster_is_not_well(seen: object, reason: str) -> None:
    refusal = next_target(seen, frozenset())  # type: ignore[arg-type]
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason


def test_nospace_does_not_forbid_the_cure() -> None:
    full = observation(reading(0, errors=(alarm(0, "NOSPACE"),)))
    assert isinstance(next_target(full, frozenset()), Target)

"""Certificates: what an action rests on, checked again by somebody who knows nothing of the decision."""

from __future__ import annotations

import msgspec
import pytest
from disk_builders import NOW, POLICY, Scene

from shared.disk_release.decide import decide
from shared.disk_release.invariants import Moment, Trace, violations
from shared.disk_release.proof import lines, prove, read_certificate, verify
from shared.errors import MessageError
from shared.model.plan import ActionKind
from tests.unit.disk_release.test_decide import dead
from tests.unit.disk_release.test_rules import BASES, action_of, looked_at


def certificate_of(scene: Scene, kind: ActionKind) -> bytes:
    return prove(action_of(scene, kind), looked_at(scene), scene.policy, NOW)


@pytest.mark.parametrize("base", BASES, ids=lambda base: " ".join(filter(None, base)))
def test_the_checker_comes_to_the_same_verdict_for_every_kind_of_write(base: tuple[ActionKind, str]) -> None:
    for world in BASES[base]:
        certificate = read_certificate(certificate_of(world(), base[0]))

        check = verify(certificate)

        assert check.contradictions == ()
        assert check.verdict == certificate.verdict


@pytest.mark.parametrize("base", BASES, ids=lambda base: " ".join(filter(None, base)))
def test_evidence_that_does_not_carry_the_write_is_found_out(base: tuple[ActionKind, str]) -> None:
    """The certificate of a right action, on facts of a world in which all that was long ago."""
    scene = BASES[base][0]()
    action = action_of(scene, base[0])
    scene.read_at = NOW.replace(year=2025)

    check = verify(read_certificate(prove(action, looked_at(scene), scene.policy, NOW)))

    assert any("ClusterReadIsFresh" in line for line in check.contradictions)


def test_a_certificate_that_was_changed_is_refused() -> None:
    data = certificate_of(dead(), ActionKind.POWER_OFF_VM)

    with pytest.raises(MessageError, match="changed"):
        read_certificate(data.replace(b'"vm-a"', b'"vm-b"'))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"kind": "certificate/v2"}', b"\xff"])
def test_what_is_no_certificate_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(MessageError) as caught:
        read_certificate(data)

    assert "\n" not in str(caught.value)


def test_a_finding_that_was_left_out_is_missed() -> None:
    certificate = read_certificate(certificate_of(dead(), ActionKind.POWER_OFF_VM))
    fewer = msgspec.structs.replace(certificate, findings=certificate.findings[1:])

    assert verify(fewer).contradictions == ("VmIsTheSame is required and was not asked",)


def test_another_verdict_than_the_facts_give_is_found_out() -> None:
    certificate = read_certificate(certificate_of(dead(), ActionKind.POWER_OFF_VM))
    other = msgspec.structs.replace(certificate, verdict="Release")

    assert "verdict was Release and is FenceAndRelease" in verify(other).contradictions[0]


def test_an_explanation_names_facts_times_and_rules() -> None:
    text = "\n".join(lines(read_certificate(certificate_of(dead(), ActionKind.POWER_OFF_VM))))

    for part in (
        "FenceAndRelease",
        "read 10:00:00",
        "vmId vm-a",
        "NodeIsSilent [I7]",
        "checked again: sound",
    ):
        assert part in text


def test_a_certificate_is_the_same_for_the_same_facts() -> None:
    assert certificate_of(dead(), ActionKind.POWER_OFF_VM) == certificate_of(dead(), ActionKind.POWER_OFF_VM)


def test_an_unsound_certificate_breaks_an_invariant() -> None:
    scene = dead()
    action, seen = action_of(scene, ActionKind.POWER_OFF_VM), looked_at(scene)
    forged = certificate_of(dead(), ActionKind.POWER_OFF_VM).replace(b'"running"', b'"stopped"')
    moment = Moment(at=NOW, action=action, seen=seen, truth=seen, policy=POLICY, certificate=forged)

    assert [v[:3] for v in violations(Trace(moments=(moment,)))] == ["I21"]


def test_a_plan_decided_again_is_the_same() -> None:
    observation = dead().build()
    trace = Trace(looks=((observation, decide(observation, observation.policy, NOW)),))

    assert violations(trace) == []

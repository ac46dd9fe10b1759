"""Mutation of the rules: without any single precondition, some write breaks an invariant of the true world.

For each kind of write there are worlds in which it is right (`BASES`), and a library of what can happen to
them between the decision and the write (`CHANGES`). `act` asks the rules again in the changed world. With all
rules no write ever breaks an invariant; take any one rule away, and one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import cache

import msgspec
import pytest
from disk_builders import NOW, POLICY, Scene, ago, disk, vm, write

from shared.disk_release import rules
from shared.disk_release.decide import decide
from shared.disk_release.invariants import Moment, Trace, violations
from shared.disk_release.memory import remember
from shared.disk_release.observation import Fact, Known, Observation
from shared.disk_release.state import Done, Fence, WriteState, unowned
from shared.model.disk import DISK_DRIVER, Attachment, Blob, CsiNode, Readiness, key
from shared.model.plan import Action, ActionKind
from tests.unit.disk_release.test_decide import (
    FENCED,
    FORCED,
    PLAIN_FAILED,
    VHD,
    dead,
    going,
    lost,
    stopped,
    tainted,
    unmanaged,
    with_policy,
    with_state,
    zombie,
)

World = Callable[[], Scene]
Change = Callable[[Scene], object]

BASES: dict[tuple[ActionKind, str], tuple[World, ...]] = {
    (ActionKind.POWER_OFF_VM, ""): (lambda: dead().volume("d2", node="a", pod="db-1"), dead),
    (ActionKind.TAINT_NODE, ""): (lambda: stopped().releasing("a", FENCED), stopped),
    (ActionKind.TAINT_NODE, "gone"): (lambda: dead().detach("d1", "a").absent("a", since=100),),
    (ActionKind.UNTAINT_NODE, ""): (
        lambda: Scene().off("a").taint("a").releasing("a", FENCED, tainted=5),
        lambda: dead().off("a", "starting").taint("a").releasing("a", FENCED, tainted=5),
    ),
    (ActionKind.DETACH_DISK, "fenced"): (tainted,),
    (ActionKind.DETACH_DISK, "idle"): (zombie,),
    (ActionKind.FORCE_DETACH_DISK, ""): (
        lambda: tainted().releasing("a", FENCED, PLAIN_FAILED, tainted=100),
        lambda: going(tainted().releasing("a", FENCED, PLAIN_FAILED, tainted=100)),
    ),
    (ActionKind.DELETE_VOLUME_ATTACHMENT, "gone"): (
        lambda: dead().no_pod().detach("d1", "a").absent("a", since=100),
    ),
    (ActionKind.DELETE_VOLUME_ATTACHMENT, "free"): (
        lambda: Scene().no_pod().detach("d1", "a").gone_node("a").seen(unowned(disk("d1"), ""), 100),
    ),
    (ActionKind.DELETE_VOLUME_ATTACHMENT, "lost"): (
        lost,
        lambda: stopped().no_pod().gone_node("a").releasing("a"),
    ),
    (ActionKind.REMOVE_FINALIZER, ""): (
        lambda: lost().detach("d1", "a").deleting().seen(unowned(disk("d1"), vm("a")), 100),
        lambda: (
            dead()
            .detach("d1", "a")
            .absent("a", since=100)
            .deleting()
            .gone_node("a")
            .releasing("a")
            .seen(unowned(disk("d1"), vm("a")), 100)
        ),
    ),
    (ActionKind.REAPPLY_VM, ""): (
        lambda: with_policy(zombie().machine("a", provisioning="Failed"), repair=True),
    ),
    (ActionKind.BREAK_LEASE, ""): (lambda: unmanaged().silent("a").absent("a", since=100),),
}


def _pod_again(scene: Scene) -> object:
    fresh = Scene()
    scene.pods, scene.claims, scene.volumes = fresh.pods, fresh.claims, fresh.volumes
    return scene


def _open_write(scene: Scene) -> object:
    return scene.releasing("a", write(ActionKind.REAPPLY_VM, WriteState.RUNNING, at=20), tainted=100)


def _fenced_before(scene: Scene) -> object:
    """The VM is read (honestly) as of before its fence."""
    at = 5 if scene.state.releases else 200
    return scene.releasing(
        "a",
        *_with(scene, write(ActionKind.POWER_OFF_VM, WriteState.SUCCEEDED, at=at)),
        tainted=_tainted(scene),
    ).machine("a", read=10)


def _tainted(scene: Scene) -> float | None:
    release = scene.state.releases.get(key(vm("a")))
    return (
        None if release is None or release.tainted_at is None else (NOW - release.tainted_at).total_seconds()
    )


def _with(scene: Scene, fence: object) -> list[object]:
    release = scene.state.releases.get(key(vm("a")))
    others = [w for w in (release.writes if release else ()) if w.kind is not ActionKind.POWER_OFF_VM]
    return [fence, *others]


def _writes(*writes: object) -> Change:
    return lambda scene: scene.releasing("a", *writes, tainted=_tainted(scene) or 100)


def _foreign(scene: Scene) -> object:
    """Its volume goes, and nothing tags it; what waits for it waits for another."""
    scene.disk("d1", tags={})
    scene.volumes["d1"] = msgspec.structs.replace(Scene().volumes["d1"], handle=disk("other"))
    # Somebody must still want it, or that would be the reason.
    return scene


def _other_node(scene: Scene) -> object:
    return scene.node("a", uid="node-new")


def _readopt(scene: Scene) -> object:
    scene.disks[key(disk("d1"))] = Fact(Known.UNKNOWN, ago(0), why="503")
    return scene


CHANGES: dict[str, Change] = {
    "nothing": lambda scene: scene,
    "another VM has the name": lambda scene: scene.machine("a", vm_id="vm-new"),
    "another node has the name": _other_node,
    "the node is another VM's": lambda scene: scene.node("a", provider_id=f"azure://{vm('z')}"),
    "another disk has the name": lambda scene: scene.disk("d1", unique_id="unique-new"),
    "another attachment has the name": lambda scene: scene.change("attachments", "d1", uid="va-new"),
    "the VM was read long ago": lambda scene: scene.machine("a", read=20),
    "the VM's absence was read long ago": lambda scene: scene.absent("a", read=20, since=100),
    "the disk was read long ago": lambda scene: scene.disk("d1", read=20),
    "the cluster was read long ago": lambda scene: setattr(scene, "read_at", ago(20)),
    "the VM was read before its fence": _fenced_before,
    "the node is Ready": lambda scene: scene.node("a", ready=Readiness.TRUE, renewed_at=ago(1)),
    "the node was heard a moment ago": lambda scene: scene.node("a", renewed_at=ago(10), ready_since=ago(10)),
    "the node is silent": lambda scene: scene.silent("a"),
    "its kubelet was last heard a minute ago": lambda scene: scene.node("a", renewed_at=ago(60)),
    "the VM runs": lambda scene: scene.machine("a", power="running"),
    "the VM stops": lambda scene: scene.machine("a", power="stopping"),
    "the VM is off": lambda scene: scene.machine("a", power="stopped"),
    "the VM hibernates": lambda scene: scene.machine("a", power="deallocated", is_hibernated=True),
    "the VM is being changed": lambda scene: scene.machine("a", provisioning="Updating"),
    "the VM failed": lambda scene: scene.machine("a", provisioning="Failed"),
    "the VM is well again": lambda scene: scene.machine("a", provisioning="Succeeded"),
    "the VM exists": lambda scene: scene.machine("a"),
    "the VM was found gone once": lambda scene: with_state(scene, seen={}),
    "the VM is unknown": lambda scene: scene.unknown("a"),
    "a write of ours is open": _open_write,
    "a fence of ours is under way": _writes(write(ActionKind.POWER_OFF_VM, WriteState.RUNNING, at=20)),
    "the policy forbids fences": lambda scene: with_policy(scene, fence="never"),
    "the policy forbids force": lambda scene: with_policy(scene, force=False),
    "the policy forbids finalizers": lambda scene: with_policy(scene, remove_finalizers=False),
    "the policy forbids repair": lambda scene: with_policy(scene, repair=False),
    "the policy forbids leases": lambda scene: with_policy(scene, break_leases=False),
    "others were fenced": lambda scene: with_state(
        scene, fences=tuple(Fence(vm=n, node=n, at=ago(60)) for n in "xyz")
    ),
    "many nodes are silent": lambda scene: scene.silent("b").silent("c").silent("d"),
    "an excluded pod came": lambda scene: with_policy(
        Scene.change(scene, "pods", "db-0", labels={"x": "y"}) if scene.pods else scene, exclude=("x",)
    ),
    "nobody waits any more": lambda scene: scene.no_pod(),
    "the disk was released a moment ago": lambda scene: with_state(
        scene, done=(Done(disk=key(disk("d1")), vm=key(vm("a")), epoch=1, at=ago(60)),)
    ),
    "it was fenced twice": _writes(*[write(ActionKind.POWER_OFF_VM, WriteState.FAILED)] * 2),
    "it was detached before": lambda scene: scene.releasing(
        "a", *([FENCED] if scene.state.releases else []), PLAIN_FAILED, tainted=_tainted(scene)
    ),
    "it was forced before": _writes(FENCED, PLAIN_FAILED, FORCED),
    "it was reapplied before": _writes(write(ActionKind.REAPPLY_VM, WriteState.FAILED)),
    "no plain detach was tried": _writes(FENCED),
    "the disk is the VM's system": lambda scene: scene.disk("d1", os_type="Linux"),
    "the disk left the VM": lambda scene: scene.detach("d1", "a"),
    "another disk was taken from the VM by hand": lambda scene: scene.volume(
        "d9", node="a", pod="db-9"
    ).detach("d9", "a"),
    "the disk is shared": lambda scene: scene.disk("d1", max_shares=2),
    "the disk is foreign": _foreign,
    "the disk is exported": lambda scene: scene.disk("d1", state="ActiveSAS"),
    "the disk is held again": lambda scene: scene.attach("d1", "a"),
    "the disk says it is held": lambda scene: scene.disk("d1", managed_by=vm("a"), state="Attached"),
    "the disk is unknown": _readopt,
    "the disk was found free once": lambda scene: with_state(scene, seen={}),
    "a pod is bound to the node": _pod_again,
    "the node reports the disk": lambda scene: scene.node(
        "a", volumes_in_use=frozenset({f"kubernetes.io/csi/{DISK_DRIVER}^{disk('d1')}"})
    ),
    "the disk was attached a moment ago": lambda scene: scene.disk("d1", owner_changed_at=ago(30)),
    "an attachment came": lambda scene: scene.attachments.update(
        {"d1": Attachment(name="va-new", uid="va-new", node="a", volume="pv-d1")}
    ),
    "the taint is new": lambda scene: (
        scene.releasing("a", *scene.state.releases[key(vm("a"))].writes, tainted=5)
        if scene.state.releases
        else scene
    ),
    "somebody else tainted it": lambda scene: scene.taint("a", ours=False),
    "the taint is somebody else's": lambda scene: scene.node("a", annotations={}),
    "the attachment is being deleted": lambda scene: scene.deleting() if scene.attachments else scene,
    "the attachment is not being deleted": lambda scene: (
        scene.change("attachments", "d1", deleting_since=None) if scene.attachments else scene
    ),
    "the volume came back": lambda scene: scene.volumes.update(Scene().volumes),
    "the node came back": lambda scene: scene.node("a"),
    "the blob was written": lambda scene: scene.blobs.update(
        {VHD: Fact(Known.KNOWN, NOW, Blob(uri=VHD, etag="e2", lease="leased"))}
    ),
    "a VM lists the blob": lambda scene: scene.machine(
        "b", data_disks=(msgspec.structs.replace(going_entry(), disk=VHD),)
    ),
}


def going_entry() -> object:
    return Scene().machines[key(vm("a"))].value.data_disks[0]


def action_of(scene: Scene, kind: ActionKind) -> Action:
    found = decide(scene.build(), scene.policy, NOW)
    return next(action for action in found.actions if action.kind is kind)


def looked_at(scene: Scene) -> Observation:
    """As `act` sees it, with the look remembered."""
    seen = scene.build()
    return replace(seen, state=remember(seen, NOW))


def judged(action: Action, scene: Scene) -> list[str]:
    """Violations if the action were carried out in this world."""
    seen = looked_at(scene)
    moment = Moment(at=NOW, action=action, seen=seen, truth=seen, policy=scene.policy)
    return violations(Trace(moments=(moment,)))


@cache
def cases_of(base: tuple[ActionKind, str]) -> list[tuple[str, set[str], list[str]]]:
    """For every change: which rules refuse the write afterwards, and which invariants it would break."""
    return [case for world in BASES[base] for case in _cases(base[0], world)]


def _cases(kind: ActionKind, world: World) -> Iterator[tuple[str, set[str], list[str]]]:
    action = action_of(world(), kind)
    for name, change in CHANGES.items():
        scene = world()
        try:
            change(scene)
        except KeyError:
            continue  # what is to change is not in this world
        refused = rules.broken(action, looked_at(scene), scene.policy, NOW)
        yield name, {finding.rule for finding in refused}, judged(action, scene)


@pytest.mark.no_cover
@pytest.mark.parametrize("base", BASES, ids=lambda base: " ".join(filter(None, base)))
def test_with_all_rules_no_change_of_the_world_leads_to_a_violation(base: tuple[ActionKind, str]) -> None:
    cases = cases_of(base)

    assert ("nothing", set(), []) in cases
    assert [(name, wrong) for name, refused, wrong in cases if not refused and wrong] == []


@pytest.mark.parametrize(
    ("base", "rule"),
    [(base, rule) for base, names in rules.REQUIRED.items() for rule in names],
    ids=lambda value: value if isinstance(value, str) else " ".join(filter(None, value)),
)
def test_without_a_rule_an_invariant_breaks(base: tuple[ActionKind, str], rule: str) -> None:
    noticed = [(name, wrong) for name, refused, wrong in cases_of(base) if refused == {rule} and wrong]

    assert noticed, {name: refused for name, refused, _ in cases_of(base) if rule in refused}


def test_every_removal_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    """The same in numbers."""
    removed = [(base, rule) for base, names in rules.REQUIRED.items() for rule in names]
    noticed = [
        (base, rule)
        for base, rule in removed
        if any(refused == {rule} and wrong for _, refused, wrong in cases_of(base))
    ]
    with capsys.disabled():
        print(
            f"\n{len(rules.RULES)} rules, {len(removed)} preconditions of {len(rules.REQUIRED)} kinds of "
            f"writes removed one by one in {sum(len(cases_of(base)) for base in BASES)} worlds: "
            f"{len(noticed)} noticed"
        )

    assert noticed == removed


def test_every_rule_is_used_and_every_use_has_a_world() -> None:
    assert set(rules.RULES) == {name for names in rules.REQUIRED.values() for name in names}
    assert set(BASES) == {(kind, str(ground)) for kind, ground in rules.REQUIRED}


def test_an_unknown_fact_is_no_yes() -> None:
    for base, (world, *_) in BASES.items():
        action, scene = action_of(world(), base[0]), world()
        scene.unknown("a").unknown_disk("d1")
        scene.blobs.clear()
        refused = rules.broken(action, scene.build(), POLICY, NOW)
        assert refused or base[0] is ActionKind.UNTAINT_NODE, base


def test_evidence_grows_old() -> None:
    scene = dead()
    action = action_of(scene, ActionKind.POWER_OFF_VM)
    late = NOW + timedelta(seconds=16)

    assert {f.rule for f in rules.broken(action, scene.build(), scene.policy, late)} == {
        "VmReadIsFresh",
        "ClusterReadIsFresh",
    }


def test_a_csi_node_without_the_driver_is_as_good_as_none() -> None:
    scene = Scene().change("csi_nodes", "a", drivers={})
    found = scene.attachments["d1"]

    assert "CSINode" in rules.why_attacher_cannot(found, scene.build())
    assert CsiNode(name="a") == scene.csi_nodes["a"]

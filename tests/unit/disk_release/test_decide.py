"""What is done about a disk on a VM, for every situation of docs/disk-release.md: tables of cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from disk_builders import NOW, POLICY, Scene, ago, disk, vm, write

from shared.disk_release.cases import needs
from shared.disk_release.decide import decide, verdicts
from shared.disk_release.memory import remember
from shared.disk_release.observation import Fact, Known, Observation
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.state import Done, Fence, WriteState, started, unowned, updating
from shared.model.disk import CREATED_FOR_VOLUME, Blob, DataDisk, Node, Taint, key
from shared.model.plan import Action, ActionKind, LeftAlone, Plan

FENCED = write(ActionKind.POWER_OFF_VM, WriteState.SUCCEEDED)
PLAIN_FAILED = write(ActionKind.DETACH_DISK, WriteState.FAILED, code="Overdue")
FORCED = write(ActionKind.FORCE_DETACH_DISK, WriteState.FAILED, code="InternalError")
VHD = "https://legacy.blob.core.windows.net/vhds/data.vhd"


def plan(scene: Scene) -> Plan:
    return decide(scene.build(), scene.policy, NOW)


def only(scene: Scene) -> Action:
    actions = plan(scene).actions
    assert len(actions) == 1, [a.kind for a in actions] or plan(scene).left_alone
    return actions[0]


def left(scene: Scene) -> dict[str, str]:
    return {item.reason: item.message for item in plan(scene).left_alone}


def dead() -> Scene:
    return Scene().silent("a")


def stopped() -> Scene:
    return dead().off("a")


def tainted(age: float = 100) -> Scene:
    return stopped().taint("a", age=age).no_pod().deleting().releasing("a", FENCED, tainted=age)


def zombie() -> Scene:
    return Scene().no_pod().no_attachment().unused()


def lost() -> Scene:
    """The PersistentVolume is gone; the disk's tag tells whose it was."""
    scene = Scene().no_pod().unused().disk("d1", tags={CREATED_FOR_VOLUME: "pv-d1"})
    del scene.volumes["d1"], scene.claims["d1"]
    return scene


def unmanaged() -> Scene:
    scene = Scene()
    scene.blobs[VHD] = Fact(Known.KNOWN, NOW, Blob(uri=VHD, etag="e1", lease="leased", owner="a"))
    scene.attachments["v"] = msgspec.structs.replace(
        scene.attachments["d1"], name="va-v", uid="va-v", volume="pv-v"
    )
    scene.volumes["v"] = msgspec.structs.replace(scene.volumes["d1"], name="pv-v", handle=VHD)
    scene.policy = msgspec.structs.replace(POLICY, break_leases=True)
    return scene


ACTIONS: dict[str, tuple[Callable[[], Scene], ActionKind, str, str]] = {
    "S1 dead node, running VM": (dead, ActionKind.POWER_OFF_VM, "FenceAndRelease", "S1"),
    "S1 fence with a pod already elsewhere": (
        lambda: dead().change("pods", "db-0", node="b"),
        ActionKind.POWER_OFF_VM,
        "FenceAndRelease",
        "S1",
    ),
    "S1 fence is tried twice": (
        lambda: dead().releasing("a", write(ActionKind.POWER_OFF_VM, WriteState.FAILED)),
        ActionKind.POWER_OFF_VM,
        "FenceAndRelease",
        "S1",
    ),
    "S1 VM started again, and silent": (
        lambda: dead().seen(started(vm("a")), 70),
        ActionKind.POWER_OFF_VM,
        "FenceAndRelease",
        "S1",
    ),
    "S1 fenced, confirmed: taint": (
        lambda: stopped().releasing("a", FENCED),
        ActionKind.TAINT_NODE,
        "Release",
        "S2",
    ),
    "S2 VM stopped": (stopped, ActionKind.TAINT_NODE, "Release", "S2"),
    "S2 VM deallocated": (lambda: dead().off("a", "deallocated"), ActionKind.TAINT_NODE, "Release", "S2"),
    "S2 attachment outlives the taint": (tainted, ActionKind.DETACH_DISK, "Release", "S2"),
    "S2 attachment not even deleted after the taint": (
        lambda: stopped().taint("a", age=100).no_pod().releasing("a", FENCED, tainted=100),
        ActionKind.DELETE_VOLUME_ATTACHMENT,
        "Release",
        "S2",
    ),
    "S2 attachment not even deleted, the disk taken by hand": (
        lambda: stopped().detach("d1", "a").taint("a", age=100).no_pod().releasing("a", FENCED, tainted=100),
        ActionKind.DELETE_VOLUME_ATTACHMENT,
        "Release",
        "S2",
    ),
    "S2 node gone, VM stopped": (
        lambda: stopped().no_pod().gone_node("a").releasing("a"),
        ActionKind.DELETE_VOLUME_ATTACHMENT,
        "Release",
        "S2",
    ),
    "S2 the cloud provider tainted it": (
        lambda: stopped().taint("a", ours=False, age=100).no_pod().deleting(),
        ActionKind.DETACH_DISK,
        "Release",
        "S2",
    ),
    "S3 VM gone, its node keeps its pods": (
        lambda: dead().detach("d1", "a").absent("a", since=40),
        ActionKind.TAINT_NODE,
        "Release",
        "S3",
    ),
    "S3 VM gone, the disk not yet free": (
        lambda: dead().absent("a", since=40),
        ActionKind.TAINT_NODE,
        "Release",
        "S3",
    ),
    "S3 VM gone, disk free": (
        lambda: dead().no_pod().detach("d1", "a").absent("a", since=40),
        ActionKind.DELETE_VOLUME_ATTACHMENT,
        "Nudge",
        "S3",
    ),
    "S3 node gone too, disk free": (
        lambda: Scene().no_pod().detach("d1", "a").gone_node("a").seen(unowned(disk("d1"), ""), 40),
        ActionKind.DELETE_VOLUME_ATTACHMENT,
        "Nudge",
        "S3",
    ),
    "S3 attacher cannot act": (
        lambda: (
            dead()
            .detach("d1", "a")
            .absent("a", since=40)
            .deleting()
            .gone_node("a")
            .releasing("a")
            .seen(unowned(disk("d1"), vm("a")), 40)
        ),
        ActionKind.REMOVE_FINALIZER,
        "Nudge",
        "S3",
    ),
    "S5 zombie": (zombie, ActionKind.DETACH_DISK, "Release", "S5"),
    "S7 failed VM, repair allowed": (
        lambda: with_policy(zombie().machine("a", provisioning="Failed"), repair=True),
        ActionKind.REAPPLY_VM,
        "RepairVM",
        "S7",
    ),
    "S8 plain detach failed": (
        lambda: tainted().releasing("a", FENCED, PLAIN_FAILED, tainted=100),
        ActionKind.FORCE_DETACH_DISK,
        "Release",
        "S8",
    ),
    "S8 our detach is overdue, VM still Updating": (
        lambda: going(tainted().releasing("a", FENCED, PLAIN_FAILED, tainted=100)),
        ActionKind.FORCE_DETACH_DISK,
        "Release",
        "S8",
    ),
    "S10 PV missing, attachment not deleting": (
        lost,
        ActionKind.DELETE_VOLUME_ATTACHMENT,
        "Nudge",
        "S10",
    ),
    "S10 PV missing, attachment deleting, disk held": (
        lambda: lost().deleting(),
        ActionKind.DETACH_DISK,
        "Release",
        "S5",
    ),
    "S10 PV missing, disk free": (
        lambda: lost().detach("d1", "a").deleting().seen(unowned(disk("d1"), vm("a")), 40),
        ActionKind.REMOVE_FINALIZER,
        "Nudge",
        "S10",
    ),
    "S16 lease of a gone machine": (
        lambda: unmanaged().no_pod().silent("a").absent("a", since=40),
        ActionKind.BREAK_LEASE,
        "Release",
        "S16",
    ),
    "S20 handle in another case": (
        lambda: dead().change("volumes", "d1", handle=disk("d1").upper()),
        ActionKind.POWER_OFF_VM,
        "FenceAndRelease",
        "S1",
    ),
}


def with_policy(scene: Scene, **changes: object) -> Scene:
    scene.policy = msgspec.structs.replace(scene.policy, **changes)
    return scene


def going(scene: Scene) -> Scene:
    machine = scene.machines[key(vm("a"))].value
    entries = tuple(msgspec.structs.replace(e, to_be_detached=True) for e in machine.data_disks)
    return scene.machine("a", provisioning="Updating", data_disks=entries)


@pytest.mark.parametrize("name", ACTIONS)
def test_a_situation_that_is_acted_on(name: str) -> None:
    make, kind, verdict, situation = ACTIONS[name]

    action = next(a for a in plan(make()).actions if a.kind is not ActionKind.UNTAINT_NODE)

    assert (action.kind, action.parameters["verdict"], action.parameters["situation"]) == (
        kind,
        verdict,
        situation,
    )
    assert action.evidence and action.preconditions and action.message


WAITS_AND_REPORTS: dict[str, tuple[Callable[[], Scene], str, str]] = {
    "S1 grace not over": (lambda: Scene().silent("a", 20), "Wait", "NodeSilent"),
    "S1 VM started again a moment ago": (
        lambda: dead().seen(started(vm("a")), 20),
        "Wait",
        "NodeSilent",
    ),
    "S1 fence under way": (
        lambda: dead().releasing("a", write(ActionKind.POWER_OFF_VM, WriteState.RUNNING, at=20)),
        "Wait",
        "WriteUnderWay",
    ),
    "S1 fence failed twice": (
        lambda: dead().releasing("a", *[write(ActionKind.POWER_OFF_VM, WriteState.FAILED)] * 2),
        "Report",
        "FenceFailed",
    ),
    "S1 node gone, VM runs": (
        lambda: Scene().gone_node("a").no_pod().seen("gone-node:a", 30),
        "Wait",
        "NodeGoneVmRuns",
    ),
    "S1 node gone, VM runs, for long": (
        lambda: Scene().gone_node("a").no_pod().seen("gone-node:a", 600),
        "Report",
        "NodeGoneVmRuns",
    ),
    "S1 nobody wants it": (lambda: dead().no_pod(), "Report", "NobodyWaits"),
    "S2 nobody wants it": (lambda: stopped().no_pod(), "Report", "NobodyWaits"),
    "S2 stopping": (lambda: dead().off("a", "stopping"), "Wait", "PowerMoves"),
    "S2 deallocating": (lambda: dead().off("a", "deallocating"), "Wait", "PowerMoves"),
    "S2 starting": (lambda: dead().off("a", "starting"), "Wait", "PowerMoves"),
    "S2 hibernated": (
        lambda: dead().machine("a", power="deallocated", is_hibernated=True),
        "Report",
        "Hibernated",
    ),
    "S2 Kubernetes has its turn": (lambda: tainted(20), "Wait", "KubernetesDetaches"),
    "S2 node does not know yet": (lambda: Scene().off("a").releasing("a"), "Wait", "NodeNotYetSilent"),
    "S3 found gone once": (lambda: dead().detach("d1", "a").absent("a"), "Wait", "AbsenceNotProven"),
    "S3 disk lingers": (lambda: dead().no_pod().absent("a", since=40), "Wait", "OwnerLingers"),
    "S3 disk lingers for long": (
        lambda: dead().no_pod().absent("a", since=600),
        "Report",
        "OwnerLingers",
    ),
    "S3 attacher can act": (
        lambda: dead().no_pod().detach("d1", "a").absent("a", since=40).deleting(),
        "Wait",
        "AttacherFinishes",
    ),
    "S3 attacher does not get on": (
        lambda: dead().no_pod().detach("d1", "a").absent("a", since=900).deleting(seconds=800),
        "Report",
        "AttacherFinishes",
    ),
    "S4 another VM of the name": (
        lambda: stopped().machine("a", vm_id="vm-new").releasing("a", FENCED, tainted=5).taint("a"),
        "Report",
        "AnotherMachine",
    ),
    "S5 young": (lambda: zombie().disk("d1", owner_changed_at=ago(60)), "Wait", "YoungZombie"),
    "S5 of no age": (lambda: zombie().disk("d1", owner_changed_at=None), "Report", "ZombieOfNoAge"),
    "S5 detach failed": (
        lambda: zombie().releasing("a", PLAIN_FAILED),
        "Report",
        "DetachFailed",
    ),
    "S6 detached underneath": (lambda: Scene().detach("d1", "a"), "Report", "DetachedUnderneath"),
    "S7 failed VM": (lambda: zombie().machine("a", provisioning="Failed"), "Report", "VmFailed"),
    "S8 in transition": (
        lambda: zombie().machine("a", provisioning="Updating"),
        "Wait",
        "InTransition",
    ),
    "S8 in transition for long": (
        lambda: zombie().machine("a", provisioning="Updating").seen(updating(vm("a")), 600),
        "Report",
        "InTransition",
    ),
    "S8 force failed too": (
        lambda: tainted().releasing("a", FENCED, PLAIN_FAILED, FORCED, tainted=100),
        "Report",
        "DetachFailed",
    ),
    "S9 pod force-deleted": (
        lambda: Scene().no_pod(),
        "Wait",
        "UnmountStuck",
    ),
    "S10 no disk has the tag": (
        lambda: lost().disk("d1", tags={}).no_pod(),
        "Report",
        "VolumeLost",
    ),
    "S10 in use": (
        lambda: lost().node("a", volumes_in_use=frozenset({f"kubernetes.io/csi/x^{disk('d1')}"})),
        "Report",
        "VolumeLostInUse",
    ),
    "S13 shared disk": (lambda: dead().disk("d1", max_shares=2), "Report", "SharedDisk"),
    "S14 zone": (
        lambda: attaching("disk is not in the same zone as the VM"),
        "Report",
        "ZoneMismatch",
    ),
    "S15 slots full": (
        lambda: attaching("The maximum number of data disks allowed to be attached is 8"),
        "Report",
        "SlotsFull",
    ),
    "S16 lease, not allowed": (
        lambda: with_policy(unmanaged().no_pod().silent("a").absent("a", since=40), break_leases=False),
        "Report",
        "LeasesMayBeBroken",
    ),
    "S16 lease of a running VM": (unmanaged, "Report", "BlobIsInNoList"),
    "S17 attached elsewhere": (
        lambda: Scene().detach("d1", "a").attach("d1", "b"),
        "Report",
        "AttachedElsewhere",
    ),
    "S18 active SAS": (lambda: dead().disk("d1", state="ActiveSAS"), "Report", "DiskBusy"),
    "S18 frozen": (lambda: dead().disk("d1", state="Frozen"), "Report", "DiskBusy"),
    "S19 stale report": (
        lambda: Scene().no_pod().no_attachment(),
        "Report",
        "StaleReport",
    ),
    "S21 power unknown": (lambda: dead().machine("a", power="unknown"), "Wait", "PowerUnknown"),
    "S22 unmount stuck": (lambda: Scene().no_pod().unused().node("a"), "Wait", "KubernetesDetaches"),
    "deleting on a Ready node": (lambda: Scene().no_pod().unused().deleting(), "Wait", "Detaching"),
    "disk gone": (lambda: no_disk(dead()), "Report", "DiskGone"),
    "OS disk": (lambda: dead().disk("d1", os_type="Linux"), "Report", "OsDisk"),
    "VM 403": (lambda: dead().unknown("a", "403 AuthorizationFailed"), "Report", "Forbidden"),
    "VM 401": (lambda: dead().unknown("a", "401 InvalidAuthenticationToken"), "Report", "Forbidden"),
    "VM 429": (lambda: dead().unknown("a", "429 TooManyRequests"), "Wait", "Unknown"),
    "VM 503": (lambda: dead().unknown("a"), "Wait", "Unknown"),
    "VM never read": (lambda: unread(dead()), "Wait", "Unknown"),
    "disk 403": (lambda: dead().unknown_disk("d1", "403 AuthorizationFailed"), "Report", "Forbidden"),
    "disk 429": (lambda: dead().unknown_disk("d1", "429 TooManyRequests"), "Wait", "Unknown"),
    "disk 500": (lambda: dead().unknown_disk("d1", "500 InternalServerError"), "Wait", "Unknown"),
    "malformed disk id": (
        lambda: dead().change("volumes", "d1", handle="/subscriptions/x"),
        "Report",
        "BadDiskId",
    ),
    "malformed provider id": (
        lambda: dead().node("a", provider_id="aws:///i-1"),
        "Report",
        "BadProviderId",
    ),
    "fence never": (lambda: with_policy(dead(), fence="never"), "Report", "FenceIsAllowed"),
    "fence not approved": (lambda: with_policy(dead(), fence="approve"), "Report", "FenceIsAllowed"),
    "excluded by label": (
        lambda: with_policy(dead().change("pods", "db-0", labels={"tier": "db"}), exclude=("tier=db",)),
        "Report",
        "NothingIsExcluded",
    ),
    "frozen: too many NotReady": (
        lambda: dead().silent("b").silent("c"),
        "Report",
        "ClusterIsNotFrozen",
    ),
    "too many fences": (
        lambda: with_state(dead(), fences=tuple(Fence(vm=n, node=n, at=ago(60)) for n in "xyz")),
        "Report",
        "FencesAreWithinLimits",
    ),
    "too many of the pool": (
        lambda: with_state(
            dead(), fences=tuple(Fence(vm=n, node=n, at=ago(60), pool="agents") for n in "xy")
        ),
        "Report",
        "FencesAreWithinLimits",
    ),
    "released a short time ago": (
        lambda: with_state(dead(), done=(Done(disk=key(disk("d1")), vm=key(vm("a")), epoch=1, at=ago(60)),)),
        "Report",
        "NotReleasedLately",
    ),
}


def attaching(error: str) -> Scene:
    scene = Scene().detach("d1", "a").unused()
    return scene.change("attachments", "d1", attached=False, attach_error=error, created_at=ago(200))


def no_disk(scene: Scene) -> Scene:
    scene.disks[key(disk("d1"))] = Fact(Known.ABSENT, NOW, why="404 ResourceNotFound")
    return scene


def unread(scene: Scene) -> Scene:
    del scene.machines[key(vm("a"))]
    return scene


def with_state(scene: Scene, **changes: object) -> Scene:
    scene.state = msgspec.structs.replace(scene.state, **changes)
    return scene


@pytest.mark.parametrize("name", WAITS_AND_REPORTS)
def test_a_situation_that_is_left_alone(name: str) -> None:
    make, kind, reason = WAITS_AND_REPORTS[name]
    scene = make()

    found = plan(scene)

    assert [a.kind for a in found.actions if a.kind is not ActionKind.UNTAINT_NODE] == []
    assert reason in left(scene), found.left_alone
    assert left(scene)[reason].startswith(kind), left(scene)[reason]
    assert "\n" not in left(scene)[reason]


def test_a_healthy_cluster_needs_nothing_and_says_nothing() -> None:
    assert plan(Scene()) == Plan(automation="disk-release", cluster="prod", now=NOW)


def test_every_wait_has_a_deadline_ahead() -> None:
    for make, _, _ in WAITS_AND_REPORTS.values():
        scene = make()
        for verdict in verdicts(scene.build(), scene.policy, NOW):
            assert verdict.kind != "Wait" or (verdict.deadline and verdict.deadline > NOW), verdict


NEVER_READ = "VM never read"
"""More suspects than one pass reads: the next pass comes to it."""


@pytest.mark.parametrize("name", [name for name in WAITS_AND_REPORTS if name != NEVER_READ])
def test_no_wait_is_for_ever_when_nothing_changes(name: str) -> None:
    """An hour of looks, a minute apart: what Kubernetes or Azure should have done is a report by then."""
    make, _, _ = WAITS_AND_REPORTS[name]
    scene = make()
    state = scene.state
    for minute in range(61):
        now = NOW + timedelta(minutes=minute)
        seen = replace(looked_at_again(scene.build(), now), state=state)
        state = remember(seen, now)

    found = verdicts(replace(seen, state=state), scene.policy, now)

    assert [verdict.text for verdict in found if verdict.kind == "Wait"] == []


def looked_at_again(observation: Observation, now: datetime) -> Observation:
    """Everything as it was, read again; kubelets that were heard go on."""
    age = now - NOW

    def node(known: Node) -> Node:
        heard = known.renewed_at + age if known.is_ready and known.renewed_at else known.renewed_at
        return msgspec.structs.replace(known, renewed_at=heard)

    def facts(known: Mapping[str, Fact[Any]]) -> dict[str, Fact[Any]]:
        return {name: replace(fact, read_at=fact.read_at and now) for name, fact in known.items()}

    return replace(
        observation,
        now=now,
        nodes={name: node(known) for name, known in observation.nodes.items()},
        machines=facts(observation.machines),
        disks=facts(observation.disks),
    )


def test_all_disks_of_a_dead_vm_are_detached_in_one_call() -> None:
    scene = Scene().volume("d2", node="a", pod="db-1").volume("d3", node="a", pod="db-2")
    scene = (
        scene.silent("a").off("a").taint("a", age=100).releasing("a", FENCED, tainted=100, disks="d1 d2 d3")
    )
    for number, pod in enumerate(("db-0", "db-1", "db-2"), 1):
        scene.no_pod(pod).deleting(f"d{number}")

    action = only(scene)

    assert [d["id"] for d in action.parameters["disks"]] == [disk("d1"), disk("d2"), disk("d3")]


def test_a_disk_of_another_cluster_on_a_dead_vm_is_not_taken_with_the_others() -> None:
    scene = Scene().attach("foreign", "a").silent("a").off("a").taint("a", age=100).no_pod().deleting()
    scene = scene.releasing("a", FENCED, tainted=100)

    assert [d["id"] for d in only(scene).parameters["disks"]] == [disk("d1")]
    assert "ForeignDisk" in left(scene)


def test_a_foreign_zombie_is_reported_and_detached_only_on_opt_in() -> None:
    scene = Scene().attach("foreign", "a")

    assert plan(scene).actions == ()
    assert "ForeignDisk" in left(scene)
    assert only(with_policy(scene, untagged_disks=True)).kind is ActionKind.DETACH_DISK


def test_only_the_dead_member_of_a_shared_disk_is_released_on_opt_in() -> None:
    scene = with_policy(
        dead().disk("d1", max_shares=2, managed_by_extended=(vm("a"), vm("b"))).attach("d1", "b"),
        shared_disks=True,
    )
    scene.disk("d1", managed_by=vm("a"), managed_by_extended=(vm("a"), vm("b")))
    other = msgspec.structs.replace(scene.attachments["d1"], name="va-b", uid="va-b", node="b")
    scene.attachments["b"] = other
    scene.pods["db-1"] = msgspec.structs.replace(scene.pods["db-0"], name="db-1", uid="db-1", node="b")
    action = only(scene)

    assert action.kind is ActionKind.POWER_OFF_VM
    assert action.parameters["vm"] == vm("a")


def test_an_approved_fence_is_allowed_until_its_time() -> None:
    scene = with_policy(dead(), fence="approve")

    assert only(with_state(scene, approved={"a": ago(-60)})).kind is ActionKind.POWER_OFF_VM
    assert plan(with_state(scene, approved={"a": ago(1)})).actions == ()


def test_the_grace_of_a_pool_goes_before_the_grace_of_all() -> None:
    scene = with_policy(Scene().silent("a", 120), grace_of_pools={"agents": "5m"})

    assert plan(scene).actions == ()
    assert only(with_policy(scene, grace_of_pools={})).kind is ActionKind.POWER_OFF_VM


def test_the_second_dead_node_counts_the_fence_of_the_first() -> None:
    scene = with_policy(dead().volume("d2", node="b", pod="db-1").silent("b"), fences_per_window=1)

    assert [a.target for a in plan(scene).actions] == [vm("a")]
    assert "FencesAreWithinLimits" in left(scene)


def test_a_deallocate_policy_fences_by_deallocating() -> None:
    assert only(with_policy(dead(), fence_with="deallocate")).parameters["method"] == "deallocate"


@pytest.mark.parametrize(
    ("scene", "why"),
    [
        (lambda: Scene().off("a").taint("a").releasing("a", FENCED, tainted=5), "the node is Ready"),
        (lambda: dead().taint("a").releasing("a", FENCED, tainted=5), "the VM is running"),
        (
            lambda: dead().off("a", "starting").taint("a").releasing("a", FENCED, tainted=5),
            "the VM is starting",
        ),
        (
            lambda: stopped().detach("d1", "a").no_attachment().taint("a").releasing("a", FENCED, tainted=5),
            "no VolumeAttachment",
        ),
        (lambda: stopped().taint("a", age=2000), "older than"),
    ],
)
def test_our_taint_goes_when_it_has_no_purpose(scene: Callable[[], Scene], why: str) -> None:
    untaint = next(a for a in plan(scene()).actions if a.kind is ActionKind.UNTAINT_NODE)

    assert why in untaint.message


def test_a_taint_of_somebody_else_stays() -> None:
    scene = Scene().off("a").taint("a", ours=False)

    assert not [a for a in plan(scene).actions if a.kind is ActionKind.UNTAINT_NODE]


def test_nodes_whose_vms_are_known_to_be_off_do_not_freeze_the_cluster() -> None:
    scene = dead().silent("b").silent("c")
    for name in "bc":
        scene.node(name, taints=(Taint("node.cloudprovider.kubernetes.io/shutdown", "NoSchedule"),))

    assert only(scene).kind is ActionKind.POWER_OFF_VM


def test_the_same_observation_gives_the_same_plan() -> None:
    assert plan(dead()).document() == plan(dead()).document()


def test_a_disabled_policy_does_nothing() -> None:
    scene = with_policy(dead(), enabled=False)

    assert plan(scene).actions == ()
    assert plan(scene).left_alone == (
        LeftAlone(subject="prod", reason="Disabled", message="diskRelease.enabled is false"),
    )


def test_a_vm_in_failed_state_that_is_off_is_still_released() -> None:
    assert only(tainted().machine("a", provisioning="Failed")).kind is ActionKind.DETACH_DISK


def test_nothing_is_written_while_a_disk_is_only_known_from_a_list() -> None:
    scene = zombie()
    listed = scene.disks.pop(key(disk("d1"))).value
    scene.census[key(disk("d1"))] = listed

    assert plan(scene).actions == ()
    assert "DisksAreTheSame" in left(scene) or "DiskReadsAreFresh" in left(scene)


@pytest.mark.parametrize("ours", [True, False])
def test_a_listed_disk_is_read_when_the_turn_of_the_controllers_is_over_release_or_not(ours: bool) -> None:
    def wanted(age: float) -> tuple[str, ...]:
        scene = stopped().taint("a", ours=ours, age=age)
        scene.census[key(disk("d1"))] = scene.disks.pop(key(disk("d1"))).value
        return needs(scene.build(), scene.policy, NOW).disks

    assert wanted(100) == (disk("d1"),)
    assert wanted(20) == ()


def test_a_list_is_enough_to_fence() -> None:
    scene = dead()
    scene.census[key(disk("d1"))] = scene.disks.pop(key(disk("d1"))).value

    assert only(scene).kind is ActionKind.POWER_OFF_VM


INSTANCE = vm("x").replace("virtualMachines/x", "virtualMachineScaleSets/pool/virtualMachines/7")


def as_instance(scene: Scene) -> Scene:
    """Node a is an instance of a uniform scale set."""
    scene.node("a", provider_id=f"azure://{INSTANCE}")
    machine = scene.machines.pop(key(vm("a"))).value
    scene.machines[key(INSTANCE)] = Fact(Known.KNOWN, NOW, msgspec.structs.replace(machine, id=INSTANCE))
    return scene.disk("d1", managed_by=INSTANCE)


def test_an_instance_of_a_scale_set_is_a_vm_like_any_other() -> None:
    action = only(as_instance(dead()))

    assert action.target == INSTANCE
    assert "pool/7" in action.message


def test_an_instance_in_failed_state_is_reported_even_where_repair_is_allowed() -> None:
    scene = with_policy(as_instance(zombie().machine("a", provisioning="Failed")), repair=True)

    assert plan(scene).actions == ()
    assert "have the instance replaced" in left(scene)["VmFailed"]


def test_a_stale_read_carries_no_write() -> None:
    assert plan(dead().machine("a", read=16)).actions == ()
    assert plan(dead().machine("a", read=14)).actions != ()


def test_the_default_policy_asks_before_it_fences() -> None:
    scene = dead()
    scene.policy = DiskReleasePolicy()

    assert plan(scene).actions == ()


def test_an_entry_without_a_disk_is_no_pair() -> None:
    assert plan(Scene().machine("b", data_disks=(DataDisk(disk="", lun=0),))).actions == ()

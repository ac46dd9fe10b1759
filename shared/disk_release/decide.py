"""What to do about disks held by dead or wrong VMs: pure, (Observation, DiskReleasePolicy, now) -> Plan.

Level-triggered: every pair of a disk and a VM gets a verdict (`shared.disk_release.verdict`), the verdicts of
one VM become at most one action, with all of its disks in one call, and an action is only in the plan if all
rules of its kind hold (`shared.disk_release.rules`). What is waited for, reported or refused by a rule stands
in `leftAlone`. Releases in flight are followed from the state in the observation. Called by `reconcile`, the
operations and `keeper plan`.

Parameters of every action: `verdict`, `situation`, `vm` (resource id), `vmId`, `node`, `nodeUid`, `pool`,
`zone`, `epoch`, `disks` [{`id`, `uniqueId`, `lun`}]; and

    PowerOffVM              `method` (powerOff, without shutdown, or deallocate), `deadlineSeconds`
    TaintNode, UntaintNode  `nodeVersion`; `ground` gone where the VM is
    DetachDisk, ForceDetachDisk   `ground`, `deadlineSeconds`
    DeleteVolumeAttachment  `ground`, `attachment`, `attachmentUid`, `attachmentVersion`
    RemoveFinalizer         the same without ground, `finalizer`
    ReapplyVM               `deadlineSeconds`
    BreakLease              `blob`, `etag`; a snapshot of the blob is taken first
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec

from shared.disk_release import findings, rules
from shared.disk_release.cases import Case, cases, machine_name
from shared.disk_release.memory import remember
from shared.disk_release.observation import AUTOMATION, Observation
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.state import Fence
from shared.disk_release.verdict import Kind, Verdict, judge
from shared.model.disk import ATTACHER_FINALIZER, Node, key
from shared.model.plan import Action, ActionKind, LeftAlone, Plan, utc

REAPPLY_SECONDS = 600

TOGETHER = frozenset(
    {
        ActionKind.POWER_OFF_VM,
        ActionKind.TAINT_NODE,
        ActionKind.DETACH_DISK,
        ActionKind.FORCE_DETACH_DISK,
        ActionKind.REAPPLY_VM,
    }
)
"""Steps on a VM as a whole, or on several of its disks in one call; the others are one for each pair."""


def decide(observation: Observation, policy: DiskReleasePolicy, now: datetime) -> Plan:
    """The plan; empty of actions when nothing is stuck, or when it is not ours to free it."""
    now = utc(now)
    if not policy.enabled:
        return _plan(observation, now, (), (_alone(observation, "Disabled", "diskRelease.enabled is false"),))
    observation = replace(observation, state=remember(observation, now))
    untaints = tuple(_untaints(observation, policy, now))
    steps, left = _steps(verdicts(observation, policy, now), observation, policy, now)
    found = tuple(findings.findings(observation, policy, now))
    return _plan(observation, now, (*untaints, *steps), (*left, *found))


def verdicts(observation: Observation, policy: DiskReleasePolicy, now: datetime) -> tuple[Verdict, ...]:
    """The verdict on every pair that is not as it should be, ordered by pair."""
    found = (judge(case, policy, now) for case in cases(observation))
    return tuple(verdict for verdict in found if verdict is not None)


def _plan(
    observation: Observation, now: datetime, actions: tuple[Action, ...], left: tuple[LeftAlone, ...]
) -> Plan:
    return Plan(automation=AUTOMATION, cluster=observation.cluster, now=now, actions=actions, left_alone=left)


def _alone(observation: Observation, reason: str, message: str) -> LeftAlone:
    return LeftAlone(subject=observation.cluster, reason=reason, message=message)


# From verdicts to actions


def _steps(
    found: tuple[Verdict, ...], observation: Observation, policy: DiskReleasePolicy, now: datetime
) -> tuple[tuple[Action, ...], tuple[LeftAlone, ...]]:
    """Actions whose rules all hold, and what is left alone: one line for each pair without an action."""
    actions: list[Action] = []
    left = [_left(verdict) for verdict in found if verdict.step is None]
    busy: set[str] = set()
    state = observation.state
    for whole in _groups(found):
        first = whole[0]
        seen = replace(observation, state=state)
        if first.step in TOGETHER and key(first.vm) in busy:
            left += [_after(verdict) for verdict in whole]
            continue
        builder = _Builder(seen, policy, now, epoch=_epoch(state.epoch, actions))
        group, refused = _acceptable(whole, builder)
        left += refused
        if not group:
            continue
        action = builder.build(group)
        busy.add(key(first.vm))
        actions.append(_with_evidence(action, seen, policy, now))
        if action.kind is ActionKind.POWER_OFF_VM:
            # The next fence of this plan counts this one.
            state = msgspec.structs.replace(state, fences=(*state.fences, _fence(action, now)))
    return tuple(actions), tuple(sorted(left, key=lambda item: (item.subject, item.reason)))


def _acceptable(whole: list[Verdict], builder: _Builder) -> tuple[list[Verdict], list[LeftAlone]]:
    """The verdicts that may become one action, and a line for each that may not: one disk never keeps the
    others.
    """
    refused = builder.broken(whole)
    if not refused:
        return whole, []
    alone = [(verdict, builder.broken([verdict])) for verdict in whole]
    group = [verdict for verdict, why in alone if not why]
    if len(group) == len(whole) or (group and builder.broken(group)):
        return [], [_refused(verdict, refused) for verdict in whole]
    return group, [_refused(verdict, why) for verdict, why in alone if why]


def _epoch(highest: int, actions: list[Action]) -> int:
    begun = [int(action.parameters["epoch"]) for action in actions]
    return max([highest, *begun]) + 1


def _fence(action: Action, now: datetime) -> Fence:
    wanted = action.parameters
    return Fence(vm=key(wanted["vm"]), node=wanted["node"], at=now, pool=wanted["pool"], zone=wanted["zone"])


ORDER = (
    ActionKind.TAINT_NODE,
    ActionKind.DETACH_DISK,
    ActionKind.FORCE_DETACH_DISK,
    ActionKind.DELETE_VOLUME_ATTACHMENT,
    ActionKind.REMOVE_FINALIZER,
    ActionKind.BREAK_LEASE,
    ActionKind.REAPPLY_VM,
    ActionKind.POWER_OFF_VM,
)
"""What finishes a release goes before what begins one."""


def _groups(found: Iterable[Verdict]) -> list[list[Verdict]]:
    """Verdicts that become one action."""
    groups: dict[tuple[int, str, str], list[Verdict]] = {}
    for verdict in found:
        if verdict.step is None:
            continue
        subject = key(verdict.vm) if verdict.step in TOGETHER else verdict.attachment or key(verdict.disk)
        groups.setdefault((ORDER.index(verdict.step), subject, verdict.ground), []).append(verdict)
    return [groups[name] for name in sorted(groups)]


def _left(verdict: Verdict) -> LeftAlone:
    return LeftAlone(subject=verdict.subject, reason=verdict.reason, message=verdict.text)


def _after(verdict: Verdict) -> LeftAlone:
    message = f"{verdict.kind} ({verdict.situation}): another write on the same VM goes first"
    return LeftAlone(subject=verdict.subject, reason="AfterAnother", message=message)


def _refused(verdict: Verdict, refused: tuple[rules.Finding, ...]) -> LeftAlone:
    first = refused[0]
    kind = Kind.WAIT if first.holds is None else Kind.REPORT
    message = (
        f"{kind} ({verdict.situation}): {verdict.message}; "
        f"not {verdict.step}, for it must hold that {rules.RULES[first.rule].text}: {first.detail}"
    )
    return LeftAlone(subject=verdict.subject, reason=first.rule, message=message)


def _with_evidence(
    action: Action, observation: Observation, policy: DiskReleasePolicy, now: datetime
) -> Action:
    found = rules.check(action, observation, policy, now)
    return msgspec.structs.replace(
        action,
        evidence=(*action.evidence, *(f"{finding.rule}: {finding.detail}" for finding in found)),
        preconditions=tuple(f"{rule.name}: {rule.text}" for rule in rules.required(action)),
    )


@dataclass(frozen=True)
class _Builder:
    """Builds one action from the verdicts it follows from."""

    observation: Observation
    policy: DiskReleasePolicy
    now: datetime
    epoch: int

    def build(self, group: list[Verdict]) -> Action:
        first = group[0]
        assert first.step is not None
        parameters = self._common(first, group) | self._particular(first)
        return Action(
            kind=first.step,
            target=self._target(first),
            reason=first.reason,
            message=self._message(first, group),
            parameters=parameters,
            evidence=tuple(dict.fromkeys(fact for verdict in group for fact in verdict.evidence)),
        )

    def broken(self, group: list[Verdict]) -> tuple[rules.Finding, ...]:
        """The rules that the action of these verdicts would break."""
        return rules.broken(self.build(group), self.observation, self.policy, self.now)

    def _common(self, first: Verdict, group: list[Verdict]) -> dict[str, Any]:
        machine, node = self.observation.machine(first.vm).value, self.observation.nodes.get(first.node)
        release = self.observation.state.release_of(first.vm)
        return {
            "verdict": first.kind.value,
            "situation": first.situation,
            "vm": first.vm,
            "vmId": release.vm_id if release else machine.vm_id if machine else "",
            "node": first.node,
            "nodeUid": node.uid if node else "",
            "pool": node.pool if node else "",
            "zone": node.zone if node else "",
            "epoch": release.epoch if release else self.epoch,
            "disks": [self._disk(verdict) for verdict in group],
        }

    def _disk(self, verdict: Verdict) -> dict[str, Any]:
        case = Case(
            disk_id=verdict.disk,
            vm=verdict.vm,
            node_name=verdict.node,
            attachment=None,
            observation=self.observation,
        )
        machine = case.machine.value
        entry = machine.entry(verdict.disk) if machine else None
        unique_id = case.disk.value.unique_id if case.disk.value else ""
        return {"id": verdict.disk, "uniqueId": unique_id, "lun": entry.lun if entry else None}

    def _particular(self, first: Verdict) -> dict[str, Any]:
        limits = self.policy.limits
        detach = {"ground": first.ground, "deadlineSeconds": round(limits.detach_timeout.total_seconds())}
        match first.step:
            case ActionKind.POWER_OFF_VM:
                seconds = round(limits.fence_timeout.total_seconds())
                return {"method": self.policy.fence_with, "deadlineSeconds": seconds}
            case ActionKind.TAINT_NODE:
                node = self.observation.nodes.get(first.node)
                ground = {"ground": first.ground} if first.ground else {}
                return {"nodeVersion": node.version if node else "", **ground}
            case ActionKind.DETACH_DISK | ActionKind.FORCE_DETACH_DISK:
                return detach
            case ActionKind.REAPPLY_VM:
                return {"deadlineSeconds": REAPPLY_SECONDS}
            case ActionKind.BREAK_LEASE:
                blob = self.observation.blob(first.disk).value
                return {"blob": first.disk, "etag": blob.etag if blob else ""}
            case _:
                return self._attachment(first)

    def _attachment(self, first: Verdict) -> dict[str, Any]:
        found = next((a for a in self.observation.attachments if a.name == first.attachment), None)
        return {
            "ground": first.ground,
            "attachment": first.attachment,
            "attachmentUid": found.uid if found else "",
            "attachmentVersion": found.version if found else "",
            "finalizer": ATTACHER_FINALIZER,
        }

    def _target(self, first: Verdict) -> str:
        if first.step is ActionKind.TAINT_NODE:
            return first.node
        if first.step in TOGETHER:
            return first.vm
        return first.attachment or first.disk

    def _message(self, first: Verdict, group: list[Verdict]) -> str:
        disks = ", ".join(verdict.disk.rpartition("/")[2] for verdict in group)
        vm = machine_name(first.vm)
        doing = {
            ActionKind.POWER_OFF_VM: f"power off VM {vm} without shutdown, to free {disks}",
            ActionKind.TAINT_NODE: f"take node {first.node} out of service, to free {disks}",
            ActionKind.DETACH_DISK: f"detach {disks} from VM {vm}",
            ActionKind.FORCE_DETACH_DISK: f"force {disks} off VM {vm}",
            ActionKind.REAPPLY_VM: f"reapply VM {vm}",
            ActionKind.DELETE_VOLUME_ATTACHMENT: f"delete VolumeAttachment {first.attachment} of {disks}",
            ActionKind.REMOVE_FINALIZER: f"let VolumeAttachment {first.attachment} of {disks} go",
            ActionKind.BREAK_LEASE: f"snapshot {disks} and break its lease",
        }
        assert first.step is not None
        return f"{doing[first.step]}: {first.message}"


# Taints


def _untaints(observation: Observation, policy: DiskReleasePolicy, now: datetime) -> Iterator[Action]:
    """Our taints that have no purpose left."""
    for node in sorted(observation.nodes.values(), key=lambda node: node.name):
        why = rules.why_untaint(node, observation, policy, now) if node.our_taint else ""
        if not why:
            continue
        action = _untaint(node, why, observation)
        if not rules.broken(action, observation, policy, now):
            yield _with_evidence(action, observation, policy, now)


def _untaint(node: Node, why: str, observation: Observation) -> Action:
    release = observation.state.release_of(node.machine)
    return Action(
        kind=ActionKind.UNTAINT_NODE,
        target=node.name,
        reason="TaintDone",
        message=f"give node {node.name} back to service: {why}",
        parameters={
            "verdict": Kind.NUDGE.value,
            "situation": "S2",
            "vm": node.machine,
            "vmId": release.vm_id if release else "",
            "node": node.name,
            "nodeUid": node.uid,
            "nodeVersion": node.version,
            "pool": node.pool,
            "zone": node.zone,
            "epoch": release.epoch if release else 0,
            "disks": [],
        },
        evidence=(f"node {node.name}: Ready={node.ready}", why),
    )

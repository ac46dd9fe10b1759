"""The certificate of one action: the facts it rests on, their versions and times, and the rules; pure.

`prove` makes it from the fresh observation `act` has just checked; `act` stores it before it writes, and
`keeper explain` shows it (`lines`). `verify` is the independent checker: it knows nothing of `decide` or of
verdicts. From the stored facts alone it evaluates every rule again, derives the verdict from a table of its
own, and compares both with what the certificate claims. Certificates are JSON; nothing in them is secret.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec

from shared.disk_release import rules
from shared.disk_release.observation import Fact, Known, Observation
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.rules import Ground
from shared.disk_release.state import ReleaseState
from shared.errors import MessageError
from shared.model.disk import Attachment, Blob, Claim, CsiNode, Disk, Machine, Node, Pod, Volume, key
from shared.model.plan import Action, ActionKind, canonical_json, utc


class Read(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One answer of Azure: what was asked, when, and what came."""

    id: str
    state: Known
    read_at: datetime | None = None
    why: str = ""
    machine: Machine | None = None
    disk: Disk | None = None
    blob: Blob | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """All that the rules look at. Other nodes are there with their readiness, pool and zone: limits count
    them.
    """

    read_at: datetime
    nodes: tuple[Node, ...] = ()
    pods: tuple[Pod, ...] = ()
    volumes: tuple[Volume, ...] = ()
    claims: tuple[Claim, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    csi_nodes: tuple[CsiNode, ...] = ()
    azure: tuple[Read, ...] = ()
    listed: tuple[Disk, ...] = ()
    state: ReleaseState = ReleaseState()


class RuleFinding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What one rule found when the action was carried out."""

    rule: str
    text: str
    invariants: tuple[str, ...]
    holds: bool | None
    detail: str


class Certificate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The whole document; `digest` is SHA-256 over the canonical JSON of the rest."""

    cluster: str
    at: datetime
    action: Action
    verdict: str
    policy: DiskReleasePolicy
    facts: Facts
    findings: tuple[RuleFinding, ...]
    kind: Literal["certificate/v1"] = "certificate/v1"
    digest: str = ""


@dataclass(frozen=True)
class Check:
    """What the checker found: the verdict it came to itself, and every contradiction, one line each."""

    verdict: str
    contradictions: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        return not self.contradictions


def prove(action: Action, observation: Observation, policy: DiskReleasePolicy, now: datetime) -> bytes:
    """The certificate, canonical JSON. `observation` is the one whose rules were just asked."""
    found = rules.check(action, observation, policy, now)
    certificate = Certificate(
        cluster=observation.cluster,
        at=now,
        action=action,
        verdict=str(action.parameters.get("verdict", "")),
        policy=policy,
        facts=_facts(action, observation),
        findings=tuple(
            RuleFinding(
                rule=finding.rule,
                text=rules.RULES[finding.rule].text,
                invariants=rules.RULES[finding.rule].invariants,
                holds=finding.holds,
                detail=finding.detail,
            )
            for finding in found
        ),
    )
    document: dict[str, Any] = msgspec.to_builtins(certificate)
    return canonical_json(document | {"digest": _digest(document)})


def read_certificate(data: bytes) -> Certificate:
    """From JSON; MessageError when it is not a certificate, or was changed since it was made."""
    try:
        certificate = msgspec.json.decode(data, type=Certificate)
        document = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError) as error:
        raise MessageError(f"not a certificate of a disk release: {error}") from error
    if certificate.digest != _digest(document):
        raise MessageError("the certificate's digest does not fit its contents; it was changed")
    return certificate


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(document | {"digest": ""})).hexdigest()


# Facts


def _facts(action: Action, observation: Observation) -> Facts:
    wanted = action.parameters
    disks = {key(disk["id"]) for disk in wanted.get("disks", ())}
    volumes = [v for v in observation.volumes.values() if key(v.handle) in disks]
    names = {volume.name for volume in volumes}
    claims = [claim for claim in observation.claims.values() if claim.volume in names]
    users = {(claim.namespace, claim.name) for claim in claims}
    node = str(wanted.get("node", ""))
    return Facts(
        read_at=observation.now,
        nodes=tuple(_node(found, node) for found in observation.nodes.values()),
        pods=tuple(
            pod
            for pod in observation.pods
            if pod.node == node or any((pod.namespace, name) in users for name in pod.claims)
        ),
        volumes=tuple(volumes),
        claims=tuple(claims),
        attachments=tuple(a for a in observation.attachments if a.node == node or a.volume in names),
        csi_nodes=tuple(found for name, found in observation.csi_nodes.items() if name == node),
        azure=tuple(_reads(action, observation, disks)),
        listed=tuple(disk for name, disk in observation.census.items() if name in disks),
        state=observation.state,
    )


def _node(node: Node, name: str) -> Node:
    """Nodes that are only counted are stored without what nobody asks of them."""
    if node.name == name:
        return node
    labels = {label: value for label, value in node.labels.items() if label.endswith(("agentpool", "/zone"))}
    return Node(name=node.name, ready=node.ready, labels=labels, taints=node.taints)


def _reads(action: Action, observation: Observation, disks: set[str]) -> list[Read]:
    vm, blob = key(str(action.parameters.get("vm", ""))), key(str(action.parameters.get("blob", "")))
    # A blob must be in no machine's list, so all machines that were read matter for it.
    machines = {name: f for name, f in observation.machines.items() if name == vm or blob}
    found = [_read(name, f, machine=f.value) for name, f in machines.items()]
    found += [_read(name, f, disk=f.value) for name, f in observation.disks.items() if name in disks]
    found += [_read(name, f, blob=f.value) for name, f in observation.blobs.items() if name == blob]
    return found


def _read(name: str, fact: Fact[Any], **value: Any) -> Read:
    return Read(id=name, state=fact.state, read_at=fact.read_at, why=fact.why, **value)


def observation_of(certificate: Certificate) -> Observation:
    """What the action rested on; all other facts are unknown there."""
    facts = certificate.facts
    machines = {r.id: _fact(r, r.machine) for r in facts.azure if "/virtualmachines" in r.id}
    blobs = {r.id: _fact(r, r.blob) for r in facts.azure if r.id.startswith("https://")}
    rest = {r.id: _fact(r, r.disk) for r in facts.azure if r.id not in machines and r.id not in blobs}
    return Observation(
        cluster=certificate.cluster,
        now=facts.read_at,
        nodes={node.name: node for node in facts.nodes},
        pods=facts.pods,
        volumes={volume.name: volume for volume in facts.volumes},
        claims={(claim.namespace, claim.name): claim for claim in facts.claims},
        attachments=facts.attachments,
        csi_nodes={csi.name: csi for csi in facts.csi_nodes},
        machines=machines,
        disks=rest,
        blobs=blobs,
        census={disk.key: disk for disk in facts.listed},
        state=facts.state,
    )


def _fact(read: Read, value: Any) -> Fact[Any]:
    return Fact(read.state, read.read_at, value, read.why)


# The checker


def verify(certificate: Certificate) -> Check:
    """Evaluate it again, from its facts alone."""
    observation, action = observation_of(certificate), certificate.action
    scene = rules.Scene(action, observation, certificate.policy, certificate.at)
    claimed = {finding.rule: finding.holds for finding in certificate.findings}
    wrong = []
    for rule in rules.required(action):
        holds = rule.ask(scene)[0]
        if rule.name not in claimed:
            wrong.append(f"{rule.name} is required and was not asked")
        elif holds != claimed[rule.name]:
            wrong.append(f"{rule.name} was found {claimed[rule.name]} and is {holds}")
        if holds is not True:
            wrong.append(f"{rule.name} does not hold: {rule.text}")
    verdict = _verdict(action, observation)
    if verdict != certificate.verdict:
        wrong.append(f"the verdict was {certificate.verdict or 'none'} and is {verdict}")
    return Check(verdict, tuple(wrong))


def _verdict(action: Action, observation: Observation) -> str:
    """From first principles: what is the VM, and which side is written."""
    vm = observation.machine(str(action.parameters.get("vm", "")))
    if action.kind is ActionKind.POWER_OFF_VM:
        return "FenceAndRelease" if vm.value and not vm.value.is_off else "none"
    if action.kind is ActionKind.REAPPLY_VM:
        return "RepairVM" if vm.value and vm.value.provisioning == "Failed" else "none"
    if action.kind in (ActionKind.UNTAINT_NODE, ActionKind.REMOVE_FINALIZER):
        return "Nudge"
    is_off = vm.value is not None and vm.value.is_off
    if action.kind is ActionKind.TAINT_NODE:
        return "Release" if is_off or vm.is_absent else "none"
    if action.kind is ActionKind.DELETE_VOLUME_ATTACHMENT:
        return "Release" if is_off and action.parameters.get("ground") == Ground.LOST else "Nudge"
    is_idle = action.parameters.get("ground") == Ground.IDLE
    return "Release" if is_off or is_idle or action.kind is ActionKind.BREAK_LEASE else "none"


def lines(certificate: Certificate) -> list[str]:
    """For people: what was done, what was known and since when, and which rules held."""
    action, facts = certificate.action, certificate.facts
    found = [
        f"{action.kind} {action.target}",
        f"  {action.message}",
        f"  verdict {certificate.verdict} ({action.parameters.get('situation', '-')}), "
        f"at {utc(certificate.at):%Y-%m-%d %H:%M:%S} UTC, Kubernetes read {utc(facts.read_at):%H:%M:%S}",
    ]
    for read in facts.azure:
        at = f"{utc(read.read_at):%H:%M:%S}" if read.read_at else "not on its own"
        found.append(f"  read {at}  {read.id.rpartition('/')[2]}: {read.state}{_words(read)}")
    for finding in certificate.findings:
        mark = {True: "holds", False: "BROKEN", None: "UNKNOWN"}[finding.holds]
        found.append(
            f"  {mark:7} {finding.rule} [{', '.join(finding.invariants)}]: {finding.text}; {finding.detail}"
        )
    check = verify(certificate)
    found.append("  checked again: sound" if check.is_sound else "  checked again: NOT SOUND")
    return found + [f"    {line}" for line in check.contradictions]


def _words(read: Read) -> str:
    if read.machine is not None:
        return f", {read.machine.power}, {read.machine.provisioning}, vmId {read.machine.vm_id}"
    if read.disk is not None:
        return f", {read.disk.state}, managedBy {', '.join(read.disk.owners) or 'nothing'}"
    return f", {read.why}" if read.why else ""

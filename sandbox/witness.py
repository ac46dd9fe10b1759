"""Who sees what the app does to the local world, and the world as it truly was just then.

The invariants of disk release (`shared.disk_release.invariants`) are predicates over a trace: every write,
the evidence it rested on, and the truth. The app's clients go through a witness, which remembers each proof
when it is stored, and when the write that follows it leaves, takes the truth before and after from the local
Azure and Kubernetes themselves, past all faults, limits and lag. Used by scenarios, random worlds, end-to-end
tests and the demo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from typing import Any

import msgspec

from sandbox.arm import LocalArm
from sandbox.arm.compute.machines import instance_view
from sandbox.kube import LocalKubernetes, kinds
from shared.bootstrap import Clients
from shared.disk_release.decide import decide, verdicts
from shared.disk_release.invariants import ARM_WRITES, Moment, Trace, violations
from shared.disk_release.observation import AUTOMATION, Observation, read
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.proof import observation_of, read_certificate
from shared.disk_release.state import ReleaseState, read_state
from shared.errors import UnavailableError
from shared.model.disk import key
from shared.model.snapshot import AzureReading, Snapshot
from shared.settings import Cluster

Document = dict[str, Any]
Lists = Callable[[str], list[Document]]
"""All objects of a kind, by its plural."""

MACHINES = ("Microsoft.Compute/virtualMachines", "Microsoft.Compute/virtualMachineScaleSets/virtualMachines")
PLURALS = {
    "nodes": "",
    "pods": "",
    "persistentvolumes": "",
    "persistentvolumeclaims": "",
    "leases": "coordination.k8s.io",
    "volumeattachments": "storage.k8s.io",
    "csinodes": "storage.k8s.io",
    "storageclasses": "storage.k8s.io",
}
"""What a look reads, with the group of each."""
WRITES = frozenset({"post", "patch", "delete"})


def lists_of(kubernetes: LocalKubernetes) -> Lists:
    """Out of the stand-in's own store."""
    return lambda plural: kubernetes.objects(kinds.named(plural, PLURALS[plural]))


class Witness:
    """Of one app. `state` answers the automation's state document as it is stored."""

    def __init__(
        self, arm: LocalArm, lists: Lists, now: Callable[[], datetime], state: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._arm, self._lists, self._now, self._state = arm, lists, now, state
        self._proof: bytes | None = None
        self._run = 0
        self._policy = DiskReleasePolicy()
        self.moments: list[Moment] = []

    # Between the app and the world

    def process(self) -> None:
        """Another process of the app begins; what the last one had in hand is lost."""
        self._run, self._proof = self._run + 1, None

    def store(self, inner: Any) -> Any:
        """A container, whose new proofs are remembered."""
        return _Through(inner, {"create": self._create})

    def client(self, inner: Any) -> Any:
        """Azure's or Kubernetes' client, whose writes are seen."""
        return _Through(inner, dict.fromkeys(WRITES, self._write))

    def _create(self, call: Callable[..., Any], name: str, data: bytes, *arguments: Any, **more: Any) -> Any:
        self._proof = data if name.startswith("evidence/") else self._proof
        return call(name, data, *arguments, **more)

    def _write(self, call: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        proof, self._proof = self._proof, None
        if proof is None:
            return call(*arguments, **more)  # an Event: it tells, and changes nothing
        moment = self._moment(proof)
        self._policy = moment.policy
        try:
            answer = call(*arguments, **more)
        except UnavailableError:  # the answer was lost, or the request
            after = self._after(moment)
            if _shown(after) != _shown(moment.truth):
                self.moments.append(replace(moment, after=after))
            raise
        self.moments.append(replace(moment, after=self._after(moment)))
        return answer

    def _moment(self, proof: bytes) -> Moment:
        certificate = read_certificate(proof)
        seen, action = observation_of(certificate), certificate.action
        return Moment(
            at=self._now(),
            action=action,
            seen=seen,
            truth=self.truth(seen.state, certificate.policy),
            policy=certificate.policy,
            certificate=proof,
            run=self._run,
            announced=action.kind not in ARM_WRITES or self._is_announced(action.parameters["vm"]),
        )

    def _after(self, moment: Moment) -> Observation:
        return self.truth(moment.seen.state, moment.policy)

    def _is_announced(self, vm: str) -> bool:
        release = read_state(self._state()).release_of(vm)
        return release is not None and release.open_write is not None

    # The truth

    def truth(self, state: ReleaseState, policy: DiskReleasePolicy) -> Observation:
        """Everything as it is, read at this moment; with that state document."""
        now = self._now()
        found = {plural: {"items": self._lists(plural)} for plural in PLURALS}
        snapshot = Snapshot(
            automation=AUTOMATION,
            now=now,
            cluster={"name": "truth", "diskRelease": msgspec.to_builtins(policy)},
            kubernetes=found,
            azure=tuple(self._azure(found["nodes"]["items"], state, now)),
            state=state.document(),
        )
        return read(snapshot)

    def _azure(self, nodes: list[Document], state: ReleaseState, now: datetime) -> Iterator[AzureReading]:
        core = self._arm.core
        with core.lock:
            core.settle()
            machines = [machine for kind in MACHINES for machine in core.state.of_type(kind)]
            disks = list(core.state.of_type("Microsoft.Compute/disks"))
            for resource in (*machines, *disks):
                body = core.do("GET", resource.id).body
                yield AzureReading(id=resource.id, status=200, read_at=now, body=body)
            for machine in machines:
                view = instance_view(machine)
                yield AzureReading(id=f"{machine.id}/instanceView", status=200, read_at=now, body=view)
        known = {machine.id.lower() for machine in machines}
        named = {str(node["spec"].get("providerID") or "").removeprefix("azure://") for node in nodes}
        named |= {str(disk.body.get("managedBy") or "") for disk in disks}
        named |= {release.vm for release in state.releases.values()}
        for vm in sorted(named - {""}):
            if vm.lower() not in known:
                yield AzureReading(id=vm, status=404, read_at=now, code="ResourceNotFound")

    # What is to be said about it

    def trace(self, corruptions: Iterable[str] = ()) -> Trace:
        """All there was, what would be decided now, and the world as it is. Of a release that is under way,
        and that people are not told of, it is expected that it ends in time.
        """
        policy = self._policy
        end = self.truth(read_state(self._state()), policy)
        plan = decide(end, policy, end.now)
        reports = {left.subject for left in plan.left_alone if left.message.startswith("Report")}
        told = {(key(v.disk), key(v.vm)) for v in verdicts(end, policy, end.now) if v.subject in reports}
        return Trace(
            moments=tuple(self.moments),
            corruptions=tuple(corruptions),
            looks=((end, plan),),
            end=end,
            begun={
                f"{disk}@{vm}": release.begun_at
                for vm, release in end.state.releases.items()
                for disk in release.disks
                if (disk, vm) not in told
            },
        )

    def violations(self, corruptions: Iterable[str] = ()) -> list[str]:
        """Of the invariants, one line each; empty when all is well."""
        return violations(self.trace(corruptions))


def _shown(truth: Observation) -> tuple[object, ...]:
    """What a write may change."""
    return truth.machines, truth.nodes, truth.attachments


class WitnessedClients(Clients):
    """The app's own clients, with a witness between them and the world."""

    witness: Witness

    def blobs(self, container: str) -> Any:
        return self.witness.store(super().blobs(container))

    def kube(self, cluster: Cluster) -> Any:
        return self.witness.client(super().kube(cluster))

    @cached_property
    def arm(self) -> Any:
        return self.witness.client(super().arm)


class _Through:
    """A client, some of whose methods are called through somebody else."""

    def __init__(self, inner: Any, ways: Mapping[str, Callable[..., Any]]) -> None:
        self._inner, self._ways = inner, ways

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return partial(self._ways[name], found) if name in self._ways else found

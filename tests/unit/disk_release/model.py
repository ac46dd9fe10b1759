"""A bounded world with an adversary, explored exhaustively; what the app does there is done by the real code.

Two VM slots (each may be gone, and recreated under its name with another identity), a node on each, two
disks, two pods that want them. Beside what Azure and Kubernetes show stands what is hidden: which disks are
mounted, and whether kubelets live. The adversary moves all of it between any two steps of the function, lets
kubelets die and return, stops, starts, deletes and recreates VMs, force-deletes pods, fails, loses, repeats
and delays requests, and lets the function die between any two of its steps. `remember`, `decide`,
`rules.broken` and the changes of the state document are the product's own; so are the invariants.

Time does not pass: each clock (a silence, a taint, a deadline) is young or old, and grows old whenever the
adversary likes. That covers every timing, and keeps the world finite. What is assumed:

* A1: between the last look and Azure's taking a request (the second time, if it gets it twice) no VM finishes
  booting, no disk gets mounted, and no driver attaches one of the request's disks or finds it attached.
* A2: nobody force-deletes a pod on a Ready node that still has the out-of-service taint. From a node's Ready
  on the taint is gone sooner than Kubernetes can give the node up again (40 s): the cloud provider takes its
  own off at once, and the function looks at each release every half a minute.
* A3: a kubelet mounts only after it has posted Ready; the attach/detach controller does not use its timer
  of six minutes (`--disable-force-detach-on-timeout`), and the cloud provider taints by what is true. Where
  these do not hold, Kubernetes corrupts disks by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import NamedTuple

import msgspec
from disk_builders import NOW, ago, disk, vm

from shared.disk_release import rules
from shared.disk_release import state as states
from shared.disk_release.decide import decide
from shared.disk_release.invariants import Moment, Trace, violations
from shared.disk_release.memory import remember
from shared.disk_release.observation import Fact, Known, Observation
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.settle import Standing, judge_all
from shared.disk_release.state import (
    ArmWrite,
    Done,
    Release,
    ReleaseState,
    Sighting,
    WriteState,
)
from shared.model.disk import (
    ATTACHER_FINALIZER,
    DISK_DRIVER,
    OUT_OF_SERVICE,
    OWNER_ANNOTATION,
    Attachment,
    Claim,
    CsiNode,
    DataDisk,
    Disk,
    Machine,
    Node,
    Pod,
    Readiness,
    Taint,
    Volume,
    key,
)
from shared.model.plan import Action, ActionKind

VMS, DISKS = 2, 2
NAMES = "ab"
POLICY = DiskReleasePolicy(
    fence="allowed", fences_per_window=99, max_fenced_percent=100, freeze_above_percent=100
)
YOUNG, OLD = ago(2), ago(3600)

GONE, FIRST, SECOND, NOBODY = 0, 1, 2, 3  # identities of a VM; NOBODY is that of a release of none
RUNNING, STOPPED, STARTING = 0, 1, 2
NONE, OFF, DETACH, FORCE, DRIVER = (
    0,
    1,
    2,
    3,
    4,
)  # what Azure is doing to a VM; DRIVER is the CSI driver's detach
OURS, PROVIDERS, OURS_OLD, PROVIDERS_OLD = 1, 2, 3, 4  # whose taint
WANTED, ATTACHED, DELETING = 1, 2, 3  # a VolumeAttachment; 0 is none
KINDS = {OFF: ActionKind.POWER_OFF_VM, DETACH: ActionKind.DETACH_DISK, FORCE: ActionKind.FORCE_DETACH_DISK}
CODES = {kind: code for code, kind in KINDS.items()}
STATES = (WriteState.ANNOUNCED, WriteState.RUNNING, WriteState.SUCCEEDED, WriteState.FAILED)


class Slot(NamedTuple):
    """A VM and its node. `viu` and `mounts` are sets of disks, as bits; `mounts` and `alive` are hidden."""

    identity: int = FIRST
    power: int = RUNNING
    op: int = NONE
    op_disks: int = 0
    alive: int = 1
    ready: int = 1
    silent: int = 0
    taint: int = 0
    viu: int = 0
    mounts: int = 0


class Write(NamedTuple):
    kind: int
    disks: int
    state: int  # index into STATES
    old: int


class Flight(NamedTuple):
    """The state document's release of a VM; `identity` 0 is none."""

    identity: int = 0
    tainted: int = 0
    writes: tuple[Write, ...] = ()
    disks: int = 0


class Order(NamedTuple):
    """An action that was decided; `kind` is an index into ORDERS."""

    kind: int
    slot: int
    identity: int
    disks: int
    epoch: int = 1


class Request(NamedTuple):
    """On its way to Azure. `number` is that of the write in its flight."""

    kind: int
    slot: int
    disks: int
    number: int


ORDERS = (
    (ActionKind.POWER_OFF_VM, ""),
    (ActionKind.TAINT_NODE, ""),
    (ActionKind.UNTAINT_NODE, ""),
    (ActionKind.DETACH_DISK, "fenced"),
    (ActionKind.DETACH_DISK, "idle"),
    (ActionKind.FORCE_DETACH_DISK, ""),
    (ActionKind.DELETE_VOLUME_ATTACHMENT, "gone"),
    (ActionKind.DELETE_VOLUME_ATTACHMENT, "lost"),
    (ActionKind.REMOVE_FINALIZER, ""),
    (ActionKind.TAINT_NODE, "gone"),
)


class World(NamedTuple):
    slots: tuple[Slot, ...]
    owners: tuple[int, ...]  # by disk; -1 is none
    young: int  # disks whose owner changed a short time ago
    pods: tuple[int, ...]  # by disk: the node its pod is bound to; -1 is pending
    going: int  # pods that are being deleted
    attachments: tuple[tuple[int, ...], ...]  # by disk, by node
    flights: tuple[Flight, ...]
    absent: tuple[int, ...]  # sightings: 0 never, 1 young, 2 old; others decide only reports
    done: tuple[tuple[int, ...], ...]  # by disk, by slot: freed a short time ago
    orders: tuple[Order, ...]
    requests: tuple[Request, ...]
    faults: int


def start(faults: int) -> World:
    """Disk 0 and its pod on slot 0, disk 1 and its pod on slot 1."""
    slots = tuple(Slot(viu=1 << n, mounts=1 << n) for n in range(VMS))
    return World(
        slots=slots,
        owners=(0, 1),
        young=0,
        pods=(0, 1),
        going=0,
        attachments=((ATTACHED, 0), (0, ATTACHED)),
        flights=(Flight(),) * VMS,
        absent=(0, 0),
        done=((0, 0), (0, 0)),
        orders=(),
        requests=(),
        faults=faults,
    )


def late_starts(faults: int) -> dict[str, World]:
    """Worlds in the middle of a story, for finding quickly what happens late."""
    world = start(faults)
    dead = put(world, 0, alive=0, ready=0, silent=1)
    off = put(world, 0, power=STOPPED, alive=0, ready=0, silent=1, mounts=0)
    fence = Write(OFF, 1, 2, 1)
    fenced = off._replace(flights=(Flight(FIRST, 0, (fence,), 1), Flight()))
    tainted = attachment(pod(put(fenced, 0, taint=OURS_OLD), 0, -1), 0, 0, DELETING)
    tainted = tainted._replace(flights=(Flight(FIRST, 2, (fence,), 1), Flight()))
    kept = attachment(tainted, 0, 0, ATTACHED)
    failed = tainted._replace(flights=(Flight(FIRST, 2, (fence, Write(DETACH, 1, 3, 0)), 1), Flight()))
    zombie = attachment(pod(put(world, 0, viu=0, mounts=0), 0, 1), 0, 0, 0)
    gone = put(own(world, 0, -1), 0, identity=GONE, power=STOPPED, alive=0, ready=0, silent=1, mounts=0)
    return {
        "dead": dead,
        "off": off,
        "fenced": fenced,
        "tainted": tainted,
        "tainted, attachment stays": kept,
        "plain detach failed": failed,
        "zombie": zombie,
        "gone": gone._replace(young=0, absent=(2, 0)),
    }


# As the product sees it


def bits(mask: int) -> tuple[int, ...]:
    return tuple(n for n in range(DISKS) if mask >> n & 1)


def disk_name(number: int) -> str:
    return f"d{number}"


VOLUMES = {
    f"pv-{n}": Volume(name=f"pv-{n}", driver=DISK_DRIVER, handle=disk(disk_name(n))) for n in range(DISKS)
}
CLAIMS = {("data", f"c-{n}"): Claim(namespace="data", name=f"c-{n}", volume=f"pv-{n}") for n in range(DISKS)}


@cache
def node_of(number: int, slot: Slot) -> Node:
    since = ago(30) if not slot.silent else OLD
    added = OLD if slot.taint in (OURS_OLD, PROVIDERS_OLD) else YOUNG
    taints = (Taint(OUT_OF_SERVICE, "NoExecute", "", added),) if slot.taint else ()
    used = frozenset(VOLUMES[f"pv-{d}"].unique_name for d in bits(slot.viu))
    return Node(
        name=NAMES[number],
        uid=f"node-{number}",
        ready=Readiness.TRUE if slot.ready else Readiness.UNKNOWN,
        ready_since=OLD if slot.ready else since,
        renewed_at=YOUNG if slot.ready else since,
        provider_id=f"azure://{vm(NAMES[number])}",
        taints=taints,
        annotations={OWNER_ANNOTATION: "ev"} if slot.taint in (OURS, OURS_OLD) else {},
        volumes_in_use=used,
        volumes_attached=frozenset(),
    )


@cache
def machine_of(number: int, slot: Slot, owned: int) -> Fact[Machine]:
    if slot.identity == GONE:
        return Fact(Known.ABSENT, NOW, why="404 ResourceNotFound")
    power = ("running", "stopped", "starting")[slot.power]
    if slot.op == OFF and slot.power == RUNNING:
        power = "stopping"
    leaving = slot.op_disks if slot.op in (DETACH, FORCE, DRIVER) else 0
    entries = tuple(
        DataDisk(disk=disk(disk_name(d)), lun=d, to_be_detached=bool(leaving >> d & 1)) for d in bits(owned)
    )
    value = Machine(
        id=vm(NAMES[number]),
        vm_id=f"vm-{number}-{slot.identity}",
        power=power,
        provisioning="Updating" if slot.op or slot.power == STARTING else "Succeeded",
        data_disks=entries,
    )
    return Fact(Known.KNOWN, NOW, value)


@cache
def disk_of(number: int, owner: int, young: int) -> Fact[Disk]:
    value = Disk(
        id=disk(disk_name(number)),
        unique_id=f"unique-{number}",
        managed_by=vm(NAMES[owner]) if owner >= 0 else "",
        state="Attached" if owner >= 0 else "Unattached",
        owner_changed_at=YOUNG if young else OLD,
    )
    return Fact(Known.KNOWN, NOW, value)


@cache
def pod_of(number: int, node: int, going: int) -> Pod:
    return Pod(
        namespace="data",
        name=f"db-{number}",
        uid=f"pod-{number}",
        node=NAMES[node] if node >= 0 else "",
        phase="Running" if node >= 0 else "Pending",
        claims=(f"c-{number}",),
        deleting_since=OLD if going else None,
    )


@cache
def attachment_of(number: int, node: int, state: int) -> Attachment:
    return Attachment(
        name=f"va-{number}-{node}",
        uid=f"va-{number}-{node}",
        node=NAMES[node],
        volume=f"pv-{number}",
        attached=state in (ATTACHED, DELETING),
        deleting_since=ago(100) if state == DELETING else None,
        created_at=OLD,
        finalizers=(ATTACHER_FINALIZER,),
    )


CSI = {name: CsiNode(name=name, drivers={DISK_DRIVER: 8}) for name in NAMES}


def owned_by(world: World, slot: int) -> int:
    return sum(1 << d for d, owner in enumerate(world.owners) if owner == slot)


def seen(world: World) -> Observation:
    """The world as a perfect look shows it, without what is hidden."""
    shown = [s._replace(mounts=0, alive=0) for s in world.slots]
    return Observation(
        cluster="model",
        now=NOW,
        cluster_entry=ENTRY,
        nodes={
            NAMES[n]: node_of(n, s._replace(op=0, op_disks=0, power=0, identity=1))
            for n, s in enumerate(shown)
        },
        pods=tuple(pod_of(d, node, world.going >> d & 1) for d, node in enumerate(world.pods)),
        volumes=VOLUMES,
        claims=CLAIMS,
        attachments=tuple(
            attachment_of(d, n, state)
            for d, row in enumerate(world.attachments)
            for n, state in enumerate(row)
            if state
        ),
        csi_nodes=CSI,
        machines={
            key(vm(NAMES[n])): machine_of(
                n, s._replace(ready=0, silent=0, taint=0, viu=0), owned_by(world, n)
            )
            for n, s in enumerate(shown)
        },
        disks={
            key(disk(disk_name(d))): disk_of(d, owner, world.young >> d & 1)
            for d, owner in enumerate(world.owners)
        },
        state=state_of(world),
    )


ENTRY = {"name": "model", "diskRelease": msgspec.to_builtins(POLICY)}

# The state document, small


def state_of(world: World) -> ReleaseState:
    return _state(world.flights, world.absent, world.done)


@cache
def _state(
    flights: tuple[Flight, ...], absent: tuple[int, ...], done: tuple[tuple[int, ...], ...]
) -> ReleaseState:
    sightings: dict[str, Sighting] = {}
    for n in range(VMS):
        _see(sightings, states.absent(vm(NAMES[n])), absent[n])
    return ReleaseState(
        epoch=1,
        releases={key(vm(NAMES[n])): _release(n, f) for n, f in enumerate(flights) if f.identity},
        seen=sightings,
        done=tuple(
            Done(disk=key(disk(disk_name(d))), vm=key(vm(NAMES[n])), epoch=1, at=YOUNG)
            for d in range(DISKS)
            for n in range(VMS)
            if done[d][n]
        ),
    )


def _see(sightings: dict[str, Sighting], name: str, age: int) -> None:
    if age:
        sightings[name] = Sighting(YOUNG if age == 1 else OLD, YOUNG)


def _release(number: int, flight: Flight) -> Release:
    return Release(
        vm=vm(NAMES[number]),
        vm_id="" if flight.identity == NOBODY else f"vm-{number}-{flight.identity}",
        epoch=1,
        begun_at=YOUNG,
        reason="",
        node=NAMES[number],
        node_uid=f"node-{number}",
        disks={key(disk(disk_name(d))): f"unique-{d}" for d in bits(flight.disks)},
        writes=tuple(_write(n, w) for n, w in enumerate(flight.writes)),
        tainted_at=(None, YOUNG, OLD)[flight.tainted],
    )


def _write(number: int, write: Write) -> ArmWrite:
    at = OLD if write.old else YOUNG
    over = STATES[write.state] in (WriteState.SUCCEEDED, WriteState.FAILED)
    return ArmWrite(
        id=f"1.{number + 1}",
        kind=KINDS[write.kind],
        at=at,
        deadline=ago(1) if write.old else NOW + timedelta(seconds=200),
        state=STATES[write.state],
        disks=tuple(disk(disk_name(d)) for d in bits(write.disks)),
        status_url="https://management.azure.com/op" if STATES[write.state] is WriteState.RUNNING else "",
        ended_at=at if over else None,
    )


DISK_BITS = {key(disk(disk_name(d))): 1 << d for d in range(DISKS)}


def with_state(world: World, state: ReleaseState) -> World:
    """The world with a state document, made small again."""
    young = NOW - timedelta(seconds=30)

    def age(name: str) -> int:
        sighting = state.seen.get(name)
        return 0 if sighting is None else 1 if sighting.first > young else 2

    done = {(d.disk, d.vm) for d in state.done}
    return world._replace(
        flights=tuple(_flight(state.release_of(vm(NAMES[n]))) for n in range(VMS)),
        absent=tuple(age(states.absent(vm(NAMES[n]))) for n in range(VMS)),
        done=tuple(
            tuple(int((key(disk(disk_name(d))), key(vm(NAMES[n]))) in done) for n in range(VMS))
            for d in range(DISKS)
        ),
    )


def _flight(release: Release | None) -> Flight:
    if release is None:
        return Flight()
    tainted_at = release.tainted_at
    return Flight(
        identity=int(release.vm_id[-1]) if release.vm_id else NOBODY,
        tainted=0 if tainted_at is None else 1 if NOW - tainted_at < timedelta(seconds=30) else 2,
        writes=tuple(
            Write(
                CODES[w.kind],
                sum(DISK_BITS[key(d)] for d in w.disks),
                STATES.index(w.state),
                int(NOW - w.at > timedelta(seconds=30)),
            )
            for w in release.writes
        ),
        disks=sum(DISK_BITS[d] for d in release.disks),
    )


# Orders and actions


def order_of(action: Action) -> Order:
    wanted = action.parameters
    kind = ORDERS.index(
        (
            action.kind,
            str(wanted.get("ground", ""))
            if "Volume" in action.kind or action.kind in (ActionKind.DETACH_DISK, ActionKind.TAINT_NODE)
            else "",
        )
    )
    slot = NAMES.index(wanted["node"])
    identity = int(wanted["vmId"][-1]) if wanted["vmId"] else 0
    return Order(kind, slot, identity, sum(DISK_BITS[key(d["id"])] for d in wanted["disks"]))


@cache
def action_of(order: Order) -> Action:
    kind, ground = ORDERS[order.kind]
    number = bits(order.disks)[0] if order.disks else 0
    return Action(
        kind=kind,
        target=vm(NAMES[order.slot]),
        reason="",
        message="",
        parameters={
            "verdict": "",
            "situation": "",
            "vm": vm(NAMES[order.slot]),
            "vmId": f"vm-{order.slot}-{order.identity}" if order.identity else "",
            "node": NAMES[order.slot],
            "nodeUid": f"node-{order.slot}",
            "pool": "",
            "zone": "",
            "epoch": 1,
            "disks": [
                {"id": disk(disk_name(d)), "uniqueId": f"unique-{d}", "lun": d} for d in bits(order.disks)
            ],
            "ground": ground,
            "deadlineSeconds": 200,
            "attachment": f"va-{number}-{order.slot}",
            "attachmentUid": f"va-{number}-{order.slot}",
        },
    )


# Steps


Step = tuple[str, World]


def put(world: World, number: int, **changes: int) -> World:
    slots = list(world.slots)
    slots[number] = slots[number]._replace(**changes)
    return world._replace(slots=tuple(slots))


def attachment(world: World, d: int, n: int, state: int) -> World:
    rows = [list(row) for row in world.attachments]
    rows[d][n] = state
    return world._replace(attachments=tuple(map(tuple, rows)))


def pod(world: World, d: int, node: int, going: int = 0) -> World:
    pods = list(world.pods)
    pods[d] = node
    mask = world.going & ~(1 << d) | going << d
    return world._replace(pods=tuple(pods), going=mask)


def own(world: World, d: int, owner: int) -> World:
    owners = list(world.owners)
    owners[d] = owner
    return world._replace(owners=tuple(owners), young=world.young | 1 << d)


@dataclass
class Checker:
    """Explores; `faults` is the adversary's budget, `without` names rules that are taken away, `assumptions`
    those of the module's docstring that are made.
    """

    faults: int = 2
    without: frozenset[str] = frozenset()
    limit: int = 10_000_000
    until: str = " "
    """Stop at the first violation whose line has this in it; "" explores on."""
    symmetric: bool = True
    assumptions: frozenset[str] = frozenset({"A1", "A2"})
    hit: int = VMS
    """How many of the slots, and of the disks, the adversary gets at; fewer make a small world, in which
    names do matter.
    """
    found: list[tuple[str, World]] = field(default_factory=list)
    _plans: dict[tuple, tuple[World, tuple[Order, ...]]] = field(default_factory=dict)  # type: ignore[type-arg]
    _checks: dict[tuple, bool] = field(default_factory=dict)  # type: ignore[type-arg]
    _left: dict[tuple, tuple[str, ...]] = field(default_factory=dict)  # type: ignore[type-arg]

    def explore(self, *beginnings: World) -> int:
        """Breadth first from the start, or from other beginnings; the number of states. Violations are in
        `found`.
        """
        firsts = [self.small(world) for world in beginnings or (start(self.faults),)]
        self.parents: dict[World, tuple[World, str] | None] = dict.fromkeys(firsts)
        queue = deque(firsts)
        while queue and len(self.parents) < self.limit:
            world = queue.popleft()
            for name, after in self.steps(world):
                small = self.small(after)
                if small not in self.parents:
                    self.parents[small] = (world, name)
                    queue.append(small)
            if self.until and any(self.until in wrong for wrong, _ in self.found):
                break
        return len(self.parents)

    def small(self, world: World) -> World:
        return canonical(world) if self.symmetric else world

    def story(self, world: World) -> list[str]:
        """How it came to that, for a failing test."""
        names = []
        at: World | None = world
        while at is not None:
            parent = self.parents[at]
            names.append(parent[1] if parent else "start")
            at = parent[0] if parent else None
        return names[::-1]

    def steps(self, world: World) -> Iterator[Step]:
        yield from self.progress(world)
        yield from ageing(world)
        yield from self.function(world)
        if world.faults:
            less = world._replace(faults=world.faults - 1)
            yield from self.misfortunes(less)
            yield from self.force_deletions(less)
            yield from self.network_faults(less)

    def force_deletions(self, world: World) -> Iterator[Step]:
        for d in range(self.hit):
            n = world.pods[d]
            is_late = n >= 0 and world.slots[n].ready and world.slots[n].taint
            if n >= 0 and not ("A2" in self.assumptions and is_late):
                yield f"somebody force-deletes pod {d}", pod(world, d, -1)

    def misfortunes(self, world: World) -> Iterator[Step]:
        """What the adversary does to machines and kubelets."""
        for n, slot in enumerate(world.slots[: self.hit]):
            if slot.identity and slot.power == RUNNING:
                if slot.alive:
                    yield f"kubelet {n} dies", put(world, n, alive=0)
                else:
                    yield f"kubelet {n} returns", put(world, n, alive=1)
                yield (
                    f"somebody stops {n}",
                    put(world, n, power=STOPPED, alive=0, mounts=0, op=NONE, op_disks=0),
                )
            if slot.identity and slot.power == STOPPED:
                yield f"somebody starts {n}", put(world, n, power=STARTING)
            if slot.identity:
                after = put(world, n, identity=GONE, power=STOPPED, alive=0, mounts=0, op=NONE, op_disks=0)
                for d, owner in enumerate(world.owners):
                    after = own(after, d, -1) if owner == n else after
                yield f"somebody deletes {n}", after
            elif slot.identity == GONE and not ("A1" in self.assumptions and world.requests):
                yield f"somebody recreates {n}", put(world, n, identity=SECOND, power=RUNNING, alive=1)
            if slot.op:
                yield f"operation on {n} fails", put(world, n, op=NONE, op_disks=0)

    # What goes on by itself

    def progress(self, world: World) -> Iterator[Step]:
        for n, slot in enumerate(world.slots):
            yield from self.azure(world, n, slot)
            yield from self.node_steps(world, n, slot)
        for d in range(DISKS):
            yield from pod_steps(world, d)
            yield from self.attachment_steps(world, d)
        yield from self.deliveries(world)

    def node_steps(self, world: World, n: int, slot: Slot) -> Iterator[Step]:
        lives = slot.power == RUNNING and slot.alive and slot.identity
        if lives and not slot.ready:
            yield f"node {n} ready", put(world, n, ready=1, silent=0, viu=slot.mounts)
        if not lives and slot.ready and not ("A2" in self.assumptions and slot.taint):
            yield f"node {n} not ready", put(world, n, ready=0)
        if slot.power == STOPPED and not slot.ready and not slot.taint and slot.identity:
            yield f"provider taints {n}", put(world, n, taint=PROVIDERS)
        if slot.ready and slot.taint in (PROVIDERS, PROVIDERS_OLD):
            yield f"provider untaints {n}", put(world, n, taint=0)
        if lives and slot.ready:
            for d in bits(slot.mounts):
                if world.pods[d] != n:
                    left = slot.mounts & ~(1 << d)
                    yield f"unmount {d} from {n}", put(world, n, mounts=left, viu=left)
            if slot.viu != slot.mounts:
                yield f"node {n} reports", put(world, n, viu=slot.mounts)

    def azure(self, world: World, n: int, slot: Slot) -> Iterator[Step]:
        if slot.op == OFF:
            yield f"off {n}", put(world, n, op=NONE, op_disks=0, power=STOPPED, alive=0, mounts=0)
        elif slot.op:
            after = put(world, n, op=NONE, op_disks=0)
            for d in bits(slot.op_disks):
                if world.owners[d] == n:
                    after = own(after, d, -1)
            self.damage(world, n, slot)
            yield f"detached {n}", after
        if slot.power == STARTING and not ("A1" in self.assumptions and world.requests):
            yield f"booted {n}", put(world, n, power=RUNNING, alive=1, mounts=0)

    def damage(self, world: World, n: int, slot: Slot) -> None:
        if slot.power == RUNNING and slot.mounts & slot.op_disks:
            self.found.append((f"corruption on slot {n}", world))

    def attachment_steps(self, world: World, d: int) -> Iterator[Step]:
        for n, slot in enumerate(world.slots):
            state = world.attachments[d][n]
            used = slot.viu >> d & 1
            is_bound = world.pods[d] == n
            if state in (WANTED, ATTACHED) and not is_bound and (not used or slot.taint):
                yield f"a/d lets {d} go from {n}", attachment(world, d, n, DELETING)
            if state == DELETING:
                yield from self.driver_detaches(world, d, n, slot)
            can_attach = slot.op == NONE and slot.power == RUNNING and slot.identity
            is_wanted = state == WANTED and not self._is_asked(world, d, n)
            if is_wanted and world.owners[d] == -1 and can_attach:
                yield f"driver attaches {d} to {n}", attachment(own(world, d, n), d, n, ATTACHED)
            if is_wanted and world.owners[d] == n and not (slot.op and slot.op_disks >> d & 1):
                yield f"driver finds {d} on {n}", attachment(world, d, n, ATTACHED)
            if not state and is_bound and not world.going >> d & 1 and not any(world.attachments[d]):
                yield f"a/d wants {d} on {n}", attachment(world, d, n, WANTED)
            if self._may_mount(world, d, n):
                yield f"mount {d} on {n}", put(world, n, mounts=slot.mounts | 1 << d, viu=slot.viu | 1 << d)

    def _may_mount(self, world: World, d: int, n: int) -> bool:
        slot = world.slots[n]
        is_here = world.pods[d] == n and world.attachments[d][n] == ATTACHED and world.owners[d] == n
        works = slot.power == RUNNING and slot.alive and slot.ready and slot.identity
        return bool(is_here and works and not self._is_asked(world, d, n) and not slot.mounts >> d & 1)

    def _is_asked(self, world: World, d: int, n: int) -> bool:
        """Whether a request to take the disk is on its way, and A1 holds."""
        return "A1" in self.assumptions and any(r.slot == n and r.disks >> d & 1 for r in world.requests)

    def driver_detaches(self, world: World, d: int, n: int, slot: Slot) -> Iterator[Step]:
        if world.owners[d] != n or slot.identity == GONE:
            yield f"va {d} {n} gone", attachment(world, d, n, 0)
        elif slot.op == NONE and slot.power != STARTING:
            yield f"driver detaches {d} from {n}", put(world, n, op=DRIVER, op_disks=1 << d)

    # The function

    def function(self, world: World) -> Iterator[Step]:
        if len(world.orders) < 2:
            after, orders = self.decide(world)
            yield "decide", after._replace(orders=merged(world.orders, orders))
        for number, order in enumerate(world.orders):
            rest = world.orders[:number] + world.orders[number + 1 :]
            yield f"act {order}", self.act(world._replace(orders=rest), order)

    def decide(self, world: World) -> tuple[World, tuple[Order, ...]]:
        """One pass up to the plan: settle, remember, decide; the state document is saved."""
        visible = visible_of(world)
        if visible not in self._plans:
            observation = seen(visible)
            state = remember(observation, NOW)
            for judged in judge_all(_with(observation, state), NOW):
                if judged.standing is Standing.ASK:
                    state = states.ended(state, judged.release.vm, judged.write.id, WriteState.FAILED, NOW)
            plan = decide(_with(observation, state), POLICY, NOW)
            self._left[visible] = tuple(
                left.subject for left in plan.left_alone if left.message.startswith("Report")
            )
            self._plans[visible] = with_state(visible, state), tuple(order_of(a) for a in plan.actions)
        small, orders = self._plans[visible]
        return (
            world._replace(
                flights=small.flights,
                absent=small.absent,
                done=small.done,
            ),
            orders,
        )

    def is_reported(self, world: World, d: int) -> bool:
        """Whether people are told of this disk, or of its pod."""
        self.decide(world)
        subjects = self._left[visible_of(world)]
        return any(subject.startswith((f"{disk_name(d)} on ", f"pod data/db-{d}")) for subject in subjects)

    def act(self, world: World, order: Order) -> World:
        """The last look, and the write; the world without the order when a rule objects."""
        if not self.may(world, order):
            return world
        return self.carry_out(world, order)

    def may(self, world: World, order: Order) -> bool:
        visible = visible_of(world)
        name = (visible, order)
        if name not in self._checks:
            action, observation = action_of(order), seen(visible)
            broken = {f.rule for f in rules.broken(action, observation, POLICY, NOW)}
            self._checks[name] = broken <= self.without
            if self._checks[name]:
                moment = Moment(at=NOW, action=action, seen=observation, truth=observation, policy=POLICY)
                self.found += [(wrong, world) for wrong in violations(Trace(moments=(moment,)))]
        return self._checks[name]

    def carry_out(self, world: World, order: Order) -> World:
        kind = ORDERS[order.kind][0]
        n, state, action = order.slot, state_of(world), action_of(order)
        if kind in CODES:
            after, _ = states.announce(state, action, NOW)
            world = with_state(world, after)
            number = len(world.flights[n].writes) - 1
            return world._replace(requests=(*world.requests, Request(CODES[kind], n, order.disks, number)))
        if kind is ActionKind.TAINT_NODE:
            after = states.tainted(states.open_release(state, action, NOW), vm(NAMES[n]), NOW)
            return put(with_state(world, after), n, taint=OURS)
        if kind is ActionKind.UNTAINT_NODE:
            return put(with_state(world, states.untainted(state, vm(NAMES[n]))), n, taint=0)
        d = bits(order.disks)[0]
        return attachment(world, d, n, DELETING if kind is ActionKind.DELETE_VOLUME_ATTACHMENT else 0)

    # Requests

    def deliveries(self, world: World) -> Iterator[Step]:
        for number, request in enumerate(world.requests):
            rest = world.requests[:number] + world.requests[number + 1 :]
            after, taken = accept(world._replace(requests=rest), request)
            yield f"deliver {request}", answered(after, request, taken=taken)

    def network_faults(self, world: World) -> Iterator[Step]:
        for number, request in enumerate(world.requests):
            rest = world._replace(requests=world.requests[:number] + world.requests[number + 1 :])
            yield f"lose {request}", rest
            yield f"deliver {request}, lose its answer", accept(rest, request)[0]
            yield f"deliver {request} and again later", accept(world, request)[0]
        if world.orders:
            yield "the function dies", world._replace(orders=())


def visible_of(world: World) -> World:
    """What of a world a plan can depend on."""
    slots = tuple(slot._replace(mounts=0, alive=0) for slot in world.slots)
    return world._replace(slots=slots, orders=(), requests=(), faults=0)


def _with(observation: Observation, state: ReleaseState) -> Observation:
    from dataclasses import replace

    return replace(observation, state=state)


def merged(orders: tuple[Order, ...], new: tuple[Order, ...]) -> tuple[Order, ...]:
    """An older plan may be carried out late, beside the newer one."""
    return tuple(sorted({*orders, *new}))[:3]


def accept(world: World, request: Request) -> tuple[World, bool]:
    """Azure takes it, or refuses it. A detach of what is not attached is refused, a later write preempts."""
    slot = world.slots[request.slot]
    if slot.identity == GONE:
        return world, False
    if request.kind == OFF:
        return put(world, request.slot, op=OFF, op_disks=0), True
    if request.disks & ~owned_by(world, request.slot) or (slot.op and request.kind != FORCE):
        return world, False
    return put(world, request.slot, op=request.kind, op_disks=request.disks), True


def answered(world: World, request: Request, *, taken: bool) -> World:
    flight = world.flights[request.slot]
    if len(flight.writes) <= request.number or flight.writes[request.number].state > 1:
        return world
    writes = list(flight.writes)
    writes[request.number] = writes[request.number]._replace(state=1 if taken else 3)
    flights = list(world.flights)
    flights[request.slot] = flight._replace(writes=tuple(writes))
    return world._replace(flights=tuple(flights))


def pod_steps(world: World, d: int) -> Iterator[Step]:
    n = world.pods[d]
    if n < 0:
        for target, slot in enumerate(world.slots):
            if slot.ready and not slot.taint:
                yield f"pod {d} to {target}", pod(world, d, target)
        return
    slot, going = world.slots[n], world.going >> d & 1
    if not going and (slot.taint or (not slot.ready and slot.silent)):
        yield f"evict pod {d}", pod(world, d, n, going=1)
    is_orphan = slot.identity == GONE  # the cloud provider removes the Node, pod GC what was on it
    if (going and not slot.ready and slot.taint) or is_orphan:
        yield f"pod gc {d}", pod(world, d, -1)
    if going and slot.ready and slot.alive and slot.power == RUNNING:
        left = slot.mounts & ~(1 << d)
        yield f"kubelet ends pod {d}", pod(put(world, n, mounts=left, viu=left), d, -1)


def ageing(world: World) -> Iterator[Step]:
    """A clock grows old."""
    for n, slot in enumerate(world.slots):
        if not slot.ready and not slot.silent:
            yield f"silence {n}", put(world, n, silent=1)
        if world.absent[n] == 1:
            yield f"absent {n} old", world._replace(absent=replaced(world.absent, n, 2))
        if slot.taint in (OURS, PROVIDERS):
            yield f"taint on {n} old", put(world, n, taint=slot.taint + 2)
        flight = world.flights[n]
        if flight.tainted == 1:
            yield (
                f"taint {n} old",
                world._replace(flights=replaced(world.flights, n, flight._replace(tainted=2))),
            )
        for number, write in enumerate(flight.writes):
            flying = any(r.slot == n and r.number == number for r in world.requests)
            if not write.old and not flying:
                writes = replaced(flight.writes, number, write._replace(old=1))
                flights = replaced(world.flights, n, flight._replace(writes=writes))
                yield f"write {n}.{number} old", world._replace(flights=flights)
        for d in range(DISKS):
            if world.done[d][n]:
                yield (
                    f"done {d} {n} old",
                    world._replace(done=replaced(world.done, d, replaced(world.done[d], n, 0))),
                )
    for d in bits(world.young):
        yield f"owner {d} old", world._replace(young=world.young & ~(1 << d))


def replaced(values: tuple, number: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (*values[:number], value, *values[number + 1 :])


# Symmetry


def swapped_slots(world: World) -> World:
    """The same world with the two VMs under each other's names."""
    turn = {0: 1, 1: 0, -1: -1}
    return world._replace(
        slots=world.slots[::-1],
        owners=tuple(turn[o] for o in world.owners),
        pods=tuple(turn[p] for p in world.pods),
        attachments=tuple(row[::-1] for row in world.attachments),
        flights=world.flights[::-1],
        absent=world.absent[::-1],
        done=tuple(row[::-1] for row in world.done),
        orders=tuple(sorted(o._replace(slot=1 - o.slot) for o in world.orders)),
        requests=tuple(sorted(r._replace(slot=1 - r.slot) for r in world.requests)),
    )


TURN = (0, 2, 1, 3)
"""A set of disks with the two under each other's names."""


def swapped_disks(world: World) -> World:
    """The same world with the two disks, and their pods, under each other's names."""
    return world._replace(
        slots=tuple(
            s._replace(op_disks=TURN[s.op_disks], viu=TURN[s.viu], mounts=TURN[s.mounts]) for s in world.slots
        ),
        owners=world.owners[::-1],
        young=TURN[world.young],
        pods=world.pods[::-1],
        going=TURN[world.going],
        attachments=world.attachments[::-1],
        flights=tuple(
            f._replace(writes=tuple(w._replace(disks=TURN[w.disks]) for w in f.writes), disks=TURN[f.disks])
            for f in world.flights
        ),
        done=world.done[::-1],
        orders=tuple(sorted(o._replace(disks=TURN[o.disks]) for o in world.orders)),
        requests=tuple(sorted(r._replace(disks=TURN[r.disks]) for r in world.requests)),
    )


def canonical(world: World) -> World:
    """The smallest of the four worlds that differ in names only."""
    slots = world.slots
    turned = tuple(
        s._replace(op_disks=TURN[s.op_disks], viu=TURN[s.viu], mounts=TURN[s.mounts]) for s in slots
    )
    # The slots come first in the comparison: build only those worlds that can be the smallest.
    candidates = (slots, slots[::-1], turned, turned[::-1])
    smallest = min(candidates)
    found = [n for n, candidate in enumerate(candidates) if candidate == smallest]
    return min(_renamed(world, n) for n in found) if len(found) > 1 else _renamed(world, found[0])


def _renamed(world: World, way: int) -> World:
    if way == 0:
        return world
    if way == 1:
        return swapped_slots(world)
    return swapped_disks(world if way == 2 else swapped_slots(world))


# Liveness

TAINTED = -1


def settles(checker: Checker, world: World, rounds: int = 60) -> str:
    """Let everything take its course without faults; "" when both pods run in the end, or of each that does
    not people are told why.

    The order is fixed and fair: what goes on by itself, then the clocks, then the function, again and again.
    """
    world = world._replace(faults=0)
    for _ in range(rounds):
        world = _exhaust(world, checker.progress)
        if not _ailing(world):
            return ""
        before = world
        after, orders = checker.decide(world)
        world = after._replace(orders=merged(world.orders, orders))
        while world.orders:
            world = checker.act(world._replace(orders=world.orders[1:]), world.orders[0])
        world = _exhaust(world, checker.progress)
        world = _exhaust(world, ageing)
        if world == before:
            break
    wrong = [what for what in _ailing(world) if what < 0 or not checker.is_reported(world, what)]
    return f"neither running nor reported: {world}" if wrong else ""


def _exhaust(world: World, steps: Callable[[World], Iterator[Step]]) -> World:
    for _ in range(200):
        after = next((after for _, after in steps(world) if after != world), None)
        if after is None:
            return world
        world = after
    raise AssertionError(f"it never comes to rest: {world}")


def _ailing(world: World) -> list[int]:
    """Disks whose pods do not run though a node could take them; TAINTED for a taint of ours that stays."""
    could = any(slot.ready and not slot.taint for slot in world.slots)
    found = [d for d, n in enumerate(world.pods) if could and not (n >= 0 and world.slots[n].mounts >> d & 1)]
    left = any(slot.taint in (OURS, OURS_OLD) for slot in world.slots if slot.ready)
    return [*found, TAINTED] if left else found

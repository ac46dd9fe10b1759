"""The cluster as the planner sees it: nodes as rows of a board, pods in groups, pools as offers. Pure.

Built once for each decision out of observation, facts and policy; the rest of the planner works on it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

import msgspec

from shared.autoscaling.board import Board, ClaimName, Group, Row
from shared.autoscaling.demand import Floor, Wishes, floor_of, headroom_shape, manual_size, remember_wishes
from shared.autoscaling.facts import Facts, Pool
from shared.autoscaling.observation import Claim, Kubernetes, Observation
from shared.autoscaling.pack import Offer, Packer, Shared
from shared.autoscaling.policy import AutoscalingPolicy
from shared.autoscaling.pools.driver import MachineState
from shared.autoscaling.templates import (
    DISK_DRIVER,
    DISK_ZONE,
    PASSING_TAINTS,
    VOLUMES,
    Template,
    free_of,
    machine_of,
    pool_nodes,
    template_of,
    usual_pods,
)
from shared.model.duration import parse_duration
from shared.model.node import Node, NodeSelectorTerm, Requirement
from shared.model.pod import PendingPod, PodShape
from shared.model.quantity import format_amount, units
from shared.model.wording import counted

HOUR = timedelta(hours=1)
Document = dict[str, Any]


@dataclass
class Scene:
    """Everything, and what has been concluded so far."""

    observation: Observation
    policy: AutoscalingPolicy
    facts: Facts
    now: datetime
    state: Document
    by_pool: dict[str, list[Node]]
    templates: dict[str, Template]
    wishes: Wishes
    floors: dict[str, Floor]
    shapes: list[PodShape]
    groups: list[Group] = field(default_factory=list)
    pods: dict[int, list[PendingPod]] = field(default_factory=dict)
    """Pending pods of each group, by the group's key."""
    waiting: list[tuple[PendingPod, str, str]] = field(default_factory=list)
    """Pending pods that ask for no node now, with reason and message."""
    board: Board = field(init=False)
    packer: Packer = field(init=False)
    offers: list[Offer] = field(default_factory=list)
    row_of: dict[str, int] = field(default_factory=dict)
    """Rows of existing nodes, by name."""
    coming: dict[int, str] = field(default_factory=dict)
    """Rows of nodes on their way: the pool's name."""
    upcoming: dict[str, int] = field(default_factory=dict)
    """Nodes on their way of each pool."""
    lost: dict[str, list[str]] = field(default_factory=dict)
    """Machines of each pool that will not become nodes."""
    shared_claims: set[ClaimName] = field(default_factory=set)
    """Claims that several pods use."""
    limited_drivers: set[str] = field(default_factory=set)
    """CSI drivers that attach only so many volumes to some node."""

    @property
    def kubernetes(self) -> Kubernetes:
        """The cluster, folded."""
        return self.observation.kubernetes

    def size(self, pool: Pool) -> int:
        """Nodes of the pool, those on their way included."""
        return len(self.by_pool[pool.id]) + self.upcoming[pool.id]


def set_scene(observation: Observation, policy: AutoscalingPolicy, facts: Facts, now: datetime) -> Scene:
    """The scene with all nodes on the board and no pod placed yet."""
    kubernetes, state = observation.kubernetes, observation.state
    by_pool = pool_nodes(facts.pools, kubernetes.nodes)
    pods = usual_pods(kubernetes.nodes)
    templates = {
        pool.id: template_of(pool, by_pool[pool.id], facts, kubernetes.daemons, pods) for pool in facts.pools
    }
    sizes = {pool.name: len(by_pool[pool.id]) for pool in facts.pools}
    wishes = remember_wishes(policy, observation.metrics, sizes, state.get("wishes") or {}, now)
    scene = Scene(
        observation=observation,
        policy=policy,
        facts=facts,
        now=now,
        state=state,
        by_pool=by_pool,
        templates=templates,
        wishes=wishes,
        floors={pool.id: floor_of(pool, policy, state, wishes, now) for pool in facts.pools},
        shapes=list(kubernetes.shapes),
    )
    for pool in facts.pools:
        _count_machines(scene, pool)
    nodes = (*kubernetes.nodes, *(template.node for template in templates.values()))
    scene.limited_drivers = {driver for node in nodes for driver in node.volume_limits}
    scene.shared_claims = _shared_claims(kubernetes)
    _group_pods(scene)
    _add_headroom(scene)
    _set_board(scene)
    scene.offers = [_offer(scene, pool) for pool in facts.pools]
    _share_limits(scene)
    balanced = policy.scale_up.balance
    scene.packer = Packer(scene.board, scene.offers, chooses_each=balanced)
    _keep_nominations(scene)
    return scene


# Machines that are no nodes yet


def _count_machines(scene: Scene, pool: Pool) -> None:
    """How many nodes are on their way, and which machines will never become one."""
    own = scene.by_pool[pool.id]
    known = {machine_of(node.provider_id) for node in own}
    names = {node.name.lower() for node in own}
    timeout = parse_duration(pool.policy.provision_timeout or scene.policy.scale_up.provision_timeout)
    strange = [m for m in pool.machines if m.id not in known and m.computer_name.lower() not in names]
    lost = []
    for machine in strange:
        is_late = machine.created_at is not None and scene.now - machine.created_at > timeout
        if machine.state is MachineState.FAILED or (is_late and machine.state is not MachineState.DELETING):
            lost.append(machine.id)
    leaving = sum(machine.state is MachineState.DELETING for machine in strange)
    draining = scene.state.get("draining") or {}
    leaving += sum(1 for one in draining.values() if not one.get("node") and one.get("pool") == pool.id)
    growth = (scene.state.get("growths") or {}).get(pool.id) or {}
    capacity = max(pool.capacity, int(growth.get("to") or 0))
    short_since = (scene.state.get("shortSince") or {}).get(pool.id)
    upcoming = max(0, capacity - len(own) - len(lost) - leaving)
    if short_since and scene.now - msgspec.convert(short_since, datetime) > timeout and not growth:
        upcoming = min(upcoming, len(strange) - len(lost) - leaving)
    scene.upcoming[pool.id] = max(0, upcoming)
    scene.lost[pool.id] = lost


# Pods


def _group_pods(scene: Scene) -> None:
    """Pending pods that may have a new node, in groups that are alike."""
    age = parse_duration(scene.policy.scale_up.pod_age)
    by_shape: defaultdict[int, list[PendingPod]] = defaultdict(list)
    for pod in scene.kubernetes.pending:
        if pod.is_gated:
            scene.waiting.append((pod, "Gated", "it waits for a scheduling gate"))
        elif age and scene.now - _created(pod, scene.now) < age:
            text = f"it is younger than {scene.policy.scale_up.pod_age} (scaleUp.podAge)"
            scene.waiting.append((pod, "TooYoung", text))
        else:
            by_shape[pod.shape].append(pod)
    for number, pods in by_shape.items():
        if scene.shapes[number].is_daemon:
            text = "it belongs to a node that is there already"
            scene.waiting += [(pod, "BelongsToNode", text) for pod in pods]
            continue
        group = group_of(scene, number, len(pods))
        scene.groups.append(group)
        pods.sort(key=_AGE)  # of the same age, the order of the list: by name
        scene.pods[group.key] = pods


_AGE = attrgetter("created_at")


def _created(pod: PendingPod, now: datetime) -> datetime:
    return msgspec.convert(pod.created_at, datetime) if pod.created_at else now


def group_of(scene: Scene, shape: int, count: int) -> Group:
    """Pods of one shape as the board takes them, with what their volumes ask for."""
    known = scene.shapes[shape]
    volumes = _volumes(scene, known)
    is_shared = any(claim in scene.shared_claims for _, claim in volumes.attached)
    own = Counter(resource for resource, _ in volumes.attached if not is_shared)
    requests = {name: amount for name, amount in known.spec.requests.items() if amount > 0} | own
    return Group(
        key=shape,
        shape=shape,
        spec=known.spec,
        requests=requests,
        count=count,
        priority=known.priority,
        terms=tuple(volumes.terms),
        trouble=volumes.trouble,
        bundle=f"{known.namespace}/{known.group}" if known.group else "",
        shared_volumes=tuple(volumes.attached) if is_shared else (),
        together=tuple(one for one in volumes.unmade if one[1] in scene.shared_claims),
    )


@dataclass
class _Volumes:
    """What the claims of a shape ask for."""

    terms: list[tuple[NodeSelectorTerm, ...]] = field(default_factory=list)
    attached: list[tuple[str, ClaimName]] = field(default_factory=list)
    """Resource that counts the volume on a node, and its claim; where the driver has a limit."""
    unmade: list[tuple[str, ClaimName]] = field(default_factory=list)
    """Key of the domain in which the volume will be made once the first of its pods has a node."""
    trouble: str = ""


_NO_VOLUMES = _Volumes()


def _volumes(scene: Scene, shape: PodShape) -> _Volumes:
    if not shape.spec.claims:
        return _NO_VOLUMES
    found = _Volumes()
    for name in shape.spec.claims:
        claim = scene.kubernetes.claims.get((shape.namespace, name))
        if claim is None:
            found.trouble = f"its claim '{name}' is not there"
        elif claim.is_going:
            found.trouble = f"its claim '{name}' is being deleted"
        else:
            _add_claim(scene, found, (shape.namespace, name), claim)
        if found.trouble:
            break
    return found


def _add_claim(scene: Scene, found: _Volumes, name: ClaimName, claim: Claim) -> None:
    kubernetes = scene.kubernetes
    if claim.volume:
        volume = kubernetes.volumes.get(claim.volume)
        if volume is None:
            found.trouble = f"volume '{claim.volume}' is not there"
            return
        terms, driver = volume.terms, volume.driver
    else:
        known = kubernetes.classes.get(claim.storage_class)
        if known is None or not known.waits:
            why = "names no storage class that is there" if known is None else "is not bound yet"
            found.trouble = f"its claim '{name[1]}' {why}"
            return
        terms, driver = known.topologies, known.provisioner
        if claim.selected_node:  # its volume is being made for that node
            chosen = Requirement("metadata.name", "In", (claim.selected_node,))
            found.terms.append((NodeSelectorTerm(fields=(chosen,)),))
        elif driver == DISK_DRIVER:
            found.unmade.append((DISK_ZONE, name))
    if terms is not None:
        found.terms.append(terms)
    if driver in scene.limited_drivers:
        found.attached.append((VOLUMES + driver, name))


def _shared_claims(kubernetes: Kubernetes) -> set[ClaimName]:
    """Claims of pods that wait which other pods use too."""
    holders = {number for number, shape in enumerate(kubernetes.shapes) if shape.spec.claims}
    users = Counter(pod.shape for pod in kubernetes.pending if pod.shape in holders)
    if users:
        users.update(shape for load in kubernetes.loads.values() for shape in load.shapes.keys() & holders)
    claims: Counter[ClaimName] = Counter()
    for number, count in users.items():
        shape = kubernetes.shapes[number]
        claims.update({(shape.namespace, name): count for name in shape.spec.claims})
    return {claim for claim, count in claims.items() if count > 1}


def _add_headroom(scene: Scene) -> None:
    for number, headroom in enumerate(scene.policy.headroom):
        scene.shapes.append(headroom_shape(headroom))
        group = group_of(scene, len(scene.shapes) - 1, headroom.count)
        scene.groups.append(group)
        name = headroom.name or str(number)
        scene.pods[group.key] = [
            PendingPod(f"headroom/{name}-{one + 1}", "", group.shape) for one in range(headroom.count)
        ]


# Nodes


def _set_board(scene: Scene) -> None:
    scene.board = Board(scene.shapes, scene.kubernetes.namespaces)
    known = {group.key: group for group in scene.groups}
    everything = [known.get(shape) or group_of(scene, shape, 0) for shape in range(len(scene.shapes))]
    scene.board.prepare(everything, _rows(scene, everything))


def _rows(scene: Scene, groups: Iterable[Group]) -> Iterator[Row]:
    attached = {
        group.shape: _volumes(scene, scene.shapes[group.shape]).attached
        for group in groups
        if group.spec.claims
    }
    drivers = {resource for volumes in attached.values() for resource, _ in volumes}
    draining = scene.state.get("draining") or {}
    young = parse_duration(scene.policy.scale_up.provision_timeout)
    for number, node in enumerate(scene.kubernetes.nodes):
        scene.row_of[node.name] = number
        yield _row(scene, node, attached, drivers, is_closed=node.name in draining, young=young)
    number = len(scene.kubernetes.nodes)
    for pool in scene.facts.pools:
        for node in _coming(scene, pool):
            scene.coming[number] = pool.name
            number += 1
            yield Row(node, free_of(node, drivers))


def _row(
    scene: Scene,
    node: Node,
    attached: Mapping[int, Iterable[tuple[str, ClaimName]]],
    drivers: Iterable[str],
    *,
    is_closed: bool,
    young: timedelta,
) -> Row:
    load = scene.kubernetes.loads.get(node.name)
    used: Mapping[str, int] = load.used if load else {}
    if attached and load:
        volumes = {one for shape in load.shapes for one in attached.get(shape, ())}
        used = {**used, **Counter(name for name, _ in volumes)}
    seen = node
    if not node.is_ready and node.created_at and scene.now - node.created_at < young:
        # It has just joined: its pods will have a place once it is Ready.
        taints = tuple(taint for taint in node.taints if taint.key not in PASSING_TAINTS)
        seen = msgspec.structs.replace(node, taints=taints)
    elif not node.is_ready:
        is_closed = True
    has, shapes = free_of(node, drivers), load.shapes if load else {}
    return Row(seen, has, used, shapes, is_closed or node.is_going)


def _coming(scene: Scene, pool: Pool) -> Iterator[Node]:
    """Nodes on their way: like the template, in the zones Azure would fill."""
    template = scene.templates[pool.id]
    if template.trouble:
        return
    zones = Counter(node.zone for node in scene.by_pool[pool.id])
    offer = Offer(pool=pool, template=template, left=0, zones=zones)
    for _ in range(scene.upcoming[pool.id]):
        node = offer.next_node()
        zones[node.zone] += 1
        yield msgspec.structs.replace(node, name=node.name.replace("new node", "node on its way", 1))


# Pods for which the scheduler has chosen a node already


NOMINATED = 1 << 41
"""Added to the key of a group of pods that have their place on the board from the start."""
OVERDUE = timedelta(minutes=2)
"""A pod that is still there so long after it had to be gone may stay for ever, and its room with it."""


def _keep_nominations(scene: Scene) -> None:
    """Pods that the scheduler has nominated a node for get their place there, the higher priority first. Most
    of them wait for others to give way, which are being deleted: a node would be ordered for nothing.
    """
    for group in sorted(scene.groups, key=lambda one: -one.priority):
        for pod in [one for one in scene.pods[group.key] if one.nominated]:
            if reason := _keep_nomination(scene, group, pod):
                group.count -= 1
                scene.pods[group.key].remove(pod)
                scene.waiting.append((pod, *reason))


def _keep_nomination(scene: Scene, group: Group, pod: PendingPod) -> tuple[str, str] | None:
    """Place it, with (reason, message); None if the scheduler could not, even once the others are gone."""
    row = scene.row_of.get(pod.nominated)
    if row is None:
        return None
    chosen = f"the scheduler has chosen node {pod.nominated} for it"
    if scene.packer.fits_on(group, row):
        reason = "FitsExistingNode", f"{chosen}, which has room"
    elif number := _fits_later(scene, group, row):
        text = f"{counted(number, 'pod')} of a lower priority"
        reason = "RoomIsBeingMade", f"{chosen}, where {text} will end"
    else:
        return None
    own = msgspec.structs.replace(group, key=group.key + NOMINATED, count=1)
    scene.board.place(own, row, 1)
    scene.pods.setdefault(own.key, []).append(pod)
    return reason


def _fits_later(scene: Scene, group: Group, row: int) -> int:
    """How many pods are being deleted there once which one of the group fits; 0 if it does not even then."""
    victims = _giving_way(scene, scene.board.nodes[row].name, group.priority)
    for victim in victims:
        scene.board.lift(victim, row, victim.count)
    is_possible = bool(victims) and scene.packer.fits_on(group, row)
    for victim in victims:
        scene.board.lift(victim, row, -victim.count)
    return sum(victim.count for victim in victims) if is_possible else 0


def _giving_way(scene: Scene, node: str, priority: int) -> list[Group]:
    """Pods on the node that are being deleted and may be so for those of this priority; none when one of them
    does not come to its end.
    """
    load = scene.kubernetes.loads.get(node)
    if load is None or not load.ending or scene.now - msgspec.convert(load.ending, datetime) > OVERDUE:
        return []
    return [
        group_of(scene, number, count)
        for number, count in sorted(load.shapes.items())
        if scene.shapes[number].is_going and scene.shapes[number].priority < priority
    ]


# Pools as offers


def _offer(scene: Scene, pool: Pool) -> Offer:
    template, size = scene.templates[pool.id], scene.size(pool)
    manual = manual_size(pool, scene.state, scene.now)
    most = pool.max if manual is None else min(manual, pool.max)
    price = pool.policy.price_per_hour
    if price is None:
        price = scene.facts.prices.get((pool.size.lower(), pool.is_spot))
    known = scene.facts.size(pool)
    offer = Offer(
        pool=pool,
        template=template,
        left=max(0, most - size),
        limit="MaxSizeReached" if manual is None else "SizeIsFixed",
        detail=f"pool {pool.name} is at its maximum of {most}",
        price=price,
        priority=pool.policy.priority,
        size=size,
        zones=Counter(node.zone for node in scene.by_pool[pool.id]),
    )
    offer.closed, detail = _closed(scene, pool, template)
    if offer.closed:
        offer.detail = detail
    elif known is not None and known.restricted:
        offer.closed = "SizeRestricted"
        offer.detail = f"size {pool.size} is not offered to this subscription in {pool.location}"
    elif pool.zones and not template.zones:
        offer.closed, offer.detail = "SizeRestricted", f"size {pool.size} is not offered in its zones"
    offer.whole = pool.policy.whole
    return offer


def _closed(scene: Scene, pool: Pool, template: Template) -> tuple[str, str]:
    """(reason, message) of what keeps a pool from being used now, or two empty texts."""
    if pool.hands_off:
        return "HandsOff", pool.hands_off
    if template.trouble:
        return "TemplateUnknown", f"pool {pool.name}: {template.trouble}"
    rest = ((scene.state.get("pools") or {}).get(pool.id) or {}).get("backoff")
    if rest and msgspec.convert(rest["until"], datetime) > scene.now:
        until = msgspec.convert(rest["until"], datetime)
        return "BackedOff", f"pool {pool.name} rests until {until:%H:%M:%S} UTC ({rest.get('reason')})"
    if pool.policy.whole and scene.size(pool) not in (0, pool.max):
        return "NotWhole", f"pool {pool.name} is used as a whole and is neither empty nor full"
    return "", ""


def _share_limits(scene: Scene) -> None:
    """Limits that pools share: quotas of the subscription, totals of the cluster, caps of runs and hours."""
    policy = scene.policy
    hour = sum(
        int(one["count"])
        for one in scene.state.get("additions") or ()
        if scene.now - msgspec.convert(one["at"], datetime) < HOUR
    )
    nodes = len(scene.kubernetes.nodes) + sum(scene.upcoming.values())
    everyone = [
        Shared(
            policy.scale_up.max_per_run, "RunLimit", f"scaleUp.maxPerRun is {policy.scale_up.max_per_run}"
        ),
        Shared(
            policy.scale_up.max_per_hour - hour,
            "HourLimit",
            f"{counted(hour, 'node')} added within the hour; "
            f"scaleUp.maxPerHour is {policy.scale_up.max_per_hour}",
        ),
        Shared(
            policy.max_nodes - nodes,
            "ClusterLimit",
            f"the cluster has {counted(nodes, 'node')} and maxNodes is {policy.max_nodes}",
        ),
    ]
    for offer in scene.offers:
        offer.draws += [(one, 1) for one in everyone]
    for name, limit in (("cpu", policy.max_cpu), ("memory", policy.max_memory)):
        if limit:
            _total_limit(scene, name, limit)
    if policy.quota.enabled:
        _quotas(scene)


def _total_limit(scene: Scene, name: str, limit: str) -> None:
    most = units(limit) * (1000 if name == "cpu" else 1)
    used = sum(node.allocatable.get(name, 0) for node in scene.kubernetes.nodes)
    for pool in scene.facts.pools:
        used += scene.upcoming[pool.id] * scene.templates[pool.id].node.allocatable.get(name, 0)
    key = "maxCpu" if name == "cpu" else "maxMemory"
    text = f"the cluster has {format_amount(name, used)} {name} and {key} is {limit}"
    shared = Shared(most - used, "ClusterLimit", text)
    for offer in scene.offers:
        offer.draws.append((shared, offer.template.node.allocatable.get(name, 0)))


def _quotas(scene: Scene) -> None:
    shared: dict[tuple[str, str], Shared] = {}
    for offer in scene.offers:
        size = scene.facts.size(offer.pool)
        if size is None:
            continue
        names = ["lowpriorityCores"] if offer.pool.is_spot else [size.family, "cores"]
        for name in names:
            key = (offer.pool.location.lower(), name.lower())
            usage = scene.facts.usages.get(key)
            if usage is None:
                continue
            if key not in shared:
                left = usage.limit - usage.used - scene.policy.quota.reserve_vcpus
                text = (
                    f"quota {usage.name} of {offer.pool.location} has {usage.limit - usage.used} vCPUs left"
                )
                shared[key] = Shared(left, "QuotaExceeded", text)
            offer.draws.append((shared[key], size.vcpus))

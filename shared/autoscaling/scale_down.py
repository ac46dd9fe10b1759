"""Which nodes are not needed: every pod on them has another home, nothing forbids to move it, and that has
been so for long enough. Pure; called by `decide` on the board where pending pods are placed already.

Nodes are looked at from the emptiest on; what one candidate's pods take elsewhere is gone for the next, so
all that are named can go together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec

from shared.autoscaling.board import Group
from shared.autoscaling.demand import manual_size
from shared.autoscaling.facts import Pool
from shared.autoscaling.ledger import ROLL_LOST
from shared.autoscaling.observation import Budget
from shared.autoscaling.scene import HOUR, Scene, group_of
from shared.model.duration import format_duration, parse_duration
from shared.model.node import Node
from shared.model.plan import LeftAlone
from shared.model.pod import PodShape

DISABLED = "cluster-autoscaler.kubernetes.io/scale-down-disabled"
GPU = "nvidia.com/gpu"
SYSTEM = "kube-system"
JUST_JOINED = timedelta(minutes=1)
GOING = ("Empty", "Unneeded", "NotReady", "AboveSize", "Replaced")
"""Reasons of nodes that may go."""


@dataclass(frozen=True)
class Removal:
    """One node that may go; `reason` is one of GOING."""

    pool: Pool
    node: Node
    reason: str
    message: str


@dataclass
class Review:
    """What became of every node: those to remove now, those left alone, since when each is not needed."""

    removals: list[Removal] = field(default_factory=list)
    left: list[LeftAlone] = field(default_factory=list)
    unneeded_since: dict[str, str] = field(default_factory=dict)


def review(scene: Scene) -> Review:
    """Looks at every node of every pool."""
    found = Review()
    policy = scene.policy.scale_down
    wait = waits(scene)
    budgets = Budgets(scene)
    counts = Counter({pool.id: _room_above_floor(scene, pool) for pool in scene.facts.pools})
    for pool, node in _candidates(scene):
        reason, message = _verdict(scene, pool, node, budgets)
        if reason not in GOING:
            _leave(found, node, reason, message)
            continue
        since = _since(scene, node)
        found.unneeded_since[node.name] = f"{since:%Y-%m-%dT%H:%M:%SZ}"
        needed = _unneeded_time(scene, pool, node, reason)
        if not policy.enabled:
            _leave(found, node, "ScaleDownIsOff", "scaleDown.enabled is false")
        elif counts[pool.id] <= 0:
            _leave(found, node, "AtMinimum", f"pool {pool.name} would have fewer nodes than it must")
        elif wait and reason != "Replaced":
            _leave(found, node, *wait)
        elif scene.now - since < needed:
            left = format_duration(needed - (scene.now - since))
            _leave(found, node, "NotUnneededLongEnough", f"{message}; it goes in {left} if that stays so")
        elif limit := _limit(scene, found, reason):
            _leave(found, node, "RunLimit", limit)
        else:
            counts[pool.id] -= 1
            found.removals.append(Removal(pool, node, reason, message))
    return found


def _leave(found: Review, node: Node, reason: str, message: str) -> None:
    found.left.append(LeftAlone(subject=node.name, reason=reason, message=message))


def _candidates(scene: Scene) -> Iterator[tuple[Pool, Node]]:
    """Nodes of pools, the emptiest first; nodes that are on their way out are nobody's candidates."""
    draining = scene.state.get("draining") or {}
    found = [
        (pool, node)
        for pool in scene.facts.pools
        if not pool.hands_off
        for node in scene.by_pool[pool.id]
        if node.name not in draining and not node.is_going
    ]
    replaced = replaced_nodes(scene)

    def order(one: tuple[Pool, Node]) -> tuple[object, ...]:
        # What is to be replaced first: the node that was made for it must not be taken for empty.
        return one[1].name not in replaced, utilization(scene, one[1]), one[1].name

    yield from sorted(found, key=order)


def replaced_nodes(scene: Scene) -> dict[str, str]:
    """Nodes that a newer one replaces, with the time until when that stands."""
    known = scene.state.get("replacing") or {}
    return {name: until for name, until in known.items() if msgspec.convert(until, datetime) > scene.now}


def _room_above_floor(scene: Scene, pool: Pool) -> int:
    draining = scene.state.get("draining") or {}
    leaving = sum(1 for one in draining.values() if one.get("pool") == pool.id)
    return scene.size(pool) - leaving - max(pool.min, scene.floors[pool.id].size)


def waits(scene: Scene) -> tuple[str, str] | None:
    """(reason, message) of what holds back every removal now."""
    policy, state = scene.policy.scale_down, scene.state
    pause = parse_duration(policy.delay_after_add)
    added = [msgspec.convert(one["at"], datetime) for one in state.get("additions") or ()]
    if added and scene.now - max(added) < pause:
        return "RecentlyAdded", f"nodes were added less than {policy.delay_after_add} ago"
    failed = state.get("removalFailedAt")
    if failed and scene.now - msgspec.convert(failed, datetime) < parse_duration(policy.delay_after_failure):
        return "RecentlyFailed", f"a removal failed less than {policy.delay_after_failure} ago"
    return None


def _since(scene: Scene, node: Node) -> datetime:
    known = (scene.state.get("unneededSince") or {}).get(node.name)
    return msgspec.convert(known, datetime) if known else scene.now


def _unneeded_time(scene: Scene, pool: Pool, node: Node, reason: str) -> timedelta:
    policy = scene.policy.scale_down
    if reason in ("AboveSize", "Replaced"):
        return timedelta(0)
    if reason == "NotReady":
        gone = scene.now - node.ready_since if node.ready_since else timedelta(0)
        # NotReady is counted from the node's own condition, which outlives our state document.
        return max(timedelta(0), parse_duration(policy.unready_time) - gone)
    return parse_duration(pool.policy.unneeded_time or policy.unneeded_time)


def _limit(scene: Scene, found: Review, reason: str) -> str:
    policy = scene.policy.scale_down
    empty = sum(one.reason == "Empty" for one in found.removals)
    busy = len(found.removals) - empty + len(scene.state.get("draining") or ())
    hour = sum(
        int(one["count"])
        for one in scene.state.get("removals") or ()
        if scene.now - msgspec.convert(one["at"], datetime) < HOUR
    )
    if hour + len(found.removals) >= policy.max_per_hour:
        return f"scaleDown.maxPerHour is {policy.max_per_hour}"
    if reason == "Empty":
        return (
            f"scaleDown.maxEmptyPerRun is {policy.max_empty_per_run}"
            if empty >= policy.max_empty_per_run
            else ""
        )
    return f"scaleDown.maxPerRun is {policy.max_per_run}" if busy >= policy.max_per_run else ""


# One node


def _verdict(scene: Scene, pool: Pool, node: Node, budgets: Budgets) -> tuple[str, str]:
    """(reason, message): why it may go, or why it stays."""
    if kept := is_kept(scene, pool, node):
        return kept
    if not node.is_ready:
        return _unready(scene, node)
    manual = manual_size(pool, scene.state, scene.now)
    is_above = manual is not None and scene.size(pool) > manual
    is_replaced = node.name in replaced_nodes(scene)
    used, threshold = utilization(scene, node), _threshold(scene, pool)
    if not is_above and not is_replaced and used >= threshold:
        return "NotUnderutilized", f"{used:.0%} of it is requested, at or above {threshold:.0%}"
    return _home_for_all(
        scene,
        node,
        budgets,
        f"{used:.0%} of it is requested",
        why="AboveSize" if is_above else "Replaced" if is_replaced else "",
    )


def _home_for_all(scene: Scene, node: Node, budgets: Budgets, used: str, *, why: str) -> tuple[str, str]:
    moving, problem = moving_of(scene, node)
    problem = problem or _awaited(scene, node) or budgets.blocked(moving)
    if problem:
        return problem
    if not _has_homes(scene, scene.row_of[node.name], moving):
        return "NoOtherHome", "its pods fit nowhere else"
    budgets.spend(moving)
    if why == "AboveSize":
        return why, "the pool has more nodes than an operation set"
    if why == "Replaced":
        return why, "there is a cheaper place for all its pods"
    if not moving:
        return "Empty", "nothing but DaemonSets runs on it"
    return "Unneeded", f"{used} and all its pods fit elsewhere"


def is_kept(scene: Scene, pool: Pool, node: Node) -> tuple[str, str] | None:
    """Why somebody wants it to stay whatever runs on it."""
    if node.annotations.get(DISABLED) == "true":
        return "ScaleDownDisabled", f"annotation {DISABLED} is true"
    if not pool.policy.scale_down:
        return "PoolIsKept", f"scaleDown is false for pool {pool.name}"
    if pool.policy.whole:
        return "PoolIsWhole", f"pool {pool.name} is used as a whole"
    rolls = (scene.state.get("rolls") or {}).values()
    if any(one["pool"] == pool.id and not one.get("ended") and _is_alive(scene, one) for one in rolls):
        return "PoolIsRolling", f"an operation is replacing machines of pool {pool.name}"
    if node.created_at and scene.now - node.created_at < JUST_JOINED:
        return "TooYoung", "it has just joined"
    return None


def _is_alive(scene: Scene, roll: Mapping[str, Any]) -> bool:
    return scene.now - msgspec.convert(roll["seenAt"], datetime) < ROLL_LOST


def _unready(scene: Scene, node: Node) -> tuple[str, str]:
    since = node.ready_since or node.created_at or scene.now
    limit = parse_duration(scene.policy.scale_down.unready_time)
    if scene.now - since < limit:
        return (
            "NotReadyYet",
            f"it is NotReady since {since:%H:%M:%S} UTC; after {format_duration(limit)} it goes",
        )
    return "NotReady", f"it is NotReady since {since:%Y-%m-%d %H:%M:%S} UTC"


def _threshold(scene: Scene, pool: Pool) -> float:
    own = pool.policy.utilization_threshold
    return scene.policy.scale_down.utilization_threshold if own is None else own


def utilization(scene: Scene, node: Node) -> float:
    """The larger of the requested parts of cpu and memory, or of the GPUs where there are some; DaemonSets
    and mirror pods do not count.
    """
    load = scene.kubernetes.loads.get(node.name)
    if load is None:
        return 0.0
    used: Counter[str] = Counter()
    for number, count in load.shapes.items():
        shape = scene.shapes[number]
        if not shape.is_daemon:
            for name, amount in shape.spec.requests.items():
                used[name] += amount * count
    names = (GPU,) if node.allocatable.get(GPU) else ("cpu", "memory")
    return max((used[n] / node.allocatable[n] for n in names if node.allocatable.get(n)), default=0.0)


def moving_of(scene: Scene, node: Node) -> tuple[list[tuple[Group, int]], tuple[str, str] | None]:
    """Pods that need another home, and why one of them may not be moved."""
    load = scene.kubernetes.loads.get(node.name)
    moving: list[tuple[Group, int]] = []
    for number, count in sorted(load.shapes.items()) if load else ():
        shape = scene.shapes[number]
        if shape.is_daemon or shape.is_going:
            continue
        if problem := _forbids(scene, shape, load.names.get(number, "a pod") if load else ""):
            return moving, problem
        moving.append((_moved(scene, number, count), count))
    return moving, None


def _awaited(scene: Scene, node: Node) -> tuple[str, str] | None:
    """Whether pods that wait, or those of other candidates, are to go there."""
    row = scene.row_of[node.name]
    planned = next((one.group.key for one in scene.board.placements if one.row == row), None)
    if planned is None:
        return None
    waiting = scene.pods.get(planned)
    name = waiting[0].subject if waiting else "pods of nodes that will be removed"
    return "WillBeUsed", f"{name} will be scheduled here"


def _forbids(scene: Scene, shape: PodShape, name: str) -> tuple[str, str] | None:
    """Why pods of this shape may not be moved."""
    policy = scene.policy.scale_down
    if shape.safe_to_evict is True:
        return None
    subject = f"{shape.namespace}/{name}"
    if shape.safe_to_evict is False:
        return "NotSafeToEvict", f"{subject} is annotated not safe to evict"
    if policy.skip_unmanaged_pods and not shape.owner.kind:
        return "UnmanagedPod", f"nothing would create {subject} again"
    if policy.skip_local_storage and shape.spec.has_local_storage:
        return "LocalStorage", f"{subject} keeps data on the node"
    if policy.skip_system_pods and shape.namespace == SYSTEM and not _has_budget(scene, shape):
        return "SystemPod", f"{subject} is a system pod without a PodDisruptionBudget"
    return None


def _has_budget(scene: Scene, shape: PodShape) -> bool:
    return any(_covers(budget, shape) for budget in scene.kubernetes.budgets)


def _covers(budget: Budget, shape: PodShape) -> bool:
    return (
        budget.namespace == shape.namespace
        and budget.selector is not None
        and budget.selector.matches(shape.labels)
    )


class Budgets:
    """Evictions that disruption budgets allow now; spent candidate by candidate."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._left = {id(budget): budget.allowed for budget in scene.kubernetes.budgets}

    def blocked(self, moving: Iterable[tuple[Group, int]]) -> tuple[str, str] | None:
        """Why these pods cannot be evicted now; a budget that allows some is enough to begin."""
        for group, _ in moving:
            for budget in self._of(group):
                if self._left[id(budget)] <= 0:
                    text = f"PodDisruptionBudget {budget.namespace}/{budget.name} allows no eviction now"
                    return "BlockedByBudget", text
        return None

    def spend(self, moving: Iterable[tuple[Group, int]]) -> None:
        """These pods will be evicted."""
        for group, count in moving:
            for budget in self._of(group):
                self._left[id(budget)] -= count

    def _of(self, group: Group) -> list[Budget]:
        shape = self._scene.shapes[group.shape]
        return [budget for budget in self._scene.kubernetes.budgets if _covers(budget, shape)]


def _has_homes(scene: Scene, row: int, moving: list[tuple[Group, int]]) -> bool:
    """Whether every pod fits on another node; if so they are moved there, and the node is closed."""
    board, packer = scene.board, scene.packer
    if not moving:
        board.close(row)
        return True
    mark = board.mark()
    for group, count in moving:
        board.lift(group, row, count)
    coming = sum(1 << one for one in scene.coming)
    for group, count in moving:
        packer.remaining[group.key] = count
        packer.settle_on(group, board.open_to(group) & ~(1 << row) & ~coming)
        if packer.remaining[group.key]:
            board.undo_to(mark)
            for other, number in moving:
                board.lift(other, row, -number)
            return False
    board.close(row)
    return True


MOVED = 1 << 40
"""Added to the key of a group whose pods run already: they are not those of the same shape that wait."""


def _moved(scene: Scene, shape: int, count: int) -> Group:
    group = group_of(scene, shape, count)
    group.key += MOVED
    return group

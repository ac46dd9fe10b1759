"""Decides what to do about a cluster's nodes: (Observation, policy, now) -> Plan, one plan over all pools.

In this order: pods that wait are placed on the nodes there are; what sizes must be kept is planned; the rest
is packed onto new nodes; instances that never became nodes are named for replacement; nodes that nobody needs
are named for removal. Every pod and every node left alone has its reason. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from shared.autoscaling import node_by_node
from shared.autoscaling.board import Group
from shared.autoscaling.bound import quality
from shared.autoscaling.choose import prices_decide, total_cost, ways
from shared.autoscaling.consolidate import Replacement, action_of, find, note_of
from shared.autoscaling.explain import explain
from shared.autoscaling.facts import read_facts
from shared.autoscaling.observation import AUTOMATION, Observation
from shared.autoscaling.pack import Offer, rank
from shared.autoscaling.policy import AutoscalingPolicy
from shared.autoscaling.scale_down import Removal, Review, replaced_nodes, review, waits
from shared.autoscaling.scene import Scene, set_scene
from shared.model.plan import Action, ActionKind, LeftAlone, Plan, utc
from shared.model.pod import collector_off
from shared.model.wording import counted

GROUPS_TRIED_TWICE = 400
PODS_TRIED_TWICE = 10_000
"""More distinct pods, or more pods, are packed in one way only: each way takes as long again."""

Document = dict[str, Any]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A plan, and what the next decision wants to know of this one (see Observation.state)."""

    plan: Plan
    memory: Document


def decide(observation: Observation, policy: AutoscalingPolicy, now: datetime) -> Plan:
    """The plan alone."""
    return consider(observation, policy, now).plan


def consider(observation: Observation, policy: AutoscalingPolicy, now: datetime) -> Decision:
    """The plan with what is to be remembered."""
    with collector_off():
        return _consider(observation, policy, utc(now))


def _consider(observation: Observation, policy: AutoscalingPolicy, now: datetime) -> Decision:
    if stop := _stop(observation, policy):
        alone = LeftAlone(subject=observation.cluster, reason=stop[0], message=stop[1])
        return Decision(plan=_plan(observation, now, (), (alone,)), memory=_kept(observation))
    scene = set_scene(observation, policy, read_facts(observation.azure, policy), now)
    _keep_sizes(scene)
    pack(scene)
    growth = list(_growth(scene))
    use_spare(scene)
    found = Review(unneeded_since=_known(scene)) if growth else _review(scene)
    left = (*_notes(scene), *explain(scene), *found.left)
    memory = _memory(scene, found)
    better = _better(scene, found) if not growth else None
    if better:
        growth += filter(None, [action_of(scene, better)])
        memory["replacing"] = note_of(scene, better)
    actions = (*growth, *_lost(scene), *_removals(found))
    return Decision(plan=_plan(observation, now, actions, left), memory=memory)


def _plan(
    observation: Observation, now: datetime, actions: Iterable[Action], left: Iterable[LeftAlone]
) -> Plan:
    return Plan(
        automation=AUTOMATION,
        cluster=observation.cluster,
        now=now,
        actions=tuple(actions),
        left_alone=tuple(left),
    )


def _stop(observation: Observation, policy: AutoscalingPolicy) -> tuple[str, str] | None:
    """(reason, message) of what forbids any change of this cluster now."""
    if observation.state.get("paused"):
        return "Paused", "paused by an operator; resume to go on"
    nodes = observation.kubernetes.nodes
    silent = sum(not node.is_ready for node in nodes)
    if silent > policy.freeze_not_ready_count and silent > policy.freeze_not_ready_fraction * len(nodes):
        text = f"{silent} of {len(nodes)} nodes are NotReady: from here that looks like a partition"
        return "Frozen", f"{text}; nothing is added or removed"
    return None


# Growing


def _keep_sizes(scene: Scene) -> None:
    """Plan nodes for sizes that are asked for whatever pods need."""
    for offer in scene.offers:
        short = scene.floors[offer.pool.id].size - scene.size(offer.pool)
        while short > 0 and offer.blocker() is None:
            scene.packer.open_node(offer)
            offer.floor += 1
            short -= 1


def pack(scene: Scene) -> None:
    """Place every group: on what is there, then on new nodes, in the best of the ways to choose; pods below
    the cut-off of priorities are left to `use_spare`.
    """
    least = scene.policy.scale_up.min_priority
    wanted = [group for group in rank(scene.groups, scene.offers) if group.priority >= least]
    scene.packer.settle(wanted)
    if not scene.policy.scale_up.enabled:
        return
    hopeful = [one for one in wanted if scene.packer.remaining[one.key]]
    for bundle in sorted({group.bundle for group in hopeful if group.bundle}):
        _pack_whole(scene, [group for group in hopeful if group.bundle == bundle])
    _pack_best(scene, [group for group in hopeful if not group.bundle])
    scene.packer.level([one for one in wanted if not one.bundle], ways(scene.policy, scene.offers)[0])
    scene.packer.drop_spare(wanted)


def use_spare(scene: Scene) -> None:
    """Pods that no node was planned for take what is left over, on nodes there are and on planned ones."""
    least = scene.policy.scale_up.min_priority
    left = [group for group in scene.groups if group.priority < least or group.spec.needs_others]
    scene.packer.settle_rest(rank(left, scene.offers))


def _pack_best(scene: Scene, groups: Sequence[Group]) -> None:
    """In every way that is worth trying; the best result stays, of equal ones the first."""
    tries = _tries(scene, groups)
    kept = [(offer, offer.planned) for offer in scene.offers]
    mark = scene.board.mark()
    results = []
    for attempt in tries:
        scene.packer.undo(mark, kept)
        attempt()
        results.append(_result(scene, groups))
    best = results.index(min(results))
    if best != len(tries) - 1:
        scene.packer.undo(mark, kept)
        tries[best]()


def _tries(scene: Scene, groups: Sequence[Group]) -> Sequence[Callable[[], None]]:
    """Ways to pack; of very many pods one, the one that was best in measurements."""
    by_group: list[Callable[[], None]] = [
        partial(scene.packer.grow, groups, choice) for choice in ways(scene.policy, scene.offers)
    ]
    by_node: list[Callable[[], None]] = [partial(_pack_nodes, scene, groups)]
    if not prices_decide(scene.policy, scene.offers) or not node_by_node.suits(scene.packer, groups):
        by_node = []
    is_large = sum(scene.packer.remaining[group.key] for group in groups) > PODS_TRIED_TWICE
    is_varied = len(groups) > GROUPS_TRIED_TWICE
    if is_large:
        return (by_node if not is_varied else []) or by_group[:1]
    return by_group[:1] + by_node if is_varied else by_group + by_node


def _pack_nodes(scene: Scene, groups: Sequence[Group]) -> None:
    """Node by node as far as that goes, the rest group by group."""
    node_by_node.grow(scene.packer, groups)
    scene.packer.grow(groups, ways(scene.policy, scene.offers)[0])


def _result(scene: Scene, groups: Sequence[Group]) -> tuple[float, ...]:
    """Less is better: pods left, nodes of pools with a lower priority, cost."""
    left = sum(scene.packer.remaining[group.key] for group in groups)
    top = max((offer.priority for offer in scene.offers), default=0)
    lower = sum((top - offer.priority) * offer.planned for offer in scene.offers)
    first = scene.policy.scale_up.strategy[:1] == ("priority",)
    return (left, lower if first else 0, total_cost(scene.offers))


def _pack_whole(scene: Scene, groups: Sequence[Group]) -> None:
    """All pods of a bundle, or none."""
    kept = [(offer, offer.planned) for offer in scene.offers]
    mark = scene.board.mark()
    scene.packer.grow(groups, ways(scene.policy, scene.offers)[0])
    if any(scene.packer.remaining[group.key] for group in groups):
        scene.packer.undo(mark, kept)
        for group in groups:
            group.trouble = "its group does not fit as a whole, and is all or nothing"


def _growth(scene: Scene) -> Iterator[Action]:
    """One action for each pool that grows, the pools with the most pods first."""
    held = _held(scene)
    growing = [offer for offer in scene.offers if offer.rows]
    gap = _gap(scene) if growing else ""
    for offer in sorted(growing, key=lambda one: (-held[one.pool.id], one.pool.id)):
        yield _grow(scene, offer, held[offer.pool.id], gap)


def _held(scene: Scene) -> Counter[str]:
    """Pods on planned nodes, by the pool's id."""
    pools = {row: offer.pool.id for offer in scene.offers for row in offer.rows}
    found: Counter[str] = Counter()
    for one in scene.board.placements:
        if one.row in pools:
            found[pools[one.row]] += one.count
    return found


def _grow(scene: Scene, offer: Offer, pods: int, gap: str) -> Action:
    pool, floor = offer.pool, scene.floors[offer.pool.id]
    there, coming = len(scene.by_pool[pool.id]), scene.upcoming[pool.id]
    count = pool.max - scene.size(pool) if offer.whole else offer.planned
    target = max(pool.capacity, scene.size(pool) + len(scene.lost[pool.id])) + count
    for_floor = offer.floor >= count or not pods
    why = floor.message if for_floor else f"no room elsewhere for {counted(pods, 'waiting pod')}"
    return Action(
        kind=ActionKind.SCALE_UP,
        target=pool.name,
        reason=floor.reason if for_floor else "PodsPending",
        message=f"grow pool {pool.name} by {count} to {target}: {why}",
        parameters={"pool": pool.id, "from": pool.capacity, "to": target},
        evidence=(
            f"{counted(there, 'node')}, {coming} on their way, at most {pool.max}",
            f"{counted(pods, 'pod')} would go to its new nodes",
            gap,
        ),
        preconditions=(
            f"the pool still has {counted(pool.capacity, 'machine')}",
            "no more machines run than Azure says",
        ),
    )


def _gap(scene: Scene) -> str:
    return quality(scene.board, scene.offers, len(scene.kubernetes.nodes) + len(scene.coming))


# Instances that never became nodes, nodes that nobody needs


def _lost(scene: Scene) -> Iterator[Action]:
    for pool in scene.facts.pools:
        known = {one.id: one for one in pool.machines}
        draining = scene.state.get("draining") or {}
        machines = [one for one in scene.lost[pool.id] if one not in draining]
        if not machines or pool.hands_off:
            continue
        first = known[machines[0]]
        why = f"{first.code}: {first.message}" if first.code else "it never registered"
        lost = counted(len(machines), "machine")
        yield Action(
            kind=ActionKind.DELETE_INSTANCE,
            target=pool.name,
            reason="NeverRegistered" if not first.code else "ProvisioningFailed",
            message=f"delete {lost} of pool {pool.name} that did not become nodes ({why})",
            parameters={"pool": pool.id, "machines": machines},
            evidence=tuple(f"{known[one].computer_name or one}: {known[one].state}" for one in machines[:10]),
            preconditions=("none of them has become a node",),
        )


def _review(scene: Scene) -> Review:
    return review(scene) if scene.kubernetes.is_complete else Review(unneeded_since=_known(scene))


def _better(scene: Scene, found: Review) -> Replacement | None:
    """A replacement that saves enough, when nothing else is going on in the cluster."""
    policy, state = scene.policy.scale_down, scene.state
    is_busy = found.removals or any(scene.upcoming.values()) or state.get("draining") or state.get("growths")
    if not policy.enabled or not policy.consolidation.enabled or is_busy or not scene.kubernetes.is_complete:
        return None
    return None if replaced_nodes(scene) or waits(scene) else find(scene)


def _known(scene: Scene) -> dict[str, str]:
    """Since when nodes have not been needed, of those that are still there; while pods wait for new nodes
    nobody looks at it anew.
    """
    known = scene.state.get("unneededSince") or {}
    return {name: since for name, since in known.items() if name in scene.row_of}


def _removals(found: Review) -> Iterator[Action]:
    by_pool: dict[tuple[str, str], list[Removal]] = {}
    for one in found.removals:
        by_pool.setdefault((one.pool.id, one.reason), []).append(one)
    for (_, reason), removals in by_pool.items():
        pool, names = removals[0].pool, [one.node.name for one in removals]
        yield Action(
            kind=ActionKind.SCALE_DOWN,
            target=pool.name,
            reason=reason,
            message=f"remove {', '.join(names[:5])}{' and more' if names[5:] else ''} of pool {pool.name}: "
            f"{removals[0].message}",
            parameters={"pool": pool.id, "nodes": names},
            evidence=tuple(f"{one.node.name}: {one.message}" for one in removals[:20]),
            preconditions=(
                "every pod on them can be evicted within its budgets",
                f"pool {pool.name} keeps at least {counted(pool.min, 'node')}",
            ),
        )


# What else is said and remembered


def _notes(scene: Scene) -> Iterator[LeftAlone]:
    """Pools that cannot be used, with the reason."""
    for offer in scene.offers:
        if offer.closed:
            yield LeftAlone(subject=offer.pool.name, reason=offer.closed, message=offer.detail)
        short = scene.floors[offer.pool.id].size - scene.size(offer.pool) - offer.planned
        if short > 0 and (limit := offer.blocker()):
            text = f"{scene.floors[offer.pool.id].message}, but {limit[1]}"
            yield LeftAlone(subject=offer.pool.name, reason=limit[0], message=text)


def _kept(observation: Observation) -> Document:
    """While nothing may be concluded, what was known stays."""
    state = observation.state
    return {key: state[key] for key in ("unneededSince", "shortSince", "wishes", "replacing") if key in state}


def _memory(scene: Scene, found: Review) -> Document:
    short = {}
    known = scene.state.get("shortSince") or {}
    for pool in scene.facts.pools:
        if pool.machines_known and pool.capacity > max(len(pool.machines), len(scene.by_pool[pool.id])):
            short[pool.id] = known.get(pool.id) or f"{scene.now:%Y-%m-%dT%H:%M:%SZ}"
    return {
        "unneededSince": found.unneeded_since,
        "shortSince": short,
        "wishes": scene.wishes,
        "replacing": {name: at for name, at in replaced_nodes(scene).items() if name in scene.row_of},
    }

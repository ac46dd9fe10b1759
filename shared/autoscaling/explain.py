"""Says of every pending pod which node it gets, or what keeps it waiting and what would lift that. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import repeat

from shared.autoscaling.board import Group, Placement, selects, tolerates
from shared.autoscaling.pack import Offer, in_place
from shared.autoscaling.scene import Scene
from shared.autoscaling.templates import free_of
from shared.model.plan import LeftAlone
from shared.model.quantity import format_amount

LIFTABLE = (
    *("MaxSizeReached", "SizeIsFixed", "RunLimit", "HourLimit", "ClusterLimit", "QuotaExceeded"),
    *("BackedOff", "NotWhole", "HandsOff", "SizeRestricted"),
)
"""Blockers of a pool whose nodes would do, the smallest obstacle first."""


def explain(scene: Scene) -> list[LeftAlone]:
    """One for each pending pod, in the order of groups."""
    found = [
        LeftAlone(subject=pod.subject, reason=reason, message=message)
        for pod, reason, message in scene.waiting
    ]
    placed: defaultdict[int, list[Placement]] = defaultdict(list)
    for one in scene.board.placements:
        placed[one.group.key].append(one)
    places = {
        row: ("NewNode", f"gets a new node of pool {offer.pool.name}")
        for offer in scene.offers
        for row in offer.rows
    }
    for group in scene.groups:
        found += _explain_group(scene, group, placed.get(group.key, ()), places)
    return found


def _explain_group(
    scene: Scene, group: Group, placed: Iterable[Placement], places: dict[int, tuple[str, str]]
) -> list[LeftAlone]:
    """`places`: what is said of rows; those that were not spoken of yet are added."""
    pods = scene.pods[group.key]
    told: list[tuple[str, str]] = []
    for one in placed:
        told += repeat(places.get(one.row) or places.setdefault(one.row, _place(scene, one.row)), one.count)
    if len(told) < len(pods):
        told += repeat(blocker(scene, group), len(pods) - len(told))
    return [
        LeftAlone(subject=pod.subject, reason=reason, message=message)
        for pod, (reason, message) in zip(pods, told, strict=False)
    ]


def _place(scene: Scene, row: int) -> tuple[str, str]:
    if row in scene.coming:
        return "NodeOnItsWay", f"a node of pool {scene.coming[row]} that is on its way has room"
    return "FitsExistingNode", f"node {scene.board.nodes[row].name} has room; the scheduler will find it"


def blocker(scene: Scene, group: Group) -> tuple[str, str]:
    """(reason, message): the smallest obstacle of any pool, and what would lift it."""
    if group.trouble:
        return "CannotRun", group.trouble
    if group.priority < scene.policy.scale_up.min_priority:
        least = scene.policy.scale_up.min_priority
        text = f"its priority {group.priority} is below scaleUp.minPriority ({least}): it uses what is spare"
        return "LowPriority", text
    if not scene.policy.scale_up.enabled:
        return "ScaleUpIsOff", "scaleUp.enabled is false"
    if not scene.offers:
        return "NoPool", "no node pool is configured or discovered"
    found = [_of_pool(scene, offer, group) for offer in scene.offers]
    rank = {reason: number for number, reason in enumerate(LIFTABLE)}
    best = min(found, key=lambda one: (rank.get(one[0], len(rank)), one[2]))
    if best[0] in rank:
        return best[0], best[1]
    shown = "; ".join(message for _, message, _ in sorted(found, key=lambda one: one[2])[:4])
    reasons = {reason for reason, _, _ in found}
    return (best[0] if len(reasons) == 1 else "NoPoolFits"), shown


def _of_pool(scene: Scene, offer: Offer, group: Group) -> tuple[str, str, int]:
    """(reason, message, how far away) for one pool."""
    pool = offer.pool
    if offer.template.trouble:
        return "TemplateUnknown", offer.detail, 9
    if problem := _mismatch(scene, offer, group):
        return *problem, 5
    limit = offer.blocker()
    if limit is None:
        return "OtherPods", f"pool {pool.name}: spread, affinity or host ports allow no more pods there", 4
    reason, message = limit
    if reason == "MaxSizeReached":
        return reason, f"fits pool {pool.name} if max were {pool.max + 1} or more", 0
    return reason, f"fits pool {pool.name}, but {message}", 1


def _mismatch(scene: Scene, offer: Offer, group: Group) -> tuple[str, str] | None:
    """Why an empty node of the pool cannot take a pod of the group."""
    name, nodes = offer.pool.name, offer.variants()
    free = free_of(offer.template.node, group.requests)
    for resource, amount in group.requests.items():
        if free.get(resource, 0) < amount:
            has, wants = (
                format_amount(resource, max(0, free.get(resource, 0))),
                format_amount(resource, amount),
            )
            return "TooLarge", f"pool {name}: its nodes have {has} {resource} for pods, it asks for {wants}"
    if not any(tolerates(group.spec, node) for node in nodes):
        shown = ", ".join(f"{t.key}={t.value}:{t.effect}" for t in nodes[0].taints if t.repels)
        return "NotTolerated", f"pool {name}: it does not tolerate {shown}"
    if not any(selects(group.spec, node) for node in nodes):
        return "NotSelected", f"pool {name}: its nodeSelector or node affinity does not match"
    if not any(in_place(group, node) for node in nodes):
        return "VolumeElsewhere", f"pool {name}: its volumes cannot be used in the pool's zones"
    return None

"""What asks for nodes besides pending pods, as numbers the planner takes: sizes that a pool must have, and
virtual pods for spare capacity. Pure; called by `decide`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from shared.autoscaling.facts import Pool
from shared.autoscaling.policy import AutoscalingPolicy, Headroom, MetricRule, Schedule
from shared.model.duration import parse_duration
from shared.model.pod import PodShape, PodSpec, Toleration
from shared.model.quantity import amounts
from shared.model.snapshot import MetricReading

Document = dict[str, Any]
Wishes = dict[str, list[list[Any]]]
HEADROOM = "kubekeeper-headroom"


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """A pool must have so many nodes; `reason` is CamelCase, `message` says who wants it."""

    size: int
    reason: str
    message: str


def floor_of(pool: Pool, policy: AutoscalingPolicy, state: Document, wishes: Wishes, now: datetime) -> Floor:
    """The largest size that anything asks of the pool, within its limits."""
    candidates = [Floor(size=pool.min, reason="BelowMinimum", message=f"its minimum is {pool.min}")]
    for schedule in policy.schedules:
        if schedule.pool == pool.name and is_open(schedule, now):
            text = f"schedule {schedule.name} wants {schedule.min_nodes}"
            candidates.append(Floor(size=schedule.min_nodes, reason="Schedule", message=text))
    for rule in policy.metrics:
        if rule.pool == pool.name and (size := wish_of(rule, wishes, now)) is not None:
            text = f"metric {rule.name} asks for {size}"
            candidates.append(Floor(size=size, reason="Metric", message=text))
    manual = manual_size(pool, state, now)
    if manual is not None:
        text = f"an operation set its size to {manual}"
        candidates = [candidates[0], Floor(size=manual, reason="Manual", message=text)]
    best = max(candidates, key=lambda one: one.size)
    return msgspec.structs.replace(best, size=min(best.size, pool.max))


def manual_size(pool: Pool, state: Document, now: datetime) -> int | None:
    """The size that an operation gave the pool, while that stands."""
    asked = (state.get("manual") or {}).get(pool.name)
    if not asked:
        return None
    until = asked.get("until")
    if until and msgspec.convert(until, datetime) <= now:
        return None
    return int(asked["size"])


def is_open(schedule: Schedule, now: datetime) -> bool:
    """Whether a window of the schedule is open: it began within its duration."""
    from cronsim import CronSim

    local = now.astimezone(ZoneInfo(schedule.time_zone))
    began = next(CronSim(schedule.start, local - parse_duration(schedule.duration)), None)
    return began is not None and began <= local


# Metrics


def remember_wishes(
    policy: AutoscalingPolicy,
    readings: Iterable[MetricReading],
    sizes: Mapping[str, int],
    known: Mapping[str, Any],
    now: datetime,
) -> Wishes:
    """What each rule has asked for within its windows, the newest last: `[[time, nodes], ...]` by rule."""
    found: Wishes = {}
    by_rule = {(one.source, one.query): one for one in readings}
    for rule in policy.metrics:
        longest = parse_duration(rule.scale_up_window) + parse_duration(rule.scale_down_window)
        kept = [
            one for one in known.get(rule.name) or () if now - msgspec.convert(one[0], datetime) <= longest
        ]
        reading = by_rule.get((rule.source, rule.query))
        if (
            reading
            and reading.value is not None
            and now - reading.read_at <= parse_duration(rule.stale_after)
        ):
            nodes = wanted(rule, reading.value, sizes.get(rule.pool, 0))
            kept.append([f"{now:%Y-%m-%dT%H:%M:%SZ}", nodes])
        if kept:
            found[rule.name] = kept
    return found


def wanted(rule: MetricRule, value: float, size: int) -> int:
    """ceil(value / target), as HPA: differences within the tolerance change nothing."""
    ratio = value / rule.target_per_node
    nodes = size if size and abs(ratio / size - 1) <= rule.tolerance else math.ceil(ratio)
    nodes = max(nodes, rule.min_nodes)
    return min(nodes, rule.max_nodes) if rule.max_nodes is not None else nodes


def wish_of(rule: MetricRule, wishes: Wishes, now: datetime) -> int | None:
    """What counts of a rule's wishes, None before the first: growing waits until the whole up window agrees,
    and what was agreed on is held for the down window.
    """
    kept = [(msgspec.convert(at, datetime), int(nodes)) for at, nodes in wishes.get(rule.name) or ()]
    up_window, down_window = parse_duration(rule.scale_up_window), parse_duration(rule.scale_down_window)

    def agreed(at: datetime) -> int:
        return min(nodes for when, nodes in kept if timedelta(0) <= at - when <= up_window)

    return max((agreed(at) for at, _ in kept if now - at <= down_window), default=None)


# Headroom


def headroom_shape(headroom: Headroom) -> PodShape:
    """A virtual pod for one place of spare capacity."""
    spec = PodSpec(
        requests={name: amount for name, amount in amounts(headroom.requests).items() if amount},
        node_selector=tuple(sorted(headroom.node_selector.items())),
        tolerations=tuple(
            Toleration(one.key, one.operator, one.value, one.effect) for one in headroom.tolerations
        ),
    )
    return PodShape(namespace=HEADROOM, labels={}, spec=spec, spec_key=-1, priority=headroom.priority)

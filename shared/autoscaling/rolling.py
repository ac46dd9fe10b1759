"""Replacing machines of a pool while it never has fewer that are Ready: what the next step is. Pure.

The rules are those of a Deployment's rolling update. New machines come first, at most `surge` more than the
pool had; an old one goes when the pool has its size without it. A pool at its maximum has no room for more:
there one old machine goes first. Nothing counts but what is there now, so whoever asks again after a crash
gets the step that was not taken. Called by `replacing` for the operations `replace-node` (one machine is old)
and `rolling-upgrade` (all of an earlier model are).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import msgspec

SHAKY = timedelta(minutes=1)
"""A node that is NotReady for less is waited for: kubelets miss a lease now and then."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One machine of the pool, with its node if it has joined.

    `is_leaving`: it is being drained and deleted. `born`: when it was made; `unready_since`: since when its
    node is not Ready, both None where nobody knows. `failure`: why Azure says that it failed.
    """

    machine: str
    name: str
    node: str = ""
    uid: str = ""
    is_old: bool = False
    is_ready: bool = False
    is_leaving: bool = False
    born: datetime | None = None
    unready_since: datetime | None = None
    failure: str = ""


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What holds from the first step to the last.

    `size`: machines the pool had and will have. `most`: its maximum. `boot`: how long a new machine may take.
    `is_strict`: one unhealthy machine ends it; otherwise those that were not well before do without.
    """

    size: int
    most: int
    surge: int = 1
    boot: timedelta = timedelta(minutes=15)
    is_strict: bool = True

    @property
    def room(self) -> int:
        """Machines it may have beyond its size; 0 for a pool at its maximum."""
        return max(0, min(self.surge, self.most - self.size))


class Do(enum.StrEnum):
    """What a step does."""

    WAIT = "Wait"
    GROW = "Grow"
    REMOVE = "Remove"
    DONE = "Done"
    STOP = "Stop"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """`to`: machines to grow to; `members`: those to remove; `message`: what is awaited, or what is wrong."""

    do: Do
    to: int = 0
    members: tuple[Member, ...] = ()
    message: str = ""


def next_step(
    members: Sequence[Member], course: Course, *, capacity: int, is_growing: bool, now: datetime
) -> Step:
    """The one thing to do now. `capacity` is the pool's own figure, which counts machines on their way."""
    staying = [one for one in members if not one.is_leaving]
    unwell = [one for one in staying if is_unwell(one, course, now)]
    if course.is_strict and unwell:
        return Step(do=Do.STOP, message=what_is_wrong(unwell[0], course))
    old = [one for one in staying if one.is_old]
    total = max(len(members), capacity)
    leaving = len(members) - len(staying)
    if victims := _may_go(staying, course, unwell, leaving):
        return Step(do=Do.REMOVE, members=victims)
    new = total - leaving - len(old)
    missing = min(course.size + course.room - total, course.size - new)
    if missing > 0 and not is_growing:
        return Step(do=Do.GROW, to=capacity + missing)
    if old or leaving or missing > 0:
        return Step(do=Do.WAIT, message=_awaited(members, unwell))
    late = [one for one in staying if not one.is_ready and one not in unwell]
    return Step(do=Do.WAIT, message=_awaited(late, ())) if late else Step(do=Do.DONE)


def _may_go(
    staying: Iterable[Member], course: Course, unwell: Sequence[Member], leaving: int
) -> tuple[Member, ...]:
    """Old machines without which the pool has enough that are Ready; those that are not go first."""
    ready = sum(one.is_ready for one in staying)
    without = sum(not one.is_old for one in unwell)
    enough = course.size - without - (0 if course.room else 1)
    found: list[Member] = []
    for one in sorted(staying, key=lambda one: (one.is_ready, one.name)):
        rest = ready - one.is_ready
        if course.is_strict and not one.is_ready:
            continue  # it comes back within a minute, or ends the whole course
        if one.is_old and rest >= enough and leaving + len(found) < max(1, course.room):
            found.append(one)
            ready = rest
    return tuple(found)


def is_unwell(member: Member, course: Course, now: datetime) -> bool:
    """Whether it is not Ready, and had its time to be."""
    if member.failure:
        return True
    if member.is_ready or member.born is None or now - member.born < course.boot:
        return False
    return member.unready_since is None or now - member.unready_since >= SHAKY


def what_is_wrong(member: Member, course: Course) -> str:
    """Of a machine that is unwell, one line."""
    if member.failure:
        return f"machine {member.name} has failed: {member.failure}"
    if member.node:
        since = f" since {member.unready_since:%H:%M:%S} UTC" if member.unready_since else ""
        return f"node {member.node} is NotReady{since}"
    minutes = course.boot // timedelta(minutes=1)
    return f"machine {member.name} is no node after {minutes} minutes"


def _awaited(members: Iterable[Member], unwell: Sequence[Member]) -> str:
    members = list(members)
    if going := [one.node or one.name for one in members if one.is_leaving]:
        return f"{', '.join(sorted(going))} is being drained"
    if coming := [one.node or one.name for one in members if not one.is_ready and one not in unwell]:
        return f"{', '.join(sorted(coming))} is not Ready yet"
    return "new machines are on their way"

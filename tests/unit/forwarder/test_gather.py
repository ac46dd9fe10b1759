"""Many reasons, few messages: by numbers, without waiting."""

from __future__ import annotations

import random

from shared.forwarder.decide import EVENTS, Reason
from shared.forwarder.gather import MOST_SUBJECTS, Outbox, Pace

PACE = Pace(quiet=1, longest=5, gap=10)


def reason(event: str = "PodUnschedulable", subject: str = "default/p") -> Reason:
    return Reason(event, "Unschedulable", subject)


def test_a_reason_waits_until_it_is_quiet() -> None:
    outbox = Outbox(PACE)
    outbox.add(reason(), 100.0)
    outbox.add(reason(), 100.5)
    assert outbox.next_due() == 101.5
    assert outbox.take_due(101.4) == []
    (message,) = outbox.take_due(101.5)
    assert (message.count, message.subjects, message.first_at, message.last_at) == (
        2,
        ["default/p"],
        100,
        100.5,
    )
    assert outbox.next_due() is None


def test_it_never_waits_longer_than_the_longest() -> None:
    outbox = Outbox(PACE)
    for tenth in range(100):
        outbox.add(reason(), 100 + tenth / 10)
        if outbox.take_due(100 + tenth / 10):
            break
    assert tenth == 50


def test_after_a_message_the_next_of_its_type_waits_for_the_gap_and_others_do_not() -> None:
    outbox = Outbox(PACE)
    outbox.add(reason(), 100)
    assert outbox.take_due(101)
    outbox.add(reason(), 101.5)
    outbox.add(reason("NodeNotReady"), 101.5)
    assert [message.event for message in outbox.take_due(103)] == ["NodeNotReady"]
    assert [message.event for message in outbox.take_due(110.9)] == []
    assert [message.event for message in outbox.take_due(111)] == ["PodUnschedulable"]


def test_an_event_may_have_a_gap_of_its_own() -> None:
    outbox = Outbox(Pace(quiet=1, longest=5, gap=10, gaps={"EndpointsChanged": 3}))
    outbox.add(reason("EndpointsChanged"), 100)
    assert outbox.take_due(101)
    outbox.add(reason("EndpointsChanged"), 101)
    assert outbox.next_due() == 104


def test_a_message_that_was_not_sent_joins_what_has_come_since() -> None:
    outbox = Outbox(PACE)
    outbox.add(reason(subject="a"), 100)
    (message,) = outbox.take_due(101)
    outbox.add(Reason("PodUnschedulable", "Resync", "b"), 102)
    outbox.put_back(message, 130)
    assert outbox.take_due(129) == []
    (again,) = outbox.take_due(130)
    assert (again.count, again.subjects, again.whys) == (2, ["a", "b"], ["Unschedulable", "Resync"])
    assert again.first_at == 100


def test_subjects_are_few_and_the_count_is_true() -> None:
    outbox = Outbox(PACE)
    for number in range(1000):
        outbox.add(reason(subject=f"p-{number}"), 100)
    (message,) = outbox.take_all()
    assert (len(message.subjects), message.count) == (MOST_SUBJECTS, 1000)
    assert outbox.take_all() == []


def test_whatever_happens_no_reason_is_lost_late_or_too_much_to_hold() -> None:
    for seed in range(200):
        draw = random.Random(seed)
        outbox, now, added, sent = Outbox(PACE), 0.0, 0, 0
        last_sent: dict[str, float] = {}
        for _ in range(300):
            now += draw.choice((0.0, 0.1, 0.4, 2.0, 11.0))
            if draw.random() < 0.7:
                outbox.add(reason(draw.choice(EVENTS)), now)
                added += 1
            for message in outbox.take_due(now):
                if draw.random() < 0.2:
                    outbox.put_back(message, now + 3)
                    continue
                assert now - last_sent.get(message.event, -100) >= PACE.gap - 1e-9 or message.count > 1
                last_sent[message.event] = now
                sent += message.count
            assert len(outbox) <= len(EVENTS)
        for message in outbox.take_due(now + 100):
            sent += message.count
        assert sent == added

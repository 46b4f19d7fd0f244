"""When a server that fails is asked again."""

from __future__ import annotations

import pytest

from lgvit_edge.serving.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ticket(breaker: Breaker) -> int:
    found = breaker.asks()
    assert found is not None
    return found


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.ended(ticket(breaker), False)


def test_some_failures_in_a_row_open_it(clock: Clock) -> None:
    breaker = Breaker(3, clock=clock)
    fail(breaker, 2)
    breaker.ended(ticket(breaker), True)
    fail(breaker, 2)
    assert not breaker.paused
    assert breaker.ended(ticket(breaker), False)
    assert breaker.paused and breaker.asks() is None


def test_one_request_tries_after_a_pause_that_doubles(clock: Clock) -> None:
    breaker = Breaker(1, clock=clock)
    fail(breaker)
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        clock.now += 0.79 * pause
        assert breaker.paused and breaker.asks() is None
        clock.now += 0.42 * pause
        assert not breaker.paused
        trial = ticket(breaker)
        assert breaker.paused and breaker.asks() is None  # another thread, meanwhile
        assert breaker.ended(trial, False)


def test_an_answer_closes_it_and_the_next_pause_is_short(clock: Clock) -> None:
    breaker = Breaker(2, clock=clock)
    fail(breaker, 2)
    for _ in range(3):
        clock.now += 100
        fail(breaker)
    clock.now += 100
    assert not breaker.ended(ticket(breaker), True)
    fail(breaker, 2)
    clock.now += 1.21
    assert breaker.asks()


def test_pauses_of_devices_differ(clock: Clock) -> None:
    ends = set()
    for seed in range(20):
        breaker = Breaker(1, clock=clock, seed=seed)
        fail(breaker)
        ends.add(breaker._until)
    assert len(ends) == 20 and max(ends) - min(ends) > 0.2


def test_requests_of_an_earlier_state_change_nothing(clock: Clock) -> None:
    breaker = Breaker(1, clock=clock)
    first, second, third = (ticket(breaker) for _ in range(3))
    breaker.ended(first, False)
    breaker.ended(second, False)
    clock.now += 1.21  # not two
    trial = ticket(breaker)
    breaker.ended(third, True)
    breaker.ended(second, False)
    assert breaker.paused  # the trial is still under way
    breaker.ended(trial, True)
    assert not breaker.paused


def test_what_was_given_up_soon_tells_nothing(clock: Clock) -> None:
    breaker = Breaker(1, clock=clock)
    for _ in range(5):
        assert not breaker.ended(ticket(breaker), None)
    assert not breaker.paused
    fail(breaker)
    clock.now += 1.21
    assert breaker.ended(ticket(breaker), None)  # but for the one that tries
    assert breaker.paused

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


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        assert breaker.asks()
        breaker.failed()


def test_some_failures_in_a_row_open_it(clock: Clock) -> None:
    breaker = Breaker(3, clock=clock)
    fail(breaker, 2)
    assert breaker.asks() and not breaker.open
    breaker.succeeded()
    fail(breaker, 2)
    assert not breaker.paused
    fail(breaker)
    assert breaker.open and breaker.paused and not breaker.asks()


def test_one_request_tries_after_a_pause_that_doubles(clock: Clock) -> None:
    breaker = Breaker(1, clock=clock)
    fail(breaker)
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        clock.now += 0.79 * pause
        assert breaker.paused and not breaker.asks()
        clock.now += 0.42 * pause
        assert not breaker.paused and breaker.asks()
        assert breaker.paused and not breaker.asks()  # another thread, meanwhile
        breaker.failed()


def test_an_answer_closes_it_and_the_next_pause_is_short(clock: Clock) -> None:
    breaker = Breaker(2, clock=clock)
    fail(breaker, 2)
    for _ in range(3):
        clock.now += 100
        fail(breaker)
    clock.now += 100
    assert breaker.asks()
    breaker.succeeded()
    assert not breaker.open and breaker.asks()
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


def test_failures_of_requests_already_under_way_do_not_prolong_the_pause(clock: Clock) -> None:
    breaker = Breaker(1, clock=clock)
    assert breaker.asks() and breaker.asks()  # two threads
    breaker.failed()
    breaker.failed()
    clock.now += 1.21
    assert breaker.asks()

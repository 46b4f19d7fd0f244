"""Waiting for a GPU, on a clock that is not this machine's."""

from __future__ import annotations

import pytest

from lgvit_edge.runtime.backends.waiting import Waits

MS, ASKING = 1e-3, 5e-6  # seconds


class Machine:
    """A clock, a thread that sleeps too long, and a GPU whose work takes a given time."""

    def __init__(self, late: float = 60e-6) -> None:
        self.now, self.late, self.asked, self.blocked = 100.0, late, 0, 0
        self.waits = Waits(lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.late

    def run(self, takes: float, key: object = 0, away: float = 0.0) -> tuple[float, float]:
        """Wait for a run; return how late, and how long it kept the CPU busy."""
        queued, ready = self.now, self.now + takes
        self.asked = 0

        def done() -> bool:
            self.now += ASKING
            self.asked += 1
            return self.now >= ready

        def block() -> None:
            self.blocked += 1
            self.now = max(self.now, ready) + 100e-6

        self.now += away
        self.waits.wait(key, queued, done, block)
        late, busy = self.now - ready, self.asked * ASKING
        self.now += 1 * MS  # what a program does between two images
        return late, busy


def several(machine: Machine, times: list[float]) -> tuple[list[float], list[float]]:
    pairs = [machine.run(takes) for takes in times]
    return [late for late, _ in pairs], [busy for _, busy in pairs]


@pytest.mark.parametrize("takes", [0.05 * MS, 0.5 * MS, 4 * MS, 40 * MS, 400 * MS])
@pytest.mark.parametrize("late", [0.0, 60e-6, 300e-6])
def test_steady_work(takes: float, late: float) -> None:
    machine = Machine(late)
    lateness, busy = several(machine, [takes] * 40)
    assert max(lateness[8:]) <= 2 * ASKING
    assert max(busy[20:]) < 0.06 * takes + 2 * late + 0.25 * MS


def test_the_first_run_is_slow() -> None:
    lateness, _ = several(Machine(), [90 * MS] + [5 * MS] * 10)
    assert max(lateness[1:]) <= 2 * ASKING


def test_slow_runs_in_between_change_nothing() -> None:
    times = [5 * MS, 5.2 * MS, 4.9 * MS, 5.1 * MS] * 3
    lateness, busy = several(Machine(), [*times, 60 * MS, 30 * MS, 60 * MS, *times])
    assert max(lateness[-12:]) <= 2 * ASKING
    assert max(busy[-12:]) < 1 * MS


def test_clocks_that_rise_make_one_run_late() -> None:
    lateness, busy = several(Machine(), [10 * MS] * 10 + [5 * MS] * 20)
    assert lateness[10] > 1 * MS and max(lateness[11:]) <= 2 * ASKING
    assert max(busy[-10:]) < 1 * MS


def test_clocks_that_fall_make_no_run_late() -> None:
    lateness, busy = several(Machine(), [5 * MS] * 10 + [10 * MS] * 20)
    assert max(lateness) <= 2 * ASKING
    assert max(busy[-10:]) < 1.5 * MS


def test_a_gpu_that_is_held_up_does_not_keep_a_core_busy() -> None:
    machine = Machine()
    several(machine, [5 * MS] * 10)
    late, busy = machine.run(3.0)
    assert machine.blocked == 1 and late < 1 * MS and busy < 110 * MS


def test_a_sleep_that_is_far_too_long_is_no_news_of_the_gpu() -> None:
    machine = Machine()
    several(machine, [5 * MS] * 10)
    machine.late = 20 * MS
    assert machine.run(5 * MS)[0] > 10 * MS
    machine.late = 60e-6
    lateness, busy = several(machine, [5 * MS] * 40)
    assert max(lateness) <= 2 * ASKING and max(busy[-5:]) < 1 * MS


def test_each_kind_of_work_has_its_time() -> None:
    machine = Machine()
    for _ in range(20):
        pairs = [machine.run(takes, (segment, 4)) for segment, takes in enumerate((3e-3, 9e-3))]
    assert all(late <= 2 * ASKING and busy < 1 * MS for late, busy in pairs)


def test_work_that_ended_unseen_teaches_nothing() -> None:
    machine = Machine()
    several(machine, [5 * MS] * 10)
    for _ in range(10):
        assert machine.run(5 * MS, away=50 * MS)[1] <= 2 * ASKING
    assert max(several(machine, [5 * MS] * 3)[0]) <= 2 * ASKING


def test_time_counts_from_the_end_of_what_ran_before() -> None:
    """Queued ahead, as in speculation: the second runs when the first has ended."""
    machine = Machine()
    for _ in range(10):
        start = machine.now
        for number in range(2):
            ready, asked = start + (number + 1) * 5 * MS, machine.now

            def done(ready: float = ready) -> bool:
                machine.now += ASKING
                return machine.now >= ready

            machine.waits.wait(number, start, done, lambda: None)
            assert machine.now - ready <= 2 * ASKING and machine.now > asked
        machine.now += 1 * MS
    times = machine.waits._times
    assert all(4.9 * MS < min(times[number]) < 5.1 * MS for number in range(2))

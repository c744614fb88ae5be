"""Timers that ring by a signal, in flight at a migration that succeeds or fails.

They must ring at their virtual time, with their intervals in phase, and say so when asked what is left.
What the tests expect of `timers` is what it does natively; without the shim it must be wrong.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from journey import TIMESHIM, direction, journey, world
from test_failures import breaking
from test_migration import MS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conftest import Program, Timeshim
    from journey import Journey

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")

SPAN_MS = (
    9900  # on a busy machine much of it passes before the task is frozen; ualarm(3) allows no more
)
# (and ualarm() takes less than a second)
RINGS = 10  # of a timer with an interval
TIMERS = 26
LATE = 50 * MS

shim_or_none = pytest.mark.parametrize("clocks", ["shim", "none"])


@dataclass(frozen=True)
class Hop:
    """A time for which the task was frozen."""

    blackout: int
    resume: int
    """When it ran on, by CLOCK_REALTIME."""


def by_realtime(ring: dict[str, Any]) -> bool:
    return ring["clock"] in (time.CLOCK_REALTIME, time.CLOCK_TAI)


def is_held_up(ring: dict[str, Any]) -> bool:
    """Tell whether a blackout holds a timer up; a span on CLOCK_REALTIME stands still as well."""
    return ring["clock"] == time.CLOCK_MONOTONIC or (by_realtime(ring) and not ring["absolute"])


def wrong_ring(ring: dict[str, Any], hops: Sequence[Hop]) -> str:
    """Say what was wrong with a ring."""
    stood_still = sum(hop.blackout for hop in hops) if is_held_up(ring) else 0
    late = ring["took_ns"] - ring["asked_ns"] - (stood_still if by_realtime(ring) else 0)
    late_in_reality = ring["real_ns"] - ring["asked_ns"] - stood_still
    missed = [0]
    if hops and late > LATE and not is_held_up(ring):
        # due in the blackout, or just before: it rang at once, and was in phase then
        if ring["at_ns"] - late > hops[-1].resume - hops[-1].blackout + LATE:
            missed.clear()
        if ring["period_ns"]:
            missed.append(late // ring["period_ns"])
        late = late_in_reality = ring["at_ns"] - hops[-1].resume
    if not 0 <= late < LATE:
        return f"late by {late / MS:.1f} ms on its own clock"
    if not -MS <= late_in_reality < LATE:
        return f"late by {late_in_reality / MS:.1f} ms in reality"
    if ring["missed"] not in (missed or [0]):
        return f"missed {ring['missed']} rings, not {missed}"
    if abs(ring["left_error_ns"]) > 5 * MS:
        return f"wrong by {ring['left_error_ns'] / MS:.1f} ms about what is left"
    return ""


def wrong_rings(rings: list[dict[str, Any]], *hops: Hop) -> dict[str, str]:
    """Say which timers of `timers` did not ring as and when they should have."""
    of: dict[str, list[dict[str, Any]]] = {}
    for ring in rings:
        of.setdefault(ring["timer"], []).append(ring)
    wrong = {} if len(of) == TIMERS else {"": f"{len(of)} of {TIMERS} timers rang"}
    for timer, own in of.items():
        number = 0
        for ring in own:
            if what := wrong_ring(ring, [hop for hop in hops if hop.resume <= ring["at_ns"]]):
                wrong[timer] = what
            if ring["ring"] != number:
                wrong[timer] = f"ring {ring['ring']} came instead of {number}"
            number = ring["ring"] + 1 + ring["missed"]
        if number < (RINGS if own[0]["period_ns"] else 1):
            wrong[timer] = f"rang only {number} times"
    return wrong


def test_natively(program: Program) -> None:
    """What the tests below expect is what the kernel does."""
    command = [str(program("timers")), "1000"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    assert wrong_rings([json.loads(line) for line in done.stdout.splitlines()]) == {}


@pytest.mark.parametrize("shift", ["+95000s", "-95000s", "+3s", "-3s"])
def test_under_an_offset(timeshim: Timeshim, program: Program, shift: str) -> None:
    uptime = time.clock_gettime(time.CLOCK_MONOTONIC)
    if uptime + int(shift.removesuffix("s")) < 0:
        pytest.skip(f"this host has been up for {uptime:.0f} s only")
    printed = timeshim.output("run", "--monotonic", shift, program("timers"), "1000")
    assert wrong_rings([json.loads(line) for line in printed.splitlines()]) == {}


def move(trip: Journey, *options: str, back: bool = False) -> Hop:
    summary = trip.move(*options, back=back)
    print(f"freeze {summary['freeze_ns'] / MS:.2f} ms, resume {summary['resume_ns'] / MS:.2f} ms")
    return Hop(summary["blackout_ns"], summary["virtual"]["realtime"])


@world
@direction
@shim_or_none
def test_in_flight(program: Program, sign: int, options: tuple[str, ...], clocks: str) -> None:
    with journey(sign * 3) as trip:
        trip.launch(str(program("timers")), str(SPAN_MS), clocks=clocks)
        time.sleep(0.1)
        hop = move(trip, *options)
        rings = trip.results(trip.there)
    wrong = wrong_rings(rings, hop)
    print(wrong or "all rang in time")
    assert (wrong == {}) == (clocks == "shim"), wrong


@world
def test_there_and_back_again(program: Program, options: tuple[str, ...]) -> None:
    with journey(95_000) as trip:
        trip.launch(str(program("timers")), str(SPAN_MS))
        hops = [move(trip, *options, back=back) for back in (False, True)]
        rings = trip.results(trip.here)
    assert wrong_rings(rings, *hops) == {}


def test_due_in_the_blackout(program: Program) -> None:
    """All of them; those on clocks that go on meanwhile ring at once, the others in their time."""
    with journey(3) as trip:
        trip.launch(str(program("timers")), str(SPAN_MS))
        time.sleep(0.1)
        trip.host_there += f" {breaking('ten seconds with everything restored')}"
        hop = move(trip)
        rings = trip.results(trip.there)
    assert hop.blackout > SPAN_MS * MS
    assert wrong_rings(rings, hop) == {}


def test_after_a_migration_that_failed(program: Program) -> None:
    """Its clocks stood still for as long as it was frozen, which its timers must have too."""
    with journey(3) as trip:
        trip.launch(str(program("timers")), str(SPAN_MS))
        before = clocks_apart(trip)
        host = f"{trip.host_there} {breaking('receiver killed with everything restored')}"
        done = trip.here.run(TIMESHIM, "migrate", "traveller", host, check=False)
        assert done.returncode == 1, done
        paused = clocks_apart(trip) - before
        assert paused > 50 * MS
        rings = trip.results(trip.here)
    # nobody says when it ran on; the first ring of a clock that is behind does, or of a timer that is late
    resume = min(
        ring["at_ns"]
        for ring in rings
        if ring["real_ns"] - ring["took_ns"] > paused / 2
        or ring["took_ns"] - ring["asked_ns"] > LATE
    )
    assert wrong_rings(rings, Hop(paused, resume - MS)) == {}


@pytest.mark.parametrize("kind", ["filtered", "stopped", "spinning", "waiting", "many"])
def test_processes_that_are_not_easily_made_to_set_timers(program: Program, kind: str) -> None:
    with journey(3) as trip:
        trip.launch(str(program("injected")), kind, str(SPAN_MS))
        time.sleep(0.1)
        move(trip)
        if kind == "stopped":
            pid = trip.tasks(trip.there)[0]["pids"][1]
            state = trip.there.run("cat", f"/proc/{pid}/stat").stdout.rpartition(")")[2].split()[0]
            assert state == "T"
            trip.there.run("kill", "-CONT", str(pid))
        (result,) = trip.results(trip.there, seconds=60)  # what spins computes it all again
    assert result["right"]
    assert 0 <= result["late_ns"] < LATE


def clocks_apart(trip: Journey) -> int:
    """Return how much real time is ahead of the task's MONOTONIC."""
    done = trip.here.run(TIMESHIM, "clocks", "--json", "traveller", check=False)
    assert done.returncode == 0, done.stderr
    virtual = json.loads(done.stdout)["virtual"]
    return int(virtual["realtime"] - virtual["monotonic"])

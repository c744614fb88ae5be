"""Waits for a span of time, in flight at a migration that succeeds or fails, or at a signal.

They must end when that much virtual time has passed, and with EINTR only for a signal that the
application handles. Each test runs without the shim as well, where it must fail.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from journey import journey
from test_failures import breaking
from test_migration import MS, direction, world

from timeshim.control import Control
from timeshim.tasks import find

if TYPE_CHECKING:
    from conftest import Program, Timeshim

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")

WAIT_MS = 4000
SIGNAL_MS = 2500
WAITS = 30
ALL = WAITS + 2  # with those on System V semaphores, which test_sysv moves
LATE = 80 * MS
TGKILL = 234  # asm/unistd_64.h
RESTARTED = {"ppoll", "select", "pselect"}  # by CRIU, with what is left

shim_or_none = pytest.mark.parametrize("clocks", ["shim", "none"])


def wrong_waits(
    waits: list[dict[str, Any]], blackout: int, *, signal_ms: int | None = None, count: int = WAITS
) -> dict[str, str]:
    """Say which waits of `relative` did not end as and when they should have."""
    wrong = {} if len(waits) == count else {"": f"{len(waits)} of {count} waits ended"}
    for wait in waits:
        expected, asked = wait["expected"], wait["asked_ns"]
        stood_still = blackout if wait["clock"] == "monotonic" else 0
        if signal_ms is not None:
            # which is sent by MONOTONIC
            expected, asked = "EINTR", signal_ms * MS + (blackout - stood_still)
        late = wait["took_ns"] - asked
        late_in_reality = wait["real_ns"] - asked - stood_still
        # a signal's time is counted from a moment after the wait's
        early = LATE if signal_ms else 0
        if not -early <= late < LATE:
            wrong[wait["wait"]] = f"late by {late / MS:.1f} ms on its own clock"
        if not -early - MS <= late_in_reality < LATE:
            wrong[wait["wait"]] = f"late by {late_in_reality / MS:.1f} ms in reality"
        if wait["left_ns"] >= 0:
            # reported a moment before the clock was read again; sleep() truncates to seconds
            least = -1000 * MS if wait["wait"] == "sleep" else -MS
            error = wait["left_ns"] - (wait["asked_ns"] - wait["took_ns"])
            if not least <= error < LATE:
                wrong[wait["wait"]] = f"wrong by {error / MS:.1f} ms about what is left"
        if wait["returned"] != expected:
            wrong[wait["wait"]] = f"returned {wait['returned']}"
    return wrong


def run_natively(program: Program, *arguments: object) -> list[dict[str, Any]]:
    """Run `relative` without anything of ours, and return what it printed."""
    command = [str(program("relative")), *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return [json.loads(line) for line in done.stdout.splitlines()]


def run_in_a_task(timeshim: Timeshim, program: Program, *arguments: object) -> list[dict[str, Any]]:
    """Run `relative` in a task that stays where it is."""
    printed = timeshim.output("run", "--", program("relative"), *map(str, arguments))
    return [json.loads(line) for line in printed.splitlines()]


def results(timeshim: Timeshim, name: str) -> list[dict[str, Any]]:
    """Wait until a task on this host has ended, and return what it printed."""
    deadline = time.monotonic() + 20
    while any(task["name"] == name for task in json.loads(timeshim.output("ps", "--json"))):
        assert time.monotonic() < deadline, f"{name} does not end"
        time.sleep(0.05)
    return [json.loads(line) for line in timeshim.output("logs", name).splitlines()]


def test_natively(program: Program) -> None:
    """What the tests below expect is what the kernel does."""
    assert wrong_waits(run_natively(program, 1000, 0, "all"), 0, count=ALL) == {}
    waits = run_natively(program, 2000, 500, "all")
    assert wrong_waits(waits, 0, signal_ms=500, count=ALL) == {}


def test_in_place(timeshim: Timeshim, program: Program) -> None:
    assert wrong_waits(run_in_a_task(timeshim, program, 1000, 0, "all"), 0, count=ALL) == {}
    waits = run_in_a_task(timeshim, program, 2000, 500, "all")
    assert wrong_waits(waits, 0, signal_ms=500, count=ALL) == {}


@world
@direction
@shim_or_none
def test_over_a_migration(
    program: Program, sign: int, options: tuple[str, ...], clocks: str
) -> None:
    with journey(sign * 3) as trip:
        trip.launch(str(program("relative")), str(WAIT_MS), clocks=clocks)
        summary = trip.move(*options)
        waits = trip.results(trip.there)
    wrong = wrong_waits(waits, summary["blackout_ns"])
    print(f"{len(waits)} waits, blackout {summary['blackout_ns'] / MS:.1f} ms: {wrong or 'right'}")
    if clocks == "shim":
        assert wrong == {}
    else:
        assert wrong.keys() >= {wait["wait"] for wait in waits} - RESTARTED


@world
def test_a_signal_after_a_migration(program: Program, options: tuple[str, ...]) -> None:
    with journey(3) as trip:
        trip.launch(str(program("relative")), str(WAIT_MS), str(SIGNAL_MS))
        summary = trip.move(*options)
        waits = trip.results(trip.there)
    assert wrong_waits(waits, summary["blackout_ns"], signal_ms=SIGNAL_MS) == {}


def test_a_signal_during_a_migration(timeshim: Timeshim, program: Program) -> None:
    """It is delivered when the task runs on, and interrupts; see also test_signals."""
    timeshim.output("run", "--detach", "--name", "patient", "--", program("relative"), "2500")
    time.sleep(0.3)
    task = find("patient")
    pid = task.pids()[1]
    with Control(task.control) as control:
        control("freeze")
        for thread in Path(f"/proc/{pid}/task").iterdir():
            if int(thread.name) != pid:
                assert ctypes.CDLL(None).syscall(TGKILL, pid, int(thread.name), signal.SIGUSR1) == 0
        time.sleep(0.2)
        control("resume")
    returned = {wait["wait"]: wait["returned"] for wait in results(timeshim, "patient")}
    assert len(returned) == WAITS
    assert {name for name, how in returned.items() if how != "EINTR"} == set()


@shim_or_none
def test_over_a_freeze(timeshim: Timeshim, program: Program, clocks: str) -> None:
    """What the kernel restarts by itself counts on from before; CRIU has no part in this."""
    timeshim.output(
        "run", "--detach", "--name", "patient", f"--clocks={clocks}", "--",
        program("relative"), "2000", "0", "all",
    )  # fmt: skip
    time.sleep(0.3)
    with Control(find("patient").control) as control:
        control("freeze")
        time.sleep(0.4)
        control("resume")
    waits = results(timeshim, "patient")
    frozen = max(wait["real_ns"] - wait["took_ns"] for wait in waits)
    wrong = wrong_waits(waits, frozen, count=ALL)
    if clocks == "shim":
        assert frozen > 400 * MS
        assert wrong == {}
    else:
        assert {"epoll_wait", "semop"} <= wrong.keys()


@shim_or_none
def test_over_a_migration_that_fails(timeshim: Timeshim, program: Program, clocks: str) -> None:
    """The clocks stood still while the task was frozen; the waits must not notice either."""
    timeshim.output(
        "run", "--detach", "--name", "patient", f"--clocks={clocks}", "--",
        program("relative"), str(WAIT_MS), "0", "all",
    )  # fmt: skip
    done = timeshim("migrate", "patient", breaking("receiver killed with everything restored"))
    assert "receiver" in done.stderr, done.stderr
    waits = results(timeshim, "patient")
    # both clocks stand still, as nobody else knows how long; so reality is what tells
    frozen = max(
        wait["real_ns"] - wait["took_ns"] for wait in waits if wait["clock"] == "monotonic"
    )
    wrong = wrong_waits(waits, frozen, count=ALL)
    print(f"frozen for {frozen / MS:.1f} ms: {wrong or 'right'}")
    if clocks == "shim":
        assert frozen > 100 * MS
        assert wrong == {}
    else:
        assert wrong.keys() == {wait["wait"] for wait in waits}


def test_cancelled(timeshim: Timeshim, program: Program) -> None:
    """Every wait is a cancellation point still."""
    expected = [{"cancelled": WAITS}]
    assert run_natively(program, 10_000, 200, "cancel") == expected
    assert run_in_a_task(timeshim, program, 10_000, 200, "cancel") == expected


def test_what_need_not_wait(timeshim: Timeshim, program: Program) -> None:
    """Bad arguments and time-outs of 0 have the same results as without the shim."""
    refusals = program("refusals")
    native = subprocess.run(
        [refusals], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    assert timeshim.output("run", "--", refusals).splitlines() == native.splitlines()

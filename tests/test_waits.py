"""Waits that are in flight at more than a migration: at one that fails, at a signal, at a cancellation.

What they are is in tests/corpus. How each ends natively, under an offset and over a migration, the
matrix shows (test_surface.py).
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
from surface import rows_of
from test_failures import breaking
from verdicts import MS, RIGHT, Moves, verdict

from timeshim.control import Control
from timeshim.tasks import find

if TYPE_CHECKING:
    from conftest import Program, Timeshim

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")

PATIENT = f"patient-{os.getpid()}"  # whatever else runs on this machine
TGKILL = 234  # asm/unistd_64.h
SPANS = ("spans", "sockets", "sysv")
ALL = ("deadlines", "timerfds", *SPANS)

shim_or_none = pytest.mark.parametrize("clocks", ["shim", "none"])


def launch(timeshim: Timeshim, *corpus: object, clocks: str = "shim") -> None:
    """Launch the corpus as a task on this host, and wait until its waits have begun."""
    run = ("run", "--detach", "--name", PATIENT, f"--clocks={clocks}", "--")
    timeshim.output(*run, *map(str, corpus))
    deadline = time.monotonic() + 20
    while "ready" not in timeshim.output("logs", PATIENT):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def results(timeshim: Timeshim, name: str) -> list[dict[str, Any]]:
    """Wait until a task on this host has ended, and return what it printed."""
    deadline = time.monotonic() + 20
    while any(task["name"] == name for task in json.loads(timeshim.output("ps", "--json"))):
        assert time.monotonic() < deadline, f"{name} does not end"
        time.sleep(0.05)
    return [json.loads(line) for line in timeshim.output("logs", name).splitlines()]


def waits(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the corpus printed about waits."""
    return [line for line in lines if "returned" in line]


def test_a_signal_during_a_migration(timeshim: Timeshim, corpus: Path, tmp_path: Path) -> None:
    """It is delivered when the task runs on, and interrupts; see also test_signals."""
    go = tmp_path / "go"
    families = ("deadlines", *SPANS)
    launch(timeshim, corpus, go, 60_000, *families)
    task = find(PATIENT)
    pid = task.pids()[1]
    with Control(task.control) as control:
        control("freeze")
        for thread in Path(f"/proc/{pid}/task").iterdir():
            if int(thread.name) != pid:
                assert ctypes.CDLL(None).syscall(TGKILL, pid, int(thread.name), signal.SIGUSR1) == 0
        time.sleep(0.2)
        control("resume")
    interruptible = {
        row["row"] for family in families for row in rows_of(corpus)[family] if row["interruptible"]
    }
    deadline = time.monotonic() + 10
    while True:
        lines = [json.loads(line) for line in timeshim.output("logs", PATIENT).splitlines()]
        returned = {wait["row"]: wait["returned"] for wait in waits(lines)}
        if returned.keys() >= interruptible or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert returned == dict.fromkeys(interruptible, "EINTR")


@shim_or_none
def test_over_a_freeze(timeshim: Timeshim, corpus: Path, tmp_path: Path, clocks: str) -> None:
    """What the kernel restarts by itself counts on from before; CRIU has no part in this."""
    go = tmp_path / "go"
    launch(timeshim, corpus, go, 5000, *ALL, clocks=clocks)
    with Control(find(PATIENT).control) as control:
        control("freeze")
        time.sleep(0.4)
        control("resume")
    go.touch()
    frozen, wrong = judge(corpus, results(timeshim, PATIENT))
    if clocks == "shim":
        assert frozen > 400 * MS
        assert wrong == {}
    else:
        assert {"epoll_wait", "semop"} <= wrong.keys()


@shim_or_none
def test_over_a_migration_that_fails(
    timeshim: Timeshim, corpus: Path, tmp_path: Path, clocks: str
) -> None:
    """The clocks stood still while the task was frozen; the waits must not notice either."""
    go = tmp_path / "go"
    launch(timeshim, corpus, go, 6000, *ALL, clocks=clocks)
    done = timeshim("migrate", PATIENT, breaking("receiver killed with everything restored"))
    assert "receiver" in done.stderr, done.stderr
    go.touch()
    frozen, wrong = judge(corpus, results(timeshim, PATIENT))
    if clocks == "shim":
        assert frozen > 100 * MS
        assert wrong == {}
    else:
        spans = {row["row"] for family in SPANS for row in rows_of(corpus)[family]}
        assert spans - wrong.keys() == {"sigwait"}  # which libc repeats


def judge(corpus: Path, lines: list[dict[str, Any]]) -> tuple[int, dict[str, str]]:
    """Return for how long a task that stayed was frozen, and which waits of it were wrong."""
    ended = waits(lines)
    assert len(ended) == sum(len(rows_of(corpus)[family]) for family in ALL)
    # nobody else knows for how long; so reality is what tells
    frozen = max(
        wait["end_ns"] - wait["begin_ns"] - wait["took_ns"]
        for wait in ended
        if wait["clock"] == "monotonic"
    )
    resumed = max(wait["begin_ns"] for wait in ended) + frozen + 1
    summary = {"blackout_ns": frozen, "continuity_ns": 0, "virtual": {"realtime": resumed}}
    verdicts = {wait["row"]: verdict(wait, Moves([summary])) for wait in ended}
    wrong = {row: what for row, what in verdicts.items() if what != RIGHT}
    print(f"frozen for {frozen / MS:.1f} ms: {wrong or 'right'}")
    return frozen, wrong


def test_cancelled(timeshim: Timeshim, corpus: Path) -> None:
    """Every wait that is a cancellation point natively is one still."""
    command = [str(corpus), "/", "0", "cancelled", "spans", "sockets"]
    native = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    assert '"cancelled": 34, "of": 34' in native.stdout
    assert timeshim.output("run", "--", *command) == native.stdout


def test_what_need_not_wait(timeshim: Timeshim, program: Program) -> None:
    """Bad arguments and time-outs of 0 have the same results as without the shim."""
    refusals = program("refusals")
    native = subprocess.run(
        [refusals], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    assert timeshim.output("run", "--", refusals).splitlines() == native.splitlines()

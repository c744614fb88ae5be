"""Migrations over ssh between virtual machines: another kernel and libc, other boots, another TSC.

`fast` has this machine's TSC frequency, `slow` one of exactly 1.000 GHz. Both are interpreted, and
their CLOCK_REALTIME agree to some milliseconds only; so what a clock is measured against here is not
as sharp as between namespace hosts. That it neither goes back nor jumps is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from harness.machines import NEEDS, MachineSpec, machines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Program

    from harness.machines import Machine

MS = 1_000_000
REALTIME_MS = 150  # what two machines' CLOCK_REALTIME may differ by, and drift meanwhile
PPM = 100

missing = [program for program in NEEDS if not shutil.which(program)]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="virtual machines' network takes root"),
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.timeout(400),  # the first test builds the image and boots
]


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Machine, Machine]]:
    with machines(MachineSpec("fast"), MachineSpec("slow", slow_tsc=True)) as (fast, slow):
        yield fast, slow


def tasks(machine: Machine) -> list[dict[str, Any]]:
    return json.loads(machine.run("timeshim", "ps", "--json").stdout)  # type: ignore[no-any-return]


def clocks(machine: Machine, task: str) -> dict[str, Any]:
    printed = machine.run("timeshim", "clocks", "--json", task).stdout
    return json.loads(printed)  # type: ignore[no-any-return]


def end(machine: Machine, name: str) -> list[dict[str, Any]]:
    """Send SIGTERM to a task, wait until it has ended, and return what it printed there."""
    (task,) = (task for task in tasks(machine) if task["name"] == name)
    machine.run("kill", "-TERM", str(task["pids"][0]))
    deadline = time.monotonic() + 60
    while any(task["name"] == name for task in tasks(machine)):
        assert time.monotonic() < deadline
    return [json.loads(line) for line in machine.run("timeshim", "logs", name).stdout.splitlines()]


@pytest.fixture(scope="module")
def kept(pair: tuple[Machine, Machine]) -> Iterator[Machine]:
    """Keep a task on a machine that it shall not leave."""
    fast, _ = pair
    fast.run("timeshim", "run", "--detach", "--name", "kept", "--", "sleep", "1000")
    yield fast
    end(fast, "kept")


def refusal(kept: Machine, host: str) -> str:
    """Try to move the task; return the sentence that says why it did not, and runs on here."""
    done = kept.run("timeshim", "migrate", "kept", host, check=False)
    (task,) = (task for task in tasks(kept) if task["name"] == "kept")
    assert (done.returncode, task["state"], task["migrations"]) == (1, "running", 0)
    assert done.stderr.startswith("timeshim: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_another_tsc_frequency_is_refused(kept: Machine) -> None:
    sentence = refusal(kept, "ssh root@slow")
    there = re.search(r"that of ssh root@slow at ([0-9.]+) MHz", sentence)
    assert there, sentence
    assert abs(float(there[1]) - 1000) < 1000 * PPM / 1e6
    assert "--scale-tsc" in sentence


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("-o GlobalKnownHostsFile=/dev/null", "Host key verification failed"),
        (
            "-F /dev/null -o BatchMode=yes -o GlobalKnownHostsFile=/seed/ssh/known_hosts",
            "Permission denied",
        ),
        ("-p 23", "Connection refused"),
    ],
    ids=["host key", "client key", "port"],
)
def test_what_ssh_refuses(kept: Machine, options: str, says: str) -> None:
    assert says in refusal(kept, f"ssh {options} root@slow")


def test_clocks_over_ssh_to_another_tsc_and_back(
    pair: tuple[Machine, Machine], program: Program
) -> None:
    fast, slow = pair
    for machine in pair:
        machine.put(program("watch"))
    # nice, for it never sleeps, and a machine has one slow CPU
    command = ("--monotonic=+1d", "--", "nice", "-n19", str(program("watch")), "1")
    fast.run("timeshim", "run", "--detach", "--name", "watch", *command)
    summaries = []
    rates = []
    for source, destination in ((fast, slow), (slow, fast)):
        host = f"ssh root@{destination.name}"
        moved = source.run("timeshim", "migrate", "--json", "--scale-tsc", "watch", host)
        summaries.append(json.loads(moved.stdout))
        first, last = clocks(destination, "watch"), clocks(destination, "watch")
        ticks, ns = (last["virtual"][key] - first["virtual"][key] for key in ("tsc", "monotonic"))
        rates.append(ticks * 1e9 / ns / last["tsc_frequency"]["virtual_hz"])
        assert "watch" not in {task["name"] for task in tasks(source)}
    (seen,) = end(fast, "watch")

    blackouts = [summary["blackout_ns"] for summary in summaries]
    print(f"blackouts {blackouts}, TSC rates {rates}, seen {seen}")
    assert all(abs(rate - 1) < PPM / 1e6 for rate in rates)
    assert seen["reads"] > 1000
    for clock in ("monotonic", "raw", "coarse", "boottime"):
        stood_still = 0 if clock == "boottime" else sum(blackouts)
        assert seen[clock]["backward"] == 0
        assert seen[clock]["gained_ns"] < REALTIME_MS * MS
        assert abs(seen[clock]["lost_ns"] - stood_still) < 2 * REALTIME_MS * MS


def measured(machine: Machine, seconds: int, least: int) -> list[dict[str, Any]]:
    """Return what the stopwatch printed on a machine, once that is enough."""
    deadline = time.monotonic() + seconds
    while True:
        printed = machine.run("timeshim", "logs", "stopwatch").stdout
        lines = [json.loads(line) for line in printed.splitlines()]
        if len(lines) >= least:
            return lines
        assert time.monotonic() < deadline, lines


@pytest.mark.parametrize("tsc", ["patch", pytest.param("off", marks=pytest.mark.long)])
def test_a_second_stays_a_second(pair: tuple[Machine, Machine], program: Program, tsc: str) -> None:
    """A program that measured the TSC's frequency once, there and back again."""
    fast, slow = pair
    for machine in pair:
        machine.put(program("stopwatch"))
    command = (f"--tsc={tsc}", "--", str(program("stopwatch")))
    fast.run("timeshim", "run", "--detach", "--name", "stopwatch", *command)
    seen = [measured(fast, 60, 3)]
    for source, destination in ((fast, slow), (slow, fast)):
        host = f"ssh root@{destination.name}"
        source.run("timeshim", "migrate", "--scale-tsc", "stopwatch", host)
        seen.append(measured(destination, 60, 4))
    end(fast, "stopwatch")

    # the second that a move took place in is as exact as the moment of the move
    worst = [
        max(abs(line["off_ppm"]) for line in lines[hop > 0 :]) for hop, lines in enumerate(seen)
    ]
    moves = [lines[0]["off_ppm"] for lines in seen[1:]]
    print(f"--tsc={tsc}: {seen[0][0]['mhz']} MHz, off by {worst} ppm; where it moved by {moves}")
    if tsc == "patch":
        assert max(worst) < PPM
        assert not any(line["backward"] for lines in seen for line in lines)
    else:
        assert worst[1] > 500_000  # a second takes 2.6

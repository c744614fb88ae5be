"""Programs that do nothing but read clocks, moved so often that some are frozen in a read.

What one migration does to every interface is in the matrix, see test_surface.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from journey import journey
from mutant import Mutant

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Program, Timeshim

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")

MS = 1_000_000
SPINNER = f"spinner-{os.getpid()}"  # whatever else runs on this machine


def wrong_clocks(summaries: list[dict[str, Any]], threads: list[dict[str, Any]]) -> list[str]:
    """Say which clocks of `watch` did anything but stand still (BOOTTIME: go on) while frozen."""
    blackout = sum(summary["blackout_ns"] for summary in summaries)
    wrong = []
    for thread in threads:
        for clock in ("monotonic", "raw", "coarse", "boottime"):
            seen = thread[clock]
            # COARSE waits for a tick, which waits for a CPU; and RAW is not steered as REALTIME is
            slack = 50 * MS if clock == "coarse" else 1 * MS
            stood_still = 0 if clock == "boottime" else blackout
            if clock == "raw":
                slack += blackout // 1000 + 5 * MS
            error = seen["lost_ns"] - stood_still
            if seen["backward"]:
                wrong.append(f"{clock} went back {seen['backward']} times")
            if seen["gained_ns"] > slack:
                wrong.append(f"{clock} jumped by {seen['gained_ns'] / MS:.3f} ms")
            if abs(error) > slack:
                wrong.append(f"{clock} is off by {error / MS:.3f} ms")
    return wrong


LISTEN = """
import socket, time
server = socket.create_server(("", 7777))
time.sleep(1000)
"""
CONNECT = """
import socket, time
client = socket.create_connection(("127.0.0.1", 7777))
print("connected", flush=True)
time.sleep(1000)
"""


def test_a_connection_that_nobody_has_accepted_is_closed() -> None:
    """A busy server has some at any time, and CRIU refuses them unless it is told to skip them."""
    with journey(3) as trip:
        trip.launch(sys.executable, "-c", LISTEN)
        deadline = time.monotonic() + 20
        while "7777" not in trip.here.run("ss", "-lnt").stdout:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # it ends with its host
        client = trip.here.popen(sys.executable, "-c", CONNECT, stdout=subprocess.PIPE)
        assert client.stdout
        assert client.stdout.readline() == b"connected\n"
        trip.move()
        assert "7777" in trip.there.run("ss", "-lnt").stdout
        trip.terminate(trip.there)


def spin_in_place(
    timeshim: Timeshim, watch: Path, times: int, run: Callable[..., Any], *options: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Migrate three spinning readers so often on this host; return summaries and their reports."""
    run("run", "--detach", "--name", SPINNER, "--", watch, "3")
    summaries = [
        json.loads(timeshim.output("migrate", "--json", *options, SPINNER, ""))
        for _ in range(times)
    ]
    timeshim.end(SPINNER)
    printed = timeshim.output("logs", SPINNER)
    return summaries, [json.loads(line) for line in printed.splitlines()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("times", [15, pytest.param(50, marks=pytest.mark.long)])
def test_spinning_readers_over_migrations_in_place(
    timeshim: Timeshim, program: Program, times: int
) -> None:
    summaries, threads = spin_in_place(timeshim, program("watch"), times, timeshim.output)
    worst = max(summary["continuity_ns"] for summary in summaries)
    print(
        f"{sum(t['reads'] for t in threads)} readings of 4 clocks, {times} migrations, "
        f"continuity error at most {worst / MS:.3f} ms"
    )
    assert len(threads) == 3
    assert wrong_clocks(summaries, threads) == []


def test_without_the_check_the_spinning_readers_notice(
    timeshim: Timeshim, program: Program, tmp_path: Path
) -> None:
    """The look at the generation after a clock read is left out."""
    check = r"return likely\(__atomic_load_n\(&shim.clocks->generation.*?\);"
    mutant = Mutant(timeshim, tmp_path, "shim.h", check, "(void)seen;\n\treturn true;")
    summaries, threads = spin_in_place(timeshim, program("watch"), 15, mutant)
    wrong = wrong_clocks(summaries, threads)
    print(wrong)
    assert any("back" in what for what in wrong)

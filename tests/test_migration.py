"""Programs that read clocks and wait, moved between hosts whose clocks differ.

Every test runs in two worlds: with the time namespace that CRIU makes for a restored task, whose
clocks then nearly go on by themselves, and without it, where only the page carries them. And each
is run without the shim as well, where it must fail: else it would prove nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PRELOAD, Program, Timeshim, compile_c
from journey import journey

from preload.build import COMMON_FLAGS, SHIM_FLAGS, SHIM_LINK, SHIM_SOURCES
from timeshim.tasks import all_tasks, find

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")

MS = 1_000_000
WORLDS = {"time namespace": (), "page only": ("--no-time-namespace",)}
WAIT_MS = 2000
WAITS, TIMERS = 15, 2  # what waits.c waits for, and how much of that is timer descriptors
SPINNER = f"spinner-{os.getpid()}"  # whatever else runs on this machine

world = pytest.mark.parametrize("options", WORLDS.values(), ids=WORLDS)
direction = pytest.mark.parametrize("sign", [1, -1], ids=["ahead", "behind"])


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


@world
@direction
@pytest.mark.parametrize("clocks", ["shim", "none"])
def test_reads(program: Program, sign: int, options: tuple[str, ...], clocks: str) -> None:
    with journey(sign * 95_000) as trip:
        trip.launch(str(program("watch")), "2", clocks=clocks)
        time.sleep(0.3)
        summary = trip.move(*options)
        time.sleep(0.3)
        trip.terminate(trip.there)
        threads = trip.results(trip.there)
    wrong = wrong_clocks([summary], threads)
    print(
        f"blackout {summary['blackout_ns'] / MS:.1f} ms, "
        f"continuity error at most {summary['continuity_ns'] / MS:.3f} ms; {wrong or 'all right'}"
    )
    if clocks == "shim":
        assert wrong == []
    else:
        assert wrong != []


def wrong_waits(summary: dict[str, Any], waits: list[dict[str, Any]]) -> list[str]:
    """Say which of `waits` did not end when it should have, within 50 ms."""
    wrong = []
    for wait in waits:
        late = wait["took_ns"] - wait["asked_ns"]
        # a deadline on BOOTTIME comes nearer during the blackout, one on MONOTONIC does not
        blackout = 0 if wait["boottime"] else summary["blackout_ns"]
        late_in_reality = wait["real_ns"] - wait["asked_ns"] - blackout
        if wait["returned"] != "as expected":
            wrong.append(f"{wait['wait']} returned {wait['returned']}")
        if not 0 <= late < 50 * MS:
            wrong.append(f"{wait['wait']} was late by {late / MS:.1f} ms on its own clock")
        if not -MS <= late_in_reality < 50 * MS:
            wrong.append(f"{wait['wait']} was late by {late_in_reality / MS:.1f} ms in reality")
    return wrong


@world
@direction
@pytest.mark.parametrize("clocks", ["shim", "none"])
def test_waits(program: Program, sign: int, options: tuple[str, ...], clocks: str) -> None:
    with journey(sign * 3) as trip:
        trip.launch(str(program("waits")), str(WAIT_MS), clocks=clocks)
        time.sleep(0.1)
        summary = trip.move(*options)
        waits = trip.results(trip.there)
    wrong = wrong_waits(summary, waits)
    if len(waits) < WAITS:
        wrong.append(f"{WAITS - len(waits)} waits did not end")
    print(
        f"{len(waits)} waits over a blackout of {summary['blackout_ns'] / MS:.1f} ms: "
        f"{wrong or 'all ended in time'}"
    )
    if clocks == "shim":
        assert summary["waits"] == WAITS - TIMERS
        assert wrong == []
    else:
        assert wrong != []


@world
@pytest.mark.xfail(strict=True, reason="CRIU lets POSIX timers count on before the task resumes")
def test_posix_timers(program: Program, options: tuple[str, ...]) -> None:
    with journey(3) as trip:
        trip.launch(str(program("waits")), str(WAIT_MS), "timers")
        time.sleep(0.1)
        summary = trip.move(*options)
        waits = trip.results(trip.there)
    assert wrong_waits(summary, [wait for wait in waits if wait["wait"].startswith("timer ")]) == []


@pytest.mark.parametrize("shift", ["+0s", "+497d", "-3s"])
def test_waits_under_an_offset(timeshim: Timeshim, program: Program, shift: str) -> None:
    printed = timeshim.output("run", "--monotonic", shift, program("waits"), "300", "timers")
    waits = [json.loads(line) for line in printed.splitlines()]
    assert len(waits) == WAITS + 2
    assert wrong_waits({"blackout_ns": 0}, waits) == []


@world
def test_there_and_back_again(program: Program, options: tuple[str, ...]) -> None:
    """A task that CRIU put into a time namespace once is dumped from it the next time."""
    summaries = []
    with journey(95_000) as trip:
        trip.launch(str(program("watch")), "2")
        for hop in range(6):
            time.sleep(0.1)
            summaries.append(trip.move(*options, back=hop % 2 == 1))
        trip.terminate(trip.here)
        threads = trip.results(trip.here)
    assert wrong_clocks(summaries, threads) == []


def spin_in_place(
    timeshim: Timeshim, watch: Path, times: int, run: Callable[..., Any], *options: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Migrate three spinning readers so often on this host; return summaries and their reports."""
    run("run", "--detach", "--name", SPINNER, "--", watch, "3")
    summaries = [
        json.loads(timeshim.output("migrate", "--json", *options, SPINNER, ""))
        for _ in range(times)
    ]
    os.kill(find(SPINNER).pids()[0], signal.SIGTERM)
    deadline = time.monotonic() + 20
    while any(task.name == SPINNER for task in all_tasks()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    printed = timeshim.output("logs", SPINNER)
    return summaries, [json.loads(line) for line in printed.splitlines()]


@pytest.mark.timeout(300)
def test_spinning_readers_over_fifty_migrations_in_place(
    timeshim: Timeshim, program: Program
) -> None:
    summaries, threads = spin_in_place(timeshim, program("watch"), 50, timeshim.output)
    worst = max(summary["continuity_ns"] for summary in summaries)
    print(
        f"{sum(t['reads'] for t in threads)} readings of 4 clocks, 50 migrations, "
        f"continuity error at most {worst / MS:.3f} ms"
    )
    assert len(threads) == 3
    assert wrong_clocks(summaries, threads) == []


@pytest.fixture
def without_the_check(tmp_path: Path) -> Path:
    """Build a shim that does not look at the generation again after a clock read."""
    source = tmp_path / "preload"
    shutil.copytree(PRELOAD, source, ignore=shutil.ignore_patterns("__pycache__"))
    header = source / "shim.h"
    text, changed = re.subn(
        r"return likely\(__atomic_load_n\(&shim.clocks->generation.*?\);",
        "(void)seen;\n\treturn true;",
        header.read_text(),
        flags=re.DOTALL,
    )
    assert changed == 1
    header.write_text(text)
    built = tmp_path / "built"
    built.mkdir()
    compile_c(
        built / "libtimeshim.so",
        *COMMON_FLAGS,
        *SHIM_FLAGS,
        *(source / name for name in SHIM_SOURCES),
        *SHIM_LINK,
        f"-Wl,--version-script={source / 'libtimeshim.map'}",
    )
    compile_c(built / "reaper", source / "reaper.c")
    return built


def test_without_the_check_the_spinning_readers_notice(
    timeshim: Timeshim, program: Program, without_the_check: Path
) -> None:
    def run(*arguments: str | Path) -> None:
        launcher = (
            "import sys, pathlib, timeshim.tasks; from harness.cli import main; "
            f"timeshim.tasks.BUILT = pathlib.Path({str(without_the_check)!r}); main()"
        )
        subprocess.run(
            [sys.executable, "-c", launcher, *arguments], check=True, env=timeshim.env, timeout=30
        )

    summaries, threads = spin_in_place(timeshim, program("watch"), 15, run)
    wrong = wrong_clocks(summaries, threads)
    print(wrong)
    assert any("back" in what for what in wrong)

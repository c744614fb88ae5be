"""The task's own time namespace: what the kernel says of time agrees with what the shim says.

And for programs that no shim reaches (`--clocks=kernel`), it is all that they have.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from conftest import CORPUS, PROGRAMS, Program, Timeshim, compile_c
from journey import TIMESHIM, direction, journey
from test_run import refused, unprivileged

from timeshim import timens
from timeshim.clocks import NSEC
from timeshim.control import Control
from timeshim.tasks import find

if TYPE_CHECKING:
    from pathlib import Path

    from timeshim.tasks import Task

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="time namespaces take root")

MS = 1_000_000
DAY = 86400
PAGE_ONLY = "--no-time-namespace"


def agree(seen: dict[str, int], *, restored_ns: int = 0) -> list[str]:
    """Say what of `bypass` was apart from the shim by more than it may be.

    Args:
        seen: what it printed.
        restored_ns: how far ahead MONOTONIC may be, as it goes on during a restore.
    """
    most = {
        "boottime_apart_ns": MS,
        "monotonic_ahead_ns": restored_ns + MS,
        "monotonic_behind_ns": MS,
        "uptime_apart_ms": 1,
        "sysinfo_apart_s": 0,
        "btime_apart_s": 1,
        "backward": 0,
        "age_s": 20,
    }
    wrong = [f"{name}: {seen[name]}" for name, limit in most.items() if seen[name] > limit]
    return wrong + (["it is younger than 0"] if seen["age_s"] < 0 else [])


@pytest.mark.parametrize("span", ["+95000s", "+3s"])
def test_the_kernel_agrees_with_shifted_clocks(
    timeshim: Timeshim, program: Program, span: str
) -> None:
    def wrong(*options: str) -> list[str]:
        command = ("timeout", "1", program("bypass"))
        done = timeshim("run", f"--monotonic={span}", *options, "--", *command)
        return agree(json.loads(done.stdout))

    assert wrong() == []
    assert wrong(PAGE_ONLY) != []


@direction
@pytest.mark.parametrize("back", [False, True], ids=["there", "there and back"])
def test_the_kernel_agrees_after_a_migration(program: Program, sign: int, back: bool) -> None:
    def wrong(*options: str) -> tuple[dict[str, int], list[str]]:
        with journey(sign * 95_000) as trip:
            trip.launch(str(program("bypass")))
            time.sleep(0.3)
            summaries = [trip.move(*options)]
            time.sleep(0.3)
            if back:
                summaries.append(trip.move(*options, back=True))
                time.sleep(0.3)
            end = trip.here if back else trip.there
            trip.terminate(end)
            (seen,) = trip.results(end)
        return seen, agree(seen, restored_ns=sum(s["blackout_ns"] for s in summaries))

    seen, problems = wrong()
    print(seen)
    assert problems == []
    assert wrong(PAGE_ONLY)[1] != []


# Programs that no shim reaches ------------------------------------------------------------------


@pytest.fixture(params=["static", "musl", "go"])
def unreachable(request: pytest.FixtureRequest, program: Program, tmp_path: Path) -> Path:
    """Build a program that watches clocks without a libc that the shim could stand in front of."""
    built = tmp_path / "watch"
    if request.param == "static":
        return program("watch", "-static")
    if request.param == "musl":
        if not shutil.which("musl-gcc"):
            pytest.skip("there is no musl (Debian's musl-tools)")
        command = ["musl-gcc", "-D_GNU_SOURCE", "-O2", "-o", str(built), str(PROGRAMS / "watch.c")]
    else:
        if not shutil.which("go"):
            pytest.skip("there is no Go compiler (Debian's golang-go)")
        command = ["go", "build", "-o", str(built), str(PROGRAMS / "inline.go")]
    env = os.environ | {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOCACHE": str(tmp_path)}
    subprocess.run(command, env=env, check=True, timeout=200)
    return built


def wrong_clocks(summaries: list[dict[str, Any]], seen: dict[str, Any]) -> list[str]:
    """Say which clocks went back, or on by anything but what they should have."""
    blackout = sum(summary["blackout_ns"] for summary in summaries)
    advance = sum(summary["advance_ns"] for summary in summaries)
    wrong = []
    for clock, expected in (("boottime", 0), ("monotonic", blackout - advance)):
        error = seen[clock]["lost_ns"] - expected
        if seen[clock]["backward"]:
            wrong.append(f"{clock} went back {seen[clock]['backward']} times")
        if abs(error) > MS * len(summaries):
            wrong.append(f"{clock} is off by {error / MS:.3f} ms")
    return wrong


@direction
def test_programs_that_no_shim_reaches(unreachable: Path, sign: int) -> None:
    """Their threads do nothing but read, so freezing them outside of a read is put to the test."""

    def wrong(clocks: str) -> list[str]:
        with journey(sign * 95_000) as trip:
            trip.launch(str(unreachable), clocks=clocks)
            summaries = []
            for back in (False, True, False):
                time.sleep(0.2)
                summaries.append(trip.move(back=back))
            time.sleep(0.2)
            trip.terminate(trip.there)
            (seen,) = trip.results(trip.there)
        print([f"{s['advance_ns'] / MS:.1f} of {s['blackout_ns'] / MS:.1f}" for s in summaries])
        print(seen)
        assert all(0 <= s["advance_ns"] <= s["blackout_ns"] for s in summaries) or clocks == "none"
        return wrong_clocks(summaries, seen)

    assert wrong("kernel") == []
    assert wrong("none") != []


@direction
def test_absolute_waits_of_a_static_program(tmp_path: Path, sign: int) -> None:
    corpus = compile_c(tmp_path / "corpus", "-static", *sorted(CORPUS.glob("*.c")))
    with journey(sign * 3) as trip:
        trip.launch(str(corpus), "/", "6000", "deadlines", "timerfds", clocks="kernel")
        time.sleep(0.5)
        summary = trip.move()
        lines = trip.results(trip.there)
    ended = {line["row"]: line for line in lines if "row" in line}
    assert len(ended) > 20
    interrupted = {row for row, wait in ended.items() if wait["returned"] != wait["expected"]}
    assert interrupted == {
        *("sem_clockwait", "sem_timedwait"),
        *("syscall() futex WAIT", "syscall() futex WAIT_BITSET"),
    }
    # a span on REALTIME stands still over the restore, while the kernel's MONOTONIC goes on
    for row in ended.keys() - interrupted - {"timerfd relative REALTIME"}:
        late = ended[row]["took_ns"] - ended[row]["asked_ns"]
        bound = 100 * MS + 2 * ended[row]["machine_late_ns"]
        if row == "timerfd relative REALTIME":  # a span: it stands still, and MONOTONIC does not
            bound += summary["advance_ns"]
        assert 0 <= late < bound, f"{row} was late by {late / MS:.1f} ms"


def test_a_kernel_clock_read_is_never_frozen_half_way(timeshim: Timeshim, program: Program) -> None:
    """It would go on with one half from each host: there is no generation to look at again."""
    spinner = f"spinner-{os.getpid()}"
    timeshim.output(
        "run", "-d", "--clocks=kernel", "--name", spinner, "--", program("watch", "-static")
    )
    task = find(spinner)
    in_read = [freeze_and_look(task) for _ in range(20)]
    assert in_read == [False] * 20
    # the same program, frozen without regard to that
    caught = 0
    for _ in range(20):
        task.cgroup.freeze()
        caught += any(timens.reads_clock(pid) for pid in task.pids())
        task.cgroup.thaw()
        time.sleep(0.005)
    assert caught > 0


def freeze_and_look(task: Task) -> bool:
    """Freeze a task as a migration does, and tell whether one of its threads is in the vDSO."""
    time.sleep(0.005)
    with Control(task.control) as control:
        control("freeze")
        try:
            return any(timens.reads_clock(pid) for pid in task.pids())
        finally:
            control("resume")


def test_the_kernels_clocks_are_shifted(timeshim: Timeshim, program: Program) -> None:
    clocks = program("clocks", "-static")
    before = subprocess.check_output([clocks], text=True, timeout=10).split()
    shifted = timeshim.output("run", "--clocks=kernel", "--monotonic=+497d", clocks).split()
    realtime = {time.CLOCK_REALTIME, 5}  # 5 is its coarse sister
    for number, earlier, later in zip(before[::2], before[1::2], shifted[1::2], strict=True):
        days = (int(later) - int(earlier)) / (DAY * NSEC)
        assert 0 <= days - (0 if int(number) in realtime else 497) < 0.001, number


def test_what_is_said_of_it(program: Program) -> None:
    with journey(3) as trip:
        trip.launch(str(program("watch", "-static")), clocks="kernel")
        table = trip.here.run(TIMESHIM, "ps").stdout.splitlines()
        assert table[0].split()[3] == "CLOCKS"
        assert table[1].split()[3] == "kernel"
        command = (TIMESHIM, "migrate", "traveller", trip.host_there)
        refused = trip.here.run(*command, PAGE_ONLY, check=False)
        assert refused.returncode == 1
        assert "it needs a time namespace there" in refused.stderr
        said = trip.here.run(*command).stdout
        assert re.search(r"BOOTTIME within \d+ us, MONOTONIC \d+\.\d ms ahead", said), said


def test_where_it_cannot_be_had(timeshim: Timeshim, tmp_path: Path) -> None:
    user = unprivileged(timeshim, tmp_path)
    refused(user("run", "--clocks=kernel", "true"), "takes root")
    refused(timeshim("run", "--clocks=kernel", PAGE_ONLY, "true"), "leaves nothing of it")
    # no clock of a time namespace may be past 146 years (KTIME_SEC_MAX / 2); the shim's may
    most = f"--monotonic=+{2**62 // NSEC}s"
    refused(timeshim("run", "--clocks=kernel", most, "true"), "cannot have these clocks")
    read = ("python3", "-c", "import time; print(time.clock_gettime_ns(time.CLOCK_BOOTTIME))")
    assert int(timeshim.output("run", most, "--", *read)) > 2**62

"""Programs whose every reading of the TSC traps: where it is, what they make of SIGSEGV, moves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PRELOAD, Program, Timeshim
from journey import direction, journey, world

from timeshim.scan import scan_process

if TYPE_CHECKING:
    from pathlib import Path

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")
TRAPPED = ("run", "--tsc=trap", "--monotonic", "+1d")
SPINNER = f"trapped-spinner-{os.getpid()}"
AHEAD = 95_000


@pytest.fixture
def trapped(program: Program) -> Path:
    return program("trapped", f"-I{PRELOAD}")


def wrong(printed: str) -> list[str]:
    lines = [*map(json.loads, printed.splitlines())]
    assert lines
    return [line["what"] for line in lines if not line["right"]]


def test_wherever_it_is_read(timeshim: Timeshim, trapped: Path) -> None:
    assert wrong(timeshim.output(*TRAPPED, trapped, "reads")) == []
    native = subprocess.run([trapped, "reads"], capture_output=True, text=True, check=True)
    assert wrong(native.stdout) == []
    # what rewriting cannot reach
    rewritten = wrong(timeshim.output("run", "--monotonic", "+1d", trapped, "reads"))
    assert {"generated", "generated, aux", "unbounded"} <= set(rewritten)
    assert not {"compiled", "timeshim.h"} & set(rewritten)


def test_sigsegv_is_still_the_programs_own(timeshim: Timeshim, trapped: Path) -> None:
    assert wrong(timeshim.output(*TRAPPED, trapped, "handlers")) == []
    native = subprocess.run([trapped, "handlers"], capture_output=True, text=True, check=True)
    assert wrong(native.stdout) == []


@pytest.mark.parametrize("how", ["fault", "raised", "ignored", "once", "privileged"])
def test_it_ends_by_sigsegv(timeshim: Timeshim, trapped: Path, how: str) -> None:
    assert timeshim("run", "--tsc=trap", trapped, "end", how).returncode == 128 + signal.SIGSEGV
    native = subprocess.run([trapped, "end", how], check=False)
    assert native.returncode == -signal.SIGSEGV


@pytest.mark.parametrize(
    "how",
    [
        *("execve", "execl", "execvp", "syscall", "vfork", "failing"),
        *("posix_spawn", "posix_spawnp", "system", "popen"),
    ],
)
def test_programs_that_it_starts(timeshim: Timeshim, trapped: Path, how: str) -> None:
    printed = timeshim.output(*TRAPPED, trapped, "start", how)
    assert wrong(printed) == []
    assert ("generated" in printed) == (how != "failing")
    assert ("afterwards" in printed) == (not how.startswith("exec") and how != "syscall")


def test_with_an_empty_environment(timeshim: Timeshim, trapped: Path) -> None:
    assert wrong(timeshim.output(*TRAPPED, "sh", "-c", f"env -i {trapped} reads; :")) == []


def test_python(timeshim: Timeshim) -> None:
    script = (
        "import signal, subprocess, sys, threading, time, faulthandler; faulthandler.enable(); "
        "seen = []; t = threading.Thread(target=lambda: seen.append(time.monotonic())); "
        "t.start(); t.join(); "
        "subprocess.run([sys.executable, '-c', 'print(\"child\")'], check=True); "
        "print(time.monotonic() >= seen[0], abs(time.time() - time.clock_gettime(0)) < 5)"
    )
    assert timeshim.output(*TRAPPED, sys.executable, "-c", script).split() == [
        "child",
        "True",
        "True",
    ]


JAVA = """
public class Nulls {
    static int length(String text) { return text.length(); }
    static int deep(int i) { return deep(i + 1) + 1; }
    public static void main(String[] arguments) throws Exception {
        int caught = 0;
        long last = System.nanoTime();
        for (int i = 0; i < 300000; i++) {
            try { length(i % 3 == 0 ? null : "x"); } catch (NullPointerException e) { caught++; }
            if (i % 1000 == 0 && System.nanoTime() < last) System.out.println("back");
        }
        try { deep(0); } catch (StackOverflowError e) { caught++; }
        System.gc();
        System.out.println(caught);
    }
}
"""


def test_java_checks_for_null_by_sigsegv(timeshim: Timeshim, tmp_path: Path) -> None:
    java = shutil.which("java")
    if not java or not shutil.which("javac"):
        pytest.skip("no JDK")
    source = tmp_path / "Nulls.java"
    source.write_text(JAVA)
    subprocess.run(["javac", source], check=True, timeout=60)
    # -Xcheck:jni also complains of signal handlers that are not its own
    run = ("-Xcheck:jni", "-XX:-UsePerfData", "-cp", str(tmp_path), "Nulls")
    assert timeshim.output(*TRAPPED, "--", java, *run, timeout=60).split() == ["100001"]


def test_what_is_shown(timeshim: Timeshim, trapped: Path) -> None:
    timeshim.output(*TRAPPED, "--detach", "--name", SPINNER, trapped, "spin", "1")
    rows = json.loads(timeshim.output("ps", "--json"))
    (row,) = [row for row in rows if row["name"] == SPINNER]
    assert row["tsc"] == "trap"
    assert "TSC trapped" in timeshim.output("ps")
    pid = row["pids"][-1]
    objects = scan_process(pid)
    assert all(found.trapped and not found.uncovered for found in objects)
    assert "trapped" in timeshim.output("scan", str(pid))
    timeshim.end(SPINNER)


def test_what_is_refused(timeshim: Timeshim) -> None:
    for options in (("--clocks=none",), ("--tsc-skip=libfoo.so",)):
        done = timeshim("run", "--tsc=trap", *options, "true")
        assert done.returncode == 1
        assert done.stderr.startswith("timeshim: --tsc")
        assert done.stderr.count("\n") == 1


def check(threads: list[dict[str, Any]]) -> None:
    print(threads)
    assert len(threads) == 3
    for thread in threads:
        assert thread["reads"] > 100
        assert thread["backward"] == thread["unlike"] == 0
        # it stood still while nobody ran
        assert thread["most"] < thread["hz"]


@as_root
@pytest.mark.timeout(200)
def test_spinning_over_migrations_in_place(timeshim: Timeshim, trapped: Path) -> None:
    timeshim.output(*TRAPPED, "--detach", "--name", SPINNER, trapped, "spin", "3")
    for _ in range(20):
        timeshim.output("migrate", SPINNER, "")
    timeshim.end(SPINNER)
    check([*map(json.loads, timeshim.output("logs", SPINNER).splitlines())])


@as_root
@world
@direction
def test_there_and_back(trapped: Path, options: tuple[str, ...], sign: int) -> None:
    with journey(sign * AHEAD) as trip:
        start = ("--tsc=trap", "--monotonic", "+1d", *options)
        trip.launch(str(trapped), "spin", "3", options=start)
        time.sleep(0.2)
        assert trip.move(*options)["untrapped"] == 0
        time.sleep(0.2)
        assert trip.move(*options, back=True)["untrapped"] == 0
        time.sleep(0.2)
        trip.terminate(trip.here)
        check(trip.results(trip.here))


@as_root
def test_a_scaled_counter_goes_on(timeshim: Timeshim, trapped: Path) -> None:
    timeshim.output(*TRAPPED, "--detach", "--name", SPINNER, trapped, "spin", "3")
    for hop in range(4):
        there = "env TIMESHIM_TSC_HZ=2000000000" if hop % 2 == 0 else ""
        timeshim.output("migrate", "--scale-tsc", SPINNER, there)
    timeshim.end(SPINNER)
    check([*map(json.loads, timeshim.output("logs", SPINNER).splitlines())])


@as_root
def test_who_is_without_the_trap_stays_so(timeshim: Timeshim, trapped: Path) -> None:
    """As a thread is while it starts a program, which would not survive it."""
    timeshim.output(*TRAPPED, "--detach", "--name", SPINNER, trapped, "lifted")
    timeshim.output("migrate", SPINNER, "")
    timeshim.end(SPINNER)
    assert wrong(timeshim.output("logs", SPINNER)) == []

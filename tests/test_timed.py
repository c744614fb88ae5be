"""Programs in five languages, whose timers go off while they are moved from host to host.

What they do and how they are judged is in timed.py. Without the shim each must go wrong, or it would
prove nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import summary
from conftest import CFLAGS, PROGRAMS
from journey import journey
from timed import MS, Hop, Verdict, judge
from travel import AHEAD, HOPS, PAGE_ONLY, SHIFTED, blackouts, ends, there_and_back

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")

REAL = PROGRAMS / "real"


def need(*commands: str) -> None:
    """Skip a test for which something is not installed."""
    for command in commands:
        if not shutil.which(command):
            pytest.skip(f"{command} is not installed: harness/setup.sh test")


def build_cc(room: Path) -> list[str]:
    need("g++")
    flags = [flag for flag in CFLAGS if not flag.startswith("-std")]
    subprocess.run(
        ["g++", "-std=c++20", *flags, REAL / "timers.cc", "-o", room / "timers"],
        check=True,
        timeout=90,
    )
    return [str(room / "timers")]


def build_go(room: Path) -> list[str]:
    need("go", "gcc")
    environment = os.environ | {"CGO_ENABLED": "1", "GOCACHE": str(room / "cache")}
    subprocess.run(
        ["go", "build", "-o", room / "timers", REAL / "timers.go"],
        check=True,
        timeout=110,
        env=environment | {"GO111MODULE": "off"},
    )
    return [str(room / "timers")]


def build_java(room: Path) -> list[str]:
    need("java", "javac")
    subprocess.run(["javac", "-d", room, REAL / "Timers.java"], check=True, timeout=90)
    return ["java", "-Xmx128m", "-cp", str(room), "Timers"]


def build_node(room: Path) -> list[str]:
    need("node")
    (room / "timers.js").symlink_to(REAL / "timers.js")
    return ["node", str(room / "timers.js")]


def build_python(room: Path) -> list[str]:
    need("/usr/bin/python3")
    return ["/usr/bin/python3", str(shutil.copy(REAL / "timers.py", room))]


BUILD = {
    "C++": build_cc,
    "Go": build_go,
    "Java": build_java,
    "Node.js": build_node,
    "Python": build_python,
}


@pytest.fixture(scope="module")
def command(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[str]]:
    """Build a program, and return its language and the command that runs it."""
    language = request.param
    return language, BUILD[language](tmp_path_factory.mktemp("timers"))


languages = pytest.mark.parametrize("command", BUILD, indirect=True)


def await_waits(log: Path) -> None:
    """Wait until the program has got going."""
    deadline = time.monotonic() + 20
    while not log.exists() or log.read_text().count('"wait"') < 20:
        assert time.monotonic() < deadline, "the program does not begin"
        time.sleep(0.1)


@languages
@HOPS
def test_timers(command: tuple[str, list[str]], tmp_path: Path, hops: int) -> None:
    language, argv = command
    log = tmp_path / "log"
    with journey(AHEAD) as trip:
        trip.launch(*argv, str(log), options=SHIFTED)
        await_waits(log)
        summaries = there_and_back(trip, hops, lambda **_: time.sleep(0.9))
        until = time.time_ns()
        ends(trip, hops)
    verdict = judge(log, [Hop.of(summary) for summary in summaries], until)
    show(language, str(hops), blackouts(summaries), verdict)
    assert verdict.wrong == []


@languages
def test_timers_without_the_shim(command: tuple[str, list[str]], tmp_path: Path) -> None:
    language, argv = command
    log = tmp_path / "log"
    with journey(-AHEAD) as trip:
        trip.launch(*argv, str(log), clocks="none")
        await_waits(log)
        hop = Hop.of(trip.move(*PAGE_ONLY))
        time.sleep(1.5)
        until = time.time_ns()
        if trip.tasks(trip.there):
            trip.terminate(trip.there)
            time.sleep(0.5)
    verdict = judge(log, [hop], until)
    show(f"{language}, no shim", "1", f"{hop.blackout / MS:.0f}", verdict)
    print(f"{language}: {'; '.join(verdict.wrong)}")
    assert verdict.wrong != []


def show(program: str, hops: str, blackout: str, verdict: Verdict) -> None:
    """Add a row to the table that the tests end with."""
    summary.add(
        "Timers of programs that were moved (in ms: blackout median / most; the worst of all waits)",
        program=program,
        hops=hops,
        blackout=blackout,
        waits=verdict.waits,
        in_a_move=verdict.crossings,
        early=f"{verdict.early / MS:.1f}",
        late=f"{verdict.late / MS:.1f}",
        late_otherwise=f"{verdict.usual / MS:.1f}",
        readings=verdict.reads,
        backward=verdict.backward,
        clock_error=f"{verdict.step / MS:.1f}",
        wrong=len(verdict.wrong),
    )

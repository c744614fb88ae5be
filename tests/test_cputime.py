"""CPU time goes on counting over migrations, for children that come and go as well.

Every measure of it is in the matrix, see test_surface.py.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journey import TIMESHIM, journey

from timeshim.cputime import TICK_NS, Used

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Program

    from harness.hosts import Host

BURNT_US = 150_000  # what each process of usage.c, and of rebirth.c, uses


@given(st.integers(0, 10**15), st.floats(0, 1))
def test_rounding_up_is_never_below_what_was_read(total: int, share: float) -> None:
    """Whatever user and system were, given that they add up to the total."""
    user = min(int(total * share), total)
    system = total - user
    up = Used()
    up.set_rounded_up(total, user // TICK_NS, system // TICK_NS)
    assert up.total == total
    assert user <= up.user <= user + TICK_NS
    assert system <= up.system <= system + TICK_NS


FIELDS = ("utime", "stime", "minflt", "majflt", "inblock", "oublock", "nvcsw", "nivcsw", "maxrss")
TOUCHED, NAPS = 6000, 200  # pages and sleeps of each process of usage.c
MOST_US = 600_000  # what anything there uses beyond what it means to, and what ticks round


def printed(host: Host, lines: int) -> list[str]:
    """Wait until the task has printed so many lines on a host, and return them."""
    deadline = time.monotonic() + 30
    while True:
        found = host.run(TIMESHIM, "logs", "traveller").stdout.splitlines()
        if len(found) >= lines:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def wrong_usage(seen: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """Say what of `usage` went back, or counts less or more than was used."""
    wrong = []
    for who in ("SELF", "THREAD", "CHILDREN"):
        for name in FIELDS:
            went = seen[who][name]
            if went["backward"] or went["last"] < went["first"]:
                wrong.append(f"{name} of {who} went back: {went}")

    def check(what: str, used: dict[str, int], processes: int) -> None:
        time_us = used["utime"] + used["stime"]
        if not processes * BURNT_US <= time_us < processes * BURNT_US + MOST_US:
            wrong.append(f"{what} used {time_us} us")
        if not processes * TOUCHED <= used["minflt"] < (processes + 1) * TOUCHED:
            wrong.append(f"{what} had {used['minflt']} faults")
        if used["nvcsw"] < processes * NAPS:
            wrong.append(f"{what} slept {used['nvcsw']} times")
        if used["maxrss"] < TOUCHED * 4:
            wrong.append(f"{what} had {used['maxrss']} kB")

    plain, parent = seen["waited"]
    check("a child", plain, 1)
    check("a child with a child", parent, 2)
    check("all children", seen["all"], 6)
    check("the program after exec", again["self"], 1)
    if again["children"]["utime"] < seen["all"]["utime"]:
        wrong.append("exec forgot children")
    if not 6 * BURNT_US - 60_000 <= seen["cutime_us"] < 6 * BURNT_US + MOST_US:
        wrong.append(f"times() says {seen['cutime_us']} us of children")
    if seen["child_clock_us"] < BURNT_US:
        wrong.append(f"a child's clock says {seen['child_clock_us']} us")
    if not 50_000 <= seen["cpu_sleep_us"] < 120_000:
        wrong.append(f"a sleep on CPU time took {seen['cpu_sleep_us']} us of it")
    return wrong


@pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")
@pytest.mark.parametrize("clocks", ["shim", "none"])
def test_children_that_end_on_another_host(program: Program, clocks: str) -> None:
    with journey(95_000) as trip:
        trip.launch(str(program("usage")), clocks=clocks)
        printed(trip.here, lines=1)
        trip.move()
        time.sleep(0.2)
        trip.move(back=True)
        time.sleep(0.2)
        trip.terminate(trip.here)
        wrong = wrong_usage(*trip.results(trip.here))
    print(wrong or "all went on")
    if clocks == "shim":
        assert wrong == []
    else:
        assert len(wrong) >= 8


@pytest.mark.skipif(os.geteuid() != 0, reason="chooses process ids")
def test_a_new_process_does_not_inherit_from_one_of_its_id(program: Program) -> None:
    with journey(95_000) as trip:
        trip.launch(str(program("rebirth")))
        time.sleep(0.6)
        trip.move()
        time.sleep(0.05)
        trip.terminate(trip.there)
        seen = [json.loads(line) for line in printed(trip.there, lines=4)]
        trip.move(back=True)
        trip.terminate(trip.here)
        seen += trip.results(trip.here)
    assert sorted(line.pop("how") for line in seen) == sorted(2 * ["forked", "spawned", "seen"])
    assert all(used < BURNT_US // 2 for line in seen for used in line.values()), seen


@pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")
def test_time_of_a_command_that_moved(tmp_path: Path) -> None:
    """As bash has it: `time` of a child that ran on two hosts, and then `times`."""
    burnt, go_on = tmp_path / "burnt", tmp_path / "go on"
    child = tmp_path / "child"
    child.write_text(
        "for ((i = 0; i < 200000; i++)); do :; done\n"
        f"times >'{burnt}.part'; mv '{burnt}.part' '{burnt}'\n"
        f"while [[ ! -e '{go_on}' ]]; do sleep 0.05; done\n"
    )
    deadline = time.monotonic() + 30
    with journey(95_000) as trip:
        trip.launch("bash", "-c", f"TIMEFORMAT='%U %S'; time bash '{child}'; times")
        while not burnt.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        trip.move()
        go_on.touch()
        while trip.tasks(trip.there):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        timed, _, of_children = printed(trip.there, lines=3)
    before = cpu_seconds(burnt.read_text().splitlines()[0])
    print(before, timed, of_children)
    assert before > 0.1
    assert before <= sum(map(float, timed.split())) < before + 0.3
    assert before <= cpu_seconds(of_children) < before + 0.3


def cpu_seconds(line: str) -> float:
    """Add up what bash's `times` printed: minutes and seconds, of user and of system."""
    pairs = [time.removesuffix("s").split("m") for time in line.split()]
    return sum(60 * int(minutes) + float(seconds) for minutes, seconds in pairs)

"""Processes that begin, change and end within a task: the shim is in all, and no slot is left."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from journey import journey

from timeshim._native import lib
from timeshim.tasks import find

if TYPE_CHECKING:
    from conftest import Program, Timeshim

SHIM_MAPPED = "grep -qs /libtimeshim.so /proc/self/maps && echo shim"


def by_way(printed: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Key what `execs` prints by way and environment."""
    lines = [json.loads(line) for line in printed.splitlines()]
    return {(line.pop("way"), line.pop("environment")): line for line in lines}


def test_exec_keeps_the_shim_and_is_otherwise_native(timeshim: Timeshim, program: Program) -> None:
    execs = program("execs")
    done = subprocess.run([execs], check=True, capture_output=True, text=True, timeout=30)
    native = by_way(done.stdout)
    shimmed = by_way(timeshim.output("run", "--", execs))
    assert len(native) == 13 * 7
    assert shimmed.keys() == native.keys()
    for (way, environment), seen in shimmed.items():
        expected = native[way, environment]
        where = f"{way} with environment {environment}: {seen}, natively {expected}"
        assert seen.get("error") == expected.get("error"), where
        if "error" in seen:
            continue
        assert seen["shim"], where
        # `two` has a second LD_PRELOAD, the one that counts; getenv() finds the first
        if environment != "two":
            others, _, last = seen["preload"].rpartition(":")
            assert last.endswith("/libtimeshim.so"), where
            assert others == expected["preload"], where
        if environment != "inherited":
            added = 0 if environment in {"others", "two"} else 1
            assert seen["variables"] == expected["variables"] + added, where


@pytest.mark.parametrize(
    "command",
    [
        ["env", "-i", "sh", "-c", SHIM_MAPPED],
        ["env", "-u", "LD_PRELOAD", "sh", "-c", SHIM_MAPPED],
        ["sh", "-c", f"unset LD_PRELOAD; sh -c '{SHIM_MAPPED}'"],
        ["env", "LD_PRELOAD=libm.so.6", "sh", "-c", SHIM_MAPPED],
        ["sh", "-c", f"LD_PRELOAD=$LD_PRELOAD:libm.so.6 sh -c '{SHIM_MAPPED}'"],
    ],
)
def test_commands_that_clean_the_environment(timeshim: Timeshim, command: list[str]) -> None:
    assert timeshim.output("run", "--", *command) == "shim\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts something over the shim")
def test_where_the_shim_is_out_of_reach_the_environment_stays_as_it_is(timeshim: Timeshim) -> None:
    """The dynamic linker would complain to the program's users of what they never asked for."""
    hide = 'mount -t tmpfs none "${LD_PRELOAD%/*}"; env -i sh -c "echo \\"[\\$LD_PRELOAD]\\"" 2>&1'
    printed = timeshim("run", "--", "unshare", "-m", "sh", "-c", hide).stdout
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.skipif(os.geteuid() != 0, reason="chooses process ids")
def test_the_root_comes_first_although_process_ids_begin_again(timeshim: Timeshim) -> None:
    name = f"again-{os.getpid()}"
    forever = "while :; do sleep 0.05; done"
    timeshim.output("run", "--detach", "--name", name, "--", "sh", "-c", forever)
    deadline = time.monotonic() + 20
    while (pids := find(name).pids())[0] == min(pids):
        assert time.monotonic() < deadline
        Path("/proc/sys/kernel/ns_last_pid").write_text("300")
        time.sleep(0.06)
    assert Path(f"/proc/{pids[0]}/comm").read_text() == "reaper\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root")
def test_programs_that_are_started_after_root_was_given_up(timeshim: Timeshim) -> None:
    setpriv = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert timeshim.output("run", "--", *setpriv, "sh", "-c", SHIM_MAPPED) == "shim\n"


def owners(timeshim: Timeshim) -> dict[int, int]:
    """Return which thread owns which slot of the task of `launch_slots`."""
    tasks = json.loads(timeshim.output("ps", "--json"))
    (task,) = (task for task in tasks if task["name"] == "slots")
    with find(task["id"]).page() as page:
        slots = page._task.slot
        return {i: slots[i].owner for i in range(lib.TS_SLOTS) if slots[i].owner}


def launch_slots(
    timeshim: Timeshim, program: Program, *arguments: str, seconds: float = 20
) -> list[int]:
    """Launch `slots` and return what it prints once it has done its work."""
    timeshim.output("run", "--detach", "--name", "slots", "--", program("owners"), *arguments)
    deadline = time.monotonic() + seconds
    while not (printed := timeshim.output("logs", "slots")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return json.loads(printed)  # type: ignore[no-any-return]


def test_threads_that_come_and_go_leave_no_slot(timeshim: Timeshim, program: Program) -> None:
    launch_slots(timeshim, program, "churn", "50000", seconds=60)
    assert owners(timeshim) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="chooses thread ids")
@pytest.mark.parametrize("end", ["killed", "replaced", "alive"])
def test_a_slot_of_a_dead_thread_is_free_for_its_neighbour(
    timeshim: Timeshim, program: Program, end: str
) -> None:
    first, neighbour = launch_slots(timeshim, program, end)
    assert neighbour == first - 1
    if end == "alive":
        assert owners(timeshim) == {neighbour: neighbour, first: first, first + 1: neighbour}
    else:
        assert owners(timeshim) == {neighbour: neighbour, first: neighbour}


@pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")
@pytest.mark.timeout(300)
def test_a_thousand_orphans_migrate() -> None:
    """Their parent is gone before: they stay in the task because the reaper adopts them."""
    with journey(95_000) as trip:
        trip.launch("sh", "-c", "for i in $(seq 1000); do sleep 600 & done")
        deadline = time.monotonic() + 60
        while (task := trip.tasks(trip.here)[0])["covered"] != 1000 or len(task["pids"]) != 1001:
            assert time.monotonic() < deadline, task
            time.sleep(0.2)
        began = time.monotonic()
        summary = trip.move()
        print(f"{time.monotonic() - began:.1f} s, {summary['blackout_ns'] / 1e9:.1f} s frozen")
        (arrived,) = trip.tasks(trip.there)
        assert (len(arrived["pids"]), arrived["covered"]) == (1001, 1000)
        assert trip.tasks(trip.here) == []
        trip.terminate(trip.there)
        assert trip.results(trip.there) == []


def test_waiting_for_children_is_as_native(timeshim: Timeshim, program: Program) -> None:
    waiting = program("waiting")
    native = subprocess.run([waiting], capture_output=True, text=True, timeout=20, check=True)
    assert native.stdout.count("the child") >= 10
    assert timeshim.output("run", "--", waiting) == native.stdout

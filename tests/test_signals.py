"""Signals that arrive while a task is frozen: who handles them, and whose wait they interrupt.

A wait must end with EINTR if a handler ran in its thread, and for nothing else. The kernel says
EINTR in most of these whenever a thread is frozen, so it takes the supervisor's look at what is
pending to tell.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_failures import breaking
from test_waits import results

from harness.migrate import Options, Progress, migrate
from timeshim._native import lib
from timeshim.control import Control
from timeshim.page import Page
from timeshim.tasks import find, parent_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from conftest import Program, Timeshim

    from timeshim.tasks import Task

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")

WAIT_MS = 5000  # until it is frozen, on a busy machine
TGKILL = 234  # asm/unistd_64.h
NAME = f"signalled-{os.getpid()}"
WAITS = 26  # threads of signalled.c
RESTARTED = {"read without end", "sem_wait"}  # with SA_RESTART
MAIN = -1


def threads_of(task: Task) -> list[int]:
    """Return the program's threads, the main one first, once all of them are asleep."""
    pids = task.pids()
    (pid,) = set(pids) - {parent_of(pid) for pid in pids}
    deadline = time.monotonic() + 10
    quiet = 0
    while quiet < 5:
        states = [
            path.read_text().rpartition(")")[2].split()[0]
            for path in Path(f"/proc/{pid}/task").glob("*/stat")
        ]
        quiet = quiet + 1 if len(states) > 1 and set(states) == {"S"} else 0
        assert time.monotonic() < deadline
        time.sleep(0.01)
    threads = (int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())
    return sorted(threads, key=lambda thread: (thread != pid, thread))  # ids begin again


def signal_all(threads: list[int], first: int = 0, step: int = 1) -> None:
    for thread in threads[1 + first :: step]:
        assert ctypes.CDLL(None).syscall(TGKILL, threads[0], thread, signal.SIGUSR1) == 0


def signal_every_second(threads: list[int], first: int = 0) -> None:
    signal_all(threads, first, 2)


def signal_the_process(threads: list[int]) -> None:
    os.kill(threads[0], signal.SIGUSR1)


def fail_to_move(_: Timeshim, task: Task, send: Callable[[], None]) -> None:
    with Control(task.control) as control:
        control("freeze")
        send()
        time.sleep(0.1)
        control("resume")


def fail_after_the_restore(timeshim: Timeshim, task: Task, send: Callable[[], None]) -> None:
    """Let CRIU dump it too, which interrupts more waits than a freeze alone."""

    class Sender(Progress):
        def phase(self, name: str) -> None:
            if name == "dump":
                send()

    carrier = shlex.split(breaking("receiver killed with everything restored"))
    with pytest.raises(Exception, match="receiver"):
        migrate(task, carrier, Options(), Sender())
    assert timeshim.output("ps", "--json") != "[]"


def move(_: Timeshim, task: Task, send: Callable[[], None]) -> None:
    class Sender(Progress):
        def phase(self, name: str) -> None:
            if name == "dump":
                send()

    migrate(task, [], Options(), Sender())


def run(
    timeshim: Timeshim,
    program: Program,
    how: str,
    signal_them: Callable[[list[int]], None],
    journey: Callable[[Timeshim, Task, Callable[[], None]], None],
    within: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return what each thread says, the main one last."""
    command = [*within, str(program("signalled")), str(WAIT_MS), *([how] if how else [])]
    timeshim.output("run", "--detach", "--name", NAME, "--", *command)
    task = find(NAME)
    threads = threads_of(task)
    journey(timeshim, task, lambda: signal_them(threads))
    return results(timeshim, NAME)


def wrong(
    waits: list[dict[str, Any]], handlers: set[int], restarted: Iterable[str] = ()
) -> list[str]:
    """Say what is wrong if a handler is to run in these threads and no others."""
    handlers = {index % len(waits) for index in handlers}
    found = []
    for index, wait in enumerate(waits):
        times = int(index in handlers)
        interrupted = times and wait["wait"] not in {"main", *restarted}
        expected = "EINTR" if interrupted else wait["expected"]
        if (wait["returned"], wait["handled"]) != (expected, times):
            found.append(f"{wait['wait']}: {wait['returned']}, handled {wait['handled']} times")
    return found


journeys = pytest.mark.parametrize(
    "journey", [fail_to_move, fail_after_the_restore, move], ids=["frozen", "failed", "moved"]
)


@journeys
@pytest.mark.parametrize("first", [0, 1])
def test_for_threads(timeshim: Timeshim, program: Program, journey: Any, first: int) -> None:
    signal_them = functools.partial(signal_every_second, first=first)
    waits = run(timeshim, program, "", signal_them, journey)
    assert len(waits) == WAITS + 1
    assert wrong(waits, set(range(first, WAITS, 2))) == []


@journeys
def test_for_threads_whose_handler_restarts(
    timeshim: Timeshim, program: Program, journey: Any
) -> None:
    waits = run(timeshim, program, "restart", signal_all, journey)
    assert wrong(waits, set(range(WAITS)), RESTARTED) == []


@journeys
def test_for_the_process(timeshim: Timeshim, program: Program, journey: Any) -> None:
    """The main thread's, as Linux has it, although all of them could take it when they run on."""
    assert wrong(run(timeshim, program, "", signal_the_process, journey), {MAIN}) == []


@journeys
def test_for_the_process_when_its_main_thread_blocks(
    timeshim: Timeshim, program: Program, journey: Any
) -> None:
    assert wrong(run(timeshim, program, "main-blocks", signal_the_process, journey), {0}) == []


def test_in_a_pid_namespace_of_the_tasks_own(timeshim: Timeshim, program: Program) -> None:
    """Whose threads have other numbers there than the supervisor knows them by."""
    within = ("unshare", "--pid", "--fork")
    waits = run(timeshim, program, "", signal_every_second, fail_to_move, within)
    assert wrong(waits, set(range(0, WAITS, 2))) == []


@pytest.mark.parametrize(
    ("how", "signal_them"), [("block", signal_every_second), ("ignore", signal_the_process)]
)
def test_that_nobody_handles(
    timeshim: Timeshim, program: Program, how: str, signal_them: Any
) -> None:
    assert wrong(run(timeshim, program, how, signal_them, move), set()) == []


def test_an_event_wakes_one_of_those_who_wait_for_it(timeshim: Timeshim, program: Program) -> None:
    threads, events = 8, 100
    slept = int(timeshim.output("run", "--", program("herd"), str(threads), str(events)))
    assert events <= slept < 2 * events


def test_a_full_table_forgets_what_is_oldest(tmp_path: Path) -> None:
    with Page.create(tmp_path / "page", "mine", 10**9) as page:
        same_place = [77 + n * lib.TS_SIGNALLED for n in range(lib.TS_SIGNALLED_NEAR + 1)]
        for generation, thread in enumerate(same_place, start=5):
            page.restore_signalled({thread: generation})
        expected = dict(enumerate(same_place[1:], start=6))
        assert page.signalled() == {thread: at for at, thread in expected.items()}
        page.restore_signalled({same_place[3]: 99})
        assert page.signalled()[same_place[3]] == 99
        assert len(page.signalled()) == lib.TS_SIGNALLED_NEAR

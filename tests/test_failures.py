"""Migrations that fail: the task runs on where it was, its clocks too, and one sentence says why."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from journey import TIMESHIM, journey

from timeshim.cgroup import hierarchy
from timeshim.errors import Error
from timeshim.tasks import Task, find, runtime_dir

if TYPE_CHECKING:
    from conftest import Program, Timeshim
    from journey import Journey

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")

MS = 1_000_000
WATCHED = f"watched-{os.getpid()}"  # whatever else runs on this machine
USERFAULTFD = 323  # asm/unistd_64.h: a descriptor that CRIU does not know


def breaking(moment: str) -> str:
    """Return a HOST that means this host, by way of a carrier that breaks."""
    return shlex.join(
        [sys.executable, str(Path(__file__).with_name("breaking_carrier.py")), moment]
    )


def is_one_sentence(stderr: str) -> bool:
    return stderr.startswith("timeshim: ") and stderr.count("\n") == 1


class Watched:
    """A task on this host that watches its clocks."""

    def __init__(self, timeshim: Timeshim, program: Program) -> None:
        self.timeshim = timeshim
        timeshim.output("run", "--detach", "--name", WATCHED, "--", program("watch"), "2")

    def tasks(self) -> list[dict[str, Any]]:
        tasks = json.loads(self.timeshim.output("ps", "--json"))
        return [task for task in tasks if task["name"] == WATCHED]

    def await_state(self, state: str) -> dict[str, Any]:
        deadline = time.monotonic() + 15
        while True:
            tasks = self.tasks()
            if [task["state"] for task in tasks] == [state]:
                return tasks[0]
            assert time.monotonic() < deadline, tasks
            time.sleep(0.05)

    def wrong(self) -> list[str]:
        """End it and say what was wrong with its clocks: they may pause, and nothing else."""
        time.sleep(0.1)
        (task,) = self.tasks()
        os.kill(task["pids"][0], 15)
        deadline = time.monotonic() + 20
        while self.tasks():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        wrong = []
        threads = [json.loads(line) for line in self.timeshim.output("logs", WATCHED).splitlines()]
        assert len(threads) == 2
        for thread in threads:
            for clock in ("monotonic", "raw", "boottime"):
                seen = thread[clock]
                if seen["backward"]:
                    wrong.append(f"{clock} went back")
                if seen["gained_ns"] > MS:
                    wrong.append(f"{clock} jumped by {seen['gained_ns'] / MS} ms")
            if abs(thread["boottime"]["lost_ns"]) > MS:
                wrong.append(f"boottime is off by {thread['boottime']['lost_ns'] / MS} ms")
        return wrong


@pytest.fixture
def watched(timeshim: Timeshim, program: Program) -> Watched:
    return Watched(timeshim, program)


def leftovers(task: dict[str, Any]) -> list[str]:
    """Return what other copies of a task left on this host."""
    mine = Task(**{field.name: task[field.name] for field in fields(Task)}).place
    places = (runtime_dir(), hierarchy() / "timeshim", Path("/var/tmp"))
    found = [path for place in places for path in place.glob(f"*{task['id']}*")]
    return [str(path) for path in found if path.name != mine]


@pytest.mark.parametrize(
    "moment",
    [
        "receiver killed after the checks",
        "receiver killed at the first image",
        "receiver killed with everything restored",
        "network gone with everything restored",
        "Ctrl-C with everything restored",
        "source killed with everything restored",
    ],
)
def test_before_go_the_task_runs_on_here(timeshim: Timeshim, watched: Watched, moment: str) -> None:
    done = timeshim("migrate", WATCHED, breaking(moment))
    assert done.returncode != 0
    if not moment.startswith(("Ctrl-C", "source killed")):
        assert is_one_sentence(done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    task = watched.await_state("running")
    assert task["hop"] == 0
    deadline = time.monotonic() + 5
    while leftovers(task):
        assert time.monotonic() < deadline, leftovers(task)
        time.sleep(0.05)
    assert watched.wrong() == []


def test_another_migration_is_refused_and_disturbs_nothing(
    timeshim: Timeshim, watched: Watched
) -> None:
    done = timeshim("migrate", WATCHED, breaking("another migration with everything restored"))
    assert done.returncode == 0, done.stderr
    assert watched.await_state("running")["hop"] == 1
    assert watched.wrong() == []


def test_in_doubt_the_copy_here_stays_frozen_until_resolved_there(
    timeshim: Timeshim, watched: Watched
) -> None:
    """The destination runs, but its word was lost: resolve removes the copy here."""
    done = timeshim("migrate", WATCHED, breaking("network gone when it runs there"))
    assert done.returncode != 0
    assert is_one_sentence(done.stderr), done.stderr
    assert "resolve" in done.stderr
    assert sorted(task["state"] for task in watched.tasks()) == ["leaving", "running"]
    assert "runs on" in timeshim.output("resolve", WATCHED)
    assert watched.await_state("running")["hop"] == 1
    assert watched.wrong() == []


def test_in_doubt_the_copy_here_runs_on_if_it_never_ran_there(
    timeshim: Timeshim, watched: Watched
) -> None:
    done = timeshim("migrate", WATCHED, breaking("receiver killed before it hears go"))
    assert done.returncode != 0
    assert "resolve" in done.stderr
    watched.await_state("leaving")
    assert "never ran" in timeshim.output("resolve", WATCHED)
    assert watched.await_state("running")["hop"] == 0
    assert watched.wrong() == []


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("no-such-carrier-command", "cannot run 'no-such-carrier-command'"),
        ("sh -c 'echo b: no route to host >&2; exit 255'", "b: no route to host"),
        ("sh -c 'echo welcome to b; cat >/dev/null'", "instead of timeshim's greeting"),
        ("sh -c 'exit 3'", "exit status 3"),
        ("env TIMESHIM_CRIU=/nonexistent", "criu is not installed"),
        ("env TIMESHIM_TSC_HZ=1000000000", "1000.000 MHz"),
        ("env TIMESHIM_TSC_HZ=fast", "whole number of Hz"),
        ("setpriv --reuid=65534 --regid=65534 --clear-groups", "only be restored by root"),
    ],
)
def test_a_host_that_cannot_take_it(
    timeshim: Timeshim, watched: Watched, host: str, says: str
) -> None:
    done = timeshim("migrate", WATCHED, host)
    assert done.returncode == 1
    assert is_one_sentence(done.stderr), done.stderr
    assert says in done.stderr
    assert watched.await_state("running")["migrations"] == 0
    assert watched.wrong() == []


@pytest.mark.usefixtures("watched")
def test_a_tsc_mismatch_is_refused_with_both_figures_unless_allowed(timeshim: Timeshim) -> None:
    before = json.loads(timeshim.output("clocks", "--json", WATCHED))
    own = before["tsc_frequency"]["virtual_hz"]
    slow = f"env TIMESHIM_TSC_HZ={own // 2}"
    done = timeshim("migrate", WATCHED, slow)
    assert f"{own / 1e6:.3f} MHz" in done.stderr
    assert f"{own // 2 / 1e6:.3f} MHz" in done.stderr
    assert "--scale-tsc" in done.stderr
    timeshim.output("migrate", "--scale-tsc", WATCHED, slow)
    scaled = json.loads(timeshim.output("clocks", "--json", WATCHED))
    assert scaled["tsc_frequency"]["virtual_hz"] == own
    timeshim.output("migrate", WATCHED, "")
    after = json.loads(timeshim.output("clocks", "--json", WATCHED))
    assert before["virtual"]["tsc"] < scaled["virtual"]["tsc"] < after["virtual"]["tsc"]


def test_an_unknown_task(timeshim: Timeshim, watched: Watched) -> None:
    done = timeshim("migrate", "nobody", "")
    assert done.returncode == 1
    assert is_one_sentence(done.stderr)
    assert "'nobody'" in done.stderr
    assert WATCHED in done.stderr  # what there is instead
    assert watched.wrong() == []


def test_what_criu_cannot_dump(timeshim: Timeshim, tmp_path: Path) -> None:
    """CRIU's own reason is passed on, and the task goes on."""
    beat = tmp_path / "beat"
    script = f"""
import ctypes, os, time
ctypes.CDLL(None).syscall({USERFAULTFD}, 0)
while True:
    open({f"{beat}.new"!r}, "w").write(str(time.monotonic()))
    os.replace({f"{beat}.new"!r}, {str(beat)!r})  # so that it is never read empty
    time.sleep(0.01)
"""
    timeshim.output(
        "run", "--detach", "--name", f"stuck-{os.getpid()}", "--", sys.executable, "-c", script
    )
    done = timeshim("migrate", f"stuck-{os.getpid()}", "")
    assert done.returncode == 1
    assert is_one_sentence(done.stderr), done.stderr
    assert "criu: " in done.stderr
    before = beat.read_text()
    time.sleep(0.2)
    assert beat.read_text() != before


def assert_refused(trip: Journey, host: str, says: str) -> None:
    """Migrate, and require that it fails with this in its one sentence and the task runs on."""
    done = trip.here.run(TIMESHIM, "migrate", "traveller", host, check=False)
    assert done.returncode == 1
    assert is_one_sentence(done.stderr), done.stderr
    assert says in done.stderr
    assert [task["state"] for task in trip.tasks(trip.here)] == ["running"]


def test_a_destination_without_the_program(program: Program) -> None:
    with journey(0) as trip:
        trip.here.run("cp", str(program("watch")), "/run/program")
        trip.launch("/run/program", "1")
        assert_refused(trip, trip.host_there, "/run/program, which does not exist here")


def test_a_destination_without_room(program: Program) -> None:
    with journey(0) as trip:
        trip.there.run("mount", "-o", "remount,size=2m", "/run")
        trip.there.run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", "/var/tmp")
        trip.launch(str(program("watch")), "1")
        assert_refused(trip, trip.host_there, "no room for the images")


def test_a_disk_that_fills_up_on_the_way(program: Program) -> None:
    with journey(0) as trip:
        trip.there.run("mount", "-o", "remount,size=32m", "/run")
        trip.launch(str(program("watch")), "1")
        host = f"{trip.host_there} {breaking('disk full at the first image')}"
        assert_refused(trip, host, "No space left on device")
        assert trip.tasks(trip.there) == []


def test_a_page_that_was_damaged_is_noticed(timeshim: Timeshim, watched: Watched) -> None:
    """A truncated page would raise SIGBUS in the supervisor; it is never trusted that far."""
    shared = find(watched.tasks()[0]["id"]).shared
    shutil.copy(shared / "page", shared / "kept")
    (shared / "page").unlink()
    (shared / "page").write_bytes(b"short")
    done = timeshim("migrate", WATCHED, "")
    assert done.returncode == 1
    assert is_one_sentence(done.stderr), done.stderr
    assert "is not a page" in done.stderr


def test_late_cleaning_up_leaves_the_next_attempt_alone(timeshim: Timeshim) -> None:
    """A receiver that was killed leaves that to its supervisor, which may be slow."""
    timeshim.output("run", "--detach", "--name", WATCHED, "--", "sleep", "1000")
    task = find(WATCHED)
    first, second = (
        Task(id=task.id, name=WATCHED, argv=[], clocks="shim", hop=1, capsule=True)
        for _ in range(2)
    )
    first.make_room(10**9)
    with pytest.raises(Error, match="on its way here"):
        second.make_room(10**9)
    first.remove()
    second.make_room(10**9)
    first.remove()
    assert second.cgroup.path.exists()
    assert second.page().attached == 0
    second.remove()
    assert leftovers(asdict(task)) == []


@pytest.mark.parametrize("moment", ["network gone with everything restored", None])
def test_what_was_printed_before_stays(timeshim: Timeshim, moment: str | None) -> None:
    timeshim.output(
        "run", "--detach", "--name", WATCHED, "--", "sh", "-c", "echo before; sleep 1000"
    )
    done = timeshim("migrate", WATCHED, breaking(moment) if moment else "")
    assert (done.returncode == 0) == (moment is None)
    assert timeshim.output("logs", WATCHED) == "before\n"

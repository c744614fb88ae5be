"""`timeshim run`, `ps` and `clocks`, as a user meets them: real tasks, looked at from outside.

A reading is checked by bracketing: what the host's clock said before the program started, and
after it ended, plus the offset that was asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import Program, Timeshim, let_others_in

from timeshim import timens
from timeshim._native import ffi, lib
from timeshim.cgroup import Cgroup
from timeshim.errors import Error
from timeshim.tasks import Task, find, runtime_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

NSEC = 10**9
DAY = 86400 * NSEC
NOBODY = 65534
ROOT = Path(__file__).parents[1]
READ = "import time; print(time.monotonic_ns())"
LATE = 3 * NSEC  # what a loaded machine may add to a wait; a wrong clock adds days

# Both ways, as far back as clocks go that may not be negative.
BEHIND = -int(time.monotonic() - 30)
SHIFTS = pytest.mark.parametrize("shift", ["+497d", f"{BEHIND}s", "+0"])

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace and a cgroup take root")


def seconds_of(shift: str) -> int:
    return int(shift.rstrip("sd")) * (86400 if shift.endswith("d") else 1)


def ahead(before: int, reading: int, after: int) -> float:
    """Return a reading's offset in days, having checked that it lies in the bracket."""
    days = (reading - before) // DAY
    assert before + days * DAY <= reading <= after + days * DAY
    return days


@contextmanager
def running(timeshim: Timeshim, *arguments: str | Path) -> Iterator[tuple[Any, Task]]:
    """Start a task under a name of its own; yield the process of `run`, and the task."""
    name = f"test-{uuid.uuid4()}"
    with timeshim.start("run", "--name", name, *arguments) as process:
        try:
            yield process, wait_for_task(name)
        finally:
            process.terminate()
            timeshim.kill()


def wait_for_task(name: str) -> Task:
    """Find a task that is being launched, once its supervisor has it attached."""
    deadline = time.monotonic() + 20
    while True:
        try:
            task = find(name)
            with task.page() as page:
                if page.attached:
                    return task
        except Error:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def owned_slots(task: Task) -> list[Any]:
    """Return copies of the slots that some thread owns."""
    found = []
    base = lib.TS_TASK_AREA + ffi.offsetof("struct ts_task_area", "slot")
    size = ffi.sizeof("struct ts_slot")
    with task.page() as page:
        for start, data in page.task_area().items():
            first = max(0, base - start)
            for at in range(first, len(data), size):
                slot = ffi.new("struct ts_slot *")
                ffi.buffer(slot)[:] = data[at : at + size]
                if slot.owner:
                    found.append(slot)
    return found


# What a program sees of being launched by us ----------------------------------------------------


def test_output_and_status_pass_through(timeshim: Timeshim) -> None:
    done = timeshim("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_death_by_a_signal_is_128_more(timeshim: Timeshim, number: int) -> None:
    done = timeshim("run", "--", "sh", "-c", f"kill -{int(number)} $$")
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


def test_order_is_kept_where_both_outputs_are_one(timeshim: Timeshim) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo $i; echo e$i >&2; done"
    done = timeshim("run", "--", "sh", "-c", script, stderr=subprocess.STDOUT)
    assert done.stdout.split() == [word for i in range(1, 10) for word in (f"{i}", f"e{i}")]


def test_much_output_arrives_whole(timeshim: Timeshim) -> None:
    done = timeshim.output("run", "--", "seq", "1", "200000")
    assert done.split() == [str(i) for i in range(1, 200001)]


def test_a_closed_pipe_ends_the_program(timeshim: Timeshim) -> None:
    with timeshim.start("run", "--", "yes") as process:
        assert process.stdout
        assert process.stdout.readline() == "y\n"
        process.stdout.close()
        assert process.wait(20) == 128 + signal.SIGPIPE
    assert timeshim.ends()


def test_stdin_is_empty_and_there_is_no_terminal(timeshim: Timeshim) -> None:
    script = "readlink /proc/self/fd/0; wc -c; (: </dev/tty) 2>/dev/null || echo none"
    with (ROOT / "pyproject.toml").open() as file:
        lines = timeshim.output("run", "--", "sh", "-c", script, stdin=file).split()
    assert lines == ["/dev/null", "0", "none"]


def test_only_the_standard_descriptors_are_inherited(timeshim: Timeshim) -> None:
    with (ROOT / "pyproject.toml").open() as file:
        os.set_inheritable(file.fileno(), True)
        found = timeshim.output("run", "--", "ls", "/proc/self/fd", close_fds=False)
    assert found.split() == ["0", "1", "2", "3"]  # 3 is the directory itself


@as_root
def test_it_has_a_session_and_a_pid_namespace(timeshim: Timeshim) -> None:
    script = "echo $$; readlink /proc/self/ns/pid; cut -d' ' -f6 /proc/$$/stat"
    pid, namespace, session = timeshim.output("run", "--", "sh", "-c", script).split()
    assert 1 < int(pid) < 50
    assert 1 < int(session) <= int(pid)
    assert namespace != str(Path("/proc/self/ns/pid").readlink())


def test_orphans_are_adopted_and_awaited(timeshim: Timeshim) -> None:
    """The task ends when its last process has, with the status of the first."""
    script = "(sh -c 'sleep 0.3; echo parent $(cut -d\" \" -f4 /proc/$$/stat)' &); exit 3"
    started = time.monotonic()
    done = timeshim("run", "--", "sh", "-c", script)
    assert time.monotonic() - started >= 0.3
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith("parent ")
    if os.geteuid() == 0:
        assert done.stdout == "parent 2\n"  # the reaper; 1 is the supervisor
    assert timeshim.ends()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_program(timeshim: Timeshim, number: int) -> None:
    # in Python, for a shell does not trap what was ignored when it started, as by nohup
    script = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit('caught'))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with timeshim.start("run", "--", "python3", "-c", script) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=20) == ("", "caught\n")
        assert process.returncode == 1
    assert timeshim.ends()


# Clocks ---------------------------------------------------------------------------------------


def test_monotonic_is_shifted_by_what_was_asked_for(timeshim: Timeshim) -> None:
    for arguments, days in (((), 0), (("--monotonic", "+497d"), 497)):
        before = time.monotonic_ns()
        reading = int(timeshim.output("run", *arguments, "--", "python3", "-c", READ))
        assert ahead(before, reading, time.monotonic_ns()) == days


def test_which_clocks_are_shifted(timeshim: Timeshim, program: Program) -> None:
    native = [subprocess.check_output([program("clocks")], text=True, timeout=10)]
    shifted = timeshim.output("run", "--monotonic", "+497d", program("clocks"))
    native.append(subprocess.check_output([program("clocks")], text=True, timeout=10))
    before, reading, after = (
        {int(clock): int(ns) for clock, ns in map(str.split, text.splitlines())}
        for text in (native[0], shifted, native[1])
    )
    assert before.keys() == reading.keys() == after.keys()
    realtime = {time.CLOCK_REALTIME, 5}  # 5 is its coarse sister
    for clock, ns in reading.items():
        expected = 0 if clock in realtime else 497
        assert ahead(before[clock], ns, after[clock]) == expected, clock


def test_without_the_shim_nothing_is_shifted(timeshim: Timeshim) -> None:
    before = time.monotonic_ns()
    reading = int(timeshim.output("run", "--clocks=none", "--", "python3", "-c", READ))
    assert before <= reading <= time.monotonic_ns()


def test_grandchildren_and_threads_are_covered(timeshim: Timeshim, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, threading, time\n"
        "def read(): print(time.monotonic_ns(), flush=True)\n"
        "print(os.environ['LD_PRELOAD'], flush=True)\n"
        "for target in (read, read):\n"
        "    thread = threading.Thread(target=target); thread.start(); thread.join()\n"
        "if not os.fork():\n"
        "    read(); os._exit(0)\n"
        "os.wait()\n"
    )
    before = time.monotonic_ns()
    nested = f'sh -c "python3 {script}; :"; :'
    preload, *readings = timeshim.output(
        "run", "--monotonic", "+497d", "--", "sh", "-c", nested
    ).split()
    assert preload.endswith("/libtimeshim.so")
    assert len(readings) == 3
    after = time.monotonic_ns()
    assert {ahead(before, int(reading), after) for reading in readings} == {497}


def test_a_preload_of_the_users_stays(timeshim: Timeshim, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    source = tmp_path / "other.c"
    source.write_text("int other;\n")
    subprocess.run(["cc", "-shared", source, "-o", other], check=True, timeout=30)
    preload = timeshim.output(
        "run", "--", "sh", "-c", "echo $LD_PRELOAD", env=timeshim.env | {"LD_PRELOAD": str(other)}
    )
    theirs, ours = preload.strip().split(":")
    assert ours.endswith("/libtimeshim.so")
    assert theirs == str(other)


@SHIFTS
def test_python_waits_end_on_time(timeshim: Timeshim, shift: str) -> None:
    script = (
        (
            "import threading, time\n"
            "for wait in (time.sleep, threading.Event().wait, threading.Lock().acquire):\n"
            "    begin = time.monotonic_ns()\n"
            "    wait(0.05) if wait is not threading.Lock else 0\n"
            "    print(time.monotonic_ns() - begin)\n"
        )
        .replace(", threading.Lock().acquire", "")
        .replace(" if wait is not threading.Lock else 0", "")
    )
    before = time.monotonic_ns()
    lines = timeshim.output(
        "run", "--monotonic", shift, "--", "python3", "-c", script + READ
    ).split()
    *waits, reading = map(int, lines)
    assert len(waits) == 2
    assert all(NSEC // 20 <= took < LATE for took in waits)
    assert before <= reading - seconds_of(shift) * NSEC <= time.monotonic_ns()


def test_senseless_deadlines_fail_as_without_the_shim(timeshim: Timeshim, program: Program) -> None:
    command = [str(program("deadlines")), "invalid"]
    native = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert " 22/" in native.stdout
    assert timeshim.output("run", "--monotonic", "+497d", *command) == native.stdout


# Slots ----------------------------------------------------------------------------------------


def proceed(process: Any, go: Path, step: int, expected: str, task: Task) -> list[Any]:
    """Await a line of slots.c, return the slots in use then, and let it go on."""
    assert process.stdout.readline() == f"{expected}\n"
    slots = owned_slots(task)
    go.with_name(f"{go.name}{step}").touch()
    return slots


def test_cancellation_frees_the_slot(timeshim: Timeshim, program: Program, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with running(timeshim, program("slots"), "cancel", go) as (process, task):
        waiting = proceed(process, go, 1, "waiting", task)
        assert len(waiting) == 4
        assert all(slot.armed and slot.clock == lib.TS_MONOTONIC for slot in waiting)
        assert proceed(process, go, 2, "cancelled", task) == []
        assert process.wait(20) == 0


def test_a_handler_that_waits_nests(timeshim: Timeshim, program: Program, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with running(timeshim, "--monotonic", "+497d", program("slots"), "nest", go) as (process, task):
        outer, inner = sorted(
            proceed(process, go, 1, "nested", task), key=lambda slot: -int(slot.frame)
        )
        assert outer.owner == inner.owner
        assert outer.armed
        assert inner.armed
        assert inner.deadline.sec - outer.deadline.sec > 3000
        assert proceed(process, go, 2, "unwound", task) == []
        err, inner_late, outer_late = map(int, process.stdout.readline().split())
        assert err == 110
        assert 0 <= inner_late < LATE
        assert 0 <= outer_late < LATE
        assert process.wait(20) == 0


def test_a_slot_left_by_longjmp_is_reused(
    timeshim: Timeshim, program: Program, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with running(timeshim, program("slots"), "jump", go) as (process, task):
        assert len(proceed(process, go, 1, "left", task)) == 1  # not one for each of 20
        assert proceed(process, go, 2, "waited", task) == []
        assert process.wait(20) == 0


# Tasks ----------------------------------------------------------------------------------------


def test_detached_prints_the_name_and_returns(timeshim: Timeshim) -> None:
    name = f"test-{uuid.uuid4()}"
    assert timeshim.output("run", "-d", "--name", name, "--", "sh", "-c", "echo hi; sleep 60") == (
        f"{name}\n"
    )
    task = find(name)
    deadline = time.monotonic() + 10
    output = task.output
    while not output.exists() or output.read_text() != "hi\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    taken = timeshim("run", "--name", name, "true")
    assert taken.returncode == 1
    assert taken.stderr.count("\n") == 1
    assert f"a task named '{name}' runs already" in taken.stderr


def test_a_second_task_of_a_command_gets_a_number(timeshim: Timeshim, tmp_path: Path) -> None:
    command = tmp_path / f"sleep-{uuid.uuid4()}"
    shutil.copy("/bin/sleep", command)
    names = [timeshim.output("run", "-d", "--", command, "60").strip() for _ in range(3)]
    assert names == [command.name, f"{command.name}-2", f"{command.name}-3"]


def test_ps_tells_the_truth(timeshim: Timeshim) -> None:
    with running(timeshim, "sh", "-c", "sleep 60 & sleep 60") as (_, task):
        deadline = time.monotonic() + 10
        while True:
            rows = json.loads(timeshim.output("ps", "--json"))
            row = next(row for row in rows if row["name"] == task.name)
            if row["covered"] == 3 or time.monotonic() > deadline:
                break
        assert row["id"] == task.id
        assert row["argv"] == ["sh", "-c", "sleep 60 & sleep 60"]
        assert (row["state"], row["clocks"], row["migrations"]) == ("running", "shim", 0)
        assert (row["covered"], row["eligible"]) == (3, 3)
        names = sorted(Path(f"/proc/{pid}/comm").read_text().strip() for pid in row["pids"])
        assert names == ["reaper", "sh", "sleep", "sleep"]
        line = next(line for line in timeshim.output("ps").splitlines() if task.name in line)
        assert line.split()[1:8] == ["running", "4", "shim", "in", "3", "of", "3"]
    assert task.name not in timeshim.output("ps")


@pytest.mark.parametrize("options", [(), ("--no-time-namespace",)])
def test_clocks_tells_the_truth(timeshim: Timeshim, options: tuple[str, ...]) -> None:
    fields = {
        "monotonic": time.CLOCK_MONOTONIC,
        "raw": time.CLOCK_MONOTONIC_RAW,
        "boottime": time.CLOCK_BOOTTIME,
        "realtime": time.CLOCK_REALTIME,
    }
    with running(timeshim, "--monotonic", "+497d", *options, "sleep", "60") as (_, task):
        before = {field: time.clock_gettime_ns(clock) for field, clock in fields.items()}
        record = json.loads(timeshim.output("clocks", "--json", task.name))
        after = {field: time.clock_gettime_ns(clock) for field, clock in fields.items()}
        for field in fields:
            days = 0 if field == "realtime" else 497
            in_kernel = days if task.capsule and not options and timens.supported() else 0
            for frame, shift in (("host", 0), ("kernel", in_kernel), ("virtual", days)):
                assert ahead(before[field], record[frame][field], after[field]) == shift
        hz = record["tsc_frequency"]["virtual_hz"]
        ticks = record["virtual"]["tsc"] - record["host"]["tsc"]
        assert ticks == pytest.approx(497 * 86400 * hz, rel=1e-9)
        shown = timeshim.output("clocks", task.id)
        row = next(line.split() for line in shown.splitlines() if line.startswith(" MONOTONIC "))
        assert (float(row[5]) - float(row[1])) == pytest.approx(497 * 86400, abs=1)


@as_root
def test_nothing_is_left(timeshim: Timeshim) -> None:
    with running(timeshim, "sh", "-c", "sleep 0.2; exit 4") as (process, task):
        cgroup = task.cgroup
        assert task.dir.exists()
        assert cgroup.path.exists()
        assert process.wait(20) == 4
        assert not task.dir.exists()
        assert not cgroup.path.exists()
        assert timeshim.ends()
        assert task.id not in (Path("/proc/self/mountinfo").read_text())


@as_root
def test_nothing_is_left_when_the_supervisor_is_killed(timeshim: Timeshim) -> None:
    with running(timeshim, "sleep", "60") as (process, task):
        os.kill(task.supervisor, signal.SIGKILL)
        assert process.wait(20) != 0
        assert "Traceback" not in process.stderr.read()
        assert timeshim.ends()
        timeshim.output("ps")
        assert not task.dir.exists()
        assert not Cgroup.named(f"{task.id}.0").path.exists()


# Refusals -------------------------------------------------------------------------------------


def elf(machine: int, bits: int, loader: str = "") -> bytes:
    """Make the headers of a program that nothing could run, but that says what it is."""
    path = loader.encode() + b"\0"
    if bits == 32:
        ident = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
        return ident + struct.pack("<HHIIIIIHHHHHH", 2, machine, 1, 0, 52, 0, 0, 52, 32, 0, 0, 0, 0)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    interp = struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(path), len(path), 1)
    return ident + header + interp + path


def executable(path: Path, contents: bytes) -> Path:
    path.write_bytes(contents)
    path.chmod(0o755)
    return path


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check that a command failed with one sentence of these words, and did nothing."""
    assert done.returncode not in (0, -signal.SIGSEGV)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if not line.startswith(("Usage", "Try"))]
    assert len([line for line in sentences if line]) == 1, done.stderr
    for word in words:
        assert word in sentences[-1]


@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        ("musl", elf(62, 64, "/lib/ld-musl-x86_64.so.1"), ["musl", "--clocks=kernel"]),
        ("i386", elf(3, 32), ["x86", "only x86-64", "--clocks=none"]),
        ("arm", elf(183, 64, "/lib/ld-linux-aarch64.so.1"), ["AArch64", "only x86-64"]),
        ("cut", b"\x7fELF", ["cut"]),
        ("script", b"#!/nonexistent/interpreter\n", ["/nonexistent/interpreter"]),
    ],
)
def test_programs_out_of_reach(
    timeshim: Timeshim, tmp_path: Path, name: str, contents: bytes, words: list[str]
) -> None:
    refused(timeshim("run", executable(tmp_path / name, contents)), *words)


def test_static_programs_are_out_of_reach(timeshim: Timeshim) -> None:
    refused(timeshim("run", "/sbin/ldconfig", "--version"), "statically linked", "--clocks=kernel")
    assert timeshim("run", "--clocks=none", "/sbin/ldconfig", "--version").returncode == 0


@as_root
def test_set_user_id_programs_are_out_of_reach(timeshim: Timeshim, tmp_path: Path) -> None:
    path = executable(tmp_path / "true", Path("/bin/true").read_bytes())
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o755 | stat.S_ISUID)
    refused(timeshim("run", path), "gains privileges", "--clocks=kernel")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "no-such-command"], ["no executable program 'no-such-command'"]),
        (["run", "/etc/passwd"], ["no executable program '/etc/passwd'"]),
        (["run", "--monotonic", "soon", "mistaken"], ["'soon' is not a span of time"]),
        (["run", "--monotonic", "+1000000d", "mistaken"], ["more than a clock can be shifted"]),
        (["run", "--monotonic", "-9999d", "mistaken"], ["would be negative"]),
        (["run", "--clocks=none", "--monotonic", "1d", "mistaken"], ["cannot be used"]),
        (["run"], ["Missing argument"]),
        (["clocks", "no-such-task"], ["no task 'no-such-task'"]),
        (["no-such-subcommand"], ["No such command"]),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    timeshim: Timeshim, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "mistaken").symlink_to("/bin/true")  # a name that no other test has
    env = timeshim.env | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    refused(timeshim(*arguments, env=env), *words)
    assert not list(runtime_dir().glob("*mistaken*"))


def test_a_directory_that_is_not_ones_own_is_refused(timeshim: Timeshim, tmp_path: Path) -> None:
    shared = tmp_path / "timeshim"
    shared.mkdir()
    shared.chmod(0o777)
    user = unprivileged(timeshim, tmp_path)
    refused(user("ps"), "not a directory of yours alone")


# Without privileges ---------------------------------------------------------------------------


def unprivileged(timeshim: Timeshim, directory: Path) -> Timeshim:
    """Return the command line as user nobody has it, or skip the test."""
    env = timeshim.env | {"XDG_RUNTIME_DIR": str(directory), "HOME": str(directory)}
    if os.geteuid():
        timeshim.env = env
        return timeshim
    setpriv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    site = next(path for path in sys.path if path.endswith("site-packages"))
    env["PYTHONPATH"] = f"{ROOT}:{site}"
    user = Timeshim()
    user.mark, user.env = timeshim.mark, env
    let_others_in(directory)
    os.chown(directory, NOBODY, NOBODY)
    directory.chmod(0o700)
    # This interpreter may lie where only root may go; the system's can run the same files.
    for python in (sys.executable, "/usr/bin/python3"):
        entry = "from harness.cli import main; main(prog_name='timeshim')"
        user.command = (*setpriv, python, "-c", entry)
        with suppress(OSError, subprocess.TimeoutExpired):
            if user("--version").returncode == 0:
                return user
    pytest.skip("user nobody can run no Python that has this installation's packages")


def test_without_privileges(timeshim: Timeshim, tmp_path: Path) -> None:
    user = unprivileged(timeshim, tmp_path)
    before = time.monotonic_ns()
    reading = user.output("run", "--monotonic", "+497d", "--", "/usr/bin/python3", "-c", READ)
    assert ahead(before, int(reading), time.monotonic_ns()) == 497
    assert user("run", "--", "sh", "-c", "exit 9").returncode == 9

    name = user.output("run", "-d", "--monotonic", "+1d", "--", "sleep", "60").strip()
    assert name == "sleep"
    rows = json.loads(user.output("ps", "--json"))
    assert [(row["name"], row["state"], row["capsule"]) for row in rows] == [
        ("sleep", "running", False)
    ]
    assert (rows[0]["covered"], rows[0]["eligible"], len(rows[0]["pids"])) == (1, 1, 2)
    before = time.monotonic_ns()
    record = json.loads(user.output("clocks", "--json", "sleep"))
    assert ahead(before, record["virtual"]["monotonic"], time.monotonic_ns()) == 1
    assert ahead(before, record["kernel"]["monotonic"], time.monotonic_ns()) == 0


def test_what_the_shim_does_not_attach_to_is_stopped(
    timeshim: Timeshim, tmp_path: Path, program: Program
) -> None:
    """Without privileges, where no cgroup helps; a loader that knows no preload keeps it out."""
    user = unprivileged(timeshim, tmp_path)
    loader = program("loader", "-static-pie", "-nostdlib", "-ffreestanding")
    path = executable(tmp_path / "odd", elf(62, 64, str(loader)))
    done = user("run", path)
    refused(done, "the shim did not attach", "it was stopped")
    assert user.ends()

"""The process above a task that stays on its host: the init of its capsule.

A *capsule* is a pid namespace, so that the task's pids are free wherever it arrives, a mount
namespace, in which the task's files have the same path everywhere, and a cgroup. The supervisor
is not part of what CRIU dumps. It reaps, relays what the task prints, freezes, and is the one
place that decides whether the task may run here:

    running ── freeze ──▶ frozen ── go ──▶ leaving ── kill ──▶ (gone)
       ▲                    │
       └── resume, or the harness died

    arriving ── commit ──▶ running           arriving ── the harness died ──▶ (gone)

Its memory is the journal of that decision: if it dies, the kernel kills the whole capsule.
Without root there is no capsule, and the task cannot be frozen or moved.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import shlex
import signal
import socket
import threading
import time
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from timeshim import alarms, clocks, cputime, timens, timers
from timeshim._native import ffi, lib
from timeshim.clocks import NSEC, Clocks, Offsets, frame_of, read_clocks
from timeshim.control import address
from timeshim.errors import Error
from timeshim.export import Export
from timeshim.page import TSC_RATIO_ONE
from timeshim.tasks import note_arrival

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from timeshim.alarms import Alarm
    from timeshim.cputime import Thread
    from timeshim.tasks import Task

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 2, 4, 8, 32, 4096
MS_REC, MS_SLAVE = 16384, 1 << 19
CLONE_NEWIPC = 0x08000000

ATTACH_SECONDS = 10.0
FREEZES = 200  # of one task, until it is in no clock read; each takes some 0.5 ms
LOG_BYTES = 16 << 20
FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def mount(source: str | None, target: Path, kind: str | None, flags: int) -> None:
    """Mount a file system or a directory; raises Error."""
    error = lib.ts_mount(
        os.fsencode(source) if source else b"none",
        os.fsencode(target),
        kind.encode() if kind else b"",
        flags,
    )
    if error:
        raise Error(f"cannot mount {target}: {os.strerror(error)}")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Run ahead of everything else: a task that is just thawed would take the CPU from us."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:  # no real-time budget in this cgroup: only the figures suffer
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Log:
    """What a task prints where nobody reads it: a file, and the one before it."""

    def __init__(self, path: Path) -> None:
        """Prepare; the file is opened when there is something to write."""
        self.path = path
        self._file: IO[bytes] | None = None

    def write(self, data: bytes) -> None:
        """Append, and begin a new file once this one is large."""
        if self._file and self._file.tell() > LOG_BYTES:
            self._file.close()
            self.path.rename(self.path.with_name(f"{self.path.name}.1"))
            self._file = None
        if not self._file:
            self._file = self.path.open("ab", buffering=0)
        self._file.write(data)


def relay(source: int, target: int | None, log: Log) -> None:
    """Copy what the task prints to where it was launched, or to its log once nobody is there."""
    with contextlib.closing(os.fdopen(source, "rb", buffering=0)) as pipe:
        while data := pipe.read(1 << 16):
            try:
                while target is not None and data:
                    data = data[os.write(target, data) :]
            except BrokenPipeError:
                return  # closes our end, so that the task's next write fails as well
            except OSError:  # the terminal is gone
                target = None
            if data:
                log.write(data)


def tree(root: int) -> list[int]:
    """Return a process and all below it, parents first: as we number them."""
    pids = [root]
    for pid in pids:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                pids += map(int, children.read_text().split())
    return pids


class Supervisor:
    """Supervises one task. Lives in a process of its own; see `timeshim.launch`."""

    def __init__(self, task: Task, outputs: Sequence[tuple[int, int | None]], report: int) -> None:
        """Prepare; nothing happens yet.

        Args:
            task: the task.
            outputs: for each pipe that the task writes to, the reading end, and the descriptor
                that its contents go to (None: the task's log).
            report: descriptor for progress reports: one JSON object a line.
        """
        self.task = task
        self.outputs = outputs
        self.report_fd = report
        self.page = task.page()
        self.state = "arriving"
        self.root = 0
        self.namespace: int | None = None  # the task's own time namespace, if we made one
        self.exit_code: int | None = None
        self.export: Export | None = None
        self.alarms: list[Alarm] = []
        """Timers that the frozen task had set, which nobody but us remembers."""
        self.lease: socket.socket | None = None
        self.destination: list[str] | None = None
        self.relays: list[threading.Thread] = []
        self.selector = selectors.DefaultSelector()

    def report(self, **event: Any) -> None:
        """Tell whoever launched the task, if anybody still listens."""
        with contextlib.suppress(OSError):
            os.write(self.report_fd, json.dumps(event).encode() + b"\n")

    def enter_capsule(self) -> None:
        """Set the capsule's file system view up; we are its first process already."""
        mount(None, Path("/"), None, MS_REC | MS_SLAVE)
        mount("proc", Path("/proc"), "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        mount(str(self.task.shared), self.task.inside, None, MS_BIND)
        # /run is often mounted noexec, and the shim is code
        mount(None, self.task.inside, None, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV)

    def reserve_pids(self) -> None:
        """Take our own threads' and CRIU's pids from the far end: the task brings its own."""
        highest = int(Path("/proc/sys/kernel/pid_max").read_text())
        LAST_PID.write_text(str(highest - 2000))

    def shift(self, ns: int, *, time_namespace: bool) -> None:
        """Have the task, which has not begun to run, start with its clocks shifted.

        Args:
            ns: by how much.
            time_namespace: whether the kernel's clocks are to be shifted too, where they can be.

        Raises:
            Error: a clock would be negative.
        """
        now = read_clocks()
        if now.monotonic + ns < 0:
            up = timedelta(seconds=now.monotonic // NSEC)
            raise Error(
                f"the clocks would be negative: CLOCK_MONOTONIC on this host reads {up} only"
            )
        frame = Offsets()
        if time_namespace:
            frame = self._shift_kernel(Offsets(ns, ns))
        shifted = replace(
            now.in_namespace(Offsets(ns, ns)),
            tsc=(now.tsc + ns * self.page.tsc_hz // NSEC) % 2**64,
        )
        self.page.publish(clocks.begin_epoch(shifted, now.in_namespace(frame), TSC_RATIO_ONE))

    def go_on(self, frozen: Clocks, lead: int) -> None:
        """Have the kernel's clocks go on from those of a task that is about to be restored here.

        BOOTTIME exactly; MONOTONIC goes on from now instead of from when the task runs.

        Args:
            frozen: the virtual clocks at freeze.
            lead: what the kernel's MONOTONIC was ahead by then: it shall not go back.
        """
        now = read_clocks()
        here = frozen.after_blackout(max(0, now.realtime - frozen.realtime))
        self._shift_kernel(
            Offsets(here.monotonic + lead - now.monotonic, here.boottime - now.boottime)
        )

    def _shift_kernel(self, offsets: Offsets) -> Offsets:
        """Make a time namespace for the task if that is possible; return what it is ahead by.

        Raises:
            Error: it is not, and the task has no other clocks.
        """
        try:
            self.namespace = timens.make(offsets)
        except Error:
            if self.task.clocks == "kernel":
                raise
            return Offsets()  # the page alone carries them, as it would anyhow
        return offsets

    def launch(self, argv: list[str], descriptors: dict[int, int]) -> None:
        """Start the reaper, and through it the application.

        Args:
            argv: the command.
            descriptors: descriptor in the task -> ours.
        """
        shim = str(self.task.inside / "libtimeshim.so") if self.task.clocks == "shim" else ""
        self.root = os.fork()
        if not self.root:
            try:
                os.setsid()
                if self.task.capsule:
                    self.task.cgroup.add(0)
                    # So that System V objects move along (docs/migration.md). It can only fail
                    # where the kernel has none, and then only those who use them cannot move.
                    lib.ts_unshare(CLONE_NEWIPC)
                if self.namespace is not None:
                    timens.enter(self.namespace)
                for theirs, ours in descriptors.items():
                    os.dup2(ours, theirs)
                # whatever the caller had open lies outside the capsule, where CRIU cannot go
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                # Python ignores these, and what is ignored stays so for the program
                for number in (signal.SIGPIPE, signal.SIGXFSZ):
                    signal.signal(number, signal.SIG_DFL)
                reaper = str(self.task.inside / "reaper")
                os.execv(reaper, [reaper, shim, *argv])  # noqa: S606
            finally:
                os._exit(126)
        self.state = "running"

    def serve(self) -> None:
        """Do all that a supervisor does until the task has ended or left."""
        wake, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in FORWARDED:
            signal.signal(number, lambda number, _: self.signal(number))
        log = Log(self.task.output)
        for source, target in self.outputs:
            thread = threading.Thread(target=relay, args=(source, target, log), daemon=True)
            thread.start()
            self.relays.append(thread)

        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with address(self.task.control) as reachable:
            listener.bind(reachable)
        listener.listen()
        self.selector.register(listener, selectors.EVENT_READ, self._accept)
        self.selector.register(wake, selectors.EVENT_READ, lambda fd: os.read(fd, 512))
        # a pipe whose reader is gone is readable, so to speak: epoll says EPOLLERR
        self.selector.register(self.report_fd, selectors.EVENT_READ, self._nobody_listens)
        self.report(listening=True)

        attach_deadline = time.monotonic() + ATTACH_SECONDS
        awaiting = self.state == "running" and self.task.clocks == "shim"
        while self.state != "gone":
            for key, _ in self.selector.select(0.001 if awaiting else None):
                key.data(key.fileobj)
            self._reap()
            if awaiting and self.page.attached:
                awaiting = False
                self.report(attached=True)
            elif awaiting and time.monotonic() > attach_deadline:
                self.report(unattached=True)
                self._kill_all()
                awaiting = False
        self._finish()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.root:
                self.exit_code = os.waitstatus_to_exitcode(status)
                self.state = "gone"

    def _finish(self) -> None:
        for thread in self.relays:
            thread.join(5)  # ends when the last writer is gone
        self.task.remove()
        if self.destination is not None:
            self.report(migrated=shlex.join(self.destination) or "this host")
        else:
            code = self.exit_code if self.exit_code is not None else 1
            self.report(exit=code if code >= 0 else 128 - code)

    # Requests ----------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        lines = connection.makefile("rb")
        self.selector.register(
            connection, selectors.EVENT_READ, lambda _: self._request(connection, lines)
        )

    def _request(self, connection: socket.socket, lines: Any) -> None:
        line = b""
        with contextlib.suppress(OSError):
            line = lines.readline()
        if not line:
            self.selector.unregister(connection)
            connection.close()
            if connection is self.lease:
                self._lease_lost()
            return
        try:
            operation, arguments = json.loads(line)
            handle: Callable[..., Any] = self.operations[operation]
            if operation == "freeze" and self.state == "running":  # else it will be refused
                self.lease = connection
            answer = {"result": handle(self, **arguments)}
        except Error as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - the supervisor must outlive any request
            answer = {"error": f"internal error: {error!r}"}
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(answer).encode() + b"\n")

    def _require(self, *states: str) -> None:
        if self.state not in states:
            raise Error(f"the task {self.task.name} is {self.state}, not {' or '.join(states)}")

    def _lease_lost(self) -> None:
        """Undo what the harness began: it is gone."""
        self.lease = None
        if self.state == "frozen":
            self._await_criu()
            self.resume()

    def _nobody_listens(self, _: object) -> None:
        """Whoever started us is gone. A task that has not arrived goes with it."""
        self.selector.unregister(self.report_fd)
        if self.state == "arriving":
            self.state = "gone"

    def _await_criu(self, seconds: float = 30.0) -> None:
        """Wait for a CRIU whose harness died to let go of the task; then insist."""
        ours = {os.getpid(), *self.task.cgroup.pids()}
        deadline = time.monotonic() + seconds
        while others := {int(p.name) for p in Path("/proc").glob("[0-9]*")} - ours:
            if time.monotonic() > deadline:
                for pid in others:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                deadline += 1
            time.sleep(0.01)

    def status(self) -> dict[str, Any]:
        """Return what `timeshim ps` shows beyond task.json."""
        return {
            "state": self.state,
            "root": self.root,
            "destination": self.destination,
            "pids": self.task.cgroup.pids() if self.task.capsule else tree(self.root),
        }

    def signal(self, number: int) -> None:
        """Send a signal to the application, by way of the reaper."""
        if self.root:
            os.kill(self.root, number)

    def freeze(self) -> dict[str, Any]:
        """Stop the task, and export its virtual clocks."""
        self._require("running")
        if not self.task.capsule:
            raise Error("a task that was not launched by root cannot be frozen or moved")
        asked = self.task.cgroup.freeze()
        if self.task.clocks == "kernel":
            asked = self._freeze_outside_reads(asked)
        stopped = read_clocks()
        self.state = "frozen"
        frame = frame_of(self.root)
        trapping: list[int] = []
        if self.task.clocks != "none":
            with undisturbed():
                held = alarms.hold(
                    self.task.cgroup, self.page, frame, every=self.task.clocks != "shim"
                )
                if held is not None:  # they counted on until now
                    self.alarms, trapping = held
                    stopped = read_clocks()
        kernel = stopped.in_namespace(frame)
        virtual = kernel.virtual(self.page.epoch)
        self.export = Export(
            virtual=virtual,
            lead_ns=kernel.monotonic - virtual.monotonic if self.namespace is not None else 0,
            tsc_hz=self.page.tsc_hz,
            generation=self.page.generation,
            migrations=self.page.migrations,
            blackout_ns=self.page.blackout_ns,
            task_area=self.page.task_area(),
            timers=timers.find(self.task.cgroup.pids(), self.page.epoch, frame),
            alarms=self.alarms,
            trapping=trapping,
            threads=self._cpu_time(frame),
            signalled=self.page.signalled(),
            freeze_ns=stopped.monotonic - asked,
        )
        return {
            "export": self.export.to_json(),
            "root": self.root,
            "last_pid": int(LAST_PID.read_text()),
            "pipes": [os.fstat(source).st_ino for source, _ in self.outputs],
        }

    def _freeze_outside_reads(self, asked: int) -> int:
        """Freeze again until no thread is in the vDSO; return when that was asked for.

        There it would go on, on the other host, with half of a reading of this one. The shim
        notices and reads anew. Whoever does nothing but read is caught in the end as it is.
        """
        for _ in range(FREEZES):
            if not any(timens.reads_clock(pid) for pid in self.task.cgroup.pids()):
                break
            self.task.cgroup.thaw()
            time.sleep(0.001 * random.random())  # noqa: S311
            asked = self.task.cgroup.freeze()
        return asked

    def _cpu_time(self, frame: Offsets) -> list[Thread]:
        """Return what the frozen task has used, here and before."""
        threads = cputime.read(tree(self.root), up=True)
        for thread in threads:
            came_along = thread.started + frame.boottime <= self.page.arrived
            if came_along and (before := self.page.carried_cpu_time(thread.thread)):
                thread.own += before.own
                thread.process += before.process
                thread.children += before.children
        return threads

    def _carry_cpu_time(self, frozen: list[Thread]) -> None:
        """Have the restored task go on with what it had used when it froze."""
        now = {thread.thread: thread for thread in cputime.read(tree(self.root), up=False)}
        for thread in frozen:
            if restored := now.get(thread.thread):
                thread.own -= restored.own
                thread.process -= restored.process
                thread.children -= restored.children
        self.page.carry_cpu_time(frozen)

    def resume(self) -> dict[str, Any]:
        """Let the task run on where it was: its clocks have stood still meanwhile."""
        self._require("frozen", "leaving")
        self.destination = None
        if self.export is None or not self.task.cgroup.freezing:
            # Not exported yet; or a CRIU that was killed in the middle let it run already, so that
            # no time stood still. A new epoch all the same, for it says to those in a wait what
            # interrupted them.
            pids = self.task.cgroup.pids() if self.task.cgroup.freezing else []
            if self.alarms:
                self.task.cgroup.freeze()
            timed = alarms.Held(self.alarms, [], frame_of(self.root))
            held = self.page.find_signalled(pids)
            self.page.publish(ffi.addressof(self.page.epoch))
            self.task.cgroup.thaw()
            timed.set_again(self.page.epoch, held, moved=False)
            lib.ts_release(held)
            self.alarms = []
            self.state = "running"
            return {}
        return self._run(self.export, self.page.epoch.tsc_ratio, moved=False)

    def go(self, destination: list[str]) -> None:
        """Give the task away: from now on it never resumes here by itself."""
        self._require("frozen")
        self.destination = destination
        self.state = "leaving"

    def kill(self) -> None:
        """End the copy here: the destination's is running."""
        self._require("leaving")
        self._kill_all()

    def _kill_all(self) -> None:
        if self.task.capsule:
            self.task.cgroup.kill()
        else:
            for pid in reversed(tree(self.root)):  # nobody below the reaper dies with it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def commit(
        self, export: dict[str, Any], root: int, last_pid: int, tsc_ratio: int
    ) -> dict[str, Any]:
        """Let a restored, frozen task run: the destination's point of no return."""
        self._require("arriving")
        received = Export.from_json(export)
        self.root = root
        self.page.inherit(received.generation, received.migrations, received.blackout_ns)
        self.page.restore_task_area(received.task_area)
        self.page.restore_signalled(received.signalled)
        self._carry_cpu_time(received.threads)
        LAST_PID.write_text(str(last_pid))
        return self._run(received, tsc_ratio, moved=True)

    def _run(self, export: Export, tsc_ratio: int, *, moved: bool) -> dict[str, Any]:
        """Begin an epoch and thaw; what lies between the two the task sees as a jump."""
        frame = frame_of(self.root)
        thaw = self.task.cgroup.prepare_thaw()
        set_timers = timers.prepare(export.timers, frame)
        # on the host that it was frozen on, the kernel still knows who traps
        timed = alarms.Held(export.alarms, export.trapping if moved else [], frame)
        if moved:
            note_arrival(self.task)  # when nothing is left that could fail
        held = self.page.find_signalled(self.task.cgroup.pids())
        with undisturbed():
            # Twice, for the first time is slow: cold caches would add 60 us to the jump.
            for _ in range(2):
                now = read_clocks()
                real = max(0, now.realtime - export.virtual.realtime)
                kernel = now.in_namespace(frame)
                resume = export.virtual.after_blackout(real)
                if self.task.clocks == "kernel":
                    resume = kernel
                epoch = clocks.begin_epoch(resume, kernel, tsc_ratio)
                waits = self.page.correct_slots(epoch)
            if moved:
                self.page.record_migration(real, kernel.boottime)
            self.page.publish(epoch)
            set_timers(epoch, export.virtual)
            thaw()
            timed.set_again(epoch, held, moved=moved)
            after = time.monotonic_ns()
        lib.ts_release(held)
        self.state = "running"
        self.export = None
        self.alarms = []
        return {
            "virtual": asdict(resume),
            "frame": asdict(frame),
            "blackout_ns": real,
            "advance_ns": resume.monotonic - export.virtual.monotonic,
            "waits": waits,
            "timers_lost": timed.lost,
            "untrapped": timed.untrapped,
            "resume_ns": after - now.monotonic,
        }

    operations: ClassVar[dict[str, Callable[..., Any]]] = {
        "status": status,
        "signal": signal,
        "freeze": freeze,
        "resume": resume,
        "go": go,
        "kill": kill,
        "commit": commit,
    }

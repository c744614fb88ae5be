"""Starts supervisors: for `run`, and for a task that arrives from another host."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from timeshim._native import lib
from timeshim.control import Control
from timeshim.errors import Error
from timeshim.supervisor import FORWARDED, Supervisor
from timeshim.tasks import Task, start_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000


class Report:
    """What a supervisor tells whoever started it, as it happens.

    Two processes write it: the supervisor, and the one between us that learns its pid. On a busy
    machine the first is listening before the second says who it is.
    """

    def __init__(self, fd: int) -> None:
        """Read from a descriptor."""
        self._file = os.fdopen(fd, "rb")
        self._early: list[dict[str, Any]] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield events until the supervisor has ended."""
        for line in self._file:
            yield json.loads(line)

    def close(self) -> None:
        """Stop listening."""
        self._file.close()

    def wait(self, *expected: str) -> dict[str, Any]:
        """Return the first event that has one of these keys; what comes before it is kept.

        Raises:
            Error: the supervisor failed or ended before.
        """
        for event in self._early:
            if any(key in event for key in expected):
                self._early.remove(event)
                return event
        for event in self:
            if "failed" in event:
                raise Error(event["failed"])
            if any(key in event for key in expected):
                return event
            self._early.append(event)
        raise Error("the task's supervisor ended unexpectedly")


def start_supervisor(
    task: Task,
    outputs: Sequence[tuple[int, int | None]],
    keep: list[int],
    begin: Callable[[Supervisor], None],
) -> Report:
    """Fork a supervisor into a capsule of its own (as root), and have it begin.

    Args:
        task: the task; its directory exists.
        outputs: see `Supervisor`.
        keep: further descriptors that `begin` needs.
        begin: what it does first, in the capsule; an Error there is reported, then it ends.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    middle = os.fork()
    if not middle:
        os.close(reader)
        try:
            # The first child after unshare(CLONE_NEWPID) is the namespace's init, hence two forks.
            if task.capsule and (error := lib.ts_unshare(CLONE_NEWNS | CLONE_NEWPID)):
                raise Error(f"cannot make a pid namespace: {os.strerror(error)}")
            pid = os.fork()
            if not pid:
                os.setsid()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
                ours = {fd for pair in outputs for fd in pair if fd is not None}
                let_go({writer, *ours, *keep})
                _supervise(task, outputs, writer, begin)
            os.write(writer, json.dumps({"supervisor": pid}).encode() + b"\n")
        except Error as error:
            os.write(writer, json.dumps({"failed": str(error)}).encode() + b"\n")
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(middle, 0)
    report = Report(reader)
    task.supervisor = report.wait("supervisor")["supervisor"]
    task.started = start_time(task.supervisor)
    task.save()
    return report


def let_go(keep: set[int]) -> None:
    """Close all descriptors but these, and have the standard ones lead nowhere.

    A supervisor outlives whoever started it: what it held open would keep a pipeline, or the
    carrier's connection, from ever ending.
    """
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) not in keep:
            with contextlib.suppress(OSError):  # the one that listed them is gone already
                os.close(int(entry))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd not in keep:
            os.dup2(null, fd)
    if null > 2:
        os.close(null)


def _supervise(
    task: Task,
    outputs: Sequence[tuple[int, int | None]],
    writer: int,
    begin: Callable[[Supervisor], None],
) -> None:
    try:
        supervisor = Supervisor(task, outputs, writer)
        try:
            if task.capsule:
                supervisor.enter_capsule()
            begin(supervisor)
            supervisor.serve()
        except Error as error:
            supervisor.report(failed=str(error))  # whoever started us removes what there is
    except BaseException as error:  # noqa: BLE001 - the last chance to say anything
        failed = {"failed": f"the supervisor failed: {error!r}"}
        os.write(writer, json.dumps(failed).encode() + b"\n")
    finally:
        os._exit(0)


def launch(task: Task, *, detach: bool, shift: int = 0, time_namespace: bool = True) -> Report:
    """Launch a task's command.

    Args:
        task: the task; its directory exists.
        detach: what it prints goes to its log instead of our own output.
        shift: nanoseconds by which to shift its clocks.
        time_namespace: whether a time namespace may help with that.

    Returns:
        The supervisor's report, from after the confirmation that the shim attached.

    Raises:
        Error: the shim did not attach, the clocks cannot be shifted so, or the supervisor failed;
            nothing of the task is left.
    """
    if not detach:
        # The program runs before we can pass a signal on to it; until `follow`, it has to wait.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    # One pipe if both go to the same place, or their order would be lost.
    streams = [[1, 2]] if detach or os.path.sameopenfile(1, 2) else [[1], [2]]
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in streams]
    outputs = [
        (reader, None if detach else stream[0])
        for (reader, _), stream in zip(pipes, streams, strict=True)
    ]

    def begin(supervisor: Supervisor) -> None:
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        descriptors = {0: null} | {
            fd: writer for (_, writer), stream in zip(pipes, streams, strict=True) for fd in stream
        }
        if shift:
            supervisor.shift(shift, time_namespace=time_namespace and task.capsule)
        supervisor.launch(task.argv, descriptors)
        for fd in (null, *(writer for _, writer in pipes)):
            os.close(fd)

    try:
        report = start_supervisor(task, outputs, [writer for _, writer in pipes], begin)
        for fd in (fd for pipe in pipes for fd in pipe):
            os.close(fd)
        if task.clocks == "shim":
            event = report.wait("attached", "unattached", "exit")
            if "unattached" in event:
                raise Error(
                    f"the shim did not attach to {task.argv[0]}, so its clocks would not be virtual: it was stopped"
                )
            if "exit" in event and event["exit"] == 0:
                raise Error(f"{task.argv[0]} ended before the shim attached to it")
            if "exit" in event:
                if detach:  # nobody will look for the reason in a log
                    sys.stderr.write(task.output.read_text(errors="replace"))
                raise SystemExit(event["exit"])
        else:
            report.wait("listening")
    except BaseException:
        task.remove()
        raise
    return report


def follow(task: Task, report: Report) -> int:
    """Wait for a task in the foreground, passing our signals on to it.

    Returns:
        The exit status to end with: the application's, or 0 once the task has moved away.
    """

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(Error), Control(task.control) as control:
            control("signal", number=number)

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    event = report.wait("exit", "migrated")
    if "migrated" in event:
        print(f"timeshim: {task.name} has moved to {event['migrated']}", file=sys.stderr)
        return 0
    return int(event["exit"])

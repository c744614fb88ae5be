"""A cgroup (version 2) for each task: it names its processes, freezes and kills them as one.

Freezing with the cgroup is what makes the moment of freeze known: CRIU's own seizing takes
tens of milliseconds, and says nothing of when it ended. See cgroup freezer in the kernel's
Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from timeshim.errors import Error

if TYPE_CHECKING:
    from collections.abc import Callable

FREEZE_SECONDS = 10.0


def hierarchy() -> Path:
    """Return where the cgroup version 2 hierarchy is mounted.

    Raises:
        Error: nowhere.
    """
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if source.startswith("cgroup2 "):
            return Path(mount.split()[4])
    raise Error(
        "this host has no cgroup version 2 hierarchy: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`"
    )


@dataclass(frozen=True)
class Cgroup:
    """A leaf cgroup."""

    path: Path

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the cgroup of that name, which all of timeshim's have one parent for."""
        return cls(hierarchy() / "timeshim" / name)

    def create(self) -> None:
        """Create it."""
        self.path.mkdir(parents=True)

    def _write(self, file: str, value: str) -> None:
        (self.path / file).write_text(value)

    def add(self, pid: int) -> None:
        """Move a process into the cgroup; 0 is the calling one."""
        self._write("cgroup.procs", str(pid))

    def pids(self) -> list[int]:
        """Return its processes, as the caller's pid namespace numbers them; none if it is gone."""
        try:
            listed = (self.path / "cgroup.procs").read_text()
        except FileNotFoundError:
            return []
        return [int(pid) for pid in listed.split()]

    def _events(self) -> dict[str, str]:
        text = (self.path / "cgroup.events").read_text()
        return dict(line.split() for line in text.splitlines())

    @property
    def freezing(self) -> bool:
        """Whether its processes are, or are about to be, stopped."""
        return (self.path / "cgroup.freeze").read_text().strip() == "1"

    @property
    def populated(self) -> bool:
        """Whether any process is left in it."""
        return self._events()["populated"] == "1"

    def freeze(self) -> int:
        """Stop all of its processes and return as soon as they are stopped.

        Returns:
            CLOCK_MONOTONIC, in nanoseconds, before any of them was.

        Raises:
            Error: some process does not stop (uninterruptible in the kernel); all run on.
        """
        asked = time.monotonic_ns()
        self.begin_freeze()
        try:
            self.await_frozen()
        except Error:
            self.thaw()
            raise
        return asked

    def await_frozen(self) -> None:
        """Return as soon as all of its processes, which were asked to, have stopped.

        Raises:
            Error: some process does not stop: it is uninterruptible in the kernel.
        """
        deadline = time.monotonic() + FREEZE_SECONDS
        with (self.path / "cgroup.events").open("rb", buffering=0) as events:
            # It takes 0.1 ms, so no sleeping (notifications come every 10 ms at most); but a
            # thread must run in order to stop, perhaps on this very CPU.
            while b"frozen 1" not in os.pread(events.fileno(), 64, 0):
                os.sched_yield()
                if time.monotonic() > deadline:
                    raise Error(
                        f"the task did not freeze within {FREEZE_SECONDS:.0f} s: a process of it is stuck in the kernel"
                    )

    def begin_freeze(self) -> None:
        """Ask for its processes, and those that join it, to stop."""
        self._write("cgroup.freeze", "1")

    def thaw(self) -> None:
        """Let them run."""
        self._write("cgroup.freeze", "0")

    def prepare_thaw(self) -> Callable[[], None]:
        """Return what thaws them, without anything left to do but that."""
        fd = os.open(self.path / "cgroup.freeze", os.O_WRONLY | os.O_CLOEXEC)

        def thaw() -> None:
            os.write(fd, b"0")
            os.close(fd)

        return thaw

    def kill(self) -> None:
        """Kill all of its processes, frozen or not."""
        self._write("cgroup.kill", "1")

    def remove(self) -> None:
        """Remove the cgroup, if it is there and empty."""
        deadline = time.monotonic() + 1.0
        while True:
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:  # EBUSY: killed processes take a moment to leave
                if time.monotonic() > deadline:
                    return
                time.sleep(0.002)
            else:
                return

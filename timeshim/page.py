"""The page of a task, seen from outside: created, checked, published to, its slots corrected.

The layout is preload/page.h; nothing here repeats it.
"""

from __future__ import annotations

import itertools
import mmap
import os
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, Self

from timeshim._native import ffi, lib
from timeshim.cputime import Thread, Used
from timeshim.errors import Error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

TSC_RATIO_ONE: int = 1 << lib.TS_RATIO_SHIFT
MOST = 2**62


class Page:
    """A mapped page. Use `create` or `open`; it is a context manager that unmaps it."""

    def __init__(self, fd: int) -> None:
        """Map the page behind a descriptor, which from now on belongs to this object."""
        self._fd = fd
        self._map = mmap.mmap(fd, lib.TS_PAGE_SIZE)
        self._bytes = ffi.from_buffer(self._map)
        self._clocks: Any = ffi.cast("struct ts_clock_area *", self._bytes)
        self._task: Any = ffi.cast("struct ts_task_area *", self._bytes + lib.TS_TASK_AREA)
        self._cpu: Any = ffi.cast("struct ts_cpu_area *", self._bytes + lib.TS_CPU_AREA)
        self._signals: Any = ffi.cast("struct ts_signal_area *", self._bytes + lib.TS_SIGNAL_AREA)

    @classmethod
    def create(
        cls,
        path: Path,
        task: str,
        tsc_hz: int,
        *,
        patch_tsc: bool = False,
        trap_tsc: bool = False,
        tsc_skip: Sequence[str] = (),
    ) -> Self:
        """Create the page of a task whose virtual clocks are, so far, the kernel's.

        Any process of the task may write to its slots, whatever user it has become: the
        directory is what keeps others away.

        Args:
            path: where; must not exist.
            task: the task's id.
            tsc_hz: frequency of the virtual TSC, for the life of the task, in Hz.
            patch_tsc: whether the shim rewrites instructions that read the TSC.
            trap_tsc: whether they trap instead.
            tsc_skip: the objects where it does not.

        Raises:
            Error: those are too many.
        """
        skip = b"".join(name.encode() + b"\0" for name in tsc_skip)
        if len(skip) >= lib.TS_SKIP_SIZE:
            raise Error(f"the names to skip are too long: {lib.TS_SKIP_SIZE} bytes have room")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(fd, 0o666)
        os.ftruncate(fd, lib.TS_PAGE_SIZE)
        page = cls(fd)
        clocks = page._clocks
        clocks.abi = lib.TIMESHIM_ABI
        clocks.size = lib.TS_PAGE_SIZE
        clocks.task = task.encode()
        clocks.tsc_hz = tsc_hz
        clocks.tsc_patch = patch_tsc
        clocks.tsc_trap = trap_tsc
        ffi.memmove(clocks.tsc_skip, skip, len(skip))
        clocks.epoch[0].tsc_ratio = TSC_RATIO_ONE
        clocks.magic = lib.TIMESHIM_MAGIC
        return page

    @classmethod
    def open(cls, path: Path, task: str) -> Self:
        """Map the page of a task that runs.

        Raises:
            Error: the file is missing, truncated, of another version, or another task's.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Error(f"the page {path} cannot be opened: {error.strerror}") from None
        size = os.fstat(fd).st_size
        if size != lib.TS_PAGE_SIZE:
            os.close(fd)
            raise Error(
                f"{path} is not a page of this version: it has {size} bytes instead of {lib.TS_PAGE_SIZE}"
            )
        page = cls(fd)
        problem = page._problem(task)
        if problem:
            page.close()
            raise Error(f"{path} {problem}")
        return page

    def _problem(self, task: str) -> str:
        """Say what is wrong with the page, or nothing."""
        clocks = self._clocks
        if clocks.magic != lib.TIMESHIM_MAGIC:
            return "is not a page: its magic number is wrong"
        if clocks.abi != lib.TIMESHIM_ABI or clocks.size != lib.TS_PAGE_SIZE:
            return f"is a page of ABI {clocks.abi}, this is timeshim with ABI {lib.TIMESHIM_ABI}"
        if ffi.string(clocks.task).decode(errors="replace") != task:
            return f"is not the page of task {task}"
        return ""

    def __enter__(self) -> Self:
        """Return the page itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unmap the page."""
        self.close()

    def close(self) -> None:
        """Unmap the page. Pointers into it must not be used any more."""
        del self._clocks, self._task, self._cpu, self._signals
        ffi.release(self._bytes)
        self._map.close()
        os.close(self._fd)

    @property
    def generation(self) -> int:
        """How many epochs have begun."""
        return int(self._clocks.generation)

    @property
    def epoch(self) -> Any:
        """The struct ts_epoch in force."""
        return self._clocks.epoch[self._clocks.generation & 1]

    @property
    def tsc_hz(self) -> int:
        """Frequency of the virtual TSC in Hz."""
        return int(self._clocks.tsc_hz)

    @property
    def traps_tsc(self) -> bool:
        """Whether instructions that read the TSC trap."""
        return bool(self._clocks.tsc_trap)

    @property
    def tsc_rewritten(self) -> int:
        """How many instructions that read the TSC were ever rewritten, over all processes."""
        return int(self._task.tsc_rewritten)

    @property
    def tsc_raw(self) -> int:
        """How many could not be, and read the hardware."""
        return int(self._task.tsc_raw)

    @property
    def migrations(self) -> int:
        """How many migrations the task has behind it."""
        return int(self._clocks.migrations)

    @property
    def blackout_ns(self) -> int:
        """Real time in which the task ran nowhere, over all migrations, in nanoseconds."""
        return int(self._clocks.blackout_ns)

    @property
    def attached(self) -> int:
        """How many processes the shim has ever attached to."""
        return int(self._task.attached)

    @property
    def slots_exhausted(self) -> int:
        """How many waits found no free slot, so that a migration could not correct them."""
        return int(self._task.slots_exhausted)

    @property
    def interval_timers(self) -> bool:
        """Whether any process has ever set an interval timer (setitimer(2), alarm(2))."""
        return bool(self._task.interval_timers)

    def is_absolute(self, pid: int, timer: int) -> bool:
        """Tell whether a POSIX timer on CLOCK_REALTIME is set to a time instead of a span."""
        row = self._task.absolute_timer[(pid + timer) % lib.TS_TIMER_ROWS]
        return (pid << 32 | timer) in row

    @property
    def arrived(self) -> int:
        """Kernel BOOTTIME, in nanoseconds, when the task first ran on this host."""
        return int(self._clocks.arrived_ns)

    def record_migration(self, blackout_ns: int, arrived: int) -> None:
        """Count a migration; before the epoch that it begins is published.

        Args:
            blackout_ns: real time in which the task ran nowhere.
            arrived: kernel BOOTTIME now: whatever was started so far came along.
        """
        self._clocks.migrations += 1
        self._clocks.blackout_ns += blackout_ns
        self._clocks.arrived_ns = arrived

    def inherit(self, generation: int, migrations: int, blackout_ns: int) -> None:
        """Take over what a page on another host had counted.

        The generation above all: a thread frozen in the middle of a read on the source
        remembers it, and must find another one here once an epoch has been published.
        """
        epoch = ffi.new("struct ts_epoch *", self.epoch)
        self._clocks.generation = generation
        self._clocks.epoch[generation & 1] = epoch[0]
        self._clocks.migrations = migrations
        self._clocks.blackout_ns = blackout_ns

    def publish(self, epoch: Any) -> None:
        """Begin an epoch: all clock reads from now on, also those in progress, are in it."""
        lib.ts_publish(self._clocks, epoch)

    def correct_slots(self, epoch: Any) -> int:
        """Make the kernel deadlines of all waits in progress right for an epoch.

        Only while no thread of the task runs.

        Returns:
            How many there were.
        """
        slots = ffi.addressof(self._task, "slot")
        corrected = 0
        for start, end in self._written():
            first = max(0, start - lib.TS_TASK_AREA - self._slot_offset) // self._slot_size
            last = (end - lib.TS_TASK_AREA - self._slot_offset) // self._slot_size
            last = min(last, lib.TS_SLOTS)  # the absolute timers are behind them
            corrected += lib.ts_correct_slots(slots[0] + first, max(0, last - first), epoch)
        return corrected

    _task_end: int = lib.TS_TASK_AREA + ffi.sizeof("struct ts_task_area")
    _slot_offset = ffi.offsetof("struct ts_task_area", "slot")
    _slot_size = ffi.sizeof("struct ts_slot")

    def _written(self) -> Iterator[tuple[int, int]]:
        """Yield the parts of the task area that were ever written, as file offsets.

        A page has slots for more threads than any task has. Looking for the holes with
        SEEK_DATA instead of reading them keeps them holes: reading a hole of a mapped tmpfs
        file allocates it.
        """
        position: int = lib.TS_TASK_AREA
        while position < self._task_end:
            try:
                start = os.lseek(self._fd, position, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole up to the end
                return
            position = os.lseek(self._fd, start, os.SEEK_HOLE)
            if start < self._task_end:
                yield start, min(position, self._task_end)

    def carry_cpu_time(self, threads: Iterable[Thread]) -> None:
        """Write down what threads used elsewhere; once, before the task runs on this host.

        Threads beyond the page's room begin at 0.
        """
        entries = self._cpu.entry
        for thread in itertools.islice(threads, lib.TS_CPU_ENTRIES - 1):
            place = thread.thread % lib.TS_CPU_ENTRIES
            while entries[place].thread:
                place = (place + 1) % lib.TS_CPU_ENTRIES
            entry = entries[place]
            entry.thread, entry.robust_list = thread.thread, thread.robust_list
            entry.parent = thread.parent
            for there, used in (
                (entry.own, thread.own),
                (entry.process, thread.process),
                (entry.children, thread.children),
            ):
                for kind, value in enumerate(astuple(used)):
                    # part of it comes from an application, which may have written anything there
                    there[kind] = max(-MOST, min(MOST, value))

    def carried_cpu_time(self, thread: int) -> Thread | None:
        """Return what is written down of a thread."""
        place = thread % lib.TS_CPU_ENTRIES
        while found := self._cpu.entry[place].thread:
            if found == thread:
                entry = self._cpu.entry[place]
                kinds = (Used(*used) for used in (entry.own, entry.process, entry.children))
                return Thread(thread, entry.parent, entry.robust_list, 0, *kinds)
            place = (place + 1) % lib.TS_CPU_ENTRIES
        return None

    def find_signalled(self, pids: Iterable[int]) -> Any:
        """Note which threads of these frozen processes will handle a signal in the next epoch.

        Args:
            pids: as we number them; we are in their pid namespace.

        Returns:
            What `lib.ts_release` must be given a moment after the thaw.
        """
        held = ffi.NULL
        for pid in pids:
            held = lib.ts_find_signalled(self._signals, self.generation + 1, pid, held)
        return held

    def signalled(self) -> dict[int, int]:
        """Return which threads had a signal to handle when which generation began."""
        entries = ffi.unpack(self._signals.entry, lib.TS_SIGNALLED)
        return {entry.thread: entry.generation for entry in entries if entry.thread}

    def restore_signalled(self, threads: dict[int, int]) -> None:
        """Note what `signalled` returned on another host."""
        for thread, generation in threads.items():
            lib.ts_note_signalled(self._signals, thread, generation)

    def task_area(self) -> dict[int, bytes]:
        """Return what the task ever wrote to the page: file offset -> bytes.

        CRIU does not dump the contents of files, shared mappings of them included.
        """
        return {start: self._map[start:end] for start, end in self._written()}

    def restore_task_area(self, parts: dict[int, bytes]) -> None:
        """Write what `task_area` returned on another host.

        Raises:
            Error: a part lies outside the task area.
        """
        for start, data in parts.items():
            if start < lib.TS_TASK_AREA or start + len(data) > self._task_end:
                raise Error("the export describes slots that lie outside the page")
            self._map[start : start + len(data)] = data

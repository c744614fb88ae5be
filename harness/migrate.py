"""The source side of a migration.

`migrate` is the story, top to bottom. Until `go` any failure lets the task run on here; after
`go` it never runs here again by itself. What the steps mean for clocks is in docs/clocks.md,
what happens when something dies between two of them in docs/migration.md.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timeshim
from harness.carrier import Carrier
from harness.criu import Criu
from timeshim import tsc
from timeshim._native import lib
from timeshim.control import Control
from timeshim.errors import Error
from timeshim.export import Export
from timeshim.page import TSC_RATIO_ONE
from timeshim.tasks import PARTS, runtime_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from timeshim.tasks import Task


CAP_SYS_RESOURCE = 24  # linux/capability.h


@dataclass(frozen=True)
class Options:
    """What the user may choose."""

    scale_tsc: bool = False
    """Accept a destination with another TSC frequency."""
    time_namespace: bool = True
    """Restore into a time namespace of the task's own, where the destination can make one."""


@dataclass(frozen=True)
class Summary:
    """What a migration came to. Times in nanoseconds."""

    task: str
    clocks: str
    destination: str
    blackout_ns: int
    """By the real-time clocks of both hosts."""
    bytes: int
    waits: int
    """Waits in progress whose deadlines were corrected."""
    timers_lost: int
    """Timers that could not be set again: they do not ring."""
    untrapped: int
    """Threads in which reading the TSC could not be made to trap again."""
    freeze_ns: int
    """The clocks were read at most this long after the last instruction here."""
    resume_ns: int
    """And again at most this long before the first one there."""
    advance_ns: int
    """By how much MONOTONIC went on all the same: none, but for the kernel's clocks."""
    virtual: dict[str, int]
    """The virtual clocks at resume."""

    @property
    def continuity_ns(self) -> int:
        """The most that any clock can differ from the one of a task that did not move."""
        return self.freeze_ns + self.resume_ns


class Progress:
    """Told what happens; the command line shows it, others need not."""

    def phase(self, name: str) -> None:
        """Note that a phase begins."""

    def total(self, size: int) -> None:
        """Learn how many bytes there are to send."""

    def advance(self, size: int) -> None:
        """Learn that some were sent."""


def migrate(
    task: Task, host: Sequence[str], options: Options, progress: Progress | None = None
) -> Summary:
    """Move a task to another host.

    Args:
        task: the task.
        host: command prefix that reaches the destination; empty for this host.
        options: see there.
        progress: told what happens.

    Raises:
        Error: it did not move, and why; it runs here, unless the message says otherwise.
    """
    progress = progress or Progress()
    progress.phase("check")
    criu = Criu.find()
    with Carrier(host) as carrier, Control(task.control) as control:
        ratio = agree(task, carrier, criu, options)

        progress.phase("freeze")
        frozen = control("freeze")
        try:
            images = make_image_room(task, resident_bytes(task))
            progress.phase("dump")
            criu.dump(task.supervisor, frozen["root"], images, task.cgroup.path)
            progress.phase("send")
            size = send(carrier, task, frozen, images, ratio, progress)
            task.drop_images()
            progress.phase("restore")
            carrier.expect("restored")
            progress.phase("commit")
            control("go", destination=list(host))
        except BaseException:
            control("resume")
            task.drop_images()
            raise

        running = hand_over(task, carrier)
        control("kill")

    export = Export.from_json(frozen["export"])
    return Summary(
        task=task.name,
        clocks=task.clocks,
        destination=carrier.peer,
        blackout_ns=running["blackout_ns"],
        bytes=size,
        waits=running["waits"],
        timers_lost=running["timers_lost"],
        untrapped=running["untrapped"],
        freeze_ns=export.freeze_ns,
        resume_ns=running["resume_ns"],
        advance_ns=running["advance_ns"],
        virtual=running["virtual"],
    )


def agree(task: Task, carrier: Carrier, criu: Criu, options: Options) -> int:
    """Have both ends check, before anything is frozen, that the task can go on there.

    Returns:
        The ratio of the task's TSC frequency to the destination's, Q4.60.

    Raises:
        Error: it cannot.
    """
    if task.clocks == "kernel" and not options.time_namespace:
        raise Error(f"{task.name} has no clocks but the kernel's: it needs a time namespace there")
    refuse_immovable(task)
    here = tsc.measure_once(runtime_dir() / "tsc.json")
    with task.page() as page:
        hz = page.tsc_hz
    carrier.expect_greeting()
    carrier.send(
        "offer",
        version=timeshim.__version__,
        task={
            "id": task.id,
            "name": task.name,
            "argv": task.argv,
            "hop": task.hop + 1,
            "tsc": task.tsc,
            "tsc_skip": task.tsc_skip,
        },
        clocks=task.clocks,
        criu=criu.version,
        tsc_hz=hz,
        time_namespace=options.time_namespace,
        files=mapped_files(task),
        locked=locked_files(task),
        boot=boot_id(),
        memory=resident_bytes(task),
    )
    accepted = carrier.expect("accept")
    there = tsc.Frequency(**accepted["tsc"])
    own = tsc.Frequency(hz, here.uncertainty_hz, here.source)
    if task.clocks != "shim" or own.matches(there):
        return TSC_RATIO_ONE
    if not options.scale_tsc:
        raise Error(
            f"the TSC of {task.name} runs at {own}, that of {carrier.peer} at {there}: use --scale-tsc to have it scaled"
        )
    ratio = lib.ts_ratio(hz, there.hz)
    if not ratio:
        raise Error(f"a TSC of {own} cannot be scaled from one of {there}: the ratio is too large")
    return int(ratio)


def refuse_immovable(task: Task) -> None:
    """Look for what CRIU would refuse to dump, in words of its own, with the task frozen.

    Raises:
        Error: there is some, and what.
    """
    capable = has_capability(CAP_SYS_RESOURCE)
    for pid in task.pids():
        process = Path(f"/proc/{pid}")
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name = (process / "comm").read_text().strip()
            uid = process.stat().st_uid
            if uid != os.getuid() and not capable:
                raise Error(
                    f"{name} runs as user {uid}, and root may not look at its limits here: CRIU needs CAP_SYS_RESOURCE to move it"
                )
            if "anon_inode:[io_uring]" in descriptors(process):
                raise Error(
                    f"{name} uses io_uring, which CRIU cannot move: have it do without (UV_USE_IO_URING=0 for Node.js)"
                )


def has_capability(number: int) -> bool:
    """Tell whether this process has a capability, of those in linux/capability.h."""
    status = Path("/proc/self/status").read_text().splitlines()
    effective = next(line.split()[1] for line in status if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> number & 1)


def descriptors(process: Path) -> set[str]:
    """Return what the descriptors of a process lead to."""
    found = set()
    for entry in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(entry))
    return found


def send(
    carrier: Carrier,
    task: Task,
    frozen: dict[str, Any],
    images: Path,
    ratio: int,
    progress: Progress,
) -> int:
    """Send the export, the task's own parts and the images.

    Returns:
        How many bytes of files.
    """
    carrier.send("export", frozen=frozen, tsc_ratio=ratio)
    files = [task.shared / part for part in PARTS]
    files += sorted(path for path in images.iterdir() if path.suffix == ".img")
    size = sum(path.stat().st_size for path in files)
    progress.total(size)
    for path in files:
        carrier.send_file(path, path.name, progress.advance)
    carrier.send("end")
    return size


def hand_over(task: Task, carrier: Carrier) -> dict[str, Any]:
    """Tell the destination to let the task run, and hear that it does.

    Raises:
        Error: it did not say so. The copy here stays frozen: only the destination knows.
    """
    try:
        carrier.send("go")
        return carrier.expect("running")
    except Error as error:
        raise Error(
            f"{error}; it was told to let {task.name} run, but did not say that it does, so the copy here stays frozen: `timeshim resolve {task.name}` asks it"
        ) from None


def make_image_room(task: Task, size: int) -> Path:
    """Make a directory for images, in memory if there is room, else on disk.

    Raises:
        Error: neither has room for them.
    """
    needed = size + size // 16 + (8 << 20)
    tried = []
    for parent in (runtime_dir(), Path("/var/tmp")):  # noqa: S108 - the directory is ours alone
        free = shutil.disk_usage(parent).free
        if free >= needed:
            path = parent / f"timeshim-images-{task.place}"
            task.images = str(path)
            task.save()  # first, so that it is found and removed whatever happens
            path.mkdir(mode=0o700)
            return path
        tried.append(f"{parent} has {free >> 20} MB free")
    raise Error(f"no room for the images, {needed >> 20} MB: {', '.join(tried)}")


def _per_process(task: Task, file: str, take: Callable[[str], None]) -> None:
    for pid in task.pids():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            take(Path(f"/proc/{pid}/{file}").read_text())


def mapped_files(task: Task) -> dict[str, int]:
    """Return the files that a task has mapped, programs and libraries: path -> bytes."""
    found: dict[str, int] = {}

    def take(maps: str) -> None:
        for line in maps.splitlines():
            path = line.split(maxsplit=5)[5:]
            if path and path[0].startswith("/") and not path[0].startswith(str(task.inside)):
                with contextlib.suppress(OSError):
                    found[path[0]] = Path(path[0]).stat().st_size

    _per_process(task, "maps", take)
    return found


def locked_files(task: Task) -> dict[str, list[int]]:
    """Return the files that a task has locked, in whatever way: path -> device and inode."""
    found: dict[str, list[int]] = {}
    for pid in task.pids():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    if "\nlock:" in entry.read_text():
                        file = Path(f"/proc/{pid}/fd/{entry.name}")
                        status = file.stat()
                        found[os.readlink(file)] = [status.st_dev, status.st_ino]
    return found


def boot_id() -> str:
    """Return what tells this kernel, since it was booted, from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def resident_bytes(task: Task) -> int:
    """Return how much memory of a task would be in the images, at most."""
    total = 0

    def take(status: str) -> None:
        nonlocal total
        for line in status.splitlines():
            if line.startswith(("RssAnon:", "RssShmem:", "VmSwap:")):
                total += int(line.split()[1]) << 10

    _per_process(task, "status", take)
    return total

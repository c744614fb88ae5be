"""The tasks of this user on this host: their directories, and how one is found by name.

A task that is on this host has a directory ``<runtime>/<id>.<hop>.<attempt>``, and a cgroup of that
name. Each attempt to come here has a name of its own, so that whoever cleans up late after one
that failed removes nothing of the next::

    task.json   what follows in `Task`
    control     the supervisor's socket
    shared/     all the task itself sees, as /run/timeshim-task: page, libtimeshim.so, reaper

The shim and the reaper are copies: they move with the task, so that neither an upgrade here nor
another release there changes what lies under a running program.

What a task prints where nobody reads it goes to ``<runtime>/output/<name>``, and stays there when
the task has ended or left, until a task of the same name comes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from timeshim import _native
from timeshim.cgroup import Cgroup, hierarchy
from timeshim.errors import Error
from timeshim.page import Page

SWEEP_SECONDS = 3600.0  # longer than any restore takes, whose cgroup is empty until its end
PARTS = ("libtimeshim.so", "reaper")
BUILT = Path(_native.__file__).parent  # preload/build.py puts them beside the module


def runtime_dir() -> Path:
    """Return, and make, this user's runtime directory, which nobody else may enter.

    Raises:
        Error: it belongs to somebody else.
    """
    if os.geteuid() == 0:
        path = Path("/run/timeshim")
    elif "XDG_RUNTIME_DIR" in os.environ:
        path = Path(os.environ["XDG_RUNTIME_DIR"]) / "timeshim"
    else:
        path = Path(f"/tmp/timeshim-{os.geteuid()}")  # noqa: S108 - owner and mode are checked
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077 or path.is_symlink():
        raise Error(f"{path} is not a directory of yours alone: remove it or set XDG_RUNTIME_DIR")
    return path


def start_time(pid: int) -> int | None:
    """Return when a process was started, in ticks since boot: with the pid, its identity.

    Returns:
        None if there is no such process, or only a zombie of it.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def parent_of(pid: int) -> int | None:
    """Return a process's parent; None if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


@dataclass
class Task:
    """A task on this host."""

    id: str
    name: str
    argv: list[str]
    clocks: str
    """``shim``, or ``none``: launched without the shim."""
    hop: int
    """How many hosts it has been on before."""
    capsule: bool
    """Whether it has a pid and a mount namespace of its own, and a cgroup."""
    attempt: str = field(default_factory=lambda: secrets.token_hex(4))
    """Tells attempts to come to this host apart."""
    tsc: str = "patch"
    """What becomes of instructions that read the TSC: ``patch``, ``trap``, or ``off``: nothing."""
    tsc_skip: list[str] = field(default_factory=list)
    """The objects in which they are left as they are."""
    supervisor: int = 0
    """Pid of the supervisor, the capsule's init."""
    started: int | None = None
    """`start_time` of the supervisor."""
    images: str = ""
    """Directory of images that belong to a migration of it in progress."""

    @property
    def place(self) -> str:
        """What all that it has on this host is named after."""
        return f"{self.id}.{self.hop}.{self.attempt}"

    @property
    def dir(self) -> Path:
        """Its directory on this host."""
        return runtime_dir() / self.place

    @property
    def shared(self) -> Path:
        """The part of its directory that the task itself sees."""
        return self.dir / "shared"

    @property
    def output(self) -> Path:
        """What it printed on this host without anybody there to read it."""
        return output_of(self.name)

    @property
    def inside(self) -> Path:
        """Where the task sees that part: at one place on all hosts, so that CRIU finds it.

        Outside the runtime directory: a process of the task may give up root and start programs.
        """
        return Path("/run/timeshim-task") if self.capsule else self.shared

    @property
    def control(self) -> Path:
        """The supervisor's socket."""
        return self.dir / "control"

    @property
    def cgroup(self) -> Cgroup:
        """Its cgroup on this host."""
        return Cgroup.named(self.place)

    @property
    def alive(self) -> bool:
        """Whether its supervisor runs."""
        return self.started is not None and start_time(self.supervisor) == self.started

    @classmethod
    def create(
        cls,
        name: str | None,
        argv: list[str],
        clocks: str,
        tsc_hz: int,
        tsc: str,
        tsc_skip: list[str],
    ) -> Self:
        """Make the directory, the page and the cgroup of a task that is to be launched.

        Raises:
            Error: a task of that name runs already.
        """
        task = cls(
            id=secrets.token_hex(8),
            name=name or "",
            argv=argv,
            clocks=clocks,
            hop=0,
            capsule=os.geteuid() == 0,
            tsc=tsc,
            tsc_skip=tsc_skip,
        )
        task.name = task.name or unused_name(Path(argv[0]).name)
        if name and any(other.name == name for other in all_tasks()):
            raise Error(f"a task named {name!r} runs already: choose another name")
        task.make_room(tsc_hz)
        for part in PARTS:
            shutil.copy(BUILT / part, task.shared)
        return task

    def make_room(self, tsc_hz: int) -> None:
        """Make its directory, with a fresh page, and its cgroup.

        Raises:
            Error: it is on this host already.
        """
        here = [task for task in all_tasks() if task.id == self.id]
        if any(task.hop == self.hop for task in here):
            raise Error(f"{self.name} is on this host already, or on its way here")
        self.dir.mkdir(mode=0o700)
        self.shared.mkdir()
        self.shared.chmod(0o755)
        self.inside.mkdir(exist_ok=True)
        self.inside.chmod(0o755)
        self.output.parent.mkdir(exist_ok=True)
        if not here:  # else it comes from this very host, and has printed already
            self.output.write_bytes(b"")
        Page.create(
            self.shared / "page",
            self.id,
            tsc_hz,
            patch_tsc=self.tsc == "patch",
            trap_tsc=self.tsc == "trap",
            tsc_skip=self.tsc_skip,
        ).close()
        if self.capsule:
            self.cgroup.create()
        self.supervisor, self.started = os.getpid(), start_time(os.getpid())
        self.save()

    def save(self) -> None:
        """Write task.json, whole or not at all."""
        fresh = self.dir / f"task.json.{os.getpid()}"
        fresh.write_text(json.dumps(asdict(self)))
        fresh.rename(self.dir / "task.json")

    def remove(self) -> None:
        """Remove what a task that has ended, or left, leaves here; any number of times."""
        if self.capsule:
            if self.cgroup.path.exists():
                self.cgroup.kill()
            self.cgroup.remove()
        self.drop_images()
        shutil.rmtree(self.dir, ignore_errors=True)

    def drop_images(self) -> None:
        """Remove its images, if there are any."""
        if self.images:
            shutil.rmtree(self.images, ignore_errors=True)

    def pids(self) -> list[int]:
        """Return its processes, the root first, as the caller sees them; none without a capsule.

        The root is the supervisor's child. Its pid need not be the lowest: they begin again.
        """
        if not self.capsule:
            return []
        return sorted(self.cgroup.pids(), key=lambda pid: (parent_of(pid) != self.supervisor, pid))

    def page(self) -> Page:
        """Open its page."""
        return Page.open(self.shared / "page", self.id)


def _load(path: Path) -> Task | None:
    try:
        return Task(**json.loads((path / "task.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None  # just being made or removed


def _sweep() -> None:
    """Remove what nobody can tell the owner of: whoever was making or removing it was killed.

    Cgroups are shared with namespace hosts, whose tasks are not listed here; but those have
    processes in them, or will soon.
    """
    directories = [path for path in runtime_dir().glob("*.*") if path.is_dir()]
    for path in directories:
        if not (path / "task.json").exists() and _age(path) > SWEEP_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
    if os.geteuid() == 0:
        with contextlib.suppress(Error, OSError):  # no cgroups; or one was just removed
            for path in (hierarchy() / "timeshim").glob("*.*"):
                if path.is_dir() and _age(path) > SWEEP_SECONDS and not Cgroup(path).populated:
                    path.rmdir()


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0


def all_tasks() -> list[Task]:
    """Return the tasks on this host, oldest first, and remove what dead ones left."""
    _sweep()
    tasks = [task for path in runtime_dir().iterdir() if (task := _load(path))]
    for task in tasks:
        if not task.alive:
            task.remove()
    return sorted((task for task in tasks if task.alive), key=lambda task: task.started or 0)


def output_of(name: str) -> Path:
    """Return where what a task of that name printed is kept."""
    return runtime_dir() / "output" / name.replace("/", "_")


def _arrivals() -> Path:
    return runtime_dir() / "arrivals"


def note_arrival(task: Task) -> None:
    """Write down, durably, that a task may run here from now on."""
    _arrivals().mkdir(exist_ok=True)
    fd = os.open(_arrivals() / f"{task.id}.{task.hop}", os.O_CREAT | os.O_WRONLY, 0o600)
    os.fsync(fd)
    os.close(fd)


def has_arrived(task_id: str, hop: int) -> bool:
    """Tell whether a task was ever let run here, at the given hop of its way."""
    return (_arrivals() / f"{task_id}.{hop}").exists()


def unused_name(wish: str) -> str:
    """Return the name, with a number behind it if a task has it already."""
    taken = {task.name for task in all_tasks()}
    number = 2
    name = wish
    while name in taken:
        name = f"{wish}-{number}"
        number += 1
    return name


def find(name: str) -> Task:
    """Return the task of that name or id.

    Raises:
        Error: there is none.
    """
    tasks = all_tasks()
    for task in tasks:
        if name in (task.name, task.id):
            return task
    running = ", ".join(task.name for task in tasks) or "none is running"
    raise Error(f"there is no task {name!r} on this host ({running})")

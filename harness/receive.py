"""The destination side of a migration: `timeshim receive`, on the carrier's two ends.

Nothing it does is final until `go`. If it dies before, the supervisor that it started sees its
lease end and takes everything down with it; the kernel does the rest.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.criu import Criu, leave_time_namespace
from harness.migrate import boot_id, make_image_room
from timeshim import timens, tsc
from timeshim.control import Control
from timeshim.errors import Error
from timeshim.export import Export
from timeshim.launch import start_supervisor
from timeshim.supervisor import tree
from timeshim.tasks import PARTS, Task, all_tasks, has_arrived, runtime_dir, unused_name

if TYPE_CHECKING:
    from harness.wire import Wire
    from timeshim.supervisor import Supervisor


def receive(wire: Wire) -> None:
    """Receive whatever the other end sends: a task, or a question about one."""
    wire.greet()
    try:
        first = wire.receive()
        if first["kind"] == "question":
            wire.send("answer", arrived=has_arrived(first["id"], first["hop"]))
        elif first["kind"] == "offer":
            receive_task(wire, first)
        else:
            raise Error(f"a stream cannot begin with {first['kind']!r}")
    except Error as error:
        _refuse(wire, str(error))
    except OSError as error:
        _refuse(wire, f"{error.filename or 'the system'}: {error.strerror}")
    except (KeyError, TypeError, ValueError) as error:
        _refuse(wire, f"a message lacks or garbles {error}")


def _refuse(wire: Wire, message: str) -> None:
    with contextlib.suppress(Error):  # the other end may be what failed
        wire.send("error", message=message)
    raise SystemExit(1)


def receive_task(wire: Wire, offer: dict[str, Any]) -> None:
    """Receive a task and let it run once the source has given it away.

    Raises:
        Error: it cannot run here; nothing of it is left.
    """
    criu = check(offer)
    frequency = tsc.measure_once(runtime_dir() / "tsc.json")
    task = Task(**offer["task"], clocks=offer["clocks"], capsule=True)
    if any(other.name == task.name and other.id != task.id for other in all_tasks()):
        task.name = unused_name(task.name)
    task.make_room(offer["tsc_hz"])
    try:
        images = make_image_room(task, offer["memory"])
        wire.send("accept", tsc=asdict(frequency), name=task.name)
        export = wire.expect("export")
        frozen = export["frozen"]
        receive_files(wire, task, images)
        # without ours it is a contrast: plain CRIU, and the time namespace that it makes
        namespace = offer["time_namespace"] and timens.supported()
        ours = namespace and task.clocks != "none"
        if ours or not namespace:
            leave_time_namespace(images)
        with arrive(task, criu, frozen, images, time_namespace=ours) as control:
            wire.send("restored")
            wire.expect("go")
            running = control(
                "commit",
                export=frozen["export"],
                root=frozen["root"],
                last_pid=frozen["last_pid"],
                tsc_ratio=export["tsc_ratio"],
            )
            task.drop_images()
            wire.send("running", **running)
    except BaseException:
        if not has_arrived(task.id, task.hop):
            task.remove()
        raise


def check(offer: dict[str, Any]) -> Criu:
    """Check whether the task can run here.

    Raises:
        Error: it cannot, and what is missing.
    """
    if os.geteuid():
        raise Error("a task can only be restored by root")
    if offer["clocks"] == "kernel" and not timens.supported():
        raise Error("the task has no clocks but the kernel's, and this one has no time namespaces")
    criu = Criu.find()
    if criu.version != offer["criu"]:
        raise Error(
            f"criu here is {criu.version}, at the source it is {offer['criu']}: install the same version"
        )
    for name, size in offer["files"].items():
        path = Path(name)
        if not path.is_file():
            raise Error(f"the task uses {name}, which does not exist here: install it")
        if path.stat().st_size != size:
            raise Error(
                f"{name} is another file here ({path.stat().st_size} bytes instead of {size}): install the same version"
            )
    if offer["boot"] == boot_id():
        refuse_locked(offer["locked"])
    return criu


def refuse_locked(files: dict[str, list[int]]) -> None:
    """Look for files that the task has locked, on a host with the source's kernel.

    CRIU would wait for the locks, and the copy at the source, which holds them, for CRIU.

    Raises:
        Error: one of them is the very same file here.
    """
    for name, identity in files.items():
        with contextlib.suppress(OSError):
            status = Path(name).stat()
            if [status.st_dev, status.st_ino] == identity:
                raise Error(
                    f"the task has locked {name}, which is the same file here: two copies of a task cannot hold one lock while it moves"
                )


def receive_files(wire: Wire, task: Task, images: Path) -> None:
    """Receive the files that follow the export.

    Raises:
        Error: one has a name that is no image's.
        OSError: the disk is full.
    """
    while True:
        message = wire.receive()
        if message["kind"] == "end":
            return
        name = message["name"]
        if name in PARTS:
            path = task.shared / name
        elif name.endswith(".img") and "/" not in name:
            path = images / name
        else:
            raise Error(f"the stream contains a file {name!r}, which no task has")
        wire.receive_file(message, path)
        if name in PARTS:
            path.chmod(0o755)


@contextlib.contextmanager
def arrive(
    task: Task, criu: Criu, frozen: dict[str, Any], images: Path, *, time_namespace: bool
) -> Any:
    """Restore a task into a capsule of its own, frozen, and yield its supervisor.

    With a time namespace, the kernel's clocks go on there as well, as far as they can.
    Leaving this without a commit ends the capsule, with all that is in it.
    """
    pipes = [(inode, os.pipe2(os.O_CLOEXEC)) for inode in frozen["pipes"]]

    def begin(supervisor: Supervisor) -> None:
        supervisor.reserve_pids()
        if time_namespace:
            export = Export.from_json(frozen["export"])
            supervisor.go_on(export.virtual, export.lead_ns)
        for _, (_, writer) in pipes:
            os.close(writer)

    def before_resume(criu_pid: int, root: int) -> None:
        """Have the whole tree frozen by the time that CRIU lets it run."""
        task.cgroup.begin_freeze()
        for pid in restored_tree(criu_pid, root):
            task.cgroup.add(pid)

    outputs = [(reader, None) for _, (reader, _) in pipes]
    # as long as this report is open, the supervisor knows that we are there
    report = start_supervisor(task, outputs, [writer for _, (_, writer) in pipes], begin)
    report.wait("listening")
    with Control(task.control) as control:
        criu.restore(
            task.supervisor,
            frozen["root"],
            images,
            {f"pipe:[{inode}]": writer for inode, (_, writer) in pipes},
            before_resume,
        )
        for _, pipe in pipes:
            for fd in pipe:
                os.close(fd)
        task.cgroup.await_frozen()  # asked to already; CRIU has just let go of its threads
        yield control


def restored_tree(ancestor: int, root: int) -> list[int]:
    """Return a tree's processes, as we number them.

    Args:
        ancestor: a process above it, as we number it.
        root: its root, as its own pid namespace numbers it.
    """
    for pid in tree(ancestor)[1:]:
        status = Path(f"/proc/{pid}/status").read_text()
        numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
        if int(numbers.split()[-1]) == root:
            return tree(pid)
    raise Error(f"criu restored no process {root}")

"""CRIU, by its RPC: dumping and restoring a tree, with every notification answered.

pycriu brings the messages (criu/images/rpc.proto). Its own client reads one reply and no more,
so the loop that acknowledges notifications is here. CRIU runs as ``criu swrk`` (one request on
an inherited socket) inside the task's capsule, so that pids, paths and clocks are the task's own.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from timeshim import timens
from timeshim.errors import Error

if TYPE_CHECKING:
    from collections.abc import Callable

# where harness/criu-install.sh puts one if the system's does not work on this kernel
PRIVATE = Path(os.environ.get("TIMESHIM_CRIU_DIR", "/usr/local/lib/timeshim/criu"))
SYSTEM_MODULES = Path("/usr/lib/python3/dist-packages")  # Debian's python3-pycriu

RPC_SECONDS = 600.0  # a dump of a large task is one reply
MESSAGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Criu:
    """A CRIU that is installed on this host."""

    command: str
    version: str
    rpc: Any
    """The module pycriu.rpc_pb2."""

    @classmethod
    def find(cls) -> Self:
        """Find the CRIU to use: TIMESHIM_CRIU, the private one, or the system's.

        Raises:
            Error: there is none, or its Python module is missing.
        """
        private = PRIVATE / "criu"
        command = os.environ.get("TIMESHIM_CRIU") or (
            str(private) if private.exists() else shutil.which("criu")
        )
        if not command or not shutil.which(command):
            script = Path(__file__).with_name("criu-install.sh")
            raise Error(
                f"criu is not installed: run `sh {script}`, or install criu 4 and python3-pycriu"
            )
        output = subprocess.run(
            [command, "--version"], capture_output=True, text=True, check=False, timeout=20
        ).stdout
        version = re.search(r"Version: (\S+)", output)
        if not version:
            raise Error(f"{command} does not run as criu does: try `{command} check`")
        modules = PRIVATE / "python" if command == str(private) else SYSTEM_MODULES
        if str(modules) not in sys.path:
            sys.path.append(str(modules))
        try:
            rpc = importlib.import_module("pycriu.rpc_pb2")
        except ImportError:
            message = (
                f"pycriu, the Python module of {command}, is not installed: install python3-pycriu"
            )
            raise Error(message) from None
        return cls(command, version[1], rpc)

    def dump(self, capsule: int, root: int, images: Path, cgroup: Path) -> None:
        """Dump a frozen tree and leave it frozen.

        The cgroup is frozen already; CRIU finds that out, and freezes it again when it lets go
        (criu/seize.c, freezer_restore_state).

        Args:
            capsule: pid of the capsule's init.
            root: the tree's root, as a pid of the capsule.
            images: directory for the images; the log is dump.log there.
            cgroup: the tree's cgroup.

        Raises:
            Error: the tree cannot be dumped, and why.
        """
        request = self.rpc.criu_req(type=self.rpc.DUMP)
        options = request.opts
        options.leave_running = True
        options.freeze_cgroup = str(cgroup)
        options.link_remap = True
        with image_directory(images) as directory:
            self._common(options, directory, root, "dump.log")
            self._request(capsule, request, images / "dump.log", [directory])

    def restore(
        self,
        capsule: int,
        root: int,
        images: Path,
        inherit: dict[str, int],
        before_resume: Callable[[int, int], None],
    ) -> None:
        """Restore a tree from its images.

        Args:
            capsule: pid of the capsule's init.
            root: the tree's root, as a pid of the capsule.
            images: directory of the images; the log is restore.log there.
            inherit: descriptors to put in place of the tree's, by CRIU's name for them.
            before_resume: called with the pid of CRIU and with `root` when the tree is restored
                completely, just before it would run.

        Raises:
            Error: the tree cannot be restored, and why; nothing of it is left running.
        """
        request = self.rpc.criu_req(type=self.rpc.RESTORE)
        options = request.opts
        for key, fd in inherit.items():
            options.inherit_fd.add(key=key, fd=fd)

        def notified(script: str, criu: int) -> None:
            if script == "pre-resume":
                before_resume(criu, root)

        with image_directory(images) as directory:
            self._common(options, directory, root, "restore.log")
            fds = [directory, *inherit.values()]
            self._request(capsule, request, images / "restore.log", fds, notified)

    def _common(self, options: Any, directory: int, root: int, log: str) -> None:
        options.pid = root
        # By name, for images_dir_fd is looked up under a pid that the capsule does not know; and
        # by a link, for CRIU 4.1 calls readlink() on it (criu/cr-service.c).
        options.images_dir_fd = -1
        options.images_dir = f"/proc/self/fd/{directory}"
        options.log_level = 4
        options.log_file = log
        options.notify_scripts = True
        options.manage_cgroups_mode = self.rpc.IGNORE  # the cgroup is ours, one per host
        options.tcp_close = True
        options.tcp_skip_in_flight = True  # they are closed before they are accepted, that is all
        options.file_locks = True
        options.ext_unix_sk = True

    def _request(
        self,
        capsule: int,
        request: Any,
        log: Path,
        fds: list[int],
        notified: Callable[[str, int], None] = lambda _script, _criu: None,
    ) -> None:
        """Have a fresh CRIU in a capsule carry out one request."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(RPC_SECONDS)
        enter = ["nsenter", f"--target={capsule}", "--pid", "--mount"]
        if namespace := timens.held_by(capsule):
            enter.append(f"--time={namespace}")
        with ours, theirs:
            process = subprocess.Popen(
                [*enter, "--", self.command, "swrk", str(theirs.fileno())],
                pass_fds=[theirs.fileno(), *fds],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
            )
            theirs.close()
            try:
                ours.send(request.SerializeToString())
                self._converse(ours, process.pid, log, notified)
            except OSError as error:
                raise Error(explain(log, f"criu went away ({error})")) from None
            finally:
                ours.close()  # a CRIU that still works on it gives up now, and cleans up
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(RPC_SECONDS)

    def _converse(
        self,
        channel: socket.socket,
        criu: int,
        log: Path,
        notified: Callable[[str, int], None],
    ) -> None:
        while True:
            packet = channel.recv(MESSAGE_BYTES)
            if not packet:
                raise Error(explain(log, "criu went away"))
            response = self.rpc.criu_resp.FromString(packet)
            if response.type != self.rpc.NOTIFY:
                break
            acknowledge = self.rpc.criu_req(type=self.rpc.NOTIFY, notify_success=False)
            try:
                notified(response.notify.script, criu)
                acknowledge.notify_success = True
            finally:
                channel.send(acknowledge.SerializeToString())
        if not response.success:
            raise Error(explain(log, "criu gave no reason"))


@contextlib.contextmanager
def image_directory(images: Path) -> Any:
    """Hold an image directory open as a descriptor."""
    fd = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def leave_time_namespace(images: Path) -> None:
    """Change images so that the tree is restored into the time namespace that CRIU runs in.

    Without its image, CRIU leaves the root time namespace alone (criu/timens.c, prepare_timens);
    so all that is left to do is to say that this is the one the tree was in.
    """
    from pycriu import images as pycriu_images  # noqa: PLC0415 - Criu.find makes it importable

    with (images / "inventory.img").open("rb") as file:
        root = pycriu_images.load(file)["entries"][0]["root_ids"].get("time_ns_id")
    for path in images.glob("ids-*.img"):
        with path.open("rb") as file:
            content = pycriu_images.load(file)
        for entry in content["entries"]:
            if root is not None:
                entry["time_ns_id"] = root
        with path.open("wb") as file:
            pycriu_images.dump(content, file)
    for path in images.glob("timens-*.img"):
        path.unlink()


# logged whenever the hard limit may not be raised, and never the reason of a failure
_HARMLESS = "rlimit: Can't setup RLIMIT_NOFILE"


def explain(log: Path, otherwise: str) -> str:
    """Return what CRIU's log says went wrong: the first error, which the others follow from."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    errors = [
        line.partition("): ")[2] for line in lines if " Error (" in line and _HARMLESS not in line
    ]
    return f"criu: {errors[0].strip()}" if errors else otherwise

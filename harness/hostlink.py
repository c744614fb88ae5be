"""A carrier between two namespace hosts, for the demo and the tests; no part of the product.

Between real hosts ssh does this. A namespace host cannot enter its neighbour: only a pid namespace
below one's own can be entered (setns(2)), so the creator of both, who can, runs the command:

    migrate ──▶ main(), on the source ══ unix socket ══ creator ──▶ nsenter into the destination

The three standard descriptors go over the socket once, so no byte of the stream passes through
here. The socket's name is in the source's own /run, and goes with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import socket
import sys
import sysconfig
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.hosts import Host

ARGV_BYTES = 1 << 16
SCRIPTS = sysconfig.get_path("scripts")  # where this `timeshim` is, whoever calls it from where
NOT_RUN = 255  # as ssh(1) does


@contextlib.contextmanager
def link(source: Host, destination: Host) -> Iterator[str]:
    """Give the HOST argument that means `destination` in commands run on `source`.

    What still runs over it when the context ends is killed.
    """
    name = f"run/link-to-{destination.name}"
    outside = Path(f"/proc/{source.pid}/root/{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(outside))
        listener.listen()
        server = threading.Thread(target=_serve, args=(listener, destination), daemon=True)
        server.start()
        try:
            yield shlex.join([sys.executable, "-m", __name__, f"/{name}"])
        finally:
            outside.unlink(missing_ok=True)
            listener.shutdown(socket.SHUT_RDWR)
            server.join()


def _serve(listener: socket.socket, host: Host) -> None:
    """Carry out requests until the listener is shut down, and then end those under way."""
    requests: list[tuple[socket.socket, threading.Thread]] = []
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            thread = threading.Thread(target=_run, args=(connection, host), daemon=True)
            thread.start()
            requests.append((connection, thread))
    for connection, thread in requests:
        with contextlib.suppress(OSError):  # closed already
            connection.shutdown(socket.SHUT_RDWR)
        thread.join()


def _run(connection: socket.socket, host: Host) -> None:
    """Run one command on the host, until it ends or nobody waits for it any more."""
    with connection:
        message, descriptors, _, _ = socket.recv_fds(connection, ARGV_BYTES, 3)
        environment = os.environ | {"PATH": f"{SCRIPTS}:{os.environ.get('PATH', '')}"}
        try:
            stdin, stdout, stderr = descriptors
            process = host.popen(
                *message.decode().split("\0"),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=environment,
            )
        finally:
            for fd in descriptors:
                os.close(fd)
        ended = os.pidfd_open(process.pid)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(connection, select.POLLIN)
        if ended not in dict(poll.poll()):
            # nsenter passes no signal on, so what is killed is its child
            for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        os.close(ended)
        status = process.wait()
        with contextlib.suppress(OSError):
            connection.sendall(bytes([status if status >= 0 else 128 - status]))


def main() -> int:
    """Have a command run at the other end of a link: python -m harness.hostlink SOCKET CMD..."""
    path, *argv = sys.argv[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
            socket.send_fds(connection, ["\0".join(argv).encode()], [0, 1, 2])
            status = connection.recv(1)
        except OSError as error:
            print(f"{path}: {error.strerror}", file=sys.stderr)
            return NOT_RUN
    return status[0] if status else NOT_RUN


if __name__ == "__main__":
    sys.exit(main())

"""Talking to a task's supervisor: one JSON object a line, each answered by one line.

The connection is a lease. What the caller began with `freeze` ends with the connection unless
it has said `go`; so a harness that is killed leaves a task that runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING, Any, Self

from timeshim.errors import Error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANSWER_SECONDS = 60.0
ADDRESS_BYTES = 107  # unix(7): sun_path, without its null byte


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """Give an address for a UNIX socket at a path, however long that is."""
    if len(os.fsencode(path)) <= ADDRESS_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class Control:
    """A connection to a supervisor."""

    def __init__(self, path: Path) -> None:
        """Connect.

        Raises:
            Error: the supervisor does not listen: the task has ended.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_SECONDS)
        try:
            with address(path) as reachable:
                self._socket.connect(reachable)
        except OSError as error:
            self._socket.close()
            raise Error(f"the task's supervisor does not answer: {error.strerror}") from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        """Return the connection."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection, which ends the lease."""
        self.close()

    def close(self) -> None:
        """Close the connection, which ends the lease."""
        self._lines.close()
        self._socket.close()

    def __call__(self, operation: str, **arguments: Any) -> Any:
        """Have the supervisor do something, and return what it answers.

        Raises:
            Error: it refused, and why; or the task ended.
            TimeoutError: it does not answer at all.
        """
        line = b""
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(json.dumps([operation, arguments]).encode() + b"\n")
            line = self._lines.readline()
        if not line:
            raise Error("the task has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise Error(answer["error"])
        return answer["result"]

"""A carrier: the command that starts the receiving side on a host, and its byte stream.

Authentication and encryption are the carrier's. timeshim opens no port.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness.wire import Wire
from timeshim.errors import Error

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_SECONDS = 10.0


class Carrier(Wire):
    """A running carrier; a context manager that ends it."""

    def __init__(self, host: Sequence[str]) -> None:
        """Start it.

        Args:
            host: the command prefix; empty for this host.

        Raises:
            Error: the command cannot be started.
        """
        command = [*host, "timeshim", "receive"]
        # on this machine and its namespace hosts, `timeshim` is the one that runs now
        here = Path(sys.argv[0]).resolve().parent
        environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}"}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=environment,
                # A Ctrl-C is for us to turn into an orderly end; ssh keeps the terminal otherwise.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
            )
        except OSError as error:
            raise Error(f"cannot run {command[0]!r} to reach the host: {error.strerror}") from None
        assert self.process.stdin
        assert self.process.stdout
        super().__init__(
            self.process.stdout, self.process.stdin, shlex.join(host) if host else "this host"
        )

    def __enter__(self) -> Self:
        """Return the carrier."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it: the receiving side sees the end of the stream, and then nobody waits for it."""
        with contextlib.suppress(OSError):  # it may have ended first
            self.writer.close()
        try:
            self.process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.close()
        self._said.close()

    def lost(self) -> Error:
        """Return the error that the other end is gone, with the last thing that it said."""
        try:
            status = self.process.wait(2)
        except subprocess.TimeoutExpired:
            return Error(f"{self.peer} closed the connection")
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        why = said[-1].strip() if said else f"exit status {status}"
        return Error(f"{self.peer} cannot be reached or went away: {why}")

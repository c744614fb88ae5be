"""A carrier that breaks at a chosen moment of the conversation, with nothing left to chance.

    python breaking_carrier.py MOMENT COMMAND...

It runs COMMAND, the receiving side, passes messages on in both directions, and recognises the
moment by the message that it is about to pass on. What happens then is in `MOMENTS`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from harness.wire import CHUNK, GREETING, Wire
from timeshim.control import Control
from timeshim.errors import Error
from timeshim.tasks import find

FILLER = Path("/run/filler")


class Carrier:
    def __init__(self, moment: str, command: list[str]) -> None:
        self.kind, self.action = MOMENTS[moment]
        self.done = False
        self.task = ""
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.child.stdin
        assert self.child.stdout
        self.to_child = Wire(sys.stdin.buffer, self.child.stdin, "source")
        self.to_source = Wire(self.child.stdout, sys.stdout.buffer, "receiver")

    def run(self) -> None:
        threading.Thread(target=self.pump, args=(self.to_child,), daemon=True).start()
        line = self.to_source.reader.readline()
        assert line == GREETING
        self.to_source.greet()
        self.pump(self.to_source)
        self.child.wait()

    def pump(self, wire: Wire) -> None:
        """Pass messages on from the reader of a wire to its writer."""
        try:
            while True:
                message = wire.receive()
                if message["kind"] == "offer":
                    self.task = message["task"]["name"]
                if message["kind"] == self.kind and not self.done:
                    self.done = True
                    self.action(self)
                wire.send(**message)
                left = message.get("size", 0) if message["kind"] == "file" else 0
                while left:
                    data = wire.reader.read(min(CHUNK, left))
                    wire.writer.write(data)
                    left -= len(data)
                wire.writer.flush()
        except Exception:  # noqa: BLE001 - one side is gone, so the other shall be told
            wire.writer.close()

    def kill_receiver(self) -> None:
        self.child.kill()
        self.child.wait()
        os._exit(1)

    def cut(self) -> None:
        """Let go of both sides: a network that is gone."""
        os._exit(1)

    def dawdle(self) -> None:
        time.sleep(10)

    def kill_source(self) -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(1)

    def interrupt_source(self) -> None:
        os.kill(os.getppid(), signal.SIGINT)

    def freeze_again(self) -> None:
        """Begin another migration, as far as the source; it must be refused, and then it ends."""
        with Control(find(self.task).control) as control:
            try:
                control("freeze")
            except Error as error:
                if "is frozen, not running" in str(error):
                    return
        os._exit(1)

    def fill_disk(self) -> None:
        with FILLER.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass


MOMENTS = {
    "receiver killed after the checks": ("accept", Carrier.kill_receiver),
    "receiver killed at the first image": ("file", Carrier.kill_receiver),
    "receiver killed with everything restored": ("restored", Carrier.kill_receiver),
    "network gone with everything restored": ("restored", Carrier.cut),
    "source killed with everything restored": ("restored", Carrier.kill_source),
    "Ctrl-C with everything restored": ("restored", Carrier.interrupt_source),
    "another migration with everything restored": ("restored", Carrier.freeze_again),
    "receiver killed before it hears go": ("go", Carrier.kill_receiver),
    "network gone when it runs there": ("running", Carrier.cut),
    "ten seconds with everything restored": ("restored", Carrier.dawdle),
    "disk full at the first image": ("file", Carrier.fill_disk),
}


if __name__ == "__main__":
    Carrier(sys.argv[1], sys.argv[2:]).run()

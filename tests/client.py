"""The client of servers that move: writes to one wherever it is, and finds out what was lost.

    client.py write CONNECTIONS PORT ADDRESS...    until standard input ends; prints a JSON object
    client.py idle PORT ADDRESS                    prints how long an idle connection is let be

It speaks just enough of redis' protocol (RESP) for SET and GET. Every key is written once; a write
counts when the server has acknowledged it, and in the end all those that count are read again.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections import Counter

ANSWER_SECONDS = 0.5  # a server that is just being moved accepts a connection and says nothing
PATIENCE = 20.0
PAUSE = 0.002
LOSS = (ConnectionError, TimeoutError)  # what a connection that is lost looks like


class WrongAnswerError(Exception):
    """What no loss of a connection explains."""


class Client:
    """One connection at a time, to whichever of several addresses answers."""

    def __init__(self, port: int, addresses: list[str]) -> None:
        """Take the addresses; connect with the first command."""
        self.port = port
        self.addresses = list(addresses)
        self.errors: Counter[str] = Counter()
        self.connections = 0
        self.socket: socket.socket | None = None
        self.replies = b""

    def __call__(self, *words: str) -> str:
        """Carry out one command, on a new connection after a failure, until it is answered."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._ask(words)
            except LOSS as error:
                self.errors[type(error).__name__] += 1
                if self.socket is not None:
                    self.socket.close()
                self.socket, self.replies = None, b""
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _ask(self, words: tuple[str, ...]) -> str:
        if self.socket is None:
            self.addresses.append(self.addresses.pop(0))  # the other one, next time
            self.socket = socket.create_connection((self.addresses[-1], self.port), ANSWER_SECONDS)
            self.connections += 1
        parts = (f"${len(word)}\r\n{word}\r\n" for word in words)
        self.socket.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
        line = self._line()
        if line.startswith("$") and line != "$-1":
            return self._line()
        if line not in {"+OK", "$-1"}:
            raise WrongAnswerError(line)
        return line

    def _line(self) -> str:
        assert self.socket is not None
        while b"\r\n" not in self.replies:
            data = self.socket.recv(4096)
            if not data:
                raise ConnectionResetError
            self.replies += data
        line, _, self.replies = self.replies.partition(b"\r\n")
        return line.decode()


class Writer(threading.Thread):
    """Writes until told to stop, and remembers what was acknowledged."""

    def __init__(self, name: str, client: Client, stop: threading.Event) -> None:
        """Begin."""
        super().__init__(name=name)
        self.client = client
        self.stop = stop
        self.acknowledged = 0
        self.lost = 0
        self.silence = 0.0
        self.connections = 0
        self.start()

    def run(self) -> None:
        """Write, then read."""
        answered = time.monotonic()
        try:
            while not self.stop.wait(PAUSE):
                self.client("SET", f"{self.name}:{self.acknowledged}", f"{self.acknowledged}")
                self.acknowledged += 1
                self.silence = max(self.silence, time.monotonic() - answered)
                answered = time.monotonic()
            self.connections = self.client.connections
            for number in range(self.acknowledged):
                self.lost += self.client("GET", f"{self.name}:{number}") != f"{number}"
        except (*LOSS, WrongAnswerError) as error:
            self.client.errors[f"gave up: {error!r}"] += 1


def write(connections: int, port: int, addresses: list[str]) -> None:
    """Write until standard input ends, and then verify."""
    stop = threading.Event()
    writers = [Writer(f"written:{n}", Client(port, addresses), stop) for n in range(connections)]
    sys.stdin.read()
    stop.set()
    errors: Counter[str] = Counter()
    for writer in writers:
        writer.join()
        errors += writer.client.errors
    result = {
        "acknowledged": sum(writer.acknowledged for writer in writers),
        "lost": sum(writer.lost for writer in writers),
        "connections": sum(writer.connections for writer in writers),
        "silence": max(writer.silence for writer in writers),
        "errors": errors,
    }
    print(json.dumps(result))


def idle(port: int, address: str) -> None:
    """Connect, say nothing, and see when the server has enough of it."""
    began = time.monotonic()
    with socket.create_connection((address, port), PATIENCE) as connection:
        while connection.recv(4096):
            pass  # some say why
    print(time.monotonic() - began)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    else:
        idle(int(sys.argv[2]), sys.argv[3])

"""The client of `timeshim demo`: writes to a redis server wherever it is, and counts what was lost.

    demo_client.py ADDRESS...

It speaks just enough of redis' protocol (RESP) for SET and GET. Every key is written
once; a write counts when the server has acknowledged it. When standard input ends it reads them
all again and prints a JSON object.
"""

import json
import select
import socket
import sys
import time

PORT = 6379
ANSWER_SECONDS = 0.2  # a server that is just being moved accepts a connection and says nothing
PATIENCE = 10.0
PAUSE = 0.0005


class Redis:
    """The server at one of several addresses: whichever answers."""

    def __init__(self, addresses: list[str]) -> None:
        """Take the addresses; connect with the first command."""
        self.addresses = addresses
        self.connections = 0
        self.socket: socket.socket | None = None
        self.replies = b""

    def __call__(self, *words: str) -> str:
        """Carry out one command, on a new connection after a failure, until it is answered."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._ask(words)
            except OSError:
                self._drop()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def _ask(self, words: tuple[str, ...]) -> str:
        if self.socket is None:
            self.addresses.append(self.addresses.pop(0))  # the other one, next time
            self.socket = socket.create_connection((self.addresses[-1], PORT), ANSWER_SECONDS)
            self.connections += 1
        parts = (f"${len(word)}\r\n{word}\r\n" for word in words)
        self.socket.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
        line = self._line()
        return self._line() if line.startswith("$") and line != "$-1" else line

    def _line(self) -> str:
        assert self.socket is not None
        while b"\r\n" not in self.replies:
            data = self.socket.recv(4096)
            if not data:
                raise ConnectionResetError("the server went away")
            self.replies += data
        line, _, self.replies = self.replies.partition(b"\r\n")
        return line.decode()

    def _drop(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket, self.replies = None, b""


def main() -> None:
    """Write until standard input ends, and then verify."""
    redis = Redis(sys.argv[1:])
    acknowledged: list[int] = []
    number = 0
    silence = 0.0
    answered = time.monotonic()
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        number += 1
        if redis("SET", f"key:{number}", f"value:{number}") == "+OK":
            acknowledged.append(number)
            silence = max(silence, time.monotonic() - answered)
            answered = time.monotonic()
    connections = redis.connections
    lost = sum(redis("GET", f"key:{number}") != f"value:{number}" for number in acknowledged)
    print(
        json.dumps(
            {
                "acknowledged": len(acknowledged),
                "lost": lost,
                "connections": connections,
                "silence": silence,
            }
        )
    )


if __name__ == "__main__":
    main()

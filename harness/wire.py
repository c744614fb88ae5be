"""What goes over the byte stream between source and destination.

A greeting in plain text, so that anything else on the stream is noticed at once; then messages:
a length (u32, big endian) and that many bytes of JSON, an object with a ``kind``. A message of
kind ``file`` is followed by the file's bytes.
"""

from __future__ import annotations

import json
import struct
from typing import IO, TYPE_CHECKING, Any

from timeshim.errors import Error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GREETING = b"timeshim stream 1\n"
MESSAGE_BYTES = 64 << 20
CHUNK = 1 << 20


class Wire:
    """One end of the stream."""

    def __init__(self, reader: IO[bytes], writer: IO[bytes], peer: str) -> None:
        """Use two files; `peer` is what to call the other end in messages."""
        self.reader = reader
        self.writer = writer
        self.peer = peer

    def greet(self) -> None:
        """Send the greeting."""
        self.writer.write(GREETING)
        self.writer.flush()

    def expect_greeting(self) -> None:
        """Read the other end's greeting.

        Raises:
            Error: it sent something else, or nothing.
        """
        line = self.reader.readline(len(GREETING))
        if not line:
            raise self.lost()
        if line != GREETING:
            raise Error(
                f"{self.peer} answered {line!r} instead of timeshim's greeting: is its timeshim another version, or does its shell print something?"
            )

    def lost(self) -> Error:
        """Return the error that the other end is gone."""
        return Error(f"{self.peer} ended the connection")

    def send(self, kind: str, **content: Any) -> None:
        """Send a message.

        Raises:
            Error: the other end is gone.
        """
        data = json.dumps({"kind": kind, **content}).encode()
        try:
            self.writer.write(struct.pack("!I", len(data)) + data)
            self.writer.flush()
        except OSError:
            raise self.last_words() from None

    def last_words(self) -> Error:
        """Return why the other end reads no more: what it said last, if anything."""
        try:
            self.expect("error")
        except Error as error:
            return error
        raise AssertionError  # expect("error") always raises

    def _read(self, size: int) -> bytes:
        data = self.reader.read(size)
        if len(data) < size:
            raise self.lost()
        return data

    def receive(self) -> dict[str, Any]:
        """Receive a message of any kind.

        Raises:
            Error: the other end is gone, or sent what is no message.
        """
        (length,) = struct.unpack("!I", self._read(4))
        if length > MESSAGE_BYTES:
            raise Error(
                f"{self.peer} sent a message of {length} bytes, which is none of timeshim's"
            )
        try:
            content = json.loads(self._read(length))
            content["kind"]
        except (ValueError, TypeError, KeyError):
            raise Error(f"{self.peer} sent what is not a message of timeshim's") from None
        return content  # type: ignore[no-any-return]

    def expect(self, kind: str) -> dict[str, Any]:
        """Receive a message of one kind.

        Raises:
            Error: the other end reported one, is gone, or sent another kind.
        """
        content = self.receive()
        if content["kind"] == "error":
            raise Error(f"{self.peer}: {content['message']}")
        if content["kind"] != kind:
            raise Error(f"{self.peer} sent {content['kind']!r} where {kind!r} was due")
        return content

    def send_file(self, path: Path, name: str, advance: Callable[[int], None]) -> None:
        """Send a file under a name; `advance` is told of the bytes as they go."""
        with path.open("rb") as file:
            size = path.stat().st_size
            self.send("file", name=name, size=size)
            left = size
            while left:
                data = file.read(min(CHUNK, left))
                try:
                    self.writer.write(data)
                except OSError:
                    raise self.last_words() from None
                left -= len(data)
                advance(len(data))

    def receive_file(self, message: dict[str, Any], path: Path) -> None:
        """Write the bytes that follow a message of kind ``file``."""
        left = int(message["size"])
        with path.open("wb") as file:
            while left:
                data = self._read(min(CHUNK, left))
                file.write(data)
                left -= len(data)

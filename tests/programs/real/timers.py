"""The timed waits of asyncio and of Python's threads, beside a server that is written in asyncio.

    timers.py LOG [PORT]     until SIGTERM; what it writes is described in tests/timed.py

The server speaks as much of redis' protocol as tests/client.py does: SET and GET.
"""

import asyncio
import json
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

MS = 1_000_000
LOG = Path(sys.argv[1]).open("a", buffering=1)  # noqa: SIM115 - for as long as the program runs

Moment = tuple[int, int]


def now() -> Moment:
    """Read the program's own clock and the one that never stands still."""
    return time.monotonic_ns(), time.time_ns()


def wrote(kind: str, began: Moment, due: int) -> None:
    """Write down a wait that has just ended."""
    ended = now()
    LOG.write(json.dumps({"wait": kind, "began": began, "due": due, "ended": ended}) + "\n")


def repeat(kind: str, ms: int, wait: Callable[[float], Any]) -> None:
    """Wait again and again, in a thread."""

    def run() -> None:
        while True:
            began = now()
            wait(ms / 1000)
            wrote(kind, began, began[0] + ms * MS)

    threading.Thread(target=run, daemon=True).start()


async def repeat_async(kind: str, ms: int, wait: Callable[[float], Awaitable[Any]]) -> None:
    """Wait again and again, in a coroutine."""
    while True:
        began = now()
        with suppress(TimeoutError):
            await wait(ms / 1000)
        wrote(kind, began, began[0] + ms * MS)


def threads() -> None:
    """Begin what waits in threads."""
    lock = threading.Lock()
    lock.acquire()
    condition = threading.Condition()
    empty: queue.Queue[None] = queue.Queue()
    never: Future[None] = Future()

    def wait_in_condition(seconds: float) -> None:
        with condition:
            condition.wait(seconds)

    def get(seconds: float) -> None:
        with suppress(queue.Empty):
            empty.get(timeout=seconds)

    def result(seconds: float) -> None:
        with suppress(TimeoutError):
            never.result(seconds)

    def run(seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(["sleep", "2"], timeout=seconds, check=False)

    repeat("time.sleep", 700, time.sleep)
    repeat("Event.wait", 710, threading.Event().wait)
    repeat("Condition.wait", 720, wait_in_condition)
    repeat("Lock.acquire", 730, lambda seconds: lock.acquire(timeout=seconds))
    repeat("Queue.get", 740, get)
    repeat("Future.result", 750, result)
    repeat("select", 760, lambda seconds: select.select([], [], [], seconds))
    repeat("poll", 770, lambda seconds: select.poll().poll(seconds * 1000))
    repeat("subprocess.run", 780, run)


async def tick(period: float) -> None:
    """Have the loop call at fixed times."""
    loop = asyncio.get_running_loop()
    began, first = now(), loop.time()
    turn = asyncio.Event()
    number = 0
    while True:
        number += 1
        loop.call_at(first + number * period, turn.set)
        await turn.wait()
        turn.clear()
        wrote("call_at, every 250 ms", began, began[0] + round(number * period * 1000) * MS)


async def load() -> None:
    """Use some CPU, and some memory."""
    heap: list[str] = []
    while True:
        until = time.monotonic() + 0.001
        while time.monotonic() < until:
            heap.append("x" * (len(heap) % 1000))
        if len(heap) > 50_000:
            heap.clear()
        await asyncio.sleep(0.004)


def read_clocks(stop: threading.Event) -> dict[str, int]:
    """Read until told to stop; of readings that stand for one moment, write down the steps."""
    reads = backward = 0
    last = now()
    before = last[0]
    while not stop.is_set():
        for _ in range(100):
            own, real = now()
            after = time.monotonic_ns()
            reads += 1
            backward += own < before or after < own
            before = after
            if after - own < MS // 5:
                if abs(own - last[0] - (real - last[1])) > MS:
                    LOG.write(json.dumps({"step": [last, (own, real)]}) + "\n")
                last = own, real
        stop.wait(0.002)
    return {"reads": reads, "backward": backward}


class Store:
    """What the server keeps, and how it answers."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.values: dict[bytes, bytes] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client until it goes away; one that is silent for a second is sent away."""
        with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            while True:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 1.0)
                words = []
                for _ in range(int(head[1:])):
                    size = int((await reader.readuntil(b"\r\n"))[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                writer.write(self.answer(*words))
                await writer.drain()
        writer.close()

    def answer(self, command: bytes, key: bytes, value: bytes = b"") -> bytes:
        """Carry out a command."""
        if command == b"SET":
            self.values[key] = value
            return b"+OK\r\n"
        found = self.values.get(key)
        return b"$-1\r\n" if found is None else b"$%d\r\n%s\r\n" % (len(found), found)


async def main() -> None:
    """Begin everything; end on SIGTERM."""
    stop, stopped = threading.Event(), asyncio.Event()

    def end() -> None:
        stop.set()
        stopped.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    if len(sys.argv) > 2:
        await asyncio.start_server(Store().serve, "0.0.0.0", int(sys.argv[2]))  # noqa: S104
    never = asyncio.Event()
    tasks = [
        asyncio.create_task(repeat_async("asyncio.sleep", 700, asyncio.sleep)),
        asyncio.create_task(
            repeat_async("wait_for", 710, lambda s: asyncio.wait_for(never.wait(), s))
        ),
        asyncio.create_task(tick(0.25)),
        asyncio.create_task(load()),
    ]
    threads()
    reading = asyncio.create_task(asyncio.to_thread(read_clocks, stop))
    await stopped.wait()
    LOG.write(json.dumps({"end": now()} | await reading) + "\n")
    for task in tasks:
        task.cancel()
    LOG.flush()
    # not by way of an orderly end, which would wait for the threads
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)


asyncio.run(main())

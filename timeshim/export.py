"""The record of a task's virtual time at freeze, which travels from source to destination."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from timeshim.alarms import Alarm
from timeshim.clocks import Clocks
from timeshim.cputime import Thread, Used
from timeshim.timers import Timer


@dataclass(frozen=True)
class Export:
    """What the destination must know of a frozen task beyond what CRIU tells it."""

    virtual: Clocks
    lead_ns: int
    """What the MONOTONIC of the task's own time namespace, if it has one, was ahead of that."""
    tsc_hz: int
    """Virtual TSC frequency: the task's for life, in Hz."""
    generation: int
    migrations: int
    blackout_ns: int
    task_area: dict[int, bytes]
    timers: list[Timer]
    alarms: list[Alarm]
    trapping: list[int]
    """The threads in which reading the TSC traps."""
    threads: list[Thread]
    """The CPU time of every thread: the virtual one, that of earlier hosts included."""
    signalled: dict[int, int]
    """Thread id -> generation at whose beginning it had a signal to handle."""
    freeze_ns: int
    """The last instruction ran at most this many nanoseconds before `virtual` was read."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return asdict(self) | {
            "task_area": {str(at): data.hex() for at, data in self.task_area.items()},
            "signalled": {str(thread): at for thread, at in self.signalled.items()},
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Take it from JSON; raises KeyError, TypeError or ValueError if it is not one."""
        area = {int(at): bytes.fromhex(data) for at, data in record["task_area"].items()}
        clocks = Clocks(**{name: int(value) for name, value in record["virtual"].items()})
        timers = [Timer(**timer) for timer in record["timers"]]
        threads = [
            Thread(
                **thread | {name: Used(**thread[name]) for name in ("own", "process", "children")}
            )
            for thread in record["threads"]
        ]
        signalled = {int(thread): int(at) for thread, at in record["signalled"].items()}
        parsed = {
            "virtual": clocks,
            "task_area": area,
            "timers": timers,
            "alarms": [Alarm(**alarm) for alarm in record["alarms"]],
            "threads": threads,
            "signalled": signalled,
        }
        return cls(**record | parsed)

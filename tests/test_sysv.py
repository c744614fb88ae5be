"""System V shared memory, semaphores and message queues move along, and waits for them go on."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest
from journey import TIMESHIM, journey, world
from test_migration import MS

if TYPE_CHECKING:
    from conftest import Program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")

WAIT_MS = 3000


@world
def test_system_v_objects(program: Program, options: tuple[str, ...]) -> None:
    with journey(3) as trip:
        trip.launch(str(program("sysv")), str(WAIT_MS))
        time.sleep(0.2)
        trip.move(*options)
        trip.move(*options, back=True)
        root = trip.tasks(trip.here)[0]["pids"][0]
        trip.here.run("kill", "-USR1", str(root))
        *waits, rest = trip.results(trip.here)
        # on a busy machine the wait with a time-out may end before the second move
        waits += map(json.loads, trip.there.run(TIMESHIM, "logs", "traveller").stdout.splitlines())
    returned = {wait["wait"]: wait["returned"] for wait in waits}
    assert returned == {"semtimedop": "EAGAIN", "semop": "0", "msgrcv": "0"}
    assert next(wait["text"] for wait in waits if "text" in wait) == "sent later"
    assert next(0 <= wait["late_ns"] < 50 * MS for wait in waits if "late_ns" in wait)
    assert rest == {"memory": "kept", "semaphore": 0}

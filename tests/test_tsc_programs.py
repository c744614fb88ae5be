"""Programs nobody here wrote that read the TSC themselves, moved there and back under load.

Each is skipped where it is not installed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest
from journey import TIMESHIM, Journey, journey
from travel import HOPS

if TYPE_CHECKING:
    from pathlib import Path

SECOND = 10**9
AHEAD = 95_000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")


def installed(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if not path:
        pytest.skip(f"{name} is not installed")
    return path


def hop(trip: Journey, number: int) -> None:
    """Move it on, to whichever host it is not on."""
    trip.move(back=number % 2 == 1)


def whole(trip: Journey, hops: int) -> str:
    """Wait for the end of the task, and return what it printed, over all hosts."""
    here, there = trip.here, trip.there
    deadline = time.monotonic() + 60 + 6 * hops
    while any(trip.tasks(host) for host in (here, there)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return "".join(
        host.run(TIMESHIM, "logs", "traveller", check=False).stdout for host in (here, there)
    )


@HOPS
def test_fio(tmp_path: Path, hops: int) -> None:
    fio = installed("fio")
    target = tmp_path / "file"
    target.write_bytes(bytes(8 << 20))
    job = ("--ioengine=sync", "--rw=randread", "--size=8M", f"--filename={target}", "--thread")
    with journey(AHEAD) as trip:
        trip.launch(
            fio,
            "--name=read",
            *job,
            "--numjobs=2",
            "--time_based",
            "--runtime=1000",
            "--clocksource=cpu",
            "--output-format=json",
            "--eta=never",
        )
        time.sleep(1)
        for number in range(hops):
            hop(trip, number)
            time.sleep(0.3)
        trip.terminate(trip.here if hops % 2 == 0 else trip.there)
        printed = whole(trip, hops)
    jobs = json.loads(printed[printed.index("{") :])["jobs"]
    latencies = [job["read"]["clat_ns"] for job in jobs]
    print([(found["min"], found["mean"], found["max"]) for found in latencies])
    assert len(latencies) == 2
    assert all(0 <= found["min"] <= found["max"] < SECOND for found in latencies)


@HOPS
@pytest.mark.long
def test_stress_ng(hops: int) -> None:
    stress = installed("stress-ng")
    seconds = 10 + 6 * hops
    with journey(AHEAD) as trip:
        # its stressor "tsc" wants an Intel processor; these read the counter as well
        stressors = ("--cpu", "1", "--vm", "1", "--vm-bytes", "16M", "--prefetch", "1")
        trip.launch(stress, *stressors, "--verify", "--timeout", f"{seconds}s", "--metrics-brief")
        time.sleep(1)
        for number in range(hops):
            hop(trip, number)
            time.sleep(0.3)
        printed = whole(trip, hops)
    print(printed)
    assert "successful run completed" in printed
    assert "fail" not in printed.replace("failed: 0", "")


def fetch(trip: Journey, number: int, url: str) -> str:
    host = trip.there if number % 2 == 0 else trip.here
    return host.run(
        "python3",
        "-c",
        f"import urllib.request as u; print(u.urlopen({url!r}, timeout=5).read().decode())",
    ).stdout


@HOPS
def test_haproxy(tmp_path: Path, hops: int) -> None:
    haproxy = installed("haproxy")
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "global\n  profiling.tasks on\n  stats socket "
        + str(tmp_path / "socket")
        + " level admin\n"
        "defaults\n  mode http\n  timeout client 5s\n  timeout connect 5s\n  timeout server 5s\n"
        "frontend web\n  bind *:8081\n  http-request return status 200 content-type text/plain string right\n"
    )
    with journey(AHEAD) as trip:
        trip.launch(haproxy, "-db", "-f", str(config))
        time.sleep(1)
        for number in range(hops):
            hop(trip, number)
            for _ in range(3):
                assert "right" in fetch(trip, number, "http://127.0.0.1:8081/")

"""CPython's own tests of time, threads, waiting and processes: under shifted clocks as natively.

Each module runs natively, and as a task whose clocks are 95,000 s ahead of the host's, and behind
them; every test case must end alike. They run at the same time, each on a host of its own, so that
they meet the same load and find each other's ports free. A case that ends differently is run again
alone, natively as well, for some depend on luck; what differs again is a difference.
"""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import pytest
import summary
from journey import TIMESHIM

from harness.hosts import Host, HostSpec, network

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="hosts take root")

PYTHON = "/usr/bin/python3"  # Debian's, whose tests are in libpython3.11-testsuite
UP = 200_000  # seconds, so that a clock can be 95,000 behind
SHIFTS = {"native": None, "+95000 s": "+95000s", "-95000 s": "-95000s"}
QUICK = ("epoll", "queue", "sched", "select", "thread", "threading", "time")
LONG = (
    "asyncio",
    "concurrent_futures",
    "multiprocessing_spawn",
    "poll",
    "selectors",
    "signal",
    "socket",
    "subprocess",
)
# Sockets between virtual machines and their hosts: they know no network namespaces, so that the three
# would meet each other, and on some machines nobody answers and the test does not end.
IGNORED = ("ThreadedVSOCKSocketStreamTest",)
AGAIN = 2

Outcomes = dict[str, str]


@cache
def has_tests() -> bool:
    """Tell whether this Python has its tests."""
    imported = subprocess.run(
        [PYTHON, "-c", "import test.test_time"], stderr=subprocess.DEVNULL, check=False, timeout=30
    )
    return imported.returncode == 0


def run(host: Host, shift: str | None, room: Path, module: str, cases: Iterable[str]) -> Outcomes:
    """Run a module, or only some of its cases, and return how each ended."""
    room.mkdir()
    command = [PYTHON, "-m", "test", f"--junit-xml={room / 'xml'}", f"--tempdir={room}"]
    command += [f"--match={case}" for case in cases]
    command += [f"--ignore={case}" for case in IGNORED]
    command.append(f"test_{module}")
    if shift is None:
        command = ["setsid", "--wait", *command]  # as the other two, it has no terminal
    else:
        command = [TIMESHIM, "run", "--name", module, "--monotonic", shift, "--", *command]
    with (room / "output").open("w") as output:
        try:
            host.run(
                *command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=500,
                env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": str(room)},
            )
        except subprocess.TimeoutExpired:
            return {module: "did not end"}
    return outcomes(room / "xml")


def outcomes(xml: Path) -> Outcomes:
    """Return how each case ended: passed, failed or skipped."""
    if not xml.exists():
        return {}
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    return {
        case.attrib["name"]: next((kinds[part.tag] for part in case if part.tag in kinds), "passed")
        for case in ET.parse(xml).iter("testcase")  # noqa: S314 - it is our own
    }


def difference(results: dict[str, Outcomes]) -> dict[str, list[str]]:
    """Return the cases that did not end alike everywhere, and how they did."""
    cases = {case for outcome in results.values() for case in outcome}
    ends = {case: [outcome.get(case, "absent") for outcome in results.values()] for case in cases}
    return {case: ended for case, ended in sorted(ends.items()) if len(set(ended)) > 1}


@pytest.mark.parametrize(
    "module",
    [*QUICK, *(pytest.param(module, marks=pytest.mark.long) for module in LONG)],
)
@pytest.mark.timeout(1500)
def test_cpython(tmp_path: Path, module: str) -> None:
    if not has_tests():
        pytest.skip("CPython's tests are not installed: harness/setup.sh test")
    with network(*(HostSpec(f"host{n}", UP) for n in range(len(SHIFTS)))) as net:

        def run_all(turn: int, cases: Iterable[str] = ()) -> dict[str, Outcomes]:
            with ThreadPoolExecutor(len(SHIFTS)) as executor:
                started = {
                    name: executor.submit(
                        run, host, shift, tmp_path / f"{turn}{name}", module, cases
                    )
                    for host, (name, shift) in zip(net.hosts, SHIFTS.items(), strict=True)
                }
                return {name: outcome.result() for name, outcome in started.items()}

        results = run_all(0)
        different = difference(results)
        for turn in range(1, AGAIN + 1):
            if not different:
                break
            print(f"test_{module}, natively and shifted: {different}")
            again = difference(run_all(turn, different))
            different = {case: ended for case, ended in again.items() if case in different}
    counts = {name: Counter(outcome.values()) for name, outcome in results.items()}
    summary.add(
        "CPython's own tests: passed / failed / skipped",
        module=f"test_{module}",
        **{
            name: f"{count['passed']} / {count['failed']} / {count['skipped']}"
            for name, count in counts.items()
        },
        differ=len(different),
    )
    assert different == {}
    assert results["native"]
    assert module not in results["native"], "natively, it does not end"

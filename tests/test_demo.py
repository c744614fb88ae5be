"""The demo: what it shows is what it measured, and it leaves nothing behind however it ends."""

from __future__ import annotations

import io
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from harness import demo
from harness.demo import DAY, NAMESPACE, NSEC, PLAIN, SHIM, Outcome
from timeshim.cgroup import hierarchy
from timeshim.errors import Error

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Timeshim

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return demo.demo(Console(file=io.StringIO()))


def test_the_shim_holds(outcome: Outcome) -> None:
    assert outcome.failures() == []
    shim = outcome.journeys[SHIM]
    assert abs(shim.worst) < demo.CONTINUITY_NS
    assert shim.backward == 0
    assert len(shim.waits) == 4
    assert all(-demo.EARLY_NS <= (wait.late or 0) <= demo.LATE_NS for wait in shim.waits)


def test_no_acknowledged_write_is_lost(outcome: Outcome) -> None:
    assert outcome.redis.acknowledged > 1000
    assert outcome.redis.lost == 0
    assert outcome.redis.connections >= 3


def test_without_the_shim_the_clocks_jump(outcome: Outcome) -> None:
    plain = outcome.journeys[PLAIN]
    assert [round(crossing.worst / DAY / NSEC) for crossing in plain.crossings] == [398, -398]
    assert plain.backward >= len(demo.CLOCKS)
    there = [wait for wait in plain.waits if wait.number == 1]
    back = [wait for wait in plain.waits if wait.number == 2]
    assert all(wait.late is not None and wait.late < -NSEC for wait in there)
    assert all(wait.ended is None and wait.left > 390 * DAY * NSEC for wait in back)


def test_a_time_namespace_pauses_the_clocks_for_less_than_the_blackout(outcome: Outcome) -> None:
    for crossing in outcome.journeys[NAMESPACE].crossings:
        assert demo.CONTINUITY_NS < crossing.error("monotonic") < crossing.blackout


def test_the_tables_fit_a_terminal(outcome: Outcome) -> None:
    shown = io.StringIO()
    demo.show(outcome, Console(file=shown, width=80, highlight=False))
    assert "…" not in shown.getvalue()
    assert "0 of them lost" in shown.getvalue()
    assert "With timeshim no clock was off" in shown.getvalue()


def test_without_redis_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Error, match="install Debian's package redis-server"):
        demo.demo(Console(file=io.StringIO()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_interrupted(
    timeshim: Timeshim, tmp_path: Path, number: signal.Signals
) -> None:
    timeshim.env["TMPDIR"] = str(tmp_path)
    process = timeshim.start("demo")
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("*/shim/wait-1")):  # the first migration begins
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.7)  # and is in its middle
    ours = cgroups(timeshim)
    assert ours
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert timeshim.ends()
    assert list(tmp_path.iterdir()) == []
    assert not [path for path in ours if path.exists()]


def cgroups(timeshim: Timeshim) -> set[Path]:
    """Return the cgroups that processes of this test are in, among those of tasks."""
    pids = set(timeshim.processes())
    return {
        path.parent
        for path in (hierarchy() / "timeshim").glob("*/cgroup.procs")
        if pids & {int(pid) for pid in path.read_text().split()}
    }

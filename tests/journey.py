"""A program on one namespace host that is moved to another: what the migration tests are made of."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from conftest import Timeshim

from harness.hostlink import link
from harness.hosts import HostSpec, network

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.hosts import Host

TIMESHIM = Timeshim.command[0]
WORLDS: dict[str, tuple[str, ...]] = {"time namespace": (), "page only": ("--no-time-namespace",)}

world = pytest.mark.parametrize("options", WORLDS.values(), ids=WORLDS)
direction = pytest.mark.parametrize("sign", [1, -1], ids=["ahead", "behind"])


@dataclass
class Journey:
    """Two hosts, and a way from each to the other."""

    here: Host
    there: Host
    host_there: str
    """The HOST argument that means the other host."""
    host_here: str
    client_prefix: list[str]
    """Runs a command outside both, that reaches them."""

    def launch(
        self, *argv: str, clocks: str = "shim", name: str = "traveller", options: Sequence[str] = ()
    ) -> None:
        """Launch a task on the first host."""
        run = ("run", "--detach", "--name", name, f"--clocks={clocks}", *options, "--")
        self.here.run(TIMESHIM, *run, *argv)

    def move(self, *options: str, back: bool = False, name: str = "traveller") -> dict[str, Any]:
        """Migrate it to the other host (or back) and return the summary."""
        source, host = (self.there, self.host_here) if back else (self.here, self.host_there)
        done = source.run(TIMESHIM, "migrate", "--json", *options, name, host, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def tasks(self, host: Host) -> list[dict[str, Any]]:
        """Return what `ps` says on a host."""
        return json.loads(host.run(TIMESHIM, "ps", "--json").stdout)  # type: ignore[no-any-return]

    def terminate(self, host: Host) -> None:
        """Send SIGTERM to the task's root, which passes it on."""
        host.run("kill", "-TERM", str(self.tasks(host)[0]["pids"][0]))

    def results(
        self, host: Host, seconds: float = 20, name: str = "traveller"
    ) -> list[dict[str, Any]]:
        """Wait until the task has ended on a host, and return what it printed there."""
        deadline = time.monotonic() + seconds
        while self.tasks(host):
            assert time.monotonic() < deadline, f"{name} does not end"
            time.sleep(0.05)
        printed = host.run(TIMESHIM, "logs", name).stdout
        return [json.loads(line) for line in printed.splitlines()]


@contextmanager
def journey(ahead: int) -> Iterator[Journey]:
    """Make two hosts, the second one's clocks so many seconds ahead of the first one's."""
    here, there = (0, ahead) if ahead >= 0 else (-ahead, 0)
    with network(HostSpec("here", monotonic=here), HostSpec("there", monotonic=there)) as hosts:
        a, b = hosts.hosts
        with link(a, b) as to_b, link(b, a) as to_a:
            yield Journey(a, b, to_b, to_a, hosts.client_prefix)

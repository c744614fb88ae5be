"""Servers that are moved while their clients write: nothing that was acknowledged may be lost.

The clients run on neither host. Their connections are closed when the server moves, and they make
new ones, to the other host's address; so nothing but a lost connection may ever go wrong. What in
these servers depends on clocks is looked at as well.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import summary
from conftest import PROGRAMS, compile_c, let_others_in
from journey import Journey, journey
from timed import Hop, judge
from travel import AHEAD, HOPS, PAGE_ONLY, SHIFTED, blackouts, ends, there_and_back, world

from harness.migrate import CAP_SYS_RESOURCE, has_capability

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU restores into namespaces as root")

PYTHON = "/usr/bin/python3"
REAL = PROGRAMS / "real"
CLIENT = Path(__file__).parent / "client.py"
CONNECTIONS = 4
LOSSES = {"ConnectionResetError", "BrokenPipeError", "ConnectionRefusedError", "TimeoutError"}


@contextmanager
def client(trip: Journey, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """Run a client outside both hosts, until the context ends at the latest."""
    with subprocess.Popen(
        [*trip.client_prefix, *argv],
        text=True,
        cwd="/",
        process_group=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(trip: Journey, *argv: str) -> str:
    """Run a client to its end and return what it prints."""
    done = subprocess.run(
        [*trip.client_prefix, *argv],
        text=True,
        capture_output=True,
        cwd="/",
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout


def idle(trip: Journey, port: int, *, back: bool) -> float:
    """Return for how many seconds the server lets an idle connection be."""
    address = (trip.here if back else trip.there).address
    return float(ask(trip, PYTHON, str(CLIENT), "idle", str(port), address))


@contextmanager
def writing(trip: Journey, port: int) -> Iterator[dict[str, Any]]:
    """Have a client write meanwhile; what it found out is there afterwards."""
    found: dict[str, Any] = {}
    addresses = trip.here.address, trip.there.address
    with client(
        trip, PYTHON, str(CLIENT), "write", str(CONNECTIONS), str(port), *addresses
    ) as process:
        yield found
        told, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint
        found |= json.loads(told)


def show(server: str, summaries: list[dict[str, Any]], **columns: object) -> None:
    """Add a row to the table that the tests end with."""
    summary.add(
        "Servers that were moved (blackout median / most, in ms)",
        server=server,
        hops=len(summaries),
        blackout=blackouts(summaries),
        **columns,
    )


def show_written(
    server: str, summaries: list[dict[str, Any]], found: dict[str, Any], also: str
) -> None:
    """Add a row for what `writing` found out."""
    show(
        server,
        summaries,
        acknowledged=found["acknowledged"],
        found=found["acknowledged"] - found["lost"],
        connections=found["connections"],
        errors=words(found["errors"]),
        timers=also,
    )


def words(errors: dict[str, int]) -> str:
    """Write errors by kind."""
    return ", ".join(f"{number} {kind}" for kind, number in sorted(errors.items())) or "none"


def launch_redis(trip: Journey, room: Path, **how: Any) -> None:
    """Launch a redis server that keeps everything in memory."""
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed: harness/setup.sh")
    options = ("--bind", "*", "--protected-mode", "no", "--save", "", "--dir", str(room))
    trip.launch("redis-server", *options, **how)
    deadline = time.monotonic() + 20
    while not redis(trip, trip.here.address, "PING").startswith("PONG"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def redis(trip: Journey, address: str, *command: str) -> str:
    """Ask the server, whether or not it answers."""
    return subprocess.run(
        [*trip.client_prefix, "redis-cli", "-h", address, *command],
        text=True,
        capture_output=True,
        check=False,
        timeout=10,
    ).stdout


def overdue(trip: Journey, address: str) -> int:
    """Return how many keys redis keeps whose time is up: a timer of its own should remove them."""
    other = ("-n", "1")  # where nobody else writes
    fill = "for n = 1, 50 do redis.call('SET', 'short:' .. n, '', 'PX', 100) end"
    redis(trip, address, *other, "EVAL", fill, "0")
    deadline = time.monotonic() + 3  # that timer expires a part of them at a time
    while (left := int(redis(trip, address, *other, "DBSIZE"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@HOPS
def test_redis(tmp_path: Path, hops: int) -> None:
    left = 0

    def look(*, back: bool) -> None:
        nonlocal left
        left = max(left, overdue(trip, (trip.here if back else trip.there).address))

    with journey(AHEAD) as trip:
        launch_redis(trip, tmp_path, options=SHIFTED)
        with writing(trip, 6379) as found:
            summaries = there_and_back(trip, hops, look)
    show_written("redis-server", summaries, found, f"{left} keys overdue")
    require_no_loss(found, hops)
    assert left == 0


def test_redis_without_the_shim(tmp_path: Path) -> None:
    with journey(-AHEAD) as trip:
        launch_redis(trip, tmp_path, clocks="none")
        assert overdue(trip, trip.here.address) == 0
        trip.move(*PAGE_ONLY)
        left = overdue(trip, trip.there.address)
    print(f"redis-server without the shim, on a host that is behind: {left} keys overdue after 3 s")
    assert left > 0


@HOPS
def test_asyncio(tmp_path: Path, hops: int) -> None:
    """The same program as in test_timed: its server keeps what is written, and tires of the idle."""
    log = tmp_path / "log"
    idles: list[float] = []
    with journey(AHEAD) as trip:
        program = (PYTHON, str(shutil.copy(REAL / "timers.py", tmp_path)), str(log), "6379")
        trip.launch(*program, options=SHIFTED)
        with writing(trip, 6379) as found:
            summaries = there_and_back(
                trip, hops, lambda *, back: idles.append(idle(trip, 6379, back=back))
            )
        until = time.time_ns()
        ends(trip, hops)
    verdict = judge(log, [Hop.of(summary) for summary in summaries], until)
    show_written("asyncio", summaries, found, sends_away(idles))
    require_no_loss(found, hops)
    assert verdict.wrong == []
    assert all(1.0 <= seconds < 1.5 for seconds in idles)


NGINX = """
daemon off;
user {user};
worker_processes 2;
pid {room}/pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {room}/body;
    proxy_temp_path {room}/proxy;
    fastcgi_temp_path {room}/fastcgi;
    uwsgi_temp_path {room}/uwsgi;
    scgi_temp_path {room}/scgi;
    limit_req_zone $binary_remote_addr zone=clients:1m rate=100000r/s;
    client_header_timeout 1s;
    keepalive_timeout 5s;
    server {{
        listen 8080 reuseport;
        root {room}/www;
        location / {{ limit_req zone=clients burst=100000 nodelay; }}
    }}
}}
"""
WRK = """
wrong, threads = 0, {}
function setup(thread) table.insert(threads, thread) end
function response(status, headers, body)
    if status ~= 200 or body ~= "%s" then wrong = wrong + 1 end
end
function done(summary)
    local wrong, errors = 0, summary.errors
    for _, thread in ipairs(threads) do wrong = wrong + thread:get("wrong") end
    io.stderr:write(string.format(
        '{"acknowledged": %%d, "wrong": %%d, "ConnectionRefusedError": %%d, "ConnectionResetError": %%d, "TimeoutError": %%d}',
        summary.requests, wrong, errors.connect, errors.read + errors.write, errors.timeout))
end
"""


@HOPS
def test_nginx(tmp_path: Path, hops: int) -> None:
    if not (shutil.which("nginx") and shutil.which("wrk")):
        pytest.skip("nginx and wrk are not installed: harness/setup.sh test")
    body = "x" * 2000
    (tmp_path / "www").mkdir()
    (tmp_path / "www/index.html").write_text(body)
    (tmp_path / "nginx.conf").write_text(NGINX.format(room=tmp_path, user="root"))
    script = tmp_path / "check.lua"
    script.write_text(WRK % body)
    idles: list[float] = []
    total: Counter[str] = Counter()
    summaries = []
    with journey(AHEAD) as trip:
        trip.launch("nginx", "-c", str(tmp_path / "nginx.conf"), options=SHIFTED)

        def load(address: str) -> AbstractContextManager[subprocess.Popen[str]]:
            wrk = ("wrk", "--threads=1", "--connections=16", "--duration=600", f"--script={script}")
            return client(trip, *wrk, f"http://{address}:8080/")

        await_port(trip, 8080)
        for hop in range(hops):
            back = hop % 2 == 1
            with load((trip.there if back else trip.here).address) as wrk:
                time.sleep(0.7)
                summaries.append(trip.move(*world(hop), back=back))
                os.killpg(wrk.pid, signal.SIGINT)
                _, told = wrk.communicate(timeout=20)
                total.update(json.loads(told))
            idles.append(idle(trip, 8080, back=back))
    errors = {kind: number for kind, number in total.items() if kind in LOSSES and number}
    show(
        "nginx, wrk",
        summaries,
        acknowledged=total["acknowledged"],
        found=total["acknowledged"] - total["wrong"],
        connections="",
        errors=words(errors),
        timers=sends_away(idles),
    )
    assert total["acknowledged"] > 1000 * hops
    assert total["wrong"] == 0
    assert all(1.0 <= seconds < 1.5 for seconds in idles)


def await_port(trip: Journey, port: int) -> None:
    """Wait until the server on the first host listens."""
    deadline = time.monotonic() + 20
    while f":{port:04X} " not in trip.here.run("cat", "/proc/net/tcp").stdout:
        assert time.monotonic() < deadline, "the server does not begin"
        time.sleep(0.05)


def sends_away(idles: list[float]) -> str:
    """Write after how long idle connections were closed."""
    return f"idle clients sent away after {min(idles):.3f} to {max(idles):.3f} s"


def require_no_loss(found: dict[str, Any], hops: int) -> None:
    """Require that all that was acknowledged was found, and nothing but connections were lost."""
    assert found["acknowledged"] > 100 * hops
    assert found["lost"] == 0
    assert set(found["errors"]) <= LOSSES


POSTGRESQL = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))
AS_POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--")
# pgbench in the task speaks to the server through a socket that moves along
TASK = """
{bin}/postgres -D {room}/db -k {room} -c listen_addresses=* -c max_connections=20 &
server=$!
trap 'kill -INT $server' TERM
until {bin}/pg_isready -q -h {room}; do sleep 0.1; done
{bin}/pgbench -n -h {room} -U postgres -c 2 -T {seconds} -R 100 -l --log-prefix={room}/inside postgres >{room}/inside.out 2>&1
touch {room}/inside.done
wait $server
wait $server
"""


class Postgres:
    """A database of this test's own, with pgbench's tables in it."""

    def __init__(self, room: Path) -> None:
        """Make it."""
        if not (POSTGRESQL / "pgbench").exists():
            pytest.skip("postgresql is not installed: harness/setup.sh test")
        self.room = room
        user = pwd.getpwnam("postgres")
        let_others_in(room)
        os.chown(room, user.pw_uid, user.pw_gid)
        db = room / "db"
        initdb = ("initdb", "-D", str(db), "-U", "postgres", "-A", "trust", "--no-sync")
        self._run(*initdb)
        (db / "pg_hba.conf").write_text("local all all trust\nhost all all 10.213.0.0/24 trust\n")
        self._run("pg_ctl", "-D", str(db), "-w", "-s", "-o", f"-k {room} -h ''", "start")
        self._run("pgbench", "-h", str(room), "-U", "postgres", "-i", "-q", "postgres")
        self._run("pg_ctl", "-D", str(db), "-w", "-s", "stop")
        # see tests/programs/unprivileged.c
        library = room / "unprivileged.so"
        compile_c(library, PROGRAMS / "unprivileged.c", f"-DUID={user.pw_uid}", "-shared", "-fPIC")
        self.prefix = (
            AS_POSTGRES if has_capability(CAP_SYS_RESOURCE) else ("env", f"LD_PRELOAD={library}")
        )

    def _run(self, program: str, *argv: str) -> None:
        subprocess.run(
            [*AS_POSTGRES, POSTGRESQL / program, *argv],
            check=True,
            cwd="/",
            timeout=60,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def task(self, seconds: int) -> tuple[str, ...]:
        """Return the command of the task: the server, and pgbench for so many seconds."""
        script = TASK.format(bin=POSTGRESQL, room=self.room, seconds=seconds)
        return (*self.prefix, "sh", "-c", script)

    def inside(self) -> tuple[int, float]:
        """Return how many transactions pgbench in the task made, and the longest delay, in s."""
        number, worst = 0, 0
        for log in self.room.glob("inside.*[0-9]"):
            for line in log.read_text().splitlines():
                latency, lag = int(line.split()[2]), int(line.split()[6])
                number += 1
                worst = max(worst, latency, lag)
        return number, worst / 1e6


def pgbench(trip: Journey, address: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run it as fast as it can, from outside."""
    options = ("-n", "-h", address, "-U", "postgres", "-c", str(CONNECTIONS), "-T", "600")
    return client(trip, str(POSTGRESQL / "pgbench"), *options, "postgres")


def query(trip: Journey, address: str, sql: str) -> list[str]:
    """Ask the database for one row."""
    options = ("-h", address, "-U", "postgres", "-A", "-t", "-c", sql, "postgres")
    return ask(trip, str(POSTGRESQL / "psql"), *options).strip().split("|")


@HOPS
def test_postgresql(tmp_path: Path, hops: int) -> None:
    postgres = Postgres(tmp_path)
    outside = 0
    complaints: Counter[str] = Counter()
    summaries = []
    with journey(AHEAD) as trip:
        trip.launch(*postgres.task(seconds=2 * hops + 2), options=SHIFTED)
        await_port(trip, 5432)
        time.sleep(0.5)
        for hop in range(hops):
            back = hop % 2 == 1
            source = trip.there if back else trip.here
            with pgbench(trip, source.address) as bench:
                time.sleep(0.7)
                summaries.append(trip.move(*world(hop), back=back))
                told, complaint = bench.communicate(timeout=30)  # its connections are lost
            outside += int(re.findall(r"transactions actually processed: (\d+)", told)[0])
            complaints.update(kinds(complaint))
        host = trip.there if hops % 2 else trip.here
        deadline = time.monotonic() + 60
        while not (tmp_path / "inside.done").exists():
            assert time.monotonic() < deadline, "pgbench in the task does not end"
            time.sleep(0.1)
        time.sleep(0.5)
        found, *sums = query(
            trip,
            host.address,
            "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(delta) FROM pgbench_history),"
            " (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT sum(bbalance) FROM pgbench_branches)",
        )
        ends(trip, hops)
    inside, worst = postgres.inside()
    acknowledged = outside + inside
    show(
        "PostgreSQL, pgbench",
        summaries,
        acknowledged=acknowledged,
        found=found,
        connections=CONNECTIONS * hops,
        errors=words(complaints),
        timers=f"pgbench in the task: {inside} at 100/s, delayed at most {worst:.2f} s",
    )
    assert outside > 20 * hops
    # what was under way when a connection was lost may have been committed all the same
    assert acknowledged <= int(found) <= acknowledged + CONNECTIONS * hops
    assert len(set(sums)) == 1
    assert set(complaints) <= {"server closed the connection", "run was aborted"}
    assert "processed" in (tmp_path / "inside.out").read_text()
    assert "aborted" not in (tmp_path / "inside.out").read_text()
    assert inside > 100 * 2 * hops // 2


def test_postgresql_without_the_shim(tmp_path: Path) -> None:
    """pgbench plans its transactions ahead by a clock that reads a day less on the other host."""
    postgres = Postgres(tmp_path)

    def per_second(address: str) -> float:
        count = "SELECT count(*) FROM pgbench_history"
        before = int(query(trip, address, count)[0])
        time.sleep(1)
        return int(query(trip, address, count)[0]) - before

    with journey(-AHEAD) as trip:
        trip.launch(*postgres.task(seconds=60), clocks="none")
        await_port(trip, 5432)
        time.sleep(1)
        usual = per_second(trip.here.address)
        trip.move(*PAGE_ONLY)
        time.sleep(0.5)
        stalled = per_second(trip.there.address)
    print(f"pgbench without the shim: {usual} transactions per second, then {stalled}")
    assert usual > 20
    assert stalled == 0


def kinds(complaint: str) -> Counter[str]:
    """Sort what pgbench complained about."""
    found: Counter[str] = Counter()
    for line in complaint.splitlines():
        if "Run was aborted" in line:
            found["run was aborted"] += 1
        elif "perhaps the backend died" in line or "server closed the connection" in line:
            found["server closed the connection"] += 1
        elif line.startswith("pgbench: error"):
            found[line] += 1
    return found

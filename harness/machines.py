"""Virtual machines as test hosts: kernels, boots and TSCs of their own, reached by a real sshd.

QEMU interprets (TCG), so no KVM is needed, and a machine answers ssh some 3 s after it was started.
All machines boot from one read-only image (machine-image.sh, built once and kept); what is a machine's
own is a second, small drive: name, address, keys, and timeshim as pip would install it. Whatever a
machine writes is in its memory and gone with it. The machines hang on a switch like that of
harness/hosts.py, so nothing listens on, or appears among, the creator's interfaces.

A process that waits for the creator's pipe holds the switch, and each QEMU dies with the thread
that started it (PR_SET_PDEATHSIG), which here is the creator's main thread: nothing outlives it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness.hosts import SUBNET, plug_tap, switch
from timeshim.errors import Error

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
CACHE = Path("/var/cache/timeshim")
NEEDS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
}
BOOT_SECONDS = 60.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h

# -icount has the machine count instructions instead of the host's ticks: its TSC then runs at
# exactly 1 GHz of its own clock, and "auto" keeps that close to the host's.
SLOW_TSC = ("-icount", "auto", "-accel", "tcg,thread=single")
HOST_TSC = ("-accel", "tcg,thread=multi")


@dataclass(frozen=True)
class MachineSpec:
    """What a machine should be.

    Attributes:
        name: its host name.
        slow_tsc: whether its TSC runs at 1.000 GHz instead of at the creator's frequency.
        memory_mb: how much memory it has.
    """

    name: str
    slow_tsc: bool = False
    memory_mb: int = 512


@dataclass(frozen=True)
class Machine:
    """A running machine, whose sshd answers.

    Attributes:
        spec: what was asked for.
        pid: QEMU's; killing it pulls the plug.
        address: its address on the switch.
        prefix: the command prefix that runs something on it, by ssh; what follows is joined by
            spaces and read by a shell there, as ssh does.
    """

    spec: MachineSpec
    pid: int
    address: str
    prefix: list[str]

    @property
    def name(self) -> str:
        """Its host name, by which the other machines reach it: `ssh root@name`."""
        return self.spec.name

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` on the machine, word by word."""
        return [*self.prefix, shlex.join(argv)]

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `argv` on the machine to its end, as subprocess.run does with these `options`.

        By default its output is captured as text, failure raises CalledProcessError, and 120 s
        raise TimeoutExpired.
        """
        captured: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        usual = {"stdin": subprocess.DEVNULL, "text": True, "check": True, "timeout": 120}
        return subprocess.run(self.command(*argv), **(captured | usual | options))  # noqa: PLW1510

    def put(self, path: Path) -> None:
        """Copy a program to where it is here, under the same name."""
        script = 'mkdir -p "$(dirname "$0")" && cat >"$0" && chmod 755 "$0"'
        self.run("sh", "-c", script, str(path), stdin=path.open("rb"), text=False)


@contextmanager
def machines(*specs: MachineSpec) -> Iterator[tuple[Machine, ...]]:
    """Run machines with these specs until the context ends, in whatever way.

    Raises:
        Error: not root, a program is missing, the image cannot be built, or one does not boot.
    """
    missing = [package for program, package in NEEDS.items() if not shutil.which(program)]
    if os.geteuid():
        raise Error("virtual machines on a network of their own take root")
    if missing:
        raise Error(f"virtual machines need what Debian calls {' '.join(missing)}: install it")
    boot = image()
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="timeshim-machines-")))
        seeds = make_seeds(place, specs)
        hub = stack.enter_context(switch())
        enter = ("nsenter", "--target", str(hub), "--net", "--")
        ssh = [*enter, "ssh", "-F", str(place / "ssh_config")]
        started = [
            stack.enter_context(_running(spec, n, hub, boot, seed))
            for n, (spec, seed) in enumerate(zip(specs, seeds, strict=True))
        ]
        ready = tuple(
            Machine(spec, qemu.pid, address_of(n), [*ssh, f"root@{spec.name}"])
            for n, (spec, qemu) in enumerate(zip(specs, started, strict=True))
        )
        for machine, qemu, seed in zip(ready, started, seeds, strict=True):
            _await_ssh(machine, qemu, console_of(seed))
            _set_clock(machine)
        yield ready


def address_of(number: int) -> str:
    """Return the address of the machine of that number; the hosts of hosts.py begin at 2."""
    return str(SUBNET[100 + number])


def image() -> Path:
    """Return the directory of the image that all boot from; it is built if it is not there.

    Raises:
        Error: it cannot be built, and why.
    """
    script = HERE / "machine-image.sh"
    # what it is built by is its name, so that nobody boots what another release built
    path = CACHE / f"machine-{hashlib.sha256(script.read_bytes()).hexdigest()[:16]}"
    if not path.exists():
        done = subprocess.run(
            ["sh", str(script), str(path)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Error(f"no virtual machine can be made: {done.stderr.strip()}")
        for other in CACHE.glob("machine-*"):
            if other != path:
                shutil.rmtree(other, ignore_errors=True)
    return path


def make_seeds(place: Path, specs: tuple[MachineSpec, ...]) -> list[Path]:
    """Make each machine's own drive, and the configuration by which the creator reaches them."""
    common = place / "common"
    keys = common / "ssh"
    keys.mkdir(parents=True)
    for name in ("host_key", "client_key"):
        make_key(keys / name)
    shutil.copy(keys / "client_key.pub", keys / "authorized_keys")
    names = {spec.name: address_of(n) for n, spec in enumerate(specs)}
    public = (keys / "host_key.pub").read_text()
    known = "".join(f"{name},{address} {public}" for name, address in names.items())
    (keys / "known_hosts").write_text(known)
    (common / "hosts").write_text("".join(f"{at} {name}\n" for name, at in names.items()))
    (place / "ssh_config").write_text(
        "".join(
            f"Host {name}\n    HostName {at}\n    HostKeyAlias {name}\n"
            for name, at in names.items()
        )
        + f"Host *\n    IdentityFile {keys / 'client_key'}\n"
        f"    UserKnownHostsFile {keys / 'known_hosts'}\n    BatchMode yes\n"
        "    ConnectTimeout 5\n    LogLevel ERROR\n"
    )
    install(common / "site")
    seeds = []
    for spec in specs:
        seed = place / f"{spec.name}.ext4"
        (common / "name").write_text(f"{spec.name}\n")
        (common / "address").write_text(f"{names[spec.name]}/{SUBNET.prefixlen}\n")
        command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(common)]
        subprocess.run([*command, str(seed), "64M"], check=True, capture_output=True, timeout=60)
        seeds.append(seed)
    return seeds


def make_key(path: Path) -> None:
    """Make a key pair without a passphrase."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True, timeout=30)


def install(site: Path) -> None:
    """Install this timeshim, built anew, into a directory; what it imports is in the image."""
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile"]
    done = subprocess.run(
        [*pip, "--target", str(site), str(HERE.parent)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    if done.returncode:
        raise Error(f"timeshim cannot be installed for a virtual machine: {done.stderr.strip()}")


@contextmanager
def _running(
    spec: MachineSpec, number: int, hub: int, boot: Path, seed: Path
) -> Iterator[subprocess.Popen[str]]:
    """Run QEMU, its console's last words kept."""
    tap = plug_tap(hub, number)
    mac = f"52:54:00:74:73:{number:02x}"  # 52:54:00 is QEMU's by custom
    drive = "if=none,format=raw,readonly=on,id={0},file={1}"
    command = [
        *("nsenter", "--target", str(hub), "--net", "--"),
        *("qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none", "-cpu", "max"),
        *(SLOW_TSC if spec.slow_tsc else HOST_TSC),
        *("-m", str(spec.memory_mb), "-serial", f"file:{console_of(seed)}"),
        *("-kernel", str(boot / "vmlinuz")),
        *("-append", "root=/dev/nvme0n1 ro init=/usr/sbin/init console=ttyS0 quiet panic=-1"),
        # one controller, or the order of the two would be left to chance
        *("-device", "nvme,id=nvme,serial=timeshim"),
        *("-drive", drive.format("root", boot / "root.ext4")),
        *("-device", "nvme-ns,drive=root,bus=nvme,nsid=1"),
        *("-drive", drive.format("seed", seed), "-device", "nvme-ns,drive=seed,bus=nvme,nsid=2"),
        *("-netdev", f"tap,id=net,ifname={tap},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=net,mac={mac}", "-device", "virtio-rng-pci"),
    ]
    libc = ctypes.CDLL(None)
    qemu = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    try:
        yield qemu
    finally:
        qemu.kill()
        qemu.communicate()


def console_of(seed: Path) -> Path:
    """Return where what a machine says while it boots is kept, as long as it runs."""
    return seed.with_suffix(".console")


def _set_clock(machine: Machine) -> None:
    """Set CLOCK_REALTIME to the creator's, to some milliseconds; QEMU sets it to a second."""
    script = (
        "import time; print(flush=True); time.clock_settime_ns(time.CLOCK_REALTIME, int(input()))"
    )
    with subprocess.Popen(
        machine.command("python3", "-c", script),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        process.stdout.readline()
        process.communicate(f"{time.time_ns()}\n", timeout=30)


def _await_ssh(machine: Machine, qemu: subprocess.Popen[str], console: Path) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        try:
            machine.run("true", timeout=10)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            if qemu.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            said = [
                str(error.stderr or ""),
                qemu.stderr.read() if qemu.poll() is not None and qemu.stderr else "",
            ]
            said += [console.read_text(errors="replace")] if console.exists() else []
            words = [line for text in said for line in text.strip().splitlines()]
            raise Error(
                f"the virtual machine {machine.name} does not answer: {' / '.join(words[-25:])}"
            ) from None
        else:
            return

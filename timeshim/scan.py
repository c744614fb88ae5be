"""Where programs read the TSC by themselves, and what the shim makes of it.

What is decided is decided in preload/sites.c, here as in the shim; this only shows it. Of a process
that runs, its memory tells what was done.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from timeshim._native import ffi, lib
from timeshim.errors import Error

KINDS = {lib.TS_RDTSC: "rdtsc", lib.TS_RDTSCP: "rdtscp"}
MOVED, HOP, PUNNED, RAW = "moved", "hop", "punned", "raw"
HANDLED = {
    lib.TS_SITE_MOVED: MOVED,
    lib.TS_SITE_HOP: HOP,
    lib.TS_SITE_PUNNED: PUNNED,
    lib.TS_SITE_RAW: RAW,
}
LEFT_ALONE = {
    lib.TS_ALONE_NOT: "",
    lib.TS_ALONE_LIBC: "libc: only jitter for spin locks, and LD_DEBUG=statistics",
    lib.TS_ALONE_KERNEL: "the kernel's vDSO",
    lib.TS_ALONE_SHIM: "the shim itself",
    lib.TS_ALONE_TEXTREL: "its text is relocated",
}


@dataclass
class Site:
    """An instruction that reads the TSC. Addresses are link-time addresses."""

    address: int
    function: int
    instruction: str
    handled: str
    """``moved``, ``hop``, ``punned`` (preload/sites.h), or ``raw``: it cannot be."""
    window: int
    rewritten: bool | None = None
    """Whether a process has it rewritten; None in a file."""


@dataclass
class Object:
    """A program or a library, and what was found in it."""

    path: str
    text: int
    """Bytes of code."""
    left_alone: str
    """Why its sites are left as they are; empty if they are not."""
    inside: int
    """Byte sequences that look like the instructions, but are parts of others."""
    outside: int
    """Such sequences in no known function: data, or code of which nobody tells where it begins."""
    undecoded: int
    """Such sequences in functions that are not instructions throughout: not covered."""
    marked: int
    """Those of timeshim.h, which looks at the page itself."""
    trapped: bool = False
    """Whether it is a process's in which they trap, all of them."""
    sites: list[Site] = field(default_factory=list)

    def count(self, handled: str) -> int:
        """Return how many sites are handled in that way."""
        return sum(site.handled == handled for site in self.sites)

    @property
    def uncovered(self) -> int:
        """How many sites read the hardware, as far as can be known."""
        if self.left_alone or self.trapped:
            return 0
        return self.undecoded + sum(
            site.handled == RAW or site.rewritten is False for site in self.sites
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return asdict(self) | {"uncovered": self.uncovered}


def scan_file(path: Path, shown_as: str = "") -> Object:
    """Look at a file.

    Raises:
        Error: it cannot be read, or is no program or library for x86-64.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Error(f"{path} cannot be read: {error.strerror}") from None
    mapped = ffi.new("struct ts_object *")
    try:
        failure = lib.ts_map_file(fd, mapped)
    finally:
        os.close(fd)
    if failure:
        raise Error(f"{path} is not an ELF program or library for x86-64")
    try:
        return _find(mapped, shown_as or str(path))
    finally:
        lib.ts_unmap_file(mapped)


def _find(mapped: Any, shown_as: str) -> Object:
    scan = ffi.new("struct ts_scan *")
    found, room = 1, 0
    while found > room:
        room = max(found, 64)
        sites = ffi.new("struct ts_site[]", room)
        found = lib.ts_find_sites(mapped, sites, room, scan)
    if found < 0:
        raise Error(f"{shown_as} cannot be scanned: {os.strerror(-found)}")
    return Object(
        path=shown_as,
        text=scan.text,
        left_alone=LEFT_ALONE[mapped.left_alone],
        inside=scan.inside,
        outside=scan.outside,
        undecoded=scan.undecoded,
        marked=scan.marked,
        sites=[
            Site(
                address=site.address,
                function=site.function,
                instruction=KINDS[site.kind],
                handled=HANDLED[site.how],
                window=site.window,
            )
            for site in sites[0:found]
        ],
    )


def scan_process(pid: int) -> list[Object]:
    """Look at all that a process has mapped to execute, and at what the shim made of it.

    Raises:
        Error: there is no such process, or it may not be looked at.
    """
    process = Path(f"/proc/{pid}")
    try:
        maps = (process / "maps").read_text().splitlines()
        memory = (process / "mem").open("rb", buffering=0)
    except OSError as error:
        raise Error(f"process {pid} cannot be looked at: {error.strerror}") from None
    # where each file's first page is mapped, for those that have code
    first: dict[str, int] = {}
    executable = set()
    page = None
    for line in maps:
        span, mode, offset, _, _, *rest = line.split(maxsplit=5)
        path = rest[0] if rest else ""
        if path.startswith("/"):
            if int(offset, 16) == 0:
                first.setdefault(path, int(span.partition("-")[0], 16))
            if "x" in mode:
                executable.add(path)
            if path.endswith("/page") and int(offset, 16) == 0:
                page = int(span.partition("-")[0], 16)
    objects = []
    with memory:
        trapped = page is not None and _traps(memory, page)
        for name in sorted(executable & first.keys()):
            try:
                found = scan_file(process / "root" / name.lstrip("/"), name)
            except Error:
                continue  # replaced since, or code that is no ELF file
            found.trapped = trapped
            for site in found.sites:
                site.rewritten = _is_rewritten(memory, site, first[name])
            objects.append(found)
    return objects


def _traps(memory: Any, page: int) -> bool:
    memory.seek(page)
    area = ffi.new("struct ts_clock_area *")
    memory.readinto(ffi.buffer(area))
    return bool(area.magic == lib.TIMESHIM_MAGIC and area.tsc_trap)


def _is_rewritten(memory: Any, site: Site, base: int) -> bool | None:
    # programs that are not PIE are linked to where they are: their first page has that address
    for address in (base + site.address, site.address):
        try:
            memory.seek(address)
            now = memory.read(2)
            memory.seek(address - site.address + site.window)
            window = memory.read(1)
        except (OSError, OverflowError, ValueError):
            continue
        if now[:1] == b"\x0f" or window in {b"\xe9", b"\xeb"}:
            return window in {b"\xe9", b"\xeb"}
    return None

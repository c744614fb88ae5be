"""Print what `timeshim scan` finds in all programs and libraries of a system.

    python tests/bench/scan.py [DIRECTORY...]

How many sites there are, how they are covered, how long it took; and, for every file that has a
site, in which places objdump sees the instructions and the scan does not, or the other way round.
objdump decodes whole sections, so it also shows data as instructions, and loses its way behind it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from timeshim.errors import Error
from timeshim.scan import Object, scan_file

READS = re.compile(r"^\s*([0-9a-f]+):\t.*\t(?:\S+ )*rdtscp?\s*$", re.MULTILINE)


def files(directories: list[Path]) -> list[Path]:
    """Return the ELF files below directories, each once."""
    found: dict[tuple[int, int], Path] = {}
    for directory in directories:
        for path in directory.rglob("*"):
            try:
                if path.is_symlink() or not path.is_file():
                    continue
                status = path.stat()
                with path.open("rb") as file:
                    if file.read(4) == b"\x7fELF":
                        found.setdefault((status.st_dev, status.st_ino), path)
            except OSError:
                continue
    return list(found.values())


def seen_by_objdump(path: Path) -> set[int]:
    """Return where objdump sees the instructions."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return {int(address, 16) for address in re.findall(READS, shown.stdout)} or {
        int(address, 16)
        for address in re.findall(r"^\s*([0-9a-f]+):\s+rdtscp?\s*$", shown.stdout, re.MULTILINE)
    }


def main() -> None:
    """Scan, compare and print."""
    directories = [Path(name) for name in sys.argv[1:]] or [Path("/usr"), Path("/opt")]
    totals: Counter[str] = Counter()
    objects: list[Object] = []
    seconds = 0.0
    for path in files(directories):
        begin = time.perf_counter()
        try:
            found = scan_file(path)
        except Error:  # object files, other machines' programs
            totals["other files"] += 1
            continue
        seconds += time.perf_counter() - begin
        totals["files"] += 1
        totals["bytes of text"] += found.text
        totals["look-alikes in other instructions"] += found.inside
        totals["look-alikes in no function"] += found.outside
        totals["sequences in functions that cannot be decoded"] += found.undecoded
        if found.sites or found.undecoded:
            objects.append(found)
            totals["files with sites"] += bool(found.sites)
        for site in found.sites:
            totals["sites"] += 1
            totals[f"sites {site.handled}"] += 1
    for name, count in totals.items():
        print(f"{count:12} {name}")
    megabytes = totals["bytes of text"] / 1e6
    print(
        f"{seconds:.2f} s for {megabytes:.0f} MB of text: {seconds / megabytes * 100:.2f} s for 100 MB"
    )
    for found in objects:
        sites = {site.address for site in found.sites}
        seen = seen_by_objdump(Path(found.path))
        totals["agreed"] += len(sites & seen)
        for names, addresses in (("scan only", sites - seen), ("objdump only", seen - sites)):
            totals[names] += len(addresses)
            if addresses:
                print(
                    f"{names}: {found.path}",
                    *(f"{address:#x}" for address in sorted(addresses)[:8]),
                )
        if found.undecoded:
            print(f"not decoded: {found.undecoded} in {found.path}")
    print(
        f"agreed {totals['agreed']}, scan only {totals['scan only']}, objdump only {totals['objdump only']}"
    )


if __name__ == "__main__":
    main()

"""Builds the C side: one cffi module for Python, two plain ELF files for the task.

``timeshim._native``
    page.h, arith.h, timeshim.h, supervise.h, inject.h, hold.h, sites.h and scan.h as Python sees
    them. Those headers are the only declarations: cffi is given their text, not a copy.
``libtimeshim.so``, ``reaper``
    What runs inside the task. They are compiled with flags of their own instead of
    Python's, need libc only, and lie beside the module.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from cffi import FFI
from setuptools.command.build_ext import build_ext as setuptools_build_ext
from setuptools.errors import CompileError

if TYPE_CHECKING:
    from setuptools import Extension

HERE = Path(__file__).parent

# all but the other two products' sources
SHIM_SOURCES = sorted(
    {path.name for path in HERE.glob("*.c")}
    - {"hold.c", "inject.c", "pending.c", "reaper.c", "scan.c", "supervise.c"}
)

COMMON_FLAGS = ["-std=gnu17", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]

# Where harness/zydis-install.sh puts the instruction decoder; a prefix as others are.
ZYDIS = Path(os.environ.get("TIMESHIM_ZYDIS", "/usr/local/lib/timeshim/zydis"))
ZYDIS_MACROS = ["ZYAN_NO_LIBC", "ZYDIS_STATIC_BUILD", "ZYCORE_STATIC_BUILD"]
ZYDIS_FLAGS = ["-isystem", str(ZYDIS / "include"), *(f"-D{name}" for name in ZYDIS_MACROS)]
ZYDIS_LIBRARY = ZYDIS / "lib" / "libZydis.a"

# No stack protector: its canary is a thread-local variable, and its failure a call
# to abort() with a message, neither of which a clock read may do.
SHIM_FLAGS = [
    *("-fPIC", "-shared", "-fno-stack-protector", "-U_FORTIFY_SOURCE"),
    *("-ffunction-sections", "-fdata-sections", *ZYDIS_FLAGS),
]

# initfirst: other libraries' constructors already read virtual clocks.
SHIM_LINK = [
    *("-Wl,-z,initfirst,-z,now,-z,relro,-z,defs", "-Wl,-soname,libtimeshim.so"),
    *("-Wl,--gc-sections,--exclude-libs,ALL", str(ZYDIS_LIBRARY)),
]


# What Python sees, beside the functions of arith.h and timeshim.h.
HEADERS = ["page.h", "supervise.h", "inject.h", "hold.h", "sites.h", "scan.h"]


def declarations() -> str:
    """Return the headers as text that cffi's C parser takes."""
    text = "".join((HERE / name).read_text() for name in HEADERS)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    kept = [
        line
        for line in text.splitlines()
        if not re.match(r"#(include|ifndef|endif)|#define TIMESHIM_\w+_H$|_Static_assert", line)
    ]
    pure = [
        prototype
        for name in ("arith.h", "timeshim.h")
        for prototype in re.findall(
            r"^static inline (.+?\))\n{", (HERE / name).read_text(), flags=re.MULTILINE | re.DOTALL
        )
    ]
    return "\n".join(kept) + "".join(f"\n{prototype};" for prototype in pure)


class build_ext(setuptools_build_ext):  # noqa: N801 - the name is setuptools'
    """setuptools' build_ext, for one extension that is emitted by cffi."""

    def build_extension(self, ext: Extension) -> None:
        """Emit and compile the module, then what lies beside it."""
        if not ZYDIS_LIBRARY.exists():
            raise CompileError(
                f"there is no {ZYDIS_LIBRARY}: building timeshim takes the instruction decoder Zydis as a static library, which harness/zydis-install.sh installs on Debian; elsewhere, name a prefix that has it in TIMESHIM_ZYDIS"
            )
        ffi = FFI()
        ffi.cdef(declarations())
        includes = ("arith.h", *HEADERS, "timeshim.h")
        ffi.set_source(ext.name, "".join(f'#include "{name}"\n' for name in includes))
        emitted = Path(self.build_temp) / "_native.c"
        emitted.parent.mkdir(parents=True, exist_ok=True)
        ffi.emit_c_code(str(emitted))

        # only for this call: what pyproject.toml lists is also what an sdist contains
        listed = ext.sources
        ext.sources = [*listed, str(emitted)]
        ext.include_dirs.append(str(ZYDIS / "include"))
        ext.define_macros += [(name, None) for name in ZYDIS_MACROS]
        ext.extra_objects = [str(ZYDIS_LIBRARY)]
        super().build_extension(ext)
        ext.sources = listed

        shim, reaper = self.plain_files(self.build_lib)
        sources = [str(HERE / name) for name in SHIM_SOURCES]
        version_script = f"-Wl,--version-script={HERE / 'libtimeshim.map'}"
        self.compile_plain(shim, [*SHIM_FLAGS, *sources, *SHIM_LINK, version_script])
        self.compile_plain(reaper, [str(HERE / "reaper.c")])

    def plain_files(self, root: str) -> list[Path]:
        """Return where the two ELF files belong in a tree of packages."""
        return [Path(root) / "timeshim" / name for name in ("libtimeshim.so", "reaper")]

    def get_outputs(self) -> list[str]:
        """Name all that is built, so that wheels and `pip uninstall` know of it."""
        return [*super().get_outputs(), *map(str, self.plain_files(self.build_lib))]

    def copy_extensions_to_source(self) -> None:
        """Copy what an editable installation runs from the source tree."""
        super().copy_extensions_to_source()
        for built, used in zip(
            self.plain_files(self.build_lib), self.plain_files("."), strict=True
        ):
            self.copy_file(str(built), str(used))

    def compile_plain(self, output: Path, arguments: list[str]) -> None:
        """Compile one ELF file without any of Python's flags."""
        compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
        command = [*compiler, *COMMON_FLAGS, *arguments, "-o", str(output)]
        self.announce(shlex.join(command), level=2)
        subprocess.run(command, check=True)

"""The C module that preload/build.py makes of page.h, arith.h and supervise.h."""

from typing import Any

from cffi import FFI

ffi: FFI
lib: Any  # functions, structs and integer constants as those headers declare them

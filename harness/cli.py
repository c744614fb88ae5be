"""The command line: what timeshim.cli offers on one host, and moving tasks between hosts."""

from __future__ import annotations

from timeshim.cli import main

__all__ = ["main"]

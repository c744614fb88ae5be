"""Tables of figures that tests gather, printed when all tests have run (see conftest.py)."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

tables: dict[str, list[dict[str, str]]] = {}


def add(title: str, **columns: object) -> None:
    """Add a row to the table of that title; the first row's columns are the table's."""
    tables.setdefault(title, []).append({name: str(value) for name, value in columns.items()})


def merge(others: dict[str, list[dict[str, str]]]) -> None:
    """Add the tables of another process."""
    for title, rows in others.items():
        tables.setdefault(title, []).extend(rows)


def render() -> str:
    """Return all tables, as text."""
    text = io.StringIO()
    console = Console(file=text, width=220)
    for title, rows in tables.items():
        table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
        for number, column in enumerate(rows[0]):
            table.add_column(column.replace("_", " "), justify="right" if number else "left")
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
    return text.getvalue()

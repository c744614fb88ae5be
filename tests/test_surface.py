"""Every interface in every mode is right with the shim, and without it is wrong somewhere.

The two tables that come of it are printed at the end of the run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from surface import FAMILIES, MIGRATIONS, MODES, RIGHT_BY_ITSELF, Matrix, Mode
from verdicts import ABSENT, RIGHT

SURFACE = Path(__file__).parents[1] / "docs" / "surface.md"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="hosts are namespaces"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="session")
def matrix(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Matrix:
    matrix = Matrix(corpus, tmp_path_factory.mktemp("matrix"))
    request.config.pluginmanager.register(AtTheEnd(matrix))
    return matrix


class AtTheEnd:
    """Prints the matrix when all tests have run."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for title, clocks in (("with the shim", "shim"), ("without the shim", "none")):
            terminalreporter.section(f"every interface in every mode, {title}")
            terminalreporter.write(self.matrix.table(clocks))
        terminalreporter.section("every interface in every mode, counted")
        terminalreporter.write(self.matrix.summary())


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_shim(matrix: Matrix, mode: Mode, family: str) -> None:
    assert matrix.wrong(mode, family) == {}


@pytest.mark.parametrize("mode", MIGRATIONS, ids=lambda mode: mode.name)
def test_without_the_shim_a_migration_is_noticed(matrix: Matrix, mode: Mode) -> None:
    for family in FAMILIES:
        assert matrix.wrong(mode, family, "none") != {}


def test_every_interface_needs_the_shim(matrix: Matrix) -> None:
    """An interface that is never wrong without it would prove nothing."""
    wrong, right = set(), set()
    for mode in MIGRATIONS:
        column = matrix.column(mode, "none")
        wrong |= {row for row, what in column.items() if what not in {RIGHT, ABSENT}}
        right |= {row for row, what in column.items() if what == RIGHT}
    assert right - wrong == RIGHT_BY_ITSELF


def test_the_documentation_names_every_interface(matrix: Matrix) -> None:
    """And which family of rows shows what it does."""
    told: dict[str, list[set[str]]] = {}
    for interface, families in re.findall(
        r"^\| (.*?) \|.* matrix: ([^;|]*)", SURFACE.read_text(), re.MULTILINE
    ):
        for family in families.strip().split(", "):
            told.setdefault(family, []).append(set(re.findall(r"\w+", interface)))
    for family, rows in matrix.rows.items():
        for row in rows if family != "interrupted" else ():
            words = set(re.findall(r"\w+", row["row"]))
            assert any(words <= interface for interface in told[family]), (family, row["row"])

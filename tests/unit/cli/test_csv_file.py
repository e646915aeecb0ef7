"""CSV files for people: what a spreadsheet would run as a formula stays a text."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from aggregators.csv_lines import csv_cell
from pipeline.commands.csv_file import csv_file
from schemas.errors import InvalidInput
from tests.documents import ROOT


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"), ("+1+1", "'+1+1"), ("-1+1", "'-1+1"), ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"), ("\r=1", "'\r=1"), ("-", "'-"), ("-1.5e3", "'-1.5e3"),
        ("acme", "acme"), ("a=b", "a=b"), ("", ""), ("-12.50", "-12.50"), ("+3", "+3"), (-7, "-7"), (0, "0"),
    ],
)  # fmt: skip
def test_a_formula_stays_a_text_and_a_number_a_number(value: object, cell: str) -> None:
    assert cell == csv_cell(value)


def test_a_file_has_its_columns_and_rows(tmp_path: Path) -> None:
    with csv_file(tmp_path / "a.csv", ["account", "amount"]) as write:
        write(['=1+1,"x"', "-5.00"])

    rows = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))
    assert [["account", "amount"], ['\'=1+1,"x"', "-5.00"]] == rows


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot write"), csv_file(tmp_path / "no" / "a.csv", []):
        pass


def test_nothing_else_writes_csv() -> None:
    """Another writer would forget the formulas."""
    files = [
        path
        for name in ("aggregators", "pipeline", "portal", "reconciler", "demo")
        for path in (ROOT / name).rglob("*.py")
    ]

    assert ["csv_lines.py"] == [path.name for path in files if "csv.writer" in path.read_text()]

"""What the commands of recognized and deferred revenue and of retention print and write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.access.revenue import SPANS_MAX, By, day_of, day_text, spans
from pipeline.commands import recognition
from schemas.clock import DAY_MS
from schemas.errors import InvalidInput
from schemas.recognition import Effect, Recognized
from tests.unit.cli.command_lines import run

OCTOBER = day_of("", "2026-10")
NOVEMBER = Recognized(
    "usd", OCTOBER + 31, OCTOBER + 61,
    {Effect.EARNED: 127_000, Effect.BREAKAGE: 0, Effect.CREDIT_NOTE: -6_200, Effect.VOID: 0},
    16_000, 80_000, -27_200, 409_000, 351_000, 0, 10_000,
)  # fmt: skip
RETAINED = {"from": "2026-01-01", "to": "2027-01-01", "currency": "usd", "net_retention_percent": None}


@pytest.fixture(autouse=True)
def deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a deployment that nothing opens."""
    for name, value in {"LOG_URL": "embedded:///nowhere", "SECRET": "s" * 40, "SQL_URL": "postgresql://x"}.items():
        monkeypatch.setenv(f"TIDEMARK_{name}", value)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, *rows: Any) -> list[tuple[Any, ...]]:
    """Answer a command with rows; returns what it asks for."""
    asked: list[tuple[Any, ...]] = []

    async def call(_settings: Any, *arguments: Any) -> Sequence[Any]:
        asked.append(arguments)
        return rows

    monkeypatch.setattr(recognition, name, call)
    return asked


def test_recognized_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_in(monkeypatch, "recognition_in", NOVEMBER)
    found = run(["revenue", "recognized", "--from", "2026-11", "--to", "2026-12"])
    assert [line.split() for line in found.out.splitlines()] == [
        ["from", "to", "currency", "earned", "breakage", "credit_note", "void", "recognized", "bad_debt"],
        ["2026-11-01", "2026-12-01", "usd", "1270.00", "0.00", "-62.00", "0.00", "1208.00", "160.00"],
    ]
    assert asked == [("2026-11", "2026-12", By.MONTH)]


def test_deferred_adds_up_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "recognition_in", NOVEMBER)
    row = json.loads(run(["revenue", "deferred", "--json", "--by", "whole"]).out)
    assert row == {
        "from": "2026-11-01", "to": "2026-12-01", "currency": "usd", "start": "4090.00", "billed": "800.00",
        "taken_back": "-272.00", "recognized": "1208.00", "end": "3410.00", "deferred": "3510.00", "unbilled": "100.00",
    }  # fmt: skip


def test_retention_is_written_for_a_spreadsheet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked, path = stand_in(monkeypatch, "retention_in", RETAINED), tmp_path / "retention.csv"
    assert "1 rows" in run(["revenue", "retention", "--csv", str(path), "--by", "day"]).out
    assert path.read_text().splitlines() == [
        "from,to,currency,net_retention_percent", "2026-01-01,2027-01-01,usd,",
    ]  # fmt: skip
    assert asked == [(None, None, By.DAY)]


@pytest.mark.parametrize(
    ("command", "function"),
    [("recognized", "recognition_in"), ("deferred", "recognition_in"), ("retention", "retention_in")],
)
def test_nothing_is_said_in_words(monkeypatch: pytest.MonkeyPatch, command: str, function: str) -> None:
    stand_in(monkeypatch, function)
    assert run(["revenue", command]).out.startswith("no ")


NOW_MS = (day_of("", "2026-12-24")) * DAY_MS + 5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            (None, None, By.MONTH),
            ["2026-07-01", "2026-08-01", "2026-09-01", "2026-10-01", "2026-11-01", "2026-12-01", "2027-01-01"],
            id="six months",
        ),
        pytest.param(("2026-11-15", "2027-01-02", By.MONTH), ["2026-11-15", "2026-12-01", "2027-01-01", "2027-01-02"],
                     id="parts of months"),
        pytest.param(("2026-11", "2026-11-03", By.DAY), ["2026-11-01", "2026-11-02", "2026-11-03"], id="days"),
        pytest.param(("2026-01", "2027-01", By.WHOLE), ["2026-01-01", "2027-01-01"], id="one span"),
        pytest.param((None, "2026-03", By.WHOLE), ["2025-09-01", "2026-03-01"], id="until then"),
    ],
)  # fmt: skip
def test_a_span_is_divided(given: tuple[Any, Any, By], expected: Sequence[str]) -> None:
    assert [day_text(day) for day in spans(NOW_MS, *given)] == list(expected)


@pytest.mark.parametrize(
    ("from_", "to", "by", "field"),
    [
        ("2026-13", None, By.MONTH, "from"), ("2026-02-29", None, By.MONTH, "from"), ("x", None, By.MONTH, "from"),
        (None, "2026", By.MONTH, "to"), ("2026-11", "2026-11", By.WHOLE, "to"), ("2020-01", "2026-01", By.DAY, "from"),
    ],
)  # fmt: skip
def test_a_span_that_is_none_names_its_field(from_: str | None, to: str | None, by: By, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        spans(NOW_MS, from_, to, by)
    assert (refused.value.field, SPANS_MAX) == (field, 400)

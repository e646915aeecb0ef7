"""What `tidemark credits` prints, hands on and ends with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.access.credits import CreditBalance, PoolBalance
from pipeline.commands import credits as commands
from pipeline.commands.credits import GrantWish
from schemas.credits import Category, CreditEntry, CreditGrant, EntryKind, Granted, Money
from schemas.errors import InvalidInput
from tests.unit.cli.command_lines import run

GRANT = CreditGrant(
    "cg_1", "acme", "scans", Category.PAID, 100, 40, 50, 0, 3_600_000, "invoice:in_1", 0, paid=Money(2_500, "usd", 2)
)
BALANCE = CreditBalance("acme", 5_000, 4_000, (PoolBalance("scans", "scan", 30, 40, 7, 3, 2, (GRANT,)),))
ENTRIES = [
    CreditEntry("acme", 1, "cg_1", EntryKind.GRANT, 100, "invoice:in_1", 0),
    CreditEntry("acme", 2, "cg_1", EntryKind.DRAW, -60, "tm_1", 1_000, "scans", 0),
]


@pytest.fixture(autouse=True)
def deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a deployment that nothing opens."""
    for name, value in {"LOG_URL": "embedded:///nowhere", "SECRET": "s" * 40, "SQL_URL": "postgresql://x"}.items():
        monkeypatch.setenv(f"TIDEMARK_{name}", value)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, answer: Any) -> list[tuple[Any, ...]]:
    """Answer a command with a value, or an error; returns what it is called with."""
    calls: list[tuple[Any, ...]] = []

    async def call(_settings: Any, *arguments: Any, **options: Any) -> Any:
        calls.append((*arguments, *options.values()))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(commands, name, call)
    return calls


def test_a_balance_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "show_balance", BALANCE)
    result = run(["credits", "balance", "acme"])

    assert (calls, result.code) == ([("acme",)], 0)
    assert result.out.splitlines() == [
        "scans: 30 left (40 in grants, 7 not drawn yet, 3 held, 2 owed)",
        "cg_1  scans  paid  40 of 100 left until 1970-01-01T01:00:00Z  invoice:in_1",
        "with the usage up to 1970-01-01T00:00:04Z",
    ]
    answer = json.loads(run(["credits", "balance", "acme", "--json"]).out)
    assert (answer["complete_up_to"], answer["pools"][0]["left"]) == ("1970-01-01T00:00:04Z", 30)
    assert answer["pools"][0]["grants"][0]["paid"] == {"minor": 2_500, "currency": "usd", "exponent": 2}


def test_a_catalog_without_pools_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "show_balance", CreditBalance("acme", 5_000, None, ()))
    assert run(["credits", "balance", "acme"]).out == "the active catalog has no pool of credits in mode ledger\n"


def test_the_ledger_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "list_entries", ENTRIES)
    result = run(["credits", "ledger", "acme", "--limit", "2"])

    assert (calls, result.code) == ([("acme", 2)], 0)
    assert result.out.splitlines() == [
        "1  1970-01-01T00:00:00Z  grant   +100  cg_1  invoice:in_1",
        "2  1970-01-01T00:00:01Z  draw    -60  cg_1  tm_1  scans",
    ]
    assert [entry["meter"] for entry in json.loads(run(["credits", "ledger", "acme", "--json"]).out)] == [None, "scans"]


def test_credits_are_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "make_grant", Granted(GRANT, is_new=True))
    words = ["credits", "grant", "acme", "scans", "100", "--key", "k", "--reason", "a gift", "--by", "ann"]
    result = run([*words, "--until", "1970-01-02T00:00:00Z", "--category", "paid"])

    wish = GrantWish("acme", "scans", 100, "k", "a gift", Category.PAID, expires_ms=86_400_000)
    assert (calls, result.code) == ([(wish, "ann")], 0)
    assert result.out == "cg_1  scans  paid  40 of 100 left until 1970-01-01T01:00:00Z  invoice:in_1\n"
    assert json.loads(run([*words, "--json"]).out)["source_key"] == "invoice:in_1"


def test_a_grant_is_voided(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "void_grant", GRANT._replace(remaining=0, voided_ms=1))
    result = run(["credits", "void", "acme", "cg_1", "--reason", "refunded", "--owes", "--by", "ann"])

    assert (calls, result.code) == ([("acme", "cg_1", "refunded", "ann", True)], 0)
    assert result.out == "cg_1  scans  paid  0 of 100 left until 1970-01-01T01:00:00Z, void  invoice:in_1\n"


def test_a_refusal_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "make_grant", InvalidInput("POOL", "the active catalog has no pool 'x'"))
    result = run(["credits", "grant", "acme", "x", "1", "--key", "k", "--reason", "a gift"])

    assert (result.code, result.err) == (2, "tidemark: POOL: the active catalog has no pool 'x'\n")

"""What `tidemark change` prints, hands on and ends with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from pipeline.commands import plan_changes
from schemas.errors import InvalidInput
from schemas.periods import Interval
from schemas.plan_changes import (
    Calls,
    ChangeKind,
    ChangeRequest,
    Operation,
    OperationState,
    PreviewLine,
    Quote,
    SubscriptionView,
    When,
)
from schemas.upgrades import Money
from tests.unit.cli.command_lines import run

QUOTE = Quote(
    id="qt_1", account="acme", request="{}", base=SubscriptionView(), decided=Calls(6, When.NOW, ()),
    lines=(PreviewLine("Unused time", -5361, True, 0, 1), PreviewLine("Remaining time", 10111, True, 0, 1)),
    total=Money(4750, "usd", 2), due_minor=4750, tax_minor=0, drift_minor=0, subtotal_minor=4750, ours_minor=4750,
    next_minor=14900, next_ms=2, words="You will be charged $47.50 today.", made_ms=0, expires_ms=900_000,
    made_by="ann",
)  # fmt: skip
DONE = Operation("op_1", "acme", "qt_1", OperationState.DONE, 1, 0, 0, "ann")


@pytest.fixture(autouse=True)
def deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a deployment that nothing opens."""
    for name, value in {"LOG_URL": "embedded:///nowhere", "SECRET": "s" * 40, "SQL_URL": "postgresql://x"}.items():
        monkeypatch.setenv(f"TIDEMARK_{name}", value)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, answer: Any) -> list[tuple[Any, ...]]:
    """Answer a command with a value; returns what it is called with."""
    calls: list[tuple[Any, ...]] = []

    async def call(_settings: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        return answer

    monkeypatch.setattr(plan_changes, name, call)
    return calls


def test_a_preview_says_what_to_type_next(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "preview", QUOTE)
    words = "pro --interval year --quantity locations=2 --used locations=1 --by bob"
    found = run(["change", "preview", "acme", *words.split()])

    assert found.out.splitlines() == [
        "You will be charged $47.50 today.", "  -$53.61  Unused time", "  $101.11  Remaining time",
        "until 1970-01-01T00:15:00Z: tidemark change accept acme qt_1",
    ]  # fmt: skip
    request = ChangeRequest(
        ChangeKind.PLAN, "pro", Interval.YEAR, "", {"locations": 2}, {"locations": Decimal(1)}, by_operator=True
    )
    assert calls == [("acme", request, "bob")]


@pytest.mark.parametrize(("words", "kind"), [("--cancel", ChangeKind.CANCEL), ("--cancel-now", ChangeKind.CANCEL_NOW)])
def test_an_end_is_previewed(monkeypatch: pytest.MonkeyPatch, words: str, kind: ChangeKind) -> None:
    calls = stand_in(monkeypatch, "preview", QUOTE)
    found = json.loads(run(["change", "preview", "acme", words, "--json"]).out)

    assert (calls[0][1].kind, found["id"], found["checked"], found["operation"]) == (kind, "qt_1", "equal", None)


STATES: dict[str, tuple[Mapping[str, Any], Operation, str, int]] = {
    "done": ({"charged_minor": 4750}, DONE, "done", 0),
    "failed": ({}, DONE._replace(state=OperationState.FAILED, detail="no card"), "failed: no card", 1),
    "no answer": ({}, DONE._replace(state=OperationState.SENT), "sent", 1),
    "another invoice": (
        {"charged_minor": 4751, "invoice": "in_1"}, DONE, "invoice in_1 is $47.51 and not $47.50", 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "operation", "last", "code"), STATES.values(), ids=STATES)
@pytest.mark.parametrize(
    ("command", "name"), [(("accept", "acme", "qt_1"), "accept_quote"), (("undo", "acme"), "undo")]
)
def test_a_change_ends_with_its_state(
    monkeypatch: pytest.MonkeyPatch,
    changes: Mapping[str, Any],
    operation: Operation,
    last: str,
    code: int,
    command: tuple[str, ...],
    name: str,
) -> None:
    stand_in(monkeypatch, name, (QUOTE._replace(**changes), operation))
    found = run(["change", *command])

    assert (found.out.splitlines()[-1], found.code) == (last, code)


@pytest.mark.parametrize(
    "words",
    ["", "pro --cancel", "--cancel --cancel-now", "pro --used locations", "pro --quantity =2", "pro --used a=-1"],
)
def test_what_makes_no_sense_is_bad_input(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    stand_in(monkeypatch, "preview", QUOTE)
    found = run(["change", "preview", "acme", *words.split()])

    assert (found.code, found.err.count("\n"), found.error) == (2, 1, None)


def test_a_refusal_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: Any) -> Quote:
        raise InvalidInput("account", "pay the open invoice first: https://pay")

    monkeypatch.setattr(plan_changes, "preview", refused)
    found = run(["change", "preview", "acme", "pro"])

    assert (found.code, found.err) == (2, "tidemark: account: pay the open invoice first: https://pay\n")

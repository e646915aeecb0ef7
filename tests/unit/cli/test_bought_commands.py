"""What the commands about pages, trials, second subscriptions and stuck invoices print."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.commands import bought, plan_changes
from schemas.duplicates import Duplicate, DuplicateState
from schemas.invoices import UnfinalizedInvoice
from schemas.plan_changes import (
    Calls,
    ChangeKind,
    ChangeRequest,
    Operation,
    OperationState,
    Quote,
    SubscriptionView,
    When,
)
from schemas.trials import Trial, TrialState, TrialTerms
from schemas.upgrades import Money
from tests.unit.cli.command_lines import run

QUOTE = Quote(
    id="qt_1", account="acme", request="{}", base=SubscriptionView(), decided=Calls(3, When.NOW, ()), lines=(),
    total=Money(0, "usd", 2), due_minor=0, tax_minor=0, drift_minor=0, subtotal_minor=0, ours_minor=None,
    next_minor=14900, next_ms=2, words="You will be charged nothing today.", made_ms=0, expires_ms=900_000,
    made_by="ann",
)  # fmt: skip
DONE = Operation("op_1", "acme", "qt_1", OperationState.DONE, 2, 0, 0, "ann", url="https://checkout.example/1")
SECOND = Duplicate(
    "sub_2", "sub_1", "acme", "cus_1", DuplicateState.REFUND_PROPOSED, 0, "in_1", 14900, "usd", 2
)  # fmt: skip
TRIAL = Trial(
    "tr_1", "acme", "cus_1", "op_1", TrialTerms("pro@1", "paid", 30), TrialState.RUNNING, 0, ends_ms=86_400_000,
    is_flagged=True,
)  # fmt: skip
STUCK = UnfinalizedInvoice("in_1", "acme", "cus_1", "sub_1", "customer_tax_location_invalid", 0, 14900, "usd", 2)


@pytest.fixture(autouse=True)
def deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a deployment that nothing opens."""
    for name, value in {"LOG_URL": "embedded:///nowhere", "SECRET": "s" * 40, "SQL_URL": "postgresql://x"}.items():
        monkeypatch.setenv(f"TIDEMARK_{name}", value)


def stand_in(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, answer: Any) -> list[tuple[Any, ...]]:
    """Answer a command with a value; returns what it is called with."""
    calls: list[tuple[Any, ...]] = []

    async def call(_settings: Any, *arguments: Any, **options: Any) -> Any:
        calls.append((*arguments, *options.values()))
        return answer

    monkeypatch.setattr(module, name, call)
    return calls


def test_a_checkout_prints_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, plan_changes, "checkout", (QUOTE, DONE))
    words = "pro --trial --quantity locations=3 --return-url https://app.example --by bob"
    found = run(["change", "checkout", "acme", *words.split()])

    assert found.out.splitlines() == [
        "You will be charged nothing today.", "done", "the customer pays at https://checkout.example/1",
    ]  # fmt: skip
    request = ChangeRequest(ChangeKind.TRIAL, "pro", None, "", {"locations": 3}, by_operator=True, by_page=True)
    assert calls == [("acme", request, "bob", "https://app.example")]


def test_the_portal_prints_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, plan_changes, "portal", "https://portal.example/1")
    found = run(["change", "portal", "acme", "--return-url", "https://app.example", "--only-card"])

    assert (found.out, calls) == ("https://portal.example/1\n", [("acme", "https://app.example", True)])


SECOND_LINE = (
    "sub_2 of acme beside sub_1: refund_proposed, it is canceled: refund it, or leave the credit; $149.00 was paid by "
    "in_1"
)
STUCK_LINE = (
    "in_1 of acme since 1970-01-01T00:00:00Z: customer_tax_location_invalid; have the address entered by `tidemark "
    "change portal`, then finalize the invoice at Stripe"
)
TRIAL_LINE = "tr_1 acme pro@1 running since 1970-01-01T00:00:00Z, ends 1970-01-02T00:00:00Z, repeated card"
LISTS: dict[str, tuple[str, str, Any, str, str]] = {
    "trials": ("trials list", "trials", TRIAL, TRIAL_LINE, "no trials"),
    "duplicates": ("billing duplicates", "duplicates", SECOND, SECOND_LINE, "no second subscriptions"),
    "unfinalized": ("billing unfinalized", "unfinalized", STUCK, STUCK_LINE, "no invoice is stuck"),
}


@pytest.mark.parametrize(("command", "name", "row", "line", "nothing"), LISTS.values(), ids=LISTS)
def test_a_list(monkeypatch: pytest.MonkeyPatch, command: str, name: str, row: Any, line: str, nothing: str) -> None:
    stand_in(monkeypatch, bought, name, [row])
    assert run(command.split()).out == f"{line}\n"
    (found,) = json.loads(run([*command.split(), "--json"]).out)
    assert found["account"] == "acme"
    stand_in(monkeypatch, bought, name, [])
    assert run(command.split()).out == f"{nothing}\n"


def test_a_decision_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, bought, "settle", SECOND._replace(reason="refunded"))
    found = run(["billing", "settle", "sub_2", "--by", "ann", "--reason", "refunded"])

    assert (found.out, calls) == ("sub_2 of acme is settled: refunded\n", [("sub_2", "ann", "refunded")])

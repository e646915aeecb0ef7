"""What the demo says about invoices, mirrors, webhooks and checks, and when it calls the run a failure."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import pytest
from rich.console import Console

from demo import plan
from demo.answers import Check, check_of
from demo.billing import compared, differences
from demo.story import Story, verdict
from demo.stripe import Invoice
from demo.verify import Mismatch
from demo.view import summary
from reconciler.causes import Verdict
from reconciler.report import Report

FREE, PAYING = plan.ACCOUNTS[0], plan.ACCOUNTS[-1]
CUSTOMERS = {FREE: "cus_free", PAYING: "cus_paying"}
UNITS = 7
DUE = plan.BASE_CENTS + UNITS * plan.UNIT_CENTS
TOTALS = {
    (PAYING, plan.METER, plan.PAID_FROM_MS): UNITS,
    # Of the next month, and of a meter without a price.
    (PAYING, plan.METER, plan.MONTH_END_MS): 1_000,
    (PAYING, "tokens", plan.PAID_FROM_MS): 1_000,
    (FREE, plan.METER, plan.PAID_FROM_MS): 1_000,
}
FIRST = Invoice("cus_paying", "subscription_create", "paid", 0)
SECOND = Invoice("cus_paying", "subscription_cycle", "paid", DUE)
WHAT = f"the invoice of {PAYING}, in cents"


@pytest.mark.parametrize(
    ("invoices", "expected"),
    [
        pytest.param([SECOND, FIRST], [], id="right"),
        pytest.param([SECOND._replace(total=DUE - 1), FIRST], [Mismatch(WHAT, DUE, DUE - 1)], id="a cent less"),
        pytest.param([SECOND, SECOND], [Mismatch(WHAT, DUE, 2 * DUE)], id="billed twice"),
        pytest.param([SECOND._replace(status="draft")], [Mismatch(WHAT, DUE, None)], id="not final"),
        pytest.param([], [Mismatch(WHAT, DUE, None)], id="no invoice"),
        pytest.param(
            [SECOND, Invoice("cus_free", "manual", "paid", 0)],
            [Mismatch(f"the invoice of {FREE}, in cents", None, 0)],
            id="a free account with an invoice",
        ),
    ],
)
def test_invoices_are_compared_to_the_cent(invoices: list[Invoice], expected: list[Mismatch]) -> None:
    """Base price and units of the ended period; no other period, meter or account counts."""
    assert compared(CUSTOMERS, invoices, TOTALS) == expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param({"invoices": [{"id": "in_1", "total_minor": 1}]}, 0, id="equal"),
        pytest.param({"invoices": [{"id": "in_1", "total_minor": 2}]}, 2, id="another value"),
        pytest.param({"invoices": []}, 1, id="a row is missing"),
        pytest.param({"subscriptions": [{"id": "in_1", "total_minor": 1}]}, 2, id="in another table"),
    ],
)
def test_rows_of_two_mirrors_are_compared(after: dict[str, list[dict[str, Any]]], expected: int) -> None:
    """A row of one mirror alone is a difference."""
    assert differences({"invoices": [{"id": "in_1", "total_minor": 1}]}, after) == expected


DENIED = Check(False, "not_in_plan", "business@1", "Business would allow it.", ())
ALLOWED = Check(True, "included", "", "business@1 gives it", ("business@1",))


class _Equal:
    verdict = Verdict.EQUAL
    differences = 0


PROVEN = Story(
    kills=5,
    replayed=1,
    counters=Counter(received=2, counted=2),
    traffic={"sent": 2},
    report=cast("Report", _Equal()),
    faults_found=["one", "two"],
    mirror_kills=2,
    invoices=plan.INVOICES,
    webhooks_dropped=1,
    webhooks_doubled=1,
    webhooks_recovered=1,
    mirror_rows=1,
    resync_differences=0,
    rebound=0,
    check_denied=DENIED,
    check_allowed=ALLOWED,
    check_allowed_after_s=1.234,
)


def test_a_proven_run_has_no_problem() -> None:
    """The base of the next test."""
    assert verdict(PROVEN, 5) == []


@pytest.mark.parametrize(
    "change",
    [
        {"invoice_mismatches": [Mismatch(WHAT, 1, 2)]},
        {"invoices": plan.INVOICES - 1},
        {"resync_differences": 1},
        {"resync_differences": None},
        {"mirror_rows": 0},
        {"rebound": 1},
        {"rebound": None},
        {"webhooks_dropped": 0},
        {"webhooks_doubled": 0},
        {"webhooks_recovered": 0},
        {"mirror_kills": 0},
        {"check_denied": None},
        {"check_denied": DENIED._replace(unlocked_by="")},
        {"check_allowed": None},
        {"check_allowed": ALLOWED._replace(by=("override 1a2b",))},
    ],
    ids=str,
)
def test_a_run_that_proves_no_invoice_fails(change: dict[str, Any]) -> None:
    """Each of the new results alone fails the demo."""
    assert len(verdict(replace(PROVEN, **change), 5)) == 1


def test_the_line_of_json_has_the_results_of_billing() -> None:
    """Scripts read these names."""
    wanted = ("invoices", "invoice_mismatches", "webhooks_dropped", "webhooks_doubled", "resync_differences")
    assert [PROVEN.result()[name] for name in wanted] == [plan.INVOICES, 0, 1, 1, 0]


def test_the_line_of_json_has_the_answers_of_the_checks() -> None:
    """Scripts read these names too."""
    wanted = ("check_denied", "check_unlocked_by", "check_allowed_after_s")
    assert [PROVEN.result()[name] for name in wanted] == [True, "business@1", 1.23]
    unknown = replace(PROVEN, check_denied=None, check_allowed=None).result()
    assert [unknown[name] for name in wanted] == [False, "", None]


def test_the_answers_are_shown_in_words() -> None:
    """What the gateway says to a person, and how soon it said something else."""
    denied = {"allowed": False, "reason": "not_in_plan", "gives": [],
              "upgrade": {"plan": "business@1", "words": "Business would allow it."}}  # fmt: skip
    allowed = {"allowed": True, "reason": "included", "gives": [{"id": "business@1"}], "upgrade": None}
    assert [check_of(denied), check_of(allowed)] == [DENIED, ALLOWED]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(summary(replace(PROVEN, report=None), []))
    shown = console.export_text()
    assert "no: not_in_plan. Business would allow it." in shown
    assert "1.2 s after the upgrade at Stripe, yes: business@1 gives it" in shown

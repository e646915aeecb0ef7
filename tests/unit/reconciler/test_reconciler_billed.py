"""What an invoice bills compared with what was reported: one case per cause and per form of an invoice."""

from __future__ import annotations

from decimal import Decimal

import pytest

from reconciler.billed import DRAFT_WITHIN_MS, Usage, compare, with_own_items
from reconciler.causes import Cause
from schemas.bills import InvoiceItem, InvoiceItemState
from schemas.clock import DAY_MS
from schemas.invoices import CustomerBilling, ListedInvoice, ListedItem, MeteredLine, RunningItem
from schemas.periods import Period

START_MS, END_MS = 30 * DAY_MS, 60 * DAY_MS
MONTH, NEXT = Period(START_MS, END_MS), Period(END_MS, 90 * DAY_MS)
MIDDLE_MS = 45 * DAY_MS
NOW_MS = END_MS + DAY_MS


def used(quantity: str, at_ms: int = MIDDLE_MS, *, settled: bool = True, dead: bool = False) -> Usage:
    period = MONTH if at_ms < END_MS else NEXT
    return Usage(at_ms, int(Decimal(quantity) * 10**12), period, "acme", "calls", settled, dead)


def line(quantity: str, cents: int = 0, *, span: Period = MONTH, price: str = "price_1", sub: str = "sub_1",
         name: str = "calls") -> MeteredLine:  # fmt: skip
    return MeteredLine(sub, price, name, span.start_ms, span.end_ms, Decimal(quantity), cents)


def invoice(
    *lines: MeteredLine, status: str = "paid", created_ms: int = END_MS, name: str = "in_1"
) -> ListedInvoice:  # fmt: skip
    return ListedInvoice(name, status, "usd", created_ms, None, lines)


def item(quantity: str | None, span: Period = MONTH, name: str = "calls") -> ListedItem:
    number = None if quantity is None else Decimal(quantity)
    return ListedItem("ii_1", "tmi_1", name, span.start_ms, span.end_ms, number, 250, "usd", "")


RUNNING = RunningItem("sub_1", "calls", END_MS, 90 * DAY_MS)
C = Cause
CASES = [
    pytest.param([used("7.125")], [invoice(line("7.125"))], [], C.CONFIRMED, "7.125", id="exact"),
    pytest.param([used("15")], [invoice(line("10"), line("5", 50))], [], C.CONFIRMED, "15", id="a line for each tier"),
    pytest.param([used("15")], [invoice(line("15", 150), line("0", -100))], [], C.CONFIRMED, "15",
                 id="less what a threshold invoice billed"),
    pytest.param([used("15")], [invoice(line("15", 150), line("10", -100))], [], C.CONFIRMED, "15",
                 id="less what a threshold invoice billed, with its quantity"),
    pytest.param([used("15")], [invoice(line("10", 100), created_ms=MIDDLE_MS, name="in_0"),
                                invoice(line("15", 150), line("0", -100))], [], C.CONFIRMED, "15",
                 id="after a threshold invoice"),
    pytest.param([used("15")], [invoice(line("10", 100, span=Period(START_MS, MIDDLE_MS + 1)), created_ms=MIDDLE_MS + 1,
                                        name="in_0"),
                                invoice(line("0", span=Period(MIDDLE_MS + 1, END_MS)))], [], C.UNBILLED, "10",
                 id="a price was changed and usage came too late for the old one"),
    pytest.param([used("-3")], [invoice(line("0"))], [], C.CONFIRMED, "0", id="a sum below 0 bills 0"),
    pytest.param([used("1125")], [invoice(line("1000"))], [], C.UNBILLED, "1000", id="late usage"),
    pytest.param([used("1125")], [invoice(line("1000"))], [item("125")], C.CONFIRMED, "1125", id="late usage, an item"),
    pytest.param([used("1125")], [invoice(line("1000"))], [item("100")], C.UNBILLED, "1100", id="an item of a part"),
    pytest.param([used("1125")], [invoice(line("1000"))], [item("250")], C.EXTRA, "1250", id="an item made twice"),
    pytest.param([used("1125")], [invoice(line("1000"))], [item("125", NEXT)], C.UNBILLED, "1000",
                 id="an item of another span"),
    pytest.param([used("1125")], [invoice(line("1000"))], [item("125", name="other")], C.UNBILLED, "1000",
                 id="an item of another meter"),
    pytest.param([used("1125")], [invoice(line("1000"))], [item(None)], C.UNCHECKED, "1000", id="an unreadable item"),
    pytest.param([used("5")], [invoice(line("5"), status="void")], [], C.CONFIRMED, "0", id="a voided invoice"),
    pytest.param([used("5")], [invoice(line("5"), status="void")], [item("6")], C.EXTRA, "6",
                 id="a voided invoice, and an item for more"),
    pytest.param([used("5")], [invoice(line("5"), status="uncollectible")], [], C.CONFIRMED, "5", id="never paid"),
    pytest.param([used("5")], [invoice(line("7"))], [], C.EXTRA, "7", id="another sender"),
    pytest.param([used("5")], [invoice(line("3"), status="draft")], [], C.IN_FLIGHT, "3", id="a draft"),
    pytest.param([used("5"), used("2", settled=False)], [invoice(line("5"))], [], C.CONFIRMED, "5",
                 id="an unsettled intent that is not billed"),
    pytest.param([used("5"), used("2", settled=False)], [invoice(line("7"))], [], C.IN_FLIGHT, "7",
                 id="an unsettled intent that is billed"),
    pytest.param([used("5"), used("2", settled=False)], [invoice(line("1"))], [], C.UNBILLED, "1",
                 id="more is missing than is unsettled"),
    pytest.param([used("5"), used("2", dead=True)], [invoice(line("5"))], [], C.CONFIRMED, "5", id="a dead letter"),
    pytest.param([used("5"), used("2", dead=True)], [invoice(line("5"))], [item("2")], C.CONFIRMED, "7",
                 id="a dead letter that an item bills"),
    pytest.param([used("5")], [invoice(line("5", name="other"))], [], C.UNBILLED, "0", id="a line of another meter"),
    pytest.param([used("5")], [], [], C.UNBILLED, "0", id="no invoice"),
    pytest.param([used("5")], [], [item("5")], C.CONFIRMED, "5", id="no invoice, and an item for all of it"),
    pytest.param([used("5")], [], [item("6")], C.EXTRA, "6", id="no invoice, and an item for more"),
    pytest.param([used("5", settled=False)], [], [], C.IN_FLIGHT, None, id="no invoice, nothing settled"),
    pytest.param([used("5", END_MS)], [], [], C.IN_FLIGHT, None, id="the period runs"),
]  # fmt: skip


@pytest.mark.parametrize(("usages", "invoices", "items", "cause", "found"), CASES)
def test_each_form_of_a_bill(
    usages: list[Usage],
    invoices: list[ListedInvoice],
    items: list[ListedItem],
    cause: Cause,
    found: str | None,
) -> None:
    """`found` is everything that is billed, in units of the meter."""
    billed = compare({"calls": usages}, CustomerBilling(invoices, items, [RUNNING]), NOW_MS)

    worst = next((each for each in billed if each.cause is not Cause.CONFIRMED), billed[0])
    total = None if worst.found is None else sum(each.found or 0 for each in billed)
    assert (worst.cause, total) == (cause, None if found is None else int(Decimal(found) * 10**12))


def test_the_message_of_usage_that_is_not_billed_has_quantity_and_remedy() -> None:
    """A finance person reads it."""
    (late,) = compare({"calls": [used("9.5")]}, CustomerBilling([invoice(line("9"))], [], [RUNNING]), NOW_MS)
    (bare,) = compare({"calls": [used("9.5")]}, CustomerBilling([], [], []), NOW_MS)

    assert late.detail.startswith("0.5 reported and not billed: Stripe adds usage to no invoice that is final")
    assert bare.detail.startswith("9.5 reported and not billed: no subscription item")
    assert all("invoice item" in each.detail for each in (late, bare))


TIERED = (
    '{"currency": "usd", "billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": ['
    '{"up_to": 10, "unit_amount_decimal": "0"}, {"up_to": null, "unit_amount_decimal": "2"}]}'
)
HOURS = '{"currency": "usd", "unit_amount": 1000, "transform_quantity": {"divide_by": 60, "round": "up"}}'


@pytest.mark.parametrize(
    ("terms", "reported", "lines", "cause", "text"),
    [
        pytest.param(TIERED, "8", [line("7")], C.CONFIRMED, "costs nothing", id="late usage within what is included"),
        pytest.param(TIERED, "12", [line("10"), line("1", 2)], C.UNBILLED, "1 reported", id="late usage that costs"),
        pytest.param(TIERED, "12", [line("10"), line("2", 4)], C.CONFIRMED, "", id="amount of the price"),
        pytest.param(TIERED, "12", [line("10"), line("2", 5)], C.DIFFERING, "bill 5 usd, and the price price_1 says 4",
                     id="another amount"),
        pytest.param(HOURS, "61", [line("61", 2000)], C.CONFIRMED, "", id="a package, lines in units"),
        pytest.param(HOURS, "61", [line("2", 2000)], C.CONFIRMED, "costs nothing", id="a package, lines in packages"),
        pytest.param(HOURS, "121", [line("2", 2000)], C.UNBILLED, "1 reported", id="one unit more than the packages"),
        pytest.param("{}", "12", [line("11")], C.UNBILLED, "1 reported", id="terms that cannot be read"),
        pytest.param(TIERED.replace("usd", "eur"), "8", [line("7")], C.UNBILLED, "1 reported", id="another currency"),
    ],
)  # fmt: skip
def test_the_price_says_what_a_difference_costs(
    terms: str, reported: str, lines: list[MeteredLine], cause: Cause, text: str
) -> None:
    """No invoice item is made for usage that costs nothing; and an amount that the price does not explain is told."""
    billing = CustomerBilling([invoice(*lines)], [], [RUNNING], {"price_1": terms})

    (billed,) = compare({"calls": [used(reported)]}, billing, NOW_MS)

    assert (cause, True) == (billed.cause, text in billed.detail)


def own(state: InvoiceItemState, from_quantity: str, to_quantity: str) -> InvoiceItem:
    quantities = (Decimal(from_quantity), Decimal(to_quantity))
    return InvoiceItem(
        "tmi_1", "cus_1", "sub_1", "in_1", "calls", "price_1", START_MS, END_MS, 0, *quantities, 50, "usd", 2, "late",
        state,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("items", "cause"),
    [
        pytest.param([], C.UNBILLED, id="nothing"),
        pytest.param([own(InvoiceItemState.WRITTEN_OFF, "9", "9.5")], C.CONFIRMED, id="written off"),
        pytest.param([own(InvoiceItemState.WRITTEN_OFF, "9", "9.4")], C.UNBILLED, id="less was written off"),
        pytest.param([own(InvoiceItemState.INTENDED, "9", "9.5")], C.IN_FLIGHT, id="an item is under way"),
        pytest.param([own(InvoiceItemState.CREATED, "9", "9.5")], C.UNBILLED, id="an item that Stripe does not list"),
        pytest.param([own(InvoiceItemState.HELD, "9", "9.5")], C.UNBILLED, id="an item that Stripe refused"),
    ],
)
def test_our_own_database_is_believed_about_write_offs_only(items: list[InvoiceItem], cause: Cause) -> None:
    """An item that our database calls created must be at Stripe."""
    (billed,) = compare({"calls": [used("9.5")]}, CustomerBilling([invoice(line("9"))], [], [RUNNING]), NOW_MS)

    assert cause is with_own_items(billed, items).cause


def test_two_subscriptions_that_bill_one_meter_bill_twice() -> None:
    """Each invoice alone is right."""
    both = [invoice(line("5")), invoice(line("5", sub="sub_2"), name="in_2")]

    billed = compare({"calls": [used("5")]}, CustomerBilling(both, [], []), NOW_MS)

    assert [C.EXTRA, C.CONFIRMED, C.CONFIRMED] == [each.cause for each in billed]
    assert "sub_1 and sub_2" in billed[0].detail


def test_a_draft_may_come_hours_after_the_end_of_its_period() -> None:
    """Stripe makes it within an hour; a shorter wait would be an alarm each month."""
    ended = CustomerBilling([], [], [RUNNING])

    before = compare({"calls": [used("5")]}, ended, END_MS + DRAFT_WITHIN_MS - 1)
    after = compare({"calls": [used("5")]}, ended, END_MS + DRAFT_WITHIN_MS)

    assert [C.IN_FLIGHT, C.UNBILLED] == [each.cause for each in (*before, *after)]


def test_stripes_doubles_are_no_difference_and_anything_larger_is() -> None:
    """Stripe adds in doubles: 10^15 + 0.1 + 0.2 is 10^15 + 0.25 there."""
    usages = [used("1000000000000000.1"), used("0.2")]
    bills = ["1000000000000000.25", "999999999999990", "1000000000000010"]

    causes = [
        compare({"calls": usages}, CustomerBilling([invoice(line(bill))], [], []), NOW_MS)[0].cause for bill in bills
    ]

    assert [C.CONFIRMED, C.UNBILLED, C.EXTRA] == causes

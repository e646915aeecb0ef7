"""What a correction changes of a final invoice: cents by hand, and any invoice as the simulator's engine adds it up."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import pytest

from aggregators.settlement import Discounts, Facts, discounts_of, settled
from schemas.account_records import InvoiceRecord
from schemas.bills import Bill, InvoiceItem, InvoiceItemState
from schemas.clock import HOUR_MS
from schemas.intent_ledger import IntentTotals
from stripe_simulator.engine.discounts import Coupon, Discount
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import Period as Seconds
from stripe_simulator.engine.tiers import Price, Tier, charges
from stripe_simulator.engine.totals import totals as invoice_totals

START_MS: Final = 1_793_491_200_000  # 2026-11-01
END_MS: Final = 1_796_083_200_000  # 2026-12-01
CALLS: Final = ((10_000, "0"), (100_000, "0.2"), (None, "0.1"))
STEPS: Final = ((5, "700"), (10, "650"), (None, "600"))
NONE: Final = Discounts(0, 0, Fraction(0))


def terms(mode: str, tiers: tuple[tuple[int | None, str], ...]) -> str:
    """A price with tiers, as Stripe has it."""
    rows = [{"up_to": up_to, "unit_amount_decimal": amount} for up_to, amount in tiers]
    return json.dumps({"currency": "usd", "billing_scheme": "tiered", "tiers_mode": mode, "tiers": rows})


HOURS: Final = json.dumps(
    {"currency": "usd", "unit_amount_decimal": "1000", "transform_quantity": {"divide_by": 60, "round": "up"}}
)


def bill(price: str, quantity: str, cents: int, **changes: Any) -> Bill:
    """An invoice of November."""
    of_november = Bill(
        "cus_1", "sub_1", "in_1", "calls", "price_1", START_MS, END_MS, Decimal(quantity), cents, "usd", 2, None,
        END_MS + HOUR_MS, terms=price,
    )  # fmt: skip
    return of_november._replace(**changes)


def facts(accepted: str, drawn: str = "0", discounts: Discounts = NONE, late: str = "0", **totals: str) -> Facts:
    """What is known of the bill."""
    reported = {"dead": "0", "pending": "0", **totals}
    sums = IntentTotals(Decimal(accepted), Decimal(late), Decimal(reported["dead"]), Decimal(reported["pending"]))
    items = (item(accepted, late),) if late != "0" else ()
    return Facts(sums, Decimal(drawn), items, discounts)


def item(accepted: str, late: str, state: InvoiceItemState = InvoiceItemState.CREATED) -> InvoiceItem:
    """The invoice item of the late usage."""
    to = Decimal(accepted) + Decimal(late)
    return InvoiceItem(
        "tmi_1", "cus_1", "sub_1", "in_1", "calls", "price_1", START_MS, END_MS, 0, Decimal(accepted), to, 0, "usd", 2,
        "late", state,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("price", "quantity", "change", "billed", "corrected"),
    [
        pytest.param(terms("graduated", CALLS), "137510", "-500", 21_751, 21_701, id="within the last tier"),
        pytest.param(terms("graduated", CALLS), "137510", "-37510", 21_751, 18_000, id="back to the end of a tier"),
        pytest.param(terms("graduated", CALLS), "137510", "-47510", 21_751, 16_000, id="across a tier"),
        pytest.param(terms("graduated", CALLS), "137510", "-130000", 21_751, 0, id="into the included quantity"),
        pytest.param(terms("graduated", CALLS), "9000", "-500", 0, 0, id="within the included quantity"),
        pytest.param(terms("graduated", CALLS), "9000", "1500", 0, 100, id="out of the included quantity"),
        pytest.param(terms("graduated", CALLS), "100", "-500", 0, 0, id="below 0"),
        pytest.param(terms("volume", STEPS), "6", "-1", 3_900, 3_500, id="volume: the dearer tier for all units"),
        pytest.param(terms("volume", STEPS), "11", "-1", 6_600, 6_500, id="volume: a unit less costs 100 less"),
        pytest.param(HOURS, "61", "-1", 2_000, 1_000, id="a package less"),
        pytest.param(HOURS, "61.5", "-0.5", 2_000, 2_000, id="the same packages"),
    ],
)
def test_the_line_as_billed_and_as_corrected(
    price: str, quantity: str, change: str, billed: int, corrected: int
) -> None:
    on_invoice = "2" if price == HOURS else quantity
    found = settled("calls", bill(price, on_invoice, billed), facts(quantity), Decimal(0), Decimal(change))

    used = Decimal(quantity)
    assert (found.unknown, found.billed, found.corrected) == ("", used, used + Decimal(change))
    assert (found.billed_minor, found.corrected_minor, found.difference_minor) == (
        billed, corrected, corrected - billed,
    )  # fmt: skip
    assert (found.invoice, found.currency, found.exponent, found.span) == ("in_1", "usd", 2, (START_MS, END_MS))


def test_two_credit_notes_give_back_what_both_corrections_cost_together() -> None:
    """The first took 47 510 calls off, down to 90 000; of 20 000 more, each costs the tier's 0.2 cents."""
    november = bill(terms("graduated", CALLS), "137510", 21_751)
    first = settled("calls", november, facts("137510"), Decimal(0), Decimal(-47_510))
    second = settled("calls", november, facts("137510"), Decimal(-47_510), Decimal(-67_510))

    assert (first.difference_minor, second.settled_minor, second.difference_minor) == (-5_751, -5_751, -4_000)
    assert first.difference_minor + second.difference_minor == 12_000 - 21_751


def test_late_usage_on_invoice_items_is_billed_too() -> None:
    """1 000 on the invoice and 100 by an item, at 2 cents: void 150."""
    two_cents = json.dumps({"currency": "usd", "unit_amount_decimal": "2"})
    found = settled("calls", bill(two_cents, "1000", 2_000), facts("1000", late="100"), Decimal(0), Decimal(-150))

    assert (found.billed, found.billed_minor, found.corrected_minor) == (Decimal(1_100), 2_200, 1_900)


@pytest.mark.parametrize(
    ("given", "known", "change", "why"),
    [
        pytest.param({"finalized_ms": None}, facts("1000"), "-1", "is a draft", id="draft"),
        pytest.param({"finalized_ms": None, "invoice": ""}, facts("1000"), "-1", "no invoice bills", id="no invoice"),
        pytest.param({"is_void": True}, facts("1000"), "-1", "void or deleted", id="void"),
        pytest.param({"terms": "{}"}, facts("1000"), "-1", "cannot be read", id="an unknown price"),
        pytest.param({"amount_minor": 1_999}, facts("1000"), "-1", "compare them", id="an amount by hand"),
        pytest.param({}, facts("1100"), "-1", "100 units of the span are not billed", id="unbilled"),
        pytest.param({}, facts("1000", pending="5"), "-1", "no outcome yet", id="reports on their way"),
        pytest.param({}, facts("1000", dead="5"), "-1", "refused reports of 5 units", id="dead letters"),
        pytest.param(
            {}, facts("1000")._replace(items=(item("900", "100", InvoiceItemState.WRITTEN_OFF),),
                                       totals=IntentTotals(*map(Decimal, ("1000", "100", "0", "0")))),
            "-1", "written off", id="written off",
        ),
        pytest.param({}, facts("1000", drawn="50"), "-1001", "credits paid for 50", id="more than Stripe got"),
        pytest.param({}, facts("1000", drawn="50"), "1", "credits paid for 50", id="credits may pay for more"),
        pytest.param({}, facts("1000", discounts=Discounts(500, 2_000, None)), "-1", "took 500", id="a discount"),
        pytest.param(
            {}, facts("1000", discounts=Discounts(500, 2_000, Fraction(20))), "-1", "2000, and 1998 as corrected",
            id="a discount that the percentage does not explain",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_known_says_why(given: dict[str, Any], known: Facts, change: str, why: str) -> None:
    two_cents = json.dumps({"currency": "usd", "unit_amount_decimal": "2"})
    found = settled("calls", bill(two_cents, "1000", 2_000, **given), known, Decimal(0), Decimal(change))

    assert why in found.unknown
    assert (found.billed_minor, found.corrected_minor) == (0, 0)


def test_what_stripe_got_of_usage_that_credits_paid_too_is_given_back_first() -> None:
    two_cents = json.dumps({"currency": "usd", "unit_amount_decimal": "2"})
    found = settled("calls", bill(two_cents, "1000", 2_000), facts("1000", drawn="50"), Decimal(0), Decimal(-1_000))

    assert (found.unknown, found.difference_minor) == ("", -2_000)


ONCE: Final = {"percent": "20", "amount_minor": None, "currency": None, "start_ms": START_MS, "end_ms": None}
OFF: Final = {**ONCE, "percent": None, "amount_minor": 500, "currency": "usd"}


@pytest.mark.parametrize(
    ("rows", "percent", "amount"),
    [
        pytest.param([], Fraction(0), 0, id="none"),
        pytest.param([ONCE], Fraction(20), 0, id="a percentage"),
        pytest.param([{**ONCE, "percent": "12.5", "end_ms": END_MS + 2}], Fraction("12.5"), 0, id="which ends later"),
        pytest.param([{**ONCE, "end_ms": END_MS}], Fraction(0), 0, id="which has ended"),
        pytest.param([{**ONCE, "start_ms": END_MS + 9}], Fraction(0), 0, id="which begins later"),
        pytest.param([OFF], Fraction(0), 500, id="an amount"),
        pytest.param([{**OFF, "currency": "eur"}], None, 0, id="an amount of another currency"),
        pytest.param([ONCE, ONCE], None, 0, id="two"),
        pytest.param(["di_1"], None, 0, id="one of which only the id is known"),
    ],
)
def test_discounts_of_an_invoice(rows: list[Any], percent: Fraction | None, amount: int) -> None:
    lines = [
        {"amount_minor": 2_000, "discount_minor": 400, "is_proration": 0},
        {"amount_minor": 500, "discount_minor": 100, "is_proration": 0},
        {"amount_minor": 70, "discount_minor": 0, "is_proration": 1},
    ]
    record = InvoiceRecord({"subscription_id": "sub_1", "created_ms": END_MS + 1, "currency": "usd"}, lines)
    others = {"id": "sub_2", "discounts_json": json.dumps([{**ONCE, "percent": "90"}])}
    subscriptions = [{"id": "sub_1", "discounts_json": json.dumps(rows)}, others]

    assert discounts_of(record, subscriptions) == Discounts(500, 2_500, percent, amount)


@pytest.mark.parametrize("seed", range(200))
def test_the_difference_is_that_of_two_invoices(seed: int) -> None:
    """The simulator's engine adds up an invoice of the usage, and one of the corrected usage; it shares no code."""
    chance = random.Random(seed)
    mode = chance.choice(("graduated", "volume"))
    bounds = [*sorted(chance.sample(range(1, 300), chance.randint(0, 4))), None]
    amounts = [str(Decimal(chance.randint(0, 5_000)).scaleb(-chance.choice((0, 1, 3)))) for _ in bounds]
    tiers = tuple(Tier(up_to, Fraction(unit), Fraction(0)) for up_to, unit in zip(bounds, amounts, strict=True))
    price = Price("p", None, tiers=tiers, tiers_mode=mode)  # type: ignore[arg-type]  # one of two
    percent, off = chance.choice([(Fraction(0), 0), (Fraction(20), 0), (Fraction("33.3"), 0), (Fraction(0), 5_500)])
    base = chance.choice([0, 4_900])
    used = Decimal(chance.randint(0, 40_000)).scaleb(-2)
    before, after = (Decimal(chance.randint(-50_000, 40_000)).scaleb(-2) for _ in range(2))

    def invoice(units: Decimal) -> tuple[int, int, int]:
        """The usage's cents, what discounts take off, and the total."""
        span, parts = Seconds(0, 1), charges(price, max(Fraction(units), Fraction(0)))
        lines = [Line("i", "b", "x", base, Fraction(1), span)] if base else []
        lines += [Line("i", "p", "y", _rounded(part.exact), part.quantity, span, metered=True) for part in parts]
        coupon = Coupon("c", percent_off=percent or None, amount_off=off or None, duration="forever")
        coupons = [Discount(coupon, 0)] if percent or off else []
        made = invoice_totals(lines, discounts=coupons)
        return made.subtotal - base, sum(cut.amount for line in made.lines for cut in line.cuts), made.total

    cents, taken, _ = invoice(used)
    known = facts(str(used), discounts=Discounts(taken, cents + base, percent, off))
    billed = bill(terms(mode, tuple(zip(bounds, amounts, strict=True))), str(used), cents)
    found = settled("calls", billed, known, before, after)

    assert (found.unknown, found.billed_minor) == ("", cents)
    assert found.difference_minor == invoice(used + after)[2] - invoice(used + before)[2]


def _rounded(amount: Fraction) -> int:
    """Half away from zero; no amount is negative."""
    return int(amount + Fraction(1, 2))

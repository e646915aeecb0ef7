"""The acceptance scenarios' amounts, as far as the money engine alone determines them.

The amounts were computed by hand, outside the engine. A test's number is the scenario's number.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import pytest

from stripe_simulator.engine.collection import (
    HARD_DECLINE_CODES,
    Collection,
    RetryPolicy,
    after_failure,
    after_payment,
)
from stripe_simulator.engine.discounts import Coupon, discount_from, remaining
from stripe_simulator.engine.lines import Item, Line, billed_by_threshold, cycle_lines, usage_lines
from stripe_simulator.engine.periods import boundary, period_containing
from stripe_simulator.engine.proration import BillingMode, debits_of, prorate, restarts_period
from stripe_simulator.engine.tiers import Price, TransformQuantity, total
from stripe_simulator.engine.totals import Grant, totals
from tests.unit.stripe_engine.catalog import (
    API_CALLS,
    API_FEE,
    ESSENTIAL,
    MONTH,
    PRO,
    PRO_YEAR,
    YEAR,
    amount,
    at,
    between,
    cents,
    flat,
    metered,
    percent,
    seats,
    tiered,
    used,
)

MODES: list[BillingMode] = ["classic", "flexible"]


def change(before: Item, after: Item, moment: str, mode: BillingMode = "flexible") -> tuple[Line, ...]:
    """The lines of one change of one item, which was billed for its whole period."""
    return prorate(mode, [before], [after], at(moment), debits=debits_of([before], {})).lines


def test_1_usage_to_invoice() -> None:
    """The base fee in advance, the calls in arrears: one line for each tier."""
    december = between("2027-12-01", "2028-01-01")
    items = [Item("si_fee", API_FEE, december), Item("si_calls", API_CALLS, december)]

    lines = cycle_lines(items, {"si_calls": used(137_510, "2027-11-01", "2027-12-01")})

    assert cents(lines) == [0, 18_000, 3_751, 4_900]
    assert [line.quantity for line in lines] == [10_000, 90_000, 37_510, 1]
    assert [line.period.start for line in lines] == [at("2027-11-01")] * 3 + [at("2027-12-01")]
    assert totals(lines).amount_due == 26_651


STRIPE_TIERS: tuple[tuple[int | None, str], ...] = ((5, "700"), (10, "650"), (None, "600"))


@pytest.mark.parametrize(
    ("price", "quantity", "expected"),
    [
        pytest.param(tiered("volume", *STRIPE_TIERS), 1, 700, id="volume 1"),
        pytest.param(tiered("volume", *STRIPE_TIERS), 5, 3500, id="volume 5"),
        pytest.param(tiered("volume", *STRIPE_TIERS), 6, 3900, id="volume 6"),
        pytest.param(tiered("volume", *STRIPE_TIERS), 20, 12000, id="volume 20"),
        pytest.param(tiered("volume", *STRIPE_TIERS), 25, 15000, id="volume 25"),
        pytest.param(tiered("graduated", *STRIPE_TIERS), 1, 700, id="graduated 1"),
        pytest.param(tiered("graduated", *STRIPE_TIERS), 5, 3500, id="graduated 5"),
        pytest.param(tiered("graduated", *STRIPE_TIERS), 6, 4150, id="graduated 6"),
        pytest.param(tiered("graduated", *STRIPE_TIERS), 20, 12750, id="graduated 20"),
        pytest.param(tiered("graduated", *STRIPE_TIERS), 25, 15750, id="graduated 25"),
        pytest.param(
            metered("hours", 1000)._replace(transform_quantity=TransformQuantity(60, "up")), 61, 2000, id="61 minutes"
        ),
        pytest.param(metered("calls", "0.05"), 12_344, 617, id="617.2 cents"),
    ],
)
def test_2_tiers(price: Price, quantity: int, expected: int) -> None:
    """Stripe's page on pricing models, and two amounts of our own."""
    assert expected == total(price, quantity)


def test_3_thresholds() -> None:
    """Volume tiers over threshold invoices: the second invoice takes back what the first one billed."""
    item = Item("si_1", tiered("volume", (10_000, 50), (None, 40)), between("2027-03-01", "2027-04-01"))
    first = used(10_000, "2027-03-01", "2027-04-01")
    assert totals(usage_lines(item, first)).amount_due == 500_000

    billed = billed_by_threshold(item, first)
    made = [totals(usage_lines(item, billed._replace(value=Fraction(value)))) for value in (24_999, 25_000, 10_001)]
    assert [each.total for each in made] == [499_960, 500_000, -99_960]
    assert (made[-1].amount_due, made[-1].ending_balance) == (0, -99_960)


FEBRUARY = between("2027-02-01", "2027-03-01")
MARCH = between("2027-03-01", "2027-04-01")


@pytest.mark.parametrize("mode", MODES)
def test_4_preview_is_commit(mode: BillingMode) -> None:
    """19 of 28 days left; the same `proration_date` gives the same lines; 20 % tax is rounded for each line."""
    before, after = seats(ESSENTIAL, 1, FEBRUARY), seats(PRO, 1, FEBRUARY)

    preview = change(before, after, "2027-02-10", mode)

    assert cents(preview) == [-5361, 10111]
    assert change(before, after, "2027-02-10", mode) == preview
    assert totals(preview).amount_due == 4750
    taxed = totals(preview, tax_percentage=Fraction(20))
    assert ([line.tax for line in taxed.lines], taxed.total_tax, taxed.amount_due) == ([-1072, 2022], 950, 5700)
    assert cents(cycle_lines([after._replace(period=MARCH)], {})) == [14900]


class Step(NamedTuple):
    """A change, and the two amounts that it must yield."""

    before: Item
    after: Item
    moment: str
    expected: list[int]


JANUARY = between("2027-01-01", "2027-02-01")
JUNE = between("2027-06-01", "2027-07-01")
YEAR_FROM_JUNE = between("2027-06-11", "2028-06-11")
TO_FEBRUARY_28 = between("2027-01-31", "2027-02-28")
APRIL = between("2027-04-01", "2027-05-01")
SEAT = flat("seat", 1000)

ONE_CHANGE = [
    pytest.param(
        Step(
            seats(flat("a", 2900), 1, JANUARY),
            seats(flat("b", 9900), 1, JANUARY),
            "2027-01-12 10:30:17",
            [-1830, 6247],
        ),
        id="5 by the second",
    ),
    pytest.param(
        Step(seats(flat("a", 1000), 1, APRIL), seats(flat("b", 2000), 1, APRIL), "2027-04-16", [-500, 1000]),
        id="6 documented +500",
    ),
    pytest.param(
        Step(seats(PRO, 1, FEBRUARY), seats(ESSENTIAL, 1, FEBRUARY), "2027-02-10", [-10111, 5361]),
        id="7 immediate downgrade",
    ),
    pytest.param(
        Step(seats(SEAT, 5, MARCH), seats(SEAT, 8, MARCH), "2027-03-11", [-3387, 5419]), id="9 three seats more"
    ),
    pytest.param(
        Step(seats(SEAT, 8, MARCH), seats(SEAT, 6, MARCH), "2027-03-21", [-2839, 2129]), id="9 two seats fewer"
    ),
    pytest.param(Step(seats(SEAT, 5, MARCH), seats(SEAT, 6, MARCH), "2027-03-11", [-3387, 4065]), id="10 first +1"),
    pytest.param(Step(seats(SEAT, 6, MARCH), seats(SEAT, 7, MARCH), "2027-03-11", [-4065, 4742]), id="10 second +1"),
    pytest.param(Step(seats(SEAT, 5, MARCH), seats(SEAT, 7, MARCH), "2027-03-11", [-3387, 4742]), id="10 one step"),
    pytest.param(
        Step(seats(PRO, 2, JUNE), seats(PRO_YEAR, 2, YEAR_FROM_JUNE), "2027-06-11", [-19867, 309600]),
        id="11 monthly to annual",
    ),
    pytest.param(
        Step(seats(PRO_YEAR, 2, YEAR_FROM_JUNE), seats(PRO_YEAR, 3, YEAR_FROM_JUNE), "2027-09-09", [-233469, 350203]),
        id="12 added in an annual period",
    ),
    pytest.param(
        Step(
            seats(flat("a", 9900), 1, TO_FEBRUARY_28), seats(flat("b", 14900), 1, TO_FEBRUARY_28), "2027-02-14",
            [-4950, 7450],
        ),
        id="14 short month",
    ),
    pytest.param(
        Step(seats(flat("a", 1500), 1, APRIL), seats(flat("b", 3000), 1, APRIL), "2027-04-21", [-500, 1000]),
        id="14 yen",
    ),
    pytest.param(
        Step(seats(PRO, 1, MARCH), seats(flat("free", 0), 1, MARCH), "2027-03-15", [-8171, 0]),
        id="19 what `none` avoids",
    ),
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", ONE_CHANGE)
def test_5_to_19_one_change(step: Step, mode: BillingMode) -> None:
    """Both modes agree when the current price is what was billed."""
    assert step.expected == cents(change(step.before, step.after, step.moment, mode))


@pytest.mark.parametrize(("mode", "expected"), [("flexible", [-333, 333]), ("classic", [-667, 333])])
def test_6_documented_upgrade_without_proration(mode: BillingMode, expected: list[int]) -> None:
    """10 → 20 with `none` on April 11 → 10 on April 21: flexible credits what was billed, classic the current price."""
    ten, twenty = seats(flat("ten", 1000), 1, APRIL), seats(flat("twenty", 2000), 1, APRIL)

    up = prorate(mode, [ten], [twenty], at("2027-04-11"), debits=debits_of([ten], {}), prorations=False)
    down = prorate(mode, [twenty], [ten], at("2027-04-21"), debits=up.debits)

    assert up.lines == ()
    assert cents(down.lines) == expected
    assert sum(expected) == {"flexible": 0, "classic": -334}[mode]


@pytest.mark.parametrize("mode", MODES)
def test_8_rapid_up_and_down(mode: BillingMode) -> None:
    """60 seconds apart: 4750 paid, 4749 back as balance, 3151 on March 1."""
    essential, pro = seats(ESSENTIAL, 1, FEBRUARY), seats(PRO, 1, FEBRUARY)

    up = prorate(mode, [essential], [pro], at("2027-02-10"), debits=debits_of([essential], {}))
    down = prorate(mode, [pro], [essential], at("2027-02-10 00:01:00"), debits=up.debits)

    assert (cents(up.lines), cents(down.lines)) == ([-5361, 10111], [-10110, 5361])
    balance = totals(down.lines).ending_balance
    assert (totals(up.lines).amount_due, balance) == (4750, -4749)
    march = totals(cycle_lines([essential._replace(period=MARCH)], {}), starting_balance=balance)
    assert (march.amount_due, march.ending_balance) == (3151, 0)


def test_7_and_9_the_credit_waits_for_the_next_invoice() -> None:
    """Pending prorations lower the next cycle's invoice: 3150 after a downgrade, 5290 after two seats fewer."""
    downgrade = change(seats(PRO, 1, FEBRUARY), seats(ESSENTIAL, 1, FEBRUARY), "2027-02-10")
    fewer = change(seats(SEAT, 8, MARCH), seats(SEAT, 6, MARCH), "2027-03-21")

    assert totals([*downgrade, *cycle_lines([seats(ESSENTIAL, 1, MARCH)], {})]).amount_due == 3150
    assert totals([*fewer, *cycle_lines([seats(SEAT, 6, APRIL)], {})]).amount_due == 5290


def test_11_to_13_intervals() -> None:
    """The restarted year ends on Jun 11 2028, and then three monthly locations are 44700."""
    anchor = at("2027-06-11")
    assert period_containing(anchor, YEAR, anchor) == YEAR_FROM_JUNE

    monthly = [seats(PRO, 3, period_containing(at("2028-06-11"), MONTH, at("2028-06-11")))]
    assert totals(cycle_lines(monthly, {})).amount_due == 44700


@pytest.mark.parametrize(
    ("before", "after", "restarts"),
    [
        pytest.param(PRO, PRO_YEAR, {"classic": True, "flexible": False}, id="11 another interval"),
        pytest.param(flat("free", 0), PRO, {"classic": True, "flexible": False}, id="19 free to paid"),
        pytest.param(PRO, flat("free", 0), {"classic": False, "flexible": False}, id="paid to free"),
        pytest.param(ESSENTIAL, PRO, {"classic": False, "flexible": False}, id="another amount"),
        pytest.param(
            metered("zero", 0), API_CALLS, {"classic": True, "flexible": False}, id="free usage to paid usage"
        ),
        pytest.param(API_CALLS, PRO, {"classic": False, "flexible": False}, id="paid usage to paid"),
    ],
)
def test_11_and_19_only_classic_restarts_the_period_by_itself(
    before: Price, after: Price, restarts: dict[BillingMode, bool]
) -> None:
    """ "The billing_cycle_anchor is never automatically reset" in flexible mode: the caller asks for `now`."""
    old, new = [seats(before, 1, MARCH)], [seats(after, 1, MARCH)]

    assert restarts == {mode: restarts_period(mode, old, new) for mode in MODES}


def test_14_month_ends() -> None:
    """Each boundary is computed from the anchor: February does not shorten March."""
    anchor = at("2027-01-31")

    assert [at("2027-02-28"), at("2027-03-31"), at("2027-04-30")] == [boundary(anchor, MONTH, n) for n in (1, 2, 3)]


def test_16_early_upgrade() -> None:
    """30 % once: 31290, and then 44700."""
    once = discount_from(Coupon("early", Fraction(30), duration="once"), at("2027-03-13"))
    lines = cycle_lines([seats(PRO, 3, MARCH)], {})

    assert totals(lines, discounts=[once]).amount_due == 31290
    assert remaining([once], at("2027-03-13")) == ()
    assert totals(lines).amount_due == 44700


def test_17_first_payment_declined() -> None:
    """`incomplete` is not retried."""
    policy = RetryPolicy(days=(3, 5, 7))

    assert after_failure(policy, "incomplete", at("2027-03-01"), 1) == Collection("open", "incomplete", None)


def test_18_renewal_recovers() -> None:
    """Past due with a retry scheduled; one payment makes the subscription active."""
    policy, first = RetryPolicy(days=(3, 7, 14)), at("2027-03-01 01:00")

    assert after_failure(policy, "active", first, 1) == Collection("open", "past_due", at("2027-03-04 01:00"))
    assert after_failure(policy, "past_due", first, 2) == Collection("open", "past_due", at("2027-03-08 01:00"))
    assert after_payment("past_due") == "active"


def test_19_dunning_exhausted() -> None:
    """The fourth failure ends the plan. Both later changes need `none`: else the unpaid month is credited."""
    policy = RetryPolicy(days=(3, 7, 14), subscription_end="past_due", invoice_end="uncollectible")
    pro, free = seats(PRO, 1, MARCH), seats(flat("free", 0), 1, MARCH)
    restarted = seats(PRO, 1, between("2027-03-22", "2027-04-22"))

    assert after_failure(policy, "past_due", at("2027-03-01"), 4) == Collection("uncollectible", "past_due", None)
    downgraded = prorate("flexible", [pro], [free], at("2027-03-15"), debits=debits_of([pro], {}), prorations=False)
    assert downgraded.lines == ()
    assert totals(cycle_lines([free._replace(period=APRIL)], {})).amount_due == 0

    recovered = prorate("flexible", [free], [restarted], at("2027-03-22"), debits=downgraded.debits, prorations=False)
    assert cents(recovered.lines) == [14900]
    assert [debit.billed for debit in recovered.debits if debit.billed.end > at("2027-03-22")] == [restarted.period]
    credited = prorate("flexible", [free], [restarted], at("2027-03-22"), debits=downgraded.debits)
    assert cents(credited.lines) == [-4806, 14900]


def test_20_hard_declines_are_not_retried() -> None:
    """Nine codes need a new payment method; an expired card is not one of them."""
    assert len(HARD_DECLINE_CODES) == 9
    assert not HARD_DECLINE_CODES & {"expired_card", "insufficient_funds"}


@pytest.mark.parametrize("mode", MODES)
def test_21_discounts(mode: BillingMode) -> None:
    """Prorations start from the discounted price; a coupon over two lines leaves the remainder on the last."""
    before, after = seats(flat("a", 10000), 1, APRIL), seats(flat("b", 20000), 1, APRIL)

    lines = prorate(
        mode, [before], [after], at("2027-04-16"), discounts=[percent(20)], debits=debits_of([before], {"si_1": 2000})
    ).lines

    assert cents(lines) == [-4000, 8000]
    assert totals(lines, discounts=[percent(20)]).amount_due == 4000
    two = [seats(flat("a", 1000), 1, APRIL), seats(flat("b", 2000), 1, APRIL, "si_2")]
    coupon = totals(cycle_lines(two, {}), discounts=[amount(500)])
    assert [[cut.amount for cut in line.cuts] for line in coupon.lines] == [[166], [334]]


GRANTS = (
    Grant("A", 2000, category="promotional", expires_at=at("2027-06-01")),
    Grant("B", 5000),
    Grant("C", 3000, priority=10),
)


@pytest.mark.parametrize(
    ("discount", "tax", "due"),
    [pytest.param(0, 0, 2000, id="plain"), (10, 0, 800), (10, 20, 960)],
)
def test_22_credit_grants(discount: int, tax: int, due: int) -> None:
    """C, A, B pay the metered line after the discount and before tax; the flat fee is untouched."""
    item = Item("si_1", metered("calls", 1), MARCH)
    lines = usage_lines(item, used(12_000, "2027-03-01", "2027-04-01"))

    invoice = totals(
        lines,
        discounts=[percent(discount)] if discount else [],
        tax_percentage=Fraction(tax),
        grants=GRANTS,
        at=at("2027-04-01"),
    )

    assert [draw.grant for draw in invoice.draws] == ["C", "A", "B"]
    assert invoice.amount_due == due
    assert [draw.amount for draw in invoice.draws] == [3000, 2000, 5000]
    fee = totals([*lines, *cycle_lines([seats(API_FEE, 1, APRIL)], {})], grants=GRANTS, at=at("2027-04-01"))
    assert [line.taxable for line in fee.lines] == [2000, 4900]


@pytest.mark.parametrize(
    ("price", "value", "expected"),
    [
        pytest.param(metered("scans", 25), 0, 0, id="23 pool pays all"),
        pytest.param(metered("scans", 25), 20, 500, id="23 pool leaves 20"),
        pytest.param(tiered("graduated", (10, 0), (None, 1500)), 13, 4500, id="24 three seats over"),
        pytest.param(tiered("graduated", (100_000, 0), (None, "0.06")), 240_000, 8400, id="27 future price"),
        pytest.param(metered("shadow", 0), 240_000, 0, id="27 shadow line"),
    ],
)
def test_23_to_27_usage(price: Price, value: int, expected: int) -> None:
    """What Stripe bills for the quantity that it gets."""
    item = Item("si_1", price, MARCH)

    assert expected == totals(usage_lines(item, used(value, "2027-02-01", "2027-03-01"))).amount_due


def test_27_flat_to_metered() -> None:
    """The month of the switch has no cash: the flat fee was paid in advance, and usage is billed in arrears."""
    future = tiered("graduated", (100_000, 0), (None, "0.06"))
    flat_fee, shadow, promoted = flat("flat", 9900), metered("shadow", 0), Item("si_2", future, MARCH)

    customer = cycle_lines(
        [seats(flat_fee, 1, FEBRUARY), Item("si_2", shadow, FEBRUARY)],
        {"si_2": used(240_000, "2027-01-01", "2027-02-01")},
    )
    assert cents(customer) == [0, 9900]
    assert sum(totals(customer).amount_due for _ in range(340)) == 3_366_000
    assert totals(cycle_lines([promoted], {})).amount_due == 0
    april = cycle_lines([promoted], {"si_2": used(240_000, "2027-03-01", "2027-04-01")})
    assert totals(april).amount_due == 8400
    assert totals(cycle_lines([seats(flat_fee, 1, APRIL)], {})).amount_due == 9900

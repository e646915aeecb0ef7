"""Discounts, credit grants, tax, usage, and how an invoice adds up."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stripe_simulator.engine.discounts import Coupon, Discount, apply, discount_from, remaining
from stripe_simulator.engine.lines import Item, Line, Usage, billed_by_threshold, cycle_lines, usage_lines
from stripe_simulator.engine.totals import Grant, draw, in_order, settled, totals
from tests.unit.stripe_engine.catalog import amount, at, between, cents, flat, metered, percent, seats, tiered, used

MARCH = between("2027-03-01", "2027-04-01")
APRIL = between("2027-04-01", "2027-05-01")


def part(amount: int, product: str = "", *, discountable: bool = True) -> Line:
    """A line as discounts see it."""
    return Line("si_1", "price", product, amount, Fraction(1), MARCH, discountable=discountable)


def usage(amount: int, price: str, *, metered: bool) -> Line:
    """A line as grants see it."""
    return Line("si_1", price, "", amount, Fraction(1), MARCH, metered=metered)


def cut_amounts(parts: list[Line], *discounts: Discount) -> list[list[int]]:
    """What each discount takes off each line."""
    return [[cut.amount for cut in line] for line in apply(parts, discounts)]


@pytest.mark.parametrize(
    ("parts", "discounts", "expected"),
    [
        pytest.param([part(1000), part(2000)], [amount(500)], [[166], [334]], id="documented remainder"),
        pytest.param([part(1000)], [percent(20), amount(100)], [[200, 100]], id="percent, then amount"),
        pytest.param([part(1000)], [amount(100), percent(20)], [[100, 180]], id="amount, then percent"),
        pytest.param(
            [part(333), part(333), part(333)], [percent(50)], [[166], [166], [168]], id="percent rounded once"
        ),
        pytest.param([part(1000), part(0)], [percent(10)], [[100], []], id="no cut of a line of 0"),
        pytest.param([part(300)], [amount(500)], [[300]], id="never below 0"),
        pytest.param([part(1000, "a"), part(1000, "b")], [percent(50, "b")], [[], [500]], id="applies_to"),
        pytest.param([part(1000, discountable=False), part(10)], [percent(50)], [[], [5]], id="not discountable"),
        pytest.param([part(10000), part(-5000)], [percent(20)], [[1000], []], id="a negative line lowers the base"),
        pytest.param([], [percent(20)], [], id="no lines"),
    ],
)
def test_discounts(parts: list[Line], discounts: list[Discount], expected: list[list[int]]) -> None:
    """In order; each discount sees what the earlier ones left."""
    assert expected == cut_amounts(parts, *discounts)


@given(
    amounts=st.lists(st.integers(-5000, 50_000), max_size=6),
    coupons=st.lists(st.one_of(st.integers(1, 100).map(percent), st.integers(1, 60_000).map(amount)), max_size=4),
)
def test_discounts_never_exceed_what_they_discount(amounts: list[int], coupons: list[Discount]) -> None:
    """A line stays above 0, and one coupon over all lines takes what it would take of their sum."""
    cuts = cut_amounts([part(each) for each in amounts], *coupons)

    assert all(sum(line) <= max(0, each) for line, each in zip(cuts, amounts, strict=True))
    base = max(0, sum(amounts))
    for discount in coupons:
        off = discount.coupon.amount_off
        share = Fraction(base) * (discount.coupon.percent_off or 0) / 100
        base -= (
            min(base, off) if off is not None else (2 * share.numerator + share.denominator) // (2 * share.denominator)
        )
    assert sum(amounts) - sum(map(sum, cuts)) == (base if sum(amounts) > 0 else sum(amounts))


def test_durations() -> None:
    """`repeating` ends after its months; `once` is used up by one invoice; the end itself is outside."""
    start = at("2027-01-31")
    repeating = discount_from(Coupon("r", Fraction(10), duration="repeating", duration_in_months=1), start)
    once = discount_from(Coupon("o", Fraction(10), duration="once", duration_in_months=3), start)

    assert repeating.end == at("2027-02-28")
    assert [repeating.active_at(at(day)) for day in ("2027-01-30", "2027-01-31", "2027-02-27", "2027-02-28")] == [
        False,
        True,
        True,
        False,
    ]
    assert once.end is None
    assert remaining([repeating, once, percent(5)], at("2027-02-01")) == (repeating, percent(5))
    assert remaining([repeating], at("2027-02-28")) == ()


@pytest.mark.parametrize(
    ("taxable", "percentage", "expected"),
    [
        pytest.param(43, "15", 6, id="6.45"),
        pytest.param(484, "15", 73, id="72.6"),
        pytest.param(10, "5", 1, id="half up"),
        pytest.param(-5361, "20", -1072, id="credit"),
        pytest.param(1000, "8.8750", 89, id="four decimals"),
        pytest.param(0, "20", 0, id="nothing"),
    ],
)
def test_tax(taxable: int, percentage: str, expected: int) -> None:
    """Each line by itself."""
    invoice = totals([part(taxable), part(taxable)], tax_percentage=Fraction(percentage))

    assert [line.tax for line in invoice.lines] == [expected, expected]
    assert (invoice.total_tax, invoice.total) == (2 * expected, 2 * taxable + 2 * expected)


def test_grants_apply_in_the_documented_order() -> None:
    """Priority, earliest expiry, promotional before paid, earliest effective date, creation."""
    grants = [
        Grant("created later", 1, created=2),
        Grant("created", 1, created=1),
        Grant("effective later", 1, effective_at=5),
        Grant("promotional", 1, category="promotional", effective_at=9),
        Grant("expires later", 1, expires_at=300),
        Grant("expires", 1, expires_at=200, created=9),
        Grant("priority", 1, priority=0, effective_at=9),
    ]

    assert [grant.id for grant in in_order(grants, 100)] == [
        "priority",
        "expires",
        "expires later",
        "promotional",
        "created",
        "created later",
        "effective later",
    ]


@pytest.mark.parametrize(
    ("grant", "usable"),
    [
        pytest.param(Grant("g", 10, effective_at=100), True, id="effective now"),
        pytest.param(Grant("g", 10, effective_at=101), False, id="not yet effective"),
        pytest.param(Grant("g", 10, expires_at=100), False, id="expires now"),
        pytest.param(Grant("g", 10, expires_at=101), True, id="expires in a second"),
        pytest.param(Grant("g", 0), False, id="used up"),
    ],
)
def test_which_grants_are_usable(grant: Grant, usable: bool) -> None:
    """At the instant of finalization."""
    assert usable == bool(in_order([grant], 100))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param(usage(100, "calls", metered=True), 60, id="metered"),
        pytest.param(usage(100, "fee", metered=False), 0, id="flat fee"),
        pytest.param(usage(100, "other", metered=True), 0, id="price outside the scope"),
        pytest.param(usage(-100, "calls", metered=True), 0, id="negative line"),
        pytest.param(usage(40, "calls", metered=True), 40, id="less than the grant"),
    ],
)
def test_what_a_grant_pays(line: Line, expected: int) -> None:
    """Lines of metered prices in the grant's scope, up to their amount."""
    draws = draw([Grant("g", 60, prices=frozenset({"calls"}))], [line], [line.amount], 100)

    assert expected == sum(each.amount for each in draws)


@given(
    grants=st.lists(
        st.builds(
            Grant,
            id=st.uuids().map(str),
            available=st.integers(0, 500),
            priority=st.integers(0, 2),
            expires_at=st.one_of(st.none(), st.integers(50, 150)),
            prices=st.sampled_from([frozenset(), frozenset({"a"})]),
        ),
        max_size=5,
    ),
    lines=st.lists(st.builds(usage, st.integers(-100, 900), st.sampled_from("ab"), metered=st.booleans()), max_size=5),
)
def test_grants_pay_no_more_than_they_have(grants: list[Grant], lines: list[Line]) -> None:
    """No grant below 0, no line below 0; nothing payable is left beside a usable grant. The lines are of different
    items: a negative line lowers what is payable of its own item only."""
    lines = [line._replace(item=f"si_{index}") for index, line in enumerate(lines)]
    draws = draw(grants, lines, [line.amount for line in lines], 100)
    spent = [
        grant._replace(available=grant.available - sum(each.amount for each in draws if each.grant == grant.id))
        for grant in grants
    ]
    paid = [sum(each.amount for each in draws if each.line == index) for index in range(len(lines))]

    assert all(grant.available >= 0 for grant in spent)
    assert all(
        0 <= part <= (max(0, line.amount) if line.metered else 0) for part, line in zip(paid, lines, strict=True)
    )
    for grant in in_order(spent, 100):
        for part, line in zip(paid, lines, strict=True):
            if line.metered and (not grant.prices or line.price in grant.prices):
                assert part >= line.amount


@pytest.mark.parametrize(
    ("total", "balance", "charge_min", "expected"),
    [
        pytest.param(7900, -4749, 50, (3151, 0), id="credit covers a part"),
        pytest.param(1000, -4749, 50, (0, -3749), id="credit covers all"),
        pytest.param(-4750, 0, 50, (0, -4750), id="negative total becomes credit"),
        pytest.param(-100, 500, 50, (0, 400), id="credit lowers a debt"),
        pytest.param(1000, 500, 50, (1500, 0), id="debt is collected"),
        pytest.param(49, 0, 50, (0, 49), id="too small to charge"),
        pytest.param(50, 0, 50, (50, 0), id="just large enough"),
        pytest.param(0, 0, 50, (0, 0), id="nothing"),
    ],
)
def test_the_customer_balance(total: int, balance: int, charge_min: int, expected: tuple[int, int]) -> None:
    """Negative: the customer has credit. What is due and what remains always add up."""
    assert expected == settled(total, balance, charge_min)
    assert sum(expected) == total + balance


def test_a_negative_total_bills_nothing() -> None:
    """ "Cycle total below 0 bills 0"."""
    lines = usage_lines(Item("si_1", metered("calls", 2), MARCH), used(-5, "2027-03-01", "2027-04-01"))

    assert [(line.quantity, line.amount) for line in lines] == [(Fraction(0), 0)]


@given(values=st.lists(st.integers(0, 40), min_size=1, max_size=6), discount=st.sampled_from([0, 10, 25]))
def test_threshold_invoices_add_up_to_one_invoice(values: list[int], discount: int) -> None:
    """Tiers continue: the threshold invoices and the last one bill together what one invoice would bill."""
    item = Item("si_1", tiered("graduated", (10, 5_000), (50, 400), (None, 300)), MARCH)
    discounts = [percent(discount)] if discount else []
    usage, billed = Usage(Fraction(0), MARCH), 0
    for value in values:
        usage = usage._replace(value=usage.value + value)
        billed += totals(usage_lines(item, usage), discounts=discounts).total
        usage = billed_by_threshold(item, usage)

    whole = Usage(Fraction(sum(values)), MARCH)
    assert billed == totals(usage_lines(item, whole), discounts=discounts).total


def test_a_grant_does_not_pay_again_what_a_threshold_invoice_billed() -> None:
    """ "Amount previously billed" lowers what the grant can pay of the item."""
    item = Item("si_1", metered("calls", 10), MARCH)
    usage = billed_by_threshold(item, used(100, "2027-03-01", "2027-04-01"))._replace(value=Fraction(150))

    invoice = totals(usage_lines(item, usage), grants=[Grant("g", 5000)], at=1)

    assert (sum(entry.amount for entry in invoice.draws), invoice.total, invoice.ending_balance) == (500, 0, 0)


def test_the_lines_of_a_cycle() -> None:
    """Usage in arrears, then licensed items in advance; usage 0 has a line."""
    items = [seats(flat("fee", 4900), 1, APRIL), Item("si_2", metered("calls", 2), APRIL)]

    lines = cycle_lines(items, {"si_2": used(0, "2027-03-01", "2027-04-01")})

    assert [(line.price, line.amount, line.period) for line in lines] == [
        ("calls", 0, MARCH),
        ("fee", 4900, APRIL),
    ]
    assert cents(cycle_lines(items, {})) == [4900]


@given(
    amounts=st.lists(st.tuples(st.integers(-9_000, 20_000), st.booleans(), st.booleans()), max_size=6),
    off=st.integers(0, 100),
    tax=st.integers(0, 3000),
    credit=st.integers(0, 9000),
    balance=st.integers(-9000, 9000),
)
def test_an_invoice_adds_up(
    amounts: list[tuple[int, bool, bool]], off: int, tax: int, credit: int, balance: int
) -> None:
    """Lines − discounts − credits + exclusive tax + balance = due + ending balance, for every combination."""
    lines = [
        Line(f"si_{index}", "p", "p", value, Fraction(1), MARCH, metered=used_, proration=whole, discountable=not whole)
        for index, (value, used_, whole) in enumerate(amounts)
    ]

    invoice = totals(
        lines,
        discounts=[percent(off)] if off else [],
        tax_percentage=Fraction(tax, 100),
        grants=[Grant("g", credit)],
        at=1,
        starting_balance=balance,
        charge_min=50,
    )

    discount = sum(cut.amount for line in invoice.lines for cut in line.cuts)
    credited = sum(entry.amount for entry in invoice.draws)
    assert invoice.subtotal == sum(cents(tuple(lines)))
    assert invoice.total == invoice.subtotal - discount - credited + invoice.total_tax
    assert invoice.total_excluding_tax + invoice.total_tax == invoice.total
    assert invoice.amount_due + invoice.ending_balance == invoice.total + balance
    assert invoice.amount_due == 0 or invoice.amount_due >= 50
    assert invoice.total_tax == sum(line.tax for line in invoice.lines)
    assert credited <= credit
    assert all(not line.cuts for line, of in zip(invoice.lines, lines, strict=True) if of.amount < 0)
    assert all(lines[entry.line].amount > 0 for entry in invoice.draws)

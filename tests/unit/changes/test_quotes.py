"""Quotes in words and cents, and what their acceptance then bills, against the simulator."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import pytest

from pipeline.changes.operating import accept
from schemas.clock import MINUTE_MS
from schemas.errors import InvalidInput, TidemarkError, Transient
from schemas.periods import Interval
from schemas.plan_changes import ChangeKind, InvoicePreview, OperationState, Refusal, RefusalCode
from stripe_simulator.faults import Fault, FaultKind
from tests.worlds.changing import ACME, CATALOG, Changing

ESSENTIAL: Final = "essential.v1.location.month.usd"
PRO: Final = "pro.v1.location.month.usd"
YEARLY: Final = "pro.v1.location.year.usd"
METERED: Final = ("metered.v1.location.month.usd", "metered.v1.calls.month.usd")


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000


async def world(at: str, *keys: str, **params: Any) -> Changing:
    """Acme with a subscription to prices."""
    found = Changing(ms(at))
    await found.begin()
    if keys:
        await found.subscribed(*keys, **params)
        await found.settle()
    return found


def reach(business: Changing, at: str) -> None:
    """Let time pass at Stripe."""
    business.clock.ms = ms(at)
    business.stripe.simulator.catch_up()


async def test_a_quote_says_what_is_charged_today_and_next() -> None:
    """79 to 149 in a February of 28 days, with 19 of them left (scenario 4)."""
    business = await world("2027-02-01", ESSENTIAL)
    reach(business, "2027-02-10")
    quote = await business.quoted("pro")

    assert quote.words == (
        "You will be charged $47.50 today for the remaining 19 days of your billing cycle, and your next invoice on "
        "March 1 will be $149.00."
    )
    assert [line.amount_minor for line in quote.lines] == [-5361, 10111]
    assert (quote.total.minor, quote.due_minor, quote.ours_minor, quote.drift_minor) == (4750, 4750, 4750, 0)
    kept, operation = await business.accepted(quote)
    assert operation.state is OperationState.DONE
    assert (kept.charged_minor, kept.is_differing) == (4750, False)
    assert business.invoices() == [7900, 4750]
    assert business.bought() == {(PRO, 1)}
    reach(business, "2027-03-01 02:00:00")
    assert business.invoices() == [7900, 4750, 14900]


async def test_the_instant_of_the_quote_decides_and_not_that_of_the_acceptance() -> None:
    """A quarter of an hour less a second later, the invoice is the same to the cent."""
    business = await world("2027-02-01", ESSENTIAL)
    reach(business, "2027-02-10")
    quote = await business.quoted("pro")
    business.clock.ms += 15 * MINUTE_MS - 1_000

    assert (await business.accepted(quote))[0].charged_minor == 4750


async def test_05_by_the_second() -> None:
    """29 to 99 at 10:30:17 costs 4417 with 1 690 183 of 2 678 400 seconds left."""
    catalog = """\
version: 1
meters: []
currencies: {usd: 2}
plans:
  small: {version: 1, rank: 1, prices: [{component: base, month: {usd: "29.00"}}]}
  large: {version: 1, rank: 2, prices: [{component: base, month: {usd: "99.00"}}]}
"""
    business = Changing(ms("2027-01-01"))
    await business.begin(catalog.replace("meters: []", METER))
    await business.subscribed("small.v1.base.month.usd")
    business.clock.ms = ms("2027-01-12 10:30:17") + 789
    quote, _ = await business.changed("large")

    assert [line.amount_minor for line in quote.lines] == [-1830, 6247]
    assert (quote.total.minor, quote.charged_minor, quote.ours_minor) == (4417, 4417, 4417)


METER: Final = """\
meters:
  - {slug: calls, event_type: call, aggregation: count, unit: calls, stripe_event_name: calls}"""


async def test_08_rapidly_up_and_down() -> None:
    """The way down is a schedule: nothing is given back, one subscription, and March costs what was bought last."""
    business = await world("2027-02-01", ESSENTIAL)
    reach(business, "2027-02-10")
    await business.changed("pro")
    business.clock.ms += MINUTE_MS
    down, _ = await business.changed("essential", used={"locations": Decimal(1)})
    business.clock.ms += MINUTE_MS
    up, _ = await business.changed("pro")
    business.clock.ms += MINUTE_MS
    await business.changed("essential", used={"locations": Decimal(1)})

    assert down.words == (
        "You will be charged nothing today. Your plan changes to Essential on March 1, and your invoice on that day "
        "will be $79.00."
    )
    assert up.words == (
        "You will be charged nothing today. Your plan stays Pro, and your next invoice on March 1 will be $149.00."
    )
    assert business.invoices() == [7900, 4750]
    assert business.schedules() == [("active", 2), ("released", 2)]
    reach(business, "2027-03-01 02:00:00")
    assert (business.invoices()[2:], business.bought()) == ([7900], {(ESSENTIAL, 1)})


async def test_10_two_more_at_once_are_two_steps_of_one() -> None:
    """Of two quotes for the same present, one is accepted: no lost update, and no double charge."""
    business = await world("2027-03-01", ESSENTIAL, quantity=5)
    reach(business, "2027-03-11")
    first, second = [await business.quoted(quantities={"locations": 6}, plan="essential", key=key) for key in "ab"]
    assert first.id != second.id
    await business.accepted(first)
    refused = await accept(business.parts(), ACME, second.id, "bob")

    assert isinstance(refused, Refusal)
    assert (refused.code, refused.field) == (RefusalCode.CHANGED, "items")
    again = await business.changed("essential", quantities={"locations": 7})
    assert (first.total.minor + again[0].total.minor, business.bought()) == (10703, {(ESSENTIAL, 7)})


async def test_11_from_the_month_to_the_year() -> None:
    """Two locations on June 11: 289733 now, and the next invoice a year later."""
    business = await world("2027-06-01", PRO, quantity=2)
    reach(business, "2027-06-11")
    quote, operation = await business.changed("pro", interval=Interval.YEAR)

    assert quote.words == (
        "You will be charged $2,897.33 today, and your next invoice on June 11, 2028 will be $3,096.00."
    )
    assert (quote.charged_minor, quote.ours_minor, operation.state) == (289733, 289733, OperationState.DONE)
    assert business.bought() == {(YEARLY, 2)}


async def test_11_seconds_that_pass_before_the_acceptance_are_no_difference() -> None:
    """Stripe takes no instant if periods begin anew: less is credited, by what the seconds explain."""
    business = await world("2027-06-01", PRO, quantity=2)
    reach(business, "2027-06-11")
    quote = await business.quoted("pro", interval=Interval.YEAR)
    business.clock.ms += 14 * MINUTE_MS
    kept, _ = await business.accepted(quote)

    assert kept.charged_minor is not None
    assert 0 < kept.charged_minor - quote.total.minor <= quote.drift_minor <= 12
    assert not kept.is_differing


async def test_12_a_location_within_a_year() -> None:
    business = await world("2027-06-11", YEARLY, quantity=2)
    reach(business, "2027-09-09")
    quote, _ = await business.changed("pro", quantities={"locations": 3})

    assert (quote.charged_minor, quote.ours_minor) == (116734, 116734)


async def test_13_from_the_year_to_the_month() -> None:
    """Nothing now; three months' fees at the end of the year, by the month from then on."""
    business = await world("2027-06-11", YEARLY, quantity=3)
    reach(business, "2027-09-09")
    quote, _ = await business.changed("pro", interval=Interval.MONTH)

    assert quote.words == (
        "You will be charged nothing today. Your plan changes to Pro on June 11, 2028, and your invoice on that day "
        "will be $447.00. What is paid until then is not refunded."
    )
    reach(business, "2028-06-11 02:00:00")
    assert (business.invoices()[1:], business.bought()) == ([44700], {(PRO, 3)})
    reach(business, "2028-07-11 02:00:00")
    assert business.invoices()[1:] == [44700, 44700]


@pytest.mark.parametrize("card", ["pm_card_chargeCustomerFail", "pm_card_visa"])
async def test_17_a_first_plan_is_paid_or_not_bought(card: str) -> None:
    business = Changing(ms("2027-02-01"))
    await business.begin(card=card)
    quote, operation = await business.changed("pro", quantities={"locations": 2})

    assert quote.words == "You will be charged $298.00 today, and your next invoice on March 1 will be $298.00."
    is_paid = card == "pm_card_visa"
    assert operation.state is (OperationState.DONE if is_paid else OperationState.FAILED)
    assert (quote.charged_minor, "card_declined" in operation.detail) == ((29800, False) if is_paid else (None, True))
    subscriptions = list(business.stripe.pages("GET /v1/subscriptions", {"customer": business.customer}))
    assert len(subscriptions) == is_paid


async def test_an_upgrade_that_is_not_paid_waits_and_blocks() -> None:
    """Stripe keeps it pending for 23 hours; access stays, and a further change is refused with the link."""
    business = await world("2027-02-01", ESSENTIAL)
    business.use_card("pm_card_chargeCustomerFail")
    reach(business, "2027-02-10")
    _, operation = await business.changed("pro")

    assert operation.state is OperationState.DONE
    assert operation.detail.startswith("waits for the payment of the invoice: http")
    assert business.bought() == {(ESSENTIAL, 1)}
    refused = await business.ask("scale")
    assert isinstance(refused, Refusal)
    assert (refused.row, refused.code, "http" in refused.message) == (20, RefusalCode.UPDATE_PENDING, True)


async def test_cancellations_are_taken_back() -> None:
    business = await world("2027-02-01", PRO)
    ending, _ = await business.changed(kind=ChangeKind.CANCEL)
    ends = business.at_stripe()["cancel_at"]
    undone, _ = await business.changed(kind=ChangeKind.UNDO)

    assert ending.words == "You will be charged nothing today. Your subscription ends on March 1."
    assert undone.words.endswith("Your plan stays Pro, and your next invoice on March 1 will be $149.00.")
    assert (ends, business.at_stripe()["cancel_at"]) == (ms("2027-03-01") // 1_000, None)


async def test_a_pending_downgrade_becomes_a_cancellation() -> None:
    """The schedule ends the subscription with what is paid, and not a period later."""
    business = await world("2027-02-01", PRO)
    await business.changed("essential")
    await business.changed(kind=ChangeKind.CANCEL)
    reach(business, "2027-03-01 02:00:00")

    assert (business.at_stripe()["status"], business.invoices()) == ("canceled", [14900])


async def test_a_change_that_has_happened_is_pending_no_more() -> None:
    """Stripe keeps the schedule of a downgrade for one more period. Seats, undo and end are as without it."""
    business = await world("2027-02-01", PRO)
    await business.changed("essential")
    reach(business, "2027-03-05")
    undo = await business.ask(kind=ChangeKind.UNDO)
    more, _ = await business.changed("essential", quantities={"locations": 2})

    assert isinstance(undo, Refusal)
    assert undo.code is RefusalCode.NOTHING_PENDING
    assert (more.decided.row, more.charged_minor, business.bought()) == (24, 6880, {(ESSENTIAL, 2)})
    assert business.schedules() == [("released", 2)]


@pytest.mark.parametrize("wanted", [{"plan": "metered"}, {"kind": ChangeKind.CANCEL}], ids=["lower again", "end"])
async def test_after_a_downgrade_the_next_one_and_the_end_are_possible(wanted: dict[str, Any]) -> None:
    business = await world("2027-02-01", PRO)
    await business.changed("metered")
    reach(business, "2027-03-05")
    await business.changed(**({"plan": "essential"} if "plan" in wanted else wanted))
    reach(business, "2027-04-01 02:00:00")

    totals = business.invoices()
    assert (business.at_stripe()["status"], totals) == (
        ("active", [14900, 2000, 7900]) if "plan" in wanted else ("canceled", [14900, 2000, 0])
    )


async def test_a_plan_without_prices_is_what_is_left_after_the_end() -> None:
    business = await world("2027-02-01", ESSENTIAL, quantity=3)
    with pytest.raises(InvalidInput, match="say how many are in use"):
        await business.ask("free")
    blocked = await business.ask("free", used={"locations": Decimal(3)})
    ending = await business.quoted("free", used={"locations": Decimal(1)})

    assert isinstance(blocked, Refusal)
    assert (blocked.code, blocked.message.partition(":")[0]) == (RefusalCode.OVER_LIMIT, "locations")
    assert ending.words.endswith("Your subscription ends on March 1.")


async def test_a_downgrade_says_what_is_too_much() -> None:
    business = await world("2027-02-01", PRO, quantity=2)
    quote = await business.quoted("essential", quantities={"locations": 1}, used={"locations": Decimal(2)})

    assert quote.words.endswith(
        "will be $79.00. locations: 2 in use, 1 allowed from March 1 on: the newest ones can only be read from then "
        "on; nothing is deleted."
    )


async def test_a_metered_price_changes_with_the_period() -> None:
    business = await world("2027-02-01", *METERED)
    reach(business, "2027-02-10")
    quote, operation = await business.changed("scale")

    assert operation.state is OperationState.DONE
    assert quote.charged_minor == quote.ours_minor == -1357 + 20357
    assert quote.words.endswith("and your next invoice on March 1 will be $300.00 and your usage.")
    assert business.bought() == {("scale.v1.location.month.usd", 1), (METERED[1], None)}
    reach(business, "2027-03-01 02:00:00")
    assert business.bought() == {("scale.v1.location.month.usd", 1), ("scale.v1.calls.month.usd", None)}


async def test_another_plan_in_a_trial_costs_nothing_yet() -> None:
    business = await world("2027-02-01", PRO, trial_period_days=14)
    scale, _ = await business.changed("scale")

    assert scale.words.startswith("You will be charged $300.00 today, and your next invoice on March 1")
    assert (scale.charged_minor, business.at_stripe()["status"]) == (30000, "active")


async def test_a_trial_that_ends_early_is_paid() -> None:
    business = await world("2027-02-01", PRO, trial_period_days=14)
    business.clock.ms += MINUTE_MS
    quote, _ = await business.changed("pro")

    assert (quote.charged_minor, quote.ours_minor, business.at_stripe()["status"]) == (14900, 14900, "active")


async def test_a_quote_expires() -> None:
    business = await world("2027-02-01", ESSENTIAL)
    quote = await business.quoted("pro")
    business.clock.ms = quote.expires_ms
    found = await accept(business.parts(), ACME, quote.id, "ann")

    assert isinstance(found, Refusal)
    assert (found.code, found.field) == (RefusalCode.QUOTE_EXPIRED, "quote")
    assert business.invoices() == [7900]


async def change_quantity(business: Changing) -> None:
    item = business.at_stripe()["items"]["data"][0]["id"]
    business.stripe.call("POST /v1/subscription_items/{item}", {"quantity": 2}, item)


async def cancel(business: Changing) -> None:
    route = "POST /v1/subscriptions/{subscription_exposed_id}"
    business.stripe.call(route, {"cancel_at_period_end": True}, business.subscription)


async def put_under_schedule(business: Changing) -> None:
    business.stripe.call("POST /v1/subscription_schedules", {"from_subscription": business.subscription})


async def renew(business: Changing) -> None:
    reach(business, "2027-03-01 00:00:10")


async def add_coupon(business: Changing) -> None:
    coupon = business.stripe.call("POST /v1/coupons", {"percent_off": 20, "duration": "forever"})["id"]
    route = "POST /v1/subscriptions/{subscription_exposed_id}"
    business.stripe.call(route, {"discounts": [{"coupon": coupon}]}, business.subscription)


SINCE: Final = {
    "items": change_quantity, "cancellation": cancel, "schedule": put_under_schedule, "period": renew,
    "discount": add_coupon,
}  # fmt: skip


@pytest.mark.parametrize("field", SINCE)
async def test_what_changed_at_stripe_since_the_quote_is_named(field: str) -> None:
    """Also what somebody changed in the dashboard: it stays, and the quote falls."""
    business = await world("2027-02-01", ESSENTIAL)
    reach(business, "2027-02-28 23:55:00")
    quote = await business.quoted("pro")
    await SINCE[field](business)
    before = business.at_stripe()
    found = await accept(business.parts(), ACME, quote.id, "ann")

    assert isinstance(found, Refusal)
    assert (found.code, found.field) == (RefusalCode.CHANGED, field)
    assert business.at_stripe() == before
    assert await business.sql.plan_changes.operation(quote.id) is None


@pytest.mark.parametrize(
    "kind", [FaultKind.SERVER_ERROR, FaultKind.CONFLICT, FaultKind.RATE_LIMITED], ids=lambda kind: kind.name
)
async def test_a_preview_that_fails_is_an_error_and_not_nothing(kind: FaultKind) -> None:
    business = await world("2027-02-01", ESSENTIAL)
    business.stripe.simulator.faults.add(Fault(kind, count=1, path="/v1/invoices/create_preview"))
    with pytest.raises(TidemarkError):
        await business.ask("pro")

    assert (await business.quoted("pro")).total.minor > 0


async def test_an_invoice_that_differs_is_kept_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    business = await world("2027-02-01", ESSENTIAL)
    reach(business, "2027-02-10")
    true = business.client.preview

    async def cheaper(params: Any) -> InvoicePreview:
        found = await true(params)
        return found._replace(total_minor=found.total_minor - 1)

    monkeypatch.setattr(business.client, "preview", cheaper)
    kept, operation = await business.changed("pro")

    assert (kept.total.minor, kept.charged_minor, kept.is_differing) == (4749, 4750, True)
    assert operation.state is OperationState.DONE
    since_ms = business.clock.ms - MINUTE_MS
    assert [await business.sql.plan_changes.differing(each) for each in (since_ms, business.clock.ms + 1)] == [1, 0]


UNKNOWN: Final[dict[str, tuple[dict[str, Any], str, str]]] = {
    "plan": ({"plan": "gold"}, "plan", "the plans are free, essential"),
    "version": ({"plan": "pro@7"}, "plan", "write pro@1"),
    "interval": ({"plan": "pro", "interval": Interval.WEEK}, "interval", "use month or year"),
    "currency": ({"plan": "pro", "currency": "chf"}, "currency", "use usd"),
    "quantity of what is not paid": ({"plan": "pro", "quantities": {"members": 2}}, "quantities", "of locations"),
    "no quantity": ({"plan": "pro", "quantities": {"locations": 0}}, "quantities", "from 1 to"),
}


@pytest.mark.parametrize(("request_", "field", "words"), UNKNOWN.values(), ids=UNKNOWN)
async def test_what_is_not_sold_names_the_field_and_the_remedy(
    request_: dict[str, Any], field: str, words: str
) -> None:
    business = await world("2027-02-01", ESSENTIAL)
    with pytest.raises(InvalidInput, match=words) as found:
        await business.ask(**request_)

    assert found.value.field == field


async def test_an_account_without_a_customer_is_told_to_be_linked() -> None:
    business = await world("2027-02-01")
    await business.tables.unlink(ACME, "ann", "", business.clock.ms)
    business.clock.ms += 2 * MINUTE_MS
    found = await business.ask("pro")

    assert isinstance(found, Refusal)
    assert (found.code, ": " in found.message) == (RefusalCode.NO_CUSTOMER, True)


async def test_what_stripe_cannot_do_is_refused_with_the_way_out() -> None:
    """A customer has one currency at a time."""
    business = Changing(ms("2027-02-01"))
    await business.begin(CATALOG.replace('month: {usd: "149.00"}', 'month: {usd: "149.00", eur: "139.00"}'))
    await business.subscribed(ESSENTIAL)
    found = await business.ask("pro", currency="eur", by_operator=True)

    assert isinstance(found, Refusal)
    assert (found.code, found.field) == (RefusalCode.NOT_OFFERED, "currency")
    assert "end it with its period, and ask again" in found.message


async def test_a_catalog_may_want_the_full_price_of_an_upgrade() -> None:
    """A new period begins, and nothing is credited."""
    business = Changing(ms("2027-02-01"))
    await business.begin(f"{CATALOG}changes: {{upgrade: full_price}}\n")
    await business.subscribed(ESSENTIAL)
    reach(business, "2027-02-10")
    quote, _ = await business.changed("pro")

    assert (quote.charged_minor, quote.ours_minor, quote.drift_minor) == (14900, None, 0)
    assert quote.words == "You will be charged $149.00 today, and your next invoice on March 10 will be $149.00."


async def test_04_a_tax_is_named_and_in_the_total() -> None:
    """20 % exclusive: 950 on 4750."""
    business = await world("2027-02-01")
    business.stripe.call("POST /v1/customers/{customer}", {"address": {"country": "FR"}}, business.customer)
    await business.subscribed(ESSENTIAL, automatic_tax={"enabled": True})
    reach(business, "2027-02-10")
    quote, _ = await business.changed("pro")

    assert (quote.subtotal_minor, quote.tax_minor, quote.total.minor, quote.charged_minor) == (4750, 950, 5700, 5700)
    assert quote.ours_minor == 4750
    assert quote.words == (
        "You will be charged $57.00 today for the remaining 19 days of your billing cycle, and your next invoice on "
        "March 1 will be $178.80. The charge has $9.50 of tax."
    )
    down, _ = await business.changed("essential")
    assert down.words.endswith("your invoice on that day will be $94.80.")


async def test_a_discount_of_everything_leaves_a_valid_quote_of_nothing() -> None:
    business = await world("2027-02-01", ESSENTIAL)
    coupon = business.stripe.call("POST /v1/coupons", {"percent_off": 100, "duration": "forever"})["id"]
    route = "POST /v1/subscriptions/{subscription_exposed_id}"
    business.stripe.call(route, {"discounts": [{"coupon": coupon}]}, business.subscription)
    reach(business, "2027-03-10")
    quote, operation = await business.changed("pro", quantities={"locations": 2})

    assert (quote.total.minor, quote.ours_minor, operation.state) == (0, None, OperationState.DONE)
    assert quote.words == "You will be charged nothing today, and your next invoice on April 1 will be $0.00."
    assert business.bought() == {(PRO, 2)}


async def test_seats_are_credited_where_the_next_plan_has_none() -> None:
    """All that is paid ahead is prorated in one call, and our rating agrees."""
    seats = '[{component: seat, quantity: seats, month: {usd: "10.00"}}]'
    catalog = f"""\
version: 1
{METER}
currencies: {{usd: 2}}
features: {{seats: {{type: seat, merge: sum}}}}
plans:
  team: {{version: 1, rank: 1, prices: {seats}, grants: {{seats: quantity}}}}
  flat: {{version: 1, rank: 2, prices: [{{component: base, month: {{usd: "100.00"}}}}], grants: {{seats: unlimited}}}}
"""
    business = Changing(ms("2027-02-01"))
    await business.begin(catalog)
    await business.subscribed("team.v1.seat.month.usd", quantity=4)
    reach(business, "2027-02-15")
    quote, _ = await business.changed("flat")

    assert sorted(line.amount_minor for line in quote.lines) == [-2000, 5000]
    assert (quote.charged_minor, quote.ours_minor) == (3000, 3000)


async def test_what_no_catalog_made_stays_beside_a_plan() -> None:
    """A subscription to something else is not changed: the plan gets one of its own."""
    business = await world("2027-02-01")
    price = business.stripe.call("POST /v1/prices", {
        "currency": "usd", "unit_amount": 500, "recurring": {"interval": "month"}, "product_data": {"name": "advice"},
    })["id"]  # fmt: skip
    business.stripe.call("POST /v1/subscriptions", {"customer": business.customer, "items": [{"price": price}]})
    quote, _ = await business.changed("pro")

    assert (quote.decided.row, quote.charged_minor) == (2, 14900)
    assert len(list(business.stripe.pages("GET /v1/subscriptions", {"customer": business.customer}))) == 2


async def test_an_end_now_is_an_operators_and_credits_the_rest() -> None:
    business = await world("2027-02-01", PRO)
    reach(business, "2027-02-15")
    refused = await business.ask(kind=ChangeKind.CANCEL_NOW)
    quote, operation = await business.changed(kind=ChangeKind.CANCEL_NOW, by_operator=True)

    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.OPERATOR_ONLY
    assert quote.words == "Your subscription ends today. $74.50 of what is paid is credited to your account."
    assert (quote.total.minor, quote.due_minor) == (-7450, 0)
    assert (operation.state, business.at_stripe()["status"]) == (OperationState.DONE, "canceled")
    assert business.invoices() == [14900, -7450]


async def test_an_end_now_bills_the_usage_that_is_reported_until_then() -> None:
    """The usage is reported first: until that is settled, nothing ends; then the invoice has it."""
    business = await world("2027-02-01", *METERED)
    reach(business, "2027-02-14")
    payload = {"stripe_customer_id": business.customer, "value": "3"}
    business.stripe.call("POST /v1/billing/meter_events", {"event_name": "calls", "payload": payload})
    reach(business, "2027-02-15")
    flushed: list[str] = []

    async def flush(account: str) -> None:
        flushed.append(account)
        if len(flushed) == 1:
            raise Transient("the reports are not settled")

    quote = await business.quoted(kind=ChangeKind.CANCEL_NOW, by_operator=True)
    parts = business.parts()._replace(flush=flush)
    first, second = [await accept(parts, business.account, quote.id, "ann", by_operator=True) for _ in range(2)]

    assert not isinstance(first, Refusal)
    assert not isinstance(second, Refusal)
    assert [found[1].state for found in (first, second)] == [OperationState.SENT, OperationState.DONE]
    assert (flushed, business.at_stripe()["status"]) == (["acme", "acme"], "canceled")
    assert business.invoices() == [2000, -997]


async def test_the_same_request_is_the_same_quote() -> None:
    business = await world("2027-02-01", ESSENTIAL)
    first, second = [await business.quoted("pro", key="a key") for _ in range(2)]
    derived = [await business.quoted("pro") for _ in range(2)]
    with pytest.raises(InvalidInput, match="another request"):
        await business.ask("scale", key="a key")

    assert first == second != derived[0] == derived[1]


async def test_access_follows_a_change_when_stripe_has_made_it() -> None:
    """Up at once; down with the period, to the millisecond, and not when the quote is accepted (scenario 7)."""
    business = await world("2027-02-01", ESSENTIAL)
    reach(business, "2027-02-10")
    allowed = [(await business.reason("pos"))]
    await business.changed("pro")
    await business.settle()
    allowed.append(await business.reason("pos"))
    await business.changed("essential")
    await business.settle()
    for moment in (ms("2027-03-01") - 1, ms("2027-03-01")):
        business.clock.ms = moment
        allowed.append(await business.reason("pos"))

    assert [str(reason) for reason in allowed] == ["not_in_plan", "included", "included", "not_in_plan"]


async def test_access_waits_for_the_payment_of_a_change() -> None:
    business = await world("2027-02-01", ESSENTIAL)
    business.use_card("pm_card_chargeCustomerFail")
    await business.changed("pro")
    await business.settle()

    assert str(await business.reason("pos")) == "not_in_plan"


async def test_the_audit_says_who_changed_what() -> None:
    business = await world("2027-02-01", ESSENTIAL)
    await business.changed("pro")
    rows = [row for row in await business.tables.audit(ACME) if row.entity == "operation"]

    assert [row.actor for row in rows] == ["ann", "stripe"]
    assert "You will be charged" in str(rows[0].after)
    assert '"state":"done"' in str(rows[1].after)


async def test_what_somebody_changes_in_the_dashboard_stays() -> None:
    """The mirror follows, and no operation is made of it."""
    business = await world("2027-02-01", PRO)
    await change_quantity(business)
    await business.settle()
    rows = (await business.tables.mirror())["subscription_items"]

    assert [row["quantity"] for row in rows] == [2]
    assert await business.sql.plan_changes.open_before(business.clock.ms, 10) == []

"""What a change costs now: the golden amounts by hand, and any change as the simulator's own preview shows it."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from aggregators.instants import parse_instant_us
from aggregators.periods import anchored_period
from aggregators.proration import Licensed, prorated
from aggregators.rating import exact_amount, rating_of, rating_of_terms
from schemas.clock import DAY_MS
from schemas.periods import Interval
from schemas.prices import PriceTerms, PriceTier
from simulation.stripe_account import StripeAccount
from tests.worlds.clock import ManualClock

START_MS = 1_795_262_400_000
Change = tuple[int, int]


def at_ms(text: str) -> int:
    """The instant of a day, or of a day and a time."""
    return (parse_instant_us(f"{text.replace(' ', 'T')}Z" if " " in text else f"{text}T00:00:00Z") or 0) // 1_000


def item(amount: int, quantity: int, anchor: str, instant: str, interval: Interval = Interval.MONTH) -> Licensed:
    """An item whose periods are counted from an anchor."""
    period = anchored_period(at_ms(anchor), interval, 1, at_ms(instant))
    return Licensed(f"{amount} {interval}", quantity, Fraction(amount * quantity), *period)


# Anchor, instant, (price, quantity) before and after, and the amounts of the lines.
CHANGES: dict[str, tuple[str, str, Change, Change, list[int]]] = {
    "4 essential to pro": ("2027-02-01", "2027-02-10", (7900, 1), (14900, 1), [-5361, 10111]),
    "4 the design's example": ("2026-11-10", "2026-11-21", (9900, 1), (14900, 1), [-6270, 9437]),
    "5 by the second": ("2027-01-01", "2027-01-12 10:30:17", (2900, 1), (9900, 1), [-1830, 6247]),
    "6 half of a period": ("2027-04-01", "2027-04-16", (1000, 1), (2000, 1), [-500, 1000]),
    "7 immediate downgrade": ("2027-02-01", "2027-02-10", (14900, 1), (7900, 1), [-10111, 5361]),
    "8 back after a minute": ("2027-02-01", "2027-02-10 00:01:00", (14900, 1), (7900, 1), [-10110, 5361]),
    "9 three seats more": ("2027-03-01", "2027-03-11", (1000, 5), (1000, 8), [-3387, 5419]),
    "9 two seats fewer": ("2027-03-01", "2027-03-21", (1000, 8), (1000, 6), [-2839, 2129]),
    "10 one seat of two": ("2027-03-01", "2027-03-11", (1000, 5), (1000, 6), [-3387, 4065]),
    "10 the other seat": ("2027-03-01", "2027-03-11", (1000, 6), (1000, 7), [-4065, 4742]),
    "10 two seats at once": ("2027-03-01", "2027-03-11", (1000, 5), (1000, 7), [-3387, 4742]),
    "14 a month that ends early": ("2027-01-31", "2027-02-14", (9900, 1), (14900, 1), [-4950, 7450]),
    "14 yen": ("2027-04-01", "2027-04-21", (1500, 1), (3000, 1), [-500, 1000]),
    "nothing changes": ("2027-04-01", "2027-04-21", (1500, 1), (1500, 1), []),
    "part of a second": ("2027-04-01", "2027-04-21 00:00:00.999", (1500, 1), (3000, 1), [-500, 1000]),
}


@pytest.mark.parametrize(("anchor", "instant", "before", "after", "amounts"), CHANGES.values(), ids=CHANGES)
def test_a_change_within_a_period(anchor: str, instant: str, before: Change, after: Change, amounts: list[int]) -> None:
    was, will_be = item(*before, anchor, instant), item(*after, anchor, instant)

    assert [line.amount_minor for line in prorated({"a": was}, {"a": will_be}, at_ms(instant))] == amounts


def test_11_a_month_becomes_a_year() -> None:
    """The rest of June is credited, and a whole year is charged."""
    instant = "2027-06-11"
    was = item(14900, 2, "2027-06-01", instant)
    will_be = item(154800, 2, instant, instant, Interval.YEAR)
    lines = prorated({"a": was}, {"a": will_be}, at_ms(instant))

    assert [line.amount_minor for line in lines] == [-19867, 309600]
    assert lines[1].end_ms == at_ms("2028-06-11")


def test_12_a_location_in_a_year_of_366_days() -> None:
    instant = "2027-09-09"
    was, will_be = (item(154800, seats, "2027-06-11", instant, Interval.YEAR) for seats in (2, 3))

    assert [line.amount_minor for line in prorated({"a": was}, {"a": will_be}, at_ms(instant))] == [-233469, 350203]


def test_a_new_subscription_is_charged_as_a_whole() -> None:
    new = item(14900, 3, "2027-02-01", "2027-02-01")

    assert [line.amount_minor for line in prorated({}, {"a": new}, new.start_ms)] == [44700]


class Random:
    """A subscription with random prices at the simulator, and random changes of it."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clock = ManualClock(START_MS + self.chance.randrange(400 * DAY_MS // 1_000) * 1_000)
        self.stripe = StripeAccount(self.clock)
        self.intervals = [Interval.MONTH, self.chance.choice([Interval.YEAR, Interval.WEEK])]
        self.terms: dict[str, str] = {}
        self.prices = {interval: [self._price(interval) for _ in range(4)] for interval in self.intervals}
        mode = {"type": self.chance.choice(["flexible", "classic"])}
        # Free to paid is another rule, so the first item costs something.
        paid = self.stripe.price(amount=700)
        self.terms[paid] = json.dumps(self.stripe.call("GET /v1/prices/{price}", {}, paid))
        items = [{"price": paid, "quantity": 1}]
        items += [
            {"price": price, "quantity": self.chance.randint(1, 12)}
            for price in self.chance.sample(self.prices[Interval.MONTH][1:], self.chance.randint(0, 2))
        ]
        body = {"customer": self.stripe.customer(), "items": items, "billing_mode": mode}
        self.subscription = self.stripe.call("POST /v1/subscriptions", body)["id"]
        self.clock.advance(self.chance.randrange(80 * DAY_MS // 1_000) * 1_000)
        self.body = self.stripe.call("GET /v1/subscriptions/{subscription_exposed_id}", {}, self.subscription)
        self.items = {row["id"]: row for row in self.body["items"]["data"]}

    def _price(self, interval: Interval) -> str:
        chance = self.chance

        def amount() -> str:
            return str(Decimal(chance.randint(0, 9_000)).scaleb(-chance.choice((0, 0, 2))))

        params: dict[str, Any] = {
            "currency": "usd", "product_data": {"name": "x"}, "recurring": {"interval": interval.value},
        }  # fmt: skip
        kind = chance.choice(["unit", "unit", "included", "package"])
        if kind == "included":
            tiers = [
                {"up_to": chance.randint(1, 6), "unit_amount_decimal": "0"},
                {"up_to": "inf", "unit_amount_decimal": amount()},
            ]
            params |= {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}
        else:
            params["unit_amount_decimal"] = amount()
        if kind == "package":
            params["transform_quantity"] = {"divide_by": chance.randint(2, 5), "round": "up"}
        price = str(self.stripe.call("POST /v1/prices", params)["id"])
        body = self.stripe.call("GET /v1/prices/{price}", {"expand": ["tiers"]}, price)
        self.terms[price] = json.dumps(body)
        return price

    def licensed(self, price: str, quantity: int, start_s: int, end_s: int) -> Licensed:
        """An item as the product sees it."""
        amount = exact_amount(rating_of(self.terms[price]), quantity)
        return Licensed(price, quantity, amount, start_s * 1_000, end_s * 1_000)

    def change(self) -> tuple[list[int], list[int]]:
        """The amounts of one random change, which is not made: as the product computes and as the simulator previews
        them."""
        chance = self.chance
        first = next(iter(self.items.values()))
        start_s, end_s = first["current_period_start"], first["current_period_end"]
        is_restart = chance.random() < 0.25
        now_s = self.clock.ms // 1_000 if is_restart else chance.randrange(start_s, end_s)
        interval = self.intervals[1] if is_restart else Interval.MONTH
        if is_restart:
            start_s, end_s = (edge // 1_000 for edge in anchored_period(now_s * 1_000, interval, 1, now_s * 1_000))
        before = {
            name: self.licensed(
                row["price"]["id"], row["quantity"], row["current_period_start"], row["current_period_end"]
            )
            for name, row in self.items.items()
        }
        free = iter(chance.sample(self.prices[interval], len(self.prices[interval])))
        after, asked = dict(before), []
        for name in self.items:
            if is_restart or chance.random() < 0.7:
                price, quantity = next(free), chance.randint(1, 12)
                after[name] = self.licensed(price, quantity, start_s, end_s)
                asked.append({"id": name, "price": price, "quantity": quantity})
        if chance.random() < 0.5 or not asked:
            price, quantity = next(free), chance.randint(1, 12)
            after["new"] = self.licensed(price, quantity, start_s, end_s)
            asked.append({"price": price, "quantity": quantity})
        details: dict[str, Any] = {"items": asked, "proration_behavior": "always_invoice"}
        details |= {"billing_cycle_anchor": {"type": "now"}} if is_restart else {"proration_date": now_s}
        shown = self.stripe.call(
            "POST /v1/invoices/create_preview", {"subscription": self.subscription, "subscription_details": details}
        )
        ours = [line.amount_minor for line in prorated(before, after, now_s * 1_000)]
        return sorted(ours), sorted(line["amount"] for line in shown["lines"]["data"])


@pytest.mark.parametrize("seed", range(30))
def test_any_change_costs_what_the_simulator_previews(seed: int) -> None:
    world = Random(seed)
    compared = 0
    for number in range(80):
        ours, shown = world.change()
        if ours:
            # Without a change the preview is the next invoice.
            assert ours == shown, number
            compared += 1
    assert compared > 70


def test_the_terms_of_the_catalog_cost_what_the_price_at_stripe_does() -> None:
    plain = PriceTerms("p", "usd", "month", "", "exclusive", "1250.5", package=3)
    tiers = (PriceTier(5, "0"), PriceTier(None, "1200", "10"))
    tiered = PriceTerms("p", "usd", "month", "", "exclusive", None, tiers, "graduated")

    assert [exact_amount(rating_of_terms(plain), seats) for seats in (1, 3, 4)] == [
        Fraction("1250.5"), Fraction("1250.5"), Fraction(2501),
    ]  # fmt: skip
    assert [exact_amount(rating_of_terms(tiered), seats) for seats in (0, 5, 7)] == [0, 0, 2410]

"""Random histories of a subscription: all lines together bill each second once, whatever the billing mode."""

from __future__ import annotations

import calendar
import random
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest

from stripe_simulator import Simulator, SimulatorSettings
from stripe_simulator.mode import Call
from stripe_simulator.registry import ROUTES
from tests.services.stripe_wire import DAY_S, NOW_MS, NOW_S
from tests.worlds.clock import ManualClock

HISTORIES = 20
AMOUNTS = [(1000, "month"), (2700, "month"), (3333, "month"), (9900, "month"), (10000, "year"), (99000, "year")]
RUN = {route.name: route.run for route in ROUTES}


class History:
    """One subscription, and an independent sum of what its items cost by the second."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.simulator = Simulator(ManualClock(NOW_MS), SimulatorSettings(seed=seed))
        self.now_s = NOW_S
        self.exact = Fraction(0)
        self.clock = self.call("POST /v1/test_helpers/test_clocks", {"frozen_time": NOW_S})["id"]
        self.amounts = {}
        for amount, interval in AMOUNTS:
            price = {"currency": "usd", "unit_amount": amount, "product_data": {"name": "x"}}
            body = self.call("POST /v1/prices", {**price, "recurring": {"interval": interval}})
            self.amounts[body["id"]] = amount
        self.monthly = list(self.amounts)[:4]
        customer = self.call("POST /v1/customers", {"test_clock": self.clock})["id"]
        card = self.call("POST /v1/payment_methods/{payment_method}/attach", {"customer": customer}, "pm_card_visa")
        settings = {"invoice_settings": {"default_payment_method": card["id"]}}
        self.call("POST /v1/customers/{customer}", settings, customer)
        params = {"customer": customer, "billing_mode": {"type": self.random.choice(["flexible", "classic"])}}
        item = {"price": self.random.choice(self.monthly), "quantity": self.random.randint(1, 5)}
        self.subscription = self.call("POST /v1/subscriptions", {**params, "items": [item]})["id"]

    def call(self, route: str, params: dict[str, Any], *ids: str) -> dict[str, Any]:
        """Execute a route with converted parameters."""
        mode = self.simulator.test
        with mode.journal.transaction():
            return RUN[route](mode, Call("/", params, ids))

    def items(self) -> list[dict[str, Any]]:
        """The items that the subscription has now."""
        body = self.call("GET /v1/subscriptions/{subscription_exposed_id}", {}, self.subscription)
        return list(body["items"]["data"])

    def advance(self, seconds: int) -> None:
        """Let time pass, and add up what each item costs until then."""
        while seconds:
            ends = [item["current_period_end"] for item in self.items()]
            step = min(seconds, min(ends) - self.now_s)
            for item in self.items():
                start = self.whole_start(item)
                share = Fraction(step, item["current_period_end"] - start)
                self.exact += share * self.amounts[item["price"]["id"]] * item["quantity"]
            self.now_s += step
            seconds -= step
            path = "POST /v1/test_helpers/test_clocks/{test_clock}/advance"
            self.call(path, {"frozen_time": self.now_s}, self.clock)
            self.simulator.catch_up()

    def whole_start(self, item: dict[str, Any]) -> int:
        """Where the whole period of an item begins: an item that was added inside a period has a later start."""
        body = self.call("GET /v1/subscriptions/{subscription_exposed_id}", {}, self.subscription)
        anchor = datetime.fromtimestamp(body["billing_cycle_anchor"], UTC)
        end = datetime.fromtimestamp(item["current_period_end"], UTC)
        months = 1 if item["price"]["recurring"]["interval"] == "month" else 12
        year, month = divmod(end.year * 12 + end.month - 1 - months, 12)
        day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
        return calendar.timegm(end.replace(year=year, month=month + 1, day=day).timetuple())

    def change(self) -> None:
        """Change the items in one of the ways that Stripe prorates."""
        items, dice = self.items(), self.random
        item = dice.choice(items)["id"]
        wanted: dict[str, Any] = {"id": item, "quantity": dice.randint(1, 9)}
        way = dice.choice(["quantity", "price", "interval", "add", "remove"])
        if way == "price":
            wanted = {"id": item, "price": dice.choice(self.monthly)}
        elif way == "interval" and len(items) == 1:
            wanted = {"id": item, "price": dice.choice(list(self.amounts))}
        elif way == "add" and all(other["price"]["recurring"]["interval"] == "month" for other in items):
            wanted = {"price": dice.choice(self.monthly), "quantity": dice.randint(1, 3)}
        elif way == "remove" and len(items) > 1:
            wanted = {"id": item, "deleted": True}
        params: dict[str, Any] = {"proration_behavior": dice.choice(["create_prorations", "always_invoice"])}
        if way == "interval" or dice.random() < 0.15:
            params["billing_cycle_anchor"] = {"type": "now"}
        self.call("POST /v1/subscriptions/{subscription_exposed_id}", {"items": [wanted], **params}, self.subscription)

    def lines(self) -> list[int]:
        """The amounts of all invoice lines."""
        store = self.simulator.test.store
        bodies = [store.get("invoice_lines", f"{invoice['id']}/lines") or {} for invoice in store.newest("invoice")]
        return [line["amount"] for body in bodies for line in body["data"]]


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_each_second_is_billed_once(seed: int) -> None:
    """Up to half a cent for each line. The cancellation at the end credits the unused time."""
    history = History(seed)
    for _ in range(history.random.randint(2, 8)):
        history.advance(history.random.choice([1, 60, history.random.randint(1, 45 * DAY_S)]))
        history.change()
    history.advance(history.random.randint(1, 40 * DAY_S))
    end = {"prorate": True, "invoice_now": True}
    history.call("DELETE /v1/subscriptions/{subscription_exposed_id}", end, history.subscription)

    lines = history.lines()
    assert abs(sum(lines) - history.exact) <= Fraction(len(lines), 2)

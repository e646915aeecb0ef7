"""`python -m tests.scenarios.histories [--histories 5000] [--seed 1]`: random lives of subscriptions, recomputed.

A history subscribes, perhaps with a trial, changes prices and seats, adds and removes items, schedules, redeems
coupons, restarts periods, pauses and resumes, reports usage in time and late, loses and replaces cards, cancels, and
lets time pass, all through stripe-python. `tests.scenarios.billing_model` follows with arithmetic of its own: what is
billed of each item from one second to another, which usage is billed, and when an invoice is charged. It shares no code
with the simulator. During and after a history

- the lines of all invoices and the pending ones add up to the model's, to the cent, and to the price of the billed
  seconds, to half a cent for each line;
- every second of every licensed item is billed as often as the model says: once, or not at all;
- every span of usage is billed once, with what was reported until the invoice was final;
- every invoice was charged as often, and paid when, the retry plan and the cards say;
- what was invoiced was charged or stands on the customer's balance;
- the journal replays to the same objects, jobs, usage and times.
"""

from __future__ import annotations

import argparse
import asyncio
import calendar
import random
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from stripe_simulator import Simulator, SimulatorSettings, payments
from stripe_simulator.engine.collection import RetryPolicy
from tests.scenarios.billing_model import DAY_S, HARD_DECLINE, Item, Metered, Model, Payments, Rate, Report
from tests.services.stripe import check_shapes, running
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_shapes import problems
from tests.services.stripe_wire import NOW_MS
from tests.worlds.clock import ManualClock

# Nothing is changed in the last two hours of a period: a credit of 0 cents has no sign.
QUIET_S: Final = 7_200
STEPS: Final = 14
MONTHLY: Final = (1_000, 2_900, 4_900, 7_900, 14_900)
# Percentages that divide every price here: no cent is left over.
PERCENTAGES: Final = (10, 20, 50)
# Cents for a unit. A history with coupons takes whole tens: Stripe does not say how a discount of a line is rounded.
TENS: Final[tuple[Rate, ...]] = (
    ((None, Fraction(10)),),
    ((None, Fraction(20)),),
    ((1_000, Fraction(0)), (None, Fraction(10))),
)
ODD: Final[tuple[Rate, ...]] = (
    ((None, Fraction("0.05")),),
    ((None, Fraction("2.375")),),
    ((500, Fraction(0)), (10_000, Fraction("0.2")), (None, Fraction("0.15"))),
)
SMART_DAYS: Final = (1, 3, 5, 7, 9, 11, 13, 14)


class History:
    """One random history. Each step is a call or two of stripe-python, and the same step of the model."""

    def __init__(self, seed: int) -> None:
        draw = self.random = random.Random(seed)
        self.sdk: Any = None
        self.done: list[str] = []
        self.now = calendar.timegm((2027, 1, 1, 0, 0, 0)) + draw.randrange(365 * DAY_S)
        if draw.random() < 0.3:
            self.now -= self.now % 60
        self.model = Model(self.now)
        self.prices: dict[object, str] = {}
        self.clock = self.customer = self.subscription = self.meter = ""
        self.schedule: tuple[str, str, int] | None = None
        self.is_classic = draw.random() < 0.2
        self.has_meter = draw.random() < 0.5
        self.has_coupons = not self.is_classic and draw.random() < 0.7
        days = SMART_DAYS if draw.random() < 0.5 else tuple(sorted(draw.sample(range(1, 15), draw.randrange(1, 6))))
        # The invoices of an unpaid subscription stay drafts: late usage of a draft is never final.
        ends = draw.choice(("canceled", "past_due") if self.has_meter else ("canceled", "past_due", "unpaid"))
        self.payments = Payments(days, ends, draw.choice(("open", "uncollectible")))

    def settings(self, seed: int) -> SimulatorSettings:
        """The account of this history."""
        policy = RetryPolicy(self.payments.days, self.payments.ends, self.payments.gives_up)  # type: ignore[arg-type]  # texts
        return SimulatorSettings(seed=seed, summary_lag_s=0, retry_policy=policy)

    async def run(self) -> None:
        """Live the history."""
        await self._subscribe()
        for _ in range(self.random.randrange(3, STEPS)):
            await self._step()
            if self.model.ends:
                break
        await self._advance(self.now + self.random.randrange(QUIET_S, 40 * DAY_S))

    async def check(self) -> None:
        """Compare every line with the model."""
        lines = await self._lines()
        usage = self.model.usage()
        billed = sum(amount for item, amount, _, _, _ in lines if item in self.model.items)
        assert billed == self.model.total, "the lines do not add up"
        assert abs(billed - self.model.value()) <= Fraction(self.model.lines, 2), "not the price of the seconds"
        metered: Counter[tuple[str, int, int]] = Counter()
        counts: dict[str, Counter[int]] = {key: Counter() for key in self.model.items}
        for item, amount, start, end, is_proration in lines:
            if item in self.model.metered:
                metered[item, start, end] += amount
            elif amount:
                sign = -1 if is_proration and amount < 0 else 1
                counts[item][start] += sign
                counts[item][end] -= sign
        assert {key: amount for key, amount in metered.items() if amount} == usage, "not the usage, once"
        for key, model in self.model.items.items():
            steps: Counter[int] = Counter()
            for span in model.spans:
                steps[span.start] += 1
                steps[span.end] -= 1
            assert _steps(counts[key]) == _steps(steps), f"seconds of {key} are billed twice or not at all"
        await self._check_balance()

    async def _check_balance(self) -> None:
        bodies = [body for body in self._stored("invoice") if body["status"] not in ("draft", "void")]
        kept = sum(body["total"] - body["amount_due"] for body in bodies)
        balance = (await self.sdk("v1.customers.retrieve", self.customer))["balance"]
        assert balance == kept, "what was invoiced was neither charged nor kept on the balance"

    def _check_payments(self) -> None:
        """Each final invoice against the retry plan, and the status of the subscription."""
        bodies = [body for body in self._stored("invoice") if body["status"] != "draft"]
        is_over = self.model.ends and self.model.end <= self.now
        self.payments.pass_time(bodies, self.model.end if is_over else self.now)
        if self.payments.ended_at or is_over or self.model.is_over:
            # Stripe does not say whether the open invoices of a subscription that has ended are retried.
            return
        for body in bodies:
            wanted = self.payments.expected(body)
            found = {name: body[name] for name in wanted if name != "paid_at"}
            found["paid_at"] = body["status_transitions"]["paid_at"]
            assert found == wanted, f"the invoice of {body['created']} is collected otherwise: {found}, not {wanted}"

    def _check_status(self) -> None:
        status = self._stored("subscription")[-1]["status"]
        if self.model.is_over or self.model.is_paused or self.model.trial_end:
            wanted = {"canceled" if self.model.is_over else "paused" if self.model.is_paused else "trialing"}
        elif len(self.payments.paid) == len(self.payments.attempts):
            wanted = {"active"}
        else:
            wanted = {"active", "past_due", self.payments.ends}
        assert status in wanted, f"the subscription is {status}, not {wanted}"

    async def _step(self) -> None:
        model, draw = self.model, self.random
        if not model.is_paused and model.end - self.now < QUIET_S:
            await self._advance(model.end + draw.randrange(QUIET_S))
        if self.now == model.start and not model.ends:
            # In the first second of a period, a new item is billed for the whole period.
            await self._advance(self.now + draw.randrange(1, QUIET_S))
        if model.ends:
            return
        step = draw.choice(self._steps())
        self.done.append(f"{datetime.fromtimestamp(self.now, UTC):%Y-%m-%d %H:%M:%S} {step.__name__.strip('_')}")
        await step()
        self._check_payments()
        self._check_status()

    def _steps(self) -> list[Any]:
        """What can happen now, as often as it is likely."""
        model, rare = self.model, self.random.random() < 0.3
        # A schedule takes off the discounts that its phases do not name.
        steps = [self._wait, self._wait, self._wait if self.schedule else self._coupon]
        if self.has_meter:
            steps += [self._use, self._use, self._use, self._use_late, self._use_late]
        if len(self.payments.paid) < len(self.payments.attempts) or not self.payments.works:
            steps += [self._new_card, self._new_card]
        else:
            steps += [self._bad_card, self._decline]
        if model.is_paused:
            return [*steps, self._resume, self._resume, *[self._cancel] * rare]
        steps += [self._preview]
        if self.schedule:
            return [*steps, self._release]
        steps += [self._change, self._change, self._seats, self._seats, self._add, self._remove]
        if self.has_meter:
            steps += [self._swap_metered, self._other_metered]
        if model.trial_end:
            steps += [self._trial]
        else:
            steps += [self._plan_ahead]
            # Whether classic mode bills the usage before a restart is not known.
            steps += [self._restart] * (not self.is_classic or not self.has_meter)
            is_paid = all(body["status"] == "paid" for body in self._stored("invoice"))
            # Stripe does not say whether open invoices are collected during a pause.
            if not self.is_classic and is_paid and self.payments.works:
                steps += [self._pause, self._pause]
        return [*steps, *[self._cancel, self._cancel_later] * rare]

    async def _subscribe(self) -> None:
        draw, sdk = self.random, self.sdk
        self.clock = (await sdk("v1.test_helpers.test_clocks.create", {"frozen_time": self.now}))["id"]
        self.customer = (await sdk("v1.customers.create", {"test_clock": self.clock}))["id"]
        await self._take_card("pm_card_visa")
        params: dict[str, Any] = {"billing_mode": {"type": "classic"}} if self.is_classic else {}
        if draw.random() < 0.3:
            params["default_payment_method"] = self.payments.own = await self._attach("pm_card_mastercard")
        if draw.random() < 0.3 and self.has_coupons:
            params["discounts"] = [{"coupon": await self._new_coupon()}]
        if draw.random() < 0.25:
            params["trial_end"] = self.model.trial_end = self.now + draw.randrange(2 * QUIET_S, 40 * DAY_S)
        wanted = [(draw.choice(MONTHLY), draw.randrange(1, 9)) for _ in range(draw.randrange(1, 4))]
        items: list[dict[str, Any]] = [
            {"price": await self._price(cents), "quantity": seats} for cents, seats in wanted
        ]
        rate = self._rate()
        if self.has_meter:
            body = {"display_name": "Calls", "event_name": "calls", "default_aggregation": {"formula": "sum"}}
            self.meter = (await sdk("v1.billing.meters.create", body))["id"]
            items.append({"price": await self._metered_price(rate)})
        body = await sdk("v1.subscriptions.create", {"customer": self.customer, "items": items, **params})
        self.subscription = body["id"]
        for row, (cents, seats) in zip(body["items"]["data"], wanted, strict=False):
            self.model.items[row["id"]] = Item(cents * seats)
        for row in body["items"]["data"][len(wanted) :]:
            self.model.metered[row["id"]] = Metered(rate, self.now)
        if not self.model.trial_end:
            self.model.bill_period()

    async def _wait(self) -> None:
        if self.has_meter:
            await self._use()
        await self._advance(
            self.now + self.random.choice((3_600, 10 * DAY_S, 45 * DAY_S)) + self.random.randrange(DAY_S)
        )

    async def _change(self) -> None:
        key, _, seats = await self._any_item()
        cents = self.random.choice(MONTHLY) * self._factor()
        await self._update(key, cents, seats)

    async def _seats(self) -> None:
        key, cents, seats = await self._any_item()
        await self._update(key, cents, max(1, seats + self.random.choice((-3, -1, 1, 2, 10))))

    async def _update(self, key: str, cents: int, seats: int) -> None:
        behavior = self._behavior()
        items = [{"id": key, "price": await self._price(cents), "quantity": seats}]
        await self._subscription({"items": items, "proration_behavior": behavior})
        self.model.change(key, cents * seats, self.now, prorated=behavior != "none")

    async def _add(self) -> None:
        cents, seats, behavior = (
            self.random.choice(MONTHLY) * self._factor(),
            self.random.randrange(1, 5),
            self._behavior(),
        )
        body = {"subscription": self.subscription, "price": await self._price(cents), "quantity": seats}
        row = await self.sdk("v1.subscription_items.create", {**body, "proration_behavior": behavior})
        self.model.change(row["id"], cents * seats, self.now, prorated=behavior != "none")

    async def _remove(self) -> None:
        if sum(item.is_live for item in self.model.items.values()) > 1:
            key, _, _ = await self._any_item()
            behavior = self._behavior()
            await self._subscription({"items": [{"id": key, "deleted": True}], "proration_behavior": behavior})
            self.model.remove(key, self.now, prorated=behavior != "none")

    async def _restart(self) -> None:
        """A new period now: the other interval, or the same one."""
        months = self.random.choice((1, 1, 12))
        items, cents, rates = [], {}, {}
        for row in await self._rows():
            key = row["id"]
            if key in self.model.metered:
                rates[key] = self._rate()
                items.append({"id": key, "price": await self._metered_price(rates[key], months)})
            else:
                amount = self.random.choice(MONTHLY) * (10 if months == 12 else 1)
                items.append({"id": key, "price": await self._price(amount, months), "quantity": row["quantity"]})
                cents[key] = amount * row["quantity"]
        anchor = {"billing_cycle_anchor": {"type": "now"}, "proration_behavior": "always_invoice"}
        await self._subscription({"items": items, **anchor})
        self.model.restart(self.now, months, cents, rates)

    async def _plan_ahead(self) -> None:
        """Another price of one item from the next period on, by a schedule."""
        key, _, seats = await self._any_item()
        cents = self.random.choice(MONTHLY) * self._factor()
        created = await self.sdk("v1.subscription_schedules.create", {"from_subscription": self.subscription})
        now = created["phases"][0]
        first = {name: now[name] for name in ("start_date", "end_date")}
        first["items"] = [{name: row[name] for name in ("price", "quantity") if name in row} for row in now["items"]]
        then = [
            {"price": await self._price(cents) if row["id"] == key else row["price"]["id"]}
            | ({"quantity": row["quantity"]} if "quantity" in row else {})
            for row in await self._rows()
        ]
        if len({row["price"] for row in [*then, *first["items"]]}) < len(then) + 1:
            # Two items of one price, or nothing new: which item is meant would be a guess.
            await self.sdk("v1.subscription_schedules.release", created["id"])
            return
        kept = {"discounts": [{"discount": each["discount"]} for each in now["discounts"]]}
        phases = [first | kept, {"items": then} | kept]
        await self.sdk("v1.subscription_schedules.update", created["id"], {"phases": phases})
        self.schedule = (created["id"], key, cents * seats)

    async def _release(self) -> None:
        assert self.schedule is not None
        await self.sdk("v1.subscription_schedules.release", self.schedule[0])
        self.schedule = None

    async def _coupon(self) -> None:
        """Redeem a coupon, or take the discount away. What is billed stays as it is."""
        if not self.has_coupons:
            return
        if self.random.random() < 0.3:
            self.model.percent_off, self.model.is_once = 0, False
            await self._subscription({"discounts": ""})
        else:
            await self._subscription({"discounts": [{"coupon": await self._new_coupon()}]})

    async def _preview(self) -> None:
        """A preview changes nothing."""
        key, _, seats = await self._any_item()
        details = {"items": [{"id": key, "quantity": seats + 1}], "proration_behavior": "always_invoice"}
        body = {"subscription": self.subscription, "subscription_details": details}
        await self.sdk("v1.invoices.create_preview", body)

    async def _trial(self) -> None:
        """The trial ends now, or at another time."""
        if self.random.random() < 0.5:
            await self._subscription({"trial_end": "now"})
            self.model.end_trial(self.now)
        else:
            self.model.trial_end = self.now + self.random.randrange(QUIET_S, 30 * DAY_S)
            await self._subscription({"trial_end": self.model.trial_end})

    async def _use(self) -> None:
        """Report usage of any minute that Stripe accepts. Some reports are sent twice, and count once."""
        for _ in range(self.random.randrange(1, 4)):
            await self._report(self.now + self.random.choice((300, -DAY_S, -34 * DAY_S)))

    async def _use_late(self) -> None:
        """Report usage of the ended period, before or after the invoice of the period is final."""
        if self.model.is_paused:
            return
        boundary, late_s = self.model.end, self.random.choice((900, 3_599, 3_600, DAY_S)) - self.random.randrange(900)
        await self._advance(boundary + late_s)
        for _ in range(self.random.randrange(1, 3)):
            await self._report(boundary - self.random.randrange(1, 20 * DAY_S), boundary)

    async def _report(self, one_end: int, other_end: int = 0) -> None:
        """Report usage between two instants, the second of which is now by default, at a whole minute."""
        earliest, latest = sorted((one_end, other_end or self.now))
        # The simulator knows usage by minute.
        moment = self.random.randrange(-(-earliest // 60), max(-(-earliest // 60), (latest - 1) // 60) + 1) * 60
        units = self.random.choice((3, 400, 3_000, 25_000)) * self.random.randrange(1, 4)
        if self.random.random() < 0.15:
            # A correction. A negative sum bills 0.
            units = -min(units, 500)
        payload = {"stripe_customer_id": self.customer, "value": str(units)}
        event = {"event_name": "calls", "payload": payload, "timestamp": moment}
        event["identifier"] = f"report {len(self.model.reports)}"
        await self.sdk("v1.billing.meter_events.create", event)
        self.model.reports.append(Report(moment, self.now, units))
        if self.random.random() < 0.2:
            error = await self.sdk.error("v1.billing.meter_events.create", event)
            assert "already exists" in error["message"], error

    async def _swap_metered(self) -> None:
        """Another metered price. Classic mode never bills the earlier usage."""
        key = await self._metered_row()
        rate, behavior = self._rate(), self._usage_behavior()
        if not key or rate == self.model.metered[key].rate:
            return
        items = [{"id": key, "price": await self._metered_price(rate)}]
        await self._subscription({"items": items, "proration_behavior": behavior})
        self.model.close_usage(self.now, self.now, billed=not self.is_classic and behavior != "none", only=key)
        self.model.metered[key].rate = rate

    async def _other_metered(self) -> None:
        """Remove the metered item, or add a new one that counts from now on."""
        key, behavior = await self._metered_row(), self._usage_behavior()
        if key:
            await self._subscription({"items": [{"id": key, "deleted": True}], "proration_behavior": behavior})
            self.model.close_usage(self.now, self.now, billed=not self.is_classic and behavior != "none", only=key)
            self.model.metered[key].is_live = False
        else:
            rate = self._rate()
            body = {"subscription": self.subscription, "price": await self._metered_price(rate)}
            row = await self.sdk("v1.subscription_items.create", body)
            self.model.metered[row["id"]] = Metered(rate, self.now)

    async def _bad_card(self) -> None:
        """The card that is charged is replaced by one that is declined."""
        card = await self._attach("pm_card_chargeCustomerFail")
        self.payments.refused.add(card)
        if self.payments.own:
            await self._subscription({"default_payment_method": card})
            self.payments.own = card
        else:
            await self._make_default(card)

    async def _decline(self) -> None:
        """The next charges are declined. After a hard decline, only another card is charged for that invoice."""
        code, times = self.random.choice(("insufficient_funds", HARD_DECLINE)), self.random.randrange(1, 4)
        payments.decline_next(self.sdk.simulator.test, self.customer, code, times)
        self.payments.declines += [code] * times

    async def _new_card(self) -> None:
        """A card that works. Retries charge the subscription's own card, so it must be replaced too."""
        await self._take_card("pm_card_visa")
        if self.payments.own and self.random.random() < 0.7:
            self.payments.own = await self._attach("pm_card_mastercard")
            await self._subscription({"default_payment_method": self.payments.own})
        if self.random.random() < 0.5 and self.payments.works:
            for body in self._stored("invoice"):
                if body["status"] == "open":
                    await self._pay(body["id"])

    async def _pay(self, invoice: str) -> None:
        await self.sdk("v1.invoices.pay", invoice)
        self.payments.pay(invoice, self.now)

    async def _pause(self) -> None:
        """No invoices until the subscription resumes. The usage until now is billed."""
        params: dict[str, Any] = {}
        if self.has_coupons or self.random.random() < 0.5:
            params["invoicing_behavior"] = "invoice"
        await self.sdk("v1.subscriptions.pause", self.subscription, params)
        self.model.pause(self.now)

    async def _resume(self) -> None:
        """At once, or when the invoice is paid within 23 hours: the period begins with the request."""
        if not self.payments.works:
            return
        if self.random.random() < 0.5:
            params = {"payment_behavior": "resume_on_payment_success"}
            await self.sdk("v1.subscriptions.resume", self.subscription, params)
            self.model.resume(self.now)
            return
        asked_at = self.now
        body = await self.sdk("v1.subscriptions.resume", self.subscription, {})
        if body["status"] == "paused":
            self.payments.by_hand.add(body["latest_invoice"])
            if self.random.random() < 0.5:
                await self._advance(self.now + self.random.randrange(1, 22 * 3_600))
            await self._pay(body["latest_invoice"])
        self.model.resume(asked_at)

    async def _cancel(self) -> None:
        prorated, invoice_now = self.random.random() < 0.5, self.random.random() < 0.5
        params = {"prorate": prorated, "invoice_now": invoice_now}
        await self.sdk("v1.subscriptions.cancel", self.subscription, params)
        self.model.cancel(self.now, prorated=prorated, usage=invoice_now)

    async def _cancel_later(self) -> None:
        await self._subscription({"cancel_at_period_end": True})
        self.model.ends = True

    async def _advance(self, to: int) -> None:
        self.now = to
        await self.sdk("v1.test_helpers.test_clocks.advance", self.clock, {"frozen_time": to})
        self._check_payments()
        ended_at = self.payments.ended_at
        until = ended_at or to
        if self.schedule and self.model.end <= until and not self.model.ends:
            _, key, cents = self.schedule
            self.model.change(key, cents, self.model.end, prorated=False)
            await self._until_scheduled()
        self.model.pass_time(until)
        if ended_at and not self.model.is_over:
            # The usage that is not invoiced is lost.
            self.model.cancel(ended_at, prorated=False, usage=False)
        self._check_status()

    async def _until_scheduled(self) -> None:
        """The phase lasts one period, and the schedule is over then."""
        assert self.schedule is not None
        body = await self.sdk("v1.subscription_schedules.retrieve", self.schedule[0])
        if body["status"] == "active":
            await self.sdk("v1.subscription_schedules.release", self.schedule[0])
        self.schedule = None

    async def _new_coupon(self) -> str:
        percent, duration = self.random.choice(PERCENTAGES), self.random.choice(("forever", "once"))
        self.model.percent_off, self.model.is_once = percent, duration == "once"
        return str((await self.sdk("v1.coupons.create", {"percent_off": percent, "duration": duration}))["id"])

    async def _price(self, cents: int, months: int = 0) -> str:
        return await self._new_price((cents, months or self.model.months), {"unit_amount": cents})

    async def _metered_price(self, rate: Rate, months: int = 0) -> str:
        if len(rate) == 1:
            amounts: dict[str, Any] = {"unit_amount_decimal": str(float(rate[0][1]))}
        else:
            tiers = [{"up_to": last or "inf", "unit_amount_decimal": str(float(each))} for last, each in rate]
            amounts = {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}
        metered = {"usage_type": "metered", "meter": self.meter}
        return await self._new_price((rate, months or self.model.months), amounts, **metered)

    async def _new_price(self, key: tuple[Any, int], amounts: dict[str, Any], **recurring: str) -> str:
        if key not in self.prices:
            recurring |= {"interval": "year" if key[1] == 12 else "month"}
            amounts |= {"currency": "usd", "product_data": {"name": "Plan"}, "recurring": recurring}
            self.prices[key] = (await self.sdk("v1.prices.create", amounts))["id"]
        return self.prices[key]

    async def _take_card(self, card: str) -> None:
        await self._make_default(await self._attach(card))

    async def _attach(self, card: str) -> str:
        return str((await self.sdk("v1.payment_methods.attach", card, {"customer": self.customer}))["id"])

    async def _make_default(self, method: str) -> None:
        settings = {"invoice_settings": {"default_payment_method": method}}
        await self.sdk("v1.customers.update", self.customer, settings)
        self.payments.default = method

    async def _subscription(self, params: dict[str, Any]) -> None:
        await self.sdk("v1.subscriptions.update", self.subscription, params)

    async def _rows(self) -> list[dict[str, Any]]:
        body = await self.sdk("v1.subscription_items.list", {"subscription": self.subscription, "limit": 100})
        return list(body["data"])

    async def _any_item(self) -> tuple[str, int, int]:
        """(id, cents for a seat, seats) of a licensed item."""
        row = self.random.choice([row for row in await self._rows() if row["id"] in self.model.items])
        return row["id"], row["price"]["unit_amount"], row["quantity"]

    async def _metered_row(self) -> str:
        """The id of the metered item, or nothing."""
        return next((row["id"] for row in await self._rows() if row["id"] in self.model.metered), "")

    def _stored(self, kind: str) -> list[dict[str, Any]]:
        """The customer's objects of a kind, oldest first, without the cost of the SDK."""
        self.sdk.simulator.catch_up()
        return list(self.sdk.simulator.test.store.newest(kind, "customer", self.customer))[::-1]

    def _behavior(self) -> str:
        return self.random.choice(("create_prorations", "always_invoice", "none")[: 2 if self.is_classic else 3])

    def _usage_behavior(self) -> str:
        """With coupons nothing is left pending: the discount of pending usage is that of its invoice."""
        return self.random.choice(("always_invoice", "none", "create_prorations")[: 2 if self.has_coupons else 3])

    def _rate(self) -> Rate:
        return self.random.choice(TENS if self.has_coupons else ODD)

    def _factor(self) -> int:
        return 10 if self.model.months == 12 else 1

    async def _lines(self) -> list[tuple[str, int, int, int, bool]]:
        """(item, cents after discounts, start, end, is a proration) of every line and of every pending invoice item."""
        lines = []
        for invoice in self._stored("invoice"):
            rows = await self.sdk("v1.invoices.line_items.list", invoice["id"], {"limit": 100})
            for row in rows["data"]:
                details = row["parent"][row["parent"]["type"]]
                amount = row["amount"] - sum(cut["amount"] for cut in row["discount_amounts"])
                lines.append((details["subscription_item"], amount, row, details["proration"]))
        pending = await self.sdk("v1.invoice_items.list", {"customer": self.customer, "pending": True, "limit": 100})
        for row in pending["data"]:
            owner = row["parent"]["subscription_details"]["subscription_item"]
            lines.append((owner, row["amount"], row, row["proration"]))
        return [
            (item, amount, row["period"]["start"], row["period"]["end"], proration)
            for item, amount, row, proration in lines
        ]


def _steps(steps: Counter[int]) -> dict[int, int]:
    return {moment: step for moment, step in steps.items() if step}


def contents(simulator: Simulator) -> dict[str, Any]:
    """All that a journal must bring back."""
    mode = simulator.test
    kinds = {kind: dict(rows.objects) for kind, rows in mode.store._collections.items() if rows.objects}
    clocks = [body["id"] for body in mode.store.newest("test_helpers.test_clock")]
    times = [mode.now_ms(clock) for clock in clocks]
    return {**kinds, "jobs": mode.clockwork.waiting(), "usage": mode.usage.events, "times": times}


async def live(seed: int, folder: Path) -> int:
    """One history with all checks. Returns the number of its lines. Raises `AssertionError` with the replay command."""
    path = folder / f"{seed}.journal"
    history = History(seed)
    settings = history.settings(seed)
    clock = ManualClock(NOW_MS)
    simulator = Simulator(clock, settings, path, problems)
    sdk = history.sdk = Sdk(simulator, clock)
    try:
        async with running(simulator):
            await history.run()
            await history.check()
        simulator.close()
        replayed = Simulator(clock, settings, path)
        replayed.close()
        assert contents(replayed) == contents(simulator), "the journal replays to other objects"
        check_shapes(simulator.violations, simulator.checked)
    except Exception as error:
        steps = "\n".join(history.done)
        command = f"python -m tests.scenarios.histories --seed {seed} --histories 1"
        raise AssertionError(f"{error}\n{steps}\nreplay: {command}") from error
    finally:
        simulator.close()
        await sdk.close()
        path.unlink(missing_ok=True)
    return history.model.lines


async def _main(histories: int, seed: int) -> None:
    began, lines, failures = time.perf_counter(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(histories):
            try:
                lines += await live(seed + number, Path(folder))
            except AssertionError as failure:
                failures += 1
                print(failure)
            if number % 500 == 499:
                sys.stderr.write(f"{number + 1} histories\n")
    seconds = time.perf_counter() - began
    print(f"{histories - failures} of {histories} histories from seed {seed} agree: {lines} lines, {seconds:.0f} s")
    sys.exit(failures > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Random histories of subscriptions, recomputed by seconds.")
    parser.add_argument("--histories", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.histories, arguments.seed))

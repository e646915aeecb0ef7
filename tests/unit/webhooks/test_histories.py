"""Histories of subscriptions whose events are permuted, doubled and dropped, with crashes and two processes at once.

At the end the mirror is what Stripe lists, the bindings in the log are those of a deployment that got every event in
order, and every event is processed once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aggregators.billing_events import resync_record
from aggregators.bindings import customer_at, cut_in_the_past, with_binding
from aggregators.partitioning import partition_of
from aggregators.periods import period_at
from pipeline.webhooks.binding_outbox import BindingOutbox
from pipeline.webhooks.held import append_held
from schemas.billing_events import ObjectKind, ObjectName, Via
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import Fenced, Transient
from schemas.periods import AccountState, Billing
from stripe_simulator.errors import ApiError
from tests.worlds.billing import BillingWorld
from tests.worlds.crashing import Crash, Crashing
from tests.worlds.reconciler import START_MS

HISTORIES = 24
STEPS = 12
ACCOUNTS = ("acme", "globex", "initech")


class Player:
    """Plays one history on an account at Stripe; equal seeds play equal histories."""

    def __init__(self, world: BillingWorld, seed: int) -> None:
        self.world = world
        self.dice = random.Random(seed)
        stripe = world.stripe
        meter = stripe.meter()
        self.monthly, self.other = stripe.price(meter=meter), stripe.price(meter=meter, amount=7)
        self.yearly, self.flat = stripe.price(meter=meter, interval="year"), stripe.price()
        coupon = {"percent_off": 20, "duration": "repeating", "duration_in_months": 1}
        self.coupon = str(stripe.call("POST /v1/coupons", coupon)["id"])
        self.payers: set[str] = set()
        self.customers: dict[str, str] = {}
        self.subscriptions: dict[str, str] = {}
        self.schedules: dict[str, str] = {}

    def step(self) -> Callable[[], Awaitable[None]]:
        """The next thing that happens. What Stripe refuses does not happen."""
        account = self.dice.choice(ACCOUNTS)
        does, number = self.dice.choice(self.ACTIONS), self.dice.random()

        async def happen() -> None:
            if account not in self.customers:
                await self.sign_up(account, number)
                return
            if does is not Player.wait and account not in self.subscriptions:
                self.subscribe(account, number)
                return
            with contextlib.suppress(ApiError):
                does(self, account, number)

        return happen

    async def sign_up(self, account: str, number: float) -> None:
        """A customer, linked before or after the subscription begins. Some have a card whose payments are disputed."""
        card = "pm_card_createDispute" if number < 0.2 else "pm_card_visa" if number < 0.8 else ""
        self.customers[account] = self.world.stripe.customer(card)
        self.payers |= {account} if card else set()
        if number > 0.3:
            await self.world.link(account, self.customers[account])
        self.subscribe(account, number)
        if number <= 0.3:
            await self.world.link(account, self.customers[account])

    def subscribe(self, account: str, number: float) -> None:
        """A subscription with or without a trial; a deleted customer gets none."""
        body = self.world.stripe.read(ObjectName(ObjectKind.CUSTOMER, self.customers[account])) or {}
        if body.get("deleted"):
            return
        trial = {"trial_period_days": 1 + round(number * 20)} if number > 0.5 else {}
        can_pay = account in self.payers and number < 0.4
        prices = (self.monthly, self.flat) if can_pay or number > 0.7 else (self.monthly,)
        discounts = {"discounts": [{"coupon": self.coupon}]} if 0.3 < number < 0.6 else {}
        customer = self.customers[account]
        self.subscriptions[account] = self.world.stripe.subscribe(customer, *prices, **trial, **discounts)

    def cancel(self, account: str, number: float) -> None:
        """Cancel now, or at the period's end."""
        if number < 0.5:
            self.world.stripe.cancel(self.subscriptions[account])
            del self.subscriptions[account]
        else:
            self.world.stripe.change(self.subscriptions[account], cancel_at_period_end=number < 0.8)

    def pause(self, account: str, _number: float) -> None:
        """Pause, or resume."""
        subscription = self.subscriptions[account]
        body = self.world.stripe.read(ObjectName(ObjectKind.SUBSCRIPTION, subscription)) or {}
        (self.world.stripe.resume if body["status"] == "paused" else self.world.stripe.pause)(subscription)

    def change(self, account: str, number: float) -> None:
        """Another price, or another interval."""
        stripe, subscription = self.world.stripe, self.subscriptions[account]
        body = stripe.read(ObjectName(ObjectKind.SUBSCRIPTION, subscription)) or {}
        item = {"id": body["items"]["data"][0]["id"], "price": self.other if number < 0.6 else self.yearly}
        stripe.change(subscription, items=[item])

    def schedule(self, account: str, number: float) -> None:
        """A change at the period's end, or its end."""
        if account in self.schedules:
            path = "POST /v1/subscription_schedules/{schedule}/release"
            self.world.stripe.call(path, {}, self.schedules.pop(account))
            return
        price = self.yearly if number < 0.5 else self.other
        params: dict[str, Any] = {"end_behavior": "cancel"} if number > 0.8 else {}
        self.schedules[account] = self.world.stripe.schedule(self.subscriptions[account], price, **params)

    def delete(self, account: str, number: float) -> None:
        """Delete the customer, rarely."""
        if number > 0.7:
            self.world.stripe.delete(self.customers[account])
            self.subscriptions.pop(account, None)

    def end_trial(self, account: str, _number: float) -> None:
        """End a trial now."""
        self.world.stripe.change(self.subscriptions[account], trial_end="now")

    def give_back(self, account: str, number: float) -> None:
        """A credit note of a part of a paid invoice, to the card or the balance, or a refund alone."""
        stripe = self.world.stripe
        bodies = stripe.pages("GET /v1/invoices", {"customer": self.customers[account], "status": "paid"})
        for invoice in [body for body in bodies if body["amount_paid"] > 1][:1]:
            amount = max(1, round(number * invoice["amount_paid"]))
            how = "refund_amount" if number < 0.5 else "credit_amount"
            if number < 0.7:
                stripe.call("POST /v1/credit_notes", {"invoice": invoice["id"], "amount": amount, how: amount})
            else:
                (payment,) = stripe.pages("GET /v1/invoice_payments", {"invoice": invoice["id"]})
                intent = payment["payment"]["payment_intent"]
                stripe.call("POST /v1/refunds", {"payment_intent": intent, "amount": amount})

    def wait(self, _account: str, number: float) -> None:
        """Time passes: minutes to weeks."""
        self.world.clock.advance(round(number**2 * 20 * DAY_MS))
        self.world.stripe.simulator.catch_up()

    ACTIONS = (cancel, pause, change, schedule, delete, end_trial, give_back, give_back, wait, wait, wait)


class Slow:
    """Gives others a turn before and after each call."""

    def __init__(self, inner: Any, dice: random.Random) -> None:
        self._inner, self._dice = inner, dice

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(attribute):
            return attribute

        async def call(*arguments: Any, **options: Any) -> Any:
            for _ in range(self._dice.randrange(3)):
                await asyncio.sleep(0)
            answer = await attribute(*arguments, **options)
            for _ in range(self._dice.randrange(3)):
                await asyncio.sleep(0)
            return answer

        return call


class Faulty:
    """Delivers events late, in any order, twice or never, to two processes that end at any call."""

    def __init__(self, world: BillingWorld, seed: int, *, walks: bool) -> None:
        """With `walks`, Stripe's list is read after each step. Without, the end lists the objects alone."""
        self.world = world
        self.walks = walks
        self.dice = random.Random(seed)
        self.known: set[str] = set()
        self.waiting: list[dict[str, Any]] = []
        self.delivered: list[str] = []
        self.crashes = 0
        self.calls = 0
        self.fenced = 0

    async def turn(self, happen: Callable[[], Awaitable[None]]) -> None:
        """One step of the history while both processes run; some of the waiting events are delivered."""
        events = self.world.stripe.happened()
        for event in [event for event in events if event["id"] not in self.known]:
            self.known.add(event["id"])
            if self.dice.random() > 0.2:
                self.waiting += [event] * self.dice.choice([1, 1, 2])
        self.dice.shuffle(self.waiting)
        number = self.dice.randrange(len(self.waiting) + 1)
        now, self.waiting = self.waiting[:number], self.waiting[number:]
        for event in now:
            if self.dice.random() < 0.3:
                # As a thin event, which names no customer: the object may be touched by two partitions at once.
                await self.world.append(event["data"]["object"].get("id", ""), json.dumps(event).encode())
            else:
                await self.world.deliver([event])
        self.delivered += [event["id"] for event in now]
        await asyncio.gather(self.process(), self.process(backwards=True), happen())
        if self.walks:
            await self.walk()
        if self.dice.random() < 0.5:
            await asyncio.gather(self.relay(), self.relay())

    async def walk(self) -> None:
        """List what was not processed by now."""
        events = self.world.stripe.happened()
        unknown = await self.world.tables.unknown([event["id"] for event in events])
        held = {event.event_id for event in await self.world.tables.held()}
        lost = [event for event in events if event["id"] in unknown - held]
        await self.world.deliver(lost, Via.LIST)
        self.delivered += [event["id"] for event in lost]

    async def process(self, *, backwards: bool = False) -> None:
        """A process that may end at a call: the next process ends at a later one."""
        self.calls += 1
        countdown = [1 + self.calls % 23]
        after = self.dice.random() < 0.5
        log, tables, objects = (
            Slow(Crashing(inner, countdown, after=after), self.dice)
            for inner in (self.world.log, self.world.tables, self.world.stripe)
        )
        try:
            process = self.world.processor(log, tables, objects)
            await self.world.process(process, self.dice.choice([1, 3, 50]), backwards=backwards)
        except (Crash, Fenced, Transient) as error:
            self.crashes += isinstance(error, Crash)
            self.fenced += isinstance(error, Fenced)

    async def relay(self) -> None:
        """A round of the outbox that may end at a call."""
        self.calls += 1
        countdown, after = [1 + self.calls % 17], self.dice.random() < 0.5
        log, tables = (
            Slow(Crashing(inner, countdown, after=after), self.dice) for inner in (self.world.log, self.world.tables)
        )
        try:
            await BindingOutbox(tables, self.world.accounts._replace(log=log), self.world.store).relay()
        except (Crash, Transient) as error:
            self.crashes += isinstance(error, Crash)

    async def heal(self) -> None:
        """What a walker or a resync does at the end; then process everything that is left."""
        if self.walks:
            await self.walk()
        else:
            now_s = self.world.clock.now_ms() // 1000
            mirror = await self.world.tables.mirror()
            gone = [ObjectName(ObjectKind.CUSTOMER, str(row["id"])) for row in mirror["stripe_customers"]]
            for name in dict.fromkeys([*self.world.stripe.listing(), *gone]):
                body = self.world.stripe.read(name) or {}
                customer = str(body.get("customer") or name.id)
                await self.world.append(customer, resync_record("heal", name, customer, now_s), Via.RESYNC)
        await settle(self.world)


async def settle(world: BillingWorld) -> None:
    """Process and send everything, and fold it."""
    await world.process()
    for customer in sorted({event.customer for event in await world.tables.held()}):
        await append_held(world.log, world.tables, customer)
    await world.process()
    while await BindingOutbox(world.tables, world.accounts, world.store).relay():
        pass
    await world.fold_all()


async def from_now_on(world: BillingWorld, account: str) -> list[tuple[Any, ...]]:
    """Who pays each day from now on, and in which period. What was before depends on when it was known."""
    state = await in_log(world, account)
    now_ms = world.clock.now_ms()
    return [described(state, now_ms + HOUR_MS + day * DAY_MS) for day in range(0, 800, 3)]


async def in_log(world: BillingWorld, account: str) -> AccountState:
    """The account's state by the log, as if late bindings were recounted by now."""
    return recounted(await world.store.accounts.account(partition_of(account, world.partitions), account), world)


def recounted(state: AccountState, world: BillingWorld) -> AccountState:
    """The state after the recount of a late binding, as if there was no usage."""
    if state.pending is None:
        return state
    later, state = state.pending.later, cut_in_the_past(state).model_copy(update={"pending": None})
    for binding in later:
        state = with_binding(state, binding, 5 * MINUTE_MS, world.clock.now_ms())
    return state


def described(state: AccountState, instant_ms: int) -> tuple[Any, ...]:
    """The payer at an instant, and the payer's period without its start, which may be that of the change."""
    payer = customer_at(state, instant_ms)
    if payer is None or payer.billing is not Billing.MAPPED:
        return (payer and payer.billing,)
    return payer.billing, payer.stripe_customer, period_at(state, instant_ms).end_ms


async def causes(world: BillingWorld) -> Counter[str]:
    """How often each event is the cause of an audit row."""
    rows = [row for account in ACCOUNTS for row in await world.tables.audit(account, 10_000)]
    return Counter(row.cause for row in rows if row.cause.startswith("evt_"))


@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_any_delivery_ends_like_the_delivery_in_order(seed: int) -> None:
    faulty, ordered = BillingWorld(START_MS, 2, seed), BillingWorld(START_MS, 2, seed)
    for world in (faulty, ordered):
        await world.open()
    players = Player(faulty, seed), Player(ordered, seed)
    deliveries = Faulty(faulty, seed, walks=seed % 2 == 0)
    seen: set[str] = set()
    for _ in range(STEPS):
        await deliveries.turn(players[0].step())
        await players[1].step()()
        new = [event for event in ordered.stripe.happened() if event["id"] not in seen]
        seen |= {event["id"] for event in new}
        await ordered.deliver(new)
        await settle(ordered)
    assert [event["id"] for event in faulty.stripe.happened()] == [event["id"] for event in ordered.stripe.happened()]
    await deliveries.heal()
    await settle(ordered)

    assert deliveries.crashes > 3
    assert await faulty.mirrored() == faulty.expected()
    assert await faulty.mirrored() == await ordered.mirrored()
    for account in ACCOUNTS:
        assert await from_now_on(faulty, account) == await from_now_on(ordered, account), account
    known = set(deliveries.delivered)
    assert await faulty.tables.unknown(sorted(known)) == set()
    counted = await causes(faulty)
    assert set(counted.values()) <= {1}
    assert counted.keys() == (await causes(ordered)).keys() & known
    assert await faulty.tables.due_bindings() == []
    assert await booked(faulty) == await booked(ordered) != {}
    # When Stripe gives up to collect, nothing says so before.
    customers = {account: name for account, name in players[0].customers.items() if not owes(faulty, name)}
    states = {account: await in_log(faulty, account) for account in customers}
    for hours in (1, 71):
        faulty.clock.advance(hours * HOUR_MS)
        faulty.stripe.simulator.catch_up()
        for account, customer in customers.items():
            assert payer(states[account], faulty.clock.now_ms()) == pays(faulty, customer), (account, hours)


async def booked(world: BillingWorld) -> dict[tuple[str, str, str], int]:
    """What the journal has in sum of each object and kind, and as what plan a subscription stands there."""
    sums: Counter[tuple[str, str, str]] = Counter()
    while await world.tables.journal.number(world.clock.now_ms(), 7, delivers=False):
        pass
    entries = await world.tables.journal.entries(limit=100_000)
    assert [each.number for each in entries] == list(range(1, len(entries) + 1))
    for each in entries:
        key = each.account, each.object, each.kind.value
        if each.amount_minor is None:
            sums[key] = len(each.after)
        else:
            sums[key] += each.amount_minor
    return {key: minor for key, minor in sums.items() if minor}


def payer(state: AccountState, now_ms: int) -> str | None:
    """Who pays now by a state from some time ago."""
    now = customer_at(state, now_ms)
    return now.stripe_customer if now is not None and now.billing is Billing.MAPPED else None


def owes(world: BillingWorld, customer: str) -> bool:
    """Whether a payment of the customer has failed."""
    listed = world.stripe.pages("GET /v1/subscriptions", {"customer": customer, "status": "all"})
    return any(body["status"] == "past_due" for body in listed)


def pays(world: BillingWorld, customer: str) -> str | None:
    """Who pays now by the states of Stripe's subscriptions."""
    listed = world.stripe.pages("GET /v1/subscriptions", {"customer": customer, "status": "all"})
    return customer if any(body["status"] in ("active", "past_due") for body in listed) else None


async def test_two_processes_fence_each_other() -> None:
    """The histories are worth something only if both kinds of race happen."""
    fenced = 0
    for seed in range(4):
        world = BillingWorld(START_MS, 2, seed)
        await world.open()
        player, deliveries = Player(world, seed), Faulty(world, seed, walks=True)
        for _ in range(STEPS):
            await deliveries.turn(player.step())
        fenced += deliveries.fenced
    assert fenced > 0

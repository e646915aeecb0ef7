"""What happens at Stripe, and the operator who links accounts to Stripe's customers: both drawn from the seed."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any, Final, cast

from pipeline.logs.bindings import AccountLog, Plan, append_plan, standing
from pipeline.webhooks.appending import append_events
from pipeline.webhooks.linking import Linking, Wish, link_customers
from pipeline.webhooks.resync import resync
from schemas.billing_events import ObjectKind, ObjectName, StripeObjects, Via
from schemas.clock import MINUTE_MS, SECOND_MS
from schemas.control import CloseRecord
from schemas.errors import Fenced, InvalidInput, Transient
from schemas.log import Log
from schemas.side_tables import SideTables
from simulation.commands import in_own_process
from simulation.commerce import Commerce
from simulation.faults import Fault
from simulation.invoicing import SOLD
from simulation.processes import Killed, Process, Reached
from simulation.roles import SECRET
from simulation.services import Deployment
from simulation.traffic import LINKED, PARTITIONS
from stripe_simulator.errors import ApiError

HAPPENINGS: Final = 20
SOON_AGAIN: Final = 0.5
SOON_S_MAX: Final = 60.0
HOUR_S: Final = 3_600
JOBS_INTERVAL_S: Final = 120.0
LATE_LINK_S_MAX: Final = 5_400.0
AGAIN_S: Final = 60.0
LOOK_S: Final = 10.0
TRIES_MAX: Final = 30
GOOD_CARD: Final = "pm_card_visa"
BAD_CARD: Final = "pm_card_chargeCustomerFail"


class Subscribers:
    """The customers of the linked accounts, and what they subscribe to.

    `customer_of` says which customer an account has by the last word of the operator; "" if it was unlinked.
    """

    def __init__(self, world: Deployment, commerce: Commerce) -> None:
        self._world = world
        self._stripe = world.account
        self._chance = world.chance("subscribers")
        self._number = 0
        self._commands: asyncio.Queue[tuple[float, str, str]] = asyncio.Queue()
        self._doing: tuple[float, str, str] | None = None
        self._runs = 0
        self.customer_of: dict[str, str] = {}
        self.deleted: set[str] = set()
        self._subscription_of: dict[str, str] = {}
        self._daily, self._monthly, self._flat = commerce.daily, commerce.monthly, commerce.flat
        self._more = commerce.more
        # What each metered price bills, and what a unit costs.
        self.prices = commerce.units

    # What happens at Stripe.

    async def live(self, span_s: float) -> None:
        """Customers sign up, change, and go, and somebody edits in the dashboard. What Stripe refuses does not
        happen."""
        account = LINKED[0]
        while True:
            if self._chance.random() < SOON_AGAIN:
                # While Stripe still answers for what happened before.
                await asyncio.sleep(self._chance.uniform(1, SOON_S_MAX))
            else:
                await asyncio.sleep(self._chance.expovariate((1 - SOON_AGAIN) * HAPPENINGS / span_s))
                account = self._chance.choice(LINKED)
            self._number += 1
            number = self._chance.random()
            does = self._chance.choice(self.ACTIONS)
            with contextlib.suppress(ApiError):
                if not self.customer_of.get(account):
                    self.sign_up(account, number)
                elif account not in self._subscription_of:
                    self._subscribe(account, number)
                else:
                    does(self, account, number)

    async def pass_time(self) -> None:
        """Stripe does what is due: periods and trials end, invoices become final."""
        while True:
            self._stripe.simulator.catch_up()
            await asyncio.sleep(JOBS_INTERVAL_S)

    def begin(self) -> None:
        """The first customers, whose first period ends within the run."""
        for account in LINKED[: self._chance.choice((1, 2))]:
            self.sign_up(account, 0.5 + self._chance.random() * 0.05)

    def sign_up(self, account: str, number: float) -> None:
        """A new customer with a subscription, linked at once or later."""
        self.customer_of[account] = self.new_customer(GOOD_CARD if number < 0.9 else "")
        self._subscription_of.pop(account, None)
        late_s = number * LATE_LINK_S_MAX if number < 0.5 and self._strike(Fault.LINKED_LATE) else 0.0
        self._commands.put_nowait((late_s, account, self.customer_of[account]))
        self._subscribe(account, number)

    def new_customer(self, card: str = "") -> str:
        """A new customer, who may be charged for usage too."""
        customer = self._stripe.customer(card)
        self._world.stripe.add_customer(customer)
        return customer

    def _subscribe(self, account: str, number: float) -> None:
        customer = self.customer_of[account]
        if (self._stripe.read(ObjectName(ObjectKind.CUSTOMER, customer)) or {}).get("deleted"):
            # Whoever comes back is another customer.
            self.sign_up(account, number)
            return
        params: dict[str, Any] = {}
        if number > 0.7 and self._strike(Fault.TRIAL):
            params["trial_end"] = self._soon_s(number)
        elif number > 0.2:
            params["billing_cycle_anchor"] = self._soon_s(number)
        metered = self._monthly if number < 0.1 else self._daily[0]
        flat = self._flat if number * 10 % 1 < 0.3 else self._flat[:2]
        more = (self._more,) if number * 100 % 1 < 0.5 else ()
        self._subscription_of[account] = self._stripe.subscribe(customer, metered, *more, *flat, **params)

    def _change(self, account: str, number: float) -> None:
        """Another metered price, or fewer or more flat ones. What a schedule has is changed in the schedule."""
        body = self._body(account)
        # What a change bills of a paused subscription, the simulator does not know.
        if body["schedule"] or body["status"] == "paused" or not self._strike(Fault.SUBSCRIPTION_CHANGED):
            return
        items = body["items"]["data"]
        sold = [item for item in items if self.prices.get(item["price"]["id"], ("", 0))[0] == SOLD[0]]
        metered = sold[0] if sold else None
        if number < 0.5 and metered:
            price = self._monthly if number < 0.2 else self._daily[int(number * 1_000) % 2]
            changes = [{"id": metered["id"], "price": price}]
        elif len(items) > 2:
            changes = [{"id": item["id"], "deleted": True} for item in items if item is not metered][:-1]
        else:
            held = {item["price"]["id"] for item in items}
            changes = [{"price": price} for price in self._flat if price not in held]
        self._stripe.change(self._subscription_of[account], items=changes)

    def _buy(self, account: str, number: float) -> None:
        """More or fewer of a seat or an add-on, or none."""
        body = self._body(account)
        items = [item for item in body["items"]["data"] if item["price"]["recurring"]["usage_type"] == "licensed"]
        if items and not body["schedule"] and self._strike(Fault.SUBSCRIPTION_CHANGED):
            changes = [{"id": items[int(number * 1_000) % len(items)]["id"], "quantity": int(number * 100) % 4}]
            self._stripe.change(self._subscription_of[account], items=changes)

    def _cancel(self, account: str, number: float) -> None:
        if not self._strike(Fault.SUBSCRIPTION_CANCELED):
            return
        if number < 0.4:
            # Refused under a schedule: a second subscription would bill the same meter at the same time.
            self._stripe.cancel(self._subscription_of[account])
            del self._subscription_of[account]
        elif number < 0.6:
            self._stripe.change(self._subscription_of[account], cancel_at_period_end=number < 0.5)
        else:
            self._stripe.change(self._subscription_of[account], cancel_at=self._soon_s(number))

    def _pause(self, account: str, _number: float) -> None:
        if self._strike(Fault.SUBSCRIPTION_PAUSED):
            is_paused = self._body(account)["status"] == "paused"
            (self._stripe.resume if is_paused else self._stripe.pause)(self._subscription_of[account])

    def _schedule(self, account: str, number: float) -> None:
        """A schedule of an active subscription: what a phase does to a trial, the simulator does not know."""
        body = self._body(account)
        if body["status"] != "active" or not self._strike(Fault.SUBSCRIPTION_SCHEDULED):
            return
        if schedule := body["schedule"]:
            self._stripe.call("POST /v1/subscription_schedules/{schedule}/release", {}, schedule)
            return
        price = self._monthly if number < 0.5 else self._daily[1]
        params = {"end_behavior": "cancel"} if number > 0.7 else {}
        self._stripe.schedule(self._subscription_of[account], price, ends_s=self._soon_s(number), **params)

    def _end_trial(self, account: str, _number: float) -> None:
        if self._body(account)["status"] == "trialing" and self._strike(Fault.TRIAL):
            self._stripe.change(self._subscription_of[account], trial_end="now")

    def _delete(self, account: str, number: float) -> None:
        if number < 0.4 and self._strike(Fault.CUSTOMER_DELETED):
            self._stripe.delete(self.customer_of[account])
            self.deleted.add(self.customer_of[account])
            self._subscription_of.pop(account, None)

    def _edit(self, account: str, number: float) -> None:
        """Somebody writes a note at a customer, or makes one that never belongs to an account."""
        if not self._strike(Fault.DASHBOARD_EDIT):
            return
        if number < 0.2:
            self.new_customer()
            return
        path = "POST /v1/customers/{customer}"
        self._stripe.call(path, {"email": f"{self._number}@example.com"}, self.customer_of[account])

    def _card(self, account: str, number: float) -> None:
        """The customer's card begins to fail, or the customer has another one, which pays what is open."""
        if not self._strike(Fault.CARD_FAILS):
            return
        customer = self.customer_of[account]
        self._stripe.use_card(customer, BAD_CARD if number < 0.5 else GOOD_CARD)
        if number < 0.5:
            return
        for row in [*self._stripe.pages("GET /v1/invoices", {"customer": customer, "status": "open"})][::-1]:
            self._stripe.call("POST /v1/invoices/{invoice}/pay", {}, row["id"])

    def _move(self, account: str, number: float) -> None:
        """The account is unlinked, goes to a new customer, or takes over the customer of another account."""
        if number < 0.3:
            if self._strike(Fault.ACCOUNT_UNLINKED):
                self._unlink(account)
        elif number < 0.6 and self._strike(Fault.ACCOUNT_MOVED):
            self.sign_up(account, number)
        elif self._strike(Fault.ACCOUNT_MOVED):
            other = next(other for other in LINKED if other != account)
            customer, subscription = self.customer_of[account], self._subscription_of.get(account)
            self._unlink(account)
            self.customer_of[other] = customer
            if subscription:
                self._subscription_of[other] = subscription
            self._commands.put_nowait((0.0, other, customer))

    def _unlink(self, account: str) -> None:
        self.customer_of[account] = ""
        self._subscription_of.pop(account, None)
        self._commands.put_nowait((0.0, account, ""))

    def _resync(self, _account: str, number: float) -> None:
        if number < 0.4 and self._strike(Fault.RESYNCED):
            self._commands.put_nowait((0.0, "", "resync"))

    def _close(self, account: str, _number: float) -> None:
        if self._strike(Fault.PERIOD_CLOSED):
            self._commands.put_nowait((0.0, account, "close"))

    def _strike(self, kind: Fault) -> bool:
        return self._world.faults.strike(kind, f"stripe.{self._number}")

    def _soon_s(self, number: float) -> int:
        """An instant within the run, or soon after it."""
        return self._world.clock.now_ms() // SECOND_MS + 60 + round(number * 1_000) % 100 * HOUR_S // 10

    def _body(self, account: str) -> dict[str, Any]:
        return self._stripe.read(ObjectName(ObjectKind.SUBSCRIPTION, self._subscription_of[account])) or {}

    ACTIONS: Final = (
        _change, _change, _buy, _buy, _buy, _cancel, _pause, _schedule, _end_trial, _delete, _edit, _edit, _card,
        _card, _move, _resync, _close,
    )  # fmt: skip

    # The operator.

    async def operate(self) -> None:
        """Do what is asked, one command after the other; a command that fails is repeated."""
        while True:
            self._doing = await self._commands.get()
            delay_s, account, what = self._doing
            await asyncio.sleep(delay_s)
            await self._done(account, what)
            self._doing = None

    async def settle(self) -> None:
        """Sign up who is left, and do all that was asked."""
        for number, account in enumerate(LINKED):
            if not self.customer_of.get(account):
                self.sign_up(account, (number + 1) / 8)
        left = [] if self._doing is None else [self._doing]
        while not self._commands.empty():
            left.append(self._commands.get_nowait())
        for _, account, what in left:
            await self._done(account, what)

    async def _done(self, account: str, what: str) -> None:
        """Run a command until it succeeds. Without faults it must do so soon."""
        tries_left, refused = TRIES_MAX, ""
        while tries_left:
            self._runs += 1
            world = self._world
            from_ms = world.clock.now_ms() // MINUTE_MS * MINUTE_MS if refused else None
            command = partial(self._command, account=account, what=what, from_ms=from_ms)
            try:
                await in_own_process(world, f"operator.{self._runs}", command)
            except (Killed, Transient, Fenced):
                tries_left -= not world.faults.active
            except InvalidInput as error:
                # A customer of two accounts at once, or two customers of an account in one minute.
                tries_left, refused = tries_left - 1, str(error)
            else:
                return
            await asyncio.sleep(AGAIN_S)
        world.fail("operator", f"{account}: {what} is never done: {refused}")

    async def _command(self, process: Process, account: str, what: str, from_ms: int | None) -> None:
        world, run = self._world, process.name
        log, tables = cast("Log", Reached(process, "log", world.log)), cast("SideTables", self._reached(process))
        objects = cast("StripeObjects", Reached(process, "stripe", world.objects))
        if what == "resync":
            now_s = world.clock.now_ms() // SECOND_MS
            await resync(lambda values: append_events(log, values, Via.RESYNC), objects, tables, run, now_s)
        elif what == "close":
            accounts = AccountLog(log, PARTITIONS, SECRET, world.clock)
            known = await standing(accounts, world.store, account)
            record = CloseRecord(account=account, revision=known.state.revision + 1, instant_ms=world.clock.now_ms())
            await append_plan(accounts, Plan(known.partition, known.next_offset, record))
        elif what:
            parts = Linking(log, tables, objects, world.clock, world.clock.unhurried(LOOK_S))
            await link_customers(parts, [Wish(account, what, from_ms, "operator", "simulated")], run)
        else:
            await tables.unlink(account, "operator", "simulated", world.clock.now_ms())

    def _reached(self, process: Process) -> Reached:
        return Reached(process, "sql", self._world.tables)

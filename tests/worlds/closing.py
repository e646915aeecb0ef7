"""A month's end: the product's sender, mirror and period-close controller, and the Stripe simulator over its HTTP.

Only the folding of usage is left out: a test says which intents the worker published, and what a flush publishes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from aggregators.binding_timeline import overlaps, timeline
from aggregators.mirror import mirror_rows
from pipeline.billing.closing import ClosingController, ClosingPolicy, Published
from pipeline.billing.drawing import Drawing
from pipeline.billing.policy import SenderPolicy
from pipeline.billing.redrive import Redriven, Redriver
from pipeline.billing.sender import StripeSender
from schemas.billing_events import StripeEvent, Via
from schemas.bills import Bill, InvoiceItem
from schemas.clock import HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.errors import Transient
from schemas.intent_ledger import IntentState, LedgerIntent
from schemas.log import REPORTS_TOPIC, TopicSpec
from schemas.periods import Billing
from schemas.reports import Intent, Payer
from schemas.side_tables import Arrived, Fetched, Step
from simulation.stripe_account import StripeAccount
from sinks.sql.fake import FakeSideTables
from sinks.stripe.client import StripeClientMeters
from sinks.stripe.invoice_items import StripeClientInvoiceItems
from stripe_simulator import Simulator, SimulatorSettings
from tests.services.stripe import check_shapes
from tests.services.stripe_requests import application
from tests.services.stripe_shapes import problems
from tests.services.stripe_shop import at
from tests.worlds.clock import ManualClock
from tests.worlds.sender import Crash, CrashingLog

SCOPE = "test:acct_simulator"
METER = "calls"
NOVEMBER = ("2027-11-01", "2027-12-01")
DECEMBER = ("2027-12-01", "2028-01-01")
POLICY = SenderPolicy(settle_ms=10 * MINUTE_MS, look_again_ms=10 * MINUTE_MS)


def ms(text: str) -> int:
    """The UTC millisecond of a moment such as `2027-02-10` or `2027-01-12 10:30`."""
    return at(text) * SECOND_MS


class Network(httpx.AsyncBaseTransport):
    """The way to the simulator. `hook` may stop a request before it, or lose the answer behind it."""

    def __init__(self, simulator: Simulator) -> None:
        self._inner = httpx.ASGITransport(application(simulator))
        self.before: Callable[[httpx.Request], None] = lambda _request: None
        self.after: Callable[[httpx.Request], None] = lambda _request: None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One request."""
        self.before(request)
        response = await self._inner.handle_async_request(request)
        await response.aread()
        self.after(request)
        return response


class ClosingWorld:
    """One deployment on one clock. `grace_s`: how long a cycle's invoice stays a draft; `lag_s`: by how much Stripe's
    sums lag behind."""

    def __init__(self, now: str, *, grace_s: int = 3_600, lag_s: int = 0, policy: ClosingPolicy | None = None) -> None:
        self.clock = ManualClock(ms(now))
        self.stripe = StripeAccount(self.clock)
        settings = SimulatorSettings(
            summary_lag_s=lag_s, validation_window_s=10, validation_delay_s=0, invoice_grace_s=grace_s
        )
        self.stripe.simulator = Simulator(self.clock, settings, check=problems)
        self.log = CrashingLog(self.clock)
        self.tables = FakeSideTables(timeline, overlaps)
        self.policy = policy or ClosingPolicy()
        self.network = Network(self.stripe.simulator)
        self.meters = StripeClientMeters("sk_test_x", "http://stripe.test", nonce="test")
        self.items = StripeClientInvoiceItems("sk_test_x", "http://stripe.test")
        for client in (self.meters, self.items):
            client._transport._client = httpx.AsyncClient(transport=self.network)
        self.customers: dict[str, str] = {}
        self.unreported: list[Intent] = []
        self.flushed: list[str] = []
        self.drawing: Drawing | None = None
        self.sender = self.new_sender()
        self.controller = self.new_controller()
        # The usage of these tests is counted and not measured, unless one sets another instant.
        self.measured_ms = 1 << 62
        self._offset = 0
        self._reads = 0
        self._published = 0
        self.is_sender_down = self.is_controller_down = self.is_worker_down = False

    async def start(self) -> ClosingWorld:
        """Make the log, the tables and a meter."""
        await self.log.create_topics([TopicSpec(REPORTS_TOPIC, 1, -1)])
        await self.tables.migrate(SCOPE, "log")
        self.meter = self.stripe.meter(METER)
        await self.restart()
        return self

    async def close(self) -> None:
        """Compare every answer of the simulator with the SDK's shapes."""
        await self.meters.close()
        await self.items.close()
        check_shapes(self.stripe.simulator.violations, self.stripe.simulator.checked)

    # Processes.

    def new_sender(self) -> StripeSender:
        """Another sender process."""
        ledger, bills, rng = self.tables.intents, self.tables.bills, random.Random(7)
        parts = (self.log, ledger, self.meters, self.payer, self.clock, rng, POLICY, bills)
        return StripeSender(*parts, drawing=self.drawing)

    def new_controller(self, **others: Any) -> ClosingController:
        """Another controller process; `others` replace its parts."""
        parts: dict[str, Any] = {
            "scope": SCOPE, "bills": self.tables.bills, "ledger": self.tables.intents, "items": self.items,
            "meters": self.meters, "flush": self.flush, "told": self.told, "log": self.log, "clock": self.clock,
            "policy": self.policy,
        }  # fmt: skip
        return ClosingController(**{**parts, **others})

    async def restart(self) -> None:
        """The sink died; another one starts."""
        self.sender, self.controller = self.new_sender(), self.new_controller()
        self._offset = await self.sender.start_offset(0) or 0

    async def lose_tables(self) -> None:
        """The database is lost, and made again from Stripe and from the log."""
        self.tables, self._reads = FakeSideTables(timeline, overlaps), 0
        await self.tables.migrate(SCOPE, "log")
        await self.restart()
        await self.mirror()
        await self.pump(40)

    async def payer(self, intent: Intent, instant_ms: int) -> Payer | None:  # noqa: ARG002  # a protocol
        """The customer of the account."""
        return Payer(Billing.MAPPED, self.customers[intent.account], intent.period_end_ms)

    async def pump(self, rounds: int = 12) -> None:
        """Let the sender work."""
        for _ in range(rounds):
            if self.is_sender_down:
                return
            records = await self.log.read(REPORTS_TOPIC, 0, self._offset, 7)
            if records:
                await self.sender.step(0, records)
                self._offset = records[-1].next_offset
            else:
                await self.sender.idle(0)

    async def flush(self, account: str) -> Published:
        """Publish what the worker has counted of an account and not reported yet."""
        self.flushed.append(account)
        mine = [intent for intent in self.unreported if intent.account == account]
        self.unreported = [intent for intent in self.unreported if intent.account != account]
        await self.publish(*mine)

        async def is_published() -> bool:
            return not self.is_worker_down

        return is_published

    async def told(self, _account: str, bill: Bill, since_ms: int) -> bool:
        """Whether the measurer has come so far."""
        return self.measured_ms >= max(bill.end_ms, since_ms)

    # What happens.

    async def sign_up(self, account: str, *prices: str, **params: Any) -> str:
        """A linked account whose customer subscribes to prices; returns the subscription."""
        customer = self.customers[account] = self.stripe.customer()
        await self.mirror()
        await self.tables.link(account, customer, 0, "tester", "", self.clock.now_ms())
        return self.stripe.subscribe(customer, *prices, **params)

    def per_call(self, cents: str) -> str:
        """A monthly price for each call."""
        return self.price({"unit_amount_decimal": cents})

    def price(self, terms: dict[str, Any], name: str = "API calls") -> str:
        """A monthly price of the meter."""
        recurring = {"interval": "month", "usage_type": "metered", "meter": self.meter}
        params = {"currency": "usd", "product_data": {"name": name}, "recurring": recurring, **terms}
        return str(self.stripe.call("POST /v1/prices", params)["id"])

    def used(self, account: str, calls: int, bucket_end: str | int, period: tuple[str, str]) -> Intent:
        """The intent of calls in a period that arrived in the bucket that ends at `bucket_end`."""
        self._published += 1
        end_ms = ms(bucket_end) if isinstance(bucket_end, str) else bucket_end
        return Intent(
            identifier=f"tm_{self._published}", livemode=False, stripe_account="acct_simulator", log_id="log",
            meter=METER, event_name=METER, account=account, period_start_ms=ms(period[0]), period_end_ms=ms(period[1]),
            bucket_start_ms=end_ms - HOUR_MS, bucket_end_ms=end_ms, delta_minor=calls, scale=0,
        )  # fmt: skip

    async def publish(self, *intents: Intent) -> None:
        """The worker's relay writes intents."""
        for intent in intents:
            value = intent.model_dump_json().encode()
            await self.log.append(REPORTS_TOPIC, 0, value, key=intent.account.encode())

    async def advance(self, to: str | int, *, step_ms: int = MINUTE_MS) -> None:
        """Let time pass; the sink works meanwhile, and events of Stripe arrive. A sink that dies starts again."""
        end_ms = ms(to) if isinstance(to, str) else to
        while self.clock.ms < end_ms:
            self.clock.ms = min(self.clock.ms + step_ms, end_ms)
            self.stripe.simulator.catch_up()
            await self.mirror()
            try:
                await self.pump()
                if not self.is_controller_down:
                    await self.controller.turn()
            except (Crash, Transient):
                await self.restart()

    def disturb(self, chance: random.Random) -> None:
        """Let the sink die before and after its appends, and lose answers of Stripe."""

        def dies(value: bytes) -> tuple[str, Exception] | None:
            is_workers = value.startswith(b'{"kind":"intent"')
            return (chance.choice(("before", "after")), Crash()) if not is_workers and chance.random() < 0.2 else None

        def lost(_request: httpx.Request) -> None:
            if chance.random() < 0.2:
                raise httpx.ReadError("the connection broke")

        self.log.hook, self.network.before, self.network.after = dies, lost, lost

    def calm(self) -> None:
        """End the disturbance."""
        self.log.hook = lambda _value: None
        self.network.before = self.network.after = lambda _request: None

    async def redrive(self, *identifiers: str) -> Sequence[Redriven]:
        """An operator has rejected reports sent again."""
        tables, meters = self.tables, self.meters
        redriver = Redriver(self.log, tables.intents, meters, meters, self.clock, tables.bills)
        return await redriver.redrive(identifiers, "ada", "repaired")

    async def dead_letters(self) -> Sequence[LedgerIntent]:
        """What the ledger calls dead."""
        return await self.tables.intents.listed([IntentState.DEAD])

    async def turns(self, count: int = 4) -> None:
        """Let the controller turn, a minute each."""
        for _ in range(count):
            self.clock.advance(MINUTE_MS)
            await self.mirror()
            await self.controller.turn()

    async def jump(self, to: str) -> None:
        """Let time pass in which nothing happens."""
        self.clock.ms = ms(to)
        self.stripe.simulator.catch_up()
        await self.mirror()

    async def mirror(self) -> None:
        """Take over all that Stripe has."""
        names = self.stripe.listing()
        seqs = await self.tables.fetch_seqs(names)
        fetched = [Fetched(name, seqs[name], mirror_rows(name, self.stripe.read(name))) for name in names]
        event = StripeEvent(f"read_{self._reads}", "read", self.clock.now_ms() // 1000, "", tuple(names))
        arrived = [Arrived(event, Via.RESYNC, self._reads)]
        await self.tables.commit(Step(0, self._reads, self._reads + 1, self.clock.now_ms(), arrived, fetched))
        self._reads += 1

    # What one can see.

    def invoices(self, account: str) -> list[dict[str, Any]]:
        """The customer's invoices with all lines, oldest first."""
        rows = list(self.stripe.pages("GET /v1/invoices", {"customer": self.customers[account]}))[::-1]
        return [
            {**row, "all_lines": list(self.stripe.pages("GET /v1/invoices/{invoice}/lines", {}, row["id"]))}
            for row in rows
        ]

    def totals(self, account: str) -> list[int]:
        """The totals of the customer's invoices."""
        return [row["total"] for row in self.invoices(account)]

    def stripe_items(self, account: str) -> list[dict[str, Any]]:
        """The customer's invoice items at Stripe, oldest first."""
        return list(self.stripe.pages("GET /v1/invoiceitems", {"customer": self.customers[account]}))[::-1]

    async def states(self, account: str) -> dict[str, str]:
        """What the controller noted of the customer's invoices."""
        ids = [row["id"] for row in self.invoices(account)]
        noted = await self.tables.bills.closings(ids)
        return {identifier: noted[identifier].state.value for identifier in ids if identifier in noted}

    async def items_of(self, account: str) -> Sequence[InvoiceItem]:
        """Our invoice items of the customer."""
        bills: Sequence[Bill] = await self.tables.bills.bills(0, 1 << 50, self.customers[account])
        chains = {(bill.event_name, bill.start_ms, bill.end_ms) for bill in bills}
        return [item for chain in sorted(chains) for item in await self._items(account, chain)]

    async def _items(self, account: str, chain: tuple[str, int, int]) -> Sequence[InvoiceItem]:
        return await self.tables.bills.items(self.customers[account], *chain)


async def late_world(
    calls: int = 125, policy: ClosingPolicy | None = None, now: str = "2027-12-10 12:00"
) -> ClosingWorld:
    """December 10: the invoice of November bills 1 000 calls at 2 cents, and Stripe has taken more calls since."""
    world = await ClosingWorld("2027-11-01", policy=policy).start()
    await world.sign_up("acme", world.per_call("2"))
    await world.publish(world.used("acme", 1_000, "2027-11-20 12:00", NOVEMBER))
    await world.jump("2027-11-20 12:00")
    await world.pump()
    await world.jump(now)
    if calls:
        await world.publish(world.used("acme", calls, now, NOVEMBER))
        await world.pump()
    return world


def amounts(world: ClosingWorld) -> list[int]:
    """What the customer's invoice items bill."""
    return [item["amount"] for item in world.stripe_items("acme")]


async def state(world: ClosingWorld) -> str:
    """What is noted of the invoice of November."""
    return list((await world.states("acme")).values())[-1]

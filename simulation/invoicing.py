"""From usage to invoices: the meters and the invoice items of the Stripe simulator, and the period-close controller."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, cast

from pipeline.billing.closing import ClosingController, ClosingPolicy, Flush, Published
from pipeline.logs.bindings import AccountLog
from pipeline.logs.flushes import FlushWatch, HasReports, flush_account
from schemas.bills import Bill, BilledPrice, Bills, BillState, Closing, LatePolicy, StripeInvoiceItems
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, Clock
from schemas.errors import InvalidInput, Transient
from schemas.intent_ledger import IntentLedger
from schemas.log import REPORTS_TOPIC, Log
from schemas.reports import MeterEvent, StripeMeters
from simulation.faults import Fault, Faults
from simulation.stripe_account import ROUTER, StripeAccount
from sinks.sql.bills import SqlBills
from sinks.sql.intents import Run
from sinks.stripe.fake import FakeFault, FakeStripe
from sinks.stripe.invoice_items import StripeClientInvoiceItems
from stripe_simulator.admission import store_answer, stored_answer
from stripe_simulator.errors import ApiError
from stripe_simulator.expansion import expand

T = TypeVar("T")

SCOPE: Final = "test:acct_simulated"
# The meters that the subscriptions sell. A unit of them costs whole cents, so that an amount tells a quantity.
SOLD: Final = ("requests", "gigabytes")
# How long a cycle's invoice stays a draft: shorter than a period is open for late events, or longer.
GRACES_S: Final = (900, 1_800, 3_600)
# What the product does twice a minute. Each turn costs a run real time.
TURN_INTERVAL_S: Final = 840.0
_SERVER_ERROR: Final = 500
# What may happen to a request that creates an invoice item. The others happen before Stripe looks at it.
_EXECUTED: Final = (Fault.STRIPE_SERVER_ERROR, Fault.STRIPE_SERVER_ERROR_AFTER, Fault.STRIPE_ANSWER_LOST)
_ITEM_FAULTS: Final = (
    Fault.STRIPE_CONFLICT, Fault.STRIPE_RATE_LIMITED, Fault.STRIPE_NO_ANSWER, Fault.STRIPE_ANSWER_LOST,
    Fault.STRIPE_ANSWER_LOST, *_EXECUTED,
)  # fmt: skip


class WatchedBills(SqlBills):
    """Like the product's; `noted_ms` says when a controller looked at a final invoice first, and when last; `priced_ms`
    says when a price was known first."""

    def __init__(self, run: Run, clock: Clock) -> None:
        super().__init__(run)
        self._clock = clock
        self.noted_ms: dict[str, tuple[int, int]] = {}
        self.priced_ms: dict[str, int] = {}

    async def add_prices(self, found: Sequence[BilledPrice]) -> None:
        """Like the product's."""
        await super().add_prices(found)
        for each in found:
            self.priced_ms.setdefault(each.id, self._clock.now_ms())

    async def note(self, noted: Sequence[Closing]) -> None:
        """Like the product's."""
        await super().note(noted)
        for each in noted:
            if each.state is not BillState.DRAFT:
                now_ms = self._clock.now_ms()
                self.noted_ms[each.invoice] = (self.noted_ms.get(each.invoice, (now_ms,))[0], now_ms)


class Invoicing(NamedTuple):
    """What all controllers of a deployment share."""

    bills: WatchedBills
    ledger: IntentLedger
    items: StripeInvoiceItems
    policy: ClosingPolicy

    @classmethod
    def drawn(
        cls, bills: WatchedBills, ledger: IntentLedger, items: StripeInvoiceItems, chance: random.Random
    ) -> Invoicing:
        """Draw the policy of a run. The controllers look often, and at one customer each time."""
        late = LatePolicy.WRITE_OFF if chance.random() < 0.25 else LatePolicy.NEXT_INVOICE_ITEM
        policy = ClosingPolicy(
            late, close_lead_ms=40 * MINUTE_MS, alarm_lead_ms=5 * MINUTE_MS, summary_lead_ms=25 * MINUTE_MS,
            customers_max=1, kept_ms=30 * DAY_MS, fresh_ms=30 * MINUTE_MS, rest_ms=30 * MINUTE_MS, held_ms=HOUR_MS,
        )  # fmt: skip
        return cls(bills, ledger, items, policy)


class BilledStripe(FakeStripe):
    """Like the fake; the simulator gets each valid event of a meter that is sold, so that an invoice bills it."""

    billed_by: StripeAccount | None = None

    def _take(self, event: MeterEvent, fault: FakeFault | None) -> Any:
        known = len(self.events)
        answer = super()._take(event, fault)
        is_new = len(self.events) > known and not self._judge(self.events[-1])
        if is_new and self.billed_by is not None and event.event_name in SOLD:
            payload = {"stripe_customer_id": event.stripe_customer, "value": event.value}
            body = {"event_name": event.event_name, "identifier": event.identifier, "timestamp": event.timestamp_s}
            self.billed_by.call("POST /v1/billing/meter_events", {**body, "payload": payload})
        return answer


def billed_stripe(clock: Clock, account: StripeAccount | None) -> FakeStripe:
    """Stripe's meters, whose usage the invoices of `account` bill."""
    stripe = BilledStripe(clock, account="acct_simulated", lag_ms=MINUTE_MS)
    stripe.billed_by = account
    return stripe


class UnsureItems(StripeClientInvoiceItems):
    """The product's driver of invoice items on the simulator's routes, without HTTP. Some calls fail, before or after
    Stripe did what they ask; Stripe keeps answers under Idempotency-Keys, those of its own errors too."""

    def __init__(self, account: StripeAccount, chance: random.Random, faults: Faults, rate: float) -> None:
        self._event_names = {}
        self._account = account
        self._chance = chance
        self._faults = faults
        self._rate = rate
        self._calls = 0

    async def close(self) -> None:
        """Nothing to release."""

    async def _get(self, path: str, options: Mapping[str, object], parse: Callable[[dict[str, Any]], T]) -> T:
        self._struck(Fault.STRIPE_READ_RATE_LIMITED, Fault.STRIPE_READ_FAILED, path=path)
        route, ids = ROUTER.find("GET", path)
        params: dict[str, Any] = dict(options)
        paths = params.pop("expand", ())
        try:
            body = self._account.call(route.name, params, *ids)
        except ApiError as error:
            raise InvalidInput(error.code or "stripe", str(error)) from error
        return parse(expand(route.name, body, paths, self._account.simulator.test.store.find))

    async def _post(self, path: str, params: Mapping[str, object], key: str, parse: Callable[[dict[str, Any]], T]) -> T:
        fault = self._struck(*_ITEM_FAULTS, path=path)
        self._account.simulator.catch_up()
        mode, asked = self._account.simulator.test, ["POST", path, dict(params)]
        stored = stored_answer(mode, key, asked)
        if stored is None:
            status, body = self._executed(path, dict(params), fault)
            store_answer(mode, key, asked, status, body, "")
        else:
            status, body = stored["status"], stored["body"]
        if fault is Fault.STRIPE_ANSWER_LOST or status >= _SERVER_ERROR:
            raise Transient(f"{fault or 'stripe repeats its error'}: {path}")
        if status != 200:
            raise InvalidInput("stripe", str(body))
        return parse(body)

    def _struck(self, *kinds: Fault, path: str) -> Fault | None:
        """The fault of a call. Raises `Transient` if the call has no effect."""
        self._calls += 1
        draw, kind = self._chance.random(), self._chance.choice(kinds)
        if draw >= self._rate or not self._faults.strike(kind, f"stripe.item#{self._calls}"):
            return None
        if kind not in _EXECUTED:
            raise Transient(f"{kind}: {path}")
        return kind

    def _executed(self, path: str, params: dict[str, Any], fault: Fault | None) -> tuple[int, dict[str, Any]]:
        """The answer to a request under a new key."""
        route, ids = ROUTER.find("POST", path)
        if fault is Fault.STRIPE_SERVER_ERROR:
            return _SERVER_ERROR, {}
        try:
            body = self._account.call(route.name, params, *ids)
        except ApiError as error:
            return error.status, {"error": str(error)}
        return (_SERVER_ERROR, {}) if fault is Fault.STRIPE_SERVER_ERROR_AFTER else (200, body)


def controller_of(
    invoicing: Invoicing, reached: Callable[[str, object], Any], accounts: AccountLog, view: Any, meters: StripeMeters
) -> ClosingController:
    """A process's controller. `reached` gives the process's way to a service."""
    bills = cast("Bills", reached("sql", invoicing.bills))
    ledger = cast("IntentLedger", reached("sql", invoicing.ledger))
    items = cast("StripeInvoiceItems", reached("stripe", invoicing.items))
    flush = _flush_by(accounts, view)
    return ClosingController(
        SCOPE, bills, ledger, items, meters, flush, _told, accounts.log, accounts.clock, invoicing.policy
    )


async def _told(_account: str, _bill: Bill, _since_ms: int) -> bool:
    """No bill here is of a measured meter."""
    return True


def _flush_by(accounts: AccountLog, view: Any) -> Flush:
    """Flushes by records in the usage log, as the sink's role does."""

    async def flush(account: str) -> Published:
        made = await flush_account(accounts, view, account)
        log: Log = accounts.log
        first = (await log.bounds(REPORTS_TOPIC, made.partition)).next
        watch = FlushWatch(log, cast("HasReports", view), made, first)

        async def is_published() -> bool:
            return (await watch.look()).is_published

        return is_published

    return flush

"""May it? Each row is an account, what it asks, and the whole answer: from rows of the mirror, through the resolver and
SQL, to the check of a gateway. It is February 10, 2027; a month began on February 1, so 19 of 28 days are left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

import pytest

from aggregators.binding_timeline import overlaps, timeline
from aggregators.catalog_plan import catalog_hash
from aggregators.catalog_prices import all_prices
from aggregators.entitlements import sources_of
from pipeline.access.checks import AccessChecks, Answer, Counted
from pipeline.access.renewal import Renewal
from schemas.access import Reason
from schemas.billing_events import ObjectKind, ObjectName, StripeEvent, Via
from schemas.catalog import PlanId
from schemas.catalog_changes import CatalogKind, CatalogPlan, KnownPlan, PlanState, StripeRecord
from schemas.clock import DAY_MS
from schemas.entitlements import Grant, Operation, SourceKind, Value
from schemas.periods import INSTANT_MIN_MS
from schemas.side_tables import MIRROR_COLUMNS, Arrived, Fetched, Row, Step
from sinks.sql.fake import FakeSideTables
from tests.unit.catalog.files import catalog_of
from tests.worlds.clock import ManualClock

CATALOG: Final = """\
version: 1
meters:
  - {slug: calls, event_type: call, aggregation: count, unit: calls, stripe_event_name: calls}
  - {slug: tokens, event_type: llm, aggregation: count, unit: tokens, stripe_event_name: tokens}
currencies: {usd: 2, jpy: 0}
defaults: {plan: free}
features:
  locations: {type: seat, merge: sum}
  members: {type: seat, merge: sum}
  pos: {type: flag}
  beta: {type: flag}
  vault: {type: flag}
  reports: {type: config}
  calls: {type: limit, merge: sum, meter: calls}
  tokens: {type: limit, merge: sum, meter: tokens, soft: true}
plans:
  free:
    version: 3
    prices: none
    grants: {locations: 1, calls: 100}
  essential:
    version: 4
    rank: 10
    prices:
      - {component: location, quantity: locations, month: {usd: "79.00", jpy: "12000"}, year: {usd: "790.00"}}
    grants: {locations: quantity, calls: 1000, tokens: 10, reports: {days: 30}}
  professional:
    version: 4
    rank: 20
    extends: essential@4
    prices:
      - {component: location, quantity: locations, month: {usd: "149.00", jpy: "22000"}, year: {usd: "1490.00"}}
      - {component: member, quantity: members, included: 5, month: {usd: "12.00", jpy: "1800"}, year: {usd: "120.00"}}
    grants: {pos: true, calls: 5000, members: quantity}
    trial: {family: paid, days: 30, grants: {calls: 500, beta: true}}
  scale:
    version: 1
    rank: 30
    prices:
      - {component: base, month: {usd: "200.00"}}
      - component: calls
        meter: calls
        unit: calls
        tiers: [{up_to: included, price: {usd: "0"}}, {up_to: inf, price: {usd: "0.001"}}]
    included: {calls: 10000}
    grants: {pos: true, calls: unlimited, locations: unlimited, members: unlimited}
  bank:
    version: 1
    rank: 40
    prices:
      - {component: base, year: {usd: "1000.00"}}
    grants: {vault: true}
addons:
  extra_calls:
    version: 1
    for: [essential, professional]
    price: {month: {usd: "20.00"}}
    grants: {calls: {add: 1000}}
    stack: 3
dunning: {fallback_plan: free}
"""
OLD: Final = CATALOG.replace("    version: 4\n    rank: 10", "    version: 3\n    rank: 10").replace(
    "essential@4", "essential@3"
).replace("calls: 1000, tokens", "calls: 900, tokens").replace('usd: "79.00"', 'usd: "59.00"')  # fmt: skip
DAY: Final = DAY_MS
FEBRUARY_MS: Final = 1_801_440_000_000
NOW_MS: Final = FEBRUARY_MS + 9 * DAY
MARCH_MS: Final = FEBRUARY_MS + 28 * DAY
YEAR_MS: Final = FEBRUARY_MS + 365 * DAY
NOBODY: Final = "nobody"
YES, NO = True, False


class Sub(NamedTuple):
    """A subscription: its items such as `essential.location` in some quantity, and columns of its row."""

    items: Mapping[str, int | None]
    columns: dict[str, Any]
    interval: str = "month"
    currency: str = "usd"
    phases: tuple[Any, ...] = ()


def sub(items: Mapping[str, int | None], status: str = "active", **more: Any) -> Sub:
    parts = {name: more.pop(name) for name in ("interval", "currency", "phases") if name in more}
    return Sub(items, {"status": status, **more}, **parts)


def essential(seats: int = 1, status: str = "active", **more: Any) -> Sub:
    return sub({"essential.v4.location": seats}, status, **more)


def professional(status: str = "active", **more: Any) -> Sub:
    return sub({"professional.v4.location": 1, "professional.v4.member": 5}, status, **more)


def scale(**more: Any) -> Sub:
    return sub({"scale.v1.base": 1, "scale.v1.calls": None}, **more)


def person(operation: str, value: Value | int, feature: str, kind: str = "override") -> Grant:
    exact = Decimal(value) if isinstance(value, int) and not isinstance(value, bool) else value
    source = SourceKind(kind)
    return Grant(feature, source, kind, Operation(operation), exact, INSTANT_MIN_MS, cause="ann", reason="ticket 7")


EXTRA: Final = {"extra_calls.v1.addon": 1}
IN_TRIAL: Final[dict[str, Any]] = {"status": "trialing", "trial_end_ms": MARCH_MS}
AFTER_TRIAL: Final[dict[str, Any]] = {"trial_end_ms": NOW_MS - DAY}
CHEAPER: Final = {"price": "essential.v4.location.month.usd", "quantity": 1}
DOWNGRADE: Final = ({"start_ms": MARCH_MS, "end_ms": None, "trial_end_ms": None, "anchor": None, "prices": [CHEAPER]},)
PRO: Final = "plan:professional@4"
ESS: Final = "plan:essential@4"


class Case(NamedTuple):
    """What an account has and asks, and the answer. `upgrade` is the offer, how many, and the minor units due now."""

    has: Sequence[Sub | Grant]
    asks: str
    allowed: bool
    reason: str
    value: object = None
    gives: Sequence[str] = ()
    upgrade: str = ""
    used: int = 0
    quantity: int = 1
    account: str = ""


CASES: Final[dict[str, Case]] = {
    # Flags and settings.
    "a flag of the plan": Case([professional()], "pos", YES, "included", gives=[PRO]),
    "a flag of a higher plan": Case([essential()], "pos", NO, "not_in_plan", upgrade="professional@4 4750"),
    "a flag, the highest plan is the cheapest": Case([essential(2)], "pos", NO, "not_in_plan", upgrade="scale@1 2850"),
    "a flag, without a plan": Case([], "pos", NO, "not_in_plan", upgrade="professional@4 14900"),
    "a flag, an unknown account": Case(
        [], "pos", NO, "no_account", upgrade="professional@4 14900", account=NOBODY
    ),
    "a flag that no plan gives": Case([professional()], "beta", NO, "not_in_plan"),
    "a flag, paid by the year": Case(
        [essential(interval="year")], "pos", NO, "not_in_plan", upgrade="professional@4 68274"
    ),
    "a flag of a plan that is sold by the year alone": Case(
        [essential()], "vault", NO, "not_in_plan", upgrade="bank@1 94639"
    ),
    "a flag, and an add-on that stays": Case(
        [sub({"essential.v4.location": 1} | EXTRA)], "pos", NO, "not_in_plan", upgrade="professional@4 4750"
    ),
    "a flag, paid in yen": Case(
        [essential(currency="jpy")], "pos", NO, "not_in_plan", upgrade="professional@4 6786"
    ),
    "a flag, the plan ends with the period": Case(
        [essential(cancel_at_ms=MARCH_MS)], "pos", NO, "not_in_plan", upgrade="professional@4 4750"
    ),
    "a flag, a downgrade is ahead": Case([professional(phases=DOWNGRADE)], "pos", YES, "included", gives=[PRO]),
    "settings of the plan": Case([essential()], "reports", YES, "included", '{"days":30}', [ESS]),
    "settings, without a plan": Case([], "reports", NO, "not_in_plan", "null", upgrade="essential@4 7900"),
    # Limits.
    "a limit of the default plan": Case([], "calls", YES, "within_limit", 100, ["default:free@3"], used=99),
    "a limit that is reached": Case(
        [], "calls", NO, "limit_reached", 100, ["default:free@3"], "essential@4 7900", used=100
    ),
    "a limit that an add-on raises": Case(
        [essential()], "calls", NO, "limit_reached", 1000, [ESS], "extra_calls@1 x1 1357", used=1000
    ),
    "a limit that three add-ons raise": Case(
        [essential()], "calls", NO, "limit_reached", 1000, [ESS], "extra_calls@1 x3 4071", used=1000, quantity=2500
    ),
    "a limit that a plan raises more cheaply": Case(
        [essential()], "calls", NO, "limit_reached", 1000, [ESS], "professional@4 4750", used=1000, quantity=3500
    ),
    "a limit that only the highest plan raises": Case(
        [essential()], "calls", NO, "limit_reached", 1000, [ESS], "scale@1 8210", used=1000, quantity=6000
    ),
    "a limit, by billions": Case(
        [essential()], "calls", NO, "limit_reached", 1000, [ESS], "scale@1 8210", used=1000, quantity=5 * 10**9
    ),
    "seats, by billions": Case(
        [essential()], "locations", NO, "seats_full", 1, [ESS], "scale@1 8210", used=1, quantity=10**9
    ),
    "a limit with an add-on": Case(
        [sub({"essential.v4.location": 1} | EXTRA)], "calls", YES, "within_limit", 2000, [ESS, "addon:extra_calls@1"],
        used=1999,
    ),
    "a limit, another of an add-on": Case(
        [sub({"essential.v4.location": 1} | EXTRA)], "calls", NO, "limit_reached", 2000, [ESS, "addon:extra_calls@1"],
        "extra_calls@1 x2 1357", used=2000,
    ),
    "a limit, and an add-on that goes": Case(
        [sub({"essential.v4.location": 1} | EXTRA)], "calls", NO, "limit_reached", 2000, [ESS, "addon:extra_calls@1"],
        "scale@1 6853", used=2000, quantity=9000,
    ),
    "a limit that nothing sold by the year raises": Case(
        [essential(interval="year")], "calls", NO, "limit_reached", 1000, [ESS], used=1000, quantity=9000
    ),
    "a limit of two subscriptions": Case(
        [essential(), essential()], "calls", YES, "within_limit", 2000, [ESS, ESS], used=1999
    ),
    "a limit of an older version": Case(
        [sub({"essential.v3.location": 1})], "calls", NO, "limit_reached", 900, ["plan:essential@3"],
        "extra_calls@1 x1 1357", used=900,
    ),
    "a soft limit": Case([essential()], "tokens", YES, "soft_limit_passed", 10, [ESS], used=10),
    "a soft limit that nothing gives": Case([], "tokens", NO, "not_in_plan", 0, upgrade="essential@4 7900"),
    "usage that is included": Case([scale()], "calls", YES, "included", "unlimited", ["plan:scale@1"], used=9_999),
    "usage beyond it": Case([scale()], "calls", YES, "overage_billed", "unlimited", ["plan:scale@1"], used=10000),
    # Seats.
    "a free seat": Case([essential(2)], "locations", YES, "within_limit", 2, [ESS], used=1),
    "full seats": Case([essential()], "locations", NO, "seats_full", 1, [ESS], "essential@4 x2 5360", used=1),
    "full seats, by the year": Case(
        [essential(2, interval="year")], "locations", NO, "seats_full", 2, [ESS], "essential@4 x3 77052", used=2
    ),
    "full seats of the default plan": Case(
        [], "locations", NO, "seats_full", 1, ["default:free@3"], "essential@4 x2 15800", used=1
    ),
    "full seats of an older version": Case(
        [sub({"essential.v3.location": 1})], "locations", NO, "seats_full", 1, ["plan:essential@3"],
        "essential@3 x2 4003", used=1,
    ),
    "seats beyond those that cost nothing": Case(
        [professional()], "members", NO, "seats_full", 5, [PRO], "professional@4 x7 1629", used=5, quantity=2
    ),
    "seats without a number": Case([scale()], "members", YES, "unlimited", "unlimited", ["plan:scale@1"], used=10**6),
    # Trials.
    "a trial": Case([professional(**IN_TRIAL)], "pos", YES, "trial", gives=[PRO]),
    "a trial that gives more": Case([professional(**IN_TRIAL)], "beta", YES, "trial", gives=["trial:professional@4"]),
    "a trial that gives less": Case(
        [professional(**IN_TRIAL)], "calls", NO, "limit_reached", 500, ["trial:professional@4"], "professional@4 14900",
        used=500,
    ),
    "a higher plan within a trial": Case(
        [essential(**IN_TRIAL)], "pos", NO, "not_in_plan", upgrade="professional@4 0"
    ),
    "a trial that was canceled": Case(
        [professional("canceled", ended_ms=NOW_MS - DAY, **AFTER_TRIAL)], "pos", NO, "trial_over",
        upgrade="professional@4 14900",
    ),
    "a trial without a card": Case(
        [professional("paused", pause_reason="trial_end_without_payment_method", **AFTER_TRIAL)],
        "pos", NO, "trial_over",
    ),
    "a trial that became paid": Case([professional(**AFTER_TRIAL)], "pos", YES, "included", gives=[PRO]),
    "what only the trial gave": Case([professional(**AFTER_TRIAL)], "beta", NO, "trial_over"),
    # Who does not pay.
    "a failed payment": Case([professional("past_due")], "pos", YES, "payment_failed_grace", gives=[PRO]),
    "a failed payment, a limit": Case(
        [professional("past_due")], "calls", YES, "payment_failed_grace", 5000, [PRO], used=4999
    ),
    "a failed payment, a limit that is reached": Case(
        [professional("past_due")], "calls", NO, "limit_reached", 5000, [PRO], used=5000
    ),
    "a failed payment, what a person gave": Case(
        [essential(status="past_due"), person("set", True, "pos")], "pos", YES, "included", gives=["override:override"]
    ),
    "unpaid": Case([professional("unpaid")], "pos", NO, "downgraded_unpaid"),
    "paused, because it was not paid": Case(
        [professional("paused", pause_reason="final_payment_failure")], "pos", NO, "downgraded_unpaid"
    ),
    "unpaid: what the fallback plan gives": Case(
        [professional("unpaid")], "calls", YES, "within_limit", 100, ["fallback:free@3"], used=99
    ),
    "unpaid: what the plan did not give": Case([essential(status="unpaid")], "pos", NO, "not_in_plan"),
    "paused on request": Case([professional("paused", pause_reason="pause_requested")], "pos", NO, "not_in_plan"),
    "a first payment that is open": Case([professional("incomplete")], "pos", NO, "not_in_plan"),
    "canceled": Case(
        [professional("canceled", ended_ms=NOW_MS - DAY)], "pos", NO, "not_in_plan", upgrade="professional@4 14900"
    ),
    # People.
    "an override": Case(
        [essential(), person("set", True, "pos")], "pos", YES, "included", gives=["override:override"]
    ),
    "an override that adds": Case(
        [essential(), person("add", 500, "calls")], "calls", YES, "within_limit", 1500, [ESS, "override:override"],
        used=1499,
    ),
    "an override that adds, and an upgrade": Case(
        [essential(), person("add", 500, "calls")], "calls", NO, "limit_reached", 1500, [ESS, "override:override"],
        "professional@4 4750", used=1500, quantity=4000,
    ),
    "an upper bound, which no plan lifts": Case(
        [essential(), person("at_most", 10, "calls")], "calls", NO, "limit_reached", 10, [ESS, "override:override"],
        used=10,
    ),
    "a denial, which no plan lifts": Case(
        [essential(), person("deny", False, "pos")], "pos", NO, "denied_by_override", gives=["override:override"]
    ),
    "a contract": Case(
        [essential(), person("set", 9000, "calls", "contract")], "calls", YES, "within_limit", 9000,
        ["contract:contract"], used=8999,
    ),
}  # fmt: skip


def rows_of(customer: str, name: str, made: Sub) -> Mapping[str, list[Row]]:
    """The mirror's rows of a subscription of a customer."""
    end_ms = YEAR_MS if made.interval == "year" else MARCH_MS
    given = {
        "id": name, "customer_id": customer, "billing_mode": "flexible", "collection_method": "charge_automatically",
        "currency": made.currency, "anchor_ms": FEBRUARY_MS, "start_ms": FEBRUARY_MS, "discounts_json": "[]",
        "deleted": 0, **made.columns,
    }  # fmt: skip
    items = [
        {
            "id": f"{name} {item}", "subscription_id": name, "price_id": f"{item}.{made.interval}.{made.currency}",
            "usage_type": "licensed" if quantity else "metered", "interval": made.interval, "interval_count": 1,
            "quantity": quantity, "period_start_ms": FEBRUARY_MS, "period_end_ms": end_ms,
        }
        for item, quantity in made.items.items()
    ]  # fmt: skip
    return whole({"subscriptions": [given], "subscription_items": items})


def whole(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Mapping[str, list[Row]]:
    """Rows with all columns of their tables."""
    return {
        table: [{column: row.get(column) for column in MIRROR_COLUMNS[table]} for row in given]
        for table, given in rows.items()
    }


def fetched_of(customer: str, has: Sequence[Sub | Grant]) -> Iterator[Fetched]:
    """What the mirror fetches of a customer."""
    row = {"id": customer, "created_ms": FEBRUARY_MS, "deleted": 0}
    yield Fetched(ObjectName(ObjectKind.CUSTOMER, customer), 0, whole({"stripe_customers": [row]}))
    for number, made in enumerate(each for each in has if isinstance(each, Sub)):
        name = f"{customer} sub {number}"
        yield Fetched(ObjectName(ObjectKind.SUBSCRIPTION, name), 0, rows_of(customer, name, made))
        if made.phases:
            schedule = {
                "id": f"{name} schedule", "customer_id": customer, "subscription_id": name, "status": "active",
                "end_behavior": "release", "phases_json": json.dumps(made.phases), "deleted": 0,
            }  # fmt: skip
            rows = whole({"subscription_schedules": [schedule]})
            yield Fetched(ObjectName(ObjectKind.SCHEDULE, f"{name} schedule"), 0, rows)


async def apply(tables: FakeSideTables) -> None:
    """Apply both versions of the catalog. The id of a price is its lookup key without the prefix."""
    states: dict[PlanId, KnownPlan] = {}
    records: dict[str, StripeRecord] = {}
    base = ""
    for number, text in enumerate((OLD, CATALOG), start=1):
        catalog = catalog_of(text).model_copy(update={"version": number})
        states |= {plan: KnownPlan(sold, PlanState.OPEN) for plan, sold in catalog.sold().items()}
        records |= {
            key: StripeRecord(key, CatalogKind.PRICE, key.removeprefix("tm."), price.plan, price.component)
            for key, price in all_prices(catalog).items()
        }
        plan = CatalogPlan(catalog, catalog_hash(catalog), base, "", False, (), (), (), {})
        await tables.catalog.begin_catalog(plan, "ann", "a test", NOW_MS)
        await tables.catalog.activate_catalog(plan, states, list(records.values()), NOW_MS)
        base = plan.sha256


async def answered() -> dict[str, Answer]:
    """The answers of one deployment, in which each case is an account with its customer."""
    tables, clock = FakeSideTables(timeline, overlaps), ManualClock(NOW_MS)
    await tables.migrate("test:acct_1", "log")
    await apply(tables)
    fetched: list[Fetched] = []
    for name, case in CASES.items():
        await tables.link(name, f"cus {name}", 0, "ann", "", NOW_MS)
        fetched += fetched_of(f"cus {name}", case.has)
        for grant in case.has:
            if isinstance(grant, Grant):
                await tables.entitlements.override(name, grant, "ann", NOW_MS)
    event = StripeEvent("evt_1", "test", NOW_MS // 1_000, "", tuple(each.name for each in fetched))
    await tables.commit(Step(0, 0, 1, NOW_MS, [Arrived(event, Via.WEBHOOK, 0)], fetched))
    renewal = Renewal(tables.catalog, tables.entitlements, clock)
    while await renewal.turn():
        pass

    async def usage(account: str, _meter: str, *, fresh: bool = False) -> Counted:  # a protocol
        return Counted(Decimal(CASES[account].used), MARCH_MS, NOW_MS)

    checks = AccessChecks(tables.catalog, tables.entitlements, usage, clock)
    answers = {
        name: await checks.check(case.account or name, case.asks, Decimal(case.quantity), Decimal(case.used))
        for name, case in CASES.items()
    }
    await tables.close()
    return answers


@pytest.fixture(scope="module")
def answers() -> dict[str, Answer]:
    return asyncio.run(answered())


@pytest.mark.parametrize("name", CASES)
def test_a_case(answers: Mapping[str, Answer], name: str) -> None:
    case, decision, upgrade = CASES[name], answers[name].decision, answers[name].upgrade
    limit = getattr(decision.limit, "value", decision.limit)
    offered = ""
    if upgrade:
        times = f" x{upgrade.quantity}" if upgrade.quantity else ""
        offered = f"{upgrade.offer}{times} {upgrade.due_now.minor}"

    assert (decision.allowed, decision.reason) == (case.allowed, case.reason)
    assert (decision.value if limit is None else limit) == case.value
    assert (sources_of(decision.gives), offered) == (list(dict.fromkeys(case.gives)), case.upgrade)


def test_every_reason_has_a_row() -> None:
    """Of the others, a spend cap, credits and a store that does not answer have tests of their own."""
    elsewhere = {Reason.SPEND_CAP_REACHED, Reason.CREDITS_EXHAUSTED, Reason.FALLBACK_ALLOW, Reason.FALLBACK_DENY}

    assert {case.reason for case in CASES.values()} | elsewhere == set(Reason)

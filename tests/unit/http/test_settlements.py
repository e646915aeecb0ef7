"""Which invoice a correction of a closed period is compared with, and when nobody can say the cents (S16)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, Final

import pytest

from pipeline.explaining import settling
from pipeline.explaining.settling import settlements
from pipeline.http.corrections import planned_answer
from pipeline.logs.bindings import AccountLog
from pipeline.logs.correcting import Planned, plan_correction, write_correction
from pipeline.rollup.corrector import Corrector
from schemas.account_records import InvoiceRecord
from schemas.bills import Bill
from schemas.clock import DAY_MS, HOUR_MS
from schemas.control import CorrectionRecord
from schemas.corrections import Settlement
from schemas.errors import OperatorNeeded, Transient
from schemas.intent_ledger import IntentTotals
from schemas.periods import Period
from schemas.side_tables import Link
from sinks.clickhouse.fake_corrections import FakeCorrections
from tests.worlds.deployment import SECRET
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS, Deployment

METERS: Final[dict[str, Any]] = {
    "version": 1,
    "meters": [
        {"slug": "calls", "event_type": "calls", "aggregation": "sum", "value_path": "$.calls", "scale": 1,
         "stripe_event_name": "calls", "filters": [{"path": "$.kind", "values": ["real"]}]},
        {"slug": "unsold", "event_type": "unsold", "aggregation": "count"},
        {"slug": "disk", "event_type": "gauge", "aggregation": "time_weighted", "value_path": "$.gb",
         "stripe_event_name": "disk"},
    ],
}  # fmt: skip
NOVEMBER: Final = Period(NOVEMBER_MS, DECEMBER_MS)
DECEMBER: Final = Period(DECEMBER_MS, DECEMBER_MS + 31 * DAY_MS)
OCTOBER: Final = Period(NOVEMBER_MS - 31 * DAY_MS, NOVEMBER_MS)
FINAL_MS: Final = DECEMBER_MS + HOUR_MS
TWO_CENTS: Final = json.dumps({"currency": "usd", "unit_amount_decimal": "2"})


def bill(invoice: str = "in_nov", period: Period = NOVEMBER, **changes: Any) -> Bill:
    """50 calls at 2 cents. Stripe's spans do not begin at whole minutes."""
    made = Bill("cus_ada", "sub_1", invoice, "calls", "price_1", period.start_ms + 7_000, period.end_ms + 7_000,
                Decimal(50), 100, "usd", 2, None, FINAL_MS, terms=TWO_CENTS)  # fmt: skip
    return made._replace(**changes)


class Closed(Deployment):
    """November is over: `first` had 10 calls and `second` 20. `counted`: by day, the periods that ClickHouse names."""

    def __init__(self) -> None:
        super().__init__()
        self.archived = FakeCorrections(self.clickhouse)
        self.bills: list[Bill] = [bill()]
        self.counted: dict[int, list[Period]] = {}
        self.record: InvoiceRecord | None = InvoiceRecord({"subscription_id": "sub_1", "created_ms": 1}, [])

    async def begin(self) -> None:
        """Use calls in November, and close it."""
        await self.start(METERS)
        await self.emit("ada", type_="calls", id="first", calls=10, kind="real")
        await self.emit("ada", type_="calls", id="second", calls=20, kind="real")
        await self.emit("ada", type_="calls", id="test", calls=30, kind="test")
        await self.emit("ada", type_="unsold", id="unsold")
        await self.emit("ada", type_="gauge", id="sample", gb=3)
        await self.advance(DECEMBER_MS - self.clock.ms + 10 * DAY_MS)
        await self.catch_up()

    async def stores(self) -> Any:
        """What explain asks."""

        async def given(what: Any) -> Any:
            return what

        async def bills(from_ms: int, to_ms: int, customer: str, _limit: int) -> Sequence[Bill]:
            return [each for each in self.bills if each.stripe_customer == customer and from_ms <= each.end_ms < to_ms]

        async def periods(_account: str, _meter: Any, hour_ms: int, counted_ms: int) -> Sequence[Period]:
            told = [DECEMBER] if counted_ms >= FINAL_MS else [NOVEMBER]
            return self.counted.get(hour_ms // DAY_MS, told)

        mirror: Mapping[str, Any] = {"subscriptions": []}
        totals = IntentTotals(Decimal(50), Decimal(0), Decimal(0), Decimal(0))
        tables = SimpleNamespace(
            links=lambda _account: given([Link("ada", "cus_ada", 0)]),
            bills=SimpleNamespace(bills=bills, items=lambda *_: given([])),
            intents=SimpleNamespace(totals=lambda *_: given(totals), drawn=lambda *_: given(Decimal(0))),
            account_records=SimpleNamespace(
                invoice=lambda *_: given(self.record), mirrored_of=lambda *_: given(mirror)
            ),
        )  # fmt: skip
        return SimpleNamespace(clock=self.clock, tables=tables, evidence=SimpleNamespace(periods=periods))

    async def plan(
        self, event: str, treatment: str = "credit_note", name: str = "c-1", data: Mapping[str, Any] | None = None
    ) -> Planned:
        """A correction that is not written."""
        wish = CorrectionRecord.model_validate({
            "account": "ada", "correction": name, "event": event, "kind": "amend" if data else "void", "by": "ann",
            "data": json.dumps(data) if data else "", "reason": "wrong", "treatment": treatment,
        })  # fmt: skip
        return await plan_correction(self.account_log, self.store, self.archived, wish)

    async def write(self, planned: Planned) -> None:
        """Write a correction, and let all follow from it."""
        await write_correction(self.account_log, planned)
        corrector = Corrector(self.log, self.clickhouse, self.archived)
        await self.catch_up()
        for partition in range(self.world.partitions):
            await corrector.correct(partition)
        await self.catch_up()

    @property
    def account_log(self) -> AccountLog:
        """The log of corrections."""
        return AccountLog(self.log, self.world.partitions, SECRET, self.clock)

    async def settled(self, event: str, **options: Any) -> Settlement:
        """What is said of the only meter of an event."""
        (found,) = await settlements(self.stores, self.archived, await self.plan(event, **options))
        return found


@pytest.fixture
async def world() -> Closed:
    world = Closed()
    await world.begin()
    return world


DAY: Final = (NOVEMBER_MS + 9 * DAY_MS) // DAY_MS


async def test_the_invoice_of_the_period_in_which_the_event_counts(world: Closed) -> None:
    """Not that of another customer or meter, nor a void one. An event that came late counts in a later period."""
    world.bills += [bill("in_dec", DECEMBER), bill("in_other", stripe_customer="cus_bob"),
                    bill("in_void", is_void=True), bill("in_disk", event_name="disk")]  # fmt: skip
    (found,) = await settlements(world.stores, world.archived, await world.plan("first"))
    assert (found.unknown, found.invoice, found.corrected, found.difference_minor) == ("", "in_nov", Decimal(40), -20)
    assert found.span == (NOVEMBER_MS + 7_000, DECEMBER_MS + 7_000)

    world.counted[DAY] = [DECEMBER]
    assert (await world.settled("first")).invoice == "in_dec"


@pytest.mark.parametrize("treatment", ["next_period", "credit_note", "write_off"])
async def test_each_treatment_says_the_cents(world: Closed, treatment: str) -> None:
    assert (await world.settled("second", treatment=treatment)).difference_minor == -40


async def test_an_amendment_that_lets_an_event_count(world: Closed) -> None:
    """It came in its month, so it would have counted there, also if no other event of its hour did."""
    world.counted[DAY] = []
    found = await world.settled("test", data={"calls": "30.5", "kind": "real"})

    assert (found.unknown, found.corrected, found.difference_minor) == ("", Decimal("80.5"), 61)


async def test_credit_notes_of_earlier_corrections_are_taken_as_made(world: Closed) -> None:
    """The last one of each event. What was written off or told, and other accounts' notes, change nothing."""
    for event, treatment, name, data in (
        ("first", "credit_note", "c-1", None),
        ("first", "credit_note", "c-2", {"calls": 4, "kind": "real"}),
        ("second", "write_off", "c-3", None),
        ("unsold", "credit_note", "c-4", None),
    ):
        await world.write(await world.plan(event, treatment, name, data))

    again = await world.settled("first", name="c-5")
    other = await world.settled("second", name="c-6")
    same = await world.settled("first", name="c-1")

    assert (again.settled_minor, again.corrected_minor, again.difference_minor) == (-12, 80, -8)
    assert (other.settled_minor, other.corrected_minor, other.difference_minor) == (-12, 48, -40)
    assert (same.settled_minor, same.difference_minor) == (0, -20)


async def test_a_credit_note_of_another_month_is_not_of_this_invoice(world: Closed) -> None:
    await world.write(await world.plan("first"))
    late = await world.emit("ada", type_="calls", calls=5, kind="real", at_ms=NOVEMBER_MS + 20 * DAY_MS)
    await world.catch_up()
    world.bills.append(bill("in_dec", DECEMBER))

    found = await world.settled(late, name="c-2")

    assert (found.invoice, found.settled_minor, found.difference_minor) == ("in_dec", 0, -10)


async def test_a_correction_that_changed_another_month_makes_the_difference_unknown(world: Closed) -> None:
    await world.write(await world.plan("first", "next_period"))
    found = await world.settled("first", name="c-2", data={"calls": 3, "kind": "real"})

    assert "changed another period" in found.unknown


@pytest.mark.parametrize(
    ("given", "event", "why"),
    [
        pytest.param({"bills": []}, "first", "the mirror has no invoice", id="no invoice"),
        pytest.param({"bills": [bill(), bill(price="price_2")]}, "first", "more than one price", id="two prices"),
        pytest.param({"bills": [bill(is_void=True)]}, "first", "the invoice in_nov is void", id="void"),
        pytest.param({"counted": {DAY: [OCTOBER, NOVEMBER]}}, "first", "in one of two", id="two periods"),
        pytest.param({"record": None}, "first", "another account's", id="an invoice of another account"),
        pytest.param({}, "unsold", "not reported to Stripe", id="not reported"),
        pytest.param({}, "sample", "only the measurer knows", id="a sample"),
    ],
)  # fmt: skip
async def test_what_nobody_knows(world: Closed, given: dict[str, Any], event: str, why: str) -> None:
    for name, value in given.items():
        setattr(world, name, value)

    found = await world.settled(event)

    assert why in found.unknown
    assert (found.invoice, found.span) == ("", NOVEMBER)


@pytest.mark.parametrize(("treatment", "meters"), [("next_period", ["disk"]), ("credit_note", []), ("write_off", [])])
async def test_a_sample_is_measured_again_if_its_void_counts(world: Closed, treatment: str, meters: list[str]) -> None:
    answer = planned_answer(await world.plan("sample", treatment), [], is_dry_run=True)

    assert answer.measured_again == meters


@pytest.mark.parametrize("error", [Transient("PostgreSQL is away"), OperatorNeeded("of another deployment")])
async def test_invoices_that_cannot_be_read_hinder_no_correction(world: Closed, error: Exception) -> None:
    async def away() -> Any:
        raise error

    (found,) = await settlements(away, world.archived, await world.plan("first"))
    assert found.unknown == f"the invoices cannot be read: {error}"
    (found,) = await settlements(None, world.archived, await world.plan("first"))
    assert "TIDEMARK_SQL_URL" in found.unknown


async def test_an_event_whose_hour_clickhouse_does_not_have(world: Closed) -> None:
    late = await world.emit("ada", type_="calls", calls=5, kind="real", at_ms=NOVEMBER_MS + 20 * DAY_MS)
    await world.catch_up()
    world.counted[NOVEMBER_MS // DAY_MS + 20] = []

    assert "ClickHouse has no usage of the hour" in (await world.settled(late)).unknown


@pytest.mark.parametrize(("limit", "most"), [("SETTLED_MAX", 0), ("CORRECTIONS_MAX", 1)])
async def test_more_corrections_than_are_looked_at(
    world: Closed, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    await world.write(await world.plan("first"))
    monkeypatch.setattr(settling, limit, most)

    assert "too many corrections" in (await world.settled("second", name="c-2")).unknown


async def test_an_open_period_has_nothing_to_settle(world: Closed) -> None:
    event = await world.emit("ada", type_="calls", calls=5, kind="real")
    await world.catch_up()

    assert await settlements(world.stores, world.archived, await world.plan(event)) == ()

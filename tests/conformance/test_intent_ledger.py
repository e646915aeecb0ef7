"""What the ledger of intents promises, on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.intents import revised
from aggregators.report_records import ReportedIntents
from schemas.clock import HOUR_MS
from schemas.errors import Fenced
from schemas.intent_ledger import IntentLedger, IntentState, IntentTotals, LedgerIntent, Waiting
from schemas.reports import Allocation, Attempt, Intent, OutcomeStatus, Redrive, ReportEntry, ReportOutcome
from sinks.sql.fake_intents import FakeIntentLedger
from sinks.sql.side_tables import SqlSideTables
from tests.services.postgres import opened_tables
from tests.worlds.sender import NOW_MS, PERIOD_END_MS, PERIOD_START_MS, make_intent

ACCEPTED, DEAD, LATE = OutcomeStatus.ACCEPTED, OutcomeStatus.DEAD, OutcomeStatus.LATE


@pytest_asyncio.fixture(params=["memory", "sqlite", "service"])
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[IntentLedger]:
    """The fake in memory, and the ledger over both SQL engines."""
    if request.param == "memory":
        yield FakeIntentLedger()
        return
    async with opened_tables(request, is_fake=request.param == "sqlite") as tables:
        yield tables.intents


def attempt(
    name: str, at_ms: int = NOW_MS, replaces_ms: int | None = None, customer: str = "cus_a", value: str = "0.05"
) -> Attempt:
    return Attempt(
        identifier=name, stripe_customer=customer, timestamp_s=NOW_MS // 1_000 - 1, value=value,
        attempted_at_ms=at_ms, replaces_ms=replaces_ms,
    )  # fmt: skip


def allocation(name: str, drawn: int = 2, remainder: int = 3) -> Allocation:
    return Allocation(identifier=name, drawn_minor=drawn, remainder_minor=remainder, draws={"cg_1": drawn})


def outcome(name: str, status: OutcomeStatus = ACCEPTED, customer: str = "cus_a", detail: str = "") -> ReportOutcome:
    return ReportOutcome(
        identifier=name, status=status, detail=detail, stripe_customer=customer, settled_at_ms=NOW_MS + 1
    )


def redrive(intent: Intent) -> list[ReportEntry]:
    successor = revised(intent)
    marks = Redrive(
        identifier=intent.identifier, successor=successor.identifier, actor="ada", reason="corrected",
        evidence="refused", redriven_at_ms=NOW_MS + 2,
    )  # fmt: skip
    return [marks, successor]


async def applied(ledger: IntentLedger, *entries: ReportEntry, partition: int = 0) -> None:
    """Apply entries as records of their own, behind those that were applied before."""
    start = await ledger.position(partition)
    numbered = list(enumerate(entries, start or 0))
    await ledger.apply(partition, start, (start or 0) + len(entries), numbered)


async def only(ledger: IntentLedger, name: str) -> LedgerIntent:
    (found,) = await ledger.found([name])
    return found


async def test_an_intent_is_found_with_all_its_fields(ledger: IntentLedger) -> None:
    intent = make_intent("one", delta=-(10**18), scale=12, livemode=True, revision=3)
    await applied(ledger, make_intent("zero"), intent, partition=5)
    assert await only(ledger, "one") == LedgerIntent(5, 1, intent)
    assert await ledger.found(["other"]) == []


async def test_a_position_moves_only_from_the_believed_one(ledger: IntentLedger) -> None:
    assert await ledger.position(0) is None
    await ledger.apply(0, None, 7, [])
    await ledger.apply(0, 7, 20, [])
    await ledger.apply(1, None, 4, [])
    for believed in (None, 7, 19, 21):
        with pytest.raises(Fenced):
            await ledger.apply(0, believed, 30, [(29, make_intent("one"))])
    assert (await ledger.position(0), await ledger.position(1)) == (20, 4)
    assert await ledger.found(["one"]) == []


async def test_a_ledger_that_is_emptied_takes_only_the_first_position(ledger: IntentLedger) -> None:
    """Otherwise a sink that runs on would leave out all intents of before."""
    with pytest.raises(Fenced):
        await ledger.apply(0, 7, 8, [(7, make_intent("one"))])
    assert await ledger.position(0) is None
    assert await ledger.found(["one"]) == []


async def test_the_ledger_and_the_side_tables_have_positions_of_their_own(side_tables: SqlSideTables) -> None:
    await side_tables.intents.apply(0, None, 7, [])
    assert await side_tables.position(0) is None


async def test_of_two_that_move_a_position_at_once_one_is_fenced(ledger: IntentLedger) -> None:
    await ledger.apply(0, None, 1, [])
    moves = (ledger.apply(0, 1, 2, [(1, make_intent(name))]) for name in ("a", "b"))
    results = await asyncio.gather(*moves, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Fenced", "list"]
    assert len(await ledger.listed([IntentState.PENDING])) == 1


INTENT = make_intent("one")
LIFE: list[ReportEntry] = [
    INTENT, attempt("one"), attempt("one", NOW_MS + 5), outcome("one", DEAD, detail="no customer"), outcome("one"),
    *redrive(INTENT),
]  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([INTENT], LedgerIntent(0, 0, INTENT), id="intent"),
        pytest.param([outcome("one"), attempt("one"), INTENT], LedgerIntent(0, 2, INTENT), id="unknown intent"),
        pytest.param(
            [INTENT, attempt("one"), attempt("one", NOW_MS + 5, customer="cus_b"), INTENT],
            LedgerIntent(0, 0, INTENT, attempt=attempt("one"), stripe_customer="cus_a", in_doubt=True),
            id="the first attempt counts",
        ),
        pytest.param(
            [INTENT, attempt("one"), attempt("one", NOW_MS + 5, NOW_MS), attempt("one", NOW_MS + 6, NOW_MS)],
            LedgerIntent(
                0, 0, INTENT, attempt=attempt("one", NOW_MS + 5, NOW_MS), stripe_customer="cus_a", in_doubt=True
            ),
            id="an attempt replaces the one that it names",
        ),
        pytest.param(
            [
                INTENT,
                attempt("one"),
                outcome("one", DEAD, "", "no"),
                outcome("one"),
                attempt("one", NOW_MS + 5, NOW_MS),
            ],
            LedgerIntent(0, 0, INTENT, IntentState.DEAD, attempt("one"), "cus_a", "", "no", NOW_MS + 1),
            id="the first outcome counts",
        ),
        pytest.param(
            [INTENT, outcome("one", LATE, "cus_b", "in_1")],
            LedgerIntent(0, 0, INTENT, IntentState.LATE, None, "cus_b", "", "in_1", NOW_MS + 1),
            id="late",
        ),
        pytest.param(
            [INTENT, allocation("one"), allocation("one", 5, 0), outcome("one", OutcomeStatus.CREDITED)],
            LedgerIntent(0, 0, INTENT, IntentState.CREDITED, None, "cus_a", settled_at_ms=NOW_MS + 1, drawn_minor=2),
            id="the first allocation counts",
        ),
        pytest.param(
            [INTENT, attempt("one"), allocation("one")],
            LedgerIntent(0, 0, INTENT, attempt=attempt("one"), stripe_customer="cus_a", in_doubt=True),
            id="an allocation behind an attempt",
        ),
        pytest.param(
            [INTENT, allocation("one", 5, 1)], LedgerIntent(0, 0, INTENT), id="an allocation that does not add up"
        ),
        pytest.param(
            [INTENT, allocation("one"), attempt("one"), attempt("one", NOW_MS + 5, value="0.03")],
            LedgerIntent(
                0,
                0,
                INTENT,
                attempt=attempt("one", NOW_MS + 5, value="0.03"),
                stripe_customer="cus_a",
                in_doubt=True,
                drawn_minor=2,
            ),
            id="an attempt of a sender that did not know the allocation",
        ),
        pytest.param(
            LIFE,
            LedgerIntent(0, 0, INTENT, IntentState.REDRIVEN, attempt("one"), "cus_a", "", "no customer", NOW_MS + 1),
            id="redriven",
        ),
    ],
)
@pytest.mark.parametrize("together", [True, False])
async def test_what_entries_make_of_an_intent(
    ledger: IntentLedger, entries: list[ReportEntry], expected: LedgerIntent, together: bool
) -> None:
    """The same in one transaction, and in one for each entry."""
    for batch in [entries] if together else [[entry] for entry in entries]:
        await applied(ledger, *batch)
    assert await only(ledger, "one") == expected


async def test_entries_that_come_again_change_nothing(ledger: IntentLedger) -> None:
    await applied(ledger, *LIFE)
    before = await ledger.found(["one", "one-r1"])
    await applied(ledger, *LIFE)
    assert sorted(await ledger.found(["one", "one-r1"])) == sorted(before)
    assert [each.intent.identifier for each in await ledger.listed([IntentState.PENDING])] == ["one-r1"]


NAMES = ("a", "b")
ENTRIES = st.sampled_from(
    [
        entry
        for name in NAMES
        for entry in (
            make_intent(name), attempt(name, 1), attempt(name, 2), attempt(name, 3, 1), outcome(name),
            outcome(name, DEAD), *redrive(make_intent(name)), allocation(name), allocation(name, 5, 0),
            attempt(name, 4, value="0.03"), attempt(name, 5, 4, value="0.03"), attempt(name, 6, 1, value="0.03"),
        )
    ]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(ENTRIES, max_size=30), st.integers(1, 7))
async def test_the_ledger_sees_the_attempts_and_outcomes_that_the_topic_has(
    entries: list[ReportEntry], batch: int
) -> None:
    """The reconciler and the lookups read the topic with `ReportedIntents`."""
    intents = [make_intent(name) for name in NAMES]
    reported = ReportedIntents()
    for entry in (*intents, *entries):
        reported.add(0, entry)
    ledger = FakeIntentLedger()
    await applied(ledger, *intents)
    for start in range(0, len(entries), batch):
        await applied(ledger, *entries[start : start + batch])
    for each in reported:
        known = await only(ledger, each.intent.identifier)
        assert (known.state is IntentState.ACCEPTED, known.state is IntentState.DEAD) == (
            each.is_accepted,
            each.is_dead,
        )
        assert (known.state is IntentState.REDRIVEN) == (each.redrive is not None)
        assert (known.drawn_minor, known.billed_minor) == (
            each.allocation and each.allocation.drawn_minor,
            each.billed_minor,
        )
        if known.state is IntentState.PENDING:
            assert known.attempt == each.attempt


async def test_due_are_the_pending_intents_that_waited_longest(ledger: IntentLedger) -> None:
    names = ["late", "b", "a", "settled", "held", "waits"]
    await applied(ledger, *(make_intent(name) for name in names), outcome("settled"))
    await applied(ledger, make_intent("elsewhere"), partition=1)
    waiting = [await only(ledger, name) for name in ("late", "held", "waits")]
    until = {"late": NOW_MS, "held": NOW_MS - 5, "waits": NOW_MS + 1}
    await ledger.waits(0, [each._replace(not_before_ms=until[each.intent.identifier]) for each in waiting])
    due = [each.intent.identifier for each in await ledger.due(0, NOW_MS, 10)]
    assert due == ["b", "a", "held", "late"]
    assert [each.intent.identifier for each in await ledger.due(0, NOW_MS, 2)] == ["b", "a"]


async def test_progress_is_kept(ledger: IntentLedger) -> None:
    await applied(ledger, INTENT, attempt("one"))
    known = await only(ledger, "one")
    waiting = known._replace(
        hold="unknown",
        detail="asked",
        not_before_ms=NOW_MS + 9,
        failures=2,
        absent_at_ms=NOW_MS,
        stripe_customer="cus_c",
    )
    await ledger.waits(0, [waiting])
    assert await only(ledger, "one") == waiting
    await applied(ledger, attempt("one", NOW_MS + 5, NOW_MS))
    replaced = await only(ledger, "one")
    assert (replaced.hold, replaced.absent_at_ms, replaced.failures) == ("", None, 2)


@pytest.mark.parametrize(
    ("entry", "partition"),
    [
        pytest.param(outcome("one"), 0, id="settled"),
        pytest.param(attempt("one", NOW_MS + 5, NOW_MS), 0, id="another attempt"),
        pytest.param(None, 1, id="another partition"),
    ],
)
async def test_progress_that_is_out_of_date_changes_nothing(
    ledger: IntentLedger, entry: ReportEntry | None, partition: int
) -> None:
    await applied(ledger, INTENT, attempt("one"))
    known = await only(ledger, "one")
    if entry is not None:
        await applied(ledger, entry)
    before = await only(ledger, "one")
    await ledger.waits(partition, [known._replace(hold="unknown", absent_at_ms=NOW_MS)])
    assert await only(ledger, "one") == before


async def test_waits_that_end_too_late_end_now(ledger: IntentLedger) -> None:
    await applied(ledger, *(make_intent(name) for name in ("a", "b", "c")), outcome("c"))
    known = {name: await only(ledger, name) for name in "ab"}
    await ledger.waits(0, [known["a"]._replace(not_before_ms=99), known["b"]._replace(not_before_ms=100)])
    await ledger.end_waits(1, 0)
    assert await ledger.due(0, 98, 9) == []
    await ledger.end_waits(0, 99)
    assert [each.intent.identifier for each in await ledger.due(0, 0, 9)] == ["b"]


async def test_waiting_counts_the_pending_intents_by_hold(ledger: IntentLedger) -> None:
    early = make_intent("early", period_end_ms=PERIOD_END_MS - HOUR_MS)
    await applied(ledger, *(make_intent(name) for name in ("a", "b", "c", "d")), early, outcome("a"))
    held = [each._replace(hold="meter") for each in await ledger.found(["d", "early"])]
    await ledger.waits(0, held)
    assert await ledger.waiting(0) == [Waiting("", 2, PERIOD_END_MS, 1), Waiting("meter", 2, early.period_end_ms, 3)]
    assert await ledger.waiting(1) == []


async def test_totals_are_exact_and_of_one_customer_meter_and_span(ledger: IntentLedger) -> None:
    big = 10**18
    entries: list[ReportEntry] = []
    for number in range(12):
        name = f"big {number}"
        entries += [make_intent(name, delta=big, scale=0), attempt(name), outcome(name)]
    entries += [make_intent("small", delta=1, scale=12), attempt("small"), outcome("small")]
    entries += [make_intent("late", delta=250), outcome("late", LATE)]
    entries += [make_intent("dead", delta=-3), attempt("dead"), outcome("dead", DEAD)]
    entries += [make_intent("again"), attempt("again"), outcome("again", DEAD), *redrive(make_intent("again"))]
    entries += [make_intent("pending", delta=7), attempt("pending"), make_intent("nobody's", delta=9)]
    entries += [make_intent("free"), outcome("free", OutcomeStatus.FREE)]
    entries += [make_intent("other"), attempt("other", customer="cus_b"), outcome("other", customer="cus_b")]
    entries += [make_intent("calls", event_name="calls"), attempt("calls"), outcome("calls")]
    entries += [make_intent("drawn"), allocation("drawn", 6, -1), attempt("drawn", value="-0.01"), outcome("drawn")]
    entries += [make_intent("all"), allocation("all", 5, 0), outcome("all", OutcomeStatus.CREDITED)]
    entries += [make_intent("one more", delta=1), attempt("one more"), outcome("one more")]
    await applied(ledger, *entries)
    expected = IntentTotals(Decimal(f"{12 * big}.000000000001"), Decimal("2.5"), Decimal("-0.03"), Decimal("0.07"))
    assert await ledger.totals("tokens", "cus_a", PERIOD_START_MS, PERIOD_END_MS) == expected
    assert await ledger.totals("tokens", "", PERIOD_START_MS, PERIOD_END_MS) == IntentTotals(*[Decimal(0)] * 4)


@pytest.mark.parametrize(
    ("from_ms", "to_ms", "counted"),
    [(0, 1, True), (0, 0, False), (1, 1_000, False), (-1_000, 0, False), (-1_000, 1, True)],
)
async def test_a_span_of_totals_begins_at_its_start_and_ends_before_its_end(
    ledger: IntentLedger, from_ms: int, to_ms: int, counted: bool
) -> None:
    """The event's timestamp counts, not the usage's instant: Stripe knows only the timestamp."""
    moved = attempt("one").model_copy(update={"timestamp_s": (PERIOD_START_MS + 5_000) // 1_000})
    await applied(ledger, make_intent("one", delta=100), moved, outcome("one"))
    at_ms = PERIOD_START_MS + 5_000
    totals = await ledger.totals("tokens", "cus_a", at_ms + from_ms, at_ms + to_ms)
    assert totals.accepted == (1 if counted else 0)


async def test_what_credits_pay_is_that_of_intents_whose_credits_stay_drawn(ledger: IntentLedger) -> None:
    """Those of free and replaced usage came back. Of a redriven intent the next revision counts."""
    for number, status in enumerate(OutcomeStatus):
        name = str(status)
        drawn = 10**number
        await applied(ledger, make_intent(name, delta=drawn), allocation(name, drawn, 0), outcome(name, status))
    span = ("tokens", "cus_a", PERIOD_START_MS, PERIOD_END_MS)
    assert await ledger.drawn(*span) == Decimal("1100.11")
    await applied(ledger, *redrive((await only(ledger, "dead")).intent))
    assert await ledger.drawn(*span) == Decimal("100.11")


async def test_lists_are_paged_by_state_and_account(ledger: IntentLedger) -> None:
    entries: list[ReportEntry] = []
    for number in range(7):
        name = f"i{number}"
        entries += [make_intent(name, "ab"[number % 2]), outcome(name, DEAD if number < 5 else LATE)]
    await applied(ledger, *entries)
    pages, after = [], ""
    while page := await ledger.listed([IntentState.DEAD], limit=2, after=after):
        pages.append([each.intent.identifier for each in page])
        after = pages[-1][-1]
    assert pages == [["i0", "i1"], ["i2", "i3"], ["i4"]]
    both = await ledger.listed([IntentState.DEAD, IntentState.LATE], "b")
    assert [each.intent.identifier for each in both] == ["i1", "i3", "i5"]
    assert await ledger.listed([IntentState.PENDING]) == []


async def test_a_text_with_a_nul_is_stored(ledger: IntentLedger) -> None:
    """An answer of a proxy may have any bytes, and a foreign writer may write any intent."""
    await applied(ledger, make_intent("a\0b"), outcome("a\0b", DEAD, detail="say \0"))
    (known,) = await ledger.listed([IntentState.DEAD])
    assert known.detail in ("say \N{REPLACEMENT CHARACTER}", "say \0")

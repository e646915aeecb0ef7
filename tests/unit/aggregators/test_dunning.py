"""Dunning as a table: what becomes of a case by the facts and the day, with the default times of the catalog."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from aggregators.dunning import advanced, closed
from schemas.catalog import Dunning
from schemas.clock import DAY_MS
from schemas.dunning import Debt, DunningCase, DunningOutcome, DunningState, Owing

RECOVERED = DunningOutcome.RECOVERED
T0 = 1_795_257_000_000
POLICY = Dunning()
ORDER = list(DunningState)


def debt(attempts: int = 1, status: str = "open", *, retries: bool = True, number: int = 1, failed: int = 0) -> Debt:
    """An invoice of 149.00 that failed so many days after T0."""
    first_ms = T0 + failed * DAY_MS
    return Debt(
        f"in_{number}", status, first_ms, attempts, first_ms + 9 * DAY_MS if retries else None, 14_900, "usd", 2
    )


def owing(*debts: Debt, status: str = "past_due", **facts: Any) -> Owing:
    return Owing("acme", "sub_1", status, **facts, debts=debts or (debt(),))


def case(state: str, downgraded: int | None = None, **columns: Any) -> DunningCase:
    """A case of T0; `downgraded` is the day of its downgrade."""
    downgrade_ms = None if downgraded is None else T0 + downgraded * DAY_MS
    row = DunningCase("dun_1", "acme", "sub_1", T0, T0, DunningState(state), 14_900, "usd", 2, downgrade_ms)
    return row._replace(**columns)


UNPAID, PAUSED = {"status": "unpaid"}, {"status": "paused", "pause_reason": "final_payment_failure"}
CANCELED: dict[str, Any] = {"status": "canceled", "ended_ms": T0 + 14 * DAY_MS, "cancellation_reason": "payment_failed"}
LEFT: dict[str, Any] = {**CANCELED, "cancellation_reason": "cancellation_requested"}
LAST = debt(9, retries=False)
# The case before, the facts, the day; then the state or outcome, the day of the downgrade, and that of the next look.
TABLE: dict[str, tuple[DunningCase | None, Owing, float, str, int | None, int | None]] = {
    "D01 the first failure": (None, owing(), 0, "notified", None, 3),
    "D02 nothing failed": (None, owing(debt(status="paid")), 0, "none", None, None),
    "D03 what was given up before the first look": (
        None, owing(debt(status="uncollectible"), **UNPAID), 0, "none", None, None,
    ),
    "D04 three days without a retry": (case("notified"), owing(), 3, "notified", None, 21),
    "D05 a retry failed before three days": (case("notified"), owing(debt(2)), 2.9, "notified", None, 3),
    "D06 a retry failed, after three days": (case("notified"), owing(debt(2)), 3, "urgent", None, 21),
    "D07 urgent stays urgent": (case("urgent"), owing(debt(1)), 5, "urgent", None, 21),
    "D08 no next attempt, a moment after the failure": (
        case("notified"), owing(debt(1, retries=False)), 0.1, "notified", None, 3,
    ),
    "D09 no next attempt, after three days": (
        case("notified"), owing(debt(1, retries=False)), 3, "final_warning", 6, 6,
    ),
    "D10 the last retry failed": (case("urgent"), owing(LAST), 14, "final_warning", 17, 17),
    "D11 one of two invoices is tried again": (case("urgent"), owing(LAST, debt(number=2)), 14, "urgent", None, 21),
    "D12 unpaid": (case("notified"), owing(**UNPAID), 1, "final_warning", 4, 4),
    "D13 paused after the last failure": (case("urgent"), owing(**PAUSED), 14, "final_warning", 17, 17),
    "D14 paused by a person": (
        case("urgent"), owing(status="paused", pause_reason="pause_requested"), 14, "urgent", None, 21,
    ),
    "D15 twenty-one days": (case("urgent"), owing(debt(3)), 21, "final_warning", 24, 24),
    "D16 twenty-two days, nobody looked": (case("urgent"), owing(debt(3)), 22, "final_warning", 25, 25),
    "D17 a retry after the last warning": (case("final_warning", 17), owing(debt(9)), 15, "final_warning", 17, 17),
    "D18 the downgrade": (case("final_warning", 17), owing(LAST), 17, "downgraded", 17, 24),
    "D19 the downgrade, nobody looked for a week": (case("final_warning", 17), owing(LAST), 24, "win_back", 17, 47),
    "D20 the offer": (case("downgraded", 17), owing(LAST), 24, "win_back", 17, 47),
    "D21 given up": (case("win_back", 17), owing(LAST, **UNPAID), 47, "churned", 17, None),
    "D22 canceled by Stripe": (case("urgent"), owing(LAST, **CANCELED), 14, "downgraded", 14, 21),
    "D23 canceled by Stripe, given up": (case("win_back", 14), owing(LAST, **CANCELED), 44, "churned", None, None),
    "D24 canceled by the customer": (case("urgent"), owing(LAST, **LEFT), 14, "churned", None, None),
    "D25 uncollectible by policy": (
        case("urgent"), owing(debt(9, "uncollectible", retries=False), **UNPAID), 14, "final_warning", 17, 17,
    ),
    "D26 uncollectible, and the subscription is active": (
        case("urgent"), owing(debt(9, "uncollectible"), status="active"), 14, "written_off", None, None,
    ),
    "D27 void": (case("urgent"), owing(debt(9, "void")), 14, "written_off", None, None),
    "D28 one paid, one void": (
        case("urgent"), owing(debt(9, "void"), debt(2, "paid", number=2)), 14, "recovered", None, None,
    ),
    "D29 one paid, one open": (
        case("urgent"), owing(debt(2, "paid"), debt(2, number=2)), 14, "urgent", None, 21,
    ),
    "D30 churned, and owed still": (
        case("closed", 17, outcome="churned", closed_ms=T0), owing(LAST, **UNPAID), 60, "churned", 17, None,
    ),
    "D31 churned, and paid late": (
        case("closed", 17, outcome="churned", closed_ms=T0), owing(debt(9, "paid")), 60, "churned", None, None,
    ),
    "D32 found late, and Stripe tries": (None, owing(debt(3)), 40, "final_warning", 43, 43),
    "D33 found late, and Stripe gave up": (None, owing(LAST, **UNPAID), 40, "win_back", 24, 54),
    "D34 found when all is over": (None, owing(LAST, **UNPAID), 90, "churned", 24, None),
    "D35 found a week later, and Stripe gave up": (None, owing(LAST, **UNPAID), 7, "final_warning", 10, 10),
    "D36 paid, and Stripe still bills nothing": (
        case("win_back", 17), owing(debt(9, "paid"), **UNPAID), 30, "recovered", 33, None,
    ),
    "D37 paid, and still paused": (case("urgent"), owing(debt(9, "paid"), **PAUSED), 16, "recovered", 19, None),
    "D38 paid, and paused by a person": (
        case("urgent"), owing(debt(9, "paid"), status="paused", pause_reason="subscription"), 16, "recovered", None,
        None,
    ),
    "D39 paid, and billed again": (
        case("closed", 33, outcome=RECOVERED, closed_ms=T0), owing(debt(9, "paid"), status="active"), 31, "recovered",
        None, None,
    ),
    "D50 paid, and not billed when the days are over": (
        case("closed", 33, outcome=RECOVERED, closed_ms=T0), owing(debt(9, "paid"), **UNPAID), 40, "recovered", 33,
        None,
    ),
    **{
        f"D4{number} paid while {state}": (
            case(state, downgraded), owing(debt(2, "paid"), status="active"), 18, "recovered", None, None,
        )
        for number, (state, downgraded) in enumerate(
            [("notified", None), ("urgent", None), ("final_warning", 19), ("downgraded", 17), ("win_back", 11)]
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(("before", "facts", "day", "state", "downgraded", "looks"), TABLE.values(), ids=TABLE)
def test_a_case(
    before: DunningCase | None, facts: Owing, day: float, state: str, downgraded: int | None, looks: int | None
) -> None:
    now_ms = T0 + round(day * DAY_MS)
    after = advanced(before, facts, POLICY, now_ms)
    if after is None:
        assert state == "none"
        return
    is_closed = after.state is DunningState.CLOSED
    days = [None if each is None else (each - T0) / DAY_MS for each in (after.downgrade_ms, after.next_ms)]

    assert [after.outcome if is_closed else after.state, *days] == [state, downgraded, looks]
    assert is_closed == (after.closed_ms is not None) == (after.outcome is not None)
    # A second look at the same instant changes nothing.
    assert advanced(after, facts, POLICY, now_ms) == after or (is_closed and after.downgrade_ms is None)


def test_the_first_failure_and_the_downgrade_are_written_once() -> None:
    """The oldest invoice is paid, another one failed later, and the catalog has other times by now."""
    first = advanced(None, owing(debt(), debt(number=2, failed=5)), POLICY, T0)
    assert first is not None
    left = owing(debt(2, "paid"), debt(2, number=2, failed=5))
    second = advanced(first, left, POLICY, T0 + 6 * DAY_MS)
    assert second is not None
    assert (second.opened_ms, second.state, second.amount_minor) == (T0, DunningState.URGENT, 29_800)

    final = advanced(second, left, POLICY, T0 + 21 * DAY_MS)
    assert final is not None
    moved = advanced(final, left, Dunning(downgrade_after_final_days=9), T0 + 22 * DAY_MS)
    assert moved == final


def test_a_case_does_not_go_back_by_another_catalog_or_clock() -> None:
    """The offer was made on the seventh day; by now the catalog makes it on the fourteenth, or another process's clock
    is an hour behind."""
    offered = case("win_back", 17, next_ms=T0 + 47 * DAY_MS)
    later = advanced(offered, owing(LAST, **UNPAID), Dunning(win_back_days=14), T0 + 25 * DAY_MS)
    assert later == offered._replace(next_ms=T0 + 31 * DAY_MS)
    lost = case("downgraded", 17, next_ms=T0 + 24 * DAY_MS)
    behind = advanced(lost, owing(LAST, **UNPAID), POLICY, T0 + 17 * DAY_MS - 3_600_000)
    assert behind == lost._replace(next_ms=T0 + 17 * DAY_MS)


def test_each_invoice_begins_one_case() -> None:
    names = {
        found.id
        for number in (1, 2)
        if (found := advanced(None, owing(debt(number=number)), POLICY, T0 + number)) is not None
    }
    again = advanced(None, owing(debt(number=1)), POLICY, T0 + DAY_MS)
    assert again is not None
    assert (len(names), again.id in names) == (2, True)


def test_what_a_person_writes_off_withholds_nothing() -> None:
    after = closed(case("downgraded", 17), DunningOutcome.WRITTEN_OFF, T0 + 18 * DAY_MS)
    assert (after.state, after.downgrade_ms, after.next_ms) == (DunningState.CLOSED, None, None)


@pytest.mark.parametrize("seed", range(200))
def test_a_case_only_goes_on(seed: int) -> None:
    """Random facts at random instants: no state comes again, the plan is lost three days after a warning and no sooner,
    and an open case is looked at again."""
    rng = random.Random(seed)
    now_ms, found, states = T0, None, list[DunningState]()
    facts = owing()
    while now_ms < T0 + 80 * DAY_MS and not (found and found.closed_ms):
        if rng.random() < 0.5:
            status = rng.choice(["past_due", "past_due", "active", "unpaid", "paused"])
            left = debt(rng.randint(1, 9), rng.choice(["open"] * 9 + ["paid", "uncollectible"]), retries=bool(seed % 2))
            facts = owing(left, status=status, pause_reason=rng.choice([None, "final_payment_failure"]))
        before, found = found, advanced(found, facts, POLICY, now_ms)
        if found is None:
            break
        if before and before.downgrade_ms is None and found.downgrade_ms is not None:
            assert found.downgrade_ms == now_ms + 3 * DAY_MS
        assert found.closed_ms is not None or (found.next_ms is not None and found.next_ms > now_ms)
        states.append(found.state)
        now_ms += rng.randint(1, 5 * DAY_MS)
    assert all(ORDER.index(one) <= ORDER.index(other) for one, other in pairwise(states))

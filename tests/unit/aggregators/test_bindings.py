"""The binding state of an account: which bindings cut counted usage, and what ends a pending cut."""

from __future__ import annotations

from typing import Any

import pytest

from aggregators.bindings import LATER_MAX, bound, closed, is_waiting, restated
from aggregators.periods import period_at
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import RestatementRecord
from schemas.errors import InvalidInput
from schemas.meters import Policy
from schemas.periods import AccountState, Billing, Binding, Period
from schemas.restatement import unpacked
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS, START_MS

EVE = "eve"
POLICY = Policy()


def monthly(effective_ms: int, anchor_ms: int, billing: Billing = Billing.UNMAPPED) -> Binding:
    return Binding(effective_from_ms=effective_ms, anchor_ms=anchor_ms, billing=billing)


NOW_MS = START_MS + 5 * DAY_MS
NEW = monthly(NOVEMBER_MS + 3 * DAY_MS, 3 * DAY_MS)
OCTOBER_MS = NOVEMBER_MS - 31 * DAY_MS


@pytest.mark.parametrize(
    ("before", "binding", "stream_time_ms", "expected"),
    [
        pytest.param(AccountState(), NEW, NOW_MS, (NOVEMBER_MS, NEW.effective_from_ms), id="the running month"),
        pytest.param(
            AccountState(), monthly(0, 3 * DAY_MS), NOW_MS, (NOVEMBER_MS, NOVEMBER_MS), id="not before what is open"
        ),
        pytest.param(
            AccountState(), monthly(0, 3 * DAY_MS), NOVEMBER_MS + MINUTE_MS, (OCTOBER_MS, OCTOBER_MS),
            id="grace keeps the month before open",
        ),
        pytest.param(AccountState(), monthly(0, 0), NOW_MS, None, id="the same periods"),
        pytest.param(AccountState(), monthly(NOW_MS + DAY_MS, 5 * DAY_MS), NOW_MS, None, id="in the future"),
        pytest.param(
            AccountState(closed_start_ms=(NOVEMBER_MS,)), NEW, NOW_MS, None, id="the running month is closed"
        ),
        pytest.param(AccountState(has_payer=True), NEW, NOW_MS, None, id="had a payer"),
    ],
)  # fmt: skip
def test_which_bindings_cut_the_past(
    before: AccountState, binding: Binding, stream_time_ms: int, expected: tuple[int, int] | None
) -> None:
    """(start of the first affected period, instant of the cut), or None if the binding takes effect after all usage."""
    after = bound(before, binding, 7, POLICY, stream_time_ms)

    pending = after.pending
    assert (pending and (pending.from_ms, pending.binding.effective_from_ms)) == expected
    if pending is None:
        assert after.bindings[-1].effective_from_ms > stream_time_ms
    else:
        assert after.bindings == before.bindings


def answers(position: int, **fields: Any) -> RestatementRecord:
    return RestatementRecord(account=EVE, position=position, **fields)


def begun() -> AccountState:
    """A late binding at position 7 whose restatement began at position 8."""
    asked = bound(AccountState(), NEW, 7, POLICY, NOW_MS)
    return restated(asked, answers(7, begins=True), 8, POLICY, NOW_MS)


@pytest.mark.parametrize("billing", [Billing.MAPPED, Billing.FREE])
def test_an_account_that_had_a_payer_is_never_restated(billing: Billing) -> None:
    """A later binding without a customer does not undo what was sent to Stripe."""
    state = bound(AccountState(), monthly(0, 0, billing), 5, POLICY, NOW_MS)
    state = bound(state, monthly(0, 5 * DAY_MS), 6, POLICY, NOW_MS)
    assert state.customers[-1].billing is Billing.UNMAPPED

    state = bound(state, monthly(NOVEMBER_MS, 3 * DAY_MS, Billing.MAPPED), 7, POLICY, NOW_MS)
    assert state.pending is None
    assert state.bindings[-1].effective_from_ms > NOW_MS


def test_too_many_later_bindings_end_the_cut_and_all_are_applied() -> None:
    """At the limit the binding takes effect after all usage, as if it had not been late."""
    waiting = begun()
    for number in range(LATER_MAX):
        waiting = bound(waiting, monthly(NOW_MS, number * HOUR_MS), 9 + number, POLICY, NOW_MS)
    assert waiting.pending is not None
    assert waiting.bindings == ()

    after = bound(waiting, monthly(NOW_MS, 9 * DAY_MS), 9 + LATER_MAX, POLICY, NOW_MS)
    assert after.pending is None
    assert after.bindings[0].effective_from_ms > NOW_MS
    assert after.bindings[-1].anchor_ms == 9 * DAY_MS
    assert restated(after, answers(8), 10, POLICY, NOW_MS) == after


def test_closing_takes_effect_at_once_and_restarts_the_restatement() -> None:
    """A closed period must not change, so the answer under way no longer applies."""
    after = closed(begun(), NOW_MS, 9, POLICY, NOW_MS)
    assert after.closed_start_ms == (NOVEMBER_MS,)
    assert not is_waiting(after, NOW_MS)
    assert restated(after, answers(8), 10, POLICY, NOW_MS) == after

    anew = restated(after, answers(9, begins=True), 10, POLICY, NOW_MS)
    assert anew.pending is None, "the closed month was all there was to cut"


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(answers(9), id="of another record"),
        pytest.param(answers(7), id="of the binding, which was begun since"),
        pytest.param(answers(7, begins=True), id="begun twice"),
        pytest.param(answers(8, begins=True), id="begun again in time"),
    ],
)
def test_unexpected_answer_changes_nothing(record: RestatementRecord) -> None:
    assert restated(begun(), record, 11, POLICY, NOW_MS) == begun()


def test_answer_to_a_restatement_that_has_not_begun_changes_nothing() -> None:
    """Usage that was counted since the recount would be lost."""
    asked = bound(AccountState(), NEW, 7, POLICY, NOW_MS)
    assert not is_waiting(asked, NOW_MS)
    assert restated(asked, answers(7), 8, POLICY, NOW_MS) == asked


def test_periods_follow_the_binding_after_the_answer() -> None:
    after = restated(begun(), answers(8), 9, POLICY, NOW_MS)
    assert period_at(after, NOW_MS) == Period(NEW.effective_from_ms, NEW.effective_from_ms + 30 * DAY_MS)


def test_a_restatement_that_does_not_end_in_time_gets_twice_as_long() -> None:
    """With a constant limit of ten minutes, an archive that takes eleven would block the account for ever."""
    state, stream_time_ms, spans = bound(AccountState(), NEW, 1, POLICY, NOW_MS), NOW_MS, []
    for number in range(2, 8):
        assert state.pending is not None
        begins = RestatementRecord(account=EVE, position=state.pending.position, begins=True)
        state = restated(state, begins, number, POLICY, stream_time_ms)
        assert state.pending is not None
        assert state.pending.until_ms is not None
        spans.append((state.pending.until_ms - stream_time_ms) // MINUTE_MS)
        stream_time_ms = state.pending.until_ms

    assert spans == [10, 20, 40, 80, 80, 80]


def test_period_that_closes_before_the_restatement_begins_is_not_cut() -> None:
    """There is nothing left to cut: the binding takes effect later, and no event waits."""
    asked = bound(AccountState(), monthly(NOW_MS, 5 * DAY_MS), 7, POLICY, NOW_MS + DAY_MS)
    assert asked.pending is not None
    later_ms = DECEMBER_MS + 2 * HOUR_MS
    closed_by_then = closed(asked, later_ms, 7, POLICY, later_ms)

    after = restated(closed_by_then, answers(7, begins=True), 8, POLICY, later_ms)
    assert after.pending is None
    assert after.bindings[-1].effective_from_ms > later_ms


@pytest.mark.parametrize("text", ["", "no base85 \x00", "Oeak", "0" * 40])
def test_invalid_content_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="content"):
        unpacked(text)

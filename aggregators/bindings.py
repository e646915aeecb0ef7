"""What an account's control records change: bindings, customers, closings, and restatements of what was counted (I8,
I9)."""

from __future__ import annotations

from typing import Final

from aggregators.periods import cuts_of, is_closed, open_period, period_at
from schemas.clock import MINUTE_MS
from schemas.control import AccountControlRecord, BindingRecord, RestatementRecord
from schemas.meters import GRACE_MAX_MS, Policy
from schemas.periods import AccountState, Billing, Binding, Customer, PendingCut, Restatement

# Beyond it the oldest are forgotten: their periods are long closed.
BINDINGS_MAX: Final = 99
# So many bindings of an account may wait for its restatement; with one more, the restatement is given up.
LATER_MAX: Final = 100
# So long, in stream time, an account's events may wait for its usage to be counted again; then it is begun anew. It
# takes seconds, unless the archive has just gone away. One that is slower is given twice as long the next time, up to
# eight times as long: with one span for ever it might never end.
RESTATEMENT_MS_MAX: Final = 10 * MINUTE_MS
RESTATEMENT_DOUBLINGS_MAX: Final = 3


def is_waiting(state: AccountState, stream_time_ms: int) -> bool:
    """Whether the account's events wait at this stream time, because what came before them is counted again."""
    pending = state.pending
    return pending is not None and pending.until_ms is not None and stream_time_ms < pending.until_ms


def apply(
    state: AccountState, record: AccountControlRecord, position: int, policy: Policy, stream_time_ms: int
) -> AccountState:
    """The account's state after one of its control records. The worker and the archive both call this function; the
    reconciler (`reconciler/history.py`) and the oracle have rules of their own, which prove it."""
    if isinstance(record, BindingRecord):
        return bound(state, record.binding, position, policy, stream_time_ms)
    if isinstance(record, RestatementRecord):
        return restated(state, record, position, policy, stream_time_ms)
    return closed(state, record.instant_ms, position, policy, stream_time_ms)


def bound(state: AccountState, binding: Binding, position: int, policy: Policy, stream_time_ms: int) -> AccountState:
    """The state after a binding record at a position: the binding takes effect beyond all that was counted, or asks
    for the account to be cut again from an instant in the past."""
    if state.pending is not None:
        later = (*state.pending.later, binding)
        if len(later) > LATER_MAX:
            return _beyond(state, (_asked(state.pending), *later), policy, stream_time_ms)
        return _with(state, pending=state.pending.model_copy(update={"later": later}))
    late = _late(state, binding, position, policy, stream_time_ms)
    return (
        with_binding(state, binding, policy.future_ms, stream_time_ms) if late is None else _with(state, pending=late)
    )


def closed(state: AccountState, instant_ms: int, position: int, policy: Policy, stream_time_ms: int) -> AccountState:
    """The state after a close record at a position. A restatement that was begun is begun anew after it: the period
    that is closed now must not change."""
    after = with_closing(state, instant_ms, policy.window_ms, stream_time_ms)
    if state.pending is None:
        return after
    return _with(after, pending=state.pending.model_copy(update={"position": position, "until_ms": None}))


def restated(
    state: AccountState, record: RestatementRecord, position: int, policy: Policy, stream_time_ms: int
) -> AccountState:
    """The state after a restatement record at a position; unchanged where nothing waits for it."""
    pending = state.pending
    if pending is None or pending.position != record.position:
        return state
    waits = is_waiting(state, stream_time_ms)
    if record.begins:
        return state if waits else _begun(state, pending, position, policy, stream_time_ms)
    if not waits:
        return state
    if record.declined:
        return _beyond(state, (_asked(pending), *pending.later), policy, stream_time_ms)
    kept = tuple(each for each in state.bindings if each.effective_from_ms < pending.binding.effective_from_ms)
    after = _with(
        state,
        bindings=(*kept[-BINDINGS_MAX:], pending.binding),
        **_payers(state, _asked(pending)),
        restatements=(
            *state.restatements[-BINDINGS_MAX:],
            Restatement(pending.from_ms, policy.report_bucket_ms(stream_time_ms)),
        ),
    )
    return _beyond(after, pending.later, policy, stream_time_ms)


def _begun(
    state: AccountState, pending: PendingCut, position: int, policy: Policy, stream_time_ms: int
) -> AccountState:
    """What comes from here on waits; unless there is nothing left to cut: a period may have closed since."""
    late = _late(state, _asked(pending), position, policy, stream_time_ms)
    if late is None:
        return _beyond(state, (_asked(pending), *pending.later), policy, stream_time_ms)
    waits_ms = RESTATEMENT_MS_MAX << min(pending.begun, RESTATEMENT_DOUBLINGS_MAX)
    fields = {"until_ms": stream_time_ms + waits_ms, "begun": pending.begun + 1, "later": pending.later}
    return _with(state, pending=late.model_copy(update=fields))


def is_replaced(state: AccountState, period_start_ms: int, bucket_start_ms: int) -> bool:
    """Whether usage of a period, reported in a bucket, was counted again since and is reported elsewhere."""
    return any(
        each.from_ms <= period_start_ms and bucket_start_ms < each.before_bucket_ms for each in state.restatements
    )


def _late(
    state: AccountState, binding: Binding, position: int, policy: Policy, stream_time_ms: int
) -> PendingCut | None:
    """The restatement that a binding asks for: from its instant, or where the first period begins that is not closed.

    None where it changes no period that may hold usage, and where somebody was ever named to pay, or to have it free:
    some of it may have been told to Stripe, or settled as free, in the old periods.
    """
    first = open_period(state, stream_time_ms)
    while not is_closed(state, before := period_at(state, first.start_ms - 1), policy.grace_ms, stream_time_ms):
        first = before
    from_ms = max([first.start_ms, *(period_at(state, each).end_ms for each in state.closed_start_ms)])
    effective_ms = max(binding.effective_from_ms, from_ms)
    beyond_ms = _beyond_ms(policy.future_ms, stream_time_ms)
    if effective_ms >= beyond_ms or state.has_payer:
        return None
    placed = binding.model_copy(update={"effective_from_ms": effective_ms})
    kept = tuple(each for each in state.bindings if each.effective_from_ms < effective_ms)
    cuts = [[cut for cut in cuts_of(each) if cut.from_ms < beyond_ms] for each in (state.bindings, (*kept, placed))]
    if cuts[0] == cuts[1]:
        return None
    from_ms = period_at(state, effective_ms).start_ms
    return PendingCut(position=position, from_ms=from_ms, requested_ms=binding.effective_from_ms, binding=placed)


def _asked(pending: PendingCut) -> Binding:
    """The binding as its record says it."""
    return pending.binding.model_copy(update={"effective_from_ms": pending.requested_ms})


def _beyond(state: AccountState, said: tuple[Binding, ...], policy: Policy, stream_time_ms: int) -> AccountState:
    """The state without anything pending, and with all that was said: beyond what was counted."""
    state = _with(state, pending=None)
    for binding in said:
        state = with_binding(state, binding, policy.future_ms, stream_time_ms)
    return state


def _with(state: AccountState, **fields: object) -> AccountState:
    return state.model_copy(update=fields)


def _beyond_ms(future_ms: int, stream_time_ms: int) -> int:
    """The first whole minute that no event accepted so far can have reached."""
    return (stream_time_ms + future_ms) // MINUTE_MS * MINUTE_MS + MINUTE_MS


def with_binding(state: AccountState, binding: Binding, future_ms: int, stream_time_ms: int) -> AccountState:
    """The state after a binding record. What is counted never changes its period: it takes effect, at the earliest,
    beyond every event accepted so far, that is after stream time + `future_ms`, at a whole minute, and not before the
    period into which usage is carried now. It replaces bindings that would take effect after it."""
    beyond_ms = _beyond_ms(future_ms, stream_time_ms)
    # Where the running period is closed, usage may be counted already in one that lies ahead: its start must stay.
    carried_ms = open_period(state, stream_time_ms).start_ms
    effective_ms = max(binding.effective_from_ms, beyond_ms, carried_ms)
    kept = tuple(
        held for held in state.bindings if held.effective_from_ms < effective_ms or held.effective_from_ms <= carried_ms
    )
    placed = binding.model_copy(update={"effective_from_ms": effective_ms})
    return _with(state, bindings=(*kept[-BINDINGS_MAX:], placed), **_payers(state, binding))


def _payers(state: AccountState, binding: Binding) -> dict[str, object]:
    """Who pays after a binding, and that somebody does or did."""
    last = Customer(binding.effective_from_ms, binding.billing, binding.stripe_customer)
    before = tuple(each for each in state.customers if each.from_ms < last.from_ms)
    return {
        "customers": (*before[-BINDINGS_MAX:], last),
        "has_payer": state.has_payer or binding.billing is not Billing.UNMAPPED,
    }


def with_closing(state: AccountState, instant_ms: int, window_ms: int, stream_time_ms: int) -> AccountState:
    """The state after a close record. Closings are dropped once their period ended longer ago than any policy's grace
    (and than a window): it is closed by then for an event of any age."""
    start_ms = period_at(state, instant_ms).start_ms
    kept_ms = max(window_ms, GRACE_MAX_MS)
    kept = {held for held in state.closed_start_ms if period_at(state, held).end_ms + kept_ms > stream_time_ms}
    return state.model_copy(update={"closed_start_ms": tuple(sorted(kept | {start_ms}))})


def customer_at(state: AccountState, instant_ms: int) -> Customer | None:
    """Who pays for usage at an instant, or None where nobody was named."""
    named = [customer for customer in state.customers if customer.from_ms <= instant_ms]
    return named[-1] if named else None

"""How control records change an account's state: bindings, customers, closings, flushes, restatements (I8, I9, I10)."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from aggregators.periods import cuts_of, is_closed, open_period, period_at
from schemas.clock import MINUTE_MS
from schemas.control import AccountControlRecord, BindingRecord, FlushRecord, RestatementRecord, RevisedRecord
from schemas.meters import GRACE_MAX_MS, Policy
from schemas.periods import (
    INSTANT_MIN_MS,
    AccountState,
    Billing,
    Binding,
    Customer,
    Interval,
    PendingCut,
    Period,
    Restatement,
)

# An account keeps at most this many older bindings beside the last one. The periods of those dropped are long closed.
BINDINGS_MAX: Final = 99
# At most this many bindings of an account wait for its restatement; one more gives the restatement up.
LATER_MAX: Final = 100
# Stream time until a restatement times out and begins again. A restatement takes seconds, unless the archive is down.
# The timeout doubles on each retry, up to 8×: with a constant timeout, a slow restatement might never end.
RESTATEMENT_MS_MAX: Final = 10 * MINUTE_MS
RESTATEMENT_DOUBLINGS_MAX: Final = 3


def is_waiting(state: AccountState, stream_time_ms: int) -> bool:
    """Whether new events of the account are deferred at this stream time because a restatement is running."""
    pending = state.pending
    return pending is not None and pending.until_ms is not None and stream_time_ms < pending.until_ms


def apply(
    state: AccountState, record: AccountControlRecord, position: int, policy: Policy, stream_time_ms: int
) -> AccountState:
    """The account's state after one of its control records. The worker and the archive both call this function. The
    reconciler (`reconciler/history.py`) and the oracle have separate rules, which check this function.

    A binding, closing or flush that comes again after a later one changes nothing but the count of repeated records. A
    restatement record names the record that it answers, so a repeated one answers nothing.
    """
    if isinstance(record, RestatementRecord):
        return restated(state, record, position, policy, stream_time_ms)
    if is_repeated(state, record):
        return _with(state, repeated=state.repeated + 1)
    state = _with(state, revision=record.revision)
    if isinstance(record, BindingRecord):
        return bound(state, record.binding, position, policy, stream_time_ms)
    if isinstance(record, FlushRecord):
        return flushed(state, policy, stream_time_ms)
    return closed(state, record.instant_ms, position, policy, stream_time_ms)


def is_repeated(state: AccountState, record: RevisedRecord) -> bool:
    """Whether a record with this revision or a later one was applied to the account before."""
    return record.revision <= state.revision


def report_start_ms(state: AccountState, policy: Policy, stream_time_ms: int) -> int:
    """The start of the account's report bucket that takes usage which arrives at a stream time: that of the report
    bucket of all accounts, or the account's last flush in it."""
    return max(policy.report_bucket_ms(stream_time_ms), state.flushed_ms)


def flushed(state: AccountState, policy: Policy, stream_time_ms: int) -> AccountState:
    """The state after a flush at a stream time. The instant of a flush is above all earlier ones and the bucket's
    start, so that no two buckets of an account begin at the same instant. A flush in the bucket's last millisecond may
    find no such instant, and changes nothing: the bucket ends by itself."""
    instant_ms = max(stream_time_ms, report_start_ms(state, policy, stream_time_ms) + 1)
    if instant_ms >= policy.report_bucket_end_ms(stream_time_ms):
        return state
    return _with(state, flushed_ms=instant_ms)


def bound(state: AccountState, binding: Binding, position: int, policy: Policy, stream_time_ms: int) -> AccountState:
    """The state after a binding record at a position. The binding takes effect after all counted usage, or becomes a
    pending cut. While a pending cut exists, further bindings wait for its restatement."""
    if state.pending is not None:
        later = (*state.pending.later, binding)
        if len(later) > LATER_MAX:
            return _beyond(state, (_requested(state.pending), *later), policy, stream_time_ms)
        return _with(state, pending=state.pending.model_copy(update={"later": later}))
    late = _late(state, binding, position, policy, stream_time_ms)
    return (
        with_binding(state, binding, policy.future_ms, stream_time_ms) if late is None else _with(state, pending=late)
    )


def closed(state: AccountState, instant_ms: int, position: int, policy: Policy, stream_time_ms: int) -> AccountState:
    """The state after a close record at a position. A running restatement begins again, because the closed period must
    not change."""
    after = with_closing(state, instant_ms, policy.window_ms, stream_time_ms)
    if state.pending is None:
        return after
    return _with(after, pending=state.pending.model_copy(update={"position": position, "until_ms": None}))


def restated(
    state: AccountState, record: RestatementRecord, position: int, policy: Policy, stream_time_ms: int
) -> AccountState:
    """The state after a restatement record at a position; unchanged if the record does not match the pending cut."""
    pending = state.pending
    if pending is None or pending.position != record.position:
        return state
    waits = is_waiting(state, stream_time_ms)
    if record.begins:
        return state if waits else _begun(state, pending, position, policy, stream_time_ms)
    if not waits:
        return state
    if record.declined:
        return _beyond(state, (_requested(pending), *pending.later), policy, stream_time_ms)
    restatement = Restatement(pending.from_ms, report_start_ms(state, policy, stream_time_ms))
    after = _with(cut_in_the_past(state), restatements=(*state.restatements[-BINDINGS_MAX:], restatement))
    return _beyond(after, pending.later, policy, stream_time_ms)


def cut_in_the_past(state: AccountState) -> AccountState:
    """The state in which the pending binding has cut the past. Usage must be recounted in its periods first. Returns
    `state` if no cut is pending."""
    if state.pending is None:
        return state
    effective_ms = state.pending.binding.effective_from_ms
    return _placed(state, _requested(state.pending), effective_ms, effective_ms)


def _begun(
    state: AccountState, pending: PendingCut, position: int, policy: Policy, stream_time_ms: int
) -> AccountState:
    """The state in which new events are deferred. If periods closed meanwhile and leave nothing to restate, the pending
    bindings take effect after all counted usage instead."""
    late = _late(state, _requested(pending), position, policy, stream_time_ms)
    if late is None:
        return _beyond(state, (_requested(pending), *pending.later), policy, stream_time_ms)
    waits_ms = RESTATEMENT_MS_MAX << min(pending.begun, RESTATEMENT_DOUBLINGS_MAX)
    fields = {"until_ms": stream_time_ms + waits_ms, "begun": pending.begun + 1, "later": pending.later}
    return _with(state, pending=late.model_copy(update=fields))


def is_replaced(state: AccountState, period_start_ms: int, bucket_start_ms: int) -> bool:
    """Whether a later restatement replaced the usage of a period that was reported in a report bucket."""
    return any(
        restatement.from_ms <= period_start_ms and bucket_start_ms < restatement.before_bucket_ms
        for restatement in state.restatements
    )


def _late(
    state: AccountState, binding: Binding, position: int, policy: Policy, stream_time_ms: int
) -> PendingCut | None:
    """The pending cut of a binding, from the binding's instant or the start of the first open period, if that is later.

    Returns None if no affected period can contain usage, or if the account ever had a payer or was free: usage of the
    old periods may then be at Stripe already, or settled as free.
    """
    first = open_period(state, stream_time_ms)
    while not is_closed(state, before := period_at(state, first.start_ms - 1), policy.grace_ms, stream_time_ms):
        first = before
    from_ms = max([first.start_ms, *(period_at(state, start_ms).end_ms for start_ms in state.closed_start_ms)])
    effective_ms = max(binding.effective_from_ms, from_ms)
    beyond_ms = _beyond_ms(policy.future_ms, stream_time_ms)
    if effective_ms >= beyond_ms or state.has_payer:
        return None
    after = _placed(state, binding, effective_ms, effective_ms)
    before_cuts, after_cuts = (
        [cut for cut in cuts_of(cutting.bindings, cutting.payer_cuts_ms) if cut.from_ms < beyond_ms]
        for cutting in (state, after)
    )
    if before_cuts == after_cuts:
        return None
    from_ms = period_at(state, effective_ms).start_ms
    placed = binding.model_copy(update={"effective_from_ms": effective_ms})
    return PendingCut(position=position, from_ms=from_ms, requested_ms=binding.effective_from_ms, binding=placed)


def _requested(pending: PendingCut) -> Binding:
    """The binding with the instant that its record asked for."""
    return pending.binding.model_copy(update={"effective_from_ms": pending.requested_ms})


def _beyond(state: AccountState, bindings: tuple[Binding, ...], policy: Policy, stream_time_ms: int) -> AccountState:
    """The state without a pending cut. The bindings take effect after all counted usage."""
    state = _with(state, pending=None)
    for binding in bindings:
        state = with_binding(state, binding, policy.future_ms, stream_time_ms)
    return state


def _with(state: AccountState, **fields: object) -> AccountState:
    return state.model_copy(update=fields)


def _beyond_ms(future_ms: int, stream_time_ms: int) -> int:
    """The first whole minute after every event time that can have been accepted so far."""
    return (stream_time_ms + future_ms) // MINUTE_MS * MINUTE_MS + MINUTE_MS


def with_binding(state: AccountState, binding: Binding, future_ms: int, stream_time_ms: int) -> AccountState:
    """The state after a binding that leaves counted usage in its periods. The binding takes effect at
    `effect_after_usage_ms`. It replaces later bindings."""
    effective_ms = effect_after_usage_ms(state, binding, future_ms, stream_time_ms)
    # If the running period is closed, a later period may contain carried usage: its start must not move.
    carried_ms = open_period(state, stream_time_ms).start_ms
    return _placed(state, binding, effective_ms, max(effective_ms, carried_ms + 1))


def effect_after_usage_ms(state: AccountState, binding: Binding, future_ms: int, stream_time_ms: int) -> int:
    """The instant at which a binding takes effect that leaves counted usage in its periods: a whole minute after stream
    time + `future_ms`, and not before the period that late usage is carried to."""
    carried_ms = open_period(state, stream_time_ms).start_ms
    return max(binding.effective_from_ms, _beyond_ms(future_ms, stream_time_ms), carried_ms)


def _placed(state: AccountState, binding: Binding, effective_ms: int, replaced_from_ms: int) -> AccountState:
    """The state with a binding in effect from `effective_ms` on, instead of bindings and cuts from `replaced_from_ms`
    on.

    Another payer takes effect with the binding, and the period ends there: the usage before belongs to the payer
    before, and the total of a maximum or of distinct values is that of one payer.
    """
    customers, is_cut = _named(state, binding, effective_ms)
    bindings = [old for old in state.bindings if old.effective_from_ms < replaced_from_ms]
    # Bindings that repeat the periods before them must not displace the one that begins the open period.
    if not bindings or _rule(bindings[-1]) != _rule(binding):
        bindings.append(binding.model_copy(update={"effective_from_ms": effective_ms}))
    return _with(
        state,
        bindings=tuple(bindings[-BINDINGS_MAX - 1 :]),
        customers=customers[-BINDINGS_MAX - 1 :],
        payer_cuts_ms=(
            *[cut_ms for cut_ms in state.payer_cuts_ms if cut_ms < replaced_from_ms][-BINDINGS_MAX:],
            *([effective_ms] if is_cut else []),
        ),
        has_payer=state.has_payer or binding.billing is not Billing.UNMAPPED,
    )


def _rule(binding: Binding) -> tuple[int, Interval, int]:
    return binding.anchor_ms // MINUTE_MS, binding.interval, binding.interval_count


def _asked_ms(state: AccountState, asked_ms: int) -> int:
    """The instant from which a binding names the payer of usage that nobody was named for.

    Once an account had a payer, its counted usage stays in its periods. A period that was half one payer's could not be
    divided, so the binding names the payer of whole periods.
    """
    period = period_at(state, asked_ms)
    return asked_ms if not state.has_payer or period.start_ms == asked_ms else period.end_ms


def _named(state: AccountState, binding: Binding, effective_ms: int) -> tuple[tuple[Customer, ...], bool]:
    """The customers after a binding, and whether the payer changes where the binding takes effect.

    The binding names the payer of all usage from `effective_ms` on, and of earlier usage only if nobody was named for
    it and the record asked for that instant.
    """
    payer = Customer(effective_ms, binding.billing, binding.stripe_customer)
    from_ms = _asked_ms(state, binding.effective_from_ms)
    spans = [Customer(INSTANT_MIN_MS - 1, Billing.UNMAPPED, "")]
    spans += [customer for customer in state.customers if customer.from_ms < effective_ms]
    named: list[Customer] = []
    for span, after in zip(spans, (*spans[1:], payer), strict=True):
        asked_ms = max(span.from_ms, from_ms)
        if span.billing is not Billing.UNMAPPED or span.from_ms < asked_ms:
            named.append(span)
        if span.billing is Billing.UNMAPPED and asked_ms < after.from_ms:
            named.append(payer._replace(from_ms=asked_ms))
    is_cut = named[-1][1:] != payer[1:]
    named.append(payer)
    changes = [after for before, after in pairwise(named) if after[1:] != before[1:]]
    return tuple(changes), is_cut


def with_closing(state: AccountState, instant_ms: int, window_ms: int, stream_time_ms: int) -> AccountState:
    """The state after a close record. Older closings are dropped when grace alone keeps their periods closed: when the
    period ended longer ago than a dedup window and the greatest grace of any policy."""
    start_ms = period_at(state, instant_ms).start_ms
    kept_ms = max(window_ms, GRACE_MAX_MS)
    kept = {start for start in state.closed_start_ms if period_at(state, start).end_ms + kept_ms > stream_time_ms}
    return _with(state, closed_start_ms=tuple(sorted(kept | {start_ms})))


def customer_at(state: AccountState, instant_ms: int) -> Customer | None:
    """Who pays for usage at an instant, or None if no binding was in force."""
    customers = [customer for customer in state.customers if customer.from_ms <= instant_ms]
    return customers[-1] if customers else None


def is_payable_in(state: AccountState, instant_ms: int, period: Period) -> bool:
    """Whether usage at an instant may be carried to a period: another payer must not pay for it. Usage that nobody was
    named for may be carried to any period."""
    before, after = customer_at(state, instant_ms), customer_at(state, period.start_ms)
    return before is None or before.billing is Billing.UNMAPPED or (after is not None and before[1:] == after[1:])

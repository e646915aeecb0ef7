"""The commands that bind accounts and close periods: each plans a record, says what it will do, and appends it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from itertools import pairwise
from typing import Any, Final

from aggregators.bindings import customer_at, cut_in_the_past, effect_after_usage_ms, is_payable_in
from aggregators.codec import parse_value
from aggregators.instants import format_instant_ms
from aggregators.partitioning import partition_of
from aggregators.periods import cuts_of, is_closed, open_period, period_at
from aggregators.quantities import decimal_text
from pipeline.clock import SystemClock
from pipeline.logs.bindings import Plan, Standing, append_plan, planned, standing
from pipeline.logs.flushes import Flush, FlushProgress, FlushWatch, flush_account
from pipeline.open import Base, account_log, open_base, open_live_view, open_side_tables
from pipeline.settings import Settings
from schemas.clock import MINUTE_MS
from schemas.control import CloseRecord
from schemas.errors import InvalidInput
from schemas.live_view import LiveView
from schemas.log import REPORTS_TOPIC
from schemas.meters import LatePolicy, MeterSet
from schemas.periods import INSTANT_MIN_MS, AccountState, Billing, Binding, Customer, Period
from schemas.rollup import TotalKey
from schemas.side_tables import SideTables

NOBODY: Final = "nobody (its reports are held)"


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Base, LiveView]]:
    base = await open_base(settings, create=False)
    try:
        view = open_live_view(settings)
        try:
            yield base, view
        finally:
            await view.close()
    finally:
        await base.log.close()


async def plan_binding(settings: Settings, account: str, binding: Binding, *, force: bool = False) -> Plan:
    """Plan a binding of an account; nothing is written.

    Raises `InvalidInput` if the account is linked to a customer, unless `force`. Only a deployment with a
    `postgresql://` server has links.
    """
    async with _opened(settings) as (base, view):
        if not force and settings.sql_url.startswith("postgresql://"):
            tables = await open_side_tables(base)
            try:
                await check_unlinked(tables, account, base.clock.now_ms())
            finally:
                await tables.close()
        return binding_plan(await standing(account_log(base), view, account), account, binding)


async def check_unlinked(tables: SideTables, account: str, now_ms: int) -> None:
    """Raise `InvalidInput` if the account is linked to a customer now or later."""
    for link in await tables.links(account):
        if link.customer and (link.ends_ms is None or link.ends_ms > now_ms):
            raise InvalidInput(
                "NAME",
                f"{account} is linked to {link.customer}, whose subscriptions say who pays: change them at Stripe, or "
                "link another customer with `tidemark account link`. With --force the binding holds until the next "
                "change at Stripe",
            )


def binding_plan(known: Standing, account: str, binding: Binding) -> Plan:
    """The plan of a binding. `is_final` if the account has a payer: what the binding cuts or bills to another payer
    stays so."""
    plan = planned(known, account, binding)
    after = known.after(plan.record)
    lines = [f"{account}: binding {plan.record.revision}"]
    if known.state.pending is not None:
        lines.append("  takes effect: after the recount of an earlier binding of the account has ended")
    else:
        lines += _binding_lines(known, after, binding)
    return plan._replace(lines=tuple(lines), is_final=known.state.has_payer)


def _binding_lines(known: Standing, after: AccountState, binding: Binding) -> list[str]:
    """What a binding changes. `after` is the state after its record."""
    pending = after.pending
    if pending is None:
        effective_ms = effect_after_usage_ms(known.state, binding, known.policy.future_ms, known.now_ms)
        recount = ""
    else:
        effective_ms = pending.binding.effective_from_ms
        recount = f"; usage since {_text(pending.from_ms)}, if there is any, is counted again in the new periods"
        after = cut_in_the_past(after)
    cut, new, running = (
        period_at(state, instant_ms)
        for state, instant_ms in ((known.state, effective_ms), (after, effective_ms), (after, known.now_ms))
    )
    lines = [*_rule_lines(known.state, binding, effective_ms), f"  takes effect: {_text(effective_ms)}{recount}"]
    if new.start_ms > cut.start_ms:
        lines.append(f"  ends the period: {_span(cut)} at {_text(new.start_ms)}")
    lines.append(f"  period from then on: {_span(new)}")
    if running.start_ms >= new.end_ms:
        lines.append(f"  current period: {_span(running)}")
    return [*lines, *_payer_lines(known.state, after, binding, effective_ms)]


def _rule_lines(before: AccountState, binding: Binding, effective_ms: int) -> list[str]:
    """The anchor and the interval of a binding, if the binding changes them or the anchor has seconds."""
    old = [cut for cut in cuts_of(before.bindings, ()) if cut.from_ms <= effective_ms][-1]
    minute_ms = binding.anchor_ms // MINUTE_MS * MINUTE_MS
    anchor, lines = f"  anchor: {_text(binding.anchor_ms)}", []
    if binding.anchor_ms != minute_ms:
        anchor += f"; periods are counted from {_text(minute_ms)}"
    if old.anchor_ms != minute_ms:
        anchor += f"; this replaces {_text(old.anchor_ms)}"
        # An operator who names a customer forgets the anchor, which has a default.
        anchor += "" if binding.anchor_ms else ": give --anchor to keep the old one"
    if anchor.count(";"):
        lines.append(anchor)
    old_interval, interval = (f"{rule.interval_count} {rule.interval}" for rule in (old, binding))
    if interval != old_interval:
        lines.append(f"  interval: {interval}; this replaces {old_interval}")
    return lines


def _payer_lines(before: AccountState, after: AccountState, binding: Binding, effective_ms: int) -> list[str]:
    """Who pays before and after a binding, and for which usage from before `effective_ms` that changes or does not."""
    payer, until = customer_at(after, effective_ms), customer_at(after, effective_ms - 1)
    is_same = _payer(payer) == _payer(until)
    lines = [] if is_same else [f"  pays until then: {_payer(until)}"]
    lines.append(f"  pays: {_payer(payer)}" if is_same else f"  pays from then on: {_payer(payer)}")
    for span in _spans(before, after, effective_ms):
        unpaid, paid = (_payer(customer_at(state, span.start_ms)) for state in (before, after))
        if unpaid != paid:
            lines.append(f"  also for: usage {_usage_of(span, effective_ms)} that nobody was named for")
        elif paid != _payer(payer) and 0 < binding.effective_from_ms < span.end_ms:
            asked = Period(max(span.start_ms, binding.effective_from_ms), span.end_ms)
            lines.append(f"  not for usage {_usage_of(asked, effective_ms)}, which stays with {paid}")
    return lines


def _spans(before: AccountState, after: AccountState, end_ms: int) -> list[Period]:
    """The spans before `end_ms` in which the payer is one in both states."""
    named = {customer.from_ms for customer in (*before.customers, *after.customers) if customer.from_ms < end_ms}
    starts = sorted({INSTANT_MIN_MS, *named})
    return [Period(start_ms, next_ms) for start_ms, next_ms in pairwise([*starts, end_ms])]


def _usage_of(span: Period, effective_ms: int) -> str:
    """The span of usage from before a binding, in words."""
    if span.start_ms > 0:
        since = f"since {_text(span.start_ms)}"
        return since if span.end_ms == effective_ms else f"{since} and before {_text(span.end_ms)}"
    return "so far" if span.end_ms == effective_ms else f"before {_text(span.end_ms)}"


def _text(instant_ms: int) -> str:
    return format_instant_ms(instant_ms)


def _span(period: Period) -> str:
    return f"{_text(period.start_ms)} to {_text(period.end_ms)}"


def _payer(customer: Customer | None) -> str:
    if customer is None or customer.billing is Billing.UNMAPPED:
        return NOBODY
    return "nobody (free)" if customer.billing is Billing.FREE else customer.stripe_customer


async def plan_closing(settings: Settings, account: str, instant_ms: int) -> Plan:
    """Plan the closing of the account's period that contains the instant; nothing is written.

    Raises `InvalidInput` for a period that has not begun or is closed already.
    """
    async with _opened(settings) as (base, view):
        known = await standing(account_log(base), view, account)
        key = TotalKey(account, period_at(known.state, instant_ms).start_ms)
        _, totals = await view.totals.account_totals(known.partition, [key])
    return closing_plan(known, account, instant_ms, totals[key])


def closing_plan(known: Standing, account: str, instant_ms: int, totals: Mapping[str, str]) -> Plan:
    """The plan of a closing. `totals` are the stored totals of the period by meter. Errors as `plan_closing`."""
    period = period_at(known.state, instant_ms)
    if period.start_ms > known.now_ms:
        raise InvalidInput("INSTANT", f"the period {_span(period)} has not begun: close a period that has usage")
    if is_closed(known.state, period, known.policy.grace_ms, known.now_ms):
        raise InvalidInput("INSTANT", f"the period {_span(period)} is closed already: nothing is left to do")
    record = CloseRecord(account=account, revision=known.state.revision + 1, instant_ms=instant_ms)
    after = known.after(record)
    running = ", which is still running" if period.end_ms > known.now_ms else ""
    lines = [
        f"{account}: closes the period {_span(period)}{running}",
        f"  pays: {_payer(customer_at(known.state, min(period.end_ms, known.now_ms) - 1))}",
        *(f"  usage: {meter} {_amount(known.meter_set, meter, text)}" for meter, text in sorted(totals.items())),
        *([] if totals else ["  usage: none so far"]),
        *_later_lines(after, period, known),
    ]
    return Plan(known.partition, known.next_offset, record, tuple(lines), is_final=True)


def _later_lines(after: AccountState, period: Period, known: Standing) -> list[str]:
    """What happens to usage of a closed period that arrives later, as `aggregators.placement` decides."""
    carried = open_period(after, known.now_ms)
    follower = customer_at(after, carried.start_ms)
    next_payers = [customer for customer in after.customers if customer.from_ms > carried.start_ms]
    spans = [span for span in _spans(after, after, period.end_ms) if span.end_ms > period.start_ms]
    lines, is_counted = [], False
    for span in spans:
        within = Period(max(span.start_ms, period.start_ms), span.end_ms)
        later = "later usage" if len(spans) == 1 else f"later usage of {_span(within)}"
        if not is_payable_in(after, within.start_ms, carried):
            lines.append(f"  {later}: quarantined, because another payer follows: {_payer(follower)}")
            continue
        is_counted = True
        lines.append(f"  {later}: counted in {_span(carried)}")
        for payer in next_payers[:1]:
            if not is_payable_in(after, within.start_ms, period_at(after, payer.from_ms)):
                since = _text(payer.from_ms)
                lines.append(f"  {later} that arrives after {since}: quarantined, because {_payer(payer)} pays then")
    meters = known.meter_set.meters if known.meter_set else ()
    keeping = [meter.slug for meter in meters if meter.late is LatePolicy.QUARANTINE]
    if keeping and is_counted:
        lines.append(f"  later usage with the meter {' or '.join(keeping)}: quarantined, by the meter's late policy")
    return lines


def _amount(meter_set: MeterSet | None, slug: str, text: str) -> str:
    meter = meter_set.meter(slug) if meter_set else None
    return decimal_text(parse_value(text).minor, meter.scale if meter else 0)


async def append_planned(settings: Settings, plan: Plan) -> str:
    """Append a planned record; returns a message with the offset. Errors as `append_plan`."""
    base = await open_base(settings, create=False)
    try:
        return await append_plan(account_log(base), plan)
    finally:
        await base.log.close()


async def flush(settings: Settings, account: str, timeout_s: float, *, wait: bool) -> tuple[Flush, FlushProgress]:
    """Flush an account. With `wait`, wait until its intents up to the flush are in `billing.reports`, and settled if
    the deployment has a Stripe key. Raises `Transient` as `flush_account` and `FlushWatch.wait`."""
    async with contextlib.AsyncExitStack() as stack:
        base, view = await stack.enter_async_context(_opened(settings))
        # Read before the flush, so that none of its intents is missed.
        end = (await base.log.bounds(REPORTS_TOPIC, partition_of(account, base.genesis.partitions))).next
        flushed = await flush_account(account_log(base), view, account)
        if not wait:
            return flushed, FlushProgress(is_published=False)
        ledger, has_sink = None, bool(settings.stripe_api_key.get_secret_value())
        if has_sink and settings.sql_url.startswith("postgresql://"):
            tables = await open_side_tables(base)
            stack.push_async_callback(tables.close)
            ledger = tables.intents
        watch = FlushWatch(base.log, view, flushed, end, ledger)
        return flushed, await watch.wait(SystemClock(), timeout_s, settled=has_sink)


def flush_document(flushed: Flush, progress: FlushProgress) -> dict[str, Any]:
    """A flush as a JSON object. `settled` is null if nobody waited for the reports."""
    return {
        "account": flushed.account,
        "instant": format_instant_ms(flushed.instant_ms),
        "partition": flushed.partition,
        "offset": flushed.offset,
        "published": progress.is_published,
        "settled": not progress.unsettled if progress.is_published else None,
        "reports": [
            {
                "identifier": each.intent.identifier,
                "meter": each.intent.meter,
                "quantity": decimal_text(each.intent.delta_minor, each.intent.scale),
                "period_start": format_instant_ms(each.intent.period_start_ms),
                "timestamp": format_instant_ms(each.intent.instant_ms),
                "status": each.outcome.status.value if each.outcome else "not settled",
                "stripe_customer": each.attempt.stripe_customer if each.attempt else "",
            }
            for each in progress.flushed
        ],
    }


async def show_account(settings: Settings, account: str) -> dict[str, object]:
    """The bindings, customers and periods of an account in the live view, as a JSON object."""
    async with _opened(settings) as (base, view):
        partition = partition_of(account, base.genesis.partitions)
        state = await view.accounts.account(partition, account)
        period = period_at(state, base.clock.now_ms())
    return {
        "account": account,
        "partition": partition,
        "revision": state.revision,
        "repeated_records": state.repeated,
        "current_period": {"start": format_instant_ms(period.start_ms), "end": format_instant_ms(period.end_ms)},
        "bindings": [
            {
                "effective_from": format_instant_ms(binding.effective_from_ms),
                "anchor": format_instant_ms(binding.anchor_ms),
                "interval": f"{binding.interval_count} {binding.interval}",
            }
            for binding in state.bindings
        ],
        "customers": [
            {
                "from": format_instant_ms(payer.from_ms),
                "billing": payer.billing,
                "stripe_customer": payer.stripe_customer,
            }
            for payer in state.customers
        ],
        "payer_cuts": [format_instant_ms(cut_ms) for cut_ms in state.payer_cuts_ms],
        "last_flush": format_instant_ms(state.flushed_ms) if state.flushed_ms else None,
        "closed_periods": [format_instant_ms(start_ms) for start_ms in state.closed_start_ms],
        "counting_again_from": format_instant_ms(state.pending.from_ms) if state.pending else None,
    }

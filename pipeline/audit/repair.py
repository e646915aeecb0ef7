"""Repairs what a reconciliation has found at Stripe: first a plan, then, if a person says so, its steps.

A step is done once: a redrive is a record of the log, and a cancellation has a row that says that it was done. What
cannot be done safely is a step by hand, with what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

from aggregators.quantities import decimal_text
from aggregators.report_records import ReportedIntent
from aggregators.stripe_sums import SCALE_MAX, units_of
from pipeline.billing.redrive import Failed, Redriver
from reconciler.causes import Cause, Pair
from reconciler.report import Report, Row, instant_text
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, Clock
from schemas.errors import InvalidInput, Refused, Transient
from schemas.reconciliation import ReconciliationRecords, RepairRow
from schemas.reports import MeterEvent, OutcomeStatus, SendStatus, StripeAdjustments, StripeMeters

# Stripe cancels events that it received within 24 h; an hour less leaves room for clocks and slow calls.
CANCEL_WITHIN_MS: Final = 23 * HOUR_MS
# Stripe tells a repeated event by its identifier for 24 h, and takes timestamps of the last 35 days.
REPEAT_WITHIN_MS: Final = 23 * HOUR_MS
TIMESTAMP_AGE_MAX_MS: Final = 34 * DAY_MS
# Stripe's sum has an event within the hour. Before that, a second counter event would count the first one's quantity.
SUM_LAG_MS: Final = 2 * HOUR_MS
BEGUN: Final = "begun"
DONE: Final = "done"
_NOT_SENT: Final = frozenset({OutcomeStatus.CREDITED, OutcomeStatus.FREE, OutcomeStatus.REPLACED, OutcomeStatus.LATE})


class RepairKind(StrEnum):
    """`REDRIVE`: send a rejected report again. `CANCEL`: take an event of ours back that Stripe counts too much.
    `COUNTER`: send an event with the negative of what Stripe counts too much in a running period. `INVOICE_ITEM`: the
    period-close controller of the sink bills it. `BY_HAND`: a person must act at Stripe."""

    REDRIVE = "redrive"
    CANCEL = "cancel"
    COUNTER = "counter"
    INVOICE_ITEM = "invoice_item"
    BY_HAND = "by_hand"


class RepairStep(NamedTuple):
    """One step of a plan; `text` says what is done and why. `identifier` is that of the report that a redrive or a
    cancellation is about; for a counter event it names the sum, and `timestamp_s` is the event's. `others` are the
    reports of ours that may have been cancelled in the sum."""

    kind: RepairKind
    event_name: str
    stripe_customer: str
    quantity: str
    text: str
    identifier: str = ""
    timestamp_s: int = 0
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Identifies the step, also in a later plan."""
        return f"{self.kind}:{self.identifier}"

    @property
    def is_executable(self) -> bool:
        """Whether `execute` does it."""
        return self.kind in (RepairKind.REDRIVE, RepairKind.CANCEL, RepairKind.COUNTER)


class Repaired(NamedTuple):
    """What became of a step: `ok` is False if it was refused or failed, and may be tried again."""

    step: RepairStep
    ok: bool
    result: str


def plan_of(
    report: Report, failed: Iterable[Failed], reported: Iterable[ReportedIntent], now_ms: int
) -> list[RepairStep]:
    """The steps that repair the report's drift between intents, Stripe, invoices and the mirror."""
    steps = [_redriven(each) for each in failed]
    ours = list(reported)
    for row in report.rows:
        if not row.cause.is_drift:
            continue
        if row.pair is Pair.INVOICES and row.cause is Cause.UNBILLED:
            steps.append(_unbilled(row))
        elif row.pair is Pair.STRIPE and row.cause is Cause.EXTRA:
            steps.append(_extra(row, ours, now_ms))
        elif row.cause is not Cause.REJECTED_BY_STRIPE:
            steps.append(RepairStep(RepairKind.BY_HAND, row.event_name, row.stripe_customer, "", _by_hand(row)))
    return steps


def _redriven(failed: Failed) -> RepairStep:
    intent, customer = failed.known.intent, failed.known.stripe_customer
    quantity = decimal_text(failed.known.billed_minor, intent.scale)
    text = (
        f"send {quantity} {intent.meter} of {intent.account} at {instant_text(intent.instant_ms)} again, under a new "
        f"identifier: {failed.detail}"
    )
    return RepairStep(RepairKind.REDRIVE, intent.event_name, customer, quantity, text, intent.identifier)


def _unbilled(row: Row) -> RepairStep:
    text = (
        f"an invoice item for {row.meter or row.event_name} of {row.stripe_customer}, {_when(row)}, from "
        f"{row.found} to {row.expected}: the sink makes it by itself"
    )
    return RepairStep(RepairKind.INVOICE_ITEM, row.event_name, row.stripe_customer, row.expected, text)


def _extra(row: Row, ours: Iterable[ReportedIntent], now_ms: int) -> RepairStep:
    """Cancel the one event of ours that Stripe should not have and that explains the surplus. Stripe lists no meter
    events, so an event of another sender is unknown here: while the period runs, its quantity is countered."""
    surplus = int(units_of(row.found) - units_of(row.expected))
    unwanted = [each for each in ours if _is_unwanted(each, row, now_ms)]
    found = [each for each in unwanted if each.billed_minor * 10 ** (SCALE_MAX - each.intent.scale) == surplus]
    quantity = decimal_text(surplus, SCALE_MAX)
    if len(found) == 1:
        identifier = found[0].intent.identifier
        text = f"cancel the meter event {identifier} of {row.stripe_customer}: Stripe counts {quantity} too much"
        return RepairStep(RepairKind.CANCEL, row.event_name, row.stripe_customer, quantity, text, identifier)
    if row.period is not None and row.period.start_ms <= now_ms < row.period.end_ms:
        text = (
            f"send {row.event_name} of {row.stripe_customer} with the value -{quantity}: Stripe counts {quantity} too "
            f"much, {_when(row)}, and no event of ours of the last day explains it. Find the other sender first"
        )
        # An early hour: the sender looks for events in doubt in later ones.
        first_ms = max(row.period.start_ms + MINUTE_MS - SECOND_MS, now_ms - TIMESTAMP_AGE_MAX_MS)
        sum_name = f"{row.event_name} {row.stripe_customer} {row.period.start_ms}"
        return RepairStep(
            RepairKind.COUNTER, row.event_name, row.stripe_customer, quantity, text, sum_name,
            min(first_ms, now_ms) // SECOND_MS, tuple(each.intent.identifier for each in unwanted),
        )  # fmt: skip
    text = (
        f"Stripe counts {quantity} {row.event_name} of {row.stripe_customer} too much, {_when(row)}, and no event of "
        "ours of the last day explains it: find the other sender, and credit the quantity on the invoice"
    )
    return RepairStep(RepairKind.BY_HAND, row.event_name, row.stripe_customer, quantity, text)


def _is_unwanted(reported: ReportedIntent, row: Row, now_ms: int) -> bool:
    """Whether a report belongs to the row's sum, Stripe should not have it, and Stripe would still cancel it."""
    intent, attempt, outcome = reported.intent, reported.attempt, reported.outcome
    if attempt is None or row.period is None:
        return False
    is_ours = (intent.event_name, attempt.stripe_customer) == (row.event_name, row.stripe_customer)
    is_unwanted = reported.redrive is not None or (outcome is not None and outcome.status in _NOT_SENT)
    is_inside = row.period.start_ms <= attempt.timestamp_s * SECOND_MS < row.period.end_ms
    is_fresh = attempt.attempted_at_ms > now_ms - CANCEL_WITHIN_MS
    return is_ours and is_unwanted and is_inside and is_fresh


def _by_hand(row: Row) -> str:
    where = " ".join(part for part in (row.account, row.stripe_customer, row.meter, _when(row)) if part)
    return f"{row.cause.value}, {row.pair.value}{', ' + where if where else ''}: {row.detail}"


def _when(row: Row) -> str:
    return f"{instant_text(row.period.start_ms)} to {instant_text(row.period.end_ms)}" if row.period else ""


class Note(Protocol):
    """Stores what became of a step, and under which identifier if the step has another one."""

    async def __call__(self, step: RepairStep, result: str, identifier: str = "") -> None: ...


async def execute(
    steps: Sequence[RepairStep],
    redriver: Redriver,
    adjustments: StripeAdjustments,
    meters: StripeMeters,
    records: ReconciliationRecords,
    clock: Clock,
    actor: str,
    reason: str,
) -> list[Repaired]:
    """Do the executable steps. Each has rows in the records, with actor and reason, before and after it is done.

    Raises `InvalidInput` without an actor or a reason, and `Transient` if a store or Stripe does not answer; the same
    call again does what is left.
    """
    if not actor.strip() or not reason.strip():
        raise InvalidInput("--reason", "say who repairs, and why: the records keep both")

    async def note(step: RepairStep, result: str, identifier: str = "") -> None:
        await records.note_repair(
            RepairRow(
                step.name, step.kind, identifier or step.identifier, step.event_name, step.stripe_customer,
                step.quantity, actor, reason, clock.now_ms(), result,
            )
        )  # fmt: skip

    repaired = [await _cancel(step, adjustments, records, note) for step in steps if step.kind is RepairKind.CANCEL]
    counters = [step for step in steps if step.kind is RepairKind.COUNTER]
    repaired += [await _counter(step, meters, records, note, clock.now_ms()) for step in counters]
    redrives = [step for step in steps if step.kind is RepairKind.REDRIVE]
    if redrives:
        for step in redrives:
            await note(step, BEGUN)
        results = await redriver.redrive([step.identifier for step in redrives], actor, reason)
        for step, result in zip(redrives, results, strict=True):
            text = f"refused: {result.refused}" if result.refused else f"{DONE}: as {result.successor}"
            await note(step, text)
            repaired.append(Repaired(step, not result.refused, text))
    return repaired


async def _cancel(
    step: RepairStep,
    adjustments: StripeAdjustments,
    records: ReconciliationRecords,
    note: Note,
) -> Repaired:
    before = await records.repair(step.name)
    if before is not None and before.result == DONE:
        return Repaired(step, True, f"done already, by {before.actor}; Stripe's sum shows it within the hour")
    await note(step, BEGUN)
    try:
        await adjustments.cancel(step.event_name, step.identifier)
    except (InvalidInput, Refused) as error:
        await note(step, f"refused: {error}")
        return Repaired(step, False, f"refused: {error}")
    await note(step, DONE)
    return Repaired(step, True, DONE)


async def _counter(
    step: RepairStep, meters: StripeMeters, records: ReconciliationRecords, note: Note, now_ms: int
) -> Repaired:
    """Send the negative quantity. One that a crash left begun is sent again as it was, under its identifier."""
    for identifier in step.others:
        cancelled = await records.repair(f"{RepairKind.CANCEL}:{identifier}")
        if cancelled is not None and cancelled.result == DONE and now_ms < cancelled.at_ms + SUM_LAG_MS:
            text = f"{identifier} was cancelled, and Stripe's sum may still have it: repair again in two hours"
            return Repaired(step, False, f"refused: {text}")
    before = await records.repair(step.name)
    if before is not None and before.result == DONE and now_ms < before.at_ms + SUM_LAG_MS:
        return Repaired(step, True, f"done already, by {before.actor}; Stripe's sum shows it within the hour")
    if before is not None and before.result == BEGUN:
        if now_ms >= before.at_ms + REPEAT_WITHIN_MS:
            text = f"a run of {before.actor} was interrupted: see at Stripe whether it has {before.identifier}"
            return Repaired(step, False, f"refused: {text}, then counter the rest by hand")
        step, identifier = step._replace(quantity=before.quantity), before.identifier
    else:
        identity = f"{step.name} {step.quantity} {now_ms}"
        identifier = "tm_" + blake2b(identity.encode(), digest_size=20).hexdigest()
        await note(step, BEGUN, identifier)
    event = MeterEvent(identifier, step.event_name, step.stripe_customer, f"-{step.quantity}", step.timestamp_s)
    result = await meters.send(event)
    if result.status in (SendStatus.RETRY, SendStatus.STOP):
        raise Transient(f"Stripe did not answer the counter event {identifier}, repeat the command: {result.detail}")
    accepted = result.status in (SendStatus.ACCEPTED, SendStatus.DUPLICATE)
    text = DONE if accepted else f"refused: {result.detail}"
    await note(step, text, identifier)
    return Repaired(step, accepted, text)

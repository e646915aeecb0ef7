"""Carries accepted quotes out at Stripe, one call after the other, and goes on wherever a process ended.

Each step is noted in SQL before and after its call. A call that may have been made is repeated under the same key while
Stripe knows the key; after that it is looked for in Stripe's list of events, and never sent again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from typing import Any, Final

import msgspec

from aggregators.plan_moves import CannotMove, phases_of
from aggregators.plan_offer import changed_field
from pipeline.changes.pages import expire_pages, marks, open_page
from pipeline.changes.parts import Parts, seen, shop_of
from pipeline.changes.trials import promoted, used, wish_of, with_code
from schemas.clock import HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.errors import InvalidInput, TidemarkError, Transient
from schemas.plan_changes import (
    OPEN_STATES,
    Call,
    CallKind,
    ChangeRequest,
    Operation,
    OperationState,
    Quote,
    Refusal,
    RefusalCode,
)
from schemas.plan_moves import PhasesChange, Subscribed, SubscribedItem
from schemas.stripe_changes import StripeSubscription
from schemas.trials import TrialTaken

# Stripe keeps an Idempotency-Key for at least a day.
KEY_LASTS_MS: Final = 23 * HOUR_MS
# An operation that nobody touched for so long has lost its process.
PATIENCE_MS: Final = MINUTE_MS
AT_ONCE: Final = 100
# Nobody has more or less by these.
_UNFELT: Final = frozenset({CallKind.EXPIRE_CHECKOUT, CallKind.PROMOTION, CallKind.FLUSH})
# What the customer or the dashboard did while an operation was in flight is never undone by the operation.
_CANCELED: Final = "was canceled meanwhile, and stays so: take the cancellation back, then ask for a new quote"
# What is looked at before it is asked for needs no key.
LOOKED_AT: Final = frozenset(
    {
        CallKind.RELEASE, CallKind.CANCEL, CallKind.EXPIRE_CHECKOUT, CallKind.PAY, CallKind.GIVE_UP, CallKind.FLUSH,
    }
)  # fmt: skip

_log: Final = logging.getLogger(__name__)


async def accept(
    parts: Parts, account: str, identifier: str, by: str, return_url: str = "", *, by_operator: bool = False
) -> tuple[Quote, Operation] | Refusal:
    """Accept a quote and carry it out, as far as Stripe answers. The same quote again goes on with its operation.

    `return_url`: where the customer comes back to, if the quote leads to a page of checkout; the operation has the
    page's address then. What the account has is read again: a quote for something else is refused. What an operator
    quoted, an operator accepts. Raises `Transient` if SQL does not answer, or Stripe before anything was intended.
    """
    quote = await parts.changes.quote(account, identifier)
    # What dunning does at Stripe is a quote of row 0, which nobody accepts.
    if quote is None or not quote.decided.row:
        return Refusal(0, RefusalCode.NO_QUOTE, "quote", "the account has no such quote: ask for a new one")
    if not by_operator and msgspec.json.decode(quote.request, type=ChangeRequest).by_operator:
        message = "an operator made the quote: ask for a quote of your own"
        return Refusal(quote.decided.row, RefusalCode.OPERATOR_ONLY, "quote", message)
    operation = await parts.changes.operation(quote.id)
    if operation is None:
        if quote.decided.opens_checkout and not return_url:
            message = "the customer pays on a page of Stripe: use POST …/checkout, or `tidemark change checkout`"
            return Refusal(quote.decided.row, RefusalCode.CHECKOUT, "return_url", message)
        if refusal := await _outdated(parts, quote):
            return refusal
        try:
            trial = await wish_of(parts, account, quote.base.customer, quote.decided.trial)
            operation = await parts.changes.intend(quote, by, parts.clock.now_ms(), return_url, trial)
        except TrialTaken as error:
            return used(quote.decided.row, error.kind)
        if operation.quote != quote.id:
            message = f"the change of quote {operation.quote} is being carried out: wait, then ask for a new quote"
            return Refusal(quote.decided.row, RefusalCode.IN_FLIGHT, "account", message)
    operation = await carry_on(parts, operation)
    return await parts.changes.quote(account, identifier) or quote, operation


async def _outdated(parts: Parts, quote: Quote) -> Refusal | None:
    """Why a quote can no longer be accepted."""
    row = quote.decided.row
    if parts.clock.now_ms() >= quote.expires_ms:
        return Refusal(row, RefusalCode.QUOTE_EXPIRED, "quote", "the quote has expired: ask for a new one")
    now = await seen(parts, await shop_of(parts.catalog), quote.account)
    if isinstance(now, Refusal):
        return now
    if field := changed_field(quote.base, now):
        message = f"the {field} of the subscription changed since the quote: ask for a new one"
        return Refusal(row, RefusalCode.CHANGED, field, message)
    return None


async def carry_on(parts: Parts, operation: Operation) -> Operation:
    """Go on with an operation until it ends or Stripe does not answer; returns it as it is then. Safe to repeat, also
    at the same time in several processes. Raises `Transient` only if SQL does not answer."""
    quote = await parts.changes.quote(operation.account, operation.quote)
    while quote is not None and operation.state in OPEN_STATES:
        is_over = operation.step >= len(quote.decided.calls)
        try:
            operation = await (_finished(parts, quote, operation) if is_over else _stepped(parts, quote, operation))
        except (CannotMove, InvalidInput) as error:
            failed = await _failed(parts, quote, operation, str(error))
            if failed.step == operation.step:
                return failed
            operation = failed
        except _NoAnswer as error:
            _log.warning("operation %s waits: %s", operation.id, error)
            return await parts.changes.operation(quote.id) or operation
    return operation


async def turn(parts: Parts) -> int:
    """Go on with operations whose process was lost. Returns how many there were. A failure of one keeps no other."""
    found = await parts.changes.open_before(parts.clock.now_ms() - PATIENCE_MS, AT_ONCE)
    for operation in found:
        try:
            await _taken_up(parts, operation)
        except TidemarkError as error:
            _log.warning("operation %s waits: %s", operation.id, error)
        # Such as a row that an older program cannot read. There are other accounts to go on with.
        except Exception:  # noqa: BLE001
            _log.exception("operation %s cannot be carried on; it is tried again later", operation.id)
    return len(found)


async def _taken_up(parts: Parts, operation: Operation) -> None:
    """Go on with an operation of a lost process. If nothing was asked of Stripe yet, what somebody changed there since
    the quote counts, and the operation fails."""
    quote = await parts.changes.quote(operation.account, operation.quote)
    # What dunning does has no row, and looks at each object before its call.
    if quote is not None and quote.decided.row and not operation.step and operation.sent_ms is None:
        now = await seen(parts, await shop_of(parts.catalog), operation.account)
        field = "" if isinstance(now, Refusal) else changed_field(quote.base, now)
        # Read after Stripe: a process that only stood still may have made the change by now, and notes each call first.
        operation = await parts.changes.operation(quote.id) or operation
        if field and not operation.step and operation.sent_ms is None:
            detail = f"the {field} of the subscription changed since the quote: ask for a new one"
            await _failed(parts, quote, operation, detail)
            return
    await carry_on(parts, operation)


class _NoAnswer(Exception):
    """Stripe did not answer: the operation goes on later."""


async def _stepped(parts: Parts, quote: Quote, operation: Operation) -> Operation:
    """Have the next call made, or found to have been made."""
    call, now_ms = quote.decided.calls[operation.step], parts.clock.now_ms()
    key = _key(parts, operation)
    is_old = operation.sent_ms is not None and now_ms >= operation.sent_ms + KEY_LASTS_MS
    if is_old and call.kind not in LOOKED_AT:
        return await _looked_up(parts, operation, call, key)
    is_repeated = operation.sent_ms is not None
    noted = await parts.changes.sent(operation, now_ms)
    if noted.step != operation.step:
        # Another process made the call meanwhile.
        return noted
    operation = noted
    try:
        if call.kind is CallKind.CHECKOUT:
            return await open_page(parts, operation, call, key)
        subscription = await _made(parts, quote, operation, call, key)
        if subscription is None:
            # Stripe failed by itself, and says so under this key for ever. It may have made the change.
            return await _looked_up(parts, operation, call, key)
    except Transient as error:
        found = await _event_of(parts, operation, key) if is_repeated and call.kind not in LOOKED_AT else None
        if found is None:
            raise _NoAnswer(str(error)) from error
        subscription = found if call.kind is CallKind.CREATE else operation.subscription
    return await parts.changes.stepped(operation, subscription, parts.clock.now_ms())


async def _event_of(parts: Parts, operation: Operation, key: str) -> str | None:
    """The subscription or schedule that a call changed, if Stripe made the call."""
    now_ms = parts.clock.now_ms()
    try:
        return await parts.stripe.carried_out(key, operation.sent_ms or now_ms, now_ms)
    except Transient as error:
        raise _NoAnswer(str(error)) from error


def _key(parts: Parts, operation: Operation) -> str:
    return hashlib.sha256(f"{parts.scope} {operation.id} {operation.step}".encode()).hexdigest()


async def _looked_up(parts: Parts, operation: Operation, call: Call, key: str) -> Operation:
    """Look for a call in Stripe's list of events. Stripe keeps events for 30 days, so no event is no call."""
    now_ms = parts.clock.now_ms()
    operation = await parts.changes.doubt(operation, now_ms)
    found = await _event_of(parts, operation, key)
    if found is None:
        raise InvalidInput("operation", "Stripe never carried the call out: ask for a new quote")
    is_new = call.kind is CallKind.CREATE
    return await parts.changes.stepped(operation, found if is_new else operation.subscription, now_ms)


async def _made(parts: Parts, quote: Quote, operation: Operation, call: Call, key: str) -> str | None:
    """Make one call. Returns the subscription that it is about, None if Stripe stored a failure of its own.

    Raises `Transient`, `InvalidInput` if Stripe refuses the call, and `CannotMove`.
    """
    stripe, subscription = parts.stripe, operation.subscription
    if call.kind in LOOKED_AT:
        try:
            await _ensured(parts, quote, operation, call, key)
        except InvalidInput:
            # Another process, or a person, has made it so since this one looked; or Stripe refuses the same again.
            await _ensured(parts, quote, operation, call, key)
        return subscription
    if call.kind is CallKind.CREATE:
        return await stripe.subscribe({**call.params, "metadata": marks(operation)}, key)
    is_made = True
    if call.kind is CallKind.UPDATE:
        is_made = bool(await stripe.update(subscription, await with_code(parts, operation, call.params), key))
    elif call.kind is CallKind.PROMOTION:
        is_made = await promoted(parts, quote, operation, call.params, key)
    elif call.kind is CallKind.RESUME:
        is_made = bool(await stripe.resume(subscription, call.params, key))
    else:
        now = await stripe.subscription(subscription)
        if call.kind is CallKind.SCHEDULE:
            if now.is_ending and not now.schedule:
                raise CannotMove(_CANCELED)
            made = await stripe.create(subscription, key)
            if now.schedule not in ("", made.id):
                raise CannotMove(f"has the schedule {now.schedule} of somebody else: ask for a new quote")
        elif call.kind is CallKind.PHASES:
            await _plan(parts, operation, now, call, key)
    return subscription if is_made else None


async def _ensured(parts: Parts, quote: Quote, operation: Operation, call: Call, key: str) -> None:
    """Have something be so that is looked at first, and so may be asked for again at any time."""
    stripe, subscription = parts.stripe, operation.subscription
    if call.kind is CallKind.EXPIRE_CHECKOUT:
        await expire_pages(parts, quote)
    elif call.kind is CallKind.FLUSH:
        if parts.flush is None:
            raise InvalidInput("cancel", "the usage cannot be reported from here: use `tidemark change accept`")
        await parts.flush(operation.account)
    elif call.kind is CallKind.PAY:
        for invoice in await stripe.open_invoices(subscription):
            # A case of dunning names its invoices: others may have been written off.
            if invoice in call.params.get("invoices", (invoice,)):
                await _check_made(parts, invoice, await stripe.pay(invoice, f"{key} {invoice}"))
    elif call.kind is CallKind.GIVE_UP:
        for invoice in call.params["invoices"]:
            if (await stripe.invoice(invoice)).status == "open":
                made = await stripe.close_invoice(invoice, call.params["how"], f"{key} {invoice}")
                await _check_made(parts, invoice, made)
    elif call.kind is CallKind.CANCEL:
        now = await stripe.subscription(subscription)
        if now.status not in ("canceled", "incomplete_expired"):
            await _check_unpaid(parts, quote)
            if now.schedule:
                # Stripe refuses to cancel a subscription that a schedule has.
                await stripe.release(now.schedule)
            await stripe.cancel(subscription, call.params)
    elif call.kind is CallKind.RELEASE:
        await _release(parts, quote, subscription)


async def _release(parts: Parts, quote: Quote, subscription: str) -> None:
    """Release the schedule that was pending at the quote, if the subscription still has that one."""
    now, pending = await parts.stripe.subscription(subscription), quote.base.pending
    if pending is not None and now.schedule == pending.schedule:
        is_wanted = pending.ends or any(each.kind is CallKind.CANCEL for each in quote.decided.calls)
        if not is_wanted and (await parts.stripe.schedule(now.schedule)).ends:
            # A release would take the cancellation back.
            raise CannotMove(_CANCELED)
        await parts.stripe.release(now.schedule)


async def _check_made(parts: Parts, invoice: str, made: str | None) -> None:
    """Raise `InvalidInput` if Stripe stored that it failed by itself, and the invoice is as open as before."""
    if made is None and (await parts.stripe.invoice(invoice)).status == "open":
        raise InvalidInput("invoice", f"Stripe failed by itself, and {invoice} is open as before")


async def _check_unpaid(parts: Parts, quote: Quote) -> None:
    """Raise `CannotMove` if somebody has paid what a change gives up: the plan stays then. It may have waited long."""
    for call in quote.decided.calls:
        for invoice in call.params["invoices"] if call.kind is CallKind.GIVE_UP else ():
            if (await parts.stripe.invoice(invoice)).status == "paid":
                raise CannotMove(f"was paid meanwhile: invoice {invoice}")


async def _plan(parts: Parts, operation: Operation, now: Subscribed, call: Call, key: str) -> None:
    """Give the subscription's schedule its phases."""
    if not now.schedule:
        raise CannotMove("has no schedule any more: ask for a new quote")
    schedule = await parts.stripe.schedule(now.schedule)
    change = PhasesChange(f"{operation.id}.{operation.step}", call.params.get("proration_behavior", "none"))
    if (operation.id == schedule.mark and "now" not in call.params) or change.name == schedule.change:
        return
    if call.params["end_behavior"] == "release" and (now.is_ending or schedule.ends):
        raise CannotMove(_CANCELED)
    second_s = parts.clock.now_ms() // SECOND_MS
    present = [each for each in schedule.phases if each["start_date"] <= second_s < each["end_date"]]
    wanted = call.params["items"]
    after = [SubscribedItem(str(row["price"]), row.get("quantity")) for row in wanted or ()]
    phases = phases_of(present, after)
    shown = phases if wanted is not None else phases[:1]
    end_behavior = str(call.params["end_behavior"])
    if "now" in call.params:
        # The schedule stays whose it was.
        shown[0]["items"] = call.params["now"]
        await parts.stripe.plan(schedule.id, shown, schedule.mark, key, end_behavior, change)
        return
    await parts.stripe.plan(schedule.id, shown, operation.id, key, end_behavior)


async def _failed(parts: Parts, quote: Quote, operation: Operation, detail: str) -> Operation:
    """Note that an operation failed, unless another process went on with it meanwhile: who is behind is told what that
    one has done. A schedule that it made and could not fill would stand in everybody's way."""
    noted = await parts.changes.operation(quote.id) or operation
    if noted.step != operation.step:
        return noted
    operation = noted
    calls = quote.decided.calls
    felt = sum(call.kind not in _UNFELT for call in calls[: operation.step])
    if felt:
        detail = f"{felt} of {len(calls)} steps were made, and then: {detail}"
    is_filling = operation.step < len(calls) and calls[operation.step].kind is CallKind.PHASES
    if is_filling and operation.step and calls[operation.step - 1].kind is CallKind.SCHEDULE:
        with contextlib.suppress(InvalidInput, Transient):
            now = await parts.stripe.subscription(operation.subscription)
            schedule = await parts.stripe.schedule(now.schedule) if now.schedule else None
            # One that somebody had end the subscription meanwhile stays: its release would take that back.
            if schedule is not None and not schedule.mark and not schedule.ends:
                await parts.stripe.release(schedule.id)
    _log.warning("operation %s of account %r failed: %s", operation.id, operation.account, detail)
    now_ms = parts.clock.now_ms()
    return await parts.changes.settle(operation, OperationState.FAILED, detail, "", None, now_ms)


async def _finished(parts: Parts, quote: Quote, operation: Operation) -> Operation:
    """Compare the invoice with the quote, and note the end."""
    identifier, charged, detail = "", None, ""
    try:
        found = []
        if not operation.session:
            found = [each for each in await parts.stripe.subscriptions(quote.base.customer) if _is_of(each, operation)]
        if found and found[0].latest_invoice not in ("", quote.base.latest_invoice) and _charges(quote):
            invoice = await parts.stripe.invoice(found[0].latest_invoice)
            identifier, charged = invoice.id, invoice.total_minor
            if invoice.pay_url:
                detail = f"waits for the payment of the invoice: {invoice.pay_url}"
    except Transient as error:
        raise _NoAnswer(str(error)) from error
    except InvalidInput as error:
        # All calls were made, so the change has not failed.
        _log.error("the invoice of operation %s cannot be compared with its quote: %s", operation.id, error)
    if charged is not None and quote._replace(charged_minor=charged).is_differing:
        _log.error("quote %s says %d, invoice %s is %d", quote.id, quote.total.minor, identifier, charged)
    now_ms = parts.clock.now_ms()
    return await parts.changes.settle(operation, OperationState.DONE, detail, identifier, charged, now_ms)


def _is_of(found: StripeSubscription, operation: Operation) -> bool:
    return found.id == operation.subscription


def _charges(quote: Quote) -> bool:
    """Whether a change makes an invoice at once. A call that does not charge may be followed by a renewal's invoice."""
    charging: list[Any] = ["billing_cycle_anchor", "trial_end"]
    return any(
        call.kind is CallKind.CREATE
        or call.params.get("proration_behavior") == "always_invoice"
        or any(name in call.params for name in charging)
        for call in quote.decided.calls
    )

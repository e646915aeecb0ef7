"""Quotes a change: decides how it is made, has Stripe preview the invoices, and keeps both for the acceptance."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil
from typing import Any, Final, NamedTuple

import msgspec

from aggregators.change_words import Said, change_words
from aggregators.periods import anchored_period
from aggregators.plan_change import ENDED, decide, item_changes
from aggregators.plan_offer import Shop, amount_of, our_lines, wanted_of
from pipeline.changes.parts import Parts, gives_of, paid_in, seen, shop_of, with_holders
from pipeline.changes.trials import used, wish_of
from schemas.catalog import Plan
from schemas.clock import DAY_MS, MINUTE_MS, SECOND_MS
from schemas.events import check_account
from schemas.plan_changes import (
    Call,
    CallKind,
    Calls,
    ChangeKind,
    ChangeRequest,
    InvoicePreview,
    Quote,
    Refusal,
    RefusalCode,
    SubscriptionView,
    Wanted,
    When,
)
from schemas.trials import TrialTerms
from schemas.upgrades import Money

QUOTE_PREFIX: Final = "qt_"
_LINES_MAX: Final = 10
_DETAILS: Final = ("items", "proration_behavior", "billing_cycle_anchor", "trial_end", "proration_date")
# A subscription of another status has nothing to credit.
_PAID_AHEAD: Final = ("active", "past_due")
_NOTHING: Final = InvoicePreview("", 0, 0, 0, 0, ())
_log: Final = logging.getLogger(__name__)


class _Priced(NamedTuple):
    """What Stripe's previews say. `restarts`: the periods begin anew at the change. `owed_minor`: what the change pays
    of open invoices first."""

    decided: Calls
    now: InvoicePreview
    following: InvoicePreview | None
    following_ms: int | None
    restarts: bool
    owed_minor: int


async def make_quote(parts: Parts, account: str, request: ChangeRequest, by: str, key: str = "") -> Quote | Refusal:
    """Quote a change. The same key gives the same quote; without a key, so does the same request within a quote's life.

    Changes nothing at Stripe. Raises `InvalidInput` with the field for what is not sold, or if Stripe refuses the
    preview, and `Transient` if a preview is not to be had: nothing is ever quoted as 0 for want of an answer.
    """
    check_account(account)
    shop = await shop_of(parts.catalog)
    view = await seen(parts, shop, account)
    if isinstance(view, Refusal):
        return view
    if request.kind is ChangeKind.PLAN and view.plan is not None and view.status not in ENDED:
        view = await paid_in(parts, view)
    gives = await gives_of(parts, account)
    wanted = wanted_of(shop, view, await with_holders(parts, account, request, gives), gives)
    decided = decide(view, wanted, shop.commerce.catalog.changes)
    if isinstance(decided, Refusal):
        return decided
    if refusal := _not_offered(decided, view):
        return refusal
    wish = await wish_of(parts, account, view.customer, decided.trial)
    if wish is not None and (taken := await parts.changes.trial_taken(account, wish)):
        return used(decided.row, taken)
    now_ms = parts.clock.now_ms()
    life_ms = shop.commerce.catalog.changes.quote_minutes * MINUTE_MS
    priced = await _priced(parts, shop, view, wanted, decided, now_ms)
    text = msgspec.json.encode(request, order="sorted").decode()
    name = key or f"{text} {msgspec.json.encode(view).decode()} {now_ms // life_ms}"
    quote = _quote(shop, view, wanted, priced, now_ms)
    if quote.ours_minor not in (None, quote.subtotal_minor):
        _log.error(
            "account %r: Stripe's preview is %d, our rating says %d", account, quote.subtotal_minor, quote.ours_minor
        )
    quote = quote._replace(account=account, request=text, made_ms=now_ms, expires_ms=now_ms + life_ms, made_by=by)
    kept = await parts.changes.add_quote(quote._replace(id=_identifier(parts, account, name)))
    while not key and kept.accepted_ms is not None:
        # The same change was made and taken back a moment ago.
        kept = await parts.changes.add_quote(quote._replace(id=_identifier(parts, account, f"{name} {kept.id}")))
    return kept


def _identifier(parts: Parts, account: str, name: str) -> str:
    return QUOTE_PREFIX + hashlib.sha256(f"{parts.scope} {account} {name}".encode()).hexdigest()[:24]


def _not_offered(decided: Calls, view: SubscriptionView) -> Refusal | None:
    """What nobody can carry out: Stripe cannot, or it would lose something."""
    kinds = [call.kind for call in decided.calls]
    if CallKind.INVOICE in kinds:
        message = f"the first invoice is open: pay it, {view.pay_url}"
        return Refusal(decided.row, RefusalCode.PAY_FIRST, "account", message)
    message = ""
    if view.has_item_discounts and CallKind.PHASES in kinds:
        message = "an item has a discount of its own, which a schedule would drop: change it in Stripe's dashboard"
    return Refusal(decided.row, RefusalCode.NOT_OFFERED, "plan", message) if message else None


async def _priced(
    parts: Parts, shop: Shop, view: SubscriptionView, wanted: Wanted, decided: Calls, now_ms: int
) -> _Priced:
    """Have Stripe preview the invoice of the change and the one after it."""
    calls, preview, restarts = [], _NOTHING, False
    for call in decided.calls:
        made = _dated(call, shop, now_ms)
        calls.append(made)
        if params := _preview_of(made, view, wanted, now_ms):
            is_new = made.kind in (CallKind.CREATE, CallKind.CHECKOUT)
            restarts = is_new or bool(made.params.keys() & {"billing_cycle_anchor", "trial_end"})
            if coupon := _coupon_of(decided):
                rows = [row for row in made.params["discounts"] if "discount" in row]
                params = {**params, "discounts": [*rows, {"coupon": await parts.stripe.coupon(coupon)}]}
            preview = await parts.stripe.preview(params)
    following, following_ms = None, None
    is_ending = view.cancel_at_ms is not None and wanted.kind is ChangeKind.PLAN
    if wanted.kind not in (ChangeKind.CANCEL, ChangeKind.CANCEL_NOW) and not is_ending:
        following = await parts.stripe.preview(_following(view, wanted, decided))
        following_ms = max((item.end_ms for item in view.items), default=now_ms)
        if restarts and wanted.interval is not None:
            following_ms = anchored_period(now_ms - now_ms % SECOND_MS, wanted.interval, 1, now_ms).end_ms
        if decided.trial is not None:
            following_ms = _trial_end_ms(decided.trial, now_ms)
    owed = await _owed(parts, view) if any(call.kind is CallKind.PAY for call in calls) else 0
    return _Priced(decided._replace(calls=tuple(calls)), preview, following, following_ms, restarts, owed)


async def _owed(parts: Parts, view: SubscriptionView) -> int:
    """What the open invoices of a subscription ask for. Costs one call, and one more per invoice."""
    found = [await parts.stripe.invoice(each) for each in await parts.stripe.open_invoices(view.id)]
    return sum(each.remaining_minor for each in found)


def _trial_end_ms(terms: TrialTerms, now_ms: int) -> int:
    return now_ms - now_ms % SECOND_MS + terms.days * DAY_MS


def _coupon_of(decided: Calls) -> str:
    """The percentage that a change takes off once, or ""."""
    found = (call.params["percent"] for call in decided.calls if call.kind is CallKind.PROMOTION)
    return str(next(found, ""))


def _dated(call: Call, shop: Shop, now_ms: int) -> Call:
    """A call as it will be made: prorated to the instant of the quote, which Stripe refuses if periods restart."""
    if call.kind in (CallKind.CREATE, CallKind.CHECKOUT) and shop.commerce.catalog.defaults.automatic_tax:
        return call._replace(params={**call.params, "automatic_tax": {"enabled": True}})
    is_dated = call.params.get("proration_behavior") == "always_invoice" and "billing_cycle_anchor" not in call.params
    # The phases of a schedule change at the instant of the call.
    is_dated = is_dated and call.kind is CallKind.UPDATE
    return call._replace(params={**call.params, "proration_date": now_ms // SECOND_MS}) if is_dated else call


def _preview_of(call: Call, view: SubscriptionView, wanted: Wanted, now_ms: int) -> Mapping[str, Any] | None:
    """The parameters of the preview of a call that charges at once; None for another one."""
    if call.kind in (CallKind.CREATE, CallKind.CHECKOUT):
        items = call.params.get("items") or call.params["line_items"]
        params = _as_new(str(call.params["customer"]), items, view, is_taxed="automatic_tax" in call.params)
        if wanted.trial is not None:
            params["subscription_details"]["trial_end"] = _trial_end_ms(wanted.trial, now_ms) // SECOND_MS
        return params
    if call.kind is CallKind.RESUME:
        details: dict[str, Any] = {"resume_at": "now", "billing_cycle_anchor": call.params["billing_cycle_anchor"]}
        if changes := item_changes(view.items, wanted.items):
            details["items"] = changes
        return {"subscription": view.id, "subscription_details": details}
    if call.kind is CallKind.CANCEL and call.params.get("invoice_now") and view.status in _PAID_AHEAD:
        # Of usage, Stripe previews what was reported until now.
        return {"subscription": view.id, "subscription_details": {"cancel_now": True}}
    charges = call.params.get("proration_behavior") == "always_invoice" or "trial_end" in call.params
    if call.kind is CallKind.PHASES and charges:
        change = {"items": call.params["changes"], "proration_behavior": "always_invoice"}
        return {"subscription": view.id, "subscription_details": change}
    if call.kind is not CallKind.UPDATE or not (charges or "billing_cycle_anchor" in call.params):
        return None
    details = {name: call.params[name] for name in _DETAILS if name in call.params}
    return {"subscription": view.id, "subscription_details": details}


def _following(view: SubscriptionView, wanted: Wanted, decided: Calls) -> Mapping[str, Any]:
    """The parameters of the preview of what is paid each period after the change. Where a schedule or a cancellation
    would come into a preview of the subscription, the items are previewed as those of a new one."""
    items = wanted.items if wanted.kind is not ChangeKind.UNDO else None
    is_simple = view.id and not view.pending and decided.when is When.NOW and items is not None
    if (
        is_simple
        and view.status not in (*ENDED, "paused", "incomplete")
        and len({item.interval for item in view.items}) == 1
    ):
        details = {"items": item_changes(view.items, wanted.items)}
        return {"subscription": view.id, "subscription_details": details, "preview_mode": "recurring"}
    if wanted.later and any(call.kind is CallKind.PHASES for call in decided.calls) and decided.when is When.NOW:
        items = wanted.later
    found = items if items is not None else view.items
    rows = [{"price": each.price} | ({} if each.quantity is None else {"quantity": each.quantity}) for each in found]
    is_taxed = view.is_taxed or any("automatic_tax" in call.params for call in decided.calls)
    return {**_as_new(view.customer, rows, view, is_taxed=is_taxed), "preview_mode": "recurring"}


def _as_new(customer: str, items: Sequence[Any], view: SubscriptionView, *, is_taxed: bool) -> dict[str, Any]:
    tax = {"automatic_tax": {"enabled": True}} if is_taxed or view.is_taxed else {}
    return {"customer": customer, "subscription_details": {"items": items}, **tax}


def _quote(shop: Shop, view: SubscriptionView, wanted: Wanted, priced: _Priced, now_ms: int) -> Quote:
    """The quote without its name."""
    catalog, preview = shop.commerce.catalog, priced.now
    currency = preview.currency or wanted.currency or view.currency
    exponent = catalog.currencies.get(currency, 2)
    following = priced.following.total_minor if priced.following else None
    return Quote(
        id="",
        account="",
        request="",
        base=view,
        decided=priced.decided,
        lines=preview.lines,
        total=Money(preview.total_minor, currency, exponent),
        due_minor=preview.due_minor + priced.owed_minor,
        tax_minor=preview.tax_minor,
        drift_minor=_drift(shop, view, wanted, priced),
        subtotal_minor=preview.subtotal_minor,
        ours_minor=_ours(shop, view, wanted, priced, now_ms),
        next_minor=following,
        next_ms=priced.following_ms,
        words=change_words(_said(shop, view, wanted, priced, Money(0, currency, exponent)), now_ms),
        made_ms=0,
        expires_ms=0,
        made_by="",
    )


def _drift(shop: Shop, view: SubscriptionView, wanted: Wanted, priced: _Priced) -> int:
    """How much less is credited or charged at the end of the quote's life, if Stripe cannot be told the instant."""
    is_dated = not (priced.restarts or any(call.kind is CallKind.PHASES for call in priced.decided.calls))
    if is_dated or not any(line.is_proration for line in priced.now.lines):
        return 0
    life_ms = shop.commerce.catalog.changes.quote_minutes * MINUTE_MS
    quantities = {item.component: item.quantity or 0 for item in wanted.items}
    found = Fraction(0)
    for item in view.items:
        quantity = max(item.quantity or 0, 0 if priced.restarts else quantities.get(item.component, 0))
        amount = amount_of(shop, item.price, quantity, view.currency) if item.quantity is not None else None
        found += 1 + (amount or 0) * Fraction(life_ms, item.end_ms - item.start_ms)
    return ceil(found)


def _ours(shop: Shop, view: SubscriptionView, wanted: Wanted, priced: _Priced, now_ms: int) -> int | None:
    """The subtotal of the invoice of the change by our own rating; None if nothing can be compared."""
    charging = [call for call in priced.decided.calls if _preview_of(call, view, wanted, now_ms)]
    metered = any(item.quantity is None for item in view.items)
    is_other = (
        view.is_discounted
        or priced.decided.trial
        # What a pause credited, and what an end credits, waits at Stripe.
        or wanted.kind is ChangeKind.CANCEL_NOW
        or view.status == "paused"
        or len(priced.now.lines) > _LINES_MAX
        or (metered and priced.restarts)
    )
    if len(charging) != 1 or is_other or charging[0].params.get("proration_behavior") == "none":
        return None
    is_new = charging[0].kind in (CallKind.CREATE, CallKind.CHECKOUT) or view.status == "trialing"
    # Stripe credits what was billed, also after some of it was given back.
    billed = tuple(item._replace(quantity=item.paid or item.quantity) for item in view.items)
    before = view._replace(items=(), currency=wanted.currency) if is_new else view._replace(items=billed)
    ours = our_lines(shop, before, wanted.items, now_ms - now_ms % SECOND_MS, restarts=priced.restarts)
    return ours if ours is None or is_new else ours + view.pending_minor


def _said(shop: Shop, view: SubscriptionView, wanted: Wanted, priced: _Priced, zero: Money) -> Said:
    decided, preview, following = priced.decided, priced.now, priced.following
    is_kept_trial = decided.trial is not None or (decided.row == 5 and not priced.restarts)
    is_later = decided.when is not When.NOW or is_kept_trial
    end_ms = max((item.end_ms for item in view.items), default=None)
    if decided.trial is not None:
        end_ms = priced.following_ms
    items = wanted.items if wanted.kind in (ChangeKind.PLAN, ChangeKind.TRIAL) else view.items
    plan = wanted.plan if wanted.plan is not None else view.plan
    sold = shop.commerce.sold.get(plan) if plan else None
    name = (sold.name if isinstance(sold, Plan) else "") or (plan.name if plan else "")
    return Said(
        kind=ChangeKind.UNDO if decided.row in (9, 15) else wanted.kind,
        when=When.TRIAL_END if is_kept_trial else decided.when,
        plan=name,
        due=zero._replace(minor=(preview.due_minor + priced.owed_minor) or min(0, preview.total_minor)),
        owed=zero._replace(minor=priced.owed_minor),
        tax=zero._replace(minor=preview.tax_minor),
        until_ms=None if priced.restarts else priced.following_ms,
        following=None if following is None else zero._replace(minor=following.total_minor),
        following_ms=priced.following_ms,
        from_ms=end_ms if is_later else None,
        has_usage=any(item.quantity is None for item in items),
        not_refunded=decided.row == 13,
        excess=decided.excess,
    )

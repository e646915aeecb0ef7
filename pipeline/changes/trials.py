"""Trials: reserved before anything is asked of Stripe, followed until they are paid or not, and bought early.

What becomes of a trial is read, not believed: of a page of checkout at Stripe, of the rest in the mirror.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any, Final

from aggregators.trials import trial_keys
from pipeline.changes.parts import Parts
from schemas.clock import MINUTE_MS
from schemas.errors import InvalidInput, TidemarkError, Transient
from schemas.plan_changes import Operation, Quote, Refusal, RefusalCode
from schemas.trials import Trial, TrialState, TrialStore, TrialTerms, TrialWish

AT_ONCE: Final = 100
LOOK_AGAIN_MS: Final = MINUTE_MS
_WORDS: Final = {
    "account": "the account", "customer": "its customer at Stripe", "email": "its e-mail address",
    "card": "its card", "domain": "its e-mail domain",
}  # fmt: skip

_log: Final = logging.getLogger(__name__)


async def wish_of(parts: Parts, account: str, customer: str, terms: TrialTerms | None) -> TrialWish | None:
    """What a trial reserves; None without one. Costs two calls. Raises `Transient` and `Refused`."""
    if terms is None:
        return None
    email, card = await parts.stripe.email_and_card(customer)
    keys = trial_keys(parts.secret, terms, account=account, customer=customer, email=email, card=card)
    return TrialWish(terms, customer, keys)


def used(row: int, kind: str) -> Refusal:
    """That a trial was had before."""
    message = f"{_WORDS.get(kind, kind)} had a trial of these plans already: take the plan itself, without `trial`"
    return Refusal(row, RefusalCode.TRIAL_USED, "trial", message)


def code_of(operation: Operation) -> str:
    """The text of the promotion code of an operation. Only one customer can redeem it, once, within the trial."""
    return f"TM{hashlib.sha256(operation.id.encode()).hexdigest()[:18].upper()}"


async def promoted(parts: Parts, quote: Quote, operation: Operation, params: Mapping[str, Any], key: str) -> bool:
    """Make the promotion code of an early purchase; False if Stripe has stored that it failed by itself."""
    if await parts.stripe.promotion(code_of(operation)):
        return True
    coupon = await parts.stripe.coupon(str(params["percent"]))
    made = await parts.stripe.promote(
        {
            "code": code_of(operation), "promotion": {"type": "coupon", "coupon": coupon},
            "customer": quote.base.customer, "max_redemptions": 1, "expires_at": params["expires_at"],
        },
        key,
    )  # fmt: skip
    return made is not None or await parts.stripe.promotion(code_of(operation)) is not None


async def with_code(parts: Parts, operation: Operation, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of an update with the id of the operation's promotion code, if they name one."""
    rows = params.get("discounts")
    if not rows or not any(row.get("promotion_code") == "" for row in rows):
        return params
    found = await parts.stripe.promotion(code_of(operation))
    if found is None:
        raise InvalidInput("trial", "the discount of the trial has ended with it: ask for a new quote")
    return {**params, "discounts": [{"promotion_code": found} if "promotion_code" in row else row for row in rows]}


async def follow(parts: Parts, store: TrialStore) -> int:
    """Look at the trials that are due, and at what became of running ones. Returns how many were looked at. A failure
    of one keeps no other. Raises `Transient` only if SQL does not answer."""
    now_ms = parts.clock.now_ms()
    await store.settle(now_ms)
    found = await store.due(now_ms, AT_ONCE)
    for trial in found:
        try:
            await _looked(parts, store, trial)
        except TidemarkError as error:
            _log.warning("trial %s of account %r is looked at again: %s", trial.id, trial.account, error)
            await store.postpone(trial, now_ms + LOOK_AGAIN_MS)
        # Such as a row that an older program cannot read. There are other trials to look at.
        except Exception:  # noqa: BLE001
            _log.exception("trial %s of account %r cannot be followed; it waits", trial.id, trial.account)
            await store.postpone(trial, now_ms + LOOK_AGAIN_MS)
    return len(found)


async def _looked(parts: Parts, store: TrialStore, trial: Trial) -> None:
    now_ms = parts.clock.now_ms()
    if trial.state is TrialState.ENDING:
        await _ended(parts, store, trial)
        return
    subscription = trial.subscription
    if trial.session:
        session = await parts.stripe.session(trial.session)
        if session.status == "expired":
            await store.release(trial, now_ms)
            return
        if session.status != "complete":
            await store.postpone(trial, now_ms + LOOK_AGAIN_MS)
            return
        subscription = session.subscription
    begun = await parts.stripe.begun(subscription)
    keys = trial_keys(
        parts.secret, trial.terms, account=trial.account, customer=trial.customer, email=begun.email, card=begun.card
    )
    # Without a card the end is the same, unless it is a pause; and a card may be stored within the trial.
    ends = trial.terms.card == "cancel" and (begun.card or trial.terms.no_card != "pause")
    if trial.session and ends and begun.status == "trialing":
        taken = await parts.changes.trial_taken(trial.account, TrialWish(trial.terms, trial.customer, keys))
        if not taken or trial.terms.repeated_card != "end":
            # Before the trial is noted as begun: after that nobody looks at it again.
            await _canceled(parts, trial, subscription)
    after = await store.begin(trial, begun, keys, now_ms)
    if after.state is TrialState.ENDING:
        _log.error("trial %s of account %r ends now: its card or mailbox had one before", trial.id, trial.account)
        await _ended(parts, store, after)
    elif after.is_flagged:
        _log.error("trial %s of account %r has a card or mailbox that had one before", trial.id, trial.account)


async def _canceled(parts: Parts, trial: Trial, subscription: str) -> None:
    """Have the subscription end with its trial. Raises `Transient` if Stripe does not say that it will."""
    if await parts.stripe.update(subscription, {"cancel_at_period_end": True}, _key(parts, trial, "cancel")) is None:
        raise Transient("Stripe failed by itself: the subscription is not known to end with its trial")


async def _ended(parts: Parts, store: TrialStore, trial: Trial) -> None:
    """End a trial whose card had one before: the plan is paid from now on, unless the customer canceled."""
    begun = await parts.stripe.begun(trial.subscription)
    if begun.status == "trialing" and begun.is_ending:
        await parts.stripe.cancel(trial.subscription, {})
    elif begun.status == "trialing":
        ended = await parts.stripe.update(trial.subscription, {"trial_end": "now"}, _key(parts, trial, "end"))
        if ended is None:
            raise Transient("Stripe failed by itself: the trial is not known to have ended")
    await store.refuse(trial, parts.clock.now_ms())


def _key(parts: Parts, trial: Trial, what: str) -> str:
    return hashlib.sha256(f"{parts.scope} {trial.id} {what}".encode()).hexdigest()

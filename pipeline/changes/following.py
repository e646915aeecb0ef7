"""Has the paid quantities at Stripe follow the holders of seats.

Seats change in SQL alone. Some seconds after the last of several changes, the number of holders is quoted and accepted
like any other change of a plan, so it is one operation of the account, which goes on wherever a process ends. What is
wanted is a number of seats and not a difference: to follow twice, or from two processes, charges once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from aggregators.plan_change import ENDED
from aggregators.plan_offer import Shop
from aggregators.seats import ACTOR, feature_named, kept_until, paid_now, payable, quantities_for, quantity_now
from pipeline.changes.operating import accept
from pipeline.changes.parts import Parts, gives_of, seen, shop_of
from pipeline.changes.quoting import make_quote
from schemas.clock import DAY_MS, SECOND_MS
from schemas.errors import TidemarkError
from schemas.plan_changes import ChangeKind, ChangeRequest, OperationState, Quote, Refusal, RefusalCode
from schemas.seats import Unpaid

AT_ONCE: Final = 50
# The first wait after a vain try; each further one is twice as long, up to a day. A payment that failed is tried again
# so rarely that nobody is charged more than once a day in vain.
FIRST_WAIT_MS: Final = 5 * SECOND_MS
WAIT_MS_MAX: Final = DAY_MS
DETAIL_CHARACTERS_MAX: Final = 500
# Where nothing is paid by the number of seats, nothing is to follow.
_SETTLED: Final = frozenset(
    {RefusalCode.NO_CUSTOMER, RefusalCode.NO_SUBSCRIPTION, RefusalCode.CONTRACT, RefusalCode.NOTHING_CHANGES}
)
# The rows of a change of quantities, and of one in a trial.
_ROWS: Final = frozenset({5, 24})

_log: Final = logging.getLogger(__name__)


async def follow(parts: Parts) -> int:
    """Have the paid quantities of the accounts follow whose seats changed. Returns how many accounts were looked at. A
    failure of one keeps no other; it is tried again later. Raises `Transient` only if SQL does not answer."""
    found = await parts.seats.unpaid(parts.clock.now_ms(), AT_ONCE)
    for unpaid in found:
        try:
            reason = await _followed(parts, unpaid.account, may_fall=unpaid.is_fewer)
        except TidemarkError as error:
            reason = str(error)
        # Such as a row that an older program cannot read. There are other accounts to go on with.
        except Exception:  # noqa: BLE001
            _log.exception("the paid seats of account %r cannot be changed; it is tried again later", unpaid.account)
            reason = "a fault of the program: see the log of the role mirror"
        if reason:
            await _postpone(parts, unpaid, reason)
        else:
            await parts.seats.followed(unpaid)
    return len(found)


async def _postpone(parts: Parts, unpaid: Unpaid, reason: str) -> None:
    _log.warning("the paid seats of account %r do not follow yet: %s", unpaid.account, reason)
    wait_ms = min(FIRST_WAIT_MS << min(unpaid.tries, 20), WAIT_MS_MAX)
    await parts.seats.postpone(unpaid, parts.clock.now_ms() + wait_ms, reason[:DETAIL_CHARACTERS_MAX])


async def _followed(parts: Parts, account: str, *, may_fall: bool) -> str:
    """Have the paid quantities of an account follow; returns why they do not yet, "" if they do."""
    shop = await shop_of(parts.catalog)
    view = await seen(parts, shop, account)
    if isinstance(view, Refusal):
        return _reason(view)
    if view.plan is None or view.status in ENDED:
        return ""
    if view.is_update_pending:
        return f"an earlier change waits for its payment: {view.pay_url}"
    holders = await parts.seats.holders(account, parts.clock.now_ms())
    wanted = quantities_for(shop, view, payable(holders, await gives_of(parts, account)))
    paid = {feature: quantity_now(shop, view, feature) for feature in wanted}
    wanted = {name: each for name, each in wanted.items() if each > paid[name] or (may_fall and each < paid[name])}
    if not wanted:
        return ""
    quote = await make_quote(parts, account, ChangeRequest(ChangeKind.PLAN, view.plan.name, quantities=wanted), ACTOR)
    if isinstance(quote, Refusal):
        return _reason(quote)
    if quote.decided.row not in _ROWS:
        # Somebody changed the quantities since they were read.
        return "the subscription changed meanwhile"
    await _keep(parts, shop, quote, wanted)
    found = await accept(parts, account, quote.id, ACTOR)
    if isinstance(found, Refusal):
        return _reason(found)
    _, operation = found
    is_done = operation.state is OperationState.DONE and not operation.detail
    return "" if is_done else operation.detail or "Stripe has not answered yet"


def _reason(refusal: Refusal) -> str:
    return "" if refusal.code in _SETTLED else refusal.message


async def _keep(parts: Parts, shop: Shop, quote: Quote, wanted: Mapping[str, int]) -> None:
    """Before a quantity falls, grant what is paid until the period ends, if the catalog says that it is kept."""
    if shop.commerce.catalog.changes.seats_down != "keep_paid":
        return
    now_ms, gives = parts.clock.now_ms(), await gives_of(parts, quote.account)
    grants = [
        kept_until(feature_named(shop, name), gives.get(name), paid_now(shop, quote.base, name), now_ms, items)
        for name, number in wanted.items()
        if number < quantity_now(shop, quote.base, name)
        for items in [[item for item in quote.base.items if item.quantity is not None]]
    ]
    if found := [grant for grant in grants if grant is not None]:
        await parts.entitlements.grant(quote.account, found, ACTOR, now_ms)

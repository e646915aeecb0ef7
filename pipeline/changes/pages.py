"""Stripe's hosted pages: checkout for a first payment, and the portal for a card, invoices and tax numbers.

An account has one open page of checkout: an older one is ended before a new one is made, and before a subscription is
made without one. A page that is left or ends by itself leaves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aggregators.plan_moves import CannotMove
from pipeline.changes.parts import Parts, customer_of, seen, shop_of
from schemas.checkout import ACCOUNT_KEY, OPERATION_KEY, check_return_url
from schemas.clock import MINUTE_MS, SECOND_MS
from schemas.plan_changes import Call, Operation, Quote, Refusal

# A page lives half an hour, which is the least that Stripe allows, and some minutes for a call that is repeated: a
# repetition is the same request to the second.
PAGE_MS: Final = 35 * MINUTE_MS
# What the portal may do: all that the product follows. Plans are changed by quotes.
PORTAL_NAME: Final = "tidemark 1"
PORTAL_FEATURES: Final[Mapping[str, Any]] = {
    "customer_update": {"enabled": True, "allowed_updates": ["address", "email", "name", "tax_id"]},
    "invoice_history": {"enabled": True},
    "payment_method_update": {"enabled": True},
    "subscription_cancel": {"enabled": False},
    "subscription_update": {"enabled": False},
}
CARD_FLOW: Final = "payment_method_update"


def marks(operation: Operation) -> dict[str, str]:
    """The metadata of what an operation makes."""
    return {ACCOUNT_KEY: operation.account, OPERATION_KEY: operation.id}


async def expire_pages(parts: Parts, quote: Quote) -> None:
    """End the account's open pages of checkout. Raises `CannotMove` if one of them was paid meanwhile."""
    for session in await parts.stripe.open_sessions(quote.base.customer):
        if session.account == quote.account:
            await parts.stripe.expire_session(session.id)
    # Read after the pages are ended: from now on nobody pays there.
    now = await seen(parts, await shop_of(parts.catalog), quote.account)
    if isinstance(now, Refusal) or now.id not in ("", quote.base.id):
        raise CannotMove("was bought on a page of checkout a moment ago: ask for a new quote")


async def open_page(parts: Parts, operation: Operation, call: Call, key: str) -> Operation:
    """Make the page of checkout, and note its address. Raises `Transient` and `InvalidInput`."""
    began_ms = operation.sent_ms if operation.sent_ms is not None else operation.made_ms
    data = {**call.params["subscription_data"], "metadata": marks(operation)}
    params = {
        **call.params, "subscription_data": data, "metadata": marks(operation),
        "client_reference_id": operation.account, "success_url": operation.return_url,
        "cancel_url": operation.return_url,
        "expires_at": (began_ms + PAGE_MS) // SECOND_MS,
    }  # fmt: skip
    session = await parts.stripe.open_checkout(params, key)
    if session is None:
        # Stripe may have made the page, and nobody will ever know its address. It ends by itself, or before the next.
        raise CannotMove("got no page of checkout, because Stripe failed: ask for a new quote")
    return await parts.changes.stepped(operation, operation.subscription, parts.clock.now_ms(), session.id, session.url)


async def portal_page(parts: Parts, account: str, return_url: str, *, only_card: bool) -> str | Refusal:
    """The address of a page of the portal, good for minutes: for the card alone, or for invoices and tax numbers too.
    Nothing is kept. Raises `Transient`, `Refused` and `InvalidInput`."""
    check_return_url(return_url)
    customer = await customer_of(parts, account)
    if isinstance(customer, Refusal):
        return customer
    configuration = await parts.stripe.portal_configuration(PORTAL_FEATURES, PORTAL_NAME)
    params: dict[str, Any] = {"customer": customer, "configuration": configuration, "return_url": return_url}
    if only_card:
        params["flow_data"] = {"type": CARD_FLOW}
    return await parts.stripe.open_portal(params)

"""What quotes and operations need, and what an account has at Stripe now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.account_grants import Commerce
from aggregators.entitlement_codec import decode
from aggregators.entitlements import segment_at
from aggregators.plan_change import ENDED
from aggregators.plan_offer import Shop, followed, price_ids, view_of, with_paid
from aggregators.price_list import price_list
from aggregators.seats import payable
from schemas.catalog_changes import CatalogStore
from schemas.clock import Clock
from schemas.entitlements import Entitlements, Resolved, SourceKind
from schemas.errors import InvalidInput
from schemas.plan_changes import ChangeKind, ChangeRequest, PlanChanges, Refusal, RefusalCode, SubscriptionView
from schemas.seats import Seats
from schemas.side_tables import Link
from schemas.stripe_changes import StripeChanges

_OWING: Final = frozenset({"past_due", "unpaid", "paused", "incomplete"})


class Parts(NamedTuple):
    """The stores. `links` lists the links of an account. `scope` keeps the keys of two Stripe accounts apart;
    `secret` is what the keys of trials are hashed with. `flush` has an account's usage until now reported to Stripe; it
    raises `Transient` as long as that is not settled."""

    clock: Clock
    catalog: CatalogStore
    entitlements: Entitlements
    links: Callable[[str], Awaitable[Sequence[Link]]]
    changes: PlanChanges
    stripe: StripeChanges
    scope: str
    seats: Seats
    secret: bytes = b""
    flush: Callable[[str], Awaitable[None]] | None = None


async def shop_of(catalog: CatalogStore) -> Shop:
    """What is sold now. Raises `InvalidInput` before the first catalog, and `Transient`."""
    standing = await catalog.standing()
    if standing.catalog is None:
        raise InvalidInput("plan", "no catalog is active: see `tidemark catalog plan --help`")
    commerce = Commerce(standing.catalog, standing.sold(), standing.pins())
    return Shop(commerce, price_list(commerce), price_ids(standing))


async def seen(parts: Parts, shop: Shop, account: str) -> SubscriptionView | Refusal:
    """What an account has, read at Stripe. Costs two to four calls. Raises `Transient`, `Refused`, `InvalidInput`."""
    now_ms = parts.clock.now_ms()
    customer = await customer_of(parts, account)
    if isinstance(customer, Refusal):
        return customer
    found = followed(shop, await parts.stripe.subscriptions(customer))
    is_first = found is None or found.status in (*ENDED, "incomplete", "paused")
    has_card = is_first and await parts.stripe.has_card(customer)
    pay_url = ""
    if found and found.latest_invoice and (found.status in _OWING or found.is_update_pending):
        pay_url = (await parts.stripe.invoice(found.latest_invoice)).pay_url
    is_contract = any(
        made.grant.kind is SourceKind.CONTRACT
        and made.revoked_ms is None
        and (made.grant.ends_ms is None or made.grant.ends_ms > now_ms)
        for made in await parts.entitlements.overrides(account)
    )
    return view_of(shop, customer, found, now_ms, has_card=has_card, is_contract=is_contract, pay_url=pay_url)


async def customer_of(parts: Parts, account: str) -> str | Refusal:
    """The Stripe customer that an account is linked to now."""
    now_ms = parts.clock.now_ms()
    links = await parts.links(account)
    customers = [
        link.customer
        for link in links
        if link.customer and link.starts_ms <= now_ms and (link.ends_ms is None or now_ms < link.ends_ms)
    ]
    if not customers:
        message = f"account {account} belongs to no Stripe customer: link it first (`tidemark account link`)"
        return Refusal(1, RefusalCode.NO_CUSTOMER, "account", message)
    return customers[-1]


async def paid_in(parts: Parts, view: SubscriptionView) -> SubscriptionView:
    """The view of a subscription with what is billed of its items for the present period. Costs two calls or more."""
    starts = [item.start_ms for item in view.items if item.quantity is not None]
    if not starts:
        return view
    # An invoice is made in the second in which its period begins, or later.
    return with_paid(view, await parts.stripe.charges(view.customer, view.id, min(starts)))


async def with_holders(
    parts: Parts, account: str, request: ChangeRequest, gives: Mapping[str, Resolved]
) -> ChangeRequest:
    """A request that says how many seats are held and in use, of the features whose holders are kept here."""
    if request.kind not in (ChangeKind.PLAN, ChangeKind.TRIAL):
        return request
    found = await parts.seats.holders(account, parts.clock.now_ms())
    used = {**request.used, **{feature: Decimal(each.held) for feature, each in found.items()}}
    return request._replace(used=used, held=payable(found, gives))


async def gives_of(parts: Parts, account: str) -> Mapping[str, Resolved]:
    """The present value of each feature of an account; empty before the first computation."""
    version = (await parts.entitlements.latest([account])).get(account)
    return segment_at(decode(version.segments), parts.clock.now_ms()).features if version else {}

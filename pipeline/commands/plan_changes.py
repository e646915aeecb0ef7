"""The commands `change preview`, `accept`, `undo`, `checkout` and `portal`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from pipeline.changes.operating import accept
from pipeline.changes.pages import portal_page
from pipeline.changes.parts import Parts
from pipeline.changes.quoting import make_quote
from pipeline.open import change_parts, open_base, open_live_view, open_side_tables, open_stripe_changes
from pipeline.settings import Settings
from schemas.checkout import check_return_url
from schemas.errors import InvalidInput
from schemas.plan_changes import ChangeKind, ChangeRequest, Operation, Quote, Refusal


async def preview(settings: Settings, account: str, request: ChangeRequest, by: str) -> Quote:
    """Quote a change. Raises `InvalidInput` with the field and the remedy if it is refused, and `Transient`."""
    async with _opened(settings) as parts:
        return _made(await make_quote(parts, account, request, by))


async def accept_quote(settings: Settings, account: str, quote: str, by: str) -> tuple[Quote, Operation]:
    """Accept a quote and carry it out as far as Stripe answers. Raises `InvalidInput` if the quote is too old, or for
    something else than the account has now, and `Transient`."""
    async with _opened(settings) as parts:
        return await _accepted(parts, account, quote, by)


async def checkout(
    settings: Settings, account: str, request: ChangeRequest, by: str, return_url: str
) -> tuple[Quote, Operation]:
    """Make a page of checkout. Raises `InvalidInput` if the account has a subscription or the change is refused, and
    `Transient`."""
    check_return_url(return_url)
    async with _opened(settings) as parts:
        quote = _made(await make_quote(parts, account, request, by))
        if not quote.decided.opens_checkout:
            raise InvalidInput("plan", "the account has a subscription: use `tidemark change preview`")
        return await _accepted(parts, account, quote.id, by, return_url)


async def portal(settings: Settings, account: str, return_url: str, *, only_card: bool) -> str:
    """The address of a page of the portal. Raises `InvalidInput` without a customer, and `Transient`."""
    async with _opened(settings) as parts:
        found = await portal_page(parts, account, return_url, only_card=only_card)
    if isinstance(found, Refusal):
        raise InvalidInput(found.field, found.message)
    return found


async def undo(settings: Settings, account: str, by: str) -> tuple[Quote, Operation]:
    """Take a pending change or a coming end back. Raises `InvalidInput` if there is none, and `Transient`."""
    async with _opened(settings) as parts:
        quote = _made(await make_quote(parts, account, ChangeRequest(ChangeKind.UNDO, by_operator=True), by))
        return await _accepted(parts, account, quote.id, by)


async def _accepted(parts: Parts, account: str, quote: str, by: str, return_url: str = "") -> tuple[Quote, Operation]:
    found = await accept(parts, account, quote, by, return_url, by_operator=True)
    if isinstance(found, Refusal):
        raise InvalidInput(found.field, found.message)
    return found


def _made(found: Quote | Refusal) -> Quote:
    if isinstance(found, Refusal):
        raise InvalidInput(found.field, found.message)
    return found


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Parts]:
    base = await open_base(settings, create=False)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        stripe = await open_stripe_changes(base)
        stack.push_async_callback(stripe.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        view = open_live_view(settings)
        stack.push_async_callback(view.close)
        yield change_parts(base, tables, stripe, view)

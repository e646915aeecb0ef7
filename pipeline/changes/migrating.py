"""Moves subscriptions from a flat price to a price for usage, a state at a time.

Each call to Stripe is an operation of `pipeline.changes.operating`, so a process that ends anywhere is gone on with by
the same command, or by the role `mirror`. What a subscription waits for is in its row in SQL before that.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from aggregators import flat_to_metered as rules
from aggregators.flat_to_metered import Prices
from aggregators.plan_moves import CannotMove
from pipeline.changes.operating import accept, carry_on
from pipeline.changes.parts import Parts, seen, shop_of
from pipeline.changes.quoting import QUOTE_PREFIX
from schemas.bills import Bills
from schemas.catalog_changes import CatalogStore
from schemas.clock import MINUTE_MS, Clock
from schemas.errors import InvalidInput
from schemas.flat_to_metered import Item, ItemState, Migration, Migrations, UsageTotals, Who
from schemas.intent_ledger import IntentLedger
from schemas.plan_changes import (
    Call,
    CallKind,
    Calls,
    ChangeKind,
    ChangeRequest,
    OperationState,
    Quote,
    Refusal,
    SubscriptionView,
    When,
)
from schemas.plan_moves import PlanMoves, Subscribed, SubscribedItem
from schemas.upgrades import Money

# Of the table in docs/plan-changes.md.
ROW: Final = 27
SUBSCRIPTIONS_MAX: Final = 10_000
# A second try follows what changed since the first one.
TRIES_AT_ONCE: Final = 2
_QUIET: Final = "Stripe has not answered yet: repeat the command"
MIXED: Final = "has the flat price and a price for usage at one time"
_log: Final = logging.getLogger(__name__)
_GONE: Final = "ended, or has another plan"
Told = Callable[[str], None]


class Stores(NamedTuple):
    """What a migration needs beside `parts`: the mirror's subscriptions and bills, what was reported, our totals, and
    the migrations themselves."""

    parts: Parts
    moves: PlanMoves
    bills: Bills
    intents: IntentLedger
    totals: UsageTotals
    kept: Migrations


class Loaded(NamedTuple):
    """A migration with its prices, its subscriptions, and what the mirror says of these by id."""

    migration: Migration
    prices: Prices
    items: Sequence[Item]
    mirrored: Mapping[str, Subscribed]


async def prices_of(catalog: CatalogStore, migration: Migration) -> Prices:
    """The prices of a migration. Raises `InvalidInput` if they make none."""
    try:
        standing = await catalog.standing()
        return rules.prices_for(standing, migration.source, migration.shadow, migration.target)
    except CannotMove as error:
        raise InvalidInput("PLAN", str(error)) from error


async def load(stores: Stores, name: str) -> Loaded:
    """Read a migration. Raises `InvalidInput` if there is none of this name."""
    migration = await stores.kept.migration(name)
    if migration is None:
        raise InvalidInput("NAME", f"there is no migration {name!r}: see `tidemark migration status`")
    prices = await prices_of(stores.parts.catalog, migration)
    return Loaded(migration, prices, await stores.kept.items(name), await _mirrored(stores.moves, prices))


async def watch(catalog: CatalogStore, moves: PlanMoves, kept: Migrations, clock: Clock) -> None:
    """Halt each migration of which a subscription has the flat price and a price for usage at one time, by the mirror.
    Asks nothing of Stripe. Raises `Transient`; repeatable."""
    for migration in await kept.listed():
        if migration.halted:
            continue
        try:
            prices = await prices_of(catalog, migration)
            mirrored = await _mirrored(moves, prices)
        except InvalidInput as error:
            _log.warning("migration %s cannot be looked at: %s", migration.name, error)
            continue
        mixed = [each for each in mirrored.values() if rules.is_mixed(prices, each.items)]
        if mixed:
            why = f"{mixed[0].id} of {mixed[0].account or 'no account'}: {MIXED}"
            await kept.halt(migration.name, why, Who("mirror", MIXED), clock.now_ms())


async def _mirrored(moves: PlanMoves, prices: Prices) -> dict[str, Subscribed]:
    wanted = prices.flat.keys() | prices.zero.keys() | prices.future.keys()
    found = await moves.subscribed(wanted, SUBSCRIPTIONS_MAX + 1)
    if len(found) > SUBSCRIPTIONS_MAX:
        raise InvalidInput("PLAN", f"more than {SUBSCRIPTIONS_MAX} subscriptions have the plans: that is the limit")
    return {each.id: each for each in found}


async def advance(
    stores: Stores, loaded: Loaded, items: Iterable[Item], wish: ItemState, who: Who, told: Told
) -> list[Item]:
    """Have Stripe called for each subscription that is to reach a state. What Stripe does not allow is noted. Nobody is
    scheduled any more once the migration is halted. Safe to repeat. Raises `Transient` if Stripe or SQL does not
    answer."""
    found = []
    for item in items:
        if wish is ItemState.SCHEDULED and await _is_halted(stores, item.migration):
            break
        after = await _carried(stores, loaded, item, wish, who)
        told(f"{item.subscription}: {after.state}{f': {after.note}' if after.note else ''}")
        found.append(after)
    return found


async def _is_halted(stores: Stores, name: str) -> bool:
    migration = await stores.kept.migration(name)
    return migration is None or bool(migration.halted)


async def _carried(stores: Stores, loaded: Loaded, item: Item, wish: ItemState, who: Who) -> Item:
    if item.wish not in (None, wish):
        # What was begun is ended first: nobody takes back what is half done.
        item = await _carried(stores, loaded, item, item.wish, who)
        # Who went back, or left, goes nowhere any more.
        if item.wish is not None or item.state in rules.OVER:
            return item
    for _ in range(TRIES_AT_ONCE):
        if item.state is wish:
            return item
        item = await keep(stores, item, item._replace(wish=wish, note=""), who)
        if item.wish is not wish:
            # Another process went on.
            return item
        try:
            state, detail = await _operated(stores, loaded, item, who)
        except (CannotMove, InvalidInput) as error:
            state, detail = OperationState.FAILED, str(error)
        if state is OperationState.DONE:
            # A difference of one that went back is nobody's any more.
            problem = "" if wish in rules.OVER else item.problem
            done = item._replace(state=wish, wish=None, tries=item.tries + 1, problem=problem)
            return await keep(stores, item, done, who)
        if state is not OperationState.FAILED:
            return await keep(stores, item, item._replace(note=_QUIET), who)
        item = await keep(stores, item, item._replace(wish=None, tries=item.tries + 1, note=detail), who)
    return item


async def keep(stores: Stores, before: Item, after: Item, who: Who) -> Item:
    """Write a subscription, if it changed; returns it as it is then."""
    if after == before:
        return before
    return await stores.kept.change(before, after, who, stores.parts.clock.now_ms())


async def _operated(stores: Stores, loaded: Loaded, item: Item, who: Who) -> tuple[OperationState, str]:
    """Begin the operation of a wish, or go on with it. Raises `CannotMove` and `InvalidInput` if it cannot begin."""
    parts, identifier = stores.parts, _identifier(stores.parts, item)
    operation = await parts.changes.operation(identifier)
    if operation is not None:
        operation = await carry_on(parts, operation)
        return operation.state, operation.detail
    view = await seen(parts, await shop_of(parts.catalog), item.account)
    if isinstance(view, Refusal):
        raise CannotMove(view.message)
    if view.id != item.subscription:
        raise CannotMove(_GONE)
    calls = _calls(loaded.prices, item, view)
    if not calls:
        return OperationState.DONE, ""
    quote = _quote(loaded.migration, item, view, calls, parts.clock.now_ms(), who, identifier)
    await parts.changes.add_quote(quote)
    found = await accept(parts, item.account, quote.id, who.by, by_operator=True)
    if isinstance(found, Refusal):
        raise CannotMove(found.message)
    return found[1].state, found[1].detail


def _identifier(parts: Parts, item: Item) -> str:
    wish = item.wish.value if item.wish else ""
    about = f"{parts.scope} {item.migration} {item.subscription} {item.state} {wish} {item.tries}"
    return QUOTE_PREFIX + hashlib.sha256(about.encode()).hexdigest()[:24]


def _calls(prices: Prices, item: Item, view: SubscriptionView) -> tuple[Call, ...]:
    """The calls that lead from the subscription as it is to the wish. Raises `CannotMove`."""
    zero = [held for held in view.items if held.price in prices.zero]
    without = Call(
        CallKind.UPDATE,
        {"items": [{"id": held.id, "deleted": True} for held in zero], "proration_behavior": "none"},
    )
    if item.wish is ItemState.SHADOW:
        _check_still(view)
        have = {held.price for held in zero}
        added = [{"price": price} for price in prices.shadows(view.currency) if price not in have]
        return (Call(CallKind.UPDATE, {"items": added, "proration_behavior": "none"}),) if added else ()
    if item.wish is ItemState.SCHEDULED:
        _check_still(view)
        return _phases(view, [param_of(each) for each in prices.future_items(_subscribed(view))])
    is_promoted = rules.is_promoted(prices, _subscribed(view))
    if item.wish is ItemState.RETURNING:
        if not is_promoted:
            raise CannotMove("has no price for usage any more: somebody changed the subscription")
        _check_free(view)
        # What was bought beside the plan since then stays, and what was given up does not come back.
        beside = [each for each in _subscribed(view) if each.price not in prices.future]
        flat = [each for each in item.figures.had if each.price in prices.flat]
        return _phases(view, [param_of(each) for each in (*flat, *beside)])
    if is_promoted:
        raise CannotMove("was promoted meanwhile: `tidemark migration compare` takes that in")
    release = (Call(CallKind.RELEASE),) if view.pending is not None and item.state is ItemState.SCHEDULED else ()
    if item.wish is ItemState.REVERTED:
        return (*release, *((without,) if zero else ()))
    return release


def _check_still(view: SubscriptionView) -> None:
    """Raise `CannotMove` if something else is about to happen to a subscription."""
    if view.status != "active":
        raise CannotMove(f"is {view.status}: only a subscription that is active and paid goes on")
    if view.cancel_at_ms is not None:
        raise CannotMove("is about to be canceled")
    if view.is_update_pending:
        raise CannotMove("has a change that waits for its payment")
    if view.has_item_discounts:
        raise CannotMove("has a discount of one item, which a schedule would drop: move it in Stripe's dashboard")
    _check_free(view)


def _check_free(view: SubscriptionView) -> None:
    if view.pending is not None and not view.pending.is_over:
        raise CannotMove(f"has the schedule {view.pending.schedule}: release it, or let it end")


def _phases(view: SubscriptionView, items: list[dict[str, Any]]) -> tuple[Call, ...]:
    """The calls that change the items at the end of the period. A schedule that has done its work is open for as long
    as a period, which need not be this one's end."""
    release = () if view.pending is None else (Call(CallKind.RELEASE),)
    return (*release, Call(CallKind.SCHEDULE), Call(CallKind.PHASES, {"items": items, "end_behavior": "release"}))


def _subscribed(view: SubscriptionView) -> list[SubscribedItem]:
    return [SubscribedItem(held.price, held.quantity) for held in view.items]


def param_of(item: SubscribedItem) -> dict[str, Any]:
    """An item as a parameter of Stripe."""
    return {"price": item.price} | ({} if item.quantity is None else {"quantity": item.quantity})


def _quote(
    migration: Migration, item: Item, view: SubscriptionView, calls: tuple[Call, ...], now_ms: int, who: Who, name: str
) -> Quote:
    """The change as a quote of an operator, which costs nothing by itself."""
    request = ChangeRequest(ChangeKind.PLAN, str(migration.target), by_operator=True)
    when = When.PERIOD_END if any(call.kind is CallKind.PHASES for call in calls) else When.NOW
    figures = item.figures
    return Quote(
        id=name, account=item.account, request=msgspec.json.encode(request, order="sorted").decode(), base=view,
        decided=Calls(ROW, when, calls), lines=(), total=Money(0, figures.currency, figures.exponent), due_minor=0,
        tax_minor=0, drift_minor=0, subtotal_minor=0, ours_minor=None, next_minor=None, next_ms=None,
        words=f"Migration {item.migration}: {item.subscription} goes from {item.state} to {item.wish}.",
        made_ms=now_ms, expires_ms=now_ms + 15 * MINUTE_MS, made_by=who.by,
    )  # fmt: skip

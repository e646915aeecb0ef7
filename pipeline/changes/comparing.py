"""Compares what a migration's subscriptions were billed with what was counted, and halts all waves at a difference.

Also follows what time does at Stripe: a phase that begins, a return that takes effect, a customer who leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from aggregators import flat_to_metered as rules
from aggregators.plan_moves import CannotMove
from pipeline.changes.migrating import MIXED, Loaded, Stores, Told, advance, keep, load, param_of
from schemas.bills import Bill
from schemas.clock import DAY_MS, MINUTE_MS, SECOND_MS
from schemas.errors import InvalidInput
from schemas.flat_to_metered import Checked, Counted, Item, ItemState, Rated, TotalKey, Who
from schemas.plan_moves import Subscribed

# A bill of a period is looked for in the last year.
BILLS_MS: Final = 366 * DAY_MS
# Stripe's preview keeps so many lines: with more, its rating is not whole.
LINES_MAX: Final = 10
# A command that is repeated after an error does not have everything previewed again.
PREVIEWED_MS: Final = 10 * MINUTE_MS
_LOST: Final = "has no shadow price any more: somebody changed the subscription"
_RELEASED: Final = "somebody released its schedule: approve its wave again"
Totals = Mapping[TotalKey, Counted]


async def compare(stores: Stores, name: str, who: Who, told: Told, *, previews: bool = True) -> Loaded:
    """Compare every subscription of a migration as far as there is something to compare, and write down what is found.
    A difference halts all waves, and the schedules that have not begun are released. Without `previews`, our rating
    stands for Stripe's of the future price. Safe to repeat."""
    loaded = await load(stores, name)
    alive = [item for item in loaded.items if item.state not in rules.OVER]
    totals = await stores.totals.totals({item.account for item in alive}, loaded.prices.meters)
    wrong: list[Item] = []
    for item in alive:
        after = await _looked_at(stores, loaded, item, totals, previews=previews)
        after = await keep(stores, item, after, who)
        if after.problem:
            wrong.append(after)
            told(f"{after.subscription}: {after.problem}")
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        why = f"{wrong[0].subscription} of {wrong[0].account}: {wrong[0].problem}{more}"
        await stores.kept.halt(name, why, who, stores.parts.clock.now_ms())
    found = await load(stores, name)
    if found.migration.halted:
        await hold_back(stores, found, who, told)
        found = await load(stores, name)
    return found


async def hold_back(stores: Stores, loaded: Loaded, who: Who, told: Told) -> None:
    """Release the schedules that have not begun; their waves are to be approved again."""
    waiting = [
        item for item in loaded.items
        if item.state is ItemState.SCHEDULED or item.wish in (ItemState.SCHEDULED, ItemState.COMPARED)
    ]  # fmt: skip
    await advance(stores, loaded, waiting, ItemState.COMPARED, who, told)


async def _looked_at(stores: Stores, loaded: Loaded, item: Item, totals: Totals, *, previews: bool) -> Item:
    """A subscription with what is known of it now."""
    now = loaded.mirrored.get(item.subscription)
    prices = loaded.prices
    if now is None:
        return item._replace(state=ItemState.LEFT, wish=None, problem="")
    if item.state is ItemState.RETURNING and rules.is_flat(prices, now.items):
        return await _returned(stores, loaded, item)
    item = rules.followed(prices, item, now)
    figures = item.figures
    item = item._replace(renews_ms=now.renews_ms, problem="", note="" if item.wish is None else item.note)
    if rules.is_mixed(prices, now.items):
        return item._replace(problem=MIXED)
    if item.state in (ItemState.SHADOW, ItemState.COMPARED, ItemState.APPROVED):
        if not rules.is_flat(prices, now.items):
            return item._replace(state=ItemState.LEFT, wish=None)
        try:
            figures = rules.refreshed(prices, figures, now.items)
        except CannotMove as error:
            return item._replace(note=str(error))
        item = item._replace(figures=figures)
        if not rules.has_shadow(prices, now.items, figures.currency):
            return item._replace(note=_LOST)
        return await _shadowed(stores, loaded, item, now, totals, previews=previews)
    if item.state is ItemState.SCHEDULED:
        is_late = not now.schedule and item.wish is None
        if is_late and not await _has_schedule(stores, item):
            return item._replace(state=ItemState.COMPARED, note=_RELEASED)
    if item.state is ItemState.PROMOTED:
        return await _settled(stores, loaded, item, totals)
    return item


async def _returned(stores: Stores, loaded: Loaded, item: Item) -> Item:
    """A subscription that has its flat price again: back, once the invoice of its last usage is final."""
    figures = item.figures
    bills = await _bills(stores, loaded, item, since_ms=figures.promoted_ms or 0)
    if not any(bill.end_ms >= item.renews_ms for bill in bills):
        return item._replace(note="the invoice of its last usage is not final yet")
    figures = figures._replace(credit_minor=rules.credit_minor(figures, bills))
    return item._replace(state=ItemState.REVERTED, figures=figures, problem="", note="")


async def _has_schedule(stores: Stores, item: Item) -> bool:
    """Whether a subscription has a schedule at Stripe: the mirror may not have heard of it yet."""
    return bool((await stores.parts.stripe.subscription(item.subscription)).schedule)


async def _shadowed(
    stores: Stores, loaded: Loaded, item: Item, now: Subscribed, totals: Totals, *, previews: bool
) -> Item:
    """Compare the shadow: Stripe's rating of the future price in the running period, and the last whole invoice."""
    prices, figures = loaded.prices, item.figures
    last, now_ms = figures.rated, stores.parts.clock.now_ms()
    is_fresh = last is not None and rules.is_seen(last) and now_ms < last.at_ms + PREVIEWED_MS
    found = None if is_fresh or not previews else await _rated(stores, loaded, item, now)
    if found is not None:
        if problem := rules.rating_problem(found):
            return item._replace(figures=figures._replace(rated=found), problem=problem)
        # A preview of less usage, such as one of a new period, says less.
        if figures.rated is None or found.ours_minor >= figures.rated.ours_minor:
            figures = figures._replace(rated=found)
    bill = await _last_checked(stores, loaded, item, totals, whole_of=prices.zero.keys())
    if bill is not None:
        figures = figures._replace(compared=bill)
        if problem := rules.shadow_problem(bill):
            return item._replace(figures=figures, problem=problem)
    note = rules.comparison_hindrance(figures, previews=previews)
    state = ItemState.SHADOW if note else max(item.state, ItemState.COMPARED, key=list(ItemState).index)
    return item._replace(figures=figures, state=state, note=note)


async def _rated(stores: Stores, loaded: Loaded, item: Item, now: Subscribed) -> Rated | None:
    """Have Stripe preview the future price for the running period; None if the preview cannot be read whole."""
    stripe, prices = stores.parts.stripe, loaded.prices
    found = await stripe.subscriptions(item.customer)
    own = next((each for each in found if each.id == item.subscription), None)
    if own is None:
        return None
    leaving = prices.flat.keys() | prices.zero.keys()
    items: list[dict[str, Any]] = [{"id": each.id, "deleted": True} for each in own.items if each.price in leaving]
    kept = {each.price for each in own.items} - leaving
    items += [param_of(each) for each in prices.future_items(now.items) if each.price not in kept]
    starts_ms = max(each.start_ms for each in own.items if each.price in prices.zero)
    details = {"items": items, "proration_behavior": "none", "start_date": starts_ms // SECOND_MS}
    preview = await stripe.preview({"subscription": item.subscription, "subscription_details": details})
    if len(preview.lines) >= LINES_MAX:
        return None
    lines: dict[str, tuple[Decimal, int]] = {}
    for line in preview.lines:
        if line.price in prices.metered:
            quantity, amount_minor = lines.get(line.price, (Decimal(0), 0))
            lines[line.price] = quantity + Decimal(line.quantity or 0), amount_minor + line.amount_minor
    return rules.rated(prices, item.figures.currency, lines, stores.parts.clock.now_ms())


async def _settled(stores: Stores, loaded: Loaded, item: Item, totals: Totals) -> Item:
    """Compare the first invoice at the future price."""
    since_ms = item.figures.promoted_ms or 0
    found = await _last_checked(
        stores, loaded, item, totals, whole_of=loaded.prices.metered.keys(), since_ms=since_ms, is_first=True
    )
    if found is None:
        return item
    problem = rules.settled_problem(found)
    figures = item.figures._replace(settled=found)
    return item._replace(figures=figures, problem=problem, state=item.state if problem else ItemState.SETTLED)


async def _bills(stores: Stores, loaded: Loaded, item: Item, since_ms: int) -> list[Bill]:
    """The finalized bills of usage of a subscription at the future prices, whose periods began at an instant or later,
    the first one first."""
    now_ms = stores.parts.clock.now_ms()
    bills = await stores.bills.bills(now_ms - BILLS_MS, now_ms + DAY_MS, item.customer)
    own = [each for each in bills if each.price in loaded.prices.metered and each.start_ms >= since_ms]
    return sorted((each for each in own if _is_final(each, item)), key=lambda each: each.end_ms)


def _is_final(bill: Bill, item: Item) -> bool:
    return bill.finalized_ms is not None and not bill.is_void and bill.subscription == item.subscription


async def _last_checked(
    stores: Stores,
    loaded: Loaded,
    item: Item,
    totals: Totals,
    whole_of: object,
    since_ms: int = 0,
    *,
    is_first: bool = False,
) -> Checked | None:
    """The last finalized bill of a whole period (or the first one since an instant) beside our totals; None if there is
    none whose totals are complete."""
    prices, now_ms = loaded.prices, stores.parts.clock.now_ms()
    wanted: Mapping[str, str] = {
        price_id: price.meter
        for price_id, price in {**prices.zero, **prices.metered}.items()
        if price_id in whole_of  # type: ignore[operator]  # a view of keys
    }
    bills = await stores.bills.bills(now_ms - BILLS_MS, now_ms + DAY_MS, item.customer)
    spans: dict[tuple[int, int], dict[str, Bill]] = {}
    for bill in bills:
        if bill.price in wanted and _is_final(bill, item) and bill.start_ms >= since_ms:
            spans.setdefault((bill.start_ms, bill.end_ms), {})[wanted[bill.price]] = bill
    whole = [span for span, found in spans.items() if set(found) == set(prices.meters)]
    for span in sorted(whole, key=lambda each: each[1], reverse=not is_first):
        evidence = await _evidence(stores, loaded, item, spans[span], totals)
        if evidence is not None:
            return rules.checked(prices, item.figures.currency, evidence)
    return None


async def _evidence(
    stores: Stores, loaded: Loaded, item: Item, bills: Mapping[str, Bill], totals: Totals
) -> rules.Evidence | None:
    """What there is about bills of one span; None if something is not complete, or the span is no period of ours."""
    found, reported = {}, {}
    for meter, bill in bills.items():
        total = totals.get(rules.evidence_key(item.account, meter, bill))
        if total is None:
            return None
        found[meter] = total
        name = loaded.prices.event_names[meter]
        reported[meter] = await stores.intents.totals(name, item.customer, bill.start_ms, bill.end_ms)
    evidence = rules.Evidence(bills, found, reported)
    return evidence if evidence.is_whole else None


async def resume(stores: Stores, name: str, who: Who) -> Loaded:
    """Let the waves of a halted migration go on. Raises `InvalidInput` while a difference is there."""
    loaded = await load(stores, name)
    if wrong := [item for item in loaded.items if item.problem and item.state not in rules.OVER]:
        message = f"{wrong[0].subscription} differs: {wrong[0].problem}; mend that, then `tidemark migration compare`"
        raise InvalidInput("NAME", message)
    await stores.kept.halt(name, "", who, stores.parts.clock.now_ms())
    return await load(stores, name)

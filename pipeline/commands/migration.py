"""The commands of `tidemark migration`, as functions, and their report for people."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

from aggregators.flat_to_metered import BEFORE
from aggregators.instants import format_instant_ms
from aggregators.migration_report import Report, report_of
from pipeline.audit.reconciling import opened as opened_views
from pipeline.audit.usage_totals import RecountedTotals
from pipeline.changes.migrating import Stores, load
from pipeline.commands.backtest import major
from pipeline.commands.csv_file import csv_file
from pipeline.open import (
    change_parts,
    open_base,
    open_live_view,
    open_period_totals,
    open_side_tables,
    open_stripe_changes,
)
from pipeline.settings import Settings
from schemas.errors import InvalidInput
from schemas.flat_to_metered import Checked, Item, ItemState, Migration

COLUMNS: Final = (
    "account", "customer", "subscription", "wave", "state", "currency", "flat_price", "usage_price", "difference",
    "usage_counted", "usage_reported", "usage_recounted", "usage_invoiced", "invoice", "previewed_usage",
    "previewed_by_stripe", "rated_by_us", "told", "metered_from", "credit_to_make", "differs", "waits_for",
)  # fmt: skip
SHOWN: Final = 20
# Of each direction.
EXTREMES: Final = 3
_NONE: Final = Decimal("NaN")


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Stores]:
    """Open the stores of the settings, and close them afterwards."""
    async with contextlib.AsyncExitStack() as stack:
        views = await stack.enter_async_context(opened_views(settings, mirror=False))
        base = views.base
        stripe = await open_stripe_changes(base)
        stack.push_async_callback(stripe.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        view = open_live_view(settings)
        stack.push_async_callback(view.close)
        hourly = open_period_totals(settings)
        stack.push_async_callback(hourly.close)
        totals = RecountedTotals(views.views, hourly, base.clock, base.genesis.partitions)
        parts = change_parts(base, tables, stripe, view)
        yield Stores(parts, tables.plan_moves, tables.bills, tables.intents, totals, tables.migrations)


async def report(stores: Stores, name: str) -> Report:
    """The report of a migration. Raises `InvalidInput` if there is none of this name."""
    loaded = await load(stores, name)
    return report_of(loaded.migration, loaded.items)


async def listed(settings: Settings) -> Sequence[Migration]:
    """All migrations, the newest first."""
    base = await open_base(settings, create=False)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        return await tables.migrations.listed()


async def accepted_minor(stores: Stores, given: Sequence[str]) -> Mapping[str, int]:
    """The amounts of `usd=33660.00` in minor units by currency. Raises `InvalidInput`."""
    catalog = (await stores.parts.catalog.standing()).catalog
    exponents = catalog.currencies if catalog else {}
    found = {}
    for text in given:
        currency, _, amount = text.partition("=")
        try:
            minor = Decimal(amount).scaleb(exponents[currency])
        except (KeyError, InvalidOperation):
            minor = _NONE
        if not minor.is_finite() or minor != int(minor):
            message = f"{text[:100]!r} is not CURRENCY=AMOUNT, such as usd=33660.00"
            raise InvalidInput("--accept-month-without-cash", message)
        found[currency] = int(minor)
    return found


def lines(found: Report) -> list[str]:
    """The report for people."""
    migration = found.migration
    said = [
        f"{migration.name}: {migration.source} → {migration.target}, {migration.shadow} before",
        f"{migration.made_by}: {migration.reason}",
        f"HALTED, nothing goes on: {migration.halted}" if migration.halted else "not halted",
    ]
    used = [state for state in ItemState if any(row.states.get(state) for row in found.waves)]
    rows = [["wave", *used, "month without cash"]]
    for row in found.waves:
        counts = [str(row.states.get(state, 0)) for state in used]
        rows.append([str(row.wave), *counts, _by_currency(found, row.gap_minor)])
    said += _table(rows)
    for each in found.effects:
        if not each.more + each.less + each.same:
            said.append(f"{each.currency}: no figure for the usage of {each.unknown} subscriptions yet")
            continue
        amounts = {name: major(getattr(each, f"{name}_minor"), each.exponent) for name in ("before", "after")}
        change = _signed(each.after_minor - each.before_minor, each.exponent)
        unknown = f"; {each.unknown} have no figure yet" if each.unknown else ""
        said.append(
            f"{each.currency}: paying more: {each.more} ({_signed(each.more_minor, each.exponent)}), paying less: "
            f"{each.less} ({_signed(each.less_minor, each.exponent)}), paying the same: {each.same}; "
            f"{amounts['before']} a month by the flat price, {amounts['after']} by usage, {change}{unknown}"
        )
        said += _extremes(found, each.currency)
    said += _cash_lines(found)
    said += [f"differs: {item.subscription} of {item.account}: {item.problem}" for item in found.problems[:SHOWN]]
    notes = Counter(item.note for item in found.waiting)
    for note, number in notes.most_common(SHOWN):
        first = next(item for item in found.waiting if item.note == note)
        more = f" and {number - 1} more" if number > 1 else ""
        said.append(f"waits: {first.subscription} of {first.account}{more}: {note}")
    said += [
        f"credit: {item.subscription} of {item.account} went back, and paid "
        f"{major(item.figures.credit_minor, item.figures.exponent)} {item.figures.currency} more than the flat price: "
        "make a credit note at Stripe"
        for item in found.credits[:SHOWN]
    ]
    return said


def _extremes(found: Report, currency: str) -> list[str]:
    """Whose bill changes most in a currency, in both directions."""
    moved = [
        (future - item.figures.flat_minor, item)
        for item in found.moved
        if item.figures.currency == currency and (future := item.figures.future_minor) is not None
    ]
    moved.sort(key=lambda each: (each[0], each[1].account))
    shown = [each for each in moved[::-1] if each[0] > 0][:EXTREMES] + [each for each in moved if each[0] < 0][
        :EXTREMES
    ]
    return [
        f"  pays {'more' if change > 0 else 'less'}: {item.account} "
        f"{major(item.figures.flat_minor, item.figures.exponent)} → "
        f"{major(item.figures.flat_minor + change, item.figures.exponent)} {currency}"
        for change, item in shown
    ]


def _cash_lines(found: Report) -> list[str]:
    """What is charged by month."""
    cash = found.cash
    if not cash:
        return []
    rows = [["charged in", "currency", "at the flat price", "with the migration"]]
    rows += [
        [row.month, row.currency, major(row.before_minor, row.exponent), major(row.after_minor, row.exponent)]
        for row in cash
    ]
    said = [*_table(rows), "  usage is charged after its month: the month in which it begins brings no cash"]
    if any(item.state in BEFORE for item in found.moved):
        said.append("  who is not scheduled yet is counted as moved as early as possible")
    if any(each.unknown for each in found.effects):
        said.append("  who has no figure yet is counted at the flat price")
    return said


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  " + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _by_currency(found: Report, amounts: Any) -> str:
    exponents = {each.currency: each.exponent for each in found.effects}
    return ", ".join(f"{major(minor, exponents[name])} {name}" for name, minor in sorted(amounts.items())) or "-"


def _signed(minor: int, exponent: int) -> str:
    return f"{'+' if minor > 0 else ''}{major(minor, exponent)}"


def row_of(item: Item) -> dict[str, Any]:
    """A subscription, by the columns of the CSV file."""
    figures, exponent = item.figures, item.figures.exponent
    check: Checked | None = figures.settled or figures.compared
    quantities = (check.counted, check.reported, check.recounted, check.billed, check.invoice) if check else ("",) * 5
    rated = figures.rated
    preview = ("", "", "")
    if rated is not None:
        preview = rated.quantity, major(rated.stripe_minor, exponent), major(rated.ours_minor, exponent)
    future = figures.future_minor
    values = (
        item.account, item.customer, item.subscription, item.wave, item.state.value, figures.currency,
        major(figures.flat_minor, exponent), "" if future is None else major(future, exponent),
        "" if future is None else major(future - figures.flat_minor, exponent), *quantities, *preview,
        _instant(item.notified_ms), _instant(figures.promoted_ms),
        major(figures.credit_minor, exponent) if figures.credit_minor else "", item.problem, item.note,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _instant(instant_ms: int | None) -> str:
    return "" if instant_ms is None else format_instant_ms(instant_ms)


def write_csv(found: Report, path: Path) -> None:
    """Write every subscription as a row. Raises `InvalidInput` for a path that cannot be written."""
    with csv_file(path, COLUMNS) as write:
        for item in found.items:
            write(row_of(item).values())


def document(found: Report) -> dict[str, Any]:
    """The report as JSON: amounts as decimal text in major units, and in minor units where the name says so."""
    migration = found.migration
    plans = {name: str(getattr(migration, name)) for name in ("source", "shadow", "target")}
    return {
        **migration._asdict(), **plans, "rule": migration.rule.value,
        "waves": [
            {
                "wave": row.wave,
                "states": {state.value: count for state, count in row.states.items()},
                "month_without_cash": _by_currency(found, row.gap_minor),
            }
            for row in found.waves
        ],
        "effects": [each._asdict() for each in found.effects],
        "cash": [each._asdict() for each in found.cash],
        "subscriptions": [row_of(item) for item in found.items],
    }  # fmt: skip

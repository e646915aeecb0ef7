"""The backtest of a catalog file: what the new prices would have billed each customer on past usage."""

from __future__ import annotations

import contextlib
import heapq
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from aggregators.backtest import PriceChange, Span, back_bills, compared, months_before, past_usage, price_change
from aggregators.instants import format_instant_ms
from pipeline.commands.csv_file import csv_file
from pipeline.open import open_base, open_period_totals, open_side_tables
from pipeline.settings import Settings
from schemas.backtest import BackBill, LeftOut, Omission, Payer, Payers, PeriodTotals
from schemas.catalog import Catalog
from schemas.errors import InvalidInput

MONTHS_MAX: Final = 36
PAGE_PAYERS: Final = 500
TIME_LIMIT_S: Final = 600
# A table for people shows so many customers of a currency, JSON so many; a CSV file has all.
SHOWN_ROWS: Final = 20
SHOWN_CHARACTERS: Final = 40
KEPT_ROWS: Final = 1_000
NAMES_MAX: Final = 5
_MONTHS: Final = re.compile(r"([1-9][0-9]?)m")
_COLUMNS: Final = ("account", "customer", "plans", "currency", "invoices", "before", "after", "difference")

Written = Callable[[BackBill], None]


class Total(NamedTuple):
    """The customers of one currency: how many pay more, less and the same, and the sums in minor units."""

    currency: str
    exponent: int
    more: int = 0
    less: int = 0
    same: int = 0
    more_minor: int = 0
    less_minor: int = 0
    before_minor: int = 0
    after_minor: int = 0

    def with_bill(self, bill: BackBill) -> Total:
        """The total with one more customer."""
        change_minor = bill.difference_minor
        return self._replace(
            more=self.more + (change_minor > 0),
            less=self.less + (change_minor < 0),
            same=self.same + (change_minor == 0),
            more_minor=self.more_minor + max(change_minor, 0),
            less_minor=self.less_minor + min(change_minor, 0),
            before_minor=self.before_minor + bill.before_minor,
            after_minor=self.after_minor + bill.after_minor,
        )


@dataclass(slots=True)
class Omitted:
    """How often something was left out, and the first names."""

    count: int = 0
    names: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True)
class Backtest:
    """The result. Of each currency it keeps the `KEPT_ROWS` bills with the greatest differences."""

    from_ms: int
    to_ms: int
    payers: int = 0
    unchanged: int = 0
    took_s: float = 0.0
    totals: dict[str, Total] = field(default_factory=dict)
    omitted: dict[LeftOut, Omitted] = field(default_factory=dict)
    _kept: dict[str, list[tuple[int, str, BackBill]]] = field(default_factory=dict)

    def add(self, bill: BackBill) -> None:
        """Count a bill."""
        total = self.totals.get(bill.currency, Total(bill.currency, bill.exponent))
        self.totals[bill.currency] = total.with_bill(bill)
        kept = self._kept.setdefault(bill.currency, [])
        entry = (abs(bill.difference_minor), bill.customer, bill)
        if len(kept) < KEPT_ROWS:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)

    def leave_out(self, omissions: Iterable[Omission]) -> None:
        """Count what is left out."""
        for reason, subject, times in omissions:
            omitted = self.omitted.setdefault(reason, Omitted())
            omitted.count += times
            if len(omitted.names) < NAMES_MAX:
                omitted.names[subject] = None

    def bills(self) -> list[BackBill]:
        """The kept bills by currency, the greatest difference first, and equal ones by account."""
        return [
            bill
            for currency in sorted(self._kept)
            for _, _, bill in sorted(self._kept[currency], key=lambda entry: (-entry[0], entry[2].account, entry[1]))
        ]


def months_of(text: str) -> int:
    """The months of `6m`. Raises `InvalidInput`."""
    match = _MONTHS.fullmatch(text)
    if match is None or int(match[1]) > MONTHS_MAX:
        raise InvalidInput("--backtest", f"must be a number of months up to {MONTHS_MAX}m, such as 6m")
    return int(match[1])


async def backtest_file(settings: Settings, catalog: Catalog, months: int, csv_path: Path | None) -> Backtest:
    """Rate the archived usage of the last months by the file's prices and by those in force. Writes nothing but the CSV
    file. Raises `Transient` if PostgreSQL or ClickHouse does not answer."""
    base = await open_base(settings, create=False)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        tables = await open_side_tables(base, migrate=False)
        stack.push_async_callback(tables.close)
        totals = open_period_totals(settings)
        stack.push_async_callback(totals.close)
        change = price_change(await tables.catalog.standing(), catalog)
        to_ms = base.clock.now_ms()
        complete_ms = await totals.complete_up_to_ms(base.genesis.partitions) - catalog.policy.grace_ms
        span = Span(months_before(to_ms, months), to_ms, complete_ms)
        with bills_file(csv_path) as write:
            return await run_backtest(tables.payers, totals, change, span, write)


async def run_backtest(
    payers: Payers,
    totals: PeriodTotals,
    change: PriceChange,
    span: Span,
    write: Written,
    time_limit_s: float = TIME_LIMIT_S,
) -> Backtest:
    """The backtest over all payers, `PAGE_PAYERS` at a time, so that memory does not grow with their number.

    It ends after `time_limit_s` with what it has, and says so.
    """
    began_s = time.monotonic()
    result = Backtest(span.from_ms, span.to_ms)
    first_usage_ms = await totals.first_usage_ms(sorted(change.meters))
    after = ""
    while page := await payers.payers(after, PAGE_PAYERS, span.to_ms):
        await _page(page, totals, change, first_usage_ms, span, result, write)
        after = page[-1].customer
        if time.monotonic() - began_s >= time_limit_s and len(page) == PAGE_PAYERS:
            result.leave_out([Omission(LeftOut.NOT_REACHED, after)])
            break
    result.took_s = time.monotonic() - began_s
    return result


async def _page(
    page: Sequence[Payer],
    totals: PeriodTotals,
    change: PriceChange,
    first_usage_ms: Mapping[str, int],
    span: Span,
    result: Backtest,
    write: Written,
) -> None:
    touched = {}
    for payer in page:
        subscriptions, omitted = compared(payer, change, span)
        result.leave_out(omitted)
        result.payers += 1
        if subscriptions:
            touched[payer] = subscriptions
        elif not omitted:
            result.unchanged += 1
    wanted = {meter for subscriptions in touched.values() for each in subscriptions for meter in each.meters()}
    accounts = [payer.account for payer in touched if payer.account]
    meters = {meter: change.meters[meter] for meter in sorted(wanted)}
    found = await totals.totals(accounts, meters, span.from_ms, span.to_ms) if meters else ()
    usage = past_usage(found, first_usage_ms)
    for payer, subscriptions in touched.items():
        bills, omitted = back_bills(payer, subscriptions, usage, span)
        result.leave_out(omitted)
        for bill in bills:
            result.add(bill)
            write(bill)


@contextlib.contextmanager
def bills_file(path: Path | None) -> Iterator[Written]:
    """Writes each bill as a line of a CSV file, by customer; without a path, nowhere."""
    if path is None:
        yield lambda _: None
        return
    with csv_file(path, _COLUMNS) as write:
        yield lambda bill: write(_row(bill).values())


def _row(bill: BackBill) -> dict[str, Any]:
    """A bill in major units, in the order of the columns."""
    values = (
        bill.account, bill.customer, bill.plans, bill.currency, bill.invoices,
        *(major(minor, bill.exponent) for minor in (bill.before_minor, bill.after_minor, bill.difference_minor)),
    )  # fmt: skip
    return dict(zip(_COLUMNS, values, strict=True))


def major(minor: int, exponent: int) -> str:
    """An amount in major units with all decimals of its currency."""
    sign, digits = "-" if minor < 0 else "", f"{abs(minor):0{exponent + 1}d}"
    return sign + (f"{digits[:-exponent]}.{digits[-exponent:]}" if exponent else digits)


def backtest_document(result: Backtest) -> dict[str, Any]:
    """The result as JSON: amounts as decimal text in major units."""
    totals = []
    for _, each in sorted(result.totals.items()):
        minor = {name: getattr(each, f"{name}_minor") for name in ("before", "after")}
        minor |= {"difference": each.after_minor - each.before_minor}
        minor |= {"more_by": each.more_minor, "less_by": each.less_minor}
        amounts = {name: major(value, each.exponent) for name, value in minor.items()}
        counts = {"pay_more": each.more, "pay_less": each.less, "pay_the_same": each.same}
        totals.append({"currency": each.currency, **counts, **amounts})
    return {
        "from": format_instant_ms(result.from_ms),
        "to": format_instant_ms(result.to_ms),
        "customers": result.payers,
        "customers_unchanged": result.unchanged,
        "took_s": round(result.took_s, 3),
        "totals": totals,
        "customers_by_difference": [_row(bill) for bill in result.bills()],
        "left_out": [
            {"what": str(reason), "count": omitted.count, "first": list(omitted.names)}
            for reason, omitted in sorted(result.omitted.items())
        ],
    }


def backtest_lines(result: Backtest) -> list[str]:
    """The result for people."""
    rate = f"{result.payers / result.took_s:.0f}" if result.took_s else "all"
    span = f"from {format_instant_ms(result.from_ms)} to {format_instant_ms(result.to_ms)}"
    speed = f"{result.payers} customers in {result.took_s:.1f} s, {rate} per second"
    lines = [f"backtest {span}: {speed}; {result.unchanged} are on no plan that changes"]
    bills = result.bills()
    for currency, total in sorted(result.totals.items()):
        amounts = {name: major(getattr(total, f"{name}_minor"), total.exponent) for name in ("before", "after")}
        change = _signed(total.after_minor - total.before_minor, total.exponent)
        lines.append(
            f"{currency}: paying more: {total.more} ({_signed(total.more_minor, total.exponent)}), paying less: "
            f"{total.less} ({_signed(total.less_minor, total.exponent)}), paying the same: {total.same}; "
            f"{amounts['before']} by the prices in force, {amounts['after']} by the new ones, {change}"
        )
        own = [bill for bill in bills if bill.currency == currency]
        lines += _table(own[:SHOWN_ROWS])
        count = total.more + total.less + total.same
        if count > SHOWN_ROWS:
            lines.append(f"  and {count - SHOWN_ROWS} customers with lesser differences: --csv FILE has all")
    for reason, omitted in sorted(result.omitted.items()):
        more = ", …" if omitted.count > len(omitted.names) else ""
        lines.append(f"left out: {omitted.count} {reason}: {', '.join(omitted.names)}{more}")
    return lines


def _table(bills: Sequence[BackBill]) -> list[str]:
    rows = [_COLUMNS] + [
        (
            *(_shown(str(value)) for value in list(_row(bill).values())[:-1]),
            _signed(bill.difference_minor, bill.exponent),
        )
        for bill in bills
    ]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_COLUMNS))]
    names = _COLUMNS.index("invoices")
    return [
        "  "
        + "  ".join(
            text.ljust(width) if place < names else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _shown(text: str) -> str:
    """A text that a terminal can show in a column."""
    plain = text if text.isprintable() else ascii(text)
    return plain if len(plain) <= SHOWN_CHARACTERS else f"{plain[: SHOWN_CHARACTERS - 1]}…"


def _signed(minor: int, exponent: int) -> str:
    return f"{'+' if minor > 0 else ''}{major(minor, exponent)}"

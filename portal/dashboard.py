"""The finance dashboard as markup: the figures of one currency, and why a month changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Final

from aggregators.rating import rounded
from aggregators.upgrade_words import money_text
from portal.bars import bars
from portal.figures import (
    EFFECT_WORDS,
    KINDS,
    RECOVERY_PERCENT_MIN,
    Cell,
    Figures,
    Mark,
    Percent,
    Table,
    earned_of,
    money,
    month_name,
    month_words,
    months_of,
    moves,
    recurring_in,
    tables,
)
from portal.markup import Html, h, join, link, table
from portal.render import card, frame
from portal.words import minute_text, signed_money
from schemas.clock import DAY_MS
from schemas.recognition import Recognized
from schemas.revenue import MonthRevenue
from schemas.upgrades import Money

# What each table means, for who sees it for the first time.
_NOTES: Final = {
    "mrr": "What subscriptions bring in a month. Start and all changes add up to the end. A change counts in what is "
    "earned from its day on. A month opens to the accounts that moved.",
    "retention": "ARR is 12 times the month's end. NRR: what the accounts of the month's start bring at its end; GRR: "
    "the same without what they pay more.",
    "deferred": "Earned is the revenue of a month, day by day of what was billed. Deferred is billed and not earned "
    "yet, unbilled is usage that no invoice bills yet. Without taxes and discounts. The running month ends today.",
    "usage": "What final invoices bill for usage, by the month in which its period ended.",
    "cohorts": "The accounts that came in a month, and which share of what they brought is left at the end of each "
    "later month.",
    "recovery": "A case is one subscription whose payment failed, from the first failure until all is paid or the plan "
    "is lost: Stripe's retries belong to it, and a failure after it is another case. Amount: the most that was open. "
    f"Recovered: paid within 30 days of the first failure. Less than {RECOVERY_PERCENT_MIN} % is marked.",
}


def dashboard(figures: Figures, currency: str) -> Html:
    """The figures of a currency. Without any figure, what would make some."""
    if not currency:
        said = "No subscription with a price of the catalog was ever active, and no invoice is final."
        return frame("Revenue", "", h("h1", "Revenue"), h("p", said, class_="empty"))
    months = months_of(figures, currency)
    drawn = bars(figures, currency) if months else Html()
    parts = [_table(figures, each, currency) for each in tables(figures, currency)]
    return frame(
        "Revenue",
        "",
        h("h1", f"Revenue in {currency.upper()}"),
        _currencies(figures, currency),
        h("div", _glance(figures, months, currency), drawn, *parts, _footer(figures), class_="finance"),
    )


def _currencies(figures: Figures, currency: str) -> Html:
    """The way to the other currencies, which are never added."""
    if len(figures.currencies) < 2:
        return Html()
    links = [
        h("a", each.upper(), href=f"?currency={each}", aria_current="page" if each == currency else False)
        for each in figures.currencies
    ]
    return h("nav", *links, aria_label="Currencies")


def _glance(figures: Figures, months: Sequence[MonthRevenue], currency: str) -> Html:
    """The last whole month in words, and the running one."""
    known = {each.start_ms for each in months} | {each.start_day * DAY_MS for each in earned_of(figures, currency)}
    said = [
        h("p", _answer(figures, currency, start_ms), " ", link("Why?", _why(start_ms, currency)))
        for start_ms in reversed(figures.starts_ms[-3:-1])
        if start_ms in known
    ]
    if months:
        facts = f"ARR {signed_money(money(currency, 12 * months[0].end_minor))}, {months[0].accounts} accounts"
        said.append(h("p", f"Now: {facts}.", class_="soft"))
    return card("At a glance", *said)


def _why(start_ms: int, currency: str) -> str:
    return f"months/{month_name(start_ms)}?currency={currency}"


def _answer(figures: Figures, currency: str, start_ms: int) -> str:
    """How much was earned in a month, and what changed, in words."""
    earned = {each.start_day * DAY_MS: each for each in figures.recognized if each.currency == currency}
    own = earned.get(start_ms)
    so_far = " so far" if figures.now_ms < _next(figures, start_ms) else ""
    said = [f"{month_words(start_ms)}: earned {_money(currency, own.recognized if own else 0)}{so_far}."]
    before = [each for each in earned if each < start_ms]
    if own and before and not so_far:
        change = own.recognized - earned[max(before)].recognized
        more = f"{_more(currency, change)} than" if change else "as much as"
        said.append(f"That is {more} in {month_words(max(before))}.")
        said += _causes(figures, currency, max(before), start_ms, change)
    month = next((each for each in months_of(figures, currency) if each.start_ms == start_ms), None)
    if month:
        start, end = (_money(currency, minor) for minor in (month.start_minor, month.end_minor))
        went = f"stayed at {end}" if month.start_minor == month.end_minor else f"went from {start} to {end}"
        reasons = [
            f"{name.lower()} {_money(currency, month.changes[kind])}"
            for kind, name in KINDS.items()
            if month.changes.get(kind)
        ]
        said.append(f"Recurring revenue {went} a month{': ' if reasons else ''}{', '.join(reasons)}.")
    return " ".join(said)


def _causes(figures: Figures, currency: str, before_ms: int, start_ms: int, change: int) -> Iterator[str]:
    """How much of a change of what was earned recurring revenue explains, and what explains the rest."""
    if not change:
        return
    own = recurring_in(figures, currency, start_ms, _next(figures, start_ms))
    recurring = rounded(own - recurring_in(figures, currency, before_ms, start_ms))
    said = f"Changes of recurring revenue, each from its day on, explain {_money(currency, recurring)} of this"
    rest = change - recurring
    yield said + (f"; usage, credits and all else explain {_money(currency, rest)}." if rest else ".")


def _next(figures: Figures, start_ms: int) -> int:
    return next((each for each in figures.starts_ms if each > start_ms), figures.now_ms)


def _money(currency: str, minor: int) -> str:
    return signed_money(money(currency, minor))


def _more(currency: str, change: int) -> str:
    return f"{money_text(money(currency, change))} {'less' if change < 0 else 'more'}"


def _table(figures: Figures, shown: Table, currency: str) -> Html:
    """A table of the dashboard with its CSV. The months of recurring revenue open to their accounts."""
    starts = {month_name(each): each for each in figures.starts_ms}
    rows = []
    for month, *cells in shown.rows:
        start_ms = starts[str(month)]
        words: object = month_words(start_ms)
        if shown.name in ("mrr", "deferred"):
            words = link(words, _why(start_ms, currency))
        rows.append([words, *(_cell(each, is_whole=True) for each in cells)])
    return card(shown.title, h("p", _NOTES[shown.name], class_="soft"), *_drawn(shown, rows, f"?currency={currency}"))


def _drawn(shown: Table, rows: Sequence[Sequence[object]], query: str) -> Sequence[Html]:
    heads = [head for _, head in shown.columns]
    words = {"Account", "Day", "Why", "Month", "First month", "First failure in", "Period ended in"}
    numbers = [head for head in heads if head not in words]
    # Who reads of accounts wants the amounts beside the names, also on a narrow screen.
    drawn = table(heads, rows, "Nothing yet.", numbers=numbers, stacks="Account" in heads)
    scrolled = h("div", drawn, class_="wide-table", tabindex=0, role="group", aria_label=shown.title)
    return [scrolled, h("p", link(f"{shown.title} as CSV", f"{shown.name}.csv{query}"))] if rows else [drawn]


def _cell(cell: Cell, *, is_whole: bool = False) -> object:
    if isinstance(cell, Money):
        return "–" if is_whole and not cell.minor else signed_money(cell)
    if isinstance(cell, Percent):
        return "–" if cell.tenths is None else f"{Decimal(cell.tenths).scaleb(-1)} %"
    if isinstance(cell, Mark):
        return h("span", f"{_cell(cell.percent)}, low", class_="badge is-failed")
    return cell


def _footer(figures: Figures) -> Html:
    left_out = ""
    if figures.unpriced_items:
        left_out = f" {figures.unpriced_items} items have prices of no catalog, and are left out of recurring revenue."
    said = f"As of {minute_text(figures.now_ms)}, at most a minute old. Months are those of UTC.{left_out}"
    return h("p", said, class_="soft")


def why_page(figures: Figures, currency: str, start_ms: int) -> Html:
    """Why a month changed."""
    title = f"{month_words(start_ms)} in {currency.upper()}"
    shown = moves(figures, currency, start_ms, _next(figures, start_ms))
    rows = [[_cell(each) for each in row] for row in shown.rows]
    query = f"?currency={currency}&month={month_name(start_ms)}"
    own = next(
        (each for each in figures.recognized if (each.currency, each.start_day * DAY_MS) == (currency, start_ms)), None
    )
    return frame(
        title,
        "../",
        h(
            "nav",
            link("All months", f"../?currency={currency}"),
            *_beside(figures, start_ms, currency),
            aria_label="Months",
        ),
        h("h1", title),
        h(
            "div",
            card("In short", h("p", _answer(figures, currency, start_ms)), _reasons(figures, currency, start_ms)),
            card("Earned", *_effects(figures, own)) if own else "",
            card(shown.title, *_drawn(shown._replace(name="../movements"), rows, query)),
            class_="finance",
        ),
    )


def _beside(figures: Figures, start_ms: int, currency: str) -> Sequence[Html]:
    place = list(figures.starts_ms).index(start_ms)
    beside = figures.starts_ms[max(0, place - 1) : place], figures.starts_ms[place + 1 : -1][:1]
    return [link(month_words(each), f"{month_name(each)}?currency={currency}") for span in beside for each in span]


def _reasons(figures: Figures, currency: str, start_ms: int) -> Html:
    """How much each kind of movement changed recurring revenue, and of how many accounts."""
    month = next((each for each in months_of(figures, currency) if each.start_ms == start_ms), None)
    if month is None:
        return Html()
    accounts = Counter(
        each.kind
        for each in figures.movements
        if each.currency == currency and month.start_ms <= each.at_ms < month.end_ms
    )
    rows = [
        (name, accounts[kind], _money(currency, month.changes.get(kind, 0)))
        for kind, name in KINDS.items()
        if accounts[kind]
    ]
    heads = ("Why", "Movements", "Change a month")
    return table(heads, rows, "No account moved.", numbers=heads[1:], stacks=True)


def _effects(figures: Figures, own: Recognized) -> Sequence[Html]:
    rows = [
        (EFFECT_WORDS[effect].capitalize(), _money(own.currency, minor))
        for effect, minor in own.effects.items()
        if minor
    ]
    billed, deferred = (_money(own.currency, minor) for minor in (own.billed, own.deferred_end))
    rows.append((join(h("strong", "Earned")), _money(own.currency, own.recognized)))
    said = f"Billed in the month: {billed}. Billed and not earned at its end: {deferred}."
    used = {each.start_ms: each.amount_minor for each in figures.usage if each.currency == own.currency}
    if minor := used.get(own.start_day * DAY_MS):
        said += f" Usage of periods that ended in it: {_money(own.currency, minor)}."
    return [table(("From", "Amount"), rows, "", numbers=("Amount",)), h("p", said, class_="soft")]

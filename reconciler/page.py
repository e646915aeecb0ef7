"""A report as one HTML page, for people who look after the money. No script, and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from html import escape
from typing import Final

from reconciler.causes import Cause, Pair, Verdict
from reconciler.report import Report, Row, instant_text
from reconciler.table import coverage_lines

BILLS_MAX: Final = 2_000
ROWS_MAX: Final = 500
_HEADLINES: Final = {
    Verdict.EQUAL: ("good", "Everything agrees", "All usage of every closed period was billed, and all copies agree."),
    Verdict.DRIFT: ("bad", "Something does not agree", "Look at the rows below: each says what to do."),
    Verdict.INCOMPLETE: (
        "open", "Nothing wrong was found, but not everything was looked at", "What was not looked at is named below.",
    ),
}  # fmt: skip
_STATES: Final = {
    Cause.CONFIRMED: ("good", "billed"),
    Cause.UNBILLED: ("bad", "not billed"),
    Cause.EXTRA: ("bad", "billed too much"),
    Cause.IN_FLIGHT: ("open", "not due yet"),
    Cause.UNCHECKED: ("open", "not looked at"),
}
_WORDS: Final = {
    Cause.IN_FLIGHT: "on its way",
    Cause.MISSING: "missing",
    Cause.EXTRA: "too much",
    Cause.DIFFERING: "other values",
    Cause.UNKNOWN_CUSTOMER: "no customer pays",
    Cause.CONFLICT: "two events with one id",
    Cause.REJECTED_BY_STRIPE: "rejected by Stripe",
    Cause.UNBILLED: "not billed",
    Cause.CONFIRMED: "right",
    Cause.UNCHECKED: "not looked at",
}
_STYLE: Final = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --page: #fff; --line: #d1d9e0; --card: #f6f8fa;
  --good: #11703a; --bad: #b3261e; --open: #7a5300; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9da7b1; --page: #0d1117; --line: #3d444d;
  --card: #161b22; --good: #4cc27a; --bad: #ff8a80; --open: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; } .soft { color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); }
header { border-left: .4rem solid currentcolor; padding-left: 1rem; } header p { color: var(--text); }
table { width: 100%; border-collapse: collapse; } caption { text-align: left; color: var(--soft); }
th, td { text-align: left; vertical-align: top; padding: .5rem .5rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } td.number, th.number { text-align: right;
  font-variant-numeric: tabular-nums; } td.number { white-space: nowrap; } td.name { overflow-wrap: anywhere;
  min-width: 9rem; } td.remedy { min-width: 15rem; overflow-wrap: anywhere; }
td b { font-weight: 600; } td small { display: block; color: var(--soft); overflow-wrap: anywhere; min-width: 8rem; }
@media (max-width: 46rem) {
  thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  tr { display: block; background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
    margin: .75rem 0; padding: .5rem .75rem; }
  td, td.number { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .15rem 0;
    text-align: right; white-space: normal; }
  td::before { content: attr(data-label); color: var(--soft); text-align: left; flex: none; }
  td:empty, td.remedy:empty { display: none; }
  td.remedy:not(:empty) { display: block; text-align: left; } td.remedy::before { display: block; }
}
"""


def render_page(report: Report) -> str:
    """The page: the verdict in words, what was looked at, every bill, and everything else that differs."""
    bills = [row for row in (*report.rows, *report.confirmed) if row.pair is Pair.INVOICES]
    others = [row for row in report.rows if row.pair is not Pair.INVOICES]
    mood, title, words = _HEADLINES[report.verdict]
    parts = [
        f'<header class="{mood}"><h1>{title}</h1><p>{words}</p></header>',
        f'<p class="soft">Looked at on {escape(instant_text(report.started_at_ms))} UTC, {_range(report)}.</p>',
        *(f"<p>{escape(line)}.</p>" for line in coverage_lines(report)),
        "<h2>Bills</h2>",
        _bills(bills),
        "<h2>Other copies of the counts</h2>",
        _others(others, report.rows_left_off),
        _summaries(report),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Reconciliation: {title}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _range(report: Report) -> str:
    if report.from_ms is None and report.to_ms is None:
        return "for all periods"
    first = "the start" if report.from_ms is None else instant_text(report.from_ms)
    last = "now" if report.to_ms is None else instant_text(report.to_ms)
    return f"for the periods from {escape(first)} to {escape(last)}"


def _bills(rows: list[Row]) -> str:
    if not rows:
        return "<p>No bill was looked at in this run.</p>"
    shown = rows[:BILLS_MAX]
    body = "".join(_bill(row) for row in shown)
    left = f"<p>and {len(rows) - len(shown)} more</p>" if len(rows) > len(shown) else ""
    names = ("Customer", "Meter", "Usage of", "State")
    numbers = ("Our total", "On the invoice", "Invoice items", "Difference")
    return _table("Quantities are in the unit of the meter.", names, numbers, "What to do", body) + left


def _bill(row: Row) -> str:
    mood, state = _STATES.get(row.cause, ("bad", _WORDS[row.cause]))
    invoiced = _minus(row.found, row.items)
    difference = _minus(row.found, row.expected) if row.found and row.cause is not Cause.CONFIRMED else ""
    who = f"<span><b>{_text(row.account)}</b><small>{_text(row.stripe_customer)}</small></span>"
    when = f"<span>{_text(_span(row))}<small>{_text(row.invoices)}</small></span>"
    cells = [
        _cell("Customer", who, "name"), _cell("Meter", _text(row.meter or row.event_name)), _cell("Usage of", when),
        _cell("State", f'<b class="{mood}">{state}</b>'),
        *(
            _cell(label, _text(value), "number")
            for label, value in (
                ("Our total", row.expected), ("On the invoice", invoiced), ("Invoice items", row.items),
                ("Difference", difference),
            )
        ),
        _cell("What to do", _text(row.detail), "remedy"),
    ]  # fmt: skip
    return f"<tr>{''.join(cells)}</tr>"


def _others(rows: list[Row], left_off: int) -> str:
    if not rows:
        return "<p>All other copies agree.</p>"
    shown = rows[:ROWS_MAX]
    body = "".join(_other(row) for row in shown)
    left = len(rows) - len(shown) + left_off
    more = f"<p>and {left} more</p>" if left else ""
    return _table("", ("State", "Compared", "Account", "Meter", "Usage of"), ("Expected", "Found"), "Note", body) + more


def _other(row: Row) -> str:
    mood = "bad" if row.cause.is_drift else "open"
    who = f"<span><b>{_text(row.account)}</b><small>{_text(row.stripe_customer)}</small></span>"
    cells = [
        _cell("State", f'<b class="{mood}">{_WORDS[row.cause]}</b>'), _cell("Compared", _text(row.pair.value)),
        _cell("Account", who if row.account or row.stripe_customer else "", "name"), _cell("Meter", _text(row.meter)),
        _cell("Usage of", _text(_span(row))), _cell("Expected", _text(row.expected), "number"),
        _cell("Found", _text(row.found), "number"), _cell("Note", _text(row.detail), "remedy"),
    ]  # fmt: skip
    return f"<tr>{''.join(cells)}</tr>"


def _summaries(report: Report) -> str:
    body = "".join(
        f"<tr>{_cell('Compared', _text(each.pair.value))}"
        f"{_cell('Equal', f'{each.equal:,}', 'number')}{_cell('Differing', f'{each.differing:,}', 'number')}"
        f"{_cell('Not compared', f'{each.unchecked:,}', 'number')}</tr>"
        for each in report.summaries
    )
    return "<h2>What was compared</h2>" + _table("", ("Compared",), ("Equal", "Differing", "Not compared"), "", body)


def _table(caption: str, names: Iterable[str], numbers: Iterable[str], last: str, body: str) -> str:
    heads = "".join(f"<th>{name}</th>" for name in names)
    heads += "".join(f'<th class="number">{name}</th>' for name in numbers) + (f"<th>{last}</th>" if last else "")
    top = f"<caption>{caption}</caption>" if caption else ""
    return f"<table>{top}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _cell(label: str, content: str, kind: str = "") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<td{chosen} data-label="{label}">{content}</td>'


def _span(row: Row) -> str:
    if row.period is None:
        return ""
    return f"{instant_text(row.period.start_ms)} to {instant_text(row.period.end_ms)}"


def _text(text: str) -> str:
    return escape("".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text))


def _minus(left: str, right: str) -> str:
    """The difference of two decimal texts; an empty one is 0, and "" if the first one is empty."""
    if not left:
        return ""
    try:
        return format(Decimal(left) - Decimal(right or "0"), "f")
    except InvalidOperation:
        return ""

"""A report as a table for a terminal."""

from __future__ import annotations

from io import StringIO
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reconciler.causes import Cause, Pair, Verdict
from reconciler.report import Report, Row, instant_text

_VERDICTS: Final = {
    Verdict.EQUAL: "equal: every value that is final was compared, and all views agree",
    Verdict.DRIFT: "drift: two views hold different values",
    Verdict.INCOMPLETE: "incomplete: no difference, but not everything could be compared",
}
WITHOUT_PERIODS: Final = (
    Pair.COUNTERS, Pair.DUPLICATES, Pair.MIRROR, Pair.ENTITLEMENTS, Pair.FLAGS, Pair.REVENUE,
)  # fmt: skip
NOTHING_IN_RANGE: Final = "equal, but no period with usage lies in the range: no total was compared"


def render_table(report: Report, *, rows_max: int = 50, width: int = 100, ascii_only: bool = False) -> str:
    """The report as plain text: counts per pair of views, then up to `rows_max` rows, then the verdict. What a detail
    explains is printed once below the rows, under its number.

    No colours. `ascii_only` is for terminals without UTF-8.
    """
    out = StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False, emoji=False, markup=False)
    frame = box.ASCII if ascii_only else box.SIMPLE_HEAD
    console.print(_summaries(report, frame, ascii_only))
    shown = report.rows[:rows_max]
    if shown:
        numbers = {detail: number for number, detail in enumerate(dict.fromkeys(_detail(row) for row in shown), 1)}
        console.print(_rows(shown, numbers, frame, ascii_only))
        console.print(_notes(numbers))
    left = len(report.rows) - len(shown) + report.rows_left_off
    if left:
        console.print(f"and {left} more")
    findings = dict.fromkeys((Cause.CONFLICT, Cause.UNKNOWN_CUSTOMER), 0)
    for (_, cause), count in report.causes.items():
        if cause in findings:
            findings[cause] += count
    for cause, count in findings.items():
        if count:
            console.print(f"{count} x {cause.value}: an operator must act, but all views agree")
    for line in coverage_lines(report):
        console.print(line)
    console.print(f"Verdict: {NOTHING_IN_RANGE if _is_out_of_range(report) else _VERDICTS[report.verdict]}")
    text = out.getvalue()
    return text.replace("↔", "/").replace("…", "~") if ascii_only else text


def coverage_lines(report: Report) -> list[str]:
    """What was read at Stripe of what was due, for sums and for invoices; nothing if nothing was due."""
    lines = []
    for of, covered in (("sums", report.sums), ("customers' invoices", report.invoices)):
        if not covered.due and not covered.confirmed:
            continue
        line = f"Stripe: {covered.read} of {covered.due} {of} that were due were read"
        if covered.due:
            line += f" ({100 * covered.read // covered.due} %)"
        if covered.confirmed:
            line += f", {covered.confirmed} were confirmed in earlier runs"
        if covered.oldest_unread_ms is not None:
            line += f"; the oldest period that was not read ends at {instant_text(covered.oldest_unread_ms)}"
        lines.append(line)
    return lines


def _is_out_of_range(report: Report) -> bool:
    """Whether a range was asked for and nothing in the range could be compared. Some pairs have no periods."""
    is_limited = report.from_ms is not None or report.to_ms is not None
    compared = sum(summary.compared for summary in report.summaries if summary.pair not in WITHOUT_PERIODS)
    return is_limited and report.verdict is Verdict.EQUAL and not compared


def _summaries(report: Report, frame: box.Box, ascii_only: bool) -> Table:
    table = Table(box=frame, pad_edge=False, safe_box=ascii_only)
    table.add_column("views")
    for name in ("compared", "equal", "differing", "unchecked"):
        table.add_column(name, justify="right")
    for summary in report.summaries:
        table.add_row(Text(summary.pair.value), *(Text(f"{number:,}") for number in summary[1:]))
    return table


def _rows(rows: tuple[Row, ...], numbers: dict[str, int], frame: box.Box, ascii_only: bool) -> Table:
    table = Table(box=frame, pad_edge=False, safe_box=ascii_only)
    for name in ("cause", "views", "account", "meter", "hour or period"):
        table.add_column(name, overflow="fold")
    for name in ("expected", "found", "note"):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        texts = (
            row.cause.value, row.pair.value.replace("usage_events ↔ ", ""), _who(row),
            f"{row.meter} {row.dimensions}".strip(), _when(row), row.expected, row.found, f"[{numbers[_detail(row)]}]",
        )  # fmt: skip
        table.add_row(*map(Text, map(_printable, texts)))
    return table


def _notes(numbers: dict[str, int]) -> Table:
    table = Table.grid(padding=(0, 1))
    for detail, number in numbers.items():
        table.add_row(Text(f"[{number}]"), Text(_printable(detail)))
    return table


def _who(row: Row) -> str:
    return f"{row.account} ({row.stripe_customer})" if row.stripe_customer else row.account


def _when(row: Row) -> str:
    if row.hour_ms is not None:
        return instant_text(row.hour_ms)
    return f"{instant_text(row.period.start_ms)} to {instant_text(row.period.end_ms)}" if row.period else ""


def _detail(row: Row) -> str:
    where = f"partition {row.partition}: " if row.partition is not None and not row.account else ""
    return f"{where}{row.detail}"


def _printable(text: str) -> str:
    """The text without control characters, which must not reach a terminal. Account names come from outside."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)

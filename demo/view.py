"""The demo's output: steps, a live view and a summary."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from aggregators.instants import format_instant_ms
from demo.plan import ASKED_FEATURE, NEW_ACCOUNT
from demo.story import Story
from reconciler.table import render_table
from schemas.clock import Clock

OUTCOMES = {
    "counted": "counted",
    "duplicate": "duplicates: seen before, not counted again",
    "unmetered": "unmetered: valid, no meter wants them yet",
    "late": "late: their period is closed and the meter quarantines",
    "rejected": "rejected: kept in the quarantine with a reason",
}


class Screen:
    """The terminal. With `quiet` all output goes to standard error."""

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=quiet)
        # A pipe has no width; the default of 80 columns would break the tables.
        self.console = console if console.is_terminal else Console(stderr=quiet, width=100)
        self.phase = ""
        self.waiting = ""

    def step(self, message: str) -> None:
        """Print a line about a step."""
        self.console.print(f"  {message}", highlight=False)

    def print(self, content: RenderableType) -> None:
        """Print any content."""
        self.console.print(content, highlight=False)

    @contextlib.contextmanager
    def live(self, story: Story, clock: Clock) -> Iterator[None]:
        """Show the results so far while the block runs."""
        drawing = asyncio.ensure_future(self._draw(story, clock))
        try:
            yield
        finally:
            drawing.cancel()

    async def _draw(self, story: Story, clock: Clock) -> None:
        if not self.console.is_terminal:
            while True:
                self.step(
                    f"{format_instant_ms(clock.now_ms())[:16]}  emitted {story.emitted:>9,}  "
                    f"counted {story.counters['counted']:>9,}  duplicates {story.counters['duplicate']:>7,}  "
                    f"kills {story.kills}  {self.waiting and 'waiting for ' + self.waiting}"
                )
                await asyncio.sleep(5)
        with Live(console=self.console, refresh_per_second=8, transient=True) as live:
            while True:
                live.update(self._picture(story, clock))
                await asyncio.sleep(0.1)

    def _picture(self, story: Story, clock: Clock) -> RenderableType:
        table = Table.grid(padding=(0, 3))
        table.add_row("simulated time", format_instant_ms(clock.now_ms())[:16].replace("T", " "))
        table.add_row("emitted", f"{story.emitted:,}")
        for name in OUTCOMES:
            table.add_row(name, f"{story.counters[name]:,}")
        table.add_row("worker killed (kill -9)", f"{story.kills} times, {story.replayed:,} events replayed")
        if self.waiting:
            table.add_row("waiting for", self.waiting)
        return Panel(Group(Text(self.phase, style="italic"), Text(), table), title="Tidemark", width=90)


def summary(story: Story, problems: list[str]) -> RenderableType:
    """The summary of a run."""
    counters = story.counters
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"{story.traffic.get('sent', 0):,}", "events sent by an application and an old producer")
    table.add_row(f"{story.traffic.get('acknowledged', 0):,}", "acknowledged: the log has them")
    table.add_row(f"{counters['received']:,}", "received from the log, of which")
    for name, text in OUTCOMES.items():
        table.add_row(f"{counters[name]:,}", f"  {text}")
    total = sum(counters[name] for name in OUTCOMES)
    table.add_row(
        f"{total:,}", "  together" + (": it adds up" if total == counters["received"] else ": IT DOES NOT ADD UP")
    )
    table.add_row(
        f"{story.kills}", f"times the worker was killed with kill -9; {story.replayed:,} events were replayed"
    )
    table.add_row(f"{len(story.mismatches)}", "values of the live view that differ from the oracle's recount")
    _add_billing(table, story)
    parts: list[RenderableType] = [Text(), table]
    if differing := [*story.mismatches[:10], *story.invoice_mismatches[:10]]:
        shown = "\n".join(f"  {each.name}: {each.expected} ≠ {each.found}" for each in differing)
        parts.append(Text(shown))
    if story.report is not None:
        parts += [
            Text("\nThe reconciliation before the faults:"),
            Text(render_table(story.report, rows_max=10)),
        ]
    if story.faulty_report is not None:
        parts += [Text("After the two faults:"), Text(render_table(story.faulty_report, rows_max=10))]
    parts += [Text(f"  found: {fault}") for fault in story.faults_found]
    parts += [Text(line) for line in _access_lines(story)]
    if problems:
        parts.append(Text("\nNOT PROVEN: " + "; ".join(problems), style="bold red"))
    else:
        parts.append(
            Text("\nProven: nothing lost, nothing counted twice, every invoice right to the cent.", style="bold green")
        )
    return Group(*parts)


def _add_billing(table: Table, story: Story) -> None:
    """The rows about webhooks, invoices and the resync."""
    table.add_row(
        f"{story.webhooks_dropped:,}",
        f"deliveries of webhooks were dropped, {story.webhooks_doubled:,} doubled, and the mirror was killed "
        f"{story.mirror_kills} times",
    )
    table.add_row(f"{story.webhooks_recovered:,}", "events of Stripe's were found in Stripe's list and not delivered")
    table.add_row(f"{story.invoices:,}", "invoices of the month that ended, of which")
    table.add_row(f"{len(story.invoice_mismatches)}", "  differ from base price + units × price by the oracle")
    table.add_row(f"{story.mirror_rows:,}", "rows of Stripe's objects before the SQL database was deleted, of which")
    table.add_row(f"{story.resync_differences}", "  differ after the resync into an empty database")


def _access_lines(story: Story) -> list[str]:
    """What was asked and answered before and after the upgrade."""
    if story.check_denied is None or story.check_allowed is None:
        return []
    return [
        f"\nMay {NEW_ACCOUNT} use {ASKED_FEATURE}?",
        f"  no: {story.check_denied.reason}. {story.check_denied.words}",
        f"  {story.check_allowed_after_s:.1f} s after the upgrade at Stripe, yes: {story.check_allowed.words}",
    ]

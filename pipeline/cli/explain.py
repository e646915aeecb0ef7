"""The command `explain`: why an invoice says what it says, and where an event ended."""

from __future__ import annotations

import json
from asyncio import run
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.context import EXIT_FAILURE, settings
from pipeline.cli.operate import account_name
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from schemas.explained import Check, EventExplanation, InvoiceExplanation, LineExplanation

SHOW = "show"
_NEW = click.Path(dir_okay=False, path_type=Path)
_FILE = click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))


class _Explain(click.Group):
    """Takes what is no command of its own as the name of an invoice or event."""

    default = SHOW

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Explain)
def explain() -> None:
    """Say why an invoice says what it says, and where an event ended.

    \b
    tidemark explain in_1P…                  each line of an invoice
    tidemark explain in_1P… --line il_1P…    one line, with its hours
    tidemark explain job-4711                where an event ended
    tidemark explain in_1P… --out FILE       a signed file with every event, for a dispute
    tidemark explain verify FILE             whether the file is as it was written
    """


@explain.command(SHOW)
@click.argument("name")
@click.option("--account", "account", default="", help="The account, if several have the event or see the invoice.")
@click.option("--line", default="", help="One line of the invoice, il_…, with its hours.")
@click.option("--out", "path", type=_NEW, help="Write a signed file of an invoice.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of the API's path that explains the same.")
def explain_show(name: str, account: str, line: str, path: Path | None, as_json: bool) -> None:
    """Explain NAME, the id of an invoice (in_…) or of an event.

    The file of --out has the lines, the hours of their usage and every event with its id, one JSON object a line, and
    is signed: `tidemark explain verify FILE` checks it without a store.

    Exit code 1 if something cannot be explained, or if two numbers differ that must be equal.
    """
    checked = account_name(account) if account else ""
    if path is not None:
        from pipeline.commands.explain import export

        if path.exists():
            raise InvalidInput("--out", f"{path} exists already: name a new file")
        written = run(export(settings(), name, checked, line, path))
        click.echo(f"{written.invoice} of {written.account} is explained in {path}")
        raise SystemExit(0 if written.holds else EXIT_FAILURE)
    from pipeline.commands.explain import explain as explained
    from pipeline.http.explain import event_answer, invoice_answer, line_answer
    from schemas.explained import EventExplanation

    found = run(explained(settings(), name, checked, line))
    if isinstance(found, EventExplanation):
        click.echo(event_answer(found).model_dump_json() if as_json else "\n".join(_event(found)))
        raise SystemExit(EXIT_FAILURE if found.unexplained else 0)
    if line:
        (only,) = found.lines
        answer = line_answer(only, len(only.hours), None)
        click.echo(answer.model_dump_json() if as_json else "\n".join([*_lines([only]), *_hours(only)]))
    else:
        click.echo(invoice_answer(found).model_dump_json() if as_json else "\n".join(invoice_text(found)))
    raise SystemExit(0 if found.holds else EXIT_FAILURE)


@explain.command("verify")
@_FILE
@click.option("--key", default="", help="The file's own key, as `explain key` prints it; the secret if unset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain_verify(path: Path, key: str, as_json: bool) -> None:
    """Check the signed FILE: that nobody changed it, and that events, hours and totals add up.

    Asks no store. Exit code 1 if a line was changed, left out or added; the line and its first byte are named.
    """
    from pipeline.commands.explain import verify

    found = verify(b"" if key else settings().secret_bytes(), path, key)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        size = f"{found.lines} lines, {found.hours} hours, {found.events} events"
        click.echo(f"{found.invoice} of {found.account}: {size}")
        for problem in found.problems:
            click.echo(f"  {problem}")
        good = "as it was written; all adds up"
        click.echo("not as it was written, or it does not add up" if found.problems else good)
    raise SystemExit(EXIT_FAILURE if found.problems else 0)


@explain.command("key")
@_FILE
def explain_key(path: Path) -> None:
    """Print the own key of the signed FILE. Who has it can check this file, or forge it, and no other one."""
    from pipeline.commands.explain import key_of

    click.echo(key_of(settings().secret_bytes(), path))


def invoice_text(found: InvoiceExplanation) -> Iterator[str]:
    """An explanation, line by line of the terminal."""
    from portal.explained import by_usage
    from portal.words import signed_money

    yield f"{found.invoice} of {found.account}: {signed_money(found.total)}"
    yield from (f"  {each}" for each in found.says)
    for lines in by_usage(found.lines):
        yield ""
        yield from _lines(lines)
    yield ""
    yield from map(_check, found.checks)
    yield from (f"  NOT EXPLAINED: {each}" for each in found.unexplained)


def _lines(lines: Sequence[LineExplanation]) -> Iterator[str]:
    """A line, or the lines of one usage: what is said of all of them is said once."""
    from portal.words import signed_money

    first = lines[0]
    for line in lines:
        yield f"{line.line}  {line.text}  {line.quantity}  {signed_money(line.amount)}"
    yield from (f"  {each}" for each in dict.fromkeys(each for line in lines for each in line.says))
    for part in first.priced:
        money = signed_money(first.amount._replace(minor=part.amount_minor))
        yield f"    {part.text}: {money}{'  ← this line' if part.is_line and len(lines) == 1 else ''}"
    yield from map(_check, first.checks)
    unexplained = dict.fromkeys(each for line in lines for each in line.unexplained)
    yield from (f"  NOT EXPLAINED: {each}" for each in unexplained)


def _hours(found: LineExplanation) -> Iterator[str]:
    from aggregators.instants import format_instant_ms
    from aggregators.late_usage import text_of

    yield from (f"    {format_instant_ms(hour_ms)}  {text_of(units)}" for hour_ms, units in found.hours)


def _check(check: Check) -> str:
    return f"  {'ok' if check.holds else 'DIFFERS'}  {check.what}: {check.equation}"


def _event(found: EventExplanation) -> Iterator[str]:
    from aggregators.instants import format_instant_ms

    yield f"{found.id} of {found.account}: {found.state}"
    yield from (f"  {each}" for each in found.says)
    yield from (f"  {name}: {value}" for name, value in found.facts.items())
    for each in found.ended:
        yield f"  {each.meter} {each.value}"
        yield from (f"    {says}" for says in each.says)
        if each.lines:
            yield f"    lines: {', '.join(each.lines)}"
    yield from (f"  again at {format_instant_ms(at_ms)}" for at_ms in found.again)
    yield from (f"  NOT EXPLAINED: {each}" for each in found.unexplained)

"""The `tidemark` command. One module per kind of user: roles, developers (dev, emit, usage, periods, top), operators.

Imported by no other package; may import all. Invariant: an error of the project is one line with the remedy, and an
exit code for scripts (1 drift or failure, 2 bad input, 3 an operator must choose, 4 the answer of a check is no).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NoReturn

import click

from pipeline.cli.access import check, hold
from pipeline.cli.backfill import backfill
from pipeline.cli.billing import webhooks
from pipeline.cli.bought import trials
from pipeline.cli.catalog import catalog
from pipeline.cli.change import change
from pipeline.cli.context import EXIT_FAILURE, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_OPERATOR
from pipeline.cli.correct import correct
from pipeline.cli.credits import credits_
from pipeline.cli.develop import dev, emit, periods, stripe_simulator, top, usage
from pipeline.cli.dunning import dunning
from pipeline.cli.explain import explain
from pipeline.cli.keys import key
from pipeline.cli.migration import migration
from pipeline.cli.notices import notices
from pipeline.cli.operate import account, billing, close_period, doctor, meters
from pipeline.cli.page import account_acknowledge, account_page, account_timeline, operator_page
from pipeline.cli.quarantine import quarantine
from pipeline.cli.rebuild import rebuild
from pipeline.cli.reconcile import reconcile
from pipeline.cli.revenue import revenue
from pipeline.cli.roles import archive, auditor, gateway, mirror, notifier, router, sink, worker
from pipeline.cli.seats import seats
from schemas.errors import InvalidInput, OperatorNeeded, TidemarkError

LINE_MAX: Final = 1_000


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tidemark")
def cli() -> None:
    """Usage metering with provable counts.

    \b
    Try it on this machine:   tidemark dev           (everything, no Docker)
                              tidemark emit …        (in another terminal)
                              tidemark usage …
                              tidemark reconcile
    Or watch it survive:      python -m demo
                              python -m simulation --runs 100

    Settings come from the environment (TIDEMARK_…); see docs/settings.md. While `tidemark dev` runs, commands
    in the same folder use its settings.
    """


for command in (
    dev, stripe_simulator, emit, backfill, usage, periods, top, key, reconcile, billing, webhooks, quarantine,
    meters, account, catalog, change, check, explain, hold, notices, dunning, revenue, seats, trials, credits_,
    migration, correct,
    close_period, doctor, operator_page, rebuild,
    worker, archive, router, gateway, sink, mirror, auditor, notifier,
):  # fmt: skip
    cli.add_command(command)
account.add_command(account_acknowledge)
account.add_command(account_page)
account.add_command(account_timeline)


def main(command: click.Command = cli) -> None:
    """The entry point of a command line. An error of the project becomes one line and an exit code.

    Files that the command and its child processes create are for their owner only, because logs, databases and settings
    hold secrets and usage.
    """
    os.umask(0o077)
    try:
        _check_text(sys.argv[1:])
        command(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        _help(error)
    except click.ClickException as error:
        _fail(f"{error.format_message().removesuffix('.')}; add -h for the help", EXIT_INPUT)
    except click.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except OperatorNeeded as error:
        _fail(f"an operator must choose: {error}", EXIT_OPERATOR)
    except TidemarkError as error:
        _fail(str(error), EXIT_INPUT if isinstance(error, InvalidInput) else EXIT_FAILURE)
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has ended. Python would write again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)
    except OSError as error:
        _fail(f"{error.filename or 'the system refuses'}: {error.strerror or error}", EXIT_FAILURE)
    except ValueError as error:
        _fail(_field_error(error), EXIT_INPUT)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"tidemark: {_line(message)}", err=True)
    sys.exit(code)


def _help(error: click.exceptions.NoArgsIsHelpError) -> None:
    """Print the help of `tidemark` alone. A group of commands that gets none of them is an error."""
    context = error.ctx
    if context is None or context.parent is None or not isinstance(context.command, click.Group):
        click.echo(error.format_message())
        return
    names = ", ".join(sorted(context.command.commands))
    _fail(f"Missing argument 'COMMAND': give one of {names}", EXIT_INPUT)


def _line(message: str) -> str:
    """A message as one line that a terminal can show; its middle is left out if it is long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    return line if len(line) <= LINE_MAX else f"{line[: LINE_MAX // 2]} … {line[-LINE_MAX // 2 :]}"


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse arguments that are not UTF-8: no account, meter or file of a deployment has such a name."""
    for before, argument in pairwise(["", *arguments]):
        try:
            is_text = "\0" not in argument and argument.encode() is not None
        except UnicodeEncodeError:
            is_text = False
        if not is_text:
            raise InvalidInput(before if before.startswith("--") else "argument", f"{argument!a} is not UTF-8 text")


def _field_error(error: ValueError) -> str:
    """The first error of a pydantic model. Raises any other ValueError again: it is a defect."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        raise error
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or error.title
    return f"{field}: {first['msg'].removeprefix('Value error, ')}"

"""The `tidemark` command. One module per kind of user: roles, developers (dev, emit, usage, top), operators.

Imported by no other package; may import all. Invariant: an error of the project is one line with the remedy, and an
exit code for scripts (1 drift or failure, 2 bad input, 3 an operator must choose).
"""

from __future__ import annotations

import sys

import click

from pipeline.cli.context import EXIT_FAILURE, EXIT_INPUT, EXIT_OPERATOR
from pipeline.cli.develop import dev, emit, key, top, usage
from pipeline.cli.operate import account, close_period, doctor, meters, quarantine, reconcile
from pipeline.cli.rebuild import rebuild
from pipeline.cli.roles import archive, gateway, router, sink, worker
from schemas.errors import InvalidInput, OperatorNeeded, TidemarkError


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
    dev, emit, usage, top, key, reconcile, quarantine, meters, account, close_period, doctor, rebuild,
    worker, archive, router, gateway, sink,
):  # fmt: skip
    cli.add_command(command)


def main(command: click.Command = cli) -> None:
    """The entry point of a command line. An error of the project becomes one line and an exit code."""
    try:
        command(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_INPUT)
    except click.Abort:
        sys.exit(130)
    except InvalidInput as error:
        click.echo(f"tidemark: {error}", err=True)
        sys.exit(EXIT_INPUT)
    except OperatorNeeded as error:
        click.echo(f"tidemark: an operator must choose: {error}", err=True)
        sys.exit(EXIT_OPERATOR)
    except TidemarkError as error:
        click.echo(f"tidemark: {error}", err=True)
        sys.exit(EXIT_FAILURE)

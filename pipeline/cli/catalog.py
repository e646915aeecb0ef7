"""Commands about the catalog, for operators: what is sold, at which prices, and what a plan allows."""

from __future__ import annotations

import json
from asyncio import run
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from pipeline.cli.context import EXIT_FAILURE, confirm, settings
from pipeline.cli.operate import COUNT, user
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aggregators.catalog import CatalogProblem
    from pipeline.settings import Settings
    from schemas.catalog import PlanId
    from schemas.catalog_changes import CatalogPlan

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def catalog() -> None:
    """Plan and apply what is sold: plans, prices, features and meters in one file."""


@catalog.command("schema")
def catalog_schema() -> None:
    """Print the JSON Schema of a catalog file."""
    from schemas.catalog import Catalog

    click.echo(json.dumps(Catalog.model_json_schema(), indent=2))


@catalog.command("example")
def catalog_example() -> None:
    """Print the catalog that ships, to begin with."""
    from pipeline.open import DEFAULT_CATALOG

    click.echo(DEFAULT_CATALOG.read_text(), nl=False)


@catalog.command("plan")
@click.argument("file", type=_FILE)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the plan here, to apply it.")
@click.option("--in-place", is_flag=True, help="Let grants of a version change if none falls.")
@click.option(
    "--backtest",
    "months",
    metavar="MONTHS",
    help="Also print what the new prices would have billed each customer in the last MONTHS, such as 6m.",
)
@click.option(
    "--csv",
    "csv_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all customers of the backtest here, as CSV.",
)
@_JSON
def catalog_plan(
    file: Path, out: Path | None, in_place: bool, months: str | None, csv_path: Path | None, as_json: bool
) -> None:
    """Compare FILE with what was applied and with Stripe, and print what would change. Changes nothing.

    Prints every line of FILE that is wrong, and exits with 2, also if the change is refused.
    """
    from pipeline.commands.backtest import backtest_document, backtest_file, backtest_lines, months_of
    from pipeline.commands.catalog import plan_document, plan_file, plan_lines, save_plan

    count = months_of(months) if months else 0
    if csv_path and not months:
        raise InvalidInput("--csv", "is for the customers of a backtest: add --backtest 6m")

    plan, problems = run(plan_file(settings(), file, in_place=in_place))
    if plan is None:
        _refuse(file, problems, as_json=as_json)
    document = plan_document(plan) | {"warnings": [problem._asdict() for problem in problems]}
    if not as_json:
        click.echo("\n".join([*plan_lines(plan), *_warnings(file, problems)]))
    if count and not plan.refusals:
        tested = run(backtest_file(settings(), plan.catalog, count, csv_path))
        document["backtest"] = backtest_document(tested)
        if not as_json:
            click.echo("\n".join(backtest_lines(tested)))
    if as_json:
        click.echo(json.dumps(document))
    _check_allowed(file, plan)
    if out:
        save_plan(plan, out)


def _refuse(file: Path, problems: Sequence[CatalogProblem], *, as_json: bool) -> NoReturn:
    """Print what is wrong with a catalog file, and raise `InvalidInput`."""
    if as_json:
        click.echo(json.dumps({"problems": [problem._asdict() for problem in problems]}))
    else:
        for line, field, message in problems:
            click.echo(f"{file.name}:{line}: {field}: {message}")
    count = len(problems)
    raise InvalidInput(
        file.name, f"{count} problem{'s' if count > 1 else ''}; nothing is planned until the file is corrected"
    )


def _warnings(file: Path, problems: Sequence[CatalogProblem]) -> list[str]:
    """What of a catalog file is worth a warning, as lines."""
    return [f"warning: {file.name}:{line}: {field}: {message}" for line, field, message in problems]


def _check_allowed(file: Path, plan: CatalogPlan) -> None:
    """Raise `InvalidInput` for a plan that is refused; the refusals were printed."""
    if count := len(plan.refusals):
        raise InvalidInput(file.name, f"{count} refusal{'s' if count > 1 else ''}; see above")


@catalog.command("apply")
@click.argument("path", metavar="PLAN", type=_FILE)
@click.option("--reason", required=True, help="Why; the audit keeps it.")
@click.option("--by", help="Who; the user of this machine if unset. The audit keeps it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def catalog_apply(path: Path, reason: str, by: str | None, yes: bool) -> None:
    """Do exactly what PLAN says, a file that `catalog plan --out` wrote. Refuses if anything has changed since.

    PLAN may be a catalog file: then the command plans it, prints the plan, and asks. Repeat the command after an error:
    what was done is not done again. What is sold changes at the end, at once.
    """
    from pipeline.commands.catalog import apply_file, is_plan, load_plan

    deployment, actor = settings(), by or user()
    if is_plan(path):
        plan = load_plan(path)
    else:
        plan = _planned(deployment, path, is_asked=not yes)
        # A plan that is final asks below, with other words.
        if plan.actions and not plan.is_final:
            confirm("Apply this plan?", yes=yes)
    if plan.is_final:
        confirm("Apply? Usage until the next meter set is counted and reported so", yes=yes)
    if run(apply_file(deployment, plan, actor, reason, click.echo)):
        click.echo(f"catalog version {plan.catalog.version} is active")
    else:
        click.echo(f"catalog version {plan.catalog.version} is active already; nothing to do")


def _planned(deployment: Settings, file: Path, *, is_asked: bool) -> CatalogPlan:
    """The plan of a catalog file, which is printed; the actions only if the person is asked about them, because each is
    printed when it is done. Raises `InvalidInput` if the file or the change is refused."""
    from pipeline.commands.catalog import plan_file, plan_lines

    plan, problems = run(plan_file(deployment, file))
    if plan is None:
        _refuse(file, problems, as_json=False)
    lines = plan_lines(plan, with_actions=is_asked or bool(plan.refusals))
    click.echo("\n".join([*lines, *_warnings(file, problems)]))
    _check_allowed(file, plan)
    return plan


@catalog.command("migrate")
@click.argument("source", metavar="PLAN@VERSION")
@click.argument("target", metavar="VERSION")
@click.option(
    "--at", type=click.Choice(["renewal"]), required=True, expose_value=False, help="When: at the end of what is paid."
)
@click.option("--limit", type=COUNT, default=10_000, show_default=True, help="Move so many subscriptions at most.")
@click.option("--yes", is_flag=True, help="Do it; without this option, the command only says what it would do.")
@click.option("--reason", default="", help="Why; the audit keeps it. Needed with --yes.")
@click.option("--by", help="Who; the user of this machine if unset. The audit keeps it.")
@_JSON
def catalog_migrate(
    source: str, target: str, limit: int, yes: bool, reason: str, by: str | None, as_json: bool
) -> None:
    """Move the subscriptions of a plan's version to another version of the plan.

    Prints who would be moved, and what the new version gives less of. With --yes, each gets a schedule at Stripe that
    changes its prices at its renewal. Repeat the command after an error: no subscription is scheduled twice.
    """
    from pipeline.commands.plan_moves import versions_of

    plans = versions_of(source, target)
    if yes and not reason.strip():
        raise InvalidInput("--reason", "say why: the audit keeps it")
    deployment = settings()
    is_whole = run(_migrated(deployment, plans, limit, (by or user(), reason) if yes else None, as_json=as_json))
    raise SystemExit(0 if is_whole else EXIT_FAILURE)


async def _migrated(
    deployment: Settings, plans: tuple[PlanId, PlanId], limit: int, by: tuple[str, str] | None, *, as_json: bool
) -> bool:
    """Print a preview, and with a person and a reason migrate; whether every subscription can be moved."""
    from pipeline.commands.plan_moves import migrate, opened, preview, preview_document, preview_lines

    async with opened(deployment) as parts:
        found = await preview(parts, *plans, limit)
        if by is None:
            lines = [*preview_lines(found), "nothing was done: add --yes and --reason to do it"]
            click.echo(json.dumps(preview_document(found)) if as_json else "\n".join(lines))
            return not any(each.hindrance for each in found.planned)
        ends = await migrate(parts, found, *by, (lambda _: None) if as_json else click.echo)
    words = ", ".join(f"{count} {end}" for end, count in sorted(ends.items())) or "no subscription has the version"
    click.echo(json.dumps(dict(ends)) if as_json else words)
    return not ends.get("not movable")


@catalog.command("drift")
@_JSON
def catalog_drift(as_json: bool) -> None:
    """Print what Stripe has otherwise than it was applied. Exits 1 if there is anything."""
    from pipeline.commands.catalog import find_drift

    found = run(find_drift(settings()))
    click.echo(json.dumps(found) if as_json else "\n".join(found) or "no drift")
    raise SystemExit(EXIT_FAILURE if found else 0)


@catalog.command("show")
@click.option(
    "--versions", is_flag=True, help="Print every version of every plan instead, its state, and how many have it."
)
@click.option("--history", is_flag=True, help="Print who applied which catalog instead, when and why.")
def catalog_show(versions: bool, history: bool) -> None:
    """Print the active catalog, with what its plans inherit."""
    from aggregators.instants import format_instant_ms
    from pipeline.commands import catalog as commands
    from pipeline.commands.catalog import show, users_text

    if history:
        shown = [
            row for row in run(commands.history(settings())) if row.entity in ("catalog", "migration", "plan_move")
        ]
        for row in shown:
            what = f"version {row.entity_id}" if row.entity == "catalog" else f"{row.entity} {row.entity_id}"
            click.echo(f"{what}  {format_instant_ms(row.at_ms)}  {row.actor}: {row.reason}")
        return
    standing, touched = run(show(settings()))
    if standing.catalog is None:
        click.echo("no catalog has been applied")
    elif versions:
        width = max(len(str(plan)) for plan in standing.plans)
        for plan, known in sorted(standing.plans.items()):
            users = f"  {users_text(touched[plan])}" if plan in touched else ""
            click.echo(f"{plan!s:{width}}  {known.state:6}{users}".rstrip())
    else:
        click.echo(standing.catalog.model_dump_json(indent=2, exclude_defaults=True))

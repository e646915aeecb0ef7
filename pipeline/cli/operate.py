"""Commands of the operator: meters, account, close-period, quarantine, reconcile, doctor."""

from __future__ import annotations

import json
from pathlib import Path

import click

from aggregators.instants import format_instant_ms, parse_instant_us
from pipeline.cli.context import run, settings
from schemas.errors import InvalidInput


def instant_ms(field: str, text: str) -> int:
    """Milliseconds of an RFC 3339 option."""
    parsed = parse_instant_us(text)
    if parsed is None:
        raise InvalidInput(field, f"{text!r} is not RFC 3339 with an offset, such as 2026-11-01T00:00:00Z")
    return parsed // 1000


@click.group()
def meters() -> None:
    """Show, check and apply the meter set."""


@meters.command("schema")
def meters_schema() -> None:
    """Print the JSON Schema of a meter set file."""
    from schemas.meters import MeterSet

    click.echo(json.dumps(MeterSet.model_json_schema(), indent=2))


@meters.command("check")
@click.argument("file", type=click.Path(path_type=Path))
def meters_check(file: Path) -> None:
    """Read a meter set file and say what is wrong with it, without applying it."""
    from pipeline.open import read_meter_set

    found = read_meter_set(file)
    click.echo(f"{file}: version {found.version}, {len(found.meters)} meters, valid")


@meters.command("apply")
@click.argument("file", type=click.Path(path_type=Path))
def meters_apply(file: Path) -> None:
    """Write a meter set into the log; it takes effect on each partition from its record on.

    The version must be higher than the one in force, and a meter that exists keeps its definition.
    """
    from pipeline.commands.operations import apply_meter_set_file

    click.echo(run(apply_meter_set_file(settings(), file)))


@meters.command("show")
def meters_show() -> None:
    """Print the meter set in force."""
    from pipeline.open import meter_set_in_force

    found = run(meter_set_in_force(settings()))
    click.echo(found.model_dump_json(indent=2, exclude_defaults=True) if found else "no meter set has been applied")


@click.group()
def account() -> None:
    """Bind accounts to billing periods and Stripe customers."""


@account.command("bind")
@click.argument("name")
@click.option("--anchor", default="1970-01-01T00:00:00Z", show_default=True, help="Where periods are counted from.")
@click.option("--interval", type=click.Choice(["day", "week", "month", "year"]), default="month", show_default=True)
@click.option("--interval-count", default=1, show_default=True)
@click.option("--from", "from_", help="When it takes effect; as early as it can if unset.")
@click.option("--customer", default="", help="The Stripe customer, cus_…; unmapped if unset.")
@click.option("--free", is_flag=True, help="Never report this account to Stripe.")
def account_bind(
    name: str, anchor: str, interval: str, interval_count: int, from_: str | None, customer: str, free: bool
) -> None:
    """Set an account's period anchor and Stripe customer, from an instant on.

    A new anchor may take effect in the past, as far as periods are not closed and nobody was named to pay for their
    usage: it is counted again. Else it takes effect after stream time and the future limit. The customer holds from
    --from on, or for all usage not yet reported.
    """
    from pipeline.commands.operations import bind_account
    from schemas.periods import Billing, Binding, Interval

    billing = Billing.FREE if free else Billing.MAPPED if customer else Billing.UNMAPPED
    binding = Binding(
        effective_from_ms=instant_ms("--from", from_) if from_ else 0,
        anchor_ms=instant_ms("--anchor", anchor),
        interval=Interval(interval),
        interval_count=interval_count,
        billing=billing,
        stripe_customer=customer,
    )
    click.echo(run(bind_account(settings(), name, binding)))


@account.command("show")
@click.argument("name")
def account_show(name: str) -> None:
    """Print an account's bindings, closings and current period."""
    from pipeline.commands.operations import show_account

    click.echo(json.dumps(run(show_account(settings(), name)), indent=2))


@click.command("close-period")
@click.argument("name")
@click.argument("instant")
def close_period(name: str, instant: str) -> None:
    """Close the period of account NAME that contains INSTANT, before its grace has passed.

    Later usage of it follows its meters' policy: carried forward, or quarantined. Cannot be undone.
    """
    from pipeline.commands.operations import close_account_period

    click.echo(run(close_account_period(settings(), name, instant_ms("INSTANT", instant))))


@click.group()
def quarantine() -> None:
    """Look at events that were not counted, and send them again."""


_REASON = click.option("--reason", help="Only this reason, such as wrong_partition.")


@quarantine.command("list")
@_REASON
@click.option("--limit", default=50, show_default=True, help="How many of the newest entries.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def quarantine_list(reason: str | None, limit: int, as_json: bool) -> None:
    """Print quarantined events: where they stood, why, and what to do."""
    from pipeline.commands.operations import quarantined
    from schemas.reasons import REMEDIES, Reason

    for entry in run(quarantined(settings(), reason, limit)):
        if as_json:
            click.echo(json.dumps(entry.as_json()))
        else:
            known = entry.reason in set(Reason)
            click.echo(
                f"{entry.topic}-{entry.partition}@{entry.offset}.{entry.place}  "
                f"{format_instant_ms(entry.stream_time_ms)}  {entry.reason}: {entry.detail}\n"
                f"    {entry.text()[:160]}\n    → {REMEDIES[Reason(entry.reason)] if known else 'see the reason'}"
            )


@quarantine.command("redrive")
@_REASON
@click.option("--limit", default=10_000, show_default=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
def quarantine_redrive(reason: str | None, limit: int, yes: bool) -> None:
    """Send quarantined events again, through usage.inbox. An event that was counted meanwhile stays counted once."""
    from pipeline.commands.operations import quarantined, redrive

    chosen = settings()
    entries = [entry for entry in run(quarantined(chosen, reason, limit)) if not entry.cut]
    if not entries:
        click.echo("nothing to redrive")
        return
    if not yes:
        click.confirm(f"Send {len(entries)} events again?", abort=True)
    click.echo(f"{run(redrive(chosen, entries))} events sent to usage.inbox")


@click.command()
@click.option("--from", "from_", help="Only periods that end after this instant.")
@click.option("--to", help="Only periods that begin before this instant.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--stripe-reads-max", default=2_000, show_default=True, help="Summaries to read from Stripe at most.")
@click.option("--rows", default=50, show_default=True, help="Differences to print at most.")
@click.option("--pushgateway", default="", help="Also push the gauges to this Prometheus push gateway.")
def reconcile(
    from_: str | None, to: str | None, as_json: bool, stripe_reads_max: int, rows: int, pushgateway: str
) -> None:
    """Recount usage_events and compare it with Redis, usage_hourly, the intents and Stripe.

    Exits 0 where everything that was compared is equal, 1 on drift. What could not be read is `unchecked`.
    """
    from pipeline.commands.operations import run_reconcile

    code, text = run(
        run_reconcile(
            settings(),
            instant_ms("--from", from_) if from_ else None,
            instant_ms("--to", to) if to else None,
            as_json=as_json,
            stripe_reads_max=stripe_reads_max,
            rows_max=rows,
            pushgateway=pushgateway,
        )
    )
    click.echo(text)
    raise SystemExit(code)


@click.command()
@click.option("--json", "as_json", is_flag=True)
def doctor(as_json: bool) -> None:
    """Check each dependency and setting, and say the remedy. Exits 1 where something is wrong."""
    from pipeline.commands.doctor import diagnose

    findings = run(diagnose(settings()))
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{finding.status:5}  {finding.what}: {finding.detail}")
            if finding.remedy:
                click.echo(f"       → {finding.remedy}")
    raise SystemExit(1 if any(finding.status == "wrong" for finding in findings) else 0)

"""Commands that run a role: a long-running process that a supervisor restarts."""

from __future__ import annotations

import click

from pipeline.cli.context import role_settings

_REPLAY = click.option(
    "--replay-from-start",
    is_flag=True,
    help="Read the log from offset 0 for partitions without state. Correct only if the log is complete.",
)


@click.command()
@_REPLAY
def worker(replay_from_start: bool) -> None:
    """Count events into Redis, write totals to ClickHouse, and make intents.

    Run at most one worker per partition; Kafka spreads the partitions over the workers. kill -9 is safe.
    """
    from pipeline.roles.worker import run_worker
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_worker(role_settings(), replay_from_start=replay_from_start))


@click.command()
@_REPLAY
def archive(replay_from_start: bool) -> None:
    """Write every accepted event to ClickHouse."""
    from pipeline.roles.archive import run_archive
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_archive(role_settings(), replay_from_start=replay_from_start))


@click.command()
def router() -> None:
    """Forward usage.inbox, which takes events of any producer, to the right partitions of usage.events."""
    from pipeline.roles.router import run_router
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_router(role_settings()))


@click.command()
def sink() -> None:
    """Report every intent to Stripe exactly once."""
    from pipeline.roles.sink import run_sink
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_sink(role_settings()))


@click.command()
def mirror() -> None:
    """Mirror customers, subscriptions and invoices of Stripe in PostgreSQL, and bind accounts to who pays.

    Reads the events of billing.events, which the gateway takes as webhooks, and Stripe's own list of events.
    """
    from pipeline.roles.mirror import run_mirror
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_mirror(role_settings()))


@click.command()
def auditor() -> None:
    """Reconcile once a day, keep the result in ClickHouse, and show it as gauges.

    Compares as `tidemark reconcile` does. The time of day is a setting.
    """
    from pipeline.roles.auditor import run_auditor
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_auditor(role_settings()))


@click.command()
def notifier() -> None:
    """Find accounts that near or pass their limits, and deliver notices by webhook, mail or into a file.

    See docs/notices.md.
    """
    from pipeline.roles.notifier import run_notifier
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_notifier(role_settings()))


@click.command()
def gateway() -> None:
    """Serve the HTTP API: POST /v1/events, GET /v1/usage, GET /v1/accounts/{id}/usage."""
    from pipeline.roles.gateway import run_gateway
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_gateway(role_settings()))

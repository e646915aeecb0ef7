"""The roles: long-running processes that a supervisor starts again when they end."""

from __future__ import annotations

import click

from pipeline.cli.context import settings

_REPLAY = click.option(
    "--replay-from-start",
    is_flag=True,
    help="Where a partition has no state, read the log again from offset 0. Only right if the log is whole.",
)


@click.command()
@_REPLAY
def worker(replay_from_start: bool) -> None:
    """Count: fold usage.events into Redis, relay to ClickHouse, make intents.

    Start as many as there are partitions at most; Kafka spreads the partitions over them. kill -9 is safe.
    """
    from pipeline.roles.worker import run_worker
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_worker(settings(), replay_from_start=replay_from_start))


@click.command()
@_REPLAY
def archive(replay_from_start: bool) -> None:
    """Keep every accepted event in ClickHouse, by identity."""
    from pipeline.roles.archive import run_archive
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_archive(settings(), replay_from_start=replay_from_start))


@click.command()
def router() -> None:
    """Re-key usage.inbox (any producer, any partitioner) into usage.events."""
    from pipeline.roles.router import run_router
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_router(settings()))


@click.command()
def sink() -> None:
    """Report intents to Stripe, each one once."""
    from pipeline.roles.sink import run_sink
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_sink(settings()))


@click.command()
def gateway() -> None:
    """Serve the HTTP API: POST /v1/events, GET /v1/usage, GET /v1/accounts/{id}/usage."""
    from pipeline.roles.gateway import run_gateway
    from pipeline.runner.runner import run_in_loop

    run_in_loop(run_gateway(settings()))

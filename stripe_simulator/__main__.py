"""`python -m stripe_simulator --port N [--state FILE] [--clock TEXT]`, which is also `tidemark stripe-simulator`."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path
from typing import Any, Final

import click
import uvicorn

from stripe_simulator.app import create_app
from stripe_simulator.clock import Clock, parse_clock
from stripe_simulator.settings import SimulatorSettings
from stripe_simulator.simulator import Check, Simulator

READY_PREFIX: Final = "stripe simulator ready at "
SECONDS_MAX: Final = 10**9
# Objects are JSON without cycles, and there can be millions of them: they are searched for garbage rarely.
GARBAGE: Final = (200_000, 20, 1_000)
_DEFAULTS: Final = SimulatorSettings()


def _seconds(text: str) -> float:
    if not 0 <= float(text) <= SECONDS_MAX:
        raise click.BadParameter(f"must be from 0 to {SECONDS_MAX} seconds")
    return float(text)


def _clock(text: str) -> Clock:
    try:
        return parse_clock(text)
    except (ValueError, OSError, ZeroDivisionError, RecursionError) as error:
        raise click.BadParameter(f"{text[:100]!a} is no clock: {error}"[:300]) from error


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Port on 127.0.0.1; 0 takes a free one.")
@click.option("--state", type=click.Path(path_type=Path), help="Journal that keeps the state over restarts.")
@click.option(
    "--clock", type=_clock, metavar="TEXT", default="system", help="Or scaled:REAL_MS:SIMULATED_MS:FACTOR, file:PATH."
)
@click.option("--account", default=_DEFAULTS.account, help="The Stripe account id.")
@click.option("--summary-lag-s", type=_seconds, metavar="SECONDS", default=_DEFAULTS.summary_lag_s)
@click.option("--validation-window-s", type=_seconds, metavar="SECONDS", default=_DEFAULTS.validation_window_s)
@click.option("--validation-delay-s", type=_seconds, metavar="SECONDS", default=_DEFAULTS.validation_delay_s)
@click.option("--rate-per-s", type=click.IntRange(0), default=_DEFAULTS.rate_per_s, help="Rate limit; 0 for none.")
@click.option(
    "--invoice-grace-s",
    type=click.IntRange(0, SECONDS_MAX),
    metavar="SECONDS",
    default=_DEFAULTS.invoice_grace_s,
    help="How long the invoice of a cycle is a draft.",
)
@click.option("--seed", type=int, default=_DEFAULTS.seed, help="Decides ids and the order of equal jobs.")
@click.pass_obj
def main(check: Check | None, /, port: int, state: Path | None, clock: Clock, **settings: Any) -> None:
    """Run a simulator of Stripe, with pages for a browser, until a signal.

    \f
    The object of the click context is a check of all responses.
    """
    try:
        asyncio.run(_serve(check, port, state, clock, settings))
    except (OSError, ValueError) as failure:
        raise click.ClickException(f"correct --port or --state: {failure}") from failure


async def _serve(check: Check | None, port: int, state: Path | None, clock: Clock, settings: dict[str, Any]) -> None:
    gc.set_threshold(*GARBAGE)
    # asyncio sets TCP_NODELAY only on this socket type; without it, each answer waits 40 ms for an ACK.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    simulator = Simulator(clock, SimulatorSettings(pages_url=url, **settings), state, check)
    listener.listen(512)
    click.echo(f"{READY_PREFIX}{url}\npages for a browser at {url}/_simulator/")
    config = uvicorn.Config(
        create_app(simulator), log_level="critical", access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            jobs = tasks.create_task(simulator.run_jobs())
            await uvicorn.Server(config).serve(sockets=[listener])
            jobs.cancel()
    finally:
        simulator.close()


if __name__ == "__main__":
    main()

"""`python -m stripe_simulator --port N [--state FILE] [--clock TEXT]`, which is also `tidemark stripe-simulator`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import uvicorn

from stripe_simulator.app import create_app
from stripe_simulator.clock import Clock, parse_clock
from stripe_simulator.settings import SimulatorSettings
from stripe_simulator.simulator import Simulator

READY_PREFIX = "stripe simulator ready at "
SECONDS_MAX = 10**9
# Objects are JSON without cycles, and there can be millions of them: they are searched for garbage rarely.
GARBAGE = (200_000, 20, 1_000)


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        """The help, with headings like those of the other commands."""
        return super().format_help().replace("usage: ", "Usage: ", 1).replace("\noptions:\n", "\nOptions:\n", 1)

    def error(self, message: str) -> NoReturn:
        """One line that names the argument, however long the argument is."""
        text = "".join(character if character.isprintable() else " " for character in message[:300])
        self.exit(2, f"{self.prog}: {text}; see --help\n")


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return port


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"must be from 0 to {SECONDS_MAX} seconds")
    return seconds


def _rate(text: str) -> int:
    rate = int(text)
    if rate < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return rate


def _clock(text: str) -> Clock:
    try:
        return parse_clock(text)
    except (ValueError, OSError, ZeroDivisionError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text[:100]!a} is no clock: {error}"[:300]) from error


def _arguments(arguments: Sequence[str] | None, program: str) -> argparse.Namespace:
    defaults = SimulatorSettings()
    parser = _Parser(prog=program, description="A simulator of Stripe, with pages for a browser.")
    parser.add_argument("--port", type=_port, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--state", type=Path, default=None, help="journal file that keeps the state over restarts")
    parser.add_argument("--clock", type=_clock, default="system", help="system, or scaled:REAL_MS:SIMULATED_MS:FACTOR")
    parser.add_argument("--account", default=defaults.account, help="the Stripe account id")
    parser.add_argument("--summary-lag-s", type=_seconds, default=defaults.summary_lag_s)
    parser.add_argument("--validation-window-s", type=_seconds, default=defaults.validation_window_s)
    parser.add_argument("--validation-delay-s", type=_seconds, default=defaults.validation_delay_s)
    parser.add_argument("--latency-s", type=_seconds, default=defaults.latency_s)
    parser.add_argument("--rate-per-s", type=_rate, default=defaults.rate_per_s, help="Stripe's rate limit; 0 for none")
    parser.add_argument(
        "--invoice-grace-s",
        type=_seconds,
        default=defaults.invoice_grace_s,
        help="how long a cycle's invoice is a draft",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="decides ids and the order of equal jobs")
    parser.add_argument("--check-responses", action="store_true", help="answer 500 if a response is not as in the SDK")
    return parser.parse_args(arguments)


async def _serve(arguments: argparse.Namespace) -> None:
    gc.set_threshold(*GARBAGE)
    # asyncio sets TCP_NODELAY only on this socket type; without it, each answer waits 40 ms for an ACK.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", arguments.port))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    settings = SimulatorSettings(
        pages_url=url,
        account=arguments.account,
        summary_lag_s=arguments.summary_lag_s,
        validation_window_s=arguments.validation_window_s,
        validation_delay_s=arguments.validation_delay_s,
        latency_s=arguments.latency_s,
        rate_per_s=arguments.rate_per_s,
        seed=arguments.seed,
        invoice_grace_s=int(arguments.invoice_grace_s),
        check_responses=arguments.check_responses,
    )
    simulator = Simulator(arguments.clock, settings, arguments.state)
    listener.listen(512)
    sys.stdout.write(f"{READY_PREFIX}{url}\npages for a browser at {url}/_simulator/\n")
    sys.stdout.flush()
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


def main(arguments: Sequence[str] | None = None, program: str = "python -m stripe_simulator") -> None:
    """Serve until a signal. Exits with 2 for a bad argument, with 1 for a port or file that cannot be used."""
    try:
        asyncio.run(_serve(_arguments(arguments, program)))
    except (OSError, sqlite3.Error, ValueError) as failure:
        sys.exit(f"{program}: correct --port or --state: {failure}")


if __name__ == "__main__":
    main()

"""Stripe for tests: the simulator in a process of its own, or in the test's event loop on a clock the test sets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio
import uvicorn

from pipeline.local.processes import LocalProcess, python
from stripe_simulator import Simulator, SimulatorSettings
from stripe_simulator.__main__ import READY_PREFIX
from stripe_simulator.registry import ROUTES
from tests.services.stripe_requests import application
from tests.services.stripe_shapes import problems
from tests.worlds.clock import ManualClock

ROOT = Path(__file__).parents[2]
TEST_KEY = "sk_test_tidemark"

# The routes of which a response was compared with the SDK's shapes, in this process.
COVERED: Final[set[str]] = set()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say when the sockets are listened on."""
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to pytest."""
        yield


@dataclass(slots=True)
class ServedSimulator:
    """A simulator in this event loop and where it listens."""

    simulator: Simulator
    clock: ManualClock
    url: str


@contextlib.asynccontextmanager
async def serve_simulator(
    clock: ManualClock, settings: SimulatorSettings, state: Path | None = None
) -> AsyncIterator[ServedSimulator]:
    """Serve a fresh simulator on a free port of 127.0.0.1, in the running event loop.

    Each response is compared with the SDK's shapes; a difference fails the test at the end of the block.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    simulator = Simulator(clock, replace(settings, pages_url=url), state, problems)
    config = uvicorn.Config(
        application(simulator), log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await server.ready.wait()
        async with running(simulator):
            yield ServedSimulator(simulator, clock, url)
    finally:
        server.should_exit = True
        await serving
        listener.close()
        simulator.close()
        check_shapes(simulator.violations, simulator.checked)


@contextlib.asynccontextmanager
async def running(simulator: Simulator) -> AsyncIterator[None]:
    """Run the simulator's due jobs and deliveries during the block."""
    jobs = asyncio.create_task(simulator.run_jobs())
    try:
        yield
    finally:
        jobs.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await jobs


@contextlib.contextmanager
def simulator_process(folder: Path, *arguments: str) -> Iterator[str]:
    """A simulator process that checks its responses, with its log in `folder`. Its URL once it is ready."""
    command = python("tests.services.stripe_shapes", *arguments)
    with LocalProcess("the Stripe simulator", command, folder / "simulator.log", cwd=ROOT) as process:
        url = process.wait_line(READY_PREFIX).removeprefix(READY_PREFIX)
        yield url
        health = httpx.get(f"{url}/_simulator/health", trust_env=False).json()
    check_shapes(health["violations"], health["checked"])


def check_shapes(violations: list[str], routes: Iterable[str]) -> None:
    """Fail if a response differed from the SDK's shapes, and note the routes that were compared."""
    assert violations == [], "the simulator has a defect, or its responses differ from the shapes of the Stripe SDK"
    COVERED.update(routes)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With `-n`, a worker hands its routes over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["stripe_routes"] = sorted(COVERED)


def pytest_testnodedown(node: Any) -> None:
    """With `-n`, collect the routes of all workers."""
    COVERED.update(getattr(node, "workeroutput", {}).get("stripe_routes", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many of the simulator's routes the run has covered."""
    if COVERED:
        covered, routes = len(COVERED), len(ROUTES)
        terminalreporter.write_line(
            f"Stripe simulator: responses of {covered} of {routes} routes compared with the SDK"
        )


@pytest.fixture(scope="session")
def stripe_simulator_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One simulator process for the session. Tests share it, so each uses names of its own."""
    options = ("--summary-lag-s", "0", "--validation-window-s", "0.1", "--validation-delay-s", "0")
    with simulator_process(tmp_path_factory.mktemp("stripe"), *options) as url:
        yield url


@pytest_asyncio.fixture
async def served_simulator() -> AsyncIterator[ServedSimulator]:
    """A fresh simulator without lag on a manual clock that stands at 2026-11-21T12:00:00Z."""
    settings = SimulatorSettings(summary_lag_s=0, validation_window_s=10, validation_delay_s=0, hold_s=5)
    async with serve_simulator(ManualClock(1_795_262_400_000), settings) as served:
        yield served

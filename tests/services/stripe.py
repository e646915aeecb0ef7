"""Stripe for tests: the simulator in a process of its own, or in the test's event loop on a clock the test sets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import uvicorn

from pipeline.local.processes import LocalProcess, python
from stripe_simulator import Simulator, SimulatorSettings, create_app
from stripe_simulator.__main__ import READY_PREFIX
from tests.worlds.clock import ManualClock

ROOT = Path(__file__).parents[2]
TEST_KEY = "sk_test_tidemark"


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
    """Serve a fresh simulator on a free port of 127.0.0.1, in the running event loop."""
    simulator = Simulator(clock, settings, state)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(simulator), log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await server.ready.wait()
        yield ServedSimulator(simulator, clock, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        server.should_exit = True
        await serving
        listener.close()
        simulator.close()


@contextlib.contextmanager
def simulator_process(folder: Path, *arguments: str) -> Iterator[str]:
    """`python -m stripe_simulator` with its log in `folder`; its URL once it is ready. Ended with the block."""
    command = python("stripe_simulator", *arguments)
    with LocalProcess("the Stripe simulator", command, folder / "simulator.log", cwd=ROOT) as process:
        yield process.wait_line(READY_PREFIX).removeprefix(READY_PREFIX)


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

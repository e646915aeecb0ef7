"""Stripe for tests: the simulator in a process of its own, or in the test's event loop on a clock the test sets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import uvicorn

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
def simulator_process(*arguments: str) -> Iterator[str]:
    """`python -m stripe_simulator`, its URL once it is ready; ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stripe_simulator", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith(READY_PREFIX), f"the simulator did not start: {line!r}"
        yield line.removeprefix(READY_PREFIX).strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def stripe_simulator_url() -> Iterator[str]:
    """One simulator process for the session. Tests share it, so each uses names of its own."""
    with simulator_process("--summary-lag-s", "0", "--validation-window-s", "0.1", "--validation-delay-s", "0") as url:
        yield url


@pytest_asyncio.fixture
async def served_simulator() -> AsyncIterator[ServedSimulator]:
    """A fresh simulator without lag on a manual clock that stands at 2026-11-21T12:00:00Z."""
    settings = SimulatorSettings(summary_lag_s=0, validation_window_s=10, validation_delay_s=0, hold_s=5)
    async with serve_simulator(ManualClock(1_795_262_400_000), settings) as served:
        yield served

"""Worker and archive use the C core unless the setting turns it off, and `/metrics` says which one runs."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import pytest

from aggregators.columns import PythonColumns
from aggregators.native.columns import NativeColumns
from pipeline.metrics import Metrics
from pipeline.roles import archive, worker
from pipeline.settings import Settings
from sinks.clickhouse.fake import FakeClickHouse
from sinks.redis.fake import FakeLiveView
from tests.worlds.deployment import World
from tests.worlds.reconciler import METER_SET, START_MS


class Ran(NamedTuple):
    """The processor that a role ran, and its metrics."""

    processor: Any
    metrics: str


class Opened(NamedTuple):
    """What a role opens first."""

    log: Any
    clock: Any
    genesis: Any = None


@pytest.fixture
async def roles(monkeypatch: pytest.MonkeyPatch) -> list[Ran]:
    """Both roles on fakes. Every run of one is appended."""
    world, ran = World(START_MS), list[Ran]()
    await world.start(METER_SET)

    async def base(_settings: Settings, **_more: object) -> Opened:
        return Opened(world.log, world.clock)

    async def store(_settings: Settings) -> FakeClickHouse:
        return FakeClickHouse()

    async def run(_base: object, processor: object, *_more: object, metrics: Metrics, **_named: object) -> None:
        ran.append(Ran(processor, metrics.render()[0].decode()))

    for role in (archive, worker):
        monkeypatch.setattr(role, "open_base", base)
        monkeypatch.setattr(role, "run_processor", run)
    monkeypatch.setattr(archive, "open_clickhouse_store", store)
    monkeypatch.setattr(worker, "open_live_view", lambda _settings: FakeLiveView())
    return ran


@pytest.mark.parametrize("native", [True, False])
async def test_a_role_says_whether_it_uses_the_core(
    library: ctypes.CDLL, roles: list[Ran], native: bool, tmp_path: Any
) -> None:
    """The worker makes columns with it, the archive rows."""
    settings = Settings(
        native=native, secret="a secret of thirty-two characters", data_dir=tmp_path,
        clickhouse_url=f"chdb://{tmp_path}/clickhouse",
    )  # fmt: skip
    await archive.run_archive(settings)
    await worker.run_worker(settings)

    archived, counted = roles
    assert all(f"tidemark_native_core {float(native)}" in ran.metrics for ran in roles)
    assert (archived.processor._native is not None) is native
    maker_of = counted.processor._maker_of
    assert (maker_of.func is NativeColumns) if native else (maker_of is PythonColumns)

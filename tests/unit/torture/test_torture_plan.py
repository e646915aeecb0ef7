"""The pure parts of `make torture`: the plan of a seed, the damage to files, and the comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.compare import compared
from tests.torture.plan import (
    DAMAGES,
    DELIVERY_FAULTS,
    KILLS,
    MIRRORS,
    OTHERS,
    READ_FAULTS,
    STRIPE_FAULTS,
    Strike,
    draw,
    kills_of,
    spared,
)
from tests.torture.valkey_files import FILES, Copies, truncate

SEEDS = range(30)
DELIVERIES = dict.fromkeys(DELIVERY_FAULTS, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Valkey's folder with an append-only file of two parts."""
    files = tmp_path / "valkey" / FILES
    files.mkdir(parents=True)
    (files / "appendonly.aof.1.base.rdb").write_bytes(b"base")
    (files / "appendonly.aof.1.incr.aof").write_bytes(b"old commands")
    (files / "appendonly.aof.2.incr.aof").write_bytes(b"0123456789")
    (files / "appendonly.aof.manifest").write_text(
        "file appendonly.aof.1.base.rdb seq 1 type b\n"
        "file appendonly.aof.1.incr.aof seq 1 type i\n"
        "file appendonly.aof.2.incr.aof seq 2 type i\n"
    )
    return tmp_path / "valkey"


def test_the_same_seed_draws_the_same_strikes() -> None:
    """A failing run can be repeated from its seed."""
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_plan_uses_every_strike_often_enough(seed: int) -> None:
    """No seed may pass because it spares a component."""
    plan = draw(seed)
    kills = kills_of(plan)

    assert kills.total() >= 50
    assert all(kills[kind] >= least for kind, least in KILLS.items())
    assert {strike: sum(action.strike is strike for action in plan) for strike in OTHERS} == dict(OTHERS)
    for strike, targets in (
        (Strike.STRIPE, STRIPE_FAULTS),
        (Strike.READS, READ_FAULTS),
        (Strike.DELIVERIES, DELIVERY_FAULTS),
    ):
        assert {action.target for action in plan if action.strike is strike} == set(targets)
    assert {action.target for action in plan if action.strike is Strike.MIRROR} <= set(MIRRORS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_short_run_drops_doubles_and_delays_deliveries(seed: int) -> None:
    """The mirror is worth its comparison only then, also at a third of the length."""
    plan = draw(seed, 0.3)
    assert {action.target for action in plan if action.strike is Strike.DELIVERIES} == set(DELIVERY_FAULTS)
    assert all(kills_of(plan)[kind] >= 2 for kind in KILLS)


@pytest.mark.parametrize(
    ("kills", "dropped", "stripe", "missed"),
    [
        pytest.param(50, 1, {"server_error_after_commit": 1, **DELIVERIES}, 0, id="all of it happened"),
        pytest.param(49, 1, {"server_error_after_commit": 1, **DELIVERIES}, 1, id="a kill is missing"),
        pytest.param(50, 0, {"connection_dropped_after_commit": 4, **DELIVERIES}, 1, id="no dropped answer"),
        pytest.param(50, 1, {"conflict": 9, **DELIVERIES}, 1, id="no lost answer of Stripe"),
        pytest.param(50, 1, {"server_error_after_commit": 1, "delivery_dropped": 2}, 2, id="deliveries only dropped"),
        pytest.param(0, 0, {}, 6, id="nothing happened"),
    ],
)
def test_a_run_without_some_strike_is_reported(kills: int, dropped: int, stripe: dict[str, int], missed: int) -> None:
    """A run without faults has exact counts and proves nothing."""
    assert len(spared(draw(3), kills, dropped, stripe)) == missed
    assert spared([], 0, 0, {}) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_the_oldest_copy_returns_after_the_rebuild(seed: int) -> None:
    """Only a copy from before a rebuild tests the generations. A copy must exist before it returns."""
    strikes = [action.strike for action in draw(seed)]
    damages = [strike for strike in strikes if strike in dict(DAMAGES)]

    assert damages == [strike for strike, _ in DAMAGES]
    assert strikes.index(Strike.COPY) < strikes.index(Strike.VALKEY_OLDER)


def test_only_the_file_that_is_written_to_is_truncated(folder: Path) -> None:
    """A real power loss leaves the other files whole."""
    assert truncate(folder, 0.3) == (10, 7)
    assert (folder / FILES / "appendonly.aof.2.incr.aof").read_bytes() == b"0123456"
    assert (folder / FILES / "appendonly.aof.1.incr.aof").read_bytes() == b"old commands"


def test_an_older_copy_replaces_all_files(folder: Path, tmp_path: Path) -> None:
    """Later writes are gone, including files that the copy lacks."""
    copies = Copies(folder, tmp_path / "copies")
    assert copies.take() is not None
    (folder / FILES / "appendonly.aof.2.incr.aof").write_bytes(b"0123456789 and more")
    assert copies.take() is not None
    (folder / FILES / "appendonly.aof.3.incr.aof").write_bytes(b"newest")

    copies.bring_back(1.0)
    assert (folder / FILES / "appendonly.aof.2.incr.aof").read_bytes() == b"0123456789 and more"
    assert not (folder / FILES / "appendonly.aof.3.incr.aof").exists()
    copies.bring_back(0.0)
    assert (folder / FILES / "appendonly.aof.2.incr.aof").read_bytes() == b"0123456789"


def test_a_missing_extra_or_different_value_is_a_difference() -> None:
    """A comparison that cannot fail proves nothing."""
    result = compared("a store", {"same": 1, "other": 2, "missing": 3}, {"same": 1, "other": 3, "extra": 4})

    assert (result.rows, result.differing) == (4, 3)
    assert "missing: oracle 3, found None" in result.shown

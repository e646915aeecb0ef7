"""The commands about side tables look first whose key they have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pipeline.commands.billing import audit, recover, run_resync, status
from pipeline.open import open_base
from pipeline.settings import Settings
from schemas.errors import OperatorNeeded, Transient
from tests.services.stripe import TEST_KEY, ServedSimulator

READING: dict[str, Callable[[Settings], Awaitable[object]]] = {
    "recover": lambda settings: recover(settings, 60),
    "resync": lambda settings: run_resync(settings, "monday"),
}
LOOKING: dict[str, Callable[[Settings], Awaitable[object]]] = {
    "status": status,
    "audit": lambda settings: audit(settings, "acme", 1),
}


async def deployment(folder: Path, account: str, api_base: str) -> Settings:
    """A deployment of a Stripe account, without a database."""
    settings = Settings.model_validate(
        {
            "log_url": f"embedded://{folder}/log.db",
            "secret": "x" * 32,
            "sql_url": "postgresql://tidemark@127.0.0.1:1/tidemark",
            "stripe_account": account,
            "stripe_api_key": TEST_KEY,
            "stripe_api_base": api_base,
        }
    )
    base = await open_base(settings)
    await base.log.close()
    return settings


@pytest.mark.parametrize("command", READING.values(), ids=READING)
async def test_a_key_of_another_account_is_refused_before_anything_is_read(
    tmp_path: Path, served_simulator: ServedSimulator, command: Callable[[Settings], Awaitable[object]]
) -> None:
    """To another account every object of ours is unknown: all of them would be marked as deleted."""
    settings = await deployment(tmp_path, "acct_ours", served_simulator.url)
    with pytest.raises(OperatorNeeded, match="the key is for test mode of acct_simulator"):
        await command(settings)


@pytest.mark.parametrize("command", READING.values(), ids=READING)
async def test_with_the_key_of_the_account_the_database_is_opened(
    tmp_path: Path, served_simulator: ServedSimulator, command: Callable[[Settings], Awaitable[object]]
) -> None:
    settings = await deployment(tmp_path, "acct_simulator", served_simulator.url)
    with pytest.raises(Transient, match="PostgreSQL at 127"):
        await command(settings)


@pytest.mark.parametrize("command", LOOKING.values(), ids=LOOKING)
async def test_who_only_looks_does_not_need_stripe(
    tmp_path: Path, command: Callable[[Settings], Awaitable[object]]
) -> None:
    """While Stripe does not answer, `billing status` is what an operator asks first."""
    settings = await deployment(tmp_path, "acct_simulator", "http://127.0.0.1:9")
    with pytest.raises(Transient, match="PostgreSQL at 127"):
        await command(settings)

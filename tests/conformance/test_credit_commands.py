"""The commands about credits on PostgreSQL and a log in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_asyncio

from pipeline.commands.credits import GrantWish, list_entries, make_grant, void_grant
from pipeline.open import open_base, open_side_tables
from pipeline.settings import Settings
from schemas.credits import Category, EntryKind
from schemas.errors import InvalidInput
from tests.worlds.business import make_active
from tests.worlds.credits import CATALOG
from tests.worlds.sold import parsed


@pytest_asyncio.fixture
async def settings(tmp_path: Path, postgres_url: str) -> Settings:
    """A deployment whose active catalog has two pools."""
    settings = Settings.model_validate(
        {
            "log_url": f"embedded://{tmp_path}/log.db", "partitions": 1, "secret": "x" * 32, "sql_url": postgres_url,
            "stripe_account": "acct_1",
        }
    )  # fmt: skip
    base = await open_base(settings)
    tables = await open_side_tables(base)
    await make_active(tables, parsed(CATALOG), (), base.clock.now_ms())
    await tables.close()
    await base.log.close()
    return settings


async def test_credits_are_granted_listed_and_voided(settings: Settings) -> None:
    wish = GrantWish("acme", "first", 100, "support 1", "a lost day", Category.PROMOTIONAL, priority=10)
    made = await make_grant(settings, wish, "ann")
    assert (made.is_new, made.grant.remaining, made.grant.priority) == (True, 100, 10)
    assert await make_grant(settings, wish, "bob") == made._replace(is_new=False)
    void = await void_grant(settings, "acme", made.grant.id, "a mistake", "ann", owes=False)
    assert (void.remaining, void.voided_ms is None) == (0, False)
    assert [(entry.kind, entry.credits) for entry in await list_entries(settings, "acme", 10)] == [
        (EntryKind.GRANT, 100), (EntryKind.VOID, -100),
    ]  # fmt: skip


async def test_a_pool_that_the_catalog_does_not_have_is_refused(settings: Settings) -> None:
    with pytest.raises(InvalidInput, match=r"no pool 'third' in mode ledger; it has first, second"):
        await make_grant(settings, GrantWish("acme", "third", 1, "k", "a gift"), "ann")

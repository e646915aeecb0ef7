"""What people leave as it is, in the audit: on the fake and on PostgreSQL."""

from __future__ import annotations

from typing import cast

import pytest

from schemas.acknowledgements import Acknowledged, Acknowledgements
from schemas.errors import InvalidInput
from schemas.side_tables import SideTables
from sinks.sql.side_tables import SqlSideTables
from tests.conformance.side_table_steps import NOW_MS, linked


@pytest.fixture
def acknowledgements(side_tables: SideTables) -> Acknowledgements:
    return cast("SqlSideTables", side_tables).acknowledgements


async def test_the_first_acknowledgement_of_a_thing_stays(
    side_tables: SideTables, acknowledgements: Acknowledgements
) -> None:
    """A second click, or somebody else later, changes nothing; the audit has one row."""
    await linked(side_tables)
    first = Acknowledged("acme", "tm_1", "ann", "goodwill", NOW_MS)

    assert await acknowledgements.acknowledge(*first) == first
    assert await acknowledgements.acknowledge("acme", "tm_1", "bob", "again", NOW_MS + 1) == first
    await acknowledgements.acknowledge("acme", "tm_2", "bob", "small", NOW_MS + 2)

    found = await acknowledgements.acknowledged(["acme", "nobody"])
    assert found == {"tm_1": first, "tm_2": Acknowledged("acme", "tm_2", "bob", "small", NOW_MS + 2)}
    rows = [row for row in await side_tables.audit("acme") if row.entity == "acknowledgement"]
    assert [(row.entity_id, row.actor, row.reason) for row in rows] == [
        ("tm_1", "ann", "goodwill"), ("tm_2", "bob", "small"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("account", "by", "reason", "field"),
    [("nobody", "ann", "why", "account"), ("acme", "", "why", "by"), ("acme", "ann", " ", "reason")],
    ids=["unknown account", "without who", "without why"],
)
async def test_what_cannot_be_kept_is_refused(
    side_tables: SideTables, acknowledgements: Acknowledgements, account: str, by: str, reason: str, field: str
) -> None:
    await linked(side_tables)
    with pytest.raises(InvalidInput) as refused:
        await acknowledgements.acknowledge(account, "tm_1", by, reason, NOW_MS)

    assert refused.value.field == field
    assert await acknowledgements.acknowledged(["acme"]) == {}

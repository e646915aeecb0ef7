"""A small run of `make migration`: usage goes through the product's log, worker, archive and sink."""

from __future__ import annotations

from tests.migration.walk import walk


async def test_a_small_migration_through_the_whole_product() -> None:
    """Usage through log, worker, archive and sink; kills; an archive that lost an event halts all waves."""
    said: list[str] = []
    found, report = await walk(12, 7, said.append)

    assert found.kills.total() > 5
    assert [len(report.items), report.migration.halted] == [12, ""]
    assert any("HALTED, and no wave goes on" in line for line in said)

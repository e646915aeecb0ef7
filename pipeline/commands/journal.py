"""The journal for the finance system as a command reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from aggregators.journal import COLUMNS, entry_row
from pipeline.commands.csv_file import csv_file
from pipeline.open import side_tables_of
from pipeline.settings import Settings
from schemas.journal import JournalEntry, JournalStore

PAGE_ENTRIES: Final = 1_000


async def journal(settings: Settings, after: int, account: str = "") -> AsyncIterator[Sequence[JournalEntry]]:
    """The entries behind a number, in pages. Raises `Transient`."""
    async with side_tables_of(settings) as (_, tables):
        async for page in pages(tables.journal, after, account):
            yield page


async def pages(store: JournalStore, after: int, account: str = "") -> AsyncIterator[Sequence[JournalEntry]]:
    """As `journal`, from a store."""
    while page := await store.entries(after, PAGE_ENTRIES, account):
        yield page
        after = page[-1].number


async def write_csv(found: AsyncIterator[Sequence[JournalEntry]], path: Path) -> int:
    """Write entries into a CSV file; returns how many. Raises `InvalidInput` for a path that cannot be written."""
    count = 0
    with csv_file(path, COLUMNS) as write:
        async for page in found:
            for entry in page:
                write(entry_row(entry))
            count += len(page)
    return count

"""The commands `correct void`, `amend` and `list`, as functions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from pipeline.commands.explain import explain_stores
from pipeline.explaining.settling import settlements
from pipeline.explaining.stores import ExplainStores
from pipeline.logs.correcting import Listed, Planned, listed_corrections, plan_correction, write_correction
from pipeline.open import Base, account_log, open_base, open_corrections, open_live_view
from pipeline.settings import Settings
from schemas.control import CorrectionRecord
from schemas.corrections import CorrectionArchive, Settlement
from schemas.live_view import LiveView


class _Stores(NamedTuple):
    base: Base
    view: LiveView
    archive: CorrectionArchive


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[_Stores]:
    async with contextlib.AsyncExitStack() as stack:
        base = await open_base(settings, create=False)
        stack.push_async_callback(base.log.close)
        view = open_live_view(settings)
        stack.push_async_callback(view.close)
        archive, close = open_corrections(settings)
        stack.push_async_callback(close)
        yield _Stores(base, view, archive)


async def correct(settings: Settings, wish: CorrectionRecord, *, dry_run: bool) -> tuple[Planned, Sequence[Settlement]]:
    """Judge a correction and, unless it is a dry run, write its record. The same again writes nothing. Also what the
    invoice of a closed period differs by.

    Raises `Uncorrectable` and `Transient`.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def explain() -> ExplainStores:
            return await stack.enter_async_context(explain_stores(settings))

        stores = await stack.enter_async_context(_opened(settings))
        log = account_log(stores.base)
        planned = await plan_correction(log, stores.view, stores.archive, wish)
        settled = await settlements(explain, stores.archive, planned)
        if not dry_run:
            await write_correction(log, planned)
        return planned, settled


async def list_corrections(settings: Settings, account: str, rows_max: int) -> Sequence[Listed]:
    """The corrections of an account, newest first. Raises `Transient`."""
    async with _opened(settings) as stores:
        return await listed_corrections(stores.archive, stores.base.genesis.partitions, account, rows_max)

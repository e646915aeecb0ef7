"""The commands that copy the side tables into a file and bring them back."""

from __future__ import annotations

from pathlib import Path

from pipeline.clock import SystemClock
from pipeline.open import open_base, scope_of, served_sql_url
from pipeline.settings import Settings
from sinks.sql.backup import Backup, back_up, restore


def run_backup(settings: Settings, path: Path) -> Backup:
    """Copy the side tables into a new file. Errors as `sinks.sql.backup.back_up`, and `InvalidInput` without a URL."""
    return back_up(served_sql_url(settings), path, SystemClock().now_ms())


async def run_restore(settings: Settings, path: Path) -> Backup:
    """Bring a backup of this deployment into the empty database of the settings. Errors as `sinks.sql.backup.restore`,
    and as `open_base`."""
    base = await open_base(settings, create=False)
    try:
        return restore(served_sql_url(settings), path, scope_of(base), base.genesis.log_id)
    finally:
        await base.log.close()

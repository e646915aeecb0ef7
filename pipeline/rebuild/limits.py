"""How much a rebuild takes at a time."""

from __future__ import annotations

from typing import NamedTuple


class RebuildLimits(NamedTuple):
    """Records read at a time, events folded in one commit, cells relayed at a time."""

    records_max: int = 50
    events_max: int = 20_000
    cells_max: int = 50_000

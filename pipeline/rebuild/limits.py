"""The limits of a rebuild's steps."""

from __future__ import annotations

from typing import NamedTuple


class RebuildLimits(NamedTuple):
    """Maximum records per read, events per commit, and cells per relay call. The log limits the bytes of a read."""

    records_max: int = 5_000
    events_max: int = 20_000
    cells_max: int = 50_000

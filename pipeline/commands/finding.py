"""What a check of `tidemark doctor` finds."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """The result of a check. `status` is ok, note or wrong."""

    status: str
    what: str
    detail: str
    remedy: str = ""

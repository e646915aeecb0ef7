"""What a deliberate defect is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

Method = Callable[..., Awaitable[Any]]


class Mutant(NamedTuple):
    """A defect: where it stands, and what replaces what stands there."""

    name: str
    target: Any
    attribute: str
    made: Callable[[Any], Any]

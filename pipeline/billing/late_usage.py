"""Asks which usage no event can bill any more, because its invoice is final."""

from __future__ import annotations

from schemas.bills import Closings


class LateUsage:
    """The answers of `Closings` for one round; nothing is late without one. `forget()` ends the round."""

    def __init__(self, closings: Closings | None) -> None:
        self._closings = closings
        self._known: dict[tuple[str, str, int], str] = {}

    @property
    def is_billed(self) -> bool:
        """Whether somebody bills late usage."""
        return self._closings is not None

    def forget(self) -> None:
        """Drop the cached answers."""
        self._known.clear()

    async def invoice(self, event_name: str, stripe_customer: str, instant_ms: int) -> str:
        """The final invoice of the usage, or "". May raise `Transient`."""
        if self._closings is None:
            return ""
        asked = (event_name, stripe_customer, instant_ms)
        if asked not in self._known:
            self._known[asked] = await self._closings.finalized(*asked)
        return self._known[asked]
